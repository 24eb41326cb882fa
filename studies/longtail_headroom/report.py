"""What the measurements say, as tables: python -m studies.longtail_headroom.report"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from qan_agents.experiments.run_folder import read_rows
from studies.family_headroom.report import cell as interval_of
from studies.longtail_headroom.measure import IMBALANCES, NOISES, RANDOM, REDUCING, SCORES, SHUFFLED, TRIED, WEIGHTED

RULES = (SHUFFLED, RANDOM, *TRIED, *REDUCING, *WEIGHTED)

Float64 = NDArray[np.float64]
Cell = tuple[float, float]  # imbalance, label noise


def scores(column: str) -> dict[Cell, dict[str, Float64]]:
    """The values of a column by cell and rule, (tasks,) each, in the order of the tasks."""
    found: dict[Cell, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in read_rows(SCORES):
        cell = (float(row["imbalance"]), float(row["label_noise"]))
        found[cell][row["rule"]][int(row["number"])] = float(row[column])
    return {
        cell: {rule: np.array([own[number] for number in sorted(own)]) for rule, own in rules.items()}
        for cell, rules in found.items()
    }


def print_table(head: list[str], rows: list[list[str]]) -> None:
    """As Markdown."""
    for line in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(line)} |")
    print()


def main() -> None:
    """Print the tables."""
    logs = {cell: {rule: np.log(values) for rule, values in own.items()} for cell, own in scores("test_loss").items()}
    validation = {
        cell: {rule: np.log(values) for rule, values in own.items()} for cell, own in scores("validation_loss").items()
    }
    accuracies = scores("test_accuracy")
    cells = [(float(imbalance), noise) for imbalance in IMBALANCES for noise in NOISES]
    names = [f"{imbalance:g}, {noise:.0%}" for imbalance, noise in cells]
    print("ln(test loss)\n")
    means = {rule: [logs[cell][rule].mean() for cell in cells] for rule in RULES}
    print_table(
        ["rule", *names, "all"],
        [[rule, *(f"{value:.3f}" for value in (*own, np.mean(own)))] for rule, own in means.items()],
    )
    print("test accuracy, %\n")
    shares = {rule: [100 * accuracies[cell][rule].mean() for cell in cells] for rule in RULES}
    print_table(
        ["rule", *names, "all"],
        [[rule, *(f"{value:.1f}" for value in (*own, np.mean(own)))] for rule, own in shares.items()],
    )
    single = min(TRIED, key=lambda rule: float(np.mean([validation[cell][rule].mean() for cell in cells])))
    print(f"ln(test loss); the best single rule by validation loss over all cells is {single}\n")
    rows = []
    for cell, name in zip(cells, names, strict=True):
        own = logs[cell]
        losses = np.stack([validation[cell][rule] for rule in TRIED])
        chosen = np.stack([own[rule] for rule in TRIED])[losses.argmin(axis=0), np.arange(losses.shape[1])]
        rows.append([name, interval_of(own[SHUFFLED] - own[single]), interval_of(own[single] - chosen)])
    print_table(
        ["imbalance, noise", f"shuffled minus {single}", f"{single} minus the best rule of each task by validation"],
        rows,
    )


if __name__ == "__main__":
    main()
