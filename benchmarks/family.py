"""Trainings per minute of the family: of a vector environment whose rows play different tasks, and of meta-training.

    python benchmarks/family.py [--seconds 30] [--threads 2]

Tasks are drawn from the family's training split. "perceptrons" are those that the kernels train; "all networks" is the
family as it is drawn, where PyTorch trains the rows with other networks one after the other. A decision is an action of
one row, of 25 in a training. Wall-clock time, after a first wave of trainings that is not counted, for so many seconds
and at least one more wave; what else runs on the machine counts too.
"""

import argparse
import contextlib
import tempfile
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode

import qan_gym  # noqa: F401 (registers the ids)
from qan_agents.controllers.controller import FAMILY
from qan_agents.controllers.meta_config import MetaConfig
from qan_agents.controllers.meta_training import MetaRun

CASES: dict[str, dict[str, Any]] = {
    "perceptrons, 64 rows": {"num_envs": 64, "networks": ["mlp"]},
    "perceptrons, 1 row": {"num_envs": 1, "networks": ["mlp"]},
    "all networks, 8 rows": {"num_envs": 8},
}


def of_environment(case: dict[str, Any], seconds: float) -> tuple[float, float, float]:
    """Trainings a minute, decisions a second and mini-batches a second."""
    env = gym.make_vec(FAMILY, autoreset_mode=AutoresetMode.SAME_STEP, **case)
    env.reset(seed=0)
    env.action_space.seed(0)
    decisions = trainings = batches = 0
    begun = None
    while begun is None or trainings < env.num_envs or time.perf_counter() - begun < seconds:
        _, _, terminated, truncated, infos = env.step(env.action_space.sample())
        ended = terminated | truncated
        if begun is not None:
            decisions += env.num_envs
            trainings += int(ended.sum())
            batches += int(infos["final_info"]["batch"][ended].sum()) if ended.any() else 0
        elif ended.any():
            begun = time.perf_counter()
    passed = time.perf_counter() - begun
    env.close()
    return 60 * trainings / passed, decisions / passed, batches / passed


def of_meta_training(seconds: float) -> float:
    """Trainings a minute of PPO with what `qan meta-train` does by default: perceptrons; evaluations included."""
    times: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        run = MetaRun(Path(folder) / "run")
        config = MetaConfig(rounds=10_000, group=4, env_kwargs={"networks": ["mlp"]})
        run.create(config)

        def show(done: int, row: dict[str, float]) -> None:
            times.append((time.perf_counter(), done))
            if times[-1][0] - times[0][0] > seconds:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            run.train(show)
    (first, before), (last, after) = times[0], times[-1]
    return 60 * config.rows * (after - before) / (last - first)


def main() -> None:
    """Measure each, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=30, help="of each measurement")
    parser.add_argument("--threads", type=int, default=2, help="that share the rows which the kernels train")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name, case in CASES.items():
        found = of_environment(case, options.seconds)
        print(
            "{}: {:,.0f} trainings a minute, {:,.0f} decisions and {:,.0f} mini-batches a second".format(name, *found)
        )
    print(f"meta-training, perceptrons, 192 rows: {of_meta_training(options.seconds):,.0f} trainings a minute")


if __name__ == "__main__":
    main()
