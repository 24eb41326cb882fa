"""The layers of N networks at once, against PyTorch's own functions applied to each network; and where weights lie."""

import math

import pytest
import torch
import torch.nn.functional as F

from qan_gym.optimizee.layers import ConvMaxPoolTanh, linear
from qan_gym.optimizee.zoo import build_network

EXACT = {"rtol": 1e-10, "atol": 1e-12}  # in float64: sums of up to 800 products, in another order

# N, B, C, H, W, outputs, kernel size, pooling size
SHAPES = [
    (1, 1, 1, 5, 5, 1, 3, 3),  # a single window
    (1, 4, 1, 12, 12, 8, 5, 2),
    (3, 4, 1, 32, 32, 32, 5, 3),  # 28 places, of which 27 are covered by windows
    (3, 1, 3, 11, 14, 6, 5, 2),  # 7 and 10 places
    (3, 4, 3, 9, 10, 4, 3, 3),  # 7 and 8 places
    (1, 4, 32, 9, 9, 16, 5, 2),  # 5 places
    (3, 1, 32, 8, 7, 16, 3, 3),
    (3, 4, 32, 8, 11, 5, 3, 2),
]


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def expanded(images: torch.Tensor) -> torch.Tensor:
    """The same images for every network, as where networks are measured."""
    return images[0].expand_as(images)


def cut_out(images: torch.Tensor) -> torch.Tensor:
    """The same, in the middle of a larger tensor."""
    n, b, _, height, width = images.shape
    around = F.pad(images, (1, 2, 2, 1, 0, 1, 1, 0))
    return around[:n, 1 : 1 + b, : images.shape[2], 2 : 2 + height, 1 : 1 + width]


def channels_last(images: torch.Tensor) -> torch.Tensor:
    return images.movedim(2, -1).contiguous().movedim(-1, 2)


LAYOUTS = [torch.clone, expanded, cut_out, channels_last]


def outputs_last(weight: torch.Tensor) -> torch.Tensor:
    """The same values, the outputs last in memory and the channels before them: as in training."""
    return weight.permute(0, 3, 4, 2, 1).contiguous().permute(0, 4, 3, 1, 2)


def of_each_network(images, weight, bias, pool_size):
    """max-pool(tanh(convolution)) by PyTorch, a network after the other."""
    parts = [F.conv2d(*network).tanh() for network in zip(images, weight, bias, strict=True)]
    return torch.stack([F.max_pool2d(part, pool_size) for part in parts])


def tensors_of(shape, layout=torch.clone, dtype=torch.float64):
    """Images, weight and bias that gradients are taken for."""
    n, b, c, height, width, filters, kernel_size, _ = shape
    images = layout(numbers(n, b, c, height, width, seed=1, dtype=dtype))
    weight = numbers(n, filters, c, kernel_size, kernel_size, seed=2, dtype=dtype) / math.sqrt(c * kernel_size**2)
    bias = numbers(n, filters, seed=3, dtype=dtype)
    return [value.detach().requires_grad_() for value in (images, weight, bias)]


def assert_gradients(found, expected, tensors, tolerance) -> None:
    """Of the same random function of both results, with regard to every tensor."""
    gradient = numbers(*found.shape, seed=4, dtype=found.dtype)
    gradients = [torch.autograd.grad(result, tensors, gradient) for result in (found, expected)]
    for mine, theirs in zip(*gradients, strict=True):
        assert mine.shape == theirs.shape
        torch.testing.assert_close(mine, theirs, **tolerance)


# --- convolution, pooling, tanh -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape, layout):
    tensors = tensors_of(shape, layout)
    *_, height, width, filters, kernel_size, pool_size = shape
    found = ConvMaxPoolTanh(kernel_size, pool_size)(*tensors)
    expected = of_each_network(*tensors, pool_size)
    rows, columns = ((size - kernel_size + 1) // pool_size for size in (height, width))
    assert found.shape == (*shape[:2], filters, rows, columns)
    torch.testing.assert_close(found, expected, **EXACT)
    assert_gradients(found, expected, tensors, EXACT)


@pytest.mark.parametrize("shape", SHAPES[2::3], ids=str)
def test_float32(shape):
    """As in training: weights whose outputs lie last in memory."""
    images, weight, bias = tensors_of(shape, dtype=torch.float32)
    tensors = [images, outputs_last(weight).detach().requires_grad_(), bias]
    found = ConvMaxPoolTanh(*shape[-2:])(*tensors)
    expected = of_each_network(*tensors, shape[-1])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert_gradients(found, expected, tensors, {"rtol": 1e-3, "atol": 1e-4})


def test_images_without_a_gradient():
    """Those of a first layer: the weight's and the bias's gradient are as with it."""
    images, weight, bias = tensors_of(SHAPES[2])
    found = ConvMaxPoolTanh(5, 3)(images.detach(), weight, bias)
    assert_gradients(found, of_each_network(images, weight, bias, 3), [weight, bias], EXACT)


def test_an_image_that_all_networks_share():
    """Its gradient is the sum over the networks."""
    images, weight, bias = tensors_of(SHAPES[4])
    shared = images[0].detach().requires_grad_()
    everywhere = shared.expand_as(images)
    tensors = [shared, weight, bias]
    found = ConvMaxPoolTanh(3, 3)(everywhere, weight, bias)
    assert_gradients(found, of_each_network(everywhere, weight, bias, 3), tensors, EXACT)


def test_two_layers_in_a_row():
    """The output of a layer, as it lies in memory, is the next one's input."""
    images, weight, bias = tensors_of((3, 4, 1, 20, 20, 6, 5, 3))
    _, weight2, bias2 = tensors_of((3, 4, 6, 5, 5, 7, 3, 2))
    tensors = [images, weight, bias, weight2, bias2]
    found = ConvMaxPoolTanh(3, 2)(ConvMaxPoolTanh(5, 3)(images, weight, bias), weight2, bias2)
    expected = of_each_network(of_each_network(images, weight, bias, 3), weight2, bias2, 2)
    torch.testing.assert_close(found, expected, **EXACT)
    assert_gradients(found, expected, tensors, EXACT)


def test_again_and_again():
    """Every application overwrites what the last one left: other numbers of the same shape, one after the other."""
    layer = ConvMaxPoolTanh(3, 2)
    for scale in (1.0, -2.0, 0.5):
        tensors = [(scale * value).detach().requires_grad_() for value in tensors_of(SHAPES[-1])]
        found, expected = layer(*tensors), of_each_network(*tensors, 2)
        torch.testing.assert_close(found, expected, **EXACT)
        assert_gradients(found, expected, tensors, EXACT)


def test_outputs_are_not_reused():
    images, weight, bias = tensors_of(SHAPES[1])
    layer = ConvMaxPoolTanh(5, 2)
    first = layer(images, weight, bias)
    kept = first.clone()
    layer(-images, weight, bias)
    assert torch.equal(first, kept)


@pytest.mark.parametrize("with_gradient", [True, False])
def test_a_gradient_that_comes_too_late_is_refused(with_gradient):
    """Applied again to images of the same shape, the layer has overwritten what the first gradient needs."""
    images, weight, bias = tensors_of(SHAPES[1])
    layer = ConvMaxPoolTanh(5, 2)
    first = layer(images, weight, bias)
    with torch.set_grad_enabled(with_gradient):
        second = layer(2 * images, weight, bias)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        first.sum().backward()
    if with_gradient:
        second.sum().backward()


def test_inputs_of_two_shapes_can_alternate():
    """Each shape, and each precision, has its own memory."""
    shapes = (3, 4, 3, 9, 10, 4, 3, 3), (3, 2, 3, 9, 10, 4, 3, 3)
    games = [tensors_of(shapes[0]), tensors_of(shapes[1]), tensors_of(shapes[0], dtype=torch.float32)]
    layer = ConvMaxPoolTanh(3, 3)
    for _ in range(2):
        found = [layer(*tensors) for tensors in games]
        for values, tensors in zip(found, games, strict=True):
            tolerance = EXACT if values.dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-4}
            expected = of_each_network(*tensors, 3)
            torch.testing.assert_close(values, expected, **tolerance)
            assert_gradients(values, expected, tensors, tolerance)


# --- linear ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "b", "inputs", "outputs"), [(1, 1, 1, 1), (1, 4, 7, 3), (3, 1, 256, 10), (3, 4, 5, 200)])
def test_linear(n, b, inputs, outputs):
    values, bias = numbers(n, b, inputs, seed=1).requires_grad_(), numbers(n, outputs, seed=3).requires_grad_()
    weight = numbers(n, outputs, inputs, seed=2).requires_grad_()
    tensors = [values, weight, bias]
    found = linear(*tensors)
    expected = torch.stack([F.linear(*network) for network in zip(*tensors, strict=True)])
    torch.testing.assert_close(found, expected, **EXACT)
    assert_gradients(found, expected, tensors, EXACT)


# --- where the weights lie ------------------------------------------------------------------------------------------


@pytest.fixture(params=[((1, 28, 28), 10), ((3, 32, 32), 7)], ids=str)
def network(request):
    return build_network("mnist-cnn", *request.param)


def test_parameters_are_views_of_the_memory(network):
    """Of the shapes that the network names; what is written into one is in the memory, in its run's row alone."""
    memory = torch.zeros(3, network.size())
    params = network.views(memory)
    assert {name: tuple(value.shape[1:]) for name, value in params.items()} == network.shapes
    for number, (name, value) in enumerate(params.items(), start=1):
        assert len(value) == 3
        assert value.untyped_storage().data_ptr() == memory.untyped_storage().data_ptr()
        value[1] = number
        assert (memory == number).sum(dim=1).tolist() == [0, math.prod(network.shapes[name]), 0]


def test_parameters_do_not_overlap(network):
    memory = torch.zeros(2, network.size())
    for value in network.views(memory).values():
        value += 1
    assert memory.max() == 1
    assert memory.sum().item() == 2 * sum(map(math.prod, network.shapes.values()))


def test_parameters_lie_as_the_layers_want_them(network):
    """Each begins on a boundary of 64 bytes; the outputs of a layer are last, before them come the input channels."""
    params = network.views(torch.zeros(2, network.size()))
    for name, value in params.items():
        assert value.storage_offset() % 16 == 0, name
        assert value.stride(1) == 1, name
        if name.endswith("weight"):
            assert value.stride(2) == value.shape[1], name


def test_memory_that_is_not_zero_is_shown_as_it_is(network):
    """Views copy nothing and clear nothing: the same numbers are there, each in its place."""
    memory = torch.arange(2 * network.size(), dtype=torch.float64).reshape(2, -1)
    kept = memory.clone()
    shown = torch.cat([value.flatten(1) for value in network.views(memory).values()], dim=1)
    assert torch.equal(memory, kept)
    assert shown.unique().numel() == shown.numel()
    assert ((shown >= memory[:, :1]) & (shown <= memory[:, -1:])).all()
