"""The pictures of a meta-training: how it went, and the learning rates that the controller plays."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from qan_agents.controllers.controller import Controller
from qan_agents.controllers.meta_config import MetaConfig
from qan_agents.controllers.meta_training import MetaRun, Row, late_tasks
from qan_agents.controllers.trainings import play_controller
from qan_agents.experiments.plots import STYLES, save
from qan_gym.families.task import DECISIONS, Task
from qan_gym.schedules import SCHEDULES

CURVES, RATES = "curves.png", "learning_rates.png"
SHOWN_TASKS = 12
OFFSET = 1_000  # of the tasks shown from the last ones, on which a meta-training is evaluated


def draw(run: MetaRun) -> list[Path]:
    """Draw into the folder of a meta-training that is over; the paths, of one where no learning rate is controlled.

    Raises:
        ValueError: it has no controller yet, or a file is damaged.
    """
    controller, config = Controller.load(run.controller), run.config()
    figures = {CURVES: curves(run.rows(), config)}
    if controller.settings.factor is not None:
        figures[RATES] = learning_rates(controller, config)
    return [save(figure, run.folder / name) for name, figure in figures.items()]


def curves(rows: list[Row], config: MetaConfig) -> Figure:
    """The mean return of the trainings of each round, and ln(validation loss) on other tasks, over the trainings."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    trainings = [row["trainings"] for row in rows]
    left.plot(trainings, [row["return"] for row in rows], color=STYLES[0][0], linewidth=0.8)
    left.set(xlabel="trainings", ylabel="mean return of a round", title=f"{config.agent} learns, seed {config.seed}")
    evaluated = [row for row in rows if "log_loss" in row]
    points = [row["trainings"] for row in evaluated], [row["log_loss"] for row in evaluated]
    right.plot(*points, "o-", color=STYLES[1][0])
    right.set(xlabel="trainings", ylabel="mean ln(validation loss)", title="without noise, on other tasks")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure


def learning_rates(controller: Controller, config: MetaConfig) -> Figure:
    """The learning rates that a controller plays on twelve tasks, the base schedule included."""
    tasks = late_tasks(config, SHOWN_TASKS, OFFSET)
    outcomes = play_controller(controller, tasks, range(SHOWN_TASKS), dataset=config.family_config()[0].dataset)
    shares = (np.arange(DECISIONS) + 0.5) / DECISIONS
    shape = np.asarray(SCHEDULES[controller.settings.schedule].rate(np, np.ones(DECISIONS), shares))
    figure = Figure(figsize=(11, 7), layout="constrained")
    for axes, task, chosen, loss in zip(
        figure.subplots(3, 4, sharex=True).flat, tasks, outcomes.learning_rate, outcomes.training_loss, strict=True
    ):
        _one_task(axes, task, chosen * shape, loss)
    figure.supxlabel("share of the budget")
    figure.suptitle(
        "learning rate (full line, left), running mean of the training loss / ln K (dashed, right)", fontsize=10
    )
    return figure


def _one_task(axes: Axes, task: Task, rates: object, losses: object) -> None:
    shares = np.arange(1, DECISIONS + 1) / DECISIONS
    axes.plot(shares, np.asarray(rates), color=STYLES[0][0])
    axes.set_yscale("log")
    axes.set_title(f"{task.network}, {task.optimizer}\n{task.budget} x {task.batch_size} images", fontsize=8)
    axes.tick_params(which="both", labelsize=7)
    other = axes.twinx()
    other.plot(shares, np.asarray(losses) / math.log(len(task.classes)), color=STYLES[1][0], linestyle="--")
    other.set_yscale("log")
    other.yaxis.set_minor_formatter(NullFormatter())
    other.tick_params(which="both", labelsize=7)
