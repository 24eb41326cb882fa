"""Rollouts: N episodes that a controller plays in lock-step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qan_agents.bench.controllers import Controller
from qan_gym.vector_env import QanVectorEnv


@dataclass
class Rollout:
    """N episodes.

    Attributes:
        validation_loss: (V, N), as it was measured, that of the initial weights first.
        learning_rate: (V, N), at the same times.
        final: the last infos, (N,) each; of a training run that diverged, those of its last step.
        batches: (N,) mini-batches done.
    """

    validation_loss: NDArray[np.float64]
    learning_rate: NDArray[np.float64]
    final: dict[str, NDArray[Any]]
    batches: NDArray[np.int64]


def play_episodes(env: QanVectorEnv, controller: Controller, seeds: Sequence[int]) -> Rollout:
    """Play one episode in every row of an environment in mode DISABLED.

    Args:
        env: of N rows.
        controller: which plays.
        seeds: N, of the episodes.

    Raises:
        ValueError: the controller cannot play this environment.
    """
    options = controller.start(env)
    observations, infos = env.reset(seed=list(seeds), options=options)
    over = np.zeros(env.num_envs, np.bool_)
    final: dict[str, NDArray[Any]] = {}
    interval = validation_interval(env)
    measured, losses, rates = 0, [infos["validation_loss"]], [infos["learning_rate"]]
    while not over.all():
        actions = controller.act(np.asarray(observations), infos)
        if over.any():
            # Mode DISABLED refuses to step rows that are over. They are reset, and what they do then is not recorded.
            observations, _ = env.reset(options={**(options or {}), "reset_mask": over})
        observations, _, terminated, truncated, infos = env.step(actions)
        for name, values in infos.items():
            if not name.startswith("_") and not isinstance(values, dict):
                before = final.get(name, np.zeros_like(values))
                final[name] = np.where(over, before, values)
        over |= np.asarray(terminated) | np.asarray(truncated)
        if final["batch"].max() // interval > measured or over.all():
            measured = final["batch"].max() // interval
            losses.append(final["validation_loss"].copy())
            rates.append(final["learning_rate"].copy())
    return Rollout(np.array(losses), np.array(rates), final, final["batch"])


def validation_interval(env: QanVectorEnv) -> int:
    """Mini-batches between two measurements of the validation loss."""
    return env.config.validate_every or env.training.parts.batches_per_epoch
