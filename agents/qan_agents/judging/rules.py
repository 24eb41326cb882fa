"""Rules that set the learning rate from the training loss: torch's reduce on plateau, and GreedyLR.

Both see the mean training loss since the last of their 25 decisions, and decide for many trainings at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qan_agents.controllers.trainings import Float64, Outcomes, Rule, play_rules
from qan_agents.judging.methods import RATES, Places, Range, Settings, each
from qan_agents.judging.problems import Trainings


class Counted:
    """What the two rules have in common: the best loss so far, and how often in a row it was beaten, or was not."""

    def __init__(self, rates: Float64, factor: Float64, patience: Float64) -> None:
        """(B,) each; rates: to begin with."""
        self.rates, self.factor, self.patience = rates.copy(), factor, patience
        self.best = np.full(len(rates), np.inf)
        self.good, self.bad = np.zeros((2, len(rates)), np.int64)
        self.begun = False

    def __call__(self, losses: Float64) -> Float64:
        """See `Rule`; the first loss is that of the initial weights, from which nothing follows."""
        if self.begun:
            better = losses < self.improved()
            self.best = np.where(better, losses, self.best)
            self.good, self.bad = np.where(better, self.good + 1, 0), np.where(better, 0, self.bad + 1)
            self.decide()
        self.begun = True
        return self.rates

    def improved(self) -> Float64:
        """(B,) what a loss must be below to count as better."""
        raise NotImplementedError

    def decide(self) -> None:
        """Change the rates."""
        raise NotImplementedError


class Plateau(Counted):
    """torch's `ReduceLROnPlateau` with its defaults, but for factor and patience."""

    THRESHOLD = 1e-4  # relative
    LEAST_CHANGE = 1e-8  # of a rate; smaller ones are not made

    def improved(self) -> Float64:
        """See `Counted`."""
        return self.best * (1 - self.THRESHOLD)

    def decide(self) -> None:
        """Lower the rate after more than `patience` losses in a row that were no better."""
        due, lowered = self.bad > self.patience, self.rates * self.factor
        self.rates = np.where(due & (self.rates - lowered > self.LEAST_CHANGE), lowered, self.rates)
        self.bad[due] = 0


class Greedy(Counted):
    """GreedyLR (arXiv:2512.14527): the rate is divided by the factor while the loss falls, and else multiplied by it.

    Without smoothing, for the losses are means already; without warm-up, cooldown and reset, which its published
    implementation has off or far beyond 25 decisions.
    """

    THRESHOLD = 1e-6  # absolute

    def improved(self) -> Float64:
        """See `Counted`."""
        return self.best - self.THRESHOLD

    def decide(self) -> None:
        """Change the rate after more than `patience` losses in a row that were better, or were not."""
        higher, lower = self.good > self.patience, self.bad > self.patience
        self.rates = np.where(higher, self.rates / self.factor, np.where(lower, self.rates * self.factor, self.rates))
        self.good[higher], self.bad[lower] = 0, 0


RULES: dict[str, Callable[[Float64, Float64, Float64], Rule]] = {"plateau": Plateau, "greedy": Greedy}
FACTORS = {"plateau": Range(0.1, 0.7), "greedy": Range(0.5, 0.95)}


@dataclass(frozen=True)
class Ruled:
    """A rule of RULES."""

    optimizer: str
    rule: str
    slow: ClassVar[bool] = False

    @property
    def ranges(self) -> dict[str, Range]:
        """The first learning rate, the factor, and the patience in decisions."""
        rate = Range(*RATES[self.optimizer], log=True)
        return {"learning_rate": rate, "factor": FACTORS[self.rule], "patience": Range(0, 5, whole=True)}

    def play(self, trainings: Trainings, settings: Settings, *, tests: bool) -> Outcomes:
        """See `Method.play`."""
        rates, factors, patience = (
            each(settings[name], len(trainings)) for name in ("learning_rate", "factor", "patience")
        )

        def begin(places: Places) -> Rule:
            return RULES[self.rule](rates[places], factors[places], patience[places])

        return play_rules(trainings.tasks, trainings.seeds, begin, tests=tests, dataset=trainings.dataset)
