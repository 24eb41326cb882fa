"""What the measurements say, as tables: python -m studies.longtail_first_command.report"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from qan_agents.experiments.evaluation import PolicyScores
from qan_agents.experiments.run_folder import read_rows
from qan_agents.experiments.verdict import Lead
from studies.longtail_first_command.measure import INVERSE, LOSSES, TASKS
from studies.longtail_headroom.report import print_table

RIVALS = {  # policy -> its name in tables
    "uniform": "shuffled",
    "natural": "natural (nobody acting)",
    "class-balanced": "class-balanced",
    "square-root": "square-root",
    INVERSE: INVERSE,
    "deferred": "deferred",
    "validation-proportional": "validation-proportional",
    "random": "random actions",
}
RESAMPLES = 10_000

Float64 = NDArray[np.float64]


def scores(column: str) -> dict[str, dict[str, Float64]]:
    """The values of a column by task and policy, (unseen seeds,) each; "agent": (agents, unseen seeds)."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in read_rows(LOSSES):
        found[row["task"]][row["policy"]].append(float(row[column]))
    tables = {}
    for task, own in found.items():
        agents = [values for name, values in own.items() if name not in RIVALS]
        tables[task] = {name: np.array(own[name]) for name in RIVALS} | {"agent": np.array(agents)}
    return tables


def interval(leads: Float64) -> str:
    """The mean of leads (agents, unseen seeds), with its 95 % interval by the bootstrap over both."""
    rng, (agents, seeds) = np.random.default_rng(0), leads.shape
    rows, columns = (rng.integers(0, count, (RESAMPLES, count)) for count in (agents, seeds))
    means = leads[rows[:, :, None], columns[:, None, :]].mean(axis=(1, 2))
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{leads.mean():+.3f} ({low:+.3f} to {high:+.3f})"


def main() -> None:
    """Print the tables."""
    losses, accuracies = scores("test_loss"), scores("test_accuracy")
    head = ["imbalance", *TASKS]
    rows = [["agent, mean", *(f"{losses[task]['agent'].mean():.3f}" for task in TASKS)]]
    rows.append(
        ["agent, each seed", *(", ".join(f"{one.mean():.3f}" for one in losses[task]["agent"]) for task in TASKS)]
    )
    rows += [[shown, *(f"{losses[task][name].mean():.3f}" for task in TASKS)] for name, shown in RIVALS.items()]
    print_table(["test loss", *head[1:]], rows)
    rows = [["agent", *(f"{100 * accuracies[task]['agent'].mean():.1f}" for task in TASKS)]]
    rows += [
        [shown, *(f"{100 * accuracies[task][name].mean():.1f}" for task in TASKS)] for name, shown in RIVALS.items()
    ]
    print_table(["test accuracy, %", *head[1:]], rows)
    rows = [
        [shown, *(interval(losses[task][name] - losses[task]["agent"]) for task in TASKS)]
        for name, shown in RIVALS.items()
    ]
    print_table(["the agent's lead over", *head[1:]], rows)
    for name in ("uniform", "class-balanced", "deferred"):
        signs = [
            Lead.of(PolicyScores("", one.tolist(), []), PolicyScores("", losses[task][name].tolist(), [])).sign
            for task in TASKS
            for one in losses[task]["agent"]
        ]
        counts = {word: signs.count(sign) for word, sign in (("ahead", 1), ("level", 0), ("behind", -1))}
        print(f"agents against {RIVALS[name]}, each by its own interval over the unseen seeds: {counts}")


if __name__ == "__main__":
    main()
