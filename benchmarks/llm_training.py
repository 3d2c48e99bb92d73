"""How near a transformer comes to equilibrium, in a minute, on a cyclic task whose exact gap is known."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from time import process_time
from typing import Literal

import numpy as np
from torch import nn

import nashpref as npf
from benchmarks.harness import Measured, Row, in_fresh_process, row
from nashpref.experiments.common import given_valid
from nashpref.experiments.network_methods import SLOPE, best_fit, optimum
from nashpref.experiments.networks import aligned, fine_tuned, reinforced
from nashpref.llm.algorithms import GRPO, PPO
from nashpref.llm.environments import rock_paper_scissors_of_styles
from nashpref.llm.nash import NashConfig, NashTrainer
from nashpref.mirror import UpdateRule

BETA, NEAR = 0.05, 5e-3
MINUTE = 60.0  # CPU seconds
WIDTH, STEPS = 64, 400  # of the model, a GPT-2 of one layer, and of its supervised fine-tuning


def falling(t: int) -> float:
    """Of the shape of the theorems' schedule, 2/(β(t + 2)), and at most 2."""
    return min(2.0, 100.0 / (t + 2))


@dataclass(frozen=True)
class Recipe:
    """A rule, for how many rounds, and what runs differ in of `NashConfig`."""

    rule: UpdateRule
    rounds: int
    schedule: Literal["linear", "cosine"] = "linear"
    batch_responses: int = 32
    learning_rate: float = 3e-3


RECIPES = {
    "Nash-MD": Recipe(npf.NashMD(beta=BETA, eta=falling), 200),
    "GDA": Recipe(npf.GDA(beta=BETA, eta=falling), 200),
    "OGDA": Recipe(npf.OGDA(beta=BETA, eta=1.0), 240),
    "EGPO": Recipe(npf.EGPO(beta=BETA, eta=1.8), 120),
}


def rows() -> Iterator[Row]:
    """One for each rule, each in a process of its own."""
    for name, recipe in RECIPES.items():
        title = f"gap of a transformer, 8 prompts × 81 responses, after {MINUTE:.0f} s of CPU or less: {name}"
        yield row(title, f"≤ {NEAR:g}", "", in_fresh_process, nearest, recipe, NEAR, MINUTE)
    for name in ("DPO", "PPO", "GRPO"):
        title = f"gap of the same transformer trained by {name}"
        yield row(title, f"≥ {10 * NEAR:g}", "", in_fresh_process, baseline, name)


def nearest(recipe: Recipe, near: float, limit: float = math.inf, seed: int = 0) -> Measured:
    """The exact gap at the end of a run, or after `limit` seconds of CPU, evaluation not counted.

    Args:
        recipe: see there.
        near: the note says when the gap first is this small.
        limit: in seconds.
        seed: of fine-tuning and of the run.
    """
    rule, rounds = recipe.rule, recipe.rounds
    task = rock_paper_scissors_of_styles()
    model = fine_tuned(task, width=WIDTH, steps=STEPS, seed=seed)
    reference = task.policy(model)
    log: list[tuple[float, float]] = []
    evaluating = 0.0

    def metrics(policy: nn.Module) -> dict[str, float]:
        nonlocal evaluating
        began = process_time()
        gap = float(task.gap(policy, BETA, reference).mean())
        log.append((began - start - evaluating, gap))
        evaluating += process_time() - began
        return {}

    with tempfile.TemporaryDirectory() as folder:
        fits = sum(bool(step.payoffs) for step in rule.steps(0))
        args = NashConfig(
            output=folder,
            rounds=rounds,
            updates=8,
            reuse=8,
            samples=64,
            batch_responses=recipe.batch_responses,
            batch_size=len(task.prompts),
            max_new_tokens=task.max_new_tokens,
            learning_rate=recipe.learning_rate,
            schedule=recipe.schedule,
            seed=seed,
            log_every=1000,
            eval_every=8 * fits * rounds // 20,
        )
        trainer = NashTrainer(
            model, rule, task, args, list(task.prompts), task.tokenizer, compute_metrics=metrics
        )
        start = process_time()
        trainer.train(progress=False)
    gap = [gap for seconds, gap in log if seconds <= limit][-1]
    first = next((f"{s:.0f} s" for s, g in log if g <= near), "never")
    began = float(task.gap(reference, BETA, reference).mean())
    return gap, (
        f"from {began:.3f}; ≤ {near:g} first after {first}; {rounds} rounds in {log[-1][0]:.0f} s of CPU, "
        f"gap {log[-1][1]:.1e} then"
    )


def baseline(name: str) -> Measured:
    """The exact gap of a model trained on the Bradley–Terry reward that fits the cycle best, or on pairs."""
    task = rock_paper_scissors_of_styles()
    model = fine_tuned(task, width=WIDTH, steps=STEPS, seed=0)
    start = task.policy(model)
    mu = given_valid(start)
    began = process_time()
    if name == "DPO":
        pairs = task.pairs(np.random.default_rng(0), 20_000, policy=start, soft=True)
        trained = aligned(model, pairs, SLOPE * BETA, task.tokenizer, steps=600, learning_rate=3e-4, seed=0)
    else:
        algorithm = {"PPO": PPO(beta=SLOPE * BETA), "GRPO": GRPO(beta=SLOPE * BETA, kl="reward")}[name]
        options = {"rounds": 250, "reuse": 2, "samples": 64, "learning_rate": 1e-3, "seed": 0}
        trained = reinforced(model, algorithm, best_fit(task, mu), task, **options)
    seconds = process_time() - began
    policy = task.policy(trained)
    ideal = float(task.gap(optimum(task, mu, SLOPE * BETA), BETA, mu).mean())
    return float(task.gap(given_valid(policy), BETA, mu).mean()), (
        f"{seconds:.0f} s of CPU; RLHF's optimum for {SLOPE:g}β in exact arithmetic {ideal:.3f}; "
        f"{policy[:, -1].mean():.1%} on what is no response"
    )
