"""Exact equilibria with certificates: one function for single games and batches, regularised or not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike

from nashpref.exact.threads import blas_threads
from nashpref.games.matrix import MatrixGame
from nashpref.metrics import check_beta, unregularised_gap
from nashpref.policies import FloatArray, check_reference

Solver = Callable[[FloatArray], FloatArray]  # skew matrices (B, n, n) → policies (B, n)

CERTIFIED = 1e-12  # largest gap, relative to max|A|, of a policy that needs no other solver
CONVERGED = 1e-12  # largest gap of a regularised policy; Newton's method ends ten orders below it

# Sizes at which one method overtakes another, measured on one thread.
SMALL = 64  # up to here a batch is solved as stacked arrays, or by the compiled simplex
FEW = 4  # games, below which one at a time is faster all the same
LARGE = 128  # from here the double oracle's first round is cheap beside the full interior point
INTERIOR_POINT_THREADS, NEWTON_THREADS = 900, 600  # from here a second BLAS thread pays
WORTH_LOADING_NUMBA = 2_000_000  # B·n², when the NumPy batch takes as long as `import numba`


@dataclass(frozen=True)
class Equilibrium:
    """A symmetric Nash equilibrium and the certificate that proves it.

    Attributes:
        policy: π*, shape `(n,)` or `(B, n)`: non-negative, sums to one.
        value: what each player gets, P(π* ≻ π*) = 1/2 in every preference game; a float or `(B,)`.
        gap: the duality gap of `policy`, computed from it: `2 max_y P(y ≻ π*) − 1`, or with β > 0
            `2β KL(π* ‖ BR_β(π*))`. Zero exactly at equilibrium; a float or `(B,)`.
        method: the solver whose policy this is, one name per game of a batch. "linear program" on a game
            means that the faster methods failed their certificates there; "newton, not converged" that the
            path to a very small β was given up, with the gap it shows.
        beta: weight of the KL towards the reference.
    """

    policy: FloatArray
    value: float | FloatArray
    gap: float | FloatArray
    method: str | tuple[str, ...]
    beta: float


def equilibrium(
    game: MatrixGame, beta: float = 0.0, reference: ArrayLike | None = None, *, max_entropy: bool = False
) -> Equilibrium:
    """The symmetric equilibrium `π* = argmax_π min_π' P(π ≻ π') − β KL(π‖μ) + β KL(π'‖μ)`.

    With β = 0 it is a von Neumann winner: no response wins against it more than half the time, `A π* ≤ 0`
    for the skew `A = P − 1/2`. There may be many (ties, clones); any one is returned unless `max_entropy`
    asks for the one of largest entropy. With β > 0 it is unique, `π* ∝ μ exp(A π*/β)`.

    Guarantee: `gap` is computed from the policy returned, whatever solver found it. With β = 0 a policy
    whose gap exceeds 1e-12 max|A| is handed on to the next method, the last of which is a linear program
    (HiGHS); the best one found is returned, and `method` names its origin.

    Args:
        game: n responses, or a batch.
        beta: weight of the KL towards the reference, ≥ 0.
        reference: μ, positive everywhere; uniform when None. Without effect when β = 0.
        max_entropy: among many equilibria choose the one of largest entropy. Without effect when β > 0.
            Where near-ties of about 1e-10 max|A| leave open which equilibria there are, the first one found
            is kept and `method` ends in "largest entropy undecided".

    Raises:
        ValueError: β negative, not finite, or positive but below 1e-13 max|A|, where the KL is lost in
            rounding; a reference that is not a positive policy.
    """
    beta = check_beta(beta)
    mu = check_reference(reference, game.policy_shape)
    if beta > 0.0:
        from nashpref.exact.regularised import solve_regularised

        with blas_threads(game.n, NEWTON_THREADS):
            solution = solve_regularised(game.payoffs, beta, np.log(mu))
        methods = ["newton" if gap <= CONVERGED else "newton, not converged" for gap in solution.gap.ravel()]
        return _result(game, np.exp(solution.log_policy), solution.gap, methods, beta)

    payoffs = np.ascontiguousarray(game.payoffs).reshape(-1, game.n, game.n)
    policies, gaps, methods = _solve(payoffs)
    if max_entropy:
        for b, A in enumerate(payoffs):
            policies[b], methods[b] = _most_even(A, policies[b], methods[b])
        gaps = _gaps(payoffs, policies)
    return _result(game, policies.reshape(game.policy_shape), gaps, methods, beta)


def _most_even(A: FloatArray, policy: FloatArray, method: str) -> tuple[FloatArray, str]:
    """The equilibrium of largest entropy, and how it was found: unchanged where it is the only one."""
    from nashpref.exact.max_entropy import maximum_entropy

    try:
        chosen = maximum_entropy(A, policy)
    except RuntimeError:  # margins all but ties: which equilibria there are is lost in rounding
        return policy, f"{method}, largest entropy undecided"
    return chosen, method if chosen is policy else f"{method}, maximum entropy"


def _result(
    game: MatrixGame, policy: FloatArray, gaps: FloatArray, methods: list[str], beta: float
) -> Equilibrium:
    if game.batch is None:
        return Equilibrium(policy, 0.5, float(gaps.reshape(())), methods[0], beta)
    return Equilibrium(policy, np.full(game.batch, 0.5), gaps, tuple(methods), beta)


def _solve(payoffs: FloatArray) -> tuple[FloatArray, FloatArray, list[str]]:
    """Policies (B, n), their gaps (B,) and the method behind each.

    The solvers are tried in turn, each on the games that are still without a certified policy.
    """
    batch, n, _ = payoffs.shape
    policies = np.empty((batch, n))
    gaps = np.full(batch, np.inf)
    methods = np.empty(batch, dtype=object)
    accepted = CERTIFIED * payoffs.max(axis=(1, 2))
    solvers = _solvers(batch, n)
    with blas_threads(n, INTERIOR_POINT_THREADS):
        for method, solver in solvers:
            todo = np.flatnonzero(gaps > accepted)
            if not todo.size:
                break
            games = payoffs if todo.size == batch else payoffs[todo]
            candidates = solver(games)
            candidate_gaps = _gaps(games, candidates)
            better = candidate_gaps < gaps[todo]  # False where a solver returned NaN
            won = todo[better]
            policies[won], gaps[won], methods[won] = candidates[better], candidate_gaps[better], method
    return policies, gaps, methods.tolist()


def _solvers(batch: int, n: int) -> list[tuple[str, Solver]]:
    """The methods for `batch` games of n responses, the one expected to be fastest first.

    Small batches of small games and all games of middle size: the interior point. Batches of small games:
    the compiled simplex when numba is there and worth its import, else the interior point on stacked
    arrays. Large games: the double oracle, which is quick whether it succeeds (the support is small) or
    gives up (it is not), then the interior point.
    """
    # scipy.linalg takes longer to import than all of nashpref: it is loaded when it is first needed.
    from nashpref.exact.double_oracle import double_oracle
    from nashpref.exact.interior_point import interior_point, interior_points
    from nashpref.exact.linear_program import linear_program

    attempts: list[tuple[str, Solver]] = []
    if n <= SMALL and batch >= FEW:
        if ("numba" in sys.modules or batch * n**2 >= WORTH_LOADING_NUMBA) and (
            simplex := compiled_simplex()
        ):
            attempts.append(("simplex", simplex))
        attempts.append(("interior point", interior_points))
    else:
        if n >= LARGE:
            attempts.append(("double oracle", _one_by_one(double_oracle)))
        attempts.append(("interior point", _one_by_one(interior_point)))
    attempts.append(("linear program", _one_by_one(linear_program)))
    return attempts


def _one_by_one(solver: Solver) -> Solver:
    return lambda payoffs: np.stack([solver(A) for A in payoffs])


@cache
def compiled_simplex() -> Solver | None:
    """The compiled simplex for batches of small games, or None without numba (the extra `[fast]`)."""
    try:
        from nashpref.exact.simplex import simplex
    except ImportError:
        return None
    return simplex


def _gaps(payoffs: FloatArray, policies: FloatArray) -> FloatArray:
    """The certificate `2 max_y (A π)(y)` of each game of a stack."""
    return unregularised_gap(np.matmul(payoffs, policies[..., None])[..., 0])
