"""The entry of the command `qan`."""

import io
import sys

from qan_gym.utils.extras import install_extra


def main() -> None:
    """Run the command line; where the packages of the agents are not installed, say which one is missing."""
    # What the terminal's encoding has no character for is written as an escape.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        from qan_agents.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("qan_gym", "qan_agents"):
            raise
        sys.exit(f"qan needs the package {error.name}: {install_extra('agents')}")
    app(prog_name="qan")


if __name__ == "__main__":
    main()
