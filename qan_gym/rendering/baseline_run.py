"""The baseline run: the same training without actions, whose loss frames draw behind that of an episode."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from qan_gym.config import TaskConfig
from qan_gym.core.training import Training
from qan_gym.families.training import FamilyTraining
from qan_gym.games import Game

if TYPE_CHECKING:
    from qan_gym.core.run_state import RunState


class NoGame(Game):
    """One action, which changes nothing; mini-batches as in shuffled SGD."""

    controlled = "nothing"

    def action_space(self, config: TaskConfig, n_classes: int) -> spaces.Space[Any]:
        """See `Game.action_space`."""
        return spaces.Discrete(1)

    def apply(self, run: RunState, actions: Tensor, config: TaskConfig) -> None:
        """See `Game.apply`."""


class BaselineRun:
    """A training of the same seed on shuffled mini-batches with the initial hyperparameters, constant throughout.

    But for the schedule of a task that has one.

    It has the initial weights, the data order and the reference of the episode. It is trained by `until`, only as far
    as that asks.

    Attributes:
        training: its training; None before the first `until` and after `close`.
    """

    def __init__(self, episode: Training) -> None:
        """episode: a training with one run whose episode has begun; it is not changed."""
        config = replace(
            episode.config, schedule="constant", target_loss=None, early_stopping=None, validate_every=None
        )
        self._parts, self._source = episode.parts, None
        if isinstance(episode, FamilyTraining):
            self._parts, self._source = replace(self._parts, config=config), episode.only_source()
        else:
            game = NoGame()
            parts = episode.parts.with_config(config)
            self._parts = replace(parts, game=game, action_space=game.action_space(config, parts.n_classes))
        self._seed = episode.run.seed.copy()
        self._reference = None
        if episode.reference is not None and episode.run.has_reference[0]:
            # Copies: with reference="previous" they are replaced when the episode is over.
            self._reference = {name: value[0].clone() for name, value in episode.reference.items()}
        self.training: Training | None = None
        self._batches = [0]
        self._losses: list[float] = []

    def until(self, batch: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Its curve up to a mini-batch: mini-batches done and the running mean of the loss, (steps + 1,) each."""
        if self.training is None:
            self.training = self._fresh()
            _, info = self.training.reset(np.ones(1, np.bool_), self._seed, shuffled=True)
            self._losses.append(info["smoothed_loss"].item())
        only = torch.zeros_like(self.training.run.action)
        while self._batches[-1] < batch and not self.training.run.over[0]:
            info = self.training.step(only).info
            self._batches.append(int(info["batch"].item()))
            self._losses.append(info["smoothed_loss"].item())
        count = int(np.searchsorted(self._batches, batch, side="right"))
        return np.array(self._batches[:count], np.float64), np.array(self._losses[:count])

    def _fresh(self) -> Training:
        if self._source is None:
            return Training(self._parts, self._reference, tests=False)
        return FamilyTraining(self._parts, self._source, tests=False)

    def close(self) -> None:
        """Give its memory back."""
        if self.training is not None:
            self.training.close()
            self.training = None
