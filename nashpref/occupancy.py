"""Occupancy measures of a Markov game, `d_h(s, a) = Pr(s_h = s, a_h = a | s_1)`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from nashpref.dynamic_programming import policy_of
from nashpref.games.markov import MarkovGame
from nashpref.policies import FloatArray, check_policy, check_reference

if TYPE_CHECKING:
    from scipy.sparse import csr_array

FLOW_TOLERANCE = 1e-8


def occupancy(game: MarkovGame, policy: ArrayLike) -> FloatArray:
    """The occupancy measure of a policy, `d_1(s, a) = 1{s = s_1} π_1(a|s)`, `d_{h+1} = π_{h+1} Σ d_h f`.

    Args:
        game: the game.
        policy: π, shape `game.policy_shape`, zeros allowed.

    Returns:
        d, shape `game.policy_shape`: each initial state's own, each step summing to one; 0 where unreachable.
    """
    pi = check_policy(policy, game.policy_shape, "policy")
    return game.full(game.plan(game.flat(pi)), 0.0)


def policy_of_occupancy(
    game: MarkovGame, measure: ArrayLike, reference: ArrayLike | None = None
) -> FloatArray:
    """The policy with this occupancy measure, `π_h(a|s) = d_h(s, a)/Σ_a d_h(s, a)`; μ where nothing arrives.

    Args:
        game: the game.
        measure: d, shape `game.policy_shape`.
        reference: μ; uniform when None.

    Raises:
        ValueError: an entry is negative or not finite, or the flow is not conserved within 1e-8 (the worst
            h, s are named).
    """
    mu = check_reference(reference, game.policy_shape)
    d = np.array(measure, dtype=np.float64)
    if d.shape != game.policy_shape:
        raise ValueError(f"the occupancy measure has shape {d.shape}; the game needs {game.policy_shape}")
    if not np.isfinite(d).all() or d.min() < 0.0:
        at = [int(k) for k in np.argwhere(~np.isfinite(d) | (d < 0.0))[0]]
        raise ValueError(f"measure{at} = {d[tuple(at)]}: an occupancy is a finite number ≥ 0")
    policy = game.full(policy_of(game, game.flat(d), game.flat(mu)), mu)
    error = np.abs(occupancy(game, policy) - d).sum(axis=-1)
    if error.max() > FLOW_TOLERANCE:
        at = [int(k) for k in np.unravel_index(int(error.argmax()), error.shape)]
        raise ValueError(
            f"measure{at} is not what flows into that state (off by {error.max():.3g}): "
            "no policy has this occupancy"
        )
    return policy


def flow_constraints(game: MarkovGame) -> tuple[csr_array, FloatArray]:
    """The Bellman-flow polytope `{d ≥ 0 : E d = b}`, the set of all occupancy measures, with sparse E.

    Row (h, s) says that what leaves a state is what arrives: `Σ_a d_h(s, a) − Σ f(s|s', a') d_{h−1}(s', a')`
    is 1 in the initial state and 0 elsewhere. Transposed it is Bellman's: `(EᵀV)_h = V_h − f V_{h+1}`.

    Args:
        game: the game, its N reachable states (of all steps) and A actions.

    Returns:
        E, shape `(N, N·A)`, and b, `(S₁, N)`, one row for each initial state. The order is that of
        `game.flat`: `E @ game.flat(d)[k].ravel()` equals `b[k]` for every occupancy measure d.
    """
    from scipy.sparse import coo_array, csr_array, vstack

    S1, N, A = game.flat_shape
    leaves = csr_array((np.ones(N * A), np.arange(N * A), np.arange(0, N * A + 1, A)), shape=(N, N * A))
    arrives = [csr_array((S1, N * A))]
    for h, layer in enumerate(game.layers[:-1]):
        f = coo_array(game.transitions[h])
        columns = f.row + layer.start * A
        arrives.append(csr_array((f.data, (f.col, columns)), shape=(f.shape[1], N * A)))
    b = np.zeros((S1, N))
    b[:, :S1] = np.eye(S1)
    return csr_array(leaves - vstack(arrives)), b
