"""How extras of the package are installed, for messages; it imports nothing beyond the standard library."""

import shlex
from pathlib import Path

import qan_gym


def install_extra(*extras: str) -> str:
    """The command that installs extras: of the checkout that this package is in, else of the release.

    Args:
        extras: names under [project.optional-dependencies] in pyproject.toml.
    """
    names = ",".join(extras)
    checkout = Path(qan_gym.__file__).parents[1]
    if not (checkout / "pyproject.toml").is_file():
        return f"python -m pip install 'qan-gym[{names}]'"
    folder = "." if checkout == Path.cwd() else str(checkout)
    return f"python -m pip install -e {shlex.quote(f'{folder}[{names}]')}"
