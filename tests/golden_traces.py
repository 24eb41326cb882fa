"""What every environment does, written down: short episodes of every id with the options that matter.

    python tests/golden_traces.py digests          # a SHA-256 per case: equal bits, on one machine
    python tests/golden_traces.py write            # golden_traces.json: numbers, for any machine
    python tests/golden_traces.py write-digests    # golden_digests.json: of the native engine, for any machine

The digest of a case covers observations, rewards, ends, infos and final weights, bit for bit. To compare two commits,
run `digests` with each of them on PYTHONPATH and compare what is printed. golden_digests.json holds the digests of the
cases that the native engine trains, which are the same on every machine; golden_traces.json some numbers of all cases,
which `test_golden_traces.py` compares with a tolerance, because PyTorch rounds differently on other processors.
"""

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import numpy as np
import torch

import qan_gym  # noqa: F401 (registers the environments)

FILE = Path(__file__).with_suffix(".json")
DIGESTS = FILE.with_name("golden_digests.json")
NUM_ENVS = 3
MODES = ("NextStep", "SameStep")  # of resetting
KEPT = ("SameStep",)  # those whose numbers are kept

# Episodes of 12 mini-batches in two epochs; an action's two lie within an epoch unless a case says otherwise.
SHORT = {"train_size": 60, "batch_size": 10, "epochs": 2, "batches_per_action": 2}
DIGITS = {"dataset": "mnist5k", **SHORT}
ALONE = {"meta_momentum": None, "reference": None}
LR, MINIBATCH, CIFAR = "QanLR-MNIST5k-v1", "QanMinibatch-MNIST5k-v1", "QanLR-CIFAR10-v0"
DEEP = {"train_size": 32, "batch_size": 8, "epochs": 2, "batches_per_action": 2, "network": "resnet-8"}

# name -> id, keyword arguments, options of the reset
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "lr-mnist": ("QanLR-MNIST-v0", DIGITS, None),
    "minibatch-mnist": ("QanMinibatch-MNIST-v0", DIGITS, None),
    "lr": (LR, DIGITS, None),
    "minibatch": (MINIBATCH, DIGITS, None),
    "cifar": (CIFAR, DEEP, None),
    "epoch-within-action": (LR, {**DIGITS, "batches_per_action": 4}, None),
    "minibatch-epoch-within-action": (MINIBATCH, {**DIGITS, "batches_per_action": 4}, None),
    "shuffled": (MINIBATCH, DIGITS, {"sampler": "shuffled"}),
    "multiplicative": (LR, {**DIGITS, "action_scale": "multiplicative"}, None),
    "continuous": (LR, {**DIGITS, "continuous": True}, None),
    "absolute": (LR, {**DIGITS, "continuous": True, "action_scale": "absolute"}, None),
    **{
        f"schedule-{name}": (LR, {**DIGITS, "schedule": name, "batches_per_action": 1}, None)
        for name in ("linear", "cosine", "cooldown", "one-cycle")
    },
    "schedule-continuous": (LR, {**DIGITS, "schedule": "cooldown", "continuous": True}, None),
    "minibatch-schedule": (MINIBATCH, {**DIGITS, "schedule": "linear"}, None),
    "validate-every": (LR, {**DIGITS, "validate_every": 4, "reward": "validation-loss"}, None),
    "minibatch-validate-every": (MINIBATCH, {**DIGITS, "validate_every": 3}, None),
    "inverse-loss": (LR, {**DIGITS, "reward": "inverse-loss"}, None),
    "accuracy": (LR, {**DIGITS, "reward": "accuracy"}, None),
    "filters": (LR, {**DIGITS, "observation": "filters"}, None),
    "adamw": (LR, {**DIGITS, "optimizer": "adamw"}, None),
    "momentum": (LR, {**DIGITS, "momentum": 0.9}, None),
    "nesterov": (LR, {**DIGITS, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}, None),
    "weight-decay": (LR, {**DIGITS, "weight_decay": 0.01}, None),
    "no-pull": (LR, {**DIGITS, **ALONE}, None),
    "pull-all": (MINIBATCH, {**DIGITS, "meta_momentum": 0.05, "pull_epochs": 1}, None),
    "pull-one-over-c": (LR, {**DIGITS, "meta_momentum": 0.2, "pull_epochs": None}, None),
    "filter-regression": (LR, {**DIGITS, "meta_momentum": "filter-regression"}, None),
    "distillation": (LR, {**DIGITS, "distillation": 0.5}, None),
    "previous": (LR, {**DIGITS, "reference": "previous", "meta_momentum": 0.05, "distillation": 0.2}, None),
    "target-loss": (LR, {**DIGITS, "target_loss": 2.3, "learning_rate": 0.1}, None),
    "early-stopping": (LR, {**DIGITS, "epochs": 8, "early_stopping": 1, "learning_rate": 0.9}, None),
    "diverges": (LR, {**DIGITS, "learning_rate": 1e37, "learning_rate_max": 1e38, **ALONE}, None),
    "whiten": (LR, {**DIGITS, "preprocess": "whiten"}, None),
    "augment": (LR, {**DIGITS, "augment": "reflect"}, None),
    "bf16": (LR, {**DIGITS, "precision": "bf16"}, None),
    "deep-augment": (CIFAR, {**DEEP, "augment": "reflect", "validate_every": 3, "distillation": 0.1}, None),
    "deep-adamw": (CIFAR, {**DEEP, "optimizer": "adamw", **ALONE}, None),
    "deep-previous": (CIFAR, {**DEEP, "reference": "previous"}, None),
}

# Trained by PyTorch in any case.
TORCH_ONLY = ("distillation", "previous", "whiten", "augment", "bf16")
NATIVE = tuple(name for name, (env_id, _, _) in CASES.items() if env_id != CIFAR and name not in TORCH_ONLY)


@contextmanager
def own_cache() -> Iterator[None]:
    """References and whitening go to a folder of their own, so that each commit makes its own."""
    before = {name: os.environ.get(name) for name in ("XDG_CACHE_HOME", "QAN_GYM_DATA")}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        os.environ.pop("QAN_GYM_DATA", None)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def photographs(path: Path) -> str:
    """A data set of small coloured noise with a bright row that tells the class."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 60), ("test", 20)):
        labels = rng.permutation(np.arange(count) % 10)
        images = rng.integers(0, 64, (count, 32, 32, 3), dtype=np.uint8)
        images[np.arange(count), 3 * labels] += 160
        arrays |= {f"x_{part}": images, f"y_{part}": labels.astype(np.uint8)}
    np.savez(path, **arrays)
    return str(path)


def play_single(env_id: str, arguments: dict[str, Any], options: dict[str, Any] | None) -> Iterator[Any]:
    """Two episodes of the single environment; what reset and every step gave, and the weights at the end."""
    env = gym.make(env_id, **arguments)
    env.action_space.seed(1)
    for seed in (5, None):
        yield env.reset(seed=seed, options=options)
        over = False
        while not over:
            outcome = env.step(env.action_space.sample())
            over = outcome[2] or outcome[3]
            yield outcome
        yield env.unwrapped.weights()


def play_rows(env_id: str, arguments: dict[str, Any], options: dict[str, Any] | None, mode: str) -> Iterator[Any]:
    """Nine steps of three rows: to the end of an episode and into the next."""
    envs = gym.make_vec(env_id, num_envs=NUM_ENVS, autoreset_mode=mode, **arguments)
    envs.action_space.seed(2)
    yield envs.reset(seed=7, options=options)
    for _ in range(9):
        yield envs.step(envs.action_space.sample())
    yield envs.weights() if hasattr(envs, "weights") else envs.unwrapped.weights()
    envs.close()


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """The arrays in what an environment gave, by where they stood."""
    if isinstance(value, dict):
        for key in sorted(value):
            yield from leaves(value[key], f"{name}/{key}")
    elif isinstance(value, tuple) or (isinstance(value, np.ndarray) and value.dtype == object):
        for number, one in enumerate(value):
            yield from leaves(one, f"{name}/{number}")
    elif value is not None:
        yield name, np.asarray(value)


def digest(given: list[Any]) -> str:
    """Of all bits that were given, with their names, shapes and types."""
    total = hashlib.sha256()
    for one in given:
        for name, array in leaves(one):
            total.update(f"{name} {array.dtype} {array.shape}".encode())
            if array.dtype.kind == "f":
                array = np.where(np.isnan(array), np.nan, array)  # there are many bit patterns of it
            total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def numbers(given: list[Any]) -> dict[str, list[float]]:
    """What is kept for other machines: per step the reward, the losses and the mean size of the observation."""
    found: dict[str, list[float]] = {"reward": [], "loss": [], "validation_loss": [], "learning_rate": [], "seen": []}
    for one in given:
        if not isinstance(one, tuple):
            found["weights"] = [float(np.abs(array).mean()) for _, array in leaves(one)]
            continue
        info = one[-1]
        for name in ("loss", "validation_loss", "learning_rate"):
            found[name] += np.ravel(info[name]).tolist()
        found["seen"] += np.abs(np.atleast_2d(one[0])).mean(axis=1).tolist()
        if len(one) == 5:
            found["reward"] += np.ravel(one[1]).tolist()
    return {name: [round(value, 5) for value in values] for name, values in found.items()}


def traces(names: list[str] | None = None, modes: tuple[str, ...] = MODES) -> Iterator[tuple[str, list[Any]]]:
    """Play the cases: alone, and as rows in each mode of resetting."""
    with own_cache(), tempfile.TemporaryDirectory() as folder:
        data = photographs(Path(folder) / "photographs.npz")
        for name in names or CASES:
            env_id, arguments, options = CASES[name]
            if env_id == CIFAR:
                arguments = {**arguments, "dataset": data}
            yield f"{name}, single", list(play_single(env_id, arguments, options))
            for mode in modes:
                yield f"{name}, rows, {mode}", list(play_rows(env_id, arguments, options, mode))


def main() -> None:
    """Print or write."""
    (command,) = sys.argv[1:]
    if command == "digests":
        for name, given in traces():
            print(f"{digest(given)}  {name}", flush=True)
    elif command == "write":
        lines = (f"{json.dumps(name)}: {json.dumps(numbers(given))}" for name, given in traces(modes=KEPT))
        FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    elif command == "write-digests":
        found = {name: digest(given) for name, given in traces(list(NATIVE), KEPT)}
        DIGESTS.write_text(json.dumps(found, indent=1) + "\n")
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
