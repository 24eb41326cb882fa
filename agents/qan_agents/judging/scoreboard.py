"""A scoreboard: what controllers have reached by the same rules, one JSON file that rows can be added to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock
from pydantic import FiniteFloat, field_validator

from qan_agents.judging.contenders import Contender, Controlled
from qan_agents.judging.problems import Problem
from qan_agents.judging.results import FORMAT, digest, identity, key_of
from qan_agents.judging.statistics import Judgement, Scores
from qan_agents.records import Interval, Strict, read_record, short
from qan_gym.utils.files import require_writable, write_bytes


class Rules(Strict):
    """What all rows of a scoreboard have in common.

    Attributes:
        format: of the results.
        tasks_version: of the family.
        tier: "family" or "outer".
        networks: the kinds that the tasks were drawn from.
        problems, seeds: how many.
        tasks: digest of all tasks and images.
        rivals: the digest of each, by name.
    """

    format: int
    tasks_version: int
    tier: str
    networks: list[str]
    problems: int
    seeds: int
    tasks: str
    rivals: dict[str, str]


class Row(Strict):
    """What a controller has with an optimizer.

    Attributes:
        name, optimizer: of the controller.
        files: SHA-256 of each replicate's file.
        log_test_loss: mean.
        test_accuracy, diverged: means, 0 to 1.
        worst: the highest ln(test loss) of a problem.
        parts: mean ln(test loss) by the part of the problems.
        differences: of ln(test loss) to each rival.
    """

    name: str
    optimizer: str
    files: list[str]
    log_test_loss: FiniteFloat
    test_accuracy: FiniteFloat
    diverged: FiniteFloat
    worst: FiniteFloat
    parts: dict[str, FiniteFloat]
    differences: dict[str, Interval]


class Scoreboard(Strict):
    """The file."""

    rules: Rules
    rows: list[Row]

    @field_validator("rows")
    @classmethod
    def _once(cls, rows: list[Row]) -> list[Row]:
        keys = [(row.name, row.optimizer) for row in rows]
        if len(set(keys)) < len(keys):
            raise ValueError("a controller has two rows")
        return rows


def rules_of(
    tier: str, networks: Sequence[str], problems: Sequence[Problem], seeds: int, rivals: Sequence[Contender]
) -> Rules:
    """The rules of a judgement."""
    tasks = [key_of(problem, task.optimizer) for problem in problems for task in problem.tasks]
    return Rules(
        format=FORMAT,
        tasks_version=problems[0].tasks[0].VERSION,
        tier=tier,
        networks=list(networks),
        problems=len(problems),
        seeds=seeds,
        tasks=digest(tasks)[:16],
        rivals={one.name: digest(identity(one))[:16] for one in rivals},
    )


def rows_of(judgement: Judgement, controllers: Sequence[Controlled], rivals: Sequence[Contender]) -> list[Row]:
    """A row for each controller and optimizer."""
    names = {one.name for one in rivals}
    return [_row(judgement, one, controllers, names) for one in judgement.judged]


def _row(judgement: Judgement, one: Scores, controllers: Sequence[Controlled], names: set[str]) -> Row:
    means = {
        other.name: judgement.differences[one.title, other.title, "all"].mean
        for other in judgement.rivals
        if other.name in names
    }
    return Row(
        name=one.name,
        optimizer=one.optimizer,
        files=[c.digest for c in controllers if (c.name, c.optimizer) == (one.name, one.optimizer)],
        log_test_loss=short(one.log_loss.mean()),
        test_accuracy=short(one.accuracy.mean()),
        diverged=short(one.diverged.mean()),
        worst=short(one.log_loss.mean(axis=(0, 2)).max()),
        parts={name: short(one.log_loss[:, places].mean()) for name, places in judgement.parts.items()},
        differences={name: Interval.of(mean) for name, mean in means.items()},
    )


def read_scoreboard(path: Path) -> Scoreboard:
    """The file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or no scoreboard.
    """
    return read_record(Scoreboard, path, "a scoreboard of qan judge")


def check_scoreboard(path: Path, rules: Rules, controllers: Sequence[Controlled]) -> None:
    """Find out before any work whether rows can be added.

    Raises:
        ValueError: the file is damaged, has other rules, or another controller of the same name; or cannot be written.
    """
    require_writable(path.absolute().parent)
    if path.exists():
        board = read_scoreboard(path)
        _check_rules(path, board.rules, rules)
        for row in board.rows:
            files = [one.digest for one in controllers if (one.name, one.optimizer) == (row.name, row.optimizer)]
            if files and files != row.files:
                raise ValueError(f"{path}: there is another controller {row.name!r}: give this one another --label")


def _check_rules(path: Path, there: Rules, rules: Rules) -> None:
    for name in Rules.model_fields:
        one, other = getattr(there, name), getattr(rules, name)
        if one != other:
            about = f"{one!r} there, {other!r} here"
            if name == "rivals":
                names = sorted(key for key in {**one, **other} if one.get(key) != other.get(key))
                about = f"they differ in {', '.join(names)}"
            raise ValueError(f"{path}: judged by other rules: {name}: {about}; give another file to --scoreboard")


def add_rows(path: Path, rules: Rules, rows: Sequence[Row], controllers: Sequence[Controlled]) -> None:
    """Add rows, in the place of those of the same controllers; from the lowest mean of ln(test loss) to the highest.

    Raises:
        ValueError: see `check_scoreboard`.
    """
    with FileLock(path.with_name(f".{path.name}.lock")):
        check_scoreboard(path, rules, controllers)
        there = read_scoreboard(path).rows if path.exists() else []
        new = {(row.name, row.optimizer) for row in rows}
        kept = [row for row in there if (row.name, row.optimizer) not in new]
        board = Scoreboard(rules=rules, rows=sorted([*kept, *rows], key=lambda row: row.log_test_loss))
        write_bytes(path, (board.model_dump_json(indent=2) + "\n").encode())
