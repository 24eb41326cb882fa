"""Where an observation has its numbers for each class."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


def class_columns(widths: Sequence[int]) -> tuple[Int64, Int64]:
    """The columns (K, P) of the P features that are one number for each of K classes, and (C,) of the other features.

    widths: how many numbers each feature is, in the order of the observation: 1 or K.
    """
    widths_ = np.asarray(widths, np.int64)
    starts, n_classes = widths_.cumsum() - widths_, int(widths_.max())
    own = starts[widths_ > 1]
    return own + np.arange(n_classes)[:, None], starts[widths_ == 1]
