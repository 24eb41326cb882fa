"""Atomic writes, and the one file format for tensors: safetensors with JSON metadata."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

_METADATA = "qan_gym"
_CHECKSUM = "sha256"


@contextmanager
def write_aside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path in the same folder; when the block ends well, it becomes `path` in one rename.

    A reader, also after a kill, sees the old file or the new one, never a part.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        umask = os.umask(0)
        os.umask(umask)
        aside.chmod(0o666 & ~umask)  # mkstemp's files are private; the result should be like any other
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def require_writable(folder: Path) -> None:
    """Check, before work is done, that its result can be written.

    Raises:
        ValueError: files cannot be written to the folder, or the folder cannot be made.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{folder} cannot be written to, because {there} is read-only or not a folder")


def save_arrays(path: str | os.PathLike[str], arrays: dict[str, NDArray[Any]], metadata: dict[str, Any]) -> None:
    """Write named arrays and JSON-able metadata to one safetensors file, atomically."""
    with write_aside(path) as aside:
        contiguous = {name: np.require(array, requirements="C") for name, array in arrays.items()}
        save_file(contiguous, aside, metadata={_METADATA: json.dumps(metadata), _CHECKSUM: _checksum(contiguous)})


def load_arrays(path: str | os.PathLike[str]) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read a file of `save_arrays`, or any safetensors file (with empty metadata). Nothing in it is executed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or was written by something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            metadata = json.loads(header.get(_METADATA, "{}"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: damaged, or not a safetensors file with a state or weights ({error})") from error
    if _CHECKSUM in header and header[_CHECKSUM] != _checksum(arrays):
        raise ValueError(f"{path}: damaged: the checksum of the state or weights in it is wrong")
    return arrays, metadata


def _checksum(arrays: dict[str, NDArray[Any]]) -> str:
    return hashlib.sha256(b"".join(arrays[name].tobytes() for name in sorted(arrays))).hexdigest()
