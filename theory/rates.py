"""Rates fitted to a trace: the exponent of a power law, or the factor of a geometric decay.

The interval of a fit is a moving-block bootstrap (Künsch 1989) of its residuals. A trace is deterministic and
its residuals are oscillations, strongly correlated in time; blocks keep them together. The interval says how
well *this window* of *this run* fixes the slope; it knows nothing of what lies beyond, such as a transient
that the burn-in did not cut off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike

from nashpref.policies import FloatArray

CONFIDENCE = 0.95
POINTS = 400  # log-spaced points of a power-law fit


@dataclass(frozen=True)
class RateFit:
    """A straight line through log(values), and how well it is known.

    Attributes:
        slope: p in `value ~ t^p` (`power_law`), or log f in `value ~ f^t` (`geometric`).
        low: lower end of the 95 % interval of the slope. high: its upper end.
        intercept: log of the value at t = 1 (`power_law`) or t = 0 (`geometric`) on the line.
        first: first step in the fit. last: last step in it. points: how many there are.
    """

    slope: float
    low: float
    high: float
    intercept: float
    first: float
    last: float
    points: int

    @property
    def factor(self) -> float:
        """`e^slope`: the factor per step of a geometric fit."""
        return math.exp(self.slope)


def power_law(
    steps: ArrayLike, values: ArrayLike, *, burn_in: float, rng: Generator, resamples: int = 1000
) -> RateFit:
    """Fit `log value = intercept + p log t` over t ≥ max(burn_in, 1).

    At most 400 log-spaced steps are used, so that the last factor of ten does not outvote the others.

    Args:
        steps: t, increasing, `(R,)`.
        values: what decays, `(R,)`, positive from the burn-in on; cut it above the rounding floor.
        burn_in: steps before this are transient and left out. There is no default: look at the curve.
        rng: for the bootstrap.
        resamples: its size.

    Raises:
        ValueError: unequal lengths, fewer than 8 points after the burn-in, or a value there that is not
            positive and finite.
    """
    t, y = _window(steps, values, max(burn_in, 1.0))
    nearest = np.searchsorted(t, np.geomspace(t[0], t[-1], POINTS) * (1.0 - 1e-12))
    keep = np.unique(np.minimum(nearest, len(t) - 1))
    return _fit(np.log(t[keep]), np.log(y[keep]), t[keep], rng, resamples)


def geometric(
    steps: ArrayLike, values: ArrayLike, *, burn_in: float, rng: Generator, resamples: int = 1000
) -> RateFit:
    """Fit `log value = intercept + t log f` over t ≥ burn_in; `.factor` is f. Arguments as in `power_law`."""
    t, y = _window(steps, values, burn_in)
    return _fit(t, np.log(y), t, rng, resamples)


def _window(steps: ArrayLike, values: ArrayLike, burn_in: float) -> tuple[FloatArray, FloatArray]:
    t, y = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if t.ndim != 1 or t.shape != y.shape:
        raise ValueError(f"steps has shape {t.shape} and values {y.shape}: both must be (R,)")
    t, y = t[t >= burn_in], y[t >= burn_in]
    if len(t) < 8:
        raise ValueError(f"{len(t)} points from burn_in = {burn_in:g} on: a fit with an interval needs 8")
    if not (np.isfinite(y).all() and y.min() > 0.0):
        k = int(np.argmin(np.isfinite(y) & (y > 0.0)))
        raise ValueError(f"value {y[k]} at step {t[k]:g} has no logarithm: cut the trace before it")
    return t, y


def _fit(x: FloatArray, y: FloatArray, t: FloatArray, rng: Generator, resamples: int) -> RateFit:
    """Least squares, and percentiles of the slopes of `line + resampled blocks of residuals`."""
    m = len(x)
    centred = x - x.mean()
    weights = centred / np.dot(centred, centred)
    slope = float(np.dot(weights, y))
    residuals = y - y.mean() - slope * centred
    block = math.isqrt(m - 1) + 1  # ⌈√m⌉: several oscillations, several blocks
    starts = rng.integers(0, m - block + 1, size=(resamples, -(-m // block)))
    chosen = (starts[:, :, None] + np.arange(block)).reshape(resamples, -1)[:, :m]
    slopes = slope + residuals[chosen] @ weights
    low, high = np.quantile(slopes, (0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2))
    return RateFit(
        slope, float(low), float(high), float(y.mean() - slope * x.mean()), float(t[0]), float(t[-1]), m
    )
