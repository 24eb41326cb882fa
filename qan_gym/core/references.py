"""Reference weights, which meta-momentum pulls towards and distillation takes its soft targets from.

`"pretrained"` are the final weights of one baseline run: the game's network, data, optimizer, batch size and epochs,
the data shuffled, the initial learning rate throughout, no pull. They are found by a hash of the settings and data that
they depend on, first in the package, then in the user's cache; otherwise they are trained and cached, once, also where
several processes want them at the same time.
"""

import hashlib
import json
import logging
import time
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from qan_gym.config import TaskConfig
from qan_gym.core.components import Components, build_components
from qan_gym.core.training import Training
from qan_gym.data.cache import cache_root, cached, expand_user, locked
from qan_gym.data.datasets import ASSETS, load_dataset
from qan_gym.games.learning_rate import KEEP
from qan_gym.optimizee.network import Network, Params
from qan_gym.utils.durations import in_words
from qan_gym.utils.files import load_arrays, require_writable, save_arrays
from qan_gym.utils.own_settings import own_settings

SEED = 0
TIMED = 10  # mini-batches, from which it is known how long a training takes,
LONG = 20  # seconds, from which on it is said
DEPENDS_ON = (
    *("dataset", "train_size", "resolution", "classes", "data_seed", "label_noise"),
    *("imbalance", "input_scale", "input_centre"),
    *("preprocess", "augment", "network", "initial_scale", "batch_size", "epochs", "batches", "loss_scale"),
    *("optimizer", "learning_rate", "momentum", "nesterov", "weight_decay"),
)
FORMAT = 1  # to be raised when the same settings come to give other weights


@own_settings()
def resolve_reference(parts: Components) -> Params | None:
    """The reference weights of a task, one network without a leading axis; None where it has none at the start.

    Those that are needed and are not there yet are trained, on the device of the parts.

    Raises:
        ValueError: a file is damaged or holds the weights of another network; the message names it.
        FileNotFoundError: `config.reference` names a file that is not there.
    """
    config = parts.config
    if config.reference is None or config.reference == "previous":
        return None
    if config.reference != "pretrained":
        return load_reference(expand_user(config.reference), config.network, parts.network, foreign=True)
    path = pretrained_file(parts) if needs_reference(config) else pretrained_path(config)
    return None if path is None else load_reference(path, config.network, parts.network)


def needs_reference(config: TaskConfig) -> bool:
    """Whether the pull or distillation acts in the trainings of a task, where it has a reference."""
    return bool(config.meta_momentum) or config.distillation > 0


@own_settings()
def pretrained_file(parts: Components) -> Path:
    """The file of the pretrained weights of a task, which are trained where there are none, on the device of the parts.

    As `reference=` it keeps these weights where another of the settings in DEPENDS_ON is changed.

    Raises:
        ValueError: see `train_reference`.
    """
    config = parts.config
    found = pretrained_path(config)
    if found is not None:
        return found
    baseline = parts.with_config(baseline_config(config))
    with _locked(config):
        if pretrained_path(config) is None:  # else another process has trained them meanwhile
            why = "once, because there are none for these settings (meta_momentum=None does without them)"
            train_reference(baseline, None, why)
    return reference_path(config)


def pretrained_path(config: TaskConfig) -> Path | None:
    """The file of the pretrained weights of a task, in the package or the user's cache; None: there is none yet."""
    name = reference_name(config)
    shipped = ASSETS / "references" / name
    return shipped if shipped.is_file() else cached("references", name)


def _locked(config: TaskConfig) -> AbstractContextManager[None]:
    return locked(reference_name(config), f"it trains the reference weights of {config.network} on {config.dataset}")


def baseline_config(config: TaskConfig) -> TaskConfig:
    """The baseline run of a task: its training at the initial learning rate, without help."""
    kept = {name: getattr(config, name) for name in DEPENDS_ON}
    rate = config.learning_rate
    alone = TaskConfig(meta_momentum=None, reference=None)
    return replace(alone, **kept, learning_rate_min=rate, learning_rate_max=rate)


def reference_name(config: TaskConfig) -> str:
    """The file name of the pretrained weights of a task, with a hash of everything they depend on."""
    usual = TaskConfig()
    settings: dict[str, Any] = {"dataset": load_dataset(config.dataset).fingerprint}  # not what it is called
    for name in DEPENDS_ON[1:]:
        value = getattr(config, name)
        if value != getattr(usual, name):  # so that a setting that is added later leaves the names as they are
            settings[name] = float(value) if isinstance(value, int) and not isinstance(value, bool) else value
    settings |= {"seed": SEED, "format": FORMAT}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    return f"{config.network}-{digest}.safetensors"


def reference_path(config: TaskConfig, folder: Path | None = None) -> Path:
    """The file that `make_reference` writes, which takes the same arguments."""
    return (folder or cache_root() / "references") / reference_name(config)


def make_reference(config: TaskConfig, folder: Path | None = None, device: str = "cpu") -> Params:
    """Train the pretrained weights of a task, with a progress bar, and keep them.

    Args:
        config: of the task.
        folder: where to write the file `reference_name(config)`; None: in the user's cache.
        device: to train on.

    Raises:
        ValueError: the folder cannot be written to, or the baseline diverges.
    """
    baseline = build_components(baseline_config(config), device)
    with _locked(config):
        return train_reference(baseline, folder, "as was asked for")


@own_settings()
def train_reference(baseline: Components, folder: Path | None, why: str) -> Params:
    """As `make_reference`, from the parts of the baseline run; why: for the log.

    Raises:
        ValueError: the baseline run diverged.
    """
    config = baseline.config
    path = reference_path(config, folder)
    require_writable(path.parent)
    logging.getLogger("qan_gym").warning(
        "training the reference weights of %s on %s, %s: %d mini-batches of %d images; they are kept in %s",
        *(config.network, config.dataset, why, baseline.budget, config.batch_size, path),
    )
    training = Training(baseline, reference=None)
    training.reset(np.ones(1, np.bool_), np.array([SEED]))
    keep, started = torch.tensor([KEEP]), time.perf_counter()
    for batch in tqdm(range(baseline.budget), desc="reference weights", unit="batch", dynamic_ncols=True):
        result = training.step(keep)
        if result.terminated.any():
            raise ValueError(
                f"the baseline run of {config.dataset} diverged: lower learning_rate or set reference=None"
            )
        if batch == TIMED:
            _say_how_long((time.perf_counter() - started) / (TIMED + 1) * baseline.budget)
    weights = {name: value[0].cpu() for name, value in training.run.params.items()}
    scores = {name: float(value[0]) for name, value in result.info.items()}
    training.close()
    save_arrays(path, {name: value.numpy() for name, value in weights.items()}, scores)
    return weights


def _say_how_long(seconds: float) -> None:
    """Where a training takes longer than one would wait without a word."""
    if seconds > LONG:
        logging.getLogger("qan_gym").warning("the reference weights take %s", in_words(seconds))


def load_reference(path: Path, name: str, network: Network, *, foreign: bool = False) -> Params:
    """Read reference weights and verify that they are a network's.

    Args:
        path: of the file.
        name: of the network, for messages.
        network: whose weights they must be.
        foreign: also accept what another program wrote with safetensors, without a checksum.

    Raises:
        ValueError, FileNotFoundError: see `resolve_reference`.
    """
    arrays, _ = load_arrays(path, foreign=foreign)
    found = {own: array.shape for own, array in arrays.items()}
    if found != network.shapes:
        raise ValueError(f"{path}: not weights of {name}: it holds {found}, not {network.shapes}")
    if any(array.dtype != "float32" for array in arrays.values()):
        raise ValueError(f"{path}: reference weights must be float32")
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise ValueError(f"{path}: reference weights must be finite")
    return {own: torch.from_numpy(array) for own, array in arrays.items()}
