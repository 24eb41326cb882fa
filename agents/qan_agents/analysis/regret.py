"""The regret of a policy over an episode: what a greedy oracle would have chosen instead, now and then."""

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from qan_agents.policies.fixed import Policy
from qan_agents.policies.rollout import Recorder, play
from qan_gym import counterfactual
from qan_gym.counterfactuals import GRID


class Questioned:
    """A policy that plays as it does, and of which every so many actions are set against all others."""

    def __init__(self, policy: Policy, every: int, k: int) -> None:
        """policy: what plays; every, k: see `regrets`."""
        self.policy, self.every, self.k = policy, every, k

    def start(self, env: gym.Env, seed: int) -> dict[str, Any] | None:
        """See `Policy.start`."""
        self.env, self.step = env, 0
        self.rows: list[dict[str, Any]] = []
        return self.policy.start(env, seed)

    def act(self, observation: NDArray[Any], info: dict[str, Any]) -> Any:
        """See `Policy.act`."""
        action = self.policy.act(observation, info)
        if self.step % self.every == 0:
            self.rows.append(self._ask(action))
        self.step += 1
        return action

    def _ask(self, action: Any) -> dict[str, Any]:
        own = np.asarray(action).item()
        actions = None
        if self.env.unwrapped.config.continuous:
            actions = np.unique(np.array([own, *np.linspace(-1, 1, GRID)], np.float32))
        found = counterfactual(self.env, self.k, actions=actions)
        return {
            "step": self.step,
            "action": own,
            "best": found.best,
            "regret": found.regret(own),
            "validation_losses": dict(zip(found.actions.tolist(), found.validation_loss.tolist(), strict=True)),
        }


def regrets(env: gym.Env, policy: Policy, seed: int, every: int = 10, k: int = 20) -> list[dict[str, Any]]:
    """Play an episode, and look ahead from every so many of its steps.

    Args:
        env: a single environment of qan-gym, wrapped or not.
        policy: what plays it; what it plays does not change.
        seed: of the episode.
        every: actions from one look ahead to the next, the first before the first action.
        k: steps to look ahead, see `qan_gym.counterfactual`: the action and what leaves things as they are.

    Returns:
        A row per look: `step` (from 0), `action` (the policy's), `best` (the oracle's), `regret` (nats of log loss, at
        least 0) and `validation_losses` (nats, k steps after each action that was tried: all, or, where the game is
        continuous, 5 from -1 to 1 and the policy's).

    Raises:
        ValueError: `every` or `k` is below 1, or the policy cannot play this environment.
    """
    for name, value in (("every", every), ("k", k)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, not {value!r}")
    questioned = Questioned(policy, every, k)
    play(Recorder(env), questioned, seed)
    return questioned.rows
