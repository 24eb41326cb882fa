"""Parts of a data set: fewer pixels, some of the classes, some of the training images, labels drawn at random.

A training split may be *long-tailed*: the sizes of its classes fall exponentially from the largest to the smallest (Cui
et al. 2019, arXiv:1901.05555). Validation and test splits stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from qan_gym.data.datasets import Dataset, Split
from qan_gym.utils import random_streams

# The purposes of the random streams of `data_seed`, see `qan_gym.utils.random_streams`.
CHOICE, NOISY, NOISE, RARE = 1, 2, 3, 4

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Selection:
    """What is taken of a data set.

    Attributes:
        resolution: pixels a side, each the mean of a square of the original's; None: all.
        classes: the labels that are kept; they become 0, 1, ... in this order; None: all.
        train_size: training images that are kept; None: all.
        data_seed: of the choice of training images and of the noise; None: the first images.
        label_noise: share of the training labels that are drawn anew, each class as likely as the others; or a share
            per class, of the images with that label.
        imbalance: size of the largest class over that of the smallest; 1: as the data set has them.
    """

    resolution: int | None = None
    classes: tuple[int, ...] | None = None
    train_size: int | None = None
    data_seed: int | None = None
    label_noise: float | tuple[float, ...] = 0.0
    imbalance: float = 1.0

    @property
    def by_label(self) -> bool:
        """Whether every class has a size and a noise of its own."""
        return self.imbalance > 1 or isinstance(self.label_noise, tuple)


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
    if selection.by_label:
        return _by_label(found, selection, dataset.n_classes)
    size, seed = selection.train_size, selection.data_seed or 0
    if size is not None and size > len(found.places) and selection.data_seed is not None:
        raise ValueError(f"train_size {size} is larger than the {len(found.places)} training images of these classes")
    places, labels = found.places[:size], found.labels[:size]
    if selection.data_seed is not None:
        order = _shuffle(seed, CHOICE, len(found.places))[:size]
        places, labels = found.places[order], found.labels[order]
    noise = selection.label_noise
    if isinstance(noise, float | int) and noise > 0:
        n_classes = dataset.n_classes if selection.classes is None else len(selection.classes)
        labels = np.where(_uniform(seed, NOISY, len(labels)) < noise, _classes(seed, len(labels), n_classes), labels)
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


def class_sizes(n_classes: int, train_size: int, imbalance: float, data_seed: int) -> Int64:
    """(K,) int64, the images of each label in a long-tailed training split; which labels are rare is drawn.

    Args:
        n_classes: K.
        train_size: images in all.
        imbalance: size of the largest class over that of the smallest, before rounding; every class has an image.
        data_seed: of the order of the classes by size.
    """
    weights = _weights(n_classes, imbalance)
    exact = train_size * weights / weights.sum()
    sizes = np.maximum(np.floor(exact), 1).astype(np.int64)
    left = train_size - int(sizes.sum())
    sizes[np.argsort(np.floor(exact) - exact, kind="stable")[: max(left, 0)]] += 1  # the largest remainders
    sizes[0] += min(left, 0)  # where the smallest classes have been given an image
    permuted: Int64 = sizes[_shuffle(data_seed, RARE, n_classes)]
    return permuted


def _weights(n_classes: int, imbalance: float) -> NDArray[np.float64]:
    """(K,), the sizes of the classes over that of the largest, which is the first."""
    weights: NDArray[np.float64] = float(imbalance) ** (-np.arange(n_classes) / max(n_classes - 1, 1))
    return weights


def _by_label(found: Chosen, selection: Selection, available: int) -> Chosen:
    """A training split in which each label has its own number of images, and its own share of noise.

    A noisy image shows a class that is drawn, each as likely as the others; where no image of it is left, the next
    class that has some. No image is taken twice.

    Args:
        found: the training images to choose from.
        selection: what is chosen.
        available: classes of the data set.

    Raises:
        ValueError: there are not so many images of a class, or not one share of noise per class.
    """
    n_classes = available if selection.classes is None else len(selection.classes)
    noise = np.broadcast_to(np.asarray(selection.label_noise, np.float64), _noise_shape(selection, n_classes))
    seed = selection.data_seed or 0
    order = _shuffle(seed, CHOICE, len(found.places)) if selection.data_seed is not None else slice(None)
    places, shown = found.places[order], found.labels[order]
    pools = [places[shown == label].tolist()[::-1] for label in range(n_classes)]  # the next one last
    sizes = _sizes(selection, [len(pool) for pool in pools])
    total = int(sizes.sum())
    labels = np.repeat(np.arange(n_classes), sizes)
    noisy = _uniform(seed, NOISY, total) < noise[labels]
    drawn = _classes(seed, total, n_classes)
    chosen = np.zeros(total, np.int64)
    for place in np.flatnonzero(~noisy):
        chosen[place] = pools[labels[place]].pop()
    for place in np.flatnonzero(noisy):
        there = next(label for label in range(drawn[place], drawn[place] + n_classes) if pools[label % n_classes])
        chosen[place] = pools[there % n_classes].pop()
    return Chosen(chosen, labels)


def _noise_shape(selection: Selection, n_classes: int) -> tuple[int]:
    noise = selection.label_noise
    if isinstance(noise, tuple) and len(noise) != n_classes:
        raise ValueError(f"label_noise must be one share, or one for each of the {n_classes} classes, not {len(noise)}")
    return (n_classes,)


def _sizes(selection: Selection, most: list[int]) -> Int64:
    """(K,), the images of each label; `most`: that there are.

    Raises:
        ValueError: there are not so many.
    """
    n_classes, seed, size = len(most), selection.data_seed or 0, selection.train_size
    if size is None and selection.imbalance == 1:
        return np.array(most, np.int64)
    if size is None or selection.data_seed is None:  # as many as the least frequent class of the data set allows
        largest = max(n_classes, int(min(most) * _weights(n_classes, selection.imbalance).sum()))
        size = largest if size is None else min(size, largest)
    if size < n_classes:
        raise ValueError(f"train_size {size} is less than an image of each of the {n_classes} classes")
    sizes = class_sizes(n_classes, size, selection.imbalance, seed)
    if (sizes > most).any():
        label = int(np.argmax(sizes - np.array(most)))
        raise ValueError(
            f"train_size {size} with imbalance {selection.imbalance:g} takes {sizes[label]} images of class {label}, "
            f"and there are {most[label]}: make train_size smaller"
        )
    return sizes


def _shuffle(seed: int, purpose: int, count: int) -> Int64:
    order: Int64 = random_streams.permutation(torch.tensor([seed]), purpose, 0, count)[0].numpy()
    return order


def _uniform(seed: int, purpose: int, count: int) -> NDArray[np.float32]:
    numbers: NDArray[np.float32] = random_streams.uniform(torch.tensor([seed]), purpose, 0, count)[0].numpy()
    return numbers


def _classes(seed: int, count: int, n_classes: int) -> Int64:
    """(count,), what noisy images show: each class is as likely as the others."""
    drawn: Int64 = (_uniform(seed, NOISE, count).astype(np.float64) * n_classes).astype(np.int64)
    return drawn
