"""Where the schedule under the agents' actions is from: a search on other tasks than those that they are judged on.

    python benchmarks/base.py [--trials 96]

The tasks are eight draws of 4,500 images of MNIST, without the 5,000 of `mnist5k` and without an image in common, each
trained on as `QanLR-MNIST5k-v0` trains, pulled towards a baseline run of its own. Optuna searches a one-cycle schedule
(peak, share of the training at which it is reached, and how many times lower it begins) for the lowest loss on 5,000
further images, which no draw has: ten times as many as the game has for validation, so luck decides less. Every
schedule is tried on every draw with the same seeds. Printed is each best so far, with the geometric mean of its losses.

It needs MNIST (`qan data --fetch`) and takes an hour and a half on one core.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import optuna
import torch
from numpy.typing import NDArray
from waves import bests

import qan_gym  # noqa: F401 (registers the ids)
from qan_agents.bench.controllers import (
    ABSOLUTE,
    FAMILIES,
    RATES,
    Problem,
    Scheduled,
    Settings,
    batches_of,
    make_env,
    play,
)
from qan_agents.seeds import UNSEEN_BELOW
from qan_gym.core.references import make_reference, reference_name
from qan_gym.data.datasets import load_dataset

GAME = "QanLR-MNIST5k-v0"
DRAWS, TRAIN, JUDGED = 8, 450, 500  # of them; images of each class in a draw, and in what all are judged on
AT_ONCE = 8  # schedules in lock-step
DIVERGED = 10.0  # the loss that a diverged training counts as
FAMILY = FAMILIES["one-cycle-wide"]


def draw_tasks(folder: Path) -> list[Problem]:
    """Write the draws into a folder, and the weights that each is pulled towards."""
    mnist, known = load_dataset("mnist"), load_dataset("mnist5k")
    images = np.concatenate([mnist.train.images, mnist.validation.images])[:, 0]  # (55,000, 28, 28)
    labels = np.concatenate([mnist.train.labels, mnist.validation.labels])
    taken = {one.tobytes() for split in (known.train, known.validation, known.test) for one in split.images[:, 0]}
    free = np.array([one.tobytes() not in taken for one in images])
    rng = np.random.default_rng(0)
    classes = [rng.permutation(np.flatnonzero(free & (labels == label))) for label in range(10)]

    def part(begin: int, count: int) -> np.ndarray:
        return np.array([places[begin : begin + count] for places in classes]).T.ravel()  # classes alternate

    judged, problems = part(0, JUDGED), []
    for number in range(DRAWS):
        train, path = part(JUDGED + number * TRAIN, TRAIN), folder / f"{number}.npz"
        np.savez(path, x_train=images[train], y_train=labels[train], x_test=images[judged], y_test=labels[judged])
        problem = Problem(GAME, {"dataset": str(path)}, 0, 0)
        make_reference(problem.task, folder)
        reference = str(folder / reference_name(problem.task))
        problems.append(Problem(GAME, {**problem.env_kwargs, "reference": reference}, 0, 0))
    return problems


def search(problems: list[Problem], trials: int) -> None:
    """Search, and print each best so far."""
    once = {**ABSOLUTE, "validate_every": batches_of(problems[0])}  # what is searched for is not the validation loss
    envs = [make_env(problem, AT_ONCE, once) for problem in problems]

    def suggest(trial: optuna.Trial) -> Settings:
        rate = {"learning_rate": trial.suggest_float("learning_rate", *RATES, log=True)}
        others = {name: trial.suggest_float(name, *ends, log=name == "rise") for name, ends in FAMILY.space.items()}
        return {**rate, **others}

    def measure(wave: list[Settings]) -> NDArray[np.float64]:
        losses = []  # (draws, schedules)
        for number, env in enumerate(envs):
            final = play(env, Scheduled(FAMILY, wave), [UNSEEN_BELOW + 40_000 + number] * AT_ONCE).final
            losses.append(np.where(final["diverged"], DIVERGED, final["test_loss"]))
        return np.array(losses).T  # (schedules, draws)

    for number, chosen, _, mean in bests(suggest, measure, trials, AT_ONCE):
        settings = ", ".join(f"{name} {setting:.3g}" for name, setting in chosen.items())
        print(f"schedule {number}, {settings}: {mean:.4f}", flush=True)


def main() -> None:
    """Draw, search and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=96, help="schedules to try, in eights")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        search(draw_tasks(Path(folder)), arguments.trials)


if __name__ == "__main__":
    main()
