"""Votes on what a language model says, and a judge that is learned from them.

PyTorch is needed: the experiments import this module when they run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from nashpref.llm.batching import LengthBuckets
from nashpref.llm.data import Pair
from nashpref.llm.encoding import Encoder, collate_pairs
from nashpref.llm.environments import Task
from nashpref.llm.objectives import PreferencePairs
from nashpref.llm.playground import tiny_causal_lm
from nashpref.llm.preferences import GeneralPreferenceModel
from nashpref.llm.sampling import sample
from nashpref.llm.training import TrainConfig, fit

SPREAD = 4.0  # of the judge's initial weights: the usual initialisation is for wide models


def votes(
    task: Task, policy: nn.Module, count: int, *, temperatures: Sequence[float], seed: int
) -> list[Pair]:
    """Pairs of independent responses of the policy, with the winner of a vote drawn from `Pr(a ≻ b)`."""
    each = count // (len(temperatures) * len(task.prompts))
    rng = np.random.default_rng([seed, 1])
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for prompt in task.prompts:
        drawn = [
            sample(
                policy,
                Encoder(task.tokenizer),
                [prompt],
                2 * each,
                max_new_tokens=task.max_new_tokens,
                temperature=temperature,
                generator=generator,
            ).texts[0]
            for temperature in temperatures
        ]
        texts = rng.permutation(np.concatenate(drawn)).tolist()
        a, b = texts[::2], texts[1::2]
        won = rng.random(len(a)) < task([prompt] * len(a), a, b).numpy()
        pairs += [Pair(prompt, *((y, z) if w else (z, y))) for y, z, w in zip(a, b, won, strict=True)]
    return pairs


def learned(
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[Pair],
    *,
    width: int,
    planes: int,
    steps: int,
    rate: float,
    seed: int,
) -> GeneralPreferenceModel:
    """A general preference model on a backbone of its own."""
    backbone = tiny_causal_lm(tokenizer, layers=1, width=width, context=32, seed=seed)
    with torch.no_grad():
        for weight in backbone.parameters():
            if weight.ndim == 2:
                weight.mul_(SPREAD)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of the head
        model = GeneralPreferenceModel.from_backbone(backbone, tokenizer, planes=planes)
    rows, collator = model.encode_all(pairs), partial(collate_pairs, pad_id=model.encoder.pad_id)
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            output=folder,
            max_steps=steps,
            batch_size=256,
            learning_rate=rate,
            warmup_steps=20,
            schedule="cosine",
            seed=seed,
        )
        batches = LengthBuckets([len(row) for row in rows], config.batch_size, seed=seed)
        fit(PreferencePairs(model), rows, batches, collator, config)
    model.train(False)
    return model
