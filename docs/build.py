"""Build the site: python docs/build.py; warnings are errors.

Writes the pages that come from code (the environments, from their docstrings and configurations; observation features;
schedules; settings), and copies the reports of the studies. Then Zensical builds all of docs/ into site/. (Zensical is
by the makers of Material for MkDocs and replaces it. It has no plugins that run code, so this script runs before it.)
"""

import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium as gym
import numpy as np
from pictures import ACTIONS, KWARGS, SEED

from qan_agents.bench.scoreboard import Entry, read_scoreboard
from qan_agents.dqn import DQNConfig
from qan_agents.ppo import PPOConfig
from qan_agents.records import Interval
from qan_gym.core.factory import arguments_of
from qan_gym.core.features import FEATURES
from qan_gym.core.observation import ALWAYS_MEASURED, SCORE_LINE
from qan_gym.env import LearningRateEnv, QanEnv
from qan_gym.registration import ENTRY_POINTS
from qan_gym.schedules import SCHEDULES, Schedule
from qan_gym.tasks import TASKS
from qan_gym.utils.validation import describe_settings

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
STUDIES = ("controllers_v1", "controllers", "agent_on_one_cycle", "more_test_images")  # those with a report
# A picture below the moving one: its file and what it shows.
MORE_PICTURES = {
    "QanMinibatch-LongTail-v0": (
        "long-tail-classes.png",
        "The shares of the classes in the mini-batches, and the validation loss of each class, over an episode: "
        "shuffled SGD, and the controller that ships. A task of the training split, with 138 images of the largest "
        "class and 3 of the smallest; of two classes half of the images show any digit.",
    )
}
SHARED = "As `LearningRateEnv`."  # begins a section that is the same as that of `LearningRateEnv`


# --- the pages of the environments ----------------------------------------------------------------------------------


def env_class(env_id: str) -> type[QanEnv]:
    """The class of a registered id."""
    module, _, name = ENTRY_POINTS[env_id].partition(":")
    found: type[QanEnv] = getattr(import_module(module), name)
    return found


def sections(kind: type) -> dict[str, str]:
    """The parts of a class docstring by their headings, Markdown; the part before the first has the heading ""."""
    parts = re.split(r"^## (.+)$", inspect.getdoc(kind) or "", flags=re.MULTILINE)
    return dict(zip(["", *parts[1::2]], (part.strip() for part in parts[::2]), strict=True))


def whole_sections(kind: type) -> dict[str, str]:
    """The same, with the sections that refer to `LearningRateEnv` written out."""
    shared, whole = sections(LearningRateEnv), {}
    for heading, text in sections(kind).items():
        if not text.startswith(SHARED):
            whole[heading] = text
            continue
        whole["Reset Options"] = text.removeprefix(SHARED).strip()
        whole |= {name: shared[name] for name in heading.split(", ")}
    return whole


def generated_data(folder: Path, env_id: str) -> dict[str, Any]:
    """Arguments that give the game 200 noise images of the right shape, which is enough to know its spaces.

    None where the images are in the package.
    """
    if TASKS[env_id].dataset == "mnist5k":
        return {}
    shape = (32, 32, 3) if TASKS[env_id].dataset == "cifar10" else (28, 28)
    images, labels = np.random.default_rng(0).integers(0, 256, (200, *shape), np.uint8), np.arange(200) % 10
    path = folder / f"{env_id}.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    return {"dataset": str(path), "train_size": None, "batch_size": 10, "meta_momentum": None, "reference": None}


def env_page(env_id: str, folder: Path) -> str:
    """The page of an id, in the form of Gymnasium's own."""
    kind = env_class(env_id)
    env = gym.make(env_id, **generated_data(folder, env_id))
    parts = whole_sections(kind)
    arguments = "".join(f", {name}={value!r}" for name, value in KWARGS.get(env_id, {}).items())
    shown = f"{ACTIONS[env_id]:,} random actions" if ACTIONS[env_id] else "An episode of random actions"
    lines = [
        f"# {env_id}",
        "",
        parts.pop(""),
        "",
        f"![{shown}](../pictures/{env_id}.webp)",
        "",
        f'{shown}, seed {SEED}: `gym.make("{env_id}"{arguments})`.',
        "",
        *more_picture(env_id),
        f"| Action space | `{env.action_space}` |",
        "| --- | --- |",
        f"| Observation space | `{env.observation_space}` |",
        f'| Import | `import qan_gym; gymnasium.make("{env_id}")` |',
        f"| Class | [`{kind.__name__}`][{kind.__module__}.{kind.__name__}] |",
        "",
    ]
    for heading, text in parts.items():
        lines += [f"## {heading}", "", text, ""]
        if heading == "Arguments":
            lines += ["## Settings", "", "Every one is a keyword argument of `gymnasium.make`.", ""]
            lines += [*arguments_table(env_id), ""]
    return "\n".join(lines)


def more_picture(env_id: str) -> list[str]:
    """The lines of the picture below the moving one; none where there is none."""
    if env_id not in MORE_PICTURES:
        return []
    name, meaning = MORE_PICTURES[env_id]
    return [f"![{meaning.partition(':')[0]}](../pictures/{name})", "", meaning, ""]


def linked(text: str) -> str:
    """Names of this package in backticks become links into the reference."""
    kinds = {env_class(env_id) for env_id in ENTRY_POINTS}
    names = {kind.__name__: f"{kind.__module__}.{kind.__name__}" for kind in kinds}
    names["qan_gym.config.TaskConfig"] = "qan_gym.config.TaskConfig"
    return re.sub(r"(?<!\[)`([\w.]+)`", lambda it: f"[{it[0]}][{names[it[1]]}]" if it[1] in names else it[0], text)


# --- tables ---------------------------------------------------------------------------------------------------------


def table(headings: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (headings, ["---"] * len(headings), *rows)]


def settings_table(kind: type, defaults: Mapping[str, Any], heading: str) -> list[str]:
    """The fields of a configuration: name, value, what is accepted, meaning."""
    rows = [
        [f"`{name}`", f"`{defaults[name]!r}`", escaped(accepted), escaped(meaning)]
        for name, (accepted, meaning) in describe_settings(kind).items()
    ]
    return table(["name", heading, "accepted", "meaning"], rows)


def arguments_table(env_id: str) -> list[str]:
    """The arguments of an id: name, value, what is accepted, meaning."""
    rows = [
        [f"`{name}`", f"`{argument.value!r}`", escaped(argument.accepted), escaped(argument.meaning)]
        for name, argument in arguments_of(env_id).items()
    ]
    return table(["name", "here", "accepted", "meaning"], rows)


def escaped(text: str) -> str:
    """Plain text as Markdown in a cell of a table."""
    return re.sub(r"([|*<\[\]])", r"\\\1", text)


def features_page() -> str:
    """The observations and the registered features."""
    places = {name: str(place) for place, name in enumerate(SCORE_LINE)}
    validated = {name: f"{places[name]}, with `validate_every`; else 0" for name in SCORE_LINE[ALWAYS_MEASURED:]}
    places |= validated
    rows = [[f"`{name}`", places.get(name, ""), summary(one.function)] for name, one in FEATURES.items()]
    return "\n".join(
        [
            "# Observations",
            "",
            "| `observation=` | what is observed |",
            "| --- | --- |",
            '| `"screen"` (default) | a row per filter of the network, then the score line |',
            '| `"filters"` | the filters alone, as in the paper |',
            '| `"statistics"` | [what can be measured of any training](statistics.md), one number each |',
            '| `"classes"` | how each class does: the features for each class, and five of the training |',
            '| a list, as `["log_learning_rate", "budget_used"]` | these features alone |',
            "",
            "Every observation is a flat `Box` of float32, kept within ±10; `observation.reshape("
            "env.unwrapped.screen_shape)` gives the rows of a screen.",
            "",
            "A *feature* is one number per run, or one for each class, registered under a name. The *score line* has "
            "seven of them in fixed places, then those of the game, then zeros. `qan_gym.register_feature` adds one "
            "([example](../tutorials/your-own.md#observation)).",
            "",
            "## Features",
            "",
            *table(["name", "place on the score line", "meaning"], rows),
            "",
        ]
    )


def schedules_page() -> str:
    """The registered schedules."""
    rows = [
        [f"`{name}`", summary(one.shape), values(one.settings), ranges(one.search), f"{one.peak:g}"]
        for name, one in SCHEDULES.items()
    ]
    return "\n".join(
        [
            "# Schedules",
            "",
            "A schedule is the learning rate over the budget, as a fraction of the highest one. One definition serves "
            "three uses:",
            "",
            "- as the base schedule under the actions, `gym.make(..., schedule=NAME)`: it multiplies the learning rate "
            "that the actions have set;",
            "- as a fixed policy, which an agent is compared with;",
            "- as a controller of `qan bench`, whose highest learning rate and settings are tuned.",
            "",
            *table(["name", "shape", "settings", "tuned over", "highest learning rate, over the one set"], rows),
            "",
            f"See [`Schedule`][{Schedule.__module__}.Schedule]. `qan_gym.register_schedule` adds one "
            "([example](../tutorials/your-own.md#schedule)).",
            "",
        ]
    )


def settings_page(agent: str, config: type[Any]) -> str:
    """The settings of a bundled agent, which are the fields of a dataclass."""
    defaults = {field.name: field.default for field in fields(config)}
    lines = [
        f"# Settings of the bundled {agent}",
        "",
        f"The fields of [`{config.__name__}`][{config.__module__}.{config.__name__}]. With `qan train` each is an "
        "argument of `--agent-set`.",
        "",
        *settings_table(config, defaults, "default"),
        "",
    ]
    return "\n".join(lines)


def summary(function: Callable[..., Any]) -> str:
    """The first paragraph of a docstring."""
    return " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())


def values(settings: Mapping[str, float]) -> str:
    """Settings and their values, in a cell of a table."""
    return ", ".join(f"`{name}` = {value:g}" for name, value in settings.items())


def ranges(search: Mapping[str, tuple[float, float]]) -> str:
    """Settings and the ranges that are searched, in a cell of a table; a range of one value is a value."""
    parts = (f"= {low:g}" if low == high else f"in {low:g} to {high:g}" for low, high in search.values())
    return ", ".join(f"`{name}` {part}" for name, part in zip(search, parts, strict=True))


SCOREBOARD = """# Scoreboard

What controllers reached in the benches whose results are kept, compared [by these rules](protocol.md). `qan bench GRID
--submit docs/scoreboard.json` adds the rows of a bench; this page is made from that file.

- The **score** is 0 for `constant` and 1 for the best schedule that was tuned on 100 trainings, of those in the same
  bench the one with the lowest validation loss: (test loss of `constant` - that of the controller) / (test loss of
  `constant` - that of the schedule), all of them means over the same unseen seeds. A bench without such a schedule
  gives no score, and so does one in which the schedule is not ahead of `constant` beyond its 95 % interval.
- The **budget** is the number of trainings that a controller was prepared on. Intervals are 95 %; preparations and
  evaluation seeds are resampled. Of a single preparation they do not say how another would differ.
- Rows are compared within a table: the same environment and the same seeds."""


def scoreboard_page() -> str:
    """The scoreboard, from its file; a table per environment, those of earlier versions of games last, and folded."""
    tables: dict[tuple[str, ...], list[Entry]] = {}
    for row in read_scoreboard(DOCS / "scoreboard.json").rows:
        where = "" if row.identity == row.prepared_on else ", prepared on another environment"
        settings = "" if row.arguments == "{}" else f" `{row.arguments}`"
        seeds = f"{row.evaluation_seeds} seeds"
        tables.setdefault((f"{row.game}{settings}{where}, {seeds}", row.identity, row.prepared_on), []).append(row)
    lines, earlier = [SCOREBOARD], []
    for (title, *_), rows in tables.items():
        head = ["controller", "budget", "score", "test loss", "minus constant", "preparations", "commit", "hardware"]
        cells = [
            [
                row.label,
                str(row.budget or "-"),
                interval(row.score, 2),
                f"{row.test_loss:.4f}",
                interval(row.minus_constant, 4),
                str(row.preparations) if row.budget else "-",
                ", ".join(row.commits) or "not recorded",
                ", ".join(row.hardware) or "not recorded",
            ]
            for row in rows
        ]
        ones = {row.score_of_one for row in rows if row.score_of_one}
        shown = ["", *(f"Score 1: {one}." for one in ones), "", *table(head, cells)]
        if rows[0].game in ENTRY_POINTS:
            lines += ["", f"## {title}", *shown]
        else:
            summary = f"<summary>{title.replace('`', '')}</summary>"
            earlier += ["", '<details markdown="1">', summary, *shown, "", "</details>"]
    if earlier:
        lines += ["", "## Earlier versions of the games", *earlier]
    return "\n".join([*lines, ""])


def interval(found: Interval | None, digits: int) -> str:
    """A number and its interval, in a cell of a table."""
    if found is None:
        return ""
    return f"{found.value:+.{digits}f} ({found.low:+.{digits}f} to {found.high:+.{digits}f})"


# --- the site -------------------------------------------------------------------------------------------------------


def main() -> None:
    """Write the pages that come from code, then build."""
    with TemporaryDirectory() as folder:
        pages = {f"environments/{env_id}.md": linked(env_page(env_id, Path(folder))) for env_id in ENTRY_POINTS}
    pages |= {"environments/observations.md": features_page(), "environments/schedules.md": schedules_page()}
    pages["scoreboard.md"] = scoreboard_page()
    pages["reference/dqn-settings.md"] = settings_page("DQN", DQNConfig)
    pages["reference/ppo-settings.md"] = settings_page("PPO", PPOConfig)
    for name, text in pages.items():
        (DOCS / name).write_text(text, encoding="utf-8")
    for study in STUDIES:
        results = ROOT / "studies" / study / "results"
        shutil.copytree(results, DOCS / "report" / study, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.html"))
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    sys.exit(subprocess.run(command, cwd=ROOT).returncode)


if __name__ == "__main__":
    main()
