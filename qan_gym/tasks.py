"""The registered tasks: the configuration of each environment id, and how keyword arguments change it."""

from collections.abc import Container, Iterable
from dataclasses import fields, replace
from typing import Any

import torch

from qan_gym.config import FILTER_REGRESSION, TaskConfig
from qan_gym.games import game_of
from qan_gym.utils.names import instead_of
from qan_gym.utils.validation import shown


class UnexpectedKeywordError(TypeError, ValueError):
    """A keyword argument that no game has: a ValueError, as all that is wrong here, and what Python raises for it.

    Libraries offer an environment arguments that it may not have, and go on without them where they are told in
    Python's words: TorchRL's `GymEnv` does so with `frameskip`.
    """


def require_known(names: Iterable[str], known: Container[str], offered: Iterable[str]) -> None:
    """Refuse keyword arguments that there are not.

    Args:
        names: of the arguments that were given.
        known: those that there are.
        offered: those that a message names.

    Raises:
        UnexpectedKeywordError: the first that is unknown.
    """
    for name in names:
        if name not in known:
            raise UnexpectedKeywordError(f"got an unexpected keyword argument {name!r}{instead_of(name, offered)}")


def make_task_config(task: str, overrides: dict[str, Any]) -> TaskConfig:
    """The configuration of a registered id with some fields replaced.

    Raises:
        ValueError: the id, or the value of an override, is not one of those there are.
        UnexpectedKeywordError: there is no field of the name of an override.
    """
    if not isinstance(task, str) or task not in TASKS:
        raise ValueError(f"unknown task {shown(task)}{instead_of(shown(task), TASKS)}")
    names = [field.name for field in fields(TaskConfig)]
    require_known(overrides, names, (*names, "device", "engine", "render_mode", "baseline_run"))
    optimizer = overrides.get("optimizer")
    own = OPTIMIZER_DEFAULTS.get(optimizer, {}) if isinstance(optimizer, str) else {}
    config = replace(TASKS[task], **{**own, **overrides})
    game_of(config).check(config)
    return config


def device_name(device: Any) -> str:
    """A device by its name, as it can be written to a file.

    Raises:
        ValueError: it is neither a name nor a `torch.device`.
    """
    if not isinstance(device, str | torch.device):
        raise ValueError(f"device must be a name, as 'cpu' or 'cuda:0', not {shown(device)}")
    return str(device)


# What `optimizer=` changes in the defaults of every id, where the caller does not say otherwise: other optimizers want
# other learning rates, and the game its range around them.
OPTIMIZER_DEFAULTS: dict[str, dict[str, Any]] = {
    "adamw": {
        "learning_rate": 1e-3,
        "learning_rate_step": 1e-4,
        "learning_rate_min": 1e-4,
        "learning_rate_max": 0.02,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 0.01,
    }
}

_LR = TaskConfig()
_MINIBATCH = TaskConfig(game="minibatch", train_size=20_000, batch_size=128, epochs=40, meta_momentum=FILTER_REGRESSION)

TASKS = {
    "QanLR-MNIST-v0": _LR,
    "QanMinibatch-MNIST-v0": _MINIBATCH,
    # 4,000 images: 2,000 batches of 10 in 200 decisions; 155 batches of 128, each a decision.
    "QanLR-MNIST5k-v1": replace(_LR, dataset="mnist5k", epochs=5, batches_per_action=10),
    "QanMinibatch-MNIST5k-v1": replace(_MINIBATCH, dataset="mnist5k", epochs=5),
    # What the tasks of a family have in common; the rest is drawn for every episode.
    "QanLR-Family-v0": TaskConfig(
        dataset="mnist5k",
        learning_rate_min=1e-6,
        learning_rate_max=100.0,
        learning_rate=0.01,
        continuous=True,
        learning_rate_factor=12.0,
        schedule="linear",
        observation="statistics",
        reward="final-log-loss",
        divergence_penalty=1.5,
        meta_momentum=None,
        reference=None,
    ),
    "QanMinibatch-LongTail-v0": TaskConfig(
        game="minibatch",
        dataset="mnist5k",
        learning_rate_min=1e-6,
        learning_rate_max=100.0,
        replacement=True,
        observation="classes",
        reward="final-log-loss",
        divergence_penalty=1.5,
        meta_momentum=None,
        reference=None,
    ),
    "QanLR-CIFAR10-v0": TaskConfig(
        dataset="cifar10",
        augment="zero",
        network="nin",
        learning_rate=0.1,
        momentum=0.9,
        weight_decay=5e-4,
        batch_size=128,
        epochs=5,
        learning_rate_step=0.01,
        learning_rate_min=0.01,
        meta_momentum=0.01,
        pull_epochs=None,
    ),
}

FAMILIES = (
    "QanLR-Family-v0",
    "QanMinibatch-LongTail-v0",
)  # ids whose episodes draw their tasks, see `qan_gym.families`
