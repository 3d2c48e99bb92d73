"""Files that appear whole or not at all, and npz archives, without pickles, that say what they are."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PathOrStr = str | os.PathLike[str]


class atomic:
    """A temporary path beside `path`, moved over it when the block ends without an error."""

    def __init__(self, path: PathOrStr) -> None:
        self.path = Path(path)

    def __enter__(self) -> Path:
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        os.close(handle)
        self.temporary = Path(name)
        return self.temporary

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                umask = os.umask(0)
                os.umask(umask)
                self.temporary.chmod(0o666 & ~umask)
                with open(self.temporary, "rb") as file:
                    os.fsync(file.fileno())  # the bytes before the name, or a power cut leaves neither
                self.temporary.replace(self.path)
        finally:
            self.temporary.unlink(missing_ok=True)


def write_archive(
    path: PathOrStr,
    metadata: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    *,
    compressed: bool = True,
) -> None:
    """Write arrays and what describes them (`format`, `version`, …) to one npz file, atomically."""
    write = np.savez_compressed if compressed else np.savez
    text = json.dumps({**metadata, "digest": _digest(arrays)})
    with atomic(path) as temporary, open(temporary, "wb") as file:
        write(file, allow_pickle=False, metadata=np.array(text), **arrays)


def read_archive(
    path: PathOrStr, what: str, format: str, version: int
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The metadata and arrays that `write_archive` wrote; `what` names the content in errors.

    Raises `ValueError` for a file that is no such archive, is damaged, or comes from another version.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 (only this line's errors are those of the file system)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    try:
        with file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        metadata, digest = dict(json.loads(str(arrays.pop("metadata")))), _digest(arrays)
    except Exception as error:  # zipfile, numpy and json each have their own
        raise ValueError(f"{path}: not a {what} saved by nashpref, or damaged ({error})") from None
    check_format(path, metadata, what, format, version)
    if metadata.get("digest") != digest:
        raise ValueError(f"{path}: damaged, its arrays do not have the checksum of those that were saved")
    return metadata, arrays


def check_format(path: PathOrStr, metadata: Mapping[str, Any], what: str, format: str, version: int) -> None:
    """Raise `ValueError` unless a file says that it is what is wanted, in the version that is read here."""
    if metadata.get("format") != format:
        told = metadata.get("format")
        raise ValueError(
            f"{path}: not a {what} saved by nashpref ({'no format' if told is None else f'format {told!r}'}; "
            f"a {what} has {format!r})"
        )
    if metadata.get("version") != version:
        raise ValueError(f"{path}: {what} format {metadata.get('version')}; this nashpref reads {version}")


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """One checksum of all names and arrays: those of the archive do not notice an array that is missing."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
