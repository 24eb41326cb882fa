"""Play an episode and write down what happened."""

from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from qan_agents.policies.fixed import Policy

STEP_COLUMNS = (
    "step",
    "batch",
    "epoch",
    "action",
    "learning_rate",
    "loss",
    "smoothed_loss",
    "validation_loss",
    "validation_accuracy",
    "reward",
)


@dataclass
class Episode:
    """An episode, as far as it has come.

    Attributes:
        steps: a row of STEP_COLUMNS per action.
        final: the last info, with test_loss and test_accuracy once the episode is over.
        over: it has ended.
        frames: the observations, the reset's first, where they are wanted.
        actions: as given.
        terminated: it ended otherwise than by its budget.
    """

    steps: list[dict[str, float]] = field(default_factory=list)
    final: dict[str, Any] = field(default_factory=dict)
    over: bool = False
    frames: list[NDArray[np.float32]] = field(default_factory=list)
    actions: list[Any] = field(default_factory=list)
    terminated: bool = False

    @property
    def total_reward(self) -> float:
        """Undiscounted."""
        return sum(row["reward"] for row in self.steps)

    def add(self, action: Any, reward: float, info: dict[str, Any], frame: NDArray[np.float32] | None = None) -> None:
        """Write down a step; frame: the observation after it, where frames are wanted."""
        values = {**info, "step": len(self.steps), "action": np.asarray(action).item(), "reward": reward}
        self.steps.append({name: values[name] for name in STEP_COLUMNS})
        if frame is not None:
            self.frames.append(frame)
            self.actions.append(action)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What a replay needs of an episode of T steps: single frames (T + 1, D), not stacked ones."""
        return {
            "frames": np.stack(self.frames),
            "actions": np.asarray(self.actions, dtype=np.int64).reshape(-1),
            "rewards": np.asarray([row["reward"] for row in self.steps], dtype=np.float32),
            "terminated": np.asarray(self.terminated),
        }

    def end(self, info: dict[str, Any], terminated: bool) -> None:
        """Close the record with the last step's info."""
        self.final, self.over, self.terminated = info, True, terminated


class Recorder(gym.Wrapper):
    """Keeps the episode that is being played in `episode`, and the last one that ended in `finished`."""

    def __init__(self, env: gym.Env) -> None:
        """env: one of qan-gym's."""
        super().__init__(env)
        self.episode = Episode()
        self.finished = Episode()

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Begin a new record."""
        self.episode = Episode()
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Play and record."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.episode.add(action, reward, info)
        if terminated or truncated:
            self.episode.end(info, bool(terminated))
            self.finished = self.episode
        return observation, reward, terminated, truncated, info


def play(env: gym.Env, policy: Policy, seed: int) -> Episode:
    """One episode.

    Args:
        env: with a `Recorder` somewhere among its wrappers.
        policy: what plays.
        seed: of the episode.

    Raises:
        ValueError: the policy cannot play this environment.
    """
    options = policy.start(env, seed)
    observation, info = env.reset(seed=seed, options=options)
    over = False
    while not over:
        observation, _, terminated, truncated, info = env.step(policy.act(observation, info))
        over = terminated or truncated
    return env.get_wrapper_attr("finished")
