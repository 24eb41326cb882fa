"""Random flips and crops of a training run's images, each run's from its own stream.

An image is flipped left to right with probability 1/2, and moved by -4 to 4 pixels down and right, each with the
same probability: a random crop of the size of the image from one padded by 4. Pixels from outside are
zero (the mean colour, as the images are normalised before) or the image mirrored at its border, without the border.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from qan_gym.utils import random_streams

PADDING = 4  # pixels


class Moves(NamedTuple):
    """Flips and shifts of the images of N mini-batches; each (N, B)."""

    flip: Tensor  # bool
    down: Tensor  # int64, -PADDING to PADDING
    right: Tensor  # the same


def draw(seeds: Tensor, batch: Tensor, batch_size: int) -> Moves:
    """The moves of the next mini-batch of every run.

    Args:
        seeds: (N,) int64, the seed of each run.
        batch: (N,) int64, the number of its mini-batch in the episode.
        batch_size: B.
    """
    unit = random_streams.uniform(seeds, random_streams.AUGMENTATION, batch, 3 * batch_size).view(
        -1, 3, batch_size
    )  # (N, 3, B)
    down, right = ((unit[:, axis] * (2 * PADDING + 1)).to(torch.int64) - PADDING for axis in (1, 2))
    return Moves(unit[:, 0] < 0.5, down, right)


def gather(images: Tensor, indices: Tensor, moves: Moves, padding: str) -> tuple[Tensor, Tensor]:
    """Moved images, straight out of the data set.

    Args:
        images: (n, C, H, W).
        indices: (N, B) int64, which of them.
        moves: of each.
        padding: "zero" or "reflect".

    Returns:
        The images (N, B, C, H, W), and (N, B, 1, H, W) bool, where they come from inside (everywhere with "reflect").
    """
    height, width = images.shape[2:]
    y = torch.arange(height, device=images.device) - moves.down[..., None]  # (N, B, H)
    x = torch.arange(width, device=images.device) - moves.right[..., None]  # (N, B, W)
    x = torch.where(moves.flip[..., None], width - 1 - x, x)
    inside = ((y >= 0) & (y < height))[..., None] & ((x >= 0) & (x < width))[..., None, :]  # (N, B, H, W)
    if padding == "reflect":
        inside = torch.ones_like(inside)
    y, x = _reflected(y, height), _reflected(x, width)
    channel = torch.arange(images.shape[1], device=images.device)[:, None, None]  # (C, 1, 1)
    moved = images[indices[..., None, None, None], channel, y[:, :, None, :, None], x[:, :, None, None, :]]
    return moved, inside[:, :, None]


def _reflected(place: Tensor, size: int) -> Tensor:
    """Places outside of [0, size) mirrored at its ends."""
    return (size - 1) - ((size - 1) - place.abs()).abs()
