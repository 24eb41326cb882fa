"""The steps of a round, their advantages, and the mini-batches made of them."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Steps(NamedTuple):
    """T steps of N rows, or one step of N rows without the leading axis, as the agent saw them.

    Attributes:
        observations: (T, N, F) that were acted on, scaled.
        inputs: (T, N, E) privileged inputs at the time, scaled.
        starts: (T, N) bool, the step is the first of an episode.
        actions: (T, N, k), see `Distribution`.
        log_probs: (T, N) of the actions under the policy that played.
        rewards: (T, N).
        next_observations: (T, N, F) seen after the action, the last of the episode where it ended.
        next_inputs: (T, N, E), likewise.
        terminated: (T, N) bool.
        ended: (T, N) bool, terminated or truncated.
        valid: (T, N) bool; False where the step was no transition but only the reset of NEXT_STEP mode.
    """

    observations: Tensor
    inputs: Tensor
    starts: Tensor
    actions: Tensor
    log_probs: Tensor
    rewards: Tensor
    next_observations: Tensor
    next_inputs: Tensor
    terminated: Tensor
    ended: Tensor
    valid: Tensor


class Batch(NamedTuple):
    """What an update learns from: (B,) single steps, or (T, B) of a recurrent policy; see `Steps`.

    Attributes:
        advantages: of the actions.
        returns: what the value network is to predict.
        memories: (2, B, H), of policy and value network before the first step; H = 0 where nothing is recurrent.
    """

    observations: Tensor
    inputs: Tensor
    starts: Tensor
    actions: Tensor
    log_probs: Tensor
    advantages: Tensor
    returns: Tensor
    valid: Tensor
    memories: Tensor


class Rollout:
    """The steps of a round, on the device.

    Attributes:
        steps: memory for T steps of N rows.
        length: how many of the T are filled.
        memories: (2, N, H), of policy and value network before the first step.
    """

    def __init__(self, length: int, first: Steps, memories: Tensor) -> None:
        """Reserve memory for `length` steps like the first, which is not added."""
        self.steps = Steps(*(value.new_zeros(length, *value.shape) for value in first))
        self.length = 0
        self.memories = memories.clone()

    @property
    def is_full(self) -> bool:
        """Whether the round is over."""
        return self.length == len(self.steps.rewards)

    def add(self, step: Steps) -> None:
        """Write the next step."""
        for kept, new in zip(self.steps, step, strict=True):
            kept[self.length].copy_(new)
        self.length += 1

    def cut(self) -> None:
        """The episodes that go on now were not begun by the last step: there it ends, as by a truncation."""
        if self.length > 0:
            self.steps.ended[self.length - 1] = True


def advantages_of(steps: Steps, values: Tensor, next_values: Tensor, gamma: float, gae_lambda: float) -> Tensor:
    """Generalised advantage estimates, (T, N); 0 where a step is not valid.

    A termination is worth its reward alone; after a truncation the value of the last observation is expected.

    Args:
        steps: of a round.
        values: (T, N) of the observations.
        next_values: (T, N) of the observations after the actions.
        gamma: discount per step.
        gae_lambda: decay of the TD errors.

    Source: arXiv:1506.02438, equation 16.
    """
    errors = steps.rewards + gamma * next_values.masked_fill(steps.terminated, 0.0) - values
    advantages, later = torch.zeros_like(values), torch.zeros_like(values[0])
    for t in reversed(range(len(values))):
        later = errors[t] + gamma * gae_lambda * later.masked_fill(steps.ended[t], 0.0)
        later = later.masked_fill(~steps.valid[t], 0.0)
        advantages[t] = later
    return advantages


def relative(advantages: Tensor, valid: Tensor, group: int) -> Tensor:
    """Advantages minus the mean over their group at the same step, (T, N); 0 where a step is not valid.

    What the value network does not know of a task is in the advantages of all rows that play it, and so is taken off.

    Args:
        advantages: (T, N); 0 where a step is not valid.
        valid: (T, N) bool.
        group: rows of a group, in succession; divides N.
    """
    counts = valid.view(len(valid), -1, group).sum(dim=2, keepdim=True).clamp(min=1)
    sums = advantages.view(len(valid), -1, group).sum(dim=2, keepdim=True)
    return (advantages - (sums / counts).expand(-1, -1, group).flatten(1)).masked_fill(~valid, 0.0)


def minibatches(batch: Batch, count: int, recurrent: bool, generator: torch.Generator | None) -> Iterator[Batch]:
    """A pass over a round (T, N) in `count` random parts: of single steps, or of whole rows of a recurrent policy."""
    *steps, memories = batch
    if recurrent:
        order = torch.randperm(memories.shape[1], generator=generator, device=memories.device)
        for rows in order.tensor_split(count):
            yield Batch(*(value[:, rows] for value in batch))
    else:
        flat = [value.flatten(0, 1) for value in steps]
        order = torch.randperm(len(flat[0]), generator=generator, device=memories.device)
        for places in order.tensor_split(count):
            yield Batch._make([*(value[places] for value in flat), memories])
