"""The folder of a training run, which is whole and can be resumed whenever the run is killed.

    config.json             all settings, versions, fingerprint of the data; written once, at the start
    episodes.csv            a row per finished episode
    steps.csv.gz            a row per action of the finished episodes
    replay/NNNNNN.safetensors   the transitions of a finished episode, where the agent learns from a replay
    model.*                 the agent after the last finished episode, in its own format
    tensorboard/            the columns of episodes.csv as curves
    evaluation.csv.gz, evaluation.csv   the agent and the fixed policies on unseen seeds: per action, per episode
    *.png                   pictures of all that

After each round of episodes its files are written, every one aside and then renamed, the agent last: it says how many
episodes count. What a kill left of a later round is dropped on resuming, and that round is played again.
"""

import csv
import gzip
import io
import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from qan_agents.experiments.agent import SavedProgress, agent_class
from qan_gym.utils.files import write_aside

Row = dict[str, Any]

PACKAGES = ("qan-gym", "gymnasium", "torch", "numpy")  # whose versions every run records


@dataclass(frozen=True)
class RunConfig:
    """The settings of a training run.

    Attributes:
        env: the id of the environment.
        env_kwargs: keyword arguments of the environment.
        agent: the name of one, see `qan_agents.agents`.
        preset: named hyperparameters of the agent.
        episodes: of the run, whether it learns from them or not.
        seed: of the agent and its episodes.
        num_envs: trainings in lock-step, that is episodes of a round.
        test_exploration: where given, every second round is only played, with this share of random actions, as in the
            paper; None: the agent learns from every round.
        evaluation_seeds: of the episodes that the trained agent plays in the end, without exploration.
        baselines: the fixed policies that it is compared with, the baseline first; None: those of the game.
        agent_kwargs: hyperparameters that differ from the preset's.
    """

    env: str
    env_kwargs: dict[str, Any]
    agent: str
    preset: str
    episodes: int
    seed: int
    num_envs: int = 1
    test_exploration: float | None = None
    evaluation_seeds: Sequence[int] = (0, 1, 2)
    baselines: Sequence[str] | None = None
    agent_kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The heading of pictures and pages."""
        return f"{self.env}, {self.agent} ({self.preset}), seed {self.seed}"

    def trains(self, episode: int) -> bool:
        """Whether the agent learns from an episode, counted from 0."""
        return self.test_exploration is None or episode // self.num_envs % 2 == 0

    @property
    def training_episodes(self) -> int:
        """The number of episodes that the agent learns from."""
        return sum(map(self.trains, range(self.episodes)))


class Run:
    """A run folder."""

    def __init__(self, folder: Path) -> None:
        """folder: of the run; need not exist."""
        self.folder = folder

    # --- settings ---------------------------------------------------------------------------------------------------

    def create(self, config: RunConfig, facts: dict[str, Any]) -> None:
        """Make the folder, and write config.json.

        Args:
            config: the settings of the run.
            facts: what else to record beside the versions, JSON-able: task, fingerprint of the data, hyperparameters.

        Raises:
            ValueError: the folder holds something.
        """
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise ValueError(f"{self.folder} is there already: continue it with --resume {self.folder}, or give --out")
        packages = (*PACKAGES, *agent_class(config.agent).libraries)
        versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
        settings = {"run": asdict(config), **facts, "versions": versions}
        with write_aside(self.folder / "config.json") as aside:
            aside.write_text(json.dumps(settings, indent=2) + "\n")

    def settings(self) -> dict[str, Any]:
        """All of config.json.

        Raises:
            ValueError: there is none, or it is damaged.
        """
        path = self.folder / "config.json"
        if not path.is_file():
            raise ValueError(f"{self.folder} is not a run: there is no config.json in it")
        try:
            settings: dict[str, Any] = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: damaged ({error})") from error
        return settings

    def config(self) -> RunConfig:
        """The settings of the run.

        Raises:
            ValueError: see `settings`.
        """
        try:
            return RunConfig(**self.settings()["run"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{self.folder / 'config.json'}: not the settings of a run ({error})") from error

    # --- episodes ---------------------------------------------------------------------------------------------------

    @property
    def model_file(self) -> Path:
        """The file of the saved agent.

        Raises:
            ValueError: see `config`, or the agent is unknown.
        """
        return self.folder / f"model{agent_class(self.config().agent).model_suffix}"

    def progress(self) -> SavedProgress:
        """The progress of the saved agent.

        Raises:
            ValueError: the file of the agent is damaged.
        """
        if not self.model_file.is_file():
            return SavedProgress(episodes=0, steps=0)
        return agent_class(self.config().agent).read_progress(self.model_file)

    def replay_file(self, episode: int) -> Path:
        """The file of the transitions of an episode."""
        return self.folder / "replay" / f"{episode:06d}.safetensors"

    def keep_only(self, episodes: int) -> None:
        """Drop the rows of episodes that do not count, because the agent was not saved after them."""
        for name in ("episodes.csv", "steps.csv.gz"):
            path = self.folder / name
            rows = read_rows(path) if path.exists() else []
            whole = [row for row in rows if int(row["episode"]) < episodes]
            if len(whole) < len(rows):
                write_rows(path, whole, list(rows[0]))

    def append(self, name: str, rows: Sequence[Row]) -> None:
        """Add rows to a table; the file is whole before and after."""
        path = self.folder / name
        before = path.read_bytes() if path.exists() else b""
        text = _to_csv(rows, list(rows[0]), header=not before)
        with write_aside(path) as aside:
            aside.write_bytes(before + _encode(path, text))  # gzip files may be joined end to end


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table, `.csv` or `.csv.gz`.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: missing or damaged ({error})") from error
    return list(csv.DictReader(io.StringIO(text)))


def write_rows(path: Path, rows: Iterable[Row], columns: Sequence[str]) -> None:
    """Write a table, `.csv` or `.csv.gz`, atomically."""
    with write_aside(path) as aside:
        aside.write_bytes(_encode(path, _to_csv(rows, columns, header=True)))


def _to_csv(rows: Iterable[Row], columns: Sequence[str], header: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _encode(path: Path, text: str) -> bytes:
    # mtime=0: the same rows give the same bytes.
    return gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text.encode()


def free_folder(parent: Path, name: str) -> Path:
    """`parent/name`, or the first of `name-2`, `name-3`, ... that is not taken."""
    folder, number = parent / name, 1
    while folder.exists():
        number += 1
        folder = parent / f"{name}-{number}"
    return folder
