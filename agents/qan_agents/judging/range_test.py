"""One-cycle with the learning rate that a range test finds (Smith 2015, arXiv:1506.01186; 1708.07120)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import numpy as np

from qan_agents.controllers.trainings import Float64, Outcomes, Rule, play_rules
from qan_agents.judging.methods import RATES, Places, Range, Scheduled, Settings, each
from qan_agents.judging.problems import RANGE_TEST, Trainings, tuning_seed
from qan_gym.families.task import DECISIONS, Task

BATCHES = 4  # of each of the 25 learning rates of a range test
SMOOTHING = 1 / 3  # weight of a loss in the running mean


class Rising:
    """The rule of a range test: the learning rate grows by one factor at each decision; it keeps the losses."""

    def __init__(self, optimizer: str, count: int) -> None:
        """Of so many trainings."""
        self.rates = np.geomspace(*RATES[optimizer], DECISIONS)
        self.losses: list[Float64] = []  # (count,) before each decision
        self.count = count

    def __call__(self, losses: Float64) -> Float64:
        """See `Rule`."""
        self.losses.append(losses)
        return np.full(self.count, self.rates[len(self.losses) - 1])


@lru_cache(maxsize=4096)
def found_rates(tasks: tuple[Task, ...], dataset: str) -> tuple[float, ...]:
    """The learning rate of the lowest smoothed loss in a short training on each of some tasks of one optimizer."""
    short = [replace(task, batches_per_action=BATCHES) for task in tasks]
    rules: list[tuple[Places, Rising]] = []

    def begin(places: Places) -> Rule:
        rules.append((places, Rising(tasks[0].optimizer, len(places))))
        return rules[-1][1]

    seeds = [tuning_seed(task, RANGE_TEST) for task in tasks]
    play_rules(short, seeds, begin, dataset=dataset)
    found = np.empty(len(tasks))
    for places, rule in rules:
        # The loss that is seen before a decision belongs to the rate before it; that of the last rate is not seen.
        losses = np.stack([*rule.losses[1:], np.full(len(places), np.nan)], axis=1)  # (B, 25)
        found[places] = rule.rates[smoothed(losses).argmin(axis=1)]
    return tuple(found.tolist())


def smoothed(losses: Float64) -> Float64:
    """Running means of losses (B, T), infinite from the first that is not finite on."""
    means, mean = np.empty_like(losses), losses[:, 0]
    with np.errstate(invalid="ignore"):
        for number, loss in enumerate(losses.T):
            mean = mean + SMOOTHING * (loss - mean)
            means[:, number] = mean
    return np.where(np.isfinite(means), means, np.inf)


@dataclass(frozen=True)
class RangeTest:
    """One-cycle; its highest learning rate is a factor times that which the range test finds."""

    optimizer: str
    slow: ClassVar[bool] = False

    @property
    def ranges(self) -> dict[str, Range]:
        """The factor, and the place of the highest learning rate."""
        return {"factor": Range(0.01, 1.0, log=True), "start": Scheduled(self.optimizer, "one-cycle").ranges["start"]}

    def play(self, trainings: Trainings, settings: Settings, *, tests: bool) -> Outcomes:
        """See `Method.play`."""
        tasks = tuple(dict.fromkeys(trainings.tasks))
        found = dict(zip(tasks, found_rates(tasks, trainings.dataset), strict=True))
        rates = each(settings["factor"], len(trainings)) * [found[task] for task in trainings.tasks]
        one_cycle = Scheduled(self.optimizer, "one-cycle")
        return one_cycle.play(trainings, {"learning_rate": rates, "start": settings["start"]}, tests=tests)
