"""A vector environment as the bundled agents see it: tensors on their device, in either mode of resetting."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from torch import Tensor

from qan_agents.dqn.config import DQNConfig
from qan_agents.dqn.features import READ_THE_SCORE_LINE
from qan_gym.core.observation import SCORE_LINE
from qan_gym.vector_env import QanVectorEnv


@dataclass(frozen=True)
class EnvInterface:
    """Observations and actions of an environment, as far as an agent has to know them.

    Attributes:
        shape: of a frame.
        dtype: of a frame.
        actions: how many there are.
        screen: (rows, columns) of a frame where the environment is qan-gym's, else (1, its size).
        score_line: numbers on the score line, which is the last row of the screen; 0 where there is none.
    """

    shape: tuple[int, ...]
    dtype: str
    actions: int
    screen: tuple[int, int]
    score_line: int

    def __post_init__(self) -> None:
        """JSON has lists where tuples were."""
        for name in ("shape", "screen"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @classmethod
    def of(cls, env: VectorEnv[Any, Any, Any]) -> "EnvInterface":
        """The interface of an environment.

        Raises:
            ValueError: the spaces are not a Box and a Discrete.
        """
        frames, actions = box_of_observations(env), env.single_action_space
        if not isinstance(actions, gym.spaces.Discrete):
            raise ValueError(
                f"DQN needs Discrete actions, not {actions}; where the learning rate is controlled: continuous=False, "
                "with learning_rate_factors=[0.25, 0.5, 1, 2, 4] one action per factor"
            )
        return cls(tuple(frames.shape), str(frames.dtype), int(actions.n), *screen_of_any(env))

    def check(self, config: DQNConfig) -> None:
        """Refuse hyperparameters that do not go with the environment.

        Raises:
            ValueError: which, and why.
        """
        if config.features in READ_THE_SCORE_LINE and not self.score_line:
            raise ValueError(
                f"the features {config.features} read the score line: use observation='screen', or other features"
            )
        if config.features == "filters" and min(self.screen) < 6:
            raise ValueError(f"the features filters need a screen of at least 6 x 6, not {self.screen}: use flat")
        if (config.storage == "uint8") != (self.dtype == "uint8"):
            raise ValueError(f"storage {config.storage} does not go with frames of {self.dtype}")

    @property
    def frame_dtype(self) -> torch.dtype:
        """The data type of frames as the agent handles them."""
        return frame_dtype(self.dtype)

    @property
    def frame_size(self) -> int:
        """D, numbers in a frame."""
        return math.prod(self.shape)


def box_of_observations(env: VectorEnv[Any, Any, Any]) -> gym.spaces.Box:
    """The space of the observations of a row.

    Raises:
        ValueError: it is not a Box.
    """
    space = env.single_observation_space
    if not isinstance(space, gym.spaces.Box):
        raise ValueError(f"the observations must be a Box, not {space}: wrap FlattenObservation around the environment")
    return space


def frame_dtype(dtype: str) -> torch.dtype:
    """The data type of frames as agents handle them, by that of the environment's: bytes stay bytes."""
    return torch.uint8 if dtype == "uint8" else torch.float32


def screen_of_any(env: VectorEnv[Any, Any, Any]) -> tuple[tuple[int, int], int]:
    """`screen_of` an environment of qan-gym, wrapped or not; of any other ((1, size of a frame), 0)."""
    if isinstance(env.unwrapped, QanVectorEnv):
        return screen_of(env.unwrapped)
    return (1, math.prod(box_of_observations(env).shape)), 0


def screen_of(env: QanVectorEnv) -> tuple[tuple[int, int], int]:
    """The screen of an environment: (rows, columns), and the numbers on its score line, 0 where there is none."""
    observer = env.training.parts.observer
    return observer.shape, len(SCORE_LINE) + len(observer.extra) if env.config.observation == "screen" else 0


class Transitions(NamedTuple):
    """One step of N environments, on the agent's device; the leading axis is N.

    Attributes:
        frames: (N, D) to act on next: `next_frames`, or the first frame of an episode where one starts.
        next_frames: (N, D) seen after the action; the last frame of the episode where it ended.
        rewards: (N,).
        terminated: (N,) bool.
        ended: (N,) bool, terminated or truncated.
        valid: (N,) bool; False where the step was no transition but only the reset of NEXT_STEP mode.
        starts: (N,) bool, `frames` are the first of an episode.
        infos: of the environment.
    """

    frames: Tensor
    next_frames: Tensor
    rewards: Tensor
    terminated: Tensor
    ended: Tensor
    valid: Tensor
    starts: Tensor
    infos: dict[str, Any]


class TensorVectorEnv:
    """A vector environment that takes and gives tensors; its steps are the same in both modes of resetting."""

    def __init__(self, env: VectorEnv[Any, Any, Any], device: torch.device) -> None:
        """Wrap an environment.

        Args:
            env: in NEXT_STEP or SAME_STEP mode, with a Box of observations and Discrete, MultiDiscrete or Box actions.
            device: of the tensors.

        Raises:
            ValueError: the mode is another one or not stated, or the observations are no Box.
        """
        mode = env.metadata.get("autoreset_mode")
        if mode not in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
            raise ValueError(
                f"the environment must reset itself (NEXT_STEP or SAME_STEP); its autoreset_mode is {mode}"
            )
        self.env, self.device, self.dtype = env, device, frame_dtype(str(box_of_observations(env).dtype))
        self.next_step = mode == AutoresetMode.NEXT_STEP
        self.action_shape = env.single_action_space.shape or ()
        self.action_dtype = env.single_action_space.dtype
        first = np.asarray(getattr(env.single_action_space, "start", 0))
        self.first_action = torch.from_numpy(first).to(device) if first.any() else None
        self.takes_tensors = getattr(env.unwrapped, "output", "numpy") == "torch"

    def reset(self, seed: int | list[int] | None) -> Tensor:
        """Start an episode in every row; its first frames (N, D). The infos are kept in `infos`."""
        seeds: Any = seed  # Gymnasium's vector environments take lists, though VectorEnv does not say so
        frames, self.infos = self.env.reset(seed=seeds)
        self.over = torch.zeros(self.env.num_envs, dtype=torch.bool, device=self.device)
        return self._frames(frames)

    def step(self, actions: Tensor) -> Transitions:
        """Play a step.

        Args:
            actions: on the device: (N,) int64 of a Discrete space and (N, k) of a MultiDiscrete, from 0; (N, k) float32
                of a Box of k numbers.
        """
        actions = actions.view(-1, *self.action_shape)
        actions = actions if self.first_action is None else actions + self.first_action
        frames, rewards, terminations, truncations, infos = self.env.step(
            actions if self.takes_tensors else actions.cpu().numpy().astype(self.action_dtype, copy=False)
        )
        seen, terminated = self._frames(frames), self._tensor(terminations)
        ended = terminated | self._tensor(truncations)
        next_frames, valid, starts = seen, ~self.over, self.over
        if self.next_step:
            self.over = ended
        else:
            starts = ended
            if "final_obs" in infos:
                next_frames = torch.where(ended[:, None], self._final_frames(infos, seen), seen)
        return Transitions(seen, next_frames, self._tensor(rewards).float(), terminated, ended, valid, starts, infos)

    def _final_frames(self, infos: dict[str, Any], seen: Tensor) -> Tensor:
        final = infos["final_obs"]
        if self.takes_tensors:
            return self._frames(final)
        frames = seen.cpu().numpy().copy()
        for row in np.flatnonzero(infos["_final_obs"]):
            frames[row] = np.asarray(final[row]).reshape(-1)
        return self._frames(frames)

    def _frames(self, values: Any) -> Tensor:
        return self._tensor(values).to(self.dtype).flatten(1)  # (N, D)

    def _tensor(self, values: Any) -> Tensor:
        return torch.as_tensor(values, device=self.device)


class BudgetEndTerminates(VectorWrapper[Any, Any, Any, Any, Any]):
    """Reports the end of the budget as a termination, so that no value is expected after it.

    At a truncation agents add the value of the last state to the return, as if the episode went on. Here the time that
    is left is observed and nothing follows (arXiv:1712.00378), so there would be nothing to learn that value from.
    """

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """See `VectorEnv.step`."""
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        return observations, rewards, terminated | truncated, truncated & False, infos
