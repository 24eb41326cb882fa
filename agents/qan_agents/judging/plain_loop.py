"""Optimizers of other packages, in a plain loop of PyTorch, on the environment's own tasks.

Network, data, initial weights, order of mini-batches, loss and its running mean are those of the environment's training
of the same task and seed; only the optimizer is another one.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from prodigyopt import Prodigy
from schedulefree import AdamWScheduleFree, SGDScheduleFree
from torch import Tensor

from qan_agents.controllers.trainings import PLAIN, SPLITS, Outcomes, bounded
from qan_agents.judging.methods import RATES, Range, Settings, each
from qan_agents.judging.problems import Trainings
from qan_gym.core.components import Components, build_components
from qan_gym.core.reward import CHANCES
from qan_gym.core.run_state import LOSS_LIMIT
from qan_gym.families.task import DECISIONS, Task
from qan_gym.optimizee.network import Params, evaluate, leaves, loss_and_gradients
from qan_gym.schedules import cosine
from qan_gym.utils import random_streams
from qan_gym.utils.own_settings import own_settings

EVALUATED = 500  # images in a pass

Rate = Callable[[float], float]  # share of the budget -> learning rate
Make = Callable[[list[Tensor], Task], torch.optim.Optimizer]  # parameters, and the task that they are trained on


class PlainTraining:
    """One training in PyTorch.

    Attributes:
        task: what is trained.
        parts: the components of the task.
        params: of the network, (1, *shape) each.
        trained: those that gradients are taken for.
    """

    def __init__(self, task: Task, seed: int, dataset: str) -> None:
        """Begin, with the initial weights of the seed."""
        self.task, self.seed = task, seed
        config = replace(PLAIN, dataset=dataset, **task.settings())
        self.parts: Components = build_components(config, "cpu", "torch")
        network = self.parts.network
        initial = network.initial_params(torch.tensor([seed]), task.initial_scale)
        self.params: Params = leaves(network, {name: value.clone() for name, value in initial.items()})
        self.trained = [self.params[name] for name in network.trained]
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def evaluate(self, split: str) -> tuple[float, float]:
        """Mean cross-entropy and accuracy."""
        found = evaluate(self.parts.network, self.params, self.parts.data.batches(split, EVALUATED))
        return float(found[0]), float(found[1])

    def gradient(self, number: int) -> float:
        """The loss on a mini-batch, nats times the loss scale; its gradient becomes that of the parameters."""
        data, task = self.parts.data, self.task
        indices = self._indices(number)[None]
        loss, gradients = loss_and_gradients(
            self.parts.network,
            self.params,
            data.normalise(data.images["train"][indices]),
            data.labels["train"][indices],
            None,
            None,
            scale=torch.tensor([task.loss_scale]),
        )
        for parameter, gradient in zip(self.trained, gradients.values(), strict=True):
            parameter.grad = gradient
        return float(loss)

    def _indices(self, number: int) -> Tensor:
        """Those of `qan_gym.families.engine.mini_batch`, of which the order of an epoch is computed at once."""
        epoch, place = divmod(number, self.parts.batches_per_epoch)
        size = self.task.batch_size
        if epoch != self._epoch:
            places = np.arange(self.parts.batches_per_epoch * size)[None]
            train_size = len(self.parts.data.labels["train"])
            order = random_streams.shuffled(np.array([self.seed]), random_streams.SHUFFLED, epoch, places, train_size)
            self._epoch, self._order = epoch, torch.from_numpy(np.asarray(order[0], np.int64))
        return self._order[place * size : (place + 1) * size]

    def finite(self) -> bool:
        """Whether all weights are."""
        return all(bool(value.isfinite().all()) for value in self.trained)


def play_plain(trainings: Trainings, make: Sequence[Make], rates: Sequence[Rate], *, tests: bool) -> Outcomes:
    """Train, one after another.

    Args:
        trainings: n of them.
        make: the optimizer of each.
        rates: the learning rate of each, as a function of the share of the budget.
        tests: whether the test loss is measured too.
    """
    jobs = zip(trainings.tasks, trainings.seeds, make, rates, strict=True)
    return Outcomes.join(
        [_play(PlainTraining(task, seed, trainings.dataset), one, rate, tests) for task, seed, one, rate in jobs]
    )


@own_settings()
def _play(training: PlainTraining, make: Make, rate: Rate, tests: bool) -> Outcomes:
    task = training.task
    optimizer: Any = make(training.trained, task)
    switched = hasattr(optimizer, "eval")  # a schedule-free one trains on other weights than those it is judged by
    weight = training.parts.running_mean_weight
    mean = min(task.loss_scale * training.evaluate("validation")[0], LOSS_LIMIT)
    if switched:
        optimizer.train()
    training_loss, learning_rate = np.zeros((2, 1, DECISIONS))
    diverged = False
    for decision in range(DECISIONS):
        for number in range(decision * task.batches_per_action, (decision + 1) * task.batches_per_action):
            for group in optimizer.param_groups:
                group["lr"] = rate(number / task.budget)
            loss = training.gradient(number)
            optimizer.step()
            mean += weight * (loss - mean)
            diverged = diverged or not math.isfinite(loss)
        diverged = diverged or not training.finite()
        if diverged:
            training_loss[0, decision:], learning_rate[0, decision:] = math.nan, rate(1.0)
            break
        training_loss[0, decision] = min(mean, LOSS_LIMIT)
        learning_rate[0, decision] = optimizer.param_groups[0]["lr"]
    if switched:
        optimizer.eval()
    return _outcome(training, diverged, training_loss, learning_rate, tests)


def _outcome(training: PlainTraining, diverged: bool, training_loss: Any, learning_rate: Any, tests: bool) -> Outcomes:
    task, flags = training.task, np.array([diverged])
    most = CHANCES * np.log([len(task.classes)])
    measured = dict.fromkeys(SPLITS, (math.nan, math.nan))
    for split in SPLITS if tests else SPLITS[:1]:
        measured[split] = training.evaluate(split)
    validation, test = (bounded(np.array([measured[split][0]]), flags, most) for split in SPLITS)
    accuracy = np.array([measured["test"][1]])
    return Outcomes(
        validation, test, accuracy, flags, bounded(training_loss / task.loss_scale, flags, most), learning_rate
    )


# --- the optimizers -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScheduleFree:
    """Schedule-free SGD or AdamW (Defazio et al. 2024, arXiv:2405.15682), with its own momentum of 0.9."""

    optimizer: str
    slow: ClassVar[bool] = True

    @property
    def ranges(self) -> dict[str, Range]:
        """The learning rate."""
        low, high = RATES[self.optimizer]
        return {"learning_rate": Range(10 * low, high, log=True)}

    def play(self, trainings: Trainings, settings: Settings, *, tests: bool) -> Outcomes:
        """See `Method.play`."""
        kind = {"sgd": SGDScheduleFree, "adamw": AdamWScheduleFree}[self.optimizer]
        rates = each(settings["learning_rate"], len(trainings))

        def make(rate: float) -> Make:
            return lambda params, task: kind(params, lr=rate, weight_decay=task.weight_decay)

        return play_plain(trainings, [make(rate) for rate in rates], list(map(fixed, rates)), tests=tests)


@dataclass(frozen=True)
class ProdigyCosine:
    """Prodigy (Mishchenko and Defazio 2023, arXiv:2306.06101) as its authors advise: learning rate 1, by a cosine."""

    optimizer: str = "adamw"
    slow: ClassVar[bool] = True

    @property
    def ranges(self) -> dict[str, Range]:
        """None: it has nothing to choose."""
        return {}

    def play(self, trainings: Trainings, settings: Settings, *, tests: bool) -> Outcomes:
        """See `Method.play`."""
        n = len(trainings)
        return play_plain(trainings, [prodigy] * n, [partial(cosine, math)] * n, tests=tests)


def fixed(rate: float) -> Rate:
    """The same throughout."""
    return lambda share: rate


def prodigy(params: list[Tensor], task: Task) -> torch.optim.Optimizer:
    """With its defaults, and the task's weight decay."""
    with redirect_stdout(io.StringIO()):  # it announces its weight decay
        optimizer: torch.optim.Optimizer = Prodigy(params, weight_decay=task.weight_decay)
    return optimizer
