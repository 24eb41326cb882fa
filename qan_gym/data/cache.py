"""The user's cache: what was computed once is kept there, each file made by one process while others wait.

It is not the folder of the data, which may be shared and read-only.
"""

import atexit
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from qan_gym.utils.files import require_writable

_log = logging.getLogger("qan_gym")


def expand_user(path: str) -> Path:
    """A path in which ~ is the user's home, as far as there is one."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def user_root() -> Path:
    """The platform's folder for caches of this package; a temporary one where the user has no home."""
    try:
        root = Path(platformdirs.user_cache_dir("qan-gym"))
    except RuntimeError:  # of some versions; others give a path that begins with ~
        return _temporary_root()
    return root if root.is_absolute() else _temporary_root()


def cache_root() -> Path:
    """The folder to write to: `user_root`, or a temporary one where that cannot be written to."""
    root = user_root()
    try:
        require_writable(root)
    except ValueError:
        return _temporary_root()
    return root


def cached(kind: str, name: str) -> Path | None:
    """The file of a name that is kept, in the folder of its kind; None: there is none."""
    paths = (root / kind / name for root in (user_root(), cache_root()))
    return next((path for path in paths if path.is_file()), None)


@contextmanager
def locked(name: str, work: str) -> Iterator[None]:
    """A context that one process and one thread is in at a time; the others wait.

    Args:
        name: of what is made in it.
        work: that is done in it, for the message of those that wait.
    """
    folder = cache_root() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        _log.warning("waiting for another process: %s", work)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@cache
def _temporary_root() -> Path:
    root = tempfile.mkdtemp(prefix="qan-gym-")
    _log.warning(
        "the user's cache cannot be written to: what is computed once is kept in %s as long as this process runs; "
        "set XDG_CACHE_HOME to a folder that can be written to, to keep it longer",
        root,
    )
    atexit.register(_remove, root, os.getpid())
    return Path(root)


def _remove(root: str, owner: int) -> None:
    if os.getpid() == owner:  # not in a process that it forked
        shutil.rmtree(root, ignore_errors=True)
