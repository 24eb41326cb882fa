"""Rules that set the learning rate from a loss: torch's reduce on plateau, and GreedyLR.

They decide for many trainings at once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]  # (B,)


class Counted:
    """What the two rules have in common: the best loss so far, and how often in a row it was beaten, or was not."""

    LEAST_CHANGE = 1e-8  # of a rate; smaller ones are not made

    def __init__(self, rates: Float64, factor: Float64, patience: Float64) -> None:
        """(B,) each; rates: to begin with."""
        self.rates, self.factor, self.patience = rates.copy(), factor, patience
        self.best = np.full(len(rates), np.inf)
        self.good, self.bad = np.zeros((2, len(rates)), np.int64)
        self.begun = False

    def __call__(self, losses: Float64) -> Float64:
        """The rates (B,) after losses (B,), nats; the first are those of the initial weights, and change nothing."""
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

    As `transformers.GreedyLR` without smoothing, warm-up and cooldown, which it has off by default, and without the
    reset after 500 decisions at the least rate.
    """

    THRESHOLD = 1e-6  # absolute

    def __init__(
        self, rates: Float64, factor: Float64, patience: Float64, bounds: tuple[float, float] = (0, np.inf)
    ) -> None:
        """See `Counted`; bounds: the least and the largest rate."""
        super().__init__(rates, factor, patience)
        self.bounds = bounds

    def improved(self) -> Float64:
        """See `Counted`."""
        return self.best - self.THRESHOLD

    def decide(self) -> None:
        """Change the rate after more than `patience` losses in a row that were better, or were not."""
        higher, lower = self.good > self.patience, self.bad > self.patience
        least, largest = self.bounds
        raised, lowered = np.minimum(self.rates / self.factor, largest), np.maximum(self.rates * self.factor, least)
        wanted = np.where(higher, raised, np.where(lower, lowered, self.rates))
        self.rates = np.where(np.abs(wanted - self.rates) > self.LEAST_CHANGE, wanted, self.rates)
        self.good[higher], self.bad[lower] = 0, 0
