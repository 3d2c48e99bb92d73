"""What a run of `solve` leaves behind: a `Trace`, on disk as one npz file without pickles."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nashpref.archive import atomic, read_archive, write_archive
from nashpref.policies import FloatArray

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "nashpref-trace"
VERSION = 2


class Status(StrEnum):
    """How a run ended. Not converging is a result, never an exception."""

    CONVERGED = "converged"
    """The gap reached the tolerance at a recorded step."""
    MAX_STEPS = "max_steps"
    """All steps were made; where a tolerance was given, the gap was still falling."""
    STALLED = "stalled"
    """All steps were made; the second half did not lower the gap: a cycle, a bias, or rounding."""
    NON_FINITE = "non_finite"
    """An iterate became NaN by overflow; the trace ends at the last recorded finite one."""
    STOPPED = "stopped"
    """The callback, or an interrupt, asked for the end."""


@dataclass(frozen=True)
class Snapshot:
    """The complete state of a run after `step` iterations: what `solve(resume=...)` starts from.

    Policies have the game's policy shape. Both log π and π are kept because exp(log π) rounds differently;
    `payoff` is that of `current`. `plan_sum` sums the policies so far, or a Markov game's occupancy measures.
    """

    step: int
    log_policies: dict[str, FloatArray]
    policies: dict[str, FloatArray]
    payoff: FloatArray
    plan_sum: FloatArray
    payoff_sum: FloatArray | None


@dataclass(frozen=True, eq=False)
class Trace:
    """The recorded course of a rule on a game. R recorded steps; batches add an axis B.

    Shapes are those of matrix games; in a Markov game a policy has `game.policy_shape` in place of `(n,)`.

    Attributes:
        steps: `(R,)` numbers of iterations made; 0 is the start.
        gap: `(R[, B])` duality gap (both sides) of the last iterate in the game regularised by `beta`, in
            its KL form `2β KL(π‖BR_β(π))`; with `beta = 0` it is `2 max_y q(y)`.
        unregularised_gap: `(R[, B])` the gap of the last iterate in the original game.
        average_gap: `(R[, B])` as `gap`, of the arithmetic mean of all iterates so far, the start included.
        kl: `(R[, B])` KL(π*‖π_t) to the equilibrium handed to `solve`; None without one.
        policies: `(R, [B,] n)` the recorded iterates, if they were asked for.
        average_policy: the mean of all iterates, the start included; in a Markov game the policy of the mean
            occupancy measure.
        beta: the KL weight of the game in which `gap` is measured: the game the rule solves.
        status: how the run ended (`Status`).
        rule: the rule, as text.
        snapshot: the state to resume from.
        compiled: whether the compiled interpreter ran.
        fingerprint: identifies game, reference and rule, so that a run is not resumed on another.
    """

    steps: NDArray[np.int64]
    gap: FloatArray
    unregularised_gap: FloatArray
    average_gap: FloatArray
    kl: FloatArray | None
    policies: FloatArray | None
    average_policy: FloatArray
    beta: float
    status: Status
    rule: str
    snapshot: Snapshot = field(repr=False)
    compiled: bool
    fingerprint: str = field(repr=False)

    @property
    def policy(self) -> FloatArray:
        """The last iterate."""
        return self.snapshot.policies["current"]

    @property
    def log_policy(self) -> FloatArray:
        """Logarithm of the last iterate, accurate where the probabilities underflow."""
        return self.snapshot.log_policies["current"]

    def __repr__(self) -> str:
        worst = float(np.max(self.gap[-1]))
        return f"Trace({self.rule}: {self.status} after {self.snapshot.step} steps, gap {worst:.3g})"

    def columns(self) -> dict[str, NDArray[Any]]:
        """The recorded columns by name, flattened: a batch has one row per step and game."""
        columns: dict[str, NDArray[Any]] = {"step": self.steps}
        if self.gap.ndim == 2:
            games = self.gap.shape[1]
            columns = {
                "step": np.repeat(self.steps, games),
                "game": np.tile(np.arange(games), len(self.steps)),
            }
        for name in ("gap", "unregularised_gap", "average_gap", "kl"):
            if (values := getattr(self, name)) is not None:
                columns[name] = values.ravel()
        return columns

    def to_frame(self) -> pd.DataFrame:
        """The recorded columns as a pandas data frame."""
        import pandas as pd

        return pd.DataFrame(self.columns())

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the recorded columns as CSV, numbers in full precision."""
        columns = self.columns()
        with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(zip(*(values.tolist() for values in columns.values()), strict=True))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one npz file; an existing file is replaced only once the new one is whole."""
        meta: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "beta": self.beta,
            "status": self.status.value,
            "rule": self.rule,
            "compiled": self.compiled,
            "fingerprint": self.fingerprint,
            "step": self.snapshot.step,
        }
        arrays: dict[str, Any] = {name: getattr(self, name) for name in _ARRAYS}
        arrays |= {f"log_policy:{name}": value for name, value in self.snapshot.log_policies.items()}
        arrays |= {f"policy:{name}": value for name, value in self.snapshot.policies.items()}
        arrays |= {
            "payoff": self.snapshot.payoff,
            "plan_sum": self.snapshot.plan_sum,
            "payoff_sum": self.snapshot.payoff_sum,
        }
        write_archive(path, meta, {name: value for name, value in arrays.items() if value is not None})

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Trace:
        """Read what `save` wrote.

        Raises `ValueError` for a file that is no trace, is damaged, or comes from a later version.
        """
        meta, arrays = read_archive(path, "trace", FORMAT, VERSION)
        try:
            snapshot = Snapshot(
                step=int(meta["step"]),
                log_policies=_named(arrays, "log_policy:"),
                policies=_named(arrays, "policy:"),
                payoff=arrays["payoff"],
                plan_sum=arrays["plan_sum"],
                payoff_sum=arrays.get("payoff_sum"),
            )
            return Trace(
                **{name: arrays[name] for name in ("steps", "gap", "unregularised_gap", "average_gap")},
                kl=arrays.get("kl"),
                policies=arrays.get("policies"),
                average_policy=arrays["average_policy"],
                beta=float(meta["beta"]),
                status=Status(meta["status"]),
                rule=str(meta["rule"]),
                snapshot=snapshot,
                compiled=bool(meta["compiled"]),
                fingerprint=str(meta["fingerprint"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: damaged, its metadata are incomplete or wrong ({error})") from None


_ARRAYS = ("steps", "gap", "unregularised_gap", "average_gap", "kl", "policies", "average_policy")


def _named(arrays: dict[str, Any], prefix: str) -> dict[str, FloatArray]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
