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
        """Bias, weight, its transpose, and the gradients of weight and bias, of each layer: views, made once."""
        linear = [(layer.weight.detach(), layer) for layer in self if isinstance(layer, nn.Linear)]
        return [(one.bias.detach(), weight, weight.t(), one.weight.grad, one.bias.grad) for weight, one in linear]

    def forward_and_back(self, inputs: Tensor) -> tuple[Tensor, Callable[[Tensor], None]]:
        """The output (B, sizes[-1]) of (B, sizes[0]), and what takes its slope and writes the parameters' gradients.

        Autograd's bookkeeping takes longer than the products of small layers do. To be called without it, and only
        once every parameter has its `grad`; parameters and gradients must stay where they are.
        """
        seen = [inputs]  # by each layer, (B, units)
        for bias, _, transposed, *_ in self._parts[:-1]:
            seen.append(torch.addmm(bias, seen[-1], transposed).relu_())
        bias, _, transposed, *_ = self._parts[-1]
        return torch.addmm(bias, seen[-1], transposed), lambda slope: self._write_gradients(seen, slope)

    def _write_gradients(self, seen: list[Tensor], slope: Tensor) -> None:
        for layer in reversed(range(len(seen))):
            _, weight, _, weight_slope, bias_slope = self._parts[layer]
            torch.mm(slope.t(), seen[layer], out=weight_slope)
            torch.sum(slope, dim=0, out=bias_slope)
            if layer > 0:
                slope = (slope @ weight).mul_(seen[layer] > 0)
