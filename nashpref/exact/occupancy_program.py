"""The two programs over occupancy measures as one writes them on a slide, in cvxpy: independent checks.

They share nothing with the solvers of this library but the game. Checks, not solvers: cvxpy takes longer to
compile them than the backward passes to solve them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nashpref.games.markov import MarkovGame
from nashpref.policies import FloatArray


def nash_program(game: MarkovGame) -> tuple[FloatArray, float]:
    """An equilibrium occupancy measure `(1, N, A)`, and the value of the centred game, which is zero.

        max_{d, V}  V_1(s_1)   subject to   d ∈ F(s_1),
                    V_h(s') ≤ (R_hᵀ d_h)(s', a') + Σ_s'' f(s''|s', a') V_{h+1}(s''),

    d one player's occupancy measure and V the values of the other's best response to it. With a preference of
    final states R_h = 0 and `V_{H+1}(x') = (Rᵀ m)(x')`, m the distribution of final states.

    Args:
        game: with one initial state.

    Raises:
        ImportError: cvxpy is not installed.

    Source: arXiv:2502.12678.
    """
    import cvxpy

    cp: Any = cvxpy  # its functions are untyped
    d, constraints = _flow_polytope(game, cp)
    V = [cp.Variable(len(states)) for states in game.reached[: game.horizon]]
    for h in range(game.horizon):
        response = 0.0
        if not game.terminal:
            response = game.payoffs[h].T @ cp.vec(d[h], order="C")
        if h + 1 < game.horizon:
            response = response + game.transitions[h] @ V[h + 1]
        elif game.terminal:
            response = game.transitions[h] @ (game.payoffs[0].T @ _arrivals(game, h, d[h], cp))
        own = np.repeat(np.eye(len(game.reached[h])), game.actions, axis=0)
        constraints.append(own @ V[h] <= response)
    program = cp.Problem(cp.Maximize(cp.sum(V[0])), constraints)
    program.solve(solver=cp.CLARABEL)
    return _values(d), float(program.value)


def projection_program(
    game: MarkovGame, log_prior: FloatArray, gain: FloatArray, temperature: Sequence[float] | None = None
) -> tuple[FloatArray, float]:
    """`argmax_{d ∈ F} Σ_h ⟨d_h, gain_h⟩ − Σ_h c_h Σ_s d_h(s) KL(π_h(·|s) ‖ p_h(·|s))` and the maximum.

    What `soft_response` computes: the Bregman projection of a mirror step. The conditional relative entropy
    is `Σ d_h(s, a) log(d_h(s, a) / (p_h(a|s) Σ_a d_h(s, a)))`, convex in d.

    Args:
        game: with one initial state. log_prior, gain, temperature: as in `soft_response`.
    """
    import cvxpy

    cp: Any = cvxpy
    d, constraints = _flow_polytope(game, cp)
    prior = np.exp(log_prior[0])
    objective = 0.0
    for h, layer in enumerate(game.layers):
        c = 1.0 if temperature is None else temperature[h]
        followed = cp.multiply(prior[layer], cp.sum(d[h], axis=1, keepdims=True) @ np.ones((1, game.actions)))
        objective = objective - c * cp.sum(cp.rel_entr(d[h], followed))
        if not game.terminal:
            objective = objective + cp.sum(cp.multiply(d[h], gain[0, layer]))
    if game.terminal:
        objective = objective + _arrivals(game, game.horizon - 1, d[-1], cp) @ gain[0]
    program = cp.Problem(cp.Maximize(objective), constraints)
    precise = {f"tol_{name}": 1e-10 for name in ("gap_abs", "gap_rel", "feas")}
    program.solve(solver=cp.CLARABEL, **precise)
    return _values(d), float(program.value)


def _flow_polytope(game: MarkovGame, cp: Any) -> tuple[list[Any], list[Any]]:
    """Variables `d_h`, `(n_h, A)`, and `Σ_a d_1 = 1{s = s_1}`, `Σ_a d_{h+1} = Σ f d_h`."""
    d = [cp.Variable((len(states), game.actions), nonneg=True) for states in game.reached[: game.horizon]]
    constraints = [cp.sum(d[0], axis=1) == 1.0]
    for h in range(game.horizon - 1):
        constraints.append(cp.sum(d[h + 1], axis=1) == _arrivals(game, h, d[h], cp))
    return d, constraints


def _arrivals(game: MarkovGame, h: int, d: Any, cp: Any) -> Any:
    return game.transitions[h].T @ cp.vec(d, order="C")


def _values(d: list[Any]) -> FloatArray:
    return np.asarray(np.maximum(np.concatenate([variable.value for variable in d]), 0.0)[None])
