"""`qan meta-train`: controllers, made on the tasks of a family."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qan_agents.cli.common import (
    INTERRUPTED,
    MOST,
    SPINNER,
    SeedOption,
    SetOption,
    console,
    expanded,
    parse_settings,
    print_wrapped,
    progress_bar,
    refuse_beside,
)
from qan_gym.utils.counts import counted

if TYPE_CHECKING:
    from qan_agents.controllers.meta_config import MetaConfig
    from qan_agents.controllers.meta_training import MetaRun

FAMILY = "QanLR-Family-v0"
MINUTES = 10.0


def meta_train(
    context: typer.Context,
    family: Annotated[
        str, typer.Option(help="Whose tasks are trained on: QanLR-Family-v0 or QanMinibatch-LongTail-v0.")
    ] = FAMILY,
    agent: Annotated[str, typer.Option(help="That learns: ppo; or dqn-native, the learning rate alone.")] = "ppo",
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.1, help=f"How long, about; measured beforehand, then a number of rounds. Default: {MINUTES:g}."
        ),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="How long, in rounds, which is the same on every machine.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, max=MOST, help="Trainings of a round.")] = 192,
    group: Annotated[
        int,
        typer.Option(min=1, max=MOST, help="Rows of one task, whose returns are compared; divides the rows."),
    ] = 4,
    seed: SeedOption = 0,
    start: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Begin with the networks of a finished meta-training, of the same agent and observation.",
            callback=expanded,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder; default: a new one in runs/.", callback=expanded)
    ] = None,
    settings: SetOption = None,
    agent_settings: Annotated[
        list[str] | None, typer.Option("--agent-set", metavar="NAME=VALUE", help="A hyperparameter of the agent.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Go on with a meta-training, which keeps its settings.", callback=expanded),
    ] = None,
) -> None:
    """Train an agent on the tasks of a family; the result is a controller, one small file."""
    from qan_agents.controllers.meta_config import MetaConfig
    from qan_agents.controllers.meta_training import MetaRun
    from qan_agents.experiments.run_folder import new_folder

    if resume is not None:
        refuse_beside(context, "--resume", allowed=("resume",))
        _train(MetaRun(resume))
        return
    if minutes is not None and rounds is not None:
        raise ValueError("give --minutes or --rounds, not both")
    env_kwargs = {"networks": ["mlp"], **parse_settings(settings)}
    config = MetaConfig(family, agent, rounds or 1, rows, group, seed, env_kwargs, parse_settings(agent_settings))
    if rounds is None:
        config = replace(config, rounds=_measured(config, minutes or MINUTES))
    run = MetaRun(out or new_folder(Path("runs") / f"{family}-{agent}-seed{seed}"))
    run.create(config, None if start is None else MetaRun(start))
    _train(run)


def _measured(config: "MetaConfig", minutes: float) -> int:
    from qan_agents.controllers.meta_training import rounds_within

    with console.status("measuring how long a round takes", spinner=SPINNER):
        return rounds_within(config, 60 * minutes)


def _train(run: "MetaRun") -> None:
    """Train behind a progress bar, with a line for every evaluation."""
    from qan_agents.controllers.pictures import draw

    config = run.config()
    console.print(f"{config.agent} learns on {config.family}, {counted(config.trainings, 'training')}: {run.folder}")
    with progress_bar("round {task.completed}/{task.total}  return {task.fields[mean]}") as bars:
        bar = bars.add_task("", total=config.rounds, mean="-")

        def show(done: int, row: dict[str, float]) -> None:
            bars.update(bar, completed=done, mean=f"{row['return']:.3f}")
            if "log_loss" in row:
                bars.console.print(_line(row))

        try:
            run.train(show)
        except KeyboardInterrupt:
            bars.stop()
            console.print(f"interrupted; go on with: {shlex.join(['qan', 'meta-train', '--resume', str(run.folder)])}")
            raise typer.Exit(INTERRUPTED) from None
    for path in draw(run):
        print_wrapped(f"{path}")
    print_wrapped(f"the controller: {run.controller}")


def _line(row: dict[str, float]) -> str:
    return (
        f"{row['trainings']:9,.0f} trainings  return {row['return']:6.3f}  other tasks: ln(validation loss) "
        f"{row['log_loss']:6.3f}" + (f", {row['diverged']:.1%} diverged" if row["diverged"] else "")
    )
