"""Run folders that were damaged, changed by hand, killed or handed on by others."""

import errno
import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import recorded, small_data
from typer.testing import CliRunner

from qan_agents.agents import agent_class
from qan_agents.cli.app import app
from qan_agents.experiments.evaluation import evaluate, scores_by_policy
from qan_agents.experiments.manifest import Manifest
from qan_agents.experiments.plots import plot_run
from qan_agents.experiments.run_folder import Run, RunConfig, read_rows
from qan_agents.experiments.train import load_agent, make_agent, start_run, train
from qan_gym.utils.files import ASIDE

LR = "QanLR-MNIST5k-v1"
SHORT = {"dataset": small_data(), "epochs": 1, "batches_per_action": 1, "meta_momentum": None, "reference": None}
CARRYING = {**SHORT, "reference": "previous", "meta_momentum": 0.5}
EPISODES, DONE = 4, 3  # of the run, and before it was interrupted


def ignore(*_: object) -> None:
    """Shows nothing."""


def config_of(agent: str = "dqn-native", **changes: Any) -> RunConfig:
    return RunConfig(**{"env": LR, "env_kwargs": SHORT, "agent": agent, "preset": "quick", "seed": 0} | changes)


def train_until(run: Run, episode: int) -> None:
    """Train a run, and interrupt it after so many episodes."""

    def stop(number: int, _episode: object) -> None:
        if number + 1 == episode:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, ignore, stop)


def invoke(*arguments: object, status: int = 2) -> str:
    """The output of a command; a wrong input is explained in one line."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, (result.output, result.exception)
    errors = [line for line in result.output.splitlines() if line.startswith("qan:")]
    assert len(errors) == (status == 2), result.output
    return errors[0] if errors else result.output


def played(folder: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """What a run has learned and played, without the clock."""
    rows = read_rows(folder / "episodes.csv")
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows], read_rows(folder / "steps.csv.gz")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    run = start_run(tmp_path_factory.mktemp("runs") / "whole", config_of(episodes=EPISODES))
    train(run, ignore, ignore)
    return run.folder


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, interrupted after three of its four episodes."""
    run = start_run(tmp_path_factory.mktemp("runs") / "begun", config_of(episodes=EPISODES))
    train_until(run, DONE)
    return run.folder


@pytest.fixture
def folder(begun: Path, tmp_path: Path) -> Path:
    """A copy of the interrupted run."""
    return Path(shutil.copytree(begun, tmp_path / "run"))


# --- what an episode leaves behind ------------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", [pytest.param("dqn", marks=pytest.mark.slow), "dqn-native"])
@pytest.mark.parametrize("num_envs", [1, 2])
def test_a_resumed_run_goes_on_from_the_last_episodes_weights(agent, num_envs, tmp_path):
    """With reference="previous" an episode is pulled towards the final weights of the last one."""
    config = config_of(agent, env_kwargs=CARRYING, episodes=3 * num_envs, num_envs=num_envs)
    runs = [start_run(tmp_path / name, config) for name in ("whole", "stopped")]
    train(runs[0], ignore, ignore)
    train_until(runs[1], 2 * num_envs)
    train(runs[1], ignore, ignore)
    assert played(runs[1].folder) == played(runs[0].folder)


def test_no_score_depends_on_who_played_before(tmp_path):
    """Every policy plays in an environment of its own."""
    alone, after = (
        config_of(env_kwargs=CARRYING, episodes=1, evaluation_seeds=(0,), baselines=baselines)
        for baselines in (["constant"], ["cosine", "constant"])
    )
    scores = []
    for name, config in (("alone", alone), ("after", after)):
        run = start_run(tmp_path / name, config)
        train(run, ignore, ignore)
        evaluate(run, ignore)
        scores.append({one.policy: one.test_loss for one in scores_by_policy(run)})
    assert scores[0]["constant"] == scores[1]["constant"]
    assert scores[0]["dqn-native"] == scores[1]["dqn-native"]


def test_the_exploration_of_sb3_goes_on(tmp_path):
    """The first action after resuming is explored as it would have been."""
    config = config_of("dqn", episodes=2, agent_kwargs={"exploration_final": 1.0, "learning_starts": 0})
    agent, restored = make_agent(config), make_agent(config)
    agent.play_round([5], None, ignore)
    agent.save(tmp_path / "model.zip")
    restored.load(tmp_path / "model.zip")
    assert restored.metrics() == agent.metrics() == {"epsilon": 1.0}
    first = [{one.play_round([seed], None, ignore)[0].actions[0] for one in (agent, restored)} for seed in range(4)]
    assert all(len(actions) == 1 for actions in first), "all explored, with the same generator"


# --- the manifest -----------------------------------------------------------------------------------------------------


def test_the_manifest_lists_what_was_written_in_order(begun):
    manifest = Manifest.read(begun)
    assert [one.episodes for one in manifest.rounds] == [1, 2, 3]
    assert [one.steps for one in manifest.rounds] == [20, 40, 60]
    assert list(manifest.rounds[1].files) == [
        *("steps.csv.gz", "episodes.csv", "replay/000001.safetensors"),
        *("carried.000002.safetensors", "model.000002.safetensors"),
    ]
    for name, record in manifest.last.files.items():
        assert (begun / name).stat().st_size == record.size
    models = [path.name for path in sorted(begun.glob("model.*"))]
    assert models == ["model.000002.safetensors", "model.000003.safetensors"]


def flip_digit(path: Path) -> None:
    """Change a digit of the last row."""
    content = bytearray(path.read_bytes())
    place = max(place for place, char in enumerate(content) if chr(char).isdigit())
    content[place] ^= 1
    path.write_bytes(content)


def flip_in_table(path: Path) -> None:
    """Change a digit of a compressed table, which is a whole file afterwards."""
    text = bytearray(gzip.decompress(path.read_bytes()))
    text[-2] ^= 1
    path.write_bytes(gzip.compress(bytes(text)))


def halve(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_with(name: str) -> Callable[[Path], None]:
    def copy(path: Path) -> None:
        shutil.copy(path.parent / name, path)

    return copy


DAMAGES = {
    "a digit of an episode": ("episodes.csv", flip_digit, 2),
    "half the episodes": ("episodes.csv", halve, 0),
    "no episodes": ("episodes.csv", empty, 0),
    "episodes missing": ("episodes.csv", Path.unlink, 0),
    "a digit of a step": ("steps.csv.gz", flip_in_table, 0),
    "no steps": ("steps.csv.gz", empty, 0),
    "steps missing": ("steps.csv.gz", Path.unlink, 0),
    "the agent missing": ("model.000003.safetensors", Path.unlink, 2),
    "half the agent": ("model.000003.safetensors", halve, 2),
    "an earlier agent": ("model.000003.safetensors", replace_with("model.000002.safetensors"), 2),
    "what is carried missing": ("carried.000003.safetensors", Path.unlink, 2),
    "another episode's replay": ("replay/000002.safetensors", replace_with("000000.safetensors"), 2),
    "the first replay missing": ("replay/000000.safetensors", Path.unlink, 0),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_with_what_can_be_done(damage, folder):
    """And nothing is changed before the user has said so."""
    name, change, kept = DAMAGES[damage]
    change(folder / name)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="--drop-damaged") as caught:
        train(Run(folder), ignore, ignore)
    assert str(folder / name) in str(caught.value)
    assert f"{kept} of its 3 finished episodes are whole" in str(caught.value)
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {path: content for path, content in after.items() if path.name != "run.lock"} == {
        path: content for path, content in before.items() if path.name != "run.lock"
    }


@pytest.mark.parametrize("damage", ["a digit of an episode", "the agent missing", "the first replay missing"])
def test_a_damaged_run_goes_back_to_its_last_whole_episode(damage, folder, whole):
    """And ends like one that nothing has damaged."""
    name, change, _ = DAMAGES[damage]
    change(folder / name)
    train(Run(folder), ignore, ignore, drop_damaged=True)
    assert played(folder) == played(whole)
    assert Manifest.read(folder).last == Run(folder).progress()
    assert Run(folder).progress().episodes == EPISODES


def test_the_command_names_the_damage_and_drops_it(folder, whole):
    halve(folder / "model.000003.safetensors")
    output = invoke("train", "--resume", folder)
    assert "model.000003.safetensors" in output
    assert f"qan train --resume {folder} --drop-damaged" in output
    invoke("train", "--resume", folder, "--drop-damaged", status=0)
    assert played(folder) == played(whole)


EDITS = {
    "episodes": 0,
    "seed": 1,
    "num_envs": 2,
    "agent": "dqn",
    "preset": "paper",
    "agent_kwargs": {"learning_rate": 1.0},
    "evaluation_seeds": [7],
}


@pytest.mark.parametrize("command", [["train", "--resume"], ["evaluate"], ["plot"], ["watch"]])
@pytest.mark.parametrize("edit", [*EDITS, "versions", "dataset_fingerprint", "spaces"])
def test_an_edited_configuration_is_refused(edit, command, folder):
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    if edit in EDITS:
        settings["run"][edit] = EDITS[edit]
    elif edit == "versions":
        settings["versions"]["torch"] = "1.0"
    else:
        settings["dataset_fingerprint"] = "0" * 64
    path.write_text(json.dumps(settings, indent=4 if edit == "spaces" else 2) + "\n")
    output = invoke(*command, folder)
    assert str(path) in output
    assert "put it back as it was" in output


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"sha256": "", "manifest": {}}', "null", '{"sha256"'])
def test_a_damaged_manifest_is_named(content, folder):
    (folder / "manifest.json").write_text(content)
    for command in (["train", "--resume"], ["evaluate"], ["plot"]):
        assert "manifest.json" in invoke(*command, folder)


def test_a_changed_number_in_the_manifest_is_refused(folder):
    path = folder / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"steps": 60', '"steps": 61'))
    assert path.read_text() != text
    assert "checksum" in invoke("train", "--resume", folder)


def test_a_run_without_a_manifest_is_of_another_version(folder):
    (folder / "manifest.json").unlink()
    assert "another version" in invoke("train", "--resume", folder)
    assert len(read_rows(folder / "episodes.csv")) == DONE, "nothing is removed"


def test_a_configuration_of_another_version_is_refused(folder):
    """Recorded, but with other keys, or values of another type."""
    settings = json.loads((folder / "config.json").read_text())
    others: list[Any] = [{}, [], {**settings, "task": 1}, {**settings, "episode_length": "20"}]
    others += [{**settings, "run": settings["run"] | change} for change in ({"episodes": "4"}, {"episods": 4})]
    for other in others:
        recorded(folder, "config.json", json.dumps(other).encode())
        for command in (["train", "--resume"], ["plot"]):
            assert "config.json" in invoke(*command, folder)


def test_data_that_have_changed_are_not_trained_on(tmp_path):
    """The fingerprint is that of the run's beginning."""
    data = tmp_path / "data.npz"
    shutil.copy(small_data(), data)
    run = start_run(tmp_path / "run", config_of(env_kwargs={**SHORT, "dataset": str(data)}, episodes=2))
    train_until(run, 1)
    arrays = dict(np.load(data))
    arrays["x_train"][0, 0, 0] ^= 1
    np.savez(data, **arrays)
    with pytest.raises(ValueError, match="dataset_fingerprint"):
        train(run, ignore, ignore)


def test_damaged_tables_are_not_drawn(folder):
    for name, change in (("episodes.csv", flip_digit), ("steps.csv.gz", flip_in_table)):
        before = (folder / name).read_bytes()
        change(folder / name)
        assert name in invoke("plot", folder)
        (folder / name).write_bytes(before)
    plot_run(Run(folder))


def test_a_damaged_evaluation_is_not_shown(folder):
    evaluate(Run(folder), ignore)
    flip_digit(folder / "evaluation.csv")
    for command in (["plot"], ["plot", "--html"]):
        output = invoke(*command, folder)
        assert "evaluation.csv" in output
        assert f"qan evaluate {folder}" in output
    evaluate(Run(folder), ignore)
    plot_run(Run(folder))


# --- kills ------------------------------------------------------------------------------------------------------------


def test_what_a_kill_left_of_a_later_round_is_dropped(folder, whole):
    """Tables with more rows than count, files that the manifest does not list, and some half-written."""
    run = Run(folder)
    run.append("episodes.csv", read_rows(folder / "episodes.csv")[-1:])
    run.append("steps.csv.gz", read_rows(folder / "steps.csv.gz")[-20:])
    for name in ("model.000004.safetensors", "carried.000004.safetensors", "replay/000003.safetensors"):
        (folder / name).write_bytes(b"half")
    for name in (f"{ASIDE}0-x.csv", f"replay/{ASIDE}1-x.safetensors"):
        (folder / name).write_bytes(b"half")
    train(run, ignore, ignore)
    assert played(folder) == played(whole)
    assert not list(folder.rglob(".*"))


def test_a_folder_that_a_kill_left_without_settings_is_free(tmp_path):
    """It holds no more than the lock, half a file and an empty manifest."""
    whole, folder = start_run(tmp_path / "whole", config_of(episodes=1)).folder, tmp_path / "killed"
    folder.mkdir()
    shutil.copy(whole / "manifest.json", folder)
    (folder / "run.lock").touch()
    (folder / f"{ASIDE}0-x.json").write_bytes(b"half")
    assert "config.json" in invoke("train", "--resume", folder)
    start_run(folder, config_of(episodes=1))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "manifest.json", "run.lock"]


def test_a_folder_with_somebody_elses_manifest_is_taken(tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "an app"}')
    with pytest.raises(ValueError, match="is there already"):
        start_run(tmp_path, config_of(episodes=1))
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


HOLD = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_one_process_at_a_time(folder, whole):
    """While another process has the lock nothing is played or written; a kill gives it back."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder / "run.lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline()
    for command in (["train", "--resume"], ["evaluate"]):
        assert "in use" in invoke(*command, folder)
    assert Run(folder).progress().episodes == DONE
    plot_run(Run(folder))
    holder.kill()
    holder.communicate()
    train(Run(folder), ignore, ignore)
    assert played(folder) == played(whole)


def test_a_full_disk_is_one_line_and_nothing_is_lost(folder, whole, monkeypatch):
    """At each of the writes of a round."""
    fsync, left = os.fsync, []

    def full(handle: int) -> None:
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device")
        left.pop()
        fsync(handle)

    for writes in range(6):
        left[:] = [True] * writes
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            assert "No space left on device" in invoke("train", "--resume", folder)
        assert Run(folder).progress().episodes == DONE
    train(Run(folder), ignore, ignore)
    assert played(folder) == played(whole)


def test_a_folder_that_cannot_be_written_is_refused_before_work(folder, monkeypatch):
    def play(*_args: object) -> None:
        raise AssertionError("it was played")

    monkeypatch.setattr(agent_class("dqn-native"), "play_round", play)
    monkeypatch.setattr("qan_agents.experiments.evaluation.play_rows", play)
    monkeypatch.setattr(os, "access", lambda _path, mode: not mode & os.W_OK)
    for command in (["train", "--resume"], ["evaluate"], ["plot"], ["train", "--out"]):
        assert "cannot be written to" in invoke(*command, folder)


def test_a_file_that_may_not_be_read_is_named(folder, monkeypatch):
    read = Path.open

    def refuse(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name == "config.json":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    for command in (["train", "--resume"], ["evaluate"], ["plot"], ["watch"]):
        output = invoke(*command, folder)
        assert "config.json" in output
        assert "Permission denied" in output


# --- folders from somebody else ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tensorboard", "replay", "episodes.csv", "manifest.json", "config.json", "mine"])
@pytest.mark.parametrize("command", [["train", "--resume"], ["evaluate"], ["plot"]])
def test_links_are_refused(command, name, folder, tmp_path):
    """What they point to is not written to."""
    target, path = tmp_path / "elsewhere", folder / name
    if path.exists():
        path.rename(target)
    else:
        target.mkdir()
    path.symlink_to(target)
    before = sorted(target.rglob("*"))
    output = invoke(*command, folder)
    assert f"{path} is a symbolic link" in output
    assert sorted(target.rglob("*")) == before


def test_a_pipe_in_a_run_is_refused(folder):
    os.mkfifo(folder / "tensorboard" / "pipe")
    assert "neither a file nor a folder" in invoke("train", "--resume", folder)


@pytest.mark.parametrize("command", [["train", "--resume"], ["evaluate"], ["plot"], ["watch"], ["plot", "--html"]])
def test_a_run_imports_no_module(command, folder, tmp_path, monkeypatch):
    """Unless the user says so."""
    (tmp_path / "evilmod.py").write_text("import pathlib\npathlib.Path('executed').touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    settings["run"]["env"] = f"evilmod:{LR}"
    recorded(folder, "config.json", json.dumps(settings).encode())
    assert "--import evilmod" in invoke(*command, folder)
    assert not (tmp_path / "executed").exists()
    try:
        if command == ["plot"]:
            invoke(*command, folder, "--import", "evilmod", status=0)
            assert (tmp_path / "executed").exists()
    finally:
        sys.modules.pop("evilmod", None)


def test_a_module_that_is_not_there_is_named(folder):
    assert "no_such_module" in invoke("evaluate", folder, "--import", "no_such_module")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"agent": "../agents"}, "../agents"),
        ({"agent": "no-such"}, "no-such"),
        ({"preset": "no-such"}, "no-such"),
        ({"agent_kwargs": {"no_such": 1}}, "no_such"),
        ({"env": "NoSuch-v0"}, "NoSuch"),
        ({"env": "CartPole-v1", "env_kwargs": {}}, "CartPole"),
        ({"env_kwargs": {**SHORT, "network": "no-such"}}, "no-such"),
        ({"env_kwargs": {**SHORT, "no_such": 1}}, "no_such"),
        ({"baselines": ["no-such"]}, "no-such"),
    ],
)
def test_a_run_names_only_what_is_registered(change, said, folder):
    settings = json.loads((folder / "config.json").read_text())
    settings["run"] |= change
    recorded(folder, "config.json", json.dumps(settings).encode())
    assert said in invoke("evaluate", folder)


def test_a_trained_agent_is_verified_before_it_is_loaded(folder):
    (folder / "model.000003.safetensors").write_bytes((folder / "model.000002.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"model\.000003"):
        load_agent(Run(folder))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"episodes": 0}, "episodes"),
        ({"episodes": 3, "num_envs": 2}, "num_envs"),
        ({"episodes": 1, "seed": -1}, "seed"),
        ({"episodes": 1, "test_exploration": 1.5}, "test_exploration"),
        ({"episodes": 1, "evaluation_seeds": ()}, "evaluation_seeds"),
        ({"episodes": 1, "evaluation_seeds": (2**31,)}, "evaluation_seeds"),
        ({"episodes": 1, "baselines": ()}, "baselines"),
    ],
)
def test_settings_out_of_range(changes, said):
    with pytest.raises(ValueError, match=said):
        config_of(**changes)
