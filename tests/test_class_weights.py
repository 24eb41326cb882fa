"""Weights of the classes in the training loss, against the paper's formula and plain PyTorch."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_native_kernels import needs_library

from qan_gym.core.class_weights import class_weights
from qan_gym.families.long_tail import LongTailTask

ID = "QanMinibatch-LongTail-v0"
TASK = LongTailTask(
    network="mlp-8",
    train_size=300,
    imbalance=30.0,
    label_noise=(0.0,) * 9 + (0.4,),
    data_seed=5,
    learning_rate=0.05,
    momentum=0.9,
    weight_decay=1e-3,
    batch_size=40,
    batches_per_action=2,
)


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.99, 0.9999, 1 - 1e-9, 1.0])
def test_the_weights_are_those_of_the_effective_numbers(beta):
    """1 / (1 + beta + beta^2 + ... + beta^(n - 1)), of mean 1 over the images."""
    sizes = [1, 4, 250, 60]
    labels = np.repeat([0, 1, 2, 4], sizes)
    inverse = [1 / math.fsum(beta**i for i in range(n)) for n in sizes]
    mean = sum(n * one for n, one in zip(sizes, inverse, strict=True)) / sum(sizes)
    found = class_weights(labels, 5, beta)
    assert found[[0, 1, 2, 4]] == pytest.approx(np.array(inverse) / mean, rel=1e-6)
    assert found[3] == 1
    assert found[labels].mean() == pytest.approx(1, rel=1e-6)


def test_without_beta_nothing_is_weighted():
    assert class_weights(np.array([0, 0, 1]), 2, 0.0) is None
    assert class_weights(np.arange(100) % 10, 10, 0.9) == pytest.approx(np.ones(10))


def slow_training(env, beta: float, actions: int) -> tuple[list[float], list[np.ndarray], dict[str, torch.Tensor]]:
    """Plays shuffled SGD, and trains beside it in float64 on the images that the environment says.

    Returns the running losses, what the environment had for them, and the weights.
    """
    env.reset(seed=3, options={"sampler": "shuffled"})
    inner = env.unwrapped
    training, task = inner.training, TASK
    data = training.data_of(0)
    network, params = training.network_of(0)
    weights = {name: value.detach().double().clone() for name, value in params.items()}
    velocity = {name: torch.zeros_like(value) for name, value in weights.items()}
    labels = data.labels["train"]
    sizes = torch.bincount(labels, minlength=10).double()
    inverse = 1 / ((1 - beta**sizes) / (1 - beta)) if beta < 1 else 1 / sizes
    of_class = inverse * len(labels) / (inverse * sizes).sum()
    losses, found = [], []
    for _ in range(actions):
        info = env.step(env.action_space.sample())[4]
        batches = inner.batch_indices
        mean = 0.0
        for number, indices in enumerate(batches):
            clock = int(training.run.batch[0]) - len(batches) + number
            images = data.normalise(data.images["train"][torch.from_numpy(indices)]).double()
            own = {name: value.clone().requires_grad_() for name, value in weights.items()}
            logits = network.forward({name: value[None] for name, value in own.items()}, images[None], True)[0]
            target = labels[torch.from_numpy(indices)]
            loss = (F.cross_entropy(logits, target, reduction="none") * of_class[target]).mean()
            gradients = dict(zip(own, torch.autograd.grad(loss, list(own.values())), strict=True))
            rate = task.learning_rate * (1 - clock / task.budget)
            for name in weights:
                step = gradients[name] + task.weight_decay * weights[name]
                velocity[name] = task.momentum * velocity[name] + step
                weights[name] = weights[name] - rate * velocity[name]
            mean += loss.item() / len(batches)
        losses.append(mean)
        found.append(float(info["loss"]))
    return losses, found, weights


@pytest.mark.parametrize("engine", [pytest.param("native", marks=needs_library), "torch"])
@pytest.mark.parametrize("beta", [0.98, 1.0])
def test_a_weighted_training_is_that_of_plain_pytorch(engine, beta):
    env = gym.make(ID, task=TASK, class_weights=beta, engine=engine, continuous=True)
    losses, found, weights = slow_training(env, beta, actions=6)
    assert found == pytest.approx(losses, rel=2e-4)
    _, params = env.unwrapped.training.network_of(0)
    for name, value in weights.items():
        assert params[name].double() == pytest.approx(value, abs=2e-4), name
    plain = gym.make(ID, task=TASK, engine=engine, continuous=True)
    unweighted = slow_training(plain, beta, actions=1)
    assert unweighted[1] != pytest.approx(unweighted[0], rel=1e-3)  # the test would see it


def test_the_losses_of_the_classes_and_of_validation_have_no_weights():
    """At the reset everything that is measured is the same with and without weights."""
    shown = []
    for beta in (0.0, 1.0):
        env = gym.make(ID, task=TASK, class_weights=beta, continuous=True)
        observation, info = env.reset(seed=1)
        shown.append((observation, info["validation_loss"]))
    assert np.array_equal(shown[0][0], shown[1][0])
    assert shown[0][1] == shown[1][1]


def test_rows_have_the_weights_of_their_own_images():
    rows = gym.make_vec(ID, num_envs=3, class_weights=1.0, continuous=True, networks="mlp")
    rows.reset(seed=[4, 5, 6], options={"sampler": "shuffled"})
    singles = [gym.make(ID, class_weights=1.0, continuous=True, networks="mlp") for _ in range(3)]
    for seed, env in zip((4, 5, 6), singles, strict=True):
        env.reset(seed=seed, options={"sampler": "shuffled"})
    for _ in range(3):
        found = rows.step(np.zeros((3, 10), np.float32))[0]
        for row, env in enumerate(singles):
            assert np.array_equal(env.step(np.zeros(10, np.float32))[0], found[row])


@needs_library
def test_the_kernels_of_the_cnn_have_no_weights():
    kwargs = {"class_weights": 0.9, "meta_momentum": None, "reference": None, "epochs": 1}
    with pytest.raises(ValueError, match=r"engine='native'.*classes have weights; engine='torch' trains everything"):
        gym.make("QanMinibatch-MNIST5k-v1", engine="native", **kwargs)
    assert gym.make("QanMinibatch-MNIST5k-v1", **kwargs).unwrapped.training.parts.engine == "torch"


def test_the_family_of_balanced_classes_has_no_weights():
    with pytest.raises(ValueError, match="class_weights: no setting of a family"):
        gym.make("QanLR-Family-v0", class_weights=0.5)
