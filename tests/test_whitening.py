"""Whitening: beside NumPy, what it is computed from, its cache, and images that cannot be whitened."""

from pathlib import Path

import numpy as np
import pytest
from deep_tasks import SMALL, distance, make, write_npz
from helpers import made_arrays, made_npz, play

from qan_gym.data import datasets as data
from qan_gym.data import whitening
from qan_gym.data.datasets import load_dataset
from qan_gym.utils.files import save_arrays

WHITE = SMALL | {"preprocess": "whiten"}


def correlated(seed: int = 0, n_train: int = 900) -> dict[str, np.ndarray]:
    """Images of 6x6x3 whose neighbouring pixels are correlated, as those of a photograph."""
    arrays = made_arrays(n_train=n_train, n_test=30, shape=(6, 6, 3), seed=seed)
    for name in ("x_train", "x_test"):
        x = arrays[name].astype(np.float64)
        arrays[name] = ((x + np.roll(x, 1, axis=1) + np.roll(x, 1, axis=2) + np.roll(x, 1, axis=3)) / 4).astype(
            np.uint8
        )
    return arrays


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty cache of the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data.on_device.cache_clear()
    return tmp_path / "cache" / "qan-gym"


def inner(images: np.ndarray, size: int = 6) -> np.ndarray:
    """The images without their padding to 32x32, (n, C, size, size)."""
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
    """All three splits with the matrix of the training images, whose variances v become v / (v + 0.1)."""
    path = write_npz(tmp_path / "a.npz", correlated())
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


def test_whitening_is_computed_from_the_training_split_alone(root, tmp_path):
    """Other test or validation images leave the training images and the cached matrix as they are."""
    arrays = correlated()
    held_out = int(np.flatnonzero(arrays["y_train"] == 0)[-1])  # the last of its class
    changes = {"none": ("x_test", []), "test": ("x_test", [0, 5]), "validation": ("x_train", [held_out])}
    whitened = {}
    for kind, (name, images) in changes.items():
        changed = arrays | {name: arrays[name].copy()}
        changed[name][images] = 255 - changed[name][images, ::-1]
        core = make(dataset=write_npz(tmp_path / f"{kind}.npz", changed), **WHITE)
        whitened[kind] = [core.split(split)[0] for split in ("train", "validation", "test")]
    for kind in ("test", "validation"):
        assert np.array_equal(whitened[kind][0], whitened["none"][0])
    assert not np.array_equal(whitened["validation"][1], whitened["none"][1])
    assert not np.array_equal(whitened["test"][2], whitened["none"][2])
    assert len(list((root / "whitening").iterdir())) == 1
    make(dataset=write_npz(tmp_path / "other.npz", correlated(seed=1)), **WHITE)
    assert len(list((root / "whitening").iterdir())) == 2


def test_whitening_is_computed_once(root, tmp_path, monkeypatch):
    path = write_npz(tmp_path / "a.npz", correlated(n_train=90))
    first = make(dataset=path, **WHITE).split("train")[0]
    assert [file.parent.name for file in root.rglob("*.safetensors")] == ["whitening"]
    data.on_device.cache_clear()  # as in another process
    monkeypatch.setattr(whitening, "compute_whitening", lambda _: pytest.fail("computed again"))
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
    path = write_npz(tmp_path / "a.npz", correlated(n_train=90))
    make(dataset=path, **WHITE)
    (file,) = (root / "whitening").iterdir()
    damage(file)
    data.on_device.cache_clear()
    with pytest.raises(ValueError, match=str(file)):
        make(dataset=path, **WHITE)


def test_constant_images_are_whitened_to_something_finite(root, tmp_path):
    """Without contrast and variance all images are 0, and the episode goes to its end."""
    arrays = correlated(n_train=90)
    for name in ("x_train", "x_test"):
        arrays[name][:] = 7
    core = make(dataset=write_npz(tmp_path / "a.npz", arrays), **WHITE | {"epochs": 1})
    assert not core.split("train")[0].any()
    returned = play(core)
    assert returned[-1][3]
    for observation, *_, info in returned:
        assert np.isfinite(observation).all()
        assert np.isfinite([value for name, value in info.items() if not name.startswith("test_")]).all()


def test_large_images_are_not_whitened(root, tmp_path):
    path = made_npz(tmp_path / "large.npz", shape=(64, 64, 3))
    with pytest.raises(ValueError, match=r"12288 values.*8192"):
        make(dataset=path, **WHITE)
    assert not root.exists()
