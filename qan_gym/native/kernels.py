"""Train and evaluate N networks `mnist-cnn` by the C kernels, through checked calls.

A call is prepared once: `Kernels.training` and `Kernels.evaluation` check arrays and keep their addresses, so that a
step costs one call into C. What the arrays contain is read at each call. No contents can make C read or write outside
of the arrays: rows, indices, labels and steps are checked at each call, before anything is
written.

The results have the same bits with every instruction set, compiler, number of threads and order of rows.
"""

import ctypes
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qan_gym.native import library
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


class Kernels:
    """The kernels for images of some number of channels and classes.

    Attributes:
        instruction_set: "avx512", "avx2" or "neon".
        size: floats of one network in memory, as `Network.size` says.
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
        available = library.instruction_sets(found)
        if not 1 <= channels <= MAX_CHANNELS or not 2 <= n_classes <= MAX_CLASSES or threads < 1:
            raise ValueError(
                f"the kernels take 1 to {MAX_CHANNELS} channels, 2 to {MAX_CLASSES} classes and at least one thread, "
                f"not {channels}, {n_classes} and {threads}"
            )
        if instruction_set is not None and instruction_set not in available:
            raise ValueError(f"no instruction set {instruction_set!r} here; there are {', '.join(available)}")
        self.channels, self.n_classes, self.threads = channels, n_classes, threads
        self.instruction_set = instruction_set or available[0]
        self.size: int = found.qan_size(channels, n_classes)
        self._library = found
        self._memories = [np.empty(found.qan_workspace_size() + 64, np.uint8) for _ in range(threads)]
        self._workspaces = [-(-memory.ctypes.data // 64) * 64 for memory in self._memories]  # addresses
        self._helpers = ThreadPoolExecutor(threads - 1, "qan-kernels") if threads > 1 else None
        self._lock = threading.Lock()  # one call at a time: the workspaces are shared

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
        n_classes = network.shapes["linear2.bias"][0]
        if not 1 <= channels <= MAX_CHANNELS or not 2 <= n_classes <= MAX_CLASSES:
            return (
                f"the kernels take 1 to {MAX_CHANNELS} channels and 2 to {MAX_CLASSES} classes, "
                f"not {channels} and {n_classes}"
            )
        return None

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

        Raises:
            ValueError: an array is not as described, or what is needed is missing.
        """
        number, _ = _shape("weights", weights, 2)
        _, *most, batch = _shape("indices", indices, 2 if sequence is None else 3)
        job = library.Training(work=self._work(number), data=self._data(data))
        call = Call(self, job, self._library.qan_begin_training, self._library.qan_train, number)
        call.keep(data, weights, indices, loss, finite, update, gradients)
        job.batch = batch
        job.indices = _address("indices", indices, np.int64, (number, *most, batch), written=sequence is not None)
        job.indices_stride = batch * math.prod(most)
        job.weights = self._memory("weights", weights, number, written=True)
        job.loss = _address("loss", loss, np.float32, (number,), written=True)
        job.finite = _address("finite", finite, np.uint8, (number,), written=True)
        if (update is None) == (gradients is None):
            raise ValueError("either update or gradients must be given")
        if gradients is not None:
            job.gradients = self._memory("gradients", gradients, number, written=True)
        if update is not None:
            self._declare_update(job, update, number)
        if sequence is not None:
            self._declare_sequence(job, sequence, number, batch)
        call.bind(data, indices)
        return call

    def evaluation(self, data: Images, weights: Float32, loss: Float32, accuracy: Float32) -> "Call":
        """Prepare the evaluation of N networks on all images.

        Args:
            data: the images.
            weights: (N, size) float32, laid out as `Network.views` says.
            loss: (N,) float32, out: the mean cross-entropy.
            accuracy: (N,) float32, out, from 0 to 1; of equal logits the first counts.

        Raises:
            ValueError: an array is not as described.
        """
        number, _ = _shape("weights", weights, 2)
        job = library.Evaluation(work=self._work(number), data=self._data(data))
        call = Call(self, job, self._library.qan_begin_evaluation, self._library.qan_evaluate, number)
        call.keep(data, weights, loss, accuracy)
        job.weights = self._memory("weights", weights, number)
        job.loss = _address("loss", loss, np.float32, (number,), written=True)
        job.accuracy = _address("accuracy", accuracy, np.float32, (number,), written=True)
        call.data = data
        return call

    def _work(self, number: int) -> library.Work:
        code = library.INSTRUCTION_SETS[self.instruction_set]
        return library.Work(networks=number, count=number, instruction_set=code)

    def _data(self, data: Images) -> library.Images:
        (count,), c = _shape("labels", data.labels, 1), self.channels
        job = library.Images(count=count, channels=c, classes=self.n_classes)
        job.images = _address("images", data.images, np.uint8, (count, c, SIDE, SIDE))
        job.labels = _address("labels", data.labels, np.int64, (count,))
        job.mean = _address("mean", data.mean, np.float32, (c,))
        job.std = _address("std", data.std, np.float32, (c,))
        if data.labels.min() < 0 or data.labels.max() >= self.n_classes:
            raise ValueError(f"labels: they must be from 0 to {self.n_classes - 1}")
        return job

    def _memory(self, name: str, array: Float32, number: int, written: bool = False) -> library.Memory:
        address = _address(name, array, np.float32, (number, self.size), written, gaps=True)
        return library.Memory(address, array.strides[0] // array.itemsize)

    def _declare_update(self, job: library.Training, update: Update, number: int) -> None:
        if update.optimizer not in library.OPTIMIZERS[1:]:
            raise ValueError(f"no optimizer {update.optimizer!r}; there are {', '.join(library.OPTIMIZERS[1:])}")
        if len(update.slots) != SLOTS[update.optimizer]:
            raise ValueError(f"slots: {update.optimizer} has {SLOTS[update.optimizer]}, not {len(update.slots)}")
        job.optimizer = library.OPTIMIZERS.index(update.optimizer)
        for name in ("learning_rate", "momentum", "weight_decay"):
            setattr(job, name, _address(name, getattr(update, name), np.float64, (number,)))
        for place, slot in enumerate(update.slots):
            job.slots[place] = self._memory(f"slots[{place}]", slot, number, written=True)
        if update.optimizer == "adamw":
            if update.step is None:
                raise ValueError("step: adamw needs it")
            job.step = _address("step", update.step, np.int64, (number,))
            job.beta2, job.epsilon = AdamW.BETA2, AdamW.EPSILON
        if update.strength is not None:
            self._declare_pull(job, update, update.strength, number)

    def _declare_sequence(self, job: library.Training, sequence: BatchSequence, number: int, batch: int) -> None:
        declared, count = job.sequence, job.data.count
        if not 1 <= sequence.per_epoch <= count // batch:
            raise ValueError(f"per_epoch: it must be from 1 to {count // batch}, not {sequence.per_epoch}")
        declared.per_epoch, declared.smoothing = sequence.per_epoch, sequence.smoothing
        declared.pull_end, declared.pull_strength = sequence.pull_end, sequence.pull_strength
        declared.order = _address("order", sequence.order, np.int32, (number, count))
        declared.clock = _address("clock", sequence.clock, np.int64, (number,), written=True)
        declared.pulled = _address("pulled", sequence.pulled, np.bool_, (number,))
        declared.smoothed = _address("smoothed", sequence.smoothed, np.float32, (number,), written=True)

    def _declare_pull(self, job: library.Training, update: Update, strength: Float32, number: int) -> None:
        job.strength = _address("strength", strength, np.float32, (number,))
        reference = update.reference
        if reference is None:
            raise ValueError("reference: the pull needs it")
        if isinstance(reference, np.ndarray) and reference.ndim == 1:
            job.reference = self._memory("reference", reference[None], 1)
            job.reference.stride = 0
        else:
            job.reference = self._memory("reference", reference, number)
        names = set(update.pulled)
        if unknown := names.difference(PARAMETERS):
            raise ValueError(f"pulled: no parameters {', '.join(sorted(unknown))}; there are {', '.join(PARAMETERS)}")
        job.pulled = sum(1 << PARAMETERS.index(name) for name in names)

    def exp(self, x: Float64) -> Float64:
        """e^x, float64 of any shape."""
        return self._map(self._library.qan_exp, x)

    def log(self, x: Float64) -> Float64:
        """The natural logarithm, float64 of any shape."""
        return self._map(self._library.qan_log, x)

    def cos(self, x: Float64) -> Float64:
        """The cosine, float64 of any shape, for |x| up to 2 pi 1,000."""
        return self._map(self._library.qan_cos, x)

    def _map(self, function: Callable[[int, int, int], None], x: Float64) -> Float64:
        x = np.ascontiguousarray(x, dtype=np.float64)
        result = np.empty_like(x)
        function(x.ctypes.data, result.ctypes.data, x.size)
        return result

    def run(self, begin: Callable[[Any], int], work: Callable[[Any, int], None], job: Any, count: int) -> int:
        """Do a call's networks on up to `threads` threads; returns the code of an error."""
        with self._lock:
            error = begin(job)
            if error:
                return error
            futures = []
            if self._helpers is not None:
                helpers = min(self.threads, count) - 1
                futures = [self._helpers.submit(work, job, space) for space in self._workspaces[1 : 1 + helpers]]
            work(job, self._workspaces[0])
            for future in futures:
                if not future.cancel():  # one that has not begun has nothing left to do
                    future.result()
            return 0


class Call:
    """A prepared call. It holds on to its arrays; their contents are read, and results written, when it is called."""

    def __init__(self, kernels: Kernels, job: Any, begin: Any, work: Any, number: int) -> None:
        """Made by `Kernels`."""
        self._kernels, self._job, self._begin, self._work, self._number = kernels, job, begin, work, number
        self._reference = ctypes.byref(job)
        self._rows = np.zeros(number, np.int64)
        self._seen = np.zeros(number, np.uint8)
        job.work.seen = self._seen.ctypes.data
        self._kept: tuple[Any, ...] = ()
        self.data: Images | None = None
        self.indices: Int64 | None = None
        self._first_index = 0  # its address

    def keep(self, *arrays: Any) -> None:
        """Hold on to what the job has addresses of."""
        self._kept = arrays

    def bind(self, data: Images, indices: Int64) -> None:
        """Remember what the training is of."""
        self.data, self.indices, self._first_index = data, indices, self._job.indices

    def __call__(self, rows: Int64 | Sequence[int] | None = None) -> None:
        """Do it.

        Args:
            rows: (M,) integers, the numbers of the networks that it is about, each at most once; None: all.

        Raises:
            ValueError: rows, indices, labels or steps are wrong; nothing has been written.
        """
        count = self._number
        work = self._job.work
        if rows is None:
            work.rows = None
        else:
            rows = np.asarray(rows)
            count = len(rows)
            if count > self._number or rows.ndim != 1 or (count and rows.dtype.kind not in "iu"):
                raise ValueError(f"rows: at most {self._number} integers, each at most once")
            self._rows[:count] = rows
            work.rows = self._rows.ctypes.data
        work.count = count
        error = self._kernels.run(self._begin, self._work, self._reference, count)
        if error:
            raise ValueError(self._message(library.ERRORS[error]))

    def part(self, first: int, count: int, rates: Float64 | None = None) -> None:
        """Train on the mini-batches first, ..., first + count - 1 of a sequence.

        Args:
            first: from 0.
            count: at least 1; first + count is at most T.
            rates: (count, N) float64, the learning rates; None: that of the update stays.

        Raises:
            ValueError: as a call; or an argument is out of its range.
        """
        most = 0 if self.indices is None or self.indices.ndim < 3 else self.indices.shape[1]
        if not (0 <= first < first + count <= most):
            raise ValueError(f"first and count: {first} and {count} do not lie within {most} mini-batches")
        sequence = self._job.sequence
        sequence.count = count
        sequence.rates = None if rates is None else _address("rates", rates, np.float64, (count, self._number))
        self._job.indices = self._first_index + first * self._job.batch * np.dtype(np.int64).itemsize
        self()

    def _message(self, error: str) -> str:
        if error in ("wrong row", "repeated row"):
            return f"rows: they must be different numbers from 0 to {self._number - 1}"
        if error == "wrong index" and self.data is not None:
            return f"indices: they must be from 0 to {len(self.data.labels) - 1}"
        if error == "wrong label":
            return f"labels: they must be from 0 to {self._kernels.n_classes - 1}"
        if error in ("wrong step", "wrong clock"):
            return f"{error.removeprefix('wrong ')}: it must count from 0"
        return error


def _shape(name: str, array: Any, axes: int) -> tuple[int, ...]:
    """The shape of what is checked to be an array with some number of axes, none of them empty."""
    if not isinstance(array, np.ndarray) or array.ndim != axes or 0 in array.shape:
        raise ValueError(f"{name}: it must be an array with {axes} axes, none of them empty")
    return tuple(array.shape)


def _address(
    name: str, array: Any, dtype: Any, shape: tuple[int, ...], written: bool = False, gaps: bool = False
) -> int:
    """The address of an array that is checked to be as C expects it; `gaps`: there may be room between its rows."""
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
        what = f"{array.shape} of {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{name}: it must be {shape} of {np.dtype(dtype)}, not {what}")
    rows = array[0] if gaps else array
    if not rows.flags.c_contiguous or not array.flags.aligned or (gaps and not _rows_apart(array)):
        raise ValueError(f"{name}: it must be contiguous and aligned")
    if written and not array.flags.writeable:
        raise ValueError(f"{name}: it is read-only")
    return array.ctypes.data


def _rows_apart(array: NDArray[Any]) -> bool:
    step, size = array.strides[0], array.shape[1] * array.itemsize
    return step % array.itemsize == 0 and (len(array) == 1 or step >= size)
