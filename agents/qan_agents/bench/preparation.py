"""Every kind of controller by its name: the registered ones, and each registered schedule as a tuned controller."""

import qan_agents.bench.fixed_controllers
import qan_agents.bench.greedy_lr
import qan_agents.bench.meta_trained
import qan_agents.bench.population
import qan_agents.bench.trained_agents  # noqa: F401 (all register their controllers)
from qan_agents.bench.controllers import CONTROLLERS, ControllerKind, Preparation, PreparedController
from qan_agents.bench.tuned_schedules import check_tuned, tune_schedule
from qan_agents.bench.tuning_task import Settings, TuningTask, require_controllable
from qan_gym.schedules import SCHEDULES
from qan_gym.utils.names import unknown_name


def controllers() -> dict[str, ControllerKind]:
    """All kinds of controllers there are now; a registered controller goes before a schedule of the same name."""
    schedules = {name: ControllerKind(tune_schedule(name), Preparation.TUNING, check_tuned) for name in SCHEDULES}
    return {**schedules, **CONTROLLERS}


def check(name: str, task: TuningTask, settings: Settings) -> None:
    """Refuse what cannot be prepared, as far as it is known without computing anything.

    Args:
        name: one of `controllers()`.
        task: see `prepare`.
        settings: see `prepare`.

    Raises:
        ValueError: the name or a setting is unknown, or the controller does not play this task.
    """
    kinds = controllers()
    if name not in kinds:
        raise ValueError(unknown_name("controller", name, kinds))
    require_controllable(task.config)
    found = kinds[name].check
    if found is not None:
        found(task, settings)


def prepare(name: str, task: TuningTask, settings: Settings) -> PreparedController:
    """Prepare a controller.

    Args:
        name: one of `controllers()`.
        task: what it is to control, and on which budget.
        settings: of the controller; of an agent `env` (keyword arguments of the environment that it plays) and
            hyperparameters.

    Raises:
        ValueError: the name or a setting is unknown, or the controller does not play this task.
    """
    check(name, task, settings)
    return controllers()[name].prepare(task, settings)
