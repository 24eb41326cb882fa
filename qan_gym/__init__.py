"""Training a neural network, as a game that reinforcement learning can play.

Importing this package registers the environments and does nothing else: torch is imported when one is made.
"""

from qan_gym.registration import register_envs

__version__ = "0.1.0"

register_envs()

__all__ = ["__version__", "register_envs"]
