"""Observations: the filters, the score line of registered features, or features alone.

The observation "classes" shows how each class does, and nothing of the weights.

The screen has one row per filter and one column per weight (of the networks for CIFAR-10, 192 rows of 192 weights of
the last convolution), and a last row, the score line.
The score line has the features SCORE_LINE in these places (the last two only with `validate_every`, else 0), then those
that the game adds, then zeros.
"""

import math
from collections.abc import Container

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from qan_gym.config import TaskConfig
from qan_gym.core.class_statistics import CLASSES
from qan_gym.core.features import FEATURES, LIMIT, kept_within, show
from qan_gym.core.run_state import RunState
from qan_gym.core.statistics import statistics_of
from qan_gym.games import game_of
from qan_gym.optimizee.network import Network, Params
from qan_gym.utils.arrays import Array, to_numpy
from qan_gym.utils.names import unknown_name
from qan_gym.utils.own_settings import own_settings

SCORE_LINE = (
    *("log_learning_rate", "budget_used", "log_loss", "log_loss_change", "last_action"),
    *("log_validation_loss", "log_validation_loss_change"),  # 0 without `validate_every`
)
ALWAYS_MEASURED = 5  # of them


def features_of(config: TaskConfig) -> tuple[str, ...]:
    """The names of the features that an observation begins with: of a score line, or all there is."""
    score_line = SCORE_LINE if config.validate_every is not None else SCORE_LINE[:ALWAYS_MEASURED]
    named = {"screen": score_line, "filters": (), "statistics": statistics_of(config), "classes": CLASSES}
    return named.get(str(config.observation), tuple(config.observation))


class Observer:
    """Makes the observations of a task.

    Attributes:
        shape: (rows, columns) of the screen; (1, number of features) where the observation is one of features alone.
        needs_measurements: whether a feature of it does.
        needs_classes: whether a feature of it is one number for each class.
        widths: where one is, how many numbers each feature is.
    """

    def __init__(self, config: TaskConfig, network: Network, n_classes: int = 0) -> None:
        """Resolve the names of the features; n_classes: K, of which features for each class have one number each.

        Raises:
            ValueError: a feature is not registered.
        """
        self.network = network
        self.filters = config.observation in ("screen", "filters")
        extra = game_of(config).features
        self.features = features_of(config)
        self.extra = extra if config.observation == "screen" else ()
        for name in (*self.features, *self.extra):
            if name not in FEATURES:
                raise ValueError(unknown_name("feature", name, FEATURES))
        self.needs_measurements = any(FEATURES[name].needs_measurements for name in (*self.features, *self.extra))
        self.needs_classes = any(FEATURES[name].per_class for name in (*self.features, *self.extra))
        if any(FEATURES[name].per_class for name in self.extra) or (self.filters and self.needs_classes):
            raise ValueError("features of each class have no place on a score line: observe them by their names")
        widths = tuple(n_classes if FEATURES[name].per_class else 1 for name in self.features)
        self.shape, self.widths = (1, sum(widths)), widths if self.needs_classes else ()
        if self.filters:
            rows, columns = self.weights_shape = _weights_shape(network)
            self.shape = (
                rows + (config.observation == "screen"),
                max(columns, len(SCORE_LINE) + len(self.extra)),
            )

    def check(self, tensors: Container[str]) -> None:
        """Refuse features that read what the game does not have.

        Args:
            tensors: the names of those in `run.game`.

        Raises:
            ValueError: which.
        """
        for name in (*self.features, *self.extra):
            reads = FEATURES[name].reads
            if reads is not None and reads not in tensors:
                raise ValueError(f"the feature {name!r} reads {reads!r}, which this environment does not have")

    @property
    def space(self) -> spaces.Box:
        """Of one run, flat: (rows * columns,)."""
        rows, columns = self.shape
        return spaces.Box(-LIMIT, LIMIT, (rows * columns,), np.float32)

    def observe(self, run: RunState) -> Array:
        """The observations of N runs, (N, rows * columns) float32, finite, within +-LIMIT, row by row.

        Stable-Baselines3 and most code written for vectors take a flat observation as it is; `reshape(shape)` gives the
        rows back. A weight that is not a number is shown as 0.
        """
        xp = run.xp
        weights = run.params[self.network.shown]
        shape = (len(weights), *self.shape)
        screen = xp.zeros(shape, dtype=xp.float32, device=weights.device)  # (N, rows, columns)
        if self.filters:
            rows, columns = self.weights_shape
            screen[:, :rows, :columns] = _in_rows(weights, self.weights_shape)
        show(run, self.features, screen[:, -1])
        show(run, self.extra, screen[:, -1, len(SCORE_LINE) :])
        return kept_within(xp, xp.reshape(screen, (shape[0], -1)))


def _in_rows(weights: Array, shape: tuple[int, int]) -> Array:
    """The weights that the agent sees, (N, rows, columns), of (N, *shape of the weight): the first numbers of each."""
    rows, columns = shape
    return weights.reshape(len(weights), -1)[:, : rows * columns].reshape(-1, rows, columns)


@own_settings()
def filter_pictures(network: Network, params: Params) -> NDArray[np.float32]:
    """The weights shown of one network, as pictures (F, h, w): the filters, channels averaged, or the screen as one.

    Args:
        network: the kind.
        params: name -> (*shape).
    """
    weight, pixels = params[network.shown], math.prod(network.image_shape)
    if network.screen is None and weight.dim() == 4 and weight[0, 0].numel() > 1:
        filters: NDArray[np.float32] = weight.mean(dim=1).cpu().numpy()
        return filters
    if network.screen is None and weight.dim() == 2 and weight.shape[1] == pixels:  # each unit sees the whole image
        seen: NDArray[np.float32] = weight.reshape(-1, *network.image_shape).mean(dim=1).cpu().numpy()
        return seen
    return to_numpy(_in_rows(weight[None], _weights_shape(network)))


def _weights_shape(network: Network) -> tuple[int, int]:
    filters, *rest = network.shapes[network.shown]
    return network.screen or (filters, torch.Size(rest).numel())
