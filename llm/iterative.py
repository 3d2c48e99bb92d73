"""Iterative DPO: rounds of sampling, comparing and training, each from the model that the last one left.

Round t samples K completions of every prompt from π_t, asks a preference for the K×K matrix of each prompt,
ranks by mean win-rate, keeps pairs that are far enough apart, and fits π_{t+1} to them. The loss, the weight
of the first model in a round's reference and the choice of pairs make the method:

| method | loss | `anchor` | `pairs`, `labels` |
|---|---|---|---|
| DNO-Prct (arXiv:2404.03715, Algorithm 2) | `dpo` with β = 1/η | 0 | large margin, hard |
| iterative DPO, the reference fixed | `dpo` | 1 | large margin, hard |
| INPO (arXiv:2407.00617) | `ipo` with β = 1/η | ηβ | all, soft |

The output folder holds `rounds/`, the weights after each round in a folder that is whole or not there;
`training/`, the pairs and the metrics of each; and `metrics.jsonl`, a line for each round. A run that was
killed goes on after its last finished round, with the pairs and from the last checkpoint of the one in which
it was killed: on a CPU bit for bit as if it had never stopped.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from nashpref.llm import checkpoints
from nashpref.llm.batching import LengthBuckets
from nashpref.llm.checkpoints import PREFIX, Checkpoint, write_folder
from nashpref.llm.data import Text
from nashpref.llm.encoding import EncodedPair, Encoder
from nashpref.llm.evaluation import prompt_groups, win_rates
from nashpref.llm.intervals import proportion
from nashpref.llm.logprobs import Reference, causal_model, quietly
from nashpref.llm.objectives import (
    PairLoss,
    PolicyPairs,
    ReferencedPair,
    collate_referenced,
    pair_score,
    scored_pairs,
)
from nashpref.llm.preferences.adapters import Preference
from nashpref.llm.rounds import Rounds, Row, Sampler, read_pairs
from nashpref.llm.runs import CHECKPOINTS, METRICS, check_output, write_run_files, write_text
from nashpref.llm.training import TrainConfig, fit, make_accelerator

ROUNDS, TRAINING, PAIRS = "rounds", "training", "pairs"

Metrics = dict[str, float]


@dataclass(frozen=True)
class Result:
    """What became of the rounds.

    Attributes:
        rounds: metrics of each, the start being round 0: `win_rate` against the start, the ends `…_low` and
            `…_high` of its interval, the number of `pairs`, and what `evaluate` says.
        best: the round with the highest win-rate, the first of equal ones; the model has its weights.
        stopped: why there are fewer rounds than were asked for; empty if there are not.
    """

    rounds: list[Metrics]
    best: int
    stopped: str = ""


def iterate(
    model: nn.Module,
    encoder: Encoder,
    prompts: Sequence[Text],
    preference: Preference,
    loss: PairLoss,
    rounds: Rounds,
    config: TrainConfig,
    *,
    held_out: Sequence[Text] = (),
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    accelerator: Accelerator | None = None,
    options: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Result:
    """Train `model` in rounds, on pairs of its own samples; at the end it is that of the best round.

    Args:
        model: π_0, a causal language model on the accelerator's device.
        encoder: of its tokenizer.
        prompts: what is sampled from.
        preference: who compares.
        loss: of pairs, its hyper-parameters bound, such as `partial(losses.dpo, beta=0.1)`.
        rounds: see there.
        config: of the training within each round; round t is seeded by `seed + t`.
        held_out: prompts on which rounds are compared with the start; those of training if there are none.
        evaluate: further metrics of the model after each round, such as its exact gap where that is known.
            Every process calls it.
        accelerator, options, progress: as of `fit`.

    Raises:
        ValueError: no pair of the first round is far enough apart (nothing has been written), or the folder
            belongs to another run. From the second round on, such a round is the end: `Result.stopped`.
        NonFiniteLoss, Interrupted, OSError: see `fit`.
    """
    if not prompts:
        raise ValueError("there are no prompts to sample from")
    if config.shard:
        raise ValueError("train.shard: weights in pieces are not kept from round to round; use method: nash")
    options = {"rounds": dataclasses.asdict(rounds), **(options or {})}
    check_output(config, options)
    accelerator = accelerator or make_accelerator(config)
    folder, held_out = _Folder(config, options, accelerator, model), held_out or prompts
    sampler = Sampler(model, encoder, rounds, config.seed, accelerator, progress)
    history, stopped = folder.finished(), ""
    if history:
        folder.load(0)
    start = sampler.answers(held_out)
    first = Reference(model, pair_score(model)) if rounds.anchor > 0.0 else None
    if history:
        folder.load(len(history) - 1)
    else:
        history = [{"round": 0, "win_rate": 0.5, "pairs": 0} | _metrics(evaluate, model)]

    for t in range(len(history), rounds.count + 1):
        rows, widest = folder.pairs(t), 0.0
        if not rows:
            rows, widest = sampler.pairs(t, prompts, preference)
        if not rows:
            stopped = (
                f"round {t}: no two of {rounds.samples} samples of any of {len(prompts)} prompts have "
                f"win-rates that are threshold = {rounds.threshold:g} apart (at most {widest:.3g} are); "
                "lower threshold, or take more samples"
            )
            break
        folder.begin(t, rows, history)
        examples = _referenced(model, first, rounds.anchor, read_pairs(rows), encoder.pad_id, accelerator)
        fit(
            PolicyPairs(model, loss),
            examples,
            LengthBuckets([len(example) for example in examples], config.batch_size, seed=config.seed + t),
            partial(collate_referenced, pad_id=encoder.pad_id),
            dataclasses.replace(config, output=str(folder.training(t)), seed=config.seed + t),
            progress=progress,
        )
        won = _win_rate(sampler, preference, held_out, sampler.answers(held_out), start)
        history.append({"round": t, **won, "pairs": len(rows)} | _metrics(evaluate, model))
        folder.finish(t, history)
    if len(history) == 1:
        raise ValueError(stopped)
    best = max(range(len(history)), key=lambda t: history[t]["win_rate"])
    folder.load(best)
    return Result(history, best, stopped)


def _referenced(
    model: nn.Module,
    first: Reference | None,
    anchor: float,
    pairs: Sequence[EncodedPair],
    pad_id: int,
    accelerator: Accelerator,
) -> list[ReferencedPair]:
    """Pairs with `log μ_t = anchor·log π_0 + (1 − anchor)·log π_t`, its normaliser left out.

    It is the same for both completions of a pair, of which the losses above take the difference.
    """
    with quietly(model):
        now = scored_pairs(partial(pair_score(model), causal_model(model)), pairs, pad_id, accelerator)
    if first is None:
        return now
    return [
        ReferencedPair(
            old.pair,
            anchor * old.chosen + (1.0 - anchor) * new.chosen,
            anchor * old.rejected + (1.0 - anchor) * new.rejected,
        )
        for old, new in zip(scored_pairs(first, pairs, pad_id, accelerator), now, strict=True)
    ]


def _win_rate(
    sampler: Sampler,
    preference: Preference,
    prompts: Sequence[Text],
    ours: Sequence[list[str]],
    theirs: Sequence[list[str]],
) -> Metrics:
    """Of ours against theirs, and the ends of its interval."""
    own = sampler.own(len(prompts))
    rates: list[float] = []
    if own:
        asked, x, y = [prompts[i] for i in own], [ours[i] for i in own], [theirs[i] for i in own]
        rates = win_rates(preference, asked, x, y).tolist()
    together = [rate for _, rate in sampler.gather(list(zip(own, rates, strict=True)))]
    estimate = proportion(together, prompt_groups(prompts))
    return {"win_rate": estimate.value, "win_rate_low": estimate.low, "win_rate_high": estimate.high}


def _metrics(evaluate: Callable[[nn.Module], Mapping[str, float]] | None, model: nn.Module) -> Metrics:
    if evaluate is None:
        return {}
    with quietly(model):
        return {name: float(value) for name, value in evaluate(model).items()}


class _Folder:
    """The run on disk. The main process writes, and the others wait."""

    def __init__(
        self, config: TrainConfig, options: Mapping[str, Any], accelerator: Accelerator, model: nn.Module
    ) -> None:
        self.config, self.options, self.accelerator = config, options, accelerator
        self.output = Path(config.output)
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def training(self, t: int) -> Path:
        """The pairs of a round, and the output folder of its training."""
        return self.output / TRAINING / f"{t:04d}"

    def finished(self) -> list[Metrics]:
        """The metrics of the rounds that are finished."""
        found, complaints = checkpoints.newest(self.output / ROUNDS)
        for complaint in complaints if self.accelerator.is_main_process else []:
            instead = f"going on after round {found.step}" if found else "starting from the beginning"
            print(f"nashpref: {complaint}; {instead}", file=sys.stderr)
        return list(found.state["rounds"]) if found else []

    def pairs(self, t: int) -> list[Row]:
        """Those of a round that was begun: a preference that is asked again may say something else."""
        path = self.training(t) / PAIRS / "pairs.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return [json.loads(line) for line in lines]

    def begin(self, t: int, rows: Sequence[Row], history: Sequence[Metrics]) -> None:
        """Keep the pairs of a round; before the first, the model as it was at the start."""
        if self.accelerator.is_main_process:
            if t == 1:
                options = {**self.options, "train": dataclasses.asdict(self.config)}
                write_run_files(self.accelerator, self.config, options)
                self._save(0, history)
            text = "".join(json.dumps(row, default=dict) + "\n" for row in rows)
            write_folder(
                self.training(t) / PAIRS, lambda place: (place / "pairs.jsonl").write_text(text, "utf-8")
            )
        self.accelerator.wait_for_everyone()

    def finish(self, t: int, history: Sequence[Metrics]) -> None:
        """Keep the weights of a round; the checkpoints of its training are not needed any more."""
        if self.accelerator.is_main_process:
            self._save(t, history)
            shutil.rmtree(self.training(t) / CHECKPOINTS, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def load(self, t: int) -> None:
        """Give the model the weights of a round.

        Raises:
            ValueError: they are damaged, or another model's.
        """
        tensors = checkpoints.load(self.output / ROUNDS / f"{PREFIX}{t:08d}").tensors["model"]
        shapes = [{name: p.shape for name, p in each.items()} for each in (tensors, self.trained)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{self.output}: holds rounds of another model; choose another output folder")
        with torch.no_grad():
            for name, tensor in tensors.items():
                self.trained[name].copy_(tensor)

    def _save(self, t: int, history: Sequence[Metrics]) -> None:
        checkpoint = Checkpoint(t, {"model": self.trained}, {"rounds": list(history)})
        checkpoints.save(self.output / ROUNDS, checkpoint, keep=t + 1)
        write_text(self.output / METRICS, "".join(json.dumps(each) + "\n" for each in history))
