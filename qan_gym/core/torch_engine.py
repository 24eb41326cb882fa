"""The arithmetic of the networks in PyTorch: for every network, optimizer, precision and device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qan_gym.core.class_statistics import class_probe, means_by_class
from qan_gym.core.class_weights import class_weights
from qan_gym.core.measurements import Measurement
from qan_gym.core.meta_momentum import Pull
from qan_gym.core.run_state import RunState
from qan_gym.data import augmentation
from qan_gym.optimizee.network import Params, evaluate, leaves, loss_and_gradients
from qan_gym.optimizee.optimizers import Hyperparameters
from qan_gym.utils.arrays import Array, as_array, as_tensor
from qan_gym.utils.precision import Precision

if TYPE_CHECKING:
    from qan_gym.core.components import Components

CPU_BLOCK = 16  # runs in one gradient computation on CPU: more do not fit its cache
EVALUATION_BATCH = 20  # images in a pass when networks are measured; at least, where they are computed one by one


@dataclass(frozen=True)
class Block:
    """Runs whose gradients are computed together: which rows, their networks, slots and references, all views.

    And what measures them, where something is measured.
    """

    rows: slice
    params: Params
    trained: Params
    slots: dict[str, Params]
    reference: Params | None
    measurement: Measurement | None


class TorchEngine:
    """See `qan_gym.core.engine.Engine`."""

    in_order = False

    def __init__(self, parts: Components, run: RunState, reference: Params | None, pull: Pull) -> None:
        """See `qan_gym.core.engine.make_engine`."""
        self.parts, self.config, self.network, self.data = parts, parts.config, parts.network, parts.data
        self.run, self.reference, self.pull = run, reference, pull
        self.exact = Precision("float32", parts.device)  # for measuring
        self._evenly = torch.full_like(run.memory[0], 1 / self.network.size())
        num_runs = len(run.memory)
        self.loss = torch.zeros(num_runs, device=parts.device)
        by_class, room = run.layout.measures_classes, (num_runs, parts.config.batch_size)
        self._each = torch.zeros(room if by_class else (num_runs, 0), device=parts.device)
        self.each = as_array(self._each)
        self.probe = self._probe() if by_class else None
        self.class_weights = self._class_weights()
        together = num_runs if parts.device.type != "cpu" else min(num_runs, CPU_BLOCK)
        self.blocks = self._divide(num_runs, together if self.network.at_once else 1)

    def _probe(self) -> tuple[Tensor, Tensor]:
        """What the losses of the classes are measured on: images (n, C, H, W), normalised, and their labels (n,)."""
        labels = self.data.labels["validation"]
        places = class_probe(labels, self.config.class_validation_images)
        return self.data.normalise(self.data.images["validation"][places]), labels[places]

    def _class_weights(self) -> Tensor | None:
        """(1, K) float32, of the classes in the training loss; None: they have none."""
        if self.config.class_weights == 0:
            return None
        labels = self.data.labels["train"].cpu().numpy()
        weights = class_weights(labels, self.parts.n_classes, self.config.class_weights)
        return None if weights is None else torch.from_numpy(weights)[None].to(self.parts.device)

    def _divide(self, num_runs: int, size: int) -> list[Block]:
        blocks = []
        for start in range(0, num_runs, size):
            rows = slice(start, start + size)
            params = leaves(self.network, rows_of(self.run.params, rows))
            trained = {name: params[name] for name in self.network.trained}
            slots = {slot: rows_of(buffers, rows) for slot, buffers in self.run.slots.items()}
            reference = self.reference and rows_of(self.reference, rows)
            measurement = Measurement(self.network, self.run, rows) if self.run.layout.measures else None
            blocks.append(Block(rows, params, trained, slots, reference, measurement))
        return blocks

    # --- training ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def train(self, indices: Array, number: int) -> Array:
        """See `Engine.train`."""
        batch = as_tensor(indices)
        self.loss.copy_(torch.cat([self._update(block, batch[block.rows], number) for block in self.blocks]))
        if self.run.layout.measures:
            self.run.losses[:, number] = self.loss
        return as_array(self.loss.clone())

    def _update(self, block: Block, indices: Tensor, number: int) -> Tensor:
        """Gradient, update and pull of n of the runs; indices (n, B). Returns the losses (n,) before the update."""
        run, rows, reference, optimizer = self.run, block.rows, block.reference, self.parts.optimizer
        images = self._images(rows, indices)  # (n, B, C, H, W)
        labels = self.data.labels["train"][indices]
        soft_targets = weight = None
        if self.config.distillation > 0 and reference is not None:
            with self.exact:
                soft_targets = self.network.forward(reference, images, False).softmax(dim=2)  # (n, B, K)
            weight = run.has_reference[rows] * self.config.distillation
        scale = None if self.config.loss_scale == 1 else run.loss_scale[rows]
        each = self._each[rows] if run.layout.measures_classes else None
        of_classes = None if self.class_weights is None else self.class_weights.expand(len(labels), -1)
        with self.parts.precision:
            loss, gradients = loss_and_gradients(
                *(self.network, block.params, images, labels, soft_targets, weight),
                *(self.parts.precision.dtype, scale, each, of_classes),
            )
        hyper = Hyperparameters(run.learning_rate[rows], run.momentum[rows], run.weight_decay[rows])
        if block.measurement is not None:
            block.measurement.before_update(number)
        optimizer.update(block.trained, gradients, block.slots, hyper, run.clock[rows])
        if block.measurement is not None:
            block.measurement.after_update(gradients, number)
        if reference is not None:
            # The copies of the weights that an optimizer keeps are pulled too.
            for weights in (block.params, *(block.slots[slot] for slot in getattr(optimizer, "copies", ()))):
                self.pull.apply(weights, reference, run.pull[rows])
        if block.measurement is not None and number == self.config.batches_per_action - 1:
            block.measurement.end_action()
        return loss

    def _images(self, rows: slice, indices: Tensor) -> Tensor:
        """Training images as the network sees them, (n, B, C, H, W), of n runs; indices (n, B)."""
        images = self.data.images["train"]
        if self.config.augment is None:
            return self.data.normalise(images[indices])
        moves = augmentation.draw(self.run.device_seed[rows], self.run.clock[rows], self.config.batch_size)
        moved, inside = augmentation.gather(images, indices, moves, self.config.augment)
        return self.data.normalise(moved) * inside

    def train_in_order(self, first: int, count: int, rates: Array | None) -> None:
        """See `Engine.train_in_order`."""
        raise NotImplementedError

    def finite(self) -> Array:
        """See `Engine.finite`."""
        mean = torch.mv(self.run.memory, self._evenly) + self.loss  # finite exactly if the loss and every weight is
        return as_array(mean - mean == 0)  # infinity minus infinity is not a number

    # --- evaluation -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def class_losses(self, rows: Array) -> Array:
        """See `Engine.class_losses`."""
        assert self.probe is not None
        (images, labels), each = self.probe, []
        for row in as_tensor(rows).split(1):
            params = self._evaluated_weights(row)
            with self.exact:
                logits = self.network.forward(params, images[None], False)[0]  # (n, K)
            each.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none"))
        return means_by_class(as_array(labels.expand(len(rows), -1)), as_array(torch.stack(each)), self.parts.n_classes)

    @torch.no_grad()
    def evaluate(self, rows: Array, split: str) -> tuple[Array, Array]:
        """See `Engine.evaluate`."""
        runs, size = 1, max(self.config.batch_size, EVALUATION_BATCH)
        if self.network.at_once:
            # About as many images in a pass as in training, so that it needs no more memory.
            runs, size = max(1, self.blocks[0].rows.stop * self.config.batch_size // EVALUATION_BATCH), EVALUATION_BATCH
        scores = []
        for some in as_tensor(rows).split(runs):
            # Few different numbers of runs, because layers keep memory for each: the last is repeated to a power of 2.
            count = torch.arange(2 ** (len(some) - 1).bit_length(), device=some.device)
            padded = some[count.clamp(max=len(some) - 1)]
            with self.exact:
                measured = evaluate(self.network, self._evaluated_weights(padded), self.data.batches(split, size))
            scores.append(torch.stack(measured)[:, : len(some)])
        loss, accuracy = torch.cat(scores, dim=1)  # (M,) each
        return as_array(loss), as_array(accuracy)

    def _evaluated_weights(self, rows: Tensor) -> Params:
        """The weights of some rows in the form in which the optimizer has them evaluated."""
        params = rows_of(self.run.params, rows)
        averaged = getattr(self.parts.optimizer, "averaged", None)
        if averaged is not None:
            slots = {slot: rows_of(buffers, rows) for slot, buffers in self.run.slots.items()}
            params |= averaged(params, slots)
        return params


def rows_of(params: Params, rows: slice | Tensor) -> Params:
    """The networks of some rows; views where `rows` is a slice."""
    return {name: value[rows] for name, value in params.items()}
