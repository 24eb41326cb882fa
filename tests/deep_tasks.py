"""Small tasks of the id for CIFAR-10 on made images, for the tests of what deep networks need."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from helpers import made_npz
from oracles.deep_networks import KEEP
from torch import nn

CIFAR = "QanLR-CIFAR10-v0"
ALONE = {"meta_momentum": None, "reference": None}  # without the help of a reference network
SMALL = {"network": "resnet-8", "batch_size": 8, "epochs": 2, "augment": None, **ALONE}

CLOSE = 2e-4  # of the length of a tensor's update or buffer; see `test_deep_training`
KINK = 5e-2  # the same, where an activation falls on the other side of a ReLU


def made_photographs(folder: Path) -> str:
    """The path of 80 training images of 32x32x3 in 10 classes, 10 for validation, 10 test images."""
    return made_npz(folder / "made.npz", n_train=90, n_test=10, shape=(32, 32, 3))


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> str:
    """Write a data set; returns its path, as `dataset=` takes it."""
    np.savez(path, **arrays)
    return str(path)


def make(**kwargs: Any):
    """The environment without its wrappers."""
    return gym.make(CIFAR, **kwargs).unwrapped


def slots_of(core) -> dict[str, dict[str, np.ndarray]]:
    """The optimizer's buffers of every trained parameter, copies."""
    trained = core.training.network.trained
    slots = core.training.run.slots
    return {slot: {name: slots[slot][name][0].numpy().copy() for name in trained} for slot in slots}


def weights_of(network: str, npz: str, seed: int = 5) -> dict[str, np.ndarray]:
    """Weights with running statistics that have moved, to be a reference."""
    core = make(dataset=npz, **SMALL | {"network": network, "batch_size": 4})
    core.reset(seed=seed)
    core.step(KEEP)
    return core.weights()


def distance(some: np.ndarray, other: np.ndarray) -> float:
    """Length of the difference of two arrays, as a share of the second one's length."""
    return float(np.linalg.norm(some - other) / max(np.linalg.norm(other), 1e-12))


def softmax_regression(image_shape: tuple[int, int, int], n_classes: int) -> nn.Module:
    """The smallest network: one linear layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(image_shape)), n_classes))
