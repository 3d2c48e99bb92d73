"""Local contraction factors: measured near the equilibrium against the spectrum's prediction."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

import nashpref as npf
from nashpref.experiments.common import Experiment, Table, stack
from nashpref.policies import FloatArray
from nashpref.theory.spectrum import spectrum

RULES: Mapping[str, Callable[..., npf.UpdateRule]] = {
    "GDA": npf.GDA,
    "MMD": npf.MMD,
    "OGDA": npf.OGDA,
    "EGPO": npf.EGPO,
}
LINEAR = 1e-8  # above this KL the motion is no longer that of its linearisation
FLOOR = 1e-26  # below this KL rounding shows


@dataclass(frozen=True)
class Settings:
    """Every run starts at π*_β with noise of size `perturbation` on its logits: a KL of about 1e-12."""

    beta: float = 0.1
    etas: tuple[float, float, int] = (0.25, 9.5, 19)  # first, last, number; geometric
    n: int = 10
    seed: int = 0
    perturbation: float = 1e-6
    steps: int = 3000


def run(settings: Settings) -> Mapping[str, Table]:
    """`factors`: KL_{t+1}/KL_t at the end of each run, `measured`, beside `predicted`, per game, rule and η.
    `curves`: the prediction on a fine grid.  `limits`: the largest stable η and ω of each game.
    """
    rng = np.random.default_rng(settings.seed)
    beta = settings.beta
    games = {
        "rock-paper-scissors": npf.zoo.rock_paper_scissors(),
        "COMAL": npf.zoo.comal(),
        f"random, n = {settings.n}": npf.zoo.random_preferences(settings.n, rng),
    }
    first, last, number = settings.etas
    etas, fine = np.geomspace(first, last, number), np.geomspace(first, last, 400)
    factors, curves, limits = [], [], []
    for game_name, game in games.items():
        local = spectrum(game, beta)
        star = npf.equilibrium(game, beta).policy
        start = star * np.exp(settings.perturbation * rng.standard_normal(game.n))
        start /= start.sum()
        for name, family in RULES.items():
            rules = [family(beta=beta, eta=eta) for eta in etas]
            measured = np.array([measure(game, rule, star, start, settings.steps) for rule in rules])
            predicted = np.array([local.factor(rule) for rule in rules])
            curve = np.array([local.factor(family(beta=beta, eta=eta)) for eta in fine])
            limit = local.step_limit(functools.partial(_with_step, family, beta))
            labels = {"game": game_name, "method": name}
            factors.append(_labelled(labels, eta=etas, measured=measured, predicted=predicted))
            curves.append(_labelled(labels, eta=fine, predicted=curve))
            limits.append(_labelled(labels, omega=np.array([local.omega]), limit=np.array([limit])))
    return {"factors": stack(factors), "curves": stack(curves), "limits": stack(limits)}


def measure(
    game: npf.MatrixGame, rule: npf.UpdateRule, star: FloatArray, start: FloatArray, steps: int
) -> float:
    """The factor by which KL(π*‖π_t) changes per step, from a log-linear fit.

    Fitted to the last quarter of the stretch on which the KL lies between rounding and non-linearity: by
    then the slowest mode dominates.
    """
    kl = npf.solve(game, rule, steps, start=start, equilibrium=star, record=1, tol=FLOOR).kl
    assert kl is not None
    outside = np.flatnonzero((kl < FLOOR) | (kl > LINEAR))
    end = int(outside[0]) if outside.size else len(kl)
    late = slice(max(0, min(3 * end // 4, end - 8)), end)
    slope = np.polyfit(np.arange(len(kl))[late], np.log(kl[late]), 1)[0]
    return float(np.exp(slope))


def _with_step(family: Callable[..., npf.UpdateRule], beta: float, eta: float) -> npf.UpdateRule:
    return family(beta=beta, eta=eta)


def _labelled(labels: Mapping[str, str], **columns: FloatArray) -> Table:
    rows = len(next(iter(columns.values())))
    return {name: np.full(rows, value) for name, value in labels.items()} | columns


EXPERIMENT = Experiment(
    "contraction factors measured against the local spectrum, with the stability limits",
    {
        "quick": Settings(etas=(0.25, 9.5, 7), steps=1500),
        "default": Settings(),
        "full": Settings(etas=(0.1, 9.5, 60), steps=20_000),
    },
    run,
)
