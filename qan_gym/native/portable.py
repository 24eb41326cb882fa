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
        self.exp, self.log, self.cos = map(_elementwise, (found.qan_exp, found.qan_log, found.qan_cos))

    def __getattr__(self, name: str) -> Any:
        """Everything else is NumPy's."""
        return getattr(NUMPY, name)


def _elementwise(function: Callable[[int, int, int], None]) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """A function of doubles, from one address to another, as a function of arrays that keeps their type."""

    def apply(x: NDArray[Any]) -> NDArray[Any]:
        given = np.ascontiguousarray(x, np.float64)
        result = np.empty_like(given)
        function(given.ctypes.data, result.ctypes.data, given.size)
        return result if x.dtype == np.float64 else result.astype(x.dtype)

    return apply
