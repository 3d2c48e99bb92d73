"""The Bradley–Terry model, `P(i ≻ j) = σ(r_i − r_j)`: what a reward model makes of the preferences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from nashpref.policies import FloatArray

SETTLED = 1e-9  # Newton converges quadratically: after a step this small the next would be lost in rounding
MAX_STEPS = 1000  # a separable tail costs one step per unit of score, and scores beyond ~700 underflow


@dataclass(frozen=True)
class BradleyTerry:
    """Maximum-likelihood scores r, shape `(n,)`, with mean zero, and the certificate that they are.

    `residual` is the largest |expected wins − wins| of a response, as a fraction of its comparisons: zero
    exactly at the maximum, because the log-likelihood is concave.
    """

    scores: FloatArray
    residual: float


def fit_bradley_terry(wins: ArrayLike, labels: Sequence[str] | None = None) -> BradleyTerry:
    """The maximiser of `Σ_ij wins[i, j] log σ(r_i − r_j)`, by Newton's method on the concave log-likelihood.

    The steps are damped by `log(1 + d)/d`, where d is the range of the Newton direction. The logistic loss is
    generalised self-concordant, so that this step needs no line search and converges from anywhere
    (arXiv 1703.04599, §4).

    Args:
        wins: times (or weight, or probability) that i beat j, shape `(n, n)`, ≥ 0; the diagonal is ignored.
        labels: names used in errors.

    Raises:
        ValueError: the maximum does not exist, because some group of responses never lost to the others
            (Ford 1957: it exists, and is unique, exactly when the graph of wins is strongly connected); or it
            is out of reach of float64.
    """
    W = np.array(wins, dtype=np.float64)
    np.fill_diagonal(W, 0.0)
    n = len(W)
    if (unbeaten := _unbeaten_group(W)) is not None:
        names = [repr(labels[i]) if labels else str(i) for i in unbeaten]
        group = ", ".join(names[:5]) + ", …" * (len(names) > 5)
        raise ValueError(
            f"no maximum-likelihood Bradley–Terry scores: {group} never lost to any of the other "
            f"{n - len(unbeaten)}, which puts them infinitely far apart; add pseudo-counts (prior=0.5)"
        )
    N = W + W.T
    r = np.zeros(n)
    size = np.inf if n > 1 else 0.0
    for _ in range(MAX_STEPS):
        if size <= SETTLED:
            break
        try:
            step = _newton_direction(W, N, r)
        except LinAlgError:
            break
        size = float(np.ptp(step))
        r += step * (np.log1p(size) / size if size > 0.0 else 1.0)
        r -= r.mean()
    if not size <= SETTLED:
        raise ValueError(
            f"the Bradley–Terry fit did not settle (last step {size:.1e}): the wins span too many orders of "
            "magnitude for float64; add pseudo-counts (prior=0.5) or drop near-certain pairs"
        )
    played = np.maximum(N.sum(axis=1), np.finfo(float).tiny)
    return BradleyTerry(r, float(np.max(np.abs(_surplus(W, N, r).sum(axis=1)) / played)))


def _surplus(W: FloatArray, N: FloatArray, r: FloatArray) -> FloatArray:
    """Wins minus expected wins, skew; from the rarer outcome of each pair, where nothing cancels."""
    ahead = r[:, None] - r
    rare = W - N * expit(ahead)
    return np.where(ahead > 0.0, -rare.T, rare)


def _newton_direction(W: FloatArray, N: FloatArray, r: FloatArray) -> FloatArray:
    """H⁻¹g, where H, minus the Hessian, is the Laplacian of the weights `N σ(1 − σ)`.

    H is singular along constants. Fixing one score leaves a diagonally dominant matrix; with a unit diagonal
    its factorisation is accurate where the weights of the responses differ by orders of magnitude.
    """
    ahead = r[:, None] - r
    weights = N * expit(ahead) * expit(-ahead)
    hessian = np.diag(weights.sum(axis=1)) - weights
    gradient = _surplus(W, N, r).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        unit = 1.0 / np.sqrt(np.diag(hessian)[1:])
        scaled = hessian[1:, 1:] * unit * unit[:, None]
    if not np.isfinite(scaled).all():
        raise LinAlgError("weights underflow")
    return np.concatenate([[0.0], unit * cho_solve(cho_factor(scaled), unit * gradient[1:])])


def _unbeaten_group(W: FloatArray) -> list[int] | None:
    """The smallest group that never lost to the rest, or None when wins connect everyone both ways."""
    count, component = connected_components(W > 0.0, directed=True, connection="strong")
    if count == 1:
        return None
    loser, winner = component[None, :], component[:, None]
    beaten = np.unique(np.broadcast_to(loser, W.shape)[(W > 0.0) & (winner != loser)])
    groups = [np.flatnonzero(component == c).tolist() for c in set(range(count)) - set(beaten.tolist())]
    return min(groups, key=lambda group: (len(group), group))
