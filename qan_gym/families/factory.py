"""The training of an environment whose episodes draw their tasks."""

from dataclasses import fields, replace
from functools import partial
from typing import Any

from qan_gym.config import TaskConfig
from qan_gym.core.features import register_feature
from qan_gym.core.run_state import RunState
from qan_gym.core.statistics import statistics_of
from qan_gym.families.source import TaskSource
from qan_gym.families.task import CONTEXT, Task
from qan_gym.families.training import CONTEXT_TENSOR, FamilyTraining, family_parts
from qan_gym.tasks import make_task_config
from qan_gym.utils.arrays import Array

CONTEXT_FEATURES = tuple(f"task_{name}" for name in CONTEXT)  # of `Task.context`

IDLE = (  # settings of single tasks that those of a family do not have
    *("epochs", "learning_rate", "nesterov", "preprocess", "augment"),
    *("meta_momentum", "pull_epochs", "reference", "distillation"),
)


def family_arguments() -> dict[str, type]:
    """The names of the keyword arguments of a family, and the class that describes each."""
    taken = {*Task().settings(), *IDLE}
    rest = {one.name: TaskConfig for one in fields(TaskConfig) if one.name not in taken}
    return {**{one.name: TaskSource for one in fields(TaskSource)}, **rest}


def make_family_training(
    env_id: str, arguments: dict[str, Any], num_runs: int, device: str, engine: str
) -> FamilyTraining:
    """The training of an id of `FAMILIES`; arguments as `qan_gym.core.factory.training_of` takes them.

    Raises:
        ValueError: see `family_config` and `family_parts`.
    """
    config, source = family_config(env_id, arguments)
    return FamilyTraining(family_parts(config, source, device, engine), source, num_runs)


def family_config(env_id: str, arguments: dict[str, Any]) -> tuple[TaskConfig, TaskSource]:
    """The configuration that the tasks complete, with a typical task in it, and where they come from.

    Raises:
        ValueError: an argument is unknown, out of its range, or for the task to say.
    """
    source = TaskSource.from_arguments(arguments)
    own = {one.name for one in fields(TaskSource)}
    others = {name: value for name, value in arguments.items() if name not in own}
    typical = Task().settings()
    if drawn := others.keys() & typical.keys():
        raise ValueError(
            f"{', '.join(sorted(drawn))}: every task of the family has its own; `networks` and `optimizers` choose "
            "among the kinds, and `task` plays one task"
        )
    config = make_task_config(env_id, others)
    base = make_task_config(env_id, {})
    if idle := [name for name in others if name in IDLE and getattr(config, name) != getattr(base, name)]:
        raise ValueError(f"{', '.join(idle)}: no setting of a family, whose tasks say how they are trained")
    if config.observation in ("screen", "filters"):
        raise ValueError(f"observation={config.observation!r} shows weights, and those of the tasks differ in shape")
    if source.context == "observed":
        names = statistics_of(config) if config.observation == "statistics" else config.observation
        config = replace(config, observation=(*names, *CONTEXT_FEATURES))
    return replace(config, **typical), source


def _context(column: int, run: RunState) -> Array:
    return run.game[CONTEXT_TENSOR][:, column]


for _column, _name in enumerate(CONTEXT_FEATURES):
    register_feature(_name, partial(_context, _column), reads=CONTEXT_TENSOR)
