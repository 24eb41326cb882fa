"""What an action does to the learning rate, and what the schedule does that it plays on top of."""

import math

import torch
from torch import Tensor

from qan_gym.tasks import TaskConfig

RAISE, LOWER, KEEP = 0, 1, 2
MULTIPLICATIVE_FACTOR = 1.25  # of one discrete action on the multiplicative scale
COOLDOWN = 0.25  # of the budget, over which the learning rate of the schedule "cooldown" falls
PEAK, START, RISE = 3.4, 0.5, 20.0  # of the schedule "one-cycle"; found on other tasks by benchmarks/base.py
CONTINUOUS_FACTOR = 2.0  # of a continuous action of 1; its inverse, of -1


def next_level(level: Tensor, action: Tensor, config: TaskConfig) -> Tensor:
    """The level of the learning rate after an action, kept within the game's range.

    additive: +- learning_rate_step (the paper); multiplicative: * or / 1.25; continuous: * 2**action, or, with
    action_scale "absolute", min * (max / min)**((action + 1) / 2).

    Args:
        level: (N,) float64, the learning rate before what the schedule makes of it (see `scheduled`).
        action: (N,) int64 of RAISE, LOWER, KEEP; or (N,) float in [-1, 1], clipped, where `config.continuous`.
        config: the game.

    Returns:
        (N,) float64 in [learning_rate_min, learning_rate_max].
    """
    if config.continuous:
        place = action.to(torch.float64).clamp(-1, 1)
        if config.action_scale == "absolute":
            low, high = math.log(config.learning_rate_min), math.log(config.learning_rate_max)
            changed = torch.exp(low + (high - low) * (place + 1) / 2)
        else:
            changed = level * torch.exp(place * math.log(CONTINUOUS_FACTOR))
    else:
        direction = (action == RAISE).to(torch.float64) - (action == LOWER).to(torch.float64)  # 1, -1 or 0
        if config.action_scale == "additive":
            changed = level + direction * config.learning_rate_step
        else:
            changed = level * MULTIPLICATIVE_FACTOR**direction
    return changed.clamp(config.learning_rate_min, config.learning_rate_max)


def scheduled(level: Tensor, share: Tensor, schedule: str) -> Tensor:
    """The learning rate that a schedule makes of its level.

    linear: level * (1 - share); cosine: level * (1 + cos(pi share)) / 2; cooldown: level, and over the last quarter
    linearly to 0 (arXiv:2405.18392); one-cycle (arXiv:1708.07120): from level * PEAK / RISE up to level * PEAK at the
    share START, then down to 0, both along half a cosine.

    Args:
        level: (N,) float64.
        share: (N,) of the budget that is used, in [0, 1).
        schedule: "constant", "linear", "cosine", "cooldown" or "one-cycle".

    Returns:
        (N,) float64 in (0, level]; of one-cycle in (0, PEAK * level].
    """
    if schedule == "linear":
        return level * (1 - share)
    if schedule == "cosine":
        return level * (1 + torch.cos(math.pi * share)) / 2
    if schedule == "cooldown":
        return level * ((1 - share) / COOLDOWN).clamp(max=1)
    if schedule == "one-cycle":
        rises = share < START
        place = torch.where(rises, share / START - 1, (share - START) / (1 - START))  # -1 to 0 up, 0 to 1 down
        least = rises.to(level.dtype) / RISE
        return level * PEAK * (least + (1 - least) * (1 + torch.cos(math.pi * place)) / 2)
    return level
