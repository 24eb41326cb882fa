"""A search by Optuna that measures several candidates at once, for the studies that search schedules."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import optuna
from numpy.typing import NDArray

Candidate = TypeVar("Candidate")


@dataclass(frozen=True)
class Improvement(Generic[Candidate]):
    """The best candidate so far.

    Attributes:
        number: of the candidate, from 1.
        candidate: what was tried.
        measured: (M,) of it.
        mean: the geometric mean of `measured`.
    """

    number: int
    candidate: Candidate
    measured: NDArray[np.float64]
    mean: float


def improvements(
    suggest: Callable[[optuna.Trial], Candidate],
    measure: Callable[[list[Candidate]], NDArray[np.float64]],
    trials: int,
    batch_size: int,
    first: Sequence[Mapping[str, float]] = (),
) -> Iterator[Improvement[Candidate]]:
    """Search for the lowest geometric mean; yields each best candidate so far, as it is found.

    Args:
        suggest: draws a candidate.
        measure: of B candidates (B, M), each number above 0.
        trials: how many candidates to try, in batches.
        batch_size: B.
        first: parameters to try before any is drawn.
    """
    sampler = optuna.samplers.TPESampler(seed=0, multivariate=True, constant_liar=True, n_startup_trials=24)
    study, best = optuna.create_study(sampler=sampler), np.inf
    for parameters in first:
        study.enqueue_trial(dict(parameters))
    for _ in range(0, trials, batch_size):
        batch = [study.ask() for _ in range(batch_size)]
        candidates = [suggest(trial) for trial in batch]
        for trial, candidate, measured in zip(batch, candidates, measure(candidates), strict=True):
            value = float(np.log(measured).mean())
            study.tell(trial, value)
            if value < best:
                best = value
                yield Improvement(trial.number + 1, candidate, measured, float(np.exp(value)))
