"""The networks of the bundled PPO: a policy and a value, each with hidden layers of its own and a GRU if asked for."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from qan_agents.class_columns import class_columns

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "silu": nn.SiLU, "elu": nn.ELU}


class Trunk(nn.Module):
    """Hidden layers, a GRU over the steps of an episode where there is one, and a linear head.

    The memory is the state of the GRU, (B, H), with H = 0 where there is none.
    """

    def __init__(
        self, inputs: int, hidden: Sequence[int], activation: str, recurrent: int, outputs: int, head_gain: float
    ) -> None:
        """Build a network with initial weights from torch's global generator: orthogonal, without biases.

        Args:
            inputs: numbers of an observation.
            hidden: units of the hidden layers.
            activation: of them, one of ACTIVATIONS.
            recurrent: H, units of the GRU; 0: none.
            outputs: of the head.
            head_gain: scale of the head's initial weights.
        """
        super().__init__()
        sizes = (inputs, *hidden)
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [_orthogonal(nn.Linear(before, after), gain=2**0.5), ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers)
        self.units = recurrent
        self.gru = nn.GRUCell(sizes[-1], recurrent) if recurrent else None
        self.head = _orthogonal(nn.Linear(recurrent or sizes[-1], outputs), head_gain)

    def step(self, inputs: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """One step: (B, inputs) and the memory before it -> (B, outputs) and the memory after it."""
        hidden = self.layers(inputs)
        if self.gru is not None:
            hidden = memory = self.gru(hidden, memory)
        return self.head(hidden), memory

    def sequence(self, inputs: Tensor, memory: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """T steps, as T calls of `step` with the memory `forgotten` where episodes start.

        Args:
            inputs: (T, B, inputs).
            memory: (B, H) before the first step.
            starts: (T, B) bool, the step is the first of an episode.

        Returns:
            The outputs (T, B, outputs), and the memory after each step (T, B, H).
        """
        hidden = self.layers(inputs)
        if self.gru is None:
            return self.head(hidden), memory.expand(len(inputs), *memory.shape)
        memories = []
        for now, start in zip(hidden, starts, strict=True):
            memory = self.gru(now, forgotten(memory, start))
            memories.append(memory)
        states = torch.stack(memories)
        return self.head(states), states


class ClassTrunk(Trunk):
    """One network for all classes: what it gives for each, or the mean of that; it has no memory.

    For a class it sees the features of that class, their means over the classes, and the features of no class. So
    classes are alike to it: where they change places, what it gives for them does.
    """

    own: Tensor
    common: Tensor

    def __init__(
        self, widths: Sequence[int], hidden: Sequence[int], activation: str, head_gain: float, pooled: bool = False
    ) -> None:
        """As `Trunk`; widths: see `class_columns`; pooled: give the mean, (..., 1), not (..., K)."""
        own, common = class_columns(widths)
        super().__init__(2 * own.shape[1] + len(common), hidden, activation, 0, 1, head_gain)
        self.register_buffer("own", torch.from_numpy(own), persistent=False)
        self.register_buffer("common", torch.from_numpy(common), persistent=False)
        self.pooled = pooled

    def step(self, inputs: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """See `Trunk.step`."""
        return self._outputs(inputs), memory

    def sequence(self, inputs: Tensor, memory: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """See `Trunk.sequence`."""
        return self._outputs(inputs), memory.expand(len(inputs), *memory.shape)

    def _outputs(self, inputs: Tensor) -> Tensor:
        own, common = inputs[..., self.own], inputs[..., None, self.common]  # (..., K, P), (..., 1, C)
        shared = torch.cat([own.mean(dim=-2, keepdim=True), common], dim=-1)
        seen = torch.cat([own, shared.expand(*own.shape[:-1], -1)], dim=-1)
        outputs: Tensor = self.head(self.layers(seen))[..., 0]
        return outputs.mean(dim=-1, keepdim=True) if self.pooled else outputs


def forgotten(memory: Tensor, starts: Tensor) -> Tensor:
    """The memory (B, H), and 0 where an episode starts; starts: (B,) bool."""
    return memory.masked_fill(starts[:, None], 0.0)


class RunningNorm(nn.Module):
    """Scales numbers to mean 0 and variance 1 of all that it was shown; its state is float64 on the device.

    Source: Chan, Golub and LeVeque, The American Statistician 37 (1983), the update of mean and variance by a batch.
    """

    count: Tensor
    mean: Tensor
    square: Tensor  # sum of the squared deviations from the mean
    alike: Tensor

    def __init__(self, size: int, limit: float, widths: Sequence[int] = ()) -> None:
        """A norm that has seen nothing.

        Args:
            size: numbers of an input.
            limit: largest absolute value of the output.
            widths: where given, see `class_columns`: a feature has one mean and one variance for all classes.
        """
        super().__init__()
        self.limit = limit
        own = torch.from_numpy(class_columns(widths)[0]) if widths else torch.zeros(1, 0, dtype=torch.int64)
        self.register_buffer("alike", own, persistent=False)  # (K, P), places of which each column is scaled alike
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("square", torch.zeros(size, dtype=torch.float64))

    def observe(self, values: Tensor, counted: Tensor) -> None:
        """Count the rows of (B, size) that a mask (B,) names."""
        weights, values = counted.double()[:, None], values.double()  # (B, 1), (B, size)
        new = weights.sum()
        mean = (values * weights).sum(dim=0) / new.clamp(min=1)
        if self.alike.numel():
            mean[self.alike] = mean[self.alike].mean(dim=0).expand(self.alike.shape)
        square = ((values - mean).square() * weights).sum(dim=0)
        if self.alike.numel():
            square[self.alike] = square[self.alike].mean(dim=0).expand(self.alike.shape)
        total = self.count + new
        share = new / total.clamp(min=1)
        difference = mean - self.mean
        self.square += square + difference.square() * self.count * share
        self.mean += difference * share
        self.count.copy_(total)

    def forward(self, values: Tensor) -> Tensor:
        """(..., size) -> the same, float32, scaled; only shifted where all that was seen was equal."""
        variance = self.square / self.count.clamp(min=1)
        scale = torch.where(variance > 0, variance + 1e-8, 1.0).rsqrt()
        return ((values - self.mean) * scale).clamp(-self.limit, self.limit).float()


def _orthogonal(layer: nn.Linear, gain: float) -> nn.Linear:
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer
