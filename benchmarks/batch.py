"""10,000 games of 16 responses, as 10,000 prompts have: exact equilibria and iterations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from unittest.mock import patch

import numpy as np

import nashpref as npf
from benchmarks import loops, peers
from benchmarks.harness import Measured, Row, interleave, row
from nashpref.policies import FloatArray

BATCH, N = 10_000, 16
ETA, STEPS, MANY_STEPS = 0.5, 50, 200
SCIPY_GAMES = 200  # that the loop over scipy solves; its time is scaled to the batch
LOOP_GAMES = 200  # that the Python loop of OGDA runs


def rows() -> Iterator[Row]:
    """Equilibria, then iterations."""
    exact, iterated = "`equilibrium` of 10,000 × 16", "of 10,000 × 16, gaps at every step,"
    yield row(f"{exact} without numba against a scipy linprog loop", "≥ 15", "×", against_scipy)
    yield row(f"{exact} compiled against a quantecon minmax loop", "≥ 1.2", "×", against_quantecon)
    yield row(f"`solve` (numpy) {iterated} over hand-written batched numpy", "≤ 1.1", "×", over_numpy)
    yield row(f"`solve` (compiled) {iterated} against a Python loop over them", "≥ 30", "×", against_loop)


def prompts() -> npf.MatrixGame:
    """The batch: uniform games."""
    return npf.zoo.random_preferences(N, np.random.default_rng(30), batch=BATCH)


def without_numba() -> AbstractContextManager[object]:
    """`equilibrium` as it is where numba is not installed."""
    return patch("nashpref.equilibrium.compiled_simplex", lambda: None)


def gaps(game: npf.MatrixGame, ours: FloatArray, peer: list[FloatArray]) -> str:
    """Largest gap/max|A| of both, for the note."""
    worst = []
    for policies in (ours, np.array(peer)):
        A = game.payoffs[: len(policies)]
        worst.append(np.max(2.0 * (A @ policies[..., None]).max(axis=(1, 2)) / A.max(axis=(1, 2))))
    return f"gap/max|A| ≤ {worst[0]:.0e} against {worst[1]:.0e}"


def against_scipy() -> Measured:
    """The peer solves 200 of the games."""
    game = prompts()

    def ours() -> npf.Equilibrium:
        with without_numba():
            return npf.equilibrium(game)

    def peer() -> list[FloatArray]:
        return [peers.scipy_linprog(A) for A in game.payoffs[:SCIPY_GAMES]]

    result, theirs = ours(), peer()
    methods = ", ".join(sorted(set(result.method)))
    pairs = interleave(ours, peer, 5, warm_up=False).each(BATCH, SCIPY_GAMES)
    note = gaps(game, result.policy, theirs)
    return pairs.speedup, f"{pairs} a game; {methods}; {note}; linprog on {SCIPY_GAMES} games, scaled"


def against_quantecon() -> Measured:
    """Both on the whole batch."""
    import numba  # noqa: F401  (loaded, as for whoever has it installed and has used it)

    game = prompts()

    def peer() -> list[FloatArray]:
        return [peers.quantecon(A) for A in game.payoffs]

    result, theirs = npf.equilibrium(game), peer()
    methods = ", ".join(sorted(set(result.method)))
    pairs = interleave(lambda: npf.equilibrium(game), peer, 9, warm_up=False).each(BATCH, BATCH)
    return pairs.speedup, f"{pairs} a game; {methods}; {gaps(game, result.policy, theirs)}"


def over_numpy() -> Measured:
    """OGDA, enough steps that they are what is timed and not the checks around them."""
    game, rule = prompts(), npf.OGDA(eta=ETA)
    pairs = interleave(
        lambda: npf.solve(game, rule, MANY_STEPS, record=1, compiled=False),
        lambda: loops.ogda_batch(game.payoffs, ETA, MANY_STEPS),
        5,
        warm_up=False,
    ).each(BATCH * MANY_STEPS, BATCH * MANY_STEPS)
    return pairs.slowdown, f"{pairs} a game and step; {loops.agreement(*pairs.results)}"


def against_loop() -> Measured:
    """OGDA, 50 steps; the loop runs 200 of the games."""
    game, rule = prompts(), npf.OGDA(eta=ETA)
    few = npf.MatrixGame(game.preferences[:LOOP_GAMES])

    def peer() -> loops.Gaps:
        gaps = [loops.ogda(A, ETA, STEPS) for A in few.payoffs]
        last, average = (np.stack(column, axis=1) for column in zip(*gaps, strict=True))
        return last, average

    note = loops.agreement(npf.solve(few, rule, STEPS, record=1, compiled=True), peer())
    pairs = interleave(
        lambda: npf.solve(game, rule, STEPS, record=1, compiled=True), peer, warm_up=False
    ).each(BATCH * STEPS, LOOP_GAMES * STEPS)
    return pairs.speedup, f"{pairs} a game and step; {note}; the loop on {LOOP_GAMES} games, scaled"
