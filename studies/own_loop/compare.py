"""LearnedLR and PyTorch's schedulers in three trainings of one's own.

    python -m studies.own_loop.compare train --photographs cifar10
    python -m studies.own_loop.compare table

`train` adds a row to `results/rows.csv` for every training; after a kill the same command goes on.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, OneCycleLR

from qan_agents.controllers import LearnedLR
from qan_agents.experiments.run_folder import Row, read_rows
from studies.own_loop.trainings import TASKS, Examples, Task
from studies.stored_rows import store_rows, stored_rows

ROWS = Path(__file__).parent / "results" / "rows.csv"
LEARNED = "LearnedLR"
SCHEDULERS: dict[str, Callable[[Optimizer, float, int], LRScheduler]] = {
    "constant": lambda optimizer, rate, steps: ConstantLR(optimizer, factor=1.0),
    "CosineAnnealingLR": lambda optimizer, rate, steps: CosineAnnealingLR(optimizer, steps),
    "OneCycleLR": lambda optimizer, rate, steps: OneCycleLR(optimizer, rate, total_steps=steps),
}
SEEDS, SEED_OF_THE_TUNING = (0, 1, 2), 1_000
TRIALS = 20


class Training(NamedTuple):
    """Which one."""

    task: str
    scheduler: str
    rate: str  # as text, so that it is the same after reading; the optimizer's own
    seed: int


def train(task: Task, training: Training, source: str) -> tuple[float, float]:
    """The validation loss and the test loss at the end; the latter is NaN in a training of the tuning."""
    torch.manual_seed(training.seed)
    (inputs, labels), validation, test = task.load(source)
    classes, count = int(labels.max()) + 1, len(inputs)
    network = task.network(classes)
    optimizer = task.optimizer(network.parameters(), lr=float(training.rate))
    batches = count // task.batch_size
    steps = task.epochs * batches
    learned = training.scheduler == LEARNED
    if learned:
        facts = {"batch_size": task.batch_size, "dataset_size": count, "num_classes": classes}
        scheduler: LRScheduler = LearnedLR(optimizer, steps, **facts)
    else:
        scheduler = SCHEDULERS[training.scheduler](optimizer, float(training.rate), steps)
    for step in range(steps):
        if step % batches == 0:
            order = torch.randperm(count)
        places = order[task.batch_size * (step % batches) :][: task.batch_size]
        loss = cross_entropy(network(inputs[places]).flatten(0, -2), labels[places].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if isinstance(scheduler, LearnedLR):
            scheduler.step(loss)
        elif step < steps - 1:
            scheduler.step()
    return mean_loss(network, validation), math.nan if training.seed == SEED_OF_THE_TUNING else mean_loss(network, test)


@torch.no_grad()
def mean_loss(network: nn.Module, examples: Examples) -> float:
    """Over all of them."""
    network.eval()
    losses = [
        cross_entropy(network(inputs).flatten(0, -2), labels.flatten(), reduction="none")
        for inputs, labels in zip(*(one.split(500) for one in examples), strict=True)
    ]
    return float(torch.cat(losses).mean())


def rates(task: Task) -> list[str]:
    """That the tuning tries, at equal ratios."""
    return [f"{rate:.3g}" for rate in np.geomspace(*task.rates, TRIALS)]


def best_rate(rows: list[Row], name: str, scheduler: str) -> str | None:
    """The one with the least validation loss; None before all were tried."""
    found = {
        str(row["rate"]): float(row["validation_loss"])
        for row in rows
        if (row["task"], row["scheduler"], int(row["seed"])) == (name, scheduler, SEED_OF_THE_TUNING)
    }
    finite = {rate: loss if math.isfinite(loss) else math.inf for rate, loss in found.items()}
    return min(finite, key=lambda rate: finite[rate]) if len(found) == TRIALS else None


def plan(rows: list[Row]) -> Iterator[Training]:
    """All trainings; those at the usual learning rates first. It looks at the rows as they grow."""
    for name, task in TASKS.items():
        for scheduler in (LEARNED, *SCHEDULERS):
            yield from (Training(name, scheduler, f"{task.usual:.3g}", seed) for seed in SEEDS)
    for name, task in TASKS.items():
        for scheduler in SCHEDULERS:
            yield from (Training(name, scheduler, rate, SEED_OF_THE_TUNING) for rate in rates(task))
            best = best_rate(rows, name, scheduler)
            assert best is not None
            yield from (Training(name, scheduler, best, seed) for seed in SEEDS)


def train_all(source: str) -> None:
    """Those of which there is no row yet."""
    rows = stored_rows(ROWS)
    done = {Training(*(str(row[key]) for key in ("task", "scheduler", "rate")), int(row["seed"])) for row in rows}
    for training in plan(rows):
        if training in done:
            continue
        begin = time.process_time()
        validation, test = train(TASKS[training.task], training, source)
        losses = {"validation_loss": f"{validation:.6g}", "test_loss": f"{test:.6g}"}
        rows.append({**training._asdict(), **losses, "cpu_seconds": f"{time.process_time() - begin:.2f}"})
        done.add(training)
        store_rows(ROWS, rows)
        print(*rows[-1].values(), flush=True)


def print_table() -> None:
    """The test losses, as Markdown: mean of the seeds, least and largest."""
    rows: list[Row] = list(read_rows(ROWS))
    print("| training | scheduler | learning rate | test loss | of the seeds |\n| --- | --- | --- | --- | --- |")
    for name, task in TASKS.items():
        usual = f"{task.usual:.3g}"
        columns = [(LEARNED, usual, "its own")] + [(one, usual, f"{usual}, usual") for one in SCHEDULERS]
        tuned = {scheduler: best_rate(rows, name, scheduler) for scheduler in SCHEDULERS}
        columns += [(one, rate, f"{rate}, tuned") for one, rate in tuned.items() if rate is not None]
        for scheduler, rate, text in columns:
            losses = [
                float(row["test_loss"])
                for row in rows
                if (row["task"], row["scheduler"], row["rate"]) == (name, scheduler, rate) and int(row["seed"]) in SEEDS
            ]
            if len(losses) == len(SEEDS):
                each = ", ".join(f"{loss:.4f}" for loss in losses)
                print(f"| {name} | {scheduler} | {text} | {np.mean(losses):.4f} | {each} |")


def main() -> None:
    """Train, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("train", "table"))
    parser.add_argument("--photographs", default="cifar10", help="a data set, or an .npz file: see `load_dataset`")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "train":
        train_all(arguments.photographs)
    else:
        print_table()


if __name__ == "__main__":
    main()
