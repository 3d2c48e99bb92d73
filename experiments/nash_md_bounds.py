"""Nash-MD's distance to equilibrium beside its two bounds, and the bias of a constant step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

import nashpref as npf
from nashpref.experiments.common import Experiment, Table, stack, table


@dataclass(frozen=True)
class Settings:
    """Random games with n responses, uniform reference, start at the reference."""

    games: int = 20
    n: int = 10
    seed: int = 0
    betas: tuple[float, ...] = (1.0, 0.1, 0.01)
    steps: int = 100_000
    constant_beta: float = 0.1
    etas: tuple[float, ...] = (0.5, 0.2)
    constant_steps: int = 2500


def run(settings: Settings) -> Mapping[str, Table]:
    """`schedule`: KL(π*_β‖π_T) of Nash-MD under η_t = 2/(β(t+2)), per β and game, T ≥ 1 log-spaced.
    `constant`: the same for Nash-MD and GDA with a constant η.
    """
    games = npf.zoo.random_preferences(settings.n, np.random.default_rng(settings.seed), settings.games)
    schedule = []
    for beta in settings.betas:
        grid = npf.log_grid(settings.steps, 120)
        star = npf.equilibrium(games, beta).policy
        trace = npf.solve(games, npf.NashMD(beta=beta), settings.steps, equilibrium=star, record=grid)
        schedule.append(table(trace, "kl", beta=beta))

    beta = settings.constant_beta
    star = npf.equilibrium(games, beta).policy
    constant = []
    for eta in settings.etas:
        for name, rule in (("Nash-MD", npf.NashMD(beta=beta, eta=eta)), ("GDA", npf.GDA(beta=beta, eta=eta))):
            trace = npf.solve(games, rule, settings.constant_steps, equilibrium=star, record=10)
            constant.append(table(trace, "kl", method=name, eta=eta))
    return {"schedule": stack(schedule), "constant": stack(constant)}


EXPERIMENT = Experiment(
    "Nash-MD's KL to equilibrium against both bounds; its constant-step bias beside GDA",
    {
        "quick": Settings(games=5, steps=2000, constant_steps=1500),
        "default": Settings(),
        "full": Settings(games=100, steps=1_000_000),
    },
    run,
)
