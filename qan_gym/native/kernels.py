"""Train and evaluate N networks `mnist-cnn` by the C kernels, through checked calls.

A call is prepared once: `Kernels.training` and `Kernels.evaluation` check arrays and keep their addresses, so that a
step costs one call into C. What the arrays contain is read at each call. No contents can make C read or write outside
of the arrays: rows, indices, labels and steps are checked at each call, before anything is written.

The results have the same bits with every instruction set, compiler, number of threads and order of rows.
"""

import ctypes
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qan_gym.native import library
from qan_gym.native.arrays import Addresses, shape_of
from qan_gym.native.workers import Workers
from qan_gym.optimizee import zoo
from qan_gym.optimizee.network import Network
from qan_gym.optimizee.optimizers import AdamW

SIDE = 32  # the images' height and width
MAX_CHANNELS, MAX_CLASSES = 3, 128  # as in src/layout.h
# The parameters in memory, one after another; the place of a name is its bit in `qan_training.pulled`.
PARAMETERS = tuple(
    f"{layer}.{part}" for layer in ("conv1", "conv2", "linear1", "linear2") for part in ("weight", "bias")
)
SLOTS = {"gradients": 0, "sgd": 0, "momentum": 1, "nesterov": 1, "adamw": 2}  # buffers that each optimizer has

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Images:
    """Images, their labels, and how they are normalised.

    Attributes:
        images: (n, C, 32, 32) uint8; background is 0.
        labels: (n,) int64, from 0 to K - 1.
        mean, std: (C,) float32; a network sees (byte - mean) / std.
    """

    images: NDArray[np.uint8]
    labels: Int64
    mean: Float32
    std: Float32


@dataclass(frozen=True)
class Update:
    """What follows the gradients of a mini-batch. All arrays are indexed by the number of the network.

    Attributes:
        optimizer: "sgd", "momentum" (SGD with it), "nesterov" or "adamw".
        learning_rate, momentum, weight_decay: (N,) float64; AdamW's momentum is beta1.
        step: (N,) int64, the updates of the episode before this one; needed by AdamW.
        slots: the optimizer's buffers, (N, size) float32 each: none for "sgd"; the velocity; AdamW's mean and mean
            square of the gradients.
        strength: (N,) float32, c of the pull w <- w + c (w* - w) after the update; None: no pull.
        reference: w*, (N, size) float32, or (size,) for all.
        pulled: the names of the parameters that are pulled.
    """

    optimizer: str
    learning_rate: Float64
    momentum: Float64
    weight_decay: Float64
    step: Int64 | None = None
    slots: Sequence[Float32] = ()
    strength: Float32 | None = None
    reference: Float32 | None = None
    pulled: Iterable[str] = ()


@dataclass(frozen=True)
class BatchSequence:
    """Several mini-batches in a row, each the next piece of a network's own order of the images.

    Attributes:
        order: (N, n) int32, from 0 to n - 1.
        clock: (N,) int64, mini-batches done before; moves on. The mini-batch is the one of number clock % per_epoch.
        per_epoch: mini-batches of an epoch.
        pulled: (N,) bool, whether a network is pulled, by `pull_strength`, as long as its clock is below `pull_end`.
        pull_end, pull_strength: see `pulled`.
        smoothed: (N,) float32, a running mean of the losses, in place.
        smoothing: weight of a new loss in it.
    """

    order: NDArray[np.int32]
    clock: Int64
    per_epoch: int
    pulled: NDArray[np.bool_]
    pull_end: int
    pull_strength: float
    smoothed: Float32
    smoothing: float


@dataclass(frozen=True)
class Measuring:
    """What is measured of the mini-batches of an action, see `qan_gym.core.statistics`; all of it in place.

    Attributes:
        measured: (N, 7) float32, the numbers `qan_gym.core.statistics.MEASURED`, complete at the action's end.
        losses: (N, T) float32, of the T mini-batches of an action, each before its update.
        previous_gradient, previous_displacement: (N, size) float32, the memory from one mini-batch, and action, to the
            next; 0 at the beginning of an episode.
        start: (N, size) float32, the weights at the action's start.
    """

    measured: Float32
    losses: Float32
    previous_gradient: Float32
    start: Float32
    previous_displacement: Float32


class Kernels:
    """The kernels for images of some number of channels and classes.

    Attributes:
        instruction_set: "avx512", "avx2" or "neon".
        size: floats of one network in memory, as `Network.size` says.
        workers: the threads and their memory.
    """

    def __init__(self, channels: int, n_classes: int, threads: int = 1, instruction_set: str | None = None) -> None:
        """Open the library.

        Args:
            channels: C of the images, 1 to 3.
            n_classes: K, 2 to 128.
            threads: that share the networks of a call; the results do not depend on it.
            instruction_set: one of `available`; None: the fastest.

        Raises:
            ValueError: there is no library, or an argument is out of range; the message says why.
        """
        found = library.find()
        if isinstance(found, str):
            raise ValueError(found)
        if reason := _outside(channels, n_classes):
            raise ValueError(reason)
        self.workers = Workers(threads, found.qan_workspace_size())
        self.channels, self.n_classes, self.threads = channels, n_classes, threads
        self.instruction_set = library.chosen_instruction_set(found, instruction_set)
        self.size: int = found.qan_size(channels, n_classes)
        self._library = found

    @staticmethod
    def available() -> list[str]:
        """The instruction sets of the library and this processor, the fastest first; none without a library."""
        found = library.find()
        return [] if isinstance(found, str) else library.instruction_sets(found)

    @staticmethod
    def supports(network: Network) -> str | None:
        """None if the kernels compute this kind of network here, else the reason why not."""
        found = library.find()
        if isinstance(found, str):
            return found
        made_by = f"{network.forward.__module__}.{network.forward.__qualname__}"
        if not made_by.startswith(f"{zoo.__name__}.{zoo.mnist_cnn.__name__}."):
            return "the kernels compute the network mnist-cnn alone"
        channels, *sides = network.image_shape
        if sides != [SIDE, SIDE]:
            return f"the kernels take images of {SIDE} x {SIDE}, not {' x '.join(map(str, sides))}"
        return _outside(channels, network.shapes["linear2.bias"][0])

    def training(
        self,
        data: Images,
        weights: Float32,
        indices: Int64,
        loss: Float32,
        finite: NDArray[np.uint8],
        update: Update | None = None,
        gradients: Float32 | None = None,
        sequence: BatchSequence | None = None,
        measuring: Measuring | None = None,
        loss_scale: Float32 | None = None,
        each: Float32 | None = None,
    ) -> "Call":
        """Prepare the training of N networks on one mini-batch each: gradients of the mean cross-entropy, update, pull.

        With a sequence: on several mini-batches each, which `Call.part` trains on.

        Args:
            data: the images.
            weights: (N, size) float32, laid out as `Network.views` says; changed by the update.
            indices: (N, B) int64, each network's mini-batch, from 0 to n - 1; with a sequence (N, T, B), out: what was
                drawn.
            loss: (N,) float32, out: of the mini-batch, before the update; a sequence adds each to what is there.
            finite: (N,) uint8, out: 1 if the loss and all weights after the update are finite; with `gradients`, if
                the loss is.
            update: what follows; None: nothing does, the gradients are the result.
            gradients: (N, size) float32, out, without `update`. The gaps between parameters may be written to.
            sequence: see above; it sets the update's `strength`, and its `learning_rate` where `Call.part` is given
                rates.
            measuring: with `update`: what is measured of it; None: nothing.
            loss_scale: (N,) float32, which the loss and its gradient are multiplied by; None: 1.
            each: (N, B) float32, out, without a sequence: the loss of each image before the update, without the loss
                scale; None: they are not kept.

        Raises:
            ValueError: an array is not as described, or what is needed is missing.
        """
        number, _ = shape_of("weights", weights, 2)
        _, *most, batch = shape_of("indices", indices, 2 if sequence is None else 3)
        addresses = Addresses()
        job = library.Training(work=self._work(number), data=self._data(addresses, data))
        job.batch, job.indices_stride = batch, batch * math.prod(most)
        shape = (number, *most, batch)
        job.indices = addresses.of("indices", indices, np.int64, shape, written=sequence is not None)
        job.weights = addresses.memory("weights", weights, number, self.size, written=True)
        job.loss = addresses.of("loss", loss, np.float32, (number,), written=True)
        job.finite = addresses.of("finite", finite, np.uint8, (number,), written=True)
        scale = np.ones(number, np.float32) if loss_scale is None else loss_scale
        job.loss_scale = addresses.of("loss_scale", scale, np.float32, (number,))
        if each is not None:
            if sequence is not None:
                raise ValueError("each: the losses of a sequence's images are not kept")
            job.each = addresses.of("each", each, np.float32, shape, written=True)
        if (update is None) == (gradients is None):
            raise ValueError("either update or gradients must be given")
        if gradients is not None:
            job.gradients = addresses.memory("gradients", gradients, number, self.size, written=True)
        if update is not None:
            self._declare_update(job, addresses, update, number, sequenced=sequence is not None)
        if sequence is not None:
            self._declare_sequence(job, addresses, sequence, number)
        if measuring is not None:
            if update is None:
                raise ValueError("measuring: it is of an update, and there is none")
            self._declare_measuring(job, addresses, measuring, number)
        most_batches = most[0] if most else 0
        return Call(self, job, addresses, self._library.qan_begin_training, self._library.qan_train, most_batches)

    def evaluation(
        self, data: Images, weights: Float32, loss: Float32, accuracy: Float32, each: Float32 | None = None
    ) -> "Call":
        """Prepare the evaluation of N networks on all images.

        Args:
            data: the images.
            weights: (N, size) float32, laid out as `Network.views` says.
            loss: (N,) float32, out: the mean cross-entropy.
            accuracy: (N,) float32, out, from 0 to 1; of equal logits the first counts.
            each: (N, n) float32, out: the cross-entropy of each image; None: they are not kept.

        Raises:
            ValueError: an array is not as described.
        """
        number, _ = shape_of("weights", weights, 2)
        addresses = Addresses()
        job = library.Evaluation(work=self._work(number), data=self._data(addresses, data))
        job.weights = addresses.memory("weights", weights, number, self.size)
        job.loss = addresses.of("loss", loss, np.float32, (number,), written=True)
        job.accuracy = addresses.of("accuracy", accuracy, np.float32, (number,), written=True)
        if each is not None:
            job.each = addresses.of("each", each, np.float32, (number, job.data.count), written=True)
        return Call(self, job, addresses, self._library.qan_begin_evaluation, self._library.qan_evaluate)

    def _work(self, number: int) -> library.Work:
        code = library.INSTRUCTION_SETS[self.instruction_set]
        return library.Work(networks=number, count=number, instruction_set=code)

    def _data(self, addresses: Addresses, data: Images) -> library.Images:
        (count,), c = shape_of("labels", data.labels, 1), self.channels
        job = library.Images(count=count, channels=c, classes=self.n_classes)
        job.images = addresses.of("images", data.images, np.uint8, (count, c, SIDE, SIDE))
        job.labels = addresses.of("labels", data.labels, np.int64, (count,))
        job.mean = addresses.of("mean", data.mean, np.float32, (c,))
        job.std = addresses.of("std", data.std, np.float32, (c,))
        if data.labels.min() < 0 or data.labels.max() >= self.n_classes:
            raise ValueError(f"labels: they must be from 0 to {self.n_classes - 1}")
        return job

    def _declare_update(
        self, job: library.Training, addresses: Addresses, update: Update, number: int, sequenced: bool
    ) -> None:
        optimizer, slots = update.optimizer, tuple(update.slots)
        if optimizer not in library.OPTIMIZERS[1:]:
            raise ValueError(f"no optimizer {optimizer!r}; there are {', '.join(library.OPTIMIZERS[1:])}")
        if len(slots) != SLOTS[optimizer]:
            raise ValueError(f"slots: {optimizer} has {SLOTS[optimizer]}, not {len(slots)}")
        job.optimizer = library.OPTIMIZERS.index(optimizer)
        job.learning_rate = addresses.of(
            "learning_rate", update.learning_rate, np.float64, (number,), written=sequenced
        )
        job.momentum = addresses.of("momentum", update.momentum, np.float64, (number,))
        job.weight_decay = addresses.of("weight_decay", update.weight_decay, np.float64, (number,))
        for place, slot in enumerate(slots):
            job.slots[place] = addresses.memory(f"slots[{place}]", slot, number, self.size, written=True)
        if optimizer == "adamw":
            job.step = addresses.of("step", update.step, np.int64, (number,))
            job.beta2, job.epsilon = AdamW.BETA2, AdamW.EPSILON
        if update.strength is not None:
            job.strength = addresses.of("strength", update.strength, np.float32, (number,), written=sequenced)
            job.reference = self._reference(addresses, update.reference, number)
            job.pulled = _bits(update.pulled)

    def _declare_sequence(
        self, job: library.Training, addresses: Addresses, sequence: BatchSequence, number: int
    ) -> None:
        declared, count = job.sequence, job.data.count
        if not 1 <= sequence.per_epoch <= count // job.batch:
            raise ValueError(f"per_epoch: it must be from 1 to {count // job.batch}, not {sequence.per_epoch}")
        declared.per_epoch, declared.smoothing = sequence.per_epoch, sequence.smoothing
        declared.pull_end, declared.pull_strength = sequence.pull_end, sequence.pull_strength
        declared.order = addresses.of("order", sequence.order, np.int32, (number, count))
        declared.clock = addresses.of("clock", sequence.clock, np.int64, (number,), written=True)
        declared.pulled = addresses.of("pulled", sequence.pulled, np.bool_, (number,))
        declared.smoothed = addresses.of("smoothed", sequence.smoothed, np.float32, (number,), written=True)

    def _declare_measuring(
        self, job: library.Training, addresses: Addresses, measuring: Measuring, number: int
    ) -> None:
        declared = job.measuring
        _, declared.batches = shape_of("losses", measuring.losses, 2)
        declared.measured = addresses.of(
            "measured", measuring.measured, np.float32, (number, library.MEASUREMENTS), True
        )
        shape = (number, declared.batches)
        declared.losses = addresses.of("losses", measuring.losses, np.float32, shape, written=True)
        for name in ("previous_gradient", "start", "previous_displacement"):
            memory = addresses.memory(name, getattr(measuring, name), number, self.size, written=True)
            setattr(declared, name, memory)

    def _reference(self, addresses: Addresses, reference: Float32 | None, number: int) -> library.Memory:
        if isinstance(reference, np.ndarray) and reference.ndim == 1:
            shared = addresses.memory("reference", reference[None], 1, self.size)
            return library.Memory(shared.at, 0)
        return addresses.memory("reference", reference, number, self.size)


class Call:
    """A prepared call. It holds on to its arrays; their contents are read, and results written, when it is called."""

    def __init__(
        self, kernels: Kernels, job: Any, addresses: Addresses, begin: Any, work: Any, most_batches: int = 0
    ) -> None:
        """Made by `Kernels`.

        `begin` and `work` are the two functions of the library for this kind of job; `most_batches` is T of a sequence.
        """
        self._most_batches, self._first_index = most_batches, getattr(job, "indices", None)
        self._kernels, self._job, self._addresses = kernels, job, addresses
        self._begin, self._work, self._reference = begin, work, ctypes.byref(job)
        self._number: int = job.work.networks
        self._rows = np.zeros(self._number, np.int64)
        self._seen = np.zeros(self._number, np.uint8)
        job.work.seen = self._seen.ctypes.data

    def __call__(self, rows: Int64 | Sequence[int] | None = None, number: int = 0) -> None:
        """Do it.

        Args:
            rows: (M,) integers, the numbers of the networks that it is about, each at most once; None: all.
            number: of the mini-batch in its action, from 0; read where something is measured.

        Raises:
            ValueError: rows, indices, labels or steps are wrong; nothing has been written.
        """
        if self._most_batches:
            raise ValueError("a sequence is trained on part by part: call `part`")
        with self._kernels.workers.lock:
            self._number_first(number)
            self._do(self._choose(rows))

    def part(self, first: int, count: int, rates: Float64 | None = None) -> None:
        """Train all networks on the mini-batches first, ..., first + count - 1 of a sequence.

        Args:
            first: from 0.
            count: at least 1; first + count is at most T.
            rates: (count, N) float64, the learning rates; None: that of the update stays.

        Raises:
            ValueError: as a call; or an argument is out of its range.
        """
        if not (0 <= first < first + count <= self._most_batches):
            raise ValueError(f"{first} and {count} do not lie within {self._most_batches} mini-batches")
        job, shape = self._job, (count, self._number)
        with self._kernels.workers.lock:
            job.sequence.count = count
            job.sequence.rates = None if rates is None else Addresses().of("rates", rates, np.float64, shape)
            self._number_first(first, count)
            job.indices = self._first_index + first * job.batch * np.dtype(np.int64).itemsize
            self._do(self._choose(None))

    def _number_first(self, first: int, count: int = 1) -> None:
        measuring = getattr(self._job, "measuring", None)
        if measuring is None or not measuring.measured:
            return
        if not 0 <= first <= first + count <= measuring.batches:
            raise ValueError(f"{first} and {count} do not lie within the {measuring.batches} mini-batches of an action")
        measuring.first = first

    def _do(self, count: int) -> None:
        error = self._begin(self._reference)
        if error:
            raise ValueError(self._message(library.ERRORS[error]))
        self._kernels.workers.share(self._work, self._reference, count)

    def _choose(self, rows: Int64 | Sequence[int] | None) -> int:
        """Write the rows into the job; returns how many there are."""
        work = self._job.work
        if rows is None:
            work.count, work.rows = self._number, None
            return self._number
        rows = np.asarray(rows)
        count = len(rows) if rows.ndim == 1 else -1
        if not 0 <= count <= self._number or (count and rows.dtype.kind not in "iu"):
            raise ValueError(f"rows: at most {self._number} integers, each at most once")
        self._rows[:count] = rows
        work.count, work.rows = count, self._rows.ctypes.data
        return count

    def _message(self, error: str) -> str:
        data = self._job.data
        return {
            "wrong row": f"rows: they must be from 0 to {self._number - 1}",
            "repeated row": "rows: each at most once",
            "wrong index": f"indices: they must be from 0 to {data.count - 1}",
            "wrong label": f"labels: they must be from 0 to {data.classes - 1}",
            "wrong step": "step: it must count from 0",
            "wrong clock": "clock: it must count from 0",
        }.get(error, error)


def _outside(channels: int, n_classes: int) -> str | None:
    """Why the kernels are not for so many channels and classes, if they are not."""
    if 1 <= channels <= MAX_CHANNELS and 2 <= n_classes <= MAX_CLASSES:
        return None
    return (
        f"the kernels take 1 to {MAX_CHANNELS} channels and 2 to {MAX_CLASSES} classes, not {channels} and {n_classes}"
    )


def _bits(names: Iterable[str]) -> int:
    """The bits of some parameters' names."""
    names = set(names)
    if unknown := names.difference(PARAMETERS):
        raise ValueError(f"pulled: no parameters {', '.join(sorted(unknown))}; there are {', '.join(PARAMETERS)}")
    return sum(1 << PARAMETERS.index(name) for name in names)
