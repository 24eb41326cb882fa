"""The bundled PPO: hyperparameters, networks, rounds, updates and training loop, on one device as tensors.

    config = PPOConfig()
    agent = PPO(config, PPOInterface.of(env, config.privileged), device="cuda")
    episodes = train(agent, env, steps=50_000)

plays any vector environment of Gymnasium with a Box of observations and Discrete, MultiDiscrete or Box actions.
"""

from qan_agents.ppo.agent import PPO
from qan_agents.ppo.config import PPOConfig
from qan_agents.ppo.interface import PPOInterface
from qan_agents.ppo.playing import Player
from qan_agents.ppo.training import train

__all__ = ["PPO", "PPOConfig", "PPOInterface", "Player", "train"]
