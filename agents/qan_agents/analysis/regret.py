"""The regret of a policy: at some steps of an episode its action is compared with that of a greedy oracle."""

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from qan_agents.policies.fixed import Policy
from qan_agents.policies.rollout import EpisodeRecorder, play_episode
from qan_gym import counterfactual
from qan_gym.counterfactuals import actions_to_try, plain_action


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
        tried = actions_to_try(self.env.action_space)
        own = np.asarray(action, tried.dtype).reshape(1, *tried.shape[1:])
        found = counterfactual(self.env, self.k, actions=np.unique(np.concatenate([own, tried]), axis=0))
        losses = zip(map(plain_action, found.actions), found.validation_loss.tolist(), strict=True)
        return {
            "step": self.step,
            "action": plain_action(own),
            "best": found.best,
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
        those of `qan_gym.counterfactuals.actions_to_try`). An action of several numbers is a tuple.

    Raises:
        ValueError: `every` or `k` is below 1, or the policy cannot play this environment.
    """
    for name, value in (("every", every), ("k", k)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, not {value!r}")
    probe = RegretProbe(policy, every, k)
    play_episode(EpisodeRecorder(env), probe, seed)
    return probe.rows
