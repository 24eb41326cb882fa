"""Population based training (Jaderberg et al. 2017, arXiv:1711.09846) of the learning rate, in one process.

All trainings of the budget are one population, in lock-step. The result is the learning rates that the best training
and its ancestors had, which is a schedule for other seeds.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qan_agents.bench.controllers import Preparation, PreparedController, register_controller
from qan_agents.bench.tuned_schedules import (
    ABSOLUTE_ACTIONS,
    LARGEST_RATE,
    LEAST_RATE,
    absolute_actions,
    check_tuned,
    usual_rates,
)
from qan_agents.bench.tuning_task import Settings, TuningTask, make_env
from qan_gym.utils.arrays import to_numpy
from qan_gym.vector_env import QanVectorEnv

GENERATIONS = 10  # pieces of equal length, in each of which a training keeps its learning rate
SHARE = 0.2  # of the population, that goes on from the best ones
FACTORS = (0.8, 1.2)  # of the learning rate that is taken over


class PiecewiseConstant:
    """The same learning rates in every row, each for the same share of the training."""

    def __init__(self, rates: Sequence[float]) -> None:
        """rates: one after the other."""
        self.rates = np.asarray(rates, np.float64)

    def start(self, env: QanVectorEnv) -> None:
        """See `Controller.start`."""
        pieces = pieces_of(env.episode_length, len(self.rates))
        rates = np.repeat(self.rates[pieces][:, None], env.num_envs, axis=1)  # (T, N)
        self.actions = iter(absolute_actions(rates, env.config))

    def act(self, observations: NDArray[Any], infos: dict[str, Any]) -> NDArray[np.float32]:
        """See `Controller.act`; (N, 1)."""
        return next(self.actions)


def pieces_of(length: int, count: int) -> NDArray[np.int64]:
    """(T,) which of `count` pieces each of T = `length` actions is in."""
    return np.arange(length) * count // length


class Population:
    """N trainings in lock-step, the worst of which go on from the best with another learning rate.

    Attributes:
        rates: (G, N), the learning rates of each training and its ancestors, by generation.
        losses: (N,), validation loss as last measured, infinity where a training diverged.
        batches: mini-batches done by all of them.
    """

    def __init__(self, env: QanVectorEnv, seeds: Sequence[int], rng: np.random.Generator) -> None:
        """Begin.

        Args:
            env: of N rows, with ABSOLUTE_ACTIONS.
            seeds: N, of the trainings.
            rng: of the learning rates, and of who goes on from whom.
        """
        self.env, self.training, self.rng = env, env.training, rng
        env.reset(seed=list(seeds))
        n = env.num_envs
        self.pieces = pieces_of(env.episode_length, min(GENERATIONS, env.episode_length))
        self.rates = np.zeros((self.pieces[-1] + 1, n))
        low, high = map(math.log, usual_rates(env.config))
        self.rates[0] = np.exp(rng.uniform(low, high, n))
        self.losses, self.diverged, self.batches = np.zeros(n), np.zeros(n, np.bool_), 0

    def train(self) -> None:
        """Train to the end of the budget."""
        self._train(0)
        for generation in range(1, len(self.rates)):
            self.rates[generation] = self.rates[generation - 1]
            self._exploit_and_explore(generation)
            self._train(generation)

    def _train(self, generation: int) -> None:
        """The actions of a generation; a training that is over is carried along, see `Training.step`."""
        run, actions = self.training.run, absolute_actions(self.rates[generation], self.env.config)
        for _ in range((self.pieces == generation).sum()):
            playing = ~run.over
            self.training.step(actions)
            self.batches += int(run.action_batches[playing].sum())
            self.diverged |= to_numpy(self.training.info()["diverged"]) & playing
        self.training.validate_unfinished()
        losses = to_numpy(self.training.info()["validation_loss"]).astype(np.float64)
        self.losses = np.where(self.diverged, math.inf, losses)

    def _exploit_and_explore(self, generation: int) -> None:
        """Truncation selection: the worst trainings, and all that diverged, become copies of the best."""
        order = self.losses.argsort(kind="stable")
        count, playing = max(1, round(SHARE * len(order))), ~self.training.run.over
        best = order[:count][playing[order[:count]]]
        worst = order[(np.arange(len(order)) >= len(order) - count) | self.diverged[order]]
        worst = worst[playing[worst] | self.diverged[worst]]
        if len(best) == 0:
            return
        sources, factors = self.rng.choice(best, len(worst)), self.rng.choice(FACTORS, len(worst))
        self.training.copy_rows(worst.tolist(), sources.tolist())
        self.rates[:generation, worst] = self.rates[:generation, sources]
        self.rates[generation, worst] = np.clip(self.rates[generation - 1, sources] * factors, LEAST_RATE, LARGEST_RATE)
        self.diverged[worst] = False


def train_population(task: TuningTask, settings: Settings) -> PreparedController:
    """The preparation of `PiecewiseConstant`: the learning rates of the lowest final validation loss.

    Raises:
        ValueError: every training diverged.
    """
    env = make_env(task, task.runs, ABSOLUTE_ACTIONS)
    seeds = [task.tuning_seed(number) for number in range(task.runs)]
    population = Population(env, seeds, np.random.default_rng(task.seed))
    population.train()
    best = int(population.losses.argmin())
    if math.isinf(population.losses[best]):
        raise ValueError(f"all {task.runs} trainings of the population diverged")
    rates = [float(rate) for rate in population.rates[:, best]]
    return PreparedController(
        PiecewiseConstant(rates), ABSOLUTE_ACTIONS, task.runs, population.batches, {"learning_rates": rates}
    )


def check_population(task: TuningTask, settings: Settings) -> None:
    """The check of a population.

    Raises:
        ValueError: see `check_tuned`; or there is one training, which has no other to go on from.
    """
    check_tuned(task, settings)
    if task.runs < 2:
        raise ValueError("a population is at least 2 training runs, not 1")


register_controller("population", train_population, Preparation.TUNING, check_population)
