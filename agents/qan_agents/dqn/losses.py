"""The losses of an update and their gradients, written out: less work than to have autograd derive them."""

import torch
from torch import Tensor


def huber_loss(error: Tensor, threshold: float | None) -> tuple[Tensor, Tensor]:
    """The Huber loss of TD errors, or half their square.

    Args:
        error: (B, 1), target minus value.
        threshold: above which the loss is linear; None: it is half the square everywhere.

    Returns:
        The loss (B, 1), and its gradient with respect to the value (B, 1): minus the clipped TD error.
    """
    clipped = error if threshold is None else error.clamp(-threshold, threshold)
    return clipped * (error - 0.5 * clipped), -clipped


def quantile_huber_loss(values: Tensor, targets: Tensor, midpoints: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """The quantile regression loss, equation 10 of arXiv:1710.10044.

    It is summed over the learned quantiles, and is the mean over those of the target.

    Args:
        values: (B, Q) learned quantiles.
        targets: (B, Q) quantiles of the target.
        midpoints: (Q,) in (0, 1), the shares of the distribution that the learned quantiles stand for.
        threshold: of the Huber loss.

    Returns:
        The loss (B, 1), and its gradient with respect to the values (B, Q).
    """
    error = targets[:, None, :] - values[:, :, None]  # (B, learned, targets)
    clipped = error.clamp(-threshold, threshold)
    weight = (midpoints[:, None] - (error < 0).float()).abs() / threshold
    losses = (weight * clipped * (error - 0.5 * clipped)).mean(dim=2).sum(dim=1, keepdim=True)
    return losses, -(weight * clipped).mean(dim=2)


def quantile_midpoints(quantiles: int, device: torch.device) -> Tensor:
    """(Q,) the midpoints of Q equal parts of (0, 1)."""
    numbers = torch.arange(quantiles, device=device)
    return (numbers + 0.5) / quantiles
