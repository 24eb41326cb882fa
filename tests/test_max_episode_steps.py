"""`max_episode_steps` of vector environments, as `TimeLimit` around each row; copies, and rows by their attributes."""

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from helpers import small_data

SHORT = {"dataset": small_data(), "epochs": 1, "batches_per_action": 2, "meta_momentum": None, "reference": None}
LR, MINIBATCH = "QanLR-MNIST5k-v1", "QanMinibatch-MNIST5k-v1"


def assert_equal(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_equal(one[name], other[name])
    elif isinstance(one, tuple | list) or (isinstance(one, np.ndarray) and one.dtype == object):
        assert len(one) == len(other)
        for mine, its in zip(one, other, strict=True):
            assert_equal(mine, its)
    else:
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("limit", [1, 3, 10, 20])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_rows_end_as_single_environments_do(limit, mode):
    """Bit for bit: with a target that some rows reach before, and the last weights as the next reference."""
    settings = {**SHORT, "reference": "previous", "meta_momentum": 0.1, "target_loss": 2.2, "learning_rate": 0.3}
    rows = gym.make_vec(LR, 3, max_episode_steps=limit, autoreset_mode=mode, **settings)
    vector = {"autoreset_mode": mode}
    singles = gym.make_vec(LR, 3, max_episode_steps=limit, vectorization_mode="sync", vector_kwargs=vector, **settings)
    assert_equal(rows.reset(seed=4), singles.reset(seed=4))
    ended = 0
    for step in range(14):
        actions = np.array([0, step % 3, 1])
        mine, its = rows.step(actions), singles.step(actions)
        assert_equal(mine, its)
        over = mine[2] | mine[3]
        ended += over.sum()
        if mode == AutoresetMode.DISABLED and over.any():
            assert_equal(*(one.reset(options={"reset_mask": over.copy()}) for one in (rows, singles)))
    assert ended >= 1
    assert rows.episode_length == min(limit, 10)


def test_an_id_that_is_registered_with_it():
    arguments = {"env_id": LR, **SHORT}
    gym.register(
        "Shorter-v0",
        entry_point="qan_gym.env:LearningRateEnv",
        vector_entry_point="qan_gym.vector_env:QanVectorEnv",
        max_episode_steps=2,
        kwargs=arguments,
    )
    try:
        envs = gym.make_vec("Shorter-v0", num_envs=2)
        envs.reset(seed=0)
        assert not envs.step(np.array([0, 1]))[3].any()
        *_, truncated, infos = envs.step(np.array([0, 1]))
        assert truncated.all()
        assert np.isnan(infos["test_loss"]).all()
        assert envs.episode_length == 2
    finally:
        del gym.registry["Shorter-v0"]


@pytest.mark.parametrize("value", [0, -1, 1.5, "5", True, 10**200])
def test_wrong_limits(value):
    with pytest.raises(ValueError, match="max_episode_steps must be an integer of at least 1"):
        gym.make_vec(LR, 2, max_episode_steps=value, **SHORT)


def test_integers_of_numpy_are_counts():
    envs = gym.make_vec(LR, np.int64(2), max_episode_steps=np.int32(3), **SHORT, batch_size=np.int64(5))
    assert (envs.num_envs, envs.episode_length, envs.config.batch_size) == (2, 3, 5)
    assert type(envs.num_envs) is int
    envs.reset(seed=np.int64(3))
    other = gym.make_vec(LR, 2, **SHORT, batch_size=5)
    assert_equal(envs.reset(seed=np.array([3, 4])), other.reset(seed=3))


# --- copies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [lambda envs: pickle.loads(pickle.dumps(envs)), copy.deepcopy])
@pytest.mark.parametrize("env_id", [LR, MINIBATCH])
def test_a_copy_goes_on_bit_for_bit(env_id, way):
    """Through the end of the episode into the next; with its spec, spaces' generators, pictures and set attributes."""
    envs = gym.make_vec(env_id, 2, render_mode="rgb_array", autoreset_mode="SameStep", **SHORT, batch_size=10)
    envs.action_space.seed(3)
    envs.reset(seed=0)
    for _ in range(4):
        envs.step(envs.action_space.sample())
    envs.set_attr("note", ["a", "b"])
    twin = way(envs)
    assert twin.spec == envs.spec
    assert twin.get_attr("note") == ("a", "b")
    for _ in range(8):
        actions = envs.action_space.sample()
        np.testing.assert_array_equal(twin.action_space.sample(), actions)
        assert_equal(envs.step(actions), twin.step(actions))
    assert_equal(envs.render(), twin.render())
    assert_equal(envs.weights(), twin.weights())


def test_a_copy_before_the_first_reset():
    envs = gym.make_vec(LR, 2, **SHORT)
    twin = pickle.loads(pickle.dumps(envs))
    assert_equal(envs.reset(), twin.reset())


def test_a_closed_environment_cannot_be_copied():
    envs = gym.make_vec(LR, 2, **SHORT)
    envs.close()
    with pytest.raises(gym.error.ClosedEnvironmentError):
        pickle.dumps(envs)


def test_rewards_of_tensors_are_float32():
    tensors, arrays = (gym.make_vec(LR, 2, output=output, **SHORT) for output in ("torch", "numpy"))
    for envs in (tensors, arrays):
        envs.reset(seed=0)
    mine, its = tensors.step(torch.tensor([0, 1]))[1], arrays.step(np.array([0, 1]))[1]
    assert mine.dtype == torch.float32
    assert its.dtype == np.float64
    np.testing.assert_array_equal(mine.numpy(), its)


# --- rows by their attributes ---------------------------------------------------------------------------------------


def test_attributes_and_methods_are_those_of_single_environments():
    envs = gym.make_vec(LR, 2, **SHORT)
    singles = gym.make_vec(LR, 2, vectorization_mode="sync", **SHORT)
    for one in (envs, singles):
        one.reset(seed=0)
        one.step(np.array([0, 1]))
    for name in ("weights", "batch_indices", "episode_length", "screen_shape", "reference", "render_mode"):
        assert_equal(envs.call(name), singles.call(name))
    assert envs.get_attr("config") == singles.get_attr("config")
    assert_equal(envs.call("split", "test"), singles.call("split", "test"))
    with pytest.raises(ValueError, match="no split 'x'"):
        envs.call("split", "x")
    with pytest.raises(AttributeError, match="no_such"):
        envs.get_attr("no_such")


def test_attributes_can_be_added_but_not_changed():
    envs = gym.make_vec(LR, 2, **SHORT)
    envs.set_attr("level", 3)
    assert envs.get_attr("level") == (3, 3)
    envs.set_attr("level", [1, 2])
    assert envs.get_attr("level") == (1, 2)
    with pytest.raises(ValueError, match="2 values of level"):
        envs.set_attr("level", [1])
    with pytest.raises(AttributeError, match=r"config cannot be set.*gym.make_vec"):
        envs.set_attr("config", None)
