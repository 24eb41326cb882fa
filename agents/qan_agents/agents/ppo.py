"""The bundled PPO as the agent of a run, on the device of its environment: a CPU or a CUDA device."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from qan_agents.agents.dqn_native import RoundRecord
from qan_agents.dqn.training import SHOW_EVERY
from qan_agents.dqn.vector_env import TensorVectorEnv
from qan_agents.experiments.agent import Agent, AgentSpec, Progress, register_agent
from qan_agents.policies.rollout import Episode, recorded_names
from qan_agents.ppo.agent import PPO
from qan_agents.ppo.interface import PPOInterface
from qan_agents.ppo.playing import Player
from qan_agents.ppo.presets import PRESETS, make_ppo_config
from qan_gym.utils.own_settings import in_own_settings
from qan_gym.vector_env import QanVectorEnv


class BundledPPO(Agent):
    """The bundled PPO. The steps that a round of episodes leaves over are learned from in the next one.

    Attributes:
        agent: the PPO itself.
        device: of its environment.
    """

    presets = tuple(PRESETS)
    model_suffix = ".safetensors"

    def __init__(self, spec: AgentSpec) -> None:
        """See `Agent.__init__`."""
        mode = AutoresetMode.NEXT_STEP
        env = gym.make_vec(spec.env, num_envs=spec.num_envs, output="torch", autoreset_mode=mode, **spec.env_kwargs)
        assert isinstance(env.unwrapped, QanVectorEnv)
        self.env = env.unwrapped
        self.training = self.env.training
        steps, score_line = spec.episodes * self.facts.episode_length, self.env.config.observation == "screen"
        config = make_ppo_config(spec.preset, steps, spec.hyperparameters, score_line)
        if spec.learns:
            config.check_rows(spec.num_envs)
        self.device, self.interface = self.training.device, PPOInterface.of(env, config.privileged)
        self.agent, self.settings = PPO(config, self.interface, str(self.device), spec.seed), asdict(config)
        self.tensor_env, self.own_settings = TensorVectorEnv(env, self.device), self.agent.own_settings

    @classmethod
    def check(cls, preset: str, hyperparameters: dict[str, Any]) -> None:
        """See `Agent.check`."""
        make_ppo_config(preset, 1, hyperparameters)

    # --- learning ---------------------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """See `Agent.steps`."""
        return self.agent.steps

    @in_own_settings
    def play_round(
        self, seeds: Sequence[int], exploration: float | None, show: Callable[[Progress], None]
    ) -> list[Episode]:
        """See `Agent.play_round`."""
        agent, tensor_env = self.agent, self.tensor_env
        agent.generator.manual_seed(seeds[0])
        frames = tensor_env.reset(list(seeds))
        player = agent if exploration is None else Player(agent, exploration)
        player.begin(frames, tensor_env.infos)
        actions = player.act()
        names = recorded_names(self.training.parts.game.hyperparameters)
        record = RoundRecord(frames, actions, self.facts.episode_length, names)
        over, shown = self.env.over, 0.0
        while True:
            transitions = tensor_env.step(actions)
            some_ended = bool(self.env.over.any())
            # What rows play while they wait for the others is not learned from.
            player.remember(transitions._replace(valid=record.add(actions, transitions, some_ended)))
            if exploration is None:
                agent.learn()
            over |= self.env.over
            if over.all():
                return record.episodes()
            actions = player.act()
            if time.perf_counter() - shown > SHOW_EVERY:
                shown = time.perf_counter()
                accuracy = float(transitions.infos["validation_accuracy"].mean())
                show(Progress(agent.steps, accuracy, self.metrics()))

    def metrics(self) -> dict[str, float]:
        """See `PPO.metrics`."""
        return self.agent.metrics()

    def policy(self) -> "PPOPolicy":
        """See `Agent.policy`."""
        return PPOPolicy(self.agent)

    # --- files ------------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """See `Agent.save`."""
        self.agent.save(path)

    def load(self, path: Path) -> None:
        """See `Agent.load`."""
        agent = PPO.load(path, str(self.device))
        if agent.interface != self.interface:
            raise ValueError(f"{path}: is of an agent for {agent.interface}, not for {self.interface}")
        self.agent, self.settings = agent, asdict(agent.config)

    def close(self) -> None:
        """See `Agent.close`."""
        self.env.close()


class PPOPolicy:
    """A `Policy` that plays the likeliest actions of a PPO."""

    def __init__(self, agent: PPO) -> None:
        """agent: whose policy is followed."""
        self.agent = agent

    def start(self, env: gym.Env[Any, Any], seed: int) -> None:
        """See `Policy.start`."""
        self.memory: torch.Tensor | None = None
        self.space = env.action_space
        self.first = np.asarray(getattr(env.action_space, "start", 0))

    def act(self, observation: NDArray[Any], info: dict[str, Any]) -> Any:
        """See `Policy.act`; observation: (1, D)."""
        frames = torch.as_tensor(np.asarray(observation), device=self.agent.device).reshape(1, -1)
        actions, self.memory = self.agent.choose(frames, self.memory)
        action = actions[0].cpu().numpy().reshape(self.space.shape or ()) + self.first
        return action.astype(self.space.dtype) if action.ndim else action.item()


register_agent("ppo", BundledPPO)
