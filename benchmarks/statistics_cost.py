"""What the observation "statistics" costs, as a share of the step with an observation of two features.

    python benchmarks/statistics_cost.py [--rounds 40]

Time of the processor, in rounds that take turns, so that a busy machine slows both; the median of the rounds' ratios.
"""

import argparse
import time
from typing import Any

import gymnasium as gym
import numpy as np

import qan_gym  # noqa: F401 (registers the ids)

KEEP = 2
DIGITS = {"env_id": "QanLR-MNIST5k-v1", "epochs": 40}
CASES: dict[str, dict[str, Any]] = {
    **{
        f"mnist-cnn, batch 10, {n} rows, {m} mini-batches an action": {**DIGITS, "rows": n, "batches_per_action": m}
        for n, m in ((1, 10), (8, 10), (1, 1), (8, 1))
    },
    "the same in PyTorch, 1 row, 10": {**DIGITS, "rows": 1, "batches_per_action": 10, "engine": "torch"},
    "resnet-8, batch 32, 1 row, 1": {
        **{"env_id": "QanLR-CIFAR10-v0", "dataset": "mnist5k", "network": "resnet-8", "augment": None},
        **{"rows": 1, "batches_per_action": 1, "batch_size": 32},
    },
}
BATCHES = 40  # of a round


def step_time(envs: Any, rows: int, batches: int) -> float:
    """Seconds of the processor for one mini-batch of one row."""
    actions, count = np.full(rows, KEEP), max(1, BATCHES // (rows * batches))
    start = time.process_time()
    for _ in range(count):
        envs.step(actions)
    return (time.process_time() - start) / (count * rows * batches)


def measure(rounds: int, env_id: str, rows: int, **arguments: Any) -> tuple[float, float]:
    """Seconds of a mini-batch without statistics, and the ratio of those with them to it."""
    usual = {"reference": None, "meta_momentum": None, **arguments}
    both = [
        gym.make_vec(env_id, num_envs=rows, observation=observation, **usual)
        for observation in (("log_loss", "momentum"), "statistics")
    ]
    for envs in both:
        envs.reset(seed=0)
        step_time(envs, rows, arguments["batches_per_action"])
    times = np.array([[step_time(envs, rows, arguments["batches_per_action"]) for envs in both] for _ in range(rounds)])
    return float(np.median(times[:, 0])), float(np.median(times[:, 1] / times[:, 0]))


def main() -> None:
    """Print a line per case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    for name, case in CASES.items():
        usual, ratio = measure(rounds, **case)
        print(f"{name}: {1e6 * usual:.0f} us a mini-batch, {100 * (ratio - 1):+.1f} %", flush=True)


if __name__ == "__main__":
    main()
