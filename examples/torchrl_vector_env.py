"""TorchRL on the vector environment of the game: autoreset disabled, so that TorchRL says which rows begin again.

python -m pip install -e ".[torchrl]" && python examples/torchrl_vector_env.py
"""

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode
from torchrl.collectors import Collector
from torchrl.envs import GymWrapper, RewardSum, TransformedEnv

import qan_gym  # noqa: F401 (registers the environments)

# Trainings of 40 actions, without the pull towards reference weights; {} is the game as registered, of 200.
GAME = {"epochs": 1, "meta_momentum": None}
NUM_ENVS, STEPS = 4, 90  # two episodes of each row, and ten actions of a third


def main():
    """Collect with random actions, and print the episodes' returns."""
    for mode in (AutoresetMode.DISABLED, AutoresetMode.SAME_STEP):
        envs = gym.make_vec("QanLR-MNIST5k-v1", num_envs=NUM_ENVS, autoreset_mode=mode, **GAME)
        env = TransformedEnv(GymWrapper(envs, categorical_action_encoding=True), RewardSum())
        env.set_seed(0)
        collector = Collector(env, None, frames_per_batch=NUM_ENVS * STEPS, total_frames=NUM_ENVS * STEPS)
        for data in collector:
            scores = data["next", "episode_reward"][data["next", "done"]]
            assert len(scores) == 2 * NUM_ENVS, scores
            assert torch.isfinite(data["next", "observation"]).all()
            print(f"{mode.name}: {len(scores)} episodes, mean return {scores.mean():.3f}", flush=True)
        collector.shutdown()


if __name__ == "__main__":
    main()
