"""How the environment is arranged for agents that are to learn from few trainings, of `qan train` and of the bench."""

from typing import Any

from qan_gym.config import TaskConfig
from qan_gym.games import GAMES, game_of


def few_actions(
    config: TaskConfig,
    batches_per_action: int,
    schedule: str,
    *,
    validate_every: int,
    continuous: bool = False,
    keep_game: bool = False,
) -> dict[str, Any]:
    """Keyword arguments of the environment, for few long actions that change what a schedule or the data set.

    In every game the reward is the drop in the validation loss, so that a return is the whole drop. Actions on the
    learning rate multiply a schedule. Where the game has a coarser one, see `Game.coarse`, discrete actions are of that
    one, and a few numbers are observed. In other games that is all.

    Args:
        config: of the task.
        batches_per_action: mini-batches of an action.
        schedule: under the actions.
        validate_every: mini-batches from one measurement of the validation loss to the next.
        continuous: whether the actions are.
        keep_game: whether the game stays that of the task, because the user has named it.
    """
    name = config.game if keep_game or continuous else game_of(config).coarse(config)
    game, arranged = GAMES[name], {"validate_every": validate_every, "reward": "validation-loss"}
    if game.few_features:
        few = {"batches_per_action": batches_per_action, "observation": list(game.few_features)}
        return {"game": name, **few, **arranged}
    if "learning_rate" not in game.hyperparameters:
        return arranged
    scale = "additive" if continuous else "multiplicative"
    return {
        "batches_per_action": batches_per_action,
        **arranged,
        "schedule": schedule,
        "continuous": continuous,
        "action_scale": scale,
    }
