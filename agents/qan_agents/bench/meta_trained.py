"""Controllers that were meta-trained on a family of tasks, and have no training on the task that they play.

The learning rate starts where it does in the family, and is changed as often in a training.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qan_agents.bench.controllers import Preparation, PreparedController, register_controller, require_settings
from qan_agents.bench.tuning_task import Settings, TuningTask, task_config
from qan_agents.controllers.controller import Controller
from qan_agents.controllers.learners import sets_learning_rate
from qan_agents.controllers.shipped import shipped_controller
from qan_gym.config import TaskConfig
from qan_gym.families.task import DECISIONS, START
from qan_gym.tasks import TASKS
from qan_gym.vector_env import QanVectorEnv


class MetaTrained:
    """A controller of the learning rate in N training runs."""

    def __init__(self, controller: Controller) -> None:
        """controller: that acts in every row."""
        self.controller = controller

    def start(self, env: QanVectorEnv) -> None:
        """See `Controller.start` of `qan_agents.bench.controllers`."""
        self.player = self.controller.player(env.num_envs)

    def act(self, observations: NDArray[Any], infos: dict[str, Any]) -> NDArray[np.float32]:
        """See `start`; (N, 1)."""
        return self.player(observations)


def controller_for(config: TaskConfig, settings: Settings) -> Controller:
    """The controller of the settings, or the one that comes with the package for the task's optimizer.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it was not meta-trained to set the learning rate of this optimizer.
    """
    optimizer = config.optimizer
    if "file" not in settings:
        if optimizer not in START:
            raise ValueError(
                f"no controller comes with the package for the optimizer {optimizer!r}: it has them for "
                f"{' and '.join(START)}; `file` takes one that you have meta-trained"
            )
        return shipped_controller(optimizer, settings.get("replicate", 0))
    controller = Controller.load(Path(str(settings["file"])).expanduser())
    if controller.settings.factor is None or optimizer not in controller.settings.optimizers:
        raise ValueError(f"{settings['file']}: it was not meta-trained to set the learning rate of {optimizer}")
    return controller


def env_kwargs_of(controller: Controller, config: TaskConfig) -> Settings:
    """What a controller sees and does in a task, but for how often."""
    family = TASKS[controller.settings.family]
    return {
        **controller.env_kwargs,
        "learning_rate": START[config.optimizer],
        "learning_rate_min": family.learning_rate_min,
        "learning_rate_max": family.learning_rate_max,
    }


def action_batches(task: TuningTask) -> int:
    """Mini-batches between its decisions.

    Raises:
        ValueError: a training of the task has fewer mini-batches than the controller makes decisions.
        FileNotFoundError: the data are not there.
    """
    if task.batches < DECISIONS:
        raise ValueError(f"it makes {DECISIONS} decisions, and a training of this task has {task.batches} mini-batches")
    return task.batches // DECISIONS


def _prepare(task: TuningTask, settings: Settings) -> PreparedController:
    controller = controller_for(task.config, settings)
    env_kwargs = {**env_kwargs_of(controller, task.config), "batches_per_action": action_batches(task)}
    return PreparedController(MetaTrained(controller), env_kwargs, chosen=dict(settings))


def _check(task: TuningTask, settings: Settings) -> None:
    require_settings(settings, ("file", "replicate"))
    if not sets_learning_rate(task.config):
        raise ValueError(f"it sets the learning rate, which the actions of the game {task.config.game!r} do not")
    controller = controller_for(task.config, settings)
    task_config(task.env, {**task.env_kwargs, **env_kwargs_of(controller, task.config)})
    with suppress(FileNotFoundError):  # a grid is checked without its data, too
        action_batches(task)


register_controller("learned-lr", _prepare, Preparation.NONE, _check)
