"""Schedules: the learning rate over the budget, each one function of the share of the budget that is used.

One definition serves three users: the base schedule under the actions of an environment (`TaskConfig.schedule`), the
fixed policies, and the tuned schedules of the bench.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from qan_gym.utils.arrays import Array
from qan_gym.utils.registry import add


@dataclass(frozen=True)
class Schedule:
    """A learning rate over the budget: highest learning rate * shape(share).

    Attributes:
        shape: (xp, share (N,) float64 in [0, 1], **settings) -> (N,), or one number, in [0, 1], the learning rate as a
            fraction of the highest one; by operators and the functions of xp, the namespace of the array.
        settings: the settings of `shape` and their defaults.
        search: the values that a tuner may give to the settings, beside the highest learning rate: name of a setting ->
            (least, largest); where both are equal there is no choice, and the value stands in the place of the default.
        peak: the highest learning rate over the one that the task, or its actions, set.
    """

    shape: Callable[..., Array]
    settings: dict[str, float] = field(default_factory=dict)
    search: dict[str, tuple[float, float]] = field(default_factory=dict)
    peak: float = 1.0

    def rate(self, xp: Any, learning_rate: Array, share: Array) -> Array:
        """The learning rate (N,) float64 where it is set to `learning_rate` (N,) float64, with the default settings."""
        return learning_rate * (self.peak * self.shape(xp, share, **self.settings))


def constant(xp: Any, share: Array) -> Array:
    """The highest learning rate throughout."""
    return 1.0


def linear(xp: Any, share: Array) -> Array:
    """Linearly to 0."""
    return 1 - share


def cosine(xp: Any, share: Array) -> Array:
    """Along half a cosine to 0 (arXiv:1608.03983, without restarts)."""
    return (1 + xp.cos(math.pi * share)) / 2


def step(xp: Any, share: Array, factor: float, at: float) -> Array:
    """Multiplied by `factor` once, when the share `at` of the budget is used."""
    return xp.where(share >= at, factor, xp.ones_like(share))


def cooldown(xp: Any, share: Array, length: float) -> Array:
    """Constant, then linearly to 0 over the last `length` of the budget (arXiv:2405.18392)."""
    return xp.minimum((1 - share) / length, xp.ones_like(share))


def one_cycle(xp: Any, share: Array, start: float, rise: float, fall: float) -> Array:
    """Along half a cosine from 1/rise up to 1 at the share `start`, then along another one down to 1/(rise * fall).

    Source: arXiv:1708.07120; `rise` and `fall` are the `div_factor` and the `final_div_factor` of torch's `OneCycleLR`.
    """
    rises = share < start
    place = xp.where(rises, share / start - 1, (share - start) / (1 - start))  # -1 to 0 up, 0 to 1 down
    least = xp.where(rises, 1 / rise, 1 / (rise * fall) * xp.ones_like(share))
    return least + (1 - least) * (1 + xp.cos(math.pi * place)) / 2


SCHEDULES: dict[str, Schedule] = {
    "constant": Schedule(constant),
    "linear": Schedule(linear),
    "cosine": Schedule(cosine),
    "cooldown": Schedule(cooldown, {"length": 0.25}, {"length": (0.05, 0.5)}),
    # Settings and peak were found on other tasks than those of the bench: studies/base_schedule. When it is tuned, its
    # beginning and its end are those of torch's OneCycleLR.
    "one-cycle": Schedule(
        one_cycle,
        {"start": 0.5, "rise": 20.0, "fall": math.inf},
        {"start": (0.05, 0.5), "rise": (25.0, 25.0), "fall": (1e4, 1e4)},
        peak=3.4,
    ),
    "step": Schedule(step, {"factor": 0.1, "at": 0.5}, {"factor": (0.01, 0.5), "at": (0.3, 0.9)}),
}


def register_schedule(name: str, schedule: Schedule) -> None:
    """Make a schedule available under a name: under the actions, as a fixed policy, and as a tuned controller.

    Raises:
        ValueError: the name is taken, or what must be callable is not.
    """
    add(SCHEDULES, "a schedule", name, schedule, part=getattr(schedule, "shape", schedule))
