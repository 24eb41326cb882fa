"""Presets: named hyperparameters of both DQNs, Stable-Baselines3's and the bundled one."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from qan_agents.dqn.config import DQNConfig, EnsembleConfig
from qan_agents.dqn.features import READ_THE_SCORE_LINE
from qan_gym.utils.names import unknown_name


def _paper(steps: int) -> DQNConfig:
    """Those of the paper that this project follows, arXiv:1606.01467: the DQN of Mnih et al., Nature 518 (2015)."""
    return DQNConfig(
        history=4,
        features="filters",
        hidden=(512,),
        optimizer="rmsprop",
        learning_rate=2.5e-4,
        # DeepMind's 0.01. Its code sums the gradient over the batch where we take the mean: with eps / 32^2 the steps
        # are the same.
        optimizer_epsilon=0.01 / 32**2,
        max_grad_norm=None,
        batch_size=32,
        update_every=4,
        learning_starts=min(50_000, steps // 20),
        target_update_interval=10_000,
        buffer_size=min(1_000_000, steps),  # more would never be filled
        exploration_final=0.1,
        exploration_steps=min(1_000_000, steps),
    )


def _quick(steps: int) -> DQNConfig:
    """Few inputs and a small network: learns something in a few thousand steps."""
    return DQNConfig(
        features="score-line",
        hidden=(64, 64),
        gradient_steps=2,
        learning_starts=min(200, steps // 20),
        target_update_interval=200,
        buffer_size=min(100_000, steps),
        exploration_steps=max(1, round(0.6 * steps)),
    )


def _rainbow(steps: int) -> DQNConfig:
    """`quick` with what has been added to DQN since, as in arXiv:1710.02298."""
    return DQNConfig(
        features="score-line",
        hidden=(64, 64),
        layer_norm=True,
        dueling=True,
        quantiles=25,
        double=True,
        gamma=0.995,
        n_step=3,
        gradient_steps=2,
        learning_starts=min(200, steps // 20),
        target_update_interval=1,
        tau=0.005,
        buffer_size=min(100_000, steps),
        priority_exponent=0.5,
        importance_steps=steps,
        exploration_steps=max(1, round(0.6 * steps)),
    )


def _control(steps: int) -> DQNConfig:
    """Undiscounted returns over many steps, for few long actions on top of a schedule."""
    return DQNConfig(
        features="scores",
        hidden=(64, 64),
        layer_norm=True,
        double=True,
        gamma=1.0,
        n_step=50,
        gradient_steps=8,
        learning_starts=min(200, steps // 5),
        target_update_interval=1,
        tau=0.005,
        buffer_size=min(100_000, steps),
        exploration_steps=max(1, round(0.7 * steps)),
    )


PRESETS: dict[str, Callable[[int], DQNConfig]] = {
    "quick": _quick,
    "paper": _paper,
    "rainbow": _rainbow,
    "control": _control,
}


def make_dqn_config(preset: str, steps: int, overrides: dict[str, Any], score_line: bool = True) -> DQNConfig:
    """The hyperparameters of a training.

    Args:
        preset: one of PRESETS.
        steps: of the whole training, over which the exploration is spread.
        overrides: hyperparameters that differ from the preset's.
        score_line: whether the frames have one; where not, a preset that reads it takes the frames as they are.

    Raises:
        ValueError: the preset or a hyperparameter is unknown, or a value out of its range.
    """
    if preset not in PRESETS:
        raise ValueError(unknown_name("preset", preset, PRESETS))
    settings = asdict(PRESETS[preset](max(steps, 1)))
    if not score_line and settings["features"] in READ_THE_SCORE_LINE:
        settings["features"] = "flat"
    return DQNConfig(**overridden(settings, overrides))


def make_ensemble_config(preset: str, steps: int, overrides: dict[str, Any], score_line: bool = True) -> EnsembleConfig:
    """The hyperparameters of a training of an ensemble, whose members have those of a preset.

    Args:
        preset: see `make_dqn_config`.
        steps: see `make_dqn_config`.
        overrides: hyperparameters that differ, of the members and of `EnsembleConfig`.
        score_line: see `make_dqn_config`.

    Raises:
        ValueError: see `make_dqn_config`.
    """
    settings = asdict(EnsembleConfig()) | asdict(make_dqn_config(preset, steps, {}, score_line))
    return EnsembleConfig(**overridden(settings, overrides))


def overridden(settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters with others in their place.

    Raises:
        ValueError: there is none of such a name.
    """
    for name in overrides:
        if name not in settings:
            raise ValueError(unknown_name("hyperparameter", name, settings))
    return {**settings, **overrides}
