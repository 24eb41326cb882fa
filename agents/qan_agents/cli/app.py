"""The command `qan`: all its commands."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import qan_gym
from qan_agents.cli import bench, controllers, environments, judge, train
from qan_agents.cli.common import INTERRUPTED, WRONG_INPUT, console, errors_in_one_line, print_error

COMMANDS: dict[str, Callable[..., None]] = {
    "train": train.train,
    "reproduce": train.reproduce,
    "evaluate": train.evaluate,
    "plot": train.plot,
    "watch": train.watch,
    "meta-train": controllers.meta_train,
    "bench": bench.bench,
    "report": bench.report,
    "judge": judge.judge,
    "list": environments.list_environments,
    "check": environments.check,
    "data": environments.data,
    "reference": environments.reference,
}


class OneLineErrors(TyperGroup):
    """The one place where errors become a line and an exit status, those of the command line itself among them."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """See `typer.core.TyperGroup.invoke`.

        Raises:
            Exit: an error or an interruption has been printed.
        """
        try:
            with errors_in_one_line():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            print_error("interrupted")
            raise typer.Exit(INTERRUPTED) from None

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """See `typer.core.TyperGroup.main`.

        Raises:
            SystemExit: with the status of the command.
        """
        try:
            status = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except Exception as error:
            message = getattr(error, "format_message", None)  # the class is Click's or, of late, Typer's own
            if message is None or not standalone_mode:
                raise
            context = getattr(error, "ctx", None)
            print_error(f"{message()} (see {context.command_path if context is not None else 'qan'} --help)")
            status = WRONG_INPUT
        if not standalone_mode:
            return status
        raise SystemExit(status or 0)


# Without Rich's markup the help is plain text, which goes into every terminal, file and pipe.
app = typer.Typer(
    name="qan",
    cls=OneLineErrors,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def print_version(wanted: bool) -> None:
    """Print the version and end.

    Raises:
        Exit: it has been printed.
    """
    if wanted:
        console.print(f"qan-gym {qan_gym.__version__}")
        raise typer.Exit


@app.callback()
def qan(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=print_version, is_eager=True)
    ] = False,
) -> None:
    """Training a neural network, as a game that reinforcement learning can play."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for name, command in COMMANDS.items():
    app.command(name=name, short_help=(command.__doc__ or "").partition("\n")[0])(command)  # not cut off
