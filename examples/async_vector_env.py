"""A game in processes of its own that are spawned, as an actor-learner library starts them: AsyncVectorEnv.

A spawned process has imported nothing. The module before the colon of the id tells it what registers the game.
(`gym.make_vec("QanLR-MNIST5k-v1", num_envs=N)` trains N networks in one process, and is faster.)

python examples/async_vector_env.py --num-envs 2
"""

import argparse

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv

ENV = "qan_gym:QanLR-MNIST5k-v1"
# Trainings of 40 actions, without the pull towards reference weights; {} is the game as registered, of 200.
GAME = {"epochs": 1, "meta_momentum": None}


def make() -> gym.Env:
    """In its process, on one thread."""
    return gym.make(ENV, **GAME)


def main() -> None:
    """Play one episode of random actions in every process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-envs", type=int, default=2)
    arguments = parser.parse_args()

    envs = AsyncVectorEnv([make] * arguments.num_envs, context="spawn")
    envs.action_space.seed(0)
    envs.reset(seed=0)
    over, returns = np.zeros(envs.num_envs, bool), np.zeros(envs.num_envs)
    while not over.any():  # the budget ends all episodes in the same step
        _, rewards, terminations, truncations, infos = envs.step(envs.action_space.sample())
        over, returns = terminations | truncations, returns + rewards
    for row, (score, accuracy) in enumerate(zip(returns, infos["test_accuracy"], strict=True)):
        print(f"process {row}: return {score:.3f}, test accuracy {accuracy:.1%}")
    envs.close()


if __name__ == "__main__":
    main()
