"""Which tasks the episodes of a family have, and whether they are shown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from qan_gym.families.record import NUMBER_LIMIT, TaskRecord
from qan_gym.utils.validation import Rule, check_settings, integer, one_of, optional, setting

if TYPE_CHECKING:
    from qan_gym.data.datasets import Dataset

Record = TypeVar("Record", bound=TaskRecord)


def some_of(among: Mapping[str, float]) -> Rule:
    """One or more of some names: a list of them, one alone, or a dict of their shares."""

    def allows(value: Any, _: Any) -> bool:
        names = [value] if isinstance(value, str) else value
        return (
            isinstance(names, list | tuple | dict)
            and len(names) > 0
            and all(isinstance(name, str) and name in among for name in names)
            and (not isinstance(names, dict) or all(map(_is_share, names.values())))
        )

    return Rule(allows, lambda _: f"some of {', '.join(among)}, or a dict of the shares, above 0, of some")


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def number_or_range(least: float, most: float, whole: bool = False) -> Rule:
    """A number within bounds, or a pair of them, the smaller one first."""

    def is_right(value: Any) -> bool:
        kinds = (int,) if whole else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and least <= value <= most

    def allows(value: Any, _: Any) -> bool:
        if isinstance(value, list | tuple):
            return len(value) == 2 and all(map(is_right, value)) and value[0] <= value[1]
        return is_right(value)

    what = "an integer" if whole else "a number"
    return Rule(allows, lambda _: f"{what} in [{least:g}, {most:g}], or two of them, which it is drawn between")


def only_task() -> Rule:
    """A task, or None; the other forms have been read before."""
    return Rule(
        lambda value, source: value is None or isinstance(value, source.record),
        lambda _: "None, or a Task, a dict of its fields, their JSON",
    )


@dataclass(frozen=True)
class TaskSource(Generic[Record]):
    """Which tasks the episodes of a family have, and whether they are shown. A family has a subclass of its own.

    Attributes:
        record: the class of the family's records.
        kinds: the names of the fields of the subclass that say what is drawn from.
        most_drawn: the most mini-batches of an action of a task that is drawn.
        most_images, most_batch: the most training images, and images of a mini-batch, of a task that is drawn; 0 where
            the family's game does not choose classes.
        largest: of each kind of network, the name of the largest that is drawn, and the pixels a side that it sees.
        context_name: of the tensor of the runs that holds the parameters of their tasks.
        context_prefix: of the names of the features that show them.
        idle: settings of single tasks that the family's environment does not have.

    Raises:
        ValueError: a value is out of its range.
    """

    record: ClassVar[type[TaskRecord]]
    kinds: ClassVar[tuple[str, ...]]
    most_drawn: ClassVar[int]
    most_images: ClassVar[int] = 0
    most_batch: ClassVar[int] = 0
    largest: ClassVar[dict[str, tuple[str, int]]]
    context_name: ClassVar[str] = "context"
    context_prefix: ClassVar[str] = "task_"
    idle: ClassVar[tuple[str, ...]] = (
        *("epochs", "learning_rate", "nesterov", "preprocess", "augment", "imbalance", "replacement", "class_weights"),
        *("meta_momentum", "pull_epochs", "reference", "distillation"),
    )

    split: str = setting("train", one_of("train", "test"), "of the tasks; the two have none in common")
    num_tasks: int | None = setting(
        None, optional(integer(at_least=1)), "how many different tasks; None: all from start_task on"
    )
    start_task: int = setting(0, integer(at_least=0), "the number of the first task")
    context: str = setting(
        "hidden", one_of("hidden", "observed"), "whether the observation ends with the task's parameters"
    )
    task: Record | None = setting(None, only_task(), "the only one; None: drawn")  # noqa: RUF009 (a record is immutable)
    batches_per_action: int | None = setting(
        None,
        optional(integer(at_least=1)),
        "mini-batches of an action of the only task, for fewer and longer actions of its budget, or more; None: its "
        "own",
    )

    def __post_init__(self) -> None:
        """Check; lists become tuples."""
        check_settings(self)
        for one in fields(self):
            if isinstance(value := getattr(self, one.name), list):
                object.__setattr__(self, one.name, tuple(value))
        if self.start_task + (self.num_tasks or 1) > NUMBER_LIMIT:
            raise ValueError(f"start_task + num_tasks must be at most {NUMBER_LIMIT}")
        if self.batches_per_action is not None and self.only is None:
            raise ValueError("every task says its own batches_per_action: play one, by num_tasks=1 or task=, to set it")

    @property
    def only(self) -> Record | None:
        """The task of all episodes; None: they differ."""
        if self.task is None and self.num_tasks == 1:
            return self.draw_number(self.start_task)
        return self.task

    def action_batches(self, task: TaskRecord) -> int:
        """Mini-batches of an action of a task."""
        return self.batches_per_action or task.batches_per_action

    def budget(self, task: TaskRecord) -> int:
        """Mini-batches of an episode of a task; what fills no action is left out."""
        return task.budget - task.budget % self.action_batches(task)

    def typical_settings(self) -> dict[str, Any]:
        """The settings of a `TaskConfig` that the only task says, or a typical one."""
        task = self.only or self.record()
        return {**task.settings(), "batches_per_action": self.action_batches(task)}

    @property
    def most_batches(self) -> int:
        """The most mini-batches of an action; one for all drawn tasks, so that sums do not depend on the other rows."""
        return max(self.most_drawn, 0 if self.only is None else self.action_batches(self.only))

    @property
    def network_kinds(self) -> tuple[str, ...]:
        """The kinds of network that are drawn from, of `largest`."""
        raise NotImplementedError

    @property
    def room(self) -> tuple[int, int]:
        """Training images, and images of a mini-batch, that a run needs room for; see `most_images`."""
        if self.task is None or self.most_images == 0:
            return self.most_images, self.most_batch
        return max(self.most_images, self.task.train_size), max(self.most_batch, self.task.batch_size)

    def require_images(self, dataset: Dataset) -> None:
        """Check that the data set has as many training images as any drawn task takes.

        Raises:
            ValueError: it has fewer.
        """

    def draw(self, seed: int) -> Record:
        """The task of the episode with a seed."""
        if self.task is not None:
            return self.task
        count = self.num_tasks or NUMBER_LIMIT - self.start_task
        return self.draw_number(self.start_task + (seed % 2**62 * 0x9E3779B97F4A7C15 % 2**64 >> 16) % count)

    def draw_number(self, number: int) -> Record:
        """The task of a number."""
        raise NotImplementedError

    @classmethod
    def context_features(cls) -> tuple[str, ...]:
        """The names of the features that show the parameters of a task."""
        return tuple(cls.context_prefix + name for name in cls.record.context_names())

    @classmethod
    def from_arguments(cls, arguments: dict[str, Any]) -> Self:
        """From the keyword arguments of an environment, those of its own among others.

        Raises:
            ValueError: a value is out of its range.
        """
        own = {one.name: arguments[one.name] for one in fields(cls) if one.name in arguments}
        if own.get("task") is not None:
            own["task"] = cls.record.from_record(own["task"])
            if others := ", ".join(name for name in own if name not in ("task", "context", "batches_per_action")):
                raise ValueError(f"with a task there is nothing to draw: leave out {others}")
        return cls(**own)
