"""Ids of environments as `gym.make` takes them: ID, or MODULE:ID, where the module registers the id."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import registry

import qan_gym  # noqa: F401 (registers the environments)
from qan_gym.config import TaskConfig
from qan_gym.core.factory import config_of
from qan_gym.env import QanEnv
from qan_gym.registration import VECTOR_ENTRY_POINT
from qan_gym.tasks import FAMILIES

PLACES = ("device", "engine")  # arguments of an environment that say where a task is computed,
CHOSEN = ("env_id", "render_mode", "baseline_run")  # and those that follow from the id and the use of it


def import_module_of_user(module: str) -> None:
    """Import a module that the user has named; one in the current folder, too.

    Raises:
        ValueError: there is no such module, or an error ends its import.
    """
    # `python -m` searches the current folder by itself, the script `qan` does not. It is searched from now on, so that
    # the processes that this one starts find the module.
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        import_module(module)
    except Exception as error:  # whatever the module raises
        reason = str(error) if isinstance(error, ModuleNotFoundError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"the module {module!r} cannot be imported: {reason}") from error
    _register_vector_envs()


def _register_vector_envs() -> None:
    """Give ids that play qan-gym's own environment, and are registered without a vector environment, qan-gym's."""
    for spec in registry.values():
        module = getattr(spec.entry_point, "__module__", None) or str(spec.entry_point).partition(":")[0]
        if module == QanEnv.__module__ and spec.vector_entry_point is None:
            spec.vector_entry_point = VECTOR_ENTRY_POINT


def import_module_of(env: str) -> str:
    """Import the module of MODULE:ID, where one is given; returns the id without it.

    Raises:
        ValueError: there is no such module.
    """
    module, colon, env_id = env.rpartition(":")
    if colon:
        import_module_of_user(module)
    return env_id


def task_of(env: str, settings: dict[str, Any]) -> TaskConfig:
    """The task of an environment of qan-gym, without making it.

    Args:
        env: ID or MODULE:ID.
        settings: keyword arguments of the environment that differ from those of the id; those of PLACES are left out.

    Raises:
        ValueError: there is no such module, the environment is not one of qan-gym, or a setting is wrong.
        gymnasium.error.Error: there is no such id.
    """
    own = gym.spec(import_module_of(env)).kwargs
    if "env_id" not in own:
        raise ValueError(
            f"{env} is not an environment of qan-gym: what is recorded here are trainings of networks; "
            "qan_agents.dqn and qan_agents.ppo play it in Python, see docs/agents.md"
        )
    chosen = [name for name in settings if name in CHOSEN]
    if chosen:
        raise ValueError(f"{', '.join(chosen)} cannot be set: the id or the command says it")
    arguments = {name: value for name, value in (own | settings).items() if name not in PLACES}
    return config_of(arguments.pop("env_id"), arguments)


def draws_tasks(env: str, settings: dict[str, Any]) -> bool:
    """Whether every episode of an environment of qan-gym draws its own task: its configuration is a typical one.

    Args:
        env: ID or MODULE:ID.
        settings: keyword arguments of the environment that differ from those of the id.

    Raises:
        ValueError, gymnasium.error.Error: see `task_of`; there is no such id.
    """
    arguments = gym.spec(import_module_of(env)).kwargs | settings
    if arguments.get("env_id") not in FAMILIES:
        return False
    from qan_gym.families.factory import family_config

    rest = {name: value for name, value in arguments.items() if name not in PLACES}
    return family_config(rest.pop("env_id"), rest)[1].only is None


def require_settings(env: str, settings: dict[str, Any]) -> None:
    """Refuse settings that an environment does not have, before anything is made; other libraries check their own.

    Raises:
        ValueError, gymnasium.error.Error: see `task_of`.
    """
    if "env_id" in gym.spec(import_module_of(env)).kwargs:
        task_of(env, settings)
