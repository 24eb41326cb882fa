"""Schedule-free SGD and AdamW (Defazio et al. 2024, arXiv:2405.15682), of their own package, in the environments.

Importing this registers the optimizers "schedule-free-sgd" and "schedule-free-adamw".
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from schedulefree import AdamWScheduleFree, SGDScheduleFree
from torch import Tensor

from qan_agents.bench.package_optimizers import PackageOptimizer
from qan_gym import register_optimizer
from qan_gym.config import TaskConfig
from qan_gym.optimizee.network import Params


class ScheduleFree(PackageOptimizer):
    """The weights in training are the package's y, what is measured is its x."""

    copies = ("z",)

    def __init__(
        self,
        kind: Callable[..., Any],
        slots: tuple[str, ...],
        config: TaskConfig,
        controlled: Collection[str],
    ) -> None:
        """See `PackageOptimizer`.

        Args:
            kind: the package's class, its momentum given.
            slots: its buffers of each parameter.
            config: of the task; its momentum is the interpolation between z and x.
            controlled: the hyperparameters that the actions change.

        Raises:
            ValueError: there is no momentum, or actions change it.
        """
        if config.momentum == 0:
            raise ValueError("schedule-free optimizers need a momentum above 0: 0.9 is theirs")

        def _make(parameters: list[Tensor], rate: float) -> torch.optim.Optimizer:
            optimizer = kind(parameters, lr=rate)
            optimizer.train()
            return optimizer  # type: ignore[no-any-return]

        super().__init__("schedule-free", _make, slots, config, controlled)

    def begin(self, parameter: Tensor, state: dict[str, Any]) -> None:
        """See `PackageOptimizer.begin`."""
        state["z"].copy_(parameter)

    def averaged(self, params: Params, slots: dict[str, Params]) -> Params:
        """x of y and z: the package's `eval`."""
        weight = 1 - 1 / self.config.momentum
        # Before the first update z is not there yet, and the slot 0; later it is so only where the weight is too.
        return {name: torch.where(z == 0, params[name], params[name].lerp(z, weight)) for name, z in slots["z"].items()}


def _sgd(config: TaskConfig, controlled: Collection[str]) -> ScheduleFree:
    return ScheduleFree(partial(SGDScheduleFree, momentum=config.momentum), ("z",), config, controlled)


def _adamw(config: TaskConfig, controlled: Collection[str]) -> ScheduleFree:
    kind = partial(AdamWScheduleFree, betas=(config.momentum, 0.999))
    return ScheduleFree(kind, ("z", "exp_avg_sq"), config, controlled)


register_optimizer("schedule-free-sgd", _sgd)
register_optimizer("schedule-free-adamw", _adamw)
