"""The features of the bundled DQN as a features extractor of Stable-Baselines3."""

from typing import Any

import gymnasium as gym
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor

from qan_agents.dqn.features import FEATURES
from qan_agents.dqn.vector_env import screen_of
from qan_gym.vector_env import QanVectorEnv


class Extractor(BaseFeaturesExtractor):
    """The first layer of a policy that sees stacked screens; see `extractor_arguments`."""

    def __init__(self, space: gym.spaces.Box, features: str, rows: int, columns: int, score_line: int) -> None:
        """Build the layer.

        Args:
            space: of the observations, (history, rows * columns).
            features: one of `qan_agents.dqn.features.FEATURES`.
            rows: of a screen.
            columns: of a screen.
            score_line: numbers on the score line.
        """
        layers = FEATURES[features](space.shape[0], rows, columns, score_line)
        super().__init__(space, features_dim=layers.size)
        self.layers = layers

    def forward(self, observations: Tensor) -> Tensor:
        """(B, history, rows * columns) -> (B, features_dim)."""
        features: Tensor = self.layers(observations)
        return features


def extractor_arguments(env: QanVectorEnv, features: str) -> dict[str, Any]:
    """The part of `policy_kwargs` that makes an algorithm of SB3 read features of an environment's screen.

    Args:
        env: what the algorithm plays, through `GymnasiumVecEnv` and `StackHistory`.
        features: one of `qan_agents.dqn.features.FEATURES`.
    """
    (rows, columns), score_line = screen_of(env)
    return {
        "features_extractor_class": Extractor,
        "features_extractor_kwargs": {
            "features": features,
            "rows": rows,
            "columns": columns,
            "score_line": score_line,
        },
    }
