"""Layers of N networks at once, each with its own weights; the leading axis is N.

A convolution gathers its patches and multiplies them, one batched matrix product for all networks. On CPU and for
small networks this beats the library's grouped convolution, provided that the large tensors in between, and the views
of them, are not made anew at every step: each layer keeps them for every shape of input that it has seen in a thread.
"""

import threading
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

max_pool = torch.ops.aten.max_pool2d_with_indices
max_pool_backward = torch.ops.aten.max_pool2d_with_indices_backward


def linear(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """N linear layers: inputs (N, B, I), weight (N, O, I), bias (N, O) -> (N, B, O)."""
    return torch.baddbmm(bias[:, None], inputs, weight.transpose(1, 2))


class ConvMaxPoolTanh:
    """N times max-pool(tanh(convolution)), stride 1, no padding, computed as tanh(max-pool(convolution)).

    tanh is monotonic, so pooling first gives the same values and gradients from a fraction of the tanhs; outputs
    of the convolution that no pooling window covers are left out.
    """

    def __init__(self, kernel_size: int, pool_size: int) -> None:
        """Sizes in pixels, of square windows; the pooling windows do not overlap."""
        self.kernel_size = kernel_size
        self.pool_size = pool_size
        self._buffers = _BuffersOfThread()

    def __call__(self, images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Apply it.

        Args:
            images: (N, B, C, H, W).
            weight: (N, O, C, k, k); fastest with the outputs last in memory.
            bias: (N, O).

        Returns:
            (N, B, O, (H - k + 1) // p, (W - k + 1) // p), with the channels last in memory. Its gradient must be
            taken before the layer is applied again to such images; PyTorch raises an error otherwise.
        """
        key = images.shape, images.dtype
        buffers = self._buffers.by_input
        if key not in buffers:
            buffers[key] = _Buffers(images, weight.shape[1], self.kernel_size, self.pool_size)
        outputs: Tensor = _ConvMaxPoolTanh.apply(images, weight, bias, buffers[key])
        return outputs


class _BuffersOfThread(threading.local):
    """Of each thread its own, because several may compute networks of one kind."""

    def __init__(self) -> None:
        self.by_input: dict[tuple[torch.Size, torch.dtype], _Buffers] = {}


class _Buffers:
    """The tensors between input and output of a ConvMaxPoolTanh, for one shape of input, and views of them.

    Attributes:
        patches: (N, B * h * w, k * k * C), what the kernel sees at the h * w places of each image.
        outputs: (N, B * h * w, O), of the convolution.
        winners: (N * B, O, rows, columns) int64, of the pooling.
    """

    def __init__(self, images: Tensor, filters: int, kernel_size: int, pool_size: int) -> None:
        n, b, c, height, width = self.shape = images.shape
        k, p = self.kernel_size, self.pool_size = kernel_size, pool_size
        self.filters = filters
        rows, columns = (height - k + 1) // p, (width - k + 1) // p
        h, w = self.places = rows * p, columns * p
        self.empty = images.new_empty
        # Each axis of the patches steps along one axis of the images; the last axes are contiguous in both.
        if c == 1:  # a row of pixels
            memory = self.empty(n, k * k, b * h * w)
            self.patches = memory.transpose(1, 2)
            self.gathered, self.axes = memory.view(n, k, k, b, h, w), [0, 3, 4, 1, 3, 4]
        else:  # the channels of the pixels under a row of the kernel
            self.patches = self.empty(n, b * h * w, k * k * c)
            self.gathered, self.axes = self.patches.view(n, b, h, w, k, k, c), [0, 1, 3, 4, 3, 4, 2]
        self.outputs = self.empty(n, b * h * w, filters)
        self.output_images = _as_images(self.outputs, n * b, h, w)  # (N * B, O, h, w)
        winners = self.empty(n * b * rows * columns, filters, dtype=torch.int64)
        self.winners = _as_images(winners, n * b, rows, columns)

    def gather(self, images: Tensor) -> Tensor:
        """Fill `patches` from the images."""
        strides = [images.stride(axis) for axis in self.axes]
        self.gathered.copy_(images.as_strided(self.gathered.shape, strides, images.storage_offset()))
        return self.patches

    def scatter(self) -> Tensor:
        """The adjoint of `gather`: every pixel collects from the `d_patches` that it is in; (N, B, C, H, W)."""
        self.lines.zero_()
        for line, patch in self.along_rows:
            line += patch
        n, b, c, height, width = self.shape
        d_images = self.empty(n, b, height, width, c).zero_()
        for y, line in enumerate(self.along_columns):
            d_images[:, :, y : y + self.kernel_size] += line
        return d_images.permute(0, 1, 4, 2, 3)

    # Only for the gradient.

    @cached_property
    def d_outputs(self) -> Tensor:
        return torch.empty_like(self.outputs)

    @cached_property
    def d_output_images(self) -> Tensor:
        return _as_images(self.d_outputs, self.shape[0] * self.shape[1], *self.places)

    @cached_property
    def d_patches(self) -> Tensor:
        return self.empty(self.patches.shape)

    @cached_property
    def lines(self) -> Tensor:
        """Patches added up along the rows: (N, B, h, k, W, C)."""
        n, b, c, _, width = self.shape
        return self.empty(n, b, self.places[0], self.kernel_size, width, c)

    @cached_property
    def along_rows(self) -> list[tuple[Tensor, Tensor]]:
        """For each x: the part of `lines` that the patches at x are added to, and those patches."""
        n, b, c = self.shape[:3]
        (h, w), k = self.places, self.kernel_size
        patches = self.d_patches.view(n, b, h, w, k, k, c)
        return [(self.lines[:, :, :, :, x : x + k], patches[:, :, :, x]) for x in range(w)]

    @cached_property
    def along_columns(self) -> list[Tensor]:
        """For each y: the lines that go to the image from y on."""
        return list(self.lines.unbind(dim=2))


def _as_images(rows: Tensor, count: int, height: int, width: int) -> Tensor:
    """(..., O), a row per pixel -> (count, O, height, width), channels last in memory."""
    return rows.view(count, height, width, rows.shape[-1]).permute(0, 3, 1, 2)


class _ConvMaxPoolTanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, buffers: _Buffers) -> Tensor:
        patches, p = buffers.gather(images), buffers.pool_size
        kernels = weight.permute(0, 3, 4, 2, 1).flatten(1, 3)  # (N, k * k * C, O)
        torch.bmm(patches, kernels, out=buffers.outputs)
        pooled = torch.empty_like(buffers.winners, dtype=images.dtype)  # (N * B, O, rows, columns)
        max_pool.out(buffers.output_images, [p, p], out=pooled, indices=buffers.winners)
        pooled.unflatten(0, images.shape[:2]).add_(bias[:, None, :, None, None]).tanh_()
        ctx.buffers = buffers
        ctx.save_for_backward(patches, kernels, buffers.winners, pooled)
        outputs: Tensor = pooled.unflatten(0, images.shape[:2])
        return outputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        buffers: _Buffers = ctx.buffers
        patches, kernels, winners, pooled = ctx.saved_tensors
        num_runs, _, channels = buffers.shape[:3]
        k, p, filters = buffers.kernel_size, buffers.pool_size, buffers.filters
        d_pooled = torch.ops.aten.tanh_backward(gradient.flatten(0, 1), pooled)  # (N * B, O, rows, columns)
        d_pooled = d_pooled.contiguous(memory_format=torch.channels_last)
        max_pool_backward.grad_input(
            *(d_pooled, buffers.output_images, [p, p], [p, p], [0, 0], [1, 1], False, winners),
            grad_input=buffers.d_output_images,
        )
        d_kernels = torch.bmm(patches.transpose(1, 2), buffers.d_outputs)  # (N, k * k * C, O)
        d_weight = d_kernels.view(num_runs, k, k, channels, filters).permute(0, 4, 3, 1, 2)  # (N, O, C, k, k)
        d_bias = d_pooled.permute(0, 2, 3, 1).reshape(num_runs, -1, filters).sum(dim=1)  # (N, O)
        d_images = None
        if ctx.needs_input_grad[0]:
            torch.bmm(buffers.d_outputs, kernels.transpose(1, 2), out=buffers.d_patches)
            d_images = buffers.scatter()
        return d_images, d_weight, d_bias, None
