"""The controllers that come with the package: for every optimizer some replicates, made alike but for the seed."""

from pathlib import Path

from qan_agents.controllers.controller import Controller
from qan_gym.utils.names import unknown_name

FOLDER = Path(__file__).parent / "assets"


def shipped_paths() -> dict[str, dict[int, Path]]:
    """The files, by optimizer and replicate, which is the seed of the meta-training."""
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(FOLDER.glob("*.safetensors")):
        optimizer, _, replicate = path.stem.rpartition("-")
        found.setdefault(optimizer, {})[int(replicate)] = path
    return found


def shipped_controller(optimizer: str, replicate: int = 0) -> Controller:
    """A controller that comes with the package.

    Args:
        optimizer: that it was meta-trained on: "sgd" or "adamw".
        replicate: which of those that were made alike.

    Raises:
        ValueError: there is none.
    """
    paths = shipped_paths()
    if optimizer not in paths:
        raise ValueError(unknown_name("shipped controller, by optimizer", optimizer, paths))
    if replicate not in paths[optimizer]:
        raise ValueError(f"replicate must be one of {', '.join(map(str, paths[optimizer]))}, not {replicate!r}")
    return Controller.load(paths[optimizer][replicate])
