"""The interface of an engine: the arithmetic of N networks in training, apart from the bookkeeping of their runs."""

from __future__ import annotations

from typing import Protocol

from qan_gym.core.components import Components
from qan_gym.core.meta_momentum import Pull
from qan_gym.core.run_state import RunState
from qan_gym.core.torch_engine import TorchEngine
from qan_gym.optimizee.network import Params
from qan_gym.utils.arrays import Array


class Engine(Protocol):
    """Trains and measures the networks of a state, in place."""

    def train(self, indices: Array) -> Array:
        """One mini-batch of every run: gradient, update, pull, with the hyperparameters that stand in the state.

        Args:
            indices: (N, B) int64, into the training split.

        Returns:
            (N,) float32, the losses before the update.
        """

    def finite(self) -> Array:
        """(N,) bool, whether every weight of a run is finite."""

    def evaluate(self, rows: Array, split: str) -> tuple[Array, Array]:
        """Mean cross-entropy and accuracy, (M,) float32 each, of the runs `rows` (M,) int64 on a whole split."""


def make_engine(parts: Components, run: RunState, reference: Params | None, pull: Pull) -> Engine:
    """The engine of a training.

    Args:
        parts: the components of the task.
        run: the state, of tensors.
        reference: w*, N networks, or None.
        pull: towards them.
    """
    return TorchEngine(parts, run, reference, pull)
