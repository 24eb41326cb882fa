"""The controllers that ship, on the tasks and seeds of the measurements, beside what these found.

    python -m studies.family_headroom.controllers

Each replicate trains once on every held-out task that was measured; ln(test loss) goes to
`results/NETWORK-OPTIMIZER-controllers.csv`. The table compares their mean with the one setting and with the best of
each task, chosen as in `report.py`; intervals by the bootstrap over tasks.
"""

import numpy as np
import pandas as pd

from qan_agents.controllers.controller import Controller
from qan_agents.controllers.shipped import shipped_paths
from qan_agents.controllers.trainings import play_controller
from qan_gym.families.learning_rate import NETWORKS, OPTIMIZERS, draw_task
from qan_gym.utils.files import write_aside
from studies.family_headroom.measure import RESULTS, SHAPES, path_of
from studies.family_headroom.report import Measured, best_of_all, cell, single

ONE_CYCLE = SHAPES.index("one-cycle")
COLUMNS = ("network", "optimizer", "tasks", "one setting of one-cycle", "its best of each task", "the best of all")


def played(network: str, optimizer: str, numbers: list[int]) -> pd.DataFrame:
    """ln(test loss) of held-out tasks (rows) under the replicates (columns); a file keeps them."""
    path = RESULTS / f"{network}-{optimizer}-controllers.csv"
    kept = pd.read_csv(path, index_col="number") if path.exists() else pd.DataFrame()
    missing = [number for number in numbers if number not in kept.index]
    tasks = [draw_task("test", number, (network,), (optimizer,)) for number in missing]
    if missing:
        new = {
            replicate: np.log(play_controller(Controller.load(file), tasks, missing, tests=True).test_loss)
            for replicate, file in shipped_paths()[optimizer].items()
        }
        added = pd.DataFrame(new, index=pd.Index(missing, name="number")).rename(columns=str)
        kept = pd.concat([kept, added]).sort_index()
        with write_aside(path) as aside:
            kept.to_csv(aside, float_format="%.6g", index_label="number")
    return kept.loc[numbers]


def line(network: str, optimizer: str) -> str:
    """Of the table."""
    held_out = Measured(network, optimizer, "test")
    tasks = np.arange(len(held_out.numbers))
    own = played(network, optimizer, held_out.numbers.tolist()).to_numpy().mean(axis=1)
    rivals = (
        held_out.at(held_out.test, single(held_out.chosen_on(), held_out, ONE_CYCLE, with_rule=False))[:, ONE_CYCLE],
        held_out.test[tasks, ONE_CYCLE, held_out.validation[:, ONE_CYCLE].argmin(axis=1)],
        best_of_all(held_out),
    )
    return f"| {network} | {optimizer} | {len(tasks)} | {' | '.join(cell(own - rival) for rival in rivals)} |"


def main() -> None:
    """Print the table."""
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    for network in NETWORKS:
        for optimizer in OPTIMIZERS:
            if path_of(network, optimizer, "test").exists():
                print(line(network, optimizer), flush=True)


if __name__ == "__main__":
    main()
