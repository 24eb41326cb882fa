"""The saved state of an environment: arrays, and JSON beside them, in one file without pickle."""

import json
import os
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from qan_gym.config import TaskConfig
from qan_gym.core.training import Training
from qan_gym.rendering.history import History
from qan_gym.utils.files import load_arrays, save_arrays
from qan_gym.utils.own_settings import own_settings
from qan_gym.utils.validation import shown

HISTORY = "history"  # of the episode for rendering, beside the tensors of the run
PHASES = ("new", "playing", "over")  # of an environment: before its first reset, within an episode, after it


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


class Restored(NamedTuple):
    """What an environment takes from a state beside the run.

    Attributes:
        phase: one of PHASES.
        generator: of the seeds of episodes.
        seed: that it was made from; -1 where that is not known.
        history: for rendering.
    """

    phase: str
    generator: np.random.Generator
    seed: int
    history: History


def take_state(training: Training, history: History, phase: str, generator: np.random.Generator, seed: int) -> State:
    """The state of an environment with one run; the arguments are as `Restored` has them."""
    arrays = {name: value.cpu().numpy().copy() for name, value in training.run.saved().items()}
    metadata = {
        "config": _plain(training.config),
        "fingerprint": training.parts.fingerprint,
        "tasks": training.records(),
        "phase": phase,
        "np_random": generator.bit_generator.state,
        "np_random_seed": seed,
    }
    return State(arrays | {HISTORY: history.rows().copy()}, metadata)


@own_settings()
def apply_state(training: Training, state: State, keeps_history: bool) -> Restored:
    """Continue the run of a training from a state, once all of it is known to be right.

    Args:
        training: with one run.
        state: of an environment.
        keeps_history: whether the environment renders; what is not rendered keeps no history, which would fall behind.

    Raises:
        ValueError: the state is of another game or other data, or something in it is missing, of another kind, or out
            of its range; nothing has changed.
    """
    if not isinstance(state, State):
        raise ValueError(f"the state must be what get_state or State.load gave, not {shown(state)}")
    state.require("config", _plain(training.config))
    state.require("fingerprint", training.parts.fingerprint)
    for name, array in state.arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
            raise ValueError(f"the state's {name} must be an array of numbers, not {shown(array)}")
    tensors = {name: torch.from_numpy(array) for name, array in state.arrays.items() if name != HISTORY}
    records = state.metadata.get("tasks")
    if not isinstance(records, list):
        raise ValueError(f"the state's tasks must be a list, not {shown(records)}")
    training.check_state(tensors, records)
    phase, generator, seed = _phase(state, tensors), _generator(state), state.metadata.get("np_random_seed")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < -1:
        raise ValueError(f"the state's np_random_seed must be an integer of at least -1, not {shown(seed)}")
    if HISTORY not in state.arrays:
        raise ValueError(f"the state has other tensors: {HISTORY} is missing")
    history = History(training, state.arrays[HISTORY])
    training.run.seed[:] = tensors["seed"].numpy()
    training.adopt(records)
    training.run.restore(tensors)
    return Restored(phase, generator, seed, history if keeps_history else History(training))


def _phase(state: State, tensors: dict[str, torch.Tensor]) -> str:
    """The phase.

    Raises:
        ValueError: there is no such phase, or it contradicts the run.
    """
    phase = state.metadata.get("phase")
    if phase not in PHASES:
        raise ValueError(f"the state's phase must be one of {', '.join(PHASES)}, not {shown(phase)}")
    over, batch = bool(tensors["over"].all()), int(tensors["batch"])
    if phase != ("playing" if not over else "over" if batch > 0 else "new"):
        raise ValueError(
            f"the state's phase is {phase!r}, and its run is {'' if over else 'not '}over at batch {batch}"
        )
    return str(phase)


def _generator(state: State) -> np.random.Generator:
    """The generator of the seeds of episodes.

    Raises:
        ValueError: its state is not that of a PCG64.
    """
    given: Any = state.metadata.get("np_random")
    bits = np.random.PCG64()
    try:
        bits.state = given
    except (TypeError, ValueError, KeyError, OverflowError, AttributeError) as error:
        raise ValueError(f"the state's np_random must be the state of a PCG64, not {shown(given)}") from error
    if bits.state != given:
        raise ValueError(f"the state's np_random must be the state of a PCG64, not {shown(given)}")
    return np.random.Generator(bits)


def _plain(config: TaskConfig) -> dict[str, Any]:
    """The configuration as it comes back from a file of JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain
