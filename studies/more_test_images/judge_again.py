"""Would more test images change what the bench found? Its trainings once more, judged on the test images of MNIST.

    python benchmarks/more_images.py benchmarks/results/goal.parquet --out benchmarks/results/goal-10000.parquet
    qan report benchmarks/results/goal-10000.parquet

`QanLR-MNIST5k-v0` has 500 test images. More evaluation seeds average over the luck of a training, not over that of the
images: a schedule can be better on these 500 alone. So every finished cell of that game is played again on its
evaluation seeds: the same training images, validation images and pull, hence the same trainings (or it is an error:
each validation loss is compared with the recorded one), but judged on the 10,000 test images of MNIST, of which the
game has none. What an agent did is read off the recorded learning rates and repeated; where they were recorded too
rarely for that, the agent is left out.

It needs MNIST (`qan data --fetch`), takes some three minutes of a core per cell of 30 seeds, and goes on where it was
stopped.
"""

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import qan_agents.bench.schedule_free  # noqa: F401 (registers the optimizers)
import qan_gym
from qan_agents.bench.controllers import (
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
from qan_agents.bench.results import Results, Row, read_table
from qan_agents.bench.trained_agents import playing
from qan_gym.core.references import pretrained_path
from qan_gym.data.datasets import MNIST5K_FILE, load_dataset, read_npz
from qan_gym.games.learning_rate import KEEP, LOWER, MULTIPLICATIVE_FACTOR, RAISE, scheduled

GAME, DATA = "QanLR-MNIST5k-v0", "mnist5k-10000"


def load_images() -> dict[str, NDArray[Any]]:
    """The game's images, with the test images of MNIST in the place of its own."""
    arrays, test = read_npz(MNIST5K_FILE), load_dataset("mnist").test
    known = {image.tobytes() for name in ("x_train", "x_test") for image in arrays[name]}
    images = test.images[:, 0]  # (10,000, 28, 28)
    if any(image.tobytes() in known for image in images):
        raise ValueError("the game has images of MNIST's test set")
    return {**arrays, "x_test": images, "y_test": test.labels}


qan_gym.register_dataset(DATA, load_images)


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


def arguments_of(row: Row, problem: Problem) -> dict[str, Any]:
    """How the agent of a cell plays."""
    wanted = json.loads(row["settings"]).get("env", {})
    return playing(problem, wanted, continuous=row["controller"] in ("sac", "td3"))


def is_known(row: Row) -> bool:
    """Whether what a controller did can be done again."""
    if row["controller"] not in AGENTS:
        return True
    problem = Problem(GAME, {}, 0, 0)
    arguments = arguments_of(row, problem)
    decisions = batches_of(problem) // arguments["batches_per_action"]
    return arguments.get("action_scale") == "multiplicative" and len(row["rate_curve"]) == 1 + decisions


def actions_of(rows: Sequence[Row], problem: Problem, arguments: dict[str, Any]) -> NDArray[np.int64]:
    """The actions (decisions, N) of N episodes, read off the learning rate at the end of each."""
    rates = torch.tensor([row["rate_curve"] for row in rows], dtype=torch.float64)  # (N, 1 + decisions)
    every, budget = arguments["batches_per_action"], batches_of(problem)
    last = torch.arange(every, budget + 1, every) - 1  # (decisions,), the last mini-batch of each action
    factor = scheduled(torch.ones(()), last / budget, arguments["schedule"])  # (decisions,)
    levels = torch.cat([torch.full_like(rates[:, :1], problem.task.learning_rate), rates[:, 1:] / factor], dim=1)
    steps = levels.log().diff(dim=1).div(np.log(MULTIPLICATIVE_FACTOR)).round()  # (N, decisions)
    return torch.where(steps > 0, RAISE, torch.where(steps < 0, LOWER, KEEP)).T.numpy()


def prepared_again(rows: Sequence[Row], problem: Problem) -> Prepared:
    """The controller of a cell as it was when it was judged."""
    name, settings, chosen = rows[0]["controller"], json.loads(rows[0]["settings"]), json.loads(rows[0]["chosen"])
    if name in TUNED:
        family = FAMILIES[TUNED[name]]
        return Prepared(Scheduled(family, [chosen]), {**ABSOLUTE, **family.optimizer})
    if name in AGENTS:
        arguments = arguments_of(rows[0], problem)
        return Prepared(Recorded(actions_of(rows, problem, arguments)), arguments)
    return prepare(name, problem, settings)


def judge(rows: Sequence[Row]) -> list[Row]:
    """The rows of a cell with the scores on the other test images.

    Raises:
        ValueError: the trainings are not those that were recorded.
    """
    torch.set_num_threads(1)
    started = time.perf_counter()
    reference = pretrained_path(Problem(GAME, {}, 0, 0).task)
    problem = Problem(GAME, {"dataset": DATA, "reference": str(reference)}, 0, 0)
    prepared = prepared_again(rows, problem)
    env = make_env(problem, len(rows), prepared.env_kwargs)
    final = play(env, prepared.player, [row["evaluation_seed"] for row in rows]).final
    if not np.allclose(final["validation_loss"], [row["validation_loss"] for row in rows], rtol=1e-6):
        raise ValueError(
            f"{rows[0]['label']}, seed {rows[0]['seed']}: the trainings differ from the recorded ones, of another "
            "machine or another torch; run the bench here first"
        )
    now = {
        "environment_kwargs": json.dumps({"dataset": DATA}),
        "data_fingerprint": env.unwrapped.training.parts.fingerprint,
        "seconds": time.perf_counter() - started,
    }
    scores = {name: final[name].tolist() for name in ("test_loss", "test_accuracy")}
    return [
        {**row, **now, **{name: values[place] for name, values in scores.items()}} for place, row in enumerate(rows)
    ]


def main() -> None:
    """Play what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="of a bench")
    parser.add_argument("--out", type=Path, required=True, help="the Parquet file to write")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    arguments = parser.parse_args()
    results, wanted = Results(arguments.out), {"environment": GAME, "environment_kwargs": "{}", "status": "done"}
    there = results.finished()
    rows = [row for row in read_table(arguments.results).to_pylist() if wanted.items() <= row.items()]
    rows = [row for row in rows if row["config_hash"] not in there and row["prepared_on_kwargs"] == "{}"]
    rows.sort(key=lambda row: (row["runs"], row["label"], row["seed"], row["evaluation_seed"]))
    cells = {key: list(cell) for key, cell in itertools.groupby(rows, key=lambda row: row["config_hash"])}
    known = {key: cell for key, cell in cells.items() if is_known(cell[0])}
    print(f"left out: {', '.join(sorted({cells[key][0]['label'] for key in cells.keys() - known})) or 'nobody'}")
    with ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(judge, cell): key for key, cell in known.items()}
        try:
            for future in tqdm(as_completed(futures), total=len(known), unit="cell"):
                results.append(futures[future], future.result())
        except ValueError as error:
            pool.shutdown(cancel_futures=True)
            parser.error(str(error))


if __name__ == "__main__":
    main()
