"""The family of `QanLR-Family-v0`: how its tasks are drawn. A task depends on its split and its number alone.

Every field has a random number of its own, so that a choice of networks or optimizers leaves the other fields as they
are. The two splits have no task in common: `data_seed` is even in one and odd in the other.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping

from qan_gym.families.task import DECISIONS, NUMBER_LIMIT, VERSION, Task

NETWORKS = {"mlp": 0.85, "cnn": 0.06, "mnist-cnn": 0.03, "resnet-8": 0.03, "vit": 0.03}  # kind -> share of the tasks
OPTIMIZERS = {"sgd": 0.5, "adamw": 0.5}
BUDGET = (100, 4_000)  # mini-batches, least and largest
DEEP_BUDGET = (100, 1_000)  # of the networks that take milliseconds a step
BATCH_SIZE, DEEP_BATCH_SIZE = (4, 128), (8, 32)
IMAGES_OF_A_CLASS = 400  # of the bundled training images
RESOLUTIONS = {"mlp": (7, 7, 7, 14, 14, 28), "cnn": (14, 28), "vit": (14, 28), "mnist-cnn": (28,), "resnet-8": (28,)}


class Draws:
    """Uniform random numbers by name, of one task."""

    def __init__(self, split: str, number: int) -> None:
        """The random numbers of a task."""
        self.key = f"QanLR-Family/{VERSION}/{split}/{number}"

    def uniform(self, name: str, low: float = 0.0, high: float = 1.0) -> float:
        """In [low, high)."""
        digest = hashlib.blake2b(f"{self.key}/{name}".encode(), digest_size=8).digest()
        return low + (high - low) * (int.from_bytes(digest) >> 11) * 2.0**-53

    def log_uniform(self, name: str, low: float, high: float) -> float:
        """In [low, high), uniform in the logarithm, of four digits: the same on every machine."""
        return rounded(math.exp(self.uniform(name, math.log(low), math.log(high))))

    def log_integer(self, name: str, low: int, high: int) -> int:
        """In low, ..., high, uniform in the logarithm."""
        return min(high, int(self.log_uniform(name, low, high + 1)))

    def happens(self, name: str, share: float) -> bool:
        """True in a share of the tasks."""
        return self.uniform(name) < share

    def weighted(self, name: str, weights: Mapping[str, float]) -> str:
        """One of some options, by their weights."""
        place = self.uniform(name) * sum(weights.values())
        for option, weight in weights.items():
            place -= weight
            if place < 0:
                return option
        return option


def draw_task(
    split: str, number: int, networks: Iterable[str] = tuple(NETWORKS), optimizers: Iterable[str] = tuple(OPTIMIZERS)
) -> Task:
    """The task of a number.

    Args:
        split: "train" or "test".
        number: from 0 to 2^31 - 1.
        networks: the kinds of network to choose from, of NETWORKS.
        optimizers: to choose from, of OPTIMIZERS.

    Raises:
        ValueError: there is no such split, number, kind of network or optimizer.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be train or test, not {split!r}")
    if not 0 <= number < NUMBER_LIMIT:
        raise ValueError(f"the number of a task must be from 0 to {NUMBER_LIMIT - 1}, not {number}")
    draws = Draws(split, number)
    kind = draws.weighted("network", chosen("networks", networks, NETWORKS))
    optimizer = draws.weighted("optimizer", chosen("optimizers", optimizers, OPTIMIZERS))
    deep = kind in ("mnist-cnn", "resnet-8", "vit")
    batch_size = draws.log_integer("batch_size", *(DEEP_BATCH_SIZE if deep else BATCH_SIZE))
    least, most = DEEP_BUDGET if deep else BUDGET
    classes = _classes(draws)
    train_size = draws.log_integer("train_size", 200, IMAGES_OF_A_CLASS * len(classes))
    sizes = RESOLUTIONS[kind]
    return Task(
        split=split,
        number=number,
        network=_network(draws, kind),
        initial_scale=draws.log_uniform("initial_scale", 0.5, 2.0),
        resolution=sizes[int(draws.uniform("resolution") * len(sizes))],
        classes=classes,
        train_size=train_size,
        label_noise=rounded(draws.uniform("label_noise", 0, 0.4)) if draws.happens("noisy", 0.5) else 0.0,
        input_scale=draws.log_uniform("input_scale", 0.3, 3.0),
        input_centre=rounded(draws.uniform("input_centre")),
        data_seed=2 * int(draws.uniform("data_seed") * 2**30) + (split == "test"),
        optimizer=optimizer,
        momentum=_momentum(draws, optimizer),
        weight_decay=_weight_decay(draws, optimizer),
        loss_scale=draws.log_uniform("loss_scale", 0.3, 3.0),
        batch_size=batch_size,
        batches_per_action=draws.log_integer("budget", least // DECISIONS, most // DECISIONS),
    )


def rounded(value: float) -> float:
    """Four digits: the functions of the C library differ between machines in the last ones."""
    return float(f"{value:.4g}")


def chosen(what: str, names: Iterable[str], among: Mapping[str, float]) -> dict[str, float]:
    """The weights of some options.

    Raises:
        ValueError: there are none, or one is not among those there are.
    """
    wanted = (names,) if isinstance(names, str) else tuple(names)
    if not wanted or not set(wanted) <= among.keys():
        raise ValueError(f"{what} must be some of {', '.join(among)}, not {names!r}")
    return {name: weight for name, weight in among.items() if name in wanted}


def _network(draws: Draws, kind: str) -> str:
    if kind in ("mnist-cnn", "resnet-8"):
        return kind
    if kind == "cnn":
        return f"cnn-{draws.log_integer('width1', 4, 16)}-{draws.log_integer('width2', 8, 32)}"
    if kind == "vit":
        return f"vit-{8 * draws.log_integer('width1', 2, 6)}-{1 + int(draws.uniform('layers') * 3)}"
    layers = 1 + int(draws.uniform("layers") * 3)
    widths = (draws.log_integer(f"width{layer}", 4, 64) for layer in range(1, layers + 1))
    return "-".join(["mlp", *map(str, widths), *_activation(draws)])


def _activation(draws: Draws) -> tuple[str, ...]:
    return ((), ("tanh",), ("gelu",))[int(draws.uniform("activation") * 3)]


def _classes(draws: Draws) -> tuple[int, ...]:
    """2 to 10 of the digits, in any order."""
    left, order = list(range(10)), int(draws.uniform("class order") * math.factorial(10))
    digits = []
    for remaining in range(10, 0, -1):
        order, place = divmod(order, remaining)
        digits.append(left.pop(place))
    return tuple(digits[: 2 + int(draws.uniform("classes") * 9)])


def _momentum(draws: Draws, optimizer: str) -> float:
    """SGD: none, .9, or up to .95; AdamW's beta1: .9, or .5 to .95; uniform in the logarithm of the distance from 1."""
    if draws.happens("usual momentum", 0.6):
        return 0.9 if optimizer == "adamw" or draws.happens("with momentum", 0.5) else 0.0
    return rounded(1 - draws.log_uniform("momentum", 0.05, 0.5 if optimizer == "adamw" else 1.0))


def _weight_decay(draws: Draws, optimizer: str) -> float:
    if draws.happens("no weight decay", 0.5):
        return 0.0
    return draws.log_uniform("weight_decay", *((1e-3, 1.0) if optimizer == "adamw" else (1e-5, 1e-2)))
