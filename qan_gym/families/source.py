"""Which tasks the episodes of a family have, and whether they are shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from qan_gym.families.learning_rate import BUDGET, NETWORKS, OPTIMIZERS, chosen, draw_task
from qan_gym.families.task import DECISIONS, NUMBER_LIMIT, Task
from qan_gym.utils.validation import Rule, check_settings, integer, one_of, optional, setting


def some_of(among: Mapping[str, float]) -> Rule:
    """One or more of some names: a list of them, or one alone."""

    def allows(value: Any, _: Any) -> bool:
        names = [value] if isinstance(value, str) else value
        return (
            isinstance(names, list | tuple)
            and len(names) > 0
            and all(isinstance(name, str) and name in among for name in names)
        )

    return Rule(allows, lambda _: f"some of {', '.join(among)}")


def only_task() -> Rule:
    """A task, or None; the other forms have been read before."""
    return Rule(
        lambda value, _: isinstance(value, Task | None), lambda _: "None, or a Task, a dict of its fields, their JSON"
    )


@dataclass(frozen=True)
class TaskSource:
    """Which tasks the episodes of a family have, and whether they are shown.

    Raises:
        ValueError: a value is out of its range.
    """

    split: str = setting("train", one_of("train", "test"), "of the tasks; the two have none in common")
    num_tasks: int | None = setting(
        None, optional(integer(at_least=1)), "how many different tasks; None: all from start_task on"
    )
    start_task: int = setting(0, integer(at_least=0), "the number of the first task")
    networks: tuple[str, ...] = setting(tuple(NETWORKS), some_of(NETWORKS), "the kinds of network to draw from")
    optimizers: tuple[str, ...] = setting(tuple(OPTIMIZERS), some_of(OPTIMIZERS), "the optimizers to draw from")
    context: str = setting(
        "hidden", one_of("hidden", "observed"), "whether the observation ends with the task's parameters"
    )
    task: Task | None = setting(None, only_task(), "the only one; None: drawn")  # noqa: RUF009 (a record is immutable)

    def __post_init__(self) -> None:
        """Check; the kinds come in the order of the family's own."""
        check_settings(self)
        if self.start_task + (self.num_tasks or 1) > NUMBER_LIMIT:
            raise ValueError(f"start_task + num_tasks must be at most {NUMBER_LIMIT}")
        for what, among in (("networks", NETWORKS), ("optimizers", OPTIMIZERS)):
            object.__setattr__(self, what, tuple(chosen(what, getattr(self, what), among)))

    @property
    def most_batches(self) -> int:
        """The most mini-batches of an action; one for all drawn tasks, so that sums do not depend on the other rows."""
        drawn = BUDGET[1] // DECISIONS
        return drawn if self.task is None else max(drawn, self.task.batches_per_action)

    def draw(self, seed: int) -> Task:
        """The task of the episode with a seed."""
        if self.task is not None:
            return self.task
        count = self.num_tasks or NUMBER_LIMIT - self.start_task
        number = self.start_task + (seed % 2**62 * 0x9E3779B97F4A7C15 % 2**64 >> 16) % count
        return draw_task(self.split, number, self.networks, self.optimizers)

    @classmethod
    def from_arguments(cls, arguments: dict[str, Any]) -> Self:
        """From the keyword arguments of an environment, those of its own among others.

        Raises:
            ValueError: a value is out of its range.
        """
        own = {one.name: arguments[one.name] for one in fields(cls) if one.name in arguments}
        if own.get("task") is not None:
            own["task"] = Task.from_record(own["task"])
            if others := ", ".join(name for name in own if name not in ("task", "context")):
                raise ValueError(f"with a task there is nothing to draw: leave out {others}")
        return cls(**own)
