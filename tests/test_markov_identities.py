"""Markov games against matrix games and against each other: reductions, reparametrisations."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest

import nashpref as npf
from nashpref.mirror import MirrorStep
from nashpref.testing.markov_games import Description
from nashpref.testing.markov_oracle import Play, markov_two_player_iterates

BETA, STEPS = 0.3, 40


def rules(beta=BETA, eta=0.7):
    """Every rule, with the weights of the KL and of the payoffs that are asked for."""
    return [
        *(npf.MWU(eta=eta), npf.ONPO(eta=eta), npf.OGDA(eta=eta), npf.OMPO(eta=eta), npf.EGPO(eta=eta)),
        *(npf.MNPO(eta=eta), npf.COMAL(beta=beta, eta=eta, every=7), npf.BestResponse(beta=10 * beta)),
        *(kind(beta=beta, eta=eta) for kind in (npf.GDA, npf.NashMD, npf.NashEMA, npf.OGDA, npf.OMPO)),
        *(kind(beta=beta, eta=eta) for kind in (npf.EGPO, npf.MMD, npf.NashMP, npf.MNPO)),
        npf.BestResponse(beta=10 * beta, opponent="current"),
    ]


def softmax(rng, shape, scale=1.0):
    logits = scale * rng.standard_normal(shape)
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def iterates(game, rule, mu, steps=STEPS, **options):
    return npf.solve(game, rule, steps, reference=mu, keep_policies=True, record=1, **options)


def complete(P):
    P = np.triu(P, 1)
    return P + np.tril(1.0 - P.T, -1) + 0.5 * np.eye(len(P))


def random_description(seed, *, H=3, S=4, A=3, terminal=False, starts=1, dynamics="random"):
    rng = np.random.default_rng(seed)
    if dynamics == "random":
        T = rng.dirichlet(np.ones(S), (H, S, A))
    elif dynamics == "merging":
        T = np.eye(S)[rng.integers(S, size=(H, S, A))]
    else:  # a tree: its states are the paths, a tree for each initial state
        S = starts * A**H
        root, node = np.divmod(np.arange(S), A**H)
        to = (node[:, None] * A + np.arange(A)) % A**H + A**H * root[:, None]
        T = np.repeat(np.eye(S)[to][None], H, axis=0)
    P = complete(rng.random((S, S))) if terminal else None
    if P is None:
        P = np.stack([complete(rng.random((S * A, S * A))) for _ in range(H)]).reshape(H, S, A, S, A)
    rho = np.zeros(S)
    rho[[k * A**H for k in range(starts)] if dynamics == "tree" else range(starts)] = 1.0 / starts
    return Description(T, P, rho)


# --- H = 1 ---


@pytest.mark.parametrize("geometry", list(npf.Geometry))
@pytest.mark.parametrize("rule", rules(), ids=repr)
def test_one_turn_is_the_matrix_game_bit_for_bit(rule, geometry):
    if geometry is npf.Geometry.WEIGHTED_OCCUPANCY and npf.mirror.target_beta(rule) > 0.0:
        pytest.skip("refused: another game would be solved")
    rng = np.random.default_rng(0)
    matrix, mu = npf.zoo.random_preferences(5, rng), softmax(rng, 5)
    markov = npf.MarkovGame.from_matrix(matrix)
    star = softmax(rng, 5)
    one = iterates(matrix, rule, mu, compiled=False, equilibrium=star)
    other = iterates(markov, rule, mu[None, None], geometry=geometry, equilibrium=star[None, None])
    np.testing.assert_array_equal(one.policies, other.policies[:, 0, 0])
    np.testing.assert_array_equal(one.log_policy, other.log_policy[0, 0])
    for measured in ("gap", "unregularised_gap", "average_gap", "kl"):
        np.testing.assert_allclose(getattr(one, measured), getattr(other, measured), rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize(
    ("markov", "matrix"),
    [
        (npf.MTPO(beta=BETA), npf.GDA(beta=BETA)),  # INPO is GDA with its step inverted
        (npf.MTPO(beta=BETA, eta=0.7), npf.GDA(beta=BETA, eta=0.7)),
        (npf.MTPOTau(beta=BETA), npf.NashMD(beta=BETA)),
        (npf.MPO(eta=0.7), npf.MWU(eta=0.7)),
        (npf.OMPO(eta=0.7), npf.OGDA(eta=0.7)),
        (npf.OMPO(beta=BETA), npf.OGDA(beta=BETA)),
    ],
    ids=repr,
)
def test_with_one_turn_the_markov_rules_are_those_of_matrix_games(markov, matrix):
    rng = np.random.default_rng(1)
    game, mu = npf.zoo.random_preferences(6, rng), softmax(rng, 6)
    one = iterates(npf.MarkovGame.from_matrix(game), markov, mu[None, None])
    np.testing.assert_array_equal(one.policies[:, 0, 0], iterates(game, matrix, mu, compiled=False).policies)


# --- deterministic dynamics: the matrix game of trajectories ---


@dataclass(frozen=True)
class Trajectories:
    """What can happen from a state when nothing is left to chance: `states (n, H + 1)`, `actions (n, H)`."""

    states: np.ndarray
    actions: np.ndarray

    @classmethod
    def of(cls, game, start):
        H, _, A = game.shape
        actions = np.array(list(itertools.product(range(A), repeat=H)))
        states = np.full((len(actions), H + 1), start)
        for h in range(H):
            states[:, h + 1] = game.transition[h, states[:, h], actions[:, h]].argmax(axis=-1)
        return cls(states, actions)

    def law(self, policy):
        """The probability of each under `policy`, `(…, H, S, A)`."""
        H = self.actions.shape[1]
        return np.prod([policy[..., h, self.states[:, h], self.actions[:, h]] for h in range(H)], axis=0)

    def payoffs(self, game):
        """What each wins against each."""
        x, (s, a) = self.states[:, -1], (self.states, self.actions)
        if game.terminal:
            return game.preference[np.ix_(x, x)] - 0.5
        S, A = game.shape[1:]
        P = game.preference.reshape(-1, S * A, S * A) - 0.5
        places = [s[:, h] * A + a[:, h] for h in range(a.shape[1])]
        return sum(P[h][np.ix_(place, place)] for h, place in enumerate(places))


@pytest.mark.parametrize("terminal", [True, False], ids=["final states", "every step"])
@pytest.mark.parametrize("dynamics", ["tree", "merging"])
@pytest.mark.parametrize("index", range(len(rules())), ids=[repr(rule) for rule in rules()])
def test_occupancy_measures_of_deterministic_games_are_those_of_trajectories(index, dynamics, terminal):
    """With unit weights each rule is itself on the matrix game of trajectories; μ is the product there."""
    game = random_description(2, H=3, S=3, A=2, terminal=terminal, starts=2, dynamics=dynamics)
    mu = softmax(np.random.default_rng(3), game.policy_shape)
    markov = iterates(game.game(), rules()[index], mu, geometry="occupancy")
    # Payoffs of three steps exceed 1/2: all are divided by three, and the weights of rules made up for it.
    scale = 1 if terminal else 3
    rule = rules(BETA / scale, 0.7 * scale)[index]
    for i, start in enumerate(game.initial_states):
        paths = Trajectories.of(game, start)
        matrix = npf.MatrixGame(0.5 + paths.payoffs(game) / scale)
        expected = iterates(matrix, rule, paths.law(mu[i]), compiled=False).policies
        np.testing.assert_allclose(paths.law(markov.policies[:, i]), expected, rtol=0.0, atol=1e-13)
        assert np.abs(expected[-1] - expected[0]).max() > 1e-3


def test_ompo_on_a_tree_is_omwu_over_its_leaves():
    """By hand: `p_{t+1} ∝ p_t exp(η(2r_t − r_{t−1}))` on 27 leaves, for 300 steps."""
    game = random_description(4, H=3, A=3, terminal=True, dynamics="tree")
    paths, eta = Trajectories.of(game, 0), 0.5
    R, log_p = paths.payoffs(game), np.full(27, -np.log(27.0))
    previous = R @ np.exp(log_p)
    for _ in range(300):
        now = R @ np.exp(log_p)
        log_p = log_p + eta * (2.0 * now - previous)
        log_p, previous = log_p - np.logaddexp.reduce(log_p), now
    policy = npf.solve(game.game(), npf.OMPO(eta=eta), 300).policy
    np.testing.assert_allclose(paths.law(policy), np.exp(log_p), rtol=0.0, atol=1e-13)


def test_with_chance_a_step_is_multiplicative_weights_neither_over_plans_nor_over_trajectories():
    """Both actions may lead to a tie; the first as likely to a choice between winning and losing by x.

    The soft dynamic program gives the first action the odds √cosh x (that it is the projection is tested
    with the theorems). Plans would have cosh(x/2), the tilted law of trajectories (1 + cosh x)/2.
    """
    win, tie, lose = np.eye(3)
    first = [[0.0, 0.5, 0.5], [0.0, 0.0, 1.0]]
    T = np.array([[first, [tie, tie], [tie, tie]], [[tie, tie], [win, lose], [tie, tie]]])
    game = npf.MarkovGame(T, [[0.5, 1.0, 1.0], [0.0, 0.5, 1.0], [0.0, 0.0, 0.5]], 0)
    eta = 2.0
    x = eta * (0.5 * 3 / 4 + 0.5 / 8)  # winning against a uniform opponent: a tie 3/4, a loss 1/8 of the time
    odds = np.divide(*npf.solve(game, npf.MWU(eta=eta), 1, geometry="occupancy").policy[0, 0])
    assert odds == pytest.approx(np.sqrt(np.cosh(x)), rel=1e-13)
    assert odds - np.cosh(x / 2) > 0.05
    assert (1 + np.cosh(x)) / 2 - odds > 0.01


# --- reparametrisations, in both geometries ---


@pytest.mark.parametrize("geometry", ["occupancy", "per-state"])
@pytest.mark.parametrize(
    ("implicit", "explicit"), [(npf.MMD, npf.GDA), (npf.NashMP, npf.EGPO)], ids=["MMD", "NashMP"]
)
@pytest.mark.parametrize("terminal", [True, False])
def test_implicit_rules_are_explicit_ones_at_another_step(implicit, explicit, geometry, terminal):
    game = random_description(6, terminal=terminal, starts=2).game()
    mu, eta = softmax(np.random.default_rng(7), game.policy_shape), 1.7
    one = iterates(game, implicit(beta=BETA, eta=eta), mu, geometry=geometry)
    other = iterates(game, explicit(beta=BETA, eta=eta / (1.0 + eta * BETA)), mu, geometry=geometry)
    np.testing.assert_allclose(one.policies, other.policies, rtol=1e-12)


@pytest.mark.parametrize("terminal", [True, False])
def test_mmd_is_the_implicit_step_of_its_definition(terminal):
    """`argmax_d η⟨d, r_t⟩ − ηβ KL_p(d‖μ) − KL_p(d‖d_t)`: one soft response at temperature 1 + ηβ."""
    game, eta = random_description(8, terminal=terminal), 1.7
    play, mu = Play.of(game, 0, 0), softmax(np.random.default_rng(9), game.shape)
    expected, policy = [mu], mu
    weight = 1.0 + eta * BETA
    for _ in range(10):
        gain, final = play.gain(policy)
        prior = (np.log(policy) + eta * BETA * np.log(mu)) / weight
        policy = np.exp(play.soft_response(eta * gain, eta * final, prior, np.full(3, weight)))
        expected.append(np.where(play.reached[..., None], policy, mu))
    trace = iterates(game.game(), npf.MMD(beta=BETA, eta=eta), mu, 10, geometry="occupancy")
    np.testing.assert_allclose(trace.policies, expected, rtol=1e-11)


@dataclass(frozen=True)
class OGDAFromNothing:
    """OGDA with q_{−1} := 0."""

    eta: float

    def steps(self, t):
        step, *rest = npf.OGDA(eta=self.eta).steps(t)
        return (step if t else MirrorStep("next", step.anchors, {"current": 2.0 * self.eta}), *rest)


@pytest.mark.parametrize("geometry", ["occupancy", "weighted-occupancy"])
@pytest.mark.parametrize("terminal", [True, False])
def test_two_sequences_are_one_call(geometry, terminal):
    """ONPO ≡ OGDA on occupancy measures too, when both start from q_{−1} = 0; with chance moves."""
    game = random_description(10, terminal=terminal, starts=2).game()
    mu = softmax(np.random.default_rng(11), game.policy_shape)
    one = iterates(game, npf.ONPO(eta=0.6), mu, 200, geometry=geometry)
    other = iterates(game, OGDAFromNothing(0.6), mu, 200, geometry=geometry)
    np.testing.assert_allclose(one.policies, other.policies, rtol=0.0, atol=1e-12)
    assert (
        np.abs(one.policies - iterates(game, npf.OGDA(eta=0.6), mu, 200, geometry=geometry).policies).max()
        > 1e-3
    )


# --- one player is enough ---


@pytest.mark.parametrize("geometry", list(npf.Geometry))
@pytest.mark.parametrize("rule", rules(), ids=repr)
def test_two_independent_players_run_alike(rule, geometry):
    """Each against the other, by the definition; and the one player of `solve` is either of them."""
    if geometry is npf.Geometry.WEIGHTED_OCCUPANCY and npf.mirror.target_beta(rule) > 0.0:
        pytest.skip("refused: another game would be solved")
    game = random_description(12, starts=2)
    mu = softmax(np.random.default_rng(13), game.policy_shape)
    first, second = markov_two_player_iterates(game, rule, mu, mu, 10, geometry)
    np.testing.assert_allclose(first, second, rtol=0.0, atol=1e-12)
    policies = iterates(game.game(), rule, mu, 10, geometry=geometry).policies
    np.testing.assert_allclose(policies, first, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("terminal", [True, False])
def test_both_geometries_have_the_same_fixed_point(terminal):
    """The equilibrium of the regularised game, from μ and from the uniform policy."""
    game = random_description(14, terminal=terminal).game()
    mu = softmax(np.random.default_rng(15), game.policy_shape)
    ends = [
        npf.solve(game, npf.EGPO(beta=0.5, eta=0.5), 400, reference=mu, start=start, geometry=geometry)
        for geometry in ("occupancy", "per-state")
        for start in (mu, np.full(game.policy_shape, 1 / 3))
    ]
    for end in ends:
        assert end.gap[-1] < 1e-24
        np.testing.assert_allclose(end.policy, ends[0].policy, rtol=0.0, atol=1e-10)
