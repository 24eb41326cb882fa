"""The distributions of actions: choices of a Discrete or MultiDiscrete space, and Gaussians of a Box.

A policy draws actions that only the agent sees, and `played` turns them into those of the environment:

    Discrete, MultiDiscrete     (..., k) int64, the choices from 0; played as they are
    Box                         (..., k) float32, Gaussian, in units in which the box is [-1, 1] where it is bounded on
                                both sides; scaled to the box and clipped to it when played

The probability of a Gaussian action is that of the action before it was clipped.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ActionSpace:
    """A space of actions, JSON-able.

    Attributes:
        shape: of an action.
        choices: of a Discrete or MultiDiscrete space, how many choices each of its numbers has; empty: a Box.
        low, high: bounds of the numbers of a Box; None: no bound.
    """

    shape: tuple[int, ...]
    choices: tuple[int, ...] = ()
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()

    def __post_init__(self) -> None:
        """JSON has lists where tuples were."""
        for name in ("shape", "choices", "low", "high"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def outputs(self) -> int:
        """Numbers that a policy has for an action: one for each choice, or for each number of a Box."""
        return sum(self.choices) or len(self.low)

    @classmethod
    def of(cls, space: gym.Space[Any]) -> "ActionSpace":
        """That of Gymnasium.

        Raises:
            ValueError: it is not Discrete, MultiDiscrete or a Box of floats.
        """
        if isinstance(space, gym.spaces.Discrete):
            return cls((), choices=(int(space.n),))
        if isinstance(space, gym.spaces.MultiDiscrete):
            return cls(space.shape, choices=tuple(map(int, space.nvec.flatten())))
        if isinstance(space, gym.spaces.Box) and np.issubdtype(space.dtype, np.floating):
            low, high = (
                tuple(float(bound) if np.isfinite(bound) else None for bound in bounds.flatten())
                for bounds in (space.low, space.high)
            )
            return cls(space.shape, low=low, high=high)
        raise ValueError(f"PPO plays Discrete, MultiDiscrete and Box actions of floats, not {space}")


class Distribution(nn.Module, ABC):
    """Actions of a space, given the outputs (..., outputs) of a policy."""

    outputs: int  # numbers that it needs of the policy

    @abstractmethod
    def sample(self, outputs: Tensor, generator: torch.Generator | None) -> Tensor:
        """Actions (..., k), drawn."""

    @abstractmethod
    def mode(self, outputs: Tensor) -> Tensor:
        """The likeliest actions (..., k)."""

    @abstractmethod
    def log_prob(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """ln of the probability, or its density, of actions (..., k): (...)."""

    @abstractmethod
    def entropy(self, outputs: Tensor) -> Tensor:
        """Nats, (...)."""

    @abstractmethod
    def random(self, rows: int, generator: torch.Generator | None) -> Tensor:
        """Actions (rows, k) of no policy."""

    def set_log_std(self, value: float) -> None:
        """Give all Gaussians a standard deviation, by its logarithm; of choices there is none."""

    @abstractmethod
    def played(self, actions: Tensor) -> Tensor:
        """The environment's actions (rows, *) of the agent's (rows, k), as `TensorVectorEnv.step` takes them."""


class Choices(Distribution):
    """A categorical distribution of every number of a Discrete or MultiDiscrete space, independent of the others."""

    counts: Tensor

    def __init__(self, space: ActionSpace) -> None:
        """space: with choices."""
        super().__init__()
        self.choices, self.outputs, self.flat = space.choices, space.outputs, space.shape == ()
        self.register_buffer("counts", torch.tensor(space.choices), persistent=False)

    def _parts(self, outputs: Tensor) -> list[Tensor]:
        """ln of the probabilities, (..., choices) of every number."""
        return [part.log_softmax(dim=-1) for part in outputs.split(self.choices, dim=-1)]

    def sample(self, outputs: Tensor, generator: torch.Generator | None) -> Tensor:
        """See `Distribution.sample`; `torch.multinomial` would make the host wait."""
        times = torch.empty_like(outputs).exponential_(
            generator=generator
        )  # the first of these, by rate, is the choice
        return self.mode(torch.cat(self._parts(outputs), dim=-1) - times.log())

    def mode(self, outputs: Tensor) -> Tensor:
        """See `Distribution.mode`."""
        return torch.stack([part.argmax(dim=-1) for part in outputs.split(self.choices, dim=-1)], dim=-1)

    def log_prob(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """See `Distribution.log_prob`."""
        taken = [
            part.gather(-1, action[..., None])[..., 0]
            for part, action in zip(self._parts(outputs), actions.unbind(dim=-1), strict=True)
        ]
        return torch.stack(taken).sum(dim=0)

    def entropy(self, outputs: Tensor) -> Tensor:
        """See `Distribution.entropy`."""
        return torch.stack([-(part.exp() * part).sum(dim=-1) for part in self._parts(outputs)]).sum(dim=0)

    def random(self, rows: int, generator: torch.Generator | None) -> Tensor:
        """See `Distribution.random`: uniform."""
        share = torch.rand(rows, len(self.choices), generator=generator, device=self.counts.device)
        return (share * self.counts).long().minimum(self.counts - 1)

    def played(self, actions: Tensor) -> Tensor:
        """See `Distribution.played`."""
        return actions[:, 0] if self.flat else actions


class Gaussian(Distribution):
    """A Gaussian of every number of a Box; the standard deviations are the same in every state."""

    low: Tensor
    high: Tensor
    centre: Tensor
    scale: Tensor

    def __init__(self, space: ActionSpace, initial_log_std: float, learn_std: bool) -> None:
        """space: with bounds; for the others see `PPOConfig`."""
        super().__init__()
        self.outputs = space.outputs
        log_std = torch.full((self.outputs,), float(initial_log_std))
        if learn_std:
            self.log_std: Tensor = nn.Parameter(log_std)
        else:
            self.register_buffer("log_std", log_std)
        low = torch.tensor([-math.inf if bound is None else bound for bound in space.low])
        high = torch.tensor([math.inf if bound is None else bound for bound in space.high])
        bounded = low.isfinite() & high.isfinite()
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)
        self.register_buffer("centre", torch.where(bounded, (low + high) / 2, 0.0), persistent=False)
        self.register_buffer("scale", torch.where(bounded, (high - low) / 2, 1.0), persistent=False)

    def set_log_std(self, value: float) -> None:
        """See `Distribution.set_log_std`."""
        self.log_std.fill_(value)

    def sample(self, outputs: Tensor, generator: torch.Generator | None) -> Tensor:
        """See `Distribution.sample`."""
        noise = torch.empty_like(outputs).normal_(generator=generator)
        return outputs + self.log_std.exp() * noise

    def mode(self, outputs: Tensor) -> Tensor:
        """See `Distribution.mode`."""
        return outputs

    def log_prob(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """See `Distribution.log_prob`."""
        distance = (actions - outputs) * (-self.log_std).exp()
        return (-0.5 * distance.square() - self.log_std - 0.5 * math.log(2 * math.pi)).sum(dim=-1)

    def entropy(self, outputs: Tensor) -> Tensor:
        """See `Distribution.entropy`."""
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum().expand(outputs.shape[:-1])

    def random(self, rows: int, generator: torch.Generator | None) -> Tensor:
        """See `Distribution.random`: uniform in the box, or in [-1, 1] where it has no bounds."""
        return torch.rand(rows, self.outputs, generator=generator, device=self.low.device) * 2 - 1

    def played(self, actions: Tensor) -> Tensor:
        """See `Distribution.played`."""
        return torch.clamp(self.centre + self.scale * actions, self.low, self.high)


def distribution_of(space: ActionSpace, initial_log_std: float, learn_std: bool) -> Distribution:
    """The distribution of the actions of a space; the settings are those of a Box, see `PPOConfig`."""
    return Choices(space) if space.choices else Gaussian(space, initial_log_std, learn_std)
