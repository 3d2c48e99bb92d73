"""Last iterates in the regularised game, in the simulation setting published with EGPO (arXiv:2503.08942)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

import nashpref as npf
from nashpref.experiments.common import Experiment, Table, stack, table


@dataclass(frozen=True)
class Panel:
    """One β with the iterations and the learning rate of the publication."""

    beta: float
    steps: int
    learning_rate: float


@dataclass(frozen=True)
class Settings:
    """10 games, n = 10, P ~ U(0, 1) below the diagonal, reference logits N(0, 1), start at the reference.

    Published in float32 with another random stream; here float64 and NumPy's, from their seed. The
    publication's SGD step of size lr on logits is the mirror step η = 4 lr/(βn).
    """

    games: int = 10
    n: int = 10
    seed: int = 2018011309
    panels: tuple[Panel, ...] = (Panel(0.001, 100_000, 2e-4), Panel(0.01, 5000, 0.02), Panel(0.1, 1000, 0.1))


def run(settings: Settings) -> Mapping[str, Table]:
    """`gaps`: the regularised duality gap of every rule's last iterate, per β and game.

    All rules take the published step but Nash-MP, which takes its theorem's, η = 2.
    """
    rng = np.random.default_rng(settings.seed)
    games = npf.zoo.random_preferences(settings.n, rng, settings.games)
    logits = rng.standard_normal((settings.games, settings.n))
    reference = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    parts = []
    for panel in settings.panels:
        beta = panel.beta
        eta = 4.0 * panel.learning_rate / (beta * settings.n)
        rules = {
            "GDA": npf.GDA(beta=beta, eta=eta),
            "MMD": npf.MMD(beta=beta, eta=eta),
            "Nash-MD": npf.NashMD(beta=beta, eta=eta),
            "OGDA": npf.OGDA(beta=beta, eta=eta),
            "EGPO": npf.EGPO(beta=beta, eta=eta),
            "Nash-MP": npf.NashMP(beta=beta),
        }
        for name, rule in rules.items():
            record = max(1, panel.steps // 250)
            trace = npf.solve(games, rule, panel.steps, reference=reference, record=record)
            parts.append(table(trace, "gap", method=name, beta=beta))
    return {"gaps": stack(parts)}


EXPERIMENT = Experiment(
    "regularised last iterates in EGPO's published simulation setting",
    {
        "quick": Settings(games=3, panels=(Panel(0.01, 5000, 0.02), Panel(0.1, 1000, 0.1))),
        "default": Settings(),
        "full": Settings(games=100),
    },
    run,
)
