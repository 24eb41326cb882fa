"""What the contenders' trainings gave: a folder with one Parquet file per contender, never half-written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from qan_agents.controllers.trainings import Outcomes
from qan_agents.judging.contenders import Contender
from qan_agents.judging.problems import Problem, judged_seed
from qan_gym.data.datasets import load_dataset
from qan_gym.families.task import VERSION
from qan_gym.utils.files import reading, remove_asides, require_writable, write_aside

FORMAT = 1  # of the files, and of how contenders are played; raised when the same record comes to mean other results

CURVE = pa.list_(pa.float32())
SCHEMA = pa.schema(
    [
        ("task", pa.string()),  # see `key_of`
        ("seed", pa.int64()),  # of the training
        ("problem", pa.string()),
        ("kind", pa.string()),  # of network
        ("budget", pa.int64()),  # mini-batches
        ("validation_loss", pa.float64()),  # nats, at the end
        ("test_loss", pa.float64()),
        ("test_accuracy", pa.float64()),
        ("diverged", pa.bool_()),
        ("training_loss", CURVE),  # running mean after each action, nats
        ("learning_rate", CURVE),  # after each action
    ]
)
IDENTITY = b"identity"  # in the metadata of a file, JSON

Key = tuple[str, int]  # of a training: that of its task, and its seed
Row = dict[str, Any]


@cache
def fingerprint(dataset: str) -> str:
    """Of the images.

    Raises:
        ValueError, FileNotFoundError: see `load_dataset`.
    """
    return load_dataset(dataset).fingerprint


def key_of(problem: Problem, optimizer: str) -> str:
    """Of the task of a problem: SHA-256 of its record and of its images, the first 16 hexadecimal digits."""
    record = {"task": asdict(problem.task(optimizer)), "data": fingerprint(problem.dataset)}
    return digest(record)[:16]


def digest(record: Any) -> str:
    """SHA-256 of a JSON-able record."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def identity(contender: Contender) -> str:
    """Of a contender, JSON: all that its results depend on but the trainings and the name that it is given."""
    about = {"format": FORMAT, "tasks": VERSION, "optimizer": contender.optimizer, "record": contender.record}
    return json.dumps(about, sort_keys=True)


class Results:
    """The folder.

    Attributes:
        folder: it.
    """

    def __init__(self, folder: Path) -> None:
        """folder: need not exist.

        Raises:
            ValueError: it cannot be written to.
        """
        require_writable(folder)
        self.folder = folder

    def path(self, contender: Contender) -> Path:
        """Of the file of a contender."""
        return self.folder / f"{digest(identity(contender))[:24]}.parquet"

    def rows(self, contender: Contender) -> dict[Key, Row]:
        """What is there of a contender.

        Raises:
            ValueError: the file is damaged, or of something else.
        """
        path = self.path(contender)
        if not path.exists():
            return {}
        with reading(path, "results of qan judge"):
            table = pq.read_table(pa.BufferReader(path.read_bytes()), page_checksum_verification=True)
            if (table.schema.metadata or {}).get(IDENTITY) != identity(contender).encode():
                raise ValueError("it is of another contender")
            rows = table.select(SCHEMA.names).cast(SCHEMA).to_pylist()
        return {(row["task"], row["seed"]): row for row in rows}

    def add(self, contender: Contender, rows: Iterable[Row]) -> None:
        """Add rows to those of a contender, whole or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        path, schema = self.path(contender), SCHEMA.with_metadata({IDENTITY: identity(contender).encode()})
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):  # another judge may work in the same folder
            remove_asides(path)
            there = {**self.rows(contender), **{(row["task"], row["seed"]): row for row in rows}}
            table = pa.Table.from_pylist([there[key] for key in sorted(there)], schema)
            with write_aside(path) as aside:
                pq.write_table(table, aside, compression="zstd", write_page_checksum=True)


def rows_of(contender: Contender, problems: Sequence[Problem], seeds: int, outcomes: Outcomes) -> list[Row]:
    """Outcomes, of the trainings in the order of `trainings_of`, as they are kept."""
    rows: list[Row] = []
    for problem in problems:
        key = key_of(problem, contender.optimizer)
        for number in range(seeds):
            at = len(rows)
            row = {"task": key, "seed": judged_seed(problem, number), "problem": problem.name}
            row |= {"kind": problem.kind, "budget": problem.budget, "diverged": bool(outcomes.diverged[at])}
            for name in ("validation_loss", "test_loss", "test_accuracy"):
                row[name] = float(getattr(outcomes, name)[at])
            for name in ("training_loss", "learning_rate"):
                row[name] = getattr(outcomes, name)[at].tolist()
            rows.append(row)
    return rows
