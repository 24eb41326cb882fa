"""Schedule-free SGD and AdamW (Defazio et al. 2024, arXiv:2405.15682), of their own package, in the environments.

Importing this registers the optimizers "schedule-free-sgd" and "schedule-free-adamw". They are for a bench on CPU: what
the package counts for itself is not among the slots, so a saved episode does not go on as it would have.
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from schedulefree import AdamWScheduleFree, SGDScheduleFree
from torch import Tensor

from qan_gym import register_optimizer
from qan_gym.config import TaskConfig
from qan_gym.optimizee.network import Params
from qan_gym.optimizee.optimizers import Hyperparameters


class ScheduleFree:
    """One optimizer of the package per run; the weights in training are its y, what is measured is its x."""

    copies = ("z",)

    def __init__(
        self,
        make: Callable[..., torch.optim.Optimizer],
        slots: tuple[str, ...],
        config: TaskConfig,
        controlled: Collection[str],
    ) -> None:
        """See `qan_gym.optimizee.optimizers.Optimizer`.

        Args:
            make: the package's class, its momentum given.
            slots: its buffers of each parameter.
            config: of the task; its momentum is the interpolation between z and x.
            controlled: the hyperparameters that the actions change.

        Raises:
            ValueError: there is no momentum, or actions change it.
        """
        if config.momentum == 0:
            raise ValueError("schedule-free optimizers need a momentum above 0: 0.9 is theirs")
        if "momentum" in controlled:
            raise ValueError("schedule-free optimizers keep their momentum: x is computed from y with it")
        self.make, self.slots, self.config = make, slots, config
        self.optimizers: dict[tuple[int, int], Any] = {}  # by where the first parameters lie, and the row

    def update(
        self, params: Params, gradients: Params, slots: dict[str, Params], hyper: Hyperparameters, step: Tensor
    ) -> None:
        """See `qan_gym.optimizee.optimizers.Optimizer.update`."""
        block = next(iter(params.values())).data_ptr()
        rates = hyper.learning_rate.to(torch.float32).tolist()
        for row, (rate, number) in enumerate(zip(rates, step.tolist(), strict=True)):
            if number == 0:
                self.optimizers[block, row] = self._start(params, slots, row, rate)
            optimizer = self.optimizers[block, row]
            (group,) = optimizer.param_groups
            group["lr"], group["weight_decay"] = rate, float(hyper.weight_decay[row])
            for parameter, gradient in zip(group["params"], gradients.values(), strict=True):
                parameter.grad = gradient[row]
            optimizer.step()

    def _start(self, params: Params, slots: dict[str, Params], row: int, rate: float) -> torch.optim.Optimizer:
        mine = {name: value[row].detach() for name, value in params.items()}
        optimizer = self.make(mine.values(), lr=rate)
        optimizer.train()  # type: ignore[attr-defined]
        for name, parameter in mine.items():
            state = {slot: slots[slot][name][row] for slot in self.slots}
            state["z"].copy_(parameter)
            optimizer.state[parameter] = state
        return optimizer

    def averaged(self, params: Params, slots: dict[str, Params]) -> Params:
        """x of y and z: the package's `eval`."""
        weight = 1 - 1 / self.config.momentum
        # Before the first update z is not there yet, and the slot 0; later it is so only where the weight is too.
        return {name: torch.where(z == 0, params[name], params[name].lerp(z, weight)) for name, z in slots["z"].items()}


def _sgd(config: TaskConfig, controlled: Collection[str]) -> ScheduleFree:
    return ScheduleFree(partial(SGDScheduleFree, momentum=config.momentum), ("z",), config, controlled)


def _adamw(config: TaskConfig, controlled: Collection[str]) -> ScheduleFree:
    make = partial(AdamWScheduleFree, betas=(config.momentum, 0.999))
    return ScheduleFree(make, ("z", "exp_avg_sq"), config, controlled)


register_optimizer("schedule-free-sgd", _sgd)
register_optimizer("schedule-free-adamw", _adamw)
