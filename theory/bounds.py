"""The theorems about matrix games, each a few lines.

KL_t is `KL(π*‖π_t)` with π* the equilibrium that the rule seeks, `D = max_y log 1/π_0(y)`,
`L = max|A| ≤ 1/2`, and `π̄_T` is the mean of the first T iterates π_0 … π_{T−1}. Where a condition on the step
is weaker than the one printed in the source, or a constant sharper, the proof is in `notes/`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from nashpref.mirror import decreasing
from nashpref.policies import FloatArray, kl, log_policy
from nashpref.rules import COMAL, EGPO, GDA, MMD, MWU, OGDA, ONPO, NashMD, NashMP
from nashpref.theory.theorems import CERTIFIED, Assumption, Case, Theorem, Verdict

OPTIMISTIC_STEP = 2.0 * (math.sqrt(2.0) - 1.0)  # 0.828, the largest η of the optimistic average bound
ROUNDING = 1e-9  # by which a number may miss the one that an assumption asks for

# --- measured quantities ---


def divergence(case: Case) -> FloatArray:
    """`KL(π*‖π_t)`, t = 1, 2, …"""
    return _kl(case)[1:]


def _kl(case: Case) -> FloatArray:
    values = case.trace.kl
    assert values is not None  # a Case hands its equilibrium to `solve`
    return values


def cumulative_gap(case: Case) -> FloatArray:
    """`T·Gap(π̄_T)`, T = 1, 2, …"""
    gaps = case.trace.average_gap
    return np.asarray(gaps * np.arange(1.0, len(gaps) + 1.0))


def reference_divergence(case: Case) -> FloatArray:
    """`KL(π*‖μ)`, one value."""
    return kl(log_policy(case.equilibrium.policy), log_policy(case.mu))[None]


def equilibrium_gap(case: Case) -> FloatArray:
    """`Gap(π*) = 2 max_y (Aπ*)(y)` in the unregularised game, one value."""
    return np.asarray(2.0 * case.game.payoff(case.equilibrium.policy).max(keepdims=True))


# --- constants ---


def largest_payoff(case: Case) -> float:
    """`L = max|A|`, the Lipschitz constant of π ↦ Aπ from ‖·‖₁ to ‖·‖_∞; positive, so that it divides."""
    return max(float(np.abs(case.game.payoffs).max()), 1e-100)


def start_entropy(case: Case) -> float:
    """`D = max_y log 1/π_0(y)`, the largest KL(π‖π_0) of any π."""
    return float(-np.log(case.mu.min()))


def log_ratio_constant(case: Case) -> float:
    """INPO's `C = max(Bβ, 1)`, with `B = max_t max_y |log π_t(y)/μ(y)|` *measured* on the run."""
    policies = case.trace.policies
    assert policies is not None  # a Case keeps them
    B = float(np.abs(np.log(policies) - np.log(case.mu)).max())
    return max(B * case.beta, 1.0)


# --- assumptions ---


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
    eta, wanted = float(case.etas[0]), min(0.5, math.sqrt(start_entropy(case)))
    return f"η = {eta:.6g}, not min(1/2, √D) = {wanted:.6g}" if abs(eta - wanted) > ROUNDING else None


def interior_equilibrium(case: Case) -> str | None:
    """`A π* = 0`: against π* all responses are equally good."""
    slack = float(np.abs(case.game.payoff(case.equilibrium.policy)).max())
    return f"max|Aπ*| = {slack:.3g}: some response loses to π*" if slack > ROUNDING else None


def exact_inner_solutions(case: Case) -> str | None:
    """Each outer step solves its regularised game."""
    worst = float(case.proximal_points[1].max())
    return f"an inner solution has a gap of {worst:.1e}" if worst > CERTIFIED else None


# --- the unregularised game: averages ---

MWU_AVERAGE = Theorem(
    name="MWU, average",
    statement="T·Gap(π̄_T) ≤ 2D/η + ηT/4, any constant η",
    source="Freund & Schapire 1999; as SPPO, arXiv:2405.00675, Thm 4.1",
    rules=(MWU, GDA),
    rule=lambda beta: MWU(eta=0.5),
    regularised=False,
    assumptions=(constant_step,),
    bound=lambda case, t: 2.0 * start_entropy(case) / case.etas[0] + case.etas[0] * t / 4.0,
    measured=cumulative_gap,
)

OGDA_AVERAGE = Theorem(
    name="OGDA, average",
    statement="T·Gap(π̄_T) ≤ 2D/η + 1 + η/4, η ≤ 2(√2−1)",
    source="Rakhlin & Sridharan, arXiv:1311.1869; constants: notes/averages.md",
    rules=(OGDA,),
    rule=lambda beta: OGDA(),
    regularised=False,
    assumptions=(constant_step, step_at_most("2(√2−1)", lambda case: OPTIMISTIC_STEP)),
    bound=lambda case, t: np.full_like(
        t, 2.0 * start_entropy(case) / case.etas[0] + 1.0 + case.etas[0] / 4.0
    ),
    measured=cumulative_gap,
)

ONPO_AVERAGE = Theorem(
    name="ONPO, average, corrected",
    statement="T·Gap(π̄_T) ≤ 2D/η + η/(4−2η), η ≤ 2(√2−1)",
    source="notes/averages.md",
    rules=(ONPO,),
    rule=lambda beta: ONPO(),
    regularised=False,
    assumptions=(constant_step, step_at_most("2(√2−1)", lambda case: OPTIMISTIC_STEP)),
    bound=lambda case, t: np.full_like(
        t, 2.0 * start_entropy(case) / case.etas[0] + case.etas[0] / (4.0 - 2.0 * case.etas[0])
    ),
    measured=cumulative_gap,
)

ONPO_PRINTED = replace(
    ONPO_AVERAGE,
    name="ONPO, average, as printed",
    statement="T·Gap(π̄_T) ≤ 4√D, η = min(1/2, √D)",
    source="ONPO, arXiv:2502.16852, Thm 2",
    assumptions=(constant_step, onpo_step),
    bound=lambda case, t: np.full_like(t, 4.0 * math.sqrt(start_entropy(case))),
    expected=Verdict.FAILS,
)

# --- the unregularised game: last iterates ---

MWU_LAST = Theorem(
    name="MWU, last iterate moves away",
    statement="KL_{t−1} ≤ KL_t where Aπ* = 0, any η",
    source="Bailey & Piliouras, EC 2018; notes/last_iterates.md",
    rules=(MWU, GDA),
    rule=lambda beta: MWU(eta=0.5),
    regularised=False,
    assumptions=(interior_equilibrium,),
    bound=lambda case, t: _kl(case)[1:],
    measured=lambda case: _kl(case)[:-1],
)

COMAL_LAST = Theorem(
    name="COMAL, outer steps",
    statement="KL_k ≤ KL_{k−1}, inner games solved exactly",
    source="COMAL, arXiv:2410.23223, Thm 1",
    rules=(COMAL,),
    rule=lambda beta: COMAL(beta=beta),
    regularised=True,
    assumptions=(exact_inner_solutions,),
    bound=lambda case, t: case.proximal_points[0][:-1],
    measured=lambda case: case.proximal_points[0][1:],
    steps=30,
)

# --- the regularised game: decreasing steps, last iterates ---

NASH_MD = Theorem(
    name="Nash-MD",
    statement="KL_T ≤ 8/(β²(T+1)), η_t = 2/(β(t+2))",
    source="Munos et al., arXiv:2312.00886, Thm 1",
    rules=(NashMD,),
    rule=lambda beta: NashMD(beta=beta),
    regularised=True,
    assumptions=(decreasing_step,),
    bound=lambda case, t: 8.0 / (case.beta**2 * (t + 1.0)),
    measured=divergence,
)

NASH_MD_SHARP = replace(
    NASH_MD,
    name="Nash-MD, sharper",
    statement="KL_T ≤ 1/(2β²(T+1)), η_t = 2/(β(t+2))",
    source="notes/nash_md.md (Hoeffding's lemma)",
    bound=lambda case, t: 1.0 / (2.0 * case.beta**2 * (t + 1.0)),
)

NASH_MD_STEP = replace(
    NASH_MD,
    name="Nash-MD, one step",
    statement="KL_{t+1} ≤ (1−η_tβ) KL_t + 2η_t², any η_t ≤ 1/β",
    assumptions=(),
    bound=lambda case, t: (1.0 - case.etas * case.beta) * _kl(case)[:-1] + 2.0 * case.etas**2,
)

NASH_MD_STEP_SHARP = replace(
    NASH_MD_STEP,
    name="Nash-MD, one step, sharper",
    statement="KL_{t+1} ≤ (1−η_tβ) KL_t + η_t²/8, any η_t ≤ 1/β",
    source="notes/nash_md.md (Hoeffding's lemma)",
    bound=lambda case, t: (1.0 - case.etas * case.beta) * _kl(case)[:-1] + case.etas**2 / 8.0,
)

INPO = Theorem(
    name="GDA = INPO, decreasing step",
    statement="KL_T ≤ 32C²/(β²(T+1)), η_t = 2/(β(t+2)), C = max(Bβ, 1), B = max|log π_t/μ| measured",
    source="INPO, arXiv:2407.00617, Thm 4",
    rules=(GDA,),
    rule=lambda beta: GDA(beta=beta),
    regularised=True,
    assumptions=(decreasing_step,),
    bound=lambda case, t: 32.0 * log_ratio_constant(case) ** 2 / (case.beta**2 * (t + 1.0)),
    measured=divergence,
)

# --- the regularised game: constant steps, last iterates ---

GDA_LINEAR = Theorem(
    name="GDA, constant step",
    statement="KL_t ≤ (1−ηβ)^t KL_0, η ≤ β/(β²+L²)",
    source="through MMD, Sokota et al., arXiv:2206.05825, Thm 3.4",
    rules=(GDA,),
    rule=lambda beta: GDA(beta=beta, eta=4.0 * beta / (1.0 + 4.0 * beta**2)),
    regularised=True,
    assumptions=(
        constant_step,
        step_at_most("β/(β²+L²)", lambda case: case.beta / (case.beta**2 + largest_payoff(case) ** 2)),
    ),
    bound=lambda case, t: (1.0 - case.etas[0] * case.beta) ** t * _kl(case)[0],
    measured=divergence,
)

MMD_LINEAR = Theorem(
    name="MMD",
    statement="KL_t ≤ (1+ηβ)^{−t} KL_0, η ≤ β/L²",
    source="Sokota et al., arXiv:2206.05825, Thm 3.4",
    rules=(MMD,),
    rule=lambda beta: MMD(beta=beta),
    regularised=True,
    assumptions=(constant_step, step_at_most("β/L²", lambda case: case.beta / largest_payoff(case) ** 2)),
    bound=lambda case, t: (1.0 + case.beta * case.etas[0]) ** -t * _kl(case)[0],
    measured=divergence,
)

EGPO_LINEAR = replace(
    GDA_LINEAR,
    name="EGPO",
    statement="KL_t ≤ (1−ηβ)^t KL_0, η ≤ 1/(β+L)",
    source="EGPO, arXiv:2503.08942; Cen et al., arXiv:2105.15186 (η ≤ 1/(β+2L)); notes/last_iterates.md",
    rules=(EGPO,),
    rule=lambda beta: EGPO(beta=beta),
    assumptions=(
        constant_step,
        step_at_most("1/(β+L)", lambda case: 1.0 / (case.beta + largest_payoff(case))),
    ),
)

NASH_MP_LINEAR = replace(
    MMD_LINEAR,
    name="Nash-MP",
    statement="KL_t ≤ (1+ηβ)^{−t} KL_0, η ≤ 1/L; (1+2β)^{−t} at η = 2",
    source="Tiapkin et al., arXiv:2505.19731; notes/last_iterates.md",
    rules=(NashMP,),
    rule=lambda beta: NashMP(beta=beta),
    assumptions=(constant_step, step_at_most("1/L", lambda case: 1.0 / largest_payoff(case))),
)

# --- the regularised equilibrium itself ---

REFERENCE_DIVERGENCE = Theorem(
    name="distance from the reference",
    statement="β KL(π*_β‖μ) ≤ 1/2",
    source="Shani et al. (MTPO), arXiv:2405.14655, Lemma B.5",
    rules=(object,),
    rule=lambda beta: GDA(beta=beta),
    regularised=True,
    assumptions=(),
    bound=lambda case, t: np.full_like(t, 0.5),
    measured=lambda case: case.beta * reference_divergence(case),
    steps=0,
)

REGULARISATION_GAP = replace(
    REFERENCE_DIVERGENCE,
    name="price of the regulariser",
    statement="Gap(π*_β) ≤ 2β (max_y log 1/μ(y) − KL(π*_β‖μ))",
    source="notes/gap_identity.md",
    bound=lambda case, t: 2.0 * case.beta * (start_entropy(case) - reference_divergence(case)),
    measured=equilibrium_gap,
)

THEOREMS: tuple[Theorem, ...] = (
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
