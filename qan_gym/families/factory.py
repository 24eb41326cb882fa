"""The training of an environment whose episodes draw their tasks."""

from dataclasses import fields, replace
from functools import partial
from typing import Any

from qan_gym.config import TaskConfig
from qan_gym.core.features import register_feature
from qan_gym.core.observation import features_of
from qan_gym.core.run_state import RunState
from qan_gym.families.learning_rate import LearningRateSource
from qan_gym.families.long_tail import LongTailSource
from qan_gym.families.source import TaskSource
from qan_gym.families.training import FamilyTraining, family_parts
from qan_gym.tasks import make_task_config, require_known
from qan_gym.utils.arrays import Array

FAMILIES: dict[str, type[TaskSource[Any]]] = {  # of the ids in `qan_gym.tasks.FAMILIES`
    "QanLR-Family-v0": LearningRateSource,
    "QanMinibatch-LongTail-v0": LongTailSource,
}


def family_arguments(env_id: str) -> dict[str, type]:
    """The names of the keyword arguments of a family, and the class that describes each."""
    family = FAMILIES[env_id]
    taken = {*family.record().settings(), *family.idle}
    rest = {one.name: TaskConfig for one in fields(TaskConfig) if one.name not in taken}
    return {**{one.name: family for one in fields(family)}, **rest}


def make_family_training(
    env_id: str, arguments: dict[str, Any], num_runs: int, device: str, engine: str
) -> FamilyTraining:
    """The training of an id of `FAMILIES`; arguments as `qan_gym.core.factory.training_of` takes them.

    Raises:
        ValueError: see `family_config` and `family_parts`.
    """
    config, source = family_config(env_id, arguments)
    return FamilyTraining(family_parts(config, source, device, engine), source, num_runs)


def family_config(env_id: str, arguments: dict[str, Any]) -> tuple[TaskConfig, TaskSource[Any]]:
    """The configuration that the tasks complete, with a typical task in it, and where they come from.

    Raises:
        UnexpectedKeywordError: there is no argument of this name.
        ValueError: an argument is out of its range, or for the task to say.
    """
    family = FAMILIES[env_id]
    source = family.from_arguments(arguments)
    own = {one.name for one in fields(family)}
    others = {name: value for name, value in arguments.items() if name not in own}
    typical = source.typical_settings()
    if drawn := others.keys() & typical.keys():
        kinds = " and ".join(f"`{name}`" for name in family.kinds)
        raise ValueError(
            f"{', '.join(sorted(drawn))}: every task of the family has its own; {kinds} choose "
            "among the kinds, and `task` plays one task"
        )
    known = family_arguments(env_id)
    require_known(others, {*known, *family.idle}, known)
    config = make_task_config(env_id, others)
    base = make_task_config(env_id, {})
    if idle := [name for name in others if name in family.idle and getattr(config, name) != getattr(base, name)]:
        raise ValueError(f"{', '.join(idle)}: no setting of a family, whose tasks say how they are trained")
    if config.observation in ("screen", "filters"):
        raise ValueError(f"observation={config.observation!r} shows weights, and those of the tasks differ in shape")
    if source.context == "observed":
        config = replace(config, observation=(*features_of(config), *family.context_features()))
    return replace(config, **typical), source


def _context(tensor: str, column: int, run: RunState) -> Array:
    return run.game[tensor][:, column]


for _family in FAMILIES.values():
    for _column, _name in enumerate(_family.context_features()):
        register_feature(_name, partial(_context, _family.context_name, _column), reads=_family.context_name)
