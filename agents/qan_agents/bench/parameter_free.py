"""Optimizers that estimate their learning rate, of their own packages, in the environments.

D-Adaptation (Defazio and Mishchenko 2023, arXiv:2301.07733) for SGD and AdamW, and Prodigy (Mishchenko and Defazio
2023, arXiv:2306.06101). The learning rate of the environment multiplies their estimate; their authors advise 1, by a
schedule. Importing this registers the optimizers "d-adapt-sgd", "d-adapt-adamw" and "prodigy".
"""

import io
from collections.abc import Callable, Collection
from contextlib import redirect_stdout
from functools import partial
from typing import Any

import torch
from dadaptation import DAdaptAdam, DAdaptSGD
from prodigyopt import Prodigy
from torch import Tensor

from qan_agents.bench.package_optimizers import PackageOptimizer
from qan_gym import register_optimizer
from qan_gym.config import TaskConfig


class DAdaptedSGD(PackageOptimizer):
    """z is x0 - s, and the weights are a mean of z: z is pulled as they are, and the next z goes on from there."""

    copies = ("z",)

    def __init__(self, config: TaskConfig, controlled: Collection[str]) -> None:
        """See `PackageOptimizer`."""
        make = _quietly(partial(DAdaptSGD, momentum=config.momentum))
        super().__init__("D-Adaptation", make, ("z", "s", "x0"), config, controlled)

    def begin(self, parameter: Tensor, state: dict[str, Any]) -> None:
        """See `PackageOptimizer.begin`."""
        state["z"].copy_(parameter)
        state["x0"].copy_(parameter)

    def before(self, parameter: Tensor, state: dict[str, Any]) -> None:
        """Move x0 by as much as z was pulled; exactly by nothing where nothing was."""
        x0 = state["x0"]
        x0.add_(state["z"] - (x0 - state["s"]))


class DAdaptedAdamW(PackageOptimizer):
    """With decoupled weight decay."""

    def __init__(self, config: TaskConfig, controlled: Collection[str]) -> None:
        """See `PackageOptimizer`."""
        make = _quietly(partial(DAdaptAdam, betas=(config.momentum, 0.999), decouple=True))
        super().__init__("D-Adaptation", make, ("s", "exp_avg", "exp_avg_sq"), config, controlled)

    def begin(self, parameter: Tensor, state: dict[str, Any]) -> None:
        """See `PackageOptimizer.begin`."""
        state["step"] = 0


class ProdigyAdamW(PackageOptimizer):
    """With decoupled weight decay; it keeps the initial weights p0 and the sum s itself, which it wants flat."""

    def __init__(self, config: TaskConfig, controlled: Collection[str]) -> None:
        """See `PackageOptimizer`."""
        make = _quietly(partial(Prodigy, betas=(config.momentum, 0.999)))
        super().__init__("Prodigy", make, ("exp_avg", "exp_avg_sq"), config, controlled)

    def begin(self, parameter: Tensor, state: dict[str, Any]) -> None:
        """See `PackageOptimizer.begin`."""
        state["step"] = 0
        flat = parameter.flatten().clone()
        state["s"], state["p0"] = torch.zeros_like(flat), flat


def _quietly(kind: Callable[..., Any]) -> Callable[[list[Tensor], float], torch.optim.Optimizer]:
    """Make an optimizer whose package announces its weight decay on standard output."""

    def make(parameters: list[Tensor], rate: float) -> torch.optim.Optimizer:
        with redirect_stdout(io.StringIO()):
            return kind(parameters, lr=rate)  # type: ignore[no-any-return]

    return make


register_optimizer("d-adapt-sgd", DAdaptedSGD)
register_optimizer("d-adapt-adamw", DAdaptedAdamW)
register_optimizer("prodigy", ProdigyAdamW)
