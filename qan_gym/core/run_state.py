"""The state of N training runs: every tensor of a run is declared here once.

A field says its shape, its dtype, its value at a reset, and whether it is saved. Allocating, resetting, saving,
restoring and forking go through these declarations, so that a field cannot be forgotten in one of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qan_gym.config import TaskConfig
from qan_gym.optimizee.network import Network, Params
from qan_gym.utils.arrays import TORCH, as_array
from qan_gym.utils.own_settings import own_settings

Flags = NDArray[np.bool_]  # (N,), on the host

NO_ACTION = -1.0  # last_action before the first action of an episode
LOSS_LIMIT = 1e6  # replaces larger losses and NaN
LEAST_LOSS = -1e-3  # of a loss of 0, whose rounding may be below


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of N runs; the leading axis is N.

    Attributes:
        shape: of one run: numbers, or names of sizes (see `Layout.sizes`).
        dtype: of its elements.
        at_reset: the value at the beginning of an episode: a number; the name of a field of `TaskConfig`; or None,
            where the training sets it or leaves it.
        saved: whether the future depends on it, so that it belongs to a saved state.
        on_host: a NumPy array on the host, which the step reads without waiting for the device.
        measured: only there where a feature of the observation needs measurements; else None.
        by_class: only there where a feature of the observation is one number for each class; else None.
        at_least, at_most, below: the range of its elements within an episode, which a saved state must keep: numbers,
            names of sizes or of fields of `TaskConfig`; None: no bound.
        carried: whether an episode hands it on to the next one, because no reset sets it.
    """

    shape: tuple[int | str, ...] = ()
    dtype: torch.dtype = torch.float32
    at_reset: float | str | None = 0
    saved: bool = True
    on_host: bool = False
    measured: bool = False
    by_class: bool = False
    at_least: float | str | None = None
    at_most: float | str | None = None
    below: float | str | None = None
    carried: bool = False


@dataclass(frozen=True)
class NetworkSpec:
    """Tensors shaped like the parameters of N networks.

    Attributes:
        of: "params", all parameters; "slots", the trained ones once per buffer of the optimizer; "reference", all,
            where each run has a reference of its own.
        at_reset, saved, carried: as `TensorSpec` has them.
    """

    of: str
    at_reset: float | None = None
    saved: bool = True
    carried: bool = False


@dataclass(frozen=True)
class Layout:
    """The sizes and shapes of the tensors of N runs.

    Attributes:
        num_runs: N.
        device: of all that is not on the host.
        network: the kind of network.
        slots: the buffers that the optimizer keeps of each parameter.
        own_reference: whether each run has a reference of its own, the last episode's final weights.
        measures: whether a feature of the observation needs measurements.
        measures_classes: whether a feature of the observation is one number for each class.
        sizes: the sizes that shapes name.
        action_shape, action_dtype: of the actions of one run.
        game: the tensors that the game adds.
    """

    num_runs: int
    device: torch.device
    network: Network
    slots: tuple[str, ...]
    own_reference: bool
    measures: bool
    sizes: Mapping[str, int]
    action_shape: tuple[int, ...]
    action_dtype: torch.dtype
    game: Mapping[str, TensorSpec]
    measures_classes: bool = False

    def has(self, spec: TensorSpec) -> bool:
        """Whether the runs have a tensor."""
        return not (spec.measured and not self.measures) and not (spec.by_class and not self.measures_classes)

    def tensor(self, spec: TensorSpec) -> Tensor:
        """A tensor of zeros."""
        shape = [self.sizes[size] if isinstance(size, str) else size for size in spec.shape]
        return torch.zeros(self.num_runs, *shape, dtype=spec.dtype, device="cpu" if spec.on_host else self.device)

    def networks(self, of: str) -> Params | dict[str, Params]:
        """Tensors of zeros, shaped like the parameters of N networks; see `NetworkSpec.of`."""
        if of == "slots":
            return {slot: self._networks() for slot in self.slots}
        return {} if of == "reference" and not self.own_reference else self._networks()

    def _networks(self) -> Params:
        return self.network.views(torch.zeros(self.num_runs, self.network.size(), device=self.device))


def per_run(*shape: int | str, **declared: Any) -> Any:
    """A field of `RunState`; see `TensorSpec`."""
    return field(metadata={"spec": TensorSpec(shape, **declared)})


def a_loss(at_reset: float | None = None) -> Any:
    """A field of `RunState`, a loss in nats."""
    return per_run(at_reset=at_reset, at_least=LEAST_LOSS, at_most=LOSS_LIMIT)


def per_network(of: str, at_reset: float | None = None, saved: bool = True, carried: bool = False) -> Any:
    """A field of `RunState`; see `NetworkSpec`."""
    return field(metadata={"spec": NetworkSpec(of, at_reset, saved, carried)})


@dataclass(kw_only=True)
class RunState:
    """N training runs; every tensor has the leading axis N. Games, features and rewards are functions of it.

    Losses are in nats, accuracies in [0, 1]; "before" is before the last action. What is declared as a Tensor is a
    NumPy array in what `with_arrays` gives, which is what games, features and rewards are given on CPU; they use
    operators, slices (`run.momentum[:] = ...`) and the functions of `xp`, which are the same for both.

    Attributes:
        xp: the namespace of its arrays, with the functions of the Array API standard: `run.xp.log(run.loss)`.
    """

    layout: Layout
    xp: Any = TORCH

    # What the host knows, and the device's copies of it.
    seed: NDArray[np.int64] = per_run(dtype=torch.int64, at_reset=None, on_host=True, at_least=0)  # of the episode
    batch: NDArray[np.int64] = per_run(
        dtype=torch.int64, on_host=True, at_least=0, at_most="budget"
    )  # mini-batches done
    over: Flags = per_run(dtype=torch.bool, on_host=True)  # the episode has ended or not begun
    budgets: NDArray[np.int64] = per_run(dtype=torch.int64, at_reset=None, saved=False, on_host=True)  # mini-batches
    epoch_batches: NDArray[np.int64] = per_run(dtype=torch.int64, at_reset=None, saved=False, on_host=True)
    action_batches: NDArray[np.int64] = per_run(dtype=torch.int64, at_reset=None, saved=False, on_host=True)
    clock: Tensor = per_run(dtype=torch.int64, saved=False)  # copy of `batch`
    budget: Tensor = per_run(dtype=torch.int64, at_reset=None, saved=False)  # copy of `budgets`
    per_epoch: Tensor = per_run(dtype=torch.int64, at_reset=None, saved=False)  # copy of `epoch_batches`
    per_action: Tensor = per_run(dtype=torch.int64, at_reset=None, saved=False)  # copy of `action_batches`
    device_seed: Tensor = per_run(dtype=torch.int64, at_reset=None, saved=False)  # copy of `seed`

    # The task.
    n_classes: Tensor = per_run(dtype=torch.float64, at_reset=None, saved=False)
    batch_size: Tensor = per_run(dtype=torch.float64, at_reset=None, saved=False)
    train_size: Tensor = per_run(dtype=torch.float64, at_reset=None, saved=False)

    # The networks.
    memory: Tensor = per_run("network_size", at_reset=None, saved=False)  # all parameters, which `params` are views of
    params: Params = per_network("params")
    slots: dict[str, Params] = per_network("slots", at_reset=0)  # the optimizer's buffers
    reference: Params = per_network("reference", carried=True)  # of the run's own; else empty
    has_reference: Tensor = per_run(dtype=torch.bool, at_reset=None, carried=True)

    # The hyperparameters that an action may change.
    learning_rate: Tensor = per_run(dtype=torch.float64, at_reset="learning_rate", at_least=0)  # of the last mini-batch
    chosen_learning_rate: Tensor = per_run(  # before the base schedule
        dtype=torch.float64, at_reset="learning_rate", at_least="learning_rate_min", at_most="learning_rate_max"
    )
    momentum: Tensor = per_run(dtype=torch.float64, at_reset="momentum", at_least=0)
    weight_decay: Tensor = per_run(dtype=torch.float64, at_reset="weight_decay", at_least=0)
    loss_scale: Tensor = per_run(at_reset="loss_scale", at_least=0)  # multiplies the training loss and its gradient
    pull: Tensor = per_run(saved=False)  # c of the next update, see `qan_gym.core.meta_momentum`; 0: none

    # The actions; what has no declaration here is declared by the game.
    action: Tensor  # the last one, as it was given: transient
    last_action: Tensor = per_run(at_reset=NO_ACTION)  # as the score line shows it
    game: dict[str, Tensor]  # see `Game.tensors`

    # The data.
    order: Tensor = per_run(  # of the training images, in this epoch
        "train_size", dtype=torch.int32, at_reset=None, at_least=0, below="train_size"
    )
    by_class: Tensor = per_run(dtype=torch.bool, at_reset=None)  # whether mini-batches are drawn by class
    class_sizes: Tensor = per_run("n_classes", dtype=torch.int64, at_reset=None, saved=False)  # training images
    # Images drawn by class in this epoch; with replacement, in this episode.
    class_used: Tensor = per_run("n_classes", dtype=torch.int64, at_least=0)
    batch_indices: Tensor = per_run(  # of the last action
        "batches_per_action", "batch_size", dtype=torch.int64, at_least=0, below="train_size"
    )

    # What is measured.
    loss: Tensor = a_loss()  # mean over the mini-batches of the last action, times the loss scale
    smoothed_loss: Tensor = a_loss()  # running mean of the losses of the mini-batches
    smoothed_loss_before: Tensor = a_loss()
    validation_loss: Tensor = a_loss()  # as last measured
    validation_loss_before: Tensor = a_loss()
    validation_accuracy: Tensor = per_run(at_reset=None, at_least=0, at_most=1)
    best_validation_loss: Tensor = a_loss()
    epochs_since_best: Tensor = per_run(dtype=torch.int64, at_least=0, at_most="epochs")
    test_loss: Tensor = a_loss(at_reset=math.nan)  # of an episode that has ended; else NaN
    test_accuracy: Tensor = per_run(at_reset=math.nan, at_least=0, at_most=1)

    # What is known of each class, see `qan_gym.core.class_statistics`.
    class_loss: Tensor = per_run("n_classes", at_reset=None, by_class=True, at_least=LEAST_LOSS, at_most=LOSS_LIMIT)
    class_validation_loss: Tensor = per_run(
        "n_classes", at_reset=None, by_class=True, at_least=LEAST_LOSS, at_most=LOSS_LIMIT
    )
    class_share: Tensor = per_run("n_classes", by_class=True, at_least=0, at_most=1)  # of the last action's images
    class_drawn: Tensor = per_run("n_classes", dtype=torch.int64, by_class=True, at_least=0)  # images in the episode

    # What features need that are measured, see `qan_gym.core.statistics`.
    measured: Tensor = per_run("measured", measured=True)  # by the engine: `MEASURED`, of the last action
    losses: Tensor = per_run(
        "batches_per_action", saved=False, measured=True
    )  # of its mini-batches, before each update
    previous_gradient: Tensor = per_run("measured_size", measured=True)  # of the last mini-batch
    previous_displacement: Tensor = per_run("measured_size", measured=True)  # by the last action
    action_start: Tensor = per_run("measured_size", at_reset=None, saved=False, measured=True)  # the weights
    start_learning_rate: Tensor = per_run(dtype=torch.float64, at_reset="learning_rate", measured=True)
    chosen_learning_rate_before: Tensor = per_run(dtype=torch.float64, at_reset="learning_rate", measured=True)
    fast_loss: Tensor = per_run(measured=True)
    slow_loss: Tensor = per_run(measured=True)
    best_loss: Tensor = per_run(at_reset=math.inf, measured=True)  # least `fast_loss`
    logs: Tensor = per_run("logs", measured=True)  # ln of `QUANTITIES` after the last action
    logs_before: Tensor = per_run("logs", measured=True)  # after the one before
    first_logs: Tensor = per_run("logs", measured=True)  # after the first of the episode
    loss_slope: Tensor = per_run(measured=True)  # within the last action
    loss_variation: Tensor = per_run(measured=True)
    straightness: Tensor = per_run(measured=True)

    # How the episode stands.
    diverged: Tensor = per_run(dtype=torch.bool)  # a loss or a weight is not finite
    success: Tensor = per_run(dtype=torch.bool)  # the target loss is reached
    early_stopped: Tensor = per_run(dtype=torch.bool)
    ended: Tensor = per_run(dtype=torch.bool, saved=False)  # with the last action

    def with_arrays(self, xp: Any) -> Self:
        """The same state, in the same memory, as arrays of a namespace: on CPU, NumPy's."""
        arrays: dict[str, Any] = {
            one.name: as_array(getattr(self, one.name))
            for one in fields(self)
            if isinstance(one.metadata.get("spec"), TensorSpec)
            and not one.metadata["spec"].on_host
            and getattr(self, one.name) is not None
        }
        arrays["params"] = {name: as_array(value) for name, value in self.params.items()}
        arrays["game"] = {name: as_array(value) for name, value in self.game.items()}
        return replace(self, xp=xp, action=as_array(self.action), **arrays)

    # --- driven by the declarations ---------------------------------------------------------------------------------

    @classmethod
    def allocate(cls, layout: Layout) -> Self:
        """N runs of zeros that have not begun."""
        values: dict[str, Any] = {"layout": layout}
        for one in fields(cls):
            spec = one.metadata.get("spec")
            if isinstance(spec, TensorSpec) and not layout.has(spec):
                values[one.name] = None
            elif isinstance(spec, TensorSpec):
                values[one.name] = layout.tensor(spec).numpy() if spec.on_host else layout.tensor(spec)
            elif isinstance(spec, NetworkSpec) and one.name != "params":
                values[one.name] = layout.networks(spec.of)
        values["params"] = layout.network.views(values["memory"])
        values["game"] = {name: layout.tensor(spec) for name, spec in layout.game.items()}
        shape = (layout.num_runs, *layout.action_shape)
        values["action"] = torch.zeros(shape, dtype=layout.action_dtype, device=layout.device)
        run = cls(**values)
        run.over[:] = True
        return run

    def leaves(self) -> Iterator[tuple[str, TensorSpec | NetworkSpec, Tensor]]:
        """Every tensor with its name and what is declared of it; host arrays as tensors of the same memory."""
        for one in fields(self):
            spec, value = one.metadata.get("spec"), getattr(self, one.name)
            if value is None:
                continue
            if isinstance(spec, TensorSpec):
                yield one.name, spec, torch.from_numpy(value) if spec.on_host else value
            elif isinstance(spec, NetworkSpec) and spec.of == "slots":
                for slot, buffers in value.items():
                    for name in self.layout.network.trained:
                        yield f"{one.name}.{slot}.{name}", spec, buffers[name]
            elif isinstance(spec, NetworkSpec):
                for name, tensor in value.items():
                    yield f"{one.name}.{name}", spec, tensor
        for name, tensor in self.game.items():
            yield f"game.{name}", self.layout.game[name], tensor

    @property
    def nbytes(self) -> int:
        """Of memory; tensors that are views of the same count once."""
        storages = [tensor.untyped_storage() for *_, tensor in self.leaves()]
        return sum({one.data_ptr(): one.nbytes() for one in storages}.values())

    def reset(self, mask: Flags, rows: Tensor, config: TaskConfig) -> None:
        """Begin an episode in the rows of a mask, which `rows` (M,) lists on the device.

        Sets what is declared to have a value at a reset; the rest is the training's to set.
        """
        host_rows = torch.from_numpy(np.flatnonzero(mask))
        for _, spec, tensor in self.leaves():
            if spec.at_reset is not None:
                value = getattr(config, spec.at_reset) if isinstance(spec.at_reset, str) else spec.at_reset
                on_host = isinstance(spec, TensorSpec) and spec.on_host
                tensor[host_rows if on_host else rows] = value

    def saved(self) -> dict[str, Tensor]:
        """Every tensor that the future depends on, by name; not copies. Random streams are seeds and counters."""
        return {name: tensor for name, spec, tensor in self.leaves() if spec.saved}

    @own_settings()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `saved` gave; nothing changes where something is wrong.

        Raises:
            ValueError: see `check_shapes`.
        """
        self.check_shapes(tensors)
        for name, value in self.saved().items():
            value.copy_(tensors[name])
        self.copy_clocks()

    def check_shapes(self, tensors: Mapping[str, Tensor]) -> None:
        """Refuse tensors that `restore` cannot take.

        Raises:
            ValueError: a tensor is missing, unknown, or has another shape or dtype.
        """
        _check_shapes(tensors, self.saved())

    def check_values(self, tensors: Mapping[str, Tensor], config: TaskConfig) -> None:
        """Refuse tensors with values that no episode has, by the ranges that are declared.

        Raises:
            ValueError: a value is out of its range; or it is not finite, and not that which is set at a reset.
        """
        for name, spec, _ in self.leaves():
            if not isinstance(spec, TensorSpec) or not spec.saved or spec.dtype == torch.bool:
                continue
            values, wanted = tensors[name], "finite"
            wrong = ~(values.isfinite() | _at_reset(values, spec))
            for words, bound, beyond in (
                ("at least", spec.at_least, torch.lt),
                ("at most", spec.at_most, torch.gt),
                ("below", spec.below, torch.ge),
            ):
                if bound is not None:
                    limit = self._bound(bound, config)
                    wanted += f", {words} {limit}"
                    wrong |= beyond(values, limit)
            if wrong.any():
                raise ValueError(f"the state's {name} must be {wanted}, not {values[wrong][0].item()}")

    def _bound(self, bound: float | str, config: TaskConfig) -> Any:
        if not isinstance(bound, str):
            return bound
        return self.layout.sizes[bound] if bound in self.layout.sizes else getattr(config, bound)

    def restore_carried(self, tensors: Mapping[str, Tensor]) -> None:
        """Begin the next episode from what `carried` gave; nothing changes where something is wrong.

        Raises:
            ValueError: see `restore`.
        """
        _copy(tensors, self.carried())

    def carried(self) -> dict[str, Tensor]:
        """Every tensor that an episode hands on to the next one, by name; not copies.

        They are those that are declared so, and those of a game that have no value at a reset. Where the reference is
        the task's, `has_reference` never changes.
        """
        unchanged = set() if self.reference else {"has_reference"}
        games = {f"game.{name}" for name, spec in self.layout.game.items() if spec.saved and spec.at_reset is None}
        names = {name for name, spec, _ in self.leaves() if spec.carried} - unchanged | games
        return {name: tensor for name, _, tensor in self.leaves() if name in names}

    def fork(self, num_runs: int) -> Self:
        """The only run of this state, `num_runs` times over."""
        forked = type(self).allocate(replace(self.layout, num_runs=num_runs))
        forked.restore({name: value.expand(num_runs, *value.shape[1:]) for name, value in self.saved().items()})
        return forked

    @own_settings()
    def copy_rows(self, rows: Sequence[int], sources: Sequence[int]) -> None:
        """Let some runs go on from where others stand, with their seeds, too.

        Args:
            rows: M different ones, which are overwritten.
            sources: M, as they stand before anything is overwritten.
        """
        for value in self.saved().values():
            value[list(rows)] = value[list(sources)]
        self.copy_clocks()

    def copy(self) -> Self:
        """The same state in memory of its own."""
        copied = type(self).allocate(self.layout)
        for (_, _, mine), (_, _, its) in zip(self.leaves(), copied.leaves(), strict=True):
            its.copy_(mine)
        copied.action.copy_(self.action)
        return copied

    def copy_clocks(self) -> None:
        """Tell the device what the host knows."""
        for copy, known in (
            *((self.clock, self.batch), (self.device_seed, self.seed), (self.budget, self.budgets)),
            *((self.per_epoch, self.epoch_batches), (self.per_action, self.action_batches)),
        ):
            copy.copy_(torch.from_numpy(known))


def _copy(tensors: Mapping[str, Tensor], to: Mapping[str, Tensor]) -> None:
    """Copy tensors to others; nothing changes where they do not go together.

    Raises:
        ValueError: see `_check_shapes`.
    """
    _check_shapes(tensors, to)
    for name, value in to.items():
        value.copy_(tensors[name])


def _at_reset(values: Tensor, spec: TensorSpec) -> Tensor:
    """Where values are what a reset sets, NaN included."""
    if not isinstance(spec.at_reset, float):
        return torch.zeros_like(values, dtype=torch.bool)
    return values.isnan() if math.isnan(spec.at_reset) else values == spec.at_reset


def _check_shapes(tensors: Mapping[str, Tensor], mine: Mapping[str, Tensor]) -> None:
    """Check that tensors have the names, shapes and dtypes of others.

    Raises:
        ValueError: a tensor is missing, unknown, or has another shape or dtype.
    """
    if tensors.keys() != mine.keys():
        raise ValueError(f"the state has other tensors: {', '.join(sorted(tensors.keys() ^ mine.keys()))}")
    for name, value in mine.items():
        if tensors[name].shape != value.shape or tensors[name].dtype != value.dtype:
            raise ValueError(
                f"the state's {name} is {tuple(tensors[name].shape)} {tensors[name].dtype}, "
                f"not {tuple(value.shape)} {value.dtype}"
            )
