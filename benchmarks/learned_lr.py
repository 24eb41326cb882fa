"""What `LearnedLR` costs: process CPU time of a step with and without it, in turns, on one thread; memory; import.

    OMP_NUM_THREADS=1 python benchmarks/learned_lr.py

A pair is some steps without it and as many with it, in an order that alternates; its ratio is that of their CPU
times. The quartiles are over pairs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from qan_agents.controllers import LearnedLR

MANY = 100_000  # updates: more than are made


class Block(nn.Module):
    """Two convolutions with batch norm, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)])
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.norms[0](self.first(x)).relu()
        return (self.norms[1](self.second(hidden)) + self.shortcut(x)).relu()


def resnet8() -> nn.Module:
    """A residual network of 8 layers for 32 x 32 images in colour."""
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    blocks = [Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def mnist_cnn() -> nn.Module:
    """The convolutional network of `QanLR-MNIST-v0`."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 5), nn.Tanh(), nn.MaxPool2d(3), nn.Conv2d(32, 64, 5), nn.Tanh(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 200), nn.Tanh(), nn.Linear(200, 10)),
    )


def wide() -> nn.Module:
    """A perceptron of 10 million weights."""
    layers = [nn.Linear(784, 2600), nn.ReLU(), nn.Linear(2600, 3000), nn.ReLU(), nn.Linear(3000, 10)]
    return nn.Sequential(nn.Flatten(), *layers)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {  # network, images, steps of half a pair
    "resnet-8, batch 128": (resnet8, (128, 3, 32, 32), 2),
    "mnist-cnn, batch 32": (mnist_cnn, (32, 1, 32, 32), 20),
    "10 million weights, batch 32": (wide, (32, 1, 28, 28), 4),
}


def stepper(
    make: Callable[[], nn.Module], shape: tuple[int, ...], learned: bool
) -> tuple[Callable[[], None], int, int]:
    """A function that makes an update, the bytes of the gradients, and those that `LearnedLR` keeps."""
    torch.manual_seed(0)
    network, images, labels = make(), torch.randn(shape), torch.randint(0, 10, (shape[0],))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    facts = {"batch_size": shape[0], "dataset_size": 50_000, "num_classes": 10}
    scheduler = LearnedLR(optimizer, MANY, **facts) if learned else None

    def step() -> None:
        optimizer.zero_grad()
        loss = cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step(loss)

    gradients = sum(one.numel() * one.element_size() for one in network.parameters())
    return step, gradients, 0 if scheduler is None else scheduler.meter.memory.nbytes + scheduler.meter.products.nbytes


def cpu_time(step: Callable[[], None], count: int) -> float:
    """Of some steps, seconds of this process."""
    begin = time.process_time()
    for _ in range(count):
        step()
    return time.process_time() - begin


def measure(name: str, pairs: int) -> dict[str, object]:
    """The quartiles of the ratio, and the memory."""
    make, shape, count = CASES[name]
    (without, gradients, _), (having, _, kept) = (stepper(make, shape, learned) for learned in (False, True))
    for step in (without, having):
        cpu_time(step, 3)
    ratios, times = [], []
    for pair in range(pairs):
        order = (without, having) if pair % 2 == 0 else (having, without)
        found = {step: cpu_time(step, count) for step in order}
        ratios.append(found[having] / found[without])
        times.append(1e3 * found[without] / count)
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return {
        "case": name,
        "step_ms": round(float(np.median(times)), 2),
        "ratio": [round(float(value), 4) for value in (low, middle, high)],
        "gradients_mb": round(gradients / 1e6, 2),
        "kept_mb": round(kept / 1e6, 2),
    }


IMPORT = """
import sys, time
import torch, numpy, safetensors.numpy
before, begin = set(sys.modules), time.process_time()
from qan_agents.controllers import LearnedLR
print(time.process_time() - begin)
print(" ".join(sorted(set(sys.modules) - before)))
"""


def imported() -> dict[str, object]:
    """CPU seconds of the import beside torch, NumPy and safetensors, and the modules that it loads."""
    command = [sys.executable, "-c", IMPORT]
    seconds, modules = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return {"import_seconds": round(float(seconds), 3), "modules": modules.split()}


def main() -> None:
    """Measure, a line of JSON each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.cases:
        print(json.dumps(measure(name, arguments.pairs)), flush=True)
    print(json.dumps(imported()))


if __name__ == "__main__":
    main()
