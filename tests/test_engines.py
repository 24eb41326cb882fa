"""The engines: which one trains a task, that they train the same, and what the native one promises beyond PyTorch's."""

import copy
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import SHORT, TINY, play, small_data

import qan_gym
from qan_gym.core import engine
from qan_gym.native import library

LR, MINIBATCH = "QanLR-MNIST5k-v1", "QanMinibatch-MNIST5k-v1"
ARGUMENTS = {"dataset": small_data(), **TINY}
NATIVE = not isinstance(library.find(), str)
needs_library = pytest.mark.skipif(not NATIVE, reason="the kernels are not compiled")

# Tasks that the kernels train: the optimizers, the pull, other batch sizes.
TASKS = {
    "sgd": (LR, {}),
    "momentum": (LR, {"momentum": 0.9}),
    "nesterov": (LR, {"momentum": 0.8, "nesterov": True, "weight_decay": 1e-3}),
    "adamw": (LR, {"optimizer": "adamw"}),
    "pull": (LR, {"reference": "pretrained", "meta_momentum": 0.05}),
    "filters pulled": (MINIBATCH, {"reference": "pretrained", "meta_momentum": "filter-regression"}),
    "previous": (LR, {"reference": "previous", "meta_momentum": 0.05}),
    "minibatch": (MINIBATCH, {"batch_size": 25}),
    "actions of three": (LR, {"batches_per_action": 3}),
}


def engine_of(env: gym.Env) -> str:
    return env.unwrapped.training.parts.engine


# --- which one ------------------------------------------------------------------------------------------------------


@needs_library
@pytest.mark.parametrize("case", TASKS)
def test_the_kernels_train_what_they_can(case, monkeypatch):
    monkeypatch.delenv(engine.ENGINE_VARIABLE, raising=False)
    env_id, arguments = TASKS[case]
    assert engine_of(gym.make(env_id, **ARGUMENTS | arguments)) == "native"
    assert engine_of(gym.make(env_id, engine="torch", **ARGUMENTS | arguments)) == "torch"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"precision": "bf16"}, "bf16"),
        ({"augment": "zero"}, "augmented"),
        ({"preprocess": "whiten"}, "whitened"),
        ({"distillation": 0.1, "reference": "pretrained"}, "soft targets"),
        ({"network": "resnet-8"}, "mnist-cnn"),
    ],
)
def test_other_tasks_are_trained_in_torch(arguments, reason, monkeypatch):
    """And asking for the kernels says why they cannot, and what can."""
    monkeypatch.delenv(engine.ENGINE_VARIABLE, raising=False)
    wanted = ARGUMENTS | arguments
    if "network" not in arguments or NATIVE:
        with pytest.raises(ValueError, match=rf"engine='native'.*{reason}.*engine='torch'"):
            gym.make(LR, engine="native", **wanted)
    assert engine_of(gym.make(LR, **wanted)) == "torch"


def test_a_registered_optimizer_is_trained_in_torch(registries):
    from qan_gym.optimizee.optimizers import SGD

    qan_gym.register_optimizer("mine", SGD)
    assert engine_of(gym.make(LR, optimizer="mine", **ARGUMENTS)) == "torch"


def test_an_unknown_engine_is_refused():
    with pytest.raises(ValueError, match=r"engine must be one of auto, native, torch, not 'c'"):
        gym.make(LR, engine="c", **ARGUMENTS)


def test_the_variable_says_what_auto_is(monkeypatch):
    monkeypatch.setenv(engine.ENGINE_VARIABLE, "torch")
    assert engine_of(gym.make(LR, **ARGUMENTS)) == "torch"
    assert "torch" in engine.engine_here()
    monkeypatch.setenv(engine.ENGINE_VARIABLE, "c")
    with pytest.raises(ValueError, match="not 'c'"):
        gym.make(LR, **ARGUMENTS)


def test_without_a_library(monkeypatch, caplog):
    """The environment is made all the same, and says once that it is slower; asking for the kernels is an error."""
    monkeypatch.delenv(engine.ENGINE_VARIABLE, raising=False)
    monkeypatch.setattr(library, "find", lambda: "the kernels are not compiled; do it")
    engine._warn_once.cache_clear()
    for _ in range(2):
        assert engine_of(gym.make(LR, **ARGUMENTS)) == "torch"
    engine._warn_once.cache_clear()
    assert [record.message for record in caplog.records if "not compiled" in record.message] == [
        "training in PyTorch, several times slower than the kernels: the kernels are not compiled; do it"
    ]
    with pytest.raises(ValueError, match=r"engine='native': the kernels are not compiled"):
        gym.make(LR, engine="native", **ARGUMENTS)


# --- the same training ----------------------------------------------------------------------------------------------


@needs_library
@pytest.mark.parametrize("case", TASKS)
def test_both_engines_train_the_same(case):
    """Ten actions of either: they differ by roundings alone."""
    env_id, arguments = TASKS[case]
    one, other = (play(gym.make(env_id, engine=name, **ARGUMENTS | arguments), 3, 6) for name in ("native", "torch"))
    for (observation, *rest, info), (other_observation, *other_rest, other_info) in zip(one, other, strict=True):
        np.testing.assert_allclose(observation, other_observation, rtol=1e-3, atol=2e-3)
        np.testing.assert_allclose(rest[:1], other_rest[:1], rtol=1e-2, atol=2e-3)
        assert rest[1:] == other_rest[1:]
        assert info.keys() == other_info.keys()
        np.testing.assert_allclose(list(info.values()), list(other_info.values()), rtol=1e-2, atol=2e-2)


@needs_library
def test_a_state_goes_from_one_engine_to_the_other():
    """What one engine has saved the other continues, but for roundings."""
    native, torch_ = (gym.make(LR, engine=name, **ARGUMENTS) for name in ("native", "torch"))
    play(native, 3, 4)
    torch_.reset(seed=0)
    torch_.unwrapped.set_state(native.unwrapped.get_state())
    for one, other in zip(native.step(0)[:2], torch_.step(0)[:2], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


# --- the native engine ----------------------------------------------------------------------------------------------


@needs_library
@pytest.mark.parametrize("case", TASKS)
def test_rows_are_single_environments_bit_for_bit_with_any_number_of_threads(case):
    env_id, arguments = TASKS[case]
    threads, seeds = torch.get_num_threads(), [4, 5, 6, 7, 8]
    singles = [gym.make(env_id, engine="native", **ARGUMENTS | arguments) for _ in seeds]
    alone = [env.reset(seed=seed)[0] for env, seed in zip(singles, seeds, strict=True)]
    played = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            played.append(gym.make_vec(env_id, num_envs=len(seeds), engine="native", **ARGUMENTS | arguments))
    finally:
        torch.set_num_threads(threads)
    for rows in played:
        assert np.array_equal(rows.reset(seed=seeds)[0], alone)
    for number in range(4):
        actions = np.arange(len(seeds)) * number % 3
        outcomes = [env.step(action) for env, action in zip(singles, actions, strict=True)]
        for rows in played:
            observations, rewards, *_, infos = rows.step(actions)
            assert np.array_equal(observations, [outcome[0] for outcome in outcomes])
            assert rewards.tolist() == [outcome[1] for outcome in outcomes]
            for name in ("loss", "smoothed_loss", "validation_loss"):
                assert infos[name].tolist() == [outcome[4][name] for outcome in outcomes]


@needs_library
def test_a_copy_of_a_vector_environment_goes_on_alone():
    """It has memory of its own: what it trains leaves the original as it was, and both train the same."""
    rows = gym.make_vec(LR, num_envs=2, engine="native", **ARGUMENTS)
    rows.reset(seed=0)
    rows.step([0, 1])
    twin = copy.deepcopy(rows)
    before = {name: value.copy() for name, value in rows.unwrapped.weights().items()}
    expected = twin.step([1, 2])[0]
    assert all(np.array_equal(value, before[name]) for name, value in rows.unwrapped.weights().items())
    assert np.array_equal(rows.step([1, 2])[0], expected)


@needs_library
def test_counterfactuals_are_exact(monkeypatch):
    """With any batch size and number of threads, each row is what the environment would have given."""
    env = gym.make(LR, engine="native", **ARGUMENTS | {"batch_size": 7})
    play(env, 2, 3)
    found = qan_gym.counterfactual(env, 2)
    for action in range(3):
        twin = copy.deepcopy(env)
        twin.step(action)
        *_, info = twin.step(2)
        assert found.smoothed_loss[action] == info["smoothed_loss"]


@pytest.mark.slow
@needs_library
def test_another_process_gives_the_same_digits():
    code = (
        "import gymnasium as gym, qan_gym, sys\n"
        f"env = gym.make({LR!r}, engine='native', **{SHORT | {'reference': None}!r})\n"
        "env.reset(seed=9)\n"
        "print(repr([env.step(0)[1] for _ in range(3)]))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    env = gym.make(LR, engine="native", **SHORT | {"reference": None})
    env.reset(seed=9)
    assert run.stdout.strip() == repr([env.step(0)[1] for _ in range(3)])
