"""How far a preference is from a ranking: Condorcet winner, strict cycles, what no potential expresses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse.csgraph import connected_components

from nashpref.games.matrix import MatrixGame
from nashpref.policies import FloatArray

TIE = 1e-12  # margins below are the rounding of sums of votes, not preferences


@dataclass(frozen=True)
class Cycle:
    """`i ≻ j ≻ k ≻ i`, by at least the margin `strength`: the smallest of the three `P − 1/2`."""

    responses: tuple[int, int, int]
    strength: float


@dataclass(frozen=True)
class Cycles:
    """How many of the `triples` of responses are strict 3-cycles, and the strongest of them, best first."""

    count: int
    triples: int
    strongest: tuple[Cycle, ...]

    @property
    def share(self) -> float:
        """Fraction of the triples that cycle: 0 when transitive, about 1/4 when every pair is a coin toss."""
        return self.count / self.triples if self.triples else 0.0


@dataclass(frozen=True)
class Hodge:
    """The split `flow = gradient + curl`, orthogonal in the weights: see `hodge`."""

    potential: FloatArray
    curl: FloatArray
    curl_share: float


def condorcet_winner(game: MatrixGame) -> int | None:
    """The response that beats every other with probability above 1/2, or None; of a single game."""
    return _beats_all(game.payoffs)


def condorcet_loser(game: MatrixGame) -> int | None:
    """The response that loses to every other with probability above 1/2, or None; of a single game."""
    return _beats_all(game.payoffs.T)


def three_cycles(game: MatrixGame, strongest: int = 5) -> Cycles:
    """Count the strict 3-cycles `i ≻ j ≻ k ≻ i` of a single game exactly, and list the strongest.

    Every pair of the cycle has a margin above 1e-12. Ties in strength are listed in lexicographic order.
    O(n³) time and O(n²) memory.
    """
    A, n = game.payoffs, game.n
    count, best, bar = 0, list[Cycle](), TIE
    for i in range(n - 2):  # i is the smallest of the three, so that each cycle is met once
        after = i + 1 + np.flatnonzero(A[i, i + 1 :] > TIE)
        before = i + 1 + np.flatnonzero(A[i + 1 :, i] > TIE)
        strength = np.minimum(A[np.ix_(after, before)], np.minimum(A[i, after][:, None], A[before, i]))
        count += int(np.count_nonzero(strength > TIE))
        j, k = np.nonzero(strength > bar)
        top = np.argsort(-strength[j, k], kind="stable")[:strongest]
        found = (Cycle((i, int(after[j[t]]), int(before[k[t]])), float(strength[j[t], k[t]])) for t in top)
        best = sorted([*best, *found], key=lambda cycle: -cycle.strength)[:strongest]
        if len(best) == strongest and best:
            bar = best[-1].strength
    return Cycles(count, n * (n - 1) * (n - 2) // 6, tuple(best))


def hodge(flow: ArrayLike, weights: ArrayLike | None = None) -> Hodge:
    """Split a skew matrix into differences of a potential and the rest, `Y_ij = (r_i − r_j) + C_ij`.

    r minimises `Σ_ij w_ij (Y_ij − r_i + r_j)²`, so that `Σ_j w_ij C_ij = 0`, and
    `curl_share = Σ w C² / Σ w Y²` is the share of Y that no potential expresses: 0 for a pure gradient, 1 for
    a pure cycle, and 0 for Y = 0. With all pairs weighted alike C is the cyclic part of the combinatorial
    Hodge decomposition; with pairs of weight zero it contains the harmonic part too (arXiv 0811.1067).

    Args:
        flow: Y, skew, shape `(n, n)`.
        weights: w, symmetric, ≥ 0; ones when None. The potential has mean zero on each connected component.
    """
    Y = np.asarray(flow, dtype=np.float64)
    w = np.ones_like(Y) if weights is None else np.array(weights, dtype=np.float64)
    np.fill_diagonal(w, 0.0)
    component = connected_components(w > 0.0, directed=False)[1]
    together = component[:, None] == component
    # The Laplacian is singular along the constants of each component; filling those in leaves r unchanged.
    laplacian = np.diag(w.sum(axis=1)) - w + together * (w.max() or 1.0) / together.sum(axis=1)
    r = cho_solve(cho_factor(laplacian), np.sum(w * Y, axis=1))
    C = Y - (r[:, None] - r)
    total = np.sum(w * Y * Y)
    return Hodge(r, C, float(np.sum(w * C * C) / total) if total > 0.0 else 0.0)


def _beats_all(payoffs: FloatArray) -> int | None:
    beaten = np.count_nonzero(payoffs > TIE, axis=1)
    winners = np.flatnonzero(beaten == len(payoffs) - 1)
    return int(winners[0]) if winners.size else None
