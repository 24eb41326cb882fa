"""RMSprop as in DeepMind's DQN, which is neither torch's nor TensorFlow's."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

DECAY = 0.95  # of both running means


class DeepMindRMSprop(Optimizer):
    """w <- w - lr g / sqrt(mean(g^2) - mean(g)^2 + eps), with eps inside the root and both means begun at 0.

    Torch's centred RMSprop adds eps outside the root, TensorFlow's begins at 1.

    Source: `NeuralQLearner.lua` of DeepMind's code for Mnih et al., Nature 2015.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, eps: float) -> None:
        """lr: the learning rate, above 0; eps: above 0, in units of the gradient squared."""
        super().__init__(params, {"lr": lr, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Change the parameters."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state: dict[str, Any] = self.state[parameter]
                if not state:
                    state["mean"], state["mean_square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                rmsprop_(parameter, parameter.grad, state["mean"], state["mean_square"], group["lr"], group["eps"])


def rmsprop_(weights: Tensor, gradient: Tensor, mean: Tensor, mean_square: Tensor, lr: float, eps: float) -> None:
    """One step, in place; all tensors have the shape of the weights."""
    mean.lerp_(gradient, 1 - DECAY)
    mean_square.mul_(DECAY).addcmul_(gradient, gradient, value=1 - DECAY)
    root = mean_square.addcmul(mean, mean, value=-1).add_(eps).sqrt_()
    weights.addcdiv_(gradient, root, value=-lr)
