"""Would more test images change what the bench found? Its trainings once more, judged on the test images of MNIST.

    python benchmarks/more_images.py [--results benchmarks/results/goal.parquet] [--runs 20] [--workers 2]

`QanLR-MNIST5k-v0` has 500 test images. More evaluation seeds average over the luck of a training, not over that of the
images: a schedule can be better on these 500 alone. So every finished cell of the results that was prepared on so many
trainings, or on none, is played again on its evaluation seeds: the same training images, validation images and pull,
hence the same trainings (each validation loss is compared with the recorded one), but judged on the 10,000 test images
of MNIST, of which the game has none. What an agent did is read off the recorded learning rates and repeated; where they
were recorded too rarely for that, the agent is left out.

Printed is, for each controller, the test loss on the 500 and on the 10,000, and the difference of each to the best of
the tuned schedules on that side. It needs MNIST (`qan data --fetch`) and takes two minutes of a core per cell.
"""

import argparse
import itertools
import json
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

import qan_agents.schedule_free  # noqa: F401 (registers the optimizers)
import qan_gym  # noqa: F401 (registers the ids)
from qan_agents.controllers import (
    ABSOLUTE,
    AGENTS,
    FAMILIES,
    TUNED,
    Infos,
    Prepared,
    Problem,
    Scheduled,
    batches_of,
    make_env,
    play,
    prepare,
)
from qan_agents.report import SCHEDULES
from qan_agents.results import read_table
from qan_agents.statistics import Judged, difference, judged
from qan_agents.trained import playing
from qan_gym.actions import KEEP, LOWER, MULTIPLICATIVE_FACTOR, RAISE, scheduled
from qan_gym.data import MNIST5K_FILE, load_dataset, read_npz
from qan_gym.references import pretrained_path

GAME = "QanLR-MNIST5k-v0"
Row = dict[str, Any]


def write_data(path: Path) -> None:
    """The game's images, with the test images of MNIST in the place of its own."""
    arrays, test = read_npz(MNIST5K_FILE), load_dataset("mnist").test
    ours = {image.tobytes() for name in ("x_train", "x_test") for image in arrays[name]}
    images = test.images[:, 0]  # (10,000, 28, 28)
    assert not any(image.tobytes() in ours for image in images)
    np.savez(path, x_train=arrays["x_train"], y_train=arrays["y_train"], x_test=images, y_test=test.labels)


class Recorded:
    """What an agent did, N episodes at once: actions that multiply the learning rate, once more."""

    def __init__(self, actions: NDArray[np.int64]) -> None:
        """actions: (decisions, N)."""
        self.actions = actions

    def start(self, env: gym.vector.VectorEnv) -> None:
        """See `Player.start`."""
        self.left = iter(self.actions)

    def act(self, observations: NDArray[Any], infos: Infos) -> NDArray[np.int64]:
        """See `Player.act`."""
        return next(self.left)


def actions_of(rows: Sequence[Row], problem: Problem, arguments: dict[str, Any]) -> NDArray[np.int64]:
    """The actions (decisions, N) of N episodes, read off the learning rate at the end of each."""
    rates = torch.tensor([row["rate_curve"] for row in rows], dtype=torch.float64)  # (N, 1 + decisions)
    every, budget = arguments["batches_per_action"], batches_of(problem)
    last = torch.arange(every, budget + 1, every) - 1  # (decisions,), the last mini-batch of each action
    factor = scheduled(torch.ones(()), last / budget, arguments["schedule"])  # (decisions,)
    levels = torch.cat([torch.full_like(rates[:, :1], problem.task.learning_rate), rates[:, 1:] / factor], dim=1)
    steps = levels.log().diff(dim=1).div(np.log(MULTIPLICATIVE_FACTOR)).round()  # (N, decisions)
    return torch.where(steps > 0, RAISE, torch.where(steps < 0, LOWER, KEEP)).T.numpy()


def is_known(row: Row) -> bool:
    """Whether what a controller did can be done again."""
    if row["controller"] not in AGENTS:
        return True
    problem = Problem(GAME, {}, 0, 0)
    arguments = playing(problem, json.loads(row["settings"]).get("env", {}), row["controller"] in ("sac", "td3"))
    decisions = batches_of(problem) // arguments["batches_per_action"]
    return arguments.get("action_scale") == "multiplicative" and len(row["rate_curve"]) == 1 + decisions


def prepared_again(rows: Sequence[Row], problem: Problem) -> Prepared:
    """The controller of a cell as it was when it was judged."""
    name, settings, chosen = rows[0]["controller"], json.loads(rows[0]["settings"]), json.loads(rows[0]["chosen"])
    if name in TUNED:
        family = FAMILIES[TUNED[name]]
        return Prepared(Scheduled(family, [chosen]), {**ABSOLUTE, **family.optimizer})
    if name in AGENTS:
        arguments = playing(problem, settings.get("env", {}), continuous=False)
        return Prepared(Recorded(actions_of(rows, problem, arguments)), arguments)
    return prepare(name, problem, settings)


def judge(rows: Sequence[Row], data: str, reference: str) -> tuple[list[Row], float]:
    """The rows of a cell with the loss on other test images, and by how much a validation loss differs at most."""
    torch.set_num_threads(1)
    problem = Problem(GAME, {"dataset": data, "reference": reference}, 0, 0)
    prepared = prepared_again(rows, problem)
    env = make_env(problem, len(rows), prepared.env_kwargs)
    final = play(env, prepared.player, [row["evaluation_seed"] for row in rows]).final
    off = np.abs(final["validation_loss"] - [row["validation_loss"] for row in rows]).max()
    return [{**row, "test_loss": loss} for row, loss in zip(rows, final["test_loss"].tolist(), strict=True)], float(off)


def show(before: Sequence[Judged], now: Sequence[Judged]) -> None:
    """A table: each controller on the game's test images and on the others."""
    table = Table("controller", "500 test images", "minus", "10,000 test images", "minus")
    sides = []
    for side in (before, now):
        rival = min((one for one in side if one.controller in SCHEDULES), key=lambda one: one.test_loss.mean())
        cells = {}
        for one in side:
            found = difference(one.test_loss, rival.test_loss)
            apart = "" if one is rival else f"{found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f})"
            cells[one.name] = (f"{one.test_loss.mean():.4f}", apart)
        sides.append((cells, rival.name))
    for column, (_, rival_name) in zip((2, 4), sides, strict=True):
        table.columns[column].header = f"minus {rival_name}"
    for one in sorted(now, key=lambda one: one.test_loss.mean()):
        table.add_row(one.name, *sides[0][0][one.name], *sides[1][0][one.name])
    Console(width=160).print(table)


def main() -> None:
    """Play, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "goal.parquet")
    parser.add_argument("--runs", type=int, default=20, help="trainings that the controllers were prepared on")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    arguments = parser.parse_args()
    rows = [row for row in read_table(arguments.results).to_pylist() if row["status"] == "done"]
    rows = [row for row in rows if row["environment"] == GAME and row["environment_kwargs"] == "{}"]
    rows = [row for row in rows if row["runs"] in (0, arguments.runs) and row["prepared_on_kwargs"] == "{}"]
    left_out = {row["label"] for row in rows if not is_known(row)}
    print(f"left out: {', '.join(sorted(left_out)) or 'nobody'}")
    rows = [row for row in rows if row["label"] not in left_out]
    rows.sort(key=lambda row: (row["runs"], row["label"], row["seed"], row["evaluation_seed"]))
    cells = [list(cell) for _, cell in itertools.groupby(rows, key=lambda row: row["config_hash"])]
    with tempfile.TemporaryDirectory() as folder:
        data, reference = Path(folder) / "data.npz", pretrained_path(Problem(GAME, {}, 0, 0).task)
        write_data(data)
        with ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as pool:
            outcomes = pool.map(judge, cells, itertools.repeat(str(data)), itertools.repeat(str(reference)))
            found = list(track(outcomes, total=len(cells), description="cells"))
    print(f"validation losses differ from the recorded ones by {max(off for _, off in found):.2g} at most")
    show(judged(rows), judged([row for cell, _ in found for row in cell]))


if __name__ == "__main__":
    main()
