"""What a run trains: an agent on its environments, a round of episodes at a time."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qan_agents.dqn.agent import DQNConfig
from qan_agents.policies.rollout import Episode
from qan_gym.config import TaskConfig

VALUES_BATCH = 64  # observations whose values are asked for at once


@dataclass(frozen=True)
class Progress:
    """Where a training stands, for whoever shows it.

    Attributes:
        step: actions done, of all episodes.
        epsilon: of the exploration now.
        validation_accuracy: last measured, mean over the environments.
    """

    step: int
    epsilon: float
    validation_accuracy: float


@dataclass(frozen=True)
class GameFacts:
    """What is written down of the game of a run: its settings, its data, the actions of an episode."""

    task: TaskConfig
    fingerprint: str
    decisions: int


class Learner(Protocol):
    """An agent and the environments that it learns from.

    Attributes:
        config: its hyperparameters.
        facts: of its game.
        actions: how many there are.
        device: where its networks are.
    """

    config: DQNConfig
    facts: GameFacts
    actions: int
    device: torch.device

    @property
    def steps(self) -> int:
        """Actions that it has learned from."""

    @property
    def exploration(self) -> float:
        """The share of random actions now."""

    def play_round(
        self, seeds: Sequence[int], epsilon: float | None, show: Callable[[Progress], None]
    ) -> list[Episode]:
        """One whole episode of every environment, with their frames.

        All random numbers are seeded anew, so that an agent restored between two rounds goes on as it would have.

        Args:
            seeds: one per environment.
            epsilon: None: learn, and explore as the hyperparameters say; else only play, with so many random actions.
            show: called after actions, not necessarily after each.
        """

    def values(self, observations: Tensor) -> Tensor:
        """Q(s, a), (B, actions), of (B, history, D)."""

    def target_values(self, observations: Tensor) -> Tensor:
        """The same by the target network."""

    def save(self, path: Path, episodes: int) -> None:
        """Write the agent down, atomically; episodes: finished so far."""

    def load(self, path: Path) -> None:
        """Take over what `save` wrote, for playing.

        Raises:
            ValueError: the file is damaged or of another agent.
        """

    def put_back(self, rounds: Iterable[Sequence[dict[str, NDArray[Any]]]]) -> None:
        """After `load`: fill the replay with rounds of episodes (see `Episode.arrays`), as playing them did."""

    def close(self) -> None:
        """Close the environments."""


def episode_values(learner: Learner, arrays: dict[str, NDArray[Any]]) -> dict[str, float]:
    """How the agent judges an episode of T steps, as it is now.

    Args:
        learner: trained so far.
        arrays: see `Episode.arrays`.

    Returns:
        mean_max_q: the mean of max_a Q(s, a); mean_td_error: the mean of |r + gamma max_a Q'(s', a) - Q(s, a)| with the
        target network's Q', which is 0 after a termination.
    """
    steps = len(arrays["actions"])
    config = learner.config
    back = np.arange(1 - config.history, 1)
    highest, error = 0.0, 0.0
    for some in np.array_split(np.arange(steps), -(-steps // VALUES_BATCH)):
        seen, following = (
            torch.as_tensor(arrays["frames"][(when[:, None] + back).clip(min=0)], device=learner.device)
            for when in (some, some + 1)
        )  # (B, history, D)
        values = learner.values(seen)  # (B, actions)
        highest += float(values.max(dim=1).values.sum())
        taken = values.gather(1, torch.as_tensor(arrays["actions"][some], device=learner.device)[:, None])[:, 0]
        goes_on = torch.as_tensor((some < steps - 1) | ~arrays["terminated"], device=learner.device)
        rewards = torch.as_tensor(arrays["rewards"][some], device=learner.device)
        wanted = rewards + config.gamma * learner.target_values(following).max(dim=1).values * goes_on
        error += float((wanted - taken).abs().sum())
    return {"mean_max_q": highest / steps, "mean_td_error": error / steps}


class Greedy:
    """A trained agent as a `Policy`: always the action of the highest value."""

    def __init__(self, learner: Learner) -> None:
        """learner: trained."""
        self.learner = learner

    def start(self, env: gym.Env, seed: int) -> None:
        """See `Policy.start`."""

    def act(self, observation: NDArray[Any], info: dict[str, Any]) -> int:
        """See `Policy.act`; observation: (history, D)."""
        return int(self.values(observation).argmax())

    def values(self, observation: NDArray[Any]) -> NDArray[np.float32]:
        """What the agent expects of each action, (A,), of (history, D)."""
        seen = torch.as_tensor(np.asarray(observation), device=self.learner.device)[None]
        return self.learner.values(seen)[0].detach().cpu().numpy()
