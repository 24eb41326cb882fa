"""The controllers that come with the package: some replicates of each, made alike but for the seed.

Those of the learning rate have the name of their optimizer; "long-tail" sets the shares of the classes.
"""

from pathlib import Path

from qan_agents.controllers.controller import Controller
from qan_gym.utils.names import instead_of, unknown_name

FOLDER = Path(__file__).parent / "assets"


def shipped_files() -> dict[str, Path]:
    """The files, by name with replicate, as at the command line: "sgd-0"."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.safetensors"))}


def controller_file(what: Path) -> Path:
    """The file of a controller that is named at the command line.

    Args:
        what: a file, or the name of one that comes with the package, as "sgd-0".

    Raises:
        ValueError: it is neither; what has the suffix of a file is returned as it is.
    """
    files = shipped_files()
    if what.exists() or what.suffix == ".safetensors":
        return what
    if str(what) not in files:
        raise ValueError(f"{what} is neither a file nor a controller that ships{instead_of(what, files)}")
    return files[str(what)]


def shipped_paths() -> dict[str, dict[int, Path]]:
    """The files, by name and replicate, which is the seed of the meta-training."""
    found: dict[str, dict[int, Path]] = {}
    for stem, path in shipped_files().items():
        name, _, replicate = stem.rpartition("-")
        found.setdefault(name, {})[int(replicate)] = path
    return found


def shipped_controller(name: str, replicate: int = 0) -> Controller:
    """A controller that comes with the package.

    Args:
        name: "sgd" or "adamw", the optimizer that it was meta-trained on, or "long-tail".
        replicate: which of those that were made alike.

    Raises:
        ValueError: there is none.
    """
    paths = shipped_paths()
    if name not in paths:
        raise ValueError(unknown_name("shipped controller", name, paths))
    if replicate not in paths[name]:
        raise ValueError(f"replicate must be one of {', '.join(map(str, paths[name]))}, not {replicate!r}")
    return Controller.load(paths[name][replicate])
