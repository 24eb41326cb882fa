"""The mini-batch game: choose the classes of the next mini-batch, through the roulette."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from qan_gym.config import TaskConfig
from qan_gym.core.run_state import TensorSpec
from qan_gym.games.game import Game, register_game
from qan_gym.utils.arrays import Array

if TYPE_CHECKING:
    from gymnasium import spaces

    from qan_gym.core.run_state import RunState

REMEMBERED = 10  # actions that decide what a mini-batch holds


class MinibatchGame(Game):
    """Choose classes; `qan_gym.env.MinibatchEnv` has the whole description."""

    controlled = "classes of the mini-batches"
    baselines = ("uniform", "random")
    curve = None
    without_acting = "the classes follow in turn, each with the images that it would have had"

    def action_space(self, config: TaskConfig, n_classes: int) -> spaces.Space[Any]:
        """See `Game.action_space`."""
        from gymnasium import spaces

        return spaces.Discrete(n_classes)

    def tensors(self, config: TaskConfig, n_classes: int) -> dict[str, TensorSpec]:
        """The last actions, the newest last; at first all of class 0."""
        return {"recent_actions": TensorSpec((REMEMBERED,), torch.int64, at_least=0, below="n_classes")}

    def apply(self, run: RunState, actions: Array, config: TaskConfig) -> None:
        """See `Game.apply`."""
        recent: Array = run.game["recent_actions"]
        recent[:] = run.xp.concat([recent[:, 1:], actions[:, None]], axis=1)

    def class_counts(self, run: RunState, config: TaskConfig) -> Array:
        """See `Game.class_counts`."""
        return roulette_counts(run.xp, run.game["recent_actions"], config.batch_size, run.class_used.shape[1])

    def continuation(self, config: TaskConfig, n_classes: int, step: int, first: NDArray[Any]) -> NDArray[Any]:
        """See `Game.continuation`: the classes in turn, the same in all rows."""
        return np.full_like(first, step % n_classes)


def roulette_counts(xp: Any, recent: Array, batch_size: int, n_classes: int) -> Array:
    """The number of images of each class that the remembered actions ask for.

    floor(B / 10) for each of the 9 older actions, the rest, B - 9 * floor(B / 10), for the newest.

    Args:
        xp: the namespace of the array.
        recent: (N, REMEMBERED) int64, the remembered actions, the newest last.
        batch_size: B.
        n_classes: K.

    Returns:
        (N, K) int64; each row sums to B.
    """
    share = batch_size // REMEMBERED
    chosen = recent[:, :, None] == xp.arange(n_classes, device=recent.device)  # (N, REMEMBERED, K)
    older, newest = xp.astype(chosen[:, :-1], xp.int64), xp.astype(chosen[:, -1], xp.int64)
    return share * xp.sum(older, axis=1) + (batch_size - (REMEMBERED - 1) * share) * newest


register_game("minibatch", MinibatchGame())
