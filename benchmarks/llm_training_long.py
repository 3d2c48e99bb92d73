"""How near a transformer comes to equilibrium in minutes: `llm_training`, seven times as long.

A step of Nash-MD has two errors that the step size sets against each other. Its fixed point for a constant η
is off by O(η): in exact arithmetic the gap stays at 4.1e-3 for η = 1, at 9.8e-4 for 1/2 and, falling as
below, comes to 2.5e-4. And what is left of each fit is forgotten after 1/(ηβ) rounds, so that a small η adds
up more of them. So η falls slowly, and the learning rate to nothing well before the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import nashpref as npf
from benchmarks.harness import Row, in_fresh_process, row
from benchmarks.llm_training import BETA, Recipe, nearest

NEAR, ROUNDS, SEEDS = 1e-3, 1200, (0, 1)


def falling(t: int) -> float:
    """From 1.5 to 1/4, by the same factor in each round."""
    return float(1.5 * 6.0 ** (-t / ROUNDS))


RECIPES = {
    "Nash-MD": Recipe(
        npf.NashMD(beta=BETA, eta=falling), ROUNDS, "cosine", batch_responses=64, learning_rate=1.5e-3
    )
}


def rows() -> Iterator[Row]:
    """One for each seed, of fine-tuning and of the run."""
    for name, recipe in RECIPES.items():
        for seed in SEEDS:
            title = f"gap of a transformer, 8 prompts × 81 responses, after a long run: {name}, seed {seed}"
            yield row(title, f"≤ {NEAR:g}", "", in_fresh_process, nearest, recipe, NEAR, math.inf, seed)
