"""The equilibrium of a Markov game as a linear program, solved by HiGHS."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import block_diag, coo_array, csr_array, eye_array, hstack, vstack

from nashpref.dynamic_programming import policy_of
from nashpref.games.markov import MarkovGame
from nashpref.occupancy import flow_constraints
from nashpref.policies import FloatArray, uniform


class LinearProgram(NamedTuple):
    """`min bᵀV` subject to `A x ≤ EᵀV`, `E x = b`, `x ≥ 0`; A is skew, so it is its own dual, of value 0."""

    A: csr_array
    E: csr_array
    b: FloatArray


def linear_program(game: MarkovGame, method: str = "highs-ipm") -> FloatArray:
    """An equilibrium policy `(1, N, A)` of a game with one initial state, by `scipy.optimize.linprog`.

    The reference that the other solvers are compared with, and their fallback: HiGHS does not see the steps
    of the game. At 1,200 rows its interior point takes seven times as long as `markov_interior_point`, its
    default thirty times, and at 20,000 neither ends.

    Returns the uniform policy when HiGHS reports no solution: the caller's certificate tells.
    """
    from scipy.optimize import linprog

    A, E, b = formulate(game)
    n, rows = A.shape[0], len(b)
    solve: Any = linprog  # its stubs know no sparse arrays
    result = solve(
        c=np.concatenate([np.zeros(n), b]),
        A_ub=hstack([A, -E.T], format="csr"),
        b_ub=np.zeros(n),
        A_eq=hstack([E, csr_array((rows, rows))], format="csr"),
        b_eq=b,
        bounds=[(0.0, None)] * n + [(None, None)] * rows,
        method=method,
    )
    pi = uniform(game.flat_shape)
    if result.x is None:
        return pi
    return policy_of(game, np.maximum(result.x[: pi.size], 0.0).reshape(pi.shape), pi)


def formulate(game: MarkovGame) -> LinearProgram:
    """The occupancy measure x against which a best response, of value `bᵀV = V_1(s_1)`, earns least.

    `A x ≤ EᵀV` says `(A_h x_h)(s, a) + f V_{h+1} ≤ V_h(s)` everywhere, `E x = b` that x is in the flow
    polytope. A preference of final states is one of a further step with a single action: x then goes on with
    their distribution, and no matrix is larger than the game's own. HiGHS's tolerances are absolute, so A is
    divided by its largest entry.

    Source: the program of arXiv:2502.12678's game; its d and V for one player.
    """
    E, b = flow_constraints(game)
    scale = max(float(P.max(initial=0.0)) for P in game.payoffs) or 1.0
    payoffs = block_diag([coo_array(P / scale) for P in game.payoffs], format="csr")
    if game.terminal:
        f = csr_array(game.transitions[-1])
        before, final = E.shape[1] - f.shape[0], f.shape[1]
        arrives = hstack([csr_array((final, before)), f.T])
        ends = hstack([-arrives, eye_array(final)])
        E = csr_array(vstack([hstack([E, csr_array((len(b[0]), final))]), ends]))
        payoffs = block_diag([csr_array((E.shape[1] - final,) * 2), payoffs], format="csr")
        b = np.pad(b, ((0, 0), (0, final)))
    return LinearProgram(payoffs, E, b[0])
