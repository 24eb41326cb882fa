"""The game on CIFAR-10: its networks and optimizers beside `slow_cifar`, what it does to images, and its data.

Tolerances. The slow reference is set to the environment's weights, statistics and buffers before every step, because
deep networks with ReLU amplify roundings: left to themselves, two float32 copies of NIN differ by 1e-1 after ten steps.
From the same weights, with the same memory layout, the losses and statistics were measured to be the same to a rounding
or two, and the buffers of a tensor to 3e-6 of their length, its update to 1e-4 (the weights round to 1e-7, of updates
of 1e-3). Where another library rounds otherwise, an activation may change sides of a ReLU, which was measured to move
a tensor's gradient by at most 2e-2 of its length, in some steps: `KINK` is for all, `CLOSE` for four fifths of them.
"""

import gzip
import hashlib
import io
import itertools
import os
import pickle
import runpy
import sys
import tarfile
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import made_arrays, made_npz, play
from slow_cifar import KEEP, LOWER, RAISE, SlowCIFAR, network_of
from torch import nn

import qan_gym
from qan_gym.data import augmentation, downloads, whitening
from qan_gym.data.datasets import datasets as data
from qan_gym.data.datasets import load_dataset
from qan_gym.state import State
from qan_gym.tasks import OPTIMIZER_DEFAULTS, TASKS, make_task_config
from qan_gym.utils.files import save_arrays

CIFAR = "QanLR-CIFAR10-v0"
ALONE = {"meta_momentum": None, "reference": None}  # without the help of a reference network
SMALL = {"network": "resnet-8", "batch_size": 8, "epochs": 2, "augment": None, **ALONE}
ACTIONS = [KEEP, RAISE, RAISE, LOWER, LOWER, LOWER, KEEP, RAISE, LOWER, KEEP]

LOSS = 2e-6  # of a loss (up to 6)
STATISTICS = 1e-5  # of the length of a tensor of running statistics
CLOSE = 2e-4  # of the length of a tensor's update or buffer
KINK = 5e-2  # the same, where a ReLU flips


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    """80 training images of 32x32x3 in 10 classes, 10 for validation, 10 test images."""
    return made_npz(tmp_path_factory.mktemp("data") / "made.npz", n_train=90, n_test=10, shape=(32, 32, 3))


def make(**kwargs):
    """The environment without its wrappers."""
    return gym.make(CIFAR, **kwargs).unwrapped


def slots_of(core) -> dict[str, dict[str, np.ndarray]]:
    """The optimizer's buffers of every trained parameter, copies."""
    trained = core.training.network.trained
    slots = core.training.run.slots
    return {slot: {name: slots[slot][name][0].numpy().copy() for name in trained} for slot in slots}


def distance(some: np.ndarray, other: np.ndarray) -> float:
    """Of the other's length."""
    return float(np.linalg.norm(some - other) / max(np.linalg.norm(other), 1e-12))


# --- beside the slow reference --------------------------------------------------------------------------------------


def weights_of(network: str, npz: str, seed: int = 5) -> dict[str, np.ndarray]:
    """Weights with statistics of their own, to be a reference."""
    core = make(dataset=npz, **SMALL | {"network": network, "batch_size": 4})
    core.reset(seed=seed)
    core.step(KEEP)
    return core.weights()


CASES = {
    "resnet-8": ("resnet-8", {}),
    "resnet-8, Nesterov": ("resnet-8", {"nesterov": True}),
    "resnet-8, AdamW": ("resnet-8", {"optimizer": "adamw"}),
    "resnet-8, pulled": ("resnet-8", {"meta_momentum": 0.25}),
    "resnet-8, distilled": ("resnet-8", {"distillation": 0.5}),
    "nin, pulled": ("nin", {"meta_momentum": 0.25}),
    "nin, AdamW": ("nin", {"optimizer": "adamw"}),
    "wrn-40-4, Nesterov, pulled": ("wrn-40-4", {"nesterov": True, "meta_momentum": 0.25}),
}


@pytest.mark.parametrize("case", list(CASES))
def test_ten_steps(case, npz, tmp_path):
    """An epoch of ten steps, the learning rate changed on the way: what each did, and the measurement at the end."""
    network, kwargs = CASES[case]
    batch_size = 4 if network == "wrn-40-4" else 8
    game = SMALL | {"network": network, "batch_size": batch_size, "train_size": 10 * batch_size, **kwargs}
    reference = None
    if "meta_momentum" in kwargs or "distillation" in kwargs:
        reference = weights_of(network, npz)
        save_arrays(tmp_path / "reference.safetensors", reference, {})
        game["reference"] = str(tmp_path / "reference.safetensors")
    core = make(dataset=npz, **game)
    core.reset(seed=1)
    settings = {name: value for name, value in kwargs.items() if name != "meta_momentum"}
    slow = SlowCIFAR(network, core.weights(), pull=kwargs.get("meta_momentum"), reference=reference, **settings)
    images, labels = core.split("train")
    updates, buffers = [], []
    for number, action in enumerate(ACTIONS):
        before = core.weights()
        if number > 0:
            slow.take_over(before, slots_of(core))
        *_, info = core.step(action)
        (batch,) = core.batch_indices
        assert info["loss"] == pytest.approx(slow.step(action, images[batch], labels[batch]), abs=LOSS)
        assert info["learning_rate"] == pytest.approx(slow.rate, rel=1e-9)
        weights, wanted = core.weights(), slow.weights()
        for name in core.training.network.statistics:
            assert distance(weights[name], wanted[name]) < STATISTICS, name
        trained = core.training.network.trained
        updates += [distance(weights[name] - before[name], wanted[name] - before[name]) for name in trained]
        for slot, values in slots_of(core).items():
            buffers += [distance(values[name], value) for name, value in slow.buffers(slot).items()]
    assert len(buffers) == len(updates) * len(core.training.run.slots)
    for differences in (updates, buffers):
        assert max(differences) < KINK
        assert np.quantile(differences, 0.8) < CLOSE
    loss, accuracy = slow.evaluate(*core.split("validation"))
    # The last step's roundings are in it, and batch norm divides by deviations that ten steps have not yet settled.
    assert info["validation_loss"] == pytest.approx(loss, rel=1e-3)
    assert info["validation_accuracy"] == pytest.approx(accuracy, abs=0.11)  # an image


def test_left_to_itself_the_reference_stays_near(npz):
    """Nothing is put right between the steps: buffers and statistics are the run's own for ten of them."""
    core = make(dataset=npz, **SMALL)
    core.reset(seed=2)
    slow = SlowCIFAR("resnet-8", core.weights())
    images, labels = core.split("train")
    for action in ACTIONS:
        *_, info = core.step(action)
        (batch,) = core.batch_indices
        assert info["loss"] == pytest.approx(slow.step(action, images[batch], labels[batch]), abs=5e-3)
    wanted = slow.weights()
    assert max(distance(value, wanted[name]) for name, value in core.weights().items()) < KINK
    assert slow.evaluate(*core.split("validation"))[0] == pytest.approx(info["validation_loss"], rel=2e-2)


def test_the_pull_stops_after_1_over_c_mini_batches(npz, tmp_path):
    """c = 0.25: with a learning rate near 0, the distance to the reference shrinks by 3/4 four times, then stays."""
    reference = weights_of("resnet-8", npz)
    save_arrays(tmp_path / "reference.safetensors", reference, {})
    still = {"learning_rate": 1e-12, "learning_rate_min": 1e-12}
    pulled = {"meta_momentum": 0.25, "reference": str(tmp_path / "reference.safetensors")}
    core = make(dataset=npz, **SMALL | still | pulled)
    core.reset(seed=3)
    first = core.weights()
    for number in range(1, 8):
        core.step(KEEP)
        left = 0.75 ** min(number, 4)
        for name, value in core.weights().items():
            if name not in core.training.network.statistics:
                wanted = reference[name] + left * (first[name] - reference[name]) if value.ndim == 4 else first[name]
                np.testing.assert_allclose(value, wanted, atol=5e-7, err_msg=name)


def test_colour_is_normalised_by_channel(npz):
    core = make(dataset=npz, **SMALL)
    train, test = (getattr(load_dataset(npz), part).images.astype(np.float64) for part in ("train", "test"))
    mean, deviation = (getattr(train, what)(axis=(0, 2, 3), keepdims=True) for what in ("mean", "std"))
    np.testing.assert_allclose(core.split("train")[0], (train - mean) / deviation, atol=1e-5)
    np.testing.assert_allclose(core.split("test")[0], (test - mean) / deviation, atol=1e-5)


# --- the screen -----------------------------------------------------------------------------------------------------

SHOWN = {
    "nin": lambda weights: weights["conv9.weight"].reshape(192, 192),
    "wrn-40-4": lambda weights: weights["group3_6.conv2.weight"][:16].reshape(192, 192),
    "resnet-8": lambda weights: weights["block3.conv2.weight"].reshape(192, 192),
}


@pytest.mark.parametrize("network", list(SHOWN))
def test_screen(network, npz):
    """The last convolution as 192x192, then the score line; without it, the paper's screen."""
    game = SMALL | {"network": network, "batch_size": 4, "train_size": 12}
    core, filters = make(dataset=npz, **game), make(dataset=npz, **game, observation="filters")
    assert core.screen_shape == (193, 192)
    assert filters.screen_shape == (192, 192)
    filters.reset(seed=0)
    core.reset(seed=0)
    observation, *_, info = core.step(RAISE)
    screen = observation.reshape(core.screen_shape)
    assert screen.dtype == core.observation_space.dtype == np.float32
    assert np.array_equal(screen[:-1], SHOWN[network](core.weights()))
    assert screen[-1, :2] == pytest.approx([np.log(0.11), 1 / 6], abs=1e-6)
    assert screen[-1, 2] == pytest.approx(np.log(info["smoothed_loss"]), abs=1e-5)
    assert screen[-1, 4] == RAISE
    assert (screen[-1, 5:] == 0).all()
    assert np.array_equal(filters.step(RAISE)[0].reshape(192, 192), screen[:-1])


# --- the buffers of the optimizer -----------------------------------------------------------------------------------


def gradients_of(core, before: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of the last mini-batch, at the weights before it, by the slow network and autograd."""
    network = network_of("resnet-8", before).train()
    images, labels = core.split("train")
    (batch,) = core.batch_indices
    loss = F.cross_entropy(network(torch.from_numpy(images[batch])), torch.from_numpy(labels[batch]))
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    return dict(zip(core.training.network.trained, (value.numpy() for value in gradients), strict=True))


def test_momentum_survives_a_change_of_the_learning_rate(npz):
    """What the original lost (DESIGN.md, 3.2): the update holds the gradients of all earlier actions.

    A fresh buffer at every action would make the update lr * gradient; by hand, it is lr * (g + 0.9 (g' + 0.9 ...)).
    """
    core = make(dataset=npz, **SMALL | {"weight_decay": 0.0})
    core.reset(seed=4)
    history: list[dict[str, np.ndarray]] = []
    for action, rate in [(RAISE, 0.11), (RAISE, 0.12), (LOWER, 0.11), (LOWER, 0.10), (KEEP, 0.10), (RAISE, 0.11)]:
        before = core.weights()
        core.step(action)
        history.insert(0, gradients_of(core, before))
        for name in ("conv1.weight", "block2.shortcut.0.weight", "norm1.bias", "linear.bias"):
            moved = before[name] - core.weights()[name]
            kept = rate * sum(0.9**age * gradients[name] for age, gradients in enumerate(history))
            assert distance(moved, kept) < KINK
            if len(history) > 1:
                fresh = rate * history[0][name]
                assert distance(moved, fresh) > 0.2


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_buffers_are_zero_when_an_episode_begins(optimizer, npz):
    core = make(dataset=npz, **SMALL, optimizer=optimizer)
    names = {"sgd": ["momentum"], "adamw": ["mean", "square"]}[optimizer]
    for _ in range(2):
        core.reset(seed=0)
        slots = slots_of(core)
        assert list(slots) == names
        assert not any(value.any() for values in slots.values() for value in values.values())
        core.step(RAISE)
        assert all(values["conv1.weight"].any() for values in slots_of(core).values())


@pytest.mark.parametrize("saved", ["in memory", "in a file"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_fork_continues_bit_for_bit(optimizer, saved, npz, tmp_path):
    """Weights, running statistics, buffers and moves of the images, over the end of an epoch to that of the episode."""
    game = SMALL | {"optimizer": optimizer, "augment": "reflect", "train_size": 40, "early_stopping": 3}
    core, fork = (make(dataset=npz, **game) for _ in range(2))
    core.reset(seed=7)
    for action in (RAISE, LOWER, RAISE):
        core.step(action)
    state = core.get_state()
    if saved == "in a file":
        state.save(tmp_path / "state.safetensors")
        state = State.load(tmp_path / "state.safetensors")
    fork.reset(seed=8)
    fork.step(KEEP)
    fork.set_state(state)
    for action in (KEEP, RAISE, RAISE, LOWER, KEEP, LOWER, RAISE):
        observation, *one = core.step(action)
        same, *other = fork.step(action)
        assert np.array_equal(observation, same)
        assert one == other
    assert one[2], "the episode has not ended"
    mine = core.training.run.saved()
    assert {"params.norm1.running_var", *(f"optimizer.{slot}.norm1.bias" for slot in core.training.run.slots)} < mine.keys()
    assert all(torch.equal(value, fork.training.run.saved()[name]) for name, value in mine.items())


# --- augmentation ---------------------------------------------------------------------------------------------------


def drawn(seeds: int = 100, batches: int = 10, batch_size: int = 64) -> list[np.ndarray]:
    """flip, down and right of 64,000 images: of runs with seeds in a row, of mini-batches in a row."""
    numbers = torch.cartesian_prod(torch.arange(seeds), torch.arange(batches))
    return [value.flatten().numpy().astype(int) for value in augmentation.draw(*numbers.T, batch_size)]


def chi_square(counts: np.ndarray) -> float:
    """Of counts that should be equal."""
    return float(((counts - counts.mean()) ** 2).sum() / counts.mean())


# Chi-square of so many degrees of freedom is larger in one of ten thousand experiments.
RARE = {1: 15.1, 8: 31.8, 161: 238.0}


def test_flips_and_shifts_are_uniform_and_independent():
    flip, down, right = drawn()
    assert set(flip) == {0, 1}
    assert set(down) == set(right) == set(range(-4, 5))
    assert chi_square(np.bincount(flip)) < RARE[1]
    for shift in (down, right):
        assert chi_square(np.bincount(shift + 4)) < RARE[8]
    together = (flip * 9 + down + 4) * 9 + right + 4
    assert chi_square(np.bincount(together, minlength=162)) < RARE[161]


def test_neighbours_in_a_batch_move_independently():
    """Of one image and the next, of one mini-batch and the next, of one seed and the next."""
    shape = (100, 10, 64)
    _, down, right = (value.reshape(shape) for value in drawn(*shape))
    for shift, axis in itertools.product((down, right), range(3)):
        here, there = (np.take(shift, range(start, shape[axis] - 1 + start), axis).ravel() for start in (0, 1))
        assert abs(np.corrcoef(here, there)[0, 1]) < 4 / np.sqrt(len(here))


def slowly_moved(image: np.ndarray, flip: bool, down: int, right: int, padding: str) -> np.ndarray:
    """One image (C, H, W): flip, pad by 4, crop."""
    _, height, width = image.shape
    image = image[:, :, ::-1] if flip else image
    around = ((0, 0), (4, 4), (4, 4))
    padded = np.pad(image, around, mode="reflect") if padding == "reflect" else np.pad(image, around)
    return padded[:, 4 - down : 4 - down + height, 4 - right : 4 - right + width]


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 6, 11), (3, 9, 5)])
@pytest.mark.parametrize("padding", ["zero", "reflect"])
def test_every_move_of_an_image(padding, shape):
    """All 162, borders included, beside numpy's pad and a crop."""
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (5, *shape), dtype=np.uint8)
    all_moves = list(itertools.product([False, True], range(-4, 5), range(-4, 5)))
    indices = np.arange(len(all_moves)) % 5
    moves = augmentation.Moves(*(torch.tensor(values)[None] for values in zip(*all_moves, strict=True)))
    moved, inside = augmentation.gather(torch.from_numpy(images), torch.from_numpy(indices)[None], moves, padding)
    assert moved.shape == (1, 162, *shape)
    assert inside.shape == (1, 162, 1, *shape[1:])
    found = (moved * inside)[0].numpy()
    wanted = [slowly_moved(images[index], *move, padding) for index, move in zip(indices, all_moves, strict=True)]
    assert np.array_equal(found, np.stack(wanted))


def watched(core) -> list[SimpleNamespace]:
    """What the network will be given: images (B, C, H, W), and whether in training."""
    seen: list[SimpleNamespace] = []
    network = core.training.network

    def forward(params, images, training):
        seen.append(SimpleNamespace(images=images[0].numpy().copy(), training=training))
        return network.forward(params, images, training)

    core.training.network = replace(network, forward=forward)
    return seen


@pytest.mark.parametrize("padding", ["zero", "reflect"])
def test_the_network_is_given_moved_images(padding, npz):
    """In training, after normalisation: what comes in from outside is 0. What is measured is not moved."""
    core = make(dataset=npz, **SMALL | {"augment": padding, "train_size": 16, "epochs": 2})
    core.reset(seed=0)
    seen = watched(core)
    images, _ = core.split("train")
    for number in range(4):
        core.step(KEEP)
        moves = augmentation.draw(core.training.device_seeds, torch.tensor([number]), 8)
        (batch,) = core.batch_indices
        one_by_one = zip(batch, *(value[0].tolist() for value in moves), strict=True)
        wanted = [slowly_moved(images[index], *move, padding) for index, *move in one_by_one]
        (given,) = (call.images for call in seen if call.training)
        assert np.array_equal(given, np.stack(wanted))
        zeros = (given == 0).all(axis=1).any(axis=(1, 2))  # images with a pixel that is 0 in every channel
        assert zeros.any() == (padding == "zero")
        measured = [call.images for call in seen if not call.training]
        seen.clear()
    wanted = np.concatenate([core.split("validation")[0], core.split("test")[0]])
    assert np.array_equal(np.concatenate(measured), wanted)


def test_moves_differ_from_epoch_to_epoch_and_run_to_run(npz):
    """The same image in two epochs, or under two seeds, moves differently; under the same seed, alike."""

    def given(seed: int) -> list[np.ndarray]:
        """The images of two epochs, in the order of the file."""
        core = make(dataset=npz, **SMALL | {"augment": "zero", "train_size": 16})
        core.reset(seed=seed)
        seen, epochs = watched(core), []
        for _ in range(2):
            images = np.empty_like(core.split("train")[0])
            for _ in range(2):
                core.step(KEEP)
                images[core.batch_indices[0]] = [call.images for call in seen if call.training][-1]
            epochs.append(images)
        return epochs

    (first, second), (again, _), (other, _) = given(1), given(1), given(2)
    assert np.array_equal(first, again)
    for another in (second, other):
        assert (first != another).any(axis=(1, 2, 3)).mean() > 0.8


# --- whitening ------------------------------------------------------------------------------------------------------

WHITE = SMALL | {"preprocess": "whiten"}


def correlated(seed: int = 0, n_train: int = 900) -> dict[str, np.ndarray]:
    """Images of 6x6x3 whose neighbouring pixels are alike, as a photograph's."""
    arrays = made_arrays(n_train=n_train, n_test=30, shape=(6, 6, 3), seed=seed)
    for name in ("x_train", "x_test"):
        x = arrays[name].astype(np.float64)
        arrays[name] = ((x + np.roll(x, 1, axis=1) + np.roll(x, 1, axis=2) + np.roll(x, 1, axis=3)) / 4).astype(
            np.uint8
        )
    return arrays


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data root of its own."""
    monkeypatch.setenv("QAN_GYM_DATA", str(tmp_path / "root"))
    data.on_device.cache_clear()
    return tmp_path / "root"


def saved(path: Path, arrays: dict[str, np.ndarray]) -> str:
    np.savez(path, **arrays)
    return str(path)


def inner(images: np.ndarray, size: int = 6) -> np.ndarray:
    """What lies within the padding to 32x32, (n, C, size, size)."""
    edge = (32 - size) // 2
    assert not images[:, :, :edge].any()
    assert not images[:, :, :, :edge].any()
    return images[:, :, edge : edge + size, edge : edge + size]


def contrast(images: np.ndarray) -> np.ndarray:
    """Each image of mean 0 and length 55, (n, D) float64."""
    flat = images.reshape(len(images), -1).astype(np.float64)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return 55 * flat / np.linalg.norm(flat, axis=1, keepdims=True)


def test_whitening_beside_numpy(root, tmp_path):
    """All three splits by the numbers of the training images; their covariance is left with v / (v + 0.1)."""
    path = saved(tmp_path / "a.npz", correlated())
    core = make(dataset=path, **WHITE)
    dataset = load_dataset(path)
    train = contrast(dataset.train.images)
    mean = train.mean(axis=0)
    variances, directions = np.linalg.eigh(np.cov(train.T, bias=True))
    matrix = directions @ np.diag(1 / np.sqrt(variances + 0.1)) @ directions.T
    for name in ("train", "validation", "test"):
        wanted = (contrast(getattr(dataset, name).images) - mean) @ matrix
        found = inner(core.split(name)[0]).reshape(len(wanted), -1)
        np.testing.assert_allclose(found, wanted, atol=5e-3)  # kept in float16: 11 bits, of values up to 5
        assert distance(found, wanted) < 1e-3
    found = inner(core.split("train")[0]).reshape(len(train), -1).astype(np.float64)
    left = np.linalg.eigvalsh(np.cov(found.T, bias=True))
    np.testing.assert_allclose(left, np.sort(variances / (variances + 0.1)), atol=2e-3)


def test_whitening_is_learnt_on_the_training_split_alone(root, tmp_path):
    """Other test or validation images leave the training images and the cached matrix as they are."""
    arrays = correlated()
    held_out = int(np.flatnonzero(arrays["y_train"] == 0)[-1])  # the last of its class
    changes = {"none": ("x_test", []), "test": ("x_test", [0, 5]), "validation": ("x_train", [held_out])}
    whitened = {}
    for kind, (name, images) in changes.items():
        changed = arrays | {name: arrays[name].copy()}
        changed[name][images] = 255 - changed[name][images, ::-1]
        core = make(dataset=saved(tmp_path / f"{kind}.npz", changed), **WHITE)
        whitened[kind] = [core.split(split)[0] for split in ("train", "validation", "test")]
    for kind in ("test", "validation"):
        assert np.array_equal(whitened[kind][0], whitened["none"][0])
    assert not np.array_equal(whitened["validation"][1], whitened["none"][1])
    assert not np.array_equal(whitened["test"][2], whitened["none"][2])
    assert len(list((root / "whitening").iterdir())) == 1
    make(dataset=saved(tmp_path / "other.npz", correlated(seed=1)), **WHITE)
    assert len(list((root / "whitening").iterdir())) == 2


def test_whitening_is_learnt_once(root, tmp_path, monkeypatch):
    path = saved(tmp_path / "a.npz", correlated(n_train=90))
    first = make(dataset=path, **WHITE).split("train")[0]
    assert [file.parent.name for file in root.rglob("*.safetensors")] == ["whitening"]
    data.on_device.cache_clear()  # as in another process
    monkeypatch.setattr(whitening, "compute_whitening", lambda _: pytest.fail("learnt again"))
    assert np.array_equal(make(dataset=path, **WHITE).split("train")[0], first)


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def altered(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def foreign(path: Path) -> None:
    save_arrays(path, {"something": np.zeros(3, np.float32)}, {})


@pytest.mark.parametrize("damage", [torn, altered, foreign])
def test_damaged_whitening_is_named(damage, root, tmp_path):
    path = saved(tmp_path / "a.npz", correlated(n_train=90))
    make(dataset=path, **WHITE)
    (file,) = (root / "whitening").iterdir()
    damage(file)
    data.on_device.cache_clear()
    with pytest.raises(ValueError, match=str(file)):
        make(dataset=path, **WHITE)


def test_constant_images_are_whitened_to_something_finite(root, tmp_path):
    """No contrast to be normalised and no variance: all images are 0, and the episode is played to its end."""
    arrays = correlated(n_train=90)
    for name in ("x_train", "x_test"):
        arrays[name][:] = 7
    core = make(dataset=saved(tmp_path / "a.npz", arrays), **WHITE | {"epochs": 1})
    assert not core.split("train")[0].any()
    returned = play(core)
    assert returned[-1][3]
    for observation, *_, info in returned:
        assert np.isfinite(observation).all()
        assert np.isfinite(list(info.values())).all()


def test_large_images_are_not_whitened(root, tmp_path):
    path = made_npz(tmp_path / "large.npz", shape=(64, 64, 3))
    with pytest.raises(ValueError, match=r"12288 values.*8192"):
        make(dataset=path, **WHITE)
    assert not root.exists()


# --- early stopping -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """Noise whose labels mean nothing: 24 training images, 3 for validation; nothing can be learnt but the images."""
    rng = np.random.default_rng(0)
    arrays = {"x_train": rng.integers(0, 256, (27, 8, 8, 3), dtype=np.uint8), "y_train": np.arange(27) % 3}
    arrays |= {"x_test": arrays["x_train"][:5], "y_test": arrays["y_train"][:5]}
    return saved(tmp_path_factory.mktemp("noise") / "noise.npz", arrays)


HOPELESS = SMALL | {"epochs": 12, "batches_per_action": 1}
HARD = 4  # a seed under which the loss falls again and again, but not below its lowest


def played(core, seed: int) -> list[dict]:
    """The infos of an episode in which the learning rate is kept, the first of reset; the last has how it ended."""
    infos = [core.reset(seed=seed)[1]]
    ended = False
    while not ended:
        _, _, terminated, truncated, info = core.step(KEEP)
        infos.append(info | {"terminated": terminated, "truncated": truncated})
        ended = terminated or truncated
    return infos


def epoch_to_stop(losses: list[float], patience: int) -> int:
    """The epoch (from 1) that is the `patience`-th in a row without a loss below the lowest before it."""
    best, waited = losses[0], 0
    for epoch, loss in enumerate(losses[1:], start=1):
        waited = 0 if loss < best else waited + 1
        best = min(best, loss)
        if waited == patience:
            return epoch
    return len(losses)


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_early_stopping(patience, noise):
    """The episode is that without it, up to the epoch that the validation losses say; then it is over."""
    whole = played(make(dataset=noise, **HOPELESS), seed=HARD)
    assert len(whole) == 1 + 12 * 3
    assert whole[-1]["truncated"]
    assert not any(info["early_stopped"] for info in whole)
    losses = [info["validation_loss"] for info in whole[::3]]
    epoch = epoch_to_stop(losses, patience)
    assert epoch < 12
    stopped = played(make(dataset=noise, **HOPELESS, early_stopping=patience), seed=HARD)
    assert len(stopped) == 1 + 3 * epoch
    assert [info["validation_loss"] for info in stopped[::3]] == losses[: epoch + 1]
    assert [info["early_stopped"] for info in stopped] == [False] * 3 * epoch + [True]
    last = stopped[-1]
    assert (last["terminated"], last["truncated"], last["is_success"], last["diverged"]) == (True, False, False, False)
    assert last["test_loss"] > 0


def test_no_early_stopping_while_it_gets_better(npz):
    """Images that can be learnt: the budget is spent."""
    easy = SMALL | {"optimizer": "adamw", "epochs": 3}
    infos = played(make(dataset=npz, **easy, early_stopping=3), seed=0)
    assert infos[-1]["truncated"]
    assert not infos[-1]["early_stopped"]


def test_patience_is_in_the_state(noise, tmp_path):
    """Saved after each epoch and continued elsewhere, the episode ends where it would have."""
    game = HOPELESS | {"dataset": noise, "early_stopping": 3}
    core, fork = make(**game), make(**game)
    whole = played(core, seed=HARD)
    epochs = (len(whole) - 1) // 3
    assert epochs > 2
    core.reset(seed=HARD)
    for _ in range(epochs - 1):
        for _ in range(3):
            core.step(KEEP)
        core.get_state().save(tmp_path / "state.safetensors")
        fork.reset(seed=9)
        fork.set_state(State.load(tmp_path / "state.safetensors"))
        steps, terminated = fork.training.run.batch[0], False
        while not terminated:
            *_, terminated, _, _ = fork.step(KEEP)
            steps += 1
        assert steps == len(whole) - 1


def test_rows_stop_early_on_their_own(noise):
    """Each where it does alone, while the others go on."""
    game = HOPELESS | {"dataset": noise, "early_stopping": 2}
    alone = [len(played(make(**game), seed=seed)) - 1 for seed in range(4)]
    assert len(set(alone)) > 1
    envs = gym.make_vec(CIFAR, num_envs=4, **game)
    envs.reset(seed=0)
    ends = np.zeros(4, int)
    for step in range(1, max(alone) + 1):
        _, _, terminated, truncated, infos = envs.step(np.full(4, KEEP))
        first = (terminated | truncated) & (ends == 0)
        assert infos["early_stopped"][first].all()
        ends[first] = step
    assert ends.tolist() == alone


# --- precision and distillation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["resnet-8", "nin"])
def test_bf16(network, npz):
    """Near float32 after a step and not the same; finite to the end, measured with finite statistics."""
    game = SMALL | {"network": network, "batch_size": 4, "train_size": 12, "epochs": 1}
    core, exact = make(dataset=npz, **game, precision="bf16"), make(dataset=npz, **game)
    for one in (core, exact):
        one.reset(seed=0)
    near, wanted = core.step(KEEP)[4]["loss"], exact.step(KEEP)[4]["loss"]
    assert near == pytest.approx(wanted, rel=2e-2)
    assert near != wanted
    for _ in range(2):
        observation, _, terminated, truncated, info = core.step(RAISE)
        assert np.isfinite(observation).all()
        assert np.isfinite(list(info.values())).all()
    assert (terminated, truncated) == (False, True)
    for name, value in core.weights().items():
        assert value.dtype == np.float32, name
        assert np.isfinite(value).all(), name


def test_the_teacher_is_in_evaluation_mode(npz, tmp_path):
    """Its soft targets depend on its running statistics, which distillation does not move."""
    teacher = weights_of("resnet-8", npz)
    other = {name: value * 4 if name.endswith("running_var") else value for name, value in teacher.items()}
    after = []
    for number, weights in enumerate((teacher, other)):
        path = tmp_path / f"{number}.safetensors"
        save_arrays(path, weights, {})
        distilled = SMALL | {"reference": str(path), "distillation": 1.0}
        core = make(dataset=npz, **distilled)
        core.reset(seed=0)
        core.step(KEEP)
        after.append(core.weights()["linear.weight"])
        assert all(np.array_equal(value, weights[name]) for name, value in core.reference.items())
    assert distance(after[0], after[1]) > 1e-3


# --- other images, and what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["nin", "resnet-8"])
@pytest.mark.parametrize(
    ("shape", "seen"), [((28, 28), (1, 32, 32)), ((40, 40, 3), (3, 40, 40)), ((5, 9), (1, 32, 32))]
)
def test_images_of_other_sizes_play(shape, seen, network, tmp_path):
    """Smaller ones are padded to 32x32, larger ones are taken as they are; moved in both cases."""
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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"batch_size": 81}, "batch_size 81 .* 80 images"),
        ({"network": "resnet-9"}, "unknown network 'resnet-9'; there are .*nin"),
        ({"optimizer": "lion"}, "unknown optimizer 'lion'; there are sgd, adamw"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov=True needs a momentum"),
        ({"nesterov": True, "optimizer": "adamw"}, "nesterov=True is for optimizer='sgd'"),
        ({"augment": "mirror"}, "augment must be one of None, zero, reflect"),
        ({"preprocess": "zca"}, "preprocess must be one of normalise, whiten"),
        ({"early_stopping": 0}, "early_stopping must be None or an integer of at least 1"),
    ],
)
def test_what_does_not_go_is_said(arguments, said, npz):
    with pytest.raises(ValueError, match=said):
        make(dataset=npz, **SMALL | arguments)


class Unsized(nn.Module):
    """A module without weights."""

    def forward(self, images):
        return images.flatten(1)[:, :10]


def tiny(image_shape, n_classes):
    """Softmax regression."""
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(image_shape)), n_classes))


def dropping(image_shape, n_classes):
    return nn.Sequential(nn.Dropout(0.5), *tiny(image_shape, n_classes))


def one_too_many(image_shape, n_classes):
    return tiny(image_shape, n_classes + 1)


def of_other_images(image_shape, n_classes):
    return tiny((3, 7, 7), n_classes)


def weightless(image_shape, n_classes):
    return Unsized()


def idle(image_shape, n_classes):
    """Its second layer is there, and nothing else."""
    module = tiny(image_shape, n_classes)
    module[0].unused = nn.Linear(3, 2)
    return module


def doubled(image_shape, n_classes):
    return tiny(image_shape, n_classes).double()


def leaking(image_shape, n_classes):
    """No dropout by name, but slopes drawn anew at every pass."""
    return nn.Sequential(nn.LayerNorm(image_shape), nn.RReLU(), *tiny(image_shape, n_classes))


@pytest.mark.parametrize(
    ("builder", "said"),
    [
        (dropping, "dropout"),
        (one_too_many, r"'own' gives \(2, 11\) for 2 images of 10 classes"),
        (of_other_images, r"'own' cannot take images of \(3, 32, 32\)"),
        (weightless, "no weight"),
        (idle, r"'own' does not use 0.unused.weight, 0.unused.bias"),
        (doubled, "must be float32"),
        (leaking, "draws random numbers"),
        (lambda shape, n: nn.Sequential(nn.BatchNorm2d(3, momentum=None), *tiny(shape, n)), "give it a momentum"),
        (lambda image_shape, n_classes: "resnet", "a str, not an nn.Module"),
    ],
)
def test_modules_that_cannot_be_trained_are_refused(builder, said, npz, registries):
    qan_gym.register_network("own", builder)
    with pytest.raises(ValueError, match=said):
        make(dataset=npz, **SMALL | {"network": "own"})


class Viewing(nn.Module):
    """Flattens by `view`, as many do, which wants its input in one piece."""

    def __init__(self, n_classes):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 4, 3, stride=4), nn.Linear(4 * 8 * 8, n_classes)

    def forward(self, images):
        x = self.conv(images)
        return self.out(x.view(len(x), -1))


def viewing(image_shape, n_classes):
    return Viewing(n_classes)


def without_dropout(image_shape, n_classes):
    return nn.Sequential(nn.Dropout(0.0), *tiny(image_shape, n_classes))


def test_frozen_parameters_stay(npz, registries):
    """Neither gradients nor weight decay nor the pull move what requires no gradient."""

    def frozen(image_shape, n_classes):
        module = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), *tiny((4, 8, 8), n_classes))
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
    """Moves a buffer on in place while weights of the same memory wait for their gradients; and has a scalar weight."""

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


def test_a_scalar_weight_survives_the_file_of_a_reference(npz, registries, tmp_path, monkeypatch):
    monkeypatch.setenv("QAN_GYM_DATA", str(tmp_path))
    qan_gym.register_network("own", averaging)
    game = SMALL | {"network": "own", "epochs": 1, "meta_momentum": 0.1, "reference": "pretrained"}
    made, found = (make(dataset=npz, **game).reference for _ in range(2))
    assert made["scale"].shape == found["scale"].shape == ()
    assert all(np.array_equal(value, found[name]) for name, value in made.items())


def batch_norm(momentum):
    return lambda image_shape, n_classes: nn.Sequential(
        nn.BatchNorm2d(3, momentum=momentum), *tiny(image_shape, n_classes)
    )


@pytest.mark.parametrize(
    "builder",
    [batch_norm(0.1), batch_norm(0.5), viewing, without_dropout, averaging],
    ids=["batch norm", "other momentum", "view", "dropout of 0", "own buffers"],
)
def test_modules_that_anyone_might_write_are_replayed(builder, npz, registries):
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


@pytest.mark.parametrize("shape", [(4, 4, 3), (4, 9, 3), (9, 3)])
def test_images_too_small_to_be_moved_are_refused(shape, tmp_path, registries):
    """By a network that does not pad them; without moves they play, and a pixel more is enough."""
    qan_gym.register_network("tiny", tiny)
    game = SMALL | {"network": "tiny", "epochs": 1}
    path = made_npz(tmp_path / "small.npz", shape=shape, n_classes=2)
    with pytest.raises(ValueError, match="augment needs images of more than 4 pixels a side"):
        make(dataset=path, **game | {"augment": "reflect"})
    assert play(make(dataset=path, **game))[-1][3]
    enough = made_npz(tmp_path / "enough.npz", shape=(5, 5, 3), n_classes=2)
    assert play(make(dataset=enough, **game | {"augment": "reflect"}))[-1][3]


# --- AdamW in every game --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", list(TASKS))
def test_adamw_brings_its_own_defaults(env_id, registries, monkeypatch):
    """Its learning rate and the range around it, in every id, each of which the caller may set otherwise."""
    shape = (32, 32, 3) if env_id == CIFAR else (28, 28)
    for name in ("mnist", "cifar10", "mnist5k"):
        monkeypatch.setitem(data.DATASETS, name, lambda: made_arrays(n_train=90, shape=shape))
    game = {"optimizer": "adamw", "batch_size": 10, "batches_per_action": 1, "epochs": 1, **ALONE}
    if env_id == CIFAR:
        game["network"] = "resnet-8"
    config = make_task_config(env_id, game)
    defaults = {"learning_rate": 1e-3, "learning_rate_step": 1e-4, "learning_rate_min": 1e-4, "learning_rate_max": 0.02}
    defaults |= {"momentum": 0.9, "nesterov": False, "weight_decay": 0.01}
    assert OPTIMIZER_DEFAULTS["adamw"] == defaults
    assert {name: getattr(config, name) for name in defaults} == defaults
    unchanged = TASKS[env_id]
    for name in ("learning_rate", "learning_rate_step", "learning_rate_max", "momentum", "weight_decay"):
        assert getattr(make_task_config(env_id, {}), name) == getattr(unchanged, name)
        assert getattr(make_task_config(env_id, {"optimizer": "sgd"}), name) == getattr(unchanged, name)

    def rates(**kwargs) -> list[float]:
        """At the start, after raising, after raising, after lowering (of the mini-batch game: it has no say)."""
        env = gym.make(env_id, **game, **kwargs)
        return [env.reset(seed=0)[1]["learning_rate"], *(env.step(a)[4]["learning_rate"] for a in (0, 0, 1))]

    by_hand = [1e-3, 1.1e-3, 1.2e-3, 1.1e-3] if config.game == "learning-rate" else [1e-3] * 4
    assert rates() == pytest.approx(by_hand, rel=1e-9)
    own = [0.004, 0.005, 0.005, 0.004] if config.game == "learning-rate" else [0.004] * 4
    chosen = {"learning_rate": 0.004, "learning_rate_step": 0.001, "learning_rate_max": 0.005}
    assert rates(**chosen) == pytest.approx(own, rel=1e-9)


# --- registered from outside ----------------------------------------------------------------------------------------


def small_cnn(image_shape, n_classes):
    """What anyone would write."""
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
    """Its own buffer counts the updates, so that a test can see that it is kept."""

    slots = ("count",)

    def __init__(self, config):
        self.decay = config.weight_decay

    def update(self, params, gradients, slots, learning_rate, step):
        for name, value in params.items():
            slots["count"][name] += 1
            rate = learning_rate.view(-1, *[1] * (value.dim() - 1))
            value.sub_(rate * (gradients[name].sign() + self.decay * value))


@pytest.fixture
def own(registries):
    """The keyword arguments of a game whose data, network, optimizer and reward are all a user's own."""
    qan_gym.register_dataset("fashion", lambda: made_arrays(n_train=225, n_test=20))
    qan_gym.register_network("small-cnn", small_cnn)
    qan_gym.register_optimizer("sign", SignSGD)
    qan_gym.register_reward("half-loss", lambda m: -m.loss / 2)
    names = {"dataset": "fashion", "network": "small-cnn", "optimizer": "sign", "reward": "half-loss"}
    return names | {"learning_rate": 0.01, "batch_size": 20, "epochs": 2, "augment": "zero", **ALONE}


def test_all_ones_own(own):
    """An ordinary module, seen unpadded by its first convolution; each weight moves by the learning rate; it learns."""
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


def test_all_ones_own_in_rows(own):
    """Three at once are three alone."""
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


@pytest.mark.parametrize(
    ("register", "name", "value"),
    [
        (lambda *given: qan_gym.register_network(*given), "nin", small_cnn),
        (lambda *given: qan_gym.register_optimizer(*given), "adamw", SignSGD),
        (lambda *given: qan_gym.register_dataset(*given), "cifar10", made_arrays),
    ],
)
def test_a_name_that_is_taken_is_refused(register, name, value, registries):
    with pytest.raises(ValueError, match=name):
        register(name, value)


# --- CIFAR-10's own files -------------------------------------------------------------------------------------------

FOLDER = "cifar-10-batches-py"


def cifar_files() -> dict[str, bytes]:
    """Files in CIFAR-10's format: five batches of 18 images, 20 test images, and the names of the classes."""
    arrays = made_arrays(n_train=90, n_test=20, shape=(32, 32, 3))
    parts = {f"data_batch_{number + 1}": ("train", slice(18 * number, 18 * number + 18)) for number in range(5)}
    parts["test_batch"] = ("test", slice(None))
    files = {}
    for name, (part, some) in parts.items():
        pixels = arrays[f"x_{part}"][some].transpose(0, 3, 1, 2).reshape(-1, 3072)
        files[name] = pickle.dumps({"data": pixels, "labels": arrays[f"y_{part}"][some].tolist()})
    return files | {"batches.meta": pickle.dumps({"label_names": [f"class {label}" for label in range(10)]})}


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """An empty data root, and no way online."""
    monkeypatch.setenv("QAN_GYM_DATA", str(tmp_path / "root"))
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_args, **_kwargs: pytest.fail("went online"))
    data._load_registered.cache_clear()
    yield tmp_path / "root"
    data._load_registered.cache_clear()


@pytest.fixture
def small_cifar(nowhere, monkeypatch):
    """A data root with the made files, whose checksums stand in place of the originals'."""
    files = cifar_files()
    (nowhere / FOLDER).mkdir(parents=True)
    for name, content in files.items():
        (nowhere / FOLDER / name).write_bytes(content)
    source = downloads.SOURCES["cifar10"]
    assert files.keys() == source.md5.keys()
    checksums = {name: md5(content) for name, content in files.items()}
    monkeypatch.setitem(downloads.SOURCES, "cifar10", replace(source, md5=checksums))
    return nowhere / FOLDER


def assert_made(dataset: data.Dataset) -> None:
    arrays = made_arrays(n_train=90, n_test=20, shape=(32, 32, 3))
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (80, 10, 20)
    assert np.array_equal(dataset.test.images.transpose(0, 2, 3, 1), arrays["x_test"])
    assert np.array_equal(dataset.test.labels, arrays["y_test"])
    images = np.concatenate([dataset.train.images, dataset.validation.images]).transpose(0, 2, 3, 1)
    assert sorted(image.tobytes() for image in images) == sorted(image.tobytes() for image in arrays["x_train"])


def test_cifar10_from_a_folder(small_cifar):
    """Without going online; and it is what the id plays by default."""
    assert_made(load_dataset("cifar10"))
    env = gym.make(CIFAR, network="resnet-8", batch_size=8, epochs=1, **ALONE)
    assert play(env, steps=2)[-1][4]["batch"] == 2


class Bomb:
    """Unpickling it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("damage", ["truncated", "a bomb"])
@pytest.mark.parametrize("name", ["data_batch_1", "test_batch", "batches.meta"])
def test_damaged_cifar10_file_is_named(name, damage, small_cifar, tmp_path, monkeypatch):
    """Before anything is unpickled: neither it, if it is another pickle, nor those that are whole."""
    path, trace, unpickled, load = small_cifar / name, tmp_path / "trace", [], pickle.load
    monkeypatch.setattr(pickle, "load", lambda file, **kwargs: unpickled.append(file.name) or load(file, **kwargs))
    content = pickle.dumps(Bomb(trace)) if damage == "a bomb" else path.read_bytes()[:-10]
    path.write_bytes(content)
    with pytest.raises(ValueError, match="truncated or altered") as caught:
        load_dataset("cifar10")
    assert str(path) in str(caught.value)
    assert not trace.exists()
    assert not unpickled
    assert path.read_bytes() == content, "a user's file was touched"


def test_the_bomb_is_one(tmp_path):
    """What the test before this one shows to be left alone."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "trace")))
    assert (tmp_path / "trace").exists()


def unreachable(*_args, **_kwargs):
    raise urllib.error.URLError("Name or service not known")


def half(*_args, **_kwargs):
    """A download that breaks off."""
    response = io.BytesIO(b"\x1f\x8b" + b"x" * 100_000)
    response.url, response.length = None, 170_498_071
    return response


@pytest.mark.parametrize("answer", [unreachable, half])
def test_cifar10_offline(answer, nowhere, monkeypatch):
    """The three ways out, and nothing torn left behind."""
    monkeypatch.setattr(urllib.request, "urlopen", answer)
    with pytest.raises(FileNotFoundError) as caught:
        gym.make(CIFAR)
    for way in ("CIFAR-10", str(nowhere), "QAN_GYM_DATA", FOLDER, "online", ".npz"):
        assert way in str(caught.value)
    assert not list(nowhere.rglob("*"))


def archive_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{FOLDER}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(buffer.getvalue())


@pytest.mark.parametrize("before", ["nothing", "all but one file"])
def test_cifar10_is_downloaded_once_and_whole(before, small_cifar, nowhere, monkeypatch):
    """Through torchvision's own code, from a mirror of the made files; afterwards the folder holds the files alone."""
    from torchvision.datasets import CIFAR10

    files = cifar_files()
    archive, asked = archive_of(files), []

    def urlopen(request, *_args, **_kwargs):
        asked.append(request.full_url)
        response = io.BytesIO(archive)
        response.url, response.length = None, len(archive)
        return response

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    monkeypatch.setattr(
        CIFAR10, "train_list", [[f"data_batch_{k}", md5(files[f"data_batch_{k}"])] for k in range(1, 6)]
    )
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5(files["test_batch"])]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5(files["batches.meta"])})
    for name in files if before == "nothing" else ["data_batch_3"]:
        (small_cifar / name).unlink()
    assert_made(load_dataset("cifar10"))
    assert set(asked) == {CIFAR10.url}
    found = {str(path.relative_to(nowhere)) for path in nowhere.rglob("*") if path.is_file()}
    assert found == {f"{FOLDER}/{name}" for name in files}
    asked.clear()
    data._load_registered.cache_clear()
    assert_made(load_dataset("cifar10"))
    assert not asked


# --- the real photographs -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """The path of CIFAR-10 as an .npz, unpacked once; skips where it is not."""
    root = Path(os.environ.get("QAN_GYM_DATA") or Path(__file__).parents[2] / "shared" / "data")
    script = root / "unpack_cifar10.py"
    if not script.is_file():
        pytest.skip(f"needs the real CIFAR-10, and {script} is not there (set QAN_GYM_DATA to a folder that holds it)")
    path = tmp_path_factory.mktemp("cifar10") / "cifar10.npz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(script), str(path)])
        runpy.run_path(str(script), run_name="__main__")
    yield str(path)
    path.unlink()  # 180 MB
    data._load_npz.cache_clear()
    data.on_device.cache_clear()


def test_real_photographs(photographs):
    """45,000/5,000/10,000, each class a tenth of each; two steps of the game as it is, but for the network."""
    dataset = load_dataset(photographs)
    for split, per_class in ((dataset.train, 4_500), (dataset.validation, 500), (dataset.test, 1_000)):
        assert split.images.shape == (10 * per_class, 3, 32, 32)
        assert np.bincount(split.labels).tolist() == [per_class] * 10
    core = make(dataset=photographs, network="resnet-8", **ALONE)
    assert core.episode_length == 5 * (45_000 // 128)
    for returned in play(core, steps=2):
        assert core.observation_space.contains(returned[0])
    info = returned[4]
    assert info["batch"] == 2
    assert 1.5 < info["loss"] < 4.0  # near ln(10), as little is learnt in two steps
