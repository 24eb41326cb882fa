"""The controllers of SGD after each stage of their meta-training, on tasks of the training split.

    python -m studies.controller_stages.compare

plays `results/STAGE-SEED.safetensors`, and one-cycle at several learning rates, on kinds of tasks that no meta-training
meets, writes ln(validation loss) of each task to `results/KIND.csv`, and prints the table; what is there is not played
again. Needs MNIST. The test split is not touched.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from qan_agents.controllers.controller import Controller
from qan_agents.controllers.meta_training import EVALUATION_TASKS
from qan_agents.controllers.trainings import Plan, play_controller, play_schedules
from qan_gym.families import draw_task
from qan_gym.families.record import NUMBER_LIMIT
from qan_gym.utils.files import write_aside

RESULTS = Path(__file__).parent / "results"
STAGES, SEEDS = (1, 2, 3), (0, 1, 2)
RATES = tuple(float(f"{rate:.3g}") for rate in np.geomspace(0.003, 3, 11))  # of one-cycle
LONG = {"batches": (3_000, 8_000), "train_size": (4_000, 49_000)}
LONG_CNN = {"batches": (2_000, 6_000), "train_size": (4_000, 49_000)}
KINDS: dict[str, tuple[int, dict[str, Any], str, tuple[float, ...]]] = {  # tasks, of draw_task, data set, rates
    "perceptrons": (320, {"networks": "mlp"}, "mnist5k", RATES),
    "normalised": (160, {"networks": "mlp-norm"}, "mnist5k", RATES),
    "long": (64, {"networks": "mlp", **LONG}, "mnist", RATES[2:10]),
    "mnist-cnn": (24, {"networks": "mnist-cnn"}, "mnist5k", RATES[3:9:2]),
    "mnist-cnn, long": (8, {"networks": "mnist-cnn", **LONG_CNN}, "mnist", RATES[3:9:2]),
}


def played(kind: str) -> pd.DataFrame:
    """ln(validation loss) of the tasks of a kind (rows) under controllers and schedules (columns); kept in a file."""
    count, drawn, dataset, rates = KINDS[kind]
    numbers = [NUMBER_LIMIT - 1 - EVALUATION_TASKS - place for place in range(count)]
    tasks = [draw_task("train", number, optimizers="sgd", **drawn) for number in numbers]
    path = RESULTS / f"{kind.replace(', ', '-')}.csv"
    table = pd.read_csv(path, index_col="task") if path.exists() else pd.DataFrame(index=pd.Index(numbers, name="task"))

    def schedule(rate: float) -> NDArray[np.float64]:
        plan = Plan("one-cycle", np.full(count, rate), {})
        return play_schedules(tasks, range(count), plan, dataset=dataset).validation_loss

    def controller(name: str) -> NDArray[np.float64]:
        file = RESULTS / f"{name}.safetensors"
        return play_controller(Controller.load(file), tasks, range(count), dataset=dataset).validation_loss

    columns: list[tuple[str, Callable[[Any], NDArray[np.float64]], Any]] = [
        *((f"one-cycle {rate}", schedule, rate) for rate in rates),
        *((f"{stage}-{seed}", controller, f"{stage}-{seed}") for stage in STAGES for seed in SEEDS),
    ]
    for column, play, given in tqdm(columns, desc=kind):
        if column not in table:
            table[column] = np.log(play(given))
            with write_aside(path) as aside:
                table.to_csv(aside, float_format="%.6g")
    return table


def line(kind: str, table: pd.DataFrame) -> str:
    """A line of the table: means over the tasks, of the controllers over the three replicates too."""
    schedules = table.filter(like="one-cycle ")
    cells = [f"{schedules.mean().min():.3f}", f"{schedules.min(axis=1).mean():.3f}"]
    first = table[[f"1-{seed}" for seed in SEEDS]].mean(axis=1)
    for stage in STAGES:
        losses = table[[f"{stage}-{seed}" for seed in SEEDS]]
        own, change = ", ".join(f"{mean:.3f}" for mean in losses.mean()), losses.mean(axis=1) - first
        error = change.std() / np.sqrt(len(change))
        cells.append(own if stage == 1 else f"{own}: {change.mean():+.3f} ± {error:.3f}")
    return f"| {kind} ({len(table)}) | {' | '.join(cells)} |"


def main() -> None:
    """Play what is missing, and print the table."""
    tables = {kind: played(kind) for kind in KINDS}
    print("| tasks | one-cycle, one learning rate | the best of each task | stage 1 | stage 2 | stage 3 |")
    print("| --- | --- | --- | --- | --- | --- |")
    for kind, table in tables.items():
        print(line(kind, table))


if __name__ == "__main__":
    main()
