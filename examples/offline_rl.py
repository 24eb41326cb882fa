"""Behaviour cloning on a Minari dataset: a network learns the actions of a schedule, and then plays unseen trainings.

    python -m pip install -e ".[minari]"
    python examples/offline_rl.py

The dataset is written first where it is not there, by what `qan dataset` does. The clone never sees a reward, so the
best that it can do is what it was shown.
"""

import argparse

import gymnasium as gym
import minari
import numpy as np
import torch
from torch import nn

import qan_gym  # noqa: F401 (registers the environments)
from qan_agents.policies.fixed import make_policy
from qan_agents.policies.rollout import EpisodeRecorder, play_episode
from qan_agents.sharing.dataset import write_dataset
from qan_agents.sharing.players import player_of

ENV = "QanLR-MNIST5k-v1"
GAME = {"observation": ["log_learning_rate", "budget_used", "last_action"], "meta_momentum": None, "reference": None}
TEACHER = "cosine"


def dataset_of(name, episodes, game):
    """The dataset, written where it is not there."""
    if name not in minari.list_local_datasets():
        write_dataset(player_of(TEACHER, ENV, game), episodes, 0, name, lambda number, episode: None)
    dataset = minari.load_dataset(name)
    wanted = gym.make(ENV, **game).observation_space
    if dataset.spec.observation_space != wanted:
        raise SystemExit(f"{name} is of another game ({dataset.spec.observation_space}, not {wanted}): name a new one")
    return dataset


def clone(dataset, epochs):
    """A network (D,) -> values of the actions, trained to choose as the dataset does."""
    observations = torch.from_numpy(np.concatenate([episode.observations[:-1] for episode in dataset]))
    actions = torch.from_numpy(np.concatenate([episode.actions for episode in dataset]))
    mean, deviation = observations.mean(0), observations.std(0) + 1e-6
    choices = int(dataset.spec.action_space.n)
    network = nn.Sequential(nn.Linear(len(mean), 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, choices))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(actions)).split(64):
            loss = nn.functional.cross_entropy(network((observations[batch] - mean) / deviation), actions[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    print(f"{len(actions)} actions, cross-entropy of the last mini-batch {loss.item():.3f}")
    return lambda observation: network((torch.from_numpy(observation) - mean) / deviation).argmax().item()


class Cloned:
    """The clone as a policy."""

    def __init__(self, choose):
        self.choose = choose

    def start(self, env, seed):
        """Nothing to get ready."""

    def act(self, observation, info):
        """The most probable action."""
        with torch.no_grad():
            return self.choose(observation)


def main():
    """Write, learn, play."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default=f"qan/offline-rl/{TEACHER}-v0")
    parser.add_argument("--episodes", type=int, default=20, help="of the dataset, where it is written")
    parser.add_argument("--epochs", type=int, default=30, help="of the clone's training")
    parser.add_argument("--seeds", type=int, default=5, help="unseen trainings that everyone plays")
    parser.add_argument("--game-epochs", type=int, default=5, help="of a training")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    game = {**GAME, "epochs": arguments.game_epochs}
    policy = Cloned(clone(dataset_of(arguments.dataset, arguments.episodes, game), arguments.epochs))
    env = EpisodeRecorder(gym.make(ENV, **game))
    for name, player in ((TEACHER, make_policy(TEACHER)), ("clone", policy), ("random", make_policy("random"))):
        episodes = [play_episode(env, player, seed) for seed in range(arguments.seeds)]
        loss = np.mean([episode.final["test_loss"] for episode in episodes])
        print(f"{name}: return {np.mean([episode.total_reward for episode in episodes]):.3f}, test loss {loss:.4f}")


if __name__ == "__main__":
    main()
