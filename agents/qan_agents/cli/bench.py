"""`qan bench` and `qan report`: compare controllers."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from qan_agents.cli.common import INTERRUPTED, console, errors_in_one_line, extra_required


def bench(
    grid: Annotated[Path | None, typer.Argument(metavar="GRID", help="A YAML file; see docs/protocol.md.")] = None,
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
    with errors_in_one_line():
        if (grid is None) == (controller is None):
            raise ValueError("give a grid, or at least one --controller")
        with extra_required("bench"):
            from qan_agents.bench.grid import cells_of, read_grid
            from qan_agents.bench.results import Results
            from qan_agents.bench.runner import run_cells
        flags = {
            "environments": env or ["QanLR-MNIST5k-v0"],
            "controllers": controller,
            "runs": runs or [20],
            "seeds": seed or [0],
            "evaluation_seeds": evaluation_seeds,
        }
        cells = cells_of(flags if grid is None else read_grid(grid))
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
                run_cells(cells, results, workers or os.cpu_count() or 1, ray, finished)
            except KeyboardInterrupt:
                bars.stop()
                console.print("interrupted; the same command goes on", highlight=False)
                raise typer.Exit(INTERRUPTED) from None
        if failed:
            console.print(f"{failed} cells failed: qan report says why; the same command tries them again")
            raise typer.Exit(1)


def report(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="The Parquet file of a bench.")],
    out: Annotated[Path | None, typer.Option(help="The folder to write to; default: beside the results.")] = None,
) -> None:
    """Tables and pictures of a bench's results, as Markdown and as one HTML page."""
    with errors_in_one_line():
        with extra_required("bench"):
            from qan_agents.bench.report import report as write_report
        for path in write_report(results, out or results.with_suffix("")):
            console.print(f"written: {path}", highlight=False)
