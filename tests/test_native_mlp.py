"""The C kernels for multilayer perceptrons: against float64 and PyTorch's path, the same bits everywhere, wrong input."""

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_native_kernels import needs_library

from qan_gym.native import library
from qan_gym.native.mlp import ACTIVATIONS, OPTIMIZERS, Examples, MLPKernels, MLPState, MLPTask
from qan_gym.optimizee import zoo
from qan_gym.optimizee.network import Network
from qan_gym.optimizee.optimizers import AdamW
from qan_gym.utils import random_streams

FOUND = library.find()
MEASURED = 2**17  # of a network with more parameters a part is measured

# --- tasks ----------------------------------------------------------------------------------------------------------


@cache
def pictures(inputs: int) -> np.ndarray:
    """(300, D) uint8, smooth along an image, from integers alone."""
    rng = np.random.default_rng(inputs)
    coarse = rng.integers(-150, 256, (300, -(-inputs // 4)))
    images = np.repeat(coarse, 4, axis=1)[:, :inputs] + rng.integers(-40, 40, (300, inputs))
    return np.clip(images, 0, 255).astype(np.uint8)


def made_examples(inputs: int, n_classes: int, count: int, seed: int = 0) -> Examples:
    rng = np.random.default_rng([seed, inputs])
    images = pictures(inputs)
    return Examples(images, rng.integers(0, len(images), count), rng.integers(0, n_classes, count))


def random_task(seed: int, most_width: int = 40, **changes: Any) -> MLPTask:
    """Anything that a task can be, up to some size."""
    rng = np.random.default_rng([7, seed])
    inputs, n_classes = int(rng.choice([49, 50, 64, 77, 196])), int(rng.choice([2, 3, 7, 10, 16, 17, 33]))
    batch = int(rng.choice([1, 3, 4, 8, 16, 31, 32, 33, 50, 64, 70]))
    settings: dict[str, Any] = {
        "train": made_examples(inputs, n_classes, batch + int(rng.integers(0, 3 * batch + 2))),
        "n_classes": n_classes,
        "widths": tuple(rng.integers(2, most_width + 1, rng.integers(1, 4)).tolist()),
        "activation": str(rng.choice(ACTIVATIONS)),
        "batch_size": batch,
        "optimizer": str(rng.choice(OPTIMIZERS)),
        "momentum": float(rng.choice([0.5, 0.9])),
        "beta2": float(rng.choice([0.9, 0.999])),
        "weight_decay": float(rng.choice([0, 0.01])),
        "scale": float(np.exp(rng.uniform(-1, 1)) / 128),
        "shift": float(rng.uniform(-1, 1)),
        "loss_scale": float(np.exp(rng.uniform(-2, 2))),
        "initial_scale": float(np.exp(rng.uniform(-1, 0.5))),
        "seed": int(rng.integers(2**63)),
    }
    return MLPTask(**settings | changes)


def kernels_of(tasks: list[MLPTask], measured: bool = False, **kwargs: Any) -> MLPKernels:
    """A row for each of the tasks."""
    made = MLPKernels(MLPState.zeros(len(tasks), max(task.size for task in tasks), measured=measured), **kwargs)
    for row, task in enumerate(tasks):
        made.assign(row, task)
    return made


def rate_of(task: MLPTask) -> float:
    return 0.003 if task.optimizer == "adamw" else 0.03 / task.loss_scale


def train(made: MLPKernels, counts: Any, most: int) -> Any:
    """Some mini-batches at a task's rate, each lower than the one before."""
    rates = np.array([[rate_of(task) * 0.9**t for t in range(most)] for task in made.tasks if task])
    return made.train(counts, rates)


def network_of(task: MLPTask) -> Network:
    shape = (1, 1, task.train.inputs)
    return zoo.mlp(shape, task.n_classes, task.widths, task.activation, task.initial_scale)


def params_of(task: MLPTask, memory: np.ndarray, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """Copies of a network's parameters in a row of memory."""
    network = network_of(task)
    views = network.views(torch.from_numpy(memory[None, : network.size()].copy()))
    return {name: value[0].to(dtype) for name, value in views.items()}


def batch_of(task: MLPTask, clock: int) -> np.ndarray:
    """Where in `chosen` the images of a mini-batch stand."""
    epoch, place = divmod(clock, task.per_epoch)
    places = np.arange(place * task.batch_size, (place + 1) * task.batch_size)[None]
    seeds, count = np.array([task.seed]), len(task.train.labels)
    return random_streams.shuffled(seeds, random_streams.SHUFFLED, np.array([epoch]), places, count)[0]


def inputs_of(task: MLPTask, examples: Examples, index: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs (b, D) float32 and labels."""
    images = examples.images[examples.chosen[index]].astype(np.float32)
    inputs = images * np.float32(task.scale) + np.float32(task.shift)
    return torch.from_numpy(inputs), torch.from_numpy(examples.labels[index].astype(np.int64))


def gradients_of(task: MLPTask, params: dict[str, torch.Tensor], clock: int) -> tuple[float, dict[str, torch.Tensor]]:
    """Of a mini-batch, in float64 and by plain PyTorch."""
    inputs, labels = inputs_of(task, task.train, batch_of(task, clock))
    params = {name: value.clone().requires_grad_() for name, value in params.items()}
    loss = F.cross_entropy(logits_of(task, params, inputs), labels) * np.float64(np.float32(task.loss_scale))
    gradients = torch.autograd.grad(loss, list(params.values()))
    return loss.item(), dict(zip(params, gradients, strict=True))


def logits_of(task: MLPTask, params: dict[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    apply = {"relu": F.relu, "tanh": torch.tanh, "gelu": lambda x: F.gelu(x, approximate="tanh")}[task.activation]
    x = inputs.double()
    for number in range(1, len(task.widths) + 2):
        x = F.linear(x, params[f"layer{number}.weight"], params[f"layer{number}.bias"])
        x = apply(x) if number <= len(task.widths) else x
    return x


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative, by the norm."""
    return float((found.double() - expected).norm() / expected.norm().clamp(min=1e-30))


# --- against float64 ------------------------------------------------------------------------------------------------


def expected_update(
    task: MLPTask,
    weights: dict[str, torch.Tensor],
    slots: list[dict[str, torch.Tensor]],
    g: Any,
    rate: float,
    clock: int,
) -> None:
    """Weights and slots in place, in float64."""
    for name, w in weights.items():
        if task.optimizer == "adamw":
            mean = slots[0][name] = task.momentum * slots[0][name] + (1 - task.momentum) * g[name]
            square = slots[1][name] = task.beta2 * slots[1][name] + (1 - task.beta2) * g[name] ** 2
            spread = (square / (1 - task.beta2 ** (clock + 1))).sqrt() + AdamW.EPSILON
            step = mean / (1 - task.momentum ** (clock + 1)) / spread
            weights[name] = w - rate * task.weight_decay * w - rate * step
        else:
            step = g[name] + task.weight_decay * w
            if task.optimizer != "sgd":
                slots[0][name] = task.momentum * slots[0][name] + step
                step = step + task.momentum * slots[0][name] if task.optimizer == "nesterov" else slots[0][name]
            weights[name] = w - rate * step


def check_steps(tasks: list[MLPTask], steps: int) -> None:
    """Some mini-batches, each begun from the kernels' own float32 state; gradients are what was measured."""
    made = kernels_of(tasks, measured=True)
    state = made.state
    for clock in range(steps):
        before = copy.deepcopy(state)
        trained = train(made, [1] * len(tasks), 1)
        assert state.finite.all()
        for row, task in enumerate(tasks):
            weights = params_of(task, before.weights[row])
            loss, gradients = gradients_of(task, weights, clock)
            assert abs(trained.losses[row, 0] - loss) <= 1e-6 * max(loss, 1e-3)
            found = params_of(task, state.previous_gradient[row])
            kinks = 0.0 if task.activation != "relu" else 1e-30
            for name in gradients:
                assert distance(found[name], gradients[name]) < 1e-5 + kinks, (task, name)
            slots = [params_of(task, slot[row]) for slot in before.slots]
            expected_update(task, weights, slots, found, rate_of(task), clock)
            used = {"sgd": 0, "adamw": 2}.get(task.optimizer, 1)
            memories = (state.weights, *state.slots[:used])
            for memory, values in zip(memories, (weights, *slots[:used]), strict=True):
                after = params_of(task, memory[row])
                for name in values:
                    assert distance(after[name], values[name]) < 1e-6, (task, name)


@needs_library
@pytest.mark.parametrize("first", range(0, 60, 12))
def test_losses_gradients_and_weights_are_those_of_float64(first):
    check_steps([random_task(seed) for seed in range(first, first + 12)], 4)
