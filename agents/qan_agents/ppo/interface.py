"""What the bundled PPO has to know of an environment: its frames, its actions, and its privileged inputs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from qan_agents.dqn.features import FEATURES, Features
from qan_agents.dqn.vector_env import box_of_observations, screen_of_any
from qan_agents.ppo.actions import ActionSpace
from qan_agents.ppo.config import PPOConfig
from qan_gym.vector_env import QanVectorEnv


@dataclass(frozen=True)
class PPOInterface:
    """Observations, actions and privileged inputs of an environment.

    Attributes:
        shape: of a frame.
        screen: (rows, columns) of a frame where the environment is qan-gym's, else (1, its size).
        score_line: numbers on the score line, which is the last row of the screen; 0 where there is none.
        actions: their space.
        privileged: the entry of the infos that the value network also sees; None: none.
        inputs: names of the numbers in that entry; of an array they are their places.
        widths: of an observation with features that are one number for each class, how many numbers each feature is.
    """

    shape: tuple[int, ...]
    screen: tuple[int, int]
    score_line: int
    actions: ActionSpace
    privileged: str | None = None
    inputs: tuple[str, ...] = ()
    widths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """JSON has lists and dicts where tuples and the space of actions were."""
        for name in ("shape", "screen", "inputs", "widths"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.actions, dict):
            object.__setattr__(self, "actions", ActionSpace(**self.actions))

    @classmethod
    def of(
        cls, env: VectorEnv[Any, Any, Any], privileged: str | None = None, infos: Mapping[str, Any] | None = None
    ) -> "PPOInterface":
        """The interface of an environment.

        Args:
            env: it.
            privileged: see the attribute.
            infos: of a reset, for the names of the privileged inputs; None: the environment is reset for them.

        Raises:
            ValueError: the observations are no Box, the actions not Discrete, MultiDiscrete or a Box, or there are no
                such privileged inputs.
        """
        frames, actions = box_of_observations(env), ActionSpace.of(env.single_action_space)
        inputs: tuple[str, ...] = ()
        if privileged is not None:
            columns = _columns(env.reset()[1] if infos is None else infos, privileged, torch.device("cpu"))
            inputs = tuple(
                f"{name}[{place}]" if values.shape[1] > 1 else name
                for name, values in columns.items()
                for place in range(values.shape[1])
            )
        return cls(tuple(frames.shape), *screen_of_any(env), actions, privileged, inputs, _widths(env))

    def check(self, config: PPOConfig) -> None:
        """Refuse hyperparameters that do not go with the environment.

        Raises:
            ValueError: which, and why.
        """
        if config.features != "flat" and not self.score_line:
            raise ValueError(
                f"the features {config.features} read the score line: use observation='screen', or features='flat'"
            )
        if config.privileged != self.privileged:
            raise ValueError(
                f"the interface was made for privileged={self.privileged!r}, the hyperparameters say "
                f"{config.privileged!r}: use PPOInterface.of(env, config.privileged)"
            )

        if config.by_class and (not self.widths or self.actions.outputs != max(self.widths)):
            raise ValueError(
                "by_class is for environments that show features of each class and have one action, or one number of "
                "an action, for each: make it with observation='classes', or use by_class=False"
            )

    @property
    def frame_size(self) -> int:
        """D, numbers in a frame."""
        return math.prod(self.shape)

    def features(self, name: str) -> Features:
        """The layer (B, 1, D) -> (B, F) between a frame and the networks."""
        return FEATURES[name](1, *self.screen, self.score_line)

    def privileged_inputs(self, infos: Mapping[str, Any], before: Tensor) -> Tensor:
        """The privileged inputs (N, E) in the infos of a reset or a step.

        Args:
            infos: of the environment; an entry that is not there, or not in a row, has not changed.
            before: (N, E), those before.

        Raises:
            ValueError: the entry has other numbers than those that the agent was made for.
        """
        if self.privileged is None or self.privileged not in infos:
            return before
        inputs = torch.cat(list(_columns(infos, self.privileged, before.device).values()), dim=1)
        if inputs.shape != before.shape:
            raise ValueError(
                f"infos[{self.privileged!r}] must have {before.shape[1]} numbers in each of {before.shape[0]} rows: "
                f"{', '.join(self.inputs)}; it has {tuple(inputs.shape)}"
            )
        mask = infos.get(f"_{self.privileged}")
        if mask is None:
            return inputs
        return torch.where(torch.as_tensor(mask, device=before.device)[:, None], inputs, before)


def _widths(env: VectorEnv[Any, Any, Any]) -> tuple[int, ...]:
    """See `PPOInterface.widths`."""
    inner = env.unwrapped
    return inner.training.parts.observer.widths if isinstance(inner, QanVectorEnv) else ()


def _columns(infos: Mapping[str, Any], name: str, device: torch.device) -> dict[str, Tensor]:
    """The numbers (N, k) of every part of an entry, by the part's name; a lone array has the entry's name.

    Raises:
        ValueError: there is no such entry, or it is not numbers.
    """
    if name not in infos:
        there = ", ".join(key for key in infos if not key.startswith("_")) or "nothing"
        raise ValueError(f"privileged={name!r} is not in the infos of the environment's reset; there is {there}")
    entry = infos[name]
    parts = (
        {key: entry[key] for key in sorted(entry) if not key.startswith("_")}
        if isinstance(entry, dict)
        else {name: entry}
    )
    try:
        tensors = {
            key: (value if isinstance(value, Tensor) else torch.from_numpy(np.asarray(value, np.float32))).to(device)
            for key, value in parts.items()
        }
    except (TypeError, ValueError) as error:
        raise ValueError(f"infos[{name!r}] must be an array of numbers or a dict of such arrays: {error}") from error
    return {key: value.float().reshape(len(value), -1) for key, value in tensors.items()}
