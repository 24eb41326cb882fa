"""`qan judge`: controllers on tasks that they have never seen, against what a practitioner would do."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TimeRemainingColumn

from qan_agents.cli.common import (
    INTERRUPTED,
    console,
    expanded,
    extra_required,
    print_wrapped,
    table_of,
    text_column,
)


def judge(
    controllers: Annotated[
        list[Path], typer.Argument(metavar="CONTROLLER...", help="Files of qan meta-train.", callback=None)
    ],
    out: Annotated[
        Path, typer.Option(help="The folder of the results; what is finished there is not done again.", callback=expanded)
    ] = Path("judgement"),
    tasks: Annotated[int, typer.Option(min=1, max=100_000, help="Held-out tasks.")] = 200,
    seeds: Annotated[int, typer.Option(min=1, max=1_000, help="Trainings of each contender on each task.")] = 3,
    networks: Annotated[
        list[str] | None, typer.Option(help="A kind of network of the tasks; may be repeated. [default: mlp]")
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="A name for the controllers, which makes them replicates of each other.")
    ] = None,
    rival: Annotated[
        list[str] | None,
        typer.Option(help="A rival, or the first word of the names of several; may be repeated. [default: all]"),
    ] = None,
) -> None:
    """Judge controllers on held-out tasks, with no training on them, against schedules and optimizers."""
    with extra_required("bench"):
        from qan_agents.judging.contenders import load_controllers
        from qan_agents.judging.problems import family_problems
        from qan_agents.judging.results import Results
        from qan_agents.judging.rivals import rivals
        from qan_agents.judging.runner import play_missing
        from qan_agents.judging.statistics import difference, scores_of
    judged = load_controllers([path for path in map(expanded, controllers) if path is not None], label)
    contenders = [*judged, *rivals(rival)]
    problems = family_problems(tasks, networks or ["mlp"])
    results = Results(out)
    columns = (text_column("{task.completed}/{task.total} trainings"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, text_column("{task.description}"), console=console) as bars:
        bar = bars.add_task("", total=None)

        def advance(contender: Any, count: int) -> None:
            bars.update(bar, advance=count, description=contender.name)

        try:
            play_missing(
                results, contenders, problems, seeds, lambda total: bars.update(bar, total=total), advance
            )
        except KeyboardInterrupt:
            bars.stop()
            console.print("interrupted; the same command goes on")
            raise typer.Exit(INTERRUPTED) from None
    scores = scores_of(results, contenders, problems, seeds)
    names = {one.name for one in judged}
    for one in (score for score in scores if score.name in names):
        table = table_of("rival", "mean difference", "median", "won", right=("mean difference", "median", "won"))
        for other in scores:
            if other is not one:
                found = difference(one, other)
                cells = (f"{x.value:+.3f} ({x.low:+.3f} to {x.high:+.3f})" for x in (found.mean, found.median))
                table.add_row(other.title, *cells, f"{found.won.value:.0%}")
        console.print(f"{one.title}: ln test loss {one.log_loss.mean():.4f}, minus that of")
        print_wrapped(table)
