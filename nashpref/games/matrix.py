"""Preference games given by a matrix: `P[i, j]` is the probability that response i beats response j."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from nashpref.games import comparisons
from nashpref.policies import FloatArray, check_policy

SKEW_TOLERANCE = 1e-8


class MatrixGame:
    """The symmetric two-player zero-sum game of a preference matrix, or of a batch of them.

    Each player chooses a policy over the same n responses and wins with probability
    `P(π ≻ π') = Σ_ij π_i P[i, j] π'_j`. With `P + Pᵀ = 1` the centred matrix `A = P − 1/2` is skew, the
    value is 1/2, and the symmetric equilibrium is the von Neumann winner.

    Args:
        preferences: `P`, shape `(n, n)` or `(B, n, n)`; entries in [0, 1], `P[i, j] + P[j, i] = 1` to 1e-8.
        labels: n distinct names of the responses; optional.
        counts: comparisons behind each pair, shape `(n, n)`, symmetric; optional, used for intervals.

    The arrays are copied and read-only. `payoffs` is the skew part `(P − Pᵀ)/2`, exactly antisymmetric;
    an asymmetry below the tolerance is rounded off there.

    Raises:
        ValueError: not square, not finite, outside [0, 1], not complementary (the worst entry is named);
            labels that are missing or repeated; counts that are negative, not finite or not symmetric.
    """

    def __init__(
        self,
        preferences: ArrayLike,
        *,
        labels: Sequence[str] | None = None,
        counts: ArrayLike | None = None,
    ) -> None:
        P = np.array(preferences, dtype=np.float64, order="C")
        _check_preferences(P)
        self.preferences = P
        self.payoffs = (P - np.swapaxes(P, -1, -2)) / 2.0
        self.labels = None if labels is None else _check_labels(labels, self.n)
        self.counts = None if counts is None else _check_counts(counts, P.shape)
        for array in (self.preferences, self.payoffs, self.counts):
            if array is not None:
                array.flags.writeable = False

    @classmethod
    def from_counts(
        cls,
        wins: ArrayLike,
        *,
        ties: ArrayLike | None = None,
        prior: float = 0.0,
        missing: comparisons.Missing = "error",
        labels: Sequence[str] | None = None,
    ) -> Self:
        """The game of win counts, `P[i, j] = (wins[i, j] + ties[i, j]/2 + prior) / counts[i, j]`.

        `wins[i, j]` counts the times that i beat j and `ties` is symmetric; shapes `(n, n)` or `(B, n, n)`.
        `prior` adds pseudo-wins to both sides of every pair. A pair without a comparison is an error unless
        `prior > 0` or `missing="half"` settles it at 1/2.
        Details and errors: `games.comparisons.preferences`.
        """
        P, counts = comparisons.preferences(wins, ties=ties, prior=prior, missing=missing, labels=labels)
        return cls(P, labels=labels, counts=counts)

    @classmethod
    def from_comparisons(
        cls,
        records: Iterable[comparisons.Record] | comparisons.PathOrStr,
        *,
        prior: float = 0.0,
        missing: comparisons.Missing = "error",
    ) -> Self:
        """The game of comparison records: `(winner, loser[, weight])`, mappings, or a JSONL or CSV file.

        The labels are the names, sorted. The fields of a record: `games.comparisons.tally`; `prior` and
        `missing` as in `from_counts`.
        """
        labels, wins = comparisons.tally(records)
        return cls.from_counts(wins, prior=prior, missing=missing, labels=labels)

    @classmethod
    def from_csv(
        cls,
        path: comparisons.PathOrStr,
        *,
        counts: comparisons.PathOrStr | None = None,
        symmetrise: bool = False,
    ) -> Self:
        """The game of a labelled square CSV: header row and first column of names, cell = P(row beats col).

        `counts` is a second such file with the number of comparisons of each pair. Pairs may miss
        summing to one by the rounding of six decimals; `symmetrise` averages `P` and `1 − Pᵀ` whatever the
        difference. Errors name the file, line and column: `games.comparisons.read_preferences`.
        """
        labels, P = comparisons.read_preferences(path, symmetrise=symmetrise)
        N = None if counts is None else comparisons.read_comparison_counts(counts, labels)
        return cls(P, labels=labels, counts=N)

    def to_csv(self, path: comparisons.PathOrStr) -> None:
        """Write the labelled CSV that `from_csv` reads; responses without labels are numbered from 1."""
        if self.batch is not None:
            raise ValueError(f"a CSV holds one game; this is a batch of {self.batch}")
        labels = self.labels or tuple(str(k + 1) for k in range(self.n))
        comparisons.write_preferences(path, labels, self.preferences)

    @property
    def n(self) -> int:
        """Number of responses."""
        return int(self.preferences.shape[-1])

    @property
    def batch(self) -> int | None:
        """Number of games in the batch; None for a single game."""
        return int(self.preferences.shape[0]) if self.preferences.ndim == 3 else None

    @property
    def policy_shape(self) -> tuple[int, ...]:
        """Shape of a policy: `(n,)`, or `(B, n)` for a batch."""
        return tuple(self.preferences.shape[:-1])

    def plan(self, policy: FloatArray) -> FloatArray:
        """What of a policy payoffs are linear in: the policy itself."""
        return policy

    def payoff(self, opponent: FloatArray) -> FloatArray:
        """The centred win probability of each response, `q(y) = P(y ≻ opponent) − 1/2 = (A opponent)(y)`.

        Shape of `opponent` and of the result: `policy_shape`. Values lie in [−1/2, 1/2] and
        `⟨opponent, q⟩ = 0`.
        """
        if self.preferences.ndim == 2:
            return np.asarray(self.payoffs @ opponent)
        return np.asarray(np.matmul(self.payoffs, opponent[..., None])[..., 0])

    def win_rate(self, policy: ArrayLike, opponent: ArrayLike) -> float | FloatArray:
        """`P(policy ≻ opponent)`: a float, or shape `(B,)` for a batch."""
        p = check_policy(policy, self.policy_shape, "policy")
        q = check_policy(opponent, self.policy_shape, "opponent")
        rate = 0.5 + np.sum(p * self.payoff(q), axis=-1)
        return float(rate) if self.batch is None else np.asarray(rate)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the payoffs: two games with the same digest are the same game."""
        return hashlib.sha256(self.payoffs.tobytes()).hexdigest()

    def __repr__(self) -> str:
        batch = "" if self.batch is None else f"batch={self.batch}, "
        names = "" if self.labels is None else f", labels={list(self.labels[:3])}" + "…" * (self.n > 3)
        return f"MatrixGame({batch}n={self.n}{names})"


def _check_preferences(P: FloatArray) -> None:
    if P.ndim not in (2, 3) or P.shape[-1] != P.shape[-2] or 0 in P.shape:
        raise ValueError(
            f"a preference matrix is square, (n, n), or a batch (B, n, n) of square ones; got shape {P.shape}"
        )
    if not np.isfinite(P).all():
        raise ValueError(f"{_entry(P, ~np.isfinite(P))} is not finite: every pair needs a probability")
    if P.min() < 0.0 or P.max() > 1.0:
        raise ValueError(f"{_entry(P, (P < 0.0) | (P > 1.0))} is not a probability in [0, 1]")
    error = np.swapaxes(P, -1, -2) + P
    error -= 1.0
    np.abs(error, out=error)
    if error.max() > SKEW_TOLERANCE:
        *b, i, j = (int(k) for k in np.unravel_index(int(error.argmax()), error.shape))
        i, j = min(i, j), max(i, j)
        pair = f"P{[*b, i, j]} = {P[(*b, i, j)]:.10g} and P{[*b, j, i]} = {P[(*b, j, i)]:.10g}"
        if i == j:
            raise ValueError(f"P{[*b, i, i]} = {P[(*b, i, i)]:.10g}: the diagonal must be 1/2")
        raise ValueError(
            f"{pair} sum to {P[(*b, i, j)] + P[(*b, j, i)]:.10g}, not 1 (worst entry): "
            "for win counts use MatrixGame.from_counts"
        )


def _check_counts(counts: ArrayLike, shape: tuple[int, ...]) -> FloatArray:
    N = np.array(counts, dtype=np.float64)
    if N.shape != shape:
        raise ValueError(f"counts has shape {N.shape}; the preferences have {shape}")
    for bad, what in (
        (~np.isfinite(N), "is not finite"),
        (N < 0.0, "is negative"),
        (np.swapaxes(N, -1, -2) != N, "differs from its transpose: a comparison counts both ways"),
    ):
        if bad.any():
            raise ValueError(f"counts{_entry(N, bad)[1:]} {what}")
    return N


def _entry(P: FloatArray, bad: np.typing.NDArray[np.bool_]) -> str:
    at = tuple(int(i) for i in np.argwhere(bad)[0])
    return f"P{list(at)} = {P[at]}"


def _check_labels(labels: Sequence[str], n: int) -> tuple[str, ...]:
    names = tuple(str(label) for label in labels)
    if len(names) != n:
        raise ValueError(f"{len(names)} labels for {n} responses")
    if len(set(names)) != n:
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"label {repeated!r} is repeated: labels must be distinct")
    return names
