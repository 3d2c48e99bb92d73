"""Dialogues of a transformer with a user, measured by their exact game: within three minutes on two cores."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from torch import nn

import nashpref as npf
from benchmarks.harness import Measured, Row, in_fresh_process, row
from nashpref.experiments.networks import fine_tuned
from nashpref.llm.dialogue_tasks import cycle
from nashpref.llm.nash import NashConfig, NashTrainer
from nashpref.mirror import UpdateRule

LIMIT, THREADS = 180.0, 2  # seconds, by the clock
BETA, NEAR = 0.1, 1e-2
WIDTH, STEPS = 64, 400  # of the model, a GPT-2 of one layer, and of its supervised fine-tuning


@dataclass(frozen=True)
class Recipe:
    """A rule, and how it is trained.

    Attributes:
        average: the gap is that of the average policy, in the game itself. There iterates go on moving to the
            end, and the learning rate does not decay.
    """

    rule: UpdateRule
    rounds: int
    updates: int
    samples: int
    batch_responses: int
    learning_rate: float
    average: bool = False


def falling(t: int) -> float:
    """Of the shape of the theorem's step, 2/(β(t + 2)), and at most 1."""
    return min(1.0, 20.0 / (t + 2))


RECIPES = {
    "MTPO": Recipe(npf.MTPO(beta=BETA, eta=falling), 80, 8, 32, 32, 3e-3),
    "OMPO": Recipe(npf.OMPO(eta=3.0), 104, 12, 128, 64, 1.5e-3, average=True),
}


def rows() -> Iterator[Row]:
    """The gap that is reached, of MTPO, and as a share of the start's, of OMPO."""
    size = "4 prompts × 2 turns of 9 words"
    limit = f"after {LIMIT:.0f} s on {THREADS} cores or less"
    title = f"gap of a transformer in dialogues, {size}, {limit}: MTPO, β = {BETA:g}"
    yield row(title, f"≤ {NEAR:g}", "", in_fresh_process, reached, "MTPO")
    title = "gap of the average policy over the start's, same dialogues and time: OMPO"
    yield row(title, "≤ 0.1", "", in_fresh_process, reached, "OMPO")


def reached(name: str) -> Measured:
    """The exact gap of the last evaluation within the limit; evaluation is not counted."""
    recipe, task = RECIPES[name], cycle()
    log: list[tuple[float, float]] = []
    evaluating = 0.0
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as folder:
        model = fine_tuned(task, width=WIDTH, steps=STEPS, seed=0)
        mu = task.policy(model)
        policies = [mu]

        def metrics(policy: nn.Module) -> dict[str, float]:
            nonlocal evaluating
            began = perf_counter()
            policies.append(task.policy(policy))
            log.append((began - start - evaluating, gap()))
            evaluating += perf_counter() - began
            return {}

        def gap() -> float:
            if recipe.average:
                return float(np.mean(task.gap(task.average(policies))))
            return float(np.mean(task.gap(policies[-1], BETA, mu)))

        args = NashConfig(
            output=folder,
            rounds=recipe.rounds,
            updates=recipe.updates,
            reuse=recipe.updates,
            samples=recipe.samples,
            batch_responses=recipe.batch_responses,
            warmup_steps=50 if recipe.average else 0,
            lines=8,
            batch_size=len(task.prompts),
            max_new_tokens=task.max_new_tokens,
            learning_rate=recipe.learning_rate,
            schedule="constant" if recipe.average else "linear",
            log_every=10_000,
            eval_every=recipe.updates,
        )
        prompts = list(task.prompts)
        trainer = NashTrainer(
            model,
            recipe.rule,
            task,
            args,
            prompts,
            task.tokenizer,
            compute_metrics=metrics,
            environment=task,
        )
        began, start = gap(), perf_counter()
        trainer.train(progress=False)
    value = [gap for seconds, gap in log if seconds <= LIMIT][-1]
    share = value / began if recipe.average else value
    note = (
        f"from {began:.3f} to {value:.4f}; {recipe.rounds} rounds in {log[-1][0]:.0f} s, "
        f"{log[-1][1]:.4f} then"
    )
    return share, note
