"""KL-regularised equilibria: Newton's gap everywhere, and speed against a cone solver and mirror-prox."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

import numpy as np
from numpy.random import Generator

import nashpref as npf
from benchmarks import peers
from benchmarks.games import KINDS
from benchmarks.harness import Measured, Row, interleave, row, seconds
from nashpref.policies import FloatArray, log_policy

BETAS = (1.0, 0.1, 0.01, 0.001)
SIZES = (1, 2, 3, 10, 30, 100, 300, 1000)
MIRROR_PROX_GAP = 1e-12  # in its favour: Newton is timed to the 1e-20 that it is held to


def rows() -> Iterator[Row]:
    """The gap, then ratios."""
    yield row("gap of `equilibrium`, β = 1, .1, .01, .001, every kind, n ≤ 1000", "≤ 1e-20", "", gap_by_kind)
    for n, target in ((100, "≥ 25"), (500, "≥ 60")):
        name = f"`equilibrium` with β = 0.01 against cvxpy + Clarabel, uniform n = {n}"
        yield row(name, target, "×", against_clarabel, n)
    name = "`equilibrium` with β = 0.001 against mirror-prox, uniform n = 500"
    yield row(name, "≥ 1", "×", against_mirror_prox)


def random_reference(n: int, rng: Generator) -> FloatArray:
    """μ with logits N(0, 1)."""
    return peers.softmax(rng.standard_normal(n))[1]


def gap_by_kind() -> Measured:
    """The worst over kinds, sizes and β, with random references; recomputed by `duality_gap`."""
    rng = np.random.default_rng(10)
    gaps = {}
    for kind, make in KINDS.items():
        for n in SIZES:
            game, mu = make(n, rng), random_reference(n, rng)
            for beta in BETAS:
                policy = npf.equilibrium(game, beta=beta, reference=mu).policy
                gaps[f"{kind}, n = {n}, β = {beta}"] = float(npf.duality_gap(game, policy, beta, mu))
    worst = max(gaps, key=gaps.__getitem__)
    return gaps[worst], f"worst: {worst}; {len(gaps)} games, median {median(gaps.values()):.0e}"


def against_clarabel(n: int) -> Measured:
    """The whole call of each: the rest of cvxpy's is spent on handing the program to the solver."""
    rng = np.random.default_rng(11)
    beta, game, mu = 0.01, npf.zoo.random_preferences(n, rng), random_reference(n, rng)
    log_mu = log_policy(mu)
    pairs = interleave(
        lambda: npf.equilibrium(game, beta=beta, reference=mu),
        lambda: peers.clarabel(game.payoffs, beta, log_mu),
        5 if n < 500 else 3,
    )
    ours, (policy, share) = pairs.results
    gap = npf.duality_gap(game, policy, beta, mu)
    return pairs.speedup, f"{pairs} ({share:.0%} in its solver); gap {ours.gap:.0e} against {gap:.0e}"


def against_mirror_prox() -> Measured:
    """Newton all the way, mirror-prox only to `MIRROR_PROX_GAP`."""
    rng = np.random.default_rng(12)
    beta, game, mu = 0.001, npf.zoo.random_preferences(500, rng), random_reference(500, rng)
    log_mu = log_policy(mu)
    pairs = interleave(
        lambda: npf.equilibrium(game, beta=beta, reference=mu),
        lambda: peers.mirror_prox(game.payoffs, beta, log_mu, MIRROR_PROX_GAP),
        5,
    )
    ours, (policy, steps) = pairs.results
    gap = npf.duality_gap(game, policy, beta, mu)
    taken = f"{steps} steps of {seconds(median(pairs.peer) / steps)}"
    return pairs.speedup, f"{pairs} ({taken}); gap {ours.gap:.0e} against {gap:.0e}"
