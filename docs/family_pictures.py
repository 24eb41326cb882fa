"""The pictures of the pages about the families of tasks: python docs/family_pictures.py

docs/pictures/family-distribution.png: the parameters of 10,000 tasks; docs/pictures/family-tasks.webp: twelve tasks,
each played with random actions and with none; docs/pictures/long-tail-classes.png: the classes of a task with rare and
noisy ones.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, PercentFormatter
from numpy.typing import NDArray
from pictures import PICTURES, SEED, write
from PIL import Image

import qan_gym  # noqa: F401 (registers the environments)
from qan_agents.controllers.controller import Controller
from qan_agents.controllers.shipped import shipped_controller
from qan_agents.experiments.plots import save
from qan_gym.families import DECISIONS, Task, draw_task
from qan_gym.families.long_tail import LongTailTask
from qan_gym.families.long_tail import draw_task as draw_long_tail

DRAWN = 10_000  # tasks of the training split, from number 0
BINS = 16
COLORS = {"sgd": "#D55E00", "adamw": "#0072B2"}
BOTH, CHANCE = "#009E73", "0.75"
SHOWN = {"mlp": 7, "cnn": 2, "mnist-cnn": 1, "resnet-8": 1, "vit": 1}  # how many of a kind are played: the first ones
WIDEST_ACTION = 0.4  # of the random ones: a factor of 12**0.4 = 2.7

# The task whose classes are shown.
LONG_TAIL = {"imbalance": 50, "label_noise": 0.5, "noisy_classes": 2}
NUMBER = 3

Artist = Any  # matplotlib's, which has no types


# --- the distribution -----------------------------------------------------------------------------------------------


def names(axes: Artist, values: Iterable[Any]) -> None:
    """Bars of how many tasks have a value; numbers in their order, names by their share."""
    counts = Counter(values)
    ordered = sorted(counts) if not any(isinstance(value, str) for value in counts) else [*dict(counts.most_common())]
    places = range(len(ordered))
    axes.bar(places, [counts[value] / counts.total() for value in ordered], color=BOTH)
    axes.set_xticks(places, [str(value) for value in ordered])


def shares(axes: Artist, values: Iterable[float]) -> None:
    """A histogram over an axis whose bins are of equal width."""
    found = np.array([*values])
    axes.hist(found, BINS, weights=np.full(len(found), 1 / len(found)), color=BOTH)


def per_doubling(
    axes: Artist, values: Iterable[float], ticks: Sequence[float], step: float = 0, color: str = "", of: int = 0
) -> None:
    """A histogram over a logarithmic axis: the share of the tasks in a bin over the logarithm of its width, to base 2.

    Args:
        axes: to draw on.
        values: above 0.
        ticks: of the axis.
        step: from one possible value to the next; 0: all values are possible.
        color: of an outline; empty: bars are filled.
        of: how many tasks are all; 0: as many as there are values.
    """
    found = np.array([*values], np.float64)
    edges = np.geomspace(found.min(), found.max(), BINS + 1)
    if step:
        edges = (np.unique((edges / step).round()) - 0.5) * step
        edges[-1] += step
    counts = np.histogram(found, edges)[0] / np.diff(np.log2(edges))
    look = {"color": color, "linewidth": 1.6} if color else {"color": BOTH, "fill": True}
    axes.stairs(counts / (of or len(found)), edges, **look)
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


def momenta(axes: Artist, tasks: list[Task]) -> None:
    """Of each optimizer, in shares of its tasks."""
    for name, color in COLORS.items():
        found = np.array([task.momentum for task in tasks if task.optimizer == name])
        weights = np.full(len(found), 1 / len(found))
        look = {"histtype": "step", "linewidth": 1.6, "color": color, "label": name}
        axes.hist(found, np.linspace(0, 1, BINS + 1), weights=weights, **look)
    axes.legend(frameon=False, loc="upper center", handlelength=1.2)


def weight_decays(axes: Artist, tasks: list[Task]) -> None:
    """Of each optimizer, where there is any, in shares of its tasks."""
    for name, color in COLORS.items():
        found = [task.weight_decay for task in tasks if task.optimizer == name]
        ticks = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]
        per_doubling(axes, [value for value in found if value > 0], ticks, color=color, of=len(found))


def distribution(tasks: list[Task]) -> Figure:
    """Sixteen histograms."""
    figure = Figure(figsize=(11, 8.4), dpi=100, layout="constrained")
    grid = iter(figure.subplots(4, 4).flat)
    mlps = [task for task in tasks if task.kind == "mlp"]

    def panel(title: str) -> Artist:
        axes = next(grid)
        axes.set_title(title, fontsize=10)
        axes.tick_params(labelsize=8)
        return axes

    names(panel("network"), (task.kind for task in tasks))
    names(panel("layers of an MLP"), (len(widths(task)) for task in mlps))
    layers = [width for task in mlps for width in widths(task)]
    per_doubling(panel("width of a layer of an MLP *"), layers, [4, 8, 16, 32, 64], step=1)
    names(panel("activation of an MLP"), (activation(task) for task in mlps))
    names(panel("pixels a side"), (task.resolution for task in tasks))
    names(panel("classes"), (len(task.classes) for task in tasks))
    sizes = [200, 400, 800, 1_600, 4_000]
    per_doubling(panel("training images *"), (task.train_size for task in tasks), sizes, step=1)
    shares(panel("label noise"), (task.label_noise for task in tasks))
    factors = [0.3, 0.5, 1, 2, 3]
    per_doubling(panel("scale of the inputs *"), (task.input_scale for task in tasks), factors)
    shares(panel("share of the mean that is taken off"), (task.input_centre for task in tasks))
    per_doubling(panel("scale of the initial weights *"), (task.initial_scale for task in tasks), [0.5, 1, 2])
    per_doubling(panel("scale of the loss *"), (task.loss_scale for task in tasks), factors)
    momenta(panel("momentum; of AdamW, beta1"), tasks)
    weight_decays(panel("weight decay, where there is any *"), tasks)
    batches = [4, 8, 16, 32, 64, 128]
    per_doubling(panel("images of a mini-batch *"), (task.batch_size for task in tasks), batches, step=1)
    budgets = [100, 250, 500, 1_000, 2_000, 4_000]
    per_doubling(panel("mini-batches of an episode *"), (task.budget for task in tasks), budgets, step=DECISIONS)
    for axes in figure.axes:
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(bottom=0)
    figure.supxlabel("share of the tasks, in %;  * on a logarithmic axis: per factor of 2", fontsize=9)
    return figure


def widths(task: Task) -> list[int]:
    """Of the layers of an MLP."""
    return [int(part) for part in task.network.split("-") if part.isdecimal()]


def activation(task: Task) -> str:
    """Of an MLP."""
    last = task.network.rpartition("-")[2]
    return "relu" if last.isdecimal() else last


# --- twelve tasks ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Played:
    """An episode: (steps + 1,) each, the reset first.

    Attributes:
        share: of the budget that is done.
        loss: running mean of the training loss over its chance level, ln K times the loss scale.
        rate: the learning rate.
    """

    share: NDArray[np.float64]
    loss: NDArray[np.float64]
    rate: NDArray[np.float64]


def played(task: Task, widest: float) -> Played:
    """An episode of random actions in [-widest, widest]; ends where it diverges."""
    env = gym.make("QanLR-Family-v0", task=task)
    random = np.random.default_rng(task.number)
    _, info = env.reset(seed=SEED)
    infos, over = [info], False
    while not over:
        *_, terminated, truncated, info = env.step(random.uniform(-widest, widest, 1).astype(np.float32))
        over = terminated or truncated
        infos += [info] if not terminated else []
    env.close()
    chance = task.loss_scale * np.log(len(task.classes))
    columns = [[one[name] for one in infos] for name in ("batch", "smoothed_loss", "learning_rate")]
    batches, losses, rates = np.array(columns, np.float64)
    return Played(batches / task.budget, losses / chance, rates)


def twelve() -> list[Task]:
    """The first tasks of every kind of network, in the order of their numbers."""
    left, tasks, number = Counter(SHOWN), [], 0
    while left.total():
        task = draw_task("train", number)
        if left[task.kind] > 0:
            left[task.kind] -= 1
            tasks.append(task)
        number += 1
    return tasks


def record(task: Task) -> str:
    """Two short lines."""
    momentum = f" {task.momentum:.2g}" if task.momentum else ""
    noise = f", noise {task.label_noise:.0%}" if task.label_noise else ""
    return (
        f"{task.network}, {task.optimizer}{momentum}, {task.budget:,} batches of {task.batch_size}\n"
        f"{task.resolution}x{task.resolution}, {len(task.classes)} classes, {task.train_size:,} images{noise}"
    )


def mosaic(tasks: list[Task]) -> list[Image.Image]:
    """A frame after every action of all of them."""
    acted, idle = ([played(task, widest) for task in tasks] for widest in (WIDEST_ACTION, 0.0))
    figure = Figure(figsize=(10.6, 7.2), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    curves = []
    for axes, task in zip(figure.subplots(3, 4, sharex=True, sharey=True).flat, tasks, strict=True):
        axes.set_title(record(task), fontsize=7.5, loc="left")
        axes.set(xlim=(0, 1), yscale="log", ylim=(0.03, 10))
        axes.axhline(1, color=CHANCE, linewidth=0.8)
        axes.tick_params(labelsize=7)
        rates = axes.twinx()
        rates.set(yscale="log", ylim=(1e-5, 1e2))
        rates.tick_params(labelsize=7, colors=COLORS["sgd"], labelright=axes.get_subplotspec().is_last_col())
        (still,) = axes.plot([], [], color="0.35", linewidth=1.2, linestyle=(0, (3, 1.5)), label="loss, no actions")
        (loss,) = axes.plot([], [], color=COLORS["adamw"], linewidth=1.8, label="loss, random actions")
        (rate,) = rates.plot([], [], color=COLORS["sgd"], linewidth=1.2, drawstyle="steps-pre", label="learning rate")
        curves.append((still, loss, rate))
    figure.supxlabel("share of the budget", fontsize=9)
    figure.supylabel("training loss / chance level", fontsize=9)
    figure.legend(handles=curves[0], loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    canvas.draw()
    figure.set_layout_engine("none")  # all frames have the layout of the first
    frames = []
    for step in range(DECISIONS + 1):
        for (still, loss, rate), one, other in zip(curves, acted, idle, strict=True):
            still.set_data(other.share[: step + 1], other.loss[: step + 1])
            loss.set_data(one.share[: step + 1], one.loss[: step + 1])
            rate.set_data(one.share[: step + 1], one.rate[: step + 1])
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()))
    return frames


# --- classes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassCurves:
    """An episode, (actions, classes) each, after every action.

    Attributes:
        shares: of the classes in the mini-batches of the action.
        losses: on validation images, nats.
    """

    shares: NDArray[np.float64]
    losses: NDArray[np.float64]


def class_curves(task: LongTailTask, controller: Controller | None) -> ClassCurves:
    """An episode of a controller of the shares of the classes; None: of shuffled SGD."""
    env = gym.make("QanMinibatch-LongTail-v0", task=task, continuous=True)
    observation, _ = env.reset(seed=SEED, options={"sampler": "shuffled"} if controller is None else None)
    act = (lambda seen: np.zeros((1, len(task.classes)), np.float32)) if controller is None else controller.player(1)
    run, shares, losses, over = env.unwrapped.training.run, [], [], False
    while not over:
        observation, _, terminated, truncated, _ = env.step(act(observation[None])[0])
        shares.append(run.class_share[0].double().numpy())
        losses.append(run.class_validation_loss[0].double().numpy())
        over = terminated or truncated
    env.close()
    return ClassCurves(np.stack(shares), np.stack(losses))


def classes_figure(task: LongTailTask) -> Figure:
    """The shares of the classes over an episode, above the validation loss of each."""
    played = {
        "shuffled SGD": class_curves(task, None),
        "the controller that ships": class_curves(task, shipped_controller("long-tail")),
    }
    figure = Figure(figsize=(9, 6.6), dpi=100, layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey="row")
    used = np.arange(1, task.DECISIONS + 1) / task.DECISIONS
    by_size = np.argsort(task.class_sizes)[::-1]
    colors = colormaps["viridis"](np.linspace(0, 0.9, len(by_size)))
    for (name, curves), column in zip(played.items(), panels.T, strict=True):
        column[0].set_title(name, fontsize=10)
        for color, label in zip(colors, by_size, strict=True):
            noise = task.label_noise[label]
            look = {"color": color, "linestyle": "--" if noise else "-", "linewidth": 1.6}
            about = f"{task.class_sizes[label]} images" + (f", {noise:.0%} noise" if noise else "")
            column[0].plot(used, curves.shares[:, label], label=about, **look)
            column[1].plot(used, curves.losses[:, label], **look)
    panels[0, 0].set(ylabel="share of the mini-batches, %", yscale="log")
    panels[0, 0].set_yticks([0.01, 0.03, 0.1, 0.3], labels=["1", "3", "10", "30"])
    panels[1, 0].set(ylabel="validation loss of the class, nats", yscale="log")
    for axes in panels[1]:
        axes.set_xlabel("share of the budget")
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=8
    )
    return figure


def main() -> None:
    """Draw all."""
    task = draw_long_tail("train", NUMBER, ("mlp",), **LONG_TAIL)
    save(classes_figure(task), PICTURES / "long-tail-classes.png", dpi=100)
    tasks = [draw_task("train", number) for number in range(DRAWN)]
    save(distribution(tasks), PICTURES / "family-distribution.png", dpi=100)
    write(PICTURES / "family-tasks.webp", mosaic(twelve()))


if __name__ == "__main__":
    main()
