"""Schedules whose highest learning rate and settings are tuned by Optuna.

Every registered schedule can be tuned: `qan_agents.bench.preparation`. The controllers that are registered here are
other searches over the same shapes, and `plateau`, which follows the validation loss and is no schedule.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim.lr_scheduler import ReduceLROnPlateau

from qan_agents.bench.controllers import (
    Controller,
    Preparation,
    Prepare,
    PreparedController,
    register_controller,
    require_settings,
)
from qan_agents.bench.rollout import play_episodes
from qan_agents.bench.tuning_task import Settings, TuningTask, make_env, task_config
from qan_gym.config import TaskConfig
from qan_gym.games import learning_rate
from qan_gym.schedules import SCHEDULES
from qan_gym.utils.arrays import NUMPY
from qan_gym.vector_env import QanVectorEnv

SGD_RATES, ADAMW_RATES = (0.005, 1.0), (1e-4, 0.1)  # of a search; SGD's is the range of the game
LEAST_RATE, LARGEST_RATE = 1e-5, 10.0  # of a schedule: wider than the game's, as a practitioner is free to choose
DIVERGED = 1e3  # ln(validation loss) that stands for a diverged training run
ABSOLUTE_ACTIONS = {
    "schedule": "constant",
    "continuous": True,
    "action_scale": "absolute",
    "learning_rate_min": LEAST_RATE,
    "learning_rate_max": LARGEST_RATE,
}


# --- controllers that set the learning rate -------------------------------------------------------------------------


class ScheduleController:
    """N schedules of one shape, each with its own highest learning rate and settings."""

    def __init__(self, schedule: str, chosen: Sequence[Settings]) -> None:
        """The settings are those of a search, see `settings_of_shape`.

        Args:
            schedule: a registered name.
            chosen: `learning_rate` and settings of the schedule; one per row, or one for all.
        """
        self.schedule, self.chosen = schedule, chosen

    def start(self, env: QanVectorEnv) -> None:
        """See `Controller.start`."""
        length = env.episode_length
        chosen = (self.chosen[row % len(self.chosen)] for row in range(env.num_envs))
        rates = np.stack([scheduled_rates(self.schedule, one, length) for one in chosen], axis=1)  # (T, N)
        self.actions = iter(absolute_actions(rates, env.config))

    def act(self, observations: NDArray[Any], infos: dict[str, Any]) -> NDArray[np.float32]:
        """See `Controller.act`; (N, 1)."""
        return next(self.actions)


class PlateauController:
    """N of torch's `ReduceLROnPlateau`, each with its own settings and fed with its own validation loss."""

    def __init__(self, chosen: Sequence[Settings]) -> None:
        """chosen: `learning_rate`, `factor` and `patience`, in measurements; one per row, or one for all."""
        self.chosen = chosen

    def start(self, env: QanVectorEnv) -> None:
        """See `Controller.start`."""
        self.config = env.config
        self.schedulers = []
        for row in range(env.num_envs):
            chosen = self.chosen[row % len(self.chosen)]
            optimizer = torch.optim.SGD([torch.zeros(1)], lr=chosen["learning_rate"])
            self.schedulers.append(ReduceLROnPlateau(optimizer, factor=chosen["factor"], patience=chosen["patience"]))
        self.measured: NDArray[Any] | None = None

    def act(self, observations: NDArray[Any], infos: dict[str, Any]) -> NDArray[np.float32]:
        """See `Controller.act`; (N, 1)."""
        losses = infos["validation_loss"].copy()
        if self.measured is not None:
            for scheduler, before, now in zip(self.schedulers, self.measured, losses, strict=True):
                if now != before:  # it was measured anew
                    scheduler.step(float(now))
        self.measured = losses
        rates = np.array([scheduler.optimizer.param_groups[0]["lr"] for scheduler in self.schedulers], np.float64)
        return absolute_actions(rates, self.config)


def absolute_actions(rates: NDArray[np.float64], config: TaskConfig) -> NDArray[np.float32]:
    """Learning rates (..., N) as actions (..., N, 1) in [-1, 1] on the absolute scale.

    Raises:
        ValueError: the actions of the task are not learning rates.
    """
    if config.action_scale != "absolute" or config.schedule != "constant":
        raise ValueError(
            "schedules set the learning rate itself: they need action_scale='absolute' and schedule='constant'"
        )
    return learning_rate.absolute_actions(rates, config)[..., None]


# --- the learning rates of a schedule -------------------------------------------------------------------------------


def scheduled_rates(schedule: str, chosen: Settings, length: int) -> NDArray[np.float64]:
    """The learning rates (T,) of a schedule whose settings were found by a search, at the T = `length` actions."""
    settings = settings_of_shape(schedule, chosen, length)
    share = np.arange(length) / length
    rates: NDArray[np.float64] = np.full(length, chosen["learning_rate"])
    rates *= SCHEDULES[schedule].shape(NUMPY, share, **settings)
    return rates


def settings_of_shape(schedule: str, chosen: Settings, length: int) -> dict[str, float]:
    """The settings of a schedule's shape, from what a search chose for episodes of `length` actions.

    A search chooses what torch's schedulers take, see AS_TORCH_COUNTS; what it does not choose is as the schedule
    declares it.
    """
    declared = SCHEDULES[schedule]
    fixed = {name: low for name, (low, high) in declared.search.items() if low == high}
    settings = {**declared.settings, **fixed, **chosen}
    settings.pop("learning_rate", None)
    convert = AS_TORCH_COUNTS.get(schedule)
    return settings if convert is None else convert(settings, length)


def _on_an_action(name: str) -> Callable[[dict[str, float], int], dict[str, float]]:
    """A share of the budget, rounded to a whole number of actions."""
    return lambda settings, length: {**settings, name: max(1, round(settings[name] * length)) / length}


def _peak_of_torch(settings: dict[str, float], length: int) -> dict[str, float]:
    """`OneCycleLR` of `length` + 1 steps has its peak at start * (length + 1) - 1 of the steps from 0."""
    return {**settings, "start": (settings["start"] * (length + 1) - 1) / length}


# How torch's schedulers (MultiStepLR, LambdaLR and OneCycleLR) count a setting that is a share of the budget. They were
# what was tuned before, so that settings in older results mean the same learning rates.
AS_TORCH_COUNTS: dict[str, Callable[[dict[str, float], int], dict[str, float]]] = {
    "step": _on_an_action("at"),
    "cooldown": _on_an_action("length"),
    "one-cycle": _peak_of_torch,
}


# --- tuning ---------------------------------------------------------------------------------------------------------


def usual_rates(config: TaskConfig) -> tuple[float, float]:
    """The least and the largest learning rate that a search looks at, by the optimizer of the task."""
    return ADAMW_RATES if config.optimizer == "adamw" else SGD_RATES


@dataclass(frozen=True)
class Search:
    """What Optuna chooses.

    Attributes:
        settings: name -> (least, largest), integers where both are; not chosen where they are equal.
        learning_rates: (least, largest), in the logarithm.
    """

    settings: Mapping[str, tuple[float, float]]
    learning_rates: tuple[float, float]

    def suggest(self, trial: Any) -> Settings:
        """What a trial of Optuna's is to try."""
        chosen: Settings = {"learning_rate": trial.suggest_float("learning_rate", *self.learning_rates, log=True)}
        for name, (low, high) in self.settings.items():
            if isinstance(low, int):
                chosen[name] = trial.suggest_int(name, low, high)
            elif low < high:
                chosen[name] = trial.suggest_float(name, low, high)
        return chosen


def tune_schedule(
    schedule: str,
    search: Mapping[str, tuple[float, float]] | None = None,
    learning_rates: tuple[float, float] | None = None,
    optimizer: str | None = None,
) -> Prepare:
    """The preparation of a registered schedule by a search.

    Args:
        schedule: its name.
        search: of its settings; None: as the schedule declares it.
        learning_rates: of the highest learning rate; None: the usual ones of the task's optimizer.
        optimizer: of the bench, see `with_optimizer`; None: the task's.
    """

    def prepare(task: TuningTask, settings: Settings) -> PreparedController:
        rates = learning_rates or usual_rates(task.config)
        space = Search(SCHEDULES[schedule].search if search is None else search, rates)
        own = {} if optimizer is None else with_optimizer(optimizer)
        return tune(task, space, lambda chosen: ScheduleController(schedule, chosen), own)

    return prepare


def check_tuned(task: TuningTask, settings: Settings) -> None:
    """The check of everything that is tuned: it has no settings, and a budget.

    Raises:
        ValueError: there are settings or there is no budget, or the actions of the game do not set the learning rate.
    """
    check_unprepared(task, settings)
    if task.runs < 1:
        raise ValueError(f"it is tuned on at least 1 training run, not {task.runs}")


def tune_plateau(task: TuningTask, settings: Settings) -> PreparedController:
    """The preparation of `PlateauController`."""
    space = Search({"factor": (0.1, 0.7), "patience": (1, 8)}, usual_rates(task.config))
    return tune(task, space, PlateauController, {})


def tune(
    task: TuningTask, search: Search, make_controller: Callable[[Sequence[Settings]], Controller], env_kwargs: Settings
) -> PreparedController:
    """Search by Optuna's TPE: `task.num_envs` training runs at once, each on a seed of its own.

    Args:
        task: whose budget of training runs is used up.
        search: what is chosen.
        make_controller: from what was chosen for each row.
        env_kwargs: of the environment, beside the absolute actions.

    Returns:
        The controller with the settings of the lowest final validation loss.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    arguments = {**ABSOLUTE_ACTIONS, **env_kwargs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=task.seed, constant_liar=True)
    study = optuna.create_study(sampler=sampler)
    runs, batches, env = 0, 0, None
    while runs < task.runs:
        rows = min(task.num_envs, task.runs - runs)
        if env is None or env.num_envs != rows:
            env = make_env(task, rows, arguments)
        trials = [study.ask() for _ in range(rows)]
        controller = make_controller([search.suggest(trial) for trial in trials])
        rollout = play_episodes(env, controller, [task.tuning_seed(runs + row) for row in range(rows)])
        for row, trial in enumerate(trials):
            diverged = bool(rollout.final["diverged"][row])
            study.tell(trial, DIVERGED if diverged else math.log(rollout.final["validation_loss"][row]))
        runs, batches = runs + rows, batches + int(rollout.batches.sum())
    best = study.best_params
    return PreparedController(make_controller([best]), arguments, runs, batches, best)


def with_optimizer(name: str) -> Settings:
    """Keyword arguments of the environment for one of the bench's optimizers, which this registers."""
    import qan_agents.bench.parameter_free
    import qan_agents.bench.schedule_free  # noqa: F401 (both register optimizers)

    return {"optimizer": name, "momentum": 0.9}


_wide = tune_schedule("one-cycle", {"start": (0.05, 0.85), "rise": (1.0, 100.0)})
register_controller("best-constant", tune_schedule("constant"), Preparation.TUNING, check_tuned)
register_controller("one-cycle-wide", _wide, Preparation.TUNING, check_tuned)
register_controller("plateau", tune_plateau, Preparation.TUNING, check_tuned)
for _name, _rates in (("schedule-free-sgd", (0.005, 3.0)), ("schedule-free-adamw", (1e-4, 0.03))):
    _prepare = tune_schedule("constant", learning_rates=_rates, optimizer=_name)
    register_controller(_name, _prepare, Preparation.TUNING, check_tuned)


# --- optimizers that estimate their learning rate -------------------------------------------------------------------


def by_estimate(optimizer: str) -> Prepare:
    """The preparation of an optimizer of `qan_agents.bench.parameter_free`: learning rate 1, by a cosine."""

    def prepare(task: TuningTask, settings: Settings) -> PreparedController:
        arguments = {**ABSOLUTE_ACTIONS, **with_optimizer(optimizer)}
        return PreparedController(ScheduleController("cosine", [{"learning_rate": 1.0}]), arguments)

    return prepare


def check_unprepared(task: TuningTask, settings: Settings) -> None:
    """The check of what has no settings, and no preparation.

    Raises:
        ValueError: there are settings, or the actions of the game do not set the learning rate.
    """
    require_settings(settings, ())
    task_config(task.env, {**task.env_kwargs, **ABSOLUTE_ACTIONS})


for _name in ("d-adapt-sgd", "d-adapt-adamw", "prodigy"):
    register_controller(_name, by_estimate(_name), Preparation.NONE, check_unprepared)
