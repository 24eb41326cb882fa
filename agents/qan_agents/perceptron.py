"""Linear layers with ReLUs between them, that can do without autograd."""

from collections.abc import Callable
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor, nn


class Perceptron(nn.Sequential):
    """`nn.Sequential(nn.Linear, nn.ReLU, ..., nn.Linear)`, whose gradient can be written where it belongs."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        """sizes: of the input, of each hidden layer, and of the output."""
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        super().__init__(*layers[:-1])

    @cached_property
    def _parts(self) -> list[tuple[Tensor, ...]]:
        """Weight, bias, and the gradients of both, of each layer; looked up once, which is what takes the time."""
        linear = [layer for layer in self if isinstance(layer, nn.Linear)]
        return [(one.weight.detach(), one.bias.detach(), one.weight.grad, one.bias.grad) for one in linear]

    def forward_and_back(self, inputs: Tensor) -> tuple[Tensor, Callable[[Tensor], None]]:
        """The output (B, sizes[-1]) of (B, sizes[0]), and what takes its slope and writes the parameters' gradients.

        Autograd's bookkeeping takes longer than the products of small layers do. To be called without it, and only
        once every parameter has its `grad`; parameters and gradients must stay where they are.
        """
        seen = [inputs]  # by each layer, (B, units)
        for weight, bias, *_ in self._parts[:-1]:
            seen.append(torch.addmm(bias, seen[-1], weight.t()).relu_())
        weight, bias, *_ = self._parts[-1]
        return torch.addmm(bias, seen[-1], weight.t()), lambda slope: self._write_gradients(seen, slope)

    def _write_gradients(self, seen: list[Tensor], slope: Tensor) -> None:
        for layer in reversed(range(len(seen))):
            weight, _, weight_slope, bias_slope = self._parts[layer]
            torch.mm(slope.t(), seen[layer], out=weight_slope)
            torch.sum(slope, dim=0, out=bias_slope)
            if layer > 0:
                slope = (slope @ weight).mul_(seen[layer] > 0)
