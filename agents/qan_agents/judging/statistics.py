"""Statistics of a judgement: what each contender has, and differences of two with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from qan_agents.bench.statistics import Estimate
from qan_agents.judging.contenders import Contender
from qan_agents.judging.problems import Problem, judged_seed
from qan_agents.judging.results import Results, key_of

Float64 = NDArray[np.float64]
Places = NDArray[np.int64]

REPETITIONS = 2_000  # of a bootstrap


@dataclass(frozen=True, eq=False)
class Scores:
    """What the R replicates of a contender have on P problems with S seeds each.

    Attributes:
        name, optimizer: of the contender.
        log_loss: (R, P, S) ln(test loss).
        accuracy: (R, P, S) of the test images, 0 to 1.
        diverged: (R, P, S), 0 or 1.
        training_loss: (R, P, S, 25) the running mean after each action, nats.
        learning_rate: (R, P, S, 25) after each action.
    """

    name: str
    optimizer: str
    log_loss: Float64
    accuracy: Float64
    diverged: Float64
    training_loss: Float64
    learning_rate: Float64

    @property
    def title(self) -> str:
        """The name, with the optimizer where the name does not say it."""
        return self.name if self.optimizer in self.name else f"{self.name} ({self.optimizer})"

    def on(self, places: Places) -> Scores:
        """The same on some of the problems."""
        curves = (self.training_loss[:, places], self.learning_rate[:, places])
        return Scores(
            self.name,
            self.optimizer,
            self.log_loss[:, places],
            self.accuracy[:, places],
            self.diverged[:, places],
            *curves,
        )


def scores_of(
    results: Results, contenders: Sequence[Contender], problems: Sequence[Problem], seeds: int
) -> list[Scores]:
    """The scores of all contenders, in their order; contenders of one name and optimizer are replicates."""
    groups: dict[tuple[str, str], list[Contender]] = {}
    for one in contenders:
        groups.setdefault((one.name, one.optimizer), []).append(one)
    found = []
    for (name, optimizer), replicates in groups.items():
        tasks = [key_of(problem, optimizer) for problem in problems]
        keys = [(key, judged_seed(one, k)) for key, one in zip(tasks, problems, strict=True) for k in range(seeds)]
        rows = [[there[key] for key in keys] for there in map(results.rows, replicates)]
        shape = (len(replicates), len(problems), seeds)

        def of(column: str, rows: list[list[dict[str, object]]] = rows, shape: tuple[int, ...] = shape) -> Float64:
            values = np.array([[row[column] for row in replicate] for replicate in rows], np.float64)
            return values.reshape(*shape, *values.shape[2:])

        found.append(
            Scores(
                name,
                optimizer,
                np.log(of("test_loss")),
                of("test_accuracy"),
                of("diverged"),
                of("training_loss"),
                of("learning_rate"),
            )
        )
    return found


# --- differences ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """How a contender compares with a rival on the same problems and seeds; negative differences are in its favour.

    Attributes:
        mean: of ln(test loss) minus the rival's, over problems, seeds and replicates.
        median: over the problems, of the mean over seeds and replicates.
        won: share of the problems on which that mean is below 0; a tie counts half.
        worst: the largest of those means.
        worst_place: the place of that problem.
        reached: median over trainings of the share of the budget until the contender's running mean of the training
            loss is first down to where the rival's ends; infinite where it never is in half of them.
        accuracy: mean difference of the test accuracy.
    """

    mean: Estimate
    median: Estimate
    won: Estimate
    worst: float
    worst_place: int
    reached: float
    accuracy: float


def difference(one: Scores, rival: Scores, places: Places | None = None) -> Difference:
    """A contender minus a rival.

    The intervals are those of a hierarchical bootstrap: problems are drawn, seeds within each of them, and replicates
    of the contender and of the rival, these in pairs where there are as many.

    Args:
        one: the contender.
        rival: on the same problems and seeds.
        places: of these problems among all.
    """
    by_problem = paired_means(one.log_loss, rival.log_loss)
    drawn = bootstrap(one.log_loss, rival.log_loss)  # (REPETITIONS, P)
    worst = int(by_problem.argmax())
    return Difference(
        mean=interval(float(by_problem.mean()), drawn.mean(axis=1)),
        median=interval(float(np.median(by_problem)), np.median(drawn, axis=1)),
        won=interval(float(share_won(by_problem)), share_won(drawn)),
        worst=float(by_problem[worst]),
        worst_place=worst if places is None else int(places[worst]),
        reached=float(np.median(share_until(one, rival))),
        accuracy=float(one.accuracy.mean() - rival.accuracy.mean()),
    )


def paired_means(one: Float64, rival: Float64) -> Float64:
    """(P,) the mean of the difference over seeds and replicates, of (R, P, S) and (Q, P, S)."""
    means: Float64 = one.mean(axis=(0, 2)) - rival.mean(axis=(0, 2))
    return means


def bootstrap(one: Float64, rival: Float64) -> Float64:
    """Resampled `paired_means`, (REPETITIONS, P): of problems that were drawn, each with drawn seeds and replicates."""
    replicates, problems, seeds = one.shape
    places = drawn_places(problems, seeds)  # (REPETITIONS, P * S)
    own = drawn_shares(replicates, 0)  # (REPETITIONS, R)
    other = own if len(rival) == replicates else drawn_shares(len(rival), 1)
    each = own @ one.reshape(replicates, -1) - other @ rival.reshape(len(rival), -1)  # (REPETITIONS, P * S)
    drawn: Float64 = np.take_along_axis(each, places, axis=1).reshape(REPETITIONS, problems, seeds).mean(axis=2)
    return drawn


@lru_cache(maxsize=8)
def drawn_places(problems: int, seeds: int) -> Places:
    """Drawn problems, and for each of them drawn seeds, (REPETITIONS, P * S): places among all P * S trainings."""
    rng = np.random.default_rng(0)
    some = rng.integers(problems, size=(REPETITIONS, problems, 1))
    which = rng.integers(seeds, size=(REPETITIONS, problems, seeds))
    return (some * seeds + which).reshape(REPETITIONS, -1)


@lru_cache(maxsize=8)
def drawn_shares(replicates: int, stream: int) -> Float64:
    """How much of each draw of replicates each of them is, (REPETITIONS, R); rows sum to 1."""
    rng = np.random.default_rng([1, stream])
    shares: Float64 = rng.multinomial(replicates, np.full(replicates, 1 / replicates), REPETITIONS) / replicates
    return shares


def interval(value: float, drawn: Float64) -> Estimate:
    """A value and the middle 95 % of its resampled ones."""
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def share_won(differences: Float64) -> Float64:
    """The share of the last axis that is below 0; a tie counts half."""
    won: Float64 = ((differences < 0) + 0.5 * (differences == 0)).mean(axis=-1)
    return won


def share_until(one: Scores, rival: Scores) -> Float64:
    """(R, P, S): see `Difference.reached`; the rival's end is the mean over its replicates. Infinite: never."""
    goal = rival.training_loss[..., -1].mean(axis=0)[None, ..., None]  # (1, P, S, 1)
    reached = one.training_loss <= goal  # (R, P, S, 25)
    share = (reached.argmax(axis=3) + 1) / reached.shape[3]
    return np.where(reached.any(axis=3), share, math.inf)


# --- the whole judgement --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judgement:
    """What was found.

    Attributes:
        problems: all of them, P.
        parts: places of problems by the name of a part, "all" first.
        judged: the controllers' scores.
        rivals: everybody else's, and those of the other controllers.
        differences: (title of a controller, title of a rival, part) -> how they compare.
    """

    problems: list[Problem]
    parts: dict[str, Places]
    judged: list[Scores]
    rivals: list[Scores]
    differences: dict[tuple[str, str, str], Difference]

    @property
    def everyone(self) -> list[Scores]:
        """From the lowest mean of ln(test loss) to the highest."""
        return sorted([*self.judged, *self.rivals], key=lambda one: one.log_loss.mean())

    def opponents(self, one: Scores) -> list[Scores]:
        """Those that a controller is compared with: everyone else."""
        return [other for other in [*self.rivals, *self.judged] if other is not one]


def judge(scores: Sequence[Scores], names: set[str], problems: Sequence[Problem]) -> Judgement:
    """Compare the contenders of some names with all others."""
    places = parts(problems)
    judged = [one for one in scores if one.name in names]
    rivals = [one for one in scores if one.name not in names]
    found = {
        (one.title, other.title, part): difference(one.on(some), other.on(some), some)
        for one in judged
        for other in scores
        if other is not one
        for part, some in places.items()
    }
    return Judgement(list(problems), places, judged, rivals, found)


# --- parts of the problems ------------------------------------------------------------------------------------------


def parts(problems: Sequence[Problem]) -> dict[str, Places]:
    """The places of all problems, of those of each kind of network, and of each third of the budgets, by name."""
    found = {"all": np.arange(len(problems))}
    kinds = np.array([problem.kind for problem in problems])
    if len(set(kinds)) > 1:
        found |= {str(kind): np.flatnonzero(kinds == kind) for kind in dict.fromkeys(kinds)}
    budgets = np.array([problem.budget for problem in problems])
    for places in np.array_split(np.argsort(budgets, kind="stable"), 3):
        if len(places):
            least, most = budgets[places].min(), budgets[places].max()
            found[f"{least:,} to {most:,} mini-batches"] = np.sort(places)
    return found
