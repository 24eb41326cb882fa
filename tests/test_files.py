"""Files: one kind of error for what is damaged, one checksum over everything, and nothing half-written."""

import errno
import fcntl
import os
import random
import subprocess
import sys
import tokenize
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
from helpers import made_arrays
from safetensors.numpy import save_file

from qan_gym.data.datasets import ASSETS, load_dataset
from qan_gym.utils.files import (
    load_arrays,
    read_npz,
    reading,
    remove_asides,
    require_writable,
    save_arrays,
    write_aside,
    write_bytes,
)

ARRAYS = {"weight": np.arange(50.0), "count": np.zeros((3, 1), np.int64), "over": np.asarray(True)}
ABOUT = {"learning_rate": 0.1, "config": {"sizes": [1, 2]}, "text": '"sha256":"' + 64 * "0" + '"'}


def outcomes_of_flips(path: Path, read: Callable[[Path], Any], flips: int | None = None) -> set[str]:
    """What comes of single flipped bits: "refused", with the file's name, "same" or "other" content.

    flips: how many, at random; None: one in every byte.
    """
    content, whole, outcomes = path.read_bytes(), read(path), set()
    rng = random.Random(0)
    for place in range(len(content)) if flips is None else rng.sample(range(len(content)), flips):
        changed, bit = bytearray(content), rng.randrange(8)
        changed[place] ^= 1 << bit
        path.write_bytes(changed)
        try:
            outcomes.add("same" if same(read(path), whole) else f"other, byte {place}, bit {bit}")
        except ValueError as error:
            outcomes.add("refused" if str(path) in str(error) else str(error))
    path.write_bytes(content)
    return outcomes


def same(one: Any, other: Any) -> bool:
    """Whether two results of `load_arrays`, two dicts of arrays, or two tables are the same."""
    if isinstance(one, tuple):
        return same(one[0], other[0]) and one[1] == other[1]
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            np.array_equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one
        )
    return bool(one.equals(other))


# --- arrays -----------------------------------------------------------------------------------------------------------


def test_arrays_and_metadata_come_back(tmp_path):
    save_arrays(tmp_path / "a.safetensors", ARRAYS, ABOUT)
    assert same(load_arrays(tmp_path / "a.safetensors"), (ARRAYS, ABOUT))
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_same_arrays_give_the_same_bytes(tmp_path):
    """Also in another process, where sets and maps have other orders; PyTorch's own safetensors reads them."""
    code = (
        "import sys, numpy as np; from qan_gym.utils.files import save_arrays\n"
        "save_arrays(sys.argv[1], {'ä': np.arange(3.0), 'b': np.ones((2, 2), np.int8)}, {'key': 'ü \"quoted\"'})"
    )
    paths = [tmp_path / str(number) for number in range(4)]
    for path in paths:
        subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    assert len({path.read_bytes() for path in paths}) == 1
    arrays, metadata = load_arrays(paths[0])
    assert arrays["ä"].tolist() == [0, 1, 2]
    assert metadata == {"key": 'ü "quoted"'}
    assert safetensors.torch.load_file(paths[0])["b"].tolist() == [[1, 1], [1, 1]]


def test_flipped_bits_of_a_file_of_arrays_is_refused(tmp_path):
    """Header, names, shapes, metadata, numbers, and the checksum itself."""
    path = tmp_path / "a.safetensors"
    save_arrays(path, ARRAYS, ABOUT)
    assert outcomes_of_flips(path, load_arrays) == {"refused"}
    assert outcomes_of_flips(path, lambda path: load_arrays(path, foreign=True)) == {"refused"}


def test_flipped_bits_of_the_shipped_references_is_refused(tmp_path):
    """All four have a checksum, and their scores beside the weights."""
    shipped = sorted((ASSETS / "references").iterdir())
    assert len(shipped) == 4
    for source in shipped:
        path = tmp_path / source.name
        path.write_bytes(source.read_bytes())
        assert load_arrays(path)[1]["test_accuracy"] > 0.8
        assert outcomes_of_flips(path, load_arrays, 150) == {"refused"}


def test_a_file_without_a_checksum_is_refused_unless_it_may_be_foreign(tmp_path):
    path = tmp_path / "plain.safetensors"
    save_file(ARRAYS, path)
    with pytest.raises(ValueError, match="no checksum") as caught:
        load_arrays(path)
    assert str(path) in str(caught.value)
    assert same(load_arrays(path, foreign=True), (ARRAYS, {}))
    save_file(ARRAYS, path, {"qan_gym": "{}"})  # ours, which always has one
    with pytest.raises(ValueError, match="no checksum"):
        load_arrays(path, foreign=True)


# --- .npz -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_a_flipped_bit_of_an_npz_is_refused_or_without_effect(write, tmp_path):
    """Dates and permissions of the archive's members are without effect."""
    path = tmp_path / "a.npz"
    arrays = made_arrays(n_train=6, n_test=2, shape=(2, 2))
    write(path, **{name: arrays[name] for name in ("x_train", "y_train")})
    assert outcomes_of_flips(path, read_npz) == {"refused", "same"}


@pytest.mark.parametrize("header", [b"{'descr': '|u1', 'fortran_order': False, 'shape': (2, 2), }"[:-3], b"\xff" * 20])
def test_a_damaged_header_in_a_whole_archive_is_refused(header, tmp_path):
    """NumPy's reader has errors of its own for these."""
    import zipfile

    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x_train.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"1234")
    with pytest.raises(ValueError, match="damaged") as caught:
        load_dataset(str(path))
    assert str(path) in str(caught.value)


def test_a_member_with_more_bytes_than_its_array_is_refused(tmp_path):
    """A shape that was made smaller leaves some over."""
    import io
    import zipfile

    path, array = tmp_path / "a.npz", io.BytesIO()
    np.save(array, np.zeros(3, np.uint8))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x_train.npy", array.getvalue() + b"more")
    with pytest.raises(ValueError, match="4 bytes too many"):
        read_npz(path)


# --- Parquet ----------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_of_the_results_of_a_bench_changes_no_value(tmp_path):
    """The pages have checksums, which are verified."""
    from qan_agents.bench.results import SCHEMA, Results, read_table

    row = dict.fromkeys(SCHEMA.names) | {"config_hash": "a", "status": "done", "test_loss": 0.5, "evaluation_seed": 0}
    results = Results(tmp_path / "results.parquet")
    results.append("a", [row | {"seed": seed, "validation_curve": [1.5, 1.0 / (seed + 1)]} for seed in range(50)])
    assert outcomes_of_flips(results.path, read_table, 300) <= {"refused", "same"}


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        tokenize.TokenError("EOF"),
        LookupError("codec"),
        PermissionError(errno.EACCES, "Permission denied"),
        RecursionError("too deep"),
        MemoryError(),
        KeyError("actions"),
        ValueError("several\nlines"),
    ],
)
def test_whatever_a_parser_raises_is_one_kind_of_error(error):
    with pytest.raises(ValueError, match=r"^folder/name: ") as caught, reading("folder/name", "a table"):
        raise error
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    """Or a folder in its place."""
    for path in (tmp_path, tmp_path / "nothing"):
        for read in (read_npz, load_arrays):
            with pytest.raises(FileNotFoundError, match="there is no such file") as caught:
                read(path)
            assert str(path) in str(caught.value)


# --- writing ----------------------------------------------------------------------------------------------------------


def test_what_is_flushed_may_be_written(tmp_path, monkeypatch):
    """Windows refuses to flush a handle opened for reading."""
    modes = []
    monkeypatch.setattr(os, "fsync", lambda handle: modes.append(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE))
    write_bytes(tmp_path / "a", b"1")
    assert modes == [os.O_RDWR]


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_bytes(path, b"old")

    def full(_handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device") as caught:
        write_bytes(path, b"new")
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["a.txt"]


def test_what_a_killed_writer_left_is_removed(tmp_path):
    """Of one file, or of all in a folder; other hidden files stay."""
    (tmp_path / "folder").mkdir()
    (tmp_path / ".mine").touch()
    for name in ("a.txt", "b.txt", "folder/c.txt"):
        with write_aside(tmp_path / name) as aside:
            aside.with_name(aside.name + "-left").write_bytes(b"half")
    assert len(list(tmp_path.rglob(".*"))) == 4
    remove_asides(tmp_path / "a.txt")
    assert len(list(tmp_path.rglob(".*"))) == 3
    remove_asides(tmp_path)
    assert [path.name for path in tmp_path.rglob(".*")] == [".mine"]


@pytest.mark.parametrize("name", ["file/below", "x" * 300])
def test_a_folder_that_cannot_be_made_is_refused_before_work(name, tmp_path):
    (tmp_path / "file").touch()
    if name.startswith("file"):
        with pytest.raises(ValueError, match="cannot be written to"):
            require_writable(tmp_path / name)
    else:
        with pytest.raises(OSError, match="too long"):
            write_bytes(tmp_path / name, b"")
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
