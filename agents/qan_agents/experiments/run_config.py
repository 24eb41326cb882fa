"""The settings of a training run, and what config.json records beside them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue

from qan_agents.seeds import UNSEEN_BELOW


@dataclass(frozen=True)
class RunConfig:
    """The settings of a training run.

    Attributes:
        env: the id of the environment.
        env_kwargs: keyword arguments of the environment.
        agent: the name of one, see `qan_agents.agents`.
        preset: named hyperparameters of the agent.
        episodes: of the run, whether it learns from them or not.
        seed: of the agent and its episodes.
        num_envs: trainings in lock-step, that is episodes of a round.
        test_exploration: where given, every second round is only played, with this share of random actions, as in the
            paper; None: the agent learns from every round.
        evaluation_seeds: of the episodes that the trained agent plays in the end, without exploration; at least one.
        baselines: the fixed policies that it is compared with, the baseline first; None: those of the game.
        agent_kwargs: hyperparameters that differ from the preset's.

    Raises:
        ValueError: a number is out of its range.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    env: str
    env_kwargs: dict[str, Any]
    agent: str
    preset: str
    episodes: int
    seed: int
    num_envs: int = 1
    test_exploration: float | None = None
    evaluation_seeds: Sequence[int] = (0, 1, 2)
    baselines: Sequence[str] | None = None
    agent_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.episodes < 1:
            raise ValueError(f"episodes must be at least 1, not {self.episodes}")
        if self.num_envs < 1 or self.episodes % self.num_envs != 0:
            raise ValueError(
                f"num_envs must divide the number of episodes, {self.episodes}; {self.num_envs} does not: every "
                "environment plays as many"
            )
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, not {self.seed}")
        if self.test_exploration is not None and not 0 <= self.test_exploration <= 1:
            raise ValueError(f"test_exploration must be in [0, 1], not {self.test_exploration}")
        if not self.evaluation_seeds or not all(0 <= seed < UNSEEN_BELOW for seed in self.evaluation_seeds):
            raise ValueError(f"evaluation_seeds must be one or more in [0, 2**31), not {self.evaluation_seeds}")
        if self.baselines is not None and not self.baselines:
            raise ValueError("baselines must name at least one policy, or be None")

    @property
    def title(self) -> str:
        """The heading of pictures and pages."""
        return f"{self.env}, {self.agent} ({self.preset}), seed {self.seed}"

    def trains(self, episode: int) -> bool:
        """Whether the agent learns from an episode, counted from 0."""
        return self.test_exploration is None or episode // self.num_envs % 2 == 0

    @property
    def training_episodes(self) -> int:
        """The number of episodes that the agent learns from."""
        return sum(map(self.trains, range(self.episodes)))


class Settings(BaseModel):
    """All of config.json.

    Attributes:
        run: the settings.
        task: of the environment, see `qan_gym.config.TaskConfig`.
        dataset_fingerprint: SHA-256 of its data.
        episode_length: actions of an episode that spends its budget.
        action_names: of a Discrete action space; empty for the others.
        hyperparameters: of the agent.
        versions: of Python and of the packages that matter, when the run was begun.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    run: RunConfig
    task: dict[str, JsonValue]
    dataset_fingerprint: str
    episode_length: int
    action_names: list[str]
    hyperparameters: dict[str, JsonValue]
    versions: dict[str, str]
