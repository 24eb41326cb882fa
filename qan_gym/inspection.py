"""What a run of a training can be asked: by the single environment of itself, by a vector environment of each row."""

from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from qan_gym.config import TaskConfig
from qan_gym.core.training import Training
from qan_gym.data.datasets import SPLITS

if TYPE_CHECKING:
    from qan_gym.vector_env import QanVectorEnv


class Inspection:
    """Weights, images and the like of one run; everything is a copy."""

    training: Training
    row: int = 0  # of the run in the training

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """The network's parameters by name, float32, copies."""
        return {name: value.cpu().numpy().copy() for name, value in self.training.network_of(self.row)[1].items()}

    @property
    def episode_length(self) -> int:
        """Actions of an episode that spends its budget; `spec.max_episode_steps` of the single environment."""
        return self.training.parts.episode_length

    @property
    def batch_indices(self) -> NDArray[np.int64]:
        """Indices into the training split of the last action's images, (batches_per_action, batch_size), a copy."""
        return self.training.batch_indices(self.row)

    def split(self, name: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Images as the network sees them, (n, C, H, W) float32, and labels, (n,) int64, copies.

        Args:
            name: "train", "validation" or "test".

        Raises:
            ValueError: there is no such split.
        """
        if name not in SPLITS:
            raise ValueError(f"there is no split {name!r}; there are {', '.join(SPLITS)}")
        images, labels = self.training.data_of(self.row).split(name)
        return images.cpu().numpy(), labels.cpu().numpy().copy()

    @property
    def reference(self) -> dict[str, NDArray[np.float32]] | None:
        """The reference weights, like `weights()`; None where there are none (yet)."""
        if self.training.reference is None or not self.training.run.has_reference[self.row]:
            return None
        return {name: value[self.row].cpu().numpy().copy() for name, value in self.training.reference.items()}


class Row(Inspection):
    """A row of a vector environment, as `get_attr` and `call` see it: what the single environment has, but no step.

    Attributes:
        config, screen_shape, observation_space, action_space, render_mode, metadata, spec: as the single environment's.
    """

    def __init__(self, env: "QanVectorEnv", row: int) -> None:
        """env: not closed; row: from 0."""
        self._env, self.row, self.training = env, row, env.training
        self.config: TaskConfig = env.config
        self.screen_shape = env.screen_shape
        self.observation_space: spaces.Space[Any] = env.single_observation_space
        self.action_space: spaces.Space[Any] = env.single_action_space
        self.render_mode, self.metadata = env.render_mode, env.metadata
        self.spec: EnvSpec | None = env.spec

    @property
    def unwrapped(self) -> "Row":
        """Itself: wrappers go around the vector environment."""
        return self

    @property
    def episode_length(self) -> int:
        """Actions of an episode that spends its budget, or `max_episode_steps` where that is less."""
        return self._env.episode_length

    @property
    def over(self) -> bool:
        """Whether its episode has ended and not begun again."""
        return bool(self._env.over[self.row])

    def render(self) -> Any:
        """Its part of what the vector environment's `render` gives; None without a render mode."""
        return self._env.render_row(self.row)
