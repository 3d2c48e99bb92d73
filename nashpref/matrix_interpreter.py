"""The exact interpreter of mirror steps on a matrix game, one numpy expression a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nashpref.games.matrix import MatrixGame
from nashpref.interpreter import Iterate, NamedPolicies, State, Target, weighted_sum
from nashpref.metrics import regularised_gap
from nashpref.mirror import MirrorStep
from nashpref.policies import FloatArray, IntArray, kl, largest, log_policy, normalise

CHUNK_BYTES = 2**26  # what a chunk may hold of recorded vectors
CHUNK_RECORDS = 2**16  # what a chunk may hold of recorded numbers


@dataclass(frozen=True)
class MatrixInterpreter:
    """Mirror steps on a matrix game or a batch; iterates have the shape of its policies."""

    game: MatrixGame
    target: Target

    def iterate(
        self, log_policy: FloatArray, policy: FloatArray, payoff: FloatArray | None = None
    ) -> Iterate:
        """A policy of the game."""
        return Iterate(self.game, log_policy, policy, payoff)

    def evaluate(self, step: MirrorStep, policies: NamedPolicies) -> Iterate:
        """`Σ_k w_k log π_k + Σ_j g_j q_j`, normalised."""
        logits = weighted_sum(step.anchors, lambda name: policies[name].log_policy)
        if step.payoffs:
            logits = logits + weighted_sum(step.payoffs, lambda name: policies[name].payoff)
        return Iterate(self.game, *normalise(logits))

    def rows(self, most: int, watched: bool) -> MatrixRows:
        """Space for `most` recorded steps, less if that were too much memory."""
        target = self.target
        vectors = target.beta > 0.0 or target.equilibrium is not None or target.keep_policies or watched
        size = int(np.prod(self.game.policy_shape))
        most = min(most, CHUNK_BYTES // (32 * size) if vectors else CHUNK_RECORDS)
        return MatrixRows.empty(self.game, target, max(1, most), vectors)

    def flat(self, array: FloatArray) -> FloatArray:
        """The array itself: iterates have the shape of the game's policies."""
        return array

    def full(self, array: FloatArray, fill: FloatArray | float) -> FloatArray:
        """The array itself."""
        return array

    def average_policy(self, state: State) -> FloatArray:
        """The arithmetic mean."""
        return np.asarray(state.plan_sum / (state.step + 1))


@dataclass
class MatrixRows:
    """What is measured of up to R recorded steps.

    The largest payoffs, `(R[, B])`, are enough for the unregularised gaps. The vectors behind the other
    measurements, `([B,] R, n)`, have no rows unless they are wanted. A game's vectors lie together: the
    compiled interpreter writes them one game after the other.
    """

    game: MatrixGame
    target: Target
    steps: IntArray
    largest: FloatArray
    average_largest: FloatArray
    log_policy: FloatArray
    payoff: FloatArray
    average: FloatArray
    average_payoff: FloatArray
    filled: int = 0

    @staticmethod
    def empty(game: MatrixGame, target: Target, rows: int, vectors: bool) -> MatrixRows:
        """Space for `rows` recorded steps."""
        *batch, n = game.policy_shape
        kept = (4, *batch, rows if vectors else 0, n)
        steps = np.zeros(rows, dtype=np.int64)
        return MatrixRows(game, target, steps, *np.empty((2, rows, *batch)), *np.empty(kept))

    @property
    def capacity(self) -> int:
        """R."""
        return len(self.steps)

    def record(self, state: State) -> None:
        """Note the current iterate and the average."""
        current, k, count = state.policies["current"], self.filled, state.step + 1
        if state.payoff_sum is None:
            total_payoff = self.game.payoff(state.plan_sum)
        else:
            total_payoff = state.payoff_sum + current.payoff
        self.largest[k] = largest(current.payoff)
        self.average_largest[k] = largest(total_payoff) / count
        if self.log_policy.size:
            self.log_policy[..., k, :] = current.log_policy
            self.payoff[..., k, :] = current.payoff
            self.average[..., k, :] = state.plan_sum / count
            self.average_payoff[..., k, :] = total_payoff / count
        self.steps[k] = state.step
        self.filled += 1

    def columns(self) -> dict[str, FloatArray]:
        """All measurements of the filled rows, in vectorised form."""
        log_pi, q, average, average_q = (
            vectors[..., : self.filled, :]
            for vectors in (self.log_policy, self.payoff, self.average, self.average_payoff)
        )
        # As in `metrics.unregularised_gap`, a largest payoff below zero is rounding.
        plain = 2.0 * np.maximum(self.largest[: self.filled], 0.0)
        average_gap = 2.0 * np.maximum(self.average_largest[: self.filled], 0.0)
        columns = {"gap": plain, "unregularised_gap": plain, "average_gap": average_gap}
        beta = self.target.beta
        if beta > 0.0:
            log_mu, log_average = np.log(self.target.reference)[..., None, :], np.log(average)
            columns["gap"] = _by_row(regularised_gap(log_pi, q, beta, log_mu))
            columns["average_gap"] = _by_row(regularised_gap(log_average, average_q, beta, log_mu))
        if self.target.equilibrium is not None:
            log_star = log_policy(self.target.equilibrium)
            columns["kl"] = _by_row(kl(log_star[..., None, :], log_pi))
        if self.target.keep_policies:
            columns["policies"] = np.moveaxis(np.exp(log_pi), -2, 0)
        return columns

    def policy(self, row: int) -> FloatArray:
        """The policy of a row."""
        return np.exp(self.log_policy[..., row, :])


def _by_row(values: FloatArray) -> FloatArray:
    """`([B,] R)` → `(R[, B])`."""
    return np.moveaxis(values, -1, 0)
