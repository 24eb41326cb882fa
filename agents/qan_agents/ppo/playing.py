"""Rows that a PPO plays without learning from them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qan_agents.dqn.vector_env import Transitions
from qan_agents.ppo.agent import PPO
from qan_agents.ppo.network import forgotten


class Player:
    """Plays N rows with the likeliest actions of an agent, and a share of random ones."""

    def __init__(self, agent: PPO, random: float = 0.0) -> None:
        """agent: whose policy is followed; random: share of actions that are drawn uniformly from its generator."""
        self.agent, self.random = agent, random

    def begin(self, frames: Tensor, infos: Mapping[str, Any] | None = None) -> None:
        """Begin an episode in every row, with frames (N, D); the infos of the reset are for agents that learn."""
        self.frames = frames
        self.memory = torch.zeros(len(frames), self.agent.config.recurrent, device=self.agent.device)

    def act(self) -> Tensor:
        """Actions in all rows, as `TensorVectorEnv.step` takes them."""
        agent, rows = self.agent, len(self.frames)
        actions, self.memory = agent.choose(self.frames, self.memory)
        if self.random > 0:
            distribution, generator = agent.network.distribution, agent.generator
            other = distribution.played(distribution.random(rows, generator))
            drawn = torch.rand(rows, generator=generator, device=agent.device) < self.random
            actions = torch.where(drawn.view(-1, *[1] * (actions.dim() - 1)), other, actions)
        return actions

    def remember(self, transitions: Transitions) -> None:
        """Go on to the next frames."""
        self.frames = transitions.frames
        self.memory = forgotten(self.memory, transitions.starts)
