"""Small made data and networks, keyword arguments that make an episode short, and short ways to begin one."""

import atexit
import importlib.util
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache, partial
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from qan_gym.config import TaskConfig
from qan_gym.core.components import build_components
from qan_gym.core.native_engine import NativeEngine
from qan_gym.core.run_state import Layout, RunState
from qan_gym.core.torch_engine import TorchEngine
from qan_gym.core.training import Training
from qan_gym.games import game_of
from qan_gym.optimizee.network import Network
from qan_gym.optimizee.zoo import build_network
from qan_gym.tasks import FAMILIES, TASKS
from qan_gym.utils.files import save_arrays

Arrays = dict[str, Any]

EXAMPLES = Path(__file__).parent.parent / "examples"

# An episode of 20 mini-batches, without a reference that would have to be trained first.
SHORT = {"train_size": 200, "batch_size": 10, "epochs": 1, "batches_per_action": 1, "meta_momentum": None}
TINY = {"batch_size": 10, "epochs": 1, "batches_per_action": 1, "meta_momentum": None, "reference": None}

# Of the parameters of one `mnist-cnn`.
SHAPES = {
    "conv1.weight": (32, 1, 5, 5),
    "conv1.bias": (32,),
    "conv2.weight": (64, 32, 5, 5),
    "conv2.bias": (64,),
    "linear1.weight": (200, 256),
    "linear1.bias": (200,),
    "linear2.weight": (10, 200),
    "linear2.bias": (10,),
}

FIXED_IDS = [env_id for env_id in TASKS if env_id not in FAMILIES]  # whose episodes have one task


def made_arrays(
    n_train: int = 90,
    n_test: int = 30,
    shape: tuple[int, ...] = (28, 28),
    n_classes: int = 10,
    sort: bool = False,
    seed: int = 0,
) -> Arrays:
    """The four arrays of a data set: noise with a bright row whose height tells the class, so that it can be learnt."""
    rng = np.random.default_rng(seed)
    arrays: Arrays = {}
    for part, count in (("train", n_train), ("test", n_test)):
        labels = np.arange(count) % n_classes
        labels = np.sort(labels) if sort else rng.permutation(labels)
        images = rng.integers(0, 64, (count, *shape), dtype=np.uint8)
        images[np.arange(count), labels * shape[0] // n_classes] += 160
        arrays |= {f"x_{part}": images, f"y_{part}": labels.astype(np.uint8)}
    return arrays


def made_npz(path: Path, **kwargs: Any) -> str:
    """Write `made_arrays` to a file; returns its name, as `dataset=` takes it."""
    np.savez_compressed(path, **made_arrays(**kwargs))
    return str(path)


@cache
def small_data() -> str:
    """A file of made data with 200 training images, 25 for validation and 20 test images; the same in all tests."""
    folder = Path(tempfile.mkdtemp(prefix="qan-gym-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return made_npz(folder / "made.npz", n_train=225, n_test=20)


def made_deep_game(folder: Path) -> Arrays:
    """Arguments of the id for CIFAR-10 in tests: 80 made images, its small network, and a reference for that."""
    network = build_network("resnet-8", (3, 32, 32), 10)
    weights = {name: value[0].numpy() for name, value in network.initial_params(torch.tensor([99])).items()}
    save_arrays(folder / "reference.safetensors", weights, {})
    data = made_npz(folder / "made.npz", n_test=10, shape=(32, 32, 3))
    return {"dataset": data, "network": "resnet-8", "reference": str(folder / "reference.safetensors")}


def play(env: gym.Env[Any, Any], seed: int = 0, steps: int | None = None) -> list[tuple[Any, ...]]:
    """An episode of random actions, or its first `steps`; what reset and every step returned."""
    env.action_space.seed(seed)
    return [env.reset(seed=seed), *islice(steps_of(env), steps)]


def steps_of(env: gym.Env[Any, Any]) -> Iterator[tuple[Any, ...]]:
    """Play random actions to the end of the episode that has begun; what every step returned, as it is played."""
    ended = False
    while not ended:
        returned = env.step(env.action_space.sample())
        ended = returned[2] or returned[3]
        yield returned


def evaluated_splits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list to which the name of every split that networks are evaluated on is added from now on."""
    splits: list[str] = []
    for kind in (NativeEngine, TorchEngine):
        evaluate = kind.evaluate
        monkeypatch.setattr(
            *(kind, "evaluate"),
            lambda self, rows, split, evaluate=evaluate: splits.append(split) or evaluate(self, rows, split),
        )
    return splits


def start(config: TaskConfig, seeds: list[int], reference: dict[str, torch.Tensor] | None = None) -> Training:
    """A core with one run per seed, reset."""
    training = Training(build_components(config, "cpu"), reference, num_runs=len(seeds))
    training.reset(np.ones(len(seeds), np.bool_), np.array(seeds))
    return training


def made_network(**shapes: tuple[int, ...]) -> Network:
    """A network with such weights, the first of which are shown; it cannot be evaluated."""
    weights = {f"{name}.weight": shape for name, shape in shapes.items()}
    return Network((1, 1, 1), weights, lambda params, images, training: images, shown=next(iter(weights)))


def made_runs(
    num_runs: int,
    config: TaskConfig | None = None,
    network: Network | None = None,
    kind: type[RunState] = RunState,
    slots: tuple[str, ...] = (),
    **sizes: int,
) -> RunState:
    """Runs of a task without data, in which all is 0 and nothing has begun.

    Args:
        num_runs: N.
        config: of the task.
        network: the kind of network; None: one of a single weight.
        kind: a subclass of `RunState`.
        slots: the buffers of the optimizer.
        sizes: of `Layout.sizes`, where they are not those of the least task.
    """
    config, network = config or TaskConfig(), network or made_network(only=(1, 1))
    counts = {"train_size": 1, "n_classes": 10, "batches_per_action": 1, "batch_size": 1, **sizes}
    return kind.allocate(
        Layout(
            num_runs=num_runs,
            device=torch.device("cpu"),
            network=network,
            slots=slots,
            own_reference=config.reference == "previous",
            measures=False,
            sizes=counts | {"network_size": network.size()},
            action_shape=(),
            action_dtype=torch.int64,
            game=game_of(config).tensors(config, counts["n_classes"]),
        )
    )


def load_example(name: str) -> ModuleType:
    """An example, as a module."""
    return load_script(EXAMPLES / f"{name}.py")


def load_script(path: Path) -> ModuleType:
    """A file of Python, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recorded(folder: Path, name: str, content: bytes) -> None:
    """Write a file of a run, and record it in the manifest, as somebody who hands on a run can do."""
    from qan_agents.experiments.manifest import Manifest, Record

    (folder / name).write_bytes(content)
    manifest = Manifest.read(folder).model_dump()
    for files in (manifest, manifest["evaluation"], *(one["files"] for one in manifest["rounds"])):
        key = "config" if files is manifest and name == "config.json" else name
        if key in files:
            files[key] = Record.of(content).model_dump()
    Manifest.model_validate(manifest).write(folder)


def start_qan(*arguments: object) -> subprocess.Popen:
    """Start the command line; Ctrl-C reaches it, also where the tests run in the background and it is ignored."""
    return subprocess.Popen(
        [sys.executable, "-m", "qan_agents", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
