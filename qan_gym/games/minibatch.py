"""The mini-batch game: choose the classes of the next mini-batches.

As in the paper a class goes into the roulette, and an epoch shows every image once; or, with replacement, classes have
the shares of the roulette, or those of an action's logits, and begin anew when they are exhausted.
"""

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
NO_CLASS = -1  # in the place of an action before the first one, with replacement
LOGIT_SCALE = 3.0  # logit of a continuous action of 1: two classes differ by a factor of e^6 = 403 at most


class MinibatchGame(Game):
    """Choose classes; `qan_gym.env.MinibatchEnv` has the whole description."""

    controlled = "classes of the mini-batches"
    baselines = ("uniform", "random")
    curve = None
    without_acting = "the classes follow in turn, each with the images that it would have had"

    def check(self, config: TaskConfig) -> None:
        """See `Game.check`."""
        if config.continuous and not config.replacement:
            raise ValueError(
                f"continuous=True needs replacement=True in the game {config.game!r}: without it an epoch shows every "
                "image once, whatever the shares are"
            )

    def coarse(self, config: TaskConfig) -> str:
        """See `Game.coarse`: with replacement, a few mixtures of the classes in the place of each class."""
        return "class-mixture" if config.replacement and not config.continuous else config.game

    def action_space(self, config: TaskConfig, n_classes: int) -> spaces.Space[Any]:
        """See `Game.action_space`."""
        from gymnasium import spaces

        return spaces.Box(-1.0, 1.0, (n_classes,), np.float32) if config.continuous else spaces.Discrete(n_classes)

    def tensors(self, config: TaskConfig, n_classes: int) -> dict[str, TensorSpec]:
        """The shares of continuous actions, at first equal; or the last actions, the newest last.

        These are at first all of class 0; with replacement there are none yet, which count as all classes alike.
        """
        if config.continuous:
            shares = TensorSpec(("n_classes",), torch.float64, at_reset=1 / n_classes, at_least=0, at_most=1)
            return {"shares": shares}
        least = NO_CLASS if config.replacement else 0
        return {
            "recent_actions": TensorSpec((REMEMBERED,), torch.int64, at_reset=least, at_least=least, below="n_classes")
        }

    def apply(self, run: RunState, actions: Array, config: TaskConfig) -> None:
        """See `Game.apply`."""
        if config.continuous:
            run.game["shares"][:] = shares_of_logits(run.xp, actions)
            return
        recent: Array = run.game["recent_actions"]
        recent[:] = run.xp.concat([recent[:, 1:], actions[:, None]], axis=1)

    def class_counts(self, run: RunState, config: TaskConfig) -> Array:
        """See `Game.class_counts`."""
        return roulette_counts(run.xp, run.game["recent_actions"], config.batch_size, run.class_used.shape[1])

    def class_shares(self, run: RunState, config: TaskConfig) -> Array:
        """See `Game.class_shares`."""
        if config.continuous:
            return run.game["shares"]
        return roulette_shares(run.xp, run.game["recent_actions"], run.class_used.shape[1])

    def shown_action(self, actions: Array, config: TaskConfig) -> Array:
        """See `Game.shown_action`; of logits, the class with the largest."""
        return actions.argmax(1) if config.continuous else super().shown_action(actions, config)

    def continuation(self, config: TaskConfig, n_classes: int, step: int, first: NDArray[Any]) -> NDArray[Any]:
        """See `Game.continuation`: the classes in turn, the same in all rows; of logits, all classes alike."""
        if config.continuous:
            return np.zeros_like(first)
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


def roulette_shares(xp: Any, recent: Array, n_classes: int) -> Array:
    """The shares of the classes, (N, K) float64 of sum 1: a tenth for each remembered action.

    Args:
        xp: the namespace of the array.
        recent: (N, REMEMBERED) int64, the remembered actions; NO_CLASS stands for all classes alike.
        n_classes: K.
    """
    chosen = recent[:, :, None] == xp.arange(n_classes, device=recent.device)  # (N, REMEMBERED, K)
    alike = xp.astype(recent == NO_CLASS, xp.float64) / n_classes
    return xp.sum(xp.astype(chosen, xp.float64) + alike[:, :, None], axis=1) / REMEMBERED


def shares_of_logits(xp: Any, actions: Array) -> Array:
    """The shares of the classes, (N, K) float64: softmax(LOGIT_SCALE * action); actions (N, K), clipped to [-1, 1]."""
    logits = LOGIT_SCALE * xp.minimum(xp.maximum(xp.astype(actions, xp.float64), -1.0), 1.0)
    weights = xp.exp(logits)
    return weights / xp.sum(weights, axis=1)[:, None]


def logits_of_shares(shares: NDArray[np.float64]) -> NDArray[np.float32]:
    """The continuous actions, of the same shape, whose shares are nearest to some: the largest has the logit 1.

    Args:
        shares: (..., K), at least 0, of any sum above 0; what is less than e^-6 of the largest becomes that.
    """
    largest = shares.max(axis=-1, keepdims=True)
    logits = np.log(np.maximum(shares / largest, np.exp(-2 * LOGIT_SCALE))) / LOGIT_SCALE + 1
    return np.asarray(np.clip(logits, -1.0, 1.0), np.float32)


register_game("minibatch", MinibatchGame())
