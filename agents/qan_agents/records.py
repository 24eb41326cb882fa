"""Records in JSON files that people hand on: strict ones, and numbers with intervals."""

from pathlib import Path
from typing import Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict, FiniteFloat

from qan_gym.utils.files import reading

DIGITS = 5  # behind the point


class Strict(BaseModel):
    """A record in which nothing may be missing, unknown or of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Record = TypeVar("Record", bound=Strict)


class Estimated(Protocol):
    """A number and the bounds of its interval."""

    @property
    def value(self) -> float:
        """The number."""

    @property
    def low(self) -> float:
        """The lower bound."""

    @property
    def high(self) -> float:
        """The upper bound."""


class Interval(Strict):
    """A number and its 95 % interval."""

    value: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat

    @classmethod
    def of(cls, found: Estimated) -> Self:
        """A number and its interval, rounded."""
        return cls(value=short(found.value), low=short(found.low), high=short(found.high))


def short(value: float) -> float:
    """A number, rounded as records have it."""
    return round(float(value), DIGITS)


def read_record(kind: type[Record], path: Path, what: str) -> Record:
    """A record from its file.

    Args:
        kind: of the record.
        path: of the file.
        what: the file is, for the error.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or no such record.
    """
    with reading(path, what):
        return kind.model_validate_json(path.read_bytes())
