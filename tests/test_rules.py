"""The named rules against each other, against hand-derived orbits, and against what they must not do."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nashpref as npf
from nashpref import MirrorStep
from nashpref.policies import log_policy, normalise
from nashpref.testing import interior_equilibria, policies, preference_games, references

STEPS = 40
BETAS, ETAS = st.sampled_from([0.05, 0.3, 1.0]), st.sampled_from([0.05, 0.4, 1.0])


def iterates(
    game: npf.MatrixGame,
    rule: npf.UpdateRule,
    start: Any = None,
    reference: Any = None,
    steps: int = STEPS,
    compiled: bool = False,
) -> Any:
    trace = npf.solve(
        game, rule, steps, start=start, reference=reference, record=1, keep_policies=True, compiled=compiled
    )
    assert trace.policies is not None
    return trace.policies


@st.composite
def situations(draw: st.DrawFn) -> tuple[npf.MatrixGame, Any, Any]:
    game = draw(preference_games())
    return game, draw(policies(game.n, spread=5.0)), draw(references(game.n))


def same(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0.0, atol=1e-12)


# --- equivalences: at every iterate, to 1e-12 ---

Pair = Callable[[float, float], tuple[npf.UpdateRule, npf.UpdateRule]]

EQUIVALENT: dict[str, Pair] = {
    "MMD(η) is GDA(η/(1+ηβ))": lambda b, e: (
        npf.MMD(beta=b, eta=e),
        npf.GDA(beta=b, eta=e / (1.0 + e * b)),
    ),
    "MMD with a schedule": lambda b, e: (
        npf.MMD(beta=b, eta=lambda t: e / (t + 1)),
        npf.GDA(beta=b, eta=lambda t: e / (t + 1 + e * b)),
    ),
    "Nash-MP(η) is EGPO(η/(1+ηβ))": lambda b, e: (
        npf.NashMP(beta=b, eta=e),
        npf.EGPO(beta=b, eta=e / (1.0 + e * b)),
    ),
    "Nash-EMA without memory is GDA": lambda b, e: (
        npf.NashEMA(beta=b, eta=e, decay=0.0),
        npf.GDA(beta=b, eta=e),
    ),
    "MNPO without history is GDA": lambda b, e: (
        npf.MNPO(beta=b, eta=e, weights=(1.0,)),
        npf.GDA(beta=b, eta=e),
    ),
    "MNPO with an empty tail": lambda b, e: (
        npf.MNPO(beta=b, eta=e, weights=(1.0, 0.0, 0.0)),
        npf.GDA(beta=b, eta=e),
    ),
    "GDA without regulariser is MWU": lambda b, e: (npf.GDA(eta=e), npf.MWU(eta=e)),
    "Nash-MD without regulariser is MWU": lambda b, e: (npf.NashMD(beta=0.0, eta=e), npf.MWU(eta=e)),
    "MMD without regulariser is MWU": lambda b, e: (npf.MMD(beta=0.0, eta=e), npf.MWU(eta=e)),
    "Nash-MP without regulariser is EGPO": lambda b, e: (npf.NashMP(eta=e), npf.EGPO(eta=e)),
    "iterated best response is GDA with ηβ = 1": lambda b, e: (
        npf.BestResponse(beta=b + 0.5, opponent="current"),
        npf.GDA(beta=b + 0.5, eta=1.0 / (b + 0.5)),
    ),
    "COMAL that never moves is GDA": lambda b, e: (
        npf.COMAL(beta=b, eta=e, every=10**9),
        npf.GDA(beta=b, eta=e),
    ),
}


@pytest.mark.parametrize("name", EQUIVALENT)
@settings(max_examples=15)
@given(situation=situations(), beta=BETAS, eta=ETAS)
def test_equivalences(name: str, situation: tuple[npf.MatrixGame, Any, Any], beta: float, eta: float) -> None:
    game, start, mu = situation
    first, second = EQUIVALENT[name](beta, eta)
    same(iterates(game, first, start, mu), iterates(game, second, start, mu))


@settings(max_examples=25)
@given(situation=situations(), eta=ETAS)
def test_onpo_from_a_shifted_base_is_one_call_ogda(
    situation: tuple[npf.MatrixGame, Any, Any], eta: float
) -> None:
    """Base π'_1 ∝ π_1 e^{−ηq_1} makes the missing q_0 equal to q_1, which is where OGDA starts."""
    game, start, _ = situation
    base = normalise(np.log(start) - eta * game.payoff(start))[1]
    two = iterates(game, npf.ONPO(eta=eta), {"current": start, "base": base})
    same(two, iterates(game, npf.OGDA(eta=eta), start))


@settings(max_examples=25)
@given(drawn=interior_equilibria(), data=st.data(), eta=ETAS)
def test_onpo_is_ogda_whose_previous_policy_is_at_equilibrium(
    drawn: tuple[npf.MatrixGame, Any], data: st.DataObject, eta: float
) -> None:
    """The paper's start, q_0 = 0: an equilibrium as `previous` has that payoff vector."""
    game, equilibrium = drawn
    start = data.draw(policies(game.n, spread=3.0))
    one = iterates(game, npf.OGDA(eta=eta), {"current": start, "previous": equilibrium})
    same(one, iterates(game, npf.ONPO(eta=eta), start))


@settings(max_examples=25)
@given(situation=situations(), beta=BETAS, eta=ETAS)
def test_comal_is_gda_restarted_from_its_own_iterates(
    situation: tuple[npf.MatrixGame, Any, Any], beta: float, eta: float
) -> None:
    game, start, mu = situation
    every, expected = 5, [start]
    for _ in range(3):
        inner = iterates(game, npf.GDA(beta=beta, eta=eta), expected[-1], mu, steps=every)
        expected.extend(inner[1:])
        mu = inner[-1]
    same(iterates(game, npf.COMAL(beta=beta, eta=eta, every=every), start, situation[2], 3 * every), expected)


@settings(max_examples=25)
@given(situation=situations(), beta=BETAS, eta=ETAS)
def test_comal_moving_at_every_step_is_mwu(
    situation: tuple[npf.MatrixGame, Any, Any], beta: float, eta: float
) -> None:
    game, start, _ = situation
    same(
        iterates(game, npf.COMAL(beta=beta, eta=eta, every=1), None, start),
        iterates(game, npf.MWU(eta=eta), start),
    )


@settings(max_examples=25)
@given(situation=situations(), beta=BETAS)
def test_one_step_closed_forms(situation: tuple[npf.MatrixGame, Any, Any], beta: float) -> None:
    """BestResponse is best_response; so is GDA at ηβ = 1, and Nash-MD's first step, whatever its start."""
    game, start, mu = situation
    to_start, to_mu = (npf.best_response(game, opponent, beta, mu) for opponent in (start, mu))
    rule = npf.BestResponse(beta=beta, opponent="nu")
    same(iterates(game, rule, {"nu": start}, mu, 3), [mu, to_start, to_start, to_start])
    same(iterates(game, npf.BestResponse(beta=beta), start, mu, 1)[1], to_mu)
    same(iterates(game, npf.GDA(beta=beta, eta=1.0 / beta), start, mu, 1)[1], to_start)
    same(iterates(game, npf.NashMD(beta=beta), start, mu, 1)[1], to_mu)


# --- orbits by hand, to 1e-14 ---


def exactly(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0.0, atol=1e-14)


def test_mwu_on_rock_paper_scissors() -> None:
    """Order rock, scissors, paper: q = ½(π₂ − π₃, π₃ − π₁, π₁ − π₂). From (½, ¼, ¼), q = (0, −⅛, ⅛)."""
    game, e = npf.zoo.rock_paper_scissors(), np.e
    pi = iterates(game, npf.MWU(eta=8.0), [0.5, 0.25, 0.25], steps=2)
    first = np.array([2.0, 1.0 / e, e]) / (2.0 + 1.0 / e + e)
    exactly(pi[1], first)
    a, b, c = first
    second = first * np.exp(4.0 * np.array([b - c, c - a, a - b]))
    exactly(pi[2], second / second.sum())


def test_ogda_and_onpo_on_rock_paper_scissors() -> None:
    """OGDA's first step has q_0 − q_{−1} = 0; ONPO's has q_{−1} = 0, so it goes twice as far."""
    game, e = npf.zoo.rock_paper_scissors(), np.e
    single = np.array([2.0, 1.0 / e, e]) / (2.0 + 1.0 / e + e)
    double = np.array([2.0, e**-2, e**2]) / (2.0 + e**-2 + e**2)
    start = [0.5, 0.25, 0.25]
    one, two = (iterates(game, rule, start, steps=2) for rule in (npf.OGDA(eta=8.0), npf.ONPO(eta=8.0)))
    exactly(one[1], single)
    exactly(two[1], double)
    q0 = np.array([0.0, -0.125, 0.125])
    for orbit, base in ((one, [start, single]), (two, [start, double])):
        a, b, c = orbit[1]
        q1 = 0.5 * np.array([b - c, c - a, a - b])
        step = base[1] * np.exp(8.0 * (2.0 * q1 - q0))
        exactly(orbit[2], step / step.sum())


def test_egpo_and_nash_md_on_rock_paper_scissors() -> None:
    """β = 1/4, η = 2, so ηβ = ½, from (4, 1, 4)/9 towards μ = (1, 4, 4)/9: the mixture is ∝ (2, 2, 4)."""
    game = npf.zoo.rock_paper_scissors()
    start, mu, mixture = np.array([4, 1, 4]) / 9, np.array([1, 4, 4]) / 9, np.array([0.25, 0.25, 0.5])

    def q(pi: Any) -> Any:
        return 0.5 * np.array([pi[1] - pi[2], pi[2] - pi[0], pi[0] - pi[1]])

    def step(payoff: Any) -> Any:
        grown = mixture * np.exp(2.0 * payoff)
        return grown / grown.sum()

    exactly(iterates(game, npf.GDA(beta=0.25, eta=2.0), start, mu, 1)[1], step(q(start)))
    exactly(iterates(game, npf.NashMD(beta=0.25, eta=2.0), start, mu, 1)[1], step(q(mixture)))
    exactly(iterates(game, npf.EGPO(beta=0.25, eta=2.0), start, mu, 1)[1], step(q(step(q(start)))))
    exactly(iterates(game, npf.NashMP(beta=0.25, eta=4.0), start, mu, 1)[1], step(q(step(q(start)))))
    exactly(iterates(game, npf.MMD(beta=0.25, eta=4.0), start, mu, 1)[1], step(q(start)))


def test_mwu_on_bradley_terry() -> None:
    """Strengths 3, 2, 1: P = (3/5, 3/4; 2/3). Against uniform q = (7/60, 1/45, −5/36)."""
    game = npf.zoo.bradley_terry(np.log([3.0, 2.0, 1.0]))
    q = np.array([7 / 60, 1 / 45, -5 / 36])
    exactly(game.payoff(np.full(3, 1 / 3)), q)
    grown = np.exp(6.0 * q)
    exactly(iterates(game, npf.MWU(eta=6.0), steps=1)[1], grown / grown.sum())


LOGIT: dict[str, tuple[npf.UpdateRule, Callable[[int], tuple[float, float]]]] = {
    # On two responses the logit x = log π₁/π₂ moves by known payoffs, q₁ − q₂ = a against every opponent.
    # rule: (its logit at t as kept * x₀ + gained * (pull + a)), with β = ½: pull = β x_μ
    "MWU": (npf.MWU(eta=0.4), lambda t: (1.0, 0.4 * t)),
    "OGDA": (npf.OGDA(eta=0.4), lambda t: (1.0, 0.4 * t)),
    "EGPO, unregularised": (npf.EGPO(eta=0.4), lambda t: (1.0, 0.4 * t)),
    "ONPO": (npf.ONPO(eta=0.4), lambda t: (1.0, 0.4 * (t + 1) if t else 0.0)),
    "GDA": (npf.GDA(beta=0.5, eta=0.4), lambda t: (0.8**t, 2.0 * (1.0 - 0.8**t))),
    "Nash-MD": (npf.NashMD(beta=0.5, eta=0.4), lambda t: (0.8**t, 2.0 * (1.0 - 0.8**t))),
    "Nash-EMA": (npf.NashEMA(beta=0.5, eta=0.4), lambda t: (0.8**t, 2.0 * (1.0 - 0.8**t))),
    "OGDA, regularised": (npf.OGDA(beta=0.5, eta=0.4), lambda t: (0.8**t, 2.0 * (1.0 - 0.8**t))),
    "EGPO": (npf.EGPO(beta=0.5, eta=0.4), lambda t: (0.8**t, 2.0 * (1.0 - 0.8**t))),
    "MMD": (npf.MMD(beta=0.5, eta=0.5), lambda t: (0.8**t, 2.0 * (1.0 - 0.8**t))),
    "Nash-MP": (npf.NashMP(beta=0.5, eta=0.5), lambda t: (0.8**t, 2.0 * (1.0 - 0.8**t))),
    "GDA, schedule 2/(β(t+2))": (
        npf.GDA(beta=0.5),  # Π (1 − 2/(s+2)) = 0 from the first step on
        lambda t: (0.0, 2.0) if t else (1.0, 0.0),
    ),
    "best response": (npf.BestResponse(beta=0.5), lambda t: (0.0, 2.0) if t else (1.0, 0.0)),
}


@pytest.mark.parametrize("name", LOGIT)
def test_two_responses_in_closed_form(name: str) -> None:
    rule, closed_form = LOGIT[name]
    x0, x_mu, a = 0.7, -1.1, 0.3
    game = npf.MatrixGame([[0.5, 0.5 + a], [0.5 - a, 0.5]])
    start, mu = (np.array([np.exp(x), 1.0]) / (1.0 + np.exp(x)) for x in (x0, x_mu))
    pull = getattr(rule, "beta", 0.0) * x_mu
    for t, pi in enumerate(iterates(game, rule, start, mu, 12)):
        kept, gained = closed_form(t)
        x = kept * x0 + gained * (pull + a)
        exactly(pi, [1.0 / (1.0 + np.exp(-x)), 1.0 / (1.0 + np.exp(x))])


def test_mnpo_on_two_responses() -> None:
    """The logit obeys x_{t+1} = ½x_t + ⅓x_{t−1} + ⅙x_{t−2} + ηa with x_{−1} = x_{−2} = x_0."""
    a, eta = 0.3, 0.4
    game = npf.MatrixGame([[0.5, 0.5 + a], [0.5 - a, 0.5]])
    x = [0.0, 0.0, 0.0]
    for _ in range(8):
        x.append(x[-1] / 2.0 + x[-2] / 3.0 + x[-3] / 6.0 + eta * a)
    pi = iterates(game, npf.MNPO(eta=eta, weights=(1 / 2, 1 / 3, 1 / 6)), steps=8)
    exactly(np.log(pi[:, 0] / pi[:, 1]), x[2:])


def test_mnpo_against_its_formula() -> None:
    """Its own policies weigh 1 − ηβ together, its opponents η together."""
    game, rng, weights = npf.zoo.comal(), np.random.default_rng(0), (0.5, 0.3, 0.2)
    start, mu = rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(3))
    past = [start] * 3
    for _ in range(6):
        recent = past[:-4:-1]
        logits = 0.04 * np.log(mu) + sum(
            w * (0.96 * np.log(pi) + 0.4 * game.payoff(pi)) for w, pi in zip(weights, recent, strict=True)
        )
        past.append(normalise(logits)[1])
    rule = npf.MNPO(beta=0.1, eta=0.4, weights=weights)
    exactly(iterates(game, rule, start, mu, 6), past[2:])


def test_nash_ema_against_its_formula() -> None:
    """log π̄ averages logits, with the current iterate weighted 1 − d; the step is against π̄."""
    game, rng = npf.zoo.comal(), np.random.default_rng(0)
    start, mu = rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(3))
    log_pi = average = np.log(start)
    expected = [start]
    for _ in range(6):
        average = normalise(0.3 * log_pi + 0.7 * average)[0]
        log_pi, pi = normalise(0.96 * log_pi + 0.04 * np.log(mu) + 0.4 * game.payoff(np.exp(average)))
        expected.append(pi)
    exactly(iterates(game, npf.NashEMA(beta=0.1, eta=0.4, decay=0.7), start, mu, 6), expected)


# --- what the theorems say, and what they do not ---


@settings(max_examples=60)
@given(situation=situations(), beta=BETAS, share=st.floats(0.01, 1.0))
def test_nash_md_one_step_inequality(
    situation: tuple[npf.MatrixGame, Any, Any], beta: float, share: float
) -> None:
    """KL(π*‖π_{t+1}) ≤ (1 − ηβ) KL(π*‖π_t) + η²/8 for every ηβ ≤ 1, from everywhere."""
    game, start, mu = situation
    eta = share / beta
    log_star = log_policy(npf.equilibrium(game, beta, mu).policy)
    trace = npf.solve(
        game, npf.NashMD(beta=beta, eta=eta), 10, start=start, reference=mu, equilibrium=np.exp(log_star)
    )
    assert trace.kl is not None
    assert (trace.kl[1:] <= (1.0 - share) * trace.kl[:-1] + eta**2 / 8.0 + 1e-12).all()


def test_mwu_moves_away_from_the_equilibrium_while_its_average_approaches() -> None:
    game, fair = npf.zoo.rock_paper_scissors(), np.full(3, 1 / 3)
    start = np.array([0.36, 0.33, 0.31])
    trace = npf.solve(game, npf.MWU(eta=0.5), 1000, start=start, equilibrium=fair, compiled=False)
    assert trace.kl is not None
    assert (np.diff(trace.kl) >= 0.0).all()
    assert trace.kl[-1] > 1000.0 * trace.kl[0]
    assert trace.gap[-1] > 0.9
    D = np.log(1.0 / start).max()  # of every deviation, not only of the equilibrium
    assert (trace.average_gap <= 2.0 * (D / (0.5 * (trace.steps + 1)) + 0.5 / 8.0)).all()
    assert trace.average_gap[-1] < 0.05 * trace.gap[-1]


def test_nash_md_with_a_constant_step_is_biased_where_gda_is_not() -> None:
    rng = np.random.default_rng(0)
    game, beta, eta = npf.zoo.random_preferences(10, rng), 0.1, 0.5
    mu = rng.dirichlet(np.ones(10))
    biased, exact = (
        npf.solve(game, rule, 2000, reference=mu, record=[1000])
        for rule in (npf.NashMD(beta=beta, eta=eta), npf.GDA(beta=beta, eta=eta))
    )
    assert biased.gap[-1] > 1e-6
    assert biased.gap[-1] == pytest.approx(biased.gap[-2], rel=1e-6)  # it has arrived, elsewhere
    assert exact.gap[-1] < 1e-20


def test_onpo_breaks_its_printed_bound_and_keeps_the_proved_one() -> None:
    """Printed: Gap(π̄_T) ≤ 4√D/T at η = ½. Proved for q_0 = 0: 2D/(ηT)."""
    start = np.array([0.9, 0.064, 0.036])
    D = float(np.log(1.0 / start).max())
    trace = npf.solve(npf.zoo.condorcet_cycle(), npf.ONPO(), 1000, start=start)
    summed = trace.average_gap * (trace.steps + 1)
    assert summed.max() > 1.3 * 4.0 * np.sqrt(D)
    assert summed.max() <= 2.0 * D / 0.5


def test_ogda_is_stable_up_to_its_local_limit() -> None:
    """RPS: ω = 1/(2√3), so ηω < 1/√3 is η < 2."""
    game, start = npf.zoo.rock_paper_scissors(), [0.4, 0.33, 0.27]
    below, above = (
        npf.solve(game, npf.OGDA(eta=eta), 20_000, start=start, record=[19_000]) for eta in (1.95, 2.05)
    )
    assert below.gap[-1] < 1e-12
    assert above.gap[-1] > 1e-3


def test_gda_contracts_as_its_spectrum_says() -> None:
    """KL falls by |λ|² = (1 − ηβ)² + η²ω² a step: 0.8898 on RPS at β = 0.1, η = 1.1."""
    game, fair = npf.zoo.rock_paper_scissors(), np.full(3, 1 / 3)
    trace = npf.solve(
        game, npf.GDA(beta=0.1, eta=1.1), 300, start=[0.4, 0.33, 0.27], equilibrium=fair, compiled=False
    )
    assert trace.kl is not None
    factor = (trace.kl[250] / trace.kl[100]) ** (1 / 150)
    assert factor == pytest.approx((1.0 - 0.11) ** 2 + 1.1**2 / 12.0, rel=1e-4)


def test_comal_finds_the_original_equilibrium_where_gda_stalls() -> None:
    game, star = npf.zoo.comal(), np.array([4.0, 3.0, 4.0]) / 11.0
    comal = npf.solve(
        game,
        npf.COMAL(beta=0.1, eta=0.2, every=100),
        3000,
        equilibrium=star,
        record=100,
        start=[0.6, 0.3, 0.1],
    )
    assert comal.kl is not None
    assert comal.unregularised_gap[-1] < 1e-9
    assert (np.diff(comal.kl) <= 1e-15).all()  # an outer step never moves away
    stalled = npf.solve(game, npf.GDA(beta=0.1, eta=0.2), 3000, start=[0.6, 0.3, 0.1])
    assert stalled.gap[-1] < 1e-20
    assert stalled.unregularised_gap[-1] > 1e-3


def test_one_ascent_step_raises_a_condorcet_winner() -> None:
    """The boxes that print argmin ⟨π, p⟩ + KL/η would lower it."""
    game = npf.zoo.bradley_terry([2.0, 0.0, -1.0])
    pi = iterates(game, npf.GDA(beta=0.1, eta=0.3), steps=1)[:, 0]
    assert pi[1] > pi[0]


# --- refused ---

REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "beta < 0": (lambda: npf.NashMD(beta=-0.1), r"beta = -0\.1"),
    "eta beta > 1": (lambda: npf.GDA(beta=2.0, eta=0.6), r"eta \* beta = 1\.2 > 1"),
    "eta beta > 1, Nash-MD": (lambda: npf.NashMD(beta=2.0, eta=0.6), r"eta \* beta = 1\.2 > 1"),
    "eta beta > 1, OGDA": (lambda: npf.OGDA(beta=2.0, eta=0.6), r"eta \* beta = 1\.2 > 1"),
    "eta beta > 1, EGPO": (lambda: npf.EGPO(beta=2.0, eta=0.6), r"eta \* beta = 1\.2 > 1"),
    "eta beta > 1, MNPO": (lambda: npf.MNPO(beta=2.0, eta=0.6), r"eta \* beta = 1\.2 > 1"),
    "eta beta > 1, COMAL": (lambda: npf.COMAL(beta=2.0, eta=0.6), r"eta \* beta = 1\.2 > 1"),
    "MWU without a horizon": (lambda: npf.MWU(), "the step of MWU depends on the horizon: pass eta"),
    "MNPO without a step": (lambda: npf.MNPO(beta=0.1), "MNPO has no theorem's step: pass eta"),
    "GDA without either": (lambda: npf.GDA(), r"the schedule 2/\(beta \(t \+ 2\)\) needs beta > 0: pass eta"),
    "MMD at beta 0": (lambda: npf.MMD(beta=0.0), "MMD's step 4 beta vanishes; use MWU, or pass eta"),
    "COMAL at beta 0": (lambda: npf.COMAL(beta=0.0), "the inner game of COMAL must be regularised"),
    "COMAL, every 0": (lambda: npf.COMAL(beta=0.1, every=0), "every = 0: at least one inner step is needed"),
    "COMAL, beta < 0": (lambda: npf.COMAL(beta=-1.0), r"beta = -1\.0"),
    "best response at beta 0": (lambda: npf.BestResponse(beta=0.0), "is nashpref.best_response"),
    "decay 1": (lambda: npf.NashEMA(beta=0.1, decay=1.0), r"decay = 1\.0: it must lie in \[0, 1\)"),
    "decay < 0": (lambda: npf.NashEMA(beta=0.1, decay=-0.1), r"decay = -0\.1"),
    "no weights": (lambda: npf.MNPO(eta=0.1, weights=()), r"weights = \(\): they must be non-negative"),
    "weights below zero": (lambda: npf.MNPO(eta=0.1, weights=(1.5, -0.5)), "they must be non-negative"),
    "weights that miss one": (lambda: npf.MNPO(eta=0.1, weights=(0.5, 0.4)), "and sum to one"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_parameters(case: str) -> None:
    build, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("rule", [npf.MMD, npf.NashMP])
def test_implicit_rules_take_any_step(rule: Any) -> None:
    trace = npf.solve(npf.zoo.comal(), rule(beta=2.0, eta=1e6), 50)
    assert trace.status is npf.Status.MAX_STEPS
    assert np.isfinite(trace.gap).all()


def test_theorem_steps_are_what_the_docstrings_say() -> None:
    assert npf.MMD(beta=0.1).step_size(0) == pytest.approx(0.4)
    assert npf.NashMP(beta=0.1).step_size(0) == 2.0
    assert npf.EGPO(beta=0.25).step_size(0) == 0.8
    assert npf.OGDA().step_size(0) == npf.ONPO().step_size(0) == 0.5
    assert npf.OGDA(beta=0.5).step_size(0) == 0.2
    assert [npf.NashMD(beta=0.5).step_size(t) for t in (0, 2)] == [2.0, 1.0]
    assert npf.NashEMA(beta=0.5).step_size(2) == npf.GDA(beta=0.5).step_size(2) == 1.0
    comal: Sequence[MirrorStep] = npf.COMAL(beta=0.5).steps(0)
    assert comal[0].payoffs == {"current": 1.0}  # 4β/(1 + 4β²)
