"""A training run as one page: what was asked, what came out, what the agent did and what it might have done."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import FrameStackObservation
from matplotlib.figure import Figure
from numpy.typing import NDArray

from qan_agents.analysis.regret import regrets
from qan_agents.experiments.evaluation import as_rows, standings
from qan_agents.experiments.learner import Greedy
from qan_agents.experiments.page import as_table, page, write_text
from qan_agents.experiments.plots import STYLES, plot_run, save
from qan_agents.experiments.run_folder import Run
from qan_agents.experiments.train import load_agent
from qan_gym.core.observation import filter_pictures
from qan_gym.rendering.frames import FILTER_SCALE, tiles

LOOKS = 20  # of an episode, from which is looked ahead by a LOOKS-th of it
FILTERS_PICTURE, REGRET_PICTURE = "filters.png", "regret.png"
PAGE = "run.html"


def write_page(run: Run) -> list[Path]:
    """Draw all pictures of a run, play an unseen episode for two more, and put everything on one page.

    Looking ahead takes as long as about one training per action that there is, in lock-step.

    Args:
        run: evaluated.

    Returns:
        The page and the pictures.

    Raises:
        ValueError: the run has no finished episode or was not evaluated, or a file of it is damaged.
    """
    if not (run.folder / "evaluation.csv").is_file():
        raise ValueError(f"{run.folder} was not evaluated yet: qan evaluate {run.folder}")
    drawn = plot_run(run)
    filters, rows, ahead = _play(run)
    drawn.append(save(_filters_picture(filters), run.folder / FILTERS_PICTURE))
    drawn.append(save(_regret_picture(rows, run), run.folder / REGRET_PICTURE))
    text = _text(run, rows, ahead)
    write_text(run.folder / PAGE, page(run.config().title, text, run.folder))
    return [run.folder / PAGE, *drawn]


def _play(run: Run) -> tuple[list[NDArray[np.float32]], list[dict[str, Any]], int]:
    """The agent on its first unseen seed: filters (F, h, w) at start and end, regrets, steps that were looked ahead."""
    learner, config = load_agent(run), run.config()
    env = FrameStackObservation(gym.make(config.env, **config.env_kwargs), learner.config.history)
    training, seed = env.unwrapped.training, config.judged_on[0]
    env.reset(seed=seed)
    start = filter_pictures(training.network, training.run.params, 0)
    ahead = max(1, learner.facts.episode_length // LOOKS)
    rows = regrets(env, Greedy(learner), seed, every=ahead, k=ahead)
    end = filter_pictures(training.network, training.run.params, 0)
    env.close()
    learner.close()
    return [start, end], rows, ahead


# --- the text -------------------------------------------------------------------------------------------------------


def _text(run: Run, rows: list[dict[str, Any]], ahead: int) -> str:
    config, settings = run.config(), run.settings()
    mean = np.mean([row["regret"] for row in rows])
    agreed = np.mean([row["action"] == row["best"] for row in rows])
    then = {
        "learning-rate": "the same mini-batches follow and nobody acts further",
        "minibatch": "the classes follow in turn, each with the images that it would have had",
    }[settings["task"]["game"]]
    beside = {**asdict(config), "dataset_fingerprint": settings["dataset_fingerprint"], **settings["versions"]}
    return "\n".join(
        (
            f"# {config.title}\n",
            f"{config.episodes} trainings were played; then the agent played greedily on unseen seeds.\n",
            "## Against fixed policies\n",
            as_table(*as_rows(standings(run))),
            f"Mean (lowest-highest) over the seeds {', '.join(map(str, config.judged_on))}; all with the same "
            "meta-momentum. So few seeds are no interval: `qan bench` makes those.\n",
            "## Episode by episode\n",
            "![accuracy of every episode](accuracy.png)\n\n![what the agent expects](max_q.png)\n",
            "## What it did, and when\n",
            "![actions over time](actions.png)\n",
            "## An unseen episode\n",
            "![losses and control of one unseen episode](episode.png)\n",
            f"![the filters before and after]({FILTERS_PICTURE})\n",
            "## What each action would have done\n",
            f"From {len(rows)} moments of that episode every action was tried, and {ahead} steps were played from "
            f"there: after the action {then}. The regret of the agent's choice, in nats of ln(validation loss), is "
            f"{mean:.3f} in the mean; it chose as the greedy oracle in {agreed:.0%} of them. A greedy oracle sees no "
            "further than those steps: it is not the best that can be done.\n",
            f"![regret over the episode]({REGRET_PICTURE})\n",
            "## Settings\n",
            as_table(("of the run", ""), [(name, f"`{value}`") for name, value in beside.items()]),
            as_table(("of the game", ""), [(name, f"`{value}`") for name, value in settings["task"].items()]),
            as_table(
                ("of the agent", ""), [(name, f"`{value}`") for name, value in settings["hyperparameters"].items()]
            ),
        )
    )


# --- the pictures ---------------------------------------------------------------------------------------------------


def _filters_picture(filters: list[NDArray[np.float32]]) -> Figure:
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, some, when in zip(figure.subplots(1, 2), filters, ("start", "end"), strict=True):
        image = axes.imshow(tiles(some), **FILTER_SCALE)
        axes.set_title(f"the weights shown, at the {when}")
        axes.set_axis_off()
    figure.colorbar(image, ax=figure.axes, label="weight", shrink=0.8)
    return figure


def _regret_picture(rows: list[dict[str, Any]], run: Run) -> Figure:
    """Regret, and what was chosen by whom, at every look."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    regret, choice = figure.subplots(2, 1, sharex=True)
    steps = [row["step"] for row in rows]
    (color, _), (other, _), _ = STYLES
    regret.bar(steps, [row["regret"] for row in rows], width=max(1, steps[-1] / len(rows) * 0.6), color=color)
    regret.set_ylabel("regret (nats)")
    choice.plot(steps, [row["best"] for row in rows], "o", color=other, fillstyle="none", markersize=9, label="oracle")
    choice.plot(steps, [row["action"] for row in rows], "x", color=color, label=run.config().agent)
    if run.settings()["task"]["game"] == "learning-rate":
        choice.set_yticks([0, 1, 2], ["raise", "lower", "keep"])
    choice.set(xlabel="action number", ylabel="action")
    choice.margins(y=0.2)
    choice.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    for axes in (regret, choice):
        axes.grid(alpha=0.3)
    return figure
