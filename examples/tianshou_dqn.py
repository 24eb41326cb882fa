"""DQN of Tianshou 2, on four environments in its `DummyVectorEnv`.

python -m pip install -e ".[tianshou]" && python examples/tianshou_dqn.py --steps 1600
"""

import argparse

import gymnasium as gym
import torch
from tianshou.algorithm.modelfree.dqn import DQN, DiscreteQLearningPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, CollectStats, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.trainer import OffPolicyTrainerParams
from tianshou.utils.net.common import Net

import qan_gym  # noqa: F401 (registers the environments)

# Trainings of 40 actions, without the pull towards reference weights; {} is the game as registered, of 200.
GAME = {"epochs": 1, "meta_momentum": None}
EPISODE, NUM_ENVS, SEED = 40, 4, 1


class WithoutInfo(gym.Wrapper):
    """The info is left out: Tianshou refuses the NaN that `test_loss` is before the end of an episode."""

    def reset(self, **kwargs):
        """The observation alone."""
        return self.env.reset(**kwargs)[0], {}

    def step(self, action):
        """All but the info."""
        return *self.env.step(action)[:4], {}


def make() -> gym.Env:
    """One environment."""
    return WithoutInfo(gym.make("QanLR-MNIST5k-v1", **GAME))


def main() -> None:
    """Train in epochs of one episode of each environment, and play one greedily after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1600)
    steps = parser.parse_args().steps

    torch.manual_seed(SEED)
    training_envs, test_envs = DummyVectorEnv([make] * NUM_ENVS), DummyVectorEnv([make])
    training_envs.seed(SEED)
    test_envs.seed(0)
    observations, actions = training_envs.observation_space[0], training_envs.action_space[0]
    network = Net(state_shape=observations.shape, action_shape=actions.n, hidden_sizes=[128, 64])
    algorithm = DQN(
        policy=DiscreteQLearningPolicy(model=network, action_space=actions, observation_space=observations),
        optim=AdamOptimizerFactory(lr=5e-4),
        gamma=0.99,
        target_update_freq=200,
    )
    collector = Collector[CollectStats](
        algorithm, training_envs, VectorReplayBuffer(10_000, NUM_ENVS), exploration_noise=True
    )
    tester = Collector[CollectStats](algorithm, test_envs)
    result = algorithm.run_training(
        OffPolicyTrainerParams(
            training_collector=collector,
            test_collector=tester,
            max_epochs=max(1, steps // (NUM_ENVS * EPISODE)),
            epoch_num_steps=NUM_ENVS * EPISODE,
            collection_step_num_env_steps=NUM_ENVS * 10,
            batch_size=64,
            update_step_num_gradient_steps_per_sample=1.0,
            training_fn=lambda _, step: algorithm.policy.set_eps_training(max(0.05, 1 - step / (0.6 * steps))),
            show_progress=False,
        )
    )
    greedy = tester.collect(n_episode=1, reset_before_collect=True)
    print(f"{result.train_episode} episodes in {result.train_step} steps")
    print(f"greedily: {greedy.lens[0]} actions, return {greedy.returns[0]:.3f}")


if __name__ == "__main__":
    main()
