"""The bundled PPO beside Stable-Baselines3's on CartPole-v1, with the same hyperparameters and steps, on one thread.

    python benchmarks/ppo_on_cartpole.py --seeds 3

A line for each training: the mean return of all training episodes, that of 20 episodes with the likeliest actions after
it, and the CPU time of the training. SB3 updates the learning rate after a round, the bundled PPO before it.
"""

import argparse
import time
from collections.abc import Callable

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode

ENV, ROWS, STEPS = "CartPole-v1", 8, 60_000
LENGTH, EPOCHS, GAMMA, LAMBDA, LEARNING_RATE = 32, 20, 0.98, 0.8, 1e-3
Policy = Callable[[np.ndarray], np.ndarray]


def bundled(seed: int) -> tuple[list[float], Policy]:
    """The returns of the training episodes, and the policy."""
    from qan_agents.ppo import PPO, PPOConfig, PPOInterface, train

    mode = {"autoreset_mode": AutoresetMode.SAME_STEP}
    env = gym.make_vec(ENV, num_envs=ROWS, vectorization_mode="sync", vector_kwargs=mode)
    config = PPOConfig(
        normalise_observations=False,
        steps_per_round=LENGTH,
        epochs=EPOCHS,
        minibatches=1,
        gamma=GAMMA,
        gae_lambda=LAMBDA,
        learning_rate=LEARNING_RATE,
        anneal_steps=STEPS,
    )
    agent = PPO(config, PPOInterface.of(env), seed=seed)
    finished = train(agent, env, STEPS, seed=seed)

    def policy(frames: np.ndarray) -> np.ndarray:
        return agent.choose(torch.from_numpy(frames))[0].numpy()

    return [episode.total_reward for episode in finished], policy


def stable_baselines(seed: int) -> tuple[list[float], Policy]:
    """The returns of the training episodes, and the policy."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    returns: list[float] = []

    class Returns(BaseCallback):
        def _on_step(self) -> bool:
            returns.extend(info["episode"]["r"] for info in self.locals["infos"] if "episode" in info)
            return True

    model = PPO(
        "MlpPolicy",
        make_vec_env(ENV, n_envs=ROWS),
        n_steps=LENGTH,
        batch_size=LENGTH * ROWS,
        n_epochs=EPOCHS,
        gamma=GAMMA,
        gae_lambda=LAMBDA,
        learning_rate=lambda left: left * LEARNING_RATE,
        seed=seed,
        device="cpu",
    )
    model.learn(STEPS, callback=Returns())
    return returns, lambda frames: model.predict(frames, deterministic=True)[0]


def greedy_return(policy: Policy) -> float:
    """The mean return of 20 episodes."""
    env = gym.make_vec(ENV, num_envs=20, vectorization_mode="sync")
    frames, _ = env.reset(seed=1000)
    playing, total = np.ones(20, bool), np.zeros(20)
    while playing.any():
        frames, rewards, terminated, truncated, _ = env.step(policy(frames))
        total += rewards * playing
        playing &= ~(terminated | truncated)
    return float(total.mean())


def main() -> None:
    """Train and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    for name, train in {"bundled": bundled, "stable-baselines3": stable_baselines}.items():
        for seed in range(seeds):
            started = time.process_time()
            returns, policy = train(seed)
            seconds = time.process_time() - started
            print(
                f"{name:18} seed {seed}  training {np.mean(returns):6.1f}  after it {greedy_return(policy):6.1f}  "
                f"{seconds:5.1f} s of CPU",
                flush=True,
            )


if __name__ == "__main__":
    main()
