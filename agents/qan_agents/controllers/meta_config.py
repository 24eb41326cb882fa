"""The settings of a meta-training."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from qan_agents.controllers.controller import FAMILY
from qan_agents.ppo.config import PPOConfig
from qan_gym.families.task import DECISIONS
from qan_gym.utils.validation import check_settings, exactly, integer, setting

HYPERPARAMETERS = {  # of the bundled PPO, where meta-training has its own
    "hidden": (32, 32),
    "initial_log_std": math.log(0.2),
    "learn_std": False,
    "final_log_std": math.log(0.05),
    "gamma": 1.0,
    "gae_lambda": 0.97,
    "epochs": 5,
    "target_kl": 0.03,
    "learning_rate": 1e-3,
    "privileged": "task",
    "steps_per_round": DECISIONS,
}


@dataclass(frozen=True)
class MetaConfig:
    """The settings of a meta-training; a round is a training of a task in every row, and the updates after it.

    Attributes:
        env_kwargs: keyword arguments of the family's environment: networks, optimizers, observation, schedule, ...
        agent_kwargs: hyperparameters that differ from those of meta-training.

    Raises:
        ValueError: a value is out of its range; the message names the field, the range and the value.
    """

    family: str = setting(FAMILY, exactly(FAMILY), "the id of the environment")
    agent: str = setting("ppo", exactly("ppo"), "that learns")
    rounds: int = setting(100, integer(at_least=1), "of the whole meta-training")
    rows: int = setting(192, integer(at_least=1), "trainings of a round")
    seed: int = setting(0, integer(at_least=0), "of the agent, and of the tasks and trainings that it sees")
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    agent_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check."""
        check_settings(self)
        if self.env_kwargs.get("split", "train") != "train":
            raise ValueError("split must be train: the tasks of the other split are for judging")
        self.hyperparameters()

    @property
    def trainings(self) -> int:
        """Of the whole meta-training."""
        return self.rounds * self.rows

    def hyperparameters(self) -> PPOConfig:
        """Of the agent.

        Raises:
            ValueError: one is unknown or out of its range.
        """
        settings = {**asdict(PPOConfig()), **HYPERPARAMETERS, "anneal_steps": self.trainings * DECISIONS}
        if unknown := self.agent_kwargs.keys() - settings.keys():
            raise ValueError(f"unknown hyperparameters: {', '.join(sorted(unknown))}; there are {', '.join(settings)}")
        config = PPOConfig(**{**settings, **self.agent_kwargs})
        if config.steps_per_round != DECISIONS:
            raise ValueError(f"steps_per_round must be {DECISIONS}, the actions of an episode")
        config.check_rows(self.rows)
        return config
