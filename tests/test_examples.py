"""The examples run, and every algorithm of Stable-Baselines3 trains on the environments."""

import subprocess
import sys

import nbformat
import numpy as np
import pytest
import torch
from helpers import EXAMPLES, TINY, load_example
from nbclient import NotebookClient

RUNS = [
    *((name, "QanLR-MNIST5k-v1") for name in ("DQN", "PPO", "A2C", "SAC", "TD3")),
    *((name, "QanMinibatch-MNIST5k-v1") for name in ("DQN", "PPO", "A2C")),
]


@pytest.mark.parametrize(("name", "env_id"), RUNS)
def test_every_algorithm_learns_from_the_game(name, env_id, small_data):
    example = load_example("sb3_algorithms")
    model = example.make(name, env_id, dataset=small_data, **TINY)
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    model.learn(60)  # past the end of an episode of 8, and of the 50 random actions at first
    after = model.policy.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert all(value.isfinite().all() for value in after.values())
    observation = model.get_env().reset()
    action, _ = model.predict(observation, deterministic=True)
    assert model.get_env().action_space.contains(action[0])


@pytest.mark.parametrize("name", ["DQN", "PPO", "SAC"])
def test_algorithms_play_the_family_of_tasks(name):
    """Past the end of an episode, of 25 actions, and of the random actions at first."""
    example = load_example("sb3_algorithms")
    model = example.make(name, "QanLR-Family-v0", networks=["mlp"], num_tasks=5)
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    model.learn(60)
    after = model.policy.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert np.isfinite(example.play(model)["test_loss"])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        pytest.param("cleanrl_dqn", ("--env", "QanLR-Family-v0", "--steps", "110"), marks=pytest.mark.slow),
        pytest.param(
            "cleanrl_ppo",
            ("--env", "QanLR-Family-v0", "--steps", "160", "--num-envs", "2"),
            marks=pytest.mark.slow,
        ),
        pytest.param("first_episode", (), marks=pytest.mark.slow),
        pytest.param(
            "offline_rl",
            ("--episodes", "2", "--epochs", "2", "--seeds", "1", "--game-epochs", "1"),
            marks=pytest.mark.slow,
        ),
        ("save_and_fork", ()),
        pytest.param("custom_task", (), marks=pytest.mark.slow),
        ("own_loop", ("--epochs", "1", "--batch-size", "64")),
        pytest.param("own_loop_lightning", ("--epochs", "1"), marks=pytest.mark.slow),
        pytest.param("own_loop_transformers", ("--steps", "30"), marks=pytest.mark.slow),
        pytest.param("ppo_on_64", ("--num-envs", "2", "--episodes", "2"), marks=pytest.mark.slow),
    ],
)
def test_example_runs(name, arguments, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    command = [sys.executable, EXAMPLES / f"{name}.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert any(word in done.stdout for word in ("accuracy", "learning rate", "test loss"))


NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    assert "test loss" in "".join(output.get("text", "") for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_notebooks_have_no_outputs():
    """So that a change of one is a change of its text."""
    assert {path.stem for path in NOTEBOOKS} >= {"first_agent", "own_loop"}
    for path in NOTEBOOKS:
        code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        assert code
        assert not [cell for cell in code if cell.outputs or cell.execution_count], path.name
