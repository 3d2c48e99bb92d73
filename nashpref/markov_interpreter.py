"""The exact interpreter of mirror steps on a Markov game, in one of two geometries.

*Occupancy*: the step is taken on occupancy measures, `argmax_d ⟨d, Σ_j g_j r_j⟩ − Σ_k w_k D(d‖d_k)` with
`r_j` what the opponent j makes every place worth. `D(d‖d') = Σ_h c_h Σ_s d_h(s) KL(π_h‖π'_h)[s]`; with
`c_h = 1` it is the KL of trajectories, the matrix theorems hold, and with deterministic dynamics every rule
is what it is in the matrix game of trajectories.

*Per state*: the step of the matrix game is taken in every state on its own, with the (regularised) action
values `Q_h^{π_j,π_j}(s, ·)` in place of payoffs. The opponent starts where the player started, not in s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nashpref.dynamic_programming import (
    action_values,
    plain_gaps,
    policy_of,
    regularised_gap,
    soft_response,
    trajectory_kl,
)
from nashpref.games.markov import MarkovGame
from nashpref.interpreter import Iterate, NamedPolicies, State, Target, weighted_sum
from nashpref.mirror import Geometry, MirrorStep
from nashpref.policies import FloatArray, IntArray, log_policy, normalise

CHUNK_BYTES = 2**26  # what a chunk may hold of recorded policies
CHUNK_RECORDS = 2**10  # what a chunk may hold of recorded numbers


class MarkovIterate(Iterate):
    """An iterate that remembers its action values, and the reference for which they were computed."""

    __slots__ = ("values",)

    def __init__(
        self, game: MarkovGame, log_policy: FloatArray, policy: FloatArray, payoff: FloatArray | None = None
    ) -> None:
        super().__init__(game, log_policy, policy, payoff)
        self.values: tuple[Iterate, FloatArray] | None = None


@dataclass(frozen=True)
class MarkovInterpreter:
    """Mirror steps on a Markov game.

    Args:
        game: the game.
        target: what runs are measured against.
        geometry: on occupancy measures or per state.
        beta: the rule's β, which the per-state action values contain.
    """

    game: MarkovGame
    target: Target
    geometry: Geometry
    beta: float

    def iterate(
        self, log_policy: FloatArray, policy: FloatArray, payoff: FloatArray | None = None
    ) -> MarkovIterate:
        """A policy of the game."""
        return MarkovIterate(self.game, self.flat(log_policy), self.flat(policy), payoff)

    def evaluate(self, step: MirrorStep, policies: NamedPolicies) -> MarkovIterate:
        """One mirror step."""
        anchor = weighted_sum(step.anchors, lambda name: policies[name].log_policy)
        if self.geometry is Geometry.PER_STATE:
            if step.payoffs:
                reference = policies["reference"]
                anchor = anchor + weighted_sum(
                    step.payoffs, lambda name: self._action_values(policies[name], reference)
                )
            return MarkovIterate(self.game, *normalise(anchor))
        if step.payoffs:
            gain = weighted_sum(step.payoffs, lambda name: policies[name].payoff)
        else:
            gain = np.zeros_like(policies.start.payoff)
        log_pi, pi, _ = soft_response(self.game, anchor, gain, self._temperature)
        return MarkovIterate(self.game, log_pi, pi)

    @cached_property
    def _temperature(self) -> Sequence[float] | None:
        """`c_h`: 1, or `H − h + 1` for h = 1 … H."""
        weighted = self.geometry is Geometry.WEIGHTED_OCCUPANCY
        return [float(c) for c in range(self.game.horizon, 0, -1)] if weighted else None

    def _action_values(self, opponent: Iterate, reference: Iterate) -> FloatArray:
        """`Q^{π,π}` of the regularised game: both players play π, the opponent from the initial state."""
        assert isinstance(opponent, MarkovIterate)
        if opponent.values is None or opponent.values[0] is not reference:
            cost = np.zeros(self.game.flat_shape[:2])
            if self.beta > 0.0:
                log_ratio = opponent.log_policy - reference.log_policy
                cost = self.beta * np.vecdot(opponent.policy, log_ratio)
            q = action_values(self.game, opponent.policy, opponent.payoff, cost)
            opponent.values = (reference, q)
        return opponent.values[1]

    def rows(self, most: int, watched: bool) -> MarkovRows:
        """Space for `most` recorded steps, less if that were too much memory."""
        kept = watched or self.target.keep_policies
        size = CHUNK_BYTES // (8 * int(np.prod(self.game.policy_shape))) if kept else CHUNK_RECORDS
        return MarkovRows(self, max(1, min(most, size)), kept)

    def flat(self, array: FloatArray) -> FloatArray:
        """From the shape of the game's policies to that of iterates."""
        return self.game.flat(array)

    def full(self, array: FloatArray, fill: FloatArray | float) -> FloatArray:
        """And back."""
        return self.game.full(array, fill)

    def average_policy(self, state: State) -> FloatArray:
        """The policy of the mean occupancy measure."""
        mu = self.target.reference
        return self.full(policy_of(self.game, state.plan_sum, self.flat(mu)), mu)


class MarkovRows:
    """The measurements of up to R recorded steps, made as they are recorded: each costs a pass or two."""

    def __init__(self, interpreter: MarkovInterpreter, capacity: int, keep_policies: bool) -> None:
        game, target = interpreter.game, interpreter.target
        self.interpreter, self.target = interpreter, target
        self.steps: IntArray = np.zeros(capacity, dtype=np.int64)
        self.filled = 0
        self.log_mu = np.log(game.flat(target.reference))
        self.star: Iterate | None = None
        if target.equilibrium is not None:
            self.star = interpreter.iterate(log_policy(target.equilibrium), target.equilibrium)
        names = ["gap", "unregularised_gap", "average_gap", *(["kl"] if self.star else [])]
        self.values = {name: np.empty(capacity) for name in names}
        self.policies = np.empty((capacity if keep_policies else 0, *game.policy_shape))

    @property
    def capacity(self) -> int:
        """R."""
        return len(self.steps)

    def record(self, state: State) -> None:
        """Measure the current iterate and the average."""
        game, beta, k, count = self.interpreter.game, self.target.beta, self.filled, state.step + 1
        current = state.policies["current"]
        if state.payoff_sum is None:
            average_gain = game.payoff(state.plan_sum) / count
        else:
            average_gain = (state.payoff_sum + current.payoff) / count
        plain, average_plain = plain_gaps(game, current.payoff, average_gain)
        if beta > 0.0:
            log_mu, average = self.log_mu, state.plan_sum / count
            log_average = np.log(policy_of(game, average, np.exp(log_mu)))
            gap = regularised_gap(game, current.log_policy, current.plan, current.payoff, beta, log_mu)
            average_gap = regularised_gap(game, log_average, average, average_gain, beta, log_mu)
        else:
            gap, average_gap = plain, average_plain
        measured = {"gap": gap, "unregularised_gap": plain, "average_gap": average_gap}
        if self.star is not None:
            divergence = trajectory_kl(self.star.plan, self.star.log_policy, current.log_policy)
            measured["kl"] = float(game.initial_weights @ divergence)
        for name, value in measured.items():
            self.values[name][k] = value
        if len(self.policies):
            self.policies[k] = game.full(np.exp(current.log_policy), self.target.reference)
        self.steps[k] = state.step
        self.filled += 1

    def columns(self) -> dict[str, FloatArray]:
        """The measurements of the filled rows."""
        columns = {name: values[: self.filled].copy() for name, values in self.values.items()}
        if self.target.keep_policies:
            columns["policies"] = self.policies[: self.filled].copy()
        return columns

    def policy(self, row: int) -> FloatArray:
        """The policy of a row, for the caller to keep."""
        return np.array(self.policies[row])
