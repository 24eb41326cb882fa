"""Counterfactuals: copies of the training that is going on, one per action, play on in lock-step.

Not named `counterfactual`, because `qan_gym.counterfactual` would then be the module wherever that was imported first.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray
from torch import Tensor

from qan_gym.core.reward import safe_log
from qan_gym.core.training import LOSS_LIMIT, Info, StepResult
from qan_gym.env import QanEnv

GRID = 5  # values that are tried of each number of a continuous action
MOST_ACTIONS = 125  # that are tried by default

# (observations (A, D) float32, infos name -> (A,)) -> A actions; an action; or None.
Then = Callable[[NDArray[np.float32], dict[str, NDArray[Any]]], Any] | int | float | NDArray[Any] | None


@dataclass(frozen=True, eq=False)
class Counterfactual:
    """The training k steps after each of A actions; every array but `actions` is (A,), in the order of the actions.

    Attributes:
        actions: the first actions that were tried, (A,), or (A, numbers) where an action is several numbers; int64, or
            float32 where they are continuous.
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
        """The greedy oracle's choice: the action of the lowest validation loss, the first of equals.

        The validation loss, because that is what the game is about; the smoothed loss, which the reward is made of,
        still remembers the mini-batches before the action. What diverged is the worst.
        """
        return plain_action(self.actions[self._log_losses().argmin()])

    def regret(self, action: Any) -> float:
        """How much lower the oracle's ln(validation loss) is than that of an action: nats of log loss, at least 0.

        Raises:
            ValueError: the action is not among those that were tried.
        """
        tried = self.actions.reshape(len(self.actions), -1)
        places = np.flatnonzero((tried == np.asarray(action, self.actions.dtype).reshape(-1)).all(axis=1))
        if len(places) == 0:
            raise ValueError(f"action {action!r} was not tried; there are {self.actions.tolist()}")
        losses = self._log_losses()
        return float(losses[places[0]] - losses.min())

    def _log_losses(self) -> NDArray[np.float64]:
        """ln(validation loss), (A,), what diverged at its limit."""
        losses = torch.from_numpy(np.where(self.diverged, LOSS_LIMIT, self.validation_loss))
        logs: NDArray[np.float64] = safe_log(losses).numpy()
        return logs


def counterfactual(
    env: gym.Env[Any, Any], k: int, *, actions: Sequence[Any] | NDArray[Any] | None = None, then: Then = None
) -> Counterfactual:
    """Every action's outcome after k steps from where an episode stands.

    One copy of the training per action goes on in lock-step, all with the same data in the same order (in the
    mini-batch game, the same order within each class). Row a is, bit for bit on one CPU thread with an even batch
    size, what `env.step(a)` and k - 1 further steps would give. The environment stays as it is, with its random
    streams; its wrappers have no part in this. The test set is not read.

    Args:
        env: a single environment of qan-gym, wrapped or not, within an episode.
        k: steps, at least 1; a row whose episode ends before stops there.
        actions: the first actions to try, A of them; None: `actions_to_try`.
        then: what is played after the first action. None: what goes on when nobody acts (`Game.continuation`), the same
            in all rows, so that the rows differ by one action: in the learning-rate game what leaves the learning rate
            (or what the schedule multiplies) as it is, in the mini-batch game the classes in turn. An action: that one
            throughout. A function of the observations (A, D) float32 and infos, by name, (A,), which returns A actions:
            a policy.

    Returns:
        See `Counterfactual`.

    Raises:
        gymnasium.error.ResetNeeded: the episode is over or has not begun.
        ValueError: the environment is no single one of qan-gym, k is below 1, or an action is not in the action space.
    """
    inner = _single_env(env)
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k must be an integer of at least 1, not {k!r}")
    first = _as_tensor(inner, actions_to_try(inner.action_space) if actions is None else actions)  # (A, *shape)
    next_actions = _next_actions(inner, then, first)
    fork = inner.training.fork(len(first))
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
        returns += np.where(playing, done.reward.cpu().numpy().astype(np.float64), 0)
        if fork.run.over.all():
            break
        chosen = next_actions(number, done)
    fork.close()
    return Counterfactual(
        actions=(first if first[0].numel() > 1 else first.flatten()).cpu().numpy(),
        steps=steps,
        learning_rate=kept["learning_rate"],
        smoothed_loss=kept["smoothed_loss"].astype(np.float64),
        validation_loss=kept["validation_loss"].astype(np.float64),
        returns=returns,
        diverged=kept["diverged"],
    )


def actions_to_try(space: spaces.Space[Any]) -> NDArray[Any]:
    """The first actions of `counterfactual`, where none are given.

    All of a Discrete or MultiDiscrete space, a grid of 5 values per number of a Box; where these are more than 125,
    only 5 with all numbers at the same place between their lowest and their highest.

    Returns:
        (A,) int64 of a Discrete space; (A, *shape), int64 or float32, of the others.
    """
    if isinstance(space, spaces.Discrete):
        return np.arange(space.start, space.start + space.n)
    if isinstance(space, spaces.MultiDiscrete):
        first, dtype = space.start.reshape(-1), np.dtype(np.int64)
        axes = [start + np.arange(count) for start, count in zip(first, space.nvec.reshape(-1), strict=True)]
    else:
        assert isinstance(space, spaces.Box)
        ends, dtype = (space.low.reshape(-1), space.high.reshape(-1)), np.dtype(np.float32)
        axes = [np.linspace(low, high, GRID) for low, high in zip(*ends, strict=True)]
    if math.prod(map(len, axes)) <= MOST_ACTIONS:
        actions = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    else:
        places = np.linspace(0, 1, GRID)
        actions = np.stack([axis[(places * (len(axis) - 1)).round().astype(int)] for axis in axes], axis=-1)
    return actions.reshape(-1, *(space.shape or ())).astype(dtype)


def plain_action(action: Any) -> Any:
    """An action as a number, or as a tuple of numbers where it is several."""
    numbers = tuple(np.asarray(action).reshape(-1).tolist())
    return numbers[0] if len(numbers) == 1 else numbers


def _single_env(env: gym.Env[Any, Any]) -> QanEnv:
    inner = getattr(env, "unwrapped", env)
    if not isinstance(inner, QanEnv):
        raise ValueError(f"counterfactual needs a single environment of qan-gym, made by gym.make, not {env!r}")
    if inner.training.run.over[0]:
        raise ResetNeeded("the episode is over or has not begun: there is nothing to look ahead from before reset()")
    return inner


def _as_tensor(env: QanEnv, actions: Any) -> Tensor:
    """The actions as the core takes them, (A, *shape).

    Raises:
        ValueError: one is not in the action space, or there is none.
    """
    if len(actions) == 0:
        raise ValueError("there must be at least one action to try")
    if not isinstance(env.action_space, spaces.Discrete):
        actions = [np.reshape(action, env.action_space.shape or ()) for action in actions]
    return torch.cat([env._as_tensor(action) for action in actions])


def _next_actions(env: QanEnv, then: Then, first: Tensor) -> Callable[[int, StepResult], Tensor]:
    """A function: (the number of the last step, its result) -> the actions of the next step."""
    parts = env.training.parts
    if callable(then):
        return lambda number, done: _checked(env, then(done.observation.cpu().numpy(), _on_host(done.info)), first)
    if then is not None:
        throughout = _as_tensor(env, [then]).expand_as(first)
        return lambda number, done: throughout
    step = int(env.training.run.batch[0]) // parts.config.batches_per_action
    return lambda number, done: parts.game.continuation(parts.config, parts.n_classes, step + number + 1, first)


def _checked(env: QanEnv, actions: Any, first: Tensor) -> Tensor:
    """The actions that a policy returned, (A, *shape).

    Raises:
        ValueError: it is not one action per row.
    """
    chosen = _as_tensor(env, actions)
    if chosen.shape != first.shape:
        raise ValueError(f"`then` must return one action per row: {len(first)}, not {len(chosen)}")
    return chosen


def _on_host(info: Info) -> dict[str, NDArray[Any]]:
    return {name: value.cpu().numpy().copy() for name, value in info.items()}
