"""Rivals of controllers of the shares of the classes: shuffled SGD, fixed rules, and the best rule of each task."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qan_agents.controllers.controller import Controller
from qan_agents.controllers.trainings import Act, Outcomes, play_class_rule, play_class_shares
from qan_agents.judging.contenders import Contender, Single, part_of
from qan_agents.judging.methods import Range, Settings
from qan_agents.judging.problems import Trainings, tuning_seed
from qan_agents.policies.class_rules import RULES, Rule
from qan_gym.families.long_tail import DECISIONS, VERSION, LongTailTask, draw_task

OPTIMIZER = "sgd"  # of the family's tasks
CURVE_TASKS = 128  # of the training split, for a median mixture
TRAININGS = 2  # of each rule on a task, by which the best one is chosen


@dataclass(frozen=True)
class ClassRule:
    """A fixed rule for the shares of the classes, or shuffled SGD; nothing of it is searched.

    Attributes:
        rule: of `RULES`; None: shuffled SGD.
        class_weights: see `TaskConfig.class_weights`.
        version: of the tasks.
    """

    rule: Rule | None
    class_weights: float = 0.0
    version: int = VERSION
    optimizer: ClassVar[str] = OPTIMIZER
    ranges: ClassVar[dict[str, Range]] = {}
    slow: ClassVar[bool] = False

    def play(self, trainings: Trainings, settings: Settings, *, tests: bool) -> Outcomes:
        """See `Method.play`."""
        return play_class_rule(
            trainings.tasks,
            trainings.seeds,
            self.rule,
            class_weights=self.class_weights,
            tests=tests,
            dataset=trainings.dataset,
        )


METHODS: dict[str, ClassRule] = {
    "shuffled": ClassRule(None),
    "class-weighted": ClassRule(None, class_weights=1.0),
    "class-weighted 0.99": ClassRule(None, class_weights=0.99),
    "class-weighted 0.9": ClassRule(None, class_weights=0.9),
    **{name: ClassRule(rule) for name, rule in RULES.items() if name != "natural"},
}


@dataclass(frozen=True)
class BestOfRules:
    """The best of all METHODS on each task itself, by the mean of ln(validation loss) over trainings of other seeds."""

    name: str = f"best rule of each task ({TRAININGS * len(METHODS)})"
    optimizer: ClassVar[str] = OPTIMIZER

    @property
    def record(self) -> dict[str, Any]:
        """See `Contender`."""
        return {"best of": repr(METHODS), "trainings": TRAININGS}

    def play(self, trainings: Trainings) -> Outcomes:
        """See `Contender.play`."""
        tasks = tuple(dict.fromkeys(trainings.tasks))
        seeds = tuple(tuning_seed(task, number) for task in tasks for number in range(TRAININGS))
        wide = Trainings(tuple(task for task in tasks for _ in range(TRAININGS)), seeds, trainings.dataset)
        losses = [np.log(one.play(wide, {}, tests=False).validation_loss) for one in METHODS.values()]
        means = np.reshape(losses, (len(METHODS), len(tasks), TRAININGS)).mean(axis=2)
        chosen = dict(zip(tasks, means.argmin(axis=0).tolist(), strict=True))
        best = np.array([chosen[task] for task in trainings.tasks])
        parts, places = [], []
        for number, method in enumerate(METHODS.values()):
            mine = np.flatnonzero(best == number)
            if len(mine):
                parts.append(method.play(part_of(trainings, mine), {}, tests=True))
                places.append(mine)
        return Outcomes.join(parts).take(np.argsort(np.concatenate(places)))


def class_rivals() -> dict[str, Contender]:
    """All of them by name, in the order of tables."""
    singles = {f"single {name}": Single(f"single {name}", one, (("mlp", ()),)) for name, one in METHODS.items()}
    best = BestOfRules()
    return {**singles, best.name: best}


# --- a controller without feedback ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class MedianMixture:
    """The median actions of a controller over tasks of the training split, replayed without feedback.

    They are those of the number of the action and of the rank of a class by its size, for which class is rare differs
    between tasks.

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

    @property
    def record(self) -> dict[str, Any]:
        """See `Contender`."""
        about = {"networks": self.networks, "tasks": CURVE_TASKS, "version": VERSION}
        return {"median mixture of": self.digest, **about}

    def play(self, trainings: Trainings) -> Outcomes:
        """See `Contender.play`."""
        actions, tasks = np.array(median_actions(self)), trainings.tasks

        def begin(places: NDArray[np.int64]) -> Act:
            ranked = by_rank([tasks[place] for place in places])
            each = iter(actions)

            def act(_: NDArray[np.float32]) -> NDArray[np.float32]:
                chosen = np.empty(ranked.shape, np.float32)
                np.put_along_axis(chosen, ranked, np.broadcast_to(next(each), ranked.shape), axis=1)
                return chosen

            return act

        return play_class_shares(tasks, trainings.seeds, begin, tests=True, dataset=trainings.dataset)


@lru_cache(maxsize=64)
def median_actions(replayed: MedianMixture) -> tuple[tuple[float, ...], ...]:
    """(DECISIONS, K), of the largest class first."""
    tasks = [draw_task("train", number, replayed.networks) for number in range(CURVE_TASKS)]
    played = np.empty((DECISIONS, CURVE_TASKS, len(tasks[0].classes)), np.float32)

    def begin(places: NDArray[np.int64]) -> Act:
        player, ranked = replayed.controller.player(len(places)), by_rank([tasks[place] for place in places])
        numbers = iter(range(DECISIONS))

        def act(observations: NDArray[np.float32]) -> NDArray[np.float32]:
            chosen = player(observations)
            played[next(numbers), places] = np.take_along_axis(chosen, ranked, axis=1)
            return chosen

        return act

    config = replayed.controller.config()
    play_class_shares(tasks, range(CURVE_TASKS), begin, config=config)
    return tuple(map(tuple, np.median(played, axis=1).tolist()))


def by_rank(tasks: list[LongTailTask]) -> NDArray[np.int64]:
    """(n, K), the classes of each task, the largest first."""
    return np.argsort([[-size for size in task.class_sizes] for task in tasks], axis=1, kind="stable")
