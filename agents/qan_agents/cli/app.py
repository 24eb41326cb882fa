"""The command `qan`."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
console = Console()

INTERRUPTED = 130  # the exit status of a command stopped by Ctrl-C

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]
EnvArgument = Annotated[str, typer.Argument(metavar="ENV", help="The id of an environment; see qan list.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A keyword argument of the environment.")
]


@contextmanager
def explained() -> Iterator[None]:
    """What is wrong with the input is said in one line; anything else is a bug and keeps its traceback.

    Raises:
        typer.Exit: with status 2, in the place of what was wrong.
    """
    from gymnasium.error import Error

    try:
        yield
    except (ValueError, FileNotFoundError, Error) as error:
        console.print(f"[bold red]qan:[/] {error!s}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error


@contextmanager
def needed(extra: str) -> Iterator[None]:
    """A library of an extra that is not installed is asked for.

    Raises:
        ValueError: in the place of the failed import.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is missing: python -m pip install 'qan-gym[{extra}]'") from error


def parse_settings(settings: list[str] | None) -> dict[str, Any]:
    """NAME=VALUE pairs, values as JSON where they are, else as text.

    Raises:
        ValueError: a pair has no "=".
    """
    parsed = {}
    for setting in settings or []:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise ValueError(f"settings are NAME=VALUE, not {setting!r}")
        try:
            parsed[name] = json.loads(value)
        except json.JSONDecodeError:
            parsed[name] = value
    return parsed


@app.command()
def train(
    env: EnvArgument = "QanLR-MNIST5k-v0",
    agent: Annotated[
        str, typer.Option(help="dqn: Stable-Baselines3's DQN; dqn-gpu: the bundled one, on the environment's device.")
    ] = "dqn",
    preset: Annotated[str, typer.Option(help="The hyperparameters: quick, paper; dqn-gpu: today, control.")] = "quick",
    episodes: Annotated[int, typer.Option(help="How many trainings of the CNN to play.")] = 20,
    seed: Annotated[int, typer.Option(help="Of the agent and its episodes.")] = 0,
    num_envs: Annotated[int, typer.Option(help="How many of the trainings to play at once; divides the episodes.")] = 1,
    out: Annotated[Path | None, typer.Option(help="The run folder; default: a new one in runs/.")] = None,
    settings: SetOption = None,
    agent_settings: Annotated[
        list[str] | None, typer.Option("--agent-set", metavar="NAME=VALUE", help="A hyperparameter; see config.json.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with a run; it keeps its settings.")] = None,
) -> None:
    """Train an agent, draw the pictures, and compare it with fixed policies on unseen seeds."""
    from qan_agents.experiments.run_folder import Run, RunConfig

    with explained():
        if resume is not None:
            run = Run(resume)
        else:
            config = RunConfig(
                env,
                parse_settings(settings),
                agent,
                preset,
                episodes,
                seed,
                num_envs,
                agent_kwargs=parse_settings(agent_settings),
            )
            run = _start(config, out, f"{env}-{agent}-{preset}-seed{seed}")
        _play_through(run)


@app.command()
def reproduce(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="mnist-lr, mnist-minibatch or cifar10-lr.")],
    scale: Annotated[float, typer.Option(help="Multiplies epochs and episodes; 0.01 is for a laptop.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the agent and its episodes.")] = 0,
    out: Annotated[Path | None, typer.Option(help="The run folder; default: a new one in runs/.")] = None,
    settings: SetOption = None,
) -> None:
    """Reproduce an experiment of the paper: baseline and reference, the paper's DQN, the pictures."""
    from qan_agents.experiments.reproduce import recipe_config

    with explained():
        config = recipe_config(recipe, scale, seed, parse_settings(settings))
        _play_through(_start(config, out, f"reproduce-{recipe}-scale{scale:g}-seed{seed}"))


def _start(config: Any, out: Path | None, name: str) -> Any:
    """A new run, in `out` or a free folder of that name."""
    from qan_agents.experiments import train as training
    from qan_agents.experiments.run_folder import free_folder

    return training.start_run(out or free_folder(Path("runs"), name.replace(":", "-")), config)


def _play_through(run: Any) -> None:
    """Train, evaluate, draw."""
    config = run.config()
    console.print(f"{config.agent} ({config.preset}) plays {config.env}: {run.folder}", highlight=False)
    try:
        _train(run, config)
        _evaluate(run)
        _plot(run)
    except KeyboardInterrupt:
        console.print(f"interrupted; go on with: qan train --resume {run.folder}", highlight=False)
        raise typer.Exit(INTERRUPTED) from None


def _train(run: Any, config: Any) -> None:
    from qan_agents.experiments import train as training

    columns = (
        TextColumn("episode {task.fields[episode]}/{task.fields[episodes]}"),
        BarColumn(bar_width=10),
        TextColumn("{task.fields[rate]} steps/s"),
        TextColumn("accuracy {task.fields[accuracy]:.1%}"),
        TextColumn("epsilon {task.fields[epsilon]:.2f}"),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    total = config.training_episodes * run.settings()["decisions_per_episode"]
    done = run.progress()
    with Progress(*columns, console=console) as bars:
        bar = bars.add_task(
            "",
            total=total,
            completed=done["steps"],
            episode=min(done["episodes"] + 1, config.episodes),
            episodes=config.episodes,
            rate="-",
            accuracy=0.0,
            epsilon=1.0,
        )

        def show(now: training.Progress) -> None:
            speed = bars.tasks[bar].speed
            bars.update(
                bar,
                completed=now.step,
                rate=f"{speed:.0f}" if speed else "-",
                accuracy=now.validation_accuracy,
                epsilon=now.epsilon,
            )

        def finished(number: int, episode: Any) -> None:
            final = episode.final
            bars.update(bar, episode=min(number + 2, config.episodes))
            bars.console.print(
                f"episode {number + 1:2d}  return {episode.total_reward:6.3f}  validation loss "
                f"{final['validation_loss']:.4f}, accuracy {final['validation_accuracy']:.1%}"
                + ("  diverged" if final["diverged"] else "")
                + ("" if config.trains(number) else "  only played"),
                highlight=False,
            )

        training.train(run, show, finished)


@app.command()
def evaluate(run: RunArgument) -> None:
    """Play a trained agent greedily on unseen seeds, beside fixed policies; draw the pictures anew."""
    from qan_agents.experiments.run_folder import Run

    with explained():
        _evaluate(Run(run))
        _plot(Run(run))


def _evaluate(run: Any) -> None:
    from qan_agents.experiments import evaluation

    with console.status("evaluating") as status:
        standings = evaluation.evaluate(run, lambda name, seed: status.update(f"evaluating {name}, seed {seed}"))
    head, rows = evaluation.as_rows(standings)
    table = Table(title=f"unseen seeds: {len(standings[0].test_loss)}; mean (lowest-highest)")
    for name in head:
        table.add_column(name, justify="left" if name == "policy" else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


@app.command()
def plot(
    run: RunArgument,
    html: Annotated[bool, typer.Option("--html", help="Also write run.html, one page with everything.")] = False,
) -> None:
    """Draw the pictures of a run: accuracy per episode, an episode against the baseline, the actions over time."""
    from qan_agents.experiments.run_folder import Run

    with explained():
        if not html:
            _plot(Run(run))
            return
        with needed("agents"):
            from qan_agents.experiments.run_page import write_page
        with console.status("drawing, and trying every action of an unseen episode"):
            written = write_page(Run(run))
        _say_drawn(written)


def _plot(run: Any) -> None:
    from qan_agents.experiments.plots import plot_run

    _say_drawn(plot_run(run))


def _say_drawn(paths: list[Path]) -> None:
    for path in paths:
        console.print(f"drawn: {path}", highlight=False)


@app.command()
def watch(
    run: RunArgument,
    video: Annotated[Path | None, typer.Option(metavar="FILE", help="An .mp4 to write; default: a window.")] = None,
    seed: Annotated[int, typer.Option(help="Of the episode; the agent was trained on none that can be given.")] = 0,
) -> None:
    """Watch a trained agent play an unseen episode: its screen, its Q-values, and the constant baseline's ghost."""
    from qan_agents.experiments.run_folder import Run

    with explained(), needed("video"):
        from qan_agents.experiments.watch import watch as play_shown

        with console.status("playing"):
            final = play_shown(Run(run), seed, video).final
        console.print(
            f"test loss {final['test_loss']:.4f}, accuracy {final['test_accuracy']:.1%}"
            + (f": {video}" if video is not None else ""),
            highlight=False,
        )


@app.command()
def reference(
    env: EnvArgument,
    settings: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="The folder to write to; default: the user's cache.")] = None,
    device: Annotated[str, typer.Option(help="To train on: cpu, cuda.")] = "cpu",
) -> None:
    """Make the reference weights of an environment and keep them in the cache."""
    import numpy as np

    from qan_gym.core.references import make_reference, reference_name
    from qan_gym.data.datasets import ASSETS
    from qan_gym.tasks import make_task_config
    from qan_gym.utils.files import load_arrays

    with explained():
        config = make_task_config(env, parse_settings(settings))
        weights = make_reference(config, out, device)
        console.print(f"made: {reference_name(config)}", highlight=False)
        shipped = ASSETS / "references" / reference_name(config)
        if shipped.is_file():
            arrays, _ = load_arrays(shipped)
            distance = max(float(np.abs(arrays[name] - weights[name].numpy()).max()) for name in arrays)
            console.print(f"largest difference from the weights in the package: {distance:.3g}", highlight=False)


@app.command()
def data(
    fetch: Annotated[bool, typer.Option("--fetch", help="Download what is missing.")] = False,
) -> None:
    """Say which data sets are there, and verify them."""
    from qan_gym.data.datasets import DATASETS, data_root, load_dataset
    from qan_gym.data.downloads import SOURCES, download, missing

    with explained():
        root = data_root()
        table = Table(title=f"data in {root}")
        for name in ("data set", "train", "validation", "test", "classes", "fingerprint"):
            table.add_column(name)
        for name in DATASETS:
            if name in SOURCES and missing(name, root):
                if not fetch:
                    table.add_row(name, f"missing: {missing(name, root)[0]}; get it with qan data --fetch")
                    continue
                download(name, root)
            it = load_dataset(name)
            sizes = (f"{len(split):,}" for split in (it.train, it.validation, it.test))
            table.add_row(name, *sizes, str(it.n_classes), it.fingerprint[:12])
        console.print(table)


@app.command()
def bench(
    grid: Annotated[Path | None, typer.Argument(metavar="[GRID]", help="A YAML file; see docs/protocol.md.")] = None,
    out: Annotated[Path, typer.Option(help="The Parquet file; what is finished there is not done again.")] = Path(
        "bench.parquet"
    ),
    env: Annotated[list[str] | None, typer.Option(help="Instead of a grid: an environment; may be repeated.")] = None,
    controller: Annotated[list[str] | None, typer.Option(help="A controller; may be repeated; see qan list.")] = None,
    runs: Annotated[list[int] | None, typer.Option(help="A budget in trainings; may be repeated.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Of a preparation; may be repeated.")] = None,
    evaluation_seeds: Annotated[int, typer.Option(help="How many unseen seeds.")] = 10,
    workers: Annotated[int, typer.Option(help="Processes; 0: one per core.")] = 0,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on this Ray cluster; local: one on this machine.")
    ] = None,
) -> None:
    """Compare controllers: each prepared on the same number of trainings, all judged on the same unseen seeds."""
    import os

    with explained():
        if (grid is None) == (controller is None):
            raise ValueError("give a grid, or at least one --controller")
        with needed("bench"):
            from qan_agents.bench import runner as benching
            from qan_agents.bench.results import Results
        flags = {
            "environments": env or ["QanLR-MNIST5k-v0"],
            "controllers": controller,
            "runs": runs or [20],
            "seeds": seed or [0],
            "evaluation_seeds": evaluation_seeds,
        }
        cells = benching.cells_of(flags if grid is None else benching.read_grid(grid))
        results = Results(out)
        there = len({cell.key for cell in cells} & results.finished())
        console.print(f"{len(cells)} cells, {there} finished: {out}", highlight=False)
        columns = (TextColumn("{task.completed}/{task.total} cells"), BarColumn(), TimeRemainingColumn())
        failed = 0
        with Progress(*columns, console=console) as bars:
            bar = bars.add_task("", total=len(cells), completed=there)

            def finished(cell: Any, status: str) -> None:
                nonlocal failed
                failed += status == "failed"
                about = f"{cell.env}, {cell.label}, {cell.runs} runs, seed {cell.seed}"
                bars.console.print(f"{status}: {about}", highlight=False)
                bars.advance(bar)

            try:
                benching.bench(cells, results, workers or os.cpu_count() or 1, ray, finished)
            except KeyboardInterrupt:
                bars.stop()
                console.print("interrupted; the same command goes on", highlight=False)
                raise typer.Exit(INTERRUPTED) from None
        if failed:
            console.print(f"{failed} cells failed: qan report says why; the same command tries them again")
            raise typer.Exit(1)


@app.command()
def check(
    env: Annotated[str, typer.Argument(metavar="ENV", help="Any Gymnasium id; MODULE:ID imports the module first.")],
    seeds: Annotated[int, typer.Option(help="How many seeds every sequence is played on.")] = 8,
    steps: Annotated[int | None, typer.Option(help="Of an episode that are played; default: all.")] = None,
    settings: SetOption = None,
) -> None:
    """Certify that the actions of an environment matter beyond seed noise; the exit status is 1 if not."""
    with explained():
        with needed("bench"):
            from qan_agents.analysis import action_effect as checking
        with console.status("") as status:
            found = checking.certify(
                env, parse_settings(settings), seeds, steps, lambda name: status.update(f"playing {name}")
            )
    table = Table(title=f"{found.outcome} on {seeds} seeds; every sequence begins with {found.first}")
    for name in ("actions", "mean", "standard deviation", "lowest", "highest"):
        table.add_column(name, justify="left" if name == "actions" else "right")
    for name, values in zip(found.sequences, found.outcomes, strict=True):
        numbers = (values.mean(), values.std(ddof=1), values.min(), values.max())
        table.add_row(name, *(f"{value:.4g}" for value in numbers))
    console.print(table)
    console.print(
        f"between sequences {found.between_sequences:.4g}, between seeds {found.between_seeds:.4g}: "
        f"{found.ratio:.3g} times (above {checking.RATIO:g} wanted)\n"
        f"Friedman's test: p = {found.p_value:.2g} (below {checking.LEVEL:g} wanted)\n{found.verdict}",
        highlight=False,
        soft_wrap=True,
    )
    if not found.certified:
        raise typer.Exit(1)


@app.command()
def report(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="The Parquet file of a bench.")],
    out: Annotated[Path | None, typer.Option(help="The folder to write to; default: beside the results.")] = None,
) -> None:
    """Tables and pictures of a bench's results, as Markdown and as one HTML page."""
    with explained():
        with needed("bench"):
            from qan_agents.bench.report import report as write_report
        for path in write_report(results, out or results.with_suffix("")):
            console.print(f"written: {path}", highlight=False)


@app.command(name="list")
def list_environments() -> None:
    """The environments, the agents and the fixed policies."""
    from qan_agents.bench.controllers import CONTROLLERS
    from qan_agents.policies.fixed import FIXED_POLICIES
    from qan_gym.registration import ENTRY_POINTS
    from qan_gym.tasks import TASKS

    table = Table(title="environments", caption="batch: images of a mini-batch; per action: mini-batches")
    for name in ("id", "controls", "data", "batch", "epochs", "per action"):
        table.add_column(name, no_wrap=name == "id")
    controls = {"learning-rate": "learning rate", "minibatch": "classes"}
    for env_id in ENTRY_POINTS:
        task = TASKS[env_id]
        numbers = (str(value) for value in (task.batch_size, task.epochs, task.batches_per_action))
        table.add_row(env_id, controls[task.game], task.dataset, *numbers)
    console.print(table)
    console.print("agents: dqn (presets quick, paper), dqn-gpu (presets quick, paper, today, control)")
    console.print(f"fixed policies: {', '.join(FIXED_POLICIES)}")
    console.print(f"controllers of qan bench: {', '.join(CONTROLLERS)}")


if __name__ == "__main__":
    sys.exit(app())
