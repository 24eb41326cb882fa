"""The family of `QanLR-Family-v0`: how its tasks are drawn.

The two splits have no task in common: `data_seed` is even in one and odd in the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from qan_gym.families.draws import Draws, chosen, rounded
from qan_gym.families.source import TaskSource, some_of
from qan_gym.families.task import DECISIONS, VERSION, Task
from qan_gym.utils.validation import setting

# Kind -> share of the tasks; of share 0: only where it is asked for.
NETWORKS = {"mlp": 0.85, "mlp-norm": 0.0, "cnn": 0.06, "mnist-cnn": 0.03, "resnet-8": 0.03, "vit": 0.03}
USUAL_NETWORKS = tuple(kind for kind, share in NETWORKS.items() if share > 0)
OPTIMIZERS = {"sgd": 0.5, "adamw": 0.5}
BUDGET = (100, 4_000)  # mini-batches, least and largest
DEEP_BUDGET = (100, 1_000)  # of the networks that take milliseconds a step
BATCH_SIZE, DEEP_BATCH_SIZE = (4, 128), (8, 32)
IMAGES_OF_A_CLASS = 400  # of the bundled training images
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
    split: str, number: int, networks: Iterable[str] = USUAL_NETWORKS, optimizers: Iterable[str] = tuple(OPTIMIZERS)
) -> Task:
    """The task of a number.

    Args:
        split: "train" or "test".
        number: from 0 to 2^31 - 1.
        networks: the kinds of network to choose from, of NETWORKS, by their shares; kinds of share 0 alone are alike.
        optimizers: to choose from, of OPTIMIZERS.

    Raises:
        ValueError: there is no such split, number, kind of network or optimizer.
    """
    draws = Draws(f"QanLR-Family/{VERSION}", split, number)
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

    networks: tuple[str, ...] = setting(USUAL_NETWORKS, some_of(NETWORKS), "the kinds of network to draw from")
    optimizers: tuple[str, ...] = setting(tuple(OPTIMIZERS), some_of(OPTIMIZERS), "the optimizers to draw from")

    def __post_init__(self) -> None:
        """Check; the kinds come in the order of the family's own."""
        super().__post_init__()
        for what, among in (("networks", NETWORKS), ("optimizers", OPTIMIZERS)):
            object.__setattr__(self, what, tuple(chosen(what, getattr(self, what), among)))

    @property
    def network_kinds(self) -> tuple[str, ...]:
        """See `TaskSource.network_kinds`."""
        return self.networks

    def draw_number(self, number: int) -> Task:
        """See `TaskSource.draw_number`."""
        return draw_task(self.split, number, self.networks, self.optimizers)
