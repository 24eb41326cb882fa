"""Shared by the commands: the console, settings given as NAME=VALUE, and errors printed in one line."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

console = Console()

WRONG_INPUT = 2  # exit status
INTERRUPTED = 130  # exit status of a command stopped by Ctrl-C

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]
EnvArgument = Annotated[
    str, typer.Argument(metavar="ENV", help="The id of an environment; MODULE:ID imports the module first.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A keyword argument of the environment.")
]


def import_modules(modules: list[str] | None) -> list[str]:
    """Import the modules of `--import`.

    Raises:
        ValueError: one cannot be imported.
    """
    from qan_agents.env_ids import import_module_of

    with errors_in_one_line():
        for module in modules or []:
            import_module_of(f"{module}:")
    return modules or []


ImportOption = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="MODULE",
        help="Import a module that registers environments, agents or others; may be repeated.",
        callback=import_modules,
        is_eager=True,
    ),
]


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Print what is wrong with the input in one line; any other error is a bug and keeps its traceback.

    Raises:
        typer.Exit: with the status WRONG_INPUT, instead of the error.
    """
    from gymnasium.error import Error

    try:
        yield
    except (ValueError, OSError, ModuleNotFoundError, Error) as error:
        console.print(f"[bold red]qan:[/] {error!s}", highlight=False, soft_wrap=True)
        raise typer.Exit(WRONG_INPUT) from error


@contextmanager
def extra_required(extra: str) -> Iterator[None]:
    """Say how to install the extra of the package to which a missing library belongs.

    Raises:
        ValueError: instead of the failed import.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is missing: python -m pip install 'qan-gym[{extra}]'") from error


def parse_settings(settings: list[str] | None) -> dict[str, Any]:
    """NAME=VALUE pairs as a dict; a value is read as JSON, or is text where it is not JSON.

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
