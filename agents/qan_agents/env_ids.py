"""Ids of environments as `gym.make` takes them: ID, or MODULE:ID, where the module registers the id."""

from importlib import import_module
from typing import Any

import gymnasium as gym

import qan_gym  # noqa: F401 (registers the environments)
from qan_gym.config import TaskConfig
from qan_gym.tasks import make_task_config


def import_module_of(env: str) -> str:
    """Import the module of MODULE:ID, where one is given; returns the id without it.

    Raises:
        ValueError: there is no such module.
    """
    module, _, env_id = env.rpartition(":")
    try:
        if module:
            import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"the module of {env} cannot be imported: {error}") from error
    return env_id


def task_of(env: str, settings: dict[str, Any]) -> TaskConfig:
    """The task of an environment of qan-gym, without making it.

    Args:
        env: ID or MODULE:ID.
        settings: keyword arguments of the environment that differ from those of the id.

    Raises:
        ValueError: there is no such module, the environment is not one of qan-gym, or a setting is wrong.
        gymnasium.error.Error: there is no such id.
    """
    arguments = {**gym.spec(import_module_of(env)).kwargs, **settings}
    if "env_id" not in arguments:
        raise ValueError(f"{env} is not an environment of qan-gym")
    return make_task_config(arguments.pop("env_id"), arguments)
