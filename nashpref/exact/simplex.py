"""Compiled simplex method for batches of small preference games.

Imported only when a batch is large enough to be worth loading numba (`nashpref.equilibrium` decides).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np

from nashpref.policies import FloatArray

THREADED_WORK = 1 << 20  # B·n³ below which starting threads costs more than it saves
ZERO = 1e-13  # the tableau's entries are of order one; below this they are rounding errors


def simplex(payoffs: FloatArray) -> FloatArray:
    """Equilibria of a batch of skew matrices, shape (B, n, n) → (B, n), one tableau per game.

    With A scaled to max|A| = 1, the game 1 + A has value 1 and its equilibrium is π = y / Σy for

        max 1ᵀy   subject to   (1 + A) y ≤ 1,   y ≥ 0,

    where y = 0 is a first vertex: one phase, no artificial variables. The tableau is condensed, (n+1)²,
    and pivots in place. The entering column is the one of most negative reduced cost; ties make that rule
    cycle, so after 5n + 10 pivots Bland's takes over, which cannot. A game that rounding keeps from ending
    is left where it stands, and its certificate says so.

    Games are shared out over `NUMBA_NUM_THREADS` threads (all cores by default).
    """
    payoffs = np.ascontiguousarray(payoffs)
    batch, n, _ = payoffs.shape
    policies = np.empty((batch, n))
    threads: int = numba.config.NUMBA_NUM_THREADS if batch * n**3 > THREADED_WORK else 1  # type: ignore[attr-defined]
    if threads == 1:
        _solve_each(payoffs, policies)
        return policies
    with ThreadPoolExecutor(threads) as pool:  # the kernel releases the interpreter lock
        list(pool.map(_solve_each, np.array_split(payoffs, threads), np.array_split(policies, threads)))
    return policies


@numba.njit("void(Array(float64, 3, 'C', readonly=True), float64[:, ::1])", nogil=True, cache=True)
def _solve_each(payoffs: FloatArray, policies: FloatArray) -> None:
    batch, n, _ = payoffs.shape
    T = np.empty((n + 1, n + 1))  # rows: basic variables, then reduced costs; last column: right-hand side
    basic = np.empty(n, np.int64)  # variable of each row; y_j is j, the slack of row i is n + i
    nonbasic = np.empty(n, np.int64)  # variable of each column
    for b in range(batch):
        A = payoffs[b]
        largest = A.max()
        unit = 1.0 / largest if largest > 0.0 else 1.0
        for i in range(n):
            for j in range(n):
                T[i, j] = 1.0 + unit * A[i, j]
            T[i, n], T[n, i] = 1.0, -1.0
            basic[i], nonbasic[i] = n + i, i
        T[n, n] = 0.0

        for pivot in range(50 * (n + 1)):
            column, lowest = -1, -ZERO
            if pivot < 5 * n + 10:
                for j in range(n):
                    if T[n, j] < lowest:
                        column, lowest = j, T[n, j]
            else:
                for j in range(n):
                    if T[n, j] < -ZERO and (column < 0 or nonbasic[j] < nonbasic[column]):
                        column = j
            if column < 0:
                break
            row, smallest = -1, np.inf
            for i in range(n):
                if T[i, column] > ZERO:
                    ratio = T[i, n] / T[i, column]
                    if ratio < smallest - ZERO or (ratio < smallest + ZERO and basic[i] < basic[row]):
                        row, smallest = i, ratio
            if row < 0:
                break
            inverse = 1.0 / T[row, column]
            for j in range(n + 1):
                T[row, j] *= inverse
            T[row, column] = inverse
            for i in range(n + 1):
                if i != row:
                    factor = T[i, column]
                    T[i, column] = 0.0
                    for j in range(n + 1):
                        T[i, j] -= factor * T[row, j]
            basic[row], nonbasic[column] = nonbasic[column], basic[row]

        policy = policies[b]
        policy[:] = 0.0
        for i in range(n):
            if basic[i] < n:
                policy[basic[i]] = max(T[i, n], 0.0)
        policy /= policy.sum()
