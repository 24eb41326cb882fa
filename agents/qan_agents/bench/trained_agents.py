"""Agents as controllers: trained on the budget of training runs, then played greedily."""

import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from typing import Any, cast

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

import qan_agents.bench.clipped_reward  # noqa: F401 (registers its reward)
from qan_agents.bench.controllers import (
    Check,
    Preparation,
    Prepare,
    PreparedController,
    register_controller,
    require_settings,
)
from qan_agents.bench.tuning_task import Settings, TuningTask, task_config
from qan_agents.dqn import (
    BudgetEndTerminates,
    DQNConfig,
    Ensemble,
    EnsembleConfig,
    EnvInterface,
    make_ensemble_config,
    train,
)
from qan_agents.few_actions import few_actions
from qan_gym.config import TaskConfig
from qan_gym.games import game_of
from qan_gym.utils.names import unknown_name
from qan_gym.vector_env import QanVectorEnv

ACTIONS, SCHEDULE = 50, "cooldown"  # of an episode, and under the actions, unless the settings say otherwise
# What the settings of an agent may change in its environment: what it does, sees and is paid for, not the training.
OWN_ARGUMENTS = (
    *("batches_per_action", "continuous", "action_scale", "schedule"),
    *("learning_rate_min", "learning_rate_max", "learning_rate_step"),
    *("observation", "reward", "validate_every"),
)


def agent_env_kwargs(task: TuningTask, own: Settings, continuous: bool) -> Settings:
    """The keyword arguments of the environment that an agent plays, see `few_actions`; the schedule is a cooldown.

    Args:
        task: which it is to control.
        own: keyword arguments that take precedence.
        continuous: whether the agent's actions are.
    """
    length = max(1, task.batches // ACTIONS)
    interval = task.validation_interval
    return {**few_actions(task.config, length, SCHEDULE, validate_every=interval, continuous=continuous), **own}


def check_env_settings(task: TuningTask, own: Any, continuous: bool) -> TaskConfig:
    """Check the setting `env` of an agent; the data need not be there.

    Args:
        task: see `agent_env_kwargs`.
        own: see `agent_env_kwargs`.
        continuous: see `agent_env_kwargs`.

    Returns:
        The task that the agent plays, but for how long its actions are and when it is validated.

    Raises:
        ValueError: it is no mapping, or an argument is unknown, wrong or not among OWN_ARGUMENTS.
    """
    if not isinstance(own, dict):
        raise ValueError(f"env must be a mapping of keyword arguments of the environment, not {own!r}")
    for name in own:
        if name not in OWN_ARGUMENTS:
            raise ValueError(
                f"{unknown_name('setting', f'env.{name}', (f'env.{one}' for one in OWN_ARGUMENTS))}; what changes the "
                "training itself belongs to the environment"
            )
    actions = few_actions(task.config, 1, SCHEDULE, validate_every=1, continuous=continuous)
    return task_config(task.env, {**task.env_kwargs, **actions, **own})


class AgentController:
    """A trained agent as a `Controller`."""

    def __init__(self, choose: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        """choose: (N, D) observations -> the actions, (N,) or (N, 1)."""
        self.choose = choose

    def start(self, env: QanVectorEnv) -> None:
        """See `Controller.start`."""

    def act(self, observations: NDArray[Any], infos: dict[str, Any]) -> NDArray[Any]:
        """See `Controller.act`."""
        return self.choose(observations)


# An algorithm, trained: (task, keyword arguments of the environment, hyperparameters, rows in lock-step).
Train = Callable[[TuningTask, Settings, Settings, int], PreparedController]


def train_agent(train: Train, continuous: bool) -> Prepare:
    """The preparation of an agent: `task.num_envs` training runs at once.

    The settings are `env`, see `agent_env_kwargs`, and hyperparameters.
    """

    def prepare(task: TuningTask, settings: Settings) -> PreparedController:
        rows, hyperparameters = min(task.num_envs, task.runs), _without_env(settings)
        return train(task, agent_env_kwargs(task, settings.get("env", {}), continuous), hyperparameters, rows)

    return prepare


def check_agent(check_hyperparameters: Callable[[Settings], object], continuous: bool) -> Check:
    """The check of an agent that is prepared by `train_agent`.

    Args:
        check_hyperparameters: raises ValueError where one is wrong.
        continuous: whether its actions are.
    """

    def check(task: TuningTask, settings: Settings) -> None:
        check_env_settings(task, settings.get("env", {}), continuous)
        check_hyperparameters(_without_env(settings))
        rows = min(task.num_envs, task.runs)
        if rows < 1 or task.runs % rows:
            raise ValueError(
                f"an agent is trained in waves of {task.num_envs} runs: {task.runs} are no whole number of waves"
            )

    return check


def _without_env(settings: Settings) -> Settings:
    return {name: value for name, value in settings.items() if name != "env"}


def _training_env(task: TuningTask, env_kwargs: Settings, rows: int, output: str) -> VectorEnv[Any, Any, Any]:
    arguments = {**task.env_kwargs, **env_kwargs}
    mode = AutoresetMode.SAME_STEP
    return BudgetEndTerminates(gym.make_vec(task.env, num_envs=rows, output=output, autoreset_mode=mode, **arguments))


# --- the bundled DQN ------------------------------------------------------------------------------------------------


def _ensemble_settings(hyperparameters: Settings, steps: int = 1, **defaults: Any) -> EnsembleConfig:
    """The hyperparameters of the ensemble.

    Args:
        hyperparameters: of a grid.
        steps: of the whole training.
        defaults: hyperparameters that differ from those of the preset `control`.

    Raises:
        ValueError: one is unknown or wrong.
    """
    require_settings(hyperparameters, ("env", "caution", *(one.name for one in fields(DQNConfig))))
    config = make_ensemble_config("control", steps, {**defaults, **hyperparameters})
    if config.history != 1:
        raise ValueError("a bench plays agents without a history of frames: history must be 1")
    return config


def _train_ensemble(task: TuningTask, env_kwargs: Settings, hyperparameters: Settings, rows: int) -> PreparedController:
    env = _training_env(task, env_kwargs, rows, "torch")
    game_env = cast(QanVectorEnv, env.unwrapped)
    episode_length = game_env.episode_length
    steps = task.runs * episode_length
    # The whole return is learned from: estimates built on estimates of the near future end at a low learning rate,
    # which lowers the loss at once and costs later.
    config = _ensemble_settings(hyperparameters, steps, n_step=episode_length, members=max(rows, 2))
    agent = Ensemble(config, EnvInterface.of(env), str(game_env.training.device), seed=task.seed)
    finished = train(agent, env, steps, seed=task.tuning_seed(0))
    own = task_config(task.env, {**task.env_kwargs, **env_kwargs})
    default = game_of(own).no_op(own)

    def choose(observations: NDArray[Any]) -> NDArray[Any]:
        stacked = torch.as_tensor(observations, device=agent.device)[:, None]  # (N, 1, D)
        actions: NDArray[Any] = agent.choose(stacked, default).cpu().numpy()
        return actions

    runs = max(len(finished), task.runs)  # more are begun where some diverge, in as many mini-batches
    batches = steps * game_env.config.batches_per_action
    return PreparedController(AgentController(choose), env_kwargs, runs, batches, asdict(config))


# --- Stable-Baselines3 ----------------------------------------------------------------------------------------------


GIVEN_TO_SB3 = {"policy", "env", "seed", "device"}  # what a bench gives to an algorithm beside hyperparameters


@dataclass(frozen=True)
class SB3Algorithm:
    """An algorithm with Stable-Baselines3's interface.

    Attributes:
        module, name: of its class.
        continuous: whether its actions are.
        defaults: (rows, actions of an episode, steps) -> hyperparameters for a few hundred to a few thousand steps.
    """

    module: str
    name: str
    continuous: bool
    defaults: Callable[[int, int, int], Settings]

    @property
    def algorithm(self) -> Any:
        """The class."""
        return getattr(import_module(self.module), self.name)

    def check(self, hyperparameters: Settings) -> None:
        """Refuse hyperparameters that the algorithm does not have.

        Raises:
            ValueError: there is no such hyperparameter.
        """
        known = inspect.signature(self.algorithm).parameters.keys() - GIVEN_TO_SB3
        require_settings(hyperparameters, ("env", *sorted(name for name in known if not name.startswith("_"))))

    def train(self, task: TuningTask, env_kwargs: Settings, hyperparameters: Settings, rows: int) -> PreparedController:
        """See `Train`."""
        from stable_baselines3.common.logger import Logger

        from qan_agents.sb3 import GymnasiumVecEnv
        from qan_agents.sb3.extractor import extractor_arguments
        from qan_agents.sb3.wrappers import StackHistory

        envs = _training_env(task, env_kwargs, rows, "numpy")
        env, game_env = StackHistory(GymnasiumVecEnv(envs), 1), cast(QanVectorEnv, envs.unwrapped)
        episode_length, batches_per_action = game_env.episode_length, game_env.config.batches_per_action
        steps = task.runs * episode_length
        settings = {
            "policy_kwargs": {
                "net_arch": [64, 64],
                **extractor_arguments(game_env, "scores"),
            },
            "gamma": 0.995,
            "learning_rate": 1e-3,
            **self.defaults(rows, episode_length, steps),
            **hyperparameters,
        }
        model = self.algorithm("MlpPolicy", env, seed=task.seed, device="cpu", **settings)
        model.set_logger(Logger(folder=None, output_formats=[]))  # the default logger makes an empty folder
        env.seed(task.tuning_seed(0))
        model.learn(steps)

        def choose(observations: NDArray[Any]) -> NDArray[Any]:
            actions: NDArray[Any] = model.predict(observations[:, None], deterministic=True)[0]
            return actions

        runs = -(-model.num_timesteps // episode_length)
        chosen = {name: value for name, value in settings.items() if name != "policy_kwargs"}
        batches = model.num_timesteps * batches_per_action
        return PreparedController(AgentController(choose), env_kwargs, runs, batches, chosen)


def _on_policy(rows: int, episode_length: int, steps: int) -> Settings:
    return {"n_steps": episode_length, "batch_size": episode_length, "n_epochs": 10}


def _off_policy(rows: int, episode_length: int, steps: int) -> Settings:
    return {
        "learning_starts": min(200, steps // 5),
        "buffer_size": max(steps, 1),
        "train_freq": 1,
        "gradient_steps": 8 * rows,
        "batch_size": 64,
    }


def _q_learning(rows: int, episode_length: int, steps: int) -> Settings:
    return {**_off_policy(rows, episode_length, steps), "target_update_interval": 200}


SB3_ALGORITHMS = {
    "dqn": SB3Algorithm("stable_baselines3", "DQN", False, _q_learning),
    "qr-dqn": SB3Algorithm("sb3_contrib", "QRDQN", False, _q_learning),
    "ppo": SB3Algorithm("stable_baselines3", "PPO", False, _on_policy),
    "sac": SB3Algorithm("stable_baselines3", "SAC", True, _off_policy),
    "td3": SB3Algorithm("stable_baselines3", "TD3", True, _off_policy),
}

register_controller(
    "dqn-native",
    train_agent(_train_ensemble, continuous=False),
    Preparation.TRAINING,
    check_agent(_ensemble_settings, continuous=False),
)
for _name, _algorithm in SB3_ALGORITHMS.items():
    _prepare = train_agent(_algorithm.train, _algorithm.continuous)
    _check = check_agent(_algorithm.check, _algorithm.continuous)
    register_controller(_name, _prepare, Preparation.TRAINING, _check)
