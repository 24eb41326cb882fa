"""The settings of a meta-training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qan_agents.controllers.controller import FAMILY
from qan_agents.controllers.learners import LEARNERS
from qan_gym.config import TaskConfig
from qan_gym.families.factory import FAMILIES, family_config
from qan_gym.families.source import TaskSource
from qan_gym.utils.validation import check_settings, integer, registered, setting


@dataclass(frozen=True)
class MetaConfig:
    """The settings of a meta-training; a round is a training of a task in every row, and the updates after it.

    Attributes:
        env_kwargs: keyword arguments of the family's environment: networks, optimizers, observation, schedule, ...
        agent_kwargs: hyperparameters that differ from those of meta-training.
        start: of the meta-training whose networks the agent begins with, the provenance; empty: none.

    Raises:
        ValueError: a value is out of its range; the message names the field, the range and the value.
    """

    family: str = setting(FAMILY, registered(FAMILIES), "the id of the environment")
    agent: str = setting("ppo", registered(LEARNERS), "that learns")
    rounds: int = setting(100, integer(at_least=1), "of the whole meta-training")
    rows: int = setting(192, integer(at_least=1), "trainings of a round")
    group: int = setting(
        1,
        integer(at_least=1),
        "rows that train the same task from the same weights; PPO learns from advantages minus the mean of their group",
    )
    seed: int = setting(0, integer(at_least=0), "of the agent, and of the tasks and trainings that it sees")
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    agent_kwargs: dict[str, Any] = field(default_factory=dict)
    start: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check."""
        check_settings(self)
        if self.env_kwargs.get("split", "train") != "train":
            raise ValueError("split must be train: the tasks of the other split are for judging")
        LEARNERS[self.agent].hyperparameters(self)

    @property
    def all_env_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the environment, those that the agent needs among them."""
        return {**LEARNERS[self.agent].env_kwargs, **self.env_kwargs}

    def family_config(self) -> tuple[TaskConfig, TaskSource[Any]]:
        """The configuration of the environment, and where its tasks come from.

        Raises:
            ValueError: a keyword argument of the environment is wrong.
        """
        return family_config(self.family, self.all_env_kwargs)

    @property
    def decisions(self) -> int:
        """Actions of an episode."""
        return FAMILIES[self.family].record.DECISIONS

    @property
    def trainings(self) -> int:
        """Of the whole meta-training."""
        return self.rounds * self.rows
