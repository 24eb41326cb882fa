"""Presets: named hyperparameters of the bundled PPO."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from qan_agents.dqn.features import READ_THE_SCORE_LINE
from qan_agents.dqn.presets import overridden
from qan_agents.ppo.config import PPOConfig
from qan_gym.utils.names import unknown_name


def _quick(steps: int) -> PPOConfig:
    """The score line and a small network: learns something in a few thousand steps."""
    return PPOConfig(
        features="scores",
        steps_per_round=50,
        epochs=10,
        gamma=0.995,
        learning_rate=1e-3,
        anneal_steps=max(1, steps),
    )


def _recurrent(steps: int) -> PPOConfig:
    """`quick` with a memory, for one or more environments at once."""
    return PPOConfig(
        features="scores",
        hidden=(64,),
        recurrent=64,
        steps_per_round=50,
        epochs=10,
        minibatches=1,
        gamma=0.995,
        learning_rate=1e-3,
        anneal_steps=max(1, steps),
    )


PRESETS: dict[str, Callable[[int], PPOConfig]] = {"quick": _quick, "recurrent": _recurrent}


def make_ppo_config(preset: str, steps: int, overrides: dict[str, Any], score_line: bool = True) -> PPOConfig:
    """The hyperparameters of a training.

    Args:
        preset: one of PRESETS.
        steps: of the whole training, over which the learning rate falls.
        overrides: hyperparameters that differ from the preset's.
        score_line: whether the frames have one; where not, a preset that reads it takes the frames as they are.

    Raises:
        ValueError: the preset or a hyperparameter is unknown, or a value out of its range.
    """
    if preset not in PRESETS:
        raise ValueError(unknown_name("preset", preset, PRESETS))
    settings = asdict(PRESETS[preset](steps))
    if not score_line and settings["features"] in READ_THE_SCORE_LINE:
        settings["features"] = "flat"
    return PPOConfig(**overridden(settings, overrides))
