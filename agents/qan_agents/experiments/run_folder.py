"""The folder of a training run, which is whole and can be resumed whenever the run is killed.

    config.json             all settings, versions, fingerprint of the data; written once, at the start
    manifest.json           the files that count, with sizes and checksums, see `qan_agents.experiments.manifest`
    episodes.csv            a row per finished episode
    steps.csv.gz            a row per action of the finished episodes
    replay/NNNNNN.safetensors   the transitions of a finished episode, where the agent learns from a replay
    model.NNNNNN.*          the agent after so many episodes, in its own format; the last two are kept
    carried.NNNNNN.safetensors  what these episodes hand on to the next one in its environment, e.g. a reference
    tensorboard/            the columns of episodes.csv as curves
    evaluation.csv.gz, evaluation.csv   the agent and the fixed policies on unseen seeds: per action, per episode
    unseen.NN.json.gz       while that is played: the episodes of the policies that have played
    *.png                   pictures of all that
    run.lock                locked while a process writes to the folder

After each round of episodes its files are written, every one aside and then renamed, the manifest last. What a kill
left of a later round is not in the manifest and is dropped on resuming, and that round is played again.
"""

import csv
import gzip
import io
import json
import os
import platform
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from qan_agents.experiments import manifest as manifests
from qan_agents.experiments.agent import agent_class
from qan_agents.experiments.manifest import Files, Manifest, Record, Round
from qan_agents.experiments.run_config import RunConfig, Settings
from qan_gym.utils.counts import counted
from qan_gym.utils.files import ASIDE, reading, remove_asides, require_writable, write_bytes

Row = dict[str, Any]

PACKAGES = ("qan-gym", "gymnasium", "torch", "numpy")  # whose versions every run records
CONFIG, LOCK = "config.json", "run.lock"
EPISODES, STEPS = "episodes.csv", "steps.csv.gz"  # the tables that grow
EVALUATION_STEPS, EVALUATION_EPISODES = "evaluation.csv.gz", "evaluation.csv"
EVALUATION = (EVALUATION_STEPS, EVALUATION_EPISODES)
UNSEEN = "unseen."
REPLAY = "replay/"
CHECKPOINTS = 2  # that are kept


class DamagedFile(ValueError):
    """A file of a run is missing, or is not what the run wrote."""


class Run:
    """A run folder."""

    def __init__(self, folder: Path) -> None:
        """folder: of the run; need not exist."""
        self.folder = folder.expanduser()

    # --- beginning --------------------------------------------------------------------------------------------------

    def create(self, config: RunConfig, facts: dict[str, Any]) -> None:
        """Make the folder, and write config.json.

        Args:
            config: the settings of the run.
            facts: what else to record beside the versions, see `Settings`.

        Raises:
            ValueError: the folder holds something, or cannot be written to.
        """
        require_writable(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        packages = (*PACKAGES, *agent_class(config.agent).libraries)
        versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
        settings = {"run": asdict(config), **facts, "versions": versions}
        content = (json.dumps(settings, indent=2) + "\n").encode()
        self.require_free()
        with self.locked():
            self.require_free()  # nor has another process made a run there meanwhile
            remove_asides(self.folder)
            Manifest(config=Record.of(content)).write(self.folder)
            write_bytes(self.folder / CONFIG, content)  # the last: with it the folder is a run

    def require_free(self) -> None:
        """Refuse a folder in which there is more than what a kill left while the folder was made.

        Raises:
            ValueError: it holds something else, or is no folder.
        """
        if not self.folder.exists():
            return
        require_writable(self.folder)
        names = {path.name for path in self.folder.iterdir() if not path.name.startswith(ASIDE)} - {LOCK}
        if names == {manifests.NAME}:
            with suppress(ValueError):
                names = set() if not Manifest.read(self.folder).rounds else names
        if names:
            raise ValueError(taken(self.folder, "qan train" if {CONFIG, manifests.NAME} <= names else None))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing to the folder.

        Raises:
            ValueError: one is writing to it, or it cannot be written to.
        """
        with locked(self.folder / LOCK):
            yield

    # --- settings ---------------------------------------------------------------------------------------------------

    def settings(self) -> Settings:
        """All of config.json.

        Raises:
            ValueError: there is no run in the folder, or the file is of another version.
            DamagedFile: the file is damaged, or was changed.
        """
        path = self.folder / CONFIG
        with reading(path, "the settings of a run"):
            there = path.is_file()
        if not there:
            raise ValueError(f"{self.folder} is not a run: there is no {CONFIG} in it")
        self._require_plain_files()
        try:
            content = self.read(CONFIG, self.manifest().config)
        except DamagedFile as error:
            raise DamagedFile(f"{error}; put it back as it was, or begin a new run with other settings") from error
        with reading(path, "the settings of a run of this version of qan-gym"):
            return Settings.model_validate_json(content)

    def config(self) -> RunConfig:
        """The settings of the run.

        Raises:
            ValueError: see `settings`, or they name a module that nobody has asked for.
        """
        config = self.settings().run
        module = config.env.rpartition(":")[0]
        if module and module not in sys.modules:
            raise ValueError(
                f"{self.folder / CONFIG} names the module {module}, which would be run: "
                f"if you trust it, say so with --import {module}"
            )
        return config

    def _require_plain_files(self) -> None:
        """Refuse links, through which files elsewhere would be read or written, and what is no file.

        Raises:
            ValueError: there is such a thing in the folder.
        """
        for path in self.folder.rglob("*"):
            mode = path.lstat().st_mode if os.path.lexists(path) else stat.S_IFREG  # a file that is gone by now
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                kind = "a symbolic link" if stat.S_ISLNK(mode) else "neither a file nor a folder"
                raise ValueError(f"{path} is {kind}: a run is made of files and folders; remove it, or copy it there")

    # --- files ------------------------------------------------------------------------------------------------------

    def manifest(self) -> Manifest:
        """The files that count.

        Raises:
            ValueError: there is no manifest, or it is damaged.
        """
        try:
            return Manifest.read(self.folder)
        except FileNotFoundError as error:
            from qan_agents.controllers.meta_training import CONTROLLER, STATE  # which imports this module

            if any((self.folder / name).is_file() for name in (STATE, CONTROLLER)):
                raise ValueError(
                    f"{self.folder} is a meta-training, not a run of qan train: go on with it by qan meta-train "
                    f"--resume, judge its {CONTROLLER} by qan judge"
                ) from error
            raise ValueError(
                f"{error}: the run is of another version, or was not copied whole; nothing in it can be verified"
            ) from error
        except ValueError as error:
            raise ValueError(f"{error}; put it back as it was, or begin a new run") from error

    @property
    def unfinished(self) -> str | None:
        """How much of the run has been played, and how to go on where that is possible; None: all of it."""
        done, whole = self.progress().episodes, self.config().episodes
        if done >= whole:
            return None
        played = f"{done} of {counted(whole, 'training')} played"
        return f"{played}: qan train --resume {self.folder} plays the rest" if self.has_episodes else played

    def progress(self) -> Round:
        """The last finished round; before the first, one of no episodes.

        Raises:
            ValueError: see `manifest`.
        """
        return self.manifest().last

    def read(self, name: str, record: Record) -> bytes:
        """The content of a file as it was recorded, without what was added since.

        Raises:
            DamagedFile: the file is missing or was changed.
        """
        path = self.folder / name
        try:
            with path.open("rb") as file:
                content = file.read(record.size)
        except OSError as error:
            raise DamagedFile(f"{path}: missing or not to be read ({error.strerror})") from error
        if Record.of(content) != record:
            raise DamagedFile(f"{path}: damaged or changed: its checksum is not that in {manifests.NAME}")
        return content

    def model_name(self, episodes: int) -> str:
        """The name of the agent after so many episodes."""
        return f"model.{episodes:06d}{agent_class(self.config().agent).model_suffix}"

    @staticmethod
    def carried_name(episodes: int) -> str:
        """The name of what so many episodes hand on to the next one."""
        return f"carried.{episodes:06d}.safetensors"

    @staticmethod
    def replay_name(episode: int) -> str:
        """The name of the transitions of an episode, counted from 0."""
        return f"{REPLAY}{episode:06d}.safetensors"

    @property
    def model_file(self) -> Path:
        """The file of the agent after the last finished round, verified.

        Raises:
            ValueError: there is none yet, or it is damaged.
        """
        last = self._require_begun()
        name = self.model_name(last.episodes)
        self._content(name, last.files)
        return self.folder / name

    def _require_begun(self) -> Round:
        last = self.manifest().last
        if last.episodes == 0:
            raise ValueError(
                f"{self.folder} has no finished episode yet: continue it with qan train --resume {self.folder}"
            )
        return last

    def _content(self, name: str, files: Files) -> bytes:
        """The content of a file that must be among those listed, verified.

        Raises:
            DamagedFile: it is not among them, or see `read`.
        """
        if name not in files:
            raise DamagedFile(f"{self.folder / manifests.NAME}: {name} is not in it")
        return self.read(name, files[name])

    # --- tables -----------------------------------------------------------------------------------------------------

    def table(self, name: str) -> list[dict[str, str]]:
        """The rows of a table that count, verified.

        Raises:
            ValueError: the run has no finished episode, or none of its episodes was evaluated.
            DamagedFile: the file is damaged.
        """
        if name in EVALUATION:
            files, hint = self.manifest().evaluation, f"; qan evaluate {self.folder} writes it anew"
            if name not in files:
                raise ValueError(f"{self.folder} was not evaluated yet: qan evaluate {self.folder}")
        else:
            files, hint = self._require_begun().files, f"; qan train --resume {self.folder} says what can be done"
        try:
            return _rows(self.folder / name, self._content(name, files))
        except DamagedFile as error:
            raise DamagedFile(f"{error}{hint}") from error

    @property
    def has_episodes(self) -> bool:
        """Whether the tables of its episodes are there; an agent that was pulled has none."""
        return EPISODES in self.manifest().last.files

    @property
    def evaluated(self) -> bool:
        """Whether the run was evaluated."""
        return EVALUATION_EPISODES in self.manifest().evaluation

    def append(self, name: str, rows: Sequence[Row]) -> None:
        """Add rows to a table; the file is whole before and after."""
        path = self.folder / name
        before = path.read_bytes() if path.exists() else b""
        write_bytes(path, before + encode_rows(path, rows, header=not before))  # gzip files may be joined end to end

    # --- rounds -----------------------------------------------------------------------------------------------------

    def finish_round(self, episodes: int, steps: int, names: Sequence[str]) -> None:
        """Let a round count, whose files are written; the agents of earlier ones are removed, and evaluations of them.

        Args:
            episodes: of the run that are finished.
            steps: that the agent has learned from.
            names: of the files.
        """
        before = self.manifest()
        done = Round(episodes=episodes, steps=steps, files=self._records(names))
        now = before.model_copy(update={"rounds": [*before.rounds, done], "evaluation": {}})
        now.write(self.folder)
        for old in now.rounds[:-CHECKPOINTS]:
            for name in (self.model_name(old.episodes), self.carried_name(old.episodes)):
                (self.folder / name).unlink(missing_ok=True)

    @staticmethod
    def unseen_name(place: int) -> str:
        """The name of what the policy in this place has played, in an evaluation that is not finished."""
        return f"{UNSEEN}{place:02d}.json.gz"

    def keep_unseen(self, place: int, content: Any) -> None:
        """Write what a policy has played, as JSON; it counts until the evaluation is finished, or the agent learns."""
        name, before = self.unseen_name(place), self.manifest()
        write_bytes(self.folder / name, gzip.compress(json.dumps(content).encode(), mtime=0))
        before.model_copy(update={"evaluation": before.evaluation | self._records([name])}).write(self.folder)

    def unseen(self, place: int) -> Any:
        """What was written by `keep_unseen` and counts; None: nothing, or it is damaged."""
        name = self.unseen_name(place)
        try:
            return json.loads(gzip.decompress(self._content(name, self.manifest().evaluation)))
        except DamagedFile:
            return None

    def finish_evaluation(self, tables: Mapping[str, Sequence[Row]]) -> None:
        """Write the tables of an evaluation, which count from then on."""
        for name, rows in tables.items():
            write_bytes(self.folder / name, encode_rows(self.folder / name, rows, header=True))
        self.manifest().model_copy(update={"evaluation": self._records(list(tables))}).write(self.folder)
        for path in self.folder.glob(f"{UNSEEN}*"):
            path.unlink()

    def _records(self, names: Sequence[str]) -> Files:
        return {name: Record.of((self.folder / name).read_bytes()) for name in names}

    def restore(self, drop_damaged: bool) -> Round:
        """Verify everything that the run needs to go on, and remove what does not count; the folder must be locked.

        Args:
            drop_damaged: where a file is damaged, go back to the last round after which everything is whole.

        Returns:
            The last round that counts.

        Raises:
            ValueError: a file is damaged; the message names it, and says what can be done.
        """
        manifest = self.manifest()
        try:
            self._verify_rounds(manifest.rounds)
        except DamagedFile as error:
            whole = self._last_whole(manifest.rounds)
            if not drop_damaged:
                lost = f"{whole.episodes} of its {manifest.last.episodes} finished episodes are whole and kept"
                raise ValueError(
                    f"{error}; put it back as it was, or play again what depends on it, with qan train --resume "
                    f"{self.folder} --drop-damaged: {lost}"
                ) from error
            kept = [one for one in manifest.rounds if one.episodes <= whole.episodes]
            manifest = Manifest(config=manifest.config, rounds=kept)
            manifest.write(self.folder)
        self._remove_uncounted(manifest)
        return manifest.last

    def _verify_rounds(self, rounds: Sequence[Round]) -> None:
        """Verify the files that going on after these rounds needs.

        Raises:
            DamagedFile: one of them is not as it was written.
        """
        if not rounds:
            return
        last = rounds[-1]
        for name in (self.model_name(last.episodes), self.carried_name(last.episodes), EPISODES, STEPS):
            self._content(name, last.files)
        for one in rounds:
            for name in one.files:
                if name.startswith(REPLAY):
                    self._content(name, one.files)

    def _last_whole(self, rounds: Sequence[Round]) -> Round:
        """The last round after which all is whole; before the first, one of no episodes."""
        for end in range(len(rounds), 0, -1):
            try:
                self._verify_rounds(rounds[:end])
            except DamagedFile:
                continue
            return rounds[end - 1]
        return Round(episodes=0, steps=0)

    def _remove_uncounted(self, manifest: Manifest) -> None:
        """Remove what a kill, or going back, left of rounds that do not count."""
        remove_asides(self.folder)
        listed = {name for one in manifest.rounds[-CHECKPOINTS:] for name in one.files}
        listed |= {name for one in manifest.rounds for name in one.files if name.startswith(REPLAY)}
        listed |= set(manifest.evaluation)
        for pattern in ("model.*", "carried.*", f"{REPLAY}*", f"{UNSEEN}*", *EVALUATION):
            for path in self.folder.glob(pattern):
                if path.relative_to(self.folder).as_posix() not in listed:
                    path.unlink()
        for name in (EPISODES, STEPS):
            path, record = self.folder / name, manifest.last.files.get(name)
            if record is None:
                path.unlink(missing_ok=True)
            elif path.stat().st_size > record.size:
                write_bytes(path, self.read(name, record))


# --- tables ---------------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table, `.csv` or `.csv.gz`.

    Raises:
        ValueError, FileNotFoundError: see `qan_gym.utils.files.reading`.
    """
    with reading(path, "a table"):
        content = path.read_bytes()
    return _rows(path, content)


def _rows(path: Path, content: bytes) -> list[dict[str, str]]:
    with reading(path, "a table"):
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
        rows = list(csv.DictReader(io.StringIO(text), strict=True))
        if not rows or any(None in row or None in row.values() for row in rows):
            raise ValueError("it has no rows, or rows of different lengths")
    return rows


def encode_rows(path: Path, rows: Sequence[Row], header: bool) -> bytes:
    """Rows as the content of a table, or as what is added to it; the same rows give the same bytes."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    content = text.getvalue().encode()
    return gzip.compress(content, mtime=0) if path.suffix == ".gz" else content


@contextmanager
def locked(lock: Path) -> Iterator[None]:
    """Keep other processes from writing to the folder of a lock.

    Raises:
        ValueError: one is writing to it, or it cannot be written to.
    """
    require_writable(lock.parent)
    try:
        with FileLock(lock, timeout=0):
            yield
    except Timeout as error:
        raise ValueError(f"{lock.parent} is in use by another process: wait until that has ended") from error


def taken(folder: Path, command: str | None) -> str:
    """What is said of a folder that is not free.

    Args:
        folder: it.
        command: that goes on with what is in it; None: it holds something else.
    """
    if command is None:
        return f"{folder} is there already, and holds something else: give a new folder with --out"
    return f"{folder} is there already: go on with it by {command} --resume {folder}, or give a new folder with --out"


def new_folder(folder: Path) -> Path:
    """Make a folder, or the first of `NAME-2`, `NAME-3`, ... that is not taken, so that nobody else gets the same.

    Raises:
        ValueError: it cannot be made.
    """
    require_writable(folder.parent)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        one = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            one.mkdir()
        except FileExistsError:
            continue
        break
    return one
