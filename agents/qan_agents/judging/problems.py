"""Problems: the held-out tasks that contenders are judged on, and the seeds of the trainings on them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qan_agents.controllers.controller import FAMILY
from qan_agents.controllers.trainings import DATASET
from qan_agents.seeds import UNSEEN_BELOW, training_seed
from qan_gym.families import long_tail
from qan_gym.families.learning_rate import OPTIMIZERS, draw_task
from qan_gym.families.task import Task

LONG_TAIL = "QanMinibatch-LongTail-v0"
MOST_TRAININGS = 20  # of a search on a task; shorter ones are its beginning
RANGE_TEST = MOST_TRAININGS  # the number of the training that is a range test


@dataclass(frozen=True)
class Trainings:
    """Some trainings to be done: a task and a seed each, (n,).

    Attributes:
        tasks: what is trained.
        seeds: of initial weights and order of mini-batches.
        dataset: that the tasks take their images from.
    """

    tasks: tuple[Any, ...]
    seeds: tuple[int, ...]
    dataset: str = DATASET

    def __len__(self) -> int:
        return len(self.tasks)


@dataclass(frozen=True)
class Problem:
    """A network, images and a budget, to be trained with each optimizer; what is compared on it is compared in pairs.

    Attributes:
        name: in tables.
        tasks: records of one family, one per optimizer, which differ in nothing else.
        dataset: that the images are taken from.
    """

    name: str
    tasks: tuple[Any, ...]
    dataset: str = DATASET

    def task(self, optimizer: str) -> Any:
        """The task of an optimizer."""
        return next(task for task in self.tasks if task.optimizer == optimizer)

    @property
    def kind(self) -> str:
        """The kind of network."""
        kind: str = self.tasks[0].kind
        return kind

    @property
    def budget(self) -> int:
        """In mini-batches."""
        budget: int = self.tasks[0].budget
        return budget


def family_problems(count: int, networks: Sequence[str]) -> list[Problem]:
    """The first held-out tasks of the family.

    Args:
        count: how many.
        networks: the kinds to draw from.

    Raises:
        ValueError: there is no such kind of network.
    """
    return [
        Problem(str(number), tuple(draw_task("test", number, networks, (optimizer,)) for optimizer in OPTIMIZERS))
        for number in range(count)
    ]


def long_tail_problems(count: int, networks: Sequence[str]) -> list[Problem]:
    """The first held-out tasks with rare and noisy classes; arguments and errors as `family_problems`."""
    return [Problem(str(number), (long_tail.draw_task("test", number, networks),)) for number in range(count)]


PROBLEMS: dict[str, Callable[[int, Sequence[str]], list[Problem]]] = {  # of the families that are judged
    FAMILY: lambda count, networks: family_problems(count, networks),
    LONG_TAIL: long_tail_problems,
}


def training_tasks(count: int, networks: Sequence[str], optimizer: str) -> tuple[Task, ...]:
    """The first tasks of the training split, where all settings of rivals are chosen."""
    return tuple(draw_task("train", number, networks, (optimizer,)) for number in range(count))


def judged_seed(problem: Problem, number: int) -> int:
    """The seed of the training of that number on a problem, below 2**31; the same for every contender."""
    digest = hashlib.blake2b(f"{problem.name}/{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) % UNSEEN_BELOW


def tuning_seed(task: Any, number: int) -> int:
    """The seed of the training of that number by which something is tuned on a task; never one that is judged."""
    return training_seed(task.number, number)


def trainings_of(problems: Sequence[Problem], optimizer: str, seeds: int) -> Trainings:
    """The judged trainings of some problems of one data set: the seeds of the first, then those of the second, ..."""
    pairs = [(problem, number) for problem in problems for number in range(seeds)]
    (dataset,) = {problem.dataset for problem in problems}
    tasks = tuple(problem.task(optimizer) for problem, _ in pairs)
    return Trainings(tasks, tuple(judged_seed(problem, number) for problem, number in pairs), dataset)
