"""The command `qan`: all its commands."""

from collections.abc import Callable

import typer

from qan_agents.cli import bench, environments, train

COMMANDS: dict[str, Callable[..., None]] = {
    "train": train.train,
    "reproduce": train.reproduce,
    "evaluate": train.evaluate,
    "plot": train.plot,
    "watch": train.watch,
    "bench": bench.bench,
    "report": bench.report,
    "list": environments.list_environments,
    "check": environments.check,
    "data": environments.data,
    "reference": environments.reference,
}

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="The command `qan`.")
for name, command in COMMANDS.items():
    app.command(name=name)(command)
