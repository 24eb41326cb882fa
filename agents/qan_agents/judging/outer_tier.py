"""Problems unlike the family's: photographs, budgets of 10,000 mini-batches, networks that it does not draw."""

from __future__ import annotations

from typing import Any

from torch import nn

from qan_agents.judging.problems import Problem
from qan_gym.data.datasets import load_dataset
from qan_gym.families.learning_rate import OPTIMIZERS
from qan_gym.families.task import DECISIONS, Task
from qan_gym.optimizee.zoo import NETWORKS, register_network

LONG = 10_000 // DECISIONS  # mini-batches of an action
BATCH_NORM = "cnn-8-16-batch-norm"

DIGITS: dict[str, dict[str, Any]] = {  # name -> fields of the task
    "long, mlp-32": {"network": "mlp-32", "resolution": 14, "batch_size": 32, "batches_per_action": LONG},
    "long, mlp-16, batches of 4": {"network": "mlp-16", "resolution": 7, "batch_size": 4, "batches_per_action": LONG},
    "long, mlp-64-64-tanh": {
        "network": "mlp-64-64-tanh",
        "resolution": 14,
        "batch_size": 64,
        "batches_per_action": LONG,
        "label_noise": 0.2,
    },
    "wide, mlp-256-256": {"network": "mlp-256-256", "resolution": 28, "batch_size": 32, "batches_per_action": 40},
    "narrow, mlp-4-4-4-gelu": {"network": "mlp-4-4-4-gelu", "resolution": 7, "batches_per_action": 40},
    "batch norm": {"network": BATCH_NORM, "resolution": 14, "batch_size": 32, "batches_per_action": 20},
}
PHOTOGRAPHS: dict[str, dict[str, Any]] = {
    "photographs, mlp-64-64": {"network": "mlp-64-64", "resolution": 16, "batch_size": 64, "batches_per_action": 40},
    "photographs, cnn-16-32": {"network": "cnn-16-32", "resolution": 16, "batch_size": 32, "batches_per_action": 40},
    "photographs, resnet-8": {"network": "resnet-8", "resolution": 32, "batch_size": 64, "batches_per_action": 20},
}
PHOTOGRAPHS_TRAINED = 20_000  # images
MOMENTUM = {"sgd": 0.9, "adamw": 0.9}


def outer_problems(photographs: str) -> tuple[list[Problem], str | None]:
    """The problems of this tier, and why some of them are left out.

    Args:
        photographs: the data set of CIFAR-10, a registered name or the path of an .npz file.

    Returns:
        The problems, and the reason for which those of photographs are not among them; None: they are.
    """
    if BATCH_NORM not in NETWORKS:
        register_network(BATCH_NORM, batch_norm_cnn)
    named = {name: ("mnist5k", fields) for name, fields in DIGITS.items()}
    obstacle = None
    try:
        load_dataset(photographs)
        more = {"train_size": PHOTOGRAPHS_TRAINED}
        named |= {name: (photographs, {**fields, **more}) for name, fields in PHOTOGRAPHS.items()}
    except (FileNotFoundError, ValueError) as error:
        obstacle = f"without photographs: {error}"
    return [_problem(number, name, *about) for number, (name, about) in enumerate(named.items())], obstacle


def _problem(number: int, name: str, dataset: str, fields: dict[str, Any]) -> Problem:
    # Numbers of tasks only seed the searches here: these tasks are not drawn.
    tasks = tuple(
        Task(split="test", number=number, optimizer=optimizer, momentum=MOMENTUM[optimizer], **fields)
        for optimizer in OPTIMIZERS
    )
    return Problem(name, tasks, dataset)


def batch_norm_cnn(image_shape: tuple[int, int, int], n_classes: int) -> nn.Module:
    """Two 3x3 convolutions to 8 and 16 channels, each with batch norm, ReLU and max-pool 2; mean; linear."""
    return nn.Sequential(
        nn.Conv2d(image_shape[0], 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, n_classes),
    )
