"""The one training loop of the language-model layer, over accelerate, in sight.

A method is an *objective*: a module that holds the model to be trained and whose forward pass turns a batch
into a mapping of `(n,)` tensors, one value for each example: `"loss"`, which is minimised in the mean, and
whatever else is to be logged. The loop knows nothing of preferences.

The result does not depend on how the work is divided: a step is taken on `batch_size` examples in all,
however many processes share them and however small the pieces in which they fit into memory.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import send_to_device
from torch import nn

from nashpref.interrupts import delayed_interrupt
from nashpref.llm.postmortem import save_batch
from nashpref.llm.runs import METRICS, Batches, Log, NonFiniteLoss, Run, check_output
from nashpref.llm.sharding import unshard
from nashpref.progress import progress_bar

E = TypeVar("E")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train; the same for every method.

    Attributes:
        output: folder for checkpoints, metrics, the resolved configuration and the trained model.
        epochs: passes over the data. max_steps: optimizer steps instead, where given.
        batch_size: examples of one optimizer step, over all processes.
        micro_batch_size: examples that one process puts through the model at once; None: its whole share.
        learning_rate, weight_decay, warmup_steps, schedule: of AdamW; the schedule decays to zero.
        max_grad_norm: gradients are clipped to this norm; 0: not at all.
        precision: "no" (float32), "bf16" or "fp16" autocast.
        shard: keep weights and the optimizer's state in pieces, one for each process: see
            `nashpref.llm.sharding`.
        gradient_checkpointing: recompute activations in the backward pass.
        seed: of the order of the data, dropout and everything else that is drawn.
        log_every, eval_every, save_every: optimizer steps between them; 0: only at the end (eval, save).
        keep_checkpoints: how many are kept.
        trackers: "tensorboard", "wandb", … beside the JSONL file that is always written.
    """

    output: str
    epochs: int = 1
    max_steps: int | None = None
    batch_size: int = 16
    micro_batch_size: int | None = None
    learning_rate: float = 1e-6
    weight_decay: float = 0.0
    warmup_steps: int = 0
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    max_grad_norm: float = 1.0
    precision: Literal["no", "bf16", "fp16"] = "no"
    shard: bool = False
    gradient_checkpointing: bool = False
    seed: int = 0
    log_every: int = 10
    eval_every: int = 0
    save_every: int = 0
    keep_checkpoints: int = 2
    trackers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        counts = ("epochs", "max_steps", "batch_size", "micro_batch_size", "log_every", "keep_checkpoints")
        for name in counts:
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} = {value}: it must be at least 1")
        for name in ("warmup_steps", "eval_every", "save_every", "weight_decay", "max_grad_norm"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} = {getattr(self, name)}: it must be finite and not negative")
        if not 0.0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate = {self.learning_rate}: it must be finite and positive")
        if self.shard and self.precision == "fp16":
            raise ValueError("shard: gradients in pieces cannot be scaled as fp16 needs; take bf16")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during training; the checkpoint of the last whole step has been saved."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(f"interrupted; the same command goes on from {checkpoint}")
        self.checkpoint = checkpoint


def fit(
    objective: nn.Module,
    examples: Sequence[E],
    batches: Batches,
    collate: Callable[[Sequence[E]], Any],
    config: TrainConfig,
    *,
    accelerator: Accelerator | None = None,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    options: Mapping[str, Any] | None = None,
    steps: int | None = None,
    progress: bool = False,
) -> list[dict[str, float]]:
    """Minimise the mean of `objective(batch)["loss"]` by AdamW; returns the logged metrics, one mapping each.

    A folder with checkpoints of the same run is continued from the newest whole one, on a CPU bit for bit as
    if it had never stopped. Damaged ones are named and passed over.

    Args:
        objective: batch → `{"loss": (n,), …}`; its parameters that require a gradient are trained.
        examples: what `batches` indexes.
        batches: `batch_size` indices for each step.
        collate: examples → a batch, moved to the device as it is.
        config: see `TrainConfig`.
        accelerator: one is made from `config` when None.
        evaluate: called every `eval_every` steps and at the end, without gradients; logged as `eval/…`. Every
            process calls it.
        options: what else defines the run, JSON: written beside `config`, and the same when it is continued.
        steps: optimizer steps, where neither `epochs` nor `max_steps` is to decide.
        progress: show a bar, on a terminal, once two seconds have passed.

    Raises:
        ValueError: no examples, or the folder belongs to a run with other options.
        NonFiniteLoss: with the step, and where the batch is kept: `nonfinite-STEP.json` in the output folder
            (`nonfinite-STEP-RANK.json` of each of several processes), see `save_batch`.
        OSError: a checkpoint could not be written; the ones before it are whole.
        Interrupted: on Ctrl-C, after the state was saved.
    """
    if not len(examples):
        raise ValueError("there are no examples to train on")
    check_output(config, options)
    accelerator = accelerator or make_accelerator(config)
    run = Run(accelerator, objective, batches, config, options, steps)
    first = run.resume()
    log = Log(accelerator, Path(config.output) / METRICS, first)
    remaining = _endless(batches)
    with (
        delayed_interrupt() as stop,
        progress_bar(progress and accelerator.is_main_process, run.steps - first, "step") as bar,
    ):
        while run.step < run.steps:
            began = time.perf_counter()
            pieces = _pieces(next(remaining), config.micro_batch_size, accelerator)
            sums: dict[str, torch.Tensor] = {}
            for k, (piece, weight) in enumerate(pieces):
                batch = send_to_device(collate([examples[i] for i in piece]), accelerator.device)
                with run.synchronised(last=k == len(pieces) - 1):
                    values = run.prepared(batch)
                    accelerator.backward(values["loss"].sum() * weight)
                for name, value in values.items():
                    sums[name] = value.detach().float().sum() * weight + sums.get(name, 0.0)
            metrics = _mean(sums, accelerator)
            try:
                if not math.isfinite(metrics["loss"]):
                    share = [i for piece, _ in pieces for i in piece]
                    raise NonFiniteLoss(
                        f"loss = {metrics['loss']} at step {run.step + 1}, examples {_some(share)}"
                    )
                metrics |= run.update()
            except NonFiniteLoss as error:
                share = [i for piece, _ in pieces for i in piece]
                batch = _kept(run, error.what, share, collate([examples[i] for i in share]))
                raise NonFiniteLoss(error.what, batch) from None
            metrics |= run.advance(metrics)
            if run.due(config.log_every):
                log.write(run.step, metrics | {"seconds": time.perf_counter() - began})
            if evaluate is not None and run.due(config.eval_every):
                log.write(run.step, run.quietly(evaluate))
            interrupted = _any(stop.is_set(), accelerator)
            if interrupted or run.due(config.save_every):
                checkpoint = run.save()
                if interrupted and run.step < run.steps:
                    raise Interrupted(checkpoint)
            bar(run.step - first)
    log.close()
    unshard(objective)
    return log.records


def make_accelerator(config: TrainConfig) -> Accelerator:
    """The accelerator that `config` asks for.

    Raises:
        ValueError: a tracker that is not installed; a launch that leaves the weights to DeepSpeed or to
            accelerate's own FSDP, under which named policies could not be taken and put back.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of trackers that it leaves out: an error here, as below
        accelerator = Accelerator(
            mixed_precision=config.precision,
            log_with=list(config.trackers) or None,
            project_dir=config.output,
            cpu=not torch.cuda.is_available(),
        )
    kind = accelerator.distributed_type
    if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(
            f"accelerate was launched for {kind.name}, which keeps weights of its own: launch with "
            "experiments/configs/gpu_processes.yaml and set train.shard=true"
        )
    there = {str(getattr(tracker, "value", tracker)) for tracker in accelerator.log_with}
    if missing := [name for name in config.trackers if name not in there]:
        raise ValueError(f"trackers: {missing[0]!r} is not installed: install it, or leave it out")
    return accelerator


def _endless(batches: Batches) -> Iterator[list[int]]:
    while True:
        yield from batches


def _pieces(indices: list[int], size: int | None, accelerator: Accelerator) -> list[tuple[list[int], float]]:
    """This process's part of a step, in pieces, each with the weight of one example's loss in its gradient.

    Processes average their gradients, so that a mean over all examples is `world/n` times a sum over the
    share. All have equally many pieces; one that has nothing left goes through the motions with weight 0.
    """
    world = accelerator.num_processes
    share, largest = indices[accelerator.process_index :: world], math.ceil(len(indices) / world)
    size = size or largest
    pieces = [share[start : start + size] for start in range(0, largest, size)]
    return [(piece, world / len(indices)) if piece else (indices[:1], 0.0) for piece in pieces]


def _mean(sums: Mapping[str, torch.Tensor], accelerator: Accelerator) -> dict[str, float]:
    """Means over the examples of the step, of all processes."""
    names = sorted(sums)
    means = accelerator.reduce(torch.stack([sums[name] for name in names]), reduction="mean")
    return dict(zip(names, means.tolist(), strict=True))


def _kept(run: Run, what: str, share: list[int], batch: Any) -> Path | None:
    """Where this process has written its part of the batch; None where it could not be written."""
    name = f"nonfinite-{run.step + 1:08d}"
    if run.accelerator.num_processes > 1:
        name += f"-{run.accelerator.process_index}"
    try:
        return save_batch(Path(run.config.output), name, what, share, batch)
    except OSError as error:
        print(f"nashpref: the batch could not be kept: {error}", file=sys.stderr)
        return None


def _any(flag: bool, accelerator: Accelerator) -> bool:
    if accelerator.num_processes == 1:
        return flag
    flags = accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), reduction="sum")
    return bool(flags.item() > 0.0)


def _some(indices: list[int]) -> str:
    return f"{', '.join(map(str, indices[:8]))}{', …' if len(indices) > 8 else ''}"
