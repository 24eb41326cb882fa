"""What the test files share."""

import os
from collections.abc import Iterator
from pathlib import Path

# One thread: two threads that share their cores with anything else spend their time waiting for each other.
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start

import matplotlib
import pytest
import torch

import qan_gym  # noqa: F401 (registers the ids)
from qan_gym.core import reward
from qan_gym.core.references import reference_name
from qan_gym.data.datasets import ASSETS
from qan_gym.data import datasets as data
from qan_gym.optimizee import optimizers
from qan_gym.optimizee import zoo as networks
from qan_gym.tasks import make_task_config

torch.set_num_threads(1)
matplotlib.use("module://window_backend")  # machines that test have no display


@pytest.fixture(scope="session")
def reference_file() -> str:
    """The path of reference weights that ship with the package, so that a smaller game need not train its own."""
    return str(ASSETS / "references" / reference_name(make_task_config("QanLR-MNIST5k-v0", {})))


@pytest.fixture
def registries() -> Iterator[None]:
    """What a test registers is forgotten after it."""
    dicts = (data.DATASETS, networks.NETWORKS, optimizers.OPTIMIZERS, reward.REWARDS)
    before = [dict(registry) for registry in dicts]
    yield
    for registry, content in zip(dicts, before, strict=True):
        registry.clear()
        registry.update(content)


@pytest.fixture
def mnist_root(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the real 70,000 images, set as QAN_GYM_DATA; skips where they are not."""
    root = Path(os.environ.get("QAN_GYM_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not (root / "MNIST" / "raw" / "train-images-idx3-ubyte").is_file():
        pytest.skip(f"needs the real MNIST, and it is not in {root} (set QAN_GYM_DATA to a folder with MNIST/raw)")
    monkeypatch.setenv("QAN_GYM_DATA", str(root))
    return root
