"""The one training loop of the language-model layer, over accelerate, in sight.

A method is an *objective*: a module that holds the model to be trained and whose forward pass turns a batch
into a mapping of `(n,)` tensors, one value for each example: `"loss"`, which is minimised in the mean, and
whatever else is to be logged. The loop knows nothing of preferences.

The result does not depend on how the work is divided: a step is taken on `batch_size` examples in all,
however many processes share them and however small the pieces in which they fit into memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import platform
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device, set_seed
from torch import nn

from nashpref.interrupts import delayed_interrupt
from nashpref.llm import checkpoints
from nashpref.llm.checkpoints import Checkpoint
from nashpref.progress import progress_bar

E = TypeVar("E")

CHECKPOINTS, METRICS = "checkpoints", "metrics.jsonl"


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
    gradient_checkpointing: bool = False
    seed: int = 0
    log_every: int = 10
    eval_every: int = 0
    save_every: int = 0
    keep_checkpoints: int = 2
    trackers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "keep_checkpoints", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: it must be at least 1")
        for name in ("max_steps", "micro_batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} = {value}: it must be at least 1")
        for name in ("warmup_steps", "eval_every", "save_every", "weight_decay", "max_grad_norm"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)}: it must not be negative")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0.0):
            raise ValueError(f"learning_rate = {self.learning_rate}: it must be positive")


FREE_TO_CHANGE = {"output", "log_every", "eval_every", "save_every", "keep_checkpoints", "trackers"}
"""Options that a resumed run may have different from the one it continues."""


class Batches(Protocol):
    """Which examples make up the steps, in an order that can be taken up again anywhere."""

    def __iter__(self) -> Iterator[list[int]]:
        """The remaining steps of this epoch, as lists of indices."""
        ...

    def __len__(self) -> int:
        """Steps of one epoch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where in which epoch: JSON."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        ...


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during training; the checkpoint of the last whole step has been saved."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(f"interrupted; the same command goes on from {checkpoint}")
        self.checkpoint = checkpoint


class NonFiniteLoss(ArithmeticError):
    """The loss became NaN or infinite; the step was not taken, and earlier checkpoints are as they were."""


def fit(
    objective: nn.Module,
    examples: Sequence[E],
    batches: Batches,
    collate: Callable[[Sequence[E]], Any],
    config: TrainConfig,
    *,
    accelerator: Accelerator | None = None,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    progress: bool = False,
) -> list[dict[str, float]]:
    """Minimise the mean of `objective(batch)["loss"]`; returns the logged metrics, one mapping each.

    A folder with checkpoints of the same run is continued from the newest whole one, on a CPU bit for bit as
    if it had never stopped. Damaged ones are named and passed over.

    Args:
        objective: batch → `{"loss": (n,), …}`; its parameters that require a gradient are trained.
        examples: what `batches` indexes.
        batches: `batch_size` indices for each step.
        collate: examples → a batch, moved to the device as it is.
        config: see `TrainConfig`.
        accelerator: one is made from `config` when None.
        evaluate: called every `eval_every` steps and at the end, without gradients; logged as `eval/…`.
        progress: show a bar, on a terminal, once two seconds have passed.

    Raises:
        ValueError: no examples, or the folder belongs to a run with other options.
        NonFiniteLoss: with the step.
        OSError: a checkpoint could not be written; the ones before it are whole.
        Interrupted: on Ctrl-C, after the state was saved.
    """
    if not len(examples):
        raise ValueError("there are no examples to train on")
    accelerator = accelerator or make_accelerator(config)
    output = Path(config.output)
    run = _Run(
        accelerator, objective, batches, config, steps=config.max_steps or config.epochs * len(batches)
    )
    log = _Log(accelerator, output / METRICS, run.resume())
    first, device = run.step, accelerator.device
    with (
        delayed_interrupt() as stop,
        progress_bar(progress and accelerator.is_main_process, run.steps, "step") as bar,
    ):
        indices = _endless(batches)
        while run.step < run.steps:
            began = time.perf_counter()
            share, weight = _share(next(indices), accelerator)
            pieces = _pieces(share, config.micro_batch_size)
            sums: dict[str, torch.Tensor] = {}
            for k, piece in enumerate(pieces):
                batch = send_to_device(collate([examples[i] for i in piece]), device)
                with run.synchronised(last=k == len(pieces) - 1):
                    values = run.prepared(batch)
                    accelerator.backward(values["loss"].sum() * weight)
                for name, value in values.items():
                    sums[name] = sums.get(name, 0.0) + value.detach().float().sum()
            metrics = _mean(sums, weight, accelerator)
            if not math.isfinite(metrics["loss"]):
                raise NonFiniteLoss(
                    f"loss = {metrics['loss']} at step {run.step + 1}: lower learning_rate, or look at the "
                    f"examples {share[:8]}{'…' if len(share) > 8 else ''}"
                )
            metrics |= run.update()
            due = run.due
            if due(config.log_every):
                seconds = time.perf_counter() - began
                log.write(run.step, metrics | {"seconds": seconds})
            if evaluate is not None and due(config.eval_every):
                log.write(
                    run.step, {f"eval/{name}": value for name, value in _quietly(run, evaluate).items()}
                )
            interrupted = _any(stop.is_set(), accelerator)
            if interrupted or due(config.save_every):
                path = run.save()
                if interrupted and run.step < run.steps:
                    raise Interrupted(path)
            bar(run.step - first)
    log.close()
    return log.records


def make_accelerator(config: TrainConfig) -> Accelerator:
    """The accelerator that `config` asks for."""
    return Accelerator(
        mixed_precision=config.precision,
        log_with=list(config.trackers) or None,
        project_dir=config.output,
        cpu=not torch.cuda.is_available(),
    )


class _Run:
    """Everything that changes during a run, and how it is saved and restored."""

    def __init__(
        self,
        accelerator: Accelerator,
        objective: nn.Module,
        batches: Batches,
        config: TrainConfig,
        steps: int,
    ) -> None:
        from transformers import PreTrainedModel, get_scheduler

        set_seed(config.seed)
        self.accelerator, self.batches, self.config, self.steps, self.step = (
            accelerator,
            batches,
            config,
            steps,
            0,
        )
        self.objective = objective
        if config.gradient_checkpointing:
            for module in objective.children():
                if isinstance(module, PreTrainedModel):
                    module.gradient_checkpointing_enable({"use_reentrant": False})
        self.trained = {name: p for name, p in objective.named_parameters() if p.requires_grad}
        if not self.trained:
            raise ValueError("no parameter of the objective requires a gradient: there is nothing to train")
        # Vectors (biases, norms) are not decayed.
        groups = [
            {
                "params": [p for p in self.trained.values() if p.ndim >= 2],
                "weight_decay": config.weight_decay,
            },
            {"params": [p for p in self.trained.values() if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=config.learning_rate
        )
        self.scheduler = get_scheduler(config.schedule, self.optimizer, config.warmup_steps, steps)
        self.prepared, self.prepared_optimizer = accelerator.prepare(objective, self.optimizer)

    def synchronised(self, *, last: bool) -> Any:
        """Gradients are exchanged between processes after the last piece of a step only."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.prepared)

    def update(self) -> dict[str, float]:
        """Take the step; the gradient's norm and the learning rate."""
        norm = math.inf if self.config.max_grad_norm == 0.0 else self.config.max_grad_norm
        grad_norm = self.accelerator.clip_grad_norm_(self.trained.values(), norm)
        learning_rate = self.scheduler.get_last_lr()[0]
        self.prepared_optimizer.step()
        self.scheduler.step()
        self.prepared_optimizer.zero_grad()
        self.step += 1
        return {"grad_norm": float(grad_norm or 0.0), "learning_rate": learning_rate}

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps, and at the end, happens now."""
        return self.step == self.steps or (every > 0 and self.step % every == 0)

    @property
    def _folder(self) -> Path:
        return Path(self.config.output) / CHECKPOINTS

    def _description(self) -> dict[str, Any]:
        """What must be the same in a run that continues this one."""
        options = dataclasses.asdict(self.config)
        return {name: value for name, value in options.items() if name not in FREE_TO_CHANGE} | {
            "steps": self.steps,
            "parameters": sum(p.numel() for p in self.trained.values()),
        }

    def save(self) -> Path:
        """Write a checkpoint (the main process does) and wait until it is there."""
        generators = gather_object([_generators()])
        path = self._folder / f"{checkpoints.PREFIX}{self.step:08d}"
        failure: list[str] = []
        if self.accelerator.is_main_process:
            buffers = {name: b for name, b in self.objective.named_buffers() if b is not None}
            tensors: dict[str, checkpoints.Tensors] = {
                "model": dict(self.trained) | {f"buffer:{name}": b for name, b in buffers.items()},
                "optimizer": self._optimizer_tensors(),
            }
            for rank, (states, _) in enumerate(generators):
                tensors[f"generators-{rank}"] = states
            state = {
                "description": self._description(),
                "scheduler": {k: v for k, v in self.scheduler.state_dict().items() if k != "lr_lambdas"},
                "batches": self.batches.state_dict(),
                "generators": [python for _, python in generators],
                "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            }
            try:
                checkpoints.save(
                    self._folder, Checkpoint(self.step, tensors, state), keep=self.config.keep_checkpoints
                )
            except OSError as error:
                failure = [str(error)]
        if failures := gather_object(failure):  # all processes stop together
            raise OSError(failures[0])
        return path

    def resume(self) -> int:
        """Go on from the newest whole checkpoint in the output folder, if there is one; its step."""
        if self.accelerator.is_main_process:
            checkpoints.discard_partial(self._folder)
        self.accelerator.wait_for_everyone()
        found, complaints = checkpoints.newest(self._folder)
        for complaint in complaints:
            before = f"going on from step {found.step}" if found else "starting from the beginning"
            self.accelerator.print(f"nashpref: {complaint}; {before}")
        if found is None:
            _write_run_files(self.accelerator, self.config)
            return 0
        saved = found.state["description"]
        # JSON has no tuples
        ours = json.loads(json.dumps(self._description()))
        different = [name for name in ours if ours[name] != saved.get(name)]
        if different:
            what = ", ".join(f"{name}: {saved.get(name)!r} there, {ours[name]!r} now" for name in different)
            raise ValueError(
                f"{self.config.output}: holds checkpoints of a run with other options ({what}); choose "
                "another output folder, or restore the options to go on with it"
            )
        with torch.no_grad():
            buffers = dict(self.objective.named_buffers())
            for name, tensor in found.tensors["model"].items():
                is_buffer = name.startswith("buffer:")
                own = buffers[name.removeprefix("buffer:")] if is_buffer else self.trained[name]
                own.copy_(tensor)
        self._load_optimizer(found.tensors["optimizer"])
        self.scheduler.load_state_dict(self.scheduler.state_dict() | found.state["scheduler"])
        self.batches.load_state_dict(found.state["batches"])
        rank = self.accelerator.process_index
        if len(found.state["generators"]) > rank:
            _set_generators(found.tensors[f"generators-{rank}"], found.state["generators"][rank])
        if found.state["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(found.state["scaler"])
        self.step = found.step
        return self.step

    def _parameters(self) -> list[torch.Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _optimizer_tensors(self) -> dict[str, torch.Tensor]:
        return {
            f"{i}.{name}": value
            for i, parameter in enumerate(self._parameters())
            for name, value in self.optimizer.state[parameter].items()
        }

    def _load_optimizer(self, tensors: checkpoints.Tensors) -> None:
        parameters = self._parameters()
        for key, value in tensors.items():
            i, _, name = key.partition(".")
            parameter = parameters[int(i)]
            place = value.device if name == "step" else parameter.device
            self.optimizer.state[parameter][name] = value.to(place)
        for group, lr in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = lr


class _Log:
    """`metrics.jsonl` and the trackers; only the main process writes."""

    def __init__(self, accelerator: Accelerator, path: Path, step: int) -> None:
        self.accelerator, self.path = accelerator, path
        self.records: list[dict[str, float]] = []
        if accelerator.is_main_process:
            if path.exists():  # what a killed run logged after its last checkpoint happens again
                lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
                self.records = [record for record in lines if record["step"] <= step]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(record) + "\n" for record in self.records), encoding="utf-8")
        if accelerator.log_with:
            accelerator.init_trackers("nashpref")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        record = {"step": step, **metrics}
        self.records.append(record)
        if self.accelerator.is_main_process:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        self.accelerator.log(dict(metrics), step=step)

    def close(self) -> None:
        if self.accelerator.log_with:
            self.accelerator.end_training()


def _endless(batches: Batches) -> Iterator[list[int]]:
    while True:
        yield from batches


def _share(indices: list[int], accelerator: Accelerator) -> tuple[list[int], float]:
    """This process's part of a step, and the weight of one example's loss in its gradient.

    Processes average their gradients, so that a mean over all examples is `world/n` times a sum over the
    share. A process without a share goes through the motions with weight 0.
    """
    world = accelerator.num_processes
    share = indices[accelerator.process_index :: world]
    return (share, world / len(indices)) if share else (indices[:1], 0.0)


def _pieces(share: list[int], size: int | None) -> list[list[int]]:
    size = size or len(share)
    return [share[start : start + size] for start in range(0, len(share), size)]


def _mean(sums: Mapping[str, torch.Tensor], weight: float, accelerator: Accelerator) -> dict[str, float]:
    """Means over the examples of the step, of all processes."""
    names = sorted(sums)
    values = torch.stack([sums[name] for name in names]) * weight
    means = accelerator.reduce(values, reduction="mean")
    return dict(zip(names, means.tolist(), strict=True))


def _any(flag: bool, accelerator: Accelerator) -> bool:
    if accelerator.num_processes == 1:
        return flag
    flags = accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), reduction="sum")
    return bool(flags.item() > 0.0)


def _quietly(run: _Run, evaluate: Callable[[], Mapping[str, float]]) -> dict[str, float]:
    """Evaluate without gradients or dropout, and without moving the generators that training draws from."""
    tensors, python = _generators()
    run.objective.eval()
    try:
        with torch.no_grad():
            return {name: float(value) for name, value in evaluate().items()}
    finally:
        run.objective.train()
        _set_generators(tensors, python)


def _generators() -> tuple[dict[str, torch.Tensor], list[Any]]:
    """The state of every global generator: tensors, and JSON for those of Python and numpy."""
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    name, keys, *rest = np.random.get_state()  # noqa: NPY002  (other people's code may draw from it)
    return tensors, [random.getstate(), [name, np.asarray(keys).tolist(), *rest]]


def _set_generators(tensors: checkpoints.Tensors, python: Sequence[Any]) -> None:
    torch.set_rng_state(tensors["cpu"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
    (version, internal, gauss), (name, keys, *rest) = python
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002


def _write_run_files(accelerator: Accelerator, config: TrainConfig) -> None:
    """`config.json` and `env.json` next to the results."""
    if not accelerator.is_main_process:
        return
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    packages = ("nashpref", "torch", "transformers", "accelerate", "safetensors", "datasets", "peft")
    versions = {name: _version(name) for name in packages}
    environment = {
        "python": platform.python_version(),
        **versions,
        "device": str(accelerator.device),
        "processes": accelerator.num_processes,
        "seed": config.seed,
    }
    for name, content in (("train.json", dataclasses.asdict(config)), ("env.json", environment)):
        (output / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
