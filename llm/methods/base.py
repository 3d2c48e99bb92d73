"""What a method is: a configuration that trains a model on records, and says how it is saved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn

from nashpref.llm.batching import LengthBuckets
from nashpref.llm.data import Demonstration, Outcome, Pair, Ranking, Record, Steps, Table
from nashpref.llm.inputs import DataConfig, ModelConfig
from nashpref.llm.training import TrainConfig, fit

Save = Callable[[Path], object]


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """What all methods share.

    Attributes:
        method: its name in `nashpref.llm.methods.METHODS`.
        data, model, train: see there.
    """

    method: str
    data: DataConfig
    model: ModelConfig
    train: TrainConfig

    @abstractmethod
    def run(
        self,
        records: Sequence[Record],
        held_out: Sequence[Record],
        accelerator: Accelerator,
        *,
        options: Mapping[str, Any],
        progress: bool = False,
    ) -> Save:
        """Train, with checkpoints in `train.output`; returns what saves the model to a folder.

        Args:
            records, held_out: what to train on, and what to evaluate on.
            accelerator: made from `train`.
            options: what else defines the run, as of `fit`.
            progress: show a bar, on a terminal, once two seconds have passed.

        Raises:
            ValueError: records that the method cannot use; nothing has been written.
            NonFiniteLoss, Interrupted, OSError: see `fit`.
        """


class Task(NamedTuple):
    """What `fit` needs, and what saves the model when it is done."""

    objective: nn.Module
    examples: Sequence[Any]
    collate: Callable[[Sequence[Any]], Any]
    held_out: Sequence[Any]
    save: Save


class OneRun(Method):
    """A method that minimises one objective on examples that are there from the start."""

    @abstractmethod
    def task(self, records: Sequence[Record], held_out: Sequence[Record], accelerator: Accelerator) -> Task:
        """Examples and objective; the model is on the accelerator's device."""

    def run(
        self,
        records: Sequence[Record],
        held_out: Sequence[Record],
        accelerator: Accelerator,
        *,
        options: Mapping[str, Any],
        progress: bool = False,
    ) -> Save:
        """`fit`, evaluated on the held-out examples."""
        task, size, seed = self.task(records, held_out, accelerator), self.train.batch_size, self.train.seed
        fit(
            task.objective,
            task.examples,
            LengthBuckets([len(example) for example in task.examples], size, seed=seed),
            task.collate,
            self.train,
            accelerator=accelerator,
            evaluate=(lambda: evaluation(task, accelerator, size)) if task.held_out else None,
            options=options,
            progress=progress,
        )
        return task.save


def evaluation(task: Task, accelerator: Accelerator, batch_size: int) -> dict[str, float]:
    """Means of what the objective returns, over the held-out examples."""
    order = sorted(range(len(task.held_out)), key=lambda i: len(task.held_out[i]))
    sums: dict[str, Any] = {}
    for start in range(0, len(order), batch_size):
        examples = [task.held_out[i] for i in order[start : start + batch_size]]
        with torch.no_grad(), accelerator.autocast():
            values = task.objective(send_to_device(task.collate(examples), accelerator.device))
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value.double().sum().item()
    return {name: total / len(order) for name, total in sums.items()}


def texts_of(records: Iterable[Record]) -> list[str]:
    """All that is said in them, for a tokenizer to learn from."""
    texts = []
    for record in records:
        parts: list[Any] = [record.prompt]
        if isinstance(record, Pair):
            parts += [record.chosen, record.rejected]
        elif isinstance(record, Ranking | Table):
            parts += record.completions
        elif isinstance(record, Steps):
            parts += record.steps
        elif isinstance(record, Demonstration | Outcome):
            parts.append(record.completion)
        for part in parts:
            texts += [part] if isinstance(part, str) else [message["content"] for message in part]
    return texts
