"""The registry of features: a feature is a function of the state of the runs that an agent can be shown.

It is one number per run, or one for each class of a run.

A feature says itself whether it needs measurements of the training (`qan_gym.core.statistics`); where no feature of an
observation does, nothing is measured.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from qan_gym.core.reward import safe_log
from qan_gym.core.run_state import RunState
from qan_gym.utils.arrays import Array
from qan_gym.utils.registry import add

LIMIT = 10.0  # every value of an observation is kept within +-LIMIT

# -> (N,), of any floating type, or one number for all runs; (N, K) of a feature that is one number for each class
Function = Callable[[RunState], Array]


@dataclass(frozen=True)
class Feature:
    """A registered feature.

    Attributes:
        function: see `register_feature`.
        needs_measurements: whether it reads fields of the state that are there only where something is measured.
        reads: the tensor of a game, in `run.game`, that it reads.
        per_class: whether it is one number for each class.
    """

    function: Function
    needs_measurements: bool = False
    reads: str | None = None
    per_class: bool = False


FEATURES: dict[str, Feature] = {}


def register_feature(
    name: str,
    function: Function,
    *,
    needs_measurements: bool = False,
    reads: str | None = None,
    per_class: bool = False,
) -> None:
    """Make a feature available under a name, for `observation=[...]` and for the score line of a game.

    Args:
        name: of the feature.
        function: (the state of N runs) -> (N,), or one number for all of them; by operators and the functions of
            `run.xp`, which do not wait for the device. Values are kept within +-10, and 0 stands for what is not a
            number.
        needs_measurements: whether the function reads `run.measured` or what else is there only where the training is
            measured; where this feature is observed, it is.
        reads: the name in `run.game` of a game's tensor that the function reads; environments without it refuse the
            feature. None: it reads none.
        per_class: the function gives (N, K), one number for each class, which stand side by side in the observation;
            where it is observed, the losses are measured by class (`qan_gym.core.class_statistics`).

    Raises:
        ValueError: the name is taken, or what must be callable is not.
    """
    add(FEATURES, "a feature", name, Feature(function, needs_measurements, reads, per_class), part=function)


def feature(*, needs_measurements: bool = False, per_class: bool = False) -> Callable[[Function], Function]:
    """Register a function under its own name; see `register_feature`."""

    def register(function: Function) -> Function:
        register_feature(function.__name__, function, needs_measurements=needs_measurements, per_class=per_class)
        return function

    return register


def show(run: RunState, names: Iterable[str], line: Array) -> None:
    """Write features into the columns of a line, one after another, as they are; see `Feature.per_class`.

    Args:
        run: the state that they are of.
        names: of the features.
        line: (N, at least as many as they have together).
    """
    place = 0
    for name in names:
        values, width = FEATURES[name].function(run), 1
        if FEATURES[name].per_class:
            width = values.shape[1]
            line[:, place : place + width] = values
        else:
            line[:, place] = values
        place += width


def kept_within(xp: Any, values: Array) -> Array:
    """Values within +-LIMIT, and 0 for what is not a number."""
    within = xp.minimum(xp.maximum(values, -LIMIT), LIMIT)
    return xp.where(within == within, within, 0.0)  # what is not a number does not equal itself


@feature()
def log_learning_rate(run: RunState) -> Array:
    """ln(learning rate) of the last mini-batch."""
    return run.xp.log(run.learning_rate)


@feature()
def budget_used(run: RunState) -> Array:
    """Share of the budget that is used, in [0, 1]."""
    return run.clock / run.budget


@feature()
def log_loss(run: RunState) -> Array:
    """ln of the running mean of the training loss."""
    return safe_log(run.xp, run.smoothed_loss)


@feature()
def log_loss_change(run: RunState) -> Array:
    """Change of `log_loss` since the last action."""
    return safe_log(run.xp, run.smoothed_loss) - safe_log(run.xp, run.smoothed_loss_before)


@feature()
def last_action(run: RunState) -> Array:
    """The last action; -1 before the first."""
    return run.last_action


@feature()
def log_validation_loss(run: RunState) -> Array:
    """ln(validation loss), as last measured."""
    return safe_log(run.xp, run.validation_loss)


@feature()
def log_validation_loss_change(run: RunState) -> Array:
    """Change of `log_validation_loss` since the last action."""
    return safe_log(run.xp, run.validation_loss) - safe_log(run.xp, run.validation_loss_before)


@feature()
def momentum(run: RunState) -> Array:
    """The momentum of SGD, or beta1 of AdamW."""
    return run.momentum


@feature()
def log_weight_decay(run: RunState) -> Array:
    """ln(weight decay)."""
    return safe_log(run.xp, run.weight_decay)
