"""Q values in use: the greedy policy, and how they judge an episode; the same for every agent that has them."""

from collections.abc import Mapping
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

VALUES_BATCH = 64  # observations that are valued at once


class QFunction(Protocol):
    """A value for every action of a Discrete space.

    Attributes:
        device: of its networks.
    """

    device: torch.device

    def values(self, observations: Tensor) -> Tensor:
        """Q(s, a), (B, actions), of float observations (B, history, D)."""

    def target_values(self, observations: Tensor) -> Tensor:
        """The same by the target network."""


class GreedyPolicy:
    """A `Policy` that plays the action of the highest value."""

    def __init__(self, q: QFunction) -> None:
        """q: the values to follow."""
        self.q = q

    def start(self, env: gym.Env[Any, Any], seed: int) -> None:
        """See `Policy.start`."""

    def act(self, observation: NDArray[Any], info: dict[str, Any]) -> int:
        """See `Policy.act`; observation: (history, D)."""
        return int(self.values(observation).argmax())

    def values(self, observation: NDArray[Any]) -> NDArray[np.float32]:
        """Q(s, a), (actions,), of an observation (history, D)."""
        values: NDArray[np.float32] = self.q.values(self.batch_of(observation))[0].detach().cpu().numpy()
        return values

    def batch_of(self, observation: NDArray[Any]) -> Tensor:
        """An observation (history, D) as a batch of one on the device."""
        return torch.as_tensor(np.asarray(observation), device=self.q.device)[None]


def judge_episode(q: QFunction, arrays: Mapping[str, NDArray[Any]], history: int, gamma: float) -> dict[str, float]:
    """Statistics of the Q values in an episode of T steps.

    Args:
        q: the values.
        arrays: of the episode; see `Episode.arrays`.
        history: frames of an observation.
        gamma: the discount per step.

    Returns:
        mean_max_q: the mean of max_a Q(s, a); mean_td_error: the mean of |r + gamma max_a Q'(s', a) - Q(s, a)| with the
        target network's Q', which is 0 after a termination.
    """
    steps = len(arrays["actions"])
    offsets = np.arange(1 - history, 1)
    highest, error = 0.0, 0.0
    for part in np.array_split(np.arange(steps), -(-steps // VALUES_BATCH)):
        observations, next_observations = (
            torch.as_tensor(arrays["frames"][(when[:, None] + offsets).clip(min=0)], device=q.device)
            for when in (part, part + 1)
        )  # (B, history, D)
        actions, rewards, goes_on = (
            torch.as_tensor(array, device=q.device)
            for array in (
                arrays["actions"][part],
                arrays["rewards"][part],
                (part < steps - 1) | ~arrays["terminated"],
            )
        )  # (B,)
        values = q.values(observations)  # (B, actions)
        highest += float(values.max(dim=1).values.sum())
        taken = values.gather(1, actions[:, None])[:, 0]
        targets = rewards + gamma * q.target_values(next_observations).max(dim=1).values * goes_on
        error += float((targets - taken).abs().sum())
    return {"mean_max_q": highest / steps, "mean_td_error": error / steps}
