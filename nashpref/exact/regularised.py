"""Equilibria of KL-regularised games: Newton's method along the path that leaves the reference.

The equilibrium with weight β solves `log π = log μ + A π/β + c`. In `t = 1/β` these policies form a smooth
path, from μ at t = 0 to the one that is wanted. On it the residual

    F_t(θ) = θ − log μ − t A π,        π = softmax(θ),        modulo constants,

vanishes. Its Jacobian is `I − t A Σ` with `Σ = diag(π) − π πᵀ`: in the metric of Σ the identity plus a skew
matrix, so that its singular values are at least one however small β is, and a Newton direction always exists.
Taken at a larger t it corrects the policy and predicts the next one in one solve. Steps may be long, because
the log-probability of a response that dies out is nearly linear in t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nashpref.metrics import regularised_gap
from nashpref.policies import FloatArray, kl, normalise

# KL(π ‖ BR_t(π)) is the distance from the path; it has no unit.
NEIGHBOURHOOD = 1.0  # how far from the path a prediction may end
SHORTEST = 1 / 8  # a fraction of a Newton direction below which another direction is worth a solve
FURTHEST = 100.0  # ratio of t from one prediction to the next
NEGLIGIBLE = 1e-14  # probabilities left out of the Jacobian (never out of the residual)
ROUNDING = 64 * float(np.finfo(np.float64).eps)  # error of F_t, relative to the size of its terms
RARE = 1e-6  # probabilities that a squared error of rounding size says too little about
LEAST_BETA = 1e-13  # relative to max|A|: below it the identity in the Jacobian drowns in rounding
MAX_STEPS = 20_000  # systems for one game; the hardest of 30,000 random ones took a quarter of this
WORKING_SET = 1 << 22  # payoffs solved together: 32 MB for each array of them


@dataclass(frozen=True)
class RegularisedSolution:
    """A KL-regularised equilibrium with its certificate.

    Attributes:
        log_policy: log π, shape `(n,)` or `(B, n)`.
        gap: `2β KL(π ‖ BR_β(π))`, the duality gap of π; shape `()` or `(B,)`. It is computed from π after
            the fact: a game on which the method gave up is one whose gap is large.
        steps: linear systems solved for each game; shape of `gap`.
    """

    log_policy: FloatArray
    gap: FloatArray
    steps: NDArray[np.int64]


def solve_regularised(payoffs: FloatArray, beta: float, log_reference: FloatArray) -> RegularisedSolution:
    """The equilibrium of `P_β(π ≻ π') = ½ + πᵀAπ' − β KL(π‖μ) + β KL(π'‖μ)`; it is unique and symmetric.

    The gap ends at the rounding of A π/β: about `β (ε max|A|/β)²` with ε = 1e-14. Measured on 30,000 games
    with payoffs in [−½, ½] (random, tournaments, ties, clones, margins down to 1e-10), it is below 1e-21 for
    every β from 1e-6 to 1e6. Below that it usually is too, but games with margins near β may be given up.

    Args:
        payoffs: A, skew-symmetric, shape `(n, n)` or `(B, n, n)`.
        beta: weight β > 0 of the KL towards the reference.
        log_reference: log μ, finite, shape `(n,)` or that of the policies.

    Raises:
        ValueError: β is not finite or below 1e-13·max|A|, or log μ is not finite.
    """
    least = max(LEAST_BETA * float(np.abs(payoffs).max()), 1e-300)
    if not least <= beta < math.inf:
        raise ValueError(
            f"beta = {beta}: a regularised equilibrium needs {least:.3g} ≤ β < ∞ on these payoffs; "
            "below that the KL is lost in rounding, and beta=0 is the game to solve"
        )
    if not np.isfinite(log_reference).all():
        raise ValueError("log_reference is not finite: the reference must be positive everywhere")
    shape, n = payoffs.shape[:-1], payoffs.shape[-1]
    A = payoffs.reshape(-1, n, n)
    log_mu = normalise(np.broadcast_to(log_reference, shape).reshape(-1, n))[0]
    theta, steps = np.empty_like(log_mu), np.empty(len(A), dtype=np.int64)
    size = max(1, WORKING_SET // n**2)
    for first in range(0, len(A), size):
        games = slice(first, first + size)
        theta[games], steps[games] = _follow_path(A[games], log_mu[games], 1.0 / beta)
    theta = _fill_in_the_rare(A, log_mu, theta, beta)
    gap = regularised_gap(theta, _payoff(A, np.exp(theta)), beta, log_mu)
    return RegularisedSolution(theta.reshape(shape), gap.reshape(shape[:-1]), steps.reshape(shape[:-1]))


def _fill_in_the_rare(A: FloatArray, log_mu: FloatArray, theta: FloatArray, beta: float) -> FloatArray:
    """Give every response too rare to count in the distance from the path the `log π` that the others imply.

    Its own probability acts on nobody, so `log μ + A π/β + c` is right for it to rounding.
    """
    pi = np.exp(theta)
    implied = log_mu + _payoff(A, pi) / beta
    implied -= np.sum(pi * (implied - theta), axis=-1, keepdims=True)
    return normalise(np.where(pi < RARE, implied, theta))[0]


class _Point(NamedTuple):
    """Where each game of the working set is."""

    theta: FloatArray  # log π, (B, n)
    q: FloatArray  # A π, (B, n)
    t: FloatArray  # (B,)
    distance: FloatArray  # KL(π ‖ BR_t(π)), (B,)

    def take(self, games: NDArray[np.bool_]) -> _Point:
        return _Point(*(array[games] for array in self))

    def where(self, chosen: NDArray[np.bool_], other: _Point) -> _Point:
        """This point in the games chosen, the other in the rest."""
        masks = (chosen[:, None], chosen[:, None], chosen, chosen)
        return _Point(*(np.where(m, a, b) for m, a, b in zip(masks, self, other, strict=True)))


def _follow_path(A: FloatArray, log_mu: FloatArray, end: float) -> tuple[FloatArray, NDArray[np.int64]]:
    """Return log π at t = `end` and the number of systems solved, for each game.

    A prediction that works is followed by one twice as far in log t, one that fails by one half as far; at
    `end` it turns into a correction. A point from which neither succeeds lies outside the region where Newton
    converges, which its distance alone cannot tell when t is large: the game starts again and keeps ten times
    closer to its path. One that does not get through five orders of magnitude closer is given up where it
    stands.
    """
    size = np.abs(A).max(axis=(1, 2))
    first = np.minimum(end, 0.1 / np.where(size > 0.0, size, 1.0))  # nothing happens before this t
    rounding = (ROUNDING * (1.0 + end * size)) ** 2  # of the distance
    theta, steps = np.empty_like(log_mu), np.zeros(len(A), dtype=np.int64)

    games = np.arange(len(A))
    start = point = _Point(log_mu, _payoff(A, np.exp(log_mu)), np.zeros(len(A)), np.zeros(len(A)))
    growth, near = np.full(len(A), FURTHEST), np.full(len(A), NEIGHBOURHOOD)
    while games.size:
        steps[games] += 1
        here = np.maximum(point.t, first)
        target = np.minimum(end, here * growth)
        residual = point.theta - log_mu - target[:, None] * point.q
        direction = _newton_direction(A, np.exp(point.theta), residual, target)
        new, fraction = _advance(A, log_mu, point, direction, target, near, rounding)

        predict = target > point.t
        accepted = fraction >= SHORTEST
        reach = np.where(accepted, new.t, target) / here
        power = np.where(accepted, np.where(fraction == 1.0, 2.0, 1.0), 0.5)
        growth = np.where(predict, np.minimum(reach**power, FURTHEST), growth)
        stalled = ~accepted & (~predict | (growth < 1.0 + 1e-9))
        given_up = (stalled & (near < 1e-4 * NEIGHBOURHOOD)) | (steps[games] >= MAX_STEPS)
        rounded = stalled & (point.t == end) & (point.distance < 1e-10)
        restart = stalled & ~given_up & ~rounded
        growth = np.where(restart, FURTHEST, growth)
        near = np.where(restart, near / 10.0, near)
        point = new.where(accepted, start.where(restart, point))

        # The last step is a correction: responses too rare to count in the distance get their due as well.
        arrived = accepted & ~predict & (point.t == end) & (point.distance <= rounding)
        done = arrived | rounded | given_up
        if done.any():
            theta[games[done]] = point.theta[done]
            left = ~done
            games, A, log_mu, first, rounding = (x[left] for x in (games, A, log_mu, first, rounding))
            growth, near, start, point = growth[left], near[left], start.take(left), point.take(left)
    return theta, steps


def _newton_direction(A: FloatArray, pi: FloatArray, residual: FloatArray, t: FloatArray) -> FloatArray:
    """Solve `(I − t A Σ) d = −F`, modulo constants, for the d with ⟨π, d⟩ = 0.

    With D = diag(π) and u = D^½ d it reads `(I − t D^½ A D^½) u = −D^½ F + c D^½ 1`, c such that
    `⟨D^½ 1, u⟩ = 0`: the identity plus a skew matrix. A response of negligible probability acts on no other:
    the system has the size of the support, and `d = −F + c + t A D^½ u` is explicit for everyone.
    """
    support = (pi > NEGLIGIBLE).any(axis=0)
    block = A if support.all() else A[:, support][:, :, support]
    root = np.sqrt(pi[:, support])
    F = residual - np.sum(pi * residual, axis=-1, keepdims=True)  # its mean would swamp it in the solve
    matrix = block * (root * -t[:, None])[:, :, None]
    matrix *= root[:, None, :]
    diagonal = np.arange(root.shape[-1])
    matrix[:, diagonal, diagonal] = 1.0
    u, v = np.moveaxis(np.linalg.solve(matrix, np.stack([-root * F[:, support], root], axis=-1)), -1, 0)
    c = -np.sum(root * u, axis=-1, keepdims=True) / np.sum(root * v, axis=-1, keepdims=True)
    weighted = np.zeros_like(pi)
    weighted[:, support] = root * (u + c * v)
    return np.asarray(c - F + t[:, None] * _payoff(A, weighted))


def _advance(
    A: FloatArray,
    log_mu: FloatArray,
    point: _Point,
    direction: FloatArray,
    target: FloatArray,
    near: FloatArray,
    rounding: FloatArray,
) -> tuple[_Point, FloatArray]:
    """Go the fraction α = 1, ½, ¼, … of the way to `(θ + d, target)` that first ends well; return it and α.

    A prediction must end within `near` of the path, a correction (target = t) must come closer to it unless
    rounding forbids.
    An α below `SHORTEST` says that none did.
    """
    fraction = np.ones_like(target)
    while True:
        t = (1.0 - fraction) * point.t + fraction * target
        theta, pi = normalise(point.theta + fraction[:, None] * direction)
        q = _payoff(A, pi)
        distance = kl(theta, normalise(log_mu + t[:, None] * q)[0])
        closer = np.maximum((1.0 - fraction / 2.0) * point.distance, rounding)
        allowed = np.where(target > point.t, near, closer)
        good = distance <= allowed
        fraction = np.where(good, fraction, fraction / 2.0)
        if np.all(good | (fraction < SHORTEST)):
            return _Point(theta, q, t, distance), fraction


def _payoff(A: FloatArray, pi: FloatArray) -> FloatArray:
    return np.asarray(np.matmul(A, pi[..., None])[..., 0])
