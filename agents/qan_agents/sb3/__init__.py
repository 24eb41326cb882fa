"""The bridge to Stable-Baselines3: vector environments, wrappers, the replay and the feature extractor."""

from qan_agents.sb3.bridge import GymnasiumVecEnv, vec_env

__all__ = ["GymnasiumVecEnv", "vec_env"]
