"""The interface of an engine, and which one trains a task.

An engine is the arithmetic of N networks in training, apart from the bookkeeping of their runs. There are two: kernels
in C for `mnist-cnn` on CPU, and PyTorch for everything.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Protocol

import torch

from qan_gym.config import TaskConfig
from qan_gym.core.meta_momentum import Pull
from qan_gym.core.native_engine import NativeEngine, native_obstacle
from qan_gym.core.run_state import RunState
from qan_gym.core.torch_engine import TorchEngine
from qan_gym.native import library
from qan_gym.native.portable import PortableNumpy
from qan_gym.optimizee.network import Network, Params
from qan_gym.utils.arrays import NUMPY, TORCH, Array
from qan_gym.utils.validation import shown

if TYPE_CHECKING:
    from qan_gym.core.components import Components

ENGINES = ("auto", "native", "torch")
ENGINE_VARIABLE = "QAN_GYM_ENGINE"  # what "auto" stands for, where it is set


class Engine(Protocol):
    """Trains and measures the networks of a state, in place.

    Where the state has room for it (`Layout.measures`), training also writes `RunState.measured` and `losses`, see
    `qan_gym.core.statistics`; a last mini-batch of an action completes them.

    Attributes:
        in_order: whether it has `train_in_order`.
        each: (N, B) float32, where the state measures classes: of the images of the last mini-batch, the losses before
            the update, without the loss scale.
    """

    in_order: bool
    each: Array

    def train(self, indices: Array, number: int) -> Array:
        """One mini-batch of every run: gradient, update, pull, with the hyperparameters that stand in the state.

        Args:
            indices: (N, B) int64, into the training split.
            number: of the mini-batch in its action, from 0.

        Returns:
            (N,) float32, the losses before the update, times the loss scale.
        """

    def train_in_order(self, first: int, count: int, rates: Array | None) -> None:
        """The mini-batches first, ..., first + count - 1 of an action, as `Training` would train on one after another.

        Each is the next piece of a run's order. Their indices, the running mean of the losses, the clock and the pull
        are written to the state; each loss is added to `loss`.

        Args:
            first: from 0.
            count: at least 1; no run begins an epoch after the first of them.
            rates: (count, N) float64, the learning rates; None: the one that stands in the state, for all.
        """

    def finite(self) -> Array:
        """(N,) bool, whether every weight of a run, and its loss on the last mini-batch, is finite."""

    def class_losses(self, rows: Array) -> Array:
        """(M, K) float32, the mean cross-entropy of the runs `rows` (M,) on `class_validation_images` of each class.

        0 of a class that the validation split does not have.
        """

    def evaluate(self, rows: Array, split: str) -> tuple[Array, Array]:
        """Mean cross-entropy and accuracy, (M,) float32 each, of the runs `rows` (M,) int64 on a whole split."""


def choose_engine(wanted: str, config: TaskConfig, device: torch.device, network: Network) -> str:
    """The engine of a task, "native" or "torch".

    Args:
        wanted: "auto": the kernels where they can; "native": them or an error; "torch".
        config: of the task.
        device: that computes.
        network: in training.

    Raises:
        ValueError: there is no such engine, or the kernels cannot train this task here.
    """
    return decide(wanted, partial(native_obstacle, config, device, network))


def decide(wanted: str, find_obstacle: Callable[[], str | None]) -> str:
    """The engine, "native" or "torch".

    Args:
        wanted: see `choose_engine`.
        find_obstacle: () -> the reason why the kernels cannot train what is to be trained; None where they can.

    Raises:
        ValueError: see `choose_engine`.
    """
    if not isinstance(wanted, str) or wanted not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, not {shown(wanted)}")
    if wanted == "auto":
        wanted = os.environ.get(ENGINE_VARIABLE) or wanted
    if wanted not in ENGINES:
        raise ValueError(f"{ENGINE_VARIABLE} must be one of {', '.join(ENGINES)}, not {wanted!r}")
    if wanted == "torch":
        return "torch"
    obstacle = find_obstacle()
    if obstacle is None:
        return "native"
    if wanted == "native":
        raise ValueError(f"engine='native': {obstacle}; engine='torch' trains everything")
    if obstacle == library.find():
        _warn_once(obstacle)
    return "torch"


def engine_here() -> str:
    """The engine of tasks that the kernels can train, on the CPU of this machine, in words."""
    if os.environ.get(ENGINE_VARIABLE) == "torch":
        return f"torch, because {ENGINE_VARIABLE} says so"
    found = library.find()
    return f"torch: {found}" if isinstance(found, str) else f"native ({library.instruction_sets(found)[0]})"


@cache
def _warn_once(reason: str) -> None:
    logging.getLogger("qan_gym").warning("training in PyTorch, several times slower than the kernels: %s", reason)


def namespace(engine: str, device: torch.device) -> Any:
    """The namespace of the arrays around an engine, see `qan_gym.utils.arrays`."""
    if engine == "native":
        return PortableNumpy()
    return NUMPY if device.type == "cpu" else TORCH


def make_engine(parts: Components, run: RunState, reference: Params | None, pull: Pull) -> Engine:
    """The engine of a training.

    Args:
        parts: the components of the task.
        run: the state, of tensors.
        reference: w*, N networks, or None.
        pull: towards them.
    """
    return (NativeEngine if parts.engine == "native" else TorchEngine)(parts, run, reference, pull)
