"""The picture of what `LearnedLR` did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


def draw(history: Sequence[dict[str, Any]], clock: int, last: float) -> Figure:
    """Learning rate, loss and actions over the updates.

    Args:
        history: of `LearnedLR`.
        clock: updates so far.
        last: learning rate of the last update.

    Returns:
        A figure with three axes, one above the other.
    """
    figure = Figure(figsize=(7, 7), layout="constrained")
    rate, loss, action = figure.subplots(3, sharex=True)
    ends = [*history[1:], {"step": clock, "last_learning_rate": last}]
    steps, rates = [], []
    for begin, end in zip(history, ends, strict=True):  # the base schedule between two decisions
        if end["step"] > begin["step"]:
            steps += [begin["step"], end["step"] - 1]
            rates += [begin["learning_rate"], end["last_learning_rate"]]
    rate.plot(steps, rates, color="C0")
    if rates and min(rates) > 0:
        rate.set_yscale("log")
    rate.set_ylabel("learning rate")
    for record in history:
        if record["fallback"]:
            rate.axvline(record["step"], color="C3", linewidth=0.5)
    after = [record for record in history if record["loss"] is not None]
    loss.plot([record["step"] for record in after], [record["loss"] for record in after], color="C1", marker=".")
    loss.set_ylabel("mean loss of an action")
    action.bar(
        [record["step"] for record in history],
        [record["action"] for record in history],
        width=0.6 * max(1.0, clock / 25),
        align="edge",
        color="C2",
    )
    action.set_ylim(-1.05, 1.05)
    action.set_ylabel("action")
    action.set_xlabel("update")
    action.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure
