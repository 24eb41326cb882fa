"""Which images the next mini-batch holds, for N runs at once.

Every run goes through its own random order of the training split, redrawn each epoch. In shuffled SGD a batch is the
next piece of that order. In the roulette the order is sorted by class (each class in random order), and a batch
takes the next images of each class in the numbers that the last ten actions ask for.
"""

import torch
from torch import Tensor

from qan_gym import streams

MEMORY = 10  # actions that the roulette remembers


def roulette_counts(window: Tensor, batch_size: int, n_classes: int) -> Tensor:
    """How many images of each class the remembered actions ask for.

    floor(B / 10) for each of the 9 older actions, the rest, B - 9 * floor(B / 10), for the newest.

    Args:
        window: (N, MEMORY) int64, the remembered actions, the newest last.
        batch_size: B.
        n_classes: K.

    Returns:
        (N, K) int64; each row sums to B.
    """
    shares = torch.full_like(window, batch_size // MEMORY)  # (N, MEMORY)
    shares[:, -1] = batch_size - (MEMORY - 1) * (batch_size // MEMORY)
    counts = window.new_zeros(len(window), n_classes)  # (N, K)
    return counts.scatter_add_(1, window, shares)


def fill_exhausted(wanted: Tensor, left: Tensor) -> Tensor:
    """What can be had of what is wanted; what is short is filled from the other classes, in class order.

    Args:
        wanted: (N, K) int64, images asked for per class.
        left: (N, K) int64, images not yet drawn in this epoch; each row sums to at least that of `wanted`.

    Returns:
        (N, K) int64, images to draw per class; each row has the sum of `wanted`.
    """
    own = torch.minimum(wanted, left)
    short = (wanted - own).sum(dim=1, keepdim=True)  # (N, 1)
    spare = left - own
    spare_before = spare.cumsum(dim=1) - spare  # in the classes before this one
    return own + torch.minimum((short - spare_before).clamp(min=0), spare)


class Sampler:
    """The orders of N runs through one training split, and how far each run has come.

    Attributes:
        order: (N, n) int32, the order of this epoch.
        used: (N, K) int64, images of each class that the roulette has drawn in this epoch.
        by_class: (N,) bool, whether the run's batches are chosen by class (roulette) or shuffled.
    """

    def __init__(self, labels: Tensor, n_classes: int, num_runs: int, batch_size: int) -> None:
        """labels: (n,) int64, of the training split."""
        self.labels = labels
        self.batch_size = batch_size
        self.class_sizes = torch.bincount(labels, minlength=n_classes)  # (K,)
        self.class_starts = self.class_sizes.cumsum(0) - self.class_sizes  # (K,) in an order sorted by class
        self.in_batch = torch.arange(batch_size, device=labels.device)  # (B,)
        self.order = torch.zeros(num_runs, len(labels), dtype=torch.int32, device=labels.device)
        self.used = torch.zeros(num_runs, n_classes, dtype=torch.int64, device=labels.device)
        self.by_class = torch.zeros(num_runs, dtype=torch.bool, device=labels.device)

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches only: what is left over at the end of an epoch is not seen in it."""
        return len(self.labels) // self.batch_size

    def start_epoch(self, rows: Tensor, seeds: Tensor, epoch: Tensor) -> None:
        """Draw new orders for some runs.

        Args:
            rows: (M,) int64, which runs.
            seeds: (M,) int64, their seeds.
            epoch: (M,) int64, the epoch that begins.
        """
        order = streams.permutation(seeds, streams.ORDER, epoch, len(self.labels))  # (M, n)
        if self.by_class[rows].any():
            by_class = self.labels[order].argsort(dim=1, stable=True)  # (M, n) positions, sorted by class
            order = torch.where(self.by_class[rows, None], order.gather(1, by_class), order)
        self.order[rows] = order.to(torch.int32)
        self.used[rows] = 0

    def draw(self, batch: Tensor, window: Tensor | None) -> Tensor:
        """The next mini-batch of every run.

        Args:
            batch: (N,) int64, the number of the batch within its epoch.
            window: (N, MEMORY) int64, the remembered actions; None where no run is played by class.

        Returns:
            (N, B) int64, indices into the training split.
        """
        place = batch[:, None] * self.batch_size + self.in_batch  # (N, B) in the order
        if window is not None:
            place = torch.where(self.by_class[:, None], self._roulette(window), place)
        return self.order.gather(1, place).to(torch.int64)

    def _roulette(self, window: Tensor) -> Tensor:
        """Places in an order sorted by class, (N, B); moves `used` on."""
        wanted = roulette_counts(window, self.batch_size, len(self.class_sizes))  # (N, K)
        take = fill_exhausted(wanted, self.class_sizes - self.used)  # (N, K)
        ends = take.cumsum(dim=1)  # (N, K) where in the batch each class ends
        label = torch.searchsorted(ends, self.in_batch.expand(len(ends), -1).contiguous(), right=True)  # (N, B)
        label = label.clamp(max=len(self.class_sizes) - 1)  # only in runs that are over, where nothing is left
        rank = self.in_batch - (ends - take).gather(1, label)  # (N, B) within the images of its class in this batch
        place = self.class_starts[label] + self.used.gather(1, label) + rank
        self.used += torch.where(self.by_class[:, None], take, 0)
        return place.clamp(max=len(self.labels) - 1)
