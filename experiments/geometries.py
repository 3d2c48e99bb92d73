"""The same rule in two geometries, occupancy measures and per state, with a small and a large step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

import nashpref as npf
from nashpref.experiments.common import Experiment, Table, counting_iterates, stack, table


@dataclass(frozen=True)
class Settings:
    """Random games with deterministic dynamics and a preference at every step; OGDA, that is OMPO."""

    games: int = 5
    S: int = 10
    A: int = 4
    H: int = 5
    seed: int = 0
    etas: tuple[float, ...] = (0.5**0.5, 4.0)
    steps: int = 2000


def run(settings: Settings) -> Mapping[str, Table]:
    """`gaps`: T, η, geometry, game and the `average_gap` of the mean occupancy of T iterates."""
    rng = np.random.default_rng(settings.seed)
    grid = [t - 1 for t in npf.log_grid(settings.steps, 120) if t > 0]
    parts: list[Table] = []
    for number in range(settings.games):
        game = npf.zoo.random_markov_game(settings.S, settings.A, settings.H, rng, branching=1)
        for eta in settings.etas:
            for geometry in (npf.Geometry.OCCUPANCY, npf.Geometry.PER_STATE):
                rule = npf.OGDA(eta=eta)
                trace = npf.solve(game, rule, settings.steps - 1, geometry=geometry, record=grid)
                columns = table(trace, "average_gap", geometry=str(geometry), eta=eta, game=number)
                parts.append(counting_iterates(columns))
    return {"gaps": stack(parts)}


EXPERIMENT = Experiment(
    "occupancy against per-state geometry: with large steps only the first keeps the rate T^-1",
    {
        "quick": Settings(games=2, steps=600),
        "default": Settings(),
        "full": Settings(games=10, steps=10_000),
    },
    run,
)
