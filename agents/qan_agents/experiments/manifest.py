"""manifest.json: the files of a run, in the order in which they were written, with their sizes and checksums.

It is written after the files that it lists; what it does not list does not count.
"""

import hashlib
import json
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt

from qan_gym.utils.files import reading, write_bytes

NAME = "manifest.json"


class Record(BaseModel):
    """The content that a file had.

    Attributes:
        size: bytes.
        sha256: of them, in hexadecimal digits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    size: NonNegativeInt
    sha256: str

    @classmethod
    def of(cls, content: bytes) -> Self:
        """The record of a content."""
        return cls(size=len(content), sha256=hashlib.sha256(content).hexdigest())


Files = dict[str, Record]  # by their paths in the folder, with "/"


class Round(BaseModel):
    """A finished round of episodes.

    Attributes:
        episodes: of the run that are finished with it.
        steps: actions that the agent has learned from by then.
        files: those written for it; the tables have grown, and the record is of all that is in them by then.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    episodes: NonNegativeInt
    steps: NonNegativeInt
    files: Files = {}


class Manifest(BaseModel):
    """The files of a run that count.

    Attributes:
        config: of config.json.
        rounds: those that are finished, in order.
        evaluation: the tables of the last evaluation, where there was one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: PositiveInt = 1
    config: Record
    rounds: list[Round] = []
    evaluation: Files = {}

    @property
    def last(self) -> Round:
        """The last finished round; before the first, one of no episodes."""
        return self.rounds[-1] if self.rounds else Round(episodes=0, steps=0)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The manifest of a run.

        Raises:
            ValueError, FileNotFoundError: see `qan_gym.utils.files.reading`.
        """
        path = folder / NAME
        with reading(path, "the manifest of a run"):
            content = json.loads(path.read_bytes())
            manifest = cls.model_validate(content["manifest"])
            if content["sha256"] != manifest._digest():
                raise ValueError("its checksum is wrong")
        return manifest

    def write(self, folder: Path) -> None:
        """Write it to the folder of a run, atomically."""
        write_bytes(folder / NAME, self.content())

    def content(self) -> bytes:
        """Of its file."""
        content = {"sha256": self._digest(), "manifest": self.model_dump()}
        return (json.dumps(content, indent=1) + "\n").encode()

    def _digest(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()
