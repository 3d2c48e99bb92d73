"""Named games: the cycles of the literature, and random families that stress a solver in different ways.

`A = P − 1/2` throughout. Randomness is a `numpy.random.Generator` that is passed in.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike

from nashpref.games.markov_zoo import dialogue as dialogue
from nashpref.games.markov_zoo import gridworld as gridworld
from nashpref.games.markov_zoo import penneys_game as penneys_game
from nashpref.games.markov_zoo import random_markov_game as random_markov_game
from nashpref.games.markov_zoo import token_game as token_game
from nashpref.games.matrix import MatrixGame
from nashpref.policies import FloatArray

# --- cycles with known equilibria ---


def rock_paper_scissors(n: int = 3, p: float = 1.0) -> MatrixGame:
    """The circulant game of odd size n: `P[i, i+k mod n] = p` for k = 1, …, (n−1)/2.

    With n = 3 the order is rock, scissors, paper. The equilibrium is uniform, and unique unless p = 1/2.
    """
    if n < 1 or n % 2 == 0:
        raise ValueError(f"n = {n}: a symmetric cycle needs an odd number of responses")
    ahead = (np.arange(n) - np.arange(n)[:, None]) % n
    P = np.where(ahead <= n // 2, p, 1.0 - p)
    np.fill_diagonal(P, 0.5)
    return MatrixGame(P)


def condorcet_cycle(p: float = 2 / 3) -> MatrixGame:
    """Condorcet's paradox, y1 ≻ y2 ≻ y3 ≻ y1, each with probability p; the equilibrium is uniform."""
    return MatrixGame(rock_paper_scissors(3, p).preferences, labels=("y1", "y2", "y3"))


def annotator_rankings() -> MatrixGame:
    """A batch of three annotators who each rank the responses: h1 y3≻y1≻y2, h2 y2≻y3≻y1, h3 y1≻y2≻y3.

    Every game of the batch is transitive; its equilibrium is the top response.
    """
    ranks = np.array([[1, 2, 0], [2, 0, 1], [0, 1, 2]])  # ranks[h, i]: place of response i, 0 the best
    ahead = ranks[:, None, :] - ranks[:, :, None]
    return MatrixGame((np.sign(ahead) + 1.0) / 2.0, labels=("y1", "y2", "y3"))


def annotators() -> MatrixGame:
    """The mean of `annotator_rankings`: three consistent people, one cycle, `condorcet_cycle(2/3)`.

    Its equilibrium is uniform, also when regularised towards the uniform reference with any β.
    """
    each = annotator_rankings()
    return MatrixGame(each.preferences.mean(axis=0), labels=each.labels)


def comal() -> MatrixGame:
    """COMAL's cyclic game, b ≻ a and c ≻ b with probability 0.9, a ≻ c with 0.8 (arXiv 2410.23223).

    The equilibrium is (4, 3, 4)/11: in a 3-cycle each response weighs the margin of the edge opposite it.
    """
    return MatrixGame([[0.5, 0.1, 0.8], [0.9, 0.5, 0.1], [0.2, 0.9, 0.5]], labels=("a", "b", "c"))


# --- families ---


def bradley_terry(rewards: ArrayLike) -> MatrixGame:
    """`P[i, j] = σ(r_i − r_j)` for rewards of shape `(n,)` or `(B, n)`.

    The equilibria are the policies on the responses of largest reward.
    """
    r = np.asarray(rewards, dtype=np.float64)
    return MatrixGame(_sigmoid(r[..., :, None] - r[..., None, :]))


def low_rank_skew(n: int, rank: int, rng: Generator, *, scale: float = 1.0) -> MatrixGame:
    """The general preference model `P[i, j] = σ(⟨R e_i, e_j⟩)`, embeddings `e_i ~ N(0, scale·I)`.

    R is block-diagonal with `rank/2` blocks `[[0, −1], [1, 0]]`, so the scores are a skew matrix of at most
    that rank (arXiv 2410.02197). With rank 2 the responses lie on a plane and cycle around its origin.
    """
    if rank < 2 or rank % 2:
        raise ValueError(f"rank = {rank}: a skew matrix has even rank, at least 2")
    e = rng.standard_normal((n, rank)) * np.sqrt(scale)
    return MatrixGame(_sigmoid(e[:, ::2] @ e[:, 1::2].T - e[:, 1::2] @ e[:, ::2].T))


def random_preferences(n: int, rng: Generator, batch: int | None = None) -> MatrixGame:
    """Independent `P[i, j] ~ U(0, 1)` above the diagonal; the equilibrium is unique with odd support."""
    return _complete(rng.random(_shape(n, batch)))


def random_logistic(n: int, rng: Generator, batch: int | None = None, *, scale: float = 1.0) -> MatrixGame:
    """`P[i, j] = σ(scale·N(0, 1))` above the diagonal; unique equilibrium with odd support."""
    return _complete(_sigmoid(scale * rng.standard_normal(_shape(n, batch))))


def random_tournament(n: int, rng: Generator, batch: int | None = None) -> MatrixGame:
    """A fair coin decides each pair for good, `P[i, j] ∈ {0, 1}`.

    The equilibrium is unique with odd support (Fisher and Ryan 1992), although every margin is tied in size.
    """
    return _complete(rng.integers(0, 2, _shape(n, batch)).astype(np.float64))


def random_quantised(n: int, rng: Generator, levels: int, batch: int | None = None) -> MatrixGame:
    """`P[i, j]` uniform on {0, 1/levels, …, 1}, as from so many votes; the equilibrium may not be unique."""
    return _complete(rng.integers(0, levels + 1, _shape(n, batch)) / levels)


def random_near_ties(n: int, rng: Generator, batch: int | None = None, *, margin: float = 1e-9) -> MatrixGame:
    """`A[i, j] ~ U(−margin, margin)`: `random_preferences` shrunk, with the same kind of equilibrium."""
    return _complete(0.5 + rng.uniform(-margin, margin, _shape(n, batch)))


# --- games made from games ---


def with_clones(game: MatrixGame, index: int, copies: int = 1) -> MatrixGame:
    """Append `copies` of response `index` that tie with it and among themselves.

    Every equilibrium keeps the total mass of the clones together; how they share it is free.
    """
    rows = np.append(np.arange(game.n), np.full(copies, index))
    labels = game.labels and (*game.labels, *(f"{game.labels[index]} (copy {k + 1})" for k in range(copies)))
    return MatrixGame(game.preferences[..., rows[:, None], rows], labels=labels)


def with_dominated(game: MatrixGame, index: int, rng: Generator) -> MatrixGame:
    """Append a response that does worse than response `index`, `P[new, j] = u_j P[index, j]`, u_j ~ U(0, 1).

    It does no better against anyone, and loses to `index`: it has no mass in any equilibrium, and the
    equilibria of `game` stay.
    """
    worse = rng.random(game.policy_shape) * game.preferences[..., index, :]
    below = np.concatenate([worse, np.full((*game.policy_shape[:-1], 1), 0.5)], axis=-1)
    beside = np.concatenate([game.preferences, 1.0 - worse[..., None]], axis=-1)
    labels = game.labels and (*game.labels, "dominated")
    return MatrixGame(np.concatenate([beside, below[..., None, :]], axis=-2), labels=labels)


def blockwise(games: Sequence[MatrixGame], win: float = 1.0) -> MatrixGame:
    """Single games in order of strength: a response of an earlier one beats each of a later with prob. `win`.

    With `win > 1/2` the equilibria are those of the first game.
    """
    block = np.repeat(np.arange(len(games)), [game.n for game in games])
    P = np.where(block[:, None] < block, win, 1.0 - win)
    for k, game in enumerate(games):
        inside = np.flatnonzero(block == k)
        P[np.ix_(inside, inside)] = game.preferences
    return MatrixGame(P)


def _shape(n: int, batch: int | None) -> tuple[int, ...]:
    return (n, n) if batch is None else (batch, n, n)


def _complete(upper: FloatArray) -> MatrixGame:
    """The game with the given probabilities above the diagonal; the rest of the array is ignored."""
    above = np.triu(upper, 1)
    below = np.tril(1.0 - np.swapaxes(upper, -1, -2), -1)
    return MatrixGame(above + below + 0.5 * np.eye(upper.shape[-1]))


def _sigmoid(x: FloatArray) -> FloatArray:
    """`1/(1 + e^{−x})`, without overflow and with σ(x) + σ(−x) = 1 to the last bit."""
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * x))
