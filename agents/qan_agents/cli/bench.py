"""`qan bench` and `qan report`: compare controllers."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from qan_agents.cli.common import (
    INTERRUPTED,
    console,
    expanded,
    extra_required,
    print_wrapped,
    progress_bar,
    table_of,
)
from qan_gym.utils.counts import counted

DEFAULTS: dict[str, Any] = {
    "environments": ["QanLR-MNIST5k-v1"],
    "runs": [20],
    "seeds": [0],
    "evaluation_seeds": 10,
}
MOST_COLUMNS = 5  # of a table of the report that is printed whole; of one with more, these:
SHOWN_COLUMNS = ("controller (budget)", "test loss", "accuracy", "minus baseline", "diverged")
# What a grid holds, and the options that say it instead of one.
OPTIONS = {
    "environments": "--env",
    "controllers": "--controller",
    "runs": "--runs",
    "seeds": "--seed",
    "evaluation_seeds": "--evaluation-seeds",
}


def bench(
    grid: Annotated[
        Path | None, typer.Argument(metavar="GRID", help="A YAML file; see docs/protocol.md.", callback=expanded)
    ] = None,
    out: Annotated[
        Path, typer.Option(help="The Parquet file; what is finished there is not done again.", callback=expanded)
    ] = Path("bench.parquet"),
    env: Annotated[list[str] | None, typer.Option(help="Instead of a grid: an environment; may be repeated.")] = None,
    controller: Annotated[
        list[str] | None, typer.Option(help="Instead of a grid: a controller; may be repeated; see qan list.")
    ] = None,
    runs: Annotated[
        list[int] | None, typer.Option(help="Instead of a grid: a budget in trainings; may be repeated. [default: 20]")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Instead of a grid: of a preparation; may be repeated. [default: 0]")
    ] = None,
    evaluation_seeds: Annotated[
        int | None, typer.Option(help="Instead of a grid: how many unseen seeds. [default: 10]")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes; default: one per CPU, as far as the memory allows.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on this Ray cluster; local: one on this machine.")
    ] = None,
    submit: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A JSON file, a scoreboard, that a row per controller is added to.", callback=expanded
        ),
    ] = None,
) -> None:
    """Compare controllers: each prepared on the same number of trainings, all judged on the same unseen seeds.

    Baselines: constant, best-constant, the schedules (linear, cosine, one-cycle, ...), plateau, greedy-lr, population,
    schedule-free-sgd, schedule-free-adamw, d-adapt-sgd, d-adapt-adamw, prodigy, random; qan list has all.
    """
    given = {
        "environments": env,
        "controllers": controller,
        "runs": runs,
        "seeds": seed,
        "evaluation_seeds": evaluation_seeds,
    }
    flags = {name: value for name, value in given.items() if value is not None}
    _check_options(grid, flags, workers, ray)
    with extra_required("bench" if ray is None else "ray"):  # which has what bench has
        from qan_agents.bench.grid import cautions, cells_of, read_grid
        from qan_agents.bench.results import Results
        from qan_agents.bench.runner import require_compatible, run_cells, unfinished
        from qan_agents.bench.scoreboard import check_scoreboard
        from qan_agents.bench.scoreboard import submit as add_rows

        if ray is not None:
            import ray as _  # noqa: F401
    cells = cells_of({**DEFAULTS, **flags} if grid is None else read_grid(grid))
    if submit is not None:
        check_scoreboard(submit)
    results = Results(out)
    require_compatible(cells, results)
    there = len(cells) - len(unfinished(cells, results))
    console.print(f"{counted(len(cells), 'cell')}, {there} finished: {out}")
    for caution in cautions(cells):
        console.print(caution)
    failed = 0
    with progress_bar("{task.completed}/{task.total} cells") as bars:
        bar = bars.add_task("", total=len(cells), completed=there)

        def finished(cell: Any, status: str) -> None:
            nonlocal failed
            failed += status == "failed"
            about = f"{cell.env}, {cell.label}, {counted(cell.runs, 'run')}, seed {cell.seed}"
            bars.console.print(f"{status}: {about}")
            bars.advance(bar)

        try:
            run_cells(cells, results, workers or 0, ray, finished)
        except KeyboardInterrupt:
            bars.stop()
            console.print("interrupted; the same command goes on")
            raise typer.Exit(INTERRUPTED) from None
    if failed:
        console.print(f"{counted(failed, 'cell')} failed: qan report says why; the same command tries them again")
    console.print(f"next, the tables and pictures: {shlex.join(['qan', 'report', str(out)])}")
    if failed:
        raise typer.Exit(1)
    if submit is not None:
        rows = add_rows(out, submit)
        scored = sum(row.score is not None for row in rows)
        console.print(f"written: {submit} ({counted(len(rows), 'row')}, {scored} with a score)")


def _check_options(grid: Path | None, flags: dict[str, Any], workers: int | None, ray: str | None) -> None:
    """Refuse options that would be ignored.

    Raises:
        ValueError: what to do instead.
    """
    if grid is not None and flags:
        options = ", ".join(f"{OPTIONS[name]} ({name})" for name in flags)
        raise ValueError(f"{grid} says itself what is compared: write there what {options} should be, or give no grid")
    if grid is None and "controllers" not in flags:
        raise ValueError("give a grid, or at least one --controller")
    if workers is not None and workers < 1:
        raise ValueError(f"--workers must be at least 1, not {workers}; the default is one per CPU")
    if workers is not None and ray is not None:
        raise ValueError("--workers is for processes on this machine: a Ray cluster knows its own CPUs")


def report(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="The Parquet file of a bench.", callback=expanded)],
    out: Annotated[
        Path | None, typer.Option(help="The folder to write to; default: beside the results.", callback=expanded)
    ] = None,
) -> None:
    """Tables and pictures of a bench's results, as Markdown and as one HTML page."""
    with extra_required("bench"):
        from qan_agents.bench.report import page_of, write_page
        from qan_agents.experiments.page import Heading, Items, Table
    beside = results.with_name(f"{results.stem}-report") if results.suffix == "" else results.with_suffix("")
    folder = out or beside
    blocks = page_of(results, folder)
    for block in blocks:
        if isinstance(block, Table):
            _print_table(block.head, block.rows)
        elif isinstance(block, Heading):
            print_wrapped(block.text)
        elif isinstance(block, Items):
            print_wrapped("\n".join(block.texts))
    for path in write_page(blocks, folder):
        console.print(f"written: {path}")


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table of the report; of one that is too wide for most terminals, the columns that matter most."""
    places = [place for place, name in enumerate(head) if len(head) <= MOST_COLUMNS or name in SHOWN_COLUMNS]
    table = table_of(*(head[place] for place in places))
    for row in rows:
        table.add_row(*(row[place] for place in places))
    print_wrapped(table)
