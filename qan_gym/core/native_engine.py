"""The arithmetic of the networks in C, on CPU: `mnist-cnn` under SGD and AdamW, with the same bits on every machine."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qan_gym.config import TaskConfig
from qan_gym.core.class_statistics import class_probe, means_by_class
from qan_gym.core.meta_momentum import Pull
from qan_gym.core.run_state import RunState
from qan_gym.native.kernels import BatchSequence, Call, Images, Kernels, Measuring, Update
from qan_gym.optimizee.network import Network, Params
from qan_gym.optimizee.optimizers import SGD, Optimizer
from qan_gym.utils.arrays import Array
from qan_gym.utils.own_settings import users_threads

if TYPE_CHECKING:
    from qan_gym.core.components import Components


class NativeEngine:
    """See `qan_gym.core.engine.Engine`."""

    in_order = True

    def __init__(self, parts: Components, run: RunState, reference: Params | None, pull: Pull) -> None:
        """See `qan_gym.core.engine.make_engine`; `native_obstacle` must have found none."""
        self.data = parts.data
        self.weights: NDArray[np.float32] = run.memory.numpy()
        num_runs, size = self.weights.shape
        threads = min(num_runs, users_threads())  # they share rows, and do not wait for each other within one
        self.kernels = Kernels(parts.network.image_shape[0], parts.n_classes, threads)
        self.indices = np.zeros((num_runs, parts.config.batch_size), np.int64)
        self.loss, self.accuracy = np.zeros(num_runs, np.float32), np.zeros(num_runs, np.float32)
        self.is_finite = np.ones(num_runs, np.bool_)
        self.n_classes = parts.n_classes
        by_class = run.layout.measures_classes
        self.each = np.zeros(self.indices.shape, np.float32)
        update = Update(
            optimizer=kernel_optimizer(parts.optimizer),
            learning_rate=run.learning_rate.numpy(),
            momentum=run.momentum.numpy(),
            weight_decay=run.weight_decay.numpy(),
            step=run.clock.numpy(),
            slots=[_memory(buffers, size) for buffers in run.slots.values()],
            strength=None if reference is None else run.pull.numpy(),
            reference=None if reference is None else _memory(reference, size),
            pulled=pull.names,
        )
        sequence = BatchSequence(
            order=run.order.numpy(),
            clock=run.clock.numpy(),
            per_epoch=parts.batches_per_epoch,
            pulled=run.has_reference.numpy(),
            pull_end=pull.batches,
            pull_strength=pull.strength,
            smoothed=run.smoothed_loss.numpy(),
            smoothing=parts.running_mean_weight,
        )
        images, finite = self.images("train"), self.is_finite.view(np.uint8)
        train = partial(self.kernels.training, measuring=_measuring(run), loss_scale=run.loss_scale.numpy())
        each = self.each if by_class else None
        self.on_batch = train(images, self.weights, self.indices, self.loss, finite, update, each=each)
        self.on_sequence = train(
            *(images, self.weights, run.batch_indices.numpy(), run.loss.numpy(), finite, update),
            sequence=sequence,
        )
        self.measure: dict[str, Call] = {}  # by the name of the split
        self.measure_probe = self._probing(parts.config.class_validation_images) if by_class else None

    def images(self, split: str) -> Images:
        """The images of a split, as the kernels take them."""
        data = self.data
        mean, std = (value.flatten().numpy() for value in (data.mean, data.std))
        return Images(data.images[split].numpy(), data.labels[split].numpy(), mean, std)

    def _probing(self, count: int) -> Call:
        """The call that measures the losses of `count` images of each class, into `probe_each`."""
        whole = self.images("validation")
        places = class_probe(self.data.labels["validation"], count)
        self.probe_each = np.zeros((len(self.loss), len(places)), np.float32)
        self.probe_labels = np.broadcast_to(whole.labels[places.numpy()], self.probe_each.shape)
        images, labels = (np.ascontiguousarray(values[places.numpy()]) for values in (whole.images, whole.labels))
        some = Images(images, labels, whole.mean, whole.std)
        return self.kernels.evaluation(some, self.weights, self.loss, self.accuracy, self.probe_each)

    def class_losses(self, rows: Array) -> Array:
        """See `Engine.class_losses`."""
        assert self.measure_probe is not None
        self.measure_probe(rows)
        return means_by_class(self.probe_labels[: len(rows)], self.probe_each[rows], self.n_classes)

    def train(self, indices: Array, number: int) -> Array:
        """See `Engine.train`."""
        self.indices[:] = indices
        self.on_batch(number=number)
        return self.loss.copy()

    def train_in_order(self, first: int, count: int, rates: Array | None) -> None:
        """See `Engine.train_in_order`."""
        self.on_sequence.part(first, count, rates)

    def finite(self) -> Array:
        """See `Engine.finite`."""
        return self.is_finite

    def evaluate(self, rows: Array, split: str) -> tuple[Array, Array]:
        """See `Engine.evaluate`."""
        if split not in self.measure:
            self.measure[split] = self.kernels.evaluation(self.images(split), self.weights, self.loss, self.accuracy)
        self.measure[split](rows)
        return self.loss[rows], self.accuracy[rows]


def native_obstacle(config: TaskConfig, device: torch.device, network: Network) -> str | None:
    """The reason why the kernels cannot train a task; None where they can."""
    for stands, reason in (
        (device.type != "cpu", f"the device is {device}"),
        (config.precision != "float32", f"the precision is {config.precision}"),
        (config.augment is not None, "images are augmented"),
        (config.distillation > 0, "there are soft targets"),
        (config.class_weights > 0, "classes have weights"),
        (config.optimizer not in ("sgd", "adamw"), f"the optimizer is {config.optimizer}"),
        (config.preprocess != "normalise", "images are whitened"),
    ):
        if stands:
            return f"the kernels are for sgd and adamw in float32 on cpu, of images as they are, and {reason}"
    return Kernels.supports(network)


def kernel_optimizer(optimizer: Optimizer) -> str:
    """The name of an optimizer, SGD or AdamW, as the kernels have it."""
    if not isinstance(optimizer, SGD):
        return "adamw"
    return "nesterov" if optimizer.nesterov else "momentum" if optimizer.has_momentum else "sgd"


def _measuring(run: RunState) -> Measuring | None:
    if not run.layout.measures:
        return None
    return Measuring(
        measured=run.measured.numpy(),
        losses=run.losses.numpy(),
        previous_gradient=run.previous_gradient.numpy(),
        start=run.action_start.numpy(),
        previous_displacement=run.previous_displacement.numpy(),
    )


def _memory(params: Params, size: int) -> NDArray[np.float32]:
    """The memory that networks are views of: (N, size), or (size,) where all are the same one."""
    first: Tensor = next(iter(params.values()))
    start = first.storage_offset()
    if first.stride(0) == 0:
        return torch.as_strided(first, (size,), (1,), start).numpy()
    return torch.as_strided(first, (len(first), size), (first.stride(0), 1), start).numpy()
