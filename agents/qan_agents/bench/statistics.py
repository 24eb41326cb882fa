"""Statistics of the results: `ControllerScores` of every controller and budget on one environment, and comparisons.

The intervals of rliable (arXiv:2108.13264) take every training run as independent. Those of the differences do not:
they resample preparations and evaluation seeds, each with all that belongs to it (Owen 2007, "The pigeonhole
bootstrap").
"""

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qan_agents.bench.results import Row, require_same_controller

Matrix = NDArray[np.float64]  # (preparations, evaluation seeds)

REPETITIONS = 2_000  # of a bootstrap
BASELINE = "constant"  # the controller that all scores are relative to
TARGET = "best-constant"  # the controller whose final validation loss is to be reached


@dataclass(frozen=True)
class ControllerScores:
    """The evaluation of one controller with one budget: P preparations, on E seeds each.

    Attributes:
        label: its name in tables.
        controller: its kind.
        runs: its budget, in training runs.
        consumed_runs, consumed_batches: by a preparation, mean over the preparations.
        seeds: of the preparations, P.
        evaluation_seeds: E.
        test_loss, test_accuracy, validation_loss: (P, E), at the end.
        diverged: (P, E), 0 or 1.
        validation_curve: (P, E, V), the validation loss at equal distances over the training run.
        rate_curve: (P, E, V), the learning rate at the same times.
    """

    label: str
    controller: str
    runs: int
    consumed_runs: float
    consumed_batches: float
    seeds: list[int]
    evaluation_seeds: list[int]
    test_loss: Matrix
    test_accuracy: Matrix
    validation_loss: Matrix
    diverged: Matrix
    validation_curve: NDArray[np.float64]
    rate_curve: NDArray[np.float64]

    @property
    def name(self) -> str:
        """The label, with the budget where there is one."""
        return f"{self.label} ({self.runs})" if self.runs else self.label


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


def seeds_of_cells(rows: Sequence[Row]) -> dict[tuple[str, int, int], set[int]]:
    """The evaluation seeds that each of some finished cells has, by its label, budget and seed."""
    cells: dict[tuple[str, int, int], set[int]] = {}
    for row in rows:
        cells.setdefault((row["label"], row["runs"], row["seed"]), set()).add(row["evaluation_seed"])
    return cells


def common_seeds(rows: Sequence[Row]) -> list[int]:
    """The evaluation seeds that all of some finished cells have."""
    return sorted(set.intersection(*seeds_of_cells(rows).values()))


def controller_scores(rows: Sequence[Row], evaluation_seeds: Collection[int]) -> list[ControllerScores]:
    """The finished cells of one environment, as `Results` holds them, by controller and budget.

    Args:
        rows: of the cells; what is there twice, by two grids, counts once.
        evaluation_seeds: that are compared, which every cell has.

    Raises:
        ValueError: a cell lacks a seed, or one label stands for two controllers.
    """
    groups: dict[tuple[str, int], dict[tuple[int, int], Row]] = {}
    who: dict[str, tuple[str, str, str]] = {}
    for row in rows:
        this = row["label"], row["controller"], row["settings"]
        require_same_controller(who.setdefault(row["label"], this), this)
        if row["evaluation_seed"] in evaluation_seeds:
            place = row["seed"], row["evaluation_seed"]
            groups.setdefault((row["label"], row["runs"]), {}).setdefault(place, row)
    return [_scores_of(list(group.values())) for group in groups.values()]


def _scores_of(rows: list[Row]) -> ControllerScores:
    first = rows[0]
    seeds, evaluation_seeds = (sorted({row[name] for row in rows}) for name in ("seed", "evaluation_seed"))
    if len(rows) != len(seeds) * len(evaluation_seeds):
        raise ValueError(f"{first['label']} ({first['runs']} runs): its preparations were evaluated on different seeds")
    rows = sorted(rows, key=lambda row: (row["seed"], row["evaluation_seed"]))

    def matrix(name: str) -> Matrix:
        return np.array([row[name] for row in rows], np.float64).reshape(len(seeds), len(evaluation_seeds))

    measurements = max(len(row["validation_curve"]) for row in rows)

    def curves(name: str) -> NDArray[np.float64]:
        # That of a training run that diverged is shorter; it goes on with its last value.
        padded = [list(row[name]) + [row[name][-1]] * (measurements - len(row[name])) for row in rows]
        return np.array(padded, np.float64).reshape(len(seeds), len(evaluation_seeds), measurements)

    return ControllerScores(
        label=first["label"],
        controller=first["controller"],
        runs=first["runs"],
        consumed_runs=float(np.mean([row["consumed_runs"] for row in rows])),
        consumed_batches=float(np.mean([row["consumed_batches"] for row in rows])),
        seeds=seeds,
        evaluation_seeds=evaluation_seeds,
        test_loss=matrix("test_loss"),
        test_accuracy=matrix("test_accuracy"),
        validation_loss=matrix("validation_loss"),
        diverged=matrix("diverged"),
        validation_curve=curves("validation_curve"),
        rate_curve=curves("rate_curve"),
    )


# --- scores ---------------------------------------------------------------------------------------------------------


def relative_scores(one: ControllerScores, baseline: ControllerScores) -> NDArray[np.float64]:
    """ln(test loss of the baseline / that of `one`) on the same evaluation seed, (P * E,); higher is better.

    The test loss of the baseline is the mean over its preparations.
    """
    scores: NDArray[np.float64] = np.log(baseline.test_loss.mean(axis=0)[None] / one.test_loss).ravel()
    return scores


@contextmanager
def _seeded() -> Iterator[None]:
    """Seed NumPy's global generator, which rliable draws from, with 0; its state is restored afterwards."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


@_seeded()
def interquartile_means(all_scores: dict[str, NDArray[np.float64]]) -> dict[str, Estimate]:
    """IQM and its stratified-bootstrap interval, by rliable; all_scores: name -> (training runs, environments)."""
    from rliable import library, metrics

    values, intervals = library.get_interval_estimates(
        all_scores, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=REPETITIONS
    )
    return {name: Estimate(float(values[name][0]), *map(float, intervals[name][:, 0])) for name in all_scores}


@_seeded()
def probability_of_improvement(one: NDArray[np.float64], other: NDArray[np.float64]) -> Estimate:
    """P(one > other) and its interval, by rliable; scores of (training runs, environments) each."""
    from rliable import library, metrics

    values, intervals = library.get_interval_estimates(
        {"": (one, other)},
        lambda x, y: np.array([metrics.probability_of_improvement(x, y)]),
        reps=REPETITIONS // 4,
    )
    return Estimate(float(values[""][0]), *map(float, intervals[""][:, 0]))


@_seeded()
def performance_profiles(all_scores: dict[str, NDArray[np.float64]], taus: NDArray[np.float64]) -> Any:
    """Performance profiles by rliable: the share of training runs with a score above each tau, and its intervals."""
    from rliable import library

    return library.create_performance_profile(all_scores, taus, reps=REPETITIONS // 4)


def profiles_title(all_scores: dict[str, NDArray[np.float64]]) -> str:
    """The title of their picture: of scores (trainings, tasks); a band resamples the trainings of each task."""
    bands = any(len(scores) > 1 for scores in all_scores.values())
    return f"performance profiles{', 95 % bands' if bands else ''}"


# --- paired differences ---------------------------------------------------------------------------------------------


def difference(one: Matrix, other: Matrix) -> Estimate:
    """Mean of one - other on the same evaluation seeds, its interval by the pigeonhole bootstrap.

    Args:
        one: (P, E).
        other: (Q, E): with Q = P the preparations are resampled in pairs, which share a seed; else each by itself.
    """
    rng = np.random.default_rng(0)
    paired = len(one) == len(other)
    values = np.empty(REPETITIONS)
    for number in range(REPETITIONS):
        seeds = rng.integers(one.shape[1], size=one.shape[1])
        rows = rng.integers(len(one), size=len(one))
        others = rows if paired else rng.integers(len(other), size=len(other))
        values[number] = one[np.ix_(rows, seeds)].mean() - other[np.ix_(others, seeds)].mean()
    low, high = np.percentile(values, [2.5, 97.5])
    return Estimate(float(one.mean() - other.mean()), float(low), float(high))


# --- ranks and curves -----------------------------------------------------------------------------------------------


def mean_ranks(everyone: Sequence[ControllerScores]) -> dict[str, float]:
    """The rank by test loss among all controllers, mean over the evaluation seeds (1 is best), by name."""
    from scipy.stats import rankdata

    losses = np.stack([one.test_loss.mean(axis=0) for one in everyone])  # (controllers, E)
    return dict(zip((one.name for one in everyone), rankdata(losses, axis=0).mean(axis=1), strict=True))


def share_until(one: ControllerScores, target: ControllerScores) -> NDArray[np.float64]:
    """The share of the training run until the validation loss was first down to the target's final one, (P, E).

    The target's is the mean over its preparations on the same evaluation seed; inf: never reached.
    """
    goal = target.validation_loss.mean(axis=0)[None, :, None]  # (1, E, 1)
    reached = one.validation_curve <= goal  # (P, E, V)
    share = reached.argmax(axis=2) / (reached.shape[2] - 1)
    return np.where(reached.any(axis=2), share, math.inf)


def mean_log_loss(one: ControllerScores) -> Matrix:
    """The mean of ln(validation loss) over the training run, (P, E), by the trapezoidal rule."""
    losses = np.log(one.validation_curve)
    mean: Matrix = (losses[..., 1:] + losses[..., :-1]).mean(axis=2) / 2
    return mean
