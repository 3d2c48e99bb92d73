"""The peers, each called the way that is fastest for it; all take the payoffs A and return a policy.

Of the linear programs for a symmetric game the shifted one, `max 1ᵀy, (1 + A) y ≤ 1`, is the fastest for
HiGHS on games without structure (n = 500 and 1000), and plain feasibility, `A x ≤ 0, 1ᵀx = 1`, on most games
of up to 100 responses. HiGHS's tolerances are absolute, so A is scaled to max|A| = 1.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from time import perf_counter
from typing import Any

import numpy as np

from nashpref.policies import FloatArray


def scaled(A: FloatArray) -> FloatArray:
    """A / max|A|."""
    return np.asarray(A / (float(A.max()) or 1.0))


def scipy_linprog(A: FloatArray) -> FloatArray:
    """`scipy.optimize.linprog` (HiGHS) on the feasibility problem."""
    from scipy.optimize import linprog

    n = len(A)
    result = linprog(
        np.zeros(n),
        A_ub=scaled(A),
        b_ub=np.zeros(n),
        A_eq=np.ones((1, n)),
        b_eq=[1.0],
        bounds=(0.0, None),
        method="highs",
    )
    return np.asarray(result.x, dtype=np.float64)


def highs(A: FloatArray, **options: str) -> FloatArray:
    """HiGHS itself, without SciPy around it, on the shifted linear program."""
    highspy: Any = import_module("highspy")

    n = len(A)
    columns = np.asarray(1.0 + scaled(A)).T
    filled = columns != 0.0
    lp = highspy.HighsLp()
    lp.num_col_ = lp.num_row_ = n
    lp.col_cost_ = -np.ones(n)
    lp.col_lower_, lp.col_upper_ = np.zeros(n), np.full(n, highspy.kHighsInf)
    lp.row_lower_, lp.row_upper_ = np.full(n, -highspy.kHighsInf), np.ones(n)
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_ = np.append(0, filled.sum(axis=1).cumsum())
    lp.a_matrix_.index_ = np.nonzero(filled)[1]
    lp.a_matrix_.value_ = columns[filled]
    solver = highspy.Highs()
    for name, value in {"output_flag": False, "threads": 1, **options}.items():
        solver.setOptionValue(name, value)
    solver.passModel(lp)
    solver.run()
    y = np.array(solver.getSolution().col_value)
    return np.asarray(y / y.sum())


def spiel_game(A: FloatArray) -> Any:
    """The matrix game as open_spiel holds it."""
    import pyspiel

    return pyspiel.create_matrix_game(A, -A)


def open_spiel(game: Any) -> FloatArray:
    """open_spiel's `lp_solver` on a `spiel_game`: both players' programs, by cvxpy and ECOS."""
    from open_spiel.python.algorithms import lp_solver

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cvxpy's deprecation of ECOS
        return np.ravel(lp_solver.solve_zero_sum_matrix_game(game)[0])


def quantecon(A: FloatArray) -> FloatArray:
    """`quantecon.optimize.minmax`: a compiled simplex."""
    from quantecon.optimize import minmax

    return np.asarray(minmax(A)[2])


def clarabel(A: FloatArray, beta: float, log_mu: FloatArray) -> tuple[FloatArray, float]:
    """The regularised equilibrium as an exponential-cone program, and the solver's share of the call.

    `min_π β KL(π‖μ) + β log Σ_y μ(y) exp((Aπ)(y)/β)`: the opponent's best response in closed form.
    """
    cp: Any = import_module("cvxpy")

    pi = cp.Variable(len(A))
    anchored = cp.sum(cp.rel_entr(pi, np.exp(log_mu)))
    problem = cp.Problem(
        cp.Minimize(beta * anchored + beta * cp.log_sum_exp(log_mu + A @ pi / beta)), [cp.sum(pi) == 1.0]
    )
    began = perf_counter()
    problem.solve(solver=cp.CLARABEL)
    share = problem.solver_stats.solve_time / (perf_counter() - began)
    policy = np.maximum(pi.value, 0.0)
    return policy / policy.sum(), float(share)


def mirror_prox(A: FloatArray, beta: float, log_mu: FloatArray, gap: float) -> tuple[FloatArray, int]:
    """The regularised equilibrium by mirror-prox (EGPO), hand-written, and the iterations it took.

    The step is 2/(1 + 2β), the largest that is known to work; the gap is looked at every tenth iteration.
    """
    eta = 2.0 / (1.0 + 2.0 * beta)
    theta, pull = log_mu, eta * beta * log_mu
    for step in range(1_000_000):
        log_pi, pi = softmax(theta)
        q = A @ pi
        if step % 10 == 0:
            log_response = softmax(log_mu + q / beta)[0]
            if 2.0 * beta * divergence(pi, log_pi - log_response) <= gap:
                return pi, step
        base = (1.0 - eta * beta) * log_pi + pull
        theta = base + eta * (A @ softmax(base + eta * q)[1])
    raise RuntimeError("mirror-prox did not reach the gap")


def softmax(theta: FloatArray) -> tuple[FloatArray, FloatArray]:
    """log π and π ∝ exp(theta), as one would write them."""
    shifted = theta - theta.max()
    weights = np.exp(shifted)
    total = weights.sum()
    return shifted - np.log(total), weights / total


def divergence(p: FloatArray, log_ratio: FloatArray) -> float:
    """KL = Σ p (e^{−d} − 1 + d), d = log p/q: the form that does not cancel."""
    return float(p @ (np.expm1(-log_ratio) + log_ratio))
