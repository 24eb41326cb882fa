"""Meta-training: an agent learns on the tasks of a family, and becomes a controller.

    run = MetaRun(folder)
    run.create(MetaConfig(rounds=100))
    controller = run.train(show=print)

A folder has `config.json`, the settings; `state.safetensors`, the agent after the last round with the record of all
rounds, in one file, so that a kill leaves a whole one; `progress.csv`, the record; and in the end
`controller.safetensors`.
"""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode

import qan_gym
from qan_agents.controllers.controller import Controller, ControllerSettings
from qan_agents.controllers.learners import LEARNERS, largest_factor, sets_learning_rate
from qan_agents.controllers.meta_config import MetaConfig
from qan_agents.controllers.trainings import Outcomes, play_controller
from qan_agents.dqn.vector_env import TensorVectorEnv
from qan_agents.experiments import manifest
from qan_agents.experiments.run_folder import locked, taken
from qan_agents.seeds import training_seed
from qan_gym.families.record import NUMBER_LIMIT
from qan_gym.utils.files import ASIDE, load_arrays, reading, require_writable, write_bytes
from qan_gym.vector_env import QanVectorEnv

CONFIG, STATE, PROGRESS, CONTROLLER, LOCK = (
    "config.json",
    "state.safetensors",
    "progress.csv",
    "controller.safetensors",
    ".lock",
)
EVALUATIONS = 12  # of a whole meta-training
EVALUATION_TASKS = 64

Row = dict[str, float]


class MetaRun:
    """The folder of a meta-training.

    Attributes:
        folder: it.
    """

    def __init__(self, folder: Path) -> None:
        """folder: of a meta-training that is there, or of a new one."""
        self.folder = folder

    def create(self, config: MetaConfig, start: Self | None = None) -> None:
        """Write the settings; nothing is written before they have been checked.

        Args:
            config: the settings; `start` of them is left to this method.
            start: a finished meta-training, whose networks the agent begins with; None: with fresh ones.

        Raises:
            ValueError: a setting is wrong, the folder is taken or cannot be written to, or the other meta-training is
                not finished, or of an agent that sees or does something else.
            FileNotFoundError: there is no other meta-training.
        """
        require_writable(self.folder)
        names = {path.name for path in self.folder.glob("*") if not path.name.startswith(ASIDE)} - {LOCK}
        if names:
            own = CONFIG in names and manifest.NAME not in names  # which a run of qan train has
            raise ValueError(taken(self.folder, "qan meta-train" if own else None))
        if start is not None:
            config = replace(config, start=start.provenance())
        training = MetaTraining(config)
        if start is not None:
            training.learner.begin_with(start.folder / STATE)
            training.save(self.folder / STATE)
        training.close()
        write_bytes(self.folder / CONFIG, (json.dumps(asdict(config), indent=2) + "\n").encode())

    def config(self) -> MetaConfig:
        """The settings.

        Raises:
            FileNotFoundError: there is no meta-training in the folder.
            ValueError: the file is damaged.
        """
        path = self.folder / CONFIG
        with reading(path, "the settings of a meta-training"):
            return MetaConfig(**json.loads(path.read_text()))

    def provenance(self) -> dict[str, Any]:
        """How the controller was made.

        Raises:
            FileNotFoundError: there is no meta-training in the folder.
            ValueError: it is not finished, or a file is damaged.
        """
        self.config()
        if not self.controller.exists():
            raise ValueError(f"{self.folder}: its meta-training is not finished: qan meta-train --resume {self.folder}")
        return Controller.load(self.controller).provenance

    def rows(self) -> list[Row]:
        """What is recorded of the rounds so far.

        Raises:
            FileNotFoundError: no round is over.
            ValueError: the file is damaged.
        """
        _, about = load_arrays(self.folder / STATE)
        rows: list[Row] = about["facts"]["rows"]
        return rows

    @property
    def controller(self) -> Path:
        """The file of the controller, which is there once the meta-training is over."""
        return self.folder / CONTROLLER

    def train(self, show: Callable[[int, Row], None] = lambda done, row: None) -> Controller:
        """Train from the last finished round to the last one.

        Args:
            show: called after every round, with the number of rounds done and what is recorded of the last.

        Raises:
            ValueError: another process trains in the folder, or a file of it is damaged.
        """
        with locked(self.folder / LOCK):
            config = self.config()
            training = MetaTraining(config)
            state = self.folder / STATE
            if state.exists():
                training.restore(state)
            while training.done < config.rounds:
                row = training.round()
                training.save(state)
                show(training.done, row)
            write_bytes(self.folder / PROGRESS, table(training.rows).encode())
            controller = training.controller()
            controller.save(self.controller)
            training.close()
        return controller


class MetaTraining:
    """An agent that learns on a family.

    Attributes:
        config: the settings.
        learner: that learns.
        rows: what is recorded of the rounds so far.
    """

    def __init__(self, config: MetaConfig) -> None:
        """A fresh agent.

        Raises:
            ValueError: a setting is wrong.
        """
        self.config, self.env = config, environment(config)
        self.env.training.tests = False  # test images are for judging
        self.rows: list[Row] = []
        self.learner = LEARNERS[config.agent](config, self.env)
        self.tensor_env = TensorVectorEnv(self.env, self.learner.agent.device)

    @property
    def done(self) -> int:
        """Rounds so far."""
        return self.learner.agent.steps // (self.config.rows * self.config.decisions)

    def restore(self, state: Path) -> None:
        """Go on from a file that `save` wrote.

        Raises:
            ValueError: it is damaged, or of other settings.
        """
        self.learner.restore(state)
        self.rows = self.learner.agent.facts["rows"]

    def save(self, state: Path) -> None:
        """Write everything to one file, atomically."""
        self.learner.save(state, rows=self.rows)

    def round(self) -> Row:
        """A training of a task in every row, and the updates after it; what is recorded of it."""
        learner, tensor_env, (rows, group) = self.learner, self.tensor_env, (self.config.rows, self.config.group)
        first = self.done * rows // group
        seeds = [training_seed(self.config.seed, first + row // group) for row in range(rows)]
        learner.begin(tensor_env.reset(seeds), tensor_env.infos)
        total, over = torch.zeros(rows), torch.zeros(rows, dtype=torch.bool)
        for _ in range(self.config.decisions):
            transitions = tensor_env.step(learner.act())
            total += torch.where(over, 0, transitions.rewards)
            # The end of the budget is the end of the game: nothing comes after it. What rows play that are over before
            # the others is not learned from.
            learner.remember(transitions._replace(terminated=transitions.ended, valid=~over))
            over |= transitions.ended
            learner.learn()
        row = {"round": self.done, "trainings": self.done * rows, "return": float(total.mean())}
        row |= learner.metrics()
        if self._is_due():
            outcomes = self.evaluate(self.controller())
            row |= {
                "log_loss": float(np.log(outcomes.validation_loss).mean()),
                "diverged": float(outcomes.diverged.mean()),
            }
        self.rows.append(row)
        return row

    def _is_due(self) -> bool:
        """Whether the controller is evaluated after this round: EVALUATIONS times, evenly, the last one among them."""
        share = EVALUATIONS / self.config.rounds
        return math.floor(self.done * share) > math.floor((self.done - 1) * share)

    def evaluate(self, controller: Controller) -> Outcomes:
        """Trainings of other tasks of the training split, the same every time."""
        tasks = evaluation_tasks(self.config)
        return play_controller(controller, tasks, range(len(tasks)), dataset=self.env.config.dataset)

    def controller(self) -> Controller:
        """The policy so far, without its noise."""
        training, learner = self.env.training, self.learner
        observer = training.parts.observer
        settings = ControllerSettings(
            family=self.config.family,
            features=tuple(observer.features),
            widths=observer.widths,
            optimizers=self.optimizers,
            factor=largest_factor(training.config) if sets_learning_rate(training.config) else None,
            schedule=training.config.schedule,
            **learner.settings(),
        )
        return Controller(settings, learner.weights(), self.provenance())

    @property
    def optimizers(self) -> tuple[str, ...]:
        """Of the tasks."""
        source: Any = self.env.training
        return tuple(source.source.optimizers)

    def provenance(self) -> dict[str, Any]:
        """How the controller was made."""
        versions = {"qan_gym": qan_gym.__version__, "torch": torch.__version__, "numpy": np.__version__}
        return {"config": asdict(self.config), "trainings": self.done * self.config.rows, "versions": versions}

    def close(self) -> None:
        """Close the environments."""
        self.env.close()


def rounds_within(config: MetaConfig, seconds: float) -> int:
    """How many rounds a meta-training of these settings does in some seconds, by the time of a few; at least 1.

    Raises:
        ValueError: a setting is wrong.
    """
    training = MetaTraining(config)
    training.round()  # the first one also loads data and kernels
    started = time.perf_counter()
    training.evaluate(training.controller())
    evaluated = time.perf_counter()
    training.round()  # rounds beyond the last one are not evaluated
    finished = time.perf_counter()
    training.close()
    return max(1, round((seconds - EVALUATIONS * (evaluated - started)) / (finished - evaluated)))


def environment(config: MetaConfig) -> QanVectorEnv:
    """The rows that the agent plays.

    Raises:
        ValueError: a keyword argument of the environment is wrong.
    """
    env = gym.make_vec(
        config.family,
        num_envs=config.rows,
        output="torch",
        autoreset_mode=AutoresetMode.NEXT_STEP,
        **config.all_env_kwargs,
    )
    assert isinstance(env.unwrapped, QanVectorEnv)
    return env.unwrapped


def evaluation_tasks(config: MetaConfig) -> list[Any]:
    """The last tasks of the training split, which hardly any meta-training meets."""
    return late_tasks(config, EVALUATION_TASKS, offset=1)


def late_tasks(config: MetaConfig, count: int, offset: int) -> list[Any]:
    """Tasks of the training split, of the kinds that the settings name, backwards from the `offset`-th from the end."""
    _, source = config.family_config()
    return [source.draw_number(NUMBER_LIMIT - offset - place) for place in range(count)]


def table(rows: list[Row]) -> str:
    """CSV of all columns that some row has."""
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
