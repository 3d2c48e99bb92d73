"""The update rules as one writes them by hand in NumPy: what `nashpref.solve` is timed and checked against.

The timed loops compute what a `Trace` holds at every step: the gap of the last iterate and of the average
one, and at β > 0 also the unregularised gap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

import nashpref as npf
from benchmarks.peers import softmax
from nashpref.policies import FloatArray

Gaps = tuple[FloatArray, FloatArray]  # of the last iterate and of the average, at every step


def agreement(trace: npf.Trace, gaps: Gaps) -> str:
    """How closely a trace has the same gaps, for the note; `RuntimeError` if it has others."""
    error = max(np.abs(trace.gap - gaps[0]).max(), np.abs(trace.average_gap - gaps[1]).max())
    if not error <= 1e-9:
        raise RuntimeError(f"the hand-written loop has other gaps: they differ by {error:.0e}")
    return f"gaps differ by {error:.0e}"


def ogda(A: FloatArray, eta: float, steps: int) -> Gaps:
    """Optimistic multiplicative weights from uniform, one game."""
    pi = np.full(len(A), 1.0 / len(A))
    theta = np.log(pi)
    q = previous = A @ pi
    pi_sum, q_sum = pi.copy(), q.copy()
    gap, average_gap = np.empty(steps + 1), np.empty(steps + 1)
    gap[0] = average_gap[0] = 2.0 * q.max()
    for t in range(1, steps + 1):
        theta = theta + eta * (2.0 * q - previous)
        theta -= theta.max()
        pi = np.exp(theta)
        total = pi.sum()
        pi /= total
        theta -= np.log(total)
        previous, q = q, A @ pi
        pi_sum += pi
        q_sum += q
        gap[t] = 2.0 * q.max()
        average_gap[t] = 2.0 * q_sum.max() / (t + 1)
    return gap, average_gap


def ogda_batch(A: FloatArray, eta: float, steps: int) -> Gaps:
    """`ogda` on a batch (B, n, n) of games at once."""
    batch, n, _ = A.shape
    pi = np.full((batch, n), 1.0 / n)
    theta = np.log(pi)
    q = previous = np.matmul(A, pi[..., None])[..., 0]
    pi_sum, q_sum = pi.copy(), q.copy()
    gap, average_gap = np.empty((steps + 1, batch)), np.empty((steps + 1, batch))
    gap[0] = average_gap[0] = 2.0 * q.max(axis=1)
    for t in range(1, steps + 1):
        theta = theta + eta * (2.0 * q - previous)
        theta -= theta.max(axis=1, keepdims=True)
        pi = np.exp(theta)
        total = pi.sum(axis=1, keepdims=True)
        pi /= total
        theta -= np.log(total)
        previous, q = q, np.matmul(A, pi[..., None])[..., 0]
        pi_sum += pi
        q_sum += q
        gap[t] = 2.0 * q.max(axis=1)
        average_gap[t] = 2.0 * q_sum.max(axis=1) / (t + 1)
    return gap, average_gap


def nash_md(A: FloatArray, beta: float, eta: float, steps: int) -> Gaps:
    """Nash-MD from a uniform reference, one game."""
    log_mu = np.full(len(A), -np.log(len(A)))
    pull = eta * beta * log_mu

    def update(log_pi: FloatArray, q: FloatArray) -> tuple[FloatArray, FloatArray]:
        log_mixture, mixture = softmax((1.0 - eta * beta) * log_pi + pull)
        return softmax(log_mixture + eta * (A @ mixture))

    return _regularised(A, beta, log_mu, steps, update)


def egpo(A: FloatArray, beta: float, eta: float, steps: int) -> Gaps:
    """EGPO from a uniform reference, one game."""
    log_mu = np.full(len(A), -np.log(len(A)))
    pull = eta * beta * log_mu

    def update(log_pi: FloatArray, q: FloatArray) -> tuple[FloatArray, FloatArray]:
        base = (1.0 - eta * beta) * log_pi + pull
        return softmax(base + eta * (A @ softmax(base + eta * q)[1]))

    return _regularised(A, beta, log_mu, steps, update)


def _regularised(
    A: FloatArray,
    beta: float,
    log_mu: FloatArray,
    steps: int,
    update: Callable[[FloatArray, FloatArray], tuple[FloatArray, FloatArray]],
) -> Gaps:
    def kl_gap(pi: FloatArray, log_pi: FloatArray, q: FloatArray) -> float:
        d = softmax(log_mu + q / beta)[0] - log_pi
        return float(2.0 * beta * (pi @ (np.expm1(d) - d)))

    log_pi, pi = softmax(log_mu)
    q = A @ pi
    pi_sum, q_sum = np.zeros_like(pi), np.zeros_like(pi)
    gap, plain, average_gap = np.empty((3, steps + 1))
    for t in range(steps + 1):
        pi_sum += pi
        q_sum += q
        average = pi_sum / (t + 1)
        gap[t], plain[t] = kl_gap(pi, log_pi, q), 2.0 * q.max()
        average_gap[t] = kl_gap(average, np.log(average), q_sum / (t + 1))
        if t < steps:
            log_pi, pi = update(log_pi, q)
            q = A @ pi
    return gap, average_gap


# --- the papers' own forms, for the equivalences: each yields π_0, π_1, … from μ ---


def one_call_omwu(A: FloatArray, mu: FloatArray, eta: float, *, centred: bool) -> Iterator[FloatArray]:
    """`π_{t+1} ∝ π_t e^{η(2q_t − q_{t−1})}` with q_{−1} = 0 if `centred`, else q_{−1} = q_0."""
    pi, previous = mu, np.zeros_like(mu) if centred else A @ mu
    while True:
        yield pi
        q = A @ pi
        pi = _normalised(pi * np.exp(eta * (2.0 * q - previous)))
        previous = q


def inpo(A: FloatArray, mu: FloatArray, beta: float, eta: float) -> Iterator[FloatArray]:
    """`π_{t+1} ∝ e^{q/η_I} μ^{β/η_I} π_t^{1−β/η_I}` with η_I = 1/η (arXiv:2407.00617)."""
    pi, step = mu, 1.0 / eta
    while True:
        yield pi
        pi = _normalised(np.exp(A @ pi / step) * mu ** (beta / step) * pi ** (1.0 - beta / step))


def magnetic(A: FloatArray, mu: FloatArray, beta: float, eta: float) -> Iterator[FloatArray]:
    """MMD with its implicit magnet: `π_{t+1} ∝ (π_t μ^{ηβ} e^{ηq})^{1/(1+ηβ)}` (arXiv:2206.05825)."""
    pi = mu
    while True:
        yield pi
        pi = _implicit(pi, mu, A @ pi, beta, eta)


def nash_mp(A: FloatArray, mu: FloatArray, beta: float, eta: float) -> Iterator[FloatArray]:
    """Nash mirror-prox with its implicit KL, both half steps from π_t (arXiv:2505.19731)."""
    pi = mu
    while True:
        yield pi
        pi = _implicit(pi, mu, A @ _implicit(pi, mu, A @ pi, beta, eta), beta, eta)


def _implicit(pi: FloatArray, mu: FloatArray, q: FloatArray, beta: float, eta: float) -> FloatArray:
    return _normalised((pi * mu ** (eta * beta) * np.exp(eta * q)) ** (1.0 / (1.0 + eta * beta)))


def _normalised(weights: FloatArray) -> FloatArray:
    return np.asarray(weights / weights.sum())
