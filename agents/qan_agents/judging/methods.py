"""Methods: ways to train with one optimizer, with settings that somebody has to choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from qan_agents.controllers.trainings import Outcomes, Plan, play_schedules
from qan_agents.judging.problems import Trainings
from qan_gym.schedules import SCHEDULES

Float64 = NDArray[np.float64]
Places = NDArray[np.int64]
Settings = Mapping[str, Any]  # name -> a number for all trainings, or (n,)

RATES = {"sgd": (3e-4, 30.0), "adamw": (1e-5, 1.0)}  # wherever a learning rate may be, before anything is known


@dataclass(frozen=True)
class Range:
    """Where a setting is searched for; uniform, or uniform in the logarithm; whole: integers, `high` among them."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def at(self, share: Float64) -> Float64:
        """The values at some shares of the range, 0 to 1."""
        if self.whole:
            return np.floor(self.low + share * (self.high + 1 - self.low))
        if self.log:
            return self.low * (self.high / self.low) ** share
        return self.low + share * (self.high - self.low)


class Method(Protocol):
    """A way to train.

    Attributes:
        optimizer: of the tasks that it trains.
        ranges: where its settings are searched for, before anything is known.
        slow: whether a training takes ten times as long as the environment's.
    """

    @property
    def optimizer(self) -> str: ...

    @property
    def ranges(self) -> dict[str, Range]: ...

    @property
    def slow(self) -> bool: ...

    def play(self, trainings: Trainings, settings: Settings, *, tests: bool) -> Outcomes:
        """Train.

        Args:
            trainings: n of them, on tasks of the optimizer.
            settings: of those of `ranges`.
            tests: whether the test loss is measured too.
        """


def candidates(ranges: Mapping[str, Range], count: int, seed: int) -> dict[str, Float64]:
    """Settings to try, (count,) each: points of low discrepancy, the first ones of more are the same.

    Args:
        ranges: of each setting.
        count: how many.
        seed: of the points.
    """
    points = qmc.Halton(d=max(len(ranges), 1), scramble=True, rng=seed).random(count)
    return {name: one.at(points[:, column]) for column, (name, one) in enumerate(ranges.items())}


def each(setting: Any, count: int) -> Float64:
    """A setting of each of so many trainings, (count,), from one number or from as many."""
    return np.broadcast_to(np.asarray(setting, np.float64), count)


@dataclass(frozen=True)
class Scheduled:
    """A schedule, of a highest learning rate.

    Attributes:
        optimizer: of the tasks.
        schedule: in `SCHEDULES`.
        by_momentum: whether the learning rate is multiplied by 1 - momentum.
    """

    optimizer: str
    schedule: str
    by_momentum: bool = False
    slow: ClassVar[bool] = False

    @property
    def ranges(self) -> dict[str, Range]:
        """The highest learning rate, and what the schedule lets be searched."""
        shape = {name: Range(low, high) for name, (low, high) in self._searched().items() if low < high}
        return {"learning_rate": Range(*RATES[self.optimizer], log=True), **shape}

    def _searched(self) -> dict[str, tuple[float, float]]:
        return SCHEDULES[self.schedule].search

    def play(self, trainings: Trainings, settings: Settings, *, tests: bool) -> Outcomes:
        """See `Method.play`."""
        fixed = {name: low for name, (low, high) in self._searched().items() if low == high}
        shape = {**fixed, **{name: value for name, value in settings.items() if name != "learning_rate"}}
        rates = each(settings["learning_rate"], len(trainings))
        if self.by_momentum:
            rates = rates * (1 - np.array([task.momentum for task in trainings.tasks]))
        plan = Plan(self.schedule, rates, shape)
        return play_schedules(trainings.tasks, trainings.seeds, plan, tests=tests, dataset=trainings.dataset)


def log_losses(method: Method, trainings: Trainings, tried: Mapping[str, Float64]) -> Float64:
    """ln(validation loss), (n, C), of every training with every candidate.

    Args:
        method: that trains.
        trainings: n of them, whose seeds are for all candidates, or n * C, those of the first task first.
        tried: settings, (C,) each, or (n, C).
    """
    count = max((np.shape(values)[-1] for values in tried.values()), default=1)
    wide = repeated(trainings, count)
    n = len(wide) // count
    settings = {name: np.broadcast_to(values, (n, count)).ravel() for name, values in tried.items()}
    outcomes = method.play(wide, settings, tests=False)
    return np.log(outcomes.validation_loss).reshape(n, count)


def repeated(trainings: Trainings, count: int) -> Trainings:
    """Every training `count` times, one after another."""

    def longer(values: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(value for value in values for _ in range(count))

    return Trainings(longer(trainings.tasks), longer(trainings.seeds), trainings.dataset)
