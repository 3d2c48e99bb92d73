"""The local spectrum: how fast, and up to which step size, any rule contracts near the equilibrium.

Near π* the deviations d = log π − log π* (modulo constants) move linearly. With `Σ = diag π* − π*π*ᵀ` the
payoff vector moves by `AΣd`, and AΣ has eigenvalues ±iω_k: in each mode a mirror step is a linear map with
`iω` in place of the game. A whole program is then a small complex matrix over its named policies, whose
spectral radius ρ is the rate of that mode. `KL(π*‖π_t)` contracts by the largest ρ² (`notes/spectrum.md`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nashpref.equilibrium import equilibrium
from nashpref.games.matrix import MatrixGame
from nashpref.mirror import MirrorStep, UpdateRule, target_beta
from nashpref.policies import FloatArray

SUPPORT = 1e-9  # smaller probabilities of an unregularised equilibrium are zeros of the solver
GRID = 60  # step sizes tried per factor of ten before bisection


@dataclass(frozen=True)
class Spectrum:
    """The linearised game at its equilibrium with weight β.

    Attributes:
        beta: β.
        frequencies: the ω_k ≥ 0 of all modes, descending, one for each dimension of the simplex around π*
            (ω ≠ 0 twice, for ±iω): shape `(support − 1,)`.
        drift: `max q_{π*}(y)` over the responses outside the support of π*, ≤ 0: their mass decays by
            `e^{η·drift}` a step. −∞ when there are none, as always with β > 0.
    """

    beta: float
    frequencies: FloatArray = field(repr=False)
    drift: float

    @property
    def omega(self) -> float:
        """ω = ρ(AΣ), the largest frequency; 0 at a pure equilibrium."""
        return float(self.frequencies.max(initial=0.0))

    def factor(self, rule: UpdateRule) -> float:
        """The predicted factor `lim KL(π*‖π_{t+1})/KL(π*‖π_t)`; above 1 the equilibrium repels.

        `max(max_k ρ(ω_k)², e^{η·drift})`, ρ(ω) the spectral radius of one iteration in the mode ω. Exact
        for any program of mirror steps with a constant step size. At exactly 1 the step is the limit, or the
        equilibrium is not isolated. A slow mode that lives on responses of tiny probability is seen only once
        the KL is as small as that probability; before, the KL falls faster than this.

        Raises:
            ValueError: the rule's β is another, its program changes with t, it moves the reference, or the
                equilibrium is not its fixed point (Nash-MD with a constant step).
        """
        program, names = self._program(rule)
        M = _transfer(program, names, self.frequencies)
        squared = np.abs(np.linalg.eigvals(M)).max(axis=-1) ** 2 if len(M) else np.zeros(0)
        outside = math.exp(_gain(program, names) * self.drift) if self.drift > -math.inf else 0.0
        return float(squared.max(initial=outside))

    def step_limit(self, family: Callable[[float], UpdateRule]) -> float:
        """The η up to which `factor(family(η)) < 1`: 0 if no step contracts, ∞ if every step does.

        `family` maps η to the rule, e.g. `lambda eta: npf.EGPO(beta=0.1, eta=eta)`. A step that the rule
        itself refuses (ηβ > 1) is beyond the limit.
        """
        scale = max(self.omega, self.beta)
        if scale == 0.0:
            return math.inf if self.drift < 0.0 and not self.frequencies.size else 0.0
        start = 1e-3 * (self.beta / (self.beta**2 + self.omega**2) if self.beta > 0.0 else 1.0 / scale)
        low, decades = 0.0, math.log10(1e4 / (scale * start))
        for eta in start * np.logspace(0.0, decades, int(GRID * decades)):
            if not self._contracts(family, float(eta)):
                break
            low = float(eta)
        else:
            return math.inf
        if low == 0.0:
            return 0.0
        high = float(eta)
        while high - low > 1e-13 * high:
            middle = (low + high) / 2.0
            low, high = (middle, high) if self._contracts(family, middle) else (low, middle)
        return low

    def _contracts(self, family: Callable[[float], UpdateRule], eta: float) -> bool:
        try:
            rule = family(eta)
        except ValueError:
            return False
        return self.factor(rule) < 1.0

    def _program(self, rule: UpdateRule) -> tuple[Sequence[MirrorStep], list[str]]:
        """The program that the rule repeats and its names but the reference, checked."""
        if (beta := target_beta(rule)) != self.beta:
            raise ValueError(
                f"{rule} seeks the equilibrium for β = {beta:g}; this spectrum has {self.beta:g}"
            )
        program = rule.steps(0)
        if program != rule.steps(1):
            raise ValueError(f"{rule} changes with t: the spectrum is that of a constant step")
        if any(step.to == "reference" for step in program):
            raise ValueError(f"{rule} moves its reference: it has no fixed spectrum")
        for step in program:
            pull = float(step.anchors.get("reference", 0.0))
            gain = float(sum(step.payoffs.values()))
            if abs(pull - self.beta * gain) > 1e-12:
                raise ValueError(
                    f"π* is not a fixed point of {rule}: {step.to!r} is pulled to the reference with weight "
                    f"{pull:.6g}, against payoffs of {gain:.6g} β"
                )
        used = {"current": None} | {k: None for s in program for k in (s.to, *s.anchors, *s.payoffs)}
        return program, [name for name in used if name != "reference"]


def spectrum(game: MatrixGame, beta: float = 0.0, reference: ArrayLike | None = None) -> Spectrum:
    """The spectrum of a single game at its equilibrium with weight β towards the reference.

    With D = diag(√π*) and u = √π*, `Σ = D(I−uuᵀ)D`, so that AΣ shares its nonzero eigenvalues with the
    skew matrix `(I−uuᵀ)DAD(I−uuᵀ)`. With β = 0 it is that of the support of π*; where there are several
    equilibria, of the one that `equilibrium` returns, and then some ω or the drift is zero.

    Raises:
        ValueError: a batch.
    """
    if game.batch is not None:
        raise ValueError(f"a spectrum is that of one game; this is a batch of {game.batch}")
    pi = equilibrium(game, beta, reference).policy
    support = pi > (SUPPORT if beta == 0.0 else -1.0)
    root = np.sqrt(pi[support])
    root /= np.linalg.norm(root)
    projected = np.diag(root) - np.outer(root * root, root)  # D(I − uuᵀ)
    skew = projected.T @ game.payoffs[np.ix_(support, support)] @ projected
    omegas = np.sort(np.abs(np.linalg.eigvalsh(1j * skew)))[::-1]
    drift = float(game.payoff(pi)[~support].max(initial=-math.inf))
    return Spectrum(
        beta, omegas[:-1], drift
    )  # the last is the zero of the direction u, which is no deviation


def _transfer(program: Sequence[MirrorStep], names: list[str], omegas: FloatArray) -> NDArray[np.complex128]:
    """One iteration on the deviations of the named policies, in each mode: `(modes, names, names)`.

    Row `to` becomes `Σ_k anchors[k]·row k + iω Σ_j payoffs[j]·row j`; the reference does not deviate.
    """
    M = np.zeros((len(omegas), len(names), len(names)), dtype=np.complex128)
    M[:] = np.eye(len(names))
    at = {name: k for k, name in enumerate(names)}
    for step in program:
        row = np.zeros((len(omegas), len(names)), dtype=np.complex128)
        for name, weight in step.anchors.items():
            if name != "reference":
                row += weight * M[:, at[name]]
        for name, weight in step.payoffs.items():
            if name != "reference":
                row += 1j * (omegas * weight)[:, None] * M[:, at[name]]
        M[:, at[step.to]] = row
    return M


def _gain(program: Sequence[MirrorStep], names: list[str]) -> float:
    """By how many payoffs q an iteration moves the log-probabilities in the long run, when q is constant.

    One iteration is x ← Mx + g. In the long run all names move alike, x_t = x + t·r: `(M − I)x + g = r`.
    """
    M = _transfer(program, names, np.zeros(1))[0].real
    g = np.zeros(len(names))
    at = {name: k for k, name in enumerate(names)}
    for step in program:
        g[at[step.to]] = sum(weight * g[at[name]] for name, weight in step.anchors.items())
        g[at[step.to]] += sum(step.payoffs.values())
    system = np.column_stack([np.eye(len(names)) - M, np.ones(len(names))])
    return float(np.linalg.lstsq(system, g, rcond=None)[0][-1])
