"""The Q network: features, shared layers, and one head, or two where it is dueling."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from qan_agents.dqn.config import DQNConfig
from qan_agents.dqn.features import FEATURES
from qan_agents.dqn.perceptron import Perceptron
from qan_agents.dqn.vector_env import EnvInterface


class QNetwork(nn.Module):
    """The value of every action, or quantiles of its return.

    Sources: dueling, arXiv:1511.06581; quantiles, arXiv:1710.10044.
    """

    def __init__(self, config: DQNConfig, interface: EnvInterface) -> None:
        """Build a network with initial weights from torch's global generator."""
        super().__init__()
        self.features = FEATURES[config.features](config.history, *interface.screen, interface.score_line)
        self.features_learn = any(True for _ in self.features.parameters())
        self.actions, self.quantiles = interface.actions, config.quantiles
        shared = (self.features.size, *config.hidden[:-1]) if config.dueling else (self.features.size,)
        self.trunk = nn.Sequential(*_layers(shared, config.layer_norm))
        own = (shared[-1], *config.hidden[len(shared) - 1 :])  # of a head
        self.advantage = _head(own, self.actions * self.quantiles, config.layer_norm)
        self.value = _head(own, self.quantiles, config.layer_norm) if config.dueling else None

    def forward(self, observations: Tensor) -> Tensor:
        """(B, history, D) -> (B, actions, quantiles)."""
        hidden = self.trunk(self.features(observations))  # (B, units)
        values: Tensor = self.advantage(hidden).unflatten(1, (self.actions, self.quantiles))  # (B, actions, quantiles)
        if self.value is None:
            return values
        state: Tensor = self.value(hidden)[:, None]  # (B, 1, quantiles)
        return state + values - values.mean(dim=1, keepdim=True)

    def forward_and_backward(self, observations: Tensor) -> tuple[Tensor, Callable[[Tensor], None]]:
        """The output and the backward pass.

        Args:
            observations: (B, history, D).

        Returns:
            The output of `forward`, detached; and a function that takes the gradient of a loss with respect to it and
            writes those with respect to the parameters into their `grad`, which must be 0 before.
        """
        if self.features_learn or not isinstance(self.advantage, Perceptron) or self.value is not None:
            with torch.enable_grad():
                values: Tensor = self(observations)
            return values.detach(), values.backward
        output, backward = self.advantage.forward_and_backward(self.features(observations))
        return output.unflatten(1, (self.actions, self.quantiles)), lambda gradient: backward(gradient.flatten(1))


def parameters_as_vector(network: nn.Module) -> Tensor:
    """All parameters as one vector, of which they become views: a change of the vector changes the network."""
    vector = parameters_to_vector(network.parameters()).detach().clone()
    vector_to_parameters(vector, network.parameters())
    return vector


def _layers(sizes: tuple[int, ...], layer_norm: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), *([nn.LayerNorm(after)] if layer_norm else []), nn.ReLU()]
    return layers


def _head(sizes: tuple[int, ...], outputs: int, layer_norm: bool) -> nn.Sequential:
    if not layer_norm:
        return Perceptron((*sizes, outputs))
    return nn.Sequential(*_layers(sizes, layer_norm), nn.Linear(sizes[-1], outputs))
