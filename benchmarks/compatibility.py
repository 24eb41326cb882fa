"""Which libraries play the games: each that is installed runs an example, and a table says how it ended.

python benchmarks/compatibility.py --out docs/everywhere.md

Writes the table between the two comments of the page that name it; the rows of libraries that are not installed here
stay as they were, so that environments which exclude each other fill one table.
"""

import argparse
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from qan_gym.utils.files import write_bytes

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- compatibility: by benchmarks/compatibility.py -->", "<!-- end of compatibility -->"
HEAD = ("library", "version", "with Gymnasium", "what was run", "result", "its last line")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
SECONDS = 600  # that an example may take


@dataclass(frozen=True)
class Client:
    """A library, its distribution, and the arguments of Python that play some hundred steps with it."""

    library: str
    distribution: str
    arguments: tuple[str, ...]


CLIENTS = (
    Client("CleanRL's manner, DQN", "torch", ("examples/cleanrl_dqn.py", "--steps", "400")),
    Client("CleanRL's manner, PPO", "torch", ("examples/cleanrl_ppo.py", "--steps", "640")),
    Client("Gymnasium's AsyncVectorEnv", "gymnasium", ("examples/async_vector_env.py",)),
    Client("Stable-Baselines3", "stable-baselines3", ("examples/sb3_algorithms.py", "PPO", "--episodes", "2")),
    Client("sb3-contrib", "sb3-contrib", ("examples/sb3_algorithms.py", "QRDQN", "--episodes", "2")),
    Client("SBX", "sbx-rl", ("examples/sb3_algorithms.py", "PPO", "--library", "sbx", "--episodes", "2")),
    Client("rl-baselines3-zoo", "rl_zoo3", ("examples/zoo_dqn.py", "--steps", "240")),
    Client("TorchRL", "torchrl", ("examples/torchrl_dqn.py", "--steps", "400")),
    Client("Tianshou", "tianshou", ("examples/tianshou_dqn.py", "--steps", "400")),
    Client("TorchRL, vector environment", "torchrl", ("examples/torchrl_vector_env.py",)),
    Client("skrl", "skrl", ("examples/skrl_ppo.py", "--steps", "60")),
    Client("d3rlpy", "d3rlpy", ("examples/d3rlpy_cql.py",)),
    Client("Sample-Factory", "sample-factory", ("examples/sample_factory_appo.py",)),
    Client("RLlib", "ray", ("examples/rllib_ppo.py",)),
    Client("Minari", "minari", ("examples/offline_rl.py", "--episodes", "4", "--seeds", "2", "--game-epochs", "1")),
)


def run(client: Client) -> tuple[str, ...] | None:
    """The row of a client; None where its library is not installed."""
    try:
        found = version(client.distribution)
    except PackageNotFoundError:
        return None
    command = [sys.executable, *client.arguments]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
        result = "works" if done.returncode == 0 else f"fails, exit status {done.returncode}"
        text = done.stdout if done.returncode == 0 else done.stderr
    except subprocess.TimeoutExpired:
        result, text = f"not over after {SECONDS} s", ""
    lines = COLOUR.sub("", text).strip().splitlines() or [""]
    if result != "works":  # what went wrong, where a library closes with more lines
        lines = [line for line in lines if re.match(r"\w*(Error|Exception)\b", line)] or lines
    last = lines[-1].replace(str(ROOT), ".").replace("|", "\\|").strip()
    shown = f"`{last[:160]}`" if last else ""
    return client.library, found, version("gymnasium"), f"`{' '.join(client.arguments)}`", result, shown


def rows_there(page: str) -> dict[str, str]:
    """The lines of the table that a page has, by library."""
    inside = page.partition(BEGIN)[2].partition(END)[0]
    return {line.split(" | ")[0].strip("| "): line for line in inside.splitlines() if line.startswith("| ")}


def main() -> None:
    """Run them one after another, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a page with the two comments")
    parser.add_argument("--only", default="", help="libraries whose names match this regular expression")
    arguments = parser.parse_args()
    page = arguments.out.read_text(encoding="utf-8")
    if BEGIN not in page or END not in page:
        parser.error(
            f"{arguments.out} does not have the two comments {BEGIN} and {END}, between which the table stands"
        )
    lines = rows_there(page)
    for client in CLIENTS:
        row = run(client) if re.search(arguments.only, client.library) else None
        print(f"{client.library}: {row[4] if row else 'not run'}", flush=True)
        if row is not None:
            lines[client.library] = f"| {' | '.join(row)} |"
            write_bytes(arguments.out, with_table(page, lines).encode())


def with_table(page: str, lines: dict[str, str]) -> str:
    """A page with these lines as its table."""
    table = [f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}"]
    table += [lines[client.library] for client in CLIENTS if client.library in lines]
    return "\n".join([page.partition(BEGIN)[0] + BEGIN, "", *table, "", END + page.partition(END)[2]])


if __name__ == "__main__":
    main()
