"""GreedyLR, which follows the validation loss, and whose settings are tuned by Optuna."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qan_agents.bench.controllers import Preparation, PreparedController, register_controller
from qan_agents.bench.rollout import validation_interval
from qan_agents.bench.tuned_schedules import Search, absolute_actions, check_tuned, tune, usual_rates
from qan_agents.bench.tuning_task import Settings, TuningTask
from qan_agents.policies.loss_rules import Greedy
from qan_gym.vector_env import QanVectorEnv

BOUNDS = (1e-3, 1.0)  # of the learning rate: those of the published implementation
SETTINGS = {"factor": (0.5, 0.95), "patience": (0, 5)}  # of the search; patience in measurements


class GreedyController:
    """N of `Greedy`, each with its own settings and fed with its own validation loss."""

    def __init__(self, chosen: Sequence[Settings]) -> None:
        """chosen: `learning_rate`, to begin with, `factor` and `patience`; one per row, or one for all."""
        self.chosen = chosen

    def start(self, env: QanVectorEnv) -> None:
        """See `Controller.start`."""
        chosen = [self.chosen[row % len(self.chosen)] for row in range(env.num_envs)]
        names = ("learning_rate", "factor", "patience")
        rates, factor, patience = (np.array([one[name] for one in chosen], np.float64) for name in names)
        self.rule, self.rates = Greedy(rates, factor, patience, BOUNDS), rates
        self.config, self.interval, self.measured = env.config, validation_interval(env), -1

    def act(self, observations: NDArray[Any], infos: dict[str, Any]) -> NDArray[np.float32]:
        """See `Controller.act`; (N, 1)."""
        measured = int(infos["batch"].max()) // self.interval  # a row that is over is behind
        if measured > self.measured:
            self.measured, self.rates = measured, self.rule(infos["validation_loss"].astype(np.float64))
        return absolute_actions(self.rates, self.config)


def tune_greedy(task: TuningTask, settings: Settings) -> PreparedController:
    """The preparation of `GreedyController`."""
    return tune(task, Search(SETTINGS, usual_rates(task.config)), GreedyController, {})


register_controller("greedy-lr", tune_greedy, Preparation.TUNING, check_tuned)
