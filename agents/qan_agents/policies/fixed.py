"""Fixed policies: schedules, rules for classes, random actions, shuffled SGD, behind the interface of all policies."""

from copy import deepcopy
from typing import Any, Protocol, cast

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from qan_agents.policies.class_rules import RULES, RulePolicy
from qan_gym.config import TaskConfig
from qan_gym.env import QanEnv
from qan_gym.games import game_of
from qan_gym.schedules import SCHEDULES
from qan_gym.utils.arrays import NUMPY
from qan_gym.utils.names import unknown_name


class Policy(Protocol):
    """What plays an episode."""

    def start(self, env: gym.Env[Any, Any], seed: int) -> dict[str, Any] | None:
        """Get ready for an episode.

        Args:
            env: the environment, wrapped or not; in a vector environment the row that is played, see
                `qan_gym.inspection.Row`, which has all of it but `reset` and `step`.
            seed: of the episode.

        Returns:
            The options for `env.reset`, or None.

        Raises:
            ValueError: the policy cannot play this environment.
        """

    def act(self, observation: NDArray[Any], info: dict[str, Any]) -> Any:
        """The action that follows what `reset` or `step` last returned."""


class ScheduledPolicy:
    """Nobody acts on the base schedule of that name.

    On a constant base schedule, where the actions set the learning rate, it keeps that as near to the schedule as they
    allow (in the logarithm).
    """

    def __init__(self, schedule: str) -> None:
        """schedule: a registered name."""
        self.schedule = schedule

    def start(self, env: gym.Env[Any, Any], seed: int) -> None:
        """See `Policy.start`."""
        game_env = cast(QanEnv, env.unwrapped)
        self.config, self.game = game_env.config, game_env.training.parts.game
        self.no_op = self.game.no_op(self.config)
        self.is_base = self.config.schedule == self.schedule and self.no_op is not None
        if not self.is_base:
            self._check()
            self.targets = iter(scheduled_rates(self.schedule, self.config, game_env.episode_length))

    def _check(self) -> None:
        """Refuse an environment whose learning rate would not be that of the schedule.

        Raises:
            ValueError: what to do instead.
        """
        base, game = self.config.schedule, self.config.game
        if "learning_rate" not in self.game.hyperparameters:
            raise ValueError(
                f"{self.schedule} sets the learning rate, and the actions of the game {game!r} do not: "
                f"play {' or '.join(self.game.baselines)}"
                + ("" if self.no_op is None else f", or make its environment with schedule={self.schedule!r}")
            )
        if base != "constant":
            raise ValueError(
                f"{self.schedule} sets the learning rate itself, and the base schedule {base!r} would multiply it: "
                "make its environment with schedule='constant'"
            )

    def act(self, observation: NDArray[Any], info: dict[str, Any]) -> Any:
        """See `Policy.act`."""
        if self.is_base:
            return self.no_op
        target, rate = next(self.targets), info["learning_rate"]
        if rate == target and self.no_op is not None:
            return self.no_op
        return self.game.action_towards(self.config, rate, target)


class RandomPolicy:
    """Actions drawn uniformly."""

    def start(self, env: gym.Env[Any, Any], seed: int) -> None:
        """See `Policy.start`."""
        self.action_space = deepcopy(env.action_space)  # which the rows of a vector environment share
        self.action_space.seed(seed)

    def act(self, observation: NDArray[Any], info: dict[str, Any]) -> Any:
        """See `Policy.act`."""
        return self.action_space.sample()


class UniformPolicy:
    """Shuffled SGD in games that choose the classes of the mini-batches: the data in random order."""

    def start(self, env: gym.Env[Any, Any], seed: int) -> dict[str, Any]:
        """See `Policy.start`."""
        game_env = cast(QanEnv, env.unwrapped)
        config = game_env.config
        if game_env.training.shuffled:
            raise ValueError(
                f"uniform plays games that choose classes; the game {config.game!r} is shuffled SGD: play constant"
            )
        space = game_env.action_space
        self.any_action = np.zeros(space.shape or (), space.dtype)
        return {"sampler": "shuffled"}

    def act(self, observation: NDArray[Any], info: dict[str, Any]) -> Any:
        """See `Policy.act`; any action, as it is ignored."""
        return self.any_action


def scheduled_rates(schedule: str, config: TaskConfig, length: int) -> list[float]:
    """The learning rate of a schedule at each of the `length` actions of an episode, within the range of the game.

    Args:
        schedule: a registered name, with its default settings.
        config: of the task; its learning rate is the one that the schedule changes.
        length: actions of the episode.

    Raises:
        ValueError: there is no such schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(unknown_name("schedule", schedule, SCHEDULES))
    share = np.arange(length) / length
    rates = SCHEDULES[schedule].rate(NUMPY, np.full(length, config.learning_rate), share)
    return [float(rate) for rate in np.clip(rates, config.learning_rate_min, config.learning_rate_max)]


def fixed_env_kwargs(name: str, config: TaskConfig) -> dict[str, Any]:
    """Keyword arguments of the environment that a fixed policy plays, in the place of those of the task.

    A schedule is the base schedule, and nobody acts: so it is followed at every mini-batch, however coarse the actions
    are. Where every action changes something, it is followed by actions, on a constant base schedule, since another one
    would multiply what they set. A rule for classes sets their shares, and sees the losses of the classes; that which
    nobody acting is plays the game itself.

    Args:
        name: of the policy.
        config: of the task.
    """
    if name in RULES and config.replacement and name != game_of(config).base:
        return {"game": "minibatch", "continuous": True, "observation": "classes"}
    if name not in SCHEDULES:
        return {}
    return {"schedule": "constant" if game_of(config).no_op(config) is None else name}


def fixed_policies() -> list[str]:
    """The names of all fixed policies there are now."""
    return [*SCHEDULES, *RULES, "random", "uniform"]


def make_policy(name: str) -> Policy:
    """A fixed policy by its name.

    Raises:
        ValueError: there is none of that name.
    """
    if name in SCHEDULES:
        return ScheduledPolicy(name)
    if name in RULES:
        return RulePolicy(RULES[name])
    if name == "random":
        return RandomPolicy()
    if name == "uniform":
        return UniformPolicy()
    raise ValueError(unknown_name("policy", name, fixed_policies()))
