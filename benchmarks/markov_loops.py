"""Markov games as one writes them by hand in NumPy: what `solve` is timed and checked against.

Lists over the steps: `R[h]` the centred payoffs `(n_h·A, n_h·A)`, `T[h]` the transitions `(n_h·A, n_{h+1})`.
Policies are `(N, A)`, the states of all steps one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from nashpref.policies import FloatArray

Matrices = Sequence[Any]


@dataclass(frozen=True)
class Run:
    """What a loop ends with; the gaps, where they were wanted, of the last iterate and of the average."""

    policy: FloatArray
    plan_sum: FloatArray
    gap: FloatArray
    average_gap: FloatArray


def ompo(R: Matrices, T: Matrices, eta: float, steps: int, gaps: bool) -> Run:
    """Optimistic mirror descent on occupancy measures from uniform: d, A d, and the soft program."""
    H, A = len(R), len(R[0])
    layers = _layers([len(r) // A for r in R])
    pi = np.full((layers[-1].stop, A), 1.0 / A)
    theta = np.log(pi)

    def play() -> tuple[FloatArray, FloatArray]:
        d, r, mass = np.empty_like(pi), np.empty_like(pi), np.ones(1)
        for h, layer in enumerate(layers):
            d[layer] = mass[:, None] * pi[layer]
            x = d[layer].ravel()
            r[layer] = (R[h] @ x).reshape(-1, A)
            if h + 1 < H:
                mass = x @ T[h]
        return d, r

    def gap(r: FloatArray) -> float:
        value = r[layers[-1]].max(axis=1)
        for h in reversed(range(H - 1)):
            value = (r[layers[h]] + (T[h] @ value).reshape(-1, A)).max(axis=1)
        return float(2.0 * value[0])

    d, r = play()
    previous, d_sum, r_sum = r, d.copy(), r.copy()
    last, average = np.empty(steps + 1), np.empty(steps + 1)
    last[0] = average[0] = gap(r)
    for t in range(1, steps + 1):
        theta = theta + eta * (2.0 * r - previous)
        value = np.empty(0)
        for h in reversed(range(H)):
            logits = theta[layers[h]]
            if h + 1 < H:
                logits += (T[h] @ value).reshape(-1, A)
            peak = logits.max(axis=1, keepdims=True)
            logits -= peak
            weights = np.exp(logits)
            total = weights.sum(axis=1, keepdims=True)
            log_total = np.log(total)
            logits -= log_total
            pi[layers[h]] = weights / total
            value = (peak + log_total)[:, 0]
        previous = r
        d, r = play()
        d_sum += d
        r_sum += r
        if gaps:
            last[t], average[t] = gap(r), gap(r_sum / (t + 1))
    return Run(pi, d_sum, last, average)


def mtpo(R: FloatArray, T: Matrices, beta: float, eta: float, steps: int) -> Run:
    """Regularised descent in every state from a uniform reference; R `(S', S')` compares final states."""
    A = len(T[0])
    layers = _layers([len(t) // A for t in T])
    log_mu = np.full((layers[-1].stop, A), -np.log(A))
    log_pi, pi = log_mu, np.exp(log_mu)
    q = np.empty_like(pi)

    def play() -> tuple[FloatArray, FloatArray]:
        d, mass = np.empty_like(pi), np.ones(1)
        for t, layer in zip(T, layers, strict=True):
            d[layer] = mass[:, None] * pi[layer]
            mass = d[layer].ravel() @ t
        return d, R @ mass

    d, gain = play()
    d_sum = d.copy()
    for _ in range(steps):
        cost = beta * (pi * (log_pi - log_mu)).sum(axis=1)
        value = gain
        for h in reversed(range(len(T))):
            q[layers[h]] = (T[h] @ value).reshape(-1, A)
            value = (pi[layers[h]] * q[layers[h]]).sum(axis=1) - cost[layers[h]]
        log_pi = (1.0 - eta * beta) * log_pi + eta * beta * log_mu + eta * q
        log_pi -= log_pi.max(axis=1, keepdims=True)
        weights = np.exp(log_pi)
        total = weights.sum(axis=1, keepdims=True)
        pi = weights / total
        log_pi -= np.log(total)
        d, gain = play()
        d_sum += d
    return Run(pi, d_sum, np.empty(0), np.empty(0))


def joint_action_values(R: Matrices, T: Matrices, pi: FloatArray, opponent: FloatArray) -> FloatArray:
    """`E Q_h(s, a, s', a')` over the opponent's place, by the recursion over pairs of states, `(N, A)`.

    `Q_h = A_h + Σ_{x,x'} f(x|s,a) f(x'|s',a') V_{h+1}(x, x')`, `V_h(s, s') = ⟨π_h(s), Q_h(s, s') π'_h(s')⟩`.
    """
    A = len(R[0])
    layers = _layers([len(r) // A for r in R])
    averaged = np.empty_like(pi)
    mass = [np.ones(1)]
    for t, layer in zip(T, layers, strict=False):
        mass.append((mass[-1][:, None] * opponent[layer]).ravel() @ t)
    value = np.empty(0)
    for h in reversed(range(len(R))):
        q = R[h] if h + 1 == len(R) else R[h] + T[h] @ value @ T[h].T
        d = mass[h][:, None] * opponent[layers[h]]
        averaged[layers[h]] = (q @ d.ravel()).reshape(-1, A)
        n = len(d)
        ours = np.einsum("sa,sax->sx", pi[layers[h]], q.reshape(n, A, n * A))
        value = np.einsum("sxb,xb->sx", ours.reshape(n, n, A), opponent[layers[h]])
    return averaged


def _layers(sizes: Sequence[int]) -> list[slice]:
    ends = np.cumsum([0, *sizes]).tolist()
    return [slice(start, end) for start, end in pairwise(ends)]
