"""`LearnedLR` in Lightning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from qan_agents.controllers.learned_lr import LearnedLR
from qan_gym.utils.extras import install_extra

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ModuleNotFoundError as error:
    raise ImportError(f"{error.name} is missing: {install_extra('lightning')}") from error


class LearnedLRCallback(Callback):
    """Sets the learning rate of the only optimizer of a `LightningModule`, which configures no scheduler of its own.

    It counts updates, not epochs, and its state is in the checkpoints of the `Trainer`.

        trainer = Trainer(callbacks=[LearnedLRCallback(batch_size=64, dataset_size=50_000, num_classes=10)])

    Attributes:
        scheduler: the `LearnedLR`; None before the training begins.
    """

    def __init__(self, total_steps: int | None = None, **settings: Any) -> None:
        """Prepare.

        Args:
            total_steps: updates of the whole training; None: as the `Trainer` estimates them.
            settings: keyword arguments of `LearnedLR`, batch_size, dataset_size and num_classes among them.
        """
        self.total_steps, self.settings = total_steps, settings
        self.scheduler: LearnedLR | None = None
        self._loaded: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Build the scheduler.

        Raises:
            ValueError: there is not exactly one optimizer, or the module has a scheduler; or see `LearnedLR`.
        """
        if len(trainer.optimizers) != 1:
            raise ValueError(f"LearnedLRCallback sets the rate of one optimizer, not of {len(trainer.optimizers)}")
        if trainer.lr_scheduler_configs:
            raise ValueError("LearnedLRCallback makes the whole schedule: configure_optimizers must return none")
        total = self.total_steps or trainer.estimated_stepping_batches
        if total == float("inf"):
            raise ValueError("the Trainer has no end: give it max_steps or max_epochs, or the callback total_steps")
        self.scheduler = LearnedLR(trainer.optimizers[0], int(total), **self.settings)
        if self._loaded is not None:
            self.scheduler.load_state_dict(self._loaded)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count."""
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        if self.scheduler is not None and isinstance(loss, Tensor):  # None: the module has skipped the mini-batch
            self.scheduler.step(loss * trainer.accumulate_grad_batches)

    def state_dict(self) -> dict[str, Any]:
        """Of the scheduler."""
        return {} if self.scheduler is None else self.scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from it, when the training begins."""
        self._loaded = state_dict or None
