"""Exact equilibria: accuracy on every kind of game, and speed against linear programs and simplex codes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from statistics import median

import numpy as np
from numpy.random import Generator

import nashpref as npf
from benchmarks import peers
from benchmarks.games import KINDS, nearly_transitive, relative_gap, votes
from benchmarks.harness import Measured, Pairs, Row, interleave, row, seconds
from nashpref.policies import FloatArray

SIZES = (1, 2, 3, 5, 10, 30, 100, 300, 1000, 2000)
SMALL = (3, 10, 30, 100)


def rows() -> Iterator[Row]:
    """Gaps, then ratios, then the exponent."""
    yield row("gap/max|A| of `equilibrium`, every kind, n = 1…2000", "≤ 1e-12", "", gap_by_kind)
    yield row("gap/max|A| of `equilibrium`, 1,000 random games, n ≤ 20", "≤ 1e-12", "", gap_of_random_games)
    against = "`equilibrium` against"
    yield row(f"{against} HiGHS, uniform n = 1000", "≥ 12", "×", against_highs)
    options = {"solver": "ipm", "run_crossover": "off"}
    name = f"{against} HiGHS's interior point without crossover, uniform n = 1000"
    yield row(name, None, "×", against_highs, **options)
    yield row(f"{against} open_spiel's lp_solver, uniform n = 500", "≥ 35", "×", against_open_spiel)
    for name, make in (("nearly transitive", nearly_transitive), ("votes", votes)):
        yield row(f"{against} quantecon minmax, {name} n = 1000", "≥ 3", "×", against_quantecon, make)
    yield row(f"{against} scipy linprog, worst of every kind, n ≤ 100", "≥ 1", "×", against_linprog)
    yield row("exponent of the cost of `equilibrium`, uniform n = 500…2000", "≤ 3.1", "", exponent)


def gap_by_kind() -> Measured:
    """The worst over kinds and sizes."""
    rng = np.random.default_rng(0)
    gaps = {}
    for kind, make in KINDS.items():
        for n in SIZES:
            game = make(n, rng)
            result = npf.equilibrium(game)
            gaps[f"{kind}, n = {n}, {result.method}"] = relative_gap(game, result.policy)
    worst = max(gaps, key=gaps.__getitem__)
    fallbacks = sum("linear program" in name for name in gaps)
    return gaps[worst], f"worst: {worst}; {len(gaps)} games, {fallbacks} needed the linear program"


def gap_of_random_games() -> Measured:
    """Kinds and sizes at random."""
    rng = np.random.default_rng(1)
    kinds = list(KINDS)
    worst, where = 0.0, "none above zero"
    for _ in range(1000):
        kind, n = kinds[rng.integers(len(kinds))], int(rng.integers(1, 21))
        game = KINDS[kind](n, rng)
        if (gap := relative_gap(game, npf.equilibrium(game).policy)) > worst:
            worst, where = gap, f"worst: {kind}, n = {n}"
    return worst, where


def accuracies(game: npf.MatrixGame, pairs: Pairs) -> str:
    """What both reached, for the note; `pairs` timed an `Equilibrium` against a policy."""
    ours, peer = pairs.results
    return f"gap/max|A| {relative_gap(game, ours.policy):.0e} against {relative_gap(game, peer):.0e}"


def against_highs(**options: str) -> Measured:
    """Three pairs of one call each."""
    peers.highs(npf.zoo.rock_paper_scissors().payoffs)
    game = npf.zoo.random_preferences(1000, np.random.default_rng(2))
    pairs = interleave(
        lambda: npf.equilibrium(game), lambda: peers.highs(game.payoffs, **options), 3, warm_up=False
    )
    return pairs.speedup, f"{pairs}; {accuracies(game, pairs)}"


def against_open_spiel() -> Measured:
    """Three pairs; making open_spiel's game object is not timed."""
    peers.open_spiel(peers.spiel_game(npf.zoo.rock_paper_scissors().payoffs))
    game = npf.zoo.random_preferences(500, np.random.default_rng(3))
    theirs = peers.spiel_game(game.payoffs)
    pairs = interleave(lambda: npf.equilibrium(game), lambda: peers.open_spiel(theirs), 3, warm_up=False)
    return pairs.speedup, f"{pairs}; {accuracies(game, pairs)}"


def against_quantecon(make: Callable[[int, Generator], npf.MatrixGame]) -> Measured:
    """The median over seven games: how often a simplex pivots is a matter of luck."""
    ratios, ours, peer, supports, accuracy = [], [], [], [], ""
    for seed in range(7):
        game = make(1000, np.random.default_rng(seed))
        pairs = _against(game, peers.quantecon)
        ratios.append(pairs.speedup)
        ours.append(median(pairs.ours))
        peer.append(median(pairs.peer))
        supports.append(int(np.count_nonzero(pairs.results[0].policy)))
        accuracy = accuracies(game, pairs)
    span = f"7 games, {min(ratios):.2g}…{max(ratios):.2g}×, supports of {min(supports)}…{max(supports)}"
    return median(ratios), f"{seconds(median(ours))} against {seconds(median(peer))}; {span}; {accuracy}"


def against_linprog() -> Measured:
    """The worst ratio over kinds and sizes."""
    rng = np.random.default_rng(4)
    ratios: dict[str, float] = {}
    for kind, make in KINDS.items():
        for n in SMALL:
            game = make(n, rng)
            pairs = _against(game, peers.scipy_linprog)
            ratios[f"{kind}, n = {n}: {pairs}; {accuracies(game, pairs)}"] = pairs.speedup
    worst = min(ratios, key=ratios.__getitem__)
    return ratios[worst], f"{len(ratios)} games, median {median(ratios.values()):.2g}×; worst: {worst}"


def _against(game: npf.MatrixGame, peer: Callable[[FloatArray], FloatArray]) -> Pairs:
    return interleave(lambda: npf.equilibrium(game), lambda: peer(game.payoffs), 5)


def exponent() -> Measured:
    """log(t₂₀₀₀/t₅₀₀)/log 4, median of three interleaved pairs."""
    rng = np.random.default_rng(5)
    small, large = (npf.zoo.random_preferences(n, rng) for n in (500, 2000))
    pairs = interleave(
        lambda: [npf.equilibrium(small) for _ in range(5)], lambda: npf.equilibrium(large), 3, warm_up=False
    ).each(5, 1)
    return math.log(pairs.speedup, 4), f"{pairs}"
