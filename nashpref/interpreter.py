"""The exact interpreter of mirror steps on a matrix game, one numpy expression a step."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nashpref.games.matrix import MatrixGame
from nashpref.mirror import MirrorStep, UpdateRule
from nashpref.policies import FloatArray, IntArray, largest, normalise


class Iterate:
    """One policy on one game, with the payoff vector `q = A π` computed at most once.

    Copying a policy shares the object, so a payoff that is known under one name is known under all.
    """

    __slots__ = ("_game", "_payoff", "log_policy", "policy")

    def __init__(
        self, game: MatrixGame, log_policy: FloatArray, policy: FloatArray, payoff: FloatArray | None = None
    ) -> None:
        self._game = game
        self._payoff = payoff
        self.log_policy = log_policy
        self.policy = policy

    @property
    def payoff(self) -> FloatArray:
        """`q(y) = P(y ≻ π) − 1/2`."""
        if self._payoff is None:
            self._payoff = self._game.payoff(self.policy)
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

    `policy_sum` counts iterates 0..step. `payoff_sum` counts 0..step−1 and is None once an iterate was
    left whose payoff vector no step had needed: the average's payoff then takes a product of its own.
    """

    step: int
    policies: NamedPolicies
    policy_sum: FloatArray
    payoff_sum: FloatArray | None

    def copy(self) -> State:
        """An independent state that shares the (immutable) iterates."""
        payoff_sum = None if self.payoff_sum is None else self.payoff_sum.copy()
        return State(self.step, self.policies.copy(), self.policy_sum.copy(), payoff_sum)


@dataclass
class Rows:
    """What is measured of up to R recorded steps.

    The largest payoffs, `(R[, B])`, are enough for the unregularised gaps. The vectors behind the other
    measurements, `([B,] R, n)`, have no rows unless they are wanted. A game's vectors lie together: the
    compiled interpreter writes them one game after the other.
    """

    steps: IntArray
    largest: FloatArray
    average_largest: FloatArray
    log_policy: FloatArray
    payoff: FloatArray
    average: FloatArray
    average_payoff: FloatArray
    filled: int = 0

    @staticmethod
    def empty(rows: int, shape: tuple[int, ...], vectors: bool) -> Rows:
        """Space for `rows` recorded steps of policies of `shape`."""
        *batch, n = shape
        kept = (4, *batch, rows if vectors else 0, n)
        return Rows(np.zeros(rows, dtype=np.int64), *np.empty((2, rows, *batch)), *np.empty(kept))

    def record(self, game: MatrixGame, state: State) -> None:
        """Note the current iterate and the average."""
        current, k, count = state.policies["current"], self.filled, state.step + 1
        if state.payoff_sum is None:
            total_payoff = game.payoff(state.policy_sum)
        else:
            total_payoff = state.payoff_sum + current.payoff
        self.largest[k] = largest(current.payoff)
        self.average_largest[k] = largest(total_payoff) / count
        if self.log_policy.size:
            self.log_policy[..., k, :] = current.log_policy
            self.payoff[..., k, :] = current.payoff
            self.average[..., k, :] = state.policy_sum / count
            self.average_payoff[..., k, :] = total_payoff / count
        self.steps[k] = state.step
        self.filled += 1


def evaluate(step: MirrorStep, policies: NamedPolicies, game: MatrixGame) -> Iterate:
    """One mirror step, exactly: `Σ_k w_k log π_k + Σ_j g_j q_j`, normalised."""
    if step.copied is not None:
        return policies[step.copied]
    terms = [(weight, policies[name].log_policy) for name, weight in step.anchors.items()]
    terms += [(weight, policies[name].payoff) for name, weight in step.payoffs.items()]
    logits, *rest = (vector if weight == 1.0 else weight * vector for weight, vector in terms)
    for vector in rest:
        logits = logits + vector
    return Iterate(game, *normalise(logits))


def advance(
    game: MatrixGame,
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
            policies[step.to] = evaluate(step, policies, game)
        if left.known_payoff is None:
            state.payoff_sum = None
        elif state.payoff_sum is not None:
            state.payoff_sum += left.known_payoff
        state.policy_sum += policies["current"].policy
        state.step += 1
        if state.step == next_record:
            rows.record(game, state)
            next_record = next(wanted, -1)
