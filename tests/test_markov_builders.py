"""Markov games from descriptions, against what the descriptions say when they are walked by hand."""

import itertools
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nashpref as npf
from nashpref.closed_forms import multi_turn_rlhf, rlhf
from nashpref.policies import kl, uniform

MarkovGame = npf.MarkovGame


def random_policy(game, rng):
    return rng.dirichlet(np.ones(game.actions), size=game.policy_shape[:-1])


def ends(game, policy):
    """The distribution of the final state, by label."""
    plan = game.plan(game.flat(policy))
    last = game.forward(game.horizon - 1, plan[:, game.layers[-1]].reshape(1, -1))[0]
    return {game.state_labels[-1][x]: p for x, p in zip(game.reached[-1], last, strict=True)}


def value(game, policy, opponent):
    """`P(π ≻ π')` of a game of final states."""
    gain = game.payoff(game.plan(game.flat(opponent)))[0]
    plan = game.plan(game.flat(policy))
    return 0.5 + game.forward(game.horizon - 1, plan[:, game.layers[-1]].reshape(1, -1))[0] @ gain


# --- trees ---


@st.composite
def trees(draw, depth=3, arity=None):
    """Nested mappings in which a node has one reply, or as many as all others; some branches end early."""
    arity = arity or draw(st.integers(2, 3))
    if depth == 0 or (depth < 3 and draw(st.integers(0, 4)) == 0):
        return draw(st.integers(0, 10**9))
    replies = "only" if draw(st.integers(0, 3)) == 0 else "abc"[:arity]
    names = [replies] if replies == "only" else list(replies)
    return {name: draw(trees(depth=depth - 1, arity=arity)) for name in names}


def leaves_of(tree, path=()):
    if not isinstance(tree, dict):
        return [(path, tree)]
    return [leaf for name, node in tree.items() for leaf in leaves_of(node, (*path, name))]


@settings(max_examples=60)
@given(tree=trees(), seed=st.integers(0, 2**32 - 1))
def test_a_tree_reaches_its_leaves_with_the_probability_of_their_replies(tree, seed):
    rng, leaves = np.random.default_rng(seed), leaves_of(tree)
    P = npf.zoo.random_preferences(len(leaves), rng).preferences
    game = MarkovGame.from_tree(tree, P)
    policy, opponent = random_policy(game, rng), random_policy(game, rng)
    assert game.horizon == max(len(path) for path, _ in leaves)

    def probability(pi, path):
        total, node = 1.0, tree
        for h, reply in enumerate(path):
            k = game.state_labels[h].index(path[:h])
            total *= pi[h, k, list(node).index(reply)] if len(node) > 1 else 1.0
            node = node[reply]
        return total

    mine = np.array([probability(policy, path) for path, _ in leaves])
    theirs = np.array([probability(opponent, path) for path, _ in leaves])
    reached = ends(game, policy)
    assert list(reached) == [path for path, _ in leaves]
    np.testing.assert_allclose(list(reached.values()), mine, atol=1e-15)
    assert value(game, policy, opponent) == pytest.approx(mine @ P @ theirs, abs=1e-14)


def test_leaves_are_compared_by_a_callable_or_a_matrix_in_their_order():
    tree = {"ask": {"yes": {"short": 3, "long": 1}}, "tell": 2}
    by_number = MarkovGame.from_tree(tree, lambda x, y: 0.5 + 0.1 * (x - y))
    values = np.array([3, 1, 2])
    by_matrix = MarkovGame.from_tree(tree, 0.5 + 0.1 * (values[:, None] - values))
    assert by_number.digest == by_matrix.digest
    assert by_number.horizon == 3
    assert by_number.state_labels[1:] == (
        (("ask",), ("tell",)),
        (("ask", "yes"), ("tell",)),
        (("ask", "yes", "short"), ("ask", "yes", "long"), ("tell",)),
    )
    assert by_number.action_labels is None  # the nodes offer different replies
    same = MarkovGame.from_tree({"a": {"a": 1, "b": 2}, "b": {"so": {"a": 1, "b": 3}}}, lambda x, y: 0.5)
    assert same.action_labels == ("a", "b")


def test_equilibrium_of_a_tree_is_that_of_its_leaves():
    cycle = npf.zoo.comal()
    tree = {"first": {"a": None, "b": None}, "second": {"c": None}}
    trace = npf.solve(MarkovGame.from_tree(tree, cycle.preferences), npf.OMPO(eta=2.0), 5000, tol=1e-12)
    np.testing.assert_allclose(trace.policy[0, 0], [7 / 11, 4 / 11], atol=1e-6)
    np.testing.assert_allclose(trace.policy[1, 0], [4 / 7, 3 / 7], atol=1e-6)


BAD_TREES = {
    "a leaf": ("leaf", lambda x, y: 0.5, "only a leaf"),
    "no replies": ({"a": {}, "b": 1}, lambda x, y: 0.5, "the tree at 'a' has no replies"),
    "ragged": (
        {"a": {"c": 1, "d": 2, "e": 3}, "b": {"c": 1, "d": 2}, "c": 1},
        lambda x, y: 0.5,
        "at 'b' has 2 .* 3",
    ),
    "ragged root": ({"a": {"c": 1, "d": 2, "e": 3}, "b": 1}, lambda x, y: 0.5, "the root .* has 2"),
    "small matrix": ({"a": 1, "b": 2}, [[0.5]], r"shape \(1, 1\); the 2 ends .* \(2, 2\)"),
    "not skew": ({"a": 1, "b": 2}, [[0.5, 0.7], [0.4, 0.5]], r"\('a',\), \('b',\).* 0.7 .* 0.4"),
    "not skew by a callable": ({"a": 1, "b": 2}, lambda x, y: 0.5 + 0.1 * (x != y), "0.6 .* 0.6"),
    "no probability": ({"a": 1, "b": 2}, lambda x, y: 0.5 + x - y, "-0.5 .* 1.5"),
    "not a number": ({"a": 1, "b": 2}, lambda x, y: float("nan"), "nan"),
}


@pytest.mark.parametrize("case", BAD_TREES)
def test_a_bad_tree_is_named(case):
    tree, preference, message = BAD_TREES[case]
    with pytest.raises(ValueError, match=message):
        MarkovGame.from_tree(tree, preference)


# --- generative models ---


def walk(step, initial, actions, policy, game):
    """The distribution of the final state, by recursion over `step` on its own."""
    layer = dict(initial)
    for h in range(game.horizon):
        following = defaultdict(float)
        for state, mass in layer.items():
            k = game.state_labels[h].index(state)
            for a, action in enumerate(actions):
                for p, after in step(state, action):
                    following[after] += mass * policy[h, k, a] * p
        layer = {state: mass for state, mass in following.items() if mass > 0.0}
    return layer


def walker(state, action):
    """A lazy walk on a ring of seven, with an entry of probability zero and one that is listed twice."""
    return [(0.25, state), (0.25, state), (0.5, (state + action) % 7), (0.0, "never")]


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), horizon=st.integers(1, 5))
def test_a_model_ends_where_its_walk_ends(seed, horizon):
    rng, actions = np.random.default_rng(seed), (1, 2, -1)
    game = MarkovGame.from_model(walker, lambda x, y: 0.5 + (x - y) / 20, 3, actions=actions, horizon=horizon)
    policy = random_policy(game, rng)
    expected = walk(walker, {3: 1.0}, actions, policy, game)
    got = ends(game, policy)
    assert got.keys() == expected.keys()
    for state, mass in expected.items():
        assert got[state] == pytest.approx(mass, abs=1e-14)
    assert "never" not in game.state_labels[-1]
    opponent = random_policy(game, rng)
    theirs = walk(walker, {3: 1.0}, actions, opponent, game)
    pairs = itertools.product(expected.items(), theirs.items())
    chance = sum(p * q * (0.5 + (x - y) / 20) for (x, p), (y, q) in pairs)
    assert value(game, policy, opponent) == pytest.approx(chance, abs=1e-14)


def test_a_model_compared_at_every_step_has_the_preferences_of_its_places():
    def prefer(one, other):
        (x, a), (y, b) = one, other
        return 0.5 + 0.01 * (3 * x + a - 3 * y - b)

    game = MarkovGame.from_model(walker, prefer, 0, actions=(1, 2), horizon=3, every_step=True)
    for h, payoffs in enumerate(game.payoffs):
        places = [(game.state_labels[h][k], a) for k in game.reached[h] for a in (1, 2)]
        expected = [[prefer(one, other) - 0.5 for other in places] for one in places]
        np.testing.assert_allclose(payoffs, expected, atol=1e-15)
    assert [len(states) for states in game.reached] == [1, 3, 5]


def test_several_initial_states_keep_their_distribution():
    game = MarkovGame.from_model(walker, lambda x, y: 0.5, {5: 0.25, 2: 0.75}, actions=(1, 2), horizon=2)
    assert [game.state_labels[0][s] for s in game.initial_states] == [5, 2]
    np.testing.assert_array_equal(game.initial_weights, [0.25, 0.75])


def test_an_episode_that_has_terminated_stays_where_it_is():
    # A corridor 0 1 2: walking right from 1 ends the episode at 2; but 2 may also be entered and left again.
    def entry(state, done=False):
        return [(1.0, state, -1.0, done)]

    table = {
        0: {0: entry(0), 1: entry(1)},
        1: {0: entry(2), 1: entry(2, True)},
        2: {0: entry(0), 1: entry(0)},
    }
    game = MarkovGame.from_model(table, lambda x, y: 0.5 + (x - y) / 4, 1, actions=range(2), horizon=3)
    assert game.state_labels[1] == (2, 2)  # once on the way, once for good
    right = np.zeros(game.policy_shape)
    right[..., 1] = 1.0
    assert ends(game, right)[2] == 1.0
    left = right[..., ::-1]
    assert ends(game, left)[0] == 1.0
    assert game.action_labels is None


def test_actions_that_are_names_become_labels():
    game = MarkovGame.from_model(
        lambda s, a: [(1.0, s + a)], lambda x, y: 0.5, "", actions=["x", "y"], horizon=2
    )
    assert game.action_labels == ("x", "y")
    assert game.state_labels == (("",), ("x", "y"), ("xx", "xy", "yx", "yy"))


BAD_MODELS = {
    "no steps": (dict(horizon=0), "horizon = 0"),
    "no actions": (dict(actions=[]), "actions is empty"),
    "leaks": (dict(step=lambda s, a: [(0.4, s), (0.5, 1)]), r"step\(0, 1\).*\[0.4, 0.5\].* sum to 0.9"),
    "negative": (dict(step=lambda s, a: [(1.5, s), (-0.5, 1)]), r"step\(0, 1\)"),
    "nan": (dict(step=lambda s, a: [(float("nan"), s)]), r"step\(0, 1\)"),
    "nowhere": (dict(step=lambda s, a: []), r"step\(0, 1\)"),
    "initial": (dict(initial={0: 0.5, 1: 0.4}), "initial sums to 0.9"),
    "not skew": (dict(preference=lambda x, y: 0.6), r"preference\(2, 2\) = 0.6"),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_a_bad_model_is_named(case):
    change, message = BAD_MODELS[case]
    good = dict(
        step=lambda s, a: [(1.0, (s + a) % 3)],
        preference=lambda x, y: 0.5,
        initial=0,
        actions=(1, 2),
        horizon=2,
    )
    with pytest.raises(ValueError, match=message):
        MarkovGame.from_model(**good | change)


# --- rewards: multi-turn RLHF ---


def random_dynamics(rng, S=4, A=3, H=3):
    return rng.dirichlet(np.ones(S), size=(H, S, A))


@pytest.mark.parametrize("shape", [(4,), (4, 3), (3, 4, 3)])
def test_the_preference_of_rewards_is_linear(shape):
    rng = np.random.default_rng(0)
    T, r = random_dynamics(rng), rng.normal(size=shape)
    scale = 0.4 / np.ptp(r)
    game = MarkovGame.from_rewards(T, r, 0, scale=scale)
    rewards = np.broadcast_to(r, (3, 4, 3)).reshape(3, 12) if r.ndim > 1 else r[None]
    for h, payoffs in enumerate(game.payoffs):
        own = rewards[h] if r.ndim == 1 or h else rewards[h][:3]  # only state 0 is reached at first
        np.testing.assert_allclose(payoffs, scale * (own[:, None] - own), atol=1e-15)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), terminal=st.booleans(), beta=st.sampled_from([0.02, 0.1, 1.0]))
def test_multi_turn_rlhf_is_the_equilibrium_of_the_game_of_rewards_and_the_limit_of_mtpo(
    seed, terminal, beta
):
    rng = np.random.default_rng(seed)
    r = rng.random(4 if terminal else (3, 4, 3)) / 2
    game = MarkovGame.from_rewards(random_dynamics(rng), r, [0.4, 0.0, 0.6, 0.0])
    mu = random_policy(game, rng) * 0.9 + 0.1 / 3
    pi = multi_turn_rlhf(game, r, beta, mu)
    assert npf.duality_gap(game, pi, beta, mu) < 1e-24
    trace = npf.solve(game, npf.MTPO(beta=beta, eta=0.5 / beta), 400, reference=mu)
    np.testing.assert_allclose(trace.policy, pi, atol=1e-9)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), beta=st.floats(0.05, 2.0))
def test_multi_turn_rlhf_maximises_reward_less_kl(seed, beta):
    rng = np.random.default_rng(seed)
    T, r = random_dynamics(rng), rng.normal(size=(3, 4, 3))
    game = MarkovGame(T, np.full((4, 3, 4, 3), 0.5), 1)
    mu = uniform(game.policy_shape)
    pi = multi_turn_rlhf(game, r, beta)

    def objective(policy):
        d = npf.occupancy(game, policy)
        cost = kl(np.log(np.maximum(policy, 1e-300)), np.log(mu))
        return (d * r).sum() - beta * (d.sum(axis=-1) * cost).sum()

    for _ in range(5):
        assert objective(pi) >= objective(0.95 * pi + 0.05 * random_policy(game, rng)) - 1e-12


def test_rewards_of_final_states_that_cannot_be_reached_do_not_count():
    T = np.zeros((1, 4, 2, 4))
    T[0, :, 0, 1] = T[0, :, 1, 3] = 1.0
    game = MarkovGame(T, np.full((4, 4), 0.5), 2)
    pi = multi_turn_rlhf(game, [9.0, 0.2, -9.0, 0.5], 0.1)
    np.testing.assert_allclose(pi[0, 2], rlhf([0.2, 0.5], 0.1), atol=1e-15)
    np.testing.assert_array_equal(pi[0, 0], [0.5, 0.5])


def test_with_one_turn_multi_turn_rlhf_is_rlhf():
    game, r = MarkovGame.from_matrix(npf.zoo.comal()), np.array([1.0, -0.5, 0.3])
    np.testing.assert_allclose(multi_turn_rlhf(game, r[None, None], 0.3)[0, 0], rlhf(r, 0.3), atol=1e-15)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda T: MarkovGame.from_rewards(T, [0.0, 1.0, 3.0, 0.0], 0), r"by up to 3.*scale = 0\.165"),
        (lambda T: MarkovGame.from_rewards(T, [0.0, 1.0, 3.0, 0.0], 0, scale=-1), "scale = -1"),
        (lambda T: MarkovGame.from_rewards(T, np.arange(36.0).reshape(3, 4, 3), 0), "of step 0"),
        (lambda T: MarkovGame.from_rewards(T, [0.0, np.inf, 0.0, 0.0], 0), "finite"),
        (lambda T: MarkovGame.from_rewards(T, 0.5, 0), r"shape \(\)"),
        (lambda T: MarkovGame.from_rewards(T, [0.0, 0.1], 0), r"shape \(2, 2\)"),
        (
            lambda T: multi_turn_rlhf(MarkovGame.from_rewards(T, [0.0] * 4, 0), [0.0] * 3, 1.0),
            r"shape \(3,\)",
        ),
        (lambda T: multi_turn_rlhf(MarkovGame.from_rewards(T, [0.0] * 4, 0), [0.0] * 4, 0.0), "beta = 0"),
        (lambda T: multi_turn_rlhf(MarkovGame.from_rewards(T, [0.0] * 4, 0), [np.nan] * 4, 1.0), "finite"),
    ],
)
def test_bad_rewards_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(random_dynamics(np.random.default_rng(0)))


def test_the_scale_that_an_error_names_fits():
    T, r = random_dynamics(np.random.default_rng(0)), np.array([0.0, 1.0, 7.0, 2.0])
    with pytest.raises(ValueError, match="scale = ") as error:
        MarkovGame.from_rewards(T, r, 0)
    MarkovGame.from_rewards(T, r, 0, scale=float(str(error.value).split("scale = ")[-1]))
