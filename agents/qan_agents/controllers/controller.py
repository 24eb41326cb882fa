"""A controller: a small policy that controls a training from what it shows of itself, in one file.

It needs NumPy alone. What it sees are features of its family's observation, scaled to mean 0 and variance 1 of what it
saw in meta-training. Of a family in which actions set the learning rate, its action a multiplies that by factor**a, and
a base schedule multiplies the result; else its actions are those of the family's environment with continuous=True.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import count
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from qan_agents.class_columns import class_columns
from qan_gym.config import TaskConfig
from qan_gym.schedules import SCHEDULES
from qan_gym.tasks import FAMILIES, TASKS
from qan_gym.utils.files import load_arrays, save_arrays
from qan_gym.utils.names import unknown_name

FAMILY = "QanLR-Family-v0"
FORMAT = "qan_agents.controller 1"
ADDED = ("family", "widths", "by_class")  # settings that a file need not have
LARGEST_FILE = 100_000  # bytes
ACTIVATIONS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
}

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class ControllerSettings:
    """What a controller sees and does, JSON-able.

    Attributes:
        features: names of the observation's features, in their order.
        optimizers: that it was meta-trained on.
        factor: an action a in [-1, 1] multiplies the learning rate by factor**a; None: it does not set it.
        schedule: the base schedule, in `SCHEDULES`.
        choices: the actions that its outputs stand for, of which the largest is taken; empty: its output is the action.
        activation: of the hidden layers, in ACTIVATIONS.
        clip: largest absolute value of a scaled feature.
        family: the id of the environment that it was meta-trained in.
        widths: where a feature is one number for each class, how many numbers each feature is; else empty.
        by_class: whether the layers give the action of one class, see `qan_agents.ppo.network.ClassTrunk`.
    """

    features: tuple[str, ...]
    optimizers: tuple[str, ...]
    factor: float | None
    schedule: str
    choices: tuple[float, ...] = ()
    activation: str = "tanh"
    clip: float = 10.0
    family: str = FAMILY
    widths: tuple[int, ...] = ()
    by_class: bool = False

    def __post_init__(self) -> None:
        """Check; JSON has lists where tuples were.

        Raises:
            ValueError: the family, the schedule or the activation is unknown, or the widths do not go with the rest.
        """
        for name in ("features", "optimizers", "choices", "widths"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.family not in FAMILIES:
            raise ValueError(unknown_name("family", self.family, FAMILIES))
        if self.widths and (len(self.widths) != len(self.features) or len({1, *self.widths}) != 2):
            raise ValueError(f"widths must be 1 or the number of classes for each feature, not {self.widths}")
        if self.by_class and not self.widths:
            raise ValueError("by_class needs the widths of the features")
        if self.schedule not in SCHEDULES:
            raise ValueError(unknown_name("schedule", self.schedule, SCHEDULES))
        if self.activation not in ACTIVATIONS:
            raise ValueError(unknown_name("activation", self.activation, ACTIVATIONS))

    @property
    def size(self) -> int:
        """D, numbers of an observation."""
        return sum(self.widths) or len(self.features)

    @property
    def actions(self) -> int:
        """A, numbers of an action."""
        return max(self.widths, default=1)


class Controller:
    """A trained policy.

    Attributes:
        settings: what it sees and does.
        weights: "mean" and "deviation" (D,) of the features; "weight0" (units, D), "bias0" (units,), ... of its layers,
            the last one without activation; of a recurrent one also those of a GRU before the last layer, as in
            PyTorch: "gru_input" (3H, units), "gru_input_bias" (3H,), "gru_memory" (3H, H), "gru_memory_bias" (3H,).
        provenance: JSON-able, how it was made.
    """

    def __init__(
        self, settings: ControllerSettings, weights: Mapping[str, NDArray[Any]], provenance: dict[str, Any]
    ) -> None:
        """A controller of given weights.

        Raises:
            ValueError: the weights do not go together.
        """
        self.settings, self.provenance = settings, provenance
        self.weights = {name: np.asarray(value, np.float32).astype(np.float64) for name, value in weights.items()}
        self.layers = next(number for number in count() if f"weight{number}" not in self.weights)
        self.units = self.weights["gru_memory"].shape[1] if "gru_memory" in self.weights else 0
        self._check()

    def _check(self) -> None:
        try:
            action = self.act(np.zeros((1, self.settings.size), np.float32), self.memory(1))[0]
        except (KeyError, ValueError, IndexError) as error:
            raise ValueError(f"the controller's weights do not go together: {error}") from error
        finite = all(np.isfinite(value).all() for value in self.weights.values())
        if action.shape != (1, self.settings.actions) or not finite:
            raise ValueError("the controller's weights must be finite numbers that give one action")

    # --- playing ----------------------------------------------------------------------------------------------------

    def memory(self, rows: int) -> Float64:
        """(rows, H), at the start of a training; H = 0 where it is not recurrent."""
        return np.zeros((rows, self.units))

    def act(self, observations: NDArray[np.float32], memory: Float64) -> tuple[NDArray[np.float32], Float64]:
        """Actions (B, A) in [-1, 1] for observations (B, D) and the memory (B, H), and the memory after it."""
        weights, clip = self.weights, self.settings.clip
        hidden = np.clip(self.scaled(observations), -clip, clip)
        if self.settings.by_class:
            hidden = of_each_class(hidden, self.settings.widths)  # (B, K, ...)
        for layer in range(self.layers - 1):
            hidden = ACTIVATIONS[self.settings.activation](
                hidden @ weights[f"weight{layer}"].T + weights[f"bias{layer}"]
            )
        if self.units:
            hidden = memory = self._gru(hidden, memory)
        outputs = hidden @ weights[f"weight{self.layers - 1}"].T + weights[f"bias{self.layers - 1}"]
        if self.settings.by_class:
            outputs = outputs[..., 0]
        if self.settings.choices:
            outputs = np.asarray(self.settings.choices)[outputs.argmax(axis=1)][:, None]
        return np.clip(outputs, -1, 1).astype(np.float32), memory

    def scaled(self, observations: NDArray[np.float32]) -> Float64:
        """Observations (B, D) in standard deviations from the mean of what it saw in meta-training."""
        scaled: Float64 = (observations - self.weights["mean"]) / self.weights["deviation"]
        return scaled

    def _linear(self, layer: int, inputs: Float64) -> Float64:
        return linear(inputs, self.weights[f"weight{layer}"], self.weights[f"bias{layer}"])

    def _gru(self, inputs: Float64, memory: Float64) -> Float64:
        weights = self.weights
        seen = linear(inputs, weights["gru_input"], weights["gru_input_bias"])
        kept = linear(memory, weights["gru_memory"], weights["gru_memory_bias"])
        (reset, update, new), (reset_, update_, new_) = np.split(seen, 3, axis=1), np.split(kept, 3, axis=1)
        gate = 1 / (1 + np.exp(-(update + update_)))
        candidate = np.tanh(new + new_ / (1 + np.exp(-(reset + reset_))))
        after: Float64 = gate * memory + (1 - gate) * candidate
        return after

    def player(self, rows: int) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
        """What acts in some trainings from their first action on: observations (rows, D) -> actions (rows, A)."""
        memory = self.memory(rows)

        def act(observations: NDArray[np.float32]) -> NDArray[np.float32]:
            nonlocal memory
            actions, memory = self.act(observations, memory)
            return actions

        return act

    @property
    def env_kwargs(self) -> dict[str, Any]:
        """The observation, the actions and the base schedule of the controller, as arguments of an environment."""
        own: dict[str, Any] = {"observation": self.settings.features, "continuous": True}
        if self.settings.factor is None:
            return own
        return {
            **own,
            "action_scale": "multiplicative",
            "learning_rate_factor": self.settings.factor,
            "learning_rate_factors": None,
            "schedule": self.settings.schedule,
        }

    def config(self) -> TaskConfig:
        """The settings of its family's environment with those of the controller."""
        return replace(TASKS[self.settings.family], **self.env_kwargs)

    # --- files ------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file with a checksum, atomically.

        Raises:
            ValueError: it would have more than 100,000 bytes.
        """
        arrays = {name: value.astype(np.float32) for name, value in self.weights.items()}
        size = sum(value.nbytes for value in arrays.values())
        if size > LARGEST_FILE:
            raise ValueError(f"a controller has at most {LARGEST_FILE:,} bytes, and this one {size:,}: make it smaller")
        about = {"format": FORMAT, "settings": asdict(self.settings), "provenance": self.provenance}
        save_arrays(path, arrays, about)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """A controller as `save` left it.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, or is of something else or of another version.
        """
        arrays, about = load_arrays(path)
        if about.get("format") != FORMAT:
            raise ValueError(f"{path}: not a controller of this version of qan_agents")
        try:
            later = {one.name: one.default for one in fields(ControllerSettings) if one.name in ADDED}
            known = {one.name for one in fields(ControllerSettings)}
            said = {**later, **about["settings"]}
            settings = ControllerSettings(**{name: said[name] for name in known})
            return cls(settings, arrays, about["provenance"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: damaged, or not a controller of this version ({error})") from error


def of_each_class(observations: Float64, widths: Sequence[int]) -> Float64:
    """(B, D) -> (B, K, 2P + C): for each class its features, their means over the classes, and those of no class."""
    own_columns, common_columns = class_columns(widths)
    own, common = observations[:, own_columns], observations[:, None, common_columns]
    shared = np.concatenate([own.mean(axis=1, keepdims=True), common], axis=2)
    return np.concatenate([own, np.broadcast_to(shared, (*own.shape[:2], shared.shape[2]))], axis=2)


def linear(inputs: Float64, weight: Float64, bias: Float64) -> Float64:
    """(B, I), (O, I), (O,) -> (B, O); a row is the same to the bit however many there are, as a BLAS product is not."""
    outputs: Float64 = (inputs[:, None] * weight).sum(axis=2) + bias
    return outputs
