"""The C kernels for multilayer perceptrons: against float64 and PyTorch, the same bits everywhere, wrong input."""

import copy
import hashlib
import itertools
import math
import shutil
import subprocess
from dataclasses import fields, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_native_kernels import (
    C_PROGRAMS,
    assert_fuzz_passes,
    compile_fuzz,
    compile_program,
    instruction_set_bit,
    needs_compiler,
    needs_library,
    wrong_arrays,
)

from qan_gym.core import statistics
from qan_gym.native import build, library
from qan_gym.native.kernels import Kernels
from qan_gym.native.mlp import ACTIVATIONS, OPTIMIZERS, Examples, MLPKernels, MLPState, MLPTask
from qan_gym.optimizee import zoo
from qan_gym.optimizee.network import Network, leaves, loss_and_gradients
from qan_gym.optimizee.optimizers import AdamW
from qan_gym.utils import random_streams

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
        "class_weights": np.exp(rng.uniform(-3, 1, n_classes)) if rng.random() < 0.5 else None,
    }
    settings["normalised"] = min(settings["widths"]) > 2 and bool(np.random.default_rng([8, seed]).random() < 0.5)
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
    return zoo.mlp(shape, task.n_classes, task.widths, task.activation, task.initial_scale, task.normalised)


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
    each = F.cross_entropy(logits_of(task, params, inputs), labels, reduction="none")
    loss = (each * weights_of(task)[labels]).mean() * np.float64(np.float32(task.loss_scale))
    gradients = torch.autograd.grad(loss, list(params.values()))
    return loss.item(), dict(zip(params, gradients, strict=True))


def weights_of(task: MLPTask) -> torch.Tensor:
    """(K,) float64, of the classes."""
    return (
        torch.ones(task.n_classes).double() if task.class_weights is None else torch.tensor(task.class_weights).double()
    )


def logits_of(task: MLPTask, params: dict[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    return layers_of(task, params, inputs)[-1]


def layers_of(task: MLPTask, params: dict[str, torch.Tensor], inputs: torch.Tensor) -> list[torch.Tensor]:
    """What each layer gives, of the hidden ones before the activation."""
    apply = {"relu": F.relu, "tanh": torch.tanh, "gelu": lambda x: F.gelu(x, approximate="tanh")}[task.activation]
    found: list[torch.Tensor] = []
    for number in range(1, len(task.widths) + 2):
        x = apply(found[-1]) if found else inputs.double()
        x = F.linear(x, params[f"layer{number}.weight"], params[f"layer{number}.bias"])
        found.append(normal_of(x) if task.normalised and number <= len(task.widths) else x)
    return found


def normal_of(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt()


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


def tolerances_of(task: MLPTask, params: dict[str, torch.Tensor], clock: int, loss: float) -> tuple[float, float]:
    """Of the loss and of gradients: 1e-6 and 1e-5, but for what float32 cannot know.

    That is: the difference of large logits, a small softmax - 1, and on which side of 0 a ReLU is.
    """
    inputs, _ = inputs_of(task, task.train, batch_of(task, clock))
    *hidden, logits = layers_of(task, params, inputs)
    largest, rectified = float(logits.abs().max()), task.activation == "relu"
    nearest = min(float(x.abs().min() / x.abs().max()) for x in hidden) if rectified else 1.0
    gradient = (1e-5 if nearest > 1e-6 else 1e-1) + 2e-7 * task.loss_scale / max(loss, 1e-30) * max(1.0, largest)
    return 1e-6 * max(loss, 0.3 * task.loss_scale * max(1.0, largest)), gradient


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
            most_loss, most_gradient = tolerances_of(task, weights, clock, loss)
            assert abs(trained.losses[row, 0] - loss) <= most_loss
            found = params_of(task, state.previous_gradient[row])
            whole = math.sqrt(sum(float(value.square().sum()) for value in gradients.values()))
            rounding = 1e-7 if task.class_weights is None else 2e-7  # a weight is one more factor that is rounded
            for name, value in gradients.items():  # a bias's may be small where those of the images cancel
                off = float((found[name] - value).norm())
                assert off < most_gradient * float(value.norm()) + rounding * whole, (row, name)
            slots = [params_of(task, slot[row]) for slot in before.slots]
            expected_update(task, weights, slots, found, rate_of(task), clock)
            used = {"sgd": 0, "adamw": 2}.get(task.optimizer, 1)
            memories = zip((state.weights, *state.slots[:used]), (before.weights, *before.slots), strict=False)
            for (memory, earlier), values in zip(memories, (weights, *slots[:used]), strict=True):
                after, then = params_of(task, memory[row]), params_of(task, earlier[row])
                for name in values:  # what moves back to near 0 is as exact as what it was
                    size = max(float(values[name].norm()), float(then[name].norm()))
                    assert float((after[name] - values[name]).norm()) < 1e-6 * size + 1e-30, (row, name)


@needs_library
@pytest.mark.parametrize("first", range(0, 60, 12))
def test_losses_gradients_and_weights_are_those_of_float64(first):
    check_steps([random_task(seed) for seed in range(first, first + 12)], 4)


@pytest.mark.slow
@needs_library
@pytest.mark.parametrize("first", range(100, 1100, 100))
def test_a_thousand_tasks_are_those_of_float64(first):
    check_steps([random_task(seed) for seed in range(first, first + 100)], 3)


@needs_library
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_and_activation_over_many_mini_batches(optimizer, activation):
    check_steps([random_task(seed, optimizer=optimizer, activation=activation) for seed in range(3)], 12)


@needs_library
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("batch", [1, 5, 32, 33, 100])  # a part of a chunk, a whole one, several
def test_normalised_networks_over_chunks_of_images(batch, activation):
    """Widths that fill vectors of every length, one less, and one more."""
    widths = [(3, 4), (5, 8), (7, 9), (15,), (16, 17, 32), (33, 31)]
    examples = made_examples(50, 4, 110)
    check_steps([MLPTask(examples, 4, each, activation, batch, "momentum", normalised=True) for each in widths], 3)


@needs_library
def test_a_normalised_layer_of_two_units_gives_1_and_minus_1():
    """Whatever its weights, whose gradient is as small as 1e-5 is beside the variance: float32 knows no more of it."""
    task = MLPTask(made_examples(50, 4, 40), 4, (2,), "relu", 40, initial_scale=100, normalised=True)
    made = kernels_of([task], measured=True)
    params = params_of(task, made.state.weights[0])
    loss, _ = gradients_of(task, params, 0)
    inputs, _ = inputs_of(task, task.train, np.arange(40))
    assert layers_of(task, params, inputs)[0].abs().min() > 0.99
    assert train(made, [1], 1).losses[0, 0] == pytest.approx(loss, rel=1e-6)
    found = params_of(task, made.state.previous_gradient[0])
    assert float(found["layer1.weight"].norm()) < 1e-3 * float(found["layer2.weight"].norm())


@needs_library
@pytest.mark.parametrize("widths", [(2,), (256,), (256, 256, 256), (2, 256, 3), (100, 15, 17)])
def test_the_smallest_and_the_largest_networks(widths):
    for inputs, n_classes, batch in ((49, 2, 1), (1024, 128, 512)):
        task = MLPTask(made_examples(inputs, n_classes, batch), n_classes, widths, "relu", batch, initial_scale=0.7)
        check_gradients_alone(task)
        if min(widths) > 2:
            check_gradients_alone(replace(task, activation="gelu", normalised=True))


def check_gradients_alone(task: MLPTask) -> None:
    """As `check_steps`, where there are ReLUs so near 0 that float32 and float64 differ in which side: by the loss."""
    made = kernels_of([task], measured=True)
    loss, gradients = gradients_of(task, params_of(task, made.state.weights[0]), 0)
    assert train(made, [1], 1).losses[0, 0] == pytest.approx(loss, rel=1e-6)
    found = params_of(task, made.state.previous_gradient[0])
    for name in gradients:
        assert distance(found[name], gradients[name]) < 1e-4, name


@needs_library
def test_initial_weights_are_those_of_the_registered_network():
    """Bit for bit; and the memory is laid out as the network lays it."""
    for seed in range(20):
        task = random_task(seed)
        network, made = network_of(task), kernels_of([task])
        assert made.state.weights.shape[1] == task.size == network.size()
        found = params_of(task, made.state.weights[0], torch.float32)
        for name, value in network.initial_params(torch.tensor([task.seed])).items():
            assert torch.equal(found[name], value[0]), name


@needs_library
def test_gradients_are_those_of_the_pytorch_path():
    for seed in range(10):
        task = random_task(seed, loss_scale=1.0)
        weights = weights_of(task).float()[None]
        network, made = network_of(task), kernels_of([task], measured=True)
        memory = torch.from_numpy(made.state.weights.copy())
        inputs, labels = inputs_of(task, task.train, batch_of(task, 0))
        images = inputs.view(1, -1, *network.image_shape)
        params = leaves(network, network.views(memory))
        loss, gradients = loss_and_gradients(network, params, images, labels[None], None, None, class_weights=weights)
        assert train(made, [1], 1).losses[0, 0] == pytest.approx(loss.item(), rel=2e-6)
        found = params_of(task, made.state.previous_gradient[0])
        for name, value in gradients.items():
            assert distance(found[name], value[0].double()) < 1e-5, name


@needs_library
def test_evaluation_is_that_of_float64():
    tasks = [random_task(seed) for seed in range(12)]
    made = kernels_of(tasks)
    others = [made_examples(task.train.inputs, task.n_classes, 50 + row, seed=9) for row, task in enumerate(tasks)]
    rows = [5, 0, 11, 3]
    for _ in range(2):
        loss, accuracy = made.evaluate(rows, [others[row] for row in rows])
        for place, row in enumerate(rows):
            inputs, labels = inputs_of(tasks[row], others[row], np.arange(50 + row))
            logits = logits_of(tasks[row], params_of(tasks[row], made.state.weights[row]), inputs)
            assert loss[place] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)
            assert accuracy[place] == pytest.approx((logits.argmax(1) == labels).double().mean().item(), abs=1e-7)
        train(made, [3] * 12, 3)
        rows = [4, 5]
    assert made.evaluate([], [])[0].shape == (0,)


# --- measurements ---------------------------------------------------------------------------------------------------


def flat(task: MLPTask, memory: np.ndarray) -> np.ndarray:
    """The parameters in their order in memory, without gaps, float64; of a large network every k-th."""
    network = network_of(task)
    start, parts = 0, []
    for shape in network.shapes.values():
        parts.append(memory[start : start + math.prod(shape)].astype(np.float64))
        start += -(-math.prod(shape) // 16) * 16
    values = np.concatenate(parts)
    return values[:: (-(-len(values) // MEASURED) | 1)]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms > 0 else 0.0


def expected_measurements(
    task: MLPTask, states: list[MLPState], row: int, before: list[np.ndarray]
) -> dict[str, float]:
    """From the states before the first mini-batch and after each. `before`: last gradient, last displacement."""
    step = -(-sum(map(math.prod, network_of(task).shapes.values())) // MEASURED) | 1
    weights = [flat(task, state.weights[row]) for state in states]
    gradients = [flat(task, state.previous_gradient[row]) for state in states[1:]]
    updates = [after - earlier for earlier, after in itertools.pairwise(weights)]
    displacement, root = weights[-1] - weights[0], math.sqrt(step)
    return {
        "gradient_norm": root * float(np.mean([np.linalg.norm(g) for g in gradients])),
        "gradient_cosine": float(
            np.mean([cosine(a, b) for a, b in zip([before[0], *gradients], gradients, strict=False)])
        ),
        "update_norm": root * float(np.mean([np.linalg.norm(u) for u in updates])),
        "predicted_decrease": -step * float(np.mean([g @ u for g, u in zip(gradients, updates, strict=True)])),
        "displacement": root * float(np.linalg.norm(displacement)),
        "displacement_cosine": cosine(displacement, before[1]),
        "weight_norm": root * float(np.linalg.norm(weights[-1])),
    }


def check_measurements(tasks: list[MLPTask], counts: list[int]) -> None:
    """Two calls of some mini-batches, against the same mini-batches one by one."""
    at_once, one_by_one = kernels_of(tasks, measured=True), kernels_of(tasks, measured=True)
    zeros = [[np.zeros_like(flat(task, at_once.state.weights[row]))] * 2 for row, task in enumerate(tasks)]
    most, before = max(counts), zeros
    for _ in range(2):
        trained = train(at_once, counts, most)
        states = [copy.deepcopy(one_by_one.state)]
        for t in range(most):
            rates = np.array([[rate_of(task) * 0.9**t] for task in tasks])
            losses = one_by_one.train([int(t < count) for count in counts], rates).losses
            assert np.array_equal(losses[:, 0], trained.losses[:, t])
            states.append(copy.deepcopy(one_by_one.state))
        assert np.array_equal(at_once.state.weights, one_by_one.state.weights)
        for row, task in enumerate(tasks):
            expected = expected_measurements(task, states[: counts[row] + 1], row, before[row])
            for place, name in enumerate(statistics.MEASURED):
                found = float(trained.measured[row, place])
                assert found == pytest.approx(expected[name], rel=1e-4, abs=2e-6), (row, name)
            displacement = flat(task, states[counts[row]].weights[row]) - flat(task, states[0].weights[row])
            before[row] = [flat(task, at_once.state.previous_gradient[row]), displacement]


@needs_library
def test_measurements_are_those_of_float64():
    check_measurements([random_task(seed) for seed in range(16)], [1 + seed % 5 for seed in range(16)])


@needs_library
def test_a_large_network_is_measured_in_part():
    examples = made_examples(1024, 10, 8)
    tasks = [
        MLPTask(examples, 10, (256, 200), "tanh", 4, "adamw", momentum=0.9),
        MLPTask(examples, 10, (126,), "tanh", 4, loss_scale=0.1),  # 130,420 parameters: the whole
    ]
    check_measurements(tasks, [3, 2])


@needs_library
def test_what_is_measured_does_not_change_the_training():
    tasks = [random_task(seed) for seed in range(16)]
    with_it, without = kernels_of(tasks, measured=True), kernels_of(tasks)
    for _ in range(3):
        assert np.array_equal(train(with_it, [3] * 16, 3).losses, train(without, [3] * 16, 3).losses)
    assert np.array_equal(with_it.state.weights, without.state.weights)
    assert train(without, [1] * 16, 1).measured is None


# --- the same bits --------------------------------------------------------------------------------------------------

# SHA-256 of states, losses and measurements of 64 tasks after up to 7 mini-batches; without and with normalisation.
GOLDEN = {
    False: "eb28560fc50387b839e7108e5e14855da3fdb644b87dcf87bbd87ba2aba94377",
    True: "8b28bf884490a2c5b469bf76c1794de9a7a7de41647d3ef2373f6d4b9e87ca00",
}


def contents(made: MLPKernels, row: int) -> list[np.ndarray]:
    task = made.tasks[row]
    assert task is not None
    memories = (made.state.weights, *made.state.memories)
    return [*(memory[row, : task.size] for memory in memories), made.state.clock[row : row + 1]]


def trained_digest(normalised: bool, **kwargs: Any) -> str:
    tasks = [random_task(seed, class_weights=None, normalised=normalised) for seed in range(64)]
    made, digest = kernels_of(tasks, measured=True, **kwargs), hashlib.sha256()
    for counts in ([3] * 64, [seed % 5 for seed in range(64)]):
        trained = train(made, counts, 4)
        digest.update(trained.losses.tobytes() + trained.measured.tobytes())
    for value in (*made.evaluate(range(64), [task.train for task in tasks]), made.state.finite):
        digest.update(value.tobytes())
    for row in range(64):
        for value in contents(made, row):
            digest.update(value.tobytes())
    return digest.hexdigest()


@needs_library
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("instruction_set", Kernels.available() or ["none"])
def test_the_golden_digest_holds_with_every_instruction_set(instruction_set, normalised):
    assert trained_digest(normalised, instruction_set=instruction_set) == GOLDEN[normalised]


@pytest.mark.slow
@needs_library
@needs_compiler
@pytest.mark.parametrize("flags", ["-O2", "-O3", "-O1", "-O3 -march=native"])
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_the_golden_digest_holds_with_every_compiler(compiler, flags, tmp_path, monkeypatch):
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}")
    monkeypatch.setenv("CC", compiler)
    build.build(tmp_path / "other.so", tuple(flags.split()))
    found = library.open_library(tmp_path / "other.so")
    monkeypatch.setattr(library, "find", lambda: found)
    for instruction_set in Kernels.available():
        for normalised, digest in GOLDEN.items():
            assert trained_digest(normalised, instruction_set=instruction_set) == digest


@pytest.mark.slow
@needs_library
@needs_compiler
@pytest.mark.parametrize("name", ["digest.c", "mlp_digest.c"])
def test_vectors_of_16_give_the_same_bits_on_a_processor_that_has_none(name, tmp_path):
    """AVX-512's kernels, with vectors made of two of AVX2."""
    if "avx2" not in Kernels.available() or shutil.which("gcc") is None:
        pytest.skip("needs AVX2 and gcc")
    compile_program(name, "gcc", tmp_path / "here")
    sources = [path for path in sorted(build.SOURCES.glob("*.c")) if path.name != "avx512.c"]
    sources += [C_PROGRAMS / name, C_PROGRAMS / "wide.c"]
    flags = [*build.FLAGS, f"-I{build.SOURCES}", "-O1", "-w", "-Wno-psabi", "-D__builtin_cpu_supports(name)=1"]
    subprocess.run(["gcc", *flags, *sources, "-o", tmp_path / "wide"], check=True)
    here = subprocess.check_output([tmp_path / "here", str(library.INSTRUCTION_SETS["avx2"])])
    assert subprocess.check_output([tmp_path / "wide", str(library.INSTRUCTION_SETS["avx512"])]) == here


@pytest.mark.slow
@needs_library
@needs_compiler
def test_arm64_gives_the_same_bits_under_emulation(tmp_path):
    cross, emulator = "aarch64-linux-gnu-gcc", "qemu-aarch64"
    if shutil.which(cross) is None or shutil.which(emulator) is None:
        pytest.skip(f"needs {cross} and {emulator}")
    compile_program("mlp_digest.c", build.compiler()[0], tmp_path / "here")
    compile_program("mlp_digest.c", cross, tmp_path / "arm64", "-static")
    here = subprocess.check_output([tmp_path / "here", instruction_set_bit()])
    assert subprocess.check_output([emulator, tmp_path / "arm64", str(library.INSTRUCTION_SETS["neon"])]) == here


@needs_library
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_row_trains_the_same_alone_and_among_others_in_any_order(threads):
    tasks = [random_task(seed) for seed in range(20)]
    counts = [1 + seed % 4 for seed in range(20)]
    many, backwards = kernels_of(tasks, True, threads=threads), kernels_of(tasks[::-1], True)
    first = train(many, counts, 4)
    second = train(backwards, counts[::-1], 4)
    assert np.array_equal(first.losses, second.losses[::-1])
    assert np.array_equal(first.measured, second.measured[::-1])
    for row, task in enumerate(tasks):
        alone = kernels_of([task], True)
        assert np.array_equal(train(alone, [counts[row]], 4).losses[0], first.losses[row])
        for mine, others, also in zip(
            contents(alone, 0), contents(many, row), contents(backwards, 19 - row), strict=True
        ):
            assert np.array_equal(mine, others)
            assert np.array_equal(mine, also)


@needs_library
def test_a_saved_state_goes_on_with_the_same_bits():
    tasks = [random_task(seed) for seed in range(8)]
    made = kernels_of(tasks, measured=True)
    train(made, [3] * 8, 3)
    other = MLPKernels(copy.deepcopy(made.state))
    for row, task in enumerate(tasks):
        other.restore(row, task)
    first, second = train(made, [4] * 8, 4), train(other, [4] * 8, 4)
    assert np.array_equal(first.losses, second.losses)
    assert np.array_equal(first.measured, second.measured)
    assert np.array_equal(made.state.weights, other.state.weights)


@needs_library
def test_what_lies_in_the_gaps_and_behind_the_network_does_not_matter():
    task = random_task(3)
    made, other = (MLPKernels(MLPState.zeros(2, task.size + 40, measured=True)) for _ in range(2))
    for each in (made, other):
        each.assign(0, task)
    for memory in (other.state.weights, *other.state.memories):
        values = params_of(task, memory[0], torch.float32)
        memory[:] = np.nan
        views = network_of(task).views(torch.from_numpy(memory[:1, : task.size]))
        for name, value in values.items():
            views[name][0] = value
    for each in (made, other):
        trained = each.train([3, 0], np.full((2, 3), 0.01))
        assert trained.measured[1].tolist() == [0] * 7
    for name, value in params_of(task, made.state.weights[0]).items():
        assert torch.equal(value, params_of(task, other.state.weights[0])[name])
    assert np.isnan(other.state.weights[0, task.size :]).all()
    assert np.isnan(other.state.weights[1]).all()
    assert other.state.finite.tolist() == [1, 0]


# --- rows and counts ------------------------------------------------------------------------------------------------


@needs_library
def test_a_row_without_mini_batches_is_left_alone():
    tasks = [random_task(seed) for seed in range(3)]
    made = kernels_of(tasks, measured=True)
    train(made, [2, 2, 2], 2)
    before = copy.deepcopy(made.state)
    trained = train(made, [2, 0, 1], 2)
    for field in fields(MLPState):
        mine, earlier = getattr(made.state, field.name), getattr(before, field.name)
        pairs = zip(mine, earlier, strict=True) if field.name == "slots" else [(mine, earlier)]
        for now, then in pairs:
            assert np.array_equal(now[1], then[1])
    assert made.state.clock.tolist() == [4, 2, 3]
    assert (trained.losses[1] == 0).all()
    assert trained.losses[2, 1] == 0
    assert (trained.measured[1] == 0).all()


@needs_library
def test_a_new_task_begins_anew_and_leaves_the_others_alone():
    tasks = [random_task(seed) for seed in range(4)]
    made = kernels_of(tasks[:3], measured=True)
    room = MLPKernels(MLPState.zeros(3, 60_000, measured=True))
    for row, task in enumerate(tasks[:3]):
        room.assign(row, task)
    train(made, [3] * 3, 3)
    train(room, [3] * 3, 3)
    room.assign(1, tasks[3])
    assert room.state.clock.tolist() == [3, 0, 3]
    fresh = kernels_of([tasks[3]], measured=True)
    losses = train(room, [2] * 3, 2).losses
    assert np.array_equal(losses[[0, 2]], train(made, [2] * 3, 2).losses[[0, 2]])
    assert np.array_equal(losses[1], train(fresh, [2], 2).losses[0])


@needs_library
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_row_that_is_not_finite_stops_and_harms_no_other(activation, value):
    tasks = [random_task(seed, activation=activation, optimizer="sgd") for seed in range(4)]
    made, sound = kernels_of(tasks, measured=True), kernels_of(tasks, measured=True)
    made.state.weights[1, 7 * tasks[1].widths[0]] = value
    made.state.weights[2, tasks[2].size - 16] = value
    with np.errstate(over="ignore"):
        trained, expected = train(made, [4] * 4, 4), train(sound, [4] * 4, 4)
    assert np.array_equal(trained.losses[[0, 3]], expected.losses[[0, 3]])
    assert np.array_equal(trained.measured[[0, 3]], expected.measured[[0, 3]])
    for row in (1, 2):
        if not np.isfinite(value):
            assert not made.state.finite[row]
        if not made.state.finite[row]:
            done = int(made.state.clock[row])
            assert done < 4
            assert np.isnan(trained.losses[row, done + 1 :]).all()
            assert np.isnan(trained.measured[row]).all()
            before = made.state.weights[row].copy()
            assert np.isnan(train(made, [1] * 4, 1).losses[row, 0])
            assert np.array_equal(before, made.state.weights[row], equal_nan=True)


@needs_library
def test_a_learning_rate_that_blows_up_ends_the_row():
    tasks = [random_task(seed, optimizer="momentum") for seed in range(2)]
    made = kernels_of(tasks)
    losses = made.train([30, 30], np.array([[1e30] * 30, [0.001] * 30])).losses
    assert made.state.finite.tolist() == [0, 1]
    assert np.isnan(losses[0, -1])
    assert np.isfinite(losses[1]).all()


# --- wrong input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_classes": 1}, "n_classes: it must be an integer from 2 to 128, not 1"),
        ({"n_classes": 129}, "n_classes"),
        ({"n_classes": 4}, "train: labels must be from 0 to 3, not 4"),
        ({"n_classes": 5.0}, "n_classes"),
        ({"widths": ()}, "widths: 1 to 3 hidden layers, not 0"),
        ({"widths": (4, 4, 4, 4)}, "widths: 1 to 3 hidden layers, not 4"),
        ({"widths": (1,)}, "widths: it must be an integer from 2 to 256, not 1"),
        ({"widths": (8, 257)}, "widths: it must be an integer from 2 to 256, not 257"),
        ({"widths": (8.0,)}, "widths"),
        ({"batch_size": 0}, "batch_size: it must be an integer from 1 to 512, not 0"),
        ({"batch_size": 21}, "batch_size: 21 of 20 training images; take at most as many"),
        ({"batch_size": True}, "batch_size"),
        ({"activation": "elu"}, "no activation 'elu'; there are relu, tanh, gelu"),
        ({"optimizer": "gradients"}, "no optimizer 'gradients'; there are sgd, momentum, nesterov, adamw"),
        ({"momentum": 1.0}, "momentum: 1.0 is out of its range"),
        ({"momentum": -0.1}, "momentum"),
        ({"beta2": 1.0}, "beta2"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"weight_decay": math.nan}, "weight_decay"),
        ({"scale": math.inf}, "scale"),
        ({"shift": math.nan}, "shift"),
        ({"loss_scale": 0.0}, "loss_scale"),
        ({"loss_scale": math.inf}, "loss_scale"),
        ({"initial_scale": 0.0}, "initial_scale"),
        ({"seed": 2**63}, "seed"),
        ({"class_weights": np.ones(4)}, r"class_weights: they must be .5,. numbers above 0"),
        ({"class_weights": np.array([1, 1, 0, 1, 1])}, "class_weights"),
        ({"class_weights": np.array([1, 1, np.nan, 1, 1])}, "class_weights"),
        ({"class_weights": np.array([1, 1, np.inf, 1, 1])}, "class_weights"),
        ({"normalised": 1}, "normalised: 1 is out of its range"),
        ({"train": None}, "train: it must be Examples, not NoneType"),
    ],
)
def test_wrong_tasks_are_refused(changes, message):
    rng = np.random.default_rng(0)
    examples = Examples(pictures(49), rng.integers(0, 300, 20), np.arange(20) % 5)
    right: dict[str, Any] = {"train": examples, "n_classes": 5, "batch_size": 4}
    MLPTask(**right)
    with pytest.raises(ValueError, match=message):
        MLPTask(**right | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": pictures(49).astype(np.float32)}, "images"),
        ({"images": pictures(49)[:, ::2]}, "images: they must be contiguous"),
        ({"images": pictures(49)[0]}, "images"),
        ({"images": pictures(49)[:0]}, "images"),
        ({"images": pictures(49).tolist()}, "images"),
        ({"chosen": np.array([0, 300])}, "chosen: they must be from 0 to 299"),
        ({"chosen": np.array([-1, 0])}, "chosen: they must be from 0 to 299"),
        ({"chosen": np.array([0.0, 1.0])}, "chosen: they must be .n,. integers"),
        ({"chosen": np.array([], np.int64)}, "chosen"),
        ({"chosen": np.array([[0, 1]])}, "chosen"),
        ({"labels": np.array([0, 128])}, "labels: they must be from 0 to 127"),
        ({"labels": np.array([0, -1])}, "labels"),
        ({"labels": np.array([0])}, "chosen and labels: as many of one as of the other, not 2 and 1"),
    ],
)
def test_wrong_examples_are_refused(changes, message):
    right: dict[str, Any] = {"images": pictures(49), "chosen": np.array([5, 299]), "labels": np.array([0, 127])}
    Examples(**right)
    with pytest.raises(ValueError, match=message):
        Examples(**right | changes)


def test_examples_do_not_change_when_their_arrays_do():
    chosen, labels = np.array([1, 2, 3]), np.array([0, 1, 2])
    examples = Examples(pictures(49), chosen, labels)
    chosen[:], labels[:] = 10**6, 10**6
    assert examples.chosen.tolist() == [1, 2, 3]
    assert examples.labels.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="read-only"):
        examples.chosen[0] = 10**6


def test_images_have_16_to_1024_numbers():
    for inputs in (15, 1025):
        with pytest.raises(ValueError, match=r"inputs: numbers of an image: it must be an integer from 16 to 1024"):
            MLPTask(made_examples(inputs, 3, 40), 3)
    for inputs in (16, 17, 1024):
        check_gradients_alone(MLPTask(made_examples(inputs, 3, 40), 3, (4,), "tanh"))


@needs_library
@pytest.mark.parametrize(
    ("counts", "rates", "message"),
    [
        ([1, 4], np.zeros((2, 3)), "counts: they must be from 0 to 3"),
        ([-1, 1], np.zeros((2, 3)), "counts: they must be from 0 to 3"),
        ([1], np.zeros((2, 3)), "counts: they must be .2,. integers"),
        ([1.0, 1.0], np.zeros((2, 3)), "counts"),
        ([1, 1], np.zeros((3, 2)), "rates: it must be .2, 2. of float64"),
        ([1, 1], np.zeros((2, 3), np.float32), "rates"),
        ([1, 1], np.zeros((2, 6))[:, ::2], "rates: it must be contiguous"),
        ([1, 1], np.zeros((2, 0)), "rates: they must be .2, M. of float64"),
        ([1, 1], [[0.1], [0.1]], "rates"),
    ],
)
def test_wrong_calls_are_refused_and_nothing_is_written(counts, rates, message):
    made = kernels_of([random_task(0), random_task(1)])
    before = copy.deepcopy(made.state)
    with pytest.raises(ValueError, match=message):
        made.train(counts, rates)
    assert np.array_equal(made.state.weights, before.weights)
    assert np.array_equal(made.state.clock, before.clock)


@needs_library
def test_wrong_rows_clocks_and_rows_without_a_task_are_refused():
    task = random_task(0)
    made = MLPKernels(MLPState.zeros(3, task.size))
    made.assign(1, task)
    with pytest.raises(ValueError, match="row 2 has no task"):
        made.train([0, 1, 1], np.zeros((3, 1)))
    made.train([0, 1, 0], np.zeros((3, 1)))
    with pytest.raises(ValueError, match="row 0 has no task"):
        made.evaluate([0], task.train)
    for rows in ([3], [-1], [1, 1], [[1]], [1.0], [1, 1, 1, 1]):
        with pytest.raises(ValueError, match="rows: "):
            made.evaluate(rows, task.train)
    with pytest.raises(ValueError, match="examples: as many as rows, 1, not 2"):
        made.evaluate([1], [task.train] * 2)
    with pytest.raises(ValueError, match="row 1 takes images of"):
        made.evaluate([1], made_examples(100, 2, 5))
    with pytest.raises(ValueError, match=r"row 1: labels must be from 0"):
        made.evaluate([1], Examples(task.train.images, [0], [task.n_classes]))
    for row in (-1, 3):
        with pytest.raises(ValueError, match="row: it must be from 0 to 2"):
            made.assign(row, task)
    for clock in (-1, 2**63 - 1):
        made.state.clock[1] = clock
        with pytest.raises(ValueError, match="clock: it must count from 0"):
            made.train([0, 1, 0], np.zeros((3, 1)))


@needs_library
def test_a_state_without_room_is_refused():
    task = random_task(0, optimizer="adamw")
    with pytest.raises(ValueError, match=f"the network has {task.size} numbers, a row has room for {task.size - 1}"):
        MLPKernels(MLPState.zeros(1, task.size - 1)).assign(0, task)
    with pytest.raises(ValueError, match="adamw needs 2 slots, the state has 1"):
        MLPKernels(MLPState.zeros(1, task.size, slots=1)).assign(0, task)
    MLPKernels(MLPState.zeros(1, task.size, slots=0)).assign(0, replace(task, optimizer="sgd"))
    with pytest.raises(ValueError, match="threads: at least 1, not 0"):
        MLPKernels(MLPState.zeros(1, 100), threads=0)
    with pytest.raises(ValueError, match="no instruction set 'sse'"):
        MLPKernels(MLPState.zeros(1, 100), instruction_set="sse")


@needs_library
@pytest.mark.parametrize("name", [field.name for field in fields(MLPState)])
def test_wrong_states_are_refused(name):
    state = MLPState.zeros(3, 100, measured=True)
    right = getattr(state, name)
    for wrong in wrong_arrays(right[0] if name == "slots" else right):
        if (
            name == "weights"
            and isinstance(wrong, np.ndarray)
            and wrong.shape == (3, 200)
            and wrong.dtype == np.float32
        ):
            continue  # larger rows: another array is wrong then
        if name == "previous_gradient" and wrong is None:
            continue  # nothing is measured
        with pytest.raises(
            ValueError, match=r"weights|slots|clock|momentum|weight_decay|finite|gradient|start|displacement"
        ):
            MLPKernels(replace(state, **{name: (wrong, right[1]) if name == "slots" else wrong}))


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory):
    return compile_fuzz("mlp_fuzz.c", tmp_path_factory.mktemp("fuzz"))


@pytest.mark.slow
@needs_library
@needs_compiler
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("instruction_set", Kernels.available())
def test_eighty_thousand_calls_under_sanitizers(instruction_set, seed, fuzz):
    assert_fuzz_passes(fuzz, 20000, seed, instruction_set)
