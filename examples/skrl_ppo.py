"""PPO of skrl, on the vector environment of the game.

python -m pip install -e ".[skrl]" && python examples/skrl_ppo.py --steps 200
"""

import argparse
import tempfile

import gymnasium as gym
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from skrl.agents.torch.ppo import PPO, PPO_CFG
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import CategoricalMixin, DeterministicMixin, Model
from skrl.trainers.torch import SequentialTrainer
from skrl.utils import set_seed
from torch import nn

import qan_gym  # noqa: F401 (registers the environments)

# Trainings of 40 actions, without the pull towards reference weights; {} is the game as registered, of 200.
GAME = {"epochs": 1, "meta_momentum": None}
NUM_ENVS, ROLLOUT = 4, 20


class Policy(CategoricalMixin, Model):
    """Logits of the actions."""

    def __init__(self, env):
        Model.__init__(self, observation_space=env.observation_space, action_space=env.action_space, device="cpu")
        CategoricalMixin.__init__(self)
        sizes = self.num_observations, self.num_actions
        self.net = nn.Sequential(nn.Linear(sizes[0], 64), nn.Tanh(), nn.Linear(64, sizes[1]))

    def compute(self, inputs, role):
        """(N, D) -> (N, actions)."""
        return self.net(inputs["observations"]), {}


class Value(DeterministicMixin, Model):
    """The value of a state."""

    def __init__(self, env):
        Model.__init__(self, observation_space=env.observation_space, action_space=env.action_space, device="cpu")
        DeterministicMixin.__init__(self)
        self.net = nn.Sequential(nn.Linear(self.num_observations, 64), nn.Tanh(), nn.Linear(64, 1))

    def compute(self, inputs, role):
        """(N, D) -> (N, 1)."""
        return self.net(inputs["observations"]), {}


def main():
    """Train, and print what the last episodes gave."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="of each of the environments")
    steps = parser.parse_args().steps

    set_seed(0)
    statistics = RecordEpisodeStatistics(gym.make_vec("QanLR-MNIST5k-v1", num_envs=NUM_ENVS, **GAME))
    env = wrap_env(statistics)
    config = PPO_CFG(rollouts=ROLLOUT, learning_epochs=5, mini_batches=4)
    with tempfile.TemporaryDirectory() as folder:
        config.experiment.directory = folder
        agent = PPO(
            models={"policy": Policy(env), "value": Value(env)},
            memory=RandomMemory(memory_size=ROLLOUT, num_envs=NUM_ENVS, device="cpu"),
            cfg=config,
            observation_space=env.observation_space,
            action_space=env.action_space,
            device="cpu",
        )
        trainer = SequentialTrainer(env=env, agents=agent, cfg={"timesteps": steps, "headless": True})
        trainer.train()
    for score in statistics.return_queue:
        print(f"return {score:.3f}")


if __name__ == "__main__":
    main()
