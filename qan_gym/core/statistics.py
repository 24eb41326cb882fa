"""The observation "statistics": what any practitioner can measure of a training, as numbers without a scale.

An action covers the mini-batches t = 1, ..., m. g_t is the gradient of the mean loss of mini-batch t times the loss
scale, before weight decay; l_t that loss, before the update; u_t the update as applied, with momentum, weight decay and
Adam's scaling, without the pull. Vectors are over the trained parameters (see `qan_gym.core.measurements`). The engine
measures `MEASURED` and the l_t inside the step; `after_action` brings the running means up to date; the features read
them.
"""

from __future__ import annotations

import numpy as np

from qan_gym.config import TaskConfig
from qan_gym.core.features import feature
from qan_gym.core.reward import safe_log
from qan_gym.core.run_state import RunState
from qan_gym.utils.arrays import Array

# The columns of `RunState.measured`, in the order of `enum measurement` of the kernels. Means over the mini-batches of
# an action:
MEANS = (
    "gradient_norm",  # |g_t|
    "gradient_cosine",  # of g_t and the gradient before; 0 where one of them is 0, or is none
    "update_norm",  # |u_t|
    "predicted_decrease",  # -(g_t . u_t)
)
MEASURED = (
    *MEANS,
    "displacement",  # |w at the action's end - w at its start|
    "displacement_cosine",  # of this displacement and that of the action before; 0 where one of them is 0, or is none
    "weight_norm",  # |w| at the action's end
)

# The columns of `RunState.logs`: their logarithms, of what lies within LEAST and LARGEST. "chance" is the loss of equal
# probabilities for all classes, "first_loss" that of the first mini-batch of the action.
QUANTITIES = (
    *("fast_loss", "slow_loss", "best_loss", "first_loss", "chance"),
    *("gradient_norm", "update_norm", "predicted_decrease", "weight_norm"),
)
_MEASURED = {name: column for column, name in enumerate(MEASURED)}
_QUANTITIES = {name: column for column, name in enumerate(QUANTITIES)}
LEAST, LARGEST = 1e-30, 1e30

FAST, SLOW = 0.5, 0.15  # least weights of a new loss in the two running means, which begin as means
NO_LOSS = 1e3  # a loss that is not finite counts as so many times chance


# --- bookkeeping ----------------------------------------------------------------------------------------------------


def after_action(run: RunState) -> None:
    """Bring running means and logarithms up to date with what the last action has measured."""
    xp, count = run.xp, run.per_action  # (N,)
    with np.errstate(all="ignore"):
        chance = run.loss_scale * xp.astype(xp.log(run.n_classes), xp.float32)  # (N,)
        losses = xp.where(xp.isfinite(run.losses), run.losses, NO_LOSS * chance[:, None])  # (N, M)
        loss = _mean_loss(run, losses)
        share = count / run.clock
        run.fast_loss += xp.maximum(share, FAST) * (loss - run.fast_loss)
        run.slow_loss += xp.maximum(share, SLOW) * (loss - run.slow_loss)
        run.best_loss[:] = xp.minimum(run.best_loss, run.fast_loss)
        run.straightness[:] = _measured(run, "displacement") / (count * _measured(run, "update_norm"))
        found = {"fast_loss": run.fast_loss, "slow_loss": run.slow_loss, "best_loss": run.best_loss}
        found |= {"first_loss": losses[:, 0], "chance": chance}
        values = xp.stack([found[name] if name in found else _measured(run, name) for name in QUANTITIES], axis=1)
        logs = xp.log(xp.minimum(xp.maximum(values, LEAST), LARGEST))  # (N, quantities)
        first = (run.clock <= count)[:, None]  # whether the action was the first of the episode
        run.logs_before[:] = xp.where(first, logs, run.logs)
        run.first_logs[:] = xp.where(first, logs, run.first_logs)
        run.logs[:] = logs


def _mean_loss(run: RunState, losses: Array) -> Array:
    """The mean of the losses (N, M) of an action, (N,); writes their slope and variation, which are 0 where M is 1."""
    xp, count = run.xp, run.per_action  # (N,)
    if losses.shape[1] == 1:
        return losses[:, 0]
    place = xp.arange(losses.shape[1], device=losses.device)  # (M,), some behind the last mini-batch of a run
    half = (count // 2)[:, None]  # of an odd number, the one in the middle belongs to neither half
    taken = place < count[:, None]  # (N, M)
    losses = xp.where(taken, losses, 0.0)
    loss = xp.sum(losses, axis=1) / count
    change = xp.sum(losses * (place >= count[:, None] - half), axis=1) - xp.sum(losses * (place < half), axis=1)
    run.loss_slope[:] = xp.where(count > 1, change / xp.maximum(half[:, 0], 1) / loss, 0.0)
    deviation = (losses - loss[:, None]) * taken
    run.loss_variation[:] = xp.sqrt(xp.sum(deviation * deviation, axis=1) / count) / loss
    return loss


def _measured(run: RunState, name: str) -> Array:
    return run.measured[:, _MEASURED[name]]


def _log(logs: Array, name: str) -> Array:
    return logs[:, _QUANTITIES[name]]


def _log_ratio(run: RunState, name: str, other: str) -> Array:
    """ln(one quantity / another), (N,), after the last action; 0 before the first."""
    return _log(run.logs, name) - _log(run.logs, other)


def _log_to_first(run: RunState, name: str, first: str | None = None) -> Array:
    """ln(a quantity / the same, or another, after the first action)."""
    return _log(run.logs, name) - _log(run.first_logs, first or name)


def _log_change(run: RunState, name: str) -> Array:
    """ln(a quantity / the same before the last action)."""
    return _log(run.logs, name) - _log(run.logs_before, name)


def _after_first(run: RunState, values: Array) -> Array:
    """0 before the first action."""
    return values * (run.clock > 0)


# --- the features ---------------------------------------------------------------------------------------------------


@feature()
def budget_share(run: RunState) -> Array:
    """2 (mini-batches done / budget) - 1."""
    return 2 * run.clock / run.budget - 1


@feature(needs_measurements=True)
def log_rate_from_start(run: RunState) -> Array:
    """ln(learning rate, before the base schedule / that of the episode's start) / 2."""
    return run.xp.log(run.chosen_learning_rate / run.start_learning_rate) / 2


@feature(needs_measurements=True)
def last_change(run: RunState) -> Array:
    """Change of ln(learning rate, before the base schedule) by the last action."""
    return run.xp.log(run.chosen_learning_rate / run.chosen_learning_rate_before)


@feature(needs_measurements=True)
def log_loss_to_chance(run: RunState) -> Array:
    """ln(fast running mean of the loss / loss scale ln K)."""
    return _log_ratio(run, "fast_loss", "chance")


@feature(needs_measurements=True)
def log_loss_to_first(run: RunState) -> Array:
    """ln(fast running mean of the loss / loss of the first mini-batch) / 2."""
    return _log_to_first(run, "fast_loss", "first_loss") / 2


@feature(needs_measurements=True)
def log_loss_fast_to_slow(run: RunState) -> Array:
    """2 ln(fast running mean of the loss / slow one)."""
    return 2 * _log_ratio(run, "fast_loss", "slow_loss")


@feature(needs_measurements=True)
def log_loss_slow_change(run: RunState) -> Array:
    """3 ln(slow running mean of the loss / that before the last action)."""
    return 3 * _log_change(run, "slow_loss")


@feature(needs_measurements=True)
def log_loss_to_best(run: RunState) -> Array:
    """2 ln(fast running mean of the loss / its least so far)."""
    return 2 * _log_ratio(run, "fast_loss", "best_loss")


@feature(needs_measurements=True)
def loss_slope(run: RunState) -> Array:
    """3 (mean l_t of the second half of the last action - of its first half) / mean l_t."""
    return 3 * run.loss_slope


@feature(needs_measurements=True)
def loss_variation(run: RunState) -> Array:
    """2 (standard deviation of the l_t of the last action) / mean l_t."""
    return 2 * run.loss_variation


@feature(needs_measurements=True)
def log_gradient_to_first(run: RunState) -> Array:
    """0.7 ln(mean gradient norm / that of the first action)."""
    return 0.7 * _log_to_first(run, "gradient_norm")


@feature(needs_measurements=True)
def log_gradient_change(run: RunState) -> Array:
    """ln(mean gradient norm / that of the action before)."""
    return _log_change(run, "gradient_norm")


@feature(needs_measurements=True)
def straightness(run: RunState) -> Array:
    """2 (displacement by the last action / sum of the norms of its updates)."""
    return 2 * run.straightness


@feature(needs_measurements=True)
def displacement_cosine(run: RunState) -> Array:
    """2 (cosine of the displacements by the last action and by the one before)."""
    return 2 * _measured(run, "displacement_cosine")


@feature(needs_measurements=True)
def gradient_cosine(run: RunState) -> Array:
    """2 (mean cosine of the gradients of successive mini-batches)."""
    return 2 * _measured(run, "gradient_cosine")


@feature(needs_measurements=True)
def log_update_to_weight(run: RunState) -> Array:
    """(ln(mean update norm / weight norm) + 5) / 2."""
    return _after_first(run, (_log_ratio(run, "update_norm", "weight_norm") + 5) / 2)


@feature(needs_measurements=True)
def log_weight_to_first(run: RunState) -> Array:
    """ln(weight norm / that after the first action)."""
    return _log_to_first(run, "weight_norm")


@feature(needs_measurements=True)
def log_predicted_decrease(run: RunState) -> Array:
    """(ln(mean of -g_t . u_t / fast running mean of the loss) + 3) / 2; -10 where the product is positive."""
    return _after_first(run, (_log_ratio(run, "predicted_decrease", "fast_loss") + 3) / 2)


@feature()
def log_budget(run: RunState) -> Array:
    """ln(budget / 300 mini-batches)."""
    return run.xp.log(run.budget / 300)


@feature()
def log_batch_size(run: RunState) -> Array:
    """ln(batch size / 12)."""
    return run.xp.log(run.batch_size / 12)


@feature()
def log_epochs(run: RunState) -> Array:
    """ln(budget in epochs) / 2."""
    return run.xp.log(run.budget * run.batch_size / run.train_size) / 2


@feature()
def log_classes(run: RunState) -> Array:
    """ln(number of classes / 5)."""
    return run.xp.log(run.n_classes / 5)


@feature()
def log_validation_to_chance(run: RunState) -> Array:
    """ln(validation loss / ln K), as last measured."""
    return safe_log(run.xp, run.validation_loss / run.xp.log(run.n_classes))


STATISTICS = (
    *("budget_share", "log_rate_from_start", "last_change"),
    *("log_loss_to_chance", "log_loss_to_first", "log_loss_fast_to_slow", "log_loss_slow_change", "log_loss_to_best"),
    *("loss_slope", "loss_variation", "log_gradient_to_first", "log_gradient_change"),
    *("straightness", "displacement_cosine", "gradient_cosine"),
    *("log_update_to_weight", "log_weight_to_first", "log_predicted_decrease"),
    *("momentum", "log_budget", "log_batch_size", "log_epochs", "log_classes"),
)


def statistics_of(config: TaskConfig) -> tuple[str, ...]:
    """The names of the features of the observation "statistics"."""
    return STATISTICS if config.validate_every is None else (*STATISTICS, "log_validation_to_chance")
