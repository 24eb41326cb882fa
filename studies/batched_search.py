"""A search by Optuna that tries several settings at once, each best so far as it is found: for base.py and room.py."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
import optuna
from numpy.typing import NDArray

Tried = TypeVar("Tried")


def bests(
    suggest: Callable[[optuna.Trial], Tried],
    measure: Callable[[list[Tried]], NDArray[np.float64]],
    trials: int,
    at_once: int,
    first: Sequence[Mapping[str, float]] = (),
) -> Iterator[tuple[int, Tried, NDArray[np.float64], float]]:
    """Each best so far: its number, from 1, what was tried, what was measured of it and its geometric mean.

    Args:
        suggest: draws what is to be tried.
        measure: of so many the (tried, measurements), above 0; the lower their geometric mean the better.
        trials: how many to try, in waves of `at_once`.
        first: parameters to try before any is drawn.
    """
    sampler = optuna.samplers.TPESampler(seed=0, multivariate=True, constant_liar=True, n_startup_trials=24)
    study, best = optuna.create_study(sampler=sampler), np.inf
    for parameters in first:
        study.enqueue_trial(dict(parameters))
    for _ in range(0, trials, at_once):
        wave = [study.ask() for _ in range(at_once)]
        tried = [suggest(trial) for trial in wave]
        for trial, one, measured in zip(wave, tried, measure(tried), strict=True):
            value = float(np.log(measured).mean())
            study.tell(trial, value)
            if value < best:
                best = value
                yield trial.number + 1, one, measured, float(np.exp(value))
