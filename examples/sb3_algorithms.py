"""Any algorithm of Stable-Baselines3 plays a game: DQN, PPO, A2C with discrete actions, SAC and TD3 with continuous.

So do those of sb3-contrib, where it is installed: QRDQN, and RecurrentPPO, which remembers what it saw. SBX has DQN,
PPO, SAC and TD3 in JAX.

python examples/sb3_algorithms.py PPO --env QanLR-MNIST5k-v1 --episodes 5
python examples/sb3_algorithms.py DQN --env QanLR-Family-v0 --episodes 20
python examples/sb3_algorithms.py PPO --library sbx
"""

import argparse
from importlib import import_module
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm

import qan_gym  # noqa: F401 (registers the environments)

ALGORITHMS = {
    "DQN": {"learning_starts": 50, "buffer_size": 10_000},
    "PPO": {"n_steps": 50, "batch_size": 50},
    "A2C": {"n_steps": 10},
    "SAC": {"learning_starts": 50, "buffer_size": 10_000},
    "TD3": {"learning_starts": 50, "buffer_size": 10_000},
    "QRDQN": {"learning_starts": 50, "buffer_size": 10_000, "learning_rate": 5e-4, "exploration_fraction": 0.5},
    "RecurrentPPO": {"n_steps": 50, "batch_size": 50},
}
CONTINUOUS, DISCRETE = ("SAC", "TD3"), ("DQN", "QRDQN")  # the others play both kinds of actions
FACTORS = [
    0.25,
    0.5,
    1.0,
    2.0,
    4.0,
]  # by which an action multiplies the learning rate, where a game has a Box of actions
# What the score line of the screen says. A replay of SB3's default size, a million transitions, holds it in 20 MB; the
# screen of `QanLR-CIFAR10-v0`, 193 rows of 192, wants 138 GiB for the observations, and as much for the next ones.
SCORES = ["log_learning_rate", "budget_used", "log_loss", "log_loss_change", "last_action"]
LARGEST_SCREEN = 10_000  # numbers that an agent is shown, rather than the scores
CONTRIB = ("QRDQN", "RecurrentPPO")


def library_of(name: str) -> str:
    """The module that has an algorithm, where it is not to be SBX's."""
    return "sb3_contrib" if name in CONTRIB else "stable_baselines3"


def make(name: str, env_id: str, library: str | None = None, **kwargs: object) -> BaseAlgorithm:
    """The algorithm on the environment, with the kind of actions that it plays."""
    algorithms = import_module(library or library_of(name))
    policy = "MlpLstmPolicy" if name == "RecurrentPPO" else "MlpPolicy"
    kwargs |= {"continuous": True} if name in CONTINUOUS else {}
    env = gym.make(env_id, **kwargs)
    if name in DISCRETE and isinstance(env.action_space, gym.spaces.Box):
        env = gym.make(env_id, **{"continuous": False, "learning_rate_factors": FACTORS, **kwargs})
    if env.observation_space.shape[0] > LARGEST_SCREEN:
        env = gym.make(env_id, **{"observation": SCORES, **kwargs})
    return getattr(algorithms, name)(policy, env, seed=0, device="cpu", **ALGORITHMS[name])


def play(model: BaseAlgorithm) -> dict[str, Any]:
    """One greedy episode of an unseen seed; what its last step said."""
    env = model.get_env()
    env.seed(0)
    observation, memory, begins = env.reset(), None, np.ones(1, bool)
    infos: list[dict[str, Any]] = []
    while not infos or not begins[0]:  # SB3's environments begin the next episode in the last step of one
        action, memory = model.predict(observation, memory, episode_start=begins, deterministic=True)
        observation, _, begins, infos = env.step(action)
    return infos[0]


def main() -> None:
    """Train for some episodes, then play one greedily."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("algorithm", choices=ALGORITHMS)
    parser.add_argument("--library", help="sbx, where it is not to be that of SB3 or sb3-contrib")
    parser.add_argument("--env", default="QanLR-MNIST5k-v1")
    parser.add_argument("--episodes", type=int, default=5)
    arguments = parser.parse_args()

    library = arguments.library or library_of(arguments.algorithm)
    if not hasattr(import_module(library), arguments.algorithm):
        parser.error(f"{library} has no {arguments.algorithm}")
    model = make(arguments.algorithm, arguments.env, library)
    model.learn(arguments.episodes * model.get_env().get_attr("unwrapped")[0].episode_length)
    info = play(model)
    print(f"{arguments.algorithm}: test loss {info['test_loss']:.4f}, accuracy {info['test_accuracy']:.1%}")


if __name__ == "__main__":
    main()
