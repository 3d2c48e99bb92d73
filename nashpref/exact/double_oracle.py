"""Double oracle: the equilibrium of a large game through the few responses that matter in it."""

from __future__ import annotations

import numpy as np
from scipy.linalg.blas import dgemv

from nashpref.exact.interior_point import interior_point
from nashpref.policies import FloatArray

FIRST_RESPONSES = 8
LARGEST_SHARE = 4  # a restricted game of n/4 costs 1/64 of the full one
VIOLATION = 1e-13  # gain, relative to the largest payoff in sight, that brings a response in


def double_oracle(payoffs: FloatArray) -> FloatArray:
    """The equilibrium of the skew matrix A = `payoffs`, shape (n, n), when its support is small.

    Start with S, the responses that do best against the uniform policy. Solve the game restricted to S;
    bring in every response that gains against the result, y ∉ S with (Aπ)(y) > 0; repeat until none
    does. S never shrinks, so it ends (dropping inactive responses can cycle).

    Preferences that a reward nearly explains have equilibria on a handful of responses, whatever n. When
    instead S would pass n/4, which on a game without structure the first round already shows, it stops
    there: the policy returned is not an equilibrium, its certificate says so, and `interior_point` on
    the whole game is the better method.
    """
    n = len(payoffs)
    scores = dgemv(-1.0, payoffs.T, np.full(n, 1.0 / n))
    inside = np.zeros(n, bool)
    inside[np.argsort(-scores, kind="stable")[:FIRST_RESPONSES]] = True
    while True:
        S = np.flatnonzero(inside)
        rows = payoffs[S]
        restricted = interior_point(rows[:, S])
        gains = dgemv(-1.0, rows.T, restricted)
        gaining = ~inside & (gains > VIOLATION * np.abs(rows).max())
        if not gaining.any() or S.size + np.count_nonzero(gaining) > n // LARGEST_SHARE:
            policy = np.zeros(n)
            policy[S] = restricted
            return policy
        inside |= gaining
