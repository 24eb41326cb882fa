"""The info of the single environment: plain numbers by name."""

from collections import defaultdict
from typing import Any

import numpy as np
import torch

from qan_gym.core.training import Info

SCORES = ("test_loss", "test_accuracy")  # NaN before the end of an episode


class Score(np.float64):
    """A number that is NaN until it is measured; two such NaN are equal, as other NaN are not.

    So the infos of two equal steps are equal, which Gymnasium's `check_env` demands.
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        """Equality of numbers, and of two scores that are not measured."""
        if isinstance(other, Score) and np.isnan(self) and np.isnan(other):
            return True
        return bool(super().__eq__(other))

    def __ne__(self, other: object) -> bool:
        """Not equal."""
        return not self == other

    __hash__ = np.float64.__hash__

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle, which would give an np.float64: infos come from other processes too."""
        return Score, (float(self),)


def scalars(info: Info) -> dict[str, Any]:
    """The info of the only run: np.float64, int and bool; `Score` where a number is NaN before the end.

    Floats are NumPy's, which are Python's too, because TorchRL reads only what has a dtype. Integers and flags are
    Python's: Gymnasium's vector environments and its conversions to tensors do not take NumPy's bool.
    """
    elsewhere = {name: value for name, value in info.items() if _is_on_another_device(value)}
    values = first_values(elsewhere)
    return {name: _scalar(name, values[name] if name in values else info[name].tolist()[0]) for name in info}


def first_values(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The first value of each, by name; they come from the device in one transfer for each dtype."""
    names_of = defaultdict(list)
    values: dict[str, Any] = {}
    for name, tensor in tensors.items():
        names_of[tensor.dtype].append(name)
    for names in names_of.values():
        values |= zip(names, torch.stack([tensors[name][0] for name in names]).tolist(), strict=True)
    return values


def _is_on_another_device(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type != "cpu"


def _scalar(name: str, value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return Score(value) if name in SCORES else np.float64(value)
