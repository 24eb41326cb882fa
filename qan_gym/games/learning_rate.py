"""The learning-rate game: raise, lower or keep the learning rate, or set it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qan_gym.config import TaskConfig
from qan_gym.games.game import Game, refuse_replacement, register_game
from qan_gym.utils.arrays import NUMPY, Array

if TYPE_CHECKING:
    from gymnasium import spaces

    from qan_gym.core.run_state import RunState

RAISE, LOWER, KEEP = 0, 1, 2
MULTIPLICATIVE_FACTOR = 1.25  # of one discrete action on the multiplicative scale, where the task does not say
CONTINUOUS_FACTOR = 2.0  # of a continuous action of 1; its inverse, of -1


class LearningRateGame(Game):
    """Control the learning rate; `qan_gym.env.LearningRateEnv` has the whole description."""

    controlled = "learning rate"
    hyperparameters = ("learning_rate",)
    baselines = ("constant", "linear", "cosine")

    def check(self, config: TaskConfig) -> None:
        """See `Game.check`."""
        refuse_replacement(config)

    def action_space(self, config: TaskConfig, n_classes: int) -> spaces.Space[Any]:
        """See `Game.action_space`."""
        from gymnasium import spaces

        if config.continuous:
            return spaces.Box(-1.0, 1.0, (1,), np.float32)
        return spaces.Discrete(len(config.learning_rate_factors or (RAISE, LOWER, KEEP)))

    def no_op(self, config: TaskConfig) -> Any:
        """See `Game.no_op`."""
        if config.action_scale == "absolute":
            return None
        if config.learning_rate_factors is not None:
            return config.learning_rate_factors.index(1) if 1 in config.learning_rate_factors else None
        return np.zeros(1, np.float32) if config.continuous else KEEP

    def action_names(self, config: TaskConfig, n_classes: int) -> list[str]:
        """See `Game.action_names`."""
        if config.learning_rate_factors is not None:
            return [f"x{factor:g}" for factor in config.learning_rate_factors]
        return [] if config.continuous else ["raise", "lower", "keep"]

    def action_heights(self, config: TaskConfig, n_classes: int) -> list[float]:
        """See `Game.action_heights`."""
        if config.learning_rate_factors is not None:
            return [math.log(factor) for factor in config.learning_rate_factors]
        return [] if config.continuous else [1.0, -1.0, 0.0]

    def action_towards(self, config: TaskConfig, learning_rate: float, target: float) -> Any:
        """See `Game.action_towards`; nearest in the logarithm."""
        if config.action_scale == "absolute":
            return absolute_actions(np.array([target]), config)
        if config.continuous:
            step = math.log(target / learning_rate) / math.log(config.learning_rate_factor or CONTINUOUS_FACTOR)
            return np.clip([step], -1, 1).astype(np.float32)
        actions = np.arange(len(self.action_names(config, n_classes=0)))
        reached = next_learning_rate(NUMPY, np.full(len(actions), learning_rate), actions, config)
        distance, keep = abs(np.log(reached) - math.log(target)), self.no_op(config)
        return keep if keep is not None and distance[keep] <= distance.min() else int(distance.argmin())

    def apply(self, run: RunState, actions: Array, config: TaskConfig) -> None:
        """See `Game.apply`."""
        run.chosen_learning_rate[:] = next_learning_rate(run.xp, run.chosen_learning_rate, actions, config)

    def continuation(self, config: TaskConfig, n_classes: int, step: int, first: NDArray[Any]) -> NDArray[Any]:
        """See `Game.continuation`; on the absolute scale, the same learning rate again."""
        if config.action_scale == "absolute":
            return first
        return super().continuation(config, n_classes, step, first)


def absolute_actions(learning_rates: NDArray[np.float64], config: TaskConfig) -> NDArray[np.float32]:
    """The actions in [-1, 1], of the same shape, that set learning rates where action_scale is "absolute".

    Those outside the range of the task become its ends.
    """
    low, high = math.log(config.learning_rate_min), math.log(config.learning_rate_max)
    if low == high:
        return np.zeros(learning_rates.shape, np.float32)
    within = np.clip(learning_rates, config.learning_rate_min, config.learning_rate_max)
    return (2 * (np.log(within) - low) / (high - low) - 1).astype(np.float32)


def next_learning_rate(xp: Any, learning_rate: Array, actions: Array, config: TaskConfig) -> Array:
    """The learning rate after an action, within the range of the task.

    additive: +- learning_rate_step (the paper); multiplicative: * or / 1.25; continuous: * 2**action, or, with
    action_scale "absolute", min * (max / min)**((action + 1) / 2). `learning_rate_factor` takes the place of 1.25 and
    of 2; with `learning_rate_factors`, an action multiplies by its own.

    Args:
        xp: the namespace of the arrays.
        learning_rate: (N,) float64, before the base schedule multiplies it.
        actions: (N,) int64 of RAISE, LOWER, KEEP; or (N, 1) float in [-1, 1], clipped, where `config.continuous`.
        config: of the task.

    Returns:
        (N,) float64 in [learning_rate_min, learning_rate_max].
    """
    if config.continuous:
        place = xp.minimum(xp.maximum(xp.astype(actions[:, 0], xp.float64), -1.0), 1.0)
        if config.action_scale == "absolute":
            low, high = math.log(config.learning_rate_min), math.log(config.learning_rate_max)
            changed = xp.exp(low + (high - low) * (place + 1) / 2)
        else:
            changed = learning_rate * xp.exp(place * math.log(config.learning_rate_factor or CONTINUOUS_FACTOR))
    elif config.learning_rate_factors is not None:
        changed = learning_rate
        for action, factor in enumerate(config.learning_rate_factors):
            changed = xp.where(actions == action, learning_rate * factor, changed)
    else:
        if config.action_scale == "additive":
            higher, lower = learning_rate + config.learning_rate_step, learning_rate - config.learning_rate_step
        else:
            factor = config.learning_rate_factor or MULTIPLICATIVE_FACTOR
            higher, lower = learning_rate * factor, learning_rate * (1 / factor)
        changed = xp.where(actions == RAISE, higher, xp.where(actions == LOWER, lower, learning_rate))
    return xp.minimum(xp.maximum(changed, config.learning_rate_min), config.learning_rate_max)


register_game("learning-rate", LearningRateGame())
