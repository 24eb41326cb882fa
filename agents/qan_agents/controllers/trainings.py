"""Trainings of a family's tasks, many at once: under schedules, and under a controller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from qan_agents.controllers.controller import FAMILY, Controller
from qan_gym.config import TaskConfig
from qan_gym.core.reward import CHANCES
from qan_gym.families.factory import FAMILIES
from qan_gym.families.source import TaskSource
from qan_gym.families.task import Task
from qan_gym.families.training import FamilyTraining, family_parts, has_room
from qan_gym.schedules import SCHEDULES, Schedule
from qan_gym.tasks import TASKS

ROWS = 128  # trainings at once
DATASET = TASKS[FAMILY].dataset
PLAIN = replace(TASKS[FAMILY], observation=("budget_used",), schedule="constant")  # nothing is measured or added

Float64 = NDArray[np.float64]
Rule = Callable[[Float64], Float64]  # mean loss of the last action (B,), nats, NaN once a run is over -> rates (B,)


@dataclass(frozen=True)
class Outcomes:
    """How some trainings went, (n,) each; losses are at most four times that of guessing.

    Attributes:
        validation_loss, test_loss: at the end, in nats; the test loss is NaN where it was not measured.
        test_accuracy: from 0 to 1; NaN where it was not measured.
        diverged: whether a loss or a weight was not finite.
        training_loss: (n, actions) the running mean of the training loss after each action, nats; the largest once
            diverged.
        learning_rate: (n, actions) after each action, without the base schedule under a controller.
    """

    validation_loss: Float64
    test_loss: Float64
    test_accuracy: Float64
    diverged: NDArray[np.bool_]
    training_loss: Float64
    learning_rate: Float64

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Some one after another."""
        return cls(*(np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(cls)))

    def take(self, places: NDArray[np.int64]) -> Self:
        """Those at some places."""
        return type(self)(*(getattr(self, one.name)[places] for one in fields(self)))


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
    tasks: Sequence[Task],
    seeds: Sequence[int],
    plan: Plan,
    *,
    tests: bool = False,
    dataset: str = DATASET,
) -> Outcomes:
    """Train on tasks under schedules.

    Args:
        tasks: n of them.
        seeds: (n,), of initial weights and order: those of the episodes, which an environment draws from its own.
        plan: for the n trainings.
        tests: whether the test loss is measured too.
        dataset: that the tasks take their images from.

    Raises:
        ValueError: there are not as many seeds and rates as tasks.
    """
    if len(plan.rates) != len(tasks):
        raise ValueError(f"as many tasks as rates, not {len(tasks)} and {len(plan.rates)}")
    config = replace(PLAIN, dataset=dataset)

    def begin(training: FamilyTraining, places: NDArray[np.int64]) -> Act:
        settings = {name: np.broadcast_to(value, len(tasks))[places] for name, value in plan.settings.items()}
        training.schedule = with_settings(SCHEDULES[plan.name], settings)
        training.run.chosen_learning_rate.copy_(torch.from_numpy(plan.rates[places]))
        return lambda _: np.zeros((len(places), 1), np.float32)

    return play_tasks(tasks, seeds, config, begin, tests)


def play_rules(
    tasks: Sequence[Task],
    seeds: Sequence[int],
    begin_rule: Callable[[NDArray[np.int64]], Rule],
    *,
    schedule: str = "constant",
    tests: bool = False,
    dataset: str = DATASET,
) -> Outcomes:
    """Train on tasks under rules that see the training loss; for the other arguments see `play_schedules`.

    Args:
        tasks: n of them.
        seeds: (n,).
        begin_rule: (B,) places among the n trainings -> the rule of those trainings, for one training of each.
        schedule: the base schedule, which multiplies the learning rates of the rule.

    Raises:
        ValueError: there are not as many seeds as tasks.
    """
    config = replace(PLAIN, dataset=dataset, schedule=schedule)

    def begin(training: FamilyTraining, places: NDArray[np.int64]) -> Act:
        run, rule = training.run, begin_rule(places)

        def act(_: NDArray[np.float32]) -> NDArray[np.float32]:
            losses = np.where(run.over, np.nan, run.loss.numpy() / run.loss_scale.numpy())
            rates = np.clip(rule(losses), config.learning_rate_min, config.learning_rate_max)
            run.chosen_learning_rate.copy_(torch.from_numpy(rates))
            return np.zeros((len(places), 1), np.float32)

        return act

    return play_tasks(tasks, seeds, config, begin, tests)


def play_controller(
    controller: Controller,
    tasks: Sequence[Any],
    seeds: Sequence[int],
    *,
    tests: bool = False,
    dataset: str = DATASET,
) -> Outcomes:
    """Train on tasks of the controller's family under it; for the arguments see `play_schedules`.

    Raises:
        ValueError: there are not as many seeds as tasks.
    """

    def begin(training: FamilyTraining, places: NDArray[np.int64]) -> Act:
        return controller.player(len(places))

    return play_tasks(tasks, seeds, replace(controller.config(), dataset=dataset), begin, tests)


Act = Callable[[NDArray[np.float32]], NDArray[np.float32]]  # observations (B, D) -> actions (B, A)
Begin = Callable[[FamilyTraining, NDArray[np.int64]], Act]


def play_tasks(
    tasks: Sequence[Any],
    seeds: Sequence[int],
    config: TaskConfig,
    begin: Begin,
    tests: bool,
    shuffled: bool = False,
) -> Outcomes:
    """Trainings of any family, in pieces of ROWS, the longest together.

    Args:
        tasks: n of them.
        seeds: (n,), see `play_schedules`.
        config: of the family.
        begin: called after the reset of a piece, with the places of its tasks; gives what acts in it.
        tests: whether the test loss is measured too.
        shuffled: whether the mini-batches are those of shuffled SGD, whatever the actions are.

    Raises:
        ValueError: there are not as many seeds as tasks.
    """
    if len(tasks) != len(seeds):
        raise ValueError(f"as many tasks as seeds, not {len(tasks)} and {len(seeds)}")
    pieces = in_pieces(tasks, config.dataset)
    parts = []
    for places in pieces:
        chosen = [tasks[place] for place in places]
        source = source_of(chosen)
        training = FamilyTraining(family_parts(config, source, "cpu", "auto"), source, len(chosen), tests=tests)
        everyone, own = np.ones(len(chosen), np.bool_), np.asarray(seeds)[places]
        observation, _ = training.reset(everyone, own, shuffled, chosen)
        parts.append(_play_piece(training, np.asarray(observation), begin(training, places), chosen))
        training.close()
    return Outcomes.join(parts).take(np.argsort(np.concatenate(pieces)))


def in_pieces(tasks: Sequence[Any], dataset: str) -> list[NDArray[np.int64]]:
    """The places of the tasks that are trained at once, those with the most mini-batches first.

    Tasks that are no larger than what the family draws are trained together, any other one with itself alone.
    """
    family = family_of(tasks[0])
    groups: dict[Any, list[np.int64]] = {}
    for place in np.argsort([-task.batches_per_action for task in tasks], kind="stable"):
        task = tasks[place]
        together = dataset == TASKS[FAMILY].dataset and has_room(family, task)
        groups.setdefault(None if together else task, []).append(place)
    return [np.array(group[start : start + ROWS]) for group in groups.values() for start in range(0, len(group), ROWS)]


def family_of(task: Any) -> Any:
    """The family whose record a task is."""
    return next(family for family in FAMILIES.values() if isinstance(task, family.record))


def source_of(tasks: Sequence[Any]) -> TaskSource[Any]:
    """A source with room for some tasks of a family; one, many times over, may be larger than those of the family."""
    family = family_of(tasks[0])
    source: TaskSource[Any] = (
        family(task=tasks[0]) if len(set(tasks)) == 1 else family(networks=tuple({task.kind for task in tasks}))
    )
    return source


def _play_piece(training: FamilyTraining, observation: NDArray[Any], act: Act, tasks: list[Any]) -> Outcomes:
    run, diverged = training.run, np.zeros(len(tasks), np.bool_)
    most = CHANCES * np.log([len(task.classes) for task in tasks])
    scales = np.array([task.loss_scale for task in tasks])
    training_loss, learning_rate = np.empty((2, len(tasks), tasks[0].DECISIONS))
    for decision in range(tasks[0].DECISIONS):
        playing = ~run.over
        done = training.step(act(observation))
        observation = np.asarray(done.observation)
        diverged |= done.terminated & playing
        training_loss[:, decision] = bounded(run.smoothed_loss.numpy() / scales, diverged, most)
        learning_rate[:, decision] = run.chosen_learning_rate.numpy()
    validation, test = (bounded(getattr(run, f"{split}_loss").numpy(), diverged, most) for split in SPLITS)
    accuracy = run.test_accuracy.numpy().astype(np.float64)
    return Outcomes(validation, test, accuracy, diverged, training_loss, learning_rate)


SPLITS = ("validation", "test")


def bounded(losses: NDArray[Any], diverged: NDArray[np.bool_], most: Float64) -> Float64:
    """Losses (n,) at most as large as `most` (n,), which stands where a run has diverged; NaN stays."""
    return np.where(np.isnan(losses) & ~diverged, np.nan, np.where(diverged, most, np.fmin(losses, most)))


def with_settings(schedule: Schedule, settings: dict[str, Float64]) -> Schedule:
    """A schedule with settings of each training; its highest learning rate is the one that is set."""
    return Schedule(partial(schedule.shape, **{**schedule.settings, **settings}))
