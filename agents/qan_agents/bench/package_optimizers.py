"""Optimizers of other packages in the environments: one of the package per run, with buffers among those of the run."""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from qan_gym.config import TaskConfig
from qan_gym.optimizee.network import Params
from qan_gym.optimizee.optimizers import Hyperparameters

Make = Callable[[list[Tensor], float], torch.optim.Optimizer]  # parameters and the learning rate


class PackageOptimizer:
    """One optimizer of a package per run, see `qan_gym.optimizee.optimizers.Optimizer`.

    It is for a bench: what a package counts for itself is not among the slots, so a saved episode does not go on as it
    would have, and the learning rate is a number on the host, for which it waits.
    """

    waits = True
    copies: tuple[str, ...] = ()

    def __init__(
        self, name: str, make: Make, slots: tuple[str, ...], config: TaskConfig, controlled: Collection[str]
    ) -> None:
        """See `qan_gym.optimizee.optimizers.Optimizer`.

        Args:
            name: for messages.
            make: makes the optimizer of a run.
            slots: its buffers of each parameter.
            config: of the task.
            controlled: the hyperparameters that the actions change.

        Raises:
            ValueError: actions change the momentum.
        """
        if "momentum" in controlled:
            raise ValueError(f"{name} optimizers keep the momentum that they begin with: it is no action's to change")
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
                parameter.grad = gradient[row].clone()  # which weight decay may be added to
                self.before(parameter, optimizer.state[parameter])
            optimizer.step()

    def _start(self, params: Params, slots: dict[str, Params], row: int, rate: float) -> torch.optim.Optimizer:
        mine = {name: value[row].detach() for name, value in params.items()}
        optimizer = self.make(list(mine.values()), rate)
        for name, parameter in mine.items():
            state = {slot: slots[slot][name][row] for slot in self.slots}
            self.begin(parameter, state)
            optimizer.state[parameter] = state
        return optimizer

    def begin(self, parameter: Tensor, state: dict[str, Any]) -> None:
        """What the package does with the state of a parameter at its first step; the buffers are zero."""

    def before(self, parameter: Tensor, state: dict[str, Any]) -> None:
        """Before each step, after meta-momentum has pulled the weights and their copies."""
