"""The bundled DQN: hyperparameters, network, replay, updates and training loop, on one device as tensors.

    agent = DQN(DQNConfig(), EnvInterface.of(env), device="cuda")
    episodes = train(agent, env, steps=50_000)

plays any vector environment of Gymnasium with a Box of observations and Discrete actions.
"""

from qan_agents.dqn.agent import DQN
from qan_agents.dqn.config import DQNConfig, EnsembleConfig
from qan_agents.dqn.ensemble import Ensemble
from qan_agents.dqn.presets import PRESETS, make_dqn_config, make_ensemble_config
from qan_agents.dqn.training import FinishedEpisode, train
from qan_agents.dqn.vector_env import BudgetEndTerminates, EnvInterface, TensorVectorEnv, Transitions

__all__ = [
    "DQN",
    "PRESETS",
    "BudgetEndTerminates",
    "DQNConfig",
    "Ensemble",
    "EnsembleConfig",
    "EnvInterface",
    "FinishedEpisode",
    "TensorVectorEnv",
    "Transitions",
    "make_dqn_config",
    "make_ensemble_config",
    "train",
]
