"""The features of the bundled DQN as a features extractor of Stable-Baselines3."""

import gymnasium as gym
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor

from qan_agents.dqn.features import FEATURES
from qan_gym.core.observation import SCORE_LINE


class Extractor(BaseFeaturesExtractor):
    """The first layer of a policy, for stacked screens; `policy_kwargs` names it `features_extractor_class`."""

    def __init__(
        self, space: gym.spaces.Box, features: str, rows: int, columns: int, score_line: int = len(SCORE_LINE)
    ) -> None:
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
