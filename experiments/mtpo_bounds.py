"""MTPO's and MTPO-τ's divergence from equilibrium beside their bounds, under the theorems' schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

import nashpref as npf
from nashpref.experiments.common import Experiment, Table, stack, table
from nashpref.policies import FloatArray, normalise, uniform
from nashpref.theory.trajectories import action_values, flat


@dataclass(frozen=True)
class Settings:
    """Random games of each shape (H, S, A), compared by their final states, uniform reference and start.

    An action leads to at most `branching` states: the fewer, the more there is to play for.
    """

    shapes: tuple[tuple[int, int, int], ...] = ((1, 5, 5), (3, 4, 3), (5, 3, 3), (6, 5, 2))
    games: int = 2  # of each shape
    branching: int = 2
    seed: int = 0
    betas: tuple[float, ...] = (0.5, 0.1, 0.02)
    steps: int = 1000
    points: int = 100


def run(settings: Settings) -> Mapping[str, Table]:
    """`schedule`: method, β, game, step, KL_p(π*_β‖π_t), and H and Q of the bound `c HQ²/(β²(t+1))`.

    Q is measured: the largest |Q_h(s, a)| and |β log π_t/μ| of the recorded iterates; in MTPO-τ (c = 8, not
    32) the largest |Q_h(s, a)| of their mixtures with μ and of π*.
    """
    rng = np.random.default_rng(settings.seed)
    grid = npf.log_grid(settings.steps, settings.points)
    parts: list[Table] = []
    for number, (H, S, A) in enumerate(np.repeat(settings.shapes, settings.games, axis=0).tolist()):
        game = npf.zoo.random_markov_game(S, A, H, rng, terminal=True, branching=settings.branching)
        for beta in settings.betas:
            star = npf.equilibrium(game, beta).policy
            for name, rule in (("MTPO", npf.MTPO(beta=beta)), ("MTPO-τ", npf.MTPOTau(beta=beta))):
                trace = npf.solve(
                    game, rule, settings.steps, equilibrium=star, record=grid, keep_policies=True
                )
                Q = _largest_value(game, trace, beta, star if name == "MTPO-τ" else None)
                parts.append(table(trace, "kl", method=name, beta=beta, game=number, H=H, Q=Q))
    return {"schedule": stack(parts)}


def _largest_value(game: npf.MarkovGame, trace: npf.Trace, beta: float, star: FloatArray | None) -> float:
    """The Q of MTPO's theorem, or with π* of MTPO-τ's."""
    assert trace.policies is not None
    policies, mu = flat(game, trace.policies), game.flat(uniform(game.policy_shape))
    if star is None:
        values, ratio = action_values(game, policies, mu, beta)
        return float(max(np.abs(values).max(), np.abs(beta * ratio).max()))
    weight = 2.0 / (trace.steps[:, None, None, None] + 2.0)  # η_t β
    mixtures = normalise((1.0 - weight) * np.log(policies) + weight * np.log(mu))[1]
    values, _ = action_values(game, np.concatenate([mixtures, game.flat(star)[None]]), mu, beta)
    return float(np.abs(values).max())


EXPERIMENT = Experiment(
    "MTPO and MTPO-τ below 32HQ²/(β²(t+1)) and 8HQ²/(β²(t+1)): they fall as T^-4 and T^-2",
    {
        "quick": Settings(games=1, steps=400, points=60),
        "default": Settings(),
        "full": Settings(games=5, steps=5000, points=150),
    },
    run,
)
