"""Every named algorithm as a program of mirror steps.

On a Markov game with a preference at every step payoffs reach H/2 instead of 1/2: the default steps of EGPO,
MMD and Nash-MP are then covered by their theorems only for payoffs of at most 1 (EGPO) or 1/2.

β (`beta`) weighs the KL towards the reference μ: τ in Munos et al. (Nash-MD), α in Shani et al. (MTPO).
η (`eta`) is always the step size; INPO's η is 1/η here. The signs are those of gradient *ascent* on the
win probability.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from nashpref.mirror import (
    Geometry,
    MirrorStep,
    SteppedRule,
    StepSize,
    Weight,
    as_step_size,
    check_rule_beta,
    decreasing,
    toward_reference,
)


@dataclass(frozen=True, kw_only=True)
class MWU(SteppedRule):
    """Multiplicative weights in self-play: `π_{t+1} ∝ π_t exp(η q_{π_t})`.

    The exact form of SPPO, SPO and DNO, and of iterative IPO with η = 1/τ.

    Guarantee: the *average* iterate, `Gap(π̄_T) ≤ 2(D/(ηT) + η/8)` with D = max_y log 1/π_1(y): O(1/√T)
    with `eta=horizon(n, T)`. The last iterate moves away from an interior equilibrium for every η.
    The theorem's step depends on the horizon, so `eta` has no default.

    Source: Freund & Schapire (1999); SPPO, arXiv:2405.00675, Theorem 4.1.
    """

    def program(self, eta: Weight) -> tuple[MirrorStep, ...]:
        """One step."""
        return (MirrorStep("current", {"current": 1.0}, {"current": eta}),)

    def theorem_step(self) -> StepSize:
        """None exists without a horizon."""
        raise ValueError("the step of MWU depends on the horizon: pass eta, e.g. eta=horizon(n, steps)")


@dataclass(frozen=True, kw_only=True)
class GDA(SteppedRule):
    """Regularised mirror descent in self-play: `π_{t+1} ∝ π_t^{1−ηβ} μ^{ηβ} exp(η q_{π_t})`.

    INPO's ideal update, MTPO with one turn; MWU at β = 0.

    Guarantee (last iterate, β > 0): `KL(π*_β‖π_t) ≤ 32C²/(β²(t+1))` with the default `η_t = 2/(β(t+2))`
    and C = max(Bβ, 1), B bounding |log π_t/μ|; linear, `(1−ηβ)^t KL_0`, for a constant
    η ≤ 4β/(1+4β²). Beyond η = 2β/(β²+ω²), ω the local spectrum, it settles on a cycle.

    Source: INPO, arXiv:2407.00617, Theorem 4; linear rate through MMD, arXiv:2206.05825, Theorem 3.4.
    """

    beta: float = 0.0

    def program(self, eta: Weight) -> tuple[MirrorStep, ...]:
        """One step."""
        return (MirrorStep("current", toward_reference("current", eta * self.beta), {"current": eta}),)

    def theorem_step(self) -> StepSize:
        """`2/(β(t+2))`."""
        return decreasing(self.beta)


@dataclass(frozen=True, kw_only=True)
class NashMD(SteppedRule):
    """Nash mirror descent: step from, and against, the mixture `π_t^μ ∝ π_t^{1−ηβ} μ^{ηβ}`.

    `π_{t+1} ∝ π_t^μ exp(η q_{π_t^μ})`. The opponent is the *mixture*, not the current policy.

    Guarantee: `KL(π*_β‖π_T) ≤ 8/(β²(T+1))` with the default `η_t = 2/(β(t+2))`; Hoeffding's lemma
    sharpens it to `1/(2β²(T+1))`. A constant η converges to a point that is O(η) away from π*_β.

    Source: Munos et al., arXiv:2312.00886, Theorem 1.
    """

    beta: float

    def program(self, eta: Weight) -> tuple[MirrorStep, ...]:
        """Mixture, then step."""
        return (
            MirrorStep("mixture", toward_reference("current", eta * self.beta)),
            MirrorStep("current", {"mixture": 1.0}, {"mixture": eta}),
        )

    def theorem_step(self) -> StepSize:
        """`2/(β(t+2))`."""
        return decreasing(self.beta)


@dataclass(frozen=True, kw_only=True)
class NashEMA(SteppedRule):
    """Nash-MD's cousin whose opponent is an exponential moving average of past logits.

    `log π̄_t = (1−d) log π_t + d log π̄_{t−1}`, then `π_{t+1} ∝ π_t^{1−ηβ} μ^{ηβ} exp(η q_{π̄_t})`.
    A first-order stand-in for fictitious play; no rate is known. d = 0 is GDA.

    Args:
        beta: β. eta: η.
        decay: d in [0, 1).

    Source: Munos et al., arXiv:2312.00886, §6; their F.3 anchors the average at θ_0, which is a slip.
    """

    beta: float
    decay: float = 0.9

    def __post_init__(self) -> None:
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"decay = {self.decay}: it must lie in [0, 1)")
        super().__post_init__()

    def program(self, eta: Weight) -> tuple[MirrorStep, ...]:
        """Average, then step."""
        return (
            MirrorStep("average", {"current": 1.0 - self.decay, "average": self.decay}),
            MirrorStep("current", toward_reference("current", eta * self.beta), {"average": eta}),
        )

    def theorem_step(self) -> StepSize:
        """Nash-MD's, `2/(β(t+2))`, for want of one of its own."""
        return decreasing(self.beta)


@dataclass(frozen=True, kw_only=True)
class OGDA(SteppedRule):
    """Optimistic mirror descent: `π_{t+1} ∝ π_t^{1−ηβ} μ^{ηβ} exp(η(2q_{π_t} − q_{π_{t−1}}))`, π_{−1} := π_0.

    At β = 0 this is optimistic multiplicative weights (OMWU), one evaluation a step. The KL part is not
    extrapolated, so the fixed point is exact.

    Guarantee: β = 0, average iterate: `T·Gap(π̄_T) ≤ 2D/η + 1 + η/4`, D = max_y log 1/π_1(y), for
    η ≤ 2(√2−1) (default 1/2). Last iterate: linear when the equilibrium is unique and η small; locally
    stable iff ηω < 1/√3. β > 0: locally linear, default η = 1/(2β+4); no global bound for this form is known.

    Source: Rakhlin & Sridharan (2013); Wei et al., arXiv:2006.09517; OMPO at H = 1, arXiv:2502.12678.
    """

    beta: float = 0.0

    def program(self, eta: Weight) -> tuple[MirrorStep, ...]:
        """Step with the extrapolated payoff, then remember the opponent."""
        return (
            MirrorStep(
                "next",
                toward_reference("current", eta * self.beta),
                {"current": 2.0 * eta, "previous": -1.0 * eta},
            ),
            MirrorStep("previous", {"current": 1.0}),
            MirrorStep("current", {"next": 1.0}),
        )

    def theorem_step(self) -> StepSize:
        """1/2 at β = 0 (RVU on centred payoffs); `1/(2β+4)` above."""
        return 0.5 if self.beta == 0.0 else 1.0 / (2.0 * self.beta + 4.0)


@dataclass(frozen=True, kw_only=True)
class ONPO(SteppedRule):
    """Optimistic mirror descent in its two-sequence form.

    `π'_{t+1} ∝ π'_t exp(η q_{π_t})`, `π_{t+1} ∝ π'_{t+1} exp(η q_{π_t})`: the base takes the step, and the
    same payoff predicts the next one. The iterates π_t are those of OGDA with `q_{π_{−1}} := 0`.

    Guarantee: average iterate, `T·Gap(π̄_T) ≤ 2D/η + η/(4−2η)` for η ≤ 2(√2−1), D as for OGDA. The paper
    prints `4√D/T`, which fails on games with D > 0.914: `nashpref theorems` shows both.

    Source: arXiv:2502.16852, Theorems 2 and 3 (default η = 1/2).
    """

    def program(self, eta: Weight) -> tuple[MirrorStep, ...]:
        """Both sequences move with the same payoff."""
        return (
            MirrorStep("base", {"base": 1.0}, {"current": eta}),
            MirrorStep("current", {"base": 1.0}, {"current": eta}),
        )

    def theorem_step(self) -> StepSize:
        """1/2."""
        return 0.5


@dataclass(frozen=True, kw_only=True)
class EGPO(SteppedRule):
    """Extragradient: a half step against the current policy, then the step against the half step.

    `π_{t+½} ∝ π_t^{1−ηβ} μ^{ηβ} exp(η q_{π_t})`, `π_{t+1} ∝ π_t^{1−ηβ} μ^{ηβ} exp(η q_{π_{t+½}})`.

    Guarantee: `KL(π*_β‖π_t) ≤ (1−ηβ)^t KL(π*_β‖π_0)` for η ≤ 1/(β+L), L = max|A| ≤ 1/2; the default is
    1/(1+β). At β = 0 it is mirror-prox, locally stable iff ηω < 1.

    Source: arXiv:2503.08942; rate from Cen, Wei & Chi, arXiv:2105.15186 (η ≤ 1/(β+2L)), sharpened in
    theory/notes/last_iterates.md.
    """

    beta: float = 0.0

    def program(self, eta: Weight) -> tuple[MirrorStep, ...]:
        """Half step, then step, both from the same place."""
        anchors = toward_reference("current", eta * self.beta)
        return (MirrorStep("half", anchors, {"current": eta}), MirrorStep("current", anchors, {"half": eta}))

    def theorem_step(self) -> StepSize:
        """`1/(1+β)`."""
        return 1.0 / (1.0 + self.beta)


@dataclass(frozen=True, kw_only=True)
class MMD(SteppedRule):
    """Magnetic mirror descent, GDA with the KL taken implicitly.

    `π_{t+1} ∝ (π_t μ^{ηβ} exp(η q_{π_t}))^{1/(1+ηβ)}`: exactly `GDA(eta=η/(1+ηβ))`, for any η > 0.

    Guarantee: `KL(π*_β‖π_t) ≤ (1+ηβ)^{−t} KL(π*_β‖π_0)` for η ≤ β/L² with L = max|A| ≤ 1/2: the default 4β.

    Source: Sokota et al., arXiv:2206.05825, Theorem 3.4.
    """

    beta: float

    def program(self, eta: Weight) -> tuple[MirrorStep, ...]:
        """One implicit step."""
        explicit = eta / (1.0 + eta * self.beta)
        anchors = toward_reference("current", explicit * self.beta)
        return (MirrorStep("current", anchors, {"current": explicit}),)

    def theorem_step(self) -> StepSize:
        """`4β`."""
        if self.beta == 0.0:
            raise ValueError("beta = 0: MMD's step 4 beta vanishes; use MWU, or pass eta")
        return 4.0 * self.beta


@dataclass(frozen=True, kw_only=True)
class NashMP(SteppedRule):
    """Nash mirror prox: extragradient with the KL taken implicitly in both half steps.

    Exactly `EGPO(eta=η/(1+ηβ))`, for any η > 0.

    Guarantee: `KL(π*_β‖π_t) ≤ (1+2β)^{−t} KL(π*_β‖π_0)` with the default η = 2 (two queries a step).

    Source: Tiapkin et al., arXiv:2505.19731.
    """

    beta: float = 0.0

    def program(self, eta: Weight) -> tuple[MirrorStep, ...]:
        """Half step, then step, both implicit."""
        explicit = eta / (1.0 + eta * self.beta)
        anchors = toward_reference("current", explicit * self.beta)
        return (
            MirrorStep("half", anchors, {"current": explicit}),
            MirrorStep("current", anchors, {"half": explicit}),
        )

    def theorem_step(self) -> StepSize:
        """2."""
        return 2.0


@dataclass(frozen=True, kw_only=True)
class MNPO(SteppedRule):
    """Mirror descent against, and anchored at, a weighted history of past policies (time-dependent MNPO).

    `π_{t+1} ∝ μ^{ηβ} Π_j π_{t−j}^{(1−ηβ)λ_j} exp(η Σ_j λ_j q_{π_{t−j}})`; π_{−j} := π_0.
    `weights=(1.0,)` is GDA.

    Args:
        beta: β. eta: η, with no default: the paper proves no rate.
        weights: λ_0, λ_1, … for the current policy and its predecessors; positive, summing to one.

    Source: arXiv:2509.23102.
    """

    beta: float = 0.0
    weights: tuple[float, ...] = (0.5, 0.5)

    def __post_init__(self) -> None:
        if not self.weights or min(self.weights) < 0.0 or abs(math.fsum(self.weights) - 1.0) > 1e-9:
            raise ValueError(f"weights = {self.weights}: they must be non-negative and sum to one")
        super().__post_init__()

    def program(self, eta: Weight) -> tuple[MirrorStep, ...]:
        """Step, then shift the history by one."""
        history = ["current", *(f"previous{j}" for j in range(1, len(self.weights)))]
        pull = toward_reference("self", eta * self.beta)
        own = pull.pop("self")
        anchors = pull | {name: own * weight for name, weight in zip(history, self.weights, strict=True)}
        payoffs = {name: eta * weight for name, weight in zip(history, self.weights, strict=True)}
        shift = [MirrorStep(to, {source: 1.0}) for source, to in itertools.pairwise(history)]
        return (
            MirrorStep("next", anchors, payoffs),
            *reversed(shift),
            MirrorStep("current", {"next": 1.0}),
        )

    def theorem_step(self) -> StepSize:
        """None is known."""
        raise ValueError("MNPO has no theorem's step: pass eta")


@dataclass(frozen=True, kw_only=True)
class BestResponse:
    """The best response to a fixed opponent in one step: `π ∝ μ exp(q_ν/β)`.

    The closed form of IPO with sampling policy ν, of RLHF with reward `q_ν`, and of DPO when the
    preference is Bradley–Terry. With `opponent="current"` it is iterated against itself, which need not
    converge.

    Args:
        beta: β > 0.
        opponent: the name of ν; `solve(..., start={"opponent": ν})` places any policy there.

    Source: arXiv:2310.12036 (IPO), §4.
    """

    beta: float
    opponent: str = "reference"

    def __post_init__(self) -> None:
        check_rule_beta(self)
        if self.beta == 0.0:
            raise ValueError("beta = 0: the unregularised best response is nashpref.best_response")

    @cached_property
    def _program(self) -> tuple[MirrorStep, ...]:
        return (MirrorStep("current", {"reference": 1.0}, {self.opponent: 1.0 / self.beta}),)

    def steps(self, t: int) -> tuple[MirrorStep, ...]:
        """The same step whatever t."""
        return self._program


@dataclass(frozen=True, kw_only=True)
class COMAL:
    """Solve the regularised game, move the reference there, repeat: finds the *original* equilibrium.

    Inner: `GDA(beta, eta)`; every `every` steps `reference ← current`. The outer loop is the proximal
    point method in KL.

    Guarantee: with exact inner solutions KL(π*‖π_k) never increases and the last iterate converges to an
    equilibrium of the unregularised game, for any β > 0. A short inner loop loses the guarantee.

    Args:
        beta: β > 0 of the inner games; smaller takes fewer, harder, outer steps.
        eta: inner step, of which a schedule begins anew in each inner game; default the constant
            `4β/(1+4β²)`, under which the inner GDA converges linearly.
        every: inner steps between moves of the reference.

    Source: COMAL, arXiv:2410.23223, Theorem 1; as Magnetic Preference Optimization, arXiv:2410.16714,
    whose inner loop is MMD(η), i.e. this with η/(1+ηβ).
    """

    beta: float
    eta: StepSize | None = None
    every: int = 100

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every = {self.every}: at least one inner step is needed")
        check_rule_beta(self)
        if self.beta == 0.0:
            raise ValueError("beta = 0: the inner game of COMAL must be regularised")
        if self.eta is not None:
            object.__setattr__(self, "eta", as_step_size(self.eta))
        self.steps(0)

    @property
    def target_beta(self) -> float:
        """0: the equilibrium sought is that of the original game."""
        return 0.0

    @cached_property
    def _inner(self) -> GDA:
        eta = 4.0 * self.beta / (1.0 + 4.0 * self.beta**2) if self.eta is None else self.eta
        return GDA(beta=self.beta, eta=eta)

    @cached_property
    def _last(self) -> tuple[MirrorStep, ...]:
        return (*self._inner.steps(self.every - 1), MirrorStep("reference", {"current": 1.0}))

    def steps(self, t: int) -> tuple[MirrorStep, ...]:
        """An inner step; each `every`-th also moves the reference."""
        inner = t % self.every
        return self._inner.steps(inner) if inner < self.every - 1 else self._last


@dataclass(frozen=True, kw_only=True)
class OMPO(OGDA):
    """Optimistic multi-step preference optimization: OGDA on the occupancy measures of a Markov game.

    `d_{t+1} = argmax_d η⟨d, 2r_t − r_{t−1}⟩ − ηβ KL_p(d‖μ) − (1−ηβ) KL_p(d‖d_t)`, `r_t = A_h d_t` what the
    opponent's occupancy makes each state and action worth, `r_{−1} := r_0`.

    Guarantee: β = 0, average occupancy: `Gap(d̄_T) ≤ 10 H log(1/d̲)/(ηT)` with the default η = 1/√2 and
    `geometry="weighted-occupancy"`, the paper's divergence; d̲ is the smallest probability of a trajectory's
    actions under μ. Unit weights, the default here, are two to three times faster at the same η; OGDA's bound
    then holds for η ≤ (√2−1)/L, L ≤ H/2 the most that a trajectory wins (1/2 with a preference of final
    states). β > 0 (OMPO with MTPO's regulariser) is not in the paper: linear where it converges.

    Source: arXiv:2502.12678, Algorithm 3 and Theorem 5.
    """

    geometry: ClassVar[Geometry] = Geometry.OCCUPANCY

    def theorem_step(self) -> StepSize:
        """1/√2 at β = 0; `1/(2β+4)` above, as OGDA."""
        return math.sqrt(0.5) if self.beta == 0.0 else super().theorem_step()


@dataclass(frozen=True, kw_only=True)
class MTPO(GDA):
    """Multi-turn preference optimization: GDA in every state, with regularised action values as payoffs.

    `π_{t+1}(·|s) ∝ π_t(·|s)^{1−ηβ} μ(·|s)^{ηβ} exp(η Q_h^{π_t,π_t}(s, ·))`, where
    `Q_h^{π,π'}(s, a) = E[P(s_{H+1} ≻ π') − β Σ_{h'≥h} KL(π‖μ)[s_h'] | s_h = s, a_h = a]` and the opponent π'
    starts from the initial state, not from s.

    Guarantee (β > 0, last iterate): `KL_p(π*_β‖π_t) ≤ 32 H Q²/(β²(t+1))` with the default `η_t = 2/(β(t+2))`,
    Q bounding |Q_h| and |β log π_t/μ|.

    Source: Shani et al., arXiv:2405.14655, Theorem 4.2. One turn is GDA, that is INPO.
    """

    geometry: ClassVar[Geometry] = Geometry.PER_STATE


@dataclass(frozen=True, kw_only=True)
class MTPOTau(NashMD):
    """MTPO-τ: Nash-MD in every state, both players' action values being those of the mixture.

    `π_t^μ ∝ π_t^{1−ηβ} μ^{ηβ}` per state, then `π_{t+1}(·|s) ∝ π_t^μ(·|s) exp(η Q_h^{π_t^μ,π_t^μ}(s, ·))`.

    Guarantee (last iterate): `KL_p(π*_β‖π_t) ≤ 8 H Q²/(β²(t+1))` with the default `η_t = 2/(β(t+2))`, Q
    bounding |Q_h|; `9 H Q²/(β²(t+1))` for the mixture.

    Source: Shani et al., arXiv:2405.14655, Theorems B.2 and B.3.
    """

    geometry: ClassVar[Geometry] = Geometry.PER_STATE


@dataclass(frozen=True, kw_only=True)
class MPO(MWU):
    """Multi-step preference optimization: MWU in every state, with action values as payoffs.

    `π_{t+1}(·|s) ∝ π_t(·|s) exp(η E_{s',a'∼d_t} Q_h^{π_t,π_t}(s, ·, s', a'))`. The expectation over the
    opponent's place is what its occupancy measure does to the payoffs.

    Guarantee: average *occupancy*, `Gap(d̄_T) ≤ 4H² √(log(1/π̲)/T)` with `η = √(log(1/π̲)/(T H²))`, π̲ the
    smallest probability of an action under μ; for any η, theory/notes/markov.md. `eta` has no default: the
    theorem's step depends on T.

    Source: arXiv:2502.12678, Algorithm 1 and Theorem 4.
    """

    geometry: ClassVar[Geometry] = Geometry.PER_STATE
