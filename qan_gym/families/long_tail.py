"""The family of `QanMinibatch-LongTail-v0`: trainings with rare and noisy classes, and how they are drawn.

Which classes are rare and which are noisy is drawn for every task, and so is which digit has which label. The two
splits have no task in common: `data_seed` is even in one and odd in the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from qan_gym.data.selection import class_sizes
from qan_gym.families.draws import Draws, Kinds, chosen, ends, kinds_of, rounded
from qan_gym.families.record import TaskRecord
from qan_gym.families.source import TaskSource, number_or_range, some_of
from qan_gym.schedules import SCHEDULES
from qan_gym.utils.validation import integer, list_of, one_of, registered, setting, text
from qan_gym.utils.validation import number as real

VERSION = 1  # of the record and of the distribution behind it; raised when a number comes to mean another task
DECISIONS = 40  # actions of an episode, whatever its budget
DIGITS = 10

NETWORKS = {"mlp": 0.97, "mnist-cnn": 0.03}  # kind -> share of the tasks
BATCHES_OF_ACTION = (2, 12)  # mini-batches, least and most
BATCH_SIZE = (16, 128)
LARGEST_CLASS = (100, 400)  # images of the largest class; there are 400 of each digit
IMBALANCE, LABEL_NOISE, NOISY_CLASSES = (1.0, 100.0), (0.0, 0.6), (0, 5)
GOOD_RATES = {"linear": 0.25, "one-cycle": 0.1}  # of perceptrons without momentum, on the average of the tasks
MOST_IMAGES = DIGITS * LARGEST_CLASS[1]

Range = int | float | tuple[float, float]  # a number, or what it is drawn between


@dataclass(frozen=True)
class LongTailTask(TaskRecord):
    """One training with rare and noisy classes, but for its initial weights and mini-batches, which are the episode's.

    Raises:
        ValueError: a value is out of its range, or the record is of another version.
    """

    DECISIONS: ClassVar[int] = DECISIONS
    VERSION: ClassVar[int] = VERSION
    SAME_BATCHES: ClassVar[bool] = False

    split: str = setting("train", one_of("train", "test"), "of the family's tasks")
    number: int = setting(0, integer(at_least=0), "of the task in its split")
    network: str = setting("mlp-32", text(), "a registered name")

    # The images.
    resolution: int = setting(14, integer(at_least=2), "pixels a side, averaged down from 28")
    classes: tuple[int, ...] = setting(
        tuple(range(DIGITS)), list_of(integer(at_least=0), "classes"), "the ten digits, in the order of their labels"
    )
    train_size: int = setting(1_000, integer(at_least=DIGITS), "training images")
    imbalance: float = setting(1.0, real(at_least=1), "images of the largest class over those of the smallest")
    label_noise: tuple[float, ...] = setting(
        (0.0,) * DIGITS,
        list_of(real(at_least=0, at_most=1), "shares"),
        "of the images with each label, the share that shows any digit",
    )
    data_seed: int = setting(0, integer(at_least=0), "of the choice of images, the noise, and which classes are rare")

    # The optimizer.
    learning_rate: float = setting(0.1, real(at_least=1e-6, at_most=100), "which the schedule changes")
    schedule: str = setting("linear", registered(SCHEDULES), "of the learning rate")
    momentum: float = setting(0.0, real(at_least=0, below=1), "of SGD")
    weight_decay: float = setting(0.0, real(at_least=0), "added to the gradient")
    batch_size: int = setting(64, integer(at_least=1), "images of a mini-batch")
    batches_per_action: int = setting(6, integer(at_least=1), f"mini-batches of each of the {DECISIONS} actions")
    version: int = setting(VERSION, integer(at_least=1), "of the record")

    def __post_init__(self) -> None:
        """Check every field and what goes together; lists become tuples."""
        self.check_fields()
        for name in ("classes", "label_noise"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if sorted(self.classes) != list(range(DIGITS)):
            raise ValueError(f"classes must be the {DIGITS} digits in any order, not {self.classes}")
        if len(self.label_noise) != DIGITS:
            raise ValueError(f"label_noise must be {DIGITS} shares, one for each label, not {len(self.label_noise)}")
        self.check_batch_size()

    @property
    def start_learning_rate(self) -> float:
        """See `TaskRecord.start_learning_rate`."""
        return self.learning_rate

    @property
    def own_schedule(self) -> str:
        """See `TaskRecord.own_schedule`."""
        return self.schedule

    @property
    def class_sizes(self) -> tuple[int, ...]:
        """The training images of each label."""
        return tuple(class_sizes(DIGITS, self.train_size, self.imbalance, self.data_seed).tolist())

    def context(self) -> dict[str, float]:
        """See `TaskRecord.context`."""
        widths = self.widths
        return {
            "log_imbalance": math.log(self.imbalance) / 2,
            "log_train_size": math.log(self.train_size / 1_000),
            "log_learning_rate": math.log(self.learning_rate / 0.1),
            "one_cycle": float(self.schedule == "one-cycle"),
            "momentum": self.momentum,
            "log_weight_decay": math.log(self.weight_decay + 1e-5) / 5,
            "log_batch_size": math.log(self.batch_size / 45),
            "log_budget": math.log(self.budget / 200),
            "log_resolution": math.log(self.resolution / 14),
            "layers": float(len(widths)),
            "log_width": math.log(sum(widths) / len(widths) / 32) if widths else 0.0,
            "convolutional": float(self.kind == "mnist-cnn"),
            **{f"noise_{label}": 5 * noise for label, noise in enumerate(self.label_noise)},
        }

    def lines(self) -> tuple[str, ...]:
        """See `TaskRecord.lines`."""
        rate = f"{self.schedule} from" if self.schedule != "one-cycle" else f"{self.schedule} of"
        return (
            f"{self.network}, {self.resolution} x {self.resolution} pixels",
            f"digits {' '.join(map(str, self.classes))}",
            f"images {' '.join(map(str, self.class_sizes[:5]))}",
            f"and {' '.join(map(str, self.class_sizes[5:]))}",
            f"noise % {' '.join(f'{100 * noise:.0f}' for noise in self.label_noise)}",
            f"{rate} {self.learning_rate:.3g}, momentum {self.momentum:.3g}",
            f"{self.budget:,} mini-batches of {self.batch_size}",
            f"task {self.number} of the {self.split} split",
        )


def draw_task(
    split: str,
    task: int,
    networks: Kinds = tuple(NETWORKS),
    imbalance: Range = IMBALANCE,
    label_noise: Range = LABEL_NOISE,
    noisy_classes: int | tuple[int, int] = NOISY_CLASSES,
) -> LongTailTask:
    """The task of a number.

    Args:
        split: "train" or "test".
        task: its number, from 0 to 2^31 - 1.
        networks: the kinds of network to choose from, of NETWORKS, or their shares.
        imbalance: size of the largest class over that of the smallest, or between which it is drawn, uniformly in the
            logarithm.
        label_noise: of the noisy classes, or between which that of each is drawn, uniformly.
        noisy_classes: how many there are, or between which it is drawn.

    Raises:
        ValueError: there is no such split, number or kind of network.
    """
    draws = Draws(f"QanMinibatch-LongTail/{VERSION}", split, task)
    kind = draws.weighted("network", chosen("networks", networks, NETWORKS))
    ratio = draws.log_uniform("imbalance", *ends(imbalance))
    weights = sum(ratio ** (-rank / (DIGITS - 1)) for rank in range(DIGITS))
    train_size = int(draws.log_uniform("largest class", *LARGEST_CLASS) * weights)
    batch_size = draws.log_integer("batch_size", *BATCH_SIZE)
    low, high = ends(noisy_classes)
    noisy = draws.permutation("noisy classes", DIGITS)[: int(low) + int(draws.uniform("noisy") * (high - low + 1))]
    noise = [
        rounded(draws.uniform(f"label_noise {label}", *ends(label_noise))) if label in noisy else 0.0
        for label in range(DIGITS)
    ]
    schedule = "one-cycle" if draws.happens("one-cycle", 0.5) else "linear"
    momentum = 0.9 if draws.happens("momentum", 0.5) else 0.0
    return LongTailTask(
        split=split,
        number=task,
        network=_network(draws, kind),
        resolution=14 if kind == "mlp" else 28,
        classes=tuple(draws.permutation("classes", DIGITS)),
        train_size=max(train_size, batch_size, DIGITS),
        imbalance=ratio,
        label_noise=tuple(noise),
        data_seed=2 * int(draws.uniform("data_seed") * 2**30) + (split == "test"),
        learning_rate=rounded(_learning_rate(draws, kind, momentum, schedule)),
        schedule=schedule,
        momentum=momentum,
        weight_decay=0.0 if draws.happens("no weight decay", 0.5) else draws.log_uniform("weight_decay", 1e-5, 1e-3),
        batch_size=batch_size,
        batches_per_action=draws.log_integer("budget", *BATCHES_OF_ACTION),
    )


def _network(draws: Draws, kind: str) -> str:
    if kind == "mnist-cnn":
        return kind
    layers = 1 + int(draws.uniform("layers") * 2)
    widths = (draws.log_integer(f"width{layer}", 16, 64) for layer in range(1, layers + 1))
    return "-".join(["mlp", *map(str, widths), *(() if draws.happens("relu", 0.5) else ("tanh",))])


def _learning_rate(draws: Draws, kind: str, momentum: float, schedule: str) -> float:
    """Within a factor of 2 of what is good on the average of the tasks."""
    good = GOOD_RATES[schedule] * (0.5 if kind == "mnist-cnn" else 1.0)
    return good * (1 - momentum) * draws.log_uniform("learning_rate", 0.5, 2.0)


@dataclass(frozen=True)
class LongTailSource(TaskSource[LongTailTask]):
    """Which tasks the episodes of `QanMinibatch-LongTail-v0` have, and whether they are shown.

    Raises:
        ValueError: a value is out of its range.
    """

    record: ClassVar[type[LongTailTask]] = LongTailTask
    kinds: ClassVar[tuple[str, ...]] = ("networks", "imbalance", "label_noise")
    most_drawn: ClassVar[int] = BATCHES_OF_ACTION[1]
    most_images: ClassVar[int] = MOST_IMAGES
    most_batch: ClassVar[int] = BATCH_SIZE[1]
    largest: ClassVar[dict[str, tuple[str, int]]] = {"mlp": ("mlp-64-64", 14), "mnist-cnn": ("mnist-cnn", 28)}
    context_name: ClassVar[str] = "long_tail_context"
    context_prefix: ClassVar[str] = "long_tail_"
    idle: ClassVar[tuple[str, ...]] = (
        *("epochs", "nesterov", "preprocess", "augment", "optimizer", "replacement", "train_size"),
        *("initial_scale", "input_scale", "input_centre", "loss_scale"),
        *("meta_momentum", "pull_epochs", "reference", "distillation"),
    )

    networks: tuple[str, ...] | Mapping[str, float] = setting(
        tuple(NETWORKS), some_of(NETWORKS), "the kinds of network to draw from, or a dict of their shares"
    )
    imbalance: float | tuple[float, float] = setting(
        IMBALANCE,
        number_or_range(1, 100),
        "images of the largest class over those of the smallest, drawn uniformly in the logarithm",
    )
    label_noise: float | tuple[float, float] = setting(
        LABEL_NOISE, number_or_range(0, 1), "of each noisy class, the share of its images that show any digit"
    )
    noisy_classes: int | tuple[int, int] = setting(
        NOISY_CLASSES, number_or_range(0, DIGITS, whole=True), "how many of the ten classes are noisy"
    )

    def __post_init__(self) -> None:
        """Check; the kinds of network come in the order of the family's own."""
        super().__post_init__()
        object.__setattr__(self, "networks", kinds_of("networks", self.networks, NETWORKS))

    @property
    def optimizers(self) -> tuple[str, ...]:
        """Of the tasks."""
        return ("sgd",)

    @property
    def network_kinds(self) -> tuple[str, ...]:
        """See `TaskSource.network_kinds`."""
        return tuple(self.networks)

    def draw_number(self, number: int) -> LongTailTask:
        """See `TaskSource.draw_number`."""
        return draw_task(self.split, number, self.networks, self.imbalance, self.label_noise, self.noisy_classes)
