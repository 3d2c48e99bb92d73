"""Two geometric mixtures of two policies, of tokens and of whole responses, and how far apart they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.random import Generator

from nashpref.experiments.common import Table
from nashpref.policies import FloatArray, normalise

if TYPE_CHECKING:
    from nashpref.llm.environments import Task

REPETITIONS = 4000  # of sampling, for `reweighted`


def mixtures(task: Task, start: FloatArray, end: FloatArray, rng: Generator) -> Table:
    """How far apart the mixtures `start^{1−w} end^w` of tokens, t, and of whole responses, s, are.

    For weights w: `total_variation` between the two, the mean over the prompts; `effective`, the share of K
    samples of t that are left when importance weights make them samples of s, `1/Σ_y s(y)²/t(y)`; and
    `weighted_K`, the total variation between s and K weighted samples in expectation. All but the last by
    enumeration.

    Args:
        task: whose responses, all of one length, the policies are of.
        start, end: positive, `(B, n)`.
        rng: for `weighted_K`.
    """
    shares, rows = np.linspace(0.0, 1.0, 9), []
    for w in shares:
        whole = normalise((1.0 - w) * np.log(start) + w * np.log(end))[1]
        tokens = by_token(task, (1.0 - w, start), (w, end))
        row = {
            "weight": w,
            "total_variation": total_variation(whole, tokens),
            "effective": float(np.mean(1.0 / (whole**2 / tokens).sum(axis=1))),
        }
        for K in (8, 32, 128):
            row[f"weighted_{K}"] = total_variation(whole, reweighted(whole, tokens, K, rng))
        rows.append(row)
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def by_token(task: Task, *parts: tuple[float, FloatArray]) -> FloatArray:
    """The mixture whose every conditional `p(y_t|y_<t)` is that of the parts' conditionals; `(B, n)`."""
    shape = (-1, *[len(task.alphabet)] * task.longest)
    log_p = np.zeros((1,) * len(shape))
    for t in range(1, len(shape)):
        mixed = np.zeros(())
        for weight, policy in parts:
            prefixes = policy.reshape(shape).sum(axis=tuple(range(t + 1, len(shape))), keepdims=True)
            mixed = mixed + weight * np.log(prefixes / prefixes.sum(axis=t, keepdims=True))
        log_p = log_p + mixed - np.logaddexp.reduce(mixed, axis=t, keepdims=True)
    return np.asarray(np.exp(log_p).reshape(len(parts[0][1]), -1))


def reweighted(whole: FloatArray, tokens: FloatArray, K: int, rng: Generator) -> FloatArray:
    """What K samples of `tokens` with weights `∝ whole/tokens`, of sum 1, are in expectation."""
    found = tokens.copy()
    for mean, s, t in zip(found, whole, tokens, strict=True):
        y = rng.choice(len(t), size=(REPETITIONS, K), p=t)
        weights = (s / t)[y]
        # Less what the same samples are without weights, whose expectation is known: far less noise.
        change = weights / weights.sum(axis=1, keepdims=True) - 1.0 / K
        np.add.at(mean, y, change / REPETITIONS)
    return found


def total_variation(p: FloatArray, q: FloatArray) -> float:
    """The mean over prompts."""
    return float(0.5 * np.abs(p - q).sum(axis=1).mean())
