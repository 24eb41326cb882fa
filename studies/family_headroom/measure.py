"""Trainings of tasks of the family over a grid of learning rates, under three schedules.

    python -m studies.family_headroom.measure --network mlp --optimizer sgd --split test --tasks 200
    python -m studies.family_headroom.measure --network cnn --optimizer sgd --split test --tasks 4 --factor 3

Every task is trained once at each learning rate of the grid under each schedule; the losses go to
`results/NETWORK-OPTIMIZER-SPLIT.csv.gz`, a task at a time. The same command goes on where a former one has stopped.
"""

import argparse
import csv
import gzip
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from qan_agents.controllers.trainings import Plan, play_schedules
from qan_gym.families.learning_rate import NETWORKS, OPTIMIZERS, draw_task
from qan_gym.families.task import Task
from qan_gym.utils.files import write_aside

RESULTS = Path(__file__).parent / "results"
SHAPES = ("constant", "linear", "one-cycle")
GRID = {"sgd": (3e-4, 30.0), "adamw": (1e-5, 1.0)}  # the least learning rate, and about the largest
COLUMNS = ("number", "schedule", "learning_rate", "validation_loss", "test_loss")
TOGETHER = 4  # tasks

Row = dict[str, str | int]


def grid(optimizer: str, factor: float) -> NDArray[np.float64]:
    """Learning rates, each `factor` times the one before."""
    least, largest = GRID[optimizer]
    return least * factor ** np.arange(round(np.log(largest / least) / np.log(factor)) + 1)


def measured(tasks: list[Task], factor: float) -> list[Row]:
    """The trainings of some tasks of one optimizer."""
    rates, rows = grid(tasks[0].optimizer, factor), []
    every_task, every_rate = [task for task in tasks for _ in rates], np.tile(rates, len(tasks))
    for schedule in SHAPES:
        seeds = [task.number for task in every_task]
        outcomes = play_schedules(every_task, seeds, Plan(schedule, every_rate, {}), tests=True)
        for task, *numbers in zip(every_task, every_rate, outcomes.validation_loss, outcomes.test_loss, strict=True):
            rows.append(dict(zip(COLUMNS, (task.number, schedule, *(f"{one:.6g}" for one in numbers)), strict=True)))
    return rows


def path_of(network: str, optimizer: str, split: str) -> Path:
    """Of the results."""
    return RESULTS / f"{network}-{optimizer}-{split}.csv.gz"


def read(path: Path) -> list[Row]:
    """The rows of a file; none where there is no such file."""
    if not path.exists():
        return []
    with gzip.open(path, "rt", newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[Row]) -> None:
    """All rows, aside first; the same rows give the same bytes."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(exist_ok=True)
    with write_aside(path) as aside:
        aside.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=NETWORKS, required=True)
    parser.add_argument("--optimizer", choices=OPTIMIZERS, required=True)
    parser.add_argument("--split", choices=("train", "test"), required=True)
    parser.add_argument("--tasks", type=int, required=True, help="number 0 to TASKS - 1 of the split")
    parser.add_argument("--factor", type=float, default=10**0.25, help="between learning rates")
    arguments = parser.parse_args()
    path = path_of(arguments.network, arguments.optimizer, arguments.split)
    rows = read(path)
    done = {int(row["number"]) for row in rows}
    left = [number for number in range(arguments.tasks) if number not in done]
    for first in tqdm(range(0, len(left), TOGETHER), desc=path.name):
        numbers = left[first : first + TOGETHER]
        tasks = [draw_task(arguments.split, n, (arguments.network,), (arguments.optimizer,)) for n in numbers]
        rows += measured(tasks, arguments.factor)
        write(path, rows)


if __name__ == "__main__":
    main()
