"""The language: an algorithm is a short program of mirror steps over named policies.

A rule says which policy is pulled where and who its opponents are; it knows no game and holds no arrays.
An interpreter (`nashpref.solve`) evaluates its program exactly on a game.

Names that every interpreter knows: `current`, what is being solved for, and `reference`, the policy μ of
the KL regulariser. A rule may use any others. `reference` starts at μ; every other name starts where
`current` does.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np

from nashpref.policies import FloatArray

Weight = float | FloatArray
StepSize = float | Sequence[float] | Callable[[int], float]

ANCHOR_TOLERANCE = 1e-9


@dataclass(frozen=True)
class MirrorStep:
    """`log π_to ← Σ_k anchors[k]·log π_k + Σ_j payoffs[j]·q_j − log Z`, with `q_j(y) = P(y ≻ π_j) − 1/2`.

    Equivalently `argmax_π ⟨π, Σ_j payoffs[j]·q_j⟩ − Σ_k anchors[k]·KL(π‖π_k)`.

    Args:
        to: the policy that is written.
        anchors: proximal centres; weights that sum to one (negative ones extrapolate).
        payoffs: opponent → step size. Empty: a geometric mixture, or a copy.

    A weight is a float or, where a program stands for many iterations at once, an array `(T,)` with one
    value for each.

    Raises:
        ValueError: no anchors, or anchors that do not sum to one.
    """

    to: str
    anchors: Mapping[str, Weight]
    payoffs: Mapping[str, Weight] = field(default_factory=dict)

    def __post_init__(self) -> None:
        total = sum(self.anchors.values())
        error = abs(total - 1.0) if isinstance(total, float | int) else np.abs(total - 1.0).max()
        if not error <= ANCHOR_TOLERANCE:
            raise ValueError(f"anchors of {self.to!r} must sum to one: {dict(self.anchors)}")

    @cached_property
    def copied(self) -> str | None:
        """The policy that this step copies; None when it computes a new one."""
        return next(iter(self.anchors)) if len(self.anchors) == 1 and not self.payoffs else None


class Geometry(StrEnum):
    """What a mirror step moves in a Markov game. In a matrix game there is only one geometry."""

    OCCUPANCY = "occupancy"
    """Occupancy measures, with KL_p, the KL of trajectories, as divergence: the theorems are those of the
    matrix game of trajectories, and with deterministic dynamics the iterates are too."""
    WEIGHTED_OCCUPANCY = "weighted-occupancy"
    """Occupancy measures, with OMPO's divergence: step h = 1 … H has the weight H − h + 1."""
    PER_STATE = "per-state"
    """Each state's policy by itself, with regularised action values as payoffs (MTPO, MPO)."""


class UpdateRule(Protocol):
    """Anything that says which mirror steps make up iteration t = 0, 1, …

    When it has an attribute `beta`, the gap of its iterates is measured in the game regularised by β;
    `target_beta` overrides that for a rule whose β is only a means, as in COMAL. Without either the gap is
    that of the original game. An attribute `geometry` says in which geometry it is run on a Markov game.

    Returning the same tuple object for equal iterations lets the interpreters reuse their work.
    """

    def steps(self, t: int) -> Sequence[MirrorStep]:
        """The program of iteration t."""
        ...


@runtime_checkable
class ScheduledRule(UpdateRule, Protocol):
    """A rule that repeats one program, up to its step size: interpreters may ask for many at once."""

    def step_sizes(self, start: int, stop: int) -> FloatArray:
        """η_t for t = start … stop − 1."""
        ...

    def program(self, eta: Weight) -> Sequence[MirrorStep]:
        """The iteration with step size η; an array `(T,)` gives T iterations as array weights."""
        ...


@dataclass(frozen=True, kw_only=True)
class SteppedRule(ABC):
    """What the named rules share: one program, repeated with a constant or scheduled step size.

    Args:
        eta: the step size η: a float; η_0, η_1, … in a list, of which the last stays; a callable of
            t = 0, 1, …; or None for the rule's theorem's own.
    """

    eta: StepSize | None = None

    def __post_init__(self) -> None:
        check_rule_beta(self)
        if self.eta is not None:
            object.__setattr__(self, "eta", as_step_size(self.eta))
        # A step size that does not fit is refused here, not in the middle of a run.
        for t in range(len(self.eta) if isinstance(self.eta, tuple) else 1):
            self.steps(t)

    @abstractmethod
    def program(self, eta: Weight) -> tuple[MirrorStep, ...]:
        """The iteration with step size η: the lines of the paper."""

    @abstractmethod
    def theorem_step(self) -> StepSize:
        """The step size under which the rule's theorem holds."""

    def step_size(self, t: int) -> float:
        """η_t; raises `ValueError` unless it is finite and positive."""
        schedule = self._schedule
        eta = float(schedule(t)) if callable(schedule) else schedule
        if not (math.isfinite(eta) and eta > 0.0):
            raise ValueError(f"eta = {eta} at t = {t}: a step size must be finite and positive")
        return eta

    def step_sizes(self, start: int, stop: int) -> FloatArray:
        """η_t for t = start … stop − 1."""
        if not callable(self._schedule):
            return np.full(stop - start, self._schedule)
        return np.array([self.step_size(t) for t in range(start, stop)])

    def steps(self, t: int) -> tuple[MirrorStep, ...]:
        """The program of iteration t."""
        return self.program(self.step_size(t)) if callable(self._schedule) else self._constant

    @cached_property
    def _schedule(self) -> float | Callable[[int], float]:
        eta = self.theorem_step() if self.eta is None else self.eta
        if isinstance(eta, Sequence):
            values = tuple(eta)
            return lambda t: values[min(t, len(values) - 1)]
        return eta

    @cached_property
    def _constant(self) -> tuple[MirrorStep, ...]:
        return self.program(self.step_size(0))


def as_step_size(eta: Any) -> StepSize:
    """`eta`, with a list as a tuple, so that rules can be compared; `ValueError` for anything else."""
    if callable(eta) or isinstance(eta, float | int | np.number):
        return cast("StepSize", eta)
    try:
        values = () if isinstance(eta, str) else tuple(map(float, eta))
    except (TypeError, ValueError):
        values = ()
    if not values:
        raise ValueError(f"eta = {eta!r}: a number, a list of numbers or a callable of t is needed")
    return values


def toward_reference(name: str, weight: Weight) -> dict[str, Weight]:
    """Anchors `{name: 1 − w, reference: w}`: the explicit pull towards μ with w = ηβ.

    Raises `ValueError` when w > 1: the weight of the policy itself would be negative and the iteration
    would oscillate. (The implicit rules, MMD and Nash-MP, take any step.)
    """
    largest = float(np.max(weight))
    if largest > 1.0 + ANCHOR_TOLERANCE:
        raise ValueError(
            f"eta * beta = {largest:.6g} > 1: choose eta ≤ 1/beta, or an implicit rule (MMD, NashMP)"
        )
    if largest == 0.0:
        return {name: 1.0}
    return {name: 1.0 - weight, "reference": weight}


def decreasing(beta: float) -> Callable[[int], float]:
    """`η_t = 2/(β(t + 2))`, the schedule of the O(1/T) last-iterate theorems (Nash-MD, INPO, MTPO)."""
    if not beta > 0.0:
        raise ValueError("the schedule 2/(beta (t + 2)) needs beta > 0: pass eta")
    return lambda t: 2.0 / (beta * (t + 2))


def horizon(n: int, steps: int) -> float:
    """`η = √(8 log n / T)`: MWU's average over T iterates then has a gap of at most `√(2 log n / T)`.

    From `Gap(π̄_T) ≤ 2(D/(ηT) + η/8)` with D = log n, the largest KL to the uniform start.
    """
    return math.sqrt(8.0 * math.log(n) / steps)


def target_beta(rule: UpdateRule) -> float:
    """The β of the game whose equilibrium `rule` seeks (see `UpdateRule`)."""
    return float(getattr(rule, "target_beta", getattr(rule, "beta", 0.0)))


def check_rule_beta(rule: object) -> None:
    """Raise `ValueError` unless the rule's β, where it has one, is one number, finite and ≥ 0."""
    beta = getattr(rule, "beta", 0.0)
    if not isinstance(beta, float | int | np.number):
        raise ValueError(f"beta = {beta!r}: one number is needed, it is the game's; eta may be a list")
    if not (math.isfinite(beta) and beta >= 0.0):
        raise ValueError(f"beta = {beta}: the weight of the KL must be finite and ≥ 0")
