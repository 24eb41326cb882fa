"""The pictures of a run."""

from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qan_agents.experiments.evaluation import BESIDE
from qan_agents.experiments.run_folder import Run, read_rows
from qan_gym.utils.files import write_aside

Rows = list[dict[str, str]]

# Okabe and Ito's colours, told apart by the colour-blind; and line styles, told apart in grey.
STYLES = (("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", ":"))


def plot_run(run: Run) -> list[Path]:
    """Draw all pictures that the files of a run allow.

    Returns:
        The pictures.

    Raises:
        ValueError: the run has no finished episode, or a file of it is damaged.
    """
    title, task = run.config().title, run.settings()["task"]
    if not (run.folder / "episodes.csv").is_file():
        raise ValueError(f"{run.folder} has no finished episode yet: continue it with qan train --resume {run.folder}")
    episodes, steps = read_rows(run.folder / "episodes.csv"), read_rows(run.folder / "steps.csv.gz")
    evaluated = (run.folder / "evaluation.csv.gz").is_file()
    played = read_rows(run.folder / "evaluation.csv.gz") if evaluated else []
    scores = read_rows(run.folder / "evaluation.csv") if evaluated else []
    pictures = [save(_accuracy(title, episodes, scores, task), run.folder / "accuracy.png")]
    pictures.append(save(_values(title, episodes), run.folder / "max_q.png"))
    pictures.append(save(_actions(title, steps, task), run.folder / "actions.png"))
    if played:
        pictures.append(save(_episode(title, played, task), run.folder / "episode.png"))
    return pictures


def save(figure: Figure, path: Path, dpi: int = 120) -> Path:
    """Write a picture, atomically; returns its path."""
    with write_aside(path) as aside:
        figure.savefig(aside, dpi=dpi)
    return path


def _numbers(rows: Rows, column: str) -> np.ndarray:
    return np.array([float(row[column]) for row in rows])


def _accuracy(title: str, episodes: Rows, scores: Rows, task: dict) -> Figure:
    """Final accuracy per training episode, beside the baseline's on the evaluation seeds."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(title=f"{title}\nfinal accuracy of each episode")
    for filled, (kind, some) in zip(("full", "none"), _kinds(episodes).items(), strict=False):
        for (color, style), split in zip(STYLES, ("validation", "test"), strict=False):
            values = 100 * _numbers(some, f"{split}_accuracy")
            look = {"marker": "o", "markersize": 4, "fillstyle": filled, "color": color}
            axes.plot(_numbers(some, "episode") + 1, values, style, label=f"{split}, {kind}", **look)
    baseline = BESIDE[task["game"]][0]
    mine = [row for row in scores if row["policy"] == baseline]
    if mine:
        mean = 100 * _numbers(mine, "test_accuracy").mean()
        axes.axhline(mean, color="0.4", linewidth=1, label=f"test, {baseline} policy, seeds: {len(mine)}")
    axes.set(xlabel="episode", ylabel="accuracy at the end (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _kinds(episodes: Rows) -> dict[str, Rows]:
    """The episodes by what the agent did in them, where there are such."""
    kinds = {"while training": "1", "only played": "0"}
    some = {kind: [row for row in episodes if row["learned"] == learned] for kind, learned in kinds.items()}
    return {kind: rows for kind, rows in some.items() if rows}


def _values(title: str, episodes: Rows) -> Figure:
    """What the agent thinks its best action is worth, mean over each episode."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(title=f"{title}\nhighest action value, mean over each episode")
    for (color, style), (kind, some) in zip(STYLES, _kinds(episodes).items(), strict=False):
        look = {"marker": "o", "markersize": 4, "color": color, "linestyle": style}
        axes.plot(_numbers(some, "episode") + 1, _numbers(some, "mean_max_q"), label=kind, **look)
    axes.set(xlabel="episode", ylabel="mean of max Q(s, a) (discounted reward)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(axes)
    return figure


def _episode(title: str, played: Rows, task: dict) -> Figure:
    """One unseen episode of the agent against the fixed policies: its losses, and what was controlled."""
    seed = played[0]["seed"]
    figure = Figure(figsize=(8, 8), layout="constrained")
    figure.suptitle(f"{title}\none unseen episode (seed {seed}), played greedily")
    loss, accuracy, control = figure.subplots(3, 1)
    for (color, style), name in zip(STYLES, dict.fromkeys(row["policy"] for row in played), strict=False):
        rows = [row for row in played if row["policy"] == name and row["seed"] == seed]
        ends = [row for before, row in pairwise(rows) if row["epoch"] != before["epoch"]]
        ends = ends or rows[-1:]
        batch, measured = _numbers(rows, "batch"), _numbers(ends, "batch")
        look = {"color": color, "linestyle": style, "label": name}
        loss.plot(batch, _numbers(rows, "smoothed_loss"), color=color, linewidth=0.8, alpha=0.5)
        loss.plot(measured, _numbers(ends, "validation_loss"), marker="o", markersize=4, **look)
        accuracy.plot(measured, 100 * _numbers(ends, "validation_accuracy"), marker="o", markersize=4, **look)
        if task["game"] == "learning-rate":
            control.plot(batch, _numbers(rows, "learning_rate"), drawstyle="steps-pre", **look)
        elif name != "uniform":  # whose actions do nothing
            shares = np.bincount(_numbers(rows, "action").astype(int), minlength=10) / len(rows)
            control.plot(np.arange(len(shares)), 100 * shares, marker="o", markersize=4, **look)
    loss.set(xlabel="mini-batches (thin: running mean of the training loss)", yscale="log")
    loss.set_ylabel("validation loss (nats)")
    accuracy.set(xlabel="mini-batches", ylabel="validation accuracy (%)")
    if task["game"] == "learning-rate":
        control.set(xlabel="mini-batches", ylabel="learning rate", yscale="log")
    else:
        control.set(xlabel="class", ylabel="share of the actions (%)")
    for axes in (loss, accuracy, control):
        _finish(axes)
    figure.align_ylabels()
    accuracy.set_xlim(loss.get_xlim())
    return figure


def _finish(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.legend()


def _actions(title: str, steps: Rows, task: dict) -> Figure:
    """What was done when, in every training episode; and, in the learning-rate game, the learning rate."""
    figure = Figure(figsize=(9, 7 if task["game"] == "learning-rate" else 4.5), layout="constrained")
    figure.suptitle(f"{title}\nthe actions of each episode, over time")
    panels = figure.subplots(2 if task["game"] == "learning-rate" else 1, 1, squeeze=False)[:, 0]
    actions = _grid(steps, "action")
    if task["game"] == "learning-rate":
        image = _map(panels[0], actions, "viridis", (-0.5, 2.5), bins=3)
        bar = figure.colorbar(image, ax=panels[0], label="action", ticks=[0, 1, 2])
        bar.set_ticklabels(["raise", "lower", "keep"])
        image = _map(panels[1], _grid(steps, "learning_rate"), "magma", None, log=True)
        figure.colorbar(image, ax=panels[1], label="learning rate (log)")
    else:
        classes = max(int(np.nanmax(actions)) + 1, 10)
        image = _map(panels[0], actions, "viridis", (-0.5, classes - 0.5), bins=classes)  # in grey, too
        figure.colorbar(image, ax=panels[0], label="class chosen", ticks=range(classes))
    panels[-1].set_xlabel("action number")
    return figure


def _grid(steps: Rows, column: str) -> np.ndarray:
    """(episodes, longest episode), NaN after the end of the shorter ones."""
    episode, step = _numbers(steps, "episode").astype(int), _numbers(steps, "step").astype(int)
    grid = np.full((episode.max() + 1, step.max() + 1), np.nan)
    grid[episode, step] = _numbers(steps, column)
    return grid


def _map(axes: Axes, grid: np.ndarray, colors: str, limits: tuple | None, bins: int | None = None, log: bool = False):
    import matplotlib

    low, high = limits or (None, None)
    norm = matplotlib.colors.LogNorm() if log else matplotlib.colors.Normalize(low, high)
    palette = matplotlib.colormaps[colors]
    palette = palette.resampled(bins) if bins else palette
    extent = (0, grid.shape[1], grid.shape[0] + 0.5, 0.5)
    image = axes.imshow(grid, aspect="auto", interpolation="nearest", cmap=palette, norm=norm, extent=extent)
    axes.set_ylabel("episode")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return image
