"""What an optimizer's updates are like, measured by hooks of `optimizer.step`: see `qan_gym.core.statistics`.

A hook runs where an update runs, so that an update that a gradient scaler has skipped, or that waits for more gradients
to accumulate, is none. Where there are more than `measurements.MOST` weights, every k-th is measured, in their order in
memory. What is measured stays on the device of the weights and is read once per action.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from qan_gym.core.measurements import of_action, of_updates, sampling_step_of

# The rows of the memory: vectors of the measured entries. The gradients of two successive updates take turns in the
# first two; UPDATE has the weights before an update, and then what it has taken off them.
UPDATE, START, DISPLACEMENT = 2, 3, 4
ROWS = 5
ALIGNED = 16  # numbers: rows begin at multiples of 64 bytes, for between others a product takes four times as long
SAVED = ("gradient", "start", "displacement")  # of the state, (count,) float32 each

# The columns of what is kept of each update.
COLUMNS = ("gradient", "gradients", "update", "decrease", "loss")  # products, see `of_updates`, and the loss
LOSS = COLUMNS.index("loss")
LEAST_ROOM = 64  # updates


class ActionMeasured(NamedTuple):
    """What the updates of an action were like.

    Attributes:
        measured: (7,) float32, `qan_gym.core.statistics.MEASURED`.
        losses: (m,) float32, of its mini-batches.
    """

    measured: NDArray[np.float32]
    losses: NDArray[np.float32]


class UpdateMeter:
    """Counts and measures the updates of an optimizer.

    Attributes:
        updates: that were made since it was built.
        count: of them, those of this action.
        measuring: whether they are measured; they are counted in any case.
    """

    def __init__(self, optimizer: Optimizer, measuring: bool = True) -> None:
        """Begin to count; `begin_action` begins to measure.

        Raises:
            ValueError: the optimizer has no trained parameters, or they are sharded over processes.
        """
        self.optimizer, self.measuring = optimizer, measuring
        self.updates = self.count = 0
        self.products = torch.zeros(0, len(COLUMNS))
        self._previous_square: Tensor | None = None  # of the last gradient before this action
        self._lay_out()
        self._hooks = _watch(optimizer, self)

    # --- where the measured entries are -----------------------------------------------------------------------------

    def _lay_out(self) -> None:
        """Divide the memory among the trained parameters."""
        self.parameters = _trained(self.optimizer)
        if not self.parameters:
            raise ValueError("the optimizer has no parameters that require gradients: there is nothing to train")
        if any(hasattr(one, "placements") for one in self.parameters):
            raise ValueError("parameters that are sharded over processes (FSDP) cannot be measured: use DDP")
        sizes = [_flat(one, one).numel() for one in self.parameters]
        self.step = sampling_step_of(sum(sizes))
        self.parts: list[tuple[Tensor, int, slice]] = []  # parameter, its first measured entry, where they go
        begin = place = 0
        for parameter, size in zip(self.parameters, sizes, strict=True):
            first = -begin % self.step
            entries = len(range(first, size, self.step))
            if entries:
                self.parts.append((parameter, first, slice(place, place + entries)))
            begin, place = begin + size, place + entries
        self.device = self.parameters[0].device
        self.memory = torch.zeros(ROWS, -(-place // ALIGNED) * ALIGNED, device=self.device)[:, :place]
        self.views = [[row[part] for _, _, part in self.parts] for row in self.memory]
        self._weight_views: list[Tensor] = []
        self._weight_places: list[int] = []

    @property
    def size(self) -> int:
        """Entries that are measured."""
        return self.memory.shape[1]

    def _copy(self, row: int, entries: Sequence[Tensor | None]) -> None:
        """Copy measured entries into a row; None stands for 0."""
        pairs = list(zip(self.views[row], entries, strict=True))
        for view, source in pairs:
            if source is None:
                view.zero_()
        there = [(view, source) for view, source in pairs if source is not None]
        if there:
            torch._foreach_copy_([view for view, _ in there], [source for _, source in there])

    def _entries(self, tensor: Tensor, like: Tensor, first: int) -> Tensor:
        """The measured entries of a tensor that is shaped like a parameter, a view where it can be."""
        flat = _flat(tensor, like)
        if self.step > 1:
            flat = flat[first :: self.step]
        return flat if flat.device == self.device else flat.to(self.device)

    def _gradients(self) -> list[Tensor | None]:
        return [
            None if parameter.grad is None else self._entries(parameter.grad, parameter, first)
            for parameter, first, _ in self.parts
        ]

    def _weights(self) -> list[Tensor]:
        """Their measured entries, as views that are kept while the weights are where they were."""
        places = [parameter.data_ptr() for parameter, _, _ in self.parts]
        if places == self._weight_places:
            return self._weight_views
        there = [self._entries(parameter.detach(), parameter, first) for parameter, first, _ in self.parts]
        pairs = zip(there, self.parts, strict=True)
        are_views = all(_storage(one) == _storage(parameter) for one, (parameter, _, _) in pairs)
        self._weight_views, self._weight_places = (there, places) if are_views else ([], [])
        return there

    def _dot(self, one: int, other: int) -> Tensor:
        return self.step * torch.dot(self.memory[one], self.memory[other])

    # --- the hooks --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def before_update(self) -> None:
        """Remember the weights."""
        if self.measuring:
            self._copy(UPDATE, self._weights())

    @torch.no_grad()
    def after_update(self) -> None:
        """Count and measure the update; the gradients are still there."""
        found_inf = getattr(self.optimizer, "found_inf", None)  # a fused optimizer skips the update itself
        if found_inf is not None and bool(found_inf):
            return
        if self.measuring:
            if self.count == len(self.products):
                self._make_room(2 * self.count)
            gradient, previous = self.updates % 2, 1 - self.updates % 2
            self._copy(gradient, self._gradients())
            torch._foreach_sub_(self.views[UPDATE], self._weights())
            pairs = ((gradient, gradient), (gradient, previous), (UPDATE, UPDATE), (gradient, UPDATE))
            for column, (one, other) in enumerate(pairs):
                torch.dot(self.memory[one], self.memory[other], out=self.products[self.count, column])
        self.updates += 1
        self.count += 1

    # --- actions ----------------------------------------------------------------------------------------------------

    def begin_action(self, length: int) -> None:
        """Begin an action of probably so many updates; parameters may have come or gone."""
        changed = [id(one) for one in _trained(self.optimizer)] != [id(one) for one in self.parameters]
        if self.measuring and (changed or self.parameters[0].device != self.device):
            self._lay_out()
            self._previous_square = None
        self.count = 0
        if self.measuring:
            with torch.no_grad():
                self._copy(START, self._weights())
            self._make_room(max(length, LEAST_ROOM))

    def _make_room(self, rooms: int) -> None:
        products = torch.zeros(rooms, len(COLUMNS), device=self.device)
        products[: self.count] = self.products[: self.count]
        self.products = products

    def add_loss(self, loss: Tensor | float, updates: int) -> None:
        """The loss before the last updates of this action."""
        if self.measuring:
            self.products[self.count - updates : self.count, LOSS] = loss

    @torch.no_grad()
    def end_action(self) -> ActionMeasured:
        """Measure where the action has brought the weights; waits for the device."""
        last_square = self.products[self.count - 1, 0].clone()
        before = torch.zeros_like(last_square) if self._previous_square is None else self._previous_square
        found = self.products[: self.count].T.double() * self.step
        squares, gradients, updates, decreases, _ = found
        previous = torch.cat([before[None].double() * self.step, squares[:-1]])
        means = of_updates(squares, gradients, previous, updates, -decreases).mean(dim=0)
        self._copy(UPDATE, self._weights())
        weights = self._dot(UPDATE, UPDATE)
        moved = self.memory[UPDATE].sub_(self.memory[START])
        last = self.memory[DISPLACEMENT]
        products = torch.stack([torch.dot(moved, moved), torch.dot(moved, last), torch.dot(last, last)]).double()
        square, both, last_one = (self.step * products)[:, None]
        rest = of_action(square, both, last_one, weights[None].double())[0]
        last.copy_(moved)
        self._previous_square = last_square
        read = torch.cat([means, rest, self.products[: self.count, LOSS].double()]).cpu().numpy()
        measured, losses = np.split(read.astype(np.float32), [len(means) + len(rest)])
        return ActionMeasured(measured, losses)

    # --- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Copies of everything that the next measurement depends on."""
        rows = (1 - self.updates % 2, START, DISPLACEMENT)
        saved: dict[str, Any] = {name: self.memory[row].clone() for name, row in zip(SAVED, rows, strict=True)}
        square = self._previous_square
        return {
            **saved,
            "products": self.products[: self.count].clone(),
            "previous_square": None if square is None else square.clone(),
            "updates": self.updates,
            "count": self.count,
        }

    def check(self, state: dict[str, Any]) -> None:
        """Find out whether a state is of the same parameters.

        Raises:
            ValueError: it is not.
        """
        sizes = {len(state[name]) for name in SAVED}
        if sizes != {self.size}:
            raise ValueError(f"the state is of a model of another size: {sizes} entries are measured, here {self.size}")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state that `check` has found good."""
        self.updates, self.count = state["updates"], state["count"]
        for name, row in zip(SAVED, (1 - self.updates % 2, START, DISPLACEMENT), strict=True):
            self.memory[row].copy_(state[name])
        self.products = state["products"].to(self.device, copy=True)
        self._make_room(max(len(self.products), LEAST_ROOM))
        square = state["previous_square"]
        self._previous_square = None if square is None else square.to(self.device, copy=True)


def _trained(optimizer: Optimizer) -> list[Tensor]:
    return [one for group in optimizer.param_groups for one in group["params"] if one.requires_grad]


def _storage(tensor: Tensor) -> int:
    """Where its memory begins."""
    return tensor.untyped_storage().data_ptr()


def _flat(tensor: Tensor, like: Tensor) -> Tensor:
    """Its numbers (n,) in the order in which those of `like`, of the same shape, lie in memory; a view where it can be.

    Of complex numbers both parts.
    """
    if tensor.is_sparse:
        tensor = tensor.to_dense()
    if tensor.is_complex():
        tensor, like = torch.view_as_real(tensor), torch.view_as_real(like.detach())
    if not (tensor.is_contiguous() and like.is_contiguous()):
        tensor = tensor.permute(sorted(range(like.dim()), key=like.stride, reverse=True))
    return tensor.reshape(-1)


def _watch(optimizer: Optimizer, meter: UpdateMeter) -> list[Any]:
    """Hooks that keep neither the meter nor its scheduler alive, and that no compiler looks into."""
    known = weakref.ref(meter)

    def hook(method: Callable[[UpdateMeter], None]) -> Callable[..., None]:
        def call(*_: Any) -> None:
            there = known()
            if there is not None:
                method(there)

        reason = "LearnedLR measures updates outside of the compiled graph: compile the step without fullgraph=True"
        disabled: Callable[..., None] = torch.compiler.disable(call, reason=reason)
        return disabled

    return [
        optimizer.register_step_pre_hook(hook(UpdateMeter.before_update)),
        optimizer.register_step_post_hook(hook(UpdateMeter.after_update)),
    ]
