"""Shared by the commands: the console, options, settings given as NAME=VALUE, and errors printed in one line."""

import ast
import json
import os
import pickle
import warnings
import zlib
from collections.abc import Container, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from qan_agents.seeds import LARGEST_SEED
from qan_gym.utils.extras import install_extra

# --- the console ----------------------------------------------------------------------------------------------------


class PlainConsole(Console):
    """A console on which text is only text: neither markup nor emoji codes, and control characters are escaped."""

    def __init__(self, **options: Any) -> None:
        """options: see `rich.console.Console`."""
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """See `rich.console.Console.render_str`."""
        return super().render_str(printable(text), **options)


console = PlainConsole(soft_wrap=True)  # a line is wrapped by the terminal alone, so that a path remains one word
SPINNER = "line"  # of ASCII, which every terminal has
NATURAL_WIDTH = 10_000  # columns, of what goes to a file or a pipe


def printable(text: str) -> str:
    """Text whose control characters, but for line ends, and bytes that are no text are written as escapes."""
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode() for char in text
    )


def plain(text: str) -> Text:
    """Text for the parts of Rich that would read a string as markup: spinners, and columns of progress bars."""
    return Text(printable(text))


def table_of(*columns: str, right: Container[str] = (), **options: Any) -> Table:
    """An empty table whose cells are not cut off, see `print_wrapped`.

    Args:
        columns: their names; the first, which has the names of the rows, is not wrapped.
        right: those of numbers, which stand at the right of their column.
        options: see `rich.table.Table`.
    """
    table = Table(**options)
    for name in columns:
        justify: Literal["left", "right"] = "right" if name in right else "left"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name == columns[0])
    return table


def progress_bar(text: str) -> Progress:
    """A bar, the time that is left, and a text, which a narrow terminal wraps; in a file or a pipe there is no bar.

    Args:
        text: a format; {task} has the fields of the bar.
    """
    left = TimeRemainingColumn(table_column=Column(no_wrap=True)), TextColumn("left")
    columns = (BarColumn(bar_width=10), *left, TextColumn(text, markup=False, table_column=Column(overflow="fold")))
    return Progress(*columns, console=console, disable=not console.is_terminal)


def print_wrapped(content: str | Table) -> None:
    """Print a text or a table, wrapped where it is wider than the terminal, or than COLUMNS says.

    In a file or a pipe, unless COLUMNS is given, it is as wide as it is. A table is not made narrower than its words.
    """
    wide = PlainConsole(width=NATURAL_WIDTH)
    if console.is_terminal or os.environ.get("COLUMNS", "").isdigit():
        wide.width = max(console.width, wide.measure(content).minimum)
    wide.print(content)


# --- errors ---------------------------------------------------------------------------------------------------------

WRONG_INPUT = 2  # exit status
INTERRUPTED = 130  # exit status of a command stopped by Ctrl-C
DEBUG_VARIABLE = "QAN_DEBUG"  # where it is set, errors keep their traceback


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Print what is wrong with the input, the files or the machine in one line; other errors keep their traceback.

    Raises:
        typer.Exit: with the status WRONG_INPUT, instead of the error.
    """
    try:
        yield
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE) or not _is_from_outside(error):
            raise
        print_error(_message(error))
        raise typer.Exit(WRONG_INPUT) from error


def _is_from_outside(error: Exception) -> bool:
    """Whether the input, a file or the machine has caused an error, and not a fault of the program."""
    from gymnasium.error import Error

    if isinstance(error, BrokenPipeError):  # the reader of the output has gone: nothing is wrong
        return False
    kinds = (ValueError, OSError, EOFError, ImportError, MemoryError, zlib.error, pickle.UnpicklingError, Error)
    return isinstance(error, kinds)


def print_error(message: str) -> None:
    """Print a message in one line on the standard error."""
    line = " ".join(filter(None, map(str.strip, message.splitlines())))
    PlainConsole(stderr=True, soft_wrap=True).print(Text.assemble(("qan: ", "bold red"), printable(line)))


def _message(error: Exception) -> str:
    """What is wrong, with the name of the file where the system has one."""
    from gymnasium.error import UnregisteredEnv

    if isinstance(error, UnregisteredEnv):
        return f"{error} qan list has the ids there are; --import MODULE imports a module that registers others"
    if isinstance(error, OSError) and error.strerror:
        path = error.filename2 or error.filename  # of a rename the file that was to be
        return error.strerror if path is None else f"{os.fsdecode(path)}: {error.strerror}"
    return str(error) or type(error).__name__


@contextmanager
def extra_required(extra: str) -> Iterator[None]:
    """Say how to install the extra of the package to which a missing library belongs.

    Raises:
        ValueError: instead of the failed import.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is missing: {install_extra(extra)}") from error


def require_libraries(*extras: str) -> None:
    """Refuse to begin where libraries are missing that have the names of their extras; all are said at once.

    Raises:
        ValueError: with the command that installs them.
    """
    missing = {}
    for extra in extras:
        try:
            import_module(extra)
        except ModuleNotFoundError as error:
            missing[extra] = error.name or extra
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise ValueError(f"{', '.join(missing.values())} {verb} missing: {install_extra(*missing)}")


# --- options --------------------------------------------------------------------------------------------------------

MOST = 1_000_000  # of what a user may count: episodes, environments, seeds


def expanded(path: Path | None) -> Path | None:
    """A path whose leading `~` is the user's folder, which a shell does not replace in `--out=~/runs`.

    Raises:
        BadParameter: there is no such user.
    """
    if path is None:
        return None
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise typer.BadParameter(f"{path}: there is no such user folder") from error


def import_modules(modules: list[str] | None) -> list[str]:
    """Import the modules of `--import`.

    Raises:
        ValueError: one cannot be imported.
    """
    from qan_agents.env_ids import import_module_of_user

    for module in modules or []:
        import_module_of_user(module)
    return modules or []


SeedOption = Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of the agent and its episodes.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.", callback=expanded)]
EnvArgument = Annotated[
    str, typer.Argument(metavar="ENV", help="The id of an environment; MODULE:ID imports the module first.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A keyword argument of the environment.")
]
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


def refuse_beside(context: typer.Context, option: str, allowed: Container[str] = ()) -> None:
    """Refuse what was given beside an option, which would be ignored.

    Args:
        context: of the command.
        option: as it is written on the command line.
        allowed: names of parameters of the command that the option does not replace, its own among them.

    Raises:
        ValueError: the message names what was given beside it.
    """
    given = [
        parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.opts[0].upper()
        for parameter in context.command.params
        if parameter.name not in allowed and _is_given(context, parameter.name)
    ]
    if given:
        raise ValueError(f"{', '.join(given)} cannot be given with {option}, which has its own: leave it out")


def _is_given(context: typer.Context, name: str | None) -> bool:
    source = context.get_parameter_source(name) if name is not None else None
    return source is not None and source.name == "COMMANDLINE"


# --- settings -------------------------------------------------------------------------------------------------------


def parse_settings(settings: list[str] | None) -> dict[str, Any]:
    """NAME=VALUE pairs as a dict.

    Raises:
        ValueError: a pair has no "=", or a name is given twice.
    """
    parsed: dict[str, Any] = {}
    for setting in settings or []:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise ValueError(f"settings are NAME=VALUE, not {setting!r}")
        if name in parsed:
            raise ValueError(f"the setting {name!r} is given twice: leave one out")
        parsed[name] = parse_value(value)
    return parsed


def parse_value(text: str) -> Any:
    """A value as JSON or Python write it, such as null and None; what is neither is text, or a path that begins with ~.

    Python's values are those that JSON has too: a tuple is a list.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that Python does not know
            value = ast.literal_eval(text)
        return json.loads(json.dumps(value))
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return str(expanded(Path(text))) if text.startswith("~") else text
