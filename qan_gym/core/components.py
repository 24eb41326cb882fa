"""The components of a task: game, data, network and optimizer, built and checked once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from textwrap import shorten
from typing import Any

import torch
from gymnasium import spaces

from qan_gym.config import TaskConfig
from qan_gym.core.engine import choose_engine, namespace
from qan_gym.core.observation import Observer
from qan_gym.core.reward import REWARDS
from qan_gym.data import augmentation
from qan_gym.data.datasets import DeviceData, load_dataset, on_device
from qan_gym.data.selection import Selection, select
from qan_gym.games import Game, game_of
from qan_gym.optimizee.network import Network
from qan_gym.optimizee.optimizers import Optimizer, build_optimizer
from qan_gym.optimizee.zoo import build_network
from qan_gym.utils.names import unknown_name
from qan_gym.utils.own_settings import own_settings, threads_for
from qan_gym.utils.precision import Precision

RUNNING_MEAN_IMAGES = 500  # the running mean of the losses remembers about so many images


@dataclass(frozen=True, eq=False)
class Components:
    """The parts of a task, which do not depend on the number of runs and hold nothing of an episode.

    Attributes:
        config: of the task.
        game: the game.
        action_space: of one run.
        device: where everything lies.
        precision: of the gradients.
        network: the kind of network in training.
        optimizer: how its gradients become updates.
        observer: makes the observations.
        data: the three splits, on the device.
        fingerprint: SHA-256 of the data set.
        engine: "native" or "torch", see `qan_gym.core.engine`.
        xp: the namespace of the arrays that the bookkeeping computes with, see `qan_gym.utils.arrays`.
        threads: of PyTorch on CPU, see `threads_for`.
        n_classes: K.
        batches_per_epoch: whole mini-batches of the training split.
        budget: mini-batches of an episode.
    """

    config: TaskConfig
    game: Game
    action_space: spaces.Space[Any]
    device: torch.device
    precision: Precision
    network: Network
    optimizer: Optimizer
    observer: Observer
    data: DeviceData
    fingerprint: str
    engine: str
    xp: Any
    threads: int | None
    n_classes: int
    batches_per_epoch: int
    budget: int

    def __deepcopy__(self, memo: dict[int, Any]) -> Components:
        """Itself: nothing in it changes."""
        return self

    @property
    def running_mean_weight(self) -> float:
        """Weight of a mini-batch's loss in the running mean."""
        return min(1.0, self.config.batch_size / RUNNING_MEAN_IMAGES)

    @property
    def episode_length(self) -> int:
        """Actions of an episode that spends its budget."""
        return self.budget // self.config.batches_per_action

    @property
    def waits(self) -> bool:
        """Whether a step waits for the device, so that a CUDA graph cannot capture it."""
        return self.config.replacement or getattr(self.optimizer, "waits", False)  # drawing with replacement waits

    def with_config(self, config: TaskConfig) -> Components:
        """The parts of another task with the same data and network, which are shared."""
        wanted = "auto" if self.engine == "native" else self.engine
        return _assemble(config, self.device, wanted, self.network, self.data, self.fingerprint, self.n_classes)


@own_settings()
def build_components(config: TaskConfig, device: str, engine: str = "auto") -> Components:
    """Load the data, build the network and the optimizer.

    Args:
        config: of the task.
        device: as `torch.device` takes it.
        engine: "auto", "native" or "torch".

    Raises:
        ValueError: the device or the engine is not there, a name in `config` is not registered, or its numbers do not
            go with the data or the device.
        FileNotFoundError: the data are not there.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        said = shorten(str(error).splitlines()[0], 200)
        raise ValueError(f"device {device!r} cannot be used here: {said}") from error
    if config.reward not in REWARDS:
        raise ValueError(unknown_name("reward", config.reward, REWARDS))
    build_optimizer(config, game_of(config).hyperparameters)  # refuses what it cannot be, before data are loaded
    dataset = select(load_dataset(config.dataset), selection_of(config))
    channels, height, width = dataset.train.images.shape[1:]
    network = build_network(config.network, (channels, height, width), dataset.n_classes)
    if config.augment is not None and min(network.image_shape[1:]) <= augmentation.PADDING:
        raise ValueError(f"augment needs images of more than {augmentation.PADDING} pixels a side")
    chosen = selection_of(config).train_size is not None
    size = None if chosen else config.train_size
    data = on_device(dataset, network.image_shape, size, config.preprocess, device)
    data = replace(data, mean=data.mean * config.input_centre, std=data.std / config.input_scale)
    return _assemble(config, torch.device(device), engine, network, data, dataset.fingerprint, dataset.n_classes)


def mini_batches(config: TaskConfig) -> int:
    """Mini-batches of an episode of a task, before the rest that is not a whole action is left out.

    Raises:
        ValueError, FileNotFoundError: the data are not there, or do not go with the task.
    """
    size = len(select(load_dataset(config.dataset), selection_of(config)).train)
    if config.data_seed is None:
        size = min(size, config.train_size or size)
    return config.batches or config.epochs * (size // config.batch_size)


def selection_of(config: TaskConfig) -> Selection:
    """The part of the data set that a task has; but for the first `train_size` images, which `on_device` takes."""
    by_label = Selection(label_noise=config.label_noise, imbalance=config.imbalance).by_label
    size = config.train_size if config.data_seed is not None or by_label else None
    return Selection(config.resolution, config.classes, size, config.data_seed, config.label_noise, config.imbalance)


def _assemble(
    config: TaskConfig,
    device: torch.device,
    wanted: str,
    network: Network,
    data: DeviceData,
    fingerprint: str,
    n_classes: int,
) -> Components:
    engine = choose_engine(wanted, config, device, network)
    game = game_of(config)
    game.check(config)
    batches_per_epoch, budget = _count_batches(config, len(data.labels["train"]))
    return Components(
        config=config,
        game=game,
        action_space=game.action_space(config, n_classes),
        device=device,
        precision=Precision(config.precision, device),
        network=network,
        optimizer=build_optimizer(config, game.hyperparameters),
        observer=Observer(config, network, n_classes),
        data=data,
        fingerprint=fingerprint,
        engine=engine,
        xp=namespace(engine, device),
        threads=threads_for(network.size()),
        n_classes=n_classes,
        batches_per_epoch=batches_per_epoch,
        budget=budget,
    )


def _count_batches(config: TaskConfig, size: int) -> tuple[int, int]:
    """Mini-batches of an epoch and of an episode, with `size` training images."""
    if config.batch_size > size:
        raise ValueError(f"batch_size {config.batch_size} is larger than the training split of {size} images")
    batches_per_epoch = size // config.batch_size
    batches = config.batches or config.epochs * batches_per_epoch
    if config.batches_per_action > batches:
        raise ValueError(
            f"batches_per_action {config.batches_per_action} is larger than the budget of {batches} mini-batches"
        )
    return batches_per_epoch, batches - batches % config.batches_per_action  # every action covers the same number
