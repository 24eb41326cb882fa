"""The pictures of a run, drawn from the files in its folder."""

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, pairwise
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from qan_agents.experiments.played_task import PlayedTask, baseline_of
from qan_agents.experiments.run_folder import EPISODES, EVALUATION_EPISODES, EVALUATION_STEPS, STEPS, Run
from qan_gym.utils.files import require_writable, write_aside

Rows = list[dict[str, str]]
Style = dict[str, Any]

# Okabe and Ito's colours, told apart by the colour-blind; and line styles, told apart in grey.
STYLES = (("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", ":"), ("#CC79A7", "-."), ("#E69F00", "-"), ("#56B4E9", "--"))
LEGIBLE = "0.5"  # a grey, of text on white and on black
MOST_CHARACTERS = 80  # of a label
MOST_TICKS = 10  # with the name of an action
ACCURACY, MAX_Q, ACTIONS, EPISODE = "accuracy.png", "max_q.png", "actions.png", "episode.png"


def plot_run(run: Run, drawn: Callable[[Path], None] = lambda path: None) -> list[Path]:
    """Draw all pictures that the files of a run allow.

    Args:
        run: with a finished episode.
        drawn: called with every picture, once it is there.

    Returns:
        The pictures.

    Raises:
        ValueError: the run has no finished episode, its game is not registered, or a file of it is damaged.
    """
    config = run.config()
    task = PlayedTask.of(run)
    episodes, steps = run.table(EPISODES), run.table(STEPS)
    require_writable(run.folder)
    evaluated = run.evaluated
    evaluation_steps = run.table(EVALUATION_STEPS) if evaluated else []
    scores = run.table(EVALUATION_EPISODES) if evaluated else []
    baseline = baseline_of(task.config, config.baselines)
    title = config.title
    figures: dict[str, Callable[[], Figure]] = {
        ACCURACY: lambda: _accuracy_figure(title, episodes, scores, baseline),
        ACTIONS: lambda: _actions_figure(title, steps, task),
    }
    if "mean_max_q" in episodes[0]:  # of agents that value the actions
        figures[MAX_Q] = lambda: _values_figure(title, episodes)
    if evaluated:
        figures[EPISODE] = lambda: _episode_figure(title, evaluation_steps, task)
    for name, draw in figures.items():
        drawn(save(draw(), run.folder / name))
    return [run.folder / name for name in figures]


def save(figure: Figure, path: Path, dpi: int = 120) -> Path:
    """Write a picture, atomically, for pages of any background; returns its path."""
    for_any_background(figure)
    with write_aside(path) as aside:
        figure.savefig(aside, dpi=dpi)
    return path


def for_any_background(figure: Figure) -> None:
    """Make a figure transparent, its text and axes of a grey that is legible on light and on dark pages."""
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
        axes.tick_params(which="both", colors=LEGIBLE)
        for spine in axes.spines.values():
            spine.set_edgecolor(LEGIBLE)
    for frame in (legend.get_frame() for legend in figure.findobj(Legend)):
        frame.set_alpha(0)
    for text in figure.findobj(Text):
        if to_rgb(text.get_color()) == (0, 0, 0):
            text.set_color(LEGIBLE)


def legend_below(figure: Figure, axes: Axes, size: float = 9) -> None:
    """Put the legend of some axes below all of a figure of constrained layout, where no line crosses it.

    Args:
        figure: whose layout is constrained.
        axes: of it, which the legend is of.
        size: of the font, in points.
    """
    handles, labels = axes.get_legend_handles_labels()
    widest = max((len(label) for label in labels), default=0) + 7  # characters, with the line and a gap
    columns = int(figure.get_figwidth() * 72 / (0.6 * size * widest))
    look: Style = {"loc": "outside lower center", "frameon": False, "fontsize": size}
    figure.legend(handles, labels, ncols=max(1, min(columns, len(labels))), **look)


def plain(text: object) -> str:
    """Text for a picture, as it is: in one line, not too long, without matplotlib's signs for formulas and for hiding.

    Dollar signs would begin a formula, and a label that begins with an underscore would not be in the legend.
    """
    line = shorten(str(text), MOST_CHARACTERS, placeholder="...") or "..."
    line = "".join(character if character.isprintable() else "?" for character in line)
    return (" " if line.startswith("_") else "") + line.replace("$", r"\$")


def _numbers(rows: Rows, column: str) -> NDArray[np.float64]:
    return np.array([float(row[column]) for row in rows])


# --- episode by episode ---------------------------------------------------------------------------------------------


def _accuracy_figure(title: str, episodes: Rows, scores: Rows, baseline: str) -> Figure:
    """The accuracy at the end of every training episode, and the baseline's mean on the evaluation seeds."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(title=f"{plain(title)}\nfinal accuracy of each episode")
    for fill, (kind, rows) in zip(("full", "none"), _kinds(episodes), strict=False):
        for (color, line), split in zip(STYLES, ("validation", "test"), strict=False):
            style: Style = {"marker": "o", "markersize": 4, "fillstyle": fill, "color": color, "linestyle": line}
            values = 100 * _numbers(rows, f"{split}_accuracy")
            axes.plot(_numbers(rows, "episode") + 1, values, label=f"{split}, {kind}", **style)
    baseline_scores = [row for row in scores if row["policy"] == baseline]
    if baseline_scores:
        mean = 100 * _numbers(baseline_scores, "test_accuracy").mean()
        label = f"test, {plain(baseline)} policy, seeds: {len(baseline_scores)}"
        axes.axhline(mean, color=LEGIBLE, linewidth=1, label=label)
    axes.set(xlabel="episode", ylabel="accuracy at the end (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    legend_below(figure, axes)
    return figure


def _values_figure(title: str, episodes: Rows) -> Figure:
    """The agent's value of its best action, mean over each episode."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(title=f"{plain(title)}\nhighest action value, mean over each episode")
    for (color, line), (kind, rows) in zip(STYLES, _kinds(episodes), strict=False):
        style: Style = {"marker": "o", "markersize": 4, "color": color, "linestyle": line}
        axes.plot(_numbers(rows, "episode") + 1, _numbers(rows, "mean_max_q"), label=kind, **style)
    axes.set(xlabel="episode", ylabel="mean of max Q(s, a) (discounted reward)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    legend_below(figure, axes)
    return figure


def _kinds(episodes: Rows) -> Iterator[tuple[str, Rows]]:
    """The episodes that the agent learned from and those that it only played, where there are any."""
    for kind, learned in (("while training", "1"), ("only played", "0")):
        rows = [row for row in episodes if row["learned"] == learned]
        if rows:
            yield kind, rows


# --- one unseen episode ---------------------------------------------------------------------------------------------


def _episode_figure(title: str, steps: Rows, task: PlayedTask) -> Figure:
    """One unseen episode of the agent against the fixed policies: losses, accuracy, and what was controlled."""
    seed = steps[0]["seed"]
    figure = Figure(figsize=(8, 8), layout="constrained")
    figure.suptitle(f"{plain(title)}\none unseen episode (seed {plain(seed)}), played greedily")
    loss, accuracy, control = figure.subplots(3, 1)
    agent = steps[0]["policy"]
    for (color, line), name in zip(cycle(STYLES), dict.fromkeys(row["policy"] for row in steps), strict=False):
        rows = [row for row in steps if row["policy"] == name and row["seed"] == seed]
        validated = _validated(rows)
        batch, measured = _numbers(rows, "batch"), _numbers(validated, "batch")
        style: Style = {"color": color, "linestyle": line, "label": plain(name)}
        loss.plot(batch, _numbers(rows, "smoothed_loss"), color=color, linewidth=0.8, alpha=0.5)
        loss.plot(measured, _numbers(validated, "validation_loss"), marker="o", markersize=4, **style)
        accuracy.plot(measured, 100 * _numbers(validated, "validation_accuracy"), marker="o", markersize=4, **style)
        if task.game.curve is not None:
            _draw_controlled(control, batch, _numbers(rows, task.game.curve), name == agent, task, style)
        elif name != "uniform" and not (task.action_names and rows[0].get("action_1")):
            # not the policy whose actions do nothing, nor rules for classes, whose actions are other ones
            control.plot(*_action_profile(rows, task), marker="o", markersize=4, **style)
    loss.set(xlabel="mini-batches (thin: running mean of the training loss)", yscale="log")
    loss.set_ylabel("validation loss (nats)")
    accuracy.set(xlabel="mini-batches", ylabel="validation accuracy (%)")
    if task.game.curve is not None:
        scale = "log" if task.game.curve_is_logarithmic else "linear"
        control.set(xlabel="mini-batches", ylabel=_words(task.game.curve), yscale=scale)
        if task.game.curve_is_logarithmic:  # schedules that end at 0 leave the picture
            least, _ = task.game.curve_limits(task.config)
            control.set_ylim(bottom=max(least / 2, control.get_ylim()[0]))
    elif task.action_names:
        control.set(xlabel="class" if _are_classes(task) else "action", ylabel="share of the actions (%)")
        ticks, labels = action_ticks(task.action_names)
        control.set_xticks(ticks, labels=labels)
    else:
        control.set(xlabel="number of the action", ylabel="mean over the episode")
    for axes in (loss, accuracy, control):
        axes.grid(alpha=0.3)
    legend_below(figure, loss)
    figure.align_ylabels()
    accuracy.set_xlim(loss.get_xlim())
    return figure


def _validated(rows: Rows) -> Rows:
    """The rows of an episode after whose mini-batches the validation loss was measured; the others repeat the last."""
    return [row for before, row in pairwise(rows) if row["validation_loss"] != before["validation_loss"]] or rows[-1:]


def _draw_controlled(
    axes: Axes, ends: NDArray[np.float64], values: NDArray[np.float64], acts: bool, task: PlayedTask, style: Style
) -> None:
    """What was controlled, at the ends of the actions: the agent's in steps from the first mini-batch on.

    What also changes within an action, as under a base schedule or by a schedule itself, is joined by lines.
    """
    if acts and task.config.schedule == "constant":
        axes.step(np.insert(ends, 0, 0), np.insert(values, 0, values[0]), where="pre", **style)
    else:
        axes.plot(ends, values, **style)


def _action_profile(rows: Rows, task: PlayedTask) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """x and y: the actions of a Discrete space and their shares in %; else the numbers of an action and their means."""
    if not task.action_names:
        means = np.array([_numbers(rows, column).mean() for column in _action_columns(rows)])
        return np.arange(len(means)), means
    actions = np.arange(len(task.action_names))
    return actions, 100 * (_numbers(rows, "action")[:, None] == actions).mean(axis=0)


def _are_classes(task: PlayedTask) -> bool:
    """Whether each action of a Discrete space chooses a class."""
    return task.game.curve is None and all(name.isdecimal() for name in task.action_names)


def _action_columns(rows: Rows) -> list[str]:
    """The columns of the numbers of an action."""
    return [column for column in rows[0] if re.fullmatch(r"action(_\d+)?", column)]


def _words(column: str) -> str:
    return column.replace("_", " ")


# --- the actions over time ------------------------------------------------------------------------------------------


def _actions_figure(title: str, steps: Rows, task: PlayedTask) -> Figure:
    """Every action of every training episode, number by number; below, the curve of what they control."""
    columns, curve = _action_columns(steps), task.game.curve
    count = len(columns) + (curve is not None)
    figure = Figure(figsize=(9, 2 + 2.5 * count), layout="constrained")
    figure.suptitle(f"{plain(title)}\nthe actions of each episode, over time")
    panels = figure.subplots(count, 1, squeeze=False)[:, 0]
    for axes, column in zip(panels, columns, strict=False):
        if task.action_names:
            bins = len(task.action_names)
            image = _map(axes, _grid(steps, column), "viridis", Normalize(-0.5, bins - 0.5), bins)  # in grey, too
            bar = figure.colorbar(image, ax=axes, label="class chosen" if _are_classes(task) else "action")
            ticks, labels = action_ticks(task.action_names)
            bar.set_ticks(ticks, labels=labels)
        else:
            image = _map(axes, _grid(steps, column), "viridis", Normalize())
            figure.colorbar(image, ax=axes, label=_words(column))
    if curve is not None:
        logarithmic = task.game.curve_is_logarithmic
        image = _map(panels[-1], _grid(steps, curve), "magma", LogNorm() if logarithmic else Normalize())
        figure.colorbar(image, ax=panels[-1], label=_words(curve) + (" (log)" if logarithmic else ""))
    panels[-1].set_xlabel("action number")
    return figure


def action_ticks(names: Sequence[str]) -> tuple[list[int], list[str]]:
    """Ticks and labels for an axis of the actions of a Discrete space; not all of them where there are many."""
    ticks = list(range(0, len(names), -(-len(names) // MOST_TICKS)))
    return ticks, [plain(names[action]) for action in ticks]


def _grid(steps: Rows, column: str) -> NDArray[np.float64]:
    """(episodes, longest episode), NaN after the end of the shorter ones."""
    episode, step = _numbers(steps, "episode").astype(int), _numbers(steps, "step").astype(int)
    grid = np.full((episode.max() + 1, step.max() + 1), np.nan)
    grid[episode, step] = _numbers(steps, column)
    return grid


def _map(axes: Axes, grid: NDArray[np.float64], colors: str, norm: Normalize, bins: int | None = None) -> AxesImage:
    """Draw a grid, a row per episode; bins: of the colours, None: continuous."""
    palette = colormaps[colors]
    palette = palette.resampled(bins) if bins else palette
    extent = (0, grid.shape[1], grid.shape[0] + 0.5, 0.5)
    image = axes.imshow(grid, aspect="auto", interpolation="nearest", cmap=palette, norm=norm, extent=extent)
    axes.set_ylabel("episode")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return image
