"""Ways to damage the file of an agent."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np

from qan_gym.utils.files import load_arrays, save_arrays


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-500] ^= 1
    path.write_bytes(content)


def foreign(path: Path) -> None:
    save_arrays(path, {"weights": np.zeros(3)}, {"format": "something else"})


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"config": {}}))


def without(name: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        arrays, about = load_arrays(path)
        del arrays[name]
        save_arrays(path, arrays, about)

    return change


def replacing(name: str, value: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        arrays, about = load_arrays(path)
        save_arrays(path, arrays, {**about, name: value})

    return change
