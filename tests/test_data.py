"""Data sets: the bundled one, MNIST and `.npz` files; damaged ones are refused by name, valid ones play."""

import gzip
import hashlib
import http.client
import io
import itertools
import os
import pickle
import random
import socket
import struct
import urllib.error
import urllib.request
import zipfile
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import TINY, made_arrays, made_npz, play

from qan_gym.core.components import build_components
from qan_gym.data import datasets as data
from qan_gym.data import downloads
from qan_gym.data.datasets import load_dataset, make_dataset
from qan_gym.tasks import make_task_config

LR, MINIBATCH = "QanLR-MNIST5k-v1", "QanMinibatch-MNIST5k-v1"


@pytest.fixture
def read_again(tmp_path, monkeypatch):
    """A function after which registered data sets are read from disk again: they are cached by the data root."""
    roots = (str(tmp_path / f"root{number}") for number in itertools.count())
    return lambda: monkeypatch.setenv("QAN_GYM_DATA", next(roots))


def raw_mnist(root: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of MNIST's own files, read without torchvision; part is "train" or "t10k"."""
    folder = root / "MNIST" / "raw"
    images = np.frombuffer((folder / f"{part}-images-idx3-ubyte").read_bytes(), np.uint8, offset=16)
    labels = np.frombuffer((folder / f"{part}-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
    return images.reshape(-1, 28, 28), labels


def each_image(*splits: data.Split) -> list[bytes]:
    return [image.tobytes() for split in splits for image in split.images]


# --- the bundled images ---------------------------------------------------------------------------------------------


def test_mnist5k_split():
    dataset = load_dataset("mnist5k")
    assert dataset.n_classes == 10
    for split, size in ((dataset.train, 4_000), (dataset.validation, 1_000), (dataset.test, 10_000)):
        assert split.images.shape == (size, 1, 28, 28)
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int64
    for split, per_class in ((dataset.train, 400), (dataset.validation, 100)):
        assert np.bincount(split.labels).tolist() == [per_class] * 10
    assert data.MNIST5K_FILE.stat().st_size < 2.6e6


def test_mnist5k_has_no_image_twice():
    dataset = load_dataset("mnist5k")
    assert len(set(each_image(dataset.train, dataset.validation, dataset.test))) == 15_000


def test_mnist5k_is_in_mnist_with_its_labels(mnist_root):
    """Training and validation images are from MNIST's training set; the test images are its test set, in its order."""
    images, labels = raw_mnist(mnist_root, "train")
    real = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    dataset = load_dataset("mnist5k")
    for split in (dataset.train, dataset.validation):
        for image, label in zip(split.images, split.labels, strict=True):
            assert real.get(image.tobytes()) == label
    images, labels = raw_mnist(mnist_root, "t10k")
    assert np.array_equal(dataset.test.images[:, 0], images)
    assert np.array_equal(dataset.test.labels, labels)


def one_pixel(arrays):
    arrays["x_train"][1234, 10, 10] ^= 1


def one_label(arrays):
    arrays["y_test"][3] = (arrays["y_test"][3] + 1) % 10


def one_array_less(arrays):
    del arrays["y_test"]


@pytest.mark.parametrize("tamper", [one_pixel, one_label, one_array_less])
def test_altered_mnist5k_is_refused(tamper, tmp_path, monkeypatch, read_again):
    read_again()
    with np.load(data.MNIST5K_FILE) as file:
        arrays = dict(file)
    path = tmp_path / "mnist5k.npz"
    np.savez_compressed(path, **arrays)
    monkeypatch.setattr(data, "MNIST5K_FILE", path)
    assert len(load_dataset("mnist5k").train) == 4_000  # the contents count, not the bytes of the file
    tamper(arrays)
    np.savez_compressed(path, **arrays)
    read_again()
    with pytest.raises(ValueError, match="checksum") as caught:
        load_dataset("mnist5k")
    assert str(path) in str(caught.value)


def test_truncated_mnist5k_is_refused(tmp_path, monkeypatch, read_again):
    read_again()
    path = tmp_path / "mnist5k.npz"
    path.write_bytes(data.MNIST5K_FILE.read_bytes()[:-1000])
    monkeypatch.setattr(data, "MNIST5K_FILE", path)
    with pytest.raises(ValueError, match="damaged") as caught:
        gym.make(LR)
    assert str(path) in str(caught.value)


# --- a validation split of the file's own ---------------------------------------------------------------------------


def test_validation_split_of_a_file(tmp_path):
    """It is taken as it is, no training image is held out, and the fingerprint depends on it."""
    arrays = made_arrays()
    own = arrays | {"x_validation": arrays["x_test"][::-1].copy(), "y_validation": arrays["y_test"][::-1].copy()}
    dataset = make_dataset("own", own)
    assert len(dataset.train) == len(arrays["x_train"])
    assert np.array_equal(dataset.validation.labels, own["y_validation"])
    assert np.array_equal(dataset.validation.images[:, 0], own["x_validation"])
    assert dataset.fingerprint != make_dataset("none", arrays).fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_validation": None}, "x_validation is missing"),
        ({"y_validation": None}, "y_validation is missing"),
        ({"y_validation": np.full(5, 1)}, "x_validation has .* images but y_validation has 5 labels"),
        ({"x_validation": np.zeros((5, 3, 3), np.uint8), "y_validation": np.zeros(5, int)}, "x_train and x_validation"),
        ({"y_validation": np.full(40, 99)}, "y_validation has labels outside"),
    ],
)
def test_wrong_validation_splits_are_refused(changes, message):
    arrays = made_arrays()
    images, labels = arrays["x_test"][:1].repeat(40, axis=0), arrays["y_test"][:1].repeat(40)
    arrays |= {"x_validation": images, "y_validation": labels} | changes
    with pytest.raises(ValueError, match=message):
        make_dataset("own", {name: array for name, array in arrays.items() if array is not None})


# --- full MNIST -----------------------------------------------------------------------------------------------------


def test_mnist_split(mnist_root):
    """55,000 / 5,000 / 10,000; validation in proportion to the classes; the test set is MNIST's; no image is lost."""
    dataset = load_dataset("mnist")
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (55_000, 5_000, 10_000)
    share = np.bincount(dataset.validation.labels) / (5_000 / 60_000)
    assert np.abs(share - np.bincount(raw_mnist(mnist_root, "train")[1])).max() <= 12  # one image
    images, labels = raw_mnist(mnist_root, "t10k")
    assert np.array_equal(dataset.test.images[:, 0], images)
    assert np.array_equal(dataset.test.labels, labels)
    images, labels = raw_mnist(mnist_root, "train")
    assert np.array_equal(dataset.train.images[:20_000, 0], images[:20_000])
    assert np.array_equal(dataset.train.labels[:20_000], labels[:20_000])
    assert sorted(each_image(dataset.train, dataset.validation)) == sorted(image.tobytes() for image in images)


@pytest.mark.parametrize(("env_id", "size"), [("QanLR-MNIST-v0", 55_000), ("QanMinibatch-MNIST-v0", 20_000)])
def test_training_images_of_the_full_games(env_id, size, mnist_root):
    """The learning-rate game trains on all but validation, the mini-batch game on the first 20,000 of the file."""
    parts = build_components(make_task_config(env_id, {"meta_momentum": None}), "cpu")
    images, labels = raw_mnist(mnist_root, "train")
    found = parts.data.images["train"]
    assert found.shape == (size, 1, 32, 32)
    assert np.array_equal(found[:20_000, 0, 2:30, 2:30].numpy(), images[:20_000])
    assert np.array_equal(parts.data.labels["train"][:20_000].numpy(), labels[:20_000])
    assert [len(parts.data.labels[name]) for name in ("validation", "test")] == [5_000, 10_000]
    assert parts.budget == {55_000: 110_000, 20_000: 6_240}[size]


class FakeResponse(io.BytesIO):
    """What urlopen gives: some bytes of a download, then `failure`."""

    def __init__(self, failure: BaseException | None) -> None:
        super().__init__(b"\x1f\x8b" + b"x" * 100_000)
        self.url = None
        self.length = 9_912_422
        self.failure = failure

    def read(self, size=-1):
        some = super().read(size)
        if not some and self.failure is not None:
            raise self.failure
        return some


OFFLINE = {
    "no network": urllib.error.URLError("Name or service not known"),
    "connection times out": TimeoutError("timed out"),
    "not found": urllib.error.HTTPError("http://mirror", 404, "Not Found", None, None),  # type: ignore[arg-type]
    "proxy talks nonsense": http.client.BadStatusLine("<html>"),
}
BROKEN_OFF = {
    "no bytes for too long": TimeoutError("The read operation timed out"),
    "connection reset": ConnectionResetError(104, "Connection reset by peer"),
    "incomplete read": http.client.IncompleteRead(b"", 1000),
    "other content": None,
}


def assert_says_where_to_get_the_data(caught, root: Path) -> None:
    message = str(caught.value)
    for way in (str(root), "QAN_GYM_DATA", "online", "MNIST5k"):
        assert way in message
    assert not list(root.rglob("*")), "part of a download is left"


@pytest.mark.parametrize("failure", list(OFFLINE))
def test_mnist_offline(failure, tmp_path, monkeypatch):
    def urlopen(*_args, **_kwargs):
        raise OFFLINE[failure]

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setenv("QAN_GYM_DATA", str(tmp_path / "data"))
    with pytest.raises(FileNotFoundError) as caught:
        gym.make("QanLR-MNIST-v0")
    assert_says_where_to_get_the_data(caught, tmp_path / "data")


def test_a_torchvision_that_cannot_be_imported_is_no_failed_download(tmp_path, monkeypatch):
    """As one of another version of PyTorch, which raises a RuntimeError."""

    def broken(name: str) -> None:
        raise RuntimeError(f"operator {name}::nms does not exist")

    monkeypatch.setattr(downloads.importlib, "import_module", broken)
    with pytest.raises(FileNotFoundError, match=r"cannot be imported.*nms does not exist.*goes with torch") as caught:
        downloads.download("mnist", tmp_path)
    assert "download" not in str(caught.value).replace("which downloads it", "")


@pytest.mark.parametrize("failure", list(BROKEN_OFF))
def test_mnist_download_breaks_off(failure, tmp_path, monkeypatch):
    """In the middle of a file; sockets have a finite timeout during the download, and the former one afterwards."""
    timeouts = []

    def urlopen(*_args, **_kwargs):
        timeouts.append(socket.getdefaulttimeout())
        return FakeResponse(BROKEN_OFF[failure])

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setenv("QAN_GYM_DATA", str(tmp_path / "data"))
    before = socket.getdefaulttimeout()
    with pytest.raises(FileNotFoundError) as caught:
        load_dataset("mnist")
    assert_says_where_to_get_the_data(caught, tmp_path / "data")
    assert all(timeout is not None and 0 < timeout <= 120 for timeout in timeouts)
    assert timeouts
    assert socket.getdefaulttimeout() == before


def test_mnist_download_interrupted(tmp_path, monkeypatch):
    """Ctrl-C is raised, and no part of a download is left."""
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_args, **_kwargs: FakeResponse(KeyboardInterrupt()))
    monkeypatch.setenv("QAN_GYM_DATA", str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        load_dataset("mnist")
    assert not list(tmp_path.rglob("*"))


def test_no_folder_for_mnist(tmp_path, monkeypatch):
    """The data folder cannot be made."""
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("QAN_GYM_DATA", str(tmp_path / "file" / "data"))
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_args, **_kwargs: pytest.fail("went online"))
    with pytest.raises(FileNotFoundError, match="QAN_GYM_DATA"):
        load_dataset("mnist")


@pytest.fixture
def small_mnist(tmp_path, monkeypatch):
    """A data folder with files in MNIST's format, 90 and 30 images, and their checksums in place of the originals'."""
    arrays = made_arrays()
    folder = tmp_path / "data" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    checksums = {}
    for part, name in (("train", "train"), ("test", "t10k")):
        images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
        header = struct.pack(">4i", 2051, *images.shape)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, len(labels)) + labels.tobytes())
    for path in folder.iterdir():
        checksums[path.name] = hashlib.md5(path.read_bytes()).hexdigest()
    mnist = downloads.SOURCES["mnist"]
    assert checksums.keys() == mnist.md5.keys()
    monkeypatch.setitem(downloads.SOURCES, "mnist", replace(mnist, md5=checksums))
    monkeypatch.setenv("QAN_GYM_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_args, **_kwargs: pytest.fail("went online"))
    return folder


def test_mnist_from_a_folder(small_mnist):
    dataset, arrays = load_dataset("mnist"), made_arrays()
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (80, 10, 30)
    assert np.array_equal(dataset.test.images[:, 0], arrays["x_test"])
    assert np.array_equal(dataset.test.labels, arrays["y_test"])


def test_mnist_is_downloaded_once(small_mnist, tmp_path, monkeypatch):
    """By torchvision's own code, from a mirror of the small files; afterwards the folder holds the four files only."""
    packed = {f"{path.name}.gz": gzip.compress(path.read_bytes()) for path in small_mnist.iterdir()}
    asked = []

    def urlopen(request, *_args, **_kwargs):
        name = request.full_url.rpartition("/")[2]
        asked.append(name)
        response = io.BytesIO(packed[name])
        response.url, response.length = None, len(packed[name])
        return response

    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "resources", [(name, hashlib.md5(some).hexdigest()) for name, some in packed.items()])
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    root = tmp_path / "elsewhere"
    monkeypatch.setenv("QAN_GYM_DATA", str(root))
    assert len(load_dataset("mnist").test) == 30
    assert set(asked) == set(packed)
    found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert found == {f"MNIST/raw/{path.name}" for path in small_mnist.iterdir()}
    asked.clear()
    monkeypatch.setenv("QAN_GYM_DATA", f"{root}/")  # another name of the folder, so that it is read again
    assert len(load_dataset("mnist").test) == 30
    assert not asked


@pytest.mark.parametrize("damage", ["truncated", "altered", "longer"])
@pytest.mark.parametrize("name", list(downloads.SOURCES["mnist"].md5))
def test_damaged_mnist_file_is_named(small_mnist, name, damage):
    path = small_mnist / name
    content = path.read_bytes()
    changed = {"truncated": content[:-10], "altered": content[:-1] + bytes([content[-1] ^ 1]), "longer": content + b"x"}
    path.write_bytes(changed[damage])
    with pytest.raises(ValueError, match="truncated or altered") as caught:
        load_dataset("mnist")
    assert str(path) in str(caught.value)
    assert path.read_bytes() == changed[damage], "a user's file was touched"


def test_files_that_are_not_mnist_are_refused(small_mnist, monkeypatch):
    """Well-formed files with other checksums than the originals'."""
    monkeypatch.undo()
    monkeypatch.setenv("QAN_GYM_DATA", str(small_mnist.parents[1]))
    with pytest.raises(ValueError, match="not MNIST's file") as caught:
        load_dataset("mnist")
    assert str(small_mnist) in str(caught.value)


def test_verified_files_are_used(small_mnist):
    """torchvision prefers files of its old format, which are not verified, to those whose checksums were compared."""
    processed = small_mnist.parent / "processed"
    processed.mkdir()
    other = made_arrays(seed=1)
    for name, part in (("training.pt", "train"), ("test.pt", "test")):
        torch.save((torch.from_numpy(other[f"x_{part}"]), torch.from_numpy(other[f"y_{part}"])), processed / name)
    assert np.array_equal(load_dataset("mnist").test.images[:, 0], made_arrays()["x_test"])


# --- .npz files that are refused ------------------------------------------------------------------------------------


def without(name):
    return lambda arrays: arrays.pop(name)


def replaced(name, function):
    return lambda arrays: arrays.update({name: function(arrays[name])})


def relabelled(name, old, new):
    return replaced(name, lambda labels: np.where(labels == old, new, labels))


def beyond_63_bits(labels):
    return np.append(labels[:-1].astype(np.uint64), np.uint64(2**64 - 1))


def smaller(images):
    return images[:, 1:]


# name -> (the change of valid arrays, what the message says)
WRONG_ARRAYS = {
    "x_train missing": (without("x_train"), "x_train is missing"),
    "y_train missing": (without("y_train"), "y_train is missing"),
    "x_test missing": (without("x_test"), "x_test is missing"),
    "y_test missing": (without("y_test"), "y_test is missing"),
    "float images": (
        replaced("x_train", lambda x: x.astype(np.float32) / 255),
        "x_train must be uint8.*float32; multiply",
    ),
    "wide integers": (replaced("x_test", lambda x: x.astype(np.int64)), "x_test must be uint8.*int64"),
    "flat images": (replaced("x_train", lambda x: x.reshape(len(x), -1)), r"x_train must be \(n, H, W\).*\(90, 784\)"),
    "channels first": (replaced("x_train", lambda x: x[:, None]), r"x_train must be .*\(90, 1, 28, 28\)"),
    "four channels": (replaced("x_test", lambda x: np.stack([x] * 4, axis=3)), r"x_test must be .*\(30, 28, 28, 4\)"),
    "no test images": (
        lambda arrays: arrays.update(x_test=arrays["x_test"][:0], y_test=arrays["y_test"][:0]),
        r"x_test must be .*\(0, 28, 28",
    ),
    "no training images": (
        lambda arrays: arrays.update(x_train=arrays["x_train"][:0], y_train=arrays["y_train"][:0]),
        r"x_train must be .*\(0, 28, 28",
    ),
    "images without height": (replaced("x_train", lambda x: x[:, :0]), r"x_train must be .*\(90, 0, 28"),
    "fewer labels": (replaced("y_train", lambda y: y[:-1]), "x_train has 90 images but y_train has 89 labels"),
    "more labels": (replaced("y_test", lambda y: np.append(y, 0)), "x_test has 30 images but y_test has 31 labels"),
    "one-hot labels": (replaced("y_train", lambda y: np.eye(10, dtype=np.int64)[y]), r"y_train must be .*\(90, 10\)"),
    "labels from 1": (replaced("y_train", lambda y: y + 1), "too few of 0; classes count from 0, and the least"),
    "float labels": (replaced("y_train", lambda y: y.astype(float)), "y_train must be .*float64"),
    "text labels": (replaced("y_test", lambda y: y.astype(str)), "y_test must be .*<U"),
    "boolean labels": (replaced("y_train", lambda y: y == 3), "y_train must be .*bool"),
    "negative label": (replaced("y_train", lambda y: y.astype(int) - 1), "y_train.*-1"),
    "huge label": (replaced("y_train", lambda y: np.append(y[:-1], 255)), "y_train.*255"),
    "beyond 63 bits": (
        replaced("y_train", lambda y: np.append(y[:-1].astype(np.uint64), np.uint64(2**64 - 1))),
        "y_train",
    ),
    "a class too many": (relabelled("y_train", 9, 11), "class.* 9"),
    "a class missing": (relabelled("y_train", 4, 5), "class.* 4"),
    "a class of one image": (
        replaced("y_train", lambda y: np.where(np.arange(90) == np.flatnonzero(y == 7)[0], 7, np.where(y == 7, 6, y))),
        "class.* 7",
    ),
    "a single class": (replaced("y_train", np.zeros_like), "one class"),
    "test label out of range": (replaced("y_test", lambda y: np.append(y[:-1], 10)), "y_test"),
    "negative test label": (replaced("y_test", lambda y: np.append(y[:-1].astype(int), -1)), "y_test"),
    "sizes differ": (
        replaced("x_test", smaller),
        r"x_train and x_test differ.*\(1, 28, 28\).*\(1, 27, 28\)",
    ),
    "channels differ": (replaced("x_test", lambda x: np.stack([x] * 3, axis=3)), "x_train and x_test differ"),
    "object arrays": (replaced("x_train", lambda x: np.array([list(row) for row in x], dtype=object)), "pickle"),
}


@pytest.mark.parametrize("wrong", list(WRONG_ARRAYS))
def test_wrong_arrays_are_named(wrong, tmp_path):
    """The error of gym.make names the file and what is wrong with it."""
    change, said = WRONG_ARRAYS[wrong]
    arrays = made_arrays()
    change(arrays)
    path = tmp_path / "wrong.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=said) as caught:
        gym.make(LR, dataset=str(path), **TINY)
    assert str(path) in str(caught.value)


class Bomb:
    """Unpickling it fails the test."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def good_bytes(**kwargs) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **made_arrays(**kwargs))
    return buffer.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def single_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


ARRAY_NAMES = ("x_train", "y_train", "x_test", "y_test")
NOT_NPZ = {
    "empty": lambda: b"",
    "text": lambda: b"x_train,y_train\n1,2\n",
    "noise": lambda: bytes(random.Random(0).randbytes(5000)),
    "a pickle": lambda: pickle.dumps({"x_train": Bomb()}),
    "a single array": single_array,
    "truncated to half": lambda: good_bytes()[: len(good_bytes()) // 2],
    "truncated by a byte": lambda: good_bytes()[:-1],
    "only the zip's signature": lambda: b"PK\x03\x04",
    "an empty zip": lambda: zipped({}),
    "pickles in a zip": lambda: zipped({f"{name}.npy": pickle.dumps(Bomb()) for name in ARRAY_NAMES}),
    "text in a zip": lambda: zipped(dict.fromkeys(ARRAY_NAMES, b"not an array")),
    "a torn header in a zip": lambda: zipped({f"{name}.npy": single_array()[:20] for name in ARRAY_NAMES}),
    "arrays cut short in a zip": lambda: zipped({f"{name}.npy": single_array()[:-5] for name in ARRAY_NAMES}),
    "a zip in a zip": lambda: zipped({"data.npz": good_bytes()}),
}


@pytest.mark.parametrize("content", list(NOT_NPZ))
def test_files_that_are_no_npz_are_refused(content, tmp_path):
    path = tmp_path / "data.npz"
    path.write_bytes(NOT_NPZ[content]())
    with pytest.raises(ValueError, match=r"damaged|missing") as caught:
        load_dataset(str(path))
    assert str(path) in str(caught.value)


def test_missing_npz_is_named(tmp_path):
    (tmp_path / "folder.npz").mkdir()
    for path in (tmp_path / "none.npz", tmp_path / "folder.npz", tmp_path / "no folder" / "a.npz"):
        with pytest.raises(FileNotFoundError) as caught:
            gym.make(LR, dataset=str(path), **TINY)
        assert str(path) in str(caught.value)


def test_any_flipped_bit_is_harmless_or_refused(tmp_path):
    """A bit of an .npz is changed, 400 times: the data are the same, or an error names the file."""
    content = good_bytes(n_train=40, n_test=20, shape=(4, 4))
    wanted = make_dataset("good", made_arrays(n_train=40, n_test=20, shape=(4, 4))).fingerprint
    rng, outcomes = random.Random(1), []
    for number in range(400):
        changed = bytearray(content)
        changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path = tmp_path / f"{number}.npz"
        path.write_bytes(changed)
        try:
            outcomes.append("whole" if load_dataset(str(path)).fingerprint == wanted else "other data")
        except ValueError as error:
            outcomes.append("refused" if str(path) in str(error) else f"unnamed: {error}")
        except Exception as error:
            outcomes.append(f"{type(error).__name__}: {error}")
    assert set(outcomes) <= {"whole", "refused"}
    assert outcomes.count("refused") > 200


def test_a_file_that_changes_is_read_again(tmp_path):
    path = made_npz(tmp_path / "data.npz", seed=0)
    first = load_dataset(path)
    assert load_dataset(path) is first
    made_npz(tmp_path / "data.npz", seed=1)
    os.utime(path, ns=(1, 1))
    assert load_dataset(path).fingerprint != first.fingerprint


# --- .npz files that are valid --------------------------------------------------------------------------------------

VALID = {
    "as MNIST": {},
    "a channel axis": {"shape": (28, 28, 1)},
    "colour": {"shape": (32, 32, 3), "n_classes": 4},
    "sorted": {"sort": True, "n_train": 180},
    "smaller": {"shape": (8, 9)},
    "larger": {"shape": (40, 33), "n_classes": 2},
    "more classes": {"n_classes": 13, "n_train": 130, "n_test": 13},
    "barely enough": {"n_classes": 6, "n_train": 18, "n_test": 1},
}


@pytest.mark.parametrize("env_id", [LR, MINIBATCH])
@pytest.mark.parametrize("kind", list(VALID))
def test_valid_npz_plays(kind, env_id, tmp_path):
    path = made_npz(tmp_path / "data.npz", **VALID[kind])
    env = gym.make(env_id, dataset=path, **TINY)
    arrays = made_arrays(**VALID[kind])
    classes = VALID[kind].get("n_classes", 10)
    assert env.action_space.n == (3 if env_id == LR else classes)
    for observation, *_ in play(env):
        assert env.observation_space.contains(observation)
    images, labels = env.unwrapped.split("train")
    assert images.shape[1] == (3 if kind == "colour" else 1)
    assert set(labels.tolist()) == set(range(classes))
    held_out = env.unwrapped.split("validation")[1]
    assert set(held_out.tolist()) == set(range(classes)), "a class is missing in the validation split"
    assert len(labels) + len(held_out) == len(arrays["y_train"])
    assert env.unwrapped.split("test")[1].tolist() == arrays["y_test"].tolist()


def test_sorted_labels_are_held_out_in_proportion(tmp_path):
    """Where a file is sorted by class, validation is the last ninth of each class."""
    dataset = load_dataset(made_npz(tmp_path / "data.npz", n_train=270, sort=True))
    assert np.bincount(dataset.train.labels).tolist() == [24] * 10
    assert np.bincount(dataset.validation.labels).tolist() == [3] * 10
    x_train = made_arrays(n_train=270, sort=True)["x_train"]
    assert np.array_equal(dataset.validation.images[:, 0], x_train.reshape(10, 27, 28, 28)[:, 24:].reshape(-1, 28, 28))


def test_unbalanced_labels_are_held_out_in_proportion():
    arrays = made_arrays(n_train=900)
    arrays["y_train"] = np.repeat(np.arange(10), [450, 180, 90, 45, 45, 30, 30, 20, 8, 2])
    dataset = make_dataset("made", arrays)
    held_out = np.bincount(dataset.validation.labels, minlength=10)
    assert held_out.sum() == pytest.approx(100, abs=2)  # rare classes keep one
    assert np.abs(held_out - np.array([450, 180, 90, 45, 45, 30, 30, 20, 8, 2]) / 9).max() < 1.5
    assert held_out.min() >= 1
    assert np.bincount(dataset.train.labels, minlength=10).min() >= 1


def test_images_are_padded_evenly_and_normalised(tmp_path):
    """28x28 in the middle of 32x32; mean 0 and deviation 1 over the padded training images."""
    env = gym.make(LR, dataset=made_npz(tmp_path / "data.npz"), **TINY)
    images, _ = env.unwrapped.split("train")
    assert images.shape == (80, 1, 32, 32)
    assert images.dtype == np.float32
    assert images.mean() == pytest.approx(0, abs=1e-4)
    assert images.std() == pytest.approx(1, abs=1e-4)
    dataset = load_dataset(env.unwrapped.config.dataset)
    padded = np.pad(dataset.train.images, ((0, 0), (0, 0), (2, 2), (2, 2))).astype(np.float64)
    expected = (padded - padded.mean()) / padded.std()
    assert np.abs(images - expected).max() < 1e-4
    test_images = np.pad(dataset.test.images, ((0, 0), (0, 0), (2, 2), (2, 2)))
    expected = (test_images - padded.mean()) / padded.std()  # with the mean and deviation of the training images
    assert np.abs(env.unwrapped.split("test")[0] - expected).max() < 1e-4


def test_constant_images_stay_finite(tmp_path):
    arrays = made_arrays()
    arrays["x_train"][:] = 7
    np.savez(tmp_path / "data.npz", **arrays)
    env = gym.make(LR, dataset=str(tmp_path / "data.npz"), **TINY)
    for returned in play(env):
        assert np.isfinite(returned[0]).all()


# --- a part of the training images ----------------------------------------------------------------------------------


def part_labels(path: Path, size: int) -> np.ndarray:
    """The labels of the training images that an environment has."""
    env = gym.make(LR, dataset=str(path), train_size=size, batch_size=2, epochs=1, batches_per_action=1, reference=None)
    images, labels = env.unwrapped.split("train")
    assert len(images) == len(labels)
    return labels


ORDERS = {
    "sorted": np.sort,
    "descending": lambda labels: np.sort(labels)[::-1],
    "in blocks": lambda labels: np.concatenate([np.sort(half) for half in np.split(labels, 2)]),
}


@pytest.mark.parametrize("order", list(ORDERS))
@pytest.mark.parametrize("size", [20, 25, 70])
def test_a_part_of_a_file_sorted_by_class_has_all_classes(order, size, tmp_path):
    """In proportion to their sizes, the first of each; one more of some where the part does not divide evenly."""
    arrays = made_arrays(n_train=200, n_test=20)
    places = np.argsort(arrays["y_train"], kind="stable")
    labels = ORDERS[order](arrays["y_train"])
    # Images that go with their labels: the first pixel says which.
    arrays["x_train"], arrays["y_train"] = arrays["x_train"][places], labels
    np.savez(tmp_path / "sorted.npz", **arrays)
    found = part_labels(tmp_path / "sorted.npz", size)
    counts = np.bincount(found, minlength=10)
    assert counts.sum() == size
    assert counts.max() - counts.min() <= 1
    train = load_dataset(str(tmp_path / "sorted.npz")).train.labels
    places = data.part_of(train, 10, size)
    assert np.array_equal(train[places], found)
    assert (np.diff(places) > 0).all()


def test_a_part_keeps_rare_classes_in_proportion():
    labels = np.repeat([0, 1, 2], [900, 90, 10])
    assert np.bincount(labels[data.part_of(labels, 3, 100)]).tolist() == [90, 9, 1]
    assert data.part_of(labels, 3, 2000).tolist() == list(range(1000))


def test_a_part_of_data_in_random_order_is_the_first_of_them(small_data):
    """So it is for what ships with the package, and for a file that was shuffled; also where most are of one class."""
    labels = load_dataset("mnist5k").train.labels
    assert data.part_of(labels, 10, 60).tolist() == list(range(60))
    assert np.array_equal(part_labels(Path(small_data), 8), load_dataset(small_data).train.labels[:8])
    rare = np.random.default_rng(0).permutation(np.repeat([0, 1], [950, 50]))
    assert data.part_of(rare, 2, 30).tolist() == list(range(30))


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_mnist_and_cifar10_come_in_random_order(name, request):
    """So that a part of them is the first so many images, as the paper has it."""
    if name == "mnist":
        request.getfixturevalue("mnist_root")
    elif downloads.missing(name, data.data_root()):
        pytest.skip("needs CIFAR-10")
    assert data.in_random_order(load_dataset(name).train.labels)
