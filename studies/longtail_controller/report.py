"""What the measurements say, as tables: python -m studies.longtail_controller.report"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qan_agents.experiments.run_folder import read_rows
from studies.family_headroom.report import cell as interval_of
from studies.longtail_controller.measure import BLIND, CONTROLLER, CURVE, SCORES
from studies.longtail_headroom.measure import RANDOM, SHUFFLED, TRIED
from studies.longtail_headroom.report import print_table

Float64 = NDArray[np.float64]
BY_VALIDATION = f"best of the {len(TRIED)} rules of each task, by validation"
PARTS = {"imbalance below 5": (0.0, 5.0), "5 to 25": (5.0, 25.0), "above 25": (25.0, np.inf)}


def scores(path: Path, column: str) -> dict[str, Float64]:
    """The values of a column by rule, (tasks,) each, in the order of the tasks."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for row in read_rows(path):
        found[str(row["rule"])][int(row["number"])] = float(row[column])
    return {rule: np.array([own[number] for number in sorted(own)]) for rule, own in found.items()}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scores", type=Path, default=SCORES)
    path = parser.parse_args().scores
    logs = {rule: np.log(values) for rule, values in scores(path, "test_loss").items()}
    validation, accuracy = scores(path, "validation_loss"), scores(path, "test_accuracy")
    best = np.stack([validation[rule] for rule in TRIED]).argmin(axis=0)
    for table in (logs, accuracy):
        table[BY_VALIDATION] = np.stack([table[rule] for rule in TRIED])[best, np.arange(len(best))]
    imbalance = scores(path, "imbalance")[SHUFFLED]
    inside = [(low <= imbalance) & (imbalance < high) for low, high in PARTS.values()]
    head = ["rule", "ln(test loss)", "accuracy, %", "controller minus it", *PARTS]
    rows = []
    for rule in (CONTROLLER, SHUFFLED, RANDOM, *TRIED, BY_VALIDATION, CURVE, BLIND):
        difference = logs[CONTROLLER] - logs[rule]
        cells = [interval_of(difference), *(f"{difference[part].mean():+.3f}" for part in inside)]
        cells = ["" for _ in cells] if rule == CONTROLLER else cells
        rows.append([rule, f"{logs[rule].mean():.3f}", f"{100 * accuracy[rule].mean():.1f}", *cells])
    print_table(head, rows)
    print(f"tasks by imbalance: {', '.join(f'{name} {part.sum()}' for name, part in zip(PARTS, inside, strict=True))}")
    gain = (logs[SHUFFLED] - logs[CONTROLLER]).mean()
    for name in (CURVE, BLIND):
        share = (logs[name] - logs[CONTROLLER]).mean() / gain
        print(f"share of the gain over shuffled SGD that is not in {name!r}: {share:.0%}")


if __name__ == "__main__":
    main()
