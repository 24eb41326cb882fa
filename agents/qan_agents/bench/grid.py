"""Grids: environments x controllers x budgets x seeds. A cell is one preparation of one controller and its evaluation.

evaluation_seeds: 10
environments:
  - {id: QanLR-MNIST5k-v1}
controllers:
  - constant
  - {name: dqn-native, label: without decay, settings: {env: {schedule: constant}}}
runs: [20]
seeds: [0, 1, 2]
"""

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, ValidationError, field_validator
from pydantic import model_validator as validator
from pydantic_core import ErrorDetails

from qan_agents import budgets
from qan_agents.bench.controllers import Preparation
from qan_agents.bench.preparation import check, controllers
from qan_agents.bench.results import require_same_controller
from qan_agents.bench.tuning_task import TuningTask, require_controllable
from qan_agents.seeds import LARGEST_SEED, UNSEEN_BELOW
from qan_gym.utils.files import reading
from qan_gym.utils.names import instead_of, unknown_name

LARGEST_GRID = 100_000  # values


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
    def who(self) -> tuple[str, str, str]:
        """Label, kind of controller, and settings as JSON, see `require_same_controller`."""
        return self.label, self.controller, json.dumps(self.settings, sort_keys=True)

    @property
    def task(self) -> TuningTask:
        """What the controller is prepared for."""
        return TuningTask(self.env, self.env_kwargs, self.runs, self.seed)

    @property
    def targets(self) -> list[TuningTask]:
        """What the controller is evaluated on: the task itself, and those to transfer to."""
        return [self.task, *(TuningTask(one["id"], one["kwargs"], 0, 0) for one in self.transfer)]

    @cached_property
    def identities(self) -> list[str]:
        """The identity of each target, as it was when this was first asked for; a copy in another process has the same.

        Raises:
            ValueError, FileNotFoundError: see `TuningTask.identity`.
        """
        return [target.identity for target in self.targets]

    @cached_property
    def key(self) -> str:
        """The hash of the settings and of the content of the data: cells of the same key have the same results.

        How many seeds a cell is evaluated on is no part of it: its results on the first ones are the same.
        """
        try:
            where: list[str | dict[str, Any]] = list(self.identities)
        except (ValueError, FileNotFoundError):  # a cell that will fail
            where = [{"env": self.env, "kwargs": self.env_kwargs}, *self.transfer]
        described = [where, self.controller, self.label, self.settings, self.runs, self.seed]
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


# --- what a grid holds ----------------------------------------------------------------------------------------------

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
Label = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100)]
Arguments = dict[str, JsonValue]


class Entry(BaseModel):
    """A part of a grid; keys that it does not have are errors."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @field_validator("kwargs", "settings", mode="before", check_fields=False)
    @classmethod
    def _none(cls, value: Any) -> Any:
        """A key without a value is an empty mapping."""
        return {} if value is None else value


class Target(Entry):
    """An environment to evaluate on: its id, or a mapping."""

    id: Name  # ID or MODULE:ID; the module may register controllers and schedules too
    kwargs: Arguments = {}

    @validator(mode="before")
    @classmethod
    def _by_id(cls, value: Any) -> Any:
        return {"id": value} if isinstance(value, str) else value

    @validator(mode="after")
    def _check(self) -> "Target":
        try:
            require_controllable(TuningTask(self.id, self.kwargs, 0, 0).config)
        except gym.error.Error as error:
            raise ValueError(f"unknown environment {self.id!r}: {error}") from error
        return self


class Environment(Target):
    """An environment to prepare for and to evaluate on."""

    transfer: list[Target] = []


class Controller(Entry):
    """A controller to prepare: its name, or a mapping."""

    name: Name
    label: Label | None = None  # in tables; None: the name
    settings: Arguments = {}

    @validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in controllers():
            raise ValueError(unknown_name("controller", name, controllers()))
        return name

    @field_validator("label")
    @classmethod
    def _printable(cls, label: str | None) -> str | None:
        if label is not None and not label.isprintable():
            raise ValueError(f"must be one line of printable characters, not {label!r}")
        return label


class Block(Entry):
    """A grid without blocks."""

    environments: list[Environment] = Field(min_length=1)
    controllers: list[Controller] = Field(min_length=1)
    runs: list[Annotated[int, Field(ge=1, lt=2**31)]] = Field([20], min_length=1)  # budgets, in training runs
    seeds: list[Annotated[int, Field(ge=0, le=LARGEST_SEED)]] = Field([0], min_length=1)  # of the preparations
    evaluation_seeds: int = Field(10, ge=1, lt=UNSEEN_BELOW)  # how many unseen seeds

    def cells(self) -> Iterator[Cell]:
        """Every combination."""
        for environment, controller in itertools.product(self.environments, self.controllers):
            unprepared = controllers()[controller.name].preparation == Preparation.NONE
            budgets, seeds = ([0], [0]) if unprepared else (self.runs, self.seeds)
            for runs, seed in itertools.product(budgets, seeds):
                yield Cell(
                    env=environment.id,
                    controller=controller.name,
                    label=controller.label or controller.name,
                    runs=runs,
                    seed=seed,
                    evaluation_seeds=self.evaluation_seeds,
                    env_kwargs=environment.kwargs,
                    settings=controller.settings,
                    transfer=[target.model_dump() for target in environment.transfer],
                )


# --- what is wrong with a grid --------------------------------------------------------------------------------------

# Pydantic's kinds of errors, in the words of this project. {}: what pydantic knows about the limit.
WORDS = {
    "missing": "is missing",
    "model_type": "must be a name or a mapping",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "string_type": "must be text (in quotes, where it looks like a number, a date or a truth value)",
    "string_unicode": "must be text of Unicode characters",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "too_short": "must be a list of at least {min_length}",
    "invalid_key": "must have text as keys (in quotes, where one looks like a number, a date or a truth value)",
    "invalid-json-value": "must be text, a number, a truth value, empty, or a list or mapping of those",
}


def _explain(error: ErrorDetails, known: dict[str, list[str]], inside: str) -> str:
    """One sentence about what pydantic found."""
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    place = list(error["loc"])
    if place[-1:] == ["[key]"]:
        kind, place = "invalid_key", place[:-2]
    for arguments in {"kwargs", "settings"}.intersection(place):
        place = place[: place.index(arguments) + 2]  # pydantic's path inside a value has names of types in it
    if kind == "extra_forbidden":
        *parents, name = place
        owner = next((str(part) for part in reversed(parents) if isinstance(part, str)), "")
        return f"{_path(inside, place)} is unknown in a grid{instead_of(name, known[owner])}"
    if kind == "value_error":
        text = str(context["error"])
        return f"{_path(inside, place)}{' ' if text.startswith('must be') else ': '}{text}"
    if kind == "dict_type" and isinstance(error["loc"][-1], int):
        kind = "model_type"
    words = WORDS.get(kind, error["msg"]).format(**context)
    found = "" if kind == "missing" else f", not {_short(value)}"
    return f"{_path(inside, place)} {words}{found}"


def _path(inside: str, place: list[int | str]) -> str:
    """`blocks[0].controllers[1].name`."""
    text = inside
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "a grid"


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


# --- reading --------------------------------------------------------------------------------------------------------


def read_grid(path: Path) -> dict[str, Any]:
    """A grid from YAML 1.2. Nothing in it is executed, and a key that is there twice is an error.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not YAML, or holds no mapping.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError

    with reading(path, "YAML as a grid may have"):
        try:
            grid = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8-sig"))
        except MarkedYAMLError as error:
            line = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
            raise ValueError(f"{line}{error.problem or error.context}") from error
    if not isinstance(grid, dict):
        raise ValueError(f"{path}: a grid is a mapping of {', '.join(Block.model_fields)}, blocks")
    return grid


def cells_of(grid: dict[str, Any]) -> list[Cell]:
    """All cells of a grid, checked, those with small budgets first.

    Args:
        grid: the fields of `Block`; or `blocks`, a list of mappings of them, with what the blocks share beside it.

    Raises:
        ValueError: what is wrong, before anything runs.
    """
    _require_finite(grid)
    shared = {name: value for name, value in grid.items() if name != "blocks"}
    cells: dict[str, Cell] = {}
    for inside, block in _blocks(grid, shared):
        for cell in _parse(block, inside).cells():
            try:
                for target in cell.targets:
                    check(cell.controller, replace(target, runs=cell.runs), cell.settings)
            except ValueError as error:
                raise ValueError(f"controller {cell.label!r} in {cell.env}: {error}") from error
            name = json.dumps([cell.env, cell.env_kwargs, cell.transfer, *cell.who, cell.runs, cell.seed])
            there = cells.get(name, cell)
            cells[name] = max(there, cell, key=lambda one: one.evaluation_seeds)
    found = sorted(cells.values(), key=lambda cell: cell.runs)
    _require_one_controller_per_label(found)
    return found


def cautions(cells: list[Cell]) -> list[str]:
    """Warnings of budgets that are too small to tell anything."""
    if not cells:
        return []
    prepared = {cell.runs for cell in cells if cell.runs > 0}
    return budgets.cautions(prepared, min(cell.evaluation_seeds for cell in cells))


def _require_finite(grid: dict[str, Any]) -> None:
    """Refuse a grid that contains itself, or grows without bounds where its aliases are written out.

    Raises:
        ValueError: it does.
    """
    left: list[Any] = [grid]
    for _ in range(LARGEST_GRID):
        if not left:
            return
        value = left.pop()
        left += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    raise ValueError(f"a grid has at most {LARGEST_GRID:,} values: does one of its aliases contain itself?")


def _blocks(grid: dict[str, Any], shared: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Where each block stands in the grid, and what it holds together with what is shared."""
    if "blocks" not in grid:
        return [("", shared)]
    blocks = grid["blocks"]
    if not isinstance(blocks, list) or not blocks:
        raise ValueError(f"blocks must be a list of at least 1 mapping, not {_short(blocks)}")
    for number, block in enumerate(blocks):
        if not isinstance(block, dict):
            raise ValueError(f"blocks[{number}] must be a mapping, not {_short(block)}")
    return [(f"blocks[{number}]", {**shared, **block}) for number, block in enumerate(blocks)]


def _parse(block: dict[str, Any], inside: str) -> Block:
    parts: dict[str, type[Entry]] = {
        "environments": Environment,
        "transfer": Target,
        "controllers": Controller,
    }
    known = {name: list(kind.model_fields) for name, kind in parts.items()}
    known[""] = [*Block.model_fields, "blocks"]
    try:
        return Block.model_validate(block)
    except ValidationError as error:
        raise ValueError(_explain(error.errors()[0], known, inside)) from error


def _require_one_controller_per_label(cells: list[Cell]) -> None:
    """Refuse that one name in the table of an environment stands for two controllers.

    Raises:
        ValueError: it does.
    """
    first: dict[tuple[str, str, str], tuple[str, str, str]] = {}
    for cell in cells:
        where = (cell.env, json.dumps(cell.env_kwargs, sort_keys=True), cell.label)
        require_same_controller(first.setdefault(where, cell.who), cell.who)
