"""Contenders: what is judged, a controller or a rival, each with everything that it needs to train."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from qan_agents.controllers.controller import Controller
from qan_agents.controllers.trainings import Float64, Outcomes, Rule, play_controller, play_rules
from qan_agents.judging.methods import Method, Places, Range, Scheduled, candidates
from qan_agents.judging.problems import MOST_TRAININGS, Trainings, training_tasks, tuning_seed


class Contender(Protocol):
    """What is judged.

    Attributes:
        name: in tables; contenders of one name and optimizer are replicates, whose results are taken together.
        optimizer: of the tasks that it trains.
        record: JSON-able; all that its results depend on beside the trainings.
    """

    @property
    def name(self) -> str: ...

    @property
    def optimizer(self) -> str: ...

    @property
    def record(self) -> dict[str, Any]: ...

    def play(self, trainings: Trainings) -> Outcomes:
        """Train, and measure the test loss; with no training on these tasks but those that are its rule."""


@dataclass(frozen=True)
class Single:
    """A method with settings that were chosen on tasks of the training split, the same for all tasks.

    Attributes:
        name: see `Contender`.
        method: that trains.
        settings: by the kind of network; those of "mlp" are for the kinds that are not there.
    """

    name: str
    method: Method
    settings: tuple[tuple[str, tuple[tuple[str, float], ...]], ...]

    @property
    def optimizer(self) -> str:
        """See `Contender`."""
        return self.method.optimizer

    @property
    def record(self) -> dict[str, Any]:
        """See `Contender`."""
        return {"method": repr(self.method), "settings": self.settings}

    def play(self, trainings: Trainings) -> Outcomes:
        """See `Contender.play`."""
        chosen = dict(self.settings)
        per_task = [dict(chosen.get(task.kind, chosen["mlp"])) for task in trainings.tasks]
        settings = {name: np.array([one[name] for one in per_task]) for name in per_task[0]}
        return self.method.play(trainings, settings, tests=True)


@dataclass(frozen=True)
class Tuned:
    """Methods that are tuned on each task itself, from seeds of their own; the settings of least validation loss.

    Attributes:
        name: see `Contender`.
        methods: that are searched; the best of all of them is taken.
        ranges: of the settings of each, by name.
        trainings: of the search of each method; the first ones of a longer search are the same.
    """

    name: str
    methods: tuple[Scheduled, ...]
    ranges: tuple[tuple[tuple[str, Range], ...], ...]
    trainings: int

    @property
    def optimizer(self) -> str:
        """See `Contender`."""
        return self.methods[0].optimizer

    @property
    def record(self) -> dict[str, Any]:
        """See `Contender`."""
        return {"methods": list(map(repr, self.methods)), "ranges": repr(self.ranges), "trainings": self.trainings}

    def play(self, trainings: Trainings) -> Outcomes:
        """See `Contender.play`."""
        tasks = tuple(dict.fromkeys(trainings.tasks))
        where = np.array([tasks.index(task) for task in trainings.tasks])
        found = [
            searched(method, ranges, tasks, trainings.dataset)
            for method, ranges in zip(self.methods, self.ranges, strict=True)
        ]
        losses = np.stack([losses[:, : self.trainings] for _, losses in found])  # (methods, tasks, trainings)
        best_method = losses.min(axis=2).argmin(axis=0)  # (tasks,)

        def play(number: int, mine: Places) -> Outcomes:
            best = losses[number].argmin(axis=1)  # (tasks,)
            settings = {name: values[where[mine], best[where[mine]]] for name, values in found[number][0].items()}
            return self.methods[number].play(part_of(trainings, mine), settings, tests=True)

        return play_chosen(best_method[where], play)


@lru_cache(maxsize=4096)
def searched(
    method: Scheduled, ranges: tuple[tuple[str, Range], ...], tasks: tuple[Any, ...], dataset: str
) -> tuple[dict[str, Float64], Float64]:
    """What is tried on each of some tasks, (tasks, MOST_TRAININGS) each, and ln(validation loss), the same shape."""
    each = [candidates(dict(ranges), MOST_TRAININGS, seed=task.number) for task in tasks]
    tried = {name: np.stack([one[name] for one in each]) for name, _ in ranges}
    seeds = tuple(tuning_seed(task, number) for task in tasks for number in range(MOST_TRAININGS))
    wide = Trainings(tuple(task for task in tasks for _ in range(MOST_TRAININGS)), seeds, dataset)
    outcomes = method.play(wide, {name: values.ravel() for name, values in tried.items()}, tests=False)
    return tried, np.log(outcomes.validation_loss).reshape(len(tasks), MOST_TRAININGS)


def play_chosen(chosen: Places, play: Callable[[int, Places], Outcomes]) -> Outcomes:
    """Trainings by what was chosen for each of them, in their order.

    Args:
        chosen: (n,) a number for each training.
        play: a number and the places of the trainings that have it -> how they went.
    """
    places = [np.flatnonzero(chosen == number) for number in np.unique(chosen)]
    parts = [play(int(chosen[mine[0]]), mine) for mine in places]
    return Outcomes.join(parts).take(np.argsort(np.concatenate(places)))


def part_of(trainings: Trainings, places: Sequence[int] | Any) -> Trainings:
    """Those at some places."""
    tasks, seeds = trainings.tasks, trainings.seeds
    return Trainings(
        tuple(tasks[place] for place in places), tuple(seeds[place] for place in places), trainings.dataset
    )


@dataclass(frozen=True)
class Controlled:
    """A controller of one file.

    Attributes:
        name, optimizer: see `Contender`.
        digest: SHA-256 of its file.
        controller: itself.
    """

    name: str
    optimizer: str
    digest: str
    controller: Controller

    @property
    def record(self) -> dict[str, Any]:
        """See `Contender`."""
        return {"controller": self.digest}

    def play(self, trainings: Trainings) -> Outcomes:
        """See `Contender.play`."""
        return play_controller(self.controller, trainings.tasks, trainings.seeds, tests=True, dataset=trainings.dataset)


CURVE_TASKS = 128  # of the training split, for what is median


@dataclass(frozen=True)
class Replayed(ABC):
    """The median decisions of a controller over tasks of the training split, replayed without feedback.

    Attributes:
        name, optimizer: see `Contender`.
        digest: SHA-256 of the controller's file.
        controller: itself.
        networks: the kinds of the tasks.
    """

    name: str
    optimizer: str
    digest: str
    controller: Controller
    networks: tuple[str, ...]

    @classmethod
    def of(cls, controlled: Controlled, networks: Sequence[str]) -> Self:
        """Those of a controller."""
        name = f"median curve of {controlled.name}"
        return cls(name, controlled.optimizer, controlled.digest, controlled.controller, tuple(networks))

    @property
    @abstractmethod
    def record(self) -> dict[str, Any]:
        """See `Contender`."""

    @abstractmethod
    def play(self, trainings: Trainings) -> Outcomes:
        """See `Contender.play`."""


class MedianCurve(Replayed):
    """Median learning rates."""

    @property
    def record(self) -> dict[str, Any]:
        """See `Contender`."""
        return {"median curve of": self.digest, "networks": self.networks, "tasks": CURVE_TASKS}

    def play(self, trainings: Trainings) -> Outcomes:
        """See `Contender.play`."""
        curve, schedule = median_curve(self), self.controller.settings.schedule

        def begin(places: Places) -> Rule:
            rates = iter(curve)
            return lambda losses: np.full(len(places), next(rates))

        return play_rules(
            trainings.tasks, trainings.seeds, begin, schedule=schedule, tests=True, dataset=trainings.dataset
        )


@lru_cache(maxsize=64)
def median_curve(replayed: MedianCurve) -> tuple[float, ...]:
    """The median over tasks of the training split of the learning rate after each action, before the base schedule."""
    tasks = training_tasks(CURVE_TASKS, replayed.networks, replayed.optimizer)
    outcomes = play_controller(replayed.controller, tasks, range(CURVE_TASKS))
    return tuple(np.median(outcomes.learning_rate, axis=0).tolist())


# --- controllers from files -----------------------------------------------------------------------------------------


def load_controllers(paths: Sequence[Path], label: str | None) -> list[Controlled]:
    """The controllers of some files, one contender per file and optimizer.

    Files whose settings and provenance are equal but for the seed are replicates: they have one name, that of the first
    file.

    Args:
        paths: of the files.
        label: the name of all of them, which makes them replicates of each other; None: from the files.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file is damaged or given twice, they are of several families, two controllers would have one
            name, or replicates differ in their optimizers.
    """
    names: dict[str, str] = {}  # of each group
    found: list[Controlled] = []
    digests: dict[str, Path] = {}
    for path in paths:
        controller, digest = Controller.load(path), hashlib.sha256(Path(path).read_bytes()).hexdigest()
        if digest in digests:
            raise ValueError(f"{path}: the same controller as {digests[digest]}; give each once")
        digests[digest] = path
        group = "" if label is not None else made_by(controller)
        if group not in names:
            name = label or name_of(path)
            if name in names.values():
                raise ValueError(f"two different controllers would be called {name!r}: rename a file, or its folder")
            names[group] = name
        found += [Controlled(names[group], one, digest, controller) for one in controller.settings.optimizers]
    require_one_family(found)
    for name in names.values():
        played = {one.digest: one.controller.settings.optimizers for one in found if one.name == name}
        if len(set(played.values())) > 1:
            raise ValueError(f"{name}: replicates must be controllers of the same optimizers; judge them one by one")
    return found


def require_one_family(controllers: Sequence[Controlled]) -> None:
    """Refuse controllers of several families, whose tasks differ.

    Raises:
        ValueError: they are.
    """
    by_family = {one.controller.settings.family: one.name for one in controllers}
    if len(by_family) > 1:
        each = ", ".join(f"{name!r} is for {family}" for family, name in by_family.items())
        raise ValueError(f"controllers of one family are judged at a time, and {each}")


def made_by(controller: Controller) -> str:
    """What a controller sees and does, and how it was made but for the seed, as JSON."""
    return json.dumps([asdict(controller.settings), without_seed(controller.provenance)], sort_keys=True)


def without_seed(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a meta-training but for the seed, also of those that it started from; else what there is."""
    config = provenance.get("config")
    if not isinstance(config, Mapping):
        return provenance
    how = {name: value for name, value in config.items() if name not in ("seed", "start")}
    start = config.get("start")
    return {**how, "start": without_seed(start)} if isinstance(start, Mapping) and start else how


def name_of(path: Path) -> str:
    """Of the file; of its folder where it has the name that meta-training gives to all."""
    return path.absolute().parent.name if path.stem == "controller" else path.stem
