"""What a run is where the user leaves it open: the agent that suits the game, and the game that suits the agent."""

from typing import Any

import gymnasium as gym

from qan_agents.env_ids import draws_tasks, task_of
from qan_agents.experiments.agent import agent_class
from qan_agents.experiments.run_config import RunConfig
from qan_gym.config import TaskConfig
from qan_gym.core.components import mini_batches
from qan_gym.games import GAMES, game_of

EVALUATION_SEEDS, FEW_SEEDS = 10, 3  # where a training is short, and where it is long
SHORT = 5_000  # mini-batches of a training, at most


def complete_config(
    env: str,
    env_kwargs: dict[str, Any],
    *,
    agent: str | None,
    preset: str | None,
    episodes: int,
    seed: int,
    num_envs: int | None,
    agent_kwargs: dict[str, Any],
) -> RunConfig:
    """The settings of a run; see `RunConfig` for those that are given.

    Args:
        env: see `RunConfig`.
        env_kwargs: those that the user gives; the agent's, see `Agent.env_defaults`, are added to them.
        agent: None: see `default_agent`.
        preset: None: the first of the agent's.
        episodes: see `RunConfig`.
        seed: see `RunConfig`.
        num_envs: None: the most that divide the episodes, up to the agent's `rows`.
        agent_kwargs: see `RunConfig`.

    Raises:
        ValueError: the environment is not one of qan-gym, or a setting is wrong.
        ModuleNotFoundError, gymnasium.error.Error: a library of the agent, or the id, is not there.
    """
    task = task_of(env, env_kwargs)
    family = draws_tasks(env, env_kwargs)
    agent = agent or default_agent(task, family, keep_game="game" in env_kwargs)
    kind = agent_class(agent)
    preset = preset or kind.presets[0]
    kind.check(preset, agent_kwargs)  # before data are loaded
    if num_envs is None:
        num_envs = max(rows for rows in range(1, kind.rows + 1) if episodes % rows == 0)
    batches = None if family else mini_batches(task)
    kwargs = {**kind.env_defaults(task, batches, env_kwargs), **env_kwargs}
    task_of(env, kwargs)
    unseen = EVALUATION_SEEDS if batches is None or batches <= SHORT else FEW_SEEDS
    return RunConfig(
        env,
        kwargs,
        agent,
        preset,
        episodes,
        seed,
        num_envs,
        evaluation_seeds=tuple(range(unseen)),
        agent_kwargs=agent_kwargs,
    )


def default_agent(task: TaskConfig, family: bool, keep_game: bool = False) -> str:
    """The agent of a game, for those who name none.

    Args:
        task: what is played.
        family: whether every episode draws its own task.
        keep_game: see `few_actions`.
    """
    if not isinstance(game_of(task).action_space(task, n_classes=2), gym.spaces.Discrete):
        return "ppo"
    game = GAMES[task.game if keep_game else game_of(task).coarse(task)]
    few_actions = bool(game.few_features) or "learning_rate" in game.hyperparameters
    return "dqn-ensemble" if few_actions and game.no_op(task) is not None and not family else "dqn"
