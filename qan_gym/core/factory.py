"""A training from the id and the keyword arguments of an environment, or from its configuration."""

from dataclasses import fields
from typing import Any, NamedTuple

from qan_gym.config import TaskConfig
from qan_gym.core.components import build_components
from qan_gym.core.references import resolve_reference
from qan_gym.core.training import Training
from qan_gym.tasks import FAMILIES, TASKS, make_task_config
from qan_gym.utils.validation import describe_settings


def training_of(env_id: str, arguments: dict[str, Any], num_runs: int, device: str, engine: str) -> Training:
    """The training of an environment.

    Args:
        env_id: a registered id.
        arguments: keyword arguments that are not the environment's own.
        num_runs: N.
        device: see `make_training`.
        engine: see `make_training`.

    Raises:
        ValueError, FileNotFoundError: see `make_task_config` and `make_training`.
    """
    if env_id in FAMILIES:
        from qan_gym.families.factory import make_family_training  # which draws on the rest of the core

        return make_family_training(env_id, arguments, num_runs, device, engine)
    return make_training(make_task_config(env_id, arguments), num_runs, device, engine)


def config_of(env_id: str, arguments: dict[str, Any]) -> TaskConfig:
    """The configuration of an environment, without making it; arguments as `training_of` takes them.

    Raises:
        ValueError: see `make_task_config`.
    """
    if env_id in FAMILIES:
        from qan_gym.families.factory import family_config

        return family_config(env_id, arguments)[0]
    return make_task_config(env_id, arguments)


class Argument(NamedTuple):
    """A keyword argument of an environment: its value there, and in words what is accepted and what it means."""

    value: Any
    accepted: str
    meaning: str


def arguments_of(env_id: str) -> dict[str, Argument]:
    """The keyword arguments that make another game of a registered id, by name."""
    kinds: dict[str, Any] = {one.name: TaskConfig for one in fields(TaskConfig)}
    if env_id in FAMILIES:
        from qan_gym.families.factory import family_arguments

        kinds = family_arguments(env_id)
    defaults = {kind: TASKS[env_id] if kind is TaskConfig else kind() for kind in kinds.values()}
    described = {kind: describe_settings(kind) for kind in defaults}
    return {
        name: Argument(getattr(defaults[kind], name), *described[kind][name])
        for name, kind in kinds.items()
        if name in described[kind]
    }


def make_training(config: TaskConfig, num_runs: int = 1, device: str = "cpu", engine: str = "auto") -> Training:
    """Build the parts of a task, find or train its reference, and allocate N runs.

    Raises:
        ValueError, FileNotFoundError: see `build_components`, `resolve_reference` and `Training`.
    """
    parts = build_components(config, device, engine)
    return Training(parts, resolve_reference(parts), num_runs)
