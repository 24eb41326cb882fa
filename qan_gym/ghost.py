"""The ghost: the same training with nobody acting, drawn behind an episode."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from qan_gym.actions import KEEP
from qan_gym.training import Imagined, Training


class Ghost:
    """A training of the same seed at the constant initial learning rate, or of shuffled SGD in the mini-batch game.

    It has the same weights at first, the same data order, the same reference. Nothing is trained before `until` asks
    for it, and then only so far.
    """

    def __init__(self, training: Training) -> None:
        """training: whose only run is an episode that has begun; it is left as it is."""
        self._config = replace(
            training.config,
            schedule="constant",
            continuous=False,
            action_scale="additive",
            target_loss=None,
            early_stopping=None,
            validate_every=None,
        )
        self._device = str(training.device)
        self._seed = training.seeds.copy()
        self._reference = None
        if training.reference is not None and training.has_reference[0]:
            # Copies: with reference="previous" they are the next episode's as soon as this one is over.
            self._reference = {name: value[0].clone() for name, value in training.reference.items()}
        self._training: Imagined | None = None
        self._batches = [0]
        self._smoothed: list[float] = []

    def until(self, batch: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Its course up to a mini-batch: mini-batches done and the running mean of the loss, (steps + 1,) each."""
        if self._training is None:
            self._training = Imagined(self._config, None, 1, self._device)
            self._training.adopt(self._reference)
            _, info = self._training.reset(np.ones(1, np.bool_), self._seed, shuffled=self._config.game == "minibatch")
            self._smoothed.append(info["smoothed_loss"].item())
        keep = torch.tensor([KEEP if self._config.game == "lr" else 0])
        while self._batches[-1] < batch and not self._training.over[0]:
            info = self._training.step(keep).info
            self._batches.append(int(info["batch"].item()))
            self._smoothed.append(info["smoothed_loss"].item())
        count = int(np.searchsorted(self._batches, batch, side="right"))
        return np.array(self._batches[:count], np.float64), np.array(self._smoothed[:count])

    def close(self) -> None:
        """Give its memory back."""
        if self._training is not None:
            self._training.close()
            self._training = None
