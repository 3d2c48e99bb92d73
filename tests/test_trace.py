"""Traces on disk: what comes back is what was saved, and nothing else is mistaken for it."""

import csv
import io
import json
import pickle
import random
import resource
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nashpref as npf
from nashpref import Status, Trace
from nashpref.testing import policies, preference_batches, preference_games

GAME = npf.zoo.comal()


def made(steps: int = 30, **options: Any) -> Trace:
    defaults = {
        "equilibrium": npf.equilibrium(GAME, 0.1).policy,
        "keep_policies": True,
        "start": [0.6, 0.3, 0.1],
    }
    return npf.solve(GAME, npf.COMAL(beta=0.1, every=7), steps, **(defaults | options))


def equal(actual: Trace, expected: Trace) -> None:
    """Every field and array is the same, bit by bit."""
    for name in ("steps", "gap", "unregularised_gap", "average_gap", "kl", "policies", "average_policy"):
        ours, theirs = getattr(actual, name), getattr(expected, name)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            np.testing.assert_array_equal(ours, theirs)
            assert ours.dtype == theirs.dtype
    for name in ("beta", "status", "rule", "compiled", "fingerprint"):
        assert getattr(actual, name) == getattr(expected, name)
    a, b = actual.snapshot, expected.snapshot
    assert a.step == b.step
    assert list(a.policies) == list(b.policies)
    assert list(a.log_policies) == list(b.log_policies)
    for name in b.policies:
        np.testing.assert_array_equal(a.policies[name], b.policies[name])
        np.testing.assert_array_equal(a.log_policies[name], b.log_policies[name])
    np.testing.assert_array_equal(a.plan_sum, b.plan_sum)
    for ours, theirs in ((a.payoff, b.payoff), (a.payoff_sum, b.payoff_sum)):
        assert (ours is None) == (theirs is None)
        if theirs is not None:
            np.testing.assert_array_equal(ours, theirs)


# --- the round trip ---

TRACES: dict[str, Callable[[], Trace]] = {
    "everything": made,
    "the least": lambda: made(equilibrium=None, keep_policies=False),
    "no steps": lambda: made(0),
    "a batch": lambda: npf.solve(npf.zoo.annotator_rankings(), npf.OGDA(), 10, keep_policies=True),
    "compiled": lambda: made(compiled=True),
    "no sum of payoffs": lambda: npf.solve(GAME, npf.NashMD(beta=0.1), 20, record=5),
    "names with odd characters": lambda: npf.solve(
        GAME,
        npf.BestResponse(beta=0.5, opponent="policy:ν/… .npy"),
        5,
        start={"policy:ν/… .npy": [0.2, 0.3, 0.5]},
    ),
    "underflow": lambda: npf.solve(npf.zoo.bradley_terry([9.0, 0.0]), npf.MWU(eta=1e4), 20),
    "not finite": lambda: npf.solve(GAME, npf.MWU(eta=1e308), 300),
}


@pytest.mark.parametrize("case", TRACES)
def test_load_returns_what_was_saved(case: str, tmp_path: Path) -> None:
    trace = TRACES[case]()
    trace.save(tmp_path / "trace.npz")
    equal(Trace.load(tmp_path / "trace.npz"), trace)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    game=st.one_of(preference_games(), preference_batches()),
    data=st.data(),
    rule=st.sampled_from([npf.EGPO(beta=0.1), npf.MNPO(eta=0.3), npf.ONPO()]),
)
def test_any_trace_round_trips(game: npf.MatrixGame, data: st.DataObject, rule: Any, tmp_path: Path) -> None:
    trace = npf.solve(game, rule, 5, start=data.draw(policies(game.policy_shape)), keep_policies=True)
    trace.save(tmp_path / "trace.npz")
    equal(Trace.load(str(tmp_path / "trace.npz")), trace)


def test_status_and_repr_read_well(tmp_path: Path) -> None:
    trace = npf.solve(GAME, npf.EGPO(beta=0.1), 1000, tol=1e-6)
    assert trace.status is Status.CONVERGED
    assert f"{trace.status}" == "converged"
    assert repr(trace).startswith("Trace(EGPO(eta=None, beta=0.1): converged after ")
    batch = npf.solve(npf.zoo.annotator_rankings(), npf.OGDA(), 3)
    assert "max_steps after 3 steps, gap " in repr(batch)


# --- tables ---


def test_csv_keeps_full_precision(tmp_path: Path) -> None:
    trace = made()
    trace.to_csv(tmp_path / "trace.csv")
    with open(tmp_path / "trace.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["step", "gap", "unregularised_gap", "average_gap", "kl"]
    np.testing.assert_array_equal(
        np.array(rows, dtype=float).T[1:], [trace.gap, trace.unregularised_gap, trace.average_gap, trace.kl]
    )
    assert [int(row[0]) for row in rows] == trace.steps.tolist()


def test_frame_of_a_batch_has_a_row_for_each_step_and_game() -> None:
    trace = npf.solve(npf.zoo.annotator_rankings(), npf.OGDA(), 4)
    frame = trace.to_frame()
    assert list(frame.columns) == ["step", "game", "gap", "unregularised_gap", "average_gap"]
    assert len(frame) == 15
    for (step, game), rows in frame.groupby(["step", "game"]):
        assert rows["gap"].item() == trace.gap[step, game]


def test_csv_of_the_same_run_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        made().to_csv(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# --- what is not a trace ---


def altered(change: Callable[[dict[str, Any], dict[str, Any]], object]) -> bytes:
    """The bytes of a saved trace after `change(metadata, arrays)`."""
    buffer = io.BytesIO()
    path = Path(altered.folder) / "original.npz"  # type: ignore[attr-defined]
    made().save(path)
    with np.load(path) as file:
        arrays = dict(file)
    metadata = json.loads(str(arrays.pop("metadata")))
    change(metadata, arrays)
    np.savez(buffer, metadata=np.array(json.dumps(metadata)), **arrays)
    return buffer.getvalue()


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def npy(array: Any, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def metadata(value: Any) -> Callable[[], bytes]:
    return lambda: npz(metadata=np.array(json.dumps(value)))


FOREIGN: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "not a trace saved by nashpref, or damaged"),
    "text": (lambda: b"step,gap\n0,1\n", "not a trace saved by nashpref, or damaged"),
    "zip of text": (lambda: zipped(b"hello"), "not a trace saved by nashpref, or damaged"),
    "another npz": (lambda: npz(x=np.arange(3)), "not a trace saved by nashpref, or damaged"),
    "npy": (lambda: npy(np.arange(3)), "not a trace saved by nashpref, or damaged"),
    "metadata is no JSON": (lambda: npz(metadata=np.array("{")), "not a trace saved by nashpref, or damaged"),
    "metadata is a list": (metadata([1]), "not a trace saved by nashpref, or damaged"),
    "metadata is a number": (metadata(7), "not a trace saved by nashpref, or damaged"),
    "metadata of something else": (metadata({"format": "pickles"}), "not a trace saved by nashpref"),
    "another version": (
        lambda: altered(lambda meta, _: meta.update(version=1)),
        "trace format 1; this nashpref reads 2",
    ),
    "no version": (
        lambda: altered(lambda meta, _: meta.pop("version")),
        "trace format None; this nashpref reads 2",
    ),
    "a gap that was edited": (
        lambda: altered(lambda _, arrays: arrays.update(gap=arrays["gap"] / 2)),
        "damaged, its arrays do not have the checksum",
    ),
    "no gap": (
        lambda: altered(lambda _, arrays: arrays.pop("gap")),
        "damaged, its arrays do not have the checksum",
    ),
    "no policy sum": (
        lambda: altered(lambda _, arrays: arrays.pop("plan_sum")),
        "damaged, its arrays do not have the checksum",
    ),
    "no status": (
        lambda: altered(lambda meta, _: meta.pop("status")),
        "damaged, its metadata are incomplete or wrong \\('status'\\)",
    ),
    "unknown status": (
        lambda: altered(lambda meta, _: meta.update(status="great")),
        "'great' is not a valid Status",
    ),
    "beta is null": (
        lambda: altered(lambda meta, _: meta.update(beta=None)),
        "damaged, its metadata are incomplete or wrong",
    ),
    "step is text": (
        lambda: altered(lambda meta, _: meta.update(step="many")),
        "damaged, its metadata are incomplete or wrong",
    ),
}


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("metadata.npy", content)
    return buffer.getvalue()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    altered.folder = tmp_path  # type: ignore[attr-defined]
    return tmp_path / "trace.npz"


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_files_are_refused_by_name(case: str, path: Path) -> None:
    content, message = FOREIGN[case]
    path.write_bytes(content())
    with pytest.raises(ValueError, match=message) as error:
        Trace.load(path)
    assert str(path) in str(error.value)


def test_missing_files_and_directories(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.npz: No such file or directory"):
        Trace.load(tmp_path / "absent.npz")
    with pytest.raises(ValueError, match="Is a directory"):
        Trace.load(tmp_path)


class Planted:
    """Unpickling this would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


def test_a_planted_pickle_is_not_executed(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "executed"
    bomb = Planted(target)
    as_array = np.array([bomb, 1], dtype=object)
    candidates = [
        pickle.dumps(bomb),
        npy(as_array, allow_pickle=True),
        npz(metadata=as_array),
        altered(lambda _, arrays: arrays.update(gap=as_array)),
        altered(lambda _, arrays: arrays.update({"policy:current": as_array})),
        altered(lambda _, arrays: arrays.update(unexpected=as_array)),
    ]
    for content in candidates:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a trace saved by nashpref, or damaged"):
            Trace.load(path)
        assert not target.exists()
    pickle.loads(candidates[0])  # the bomb is live: it was the loader that did not set it off
    assert target.exists()


def test_every_truncation_is_noticed(path: Path) -> None:
    made().save(path)
    whole = path.read_bytes()
    for length in {*range(0, len(whole), 101), len(whole) - 1, len(whole) - 22}:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="or damaged"):
            Trace.load(path)


def test_a_flipped_bit_is_noticed_or_harmless(path: Path) -> None:
    """Data are covered by checksums; what remains are fields of the archive that nobody reads: dates."""
    trace = made()
    trace.save(path)
    whole = path.read_bytes()
    rng, noticed = random.Random(0), 0
    places = rng.sample(range(len(whole)), 400)
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            loaded = Trace.load(path)
        except ValueError:
            noticed += 1
        else:
            equal(loaded, trace)
    assert noticed > 0.5 * len(places)


# --- saving ---


def test_saving_replaces_the_file_whole_and_leaves_nothing_else(path: Path) -> None:
    made(10).save(path)
    content = path.read_bytes()
    with open(path, "rb") as old:
        made(20).save(path)
        assert (
            old.read() == content
        )  # a reader of the old file is not disturbed: it was replaced, not rewritten
    assert Trace.load(path).snapshot.step == 20
    made(5).to_csv(path.with_suffix(".csv"))
    assert sorted(file.name for file in path.parent.iterdir()) == ["trace.csv", "trace.npz"]
    assert path.stat().st_mode & 0o777 == path.with_suffix(".csv").stat().st_mode & 0o777
    assert path.stat().st_mode & 0o400


@pytest.mark.parametrize("method", ["save", "to_csv"])
def test_an_unwritable_place_is_an_error_that_leaves_nothing(method: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="absent"):
        getattr(made(), method)(tmp_path / "absent" / "trace")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        getattr(made(), method)(tmp_path / "folder")
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_a_full_disk_leaves_the_old_file(path: Path) -> None:
    made(10).save(path)
    before = path.read_bytes()
    trace = made(200)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            trace.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["trace.npz"]


SAVER = """
    import sys
    import nashpref as npf
    trace = npf.solve(npf.zoo.comal(), npf.ONPO(), 1000, keep_policies=True)
    while True:
        trace.save(sys.argv[1])
        print("saved", flush=True)
"""


def test_a_kill_in_the_middle_of_saving_leaves_a_whole_file(path: Path) -> None:
    rng = random.Random(0)
    for _ in range(5):
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SAVER), str(path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "saved\n"
        time.sleep(rng.uniform(0.0, 0.02))
        child.kill()
        child.communicate()
        assert Trace.load(path).snapshot.step == 1000
