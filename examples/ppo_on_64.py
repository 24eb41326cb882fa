"""PPO of Stable-Baselines3 trains on 64 CNNs at once, in one process.

python examples/ppo_on_64.py --episodes 128
"""

import argparse
import time

import numpy as np
from stable_baselines3 import PPO

from qan_agents.sb3 import vec_env

ENV = "QanLR-MNIST5k-v1"


def greedy_scores(model: PPO, seed: int) -> tuple[list[float], list[float]]:
    """Test loss and accuracy of an unseen episode of every row, played without exploration."""
    env = model.get_env()
    env.seed(seed)
    observations, over = env.reset(), np.zeros(env.num_envs, bool)
    while not over.any():  # the budget ends all episodes in the same step
        actions, _ = model.predict(observations, deterministic=True)
        observations, _, over, infos = env.step(actions)
    return [info["test_loss"] for info in infos], [info["test_accuracy"] for info in infos]


def main() -> None:
    """Train, say how fast it was, and play unseen episodes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--episodes", type=int, default=128, help="of all CNNs together")
    arguments = parser.parse_args()

    # 50 actions of 40 mini-batches, each a factor of the learning rate: few actions with a large effect.
    game = {"batches_per_action": 40, "action_scale": "multiplicative"}
    env = vec_env(ENV, arguments.num_envs, **game)
    model = PPO("MlpPolicy", env, n_steps=50, batch_size=400, gamma=0.995, seed=0, device="cpu")
    steps = arguments.episodes * env.get_attr("episode_length")[0]
    started = time.perf_counter()
    model.learn(steps, progress_bar=True)
    seconds = time.perf_counter() - started
    returns = [episode["r"] for episode in model.ep_info_buffer]
    print(f"{len(returns)} last episodes: mean return {np.mean(returns):.3f}")
    print(f"{model.num_timesteps} actions of {arguments.num_envs} CNNs in {seconds:.0f} s")

    losses, accuracies = greedy_scores(model, seed=0)
    spread = np.quantile(losses, [0.25, 0.75])
    print(f"unseen episodes: test loss {np.mean(losses):.3f} (quartiles {spread[0]:.3f} to {spread[1]:.3f}),", end=" ")
    print(f"accuracy {np.mean(accuracies):.1%}")


if __name__ == "__main__":
    main()
