"""What a bench's results say: one `Judged` per controller and budget, on one environment.

The intervals of rliable (arXiv:2108.13264) take every training as independent. Those of the differences do not: they
resample preparations and evaluation seeds, each with all that belongs to it (Owen 2007, "The pigeonhole bootstrap").
"""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]  # (preparations, evaluation seeds)

REPETITIONS = 2_000  # of a bootstrap
BASELINE = "constant"  # the controller that all scores are relative to
TARGET = "best-constant"  # the controller whose final validation loss is to be reached


@dataclass(frozen=True)
class Judged:
    """The trainings of one controller with one budget.

    Attributes:
        label: what it is called.
        controller: what it is.
        runs: its budget, in trainings.
        consumed_runs, consumed_batches: what preparing took, mean over the preparations.
        seeds: of the preparations, (P,).
        evaluation_seeds: (E,).
        test_loss, test_accuracy, validation_loss: (P, E).
        diverged: (P, E), 0 or 1.
        validation_curve: (P, E, looks), at equal distances.
        rate_curve: the same.
        chosen: what each preparation found.
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
    chosen: list[dict[str, Any]]

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


def judged(rows: Sequence[dict[str, Any]]) -> list[Judged]:
    """The finished cells of one environment, as Results hold them, by controller and budget.

    Raises:
        ValueError: the cells of a controller were judged on different seeds.
    """
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["label"], row["runs"]), []).append(row)
    return [_judge(group) for group in groups.values()]


def _judge(rows: list[dict[str, Any]]) -> Judged:
    first = rows[0]
    seeds, places = (sorted({row[name] for row in rows}) for name in ("seed", "evaluation_seed"))
    if len(rows) != len(seeds) * len(places):
        raise ValueError(f"{first['label']} ({first['runs']} runs) was judged on different seeds: give it two labels")
    rows = sorted(rows, key=lambda row: (row["seed"], row["evaluation_seed"]))

    def matrix(name: str) -> Matrix:
        return np.array([row[name] for row in rows], np.float64).reshape(len(seeds), len(places))

    looks = max(len(row["validation_curve"]) for row in rows)

    def curves(name: str) -> NDArray[np.float64]:
        # A diverged training is shorter: it stays where it ended.
        padded = [list(row[name]) + [row[name][-1]] * (looks - len(row[name])) for row in rows]
        return np.array(padded, np.float64).reshape(len(seeds), len(places), looks)

    return Judged(
        label=first["label"],
        controller=first["controller"],
        runs=first["runs"],
        consumed_runs=float(np.mean([row["consumed_runs"] for row in rows])),
        consumed_batches=float(np.mean([row["consumed_batches"] for row in rows])),
        seeds=seeds,
        evaluation_seeds=places,
        test_loss=matrix("test_loss"),
        test_accuracy=matrix("test_accuracy"),
        validation_loss=matrix("validation_loss"),
        diverged=matrix("diverged"),
        validation_curve=curves("validation_curve"),
        rate_curve=curves("rate_curve"),
        chosen=[json.loads(row["chosen"]) for row in rows[:: len(places)]],
    )


# --- scores ---------------------------------------------------------------------------------------------------------


def scores(mine: Judged, baseline: Judged) -> NDArray[np.float64]:
    """ln(test loss of the baseline / mine) on the same evaluation seed, (P * E,): 0 is as good, more is better."""
    return np.log(baseline.test_loss.mean(axis=0)[None] / mine.test_loss).ravel()


@contextmanager
def _seeded() -> Iterator[None]:
    """rliable draws from NumPy's global generator, whatever it is given: here the same each time; left as it was."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


@_seeded()
def interquartile_means(all_scores: dict[str, NDArray[np.float64]]) -> dict[str, Estimate]:
    """IQM and its stratified-bootstrap interval, by rliable; all_scores: name -> (trainings, environments)."""
    from rliable import library, metrics

    values, intervals = library.get_interval_estimates(
        all_scores, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=REPETITIONS
    )
    return {name: Estimate(float(values[name][0]), *map(float, intervals[name][:, 0])) for name in all_scores}


@_seeded()
def probability_of_improvement(mine: NDArray[np.float64], other: NDArray[np.float64]) -> Estimate:
    """P(mine > other) and its interval, by rliable; (trainings, environments) each."""
    from rliable import library, metrics

    values, intervals = library.get_interval_estimates(
        {"": (mine, other)},
        lambda x, y: np.array([metrics.probability_of_improvement(x, y)]),
        reps=REPETITIONS // 4,
    )
    return Estimate(float(values[""][0]), *map(float, intervals[""][:, 0]))


@_seeded()
def profiles(all_scores: dict[str, NDArray[np.float64]], taus: NDArray[np.float64]) -> Any:
    """Performance profiles by rliable: the share of trainings with a score above each tau, and intervals."""
    from rliable import library

    return library.create_performance_profile(all_scores, taus, reps=REPETITIONS // 4)


# --- paired differences ---------------------------------------------------------------------------------------------


def difference(mine: Matrix, other: Matrix) -> Estimate:
    """Mean of mine - other on the same evaluation seeds, its interval by the pigeonhole bootstrap.

    Args:
        mine: (P, E).
        other: (Q, E): with Q = P the preparations are resampled in pairs, which share a seed; else each by itself.
    """
    rng = np.random.default_rng(0)
    paired = len(mine) == len(other)
    values = np.empty(REPETITIONS)
    for number in range(REPETITIONS):
        places = rng.integers(mine.shape[1], size=mine.shape[1])
        rows = rng.integers(len(mine), size=len(mine))
        others = rows if paired else rng.integers(len(other), size=len(other))
        values[number] = mine[np.ix_(rows, places)].mean() - other[np.ix_(others, places)].mean()
    low, high = np.percentile(values, [2.5, 97.5])
    return Estimate(float(mine.mean() - other.mean()), float(low), float(high))


def mean_ranks(all_judged: Sequence[Judged]) -> dict[str, float]:
    """The rank by test loss among all controllers, mean over the evaluation seeds (1 is best)."""
    from scipy.stats import rankdata

    losses = np.stack([one.test_loss.mean(axis=0) for one in all_judged])  # (controllers, E)
    return dict(zip((one.name for one in all_judged), rankdata(losses, axis=0).mean(axis=1), strict=True))


def steps_to(mine: Judged, target: Judged) -> NDArray[np.float64]:
    """The share of the training until the validation loss was first down to the target's final one, (P, E).

    The target's is the mean over its preparations on the same evaluation seed; inf: never reached.
    """
    goal = target.validation_loss.mean(axis=0)[None, :, None]  # (1, E, 1)
    reached = mine.validation_curve <= goal  # (P, E, looks)
    share = reached.argmax(axis=2) / (reached.shape[2] - 1)
    return np.where(reached.any(axis=2), share, math.inf)


def area(mine: Judged) -> Matrix:
    """The mean of ln(validation loss) over the training, (P, E), by the trapezoidal rule."""
    levels = np.log(mine.validation_curve)
    return (levels[..., 1:] + levels[..., :-1]).mean(axis=2) / 2
