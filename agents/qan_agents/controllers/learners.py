"""The agents that meta-training makes controllers of: what each plays, learns with, and becomes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qan_agents.dqn.agent import DQN
from qan_agents.dqn.config import DQNConfig
from qan_agents.dqn.presets import overridden
from qan_agents.dqn.vector_env import EnvInterface, Transitions
from qan_agents.ppo.agent import PPO
from qan_agents.ppo.config import PPOConfig
from qan_agents.ppo.interface import PPOInterface
from qan_gym.config import TaskConfig
from qan_gym.games import game_of
from qan_gym.games.learning_rate import CONTINUOUS_FACTOR
from qan_gym.tasks import TASKS
from qan_gym.vector_env import QanVectorEnv

if TYPE_CHECKING:
    from qan_agents.controllers.meta_config import MetaConfig

FACTORS = (1 / 12, 1 / 3, 1.0, 3.0, 12.0)  # of the learning rate, the actions of the DQN

Weights = dict[str, NDArray[Any]]


class Learner(ABC):
    """An agent in meta-training.

    Attributes:
        env_kwargs: keyword arguments of the environment that it needs, unless others are given.
        agent: it.
    """

    env_kwargs: ClassVar[dict[str, Any]] = {}
    agent: PPO | DQN

    @staticmethod
    @abstractmethod
    def hyperparameters(config: MetaConfig) -> PPOConfig | DQNConfig:
        """Those of meta-training, with what the settings say otherwise.

        Raises:
            ValueError: one is unknown or out of its range.
        """

    @abstractmethod
    def __init__(self, config: MetaConfig, env: QanVectorEnv) -> None:
        """A fresh agent."""

    @abstractmethod
    def begin(self, frames: Tensor, infos: Mapping[str, Any]) -> None:
        """Begin an episode in every row."""

    @abstractmethod
    def restore(self, state: Path) -> None:
        """Go on from a file that `save` wrote.

        Raises:
            ValueError: it is damaged, or of other settings.
        """

    @abstractmethod
    def begin_with(self, state: Path) -> None:
        """Take over the networks from a file that `save` wrote in another meta-training.

        Raises:
            ValueError: it is damaged, or of an agent that sees or does something else.
        """

    @abstractmethod
    def save(self, path: Path, **facts: Any) -> None:
        """Write everything that the next round needs, and facts, to one file, atomically."""

    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """Numbers of the last round."""

    @abstractmethod
    def weights(self) -> Weights:
        """The weights of the policy as a `Controller` has them."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Fields of `ControllerSettings` that the agent decides."""

    def act(self) -> Tensor:
        """Actions in all rows."""
        return self.agent.act()

    def remember(self, transitions: Transitions) -> None:
        """Keep a step."""
        self.agent.remember(transitions)

    def learn(self) -> None:
        """Count a step, and do the updates that are due."""
        self.agent.learn()

    def _adopt(self, loaded: Any, state: Path) -> None:
        if loaded.interface != self.agent.interface or loaded.config != self.agent.config:
            raise ValueError(f"{state}: is of an agent with other settings than those in config.json beside it")
        self.agent = loaded


class PPOLearner(Learner):
    """The bundled PPO; its value network also sees the parameters of the task."""

    env_kwargs: ClassVar[dict[str, Any]] = {"continuous": True}
    agent: PPO

    @staticmethod
    def hyperparameters(config: MetaConfig) -> PPOConfig:
        """See `Learner.hyperparameters`."""
        _, source = config.family_config()
        chooses_classes = source.most_images > 0
        own = {
            "hidden": (32, 32),
            "recurrent": 0 if chooses_classes else 32,
            "initial_log_std": math.log(0.2),
            "learn_std": False,
            "final_log_std": math.log(0.05),
            "gamma": 1.0,
            "gae_lambda": 1.0,  # the noise of a return over so few steps is small; values would bias it
            "epochs": 5,
            "minibatches": min(PPOConfig().minibatches, config.rows),  # each has whole rows
            "target_kl": 0.03,
            "learning_rate": 1e-3,
            "privileged": "task",
            "by_class": chooses_classes,
            "steps_per_round": config.decisions,
            "anneal_steps": config.trainings * config.decisions,
            "group": config.group,
        }
        settings = PPOConfig(**overridden({**asdict(PPOConfig()), **own}, config.agent_kwargs))
        for name, value, what in (
            ("steps_per_round", config.decisions, "the actions of an episode"),
            ("group", config.group, "that of the meta-training"),
        ):
            if getattr(settings, name) != value:
                raise ValueError(f"{name} must be {value}, {what}")
        settings.check_rows(config.rows)
        return settings

    def __init__(self, config: MetaConfig, env: QanVectorEnv) -> None:
        """See `Learner.__init__`."""
        hyperparameters = self.hyperparameters(config)
        interface = PPOInterface.of(env, hyperparameters.privileged)
        self.agent = PPO(hyperparameters, interface, seed=config.seed)

    def begin(self, frames: Tensor, infos: Mapping[str, Any]) -> None:
        """See `Learner.begin`."""
        self.agent.begin(frames, infos)

    def restore(self, state: Path) -> None:
        """See `Learner.restore`."""
        self._adopt(PPO.load(state), state)

    def begin_with(self, state: Path) -> None:
        """See `Learner.begin_with`."""
        self.agent.begin_with(PPO.load(state))

    def save(self, path: Path, **facts: Any) -> None:
        """See `Learner.save`."""
        self.agent.save(path, **facts)

    def metrics(self) -> dict[str, float]:
        """See `PPO.metrics`; deviation: of the actions, the box being [-1, 1]."""
        log_std: Any = self.agent.network.distribution.log_std
        return self.agent.metrics() | {"deviation": float(log_std.detach().exp().mean())}

    def weights(self) -> Weights:
        """See `Learner.weights`."""
        policy, norm = self.agent.network.policy, self.agent.network.observation_norm
        mean, deviation = torch.zeros_like(norm.mean), torch.ones_like(norm.mean)
        if self.agent.config.normalise_observations:
            mean, deviation = norm.mean, (norm.square / norm.count.clamp(min=1) + 1e-8).sqrt()
        weights = {"mean": mean, "deviation": deviation} | layers_of(policy.layers, policy.head)
        if policy.gru is not None:
            gru = policy.gru
            weights |= {"gru_input": gru.weight_ih, "gru_input_bias": gru.bias_ih}
            weights |= {"gru_memory": gru.weight_hh, "gru_memory_bias": gru.bias_hh}
        return arrays_of(weights)

    def settings(self) -> dict[str, Any]:
        """See `Learner.settings`."""
        config = self.agent.config
        return {"activation": config.activation, "clip": config.observation_clip, "by_class": config.by_class}


class DQNLearner(Learner):
    """The bundled DQN: double, with returns over many steps, five actions."""

    env_kwargs: ClassVar[dict[str, Any]] = {"continuous": False, "learning_rate_factors": list(FACTORS)}
    agent: DQN

    @staticmethod
    def hyperparameters(config: MetaConfig) -> DQNConfig:
        """See `Learner.hyperparameters`."""
        if config.group > 1:
            raise ValueError("group must be 1: the DQN learns the values of actions, not differences between rows")
        if not sets_learning_rate(TASKS[config.family]):
            raise ValueError(
                f"agent must be ppo: the DQN chooses among factors of the learning rate, which the actions of "
                f"{config.family} do not set"
            )
        steps = config.trainings * config.decisions
        own = {
            "hidden": (64, 64),
            "double": True,
            "gamma": 1.0,
            "n_step": 5,
            "learning_rate": 5e-4,
            "batch_size": 256,
            "update_every": 64,
            "tau": 0.01,
            "target_update_interval": 1,
            "learning_starts": min(10_000, steps // 5),
            "buffer_size": 100_000,
            "exploration_steps": max(1, steps // 2),
        }
        settings = DQNConfig(**overridden({**asdict(DQNConfig()), **own}, config.agent_kwargs))
        simple = {"history": 1, "layer_norm": False, "dueling": False, "quantiles": 1}
        if wrong := [name for name, value in simple.items() if getattr(settings, name) != value]:
            raise ValueError(f"a controller is a plain network: leave out {', '.join(wrong)}")
        return settings

    def __init__(self, config: MetaConfig, env: QanVectorEnv) -> None:
        """See `Learner.__init__`."""
        self.choices = choices_of(env.config)
        self.agent = DQN(self.hyperparameters(config), EnvInterface.of(env), seed=config.seed)

    def begin(self, frames: Tensor, infos: Mapping[str, Any]) -> None:
        """See `Learner.begin`."""
        self.agent.begin(frames)

    def restore(self, state: Path) -> None:
        """See `Learner.restore`."""
        self._adopt(DQN.load(state), state)

    def begin_with(self, state: Path) -> None:
        """See `Learner.begin_with`."""
        raise ValueError("agent must be ppo to start from another meta-training: the DQN begins with random actions")

    def save(self, path: Path, **facts: Any) -> None:
        """See `Learner.save`."""
        self.agent.save(path, with_replay=True, **facts)

    def metrics(self) -> dict[str, float]:
        """epsilon: the share of random actions."""
        return {"epsilon": self.agent.exploration}

    def weights(self) -> Weights:
        """See `Learner.weights`."""
        size = self.agent.interface.frame_size
        return arrays_of(
            {"mean": torch.zeros(size), "deviation": torch.ones(size)} | layers_of(self.agent.network.advantage)
        )

    def settings(self) -> dict[str, Any]:
        """See `Learner.settings`."""
        return {"activation": "relu", "choices": self.choices}


LEARNERS: dict[str, type[Learner]] = {"ppo": PPOLearner, "dqn-native": DQNLearner}


def sets_learning_rate(config: TaskConfig) -> bool:
    """Whether the actions of a game do."""
    return "learning_rate" in game_of(config).hyperparameters


def factors_of(config: TaskConfig) -> tuple[float, ...]:
    """By which one action may multiply the learning rate: those of a Discrete space; of a Box the largest."""
    return config.learning_rate_factors or (config.learning_rate_factor or CONTINUOUS_FACTOR,)


def largest_factor(config: TaskConfig) -> float:
    """By which one action may multiply or divide the learning rate."""
    return math.exp(max(abs(math.log(factor)) for factor in factors_of(config)))


def choices_of(config: TaskConfig) -> tuple[float, ...]:
    """The actions in [-1, 1], exponents of the largest factor, that discrete ones stand for."""
    return tuple(math.log(factor) / math.log(largest_factor(config)) for factor in factors_of(config))


def layers_of(*modules: nn.Module) -> dict[str, Tensor]:
    """Weights and biases of the linear layers in some modules, in order."""
    layers = [layer for module in modules for layer in module.modules() if isinstance(layer, nn.Linear)]
    weights = {f"weight{number}": layer.weight for number, layer in enumerate(layers)}
    return weights | {f"bias{number}": layer.bias for number, layer in enumerate(layers)}


def arrays_of(tensors: Mapping[str, Tensor]) -> Weights:
    """As float32 arrays."""
    return {name: np.asarray(tensor.detach().numpy(), np.float32) for name, tensor in tensors.items()}
