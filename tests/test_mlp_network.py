"""The multilayer perceptrons of PyTorch's path, by name."""

import math

import pytest
import torch
import torch.nn.functional as F

from qan_gym.optimizee.zoo import build_network, mlp, mlp_sizes


@pytest.mark.parametrize(
    ("name", "widths", "activation", "normalised"),
    [
        ("mlp-32", (32,), "relu", False),
        ("mlp-2-256", (2, 256), "relu", False),
        ("mlp-64-64-tanh", (64, 64), "tanh", False),
        ("mlp-4-5-6-gelu", (4, 5, 6), "gelu", False),
        ("mlp-32-norm", (32,), "relu", True),
        ("mlp-64-9-tanh-norm", (64, 9), "tanh", True),
        ("mlp-4-5-6-gelu-norm", (4, 5, 6), "gelu", True),
    ],
)
def test_a_name_says_widths_activation_and_normalisation(name, widths, activation, normalised):
    assert mlp_sizes(name) == (widths, activation, normalised)
    network = build_network(name, (1, 7, 7), 5)
    assert network.image_shape == (1, 7, 7)
    assert network.shapes["layer1.weight"] == (widths[0], 49)
    assert network.shapes[f"layer{len(widths) + 1}.weight"] == (5, widths[-1])
    params = network.initial_params(torch.arange(3))
    images = torch.rand(3, 4, 1, 7, 7)
    apply = {"relu": F.relu, "tanh": torch.tanh, "gelu": lambda x: F.gelu(x, approximate="tanh")}[activation]
    x = images.flatten(2)
    for number in range(1, len(widths) + 2):
        weight, bias = params[f"layer{number}.weight"], params[f"layer{number}.bias"]
        x = torch.einsum("nbi,noi->nbo", x, weight) + bias[:, None]
        if number <= len(widths) and normalised:
            x = x - x.mean(2, keepdim=True)
            x = x / (x.square().mean(2, keepdim=True) + 1e-5).sqrt()
        x = apply(x) if number <= len(widths) else x
    assert torch.allclose(network.forward(params, images, True), x, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        *("mlp", "mlp-", "mlp-1", "mlp-257", "mlp-032", "mlp-8-8-8-8", "mlp-tanh", "mlp-8-relu", "mlp-8-elu", "mlp_8"),
        *("mlp-norm", "mlp-8-norm-tanh", "mlp-8-norm-norm", "mlp-8-layernorm"),
    ],
)
def test_a_wrong_name_is_refused_with_the_pattern(name):
    with pytest.raises(ValueError, match=r"mlp-W\[-W\[-W\]\]\[-tanh\|-gelu\]\[-norm\]"):
        build_network(name, (1, 7, 7), 10)


def test_an_unknown_network_names_the_registered_ones_and_the_pattern():
    with pytest.raises(
        ValueError,
        match=r"unknown network 'rnn': did you mean 'nin'. there are mnist-cnn, .*, mlp-W.*, cnn-W-W, vit-W-D",
    ):
        build_network("rnn", (1, 28, 28), 10)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        *((name, "it is cnn-W-W") for name in ("cnn", "cnn-4", "cnn-0-4", "cnn-4-4-4", "cnn-1000-4", "cnn-a-b")),
        *((name, "it is vit-W-D") for name in ("vit", "vit-8", "vit-8-0", "vit-8-1-1")),
        ("vit-12-1", "multiple of 8"),
    ],
)
def test_wrong_sizes_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        build_network(name, (1, 14, 14), 10)


def test_a_transformer_wants_a_grid_of_patches():
    with pytest.raises(ValueError, match="multiple of 7 pixels"):
        build_network("vit-8-1", (1, 16, 16), 10)


@pytest.mark.parametrize("name", ["cnn-3-5", "vit-16-2"])
def test_small_networks_train(name):
    """The loss of a few images falls by two thirds."""
    network = build_network(name, (1, 14, 14), 4)
    params = {own: value.requires_grad_() for own, value in network.initial_params(torch.tensor([3])).items()}
    images, labels = torch.randn(1, 12, 1, 14, 14), torch.arange(12) % 4
    optimizer, losses = torch.optim.Adam(params.values(), lr=0.01), []
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(network.forward(params, images, True)[0], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3


@pytest.mark.parametrize("factor", [0.5, 1e4])
def test_the_scale_of_weights_in_front_of_a_normalisation_does_not_matter(factor):
    network = build_network("mlp-20-30-tanh-norm", (1, 14, 14), 4)
    images, params = 5 * torch.rand(1, 12, 1, 14, 14), network.initial_params(torch.tensor([3]))
    scaled = {name: value * (1 if name.startswith("layer3") else factor) for name, value in params.items()}
    assert torch.allclose(network.forward(scaled, images, True), network.forward(params, images, True), atol=2e-3)
    unlike = build_network("mlp-20-30-tanh", (1, 14, 14), 4)
    assert not torch.allclose(unlike.forward(scaled, images, True), unlike.forward(params, images, True), atol=0.1)


@pytest.mark.parametrize(("name", "gain"), [("mlp-256-256", math.sqrt(2)), ("mlp-256-256-tanh", 1.0)])
def test_initial_weights_have_the_standard_deviation_that_is_said(name, gain):
    seeds = torch.tensor([5, 6, 2**63 - 1])
    network, (widths, activation) = build_network(name, (1, 28, 28), 100), mlp_sizes(name)[:2]
    scaled = mlp((1, 28, 28), 100, widths, activation, initial_scale=3.0)
    params, larger = network.initial_params(seeds), scaled.initial_params(seeds)
    for number, (fan_in, own) in enumerate([(784, gain), (256, gain), (256, 1.0)], start=1):
        weight = params[f"layer{number}.weight"]
        assert float(weight.std()) == pytest.approx(own / math.sqrt(fan_in), rel=0.02)
        assert torch.allclose(larger[f"layer{number}.weight"], 3 * weight, rtol=1e-6)
        assert not params[f"layer{number}.bias"].any()
    alone = network.initial_params(seeds[1:2])
    assert all(torch.equal(value[0], params[name][1]) for name, value in alone.items())


@pytest.mark.parametrize(
    "arguments", [{"widths": ()}, {"activation": "elu"}, {"initial_scale": 0.0}, {"initial_scale": math.inf}]
)
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="a multilayer perceptron of widths"):
        mlp((1, 7, 7), 10, **arguments)
