"""`MatrixGame`: what it accepts, what it refuses and how it says so."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nashpref as npf
from nashpref.testing import policies, preference_batches, preference_games

RPS = [[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]]


def changed(entry: tuple[int, ...], value: float, base: Any = RPS) -> Any:
    P = np.array(base, dtype=float)
    P[entry] = value
    return P


BAD: dict[str, tuple[Any, str]] = {
    "vector": ([0.5, 0.5], r"square, \(n, n\), or a batch .* got shape \(2,\)"),
    "not square": (np.full((2, 3), 0.5), r"got shape \(2, 3\)"),
    "empty": (np.empty((0, 0)), r"got shape \(0, 0\)"),
    "empty batch": (np.empty((0, 2, 2)), r"got shape \(0, 2, 2\)"),
    "four axes": (np.full((1, 1, 2, 2), 0.5), r"got shape \(1, 1, 2, 2\)"),
    "nan": (changed((1, 2), np.nan), r"P\[1, 2\] = nan is not finite: every pair needs a probability"),
    "infinity": (changed((0, 1), np.inf), r"P\[0, 1\] = inf is not finite"),
    "opposite infinities": (
        changed((1, 0), -np.inf, changed((0, 1), np.inf)),
        r"P\[0, 1\] = inf is not finite",
    ),
    "above one": (changed((0, 1), 1.5), r"P\[0, 1\] = 1.5 is not a probability in \[0, 1\]"),
    "negative": (changed((0, 2), -0.25), r"P\[0, 2\] = -0.25 is not a probability"),
    "asymmetric": (
        changed((2, 1), 0.25),
        r"P\[1, 2\] = 1 and P\[2, 1\] = 0.25 sum to 1.25, not 1 \(worst entry\): for win counts use",
    ),
    "worst of two": (changed((2, 1), 0.25, changed((0, 1), 0.9)), r"P\[1, 2\] = 1 and P\[2, 1\] = 0.25"),
    "diagonal": (changed((1, 1), 0.75), r"P\[1, 1\] = 0.75: the diagonal must be 1/2"),
    "counts of wins": (np.array([[0, 7], [3, 0]]), r"P\[0, 1\] = 7.0 is not a probability"),
    "second of a batch": (
        np.stack([RPS, changed((2, 1), 0.25)]),
        r"P\[1, 1, 2\] = 1 and P\[1, 2, 1\] = 0.25 sum to 1.25",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_matrices(case: str) -> None:
    P, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        npf.MatrixGame(P)


def test_ragged_rows() -> None:
    with pytest.raises(ValueError, match="inhomogeneous"):
        npf.MatrixGame([[0.5, 1.0], [0.0]])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "b"], "2 labels for 3 responses"),
        (["a", "b", "a"], "label 'a' is repeated: labels must be distinct"),
    ],
)
def test_bad_labels(labels: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        npf.MatrixGame(RPS, labels=labels)


def test_bad_counts() -> None:
    with pytest.raises(ValueError, match=r"counts has shape \(2, 2\); the preferences have \(3, 3\)"):
        npf.MatrixGame(RPS, counts=np.ones((2, 2)))
    for value, message in (
        (-1.0, "is negative"),
        (np.inf, "is not finite"),
        (2.0, "differs from its transpose"),
    ):
        N = np.ones((3, 3))
        N[0, 2] = value
        with pytest.raises(ValueError, match=rf"counts\[0, 2\] = {value} {message}"):
            npf.MatrixGame(RPS, counts=N)


def test_the_tolerance_of_complementarity() -> None:
    game = npf.MatrixGame(changed((0, 1), 1.0 - 9e-9))
    np.testing.assert_array_equal(game.payoffs, -game.payoffs.T)  # exactly, whatever the input's rounding
    with pytest.raises(ValueError, match="worst entry"):
        npf.MatrixGame(changed((0, 1), 1.0 - 1.1e-8))


@settings(max_examples=60)
@given(game=st.one_of(preference_games(), preference_batches()))
def test_payoffs_are_skew_and_preferences_kept(game: npf.MatrixGame) -> None:
    A = game.payoffs
    np.testing.assert_array_equal(A, -np.swapaxes(A, -1, -2))
    np.testing.assert_allclose(A + 0.5, game.preferences, atol=1e-16)
    assert game.policy_shape == ((game.n,) if game.batch is None else (game.batch, game.n))


@settings(max_examples=60)
@given(game=st.one_of(preference_games(), preference_batches()), data=st.data())
def test_payoff_and_win_rate(game: npf.MatrixGame, data: st.DataObject) -> None:
    pi, other = data.draw(policies(game.policy_shape)), data.draw(policies(game.policy_shape, zeros=True))
    q = game.payoff(other)
    assert q.shape == game.policy_shape
    assert np.abs(q).max() <= 0.5
    np.testing.assert_allclose(np.sum(other * q, axis=-1), 0.0, atol=1e-15)
    expected = np.einsum("...i,...ij,...j->...", pi, game.preferences, other)
    np.testing.assert_allclose(game.win_rate(pi, other), expected, atol=1e-14)
    np.testing.assert_allclose(game.win_rate(pi, other), 1.0 - game.win_rate(other, pi), atol=1e-14)  # type: ignore[operator]
    assert isinstance(game.win_rate(pi, other), float) == (game.batch is None)


def test_arrays_are_private_copies_and_read_only() -> None:
    P, N = np.array(RPS), np.ones((3, 3))
    game = npf.MatrixGame(P, counts=N)
    P[0, 1], N[0, 1] = 0.0, 7.0
    assert game.preferences[0, 1] == 1.0
    assert game.counts is not None
    assert game.counts[0, 1] == 1.0
    for array in (game.preferences, game.payoffs, game.counts):
        with pytest.raises(ValueError, match="read-only"):
            array[0, 1] = 0.3


@pytest.mark.parametrize(
    "P",
    [
        np.array(RPS).T[::-1, ::-1],
        np.asfortranarray(RPS),
        np.array([[0.5, 1, 0], [0, 0.5, 1], [1, 0, 0.5]], dtype=np.float32),
        RPS,
    ],
    ids=["views", "fortran order", "float32", "lists"],
)
def test_any_layout_is_the_same_game(P: Any) -> None:
    game = npf.MatrixGame(P)
    assert game.preferences.dtype == np.float64
    np.testing.assert_allclose(game.payoff(np.array([1.0, 0.0, 0.0])), np.asarray(P)[:, 0] - 0.5)


def test_subnormal_and_integer_entries() -> None:
    tiny = 5e-324
    game = npf.MatrixGame([[0.5, tiny], [1.0, 0.5]])
    assert game.payoffs[1, 0] == 0.5
    with pytest.raises(ValueError, match="the diagonal must be 1/2"):
        npf.MatrixGame([[0, 1], [0, 0]])


def test_digest_tells_games_apart() -> None:
    assert npf.MatrixGame(RPS).digest == npf.MatrixGame(RPS, labels="abc").digest
    assert npf.MatrixGame(RPS).digest != npf.zoo.comal().digest


def test_repr() -> None:
    assert repr(npf.MatrixGame(RPS)) == "MatrixGame(n=3)"
    assert repr(npf.MatrixGame(RPS, labels="abc")) == "MatrixGame(n=3, labels=['a', 'b', 'c'])"
    assert repr(npf.MatrixGame([RPS, RPS])) == "MatrixGame(batch=2, n=3)"
    assert repr(npf.zoo.blockwise([npf.zoo.comal()] * 2)) == "MatrixGame(n=6)"


def test_constructors_build_the_same_game() -> None:
    wins = [[0, 3, 0], [0, 0, 3], [3, 0, 0]]
    records = [("a", "b", 3), ("b", "c", 3), ("c", "a", 3)]
    game = npf.MatrixGame.from_counts(wins, labels="abc")
    assert game.digest == npf.MatrixGame(RPS).digest == npf.MatrixGame.from_comparisons(records).digest
    assert game.counts is not None
    assert game.counts[0, 1] == 3.0


def test_from_csv(tmp_path: Any) -> None:
    path = tmp_path / "rps.csv"
    path.write_text(",a,b,c\na,0.5,1,0\nb,0,0.5,1\nc,1,0,0.5\n", encoding="utf-8")
    game = npf.MatrixGame.from_csv(path)
    assert game.labels == ("a", "b", "c")
    assert game.digest == npf.MatrixGame(RPS).digest
    counts = tmp_path / "counts.csv"
    counts.write_text(",a,b,c\na,0,4,4\nb,4,0,4\nc,4,4,0\n", encoding="utf-8")
    assert npf.MatrixGame.from_csv(path, counts=counts).counts is not None
