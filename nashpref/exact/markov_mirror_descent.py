"""Optimistic mirror descent on occupancy measures: a stated certificate for games too large to solve exactly.

    d_{t+1/2} = argmax_d η_t ⟨d, r_{t−1/2}⟩ − KL_p(d‖d_t),
    d_{t+1}   = argmax_d η_t ⟨d, r_{t+1/2}⟩ − KL_p(d‖d_t),

r the payoffs against d: mirror-prox that guesses with the payoffs of the half step before, so that a step
costs one product with the payoffs and two soft backward passes. A step counts, and the next is longer, if

    η_t ⟨d_{t+1/2} − d_{t+1}, r_{t−1/2} − r_{t+1/2}⟩ ≤ KL_p(d_{t+1}‖d_{t+1/2}) + KL_p(d_{t+1/2}‖d_t),

else it is repeated, shorter. That is all the proof of mirror-prox needs of η: the average of the d_{t+1/2},
weighted by η_t, has a gap of at most `2 max_d KL_p(d‖μ) / Σ η_t` (Nemirovski 2004). The last iterate is often
much better, on preferences of final states above all; both are measured, and the better one is kept.
"""

from __future__ import annotations

import numpy as np

from nashpref.dynamic_programming import plain_gap, policy_of, soft_response, trajectory_kl
from nashpref.games.markov import MarkovGame
from nashpref.policies import FloatArray, uniform

LONGER, SHORTER = 1.1, 0.6
MEASURED = 5  # steps, every which the gaps are


@np.errstate(over="ignore", invalid="ignore")  # η may grow without end once nothing is left to gain
def mirror_descent(game: MarkovGame, tol: float, products: int) -> FloatArray:
    """A policy `(1, N, A)` of a game with one initial state: of gap ≤ `tol`, or the best after `products`."""
    pi = best = uniform(game.flat_shape)
    theta = np.log(pi)
    r = game.payoff(game.plan(pi))
    smallest = plain_gap(game, r)
    eta = 1.0 / max(float(np.abs(r).max()), np.finfo(np.float64).tiny)
    plan_sum, payoff_sum, total, steps = np.zeros_like(pi), np.zeros_like(r), 0.0, 0
    for _ in range(products):
        if smallest <= tol:
            break
        half, half_pi, _ = soft_response(game, theta, eta * r)
        d = game.plan(half_pi)
        new_r = game.payoff(d)
        new, new_pi, _ = soft_response(game, theta, eta * new_r)
        new_d = game.plan(new_pi)
        room = float((trajectory_kl(new_d, new, half) + trajectory_kl(d, half, theta))[0])
        if eta * _value(game, d - new_d, r - new_r) > room:
            eta *= SHORTER
            continue
        theta, r, steps = new, new_r, steps + 1
        plan_sum, payoff_sum, total = plan_sum + eta * d, payoff_sum + eta * r, total + eta
        eta *= LONGER
        if steps % MEASURED == 0:
            average = policy_of(game, plan_sum, pi)
            for policy, payoff in ((half_pi, r), (average, payoff_sum / total)):
                if (gap := plain_gap(game, payoff)) < smallest:
                    best, smallest = policy, gap
    return best


def _value(game: MarkovGame, d: FloatArray, r: FloatArray) -> float:
    """`⟨d, r⟩`, by way of the final states where the payoffs are theirs."""
    if game.terminal:
        d = game.forward(game.horizon - 1, d[:, game.layers[-1]].reshape(1, -1))
    return float(np.vdot(d, r))
