"""What every rule of this library satisfies, one function for each property.

A failure is an `AssertionError` that names the property, the rule, the game and its size.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from nashpref.equilibrium import equilibrium
from nashpref.games import zoo
from nashpref.games.matrix import MatrixGame
from nashpref.mirror import MirrorStep, ScheduledRule, UpdateRule, target_beta
from nashpref.policies import FloatArray
from nashpref.solve import solve
from nashpref.testing.cases import (
    SAME,
    STEPS,
    Case,
    cases,
    cases_at_equilibrium,
    condorcet_winners,
    require,
    same,
    tried_on,
)
from nashpref.testing.oracle import two_player_iterates
from nashpref.testing.strategies import preference_batches, preference_games
from nashpref.trace import Status, Trace

STAYS = 1e-10  # an equilibrium found by another solver, after STEPS iterations
LIMIT_STEPS = 20_000

# --- the program by itself ---


def _programs(rule: UpdateRule) -> Iterator[tuple[int, Sequence[MirrorStep]]]:
    for t in (*range(64), 999, 10**6):
        yield t, rule.steps(t)


def anchors_sum_to_one(rule: UpdateRule) -> None:
    """The anchors of every step sum to one within rounding: otherwise logits grow or shrink on their own."""
    for t, program in _programs(rule):
        for step in program:
            total = math.fsum(float(weight) for weight in step.anchors.values())
            require(
                abs(total - 1.0) <= 1e-14 * math.fsum(abs(float(weight)) for weight in step.anchors.values()),
                f"anchors_sum_to_one: at t = {t} those of {step.to!r} sum to {total!r}",
                rule,
            )


def schedule(rule: UpdateRule) -> None:
    """Weights are finite, step sizes positive, `current` is written, and `step_sizes` agrees with `steps`."""
    for t, program in _programs(rule):
        weights = [float(w) for step in program for w in (*step.anchors.values(), *step.payoffs.values())]
        require(all(map(math.isfinite, weights)), f"schedule: a weight at t = {t} is not finite", rule)
        require(
            any(step.to == "current" for step in program), f"schedule: t = {t} never writes 'current'", rule
        )
    if not isinstance(rule, ScheduledRule):
        return
    for start, stop in ((0, 64), (999, 1000), (10**6, 10**6 + 2)):
        etas = rule.step_sizes(start, stop)
        require(
            etas.shape == (stop - start,) and bool(np.all(np.isfinite(etas) & (etas > 0.0))),
            f"schedule: step_sizes({start}, {stop}) = {etas} are not {stop - start} positive numbers",
            rule,
        )
        together = _weights(rule.program(etas))
        for t in range(start, stop):
            alone = _weights(rule.steps(t))
            require(
                together.keys() == alone.keys()
                and all(math.isclose(_at(together[k], t - start), alone[k], rel_tol=SAME) for k in alone),
                f"schedule: program(step_sizes({start}, {stop})) is not steps({t}) at t = {t}",
                rule,
            )


def _weights(program: Sequence[MirrorStep]) -> dict[tuple[int, str, str, str], Any]:
    """Every weight of a program by its place in it."""
    return {
        (k, step.to, kind, name): weight
        for k, step in enumerate(program)
        for kind, terms in (("anchor", step.anchors), ("payoff", step.payoffs))
        for name, weight in terms.items()
    }


def _at(weight: Any, column: int) -> float:
    return float(weight[column] if np.ndim(weight) else weight)


@tried_on(cases(preference_games()))
def determinism(rule: UpdateRule, case: Case) -> None:
    """A rule is a function of t: asked again, in another order, it gives the same program and iterates."""
    forward = [list(rule.steps(t)) for t in range(STEPS)]
    backward = [list(rule.steps(t)) for t in reversed(range(STEPS))]
    require(forward == backward[::-1], "steps(t) depends on the calls before it", rule)
    first, second = case.iterates(rule), case.iterates(rule)
    same(first, second, "running twice", rule, case, tolerance=0.0)


# --- the iterates ---


@dataclass(frozen=True)
class Scaled:
    """`rule` on payoffs `scale` times as large."""

    rule: UpdateRule
    scale: float

    @property
    def beta(self) -> float:
        """That of the game which the rule solves."""
        return target_beta(self.rule)

    def steps(self, t: int) -> Sequence[MirrorStep]:
        """The rule's program with other step sizes."""
        return [
            MirrorStep(step.to, step.anchors, {name: self.scale * w for name, w in step.payoffs.items()})
            for step in self.rule.steps(t)
        ]


@tried_on(st.tuples(cases(preference_games(), spread=None), st.sampled_from([1e-12, 1e-3, 1.0, 1e3, 1e6])))
def simplex(rule: UpdateRule, case: tuple[Case, float]) -> None:
    """Every iterate is a policy and every gap a number, from masses of 1e-300, at payoffs of 1e-12 … 1e6."""
    where, scale = case
    on_simplex(where.run(Scaled(rule, scale)), rule, f"payoffs times {scale:g}\n{where}")


def on_simplex(trace: Trace, rule: UpdateRule, at: str) -> None:
    """Policies are policies and gaps are numbers."""
    pi, log_pi = np.asarray(trace.policies), trace.log_policy
    require(trace.status is not Status.NON_FINITE, "the iterates overflow", rule, at)
    require(bool(np.isfinite(log_pi).all()), f"log π = {log_pi}", rule, at)
    require(bool(((pi >= 0.0) & (pi <= 1.0)).all()), "a probability outside [0, 1]", rule, at)
    require(bool((np.abs(pi.sum(axis=-1) - 1.0) <= SAME).all()), "a policy off the simplex", rule, at)
    for name in ("gap", "unregularised_gap", "average_gap"):
        gap = getattr(trace, name)
        require(bool((np.isfinite(gap) & (gap >= -SAME)).all()), f"{name} = {gap}", rule, at)


@tried_on(st.tuples(cases(preference_games()), st.randoms(use_true_random=False)))
def permutation_equivariance(rule: UpdateRule, case: Any) -> None:
    """Renaming the responses renames the iterates."""
    plain, random = case
    order = list(range(plain.game.n))
    random.shuffle(order)
    P = plain.game.preferences[np.ix_(order, order)]
    renamed = Case(MatrixGame(P), plain.start[order], plain.reference[order])
    same(
        renamed.iterates(rule),
        plain.iterates(rule)[:, order],
        f"renaming the responses {order}",
        rule,
        plain,
    )


class _Shifted(MatrixGame):
    """The payoff vectors of a game plus a constant."""

    shift = 0.0

    def payoff(self, opponent: FloatArray) -> FloatArray:
        return super().payoff(opponent) + self.shift


@tried_on(st.tuples(cases(preference_games()), st.sampled_from([0.5, 3.0])))
def shift_invariance(rule: UpdateRule, case: tuple[Case, float]) -> None:
    """A constant added to every payoff (P instead of P − 1/2, say) changes nothing."""
    plain, shift = case
    game = _Shifted(plain.game.preferences)
    game.shift = shift
    shifted = dataclasses.replace(plain, game=game)
    same(shifted.iterates(rule), plain.iterates(rule), f"q + {shift}", rule, plain)


@tried_on(st.tuples(cases(preference_games()), st.integers(0, 5), st.floats(0.01, 0.99)))
def clones(rule: UpdateRule, case: tuple[Case, int, float]) -> None:
    """Splitting a response and its mass into two that tie leaves the sum of their masses as it was."""
    plain, index, share = case
    index %= plain.game.n

    def split(policy: FloatArray) -> FloatArray:
        parts = np.append(policy, (1.0 - share) * policy[index])
        parts[index] *= share
        return parts

    cloned = Case(zoo.with_clones(plain.game, index), split(plain.start), split(plain.reference))
    merged = cloned.iterates(rule)
    merged[:, index] += merged[:, -1]
    same(merged[:, :-1], plain.iterates(rule), f"of response {index}", rule, plain)


@tried_on(condorcet_winners())
def sign(rule: UpdateRule, case: tuple[Case, int]) -> None:
    """A response that beats every other gains mass in the first iteration: ascent, not descent."""
    where, winner = case
    before, after = where.iterates(rule, 1)[:, winner]
    require(after > before, f"Condorcet winner {winner} falls from {before} to {after}", rule, where)


@tried_on(cases(preference_games()))
def two_players(rule: UpdateRule, case: Case) -> None:
    """Self-play is the two-player game: played out by two players, both have the iterates of `solve`."""
    rows, columns = two_player_iterates(case.game, rule, case.start, case.reference, STEPS)
    same(rows, columns, "row against column player", rule, case)
    same(case.iterates(rule), rows, "self-play against the row player", rule, case)


@tried_on(cases(preference_batches()))
def batch_equals_loop(rule: UpdateRule, case: Case) -> None:
    """A batch is its games, one by one."""
    together = case.iterates(rule)
    for b, P in enumerate(case.game.preferences):
        alone = Case(MatrixGame(P), case.start[b], case.reference[b])
        same(together[:, b], alone.iterates(rule), f"game {b}", rule, case)


@tried_on(cases(st.one_of(preference_games(), preference_batches()), spread=None))
def compiled_equals_numpy(rule: UpdateRule, case: Case) -> None:
    """The compiled interpreter gives the iterates of the numpy one."""
    same(case.iterates(rule, compiled=True), case.iterates(rule), "compiled interpreter", rule, case)


# --- where the iterates go ---


@tried_on(st.data())
def fixed_point(rule: UpdateRule, data: st.DataObject) -> None:
    """An iteration that starts at the equilibrium, solved for independently, stays there.

    With β > 0 the equilibrium is that of the regularised game; with β = 0 an interior one of the original.
    """

    case = data.draw(cases_at_equilibrium(rule))
    iterates = case.iterates(rule)
    expected = np.broadcast_to(case.start, iterates.shape)
    same(iterates, expected, "leaving the equilibrium", rule, case, tolerance=STAYS)


def vanishing_steps(rule: UpdateRule) -> None:
    """The rule's schedule reaches the equilibrium, though no iteration of it leaves it in place."""
    beta = target_beta(rule)
    for game, seed in ((zoo.comal(), 0), (zoo.random_preferences(5, np.random.default_rng(1)), 1)):
        reference = np.random.default_rng(seed).dirichlet(np.full(game.n, 5.0))
        case = Case(game, reference, reference)
        checkpoints = [LIMIT_STEPS // 10, LIMIT_STEPS]
        trace = solve(game, rule, LIMIT_STEPS, reference=reference, record=checkpoints)
        pi = equilibrium(game, beta, reference).policy
        moved = float(np.abs(dataclasses.replace(case, start=pi).iterates(rule) - pi).max())
        vanishes(trace, moved, "vanishing_steps", rule, case)


def vanishes(trace: Trace, moved: float, name: str, rule: UpdateRule, case: object) -> None:
    """The gap falls between the last two recorded steps, a tenth of the run and its end.

    And an iteration has `moved` away from the equilibrium.
    """
    earlier, last = trace.gap[-2:]
    require(
        last <= max(earlier / 5.0, 1e-20),
        f"{name}: the gap is {earlier:.3g} after {trace.steps[-2]} and {last:.3g} after "
        f"{trace.steps[-1]} steps: it does not vanish",
        rule,
        case,
    )
    require(
        moved > STAYS,
        f"{name}: the equilibrium stays in place, so the fixed point is exact: "
        "either declare it, or the opponent is not the one intended",
        rule,
        case,
    )


def slowed(rule: Any, eta: float) -> UpdateRule:
    """The rule with another step size."""
    slow: UpdateRule = dataclasses.replace(rule, eta=eta)
    return slow


@tried_on(cases(preference_games(min_n=2), spread=3.0))
def small_steps(rule: UpdateRule, case: Case) -> None:
    """As η → 0 an iteration moves along the flow `d(log π)/dt = q_π + β log(μ/π) + c`, by at most η.

    Measured between iterations 10 and 20, when methods with a memory have settled. For a rule whose own β
    is only a means (COMAL), from the reference, where there is no pull.
    """
    eta = 1e-6
    beta = target_beta(rule)
    if getattr(rule, "beta", 0.0) > beta:
        case = dataclasses.replace(case, reference=case.start)
    iterates = case.iterates(slowed(rule, eta), 20)
    pi = iterates[10]
    flow = case.game.payoff(pi) + beta * np.log(case.reference / pi)
    follows_flow(pi, flow, (np.log(iterates[20]) - np.log(pi)) / (10.0 * eta), rule, case)


def follows_flow(pi: FloatArray, flow: FloatArray, moved: FloatArray, rule: UpdateRule, case: object) -> None:
    """By how much an iteration has `moved` log π, over η, is the flow but for its pace and constants."""
    flow = flow - (pi * flow).sum(axis=-1, keepdims=True)
    moved = moved - (pi * moved).sum(axis=-1, keepdims=True)
    speed2 = float((pi * flow**2).sum())
    assume(speed2 > 1e-6)
    pace = float((pi * flow * moved).sum()) / speed2
    require(
        1e-3 < pace < 1.0 + 1e-3,
        f"an iteration moves {pace:.4g} η along the flow; it should be in (0, 1]",
        rule,
        case,
    )
    error = float(np.abs(moved - pace * flow).max())
    scale = 1.0 + float(np.abs(flow).max())
    require(
        error <= 1e-3 * scale**2,
        f"the direction differs from the flow's by {error:.3g}",
        rule,
        case,
    )
