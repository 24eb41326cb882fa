"""The certificate is given to games whose actions matter, and to no others: above all not to the original's mistake."""

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import register, registry
from helpers import made_npz
from typer.testing import CliRunner

import qan_gym
from qan_agents import check
from qan_agents.check import Certificate, certify, extremes, look_at
from qan_agents.cli import app
from qan_gym.env import LearningRateEnv
from qan_gym.optimizers import SGD
from qan_gym.tasks import TaskConfig

LR, MINIBATCH = "QanLR-MNIST5k-v0", "QanMinibatch-MNIST5k-v0"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An episode of 10 actions, 20 mini-batches of 10 made images; a raise changes the learning rate by 0.1."""
    data = made_npz(tmp_path_factory.mktemp("data") / "made.npz", n_train=225)
    common = {"dataset": data, "epochs": 1, "batch_size": 10, "meta_momentum": None, "reference": None}
    return {**common, "batches_per_action": 2, "learning_rate": 0.1, "learning_rate_step": 0.1}


@pytest.fixture
def registered() -> Iterator[Any]:
    """(id, class, keyword arguments): registered with Gymnasium for one test."""
    before = dict(registry)

    def add(env_id: str, entry_point: Any, **kwargs: Any) -> str:
        register(env_id, entry_point=entry_point, **kwargs)
        return env_id

    yield add
    registry.clear()
    registry.update(before)


def ask(env_id: str, kwargs: dict[str, Any] | None = None, seeds: int = 5, steps: int | None = None) -> Certificate:
    return certify(env_id, kwargs or {}, seeds, steps, lambda name: None)


# --- the original's mistake -----------------------------------------------------------------------------------------


class CachedConfig(SGD):
    """The optimizer's config is made at the first mini-batch, and what the agent changes later never gets there."""

    def __init__(self, config: TaskConfig) -> None:
        super().__init__(config)
        self.cached = None

    def update(self, params, gradients, slots, learning_rate, step) -> None:
        if self.cached is None:
            self.cached = learning_rate.clone()
        super().update(params, gradients, slots, self.cached, step)


class FrozenEnv(LearningRateEnv):
    """The same, as an environment of its own."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(LR, **kwargs)
        self.training.optimizer = CachedConfig(self.config)


class ThawedEnv(LearningRateEnv):
    """Its twin, without the mistake."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(LR, **kwargs)


def test_a_frozen_learning_rate_is_not_certified(small, registered) -> None:
    """Though `info` says that it changes, and though the first action still has an effect; its twin is certified."""
    frozen = registered("FrozenLR-v0", FrozenEnv)
    env = gym.make(frozen, **small)
    rates, weights = [], []
    for action in (0, 1):
        fresh = gym.make(frozen, **small)
        fresh.reset(seed=0)
        rates.append([fresh.step(action)[4]["learning_rate"] for _ in range(5)])
        weights.append(fresh.unwrapped.weights()["conv1.weight"])
    assert rates[0] == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6])
    assert not np.array_equal(*weights)
    env.close()
    found = ask(frozen, small)
    assert found.identical
    assert not found.certified
    assert "change nothing" in found.verdict
    twin = ask(registered("ThawedLR-v0", ThawedEnv), small)
    assert twin.certified, twin


def test_nor_is_it_in_lockstep(small, registries) -> None:
    """The mistake in the optimizer of a registered id; and the id without it, which is played in lock-step too."""
    qan_gym.register_optimizer("cached", CachedConfig)
    assert look_at(LR, small, None).lockstep
    found = ask(LR, {**small, "optimizer": "cached"})
    assert found.identical
    assert not found.certified
    assert ask(LR, small).certified
