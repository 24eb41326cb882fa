"""DQN in one file, in the manner of CleanRL: plain PyTorch and `gym.make`.

python examples/cleanrl_dqn.py --steps 1600
python examples/cleanrl_dqn.py --env QanLR-Family-v0
"""

import argparse
import random

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import qan_gym  # noqa: F401 (registers the environments)

# Of the game of the default: trainings of 40 actions, without the pull towards reference weights. Of the family, whose
# episodes draw their tasks: an action per factor. {} is a game as registered.
GAMES = {
    "QanLR-MNIST5k-v1": {"epochs": 1, "meta_momentum": None},
    "QanLR-Family-v0": {"continuous": False, "learning_rate_factors": [0.25, 0.5, 1.0, 2.0, 4.0]},
}
SEED = 1
LEARNING_RATE, GAMMA, BATCH_SIZE = 5e-4, 0.99, 64
LEARNING_STARTS, TARGET_EVERY = 80, 200  # steps
EPSILON_END, EXPLORATION = 0.05, 0.6  # a share of all steps


class QNetwork(nn.Module):
    """(B, D) screens -> (B, actions) values. The screen is flat already: an MLP takes it as it is."""

    def __init__(self, env: gym.Env) -> None:
        """env: a Box of one dimension, Discrete actions."""
        super().__init__()
        size, actions = env.observation_space.shape[0], int(env.action_space.n)
        self.layers = nn.Sequential(nn.Linear(size, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        self.head = nn.Linear(64, actions)

    def forward(self, screens: torch.Tensor) -> torch.Tensor:
        """The value of every action."""
        return self.head(self.layers(screens))


class Replay:
    """A ring of transitions."""

    def __init__(self, capacity: int, size: int) -> None:
        """size: D, of a screen."""
        self.screens, self.next_screens = (torch.zeros(capacity, size) for _ in range(2))
        self.actions = torch.zeros(capacity, dtype=torch.int64)
        self.rewards, self.terminated = (torch.zeros(capacity) for _ in range(2))
        self.added = 0

    def add(self, screen: np.ndarray, action: int, reward: float, next_screen: np.ndarray, terminated: bool) -> None:
        """The oldest makes room."""
        row = self.added % len(self.actions)
        self.screens[row], self.next_screens[row] = torch.from_numpy(screen), torch.from_numpy(next_screen)
        self.actions[row], self.rewards[row], self.terminated[row] = action, reward, float(terminated)
        self.added += 1

    def sample(self, count: int) -> tuple[torch.Tensor, ...]:
        """Rows, with replacement."""
        rows = torch.randint(min(self.added, len(self.actions)), (count,))
        return tuple(
            values[rows] for values in (self.screens, self.actions, self.rewards, self.next_screens, self.terminated)
        )


def update(online: QNetwork, target: QNetwork, optimizer: torch.optim.Optimizer, replay: Replay) -> None:
    """One gradient step on the temporal difference."""
    screens, actions, rewards, next_screens, terminated = replay.sample(BATCH_SIZE)
    with torch.no_grad():  # a truncated episode would have gone on, so only a terminated one is worth nothing more
        td_targets = rewards + GAMMA * (1 - terminated) * target(next_screens).amax(1)
    loss = F.smooth_l1_loss(online(screens).gather(1, actions[:, None])[:, 0], td_targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def main() -> None:
    """Train, and print every episode."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="QanLR-MNIST5k-v1", help="an id with Discrete actions, or one of GAMES")
    parser.add_argument("--steps", type=int, default=1600)
    arguments = parser.parse_args()
    steps = arguments.steps

    random.seed(SEED)
    torch.manual_seed(SEED)
    env = gym.wrappers.RecordEpisodeStatistics(gym.make(arguments.env, **GAMES.get(arguments.env, {})))
    env.action_space.seed(SEED)
    online, target = QNetwork(env), QNetwork(env)
    target.load_state_dict(online.state_dict())
    optimizer = torch.optim.Adam(online.parameters(), lr=LEARNING_RATE)
    replay = Replay(10_000, env.observation_space.shape[0])

    screen, _ = env.reset(seed=SEED)
    for step in range(steps):
        epsilon = max(EPSILON_END, 1 - (1 - EPSILON_END) * step / (EXPLORATION * steps))
        if random.random() < epsilon:
            action = int(env.action_space.sample())
        else:
            with torch.no_grad():
                action = int(online(torch.from_numpy(screen)[None]).argmax())
        next_screen, reward, terminated, truncated, info = env.step(action)
        replay.add(screen, action, reward, next_screen, terminated)
        screen = next_screen
        if terminated or truncated:
            score = f"return {info['episode']['r']:.3f}, test accuracy {info['test_accuracy']:.1%}"
            print(f"step {step + 1}: epsilon {epsilon:.2f}, {score}", flush=True)
            screen, _ = env.reset()
        if step >= LEARNING_STARTS:
            update(online, target, optimizer, replay)
        if step % TARGET_EVERY == 0:
            target.load_state_dict(online.state_dict())


if __name__ == "__main__":
    main()
