"""The arithmetic of rows that train tasks of their own: multilayer perceptrons in one call, others one after another.

The rows share one state. A row's network, the optimizer's buffers and what is measured lie at the beginning of its
memory. Every row has the order of mini-batches of `random_streams.shuffled`, so that there is no order to keep.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qan_gym.config import TaskConfig
from qan_gym.core.class_statistics import class_probe, means_by_class
from qan_gym.core.class_weights import class_weights
from qan_gym.core.components import Components, build_components, selection_of
from qan_gym.core.engine import Engine, make_engine
from qan_gym.core.measurements import measured_size
from qan_gym.core.meta_momentum import Pull
from qan_gym.core.native_engine import kernel_optimizer
from qan_gym.core.run_state import RunState, TensorSpec
from qan_gym.data.datasets import Dataset, load_dataset, mean_and_deviation
from qan_gym.data.selection import Chosen, Selection, at_resolution, choose
from qan_gym.families.record import TaskRecord
from qan_gym.games import game_of
from qan_gym.native.mlp import INPUTS, Examples, MLPKernels, MLPState, MLPTask
from qan_gym.optimizee.optimizers import build_optimizer
from qan_gym.optimizee.zoo import mlp_sizes
from qan_gym.utils import random_streams

SLOTS = ("first", "second")  # room for the buffers of every optimizer

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class SingleRow:
    """A row whose network the kernels of multilayer perceptrons do not compute: an engine for it alone.

    Attributes:
        parts: the components of its task.
        run: its row of the state.
        engine: trains it.
        train_size: its training images.
    """

    parts: Components
    run: RunState
    engine: Engine
    train_size: int

    def train(
        self, rates: NDArray[np.float64], losses: Float32, given: Int64 | None = None, each: Float32 | None = None
    ) -> None:
        """The mini-batches of an action, at the learning rates (m,); writes the losses (m,).

        With `given` (m, at least B), of these images, whose losses go to `each`, of the same shape.
        """
        run, clock, batch_size = self.run, int(self.run.clock[0]), self.parts.config.batch_size
        for number, rate in enumerate(rates):
            if given is None:
                indices = mini_batch(int(run.seed[0]), clock + number, batch_size, self.train_size)
            else:
                indices = given[number, :batch_size]
            run.learning_rate[:] = rate
            losses[number] = float(self.engine.train(indices[None], number)[0])
            run.clock += 1
            if each is not None:
                each[number, :batch_size] = self.engine.each[0]


class FamilyEngine:
    """Trains and measures the rows of a state, each on its own task.

    Attributes:
        tasks: of each row, None before its first.
    """

    def __init__(
        self, base: TaskConfig, run: RunState, engine: str, threads: int, batches_per_action: int | None = None
    ) -> None:
        """Prepare.

        Args:
            base: the configuration that the tasks complete.
            run: the state of N runs, on CPU.
            engine: "native" or "torch".
            threads: that share the rows of multilayer perceptrons, with "native".
            batches_per_action: in the place of the tasks' own.
        """
        num_runs = len(run.memory)
        self.base, self.run = base, run
        self.own = {} if batches_per_action is None else {"batches_per_action": batches_per_action}
        self.engine = "auto" if engine == "native" else engine  # the kernels are for some networks only
        self.tasks: list[TaskRecord | None] = [None] * num_runs
        self.singles: dict[int, SingleRow] = {}
        self.is_finite = np.ones(num_runs, np.uint8)
        self.kernels = MLPKernels(self._kernel_state(), threads) if engine == "native" else None

    def _kernel_state(self) -> MLPState:
        run = self.run
        state = MLPState(
            weights=run.memory.numpy(),
            slots=tuple(run.slots[slot]["weights"].numpy() for slot in SLOTS),
            clock=run.clock.numpy(),
            momentum=run.momentum.numpy(),
            weight_decay=run.weight_decay.numpy(),
            finite=self.is_finite,
        )
        if run.layout.measures:
            state.previous_gradient = run.previous_gradient.numpy()
            state.start = run.action_start.numpy()
            state.previous_displacement = run.previous_displacement.numpy()
        return state

    def begin(self, row: int, task: TaskRecord, seed: int) -> None:
        """Give a row a task, with fresh weights from a seed; clock and hyperparameters stand in the state."""
        config = self._adopt(row, task)
        if self.kernels is not None and kernels_take(config):
            self.kernels.assign(row, kernel_task(config, seed))
            return
        single = self.singles[row] = single_row(self.run, row, config, self.engine)
        initial = single.parts.network.initial_params(torch.tensor([seed]), config.initial_scale)
        for name, value in initial.items():
            single.run.params[name].copy_(value)

    def restore(self, row: int, task: TaskRecord, seed: int) -> None:
        """Give a row a task, and leave its state as it is; seed: that the row has begun with."""
        config = self._adopt(row, task)
        if self.kernels is not None and kernels_take(config):
            self.kernels.restore(row, kernel_task(config, seed))
        else:
            self.singles[row] = single_row(self.run, row, config, self.engine)

    def _adopt(self, row: int, task: TaskRecord) -> TaskConfig:
        self.tasks[row], self.is_finite[row] = task, 1
        self.singles.pop(row, None)
        return replace(self.base, **{**task.settings(), **self.own})

    def train(
        self, counts: Int64, rates: NDArray[np.float64], indices: Int64 | None = None
    ) -> tuple[Float32, Float32 | None]:
        """The mini-batches of an action.

        Args:
            counts: (N,), of each row; 0: none.
            rates: (N, M) float64, the learning rates.
            indices: (N, M, B) int64, of the training images of each mini-batch, of which a row reads as many as its
                batch size; None: the mini-batches of the epochs.

        Returns:
            (N, M) float32, the losses before each update, times the loss scale; 0 from the row's count on. And, with
            indices where the state measures classes, (N, M, B) float32, those of the images, without it.
        """
        with_each = indices is not None and self.run.layout.measures_classes
        each = None
        singles = [row for row in self.singles if counts[row] > 0]
        if self.kernels is not None:
            own = counts.copy()
            own[list(self.singles)] = 0
            trained = self.kernels.train(own, rates, indices, with_each)
            losses, each = trained.losses, trained.each
            if trained.measured is not None:
                rows = own > 0
                self.run.measured.numpy()[rows] = trained.measured[rows]
        else:
            losses = np.zeros(rates.shape, np.float32)
            if with_each and indices is not None:
                each = np.zeros(indices.shape, np.float32)
        for row in singles:
            single, count = self.singles[row], int(counts[row])
            given = None if indices is None else indices[row, :count]
            single.train(rates[row, :count], losses[row, :count], given, None if each is None else each[row, :count])
            self.is_finite[row] = bool(single.engine.finite()[0])
        return losses, each

    def finite(self) -> NDArray[np.bool_]:
        """(N,), whether the losses and weights of a row have been finite."""
        return self.is_finite.view(np.bool_)

    def evaluate(self, rows: Int64, split: str) -> tuple[Float32, Float32]:
        """Mean cross-entropy and accuracy, (M,) float32 each, of some rows on a split of their own."""
        loss, accuracy = np.zeros((2, len(rows)), np.float32)
        native = np.array([row not in self.singles for row in rows], np.bool_)
        if native.any() and self.kernels is not None:
            examples = [self._examples(row, split) for row in rows[native]]
            loss[native], accuracy[native] = self.kernels.evaluate(rows[native], examples)
        for place in np.flatnonzero(~native):
            found = self.singles[int(rows[place])].engine.evaluate(np.zeros(1, np.int64), split)
            loss[place], accuracy[place] = (float(value[0]) for value in found)
        return loss, accuracy

    def class_losses(self, rows: Int64) -> Float32:
        """(M, K) float32, of some rows, see `Engine.class_losses`."""
        n_classes, count = self.run.layout.sizes["n_classes"], self.base.class_validation_images
        losses = np.zeros((len(rows), n_classes), np.float32)
        native = np.array([row not in self.singles for row in rows], np.bool_)
        if native.any() and self.kernels is not None:
            probes = [_probe(self._examples(row, "validation"), count) for row in rows[native]]
            each = self.kernels.evaluate_each(rows[native], probes)
            labels = np.stack([padded(probe.labels, each.shape[1]) for probe in probes])
            losses[native] = means_by_class(labels, each, n_classes)
        for place in np.flatnonzero(~native):
            losses[place] = self.singles[int(rows[place])].engine.class_losses(np.zeros(1, np.int64))[0]
        return losses

    def _examples(self, row: int, split: str) -> Examples:
        task = self.tasks[row]
        assert task is not None
        return _held_out(load_dataset(self.base.dataset), task.resolution, task.classes, split)


def mini_batch(seed: int, number: int, batch_size: int, train_size: int) -> Int64:
    """Indices into the training images, (batch_size,), of a mini-batch, by its number in the episode of a seed."""
    epoch, place = divmod(number, train_size // batch_size)
    places = np.arange(place * batch_size, (place + 1) * batch_size)[None]
    (indices,) = random_streams.shuffled(np.array([seed]), random_streams.SHUFFLED, epoch, places, train_size)
    return np.asarray(indices, np.int64)


def kernels_take(config: TaskConfig) -> bool:
    """Whether the kernels of multilayer perceptrons can train the network of a task on its images."""
    images = at_resolution(load_dataset(config.dataset), config.resolution).train.images
    one_scale = images.shape[1] == 1  # channels have one each
    return config.network.startswith("mlp-") and one_scale and INPUTS[0] <= images[0].size <= INPUTS[1]


def kernel_task(config: TaskConfig, seed: int) -> MLPTask:
    """The task of a configuration as the kernels take it; see `native_obstacle` for those that they cannot train."""
    dataset, selection = load_dataset(config.dataset), selection_of(config)
    small, chosen = at_resolution(dataset, selection.resolution), chosen_images(dataset, selection)
    mean, deviation = _mean_and_deviation(small, chosen.places)
    scale = config.input_scale / deviation
    widths, activation, normalised = mlp_sizes(config.network)
    n_classes = len(selection.classes or range(dataset.n_classes))
    return MLPTask(
        train=Examples(small.train.images, chosen.places, chosen.labels),
        n_classes=n_classes,
        widths=widths,
        activation=activation,
        batch_size=config.batch_size,
        optimizer=kernel_optimizer(build_optimizer(config, game_of(config).hyperparameters)),
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        scale=scale,
        shift=-config.input_centre * mean * scale,
        loss_scale=config.loss_scale,
        initial_scale=config.initial_scale,
        seed=seed,
        class_weights=class_weights(chosen.labels, n_classes, config.class_weights),
        normalised=normalised,
    )


def single_row(run: RunState, row: int, config: TaskConfig, wanted: str) -> SingleRow:
    """An engine, "auto" or "torch", for one row of a state, which works on the beginning of the row's memory."""
    parts = build_components(config, "cpu", wanted)
    state = _row_of(run, row, parts)
    engine = make_engine(parts, state, None, Pull(config, parts.network, parts.batches_per_epoch))
    return SingleRow(parts, state, engine, len(parts.data.labels["train"]))


def _row_of(run: RunState, row: int, parts: Components) -> RunState:
    """A row of a state as the state of one run, in the same memory, of the network of its own task."""
    network, part, train_size = parts.network, slice(row, row + 1), len(parts.data.labels["train"])
    size = network.size()
    values = {
        one.name: getattr(run, one.name)[part]
        for one in fields(RunState)
        if isinstance(one.metadata.get("spec"), TensorSpec) and getattr(run, one.name) is not None
    }
    memory = values["memory"][:, :size]
    slots = {
        name: network.views(run.slots[place]["weights"][part, :size])
        for name, place in zip(parts.optimizer.slots, SLOTS, strict=False)
    }
    values |= {"memory": memory, "params": network.views(memory), "slots": slots}
    count = parts.config.batches_per_action
    if run.layout.measures:
        for name in ("previous_gradient", "previous_displacement", "action_start"):
            values[name] = values[name][:, : measured_size(network)]
        values["losses"] = values["losses"][:, :count]
    values |= {
        "order": torch.zeros(1, train_size, dtype=torch.int32),
        "batch_indices": torch.zeros(1, count, parts.config.batch_size, dtype=torch.int64),
    }
    sizes = {**run.layout.sizes, "network_size": size, "train_size": train_size, "batches_per_action": count}
    layout = replace(run.layout, num_runs=1, network=network, slots=tuple(parts.optimizer.slots), sizes=sizes)
    return replace(run, layout=layout, **values)


@lru_cache(maxsize=256)
def chosen_images(dataset: Dataset, selection: Selection) -> Chosen:
    """The training images of a task; those of a few tasks are kept."""
    return choose(dataset, selection, "train")


def padded(labels: NDArray[Any], count: int) -> Int64:
    """Labels, (n,), and -1 behind them, (count,)."""
    out = np.full(count, -1, np.int64)
    out[: len(labels)] = labels
    return out


@lru_cache(maxsize=4096)
def _probe(examples: Examples, count: int) -> Examples:
    """The first `count` images of each class, see `class_probe`."""
    places = class_probe(torch.from_numpy(examples.labels.astype(np.int64)), count).numpy()
    return Examples(examples.images, examples.chosen[places], examples.labels[places])


def _mean_and_deviation(dataset: Dataset, places: Int64) -> tuple[float, float]:
    """Of the pixels of some training images, as `on_device` has them: exact, from sums of integers."""
    sums, squares = _pixel_sums(dataset)
    count = dataset.train.images[0].size * len(places)
    return mean_and_deviation(count, int(sums[places].sum()), int(squares[places].sum()))


@lru_cache(maxsize=16)
def _pixel_sums(dataset: Dataset) -> tuple[Int64, Int64]:
    """(n,) int64 each: the sum of the pixels of every training image, and that of their squares."""
    pixels = dataset.train.images.reshape(len(dataset.train), -1).astype(np.int64)
    return pixels.sum(axis=1), (pixels**2).sum(axis=1)


@lru_cache(maxsize=4096)
def _held_out(dataset: Dataset, resolution: int, classes: tuple[int, ...], split: str) -> Examples:
    chosen = choose(dataset, Selection(resolution, classes), split)
    return Examples(getattr(at_resolution(dataset, resolution), split).images, chosen.places, chosen.labels)
