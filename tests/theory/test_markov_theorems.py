"""The theorems on Markov games: they hold where they should, with constants that enumeration confirms."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nashpref as npf
from nashpref import theory
from nashpref.dynamic_programming import soft_response
from nashpref.testing.markov_games import Description
from nashpref.testing.markov_oracle import Play
from nashpref.theory import Case, Verdict, markov_bounds, trajectories
from nashpref.theory.markov_bounds import STEPS

THEOREMS = [theorem for theorem in theory.THEOREMS if npf.MarkovGame in theorem.games]
MARKOV_ONLY = [theorem for theorem in THEOREMS if npf.MatrixGame not in theorem.games]


def softmax(rng, shape, scale=1.0):
    logits = scale * rng.standard_normal(shape)
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def random_game(seed):
    """H in 1, 3, 5, either preference, one initial state or three, dense or sparse."""
    rng = np.random.default_rng(seed)
    H, terminal, (S, A) = (1, 3, 5)[seed % 3], bool(seed // 3 % 2), ((4, 3), (3, 2), (5, 4))[seed % 5 % 3]
    starts, branching = (1, 3)[seed // 6 % 2], (None, 2)[seed // 2 % 2]
    game = npf.zoo.random_markov_game(S, A, H, rng, terminal=terminal, starts=starts, branching=branching)
    return game, softmax(rng, game.policy_shape)


def rewards(seed, H=3, S=4, A=3):
    rng = np.random.default_rng(seed)
    T = rng.dirichlet(np.ones(S), (H, S, A))
    return npf.MarkovGame.from_rewards(T, rng.random(S), 0, scale=0.5), softmax(rng, (H, S, A))


# --- the bounds ---


@pytest.mark.parametrize("seed", range(24))
def test_every_bound_holds_on_random_games(seed):
    game, mu = random_game(seed)
    beta = (0.7, 0.2, 0.05, 0.01)[seed % 4]
    cases, held = {}, set()
    for theorem in THEOREMS:
        rule = theorem.rule(game, mu, beta if theorem.regularised else 0.0)
        steps = min(theorem.steps, STEPS - 1 if isinstance(rule, npf.MPO) else 30)
        steps = 3 if theorem is theory.COMAL_LAST else steps
        case = Case(game, rule, mu, steps, geometry=theorem.geometry)
        check = theorem.check(cases.setdefault((rule, steps, theorem.geometry), case))
        assert check.verdict is not Verdict.FAILS, (theorem.name, beta, check)
        held |= {theorem.name} if check.verdict is Verdict.HOLDS else set()
    assert held >= {theorem.name for theorem in MARKOV_ONLY} - {theory.RLHF.name}
    assert held >= {theorem.name for theorem in THEOREMS} - {
        *(theorem.name for theorem in (theory.RLHF, theory.MWU_LAST, theory.COMAL_LAST)),
        *(theorem.name for theorem in (theory.NASH_MD, theory.NASH_MD_STEP)),
    }


@pytest.mark.parametrize("beta", [1.0, 0.1, 0.02])
@pytest.mark.parametrize("seed", range(8))
def test_multi_turn_rlhf(seed, beta):
    """Theorem B.6; its equilibrium is one soft dynamic program, whoever the opponent is."""
    game, mu = rewards(seed)
    case = Case(game, npf.MTPO(beta=beta), mu, 200)
    assert theory.RLHF.check(case).verdict is Verdict.HOLDS
    anyone = softmax(np.random.default_rng(seed + 100), game.policy_shape)
    closed_form = npf.best_response(game, anyone, beta, mu)
    np.testing.assert_allclose(case.equilibrium.policy, closed_form, rtol=1e-9)


def test_ompo_with_the_smallest_occupancy_fails():
    """Twelve rounds in one state: occupancies say 1/2 where trajectories say 2^−12."""
    game = theory.named_markov_games()["twelve rounds"]
    case = Case(game, npf.OMPO(), steps=200, geometry=npf.Geometry.WEIGHTED_OCCUPANCY)
    printed, right = theory.OMPO_PRINTED.check(case), theory.OMPO_AVERAGE.check(case)
    assert printed.verdict is Verdict.FAILS
    assert printed.ratio > 1.3
    assert right.verdict is Verdict.HOLDS
    assert printed.ratio == pytest.approx(12 * right.ratio, rel=1e-12)
    sharp = theory.OMPO_SHARP.check(case)
    assert sharp.verdict is Verdict.HOLDS
    assert sharp.ratio > 0.9


@pytest.mark.parametrize("seed", range(6))
def test_average_bounds_hold_for_the_largest_steps(seed):
    """OMPO up to (√2−1)/max L_h, OGDA with unit weights up to (√2−1)/L, MPO for any η."""
    game, mu = random_game(seed)
    limit = np.sqrt(2.0) - 1.0
    eta = limit / trajectories.step_payoffs(game).max()
    weighted = npf.Geometry.WEIGHTED_OCCUPANCY
    assert theory.OMPO_SHARP.check(Case(game, npf.OMPO(eta=eta), mu, 300, geometry=weighted)).ratio <= 1.0
    eta = limit / trajectories.largest_payoff(game)
    assert theory.OGDA_AVERAGE.check(Case(game, npf.OMPO(eta=eta), mu, 300)).ratio <= 1.0
    for eta in (0.03, 0.3, 3.0):
        assert theory.MPO_AVERAGE.check(Case(game, npf.MPO(eta=eta), mu, 300)).ratio <= 1.0
        mwu = Case(game, npf.MWU(eta=eta), mu, 300)
        assert theory.MWU_AVERAGE.check(mwu).ratio <= 1.0


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), beta=st.floats(0.02, 2.0), share=st.floats(0.01, 1.0))
def test_one_step_from_anywhere(seed, beta, share):
    """The one-step inequalities of MTPO and MTPO-τ with range²/8, and of Nash-MD on occupancy measures.

    Nearly tight close to the equilibrium, where a Q that is not the theorem's is found out.
    """
    rng = np.random.default_rng(seed)
    game, mu = random_game(seed % 1000)
    star, eta = npf.equilibrium(game, beta, mu).policy, share / beta
    far = np.log(softmax(rng, game.policy_shape, 3.0))
    for mix in (1.0, 0.1, 0.001):
        start = np.exp((1.0 - mix) * np.log(star) + mix * far)
        start /= start.sum(axis=-1, keepdims=True)
        flat = trajectories.flat(game, np.stack([start, star]))
        weight = eta * beta
        m = np.exp((1.0 - weight) * np.log(flat[:1]) + weight * np.log(game.flat(mu)))
        m /= m.sum(axis=-1, keepdims=True)
        q, ratio = trajectories.action_values(game, flat[:1], game.flat(mu), beta)
        q_mixture, _ = trajectories.action_values(game, m, game.flat(mu), beta)
        for rule, excess in (
            (npf.MTPO(beta=beta, eta=eta), np.ptp(q - beta * ratio, axis=-1) ** 2 / 8.0),
            (npf.MTPOTau(beta=beta, eta=eta), np.ptp(q_mixture, axis=-1) ** 2 / 8.0),
            (npf.NashMD(beta=beta, eta=eta), None),
        ):
            geometry = "occupancy" if excess is None else None
            trace = npf.solve(game, rule, 1, reference=mu, start=start, equilibrium=star, geometry=geometry)
            if excess is None:
                more = trajectories.largest_payoff(game) ** 2 / 2.0
            else:
                more = trajectories.expected(game, flat[1], excess)[0]
            assert trace.kl[1] <= (1.0 - weight) * trace.kl[0] + eta**2 * more + 1e-12, rule


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), beta=st.floats(0.02, 2.0), share=st.floats(0.01, 1.0))
def test_largest_steps_still_contract_on_occupancy_measures(seed, beta, share):
    """As in matrix games, with L the most that a trajectory wins."""
    rng = np.random.default_rng(seed)
    game, mu = random_game(seed % 1000)
    start, star = softmax(rng, game.policy_shape, 2.0), npf.equilibrium(game, beta, mu).policy
    L = trajectories.largest_payoff(game)
    for rule, eta, factor in (
        (npf.GDA, share * beta / (beta**2 + L**2), lambda b: 1.0 - b),
        (npf.MMD, share * beta / L**2, lambda b: 1.0 / (1.0 + b)),
        (npf.EGPO, share / (beta + L), lambda b: 1.0 - b),
        (npf.NashMP, share / L, lambda b: 1.0 / (1.0 + b)),
    ):
        trace = npf.solve(game, rule(beta=beta, eta=eta), 1, reference=mu, start=start, equilibrium=star)
        assert trace.kl[1] <= factor(eta * beta) * trace.kl[0] * (1.0 + 1e-9) + 1e-14, (rule, eta)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("beta", [1.0, 0.05])
def test_values_stay_within_their_a_priori_ranges(seed, beta):
    """`range Q_t ≤ R_h` and `β range(log π_t/μ) ≤ R_h`, which the a-priori bounds rest on."""
    game, mu = random_game(seed)
    case = Case(game, npf.MTPO(beta=beta), mu, 100)
    most = markov_bounds.value_ranges(case)
    own = game.reached_from[..., None]
    q, ratio = markov_bounds.values(case, markov_bounds.iterates(case))
    for h, layer in enumerate(game.layers):
        for x in (q, ratio):
            assert np.ptp((x * own)[:, :, layer], axis=-1).max() <= most[h] * (1.0 + 1e-12)
    if game.horizon > 1 and beta == 1.0:
        assert np.abs(q).max() > 1e-3


# --- checks that can fail ---


@pytest.mark.parametrize("theorem", THEOREMS, ids=lambda theorem: theorem.name)
@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.9])
def test_a_broken_constant_is_caught(theorem, scale):
    """A bound of the wrong sign, zero, or a tenth below what is measured fails."""
    game, mu = rewards(0) if theorem is theory.RLHF else random_game(4)
    if theorem is theory.MWU_LAST:
        game = theory.named_markov_games()["best of three"]
        mu = softmax(np.random.default_rng(0), game.policy_shape)
    rule = theorem.rule(game, mu, 0.1 if theorem.regularised else 0.0)
    steps = min(theorem.steps, STEPS - 1 if isinstance(rule, npf.MPO) else 30)
    case = Case(game, rule, mu, steps, geometry=theorem.geometry)
    check = theorem.check(case)
    assert check.verdict is Verdict.HOLDS
    factor = scale * check.ratio if scale > 0.0 else scale
    broken = replace(theorem, bound=lambda case, t: factor * theorem.bound(case, t))
    assert broken.check(case).verdict is Verdict.FAILS


STEP, FINAL = random_game(1)[0], random_game(4)[0]  # three steps, compared at every one and at the end
WEIGHTED = npf.Geometry.WEIGHTED_OCCUPANCY


@pytest.mark.parametrize(
    ("theorem", "game", "rule", "geometry", "reason"),
    [
        (
            theory.MTPO_LAST,
            npf.zoo.comal(),
            npf.MTPO(beta=0.1),
            None,
            "the theorem is not about a MatrixGame",
        ),
        (theory.INPO, STEP, npf.GDA(beta=0.1), None, "the theorem is not about a MarkovGame"),
        (
            theory.MTPO_LAST,
            STEP,
            npf.MTPO(beta=0.1),
            npf.Geometry.OCCUPANCY,
            "the geometry is 'occupancy', not 'per-state'",
        ),
        (
            theory.OGDA_AVERAGE,
            STEP,
            npf.OMPO(eta=0.1),
            WEIGHTED,
            "the geometry is 'weighted-occupancy', not 'occupancy'",
        ),
        (theory.MTPO_LAST, STEP, npf.MTPO(beta=0.1, eta=0.5), None, "η_0 = 0.5, not 2/(β(t+2)) = 10"),
        (theory.RLHF, STEP, npf.MTPO(beta=0.1), None, "the preference is not of final states"),
        (theory.OMPO_AVERAGE, STEP, npf.OMPO(eta=0.8), WEIGHTED, "η = 0.8 > 1/√2 = 0.707107"),
        (theory.OMPO_SHARP, STEP, npf.OMPO(beta=0.1), WEIGHTED, "β = 0.1: the theorem is about β = 0"),
    ],
)
def test_unmet_assumptions_are_named(theorem, game, rule, geometry, reason):
    check = theorem.check(Case(game, rule, steps=10, geometry=geometry))
    assert check.verdict is Verdict.NOT_APPLICABLE
    assert check.unmet == (reason,)


def test_steps_that_do_not_fit_the_game_are_named():
    """The default steps of matrix rules presume L = 1/2."""
    L = trajectories.largest_payoff(STEP)
    assert L > 1.0
    (reason,) = theory.EGPO_LINEAR.check(Case(STEP, npf.EGPO(beta=0.1), steps=10)).unmet
    assert reason.startswith("η = 0.909091 > 1/(β+L) = ")
    (reason,) = theory.OGDA_AVERAGE.check(Case(STEP, npf.OMPO(), steps=10)).unmet
    assert reason.startswith("η = 0.707107 > (√2−1)/L = ")
    (reason,) = theory.NASH_MD.check(Case(STEP, npf.NashMD(beta=0.1), steps=10)).unmet
    assert reason == f"L = {L:.4g} > 1/2"
    (reason,) = theory.RLHF.check(Case(FINAL, npf.MTPO(beta=0.1), steps=10)).unmet
    assert reason.startswith("the preference is off a difference of rewards by 0.")
    (reason,) = theory.MPO_TUNED.check(Case(STEP, npf.MPO(eta=0.1), steps=10)).unmet
    assert reason.startswith("η = 0.1, not √(log(1/π̲)/(TH²)) = ")


# --- constants and values, by enumeration and by the definition ---


def description(seed, *, terminal, H=2, S=3, A=2):
    rng = np.random.default_rng(seed)
    T = rng.dirichlet(np.full(S, 0.4), (H, S, A)) * (rng.random((H, S, A, S)) < 0.7)
    T[..., 0] += T.sum(axis=-1) == 0.0
    T /= T.sum(axis=-1, keepdims=True)
    n = S if terminal else S * A
    P = np.triu(rng.random((1 if terminal else H, n, n)), 1)
    P += np.tril(1.0 - P.swapaxes(-1, -2), -1) + 0.5 * np.eye(n)
    return Description(T, P[0] if terminal else P.reshape(H, S, A, S, A), np.eye(S)[0])


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_constants_are_those_of_enumeration(seed, terminal):
    """Over all trajectories (states and actions, of positive probability) and all deterministic plans."""
    game = description(seed, terminal=terminal)
    H, S, A = game.shape
    mu = softmax(np.random.default_rng(seed), game.shape)
    weights = np.arange(H, 0.0, -1.0)
    possible = [
        (states, actions)
        for states in itertools.product([0], *[range(S)] * H)
        for actions in itertools.product(range(A), repeat=H)
        if all(game.transition[h, states[h], actions[h], states[h + 1]] > 0.0 for h in range(H))
    ]

    def won(one, other):
        if terminal:
            return game.preference[one[0][-1], other[0][-1]] - 0.5
        return sum(game.preference[h, one[0][h], one[1][h], other[0][h], other[1][h]] - 0.5 for h in range(H))

    markov, play = game.game(), Play.of(game, 0, 0)
    # Without a preference of final states it does not matter which one is reached.
    assert trajectories.largest_payoff(markov) == pytest.approx(
        max(won(one, other) for one in possible for other in possible), rel=1e-12
    )
    rare = min(np.prod([mu[h, s[h], a[h]] for h in range(H)]) for s, a in possible)
    assert trajectories.trajectory_entropy(markov, mu) == pytest.approx(-np.log(rare), rel=1e-12)
    occupancy, _ = play.occupancy(mu)
    assert trajectories.occupancy_entropy(markov, mu) == pytest.approx(
        -np.log(occupancy[occupancy > 0].min())
    )

    plans = [np.eye(A)[np.reshape(choice, (H, S))] for choice in itertools.product(range(A), repeat=H * S)]
    occupancies = np.array([play.occupancy(plan)[0] for plan in plans])
    entropies = -(occupancies * np.log(mu)).sum(axis=(2, 3))
    assert trajectories.start_entropy(markov, mu) == pytest.approx(entropies.sum(axis=1).max(), rel=1e-12)
    weighted = trajectories.start_entropy(markov, mu, weights)
    assert weighted == pytest.approx((entropies @ weights).max(), rel=1e-12)
    gain, final = play.gain(mu)
    wins = [
        (d * gain).sum() + play.occupancy(plan)[1] @ final for d, plan in zip(occupancies, plans, strict=True)
    ]
    wins = np.array(wins) - (0.5 if terminal else 0.5 * H)
    np.testing.assert_allclose(
        trajectories.payoff_extremes(markov, mu), [wins.max(), wins.min()], rtol=0.0, atol=1e-13
    )


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_action_values_are_those_of_the_joint_recursion(seed, terminal):
    """Up to what is the same in all of a step's states: the opponent's KLs, and the centring."""
    game = description(seed, terminal=terminal, H=3, S=3, A=3)
    rng, beta = np.random.default_rng(seed), 0.3
    mu, pi = softmax(rng, game.shape), softmax(rng, game.shape, 2.0)
    markov, play = game.game(), Play.of(game, 0, 0)
    q, ratio = trajectories.action_values(markov, trajectories.flat(markov, pi[None]), markov.flat(mu), beta)
    cost = beta * (pi * np.log(pi / mu)).sum(axis=-1)
    expected = markov.flat(play.action_values(pi, pi, beta, mu) - cost[..., None])[0]
    np.testing.assert_allclose(ratio[0, 0], markov.flat(np.log(pi / mu))[0], rtol=1e-12)
    for layer in markov.layers:
        difference = q[0, 0, layer] - expected[layer]
        np.testing.assert_allclose(difference, difference[0, 0], rtol=0.0, atol=1e-12)


def test_divergences_are_those_of_the_trace():
    game, mu = random_game(9)
    assert len(game.initial_states) == 3
    case = Case(game, npf.MTPO(beta=0.2, eta=0.5), mu, 20)
    again = trajectories.divergence(game, case.equilibrium.policy, np.log(case.trace.policies))
    np.testing.assert_allclose(again, case.trace.kl, rtol=1e-9)
    assert again.min() > 1e-12


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("terminal", [True, False])
def test_a_step_on_occupancy_measures_is_the_bregman_projection(terminal, weighted):
    """`⟨u − d_new, g⟩ = D(u‖d) − D(u‖d_new) − D(d_new‖d)` for every occupancy u, with chance moves.

    All proofs on occupancy measures rest on this. With the temperature of the step before in `V_h`, as
    Theorem 8 of OMPO prints it, or with `2r̃`, as its Theorem 7, it fails.
    """
    game = description(7, terminal=terminal, H=3, S=3, A=3)
    rng, play, markov = np.random.default_rng(0), Play.of(game, 0, 0), game.game()
    c = np.arange(3.0, 0.0, -1.0) if weighted else np.ones(3)
    old, opponent = softmax(rng, game.shape), softmax(rng, game.shape)
    gain, final = play.gain(opponent)

    def divergence(one, other):
        d, _ = play.occupancy(one)
        return (d * np.log(one / other)).sum(axis=(1, 2)) @ c

    def worth(policy):
        d, m = play.occupancy(policy)
        return (d * gain).sum() + m @ final

    def excess(new, factor=1.0):
        return max(
            abs(
                factor * (worth(u) - worth(new))
                - divergence(u, old)
                + divergence(u, new)
                + divergence(new, old)
            )
            for u in (softmax(rng, game.shape, 2.0) for _ in range(20))
        )

    payoff = markov.payoff(markov.plan(markov.flat(opponent)))
    log_old = np.log(markov.flat(old))
    new = markov.full(soft_response(markov, log_old, payoff, c if weighted else None)[1], old)
    assert excess(new) < 1e-13
    doubled = markov.full(soft_response(markov, log_old, 2.0 * payoff, c if weighted else None)[1], old)
    assert excess(doubled) > 1e-3
    if weighted:
        misprinted, value = np.empty_like(old), final
        for h in reversed(range(3)):
            q = gain[h] + game.transition[h] @ value
            logits = np.log(old[h]) + q / c[h]
            misprinted[h] = np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))
            before = c[h - 1] if h else c[0] + 1.0
            value = before * np.logaddexp.reduce(np.log(old[h]) + q / before, axis=-1)
        assert excess(misprinted) > 1e-4
