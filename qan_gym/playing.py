"""What the single and the vector environment have in common: spaces, seeds, options."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from qan_gym import observation
from qan_gym.references import resolve_reference
from qan_gym.tasks import TaskConfig
from qan_gym.training import Training

RESET_OPTIONS = {"sampler": ("game", "shuffled")}


def make_training(config: TaskConfig, num_runs: int, device: str) -> Training:
    """The core of a game.

    Raises:
        ValueError: the device is not there, or see `Training` and `resolve_reference`.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    training = Training(config, None, num_runs, device)  # finds what is wrong, before a reference is trained for long
    training.adopt(resolve_reference(config, device))
    return training


def spaces_of(training: Training) -> tuple[spaces.Space[NDArray[np.float32]], spaces.Space[Any]]:
    """The observation and action space of one run."""
    limit, (rows, columns) = observation.LIMIT, training.screen_shape
    seen: Any = spaces.Box(-limit, limit, (rows * columns,), np.float32)
    if training.config.continuous:
        return seen, spaces.Box(-1.0, 1.0, (1,), np.float32)
    return seen, spaces.Discrete(3 if training.config.game == "lr" else training.n_classes)


def next_seeds(generators: Iterable[np.random.Generator]) -> NDArray[np.int64]:
    """The seed of the next episode, from each generator."""
    return np.array([generator.integers(2**63) for generator in generators], np.int64)


def pictures(training: Training, row: int) -> NDArray[np.float32]:
    """The weights shown of a run, as pictures (F, h, w): the filters, channels averaged, or the screen as one."""
    network, weight = training.network, training.params[training.network.shown]
    if network.screen is None and weight.dim() == 5 and weight[0, 0, 0].numel() > 1:
        filters: NDArray[np.float32] = weight[row].mean(dim=1).cpu().numpy()
        return filters
    return observation.shown_weights(network, {network.shown: weight[row : row + 1]}).cpu().numpy()


def classes_of(training: Training) -> int:
    """Of how many classes a history keeps the shares: K in the mini-batch game, else 0."""
    return training.n_classes if training.config.game == "minibatch" else 0


def class_shares(training: Training) -> NDArray[np.float64]:
    """The shares of the classes in the last action's mini-batches, (N, K)."""
    labels = training.data.labels["train"][training.batch_indices].flatten(1).cpu().numpy()  # (N, images)
    shares: NDArray[np.float64] = (labels[:, :, None] == np.arange(training.n_classes)).mean(axis=1)
    return shares


def wants_shuffled(options: dict[str, Any]) -> bool:
    """Whether the options of a reset ask for shuffled SGD.

    Raises:
        ValueError: an option or its value is unknown.
    """
    for name, value in options.items():
        if name not in RESET_OPTIONS or value not in RESET_OPTIONS[name]:
            raise ValueError(f"unknown reset option {name}={value!r}; there are {RESET_OPTIONS}")
    return options.get("sampler") == "shuffled"
