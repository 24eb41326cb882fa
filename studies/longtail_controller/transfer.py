"""The shipped controller of the shares of the classes on long-tailed photographs: results/transfer.csv.

    python -m studies.longtail_controller.transfer --cifar FILE.npz --seeds 2

What is in the file is not trained again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from qan_agents.controllers.shipped import shipped_paths
from qan_agents.experiments.evaluation import PolicyScores
from qan_agents.experiments.verdict import Lead
from qan_agents.judging.class_rivals import class_rivals
from qan_agents.judging.contenders import Contender, load_controllers
from qan_agents.judging.problems import Trainings
from qan_gym.families.long_tail import LongTailTask
from studies.longtail_headroom.report import print_table
from studies.stored_rows import store_rows, stored_rows

SCORES = Path(__file__).parent / "results" / "transfer.csv"
MEASURED = ("validation_loss", "test_loss", "test_accuracy")
RIVALS = ("single shuffled", "single class-balanced", "single deferred")
# 4,500 photographs of the largest class (all of CIFAR-10's that are not for validation), 45 of the smallest; 480
# mini-batches are 2.8 epochs. Learning rate, momentum and weight decay are usual ones, and were not searched.
TASK = LongTailTask(
    split="test",
    network="resnet-8",
    resolution=32,
    train_size=11_160,
    imbalance=100.0,
    learning_rate=0.05,
    schedule="linear",
    momentum=0.9,
    weight_decay=5e-4,
    batch_size=64,
    batches_per_action=12,
)


def contenders() -> dict[str, Contender]:
    """The rivals and the controller, by name."""
    (controller,) = load_controllers([shipped_paths()["long-tail"][0]], None)
    rivals = class_rivals()
    return {name.removeprefix("single "): rivals[name] for name in RIVALS} | {controller.name: controller}


def main() -> None:
    """Train what is missing, one after another, and write after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, required=True, help="CIFAR-10: x_train, y_train, x_test, y_test")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each")
    arguments = parser.parse_args()
    rows = stored_rows(SCORES)
    there = {(row["contender"], int(row["seed"])) for row in rows}
    for seed in range(arguments.seeds):
        for name, one in contenders().items():
            if (name, seed) in there:
                continue
            print(f"seed {seed}: {name}", flush=True)
            done = one.play(Trainings((TASK,), (seed,), str(arguments.cifar)))
            measured = {key: f"{getattr(done, key)[0]:.6g}" for key in MEASURED}
            rows.append({"contender": name, "seed": seed, **measured})
            store_rows(SCORES, rows)
    print_scores(rows)


def print_scores(rows: list[dict[str, Any]]) -> None:
    """A table: means over the seeds, and the controller's lead over each with a 95 % interval by Student's t."""
    scores = {}
    for name in contenders():
        mine = [row for row in rows if row["contender"] == name]
        losses, accuracies = ([float(row[key]) for row in mine] for key in MEASURED[1:])
        scores[name] = PolicyScores(name, losses, accuracies)
    *_, controller = scores.values()
    table = []
    for one in scores.values():
        each = ", ".join(f"{loss:.3f}" for loss in one.test_loss)
        lead = "" if one is controller else Lead.of(controller, one).against("it")
        table.append(
            [one.policy, each, f"{np.mean(one.test_loss):.3f}", f"{100 * np.mean(one.test_accuracy):.1f}", lead]
        )
    print_table(["contender", "test loss of each seed", "mean", "accuracy, %", "the controller is"], table)


if __name__ == "__main__":
    main()
