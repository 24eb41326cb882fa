"""Schedules: the learning rate over the budget, each one function of the share of the budget that is used.

One definition serves three users: the base schedule under the actions of an environment (`TaskConfig.schedule`), the
fixed policies, and the tuned schedules of the bench.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """A learning rate over the budget: highest learning rate * shape(share).

    Attributes:
        shape: (share (N,) in [0, 1], **settings) -> (N,) in [0, 1], by tensor operations: the learning rate as a
            fraction of the highest one.
        settings: the settings of `shape` and their defaults.
        search: the values that a tuner may give to the settings, beside the highest learning rate: name of a setting ->
            (least, largest); where both are equal there is no choice, and the value stands in the place of the default.
        peak: the highest learning rate over the one that the task, or its actions, set.
    """

    shape: Callable[..., Tensor]
    settings: dict[str, float] = field(default_factory=dict)
    search: dict[str, tuple[float, float]] = field(default_factory=dict)
    peak: float = 1.0

    def rate(self, learning_rate: Tensor, share: Tensor) -> Tensor:
        """The learning rate (N,) float64 where it is set to `learning_rate` (N,) float64, with the default settings."""
        return learning_rate * self.peak * self.shape(share, **self.settings)


def constant(share: Tensor) -> Tensor:
    """The highest learning rate throughout."""
    return torch.ones_like(share)


def linear(share: Tensor) -> Tensor:
    """Linearly to 0."""
    return 1 - share


def cosine(share: Tensor) -> Tensor:
    """Along half a cosine to 0 (arXiv:1608.03983, without restarts)."""
    return (1 + torch.cos(math.pi * share)) / 2


def step(share: Tensor, factor: float, at: float) -> Tensor:
    """Multiplied by `factor` once, when the share `at` of the budget is used."""
    return torch.ones_like(share, dtype=torch.float64).masked_fill(share >= at, factor)


def cooldown(share: Tensor, length: float) -> Tensor:
    """Constant, then linearly to 0 over the last `length` of the budget (arXiv:2405.18392)."""
    return ((1 - share) / length).clamp(max=1)


def one_cycle(share: Tensor, start: float, rise: float, fall: float) -> Tensor:
    """Along half a cosine from 1/rise up to 1 at the share `start`, then along another one down to 1/(rise * fall).

    Source: arXiv:1708.07120; `rise` and `fall` are the `div_factor` and the `final_div_factor` of torch's `OneCycleLR`.
    """
    rises = share < start
    place = torch.where(rises, share / start - 1, (share - start) / (1 - start))  # -1 to 0 up, 0 to 1 down
    least = torch.full_like(share, 1 / (rise * fall), dtype=torch.float64).masked_fill(rises, 1 / rise)
    return least + (1 - least) * (1 + torch.cos(math.pi * place)) / 2


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
        ValueError: the name is taken.
    """
    if name in SCHEDULES:
        raise ValueError(f"a schedule cannot be registered as {name!r}: the name is taken")
    SCHEDULES[name] = schedule
