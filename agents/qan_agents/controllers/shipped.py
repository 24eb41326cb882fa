"""The controllers that come with the package: for every optimizer some replicates, made alike but for the seed."""

from pathlib import Path

from qan_agents.controllers.controller import Controller
from qan_gym.utils.names import unknown_name

FOLDER = Path(__file__).parent / "assets"
REPLICATES = 3


def shipped_path(optimizer: str, replicate: int = 0) -> Path:
    """The file of a shipped controller.

    Args:
        optimizer: that it was meta-trained on: "sgd" or "adamw".
        replicate: from 0 to REPLICATES - 1, the seed of its meta-training.

    Raises:
        ValueError: there is none.
    """
    optimizers = sorted({path.stem.rpartition("-")[0] for path in FOLDER.glob("*.safetensors")})
    if optimizer not in optimizers:
        raise ValueError(unknown_name("shipped controller, by optimizer", optimizer, optimizers))
    path = FOLDER / f"{optimizer}-{replicate}.safetensors"
    if not path.is_file():
        raise ValueError(f"replicate must be from 0 to {REPLICATES - 1}, not {replicate!r}")
    return path


def shipped_controller(optimizer: str, replicate: int = 0) -> Controller:
    """A shipped controller; arguments and errors as `shipped_path` has them."""
    return Controller.load(shipped_path(optimizer, replicate))
