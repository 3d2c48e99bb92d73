"""Rows into records: the shapes of preference data that are in use, and what is wrong with a bad row.

`read` understands the shapes that TRL uses, and three more in which a preference is not simply won or lost: a
soft label, a ranking, and a table of probabilities. The columns of a row say what it is:

| columns | record |
|---|---|
| `prompt`, `chosen`, `rejected` (`p_chosen`, `margin`) | `Pair` |
| `chosen`, `rejected`, each beginning with the prompt | `Pair` |
| `prompt`, `response_a`, `response_b`, `p_a` | `Pair`, with p_a = Pr(a beats b) |
| `prompt`, `completions`, `ranking` | `Ranking` |
| `prompt`, `completions`, `preferences` | `Table` |
| `prompt`, `completion`; `messages`; `text` | `Demonstration` |
| `prompt`, `completion`, `label` or `correct` (true, false, or a probability) | `Outcome` |
| `prompt`, `completions`, `labels` (true or 1, false or −1, neutral 0) | `Steps` |
| `prompt` | `Prompt` |

All may have a `source`, by which results are broken down. Other columns are ignored, unless their name is all
but that of a field that is missing.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any

from nashpref.llm.parsing import record
from nashpref.llm.readers import rows
from nashpref.llm.records import (
    Demonstration,
    Messages,
    Outcome,
    Pair,
    Prompt,
    Ranking,
    Record,
    Records,
    Steps,
    Table,
    Text,
    to_pairs,
)

__all__ = [
    "Demonstration",
    "Messages",
    "Outcome",
    "Pair",
    "Prompt",
    "Ranking",
    "Record",
    "Records",
    "Steps",
    "Table",
    "Text",
    "read",
    "to_pairs",
]

FIELDS = (
    *("prompt", "chosen", "rejected", "p_chosen", "margin", "completions", "ranking", "preferences"),
    *("completion", "messages", "text", "source", "correct", "labels"),
)
OF = {"correct": "completion", "labels": "completions"}  # fields that mean nothing without another
LABELLED = {"chosen": "response_a", "rejected": "response_b", "p_chosen": "p_a"}


def read(
    source: str | Path | Iterable[Mapping[str, Any]],
    *,
    columns: Mapping[str, str] | None = None,
    allow_empty: bool = False,
    skip_bad: bool = False,
) -> Records:
    """The records of a file, a `datasets.Dataset`, or a list of mappings.

    Each row becomes the record that its columns say (see the table above); empty cells and null values count
    as absent. A text after messages is one message of the assistant.

    *Without a prompt*, the prompt of `chosen` and `rejected` is what they have in common at the beginning: of
    chats, the messages before the first that differs; of dialogues as text (HH-RLHF), everything up to the
    last "\\n\\nAssistant:" that they share; of other text, the words before the first that differs (the
    characters, where there are no words). Two answers that begin alike lose that beginning to the prompt, so
    give the prompt where you have it.

    Args:
        source: a path (JSONL, JSON or CSV, each also with .gz, or Parquet), or anything that gives mappings.
            In CSV, lists (`completions`, `ranking`, `preferences`) are written as JSON.
        columns: field → column, such as `{"chosen": "best", "p_chosen": "agreement"}`; only these are then
            read.
        allow_empty: accept empty completions, which some data hold as answers in earnest.
        skip_bad: leave bad rows out and count them, instead of raising at the first.

    Raises:
        ValueError: a bad row, named with its file, line and field and what to do about it; a file that is
            damaged or of no known format; no rows, or none that is good.
        OSError: a file that does not exist or may not be read.
    """
    if columns is not None:
        _check_columns(columns)
    records: list[Record] = []
    messages: list[str] = []
    with closing(rows(source)) as numbered:
        for row in numbered:
            try:
                if row.problem:
                    raise ValueError(row.problem)
                records.append(_read_row(row.content, columns, allow_empty))
            except ValueError as error:
                if not skip_bad:
                    raise ValueError(f"{row.place}: {error}") from None
                messages.append(f"{row.place}: {error}")
    if not records:
        name = source if isinstance(source, str | Path) else "source"
        why = f"none of {len(messages)} rows is good ({messages[0]})" if messages else "there are no rows"
        raise ValueError(f"{name}: {why}")
    return Records(records, messages)


def _check_columns(columns: Mapping[str, str]) -> None:
    for field in columns:
        if field not in FIELDS:
            close = difflib.get_close_matches(str(field), FIELDS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(FIELDS)}"
            raise ValueError(f"columns: no field {field!r} ({hint})")


def _read_row(row: Any, columns: Mapping[str, str] | None, allow_empty: bool) -> Record:
    if not isinstance(row, Mapping):
        raise ValueError(f"{str(row)[:40]!r} is no row: a mapping of columns to values is expected")
    if columns is None:
        columns = _natural(frozenset(map(str, row)))
    for field, column in columns.items():
        if column not in row:
            there = ", ".join(map(str, row))
            raise ValueError(f"{column}: is missing ({field} is read from it); there are {there}")
    fields = {field: row[column] for field, column in columns.items() if not _absent(field, row[column])}
    try:
        return record(fields, allow_empty)
    except ValueError as error:
        message = str(error)
        for field in sorted(columns, key=len, reverse=True):  # completions before completion
            if field != columns[field] and message.startswith(field):
                message = f"{field} (column {columns[field]}){message.removeprefix(field)}"
                break
        raise ValueError(message) from None


@lru_cache
def _natural(names: frozenset[str]) -> dict[str, str]:
    """Field → column, where the columns are named after the fields."""
    fields = [field for field in FIELDS if field not in OF or OF[field] in names]
    unknown = sorted(names - {*FIELDS, *LABELLED.values(), "label"})
    for field in fields:
        # A misspelt p_chosen or prompt must not be ignored: without it the row has another meaning.
        close = difflib.get_close_matches(field, unknown, n=1, cutoff=0.86)
        if close and field not in {*names, "source"}:
            raise ValueError(
                f"{close[0]}: if it is {field!r}, rename it or say columns={{{field!r}: {close[0]!r}, …}}; "
                "if it is not, say which columns to read"
            )
    if {"completion", "label", "correct"} <= names:
        raise ValueError("label and correct: which of them says it? choose one with columns=")
    marked = "completion" in names and "label" in names
    labelled = "response_a" in names and not {"chosen", "rejected"} & names
    columns = {field: field for field in fields if field in names}
    return columns | (LABELLED if labelled else {}) | ({"correct": "label"} if marked else {})


def _absent(field: str, value: Any) -> bool:
    """Nothing was given: null, or an empty cell where an empty text would make no sense."""
    if field in ("p_chosen", "margin", "correct"):
        return False  # a label that is null is not the default, certainty, but unknown
    empty_text = field in ("prompt", "chosen", "rejected", "completion", "text")
    return value is None or (isinstance(value, str) and not value and not empty_text)
