"""The decisions of a controller in one training: from what was measured of an action to the learning rate of the next.

The training's state is a row of the environments' own (`qan_gym.core.run_state`), so that their bookkeeping, features
and actions are used as they are.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qan_agents.controllers.controller import Controller, ControllerSettings
from qan_agents.controllers.update_meter import ActionMeasured
from qan_gym.core import statistics
from qan_gym.core.features import kept_within, show
from qan_gym.core.run_state import Layout, RunState
from qan_gym.core.statistics import STATISTICS
from qan_gym.games import game_of
from qan_gym.optimizee.network import Network
from qan_gym.utils.arrays import NUMPY
from qan_gym.utils.validation import check_settings, integer, number, setting

SEEN = (*STATISTICS, "log_learning_rate", "budget_used", "last_action", "log_weight_decay")  # what a training shows
OUTSIDE = 6.0  # standard deviations from the mean of what a controller saw in meta-training


@dataclass(frozen=True)
class TrainingFacts:
    """What a controller is told of a training.

    Raises:
        ValueError: a value is out of its range.
    """

    batch_size: int = setting(1, integer(at_least=1, at_most="dataset_size"), "examples of an update, of all processes")
    dataset_size: int = setting(1, integer(at_least=1), "training examples")
    num_classes: int = setting(2, integer(at_least=2), "classes that the cross-entropy is of")
    loss_scale: float = setting(1.0, number(above=0), "what the mean cross-entropy is multiplied by")

    def __post_init__(self) -> None:
        """Check."""
        check_settings(self)


@dataclass(frozen=True)
class Hyperparameters:
    """Of the optimizer, when a decision is made.

    Attributes:
        learning_rate: of the last update.
        momentum: of SGD; of Adam, beta1.
        weight_decay: see the optimizer.
    """

    learning_rate: float
    momentum: float
    weight_decay: float


class Decisions:
    """A controller in one training.

    Attributes:
        controller: that decides.
        observation: (D,) float32, the features that it saw last.
        action: its last one, in [-1, 1].
        outside: the names of the features that were further than OUTSIDE from what it saw in meta-training.
    """

    def __init__(self, controller: Controller, facts: TrainingFacts, start: float) -> None:
        """A training that has not begun.

        Args:
            controller: that decides.
            facts: of the training.
            start: the learning rate that the first action changes.

        Raises:
            ValueError: the controller sees what a training loop does not show.
        """
        features = controller.settings.features
        if controller.settings.factor is None:
            raise ValueError(
                f"the controller was meta-trained on {controller.settings.family}, and does not set the learning rate"
            )
        if unseen := [name for name in features if name not in SEEN]:
            raise ValueError(
                f"the controller sees {', '.join(unseen)}, which a training loop does not show; train one that does "
                "not: qan meta-train --set observation=statistics"
            )
        self.controller, self.facts = controller, facts
        self.config = controller.config()
        self.game = game_of(self.config)
        self._run = _one_run()
        self.run = self._run.with_arrays(NUMPY)
        self.memory = controller.memory(1)
        self.observation, self.action = np.zeros(len(features), np.float32), 0.0
        self.outside: tuple[str, ...] = ()
        run = self.run
        run.start_learning_rate[:] = run.chosen_learning_rate[:] = run.chosen_learning_rate_before[:] = start
        run.learning_rate[:], run.loss_scale[:], run.best_loss[:] = start, facts.loss_scale, math.inf
        run.n_classes[:], run.batch_size[:] = facts.num_classes, facts.batch_size
        run.train_size[:] = facts.dataset_size

    @property
    def rate(self) -> float:
        """The learning rate that it has chosen, which the base schedule multiplies."""
        return float(self.run.chosen_learning_rate[0])

    def decide(
        self, clock: int, budget: int, found: ActionMeasured | None, hyperparameters: Hyperparameters, lower: bool
    ) -> None:
        """Choose the learning rate of the next action.

        Args:
            clock: updates that were made.
            budget: those of the whole training.
            found: of the last action; None before the first.
            hyperparameters: of the optimizer.
            lower: whether to lower the learning rate as far as an action can, whatever the controller says.
        """
        run = self.run
        run.batch[:], run.budgets[:] = clock, budget
        run.action_batches[:] = 0 if found is None else len(found.losses)
        self._run.copy_clocks()
        run.momentum[:], run.weight_decay[:] = hyperparameters.momentum, hyperparameters.weight_decay
        run.learning_rate[:] = hyperparameters.learning_rate
        if found is not None:
            losses: Any = found.losses[None]
            self._run.measured.copy_(torch.from_numpy(found.measured))
            run.losses = losses
            statistics.after_action(run)
        self.observation = self._observe()
        scaled = abs(self.controller.scaled(self.observation[None])[0])
        self.outside = tuple(np.array(self.controller.settings.features)[scaled > OUTSIDE].tolist())
        actions, self.memory = self.controller.act(self.observation[None], self.memory)
        self.apply(np.full_like(actions, -1) if lower else actions)

    def apply(self, actions: NDArray[np.float32]) -> None:
        """Act: (1, 1) in [-1, 1]."""
        run = self.run
        run.chosen_learning_rate_before[:] = run.chosen_learning_rate
        self.game.apply(run, actions, self.config)
        run.last_action[:] = self.game.shown_action(actions, self.config)
        self.action = float(actions[0, 0])

    def _observe(self) -> NDArray[np.float32]:
        line = np.zeros((1, len(self.controller.settings.features)), np.float32)
        with np.errstate(all="ignore"):  # what is not finite is replaced
            show(self.run, self.controller.settings.features, line)
            observation: NDArray[np.float32] = kept_within(NUMPY, line)[0]
        return observation

    # --- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next decision depends on, the controller included: JSON-able values and tensors."""
        return {
            "controller": controller_state(self.controller),
            "facts": asdict(self.facts),
            "run": {name: value.clone() for name, value in self._run.saved().items()},
            "memory": torch.from_numpy(self.memory.copy()),
            "observation": self.observation.tolist(),
            "action": self.action,
            "outside": list(self.outside),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Decisions:
        """Those that go on from a state.

        Raises:
            KeyError, TypeError, ValueError: it is not a state of decisions.
        """
        decisions = cls(controller_of(state["controller"]), TrainingFacts(**state["facts"]), start=1.0)
        decisions._run.restore(state["run"])
        decisions.memory = state["memory"].numpy().copy()
        decisions.observation = np.array(state["observation"], np.float32)
        decisions.action, decisions.outside = float(state["action"]), tuple(state["outside"])
        return decisions


def controller_state(controller: Controller) -> dict[str, Any]:
    """A controller as JSON-able values and tensors."""
    weights = {name: torch.from_numpy(value.astype(np.float32)) for name, value in controller.weights.items()}
    return {"settings": asdict(controller.settings), "weights": weights, "provenance": controller.provenance}


def controller_of(state: dict[str, Any]) -> Controller:
    """The controller of `controller_state`."""
    weights = {name: value.numpy() for name, value in state["weights"].items()}
    return Controller(ControllerSettings(**state["settings"]), weights, state["provenance"])


def _one_run() -> RunState:
    """The state of one run without a network, whose measurements come from elsewhere."""
    network = Network((1, 1, 1), {"weights": (1,)}, _no_network, shown="weights")
    sizes = {"train_size": 1, "n_classes": 1, "batches_per_action": 1, "batch_size": 1, "budget": 1}
    sizes |= {"network_size": network.size(), "measured_size": 0}
    sizes |= {"measured": len(statistics.MEASURED), "logs": len(statistics.QUANTITIES)}
    return RunState.allocate(
        Layout(
            num_runs=1,
            device=torch.device("cpu"),
            network=network,
            slots=(),
            own_reference=False,
            measures=True,
            sizes=sizes,
            action_shape=(1,),
            action_dtype=torch.float32,
            game={},
        )
    )


def _no_network(*_: Any) -> Tensor:
    raise NotImplementedError("the network is in the user's own loop")
