"""Hyperparameters for rl-baselines3-zoo, `dqn.yml` and `ppo.yml`, and the wrapper that they name."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from qan_agents.dqn import features
from qan_gym.core.features import LIMIT
from qan_gym.core.observation import SCORE_LINE
from qan_gym.env import QanEnv


class ScoreLine(gym.ObservationWrapper[NDArray[np.float32], Any, NDArray[np.float32]], RecordConstructorArgs):
    """The features that the preset `quick` reads of a screen, as the observation; see `dqn.features.ScoreLine`."""

    def __init__(self, env: gym.Env[NDArray[np.float32], Any]) -> None:
        """env: one of qan-gym's, with its score line."""
        RecordConstructorArgs.__init__(self)  # so that its spec makes it again
        gym.ObservationWrapper.__init__(self, env)
        inner = env.unwrapped
        assert isinstance(inner, QanEnv)
        rows, columns = inner.screen_shape
        self.features = features.ScoreLine(1, rows, columns, len(SCORE_LINE))
        self.observation_space = spaces.Box(-LIMIT, LIMIT, (self.features.size,), np.float32)

    def observation(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        """(rows * columns,) -> (6,) float32."""
        shown: NDArray[np.float32] = self.features(torch.from_numpy(observation)[None, None])[0].numpy()
        return shown
