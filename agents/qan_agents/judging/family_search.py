"""The search of the rivals' settings, on tasks of the training split alone.

    python -m qan_agents.judging.family_search
    python -m qan_agents.judging.family_search --network cnn --method "sgd linear"

Rounds as ROUNDS says: every candidate of a round is trained on its tasks; where the best ones lie, by the mean of
ln(validation loss), those of the next round are drawn, with more tasks. What is in `family_settings.json` is not
searched again: remove an entry to search it anew. The same command gives the same file.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from qan_agents.judging.family_settings import Chosen, FamilySettings, read_settings, write_settings
from qan_agents.judging.methods import Float64, Method, candidates, log_losses
from qan_agents.judging.problems import Trainings, training_tasks
from qan_agents.judging.rivals import METHODS
from qan_gym.families.learning_rate import NETWORKS

ROUNDS = ((16, 24), (8, 64), (4, 128))  # candidates, and tasks
SMALL_ROUNDS = ((12, 8), (6, 16))  # of networks, and of methods, that take ten to a hundred times longer
BEST = 4  # candidates of a round, between which the next one looks
QUANTILES = (0.05, 0.95)  # of the best learning rate of a task: where a search on one task looks,
MARGIN = 2.0  # and so much farther, as a factor
SEED = 1_000_000  # of the training on the first task


def search(method: Method, network: str, rounds: Sequence[tuple[int, int]]) -> Chosen:
    """The best settings of a method for tasks of a kind of network."""
    box = method.ranges
    ranges = {name: [one.low, one.high] for name, one in box.items()}
    for number, (count, tasks) in enumerate(rounds):
        tried = candidates(box, count, seed=number)
        losses = log_losses(method, training_work(tasks, network, method.optimizer), tried)  # (tasks, C)
        if number == 0 and "learning_rate" in tried:
            ranges["learning_rate"] = rates_of_tasks(tried["learning_rate"], losses)
        order = losses.mean(axis=0).argsort(kind="stable")[:BEST]
        tried = {name: values[order] for name, values in tried.items()}
        box = {name: replace(one, low=min(tried[name]), high=max(tried[name])) for name, one in box.items()}
        score = float(losses.mean(axis=0).min())
    settings = {name: float(f"{values[0]:.4g}") for name, values in tried.items()}
    return Chosen(settings=settings, score=round(score, 4), ranges=ranges)


def rates_of_tasks(rates: Float64, losses: Float64) -> list[float]:
    """The range of the best learning rates of tasks, from the losses (tasks, C) at the rates (C,)."""
    low, high = np.exp(np.quantile(np.log(rates[losses.argmin(axis=1)]), QUANTILES))
    return [float(f"{value:.3g}") for value in (low / MARGIN, high * MARGIN)]


def training_work(count: int, network: str, optimizer: str) -> Trainings:
    """A training on each of the first tasks of the training split."""
    return Trainings(training_tasks(count, (network,), optimizer), tuple(range(SEED, SEED + count)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Search what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=NETWORKS, default="mlp", help="the kind of the tasks")
    parser.add_argument("--method", choices=METHODS, nargs="*", default=list(METHODS), help="default: all")
    chosen = parser.parse_args(arguments)
    for name in chosen.method:
        there = read_settings()
        if METHODS[name].ranges and chosen.network not in there.methods.get(name, {}):
            small = chosen.network != "mlp" or METHODS[name].slow
            found = search(METHODS[name], chosen.network, SMALL_ROUNDS if small else ROUNDS)
            methods = {**there.methods, name: {**there.methods.get(name, {}), chosen.network: found}}
            write_settings(FamilySettings(command=there.command, version=there.version, methods=methods))
            print(name, found, flush=True)


if __name__ == "__main__":
    main()
