"""Self-dual interior point for the equilibrium of a Markov game.

An occupancy measure x is an equilibrium when no other gains against it: the largest gain is the value V_1 of
the linear program

    min V_1(s_1)   subject to   s_h = V_h − A_h x_h − f V_{h+1} ≥ 0,   x in the flow polytope,

V the values of a best response (with a preference of final states, A_h = 0 and `V_{H+1} = A x_{H+1}`). The
payoffs are skew, so its dual is itself, as in `interior_point`; its central path is `x s = μ` in every place,
and along the flow Σ x s telescopes to V_1: **at every iterate `2 Σ x s` bounds the duality gap**. Newton's
equations, linear in the target of the products x s, have Θ = s/x in `stages`, where one backward sweep solves
them, for the target 0 and the target μ at once; how they are mixed is decided with both at hand.
"""

from __future__ import annotations

import numpy as np

from nashpref.dynamic_programming import backward_pass, plain_gap, policy_of
from nashpref.exact.stages import solve_stages
from nashpref.games.markov import MarkovGame
from nashpref.policies import FloatArray, largest, uniform

ACCURACY = 1e-13  # gap, relative to the most that a player can win, at which a policy is final
CENTRINGS = (0.0, 1e-3, 1e-2, 0.03, 0.1, 0.2, 0.3, 0.5, 0.8)  # shares of μ that a step may aim at
CENTRAL = 1e-3  # smallest product x s, relative to their mean, after a step
TO_THE_WALL = 0.995  # of the way to the first x or s that would be zero
LEAST_WEIGHT = 1e-15  # of the proximal term that a singular system gets; ten times more if that is too little
SHORTEST = 1e-3  # step below which rounding has taken over
PATIENCE = 20  # systems solved without halving the gap, after which rounding has the last word


@np.errstate(all="ignore")  # what overflows is no step, and named by the certificate
def interior_point(game: MarkovGame, tol: float) -> FloatArray:
    """An equilibrium policy `(1, N, A)` of a game with one initial state, its gap ≤ `tol` or at rounding.

    Returns the best iterate; should the path stall, the caller sees it in the certificate.
    """
    pi = uniform(game.flat_shape)
    x = game.plan(pi)
    size = sum(float(A.max(initial=0.0)) for A in game.payoffs)
    if size == 0.0:
        return pi
    V = _feasible_values(game, x, size)
    s = _slacks(game, x, V)
    best, smallest, weight = pi, np.inf, 0.0
    halved, since = np.inf, 0
    while since < PATIENCE:
        gap = plain_gap(game, game.payoff(x))
        if gap < smallest:
            best, smallest = policy_of(game, x, pi), gap
        if gap <= max(tol, ACCURACY * size):
            break
        halved, since = (gap, 0) if gap <= halved / 2.0 else (halved, since + 1)
        mu = float((x * s).mean())
        targets = np.concatenate([-x * s, np.full_like(x, mu)])
        right = targets / x
        right[0] -= (_slacks(game, x, V) - s)[0]
        final = np.zeros((2, len(game.payoffs[0]))) if game.terminal else None
        try:
            dx, dV = solve_stages(game, (x / (s + weight * size * x))[0], right, final)
        except np.linalg.LinAlgError:
            dx, dV = np.full_like(right, np.nan), np.zeros(right.shape[:2])
        ds = (targets - s * dx) / x
        share, step = _mix(x, s, dx, ds)
        if step == 0.0:
            weight = max(LEAST_WEIGHT, 10.0 * weight)
            continue
        mixture = step * np.array([1.0, share])
        x = game.plan(policy_of(game, x + np.tensordot(mixture, dx, 1), pi))
        V, s = V + mixture @ dV, s + np.tensordot(mixture, ds, 1)
    return best


def _feasible_values(game: MarkovGame, x: FloatArray, size: float) -> FloatArray:
    """V `(N,)` that leaves every action a slack, inversely to how often its state is met: x s is even."""
    V = np.empty(x.shape[:2])

    def backup(h: int, q: FloatArray) -> FloatArray:
        mass = x[:, game.layers[h]].sum(axis=-1)
        value: FloatArray = largest(q) + size / (mass.size * mass)
        V[:, game.layers[h]] = value
        return value

    backward_pass(game, game.payoff(x), backup)
    return np.asarray(V[0])


def _slacks(game: MarkovGame, x: FloatArray, V: FloatArray) -> FloatArray:
    """`V_h − A_h x_h − f V_{h+1}`, `(1, N, A)`."""
    s = np.empty_like(x)

    def backup(h: int, q: FloatArray) -> FloatArray:
        values: FloatArray = V[None, game.layers[h]]
        s[:, game.layers[h]] = values[..., None] - q
        return values

    backward_pass(game, game.payoff(x), backup)
    return s


def _mix(x: FloatArray, s: FloatArray, dx: FloatArray, ds: FloatArray) -> tuple[float, float]:
    """The share of the second direction, and the length of the step, that leave the smallest mean of x s."""
    products = x * s
    central = min(CENTRAL, 0.9 * float(products.min() / products.mean()))
    best = (np.inf, 0.0, 0.0)
    for share in CENTRINGS:
        d, e = dx[0] + share * dx[1], ds[0] + share * ds[1]
        step = min(1.0, TO_THE_WALL / max(float((-d / x).max()), float((-e / s).max())))
        while step >= SHORTEST:
            products = (x + step * d) * (s + step * e)
            mean = float(products.mean())
            if products.min() >= central * mean:
                best = min(best, (mean, share, step))
                break
            step *= 0.9
    return best[1:]
