"""The C kernels: against float64, the same bits everywhere, wrong input, and how they are compiled and found."""

import math
import shutil
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
from qan_gym.native.kernels import PARAMETERS, SLOTS, Call, Images, Kernels, Update
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
@pytest.mark.parametrize("optimizer", SLOTS.keys() - {"gradients"})
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
