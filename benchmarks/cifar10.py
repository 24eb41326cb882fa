"""An episode of QanLR-CIFAR10-v0 at a constant learning rate: accuracy per epoch, seconds, and the memory it took.

    python benchmarks/cifar10.py --set network=resnet-8 --set epochs=2
    python benchmarks/cifar10.py --set network=nin --num-envs 8 --steps 3
    python benchmarks/cifar10.py --set network=nin --num-envs 16 --set device=cuda

`--set dataset=FILE.npz` plays on other data, `--set meta_momentum=null` without the pull (and without the reference,
which is otherwise trained first).
"""

import argparse
import resource
import time
from typing import Any

import gymnasium as gym
import numpy as np
import torch

import qan_gym  # noqa: F401 (registers the environments)
from qan_agents.cli import parse_settings
from qan_gym.actions import KEEP

MIB = 2**20


def peak_memory(device: str) -> str:
    """The most that the process, or its tensors on the GPU, have held."""
    if device == "cpu":
        return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB of the process"
    return f"{torch.cuda.max_memory_allocated(device) / MIB:,.0f} MiB of the GPU"


def main() -> None:
    """Play and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-envs", type=int, default=1)
    parser.add_argument("--steps", type=int, help="mini-batches; default: the whole episode")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", metavar="NAME=VALUE", help="a keyword argument of the environment")
    arguments = parser.parse_args()
    settings = parse_settings(arguments.set)
    device = settings.get("device", "cpu")

    def timed(name: str, function: Any, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        result = function(*args, **kwargs)
        if device != "cpu":
            torch.cuda.synchronize(device)
        print(f"{name}: {time.perf_counter() - started:.1f} s, peak {peak_memory(device)}", flush=True)
        return result

    envs = timed("made", gym.make_vec, "QanLR-CIFAR10-v0", num_envs=arguments.num_envs, **settings)
    timed("reset", envs.reset, seed=arguments.seed)
    steps = arguments.steps or envs.unwrapped.decisions
    started, epoch = time.perf_counter(), 0
    for number in range(1, steps + 1):
        *_, infos = envs.step(np.full(arguments.num_envs, KEEP))
        if infos["epoch"][0] > epoch or number == steps:
            epoch = infos["epoch"][0]
            seconds = time.perf_counter() - started
            accuracies = ", ".join(f"{value:.1%}" for value in infos["validation_accuracy"])
            losses = ", ".join(f"{value:.3f}" for value in infos["smoothed_loss"])
            print(f"step {number}, {seconds:.1f} s: smoothed loss {losses}; last validation accuracy {accuracies}")
    print(f"{seconds / steps:.3f} s per step of {arguments.num_envs}, evaluations included; peak {peak_memory(device)}")
    if "test_accuracy" in infos:
        print("test accuracy " + ", ".join(f"{value:.1%}" for value in infos["test_accuracy"]))


if __name__ == "__main__":
    main()
