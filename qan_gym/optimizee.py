"""N networks as stacked parameters: forward, loss, gradients, update.

The parameters of N networks of one kind are a dict of tensors with a leading axis N. Convolutions of N networks are
one convolution with N groups, linear layers one batched matrix product; for N = 1 both are the plain operations.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qan_gym import streams

Params = dict[str, Tensor]  # name -> (N, *shape)

EVALUATION_BATCH = 500  # images; a larger one only costs memory


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


# --- layers of N networks -------------------------------------------------------------------------------------------


def conv2d(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """N convolutions as one with N groups.

    Args:
        images: (B, N * C, H, W): the channels of network i are block i.
        weight: (N, O, C, h, w).
        bias: (N, O).

    Returns:
        (B, N * O, H - h + 1, W - w + 1).
    """
    return F.conv2d(images, weight.flatten(0, 1), bias.flatten(), groups=len(weight))


def linear(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """N linear layers: inputs (N, B, I), weight (N, O, I), bias (N, O) -> (N, B, O)."""
    if len(weight) == 1:  # the plain product is faster than a batched one of one
        return F.linear(inputs[0], weight[0], bias[0])[None]
    return torch.baddbmm(bias[:, None], inputs, weight.transpose(1, 2))


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
    return Network((channels, height, width), shapes, _mnist_cnn_forward, shown="conv1.weight")


def _mnist_cnn_forward(params: Params, images: Tensor) -> Tensor:
    num_runs, batch_size = images.shape[:2]
    x = images.transpose(0, 1).flatten(1, 2)  # (B, N * C, 32, 32)
    # tanh is monotonic, so pooling before it gives the same values from a fraction of the tanhs.
    x = conv2d(x, params["conv1.weight"], params["conv1.bias"])  # (B, N * 32, 28, 28)
    x = F.max_pool2d(x, 3).tanh()  # (B, N * 32, 9, 9)
    x = conv2d(x, params["conv2.weight"], params["conv2.bias"])  # (B, N * 64, 5, 5)
    x = F.max_pool2d(x, 2).tanh()  # (B, N * 64, 2, 2)
    x = x.reshape(batch_size, num_runs, -1).transpose(0, 1)  # (N, B, 256)
    x = linear(x, params["linear1.weight"], params["linear1.bias"]).tanh()  # (N, B, 200)
    return linear(x, params["linear2.weight"], params["linear2.bias"])  # (N, B, K)


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


def loss_and_gradients(
    network: Network, params: Params, images: Tensor, labels: Tensor, soft_targets: Tensor | None, weight: Tensor | None
) -> tuple[Tensor, Params]:
    """Cross-entropy of N mini-batches and its gradients, with soft targets if given.

    The gradients are those of cross-entropy(labels) + weight * cross-entropy(soft targets) (Hinton et al. 2015,
    temperature 1); the returned loss is the first term alone, so that it means the same with and without them.

    Args:
        network: the kind.
        params: N networks.
        images: (N, B, C, H, W) float32.
        labels: (N, B) int64.
        soft_targets: (N, B, K) probabilities, or None.
        weight: (N,) of the soft-target term; used with `soft_targets`.

    Returns:
        The loss (N,), detached, and the gradients, shaped like the parameters.
    """
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    with torch.enable_grad():
        logits = network.forward(leaves, images)  # (N, B, K)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        loss = loss.view(labels.shape).mean(dim=1)  # (N,)
        objective = loss
        if soft_targets is not None and weight is not None:
            soft = -(soft_targets * logits.log_softmax(dim=2)).sum(dim=2).mean(dim=1)  # (N,)
            objective = loss + weight * soft
        # The networks share nothing, so the gradient of the sum is every network's own gradient.
        gradients = torch.autograd.grad(objective.sum(), list(leaves.values()))
    return loss.detach(), dict(zip(leaves, gradients, strict=True))


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
    loss = correct = torch.zeros(num_runs, device=labels.device)
    for some, targets in zip(images.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True):
        logits = network.forward(params, some.expand(num_runs, *some.shape))  # (N, B, K)
        log_likelihood = logits.log_softmax(dim=2)[:, torch.arange(len(targets)), targets]  # (N, B)
        loss = loss - log_likelihood.sum(dim=1)
        correct = correct + (logits.argmax(dim=2) == targets).sum(dim=1)
    return loss / len(labels), correct / len(labels)
