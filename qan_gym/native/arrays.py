"""Addresses of NumPy arrays for C, which are given out once an array is checked to be as C expects it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qan_gym.native.library import Memory


def shape_of(name: str, array: Any, axes: int) -> tuple[int, ...]:
    """The shape of what is checked to be an array with some number of axes, none of them empty.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(array, np.ndarray) or array.ndim != axes or 0 in array.shape:
        raise ValueError(f"{name}: it must be an array with {axes} axes, none of them empty")
    return tuple(array.shape)


class Addresses:
    """Gives addresses of arrays and holds on to the arrays, so that the addresses stay valid as long as this does."""

    def __init__(self) -> None:
        """Without arrays."""
        self._arrays: list[NDArray[Any]] = []

    def of(self, name: str, array: Any, dtype: Any, shape: tuple[int, ...], written: bool = False) -> int:
        """The address of a contiguous array.

        Args:
            name: what messages call it.
            array: the array.
            dtype: that it must have, in this machine's order of bytes.
            shape: that it must have.
            written: C writes to it.

        Raises:
            ValueError: it is none, or not as described.
        """
        self._check(name, array, dtype, shape, written)
        if not array.flags.c_contiguous:
            raise ValueError(f"{name}: it must be contiguous")
        return self._keep(array)

    def memory(self, name: str, array: Any, number: int, size: int, written: bool = False) -> Memory:
        """The address of (number, size) float32; there may be room between the rows, but they must not overlap.

        Raises:
            ValueError: it is none, or not as described.
        """
        self._check(name, array, np.float32, (number, size), written)
        step, width = array.strides[0], array.itemsize
        if not array[0].flags.c_contiguous or step % width or (number > 1 and step < size * width):
            raise ValueError(f"{name}: its rows must be contiguous and must not overlap")
        return Memory(self._keep(array), step // width)

    def _check(self, name: str, array: Any, dtype: Any, shape: tuple[int, ...], written: bool) -> None:
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
            what = f"{array.shape} of {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
            raise ValueError(f"{name}: it must be {shape} of {np.dtype(dtype)}, not {what}")
        if not array.flags.aligned:
            raise ValueError(f"{name}: it must be aligned")
        if written and not array.flags.writeable:
            raise ValueError(f"{name}: it is read-only")

    def _keep(self, array: NDArray[Any]) -> int:
        self._arrays.append(array)
        return array.ctypes.data
