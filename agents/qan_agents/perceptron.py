"""Linear layers with ReLUs between them, that can do without autograd."""

from collections.abc import Callable
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
        self._linear: tuple[nn.Linear, ...] = tuple(layer for layer in layers if isinstance(layer, nn.Linear))

    def forward_and_back(self, inputs: Tensor) -> tuple[Tensor, Callable[[Tensor], None]]:
        """The output (B, sizes[-1]) of (B, sizes[0]), and what takes its slope and writes the parameters' gradients.

        Autograd's bookkeeping takes longer than the products of small layers do. To be called without it.
        """
        seen = [inputs]  # by each layer, (B, units)
        for layer in self._linear[:-1]:
            seen.append(torch.addmm(layer.bias, seen[-1], layer.weight.t()).relu_())
        last = self._linear[-1]
        return torch.addmm(last.bias, seen[-1], last.weight.t()), lambda slope: self._write_gradients(seen, slope)

    def _write_gradients(self, seen: list[Tensor], slope: Tensor) -> None:
        for layer, inputs in zip(reversed(self._linear), reversed(seen), strict=True):
            torch.mm(slope.t(), inputs, out=layer.weight.grad)
            torch.sum(slope, dim=0, out=layer.bias.grad)
            if layer is not self._linear[0]:
                slope = (slope @ layer.weight).mul_(inputs > 0)
