"""Checkpoints that are whole or not there: written beside, hashed, renamed; read without pickle.

A checkpoint is a folder `step-00000120` with a safetensors file for each group of tensors, `state.json`, and
`manifest.json`, written last, with the SHA-256 of everything else. It is written under another name, synced
to disk and renamed: a crash or a full disk leaves the ones before it as they were. One whose files do not
match its manifest is named and passed over for the one before.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

FORMAT, VERSION = "nashpref-checkpoint", 1
MANIFEST, STATE = "manifest.json", "state.json"
PREFIX, PARTIAL = "step-", ".partial-"

Tensors = Mapping[str, torch.Tensor]


class DamagedCheckpoint(ValueError):
    """A checkpoint whose files are missing, altered, or of another format."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: groups of named tensors, and everything else as JSON."""

    step: int
    tensors: Mapping[str, Tensors]
    state: Mapping[str, Any]


def save(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write a checkpoint under `folder`, then delete all but this and the `keep − 1` before it.

    Later ones, which a resumed run has found damaged, are no reason to delete a whole one.

    Returns:
        Its path.

    Raises:
        OSError: it could not be written (a full disk, say). Nothing else has changed.
    """

    def write(place: Path) -> None:
        for group, tensors in checkpoint.tensors.items():
            contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(contiguous, place / f"{group}.safetensors")
        _write_json(place / STATE, dict(checkpoint.state))
        files = {path.name: _sha256(path) for path in sorted(place.iterdir())}
        header = {"format": FORMAT, "version": VERSION, "step": checkpoint.step}
        _write_json(place / MANIFEST, header | {"files": files})

    final = folder / f"{PREFIX}{checkpoint.step:08d}"
    write_folder(final, write)
    for old in [step for step in steps(folder) if step <= checkpoint.step][:-keep]:
        shutil.rmtree(folder / f"{PREFIX}{old:08d}", ignore_errors=True)
    return final


def write_folder(final: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a folder that appears under its name only once all of it is on the disk.

    A folder that is there already is replaced, once the new one is whole.

    Raises:
        OSError: it could not be written; what was there is as it was.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (final.parent / f"{PARTIAL}{word}{final.name}" for word in ("", "old-"))
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        partial.mkdir()
        write(partial)
        for path in (*partial.rglob("*"), partial):
            _sync(path)
        if final.exists():
            final.rename(old)
        partial.rename(final)
        _sync(final.parent)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if old.exists() and not final.exists():
            old.rename(final)
        if isinstance(error, OSError | SafetensorError):
            raise OSError(f"{final}: not saved ({error}); what was saved before is whole") from error
        raise
    shutil.rmtree(old, ignore_errors=True)


def steps(folder: Path) -> list[int]:
    """The steps of the checkpoints under `folder`, whole or not, oldest first."""
    names = (path.name.removeprefix(PREFIX) for path in folder.glob(f"{PREFIX}*"))
    return sorted(int(name) for name in names if name.isdigit())


def load(path: Path) -> Checkpoint:
    """Read one checkpoint, every byte checked against its manifest before any of it is used.

    Raises:
        DamagedCheckpoint: with the file and what is wrong with it.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        header, files = (manifest["format"], manifest["version"]), dict(manifest["files"])
        step = int(manifest["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"{path / MANIFEST}: missing or damaged ({error})") from None
    if header != (FORMAT, VERSION):
        raise DamagedCheckpoint(f"{path}: {header[0]} version {header[1]}; this nashpref reads {VERSION}")
    for name, digest in files.items():
        if not (path / name).is_file():
            raise DamagedCheckpoint(f"{path / name}: missing")
        if _sha256(path / name) != digest:
            raise DamagedCheckpoint(f"{path / name}: damaged, its checksum is not the saved one")
    if STATE not in files:
        raise DamagedCheckpoint(f"{path / MANIFEST}: damaged, it does not list {STATE}")
    try:
        tensors = {Path(name).stem: load_file(path / name) for name in files if name.endswith(".safetensors")}
        return Checkpoint(step, tensors, json.loads((path / STATE).read_text(encoding="utf-8")))
    except (SafetensorError, ValueError) as error:
        raise DamagedCheckpoint(f"{path}: its files are not what they are called ({error})") from None


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint under `folder`, None without one; and what is wrong with newer ones."""
    complaints: list[str] = []
    for step in reversed(steps(folder)):
        try:
            return load(folder / f"{PREFIX}{step:08d}"), complaints
        except DamagedCheckpoint as error:
            complaints.append(str(error))
    return None, complaints


def discard_partial(folder: Path) -> None:
    """Remove what a run that was killed while saving has left behind."""
    for partial in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(partial, ignore_errors=True)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
