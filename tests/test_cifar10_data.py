"""CIFAR-10: its own files, their checksums and their download; and the real images."""

import gzip
import hashlib
import io
import os
import pickle
import runpy
import sys
import tarfile
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from deep_tasks import ALONE, CIFAR, make
from helpers import made_arrays, play

from qan_gym.data import datasets as data
from qan_gym.data import downloads
from qan_gym.data.datasets import load_dataset

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
def empty_root(tmp_path, monkeypatch):
    """A data root that does not exist, and no network."""
    monkeypatch.setenv("QAN_GYM_DATA", str(tmp_path / "root"))
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_args, **_kwargs: pytest.fail("went online"))
    return tmp_path / "root"


@pytest.fixture
def small_cifar(empty_root, monkeypatch):
    """A data root with the made files, and their checksums in place of the originals'."""
    files = cifar_files()
    (empty_root / FOLDER).mkdir(parents=True)
    for name, content in files.items():
        (empty_root / FOLDER / name).write_bytes(content)
    source = downloads.SOURCES["cifar10"]
    assert files.keys() == source.md5.keys()
    checksums = {name: md5(content) for name, content in files.items()}
    monkeypatch.setitem(downloads.SOURCES, "cifar10", replace(source, md5=checksums))
    return empty_root / FOLDER


def assert_made(dataset: data.Dataset) -> None:
    arrays = made_arrays(n_train=90, n_test=20, shape=(32, 32, 3))
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (80, 10, 20)
    assert np.array_equal(dataset.test.images.transpose(0, 2, 3, 1), arrays["x_test"])
    assert np.array_equal(dataset.test.labels, arrays["y_test"])
    images = np.concatenate([dataset.train.images, dataset.validation.images]).transpose(0, 2, 3, 1)
    assert sorted(image.tobytes() for image in images) == sorted(image.tobytes() for image in arrays["x_train"])


def test_cifar10_from_a_folder(small_cifar):
    """Without network; it is what the id trains on by default."""
    assert_made(load_dataset("cifar10"))
    env = gym.make(CIFAR, network="resnet-8", batch_size=8, epochs=1, **ALONE)
    assert play(env, steps=2)[-1][4]["batch"] == 2


class Traced:
    """Unpickling it makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("damage", ["truncated", "another pickle"])
@pytest.mark.parametrize("name", ["data_batch_1", "test_batch", "batches.meta"])
def test_damaged_cifar10_file_is_named(name, damage, small_cifar, tmp_path, monkeypatch):
    """Before any file is unpickled, the damaged one or a whole one."""
    path, trace, unpickled, load = small_cifar / name, tmp_path / "trace", [], pickle.load
    monkeypatch.setattr(pickle, "load", lambda file, **kwargs: unpickled.append(file.name) or load(file, **kwargs))
    content = pickle.dumps(Traced(trace)) if damage == "another pickle" else path.read_bytes()[:-10]
    path.write_bytes(content)
    with pytest.raises(ValueError, match="truncated or altered") as caught:
        load_dataset("cifar10")
    assert str(path) in str(caught.value)
    assert not trace.exists()
    assert not unpickled
    assert path.read_bytes() == content, "a user's file was touched"


def test_unpickling_leaves_a_trace(tmp_path):
    """The check that the test before this one relies on."""
    pickle.loads(pickle.dumps(Traced(tmp_path / "trace")))
    assert (tmp_path / "trace").exists()


def unreachable(*_args, **_kwargs):
    raise urllib.error.URLError("Name or service not known")


def half(*_args, **_kwargs):
    """A download that ends too early."""
    response = io.BytesIO(b"\x1f\x8b" + b"x" * 100_000)
    response.url, response.length = None, 170_498_071
    return response


@pytest.mark.parametrize("answer", [unreachable, half])
def test_cifar10_offline(answer, empty_root, monkeypatch):
    """The message says where to get the data; no part of a download is left."""
    monkeypatch.setattr(urllib.request, "urlopen", answer)
    with pytest.raises(FileNotFoundError) as caught:
        gym.make(CIFAR)
    for way in ("CIFAR-10", str(empty_root), "QAN_GYM_DATA", FOLDER, "online", ".npz"):
        assert way in str(caught.value)
    assert not list(empty_root.rglob("*"))


def archive_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{FOLDER}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(buffer.getvalue())


@pytest.mark.parametrize("before", ["nothing", "all but one file"])
def test_cifar10_is_downloaded_once(before, small_cifar, empty_root, monkeypatch):
    """By torchvision's own code, from a mirror of the made files; afterwards the folder holds those files only."""
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
    found = {str(path.relative_to(empty_root)) for path in empty_root.rglob("*") if path.is_file()}
    assert found == {f"{FOLDER}/{name}" for name in files}
    asked.clear()
    monkeypatch.setenv("QAN_GYM_DATA", f"{empty_root}/")  # another name of the folder, so that it is read again
    assert_made(load_dataset("cifar10"))
    assert not asked


# --- the real images ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def real_cifar10(tmp_path_factory):
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
    data.on_device.cache_clear()


@pytest.mark.slow
def test_real_cifar10(real_cifar10):
    """45,000/5,000/10,000 images, a tenth of each class; two steps of the id with a smaller network."""
    dataset = load_dataset(real_cifar10)
    for split, per_class in ((dataset.train, 4_500), (dataset.validation, 500), (dataset.test, 1_000)):
        assert split.images.shape == (10 * per_class, 3, 32, 32)
        assert np.bincount(split.labels).tolist() == [per_class] * 10
    core = make(dataset=real_cifar10, network="resnet-8", **ALONE)
    assert core.episode_length == 5 * (45_000 // 128)
    for returned in play(core, steps=2):
        assert core.observation_space.contains(returned[0])
    info = returned[4]
    assert info["batch"] == 2
    assert 1.5 < info["loss"] < 4.0  # near ln(10): little is learnt in two steps
