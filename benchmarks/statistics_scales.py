"""Which features of the observation "statistics" change with a scale of the task, and by how much, as a table.

    python benchmarks/statistics_scales.py [--seeds 3]

`mnist-cnn` on the bundled digits, 200 mini-batches in 20 actions that leave the learning rate as it is, in PyTorch.
Each column changes one thing; its numbers are the mean change of a feature over the actions and the seeds.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

import qan_gym
from qan_gym.core.statistics import STATISTICS
from qan_gym.optimizee.network import Network
from qan_gym.optimizee.zoo import NETWORKS, mnist_cnn

BRIGHT = "mnist-cnn-of-images-times-3"
GAME = {
    "observation": "statistics",
    "engine": "torch",
    "reference": None,
    "meta_momentum": None,
    "learning_rate_min": 1e-5,
    "train_size": 2_000,
    "batch_size": 10,
    "epochs": 1,
    "batches_per_action": 10,
}
KEEP = 2

# What each column changes, beside what it is compared with.
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "loss x 10, SGD's rate / 10": ({"learning_rate": 0.05}, {"learning_rate": 0.005, "loss_scale": 10.0}),
    "loss x 10, AdamW": ({"optimizer": "adamw"}, {"optimizer": "adamw", "loss_scale": 10.0}),
    "images x 3, SGD": ({"learning_rate": 0.01}, {"learning_rate": 0.01, "network": BRIGHT}),
    "batch size 40, SGD": ({"learning_rate": 0.05}, {"learning_rate": 0.05, "batch_size": 40, "epochs": 4}),
}


def bright(image_shape: tuple[int, int, int], n_classes: int) -> Network:
    """`mnist-cnn`, which sees its images times 3."""
    network = mnist_cnn(image_shape, n_classes)
    return replace(network, forward=lambda params, images, training: network.forward(params, 3 * images, training))


def episode(seed: int, **arguments: Any) -> NDArray[np.float32]:
    """The observations after each action, (T, 23)."""
    env = gym.make("QanLR-MNIST5k-v1", **{**GAME, **arguments})
    env.reset(seed=seed)
    seen, over = [], False
    while not over:
        observation, _, terminated, truncated, _ = env.step(KEEP)
        seen.append(observation)
        over = terminated or truncated
    env.close()
    return np.array(seen)


def changes(
    seeds: int, progress: Callable[[str], None] = lambda name: None, **arguments: Any
) -> dict[str, NDArray[np.float32]]:
    """The change of every feature by each of `CHANGES`, (seeds, T, 23) each.

    Args:
        seeds: how many episodes.
        progress: is told the name of what comes next.
        arguments: of the environments, over those of `GAME`.
    """
    if BRIGHT not in NETWORKS:
        qan_gym.register_network(BRIGHT, bright)
    found = {}
    for name, (usual, changed) in CHANGES.items():
        progress(name)
        found[name] = np.array(
            [
                episode(seed, **{**arguments, **changed}) - episode(seed, **{**arguments, **usual})
                for seed in range(seeds)
            ]
        )
    return found


def main() -> None:
    """Print the table, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    found = changes(parser.parse_args().seeds, lambda name: print(f"{name} ...", flush=True))
    print("\n| feature |", " | ".join(found), "|")
    print("| --- " * (len(found) + 1) + "|")
    for place, name in enumerate(STATISTICS):
        cells = (f"{change[:, :, place].mean():+.2f}" for change in found.values())
        print(f"| `{name}` |", " | ".join("0" if float(cell) == 0 else cell for cell in cells), "|")


if __name__ == "__main__":
    main()
