"""Four preference tasks of which everything is known: two that cycle, a judge with a bias, and a control.

Responses are words of a few symbols; from 27 of them (3 symbols, length 3) to 10⁴ (10 symbols, length 4) the
game and a model's gap are exact, and beyond that pairs can still be drawn and judged. See
`nashpref.llm.exact_task.Task` for what a task can be asked.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from nashpref.llm.exact_task import INVALID, Points, Task
from nashpref.policies import FloatArray, IntArray

__all__ = [
    "INVALID",
    "Task",
    "annotator_mixture",
    "bradley_terry",
    "length_biased",
    "rock_paper_scissors_of_styles",
]

DECAY = 0.8  # how much less a symbol counts than the one before it


def rock_paper_scissors_of_styles(
    prompts: int = 8,
    symbols: int = 3,
    length: int = 4,
    *,
    strength: float = 8.0,
    skew: float = 1.2,
    seed: int = 0,
) -> Task:
    """A cycle: every symbol has one of three styles, and with it a direction in a plane.

    A response is at the mean z of its symbols, the first counting most, in each of two planes: `a ≻ b` with
    probability `σ(λ (z_a × z_b) + (λ/2) (z'_a × z'_b))`, × the cross product, λ = `strength`. Every direction
    is beaten by the one a quarter turn before it. Which symbol has which style is the prompt's. The
    demonstrator likes one direction in each plane, and so his language model can tell all styles apart.

    Args:
        prompts, symbols, length: B, V and L; there are V^L responses.
        strength: λ, how decisive the judge is.
        skew: how much the demonstrator likes his directions; at 1.2, the mean regularised gap of μ at
            β = 0.05 is 0.40.
        seed: of the prompts' directions.
    """
    _check(prompts, symbols, length, strength)
    rng = np.random.default_rng(seed)
    directions = _directions(rng, prompts, symbols)

    def points(prompt: int, words: IntArray) -> FloatArray:
        return _on_circles(strength, directions[prompt], words)[None]

    return _task(prompts, symbols, (length, length), points, skew * _likes(directions, length))


def annotator_mixture(
    prompts: int = 8,
    symbols: int = 3,
    length: int = 4,
    *,
    weights: Sequence[float] = (0.4, 0.33, 0.27),
    strength: float = 4.0,
    skew: float = 1.0,
    seed: int = 0,
) -> Task:
    """Annotators who each rank by a reward of their own, in numbers `weights`: `Σ_m w_m σ(r_m(a) − r_m(b))`.

    Annotator m ranks the three styles from the m-th on, so that a majority prefers each style to the next
    (Condorcet), though narrowly, and so gaps are a tenth of those of the other tasks. The demonstrator writes
    what the first annotator likes.

    Args:
        prompts, symbols, length: B, V and L; there are V^L responses.
        weights: shares of up to three annotators or more, non-negative and of sum 1.
        strength: the reward of a response of the best style, and minus that of the worst.
        skew: how well the demonstrator knows the first annotator.
        seed: of the prompts' rewards.
    """
    if not (len(weights) and min(weights) >= 0.0 and abs(sum(weights) - 1.0) <= 1e-9):
        raise ValueError(f"weights = {list(weights)}: non-negative numbers of sum 1 are needed")
    _check(prompts, symbols, length, strength)
    rng = np.random.default_rng(seed)
    annotators = np.arange(len(weights))[:, None]
    styles = _styles(rng, prompts, symbols)[:, None]
    taste = 1.0 - (styles - annotators) % 3 + 0.2 * rng.standard_normal((prompts, len(weights), symbols))

    def points(prompt: int, words: IntArray) -> FloatArray:
        return _rewards(strength * taste[prompt], words)

    tilt = skew * _decay(length)[:, None] * taste[:, :1]
    return _task(prompts, symbols, (length, length), points, tilt, tuple(map(float, weights)))


def length_biased(
    prompts: int = 8,
    symbols: int = 3,
    longest: int = 4,
    *,
    bias: float = 0.5,
    strength: float = 8.0,
    skew: float = 1.0,
    seed: int = 0,
) -> Task:
    """A judge of the cycle who also likes length: its log-odds and `bias · (|a| − |b|)`.

    Responses have from 1 to `longest` symbols, and the equilibrium says only the longest ones: no game cures
    a judge of a bias. The demonstrator is brief, and likes one style.

    Args:
        prompts, symbols, longest: B, V and L; there are V + V² + … + V^L responses.
        bias: log-odds for each symbol more.
        strength: λ.
        skew: how much the demonstrator likes his style.
        seed: of the prompts' directions.
    """
    _check(prompts, symbols, longest, strength)
    rng = np.random.default_rng(seed)
    directions = _directions(rng, prompts, symbols)

    def points(prompt: int, words: IntArray) -> FloatArray:
        lengths = (words >= 0).sum(axis=1)
        liked = np.stack([bias * lengths, np.ones(len(words))])
        return np.concatenate([_on_circles(strength, directions[prompt], words), liked[None]])[None]

    # Without a bias there would be V times as many responses of each length as of the one below.
    tilt = skew * _likes(directions, longest) - np.log(2.0 * symbols)
    return _task(prompts, symbols, (1, longest), points, tilt)


def bradley_terry(
    prompts: int = 8,
    symbols: int = 3,
    length: int = 4,
    *,
    strength: float = 4.0,
    skew: float = 1.0,
    seed: int = 0,
) -> Task:
    """The control: `σ(r(a) − r(b))` with one reward; no cycles, and the equilibrium is its best response.

    The demonstrator likes what is bad.

    Args:
        prompts, symbols, length: B, V and L; there are V^L responses.
        strength: the reward of a response of the best symbol, and minus that of the worst.
        skew: how bad the demonstrator is.
        seed: of the prompts' rewards.
    """
    _check(prompts, symbols, length, strength)
    rng = np.random.default_rng(seed)
    taste = _arranged(rng, prompts, np.linspace(1.0, -1.0, symbols))[:, None]
    taste += 0.2 * rng.standard_normal(taste.shape)

    def points(prompt: int, words: IntArray) -> FloatArray:
        return _rewards(strength * taste[prompt], words)

    return _task(prompts, symbols, (length, length), points, -skew * _decay(length)[:, None] * taste)


def _task(
    prompts: int,
    symbols: int,
    lengths: tuple[int, int],
    points: Points,
    tilt: FloatArray,
    weights: tuple[float, ...] = (1.0,),
) -> Task:
    return Task(
        tuple(f"question {k}" for k in range(prompts)),
        tuple(string.ascii_lowercase[:symbols]),
        *lengths,
        points,
        weights,
        tilt,
    )


def _styles(rng: Generator, prompts: int, symbols: int) -> IntArray:
    """The style of each symbol, 0, 1 or 2, each as often as the others, `(B, V)`."""
    return _arranged(rng, prompts, np.arange(symbols) % 3)


def _arranged(rng: Generator, prompts: int, values: NDArray[Any]) -> NDArray[Any]:
    """`values` in an order for each prompt: the first is at the next place each time, the others anywhere."""
    V = len(values)
    return np.stack([np.insert(rng.permutation(values[1:]), k % V, values[0]) for k in range(prompts)])


def _directions(rng: Generator, prompts: int, symbols: int) -> NDArray[np.complex128]:
    """A unit vector for each symbol in each of two planes, near one of three at equal angles, `(B, 2, V)`."""
    styles = np.stack([_styles(rng, prompts, symbols) for _ in range(2)], axis=1)
    return np.asarray(np.exp(2j * np.pi * (styles / 3.0 + 0.05 * rng.standard_normal(styles.shape))))


def _on_circles(strength: float, directions: NDArray[np.complex128], words: IntArray) -> FloatArray:
    """Where words are in the two planes, of which the second counts half: `(2, 2, N)`."""
    weight = np.maximum(_sum(np.ones_like(directions.real), words), 1.0)  # of an invalid response, 0
    z = _sum(directions, words) / weight
    scale = strength * np.array([[1.0], [0.5]])
    return np.stack([scale * z.real, z.imag], axis=1)


def _rewards(taste: FloatArray, words: IntArray) -> FloatArray:
    """The mean taste of words as a plane `(r, 1)` for each judge: `(M, 1, 2, N)`."""
    r = _sum(taste, words) / _decay(words.shape[1]).sum()
    return np.stack([r, np.ones_like(r)], axis=1)[:, None]


def _likes(directions: NDArray[np.complex128], length: int) -> FloatArray:
    """The demonstrator's liking of one direction in each plane, which no two styles share, `(B, T, V)`."""
    liked = (directions * np.exp(-0.3j)).real
    return np.asarray(_decay(length)[:, None] * (liked[:, :1] + 0.5 * liked[:, 1:]))


def _sum(values: NDArray[Any], words: IntArray) -> NDArray[Any]:
    """`Σ_t DECAY^t values[…, y_t]` of N words, `(…, N)`."""
    padded = np.concatenate([values, np.zeros_like(values[..., :1])], axis=-1)  # −1, after the end, counts 0
    return np.asarray((_decay(words.shape[1]) * padded[..., words]).sum(axis=-1))


def _decay(length: int) -> FloatArray:
    return np.asarray(DECAY ** np.arange(length))


def _check(prompts: int, symbols: int, length: int, strength: float) -> None:
    if prompts < 1 or length < 1:
        raise ValueError(f"prompts = {prompts}, length = {length}: at least 1 of each is needed")
    if not 3 <= symbols <= 26:
        raise ValueError(f"symbols = {symbols}: there are three styles and 26 letters")
    if not 0.0 < strength < np.inf:
        raise ValueError(f"strength = {strength}: a positive number is needed")
