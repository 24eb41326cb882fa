"""Trackers of experiments: what the episodes of a run come to, sent to Weights & Biases or MLflow.

A tracker is one function, called for every episode with the values that TensorBoard shows and their step. A run that
goes on is the same run in the tracker.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from qan_agents.experiments.run_folder import Run
from qan_agents.experiments.train import Log

PROJECT = "qan-gym"  # in the tracker
LONGEST_VALUE = 500  # characters of a parameter in MLflow


@contextmanager
def trackers(names: Sequence[str], run: Run) -> Iterator[Log]:
    """What sends the values of a run to some trackers.

    Args:
        names: keys of TRACKERS.
        run: created.

    Raises:
        ValueError: one cannot be begun.
        ModuleNotFoundError: its library is not installed.
    """
    with ExitStack() as stack:
        logs = [stack.enter_context(TRACKERS[name](run)) for name in dict.fromkeys(names)]

        def log(values: dict[str, float], step: int) -> None:
            for one in logs:
                one(values, step)

        yield log


def _identity(run: Run) -> str:
    """The same for a run whenever it goes on."""
    about = f"{run.folder.resolve()} {run.manifest().config.sha256}"
    return hashlib.sha256(about.encode()).hexdigest()[:16]


@contextmanager
def _begun(what: str, hint: str) -> Iterator[None]:
    """What a library raises where it cannot begin, as one kind of error.

    Raises:
        ValueError: instead of it.
    """
    try:
        yield
    except ModuleNotFoundError:
        raise
    except Exception as error:  # their own kinds, and those of connections
        raise ValueError(f"{what} cannot be begun: {error}; {hint}") from error


@contextmanager
def _wandb(run: Run) -> Iterator[Log]:
    with _begun("Weights & Biases", "WANDB_MODE=offline needs no account"):
        import wandb

        tracked = wandb.init(
            project=PROJECT,
            name=run.folder.name,
            id=_identity(run),
            resume="allow",
            config=run.settings().model_dump(mode="json"),
        )
    try:
        yield lambda values, step: tracked.log(values, step=step)
    finally:
        tracked.finish()


@contextmanager
def _mlflow(run: Run) -> Iterator[Log]:
    with _begun("MLflow", "MLFLOW_TRACKING_URI says where it writes to"):
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        client = MlflowClient()
        number = _mlflow_run(client, run)

    def log(values: dict[str, float], step: int) -> None:
        now = int(1000 * time.time())
        client.log_batch(number, metrics=[Metric(name, float(value), now, step) for name, value in values.items()])

    try:
        yield log
    finally:
        client.set_terminated(number)


def _mlflow_run(client: Any, run: Run) -> str:
    """The id of the run in MLflow, which is made where there is none."""
    from mlflow.entities import Param

    found = client.get_experiment_by_name(PROJECT)
    experiment = found.experiment_id if found is not None else client.create_experiment(PROJECT)
    identity = _identity(run)
    there = client.search_runs([experiment], filter_string=f"tags.qan_run = '{identity}'", max_results=1)
    if there:
        return str(there[0].info.run_id)
    made = client.create_run(experiment, run_name=run.folder.name, tags={"qan_run": identity})
    settings = run.settings()
    values = {**settings.run.__dict__, **settings.hyperparameters}
    client.log_batch(
        made.info.run_id, params=[Param(name, str(value)[:LONGEST_VALUE]) for name, value in values.items()]
    )
    return str(made.info.run_id)


TRACKERS = {"mlflow": _mlflow, "wandb": _wandb}
