"""`LearnedLR` in the `Trainer` of Hugging Face's transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from qan_agents.controllers.learned_lr import LearnedLR


def with_learned_lr(
    model: nn.Module, optimizer: Optimizer, total_steps: int, *, accumulate: int = 1, **settings: Any
) -> tuple[Optimizer, LearnedLR]:
    """The pair that `Trainer(..., optimizers=...)` takes.

        optimizer = torch.optim.AdamW(model.parameters())
        pair = with_learned_lr(model, optimizer, 5_000, batch_size=64, dataset_size=50_000, num_classes=10)
        trainer = Trainer(model=model, args=arguments, train_dataset=data, optimizers=pair)

    The `Trainer` calls the scheduler without a loss: a hook of the model gives it the losses of its forward passes in
    training. The checkpoints of the `Trainer` have its state.

    Args:
        model: whose output has a `loss`.
        optimizer: of its parameters.
        total_steps: updates of the whole training, `max_steps` of the `Trainer`.
        accumulate: its `gradient_accumulation_steps`.
        settings: keyword arguments of `LearnedLR`, batch_size, dataset_size and num_classes among them.

    Raises:
        ValueError: see `LearnedLR`.
    """
    scheduler = LearnedLR(optimizer, total_steps, **settings)

    def observe(module: nn.Module, inputs: Any, keywords: dict[str, Any], output: Any) -> None:
        loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if not module.training or loss is None or not torch.is_grad_enabled():
            return
        if keywords.get("num_items_in_batch") is not None:  # a part of the mean over all mini-batches of the update
            processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
            loss = loss * accumulate * processes
        scheduler.observe(loss)

    model.register_forward_hook(observe, with_kwargs=True)
    return optimizer, scheduler
