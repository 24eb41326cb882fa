"""Three trainings: a residual network on photographs, a transformer on characters, a perceptron on tables."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pydoc_data.topics import topics

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from qan_gym.data.datasets import load_dataset
from qan_gym.optimizee.zoo import resnet_8_module

Examples = tuple[Tensor, Tensor]  # inputs and labels, the first axis is that of the examples
Splits = tuple[Examples, Examples, Examples]  # training, validation, test
CONTEXT = 64  # characters that the transformer sees


@dataclass(frozen=True)
class Task:
    """A training.

    Attributes:
        load: its examples; the argument is the data set of the photographs.
        network: builds it, from PyTorch's default generator.
        optimizer: of the parameters and a learning rate.
        usual: the optimizer's usual learning rate.
        rates: lowest and highest that the tuning tries.
    """

    load: Callable[[str], Splits]
    network: Callable[[int], nn.Module]
    optimizer: Callable[..., Optimizer]
    usual: float
    rates: tuple[float, float]
    batch_size: int
    epochs: int


@functools.cache
def photographs(source: str) -> Splits:
    """4,000, 1,000 and 4,000 images of CIFAR-10, channels scaled to mean 0 and variance 1 of the training images."""
    data = load_dataset(source)

    def part(images: np.ndarray, labels: np.ndarray, first: int, last: int) -> Examples:
        return torch.tensor(images[first:last]).float(), torch.tensor(labels[first:last], dtype=torch.int64)

    parts = [
        part(data.train.images, data.train.labels, 0, 4_000),
        part(data.train.images, data.train.labels, 4_000, 5_000),
        part(data.test.images, data.test.labels, 0, 4_000),
    ]
    seen = parts[0][0]
    mean, deviation = seen.mean(dim=(0, 2, 3), keepdim=True), seen.std(dim=(0, 2, 3), keepdim=True)
    train, validation, test = (((images - mean) / deviation, labels) for images, labels in parts)
    return train, validation, test


def resnet_8(classes: int) -> nn.Module:
    """The `resnet-8` of the environments, with PyTorch's own initialisation."""
    return resnet_8_module(3, classes)


@functools.cache
def characters(_: str) -> Splits:
    """Of the help texts of this Python, 3,200, 200 and 400 pieces of 64 characters, each with the next characters."""
    text = "\n".join(topics[name] for name in sorted(topics))
    codes = {character: place for place, character in enumerate(sorted(set(text)))}
    numbers = torch.tensor([codes[character] for character in text])
    pieces = (len(numbers) - 1) // CONTEXT
    inputs = numbers[: pieces * CONTEXT].view(pieces, CONTEXT)
    labels = numbers[1 : pieces * CONTEXT + 1].view(pieces, CONTEXT)
    order = torch.randperm(pieces, generator=torch.Generator().manual_seed(0))
    train, validation, test = order[:3_800].split([3_200, 200, 400])
    return (inputs[train], labels[train]), (inputs[validation], labels[validation]), (inputs[test], labels[test])


class Transformer(nn.Module):
    """A causal transformer of two blocks of width 64."""

    def __init__(self, classes: int) -> None:
        """For so many characters."""
        super().__init__()
        self.embedding, self.places = nn.Embedding(classes, 64), nn.Parameter(0.02 * torch.randn(CONTEXT, 64))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(64, 4, 256, dropout=0, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, classes)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def forward(self, inputs: Tensor) -> Tensor:
        """Characters (B, T) to logits (B, T, classes)."""
        hidden = self.embedding(inputs) + self.places
        for block in self.blocks:
            hidden = block(hidden, src_mask=self.mask, is_causal=True)
        logits: Tensor = self.head(self.norm(hidden))
        return logits


@functools.cache
def table(_: str) -> Splits:
    """8,000, 2,000 and 10,000 drawn examples with the sizes of covertype: 54 features, 7 classes of its frequencies."""
    from sklearn.datasets import make_classification

    frequencies = [0.365, 0.488, 0.062, 0.005, 0.016, 0.030, 0.034]
    features, labels = make_classification(
        n_samples=20_000, n_features=54, n_informative=12, n_redundant=8, n_classes=7, n_clusters_per_class=4,
        weights=frequencies, flip_y=0.02, random_state=0,
    )  # fmt: skip
    inputs = torch.tensor(features, dtype=torch.float32)
    inputs = (inputs - inputs[:8_000].mean(dim=0)) / inputs[:8_000].std(dim=0)
    numbers = torch.tensor(labels, dtype=torch.int64)
    train, validation, test = zip(*(one.split([8_000, 2_000, 10_000]) for one in (inputs, numbers)), strict=True)
    return train, validation, test


def perceptron(classes: int) -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(nn.Linear(54, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, classes))


sgd = functools.partial(SGD, momentum=0.9)
adamw = functools.partial(AdamW, weight_decay=0.01)
TASKS = {
    "perceptron on tables": Task(table, perceptron, adamw, 1e-3, (1e-4, 0.1), batch_size=128, epochs=15),
    "transformer on characters": Task(characters, Transformer, adamw, 1e-3, (1e-4, 0.1), batch_size=16, epochs=2),
    "resnet-8 on photographs": Task(photographs, resnet_8, sgd, 0.1, (1e-3, 1.0), batch_size=64, epochs=5),
}
