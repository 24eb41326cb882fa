"""The task that controllers are prepared for, and the vector environment in which they play it."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
from gymnasium.vector import AutoresetMode

from qan_agents.env_ids import task_of
from qan_agents.seeds import training_seed
from qan_gym.config import TaskConfig
from qan_gym.core.components import build_components, mini_batches
from qan_gym.core.references import DEPENDS_ON, needs_reference, pretrained_file
from qan_gym.data.datasets import load_dataset
from qan_gym.games import game_of
from qan_gym.vector_env import QanVectorEnv

VALIDATIONS = 25  # measurements of the validation loss in an episode, beside that of the initial weights

Settings = dict[str, Any]


@dataclass(frozen=True)
class TuningTask:
    """A task, and the budget of training runs on which a controller is prepared for it.

    Attributes:
        env: ID or MODULE:ID.
        env_kwargs: of `gym.make_vec`.
        runs: training runs that the preparation may consume.
        seed: of the preparation; the seeds of its training runs follow from it.
        num_envs: training runs in lock-step during the preparation.
    """

    env: str
    env_kwargs: Settings
    runs: int
    seed: int
    num_envs: int = 4

    @property
    def config(self) -> TaskConfig:
        """The configuration of the task."""
        return task_config(self.env, self.env_kwargs)

    @cached_property
    def batches(self) -> int:
        """Mini-batches of a training run."""
        return mini_batches(self.config)

    @property
    def validation_interval(self) -> int:
        """Mini-batches between two measurements of the validation loss."""
        return max(1, self.batches // VALIDATIONS)

    @cached_property
    def identity(self) -> str:
        """A hash of the environment that two tasks share if and only if their trainings are the same.

        A data set and reference weights count by their content, wherever it lies.

        Raises:
            ValueError, FileNotFoundError: the data set or the reference cannot be read.
        """
        config = self.config
        contents = {"dataset": load_dataset(config.dataset).fingerprint}
        if config.reference not in (None, "pretrained", "previous"):
            contents["reference"] = _digest(Path(str(config.reference)).expanduser())
        settings = {name: value for name, value in self.env_kwargs.items() if name not in contents}
        described = json.dumps([self.env, settings, contents], sort_keys=True)
        return hashlib.sha256(described.encode()).hexdigest()[:16]

    def tuning_seed(self, number: int) -> int:
        """The seed of the training run of that number, in [2**31, 2**32)."""
        return training_seed(self.seed, number)


def task_config(env: str, env_kwargs: Settings) -> TaskConfig:
    """The configuration of an environment.

    Raises:
        ValueError, gymnasium.error.Error: see `qan_agents.env_ids.task_of`.
    """
    return task_of(env, {name: value for name, value in env_kwargs.items() if name != "device"})


def require_controllable(config: TaskConfig) -> None:
    """Refuse a task whose learning rate would not be what a controller sets.

    Raises:
        ValueError: its actions set the learning rate, and it has a base schedule under them.
    """
    if config.schedule != "constant" and "learning_rate" in game_of(config).hyperparameters:
        raise ValueError(
            f"the environment has the base schedule {config.schedule!r}, which would multiply what controllers set: "
            "give its kwargs {schedule: constant}, and an agent that is to act on a schedule the settings "
            f"{{env: {{schedule: {config.schedule}}}}}"
        )


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ValueError(f"reference {path}: cannot be read ({error.strerror})") from error


def make_env(task: TuningTask, num_envs: int, env_kwargs: Settings) -> QanVectorEnv:
    """N training runs of a task, in mode DISABLED, the validation loss measured VALIDATIONS times in each.

    The pull and distillation are towards the reference weights of the task, whatever the further keyword arguments
    change, unless they name a reference themselves.

    Args:
        task: whose keyword arguments they have.
        num_envs: N.
        env_kwargs: further ones, which take precedence.
    """
    arguments = {"validate_every": task.validation_interval, **task.env_kwargs, **env_kwargs}
    if "reference" not in env_kwargs:
        arguments |= _reference_of_the_task(task, arguments)
    env = gym.make_vec(task.env, num_envs=num_envs, autoreset_mode=AutoresetMode.DISABLED, **arguments)
    return cast(QanVectorEnv, env.unwrapped)


def _reference_of_the_task(task: TuningTask, arguments: Settings) -> Settings:
    """The "pretrained" weights of a task by their path, where the arguments change what such weights depend on.

    The environment would have others by itself: those of another optimizer or of another initial learning rate.
    """
    config, played = task.config, task_config(task.env, arguments)
    changed = any(getattr(played, name) != getattr(config, name) for name in DEPENDS_ON)
    if config.reference != "pretrained" or not changed or not needs_reference(played):
        return {}
    parts = build_components(config, arguments.get("device", "cpu"))
    return {"reference": str(pretrained_file(parts))}
