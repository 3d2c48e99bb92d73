"""What is left of a batch on which the loss was not finite: files that can be read anywhere."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def save_batch(folder: Path, name: str, what: str, examples: Sequence[int], batch: Any) -> Path:
    """Write a batch as `name.json`, its tensors beside it as `name.safetensors`; returns the former.

    Args:
        folder, name: where to.
        what: went wrong.
        examples: their indices.
        batch: dataclasses, named tuples, mappings, sequences, texts, numbers and tensors, one in the other.
            A tensor is named by the way to it, such as `0.chosen.input_ids`, and stands so in the JSON; of
            anything else there is its `repr`.

    Raises:
        OSError: it could not be written.
    """
    tensors: dict[str, torch.Tensor] = {}

    def describe(value: Any, way: str) -> Any:
        if isinstance(value, torch.Tensor):
            tensors[way] = value.detach().cpu().clone().contiguous()
            return {"tensor": way, "shape": list(value.shape)}
        if value is None or isinstance(value, str | int | float):
            return value
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        elif hasattr(value, "_asdict"):
            value = value._asdict()
        if isinstance(value, Mapping):
            return {str(key): describe(each, f"{way}.{key}") for key, each in value.items()}
        if isinstance(value, Sequence):
            return [describe(each, f"{way}.{i}") for i, each in enumerate(value)]
        return repr(value)

    content = {"what": what, "examples": list(examples), "batch": describe(batch, "batch")}
    if tensors:
        save_file(tensors, folder / f"{name}.safetensors")
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path
