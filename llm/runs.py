"""A training run on disk and in memory: what changes from step to step, how it is saved, logged and resumed.

An output folder holds `config.json` (all options), `env.json` (versions, device, seed), `metrics.jsonl` and
`checkpoints/`. It belongs to one run: with other options it is refused, and nothing in it is touched.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import platform
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch import nn

from nashpref.llm import checkpoints
from nashpref.llm.checkpoints import Checkpoint
from nashpref.llm.sharding import like, shard, together, whole

if TYPE_CHECKING:
    from nashpref.llm.training import TrainConfig

CHECKPOINTS, METRICS, CONFIG, ENVIRONMENT = "checkpoints", "metrics.jsonl", "config.json", "env.json"

FREE_TO_CHANGE = {
    "output", "log_every", "eval_every", "save_every", "keep_checkpoints", "trackers", "shard"
}  # fmt: skip
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


@runtime_checkable
class Progressing(Protocol):
    """An objective that changes as training goes on, beside its parameters and buffers."""

    def advance(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """After each optimizer step, with what was measured in it; returns what else is to be logged."""
        ...

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tensors, and JSON."""
        ...

    def load_state(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        """Go on from there."""
        ...


class NonFiniteLoss(ArithmeticError):
    """The loss or its gradient became NaN or infinite; the step was not taken, and checkpoints are sound."""

    def __init__(self, what: str, batch: Path | None = None) -> None:
        where = f" in {batch}" if batch else ""
        super().__init__(f"{what}: not taken; lower learning_rate, or look at the examples{where}")
        self.what, self.batch = what, batch


def check_output(config: TrainConfig, options: Mapping[str, Any] | None = None) -> None:
    """Raise `ValueError` if the output folder belongs to a run with other options; nothing is written."""
    output = Path(config.output)
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output}: is a file; choose another output folder")
    if (output / CONFIG).is_file():
        there = json.loads((output / CONFIG).read_text(encoding="utf-8"))
        _same_run(output, there, _options(config, options))


class Run:
    """Everything that changes during a run, and how it is saved and restored."""

    def __init__(
        self,
        accelerator: Accelerator,
        objective: nn.Module,
        batches: Batches,
        config: TrainConfig,
        options: Mapping[str, Any] | None,
        steps: int | None = None,
    ) -> None:
        from transformers import PreTrainedModel, get_scheduler

        set_seed(config.seed, device_specific=True)  # processes with the same dropout would be one
        self.accelerator, self.objective, self.batches, self.config = accelerator, objective, batches, config
        self.options = _options(config, options)
        self.steps, self.step = steps or config.max_steps or config.epochs * len(batches), 0
        self.folder = Path(config.output) / CHECKPOINTS
        objective.train()
        if config.gradient_checkpointing:
            for module in objective.modules():
                if isinstance(module, PreTrainedModel) and module.supports_gradient_checkpointing:
                    # Its name until transformers 5 is deprecated there.
                    new = getattr(module, "activation_checkpointing_enable", None)
                    (new or module.gradient_checkpointing_enable)({"use_reentrant": False})
        self.sharded = config.shard and accelerator.num_processes > 1
        if self.sharded:
            shard(objective, accelerator.device, accelerator.num_processes)
        self.trained = {name: p for name, p in objective.named_parameters() if p.requires_grad}
        if not self.trained:
            raise ValueError("no parameter of the objective requires a gradient: there is nothing to train")
        matrices = [p for p in self.trained.values() if p.ndim >= 2]
        vectors = [p for p in self.trained.values() if p.ndim < 2]  # biases and norms are not decayed
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate)
        self.scheduler = get_scheduler(config.schedule, self.optimizer, config.warmup_steps, self.steps)
        # A sharded objective exchanges gradients by itself: it is not to be wrapped for that.
        self.prepared: Any = accelerator.prepare_model(objective, evaluation_mode=self.sharded)
        self.prepared_optimizer = accelerator.prepare(self.optimizer)

    def synchronised(self, *, last: bool) -> Any:
        """Gradients are exchanged between processes after the last piece of a step only."""
        if self.sharded:
            self.prepared.set_requires_gradient_sync(last)
            return contextlib.nullcontext()
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.prepared)

    def update(self) -> dict[str, float]:
        """Take the step; the gradient's norm and the learning rate."""
        limit = self.config.max_grad_norm or math.inf
        grad_norm = float(whole(self.accelerator.clip_grad_norm_(self.trained.values(), limit)))
        if not math.isfinite(grad_norm) and self.accelerator.scaler is None:  # which skips such steps itself
            raise NonFiniteLoss(f"the gradient's norm is {grad_norm} at step {self.step + 1}")
        learning_rate = self.optimizer.param_groups[0]["lr"]
        self.prepared_optimizer.step()
        self.scheduler.step()
        self.prepared_optimizer.zero_grad()
        self.step += 1
        return {"grad_norm": grad_norm, "learning_rate": learning_rate}

    def advance(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Tell an objective that changes as training goes on that a step was taken."""
        return self.objective.advance(metrics) if isinstance(self.objective, Progressing) else {}

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps, and at the end, happens now."""
        return self.step == self.steps or (every > 0 and self.step % every == 0)

    def quietly(self, evaluate: Callable[[], Mapping[str, float]]) -> dict[str, float]:
        """`eval/…`, without gradients or dropout, and without moving what training draws from."""
        generators = _generators()
        self.objective.eval()
        try:
            with torch.no_grad(), together(self.objective):
                return {f"eval/{name}": float(value) for name, value in evaluate().items()}
        finally:
            self.objective.train()
            _set_generators(*generators)

    def save(self) -> Path:
        """Write a checkpoint (the main process does) and wait until it is there."""
        generators = gather_object([_generators()])
        path, failure = self.folder / f"{checkpoints.PREFIX}{self.step:08d}", []
        trained = {name: whole(parameter.detach()) for name, parameter in self.trained.items()}
        tensors: dict[str, checkpoints.Tensors] = {
            "model": {**trained, **self._buffers()},
            "optimizer": self._optimizer_tensors(),
        }
        if self.accelerator.is_main_process:
            for rank, (states, _) in enumerate(generators):
                tensors[f"generators-{rank}"] = states
            scaler = self.accelerator.scaler
            progress: dict[str, Any] = {}
            if isinstance(self.objective, Progressing):
                tensors["objective"], progress = self.objective.state()
            state = {
                "objective": progress,
                "options": self.options,
                "steps": self.steps,
                "scheduler": {k: v for k, v in self.scheduler.state_dict().items() if k != "lr_lambdas"},
                "batches": self.batches.state_dict(),
                "generators": [python for _, python in generators],
                "scaler": scaler and scaler.state_dict(),
            }
            checkpoint = Checkpoint(self.step, tensors, state)
            try:
                checkpoints.save(self.folder, checkpoint, keep=self.config.keep_checkpoints)
            except OSError as error:
                failure = [str(error)]
        if failures := gather_object(failure):  # all processes stop together
            raise OSError(failures[0])
        return path

    def resume(self) -> int:
        """Go on from the newest whole checkpoint in the output folder, if there is one; its step."""
        if self.accelerator.is_main_process:
            checkpoints.discard_partial(self.folder)
        self.accelerator.wait_for_everyone()
        found, complaints = checkpoints.newest(self.folder)
        for complaint in complaints if self.accelerator.is_main_process else []:
            instead = f"going on from step {found.step}" if found else "starting from the beginning"
            print(f"nashpref: {complaint}; {instead}", file=sys.stderr)
        if found is None:
            if self.accelerator.is_main_process:
                write_run_files(self.accelerator, self.config, self.options)
            return 0
        _same_run(Path(self.config.output), found.state["options"], self.options)
        _same_run(Path(self.config.output), {"steps": found.state["steps"]}, {"steps": self.steps})
        self._load_tensors(found.tensors["model"])
        self.scheduler.load_state_dict(self.scheduler.state_dict() | found.state["scheduler"])
        self._load_optimizer(found.tensors["optimizer"])
        self.batches.load_state_dict(found.state["batches"])
        if isinstance(self.objective, Progressing):
            self.objective.load_state(found.tensors["objective"], found.state["objective"])
        rank, pythons = self.accelerator.process_index, found.state["generators"]
        if rank < len(pythons):  # more processes than before: the new ones draw from the seed
            _set_generators(found.tensors[f"generators-{rank}"], pythons[rank])
        if found.state["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(found.state["scaler"])
        self.step = found.step
        return self.step

    def _buffers(self) -> dict[str, torch.Tensor]:
        return {f"buffer:{name}": buffer for name, buffer in self.objective.named_buffers()}

    def _load_tensors(self, tensors: checkpoints.Tensors) -> None:
        ours = {**self.trained, **self._buffers()}
        shapes = [{name: tuple(t.shape) for name, t in each.items()} for each in (tensors, ours)]
        if different := sorted(set(shapes[0].items()) ^ set(shapes[1].items())):
            name, shape = different[0]
            raise ValueError(
                f"{self.config.output}: holds checkpoints of another model ({name} "
                f"{list(shape)} is in one only); choose another output folder"
            )
        with torch.no_grad():
            for name, tensor in tensors.items():
                ours[name].copy_(like(ours[name], tensor))

    def _parameters(self) -> list[torch.Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _optimizer_tensors(self) -> dict[str, torch.Tensor]:
        return {
            f"{i}.{name}": whole(value)
            for i, parameter in enumerate(self._parameters())
            for name, value in self.optimizer.state[parameter].items()
        }

    def _load_optimizer(self, tensors: checkpoints.Tensors) -> None:
        parameters = self._parameters()
        for key, value in tensors.items():
            i, _, name = key.partition(".")
            parameter = parameters[int(i)]
            self.optimizer.state[parameter][name] = value if name == "step" else like(parameter, value)
        # A scheduler that is loaded leaves the rates of its optimizer as they were.
        for group, lr in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = lr


class Log:
    """`metrics.jsonl` and the trackers; only the main process writes."""

    def __init__(self, accelerator: Accelerator, path: Path, step: int) -> None:
        self.accelerator, self.path = accelerator, path
        # What a killed run logged after its last checkpoint, perhaps half a line, happens again.
        self.records = [record for record in _read_lines(path) if record["step"] <= step]
        if accelerator.is_main_process:
            write_text(path, "".join(json.dumps(record) + "\n" for record in self.records))
        if accelerator.log_with:
            accelerator.init_trackers("nashpref")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line."""
        record = {"step": step, **metrics}
        self.records.append(record)
        if self.accelerator.is_main_process:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        self.accelerator.log(dict(metrics), step=step)

    def close(self) -> None:
        """The run is over."""
        if self.accelerator.log_with:
            self.accelerator.end_training()


def _read_lines(path: Path) -> list[dict[str, Any]]:
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


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


def _options(config: TrainConfig, others: Mapping[str, Any] | None) -> dict[str, Any]:
    """All options of a run, as they are after a passage through JSON, which has no tuples."""
    options: dict[str, Any] = json.loads(json.dumps({**(others or {}), "train": dataclasses.asdict(config)}))
    return options


def _same_run(output: Path, there: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless a run with options `now` may continue one with options `there`."""
    old, new = _flat(there), _flat(now)
    names = [name for name in {**old, **new} if name.removeprefix("train.") not in FREE_TO_CHANGE]
    if different := [name for name in names if old.get(name) != new.get(name)]:
        what = ", ".join(f"{name}: {old.get(name)!r} there, {new.get(name)!r} now" for name in different)
        raise ValueError(
            f"{output}: holds a run with other options ({what}); choose another output folder, or "
            "restore the options to go on with it"
        )


def _flat(options: Any, prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` → `{"a.b": 1}`."""
    if not isinstance(options, Mapping):
        return {prefix.removesuffix("."): options}
    return {k: v for name, value in options.items() for k, v in _flat(value, f"{prefix}{name}.").items()}


def write_run_files(accelerator: Accelerator, config: TrainConfig, options: Mapping[str, Any]) -> None:
    """`config.json` and `env.json` next to the results."""
    packages = ("nashpref", "torch", "transformers", "accelerate", "safetensors", "datasets", "peft")
    environment = {
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
        "device": str(accelerator.device),
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "seed": config.seed,
    }
    for name, content in ((ENVIRONMENT, environment), (CONFIG, options)):
        write_text(Path(config.output) / name, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file in one piece: whoever reads it, or finds it after a crash, sees the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
