"""Weights of the classes in the training loss, by the effective number of their images (Cui et al. 2019).

arXiv:1901.05555: n images of a class are worth (1 - beta^n) / (1 - beta) different ones, and a class is weighted by the
inverse. With beta = 0 all classes are weighted alike, with beta = 1 by the inverse of their sizes. The weights have the
mean 1 over the training images, so that with beta = 1 the mean of the gradient is that of mini-batches in which all
classes are alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def class_weights(labels: NDArray[Any], n_classes: int, beta: float) -> NDArray[np.float32] | None:
    """The weights, (K,) float32 above 0; 1 of a class without images; None where beta is 0: nothing is weighted.

    Args:
        labels: (n,) integers, of the training images.
        n_classes: K.
        beta: from 0 to 1.
    """
    if beta == 0:
        return None
    sizes = np.bincount(labels, minlength=n_classes).astype(np.float64)
    there = sizes > 0
    effective = sizes if beta == 1 else -np.expm1(sizes * np.log(beta)) / (1 - beta)
    weights = 1 / np.where(there, effective, 1.0)
    weights *= sizes.sum() / (weights * sizes).sum()
    return np.where(there, weights, 1.0).astype(np.float32)
