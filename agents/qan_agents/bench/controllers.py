"""What a bench compares: everything that can control a training, each prepared on the same number of trainings.

A controller is *prepared* with a budget of training runs on tuning seeds (a schedule is tuned by Optuna, an agent is
trained), and then plays episodes on other seeds, several in lock-step. It sees training and validation data only.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from torch.optim import lr_scheduler

from qan_agents.seeds import training_seed
from qan_gym.config import TaskConfig
from qan_gym.core.references import pretrained_path, resolve_reference
from qan_gym.data.datasets import load_dataset
from qan_gym.games.learning_rate import KEEP
from qan_gym.optimizee.network import evaluate
from qan_gym.tasks import make_task_config

LEAST_RATE, LARGEST_RATE = 1e-5, 10.0  # of the schedules: wider than the game's, as a practitioner is free to choose
FAILED = 1e3  # ln-loss that a diverged run counts as in tuning
LOOKS = 25  # measurements of the validation loss in an episode

Infos = dict[str, Any]
Settings = dict[str, Any]


class Player(Protocol):
    """What plays N episodes in lock-step."""

    def start(self, env: VectorEnv) -> Settings | None:
        """Get ready for N episodes; returns the options for `env.reset`.

        Raises:
            ValueError: the player cannot play this environment.
        """

    def act(self, observations: NDArray[Any], infos: Infos) -> NDArray[Any]:
        """The N actions for what `reset` or `step` last gave."""


@dataclass(frozen=True)
class Problem:
    """What is to be controlled.

    Attributes:
        env: the id.
        env_kwargs: of `gym.make_vec`.
        runs: trainings that preparing may consume.
        seed: of the preparation; the seeds of its trainings follow from it.
        at_once: trainings in lock-step while preparing, that is of a wave.
    """

    env: str
    env_kwargs: Settings
    runs: int
    seed: int
    at_once: int = 4

    @property
    def task(self) -> TaskConfig:
        """The game."""
        return make_task_config(self.env, {name: value for name, value in self.env_kwargs.items() if name != "device"})

    def tuning_seed(self, number: int) -> int:
        """The seed of the training of that number, in [2**31, 2**32)."""
        return training_seed(self.seed, number)


@dataclass(frozen=True)
class Prepared:
    """A controller ready to play.

    Attributes:
        player: it.
        env_kwargs: of the environment that it plays, beside the problem's: how its actions are understood.
        runs, batches: trainings, and mini-batches of them, that preparing consumed.
        chosen: what was found, for the record.
    """

    player: Player
    env_kwargs: Settings = field(default_factory=dict)
    runs: int = 0
    batches: int = 0
    chosen: Settings = field(default_factory=dict)


Prepare = Callable[[Problem, Settings], Prepared]


def make_env(problem: Problem, num_envs: int, env_kwargs: Settings) -> VectorEnv:
    """N trainings of a problem that must be reset by hand, the validation loss measured LOOKS times in each."""
    arguments = {"validate_every": looking_every(problem), **problem.env_kwargs, **env_kwargs}
    return gym.make_vec(problem.env, num_envs=num_envs, autoreset_mode=AutoresetMode.DISABLED, **arguments)


def looking_every(problem: Problem) -> int:
    """Mini-batches between two measurements of the validation loss."""
    return max(1, batches_of(problem) // LOOKS)


def batches_of(problem: Problem) -> int:
    """Mini-batches of a training."""
    task, size = problem.task, len(load_dataset(problem.task.dataset).train)
    return task.epochs * (min(size, task.train_size or size) // task.batch_size)


@dataclass
class Course:
    """N episodes as they went.

    Attributes:
        validation: (looks, N), the validation loss as it was measured, that of the initial weights first.
        rates: (looks, N), the learning rate then.
        final: the last infos, (N,) each, of a diverged row those of its divergence.
        batches: (N,) mini-batches done.
    """

    validation: NDArray[np.float64]
    rates: NDArray[np.float64]
    final: dict[str, NDArray[Any]]
    batches: NDArray[np.int64]


def play(env: VectorEnv, player: Player, seeds: Sequence[int]) -> Course:
    """One episode per row of an environment in mode DISABLED; rows that end early wait as they are."""
    options = player.start(env)
    observations, infos = env.reset(seed=list(seeds), options=options)
    over = np.zeros(env.num_envs, np.bool_)
    final: dict[str, NDArray[Any]] = {}
    every = env.unwrapped.config.validate_every
    looked, validation, rates = 0, [infos["validation_loss"]], [infos["learning_rate"]]
    while not over.all():
        actions = player.act(observations, infos)
        if over.any():  # DISABLED wants what is over reset: it plays on, unheard
            observations, _ = env.reset(options={**(options or {}), "reset_mask": over})
        observations, _, terminated, truncated, infos = env.step(actions)
        ends = ~over & (terminated | truncated)
        for name, values in infos.items():
            if not name.startswith("_"):
                before = final.get(name, np.zeros_like(values))
                final[name] = np.where(over, before, values)
        over |= ends
        if final["batch"].max() // every > looked or over.all():
            looked = final["batch"].max() // every
            validation.append(final["validation_loss"].copy())
            rates.append(final["learning_rate"].copy())
    return Course(np.array(validation), np.array(rates), final, final["batch"])


# --- schedules ------------------------------------------------------------------------------------------------------

RATES = (0.005, 1.0)  # the learning rates that are tuned over: the game's range
Schedule = Callable[[torch.optim.Optimizer, int, Settings], lr_scheduler.LRScheduler]


def _constant(optimizer: torch.optim.Optimizer, steps: int, chosen: Settings) -> lr_scheduler.LRScheduler:
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)


def _step(optimizer: torch.optim.Optimizer, steps: int, chosen: Settings) -> lr_scheduler.LRScheduler:
    return lr_scheduler.MultiStepLR(optimizer, [max(1, round(chosen["at"] * steps))], chosen["factor"])


def _linear(optimizer: torch.optim.Optimizer, steps: int, chosen: Settings) -> lr_scheduler.LRScheduler:
    return lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)


def _cosine(optimizer: torch.optim.Optimizer, steps: int, chosen: Settings) -> lr_scheduler.LRScheduler:
    return lr_scheduler.CosineAnnealingLR(optimizer, steps)


def _one_cycle(optimizer: torch.optim.Optimizer, steps: int, chosen: Settings) -> lr_scheduler.LRScheduler:
    peak, start, rise = chosen["learning_rate"], chosen["start"], chosen.get("rise", 25.0)  # 25 is torch's default
    return lr_scheduler.OneCycleLR(
        optimizer, peak, total_steps=steps + 1, pct_start=start, div_factor=rise, cycle_momentum=False
    )


def _cooldown(optimizer: torch.optim.Optimizer, steps: int, chosen: Settings) -> lr_scheduler.LRScheduler:
    length = max(1, round(chosen["length"] * steps))
    return lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (steps - step) / length))


def _plateau(optimizer: torch.optim.Optimizer, steps: int, chosen: Settings) -> lr_scheduler.LRScheduler:
    return lr_scheduler.ReduceLROnPlateau(optimizer, factor=chosen["factor"], patience=chosen["patience"])


@dataclass(frozen=True)
class Family:
    """Schedules of torch's, and how they are tuned.

    Attributes:
        make: the scheduler, of an optimizer whose learning rate is set.
        space: what Optuna chooses beside the learning rate: name -> (least, largest), integers where both are.
        rates: the learning rates that it chooses from.
        optimizer: whose they are, if not the game's: keyword arguments of the environment.
    """

    make: Schedule
    space: dict[str, tuple[float, float]] = field(default_factory=dict)
    rates: tuple[float, float] = RATES
    optimizer: Settings = field(default_factory=dict)


FAMILIES = {
    "constant": Family(_constant),
    "step": Family(_step, {"factor": (0.01, 0.5), "at": (0.3, 0.9)}),
    "linear": Family(_linear),
    "cosine": Family(_cosine),
    "one-cycle": Family(_one_cycle, {"start": (0.05, 0.5)}),
    "one-cycle-wide": Family(_one_cycle, {"start": (0.05, 0.85), "rise": (1.0, 100.0)}),
    "cooldown": Family(_cooldown, {"length": (0.05, 0.5)}),
    "plateau": Family(_plateau, {"factor": (0.1, 0.7), "patience": (1, 8)}),
    "schedule-free-sgd": Family(
        _constant, rates=(0.005, 3.0), optimizer={"optimizer": "schedule-free-sgd", "momentum": 0.9}
    ),
    "schedule-free-adamw": Family(
        _constant, rates=(1e-4, 0.03), optimizer={"optimizer": "schedule-free-adamw", "momentum": 0.9}
    ),
}
ABSOLUTE = {
    "continuous": True,
    "action_scale": "absolute",
    "learning_rate_min": LEAST_RATE,
    "learning_rate_max": LARGEST_RATE,
}


class Scheduled:
    """N schedules of one family, each with its own settings, driven by torch's schedulers."""

    def __init__(self, family: Family, chosen: Sequence[Settings]) -> None:
        """chosen: one per row, or one for all."""
        self.family, self.chosen = family, chosen

    def start(self, env: VectorEnv) -> None:
        """See `Player.start`."""
        config, steps = env.unwrapped.config, env.unwrapped.episode_length
        if config.game != "learning-rate":
            raise ValueError("schedules set the learning rate, and this game does not")
        self.range = math.log(config.learning_rate_min), math.log(config.learning_rate_max)
        self.schedulers, self.optimizers = [], []
        for row in range(env.num_envs):
            chosen = self.chosen[row % len(self.chosen)]
            optimizer = torch.optim.SGD([torch.zeros(1)], lr=chosen["learning_rate"])
            self.optimizers.append(optimizer)
            self.schedulers.append(self.family.make(optimizer, steps, chosen))
        self.measured: NDArray[Any] | None = None

    def act(self, observations: NDArray[Any], infos: Infos) -> NDArray[np.float32]:
        """See `Player.act`; (N, 1), for actions on the absolute scale."""
        if self.measured is not None:
            self._advance(infos["validation_loss"])
        self.measured = infos["validation_loss"].copy()
        low, high = self.range
        rates = np.array([optimizer.param_groups[0]["lr"] for optimizer in self.optimizers], np.float64)
        places = (np.log(np.maximum(rates, LEAST_RATE)) - low) / (high - low)  # in [0, 1]
        return (2 * places - 1).astype(np.float32)[:, None]

    def _advance(self, validation_loss: NDArray[Any]) -> None:
        for scheduler, before, now in zip(self.schedulers, self.measured, validation_loss, strict=True):
            with warnings.catch_warnings():  # the scheduler is used alone: there is no optimizer.step() for it to find
                warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
                if not isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
                    scheduler.step()
                elif now != before:  # measured anew
                    scheduler.step(float(now))


def _tuned(name: str) -> Prepare:
    """A family of schedules, tuned by Optuna's TPE: waves of `at_once` trainings, each on a seed of its own."""

    def prepare(problem: Problem, settings: Settings) -> Prepared:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        family = FAMILIES[name]
        arguments = {**ABSOLUTE, **_own_optimizer(problem, family)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(seed=problem.seed, constant_liar=True)
        study = optuna.create_study(sampler=sampler)
        done, batches, env = 0, 0, None
        while done < problem.runs:
            wave = min(problem.at_once, problem.runs - done)
            if env is None or env.num_envs != wave:
                env = make_env(problem, wave, arguments)
            trials = [study.ask() for _ in range(wave)]
            chosen = [_suggest(trial, family) for trial in trials]
            course = play(env, Scheduled(family, chosen), [problem.tuning_seed(done + row) for row in range(wave)])
            for row, trial in enumerate(trials):
                diverged = bool(course.final["diverged"][row])
                study.tell(trial, FAILED if diverged else math.log(course.final["validation_loss"][row]))
            done, batches = done + wave, batches + int(course.batches.sum())
        best = study.best_params
        return Prepared(Scheduled(family, [best]), arguments, done, batches, best)

    return prepare


def _own_optimizer(problem: Problem, family: Family) -> Settings:
    """The arguments of a family that brings its optimizer: the pull is towards the same weights as everyone's."""
    if not family.optimizer:
        return {}
    import qan_agents.bench.schedule_free  # noqa: F401 (registers them)

    task = problem.task
    if task.reference != "pretrained" or resolve_reference(task) is None:
        return family.optimizer
    return {**family.optimizer, "reference": str(pretrained_path(task))}


def _suggest(trial: Any, family: Family) -> Settings:
    chosen: Settings = {"learning_rate": trial.suggest_float("learning_rate", *family.rates, log=True)}
    for name, (low, high) in family.space.items():
        if isinstance(low, int):
            chosen[name] = trial.suggest_int(name, low, high)
        else:
            chosen[name] = trial.suggest_float(name, low, high)
    return chosen


def _initial(problem: Problem, settings: Settings) -> Prepared:
    """The game's own learning rate throughout: the original's baseline. Consumes nothing."""
    rate = settings.get("learning_rate", problem.task.learning_rate)
    return Prepared(
        Scheduled(FAMILIES["constant"], [{"learning_rate": rate}]), ABSOLUTE, chosen={"learning_rate": rate}
    )


# --- fixed policies -------------------------------------------------------------------------------------------------


class Random:
    """Every action alike likely; in the mini-batch game the roulette of random classes."""

    def __init__(self, seed: int) -> None:
        """seed: of the actions."""
        self.seed = seed

    def start(self, env: VectorEnv) -> None:
        """See `Player.start`."""
        self.space = env.action_space
        self.space.seed(self.seed)

    def act(self, observations: NDArray[Any], infos: Infos) -> NDArray[Any]:
        """See `Player.act`."""
        return self.space.sample()


class Keep:
    """Play with what nobody controls: the action that changes nothing, or shuffled SGD in the mini-batch game."""

    def __init__(self, action: int, options: Settings | None = None) -> None:
        """action: always played; options: of the reset."""
        self.action, self.options = action, options

    def start(self, env: VectorEnv) -> Settings | None:
        """See `Player.start`."""
        self.rows = env.num_envs
        return self.options

    def act(self, observations: NDArray[Any], infos: Infos) -> NDArray[np.int64]:
        """See `Player.act`."""
        return np.full(self.rows, self.action)


class Balanced:
    """The mini-batch game's class-balanced batches: the classes in turn, so the roulette holds all of them alike."""

    def start(self, env: VectorEnv) -> None:
        """See `Player.start`."""
        self.rows, self.classes, self.next = env.num_envs, env.unwrapped.training.parts.n_classes, 0

    def act(self, observations: NDArray[Any], infos: Infos) -> NDArray[np.int64]:
        """See `Player.act`."""
        action, self.next = self.next, (self.next + 1) % self.classes
        return np.full(self.rows, action)


class LossProportional:
    """The mini-batch game's classes drawn with probability proportional to their loss on training images.

    The losses of the classes are measured anew every `EVERY` actions, on `IMAGES` images of each.
    """

    EVERY, IMAGES = 10, 20

    def __init__(self, seed: int) -> None:
        """seed: of the draws."""
        self.seed = seed

    def start(self, env: VectorEnv) -> None:
        """See `Player.start`."""
        self.training, self.rng, self.played = env.unwrapped.training, np.random.default_rng(self.seed), 0
        data, count = self.training.data, self.training.parts.n_classes
        labels = data.labels["train"]
        self.images = [torch.nonzero(labels == one)[: self.IMAGES, 0] for one in range(count)]

    def act(self, observations: NDArray[Any], infos: Infos) -> NDArray[np.int64]:
        """See `Player.act`."""
        if self.played % self.EVERY == 0:
            losses = self._losses()  # (N, K)
            self.shares = losses / losses.sum(axis=1, keepdims=True)
        self.played += 1
        return np.array([self.rng.choice(len(share), p=share) for share in self.shares])

    def _losses(self) -> NDArray[np.float64]:
        training = self.training
        images, labels = training.data.images["train"], training.data.labels["train"]
        losses = []
        for some in self.images:
            batch = [(training.data.normalise(images[some]), labels[some])]
            losses.append(evaluate(training.network, training.run.params, batch)[0].double().nan_to_num(FAILED))
        return torch.stack(losses, dim=1).clamp(1e-6, FAILED).cpu().numpy()


def _random(problem: Problem, settings: Settings) -> Prepared:
    return Prepared(Random(problem.seed))


def _base(problem: Problem, settings: Settings) -> Prepared:
    """What the agents play on top of, and nobody acts: how good they are before they have learned anything."""
    from qan_agents.bench.trained_agents import playing

    if problem.task.game != "learning-rate":
        raise ValueError(
            "base is a controller of the learning-rate game: in this one no action keeps things as they are"
        )
    return Prepared(Keep(KEEP), playing(problem, settings.get("env", {}), continuous=False))


def _shuffled(problem: Problem, settings: Settings) -> Prepared:
    return Prepared(Keep(0, {"sampler": "shuffled"}))


def _balanced(problem: Problem, settings: Settings) -> Prepared:
    return Prepared(Balanced())


def _loss_proportional(problem: Problem, settings: Settings) -> Prepared:
    return Prepared(LossProportional(problem.seed))


# --- the table ------------------------------------------------------------------------------------------------------

TUNED = {"best-constant": "constant", **{name: name for name in FAMILIES if name != "constant"}}
FIXED: dict[str, Prepare] = {
    "constant": _initial,
    "base": _base,
    "random": _random,
    "shuffled": _shuffled,
    "class-balanced": _balanced,
    "loss-proportional": _loss_proportional,
}
AGENTS = ("dqn-gpu", "dqn", "qr-dqn", "ppo", "sac", "td3")
CONTROLLERS = (*FIXED, *TUNED, *AGENTS)


def prepare(name: str, problem: Problem, settings: Settings) -> Prepared:
    """Make a controller ready.

    Args:
        name: one of CONTROLLERS.
        problem: what it is to control, and on what budget.
        settings: of the controller; of an agent `env` (how it plays: keyword arguments of the environment) and
            hyperparameters.

    Raises:
        ValueError: the name or a setting is unknown, or the controller does not play this game.
    """
    if name in FIXED:
        return FIXED[name](problem, settings)
    if name in TUNED:
        return _tuned(TUNED[name])(problem, settings)
    if name in AGENTS:
        from qan_agents.bench.trained_agents import train_agent

        return train_agent(name, problem, settings)
    raise ValueError(f"unknown controller {name!r}; there are {', '.join(CONTROLLERS)}")
