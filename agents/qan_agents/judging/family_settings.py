"""The settings of rivals that were chosen on tasks of the training split: one JSON file, written by `family_search`."""

from __future__ import annotations

from pathlib import Path

from pydantic import FiniteFloat

from qan_agents.records import Strict, read_record
from qan_gym.families.task import VERSION
from qan_gym.utils.files import write_bytes

PATH = Path(__file__).parent / "family_settings.json"


class Chosen(Strict):
    """What a search has found for a method and a kind of network.

    Attributes:
        settings: of the lowest mean of ln(validation loss) on the tasks of the last round.
        score: that mean.
        ranges: (least, largest) of each setting, where a search on one task looks.
    """

    settings: dict[str, FiniteFloat]
    score: FiniteFloat
    ranges: dict[str, list[FiniteFloat]]


class FamilySettings(Strict):
    """The whole file.

    Attributes:
        command: that writes it.
        version: of the tasks.
        methods: name of a method -> kind of network -> what was found.
    """

    command: str
    version: int
    methods: dict[str, dict[str, Chosen]]


COMMAND = "python -m qan_agents.judging.family_search"


def read_settings(path: Path = PATH) -> FamilySettings:
    """The file; an empty one where there is none.

    Raises:
        ValueError: it is damaged, or of other tasks.
    """
    if not path.exists():
        return FamilySettings(command=COMMAND, version=VERSION, methods={})
    found = read_record(FamilySettings, path, "the settings of the judges' rivals")
    if found.version != VERSION:
        raise ValueError(f"{path}: chosen on tasks of version {found.version}, not {VERSION}: run {COMMAND}")
    return found


def write_settings(settings: FamilySettings, path: Path = PATH) -> None:
    """Write the file, atomically."""
    write_bytes(path, (settings.model_dump_json(indent=2) + "\n").encode())
