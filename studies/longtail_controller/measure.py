"""Judge a controller of the shares of the classes on held-out tasks: results/scores.csv.gz.

    python -m studies.longtail_controller.measure --controller FILE --tasks 100

The rules that are in the file for the same tasks are not played again; the controller is.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from qan_agents.class_columns import class_columns
from qan_agents.controllers.controller import Controller
from qan_agents.controllers.shipped import shipped_paths
from qan_agents.judging.class_rivals import by_rank
from qan_gym.core.class_statistics import CLASSES
from qan_gym.families.factory import family_config
from qan_gym.families.long_tail import DECISIONS, DIGITS, LongTailTask, draw_task
from qan_gym.families.record import NUMBER_LIMIT
from qan_gym.families.training import FamilyTraining, family_parts
from studies.longtail_headroom.measure import RANDOM, SHUFFLED, TRIED, actions
from studies.stored_rows import store_rows, stored_rows

SCORES = Path(__file__).parent / "results" / "scores.csv.gz"
CONTROLLER, CURVE, BLIND = "controller", "median mixture", "controller, losses hidden"
CURVE_TASKS, OFFSET = 100, 2_000  # of the training split, from the end, for what is typical of a training
FEEDBACK = ("class_loss", "class_validation_loss")
OF_CONTROLLER = (CONTROLLER, CURVE, BLIND)
MEASURED = ("validation_loss", "test_loss", "test_accuracy")

Float32 = NDArray[np.float32]
Act = Callable[[Float32, int], Float32]  # observations (n, D), number of the action -> actions (n, K)


class Typical:
    """What is typical of a controller's trainings, by the number of the action and the rank of a class by its size.

    Attributes:
        actions: (actions, K) medians over tasks of the training split, of the largest class first.
        seen: (actions, K, features of FEEDBACK) likewise, of what it saw.
    """

    def __init__(self, controller: Controller, count: int) -> None:
        """Play `count` tasks of the training split."""
        tasks = [draw_task("train", NUMBER_LIMIT - OFFSET - place, ("mlp",)) for place in range(count)]
        training, player = training_of(count), controller.player(count)
        rows, ranked = np.arange(count)[:, None], by_rank(tasks)
        self.columns = columns_of(controller)
        played: list[Float32] = []
        seen: list[Float32] = []

        def act(observations: Float32, number: int) -> Float32:
            chosen = player(observations)
            played.append(chosen[rows, ranked])
            seen.append(observations[:, self.columns][rows, ranked])
            return chosen

        play(training, tasks, act)
        self.actions, self.seen = np.median(played, axis=1), np.median(seen, axis=1)


def columns_of(controller: Controller) -> NDArray[np.int64]:
    """(K, features of FEEDBACK), where an observation has them."""
    settings = controller.settings
    own, _ = class_columns(settings.widths)
    names = [name for name, width in zip(settings.features, settings.widths, strict=True) if width > 1]
    return own[:, [names.index(name) for name in FEEDBACK]]


def training_of(count: int) -> FamilyTraining:
    """Rows for perceptrons, with the family's observation."""
    config, source = family_config("QanMinibatch-LongTail-v0", {"continuous": True, "networks": "mlp"})
    return FamilyTraining(family_parts(config, source, "cpu", "auto"), source, count)


def play(training: FamilyTraining, tasks: list[LongTailTask], act: Act, shuffled: bool = False) -> dict[str, Any]:
    """Train every task in a row of its own, with its number as the seed; `info` at the end."""
    count = len(tasks)
    numbers = np.array([task.number for task in tasks])
    observation, _ = training.reset(np.ones(count, np.bool_), numbers, shuffled=shuffled, tasks=tasks)
    for number in range(DECISIONS):
        observation = training.step(act(np.asarray(observation), number)).observation
    return {key: np.asarray(value) for key, value in training.info().items()}


def rules(training: FamilyTraining) -> dict[str, Act]:
    """Shuffled SGD and the fixed rules, by name."""

    def rule(name: str) -> Act:
        rng = np.random.default_rng(0)
        return lambda observations, number: actions(training, name, rng)

    return {name: rule(name) for name in (SHUFFLED, RANDOM, *TRIED)}


def contenders(controller: Controller, tasks: list[LongTailTask]) -> dict[str, Act]:
    """The controller, and what is left of it without feedback, by name.

    Raises:
        ValueError: it is one for another family, or sees something else than the family's observation.
    """
    if controller.settings.features != CLASSES or controller.settings.factor is not None:
        raise ValueError(f"a controller of the shares of the classes sees {', '.join(CLASSES)}; this one is another")
    count = len(tasks)
    typical, ranked, rows = Typical(controller, CURVE_TASKS), by_rank(tasks), np.arange(count)[:, None]

    def curve(observations: Float32, number: int) -> Float32:
        chosen = np.empty((count, DIGITS), np.float32)
        chosen[rows, ranked] = typical.actions[number]
        return chosen

    def blind(observations: Float32, number: int) -> Float32:
        shown = observations.copy()
        shown[rows[:, :, None], typical.columns[ranked]] = typical.seen[number]
        return controller.act(shown, controller.memory(count))[0]

    player = controller.player(count)
    played: tuple[Act, ...] = (lambda observations, number: player(observations), curve, blind)
    return dict(zip(OF_CONTROLLER, played, strict=True))


def main() -> None:
    """Play what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--controller", type=Path, default=shipped_paths().get("long-tail", {}).get(0), help="default: that ships"
    )
    parser.add_argument("--tasks", type=int, default=100, help="number 0 to TASKS - 1 of the split")
    parser.add_argument("--split", choices=("train", "test"), default="test")
    parser.add_argument("--out", type=Path, default=SCORES)
    arguments = parser.parse_args()
    tasks = [draw_task(arguments.split, number, ("mlp",)) for number in range(arguments.tasks)]
    training = training_of(len(tasks))
    todo = rules(training)
    if arguments.controller is not None:
        todo |= contenders(Controller.load(arguments.controller), tasks)
    rows = stored_rows(arguments.out)
    rows = [row for row in rows if row["rule"] not in OF_CONTROLLER]
    there = {row["rule"] for row in rows} if len(rows) == len(tasks) * len(rules(training)) else set()
    rows = rows if there else []
    for name in tqdm([name for name in todo if name not in there]):
        info = play(training, tasks, todo[name], shuffled=name == SHUFFLED)
        for row, task in enumerate(tasks):
            about = {"rule": name, "number": task.number, "imbalance": task.imbalance, "noise": max(task.label_noise)}
            rows.append({**about, **{key: f"{info[key][row]:.6g}" for key in MEASURED}})
    store_rows(arguments.out, rows)


if __name__ == "__main__":
    main()
