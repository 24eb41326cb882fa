"""N networks as stacked parameters: forward, loss, gradients, measurement.

The parameters of N networks of one kind are a dict of tensors with a leading axis N. Among them are the running
statistics of batch norm, which belong to a network as its weights do, but are not trained by gradients.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qan_gym.utils import random_streams

Params = dict[str, Tensor]  # name -> (N, *shape)


@dataclass(frozen=True)
class Network:
    """A kind of network.

    Attributes:
        image_shape: (C, H, W) of its input; smaller images are zero-padded to it.
        shapes: the shape of each parameter of one network, running statistics among them.
        forward: (params, images (N, B, C, H, W) float32, training) -> logits (N, B, K). In training it moves the
            running statistics on, in place; otherwise it uses them.
        shown: the name of the weight whose filters the agent sees, one row per output channel.
        initial: (seeds (N,) int64) -> parameters of fresh networks, each from its seed and nothing else; None: every
            weight and bias uniform in +-1/sqrt(fan-in), for names that end in `.weight` and `.bias`.
        statistics: the names of the parameters that are not trained: running statistics and constants.
        pulled: the names of the weights that meta-momentum acts on; None: all with more than one axis.
        screen: (rows, columns) to lay out the first rows * columns numbers of `shown` in; None: a row per filter.
        at_once: `forward` computes N networks in batched products, so that N at once are faster than one after another.
        memory_format: of the convolutions' weights, where `forward` computes one after another.
    """

    image_shape: tuple[int, int, int]
    shapes: dict[str, tuple[int, ...]]
    forward: Callable[[Params, Tensor, bool], Tensor]
    shown: str
    initial: Callable[[Tensor], Params] | None = None
    statistics: tuple[str, ...] = ()
    pulled: tuple[str, ...] | None = None
    screen: tuple[int, int] | None = None
    at_once: bool = True
    memory_format: torch.memory_format = torch.contiguous_format

    @property
    def trained(self) -> list[str]:
        """The names of the parameters that gradients are taken for."""
        return [name for name in self.shapes if name not in self.statistics]

    @property
    def weights(self) -> list[str]:
        """The names of the tensors that meta-momentum acts on."""
        return list(self.pulled or (name for name in self.trained if len(self.shapes[name]) > 1))

    def initial_params(self, seeds: Tensor, scale: float = 1.0) -> Params:
        """Fresh networks, (N, *shape) each; the parameters of a network depend on its seed (N,) and nothing else.

        Args:
            seeds: (N,) int64.
            scale: multiplies what is trained and has more than one axis: weights, not biases.
        """
        params = _uniform(self.shapes, seeds) if self.initial is None else self.initial(seeds)
        scaled = {name for name in self.trained if len(self.shapes[name]) > 1}
        return {name: value * scale if name in scaled else value for name, value in params.items()}

    def size(self) -> int:
        """Numbers that the parameters of one network take in memory, the gaps between them counted in."""
        return sum(map(_room, self.shapes.values()))

    def places(self) -> dict[str, slice]:
        """Where each parameter lies in the memory of a network."""
        places, start = {}, 0
        for name, shape in self.shapes.items():
            places[name] = slice(start, start + math.prod(shape))
            start += _room(shape)
        return places

    def views(self, memory: Tensor) -> Params:
        """The parameters of N networks as views of (N, size()) memory.

        They lie there as layers want them; for batched products the outputs of a layer last, before them the input
        channels.
        """
        params = {}
        for name, place in self.places().items():
            shape, value = self.shapes[name], memory[:, place]
            if len(shape) == 4 and self.at_once:
                filters, channels, height, width = shape
                value = value.unflatten(1, (height, width, channels, filters)).permute(0, 4, 3, 1, 2)
            elif len(shape) == 4 and self.memory_format == torch.channels_last:
                filters, channels, height, width = shape
                value = value.unflatten(1, (filters, height, width, channels)).permute(0, 1, 4, 2, 3)
            elif len(shape) == 2 and self.at_once:
                value = value.unflatten(1, shape[::-1]).transpose(1, 2)
            else:
                value = value.view(len(memory), *shape)
            params[name] = value  # (N, *shape)
        return params


def _room(shape: tuple[int, ...]) -> int:
    """Numbers from one parameter to the next, so that each begins on a boundary of 64 bytes."""
    return -(-math.prod(shape) // 16) * 16


def _uniform(shapes: dict[str, tuple[int, ...]], seeds: Tensor) -> Params:
    """Every weight and bias uniform in +-1/sqrt(fan-in), as Torch and PyTorch do."""
    params = {}
    for number, (name, shape) in enumerate(shapes.items()):
        layer = name.rpartition(".")[0]
        fan_in = math.prod(shapes[f"{layer}.weight"][1:])
        unit = random_streams.uniform(seeds, random_streams.WEIGHTS, number, math.prod(shape))  # (N, size)
        params[name] = ((2 * unit - 1) / math.sqrt(fan_in)).reshape(-1, *shape)
    return params


def leaves(network: Network, params: Params) -> Params:
    """The same parameters, in the same memory; those that are trained as tensors that gradients are taken for.

    `.data`, because what `detach` gives shares a count of changes with all of the memory: running statistics that move
    on in a forward pass would seem to change the weights that the backward pass needs.
    """
    mine = {name: value.data for name, value in params.items()}
    return mine | {name: mine[name].requires_grad_() for name in network.trained}


def logits_of(network: Network, params: Params, images: Tensor, training: bool, dtype: torch.dtype) -> Tensor:
    """The network's forward pass in some precision; (N, B, K) float32."""
    if dtype == torch.float32:
        return network.forward(params, images, training)
    if network.at_once:
        cast = {name: value.to(dtype) for name, value in params.items()}
        return network.forward(cast, images.to(dtype), training).to(torch.float32)
    # Layer by layer, as the library sees fit: batch norm stays in float32. A cache would outlive a captured graph.
    with torch.autocast(images.device.type, dtype, cache_enabled=False):
        return network.forward(params, images, training).to(torch.float32)


def loss_and_gradients(
    network: Network,
    params: Params,
    images: Tensor,
    labels: Tensor,
    soft_targets: Tensor | None,
    weight: Tensor | None,
    dtype: torch.dtype = torch.float32,
    scale: Tensor | None = None,
    each: Tensor | None = None,
    class_weights: Tensor | None = None,
) -> tuple[Tensor, Params]:
    """Cross-entropy of N mini-batches and its gradients, with soft targets if given, both times a scale.

    The gradients are those of cross-entropy(labels) + weight * cross-entropy(soft targets) (Hinton et al. 2015,
    temperature 1); the returned loss is the first term alone, so that it means the same with and without them. The
    first term is the mean over the images, each times the weight of its class.

    Args:
        network: the kind.
        params: N networks, leaves that require gradients (see `leaves`); their running statistics move on.
        images: (N, B, C, H, W) float32.
        labels: (N, B) int64.
        soft_targets: (N, B, K) probabilities, or None.
        weight: (N,) of the soft-target term; used with `soft_targets`.
        dtype: that the network computes in; the loss, the parameters and their gradients are float32 in any case.
        scale: (N,) float32; None: 1.
        each: (N, B) float32, out: the loss of each image, without scale and weight; None: they are not kept.
        class_weights: (N, K) float32, of the losses of the images of each class; None: 1.

    Returns:
        The loss (N,), detached, and the gradients of the trained parameters, shaped like them.
    """
    with torch.enable_grad():
        logits = logits_of(network, params, images, True, dtype)  # (N, B, K)
    log_likelihood = logits.detach().log_softmax(dim=2)  # (N, B, K)
    own = -log_likelihood.gather(2, labels[..., None])  # (N, B, 1)
    if each is not None:
        each.copy_(own[..., 0])
    of_images = None if class_weights is None else class_weights.gather(1, labels)[..., None]  # (N, B, 1)
    loss = (own if of_images is None else of_images * own).mean(dim=(1, 2))  # (N,)
    # The gradient of cross-entropy with regard to the logits is softmax - targets: written out, it is faster.
    likelihood = log_likelihood.exp()
    minus_one = likelihood.new_full((1, 1, 1), -1.0).expand(*labels.shape, 1)
    d_logits = likelihood.scatter_add(2, labels[..., None], minus_one)
    if of_images is not None:
        d_logits *= of_images
    if soft_targets is not None and weight is not None:
        d_logits += per_run(weight, d_logits) * (likelihood - soft_targets)
    if scale is not None:
        loss, d_logits = scale * loss, per_run(scale, d_logits) * d_logits
    names = network.trained
    gradients = torch.autograd.grad(logits, [params[name] for name in names], d_logits / labels.shape[1])
    return loss, dict(zip(names, gradients, strict=True))


def per_run(values: Tensor, like: Tensor) -> Tensor:
    """(N,) -> (N, 1, ..., 1), to go with a tensor whose leading axis is N."""
    return values.view(-1, *[1] * (like.dim() - 1))


@torch.no_grad()
def evaluate(network: Network, params: Params, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy and accuracy of N networks on the same images.

    Args:
        network: the kind.
        params: N networks.
        batches: pairs of images (b, C, H, W) float32 and labels (b,) int64.

    Returns:
        Loss (N,) and accuracy (N,) in [0, 1], float32.
    """
    total = correct = params[network.shown].new_zeros(len(params[network.shown]))  # (N,)
    count = 0
    for images, labels in batches:
        logits = network.forward(params, images.expand(len(total), *images.shape), False)  # (N, b, K)
        losses = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(total)), reduction="none")  # (N * b,)
        total = total + losses.view(len(total), -1).sum(dim=1)
        correct = correct + (logits.argmax(dim=2) == labels).sum(dim=1)
        count += len(labels)
    return total / count, correct / count
