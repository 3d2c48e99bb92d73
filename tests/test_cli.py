"""The command as a user meets it: real processes, exit codes, one-line errors, nothing written on failure."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np
import pytest

import nashpref as npf
from nashpref.cli import main
from nashpref.experiments import EXPERIMENTS

GAME = """row_beats_col,rock,paper,scissors,well
rock,0.5,0.1,0.9,0.2
paper,0.9,0.5,0.1,0.8
scissors,0.1,0.9,0.5,0.3
well,0.8,0.2,0.7,0.5
"""


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def in_a_process(*arguments, cwd):
    command = [sys.executable, "-m", "nashpref.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "game.csv").write_text(GAME, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def nashpref(folder, capsys):
    """The command in this process, which spares a second of imports; `in_a_process` is the real thing."""

    def run(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return run


def test_solve_prints_the_result_and_writes_the_trace(folder, nashpref):
    arguments = ("--rule", "ogda", "--eta", 1.5, "--steps", 2000, "--out", "t.npz", "--csv", "t.csv")
    done = nashpref("solve", "game.csv", *arguments)
    assert done.returncode == 0, done.stderr
    assert "duality gap" in done.stdout
    trace = npf.Trace.load(folder / "t.npz")
    game = npf.MatrixGame.from_csv(folder / "game.csv")
    again = npf.solve(game, npf.OGDA(eta=1.5), 2000)
    np.testing.assert_allclose(trace.policy, again.policy, atol=1e-12)
    assert f"last iterate {again.gap[-1]:.3e}, average iterate {again.average_gap[-1]:.3e}" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines()[-8:-2]]
    shown = {row[0]: row[1:] for row in rows if len(row) == 3 and row[0] in game.labels}
    assert list(shown) == [game.labels[i] for i in np.argsort(-again.policy, kind="stable")]
    for i, label in enumerate(game.labels):
        assert shown[label] == [f"{again.policy[i]:.6f}", f"{again.average_policy[i]:.6f}"]
    lines = (folder / "t.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "step,gap,unregularised_gap,average_gap"
    assert len(lines) == len(trace.steps) + 1


def test_real_processes_exit_as_promised(folder):
    good = in_a_process("solve", "game.csv", "--rule", "egpo", "--beta", 0.1, "--steps", 100, cwd=folder)
    assert (good.returncode, good.stderr) == (0, "")
    assert "NashMP" not in good.stdout
    assert "EGPO" in good.stdout
    bad = in_a_process("solve", "game.csv", "--rule", "egpo", "--beta", -1, cwd=folder)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("nashpref: beta = -1")


def test_theorems_prints_the_verdicts_and_says_whether_one_surprises(folder, nashpref, monkeypatch):
    import nashpref.theory as theory

    few = {"cycle": npf.zoo.comal(), "tie": npf.zoo.random_preferences(4, np.random.default_rng(0))}
    rows = theory.check_all(few, betas=(0.1,))
    monkeypatch.setattr(theory, "check_all", lambda progress: rows)
    done = nashpref("theorems", "--csv", "t.csv")
    assert done.returncode == 0, done.stderr
    assert "ONPO, average, as printed" in done.stdout
    assert len((folder / "t.csv").read_text(encoding="utf-8").splitlines()) == len(rows) + 1
    false_claims = [row for row in rows if row.theorem.expected is theory.Verdict.FAILS]
    assert false_claims
    wrong = [dataclasses.replace(r, theorem=dataclasses.replace(r.theorem, expected="holds")) for r in rows]
    monkeypatch.setattr(theory, "check_all", lambda progress: wrong)
    assert nashpref("theorems").returncode == 1


def test_reproduce_lists_and_runs_one_experiment(folder, nashpref):
    listed = nashpref("reproduce", "--list").stdout
    assert [line.split()[0] for line in listed.splitlines()] == list(EXPERIMENTS)
    done = nashpref("reproduce", "spirals", "--quick", "--out", "out")
    assert done.returncode == 0, done.stderr
    assert (folder / "out/figures/spirals.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in (folder / "out/spirals").iterdir()} >= {"config.json", "env.json"}


def test_reproduce_leaves_out_what_cannot_run_unless_it_is_named(folder, nashpref, monkeypatch):
    for name in EXPERIMENTS.keys() - {"spirals", "network_rules"}:
        monkeypatch.delitem(EXPERIMENTS, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    done = nashpref("reproduce", "--quick", "--out", "out")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "nashpref: skipping network_rules: pip install 'nashpref[llm]'\n"
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["figures", "spirals"]
    named = nashpref("reproduce", "network_rules", "--quick", "--out", "other")
    assert named.returncode == 2
    assert "network_rules needs torch: pip install 'nashpref[llm]'" in named.stderr
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    blind = nashpref("reproduce", "--quick", "--out", "other")
    assert blind.returncode == 2
    assert "pip install 'nashpref[plot]'" in blind.stderr
    assert not (folder / "other").exists()


def test_resume_continues_a_saved_trace(folder, nashpref):
    arguments = ("--rule", "nash-md", "--beta", 0.1)
    assert nashpref("solve", "game.csv", *arguments, "--steps", 50, "--out", "a.npz").returncode == 0
    more = ("--steps", 100, "--resume", "a.npz", "--out", "b.npz")
    assert nashpref("solve", "game.csv", *arguments, *more).returncode == 0
    whole = npf.solve(npf.MatrixGame.from_csv(folder / "game.csv"), npf.NashMD(beta=0.1), 100)
    np.testing.assert_array_equal(npf.Trace.load(folder / "b.npz").policy, whole.policy)


def test_any_option_of_a_rule_can_be_set(folder, nashpref):
    done = nashpref("solve", "game.csv", "--rule", "comal", "--beta", 0.1, "--set", "every=7")
    assert done.returncode == 0, done.stderr
    assert "every=7" in done.stdout
    done = nashpref("solve", "game.csv", "--rule", "mnpo", "--eta", 0.3, "--set", "weights=0.6,0.3,0.1")
    assert "weights=(0.6, 0.3, 0.1)" in done.stdout


def test_rank_writes_json(folder, nashpref):
    done = nashpref("rank", "game.csv", "--json", "r.json")
    assert done.returncode == 0, done.stderr
    content = json.loads((folder / "r.json").read_text(encoding="utf-8"))
    game = npf.MatrixGame.from_csv(folder / "game.csv")
    np.testing.assert_allclose(content["nash"]["mass"], npf.equilibrium(game).policy, atol=1e-9)
    assert content["cycles"]["count"] == npf.rank(game).cycles.count


def test_rank_of_records_with_intervals(folder, nashpref):
    rows = [{"winner": "ab"[k % 3 == 0], "loser": "ba"[k % 3 == 0]} for k in range(60)]
    rows += [{"winner": "bc"[k % 4 == 0], "loser": "cb"[k % 4 == 0]} for k in range(60)]
    rows += [{"winner": "ca"[k % 5 == 0], "loser": "ac"[k % 5 == 0]} for k in range(60)]
    (folder / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = nashpref("rank", "c.jsonl", "--bootstrap", 20, "--figure", "r.png")
    assert done.returncode == 0, done.stderr
    assert "bootstrap" in done.stdout
    assert (folder / "r.png").read_bytes().startswith(b"\x89PNG")
    again = nashpref("rank", "c.jsonl", "--bootstrap", 20)
    assert again.stdout.splitlines()[:5] == done.stdout.splitlines()[:5]  # the seed is fixed


BAD_FILES = {
    "empty.csv": b"",
    "binary.csv": bytes(range(256)),
    "ragged.csv": b"x,a,b\na,0.5,0.5\nb,0.5\n",
    "nan.csv": b"x,a,b\na,0.5,nan\nb,0.5,0.5\n",
    "inf.csv": b"x,a,b\na,0.5,inf\nb,0.5,0.5\n",
    "asymmetric.csv": b"x,a,b\na,0.5,0.9\nb,0.5,0.5\n",
    "range.csv": b"x,a,b\na,0.5,1.5\nb,-0.5,0.5\n",
    "wide.csv": b"x,a,b,c\na,0.5,0.5,0.5\nb,0.5,0.5,0.5\n",
    "twice.csv": b"x,a,a\na,0.5,0.5\na,0.5,0.5\n",
    "other.csv": b"x,a,b\na,0.5,0.5\nc,0.5,0.5\n",
    "word.csv": b"x,a,b\na,0.5,high\nb,0.5,0.5\n",
    "broken.jsonl": b'{"winner": "a", "loser": "b"}\n{"winner": \n',
}


@pytest.mark.parametrize("command", ["solve", "rank"])
@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_one_line_and_exit_2(folder, nashpref, command, name):
    (folder / name).write_bytes(BAD_FILES[name])
    before = sorted(folder.iterdir())
    more = (
        ("--rule", "gda", "--beta", 0.1, "--out", "out.npz") if command == "solve" else ("--json", "out.json")
    )
    done = nashpref(command, name, *more)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert name in done.stderr
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("solve missing.csv --rule gda --beta 1", "missing.csv: No such file"),
        ("solve . --rule gda --beta 1", "directory"),
        ("solve game.csv --rule ogd", "did you mean 'ogda'"),
        ("solve game.csv --rule mwu", "pass eta"),
        ("solve game.csv --rule mwu --beta 1 --eta 1", "no option 'beta'"),
        ("solve game.csv --rule nash-md", "nash-md needs beta"),
        ("solve game.csv --rule gda --beta -1", "beta = -1"),
        ("solve game.csv --rule gda --beta nan", "beta = nan"),
        ("solve game.csv --rule gda --beta 0.5 --eta 4", "eta * beta = 2 > 1"),
        ("solve game.csv --rule gda --beta 0.5 --eta 0", "eta = 0"),
        ("solve game.csv --rule comal --beta 1 --set evry=3", "did you mean 'every'"),
        ("solve game.csv --rule comal --beta 1 --set every", "NAME=VALUE"),
        ("solve game.csv --rule comal --beta 1 --set every=x", "comal: "),
        ("solve game.csv --rule gda --beta 1 --set eta=0.5,2", "eta * beta = 2 > 1"),
        ("solve game.csv --rule gda --set beta=0.1,0.2", "one number is needed"),
        ("solve game.csv --rule ogda --steps -1", "steps = -1"),
        ("solve game.csv --rule ogda --steps many", "invalid int"),
        ("solve game.csv --rule ogda --top 0", "--top 0"),
        ("solve game.csv --rule ogda --tol nan", "tol = nan"),
        ("solve game.csv --rule ogda --figure fig.gif", "gif"),
        ("reproduce --out game.csv spirals", "game.csv"),
        ("solve game.csv --rule ogda --stepps 3", "unrecognized"),
        ("solve game.csv --rule ogda --out nowhere/t.npz", "no directory"),
        ("solve game.csv --rule ogda --out .", "is a directory"),
        ("solve game.csv --rule ogda --out game.csv", "exists already"),
        ("solve game.csv --rule ogda --resume game.csv", "not a trace"),
        ("rank game.csv --bootstrap 5", "--counts"),
        ("rank game.csv --bootstrap -5", "--bootstrap -5"),
        ("rank game.csv --prior 1", "--prior"),
        ("solve game.csv --rule ogda --missing half", "--missing"),
        ("reproduce spiralz", "did you mean 'spirals'"),
        ("solv", "invalid choice"),
    ],
)
def test_a_bad_call_is_one_line_and_exit_2(folder, nashpref, arguments, says):
    before = sorted(folder.iterdir())
    done = nashpref(*arguments.split())
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert says in done.stderr
    assert sorted(folder.iterdir()) == before
    assert (folder / "game.csv").read_text(encoding="utf-8") == GAME


def test_an_unwritable_output_is_refused_before_any_work(folder, nashpref):
    if os.geteuid() == 0:
        target = "/proc/trace.npz"  # root may write anywhere else
    else:
        (folder / "locked").mkdir(mode=0o500)
        target = "locked/trace.npz"
    done = nashpref("solve", "game.csv", "--rule", "ogda", "--out", target)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_interrupt_saves_the_work_and_exits_130(folder):
    call = ["solve", "game.csv", "--rule", "ogda", "--steps", "2000000000"]
    for patience in (3, 10, 60):  # a machine under load may still be importing when the signal comes
        command = [sys.executable, "-m", "nashpref.cli", *call]
        process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
        time.sleep(patience)
        process.send_signal(signal.SIGINT)
        _, message = process.communicate(timeout=60)
        if "--resume" in message:
            break
    assert process.returncode == 130, message
    assert "--resume game.ogda.npz" in message
    trace = npf.Trace.load(folder / "game.ogda.npz")
    assert trace.status is npf.Status.STOPPED
    assert 0 < trace.snapshot.step < 2_000_000_000
