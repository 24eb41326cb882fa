"""The networks that can be trained, by name."""

import math
import re
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qan_gym.optimizee import small_modules
from qan_gym.optimizee.layers import ConvMaxPoolTanh, linear
from qan_gym.optimizee.modules import module_network
from qan_gym.optimizee.network import Network, Params, leaves
from qan_gym.utils import random_streams
from qan_gym.utils.names import unknown_name
from qan_gym.utils.random_streams import drawing_from
from qan_gym.utils.registry import add

ImageShape = tuple[int, int, int]  # (C, H, W)
NetworkBuilder = Callable[[ImageShape, int], Network | nn.Module]

SCREEN_OF_DEEP = (192, 192)  # of the last convolution of the CIFAR networks


def register_network(name: str, builder: NetworkBuilder) -> None:
    """Make a kind of network available under a name.

    Args:
        name: what `network=` will accept. Reference weights are found by it: change it when you change the network.
        builder: (image shape (C, H, W), number of classes K) -> an `nn.Module` that takes images (B, C, H, W) and gives
            logits (B, K), with fresh weights at every call (the agent is shown its first convolution or linear layer;
            `module_network` lets you choose); or a `Network` that computes N of them at once.

    Raises:
        ValueError: the name is taken, or what must be callable is not.
    """
    add(NETWORKS, "a network", name, builder)


def build_network(name: str, image_shape: ImageShape, n_classes: int) -> Network:
    """The registered network for such images and classes, or one whose sizes stand in its name, as "mlp-64-64-tanh".

    Args:
        name: registered, or one of `PATTERNS`.
        image_shape: (C, H, W).
        n_classes: K.

    Raises:
        ValueError: the name is not registered, or its builder does not give a network for such images.
    """
    builder = _builder(name)
    with drawing_from(0):  # building a module draws weights
        built = builder(image_shape, n_classes)
    if isinstance(built, nn.Module):
        built = module_network(partial(builder, image_shape, n_classes), image_shape)  # type: ignore[arg-type]
    if not isinstance(built, Network):
        kind = type(built).__name__
        raise ValueError(f"the builder of network {name!r} gave a {kind}, not an nn.Module or a Network")
    _try(name, built, n_classes)
    return built


def _builder(name: str) -> NetworkBuilder:
    if name in NETWORKS:
        return NETWORKS[name]
    kind = name.partition("-")[0]
    if kind not in PATTERNS:
        raise ValueError(unknown_name("network", name, (*NETWORKS, *PATTERNS.values())))
    if kind == "mlp":
        widths, activation, normalised = mlp_sizes(name)
        return partial(mlp, widths=widths, activation=activation, normalised=normalised)
    first, second = _two_sizes(name, kind)
    if kind == "cnn":
        return partial(small_modules.cnn, widths=(first, second))
    if first % small_modules.HEAD:
        raise ValueError(f"network {name!r}: the width must be a multiple of {small_modules.HEAD}, not {first}")
    return partial(small_modules.VisionTransformer, width=first, depth=second)


def _two_sizes(name: str, kind: str) -> tuple[int, int]:
    match = re.fullmatch(rf"{kind}-([1-9][0-9]{{0,2}})-([1-9][0-9]{{0,2}})", name, re.ASCII)
    if match is None:
        raise ValueError(f"network {name!r}: it is {PATTERNS[kind]}, sizes from 1 to 999")
    return int(match[1]), int(match[2])


def _try(name: str, network: Network, n_classes: int) -> None:
    """Try the network once, before an episode begins: two forward passes and a backward pass.

    Raises:
        ValueError: the network cannot be trained on such images, or not be replayed from its seed.
    """
    images = torch.rand(1, 2, *network.image_shape, generator=torch.Generator().manual_seed(0))
    before = torch.get_rng_state()  # which a network that draws changes
    outcomes = []
    for _ in range(2):
        params = leaves(network, network.views(torch.zeros(1, network.size())))  # in one memory, as in training
        for own, value in network.initial_params(torch.zeros(1, dtype=torch.int64)).items():
            params[own].data.copy_(value)
        trained = [params[name] for name in network.trained]
        try:
            logits = network.forward(params, images, True)  # (1, 2, K)
            gradients = torch.autograd.grad(logits.sum(), trained, allow_unused=True)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ValueError(f"network {name!r} cannot take images of {network.image_shape}: {error}") from error
        outcomes.append(logits)
    found = tuple(logits.shape[1:])
    if found != (2, n_classes):
        raise ValueError(f"network {name!r} gives {found} for 2 images of {n_classes} classes, not {(2, n_classes)}")
    unused = [own for own, gradient in zip(network.trained, gradients, strict=True) if gradient is None]
    if unused:
        raise ValueError(f"network {name!r} does not use {', '.join(unused)}: leave it out, or requires_grad_(False)")
    if not torch.equal(*outcomes):
        torch.set_rng_state(before)
        raise ValueError(
            f"network {name!r} cannot be replayed from its seed: it draws random numbers while it computes, as dropout "
            "does; build it without"
        )


# --- computed N at once: the network of the paper for MNIST ---------------------------------------------------


def mnist_cnn(image_shape: ImageShape, n_classes: int) -> Network:
    """The network of the paper's MNIST experiments: two tanh convolutions, two linear layers.

    conv 5x5 to 32, tanh, max-pool 3; conv 5x5 to 64, tanh, max-pool 2; linear to 200, tanh; linear to K. Images are
    zero-padded to at least 32x32, which makes MNIST's 28x28 the original's 1x32x32 and the linear input 256.
    """
    channels, height, width = at_least_32(image_shape)
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

    def forward(params: Params, images: Tensor, training: bool) -> Tensor:
        x = features1(images, params["conv1.weight"], params["conv1.bias"])  # (N, B, 32, 9, 9)
        x = features2(x, params["conv2.weight"], params["conv2.bias"])  # (N, B, 64, 2, 2)
        x = linear(x.flatten(2), params["linear1.weight"], params["linear1.bias"]).tanh()  # (N, B, 200)
        return linear(x, params["linear2.weight"], params["linear2.bias"])  # (N, B, K)

    return Network((channels, height, width), shapes, forward, shown="conv1.weight")


def at_least_32(image_shape: ImageShape) -> ImageShape:
    """The shape that smaller images are zero-padded to."""
    channels, height, width = image_shape
    return channels, max(height, 32), max(width, 32)


# --- multilayer perceptrons ------------------------------------------------------------------------------------------

MLP_PATTERN = "mlp-W[-W[-W]][-tanh|-gelu][-norm]"  # W: the width of a hidden layer
MLP_WIDTHS = (2, 256)
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "gelu": partial(F.gelu, approximate="tanh"),
}


def mlp_sizes(name: str) -> tuple[tuple[int, ...], str, bool]:
    """The widths, the activation, and whether it is normalised, of a multilayer perceptron by name: "mlp-64-64-tanh".

    Raises:
        ValueError: the name is not `MLP_PATTERN`.
    """
    match = re.fullmatch(r"mlp((?:-[1-9][0-9]{0,3}){1,3})(?:-(tanh|gelu))?(-norm)?", name, re.ASCII)
    widths = tuple(map(int, match[1].split("-")[1:])) if match else ()
    if match is None or not all(MLP_WIDTHS[0] <= width <= MLP_WIDTHS[1] for width in widths):
        raise ValueError(
            f"network {name!r}: a multilayer perceptron is {MLP_PATTERN}, 1 to 3 widths from {MLP_WIDTHS[0]} to "
            f"{MLP_WIDTHS[1]}, ReLU where no activation is named, -norm for layer "
            "normalisation; for example mlp-32 or mlp-64-64-tanh"
        )
    return widths, match[2] or "relu", match[3] is not None


def mlp(
    image_shape: ImageShape,
    n_classes: int,
    widths: tuple[int, ...] = (32,),
    activation: str = "relu",
    initial_scale: float = 1.0,
    normalised: bool = False,
) -> Network:
    """A multilayer perceptron.

    Args:
        image_shape: (C, H, W); the numbers of an image are the inputs.
        n_classes: K.
        widths: of the hidden layers.
        activation: behind each hidden layer, one of `ACTIVATIONS`.
        initial_scale: initial weights are normal with standard deviation initial_scale * gain / sqrt(fan in); the gain
            is sqrt(2) in front of ReLU and GELU (He et al. 2015, arXiv:1502.01852), else 1. Biases begin as 0.
        normalised: layer normalisation (Ba et al. 2016, arXiv:1607.06450) of each hidden layer, in front of its
            activation, without parameters: (x - mean) / sqrt(variance + 1e-5) over the layer's units.

    Raises:
        ValueError: an argument is out of its range.
    """
    if not widths or activation not in ACTIVATIONS or not 0 < initial_scale < math.inf:
        raise ValueError(
            f"a multilayer perceptron of widths {widths}, activation {activation!r} and initial scale {initial_scale}: "
            f"it needs a hidden layer, one of {', '.join(ACTIVATIONS)}, and a scale above 0"
        )
    sides = (math.prod(image_shape), *widths, n_classes)
    shapes: dict[str, tuple[int, ...]] = {}
    for number, (inputs, outputs) in enumerate(pairwise(sides), start=1):
        shapes |= {f"layer{number}.weight": (outputs, inputs), f"layer{number}.bias": (outputs,)}
    layers, apply = len(widths) + 1, ACTIVATIONS[activation]

    def forward(params: Params, images: Tensor, training: bool) -> Tensor:
        x = images.flatten(2)  # (N, B, D)
        for number in range(1, layers + 1):
            x = linear(x, params[f"layer{number}.weight"], params[f"layer{number}.bias"])  # (N, B, width)
            if number < layers:
                x = apply(F.layer_norm(x, x.shape[-1:]) if normalised else x)
        return x  # (N, B, K)

    def initial(seeds: Tensor) -> Params:
        params = {}
        for place, (name, shape) in enumerate(shapes.items()):
            params[name] = torch.zeros(len(seeds), *shape, device=seeds.device)
            if name.endswith("weight"):
                gain = 1.0 if activation == "tanh" or name == f"layer{layers}.weight" else math.sqrt(2)
                deviation = initial_scale * gain / math.sqrt(shape[1])
                values = random_streams.normal(seeds, random_streams.WEIGHTS, place, math.prod(shape)) * deviation
                params[name] = values.to(torch.float32).view(-1, *shape)
        return params

    return Network(image_shape, shapes, forward, shown="layer1.weight", initial=initial)


# --- modules, for CIFAR-10 -------------------------------------------------------------------------------------------


def nin(image_shape: ImageShape, n_classes: int) -> Network:
    """Network in Network (Lin et al. 2013, arXiv:1312.4400) with batch norm, as the original trained it.

    5x5 to 192, 1x1 to 160, 1x1 to 96, max-pool 3/2; 5x5 to 192, 1x1 to 192 twice, average-pool 3/2; 3x3 to 192, 1x1 to
    192 twice, mean over the image, linear to K. The convolutions have no bias; batch norm and ReLU follow each.
    """

    def make(channels: int) -> nn.Module:
        return nn.Sequential(
            _named(
                *_conv_norm_relu(1, channels, 192, 5),
                *_conv_norm_relu(2, 192, 160, 1),
                *_conv_norm_relu(3, 160, 96, 1),
                ("pool1", nn.MaxPool2d(3, 2, ceil_mode=True)),  # (B, 96, 16, 16)
                *_conv_norm_relu(4, 96, 192, 5),
                *_conv_norm_relu(5, 192, 192, 1),
                *_conv_norm_relu(6, 192, 192, 1),
                ("pool2", nn.AvgPool2d(3, 2, ceil_mode=True)),  # (B, 192, 8, 8)
                *_conv_norm_relu(7, 192, 192, 3),
                *_conv_norm_relu(8, 192, 192, 1),
                *_conv_norm_relu(9, 192, 192, 1),
                *_classifier(192, n_classes),
            )
        )

    return _deep(make, image_shape, shown="conv9.weight")


def wrn_40_4(image_shape: ImageShape, n_classes: int) -> Network:
    """The Wide ResNet of the original's run script (Zagoruyko and Komodakis 2016, arXiv:1605.07146): depth 40, width 4.

    conv 3x3 to 16; three groups of six pre-activation blocks of two 3x3 convolutions, to 64, 128 and 256 channels, the
    second and third group at half the size; batch norm, ReLU, mean over the image, linear to K. No dropout.
    """

    def make(channels: int) -> nn.Module:
        layers: list[tuple[str, nn.Module]] = [("conv1", _conv(channels, 16, 3))]
        inputs = 16
        for group, outputs in enumerate((64, 128, 256), start=1):
            for number in range(1, 7):
                stride = 2 if group > 1 and number == 1 else 1
                layers.append((f"group{group}_{number}", WideBlock(inputs, outputs, stride)))
                inputs = outputs
        layers += [("norm", nn.BatchNorm2d(inputs)), ("relu", nn.ReLU(inplace=True))]
        return nn.Sequential(_named(*layers, *_classifier(inputs, n_classes)))

    return _deep(make, image_shape, shown="group3_6.conv2.weight")


def resnet_8(image_shape: ImageShape, n_classes: int) -> Network:
    """The smallest ResNet for CIFAR (He et al. 2015, arXiv:1512.03385, 6n + 2 layers with n = 1), for CPUs.

    conv 3x3 to 16, batch norm, ReLU; three blocks of two 3x3 convolutions, to 16, 32 and 64 channels, the second and
    third at half the size, with a 1x1 convolution on their shortcut; mean over the image, linear to K.
    """

    return _deep(partial(resnet_8_module, n_classes=n_classes), image_shape, shown="block3.conv2.weight")


def resnet_8_module(channels: int, n_classes: int) -> nn.Module:
    """The layers of `resnet_8` with PyTorch's own initialisation: (B, channels, H, W) -> (B, n_classes)."""
    blocks = [("block1", Block(16, 16, 1)), ("block2", Block(16, 32, 2)), ("block3", Block(32, 64, 2))]
    return nn.Sequential(_named(*_conv_norm_relu(1, channels, 16, 3), *blocks, *_classifier(64, n_classes)))


def _deep(make: Callable[[int], nn.Module], image_shape: ImageShape, shown: str) -> Network:
    """He's initialisation (arXiv:1502.01852), fan in; the pull acts on the convolutions."""
    image_shape = at_least_32(image_shape)

    def initialised() -> nn.Module:
        module = make(image_shape[0])
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            elif isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)
        return module

    convolutions = tuple(name for name, value in make(image_shape[0]).named_parameters() if value.dim() == 4)
    return module_network(initialised, image_shape, shown, convolutions, SCREEN_OF_DEEP, torch.channels_last)


def _named(*layers: tuple[str, nn.Module]) -> "OrderedDict[str, nn.Module]":
    return OrderedDict(layers)


def _conv(inputs: int, outputs: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size, stride, padding=kernel_size // 2, bias=False)


def _conv_norm_relu(number: int, inputs: int, outputs: int, kernel_size: int) -> list[tuple[str, nn.Module]]:
    return [
        (f"conv{number}", _conv(inputs, outputs, kernel_size)),
        (f"norm{number}", nn.BatchNorm2d(outputs)),
        (f"relu{number}", nn.ReLU(inplace=True)),
    ]


def _classifier(inputs: int, n_classes: int) -> list[tuple[str, nn.Module]]:
    return [("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten()), ("linear", nn.Linear(inputs, n_classes))]


class Block(nn.Module):
    """A basic residual block: conv, norm, ReLU, conv, norm, plus the shortcut, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = _conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        y = self.norm1(self.conv1(x)).relu_()
        y = self.norm2(self.conv2(y))
        outputs: Tensor = (y + self.shortcut(x)).relu_()
        return outputs


class WideBlock(nn.Module):
    """A pre-activation block: norm, ReLU, conv, norm, ReLU, conv, plus the shortcut.

    Where the channels change, the shortcut is a 1x1 convolution of the activated input.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), _conv(inputs, outputs, 3, stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(outputs), _conv(outputs, outputs, 3)
        self.shortcut = _conv(inputs, outputs, 1, stride) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        activated = self.norm1(x).relu_()
        y = self.conv2(self.norm2(self.conv1(activated)).relu_())
        outputs: Tensor = y + (x if self.shortcut is None else self.shortcut(activated))
        return outputs


# Kinds whose sizes stand in the name.
PATTERNS = {
    "mlp": MLP_PATTERN,
    "cnn": "cnn-W-W",  # channels of the two convolutions
    "vit": "vit-W-D",  # width of the embedding, and blocks
}

NETWORKS: dict[str, NetworkBuilder] = {
    "mnist-cnn": mnist_cnn,
    "nin": nin,
    "wrn-40-4": wrn_40_4,
    "resnet-8": resnet_8,
}
