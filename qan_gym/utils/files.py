"""Files: read with one kind of error, written aside and then renamed; and the one file format for arrays.

Arrays with JSON beside them are one safetensors file. A SHA-256 in its header is that of the whole file, header
included, with zeros in the place of the checksum itself.
"""

import hashlib
import io
import json
import os
import re
import tempfile
import textwrap
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

Arrays = dict[str, NDArray[Any]]

ASIDE = ".aside-"  # the names of files that are being written begin with it
LONGEST_REASON = 300  # characters of an error's message in another's

_METADATA = "qan_gym"  # in the header of a safetensors file: JSON
_CHECKSUM = "sha256"  # in the same place: of the whole file
_NO_CHECKSUM = "0" * 64


# --- writing --------------------------------------------------------------------------------------------------------


@contextmanager
def write_aside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path in the same folder; when the block ends well, it becomes `path` in one rename.

    A reader, also after a kill, sees the old file or the new one, never a part. What a kill leaves is removed by
    `remove_asides`.

    Raises:
        OSError: the file cannot be written; it names `path`.
    """
    path = Path(path)
    aside: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=_aside_prefix(path), suffix=path.suffix)
        os.close(handle)
        aside = Path(name)
        yield aside
        umask = os.umask(0)
        os.umask(umask)
        aside.chmod(0o666 & ~umask)  # mkstemp's files are private; the result should be like any other
        with aside.open("r+b") as file:  # Windows flushes only what may be written
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, aside and str(aside)):
            raise
        raise OSError(error.errno, f"cannot be written ({error.strerror})", str(path)) from error
    finally:
        if aside is not None:
            aside.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file, atomically.

    Raises:
        OSError: see `write_aside`.
    """
    with write_aside(path) as aside:
        aside.write_bytes(content)


def remove_asides(path: Path) -> None:
    """Remove what killed writers of a file, or of all files in a folder, left; only where nobody else writes to it."""
    there = path.rglob(f"{ASIDE}*") if path.is_dir() else path.parent.glob(f"{_aside_prefix(path)}*")
    for aside in there:
        aside.unlink(missing_ok=True)


def _aside_prefix(path: Path) -> str:
    return f"{ASIDE}{hashlib.sha256(path.name.encode()).hexdigest()[:8]}-"  # a name may be as long as names can be


def require_writable(folder: Path) -> None:
    """Check, before work is done, that its result can be written.

    Raises:
        ValueError: files cannot be written to the folder, or the folder cannot be made.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{folder} cannot be written to, because {there} is read-only or not a folder")
    try:
        folder.lstat()
    except FileNotFoundError:
        pass
    except OSError as error:  # its name is too long, or it is a loop of links
        raise ValueError(f"{folder} cannot be written to ({error.strerror})") from error


# --- reading --------------------------------------------------------------------------------------------------------


@contextmanager
def reading(path: str | os.PathLike[str], kind: str) -> Iterator[None]:
    """Turn whatever goes wrong in the block, in which a file is read and parsed, into one kind of error.

    Args:
        path: of the file.
        kind: what the file should be, with its article, for the message: "an .npz file".

    Raises:
        FileNotFoundError: there is no such file, or it is a folder.
        ValueError: it cannot be read, is damaged, or is of another kind; the message names it.
    """
    try:
        yield
    except (FileNotFoundError, IsADirectoryError) as error:
        raise FileNotFoundError(f"{path}: there is no such file") from error
    except PermissionError as error:
        raise ValueError(f"{path}: may not be read ({error.strerror})") from error
    except Exception as error:  # parsers raise anything on damaged bytes
        raise ValueError(f"{path}: damaged, or not {kind} ({_in_one_line(error)})") from error


def _in_one_line(error: Exception) -> str:
    """The kind of an error, and the beginning of its message."""
    return textwrap.shorten(f"{type(error).__name__}: {error}", LONGEST_REASON, placeholder="...")


def read_npz(path: Path) -> Arrays:
    """The arrays of an `.npz` file; pickled objects are refused.

    Raises:
        ValueError, FileNotFoundError: see `reading`.
    """
    with reading(path, "an .npz file of plain arrays"), zipfile.ZipFile(path) as archive:
        # Each member as a whole, whose checksum is then verified, before anything in it is believed.
        return {one.filename.removesuffix(".npy"): _read_npy(one, archive.read(one)) for one in archive.infolist()}


def _read_npy(member: zipfile.ZipInfo, content: bytes) -> NDArray[Any]:
    if not member.filename.endswith(".npy") or member.comment:  # a damaged length makes a comment of other members
        raise ValueError(f"{member.filename} in it is not an array")
    file = io.BytesIO(content)
    array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    if file.tell() != len(content):
        raise ValueError(f"{member.filename} in it has {len(content) - file.tell()} bytes too many")
    return array


# --- arrays with JSON beside them -----------------------------------------------------------------------------------


def save_arrays(path: str | os.PathLike[str], arrays: Arrays, metadata: dict[str, Any]) -> None:
    """Write named arrays and JSON-able metadata to one safetensors file with a checksum, atomically.

    The same arrays and metadata give the same bytes.

    Raises:
        OSError: see `write_aside`.
    """
    contiguous = {name: np.require(array, requirements="C") for name, array in arrays.items()}
    blank = _in_order(save(contiguous, {_METADATA: json.dumps(metadata), _CHECKSUM: _NO_CHECKSUM}))
    write_bytes(path, _with_checksum(blank, _NO_CHECKSUM, _digest(blank)))


def load_arrays(path: str | os.PathLike[str], *, foreign: bool = False) -> tuple[Arrays, dict[str, Any]]:
    """Read a file of `save_arrays`, and verify its checksum. Nothing in it is executed.

    Args:
        path: of the file.
        foreign: also accept a safetensors file that another program wrote, with empty metadata; it has no checksum.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or was written by something else.
    """
    with reading(path, "a safetensors file that qan-gym wrote"):
        content = Path(path).read_bytes()
        size = int.from_bytes(content[:8], "little")
        header: dict[str, str] = json.loads(content[8 : 8 + size]).get("__metadata__", {})
        if not (foreign and header.keys().isdisjoint((_METADATA, _CHECKSUM))):
            _verify(content, header)
        return load(content), json.loads(header.get(_METADATA, "{}"))


def _verify(content: bytes, header: dict[str, str]) -> None:
    if _CHECKSUM not in header:
        raise ValueError("it has no checksum")
    checksum = header[_CHECKSUM]
    if not re.fullmatch("[0-9a-f]{64}", checksum) or checksum != _digest(
        _with_checksum(content, checksum, _NO_CHECKSUM)
    ):
        raise ValueError("its checksum is wrong")


def _in_order(content: bytes) -> bytes:
    """A safetensors file with the entries of its metadata in order, where safetensors has them in any."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def _with_checksum(content: bytes, before: str, after: str) -> bytes:
    """The file with another checksum in its header; within the metadata these quotes would be escaped."""
    return content.replace(f'"{_CHECKSUM}":"{before}"'.encode(), f'"{_CHECKSUM}":"{after}"'.encode(), 1)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
