"""How gradients become updates, by name: N networks at once, each with its own learning rate.

The buffers of an optimizer (its slots) are laid out like the parameters. They belong to the run and not to the learning
rate: an action changes the rate and leaves them as they are.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from qan_gym.optimizee import Params, per_run
from qan_gym.tasks import TaskConfig


class Optimizer(Protocol):
    """What `register_optimizer` wants its factory to make.

    On CUDA an update is captured: it must consist of tensor operations, keep nothing but its slots, and not wait for
    the device.

    Where not the weights but, say, an average of them is to be judged, it has a method `averaged(params, slots)` too:
    from name -> (M, *shape) of some runs, and slot name -> the same, to the weights that are measured, new tensors.
    `copies` are the names of slots that hold such other weights: meta-momentum pulls them too.

    Attributes:
        slots: the names of the buffers that each parameter has; they are zero when an episode begins.
    """

    slots: tuple[str, ...]

    def update(
        self, params: Params, gradients: Params, slots: dict[str, Params], learning_rate: Tensor, step: Tensor
    ) -> None:
        """One update, in place, by tensor operations that treat each network as if it were alone.

        Args:
            params: N networks' trained parameters, name -> (N, *shape).
            gradients: the same names and shapes.
            slots: slot name -> the same names and shapes; in place too.
            learning_rate: (N,) float32.
            step: (N,) int64, the updates of the episode before this one.
        """


OptimizerFactory = Callable[[TaskConfig], Optimizer]


class SGD:
    """g <- g + weight_decay w; v <- momentum v + g; w <- w - lr v, or w - lr (g + momentum v) with Nesterov's.

    As `torch.optim.SGD` computes it (Sutskever et al. 2013, with the learning rate outside the buffer).
    """

    def __init__(self, config: TaskConfig) -> None:
        """Raises ValueError: Nesterov's momentum without momentum."""
        if config.nesterov and config.momentum == 0:
            raise ValueError("nesterov=True needs a momentum above 0")
        self.config = config
        self.slots: tuple[str, ...] = ("momentum",) if config.momentum > 0 else ()

    def update(
        self, params: Params, gradients: Params, slots: dict[str, Params], learning_rate: Tensor, step: Tensor
    ) -> None:
        """See `Optimizer.update`."""
        momentum = self.config.momentum
        for name, value in params.items():
            gradient = gradients[name]
            if self.config.weight_decay > 0:
                gradient = gradient.add(value, alpha=self.config.weight_decay)
            if momentum > 0:
                velocity = slots["momentum"][name].mul_(momentum).add_(gradient)
                gradient = gradient.add(velocity, alpha=momentum) if self.config.nesterov else velocity
            value.addcmul_(gradient, per_run(learning_rate, value), value=-1)


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101), as `torch.optim.AdamW`."""

    BETA2 = 0.999
    EPSILON = 1e-8
    slots: tuple[str, ...] = ("mean", "square")

    def __init__(self, config: TaskConfig) -> None:
        """Raises ValueError: Nesterov's momentum, which is SGD's."""
        if config.nesterov:
            raise ValueError("nesterov=True is for optimizer='sgd'; AdamW has none")
        self.config = config

    def update(
        self, params: Params, gradients: Params, slots: dict[str, Params], learning_rate: Tensor, step: Tensor
    ) -> None:
        """See `Optimizer.update`."""
        beta1 = self.config.momentum
        count = (step + 1).to(torch.float64)  # 1 - 0.999 keeps few digits in float32
        rate = (learning_rate / (1 - beta1**count)).to(learning_rate.dtype)  # (N,)
        scale = (1 - self.BETA2**count).sqrt().to(learning_rate.dtype)  # (N,)
        keep = 1 - learning_rate * self.config.weight_decay  # (N,)
        for name, value in params.items():
            gradient = gradients[name]
            mean = slots["mean"][name].lerp_(gradient, 1 - beta1)
            square = slots["square"][name].mul_(self.BETA2).addcmul_(gradient, gradient, value=1 - self.BETA2)
            spread = (square.sqrt() / per_run(scale, value)).add_(self.EPSILON)
            value.mul_(per_run(keep, value)).sub_(mean / spread * per_run(rate, value))


OPTIMIZERS: dict[str, OptimizerFactory] = {"sgd": SGD, "adamw": AdamW}


def register_optimizer(name: str, factory: OptimizerFactory) -> None:
    """Make an optimizer available under a name.

    Args:
        name: what `optimizer=` will accept.
        factory: TaskConfig -> Optimizer; raises ValueError where the game's settings are not for it.

    Raises:
        ValueError: the name is taken.
    """
    if name in OPTIMIZERS:
        raise ValueError(f"an optimizer cannot be registered as {name!r}: the name is taken")
    OPTIMIZERS[name] = factory


def build_optimizer(config: TaskConfig) -> Optimizer:
    """The optimizer of a game.

    Raises:
        ValueError: the name is not registered, or the settings are not for it.
    """
    if config.optimizer not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {config.optimizer!r}; there are {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[config.optimizer](config)
