"""What the sources print and what is true: one test for each line of theory/notes/errata.md."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import nashpref as npf
from nashpref import theory
from nashpref.theory import Case, Verdict

ROOT = Path(__file__).parents[1]


def test_every_erratum_names_a_test_that_exists():
    text = (Path(theory.__file__).parent / "notes" / "errata.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if re.match(r"\| \d+ \|", line)]
    defined = {
        name
        for path in ROOT.rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.M)
    }
    assert len(rows) >= 12
    for row in rows:
        tests = re.findall(r"`(test_\w+)`", row)
        assert tests, row
        assert set(tests) <= defined, set(tests) - defined


REGULARISED = [npf.GDA, npf.NashMD, npf.OGDA, npf.EGPO, npf.MMD, npf.NashMP, npf.NashEMA]


@pytest.mark.parametrize(
    "rule",
    [
        *(kind(beta=0.1, eta=0.3) for kind in REGULARISED),
        *(npf.MWU(eta=0.3), npf.ONPO(eta=0.3), npf.COMAL(beta=0.1), npf.MNPO(eta=0.3)),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_ascent_raises_the_condorcet_winner(rule):
    """The lecture's argmin would lower it: the first step from uniform already tells."""
    game = npf.zoo.bradley_terry([0.0, 2.0, 1.0, -1.0])
    after = npf.solve(game, rule, 1).policy
    assert after[1] > 0.25
    assert after.argmax() == 1
    assert after[3] < 0.25


def test_nash_md_with_a_constant_step_is_biased():
    game, beta = npf.zoo.random_preferences(10, np.random.default_rng(5)), 0.1
    star = npf.equilibrium(game, beta).policy
    kl = {
        (rule, eta): npf.solve(game, rule(beta=beta, eta=eta), 5000, equilibrium=star).kl[-1]
        for rule in (npf.NashMD, npf.GDA)
        for eta in (0.5, 0.25)
    }
    assert kl[npf.NashMD, 0.5] > 1e-6
    assert kl[npf.NashMD, 0.5] / kl[npf.NashMD, 0.25] == pytest.approx(4.0, rel=0.2)  # O(η²)
    assert max(kl[npf.GDA, 0.5], kl[npf.GDA, 0.25]) < 1e-20
    gap = npf.solve(game, npf.NashMD(beta=beta, eta=0.5), 5000).gap[-1]
    assert gap > 1e-6


def test_mwu_finds_a_condorcet_winner():
    """The last iterate is lost on cycles, not always: here Aπ* ≠ 0, and the theorem says so."""
    case = Case(npf.zoo.bradley_terry([0.0, 1.0, 0.3]), npf.MWU(eta=0.5))
    assert case.trace.gap[-1] < 1e-12
    (reason,) = theory.MWU_LAST.check(case).unmet
    assert reason.startswith("max|Aπ*| = 0.231: ")


def test_optimistic_starts():
    """OGDA begins with q_{−1} = q_0, ONPO with 0: first steps of ηq_0 and 2ηq_0."""
    game, mu = npf.zoo.comal(), np.array([0.5, 0.3, 0.2])
    q = game.payoff(mu)
    for rule, pull in ((npf.OGDA(eta=0.4), 0.4), (npf.ONPO(eta=0.4), 0.8)):
        expected = mu * np.exp(pull * q)
        np.testing.assert_allclose(
            npf.solve(game, rule, 1, reference=mu).policy, expected / expected.sum(), rtol=1e-13
        )


def test_onpo_theorem_1_needs_the_square_root():
    """4√D/√T holds with η = √(D/T), and fails with the printed D/T, which hardly moves."""
    game, T = npf.zoo.bradley_terry([0.0, 1.0, 0.3]), 10_000
    D = np.log(3.0)
    gap = {
        eta: npf.solve(game, npf.MWU(eta=eta), T - 1, record=[0]).average_gap[-1]
        for eta in (D / T, np.sqrt(D / T))
    }
    assert gap[np.sqrt(D / T)] <= 4 * np.sqrt(D / T)
    assert gap[D / T] > 4 * 4 * np.sqrt(D / T)


def test_onpo_printed_bound_holds_for_two_responses():
    """D = log 2 is below 0.914, where the corrected bound implies the printed one."""
    for p in (0.6, 0.9, 1.0):
        game = npf.MatrixGame([[0.5, p], [1 - p, 0.5]])
        assert theory.ONPO_PRINTED.check(Case(game, npf.ONPO())).verdict is Verdict.HOLDS
    D = 0.914
    assert 4 * D + 1 / 6 < 4 * np.sqrt(D) < 4 * (D + 0.01) + 1 / 6


def test_average_bound_needs_the_largest_divergence():
    """With KL(π*‖π_0) in place of D the MWU bound is off by more than a factor of ten."""
    case = Case(npf.zoo.rock_paper_scissors(), npf.MWU(eta=0.02), np.array([0.43, 0.34, 0.23]), 600)
    T = np.arange(1.0, 602.0)
    tempting = 2.0 * case.trace.kl[0] / 0.02 + 0.02 * T / 4.0
    assert (theory.MWU_AVERAGE.measured(case) / tempting).max() > 10.0
    assert theory.MWU_AVERAGE.check(case).verdict is Verdict.HOLDS


@dataclass(frozen=True)
class AnchoredEMA:
    """Nash-EMA as printed: the average is anchored at the start."""

    beta: float = 0.1

    def steps(self, t):
        step = npf.NashEMA(beta=self.beta, eta=0.3, decay=0.5).steps(t)[1]
        return (npf.MirrorStep("average", {"current": 0.5, "start": 0.5}), step)


def test_nash_ema_follows_its_average():
    game, mu = npf.zoo.comal(), np.array([0.5, 0.3, 0.2])
    assert npf.solve(game, npf.NashEMA(beta=0.1, eta=0.3, decay=0.5), 3000, reference=mu).gap[-1] < 1e-15
    assert npf.solve(game, AnchoredEMA(), 3000, reference=mu).gap[-1] > 1e-4


@pytest.mark.parametrize("beta", [1.0, 0.1, 0.01])
def test_inpo_constant_is_one(beta):
    for name in ("COMAL's cycle", "tournament 9", "random 50"):
        game = theory.named_games()[name]
        case = Case(game, npf.GDA(beta=beta), theory.references(game.n)["random"], 500)
        ratio = np.abs(np.log(case.trace.policies) - np.log(case.mu)).max()
        assert 0.01 < ratio * beta <= 1.0
        bound = theory.INPO.bound(case, np.array([3.0]))
        assert bound == pytest.approx(32.0 / (4 * beta**2), rel=1e-12)


def test_egpo_step_of_one_sgd_step():
    """The gradient of Σ_ij (u_i − u_j)²/N² in u is 4(u − ū)/N, by central differences."""
    u, N = np.random.default_rng(0).standard_normal(7), 7

    def loss(v):
        return ((v[:, None] - v) ** 2).sum() / N**2

    gradient = [(loss(u + 1e-5 * e) - loss(u - 1e-5 * e)) / 2e-5 for e in np.eye(N)]
    np.testing.assert_allclose(gradient, 4 * (u - u.mean()) / N, atol=1e-9)
