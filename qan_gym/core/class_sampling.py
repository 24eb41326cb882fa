"""Drawing mini-batches of classes with replacement, for N runs at once, each from a training split of its own.

A run says which share of its next mini-batches each class is to have. A mini-batch of B images gets each class in
proportion, rounded up or down at random by one draw for the mini-batch (systematic sampling, as in particle filters),
so that on the average it has exactly its share. A class goes through its images in a random order, and begins anew, in
another order, when it is exhausted. What is drawn depends on the seed of the run, the number of the mini-batch, the
shares, and how many images of each class were drawn before, and on nothing else.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qan_gym.core.run_state import RunState
from qan_gym.core.sampling import Sampler
from qan_gym.native import library
from qan_gym.utils import random_streams
from qan_gym.utils.arrays import Array, as_array, as_tensor

Int64 = NDArray[np.int64]


def counts_of_shares(xp: Any, shares: Array, there: Array, batch_size: Array, offset: Array) -> Array:
    """The number of images of each class in a mini-batch.

    The images are points at a distance of 1 on a line of length B, the first at `offset`; the classes divide the line
    in proportion to their shares.

    Args:
        xp: the namespace of the arrays.
        shares: (N, K) float64, at least 0, of any sum; those of classes without images count as 0, and where nothing is
            left, all classes with images alike.
        there: (N, K) bool, the classes that have images.
        batch_size: (N,) float64, B.
        offset: (N,) float64 in [0, 1).

    Returns:
        (N, K) int64, of sum B; the mean over the offsets is B times the share.
    """
    own = shares * there
    own = xp.where(xp.sum(own, axis=1)[:, None] > 0, own, xp.astype(there, xp.float64))
    ends = xp.cumulative_sum(own, axis=1)  # (N, K)
    total = ends[:, -1:]
    points = xp.ceil(ends / total * batch_size[:, None] - offset[:, None])  # before the end of each class
    points = xp.where(ends == total, batch_size[:, None], xp.minimum(xp.maximum(points, 0.0), batch_size[:, None]))
    counts = xp.astype(points, xp.int64)
    return counts - xp.concat([xp.zeros_like(counts[:, :1]), counts[:, :-1]], axis=1)


@dataclass(eq=False)
class ClassMembers:
    """The images of each class, of N runs.

    Attributes:
        members: (N, most) int32, indices into a run's training split: the images of class 0, of class 1, ...
        sizes: (N, K) int64, how many of each class.
        starts: (N, K) int64, where each class begins in `members`.
    """

    members: Array
    sizes: Array
    starts: Array = field(init=False)

    def __post_init__(self) -> None:
        """Where the classes begin."""
        self.starts = self.sizes.cumsum(1) - self.sizes

    @classmethod
    def empty(cls, num_runs: int, most: int, n_classes: int) -> ClassMembers:
        """Of runs without images, on CPU; `most`: images that a run has room for."""
        return cls(np.zeros((num_runs, most), np.int32), np.zeros((num_runs, n_classes), np.int64))

    def assign(self, row: int, labels: Int64) -> None:
        """Give a run a training split, by its labels (n,)."""
        n_classes = self.sizes.shape[1]
        self.members[row, : len(labels)] = labels.argsort(kind="stable")
        self.sizes[row] = np.bincount(labels, minlength=n_classes)
        self.starts[row] = self.sizes[row].cumsum() - self.sizes[row]

    def draw(self, xp: Any, seeds: Array, counts: Array, used: Array, room: int) -> Array:
        """The indices of a mini-batch of every run; `used` moves on.

        Args:
            xp: the namespace of the arrays.
            seeds: (N,) int64, of the runs.
            counts: (N, K) int64, images of each class; 0 of a class without images.
            used: (N, K) int64, images drawn of each class before.
            room: images that the largest mini-batch has.

        Returns:
            (N, room) int64; behind a run's mini-batch lies anything that is an index.
        """
        device, n_classes = counts.device, counts.shape[1]
        row = xp.arange(len(counts), device=device)[:, None]
        place = xp.arange(room, device=device)
        ends = xp.cumulative_sum(counts, axis=1)  # (N, K)
        label = xp.sum(xp.astype(ends[:, None, :] <= place[:, None], xp.int64), axis=2)  # classes that have ended
        label = xp.minimum(label, n_classes - 1)  # (N, room)
        number = used[row, label] + place - (ends - counts)[row, label]  # of the draw, within its class
        size = xp.maximum(self.sizes[row, label], 1)
        number = xp.maximum(number, 0)
        orders = xp.reshape(number // size * n_classes + label, (-1,))
        flat = [xp.reshape(xp.broadcast_to(seeds[:, None], label.shape), (-1,)), orders]
        places, sizes = xp.reshape(number % size, (-1, 1)), xp.reshape(size, (-1,))
        found = random_streams.shuffled(flat[0], random_streams.BY_CLASS, flat[1], places, sizes)
        used += counts
        within = self.starts[row, label] + xp.reshape(found, label.shape)
        return xp.astype(self.members[row, xp.minimum(within, self.members.shape[1] - 1)], xp.int64)

    def draw_all(self, xp: Any, seeds: Array, counts: Array, used: Array, room: int, native: bool) -> Array:
        """The indices of several mini-batches of every run: (N, M, room) int64, as those of `draw`.

        Args:
            xp: the namespace of the arrays.
            seeds: (N,) int64.
            counts: (N, M, K) int64.
            used: (N, K) int64; moves on.
            room: images that the largest mini-batch has.
            native: whether the library draws, on CPU, which gives the same.
        """
        if native:
            return self._draw_native(seeds, np.ascontiguousarray(counts), used, room)
        drawn = [self.draw(xp, seeds, counts[:, number], used, room) for number in range(counts.shape[1])]
        return xp.stack(drawn, axis=1)

    def _draw_native(self, seeds: Int64, counts: Int64, used: Int64, room: int) -> Int64:
        rows, batches, classes = counts.shape
        indices = np.zeros((rows, batches, room), np.int64)
        job = library.ClassDraws(rows=rows, batches=batches, classes=classes, room=room, most=self.members.shape[1])
        arrays = {"seeds": seeds, "counts": counts, "sizes": self.sizes, "members": self.members, "used": used}
        for name, array in {**arrays, "indices": indices}.items():
            assert array.flags.c_contiguous, name
            setattr(job, name, array.ctypes.data)
        found = library.find()
        assert not isinstance(found, str)
        found.qan_draw_classes(ctypes.byref(job))
        return indices


class ReplacementSampler(Sampler):
    """A `Sampler` whose runs draw the classes with replacement; those that do not draw by class are shuffled SGD."""

    def __init__(self, labels: Tensor, num_runs: int, n_classes: int, batch_size: int, native: bool) -> None:
        """labels: (n,) int64, of the training split that all runs have; native: whether the library draws."""
        super().__init__(labels, num_runs, n_classes, batch_size)
        self.native = native
        shared = (labels.argsort(stable=True).int(), as_tensor(self.class_sizes))
        members, sizes = (as_array(one.expand(num_runs, -1).contiguous()) for one in shared)
        self.of_classes = ClassMembers(members, sizes)

    def start_epoch(self, run: RunState, rows: Tensor, seeds: Tensor, epoch: Tensor) -> None:
        """Draw new orders for runs of shuffled SGD; see `Sampler.start_epoch`."""
        run.order[rows] = random_streams.permutation(seeds, random_streams.ORDER, epoch, len(self.labels)).int()

    def draw(self, run: RunState, wanted: Array | None) -> Array:
        """See `Sampler.draw`; wanted: (N, K) float64, the shares of the classes."""
        indices = super().draw(run, None)
        if wanted is None:
            return indices
        xp = run.xp
        offset = random_streams.uniform_at(run.device_seed, random_streams.SHARES, run.clock)
        counts = counts_of_shares(xp, wanted, self.of_classes.sizes > 0, run.batch_size, offset) * run.by_class[:, None]
        given = (run.device_seed, counts[:, None], run.class_used, self.batch_size, self.native)
        drawn = self.of_classes.draw_all(xp, *given)[:, 0]
        return xp.where(run.by_class[:, None], drawn, indices)
