"""The record of a task of any family: what its environment, its pictures and its files need to know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import cache
from typing import Any, ClassVar, Self, cast

from qan_gym.utils.validation import check_settings

NUMBER_LIMIT = 2**31  # of the tasks of a split
MLPS = ("mlp", "mlp-norm")  # the kinds of multilayer perceptrons


class TaskRecord:
    """One training, but for its initial weights and the order of its mini-batches, which are the episode's.

    A family has a subclass, a frozen dataclass that declares these fields and its own, each with a default. The record
    can be printed, written as JSON, and played again as the environment's `task`.

    Attributes:
        DECISIONS: actions of an episode, whatever its budget.
        VERSION: of the record and of the distribution behind it; raised when a number comes to mean another task.
        SAME_BATCHES: whether all policies train on the same mini-batches, so that their training losses compare.
    """

    DECISIONS: ClassVar[int]
    VERSION: ClassVar[int]
    SAME_BATCHES: ClassVar[bool] = True

    # What every record has.
    split: str
    number: int
    network: str
    resolution: int
    classes: tuple[int, ...]
    train_size: int
    data_seed: int
    momentum: float
    weight_decay: float
    optimizer: str = "sgd"  # where the family has no other
    loss_scale: float = 1.0  # likewise
    batch_size: int
    batches_per_action: int
    version: int

    def check_fields(self) -> None:
        """Check every field and the version.

        Raises:
            ValueError: one is out of its range, or the record is of another version.
        """
        check_settings(self)
        if self.version != self.VERSION:
            raise ValueError(f"the task is of version {self.version} of the family, and this is version {self.VERSION}")

    def check_batch_size(self) -> None:
        """Refuse mini-batches of more images than there are.

        Raises:
            ValueError: they are.
        """
        if self.batch_size > self.train_size:
            raise ValueError(f"batch_size {self.batch_size} is larger than the {self.train_size} training images")

    @property
    def widths(self) -> list[int]:
        """Of the hidden layers of a multilayer perceptron; empty for other networks."""
        return [int(part) for part in self.network.split("-") if part.isdecimal()] if self.kind in MLPS else []

    @property
    def budget(self) -> int:
        """Mini-batches of an episode."""
        return self.DECISIONS * self.batches_per_action

    @property
    def kind(self) -> str:
        """The kind of network: "mlp", "mlp-norm", "cnn", "mnist-cnn", "resnet-8" or "vit"."""
        if self.network in ("mnist-cnn", "resnet-8"):
            return self.network
        kind = self.network.partition("-")[0]
        return "mlp-norm" if kind == "mlp" and self.network.endswith("-norm") else kind

    @property
    def own_schedule(self) -> str | None:
        """Of the learning rate; None: that of the environment."""
        return None

    @property
    def name(self) -> str:
        """A few words, for titles."""
        return self.network

    @property
    def start_learning_rate(self) -> float:
        """At the start of an episode."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """The settings of a `TaskConfig` that the task says."""
        record = asdict(cast(Any, self))
        return {name: record[name] for name in record if name not in ("split", "number", "version")} | {
            "batches": self.budget
        }

    def context(self) -> dict[str, float]:
        """The parameters of the task as numbers of order 1, for `info["task"]` and `context="observed"`."""
        raise NotImplementedError

    @classmethod
    @cache
    def context_names(cls) -> tuple[str, ...]:
        """The names of the numbers of `context`."""
        return tuple(cls().context())

    def lines(self) -> tuple[str, ...]:
        """The record in words, for pictures: lines of at most 40 characters."""
        raise NotImplementedError

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(cast(Any, self)))

    @classmethod
    def from_record(cls, record: TaskRecord | Mapping[str, Any] | str) -> Self:
        """A task from itself, from a dict of its fields, or from its JSON.

        Raises:
            ValueError: it is no record of a task; the message says what is wrong.
        """
        if isinstance(record, cls):
            return record
        if isinstance(record, str):
            try:
                record = json.loads(record)
            except json.JSONDecodeError as error:
                raise ValueError(f"a task must be a Task, a dict of its fields, or their JSON: {error}") from error
        if not isinstance(record, Mapping):  # a record of another family too
            raise ValueError(f"a task must be a Task, a dict of its fields, or their JSON, not {record!r}")
        names = {one.name for one in fields(cast(Any, cls))}
        if missing := names - record.keys():
            raise ValueError(f"the record of the task has no {', '.join(sorted(missing))}")
        if unknown := record.keys() - names:
            raise ValueError(f"the record of the task has unknown fields: {', '.join(sorted(map(str, unknown)))}")
        return cls(**record)
