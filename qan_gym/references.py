"""Reference weights: what meta-momentum pulls towards and distillation learns from.

`"pretrained"` are the final weights of one baseline run: the game's network, data, optimizer, batch size and epochs,
the data shuffled, the initial learning rate throughout, no pull. They are found by a hash of the settings and data that
they depend on, first in the package, then in the user's cache; what is in neither is trained and cached.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from qan_gym.actions import KEEP
from qan_gym.data import ASSETS, data_root, load_dataset
from qan_gym.files import load_arrays, require_writable, save_arrays
from qan_gym.networks import build_network
from qan_gym.optimizee import Params
from qan_gym.tasks import TaskConfig
from qan_gym.training import Training

SEED = 0
DEPENDS_ON = (
    *("dataset", "train_size", "preprocess", "augment", "network", "batch_size", "epochs"),
    *("optimizer", "learning_rate", "momentum", "nesterov", "weight_decay"),
)
NUMBERS = ("learning_rate", "momentum", "weight_decay")
FORMAT = 1  # to be raised when the same settings come to give other weights


def resolve_reference(config: TaskConfig, device: str = "cpu") -> Params | None:
    """The reference weights of a game, one network without a leading axis; None where it has none at the start.

    Args:
        config: the game.
        device: to train them on, where there are none yet.

    Raises:
        ValueError: a file is damaged or holds the weights of another network; the message names it.
        FileNotFoundError: `config.reference` names a file that is not there.
    """
    if config.reference is None or config.reference == "previous":
        return None
    if config.reference != "pretrained":
        return load_reference(Path(config.reference).expanduser(), config)
    path = pretrained_path(config)
    if path is not None:
        return load_reference(path, config)
    needed = bool(config.meta_momentum) or config.distillation > 0
    return make_reference(config, device=device) if needed else None


def pretrained_path(config: TaskConfig) -> Path | None:
    """The file of a game's pretrained weights, in the package or the user's cache; None: there is none yet."""
    paths = (folder / "references" / reference_name(config) for folder in (ASSETS, data_root()))
    return next((path for path in paths if path.is_file()), None)


def baseline_config(config: TaskConfig) -> TaskConfig:
    """The baseline run of a game: its training at the initial learning rate, without help."""
    kept = {name: getattr(config, name) for name in DEPENDS_ON}
    rate = config.learning_rate
    alone = TaskConfig(meta_momentum=None, reference=None)
    return replace(alone, **kept, learning_rate_min=rate, learning_rate_max=rate)


def reference_name(config: TaskConfig) -> str:
    """The file name of a game's pretrained weights, with a hash of everything they depend on."""
    settings = {name: getattr(config, name) for name in DEPENDS_ON}
    settings["dataset"] = load_dataset(config.dataset).fingerprint  # what is in it, not what it is called
    settings |= {name: float(value) for name, value in settings.items() if name in NUMBERS}  # 1 and 1.0 are one
    settings |= {"seed": SEED, "format": FORMAT}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    return f"{config.network}-{digest}.safetensors"


def make_reference(config: TaskConfig, folder: Path | None = None, device: str = "cpu") -> Params:
    """Train the pretrained weights of a game, with a progress bar, and keep them.

    Args:
        config: the game.
        folder: where to write the file `reference_name(config)`; None: in the user's cache.
        device: to train on.

    Raises:
        ValueError: the folder cannot be written to, or the baseline diverges.
    """
    path = (folder or data_root() / "references") / reference_name(config)
    require_writable(path.parent)
    baseline = baseline_config(config)
    training = Training(baseline, reference=None, device=device)
    training.reset(np.ones(1, np.bool_), np.array([SEED]))
    keep = torch.tensor([KEEP])
    for _ in tqdm(range(training.budget), desc="reference weights", unit="batch", dynamic_ncols=True):
        transition = training.step(keep)
        if transition.terminated.any():
            raise ValueError(
                f"the baseline run of {config.dataset} diverged: lower learning_rate or set reference=None"
            )
    weights = {name: value[0].cpu() for name, value in training.params.items()}
    scores = {name: float(value[0]) for name, value in {**transition.info, **transition.test}.items()}
    save_arrays(path, {name: value.numpy() for name, value in weights.items()}, scores)
    return weights


def load_reference(path: Path, config: TaskConfig) -> Params:
    """Read reference weights and verify that they are this game's network's.

    Raises:
        ValueError, FileNotFoundError: see `resolve_reference`.
    """
    arrays, _ = load_arrays(path)
    dataset = load_dataset(config.dataset)
    channels, height, width = dataset.train.images.shape[1:]
    wanted = build_network(config.network, (channels, height, width), dataset.n_classes).shapes
    found = {name: array.shape for name, array in arrays.items()}
    if found != wanted:
        raise ValueError(f"{path}: not weights of {config.network}: it holds {found}, not {wanted}")
    if any(array.dtype != "float32" for array in arrays.values()):
        raise ValueError(f"{path}: reference weights must be float32")
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise ValueError(f"{path}: reference weights must be finite")
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
