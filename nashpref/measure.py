"""The columns of a trace as they grow, and the decision whether a run has ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from nashpref.interpreter import Rows
from nashpref.policies import FloatArray, IntArray
from nashpref.trace import Status


@dataclass(frozen=True)
class Record:
    """What a callback sees at a recorded step: the step, the gap (`(B,)` for a batch) and the policy."""

    step: int
    gap: FloatArray
    policy: FloatArray


@dataclass
class Measurements:
    """The columns of a trace as they grow, one array per chunk."""

    columns: dict[str, list[FloatArray]] = field(default_factory=dict)
    steps: list[IntArray] = field(default_factory=list)

    def take(self, rows: Rows, tol: float, callback: Callable[[Record], object] | None) -> Status | None:
        """Keep a chunk up to the step at which the run ends, if it does; say why."""
        columns = rows.columns()
        worst, average = _worst(columns["gap"]), _worst(columns["average_gap"])
        ends = ~np.isfinite(worst) | ~np.isfinite(average) | (worst <= tol)
        status, keep = None, rows.filled
        if ends.any():
            keep = int(ends.argmax())
            status = Status.CONVERGED if worst[keep] <= tol else Status.NON_FINITE
            keep += status is Status.CONVERGED
        if keep:
            self.append(rows.steps[:keep].copy(), columns)  # the rows are used again
        if callback is not None and keep:
            last = keep - 1
            seen = Record(int(rows.steps[last]), columns["gap"][last], rows.policy(last))
            if callback(seen) and status is None:
                status = Status.STOPPED
        return status

    def stalled(self) -> bool:
        """Whether the second half of the recorded steps brought no lower gap than the first."""
        worst = _worst(np.concatenate(self.columns["gap"]))
        half = len(worst) // 2
        return half > 0 and bool(worst[half:].min() >= worst[:half].min())

    @property
    def last(self) -> int:
        """The last measured step."""
        return int(self.steps[-1][-1])

    def append(self, steps: IntArray, columns: Mapping[str, FloatArray]) -> None:
        """Add the measurements of `steps`."""
        self.steps.append(steps)
        for name, values in columns.items():
            self.columns.setdefault(name, []).append(values[: len(steps)])

    def column(self, name: str) -> FloatArray | None:
        """A whole column; None if it is not measured."""
        return np.concatenate(self.columns[name]) if name in self.columns else None


def _worst(gap: FloatArray) -> FloatArray:
    """The largest gap of each recorded step."""
    return gap if gap.ndim == 1 else np.asarray(gap.max(axis=1))
