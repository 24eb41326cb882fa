"""PPO of RLlib, with the game in one env runner process.

python -m pip install -e ".[rllib]" && python examples/rllib_ppo.py --iterations 2
"""

import argparse
from typing import Any

import gymnasium as gym
import ray
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.tune.registry import register_env

# Trainings of 40 actions, without the pull towards reference weights; {} is the game as registered, of 200.
GAME = {"epochs": 1, "meta_momentum": None}


def make(config: dict[str, Any]) -> gym.Env:
    """The game, in the process of the runner, which has imported nothing: the id says what registers it."""
    return gym.make("qan_gym:QanLR-MNIST5k-v1", **config)


def main() -> None:
    """Train for some iterations, and print the episodes of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--batch", type=int, default=400, help="actions of an iteration")
    arguments = parser.parse_args()

    ray.init(num_cpus=2, include_dashboard=False)
    register_env("qan-lr", make)
    config = (
        PPOConfig()
        .environment("qan-lr", env_config=GAME)
        .env_runners(num_env_runners=1, num_envs_per_env_runner=1)
        .training(train_batch_size_per_learner=arguments.batch, minibatch_size=40, num_epochs=5, lr=1e-3, gamma=0.99)
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[64, 64]))
        .debugging(seed=0)
    )
    algorithm = config.build_algo()
    for iteration in range(1, arguments.iterations + 1):
        runners = algorithm.train()["env_runners"]
        about = f"{runners['num_episodes']:.0f} episodes of {runners['episode_len_mean']:.0f} actions"
        print(f"iteration {iteration}: {about}, mean return {runners['episode_return_mean']:.3f}", flush=True)
    algorithm.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
