"""How the environment is arranged for agents that are to learn from few trainings, of `qan train` and of the bench."""

from typing import Any

from qan_gym.config import TaskConfig
from qan_gym.games import game_of

MIXTURES = "class-mixture"  # the game where classes are drawn with replacement, and what is then observed
FEW_FEATURES = ["budget_used", "class_mixture", "log_loss", "log_validation_loss"]


def few_actions(
    config: TaskConfig, batches_per_action: int, schedule: str, *, validate_every: int, continuous: bool = False
) -> dict[str, Any]:
    """Keyword arguments of the environment, for few long actions that change what a schedule or the data set.

    In every game the reward is the drop in the validation loss, so that a return is the whole drop. Actions on the
    learning rate multiply a schedule. Where classes are drawn with replacement, discrete actions choose among a few
    mixtures of them (the class-mixture game), and few numbers are observed. In other games that is all.

    Args:
        config: of the task.
        batches_per_action: mini-batches of an action.
        schedule: under the actions.
        validate_every: mini-batches from one measurement of the validation loss to the next.
        continuous: whether the actions are.
    """
    reward = {"validate_every": validate_every, "reward": "validation-loss"}
    if config.replacement and not continuous:
        mixtures = {"game": MIXTURES, "observation": FEW_FEATURES}
        return {"batches_per_action": batches_per_action, **reward, **mixtures}
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
