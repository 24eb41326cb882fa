"""A training run as one HTML page: its settings, its scores, the agent's actions and what others would have done."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import FrameStackObservation
from matplotlib.figure import Figure
from numpy.typing import NDArray

from qan_agents.analysis.regret import regrets
from qan_agents.env_ids import draws_tasks, import_module_of
from qan_agents.experiments.page import Block, Heading, Paragraph, Picture, Table, html_page, write_text
from qan_agents.experiments.played_task import PlayedTask
from qan_agents.experiments.plots import (
    ACCURACY,
    ACTIONS,
    EPISODE,
    MAX_Q,
    STYLES,
    action_ticks,
    plain,
    plot_run,
    save,
)
from qan_agents.experiments.run_folder import Run
from qan_agents.experiments.train import load_agent
from qan_agents.experiments.verdict import Verdict, verdict_of
from qan_agents.policies.rollout import qan_env
from qan_gym.core.factory import arguments_of
from qan_gym.core.observation import filter_pictures
from qan_gym.families.factory import FAMILIES
from qan_gym.rendering import FILTER_SCALE, tiles

COMPARISONS = 20  # of the agent's action with all others, in an episode; each looks that share of the episode ahead
FILTERS, REGRET = "filters.png", "regret.png"
PAGE = "run.html"


def write_page(run: Run) -> list[Path]:
    """Draw all pictures of a run, play an unseen episode for two more, and put everything on one page.

    Looking ahead takes about as long as one training per action, in lock-step.

    Args:
        run: evaluated.

    Returns:
        The page and the pictures.

    Raises:
        ValueError: the run has no finished episode or was not evaluated, or a file of it is damaged.
    """
    task, verdict = PlayedTask.of(run), verdict_of(run)
    drawn = plot_run(run)
    filters, rows, ahead = _play(run)
    config = run.config()
    title = f"{plain(config.title)}\none unseen episode (seed {config.evaluation_seeds[0]}), played greedily: "
    drawn.append(save(_filters_figure(title, filters), run.folder / FILTERS))
    drawn.append(save(_regret_figure(title, rows, config.agent, task.action_names), run.folder / REGRET))
    blocks = _blocks(run, task, verdict, rows, ahead, {picture.name for picture in drawn})
    write_text(run.folder / PAGE, html_page(config.title, blocks))
    return [run.folder / PAGE, *drawn]


def _play(run: Run) -> tuple[list[NDArray[np.float32]], list[dict[str, Any]], int]:
    """Play the agent on its first evaluation seed.

    Returns:
        The filters (F, h, w) at the start and at the end, a row per comparison (see `regrets`), and the steps that each
        comparison looks ahead.
    """
    agent, config = load_agent(run), run.config()
    env = FrameStackObservation(gym.make(config.env, **config.env_kwargs), agent.history)
    training, seed = qan_env(env).training, config.evaluation_seeds[0]
    env.reset(seed=seed)
    start = filter_pictures(*training.network_of(0))
    ahead = max(1, agent.facts.episode_length // COMPARISONS)
    rows = regrets(env, agent.policy(), seed, every=ahead, k=ahead)
    end = filter_pictures(*training.network_of(0))
    env.close()
    agent.close()
    return [start, end], rows, ahead


# --- the text -------------------------------------------------------------------------------------------------------


def _blocks(
    run: Run,
    task: PlayedTask,
    verdict: Verdict,
    rows: list[dict[str, Any]],
    ahead: int,
    pictures: set[str],
) -> list[Block]:
    """What the page holds, with those of the pictures that there are."""
    config, settings, done = run.config(), run.settings(), run.progress().episodes
    of_all = "" if run.unfinished is None else f", of {config.episodes}"
    mean = np.mean([row["regret"] for row in rows])
    agreed = np.mean([row["action"] == row["best"] for row in rows])
    facts = {**asdict(config), "dataset_fingerprint": settings.dataset_fingerprint, **settings.versions}

    pull = "; all with the same meta-momentum" if settings.task.get("meta_momentum") else ""

    def picture(name: str, about: str) -> Picture:
        return Picture(run.folder / name, about)

    values = [picture(MAX_Q, "the agent's value of its best action")] if MAX_Q in pictures else []
    return [
        Paragraph(f"Trainings played: {done}{of_all}; then the agent played greedily on unseen seeds."),
        Heading("Against fixed policies"),
        Table(*verdict.table()),
        Paragraph(
            f"Mean (lowest-highest) over the seeds {', '.join(map(str, config.evaluation_seeds))}{pull}. "
            f"{verdict.sentence()} It is one training of the agent: qan bench makes several."
        ),
        Heading("Episode by episode"),
        picture(ACCURACY, "accuracy of every episode"),
        *values,
        Heading("Its actions over time"),
        picture(ACTIONS, "actions over time"),
        Heading("An unseen episode"),
        picture(EPISODE, "losses and control of one unseen episode"),
        picture(FILTERS, "the filters before and after"),
        Heading("What each action would have done"),
        Paragraph(
            f"From {len(rows)} moments of that episode every action was tried, and {ahead} steps were played from "
            f"there: after the action {task.game.without_acting}. The regret of the agent's choice, in nats of "
            f"ln(validation loss), is {mean:.3f} in the mean; it chose as the greedy oracle in {agreed:.0%} of them. A "
            "greedy oracle sees no further than those steps: it is not the best that can be done."
        ),
        picture(REGRET, "regret over the episode"),
        Heading("Settings"),
        _settings_table("of the run", facts),
        _settings_table("of the game", _of_the_game(run)),
        _settings_table("of the agent", settings.hyperparameters),
    ]


def _of_the_game(run: Run) -> dict[str, Any]:
    """The settings of the game; of a family, without those that its tasks draw."""
    config, task = run.config(), run.settings().task
    if not draws_tasks(config.env, config.env_kwargs):
        return task
    env_id = gym.spec(import_module_of(config.env)).kwargs["env_id"]
    known = arguments_of(env_id).keys() - FAMILIES[env_id].record().settings().keys()
    return {name: value for name, value in task.items() if name in known}


def _settings_table(head: str, settings: dict[str, Any]) -> Table:
    return Table((head, ""), [(name, str(value)) for name, value in settings.items()])


# --- the pictures ---------------------------------------------------------------------------------------------------


def _filters_figure(title: str, filters: list[NDArray[np.float32]]) -> Figure:
    """The filters (F, h, w) at the start and at the end."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    figure.suptitle(f"{title}the weights shown")
    for axes, some, when in zip(figure.subplots(1, 2), filters, ("start", "end"), strict=True):
        image = axes.imshow(tiles(some), **FILTER_SCALE)
        axes.set_title(f"at the {when}")
        axes.set_axis_off()
    figure.colorbar(image, ax=figure.axes, label="weight", shrink=0.8)
    return figure


def _regret_figure(title: str, rows: list[dict[str, Any]], agent: str, action_names: list[str]) -> Figure:
    """The regret at every comparison; below, number by number, the actions of the oracle and the agent.

    Args:
        title: of the run and the episode.
        rows: of `regrets`.
        agent: its name.
        action_names: of a Discrete space; else empty.
    """
    chosen, best = (np.array([np.atleast_1d(row[name]) for row in rows]) for name in ("action", "best"))  # (rows, n)
    numbers = chosen.shape[1]
    figure = Figure(figsize=(9, 3 + 2.5 * numbers), layout="constrained")
    figure.suptitle(f"{title}the regret of its actions")
    regret, *choices = figure.subplots(1 + numbers, 1, sharex=True)
    steps = [row["step"] for row in rows]
    (agent_color, _), (oracle_color, _), *_ = STYLES
    regret.bar(steps, [row["regret"] for row in rows], width=max(1, steps[-1] / len(rows) * 0.6), color=agent_color)
    regret.set_ylabel("regret (nats)")
    for number, axes in enumerate(choices):
        axes.plot(steps, best[:, number], "o", color=oracle_color, fillstyle="none", markersize=9, label="oracle")
        axes.plot(steps, chosen[:, number], "x", color=agent_color, label=plain(agent))
        axes.set_ylabel("action" if number == 0 else f"action {number}")
        axes.margins(y=0.2)
        if action_names:
            axes.set_yticks(*action_ticks(action_names))
    choices[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    choices[-1].set_xlabel("action number")
    for axes in (regret, *choices):
        axes.grid(alpha=0.3)
    return figure
