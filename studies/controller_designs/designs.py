"""Controllers of several designs, meta-trained alike and compared on the same tasks.

    python -m studies.controller_designs.designs train narrow --optimizer sgd --rounds 80 --seed 0
    python -m studies.controller_designs.designs compare sgd
    python -m studies.controller_designs.designs gap sgd

`train` makes the controller of a design, `results/OPTIMIZER-DESIGN-ROUNDS-SEED.safetensors`; after a kill the same
command goes on. `compare` plays those of an optimizer on 320 tasks of the training split that no meta-training meets,
writes ln(validation loss) of each task to `results/OPTIMIZER.csv`, and prints the table. `gap` plays the designs that
train on few tasks on up to 320 of these tasks, beside the default design, for which they are new. The test split is not
touched.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from qan_agents.controllers.controller import Controller
from qan_agents.controllers.meta_config import MetaConfig
from qan_agents.controllers.meta_training import EVALUATION_TASKS, MetaRun
from qan_agents.controllers.trainings import play_controller
from qan_gym.core.statistics import STATISTICS
from qan_gym.families import OPTIMIZERS, draw_task
from qan_gym.families.record import NUMBER_LIMIT
from qan_gym.utils.files import write_aside, write_bytes

RESULTS = Path(__file__).parent / "results"
TASKS = 320
DEFAULT = "default"
OF_GRADIENTS = (
    *("log_gradient_to_first", "log_gradient_change", "straightness", "displacement_cosine", "gradient_cosine"),
    *("log_update_to_weight", "log_weight_to_first", "log_predicted_decrease"),
)
DESIGNS: dict[str, dict[str, Any]] = {  # fields of `MetaConfig` that differ from the default's
    DEFAULT: {},
    "no memory": {"agent_kwargs": {"recurrent": 0}},
    "memory of 64": {"agent_kwargs": {"recurrent": 64}},
    "no groups": {"group": 1},
    "lambda 0.97": {"agent_kwargs": {"gae_lambda": 0.97}},
    "value of the observation alone": {"agent_kwargs": {"privileged": None}},
    "without gradients": {"env_kwargs": {"observation": [name for name in STATISTICS if name not in OF_GRADIENTS]}},
    "factor 3": {"env_kwargs": {"learning_rate_factor": 3.0}},
    "no base schedule": {"env_kwargs": {"schedule": "constant"}},
    "validation loss seen": {
        "env_kwargs": {"observation": [*STATISTICS, "log_validation_to_chance"], "validate_every": 1}
    },
    "parameters of the task seen": {"env_kwargs": {"context": "observed"}},
    "100 tasks": {"env_kwargs": {"num_tasks": 100}},
    "1,000 tasks": {"env_kwargs": {"num_tasks": 1_000}},
}


def config_of(design: str, optimizer: str, rounds: int, seed: int) -> MetaConfig:
    """The settings of a meta-training."""
    settings = {"group": 4, "rounds": rounds, "rows": 192, "seed": seed, **DESIGNS[design]}
    kinds = {"networks": ["mlp"], "optimizers": [optimizer]}
    return MetaConfig(**{**settings, "env_kwargs": {**kinds, **settings.get("env_kwargs", {})}})


def name_of(design: str, optimizer: str, rounds: int, seed: int) -> str:
    """Of the folder of a meta-training, and of its controller."""
    return f"{optimizer}-{design}-{rounds}-{seed}".replace(" ", "_").replace(",", "")


def train(design: str, optimizer: str, rounds: int, seed: int, folder: Path) -> None:
    """Make a controller, or go on with it."""
    run = MetaRun(folder / name_of(design, optimizer, rounds, seed))
    if not (run.folder / "config.json").exists():
        run.create(config_of(design, optimizer, rounds, seed))
    with tqdm(total=rounds, desc=run.folder.name, unit="round") as bar:

        def show(done: int, row: dict[str, float]) -> None:
            bar.update(done - bar.n)

        run.train(show)
    write_bytes(RESULTS / f"{run.folder.name}.safetensors", run.controller.read_bytes())


def compare(optimizer: str) -> None:
    """Play those that have not been played, and print the table."""
    first = name_of(DEFAULT, optimizer, 80, 0)
    if not (RESULTS / f"{first}.safetensors").exists():
        raise SystemExit(f"train the design {DEFAULT!r} first: the others are compared with it")
    numbers = [NUMBER_LIMIT - 1 - EVALUATION_TASKS - place for place in range(TASKS)]
    files = sorted(RESULTS.glob(f"{optimizer}-*.safetensors"))
    table = played(optimizer, numbers, files, RESULTS / f"{optimizer}.csv")
    print(f"| controller | mean | minus {first} (± standard error) |\n| --- | --- | --- |")
    for name, losses in table.items():
        difference = losses - table[first]
        error = difference.std() / np.sqrt(len(difference))
        print(f"| {name} | {losses.mean():.4f} | {difference.mean():+.4f} ± {error:.4f} |")


def played(optimizer: str, numbers: Sequence[int], files: Sequence[Path], path: Path) -> pd.DataFrame:
    """ln(validation loss) of tasks of the training split (rows) under controllers (columns); a file keeps them."""
    tasks = [draw_task("train", number, ("mlp",), (optimizer,)) for number in numbers]
    table = pd.read_csv(path, index_col="task") if path.exists() else pd.DataFrame(index=pd.Index(numbers, name="task"))
    for file in files:
        if file.stem not in table:
            losses = play_controller(Controller.load(file), tasks, range(len(tasks))).validation_loss
            table[file.stem] = np.log(losses)
    with write_aside(path) as aside:
        table.to_csv(aside, float_format="%.6g")
    return table


def gap(optimizer: str) -> None:
    """Print how designs that train on few tasks do on these tasks and on others, minus the default design."""
    others = pd.read_csv(RESULTS / f"{optimizer}.csv", index_col="task")
    print("| controller | tasks | on these | on others |\n| --- | --- | --- | --- |")
    for design, settings in DESIGNS.items():
        count = settings.get("env_kwargs", {}).get("num_tasks")
        names = [name_of(one, optimizer, 80, 0) for one in (DEFAULT, design)]
        files = [RESULTS / f"{name}.safetensors" for name in names]
        if count is None or not files[1].exists():
            continue
        path = RESULTS / f"{optimizer}-{count}-tasks.csv"
        cells = []
        for table in (played(optimizer, range(min(count, TASKS)), files, path), others):
            difference = table[names[1]] - table[names[0]]
            cells.append(f"{difference.mean():+.4f} ± {difference.std() / np.sqrt(len(difference)):.4f}")
        print(f"| {names[1]} | {count:,} | {' | '.join(cells)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("train")
    one.add_argument("design", choices=DESIGNS)
    one.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd")
    one.add_argument("--rounds", type=int, default=80)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--folder", type=Path, default=Path("runs/controller_designs"), help="of the meta-trainings")
    for name in ("compare", "gap"):
        commands.add_parser(name).add_argument("optimizer", choices=OPTIMIZERS)
    arguments = parser.parse_args()
    if arguments.command == "train":
        train(arguments.design, arguments.optimizer, arguments.rounds, arguments.seed, arguments.folder)
    elif arguments.command == "compare":
        compare(arguments.optimizer)
    else:
        gap(arguments.optimizer)
