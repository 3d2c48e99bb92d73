"""Newton's equations on the occupancy measures of a Markov game, solved one step of the game after another.

Both exact solvers of Markov games, the interior point and the regularised Newton method, ask for a change x
of an occupancy measure and the values V with

    Θ_h x_h − A_h x_h − f V_{h+1} + V_h − κ_h m_h = r_h,        Σ_a x_h(s, a) = m_h(s),
    m_1 = 0,   m_{h+1}(s') = Σ f(s'|s, a) x_h(s, a),

with `Θ > 0` diagonal and A_h skew. A preference of final states has `V_{H+1} = A m_{H+1} + r_{H+1}` instead.
As one matrix it has Σ_h n_h (A + 1) unknowns, hopeless for large games. But step h meets the later ones only
in how they answer to the mass that arrives, `V_{h+1} = S m_{h+1} + w`. Put into step h, that is an addition
to its payoffs, `A_h + f S fᵀ`, and the step alone gives the S and w of the one before. So one backward sweep
of H systems of n_h (A + 1) unknowns solves everything, and only one of them is in memory at a time. Without
an A_h a step is smaller still: about n_{h+1} unknowns and three for each state.

The symmetric part of S is negative semidefinite (whoever is met more often is worth less), that of A_h zero:
with `x = g u`, `g = Θ^{-1/2}`, every system is `I` plus a monotone matrix, bordered by the states' masses.
Its pivots are chosen with the border inside: eliminating x first would divide by the Θ of what is played,
which goes to zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from nashpref.games.markov import MarkovGame, Transition
from nashpref.policies import FloatArray, IntArray

WIDE = 500  # places, from which a step without payoffs is worth a smaller system (it is less accurate)


@dataclass(frozen=True)
class _Places:
    """The places of a step that take part, R of them in n states.

    Attributes:
        rows: their numbers s·A + a, `(R,)`. states: their states, `(n,)`.
        E: E[i, s] = 1 where place i is in the s-th of `states`, `(R, n)`.
        inverse: 1/Θ, `(R,)`. r: the right-hand sides, `(R, k)`.
    """

    rows: IntArray
    states: IntArray
    E: csr_array
    inverse: FloatArray
    r: FloatArray


@dataclass(frozen=True)
class _Answer:
    """How a step answers to the change m of its states' masses: `x = X m + x₀`, `V = S m + w`."""

    X: FloatArray
    x0: FloatArray
    S: FloatArray
    w: FloatArray


def solve_stages(
    game: MarkovGame,
    inverse: FloatArray,
    right: FloatArray,
    final: FloatArray | None = None,
    kappa: FloatArray | None = None,
    keep: NDArray[np.bool_] | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Return x, `(k, N, A)`, and V, `(k, N)`, for k right-hand sides.

    Args:
        game: with one initial state.
        inverse: 1/Θ, `(N, A)`.
        right: r, `(k, N, A)`.
        final: r_{H+1}, `(k, n_{H+1})`, where the preference is of final states.
        kappa: κ, `(N,)`; zero when None.
        keep: places that take part, `(N, A)`; x is zero at others, and V where no action of a state does.

    Raises:
        numpy.linalg.LinAlgError: a system is singular in floating point.
    """
    k, _, A = right.shape
    keep = np.ones(inverse.shape, dtype=bool) if keep is None else keep
    S = game.payoffs[0] if game.terminal else np.zeros((0, 0))
    w = np.zeros((0, k)) if final is None else final.T
    steps: list[tuple[_Places, _Answer]] = []
    for h in reversed(range(game.horizon)):
        layer = game.layers[h]
        rows, states = np.flatnonzero(keep[layer]), np.flatnonzero(keep[layer].any(axis=1))
        E = csr_array(
            (np.ones(len(rows)), np.searchsorted(states, rows // A), np.arange(len(rows) + 1)),
            shape=(len(rows), len(states)),
        )
        r = right[:, layer].reshape(k, -1).T[rows]
        places = _Places(rows, states, E, inverse[layer].reshape(-1)[rows], r)
        f = game.transitions[h][rows] if h < len(game.transitions) else np.zeros((len(rows), 0))
        if game.terminal and len(rows) > WIDE:
            answer = _answer_by_values(places, f, S, w, 1.0 / (float(game.payoffs[0].max()) or 1.0))
        else:
            answer = _answer(places, None if game.terminal else _square(game.payoffs[h], rows), f, S, w)
        if kappa is not None:
            answer.S[np.diag_indices(len(states))] += kappa[layer][states]
        S, w = np.zeros((len(keep[layer]),) * 2), np.zeros((len(keep[layer]), k))
        S[np.ix_(states, states)], w[states] = answer.S, answer.w
        steps.append((places, answer))

    x, V = np.zeros_like(right), np.zeros(right.shape[:2])
    mass = np.zeros((k, 1))
    for h, (places, answer) in enumerate(reversed(steps)):
        layer, m = game.layers[h], mass.T[places.states]
        x_h = np.zeros((k, keep[layer].size))
        x_h[:, places.rows] = (answer.X @ m + answer.x0).T
        x[:, layer] = x_h.reshape(k, -1, A)
        V[:, layer.start + places.states] = (answer.S @ m + answer.w).T
        if h + 1 < game.horizon:
            mass = game.forward(h, x_h)
    return x, V


def _answer(
    places: _Places, payoffs: FloatArray | None, f: Transition, S: FloatArray, w: FloatArray
) -> _Answer:
    """The unknowns are u and V: `(I − g (A + f S fᵀ) g) u + g V = g (r + f w)` and `Σ_a g u = m`."""
    E, R, n = places.E, *places.E.shape
    g, norm = np.sqrt(places.inverse), np.sqrt(E.T @ places.inverse)
    border = (E * (g[:, None] / norm)).toarray()
    matrix = np.zeros((R + n, R + n))
    block = matrix[:R, :R]
    block[...] = (f @ (f @ S).T).T
    if payoffs is not None:
        block += payoffs
    block *= -g[:, None]
    block *= g
    block[np.arange(R), np.arange(R)] += 1.0
    matrix[:R, R:], matrix[R:, :R] = border, border.T
    known = np.zeros((R + n, n + places.r.shape[1]))
    known[R:, :n] = np.diag(1.0 / norm)
    known[:R, n:] = g[:, None] * (places.r + f @ w)
    solution = np.linalg.solve(matrix, known)
    return _split(n, g[:, None] * solution[:R], solution[R:] / norm[:, None])


def _answer_by_values(
    places: _Places, f: Transition, S: FloatArray, w: FloatArray, typical: float
) -> _Answer:
    """A step without payoffs of its own: the unknowns are u, V and `z = V_{h+1} = S fᵀ x + w`.

    Where 1/Θ is no more than typical, x is eliminated beforehand: `x = (r + f z − V)/Θ`. What is played is
    left, a place or two for each state.
    """
    E, inverse, r, n, n_next = places.E, places.inverse, places.r, len(places.states), len(S)
    played = np.flatnonzero(inverse > typical)
    rest = np.flatnonzero(inverse <= typical)
    R, norm, g = len(played), np.sqrt(E.T @ inverse), np.sqrt(inverse[played])
    f_played, f_rest, E_rest = f[played], f[rest], E[rest]
    weighted_f, weighted_E = _scaled(f_rest, inverse[rest]), _scaled(E_rest, inverse[rest])
    border = (E[played] * (g[:, None] / norm)).toarray()
    cross = _dense(f_rest.T @ weighted_E)  # (n', n)
    u, v, z = slice(0, R), slice(R, R + n), slice(R + n, R + n + n_next)

    matrix = np.zeros((R + n + n_next,) * 2)
    matrix[u, u] = np.eye(R)
    matrix[u, v], matrix[v, u] = border, border.T
    matrix[u, z] = -_dense(_scaled(f_played, g))
    matrix[v, v] = np.diag(-(E_rest.T @ inverse[rest]) / norm**2)
    matrix[v, z] = cross.T / norm[:, None]
    matrix[z, u] = S @ matrix[u, z].T
    matrix[z, v] = S @ cross / norm
    matrix[z, z] = np.eye(n_next) - S @ _dense(f_rest.T @ weighted_f)
    known = np.zeros((len(matrix), n + r.shape[1]))
    known[v, :n] = np.diag(1.0 / norm)
    known[u, n:] = g[:, None] * r[played]
    known[v, n:] = -(weighted_E.T @ r[rest]) / norm[:, None]
    known[z, n:] = w + S @ (weighted_f.T @ r[rest])
    scale = 1.0 / np.sqrt(1.0 + np.abs(np.diag(S)))[:, None]  # rarely met states have a huge S
    matrix[z] *= scale
    known[z] *= scale
    solution = np.linalg.solve(matrix, known)

    V = solution[v] / norm[:, None]
    x = np.empty((len(inverse), known.shape[1]))
    x[played] = g[:, None] * solution[u]
    x[rest] = f_rest @ solution[z] - E_rest @ V
    x[rest, n:] += r[rest]
    x[rest] *= inverse[rest, None]
    return _split(n, x, V)


def _square(payoffs: FloatArray, rows: IntArray) -> FloatArray:
    return payoffs if len(rows) == len(payoffs) else payoffs[np.ix_(rows, rows)]


def _split(n: int, x: FloatArray, V: FloatArray) -> _Answer:
    """Columns of the n masses, and those of the right-hand sides."""
    return _Answer(x[:, :n].copy(), x[:, n:].copy(), V[:, :n].copy(), V[:, n:].copy())


def _scaled(f: Any, weights: FloatArray) -> Any:
    """`diag(weights) f`, dense or sparse as f is."""
    return weights[:, None] * f if isinstance(f, np.ndarray) else f.multiply(weights[:, None]).tocsr()


def _dense(matrix: Any) -> FloatArray:
    return matrix if isinstance(matrix, np.ndarray) else np.asarray(matrix.toarray())
