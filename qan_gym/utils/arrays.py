"""Arrays of the two kinds that hold numbers of runs: NumPy's on CPU, PyTorch's tensors on other devices.

What happens once per step and per run (actions, clocks, score line, reward) is written against the Array API standard
(data-apis.org/array-api), so that one definition serves both: on CPU NumPy's small operations cost a fraction of
PyTorch's, on CUDA the same lines are tensor operations that a graph captures.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = Any  # NDArray[Any] | Tensor, whose operators and slices are the same


class _CapturableTorch:
    """`array_api_compat.torch`, but for functions of a tensor and a number.

    There the number becomes a tensor on the host that is copied to the device, which a captured graph cannot do.
    """

    where = staticmethod(torch.where)

    def __getattr__(self, name: str) -> Any:
        """Everything else."""
        import array_api_compat.torch  # nothing on CPU needs it

        return getattr(array_api_compat.torch, name)

    @staticmethod
    def maximum(x: Tensor, y: Tensor | float) -> Tensor:
        """The larger of each two; NaN where one is."""
        return torch.maximum(x, y) if isinstance(y, Tensor) else x.clamp(min=y)

    @staticmethod
    def minimum(x: Tensor, y: Tensor | float) -> Tensor:
        """The smaller of each two; NaN where one is."""
        return torch.minimum(x, y) if isinstance(y, Tensor) else x.clamp(max=y)


NUMPY = np
TORCH = _CapturableTorch()


def as_array(tensor: Tensor) -> Array:
    """The same memory as NumPy's array where the tensor is on CPU; else the tensor."""
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def as_tensor(array: Array) -> Tensor:
    """The same memory as a tensor; a copy of an array that must not be written to."""
    if isinstance(array, np.ndarray):
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    tensor: Tensor = array
    return tensor


def to_numpy(array: Array) -> NDArray[Any]:
    """On the host; not a copy where it is there already."""
    return array if isinstance(array, np.ndarray) else array.cpu().numpy()
