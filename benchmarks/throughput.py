"""How long a step of the environment takes, beside the loop that a user would write.

    python benchmarks/throughput.py

`textbook_over_env`: a textbook PyTorch training step of the same CNN (nn.Module, optim.SGD, tensors in memory,
`loss.item()`), over `env.step` with one mini-batch of 10; one thread, the contestants interleaved in one run.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import nn

import qan_gym  # noqa: F401 (registers the environments)

KEEP = 2


class Textbook(nn.Module):
    """The CNN as one would write it down: tanh, then max-pool."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 32, 5), nn.Tanh(), nn.MaxPool2d(3)),
            *(nn.Conv2d(32, 64, 5), nn.Tanh(), nn.MaxPool2d(2)),
        )
        self.classifier = nn.Sequential(nn.Linear(256, 200), nn.Tanh(), nn.Linear(200, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(images).flatten(1))


def textbook_step(images: torch.Tensor, labels: torch.Tensor, batch_size: int) -> Callable[[], None]:
    """One training step of the textbook's loop per call."""
    model = Textbook()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    order, position = torch.randperm(len(labels)), 0

    def step() -> None:
        nonlocal order, position
        if position + batch_size > len(labels):
            order, position = torch.randperm(len(labels)), 0
        batch = order[position : position + batch_size]
        position += batch_size
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def env_step(env: gym.Env) -> Callable[[], None]:
    """One step of the environment per call."""
    env.reset(seed=0)

    def step() -> None:
        _, _, terminated, truncated, _ = env.step(KEEP)
        if terminated or truncated:
            env.reset()

    return step


def milliseconds(contestants: dict[str, Callable[[], None]], rounds: int, steps: int) -> dict[str, list[float]]:
    """Time per step of each contestant, a figure per round; within a round they take turns."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for round_number in range(rounds + 1):
        for name, step in contestants.items():
            start = time.perf_counter()
            for _ in range(steps):
                step()
            if round_number > 0:  # the first is for warming up
                times[name].append((time.perf_counter() - start) / steps * 1e3)
    return times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=100, help="of each contestant in a round")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    env = gym.make("QanLR-MNIST5k-v0", batches_per_action=1)
    images, labels = (torch.from_numpy(array) for array in env.unwrapped.split("train"))
    contestants = {"textbook": textbook_step(images, labels, env.unwrapped.config.batch_size), "env": env_step(env)}
    times = milliseconds(contestants, arguments.rounds, arguments.steps)
    print(f"torch {torch.__version__}, {platform.machine()}, one thread, medians of {arguments.rounds} rounds")
    for name, values in times.items():
        print(f"{name:10s} {statistics.median(values):7.3f} ms per step of one mini-batch of 10")
    ratios = [slow / fast for slow, fast in zip(times["textbook"], times["env"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"textbook_over_env: {middle:.2f} (quartiles {low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
