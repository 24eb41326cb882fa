"""Actions as they are given, checked and turned into what the core takes."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from qan_gym.utils.own_settings import own_settings
from qan_gym.utils.validation import LARGEST_NUMBER, shown


def single_action(space: spaces.Space[Any], action: Any) -> NDArray[Any]:
    """One action, with a leading axis of 1.

    Raises:
        ValueError: it is not in the space (of a Box only shape and finiteness count: the game clips).
    """
    if isinstance(space, spaces.Box):
        try:
            value = np.array(action, np.float64)
        except (TypeError, ValueError, OverflowError):
            value = np.array(np.nan)
        if value.shape != space.shape or not np.isfinite(value).all():
            raise ValueError(f"the action must be finite numbers in an array of shape {space.shape}: {shown(action)}")
        return np.clip(value[None], -LARGEST_NUMBER, LARGEST_NUMBER).astype(np.float32)
    if isinstance(space, spaces.MultiDiscrete):
        value = _numbers(action)
        if value.dtype.kind not in "iu" or not space.contains(value.astype(space.dtype)):
            raise ValueError(f"the action must be in {space}: {shown(action)}")
        return value.astype(np.int64)[None]
    if type(action) is int and isinstance(space, spaces.Discrete) and 0 <= action - int(space.start) < int(space.n):
        return np.array([action])
    if not space.contains(_numbers(action)[()]) and not space.contains(action):
        raise ValueError(f"the action must be in {space}: {shown(action)}")
    return np.array([int(action)])


@own_settings()
def row_actions(space: spaces.Space[Any], num_envs: int, actions: Any) -> Tensor:
    """The actions of N rows, (N, *shape).

    Args:
        space: of one row.
        num_envs: N.
        actions: an array, or a tensor on any device.

    Raises:
        ValueError: wrong shape, dtype or range. The range of tensors on a CUDA device is not checked: to look at it
            would make the host wait.
    """
    values = actions if isinstance(actions, Tensor) else _as_tensor(actions)
    shape = (num_envs, *(space.shape or ()))
    if values.shape != shape:
        raise ValueError(f"the actions must have shape {shape}, not {tuple(values.shape)}")
    if isinstance(space, spaces.Box):
        if not values.is_floating_point() or not (values.is_cuda or values.isfinite().all()):
            raise ValueError(f"the actions must be finite floats in {space}, not {shown(actions)}")
        return values.to(torch.float32).clamp(-LARGEST_NUMBER, LARGEST_NUMBER)
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise ValueError(f"the actions must be integers, not {str(values.dtype).removeprefix('torch.')}")
    if not values.is_cuda:
        first = torch.as_tensor(np.asarray(getattr(space, "start", 0)))
        count = torch.as_tensor(np.asarray(space.nvec if isinstance(space, spaces.MultiDiscrete) else space.n))  # type: ignore[attr-defined]
        if not ((values >= first) & (values < first + count)).all():
            raise ValueError(f"each action must be in {space}: {shown(actions)}")
    return values


def tried_actions(space: spaces.Space[Any], count: int) -> list[Any]:
    """All actions of a Discrete space; of a Box of one number, `count` from the least to the largest.

    Raises:
        ValueError: the space is another one.
    """
    if isinstance(space, spaces.Discrete):
        return [int(space.start) + action for action in range(int(space.n))]
    if isinstance(space, spaces.Box) and space.shape == (1,):
        return list(np.linspace(space.low, space.high, count, dtype=np.float32))
    raise ValueError(f"there are too many actions to try all in {space}: give `actions`")


def _as_tensor(actions: Any) -> Tensor:
    """A copy of what may be anything; integers as int64, of which PyTorch knows everything.

    Raises:
        ValueError: they are not numbers, or not an array of them.
    """
    array = _numbers(actions)
    if array.dtype.kind not in "biufc":
        raise ValueError(f"the actions must be an array of numbers, not {shown(actions)}")
    return torch.from_numpy(array.astype(np.int64) if array.dtype.kind in "iu" else array)


def _numbers(value: Any) -> NDArray[Any]:
    """A copy as an array.

    Raises:
        ValueError: it is a list of lists of different lengths, or cannot be an array for another reason.
    """
    try:
        return np.array(value)
    except Exception as error:  # whatever an object's conversion raises
        raise ValueError(f"an action must be a number or an array of numbers, not {shown(value)}") from error
