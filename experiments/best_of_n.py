"""Best-of-n without a reward: the equilibrium of the candidates against Bradley–Terry's favourite.

n responses are drawn from a policy, and one of them is given as the answer. What is measured is the exact
exploitability of the answers' distribution in the whole game, the invalid answer included: half the duality
gap, by how much the best response to it wins more than half the time. The distribution is the mean of the
mixtures over many drawings of n, which leaves out the noise of drawing from them; its gap is convex in the
distribution, and so an estimate from few drawings would be too large. Intervals are by the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

import nashpref as npf
from nashpref.experiments.common import Experiment, Table
from nashpref.experiments.network_methods import as_table
from nashpref.policies import FloatArray

if TYPE_CHECKING:
    from nashpref.llm.exact_task import Task


@dataclass(frozen=True)
class Settings:
    """What the numbers depend on.

    Attributes:
        prompts, length: of the tasks, 3^length responses.
        skew: how far the policy is from uniform.
        leak: how often the policy says what is no response.
        candidates: n.
        batches, drawings: independent estimates, and drawings of n for each prompt in each.
        seed: of everything.
    """

    prompts: int = 3
    length: int = 3
    skew: float = 0.4
    leak: float = 0.01
    candidates: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    batches: int = 8
    drawings: int = 400
    seed: int = 0


def run(settings: Settings) -> Mapping[str, Table]:
    """`exploitability`: by `task`, `selection` and `n`, its mean over prompts and batches, and `low` and
    `high`, the ends of a 95 % interval.
    """
    from nashpref.llm.environments import annotator_mixture, bradley_terry, rock_paper_scissors_of_styles

    s, rows = settings, []
    makers = (
        ("cycle", rock_paper_scissors_of_styles),
        ("annotators", annotator_mixture),
        ("Bradley–Terry", bradley_terry),
    )
    for name, make in makers:
        task = make(s.prompts, length=s.length, skew=s.skew, seed=s.seed)
        for n in s.candidates:
            for selection, values in exploitabilities(task, n, s).items():
                half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
                rows.append((name, selection, n, values.mean(), values.mean() - half, values.mean() + half))
    return {"exploitability": as_table(("task", "selection", "n", "exploitability", "low", "high"), rows)}


def exploitabilities(task: Task, n: int, settings: Settings) -> dict[str, FloatArray]:
    """Of each batch, by selection; both have the same candidates."""
    import torch

    from nashpref.llm.decoding import bradley_terry_of_n, equilibrium_of_n

    s, game = settings, task.game()
    policy = np.pad((1.0 - s.leak) * task.reference, ((0, 0), (0, 1)), constant_values=s.leak)
    answers = np.array(game.labels)
    rng, generator = np.random.default_rng([s.seed, n]), torch.Generator().manual_seed(s.seed)
    found: dict[str, list[float]] = {"equilibrium": [], "Bradley–Terry": []}
    for _ in range(s.batches):
        induced = {name: np.zeros_like(policy) for name in found}
        for k, prompt in enumerate(task.prompts):
            drawn = rng.choice(policy.shape[1], (s.drawings, n), p=policy[k])
            asked, groups = [prompt] * s.drawings, answers[drawn].tolist()
            mixtures = {
                "equilibrium": equilibrium_of_n(task, asked, groups, generator).mixture,
                "Bradley–Terry": bradley_terry_of_n(task, asked, groups).mixture,
            }
            for name, mixture in mixtures.items():
                np.add.at(induced[name][k], drawn, mixture / s.drawings)
        for name, each in induced.items():
            found[name].append(float(np.mean(npf.duality_gap(game, each))) / 2.0)
    return {name: np.array(values) for name, values in found.items()}


EXPERIMENT = Experiment(
    "Best-of-n under a preference: the equilibrium of the candidates against Bradley–Terry's favourite",
    {
        "quick": Settings(prompts=1, length=2, candidates=(1, 4, 16), batches=3, drawings=30),
        "default": Settings(),
        "full": Settings(candidates=(1, 2, 4, 8, 16, 32, 64), drawings=2000),
    },
    run,
    needs=("torch", "transformers"),
)
