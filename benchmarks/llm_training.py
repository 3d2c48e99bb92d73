"""How near a transformer comes to equilibrium, in a minute, on a cyclic task whose exact gap is known."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from time import process_time

import numpy as np
from torch import nn

import nashpref as npf
from benchmarks.harness import Measured, Row, in_fresh_process, row
from nashpref.llm.batching import LengthBuckets
from nashpref.llm.encoding import Encoder, collate, encode_demonstrations
from nashpref.llm.environments import Task, rock_paper_scissors_of_styles
from nashpref.llm.nash import NashConfig, NashTrainer
from nashpref.llm.objectives import Demonstrations
from nashpref.llm.playground import tiny_causal_lm
from nashpref.llm.training import TrainConfig, fit
from nashpref.mirror import UpdateRule

BETA, NEAR = 0.05, 5e-3
MINUTE = 60.0  # CPU seconds


def falling(t: int) -> float:
    """The schedule of the theorems, 2/(β(t + 2)), in shape: 100/(t + 2), at most 2."""
    return min(2.0, 100.0 / (t + 2))


RULES: dict[str, tuple[UpdateRule, int]] = {
    "Nash-MD": (npf.NashMD(beta=BETA, eta=falling), 200),
    "GDA": (npf.GDA(beta=BETA, eta=falling), 200),
    "OGDA": (npf.OGDA(beta=BETA, eta=1.0), 180),
    "EGPO": (npf.EGPO(beta=BETA, eta=1.8), 100),
}


def rows() -> Iterator[Row]:
    """One for each rule, each in a process of its own."""
    for name in RULES:
        title = f"gap of a transformer, 8 prompts × 81 responses, after {MINUTE:.0f} s of CPU or less: {name}"
        yield row(title, f"≤ {NEAR:g}", "", in_fresh_process, nearest, name)


def nearest(name: str) -> Measured:
    """The exact gap at the end of a run, which is shorter than a minute; evaluation is not counted."""
    rule, rounds = RULES[name]
    task = rock_paper_scissors_of_styles()
    model = fine_tuned(task)
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
            batch_responses=32,
            batch_size=len(task.prompts),
            max_new_tokens=task.max_new_tokens,
            learning_rate=3e-3,
            log_every=1000,
            eval_every=8 * fits * rounds // 20,
        )
        trainer = NashTrainer(
            model, rule, task, args, list(task.prompts), task.tokenizer, compute_metrics=metrics
        )
        start = process_time()
        trainer.train(progress=False)
    gap = [gap for seconds, gap in log if seconds <= MINUTE][-1]
    first = next((f"{s:.0f} s" for s, g in log if g <= NEAR), "never")
    began = float(task.gap(reference, BETA, reference).mean())
    return gap, (
        f"from {began:.3f}; ≤ {NEAR:g} first after {first}; {rounds} rounds in {log[-1][0]:.0f} s of CPU, "
        f"gap {log[-1][1]:.1e} then"
    )


def fine_tuned(task: Task) -> nn.Module:
    """A GPT-2 of one layer and width 64 that has learnt the demonstrator."""
    model = tiny_causal_lm(task.tokenizer, kind="gpt2", layers=1, width=64, context=32)
    encoder = Encoder(task.tokenizer)
    examples = encode_demonstrations(encoder, task.demonstrations(np.random.default_rng(0), 20_000))
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(output=folder, max_steps=400, batch_size=256, learning_rate=3e-3, log_every=1000)
        fit(
            Demonstrations(model),
            examples,
            LengthBuckets([len(each) for each in examples], 256),
            lambda batch: collate(batch, encoder.pad_id),
            config,
        )
    return model
