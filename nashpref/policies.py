"""Policies in log space: normalisation, geometric mixtures, Kullback–Leibler divergence, entropy.

A policy is an array of probabilities over its last axis. Inside the library its logarithm is the state:
mirror descent drives probabilities below the smallest float, where `exp` underflows to an exact zero. A
zero is harmless when log π is what is kept, and absorbing when π is.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

SIMPLEX_TOLERANCE = 1e-8
SHORT, FEW = 32, 16  # rows are short up to SHORT entries, and few when fewer than FEW times as long
BLOCK = 2048  # rows that stay in cache while they are turned


def largest(values: FloatArray) -> FloatArray:
    """The maximum over the last axis.

    Many short rows are turned first: numpy would reduce them one slow row at a time.
    """
    n = values.shape[-1]
    if values.ndim == 1 or n > SHORT or values.size < FEW * n * n:
        return np.asarray(np.maximum.reduce(values, axis=-1))
    rows = values.reshape(-1, n)
    result = np.empty(len(rows))
    for first in range(0, len(rows), BLOCK):
        result[first : first + BLOCK] = np.maximum.reduce(rows[first : first + BLOCK].T.copy(), axis=0)
    return result.reshape(values.shape[:-1])


def normalise(logits: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return `(log π, π)` with π ∝ exp(logits) along the last axis.

    Both are wanted at every iterate and the second costs nothing more than the first.
    """
    peak = np.maximum.reduce(logits, keepdims=True) if logits.ndim == 1 else largest(logits)[..., None]
    shifted = logits - peak
    weights = np.exp(shifted)
    total = np.add.reduce(weights, axis=-1, keepdims=True)
    shifted -= np.log(total)
    weights /= total
    return shifted, weights


def geometric_mixture(log_policies: Mapping[str, FloatArray], weights: Mapping[str, float]) -> FloatArray:
    """log of the policy ∝ Π_k π_k^{w_k}, normalised; the weights `w_k` must sum to one."""
    logits = np.zeros(())
    for name, weight in weights.items():
        logits = logits + weight * log_policies[name]
    return normalise(logits)[0]


def kl(log_p: FloatArray, log_q: FloatArray) -> FloatArray:
    """KL(p‖q) = Σ_y p(y) log(p(y)/q(y)) over the last axis, from log-probabilities.

    Computed as Σ p(e^d − 1 − d) with d = log q − log p, which equals it because both sum to one. Every
    term is non-negative, so nothing cancels: the result is accurate down to 1e-30, where the textbook
    form is lost in rounding at 1e-16. Terms with p(y) = 0 contribute q(y).
    """
    p, q = np.exp(log_p), np.exp(log_q)
    with np.errstate(invalid="ignore", over="ignore"):
        d = log_q - log_p
        near = p * (np.expm1(d) - d)
        far = q - p - p * d
    terms = np.where(np.abs(d) < 1.0, near, np.where(p > 0.0, far, q))
    return np.asarray(np.add.reduce(terms, axis=-1))


def entropy(log_p: FloatArray) -> FloatArray:
    """−Σ_y p(y) log p(y) over the last axis, from log-probabilities; 0·log 0 = 0."""
    p = np.exp(log_p)
    return np.asarray(-np.add.reduce(p * np.where(p > 0.0, log_p, 0.0), axis=-1))


def uniform(shape: tuple[int, ...]) -> FloatArray:
    """The uniform policy over the last axis of `shape`."""
    return np.full(shape, 1.0 / shape[-1])


def check_policy(
    policy: ArrayLike, shape: tuple[int, ...], name: str, *, positive: bool = False
) -> FloatArray:
    """Validate `policy` at the boundary and return it as float64, broadcast to `shape` from its last axes.

    Raises `ValueError` naming the value and its place when an entry is not finite or negative (or zero,
    where `positive` asks for full support), or when a row does not sum to one within 1e-8.
    """
    array = np.array(policy, dtype=np.float64)
    if not array.ndim or array.shape != shape[-array.ndim :]:
        raise ValueError(f"{name} has shape {array.shape}; the game needs {shape}")
    array = np.array(np.broadcast_to(array, shape))
    for bad, what in (
        (~np.isfinite(array), "is not finite"),
        (array < 0.0, "is negative"),
        (array == 0.0 if positive else np.zeros(shape, bool), "is zero; it must be positive everywhere"),
    ):
        if bad.any():
            at = tuple(int(i) for i in np.argwhere(bad)[0])
            raise ValueError(f"{name}{list(at)} = {array[at]} {what}")
    total = np.asarray(array.sum(axis=-1))
    if (error := np.abs(total - 1.0)).max() > SIMPLEX_TOLERANCE:
        at = tuple(int(i) for i in np.unravel_index(int(error.argmax()), error.shape))
        row = f"{name}{list(at)}" if at else name
        raise ValueError(f"{row} sums to {total[at]:.12g}, not 1: divide it by its sum")
    return array


def check_reference(reference: ArrayLike | None, shape: tuple[int, ...]) -> FloatArray:
    """The reference μ as an array of `shape`: uniform when None, else validated and positive everywhere."""
    return uniform(shape) if reference is None else check_policy(reference, shape, "reference", positive=True)


def log_policy(policy: FloatArray) -> FloatArray:
    """log π, normalised; exact zeros become −inf."""
    with np.errstate(divide="ignore"):
        return normalise(np.log(policy))[0]
