"""What users register from outside: data sets, networks, optimizers and rewards of their own."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from deep_tasks import ALONE, CIFAR, make
from helpers import TINY, made_arrays, play
from oracles.deep_networks import KEEP, LOWER
from torch import nn

import qan_gym
from qan_gym.optimizee.network import Network

LR, MINIBATCH = "QanLR-MNIST5k-v1", "QanMinibatch-MNIST5k-v1"


# --- a network of stacked parameters ---------------------------------------------------------------------------------


def linear_forward(params, images, training):
    """Softmax regression; images (N, B, C, H, W) -> logits (N, B, K)."""
    return torch.einsum("nkf,nbf->nbk", params["out.weight"], images.flatten(2)) + params["out.bias"][:, None]


def linear_network(image_shape, n_classes):
    features = int(np.prod(image_shape))
    return Network(
        image_shape, {"out.weight": (n_classes, features), "out.bias": (n_classes,)}, linear_forward, "out.weight"
    )


@pytest.mark.parametrize("env_id", [LR, MINIBATCH])
def test_own_dataset_network_and_reward(env_id, registries):
    """All three at once; the network sees the images unpadded, and it learns."""
    qan_gym.register_dataset("made", lambda: made_arrays(n_train=450, shape=(8, 8)))
    qan_gym.register_network("softmax", linear_network)
    qan_gym.register_reward("half-loss", lambda run: run.loss / 2)
    own = {"dataset": "made", "network": "softmax", "reward": "half-loss", "reference": None}
    env = gym.make(env_id, **own, batch_size=10, epochs=3, batches_per_action=4)
    assert env.unwrapped.screen_shape == (11, 64)
    returned = play(env)
    assert len(returned) == 1 + 30
    for observation, paid, _, _, info in returned[1:]:
        assert env.observation_space.contains(observation)
        assert paid == pytest.approx(info["loss"] / 2)
        assert info["reward_half_loss"] == paid
    assert env.unwrapped.weights()["out.weight"].shape == (10, 64)
    assert returned[-1][4]["validation_loss"] < returned[0][1]["validation_loss"]


def test_own_dataset_is_verified_by_name(registries):
    qan_gym.register_dataset("broken", lambda: made_arrays() | {"y_test": np.zeros(3)})
    with pytest.raises(ValueError, match="broken: y_test"):
        gym.make(LR, dataset="broken", **TINY)


REGISTERED = {
    "a dataset": qan_gym.register_dataset,
    "a network": qan_gym.register_network,
    "a reward": qan_gym.register_reward,
    "a feature": qan_gym.register_feature,
    "an optimizer": qan_gym.register_optimizer,
    "a schedule": qan_gym.register_schedule,
    "a game": qan_gym.register_game,
}


@pytest.mark.parametrize("what", REGISTERED)
def test_what_cannot_be_registered(what, registries):
    """No function under a name, a function under no name; and nothing is registered then."""
    register = REGISTERED[what]
    with pytest.raises(ValueError, match=f"{what} cannot be registered as 'own': it must be something to call, not 3"):
        register("own", 3)
    for name in ("", None, 5):
        with pytest.raises(ValueError, match=f"{what} is registered under a name, not {name!r}"):
            register(name, lambda *_: None)
    if what not in ("a schedule", "a game"):
        register("own", lambda *_: None)
        with pytest.raises(ValueError, match=f"{what} cannot be registered as 'own': the name is taken"):
            register("own", lambda *_: None)


# --- a network that is a module, and an optimizer --------------------------------------------------------------------


def small_cnn(image_shape, n_classes):
    """An ordinary PyTorch module."""
    channels, height, width = image_shape
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Flatten(),
        nn.Linear(8 * (height // 4) * (width // 4), n_classes),
    )


class SignSGD:
    """w <- w - lr (sign(g) + weight_decay w). Its buffer counts the updates, so that a test can see that it is kept."""

    slots = ("count",)

    def __init__(self, config, controlled):
        assert controlled == ("learning_rate",)

    def update(self, params, gradients, slots, hyper, step):
        for name, value in params.items():
            slots["count"][name] += 1
            rate, decay = (one.view(-1, *[1] * (value.dim() - 1)) for one in (hyper.learning_rate, hyper.weight_decay))
            value.sub_(rate * (gradients[name].sign() + decay * value))


@pytest.fixture
def own(registries):
    """The keyword arguments of a task whose data, network, optimizer and reward are registered from outside."""
    qan_gym.register_dataset("fashion", lambda: made_arrays(n_train=225, n_test=20))
    qan_gym.register_network("small-cnn", small_cnn)
    qan_gym.register_optimizer("sign", SignSGD)
    qan_gym.register_reward("half-loss", lambda run: -run.loss / 2)
    names = {"dataset": "fashion", "network": "small-cnn", "optimizer": "sign", "reward": "half-loss"}
    return names | {"learning_rate": 0.01, "batch_size": 20, "epochs": 2, "augment": "zero", **ALONE}


def test_everything_registered_from_outside(own):
    """The agent sees the first convolution of unpadded images; each weight moves by the learning rate; it learns."""
    core = make(**own)
    assert core.split("train")[0].shape == (200, 1, 28, 28)
    assert core.screen_shape == (9, 9)
    _, first = core.reset(seed=0)
    before = core.weights()
    for number in range(1, 21):
        observation, paid, _, truncated, info = core.step(LOWER if number == 1 else KEEP)
        assert paid == info["reward_half_loss"] == pytest.approx(-info["loss"] / 2)
        shown = core.weights()["0.weight"].reshape(8, 9)
        assert np.array_equal(observation.reshape(9, 9)[:8], shown.clip(-10, 10))
        counts = core.training.run.slots["count"]
        assert all((counts[name] == number).all() for name in core.training.network.trained)
        if number == 1:
            moved = np.abs(core.weights()["5.weight"] - before["5.weight"])
            np.testing.assert_allclose(moved, 0.01, atol=1e-3)  # of the lowest rate; weight decay adds 5e-4 of it
    assert truncated
    assert info["validation_loss"] < first["validation_loss"]


def test_everything_registered_from_outside_in_rows(own):
    """Three rows give what three single environments give."""
    envs = gym.make_vec(CIFAR, num_envs=3, **own)
    cores = [make(**own) for _ in range(3)]
    observations, _ = envs.reset(seed=10)
    alone = [core.reset(seed=10 + row)[0] for row, core in enumerate(cores)]
    np.testing.assert_array_equal(observations, np.stack(alone))
    actions = np.random.default_rng(0).integers(0, 3, (20, 3))
    for action in actions:
        observations, rewards, _, truncated, infos = envs.step(action)
        singles = [core.step(one) for core, one in zip(cores, action, strict=True)]
        np.testing.assert_allclose(observations, np.stack([one[0] for one in singles]), atol=1e-6)
        np.testing.assert_allclose(rewards, [one[1] for one in singles], rtol=1e-5)
        for name in ("learning_rate", "validation_loss", "validation_accuracy"):
            np.testing.assert_allclose(infos[name], [one[4][name] for one in singles], rtol=1e-5)
    assert truncated.all()
    assert len({float(value) for value in infos["validation_loss"]}) == 3


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("register", "value", "name"),
    [
        ("register_network", linear_network, "mnist-cnn"),
        ("register_network", small_cnn, "nin"),
        ("register_optimizer", SignSGD, "adamw"),
        ("register_dataset", made_arrays, "cifar10"),
        ("register_dataset", made_arrays, "mnist5k"),
        ("register_dataset", made_arrays, "own.npz"),  # the ending is that of files
        ("register_reward", lambda run: run.loss, "log-loss"),
    ],
)
def test_a_name_that_is_taken_is_refused(register, value, name, registries):
    with pytest.raises(ValueError, match=name):
        getattr(qan_gym, register)(name, value)
