"""The folder of a training run: what is in it, and how it stays whole whatever happens.

    config.json             all settings, versions, fingerprint of the data; written once, at the start
    episodes.csv            a row per finished episode
    steps.csv.gz            a row per action of the finished episodes
    replay/NNNNNN.safetensors   the transitions of a finished episode
    model.zip               the agent after the last finished episode, as SB3 saves it;
    model.safetensors       the same of the bundled DQN
    tensorboard/            the same curves for TensorBoard
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
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from qan_gym.utils.files import load_arrays, write_aside

Row = dict[str, Any]

MODEL_FILES = {"dqn": "model.zip", "dqn-gpu": "model.safetensors"}  # by agent

PACKAGES = ("qan-gym", "gymnasium", "torch", "stable-baselines3", "numpy")


@dataclass(frozen=True)
class RunConfig:
    """What a training run was asked to be.

    Attributes:
        env: the id.
        env_kwargs: of `gym.make`.
        agent: one of MODEL_FILES: "dqn", Stable-Baselines3's, or "dqn-gpu", the bundled one.
        preset: of the agent's hyperparameters.
        episodes: to train for.
        seed: of the agent and its episodes.
        num_envs: trainings in lock-step, that is episodes of a round.
        test_epsilon: every second round only plays, with so much exploration, as the paper's; None: every round trains.
        judged_on: the seeds of the episodes that are played greedily in the end.
        beside: the fixed policies that these are compared with, the baseline first; None: those of the game.
        agent_kwargs: hyperparameters that differ from the preset's.
    """

    env: str
    env_kwargs: dict[str, Any]
    agent: str
    preset: str
    episodes: int
    seed: int
    num_envs: int = 1
    test_epsilon: float | None = None
    judged_on: Sequence[int] = (0, 1, 2)
    beside: Sequence[str] | None = None
    agent_kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What pictures and pages are headed with."""
        return f"{self.env}, {self.agent} ({self.preset}), seed {self.seed}"

    def trains(self, episode: int) -> bool:
        """Whether the agent learns from an episode, counted from 0."""
        return self.test_epsilon is None or episode // self.num_envs % 2 == 0

    @property
    def training_episodes(self) -> int:
        """How many of the episodes the agent learns from."""
        return sum(map(self.trains, range(self.episodes)))


class Run:
    """A run folder."""

    def __init__(self, folder: Path) -> None:
        """folder: of the run; need not exist."""
        self.folder = folder

    # --- settings ---------------------------------------------------------------------------------------------------

    def create(self, config: RunConfig, facts: dict[str, Any]) -> None:
        """Begin a run.

        Args:
            config: its settings.
            facts: what else to write down beside the versions: the game, the data's fingerprint, hyperparameters.

        Raises:
            ValueError: the folder holds something.
        """
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise ValueError(f"{self.folder} is there already: continue it with --resume {self.folder}, or give --out")
        versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
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
            return json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: damaged ({error})") from error

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
        """Where the agent is saved.

        Raises:
            ValueError: see `config`, or the agent is unknown.
        """
        agent = self.config().agent
        if agent not in MODEL_FILES:
            raise ValueError(f"unknown agent {agent!r}; there are {', '.join(MODEL_FILES)}")
        return self.folder / MODEL_FILES[agent]

    def progress(self) -> dict[str, int]:
        """How far the saved agent has come: finished `episodes`, and `steps` of them that it learned from.

        Raises:
            ValueError: the file of the agent is damaged.
        """
        path = self.model_file
        if not path.is_file():
            return {"episodes": 0, "steps": 0}
        try:
            if path.suffix == ".zip":
                with zipfile.ZipFile(path) as archive:
                    data = json.loads(archive.read("data"))  # plain JSON
                return {"episodes": int(data["_episode_num"]), "steps": int(data["num_timesteps"])}
            about = load_arrays(path)[1]
            return {"episodes": int(about["facts"]["episodes"]), "steps": int(about["steps"])}
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: damaged, or not saved by qan ({error})") from error

    def replay_file(self, episode: int) -> Path:
        """Where the transitions of an episode are."""
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
