"""Any algorithm of Stable-Baselines3 plays a game: DQN, PPO, A2C with discrete actions, SAC and TD3 with continuous.

python examples/sb3_algorithms.py PPO --env QanLR-MNIST5k-v0 --episodes 5
"""

import argparse

import gymnasium as gym
import stable_baselines3

import qan_gym  # noqa: F401 (registers the environments)

ALGORITHMS = {
    "DQN": {"learning_starts": 50, "buffer_size": 10_000},
    "PPO": {"n_steps": 50, "batch_size": 50},
    "A2C": {"n_steps": 10},
    "SAC": {"learning_starts": 50, "buffer_size": 10_000},
    "TD3": {"learning_starts": 50, "buffer_size": 10_000},
}
CONTINUOUS = ("SAC", "TD3")


def make(name: str, env_id: str, **kwargs: object) -> stable_baselines3.common.base_class.BaseAlgorithm:
    """The algorithm on the environment, with the kind of actions that it plays."""
    env = gym.make(env_id, **kwargs, **({"continuous": True} if name in CONTINUOUS else {}))
    return getattr(stable_baselines3, name)("MlpPolicy", env, seed=0, device="cpu", **ALGORITHMS[name])


def main() -> None:
    """Train for some episodes, then play one greedily."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("algorithm", choices=ALGORITHMS)
    parser.add_argument("--env", default="QanLR-MNIST5k-v0")
    parser.add_argument("--episodes", type=int, default=5)
    arguments = parser.parse_args()

    model = make(arguments.algorithm, arguments.env)
    env = model.get_env()
    decisions = env.get_attr("unwrapped")[0].decisions
    model.learn(arguments.episodes * decisions)

    env.seed(0)
    observation, over = env.reset(), [False]
    while not over[0]:
        action, _ = model.predict(observation, deterministic=True)
        observation, _, over, infos = env.step(action)
    print(f"{arguments.algorithm}: test loss {infos[0]['test_loss']:.4f}, accuracy {infos[0]['test_accuracy']:.1%}")


if __name__ == "__main__":
    main()
