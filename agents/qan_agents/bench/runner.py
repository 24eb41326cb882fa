"""The bench: environments x controllers x budgets x seeds, each cell prepared and then judged on the same unseen seeds.

A grid in YAML:

    evaluation_seeds: 10
    environments:
      - {id: QanLR-MNIST5k-v0}
    controllers:
      - constant
      - {name: dqn-gpu, label: without decay, settings: {env: {schedule: constant}}}
    runs: [20]
    seeds: [0, 1, 2]

Cells run in processes of their own, here or on a Ray cluster. What is finished is in the results, and is not done
again; a cell that fails (an error, a dead process) is there too, with the reason, and the grid goes on.
"""

import hashlib
import itertools
import json
import multiprocessing
import os
import platform
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import connection
from pathlib import Path
from typing import Any

from qan_agents.bench.controllers import CONTROLLERS, FIXED, Course, Prepared, Problem, make_env, play, prepare
from qan_agents.bench.results import Results, Row
from qan_gym.tasks import TASKS, make_task_config

PACKAGES = ("qan-gym", "gymnasium", "torch", "numpy", "stable-baselines3", "sb3-contrib", "optuna", "schedulefree")


@dataclass(frozen=True)
class Cell:
    """One preparation of one controller, and its judgement.

    Attributes:
        env, env_kwargs: the environment.
        controller: one of CONTROLLERS.
        label: what it is called in tables.
        settings: of the controller.
        runs: trainings to prepare on.
        seed: of the preparation.
        evaluation_seeds: how many unseen seeds, from 0, it is judged on.
        transfer: other environments, {"id": ..., "kwargs": ...}, that what was prepared is judged on too, unchanged.
    """

    env: str
    controller: str
    label: str
    runs: int
    seed: int
    evaluation_seeds: int
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    transfer: list[dict[str, Any]] = field(default_factory=list)

    @property
    def key(self) -> str:
        """The hash of all settings: cells of the same key are the same."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Failure:
    """Why a cell has no result."""

    reason: str


# --- the grid -------------------------------------------------------------------------------------------------------


def read_grid(path: Path) -> dict[str, Any]:
    """A grid from YAML.

    Raises:
        ValueError: the file is missing or no YAML.
    """
    import yaml

    try:
        grid = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: missing, or not YAML ({error})") from error
    if not isinstance(grid, dict):
        raise ValueError(f"{path}: a grid is a mapping of {', '.join(_KEYS)}")
    return grid


_KEYS = ("environments", "controllers", "runs", "seeds", "evaluation_seeds", "blocks")


def cells_of(grid: dict[str, Any]) -> list[Cell]:
    """All cells of a grid, checked, the cheap ones first.

    Args:
        grid: its keys are `environments`, `controllers`, `runs`, `seeds`, `evaluation_seeds`; or `blocks`, a list of
            such, which take over what is said beside them.

    Raises:
        ValueError: what is wrong, before anything runs.
    """
    unknown = set(grid) - set(_KEYS)
    if unknown:
        raise ValueError(f"unknown in a grid: {', '.join(sorted(unknown))}; there are {', '.join(_KEYS)}")
    shared = {name: value for name, value in grid.items() if name != "blocks"}
    cells: dict[str, Cell] = {}
    for block in grid.get("blocks", [{}]):
        for cell in _cells_of_block({**shared, **block}):
            cells.setdefault(cell.key, cell)
    if not cells:
        raise ValueError("the grid is empty")
    return sorted(cells.values(), key=lambda cell: cell.runs)


def _cells_of_block(block: dict[str, Any]) -> Iterator[Cell]:
    for name in ("environments", "controllers"):
        if not isinstance(block.get(name), list) or not block[name]:
            raise ValueError(f"a grid needs {name}: a list")
    for name in ("runs", "seeds"):
        block.setdefault(name, [20] if name == "runs" else [0])
        if not isinstance(block[name], list) or not all(_is_count(value, least=0) for value in block[name]):
            raise ValueError(f"{name} must be a list of whole numbers, not {block[name]!r}")
    judged = block.get("evaluation_seeds", 10)
    if not _is_count(judged, least=1):
        raise ValueError(f"evaluation_seeds must be a whole number of at least 1, not {judged!r}")
    for environment, controller in itertools.product(block["environments"], block["controllers"]):
        where = environment if isinstance(environment, dict) else {"id": environment}
        who = controller if isinstance(controller, dict) else {"name": controller}
        _refuse(where, ("id", "kwargs", "transfer"), "an environment")
        _refuse(who, ("name", "label", "settings"), "a controller")
        _check_env(where.get("id"), where.get("kwargs", {}))
        if not isinstance(where.get("transfer", []), list):
            raise ValueError(f"transfer must be a list of environments, not {where['transfer']!r}")
        for there in where.get("transfer", []):
            _refuse(there, ("id", "kwargs"), "an environment to transfer to")
            _check_env(there.get("id"), there.get("kwargs", {}))
        if who.get("name") not in CONTROLLERS:
            raise ValueError(f"unknown controller {who.get('name')!r}; there are {', '.join(CONTROLLERS)}")
        budgets, seeds = ([0], [0]) if who["name"] in FIXED else (block["runs"], block["seeds"])
        for runs, seed in itertools.product(budgets, seeds):
            yield Cell(
                env=where["id"],
                controller=who["name"],
                label=who.get("label", who["name"]),
                runs=runs,
                seed=seed,
                evaluation_seeds=judged,
                env_kwargs=where.get("kwargs", {}),
                settings=who.get("settings", {}),
                transfer=where.get("transfer", []),
            )


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _refuse(given: dict[str, Any], known: Sequence[str], what: str) -> None:
    unknown = set(given) - set(known)
    if unknown:
        raise ValueError(f"unknown of {what}: {', '.join(sorted(unknown))}; there are {', '.join(known)}")


def _check_env(env: Any, kwargs: dict[str, Any]) -> None:
    if env not in TASKS:
        raise ValueError(f"unknown environment {env!r}; there are {', '.join(TASKS)}")
    make_task_config(env, {name: value for name, value in kwargs.items() if name != "device"})


# --- a cell ---------------------------------------------------------------------------------------------------------


def run_cell(cell: Cell) -> list[Row]:
    """Prepare, play the unseen seeds of every environment, and say all that is known of it: a row per training."""
    import torch

    import qan_gym  # noqa: F401 (registers the environments)

    torch.set_num_threads(1)  # the cells share the machine
    started = time.perf_counter()
    here = Problem(cell.env, cell.env_kwargs, cell.runs, cell.seed)
    prepared = prepare(cell.controller, here, cell.settings)
    rows = []
    for there in (here, *(Problem(other["id"], other.get("kwargs", {}), 0, 0) for other in cell.transfer)):
        env = make_env(there, cell.evaluation_seeds, _moved(prepared, here, there))
        course = play(env, prepared.player, range(cell.evaluation_seeds))
        judged = {**_about(cell, there), **_found(prepared), "data_fingerprint": env.unwrapped.training.parts.fingerprint}
        env.close()
        rows += [{**judged, **_scores(course, seed)} for seed in range(cell.evaluation_seeds)]
    seconds = time.perf_counter() - started
    return [{**row, "seconds": seconds} for row in rows]


def _moved(prepared: Prepared, here: Problem, there: Problem) -> dict[str, Any]:
    """How the actions are understood in another game: they stay the same share of a training."""
    from qan_agents.bench.controllers import batches_of, looking_every

    arguments = dict(prepared.env_kwargs)
    if there is not here and "batches_per_action" in arguments:
        share = arguments["batches_per_action"] / batches_of(here)
        arguments["batches_per_action"] = max(1, round(share * batches_of(there)))
    if there is not here and "validate_every" in arguments:
        arguments["validate_every"] = looking_every(there)
    return arguments


def _about(cell: Cell, there: Problem) -> Row:
    versions = {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}
    return {
        "config_hash": cell.key,
        "environment": there.env,
        "environment_kwargs": json.dumps(there.env_kwargs, sort_keys=True),
        "prepared_on": cell.env,
        "prepared_on_kwargs": json.dumps(cell.env_kwargs, sort_keys=True),
        "controller": cell.controller,
        "label": cell.label,
        "settings": json.dumps(cell.settings, sort_keys=True),
        "runs": cell.runs,
        "seed": cell.seed,
        "versions": json.dumps(versions, sort_keys=True),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _found(prepared: Prepared) -> Row:
    return {
        "consumed_runs": prepared.runs,
        "consumed_batches": prepared.batches,
        "chosen": json.dumps(prepared.chosen, sort_keys=True),
    }


def _scores(course: Course, seed: int) -> Row:
    """Of the training of that evaluation seed."""
    names = ("test_loss", "test_accuracy", "validation_loss", "validation_accuracy")
    return {
        "status": "done",
        "evaluation_seed": seed,
        **{name: float(course.final[name][seed]) for name in names},
        "diverged": bool(course.final["diverged"][seed]),
        "batches": int(course.batches[seed]),
        "validation_curve": course.validation[:, seed].tolist(),
        "rate_curve": course.rates[:, seed].tolist(),
    }


def _failed(cell: Cell, failure: Failure) -> list[Row]:
    here = Problem(cell.env, cell.env_kwargs, cell.runs, cell.seed)
    return [{**_about(cell, here), "status": "failed", "error": failure.reason}]


# --- many cells -----------------------------------------------------------------------------------------------------

Outcome = tuple[Cell, list[Row] | Failure]


def bench(
    cells: Sequence[Cell], results: Results, workers: int, ray: str | None, finished: Callable[[Cell, str], None]
) -> None:
    """Run what is not finished yet; each cell's rows are on disk before the next is counted.

    Args:
        cells: of a grid.
        results: where they go, and where the finished ones are found.
        workers: local processes.
        ray: the address of a Ray cluster to run on instead, or "local" for one on this machine.
        finished: called after every cell with its status, "done" or "failed".
    """
    there = results.finished()
    left = [cell for cell in cells if cell.key not in there]
    outcomes = _on_ray(left, ray) if ray is not None else _in_processes(left, workers)
    for cell, outcome in outcomes:
        rows = _failed(cell, outcome) if isinstance(outcome, Failure) else outcome
        results.append(cell.key, rows)
        finished(cell, rows[0]["status"])


def _guarded(cell: Cell) -> list[Row] | Failure:
    try:
        return run_cell(cell)
    except Exception as error:  # whatever it is, the grid goes on
        where = traceback.extract_tb(error.__traceback__)[-1]
        return Failure(f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})")


def _end_with_parent() -> None:
    """End this process when the bench is killed: nobody would write down what it still finds."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


Work = Callable[[Cell], list[Row] | Failure]


def _in_processes(cells: Sequence[Cell], workers: int, work: Work = _guarded) -> Iterator[Outcome]:
    from concurrent.futures import as_completed

    from pebble import ProcessExpired, ProcessPool

    context = multiprocessing.get_context("spawn")
    with ProcessPool(max_workers=workers, context=context, initializer=_end_with_parent) as pool:
        futures = {pool.schedule(work, args=[cell]): cell for cell in cells}
        try:
            for future in as_completed(futures):
                try:
                    yield futures[future], future.result()
                except ProcessExpired as error:  # killed, out of memory
                    yield futures[future], Failure(f"its process died with exit code {error.exitcode}")
        except BaseException:
            pool.stop()
            raise


def _on_ray(cells: Sequence[Cell], address: str) -> Iterator[Outcome]:
    import ray

    ray.init(address=None if address == "local" else address, log_to_driver=False, include_dashboard=False)
    try:
        # A cell that was lost with its machine counts as failed: what ends a machine might end the next one too.
        task = ray.remote(max_retries=0, num_cpus=1)(_guarded)
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
