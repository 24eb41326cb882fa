"""Drawing mini-batches, for N runs at once.

Every run goes through its own random order of the training split, redrawn each epoch. In shuffled SGD a mini-batch is
the next piece of that order. Where a game draws by class, the order is sorted by class (each class in random order),
and a mini-batch takes the next images of each class in the numbers that the game asks for.
"""

from typing import Any

import torch
from torch import Tensor

from qan_gym.core.run_state import RunState
from qan_gym.utils import random_streams
from qan_gym.utils.arrays import Array, as_array


def fill_exhausted(xp: Any, wanted: Array, left: Array) -> Array:
    """The wanted counts as far as images are left; a shortage is filled from the other classes, in class order.

    Args:
        xp: the namespace of the arrays.
        wanted: (N, K) int64, images asked for per class.
        left: (N, K) int64, images not yet drawn in this epoch; each row sums to at least that of `wanted`.

    Returns:
        (N, K) int64, images to draw per class; each row has the sum of `wanted`.
    """
    own = xp.minimum(wanted, left)
    short = xp.sum(wanted - own, axis=1)[:, None]  # (N, 1)
    spare = left - own
    spare_before = xp.cumulative_sum(spare, axis=1) - spare  # in the classes before this one
    return own + xp.minimum(xp.maximum(short - spare_before, 0), spare)


class Sampler:
    """Draws mini-batches from one training split; where each run stands in it is part of the run's state."""

    def __init__(self, labels: Tensor, num_runs: int, n_classes: int, batch_size: int) -> None:
        """labels: (n,) int64, of the training split."""
        self.labels = labels
        self.batch_size = batch_size
        sizes = (labels[:, None] == torch.arange(n_classes, device=labels.device)).sum(dim=0)  # (K,)
        self.class_sizes = as_array(sizes)
        self.class_starts = as_array(sizes.cumsum(0) - sizes)  # (K,) in an order sorted by class
        self.in_batch = as_array(torch.arange(batch_size, device=labels.device))  # (B,)
        self.row = as_array(torch.arange(num_runs, device=labels.device))[:, None]  # (N, 1)

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches only: what is left over at the end of an epoch is not seen in it."""
        return len(self.labels) // self.batch_size

    def start_epoch(self, run: RunState, rows: Tensor, seeds: Tensor, epoch: Tensor) -> None:
        """Draw new orders for some runs.

        Args:
            run: the state of N runs, as tensors.
            rows: (M,) int64, which of them.
            seeds: (M,) int64, their seeds.
            epoch: (M,) int64, the epoch that begins.
        """
        order = random_streams.permutation(seeds, random_streams.ORDER, epoch, len(self.labels))  # (M, n)
        sorted_by_class = run.by_class[rows]
        if sorted_by_class.any():
            by_class = self.labels[order].argsort(dim=1, stable=True)  # (M, n) positions, sorted by class
            order = torch.where(sorted_by_class[:, None], order.gather(1, by_class), order)
        run.order[rows] = order.to(torch.int32)
        run.class_used[rows] = 0

    def draw(self, run: RunState, wanted: Array | None) -> Array:
        """The next mini-batch of every run.

        Args:
            run: the state of N runs.
            wanted: (N, K) int64, how many images of each class, for runs that draw by class; None where none does.

        Returns:
            (N, B) int64, indices into the training split.
        """
        batch = run.clock % self.batches_per_epoch  # (N,) within the epoch
        place = batch[:, None] * self.batch_size + self.in_batch  # (N, B) in the order
        if wanted is not None:
            place = run.xp.where(run.by_class[:, None], self._places_by_class(run, wanted), place)
        return run.xp.astype(run.order[self.row, place], run.xp.int64)

    def _places_by_class(self, run: RunState, wanted: Array) -> Array:
        """Places in an order sorted by class, (N, B); counts what is drawn in `class_used`."""
        xp = run.xp
        take = fill_exhausted(xp, wanted, self.class_sizes - run.class_used)  # (N, K)
        ends = xp.cumulative_sum(take, axis=1)  # (N, K) where in the batch each class ends
        label = xp.sum(ends[:, None, :] <= self.in_batch[:, None], axis=2)  # (N, B), classes that have ended before
        label = xp.minimum(label, len(self.class_sizes) - 1)  # beyond the last class only in runs that are over
        rank = self.in_batch - (ends - take)[self.row, label]  # (N, B) within the images of its class in this batch
        place = self.class_starts[label] + run.class_used[self.row, label] + rank
        run.class_used += xp.where(run.by_class[:, None], take, 0)
        return xp.minimum(place, len(self.labels) - 1)
