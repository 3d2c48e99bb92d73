"""Rows of files and data sets, each with its place; what they mean is the business of `nashpref.llm.data`."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

MAX_LINE = (
    64 * 2**20
)  # bytes; a longer line is damage, and would be read into memory before anyone could tell

FORMATS = "JSONL (.jsonl, .ndjson), JSON (.json) or CSV (.csv), each also with .gz, or Parquet (.parquet)"


class Row(NamedTuple):
    """One row, or what is wrong with it."""

    place: str  # file:line, file[index] or rows[index]
    content: Any
    problem: str = ""


def rows(source: str | Path | Iterable[Any]) -> Generator[Row, None, None]:
    """The rows of a file, or of anything that can be iterated, such as a `datasets.Dataset` or a list.

    Lines count from 1, as editors do; rows of Parquet, JSON lists and iterables from 0, as Python does.

    Raises:
        ValueError: a file whose name or content is of no known format, or that is damaged as a whole.
        OSError: a file that does not exist or may not be read.
    """
    if isinstance(source, str | Path):
        yield from _file(Path(source))
    elif isinstance(source, Mapping):
        choices = ", ".join(map(repr, source))
        raise ValueError(f"the source is a mapping of {choices}: choose one of them, such as source['train']")
    else:
        for i, content in enumerate(source):
            yield Row(f"rows[{i}]", content)


def _file(path: Path) -> Iterator[Row]:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    zipped = suffixes[-1:] == [".gz"]
    kind = suffixes[-2 if zipped else -1 :][:1]
    if kind == [".parquet"] and not zipped:
        yield from _parquet(path)
        return
    readers = {".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json, ".csv": _csv}
    if not kind or kind[0] not in readers:
        raise ValueError(f"{path}: of unknown format; the name must end as that of {FORMATS}")
    with gzip.open(path) if zipped else open(path, "rb") as file:
        try:
            yield from readers[kind[0]](path, cast(IO[bytes], file))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: damaged gzip data ({error}): fetch the file again") from None


def _json_lines(path: Path, file: IO[bytes]) -> Iterator[Row]:
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        place = f"{path}:{number}"
        if len(line) > MAX_LINE:
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE)
            yield Row(place, None, f"a line of more than {MAX_LINE >> 20} MiB: one JSON object per line")
            continue
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if text.strip():
                yield Row(place, json.loads(text))
        except UnicodeDecodeError as error:
            yield Row(place, None, _not_utf8(error))
        except (ValueError, RecursionError) as error:
            yield Row(place, None, f"not JSON ({error}): one JSON object per line")


def _json(path: Path, file: IO[bytes]) -> Iterator[Row]:
    """A list of objects; files that hold JSON lines under this name are read as such."""
    raw = file.read()
    if not raw.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        yield from _json_lines(path, io.BytesIO(raw))
        return
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}:{line}: {_not_utf8(error)}") from None
    try:
        contents = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON ({error})") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    for i, content in enumerate(contents):
        yield Row(f"{path}[{i}]", content)


def _csv(path: Path, file: IO[bytes]) -> Iterator[Row]:
    """Cells are text; bytes that are not UTF-8 become surrogates, which no text may hold."""
    limit = csv.field_size_limit(MAX_LINE)  # of the process: Python's 128 KiB would refuse long texts
    try:
        with io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
            yield from _cells(path, csv.reader(text, strict=True))
    finally:
        csv.field_size_limit(limit)


def _cells(path: Path, lines: Any) -> Iterator[Row]:
    try:
        header: list[str] = next(lines, [])
    except csv.Error as error:
        raise ValueError(f"{path}:1: not CSV ({error})") from None
    if len(set(header)) < len(header) or "" in header or not header:
        raise ValueError(f"{path}:1: the first line must name every column once, not {header}")
    while True:
        place = f"{path}:{lines.line_num + 1}"
        try:
            cells = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(place, None, f"not CSV ({error})")
            continue
        if cells and len(cells) != len(header):
            yield Row(place, None, f"{len(cells)} cells under {len(header)} columns: quote texts with commas")
        elif cells:
            yield Row(place, dict(zip(header, cells, strict=True)))


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open(path, "rb") as file:
        try:
            batches = pq.ParquetFile(file).iter_batches(batch_size=1024)
            i = 0
            for batch in batches:
                for k in range(batch.num_rows):
                    place = f"{path}[{i + k}]"
                    try:
                        yield Row(place, batch.slice(k, 1).to_pylist()[0])
                    except UnicodeDecodeError as error:
                        yield Row(place, None, _not_utf8(error))
                i += batch.num_rows
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{path}: not a whole Parquet file ({error})") from None


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8 (byte {error.object[error.start]:#04x} at {error.start}): save the text as UTF-8"
