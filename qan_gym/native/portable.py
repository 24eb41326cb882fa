"""NumPy's functions, but for those whose last bits differ between machines: exp, log and cos are the library's.

Sums of few terms, products, quotients, comparisons and choices are the same everywhere; NumPy's exp, log and cos depend
on the processor and on the C library.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qan_gym.native import library
from qan_gym.utils.arrays import NUMPY


class PortableNumpy:
    """The namespace of the arrays around the kernels: NumPy's, with the library's exp, log and cos."""

    def __init__(self) -> None:
        """Raises ValueError: there is no library."""
        found = library.find()
        if isinstance(found, str):
            raise ValueError(found)
        self.exp = _elementwise(found.qan_exp, found.qan_exp_of)
        self.log = _elementwise(found.qan_log, found.qan_log_of)
        self.cos = _elementwise(found.qan_cos, found.qan_cos_of)

    def __getattr__(self, name: str) -> Any:
        """Everything else is NumPy's; found once."""
        value = getattr(NUMPY, name)
        setattr(self, name, value)
        return value


def _elementwise(
    of_array: Callable[[int, int, int], None], of_one: Callable[[float], float]
) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """A function of float64 or float32 arrays, which keeps their type, from one of addresses and one of numbers."""

    def apply(x: NDArray[Any]) -> NDArray[Any]:
        if x.size == 1:  # without addresses: a fraction of the time
            one = np.empty(x.shape, x.dtype)
            one[...] = of_one(x.item())
            return one
        given = np.ascontiguousarray(x, np.float64)
        result = np.empty_like(given)
        of_array(given.ctypes.data, result.ctypes.data, given.size)
        return result.astype(x.dtype, copy=False)

    return apply
