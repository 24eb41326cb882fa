"""`qan train`, `reproduce`, `evaluate`, `plot` and `watch`: training runs and what becomes of them."""

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qan_agents.budgets import caution
from qan_agents.cli.common import (
    INTERRUPTED,
    MOST,
    SPINNER,
    EnvArgument,
    ImportOption,
    RunArgument,
    SeedOption,
    SetOption,
    console,
    expanded,
    extra_required,
    parse_settings,
    print_wrapped,
    progress_bar,
    refuse_beside,
    require_libraries,
    table_of,
)
from qan_agents.seeds import UNSEEN_BELOW
from qan_gym.utils.counts import counted
from qan_gym.utils.names import unknown_name

if TYPE_CHECKING:
    from qan_agents.agents import Progress as TrainingProgress
    from qan_agents.experiments.run_config import RunConfig
    from qan_agents.experiments.run_folder import Run
    from qan_agents.experiments.train import Log
    from qan_agents.policies.rollout import Episode

MOST_NAMES = 5  # of actions in a line
SILENCE = 30  # seconds, at most, in a file or a pipe while unseen seeds are played
OutOption = Annotated[Path | None, typer.Option(help="The run folder; default: a new one in runs/.", callback=expanded)]


def train(
    context: typer.Context,
    env: EnvArgument = "QanLR-MNIST5k-v1",
    agent: Annotated[
        str | None,
        typer.Option(
            help="The agent, see qan list; default: dqn-ensemble where raise, lower and keep act on the learning rate, "
            "or, on one task, classes are drawn with replacement, dqn on other choices, ppo on numbers."
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Named hyperparameters; default: the first that qan list AGENT shows.")
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, max=MOST, help="How many trainings of the CNN to play.")] = 20,
    seed: SeedOption = 0,
    num_envs: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST,
            help="How many of the trainings to play at once; divides the episodes; default: up to 4 for dqn-ensemble, "
            "else 1.",
        ),
    ] = None,
    out: OutOption = None,
    settings: SetOption = None,
    agent_settings: Annotated[
        list[str] | None, typer.Option("--agent-set", metavar="NAME=VALUE", help="A hyperparameter; see config.json.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Go on with a run, which keeps its settings.", callback=expanded),
    ] = None,
    drop_damaged: Annotated[
        bool, typer.Option("--drop-damaged", help="Of the run to resume: play again what damaged files are needed for.")
    ] = False,
    track: Annotated[
        list[str] | None,
        typer.Option(metavar="TRACKER", help="Also send the curves to wandb or mlflow; may be repeated."),
    ] = None,
    modules: ImportOption = None,
) -> None:
    """Train an agent, draw the pictures, and compare it with fixed policies on unseen seeds."""
    from qan_agents.experiments.defaults import complete_config
    from qan_agents.experiments.run_folder import Run

    _require_trackers(track or ())
    if resume is not None:
        refuse_beside(context, "--resume", allowed=("resume", "drop_damaged", "track", "modules"))
        _train_and_evaluate(Run(resume), modules or (), drop_damaged, track or ())
        return
    if drop_damaged:
        raise ValueError("--drop-damaged goes with --resume RUN")
    with console.status("loading", spinner=SPINNER):
        config = complete_config(
            env,
            parse_settings(settings),
            agent=agent,
            preset=preset,
            episodes=episodes,
            seed=seed,
            num_envs=num_envs,
            agent_kwargs=parse_settings(agent_settings),
        )
    run = _start(config, out, f"{env}-{config.agent}-{config.preset}-seed{seed}")
    _train_and_evaluate(run, modules or (), track=track or ())


def _require_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that do not exist, or are not installed, before a run is begun."""
    from qan_agents.experiments.trackers import TRACKERS

    for name in names:
        if name not in TRACKERS:
            raise ValueError(unknown_name("tracker", name, TRACKERS))
    require_libraries(*names)


def reproduce(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="mnist-lr, mnist-minibatch or cifar10-lr.")],
    scale: Annotated[
        float,
        typer.Option(max=1, help="Multiplies epochs and episodes; above 0; 0.01 only shows that everything runs."),
    ] = 1.0,
    seed: SeedOption = 0,
    out: OutOption = None,
    settings: SetOption = None,
    modules: ImportOption = None,
) -> None:
    """Reproduce an experiment of the paper: baseline and reference, the paper's DQN, the pictures."""
    from qan_agents.experiments.reproduce import recipe_config, too_short

    config = recipe_config(recipe, scale, seed, parse_settings(settings))
    if too_short(recipe, scale):
        console.print(f"caution: with scale {scale:g} a training is a part of an epoch, in which little can be learned")
    _train_and_evaluate(_start(config, out, f"reproduce-{recipe}-scale{scale:g}-seed{seed}"), modules or ())


def _start(config: "RunConfig", out: Path | None, name: str) -> "Run":
    """A new run, in `out` or a free folder of that name."""
    from qan_agents.experiments.train import start_run

    with console.status("loading", spinner=SPINNER):
        if out is not None:
            return start_run(out, config)
        return start_run(Path("runs") / name.replace(":", "-"), config, numbered=True)


def _train_and_evaluate(
    run: "Run", modules: Sequence[str], drop_damaged: bool = False, track: Sequence[str] = ()
) -> None:
    """Train the agent of a run, evaluate it, and draw the pictures.

    Args:
        run: begun or not.
        modules: that the user has had imported; the command that goes on with the run imports them again, and that of
            the environment.
        drop_damaged: see `qan_agents.experiments.train.train`.
        track: names of trackers.
    """
    from qan_agents.experiments.trackers import trackers

    config = run.config()
    console.print(f"{config.agent} ({config.preset}) plays {config.env}: {run.folder}")
    too_few = caution(config.training_episodes, "training", " to learn from")
    if too_few is not None:
        console.print(too_few)
    console.print(_what_is_played(run))
    try:
        with trackers(track, run) as log:
            _train(run, config, drop_damaged, log)
        if run.evaluated:
            console.print(f"the unseen seeds have been played: qan evaluate {run.folder} plays them again")
        else:
            _evaluate(run)
        _show(run)
    except KeyboardInterrupt:
        asked_for = dict.fromkeys((*modules, *filter(None, [config.env.rpartition(":")[0]])))
        more = [word for module in asked_for for word in ("--import", module)]
        more += [word for tracker in track for word in ("--track", tracker)]
        console.print(f"interrupted; go on with: {shlex.join(['qan', 'train', '--resume', str(run.folder), *more])}")
        raise typer.Exit(INTERRUPTED) from None


def _what_is_played(run: "Run") -> str:
    """The trainings of a run and the actions in them, in one line."""
    from qan_agents.env_ids import draws_tasks
    from qan_agents.experiments.played_task import PlayedTask

    config, settings, played = run.config(), run.settings(), PlayedTask.of(run)
    task, names = played.config, played.action_names
    choices = f" ({', '.join(names)})" if 0 < len(names) <= MOST_NAMES else ""
    base = "" if task.schedule == "constant" else f", on top of the schedule {task.schedule}"
    drawn = draws_tasks(config.env, config.env_kwargs)
    every = "mini-batch" if task.batches_per_action == 1 else f"{task.batches_per_action} mini-batches"
    parts = [
        counted(config.episodes, "training"),
        " of networks and data that are drawn" if drawn else f" of {task.network}",
        f", {config.num_envs} at once" if config.num_envs > 1 else "",
        f"; in each {counted(settings.episode_length, 'action')} on the {played.game.controlled}{choices}",
        "" if drawn else f", one every {every}",
        f"{base}; reward: {task.reward}",
    ]
    return "".join(parts)


def _train(run: "Run", config: "RunConfig", drop_damaged: bool, log: "Log") -> None:
    """Train the agent of a run behind a progress bar, with a line for every finished episode."""
    from qan_agents.experiments import train as training

    text = (
        "episode {task.fields[episode]}/{task.fields[episodes]}  {task.fields[rate]} steps/s  "
        "accuracy {task.fields[accuracy]:.1%}  {task.fields[metrics]}"
    )
    total = config.training_episodes * run.settings().episode_length
    done = run.progress()
    with progress_bar(text) as bars:
        bar = bars.add_task(
            "",
            total=total,
            completed=done.steps,
            episode=min(done.episodes + 1, config.episodes),
            episodes=config.episodes,
            rate="-",
            accuracy=0.0,
            metrics="",
        )

        def show(now: "TrainingProgress") -> None:
            speed = bars.tasks[bar].speed
            bars.update(
                bar,
                completed=now.step,
                rate=f"{speed:.0f}" if speed else "-",
                accuracy=now.validation_accuracy,
                metrics=", ".join(f"{name} {value:.2f}" for name, value in now.metrics.items()),
            )

        def finished(number: int, episode: "Episode") -> None:
            bars.update(bar, episode=min(number + 2, config.episodes))
            bars.console.print(_episode_line(number, episode, config))

        training.train(run, show, finished, drop_damaged=drop_damaged, log=log)


def _episode_line(number: int, episode: "Episode", config: "RunConfig") -> str:
    final = episode.final
    return (
        f"episode {number + 1:2d}  return {episode.total_reward:6.3f}  validation loss "
        f"{final['validation_loss']:.4f}, accuracy {final['validation_accuracy']:.1%}"
        + ("  diverged" if final["diverged"] else "")
        + ("" if config.trains(number) else "  only played")
    )


def evaluate(run: RunArgument, modules: ImportOption = None) -> None:
    """Play a trained agent greedily on unseen seeds, beside fixed policies; draw the pictures anew."""
    from qan_agents.experiments.run_folder import EPISODES, STEPS, Run

    Run(run).config()
    if Run(run).has_episodes:  # without damage: they are drawn when all is played
        for name in (EPISODES, STEPS):
            Run(run).table(name)
    _evaluate(Run(run))
    _show(Run(run))
    _say_unfinished(Run(run))


def _say_unfinished(run: "Run") -> None:
    """Where trainings of a run are still to be played, what was shown is of an agent that will learn on."""
    if run.unfinished is not None:
        console.print(f"caution: {run.unfinished}")


def _show(run: "Run") -> None:
    """The evaluation of a run as a table, its pictures, and how the agent stands in one sentence."""
    from qan_agents.experiments.verdict import verdict_of

    verdict = verdict_of(run)
    head, rows = verdict.table()
    table = table_of(*head, right=head[1:], title=verdict.title)
    for row in rows:
        table.add_row(*row)
    print_wrapped(table)
    if run.has_episodes:
        _plot(run)
    print_wrapped(verdict.sentence())


def _evaluate(run: "Run") -> None:
    """Evaluate a run behind a progress bar; in a file or a pipe a line per policy, and one now and then."""
    from qan_agents.experiments import evaluation

    playing, said = "", 0.0  # which policy, and when
    with progress_bar("unseen seeds: {task.fields[policy]}") as bars:
        bar = bars.add_task("", total=1.0, policy="")

        def show(policy: str, share: float) -> None:
            nonlocal playing, said
            bars.update(bar, completed=share, policy=policy)
            if not console.is_terminal and (policy != playing or time.monotonic() > said + SILENCE):
                console.print(f"playing unseen seeds: {policy} ({share:.0%} of the evaluation is done)")
                said = time.monotonic()
            playing = policy

        evaluation.evaluate(run, show)


def plot(
    run: RunArgument,
    html: Annotated[bool, typer.Option("--html", help="Also write run.html, one page with everything.")] = False,
    modules: ImportOption = None,
) -> None:
    """Draw the pictures of a run: accuracy per episode, an episode against the baseline, the actions over time."""
    from qan_agents.experiments.run_folder import Run

    if not html:
        _plot(Run(run))
        _say_unfinished(Run(run))
        return
    with extra_required("agents"):
        from qan_agents.experiments.run_page import write_page
    with console.status("drawing, and trying every action of an unseen episode", spinner=SPINNER):
        written = write_page(Run(run))
    for path in written:
        console.print(f"drawn: {path}")
    _say_unfinished(Run(run))


def _plot(run: "Run") -> None:
    from qan_agents.experiments.plots import plot_run

    run.config()  # refuses what is no run before anything is shown
    with console.status("drawing", spinner=SPINNER):
        plot_run(run, lambda path: console.print(f"drawn: {path}"))


def watch(
    run: RunArgument,
    video: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An .mp4 to write; default: a window.", callback=expanded)
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0, max=UNSEEN_BELOW - 1, help="Of the episode; the agent was trained on none that can be given."
        ),
    ] = 0,
    modules: ImportOption = None,
) -> None:
    """Watch a trained agent play an unseen episode: its screen, its Q-values, and the baseline run."""
    from qan_agents.experiments.run_folder import Run

    with extra_required("video"):
        from qan_agents.experiments.watch import watch_agent

        with console.status("playing", spinner=SPINNER):
            final = watch_agent(Run(run), seed, video).final
    console.print(
        f"test loss {final['test_loss']:.4f}, accuracy {final['test_accuracy']:.1%}"
        + (f": {video}" if video is not None else "")
    )
    _say_unfinished(Run(run))
