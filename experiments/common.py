"""What the experiments share: their shape, tidy tables, and results on disk."""

from __future__ import annotations

import csv
import dataclasses
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import nashpref as npf
from nashpref.policies import FloatArray

Table = Mapping[str, NDArray[Any]]
"""Columns of equal length by name."""


@dataclass(frozen=True)
class Experiment:
    """One figure's worth of numbers.

    Attributes:
        title: one line for `nashpref reproduce --list`.
        sizes: the settings behind `--quick`, no flag ("default") and `--full`: frozen dataclasses.
        run: settings → tables, by the stem of the CSV that each becomes. A pure function.
        needs: packages that are imported when it runs, beside those that the exact core needs.
    """

    title: str
    sizes: Mapping[str, Any]
    run: Callable[[Any], Mapping[str, Table]]
    needs: tuple[str, ...] = ()


def table(trace: npf.Trace, *columns: str, **labels: str | float) -> Table:
    """The recorded `columns` of a trace (`step` first, `game` for a batch), with the `labels` before them."""
    recorded = trace.columns()
    names = [name for name in ("game", "step") if name in recorded]
    kept = {name: recorded[name] for name in (*names, *columns)}
    return {name: np.full(len(kept["step"]), value) for name, value in labels.items()} | kept


def counting_iterates(columns: Table) -> Table:
    """With `T` in place of `step`: after t updates an average is over T = t + 1 iterates, the start first."""
    counted = dict(columns)
    counted["T"] = counted.pop("step") + 1
    return counted


def stack(tables: Sequence[Table]) -> Table:
    """Tables with the same columns, one below the other."""
    return {name: np.concatenate([part[name] for part in tables]) for name in tables[0]}


def given_valid(policy: FloatArray) -> FloatArray:
    """`(B, n)` from `(B, n + 1)`, whose last column is what is no response: given that there is one."""
    return np.asarray(policy[:, :-1] / policy[:, :-1].sum(axis=1, keepdims=True))


def save(folder: Path, settings: Any, tables: Mapping[str, Table]) -> None:
    """Write `config.json`, `env.json` and a CSV for each table, numbers in full precision.

    The bytes depend on the settings, the installed versions and the arithmetic of the machine alone. A
    file is replaced only once the new one is whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, columns in tables.items():
        with _replacing(folder / f"{name}.csv") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(zip(*(values.tolist() for values in columns.values()), strict=True))
    for name, content in (("config", dataclasses.asdict(settings)), ("env", environment())):
        with _replacing(folder / f"{name}.json") as file:
            file.write(json.dumps(content, indent=2) + "\n")


def environment() -> dict[str, str | int | None]:
    """What the numbers may depend on: versions (null: not installed), processor type and number of cores."""
    packages = ("numpy", "scipy", "numba", "matplotlib", "torch", "transformers")
    versions = {name: _version(name) for name in packages}
    return {
        "nashpref": npf.__version__,
        "python": platform.python_version(),
        **versions,
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


class _replacing:
    """A text file that takes the place of `path` when the block ends without an error."""

    def __init__(self, path: Path) -> None:
        self.path, self.temporary = path, path.with_name(f".{path.name}.{os.getpid()}")

    def __enter__(self) -> Any:
        self.file = open(self.temporary, "w", newline="", encoding="utf-8")
        return self.file

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.file.close()
        if kind is None:
            self.temporary.replace(self.path)
        else:
            self.temporary.unlink()
