"""N networks as stacked parameters: forward, loss, gradients, update.

The parameters of N networks of one kind are a dict of tensors with a leading axis N.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qan_gym import streams
from qan_gym.layers import ConvMaxPoolTanh, linear

Params = dict[str, Tensor]  # name -> (N, *shape)

EVALUATION_BATCH = 20  # images that a network is given at once when it is measured


@dataclass(frozen=True)
class Network:
    """A kind of network.

    Attributes:
        image_shape: (C, H, W) of its input; smaller images are zero-padded to it.
        shapes: the shape of each parameter of one network. Names end in `.weight` or `.bias`.
        forward: (params, images (N, B, C, H, W) float32) -> logits (N, B, K).
        shown: the name of the weight whose filters the agent sees, one row per output channel.
    """

    image_shape: tuple[int, int, int]
    shapes: dict[str, tuple[int, ...]]
    forward: Callable[[Params, Tensor], Tensor]
    shown: str

    @property
    def weights(self) -> list[str]:
        """The names of the weight tensors, biases left out."""
        return [name for name in self.shapes if name.endswith(".weight")]

    def size(self) -> int:
        """Numbers that the parameters of one network take in memory, the gaps between them counted in."""
        return sum(map(_room, self.shapes.values()))

    def views(self, memory: Tensor) -> Params:
        """The parameters of N networks as views of (N, size()) memory.

        They lie there as layers want them: the outputs of a layer last, before them the input channels.
        """
        params, start = {}, 0
        for name, shape in self.shapes.items():
            value = memory[:, start : start + math.prod(shape)]
            if len(shape) == 4:
                filters, channels, height, width = shape
                value = value.unflatten(1, (height, width, channels, filters)).permute(0, 4, 3, 1, 2)
            elif len(shape) == 2:
                value = value.unflatten(1, shape[::-1]).transpose(1, 2)
            params[name] = value  # (N, *shape)
            start += _room(shape)
        return params


def _room(shape: tuple[int, ...]) -> int:
    """Numbers from one parameter to the next, so that each begins on a boundary of 64 bytes."""
    return -(-math.prod(shape) // 16) * 16


NetworkBuilder = Callable[[tuple[int, int, int], int], Network]


def register_network(name: str, builder: NetworkBuilder) -> None:
    """Make a kind of network available under a name.

    Args:
        name: what `network=` will accept.
        builder: (image shape (C, H, W), number of classes) -> Network.

    Raises:
        ValueError: the name is taken.
    """
    if name in NETWORKS:
        raise ValueError(f"a network cannot be registered as {name!r}: the name is taken")
    NETWORKS[name] = builder


def build_network(name: str, image_shape: tuple[int, int, int], n_classes: int) -> Network:
    """The registered network for such images and classes.

    Raises:
        ValueError: the name is not registered.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; there are {', '.join(NETWORKS)}")
    return NETWORKS[name](image_shape, n_classes)


# --- mnist-cnn ------------------------------------------------------------------------------------------------------


def mnist_cnn(image_shape: tuple[int, int, int], n_classes: int) -> Network:
    """The network of the paper's MNIST experiments: two tanh convolutions, two linear layers.

    conv 5x5 to 32, tanh, max-pool 3; conv 5x5 to 64, tanh, max-pool 2; linear to 200, tanh; linear to K. Images are
    zero-padded to at least 32x32, which makes MNIST's 28x28 the original's 1x32x32 and the linear input 256.
    """
    channels, height, width = image_shape[0], max(image_shape[1], 32), max(image_shape[2], 32)
    rows, columns = (((size - 4) // 3 - 4) // 2 for size in (height, width))
    features = 64 * rows * columns
    shapes: dict[str, tuple[int, ...]] = {
        "conv1.weight": (32, channels, 5, 5),
        "conv1.bias": (32,),
        "conv2.weight": (64, 32, 5, 5),
        "conv2.bias": (64,),
        "linear1.weight": (200, features),
        "linear1.bias": (200,),
        "linear2.weight": (n_classes, 200),
        "linear2.bias": (n_classes,),
    }
    features1 = ConvMaxPoolTanh(kernel_size=5, pool_size=3)
    features2 = ConvMaxPoolTanh(kernel_size=5, pool_size=2)

    def forward(params: Params, images: Tensor) -> Tensor:
        x = features1(images, params["conv1.weight"], params["conv1.bias"])  # (N, B, 32, 9, 9)
        x = features2(x, params["conv2.weight"], params["conv2.bias"])  # (N, B, 64, 2, 2)
        x = linear(x.flatten(2), params["linear1.weight"], params["linear1.bias"]).tanh()  # (N, B, 200)
        return linear(x, params["linear2.weight"], params["linear2.bias"])  # (N, B, K)

    return Network((channels, height, width), shapes, forward, shown="conv1.weight")


NETWORKS: dict[str, NetworkBuilder] = {"mnist-cnn": mnist_cnn}


# --- initialisation, loss, update -----------------------------------------------------------------------------------


def initial_params(network: Network, seeds: Tensor) -> Params:
    """Fresh networks: every weight and bias uniform in +-1/sqrt(fan-in), as Torch and PyTorch do.

    Args:
        network: the kind.
        seeds: (N,) int64; the parameters of a network depend on its seed and nothing else.
    """
    params = {}
    for number, (name, shape) in enumerate(network.shapes.items()):
        layer = name.rpartition(".")[0]
        fan_in = math.prod(network.shapes[f"{layer}.weight"][1:])
        unit = streams.uniform(seeds, streams.WEIGHTS, number, math.prod(shape))  # (N, size)
        params[name] = ((2 * unit - 1) / math.sqrt(fan_in)).reshape(-1, *shape)
    return params


def leaves(params: Params) -> Params:
    """The same parameters, in the same memory, as tensors that gradients are taken for."""
    return {name: value.detach().requires_grad_() for name, value in params.items()}


def loss_and_gradients(
    network: Network,
    params: Params,
    images: Tensor,
    labels: Tensor,
    soft_targets: Tensor | None,
    weight: Tensor | None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Params]:
    """Cross-entropy of N mini-batches and its gradients, with soft targets if given.

    The gradients are those of cross-entropy(labels) + weight * cross-entropy(soft targets) (Hinton et al. 2015,
    temperature 1); the returned loss is the first term alone, so that it means the same with and without them.

    Args:
        network: the kind.
        params: N networks, leaves that require gradients (see `leaves`).
        images: (N, B, C, H, W) float32.
        labels: (N, B) int64.
        soft_targets: (N, B, K) probabilities, or None.
        weight: (N,) of the soft-target term; used with `soft_targets`.
        dtype: that the network computes in; the loss, the parameters and their gradients are float32 in any case.

    Returns:
        The loss (N,), detached, and the gradients, shaped like the parameters.
    """
    with torch.enable_grad():
        if dtype == torch.float32:
            logits = network.forward(params, images)  # (N, B, K)
        else:
            cast = {name: value.to(dtype) for name, value in params.items()}
            logits = network.forward(cast, images.to(dtype)).to(torch.float32)
    log_likelihood = logits.detach().log_softmax(dim=2)  # (N, B, K)
    loss = -log_likelihood.gather(2, labels[..., None]).mean(dim=(1, 2))  # (N,)
    # The gradient of cross-entropy with regard to the logits is softmax - targets: written out, it is faster.
    likelihood = log_likelihood.exp()
    minus_one = likelihood.new_full((1, 1, 1), -1.0).expand(*labels.shape, 1)
    d_logits = likelihood.scatter_add(2, labels[..., None], minus_one)
    if soft_targets is not None and weight is not None:
        d_logits += per_run(weight, d_logits) * (likelihood - soft_targets)
    gradients = torch.autograd.grad(logits, list(params.values()), d_logits / labels.shape[1])
    return loss, dict(zip(params, gradients, strict=True))


def sgd(params: Params, gradients: Params, learning_rate: Tensor) -> None:
    """w <- w - lr * g, in place; learning_rate is (N,) float32."""
    for name, value in params.items():
        value.addcmul_(gradients[name], per_run(learning_rate, value), value=-1)


OPTIMIZERS: dict[str, Callable[[Params, Params, Tensor], None]] = {"sgd": sgd}


def per_run(values: Tensor, like: Tensor) -> Tensor:
    """(N,) -> (N, 1, ..., 1), to go with a tensor whose leading axis is N."""
    return values.view(-1, *[1] * (like.dim() - 1))


@torch.no_grad()
def evaluate(network: Network, params: Params, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy and accuracy of N networks on the same images.

    Args:
        network: the kind.
        params: N networks.
        images: (n, C, H, W) float32.
        labels: (n,) int64.

    Returns:
        Loss (N,) and accuracy (N,) in [0, 1], float32.
    """
    num_runs = len(params[network.shown])
    total = correct = torch.zeros(num_runs, device=labels.device)
    for some, targets in zip(images.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True):
        logits = network.forward(params, some.expand(num_runs, *some.shape))  # (N, B, K)
        losses = F.cross_entropy(logits.flatten(0, 1), targets.repeat(num_runs), reduction="none")  # (N * B,)
        total = total + losses.view(num_runs, -1).sum(dim=1)
        correct = correct + (logits.argmax(dim=2) == targets).sum(dim=1)
    return total / len(labels), correct / len(labels)
