"""Training steps per second of CPU time of the kernels for multilayer perceptrons, with and without measurements.

Each figure is the best of some rounds, by the process's CPU time: `python benchmarks/mlp.py`.
"""

import time

import numpy as np

from qan_gym.native.mlp import Examples, MLPKernels, MLPState, MLPTask

ROUNDS, SECONDS = 7, 0.15
# inputs, widths, batch size, rows, mini-batches a call
SIZES = [
    (49, (4,), 4, 64, 32),
    (49, (8,), 8, 64, 32),
    (49, (16,), 16, 64, 32),
    (49, (16, 16), 16, 64, 32),
    (49, (16, 16), 32, 64, 32),
    (196, (64, 64), 32, 16, 8),
]
KINDS = [("sgd", "relu"), ("momentum", "tanh"), ("adamw", "relu"), ("adamw", "gelu")]


def kernels_of(inputs: int, widths: tuple[int, ...], batch: int, number: int, kind: tuple[str, str], measured: bool):
    """Rows that differ in their seeds alone, on made images of 10 classes."""
    rng, (optimizer, activation) = np.random.default_rng(0), kind
    images = rng.integers(0, 256, (5000, inputs)).astype(np.uint8)
    examples = Examples(images, rng.permutation(5000)[:2000], rng.integers(0, 10, 2000))
    momentum = 0.0 if optimizer == "sgd" else 0.9
    tasks = [
        MLPTask(examples, 10, widths, activation, batch, optimizer, momentum=momentum, seed=seed)
        for seed in range(number)
    ]
    kernels = MLPKernels(MLPState.zeros(number, tasks[0].size, measured=measured))
    for row, task in enumerate(tasks):
        kernels.assign(row, task)
    return kernels


def main() -> None:
    """Print a table."""
    print("inputs, widths, batch      " + "".join(f"{' '.join(kind):>17} measured" for kind in KINDS))
    for inputs, widths, batch, number, most in SIZES:
        figures = []
        for kind in KINDS:
            counts, rates = np.full(number, most), np.full((number, most), 1e-3)
            both = [kernels_of(inputs, widths, batch, number, kind, measured) for measured in (False, True)]
            best = [0.0, 0.0]
            for _ in range(ROUNDS):
                for place, kernels in enumerate(both):
                    begin, steps = time.process_time(), 0
                    while time.process_time() - begin < SECONDS:
                        kernels.train(counts, rates)
                        steps += number * most
                    best[place] = max(best[place], steps / (time.process_time() - begin))
            figures.append(f"{best[0]:17,.0f} {best[0] / best[1] - 1:+8.1%}")
        print(f"{inputs:4} {widths!s:12} {batch:4}      " + "".join(figures), flush=True)


if __name__ == "__main__":
    main()
