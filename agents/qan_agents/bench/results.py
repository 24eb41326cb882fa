"""The results of a bench: one Parquet file, never half-written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from filelock import FileLock

from qan_gym.utils.files import remove_asides, require_writable, write_aside

Row = dict[str, Any]

TEXT, WHOLE, NUMBER, CURVE = pa.string(), pa.int64(), pa.float64(), pa.list_(pa.float32())

SCHEMA = pa.schema(
    [
        ("config_hash", TEXT),  # of all settings of the cell
        ("environment", TEXT),  # of the evaluation
        ("environment_kwargs", TEXT),  # JSON
        ("prepared_on", TEXT),
        ("prepared_on_kwargs", TEXT),  # JSON
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
        require_writable(path.parent)
        self.path = path
        self.lock = FileLock(path.with_name(f".{path.name}.lock"))
        self._table()  # a damaged file is refused before any work

    def finished(self) -> set[str]:
        """The keys of the cells that are done; failed ones are tried again."""
        rows = self._table().select(["config_hash", "status"]).to_pylist()
        return {row["config_hash"] for row in rows if row["status"] == "done"}

    def append(self, key: str, rows: Sequence[Row]) -> None:
        """Add the rows of a cell; those that it had before are removed."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.lock:
            remove_asides(self.path)
            there = self._table()
            others = there.filter(pa.compute.not_equal(there["config_hash"], key))
            table = pa.concat_tables([others, pa.Table.from_pylist(list(rows), SCHEMA)])
            with write_aside(self.path) as aside:
                pq.write_table(table, aside, compression="zstd", write_page_checksum=True)

    def _table(self) -> pa.Table:
        return read_table(self.path) if self.path.exists() else SCHEMA.empty_table()


def read_table(path: Path) -> pa.Table:
    """The results in a file.

    Raises:
        ValueError: it is missing, damaged or of something else.
    """
    try:
        # Read in one piece: the file may be replaced at any time.
        source = pa.BufferReader(path.read_bytes())
        return pq.read_table(source, page_checksum_verification=True).select(SCHEMA.names).cast(SCHEMA)
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"{path}: missing, damaged, or not the results of a bench ({error})") from error
