"""Controllers: what a bench compares, and the registry of their kinds.

A controller is *prepared* with a budget of training runs on tuning seeds (a schedule is tuned by Optuna, an agent is
trained), and then plays episodes on other seeds, several in lock-step. It sees training and validation data only.
`qan_agents.bench.preparation` prepares a controller by its name.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from numpy.typing import NDArray

from qan_agents.bench.tuning_task import Settings, TuningTask
from qan_gym.utils.names import unknown_name
from qan_gym.utils.registry import add
from qan_gym.vector_env import QanVectorEnv


class Controller(Protocol):
    """A policy that controls N training runs in lock-step."""

    def start(self, env: QanVectorEnv) -> Settings | None:
        """Get ready for N episodes; returns the options for `env.reset`.

        Raises:
            ValueError: the controller cannot play this environment.
        """

    def act(self, observations: NDArray[Any], infos: dict[str, Any]) -> NDArray[Any]:
        """The N actions that follow what `reset` or `step` last returned."""


@dataclass(frozen=True)
class PreparedController:
    """A controller that is ready to play.

    Attributes:
        controller: it.
        env_kwargs: of the environment that it plays, beside the task's: how its actions are understood.
        runs, batches: training runs, and their mini-batches, that the preparation consumed.
        chosen: the settings that the preparation found, for the results; as JSON has them.
    """

    controller: Controller
    env_kwargs: Settings = field(default_factory=dict)
    runs: int = 0
    batches: int = 0
    chosen: Settings = field(default_factory=dict)


class Preparation(Enum):
    """How the controllers of a kind are prepared."""

    NONE = "none"  # nothing is prepared: without a budget, and the same for every seed of a preparation
    TUNING = "tuning"
    TRAINING = "training"


Prepare = Callable[[TuningTask, Settings], PreparedController]  # the second are the settings of the controller
Check = Callable[[TuningTask, Settings], None]  # the same


@dataclass(frozen=True)
class ControllerKind:
    """Controllers that are prepared in the same way.

    Attributes:
        prepare: (task, settings) -> a controller that is ready to play; raises ValueError where a setting is wrong or
            the controller does not play the task.
        preparation: how they are prepared.
        check: (task, settings); raises ValueError where `prepare` would, without computing anything, so that a grid is
            refused before any of its cells is computed; None: nothing is known before.
    """

    prepare: Prepare
    preparation: Preparation
    check: Check | None = None


CONTROLLERS: dict[str, ControllerKind] = {}


def register_controller(name: str, prepare: Prepare, preparation: Preparation, check: Check | None = None) -> None:
    """Make a kind of controller available under a name, in grids and for `prepare`.

    Args:
        name: of the kind.
        prepare: see `ControllerKind`.
        preparation: see `ControllerKind`.
        check: see `ControllerKind`.

    Raises:
        ValueError: the name is taken, or what must be callable is not.
    """
    add(CONTROLLERS, "a controller", name, ControllerKind(prepare, preparation, check), part=prepare)


def require_settings(settings: Settings, known: Iterable[str]) -> None:
    """Refuse settings of a controller that it does not have.

    Raises:
        ValueError: a setting is not among the known ones.
    """
    known = list(known)
    for name in settings:
        if name not in known:
            raise ValueError(unknown_name("setting", name, known))
