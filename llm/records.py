"""Preference records: what is asked, what was answered, and what is known of which answer is better.

A text is plain (`str`) or a chat (a sequence of messages, `{"role": …, "content": …}`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

Messages = Sequence[Mapping[str, Any]]
Text = str | Messages

ROUNDING = 1.01e-6  # how far a pair printed with six decimals can be from summing to one


@dataclass(frozen=True, slots=True)
class Prompt:
    """Something to be answered."""

    prompt: Text
    source: str = ""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """An answer to imitate."""

    prompt: Text
    completion: Text
    source: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers and how often the first is preferred.

    Attributes:
        p_chosen: Pr(chosen beats rejected) in [0, 1]: 1 where one annotator chose, 1/2 for a tie, anything
            between where annotators disagree. Below 1/2 it is `rejected` that most prefer.
        margin: how much better `chosen` is, for losses with a margin.
    """

    prompt: Text
    chosen: Text
    rejected: Text
    p_chosen: float = 1.0
    margin: float = 0.0
    source: str = ""

    def __post_init__(self) -> None:
        if not 0.0 <= self.p_chosen <= 1.0:
            raise ValueError(f"p_chosen = {self.p_chosen}: a probability in [0, 1] is needed")
        if not math.isfinite(self.margin):
            raise ValueError(f"margin = {self.margin}: a finite number is needed")


@dataclass(frozen=True, slots=True)
class Ranking:
    """K answers and their places: `ranking[i]` is the place of completion i, 0 the best; ties share one."""

    prompt: Text
    completions: tuple[Text, ...]
    ranking: tuple[int, ...]
    source: str = ""

    def __post_init__(self) -> None:
        k = _at_least_two(self.completions)
        if len(self.ranking) != k:
            raise ValueError(f"ranking has {len(self.ranking)} places for {k} completions: give each one")
        if min(self.ranking) != 0 or max(self.ranking) >= k:
            raise ValueError(
                f"ranking = {list(self.ranking)}: places are counted from 0, the best, to at most {k - 1}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """K answers and `preferences[i, j]`, the probability that completion i beats completion j; read-only.

    `P + Pᵀ = 1` up to rounding in the sixth decimal, so that the diagonal is 1/2.
    """

    prompt: Text
    completions: tuple[Text, ...]
    preferences: NDArray[np.float64]
    source: str = ""

    def __post_init__(self) -> None:
        k = _at_least_two(self.completions)
        P = np.array(self.preferences, dtype=np.float64)
        if P.shape != (k, k):
            raise ValueError(f"preferences has shape {P.shape}: {k} completions need ({k}, {k})")
        if (bad := ~((P >= 0.0) & (P <= 1.0))).any():
            i, j = np.argwhere(bad)[0]
            raise ValueError(f"preferences[{i}][{j}] = {P[i, j]}: a probability in [0, 1] is needed")
        if (bad := np.abs(P + P.T - 1.0) > ROUNDING).any():
            i, j = np.argwhere(bad)[0]
            what = "must be 1/2" if i == j else f"and [{j}][{i}] = {P[j, i]:.6g} must sum to 1"
            raise ValueError(f"preferences[{i}][{j}] = {P[i, j]:.6g} {what}")
        P.flags.writeable = False
        object.__setattr__(self, "preferences", P)


@dataclass(frozen=True, slots=True)
class Outcome:
    """An answer and whether it is right: `correct` is 1 or 0, or the share of judges who say so."""

    prompt: Text
    completion: Text
    correct: float
    source: str = ""

    def __post_init__(self) -> None:
        if not 0.0 <= self.correct <= 1.0:
            raise ValueError(f"correct = {self.correct}: a probability in [0, 1] is needed")


@dataclass(frozen=True, slots=True)
class Steps:
    """An answer in steps, and of each whether it is wrong (−1), neutral (0) or right (1)."""

    prompt: Text
    steps: tuple[str, ...]
    labels: tuple[int, ...]
    source: str = ""

    def __post_init__(self) -> None:
        if not self.steps or len(self.labels) != len(self.steps):
            raise ValueError(
                f"labels has {len(self.labels)} entries for {len(self.steps)} steps: at least one step is "
                "needed, and a label for each"
            )
        if wrong := [label for label in self.labels if label not in (-1, 0, 1)]:
            raise ValueError(f"labels hold {wrong[0]}: a step is wrong (−1), neutral (0) or right (1)")


Record = Prompt | Demonstration | Pair | Ranking | Table | Outcome | Steps


class Records(Sequence[Record]):
    """The records that were read; `skipped` counts the bad rows that were left out, `messages` names them."""

    def __init__(self, records: Iterable[Record], messages: Iterable[str] = ()) -> None:
        self._records = tuple(records)
        self.messages = tuple(messages)

    @property
    def skipped(self) -> int:
        """How many bad rows were left out."""
        return len(self.messages)

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Record, ...]: ...
    def __getitem__(self, index: int | slice) -> Record | tuple[Record, ...]:
        return self._records[index]

    def __repr__(self) -> str:
        return f"<{len(self)} records, {self.skipped} bad rows left out>"


def to_pairs(records: Iterable[Record]) -> list[Pair]:
    """Pairs, and the pairs of completions i < j in rankings and tables, the likelier winner as `chosen`.

    A ranking gives p_chosen = 1, or 1/2 for a tie; a table its own probabilities. Equal completions make no
    pair.

    Raises:
        ValueError: a record that compares nothing.
    """
    pairs: list[Pair] = []
    for n, record in enumerate(records):
        if isinstance(record, Pair):
            pairs.append(record)
        elif isinstance(record, Ranking | Table):
            for i, j in combinations(range(len(record.completions)), 2):
                if isinstance(record, Table):
                    p = float(record.preferences[i, j])
                else:
                    p = (1.0 + np.sign(record.ranking[j] - record.ranking[i])) / 2.0
                a, b = record.completions[i], record.completions[j]
                if a != b:
                    chosen, rejected = (a, b) if p >= 0.5 else (b, a)
                    pairs.append(Pair(record.prompt, chosen, rejected, max(p, 1.0 - p), source=record.source))
        else:
            kind = type(record).__name__
            raise ValueError(
                f"records[{n}] is a {kind}, which compares nothing: pairs, rankings or tables are needed"
            )
    return pairs


def _at_least_two(completions: Sequence[Text]) -> int:
    if len(completions) < 2:
        raise ValueError(f"completions has {len(completions)} entries: two are needed to compare")
    return len(completions)
