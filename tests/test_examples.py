"""The examples run, and every algorithm of Stable-Baselines3 trains on the games."""

import subprocess
import sys

import numpy as np
import pytest
from helpers import EXAMPLES, load_example

SHORT = {"epochs": 1, "meta_momentum": None, "reference": None}
RUNS = [
    *((name, "QanLR-MNIST5k-v0", {"batches_per_action": 4}) for name in ("DQN", "PPO", "A2C", "SAC", "TD3")),
    *((name, "QanMinibatch-MNIST5k-v0", {"batch_size": 40}) for name in ("DQN", "PPO", "A2C")),
]


@pytest.mark.parametrize(("name", "env_id", "kwargs"), RUNS)
def test_every_algorithm_learns_from_the_game(name, env_id, kwargs):
    example = load_example("sb3_algorithms")
    model = example.make(name, env_id, **SHORT, **kwargs)
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    model.learn(120)  # past the end of an episode of 100
    after = model.policy.state_dict()
    assert any(not np.array_equal(before[key], after[key]) for key in before)
    assert all(np.isfinite(value).all() for value in after.values())
    observation = model.get_env().reset()
    action, _ = model.predict(observation, deterministic=True)
    assert model.get_env().action_space.contains(action[0])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("first_episode", ()),
        ("save_and_fork", ()),
        ("custom_task", ()),
        ("ppo_on_64", ("--num-envs", "2", "--episodes", "2")),
    ],
)
def test_example_runs(name, arguments):
    command = [sys.executable, EXAMPLES / f"{name}.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout or "learning rate" in done.stdout
