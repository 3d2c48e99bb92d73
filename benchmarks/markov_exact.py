"""Equilibria of Markov games: certificates, speed against linear programs, and games beyond their reach."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from statistics import median

import numpy as np

import nashpref as npf
from benchmarks.harness import Measured, Row, interleave, row, run_script, seconds, timed
from nashpref.exact.markov_equilibrium import LP_ROWS
from nashpref.exact.markov_linear_program import linear_program
from nashpref.exact.markov_regularised import newton

SHAPES = ((5, 3, 3), (20, 5, 5), (10, 10, 3), (30, 2, 10), (50, 5, 5))
SPARSE = ((150, 4, 4), (300, 5, 4))
BETAS = (1.0, 0.1, 0.01, 1e-3)
LARGE = (200, 10, 10)

# A large game is made and solved in a process of its own, whose memory is that of this game alone. The peak
# starts anew once the game is made: making it takes more than the game, solving it should not.
SOLVE = """
import sys, time
import numpy as np
import nashpref as npf

def kib(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field))

before = kib("VmRSS")
S, A, H = map(int, sys.argv[1:4])
beta, tol = float(sys.argv[4]), float(sys.argv[5]) or None
game = npf.zoo.random_markov_game(S, A, H, np.random.default_rng(70))
held = sum(array.nbytes for array in (*game.payoffs, *game.transitions))
with open("/proc/self/clear_refs", "w") as refs:
    refs.write("5")
began = time.process_time()
result = npf.equilibrium(game, beta, tol=tol)
print(time.process_time() - began, result.gap, before, kib("VmHWM"), held, result.method)
"""


def rows() -> Iterator[Row]:
    """Certificates, then ratios, then the large game."""
    name = "gap of `equilibrium`, random Markov games up to (S, A, H) = (50, 5, 5), both kinds of preference"
    yield row(name, "≤ 1e-10", "", worst_gap)
    yield row(
        f"gap of `equilibrium`, sparse Markov games up to {SPARSE[-1]}", "≤ 1e-10", "", worst_sparse_gap
    )
    name = "regularised gap of `equilibrium`, the same games, β = 1…0.001, random references"
    yield row(name, "≤ 1e-12", "", worst_regularised_gap)
    for method, target in (("highs", "≥ 8"), ("highs-ipm", None)):
        name = f"`equilibrium` against scipy linprog, method {method!r}, (50, 5, 5)"
        yield row(name, target, "×", against_linprog, method)
    name = f"`equilibrium` of {LARGE} to a stated gap of 1e-3, CPU time"
    yield row(name, "≤ 600", "s", large_seconds, 0.0, 1e-3)
    yield row(f"`equilibrium` of {LARGE} to rounding, CPU time", "≤ 600", "s", large_seconds, 0.0, 0.0)
    yield row(f"`equilibrium` of {LARGE} with β = 0.01, CPU time", None, "s", large_seconds, 0.01, 0.0)
    yield row(f"peak memory of `equilibrium` of {LARGE} over what the game holds", "≤ 2", "×", large_peak)


def random_games() -> Iterator[tuple[str, npf.MarkovGame]]:
    """Two of each shape and kind."""
    rng = np.random.default_rng(71)
    for shape in SHAPES:
        for terminal in (False, True):
            for _ in range(2):
                kind = "final states" if terminal else "every step"
                yield f"{shape}, {kind}", npf.zoo.random_markov_game(*shape, rng, terminal=terminal)


def worst_gap() -> Measured:
    """The certificate, computed again by `duality_gap`."""
    gaps = {}
    for name, game in random_games():
        result = npf.equilibrium(game)
        gaps[f"{name}, {result.method}"] = float(npf.duality_gap(game, result.policy))
    worst = max(gaps, key=gaps.__getitem__)
    return gaps[worst], f"worst: {worst}; median {median(gaps.values()):.0e}"


def worst_sparse_gap() -> Measured:
    """Games of thousands of rows, more than the linear program is tried on."""
    gaps, times, most = [], [], 0
    for k, shape in enumerate(SPARSE):
        for terminal in (False, True):
            rng = np.random.default_rng(72 + k)
            game = npf.zoo.random_markov_game(*shape, rng, terminal=terminal, branching=3)
            t, result = timed(partial(npf.equilibrium, game))
            gaps.append(float(npf.duality_gap(game, result.policy)))
            times.append(t)
            most = max(most, game.flat_shape[1] * (game.actions + 1))
    note = f"up to {most} rows (the linear program is tried up to {LP_ROWS}), {seconds(max(times))} at most"
    return max(gaps), note


def worst_regularised_gap() -> Measured:
    """With the systems and the time that Newton's method takes for each β."""
    rng = np.random.default_rng(73)
    worst, where, note = 0.0, "", []
    for beta in BETAS:
        systems, times = [], []
        for name, game in random_games():
            mu = rng.dirichlet(np.ones(game.actions), game.policy_shape[:-1])
            t, solution = timed(partial(newton, game, beta, np.log(game.flat(mu))))
            systems.append(solution.systems)
            times.append(t)
            policy = game.full(np.exp(solution.log_policy), mu)
            if (gap := float(npf.duality_gap(game, policy, beta, mu))) >= worst:
                worst, where = gap, f"{name}, β = {beta}"
        note.append(f"β = {beta:g}: {np.mean(systems):.1f} systems, {seconds(max(times))} at most")
    return worst, f"worst: {where}; {'; '.join(note)}"


def against_linprog(method: str) -> Measured:
    """The same program, put together by us; three pairs."""
    linear_program(npf.zoo.random_markov_game(2, 2, 2, np.random.default_rng(0)), method)
    game = npf.zoo.random_markov_game(50, 5, 5, np.random.default_rng(74))
    pairs = interleave(lambda: npf.equilibrium(game), lambda: linear_program(game, method), 3, warm_up=False)
    ours, theirs = pairs.results
    gap = npf.duality_gap(game, game.full(theirs, 1.0 / game.actions))
    return pairs.speedup, f"{pairs}; gap {ours.gap:.0e} against {gap:.0e}"


@cache
def large(beta: float, tol: float) -> tuple[float, float, float, float, str]:
    """CPU seconds, gap, MiB used at most, MiB of the game, and the method."""
    out = run_script(SOLVE, *map(str, LARGE), str(beta), str(tol)).split(maxsplit=5)
    t, gap, before, most, held = map(float, out[:5])
    return t, gap, (most - before) / 2**10, held / 2**20, out[5]


def large_seconds(beta: float, tol: float) -> Measured:
    """Failing its certificate is a failure, however fast."""
    t, gap, _, _, method = large(beta, tol)
    certificate = tol or (1e-12 if beta else 1e-10)
    if gap > certificate:
        raise RuntimeError(f"gap {gap:.1e} > {certificate:g} by {method} after {seconds(t)}")
    return t, f"{method}, gap {gap:.1e}"


def large_peak() -> Measured:
    """The game itself is one of the two."""
    _, gap, used, held, method = large(0.0, 0.0)
    return used / held, f"{used:.0f} MiB, {held:.0f} MiB held; {method}, gap {gap:.1e}"
