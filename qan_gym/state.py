"""The saved state of an environment: arrays, and JSON beside them, in one file without pickle."""

import os
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from qan_gym.utils.files import load_arrays, save_arrays


@dataclass(frozen=True)
class State:
    """The state of an environment, as `get_state` gives it and `set_state` takes it.

    Attributes:
        arrays: by name; weights, roulette, counters.
        metadata: JSON-able; the game, the fingerprint of its data, the generator of episode seeds.
    """

    arrays: dict[str, NDArray[Any]]
    metadata: dict[str, Any]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, atomically."""
        save_arrays(path, self.arrays, self.metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "State":
        """Read a file written by `save`; nothing in it is executed.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged or was written by something else.
        """
        arrays, metadata = load_arrays(path)
        if not {"config", "phase", "np_random"} <= metadata.keys():
            raise ValueError(f"{path}: not a state written by qan-gym")
        return cls(arrays, metadata)

    def require(self, name: str, mine: Any) -> None:
        """Refuse a state of another game.

        Raises:
            ValueError: the state's entry `name` is not `mine`; the message says what differs.
        """
        its = self.metadata.get(name)
        if its == mine:
            return
        if isinstance(its, dict) and isinstance(mine, dict):
            differ = [f"{key}: {its.get(key)!r}, not {mine.get(key)!r}" for key in mine if its.get(key) != mine[key]]
            raise ValueError(f"the state is of another {name}: {'; '.join(differ)}")
        raise ValueError(f"the state is of another {name}: {its!r}, not {mine!r}")
