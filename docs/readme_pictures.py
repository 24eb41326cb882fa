"""The pictures of the README: python docs/readme_pictures.py [RUN]

docs/pictures/controllers.png: the differences in the table of docs/controllers.md. With RUN, the folder of a run of
`qan train` that is evaluated, also docs/pictures/trained-agent.webp: the first unseen episode of its agent beside the
constant learning rate.
"""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter
from numpy.typing import NDArray
from pictures import PICTURES, write
from PIL import Image

import qan_gym  # noqa: F401 (registers the environments)
from qan_agents.experiments.played_task import PlayedTask
from qan_agents.experiments.plots import LEGIBLE, for_any_background, save
from qan_agents.experiments.run_folder import EVALUATION_EPISODES, EVALUATION_STEPS, Run
from qan_agents.policies.fixed import fixed_env_kwargs
from qan_gym.core.observation import filter_pictures
from qan_gym.games.learning_rate import KEEP
from qan_gym.rendering.frames import FILTER_SCALE, tiles

TABLE = Path(__file__).parent / "controllers.md"
CONTROLLERS = {"AdamW": ("#D55E00", "o", 0.0), "SGD": ("#0072B2", "s", 0.32)}  # colour, mark, place below the line
EVERY = 40  # mini-batches from frame to frame
WIDTH, HEIGHT = 840, 440  # pixels
LOOKS = (  # of the constant learning rate, the schedule under the actions, and the agent
    {"color": "#0072B2", "linewidth": 2.0, "linestyle": "--", "label": "constant"},
    {"color": LEGIBLE, "linewidth": 2.0, "linestyle": ":", "label": "its schedule, nobody acting"},
    {"color": "#D55E00", "linewidth": 2.6, "label": "trained agent"},
)
NAMES = ("agent", "its schedule alone", "constant")
MARKS = ("^", "v")  # of raise and lower


# --- controllers and their rivals -----------------------------------------------------------------------------------


class Difference(NamedTuple):
    """Of ln(test loss), a controller's minus a rival's, and its 95 % interval."""

    mean: float
    low: float
    high: float


def differences(page: str) -> dict[str, dict[str, dict[str, Difference]]]:
    """Of the table of the controllers that ship, the rivals that are schedules.

    Args:
        page: Markdown, with a table whose first column is `rival` and whose other columns are the controllers. A rival
            "group: name" begins a group; what comes after "its own" is no schedule.

    Returns:
        The differences by group, rival and controller, in the order of the table.

    Raises:
        ValueError: there is no such table.
    """
    table = re.search(r"^\| rival \| (.+) \|\n\| --- .+\n((?:\|.+\n)+)", page, re.MULTILINE)
    if table is None:
        raise ValueError("the page has no table of rivals")
    names, group = table[1].split(" | "), ""
    groups: dict[str, dict[str, dict[str, Difference]]] = {}
    for row in table[2].splitlines():
        rival, *cells = row.strip("| ").split(" | ")
        if rival.startswith("its own"):
            break
        if ": " in rival:
            group, _, rival = rival.partition(": ")
        found = [Difference(*map(float, re.findall(r"[+-][\d.]+", cell))) for cell in cells]
        groups.setdefault(group, {})[rival] = dict(zip(names, found, strict=True))
    return groups


def forest(groups: dict[str, dict[str, dict[str, Difference]]]) -> Figure:
    """The differences of all controllers to their rivals, a line for each rival."""
    lines: list[tuple[str, dict[str, Difference]]] = []
    for group, rivals in groups.items():
        lines += [(group, {}), *rivals.items()]
    figure = Figure(figsize=(6.4, 0.27 * len(lines) + 1.3), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color=LEGIBLE, linewidth=1)
    for name, (color, mark, below) in CONTROLLERS.items():
        found = [(place + below, one[name]) for place, (_, one) in enumerate(lines) if one]
        beside = [[one.mean - one.low for _, one in found], [one.high - one.mean for _, one in found]]
        middles, places = [one.mean for _, one in found], [place for place, _ in found]
        look = {"color": color, "fmt": mark, "markersize": 5, "capsize": 2.5, "label": f"controller of {name}"}
        axes.errorbar(middles, places, xerr=beside, **look)
    axes.set_yticks(range(len(lines)), [name for name, _ in lines])
    axes.set_ylim(len(lines) - 0.4, -0.6)
    for label, (_, one) in zip(axes.get_yticklabels(), lines, strict=True):
        label.set_fontweight("normal" if one else "bold")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.3)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    figure.legend(loc="outside upper right", ncols=len(CONTROLLERS), frameon=False)
    figure.supxlabel("ln(test loss) minus that of the rival; left of 0: the controller is better", fontsize="medium")
    return figure


# --- a trained agent ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Course:
    """A training, in P parts of EVERY mini-batches.

    Attributes:
        rates: (P,) the learning rate at the end of each part.
        losses: (P + 1,) the validation loss, of the beginning and after each part, in nats.
        filters: (P + 1, F, h, w) those of the first layer.
        actions: (R,) what was decided.
        test_loss: at the end, in nats.
    """

    rates: NDArray[np.float64]
    losses: NDArray[np.float64]
    filters: NDArray[np.float32]
    actions: list[int]
    test_loss: float


def course(run: Run, policy: str) -> Course:
    """The first unseen episode of a policy, played again with the actions of the evaluation.

    Raises:
        ValueError: it ends with another test loss than in the evaluation.
    """
    config, task = run.config(), PlayedTask.of(run).config
    seed = config.evaluation_seeds[0]
    steps, ends = (
        [row for row in run.table(name) if row["policy"] == policy and int(row["seed"]) == seed]
        for name in (EVALUATION_STEPS, EVALUATION_EPISODES)
    )
    actions = [int(row["action"]) for row in steps]
    changed = {"batches_per_action": EVERY, "validate_every": EVERY, **fixed_env_kwargs(policy, task)}
    env = gym.make(config.env, **{**config.env_kwargs, **changed})
    training = env.unwrapped.training
    _, info = env.reset(seed=seed)
    rates, losses, filters = [], [info["validation_loss"]], [filter_pictures(*training.network_of(0))]
    for action in actions:
        for part in range(task.batches_per_action // EVERY):
            *_, info = env.step(KEEP if part else action)
            rates.append(info["learning_rate"])
            losses.append(info["validation_loss"])
            filters.append(filter_pictures(*training.network_of(0)))
    env.close()
    if abs(info["test_loss"] - float(ends[0]["test_loss"])) > 1e-4:
        raise ValueError(f"{policy} ended with {ends[0]['test_loss']}, and now with {info['test_loss']}")
    return Course(np.array(rates), np.array(losses), np.array(filters), actions, info["test_loss"])


def film(agent: Course, schedule: Course, constant: Course) -> list[Image.Image]:
    """An agent beside the schedule under its actions and the constant learning rate; transparent frames."""
    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 2), height_ratios=(1, 1.3))
    picture, rate, loss = (figure.add_subplot(grid[where]) for where in ((slice(None), 0), (0, 1), (1, 1)))
    picture.set_axis_off()
    picture.set_title("filters of the agent's CNN")
    shown = picture.imshow(np.ma.masked_invalid(tiles(agent.filters[0])), **FILTER_SCALE)
    batches = EVERY * np.arange(len(agent.losses))
    for axes, low, high in ((rate, 0.004, 0.3), (loss, 0.07, 3)):
        axes.set(xlim=(0, batches[-1]), ylim=(low, high), yscale="log")
        axes.grid(alpha=0.3)
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
    rate.set_title("learning rate; \N{BLACK UP-POINTING TRIANGLE} raised, \N{BLACK DOWN-POINTING TRIANGLE} lowered")
    rate.tick_params(labelbottom=False)
    loss.set(title="validation loss", xlabel="mini-batches")
    curves = [
        (one, rate.plot([], [], **look)[0], loss.plot([], [], **look)[0])
        for one, look in zip((constant, schedule, agent), LOOKS, strict=True)
    ]
    marks = [rate.plot([], [], mark, color=LOOKS[-1]["color"], markersize=10)[0] for mark in MARKS]
    figure.legend(handles=[line for _, line, _ in curves[::-1]], loc="outside lower center", ncols=3, frameon=False)
    title = figure.suptitle(" ", fontsize=15)
    for_any_background(figure)
    decisions = np.linspace(0, len(agent.rates), len(agent.actions), endpoint=False).astype(int)
    frames = []
    for part in range(0, len(batches), 2):
        batch = batches[part]
        for one, rates, losses in curves:
            rates.set_data(batches[1 : part + 1], one.rates[:part])
            losses.set_data(batches[: part + 1], one.losses[: part + 1])
        for action, mark in enumerate(marks):
            places = [place for place, played in zip(decisions, agent.actions, strict=True) if played == action]
            places = [place for place in places if place < part]
            mark.set_data(batches[1:][places], agent.rates[places])
        shown.set_data(np.ma.masked_invalid(tiles(agent.filters[part])))
        title.set_text(f"mini-batch {batch:,} of {batches[-1]:,}")
        if part == len(agent.rates):
            ends = zip(NAMES, (agent, schedule, constant), strict=True)
            losses = ", ".join(f"{name} {one.test_loss:.3f}" for name, one in ends)
            title.set_text(f"test loss: {losses}")
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba()).copy()))
    return frames


def main() -> None:
    """Draw the plot of the controllers, and with a run also the film of its agent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", metavar="RUN", nargs="?", type=Path, help="the folder of a run that is evaluated")
    arguments = parser.parse_args()
    save(forest(differences(TABLE.read_text(encoding="utf-8"))), PICTURES / "controllers.png", dpi=200)
    if arguments.run is not None:
        run = Run(arguments.run)
        players = (run.config().agent, PlayedTask.of(run).config.schedule, "constant")
        write(PICTURES / "trained-agent.webp", film(*(course(run, policy) for policy in players)))


if __name__ == "__main__":
    main()
