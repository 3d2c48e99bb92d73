"""The command on Markov games: `solve` of a game file, `zoo`; one line and nothing written on bad input."""

import json

import numpy as np
import pytest

import nashpref as npf
from nashpref.cli import main
from nashpref.games import examples
from nashpref.named_rules import RULES


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    npf.zoo.dialogue().save("dialogue.json")
    npf.zoo.random_markov_game(4, 2, 3, np.random.default_rng(0), starts=2).save("steps.npz")
    return tmp_path


@pytest.fixture
def nashpref(folder, capsys):
    def run(line):
        try:
            code = main(line.split())
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


OPTIONS = {"mnpo": "--eta 0.3", "mpo": "--eta 0.3", "mwu": "--eta 0.3", "ogda": "", "onpo": "", "ompo": ""}


@pytest.mark.parametrize("name", RULES)
def test_every_rule_solves_a_game_file_in_both_geometries(folder, nashpref, name):
    options = OPTIONS.get(name, "--beta 0.5")
    for geometry in ("", "--geometry occupancy", "--geometry per-state"):
        code, out, err = nashpref(f"solve steps.npz --rule {name} {options} --steps 20 {geometry}")
        assert (code, err) == (0, "")
        assert out.startswith(RULES[name].__name__)


def test_solve_prints_gaps_and_the_policy_of_each_state(folder, nashpref):
    code, out, _ = nashpref("solve dialogue.json --rule ompo --eta 2 --steps 3000 --out t.npz")
    assert code == 0
    trace = npf.solve(npf.zoo.dialogue(), npf.OMPO(eta=2), 3000)
    np.testing.assert_allclose(npf.Trace.load("t.npz").policy, trace.policy, atol=1e-12)
    assert (
        f"duality gap: last iterate {trace.gap[-1]:.3e}, average iterate {trace.average_gap[-1]:.3e}" in out
    )
    table = out.split("\n\n")[1].splitlines()
    assert table[0].split() == ["h", "state", "reached", "action", "last", "iterate", "average", "iterate"]
    last, mean = trace.policy, trace.average_policy
    first = [row.split()[-3:] for row in table[1:4]]
    for a, name in enumerate(("ask", "explain", "fix")):
        assert first[a] == [name, f"{last[0, 0, a]:.3f}", f"{mean[0, 0, a]:.3f}"]
    (fixed,) = (row for row in table if "It works! But why?" in row)
    assert fixed.startswith("1  My code is slow. › fix › It works! But why?")
    assert fixed.split()[-4:] == [
        f"{last[0, 0, 2]:.3f}",
        "ask",
        f"{last[1, 2, 0]:.3f}",
        f"{mean[1, 2, 0]:.3f}",
    ]
    assert not any(row.split()[-2:] == ["0.000", "0.000"] for row in table)
    assert f"{mean[1, 0, 0]:.3f} {last[1, 0, 0]:.3f}" == "0.000 0.000"  # to ask again, after asking
    assert len([row for row in table if "The double loop." in row]) == 1
    assert "wrote t.npz" in out


def test_the_states_reached_most_are_shown_from_each_start(folder, nashpref):
    code, out, _ = nashpref("solve steps.npz --rule mpo --eta 0.3 --steps 5 --top 3")
    assert code == 0
    game = npf.MarkovGame.load("steps.npz")
    trace = npf.solve(game, npf.MPO(eta=0.3), 5)
    mass = game.initial_weights[:, None, None] * npf.occupancy(game, trace.policy).sum(axis=-1)
    shown = [row.split() for row in out.splitlines() if len(row.split()) == 7]
    best = sorted(np.argsort(-mass, axis=None)[:3])
    expected = []
    for start, h, s in zip(*np.unravel_index(best, mass.shape), strict=True):
        expected.append([str(h), str(start), str(s), f"{mass[start, h, s]:.3f}"])
    assert [row[:4] for row in shown] == expected
    assert f"… and {(mass > 0).sum() - 3} more states (--top)" in out


def test_replies_of_a_tree_are_shown_by_their_words(folder, nashpref):
    tree = {"hello": {"user: hm": {"sorry": None, "so?": None}}, "hi": {"bye": None, "ciao": None}}
    P = npf.zoo.random_preferences(4, np.random.default_rng(0)).preferences.tolist()
    game = {"format": "nashpref-game", "version": 1, "tree": tree, "preference": P}
    (folder / "tree.json").write_text(json.dumps(game), encoding="utf-8")
    code, out, _ = nashpref("solve tree.json --rule mtpo --beta 0.2 --steps 50")
    assert code == 0
    said = {row.split()[-3] for row in out.split("\n\n")[1].splitlines()[1:]}
    assert said == {"hello", "hi", "hm", "sorry", "so?", "bye", "ciao", "(stays)"}
    (user,) = (row for row in out.splitlines() if row.startswith("1  hello "))
    assert user.split()[-2:] == ["1.000", "1.000"]  # both actions lead there
    assert "(start)" in out


def test_resume_goes_on_in_the_same_geometry_only(folder, nashpref):
    call = "solve dialogue.json --rule ogda --eta 1"
    assert nashpref(f"{call} --geometry per-state --steps 20 --out a.npz")[0] == 0
    assert nashpref(f"{call} --geometry per-state --steps 40 --resume a.npz --out b.npz")[0] == 0
    whole = npf.solve(npf.zoo.dialogue(), npf.OGDA(eta=1.0), 40, geometry="per-state")
    np.testing.assert_array_equal(npf.Trace.load("b.npz").policy, whole.policy)
    code, _, err = nashpref(f"{call} --steps 40 --resume a.npz")
    assert code == 2
    assert "another game, reference, rule or geometry" in err


def test_csv_and_figure(folder, nashpref):
    code, out, err = nashpref("solve steps.npz --rule mtpo --beta 0.1 --steps 30 --csv t.csv --figure t.png")
    assert (code, err) == (0, "")
    assert "gap (β = 0.1)" in out
    assert "gap in the original game" in out
    assert len((folder / "t.csv").read_text(encoding="utf-8").splitlines()) == 32
    assert (folder / "t.png").read_bytes().startswith(b"\x89PNG")


# --- zoo ---


def test_zoo_lists_its_games(folder, nashpref):
    code, out, _ = nashpref("zoo --list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == list(examples.EXAMPLES)
    assert nashpref("zoo")[1] == out


@pytest.mark.parametrize("name", examples.EXAMPLES)
def test_zoo_writes_a_game_that_solve_reads(folder, nashpref, name):
    markov = name in examples.MARKOV
    for suffix in ("json", "npz") if markov else ("csv",):
        code, out, err = nashpref(f"zoo {name} --out g.{suffix} --seed 7")
        assert (code, err) == (0, "")
        assert f"wrote g.{suffix}" in out
        game = examples.make(name, 7)
        if markov:
            assert npf.MarkovGame.load(f"g.{suffix}").digest == game.digest
        else:
            read = npf.MatrixGame.from_csv(f"g.{suffix}")
            np.testing.assert_allclose(read.preferences, game.preferences, atol=1e-15)
            assert game.labels in (None, read.labels)
        assert nashpref(f"solve g.{suffix} --rule ompo --steps 5")[0] == 0


def test_zoo_names_its_file_after_the_game(folder, nashpref):
    for name, file in (("penney", "penney.json"), ("comal", "comal.csv")):
        assert nashpref(f"zoo {name}")[0] == 0
        assert (folder / file).exists()
    code, _, err = nashpref("zoo penney")
    assert code == 2
    assert "exists already" in err
    assert nashpref("zoo penney --force")[0] == 0


# --- bad input ---


def broken(**changes):
    fields = {
        "format": "nashpref-game",
        "version": 1,
        "horizon": 2,
        "states": 2,
        "actions": 2,
        "initial": 0,
        "transition": [[[1, 0], [0.5, 0.5]], [[0, 1], [0.5, 0.5]]],
        "preference": [[0.5, 0.7], [0.3, 0.5]],
    }
    return json.dumps({**fields, **changes})


BAD_FILES = {
    "rows.json": (
        broken(transition=[[[1, 0], [0.5, 0.4]], [[0, 1], [0.5, 0.5]]]),
        "h=0, s=0, a=1] sums to 0.9",
    ),
    "skew.json": (broken(preference=[[0.5, 0.7], [0.4, 0.5]]), "x=0, x'=1"),
    "shapes.json": (broken(states=3), "preference has shape (2, 2)"),
    "nowhere.json": (broken(initial=2), "initial = 2: there is no such state"),
    "unreachable.json": (broken(transition=[[1, 0, 1, 1.0], [1, 1, 1, 1.0]]), "h=0, s=0 can be reached"),
    "steps.json": (broken(horizon=0), "horizon = 0"),
    "format.json": (broken(format="openspiel"), "format 'openspiel'"),
    "version.json": (broken(version=9), "game format 9; this nashpref reads 1"),
    "text.json": ("hello", "line 1, column 1"),
    "text.npz": ("hello", "not a game saved by nashpref, or damaged"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_game_file_is_one_line_and_exit_2(folder, nashpref, name):
    content, says = BAD_FILES[name]
    (folder / name).write_text(content, encoding="utf-8")
    before = sorted(folder.iterdir())
    code, out, err = nashpref(f"solve {name} --rule ompo --out out.npz --csv out.csv")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith(f"nashpref: {name}: ")
    assert says in err
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("solve missing.npz --rule ompo", "missing.npz: No such file"),
        ("solve dialogue.json --rule omppo", "did you mean 'ompo'"),
        ("solve dialogue.json --rule mpo", "pass eta"),
        ("solve dialogue.json --rule mtpo", "needs beta > 0"),
        ("solve dialogue.json --rule mtpo-tau --beta 0", "beta > 0"),
        ("solve dialogue.json --rule ompo --geometry euclidean", "invalid choice: 'euclidean'"),
        ("solve dialogue.json --rule ompo --beta 0.1 --geometry weighted-occupancy", "weighted geometry"),
        ("solve dialogue.json --rule ompo --counts steps.npz", "--counts does not belong"),
        ("solve dialogue.json --rule ompo --symmetrise", "--symmetrise does not belong"),
        ("solve dialogue.json --rule ompo --prior 1", "--prior does not belong"),
        ("solve dialogue.json --rule ompo --missing half", "--missing does not belong"),
        ("solve dialogue.json --rule ompo --out dialogue.json", "exists already"),
        ("solve dialogue.json --rule ompo --resume steps.npz", "not a trace"),
        ("rank dialogue.json", "cannot be ranked"),
        ("zoo dialog", "did you mean 'dialogue'"),
        ("zoo dialogue --list", "--list"),
        ("zoo --out x.csv", "--list"),
        ("zoo comal --out comal.json", "saved as .csv"),
        ("zoo dialogue --out dialogue.csv", "saved as .json or .npz"),
        ("zoo dialogue --out nowhere/d.json", "no directory"),
        ("zoo random --seed x", "invalid int"),
        ("zoo random --seed -1", "--seed -1"),
    ],
)
def test_a_bad_call_is_one_line_and_exit_2(folder, nashpref, line, says):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    code, out, err = nashpref(line)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert says in err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_geometry_of_a_matrix_game_is_refused(folder, nashpref):
    npf.zoo.comal().to_csv("comal.csv")
    code, _, err = nashpref("solve comal.csv --rule ompo --geometry per-state")
    assert code == 2
    assert "a matrix game has only one" in err


def test_a_batch_has_no_csv(tmp_path):
    with pytest.raises(ValueError, match="a batch of 3"):
        npf.zoo.annotator_rankings().to_csv(tmp_path / "a.csv")
    assert not list(tmp_path.iterdir())
