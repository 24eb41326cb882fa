"""Train the held-out tasks of the long-tail family under shuffled SGD and fixed rules; results/scores.csv.gz.

    python -m studies.longtail_headroom.measure --tasks 100

Rules that are in the file for the same tasks are not played again.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from qan_agents.policies.class_rules import RULES, Deferred, LossProportional, LossReducing, Rule, rule_actions
from qan_gym.families.factory import family_config
from qan_gym.families.long_tail import DECISIONS, DIGITS, LongTailTask, draw_task
from qan_gym.families.training import FamilyTraining, family_parts
from studies.stored_rows import store_rows, stored_rows

SCORES = Path(__file__).parent / "results" / "scores.csv.gz"
IMBALANCES, NOISES, NOISY_CLASSES = (1, 10, 100), (0.0, 0.3, 0.6), 4
SHUFFLED, RANDOM = "shuffled", "random"

# The rules that the bench has, and some with other settings.
TRIED: dict[str, Rule] = {
    **{name: rule for name, rule in RULES.items() if name not in ("natural", "loss-reducing")},
    "deferred 0.8": Deferred(0.8),
    "loss-proportional 0.5": LossProportional(0.5),
    "validation-proportional 0.5": LossProportional(0.5, validation=True),
}
REDUCING: dict[str, Rule] = {f"loss-reducing {power:g}": LossReducing(power) for power in (1.0, 0.5)}
# Shuffled SGD with class-balanced loss weights, and the beta of each.
WEIGHTED = {"class-weighted 1": 1.0, "class-weighted 0.99": 0.99, "class-weighted 0.9": 0.9}


def play(training: FamilyTraining, tasks: list[LongTailTask], name: str) -> list[dict[str, Any]]:
    """Train every task in a row of its own, with its number as the seed; returns the rows of the table."""
    count = len(tasks)
    shuffled = name == SHUFFLED or name in WEIGHTED
    training.reset(np.ones(count, np.bool_), np.arange(count), shuffled=shuffled, tasks=tasks)
    rng = np.random.default_rng(0)
    for _ in range(DECISIONS):
        training.step(actions(training, name, rng))
    info = {key: np.asarray(value) for key, value in training.info().items()}
    measured = ("validation_loss", "test_loss", "test_accuracy")
    return [
        {"rule": name, "number": task.number, **{key: f"{info[key][row]:.6g}" for key in measured}}
        for row, task in enumerate(tasks)
    ]


def actions(training: FamilyTraining, name: str, rng: np.random.Generator) -> NDArray[np.float32]:
    """The next actions, (N, K): of a rule, uniform, or any where they do nothing."""
    shape = (training.num_runs, DIGITS)
    if name == RANDOM:
        return rng.uniform(-1, 1, shape).astype(np.float32)
    if name == SHUFFLED or name in WEIGHTED:
        return np.zeros(shape, np.float32)
    return rule_actions({**TRIED, **REDUCING}[name], training)


def main() -> None:
    """Train all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=100, help="number 0 to TASKS - 1 of the test split")
    count = parser.parse_args().tasks
    rows = stored_rows(SCORES)
    names = (SHUFFLED, RANDOM, *TRIED, *REDUCING, *WEIGHTED)
    cells = [(imbalance, noise) for imbalance in IMBALANCES for noise in NOISES]
    whole = Counter(row["rule"] for row in rows)
    todo = [name for name in names if whole[name] != count * len(cells)]
    rows = [row for row in rows if row["rule"] not in todo]
    for name, (imbalance, noise) in tqdm([(name, cell) for name in todo for cell in cells]):
        tasks = [draw_task("test", number, ("mlp",), imbalance, noise, NOISY_CLASSES) for number in range(count)]
        played = play(training_of(count, WEIGHTED.get(name, 0.0)), tasks, name)
        rows += [{"imbalance": imbalance, "label_noise": noise, **row} for row in played]
    store_rows(SCORES, rows)


def training_of(count: int, class_weights: float) -> FamilyTraining:
    """Rows for perceptrons, with continuous actions."""
    arguments = {"continuous": True, "networks": "mlp", "class_weights": class_weights}
    config, source = family_config("QanMinibatch-LongTail-v0", arguments)
    return FamilyTraining(family_parts(config, source, "cpu", "auto"), source, count)


if __name__ == "__main__":
    main()
