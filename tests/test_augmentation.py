"""Random flips and crops: their distribution, what they do to an image, and what the network is given."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from deep_tasks import SMALL, made_photographs, make, softmax_regression
from helpers import made_npz, play
from oracles.deep_networks import KEEP

import qan_gym
from qan_gym.data import augmentation


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    return made_photographs(tmp_path_factory.mktemp("data"))


def drawn(seeds: int = 100, batches: int = 10, batch_size: int = 64) -> list[np.ndarray]:
    """flip, down and right, (64,000,) each: of consecutive seeds and mini-batches."""
    numbers = torch.cartesian_prod(torch.arange(seeds), torch.arange(batches))
    return [value.flatten().numpy().astype(int) for value in augmentation.draw(*numbers.T, batch_size)]


def chi_square(counts: np.ndarray) -> float:
    """The statistic of counts that should be equal."""
    return float(((counts - counts.mean()) ** 2).sum() / counts.mean())


# Degrees of freedom -> the chi-square that one of ten thousand experiments exceeds.
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


def test_neighbours_move_independently():
    """No correlation between an image, a mini-batch or a seed and the next one."""
    shape = (100, 10, 64)
    _, down, right = (value.reshape(shape) for value in drawn(*shape))
    for shift, axis in itertools.product((down, right), range(3)):
        here, there = (np.take(shift, range(start, shape[axis] - 1 + start), axis).ravel() for start in (0, 1))
        assert abs(np.corrcoef(here, there)[0, 1]) < 4 / np.sqrt(len(here))


def moved_by_numpy(image: np.ndarray, flip: bool, down: int, right: int, padding: str) -> np.ndarray:
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
    wanted = [moved_by_numpy(images[index], *move, padding) for index, move in zip(indices, all_moves, strict=True)]
    assert np.array_equal(found, np.stack(wanted))


def forward_passes(core) -> list[SimpleNamespace]:
    """A list to which every forward pass from now on is added: its images (B, C, H, W), and whether in training."""
    seen: list[SimpleNamespace] = []
    network = core.training.engine.network

    def forward(params, images, training):
        seen.append(SimpleNamespace(images=images[0].numpy().copy(), training=training))
        return network.forward(params, images, training)

    core.training.engine.network = replace(network, forward=forward)
    return seen


@pytest.mark.parametrize("padding", ["zero", "reflect"])
def test_the_network_is_given_moved_images(padding, npz):
    """In training, after normalisation: pixels from outside are 0. Images that are measured are not moved."""
    core = make(dataset=npz, **SMALL | {"augment": padding, "train_size": 16, "epochs": 2})
    core.reset(seed=0)
    seen = forward_passes(core)
    images, _ = core.split("train")
    for number in range(4):
        core.step(KEEP)
        moves = augmentation.draw(core.training.run.device_seed, torch.tensor([number]), 8)
        (batch,) = core.batch_indices
        one_by_one = zip(batch, *(value[0].tolist() for value in moves), strict=True)
        wanted = [moved_by_numpy(images[index], *move, padding) for index, *move in one_by_one]
        (given,) = (call.images for call in seen if call.training)
        assert np.array_equal(given, np.stack(wanted))
        zeros = (given == 0).all(axis=1).any(axis=(1, 2))  # images with a pixel that is 0 in every channel
        assert zeros.any() == (padding == "zero")
        measured = [call.images for call in seen if not call.training]
        seen.clear()
    wanted = np.concatenate([core.split("validation")[0], core.split("test")[0]])
    assert np.array_equal(np.concatenate(measured), wanted)


def test_moves_differ_from_epoch_to_epoch_and_run_to_run(npz):
    """An image moves differently in two epochs and with two seeds; the same with the same seed."""

    def given(seed: int) -> list[np.ndarray]:
        """The images of two epochs, in the order of the file."""
        core = make(dataset=npz, **SMALL | {"augment": "zero", "train_size": 16})
        core.reset(seed=seed)
        seen, epochs = forward_passes(core), []
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


@pytest.mark.parametrize("shape", [(4, 4, 3), (4, 9, 3), (9, 3)])
def test_images_too_small_to_be_moved_are_refused(shape, tmp_path, registries):
    """With a network that does not pad them. Without moves they play, and with one more pixel they can be moved."""
    qan_gym.register_network("softmax", softmax_regression)
    game = SMALL | {"network": "softmax", "epochs": 1}
    path = made_npz(tmp_path / "small.npz", shape=shape, n_classes=2)
    with pytest.raises(ValueError, match="augment needs images of more than 4 pixels a side"):
        make(dataset=path, **game | {"augment": "reflect"})
    assert play(make(dataset=path, **game))[-1][3]
    enough = made_npz(tmp_path / "enough.npz", shape=(5, 5, 3), n_classes=2)
    assert play(make(dataset=enough, **game | {"augment": "reflect"}))[-1][3]
