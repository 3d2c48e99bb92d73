"""Three dialogues that are known exactly: a cycle at the end, cycles at every turn, and a control."""

from __future__ import annotations

import string
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nashpref.llm.exact_dialogue import DialogueTask, Points
from nashpref.policies import FloatArray, IntArray

DECAY = 0.8  # how much less a symbol counts than the one before it


def cycle(
    prompts: int = 4,
    turns: int = 2,
    symbols: int = 3,
    length: int = 2,
    *,
    strength: float = 8.0,
    skew: float = 1.2,
    seed: int = 0,
) -> DialogueTask:
    """A cycle at the end of the dialogue, with a user who is drawn at random.

    A word is at the mean z of its symbols' directions in each of two planes; the line that it answers, one of
    two, turns the plane by 120°. A dialogue is at the mean of its words, and `a ≻ b` with probability
    `σ(λ (z_a × z_b) + (λ/2) (z'_a × z'_b))`. So no dialogue is the best, and the same word means other things
    to other lines. The demonstrator likes one direction in each plane and does not hear what the user says.

    Args:
        prompts, turns, symbols, length: B, H, V and the symbols of a word.
        strength: λ, how decisive the judge is.
        skew: how much the demonstrator likes his directions.
        seed: of the directions and of the user.
    """
    return _cyclic(prompts, turns, symbols, length, strength, skew, seed, lines=2, every_turn=False)


def cycles_at_every_turn(
    prompts: int = 4,
    turns: int = 2,
    symbols: int = 3,
    length: int = 2,
    *,
    strength: float = 8.0,
    skew: float = 1.2,
    seed: int = 0,
) -> DialogueTask:
    """A cycle of its own at every turn, whose word alone is compared, and a user who only says "go on".

    The gap is the sum of the gaps of H separate games. Who compares dialogues at their end, as in
    `dataclasses.replace(task, every_turn=False)`, learns nothing of turns before the last: the equilibrium of
    that game leaves them as they are in μ, and in this one has at least their part of μ's gap.

    Args:
        prompts, turns, symbols, length, strength, skew, seed: as of `cycle`.
    """
    return _cyclic(prompts, turns, symbols, length, strength, skew, seed, lines=1, every_turn=True)


def control(
    prompts: int = 4,
    turns: int = 2,
    symbols: int = 3,
    length: int = 2,
    *,
    strength: float = 4.0,
    skew: float = 1.0,
    seed: int = 0,
) -> DialogueTask:
    """The control: `σ(r(a) − r(b))`, r the mean reward of what is said; after the second line its opposite.

    The demonstrator likes what is bad after the first line.

    Args:
        prompts, turns, symbols, length, seed: as of `cycle`.
        strength: the reward of the best symbol, and minus that of the worst.
        skew: how bad the demonstrator is.
    """
    rng = np.random.default_rng(seed)
    B, H, V = prompts, turns, symbols
    taste = rng.permuted(np.broadcast_to(np.linspace(1.0, -1.0, V), (B, H, V)), axis=2)
    taste = taste + 0.2 * rng.standard_normal(taste.shape)
    words = _words(V, length)

    def points(k: int, dialogues: IntArray) -> FloatArray:
        r = _mean(taste[k], words, dialogues, np.array([1.0, -1.0]))
        return np.stack([strength * r, np.ones_like(r)])[None]

    tilt = -skew * _decay(length)[:, None] * taste[:, :, None]
    return _task(rng, B, V, length, 2, points, False, tilt)


def _cyclic(
    prompts: int,
    turns: int,
    symbols: int,
    length: int,
    strength: float,
    skew: float,
    seed: int,
    *,
    lines: int,
    every_turn: bool,
) -> DialogueTask:
    rng = np.random.default_rng(seed)
    B, H, V = prompts, turns, symbols
    styles = rng.permuted(np.broadcast_to(np.arange(V) % 3, (B, H, 2, V)), axis=3)
    directions = np.exp(2j * np.pi * (styles / 3.0 + 0.05 * rng.standard_normal(styles.shape)))
    words, thirds = _words(V, length), np.exp(2j * np.pi * np.arange(lines) / 3.0)

    def points(k: int, dialogues: IntArray) -> FloatArray:
        planes = []
        for plane, scale in ((0, strength), (1, strength / 2.0)):
            z = _mean(directions[k, :, plane], words, dialogues, thirds, last=every_turn)
            planes.append(np.stack([scale * z.real, z.imag]))
        return np.stack(planes)

    liked = (directions * np.exp(-0.3j)).real
    tilt = skew * _decay(length)[:, None] * (liked[:, :, 0] + 0.5 * liked[:, :, 1])[:, :, None]
    return _task(rng, B, V, length, lines, points, every_turn, tilt)


def _task(
    rng: np.random.Generator,
    prompts: int,
    symbols: int,
    length: int,
    lines: int,
    points: Points,
    every_turn: bool,
    tilt: FloatArray,
) -> DialogueTask:
    if prompts < 1 or length < 1 or tilt.shape[1] < 1 or not 3 <= symbols <= 26:
        raise ValueError(
            f"prompts = {prompts}, turns = {tilt.shape[1]}, length = {length}, symbols = {symbols}: at least "
            "1 of each is needed, and from 3 to 26 symbols"
        )
    user = rng.standard_normal((prompts, tilt.shape[1] - 1, symbols**length, lines))
    return DialogueTask(
        tuple(f"question {k}" for k in range(prompts)),
        tuple(string.ascii_lowercase[:symbols]),
        length,
        ("go on", "why")[:lines],
        np.exp(user) / np.exp(user).sum(axis=-1, keepdims=True),
        points,
        every_turn,
        tilt,
    )


def _words(symbols: int, length: int) -> IntArray:
    """The symbols of each word, `(n, length)`."""
    return np.array(list(product(range(symbols), repeat=length)))


def _decay(length: int) -> FloatArray:
    return np.asarray(DECAY ** np.arange(length))


def _mean(
    values: NDArray[Any], words: IntArray, dialogues: IntArray, lines: NDArray[Any], last: bool = False
) -> NDArray[Any]:
    """Of dialogues the mean over their words, or the last word's: `lines` of the line before × mean value.

    Args:
        values: of the symbols in each turn, `(H, V)`.
        words: `(n, length)`.
        dialogues: `(N, 2h − 1)`.
        lines: what each line makes of the word after it; the prompt counts as the first.
        last: only the last word counts.
    """
    weight = _decay(words.shape[1]) / _decay(words.shape[1]).sum()
    h = (dialogues.shape[1] + 1) // 2
    each = []
    for t in range(h - 1 if last else 0, h):
        heard = lines[dialogues[:, 2 * t - 1]] if t else lines[0]
        each.append(heard * (values[t][words] @ weight)[dialogues[:, 2 * t]])
    return np.asarray(np.mean(each, axis=0))
