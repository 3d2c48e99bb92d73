"""Estimates with intervals that know which observations belong together.

Pairs and samples of one prompt are not independent: what is easy about a prompt is easy for all of them. So
every observation has a group, its prompt, and groups are what varies. All intervals are of 95 %.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike
from scipy.special import ndtri

from nashpref.analysis import CONFIDENCE
from nashpref.policies import FloatArray, IntArray

ENDS = (0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and the ends of its interval, which are NaN where a single group leaves nothing to compare."""

    value: float
    low: float
    high: float


def proportion(values: ArrayLike, groups: ArrayLike) -> Estimate:
    """The mean p of outcomes in [0, 1] with Wilson's interval for the effective number of observations.

    With `t = z²/m` the ends are `(p + t/2 ± √(t p(1 − p) + t²/4)) / (1 + t)`. Here `m = p(1 − p)/V`, and V is
    the variance of p between groups (see `variance_of_mean`): m observations that were independent would
    leave p as uncertain as these do. Outcomes 0 and 1, one in each group, give m = n: Wilson's own interval.
    When all outcomes are 0, or all are 1, nothing is known of V and m is the number of groups, as if each
    were of one mind.

    Args:
        values: outcomes, `(n,)`; 1/2 for a tie.
        groups: the group of each, `(n,)` integers.

    Raises:
        ValueError: no values, or one outside [0, 1].

    Source: Franco, Little, Louis and Slud (2019), J. Survey Stat. Methodol. 7, 334.
    """
    x, group, count = _grouped(values, groups)
    if not (x.min() >= 0.0 and x.max() <= 1.0):
        raise ValueError(f"values from {x.min():g} to {x.max():g}: outcomes must be in [0, 1]")
    p = float(x.mean())
    if count == 1:
        return Estimate(p, np.nan, np.nan)
    spread = p * (1.0 - p)
    z = float(ndtri(ENDS[1]))
    t = z * z * (variance_of_mean(x, group) / spread if spread > 0.0 else 1.0 / count)
    middle, half = p + t / 2.0, float(np.sqrt(t * spread + t * t / 4.0))
    # At 0 and 1 an end is p itself, which rounding must not push it past.
    return Estimate(
        p, min(p, max(0.0, (middle - half) / (1.0 + t))), max(p, min(1.0, (middle + half) / (1.0 + t)))
    )


def variance_of_mean(values: ArrayLike, groups: ArrayLike) -> float:
    """`Σ_g (Σ_{i ∈ g} (x_i − x̄))² / n²`: of the mean, when only groups are independent."""
    x, group, _ = _grouped(values, groups)
    return float(np.sum(np.bincount(group, x - x.mean()) ** 2) / len(x) ** 2)


def bootstrap(
    terms: ArrayLike,
    groups: ArrayLike,
    statistic: Callable[[FloatArray], FloatArray],
    rng: Generator,
    *,
    resamples: int = 2000,
) -> list[Estimate]:
    """Percentile intervals of statistics of sums, over resampled groups.

    A resample draws as many groups as there are, with replacement, each with all of its observations. A
    statistic that is not linear, an absolute value above all, is larger in resamples than in truth: its
    interval then lies high.

    Args:
        terms: what is summed, `(n, F)`: F terms of each observation.
        groups: the group of each, `(n,)` integers.
        statistic: from sums `(…, F)` to statistics `(…, k)`, such as a ratio of two sums.
        rng: draws the groups.
        resamples: how often.

    Returns:
        k estimates.
    """
    features, group, count = _grouped(terms, groups)
    values = statistic(features.sum(axis=0))
    if count == 1:
        return [Estimate(float(value), np.nan, np.nan) for value in values]
    sums = np.zeros((count, features.shape[1]))
    np.add.at(sums, group, features)
    drawn = [
        statistic(np.bincount(rng.integers(count, size=count), minlength=count) @ sums)
        for _ in range(resamples)
    ]
    low, high = np.quantile(drawn, ENDS, axis=0)
    return [Estimate(*map(float, each)) for each in zip(values, low, high, strict=True)]


def _grouped(values: ArrayLike, groups: ArrayLike) -> tuple[FloatArray, IntArray, int]:
    """Values as floats, groups as 0, 1, …, and how many groups there are."""
    x, group = np.asarray(values, dtype=np.float64), np.asarray(groups)
    if not len(x) or group.shape != (len(x),):
        raise ValueError(
            f"{len(x)} values in groups of shape {group.shape}: one group for each, at least one"
        )
    labels, inverse = np.unique(group, return_inverse=True)
    return x, inverse, len(labels)
