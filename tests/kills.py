"""Kill `qan train` and `qan bench` at random instants, resume them, and compare the results with those of no kill.

    python tests/kills.py --kills 10

Every command is run once from beginning to end, then `--kills` times with SIGKILL at an instant drawn uniformly from
its duration, and the same command again. Everything but clocks must be equal, bit for bit: the tables of a run, its
evaluation, its agent and its replay; the rows of a bench. Episodes are of 10 mini-batches; no pictures
are drawn. POSIX only.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import qan_agents.agents.dqn
import qan_agents.agents.dqn_ensemble
import qan_agents.agents.dqn_native  # noqa: F401 (imported once, before the forks)
from qan_agents.bench.results import read_table
from qan_agents.cli.app import app
from qan_agents.experiments import plots
from qan_agents.experiments.manifest import Manifest
from qan_agents.experiments.run_folder import Run, read_rows
from qan_agents.experiments.train import load_agent
from qan_gym.utils.files import ASIDE, load_arrays

LR = "QanLR-MNIST5k-v1"
SHORT = {"train_size": 100, "batch_size": 10, "epochs": 1, "batches_per_action": 1, "validate_every": 5}
SEEDS = 8  # of a bench
TRAININGS = {
    "dqn": ["--agent", "dqn", "--seed", "5", "--set", "reference=null", "--set", "meta_momentum=null"],
    "dqn, previous": ["--agent", "dqn", "--set", "reference=previous", "--set", "meta_momentum=0.5"],
    "dqn-native, previous": ["--agent", "dqn-native", "--set", "reference=previous", "--set", "meta_momentum=0.5"],
    "dqn-native, rainbow, 2 at once": [
        *("--agent", "dqn-native", "--preset", "rainbow", "--num-envs", "2"),
        *("--set", "reference=null", "--set", "meta_momentum=null"),
    ],
    "dqn-ensemble, 2 at once, previous": [
        *("--agent", "dqn-ensemble", "--num-envs", "2", "--agent-set", "members=3"),
        *("--set", "reference=previous", "--set", "meta_momentum=0.5"),
    ],
}


def main() -> None:
    """Kill, resume, compare, and print a line for each command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="of each command")
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    plots.plot_run = lambda *_: []
    rng, failed = random.Random(arguments.seed), 0
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate((*TRAININGS, "bench")):
            case = BenchCase(Path(folder)) if name == "bench" else TrainCase(Path(folder) / str(number), name)
            equal = try_kills(case, arguments.kills, rng)
            failed += arguments.kills - equal
            print(f"{name}: {equal} of {arguments.kills} killed and resumed equal the undisturbed one", flush=True)
    sys.exit(failed > 0)


def try_kills(case: "TrainCase | BenchCase", kills: int, rng: random.Random) -> int:
    """How many of the killed and resumed commands ended like one that was not killed."""
    for name in ("whole", "again"):  # the first one also fills caches
        started = time.perf_counter()
        assert case.run(name, None) == 0, "the undisturbed command failed"
        duration = time.perf_counter() - started
    expected, equal = case.outcome("whole"), 0
    assert case.outcome("again") == expected, "the same command does not give the same"
    for number in range(kills):
        attempt = 0
        while case.run(f"killed-{number}-{attempt}", instant := rng.uniform(case.earliest, 1) * duration) == 0:
            attempt, duration = attempt + 1, instant  # it had ended before: the machine has become faster
        status = case.run(f"killed-{number}-{attempt}", None)
        outcome = case.outcome(f"killed-{number}-{attempt}") if status == 0 else f"it ended with status {status}"
        if outcome == expected:
            equal += 1
        else:
            print(f"  killed after {instant:.3f} s of {duration:.3f}: {_difference(outcome, expected)}", flush=True)
    return equal


def _difference(outcome: Any, expected: Any) -> str:
    if not isinstance(outcome, dict):
        return str(outcome)
    return "other " + ", ".join(name for name in expected if outcome.get(name) != expected[name])


def forked(arguments: Sequence[object]) -> int:
    """Start a command of `qan` in a copy of this process, which has imported everything; returns its id."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        status = 1
        with open(os.devnull, "w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):  # noqa: PTH123
            try:
                app([str(argument) for argument in arguments])
            except SystemExit as end:
                status = int(end.code or 0)
            finally:
                os._exit(status)
    return child


def spawned(arguments: Sequence[object]) -> int:
    """Start a command of `qan`; returns the id of its process."""
    command = [sys.executable, "-m", "qan_agents", *map(str, arguments)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, start_new_session=True, **quiet).pid


def end_of(child: int, seconds: float | None) -> int:
    """The exit status of a process, which is killed after some time, with those that it has started."""
    if seconds is not None:
        time.sleep(seconds)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class TrainCase:
    """`qan train`, resumed with `--resume` where there is a run."""

    earliest = 0.0  # share of the duration

    def __init__(self, folder: Path, name: str) -> None:
        """folder: for the runs; name: one of TRAININGS."""
        self.folder = folder
        settings = [f"--set={key}={json.dumps(value)}" for key, value in SHORT.items()]
        self.new = ["train", LR, "--episodes", "4", *TRAININGS[name], *settings]

    def run(self, name: str, seconds: float | None) -> int:
        """Begin or resume a run, and kill the process after some time; returns the exit status."""
        run = self.folder / name
        resumed = (run / "config.json").exists()
        return end_of(forked(["train", "--resume", run] if resumed else [*self.new, "--out", run]), seconds)

    def outcome(self, name: str) -> dict[str, Any]:
        """Everything that a run has learned and played, without clocks; the arrays as bytes."""
        run = Run(self.folder / name)
        agent = load_agent(run)
        model = _arrays_of_agent(agent)
        agent.close()
        episodes = read_rows(run.folder / "episodes.csv")
        replay = [load_arrays(path)[0] for path in sorted((run.folder / "replay").iterdir())]
        rounds = Manifest.read(run.folder).rounds
        return {
            "episodes": [{key: value for key, value in row.items() if key != "seconds"} for row in episodes],
            "steps": (run.folder / "steps.csv.gz").read_bytes(),
            "evaluation": (run.folder / "evaluation.csv").read_bytes(),
            "evaluation steps": (run.folder / "evaluation.csv.gz").read_bytes(),
            "agent": model,
            "carried": _bytes_of(load_arrays(run.folder / run.carried_name(4))[0]),
            "replay": list(map(_bytes_of, replay)),
            "rounds": [(one.episodes, one.steps, sorted(one.files)) for one in rounds],
            "left over": [path.name for path in run.folder.rglob(f"{ASIDE}*")],
        }


def _arrays_of_agent(agent: Any) -> dict[str, bytes]:
    """The weights and the optimizer of a DQN, or of all in an ensemble."""
    if hasattr(agent, "model"):
        policy = agent.model.policy
        tensors = {**policy.state_dict(), **_flat(policy.optimizer.state_dict()["state"])}
    else:
        tensors = {}
        for number, one in enumerate(getattr(agent.agent, "members", [agent.agent])):
            parts = {"weights": one.weights, "target": one.target_weights, **dict(enumerate(one.moments))}
            tensors |= _flat(parts, str(number))
    return _bytes_of({name: value.numpy() for name, value in tensors.items()})


def _flat(tree: Any, path: str = "") -> dict[str, torch.Tensor]:
    if isinstance(tree, dict):
        return {name: value for key, one in tree.items() for name, value in _flat(one, f"{path}/{key}").items()}
    return {path: torch.as_tensor(tree)}


def _bytes_of(arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
    return {name: f"{value.dtype}{value.shape}".encode() + value.tobytes() for name, value in arrays.items()}


class BenchCase:
    """`qan bench` in one worker process; the same command goes on."""

    earliest = 0.5  # before it the processes start

    def __init__(self, folder: Path) -> None:
        """folder: for the grid and its results."""
        self.folder = folder
        grid = {
            "environments": [{"id": LR, "kwargs": {**SHORT, "reference": None, "meta_momentum": None}}],
            "controllers": ["linear", "step", "best-constant"],
            "runs": [2],
            "seeds": list(range(SEEDS)),
            "evaluation_seeds": 2,
        }
        (folder / "grid.yaml").write_text(yaml.safe_dump(grid))

    def run(self, name: str, seconds: float | None) -> int:
        """Begin a bench or go on with it, and kill its processes after some time; returns the exit status."""
        out = self.folder / f"{name}.parquet"
        return end_of(spawned(["bench", self.folder / "grid.yaml", "--out", out, "--workers", "1"]), seconds)

    def outcome(self, name: str) -> dict[str, Any]:
        """The rows without clocks, in the order of their cells."""
        rows = read_table(self.folder / f"{name}.parquet").drop_columns(["seconds"]).to_pylist()
        return {
            "rows": sorted(rows, key=lambda row: (row["config_hash"], row["evaluation_seed"])),
            "left over": [path.name for path in self.folder.glob(f"{ASIDE}*")],
        }


if __name__ == "__main__":
    main()
