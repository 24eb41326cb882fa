"""Build the site: python docs/build.py; warnings are errors.

Writes the pages of the environments, from their docstrings and records, and copies the report of the bench; then
Zensical builds all of docs/ into site/. (Zensical is by the makers of Material for MkDocs and replaces it; it runs no
code of others while it builds, so this runs before it.)
"""

import inspect
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium as gym
import numpy as np
from pictures import ACTIONS, KWARGS, SEED

import qan_gym  # noqa: F401 (registers the environments)
from qan_gym.config import TaskConfig
from qan_gym.env import LearningRateEnv, MinibatchEnv
from qan_gym.tasks import TASKS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
REPORT = ROOT / "benchmarks" / "results" / "bench"
GAMES = {"learning-rate": LearningRateEnv, "minibatch": MinibatchEnv}
SHARED = "As `LearningRateEnv`."  # begins a section of one game that the other's docstring has


def sections(game: type) -> dict[str, str]:
    """The parts of a class docstring by their headings, Markdown; what stands before the first has the heading ""."""
    parts = re.split(r"^## (.+)$", inspect.getdoc(game) or "", flags=re.MULTILINE)
    return dict(zip(["", *parts[1::2]], (part.strip() for part in parts[::2]), strict=True))


def whole_sections(game: type) -> dict[str, str]:
    """Those, with what a game shares with `LearningRateEnv` in full."""
    shared, whole = sections(LearningRateEnv), {}
    for heading, text in sections(game).items():
        if not text.startswith(SHARED):
            whole[heading] = text
            continue
        whole["Reset Options"] = text.removeprefix(SHARED).strip()
        whole |= {name: shared[name] for name in heading.split(", ")}
    return whole


def meanings() -> dict[str, str]:
    """What is said beside each field of `TaskConfig`."""
    found: dict[str, str] = {}
    name = None
    for line in inspect.getsource(TaskConfig).splitlines():
        if match := re.match(r"    (\w+): .+?  # (.+)$", line):
            name, found[match[1]] = match[1], match[2]
        elif name and (match := re.match(r"    # (.+)$", line)):
            found[name] += " " + match[1]
        else:
            name = None
    return found


def made_data(folder: Path, env_id: str) -> dict[str, Any]:
    """Arguments that give the game 200 noise images of the right shape: enough to ask for its spaces."""
    shape = (32, 32, 3) if TASKS[env_id].dataset == "cifar10" else (28, 28)
    images, labels = np.random.default_rng(0).integers(0, 256, (200, *shape), np.uint8), np.arange(200) % 10
    path = folder / f"{env_id}.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    return {"dataset": str(path), "train_size": None, "batch_size": 10, "meta_momentum": None, "reference": None}


def page(env_id: str, folder: Path) -> str:
    """The page of an id, in the form of Gymnasium's own."""
    config = TASKS[env_id]
    env = gym.make(env_id, **made_data(folder, env_id))
    parts = whole_sections(GAMES[config.game])
    made = "".join(f", {name}={value!r}" for name, value in KWARGS.get(env_id, {}).items())
    shown = f"{ACTIONS[env_id]:,} random actions" if ACTIONS[env_id] else "An episode of random actions"
    lines = [
        f"# {env_id}",
        "",
        parts.pop(""),
        "",
        f"![{shown}](../pictures/{env_id}.webp)",
        "",
        f'{shown}, seed {SEED}: `gym.make("{env_id}"{made})`.',
        "",
        f"| Action space | `{env.action_space}` |",
        "| --- | --- |",
        f"| Observation space | `{env.observation_space}` |",
        f'| Import | `import qan_gym; gymnasium.make("{env_id}")` |',
        f"| Class | [`{GAMES[config.game].__name__}`][{GAMES[config.game].__module__}.{GAMES[config.game].__name__}] |",
        "",
    ]
    for heading, text in parts.items():
        lines += [f"## {heading}", "", text, ""]
        if heading == "Arguments":
            lines += ["## Settings", "", *settings(config), ""]
    return "\n".join(lines)


def linked(text: str) -> str:
    """With names of this package as links into the reference."""
    names = {game.__name__: f"{game.__module__}.{game.__name__}" for game in GAMES.values()}
    names["qan_gym.config.TaskConfig"] = "qan_gym.config.TaskConfig"
    return re.sub(r"(?<!\[)`([\w.]+)`", lambda it: f"[{it[0]}][{names[it[1]]}]" if it[1] in names else it[0], text)


def settings(config: TaskConfig) -> list[str]:
    """The record of an id as a table."""
    said = meanings()
    names = [field.name for field in fields(config) if field.name != "game"]
    rows = [f"| `{name}` | `{getattr(config, name)!r}` | {said[name]} |" for name in names]
    return ["Every one is a keyword argument of `gymnasium.make`.", "", "| | here | |", "| --- | --- | --- |", *rows]


def main() -> None:
    """Write what is written by code, then build."""
    with TemporaryDirectory() as folder:
        for env_id in TASKS:
            text = linked(page(env_id, Path(folder)))
            (DOCS / "environments" / f"{env_id}.md").write_text(text, encoding="utf-8")
    shutil.copytree(REPORT, DOCS / "report", dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.html"))
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    sys.exit(subprocess.run(command, cwd=ROOT).returncode)


if __name__ == "__main__":
    main()
