"""OMPO against MPO on random gridworlds, the setting of OMPO's Figure 2: exploitability of the average."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

import nashpref as npf
from nashpref.experiments.common import Experiment, Table, counting_iterates, stack, table


@dataclass(frozen=True)
class Settings:
    """Gridworlds of `S ~ U[1, cells]` cells and `A ~ U[2, actions]` actions, as in the paper.

    The paper leaves open the rest, which is our choice: H, moves that fail with probability `slip`, a
    uniform initial cell, and preferences `P ~ U(0, 1)`, independent for any two pairs of cell and action.
    MPO's step √(log A/(T H²)) depends on the horizon T: each of the `horizons` is a run of its own. `mpo_eta`
    (of 0.1, 0.3, 0.4, 0.5, 1, 2) and `ompo_eta` (of 1, 1.5, 2, 2.5, 3, 3.5, 4) have the lowest mean after
    2000 iterates on the default games.
    """

    games: int = 10
    cells: int = 100
    actions: int = 10
    H: int = 5
    slip: float = 0.1
    seed: int = 0
    steps: int = 2000
    horizons: tuple[int, ...] = (10, 32, 100, 316, 1000, 2000)
    mpo_eta: float = 0.4
    ompo_eta: float = 3.0


def run(settings: Settings) -> Mapping[str, Table]:
    """`exploitability`: half the gap of the average occupancy of T iterates (the start first), per method,
    game and T; `last`, that of the T-th iterate. `games`: S, A and the log 1/d̲ of OMPO's bound.
    """
    rng = np.random.default_rng(settings.seed)
    sizes: list[tuple[int, int]] = []
    parts: list[Table] = []
    grid = [t - 1 for t in {*npf.log_grid(settings.steps, 80), *settings.horizons} if t > 0]
    for number in range(settings.games):
        S, A = int(rng.integers(1, settings.cells + 1)), int(rng.integers(2, settings.actions + 1))
        start = int(rng.integers(S))
        game = npf.zoo.gridworld(S, A, settings.H, rng, slip=settings.slip, initial=start)
        sizes.append((S, A))

        weighted = npf.Geometry.WEIGHTED_OCCUPANCY
        theorem = npf.OMPO()
        runs = {
            "OMPO": npf.solve(game, theorem, settings.steps - 1, record=grid),
            "OMPO, weighted": npf.solve(game, theorem, settings.steps - 1, geometry=weighted, record=grid),
            "OMPO, tuned": npf.solve(game, npf.OMPO(eta=settings.ompo_eta), settings.steps - 1, record=grid),
            "MPO, tuned": npf.solve(game, npf.MPO(eta=settings.mpo_eta), settings.steps - 1, record=grid),
        }
        parts += [_exploitability(trace, method, number) for method, trace in runs.items()]
        for T in settings.horizons:
            rule = npf.MPO(eta=math.sqrt(math.log(A) / (T * settings.H**2)))
            trace = npf.solve(game, rule, T - 1, record=[T - 1])
            columns = _exploitability(trace, "MPO, theorem", number)
            parts.append({name: column[-1:] for name, column in columns.items()})
    cells, actions = np.array(sizes).T
    games = {"game": np.arange(len(sizes)), "S": cells, "A": actions, "D": settings.H * np.log(actions)}
    return {"exploitability": stack(parts), "games": games}


def _exploitability(trace: npf.Trace, method: str, game: int) -> Table:
    columns = dict(counting_iterates(table(trace, "average_gap", "gap", method=method, game=game)))
    columns["average"] = columns.pop("average_gap") / 2.0
    columns["last"] = columns.pop("gap") / 2.0
    return columns


EXPERIMENT = Experiment(
    "OMPO against MPO on random gridworlds: exploitability of the average occupancy, beside OMPO's bound",
    {
        "quick": Settings(games=3, cells=30, steps=300, horizons=(10, 32, 100, 300)),
        "default": Settings(),
        "full": Settings(games=20, steps=10_000, horizons=(*Settings.horizons, 10_000)),
    },
    run,
)
