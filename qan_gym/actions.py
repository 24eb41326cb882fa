"""What an action does to the learning rate."""

import math

import torch
from torch import Tensor

from qan_gym.tasks import TaskConfig

RAISE, LOWER, KEEP = 0, 1, 2
MULTIPLICATIVE_FACTOR = 1.25  # of one discrete action on the multiplicative scale
CONTINUOUS_FACTOR = 2.0  # of a continuous action of 1; its inverse, of -1


def next_learning_rate(learning_rate: Tensor, action: Tensor, config: TaskConfig) -> Tensor:
    """The learning rate after an action of the learning-rate game, kept within the game's range.

    additive: lr +- learning_rate_step (the paper); multiplicative: lr * or / 1.25; continuous: lr * 2**action.

    Args:
        learning_rate: (N,) float64.
        action: (N,) int64 of RAISE, LOWER, KEEP; or (N,) float in [-1, 1], clipped, where `config.continuous`.
        config: the game.

    Returns:
        (N,) float64 in [learning_rate_min, learning_rate_max].
    """
    if config.continuous:
        changed = learning_rate * torch.exp(action.to(torch.float64).clamp(-1, 1) * math.log(CONTINUOUS_FACTOR))
    else:
        direction = (action == RAISE).to(torch.float64) - (action == LOWER).to(torch.float64)  # 1, -1 or 0
        if config.action_scale == "additive":
            changed = learning_rate + direction * config.learning_rate_step
        else:
            changed = learning_rate * MULTIPLICATIVE_FACTOR**direction
    return changed.clamp(config.learning_rate_min, config.learning_rate_max)
