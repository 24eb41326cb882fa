"""Networks from PyTorch modules: what is trained, what is refused, and images of other sizes."""

import numpy as np
import pytest
import torch
from deep_tasks import SMALL, made_photographs, make, softmax_regression
from helpers import made_npz, play
from oracles.deep_networks import KEEP
from torch import nn

import qan_gym


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    return made_photographs(tmp_path_factory.mktemp("data"))


# --- images ----------------------------------------------------------------------------------------------------------


GREY, LARGE, NARROW = ((28, 28), (1, 32, 32)), ((40, 40, 3), (3, 40, 40)), ((5, 9), (1, 32, 32))


@pytest.mark.parametrize(
    ("network", "shape", "seen"),
    [
        ("resnet-8", *GREY),
        ("resnet-8", *LARGE),
        ("resnet-8", *NARROW),
        ("nin", *LARGE),
        pytest.param("nin", *GREY, marks=pytest.mark.slow),
        pytest.param("nin", *NARROW, marks=pytest.mark.slow),
    ],
)
def test_images_of_other_sizes_play(network, shape, seen, tmp_path):
    """Smaller ones are padded to 32x32, larger ones are used as they are; moved in both cases."""
    path = made_npz(tmp_path / "data.npz", n_train=18, n_test=4, shape=shape, n_classes=4)
    game = SMALL | {"network": network, "batch_size": 4, "epochs": 1, "augment": "reflect"}
    core = make(dataset=path, **game)
    assert core.split("train")[0].shape[1:] == seen
    returned = play(core)
    assert returned[-1][3]
    assert core.weights()["conv1.weight"].shape[1] == seen[0]
    assert core.weights()["linear.bias"].shape == (4,)
    for observation, *_ in returned:
        assert core.observation_space.contains(observation)


def test_one_class_is_refused(tmp_path):
    path = made_npz(tmp_path / "data.npz", shape=(32, 32, 3), n_classes=1)
    with pytest.raises(ValueError, match="one class"):
        make(dataset=path, **SMALL)


# --- modules that are refused -----------------------------------------------------------------------------------------


class Unsized(nn.Module):
    """A module without weights."""

    def forward(self, images):
        return images.flatten(1)[:, :10]


def batch_norm(momentum):
    return lambda image_shape, n_classes: nn.Sequential(
        nn.BatchNorm2d(3, momentum=momentum), *softmax_regression(image_shape, n_classes)
    )


def dropping(image_shape, n_classes):
    return nn.Sequential(nn.Dropout(0.5), *softmax_regression(image_shape, n_classes))


def one_too_many(image_shape, n_classes):
    return softmax_regression(image_shape, n_classes + 1)


def of_other_images(image_shape, n_classes):
    return softmax_regression((3, 7, 7), n_classes)


def weightless(image_shape, n_classes):
    return Unsized()


def idle(image_shape, n_classes):
    """It has a layer that it does not use."""
    module = softmax_regression(image_shape, n_classes)
    module[0].unused = nn.Linear(3, 2)
    return module


def doubled(image_shape, n_classes):
    return softmax_regression(image_shape, n_classes).double()


def randomized(image_shape, n_classes):
    """No dropout by name, but its slopes are drawn anew in every pass."""
    return nn.Sequential(nn.LayerNorm(image_shape), nn.RReLU(), *softmax_regression(image_shape, n_classes))


@pytest.mark.parametrize(
    ("builder", "said"),
    [
        (dropping, "dropout"),
        (one_too_many, r"'own' gives \(2, 11\) for 2 images of 10 classes"),
        (of_other_images, r"'own' cannot take images of \(3, 32, 32\)"),
        (weightless, "no weight"),
        (idle, r"'own' does not use 0.unused.weight, 0.unused.bias"),
        (doubled, "must be float32"),
        (randomized, "draws random numbers"),
        (batch_norm(None), "give it a momentum"),
        (lambda image_shape, n_classes: "resnet", "a str, not an nn.Module"),
    ],
)
def test_modules_that_cannot_be_trained_are_refused(builder, said, npz, registries):
    qan_gym.register_network("own", builder)
    with pytest.raises(ValueError, match=said):
        make(dataset=npz, **SMALL | {"network": "own"})


# --- modules that play ------------------------------------------------------------------------------------------------


class Viewing(nn.Module):
    """Flattens by `view`, as many modules do, which needs a contiguous input."""

    def __init__(self, n_classes):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 4, 3, stride=4), nn.Linear(4 * 8 * 8, n_classes)

    def forward(self, images):
        x = self.conv(images)
        return self.out(x.view(len(x), -1))


def viewing(image_shape, n_classes):
    return Viewing(n_classes)


def without_dropout(image_shape, n_classes):
    return nn.Sequential(nn.Dropout(0.0), *softmax_regression(image_shape, n_classes))


def test_frozen_parameters_stay(npz, registries):
    """Neither gradients nor weight decay change a parameter that requires no gradient."""

    def frozen(image_shape, n_classes):
        module = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), *softmax_regression((4, 8, 8), n_classes))
        module[0].requires_grad_(False)
        return module

    qan_gym.register_network("own", frozen)
    core = make(dataset=npz, **SMALL | {"network": "own", "epochs": 1, "weight_decay": 0.1})
    core.reset(seed=0)
    before = core.weights()
    for _ in range(3):
        core.step(KEEP)
    after = core.weights()
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {"2.weight", "2.bias"}
    assert core.training.network.shown == "2.weight"


class Averaging(nn.Module):
    """Changes a buffer in place between the forward and the backward pass; and has a scalar weight."""

    def __init__(self, n_classes):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 4, 3, stride=4), nn.Linear(256, n_classes)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("average", torch.zeros(256))
        self.register_buffer("order", torch.arange(256).flip(0))

    def forward(self, images):
        x = self.conv(images).flatten(1)
        if self.training:
            self.average.mul_(0.9).add_(x.detach().mean(dim=0), alpha=0.1)
        return self.out(self.scale * (x - self.average)[:, self.order])


def averaging(image_shape, n_classes):
    return Averaging(n_classes)


def test_a_scalar_weight_is_kept_in_the_file_of_a_reference(npz, registries, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    qan_gym.register_network("own", averaging)
    game = SMALL | {"network": "own", "epochs": 1, "meta_momentum": 0.1, "reference": "pretrained"}
    made, found = (make(dataset=npz, **game).reference for _ in range(2))
    assert made["scale"].shape == found["scale"].shape == ()
    assert all(np.array_equal(value, found[name]) for name, value in made.items())


@pytest.mark.parametrize(
    "builder",
    [batch_norm(0.1), batch_norm(0.5), viewing, without_dropout, averaging],
    ids=["batch norm", "other momentum", "view", "dropout of 0", "own buffers"],
)
def test_episodes_of_ordinary_modules_can_be_repeated(builder, npz, registries):
    """Two episodes of the same seed are the same, whatever was played before."""
    qan_gym.register_network("own", builder)
    core = make(dataset=npz, **SMALL | {"network": "own", "epochs": 1})
    episodes = []
    for _ in range(2):
        last = play(core, seed=3)[-1]
        episodes.append((last[4], core.weights()))
    (info, weights), (again, others) = episodes
    assert info == again
    assert all(np.array_equal(value, others[name]) for name, value in weights.items())
