"""The theorems that are about Markov games alone: MTPO and MTPO-τ, multi-turn RLHF, OMPO and MPO.

KL_t is `KL_p(π*‖π_t)`, the divergence of trajectories from the equilibrium; `Q_t` the regularised action
values of the policy that the step is taken against; `G_h` the range of payoffs from step h on (1, or
H − h + 1); π̲ the smallest probability of an action under μ, d̲ that of a trajectory's actions. All payoffs
are centred.
Constants that a paper assumes are measured on the run, and the statement says so; the sharper and the
a-priori bounds are proved in `notes/markov.md`.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from nashpref.games.markov import MarkovGame
from nashpref.mirror import Geometry
from nashpref.policies import FloatArray, normalise
from nashpref.rules import MPO, MTPO, OMPO, MTPOTau
from nashpref.theory.bounds import (
    OPTIMISTIC,
    ROUNDING,
    certified,
    constant_step,
    cumulative_gap,
    decreasing_step,
    divergences,
    divergences_after,
    step_at_most,
)
from nashpref.theory.theorems import Case, Theorem, Verdict
from nashpref.theory.trajectories import (
    Game,
    action_entropy,
    action_values,
    divergence,
    expected,
    flat,
    largest_payoff,
    occupancy_entropy,
    payoff_ranges,
    start_entropy,
    step_payoffs,
    trajectory_entropy,
)

STEPS = 60  # of the runs of `check_all` on Markov games

# --- along the run ---


def mixtures(case: Case) -> FloatArray:
    """`π_t^μ ∝ π_t^{1−η_tβ} μ^{η_tβ}` in every state, t = 0 … steps − 1."""
    weight = (case.etas * case.beta).reshape(-1, *[1] * case.mu.ndim)
    logits = (1.0 - weight) * np.log(iterates(case)) + weight * np.log(case.mu)
    return normalise(logits)[1]


def iterates(case: Case) -> FloatArray:
    """π_t, t = 0 … steps − 1."""
    policies = case.trace.policies
    assert policies is not None  # a Case keeps them
    return policies[:-1]


def values(case: Case, policies: FloatArray) -> tuple[FloatArray, FloatArray]:
    """`Q_t` and `β log π_t/μ` of the policies, `(T, S₁, N, A)`; 0 where an initial state does not lead."""
    game = case.markov_game
    q, ratio = action_values(game, flat(game, policies), game.flat(case.mu), case.beta)
    own = game.reached_from[..., None]
    return q * own, case.beta * ratio * own


def weighed(case: Case, x: FloatArray) -> FloatArray:
    """`E_{π*} Σ_h x_h`."""
    game = case.markov_game
    return expected(game, game.flat(case.equilibrium.policy), x)


def after_one_step(case: Case, excess: FloatArray) -> FloatArray:
    """`(1 − η_tβ) KL_t + η_t² · excess_t`."""
    return np.asarray((1.0 - case.etas * case.beta) * divergences(case)[:-1] + case.etas**2 * excess)


def mtpo_excess(case: Case) -> FloatArray:
    """`E_{π*} Σ_h ‖Q_t − β log π_t/μ‖²_∞`."""
    q, ratio = values(case, iterates(case))
    return weighed(case, np.abs(q - ratio).max(axis=-1) ** 2)


def mtpo_range(case: Case) -> FloatArray:
    """`E_{π*} Σ_h range(Q_t − β log π_t/μ)²`."""
    q, ratio = values(case, iterates(case))
    return weighed(case, np.ptp(q - ratio, axis=-1) ** 2)


def mixture_excess(case: Case) -> FloatArray:
    """`E_{π*} Σ_h ‖Q_t‖²_∞`, of the mixtures."""
    return weighed(case, np.abs(values(case, mixtures(case))[0]).max(axis=-1) ** 2)


def mixture_range(case: Case) -> FloatArray:
    """`E_{π*} Σ_h range(Q_t)²`, of the mixtures."""
    return weighed(case, np.ptp(values(case, mixtures(case))[0], axis=-1) ** 2)


def mixture_divergences(case: Case) -> FloatArray:
    """`KL_p(π*‖π_t^μ)`, t = 1, 2, …"""
    return divergence(case.game, case.equilibrium.policy, np.log(mixtures(case)[1:]))


# --- constants ---


def mtpo_constant(case: Case) -> float:
    """Q: the largest |Q_t| and `β|log π_t/μ|` *measured* on the run."""
    return max(float(np.abs(x).max()) for x in values(case, iterates(case)))


def mixture_constant(case: Case) -> float:
    """Q: the largest |Q_t| of the mixtures and of π*, *measured* on the run."""
    policies = np.concatenate([mixtures(case), case.equilibrium.policy[None]])
    return float(np.abs(values(case, policies)[0]).max())


def value_ranges(case: Case) -> FloatArray:
    """`R_h = G_h + β(H−h) log 1/π̲`, within which `Q_h(s, ·)` lies whatever is played: `(H,)`."""
    game = case.markov_game
    left = np.arange(game.horizon - 1.0, -1.0, -1.0)
    return np.asarray(payoff_ranges(game) + case.beta * left * action_entropy(game, case.mu))


def paper_weights(game: MarkovGame) -> FloatArray:
    """`H − h + 1`, h = 1 … H."""
    return np.arange(game.horizon, 0.0, -1.0)


def mpo_step(game: Game, mu: FloatArray, T: int) -> float:
    """`√(log(1/π̲)/(T H²))`."""
    assert isinstance(game, MarkovGame)
    return math.sqrt(action_entropy(game, mu) / T) / game.horizon


# --- assumptions ---


def reward_linear(case: Case) -> str | None:
    """`P(x ≻ x') − 1/2 = r(x) − r(x')` for final states: the opponent does not matter."""
    game = case.markov_game
    if not game.terminal:
        return "the preference is not of final states"
    A = game.payoffs[0]
    off = float(np.abs(A - (A[:, :1] - A[:, 0])).max())
    return f"the preference is off a difference of rewards by {off:.3g}" if off > ROUNDING else None


def tuned_step(case: Case) -> str | None:
    """`η = √(log(1/π̲)/(T H²))`, T the number of iterates."""
    eta, wanted = float(case.etas[0]), mpo_step(case.game, case.mu, case.steps + 1)
    wrong = abs(eta - wanted) > ROUNDING * wanted
    return f"η = {eta:.6g}, not √(log(1/π̲)/(TH²)) = {wanted:.6g}" if wrong else None


# --- MTPO: GDA in every state ---

MTPO_LAST = Theorem(
    name="MTPO",
    statement="KL_t ≤ 32HQ²/(β²(t+1)), η_t = 2/(β(t+2)), Q = max(|Q_t|, β|log π_t/μ|) measured",
    source="Shani et al., arXiv:2405.14655, Thm 4.2 (B.1)",
    rules=(MTPO,),
    rule=lambda game, mu, beta: MTPO(beta=beta),
    regularised=True,
    assumptions=(certified, decreasing_step),
    bound=lambda case, t: (
        32.0 * case.markov_game.horizon * mtpo_constant(case) ** 2 / (case.beta**2 * (t + 1.0))
    ),
    measured=divergences_after,
    steps=STEPS,
    games=(MarkovGame,),
    geometry=Geometry.PER_STATE,
)

MTPO_A_PRIORI = replace(
    MTPO_LAST,
    name="MTPO, a priori",
    statement="KL_t ≤ 2 Σ_h R_h²/(β²(t+1)), η_t = 2/(β(t+2)), R_h = G_h + β(H−h) log 1/π̲",
    source="notes/markov.md",
    bound=lambda case, t: 2.0 * (value_ranges(case) ** 2).sum() / (case.beta**2 * (t + 1.0)),
)

MTPO_STEP = replace(
    MTPO_LAST,
    name="MTPO, one step",
    statement="KL_{t+1} ≤ (1−η_tβ) KL_t + 2η_t² E_{π*}Σ_h‖Q_t − β log π_t/μ‖²_∞, any η_t ≤ 1/β, Q_t measured",
    source="Shani et al., arXiv:2405.14655, proof of Thm B.1",
    assumptions=(certified,),
    bound=lambda case, t: after_one_step(case, 2.0 * mtpo_excess(case)),
)

MTPO_STEP_SHARP = replace(
    MTPO_STEP,
    name="MTPO, one step, sharper",
    statement="KL_{t+1} ≤ (1−η_tβ) KL_t + η_t²/8 E_{π*}Σ_h range(Q_t − β log π_t/μ)², any η_t ≤ 1/β",
    source="notes/markov.md (Hoeffding's lemma)",
    bound=lambda case, t: after_one_step(case, mtpo_range(case) / 8.0),
)

RLHF = replace(
    MTPO_LAST,
    name="multi-turn RLHF",
    statement="KL_t ≤ 32HQ²/(β²(t+1)), η_t = 2/(β(t+2)), where P(x ≻ x') − 1/2 = r(x) − r(x'); Q measured",
    source="Shani et al., arXiv:2405.14655, Thm B.6",
    assumptions=(certified, decreasing_step, reward_linear),
)

# --- MTPO-τ: Nash-MD in every state ---

MTPO_TAU = replace(
    MTPO_LAST,
    name="MTPO-τ",
    statement="KL_t ≤ 8HQ²/(β²(t+1)), η_t = 2/(β(t+2)), Q = max|Q_t| of mixtures and π*, measured",
    source="Shani et al., arXiv:2405.14655, Thm B.3",
    rules=(MTPOTau,),
    rule=lambda game, mu, beta: MTPOTau(beta=beta),
    bound=lambda case, t: (
        8.0 * case.markov_game.horizon * mixture_constant(case) ** 2 / (case.beta**2 * (t + 1.0))
    ),
)

MTPO_TAU_MIXTURE = replace(
    MTPO_TAU,
    name="MTPO-τ, mixture",
    statement="KL_p(π*‖π_t^μ) ≤ 9HQ²/(β²(t+1)), η_t = 2/(β(t+2)), Q as above",
    source="Shani et al., arXiv:2405.14655, Thm B.2",
    bound=lambda case, t: 9.0 / 8.0 * MTPO_TAU.bound(case, t),
    measured=mixture_divergences,
)

MTPO_TAU_A_PRIORI = replace(
    MTPO_TAU,
    name="MTPO-τ, a priori",
    statement="KL_t ≤ Σ_h R_h²/(2β²(t+1)), η_t = 2/(β(t+2)), R_h = G_h + β(H−h) log 1/π̲",
    source="notes/markov.md",
    bound=lambda case, t: (value_ranges(case) ** 2).sum() / (2.0 * case.beta**2 * (t + 1.0)),
)

MTPO_TAU_STEP = replace(
    MTPO_TAU,
    name="MTPO-τ, one step",
    statement="KL_{t+1} ≤ (1−η_tβ) KL_t + 2η_t² E_{π*}Σ_h‖Q_t‖²_∞, any η_t ≤ 1/β, Q_t measured",
    source="Shani et al., arXiv:2405.14655, proof of Thm B.3",
    assumptions=(certified,),
    bound=lambda case, t: after_one_step(case, 2.0 * mixture_excess(case)),
)

MTPO_TAU_STEP_SHARP = replace(
    MTPO_TAU_STEP,
    name="MTPO-τ, one step, sharper",
    statement="KL_{t+1} ≤ (1−η_tβ) KL_t + η_t²/8 E_{π*}Σ_h range(Q_t)², any η_t ≤ 1/β",
    source="notes/markov.md (Hoeffding's lemma)",
    bound=lambda case, t: after_one_step(case, mixture_range(case) / 8.0),
)

# --- OMPO in the paper's geometry: occupancy measures, step h weighing H − h + 1 ---

OMPO_AVERAGE = Theorem(
    name="OMPO, average",
    statement="T·Gap(d̄_T) ≤ 10H log(1/d̲)/η, η ≤ 1/√2, d̲ the smallest Π_h μ(a_h|s_h) of a trajectory",
    source="Wu et al., arXiv:2502.12678, Thm 5",
    rules=(OMPO,),
    rule=lambda game, mu, beta: OMPO(),
    regularised=False,
    assumptions=(constant_step, step_at_most("1/√2", lambda case: math.sqrt(0.5))),
    bound=lambda case, t: np.full_like(
        t, 10.0 * case.markov_game.horizon * trajectory_entropy(case.markov_game, case.mu) / case.etas[0]
    ),
    measured=cumulative_gap,
    steps=STEPS,
    games=(MarkovGame,),
    geometry=Geometry.WEIGHTED_OCCUPANCY,
)

OMPO_PRINTED = replace(
    OMPO_AVERAGE,
    name="OMPO, average, by occupancy",
    statement="T·Gap(d̄_T) ≤ 10H log(1/d̲)/η, η ≤ 1/√2, d̲ the smallest occupancy of μ",
    bound=lambda case, t: np.full_like(
        t, 10.0 * case.markov_game.horizon * occupancy_entropy(case.markov_game, case.mu) / case.etas[0]
    ),
    expected=Verdict.FAILS,
)

OMPO_SHARP = replace(
    OMPO_AVERAGE,
    name="OMPO, average, sharper",
    statement="T·Gap(d̄_T) ≤ 2D/η + 2L + η Σ_h L_h², η ≤ (√2−1)/max L_h, D weighed by H−h+1",
    source="notes/markov.md",
    assumptions=(
        constant_step,
        step_at_most("(√2−1)/max L_h", lambda case: OPTIMISTIC / step_payoffs(case.markov_game).max()),
    ),
    bound=lambda case, t: np.full_like(
        t,
        2.0 * start_entropy(case.game, case.mu, paper_weights(case.markov_game)) / case.etas[0]
        + 2.0 * largest_payoff(case.game)
        + case.etas[0] * (step_payoffs(case.markov_game) ** 2).sum(),
    ),
)

# --- MPO: multiplicative weights in every state ---

MPO_AVERAGE = Theorem(
    name="MPO, average",
    statement="T·Gap(d̄_T) ≤ 2D/η + ηT/4 Σ_h G_h², any constant η",
    source="notes/markov.md",
    rules=(MPO,),
    rule=lambda game, mu, beta: MPO(eta=mpo_step(game, mu, STEPS)),
    regularised=False,
    assumptions=(constant_step,),
    bound=lambda case, t: (
        2.0 * start_entropy(case.game, case.mu) / case.etas[0]
        + case.etas[0] * t / 4.0 * (payoff_ranges(case.markov_game) ** 2).sum()
    ),
    measured=cumulative_gap,
    steps=STEPS - 1,
    games=(MarkovGame,),
    geometry=Geometry.PER_STATE,
)

MPO_TUNED = replace(
    MPO_AVERAGE,
    name="MPO, average, tuned step",
    statement="t·Gap(d̄_t) ≤ 4H² √(T log 1/π̲) for t ≤ T, η = √(log(1/π̲)/(TH²))",
    source="Wu et al., arXiv:2502.12678, Thm 4",
    assumptions=(constant_step, tuned_step),
    bound=lambda case, t: np.full_like(
        t, 4.0 * case.markov_game.horizon**2 * math.sqrt(t[-1] * action_entropy(case.markov_game, case.mu))
    ),
)

MARKOV_THEOREMS: tuple[Theorem, ...] = (
    MTPO_LAST,
    MTPO_A_PRIORI,
    MTPO_STEP,
    MTPO_STEP_SHARP,
    RLHF,
    MTPO_TAU,
    MTPO_TAU_MIXTURE,
    MTPO_TAU_A_PRIORI,
    MTPO_TAU_STEP,
    MTPO_TAU_STEP_SHARP,
    OMPO_PRINTED,
    OMPO_AVERAGE,
    OMPO_SHARP,
    MPO_TUNED,
    MPO_AVERAGE,
)
