"""Small language models in experiments: fine-tuned on the spot, trained by any method, measured exactly.

Whatever trains takes a copy of the model that it is given, and leaves nothing on disk. PyTorch is needed: the
experiments import this module when they run.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from nashpref.experiments.common import Table
from nashpref.llm import losses
from nashpref.llm.algorithms import Algorithm
from nashpref.llm.batching import LengthBuckets
from nashpref.llm.data import Pair, Text
from nashpref.llm.encoding import Encoder, collate, encode_demonstrations, encode_pairs
from nashpref.llm.exact_dialogue import DialogueTask
from nashpref.llm.exact_task import Task
from nashpref.llm.nash import NashConfig, NashTrainer
from nashpref.llm.objectives import Demonstrations, PolicyPairs, collate_referenced, with_reference
from nashpref.llm.playground import tiny_causal_lm
from nashpref.llm.preferences.adapters import key_of
from nashpref.llm.rlhf import RLHFConfig, RLHFTrainer
from nashpref.llm.training import TrainConfig, fit, make_accelerator
from nashpref.mirror import UpdateRule, target_beta
from nashpref.policies import FloatArray

BATCH = 256  # of supervised fine-tuning and of DPO


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums whose order does not depend on the number of cores; with models this small also the fastest."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def fine_tuned(task: Task | DialogueTask, *, width: int, steps: int, seed: int) -> PreTrainedModel:
    """A model of one layer that has learnt to speak like the task's demonstrator."""
    model = tiny_causal_lm(task.tokenizer, kind="gpt2", layers=1, width=width, context=32, seed=seed)
    encoder, rng = Encoder(task.tokenizer), np.random.default_rng(seed)
    demonstrations = task.demonstrations(rng, BATCH * min(steps, 80))
    keys = [key_of([each.prompt, each.completion]) for each in demonstrations]
    distinct = dict(zip(keys, demonstrations, strict=True))  # few, and tokenisation is slow
    encoded = dict(zip(distinct, encode_demonstrations(encoder, distinct.values()), strict=True))
    rows = [encoded[key] for key in keys]
    _fit(Demonstrations(model), rows, partial(collate, pad_id=encoder.pad_id), steps, 3e-3, seed)
    return model


def play(
    model: nn.Module, rule: UpdateRule, task: Task, reference: FloatArray, *, every: int, **options: Any
) -> tuple[nn.Module, Table]:
    """A copy trained by a rule, and the exact gap on the way: columns `round`, `gap` and `leak`.

    The gap is that of the game whose equilibrium the rule seeks, as in `nashpref.solve`.

    Args:
        model: where training starts.
        rule: see `NashTrainer`.
        task: of which the prompts and the preference are.
        reference: μ of the exact gap, the start's probabilities.
        every: rounds between measurements; the start is measured too.
        options: of `NashConfig`.
    """
    model = copy.deepcopy(model)
    measure = task.metrics(target_beta(rule), reference)
    found = [measure(model)]
    fits = sum(bool(step.payoffs) for step in rule.steps(0))
    with tempfile.TemporaryDirectory() as folder:
        args = NashConfig(
            output=folder,
            batch_size=len(task.prompts),
            max_new_tokens=task.max_new_tokens,
            eval_every=every * fits * options["updates"],
            **options,
        )
        trainer = NashTrainer(
            model, rule, task, args, list(task.prompts), task.tokenizer, compute_metrics=measure
        )
        log = trainer.train(progress=False)
    found += [{name: record[f"eval/{name}"] for name in found[0]} for record in log if "eval/gap" in record]
    rounds = np.minimum(every * np.arange(len(found)), options["rounds"])
    return model, {"round": rounds} | {
        name: np.array([each[name] for each in found]) for name in ("gap", "leak")
    }


def reinforced(
    model: nn.Module, algorithm: Algorithm, rewards: FloatArray, task: Task, **options: Any
) -> nn.Module:
    """A copy trained by RLHF.

    Args:
        model: where training starts.
        algorithm: one of `nashpref.llm.algorithms`.
        rewards: of every response to every prompt, `(B, n)`. What is no response gets 2 less than the worst.
        task: of which the prompts and the responses are.
        options: of `RLHFConfig`.
    """
    tables = {
        prompt: dict(zip(task.responses, row.tolist(), strict=True))
        for prompt, row in zip(task.prompts, rewards, strict=True)
    }

    def reward(prompts: Sequence[Text], responses: Sequence[Text]) -> list[float]:
        return [
            tables[str(x)].get(str(y), min(tables[str(x)].values()) - 2.0)
            for x, y in zip(prompts, responses, strict=True)
        ]

    model = copy.deepcopy(model)
    with tempfile.TemporaryDirectory() as folder:
        args = RLHFConfig(
            output=folder, batch_size=len(task.prompts), max_new_tokens=task.max_new_tokens, **options
        )
        RLHFTrainer(model, algorithm, reward, args, list(task.prompts), task.tokenizer).train(progress=False)
    return model


def aligned(
    model: PreTrainedModel,
    pairs: Sequence[Pair],
    beta: float,
    tokenizer: PreTrainedTokenizerFast,
    *,
    steps: int,
    learning_rate: float,
    seed: int,
) -> PreTrainedModel:
    """A copy trained by DPO on `pairs`, whose labels may be soft; β is that of the KL to `model`."""
    model, encoder = copy.deepcopy(model), Encoder(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        accelerator = make_accelerator(TrainConfig(output=folder))
        rows = with_reference(model, encode_pairs(encoder, pairs), encoder.pad_id, accelerator)
    objective = PolicyPairs(model, partial(losses.dpo, beta=beta))
    collator = partial(collate_referenced, pad_id=encoder.pad_id)
    _fit(objective, rows, collator, steps, learning_rate, seed)
    return model


def _fit(
    objective: nn.Module, rows: Sequence[Any], collator: Any, steps: int, learning_rate: float, seed: int
) -> None:
    """`fit` that leaves nothing on disk."""
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            output=folder, max_steps=steps, batch_size=BATCH, learning_rate=learning_rate, seed=seed
        )
        fit(objective, rows, LengthBuckets([len(row) for row in rows], BATCH, seed=seed), collator, config)
