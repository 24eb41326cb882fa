"""Parts of a data set: fewer pixels, some of the classes, some of the training images, labels drawn at random."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from qan_gym.data.datasets import Dataset, Split
from qan_gym.utils import random_streams

# The purposes of the random streams of `data_seed`, see `qan_gym.utils.random_streams`.
CHOICE, NOISY, NOISE = 1, 2, 3

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Selection:
    """What is taken of a data set.

    Attributes:
        resolution: pixels a side, each the mean of a square of the original's; None: all.
        classes: the labels that are kept; they become 0, 1, ... in this order; None: all.
        train_size: training images that are kept; None: all.
        data_seed: of the choice of training images and of the noise; None: the first images.
        label_noise: share of the training labels that are drawn anew, each class as likely as the others.
    """

    resolution: int | None = None
    classes: tuple[int, ...] | None = None
    train_size: int | None = None
    data_seed: int | None = None
    label_noise: float = 0.0


@dataclass(frozen=True, eq=False)
class Chosen:
    """Images of a split, by their places in it, and their labels.

    Attributes:
        places: (n,) int64.
        labels: (n,) int64, from 0.
    """

    places: Int64
    labels: Int64


def select(dataset: Dataset, selection: Selection) -> Dataset:
    """The part of a data set.

    Raises:
        ValueError: the resolution, a class or the number of images does not go with the data set.
    """
    if selection == Selection():
        return dataset
    small = at_resolution(dataset, selection.resolution)
    splits = {}
    for name in ("train", "validation", "test"):
        chosen, split = choose(dataset, selection, name), getattr(small, name)
        splits[name] = Split(split.images[chosen.places], chosen.labels)
    n_classes = dataset.n_classes if selection.classes is None else len(selection.classes)
    return Dataset(dataset.name, **splits, n_classes=n_classes, fingerprint=dataset.fingerprint)


@lru_cache(maxsize=16)
def at_resolution(dataset: Dataset, resolution: int | None) -> Dataset:
    """The data set with fewer pixels; its labels and fingerprint are the same.

    Raises:
        ValueError: the squares do not cover the images.
    """
    height, width = dataset.train.images.shape[2:]
    if resolution in (None, height) and height == width:
        return dataset
    size = max(1, height // (resolution or height))
    if resolution is None or height != size * resolution or width != size * resolution:
        sides = [side for side in range(2, height + 1) if height % side == 0] if height == width else []
        there_are = f"one of {', '.join(map(str, sides))}" if sides else "None: they are not square"
        raise ValueError(f"resolution of images of {height} x {width} must be {there_are}, not {resolution}")

    def smaller(split: Split) -> Split:
        n, channels = split.images.shape[:2]
        squares = split.images.reshape(n, channels, resolution, size, resolution, size)
        total = squares.sum(axis=(3, 5), dtype=np.int64)
        return Split(((total + size * size // 2) // (size * size)).astype(np.uint8), split.labels)

    splits = {name: smaller(getattr(dataset, name)) for name in ("train", "validation", "test")}
    return Dataset(dataset.name, **splits, n_classes=dataset.n_classes, fingerprint=dataset.fingerprint)


def choose(dataset: Dataset, selection: Selection, split: str) -> Chosen:
    """Which images of a split are taken, in which order, and their labels.

    Raises:
        ValueError: see `select`.
    """
    found = _of_classes(dataset, selection.classes, split)
    if split != "train":
        return found
    size, seed = selection.train_size, torch.tensor([selection.data_seed or 0])
    if size is not None and size > len(found.places) and selection.data_seed is not None:
        raise ValueError(f"train_size {size} is larger than the {len(found.places)} training images of these classes")
    places, labels = found.places[:size], found.labels[:size]
    if selection.data_seed is not None:
        order = random_streams.permutation(seed, CHOICE, 0, len(found.places))[0].numpy()[:size]
        places, labels = found.places[order], found.labels[order]
    if selection.label_noise > 0:
        n_classes = dataset.n_classes if selection.classes is None else len(selection.classes)
        noisy = random_streams.uniform(seed, NOISY, 0, len(labels))[0].numpy() < selection.label_noise
        drawn = random_streams.uniform(seed, NOISE, 0, len(labels))[0].numpy().astype(np.float64) * n_classes
        labels = np.where(noisy, drawn.astype(np.int64), labels)
    return Chosen(places, labels)


@lru_cache(maxsize=4096)
def _of_classes(dataset: Dataset, classes: tuple[int, ...] | None, split: str) -> Chosen:
    labels = getattr(dataset, split).labels
    if classes is None:
        return Chosen(np.arange(len(labels)), labels)
    if len(set(classes)) < max(2, len(classes)) or not set(classes) <= set(range(dataset.n_classes)):
        raise ValueError(
            f"classes must be 2 or more different ones of 0 to {dataset.n_classes - 1}, not {list(classes)}"
        )
    new = np.full(dataset.n_classes, -1)
    new[list(classes)] = np.arange(len(classes))
    places = np.flatnonzero(new[labels] >= 0)
    return Chosen(places, new[labels[places]])
