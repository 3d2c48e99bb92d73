"""The kinds of games that the library is measured on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from scipy.special import expit

import nashpref as npf
from nashpref.policies import FloatArray

LEVELS = 10  # a quantised preference is a multiple of 1/10: ten votes


def nearly_transitive(n: int, rng: Generator) -> npf.MatrixGame:
    """`P[i, j] = σ(r_i − r_j + S[i, j])`, rewards and skew noise S both N(0, 1).

    What a reward nearly explains: the equilibrium has about ten responses, whatever n.
    """
    rewards, noise = rng.standard_normal(n), np.triu(rng.standard_normal((n, n)), 1)
    return npf.MatrixGame(expit(rewards[:, None] - rewards + noise - noise.T))


def votes(n: int, rng: Generator) -> npf.MatrixGame:
    """`nearly_transitive`, rounded to what ten votes can say."""
    margins = np.round(LEVELS * nearly_transitive(n, rng).payoffs) / LEVELS
    return npf.MatrixGame(0.5 + margins)


def bradley_terry(n: int, rng: Generator) -> npf.MatrixGame:
    """Rewards N(0, 1)."""
    return npf.zoo.bradley_terry(rng.standard_normal(n))


def tied(n: int, rng: Generator) -> npf.MatrixGame:
    """Half of the pairs of a uniform game tie exactly."""
    margins = np.triu(np.where(rng.random((n, n)) < 0.5, 0.0, rng.random((n, n)) - 0.5), 1)
    return npf.MatrixGame(0.5 + margins - margins.T)


def all_tied(n: int, rng: Generator) -> npf.MatrixGame:
    """Nothing beats anything."""
    return npf.MatrixGame(np.full((n, n), 0.5))


def clones(n: int, rng: Generator) -> npf.MatrixGame:
    """A uniform game of n/2 responses whose first has all the other copies."""
    originals = (n + 1) // 2
    return npf.zoo.with_clones(npf.zoo.random_preferences(originals, rng), 0, n - originals)


KINDS: dict[str, Callable[[int, Generator], npf.MatrixGame]] = {
    "uniform": npf.zoo.random_preferences,
    "tournament": npf.zoo.random_tournament,
    "Bradley–Terry": bradley_terry,
    "nearly transitive": nearly_transitive,
    "votes": votes,
    "quantised": lambda n, rng: npf.zoo.random_quantised(n, rng, LEVELS),
    "tied": tied,
    "all tied": all_tied,
    "clones": clones,
    "near ties (1e-9)": npf.zoo.random_near_ties,
}


def relative_gap(game: npf.MatrixGame, policy: FloatArray) -> float:
    """`2 max_y (A π)(y) / max|A|`, computed here and not taken from the solver."""
    largest = float(np.abs(game.payoffs).max()) or 1.0
    return float(2.0 * np.max(game.payoffs @ policy)) / largest
