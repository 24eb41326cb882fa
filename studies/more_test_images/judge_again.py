"""The trainings of a bench once more, judged on the 10,000 test images of MNIST instead of the 500 of the game.

    python -m studies.more_test_images.judge_again studies/agent_on_one_cycle/results.parquet \\
        --out studies/more_test_images/results.parquet
    qan report studies/more_test_images/results.parquet

More evaluation seeds average over the luck of a training, not over that of the test images: a schedule can be better on
these 500 alone. So every finished cell of `QanLR-MNIST5k-v0` is played again on its evaluation seeds, with the same
training images, validation images and pull, hence the same trainings, but judged on the test images of MNIST, of which
the game has none. Each validation loss is compared with the recorded one; a difference is an error. The actions of an
agent are derived from the recorded learning rates; an agent whose learning rates were recorded too rarely for that is
left out.

It needs MNIST (`qan data --fetch`) and takes some three minutes of a core per cell of 30 seeds. Finished cells are not
played again.
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

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import qan_gym
from qan_agents.bench.controllers import Controller, Preparation, PreparedController
from qan_agents.bench.preparation import controllers, prepare
from qan_agents.bench.results import Results, Row, read_table
from qan_agents.bench.rollout import play_episodes
from qan_agents.bench.trained_agents import SB3_ALGORITHMS, agent_env_kwargs
from qan_agents.bench.tuned_schedules import ABSOLUTE_ACTIONS, PlateauController, ScheduleController, with_optimizer
from qan_agents.bench.tuning_task import Settings, TuningTask, make_env
from qan_gym.core.references import pretrained_path
from qan_gym.data.datasets import MNIST5K_FILE, load_dataset
from qan_gym.games.learning_rate import KEEP, LOWER, MULTIPLICATIVE_FACTOR, RAISE
from qan_gym.schedules import SCHEDULES
from qan_gym.utils.arrays import TORCH
from qan_gym.utils.files import read_npz
from qan_gym.vector_env import QanVectorEnv

ENV, DATASET = "QanLR-MNIST5k-v0", "mnist5k-10000"
TASK = TuningTask(ENV, {}, runs=0, seed=0)
SCHEDULE_FREE = ("schedule-free-sgd", "schedule-free-adamw")
# The schedules of the tuned controllers that have another name.
SCHEDULE_OF = {"best-constant": "constant", "one-cycle-wide": "one-cycle", **dict.fromkeys(SCHEDULE_FREE, "constant")}


def load_images() -> dict[str, NDArray[Any]]:
    """The images of the game, with the test images of MNIST instead of its own.

    Raises:
        ValueError: an image of the game is among them.
    """
    arrays, test = read_npz(MNIST5K_FILE), load_dataset("mnist").test
    known = {image.tobytes() for name in ("x_train", "x_test") for image in arrays[name]}
    images = test.images[:, 0]  # (10,000, 28, 28)
    if any(image.tobytes() in known for image in images):
        raise ValueError("the game has images of MNIST's test set")
    return {**arrays, "x_test": images, "y_test": test.labels}


qan_gym.register_dataset(DATASET, load_images)


class RecordedActions:
    """A controller that repeats the actions of an agent, N episodes at once."""

    def __init__(self, actions: NDArray[np.int64]) -> None:
        """actions: (T, N)."""
        self.actions = actions

    def start(self, env: QanVectorEnv) -> None:
        """See `Controller.start`."""
        self.left = iter(self.actions)

    def act(self, observations: NDArray[Any], infos: dict[str, Any]) -> NDArray[np.int64]:
        """See `Controller.act`."""
        return next(self.left)


def is_agent(row: Row) -> bool:
    """Whether the controller of a cell was trained."""
    return controllers()[row["controller"]].preparation is Preparation.TRAINING


def env_kwargs_of(row: Row) -> Settings:
    """The keyword arguments of the environment that the agent of a cell plays."""
    algorithm = SB3_ALGORITHMS.get(row["controller"])
    own = json.loads(row["settings"]).get("env", {})
    return agent_env_kwargs(TASK, own, continuous=algorithm is not None and algorithm.continuous)


def is_repeatable(row: Row) -> bool:
    """Whether what the controller of a cell did can be done again."""
    if not is_agent(row):
        return True
    arguments = env_kwargs_of(row)
    length = TASK.batches // arguments["batches_per_action"]
    return arguments.get("action_scale") == "multiplicative" and len(row["rate_curve"]) == 1 + length


def recorded_actions(rows: Sequence[Row], arguments: Settings) -> NDArray[np.int64]:
    """The actions (T, N) of N episodes, derived from the learning rate at the end of each action."""
    rates = torch.tensor([row["rate_curve"] for row in rows], dtype=torch.float64)  # (N, 1 + T)
    count, budget = arguments["batches_per_action"], TASK.batches
    last = torch.arange(count, budget + 1, count) - 1  # (T,), the last mini-batch of each action
    factor = SCHEDULES[arguments["schedule"]].rate(
        TORCH, torch.ones(len(last), dtype=torch.float64), last / budget
    )  # (T,)
    first = torch.full_like(rates[:, :1], TASK.config.learning_rate)
    chosen = torch.cat([first, rates[:, 1:] / factor], dim=1)  # (N, 1 + T), before the base schedule
    steps = chosen.log().diff(dim=1).div(np.log(MULTIPLICATIVE_FACTOR)).round()  # (N, T)
    actions: NDArray[np.int64] = torch.where(steps > 0, RAISE, torch.where(steps < 0, LOWER, KEEP)).T.numpy()
    return actions


def tuned_controller(name: str, chosen: Settings) -> PreparedController:
    """A tuned controller, from the settings that were found."""
    schedule = ScheduleController(SCHEDULE_OF.get(name, name), [chosen])
    controller: Controller = PlateauController([chosen]) if name == "plateau" else schedule
    optimizer = with_optimizer(name) if name in SCHEDULE_FREE else {}
    return PreparedController(controller, {**ABSOLUTE_ACTIONS, **optimizer})


def prepared_again(rows: Sequence[Row], task: TuningTask) -> PreparedController:
    """The controller of a cell as it was when it was judged."""
    name, settings, chosen = rows[0]["controller"], json.loads(rows[0]["settings"]), json.loads(rows[0]["chosen"])
    if is_agent(rows[0]):
        arguments = env_kwargs_of(rows[0])
        return PreparedController(RecordedActions(recorded_actions(rows, arguments)), arguments)
    if controllers()[name].preparation is Preparation.TUNING:
        return tuned_controller(name, chosen)
    return prepare(name, task, settings)


def judge(rows: Sequence[Row]) -> list[Row]:
    """The rows of a cell with the scores on the other test images.

    Raises:
        ValueError: the trainings are not those that were recorded.
    """
    torch.set_num_threads(1)
    started = time.perf_counter()
    reference = str(pretrained_path(TASK.config))
    task = TuningTask(ENV, {"dataset": DATASET, "reference": reference}, runs=0, seed=0)
    prepared = prepared_again(rows, task)
    env = make_env(task, len(rows), prepared.env_kwargs)
    final = play_episodes(env, prepared.controller, [row["evaluation_seed"] for row in rows]).final
    if not np.allclose(final["validation_loss"], [row["validation_loss"] for row in rows], rtol=1e-6):
        raise ValueError(
            f"{rows[0]['label']}, seed {rows[0]['seed']}: the trainings differ from the recorded ones, which are of "
            "another machine or another torch; run the bench here first"
        )
    now = {
        "environment_kwargs": json.dumps({"dataset": DATASET}),
        "environment_identity": TuningTask(ENV, {"dataset": DATASET}, runs=0, seed=0).identity,
        "data_fingerprint": env.training.parts.fingerprint,
        "seconds": time.perf_counter() - started,
    }
    scores = {name: final[name].tolist() for name in ("test_loss", "test_accuracy")}
    return [
        {**row, **now, **{name: values[place] for name, values in scores.items()}} for place, row in enumerate(rows)
    ]


def main() -> None:
    """Play what is not in the results yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="of a bench")
    parser.add_argument("--out", type=Path, required=True, help="the Parquet file to write")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    arguments = parser.parse_args()
    results, wanted = Results(arguments.out), {"environment": ENV, "environment_kwargs": "{}", "status": "done"}
    finished = results.finished()
    rows = [row for row in read_table(arguments.results).to_pylist() if wanted.items() <= row.items()]
    rows = [row for row in rows if row["config_hash"] not in finished and row["prepared_on_kwargs"] == "{}"]
    rows.sort(key=lambda row: (row["runs"], row["label"], row["seed"], row["evaluation_seed"]))
    cells = {key: list(cell) for key, cell in itertools.groupby(rows, key=lambda row: row["config_hash"])}
    repeatable = {key: cell for key, cell in cells.items() if is_repeatable(cell[0])}
    left_out = sorted({cells[key][0]["label"] for key in cells.keys() - repeatable})
    print(f"left out: {', '.join(left_out) or 'none'}")
    with ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(judge, cell): key for key, cell in repeatable.items()}
        try:
            for future in tqdm(as_completed(futures), total=len(repeatable), unit="cell"):
                results.append(futures[future], future.result())
        except ValueError as error:
            pool.shutdown(cancel_futures=True)
            parser.error(str(error))


if __name__ == "__main__":
    main()
