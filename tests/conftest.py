"""Fixtures and settings that the test files share."""

import os
from collections.abc import Iterator
from pathlib import Path

# One thread: two threads that share their cores with anything else spend their time waiting for each other.
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
os.environ.pop("COLUMNS", None)  # output is not cut to the width of a terminal

import matplotlib
import pytest
import torch
from helpers import made_npz

import qan_gym
import qan_gym.families.factory  # noqa: F401 (registers ids and features; before a test that puts the registries back)
from qan_gym.core.features import FEATURES
from qan_gym.core.references import reference_name
from qan_gym.core.reward import REWARDS
from qan_gym.data.datasets import ASSETS, DATASETS
from qan_gym.games import GAMES
from qan_gym.optimizee.optimizers import OPTIMIZERS
from qan_gym.optimizee.zoo import NETWORKS
from qan_gym.schedules import SCHEDULES
from qan_gym.tasks import make_task_config

REGISTRIES = (DATASETS, FEATURES, GAMES, NETWORKS, OPTIMIZERS, REWARDS, SCHEDULES)

torch.set_num_threads(1)
matplotlib.use("module://window_backend")  # machines that test have no display


SLOW = Path(__file__).parent / "slow.txt"  # the ids of tests that take more than two seconds; beside those marked


@pytest.hookimpl(tryfirst=True)  # before those that are marked are deselected
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark as `slow` what the list names, which must be there where whole files are collected."""
    slow = set(SLOW.read_text().splitlines())
    for item in items:
        if item.nodeid in slow:
            item.add_marker(pytest.mark.slow)
    if not any("::" in argument for argument in config.args):
        files = {item.nodeid.partition("::")[0] for item in items}
        gone = {name for name in slow if name.partition("::")[0] in files} - {item.nodeid for item in items}
        if gone:
            raise pytest.UsageError(f"{SLOW.name} names tests that are not there: {', '.join(sorted(gone))}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked `cuda` where there is no such device."""
    if item.get_closest_marker("cuda") is not None and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def reference_file() -> str:
    """The path of reference weights that ship with the package, so that a smaller game need not train its own."""
    return str(ASSETS / "references" / reference_name(make_task_config("QanLR-MNIST5k-v1", {})))


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data set for `dataset=`: 80 training images, 10 of validation, 30 of test."""
    return made_npz(tmp_path_factory.mktemp("data") / "small.npz")


@pytest.fixture
def registries() -> Iterator[None]:
    """The registries of qan_gym, which have their content of before the test again after it."""
    before = [dict(registry) for registry in REGISTRIES]
    yield
    for registry, content in zip(REGISTRIES, before, strict=True):
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
