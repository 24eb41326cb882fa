"""The results of a bench: one Parquet file, never half-written, with a checksum of all that is in it."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from filelock import FileLock

from qan_gym.utils.files import reading, remove_asides, require_writable, write_aside

Row = dict[str, Any]

TEXT, WHOLE, NUMBER, CURVE = pa.string(), pa.int64(), pa.float64(), pa.list_(pa.float32())

SCHEMA = pa.schema(
    [
        ("config_hash", TEXT),  # the key of the cell
        ("environment", TEXT),  # of the evaluation
        ("environment_kwargs", TEXT),  # JSON
        ("environment_identity", TEXT),  # see `TuningTask.identity`
        ("prepared_on", TEXT),
        ("prepared_on_kwargs", TEXT),  # JSON
        ("prepared_on_identity", TEXT),
        ("controller", TEXT),
        ("label", TEXT),
        ("settings", TEXT),  # JSON
        ("runs", WHOLE),  # the budget, in training runs
        ("seed", WHOLE),  # of the preparation
        ("versions", TEXT),  # JSON
        ("status", TEXT),  # done or failed
        ("error", TEXT),
        ("evaluation_seed", WHOLE),
        ("test_loss", NUMBER),  # nats, at the end
        ("test_accuracy", NUMBER),
        ("validation_loss", NUMBER),
        ("validation_accuracy", NUMBER),
        ("diverged", pa.bool_()),
        ("batches", WHOLE),  # of this training run
        ("validation_curve", CURVE),  # at equal distances, from before the first mini-batch to after the last
        ("rate_curve", CURVE),  # the learning rate at the same times
        ("consumed_runs", WHOLE),  # training runs that the preparation consumed
        ("consumed_batches", WHOLE),  # and their mini-batches
        ("chosen", TEXT),  # JSON: the settings that the preparation found
        ("data_fingerprint", TEXT),
        ("seconds", NUMBER),  # of the cell
    ]
)

CHECKSUM = b"sha256"  # in the metadata of the file


class Results:
    """A Parquet file that grows by cells.

    Each time it is written under another name and renamed, so that a kill does not damage it. Several benches may write
    to one file at once.
    """

    def __init__(self, path: Path) -> None:
        """path: of the file; need not exist.

        Raises:
            ValueError: it cannot be written, or is no such file.
        """
        self.path = path
        self.lock = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            require_writable(path.parent)
            self.table()  # a damaged file is refused before any work
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror})") from error

    def finished(self) -> dict[str, set[int]]:
        """The keys of the cells that are done, with the seeds they were evaluated on; failed ones are tried again."""
        rows = self.table().select(["config_hash", "status", "evaluation_seed"]).to_pylist()
        finished: dict[str, set[int]] = {}
        for row in rows:
            if row["status"] == "done":
                finished.setdefault(row["config_hash"], set()).add(row["evaluation_seed"])
        return finished

    def append(self, key: str, rows: Sequence[Row]) -> None:
        """Add the rows of a cell, in the place of those that it had before; a failure replaces failures only.

        Raises:
            ValueError: the file is damaged, or cannot be written.
        """
        new = as_table(rows)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.lock:
                remove_asides(self.path)
                there = self.table()
                replaced = pa.compute.equal(there["config_hash"], key)
                if rows[0]["status"] == "failed":
                    replaced = pa.compute.and_(replaced, pa.compute.equal(there["status"], "failed"))
                table = pa.concat_tables([there.filter(pa.compute.invert(replaced)), new])
                table = table.replace_schema_metadata({CHECKSUM: _checksum(table)})
                with write_aside(self.path) as aside:
                    pq.write_table(table, aside, compression="zstd", write_page_checksum=True)
        except OSError as error:
            raise ValueError(
                f"{self.path}: cannot be written ({error.strerror or error}); the cells before are in it, and the "
                "same command goes on"
            ) from error

    def table(self) -> pa.Table:
        """All results.

        Raises:
            ValueError: see `read_table`.
        """
        return read_table(self.path) if self.path.exists() else SCHEMA.empty_table()


def require_same_controller(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    """Refuse that two controllers have one label.

    Args:
        one: label, kind of controller, and settings as JSON.
        other: the same.

    Raises:
        ValueError: they differ.
    """
    if one != other:
        raise ValueError(
            f"the label {one[0]!r} stands for {one[1]} with the settings {one[2]} and for {other[1]} with "
            f"{other[2]}: give them a label each"
        )


def as_table(rows: Sequence[Row]) -> pa.Table:
    """Rows as they are kept.

    Raises:
        pyarrow.ArrowException, UnicodeEncodeError: a value is not of the kind of its column.
    """
    return pa.Table.from_pylist(list(rows), SCHEMA)


def read_table(path: Path) -> pa.Table:
    """The results in a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, is damaged or of something else.
    """
    with reading(path, "the results of a bench of this version of qan-gym"):
        # Read in one piece: the file may be replaced at any time.
        found = pq.read_table(pa.BufferReader(path.read_bytes()), page_checksum_verification=True)
        table = found.select(SCHEMA.names).cast(SCHEMA)
        checksum = (found.schema.metadata or {}).get(CHECKSUM)
        if checksum is None:
            raise ValueError("it has no checksum")
        if checksum != _checksum(table):
            raise ValueError("its checksum is wrong")
        return table


def _checksum(table: pa.Table) -> bytes:
    """Of the values in a table, however a file holds them."""
    return hashlib.sha256(json.dumps(table.to_pydict()).encode()).hexdigest().encode()
