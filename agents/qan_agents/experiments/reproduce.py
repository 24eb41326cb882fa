"""Recipes: the three experiments of the original's README, each as the settings of one run.

The baseline training gives the reference weights (`qan_gym.core.references`). Then the agent with the `paper` preset
plays: odd episodes train it, even ones are only played, with epsilon 0.05. At the end it plays greedily and is
compared with the baseline.
"""

import math
from typing import Any

from qan_agents.experiments.run_config import RunConfig
from qan_gym.config import TaskConfig
from qan_gym.data.datasets import load_dataset
from qan_gym.games import game_of
from qan_gym.tasks import TASKS, make_task_config
from qan_gym.utils.names import unknown_name

EPISODES = 20  # of the paper
TEST_EXPLORATION = 0.05  # share of random actions in the episodes that are only played
EVALUATION_SEEDS = 3  # greedy episodes at the end
LEAST_BATCHES = 10  # of a scaled-down episode

RECIPES = {
    "mnist-lr": "QanLR-MNIST-v0",
    "mnist-minibatch": "QanMinibatch-MNIST-v0",
    "cifar10-lr": "QanLR-CIFAR10-v0",
}


def recipe_config(recipe: str, scale: float, seed: int, settings: dict[str, Any]) -> RunConfig:
    """The settings of the run of a recipe.

    Args:
        recipe: one of RECIPES.
        scale: in (0, 1]; epochs and episodes are multiplied by it. Less than one epoch is one epoch of that share of
            the training split, at least 10 mini-batches; there are at least 2 episodes and one evaluation seed.
        seed: of the agent and its episodes.
        settings: keyword arguments of the environment that are not the recipe's.

    Raises:
        ValueError: recipe, scale or a setting is wrong.
        FileNotFoundError: the data are not there.
    """
    if recipe not in RECIPES:
        raise ValueError(unknown_name("recipe", recipe, RECIPES))
    if not 0 < scale <= 1:
        raise ValueError(f"scale must be above 0 and at most 1, not {scale}")
    task = make_task_config(RECIPES[recipe], {name: value for name, value in settings.items() if name != "device"})
    arguments = {**_shortened(task, scale), **settings} if scale < 1 else settings
    return RunConfig(
        env=RECIPES[recipe],
        env_kwargs=arguments,
        agent="dqn-native",
        preset="paper",
        episodes=2 * max(1, round(EPISODES * scale / 2)),
        seed=seed,
        test_exploration=TEST_EXPLORATION,
        evaluation_seeds=tuple(range(max(1, round(EVALUATION_SEEDS * scale)))),
        baselines=game_of(task).baselines[:1],
    )


def too_short(recipe: str, scale: float) -> bool:
    """Whether a recipe of this scale trains for less than an epoch."""
    return TASKS[RECIPES[recipe]].epochs * scale < 1


def _shortened(task: TaskConfig, scale: float) -> dict[str, Any]:
    """The keyword arguments that make an episode shorter by a factor."""
    epochs = task.epochs * scale
    if epochs >= 1:
        return {"epochs": round(epochs)}
    size = len(load_dataset(task.dataset).train)
    images = math.ceil(epochs * min(size, task.train_size or size))
    return {"epochs": 1, "train_size": min(size, max(images, LEAST_BATCHES * task.batch_size))}
