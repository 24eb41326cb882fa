"""MNIST and CIFAR-10, through torchvision: found in a data root, or downloaded into it; their files verified."""

import hashlib
import http.client
import importlib
import pickle
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

FOLDER_VARIABLE = "QAN_GYM_DATA"  # the environment variable that names the data root
TIMEOUT = 30  # seconds without a byte


@dataclass(frozen=True)
class Source:
    """A data set that torchvision can download.

    Attributes:
        title: its usual name.
        folder: of its files, under a data root, in torchvision's layout.
        md5: file name -> MD5 of the original; torchvision verifies only what it downloads itself.
        fetch: (folder) -> downloads it there, through torchvision.
        read: (folder that holds the files) -> x_train, y_train, x_test, y_test.
        way_out: advice for those without a connection.
    """

    title: str
    folder: str
    md5: dict[str, str]
    fetch: Callable[[Path], Any]
    read: Callable[[Path], dict[str, NDArray[Any]]]
    way_out: str

    def files(self, root: Path) -> dict[Path, str]:
        """Its files under a data root, and their MD5 sums."""
        return {root / self.folder / name: digest for name, digest in self.md5.items()}


def load(name: str, root: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a data set, downloaded first where they are missing.

    Raises:
        ValueError: a file is truncated or altered; the message names it.
        FileNotFoundError: it is not there and could not be had.
    """
    source = SOURCES[name]
    if missing(name, root):
        download(name, root)
    _verify(source, root)  # before anything is read: CIFAR-10 comes as pickles
    return source.read(root / source.folder)


def missing(name: str, root: Path) -> list[Path]:
    """The files of a data set that are not under a data root."""
    return [path for path in SOURCES[name].files(root) if not path.is_file()]


def download(name: str, root: Path) -> None:
    """Fetch a data set into a folder aside, then move its files into `root`, each in one rename.

    Raises:
        FileNotFoundError: it could not be had; the message names the ways out.
    """
    source = SOURCES[name]
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # whatever its libraries raise
        raise FileNotFoundError(
            f"{source.title} is not in {root}, and torchvision, which downloads it, cannot be imported ({error}): "
            f"install the one that goes with torch {torch.__version__}, or set {FOLDER_VARIABLE} to a folder that "
            f"holds {source.folder}"
        ) from error
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (
            _one_download,
            tempfile.TemporaryDirectory(dir=root, prefix=f".{name}-") as aside,
            _finite_timeout(),
        ):
            source.fetch(Path(aside))
            _verify(source, Path(aside))
            for fetched, path in zip(source.files(Path(aside)), source.files(root), strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                fetched.replace(path)
    except (OSError, RuntimeError, ValueError, EOFError, http.client.HTTPException) as error:
        raise FileNotFoundError(
            f"{source.title} is not in {root} and could not be downloaded ({error}). Three ways out: set "
            f"{FOLDER_VARIABLE} to a folder that holds {source.folder}; go online and try again; or {source.way_out}"
        ) from error


def _verify(source: Source, root: Path) -> None:
    for path, wanted in source.files(root).items():
        if not path.is_file():
            raise ValueError(f"{path}: the file is missing")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found != wanted:
            raise ValueError(
                f"{path}: not {source.title}'s file (MD5 {found}, not {wanted}): it is truncated or altered; remove "
                "it, and it will be downloaded again"
            )


_one_download = threading.Lock()  # of this process: what is below changes a setting of it


@contextmanager
def _finite_timeout() -> Iterator[None]:
    """torchvision opens its connections without a timeout, so the sockets' default is what bounds them."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


# --- MNIST ----------------------------------------------------------------------------------------------------------


def _fetch_mnist(folder: Path) -> None:
    from torchvision.datasets import MNIST

    MNIST(folder, download=True)


def _read_mnist(folder: Path) -> dict[str, NDArray[Any]]:
    """The files as they are, because to import torchvision takes longer than to read them."""
    return {
        "x_train": _read_idx(folder / "train-images-idx3-ubyte"),  # (60000, 28, 28)
        "y_train": _read_idx(folder / "train-labels-idx1-ubyte"),
        "x_test": _read_idx(folder / "t10k-images-idx3-ubyte"),  # (10000, 28, 28)
        "y_test": _read_idx(folder / "t10k-labels-idx1-ubyte"),
    }


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """An array of bytes in MNIST's format, whose checksum was compared.

    The header is two zeros, the type (8: bytes) and the number of axes, then each size as four bytes, high ones first.
    """
    content = np.fromfile(path, np.uint8)
    start = 4 * (1 + int(content[3]))
    return content[start:].reshape(content[4:start].view(">u4").tolist())


# --- CIFAR-10 -------------------------------------------------------------------------------------------------------


def _fetch_cifar10(folder: Path) -> None:
    from torchvision.datasets import CIFAR10

    CIFAR10(folder, download=True)


def _read_cifar10(folder: Path) -> dict[str, NDArray[Any]]:
    parts = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
    arrays: dict[str, NDArray[Any]] = {}
    for part, names in parts.items():
        batches = []
        for name in names:
            with (folder / name).open("rb") as file:
                batches.append(pickle.load(file, encoding="latin1"))  # the original, by its MD5
        pixels = np.concatenate([batch["data"] for batch in batches])  # (n, 3072) uint8
        arrays[f"x_{part}"] = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # (n, 32, 32, 3)
        arrays[f"y_{part}"] = np.concatenate([np.asarray(batch["labels"], np.int64) for batch in batches])
    return arrays


SOURCES = {
    "mnist": Source(
        title="MNIST",
        folder="MNIST/raw",
        md5={
            "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
            "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
            "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
            "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
        },
        fetch=_fetch_mnist,
        read=_read_mnist,
        way_out="play on the bundled images, with an id of MNIST5k (as QanLR-MNIST5k-v1) or dataset='mnist5k'.",
    ),
    "cifar10": Source(
        title="CIFAR-10",
        folder="cifar-10-batches-py",
        md5={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
            "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        },
        fetch=_fetch_cifar10,
        read=_read_cifar10,
        way_out="give dataset= the path of an .npz file with x_train, y_train, x_test and y_test.",
    ),
}
