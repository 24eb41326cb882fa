"""Data sets: load, verify, split."""

import hashlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from qan_gym.data import downloads, whitening
from qan_gym.data.cache import expand_user, user_root
from qan_gym.utils.files import Arrays, read_npz
from qan_gym.utils.names import unknown_name
from qan_gym.utils.own_settings import own_settings
from qan_gym.utils.registry import add

ASSETS = Path(__file__).parents[1] / "assets"
DATA_VARIABLE = downloads.FOLDER_VARIABLE
VALIDATION_SHARE = 9  # one in nine training images is held out for validation,
VALIDATION_MAX = 5_000  # and never more than this
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Split:
    """Images and labels that belong together.

    Attributes:
        images: (n, C, H, W) uint8.
        labels: (n,) int64.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A verified data set; `fingerprint` is the SHA-256 of its contents."""

    name: str
    train: Split
    validation: Split
    test: Split
    n_classes: int
    fingerprint: str


@dataclass(frozen=True, eq=False)
class DeviceData:
    """The three splits on a device, zero-padded to the size that the network takes.

    Attributes:
        images: split name -> (n, C, H, W) uint8; whitened ones float16.
        labels: split name -> (n,) int64.
        mean, std: (C, 1, 1) float32, of the padded training images; 0 and 1 for whitened ones.
    """

    images: dict[str, Tensor]
    labels: dict[str, Tensor]
    mean: Tensor
    std: Tensor

    def normalise(self, images: Tensor) -> Tensor:
        """(..., C, H, W) -> float32, with mean 0 and deviation 1 per channel over the training split, or whitened."""
        return (images.to(torch.float32) - self.mean) / self.std

    def batches(self, name: str, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """A split in pieces of `size` images, as the network sees them, and their labels."""
        for images, labels in zip(self.images[name].split(size), self.labels[name].split(size), strict=True):
            yield self.normalise(images), labels

    @own_settings()
    def split(self, name: str) -> tuple[Tensor, Tensor]:
        """The images of a split as the network sees them, and their labels."""
        return self.normalise(self.images[name]), self.labels[name]


@lru_cache(maxsize=4)
def on_device(
    dataset: Dataset, image_shape: tuple[int, int, int], train_size: int | None, preprocess: str, device: str
) -> DeviceData:
    """Put a data set on a device; the same arguments give the same object.

    Args:
        dataset: the data set.
        image_shape: (C, H, W) to zero-pad to, evenly on both sides.
        train_size: only so many of the training images, see `part_of`; None: all.
        preprocess: as `TaskConfig.preprocess`.
        device: as `torch.device` takes it.

    Raises:
        ValueError: the images are too large to be whitened.
    """
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    labels = {name: torch.from_numpy(split.labels).to(device) for name, split in splits.items()}
    images = {name: torch.from_numpy(split.images) for name, split in splits.items()}  # (n, C, H, W) uint8
    if train_size is not None:
        part = torch.from_numpy(part_of(dataset.train.labels, dataset.n_classes, train_size))
        images["train"], labels["train"] = images["train"][part], labels["train"][part.to(device)]
    if preprocess == "whiten":
        whiten = whitening.whitening_of(images["train"])
        images = {name: whiten(split) for name, split in images.items()}
    images = {name: _pad(split, image_shape) for name, split in images.items()}
    channels = image_shape[0]
    mean, std = torch.zeros(channels), torch.ones(channels)
    if preprocess == "normalise":
        mean, std = _statistics(images["train"])
    images = {name: split.to(device) for name, split in images.items()}
    return DeviceData(images, labels, *(value.to(device, torch.float32).view(-1, 1, 1) for value in (mean, std)))


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, (C,) float64 each: exact, by counting in
    integers."""
    mean, deviation = [], []
    for channel in images.transpose(0, 1).flatten(1):  # (n * H * W,)
        counts = torch.bincount(channel.to(torch.int32), minlength=256).tolist()
        total = sum(counts)
        first, second = (sum(count * value**power for value, count in enumerate(counts)) for power in (1, 2))
        own = mean_and_deviation(total, first, second)
        mean.append(own[0])
        deviation.append(own[1])
    return torch.tensor(mean, dtype=torch.float64), torch.tensor(deviation, dtype=torch.float64)


def mean_and_deviation(count: int, total: int, squares: int) -> tuple[float, float]:
    """Of `count` integers, from their sum and that of their squares; constant ones, which are centred, have 1."""
    return total / count, max(1.0, math.sqrt((squares * count - total**2) / count**2))


def _pad(images: Tensor, image_shape: tuple[int, int, int]) -> Tensor:
    height, width = image_shape[1] - images.shape[2], image_shape[2] - images.shape[3]
    return F.pad(images, (width // 2, width - width // 2, height // 2, height - height // 2))


def load_dataset(name: str) -> Dataset:
    """The data set of a registered name, or of the path of an `.npz` file.

    The `.npz` holds `x_train, y_train, x_test, y_test`: images (n, H, W) or (n, H, W, C) uint8 with C of 1 or 3,
    labels (n,) integers 0 to k - 1. The validation split is `x_validation, y_validation`, where the file has them;
    else, of each class, the last ninth of the training images, in all at most 5,000.

    Raises:
        ValueError: the name is not registered, or the data are damaged or unusable; the message names the file.
        FileNotFoundError: the file is missing, or the data set can be neither found nor downloaded.
    """
    if name.endswith(".npz"):
        path = expand_user(name).resolve()
        if not path.is_file():
            raise FileNotFoundError(f"data set {name}: there is no such file")
        stat = path.stat()
        return _load_npz(str(path), stat.st_mtime_ns, stat.st_size)
    if name not in DATASETS:
        raise ValueError(f"{unknown_name('dataset', name, DATASETS)}, or the path of an .npz file")
    return _load_registered(name, DATASETS[name], os.environ.get(DATA_VARIABLE))


def register_dataset(name: str, loader: Callable[[], Arrays]) -> None:
    """Make a data set available under a name.

    Args:
        name: what `dataset=` will accept; must not end in `.npz`.
        loader: returns `x_train, y_train, x_test, y_test` and what else an `.npz` file may hold (see `load_dataset`).

    Raises:
        ValueError: the name is taken or ends in `.npz`, or the loader cannot be called.
    """
    if isinstance(name, str) and name.endswith(".npz"):
        raise ValueError(f"a dataset cannot be registered as {name!r}: such names are those of files")
    add(DATASETS, "a dataset", name, loader)


def data_root() -> Path:
    """The folder of downloaded data: `$QAN_GYM_DATA` if set, else the platform's user cache."""
    folder = os.environ.get(DATA_VARIABLE)
    return expand_user(folder) if folder else user_root()


@lru_cache(maxsize=4)
def _load_npz(path: str, _modified: int, _size: int) -> Dataset:
    return make_dataset(path, read_npz(Path(path)))


@lru_cache(maxsize=4)
def _load_registered(name: str, loader: Callable[[], Arrays], _root: str | None) -> Dataset:
    return make_dataset(name, loader())


def make_dataset(source: str, arrays: Arrays) -> Dataset:
    """Verify the arrays of a data set and split them.

    Raises:
        ValueError: an array is missing or wrongly shaped, or labels and images do not go together.
    """
    parts = ("train", "validation", "test") if {"x_validation", "y_validation"} & arrays.keys() else ("train", "test")
    for name in (f"{axis}_{part}" for part in parts for axis in "xy"):
        if name not in arrays:
            raise ValueError(f"{source}: the array {name} is missing; there are {', '.join(arrays) or 'none'}")
    splits = {part: _verify_split(source, part, arrays) for part in parts}
    train, others = splits["train"], {part: split for part, split in splits.items() if part != "train"}
    for part, split in others.items():
        if split.images.shape[1:] != train.images.shape[1:]:
            shapes = f"{train.images.shape[1:]} and {split.images.shape[1:]}"
            raise ValueError(f"{source}: the images of x_train and x_{part} differ in (C, H, W): {shapes}")
    n_classes = _verify_classes(source, train, others)
    fingerprint = _fingerprint(*splits.values())
    if "validation" not in splits:
        held_out = _held_out(train.labels, n_classes)
        train, splits["validation"] = (Split(train.images[rows], train.labels[rows]) for rows in (~held_out, held_out))
    return Dataset(source, train, splits["validation"], splits["test"], n_classes, fingerprint)


def _verify_split(source: str, part: str, arrays: Arrays) -> Split:
    images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
    if images.dtype != np.uint8:
        scale = "; multiply what is from 0 to 1 by 255, and round" if images.dtype.kind == "f" else ""
        raise ValueError(f"{source}: x_{part} must be uint8 (0 to 255), not {images.dtype}{scale}")
    if images.ndim == 3:
        images = images[..., None]  # (n, H, W, 1)
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        raise ValueError(f"{source}: x_{part} must be (n, H, W), (n, H, W, 1) or (n, H, W, 3), not {images.shape}")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{source}: y_{part} must be (n,) integers, not {labels.shape} of {labels.dtype}")
    if len(images) != len(labels):
        raise ValueError(f"{source}: x_{part} has {len(images)} images but y_{part} has {len(labels)} labels")
    return Split(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels.astype(np.int64))  # (n, C, H, W)


def _verify_classes(source: str, train: Split, others: dict[str, Split]) -> int:
    present = np.unique(train.labels)
    if present[0] < 0 or present[-1] >= len(train):
        raise ValueError(f"{source}: y_train has labels from {present[0]} to {present[-1]}; classes count from 0")
    n_classes = int(present[-1]) + 1
    if n_classes < 2:
        raise ValueError(f"{source}: y_train has one class only; there must be at least 2")
    counts = np.bincount(train.labels, minlength=n_classes)
    if counts.min() < 2:
        few = ", ".join(map(str, np.flatnonzero(counts < 2)[:5]))
        count = "; classes count from 0, and the least label is 1" if present[0] == 1 else ""
        raise ValueError(
            f"{source}: every class from 0 to {n_classes - 1} needs 2 training images; too few of {few}{count}"
        )
    for part, split in others.items():
        if split.labels.min() < 0 or split.labels.max() >= n_classes:
            raise ValueError(f"{source}: y_{part} has labels outside the classes of y_train, 0 to {n_classes - 1}")
    return n_classes


def _held_out(labels: NDArray[np.int64], n_classes: int) -> NDArray[np.bool_]:
    """(n,) bool, the images held out for validation: the last of each class, in proportion to its size."""
    total = min(len(labels) // VALIDATION_SHARE, VALIDATION_MAX)
    counts = np.bincount(labels, minlength=n_classes)
    exact = counts * total / len(labels)
    quota = np.maximum(np.floor(exact).astype(int), 1)
    for label in np.argsort(np.floor(exact) - exact, kind="stable")[: max(total - quota.sum(), 0)]:
        quota[label] += 1  # the largest remainders make up the total
    held_out = np.zeros(len(labels), dtype=bool)
    for label in range(n_classes):
        held_out[np.flatnonzero(labels == label)[-quota[label] :]] = True
    return held_out


def part_of(labels: NDArray[np.int64], n_classes: int, size: int) -> NDArray[np.int64]:
    """The places of `size` training images, in the order of the data: the first ones, where they come in random order.

    Where they do not (as in files sorted by class), the first of each class, in proportion to its size.

    Args:
        labels: (n,) of the training split.
        n_classes: K.
        size: how many; all where it is more than n.
    """
    if size >= len(labels) or in_random_order(labels):
        return np.arange(min(size, len(labels)))
    quota = _shares(np.bincount(labels, minlength=n_classes), size)
    chosen = [np.flatnonzero(labels == label)[: quota[label]] for label in range(n_classes)]
    return np.sort(np.concatenate(chosen))


def in_random_order(labels: NDArray[np.int64]) -> bool:
    """Whether labels change from one to the next at least half as often as in random order; sorted ones hardly do."""
    shares = np.bincount(labels) / len(labels)
    changes = np.count_nonzero(np.diff(labels))
    return bool(changes >= 0.5 * (len(labels) - 1) * (1 - np.square(shares).sum()))


def _shares(counts: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """`total` divided in proportion to some counts, rounded down; the largest remainders make up the total."""
    exact = counts * total / counts.sum()
    quota: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    quota[np.argsort(quota - exact, kind="stable")[: total - quota.sum()]] += 1
    return quota


def _fingerprint(*splits: Split) -> str:
    digest = hashlib.sha256()
    for split in splits:
        digest.update(repr(split.images.shape).encode())
        digest.update(split.images.tobytes())
        digest.update(split.labels.tobytes())
    return digest.hexdigest()


# --- MNIST-5k, inside the package -----------------------------------------------------------------------------------

MNIST5K_FILE = ASSETS / "mnist5k.npz"  # written by assets/make_mnist5k.py
MNIST5K_SHA256 = "64c7656b69756e815d258914b8eff82bd7f87c8519b691966a79fef624fefe70"


def _load_mnist5k() -> Arrays:
    arrays = read_npz(MNIST5K_FILE)
    digest = hashlib.sha256(b"".join(arrays[name].tobytes() for name in sorted(arrays))).hexdigest()
    if digest != MNIST5K_SHA256:
        raise ValueError(f"{MNIST5K_FILE}: the checksum is wrong; install qan-gym again")
    return arrays


DATASETS: dict[str, Callable[[], Arrays]] = {
    "mnist": lambda: downloads.load("mnist", data_root()),
    "cifar10": lambda: downloads.load("cifar10", data_root()),
    "mnist5k": _load_mnist5k,
}
