"""What the exact interpreters of mirror steps share: named policies, a run's state, and its loop.

An interpreter evaluates a step on one kind of game and measures what comes out: `matrix_interpreter` on a
preference matrix, `markov_interpreter` on a Markov game, in one of two geometries.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from nashpref.mirror import MirrorStep, UpdateRule, Weight
from nashpref.policies import FloatArray, IntArray


class Game(Protocol):
    """What a policy can be played on: payoffs are linear in its plan, and so is averaging."""

    def plan(self, policy: FloatArray) -> FloatArray:
        """What of a policy payoffs are linear in: itself, or its occupancy measure."""
        ...

    def payoff(self, plan: FloatArray) -> FloatArray:
        """What an opponent with this plan makes every choice worth."""
        ...


class Iterate:
    """One policy on one game, with its plan and the payoffs against it computed at most once.

    Copying a policy shares the object, so a payoff that is known under one name is known under all.
    """

    __slots__ = ("_game", "_payoff", "_plan", "log_policy", "policy")

    def __init__(
        self, game: Game, log_policy: FloatArray, policy: FloatArray, payoff: FloatArray | None = None
    ) -> None:
        self._game = game
        self._plan: FloatArray | None = None
        self._payoff = payoff
        self.log_policy = log_policy
        self.policy = policy

    @property
    def plan(self) -> FloatArray:
        """The policy itself in a matrix game, its occupancy measure in a Markov game."""
        if self._plan is None:
            self._plan = self._game.plan(self.policy)
        return self._plan

    @property
    def payoff(self) -> FloatArray:
        """`q(y) = P(y ≻ π) − 1/2`, and its counterpart for every place of a Markov game."""
        if self._payoff is None:
            self._payoff = self._game.payoff(self.plan)
        return self._payoff

    @property
    def known_payoff(self) -> FloatArray | None:
        """The payoff vector if somebody has asked for it."""
        return self._payoff


class NamedPolicies(dict[str, Iterate]):
    """The policies of a run by name; a name not yet written is where `current` started."""

    def __init__(self, start: Iterate, named: Mapping[str, Iterate]) -> None:
        super().__init__(named)
        self.start = start

    def __missing__(self, name: str) -> Iterate:
        return self.start

    def copy(self) -> NamedPolicies:
        """A shallow copy; iterates are immutable."""
        return NamedPolicies(self.start, self)


@dataclass
class State:
    """A run in progress after `step` iterations.

    `plan_sum` counts iterates 0..step. `payoff_sum` counts 0..step−1 and is None once an iterate was
    left whose payoff vector no step had needed: the average's payoff then takes a product of its own.
    """

    step: int
    policies: NamedPolicies
    plan_sum: FloatArray
    payoff_sum: FloatArray | None

    def copy(self) -> State:
        """An independent state that shares the (immutable) iterates."""
        payoff_sum = None if self.payoff_sum is None else self.payoff_sum.copy()
        return State(self.step, self.policies.copy(), self.plan_sum.copy(), payoff_sum)


@dataclass(frozen=True)
class Target:
    """What a run is measured against, in the shape of the game's policies.

    Attributes:
        beta: weight of the KL in the game that the rule solves.
        reference: μ.
        equilibrium: π*, where divergences from it are wanted.
        keep_policies: whether every recorded policy is kept.
    """

    beta: float
    reference: FloatArray
    equilibrium: FloatArray | None
    keep_policies: bool


class Rows(Protocol):
    """What is noted of the recorded steps of a chunk."""

    steps: IntArray
    filled: int

    @property
    def capacity(self) -> int:
        """How many steps there is space for."""
        ...

    def record(self, state: State) -> None:
        """Note the current iterate and the average."""
        ...

    def columns(self) -> dict[str, FloatArray]:
        """The measurements of the filled rows by name, `(R, …)`."""
        ...

    def policy(self, row: int) -> FloatArray:
        """The policy of a row, where policies are watched."""
        ...


class Interpreter(Protocol):
    """Evaluates mirror steps exactly on one game."""

    @property
    def target(self) -> Target:
        """What runs are measured against."""
        ...

    def iterate(
        self, log_policy: FloatArray, policy: FloatArray, payoff: FloatArray | None = None
    ) -> Iterate:
        """A policy given in the shape of the game's policies."""
        ...

    def evaluate(self, step: MirrorStep, policies: NamedPolicies) -> Iterate:
        """One mirror step."""
        ...

    def rows(self, most: int, watched: bool) -> Rows:
        """Space for up to `most` recorded steps; `watched` if their policies will be looked at."""
        ...

    def flat(self, array: FloatArray) -> FloatArray:
        """From the shape of the game's policies to that of iterates."""
        ...

    def full(self, array: FloatArray, fill: FloatArray | float) -> FloatArray:
        """And back; `fill` is for places that no iterate has."""
        ...

    def average_policy(self, state: State) -> FloatArray:
        """The policy whose plan is the mean of all iterates' plans."""
        ...


def weighted_sum(weights: Mapping[str, Weight], vector: Callable[[str], FloatArray]) -> FloatArray:
    """`Σ_k weights[k]·vector(k)`: a new array, unless it is one vector as it stands."""
    total, *rest = (vector(name) if w == 1.0 else w * vector(name) for name, w in weights.items())
    for term in rest:
        total = total + term
    return total


def advance(
    interpreter: Interpreter,
    rule: UpdateRule,
    state: State,
    until: int,
    grid: IntArray,
    rows: Rows,
    stop: threading.Event,
) -> None:
    """Run `rule` up to iteration `until`, or until `stop` is set; the steps in `grid` are left in `rows`."""
    rows.filled = 0
    wanted = iter(grid.tolist())
    next_record = next(wanted, -1)
    policies = state.policies
    while state.step < until and not stop.is_set():
        left = policies["current"]
        for step in rule.steps(state.step):
            copied = step.copied
            policies[step.to] = interpreter.evaluate(step, policies) if copied is None else policies[copied]
        if left.known_payoff is None:
            state.payoff_sum = None
        elif state.payoff_sum is not None:
            state.payoff_sum += left.known_payoff
        state.plan_sum += policies["current"].plan
        state.step += 1
        if state.step == next_record:
            rows.record(state)
            next_record = next(wanted, -1)
