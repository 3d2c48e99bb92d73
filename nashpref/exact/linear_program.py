"""The equilibrium of a preference game as a linear program, solved by HiGHS."""

from __future__ import annotations

import numpy as np

from nashpref.policies import FloatArray


def linear_program(payoffs: FloatArray) -> FloatArray:
    """A vertex of the equilibria of the skew matrix A = `payoffs`, shape (n, n).

        min t   subject to   A π ≤ t·1,   1ᵀπ = 1,   π ≥ 0.

    The reference that the other solvers are compared with, and their fallback. HiGHS's tolerances are
    absolute (1e-7), so A is divided by max|A|: without it a game whose margins are all 1e-9 looks solved
    by any policy.

    Returns the uniform policy when HiGHS reports no solution: the caller's certificate tells.
    """
    from scipy.optimize import linprog  # 0.2 s to import, for a solver that is rarely reached

    n = len(payoffs)
    scaled = payoffs / (float(payoffs.max()) or 1.0)
    result = linprog(
        c=np.append(np.zeros(n), 1.0),
        A_ub=np.column_stack([scaled, -np.ones(n)]),
        b_ub=np.zeros(n),
        A_eq=np.append(np.ones(n), 0.0)[None, :],
        b_eq=[1.0],
        bounds=(0.0, None),  # t too: the value of the game is zero
        method="highs",
    )
    policy = np.ones(n) if result.x is None else np.maximum(result.x[:n], 0.0)
    return np.asarray(policy / policy.sum(), dtype=np.float64)
