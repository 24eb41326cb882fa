"""The user's cache: what is written to it, by whom, and what happens where it cannot be written to."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from helpers import SHORT, made_npz

from qan_gym.core import references
from qan_gym.data import cache, datasets, downloads, whitening
from qan_gym.data.cache import cache_root, cached, locked
from qan_gym.data.datasets import data_root

LR = "QanLR-MNIST5k-v1"
PULLED = SHORT | {"meta_momentum": 0.01}  # which needs a reference


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of this package in an empty cache of the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    datasets.on_device.cache_clear()
    cache._temporary_root.cache_clear()
    return tmp_path / "cache" / "qan-gym"


def files(folder: Path) -> list[str]:
    """The files in a folder and all below, but the locks."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if path.suffix != ".lock")


def test_the_data_folder_is_only_read(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """References and whitening are kept in the user's cache."""
    data = tmp_path / "data"
    data.mkdir()
    monkeypatch.setenv("QAN_GYM_DATA", str(data))
    npz = made_npz(tmp_path / "made.npz", shape=(8, 8))
    gym.make(LR, dataset=npz, preprocess="whiten", **PULLED)
    assert files(data) == []
    assert [Path(name).parent.name for name in files(root)] == ["references", "whitening"]


def test_a_training_is_announced_before_it_begins(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With what it is, how much, where it is kept, and how to do without it."""
    said: list[str] = []

    class Interrupted(references.Training):
        def reset(self, *_args: object, **_kwargs: object) -> None:
            said.extend(caplog.messages)
            raise KeyboardInterrupt

    monkeypatch.setattr(references, "Training", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        gym.make(LR, dataset=made_npz(tmp_path / "made.npz"), **PULLED)
    (message,) = said
    for part in (
        "training the reference weights of mnist-cnn",
        "made.npz",
        "8 mini-batches",
        str(root),
        "meta_momentum=None",
    ):
        assert part in message


WORKER = "import gymnasium as gym, qan_gym; gym.make({id!r}, dataset={npz!r}, **{arguments!r})"


@pytest.mark.slow
def test_processes_at_once_train_a_reference_once(root: Path, tmp_path: Path) -> None:
    """Three want the same one: one trains it, and the others wait for it."""
    code = WORKER.format(id=LR, npz=made_npz(tmp_path / "made.npz"), arguments=PULLED | {"epochs": 3})
    with locked("other", "something else"):  # it does not keep them
        started = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(3)]
        said = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], said
    assert sum("training the reference weights" in text for text in said) == 1
    assert len(files(root)) == 1


def test_threads_at_once_compute_a_whitening_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (50, 1, 6, 6), np.uint8))
    computed: list[int] = []
    compute = whitening.compute_whitening
    monkeypatch.setattr(whitening, "compute_whitening", lambda some: computed.append(1) or compute(some))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(whitening.whitening_of, [images] * 4))
    assert len(computed) == 1
    assert all(torch.equal(one.matrix, found[0].matrix) for one in found)


def test_who_waits_says_so(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    entered: list[str] = []

    def other() -> None:
        with locked("name", "it computes"):
            entered.append("other")

    with ThreadPoolExecutor(1) as pool:
        with locked("name", "it computes"):
            waiting = pool.submit(other)
            while not caplog.messages:
                pass
            assert entered == []
        waiting.result()
    assert caplog.messages == ["waiting for another process: it computes"]


def test_a_cache_that_cannot_be_written_to(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is in it is read; what is new goes to a temporary folder, and a message says how to keep it."""
    npz = made_npz(tmp_path / "made.npz")
    kept = gym.make(LR, dataset=npz, **PULLED).unwrapped.reference
    before = files(root)
    access = os.access
    monkeypatch.setattr("os.access", lambda path, mode: root not in (path, *path.parents) and access(path, mode))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    caplog.clear()
    found = gym.make(LR, dataset=npz, **PULLED).unwrapped.reference
    assert all(np.array_equal(value, found[name]) for name, value in kept.items())
    assert not any("training" in message for message in caplog.messages)
    gym.make(LR, dataset=npz, **PULLED | {"epochs": 2})
    assert files(root) == before
    assert cache_root().parent == tmp_path
    assert len(files(cache_root())) == 1
    assert any("XDG_CACHE_HOME" in message for message in caplog.messages)
    assert cached("references", before[0].removeprefix("references/")) == root / before[0]


def test_a_home_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """~ stands for nothing: no folder of that name is made, and no path raises a RuntimeError."""
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.chdir(tmp_path)
    for name in ("XDG_CACHE_HOME", "QAN_GYM_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cache._temporary_root.cache_clear()
    assert cache_root().parent == data_root().parent == tmp_path
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        gym.make(LR, **SHORT, dataset="~/data.npz")
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        gym.make(LR, **SHORT, reference="~/weights.safetensors")
    cache._temporary_root.cache_clear()


NAMELESS = """
import pwd
def unknown(number):
    raise KeyError(number)
pwd.getpwuid = unknown
import gymnasium as gym, qan_gym
for arguments in ({{}}, {arguments!r}):
    env = gym.make({id!r}, **arguments)
    env.reset(seed=0)
    print(env.step(0)[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="elsewhere a user has a home")
def test_a_user_without_home_and_name_plays_the_bundled_games(tmp_path: Path) -> None:
    """As in containers that run under any number; with a reference that must be trained too."""
    arguments = SHORT | {"train_size": 80, "meta_momentum": 0.01, "reference": "pretrained"}
    kept = ("PATH", "PYTHONPATH", "OMP_NUM_THREADS")
    environ = {name: os.environ[name] for name in kept if name in os.environ} | {"TMPDIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", NAMELESS.format(id=LR, arguments=arguments)],
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.split()) == 2
    assert "training the reference weights" in run.stderr
    assert not list(tmp_path.iterdir())  # neither a folder named ~ nor the temporary one


def test_mnist_is_read_without_torchvision(tmp_path: Path) -> None:
    """Its own files: a header of big-endian sizes, then bytes."""
    images = np.arange(2 * 28 * 28).astype(np.uint8).reshape(2, 28, 28)
    folder = tmp_path / "raw"
    folder.mkdir()
    for part in ("train", "t10k"):
        header = np.array([0x00000803, 2, 28, 28], ">u4").tobytes()
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(np.array([0x801, 2], ">u4").tobytes() + b"\x07\x03")
    code = (
        "import sys; from pathlib import Path; from qan_gym.data.downloads import SOURCES\n"
        f"found = SOURCES['mnist'].read(Path({str(folder)!r}))\n"
        "print('torchvision' in sys.modules, found['y_train'].tolist(), found['x_test'].shape)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False [7, 3] (2, 28, 28)"
    assert np.array_equal(downloads.SOURCES["mnist"].read(folder)["x_train"], images)
