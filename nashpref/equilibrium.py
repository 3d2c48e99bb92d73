"""Exact equilibria with certificates: one function for matrix games, batches and Markov games."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike

from nashpref.dynamic_programming import plain_gap, regularised_gap
from nashpref.exact.threads import blas_threads
from nashpref.games.markov import MarkovGame
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
        policy: π*, shape `game.policy_shape`: non-negative, sums to one over the last axis. In a Markov game
            it is the reference where a state cannot be reached.
        value: what each player gets, P(π* ≻ π*) = 1/2 in every preference game, H/2 in a Markov game with a
            preference at every step; a float, or `(B,)` for a batch.
        gap: the duality gap of `policy`, computed from it: `2 max_y P(y ≻ π*) − 1`, or with β > 0
            `2β KL(π* ‖ BR_β(π*))`; in a Markov game by dynamic programming, averaged over the initial states.
            Zero exactly at equilibrium; a float or `(B,)`.
        method: the solver whose policy this is, one name per game of a batch, or per initial state if there
            are several. "linear program" on a game means that the faster methods failed their certificates
            there; "not converged" that the policy is the best that was found, with the gap it shows: the path
            to a very small β was given up, or no solver met its certificate.
        beta: weight of the KL towards the reference.
    """

    policy: FloatArray
    value: float | FloatArray
    gap: float | FloatArray
    method: str | tuple[str, ...]
    beta: float


def equilibrium(
    game: MatrixGame | MarkovGame,
    beta: float = 0.0,
    reference: ArrayLike | None = None,
    *,
    max_entropy: bool = False,
    tol: float | None = None,
) -> Equilibrium:
    """The symmetric equilibrium `π* = argmax_π min_π' P(π ≻ π') − β KL(π‖μ) + β KL(π'‖μ)`.

    With β = 0 it is a von Neumann winner: no response wins against it more than half the time, `A π* ≤ 0`
    for the skew `A = P − 1/2`. There may be many (ties, clones); any one is returned unless `max_entropy`
    asks for the one of largest entropy. With β > 0 it is unique, `π* ∝ μ exp(A π*/β)`.

    In a Markov game the KL is KL_p, that of trajectories, and every initial state has its own equilibrium.

    Guarantee: `gap` is computed from the policy returned, whatever solver found it. With β = 0 a policy
    whose gap exceeds 1e-12 max|A| (1e-10 of what can be won in a Markov game) is handed on to the
    next method, the last of which is a linear program (HiGHS); the best one found is returned, and `method`
    names its origin.

    A Markov game takes about 30 systems of `n_h (A + 1)` unknowns for each step of n_h states (of about
    `n_{h+1} + 3 n_h` with a preference of final states): two minutes at (S, A, H) = (200, 10, 10). Where that
    is too much, state the `tol` that is enough.

    Args:
        game: n responses, or a batch; or a Markov game.
        beta: weight of the KL towards the reference, ≥ 0.
        reference: μ, positive everywhere; uniform when None. Without effect when β = 0, except where a state
            of a Markov game cannot be reached.
        max_entropy: among many equilibria choose the one of largest entropy. Without effect when β > 0.
            Where near-ties of about 1e-10 max|A| leave open which equilibria there are, the first one found
            is kept and `method` ends in "largest entropy undecided". Matrix games only.
        tol: the gap that is enough, for each initial state, in a Markov game with β = 0; None solves it to
            rounding. Optimistic mirror descent then goes first, and the exact solver only if it has not
            got there in the time that the exact solver is expected to take. Everything else is solved to
            rounding whatever tol is.

    Raises:
        ValueError: β negative, not finite, or positive but below 1e-13 max|A|, where the KL is lost in
            rounding; a reference that is not a positive policy; a negative `tol`; `max_entropy` in a Markov
            game.
    """
    if tol is not None and not (math.isfinite(tol) and tol >= 0.0):
        raise ValueError(f"tol = {tol}: the gap that is enough must be finite and ≥ 0")
    if isinstance(game, MarkovGame):
        if max_entropy:
            raise ValueError(
                "max_entropy is for matrix games: in a Markov game a small beta comes close to it"
            )
        return _markov_equilibrium(game, check_beta(beta), check_reference(reference, game.policy_shape), tol)
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


def _markov_equilibrium(game: MarkovGame, beta: float, mu: FloatArray, tol: float | None) -> Equilibrium:
    from nashpref.exact import markov_equilibrium as exact

    unknowns = max(layer.stop - layer.start for layer in game.layers) * (game.actions + 1)
    if beta > 0.0:
        log_mu = np.log(game.flat(mu))
        with blas_threads(unknowns, NEWTON_THREADS):
            log_pi, methods = exact.solve_regularised(game, beta, log_mu)
        policy = np.exp(log_pi)
        plan = game.plan(policy)
        gap = regularised_gap(game, log_pi, plan, game.payoff(plan), beta, log_mu)
    else:
        with blas_threads(unknowns, INTERIOR_POINT_THREADS):
            policy, methods = exact.solve_plain(game, tol)
        gap = plain_gap(game, game.payoff(game.plan(policy)))
    value = 0.5 if game.terminal else 0.5 * game.horizon
    return Equilibrium(game.full(policy, mu), value, gap, methods[0] if len(methods) == 1 else methods, beta)


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
