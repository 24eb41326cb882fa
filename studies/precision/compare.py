"""Final test loss and accuracy with each precision of the gradients: paired seeds, 95 % intervals.

    python studies/precision/compare.py [--device cpu|cuda] [--num-envs 32]

Every seed is played once per precision, at the constant initial learning rate of `QanLR-MNIST5k-v0`.
"""

import argparse

import gymnasium as gym
import numpy as np

import qan_gym  # noqa: F401 (registers the environments)

KEEP = 2
PRECISIONS = {"cpu": ("float32", "bf16"), "cuda": ("float32", "tf32", "bf16")}


def final_scores(precision: str, num_envs: int, device: str) -> dict[str, np.ndarray]:
    """Test loss and accuracy (N,) at the end of an episode."""
    env = gym.make_vec(
        "QanLR-MNIST5k-v0", num_envs=num_envs, device=device, precision=precision, batches_per_action=100
    )
    env.reset(seed=1000)
    for _ in range(env.unwrapped.episode_length):
        infos = env.step(np.full(num_envs, KEEP))[4]
    env.close()
    return {name: infos[name] for name in ("test_loss", "test_accuracy")}


def main() -> None:
    """Play and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=PRECISIONS, default="cpu")
    parser.add_argument("--num-envs", type=int, default=32, help="seeds")
    arguments = parser.parse_args()
    scores = {name: final_scores(name, arguments.num_envs, arguments.device) for name in PRECISIONS[arguments.device]}
    for precision, found in scores.items():
        for name, values in found.items():
            difference = values - scores["float32"][name]
            half = 1.96 * difference.std(ddof=1) / len(difference) ** 0.5
            print(
                f"{precision:8s} {name:14s} {values.mean():.4f}, minus float32's: {difference.mean():+.5f} ± {half:.5f}"
            )


if __name__ == "__main__":
    main()
