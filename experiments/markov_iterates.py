"""Last against average iterate in Markov games: OMPO and MPO, in the original and the regularised game."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

import nashpref as npf
from nashpref.experiments.common import Experiment, Table, stack, table


@dataclass(frozen=True)
class Settings:
    """Random games with deterministic dynamics and a preference at every step, uniform reference and start.

    One step size for both methods in the original game, one in the regularised one.
    """

    games: int = 6
    S: int = 5
    A: int = 3
    H: int = 4
    seed: int = 0
    eta: float = 0.5
    steps: int = 2000
    beta: float = 0.05
    regularised_eta: float = 1.0
    regularised_steps: int = 500


def run(settings: Settings) -> Mapping[str, Table]:
    """`original` and `regularised`: the duality gap of the last iterate (`gap`) and of the average
    occupancy (`average_gap`) by method, game and step. With β > 0, MPO with MTPO's regulariser is MTPO.
    """
    rng = np.random.default_rng(settings.seed)
    beta, eta = settings.beta, settings.regularised_eta
    original = {"MPO": npf.MPO(eta=settings.eta), "OMPO": npf.OMPO(eta=settings.eta)}
    regularised = {"MTPO": npf.MTPO(beta=beta, eta=eta), "OMPO": npf.OMPO(beta=beta, eta=eta)}
    parts: dict[str, list[Table]] = {"original": [], "regularised": []}
    for number in range(settings.games):
        game = npf.zoo.random_markov_game(settings.S, settings.A, settings.H, rng, branching=1)
        for kind, rules, steps in (
            ("original", original, settings.steps),
            ("regularised", regularised, settings.regularised_steps),
        ):
            for method, rule in rules.items():
                trace = npf.solve(game, rule, steps, record=npf.log_grid(steps, 120))
                parts[kind].append(table(trace, "gap", "average_gap", method=method, game=number))
    return {kind: stack(tables) for kind, tables in parts.items()}


EXPERIMENT = Experiment(
    "last against average iterate in Markov games: OMPO and MPO, and with β > 0 OMPO and MTPO",
    {
        "quick": Settings(games=3, steps=500),
        "default": Settings(),
        "full": Settings(games=20, steps=20_000),
    },
    run,
)
