"""Drawing mini-batches, for N runs at once.

Every run goes through its own random order of the training split, redrawn each epoch. In shuffled SGD a mini-batch is
the next piece of that order. Where a game draws by class, the order is sorted by class (each class in random order),
and a mini-batch takes the next images of each class in the numbers that the game asks for.
"""

import torch
from torch import Tensor

from qan_gym.core.run_state import RunState
from qan_gym.utils import random_streams


def fill_exhausted(wanted: Tensor, left: Tensor) -> Tensor:
    """The wanted counts as far as images are left; a shortage is filled from the other classes, in class order.

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
    """Draws mini-batches from one training split; where each run stands in it is part of the run's state."""

    def __init__(self, labels: Tensor, n_classes: int, batch_size: int) -> None:
        """labels: (n,) int64, of the training split."""
        self.labels = labels
        self.batch_size = batch_size
        self.class_sizes = torch.bincount(labels, minlength=n_classes)  # (K,)
        self.class_starts = self.class_sizes.cumsum(0) - self.class_sizes  # (K,) in an order sorted by class
        self.in_batch = torch.arange(batch_size, device=labels.device)  # (B,)

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches only: what is left over at the end of an epoch is not seen in it."""
        return len(self.labels) // self.batch_size

    def start_epoch(self, run: RunState, rows: Tensor, seeds: Tensor, epoch: Tensor) -> None:
        """Draw new orders for some runs.

        Args:
            run: the state of N runs.
            rows: (M,) int64, which of them.
            seeds: (M,) int64, their seeds.
            epoch: (M,) int64, the epoch that begins.
        """
        order = random_streams.permutation(seeds, random_streams.ORDER, epoch, len(self.labels))  # (M, n)
        if run.by_class[rows].any():
            by_class = self.labels[order].argsort(dim=1, stable=True)  # (M, n) positions, sorted by class
            order = torch.where(run.by_class[rows, None], order.gather(1, by_class), order)
        run.order[rows] = order.to(torch.int32)
        run.class_used[rows] = 0

    def draw(self, run: RunState, wanted: Tensor | None) -> Tensor:
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
            place = torch.where(run.by_class[:, None], self._places_by_class(run, wanted), place)
        return run.order.gather(1, place).to(torch.int64)

    def _places_by_class(self, run: RunState, wanted: Tensor) -> Tensor:
        """Places in an order sorted by class, (N, B); counts what is drawn in `class_used`."""
        take = fill_exhausted(wanted, self.class_sizes - run.class_used)  # (N, K)
        ends = take.cumsum(dim=1)  # (N, K) where in the batch each class ends
        label = torch.searchsorted(ends, self.in_batch.expand(len(ends), -1).contiguous(), right=True)  # (N, B)
        label = label.clamp(max=len(self.class_sizes) - 1)  # beyond the last class only in runs that are over
        rank = self.in_batch - (ends - take).gather(1, label)  # (N, B) within the images of its class in this batch
        place = self.class_starts[label] + run.class_used.gather(1, label) + rank
        run.class_used += torch.where(run.by_class[:, None], take, 0)
        return place.clamp(max=len(self.labels) - 1)
