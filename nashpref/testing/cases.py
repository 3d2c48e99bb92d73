"""What a property of a rule is tried on, and how its failure reads."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from nashpref.equilibrium import equilibrium
from nashpref.games import zoo
from nashpref.games.matrix import MatrixGame
from nashpref.mirror import UpdateRule, target_beta
from nashpref.policies import FloatArray, uniform
from nashpref.solve import solve
from nashpref.testing.strategies import interior_equilibria, policies, preference_games, references
from nashpref.trace import Trace

STEPS = 8
SAME = 1e-12  # two exact computations of the same iterate, in different order


@dataclass(frozen=True, eq=False)
class Case:
    """A game with a start and a reference."""

    game: MatrixGame
    start: FloatArray
    reference: FloatArray

    def __str__(self) -> str:
        size = f"n = {self.game.n}" + (f", batch of {self.game.batch}" if self.game.batch else "")
        return f"game: {size}, P =\n{self.game.preferences}\nstart: {self.start}\nreference: {self.reference}"

    def run(self, rule: UpdateRule, steps: int = STEPS, *, compiled: bool = False) -> Trace:
        """The trace of `rule` with every iterate."""
        return solve(
            self.game,
            rule,
            steps,
            start=self.start,
            reference=self.reference,
            record=1,
            keep_policies=True,
            compiled=compiled,
        )

    def iterates(self, rule: UpdateRule, steps: int = STEPS, *, compiled: bool = False) -> FloatArray:
        """The policies π_0 … π_steps."""
        return recorded(self.run(rule, steps, compiled=compiled), steps, rule, self)


@st.composite
def cases(draw: DrawFn, games: SearchStrategy[MatrixGame], *, spread: float | None = 5.0) -> Case:
    """A game of the strategy `games` with any start and reference; `spread` as in `policies`."""
    game = draw(games)
    shape = game.policy_shape
    return Case(game, draw(policies(shape, spread=spread)), draw(references(shape)))


@st.composite
def cases_at_equilibrium(draw: DrawFn, rule: UpdateRule) -> Case:
    """A start at the equilibrium that `rule` seeks, found without any rule."""
    beta = target_beta(rule)
    if beta > 0.0:
        game = draw(preference_games())
        reference = draw(policies(game.n, spread=3.0))
        pi = equilibrium(game, beta, reference).policy
        assume(pi.min() > 0.0)  # a very small β can push a response below the smallest float
        return Case(game, pi, reference)
    game, pi = draw(interior_equilibria())
    # A rule whose own β is only a means (COMAL) is at rest where its reference is at equilibrium too.
    moving = getattr(rule, "beta", 0.0) > 0.0
    return Case(game, pi, pi if moving else draw(references(game.n)))


@st.composite
def condorcet_winners(draw: DrawFn) -> tuple[Case, int]:
    """A response that always wins, at a random place of any game; everything starts uniform."""
    others = draw(preference_games(max_n=5))
    game = zoo.blockwise([MatrixGame([[0.5]]), others])
    winner = draw(st.integers(0, game.n - 1))
    order = np.insert(np.arange(1, game.n), winner, 0)
    everywhere = uniform((game.n,))
    return Case(MatrixGame(game.preferences[np.ix_(order, order)]), everywhere, everywhere), winner


Property = Callable[[UpdateRule], None]


def tried_on(
    cases: SearchStrategy[Any], *, share: int = 5
) -> Callable[[Callable[[UpdateRule, Any], None]], Property]:
    """Try a property on one in `share` of the profile's examples, for there are many; name its failure."""

    def decorate(check: Callable[[UpdateRule, Any], None]) -> Property:
        def named(rule: UpdateRule, case: Any) -> None:
            try:
                check(rule, case)
            except AssertionError as error:
                raise AssertionError(f"{check.__name__}: {error}") from None

        named.__name__, named.__doc__ = check.__name__, check.__doc__

        named.__name__, named.__doc__ = check.__name__, check.__doc__

        @functools.wraps(check)
        def tried(rule: UpdateRule) -> None:
            profile = settings()  # as it is when the property is tried
            chosen = settings(
                max_examples=max(1, profile.max_examples // share),
                deadline=None,
                phases=set(profile.phases) - {Phase.explain},
                report_multiple_bugs=False,
            )
            chosen(given(case=cases)(named))(rule)

        return tried

    return decorate


def recorded(trace: Trace, steps: int, rule: UpdateRule, case: object) -> FloatArray:
    """The policies π_0 … π_steps of a trace that was to have them all."""
    if trace.policies is None or len(trace.policies) != steps + 1:
        raise AssertionError(f"{rule!r} leaves the finite numbers at step {trace.steps[-1] + 1}\n{case}")
    return trace.policies


def require(holds: bool | np.bool_, what: str, rule: UpdateRule, case: object = "") -> None:
    """Raise the `AssertionError` that says `what` failed, for which rule and on which game."""
    if not holds:
        raise AssertionError(f"{what}\nrule: {rule!r}\n{case}")


def same(
    actual: FloatArray,
    expected: FloatArray,
    what: str,
    rule: UpdateRule,
    case: object,
    tolerance: float = SAME,
) -> None:
    """Iterates `(T + 1, …)` agree; the first step at which they do not is named."""
    error = np.abs(actual - expected).reshape(len(expected), -1).max(axis=1)
    if not (error <= tolerance).all():
        t = int(np.argmin(error <= tolerance))
        raise AssertionError(
            f"{what} fails at step {t}: policies differ by {error[t]:.3g} > {tolerance:g}\n"
            f"rule: {rule!r}\n{case}"
        )
