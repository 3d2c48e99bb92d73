"""Two threads must never be slower than one: each row in a process of its own, by the wall clock.

A pool that has once been widened keeps idle threads that spin, which would spoil the CPU times of other rows.
Other work on the machine makes two threads of OpenBLAS wait for each other: the first row, one LU
factorisation and nothing of ours, tells whether the machine was quiet enough to judge the others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy as np
from scipy.linalg.lapack import dgetrf

import nashpref as npf
from benchmarks.harness import Action, Measured, Row, in_fresh_process, interleave, row, wall

TARGET = "≥ 0.95"  # never slower, but for the noise of a wall clock


def rows() -> Iterator[Row]:
    """One row a solver and size."""
    control = "two threads against one: LU factorisation alone, n = 1000 (control)"
    yield row(control, None, "×", in_fresh_process, factorisation, 1000)
    cases: list[tuple[str, Callable[..., Measured], int]] = [
        *((f"`equilibrium`, uniform n = {n}", exact, n) for n in (500, 1000, 2000)),
        *((f"`equilibrium` with β = 0.01, uniform n = {n}", regularised, n) for n in (500, 1000)),
        *((f"`solve` (numpy) OGDA, n = {n}", iterations, n) for n in (1000, 2000)),
        ("`equilibrium` of 10,000 × 16 compiled", batch, 10_000),
    ]
    for name, measure, size in cases:
        yield row(f"two threads against one: {name}", TARGET, "×", in_fresh_process, measure, size)


def compare(action: Action, pairs: int) -> Measured:
    """One thread's time over that of two."""
    from threadpoolctl import threadpool_limits

    if (os.cpu_count() or 1) < 2:
        raise RuntimeError("this machine has one core")

    def on(threads: int) -> Action:
        def limited() -> None:
            with threadpool_limits(threads):
                action()

        return limited

    times = interleave(on(2), on(1), pairs, clock=wall)
    return times.speedup, f"{times}, wall time"


def factorisation(n: int) -> Measured:
    """What the interior point spends its time on, in the BLAS that it uses."""
    matrix = np.asfortranarray(np.random.default_rng(44).random((n, n)))
    return compare(lambda: dgetrf(matrix), 9)


def exact(n: int) -> Measured:
    """A dense game: the interior point."""
    game = npf.zoo.random_preferences(n, np.random.default_rng(40))
    return compare(lambda: npf.equilibrium(game), 3 if n == 2000 else 7)


def regularised(n: int) -> Measured:
    """Newton."""
    game = npf.zoo.random_preferences(n, np.random.default_rng(41))
    return compare(lambda: npf.equilibrium(game, beta=0.01), 7)


def iterations(n: int) -> Measured:
    """OGDA with the gap at every step."""
    game, rule = npf.zoo.random_preferences(n, np.random.default_rng(42)), npf.OGDA(eta=0.5)
    return compare(lambda: npf.solve(game, rule, 200, record=1, compiled=False), 9)


def batch(size: int) -> Measured:
    """The compiled simplex, which shares games out by `NUMBA_NUM_THREADS`."""
    import numba

    game = npf.zoo.random_preferences(16, np.random.default_rng(43), batch=size)

    def on(threads: int) -> Action:
        def limited() -> None:
            numba.config.NUMBA_NUM_THREADS = threads  # type: ignore[attr-defined]
            npf.equilibrium(game)

        return limited

    times = interleave(on(2), on(1), 9, clock=wall)
    return times.speedup, f"{times}, wall time"
