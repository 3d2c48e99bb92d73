"""The games that `nashpref zoo` writes: one of each kind in the zoo, small enough to look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from nashpref.games import zoo
from nashpref.games.markov import MarkovGame
from nashpref.games.matrix import MatrixGame


@dataclass(frozen=True)
class Example:
    """A game that can be made: what it is, and how, from a source of randomness that it may ignore."""

    title: str
    make: Callable[[Generator], MatrixGame | MarkovGame]


MATRIX: Mapping[str, Example] = {
    "rock-paper-scissors": Example("the cycle of three", lambda rng: zoo.rock_paper_scissors()),
    "annotators": Example("three consistent annotators, one cycle", lambda rng: zoo.annotators()),
    "comal": Example("COMAL's cycle of unequal margins", lambda rng: zoo.comal()),
    "bradley-terry": Example(
        "ten normal rewards: transitive", lambda rng: zoo.bradley_terry(rng.normal(size=10))
    ),
    "low-rank": Example("20 responses, skew scores of rank 4", lambda rng: zoo.low_rank_skew(20, 4, rng)),
    "random": Example("20 responses, independent preferences", lambda rng: zoo.random_preferences(20, rng)),
    "tournament": Example("20 responses, every pair decided", lambda rng: zoo.random_tournament(20, rng)),
}
MARKOV: Mapping[str, Example] = {
    "dialogue": Example("two answers to a user, three groups of annotators", lambda rng: zoo.dialogue()),
    "dialogue-lost": Example("the same, and the user may be lost", lambda rng: zoo.dialogue(lost=0.25)),
    "penney": Example("Penney's game: strings written toss by toss", lambda rng: zoo.penneys_game()),
    "gridworld": Example(
        "25 cells, 5 steps, hidden features of the last cell decide",
        lambda rng: zoo.gridworld(25, 4, 5, rng, features=4, terminal=True),
    ),
    "random-steps": Example(
        "6 states, 3 actions, 4 steps, preferences at every step, 2 initial states",
        lambda rng: zoo.random_markov_game(6, 3, 4, rng, starts=2),
    ),
    "random-sparse": Example(
        "40 states, 3 actions, 5 steps, each leading to at most 3 states, final states compared",
        lambda rng: zoo.random_markov_game(40, 3, 5, rng, terminal=True, branching=3),
    ),
}
EXAMPLES = {**MATRIX, **MARKOV}


def make(name: str, seed: int) -> MatrixGame | MarkovGame:
    """The example of this name."""
    return EXAMPLES[name].make(np.random.default_rng(seed))
