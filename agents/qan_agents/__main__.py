"""The entry of the command `qan`."""

import sys
from pathlib import Path


def main() -> None:
    """Run the command line; where the packages of the agents are not installed, say which one is missing."""
    # The modules of MODULE:ID ids lie in the current folder. `python -m` adds it by itself, the script `qan` does not.
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        from qan_agents.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("qan_gym", "qan_agents"):
            raise
        sys.exit(f'qan needs the package {error.name}: python -m pip install "qan-gym[agents]"')
    app()


if __name__ == "__main__":
    main()
