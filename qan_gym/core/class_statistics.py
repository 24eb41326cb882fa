"""What is measured of each class: its losses in training and on validation images, and how often it is seen.

The running mean of a class's training loss is that of the images with its label in the mini-batches, before the
updates, without the loss scale; it remembers about MEMORY images, and begins at the class's validation loss. That one
is measured at the reset and after every action, on the first `class_validation_images` validation images of each class.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from qan_gym.core.features import feature
from qan_gym.core.reward import safe_log
from qan_gym.core.run_state import LOSS_LIMIT, RunState
from qan_gym.utils.arrays import NUMPY, TORCH, Array

MEMORY = 100  # images of a class that the running mean of its loss remembers


# --- bookkeeping ----------------------------------------------------------------------------------------------------


def sums_by_class(labels: Array, values: Array, n_classes: int) -> tuple[Array, Array]:
    """The sums of values and the numbers of images of each class, (N, K) float64 each.

    Each sum is added up in the order of the images, so that it does not depend on the other runs, nor on what has no
    label.

    Args:
        labels: (N, I) int64; -1: no image.
        values: (N, I) float32, finite.
        n_classes: K.
    """
    if isinstance(labels, Tensor):
        shape = (len(labels), n_classes + 1)
        total, number = (torch.zeros(shape, dtype=torch.float64, device=labels.device) for _ in range(2))
        at = torch.where(labels < 0, n_classes, labels)
        total.scatter_add_(1, at, values.double())
        number.scatter_add_(1, at, torch.ones_like(values, dtype=torch.float64))
        return total[:, :-1], number[:, :-1]
    row, image = np.nonzero(labels >= 0)
    places, size = row * n_classes + labels[row, image], len(labels) * n_classes
    sums = np.bincount(places, weights=values[row, image].astype(np.float64), minlength=size)
    counts = np.bincount(places, minlength=size).astype(np.float64)
    return sums.reshape(-1, n_classes), counts.reshape(-1, n_classes)


def means_by_class(labels: Array, losses: Array, n_classes: int) -> Array:
    """The mean of the losses of each class, (M, K) float32; 0 of a class without images.

    Args:
        labels: (M, n) int64, of the images; -1: no image.
        losses: (M, n) float32, of M networks on them; what is not finite counts as LOSS_LIMIT.
        n_classes: K.
    """
    sums, counts = sums_by_class(labels, _bounded(losses), n_classes)
    means = sums / counts.clip(1.0, None)
    return means.float() if isinstance(means, Tensor) else means.astype(np.float32)


def _bounded(losses: Array) -> Array:
    """Losses of at most LOSS_LIMIT, which stands for what is not finite too."""
    xp: Any = TORCH if isinstance(losses, Tensor) else NUMPY
    return xp.where(xp.isfinite(losses), xp.minimum(losses, LOSS_LIMIT), LOSS_LIMIT)


def class_probe(labels: Tensor, count: int) -> Tensor:
    """The places, (n,) int64 in ascending order, of the first `count` images of each class, or of all it has.

    labels: (total,) int64.
    """
    order = labels.argsort(stable=True)
    ordered = labels[order]
    begins = torch.searchsorted(ordered, ordered, right=False)
    places: Tensor = order[torch.arange(len(order), device=labels.device) - begins < count]
    return places.sort().values


def after_batches(run: RunState, labels: Array, losses: Array) -> None:
    """Bring what is known of the classes up to date with the images of an action's mini-batches.

    Args:
        run: the state of N runs, which measures classes.
        labels: (N, I) int64, of the images; -1: no image.
        losses: (N, I) float32, of the images, before the updates.
    """
    xp, n_classes = run.xp, run.class_loss.shape[1]
    sums, counts = sums_by_class(labels, _bounded(losses), n_classes)
    change = sums / xp.maximum(counts, 1.0) - run.class_loss
    run.class_loss += xp.astype(xp.minimum(counts / MEMORY, 1.0) * change, xp.float32)
    run.class_share[:] = xp.astype(counts / xp.maximum(xp.sum(counts, axis=1), 1.0)[:, None], xp.float32)
    run.class_drawn += xp.astype(counts, xp.int64)


# --- the features ---------------------------------------------------------------------------------------------------


@feature(per_class=True)
def class_loss(run: RunState) -> Array:
    """For each class: ln(running mean of the training loss of the images with its label / ln K)."""
    return safe_log(run.xp, run.class_loss / _chance(run))


@feature(per_class=True)
def class_validation_loss(run: RunState) -> Array:
    """For each class: ln(loss on some of its validation images / ln K), measured after the last action."""
    return safe_log(run.xp, run.class_validation_loss / _chance(run))


@feature(per_class=True)
def class_share(run: RunState) -> Array:
    """For each class: K times its share of the mini-batches of the last action; 0 before the first."""
    return run.class_share * run.n_classes[:, None]


@feature(per_class=True)
def class_size(run: RunState) -> Array:
    """For each class: ln(K times its share of the training images)."""
    return safe_log(run.xp, run.class_sizes * (run.n_classes / run.train_size)[:, None])


@feature(per_class=True)
def class_passes(run: RunState) -> Array:
    """For each class: ln(1 + its images in the mini-batches so far / its training images)."""
    return run.xp.log(1 + run.class_drawn / run.xp.maximum(run.class_sizes, 1))


def _chance(run: RunState) -> Array:
    """(N, 1), the loss of equal probabilities."""
    return run.xp.log(run.n_classes)[:, None]


# The observation "classes".
CLASSES = (
    *("class_loss", "class_validation_loss", "class_share", "class_size", "class_passes"),
    *("budget_share", "log_learning_rate", "log_budget", "log_batch_size", "log_epochs"),
)
