"""A preference matrix from real data: win counts, comparison records, labelled CSV files.

Everything here returns plain arrays and names; `MatrixGame.from_counts`, `from_comparisons` and `from_csv`
make the game. Nothing is guessed: a pair that was never compared, a cell that is not a number or a name that
appears twice is an error that says where. Errors of content are `ValueError`; a file that does not exist or
may not be read stays the `OSError` that it is.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nashpref.archive import atomic
from nashpref.policies import FloatArray

Missing = Literal["error", "half"]
Record = Mapping[str, Any] | Sequence[Any]
PathOrStr = str | Path

ROUNDING = 1.01e-6  # how far a pair printed with six decimals can be from summing to one

RECORD_SHAPES = (
    "{winner, loser}, with tie and weight optional, or {a, b, p_a} (or model_a, model_b), with weight"
)
TRUTH = {"true": True, "1": True, "false": False, "0": False, "": False}


def preferences(
    wins: ArrayLike,
    *,
    ties: ArrayLike | None = None,
    prior: float = 0.0,
    missing: Missing = "error",
    labels: Sequence[str] | None = None,
) -> tuple[FloatArray, FloatArray]:
    """`P[i, j] = (wins[i, j] + ties[i, j]/2 + prior) / N[i, j]` and N, the comparisons behind each pair.

    `N = wins + winsᵀ + ties + 2 prior` off the diagonal, so that pseudo-counts weigh in a later fit or
    bootstrap like the data they stand for.

    Args:
        wins: times that i beat j, shape `(n, n)` or `(B, n, n)`; ≥ 0, need not be whole; zero diagonal.
        ties: times that i and j tied, symmetric; each counts half for both.
        prior: pseudo-wins added to both sides of every pair; > 0 also settles a missing pair at 1/2.
        missing: pairs never compared: "error", or "half" to set them to 1/2 with N = 0.
        labels: names used in the error about missing pairs.

    Raises:
        ValueError: negative, not finite or not square counts; asymmetric ties; a missing pair.
    """
    W = _check_counts(wins, "wins")
    T = np.zeros_like(W) if ties is None else _check_counts(ties, "ties")
    if T.shape != W.shape:
        raise ValueError(f"ties has shape {T.shape}; wins has {W.shape}")
    if (odd := np.swapaxes(T, -1, -2) != T).any():
        at = _first(odd)
        raise ValueError(
            f"ties{list(at)} = {T[at]:.10g} is not what the pair has the other way round: give both"
        )
    if not (math.isfinite(prior) and prior >= 0.0):
        raise ValueError(f"prior = {prior}: pseudo-counts must be finite and ≥ 0")
    if missing not in ("error", "half"):
        raise ValueError(f'missing = {missing!r}: choose "error" or "half"')

    pair = ~np.eye(W.shape[-1], dtype=bool)
    N = np.where(pair, W + np.swapaxes(W, -1, -2) + T + 2.0 * prior, 0.0)
    unknown = np.triu(N == 0.0, 1)
    if missing == "error" and unknown.any():
        raise ValueError(_missing_message(unknown, labels))
    return np.divide(W + T / 2.0 + prior, N, out=np.full_like(N, 0.5), where=N > 0.0), N


def tally(records: Iterable[Record] | PathOrStr) -> tuple[tuple[str, ...], FloatArray]:
    """The names, sorted, and `wins[i, j]`, the weight of comparisons that i won against j; a tie is half.

    A record is a `(winner, loser)` or `(winner, loser, weight)` sequence, or a mapping

    * `{"winner", "loser"}`, with `"tie": true` when neither won and a `"weight"` > 0 (a number of identical
      comparisons, 1 when absent), or
    * `{"a", "b", "p_a"}` with the fraction of votes in [0, 1] that a won; `model_a`, `model_b` name the two
      as well, as files of human annotation do.

    Other fields are ignored. A path is read as CSV with those columns when it ends in `.csv`, and as one JSON
    object a line otherwise.

    Raises:
        ValueError: naming the file, the line (or the index of the record) and the field.
    """
    pairs: dict[tuple[str, str], float] = {}
    for place, record in _numbered(records):
        try:
            winner, loser, share, weight = _read_record(record)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        pairs[winner, loser] = pairs.get((winner, loser), 0.0) + weight * share
        pairs[loser, winner] = pairs.get((loser, winner), 0.0) + weight * (1.0 - share)
    if not pairs:
        where = records if isinstance(records, str | Path) else "records"
        raise ValueError(f"{where}: no comparisons; give records of the form {RECORD_SHAPES}")
    names = tuple(sorted({name for pair in pairs for name in pair}))
    index = {name: i for i, name in enumerate(names)}
    wins = np.zeros((len(names), len(names)))
    for (winner, loser), weight in pairs.items():
        wins[index[winner], index[loser]] = weight
    return names, wins


def read_preferences(path: PathOrStr, *, symmetrise: bool = False) -> tuple[tuple[str, ...], FloatArray]:
    """Names and probabilities of a labelled CSV, cell (row, col) = P(row beats col).

    The first row and the first column hold the names; a different order of the rows is put in that of the
    header. The result is `(P + 1 − Pᵀ)/2`, which splits evenly what the rounding of six decimals leaves in a
    pair, at most 1e-6. With `symmetrise` it splits any asymmetry: for fewer decimals, or for a judge asked in
    both orders whose answers differ.

    Raises:
        ValueError: a directory, a binary or empty file, ragged rows, repeated or unmatched names, or a cell
            that is not a probability; with the file, line and column.
    """
    names, P, lines = _read_matrix(path)
    if (bad := (P < 0.0) | (P > 1.0)).any():
        i, j = _first(bad)
        raise ValueError(
            f"{_at(path, lines, names, i, j)}: {P[i, j]:.10g} is not a probability in [0, 1]; "
            "for win counts use MatrixGame.from_counts"
        )
    error = np.abs(P + P.T - 1.0)
    i, j = sorted(int(k) for k in np.unravel_index(int(error.argmax()), error.shape))
    if error[i, j] > ROUNDING and not symmetrise:
        if i == j:
            raise ValueError(f"{_at(path, lines, names, i, i)}: {P[i, i]:.10g}; the diagonal must be 1/2")
        raise ValueError(
            f"{_at(path, lines, names, i, j)}: {P[i, j]:.10g} and, the other way round on line {lines[j]}, "
            f"{P[j, i]:.10g} sum to {P[i, j] + P[j, i]:.10g}, not 1 (worst pair): correct it, or pass "
            "symmetrise=True to average the two where both estimate the same preference"
        )
    return names, (P + 1.0 - P.T) / 2.0


def write_preferences(path: PathOrStr, labels: Sequence[str], P: FloatArray) -> None:
    """Write what `read_preferences` reads, numbers in full precision."""
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["row_beats_col", *labels])
        writer.writerows([name, *row] for name, row in zip(labels, P.tolist(), strict=True))


def read_comparison_counts(path: PathOrStr, labels: Sequence[str]) -> FloatArray:
    """The number of comparisons of each pair from a labelled symmetric CSV, in the order of `labels`.

    Raises `ValueError` as `read_preferences` does, and when a number is negative, asymmetric, or the names
    are not `labels`.
    """
    names, N, lines = _read_matrix(path)
    _same_names(f"{path}: the names", names, "those of the preferences", labels)
    if (bad := N < 0.0).any():
        i, j = _first(bad)
        raise ValueError(f"{_at(path, lines, names, i, j)}: {N[i, j]:.10g} comparisons; must be ≥ 0")
    if (bad := N.T != N).any():
        i, j = _first(bad)
        raise ValueError(
            f"{_at(path, lines, names, i, j)}: {N[i, j]:.10g} comparisons and, the other way round on line "
            f"{lines[j]}, {N[j, i]:.10g}: a comparison counts both ways (wins belong in from_counts)"
        )
    order = [names.index(label) for label in labels]
    return N[np.ix_(order, order)] * ~np.eye(len(names), dtype=bool)


# --- counts ---


def _check_counts(counts: ArrayLike, name: str) -> FloatArray:
    array = np.array(counts, dtype=np.float64)
    if array.ndim not in (2, 3) or array.shape[-1] != array.shape[-2] or 0 in array.shape:
        raise ValueError(f"{name} has shape {array.shape}; counts are square, (n, n) or (B, n, n)")
    own = np.broadcast_to(np.eye(array.shape[-1], dtype=bool), array.shape)
    for bad, what in (
        (~np.isfinite(array), "is not finite"),
        (array < 0.0, "is negative"),
        (own & (array != 0.0), "compares a response with itself: the diagonal must be 0"),
    ):
        if bad.any():
            at = _first(bad)
            raise ValueError(f"{name}{list(at)} = {array[at]:.10g} {what}")
    return array


def _missing_message(unknown: NDArray[np.bool_], labels: Sequence[str] | None) -> str:
    places = np.argwhere(unknown)
    n = unknown.shape[-1]
    names = labels if labels is not None and len(labels) == n else range(n)
    shown = []
    for *batch, i, j in places[:5].tolist():
        pair = f"({names[i]!r}, {names[j]!r})"
        shown.append(f"{pair} of game {batch[0]}" if batch else pair)
    total = unknown.size // (n * n) * (n * (n - 1) // 2)
    return (
        f"{len(places)} of {total} pairs were never compared: {', '.join(shown)}{', …' * (len(places) > 5)}; "
        'collect them, drop responses, add pseudo-counts with prior=, or accept 1/2 with missing="half"'
    )


def _first(bad: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(bad)[0])


# --- records ---


def _numbered(records: Iterable[Record] | PathOrStr) -> Iterator[tuple[str, Record]]:
    """Records with the place that an error names: a line of a file, or an index."""
    if not isinstance(records, str | Path):
        for i, row in enumerate(records):
            yield f"record {i}", row
    elif Path(records).suffix.lower() == ".csv":
        rows = _csv_rows(records)
        _, header = next(rows)
        for line, cells in rows:
            if len(cells) != len(header):
                raise ValueError(f"{records}, line {line}: {len(cells)} cells; the header has {len(header)}")
            # An empty cell is an absent field: several shapes of record may share one table.
            yield f"{records}, line {line}", {k: v for k, v in zip(header, cells, strict=True) if v != ""}
    else:
        for line, content in enumerate(_read_text(records).split("\n"), start=1):  # not splitlines: U+2028
            if content.strip():
                place = f"{records}, line {line}"
                try:
                    yield place, json.loads(content)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{place}: not a JSON object ({error.msg}); one record a line") from None


def _read_record(record: Record) -> tuple[str, str, float, float]:
    """`(first, second, share of the first, weight)` of one comparison."""
    if not isinstance(record, Mapping):
        if isinstance(record, str) or not isinstance(record, Sequence) or len(record) not in (2, 3):
            raise ValueError(
                f"{record!r} is not a comparison: give (winner, loser[, weight]) or {RECORD_SHAPES}"
            )
        record = dict(zip(("winner", "loser", "weight"), record, strict=False))
    shapes = [
        keys for keys in (("winner", "loser"), ("a", "b"), ("model_a", "model_b")) if set(keys) & set(record)
    ]
    if len(shapes) != 1:
        raise ValueError(f"fields {sorted(map(str, record))} are not a comparison: give {RECORD_SHAPES}")
    first, second = (_name(record, key) for key in shapes[0])
    if first == second:
        raise ValueError(f"fields {shapes[0][0]!r} and {shapes[0][1]!r} are both {first!r}")
    weight = _number(record, "weight", default=1.0)
    if not (math.isfinite(weight) and weight > 0.0):
        raise ValueError(f"field 'weight' = {weight:.10g} must be finite and > 0")
    if shapes[0] == ("winner", "loser"):
        return first, second, 0.5 if _truth(record, "tie") else 1.0, weight
    share = _number(record, "p_a")
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"field 'p_a' = {share:.10g} is not a fraction in [0, 1]")
    return first, second, share, weight


def _name(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise ValueError(
            f"field {key!r} is {'missing' if key not in record else repr(value)}; it needs a name"
        )
    return str(value).strip()


def _number(record: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = record.get(key, default)
    try:
        if value is None or isinstance(value, bool):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        what = "missing" if key not in record else repr(value)
        raise ValueError(f"field {key!r} is {what}; it needs a number") from None


def _truth(record: Mapping[str, Any], key: str) -> bool:
    value = record.get(key, False)
    try:
        return TRUTH[str(value).strip().lower()]
    except KeyError:
        raise ValueError(f"field {key!r} is {value!r}; it needs true or false") from None


# --- labelled matrices ---


def _read_matrix(path: PathOrStr) -> tuple[tuple[str, ...], FloatArray, list[int]]:
    """Names, the square matrix with rows in the order of the header, and the line that each row came from."""
    rows = _csv_rows(path)
    _, header = next(rows)
    names = tuple(header[1:])
    if not names:
        raise ValueError(f"{path}: the header has one cell; it needs a corner, then a name for each column")
    _check_names(f"{path}, header: column", names)
    body: dict[str, tuple[int, list[float]]] = {}
    for line, cells in rows:
        if len(cells) != len(header):
            raise ValueError(f"{path}, line {line}: {len(cells)} cells; the header has {len(header)}")
        if cells[0] in body:
            raise ValueError(
                f"{path}, line {line}: row {cells[0]!r} is repeated (first on line {body[cells[0]][0]})"
            )
        body[cells[0]] = (
            line,
            [_cell(path, line, name, cell) for name, cell in zip(names, cells[1:], strict=True)],
        )
    _same_names(f"{path}: the rows", tuple(body), "the columns", names)
    lines = [body[name][0] for name in names]
    return names, np.array([body[name][1] for name in names]), lines


def _csv_rows(path: PathOrStr) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, cells stripped, with their line numbers; at least one."""
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    empty = True
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                empty = False
                yield reader.line_num, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: not CSV ({error})") from None
    if empty:
        raise ValueError(f"{path}: the file is empty")


def _read_text(path: PathOrStr) -> str:
    file = Path(path)
    if file.is_dir():
        raise ValueError(f"{path}: is a directory; give a file in it")
    data = file.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 text (byte {error.start}): a binary or compressed file?"
        ) from None
    if "\0" in text:
        raise ValueError(f"{path}: contains NUL bytes: a binary file?")
    return text


def _cell(path: PathOrStr, line: int, column: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{path}, line {line}, column {column!r}: {cell!r} is not a finite number")
    return value


def _check_names(place: str, names: Sequence[str]) -> None:
    for k, name in enumerate(names):
        if not name:
            raise ValueError(f"{place} {k + 1} has no name")
        if name in names[:k]:
            raise ValueError(f"{place} {name!r} is repeated")


def _same_names(what: str, names: Sequence[str], other: str, expected: Sequence[str]) -> None:
    lacking = [name for name in expected if name not in names]
    extra = [name for name in names if name not in expected]
    if lacking or extra:
        parts = [f"lack {lacking[:5]}"] * bool(lacking) + [f"have {extra[:5]} besides"] * bool(extra)
        raise ValueError(f"{what} are not {other}: they {' and '.join(parts)}")


def _at(path: PathOrStr, lines: Sequence[int], names: Sequence[str], i: int, j: int) -> str:
    return f"{path}, line {lines[i]}, column {names[j]!r}"
