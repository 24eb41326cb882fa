"""Optimizers by name: gradients become updates of N networks at once, each with its own hyperparameters.

The buffers of an optimizer (its slots) are laid out like the parameters. They belong to the run and not to the
hyperparameters: an action changes those and leaves the buffers as they are.
"""

from collections.abc import Callable, Collection
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from qan_gym.config import TaskConfig
from qan_gym.optimizee.network import Params, per_run
from qan_gym.utils.names import unknown_name
from qan_gym.utils.registry import add


class Hyperparameters(NamedTuple):
    """Of N runs, (N,) float64 each, before an update; see the fields of `TaskConfig`."""

    learning_rate: Tensor
    momentum: Tensor
    weight_decay: Tensor


class Optimizer(Protocol):
    """The object that a factory given to `register_optimizer` makes.

    On CUDA an update is captured: it must consist of tensor operations, keep nothing but its slots, and not wait for
    the device. One that cannot keep to this has an attribute `waits = True`, and its steps are not captured.

    An optimizer whose weights are evaluated in another form, say as an average, also has a method `averaged(params,
    slots)`: from name -> (M, *shape) of some runs, and slot name -> the same, to the weights to evaluate, new tensors.
    `copies` are the names of slots that hold copies of the weights: meta-momentum pulls them too.

    Attributes:
        slots: the names of the buffers that each parameter has; they are zero when an episode begins.
    """

    slots: tuple[str, ...]

    def update(
        self, params: Params, gradients: Params, slots: dict[str, Params], hyper: Hyperparameters, step: Tensor
    ) -> None:
        """One update, in place, by tensor operations that treat each network as if it were alone.

        Args:
            params: N networks' trained parameters, name -> (N, *shape).
            gradients: the same names and shapes.
            slots: slot name -> the same names and shapes; in place too.
            hyper: of each run.
            step: (N,) int64, the updates of the episode before this one.
        """


# (the task, the hyperparameters that its game's actions change) -> the optimizer.
OptimizerFactory = Callable[[TaskConfig, Collection[str]], Optimizer]


class SGD:
    """g <- g + weight_decay w; v <- momentum v + g; w <- w - lr v, or w - lr (g + momentum v) with Nesterov's.

    As `torch.optim.SGD` computes it (Sutskever et al. 2013, with the learning rate outside the buffer).
    """

    def __init__(self, config: TaskConfig, controlled: Collection[str]) -> None:
        """Raises ValueError: Nesterov's momentum without momentum."""
        self.nesterov = config.nesterov
        self.has_momentum = config.momentum > 0 or "momentum" in controlled
        self.decays = config.weight_decay > 0 or "weight_decay" in controlled
        if self.nesterov and not self.has_momentum:
            raise ValueError("nesterov=True needs a momentum above 0")
        self.slots: tuple[str, ...] = ("momentum",) if self.has_momentum else ()

    def update(
        self, params: Params, gradients: Params, slots: dict[str, Params], hyper: Hyperparameters, step: Tensor
    ) -> None:
        """See `Optimizer.update`."""
        rate, momentum, decay = (values.to(torch.float32) for values in hyper)  # (N,) each
        for name, value in params.items():
            gradient = gradients[name]
            if self.decays:
                gradient = gradient.addcmul(value, per_run(decay, value))
            if self.has_momentum:
                velocity = slots["momentum"][name].mul_(per_run(momentum, value)).add_(gradient)
                gradient = gradient.addcmul(velocity, per_run(momentum, value)) if self.nesterov else velocity
            value.addcmul_(gradient, per_run(rate, value), value=-1)


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101), as `torch.optim.AdamW`."""

    BETA2 = 0.999
    EPSILON = 1e-8
    slots: tuple[str, ...] = ("mean", "square")

    def __init__(self, config: TaskConfig, controlled: Collection[str]) -> None:
        """Raises ValueError: Nesterov's momentum, which is SGD's."""
        if config.nesterov:
            raise ValueError("nesterov=True is for optimizer='sgd'; AdamW has none")

    def update(
        self, params: Params, gradients: Params, slots: dict[str, Params], hyper: Hyperparameters, step: Tensor
    ) -> None:
        """See `Optimizer.update`; the momentum is beta1."""
        learning_rate, decay = hyper.learning_rate.to(torch.float32), hyper.weight_decay.to(torch.float32)
        count = (step + 1).to(torch.float64)  # 1 - 0.999 keeps few digits in float32
        rate = (learning_rate / (1 - hyper.momentum**count)).to(torch.float32)  # (N,)
        scale = (1 - self.BETA2**count).sqrt().to(torch.float32)  # (N,)
        keep = 1 - learning_rate * decay  # (N,)
        new = (1 - hyper.momentum).to(torch.float32)  # (N,) share of the new gradient in the mean
        for name, value in params.items():
            gradient = gradients[name]
            mean = slots["mean"][name].lerp_(gradient, per_run(new, value))
            square = slots["square"][name].mul_(self.BETA2).addcmul_(gradient, gradient, value=1 - self.BETA2)
            spread = (square.sqrt() / per_run(scale, value)).add_(self.EPSILON)
            value.mul_(per_run(keep, value)).sub_(mean / spread * per_run(rate, value))


OPTIMIZERS: dict[str, OptimizerFactory] = {"sgd": SGD, "adamw": AdamW}


def register_optimizer(name: str, factory: OptimizerFactory) -> None:
    """Make an optimizer available under a name.

    Args:
        name: what `optimizer=` will accept.
        factory: (TaskConfig, names of the hyperparameters that actions change) -> Optimizer; raises ValueError where
            the settings of the task are not for it.

    Raises:
        ValueError: the name is taken, or what must be callable is not.
    """
    add(OPTIMIZERS, "an optimizer", name, factory)


def build_optimizer(config: TaskConfig, controlled: Collection[str]) -> Optimizer:
    """The optimizer of a task.

    Args:
        config: of the task.
        controlled: the hyperparameters that the actions of its game change.

    Raises:
        ValueError: the name is not registered, or the settings are not for it.
    """
    if config.optimizer not in OPTIMIZERS:
        raise ValueError(unknown_name("optimizer", config.optimizer, OPTIMIZERS))
    return OPTIMIZERS[config.optimizer](config, controlled)
