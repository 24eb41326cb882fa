"""Train and evaluate N multilayer perceptrons by the C kernels, each on a task of its own, in one call.

A row has its own network, images, optimizer, batch size and order of images. `MLPKernels` keeps what C needs to know of
each row's task; `assign` gives one row another task and leaves the others alone. All arguments are checked before C
sees them; nothing is written where one is wrong.

A row's results have the same bits with every instruction set, compiler, number of threads, and whatever the other rows.
"""

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from qan_gym.native import library
from qan_gym.native.arrays import Addresses, shape_of
from qan_gym.native.workers import Workers
from qan_gym.optimizee.optimizers import AdamW

ACTIVATIONS = ("relu", "tanh", "gelu")  # enum mlp_activation
OPTIMIZERS = library.OPTIMIZERS[1:]
INPUTS, WIDTHS, CLASSES, BATCHES = (16, 1024), (2, 256), (2, 128), (1, 512)  # as in src/mlp.h
MOST_HIDDEN = 3

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Examples:
    """Some of a set of images, and their labels. Images are shared; of the others it keeps copies.

    Attributes:
        images: (total, ...) uint8, contiguous; D numbers each.
        chosen: (n,) integers, from 0 to total - 1; kept as int32.
        labels: (n,) integers, from 0; kept as uint8.

    Raises:
        ValueError: an array is not as described.
    """

    images: NDArray[np.uint8]
    chosen: NDArray[Any]
    labels: NDArray[Any]
    most: int = field(init=False)  # the largest label

    def __post_init__(self) -> None:
        """Check and copy."""
        images = self.images
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim < 2 or 0 in images.shape:
            raise ValueError("images: they must be an array (total, ...) of uint8, not empty")
        if not images.flags.c_contiguous:
            raise ValueError("images: they must be contiguous")
        chosen = _integers("chosen", self.chosen, len(images), np.int32)
        labels = _integers("labels", self.labels, CLASSES[1], np.uint8)
        if len(chosen) != len(labels):
            raise ValueError(f"chosen and labels: as many of one as of the other, not {len(chosen)} and {len(labels)}")
        for name, value in (("chosen", chosen), ("labels", labels), ("most", int(labels.max()))):
            object.__setattr__(self, name, value)

    @property
    def inputs(self) -> int:
        """D, numbers of an image."""
        return math.prod(self.images.shape[1:])

    def declared(self) -> library.Examples:
        """As C takes them. Its addresses are valid as long as this object is."""
        return library.Examples(
            images=self.images.ctypes.data,
            total=len(self.images),
            chosen=self.chosen.ctypes.data,
            labels=self.labels.ctypes.data,
            count=len(self.chosen),
        )


@dataclass(frozen=True, eq=False)
class MLPTask:
    """What a row trains: a multilayer perceptron on some images. An input is byte * scale + shift, in float32.

    The mini-batches of an epoch are drawn without replacement, in an order of its own (`random_streams.shuffled`); an
    epoch has n // batch_size of them.

    Attributes:
        train: the n training images, of D numbers.
        n_classes: K, 2 to 128.
        widths: of the 1 to 3 hidden layers, 2 to 256 each.
        activation: "relu", "tanh" or "gelu" (by tanh).
        batch_size: B, 1 to 512, at most n.
        optimizer: "sgd", "momentum", "nesterov" or "adamw".
        momentum: at the episode's start, 0 <= momentum < 1; AdamW's beta1.
        beta2: AdamW's, 0 <= beta2 < 1.
        weight_decay: at the episode's start, at least 0.
        scale, shift: of the inputs.
        loss_scale: above 0; the loss and its gradient are multiplied by it.
        initial_scale: above 0, of the initial weights, which are normal with standard deviation initial_scale * gain /
            sqrt(fan in); the gain is sqrt(2) in front of "relu" and "gelu", else 1. Biases begin as 0.
        seed: of the initial weights and of the order.
        class_weights: (K,) above 0, kept as float32; the training loss is the mean of the images' cross-entropies times
            the weights of their classes. None: all 1.
        normalised: whether each hidden layer has layer normalisation, without parameters, in front of its activation.

    Raises:
        ValueError: an argument is out of its range.
    """

    train: Examples
    n_classes: int
    widths: tuple[int, ...] = (32,)
    activation: str = "relu"
    batch_size: int = 16
    optimizer: str = "sgd"
    momentum: float = 0.0
    beta2: float = AdamW.BETA2
    weight_decay: float = 0.0
    scale: float = 1 / 255
    shift: float = 0.0
    loss_scale: float = 1.0
    initial_scale: float = 1.0
    seed: int = 0
    class_weights: NDArray[Any] | None = None
    normalised: bool = False

    def __post_init__(self) -> None:
        """Check."""
        if not isinstance(self.train, Examples):
            raise ValueError(f"train: it must be Examples, not {type(self.train).__name__}")
        _within("inputs: numbers of an image", self.train.inputs, INPUTS)
        _within("n_classes", self.n_classes, CLASSES)
        if not 1 <= len(self.widths) <= MOST_HIDDEN:
            raise ValueError(f"widths: 1 to {MOST_HIDDEN} hidden layers, not {len(self.widths)}")
        for width in self.widths:
            _within("widths", width, WIDTHS)
        _within("batch_size", self.batch_size, BATCHES)
        if self.batch_size > len(self.train.labels):
            raise ValueError(
                f"batch_size: {self.batch_size} of {len(self.train.labels)} training images; take at most as many"
            )
        _check_labels("train", self.train, self.n_classes)
        for name, among in (("activation", ACTIVATIONS), ("optimizer", OPTIMIZERS)):
            if getattr(self, name) not in among:
                raise ValueError(f"no {name} {getattr(self, name)!r}; there are {', '.join(among)}")
        for name, right in {
            "momentum": 0 <= self.momentum < 1,
            "beta2": 0 <= self.beta2 < 1,
            "weight_decay": 0 <= self.weight_decay < math.inf,
            "scale": abs(self.scale) <= 1e30,
            "shift": abs(self.shift) <= 1e30,
            "loss_scale": 1e-30 <= self.loss_scale <= 1e30,
            "initial_scale": 0 < self.initial_scale <= 1e30,
            "seed": -(2**63) <= self.seed < 2**63,
            "normalised": isinstance(self.normalised, bool),
        }.items():
            if not right:
                raise ValueError(f"{name}: {getattr(self, name)!r} is out of its range")
        if self.class_weights is not None:
            object.__setattr__(self, "class_weights", _weights(self.class_weights, self.n_classes))

    @property
    def per_epoch(self) -> int:
        """Mini-batches of an epoch."""
        return len(self.train.labels) // self.batch_size

    @property
    def size(self) -> int:
        """Floats of the network in memory, as `Network.size` says of the registered network."""
        sides = [self.train.inputs, *self.widths, self.n_classes]
        return sum(-(-a * b // 16) * 16 + -(-b // 16) * 16 for a, b in pairwise(sides))

    def declared(self) -> library.MLPTask:
        """As C takes it. Its addresses are valid as long as this object is."""
        return library.MLPTask(
            train=self.train.declared(),
            inputs=self.train.inputs,
            classes=self.n_classes,
            hidden=len(self.widths),
            widths=(*self.widths, *[0] * (MOST_HIDDEN - len(self.widths))),
            batch=self.batch_size,
            seed=self.seed,
            class_weights=None if self.class_weights is None else self.class_weights.ctypes.data,
            beta2=self.beta2,
            epsilon=AdamW.EPSILON,
            scale=self.scale,
            shift=self.shift,
            loss_scale=self.loss_scale,
            activation=ACTIVATIONS.index(self.activation),
            optimizer=library.OPTIMIZERS.index(self.optimizer),
            normalised=self.normalised,
        )


@dataclass
class MLPState:
    """What changes while N rows are trained: copy it, and it is saved. Contents may be changed between calls.

    A network lies in its row as `Network.views` says, from the first number on; behind it lies anything.

    Attributes:
        weights: (N, size) float32.
        slots: two (N, size) float32: the velocity, or AdamW's mean and mean square of the gradients; what no optimizer
            needs may be left out.
        clock: (N,) int64, mini-batches done before.
        momentum, weight_decay: (N,) float64.
        finite: (N,) uint8, 1 as long as loss and weights have been finite; a row that is not is no longer trained.
        previous_gradient, start, previous_displacement: (N, size) float32 each: of the mini-batch before; the weights
            at the last call's start; what the last call moved them by. None: nothing is measured.
    """

    weights: Float32
    slots: tuple[Float32, ...]
    clock: Int64
    momentum: Float64
    weight_decay: Float64
    finite: NDArray[np.uint8]
    previous_gradient: Float32 | None = None
    start: Float32 | None = None
    previous_displacement: Float32 | None = None

    @classmethod
    def zeros(cls, num_rows: int, size: int, slots: int = 2, measured: bool = False) -> Self:
        """Of rows without a task.

        Args:
            num_rows: N.
            size: floats of the largest network, as `MLPTask.size` says.
            slots: how many of the largest optimizer: 0 for "sgd", 1 for "momentum" and "nesterov", 2 for "adamw".
            measured: with the memory of the measurements.
        """

        def memory() -> Float32:
            return np.zeros((num_rows, size), np.float32)

        state = cls(
            weights=memory(),
            slots=tuple(memory() for _ in range(slots)),
            clock=np.zeros(num_rows, np.int64),
            momentum=np.zeros(num_rows),
            weight_decay=np.zeros(num_rows),
            finite=np.zeros(num_rows, np.uint8),
        )
        if measured:
            state.previous_gradient, state.start, state.previous_displacement = memory(), memory(), memory()
        return state

    @property
    def memories(self) -> list[Float32]:
        """Those that a new task begins with zeros in: all (N, size) but the weights."""
        others = (self.previous_gradient, self.start, self.previous_displacement)
        return [*self.slots, *(memory for memory in others if memory is not None)]


@dataclass(frozen=True, eq=False)
class Trained:
    """What a call of `MLPKernels.train` found.

    Attributes:
        losses: (N, M) float32, the weighted loss, times the loss scale, of each mini-batch before its update; NaN once
            the row is not finite; 0 from the row's count on.
        measured: (N, 7) float32, `qan_gym.core.statistics.MEASURED` of the mini-batches of this call; NaN where the row
            is not finite; 0 where it had no mini-batches. None: nothing is measured.
        each: (N, M, B) float32, where it was asked for: the cross-entropy of each image before the update; 0 behind a
            row's count and batch size, and once it is not finite.
    """

    losses: Float32
    measured: Float32 | None
    each: Float32 | None = None


class MLPKernels:
    """The kernels for N rows, whose tasks may all differ.

    Attributes:
        state: see there.
        tasks: of each row; None: it has none yet.
        instruction_set: "avx512", "avx2" or "neon".
    """

    def __init__(self, state: MLPState, threads: int = 1, instruction_set: str | None = None) -> None:
        """Open the library.

        Args:
            state: its arrays stay the same ones.
            threads: that share the rows of a call; the results do not depend on it.
            instruction_set: one of `Kernels.available()`; None: the fastest.

        Raises:
            ValueError: there is no library, or an argument is not as described; the message says why.
        """
        found = library.find()
        if isinstance(found, str):
            raise ValueError(found)
        self._library, self.state = found, state
        self.instruction_set = library.chosen_instruction_set(found, instruction_set)
        self._workers = Workers(threads, found.qan_mlp_workspace_size())
        self._number, self._size = shape_of("weights", state.weights, 2)
        self.tasks: list[MLPTask | None] = [None] * self._number
        self._examples: list[Examples | None] = [None] * self._number  # of the last evaluation
        self._addresses = Addresses()
        self._prepare(state)

    def _prepare(self, state: MLPState) -> None:
        number, at = self._number, self._addresses
        work = library.Work(networks=number, instruction_set=library.INSTRUCTION_SETS[self.instruction_set])
        self._seen, self._rows = np.zeros(number, np.uint8), np.zeros(number, np.int64)
        work.seen = self._seen.ctypes.data
        self._declared_tasks = (library.MLPTask * number)()
        self._declared_examples = (library.Examples * number)()
        self._counts, self._loss, self._accuracy = np.zeros(number, np.int64), *np.zeros((2, number), np.float32)
        job = self._training = library.MLPTraining(work=work, tasks=ctypes.addressof(self._declared_tasks))
        job.weights = at.memory("weights", state.weights, number, self._size, written=True)
        if len(state.slots) > 2:
            raise ValueError(f"slots: at most 2, not {len(state.slots)}")
        for place, slot in enumerate(state.slots):
            job.slots[place] = at.memory(f"slots[{place}]", slot, number, self._size, written=True)
        self.measures = state.previous_gradient is not None
        for name in ("previous_gradient", "start", "previous_displacement") if self.measures else ():
            setattr(job, name, at.memory(name, getattr(state, name), number, self._size, written=True))
        job.momentum = at.of("momentum", state.momentum, np.float64, (number,))
        job.weight_decay = at.of("weight_decay", state.weight_decay, np.float64, (number,))
        job.clock = at.of("clock", state.clock, np.int64, (number,), written=True)
        job.finite = at.of("finite", state.finite, np.uint8, (number,), written=True)
        job.counts = self._counts.ctypes.data
        self._evaluation = library.MLPEvaluation(
            work=work,
            tasks=job.tasks,
            examples=ctypes.addressof(self._declared_examples),
            weights=job.weights,
            loss=self._loss.ctypes.data,
            accuracy=self._accuracy.ctypes.data,
        )

    def assign(self, row: int, task: MLPTask) -> None:
        """Give a row a task, and begin it: fresh weights, clock 0, empty memories.

        Raises:
            ValueError: there is no such row, or no room for the network or the optimizer's slots.
        """
        self.restore(row, task)
        state = self.state
        for memory in state.memories:
            memory[row] = 0
        state.clock[row], state.finite[row] = 0, 1
        state.momentum[row], state.weight_decay[row] = task.momentum, task.weight_decay
        declared = self._declared_tasks[row]
        self._library.qan_initialise_mlp(declared, task.seed, task.initial_scale, state.weights[row].ctypes.data)

    def restore(self, row: int, task: MLPTask) -> None:
        """Give a row a task and leave its state as it is: for a state that was saved.

        Raises:
            ValueError: as `assign`.
        """
        if not 0 <= row < self._number:
            raise ValueError(f"row: it must be from 0 to {self._number - 1}, not {row}")
        if task.size > self._size:
            raise ValueError(f"the network has {task.size} numbers, a row has room for {self._size}")
        slots = {"sgd": 0, "adamw": 2}.get(task.optimizer, 1)
        if slots > len(self.state.slots):
            raise ValueError(f"{task.optimizer} needs {slots} slots, the state has {len(self.state.slots)}")
        with self._workers.lock:
            self.tasks[row], self._examples[row] = task, None
            self._declared_tasks[row] = task.declared()

    def train(
        self, counts: Int64 | Sequence[int], rates: Float64, indices: Int64 | None = None, with_each: bool = False
    ) -> Trained:
        """Train each row on its next mini-batches.

        Args:
            counts: (N,) integers from 0 to M; a row without a task must have 0.
            rates: (N, M) float64, the learning rate of each mini-batch; M at least 1.
            indices: (N, M, B) int64, of the training images in each mini-batch, as many as the row's batch size, which
                is at most B; what lies behind them is not read. None: the mini-batches of the epochs.
            with_each: with `indices`: give the loss of each image.

        Raises:
            ValueError: an argument is not as described; nothing has been written.
        """
        number = self._number
        if not isinstance(rates, np.ndarray) or rates.ndim != 2 or rates.shape[1] < 1:
            raise ValueError(f"rates: they must be ({number}, M) of float64")
        counts = np.asarray(counts)
        if counts.shape != (number,) or counts.dtype.kind not in "iu":
            raise ValueError(f"counts: they must be ({number},) integers")
        most = rates.shape[1]
        losses = np.empty((number, most), np.float32)
        measured = np.empty((number, library.MEASUREMENTS), np.float32) if self.measures else None
        room, place, each = self._given(indices, most, with_each)
        at = Addresses().of("rates", rates, np.float64, (number, most))
        job = self._training
        with self._workers.lock:
            self._counts[:] = counts
            job.most, job.rates, job.losses = most, at, losses.ctypes.data
            job.measured = None if measured is None else measured.ctypes.data
            job.room, job.indices, job.each = room, place, None if each is None else each.ctypes.data
            job.work.count, job.work.rows = number, None
            self._do(self._library.qan_begin_mlp_training, self._library.qan_train_mlp, job)
        return Trained(losses, measured, each)

    def _given(self, indices: Int64 | None, most: int, with_each: bool) -> tuple[int, int | None, Float32 | None]:
        """Images that a mini-batch has room for, the address of the indices, and where the losses of images go."""
        if indices is None:
            return 0, None, None
        if not isinstance(indices, np.ndarray) or indices.ndim != 3:
            raise ValueError(f"indices: they must be ({self._number}, {most}, B) of int64")
        shape = (self._number, most, indices.shape[2])
        place = Addresses().of("indices", indices, np.int64, shape)
        return shape[2], place, np.zeros(shape, np.float32) if with_each else None

    def evaluate_each(self, rows: Int64 | Sequence[int], examples: Sequence[Examples]) -> Float32:
        """The cross-entropy of every image, (m, largest number of them) float32; 0 behind a row's.

        Args:
            rows: as `evaluate`.
            examples: for each of those rows.

        Raises:
            ValueError: as `evaluate`.
        """
        room = max((len(one.labels) for one in examples), default=0)
        each = np.zeros((self._number, room), np.float32)
        self._evaluate(rows, examples, each)
        return each[np.asarray(rows, np.int64)]

    def evaluate(self, rows: Int64 | Sequence[int], examples: Examples | Sequence[Examples]) -> tuple[Float32, Float32]:
        """Mean cross-entropy, without the loss scale, and accuracy from 0 to 1, of some rows; of equal logits the first
        counts.

        Args:
            rows: (m,) integers, each at most once.
            examples: for each of those rows, or the same for all.

        Returns:
            (m,) float32 each.

        Raises:
            ValueError: an argument is not as described, or a row has no task.
        """
        return self._evaluate(rows, examples, None)

    def _evaluate(
        self, rows: Int64 | Sequence[int], examples: Examples | Sequence[Examples], each: Float32 | None
    ) -> tuple[Float32, Float32]:
        numbers = np.asarray(rows)
        if numbers.ndim != 1 or (len(numbers) and numbers.dtype.kind not in "iu") or len(numbers) > self._number:
            raise ValueError(f"rows: at most {self._number} integers, each at most once")
        numbers = numbers.astype(np.int64)
        given = [examples] * len(numbers) if isinstance(examples, Examples) else list(examples)
        if len(given) != len(numbers):
            raise ValueError(f"examples: as many as rows, {len(numbers)}, not {len(given)}")
        job = self._evaluation
        with self._workers.lock:
            for row, one in zip(numbers.tolist(), given, strict=True):
                self._set_examples(row, one)
            self._rows[: len(numbers)] = numbers
            job.work.count, job.work.rows = len(numbers), self._rows.ctypes.data
            job.room, job.each = (0, None) if each is None else (each.shape[1], each.ctypes.data)
            self._do(self._library.qan_begin_mlp_evaluation, self._library.qan_evaluate_mlp, job)
            return self._loss[numbers], self._accuracy[numbers]

    def _set_examples(self, row: int, examples: Examples) -> None:
        if not 0 <= row < self._number:
            raise ValueError(f"rows: they must be from 0 to {self._number - 1}")
        if self._examples[row] is examples:
            return
        task = self.tasks[row]
        if task is None:
            raise ValueError(f"row {row} has no task")
        if examples.inputs != task.train.inputs:
            raise ValueError(f"row {row} takes images of {task.train.inputs} numbers, not {examples.inputs}")
        _check_labels(f"row {row}", examples, task.n_classes)
        self._examples[row], self._declared_examples[row] = examples, examples.declared()

    def _do(self, begin: Any, work: Any, job: Any) -> None:
        reference = ctypes.byref(job)
        if error := begin(reference):
            raise ValueError(self._message(library.ERRORS[error], job))
        self._workers.share(work, reference, job.work.count)

    def _message(self, error: str, job: Any) -> str:
        without = [row for row, task in enumerate(self.tasks) if task is None and self._counts[row]]
        return {
            "repeated row": "rows: each at most once",
            "wrong count": f"counts: they must be from 0 to {getattr(job, 'most', 0)}",
            "wrong clock": "clock: it must count from 0",
            "wrong index": "indices: they must be of a row's training images",
            "wrong task": f"row {without[0] if without else '?'} has no task",
        }.get(error, error)


def _integers(name: str, values: Any, below: int, dtype: Any) -> NDArray[Any]:
    """A copy, read-only, of integers from 0 to below - 1."""
    values = np.asarray(values)
    if values.ndim != 1 or not len(values) or values.dtype.kind not in "iu":
        raise ValueError(f"{name}: they must be (n,) integers, at least one")
    if values.min() < 0 or values.max() >= below:
        raise ValueError(f"{name}: they must be from 0 to {below - 1}")
    copy = np.array(values, dtype, order="C")
    copy.flags.writeable = False
    return copy


def _weights(values: Any, n_classes: int) -> Float32:
    """A copy, read-only, of weights of the classes."""
    copy = np.array(values, np.float32)
    if copy.shape != (n_classes,) or not ((copy > 0) & (copy <= 1e30)).all():
        raise ValueError(f"class_weights: they must be ({n_classes},) numbers above 0")
    copy.flags.writeable = False
    return copy


def _within(name: str, value: Any, limits: tuple[int, int]) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not limits[0] <= value <= limits[1]:
        raise ValueError(f"{name}: it must be an integer from {limits[0]} to {limits[1]}, not {value!r}")


def _check_labels(name: str, examples: Examples, n_classes: int) -> None:
    if examples.most >= n_classes:
        raise ValueError(f"{name}: labels must be from 0 to {n_classes - 1}, not {examples.most}")
