"""Trainings of a family's tasks under a schedule, many at once: the rivals of a controller, and what could be won."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from qan_gym.config import TaskConfig
from qan_gym.core.reward import CHANCES
from qan_gym.families.source import TaskSource
from qan_gym.families.task import Task
from qan_gym.families.training import FamilyTraining, family_parts
from qan_gym.schedules import SCHEDULES, Schedule
from qan_gym.tasks import TASKS

FAMILY = "QanLR-Family-v0"
ROWS = 128  # trainings at once

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Outcomes:
    """How some trainings ended, (n,) each; losses are at most four times that of guessing.

    Attributes:
        validation_loss, test_loss: in nats; the test loss is NaN where it was not measured.
        test_accuracy: from 0 to 1; NaN where it was not measured.
        diverged: whether a loss or a weight was not finite.
    """

    validation_loss: Float64
    test_loss: Float64
    test_accuracy: Float64
    diverged: NDArray[np.bool_]

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Some one after another."""
        return cls(*(np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(cls)))


@dataclass(frozen=True)
class Plan:
    """A schedule for each of some trainings.

    Attributes:
        name: of the schedule, in `SCHEDULES`.
        rates: (n,) the highest learning rates.
        settings: of the schedule, a number for all or (n,) each; the others are its defaults.
    """

    name: str
    rates: Float64
    settings: dict[str, Any]


def play_schedules(
    tasks: Sequence[Task], seeds: Sequence[int], plan: Plan, *, tests: bool = False, show: str | None = None
) -> Outcomes:
    """Train on tasks under schedules.

    Args:
        tasks: n of them.
        seeds: (n,), of initial weights and order.
        plan: for the n trainings.
        tests: whether the test loss is measured too.
        show: the name of a progress bar; None: none.

    Raises:
        ValueError: there are not as many seeds and rates as tasks.
    """
    if not len(tasks) == len(seeds) == len(plan.rates):
        raise ValueError(f"as many tasks as seeds and rates, not {len(tasks)}, {len(seeds)} and {len(plan.rates)}")
    parts, order = [], _by_length(tasks)
    pieces = [order[start : start + ROWS] for start in range(0, len(order), ROWS)]
    for piece in tqdm(pieces, desc=show, disable=show is None, leave=False):
        settings = {name: np.broadcast_to(value, len(order))[piece] for name, value in plan.settings.items()}
        parts.append(
            _play([tasks[i] for i in piece], np.asarray(seeds)[piece], plan.name, plan.rates[piece], settings, tests)
        )
    back = np.argsort(order)
    joined = Outcomes.join(parts)
    return Outcomes(*(getattr(joined, one.name)[back] for one in fields(Outcomes)))


def _by_length(tasks: Sequence[Task]) -> NDArray[np.int64]:
    """Places of the tasks, the longest trainings together."""
    return np.argsort([-task.batches_per_action for task in tasks], kind="stable")


def _play(
    tasks: list[Task], seeds: NDArray[np.int64], name: str, rates: Float64, settings: dict[str, Float64], tests: bool
) -> Outcomes:
    source = TaskSource(networks=tuple({task.kind for task in tasks}))
    config = schedule_config()
    training = FamilyTraining(family_parts(config, source, "cpu", "auto"), source, len(tasks), tests=tests)
    training.schedule = with_settings(SCHEDULES[name], settings)
    everybody = np.ones(len(tasks), np.bool_)
    training.reset(everybody, seeds, tasks=tasks)
    training.run.chosen_learning_rate.copy_(torch.from_numpy(rates))
    nothing = np.zeros((len(tasks), 1), np.float32)
    diverged = np.zeros(len(tasks), np.bool_)
    while not training.run.over.all():
        playing = ~training.run.over
        diverged |= training.step(nothing).terminated & playing
    most = CHANCES * np.log([len(task.classes) for task in tasks])
    run, loss = training.run, {}
    for name in ("validation_loss", "test_loss"):
        value = getattr(run, name).numpy().astype(np.float64)
        loss[name] = np.where(np.isnan(value), value, np.where(diverged, most, np.minimum(value, most)))
    accuracy = run.test_accuracy.numpy().astype(np.float64)
    training.close()
    return Outcomes(loss["validation_loss"], loss["test_loss"], accuracy, diverged)


def schedule_config() -> TaskConfig:
    """The family's, with nothing to observe."""
    return replace(TASKS[FAMILY], observation=("budget_used",), schedule="constant")


def with_settings(schedule: Schedule, settings: dict[str, Float64]) -> Schedule:
    """A schedule with settings of each training; its highest learning rate is the one that is set."""
    return Schedule(partial(schedule.shape, **{**schedule.settings, **settings}))
