"""ZCA whitening, as the original's CIFAR-10 had it: global contrast normalisation, then a matrix learnt on the data.

Each image is centred and brought to a length of 55 over all its pixels and channels; then its distance from the mean
image is multiplied by (covariance of the training images + 0.1)^(-1/2). Source: Goodfellow et al. 2013, "Maxout
networks", section 5.2, with the constants of pylearn2's make_cifar10_gcn_whitened.py, which the original's images
came from.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from qan_gym.data.cache import cache_root, cached, locked
from qan_gym.utils.files import load_arrays, save_arrays

CONTRAST = 55.0  # the length of an image after contrast normalisation
LEAST_LENGTH = 1e-8  # before it; of a constant image 0 is left
REGULARISATION = 0.1  # added to every variance
MAX_VALUES = 8192  # pixels times channels; the matrix is the square of it
CHUNK = 4096  # images at once
FORMAT = 1  # to be raised when the same images come to give another matrix


@dataclass(frozen=True)
class Whitening:
    """A whitening transformation; D = C * H * W.

    Attributes:
        mean: (D,) float32, of the contrast-normalised training images.
        matrix: (D, D) float32, symmetric.
    """

    mean: Tensor
    matrix: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """Whiten images (n, C, H, W) uint8 -> float16, which is finer than they were."""
        parts = [((normalise_contrast(some) - self.mean) @ self.matrix).half() for some in images.split(CHUNK)]
        return torch.cat(parts).view(images.shape)


def normalise_contrast(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Images (n, C, H, W) -> (n, D), each of mean 0 and length 55; a constant image is 0."""
    pixels = images.flatten(1).to(dtype)
    pixels = pixels - pixels.mean(dim=1, keepdim=True)
    length = pixels.square().sum(dim=1, keepdim=True).sqrt()
    return pixels * (CONTRAST / length.masked_fill(length < LEAST_LENGTH, torch.inf))


def whitening_of(images: Tensor) -> Whitening:
    """The whitening of training images, from the user's cache or computed (a minute for CIFAR-10) and cached.

    Args:
        images: (n, C, H, W) uint8.

    Raises:
        ValueError: the images are too large for a matrix of all pairs of pixels, or the file in the cache is damaged.
    """
    values = images[0].numel()
    if values > MAX_VALUES:
        raise ValueError(
            f"preprocess='whiten' needs a matrix of the square of the {values} values of an image of "
            f"{tuple(images.shape[1:])}; at most {MAX_VALUES} values: use smaller images or preprocess='normalise'"
        )
    digest = hashlib.sha256(f"{FORMAT} {tuple(images.shape)}".encode())
    digest.update(images.contiguous().numpy().tobytes())
    name = f"{digest.hexdigest()[:16]}.safetensors"
    path = cached("whitening", name)
    if path is None:
        with locked(name, "it computes the whitening of the images"):
            path = cached("whitening", name)  # where another process has computed it meanwhile
            if path is None:
                whitening = compute_whitening(images)
                arrays = {"mean": whitening.mean.numpy(), "matrix": whitening.matrix.numpy()}
                save_arrays(cache_root() / "whitening" / name, arrays, {"images": len(images)})
                return whitening
    return _load(path, values)


def _load(path: Path, values: int) -> Whitening:
    arrays, _ = load_arrays(path)
    if {name: array.shape for name, array in arrays.items()} != {"mean": (values,), "matrix": (values, values)}:
        raise ValueError(f"{path}: not the whitening of such images: remove it, and it will be computed again")
    return Whitening(torch.from_numpy(arrays["mean"]), torch.from_numpy(arrays["matrix"]))


def compute_whitening(images: Tensor) -> Whitening:
    """As `whitening_of`, without the cache; in float64."""
    total = sum(normalise_contrast(some, torch.float64).sum(dim=0) for some in images.split(CHUNK))
    mean = torch.as_tensor(total) / len(images)  # (D,)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for some in tqdm(images.split(CHUNK), desc="whitening", unit="chunk", dynamic_ncols=True):
        centred = normalise_contrast(some, torch.float64) - mean
        covariance.addmm_(centred.T, centred, alpha=1 / len(images))
    variances, directions = torch.linalg.eigh(covariance)  # (D,), (D, D) in columns
    scales = (variances.clamp(min=0) + REGULARISATION).rsqrt()
    matrix = (directions * scales) @ directions.T
    return Whitening(mean.to(torch.float32), matrix.to(torch.float32))
