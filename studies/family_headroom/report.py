"""What the measurements say: the headroom of a controller, as a table, and the best learning rates, as a picture.

python -m studies.family_headroom.report
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from qan_agents.experiments.plots import save
from qan_gym.families.learning_rate import NETWORKS, OPTIMIZERS, draw_task
from studies.family_headroom.measure import SHAPES, path_of, read

PICTURE = Path(__file__).parents[2] / "docs" / "pictures" / "family-best-rates.png"
RESAMPLES = 10_000

Float64 = NDArray[np.float64]


class Measured:
    """The losses of some tasks over the grid.

    Attributes:
        numbers: (n,) of the tasks.
        rates: (R,) the grid.
        validation, test: (n, 3, R) ln(loss), of every task, schedule and learning rate.
        momentum: (n,) of the tasks.
    """

    def __init__(self, network: str, optimizer: str, split: str) -> None:
        """Read the file.

        Raises:
            FileNotFoundError: there is none.
        """
        rows = read(path_of(network, optimizer, split))
        if not rows:
            raise FileNotFoundError(path_of(network, optimizer, split))
        self.numbers = np.unique([int(row["number"]) for row in rows])
        self.rates = np.unique([float(row["learning_rate"]) for row in rows])
        shape = (len(self.numbers), len(SHAPES), len(self.rates))
        place = [
            (
                np.searchsorted(self.numbers, int(row["number"])),
                SHAPES.index(str(row["schedule"])),
                np.searchsorted(self.rates, float(row["learning_rate"])),
            )
            for row in rows
        ]
        self.validation, self.test = np.empty((2, *shape))
        for name in ("validation", "test"):
            getattr(self, name)[tuple(zip(*place, strict=True))] = np.log([float(row[f"{name}_loss"]) for row in rows])
        tasks = [draw_task(split, int(number), (network,), (optimizer,)) for number in self.numbers]
        self.momentum = np.array([task.momentum for task in tasks])
        self.network, self.optimizer = network, optimizer

    def chosen_on(self) -> Measured:
        """What one setting is chosen on: the training split, or where that was not measured, with hindsight, these."""
        try:
            return Measured(self.network, self.optimizer, "train")
        except FileNotFoundError:
            return self

    def at(self, losses: Float64, rates: Float64) -> Float64:
        """(n, 3), the losses at a learning rate of each task (n,), to the nearest of the grid."""
        places = np.abs(np.log(self.rates) - np.log(rates)[:, None]).argmin(axis=1)
        return losses[np.arange(len(places)), :, places]


def interval(differences: Float64) -> tuple[float, float, float]:
    """The mean of differences (n,) over tasks, and its 95 % interval by the bootstrap over tasks."""
    rng = np.random.default_rng(0)
    means = differences[rng.integers(0, len(differences), (RESAMPLES, len(differences)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(differences.mean()), float(low), float(high)


def headroom(network: str, optimizer: str) -> list[str]:
    """The lines of the table for a kind of network and an optimizer."""
    held_out = Measured(network, optimizer, "test")
    chosen_on = held_out.chosen_on()
    tasks = np.arange(len(held_out.numbers))
    over_all = best_of_all(held_out)
    lines = []
    for with_rule in (False, True) if optimizer == "sgd" else (False,):
        for place, schedule in enumerate(SHAPES):
            one = held_out.at(held_out.test, single(chosen_on, held_out, place, with_rule))[:, place]
            best = held_out.test[tasks, place, held_out.validation[:, place].argmin(axis=1)]
            name = schedule + (", learning rate x (1 - momentum)" if with_rule else "")
            cells = [f"{one.mean():.3f}", *(cell(one - other) for other in (best, over_all))]
            lines.append(f"| {network} | {optimizer} | {len(tasks)} | {name} | {' | '.join(cells)} |")
    return lines


def single(chosen_on: Measured, held_out: Measured, schedule: int, with_rule: bool) -> Float64:
    """(n,), the learning rate of each task under the one setting with the lowest mean ln(validation loss)."""
    rules = [1 - one.momentum if with_rule else np.ones(len(one.numbers)) for one in (chosen_on, held_out)]
    means = [chosen_on.at(chosen_on.validation, rate * rules[0])[:, schedule].mean() for rate in chosen_on.rates]
    rates: Float64 = chosen_on.rates[int(np.argmin(means))] * rules[1]
    return rates


def best_of_all(held_out: Measured) -> Float64:
    """(n,) ln(test loss) of the schedule and learning rate with the lowest validation loss of each task."""
    flat = held_out.validation.reshape(len(held_out.numbers), -1).argmin(axis=1)
    best: Float64 = held_out.test.reshape(len(held_out.numbers), -1)[np.arange(len(flat)), flat]
    return best


def cell(differences: Float64) -> str:
    """The mean of differences over tasks, with its interval."""
    mean, low, high = interval(differences)
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"


def best_rates(network: str, optimizer: str) -> Float64:
    """(n,), of the linear decay, by validation loss, interpolated by a parabola through the best point and its two."""
    measured = Measured(network, optimizer, "test")
    losses, logs = measured.validation[:, SHAPES.index("linear")], np.log(measured.rates)
    best = losses.argmin(axis=1)
    inner = np.clip(best, 1, len(logs) - 2)
    rows = np.arange(len(best))
    left, middle, right = (losses[rows, inner + shift] for shift in (-1, 0, 1))
    bend = left - 2 * middle + right
    shift = np.where(bend > 0, 0.5 * (left - right) / np.where(bend > 0, bend, 1), 0.0)
    rates: Float64 = np.exp(logs[inner] + np.clip(shift, -1, 1) * (logs[1] - logs[0]))
    return np.where(best == inner, rates, measured.rates[best])


def draw() -> None:
    """The best learning rates of the perceptrons, one histogram for each optimizer."""
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    for axes, optimizer in zip(figure.subplots(1, 2, sharey=True), OPTIMIZERS, strict=True):
        rates = best_rates("mlp", optimizer)
        low, high = np.percentile(rates, [5, 95])
        axes.hist(np.log10(rates), bins=24, color="#0072B2")
        for edge in (low, high):
            axes.axvline(np.log10(edge), color="#D55E00", linestyle="--")
        axes.set_title(f"{optimizer}: 5-95 % of the tasks within a factor of {high / low:.0f}", fontsize=10)
        axes.set_xlabel("lg(best learning rate under a linear decay)")
    figure.supylabel("tasks")
    save(figure, PICTURE)


def main() -> None:
    """Print the table and the ranges, and draw."""
    head = ("network", "optimizer", "tasks", "one setting", "ln(test loss)", "minus its best", "minus the best of all")
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    there = [
        (network, optimizer)
        for network in NETWORKS
        for optimizer in OPTIMIZERS
        if path_of(network, optimizer, "test").exists()
    ]
    for network, optimizer in there:
        print("\n".join(headroom(network, optimizer)))
    print()
    for network, optimizer in there:
        rates = best_rates(network, optimizer)
        low, high = np.percentile(rates, [5, 95])
        print(
            f"{network}, {optimizer}: best learning rates from {low:.3g} to {high:.3g} (5-95 %), {high / low:.0f}-fold"
        )
    draw()


if __name__ == "__main__":
    main()
