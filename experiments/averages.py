"""The average iterate in the original game: MWU reaches T^-1/2, OGDA T^-1; the bounds are drawn beside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

import nashpref as npf
from nashpref.experiments.common import Experiment, Table, counting_iterates, stack, table


@dataclass(frozen=True)
class Settings:
    """Random games with n responses, started at uniform, so that D = log n.

    MWU's step √(8D/T) depends on the horizon T: each of the `horizons` is a run of its own.
    """

    games: int = 20
    n: int = 10
    seed: int = 0
    eta: float = 0.5
    horizons: tuple[int, ...] = (10, 32, 100, 316, 1000, 3162, 10_000, 31_623, 100_000)


def run(settings: Settings) -> Mapping[str, Table]:
    """`gaps`: T, `average_gap` of the mean of the T iterates π_1 … π_T (the start first), and `last_gap`.

    MWU has one row per horizon and game; OGDA and ONPO, whose step is constant, one run each.
    """
    games = npf.zoo.random_preferences(settings.n, np.random.default_rng(settings.seed), settings.games)
    parts: list[Table] = []
    for horizon in settings.horizons:
        rule = npf.MWU(eta=npf.horizon(settings.n, horizon))
        trace = npf.solve(games, rule, horizon - 1, record=[horizon - 1])
        last = {name: column[-settings.games :] for name, column in _gaps(trace, "MWU").items()}
        parts.append(last)
    longest = max(settings.horizons)
    for name, optimistic in (("OGDA", npf.OGDA(eta=settings.eta)), ("ONPO", npf.ONPO(eta=settings.eta))):
        grid = [t - 1 for t in npf.log_grid(longest, 150) if t > 0]
        parts.append(_gaps(npf.solve(games, optimistic, longest - 1, record=grid), name))
    return {"gaps": stack(parts)}


def _gaps(trace: npf.Trace, method: str) -> Table:
    columns = dict(counting_iterates(table(trace, "average_gap", "unregularised_gap", method=method)))
    columns["last_gap"] = columns.pop("unregularised_gap")
    return columns


EXPERIMENT = Experiment(
    "gap of the average iterate: MWU T^-1/2, OGDA T^-1, and ONPO's printed bound, which fails",
    {
        "quick": Settings(games=5, horizons=(10, 32, 100, 316, 1000, 3162)),
        "default": Settings(),
        "full": Settings(games=100, horizons=(*Settings.horizons, 316_228, 1_000_000)),
    },
    run,
)
