"""Small networks whose sizes stand in their names: convolutions, and a vision transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

TOKENS_A_SIDE = 7  # of the vision transformer: 28 x 28 pixels are patches of 4 x 4
HEAD = 8  # numbers of a query

ImageShape = tuple[int, int, int]  # (C, H, W)


def cnn(image_shape: ImageShape, n_classes: int, widths: tuple[int, int]) -> nn.Module:
    """Two convolutions 3x3, each with ReLU and max-pool 2, and a linear layer; `widths` are their channels."""
    channels, height, width = image_shape
    first, second = widths
    return nn.Sequential(
        *(nn.Conv2d(channels, first, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(first, second, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(second * (height // 4) * (width // 4), n_classes)),
    )


class VisionTransformer(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2020, arXiv:2010.11929) of 7 x 7 patches, without dropout.

    A linear embedding of the patches plus learned positions; blocks of attention and of a two-layer GELU network, the
    norm before each (Xiong et al. 2020, arXiv:2002.04745); norm, mean over the patches, a linear layer.
    """

    def __init__(self, image_shape: ImageShape, n_classes: int, width: int, depth: int) -> None:
        """See the class.

        Args:
            image_shape: (C, H, W), H and W multiples of 7.
            n_classes: K.
            width: of the embedding, a multiple of 8; a head of the attention has 8 of it.
            depth: blocks.

        Raises:
            ValueError: the patches do not cover the images.
        """
        super().__init__()
        channels, height, columns = image_shape
        if height % TOKENS_A_SIDE or columns % TOKENS_A_SIDE:
            raise ValueError(f"images must have a multiple of {TOKENS_A_SIDE} pixels a side, not {height} x {columns}")
        patch = (height // TOKENS_A_SIDE, columns // TOKENS_A_SIDE)
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        self.positions = nn.Parameter(torch.randn(1, TOKENS_A_SIDE**2, width) * 0.02)
        self.blocks = nn.ModuleList(Attention(width) for _ in range(depth))
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, K)."""
        x = self.embed(images).flatten(2).transpose(1, 2) + self.positions  # (B, T, D)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.linear(self.norm(x).mean(dim=1))
        return logits


class Attention(nn.Module):
    """A block of the transformer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.queries, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        query, key, value = (
            part.unflatten(2, (-1, HEAD)).transpose(1, 2) for part in self.queries(self.norm1(x)).chunk(3, dim=2)
        )  # (B, heads, T, 8)
        seen = nn.functional.scaled_dot_product_attention(query, key, value)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        after: Tensor = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return after
