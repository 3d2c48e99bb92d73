"""Games from data: counts, records and CSV files, and each bad input named with its place."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nashpref.games.matrix import MatrixGame

COUNTS = arrays(np.int64, (4, 4), elements=st.integers(0, 50))


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- counts ---


@settings(max_examples=60)
@given(wins=COUNTS, ties=COUNTS, prior=st.sampled_from([0.5, 1.0, 3.0]))
def test_counts_become_probabilities(wins: np.ndarray, ties: np.ndarray, prior: float) -> None:
    wins, ties = wins - np.diag(np.diag(wins)), np.triu(ties, 1) + np.triu(ties, 1).T
    game = MatrixGame.from_counts(wins, ties=ties, prior=prior)
    assert game.counts is not None
    for i in range(4):
        for j in range(4):
            if i == j:
                assert (game.preferences[i, i], game.counts[i, i]) == (0.5, 0.0)
                continue
            total = wins[i, j] + wins[j, i] + ties[i, j] + 2 * prior
            assert game.counts[i, j] == total
            expected = (wins[i, j] + ties[i, j] / 2 + prior) / total
            assert game.preferences[i, j] == pytest.approx(expected, abs=1e-15)


def test_missing_pairs_are_named_or_accepted_on_request() -> None:
    wins = np.zeros((4, 4))
    for i, j in pairwise(range(4)):
        wins[i, j] = 3
    with pytest.raises(
        ValueError, match=r"3 of 6 pairs were never compared: \('a', 'c'\), \('a', 'd'\), \('b', 'd'\)"
    ):
        MatrixGame.from_counts(wins, labels="abcd")
    half = MatrixGame.from_counts(wins, missing="half")
    assert half.counts is not None
    assert (half.preferences[0, 2], half.counts[0, 2], half.preferences[0, 1]) == (0.5, 0.0, 1.0)
    filled = MatrixGame.from_counts(wins, prior=1.0)
    assert filled.counts is not None
    assert (filled.preferences[0, 2], filled.counts[0, 2], filled.preferences[0, 1]) == (0.5, 2.0, 0.8)
    with pytest.raises(ValueError, match=r"45 of 45 pairs .*\(0, 5\), …"):
        MatrixGame.from_counts(np.zeros((10, 10)))


def test_a_batch_of_counts() -> None:
    wins = np.array([[[0, 3], [1, 0]], [[0, 0], [0, 0]]])
    with pytest.raises(ValueError, match=r"1 of 2 pairs were never compared: \(0, 1\) of game 1"):
        MatrixGame.from_counts(wins)
    np.testing.assert_array_equal(
        MatrixGame.from_counts(wins, missing="half").preferences[:, 0, 1], [0.75, 0.5]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"wins": [[0, -1], [2, 0]]}, r"wins\[0, 1\] = -1 is negative"),
        ({"wins": [[0, np.nan], [2, 0]]}, r"wins\[0, 1\] = nan is not finite"),
        ({"wins": [[0, 1], [2, 5]]}, r"wins\[1, 1\] = 5 compares a response with itself"),
        ({"wins": [[0, 1, 2], [2, 0, 2]]}, r"wins has shape \(2, 3\)"),
        ({"wins": [[0, 1], [2, 0]], "ties": [[0, 1], [2, 0]]}, r"ties\[0, 1\] = 1 is not what"),
        ({"wins": [[0, 1], [2, 0]], "ties": np.zeros((3, 3))}, r"ties has shape \(3, 3\); wins has \(2, 2\)"),
        ({"wins": [[0, 1], [2, 0]], "prior": -1.0}, "prior = -1.0"),
        ({"wins": [[0, 1], [2, 0]], "missing": "zero"}, "missing = 'zero'"),
        ({"wins": [[0, 1], [2, 0]], "labels": ["a"]}, "1 labels for 2 responses"),
    ],
)
def test_bad_counts(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MatrixGame.from_counts(**arguments)


# --- records ---

ROWS: list[dict[str, Any]] = [
    {"winner": "b", "loser": "a"},
    {"winner": "a", "loser": "b", "weight": 2},
    {"winner": "a", "loser": "b", "tie": True},
    {"a": "c", "b": "a", "p_a": 0.25, "prompt": "ignored"},
    {"model_a": "b", "model_b": "c", "p_a": 0.75, "weight": 8},
]


def check_rows(game: MatrixGame) -> None:
    assert game.labels == ("a", "b", "c")
    np.testing.assert_allclose(game.preferences[0, 1:], [2.5 / 4, 0.75])
    assert game.preferences[1, 2] == 0.75
    np.testing.assert_array_equal(game.counts, [[0, 4, 1], [4, 0, 8], [1, 8, 0]])


def test_records_of_every_shape_in_any_order() -> None:
    check_rows(MatrixGame.from_comparisons(ROWS))
    check_rows(MatrixGame.from_comparisons(reversed(ROWS)))


def test_records_from_files(tmp_path: Path) -> None:
    lines = "\n\n".join(json.dumps(row) for row in ROWS)
    check_rows(MatrixGame.from_comparisons(write(tmp_path / "rows.jsonl", "\ufeff" + lines + "\n")))
    table = (
        "winner,loser,tie,weight,a,b,p_a\nb,a,,,,,\na,b,,2,,,\na,b,true,,,,\n,,,,c,a,0.25\n,,,8,b,c,0.75\n"
    )
    check_rows(MatrixGame.from_comparisons(str(write(tmp_path / "rows.csv", table))))


def test_jsonl_lines_end_at_newlines_only(tmp_path: Path) -> None:
    row = '{"winner": "a\u2028b", "loser": "c"}'
    assert MatrixGame.from_comparisons(write(tmp_path / "r.jsonl", row)).labels == ("a\u2028b", "c")


def test_tuples_with_weights_and_prior() -> None:
    game = MatrixGame.from_comparisons([("x", "y"), ("y", "x", 3), ("y", "z")], prior=0.5)
    assert game.counts is not None
    assert game.preferences[0, 1] == pytest.approx(1.5 / 5)
    assert (game.preferences[0, 2], game.counts[0, 2]) == (0.5, 1.0)
    with pytest.raises(ValueError, match=r"\('x', 'z'\)"):
        MatrixGame.from_comparisons([("x", "y"), ("y", "x", 3), ("y", "z")])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("a",), r"\('a',\) is not a comparison"),
        ("ab", "'ab' is not a comparison"),
        (7, "7 is not a comparison"),
        (("a", "a"), "'winner' and 'loser' are both 'a'"),
        (("a", "b", 0), "field 'weight' = 0 must be finite and > 0"),
        (("a", "b", float("inf")), "field 'weight' = inf"),
        (("a", "b", "many"), "field 'weight' is 'many'; it needs a number"),
        ({"winner": "a"}, "field 'loser' is missing"),
        ({"winner": "a", "loser": None}, "field 'loser' is None"),
        ({"winner": "a", "loser": " "}, "field 'loser' is ' '"),
        ({"winner": "a", "loser": "b", "tie": "perhaps"}, "field 'tie' is 'perhaps'"),
        ({"a": "x", "b": "y"}, "field 'p_a' is missing"),
        ({"a": "x", "b": "y", "p_a": 1.5}, r"field 'p_a' = 1.5 is not a fraction"),
        ({"a": "x", "b": "y", "p_a": float("nan")}, r"field 'p_a' = nan is not a fraction"),
        ({"winner": "a", "loser": "b", "a": "x"}, "are not a comparison"),
        ({"best": "a"}, r"fields \['best'\] are not a comparison"),
    ],
)
def test_bad_records(row: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"record 1: .*{message}"):
        MatrixGame.from_comparisons([("a", "b"), row])
    if isinstance(row, dict):
        path = write(tmp_path / "r.jsonl", '{"winner": "a", "loser": "b"}\n' + json.dumps(row))
        with pytest.raises(ValueError, match=rf"r\.jsonl, line 2: .*{message}"):
            MatrixGame.from_comparisons(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.jsonl", "", r"r\.jsonl: no comparisons"),
        ("r.csv", "", r"r\.csv: the file is empty"),
        ("r.csv", "winner,loser\n", r"r\.csv: no comparisons"),
        ("r.csv", "winner,loser\na,b\na\n", r"r\.csv, line 3: 1 cells; the header has 2"),
        ("r.csv", "winner,loser\na,\n", r"r\.csv, line 2: field 'loser' is missing"),
        ("r.csv", 'winner,loser\n"a,b\n', r"r\.csv, line 2: not CSV"),
        ("r.jsonl", '{"winner": "a", "loser": "b"}\n{"winner"', r"r\.jsonl, line 2: not a JSON object"),
        ("r.jsonl", b"\x00\x01\x02", r"r\.jsonl: contains NUL"),
        ("r.jsonl", b"\x1f\x8b\x08", r"r\.jsonl: not UTF-8 text \(byte 1\)"),
    ],
)
def test_bad_record_files(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MatrixGame.from_comparisons(write(tmp_path / name, content))


def test_no_records() -> None:
    with pytest.raises(ValueError, match="records: no comparisons"):
        MatrixGame.from_comparisons([])


# --- labelled matrices ---

GOOD = "row_beats_col,a,b,c\na,0.5,0.7,0.2\nb,0.3,0.5,0.6\nc,0.8,0.4,0.5\n"
GOOD_COUNTS = "n,c,a,b\nc,0,5,7\na,5,0,9\nb,7,9,0\n"


def test_csv_in_any_order_of_rows(tmp_path: Path) -> None:
    header, *rows = GOOD.splitlines()
    game = MatrixGame.from_csv(write(tmp_path / "m.csv", GOOD))
    mixed = "\r\n".join(["\ufeff" + header, "", rows[2], rows[0].replace(",", " , "), rows[1]])
    other = MatrixGame.from_csv(str(write(tmp_path / "o.csv", mixed)))
    assert game.labels == other.labels == ("a", "b", "c")
    np.testing.assert_allclose(
        game.preferences, [[0.5, 0.7, 0.2], [0.3, 0.5, 0.6], [0.8, 0.4, 0.5]], atol=1e-16
    )
    np.testing.assert_array_equal(game.preferences, other.preferences)
    assert game.counts is None


def test_counts_beside_the_csv_follow_its_order(tmp_path: Path) -> None:
    game = MatrixGame.from_csv(write(tmp_path / "m.csv", GOOD), counts=write(tmp_path / "n.csv", GOOD_COUNTS))
    np.testing.assert_array_equal(game.counts, [[0, 9, 5], [9, 0, 7], [5, 7, 0]])


def test_six_decimals_are_forgiven_and_more_is_on_request(tmp_path: Path) -> None:
    rounded = write(tmp_path / "m.csv", "x,a,b\na,0.5,0.333333\nb,0.666666,0.5\n")
    game = MatrixGame.from_csv(rounded)
    assert game.preferences[0, 1] == pytest.approx(0.3333335, abs=1e-15)
    biased = write(tmp_path / "b.csv", "x,a,b\na,0.5,0.33333\nb,0.66666,0.5\n")
    with pytest.raises(
        ValueError, match=r"b\.csv, line 2, column 'b': 0.33333 and, .* on line 3, 0.66666 sum to 0.99999"
    ):
        MatrixGame.from_csv(biased)
    game = MatrixGame.from_csv(biased, symmetrise=True)
    np.testing.assert_array_equal(game.preferences + game.preferences.T, 1.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("\n , \n", "the file is empty"),
        (b"PK\x03\x04\x00\x00", "contains NUL"),
        (b"\x89PNG\r\n", r"not UTF-8 text \(byte 0\)"),
        ("x\n0.5\n", "the header has one cell"),
        ("x;a;b\na;0.5;0.5\n", "the header has one cell"),
        (GOOD.replace("a,b,c\n", "a,b,a\n"), "header: column 'a' is repeated"),
        (GOOD.replace("a,b,c\n", "a,,c\n"), "header: column 2 has no name"),
        (GOOD.replace("\nc,", "\nb,"), r"line 4: row 'b' is repeated \(first on line 3\)"),
        (
            GOOD.replace("\nc,", "\nd,"),
            r"the rows are not the columns: they lack \['c'\] and have \['d'\] besides",
        ),
        (GOOD.replace("c,0.8,0.4,0.5\n", ""), r"the rows are not the columns: they lack \['c'\]"),
        (GOOD.replace("0.3,0.5,0.6", "0.3,0.5"), "line 3: 3 cells; the header has 4"),
        (GOOD.replace("0.3,0.5,0.6", "0.3,0.5,0.6,"), "line 3: 5 cells; the header has 4"),
        (GOOD.replace("0.3,0.5,0.6", "0.3,0.5,high"), "line 3, column 'c': 'high' is not a finite number"),
        (GOOD.replace("0.3,0.5,0.6", "0.3,0.5,"), "line 3, column 'c': '' is not a finite number"),
        (GOOD.replace("0.3,0.5,0.6", "nan,0.5,0.6"), "line 3, column 'a': 'nan' is not a finite number"),
        (GOOD.replace("0.3,0.5,0.6", "inf,0.5,0.6"), "line 3, column 'a': 'inf' is not a finite number"),
        (
            GOOD.replace("0.3,0.5,0.6", "-0.3,0.5,0.6"),
            r"line 3, column 'a': -0.3 is not a probability in \[0, 1\]",
        ),
        (
            GOOD.replace("0.3,0.5,0.6", "30,0.5,0.6"),
            "line 3, column 'a': 30 is not a probability .*from_counts",
        ),
        (
            GOOD.replace("0.3,0.5,0.6", "0.4,0.5,0.6"),
            "line 2, column 'b': 0.7 and, .* on line 3, 0.4 sum to 1.1",
        ),
        (GOOD.replace("0.3,0.5,0.6", "0.3,0.4,0.6"), "line 3, column 'b': 0.4; the diagonal must be 1/2"),
    ],
)
def test_bad_csv(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=rf"m\.csv.*{message}") as caught:
        MatrixGame.from_csv(write(tmp_path / "m.csv", content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD_COUNTS.replace("5,0,9", "4,0,9"), "line 2, column 'a': 5 comparisons and, .* on line 3, 4"),
        (GOOD_COUNTS.replace("9", "-9"), "line 3, column 'b': -9 comparisons; must be ≥ 0"),
        ("n,a,b\na,0,1\nb,1,0\n", r"the names are not those of the preferences: they lack \['c'\]"),
    ],
)
def test_bad_counts_beside_the_csv(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"n\.csv.*{message}"):
        MatrixGame.from_csv(write(tmp_path / "m.csv", GOOD), counts=write(tmp_path / "n.csv", content))


def test_a_directory_and_a_file_that_is_not_there(tmp_path: Path) -> None:
    for read in (MatrixGame.from_csv, MatrixGame.from_comparisons):
        with pytest.raises(ValueError, match="is a directory"):
            read(tmp_path)
        with pytest.raises(FileNotFoundError, match="absent"):
            read(tmp_path / "absent.csv")
