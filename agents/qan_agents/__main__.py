"""The entry of the command `qan`: says what is missing where the agents' packages are not installed."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from qan_agents.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("qan_gym", "qan_agents"):
            raise
        sys.exit(f'qan needs the package {error.name}: python -m pip install "qan-gym[agents]"')
    app()


if __name__ == "__main__":
    main()
