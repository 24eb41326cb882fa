"""Linear layers with ReLUs between them, with the backward pass written out."""

from collections.abc import Callable
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn


class _Layer(NamedTuple):
    """A linear layer as views of its tensors, made once."""

    weight: Tensor
    weight_transposed: Tensor
    bias: Tensor
    weight_gradient: Tensor
    bias_gradient: Tensor


class Perceptron(nn.Sequential):
    """`nn.Sequential(nn.Linear, nn.ReLU, ..., nn.Linear)` that can write its gradients without autograd."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        """sizes: of the input, of each hidden layer, and of the output."""
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        super().__init__(*layers[:-1])

    @cached_property
    def _layers(self) -> list[_Layer]:
        layers = []
        for layer in self:
            if isinstance(layer, nn.Linear):
                weight, gradients = layer.weight.detach(), (layer.weight.grad, layer.bias.grad)
                assert gradients[0] is not None
                assert gradients[1] is not None
                layers.append(_Layer(weight, weight.t(), layer.bias.detach(), gradients[0], gradients[1]))
        return layers

    def forward_and_backward(self, inputs: Tensor) -> tuple[Tensor, Callable[[Tensor], None]]:
        """The output, and the backward pass.

        Autograd's bookkeeping takes longer than the products of small layers. To be called without it, and only once
        every parameter has its `grad`; parameters and gradients must stay where they are in memory.

        Args:
            inputs: (B, sizes[0]).

        Returns:
            The output (B, sizes[-1]); and a function that takes the gradient of a loss with respect to the output,
            (B, sizes[-1]), and writes those with respect to the parameters into their `grad`.
        """
        activations = [inputs]  # the input of each layer, (B, units)
        for layer in self._layers[:-1]:
            activations.append(torch.addmm(layer.bias, activations[-1], layer.weight_transposed).relu_())
        last = self._layers[-1]
        output = torch.addmm(last.bias, activations[-1], last.weight_transposed)
        return output, lambda gradient: self._backward(activations, gradient)

    def _backward(self, activations: list[Tensor], gradient: Tensor) -> None:
        for number in reversed(range(len(activations))):
            layer = self._layers[number]
            torch.mm(gradient.t(), activations[number], out=layer.weight_gradient)
            torch.sum(gradient, dim=0, out=layer.bias_gradient)
            if number > 0:
                gradient = (gradient @ layer.weight).mul_(activations[number] > 0)
