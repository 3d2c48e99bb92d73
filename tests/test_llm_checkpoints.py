"""Checkpoints are whole or not there; what is damaged is found, named and passed over."""

import json
import pickle
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nashpref.llm import checkpoints
from nashpref.llm.checkpoints import Checkpoint, DamagedCheckpoint


def checkpoint(step, size=8):
    weights = torch.arange(size, dtype=torch.float32) + step
    return Checkpoint(
        step, {"model": {"w": weights}, "optimizer": {"0.step": torch.tensor(step)}}, {"a": [1, 2]}
    )


@pytest.fixture
def folder(tmp_path):
    for step in (10, 20):
        checkpoints.save(tmp_path, checkpoint(step), keep=3)
    return tmp_path


def test_what_is_saved_is_loaded(folder):
    found, complaints = checkpoints.newest(folder)
    assert (found.step, found.state, complaints) == (20, {"a": [1, 2]}, [])
    assert torch.equal(found.tensors["model"]["w"], checkpoint(20).tensors["model"]["w"])
    assert found.tensors["optimizer"]["0.step"].dtype == torch.int64


def test_bfloat16_transposed_and_scalar_tensors_survive(tmp_path):
    tensors = {"t": torch.randn(3, 5).T, "h": torch.randn(4).bfloat16(), "s": torch.tensor(2.5)}
    path = checkpoints.save(tmp_path, Checkpoint(1, {"m": tensors}, {}), keep=1)
    loaded = checkpoints.load(path).tensors["m"]
    assert all(torch.equal(loaded[name], t) and loaded[name].dtype == t.dtype for name, t in tensors.items())


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink], ids=["truncated", "bit flipped", "missing"])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
)
def test_damage_is_found_and_the_one_before_is_used(folder, name, damage):
    path = folder / "step-00000020" / name
    damage(path)
    if name == "manifest.json" and damage is truncate:  # the newline at its end
        truncate(path)
    found, complaints = checkpoints.newest(folder)
    if name == "manifest.json" and damage is flip and found.step == 20:
        pytest.fail("a flipped bit in the manifest went unnoticed")
    assert found.step == 10
    assert len(complaints) == 1
    assert "step-00000020" in complaints[0]
    assert path.parent.exists()  # evidence, not for us to delete


def test_a_single_bit_anywhere_is_found(folder):
    """Every byte of the largest file in turn: the checksum is of all of it."""
    path = folder / "step-00000020" / "model.safetensors"
    whole = path.read_bytes()
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 0x80]) + whole[i + 1 :])
        with pytest.raises(DamagedCheckpoint, match="checksum"):
            checkpoints.load(path.parent)
    path.write_bytes(whole)
    assert checkpoints.load(path.parent).step == 20


@pytest.mark.parametrize("change", [{"version": 2}, {"format": "other"}, {"files": {}}])
def test_another_version_is_not_read(folder, change):
    manifest = folder / "step-00000020" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    found, complaints = checkpoints.newest(folder)
    assert found.step == 10
    assert "step-00000020" in complaints[0]


def test_all_damaged_is_none(folder):
    for path in folder.glob("*/state.json"):
        path.unlink()
    found, complaints = checkpoints.newest(folder)
    assert found is None
    assert len(complaints) == 2
    assert checkpoints.newest(folder / "nowhere") == (None, [])


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path(Bomb.target),))


def test_a_planted_pickle_is_never_executed(folder, tmp_path):
    Bomb.target = str(tmp_path / "exploded")
    poison = pickle.dumps(Bomb())
    place = folder / "step-00000020"
    (place / "model.pt").write_bytes(poison)  # beside the files of the manifest
    (place / "pytorch_model.bin").write_bytes(poison)
    assert checkpoints.newest(folder)[0].step == 20
    (place / "model.safetensors").write_bytes(poison)  # in the place of one, and named in the manifest
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["files"]["model.safetensors"] = checkpoints._sha256(place / "model.safetensors")
    (place / "manifest.json").write_text(json.dumps(manifest))
    found, complaints = checkpoints.newest(folder)
    assert found.step == 10
    assert "step-00000020" in complaints[0]
    assert not (tmp_path / "exploded").exists()
    pickle.loads(poison)
    assert (tmp_path / "exploded").exists()  # it would have


def test_nothing_is_loaded_by_pickle():
    sources = (Path(__file__).parents[1] / "llm").rglob("*.py")
    for path in sources:
        text = path.read_text(encoding="utf-8")
        for word in (
            "torch.load",
            "import pickle",
            "pickle.load",
            "trust_remote_code=True",
            "accelerator.load_state(",
        ):
            assert word not in text, f"{path}: {word}"


def test_old_ones_go(tmp_path):
    for step in range(1, 6):
        checkpoints.save(tmp_path, checkpoint(step), keep=2)
    assert checkpoints.steps(tmp_path) == [4, 5]


def test_damaged_later_ones_push_no_whole_one_out(folder):
    """Resumed from 10 because 20 is damaged: the checkpoint of step 11 is newer than its number says."""
    (folder / "step-00000020" / "state.json").unlink()
    checkpoints.save(folder, checkpoint(11), keep=1)
    assert checkpoints.newest(folder)[0].step == 11
    checkpoints.save(folder, checkpoint(20), keep=1)  # takes the damaged one's place
    assert checkpoints.newest(folder)[0].step == 20
    assert checkpoints.steps(folder) == [20]


@pytest.mark.parametrize("call", range(8))
def test_a_crash_at_any_sync_leaves_what_was_there(folder, monkeypatch, call):
    """The disk fails at one of the calls that make a checkpoint durable."""
    calls = 0
    sync = checkpoints._sync

    def failing(path):
        nonlocal calls
        calls += 1
        if calls == call + 1:
            raise OSError(5, "Input/output error")
        sync(path)

    monkeypatch.setattr(checkpoints, "_sync", failing)
    try:
        checkpoints.save(folder, checkpoint(30), keep=1)
    except OSError as error:
        assert "not saved" in str(error)  # noqa: PT017  (some calls come too late to fail)
        assert call < 6
    else:
        assert call >= 6
    monkeypatch.undo()
    found, complaints = checkpoints.newest(folder)
    assert complaints == []
    assert found.step in ((20, 30) if call == 5 else (20,) if call < 5 else (30,))
    assert not list(folder.glob(".partial-*"))


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "model"
    checkpoints.write_folder(target, lambda place: (place / "a").write_text("old"))

    def half(place):
        (place / "a").write_text("new")
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        checkpoints.write_folder(target, half)
    assert (target / "a").read_text() == "old"
    checkpoints.write_folder(target, lambda place: (place / "b").write_text("new"))
    assert [path.name for path in target.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_a_killed_save_left_is_discarded(folder):
    shutil.copytree(folder / "step-00000020", folder / ".partial-step-00000030")
    assert checkpoints.newest(folder)[0].step == 20
    checkpoints.discard_partial(folder)
    assert not list(folder.glob(".partial-*"))


FULL_DISK = """
import resource, sys
from pathlib import Path
import torch
from nashpref.llm import checkpoints
from nashpref.llm.checkpoints import Checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
checkpoints.save(Path(sys.argv[1]), Checkpoint(30, {"model": {"w": torch.zeros(10_000)}}, {}), keep=1)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs limits on file sizes")
def test_a_full_disk_leaves_the_old_ones_whole_and_says_so(folder):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "step-00000030: not saved" in done.stderr
    assert "what was saved before is whole" in done.stderr
    assert checkpoints.steps(folder) == [10, 20]
    assert checkpoints.newest(folder)[0].step == 20
    assert not list(folder.glob(".partial-*"))
