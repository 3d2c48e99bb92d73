"""Preference data: every format and shape is read, and every bad row is named with its place and remedy."""

import csv
import gzip
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nashpref.llm import readers
from nashpref.llm.data import Demonstration, Pair, Prompt, Ranking, Record, Table, read, to_pairs

ROWS: list[dict[str, Any]] = [
    {"prompt": "Name a fruit.", "chosen": 'A "pear",\r\nripe.', "rejected": "Granite", "p_chosen": 0.75},
    {"prompt": "Zähle bis 2 — “so”:", "chosen": "1, 2 🙂", "rejected": "2 , 1", "p_chosen": 0.5},
    {"prompt": "", "chosen": "yes\u2028no", "rejected": "no", "p_chosen": 1.0},
]
PAIRS = [Pair(**row) for row in ROWS]

USER = {"role": "user", "content": "Name a fruit."}
PEAR = {"role": "assistant", "content": "A pear."}
STONE = {"role": "assistant", "content": "Granite."}
MORE = {"role": "user", "content": "Another?"}
DIALOGUE = "\n\nHuman: hi\n\nAssistant:"


def say(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


# --- formats ---


def jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def plain_json(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def comma(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def parquet(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)


WRITERS = {".jsonl": jsonl, ".ndjson": jsonl, ".json": plain_json, ".csv": comma, ".parquet": parquet}


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_format_gives_the_same_records(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"pairs.v1{suffix}"
    WRITERS[suffix](path, ROWS)
    assert list(read(path)) == PAIRS
    assert list(read(str(path))) == PAIRS
    if suffix != ".parquet":
        zipped = tmp_path / f"pairs{suffix}.gz"
        zipped.write_bytes(gzip.compress(path.read_bytes()))
        assert list(read(zipped)) == PAIRS


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"pairs{suffix}"
    WRITERS[suffix](path, ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert list(read(path)) == PAIRS


def test_lists_and_datasets_are_read_as_files_are() -> None:
    assert list(read(ROWS)) == PAIRS
    assert list(read(datasets.Dataset.from_list(ROWS))) == PAIRS
    assert list(read(datasets.Dataset.from_list(ROWS).to_iterable_dataset())) == PAIRS
    with pytest.raises(ValueError, match="mapping of 'train', 'test': choose one of them"):
        read(
            datasets.DatasetDict(
                train=datasets.Dataset.from_list(ROWS), test=datasets.Dataset.from_list(ROWS)
            )
        )


def test_json_lines_under_the_name_json_are_read_and_blank_lines_skipped(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    jsonl(path, ROWS)
    path.write_text("\n" + path.read_text(encoding="utf-8").replace("\n", "\n\n"), encoding="utf-8")
    assert list(read(path)) == PAIRS


def test_messages_survive_arrow_which_fills_missing_keys_with_null(tmp_path: Path) -> None:
    rows = [{"prompt": [{**USER, "name": "Ann"}, PEAR, MORE], "chosen": [PEAR], "rejected": [STONE]}]
    expected = Pair(({**USER, "name": "Ann"}, PEAR, MORE), (PEAR,), (STONE,))
    for source in (rows, datasets.Dataset.from_list(rows)):
        assert list(read(source)) == [expected]
    parquet(tmp_path / "chat.parquet", rows)
    assert list(read(tmp_path / "chat.parquet")) == [expected]


TEXTS = st.text(
    st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), min_size=1, max_size=12
).filter(str.strip)


@given(
    rows=st.lists(
        st.tuples(TEXTS, TEXTS, TEXTS, st.floats(0, 1), st.floats(-9, 9), TEXTS).filter(
            lambda r: r[1] != r[2]
        ),
        min_size=1,
        max_size=4,
    ),
    suffix=st.sampled_from(sorted(WRITERS)),
)
def test_whatever_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[Any, ...]], suffix: str
) -> None:
    names = ("prompt", "chosen", "rejected", "p_chosen", "margin", "source")
    path = tmp_path_factory.mktemp("round") / f"trip{suffix}"
    WRITERS[suffix](path, [dict(zip(names, row, strict=True)) for row in rows])
    assert list(read(path)) == [Pair(*row) for row in rows]


def test_long_lines_and_long_cells_are_read(tmp_path: Path) -> None:
    rows = [{"prompt": "x " * 200_000, "chosen": "y", "rejected": "z"}]
    limit = csv.field_size_limit(5000)  # of the process, and not ours to change for good
    try:
        for suffix, write in WRITERS.items():
            write(tmp_path / f"long{suffix}", rows)
            assert list(read(tmp_path / f"long{suffix}")) == [Pair(**rows[0])]
        comma(tmp_path / "bad.csv", [*rows, {"prompt": "p", "chosen": "a", "rejected": "a"}])
        with pytest.raises(ValueError, match="chosen == rejected"):
            read(tmp_path / "bad.csv")
        assert csv.field_size_limit() == 5000
    finally:
        csv.field_size_limit(limit)


# --- shapes ---

K = [[0.5, 0.75, 0.0], [0.25, 0.5, 1.0], [1.0, 0.0, 0.5]]


@pytest.mark.parametrize(
    ("row", "record"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, Pair("p", "a", "b")),
        (
            {"prompt": "p", "chosen": "a", "rejected": "b", "margin": 2, "source": 7},
            Pair("p", "a", "b", 1.0, 2.0, "7"),
        ),
        ({"prompt": "p", "response_a": "a", "response_b": "b", "p_a": 0.25}, Pair("p", "a", "b", 0.25)),
        ({"prompt": "p", "completion": "c", "id": 3}, Demonstration("p", "c")),
        ({"prompt": [USER], "completion": [PEAR]}, Demonstration((USER,), (PEAR,))),
        ({"prompt": [USER], "completion": "A pear."}, Demonstration((USER,), "A pear.")),
        ({"messages": [USER, PEAR, MORE, STONE]}, Demonstration((USER,), (PEAR, MORE, STONE))),
        ({"prompt": "Fruit", "messages": [USER, PEAR]}, Demonstration((USER,), (PEAR,))),
        ({"text": "once upon"}, Demonstration("", "once upon")),
        ({"prompt": "p"}, Prompt("p")),
        ({"prompt": [USER], "chosen": None, "completion": None}, Prompt((USER,))),
        ({"prompt": "p", "completions": ["a", "b"], "ranking": [1, 0.0]}, Ranking("p", ("a", "b"), (1, 0))),
        (
            {"prompt": [USER], "chosen": [PEAR, MORE, STONE], "rejected": [STONE]},
            Pair((USER,), (PEAR, MORE, STONE), (STONE,)),
        ),
        ({"chosen": [USER, PEAR], "rejected": [USER, STONE]}, Pair((USER,), (PEAR,), (STONE,))),
        (
            {"chosen": [USER, PEAR, MORE, PEAR], "rejected": [USER, PEAR, MORE, STONE]},
            Pair((USER, PEAR, MORE), (PEAR,), (STONE,)),
        ),
        (  # one dialogue goes on: they part where the assistant last said the same
            {"chosen": [USER, PEAR, MORE, STONE], "rejected": [USER, PEAR]},
            Pair((USER,), (PEAR, MORE, STONE), (PEAR,)),
        ),
    ],
)  # fmt: skip
def test_each_shape_becomes_its_record(row: dict[str, Any], record: Record) -> None:
    assert list(read([row])) == [record]


def test_tables_are_read_from_lists_arrays_and_json_in_csv(tmp_path: Path) -> None:
    row = {"prompt": "p", "completions": ["a", "b", "c"], "preferences": K}
    comma(tmp_path / "t.csv", [{k: v if k == "prompt" else json.dumps(v) for k, v in row.items()}])
    parquet(tmp_path / "t.parquet", [row])
    sources: list[Any] = [
        [row],
        [row | {"preferences": np.array(K)}],
        tmp_path / "t.csv",
        tmp_path / "t.parquet",
    ]
    for source in sources:
        (table,) = read(source)
        assert isinstance(table, Table)
        assert (table.prompt, table.completions) == ("p", ("a", "b", "c"))
        assert table.preferences.tolist() == K
        with pytest.raises(ValueError, match="read-only"):
            table.preferences[0, 0] = 1.0


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        # two turns, the last of which differs; one whose first words agree
        ("\n\nHuman: hi\n\nAssistant: hello\n\nHuman: a fruit?\n\nAssistant: pear",
         "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: a fruit?\n\nAssistant: plum",
         "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: a fruit?\n\nAssistant:"),
        (f"{DIALOGUE} a red pear", f"{DIALOGUE} a red plum", DIALOGUE),
        # one of them says more, in a turn of its own
        (f"{DIALOGUE} yes\n\nAssistant: truly", f"{DIALOGUE} no", DIALOGUE),
        # no dialogue: whole words, the space left to the completion; characters where there are no words
        ("Q: 2+2? A: four", "Q: 2+2? A: fourteen", "Q: 2+2? A:"),
        ("Q: 2+2? A: 4", "Q: 2+2? A:\n5", "Q: 2+2? A:"),
        ("one two", "one two three", "one"),
        ("abca", "abcba", "abc"),
    ],
)  # fmt: skip
def test_an_implicit_prompt_is_found(chosen: str, rejected: str, prompt: str) -> None:
    for a, b in ((chosen, rejected), (rejected, chosen)):
        (pair,) = read([{"chosen": a, "rejected": b}])
        assert isinstance(pair, Pair)
        assert (pair.prompt, f"{pair.prompt}{pair.chosen}", f"{pair.prompt}{pair.rejected}") == (prompt, a, b)


@given(turns=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3), a=TEXTS, b=TEXTS)
def test_a_dialogue_is_split_where_the_last_answer_begins(
    turns: list[tuple[str, str]], a: str, b: str
) -> None:
    assume(a != b)
    *earlier, (question, _) = turns
    prompt = "".join(f"\n\nHuman: {q}\n\nAssistant: {r}" for q, r in earlier)
    prompt += f"\n\nHuman: {question}\n\nAssistant:"
    assert list(read([{"chosen": f"{prompt} {a}", "rejected": f"{prompt} {b}"}])) == [
        Pair(prompt, f" {a}", f" {b}")
    ]
    messages: list[dict[str, str]] = []
    for q, r in earlier:
        messages += [{"role": "user", "content": q}, say(r)]
    messages.append({"role": "user", "content": question})
    row = {"chosen": [*messages, say(a)], "rejected": [*messages, say(b)]}
    assert list(read([row])) == [Pair(tuple(messages), (say(a),), (say(b),))]


def test_columns_name_the_fields(tmp_path: Path) -> None:
    row = {"prompt": "also here", "q": "p", "best": "a", "worst": "b", "agreement": 0.75, "chosen": "?"}
    columns = {
        "prompt": "q",
        "chosen": "best",
        "rejected": "worst",
        "p_chosen": "agreement",
        "source": "best",
    }
    assert list(read([row], columns=columns)) == [Pair("p", "a", "b", 0.75, source="a")]
    with pytest.raises(ValueError, match=r"columns: no field 'choosen' \(did you mean 'chosen'\?\)"):
        read([row], columns={"choosen": "best"})
    with pytest.raises(
        ValueError, match=r"rows\[0\]: bets: is missing \(chosen is read from it\); there are prompt, q,"
    ):
        read([row], columns={"chosen": "bets"})
    with pytest.raises(ValueError, match=r"rows\[0\]: chosen \(column best\): is empty"):
        read([row | {"best": " "}], columns=columns)


# --- bad rows ---

PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
RANKED = {"prompt": "p", "completions": ["a", "b", "c"]}
BAD_ROWS: list[tuple[Any, str]] = [
    ({"prompt": "p", "chosen": "a"}, "rejected: is missing"),
    ({"prompt": "p", "rejected": "a"}, "chosen: is missing"),
    ({"completion": "a"}, "prompt: is missing"),
    ({"id": 3}, "prompt: is missing"),
    ({**PAIR, "rejected": None}, "rejected: is missing"),
    ({**PAIR, "rejected": "a"}, "chosen == rejected: there is nothing to prefer; leave the row out"),
    ({**PAIR, "chosen": ""}, "chosen: is empty: leave the row out, or accept it with allow_empty"),
    ({**PAIR, "chosen": " \n"}, "chosen: is empty"),
    ({"prompt": "p", "completion": ""}, "completion: is empty"),
    ({"prompt": [USER], "completion": [say("")]}, r"completion\[0\].content: is empty"),
    ({**PAIR, "chosen": 3}, "chosen = 3: text or a list of messages is expected"),
    ({**PAIR, "p_chosen": 1.5}, r"p_chosen = 1.5: a probability in \[0, 1\]"),
    ({**PAIR, "p_chosen": -1e-9}, "p_chosen = -1e-09: a prob"),
    ({**PAIR, "p_chosen": float("nan")}, "p_chosen = nan"),
    ({**PAIR, "p_chosen": None}, "p_chosen = None: a number is expected"),
    ({**PAIR, "p_chosen": ""}, "p_chosen = '': a number is expected"),
    ({**PAIR, "p_chosen": True}, "p_chosen = True: a number"),
    ({**PAIR, "margin": float("inf")}, "margin = inf: a finite number"),
    ({**PAIR, "margin": "wide"}, "margin = 'wide': a number is expected"),
    ({**PAIR, "chosen": "a\0b"}, "chosen: holds a NUL character at 1"),
    ({**PAIR, "prompt": "half \ud83d"}, "prompt: is not UTF-8 .* at character 5"),
    ({**PAIR, "completion": "c"}, "chosen and rejected and completion belong to different kinds"),
    ({**RANKED}, "completions: there is neither a ranking nor preferences nor labels"),
    ({"prompt": "p", "ranking": [0, 1]}, "completions: is missing: ranking compares them"),
    ({**RANKED, "ranking": [0, 1]}, "ranking has 2 places for 3 completions"),
    ({**RANKED, "ranking": [1, 2, 3]}, r"ranking = \[1, 2, 3\]: places are counted from 0"),
    ({**RANKED, "ranking": [0, 1, 3]}, "to at most 2"),
    ({**RANKED, "ranking": [1, 2, 2]}, "places are counted from 0"),
    ({**RANKED, "ranking": [-1, 0, 1]}, "places are counted from 0"),
    ({**RANKED, "ranking": [0, 0.5, 1]}, r"ranking\[1\] = 0.5: a whole number"),
    ({**RANKED, "ranking": 3}, "ranking = 3: a list is expected"),
    ({**RANKED, "ranking": "0 1 2"}, "ranking: a list as JSON is expected"),
    ({**RANKED, "completions": ["a", "b", ""], "ranking": [0, 1, 2]}, r"completions\[2\]: is empty"),
    ({"prompt": "p", "completions": ["a"], "ranking": [0]}, "completions has 1 entries: two are needed"),
    ({**RANKED, "preferences": [[0.5, 1], [0, 0.5]]}, r"preferences has shape \(2, 2\): 3 completions need"),
    ({**RANKED, "preferences": [[0.5], [0, 0.5]]}, "preferences: equally long rows of numbers"),
    ({**RANKED, "preferences": [[0.5, 2, 1], K[1], K[2]]}, r"preferences\[0\]\[1\] = 2.0: a probability"),
    ({**RANKED, "preferences": [[0.5, None, 0], *K[1:]]}, r"preferences\[0\]\[1\] = nan"),
    ({**RANKED, "preferences": [[0.5, 0.8, 0], *K[1:]]}, r"\[1\] = 0.8 and \[1\]\[0\] = 0.25 must sum to 1"),
    ({**RANKED, "preferences": [[0.9, 0.75, 0], *K[1:]]}, r"preferences\[0\]\[0\] = 0.9 must be 1/2"),
    ({"prompt": "p", "chosen": [PEAR], "rejected": "b"}, "chosen: is messages while the prompt is text"),
    ({"prompt": "p", "chosen": [USER, PEAR], "rejected": [USER, STONE]}, "say columns= without prompt"),
    ({"prompt": [USER], "chosen": [USER, PEAR], "rejected": [STONE]}, "chosen: repeats the prompt"),
    ({"prompt": DIALOGUE, "chosen": DIALOGUE + " a", "rejected": "b"}, "chosen: repeats the prompt"),
    ({"prompt": [USER], "chosen": [MORE, PEAR], "rejected": [STONE]}, "chosen: must begin and end"),
    ({"prompt": [USER], "chosen": [PEAR, MORE], "rejected": [STONE]}, "chosen: must begin and end"),
    ({"prompt": [USER, PEAR], "completion": [STONE]}, "prompt: must end with a message to be answered"),
    ({"prompt": []}, "prompt: must end with a message"),
    ({"messages": [USER]}, r"messages\[1:\]: must begin and end"),
    ({"messages": "hi"}, "messages: is text"),
    ({"prompt": [{"role": "user"}]}, r"prompt\[0\]: is no message"),
    ({"prompt": ["hi"]}, r"prompt\[0\]: is no message"),
    ({"prompt": [{"role": "user", "content": "a\0"}]}, r"prompt\[0\].content: holds a NUL"),
    ({"chosen": "a", "rejected": "b"}, "prompt: is missing, and chosen and rejected do not begin"),
    ({"chosen": "hello you", "rejected": "help me"}, "do not begin with the same"),
    ({"chosen": [USER, PEAR], "rejected": [MORE, STONE]}, "do not begin with the same"),
    ({"chosen": [USER, PEAR], "rejected": "b"}, "one is text and the other messages"),
    ({"chosen": f"{DIALOGUE} a{DIALOGUE} c", "rejected": f"{DIALOGUE} d"}, "goes on with a human turn"),
    ({"prompt": "p", "response_a": "a", "response_b": "b"}, r"p_a: is missing \(p_chosen is read from it\)"),
    ({"prompt": "p", "response_a": "", "response_b": "b", "p_a": 0}, r"chosen \(column response_a\): is"),
    ({"promt": "p", "chosen": "q a", "rejected": "q b"}, "promt: if it is 'prompt', rename it or say"),
    ({**PAIR, "p_choosen": 0.5}, "p_choosen: if it is 'p_chosen'"),
    ("text", "'text' is no row: a mapping"),
    (None, "'None' is no row"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "complaint"), BAD_ROWS)
def test_a_bad_row_is_named_and_can_be_left_out(row: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=rf"^rows\[1\]: .*{complaint}"):
        read([PAIR, row, PAIR])
    records = read([PAIR, row, PAIR], skip_bad=True)
    assert (list(records), records.skipped) == ([Pair("p", "a", "b")] * 2, 1)
    assert re.match(rf"rows\[1\]: .*{complaint}", records.messages[0])
    assert repr(records) == "<2 records, 1 bad rows left out>"


GOOD = json.dumps(PAIR).encode()
BAD_LINES = [
    (b'{"prompt": "p", "chosen": "a"', "not JSON .*: one JSON object per line"),
    (b"[" * 100_000, "not JSON"),
    (b'{"prompt": "\xff"}', r"not UTF-8 \(byte 0xff at 12\)"),
    (b'{"prompt": "p", "chosen": "a\\u0000", "rejected": "b"}', "chosen: holds a NUL"),
    (b'{"prompt": "p\0"}', "not JSON"),
    (b'{"prompt": "p", "chosen": "a", "rejected": "b", "p_chosen": NaN}', "p_chosen = nan"),
    (b'{"prompt": "\\ud800"}', "prompt: is not UTF-8"),
    (b"[1, 2]", "is no row"),
    (b'{"prompt": "' + b"x" * 5000 + b'"}', "a line of more than 0 MiB"),
]


@pytest.mark.parametrize(("line", "complaint"), BAD_LINES)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".json"])
def test_a_bad_line_is_named_by_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: bytes, complaint: str, suffix: str
) -> None:
    if len(line) == 5014:
        monkeypatch.setattr(readers, "MAX_LINE", 1024)
    path = tmp_path / f"pairs{suffix}"
    content = b"\n".join([GOOD, b"", line, GOOD])
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}:3: .*{complaint}"):
        read(path)
    records = read(path, skip_bad=True)
    assert (len(records), records.skipped) == (2, 1)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"p,a", "2 cells under 3 columns: quote texts with commas"),
        (b'p,"a"x,b', "not CSV"),
        (b"p,\xff,b", "chosen: is not UTF-8"),
        (b"p,a\0,b", "chosen: holds a NUL"),
        (b'p,"two\nlines",', "rejected: is empty"),
    ],
)
def test_a_bad_csv_line_is_named_by_file_and_line(tmp_path: Path, line: bytes, complaint: str) -> None:
    path = tmp_path / "pairs.csv"
    path.write_bytes(b'prompt,chosen,rejected\np,"a\n\na",b\n' + line + b"\n\np,a,b\n")
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}:5: {complaint}"):
        read(path)
    records = read(path, skip_bad=True)
    assert (list(records), records.skipped) == ([Pair("p", "a\n\na", "b"), Pair("p", "a", "b")], 1)


def test_bad_parquet_rows_and_json_items_are_named_by_index(tmp_path: Path) -> None:
    rows = [PAIR] * 1200 + [PAIR | {"chosen": "b"}, PAIR]
    for suffix in (".json", ".parquet"):
        path = tmp_path / f"pairs{suffix}"
        WRITERS[suffix](path, rows)
        with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}\[1200\]: chosen == rejected"):
            read(path)
    texts = pa.StringArray.from_buffers(
        3, pa.py_buffer(np.array([0, 1, 2, 3], dtype=np.int32).tobytes()), pa.py_buffer(b"p\xffp")
    )
    pq.write_table(pa.table({"prompt": texts}), tmp_path / "bytes.parquet")
    records = read(tmp_path / "bytes.parquet", skip_bad=True)
    assert list(records) == [Prompt("p")] * 2
    assert records.messages[0].startswith(f"{tmp_path / 'bytes.parquet'}[1]: not UTF-8 (byte 0xff at 0)")


def write_text(content: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(content, encoding="utf-8") and None


def write_bytes(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


@pytest.mark.parametrize(
    ("name", "write", "complaint"),
    [
        ("x.txt", write_text("hi"), ": of unknown format; the name must end as that of JSONL"),
        ("x", write_text("hi"), ": of unknown format"),
        ("x.gz", write_text("hi"), ": of unknown format"),
        ("x.parquet.gz", write_text("hi"), ": of unknown format"),
        ("x.jsonl", write_text(""), ": there are no rows"),
        ("x.csv", write_text("prompt,chosen\n"), ": there are no rows"),
        ("x.csv", write_text(""), ":1: the first line must name every column once"),
        ("x.csv", write_text("prompt,prompt\na,b\n"), ":1: the first line must name every column once"),
        ("x.csv", write_text('"prompt\n'), ":1: not CSV"),
        ("x.json", write_text('[{"prompt": "p"},\n{"prompt" "q"}]'), ":2: not JSON"),
        ("x.json", write_text("[" * 100_000), ": not JSON"),
        ("x.json", write_bytes(b'[{"prompt":\n"\xff"}]'), r":2: not UTF-8 \(byte 0xff"),
        ("x.parquet", write_text("PAR1 and no more"), ": not a whole Parquet file"),
        ("x.jsonl.gz", write_bytes(gzip.compress(GOOD * 9)[:-12]), ": damaged gzip data"),
        ("x.jsonl.gz", write_bytes(GOOD), ": damaged gzip data"),
        ("x.csv.gz", write_bytes(gzip.compress(b"prompt\np\n" * 99)[:-9]), ": damaged gzip data"),
    ],
)
@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_bad_file_is_never_skipped(
    tmp_path: Path, name: str, write: Callable[[Path], None], complaint: str, skip_bad: bool
) -> None:
    write(tmp_path / name)
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path / name))}{complaint}"):
        read(tmp_path / name, skip_bad=skip_bad)


def test_a_truncated_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    parquet(path, [PAIR] * 5000)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"x\.parquet: not a whole Parquet file"):
        read(path)


def test_nothing_good_is_an_error_even_where_bad_rows_are_skipped(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^source: none of 2 rows is good \(rows\[0\]: chosen == rejected"):
        read([PAIR | {"chosen": "b"}] * 2, skip_bad=True)
    with pytest.raises(ValueError, match=r"^source: there are no rows"):
        read([])
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.jsonl")


def test_empty_completions_are_kept_on_request() -> None:
    rows = [
        {"prompt": "p", "response_a": "", "response_b": "b", "p_a": 0.0},
        {"prompt": [USER], "completion": [say("")]},
    ]
    records = read(rows, allow_empty=True)
    assert list(records) == [Pair("p", "", "b", 0.0), Demonstration((USER,), (say(""),))]
    assert isinstance(records[:1], tuple)
    assert records[-1] == Demonstration((USER,), (say(""),))


# --- pairs of rankings and tables ---


@given(places=st.lists(st.integers(0, 4), min_size=2, max_size=5))
def test_a_ranking_is_all_its_pairs(places: list[int]) -> None:
    order = {place: i for i, place in enumerate(sorted(set(places)))}
    ranking = tuple(order[place] for place in places)
    names = tuple("abcde"[: len(places)])
    pairs = to_pairs([Ranking("p", names, ranking, "s")])
    assert len(pairs) == len(places) * (len(places) - 1) // 2
    assert len({frozenset((pair.chosen, pair.rejected)) for pair in pairs}) == len(pairs)
    for pair in pairs:
        better, worse = (ranking[names.index(str(text))] for text in (pair.chosen, pair.rejected))
        assert pair.p_chosen == (0.5 if better == worse else 1.0)
        assert better <= worse
        assert (pair.prompt, pair.source) == ("p", "s")


@given(above=st.lists(st.floats(0, 1), min_size=6, max_size=6))
def test_a_table_is_all_its_pairs_with_soft_labels(above: list[float]) -> None:
    P = np.full((4, 4), 0.5)
    P[np.triu_indices(4, 1)] = above
    P[np.tril_indices(4, -1)] = 1.0 - P.T[np.tril_indices(4, -1)]
    pairs = to_pairs([Table("p", tuple("abcd"), P)])
    assert [{pair.chosen, pair.rejected} for pair in pairs] == [
        {*t} for t in ("ab", "ac", "ad", "bc", "bd", "cd")
    ]
    for pair in pairs:
        assert pair.p_chosen >= 0.5
        assert pair.p_chosen == pytest.approx(
            P["abcd".index(str(pair.chosen)), "abcd".index(str(pair.rejected))]
        )


def test_equal_completions_make_no_pair_and_other_records_are_refused() -> None:
    ranking = Ranking("p", ("a", "b", "a"), (0, 1, 2))
    assert to_pairs([PAIRS[0], ranking]) == [PAIRS[0], Pair("p", "a", "b"), Pair("p", "b", "a")]
    with pytest.raises(ValueError, match=r"records\[1\] is a Prompt, which compares nothing"):
        to_pairs([ranking, Prompt("p")])
