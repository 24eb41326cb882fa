"""Counterfactuals: the outcome of each action, from copies of a training that go on in lock-step, one per action.

The module is not named `counterfactual`, because `qan_gym.counterfactual` is the function.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from qan_gym.actions import single_action, tried_actions
from qan_gym.core.reward import safe_log
from qan_gym.core.training import LOSS_LIMIT, Info, StepResult
from qan_gym.env import QanEnv
from qan_gym.utils.arrays import NUMPY, to_numpy

GRID = 5  # actions that are tried of a Box

# (observations (A, D) float32, infos name -> (A,)) -> actions (A,); an action; or None.
Then = Callable[[NDArray[np.float32], dict[str, NDArray[Any]]], Any] | int | float | NDArray[Any] | None


@dataclass(frozen=True, eq=False)
class Counterfactual:
    """The outcomes of A actions after k steps; every array is (A,), in the order of `actions`.

    Attributes:
        actions: the first actions that were tried, int64 or float32; (A, *shape) where an action has several numbers.
        steps: int64, the steps that were played: k, or fewer where the episode ended.
        learning_rate: float64, of the last mini-batch.
        smoothed_loss: float64, nats, the running mean of the mini-batches' losses.
        validation_loss: float64, nats, on the whole validation split after the last step.
        returns: float64, the sum of the rewards.
        diverged: bool, the loss or a weight was not finite.
    """

    actions: NDArray[Any]
    steps: NDArray[np.int64]
    learning_rate: NDArray[np.float64]
    smoothed_loss: NDArray[np.float64]
    validation_loss: NDArray[np.float64]
    returns: NDArray[np.float64]
    diverged: NDArray[np.bool_]

    @property
    def best(self) -> Any:
        """The action with the lowest validation loss, the first of equals: the choice of a greedy oracle.

        By the validation loss, because the running mean of the training loss still contains mini-batches before the
        action. A diverged run is the worst.
        """
        return self.actions[self._log_losses().argmin()].tolist()

    def regret(self, action: Any) -> float:
        """ln(validation loss) of an action minus that of the best one, in nats, at least 0.

        Raises:
            ValueError: the action is not among those that were tried.
        """
        own = np.asarray(action, self.actions.dtype).reshape(self.actions.shape[1:])
        places = np.flatnonzero((self.actions == own).reshape(len(self.actions), -1).all(axis=1))
        if len(places) == 0:
            raise ValueError(f"action {action!r} was not tried; there are {self.actions.tolist()}")
        losses = self._log_losses()
        return float(losses[places[0]] - losses.min())

    def _log_losses(self) -> NDArray[np.float64]:
        """ln(validation loss), (A,); of diverged runs ln(LOSS_LIMIT)."""
        losses = np.where(self.diverged, LOSS_LIMIT, self.validation_loss)
        logs: NDArray[np.float64] = safe_log(NUMPY, losses)
        return logs


def counterfactual(
    env: gym.Env[Any, Any], k: int, *, actions: Sequence[Any] | NDArray[Any] | None = None, then: Then = None
) -> Counterfactual:
    """Every action's outcome after k steps from where an episode stands.

    One copy of the training per action goes on in lock-step, all with the same data in the same order (in the
    mini-batch game, the same order within each class). Row a is what `env.step(a)` and k - 1 further steps would give:
    bit for bit with the native engine; with PyTorch's where one thread computes, with an even batch size. The
    environment stays as it is, with its random streams; its wrappers are not used. The test set is not read.

    Args:
        env: a single environment of qan-gym, wrapped or not, within an episode.
        k: steps, at least 1; a row whose episode ends before stops there.
        actions: the first actions to try, A of them; None: all of a Discrete space, 5 from the least to the largest of
            a Box of one number.
        then: what is played after the first action. None: what the game's `continuation` says: in the learning-rate
            game the action that keeps the learning rate that was set; in the mini-batch game the classes in turn, the
            same in all rows, so that the rows differ by one action. An action: that one throughout. A function of the
            observations (A, D) float32 and infos, by name, (A,), which returns the actions (A,): a policy.

    Returns:
        See `Counterfactual`.

    Raises:
        gymnasium.error.ResetNeeded: the episode is over or has not begun.
        ValueError: the environment is no single one of qan-gym, k is below 1, or an action is not in the action space.
    """
    game = _single_env(env)
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k must be an integer of at least 1, not {k!r}")
    first = _as_array(game, tried_actions(game.action_space, GRID) if actions is None else actions)  # (A,) or (A, 1)
    follow = _next_actions(game, then, first)
    fork = game.training.fork(len(first))
    steps, returns = np.zeros(len(first), np.int64), np.zeros(len(first))
    kept: dict[str, NDArray[Any]] = {}
    chosen = first
    for number in range(k):
        playing = ~fork.run.over  # (A,)
        done = fork.step(chosen)
        if number == k - 1:
            fork.validate_unfinished()
        now = _on_host(done.info)
        kept = {name: np.where(playing, value, kept.get(name, value)) for name, value in now.items()}
        steps += playing
        returns += np.where(playing, to_numpy(done.reward).astype(np.float64), 0)
        if fork.run.over.all():
            break
        chosen = follow(number, done)
    fork.close()
    return Counterfactual(
        actions=_without_axes_of_one(first),
        steps=steps,
        learning_rate=kept["learning_rate"],
        smoothed_loss=kept["smoothed_loss"].astype(np.float64),
        validation_loss=kept["validation_loss"].astype(np.float64),
        returns=returns,
        diverged=kept["diverged"],
    )


def _single_env(env: gym.Env[Any, Any]) -> QanEnv:
    game = getattr(env, "unwrapped", env)
    if not isinstance(game, QanEnv):
        raise ValueError(f"counterfactual needs a single environment of qan-gym, made by gym.make, not {env!r}")
    if game.training.run.over[0]:
        raise ResetNeeded("the episode is over or has not begun: there is nothing to look ahead from before reset()")
    return game


def _as_array(game: QanEnv, actions: Any) -> NDArray[Any]:
    """The actions as the core takes them, (A,) or (A, *shape).

    Raises:
        ValueError: one is not in the action space, or there is none.
    """
    space = game.action_space
    values = [np.reshape(action, space.shape) if isinstance(space, gym.spaces.Box) else action for action in actions]
    if not values:
        raise ValueError("there must be at least one action to try")
    return np.concatenate([single_action(space, value) for value in values])


def _without_axes_of_one(actions: NDArray[Any]) -> NDArray[Any]:
    """(A,) where an action is one number."""
    return actions.flatten() if actions[0].size == 1 else actions


def _next_actions(game: QanEnv, then: Then, first: NDArray[Any]) -> Callable[[int, StepResult], NDArray[Any]]:
    """(the number of the last step, what it gave) -> the actions of the next."""
    parts = game.training.parts
    if callable(then):
        return lambda number, done: _checked(game, then(to_numpy(done.observation), _on_host(done.info)), first)
    if then is not None:
        throughout = np.broadcast_to(_as_array(game, [then]), first.shape)
        return lambda number, done: throughout
    step = int(game.training.run.batch[0]) // parts.config.batches_per_action
    return lambda number, done: parts.game.continuation(parts.config, parts.n_classes, step + number + 1, first)


def _checked(game: QanEnv, actions: Any, first: NDArray[Any]) -> NDArray[Any]:
    """The actions that a policy returned, (A,) or (A, *shape).

    Raises:
        ValueError: it is not one action per row.
    """
    chosen = _as_array(game, actions)
    if chosen.shape != first.shape:
        raise ValueError(f"`then` must return one action per row: {len(first)}, not {len(chosen)}")
    return chosen


def _on_host(info: Info) -> dict[str, NDArray[Any]]:
    return {name: to_numpy(value).copy() for name, value in info.items()}
