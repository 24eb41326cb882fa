"""What the agent is paid: each reward one pure function of what was measured after an action."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

FINAL_LOSS = 1e-4  # the paper's final_loss
DIVERGENCE_PENALTY = -10.0  # what diverging pays, whatever the reward


@dataclass(frozen=True)
class Measurement:
    """What was measured after an action, for N runs; every tensor is (N,) and finite.

    Attributes:
        loss: mean loss of the mini-batches of this action, nats.
        smoothed_before: running mean of the mini-batch losses before this action (at first: the loss on the
            validation split at the initial weights).
        smoothed: the same after it.
        validation_before: the loss on the validation split, as it was known before this action.
        validation_loss: on the whole validation split, as last measured: when an epoch or the episode ended, or as
            `validate_every` says.
        validation_accuracy: the same, in [0, 1].
        ended: bool, the episode is over.
    """

    loss: Tensor
    smoothed_before: Tensor
    smoothed: Tensor
    validation_before: Tensor
    validation_loss: Tensor
    validation_accuracy: Tensor
    ended: Tensor


Reward = Callable[[Measurement], Tensor]


def log_loss(m: Measurement) -> Tensor:
    """ln(l[t-1]) - ln(l[t]), l the running mean of the losses; at the end l is the loss on the validation split.

    The return of an episode telescopes to ln(initial loss / final validation loss).
    """
    level = torch.where(m.ended, m.validation_loss, m.smoothed)
    return safe_log(m.smoothed_before) - safe_log(level)


def validation_loss(m: Measurement) -> Tensor:
    """ln(v[t-1]) - ln(v[t]), v the loss on the validation split as it is known.

    The return of an episode is that of `log_loss`; there is less noise in what it is made of.
    """
    return safe_log(m.validation_before) - safe_log(m.validation_loss)


def inverse_loss(m: Measurement) -> Tensor:
    """1 / |loss - 1e-4| (the paper), at most 1e4."""
    return 1 / (m.loss - FINAL_LOSS).abs().clamp(min=FINAL_LOSS)


def accuracy(m: Measurement) -> Tensor:
    """Validation accuracy at the end, 0 before."""
    return torch.where(m.ended, m.validation_accuracy, 0.0)


REWARDS: dict[str, Reward] = {
    "log-loss": log_loss,
    "validation-loss": validation_loss,
    "inverse-loss": inverse_loss,
    "accuracy": accuracy,
}


def register_reward(name: str, function: Reward) -> None:
    """Make a reward available under a name.

    Args:
        name: what `reward=` will accept.
        function: Measurement -> (N,) float32, finite for every measurement.

    Raises:
        ValueError: the name is taken.
    """
    if name in REWARDS:
        raise ValueError(f"a reward cannot be registered as {name!r}: the name is taken")
    REWARDS[name] = function


def reward_terms(name: str, m: Measurement, diverged: Tensor) -> dict[str, Tensor]:
    """The terms whose sum is the reward: the named function, and the penalty of divergence in its place.

    Raises:
        ValueError: the name is not registered.
    """
    return {
        "reward_" + name.replace("-", "_"): torch.where(diverged, 0.0, REWARDS[name](m)),
        "reward_divergence": torch.where(diverged, DIVERGENCE_PENALTY, 0.0),
    }


def safe_log(values: Tensor) -> Tensor:
    """Natural logarithm, of at least 1e-10."""
    return values.clamp(min=1e-10).log()
