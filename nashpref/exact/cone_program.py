"""The regularised equilibrium as an exponential-cone program: the independent check of Newton's method."""

from __future__ import annotations

from typing import Any

import numpy as np

from nashpref.policies import FloatArray


def exponential_cone(payoffs: FloatArray, beta: float, log_reference: FloatArray) -> FloatArray:
    """Return the π that minimises half its own duality gap, with cvxpy and Clarabel.

    `min_π β KL(π‖μ) + β log Σ_y μ(y) exp((Aπ)(y)/β)` over the simplex: the first term is what π pays for
    leaving μ, the second what the best response to it earns. The program shares nothing with Newton's method
    but its solution. The solver's tolerance leaves about 1e-5 in π: a check, not a solver.

    Args:
        payoffs: A, skew-symmetric, shape `(n, n)`.
        beta: weight β > 0 of the KL towards the reference.
        log_reference: log μ, normalised, shape `(n,)`.

    Raises:
        ImportError: cvxpy is not installed.
        cvxpy.SolverError: Clarabel failed, as it does on some games of hundreds of responses.
    """
    import cvxpy

    cp: Any = cvxpy  # its functions are untyped
    pi = cp.Variable(len(payoffs))
    kl = cp.sum(cp.rel_entr(pi, np.exp(log_reference)))
    best_response = cp.log_sum_exp(log_reference + payoffs @ pi / beta)
    program = cp.Problem(cp.Minimize(beta * kl + beta * best_response), [cp.sum(pi) == 1])
    program.solve(solver=cp.CLARABEL)
    policy = np.maximum(pi.value, 0.0)
    return np.asarray(policy / policy.sum())
