"""Fixed policies, behind the one interface through which every agent is played."""

import math
import warnings
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim import lr_scheduler

from qan_gym.config import TaskConfig
from qan_gym.games.learning_rate import CONTINUOUS_FACTOR, KEEP, next_learning_rate

ONE_CYCLE_PEAK = 5  # of the one-cycle schedule, in initial learning rates
STEP_FACTOR = 0.1  # of the step schedule, once, at
STEP_AT = 0.5  # of the budget


class Policy(Protocol):
    """What plays an episode."""

    def start(self, env: gym.Env, seed: int) -> dict[str, Any] | None:
        """Get ready for an episode.

        Args:
            env: the environment, wrapped or not.
            seed: of the episode.

        Returns:
            The options for `env.reset`, or None.

        Raises:
            ValueError: the policy cannot play this environment.
        """

    def act(self, observation: NDArray[Any], info: dict[str, Any]) -> Any:
        """The action for what `reset` or `step` last gave."""


class Scheduled:
    """Follow a schedule of torch's as closely as the actions allow (in the logarithm of the learning rate)."""

    def __init__(self, schedule: str) -> None:
        """schedule: one of SCHEDULES."""
        self.schedule = schedule

    def start(self, env: gym.Env, seed: int) -> None:
        """See `Policy.start`."""
        self.config: TaskConfig = env.unwrapped.config
        if self.config.game != "learning-rate":
            raise ValueError(f"{self.schedule} sets the learning rate, this game does not: play uniform or random")
        self.targets = iter(schedule_rates(self.schedule, self.config, env.unwrapped.episode_length))

    def act(self, observation: NDArray[Any], info: dict[str, Any]) -> Any:
        """See `Policy.act`."""
        target, rate = next(self.targets), info["learning_rate"]
        if self.config.continuous:
            step = math.log(target / rate) / math.log(CONTINUOUS_FACTOR)
            return np.clip([step], -1, 1).astype(np.float32)
        options = next_learning_rate(torch.full((KEEP + 1,), rate).double(), torch.arange(KEEP + 1), self.config)
        distance = (options.log() - math.log(target)).abs()
        return KEEP if distance[KEEP] <= distance.min() else int(distance.argmin())


class Random:
    """Every action alike likely."""

    def start(self, env: gym.Env, seed: int) -> None:
        """See `Policy.start`."""
        env.action_space.seed(seed)
        self.action_space = env.action_space

    def act(self, observation: NDArray[Any], info: dict[str, Any]) -> Any:
        """See `Policy.act`."""
        return self.action_space.sample()


class Uniform:
    """The mini-batch game's shuffled SGD: the data in random order, the roulette set aside."""

    def start(self, env: gym.Env, seed: int) -> dict[str, Any]:
        """See `Policy.start`."""
        if env.unwrapped.config.game != "minibatch":
            raise ValueError("uniform plays the mini-batch game; the learning-rate game is shuffled SGD: play constant")
        return {"sampler": "shuffled"}

    def act(self, observation: NDArray[Any], info: dict[str, Any]) -> Any:
        """See `Policy.act`."""
        return 0


def schedule_rates(schedule: str, config: TaskConfig, decisions: int) -> list[float]:
    """The learning rate that a schedule wants at each decision, within the game's range.

    Args:
        schedule: one of SCHEDULES.
        config: the game; its learning rate is the schedule's.
        decisions: of an episode.

    Raises:
        ValueError: there is no such schedule.
    """
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=config.learning_rate)
    end = config.learning_rate_min / config.learning_rate
    last = max(decisions - 1, 1)
    scheduler: lr_scheduler.LRScheduler
    match schedule:
        case "constant":
            scheduler = lr_scheduler.ConstantLR(optimizer, factor=1.0)
        case "step":
            scheduler = lr_scheduler.StepLR(optimizer, max(round(decisions * STEP_AT), 1), STEP_FACTOR)
        case "linear":
            scheduler = lr_scheduler.LinearLR(optimizer, 1.0, end, last)
        case "cosine":
            scheduler = lr_scheduler.CosineAnnealingLR(optimizer, last, config.learning_rate_min)
        case "one-cycle":
            peak = ONE_CYCLE_PEAK * config.learning_rate
            scheduler = lr_scheduler.OneCycleLR(optimizer, peak, total_steps=decisions + 1, cycle_momentum=False)
        case _:
            raise ValueError(f"unknown schedule {schedule!r}; there are {', '.join(SCHEDULES)}")
    rates = []
    with warnings.catch_warnings():  # the scheduler is used alone, so there is no optimizer.step() for it to find
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
        for _ in range(decisions):
            rates.append(min(max(scheduler.get_last_lr()[0], config.learning_rate_min), config.learning_rate_max))
            scheduler.step()
    return rates


SCHEDULES = ("constant", "step", "cosine", "one-cycle", "linear")
FIXED_POLICIES = (*SCHEDULES, "random", "uniform")


def make_policy(name: str) -> Policy:
    """A fixed policy by its name.

    Raises:
        ValueError: there is none of that name.
    """
    if name in SCHEDULES:
        return Scheduled(name)
    if name == "random":
        return Random()
    if name == "uniform":
        return Uniform()
    raise ValueError(f"unknown policy {name!r}; there are {', '.join(FIXED_POLICIES)}")
