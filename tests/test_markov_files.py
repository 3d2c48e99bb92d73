"""Game files: what is saved is what is loaded, and what cannot be a game is refused with file and place."""

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nashpref as npf
from nashpref.games import files

MarkovGame, zoo = npf.MarkovGame, npf.zoo
rng = np.random.default_rng


def layered(s, a):
    return [(0.5, s + a), (0.5, s + a + "?")]


GAMES = {
    "dialogue": zoo.dialogue,
    "lost": lambda: zoo.dialogue(lost=0.3),
    "penney": zoo.penneys_game,
    "one step": lambda: MarkovGame.from_matrix(zoo.comal()),
    "dense": lambda: zoo.random_markov_game(5, 3, 4, rng(0)),
    "dense, stationary": lambda: zoo.random_markov_game(5, 3, 4, rng(0), stationary=True),
    "dense, terminal": lambda: zoo.random_markov_game(5, 3, 4, rng(0), terminal=True),
    "sparse": lambda: zoo.random_markov_game(6, 2, 4, rng(0), branching=2),
    "sparse, stationary": lambda: zoo.random_markov_game(6, 2, 4, rng(0), branching=2, stationary=True),
    "starts": lambda: zoo.random_markov_game(7, 2, 3, rng(0), starts=4),
    "gridworld": lambda: zoo.gridworld(12, 4, 5, rng(0)),
    "corner": lambda: zoo.gridworld(40, 2, 3, rng(0), slip=0.0, features=2, terminal=True, initial=7),
    "layers": lambda: MarkovGame.from_model(
        layered,
        lambda x, y: 0.5 + 0.1 * (len(x[0]) - len(y[0])) / 3,
        "",
        actions="ab",
        horizon=2,
        every_step=True,
    ),
}


def same(one, other):
    assert one.digest == other.digest
    assert (one.horizon, one.policy_shape, one.terminal) == (
        other.horizon,
        other.policy_shape,
        other.terminal,
    )
    assert (one.state_labels, one.action_labels) == (other.state_labels, other.action_labels)
    for mine, theirs in zip(one.payoffs, other.payoffs, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert [type(T) for T in one.transitions] == [type(T) for T in other.transitions]


@pytest.mark.parametrize("suffix", ["npz", "json"])
@pytest.mark.parametrize("name", GAMES)
def test_load_returns_the_game_that_was_saved(name, suffix, tmp_path):
    game, path = GAMES[name](), tmp_path / f"game.{suffix}"
    game.save(path)
    same(MarkovGame.load(path), game)
    first = path.read_bytes()
    MarkovGame.load(str(path)).save(path)
    if suffix == "json":
        assert path.read_bytes() == first
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@settings(max_examples=60)
@given(data=st.data())
def test_preferences_survive_to_the_last_bit(data):
    n = data.draw(st.integers(2, 5))
    upper = data.draw(st.lists(st.floats(0.0, 1.0), min_size=n * n, max_size=n * n))
    off = data.draw(st.floats(-5e-9, 5e-9))
    P = np.triu(np.reshape(upper, (n, n)), 1)
    P = np.clip(P + np.tril(1.0 - P.T + off, -1) + 0.5 * np.eye(n), 0.0, 1.0)
    payoffs = (P - P.T) / 2.0
    restored = files._uncentred(payoffs)
    np.testing.assert_array_equal((restored - restored.T) / 2.0, payoffs)
    assert restored.min() >= 0.0
    assert restored.max() <= 1.0


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), starts=st.integers(2, 30))
def test_the_distribution_of_initial_states_survives_to_the_last_bit(seed, starts, tmp_path_factory):
    game = zoo.random_markov_game(30, 1, 1, rng(seed), starts=starts, terminal=True)
    path = tmp_path_factory.mktemp("starts") / "game.npz"
    game.save(path)
    np.testing.assert_array_equal(MarkovGame.load(path).initial_weights, game.initial_weights)


def test_what_is_the_same_at_every_step_is_written_once(tmp_path):
    def shapes(game):
        game.save(tmp_path / "game.npz")
        with np.load(tmp_path / "game.npz") as archive:
            return archive["transition"].shape, archive["preference"].shape

    assert shapes(GAMES["dense"]()) == ((4, 5, 3, 5), (4, 5, 3, 5, 3))
    assert shapes(GAMES["dense, stationary"]()) == ((5, 3, 5), (5, 3, 5, 3))
    (rows, columns), preference = shapes(GAMES["gridworld"]())
    assert (columns, preference) == (4, (12, 4, 12, 4))
    assert rows <= 5 * 12 * 4
    assert shapes(GAMES["sparse"]())[0][1] == 5


def test_json_can_be_read(tmp_path):
    zoo.token_game("ab", 1, [[0.5, 0.9], [0.1, 0.5]]).save(tmp_path / "game.json")
    assert (
        (tmp_path / "game.json").read_text(encoding="utf-8")
        == """{
  "format": "nashpref-game",
  "version": 1,
  "horizon": 1,
  "states": 2,
  "actions": 2,
  "state_labels": [[""], ["a", "b"]],
  "action_labels": ["a", "b"],
  "initial": 0,
  "transition": [
    [0, 0, 0, 1],
    [0, 1, 1, 1]
  ],
  "preference": [
    [0.5, 0.9],
    [0.1, 0.5]
  ]
}
"""
    )


def test_a_saved_game_plays_as_before(tmp_path):
    game = GAMES["lost"]()
    game.save(tmp_path / "game.json")
    one = npf.solve(game, npf.OMPO(), 50)
    other = npf.solve(MarkovGame.load(tmp_path / "game.json"), npf.OMPO(), 100, resume=one)
    np.testing.assert_array_equal(other.policy, npf.solve(game, npf.OMPO(), 100).policy)


# --- written by hand ---

HEAD = {"format": "nashpref-game", "version": 1}
HALF, CYCLE = [[0.5, 0.5], [0.5, 0.5]], [[0.5, 0.1, 0.8], [0.9, 0.5, 0.1], [0.2, 0.9, 0.5]]


def written(path, fields):
    path.write_text(fields if isinstance(fields, str) else json.dumps(fields), encoding="utf-8")
    return path


def test_a_tree_by_hand(tmp_path):
    tree = {"a": {"so": {"c": None, "d": None}}, "b": "end"}
    game = MarkovGame.load(written(tmp_path / "g.json", {**HEAD, "tree": tree, "preference": CYCLE}))
    same(game, MarkovGame.from_tree(tree, CYCLE))


SPARSE = {
    **HEAD,
    "horizon": 2,
    "states": 3,
    "actions": 2,
    "initial": 1,
    "transition": [[0, 1, 0, 0, 1], [0, 1, 1, 2, 0.25], [0, 1, 1, 0, 0.75]]
    + [[1, s, a, k, 0.5] for s in (0, 2) for a in (0, 1) for k in (s, 1)],
    "preference": CYCLE,
}
DENSE = {
    **HEAD,
    "horizon": 3,
    "states": 2,
    "actions": 2,
    "initial": [0.5, 0.5],
    "transition": [[[1, 0], [0.5, 0.5]], [[0, 1], [0.5, 0.5]]],
    "preference": [
        [[[0.5, 0.6], [0.7, 0.8]], [[0.4, 0.5], [0.1, 0.2]]],
        [[[0.3, 0.9], [0.5, 0.5]], [[0.2, 0.8], [0.5, 0.5]]],
    ],
    "state_labels": [["x", 1], ["x", ["y", 2]], ["x", "y"], ["x", "y"]],
    "action_labels": ["go", "stay"],
}


def test_sparse_rows_by_hand(tmp_path):
    game = MarkovGame.load(written(tmp_path / "g.json", SPARSE))
    T = np.zeros((2, 3, 2, 3))
    T[:, :, :, 0] = 1.0
    T[0, 1] = [[1, 0, 0], [0.75, 0, 0.25]]
    T[1, 0], T[1, 2] = [0.5, 0.5, 0], [0, 0.5, 0.5]
    expected = MarkovGame(T, CYCLE, 1)
    assert [list(states) for states in game.reached] == [[1], [0, 2], [0, 1, 2]]
    for h in range(2):
        np.testing.assert_array_equal(game.transitions[h].toarray(), expected.transitions[h])
    np.testing.assert_array_equal(game.payoffs[0], expected.payoffs[0])


def test_a_dense_file_by_hand(tmp_path):
    game = MarkovGame.load(written(tmp_path / "g.json", DENSE))
    arrays = (np.array(DENSE[name], dtype=float) for name in ("transition", "preference", "initial"))
    labels = (("x", 1), ("x", ("y", 2)), ("x", "y"), ("x", "y"))
    same(game, MarkovGame(*arrays, horizon=3, state_labels=labels, action_labels=("go", "stay")))


# --- what is no game ---


def changed(base, *path, to):
    fields = json.loads(json.dumps(base))
    inner = fields
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return fields


def without(base, name):
    return {key: value for key, value in base.items() if key != name}


BAD = {
    "empty": ("", "line 1, column 1"),
    "cut off": (json.dumps(DENSE)[:-9], "line 1, column"),
    "a list": ([1], "object"),
    "nested": ("[" * 100_000, "nested too deeply"),
    "comparisons": ({"winner": "a", "loser": "b"}, "not a game .*no format"),
    "another format": ({"format": "nashpref-trace", "version": 2}, "format 'nashpref-trace'"),
    "a later version": ({**DENSE, "version": 2}, "game format 2; this nashpref reads 1"),
    "no transition": (without(DENSE, "transition"), "there is no 'transition'"),
    "no horizon": (without(DENSE, "horizon"), "there is no 'horizon'"),
    "a slip of the pen": ({**DENSE, "initail": 0}, "'initail' is not known"),
    "a tree and a transition": (
        {**HEAD, "tree": {"a": None}, "preference": [[0.5]], "transition": []},
        "'transition' is not known",
    ),
    "a tree without preference": ({**HEAD, "tree": {"a": None}}, "there is no 'preference'"),
    "a tree that is none": ({**HEAD, "tree": [1], "preference": [[0.5]]}, "tree: it must be an object"),
    "a ragged tree": (
        {**HEAD, "tree": {"a": {"c": 1}, "b": 2, "c": {"d": 1, "e": 2}}, "preference": HALF},
        "'c' has 2 replies",
    ),
    "twice": ('{"tree": {"a": null, "b": null, "a": null}}', "'a' stands twice"),
    "H = 0": ({**DENSE, "horizon": 0}, "horizon = 0"),
    "H is true": ({**DENSE, "horizon": True}, "horizon = True"),
    "half a state": ({**DENSE, "states": 1.5}, "states = 1.5"),
    "words": (changed(DENSE, "preference", 0, 0, 0, 0, to="even"), "preference: numbers are needed"),
    "ragged": (changed(DENSE, "transition", 0, to=[[1, 0]]), "transition: numbers .* equal length"),
    "an object": (changed(DENSE, "transition", to={"0": 1}), "transition: numbers"),
    "beyond floats": (changed(DENSE, "initial", to=[10**400, 0]), "initial: numbers"),
    "row sum": (changed(DENSE, "transition", 1, 0, to=[0.5, 0.4]), r"h=0, s=1, a=0\] sums to 0.9"),
    "negative": (changed(DENSE, "transition", 1, 0, to=[1.5, -0.5]), r"s=1, a=0, s'=1\] = -0.5"),
    "nan": (changed(DENSE, "transition", 1, 0, to=[float("nan"), 1]), "not finite"),
    "not skew": (
        changed(DENSE, "preference", 0, 1, 0, 0, to=0.9),
        r"s=0, a=1, s'=0, a'=0|s=0, a=0, s'=0, a'=1",
    ),
    "no probability": (changed(DENSE, "preference", 0, 1, 0, 0, to=1.9), r"\[s=0, a=1, s'=0, a'=0\] = 1.9"),
    "shapes": ({**DENSE, "states": 3}, r"preference has shape \(2, 2, 2, 2\)"),
    "shape of the transition": ({**SPARSE, "transition": [[[1, 0, 0]]]}, r"transition has shape \(1, 1, 3\)"),
    "another horizon": (
        {**DENSE, "transition": [DENSE["transition"]] * 2},
        r"transition has shape \(2, 2, 2, 2\)",
    ),
    "no such initial state": ({**DENSE, "initial": 2}, "initial = 2"),
    "half an initial state": ({**DENSE, "initial": 0.5}, "initial = 0.5"),
    "initial distribution": ({**DENSE, "initial": [0.5, 0.4]}, "initial sums to 0.9"),
    "unspoken": ({**SPARSE, "initial": 0}, "h=0, s=0 can be reached, but no row"),
    "unspoken later": ({**SPARSE, "transition": SPARSE["transition"][:-4]}, "h=1, s=2 can be reached"),
    "half spoken": ({**SPARSE, "transition": SPARSE["transition"][:-2]}, r"h=1, s=2, a=1\] sums to 0"),
    "row of six": ({**SPARSE, "transition": [[0] * 6]}, "a row has 6 numbers"),
    "no such action": (changed(SPARSE, "transition", 1, 2, to=2), "row 1 has a = 2; .* 0 … 1"),
    "no such state": (changed(SPARSE, "transition", 1, 3, to=3), "row 1 has s' = 3"),
    "no such step": (changed(SPARSE, "transition", 1, 0, to=-1), "row 1 has h = -1"),
    "half a step": (changed(SPARSE, "transition", 1, 0, to=0.5), "row 1 has h = 0.5"),
    "sparse row sum": (changed(SPARSE, "transition", 1, 4, to=0.5), r"h=0, s=1, a=1\] sums to 1.25"),
    "labels": ({**DENSE, "state_labels": [["x"]]}, "state_labels: 4 sequences"),
    "labels that are no list": ({**DENSE, "state_labels": 3}, "state_labels = 3: a list"),
    "labels that are no lists": ({**DENSE, "state_labels": [1, 2]}, "state_labels: a list for each step"),
    "action labels": ({**DENSE, "action_labels": ["a", "a"]}, "action_labels: 2 distinct"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_game_is_refused_with_its_file_and_place(case, tmp_path):
    fields, message = BAD[case]
    path = written(tmp_path / "game.json", fields)
    with pytest.raises(ValueError, match=message) as error:
        MarkovGame.load(path)
    assert str(error.value).startswith(f"{path}: ")


def test_files_that_cannot_be_read_or_written(tmp_path):
    for name in ("absent.npz", "absent.json"):
        with pytest.raises(ValueError, match=rf"{name}: No such file"):
            MarkovGame.load(tmp_path / name)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ValueError, match="Is a directory"):
        MarkovGame.load(tmp_path / "folder.json")
    (tmp_path / "latin.json").write_bytes(b'{"tree": "\xe4"}')
    with pytest.raises(ValueError, match="no text in UTF-8"):
        MarkovGame.load(tmp_path / "latin.json")
    with pytest.raises(ValueError, match=r"game\.txt: a Markov game is saved as \.npz or \.json"):
        zoo.dialogue().save(tmp_path / "game.txt")
    with pytest.raises(OSError, match="nowhere"):
        zoo.dialogue().save(tmp_path / "nowhere" / "game.json")


def test_a_trace_is_no_game_and_a_game_no_trace(tmp_path):
    npf.solve(zoo.comal(), npf.OGDA(), 3).save(tmp_path / "trace.npz")
    with pytest.raises(ValueError, match=r"trace\.npz: not a game .*'nashpref-trace'"):
        MarkovGame.load(tmp_path / "trace.npz")
    zoo.dialogue().save(tmp_path / "game.npz")
    with pytest.raises(ValueError, match="not a trace"):
        npf.Trace.load(tmp_path / "game.npz")
    np.savez(tmp_path / "bare.npz", transition=np.ones((1, 1, 1)))
    with pytest.raises(ValueError, match=r"bare\.npz: not a game saved by nashpref, or damaged"):
        MarkovGame.load(tmp_path / "bare.npz")


def test_no_bit_of_an_archive_can_flip_unnoticed(tmp_path):
    game, path = GAMES["starts"](), tmp_path / "game.npz"
    game.save(path)
    whole, chance = path.read_bytes(), random.Random(0)
    refused = 0
    for place in [chance.randrange(len(whole)) for _ in range(300)]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            loaded = MarkovGame.load(path)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017
            refused += 1
        else:
            same(loaded, game)
    assert refused > 250
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="or damaged"):
            MarkovGame.load(path)


def test_pickles_are_not_opened(tmp_path):
    path = tmp_path / "game.npz"
    np.savez(path, metadata=np.array(json.dumps(HEAD)), transition=np.array([{"a": print}], dtype=object))
    with pytest.raises(ValueError, match="or damaged"):
        MarkovGame.load(path)


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "game.npz"
    zoo.dialogue().save(path)
    before = path.read_bytes()

    def full(file, **_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        zoo.penneys_game().save(path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_labels_that_no_file_can_hold_are_named(tmp_path):
    game = MarkovGame.from_model(
        lambda s, a: [(1.0, s | {a})], lambda x, y: 0.5, frozenset(), actions=(1, 2), horizon=1
    )
    with pytest.raises(ValueError, match=r"state label frozenset\(\).* label the states with str"):
        game.save(tmp_path / "game.json")
    assert not list(tmp_path.iterdir())
    numbered = MarkovGame.from_model(
        lambda s, a: [(1.0, np.int64(s + a))], lambda x, y: 0.5, 0, actions=(1, 2), horizon=1
    )
    numbered.save(tmp_path / "game.json")
    assert MarkovGame.load(tmp_path / "game.json").state_labels == ((0,), (1, 2))
