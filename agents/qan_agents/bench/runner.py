"""Runs the cells of a grid in processes of their own, here or on a Ray cluster.

What is finished is in the results and is not done again. A cell that fails (an error, a dead process) is there too,
with the reason, and the grid goes on.
"""

import json
import multiprocessing
import os
import platform
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch

from qan_agents.bench.controllers import PreparedController
from qan_agents.bench.grid import Cell
from qan_agents.bench.preparation import prepare
from qan_agents.bench.resources import commit, default_workers, hardware
from qan_agents.bench.results import Results, Row, as_table, require_same_controller
from qan_agents.bench.rollout import Rollout, play_episodes
from qan_agents.bench.tuning_task import TuningTask, make_env

PACKAGES = (
    *("qan-gym", "gymnasium", "torch", "numpy", "stable-baselines3", "sb3-contrib", "optuna"),
    *("schedulefree", "dadaptation", "prodigyopt"),
)


@dataclass(frozen=True)
class Failure:
    """Why a cell has no result."""

    reason: str


# --- a cell ---------------------------------------------------------------------------------------------------------


def run_cell(cell: Cell) -> list[Row]:
    """Prepare the controller, and play the unseen seeds of every environment; a row per training run.

    Raises:
        ValueError: the data have changed since the key of the cell was computed, or the controller cannot be prepared.
    """
    torch.set_num_threads(1)  # the cells share the machine
    started = time.perf_counter()
    if [target.identity for target in cell.targets] != cell.identities:
        raise ValueError("its data have changed since the bench began")
    task, *_ = cell.targets
    prepared = prepare(cell.controller, task, cell.settings)
    rows = []
    for number, target in enumerate(cell.targets):
        env = make_env(target, cell.evaluation_seeds, transferred_env_kwargs(prepared, task, target))
        rollout = play_episodes(env, prepared.controller, range(cell.evaluation_seeds))
        shared = {
            **_columns(cell, target),
            "environment_identity": cell.identities[number],
            "prepared_on_identity": cell.identities[0],
            "consumed_runs": prepared.runs,
            "consumed_batches": prepared.batches,
            "chosen": json.dumps(prepared.chosen, sort_keys=True),
            "data_fingerprint": env.training.parts.fingerprint,
        }
        env.close()
        rows += [{**shared, **_scores(rollout, seed)} for seed in range(cell.evaluation_seeds)]
    seconds = time.perf_counter() - started
    return [{**row, "seconds": seconds} for row in rows]


def transferred_env_kwargs(prepared: PreparedController, task: TuningTask, target: TuningTask) -> dict[str, Any]:
    """Keyword arguments of the environment for a controller that was prepared for `task` and now plays `target`.

    An action remains the same share of a training run.
    """
    arguments = dict(prepared.env_kwargs)
    if target != task and "batches_per_action" in arguments:
        share = arguments["batches_per_action"] / task.batches
        arguments["batches_per_action"] = max(1, round(share * target.batches))
    if target != task and "validate_every" in arguments:
        arguments["validate_every"] = target.validation_interval
    return arguments


def _columns(cell: Cell, target: TuningTask) -> Row:
    """The columns that say which cell a row is of, and on which environment it was evaluated."""
    label, controller, settings = cell.who
    versions = {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}
    versions |= {"commit": commit(), "hardware": hardware()}
    return {
        "config_hash": cell.key,
        "environment": target.env,
        "environment_kwargs": json.dumps(target.env_kwargs, sort_keys=True),
        "prepared_on": cell.env,
        "prepared_on_kwargs": json.dumps(cell.env_kwargs, sort_keys=True),
        "controller": controller,
        "label": label,
        "settings": settings,
        "runs": cell.runs,
        "seed": cell.seed,
        "versions": json.dumps(versions, sort_keys=True),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _scores(rollout: Rollout, row: int) -> Row:
    """The columns of one training run; its row in the rollout is its evaluation seed."""
    names = ("test_loss", "test_accuracy", "validation_loss", "validation_accuracy")
    return {
        "status": "done",
        "evaluation_seed": row,
        **{name: float(rollout.final[name][row]) for name in names},
        "diverged": bool(rollout.final["diverged"][row]),
        "batches": int(rollout.batches[row]),
        "validation_curve": rollout.validation_loss[:, row].tolist(),
        "rate_curve": rollout.learning_rate[:, row].tolist(),
    }


# --- many cells -----------------------------------------------------------------------------------------------------

Outcome = list[Row] | Failure


def run_cells(
    cells: Sequence[Cell], results: Results, workers: int, ray: str | None, finished: Callable[[Cell, str], None]
) -> None:
    """Run the cells that are not finished yet; the rows of each are on disk before the next is counted.

    Args:
        cells: of a grid.
        results: which the rows are added to, and which say what is finished.
        workers: local processes, at most as many as cells; 0: see `default_workers`.
        ray: the address of a Ray cluster to run on instead, or "local" for one on this machine.
        finished: called after every cell with its status, "done" or "failed".
    """
    left = unfinished(cells, results)
    outcomes = run_on_ray(left, ray) if ray is not None else run_in_processes(left, workers)
    for cell, outcome in outcomes:
        if isinstance(outcome, Failure):
            outcome = [{**_columns(cell, cell.task), "status": "failed", "error": outcome.reason}]
        results.append(cell.key, outcome)
        finished(cell, outcome[0]["status"])


def unfinished(cells: Sequence[Cell], results: Results) -> list[Cell]:
    """The cells without results on all of their evaluation seeds."""
    done = results.finished()
    return [cell for cell in cells if not done.get(cell.key, set()) >= set(range(cell.evaluation_seeds))]


def require_compatible(cells: Sequence[Cell], results: Results) -> None:
    """Refuse cells that cannot be computed, or whose results could not be told from those that are there.

    Raises:
        ValueError, FileNotFoundError: the data of a cell cannot be read, or its label stands for another controller in
            the results.
    """
    names = ("environment_identity", "label", "controller", "settings")
    there = {
        (row["environment_identity"], row["label"]): (row["label"], row["controller"], row["settings"])
        for row in results.table().select(list(names)).to_pylist()
    }
    for cell in cells:
        for identity in cell.identities:
            try:
                require_same_controller(there.get((identity, cell.label), cell.who), cell.who)
            except ValueError as error:
                raise ValueError(f"{results.path}: {error}, or write to another file") from error


def run_cell_or_fail(cell: Cell) -> Outcome:
    """As `run_cell`; an error is the reason of a failure."""
    try:
        rows = run_cell(cell)
        as_table(rows)  # what a registered controller reports may be anything
        return rows
    except Exception as error:  # whatever it is, the grid goes on
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        return Failure(reason.encode(errors="backslashreplace").decode())


def run_in_processes(
    cells: Sequence[Cell], workers: int, run: Callable[[Cell], Outcome] = run_cell_or_fail
) -> Iterator[tuple[Cell, Outcome]]:
    """Run every cell in one of `workers` processes, see `run_cells`; in the order in which they end."""
    from pebble import ProcessExpired, ProcessPool

    if not cells:
        return
    workers = min(workers or default_workers(), len(cells))
    context = multiprocessing.get_context("spawn")
    with ProcessPool(max_workers=workers, context=context, initializer=_exit_with_parent) as pool:
        futures: dict[Future[Outcome], Cell] = {pool.schedule(run, args=[cell]): cell for cell in cells}
        try:
            for future in as_completed(futures):
                try:
                    yield futures[future], future.result()
                except ProcessExpired as error:  # killed, out of memory
                    yield futures[future], Failure(f"its process died with exit code {error.exitcode}")
        except BaseException:
            pool.stop()  # type: ignore[no-untyped-call]
            raise


def _exit_with_parent() -> None:
    """Exit this process when its parent is killed, which would not receive its results any more."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_on_ray(cells: Sequence[Cell], address: str) -> Iterator[tuple[Cell, Outcome]]:
    """Run every cell as a task of a Ray cluster; in the order in which they end.

    Raises:
        ValueError: there is no cluster at the address.
    """
    import ray

    if not cells:
        return
    try:
        # "local" is a new cluster on this machine, whatever RAY_ADDRESS says.
        ray.init(address=address, log_to_driver=False, include_dashboard=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        problem = str(error).strip().splitlines()[0]
        raise ValueError(f"there is no Ray cluster at {address!r} ({problem})") from error
    try:
        # A cell that was lost with its machine counts as failed: what ends a machine might end the next one too.
        task = ray.remote(max_retries=0, num_cpus=1)(run_cell_or_fail)
        futures = {task.remote(cell): cell for cell in cells}
        while futures:
            (ready,), _ = ray.wait(list(futures), num_returns=1)
            cell = futures.pop(ready)
            try:
                yield cell, ray.get(ready)
            except ray.exceptions.RayError as error:
                yield cell, Failure(f"{type(error).__name__}: {str(error).splitlines()[0]}")
    finally:
        ray.shutdown()
