"""Hypothesis strategies for preference games of every kind, and for policies up to the boundary.

Everything shrinks: fewer responses first, then smaller margins, and policies towards the uniform one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from hypothesis.strategies import DrawFn, SearchStrategy
from numpy.random import Generator
from scipy.special import expit

from nashpref.games import zoo
from nashpref.games.matrix import MatrixGame
from nashpref.policies import FloatArray, normalise

WIDEST = 345.0  # logits within ±345 leave masses down to e^-690 ≈ 1e-300, still normal floats


def preference_games(
    *, min_n: int = 1, max_n: int = 6, kinds: Sequence[str] | None = None
) -> SearchStrategy[MatrixGame]:
    """Single games with `min_n` … `max_n` responses, of the given `kinds` (the keys of `KINDS`; None: all).

    Sizes that a kind does not have (a cycle is odd, a clone needs an original) are left out.
    """
    chosen = tuple(kinds or KINDS)
    return st.integers(min_n, max_n).flatmap(lambda n: _games(n, chosen))


@st.composite
def preference_batches(
    draw: DrawFn, *, min_n: int = 1, max_n: int = 5, max_batch: int = 3, kinds: Sequence[str] | None = None
) -> MatrixGame:
    """Batches of 1 … `max_batch` games of different kinds, all with the same number of responses."""
    n = draw(st.integers(min_n, max_n))
    games = draw(st.lists(_games(n, tuple(kinds or KINDS)), min_size=1, max_size=max_batch))
    return MatrixGame(np.stack([game.preferences for game in games]))


@st.composite
def interior_equilibria(draw: DrawFn, *, min_n: int = 3, max_n: int = 6) -> tuple[MatrixGame, FloatArray]:
    """Single games with an equilibrium π* > 0 of the original game, and that π*.

    `A[i, j] = B[i, j]/(π*_i π*_j)` for a skew B whose rows sum to zero, so that `A π* = 0`; known by
    construction, with no solver involved.
    """
    n = draw(st.integers(min_n, max_n))
    equilibrium = draw(policies(n, spread=2.0))
    margins = draw(_margins(n, st.floats(-1.0, 1.0, width=32)))
    centre = np.eye(n) - 1.0 / n
    B = centre @ (margins - margins.T) @ centre
    A = (B - B.T) / (2.0 * np.outer(equilibrium, equilibrium))
    largest = np.abs(A).max()
    return MatrixGame(0.5 + A * (draw(st.floats(0.1, 0.5)) / largest if largest > 1e-6 else 0.0)), equilibrium


@st.composite
def policies(
    draw: DrawFn, shape: int | tuple[int, ...], *, zeros: bool = False, spread: float | None = None
) -> FloatArray:
    """Policies of the given shape, over its last axis: uniform, moderate, nearly pure, with masses of 1e-300.

    Args:
        shape: n, or a game's `policy_shape`.
        zeros: also draw exact zeros (at least one response keeps mass).
        spread: keep the logits within ±`spread`, away from the boundary.
    """
    spreads = st.sampled_from([0.0, 3.0, 30.0, WIDEST] if spread is None else [spread])
    logits = draw(_logits(shape)) * draw(spreads)
    policy = normalise(logits)[1]
    if zeros:
        empty = draw(arrays(np.bool_, shape))
        empty[..., 0] &= ~empty.all(axis=-1)
        policy = np.where(empty, 0.0, policy)
        policy /= policy.sum(axis=-1, keepdims=True)
    return policy


def references(shape: int | tuple[int, ...]) -> SearchStrategy[FloatArray]:
    """References μ: policies with every log-probability within reach of a trained model, |log μ| ≲ 30."""
    return st.sampled_from([0.0, 1.0, 5.0, 15.0]).flatmap(lambda spread: policies(shape, spread=spread))


# Strategies that depend on a drawn size are kept: hypothesis validates every new object.


@cache
def _games(n: int, kinds: tuple[str, ...]) -> SearchStrategy[MatrixGame]:
    return st.one_of([KINDS[kind](n) for kind in kinds])


@cache
def _logits(shape: int | tuple[int, ...]) -> SearchStrategy[FloatArray]:
    return arrays(np.float64, shape, elements=st.floats(-1.0, 1.0, width=32))


def _margins(n: int, elements: SearchStrategy[float]) -> SearchStrategy[FloatArray]:
    """A matrix with drawn entries above the diagonal and zeros elsewhere."""

    def upper(values: FloatArray) -> FloatArray:
        matrix = np.zeros((n, n))
        matrix[np.triu_indices(n, 1)] = values
        return matrix

    return arrays(np.float64, n * (n - 1) // 2, elements=elements).map(upper)


def _pairwise(elements: SearchStrategy[float]) -> Callable[[int], SearchStrategy[MatrixGame]]:
    """Games with independent margins `A[i, j]` in [−1/2, 1/2]."""
    return lambda n: _margins(n, elements).map(lambda upper: MatrixGame(0.5 + upper - upper.T))


def _generators() -> SearchStrategy[Generator]:
    return st.integers(0, 2**32 - 1).map(np.random.default_rng)


def _low_rank(n: int) -> SearchStrategy[MatrixGame]:
    return st.builds(zoo.low_rank_skew, st.just(n), st.sampled_from([2, 4]), _generators())


def _bradley_terry(n: int) -> SearchStrategy[MatrixGame]:
    return arrays(np.float64, n, elements=st.floats(-8.0, 8.0)).map(zoo.bradley_terry)


def _cycle(n: int) -> SearchStrategy[MatrixGame]:
    if n % 2 == 0:
        return st.nothing()
    return st.floats(0.0, 1.0).map(lambda p: zoo.rock_paper_scissors(n, p))


def _clones(n: int) -> SearchStrategy[MatrixGame]:
    if n < 2:
        return st.nothing()
    originals = st.integers(1, n - 1).flatmap(
        lambda m: st.tuples(_uniform(m), st.integers(0, m - 1), st.just(n - m))
    )
    return originals.map(lambda drawn: zoo.with_clones(*drawn))


def _dominated(n: int) -> SearchStrategy[MatrixGame]:
    if n < 2:
        return st.nothing()
    return st.builds(zoo.with_dominated, _uniform(n - 1), st.integers(0, n - 2), _generators())


def _blockwise(n: int) -> SearchStrategy[MatrixGame]:
    if n < 2:
        return st.nothing()
    pair = st.integers(1, n - 1).flatmap(lambda m: st.tuples(_uniform(m), _tournament(n - m)))
    return st.builds(zoo.blockwise, pair, st.floats(0.5, 1.0))


_uniform = _pairwise(st.floats(-0.5, 0.5))
_tournament = _pairwise(st.sampled_from([0.5, -0.5]))

KINDS: dict[str, Callable[[int], SearchStrategy[MatrixGame]]] = {
    "uniform": _uniform,
    "tournament": _tournament,
    "quantised": _pairwise(st.integers(-4, 4).map(lambda votes: votes / 8.0)),
    "near ties": _pairwise(st.floats(-1e-9, 1e-9)),
    "logistic": _pairwise(st.floats(-30.0, 30.0).map(lambda score: float(expit(score)) - 0.5)),
    "bradley-terry": _bradley_terry,
    "low rank": _low_rank,
    "cycle": _cycle,
    "clones": _clones,
    "dominated": _dominated,
    "blockwise": _blockwise,
}
"""Every kind of game as a strategy for a given number of responses."""
