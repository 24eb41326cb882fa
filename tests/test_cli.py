"""The command `qan`: modules in the current folder, and the environments that it lists."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qan_agents.cli.app import app
from qan_agents.env_ids import import_module_of, task_of
from qan_gym.registration import ENTRY_POINTS
from qan_gym.tasks import TASKS

LR = "QanLR-MNIST5k-v0"

MODULE = """
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.envs.registration import register

class IgnoresActions(CartPoleEnv):
    def step(self, action):
        return super().step(0)

register("IgnoresActions-v0", entry_point=IgnoresActions, max_episode_steps=50)
register("Mine-v0", entry_point="qan_gym.env:QanEnv", kwargs={"env_id": "QanLR-MNIST5k-v0", "epochs": 2})
"""

# `python -P` adds no folder to the search path, as in the script `qan` that pip installs.
SCRIPT = """
import sys
from qan_agents.__main__ import main

def qan(*arguments):
    sys.argv = ["qan", *arguments]
    try:
        main()
    except SystemExit as end:
        return end.code

assert qan("list") == 0
assert "stable_baselines3" not in sys.modules, "listing imports every agent"
assert qan("check", "my_module:IgnoresActions-v0", "--seeds", "5") == 1
"""


def invoke(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, (result.output, result.exception)
    return result.output


@pytest.mark.slow
def test_the_current_folder_is_searched_for_modules(tmp_path: Path) -> None:
    """Also by the script `qan`; and `qan list` imports no agent."""
    (tmp_path / "my_module.py").write_text(MODULE)
    path = os.pathsep.join(folder for folder in sys.path if folder)
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not certified: the actions of my_module:IgnoresActions-v0 change nothing" in done.stdout


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that registers environments."""
    from gymnasium.envs.registration import registry

    before = dict(registry)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "another_module.py").write_text(MODULE)
    yield "another_module"
    sys.modules.pop("another_module", None)
    registry.clear()
    registry.update(before)


def test_the_task_of_an_id(module: str) -> None:
    """Of those of the package, and of those that a module registers."""
    for env_id in ENTRY_POINTS:
        assert task_of(env_id, {}) == TASKS[env_id]
    assert task_of(f"qan_gym:{LR}", {"epochs": 3}).epochs == 3
    assert import_module_of(f"{module}:Mine-v0") == "Mine-v0"
    assert task_of(f"{module}:Mine-v0", {}).epochs == 2
    assert task_of("Mine-v0", {"epochs": 4}).epochs == 4
    with pytest.raises(ValueError, match="CartPole-v1 is not an environment of qan-gym"):
        task_of("CartPole-v1", {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "no_such_module:Game-v0"], "no_such_module"),
        (["check", "no_such_module:Game-v0"], "no_such_module"),
        (["reference", "no_such_module:Game-v0"], "no_such_module"),
        (["reference", "CartPole-v1"], "not an environment of qan-gym"),
        (["list", "dqx"], "unknown agent 'dqx'; there are dqn, dqn-native"),
    ],
)
def test_wrong_input_is_explained_in_a_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    output = invoke(*arguments, status=2)
    assert message in output
    assert "Traceback" not in output
    assert not list(tmp_path.iterdir())


def test_list() -> None:
    """Every id with what its actions control; the agents, and the presets of one."""
    listing = invoke("list")
    assert all(env_id in listing for env_id in ENTRY_POINTS)
    for words in ("learning", "classes of", "dqn, dqn-native", "uniform", "best-constant"):
        assert words in listing
    assert invoke("list", "dqn-native").strip().startswith("presets of dqn-native: paper, quick, rainbow, control")
