"""The table of a study that goes on where it was stopped."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qan_agents.experiments.run_folder import encode_rows, read_rows
from qan_gym.utils.files import write_bytes


def stored_rows(path: Path) -> list[dict[str, Any]]:
    """The rows that are there; none where there is no such file."""
    return list(read_rows(path)) if path.exists() else []


def store_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write all rows, aside first."""
    write_bytes(path, encode_rows(path, rows, header=True))
