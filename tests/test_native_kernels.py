"""The C kernels: against float64, the same bits everywhere, wrong input, and how they are compiled and found."""

import hashlib
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from qan_gym.data.datasets import load_dataset, on_device
from qan_gym.native import build, library
from qan_gym.native.kernels import PARAMETERS, SLOTS, BatchSequence, Call, Images, Kernels, Measuring, Update
from qan_gym.native.portable import PortableNumpy
from qan_gym.optimizee import zoo
from qan_gym.optimizee.network import Network, Params
from qan_gym.optimizee.optimizers import AdamW

ROOT = Path(__file__).parents[1]
C_PROGRAMS = Path(__file__).parent / "native"
FOUND = library.find()

needs_library = pytest.mark.skipif(isinstance(FOUND, str), reason=str(FOUND))
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, build.COMPILERS)), reason="needs a C compiler")


# --- networks, images, calls ----------------------------------------------------------------------------------------


@cache
def network_of(channels: int, n_classes: int) -> Network:
    return zoo.mnist_cnn((channels, 28, 28), n_classes)


@cache
def made_images(channels: int, n_classes: int, count: int = 400) -> Images:
    """Blobs with a share of background, from integers alone: the same on every machine."""
    rng = np.random.default_rng(channels)
    coarse = rng.integers(-200, 256, (count, channels, 7, 7))
    fine = np.repeat(np.repeat(coarse, 4, axis=2), 4, axis=3) + rng.integers(-40, 40, (count, channels, 28, 28))
    images = np.pad(np.clip(fine, 0, 255).astype(np.uint8), [(0, 0), (0, 0), (2, 2), (2, 2)])
    mean = np.array([60.0, 61.5, 55.25], np.float32)[:channels]
    std = np.array([70.0, 71.5, 80.25], np.float32)[:channels]
    return Images(images, rng.integers(0, n_classes, count), mean, std)


@cache
def digits() -> Images:
    """Bundled MNIST, where many windows see background only."""
    data = on_device(load_dataset("mnist5k"), (1, 32, 32), 2000, "normalise", "cpu")
    mean, std = (value.flatten().numpy() for value in (data.mean, data.std))
    return Images(data.images["train"].numpy(), data.labels["train"].numpy(), mean, std)


def fresh(number: int, channels: int, n_classes: int, seed: int = 0) -> np.ndarray:
    """(N, size) float32 of networks, uniform in +-1/sqrt(fan-in), from NumPy's generator."""
    network = network_of(channels, n_classes)
    memory = torch.zeros(number, network.size())
    for row in range(number):
        rng = np.random.default_rng([seed, row])
        for name, value in network.views(memory[row : row + 1]).items():
            fan_in = math.prod(network.shapes[name.replace("bias", "weight")][1:])
            unit = rng.random(tuple(value.shape[1:])).astype(np.float32)
            value[0] = torch.from_numpy((2 * unit - 1) / np.float32(math.sqrt(fan_in)))
    return memory.numpy()


@dataclass
class Case:
    """N networks and everything that a training step of theirs reads and writes."""

    kernels: Kernels
    data: Images
    weights: np.ndarray
    indices: np.ndarray
    update: Update
    loss: np.ndarray
    finite: np.ndarray
    gradients: np.ndarray

    @property
    def network(self) -> Network:
        return network_of(self.kernels.channels, self.kernels.n_classes)

    def params(self, memory: np.ndarray, row: int) -> dict[str, torch.Tensor]:
        """Copies of one network's parameters, float64."""
        views = self.network.views(torch.from_numpy(memory[row : row + 1]))
        return {name: value[0].double() for name, value in views.items()}

    def train(self) -> Call:
        return self.kernels.training(self.data, self.weights, self.indices, self.loss, self.finite, self.update)

    def differentiate(self) -> Call:
        return self.kernels.training(
            self.data, self.weights, self.indices, self.loss, self.finite, gradients=self.gradients
        )

    def contents(self) -> tuple[np.ndarray, ...]:
        return (self.weights, *self.update.slots, self.loss, self.finite)


def make_case(
    number: int = 2,
    batch: int = 10,
    data: Images | None = None,
    n_classes: int = 10,
    optimizer: str = "sgd",
    pulled: tuple[str, ...] | None = None,
    rate: float = 0.05,
    **kwargs: Any,
) -> Case:
    data = data or made_images(1, n_classes)
    kernels = Kernels(len(data.mean), n_classes, **kwargs)
    size = (number, kernels.size)
    update = Update(
        optimizer,
        learning_rate=rate * (1 + np.arange(number) % 7 / 7),
        momentum=np.full(number, 0.9),
        weight_decay=0.01 * (np.arange(number) % 3),
        step=np.zeros(number, np.int64),
        slots=[np.zeros(size, np.float32) for _ in range(SLOTS[optimizer])],
        strength=None if pulled is None else (0.01 * (np.arange(number) % 4 + 1)).astype(np.float32),
        reference=None if pulled is None else fresh(1, len(data.mean), n_classes, seed=1)[0],
        pulled=pulled or (),
    )
    indices = np.zeros((number, batch), np.int64)
    for row in range(number):  # a network's mini-batch does not depend on how many there are
        indices[row] = np.random.default_rng([2, row]).integers(0, len(data.labels), batch)
    return Case(
        kernels,
        data,
        fresh(number, len(data.mean), n_classes),
        indices,
        update,
        np.zeros(number, np.float32),
        np.zeros(number, np.uint8),
        np.zeros(size, np.float32),
    )


def redraw(case: Case, step: int) -> None:
    """The mini-batches of another step; also counts it."""
    for row in range(len(case.indices)):
        case.indices[row] = np.random.default_rng([3, step, row]).integers(
            0, len(case.data.labels), case.indices.shape[1]
        )
    case.update.step[:] = step


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative, by the norm."""
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


# --- against float64 ------------------------------------------------------------------------------------------------

TIE = 1e-6  # values of a window that differ by less are a tie: rounding decides which of them is the largest
SAME = 1e-13  # by less than this differ only those that see the same


def windows(values: torch.Tensor, side: int, places: int) -> torch.Tensor:
    """(b, c, H, W) -> (b, c, places, places, side^2), the rest cut off."""
    values = values[..., : side * places, : side * places]
    return values.unfold(2, side, side).unfold(3, side, side).flatten(4)


class Oracle:
    """Forward and backward pass in float64 by PyTorch, with max-pools whose winners can be chosen."""

    def __init__(self, params: Params, data: Images) -> None:
        self.params = {name: value.requires_grad_() for name, value in params.items()}
        self.data = data

    def inputs(self, index: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        mean, std = (torch.from_numpy(value).double()[:, None, None] for value in (self.data.mean, self.data.std))
        images = torch.from_numpy(self.data.images[index]).double()
        return (images - mean) / std, torch.from_numpy(self.data.labels[index])

    def pool(self, values: torch.Tensor, flipped: torch.Tensor | None, ties: list[torch.Tensor]) -> torch.Tensor:
        """Largest of each window; where `flipped`, the second largest. Appends which windows are ties.

        Places that see the same have equal values but for float64's rounding: either may win, the gradients are the
        same. They are not called ties.
        """
        two = values.detach().topk(2).indices
        candidates = values.gather(4, two)  # (..., 2)
        lead = (candidates[..., 0] - candidates[..., 1]).detach()
        ties.append((lead < TIE) & (lead > SAME))
        first = torch.zeros_like(ties[-1]) if flipped is None else flipped
        return candidates.gather(4, first[..., None].long())[..., 0]

    def forward(
        self, images: torch.Tensor, flips: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        p, ties = self.params, list[torch.Tensor]()
        x = windows(F.conv2d(images, p["conv1.weight"], p["conv1.bias"]), 3, 9)
        x = self.pool(x, flips[0], ties).tanh()
        x = windows(F.conv2d(x, p["conv2.weight"], p["conv2.bias"]), 2, 2)
        x = self.pool(x, flips[1], ties).tanh()
        x = F.linear(x.flatten(1), p["linear1.weight"], p["linear1.bias"]).tanh()
        return F.linear(x, p["linear2.weight"], p["linear2.bias"]), ties

    def gradients(self, index: np.ndarray, near: Params) -> tuple[float, Params]:
        """Loss and gradients of a mini-batch; of those that ties allow the ones that are nearest to `near`."""
        images, labels = self.inputs(index)
        logits, ties = self.forward(images)
        loss = F.cross_entropy(logits, labels)
        found = self.differentiate(loss)
        for number, tied in enumerate(ties):
            for at in tied.nonzero():
                image = at[:1]
                flip = torch.zeros_like(tied[image])
                flip[(0, *at[1:])] = True
                change = self.change(images[image], labels[image], number, flip, len(labels))
                rest = {name: near[name] - found[name] for name in found}
                gain = sum(float((rest[name] * change[name]).sum()) for name in found)
                if gain > 0.5 * sum(float(value.square().sum()) for value in change.values()):
                    found = {name: found[name] + change[name] for name in found}
        return loss.item(), found

    def change(self, image: torch.Tensor, label: torch.Tensor, number: int, flip: torch.Tensor, batch: int) -> Params:
        """Of the gradients, when one window of one image has the other winner."""
        flips = (flip, None) if number == 0 else (None, flip)
        other = self.differentiate(F.cross_entropy(self.forward(image, flips)[0], label) / batch)
        same = self.differentiate(F.cross_entropy(self.forward(image)[0], label) / batch)
        return {name: other[name] - same[name] for name in same}

    def differentiate(self, loss: torch.Tensor) -> Params:
        return dict(zip(self.params, torch.autograd.grad(loss, list(self.params.values())), strict=True))


def check_gradients(case: Case) -> None:
    """The gradients and losses at the case's weights."""
    case.differentiate()()
    for row in range(len(case.weights)):
        found = case.params(case.gradients, row)
        loss, expected = Oracle(case.params(case.weights, row), case.data).gradients(case.indices[row], found)
        assert abs(case.loss[row] - loss) <= 1e-6 * max(loss, 1e-3)
        for name in expected:
            assert distance(found[name], expected[name]) < 1e-5, name


def expected_update(case: Case, row: int, gradients: Params) -> tuple[Params, list[Params]]:
    """Weights and slots after the update and the pull, in float64, from the gradients."""
    update = case.update
    rate, momentum, decay = (float(v[row]) for v in (update.learning_rate, update.momentum, update.weight_decay))
    weights = case.params(case.weights, row)
    slots = [case.params(slot, row) for slot in update.slots]
    count = int(update.step[row]) + 1
    for name, g in gradients.items():
        w = weights[name]
        if update.optimizer == "adamw":
            mean = slots[0][name] = momentum * slots[0][name] + (1 - momentum) * g
            square = slots[1][name] = AdamW.BETA2 * slots[1][name] + (1 - AdamW.BETA2) * g**2
            spread = (square / (1 - AdamW.BETA2**count)).sqrt() + AdamW.EPSILON
            w = w - rate * decay * w - rate * mean / (1 - momentum**count) / spread
        else:
            g = g + decay * w
            if slots:
                slots[0][name] = momentum * slots[0][name] + g
                g = g + momentum * slots[0][name] if update.optimizer == "nesterov" else slots[0][name]
            w = w - rate * g
        if name in update.pulled:
            reference = case.params(update.reference[None], 0)[name]
            w = w + float(update.strength[row]) * (reference - w)
        weights[name] = w
    return weights, slots


def check_steps(case: Case, steps: int) -> None:
    """Some steps, each begun from the kernels' own float32 state."""
    for step in range(steps):
        redraw(case, step)
        check_gradients(case)
        loss = case.loss.copy()
        rows = range(len(case.weights))
        expected = [expected_update(case, row, case.params(case.gradients, row)) for row in rows]
        case.train()()
        assert np.array_equal(case.loss, loss)
        assert case.finite.all()
        for row, (weights, slots) in enumerate(expected):
            for memory, values in zip((case.weights, *case.update.slots), (weights, *slots), strict=True):
                found = case.params(memory, row)
                for name in values:
                    assert distance(found[name], values[name]) < 1e-6, name


@needs_library
@pytest.mark.parametrize("batch", [1, 10, 17, 47])
@pytest.mark.parametrize(("channels", "n_classes"), [(1, 10), (3, 2), (2, 62), (3, 128)])
def test_losses_gradients_and_weights_are_those_of_float64(channels, n_classes, batch):
    data = made_images(channels, n_classes)
    check_steps(make_case(1, batch, data, n_classes, pulled=network_of(channels, n_classes).weights), 2)


@needs_library
@pytest.mark.parametrize("pulled", [None, ("conv1.weight",), tuple(PARAMETERS[::2])])
@pytest.mark.parametrize("optimizer", library.OPTIMIZERS[1:])
def test_every_optimizer_with_and_without_pull(optimizer, pulled):
    rate = 0.001 if optimizer == "adamw" else 0.05
    check_steps(make_case(3, 10, digits(), optimizer=optimizer, pulled=pulled, rate=rate), 3)


@pytest.mark.slow
@needs_library
@pytest.mark.parametrize("first", range(1, 301, 20))
def test_every_batch_size(first):
    for batch in range(first, first + 20):
        check_steps(make_case(1, batch, digits(), pulled=tuple(PARAMETERS[::2])), 1)


@pytest.mark.slow
@needs_library
def test_a_long_training_step_by_step():
    case = make_case(2, 10, digits(), optimizer="momentum", pulled=tuple(PARAMETERS[::2]), rate=0.02)
    case.update.momentum[:] = 0.5
    check_steps(case, 200)


@needs_library
@pytest.mark.parametrize("channels", [1, 3])
def test_evaluation_is_that_of_float64(channels):
    data = digits() if channels == 1 else made_images(3, 10)
    case = make_case(3, data=data)
    data = replace(data, images=data.images[:311], labels=data.labels[:311])
    loss, accuracy = np.zeros(3, np.float32), np.zeros(3, np.float32)
    case.kernels.evaluation(data, case.weights, loss, accuracy)()
    for row in range(3):
        oracle = Oracle(case.params(case.weights, row), data)
        images, labels = oracle.inputs(np.arange(len(data.labels)))
        logits = oracle.forward(images)[0].detach()
        assert loss[row] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)
        assert accuracy[row] == pytest.approx((logits.argmax(dim=1) == labels).double().mean().item(), abs=1e-7)


@needs_library
def test_the_parameters_lie_as_the_network_lays_them():
    for channels in (1, 2, 3):
        for n_classes in (2, 10, 15, 16, 17, 128):
            network = network_of(channels, n_classes)
            assert Kernels(channels, n_classes).size == network.size()
            assert tuple(network.shapes) == PARAMETERS


# --- the same bits --------------------------------------------------------------------------------------------------

# SHA-256 of the weights, slots, losses and evaluation after some steps, by (channels, classes, batch, optimizer).
GOLDEN = {
    (1, 10, 10, "sgd"): "3ca2e51df16f27810b11b46dc93c0d8ed6db63e6f3254c99b5750dafc46521aa",
    (1, 10, 10, "momentum"): "02a73e14ded3fad0944728d4980a4186a85e1bd0fba8ffe4d1a9f89e0506ab99",
    (1, 10, 10, "nesterov"): "12a2c5b291f6c11fb131683f1b0609d95b040462aa9c7fd14245a2a5e41786d7",
    (1, 10, 10, "adamw"): "c5d983760143d3fef742357c4adf1e47fc703bc9e8eb21a8916da8adc7e35536",
    (3, 62, 37, "sgd"): "7748676f183a6afa187b9b98f94c33ccade37c8bb958b767405fbabde264938e",
}
FUNCTIONS = "aff5fb70c8e380a8133e256b5d954b182f2147eda5523b787ca73bfeba353e5f"  # of exp, log and cos


def trained_digest(key: tuple[int, int, int, str], **kwargs: Any) -> str:
    channels, n_classes, batch, optimizer = key
    data = made_images(channels, n_classes)
    rate = 0.001 if optimizer == "adamw" else 0.02
    case = make_case(3, batch, data, n_classes, optimizer, PARAMETERS[::2], rate, **kwargs)
    call, digest = case.train(), hashlib.sha256()
    for step in range(5):
        redraw(case, step)
        call()
        digest.update(case.loss.tobytes())
    loss, accuracy = np.zeros(3, np.float32), np.zeros(3, np.float32)
    case.kernels.evaluation(data, case.weights, loss, accuracy)()
    for array in (*case.contents(), loss, accuracy):
        digest.update(array.tobytes())
    return digest.hexdigest()


@needs_library
@pytest.mark.parametrize("instruction_set", Kernels.available() or ["none"])
@pytest.mark.parametrize("key", GOLDEN)
def test_golden_digests_hold_with_every_instruction_set(key, instruction_set):
    assert trained_digest(key, instruction_set=instruction_set) == GOLDEN[key]


@needs_library
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_network_trains_the_same_alone_and_among_33(threads):
    def trained(number: int, rows: list[int] | None = None) -> Case:
        case = make_case(number, 7, digits(), optimizer="nesterov", pulled=("conv1.weight",), threads=threads)
        call = case.train()
        for step in range(3):
            redraw(case, step)
            call(rows)
        return case

    many = trained(33)
    alone = trained(1)
    for one, all_of_them in zip(alone.contents(), many.contents(), strict=True):
        assert np.array_equal(one[0], all_of_them[0])
    backwards = trained(33, list(range(32, -1, -1)))
    for one, other in zip(backwards.contents(), many.contents(), strict=True):
        assert np.array_equal(one, other)


@needs_library
def test_only_the_rows_that_are_named_are_trained():
    case, untouched, all_of_them = (make_case(5, optimizer="momentum") for _ in range(3))
    all_of_them.train()()
    case.train()([4, 1])
    for found, before, after in zip(case.contents(), untouched.contents(), all_of_them.contents(), strict=True):
        assert np.array_equal(found[[1, 4]], after[[1, 4]])
        assert np.array_equal(found[[0, 2, 3]], before[[0, 2, 3]])
    case.train()([])


@needs_library
def test_rows_may_lie_apart_in_memory():
    """As where the parameters of a network are part of a larger array."""
    case, other = make_case(3), make_case(3)
    wide = np.full((3, case.kernels.size + 48), 7, np.float32)
    wide[:, 16:-32] = case.weights
    case.weights = wide[:, 16:-32]
    case.train()()
    other.train()()
    assert np.array_equal(case.weights, other.weights)
    assert (wide[:, :16] == 7).all()
    assert (wide[:, -32:] == 7).all()


def made_measuring(case: Case, batches: int) -> Measuring:
    memories = [np.zeros_like(case.weights) for _ in range(3)]
    return Measuring(
        np.zeros((len(case.loss), 7), np.float32), np.zeros((len(case.loss), batches), np.float32), *memories
    )


def measured_actions(instruction_set: str, optimizer: str, threads: int = 1, number: int = 3) -> tuple[Case, Measuring]:
    """Two actions of three mini-batches."""
    data = made_images(3, 7)
    rate = 0.001 if optimizer == "adamw" else 0.02
    case = make_case(
        number, 10, data, 7, optimizer, PARAMETERS[1:6], rate, instruction_set=instruction_set, threads=threads
    )
    measuring = made_measuring(case, 3)
    call = case.kernels.training(
        data, case.weights, case.indices, case.loss, case.finite, case.update, measuring=measuring
    )
    for step in range(6):
        redraw(case, step)
        call(number=step % 3)
    return case, measuring


@needs_library
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "nesterov", "adamw"])
def test_measurements_have_the_same_bits_with_every_instruction_set_and_number_of_threads(optimizer):
    """And in a network alone; and what is trained has those of a training without them."""
    case, measuring = measured_actions(Kernels.available()[0], optimizer)
    for instruction_set in Kernels.available():
        for threads, number in ((1, 3), (2, 3), (1, 1)):
            other, its = measured_actions(instruction_set, optimizer, threads, number)
            for name in vars(measuring):
                assert np.array_equal(getattr(its, name), getattr(measuring, name)[:number]), name
            assert np.array_equal(other.weights, case.weights[:number])
    plain = make_case(3, 10, case.data, 7, optimizer, PARAMETERS[1:6], 0.001 if optimizer == "adamw" else 0.02)
    call = plain.train()
    for step in range(6):
        redraw(plain, step)
        call()
    assert np.array_equal(plain.weights, case.weights)
    assert measuring.losses[:, 2].tolist() == case.loss.tolist()


@needs_library
def test_measuring_is_refused_where_it_cannot_be():
    case = make_case(2)
    measuring = made_measuring(case, 3)
    arrays = (case.data, case.weights, case.indices, case.loss, case.finite)
    with pytest.raises(ValueError, match="measuring: it is of an update, and there is none"):
        case.kernels.training(*arrays, gradients=case.gradients, measuring=measuring)
    with pytest.raises(ValueError, match="measured: it must be"):
        case.kernels.training(*arrays, case.update, measuring=replace(measuring, measured=measuring.losses))
    call = case.kernels.training(*arrays, case.update, measuring=measuring)
    with pytest.raises(ValueError, match="3 and 1 do not lie within the 3 mini-batches of an action"):
        call(number=3)


@needs_library
def test_a_loss_scale_multiplies_loss_and_gradients():
    """Of each network its own."""
    case, scaled = make_case(3), make_case(3)
    case.differentiate()()
    scale = np.array([1, 0.3, 8], np.float32)
    scaled.kernels.training(
        *(scaled.data, scaled.weights, scaled.indices, scaled.loss, scaled.finite),
        gradients=scaled.gradients,
        loss_scale=scale,
    )()
    np.testing.assert_allclose(scaled.loss, scale * case.loss, rtol=1e-6)
    np.testing.assert_allclose(scaled.gradients, scale[:, None] * case.gradients, rtol=1e-4, atol=1e-6)
    assert np.array_equal(scaled.gradients[0], case.gradients[0])


@pytest.mark.slow
@needs_library
@needs_compiler
@pytest.mark.parametrize("flags", ["-O2", "-O3", "-O1", "-O3 -march=native"])
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_golden_digests_hold_with_every_compiler(compiler, flags, tmp_path, monkeypatch):
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}")
    monkeypatch.setenv("CC", compiler)
    build.build(tmp_path / "other.so", tuple(flags.split()))
    found = library.open_library(tmp_path / "other.so")
    monkeypatch.setattr(library, "find", lambda: found)
    for key, digest in GOLDEN.items():
        for instruction_set in Kernels.available():
            assert trained_digest(key, instruction_set=instruction_set) == digest


def compile_program(name: str, compiler: str, target: Path, *flags: str) -> None:
    """One of the programs in `tests/native`, with the sources of the library."""
    sources = [C_PROGRAMS / name, *sorted(build.SOURCES.glob("*.c"))]
    command = [compiler, *build.FLAGS, f"-I{build.SOURCES}", "-Wall", "-Wextra", "-Werror", *flags]
    subprocess.run([*command, *sources, "-o", target], check=True)


def compile_fuzz(name: str, folder: Path) -> Path:
    """A program that fuzzes the kernels, compiled with sanitizers; clang's is the faster one."""
    program = folder / "fuzz"
    compiler = "clang" if shutil.which("clang") else build.compiler()[0]
    sanitizers = ("-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all")
    try:
        compile_program(name, compiler, program, "-O1", "-g", *sanitizers)
    except subprocess.CalledProcessError:
        pytest.skip("the compiler has no sanitizers")
    return program


def assert_fuzz_passes(program: Path, calls: int, seed: int, instruction_set: str) -> None:
    """So many calls end well, and some of them were refused."""
    bit = str(library.INSTRUCTION_SETS[instruction_set])
    done = subprocess.run([program, str(calls), str(seed), bit], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "refused" in done.stdout


@pytest.mark.slow
@needs_library
@needs_compiler
def test_arm64_gives_the_same_bits_under_emulation(tmp_path):
    cross, emulator = "aarch64-linux-gnu-gcc", "qemu-aarch64"
    if shutil.which(cross) is None or shutil.which(emulator) is None:
        pytest.skip(f"needs {cross} and {emulator}")
    compile_program("digest.c", build.compiler()[0], tmp_path / "here")
    compile_program("digest.c", cross, tmp_path / "arm64", "-static")
    here = subprocess.check_output([tmp_path / "here", instruction_set_bit()])
    assert subprocess.check_output([emulator, tmp_path / "arm64", str(library.INSTRUCTION_SETS["neon"])]) == here


def instruction_set_bit() -> str:
    return str(library.INSTRUCTION_SETS[Kernels.available()[0]])


# --- several mini-batches in a row ----------------------------------------------------------------------------------


def sequence_of(case: Case, clock: Any, **changes: Any) -> tuple[BatchSequence, np.ndarray, Call]:
    """A sequence of at most 4 mini-batches of 10, 5 of an epoch, what it draws, and the call."""
    number = len(case.weights)
    order = np.array([np.random.default_rng(row).permutation(400) for row in range(number)], np.int32)
    declared = {
        **{"order": order, "clock": np.asarray(clock), "per_epoch": 5, "pulled": np.arange(number) % 2 == 0},
        **{"pull_end": 4, "pull_strength": 0.25, "smoothed": np.full(number, 2.0, np.float32), "smoothing": 0.02},
    }
    sequence, drawn = BatchSequence(**declared | changes), np.zeros((number, 4, 10), np.int64)
    call = case.kernels.training(
        *(case.data, case.weights, drawn, case.loss, case.finite, case.update), sequence=sequence
    )
    return sequence, drawn, call


@needs_library
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("with_rates", [False, True])
def test_a_sequence_is_its_mini_batches_one_after_another(optimizer, with_rates):
    """Bit for bit: weights, slots, losses, their running mean, clock; pulled until the clock is 4, in even rows."""
    mine, plain = (make_case(3, 10, optimizer=optimizer, pulled=PARAMETERS[::2], rate=0.01) for _ in range(2))
    clock = [2, 3, 4]
    mine.update.step[:] = clock
    sequence, drawn, call = sequence_of(mine, mine.update.step)  # as in an environment
    rates = 0.01 * np.arange(1, 10.0).reshape(3, 3) if with_rates else None
    mine.loss[:], smoothed, losses = 1.5, sequence.smoothed.copy(), np.full(3, 1.5, np.float32)
    call.part(1, 3, rates)
    single = plain.train()
    for number in range(3):
        for row in range(3):
            place = (clock[row] + number) % 5 * 10
            plain.indices[row] = sequence.order[row, place : place + 10]
            plain.update.step[row] = clock[row] + number
            pulled = row % 2 == 0 and clock[row] + number < 4
            plain.update.strength[row] = 0.25 if pulled else 0
            if with_rates:
                plain.update.learning_rate[row] = rates[number, row]
        single()
        assert np.array_equal(drawn[:, 1 + number], plain.indices)
        losses += plain.loss
        smoothed += np.float32(0.02) * (plain.loss - smoothed)
    assert (drawn[:, 0] == 0).all()
    assert np.array_equal(mine.weights, plain.weights)
    assert all(map(np.array_equal, mine.update.slots, plain.update.slots))
    assert np.array_equal(mine.update.learning_rate, plain.update.learning_rate)
    assert mine.loss.tolist() == losses.tolist()
    assert sequence.smoothed.tolist() == smoothed.tolist()
    assert sequence.clock.tolist() == [5, 6, 7]


@needs_library
@pytest.mark.parametrize(
    ("clock", "spoil", "message"),
    [
        ([0, -1], None, "clock: it must count from 0"),
        ([0, 2**63 - 2], None, "clock: it must count from 0"),
        ([0, 0], 400, "indices: they must be from 0 to 399"),
        ([0, 0], -1, "indices: they must be from 0 to 399"),
    ],
)
def test_a_wrong_sequence_is_refused_and_nothing_is_trained(clock, spoil, message):
    case = make_case(2)
    sequence, _, call = sequence_of(case, clock)
    before = [array.copy() for array in case.contents()]
    if spoil is not None:
        sequence.order[1, 25] = spoil
    with pytest.raises(ValueError, match=message):
        call.part(0, 4)
    assert all(map(np.array_equal, before, case.contents()))


@needs_library
def test_parts_lie_within_the_sequence():
    case = make_case(2)
    _, _, call = sequence_of(case, [0, 0])
    for first, count in ((0, 5), (3, 2), (-1, 2), (0, 0), (2, -1)):
        with pytest.raises(ValueError, match="do not lie within 4 mini-batches"):
            call.part(first, count)
    with pytest.raises(ValueError, match=r"rates: it must be \(2, 2\)"):
        call.part(0, 2, np.zeros((1, 2)))
    with pytest.raises(ValueError, match="part by part"):
        call()
    for per_epoch in (0, 41, -3):
        with pytest.raises(ValueError, match="per_epoch: it must be from 1 to 40"):
            sequence_of(case, [0, 0], per_epoch=per_epoch)


# --- wrong input ----------------------------------------------------------------------------------------------------


@needs_library
@pytest.mark.parametrize("wrong", [-1, 400, 2**62, -(2**63)])
def test_wrong_indices_are_refused_and_nothing_is_written(wrong):
    case = make_case(3)
    before = [array.copy() for array in case.contents()]
    call = case.train()
    case.indices[2, 9] = wrong
    with pytest.raises(ValueError, match="indices: they must be from 0 to 399"):
        call()
    assert all(map(np.array_equal, before, case.contents()))
    call([0, 1])  # those whose indices are right


@needs_library
@pytest.mark.parametrize("rows", [[0, 0], [3], [-1], [0, 1, 2, 1], [[0]], [0.0], ["0"]])
def test_wrong_rows_are_refused(rows):
    call = make_case(3).train()
    with pytest.raises(ValueError, match="rows: "):
        call(rows)


@needs_library
@pytest.mark.parametrize("wrong", [-1, 10, 2**40])
def test_wrong_labels_are_refused_when_prepared_and_when_called(wrong):
    case = make_case(1)
    case.data = replace(case.data, labels=case.data.labels.copy())
    train, evaluate = case.train(), case.kernels.evaluation(case.data, case.weights, case.loss, case.loss.copy())
    case.data.labels[case.indices[0, 3]] = wrong
    for call in (train, evaluate, case.train):
        with pytest.raises(ValueError, match="labels: they must be from 0 to 9"):
            call()


@needs_library
def test_steps_count_from_0():
    case = make_case(2, optimizer="adamw")
    case.update.step[1] = -1
    with pytest.raises(ValueError, match="step: "):
        case.train()()


def wrong_arrays(array: np.ndarray) -> list[Any]:
    """Other shapes, dtypes, layouts than an array's, and what is no array."""
    other = np.float64 if array.dtype != np.float64 else np.float32
    longer = np.concatenate([array, array], axis=-1)
    wrong = [array[:-1], array[:0], array[None], longer, array.astype(other), None]
    if array.itemsize > 1:
        unaligned = np.frombuffer(bytearray(array.nbytes + 1), np.uint8)[1:].view(array.dtype).reshape(array.shape)
        wrong += [array.astype(array.dtype.newbyteorder()), unaligned]
    wrong += [longer[..., ::2]] if array.shape[-1] > 1 else []
    return [*wrong, array.tolist(), torch.zeros(3)]


@needs_library
@pytest.mark.parametrize("name", ["weights", "indices", "loss", "finite", "gradients"])
def test_wrong_arrays_are_refused(name):
    case = make_case(3)
    for wrong in wrong_arrays(getattr(case, name)):
        if name == "indices" and np.shape(wrong) == (3, 20):
            continue  # a larger mini-batch
        with pytest.raises(ValueError, match=r"weights|indices|loss|finite|gradients"):
            replace(case, **{name: wrong}).differentiate()


@needs_library
@pytest.mark.parametrize("name", ["images", "labels", "mean", "std"])
def test_wrong_images_are_refused(name):
    case = make_case(3)
    for wrong in wrong_arrays(getattr(case.data, name)):
        with pytest.raises(ValueError, match=r"images|labels|mean|std"):
            replace(case, data=replace(case.data, **{name: wrong})).train()


@needs_library
@pytest.mark.parametrize(
    "name",
    ["learning_rate", "momentum", "weight_decay", "step", "strength", "reference", "slots", "optimizer", "pulled"],
)
def test_wrong_updates_are_refused(name):
    case = make_case(3, optimizer="adamw", pulled=("conv1.weight",))
    value = getattr(case.update, name)
    if name == "slots":
        wrongs: list[Any] = [(), value[:1], [value[0]] * 3, *([wrong, value[1]] for wrong in wrong_arrays(value[0]))]
    elif name in ("optimizer", "pulled"):
        wrongs = ["lion", "gradients", ""] if name == "optimizer" else [["conv3.weight"], ["conv1"]]
    else:
        wrongs = [wrong for wrong in wrong_arrays(value) if name != "strength" or wrong is not None]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=name):
            replace(case, update=replace(case.update, **{name: wrong})).train()


@needs_library
def test_read_only_and_overlapping_outputs_are_refused():
    case = make_case(3)
    case.loss.flags.writeable = False
    with pytest.raises(ValueError, match="loss: it is read-only"):
        case.train()
    case = make_case(3)
    overlapping = np.lib.stride_tricks.as_strided(case.weights, case.weights.shape, (64, 4))
    with pytest.raises(ValueError, match="weights: "):
        replace(case, weights=overlapping).train()


@needs_library
@pytest.mark.parametrize(
    ("channels", "n_classes", "arguments"),
    [(0, 10, {}), (4, 10, {}), (1, 1, {}), (1, 129, {}), (1, 10, {"threads": 0}), (1, 10, {"instruction_set": "sse"})],
)
def test_what_the_kernels_do_not_compute_is_refused(channels, n_classes, arguments):
    with pytest.raises(ValueError, match=r"the kernels take|threads|no instruction set"):
        Kernels(channels, n_classes, **arguments)


@needs_library
def test_which_networks_are_supported():
    assert Kernels.supports(network_of(1, 10)) is None
    assert Kernels.supports(network_of(3, 128)) is None
    assert "images of 32 x 32" in str(Kernels.supports(zoo.mnist_cnn((1, 40, 32), 10)))
    assert "129" in str(Kernels.supports(zoo.mnist_cnn((1, 28, 28), 129)))
    assert "4" in str(Kernels.supports(zoo.mnist_cnn((4, 28, 28), 10)))
    same_shapes = replace(network_of(1, 10), forward=lambda params, images, training: images)
    assert "mnist-cnn alone" in str(Kernels.supports(same_shapes))


@needs_library
@pytest.mark.parametrize("optimizer", ["gradients", "sgd", "adamw"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("name", PARAMETERS)
def test_a_network_that_is_not_finite_is_reported_and_harms_no_other(name, value, optimizer):
    gradients_only = optimizer == "gradients"
    case, sound = (make_case(3, 4, optimizer="sgd" if gradients_only else optimizer) for _ in range(2))
    views = case.network.views(torch.from_numpy(case.weights))
    views[name][(1, *[-1] * (views[name].dim() - 1))] = value
    for each in (case, sound):
        (each.differentiate if gradients_only else each.train)()()
    assert case.finite[[0, 2]].all()
    assert np.array_equal(case.weights[[0, 2]], sound.weights[[0, 2]])
    if not gradients_only:
        assert case.finite[1] == all(
            np.isfinite(values).all() for values in (case.loss[1], *(v[1].numpy() for v in views.values()))
        )
    if not np.isfinite(value) and not gradients_only:
        assert not case.finite[1]


@needs_library
def test_an_infinite_loss_is_reported():
    case = make_case(2)
    case.network.views(torch.from_numpy(case.weights))["linear2.bias"][1, ::2] = 3e38
    case.network.views(torch.from_numpy(case.weights))["linear2.bias"][1, 1::2] = -3e38
    case.differentiate()()
    assert case.finite.tolist() == [1, 0]
    assert not np.isfinite(case.loss[1])


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory):
    return compile_fuzz("fuzz.c", tmp_path_factory.mktemp("fuzz"))


@pytest.mark.slow
@needs_library
@needs_compiler
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("instruction_set", Kernels.available())
def test_a_hundred_thousand_calls_under_sanitizers(instruction_set, seed, fuzz):
    assert_fuzz_passes(fuzz, 25000, seed, instruction_set)


@needs_library
def test_threads_may_call_at_once_and_processes_may_fork():
    """Two callers share the kernels' memory by turns; a fork has no helpers, and does their share itself."""
    import threading

    cases = [make_case(4, 10, digits()) for _ in range(3)]
    shared = Kernels(1, 10, threads=3)
    for case in cases[:2]:
        case.kernels = shared
    calls = [case.train() for case in cases]
    callers = [threading.Thread(target=lambda call=call: [call() for _ in range(20)]) for call in calls[:2]]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for _ in range(20):
        calls[2]()
    assert np.array_equal(cases[0].weights, cases[2].weights)
    assert np.array_equal(cases[1].weights, cases[2].weights)
    if sys.platform == "linux":
        process = multiprocessing.get_context("fork").Process(target=calls[0])
        process.start()
        process.join(timeout=30)
        assert process.exitcode == 0


# --- exp, log, cos --------------------------------------------------------------------------------------------------


def units_apart(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest distance in units of the last place."""
    return float((np.abs(found - expected) / np.spacing(np.abs(expected))).max())


@needs_library
def test_exp_log_and_cos_are_within_two_units_of_the_last_place():
    xp, rng = PortableNumpy(), np.random.default_rng(0)
    around_0 = rng.uniform(-2, 2, 20_000)
    near_1 = np.concatenate([1 + s * rng.uniform(-1, 1, 5_000) for s in (0.5, 1e-2, 1e-6, 1e-12)])
    multiples = np.arange(-4000, 4001) * (math.pi / 2)
    cases = [
        (xp.exp, math.exp, np.concatenate([rng.uniform(-700, 700, 50_000), around_0, around_0 * 1e-9])),
        (xp.log, math.log, np.concatenate([np.exp(rng.uniform(-708, 709, 50_000)), near_1])),
        (xp.cos, math.cos, np.concatenate([rng.uniform(-6284, 6284, 50_000), around_0, multiples])),
    ]
    for function, reference, x in cases:
        expected = np.array([reference(value) for value in x])
        assert units_apart(function(x), expected) <= 2


@needs_library
def test_exp_log_and_cos_at_the_edges():
    xp, inf, nan = PortableNumpy(), np.inf, np.nan
    np.testing.assert_array_equal(xp.exp(np.array([inf, -inf, nan, 710, -746, 0])), [inf, 0, nan, inf, 0, 1])
    np.testing.assert_array_equal(
        xp.log(np.array([0, -0.0, -1, inf, -inf, nan, 1])), [-inf, -inf, nan, inf, nan, nan, 0]
    )
    np.testing.assert_array_equal(xp.cos(np.array([0, inf, -inf, nan, 1e9])), [1, nan, nan, nan, nan])
    assert xp.log(np.array(5e-324)) == math.log(5e-324)
    assert xp.exp(np.zeros((2, 3))).shape == (2, 3)


@needs_library
def test_exp_log_and_cos_have_golden_digests():
    xp, x = PortableNumpy(), np.arange(-20_000, 20_000) / 64
    values = [xp.exp(x), xp.log(x[x > 0]), xp.cos(x)]
    assert hashlib.sha256(b"".join(value.tobytes() for value in values)).hexdigest() == FUNCTIONS


# --- compiling and finding ------------------------------------------------------------------------------------------


def test_without_a_library_the_reason_says_what_to_do(tmp_path):
    assert library.BUILD in str(library.open_library(tmp_path / "missing.so"))
    (tmp_path / "damaged.so").write_bytes(b"no library")
    assert "cannot be loaded" in str(library.open_library(tmp_path / "damaged.so"))


@needs_library
def test_a_stale_library_is_refused(monkeypatch):
    monkeypatch.setattr(build, "digest", lambda: "0" * 64)
    reason = library.open_library(build.LIBRARY)
    assert "other sources" in str(reason)
    monkeypatch.setattr(library, "find", lambda: reason)
    assert Kernels.supports(network_of(1, 10)) == reason
    assert Kernels.available() == []
    with pytest.raises(ValueError, match="other sources"):
        Kernels(1, 10)


@needs_library
def test_a_processor_without_vectors_is_not_supported(monkeypatch):
    monkeypatch.setattr(library, "instruction_sets", lambda _: [])
    assert "AVX2 or NEON" in str(library.open_library(build.LIBRARY))


def test_the_digest_is_of_every_source(tmp_path, monkeypatch):
    sources = tmp_path / "src"
    shutil.copytree(build.SOURCES, sources)
    monkeypatch.setattr(build, "SOURCES", sources)
    before = build.digest()
    for path in sources.iterdir():
        content = path.read_bytes()
        path.write_bytes(content + b"\n")
        assert build.digest() != before
        path.write_bytes(content)
    assert build.digest() == before


@pytest.mark.parametrize(
    ("compiler", "message"), [("/bin/false", "fails with status 1"), ("no-such-cc", "does not start")]
)
def test_a_broken_compiler_leaves_what_was_there(compiler, message, tmp_path, monkeypatch):
    monkeypatch.setenv("CC", compiler)
    target = tmp_path / "library.so"
    target.write_bytes(b"before")
    with pytest.raises(build.BuildError, match=message):
        build.build(target)
    assert target.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [target]


def test_without_a_compiler_building_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(build.BuildError, match="there is no C compiler"):
        build.build(tmp_path / "library.so")


@needs_compiler
def test_a_failure_of_the_compiler_is_shown(tmp_path):
    with pytest.raises(build.BuildError, match="no-such-flag"):
        build.build(tmp_path / "library.so", ("--no-such-flag",))


@pytest.mark.slow
def test_the_package_imports_without_a_library(tmp_path):
    """Nothing but the engine needs it."""
    code = "from qan_gym.native import build; build.LIBRARY = build.FOLDER / 'missing'; import qan_gym.env"
    code += "; from qan_gym.native import kernels; print(kernels.Kernels.available())"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).strip() == "[]"


@pytest.fixture
def checkout(tmp_path):
    """What is in version control, copied, so that nothing is built in place here."""
    pytest.importorskip("hatchling")
    folder = tmp_path / "checkout"
    ignored = shutil.ignore_patterns(".git", "*.so", "__pycache__", "studies", "runs", ".*_cache", ".venv")
    shutil.copytree(ROOT, folder, ignore=ignored)
    return folder


def hatch(checkout: Path, target: str, **environment: str) -> tuple[Path, str]:
    """The file that hatchling builds, and what it says."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(checkout / "out")]
    shutil.rmtree(checkout / "out", ignore_errors=True)
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    (built,) = (checkout / "out").iterdir()
    return built, done.stdout + done.stderr


@pytest.mark.slow
@needs_compiler
def test_a_wheel_carries_the_library_and_a_pure_one_is_built_without_a_compiler(checkout, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    name = "qan_gym/native/_kernels.so"
    wheel, _ = hatch(checkout, "wheel")
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("-any.whl")
    assert zipfile.ZipFile(wheel).namelist().count(name) == 1
    assert not (checkout / name).exists()
    (checkout / name).write_bytes(b"of an earlier version")
    for environment in ({"CC": "/bin/false"}, {"PATH": "/no/compiler"}):
        pure, said = hatch(checkout, "wheel", **environment)
        assert pure.name.endswith("-py3-none-any.whl")
        assert name not in zipfile.ZipFile(pure).namelist()
        assert "without its C kernels" in said


@pytest.mark.slow
def test_the_source_distribution_has_the_sources_and_never_a_library(checkout):
    (checkout / "qan_gym" / "native" / "_kernels.so").write_bytes(b"built here")
    archive, _ = hatch(checkout, "sdist")
    with tarfile.open(archive) as opened:
        names = [name.partition("/")[2] for name in opened.getnames()]
    assert not [name for name in names if name.endswith(".so")]
    for path in build.SOURCES.iterdir():
        assert f"qan_gym/native/src/{path.name}" in names
