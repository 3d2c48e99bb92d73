"""Self-dual interior point for the equilibrium of a skew payoff matrix.

A policy x is an equilibrium of the skew matrix A when no response gains against it, A x ≤ 0. Writing t for
the largest gain allowed, the linear program is

    min t   subject to   s = t·1 − A x ≥ 0,   x ≥ 0,   1ᵀx = 1.

Because A is skew its dual is itself, with s in the place of the dual variables, so one set of unknowns
carries both. Its central path is `x_i s_i = μ` for all i, and summing gives `t = xᵀs = nμ`: **at every
iterate t bounds the exploitability**. Newton's equations for a target r of the products x·s are

    [ diag(s/x) − A   1 ] [dx]   [ r/x ]
    [     −1ᵀ         0 ] [dt] = [  0  ],        ds = (r − s·dx) / x,

plus the infeasibilities, which are rounding errors since the start is feasible. The matrix is a positive
diagonal minus a skew matrix, so it is never singular. One LU factorisation serves Mehrotra's two solves, a
predictor (r = −x·s) and a corrector, and 5–15 steps reach the end.

The path ends at an equilibrium of largest support, S = {x_i > s_i}. On S all gains vanish, A_SS x_S = 0,
which is solved by a few proximal-point steps from where the path stands,

    (δI − A_SS) u + dt·1 = A_SS x_S,   1ᵀu = 1 − 1ᵀx_S,   x_S ← x_S + u.

A unique equilibrium is reached to rounding error, with exact zeros outside S. When there are many (ties,
clones) A_SS is singular, and δ keeps the step small along the directions in which nothing is at stake.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import dgemv
from scipy.linalg.lapack import dgetrf, dgetrs

from nashpref.policies import FloatArray

ACCURACY = 1e-14  # gain, relative to max|A|, at which a purified policy is final
PATH_END = 1e-16  # t, relative to max|A|, below which the path is lost in rounding
SUPPORT_SHOWS = 1e-2  # n·t below which the support is read off; it is not empty, for Σx² ≥ 1/n > t = Σ x·s
LATE = 1e-9  # t below which every iterate is purified, not only those whose support is new
MAX_STEPS = 60
PROXIMAL_WEIGHT = 1e-8
PROXIMAL_STEPS = 3
CACHED_ENTRIES = 1 << 17  # a batch is solved in pieces whose matrices stay in a megabyte of cache

Solve = Callable[[FloatArray], FloatArray]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]


def interior_point(payoffs: FloatArray) -> FloatArray:
    """An equilibrium of one skew matrix A = `payoffs`, shape (n, n) → (n,), aiming at max(Aπ) ≤ 1e-14 max|A|.

    Returns the best iterate by that measure; should the path stall short of it, the caller sees it in the
    certificate. One n×n work array, factorised in place, and only SciPy's BLAS: NumPy ships another, and
    two thread pools that alternate spin against each other.
    """
    n = len(payoffs)
    transposed = payoffs.T  # −A in the column-major order of LAPACK, without a copy
    unit = 1.0 / (float(payoffs.max()) or 1.0)

    def gains(x: FloatArray) -> FloatArray:
        return np.asarray(dgemv(-unit, transposed, x))

    work = np.empty((n + 1, n + 1), order="F")
    x, q, z, s = _start(gains, (n,))
    best, exploitability, tried = x, float(q.max()), np.zeros(n, bool)
    purified = exploitability
    for _ in range(MAX_STEPS):
        if purified <= ACCURACY or z[n] <= PATH_END:
            break
        np.multiply(transposed, unit, out=work[:n, :n])
        z, s = _newton_step(z, s, q, _factorise(work, s / z[:n]))
        x = z[:n]
        q = gains(x)
        if (gain := float(q.max() / x.sum())) < exploitability:
            best, exploitability = x / x.sum(), gain
        support = x > s
        if z[n] < LATE or (n * z[n] < SUPPORT_SHOWS and not np.array_equal(support, tried)):
            tried = support
            y = _purify(transposed, unit, gains, x, support)
            purified = float(gains(y).max())
            if purified <= max(exploitability, ACCURACY):
                best, exploitability = y, purified
    return best


def interior_points(payoffs: FloatArray) -> FloatArray:
    """Equilibria of a batch of skew matrices, shape (B, n, n) → (B, n), for small n.

    The method of `interior_point` on stacked arrays; games that are finished leave the working set.
    """
    batch, n, _ = payoffs.shape
    piece = max(1, CACHED_ENTRIES // (n + 1) ** 2)
    pieces = [_interior_points(payoffs[i : i + piece]) for i in range(0, batch, piece)]
    return np.concatenate(pieces)


def _interior_points(payoffs: FloatArray) -> FloatArray:
    batch, n, _ = payoffs.shape
    largest = payoffs.max(axis=(1, 2))[:, None, None]
    A = payoffs / np.where(largest > 0.0, largest, 1.0)
    M = _bordered(-A, np.ones((batch, n)))
    diagonal = np.einsum("bii->bi", M)[:, :n]

    def gains(x: FloatArray) -> FloatArray:
        return np.asarray((A @ x[..., None])[..., 0])

    def solve(right: FloatArray) -> FloatArray:
        return np.asarray(np.linalg.solve(M, right[..., None])[..., 0], dtype=np.float64)

    def keep(games: IntArray, policies: FloatArray, gain: FloatArray, tolerance: float) -> None:
        better = gain <= np.maximum(exploitability[games], tolerance)
        best[games[better]], exploitability[games[better]] = policies[better], gain[better]

    x, q, z, s = _start(gains, (batch, n))
    best, exploitability = x.copy(), q.max(axis=1)
    purified = exploitability.copy()
    games = np.arange(batch)  # the working set: rows of `best` that A, M, z, s, q still describe
    for _ in range(MAX_STEPS):
        going = (purified[games] > ACCURACY) & (z[:, n] > PATH_END)
        if not going.any():
            break
        if not going.all():
            games, A, M, z, s, q = (array[going] for array in (games, A, M, z, s, q))
            diagonal = np.einsum("bii->bi", M)[:, :n]
        diagonal[:] = s / z[:, :n]
        z, s = _newton_step(z, s, q, solve)
        x = z[:, :n]
        q = gains(x)
        total = x.sum(axis=1, keepdims=True)
        keep(games, x / total, (q / total).max(axis=1), 0.0)
        late = np.flatnonzero(n * z[:, n] < SUPPORT_SHOWS)
        if late.size:
            y = _purify_batch(A[late], x[late], x[late] > s[late])
            purified[games[late]] = (A[late] @ y[..., None])[..., 0].max(axis=1)
            keep(games[late], y, purified[games[late]], ACCURACY)
    return best


def _start(
    gains: Callable[[FloatArray], FloatArray], shape: tuple[int, ...]
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Uniform x, its gains q = A x, and (z = (x, t), s) feasible with all s within a factor three."""
    x = np.full(shape, 1.0 / shape[-1])
    q = gains(x)
    t = 2.0 * np.abs(q).max(axis=-1, keepdims=True) + 0.01
    return x, q, np.concatenate([x, t], axis=-1), t - q


def _newton_step(z: FloatArray, s: FloatArray, q: FloatArray, solve: Solve) -> tuple[FloatArray, FloatArray]:
    """One predictor–corrector step of (z = (x, t), s), arrays (…, n+1) and (…, n), given q = A x."""
    x, t = z[..., :-1], z[..., -1:]
    products = x * s
    mu = products.mean(axis=-1, keepdims=True)
    infeasible = t - q - s
    missing = 1.0 - x.sum(axis=-1, keepdims=True)

    def direction(target: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        dz = solve(np.concatenate([target / x - infeasible, -missing], axis=-1))
        ds = (target - s * dz[..., :-1]) / x
        blocking = np.maximum((-dz[..., :-1] / x).max(axis=-1), (-ds / s).max(axis=-1))
        return dz, ds, blocking[..., None]

    dz, ds, blocking = direction(-products)
    step = 1.0 / np.maximum(blocking, 1.0)
    predicted = ((x + step * dz[..., :-1]) * (s + step * ds)).mean(axis=-1, keepdims=True)
    dz, ds, blocking = direction((predicted / mu) ** 3 * mu - products - dz[..., :-1] * ds)
    most = np.clip(1.0 - t, 0.9, 0.9999)  # of the way to the boundary: nearly all of it as t → 0
    step = most / np.maximum(blocking, most)
    return z + step * dz, s + step * ds


def _factorise(work: FloatArray, diagonal: FloatArray) -> Solve:
    """LU of the bordered matrix whose skew block already lies in `work`; the factors overwrite it."""
    n = len(diagonal)
    work[:n, n], work[n, :n], work[n, n] = 1.0, -1.0, 0.0
    np.einsum("ii->i", work)[:n] = diagonal
    lu, pivots, _ = dgetrf(work, overwrite_a=True)
    return lambda right: np.asarray(dgetrs(lu, pivots, right)[0])


def _purify(
    transposed: FloatArray,
    unit: float,
    gains: Callable[[FloatArray], FloatArray],
    x: FloatArray,
    support: BoolArray,
) -> FloatArray:
    """Proximal-point steps on the support, from the iterate x; zero elsewhere."""
    S = np.flatnonzero(support)
    y = np.where(support, x, 0.0)
    work = np.empty((len(S) + 1, len(S) + 1), order="F")
    np.multiply(transposed[np.ix_(S, S)], unit, out=work[:-1, :-1])
    solve = _factorise(work, np.full(len(S), PROXIMAL_WEIGHT))
    for _ in range(PROXIMAL_STEPS):
        y[S] += solve(np.append(gains(y)[S], y.sum() - 1.0))[:-1]
    return _to_simplex(y)


def _purify_batch(A: FloatArray, x: FloatArray, support: BoolArray) -> FloatArray:
    """`_purify` on a stack: responses outside the support keep their row, made trivial."""
    inside = support.astype(float)
    y = x * inside
    on_support = A * (inside[:, :, None] * inside[:, None, :])
    M = _bordered(-on_support, inside)
    np.einsum("bii->bi", M)[:, :-1] = np.where(support, PROXIMAL_WEIGHT, 1.0)
    for _ in range(PROXIMAL_STEPS):
        gains = (on_support @ y[..., None])[..., 0]
        right = np.concatenate([gains, y.sum(axis=1, keepdims=True) - 1.0], axis=1)
        y = y + np.linalg.solve(M, right[..., None])[:, :-1, 0]
    return _to_simplex(y)


def _bordered(block: FloatArray, border: FloatArray) -> FloatArray:
    """[[block, border], [−borderᵀ, 0]] for a stack of blocks."""
    batch, n, _ = block.shape
    M = np.zeros((batch, n + 1, n + 1))
    M[:, :n, :n] = block
    M[:, :n, n] = border
    M[:, n, :n] = -border
    return M


def _to_simplex(y: FloatArray) -> FloatArray:
    """Clip negative rounding (or a failed purification, which its certificate will show) and normalise."""
    y = np.maximum(y, 0.0)
    total = y.sum(axis=-1, keepdims=True)
    return np.where(total > 0.0, y / np.where(total > 0.0, total, 1.0), 1.0 / y.shape[-1])
