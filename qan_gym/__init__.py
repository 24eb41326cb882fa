"""Training a neural network, as a game that reinforcement learning can play.

Importing this package registers the environments and does nothing else: torch is imported when one is made, or when
one of the functions here is used. What plays no game, such as the data and the schedules, needs no Gymnasium.
"""

from importlib import import_module
from typing import Any

from qan_gym.registration import register_envs

__version__ = "0.1.0"

try:
    register_envs()
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "gymnasium":
        raise

# The registries that a user adds to, and what looks ahead, by the module each is in.
_FUNCTIONS = {
    "counterfactual": "qan_gym.counterfactuals",
    "register_dataset": "qan_gym.data.datasets",
    "register_feature": "qan_gym.core.features",
    "register_game": "qan_gym.games",
    "register_network": "qan_gym.optimizee.zoo",
    "register_optimizer": "qan_gym.optimizee.optimizers",
    "register_reward": "qan_gym.core.reward",
    "register_schedule": "qan_gym.schedules",
}

__all__ = ["__version__", "register_envs", *_FUNCTIONS]


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return getattr(import_module(_FUNCTIONS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
