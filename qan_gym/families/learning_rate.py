"""The family of `QanLR-Family-v0`: how its tasks are drawn.

The two splits have no task in common: `data_seed` is even in one and odd in the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from qan_gym.families.draws import Draws, Kinds, chosen, ends, kinds_of, rounded
from qan_gym.families.source import TaskSource, number_or_range, some_of
from qan_gym.families.task import DECISIONS, VERSION, Task
from qan_gym.utils.validation import optional, setting

if TYPE_CHECKING:
    from qan_gym.data.datasets import Dataset

# Kind -> share of the tasks; of share 0: only where it is asked for.
NETWORKS = {"mlp": 0.85, "mlp-norm": 0.0, "cnn": 0.06, "mnist-cnn": 0.03, "resnet-8": 0.03, "vit": 0.03}
USUAL_NETWORKS = tuple(kind for kind, share in NETWORKS.items() if share > 0)
OPTIMIZERS = {"sgd": 0.5, "adamw": 0.5}
BUDGET = (100, 4_000)  # mini-batches, least and largest
DEEP_BUDGET = (100, 1_000)  # of the networks that take milliseconds a step
BATCH_SIZE, DEEP_BATCH_SIZE = (4, 128), (8, 32)
TRAIN_SIZE = (200, 4_000)  # of ten classes; of fewer at most their share of the largest
Range = int | tuple[int, int]  # a number, or what it is drawn between, uniformly in the logarithm

MLP_RESOLUTIONS = (7, 7, 7, 14, 14, 28)
RESOLUTIONS = {
    "mlp": MLP_RESOLUTIONS,
    "mlp-norm": MLP_RESOLUTIONS,
    "cnn": (14, 28),
    "vit": (14, 28),
    "mnist-cnn": (28,),
    "resnet-8": (28,),
}


def draw_task(
    split: str,
    number: int,
    networks: Kinds = USUAL_NETWORKS,
    optimizers: Kinds = tuple(OPTIMIZERS),
    batches: Range | None = None,
    train_size: Range = TRAIN_SIZE,
) -> Task:
    """The task of a number.

    Args:
        split: "train" or "test".
        number: from 0 to 2^31 - 1.
        networks: the kinds of network to choose from, of NETWORKS, or their shares; those of share 0 alone are alike.
        optimizers: to choose from, of OPTIMIZERS, or their shares.
        batches: the budget in mini-batches, or between which it is drawn, rounded down to whole mini-batches an action;
            None: BUDGET, or DEEP_BUDGET of networks that take milliseconds a step.
        train_size: training images, or between which they are drawn; of fewer than ten classes at most the share of the
            largest number.

    Raises:
        ValueError: there is no such split, number, kind of network or optimizer.
    """
    draws = Draws(f"QanLR-Family/{VERSION}", split, number)
    kind = draws.weighted("network", chosen("networks", networks, NETWORKS))
    optimizer = draws.weighted("optimizer", chosen("optimizers", optimizers, OPTIMIZERS))
    deep = kind in ("mnist-cnn", "resnet-8", "vit")
    batch_size = draws.log_integer("batch_size", *(DEEP_BATCH_SIZE if deep else BATCH_SIZE))
    shortest, longest = ends(batches or (DEEP_BUDGET if deep else BUDGET))
    classes = _classes(draws)
    sizes = RESOLUTIONS[kind]
    return Task(
        split=split,
        number=number,
        network=_network(draws, kind),
        initial_scale=draws.log_uniform("initial_scale", 0.5, 2.0),
        resolution=sizes[int(draws.uniform("resolution") * len(sizes))],
        classes=classes,
        train_size=_train_size(draws, train_size, len(classes)),
        label_noise=rounded(draws.uniform("label_noise", 0, 0.4)) if draws.happens("noisy", 0.5) else 0.0,
        input_scale=draws.log_uniform("input_scale", 0.3, 3.0),
        input_centre=rounded(draws.uniform("input_centre")),
        data_seed=2 * int(draws.uniform("data_seed") * 2**30) + (split == "test"),
        optimizer=optimizer,
        momentum=_momentum(draws, optimizer),
        weight_decay=_weight_decay(draws, optimizer),
        loss_scale=draws.log_uniform("loss_scale", 0.3, 3.0),
        batch_size=batch_size,
        batches_per_action=draws.log_integer("budget", shortest // DECISIONS, longest // DECISIONS),
    )


def _network(draws: Draws, kind: str) -> str:
    if kind in ("mnist-cnn", "resnet-8"):
        return kind
    if kind == "cnn":
        return f"cnn-{draws.log_integer('width1', 4, 16)}-{draws.log_integer('width2', 8, 32)}"
    if kind == "vit":
        return f"vit-{8 * draws.log_integer('width1', 2, 6)}-{1 + int(draws.uniform('layers') * 3)}"
    layers = 1 + int(draws.uniform("layers") * 3)
    widths = (draws.log_integer(f"width{layer}", 4, 64) for layer in range(1, layers + 1))
    return "-".join(["mlp", *map(str, widths), *_activation(draws), *(("norm",) if kind == "mlp-norm" else ())])


def _train_size(draws: Draws, wanted: Range, classes: int) -> int:
    fewest, most = ends(wanted)
    most = max(BATCH_SIZE[1], most * classes // 10)
    return draws.log_integer("train_size", min(fewest, most), most)


def _activation(draws: Draws) -> tuple[str, ...]:
    return ((), ("tanh",), ("gelu",))[int(draws.uniform("activation") * 3)]


def _classes(draws: Draws) -> tuple[int, ...]:
    """2 to 10 of the digits, in any order."""
    return tuple(draws.permutation("class order", 10)[: 2 + int(draws.uniform("classes") * 9)])


def _momentum(draws: Draws, optimizer: str) -> float:
    """SGD: none, .9, or up to .95; AdamW's beta1: .9, or .5 to .95; uniform in the logarithm of the distance from 1."""
    if draws.happens("usual momentum", 0.6):
        return 0.9 if optimizer == "adamw" or draws.happens("with momentum", 0.5) else 0.0
    return rounded(1 - draws.log_uniform("momentum", 0.05, 0.5 if optimizer == "adamw" else 1.0))


def _weight_decay(draws: Draws, optimizer: str) -> float:
    if draws.happens("no weight decay", 0.5):
        return 0.0
    return draws.log_uniform("weight_decay", *((1e-3, 1.0) if optimizer == "adamw" else (1e-5, 1e-2)))


@dataclass(frozen=True)
class LearningRateSource(TaskSource[Task]):
    """Which tasks the episodes of `QanLR-Family-v0` have, and whether they are shown.

    Raises:
        ValueError: a value is out of its range.
    """

    record: ClassVar[type[Task]] = Task
    kinds: ClassVar[tuple[str, ...]] = ("networks", "optimizers")
    most_drawn: ClassVar[int] = BUDGET[1] // DECISIONS
    largest: ClassVar[dict[str, tuple[str, int]]] = {
        "mlp": ("mlp-64-64-64", 28),
        "mlp-norm": ("mlp-64-64-64-norm", 28),
        "cnn": ("cnn-16-32", 28),
        "mnist-cnn": ("mnist-cnn", 28),
        "resnet-8": ("resnet-8", 28),
        "vit": ("vit-48-3", 28),
    }

    networks: tuple[str, ...] | Mapping[str, float] = setting(
        USUAL_NETWORKS, some_of(NETWORKS), "the kinds of network to draw from, or a dict of their shares"
    )
    optimizers: tuple[str, ...] | Mapping[str, float] = setting(
        tuple(OPTIMIZERS), some_of(OPTIMIZERS), "the optimizers to draw from, or a dict of their shares"
    )
    batches: int | tuple[int, int] | None = setting(
        None,
        optional(number_or_range(DECISIONS, 10**6, whole=True)),
        f"the budget in mini-batches, {DECISIONS} actions of equal length; None: {BUDGET[0]} to {BUDGET[1]:,}, and to "
        f"{DEEP_BUDGET[1]:,} of networks that take milliseconds a step",
    )
    train_size: int | tuple[int, int] = setting(
        TRAIN_SIZE,
        number_or_range(BATCH_SIZE[1], 10**6, whole=True),
        "training images; of fewer than ten classes at most their share of the largest number",
    )

    def __post_init__(self) -> None:
        """Check; the kinds come in the order of the family's own."""
        super().__post_init__()
        for what, among in (("networks", NETWORKS), ("optimizers", OPTIMIZERS)):
            object.__setattr__(self, what, kinds_of(what, getattr(self, what), among))

    @property
    def network_kinds(self) -> tuple[str, ...]:
        """See `TaskSource.network_kinds`."""
        return tuple(self.networks)

    @property
    def most_batches(self) -> int:
        """See `TaskSource.most_batches`."""
        return max(super().most_batches, 0 if self.batches is None else ends(self.batches)[1] // DECISIONS)

    def require_images(self, dataset: Dataset) -> None:
        """See `TaskSource.require_images`."""
        if self.task is not None:
            return
        most = 10 * int(np.bincount(dataset.train.labels, minlength=10).min())
        if ends(self.train_size)[1] > most:
            raise ValueError(
                f"train_size must be at most {most:,} with these images, ten times those of the rarest class"
            )

    def draw_number(self, number: int) -> Task:
        """See `TaskSource.draw_number`."""
        return draw_task(self.split, number, self.networks, self.optimizers, self.batches, self.train_size)
