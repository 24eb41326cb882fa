"""A kind of network from a PyTorch module: N of them, computed one after the other."""

import threading
from collections.abc import Callable
from copy import deepcopy
from functools import cache

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from qan_gym.optimizee.network import Network, Params
from qan_gym.utils.random_streams import drawing_from

COUNT = "num_batches_tracked"  # of batch norm; only a cumulative average reads it


def module_network(
    make: Callable[[], nn.Module],
    image_shape: tuple[int, int, int],
    shown: str | None = None,
    pulled: tuple[str, ...] | None = None,
    screen: tuple[int, int] | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Network:
    """A network from an ordinary PyTorch module, which may have batch norm, but must not draw random numbers.

    On CUDA its forward pass is captured: it must consist of tensor operations, and not wait for the device. Buffers of
    integers are taken for constants.

    The networks are computed one after the other, each by the library's own convolutions, which for a large network
    is as fast as all at once, and needs the memory of one. Batch norm's running statistics are each network's own,
    kept while training and used when measuring. Parameters with `requires_grad=False` stay as they are.

    Args:
        make: () -> a module with fresh weights, which it draws as from PyTorch's default generator, on CPU, and does
            not seed itself. It is called once per episode, and draws what it would after `torch.manual_seed` of the
            episode's seed; the default generator is left alone.
        image_shape: (C, H, W) of the module's input; smaller images are zero-padded to it.
        shown: the name of the weight that the agent sees, one row per output channel; None: that of the first
            convolution or linear layer.
        pulled: the names of the weights that meta-momentum acts on; None: of all convolutions and linear layers.
        screen: (rows, columns) to lay out the first rows * columns numbers of `shown` in; None: a row per filter.
        memory_format: of images and convolutions; with `torch.channels_last` a deep network is 1.7 times as fast on
            CPU, but the module must not take a view of what its convolutions give.

    Raises:
        ValueError: the module is not in float32, has no weight named `shown`, or has a batch norm with a cumulative
            average.
    """
    with drawing_from(0):
        template = make().train()
    tensors = _tensors(template)
    kept = [name for name, value in tensors.items() if value.is_floating_point()]
    constants = {name: value for name, value in tensors.items() if name not in kept and not name.endswith(COUNT)}
    if any(isinstance(layer, _BatchNorm) and layer.momentum is None for layer in template.modules()):
        raise ValueError("batch norm with momentum=None averages over all that it has seen: give it a momentum")
    trained = [name for name, value in template.named_parameters() if value.requires_grad]
    others = [name for name in trained if tensors[name].dtype != torch.float32]
    if others:
        raise ValueError(f"the network's parameters must be float32; these are not: {', '.join(others)}")
    weights = [name for name in _weights(template) if name in trained]
    if not weights or (shown is not None and shown not in weights):
        raise ValueError(f"the network has no weight {shown or ''} to show; it has {', '.join(weights) or 'none'}")
    shown = shown or weights[0]
    if screen is not None and screen[0] * screen[1] > tensors[shown].numel():
        raise ValueError(f"a screen of {screen} needs more weights than the {tensors[shown].numel()} of {shown}")
    modules = _Modules(template)

    @cache
    def constants_on(device: torch.device) -> Params:
        return {name: value.to(device) for name, value in constants.items()}

    def forward(params: Params, images: Tensor, training: bool) -> Tensor:
        logits = []
        for row, own in enumerate(images):
            one = {name: value[row] for name, value in params.items()} | constants_on(images.device)
            own = own.contiguous(memory_format=memory_format)  # (B, C, H, W)
            logits.append(functional_call(modules.of(training), one, (own,)))  # (B, K)
        return torch.stack(logits)  # (N, B, K)

    def initial(seeds: Tensor) -> Params:
        networks = []
        for seed in seeds.tolist():
            with drawing_from(seed):
                networks.append(_tensors(make()))
        params = {name: torch.stack([network[name].detach() for network in networks]) for name in kept}
        return {name: value.to(seeds.device, torch.float32) for name, value in params.items()}

    return Network(
        image_shape=image_shape,
        shapes={name: tuple(tensors[name].shape) for name in kept},
        forward=forward,
        shown=shown,
        initial=initial,
        statistics=tuple(name for name in kept if name not in trained),
        pulled=pulled or tuple(weights),
        screen=screen,
        at_once=False,
        memory_format=memory_format,
    )


class _Modules(threading.local):
    """A module in training and one in evaluation, of each thread its own: a call puts its weights into them."""

    def __init__(self, template: nn.Module) -> None:
        self.training, self.evaluation = deepcopy(template).train(), deepcopy(template).eval()

    def of(self, training: bool) -> nn.Module:
        return self.training if training else self.evaluation


def _tensors(module: nn.Module) -> Params:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _weights(module: nn.Module) -> list[str]:
    """The names of the weights of all convolutions and linear layers."""
    layers = module.named_modules()
    return [f"{name}.weight".removeprefix(".") for name, layer in layers if isinstance(layer, _ConvNd | nn.Linear)]
