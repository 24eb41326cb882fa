"""How the environment is arranged for agents that are to learn from few trainings, of `qan train` and of the bench."""

from typing import Any

from qan_gym.config import TaskConfig
from qan_gym.games import game_of


def few_actions(
    config: TaskConfig, batches_per_action: int, schedule: str, *, validate_every: int, continuous: bool = False
) -> dict[str, Any]:
    """Keyword arguments of the environment, for few long actions that multiply what a schedule sets.

    In every game the reward is the drop in the validation loss, so that a return is the whole drop. Where the actions
    do not set the learning rate, that is all.

    Args:
        config: of the task.
        batches_per_action: mini-batches of an action.
        schedule: under the actions.
        validate_every: mini-batches from one measurement of the validation loss to the next.
        continuous: whether the actions are.
    """
    reward = {"validate_every": validate_every, "reward": "validation-loss"}
    if "learning_rate" not in game_of(config).hyperparameters:
        return reward
    scale = "additive" if continuous else "multiplicative"
    return {
        "batches_per_action": batches_per_action,
        **reward,
        "schedule": schedule,
        "continuous": continuous,
        "action_scale": scale,
    }
