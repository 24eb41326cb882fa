"""An oracle of the CIFAR-10 game: the networks and the training written a second time, from DESIGN.md and the papers.

Nothing here is imported from qan_gym. One network at a time as an ordinary module, PyTorch's own optimizers and batch
norm, Python floats. The modules choose the names of their parameters: weights are copied in the order of the layers,
shape for shape.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

RAISE, LOWER, KEEP = 0, 1, 2
BUFFERS = {"momentum": "momentum_buffer", "mean": "exp_avg", "square": "exp_avg_sq"}  # what PyTorch calls them


def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size of the image (or halves it), without bias."""
    return nn.Conv2d(inputs, outputs, size, stride=stride, padding=(size - 1) // 2, bias=False)


# --- the networks ---------------------------------------------------------------------------------------------------


class PlainNIN(nn.Module):
    """The table of DESIGN.md; batch norm and ReLU after every convolution (Lin et al. 2013)."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [(3, 192, 5), (192, 160, 1), (160, 96, 1)]
        sizes += [(96, 192, 5), (192, 192, 1), (192, 192, 1)]
        sizes += [(192, 192, 3), (192, 192, 1), (192, 192, 1)]
        self.layers = nn.ModuleList(nn.Sequential(conv(*size), nn.BatchNorm2d(size[1]), nn.ReLU()) for size in sizes)
        self.out = nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers, start=1):
            x = layer(x)
            if number == 3:
                x = F.max_pool2d(x, 3, stride=2, ceil_mode=True)
            if number == 6:
                x = F.avg_pool2d(x, 3, stride=2, ceil_mode=True)
        return self.out(F.avg_pool2d(x, 8).flatten(1))


class PlainWideBlock(nn.Module):
    """Pre-activation (Zagoruyko and Komodakis 2016, figure 1; He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn_a, self.conv_a = nn.BatchNorm2d(inputs), conv(inputs, outputs, 3, stride)
        self.bn_b, self.conv_b = nn.BatchNorm2d(outputs), conv(outputs, outputs, 3)
        self.wider = inputs != outputs
        if self.wider:
            self.conv_shortcut = conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        activated = torch.relu(self.bn_a(x))
        residual = self.conv_b(torch.relu(self.bn_b(self.conv_a(activated))))
        if self.wider:
            return self.conv_shortcut(activated) + residual
        return x + residual


class PlainWRN(nn.Module):
    """Depth 40 = 4 + 3 groups of 6 blocks of 2 convolutions; width 4."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv(3, 16, 3)
        channels = [16] + 6 * [64] + 6 * [128] + 6 * [256]
        strides = {6: 2, 12: 2}
        self.blocks = nn.ModuleList(
            PlainWideBlock(channels[i], channels[i + 1], strides.get(i, 1)) for i in range(len(channels) - 1)
        )
        self.last_bn = nn.BatchNorm2d(256)
        self.out = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.out(F.avg_pool2d(torch.relu(self.last_bn(x)), 8).flatten(1))


class PlainBlock(nn.Module):
    """A basic block (He et al. 2015); where the channels change, the shortcut is a 1x1 convolution and batch norm."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv_a, self.bn_a = conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv_b, self.bn_b = conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.wider = inputs != outputs
        if self.wider:
            self.conv_shortcut, self.bn_shortcut = conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn_b(self.conv_b(torch.relu(self.bn_a(self.conv_a(x)))))
        shortcut = self.bn_shortcut(self.conv_shortcut(x)) if self.wider else x
        return torch.relu(residual + shortcut)


class PlainResNet8(nn.Module):
    """6n + 2 layers with n = 1."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.first_bn = conv(3, 16, 3), nn.BatchNorm2d(16)
        self.blocks = nn.ModuleList([PlainBlock(16, 16, 1), PlainBlock(16, 32, 2), PlainBlock(32, 64, 2)])
        self.out = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first_bn(self.first(x)))
        for block in self.blocks:
            x = block(x)
        return self.out(F.avg_pool2d(x, 8).flatten(1))


NETWORKS = {"nin": PlainNIN, "wrn-40-4": PlainWRN, "resnet-8": PlainResNet8}


def tensors_of(network: nn.Module) -> list[Tensor]:
    """Parameters in the order of the layers, then running means and variances in that order."""
    return [*network.parameters(), *(value for value in network.buffers() if value.is_floating_point())]


@torch.no_grad()
def fill(tensors: Sequence[Tensor], values: dict[str, np.ndarray]) -> None:
    """Copy values into the tensors in order, shape for shape."""
    for tensor, value in zip(tensors, values.values(), strict=True):
        assert tensor.shape == value.shape
        tensor.copy_(torch.from_numpy(value))


def network_of(name: str, weights: dict[str, np.ndarray]) -> nn.Module:
    """A network with these weights and running statistics.

    Its tensors have the channels last in memory, as the environment's have, so that the library adds in the same
    order. Rounded differently, an activation within a rounding of 0 falls on the other side of a ReLU, which changes
    the gradient of a filter by a hundredth.
    """
    network = NETWORKS[name]().to(memory_format=torch.channels_last)
    fill(tensors_of(network), weights)
    return network


# --- training -------------------------------------------------------------------------------------------------------


class PlainTraining:
    """One training run of the learning-rate game, by PyTorch's own optimizers."""

    def __init__(
        self,
        network: str,
        weights: dict[str, np.ndarray],
        *,
        optimizer: str = "sgd",
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float | None = None,
        pull: float | None = None,
        reference: dict[str, np.ndarray] | None = None,
        distillation: float = 0.0,
    ) -> None:
        self.names = list(weights)
        self.network = network_of(network, weights)
        parameters = self.network.parameters()
        if optimizer == "sgd":
            self.rate, self.rate_step, self.low, self.high = 0.1, 0.01, 0.01, 1.0
            decay = 5e-4 if weight_decay is None else weight_decay
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(
                parameters, lr=self.rate, momentum=momentum, nesterov=nesterov, weight_decay=decay
            )
        else:
            self.rate, self.rate_step, self.low, self.high = 1e-3, 1e-4, 1e-4, 0.02
            self.optimizer = torch.optim.AdamW(parameters, lr=self.rate, betas=(0.9, 0.999), weight_decay=0.01)
        self.pull, self.distillation = pull, distillation
        self.reference = None if reference is None else network_of(network, reference).eval()
        self.batches_done = 0

    def step(self, action: int, images: np.ndarray, labels: np.ndarray) -> float:
        """The action, one mini-batch, the pull; the loss before the update."""
        self.rate += {RAISE: self.rate_step, LOWER: -self.rate_step, KEEP: 0.0}[action]
        self.rate = min(max(self.rate, self.low), self.high)
        self.optimizer.param_groups[0]["lr"] = self.rate
        self.optimizer.zero_grad()
        self.network.train()
        x = torch.from_numpy(images)  # (B, 3, 32, 32)
        logits = self.network(x)
        loss = objective = F.cross_entropy(logits, torch.from_numpy(labels))
        if self.distillation:
            with torch.no_grad():
                targets = self.reference(x).softmax(dim=1)
            objective = loss + self.distillation * F.cross_entropy(logits, targets)
        objective.backward()
        self.optimizer.step()
        if self.pull is not None and self.batches_done < 1 / self.pull:
            self.pull_convolutions()
        self.batches_done += 1
        return loss.item()

    @torch.no_grad()
    def pull_convolutions(self) -> None:
        for mine, its in zip(self.network.modules(), self.reference.modules(), strict=True):
            if isinstance(mine, nn.Conv2d):
                mine.weight += self.pull * (its.weight - mine.weight)

    @torch.no_grad()
    def evaluate(self, images: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
        """Mean cross-entropy and accuracy, with the running statistics."""
        self.network.eval()
        logits, answers = self.network(torch.from_numpy(images)), torch.from_numpy(labels)
        return F.cross_entropy(logits, answers).item(), (logits.argmax(dim=1) == answers).float().mean().item()

    def weights(self) -> dict[str, np.ndarray]:
        """By the names that the weights were given with, running statistics included; copies."""
        values = tensors_of(self.network)
        return {name: value.detach().numpy().copy() for name, value in zip(self.names, values, strict=True)}

    def buffers(self, name: str) -> dict[str, np.ndarray]:
        """A buffer of the optimizer for every parameter by its name; in the optimizer's own memory, not copies."""
        parameters = list(self.network.parameters())
        named = zip(self.names, parameters, strict=False)  # the names of the running statistics are left over
        return {own: self.optimizer.state[parameter][BUFFERS[name]].numpy() for own, parameter in named}

    def copy_from(self, weights: dict[str, np.ndarray], buffers: dict[str, dict[str, np.ndarray]]) -> None:
        """Continue from another run: copy its weights, running statistics and buffers."""
        fill(tensors_of(self.network), weights)
        for name, values in buffers.items():
            for own, value in self.buffers(name).items():
                value[...] = values[own]
