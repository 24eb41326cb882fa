"""Reference weights, which meta-momentum pulls towards and distillation takes its soft targets from.

`"pretrained"` are the final weights of one baseline run: the game's network, data, optimizer, batch size and epochs,
the data shuffled, the initial learning rate throughout, no pull. They are found by a hash of the settings and data that
they depend on, first in the package, then in the user's cache; otherwise they are trained and cached.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from qan_gym.config import TaskConfig
from qan_gym.core.components import Components, build_components
from qan_gym.core.training import Training
from qan_gym.data.datasets import ASSETS, data_root, load_dataset
from qan_gym.games.learning_rate import KEEP
from qan_gym.optimizee.network import Network, Params
from qan_gym.utils.files import load_arrays, require_writable, save_arrays

SEED = 0
DEPENDS_ON = (
    *("dataset", "train_size", "preprocess", "augment", "network", "batch_size", "epochs"),
    *("optimizer", "learning_rate", "momentum", "nesterov", "weight_decay"),
)
NUMBERS = ("learning_rate", "momentum", "weight_decay")
FORMAT = 1  # to be raised when the same settings come to give other weights


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
        return load_reference(Path(config.reference).expanduser(), config.network, parts.network, foreign=True)
    path = pretrained_path(config)
    if path is not None:
        return load_reference(path, config.network, parts.network)
    needed = bool(config.meta_momentum) or config.distillation > 0
    return train_reference(parts.with_config(baseline_config(config)), None) if needed else None


def pretrained_path(config: TaskConfig) -> Path | None:
    """The file of the pretrained weights of a task, in the package or the user's cache; None: there is none yet."""
    paths = (folder / "references" / reference_name(config) for folder in (ASSETS, data_root()))
    return next((path for path in paths if path.is_file()), None)


def baseline_config(config: TaskConfig) -> TaskConfig:
    """The baseline run of a task: its training at the initial learning rate, without help."""
    kept = {name: getattr(config, name) for name in DEPENDS_ON}
    rate = config.learning_rate
    alone = TaskConfig(meta_momentum=None, reference=None)
    return replace(alone, **kept, learning_rate_min=rate, learning_rate_max=rate)


def reference_name(config: TaskConfig) -> str:
    """The file name of the pretrained weights of a task, with a hash of everything they depend on."""
    settings = {name: getattr(config, name) for name in DEPENDS_ON}
    settings["dataset"] = load_dataset(config.dataset).fingerprint  # what is in it, not what it is called
    settings |= {name: float(value) for name, value in settings.items() if name in NUMBERS}  # 1 and 1.0 are one
    settings |= {"seed": SEED, "format": FORMAT}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    return f"{config.network}-{digest}.safetensors"


def make_reference(config: TaskConfig, folder: Path | None = None, device: str = "cpu") -> Params:
    """Train the pretrained weights of a task, with a progress bar, and keep them.

    Args:
        config: of the task.
        folder: where to write the file `reference_name(config)`; None: in the user's cache.
        device: to train on.

    Raises:
        ValueError: the folder cannot be written to, or the baseline diverges.
    """
    return train_reference(build_components(baseline_config(config), device), folder)


def train_reference(baseline: Components, folder: Path | None) -> Params:
    """As `make_reference`, from the parts of the baseline run.

    Raises:
        ValueError: the baseline run diverged.
    """
    config = baseline.config
    path = (folder or data_root() / "references") / reference_name(config)
    require_writable(path.parent)
    training = Training(baseline, reference=None)
    training.reset(np.ones(1, np.bool_), np.array([SEED]))
    keep = torch.tensor([KEEP])
    for _ in tqdm(range(baseline.budget), desc="reference weights", unit="batch", dynamic_ncols=True):
        result = training.step(keep)
        if result.terminated.any():
            raise ValueError(
                f"the baseline run of {config.dataset} diverged: lower learning_rate or set reference=None"
            )
    weights = {name: value[0].cpu() for name, value in training.run.params.items()}
    scores = {name: float(value[0]) for name, value in {**result.info, **result.test}.items()}
    training.close()
    save_arrays(path, {name: value.numpy() for name, value in weights.items()}, scores)
    return weights


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
