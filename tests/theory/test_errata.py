"""What the sources print and what is true: one test for each line of theory/notes/errata.md."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import nashpref as npf
from nashpref import theory
from nashpref.testing.markov_games import Description
from nashpref.testing.markov_oracle import Play
from nashpref.theory import Case, Verdict, markov_bounds

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
        case = Case(game, npf.GDA(beta=beta), theory.references(game)["random"], 500)
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


# --- Markov games ---


def markov(seed, H=3, S=4, A=3):
    """A game with preferences of final states, as the lecture and Shani et al. have it."""
    rng = np.random.default_rng(seed)
    P = npf.zoo.random_preferences(S, rng).preferences
    return Description(rng.dirichlet(np.full(S, 0.3), (H, S, A)), P, np.eye(S)[0])


def mtpo_by_hand(game, values, beta, steps=3000, eta=0.5):
    """GDA in every state with `values(play, π, h)` as payoffs, from and towards the uniform policy."""
    play, H = Play.of(game, 0, 0), game.shape[0]
    pi = mu = np.full(game.shape, 1.0 / game.shape[2])
    for _ in range(steps):
        q = np.stack([values(play, pi, h) for h in range(H)])
        pi = pi ** (1.0 - eta * beta) * mu ** (eta * beta) * np.exp(eta * q)
        pi /= pi.sum(axis=-1, keepdims=True)
    return pi


def test_an_opponent_in_the_same_state_is_another_game():
    """By hand, with the opponent restarted in the player's state s rather than where both started."""
    game, beta = markov(0), 0.2
    mu = np.full(game.shape, 1.0 / 3.0)

    def right(play, pi, h):
        return play.action_values(pi, pi, beta, mu)[h]

    def in_the_same_state(play, pi, h):
        def lands(h, s):  # where a player who is in s at step h ends
            mass = np.eye(4)[s]
            for k in range(h, 3):
                mass = np.einsum("s,sa,sax->x", mass, pi[k], play.transition[k])
            return mass

        value = np.stack([lands(h, s) @ (play.final - 0.5).T for s in range(4)])  # of final states, (s, x)
        cost = beta * (pi * np.log(pi / mu)).sum(axis=-1)
        q = np.empty((4, 3))
        for s in range(4):
            ahead = value[s]
            for k in reversed(range(h + 1, 3)):
                ahead = (pi[k] * (play.transition[k] @ ahead)).sum(axis=-1) - cost[k]
            q[s] = play.transition[h, s] @ ahead
        return q

    markov_game = game.game()
    assert npf.duality_gap(markov_game, mtpo_by_hand(game, right, beta, 400), beta) < 1e-20
    assert npf.duality_gap(markov_game, mtpo_by_hand(game, in_the_same_state, beta, 400), beta) > 1e-4


def test_plain_action_values_have_another_fixed_point():
    game, beta = markov(1), 0.2
    plain = mtpo_by_hand(game, lambda play, pi, h: play.action_values(pi, pi)[h], beta, 400)
    assert npf.duality_gap(game.game(), plain, beta) > 1e-5
    one_turn = Description(game.transition[-1:], game.preference, game.initial)
    plain = mtpo_by_hand(one_turn, lambda play, pi, h: play.action_values(pi, pi)[h], beta, 400)
    assert npf.duality_gap(one_turn.game(), plain, beta) < 1e-20


def test_the_first_occupancy_sums_to_the_start():
    d = npf.occupancy(markov(2).game(), np.full((3, 4, 3), 1.0 / 3.0))
    np.testing.assert_allclose(d[0].sum(axis=-1), np.eye(4)[0], atol=1e-15)
    assert d[0, 0].max() < 1.0


def test_ompo_may_cycle_while_its_average_converges():
    game = theory.named_markov_games()["best of three"]
    mu = theory.references(game)["random"]
    runs = {eta: npf.solve(game, npf.OMPO(eta=eta), 4000, reference=mu) for eta in (1.0, 2.2)}
    assert runs[1.0].gap[-1] < 1e-6  # each round by itself has the limit 1/(√3·0.2887) = 2
    assert runs[2.2].gap[-1] > 0.1
    assert runs[2.2].average_gap[-1] < 0.02


def test_mtpo_needs_a_bound_on_log_ratios():
    """Either may be the larger; the constants of the paper's two versions differ by up to 16."""
    ratios = []
    for seed in (3, 9):
        case = Case(markov(seed).game(), npf.MTPO(beta=0.02), steps=200)
        q, log_ratio = markov_bounds.values(case, markov_bounds.iterates(case))
        ratios.append(np.abs(log_ratio).max() / np.abs(q).max())
    assert ratios[0] < 0.9
    assert ratios[1] > 1.1
    H, beta, log_mu_min = 3, 1.0, np.log(4.0)
    main = 32 * H * max(4 * beta * H * log_mu_min, 1) ** 2 / beta**2
    appendix = 32 * H * max(1 / beta**2, H**2 * log_mu_min**2)
    assert main == pytest.approx(16 * appendix)


def test_the_gap_with_max_and_min_exchanged_is_not_positive():
    """`min_π' V(π', π) − max_π' V(π, π')`: every payoff of a deterministic plan, by enumeration."""
    game = markov(5, H=1)
    play, pi = Play.of(game, 0, 0), np.full((1, 4, 3), 1.0 / 3.0)
    _, final = play.gain(pi)
    wins = game.transition[0, 0] @ final  # of the player who deviates
    loses = 1.0 - wins  # of π against it
    assert wins.max() - loses.min() == pytest.approx(npf.duality_gap(game.game(), pi), abs=1e-14)
    assert wins.min() - loses.max() < -0.01


def test_a_small_step_of_mpo_moves_little():
    game, mu = markov(6).game(), np.full((3, 4, 3), 1.0 / 3.0)
    moved = [np.abs(npf.solve(game, npf.MPO(eta=eta), 1).policy - mu).max() for eta in (0.02, 0.01)]
    assert moved[0] / moved[1] == pytest.approx(2.0, rel=1e-2)
    assert moved[0] < 0.02
