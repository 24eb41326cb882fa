"""Rewards: each one pure function of the state of the runs after an action."""

from collections.abc import Callable
from typing import Any

from qan_gym.core.run_state import LOSS_LIMIT, RunState
from qan_gym.utils.arrays import Array
from qan_gym.utils.registry import add

FINAL_LOSS = 1e-4  # the paper's final_loss
CHANCES = 4.0  # `final_log_loss` takes a larger validation loss for so many times that of guessing

Reward = Callable[[RunState], Array]


def log_loss(run: RunState) -> Array:
    """ln(l[t-1]) - ln(l[t]), l the running mean of the losses; at the end l is the loss on the validation split.

    Both are times the loss scale. The return of an episode telescopes to ln(initial loss / final validation loss).
    """
    validation = run.xp.minimum(run.loss_scale * run.validation_loss, LOSS_LIMIT)
    loss = run.xp.where(run.ended, validation, run.smoothed_loss)
    return safe_log(run.xp, run.smoothed_loss_before) - safe_log(run.xp, loss)


def validation_loss(run: RunState) -> Array:
    """ln(v[t-1]) - ln(v[t]), v the loss on the validation split as it is known.

    The return of an episode is that of `log_loss`; there is less noise in what it is made of.
    """
    return safe_log(run.xp, run.validation_loss_before) - safe_log(run.xp, run.validation_loss)


def inverse_loss(run: RunState) -> Array:
    """1 / |loss - 1e-4| (the paper), at most 1e4."""
    return 1 / run.xp.maximum(abs(run.loss - FINAL_LOSS), FINAL_LOSS)


def accuracy(run: RunState) -> Array:
    """Validation accuracy at the end, 0 before."""
    return run.xp.where(run.ended, run.validation_accuracy, 0.0)


def final_log_loss(run: RunState) -> Array:
    """-ln(validation loss / ln K) at the end, at least -ln 4; 0 before. ln K is the loss of guessing."""
    ratio = run.xp.minimum(run.validation_loss / run.xp.log(run.n_classes), CHANCES)
    return run.xp.where(run.ended, -safe_log(run.xp, ratio), 0.0)


REWARDS: dict[str, Reward] = {
    "log-loss": log_loss,
    "validation-loss": validation_loss,
    "inverse-loss": inverse_loss,
    "accuracy": accuracy,
    "final-log-loss": final_log_loss,
}


def register_reward(name: str, function: Reward) -> None:
    """Make a reward available under a name.

    Args:
        name: what `reward=` will accept.
        function: (the state of N runs) -> (N,) float32, finite for every state; by operators and the functions of
            `run.xp`.

    Raises:
        ValueError: the name is taken, or what must be callable is not.
    """
    add(REWARDS, "a reward", name, function)


def reward_terms(name: str, penalty: float, run: RunState) -> dict[str, Array]:
    """The terms whose sum is the reward: the named function, and the penalty of divergence in its place."""
    return {
        "reward_" + name.replace("-", "_"): run.xp.where(run.diverged, 0.0, REWARDS[name](run)),
        "reward_divergence": run.xp.where(run.diverged, -penalty, 0.0),
    }


def safe_log(xp: Any, values: Array) -> Array:
    """Natural logarithm, of at least 1e-10; xp is the namespace of the values."""
    return xp.log(xp.maximum(values, 1e-10))
