"""A theorem as an object: what it says, when it applies, and whether a run obeys it.

A theorem here is an inequality `measured_t ≤ bound_t` for t = 1, 2, … about the iterates of a rule on a game.
`Theorem.check` tests its assumptions on the numbers of a `Case`, runs the rule, and compares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np

from nashpref.dynamic_programming import regularised_gap
from nashpref.equilibrium import Equilibrium, equilibrium
from nashpref.exact.markov_equilibrium import solve_regularised as solve_markov_regularised
from nashpref.exact.regularised import solve_regularised
from nashpref.games.markov import MarkovGame
from nashpref.games.matrix import MatrixGame
from nashpref.mirror import Geometry, ScheduledRule, UpdateRule, target_beta
from nashpref.policies import FloatArray, check_policy, log_policy, uniform
from nashpref.solve import solve
from nashpref.theory.trajectories import Game, divergence
from nashpref.trace import Trace

TOLERANCE = 1e-9  # relative excess over a bound that is rounding
RESOLUTION = 1e-20  # gaps and divergences below this are rounding: π* itself is known to about 1e-13
CERTIFIED = 1e-14  # largest gap of a reference solution that may stand for π*


class Verdict(StrEnum):
    """What a check found."""

    HOLDS = "holds"
    FAILS = "fails"
    NOT_APPLICABLE = "not applicable"
    """An assumption is not met, or nothing happens: the run starts at the equilibrium."""


@dataclass(frozen=True, eq=False)
class Case:
    """A rule on a game: what a theorem is put to the test on. Everything is computed once, when asked for.

    Args:
        game: a single game, of either kind.
        rule: the rule, with its step size and β.
        reference: μ, and the start of the run; uniform when None.
        steps: length of the run.
        compiled: the interpreter, as in `solve`.
        geometry: of a run on a Markov game, as in `solve`.

    Raises:
        ValueError: a batch of games, or a reference that is not a positive policy.
    """

    game: Game
    rule: UpdateRule
    reference: FloatArray | None = None
    steps: int = 1000
    compiled: bool | None = None
    geometry: Geometry | None = None

    def __post_init__(self) -> None:
        if isinstance(self.game, MatrixGame) and self.game.batch is not None:
            raise ValueError(f"a theorem is checked on one game; this is a batch of {self.game.batch}")
        self.mu  # noqa: B018  (a bad reference is refused here)

    @cached_property
    def mu(self) -> FloatArray:
        """The reference μ, in the shape of the game's policies."""
        given = uniform(self.game.policy_shape) if self.reference is None else self.reference
        return check_policy(given, self.game.policy_shape, "reference", positive=True)

    @property
    def beta(self) -> float:
        """The rule's β; 0 without one."""
        return float(getattr(self.rule, "beta", 0.0))

    @property
    def markov_game(self) -> MarkovGame:
        """The game, where a theorem is about Markov games alone."""
        assert isinstance(self.game, MarkovGame)  # `Theorem.unmet` looks first
        return self.game

    @cached_property
    def equilibrium(self) -> Equilibrium:
        """The equilibrium that the rule seeks, with its certificate."""
        return equilibrium(self.game, target_beta(self.rule), self.mu)

    @cached_property
    def etas(self) -> FloatArray:
        """`η_t` for t = 0 … steps − 1. Raises `ValueError` for a rule that has no step size."""
        if not isinstance(self.rule, ScheduledRule):
            raise ValueError(f"{self.rule} has no step size")
        return self.rule.step_sizes(0, max(self.steps, 1))

    @cached_property
    def trace(self) -> Trace:
        """The run, every iterate measured and kept."""
        return solve(
            self.game,
            self.rule,
            self.steps,
            reference=self.mu,
            equilibrium=self.equilibrium.policy,
            record=1,
            keep_policies=True,
            compiled=self.compiled,
            geometry=self.geometry,
        )

    @cached_property
    def proximal_points(self) -> tuple[FloatArray, FloatArray]:
        """COMAL's outer loop with exact inner solutions: π_{k+1} is the equilibrium regularised towards π_k.

        `KL(π*‖π_k)` for k = 0 … steps, and the gaps that certify the inner solutions, k = 1 … steps.
        """
        log_policies, gaps = [log_policy(self.mu)], []
        for _ in range(self.steps):
            log_pi, gap = self._inner_solution(log_policies[-1])
            log_policies.append(log_pi)
            gaps.append(gap)
        return divergence(self.game, self.equilibrium.policy, np.array(log_policies)), np.array(gaps)

    def _inner_solution(self, log_mu: FloatArray) -> tuple[FloatArray, float]:
        if isinstance(self.game, MatrixGame):
            solution = solve_regularised(self.game.payoffs, self.beta, log_mu)
            return solution.log_policy, float(solution.gap)
        game = self.game
        flat_mu = game.flat(log_mu)
        log_pi, _ = solve_markov_regularised(game, self.beta, flat_mu)
        plan = game.plan(np.exp(log_pi))
        gap = regularised_gap(game, log_pi, plan, game.payoff(plan), self.beta, flat_mu)
        return game.full(log_pi, log_mu), gap


Assumption = Callable[[Case], str | None]
"""Returns what is wrong, with the numbers, or None when the assumption is met."""


@dataclass(frozen=True)
class Check:
    """The result of a check.

    Attributes:
        verdict: holds, fails or not applicable.
        ratio: the largest `measured_t / bound_t`; at most 1 where the theorem holds. NaN if not applicable.
        t: where it is reached; 0 if not applicable, or when the statement is about no iterate.
        unmet: why the theorem is not applicable.
    """

    verdict: Verdict
    ratio: float
    t: int
    unmet: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Theorem:
    """An inequality `measured_t ≤ bound_t`, t = 1, 2, …, with what it takes.

    Attributes:
        name: what the verdict table calls it.
        statement: the inequality as an equation.
        source: where it is printed or proved.
        rules: the rules that it is about.
        rule: the game, μ and β ↦ the rule with the step size under which `check_all` tests it.
        regularised: whether it needs β > 0; if not, it needs β = 0.
        assumptions: what is required of the case besides.
        bound: the right-hand side, an array over t.
        measured: the left-hand side at t = 1, 2, …; as many values as the run has.
        steps: length of the run in `check_all`; 0 for a statement about the equilibrium alone.
        expected: the verdict that `check_all` should reach.
        games: the kinds of game that it is about.
        geometry: the geometry of a Markov game that it is about; None for any.
    """

    name: str
    statement: str
    source: str
    rules: tuple[type, ...]
    rule: Callable[[Game, FloatArray, float], UpdateRule]
    regularised: bool
    assumptions: tuple[Assumption, ...]
    bound: Callable[[Case, FloatArray], FloatArray]
    measured: Callable[[Case], FloatArray]
    steps: int = 2000
    expected: Verdict = Verdict.HOLDS
    games: tuple[type, ...] = (MatrixGame, MarkovGame)
    geometry: Geometry | None = Geometry.OCCUPANCY

    def unmet(self, case: Case) -> tuple[str, ...]:
        """The assumptions that `case` does not meet, with the numbers; empty when the theorem applies."""
        if not isinstance(case.rule, self.rules):
            names = " or ".join(kind.__name__ for kind in self.rules)
            return (f"the rule is {type(case.rule).__name__}, not {names}",)
        if not isinstance(case.game, self.games):
            return (f"the theorem is not about a {type(case.game).__name__}",)
        if isinstance(case.game, MarkovGame) and self.geometry is not None:
            geometry = case.geometry or getattr(case.rule, "geometry", Geometry.OCCUPANCY)
            if geometry != self.geometry:
                return (f"the geometry is {str(geometry)!r}, not {str(self.geometry)!r}",)
        if self.regularised != (case.beta > 0.0):
            return (f"β = {case.beta:g}: the theorem is about β {'> 0' if self.regularised else '= 0'}",)
        return tuple(reason for assumption in self.assumptions if (reason := assumption(case)) is not None)

    def check(self, case: Case) -> Check:
        """Run the case and compare, once its assumptions are met.

        Quantities below 1e-20 are not compared: in float64 they are rounding.
        """
        if unmet := self.unmet(case):
            return Check(Verdict.NOT_APPLICABLE, np.nan, 0, unmet)
        measured = self.measured(case)
        t = np.arange(1.0, len(measured) + 1.0)
        bound = self.bound(case, t)
        visible = ~((measured <= RESOLUTION) & (np.abs(bound) <= RESOLUTION))
        if not visible.any():
            return Check(Verdict.NOT_APPLICABLE, np.nan, 0, ("the run starts at the equilibrium",))
        ratio = np.full(len(t), np.inf)
        np.divide(measured, bound, out=ratio, where=bound > 0.0)
        ratio[~visible] = 0.0
        worst = int(np.argmax(ratio))
        verdict = Verdict.HOLDS if ratio[worst] <= 1.0 + TOLERANCE else Verdict.FAILS
        return Check(verdict, float(ratio[worst]), worst + 1 if self.steps else 0)
