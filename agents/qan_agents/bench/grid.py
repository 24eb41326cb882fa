"""Grids: environments x controllers x budgets x seeds. A cell is one preparation of one controller and its evaluation.

evaluation_seeds: 10
environments:
  - {id: QanLR-MNIST5k-v0}
controllers:
  - constant
  - {name: dqn-native, label: without decay, settings: {env: {schedule: constant}}}
runs: [20]
seeds: [0, 1, 2]
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import gymnasium as gym

from qan_agents.bench.controllers import Preparation
from qan_agents.bench.preparation import controllers
from qan_agents.bench.tuning_task import task_config
from qan_gym.utils.validation import Rule, check_settings, either, integer, list_of, optional, setting, text


@dataclass(frozen=True)
class Cell:
    """One preparation of one controller, and its evaluation.

    Attributes:
        env, env_kwargs: the environment.
        controller: the name of its kind.
        label: its name in tables.
        settings: of the controller.
        runs: training runs to prepare on.
        seed: of the preparation.
        evaluation_seeds: how many unseen seeds, from 0, it is evaluated on.
        transfer: other environments, {"id": ..., "kwargs": ...}, that it is evaluated on too, as it was prepared.
    """

    env: str
    controller: str
    label: str
    runs: int
    seed: int
    evaluation_seeds: int
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    transfer: list[dict[str, Any]] = field(default_factory=list)

    @property
    def key(self) -> str:
        """The hash of all settings: cells of the same key are the same."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


# --- what a grid holds ----------------------------------------------------------------------------------------------

MAPPING = Rule(lambda value, _: isinstance(value, dict), lambda _: "a mapping")
CONTROLLER = Rule(
    lambda value, _: isinstance(value, str) and value in controllers(), lambda _: f"one of {', '.join(controllers())}"
)
Entry = str | Mapping[str, Any]  # a name, or a mapping with it


@dataclass(frozen=True)
class Block:
    """A grid without blocks."""

    environments: tuple[Entry, ...] = setting(
        (), list_of(either(text(), MAPPING), "environments"), "what is controlled"
    )
    controllers: tuple[Entry, ...] = setting((), list_of(either(text(), MAPPING), "controllers"), "what is compared")
    runs: tuple[int, ...] = setting((20,), list_of(integer(at_least=0), "whole numbers"), "budgets, in training runs")
    seeds: tuple[int, ...] = setting((0,), list_of(integer(at_least=0), "whole numbers"), "of the preparations")
    evaluation_seeds: int = setting(10, integer(at_least=1), "how many unseen seeds")

    def __post_init__(self) -> None:
        """Check every field."""
        check_settings(self)

    def cells(self) -> Iterator[Cell]:
        """Every combination."""
        for environment, controller in itertools.product(self.environments, self.controllers):
            where = _parse(EnvironmentEntry, "id", environment)
            who = _parse(ControllerEntry, "name", controller)
            unprepared = controllers()[who.name].preparation == Preparation.NONE
            budgets, seeds = ((0,), (0,)) if unprepared else (self.runs, self.seeds)
            for runs, seed in itertools.product(budgets, seeds):
                yield Cell(
                    env=where.id,
                    controller=who.name,
                    label=who.label or who.name,
                    runs=runs,
                    seed=seed,
                    evaluation_seeds=self.evaluation_seeds,
                    env_kwargs=dict(where.kwargs or {}),
                    settings=dict(who.settings or {}),
                    transfer=[dict(target) for target in where.transfer],
                )


@dataclass(frozen=True)
class TargetEntry:
    """An environment to evaluate on."""

    id: str = setting("", text(), "ID or MODULE:ID; the module may register controllers and schedules too")
    kwargs: Mapping[str, Any] | None = setting(None, optional(MAPPING), "keyword arguments of the environment")

    def __post_init__(self) -> None:
        """Check every field, and the arguments of the environment.

        Raises:
            ValueError: the id or an argument is wrong.
        """
        check_settings(self)
        try:
            task_config(self.id, dict(self.kwargs or {}))
        except gym.error.Error as error:
            raise ValueError(f"unknown environment {self.id!r}: {error}") from error


@dataclass(frozen=True)
class EnvironmentEntry(TargetEntry):
    """An environment to prepare for and to evaluate on."""

    transfer: tuple[Mapping[str, Any], ...] = setting(
        (), Rule(lambda value, _: isinstance(value, list | tuple), lambda _: "a list of environments"), "to evaluate on"
    )

    def __post_init__(self) -> None:
        """Check every field, also of the environments to transfer to."""
        super().__post_init__()
        for target in self.transfer:
            _parse(TargetEntry, "id", target)


@dataclass(frozen=True)
class ControllerEntry:
    """A controller to prepare."""

    name: str = setting("", CONTROLLER, "of its kind")
    label: str | None = setting(None, optional(text()), "its name in tables; None: that of its kind")
    settings: Mapping[str, Any] | None = setting(None, optional(MAPPING), "of the controller")

    def __post_init__(self) -> None:
        """Check every field."""
        check_settings(self)


Parsed = TypeVar("Parsed")


def _parse(kind: type[Parsed], name: str, entry: Entry) -> Parsed:
    """An entry of a grid; where it is no mapping, it is the value of `name`."""
    values = entry if isinstance(entry, Mapping) else {name: entry}
    known = [one.name for one in fields(kind)]  # type: ignore[arg-type]
    unknown = [str(key) for key in values if key not in known]
    if unknown:
        raise ValueError(f"unknown in a grid: {', '.join(unknown)}; there are {', '.join(known)}")
    return kind(**values)


# --- reading --------------------------------------------------------------------------------------------------------


def read_grid(path: Path) -> dict[str, Any]:
    """A grid from YAML.

    Raises:
        ValueError: the file is missing or not YAML.
    """
    import yaml

    try:
        grid = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: missing, or not YAML ({error})") from error
    if not isinstance(grid, dict):
        raise ValueError(f"{path}: a grid is a mapping of {', '.join(one.name for one in fields(Block))}, blocks")
    return grid


def cells_of(grid: dict[str, Any]) -> list[Cell]:
    """All cells of a grid, checked, those with small budgets first.

    Args:
        grid: the fields of `Block`; or `blocks`, a list of mappings of them, with what the blocks share beside it.

    Raises:
        ValueError: what is wrong, before anything runs.
    """
    shared = {name: value for name, value in grid.items() if name != "blocks"}
    blocks = grid.get("blocks", [{}])
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        raise ValueError(f"blocks must be a list of mappings, not {blocks!r}")
    cells: dict[str, Cell] = {}
    for block in blocks:
        for cell in _parse(Block, "environments", {**shared, **block}).cells():
            cells.setdefault(cell.key, cell)
    if not cells:
        raise ValueError("the grid is empty")
    return sorted(cells.values(), key=lambda cell: cell.runs)
