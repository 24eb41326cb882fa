"""The command `qan`: all its commands."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

import qan_gym
from qan_agents.cli import bench, controllers, environments, judge, sharing, train
from qan_agents.cli.common import INTERRUPTED, WRONG_INPUT, console, errors_in_one_line, print_error


class Command(NamedTuple):
    """A command: its function, and examples of its arguments, which the tests parse."""

    function: Callable[..., None]
    examples: tuple[str, ...]


COMMANDS = {
    "train": Command(
        train.train,
        (
            "",
            "QanLR-MNIST5k-v1 --agent dqn-native --episodes 40 --seed 1",
            "--set schedule=one-cycle --agent-set gamma=0.9",
            "--resume runs/QanLR-MNIST5k-v1-dqn-quick-seed0",
        ),
    ),
    "reproduce": Command(train.reproduce, ("mnist-lr --scale 0.1", "cifar10-lr --set network=resnet-8")),
    "evaluate": Command(train.evaluate, ("runs/RUN",)),
    "plot": Command(train.plot, ("runs/RUN", "runs/RUN --html")),
    "watch": Command(train.watch, ("runs/RUN --video episode.mp4 --seed 3",)),
    "meta-train": Command(
        controllers.meta_train,
        ("--set optimizers=['sgd'] --minutes 10", "--rounds 80 --seed 1 --out runs/adamw", "--resume runs/adamw"),
    ),
    "bench": Command(
        bench.bench,
        ("grid.yaml --out bench.parquet", "--controller best-constant --controller dqn --runs 20"),
    ),
    "report": Command(bench.report, ("bench.parquet",)),
    "dataset": Command(
        sharing.dataset,
        ("cosine --episodes 20 --out qan/lr5k/cosine-v0", "runs/RUN --out qan/lr5k/dqn-v0"),
    ),
    "push": Command(sharing.push, ("controller.safetensors OWNER/NAME", "runs/RUN OWNER/NAME --dry-run card")),
    "pull": Command(sharing.pull, ("OWNER/NAME --out runs/theirs",)),
    "judge": Command(judge.judge, ("controller.safetensors", "*.safetensors --rival tuned --tasks 100")),
    "list": Command(environments.list_environments, ("", "QanLR-MNIST5k-v1", "dqn-native")),
    "check": Command(environments.check, ("QanLR-MNIST5k-v1 --steps 50", "CartPole-v1 --seeds 20")),
    "data": Command(environments.data, ("", "--fetch")),
    "reference": Command(environments.reference, ("QanLR-MNIST5k-v1 --set epochs=2",)),
}


class NamedInErrors(TyperCommand):
    """A command whose help every error of its options names."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See `typer.core.TyperCommand.parse_args`."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if getattr(error, "ctx", ctx) is None:  # as of an option without its value
                error.ctx = ctx  # type: ignore[attr-defined]
            raise


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


for name, (function, examples) in COMMANDS.items():
    app.command(
        name=name,
        cls=NamedInErrors,
        short_help=(function.__doc__ or "").partition("\n")[0],  # not cut off
        epilog="\n".join(["\b", "Examples:", *(f"  qan {name} {arguments}".rstrip() for arguments in examples)]),
    )(function)
