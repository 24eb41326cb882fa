"""The cost of rendering: an episode with a frame every 20th action, against the same episode without.

    python benchmarks/rendering.py

Whole episodes of the games of 5,000 images, in turn, on one thread; the median of the ratios of each round, and their
quartiles. With the baseline run a frame needs a training of its own, so this is measured separately.
"""

import time

import gymnasium as gym
import numpy as np
import torch

import qan_gym  # noqa: F401 (registers the ids)

EVERY = 20  # actions from frame to frame
ROUNDS = 5


def seconds(env: gym.Env, render: bool) -> float:
    """Duration of an episode of fixed random actions."""
    env.action_space.seed(0)
    started, played, over = time.perf_counter(), 0, False
    env.reset(seed=0)
    while not over:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        played, over = played + 1, terminated or truncated
        if render and played % EVERY == 0:
            env.render()
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    for env_id in ("QanLR-MNIST5k-v1", "QanMinibatch-MNIST5k-v1"):
        plain = gym.make(env_id)
        for baseline_run in (False, True):
            shown = gym.make(env_id, render_mode="rgb_array", baseline_run=baseline_run)
            ratios = []
            for number in range(ROUNDS + 1):
                ratio = seconds(shown, render=True) / seconds(plain, render=False)
                if number > 0:  # the first also draws the parts of a frame that are kept
                    ratios.append(ratio)
            low, middle, high = np.percentile(ratios, [25, 50, 75])
            which = "with" if baseline_run else "without"
            print(
                f"{env_id}, {which} the baseline run: {middle:.3f} times as long ({low:.3f} to {high:.3f})", flush=True
            )


if __name__ == "__main__":
    main()
