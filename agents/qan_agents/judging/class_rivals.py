"""Rivals of controllers of the shares of the classes: shuffled SGD, fixed rules, and the best rule of each task."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qan_agents.controllers.trainings import Act, Outcomes, play_tasks
from qan_agents.judging.contenders import CURVE_TASKS, Contender, Replayed, Single, part_of, play_chosen
from qan_agents.judging.methods import Method, Places, Range, Settings
from qan_agents.judging.problems import LONG_TAIL, Trainings, tuning_seed
from qan_agents.policies.class_rules import RULES, Rule, rule_actions
from qan_gym.families.long_tail import DECISIONS, VERSION, LongTailTask, draw_task
from qan_gym.families.training import FamilyTraining
from qan_gym.tasks import TASKS

OPTIMIZER = "sgd"  # of the family's tasks
SHARES = replace(TASKS[LONG_TAIL], continuous=True)
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
        rule = self.rule

        def begin(training: FamilyTraining, places: Places) -> Act:
            if rule is None:
                return lambda observations: np.zeros((len(places), training.parts.n_classes), np.float32)
            return lambda observations: rule_actions(rule, training)

        config = replace(SHARES, dataset=trainings.dataset, class_weights=self.class_weights)
        return play_tasks(trainings.tasks, trainings.seeds, config, begin, tests, shuffled=rule is None)


@dataclass(frozen=True)
class RandomShares:
    """New shares for every action, of logits uniform in [-1, 1], which follow from the seed of the training."""

    version: int = VERSION
    optimizer: ClassVar[str] = OPTIMIZER
    ranges: ClassVar[dict[str, Range]] = {}
    slow: ClassVar[bool] = False

    def play(self, trainings: Trainings, settings: Settings, *, tests: bool) -> Outcomes:
        """See `Method.play`."""

        def begin(training: FamilyTraining, places: Places) -> Act:
            draws, classes = (
                [np.random.default_rng(trainings.seeds[place]) for place in places],
                training.parts.n_classes,
            )
            return lambda observations: np.array([draw.uniform(-1, 1, classes) for draw in draws], np.float32)

        config = replace(SHARES, dataset=trainings.dataset)
        return play_tasks(trainings.tasks, trainings.seeds, config, begin, tests)


METHODS: dict[str, ClassRule] = {  # of which the best is chosen on a task
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
        methods = list(METHODS.values())
        return play_chosen(
            np.array([chosen[task] for task in trainings.tasks]),
            lambda number, mine: methods[number].play(part_of(trainings, mine), {}, tests=True),
        )


def class_rivals() -> dict[str, Contender]:
    """All of them by name, in the order of tables."""
    methods: dict[str, Method] = {**METHODS, "random": RandomShares()}
    singles = {f"single {name}": Single(f"single {name}", one, (("mlp", ()),)) for name, one in methods.items()}
    best = BestOfRules()
    return {**singles, best.name: best}


# --- a controller without feedback ----------------------------------------------------------------------------------


class MedianMixture(Replayed):
    """Median actions, of the number of the action and the rank of a class by its size: which is rare differs."""

    @property
    def record(self) -> dict[str, Any]:
        """See `Contender`."""
        about = {"networks": self.networks, "tasks": CURVE_TASKS, "version": VERSION}
        return {"median mixture of": self.digest, **about}

    def play(self, trainings: Trainings) -> Outcomes:
        """See `Contender.play`."""
        actions, tasks = np.array(median_actions(self)), trainings.tasks

        def begin(training: FamilyTraining, places: Places) -> Act:
            ranked = by_rank([tasks[place] for place in places])
            each = iter(actions)

            def act(_: NDArray[np.float32]) -> NDArray[np.float32]:
                chosen = np.empty(ranked.shape, np.float32)
                np.put_along_axis(chosen, ranked, np.broadcast_to(next(each), ranked.shape), axis=1)
                return chosen

            return act

        return play_tasks(tasks, trainings.seeds, replace(SHARES, dataset=trainings.dataset), begin, tests=True)


@lru_cache(maxsize=64)
def median_actions(replayed: MedianMixture) -> tuple[tuple[float, ...], ...]:
    """(DECISIONS, K), of the largest class first."""
    tasks = [draw_task("train", number, replayed.networks) for number in range(CURVE_TASKS)]
    played = np.empty((DECISIONS, CURVE_TASKS, len(tasks[0].classes)), np.float32)

    def begin(training: FamilyTraining, places: Places) -> Act:
        player, ranked = replayed.controller.player(len(places)), by_rank([tasks[place] for place in places])
        numbers = iter(range(DECISIONS))

        def act(observations: NDArray[np.float32]) -> NDArray[np.float32]:
            chosen = player(observations)
            played[next(numbers), places] = np.take_along_axis(chosen, ranked, axis=1)
            return chosen

        return act

    play_tasks(tasks, range(CURVE_TASKS), replayed.controller.config(), begin, tests=False)
    return tuple(map(tuple, np.median(played, axis=1).tolist()))


def by_rank(tasks: list[LongTailTask]) -> NDArray[np.int64]:
    """(n, K), the classes of each task, the largest first."""
    return np.argsort([[-size for size in task.class_sizes] for task in tasks], axis=1, kind="stable")
