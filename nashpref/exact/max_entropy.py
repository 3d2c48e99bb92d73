"""The equilibrium of largest entropy, for games that have more than one.

The equilibria of a skew game are the polytope `{x ≥ 0, 1ᵀx = 1, A x ≤ 0}`. With B the responses that some
equilibrium plays, it is also

    {x ≥ 0 on B, zero elsewhere:   A_BB x = 0,   A_NB x ≤ 0,   1ᵀx = 1},        N = the others,

because one equilibrium that plays i makes every equilibrium indifferent to i. Some equilibrium satisfies all
these inequalities strictly (Goldman and Tucker 1956), so the dimension of the polytope is that of the null
space of A_BB, less one. Entropy, whose slope at zero is infinite, is largest at a point that plays all of B.
"""

from __future__ import annotations

import numpy as np

from nashpref.exact.regularised import solve_regularised
from nashpref.policies import FloatArray

STRICT = 1e-12  # a probability, or a loss per max|A|, above it is taken as positive
SINGULAR = 1e-12  # a singular value of A_BB per max|A| below it is taken as zero
SMALL_BETAS = (1e-8, 1e-10)  # per max|A|: where the path is asked for its limit
ROW_BINDS = 1e-6  # a loss per max|A| below it is a guess that the row binds


def is_unique(payoffs: FloatArray, policy: FloatArray) -> bool:
    """Whether `policy`, an equilibrium of the game with skew payoffs A, shape `(n, n)`, is its only one.

    It is exactly when every response outside its support B loses to it and `[A_BB 1; 1ᵀ 0]` is regular.
    In floating point: False where a probability and the loss of the same response are both below 1e-12.
    """
    size = np.abs(payoffs).max()
    played = policy > STRICT
    losing = payoffs @ policy < -STRICT * size
    if not np.all(played ^ losing):
        return False
    m = int(played.sum())
    bordered = np.ones((m + 1, m + 1))
    bordered[:m, :m] = payoffs[np.ix_(played, played)] / (size or 1.0)
    bordered[m, m] = 0.0
    return bool(np.linalg.cond(bordered, 1) < 1.0 / SINGULAR)


def maximum_entropy(payoffs: FloatArray, policy: FloatArray) -> FloatArray:
    """The equilibrium that maximises `−Σ_y x(y) log x(y)`; `policy` itself where it is the only one.

    It is the information projection of the uniform policy onto the equilibria, and the limit for β → 0 of the
    KL-regularised equilibria with uniform reference. Clones share their mass equally. The path towards the
    limit tells B; Newton's method on the face then gives the policy to rounding.

    Args:
        payoffs: A, skew-symmetric, shape `(n, n)`.
        policy: any equilibrium, shape `(n,)`.

    Raises:
        RuntimeError: rounding hides which of them that is: several equilibria up to margins of 1e-10·max|A|
            or so, which the path cannot tell from ties.
    """
    n, size = len(payoffs), np.abs(payoffs).max()
    if size == 0.0:
        return np.full(n, 1.0 / n)
    if is_unique(payoffs, policy):
        return policy
    A, log_mu = payoffs / size, np.full(n, -np.log(n))
    for beta in SMALL_BETAS:
        further = solve_regularised(A, 10.0 * beta, log_mu).log_policy
        nearer = solve_regularised(A, beta, log_mu).log_policy
        # A tenth of β leaves the probabilities of B alone and divides the others by ten, or by far more.
        played = nearer > np.maximum(further - np.log(3.0), np.log(1e-11))
        optimum = _face_optimum(A[np.ix_(played, played)], A[np.ix_(~played, played)], np.exp(nearer[played]))
        if optimum is not None:
            x = np.zeros(n)
            x[played] = optimum
            return x
    raise RuntimeError(
        "double precision cannot tell which equilibria this game has: some of its margins are all but ties; "
        "round the preferences, or do without max_entropy"
    )


def _face_optimum(A_BB: FloatArray, A_NB: FloatArray, guess: FloatArray) -> FloatArray | None:
    """Maximise the entropy of x > 0 subject to A_BB x = 0, A_NB x ≤ 0, 1ᵀx = 1, from a nearly optimal guess.

    Newton's method in the null space of the equations, scaled by √guess so that the Hessian starts as the
    identity, with the binding rows of A_NB x ≤ 0 as an active set: a row that blocks a step joins it; at a
    stationary point the row with the most negative multiplier leaves it. Returns None if the guess misleads:
    it is far from the face, or the active set does not settle.
    """
    equations = np.vstack([A_BB, np.ones(len(guess))])
    left, singular, right = np.linalg.svd(equations)
    rank = int(np.sum(singular > SINGULAR * singular[0]))
    root = np.sqrt(guess)
    rows = right[:rank] * root
    missing = left[-1, :rank] / singular[:rank] - right[:rank] @ guess
    change = np.linalg.lstsq(rows, missing, rcond=None)[0] / root  # relative, so that small masses stay
    if np.abs(change).max() > 0.5:
        return None
    x = guess * (1.0 + change)
    basis = root[:, None] * np.linalg.qr(rows.T, mode="complete")[0][:, rank:]
    k = basis.shape[1]
    active = A_NB @ x > -ROW_BINDS
    for _ in range(100 + 2 * len(A_NB)):
        binding = A_NB[active] @ basis
        kkt = np.zeros((k + len(binding), k + len(binding)))
        kkt[:k, :k] = basis.T @ (basis / x[:, None])
        kkt[:k, k:] = binding.T
        kkt[k:, :k] = binding
        right_side = np.append(-basis.T @ np.log(x), -A_NB[active] @ x)
        solution = np.linalg.lstsq(kkt, right_side, rcond=1e-13)[0]  # binding rows may be dependent
        dx, multipliers = basis @ solution[:k], solution[k:]
        slope = A_NB @ dx
        blocking = ~active & (slope > 1e-14)
        room = np.where(blocking, -(A_NB @ x) / np.where(blocking, slope, 1.0), np.inf)
        inside = 0.9 / max(float(np.max(-dx / x)), 0.9)
        step = max(0.0, min(inside, float(room.min(initial=np.inf))))
        x = x + step * dx
        if step < inside:
            active[np.argmin(room)] = True
        elif np.abs(dx / x).max(initial=0.0) < 1e-9:
            if multipliers.min(initial=0.0) >= -1e-9:
                x /= x.sum()
                feasible = np.abs(A_BB @ x).max() <= SINGULAR and (A_NB @ x).max(initial=0.0) <= SINGULAR
                return x if feasible else None
            active[np.flatnonzero(active)[np.argmin(multipliers)]] = False
    return None
