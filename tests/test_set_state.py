"""`set_state` is all or nothing: what is wrong in a state is named, and the environment goes on as before."""

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from helpers import small_data

from qan_gym.families import Task
from qan_gym.state import State

SHORT = {"dataset": small_data(), "epochs": 2, "batches_per_action": 2, "meta_momentum": None, "reference": None}
LR, MINIBATCH, FAMILY = "QanLR-MNIST5k-v1", "QanMinibatch-MNIST5k-v1", "QanLR-Family-v0"


def playing(env_id: str, steps: int = 3) -> Any:
    env = gym.make(env_id, **{**SHORT, "batch_size": 10}).unwrapped
    env.reset(seed=1)
    for _ in range(steps):
        env.step(1)
    return env


def content(env: Any) -> tuple[dict[str, bytes], dict[str, Any]]:
    state = env.get_state()
    return {name: array.tobytes() for name, array in state.arrays.items()}, state.metadata


def changed(array: np.ndarray, value: Any) -> np.ndarray:
    copy = array.copy()
    copy.reshape(-1)[0] = value
    return copy


METADATA = {
    "np_random": [{}, None, 5, "x", {"bit_generator": "PCG64"}, {"bit_generator": "MT19937", "state": {}}],
    "phase": ["new", "over", "paused", None, 3, ["playing"]],
    "np_random_seed": [-2, 1.5, "1", None, True],
    "config": [None, {}, "x"],
    "fingerprint": [None, "another"],
}
ARRAYS = {
    "order": [10**6, -1, 200, 7],
    "batch": [-2, 10**6, 40, 1],
    "seed": [-1],
    "batch_indices": [-1, 200],
    "class_used": [-1, 10**6, 100],
    "chosen_learning_rate": [0, 2.0, math.nan, math.inf],
    "learning_rate": [-0.1, math.nan],
    "momentum": [-1, math.nan],
    "smoothed_loss": [math.nan, -1, 1e7],
    "validation_accuracy": [1.5, -0.1],
    "epochs_since_best": [-1, 3],
    "over": [True],
    "last_action": [math.nan],
    "history": [math.nan],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in METADATA.items() for value in values])
def test_metadata_that_is_wrong(name, value):
    env = playing(LR)
    before, state = content(env), env.get_state()
    state.metadata[name] = value
    with pytest.raises(ValueError, match=name):
        env.set_state(state)
    assert content(env) == before
    env.step(0)


@pytest.mark.parametrize("name", METADATA)
def test_metadata_that_is_missing(name):
    env = playing(LR)
    before, state = content(env), env.get_state()
    del state.metadata[name]
    with pytest.raises(ValueError, match=name):
        env.set_state(state)
    assert content(env) == before


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in ARRAYS.items() for value in values])
def test_values_out_of_their_range(name, value):
    env = gym.make(LR, render_mode="ansi", **SHORT).unwrapped if name == "history" else playing(LR)
    if name == "history":
        env.reset(seed=1)
    before, state = content(env), env.get_state()
    state.arrays[name] = changed(state.arrays[name], value)
    with pytest.raises(ValueError, match="phase" if name == "over" else name):
        env.set_state(state)
    assert content(env) == before
    env.step(0)


@pytest.mark.parametrize("value", [-1, 10, 10**6])
def test_the_window_of_the_mini_batch_game(value):
    env = playing(MINIBATCH)
    before, state = content(env), env.get_state()
    state.arrays["game.recent_actions"] = changed(state.arrays["game.recent_actions"], value)
    with pytest.raises(ValueError, match=r"game.recent_actions must be .*at least 0, below 10, not"):
        env.set_state(state)
    assert content(env) == before


def test_drawing_by_class_belongs_to_games_that_do():
    env = playing(LR)
    state = env.get_state()
    state.arrays["by_class"] = np.array([True])
    with pytest.raises(ValueError, match="by_class"):
        env.set_state(state)


@pytest.mark.parametrize("value", [None, {}, "state.safetensors", 5])
def test_what_is_no_state(value):
    env = playing(LR)
    with pytest.raises(ValueError, match="the state must be what get_state"):
        env.set_state(value)


@pytest.mark.parametrize("value", [None, "x", [1], np.array(["x"]), np.array([object()])])
def test_what_is_no_array(value):
    env = playing(LR)
    before, state = content(env), env.get_state()
    with pytest.raises(ValueError, match="momentum"):
        env.set_state(State({**state.arrays, "momentum": value}, state.metadata))
    assert content(env) == before


@pytest.mark.parametrize("steps", [0, 1, 10, 40])
@pytest.mark.parametrize(
    ("env_id", "settings"),
    [
        (LR, {**SHORT, "batch_size": 10}),
        (LR, {**SHORT, "batch_size": 10, "observation": "statistics"}),
        (MINIBATCH, {**SHORT, "batch_size": 10}),
        (FAMILY, {"task": Task(batches_per_action=2), "context": "observed"}),
        (FAMILY, {"task": Task(batches_per_action=2), "engine": "torch"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_state_of_an_episode_is_accepted(env_id, settings, steps):
    """At its beginning, between epochs, and at its end."""
    env = gym.make(env_id, **settings).unwrapped
    env.set_state(env.get_state())  # before the first reset
    env.reset(seed=1)
    action = np.zeros(1, np.float32) if env_id == FAMILY else 1
    for _ in range(min(steps, env.episode_length)):
        env.step(action)
    env.set_state(env.get_state())


def test_a_diverged_episode_is_accepted():
    env = gym.make(LR, **SHORT, learning_rate=1e37, learning_rate_max=1e38).unwrapped
    env.reset(seed=0)
    over = False
    while not over:
        _, _, over, _, info = env.step(0)
    assert info["diverged"]
    env.set_state(env.get_state())
