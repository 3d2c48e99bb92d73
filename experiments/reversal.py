"""Names backwards: what a reward that says right or wrong adds to some demonstrations.

A small model learns from a few hundred demonstrations. Then four policy gradients begin at this same model,
with many more names and no demonstration of them: a reward of 1 for the name backwards, else 0. What is
measured is how many names that nobody has trained on the model's likeliest answer has right. As a control,
supervised learning from the same demonstrations goes on for twice as long. It gets nearly as far: what is
compared here is algorithms from one start, not a reward with more demonstrating.

The first algorithm is that of a lecture, whose table (64.8% before, 92.6% after, on a larger model) this is
after: the reward less its mean in the group, and PPO's clip from 0.8 to 2.0. It is `DrGRPO` with this clip.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from nashpref.experiments.common import Experiment, Table
from nashpref.experiments.network_methods import as_table

if TYPE_CHECKING:
    from torch import nn

    from nashpref.llm.algorithms import Algorithm
    from nashpref.llm.verifiable import VerifiableTask


@dataclass(frozen=True)
class Settings:
    """What the numbers depend on.

    Attributes:
        demonstrations: names that supervised learning is told the answers of.
        names, held_out: to train on with the reward, those told included, and to measure on.
        layers, width: of the model.
        sft_steps, sft_batch, sft_rate: of supervised learning.
        rounds, reuse, batch_size, samples, learning_rate: of `RLHFConfig`; the rate decays to zero.
        max_grad_norm: so small that the scale of a loss plays no part.
        every: rounds between measurements.
        methods: which of `algorithms`; none are all.
        seeds: of what is drawn with the reward.
        seed: of the names and of the model that all begin at.
    """

    demonstrations: int = 400
    names: int = 3000
    held_out: int = 500
    layers: int = 2
    width: int = 64
    sft_steps: int = 200
    sft_batch: int = 64
    sft_rate: float = 3e-3
    rounds: int = 120
    reuse: int = 2
    batch_size: int = 64
    samples: int = 8
    learning_rate: float = 1e-3
    max_grad_norm: float = 0.03
    every: int = 10
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    seed: int = 0


def algorithms() -> Mapping[str, Algorithm]:
    """By what the figure calls them; nothing holds them to the start."""
    from nashpref.llm.algorithms import GRPO, RLOO, DrGRPO

    return {
        "group mean, clip 0.8–2.0": DrGRPO(beta=0.0, clip=(0.2, 1.0)),
        "GRPO": GRPO(beta=0.0),
        "Dr.GRPO": DrGRPO(beta=0.0),
        "RLOO": RLOO(beta=0.0),
    }


def run(settings: Settings) -> Mapping[str, Table]:
    """`training`: the exact match on held-out names by `method`, `seed` and `round`, the start being round 0.
    `supervised`: the same after `steps` of supervised learning.
    """
    from nashpref.experiments.networks import one_thread
    from nashpref.llm.verifiable import greedy_metrics, reversal

    s, task = settings, reversal(settings.names, settings.held_out, seed=settings.seed)
    measure = greedy_metrics(
        {"exact_match": task}, task.held_out_prompts, task.tokenizer(), max_new_tokens=task.max_new_tokens
    )
    training: list[tuple[str, int, int, float]] = []
    with one_thread():
        start, longer = (fine_tuned(task, s, steps) for steps in (s.sft_steps, 2 * s.sft_steps))
        supervised = [
            (steps, measure(model)["exact_match"])
            for steps, model in ((s.sft_steps, start), (2 * s.sft_steps, longer))
        ]
        for method, algorithm in algorithms().items():
            if method in (s.methods or algorithms()):
                for seed in s.seeds:
                    found = reinforced(start, algorithm, task, measure, s, seed)
                    training += [(method, seed, n, exact_match) for n, exact_match in found]
    return {
        "training": as_table(("method", "seed", "round", "exact_match"), training),
        "supervised": as_table(("steps", "exact_match"), supervised),
    }


def fine_tuned(task: VerifiableTask, settings: Settings, steps: int) -> nn.Module:
    """A new model that has learnt from the first demonstrations."""
    from nashpref.llm.batching import LengthBuckets
    from nashpref.llm.encoding import Encoder, collate, encode_demonstrations
    from nashpref.llm.objectives import Demonstrations
    from nashpref.llm.playground import tiny_causal_lm
    from nashpref.llm.training import TrainConfig, fit

    s, tokenizer = settings, task.tokenizer()
    model = tiny_causal_lm(tokenizer, layers=s.layers, width=s.width, context=32, seed=s.seed)
    encoder = Encoder(tokenizer)
    rows = encode_demonstrations(encoder, task.train[: s.demonstrations])
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            output=folder,
            max_steps=steps,
            batch_size=s.sft_batch,
            learning_rate=s.sft_rate,
            warmup_steps=s.sft_steps // 10,
            seed=s.seed,
        )
        fit(
            Demonstrations(model),
            rows,
            # With so few, a batch of one length would be nearly the same in every epoch.
            LengthBuckets([len(row) for row in rows], s.sft_batch, seed=s.seed, bucket=1),
            partial(collate, pad_id=encoder.pad_id),
            config,
        )
    return model


def reinforced(
    model: nn.Module,
    algorithm: Algorithm,
    task: VerifiableTask,
    measure: Callable[[nn.Module], Mapping[str, float]],
    settings: Settings,
    seed: int,
) -> list[tuple[int, float]]:
    """Rounds and the exact match on held-out names after them, of a copy of the model that is trained."""
    from nashpref.llm.rlhf import RLHFConfig, RLHFTrainer

    s, model, tokenizer = settings, copy.deepcopy(model), task.tokenizer()
    start = measure(model)["exact_match"]
    with tempfile.TemporaryDirectory() as folder:
        args = RLHFConfig(
            output=folder,
            rounds=s.rounds,
            reuse=s.reuse,
            samples=s.samples,
            batch_size=s.batch_size,
            max_new_tokens=task.max_new_tokens,
            learning_rate=s.learning_rate,
            max_grad_norm=s.max_grad_norm,
            warmup_steps=s.reuse * s.rounds // 20,
            eval_every=s.every * s.reuse,
            seed=seed,
        )
        trainer = RLHFTrainer(model, algorithm, task, args, task.prompts, tokenizer, compute_metrics=measure)
        log = trainer.train(progress=False)
    evaluated = [each for each in log if "eval/exact_match" in each]
    return [(0, start), *((int(e["step"]) // s.reuse, e["eval/exact_match"]) for e in evaluated)]


EXPERIMENT = Experiment(
    "names backwards: policy gradients on a reward that says right or wrong, from one start",
    {
        "quick": Settings(
            demonstrations=60,
            names=100,
            held_out=40,
            layers=1,
            width=16,
            sft_steps=20,
            rounds=2,
            batch_size=8,
            samples=4,
            every=1,
        ),
        "default": Settings(methods=("group mean, clip 0.8–2.0",)),
        "full": Settings(rounds=240, every=20, seeds=(0, 1, 2)),
    },
    run,
    needs=("torch", "transformers", "accelerate"),
)
