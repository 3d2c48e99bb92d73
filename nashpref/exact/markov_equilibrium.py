"""Which solver finds the equilibrium of a Markov game; one initial state after the other."""

from __future__ import annotations

import copy

import numpy as np

from nashpref.dynamic_programming import plain_gap
from nashpref.exact.markov_interior_point import interior_point
from nashpref.exact.markov_linear_program import linear_program
from nashpref.exact.markov_mirror_descent import mirror_descent
from nashpref.exact.markov_regularised import newton
from nashpref.games.markov import MarkovGame
from nashpref.policies import FloatArray, IntArray

CERTIFIED = 1e-10  # gap, relative to the most that a player can win, of a policy that needs no other solver
LP_ROWS = 3000  # beyond which HiGHS takes minutes, and then hours
INTERIOR_POINT_STEPS = 30  # what a game usually takes
FLOPS_PER_ENTRY = 30  # of a factorisation, in the time that a product takes for one entry of the payoffs


def solve_plain(game: MarkovGame, tol: float | None) -> tuple[FloatArray, tuple[str, ...]]:
    """Equilibrium policies `(S₁, N, A)` with β = 0, uniform where a state cannot be reached; and the methods.

    The interior point solves the game to rounding. When a gap of `tol` is enough, mirror descent goes first,
    for as long as the interior point is expected to take: together they take at most about twice as long as
    the faster of the two.
    """
    policies = np.full(game.flat_shape, 1.0 / game.actions)
    methods = []
    for k, own in enumerate(game.reached_from):
        policies[k, own], method = _solve_plain(started_in(game, k), tol)
        methods.append(method)
    return policies, tuple(methods)


def _solve_plain(game: MarkovGame, tol: float | None) -> tuple[FloatArray, str]:
    if tol is not None:
        policy = mirror_descent(game, tol, _products(game))
        if _gap(game, policy) <= tol:
            return policy[0], "optimistic mirror descent"
    size = sum(float(A.max(initial=0.0)) for A in game.payoffs)
    policy, method = interior_point(game, tol or 0.0), "interior point"
    gap = _gap(game, policy)
    _, N, A = game.flat_shape
    if gap > max(CERTIFIED * size, tol or 0.0):
        if N * (A + 1) <= LP_ROWS and _gap(game, other := linear_program(game)) < gap:
            policy, method = other, "linear program"
        else:
            method += ", not converged"
    return policy[0], method


def solve_regularised(
    game: MarkovGame, beta: float, log_mu: FloatArray
) -> tuple[FloatArray, tuple[str, ...]]:
    """log π with β > 0, `(S₁, N, A)`, that of μ where a state cannot be reached; and the methods."""
    theta = log_mu.copy()
    methods = []
    for k, own in enumerate(game.reached_from):
        solution = newton(started_in(game, k), beta, log_mu[k : k + 1, own])
        theta[k, own] = solution.log_policy[0]
        methods.append("newton" if solution.converged else "newton, not converged")
    return theta, tuple(methods)


def started_in(game: MarkovGame, k: int) -> MarkovGame:
    """The game from its k-th initial state alone, with only what is reached from there; arrays are shared."""
    if len(game.initial_states) == 1:
        return game
    one = copy.copy(game)
    for cached in ("layers", "reached_from", "digest"):
        vars(one).pop(cached, None)
    own = [np.flatnonzero(game.reached_from[k, layer]) for layer in game.layers]
    rows = [_places(states, game.actions) for states in own]
    if game.terminal:
        last = np.zeros((1, game.transitions[-1].shape[0]))
        last[:, rows[-1]] = 1.0
        own.append(np.flatnonzero(game.forward(game.horizon - 1, last)[0]))
    one.initial_states, one.initial_weights = game.initial_states[[k]], np.ones(1)
    one.reached = tuple(states[kept] for states, kept in zip(game.reached, own, strict=True))
    one.transitions = tuple(
        T if T.shape[0] == len(here) else T[here][:, there]
        for T, here, there in zip(game.transitions, rows, own[1:], strict=False)
    )
    one.transposes = tuple(T.T for T in one.transitions)
    places = own[-1:] if game.terminal else rows
    one.payoffs = tuple(
        P if len(P) == len(kept) else P[np.ix_(kept, kept)]
        for P, kept in zip(game.payoffs, places, strict=True)
    )
    return one


def _places(states: IntArray, A: int) -> IntArray:
    """The rows `s·A + a` of all actions in `states`."""
    return (states[:, None] * A + np.arange(A)).ravel()


def _gap(game: MarkovGame, policy: FloatArray) -> float:
    return plain_gap(game, game.payoff(game.plan(policy)))


def _products(game: MarkovGame) -> int:
    """How many products with the payoffs take as long as the interior point."""
    flops = 0.0
    for h, layer in enumerate(game.layers):
        n = layer.stop - layer.start
        after = len(game.reached[h + 1]) if h + 1 < len(game.reached) else 0
        unknowns = 3 * n + after if game.terminal else n * (game.actions + 1)
        flops += 2 / 3 * unknowns**3 + 2 * unknowns**2 * (n + after)
    entries = sum(P.size for P in game.payoffs) + sum(T.size for T in game.transitions)
    return int(INTERIOR_POINT_STEPS * flops / (FLOPS_PER_ENTRY * entries)) + 1
