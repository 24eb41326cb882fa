"""Episodes at a constant learning rate: accuracy per epoch, seconds, and the memory they took.

    python benchmarks/episode.py QanLR-CIFAR10-v0 --set network=resnet-8 --set epochs=2
    python benchmarks/episode.py QanLR-CIFAR10-v0 --set network=nin --num-envs 8 --steps 3
    python benchmarks/episode.py QanLR-MNIST-v0 --num-envs 20 --set device=cuda --json figures.json

`--set dataset=FILE.npz` plays on other data, `--set meta_momentum=null` without the pull (and without the reference,
which is otherwise trained first).
"""

import argparse
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from throughput import hardware

import qan_gym  # noqa: F401 (registers the environments)
from qan_agents.cli.common import parse_settings
from qan_gym.games.learning_rate import KEEP

MIB = 2**20


def peak_memory(device: str) -> float:
    """The most MiB that the process, or its tensors on the GPU, have held."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return torch.cuda.max_memory_allocated(device) / MIB


def play(
    env_id: str, num_envs: int, steps: int | None, seed: int, settings: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Play `steps` actions, or a whole episode, of N environments; gives the figures after every epoch."""
    device = settings.get("device", "cpu")
    started = time.perf_counter()
    envs = gym.make_vec(env_id, num_envs=num_envs, output="torch", **settings)
    envs.reset(seed=seed)
    print(f"made and reset: {time.perf_counter() - started:.1f} s, peak {peak_memory(device):,.0f} MiB", flush=True)
    steps = steps or envs.unwrapped.episode_length
    per_epoch = envs.unwrapped.training.parts.batches_per_epoch // envs.unwrapped.config.batches_per_action
    keep = torch.full((num_envs,), KEEP, device=device)
    started = time.perf_counter()
    for number in range(1, steps + 1):
        *_, infos = envs.step(keep)
        if number % max(per_epoch, 1) == 0 or number == steps:
            names = ("smoothed_loss", "validation_accuracy", "test_loss", "test_accuracy")
            scores = {name: infos[name].tolist() for name in names if name in infos}
            seconds = time.perf_counter() - started
            yield {
                "env": env_id,
                "num_envs": num_envs,
                "settings": settings,
                "hardware": hardware(torch.device(device).type),
                "steps": number,
                "seconds": seconds,
                "milliseconds_per_environment_step": 1e3 * seconds / number / num_envs,
                "peak_mib": peak_memory(device),
                **scores,
            }


def main() -> None:
    """Play, print, and write the figures after every epoch, so that an interrupted run leaves those it has."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("env_id", metavar="ENV")
    parser.add_argument("--num-envs", type=int, default=1)
    parser.add_argument("--steps", type=int, help="actions; default: the whole episode")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", metavar="NAME=VALUE", help="a keyword argument of the environment")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    settings = parse_settings(arguments.set)
    for found in play(arguments.env_id, arguments.num_envs, arguments.steps, arguments.seed, settings):
        scores = {name: values for name, values in found.items() if isinstance(values, list)}
        print(
            f"step {found['steps']}, {found['seconds']:.1f} s, "
            f"{found['milliseconds_per_environment_step']:.3f} ms per environment step, evaluations included; peak "
            f"{found['peak_mib']:,.0f} MiB; "
            + "; ".join(f"{name} {', '.join(f'{value:.4f}' for value in values)}" for name, values in scores.items()),
            flush=True,
        )
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
