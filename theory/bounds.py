"""The theorems about matrix games, and about Markov games played on occupancy measures; each a few lines.

KL_t is `KL(π*‖π_t)` with π* the equilibrium that the rule seeks, `D = max_y log 1/π_0(y)`,
`L = max|A| ≤ 1/2`, and `π̄_T` is the mean of the first T iterates π_0 … π_{T−1}. On the occupancy measures
of a Markov game the same holds with trajectories in place of responses: KL is KL_p, L the most that a
trajectory can win, D the largest KL_p from the start (`notes/markov.md`). Where a condition on the step is
weaker than the one printed in the source, or a constant sharper, the proof is in `notes/`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from nashpref.games.matrix import MatrixGame
from nashpref.metrics import duality_gap
from nashpref.mirror import decreasing
from nashpref.policies import FloatArray, log_policy
from nashpref.rules import COMAL, EGPO, GDA, MMD, MWU, OGDA, ONPO, NashMD, NashMP
from nashpref.theory.theorems import CERTIFIED, Assumption, Case, Theorem, Verdict
from nashpref.theory.trajectories import Game, divergence, largest_payoff, payoff_extremes, start_entropy

OPTIMISTIC = math.sqrt(2.0) - 1.0  # the largest ηL of the optimistic average bound: η = 0.828 for L = 1/2
ROUNDING = 1e-9  # by which a number may miss the one that an assumption asks for

# --- measured quantities ---


def divergences(case: Case) -> FloatArray:
    """`KL(π*‖π_t)`, t = 0, 1, …"""
    values = case.trace.kl
    assert values is not None  # a Case hands its equilibrium to `solve`
    return values


def divergences_after(case: Case) -> FloatArray:
    """`KL(π*‖π_t)`, t = 1, 2, …"""
    return divergences(case)[1:]


def cumulative_gap(case: Case) -> FloatArray:
    """`T·Gap(π̄_T)`, T = 1, 2, …"""
    gaps = case.trace.average_gap
    return np.asarray(gaps * np.arange(1.0, len(gaps) + 1.0))


def reference_divergence(case: Case) -> FloatArray:
    """`KL(π*‖μ)`, one value."""
    return np.reshape(divergence(case.game, case.equilibrium.policy, log_policy(case.mu)[None]), 1)


def equilibrium_gap(case: Case) -> FloatArray:
    """`Gap(π*_β)` in the unregularised game, one value."""
    return np.reshape(duality_gap(case.game, case.equilibrium.policy), 1)


# --- constants ---


def L(case: Case) -> float:
    """The largest payoff."""
    return largest_payoff(case.game)


def D(case: Case) -> float:
    """The largest KL(π‖π_0) of any π."""
    return start_entropy(case.game, case.mu)


def at_least_half(game: Game) -> float:
    """`max(L, 1/2)`: with this in place of L a step is the rule's default on a matrix game."""
    return max(0.5, largest_payoff(game))


def optimistic_step(game: Game) -> float:
    """`min(1/2, (√2−1)/L)`."""
    return min(0.5, OPTIMISTIC / largest_payoff(game))


def log_ratio_constant(case: Case) -> float:
    """INPO's `C = max(Bβ, 1)`, with `B = max_t max_y |log π_t(y)/μ(y)|` *measured* on the run."""
    policies = case.trace.policies
    assert policies is not None  # a Case keeps them
    B = float(np.abs(np.log(policies) - np.log(case.mu)).max())
    return max(B * case.beta, 1.0)


# --- assumptions ---


def certified(case: Case) -> str | None:
    """π* is known to a gap of 1e-14."""
    gap = float(case.equilibrium.gap)
    return f"the equilibrium is known to a gap of {gap:.1e} only" if gap > CERTIFIED else None


def constant_step(case: Case) -> str | None:
    """η_t is the same for all t."""
    low, high = case.etas.min(), case.etas.max()
    return None if low == high else f"η runs from {high:.4g} to {low:.4g}: it must be constant"


def decreasing_step(case: Case) -> str | None:
    """`η_t = 2/(β(t+2))`."""
    wanted = np.array([decreasing(case.beta)(t) for t in range(len(case.etas))])
    wrong = np.flatnonzero(np.abs(case.etas - wanted) > ROUNDING * wanted)
    if not wrong.size:
        return None
    t = int(wrong[0])
    return f"η_{t} = {case.etas[t]:.6g}, not 2/(β(t+2)) = {wanted[t]:.6g}"


def step_at_most(formula: str, limit: Callable[[Case], float]) -> Assumption:
    """`η_t ≤ limit(case)`; `formula` is what the complaint calls the limit."""

    def assumption(case: Case) -> str | None:
        eta, allowed = float(case.etas.max()), limit(case)
        return f"η = {eta:.6g} > {formula} = {allowed:.6g}" if eta > allowed * (1.0 + ROUNDING) else None

    return assumption


def onpo_step(case: Case) -> str | None:
    """`η = min(1/2, √D)`."""
    eta, wanted = float(case.etas[0]), min(0.5, math.sqrt(D(case)))
    return f"η = {eta:.6g}, not min(1/2, √D) = {wanted:.6g}" if abs(eta - wanted) > ROUNDING else None


def interior_equilibrium(case: Case) -> str | None:
    """`A π* = 0`: against π* all plans are equally good."""
    slack = float(np.abs(payoff_extremes(case.game, case.equilibrium.policy)).max())
    return f"max|Aπ*| = {slack:.3g}: some response loses to π*" if slack > ROUNDING else None


def payoffs_within_half(case: Case) -> str | None:
    """`L ≤ 1/2`, as in a matrix game: not so where every step of many is compared."""
    return f"L = {L(case):.4g} > 1/2" if L(case) > 0.5 + ROUNDING else None


def exact_inner_solutions(case: Case) -> str | None:
    """Each outer step solves its regularised game."""
    worst = float(case.proximal_points[1].max())
    return f"an inner solution has a gap of {worst:.1e}" if worst > CERTIFIED else None


# --- the unregularised game: averages ---

MWU_AVERAGE = Theorem(
    name="MWU, average",
    statement="T·Gap(π̄_T) ≤ 2D/η + ηTL², any constant η",
    source="Freund & Schapire 1999; as SPPO, arXiv:2405.00675, Thm 4.1",
    rules=(MWU, GDA),
    rule=lambda game, mu, beta: MWU(eta=0.5),
    regularised=False,
    assumptions=(constant_step,),
    bound=lambda case, t: 2.0 * D(case) / case.etas[0] + case.etas[0] * t * L(case) ** 2,
    measured=cumulative_gap,
)

OGDA_AVERAGE = Theorem(
    name="OGDA, average",
    statement="T·Gap(π̄_T) ≤ 2D/η + 2L + ηL², η ≤ (√2−1)/L",
    source="Rakhlin & Sridharan, arXiv:1311.1869; constants: notes/averages.md",
    rules=(OGDA,),
    rule=lambda game, mu, beta: OGDA(eta=optimistic_step(game)),
    regularised=False,
    assumptions=(constant_step, step_at_most("(√2−1)/L", lambda case: OPTIMISTIC / L(case))),
    bound=lambda case, t: np.full_like(
        t, 2.0 * D(case) / case.etas[0] + 2.0 * L(case) + case.etas[0] * L(case) ** 2
    ),
    measured=cumulative_gap,
)

ONPO_AVERAGE = Theorem(
    name="ONPO, average, corrected",
    statement="T·Gap(π̄_T) ≤ 2D/η + ηL²/(1−ηL), η ≤ (√2−1)/L",
    source="notes/averages.md",
    rules=(ONPO,),
    rule=lambda game, mu, beta: ONPO(eta=optimistic_step(game)),
    regularised=False,
    assumptions=(constant_step, step_at_most("(√2−1)/L", lambda case: OPTIMISTIC / L(case))),
    bound=lambda case, t: np.full_like(
        t, 2.0 * D(case) / case.etas[0] + case.etas[0] * L(case) ** 2 / (1.0 - case.etas[0] * L(case))
    ),
    measured=cumulative_gap,
)

ONPO_PRINTED = replace(
    ONPO_AVERAGE,
    name="ONPO, average, as printed",
    statement="T·Gap(π̄_T) ≤ 4√D, η = min(1/2, √D)",
    source="ONPO, arXiv:2502.16852, Thm 2",
    rule=lambda game, mu, beta: ONPO(),
    assumptions=(constant_step, onpo_step),
    bound=lambda case, t: np.full_like(t, 4.0 * math.sqrt(D(case))),
    expected=Verdict.FAILS,
    games=(MatrixGame,),
)

# --- the unregularised game: last iterates ---

MWU_LAST = Theorem(
    name="MWU, last iterate moves away",
    statement="KL_{t−1} ≤ KL_t where Aπ* = 0, any η",
    source="Bailey & Piliouras, EC 2018; notes/last_iterates.md",
    rules=(MWU, GDA),
    rule=lambda game, mu, beta: MWU(eta=0.5),
    regularised=False,
    assumptions=(interior_equilibrium,),
    bound=lambda case, t: divergences(case)[1:],
    measured=lambda case: divergences(case)[:-1],
)

COMAL_LAST = Theorem(
    name="COMAL, outer steps",
    statement="KL_k ≤ KL_{k−1} + Gap(π*)/(2β), inner games solved exactly; the gap is π*'s certificate",
    source="COMAL, arXiv:2410.23223, Thm 1",
    rules=(COMAL,),
    rule=lambda game, mu, beta: COMAL(beta=beta),
    regularised=True,
    assumptions=(exact_inner_solutions,),
    bound=lambda case, t: case.proximal_points[0][:-1] + float(case.equilibrium.gap) / (2.0 * case.beta),
    measured=lambda case: case.proximal_points[0][1:],
    steps=10,
)

# --- the regularised game: decreasing steps, last iterates ---

NASH_MD = Theorem(
    name="Nash-MD",
    statement="KL_T ≤ 8/(β²(T+1)), η_t = 2/(β(t+2))",
    source="Munos et al., arXiv:2312.00886, Thm 1",
    rules=(NashMD,),
    rule=lambda game, mu, beta: NashMD(beta=beta),
    regularised=True,
    assumptions=(certified, payoffs_within_half, decreasing_step),
    bound=lambda case, t: 8.0 / (case.beta**2 * (t + 1.0)),
    measured=divergences_after,
)

NASH_MD_SHARP = replace(
    NASH_MD,
    name="Nash-MD, sharper",
    statement="KL_T ≤ 2L²/(β²(T+1)), η_t = 2/(β(t+2)); 1/(2β²(T+1)) at L = 1/2",
    source="notes/nash_md.md (Hoeffding's lemma)",
    assumptions=(certified, decreasing_step),
    bound=lambda case, t: 2.0 * L(case) ** 2 / (case.beta**2 * (t + 1.0)),
)

NASH_MD_STEP = replace(
    NASH_MD,
    name="Nash-MD, one step",
    statement="KL_{t+1} ≤ (1−η_tβ) KL_t + 2η_t², any η_t ≤ 1/β",
    assumptions=(certified, payoffs_within_half),
    bound=lambda case, t: (1.0 - case.etas * case.beta) * divergences(case)[:-1] + 2.0 * case.etas**2,
)

NASH_MD_STEP_SHARP = replace(
    NASH_MD_STEP,
    name="Nash-MD, one step, sharper",
    statement="KL_{t+1} ≤ (1−η_tβ) KL_t + η_t²L²/2, any η_t ≤ 1/β",
    source="notes/nash_md.md (Hoeffding's lemma)",
    assumptions=(certified,),
    bound=lambda case, t: (
        (1.0 - case.etas * case.beta) * divergences(case)[:-1] + case.etas**2 * L(case) ** 2 / 2.0
    ),
)

INPO = Theorem(
    name="GDA = INPO, decreasing step",
    statement="KL_T ≤ 32C²/(β²(T+1)), η_t = 2/(β(t+2)), C = max(Bβ, 1), B = max|log π_t/μ| measured",
    source="INPO, arXiv:2407.00617, Thm 4",
    rules=(GDA,),
    rule=lambda game, mu, beta: GDA(beta=beta),
    regularised=True,
    assumptions=(certified, decreasing_step),
    bound=lambda case, t: 32.0 * log_ratio_constant(case) ** 2 / (case.beta**2 * (t + 1.0)),
    measured=divergences_after,
    games=(MatrixGame,),
)

# --- the regularised game: constant steps, last iterates ---

GDA_LINEAR = Theorem(
    name="GDA, constant step",
    statement="KL_t ≤ (1−ηβ)^t KL_0, η ≤ β/(β²+L²)",
    source="through MMD, Sokota et al., arXiv:2206.05825, Thm 3.4",
    rules=(GDA,),
    rule=lambda game, mu, beta: GDA(beta=beta, eta=beta / (beta**2 + at_least_half(game) ** 2)),
    regularised=True,
    assumptions=(
        certified,
        constant_step,
        step_at_most("β/(β²+L²)", lambda case: case.beta / (case.beta**2 + L(case) ** 2)),
    ),
    bound=lambda case, t: (1.0 - case.etas[0] * case.beta) ** t * divergences(case)[0],
    measured=divergences_after,
)

MMD_LINEAR = Theorem(
    name="MMD",
    statement="KL_t ≤ (1+ηβ)^{−t} KL_0, η ≤ β/L²",
    source="Sokota et al., arXiv:2206.05825, Thm 3.4",
    rules=(MMD,),
    rule=lambda game, mu, beta: MMD(beta=beta, eta=beta / at_least_half(game) ** 2),
    regularised=True,
    assumptions=(certified, constant_step, step_at_most("β/L²", lambda case: case.beta / L(case) ** 2)),
    bound=lambda case, t: (1.0 + case.beta * case.etas[0]) ** -t * divergences(case)[0],
    measured=divergences_after,
)

EGPO_LINEAR = replace(
    GDA_LINEAR,
    name="EGPO",
    statement="KL_t ≤ (1−ηβ)^t KL_0, η ≤ 1/(β+L)",
    source="EGPO, arXiv:2503.08942; Cen et al., arXiv:2105.15186 (η ≤ 1/(β+2L)); notes/last_iterates.md",
    rules=(EGPO,),
    rule=lambda game, mu, beta: EGPO(beta=beta, eta=1.0 / (beta + max(1.0, largest_payoff(game)))),
    assumptions=(
        certified,
        constant_step,
        step_at_most("1/(β+L)", lambda case: 1.0 / (case.beta + L(case))),
    ),
)

NASH_MP_LINEAR = replace(
    MMD_LINEAR,
    name="Nash-MP",
    statement="KL_t ≤ (1+ηβ)^{−t} KL_0, η ≤ 1/L; (1+2β)^{−t} at η = 2",
    source="Tiapkin et al., arXiv:2505.19731; notes/last_iterates.md",
    rules=(NashMP,),
    rule=lambda game, mu, beta: NashMP(beta=beta, eta=1.0 / at_least_half(game)),
    assumptions=(certified, constant_step, step_at_most("1/L", lambda case: 1.0 / L(case))),
)

# --- the regularised equilibrium itself ---

REFERENCE_DIVERGENCE = Theorem(
    name="distance from the reference",
    statement="β KL(π*_β‖μ) ≤ L, which is at most 1/2, or H/2 where every step is compared",
    source="Shani et al. (MTPO), arXiv:2405.14655, Lemma B.5; notes/gap_identity.md",
    rules=(object,),
    rule=lambda game, mu, beta: GDA(beta=beta),
    regularised=True,
    assumptions=(certified,),
    bound=lambda case, t: np.full_like(t, L(case)),
    measured=lambda case: case.beta * reference_divergence(case),
    steps=0,
    geometry=None,
)

REGULARISATION_GAP = replace(
    REFERENCE_DIVERGENCE,
    name="price of the regulariser",
    statement="Gap(π*_β) ≤ 2β (max_y log 1/μ(y) − KL(π*_β‖μ))",
    source="notes/gap_identity.md",
    bound=lambda case, t: 2.0 * case.beta * (D(case) - reference_divergence(case)),
    measured=equilibrium_gap,
)

MATRIX_THEOREMS: tuple[Theorem, ...] = (
    MWU_AVERAGE,
    MWU_LAST,
    OGDA_AVERAGE,
    ONPO_PRINTED,
    ONPO_AVERAGE,
    COMAL_LAST,
    NASH_MD,
    NASH_MD_SHARP,
    NASH_MD_STEP,
    NASH_MD_STEP_SHARP,
    INPO,
    GDA_LINEAR,
    MMD_LINEAR,
    EGPO_LINEAR,
    NASH_MP_LINEAR,
    REFERENCE_DIVERGENCE,
    REGULARISATION_GAP,
)
