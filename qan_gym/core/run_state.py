"""The state of N training runs: every tensor of a run is declared here once.

A field says its shape, its dtype, its value at a reset, and whether it is saved. Allocating, resetting, saving,
restoring and forking go through these declarations, so that a field cannot be forgotten in one of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qan_gym.config import TaskConfig
from qan_gym.optimizee.network import Network, Params
from qan_gym.utils.arrays import TORCH, as_array

Flags = NDArray[np.bool_]  # (N,), on the host

NO_ACTION = -1.0  # last_action before the first action of an episode


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
        carried: whether an episode hands it on to the next one, because no reset sets it.
    """

    shape: tuple[int | str, ...] = ()
    dtype: torch.dtype = torch.float32
    at_reset: float | str | None = 0
    saved: bool = True
    on_host: bool = False
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
        sizes: the sizes that shapes name.
        action_shape, action_dtype: of the actions of one run.
        game: the tensors that the game adds.
    """

    num_runs: int
    device: torch.device
    network: Network
    slots: tuple[str, ...]
    own_reference: bool
    sizes: Mapping[str, int]
    action_shape: tuple[int, ...]
    action_dtype: torch.dtype
    game: Mapping[str, TensorSpec]

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


def per_run(
    *shape: int | str,
    dtype: torch.dtype = torch.float32,
    at_reset: float | str | None = 0,
    saved: bool = True,
    on_host: bool = False,
    carried: bool = False,
) -> Any:
    """A field of `RunState`; see `TensorSpec`."""
    return field(metadata={"spec": TensorSpec(shape, dtype, at_reset, saved, on_host, carried)})


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
    seed: NDArray[np.int64] = per_run(dtype=torch.int64, at_reset=None, on_host=True)  # of the episode
    batch: NDArray[np.int64] = per_run(dtype=torch.int64, on_host=True)  # mini-batches done
    over: Flags = per_run(dtype=torch.bool, on_host=True)  # the episode has ended or not begun
    clock: Tensor = per_run(dtype=torch.int64, saved=False)  # copy of `batch`
    device_seed: Tensor = per_run(dtype=torch.int64, at_reset=None, saved=False)  # copy of `seed`

    # The networks.
    memory: Tensor = per_run("network_size", at_reset=None, saved=False)  # all parameters, which `params` are views of
    params: Params = per_network("params")
    slots: dict[str, Params] = per_network("slots", at_reset=0)  # the optimizer's buffers
    reference: Params = per_network("reference", carried=True)  # of the run's own; else empty
    has_reference: Tensor = per_run(dtype=torch.bool, at_reset=None, carried=True)

    # The hyperparameters that an action may change.
    learning_rate: Tensor = per_run(dtype=torch.float64, at_reset="learning_rate")  # of the last mini-batch
    chosen_learning_rate: Tensor = per_run(dtype=torch.float64, at_reset="learning_rate")  # before the base schedule
    momentum: Tensor = per_run(dtype=torch.float64, at_reset="momentum")
    weight_decay: Tensor = per_run(dtype=torch.float64, at_reset="weight_decay")
    pull: Tensor = per_run(saved=False)  # c of the next update, see `qan_gym.core.meta_momentum`; 0: none

    # The actions; what has no declaration here is declared by the game.
    action: Tensor  # the last one, as it was given: transient
    last_action: Tensor = per_run(at_reset=NO_ACTION)  # as the score line shows it
    game: dict[str, Tensor]  # see `Game.tensors`

    # The data.
    order: Tensor = per_run("train_size", dtype=torch.int32, at_reset=None)  # of the training images, in this epoch
    by_class: Tensor = per_run(dtype=torch.bool, at_reset=None)  # whether mini-batches are drawn by class
    class_used: Tensor = per_run("n_classes", dtype=torch.int64, at_reset=None)  # images drawn by class in this epoch
    batch_indices: Tensor = per_run("batches_per_action", "batch_size", dtype=torch.int64)  # of the last action

    # What is measured.
    loss: Tensor = per_run(at_reset=None)  # mean over the mini-batches of the last action
    smoothed_loss: Tensor = per_run(at_reset=None)  # running mean of the losses of the mini-batches
    smoothed_loss_before: Tensor = per_run(at_reset=None)
    validation_loss: Tensor = per_run(at_reset=None)  # as last measured
    validation_loss_before: Tensor = per_run(at_reset=None)
    validation_accuracy: Tensor = per_run(at_reset=None)
    best_validation_loss: Tensor = per_run(at_reset=None)
    epochs_since_best: Tensor = per_run(dtype=torch.int64)

    # How the episode stands.
    diverged: Tensor = per_run(dtype=torch.bool)  # a loss or a weight is not finite
    success: Tensor = per_run(dtype=torch.bool)  # the target loss is reached
    early_stopped: Tensor = per_run(dtype=torch.bool)
    ended: Tensor = per_run(dtype=torch.bool, saved=False)  # with the last action

    @property
    def budget(self) -> int:
        """Mini-batches of an episode."""
        return self.layout.sizes["budget"]

    def with_arrays(self, xp: Any) -> Self:
        """The same state, in the same memory, as arrays of a namespace: on CPU, NumPy's."""
        arrays: dict[str, Any] = {
            one.name: as_array(getattr(self, one.name))
            for one in fields(self)
            if isinstance(one.metadata.get("spec"), TensorSpec) and not one.metadata["spec"].on_host
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
            if isinstance(spec, TensorSpec):
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

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `saved` gave; nothing changes where something is wrong.

        Raises:
            ValueError: a tensor is missing, unknown, or has another shape or dtype.
        """
        _copy(tensors, self.saved())
        self.copy_clocks()

    def restore_carried(self, tensors: Mapping[str, Tensor]) -> None:
        """Begin the next episode from what `carried` gave; nothing changes where something is wrong.

        Raises:
            ValueError: see `restore`.
        """
        _copy(tensors, self.carried())

    def carried(self) -> dict[str, Tensor]:
        """Every tensor that an episode hands on to the next one, by name; not copies.

        They are those that are declared so, and those of a game that have no value at a reset.
        """
        games = {f"game.{name}" for name, spec in self.layout.game.items() if spec.at_reset is None}
        return {name: tensor for name, spec, tensor in self.leaves() if spec.carried or name in games}

    def fork(self, num_runs: int) -> Self:
        """The only run of this state, `num_runs` times over."""
        forked = type(self).allocate(replace(self.layout, num_runs=num_runs))
        forked.restore({name: value.expand(num_runs, *value.shape[1:]) for name, value in self.saved().items()})
        return forked

    def copy(self) -> Self:
        """The same state in memory of its own."""
        copied = type(self).allocate(self.layout)
        for (_, _, mine), (_, _, its) in zip(self.leaves(), copied.leaves(), strict=True):
            its.copy_(mine)
        copied.action.copy_(self.action)
        return copied

    def copy_clocks(self) -> None:
        """Tell the device what the host knows."""
        self.clock.copy_(torch.from_numpy(self.batch))
        self.device_seed.copy_(torch.from_numpy(self.seed))


def _copy(tensors: Mapping[str, Tensor], to: Mapping[str, Tensor]) -> None:
    """Copy tensors to others of the same names, shapes and dtypes; nothing changes where they differ.

    Raises:
        ValueError: a tensor is missing, unknown, or has another shape or dtype.
    """
    if tensors.keys() != to.keys():
        raise ValueError(f"the state has other tensors: {', '.join(sorted(tensors.keys() ^ to.keys()))}")
    for name, value in to.items():
        if tensors[name].shape != value.shape or tensors[name].dtype != value.dtype:
            raise ValueError(
                f"the state's {name} is {tuple(tensors[name].shape)} {tensors[name].dtype}, "
                f"not {tuple(value.shape)} {value.dtype}"
            )
    for name, value in to.items():
        value.copy_(tensors[name])
