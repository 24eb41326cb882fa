"""A one-cycle schedule found on other tasks than those on which agents are compared.

    python -m studies.base_schedule.search [--trials 96]

The tasks are eight draws of 4,500 images of MNIST, without the 5,000 of `mnist5k` and without an image in common, each
trained as `QanLR-MNIST5k-v0` is, and pulled towards a baseline run of its own. Optuna searches a one-cycle schedule
(its peak, the share of the training at which it is reached, and how many times lower it begins) for the lowest loss on
5,000 further images, which are in no draw: ten times as many as the game has for validation, so chance has less
influence. Every schedule is tried on every draw with the same seeds. Each best schedule so far is printed, with the
geometric mean of its losses.

It needs MNIST (`qan data --fetch`) and takes an hour and a half on one core.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import optuna
import torch
from numpy.typing import NDArray

import qan_gym  # noqa: F401 (registers the ids)
from qan_agents.bench.rollout import play_episodes
from qan_agents.bench.tuned_schedules import ABSOLUTE_ACTIONS, SGD_RATES, ScheduleController
from qan_agents.bench.tuning_task import Settings, TuningTask, make_env
from qan_agents.seeds import UNSEEN_BELOW
from qan_gym.core.references import make_reference, reference_name
from qan_gym.data.datasets import load_dataset
from studies.batched_search import improvements

ENV = "QanLR-MNIST5k-v0"
DRAWS = 8
TRAIN, EVALUATION = 450, 500  # images of each class: in a draw, and in what all schedules are evaluated on
BATCH_SIZE = 8  # schedules in lock-step
DIVERGED = 10.0  # the loss that stands for a diverged training
SEARCH = {"start": (0.05, 0.85), "rise": (1.0, 100.0)}


def draw_tasks(folder: Path) -> list[TuningTask]:
    """Write the draws, and the reference weights of each, into a folder."""
    mnist, known = load_dataset("mnist"), load_dataset("mnist5k")
    images = np.concatenate([mnist.train.images, mnist.validation.images])[:, 0]  # (55,000, 28, 28)
    labels = np.concatenate([mnist.train.labels, mnist.validation.labels])
    taken = {one.tobytes() for split in (known.train, known.validation, known.test) for one in split.images[:, 0]}
    free = np.array([one.tobytes() not in taken for one in images])
    rng = np.random.default_rng(0)
    classes = [rng.permutation(np.flatnonzero(free & (labels == label))) for label in range(10)]

    def part(begin: int, count: int) -> NDArray[np.int64]:
        return np.array([places[begin : begin + count] for places in classes]).T.ravel()  # classes alternate

    evaluation, tasks = part(0, EVALUATION), []
    for number in range(DRAWS):
        train, path = part(EVALUATION + number * TRAIN, TRAIN), folder / f"{number}.npz"
        x_test, y_test = images[evaluation], labels[evaluation]
        np.savez(path, x_train=images[train], y_train=labels[train], x_test=x_test, y_test=y_test)
        task = TuningTask(ENV, {"dataset": str(path)}, runs=0, seed=0)
        make_reference(task.config, folder)
        reference = str(folder / reference_name(task.config))
        tasks.append(TuningTask(ENV, {**task.env_kwargs, "reference": reference}, runs=0, seed=0))
    return tasks


def search(tasks: list[TuningTask], trials: int) -> None:
    """Search, and print each best schedule so far."""
    # The validation loss is not what is searched for: it is measured at the end only.
    env_kwargs = {**ABSOLUTE_ACTIONS, "validate_every": tasks[0].batches}
    envs = [make_env(task, BATCH_SIZE, env_kwargs) for task in tasks]

    def suggest(trial: optuna.Trial) -> Settings:
        rate = {"learning_rate": trial.suggest_float("learning_rate", *SGD_RATES, log=True)}
        return rate | {name: trial.suggest_float(name, *ends, log=name == "rise") for name, ends in SEARCH.items()}

    def measure(schedules: list[Settings]) -> NDArray[np.float64]:
        losses = []  # (draws, schedules)
        for number, env in enumerate(envs):
            seeds = [UNSEEN_BELOW + 40_000 + number] * BATCH_SIZE
            final = play_episodes(env, ScheduleController("one-cycle", schedules), seeds).final
            losses.append(np.where(final["diverged"], DIVERGED, final["test_loss"]))
        return np.array(losses).T  # (schedules, draws)

    for best in improvements(suggest, measure, trials, BATCH_SIZE):
        settings = ", ".join(f"{name} {setting:.3g}" for name, setting in best.candidate.items())
        print(f"schedule {best.number}, {settings}: {best.mean:.4f}", flush=True)


def main() -> None:
    """Draw, search and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=96, help=f"schedules to try, in batches of {BATCH_SIZE}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        search(draw_tasks(Path(folder)), arguments.trials)


if __name__ == "__main__":
    main()
