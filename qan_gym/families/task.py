"""The record of one task of a family: what is trained, on which images, by which optimizer, for how long."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from qan_gym.families.record import TaskRecord
from qan_gym.utils.validation import integer, list_of, one_of, setting, text
from qan_gym.utils.validation import number as real

VERSION = 1  # of the record and of the distribution behind it; raised when a number comes to mean another task
DECISIONS = 25  # actions of an episode, whatever its budget
START = {"sgd": 0.001, "adamw": 0.003}  # the learning rate of an episode's start, by optimizer


@dataclass(frozen=True)
class Task(TaskRecord):
    """One training, but for its initial weights and the order of its mini-batches, which are the episode's.

    The record can be printed, written as JSON, and played again: `gym.make("QanLR-Family-v0", task=record)`.

    Raises:
        ValueError: a value is out of its range, or the record is of another version.
    """

    DECISIONS: ClassVar[int] = DECISIONS
    VERSION: ClassVar[int] = VERSION

    split: str = setting("train", one_of("train", "test"), "of the family's tasks")
    number: int = setting(0, integer(at_least=0), "of the task in its split")

    # The network.
    network: str = setting("mlp-32", text(), "a registered name")
    initial_scale: float = setting(1.0, real(above=0), "multiplies the initial weights, not the biases")

    # The images.
    resolution: int = setting(7, integer(at_least=2), "pixels a side, averaged down from 28")
    classes: tuple[int, ...] = setting(
        tuple(range(10)), list_of(integer(at_least=0), "classes"), "digits, in the order of their labels"
    )
    train_size: int = setting(4_000, integer(at_least=1), "training images")
    label_noise: float = setting(0.0, real(at_least=0, at_most=1), "share of the training labels drawn at random")
    input_scale: float = setting(1.0, real(above=0), "standard deviation of the inputs")
    input_centre: float = setting(1.0, real(at_least=0, at_most=1), "share of the mean that is taken off")
    data_seed: int = setting(0, integer(at_least=0), "of the choice of images and of the noise")

    # The optimizer.
    optimizer: str = setting("sgd", one_of("sgd", "adamw"), "of the weights")
    momentum: float = setting(0.0, real(at_least=0, below=1), "of SGD; of AdamW, beta1")
    weight_decay: float = setting(0.0, real(at_least=0), "SGD: added to the gradient; AdamW: decoupled from it")
    loss_scale: float = setting(1.0, real(above=0), "multiplies the training loss and its gradient")
    batch_size: int = setting(10, integer(at_least=1), "images of a mini-batch")
    batches_per_action: int = setting(20, integer(at_least=1), f"mini-batches of each of the {DECISIONS} actions")
    version: int = setting(VERSION, integer(at_least=1), "of the record")

    def __post_init__(self) -> None:
        """Check every field and what goes together; a list of classes becomes a tuple."""
        self.check_fields()
        object.__setattr__(self, "classes", tuple(self.classes))
        if len(set(self.classes)) != len(self.classes) or not 2 <= len(self.classes) <= 10 or max(self.classes) > 9:
            raise ValueError(f"classes must be 2 to 10 different digits, not {self.classes}")
        self.check_batch_size()

    @property
    def name(self) -> str:
        """See `TaskRecord.name`."""
        return f"{self.network}, {self.optimizer}"

    @property
    def start_learning_rate(self) -> float:
        """See `TaskRecord.start_learning_rate`."""
        return START[self.optimizer]

    def context(self) -> dict[str, float]:
        """The parameters of the task as numbers of order 1, for `info["task"]` and `context="observed"`."""
        widths = self.widths
        return {
            "log_input_scale": math.log(self.input_scale),
            "input_centre": self.input_centre,
            "log_loss_scale": math.log(self.loss_scale),
            "log_initial_scale": math.log(self.initial_scale),
            "label_noise": 5 * self.label_noise,
            "log_train_size": math.log(self.train_size / 1_000),
            "log_resolution": math.log(self.resolution / 10),
            "layers": float(len(widths)),
            "log_width": math.log(sum(widths) / len(widths) / 16) if widths else 0.0,
            "tanh": float("-tanh" in self.network),
            "gelu": float("-gelu" in self.network),
            "convolutional": float(self.kind in ("cnn", "mnist-cnn", "resnet-8")),
            "transformer": float(self.kind == "vit"),
            "adamw": float(self.optimizer == "adamw"),
            "momentum": self.momentum,
            "log_weight_decay": math.log(self.weight_decay + 1e-5) / 5,
            "log_batch_size": math.log(self.batch_size / 12),
            "log_budget": math.log(self.budget / 300),
            "log_classes": math.log(len(self.classes) / 5),
        }

    def lines(self) -> tuple[str, ...]:
        """The record in words, for pictures: lines of at most 40 characters."""
        momentum = "beta1" if self.optimizer == "adamw" else "momentum"
        return (
            f"{self.network}, initial scale {self.initial_scale:.3g}",
            f"{self.resolution} x {self.resolution} pixels, digits {' '.join(map(str, self.classes))}",
            f"{self.train_size:,} images, label noise {self.label_noise:.0%}",
            f"inputs: scale {self.input_scale:.3g}, centre {self.input_centre:.2g}",
            f"{self.optimizer}, {momentum} {self.momentum:.3g}, loss scale {self.loss_scale:.3g}",
            f"weight decay {self.weight_decay:.2g}",
            f"{self.budget:,} mini-batches of {self.batch_size}",
            f"task {self.number} of the {self.split} split",
        )


CONTEXT = Task.context_names()  # its names
