"""Which tasks the episodes of a family have."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

from qan_gym.families.learning_rate import BUDGET, NETWORKS, OPTIMIZERS, chosen, draw_task
from qan_gym.families.task import DECISIONS, NUMBER_LIMIT, Task


@dataclass(frozen=True)
class TaskSource:
    """Which tasks the episodes of a family have.

    Attributes:
        split: "train" or "test".
        num_tasks: how many different ones; None: as many as there are.
        start_task: the number of the first.
        networks, optimizers: the kinds to choose from.
        task: the only one; None: drawn.
    """

    split: str = "train"
    num_tasks: int | None = None
    start_task: int = 0
    networks: tuple[str, ...] = tuple(NETWORKS)
    optimizers: tuple[str, ...] = tuple(OPTIMIZERS)
    task: Task | None = None

    def __post_init__(self) -> None:
        """Check.

        Raises:
            ValueError: a value is out of its range.
        """
        for name, least in (("num_tasks", 1), ("start_task", 0)):
            value = getattr(self, name)
            wrong = isinstance(value, bool) or not isinstance(value, int) or not least <= value < NUMBER_LIMIT
            if wrong and not (name == "num_tasks" and value is None):
                raise ValueError(f"{name} must be an integer from {least} to {NUMBER_LIMIT - 1}, not {value!r}")
        if self.start_task + (self.num_tasks or 1) > NUMBER_LIMIT:
            raise ValueError(f"start_task + num_tasks must be at most {NUMBER_LIMIT}")
        if self.split not in ("train", "test"):
            raise ValueError(f"split must be train or test, not {self.split!r}")
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
            if len(own) > 1:
                others = ", ".join(name for name in own if name != "task")
                raise ValueError(f"with a task there is nothing to draw: leave out {others}")
        return cls(**own)
