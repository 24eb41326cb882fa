"""The regret of a policy: at some steps of an episode its action is compared with that of a greedy oracle."""

import math
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from qan_agents.policies.fixed import Policy
from qan_agents.policies.rollout import EpisodeRecorder, play_episode
from qan_gym import counterfactual
from qan_gym.counterfactuals import GRID

MOST_ACTIONS = 125  # that the policy's action is compared with


class RegretProbe:
    """A policy whose actions are those of another policy, and at some steps are compared with all others.

    Attributes:
        rows: a row per compared action; see `regrets`.
    """

    def __init__(self, policy: Policy, every: int, k: int) -> None:
        """policy: that chooses the actions; every, k: see `regrets`."""
        self.policy, self.every, self.k = policy, every, k

    def start(self, env: gym.Env[Any, Any], seed: int) -> dict[str, Any] | None:
        """See `Policy.start`."""
        self.env, self.step = env, 0
        self.rows: list[dict[str, Any]] = []
        return self.policy.start(env, seed)

    def act(self, observation: NDArray[Any], info: dict[str, Any]) -> Any:
        """See `Policy.act`."""
        action = self.policy.act(observation, info)
        if self.step % self.every == 0:
            self.rows.append(self._compare(action))
        self.step += 1
        return action

    def _compare(self, action: Any) -> dict[str, Any]:
        others = compared_actions(self.env.action_space)
        own = np.asarray(action, others.dtype).reshape(others.shape[1:])
        found = counterfactual(self.env, self.k, actions=np.unique([own, *others], axis=0))
        losses = zip(map(_plain, found.actions), found.validation_loss.tolist(), strict=True)
        return {
            "step": self.step,
            "action": _plain(own),
            "best": _plain(found.best),
            "regret": found.regret(own),
            "validation_losses": dict(losses),
        }


def regrets(env: gym.Env[Any, Any], policy: Policy, seed: int, every: int = 10, k: int = 20) -> list[dict[str, Any]]:
    """Play an episode, and compare the policy's action with the others at every so many of its steps.

    Args:
        env: a single environment of qan-gym, wrapped or not.
        policy: chooses the actions; the comparison does not change them.
        seed: of the episode.
        every: steps from one comparison to the next; the first is at the first step.
        k: steps to look ahead, see `qan_gym.counterfactual`: the action, and what goes on when nobody acts.

    Returns:
        A row per comparison: `step` (from 0), `action` (the policy's), `best` (the oracle's), `regret` (nats of log
        loss, at least 0) and `validation_losses` (nats, k steps after each action that was tried: the policy's and
        `compared_actions`). An action of several numbers is a tuple.

    Raises:
        ValueError: `every` or `k` is below 1, or the policy cannot play this environment.
    """
    for name, value in (("every", every), ("k", k)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, not {value!r}")
    probe = RegretProbe(policy, every, k)
    play_episode(EpisodeRecorder(env), probe, seed)
    return probe.rows


def compared_actions(space: spaces.Space[Any]) -> NDArray[Any]:
    """The actions that a policy's action is compared with.

    All of a Discrete or MultiDiscrete space, a grid of 5 values per number of a Box; where these are more than 125,
    only 5, with all numbers at the same place between their lowest and their highest.

    Args:
        space: Discrete, MultiDiscrete, or a Box with bounds.

    Returns:
        (A,) int64 of a Discrete space; (A, *shape), int64 or float32, of the others.
    """
    if isinstance(space, spaces.Discrete):
        return np.arange(space.start, space.start + space.n)
    axes: list[NDArray[Any]]
    if isinstance(space, spaces.MultiDiscrete):
        limits = zip(space.start.reshape(-1), space.nvec.reshape(-1), strict=True)
        axes = [start + np.arange(count) for start, count in limits]
    else:
        assert isinstance(space, spaces.Box)
        limits = zip(space.low.reshape(-1), space.high.reshape(-1), strict=True)
        axes = [np.linspace(low, high, GRID, dtype=np.float32) for low, high in limits]
    if math.prod(map(len, axes)) <= MOST_ACTIONS:
        actions = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    else:
        places = np.linspace(0, 1, GRID)
        actions = np.stack([axis[(places * (len(axis) - 1)).round().astype(int)] for axis in axes], axis=-1)
    return actions.reshape(-1, *(space.shape or ()))


def _plain(action: Any) -> Any:
    """An action as a number, or as a tuple of numbers where it is several."""
    numbers = tuple(np.asarray(action).reshape(-1).tolist())
    return numbers[0] if len(numbers) == 1 else numbers
