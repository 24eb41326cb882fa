"""The baseline run: the same training with nobody acting, drawn behind an episode."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from qan_gym.core.training import Training


class BaselineRun:
    """A training of the same seed on shuffled mini-batches at the constant initial learning rate.

    It has the same weights at first, the same data order, the same reference. Nothing is trained before `until` asks
    for it, and then only so far.
    """

    def __init__(self, training: Training) -> None:
        """training: whose only run is an episode that has begun; it is left as it is."""
        config = replace(
            training.config,
            schedule="constant",
            continuous=False,
            action_scale="additive",
            target_loss=None,
            early_stopping=None,
            validate_every=None,
        )
        self._parts = training.parts.with_config(config)
        self._seed = training.run.seed.copy()
        self._reference = None
        if training.reference is not None and training.run.has_reference[0]:
            # Copies: with reference="previous" they are the next episode's as soon as this one is over.
            self._reference = {name: value[0].clone() for name, value in training.reference.items()}
        self._training: Training | None = None
        self._batches = [0]
        self._losses: list[float] = []

    def until(self, batch: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Its course up to a mini-batch: mini-batches done and the running mean of the loss, (steps + 1,) each."""
        if self._training is None:
            self._training = Training(self._parts, self._reference, tests=False)
            _, info = self._training.reset(np.ones(1, np.bool_), self._seed, shuffled=True)
            self._losses.append(info["smoothed_loss"].item())
        action = self._parts.game.no_op(self._parts.config)
        nothing = torch.zeros_like(self._training.run.action)
        if action is not None:
            nothing[0] = torch.as_tensor(action)
        while self._batches[-1] < batch and not self._training.run.over[0]:
            info = self._training.step(nothing).info
            self._batches.append(int(info["batch"].item()))
            self._losses.append(info["smoothed_loss"].item())
        count = int(np.searchsorted(self._batches, batch, side="right"))
        return np.array(self._batches[:count], np.float64), np.array(self._losses[:count])

    def close(self) -> None:
        """Give its memory back."""
        if self._training is not None:
            self._training.close()
            self._training = None
