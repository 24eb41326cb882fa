"""What `LearnedLR` costs: process CPU time of a step with and without it, in turns, on one thread; memory; import.

    OMP_NUM_THREADS=1 python benchmarks/learned_lr.py

A pair is some steps without it and as many with it, in an order that alternates; its ratio is that of their CPU
times. The share is that of the CPU time of the steps with it which its hooks and `scheduler.step` take, timed inside
of the steps: where other processes are busy it is the steadier figure. The quartiles are over pairs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from qan_agents.controllers import LearnedLR
from qan_gym.optimizee.zoo import resnet_8_module

MANY = 100_000  # updates: more than are made


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
    "resnet-8, batch 128": (partial(resnet_8_module, 3, 10), (128, 3, 32, 32), 2),
    "mnist-cnn, batch 32": (mnist_cnn, (32, 1, 32, 32), 20),
    "10 million weights, batch 32": (wide, (32, 1, 28, 28), 4),
}


class Stopwatch:
    """CPU seconds of this process between `begin` and `end`, in all."""

    def __init__(self) -> None:
        self.seconds = self.begun = 0.0

    def begin(self, *_: object) -> None:
        self.begun = time.process_time()

    def end(self, *_: object) -> None:
        self.seconds += time.process_time() - self.begun


class Training:
    """Updates of a network on random images, with `LearnedLR` or without.

    Attributes:
        scheduler: a `LearnedLR`, or None.
        watch: what it takes.
        gradients: their bytes.
    """

    def __init__(self, make: Callable[[], nn.Module], shape: tuple[int, ...], learned: bool) -> None:
        torch.manual_seed(0)
        self.network, self.images, self.labels = make(), torch.randn(shape), torch.randint(0, 10, (shape[0],))
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.01, momentum=0.9)
        self.gradients = sum(one.numel() * one.element_size() for one in self.network.parameters())
        self.watch, self.scheduler = Stopwatch(), None
        if learned:  # hooks run in the order in which they were registered
            self.optimizer.register_step_pre_hook(self.watch.begin)
            self.optimizer.register_step_post_hook(self.watch.begin)
            facts = {"batch_size": shape[0], "dataset_size": 50_000, "num_classes": 10}
            self.scheduler = LearnedLR(self.optimizer, MANY, **facts)
            self.optimizer.register_step_pre_hook(self.watch.end)
            self.optimizer.register_step_post_hook(self.watch.end)

    @property
    def kept(self) -> int:
        """Bytes of the vectors that the scheduler keeps."""
        return (
            0 if self.scheduler is None else self.scheduler.meter.memory.nbytes + self.scheduler.meter.products.nbytes
        )

    def step(self) -> None:
        """An update."""
        self.optimizer.zero_grad()
        loss = cross_entropy(self.network(self.images), self.labels)
        loss.backward()
        self.optimizer.step()
        if self.scheduler is not None:
            self.watch.begin()
            self.scheduler.step(loss)
            self.watch.end()


def cpu_time(training: Training, count: int) -> float:
    """Of some updates, seconds of this process."""
    begin = time.process_time()
    for _ in range(count):
        training.step()
    return time.process_time() - begin


def measure(name: str, pairs: int) -> dict[str, object]:
    """The quartiles of the ratio and of the share, and the memory."""
    make, shape, count = CASES[name]
    without, having = (Training(make, shape, learned) for learned in (False, True))
    for one in (without, having):
        cpu_time(one, 3)
    ratios, shares, times = [], [], []
    for pair in range(pairs):
        having.watch.seconds = 0.0
        order = (without, having) if pair % 2 == 0 else (having, without)
        found = {one: cpu_time(one, count) for one in order}
        ratios.append(found[having] / found[without])
        shares.append(having.watch.seconds / found[having])
        times.append(1e3 * found[without] / count)
    quartiles = [25, 50, 75]
    return {
        "case": name,
        "step_ms": round(float(np.median(times)), 2),
        "ratio": np.percentile(ratios, quartiles).round(4).tolist(),
        "share": np.percentile(shares, quartiles).round(5).tolist(),
        "gradients_mb": round(without.gradients / 1e6, 2),
        "kept_mb": round(having.kept / 1e6, 2),
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
