"""The info: the same names at every step, of the types that Gymnasium, SB3, TorchRL and minari take."""

import copy
import json
import math
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.wrappers import NumpyToTorch, TimeAwareObservation
from gymnasium.wrappers.vector import NumpyToTorch as VectorNumpyToTorch
from helpers import small_data

from qan_gym.info import Score, first_values

SHORT = {"dataset": small_data(), "epochs": 1, "batches_per_action": 2, "meta_momentum": None, "reference": None}
LR = "QanLR-MNIST5k-v1"


def infos_of_an_episode(**arguments):
    env = gym.make(LR, **SHORT, **arguments)
    infos, over = [env.reset(seed=0)[1]], False
    while not over:
        *_, terminated, truncated, info = env.step(0)
        infos.append(info)
        over = terminated or truncated
    return infos


def test_names_and_types_are_the_same_at_every_step():
    """As minari's collector and TorchRL's reader demand; the test set is NaN before the end."""
    first, *_, last = infos = infos_of_an_episode()
    assert len(infos) == 11
    for info in infos:
        assert info.keys() == first.keys()
        assert [type(value) for value in info.values()] == [type(value) for value in first.values()]
    assert all(np.isnan(info[name]) for info in infos[:-1] for name in ("test_loss", "test_accuracy"))
    assert 0 < last["test_loss"] < 10
    assert 0 <= last["test_accuracy"] <= 1


def test_success_is_named_where_there_is_a_target():
    assert all("is_success" not in info for info in infos_of_an_episode())
    infos = infos_of_an_episode(target_loss=100.0)
    assert [info["is_success"] for info in infos] == [False, True]
    rows = gym.make_vec(LR, 2, **SHORT)
    assert "is_success" not in rows.reset(seed=0)[1]


def test_infos_of_equal_steps_are_equal():
    """Also where a number is not measured, which Gymnasium's `check_env` compares."""
    one, other = infos_of_an_episode(), infos_of_an_episode()
    assert one == other
    assert data_equivalence(one[0], other[0], exact=True)


def test_a_score():
    nan = Score("nan")
    assert nan == Score("nan")
    assert not nan != Score("nan")  # noqa: SIM202
    assert nan not in (1.0, float("nan"))
    assert Score(0.5) == 0.5
    assert Score(0.5) != 0.6
    assert isinstance(nan, float)
    for way in (copy.deepcopy, lambda score: pickle.loads(pickle.dumps(score))):
        assert type(way(nan)) is Score
        assert way(nan) == nan


def test_numbers_are_those_of_json_and_have_dtypes():
    """Floats have a dtype, for TorchRL; integers and flags are Python's."""
    info = infos_of_an_episode()[-1]
    assert json.loads(json.dumps(info))["batch"] == 20
    assert all(value.dtype == np.float64 for value in info.values() if isinstance(value, float))
    assert type(info["epoch"]) is type(info["batch"]) is int
    assert type(info["diverged"]) is type(info["early_stopped"]) is bool


def test_values_of_a_device_come_together():
    """With their numbers and kinds, whatever the dtypes."""
    dtypes = (torch.float64, torch.float32, torch.int64, torch.bool)
    tensors = {f"{dtype} {number}": torch.tensor([number, 5], dtype=dtype) for number in (0, 1) for dtype in dtypes}
    tensors |= {"loss": torch.tensor([0.1]), "steps": torch.tensor([2**53 + 1]), "test_loss": torch.tensor([math.nan])}
    expected = {name: tensor.tolist()[0] for name, tensor in tensors.items()}
    found = first_values(tensors)
    assert math.isnan(found.pop("test_loss"))
    assert math.isnan(expected.pop("test_loss"))
    assert found == expected
    assert [type(found[name]) for name in expected] == [type(value) for value in expected.values()]


def test_gymnasiums_vector_environment_makes_arrays_of_numbers():
    sync, rows = (gym.make_vec(LR, 2, vectorization_mode=mode, **SHORT) for mode in ("sync", None))
    for one, other in zip(sync.reset(seed=0)[1].items(), rows.reset(seed=0)[1].items(), strict=True):
        assert one[0] == other[0]
        assert one[1].dtype == other[1].dtype
        np.testing.assert_array_equal(one[1], other[1])
    assert "_test_loss" in sync.step(np.array([0, 1]))[4].keys() & rows.step(np.array([0, 1]))[4].keys()


def test_gymnasiums_conversions_to_tensors():
    env = NumpyToTorch(gym.make(LR, **SHORT))
    env.reset(seed=0)
    info = env.step(torch.tensor(0))[4]
    assert info["loss"].dtype == torch.float64
    assert info["diverged"].dtype == torch.bool
    envs = VectorNumpyToTorch(gym.make_vec(LR, 2, vectorization_mode="sync", **SHORT))
    envs.reset(seed=0)
    assert envs.step(torch.tensor([0, 1]))[4]["diverged"].dtype == torch.bool


def test_torchrl_reads_numbers():
    pytest.importorskip("torchrl")
    from torchrl.envs import GymEnv, default_info_dict_reader

    env = GymEnv(LR, **SHORT)
    env.set_info_dict_reader(default_info_dict_reader(["loss", "test_loss"]))
    played = env.rollout(20)
    assert played["next", "loss"].shape == (10,)
    assert played["next", "test_loss"].isnan().tolist() == [True] * 9 + [False]


def test_the_spec_says_how_long_an_episode_is():
    env = gym.make(LR, **SHORT)
    assert env.spec.max_episode_steps == env.unwrapped.episode_length == 10
    assert gym.make(env.spec).spec.max_episode_steps == 10
    assert gym.make(LR, max_episode_steps=3, **SHORT).spec.max_episode_steps == 3
    timed = TimeAwareObservation(env)
    assert timed.reset(seed=0)[0].shape == (826,)
    assert timed.step(0)[0][-1] == 1
