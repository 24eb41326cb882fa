"""A scoreboard: the scores of controllers in benches, one JSON file that rows are added to.

The score of a controller is 0 where it has the test loss of `constant`, and 1 where it has that of the best schedule
that was tuned on 100 trainings, in the same bench, on the same unseen seeds.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock
from pydantic import FiniteFloat, field_validator

from qan_agents.bench import statistics
from qan_agents.bench.results import Row, read_table
from qan_agents.bench.statistics import BASELINE, ControllerScores, Estimate
from qan_agents.records import Interval, Strict, read_record, short
from qan_gym.schedules import SCHEDULES
from qan_gym.utils.files import require_writable, write_bytes

TUNED_ON = 100  # trainings, of the schedule that has the score 1
TUNED = ("best-constant", "one-cycle-wide", *SCHEDULES)  # schedules, by the names of their controllers


class Entry(Strict):
    """What a controller reached with a budget in a bench.

    Attributes:
        game, arguments, identity: of the environment, see `TuningTask.identity`.
        prepared_on: the identity of the environment that it was prepared on.
        controller, label, settings: its kind, its name, and its settings as JSON.
        budget: training runs that it was prepared on.
        preparations, evaluation_seeds: how many.
        test_loss: mean, nats.
        minus_constant: the difference in test loss; None: the row is that of `constant`.
        score: see the module; None where the bench has no such schedule, or where that is not ahead of `constant`.
        score_of_one: the schedule that has the score 1, with its budget.
        commits, hardware: of the code and the machines that computed it; empty where the results do not say.
    """

    game: str
    arguments: str
    identity: str
    prepared_on: str
    controller: str
    label: str
    settings: str
    budget: int
    preparations: int
    evaluation_seeds: int
    test_loss: FiniteFloat
    minus_constant: Interval | None
    score: Interval | None
    score_of_one: str | None
    commits: list[str]
    hardware: list[str]

    @property
    def key(self) -> tuple[object, ...]:
        """What two rows of a scoreboard may not have in common."""
        return self.identity, self.prepared_on, self.label, self.settings, self.budget, self.evaluation_seeds


class Scoreboard(Strict):
    """The file."""

    rows: list[Entry]

    @field_validator("rows")
    @classmethod
    def _once(cls, rows: list[Entry]) -> list[Entry]:
        if len({row.key for row in rows}) < len(rows):
            raise ValueError("a controller has two rows")
        return rows


def read_scoreboard(path: Path) -> Scoreboard:
    """The file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or no scoreboard.
    """
    return read_record(Scoreboard, path, "a scoreboard of qan bench")


def check_scoreboard(path: Path) -> None:
    """Find out before any work whether rows can be added.

    Raises:
        ValueError: the file is damaged, no scoreboard, or cannot be written.
    """
    require_writable(path.absolute().parent)
    if path.exists():
        read_scoreboard(path)


def submit(results: Path, path: Path) -> list[Entry]:
    """Add the rows of a bench to a scoreboard, in the place of those of the same controllers; returns them.

    Raises:
        ValueError: see `entries_of` and `check_scoreboard`.
    """
    rows = entries_of(results)
    with FileLock(path.absolute().with_name(f".{path.name}.lock")):
        check_scoreboard(path)
        there = read_scoreboard(path).rows if path.exists() else []
        new = {row.key for row in rows}
        whole = [*(row for row in there if row.key not in new), *rows]
        whole.sort(key=lambda row: (row.game, row.identity, row.prepared_on, row.evaluation_seeds, row.test_loss))
        write_bytes(path, (Scoreboard(rows=whole).model_dump_json(indent=1) + "\n").encode())
    return rows


def entries_of(results: Path) -> list[Entry]:
    """The rows of a bench, for each environment that has its `constant`.

    Raises:
        ValueError: the results are damaged, or nothing is finished with which others can be compared.
    """
    done = [row for row in read_table(results).to_pylist() if row["status"] == "done"]
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in done:
        groups.setdefault((row["environment_identity"], row["prepared_on_identity"]), []).append(row)
    entries = []
    for (identity, _), rows in groups.items():
        constants = [
            row
            for row in done
            if row["environment_identity"] == identity and row["label"] == BASELINE and row["runs"] == 0
        ]
        seeds = statistics.common_seeds([*rows, *constants])
        if constants and seeds:
            entries += _entries(rows, constants, seeds)
    if not entries:
        raise ValueError(f"{results}: no finished cell of {BASELINE!r}, with which the others would be compared")
    return entries


def _entries(rows: Sequence[Row], constants: Sequence[Row], seeds: Sequence[int]) -> list[Entry]:
    (constant,) = statistics.controller_scores(constants, seeds)
    everyone = statistics.controller_scores(rows, seeds)
    tuned = [one for one in everyone if one.runs == TUNED_ON and one.controller in TUNED]
    best = min(tuned, key=lambda one: one.validation_loss.mean(), default=None)  # nothing is chosen by test loss
    entries = []
    for one in everyone:
        mine = [row for row in rows if (row["label"], row["runs"]) == (one.label, one.runs)]
        versions = [json.loads(row["versions"]) for row in mine]
        is_constant = (one.label, one.runs) == (BASELINE, 0)
        score = None if best is None else normalised_score(one, constant, best)
        entries.append(
            Entry(
                game=mine[0]["environment"],
                arguments=mine[0]["environment_kwargs"],
                identity=mine[0]["environment_identity"],
                prepared_on=mine[0]["prepared_on_identity"],
                controller=one.controller,
                label=one.label,
                settings=mine[0]["settings"],
                budget=one.runs,
                preparations=len(one.seeds),
                evaluation_seeds=len(one.evaluation_seeds),
                test_loss=short(one.test_loss.mean()),
                minus_constant=None
                if is_constant
                else Interval.of(statistics.difference(one.test_loss, constant.test_loss)),
                score=None if score is None else Interval.of(score),
                score_of_one=None if score is None or best is None else best.name,
                commits=sorted({found["commit"] for found in versions if found.get("commit")}),
                hardware=sorted({found["hardware"] for found in versions if found.get("hardware")}),
            )
        )
    return entries


def normalised_score(one: ControllerScores, constant: ControllerScores, best: ControllerScores) -> Estimate | None:
    """(constant - one) / (constant - best) of the mean test losses; the interval by the pigeonhole bootstrap.

    Evaluation seeds, and the preparations of each of the three, are resampled. None where the interval of
    constant - best contains 0: then there is nothing to measure by.
    """
    rng = np.random.default_rng(0)
    draws = np.empty((statistics.REPETITIONS, 2))
    for number in range(len(draws)):
        seeds = rng.integers(constant.test_loss.shape[1], size=constant.test_loss.shape[1])
        # What is the same controller is resampled as one.
        losses: dict[str, float] = {}
        for some in (constant, best, one):
            if some.name not in losses:
                preparations = rng.integers(len(some.test_loss), size=len(some.test_loss))
                losses[some.name] = float(some.test_loss[np.ix_(preparations, seeds)].mean())
        draws[number] = losses[constant.name] - losses[one.name], losses[constant.name] - losses[best.name]
    if np.percentile(draws[:, 1], 2.5) <= 0:
        return None
    low, high = np.percentile(draws[:, 0] / draws[:, 1], [2.5, 97.5])
    gain, whole = (float(constant.test_loss.mean() - some.test_loss.mean()) for some in (one, best))
    if not math.isfinite(low + high):
        return None
    return Estimate(gain / whole, float(low), float(high))
