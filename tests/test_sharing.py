"""Datasets in Minari's format, agents and controllers on a hub, trackers: without a network."""

import hashlib
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from qan_agents.cli.app import app
from qan_agents.controllers.controller import Controller
from qan_agents.controllers.shipped import shipped_paths
from qan_agents.experiments.run_folder import Run
from qan_agents.judging.scoreboard import Row, Rules, Scoreboard
from qan_agents.records import Interval

LR = "QanLR-MNIST5k-v1"
SHIPPED = shipped_paths()
GAME = ["--set", "epochs=1", "--set", "meta_momentum=None", "--set", "reference=None", "--set", "batch_size=20"]


def invoke(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, (result.output, result.exception)
    return result.output


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, small_data: str) -> Path:
    """A run of the bundled DQN: two episodes of four actions, evaluated."""
    folder = tmp_path_factory.mktemp("run") / "run"
    where = ["--set", f"dataset={small_data}", "--set", "batches_per_action=1"]
    invoke("train", LR, "--agent", "dqn-native", "--episodes", "2", "--out", folder, *GAME, *where)
    return folder


# --- datasets -------------------------------------------------------------------------------------------------------


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of Minari's datasets."""
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


def replayed(dataset: object, number: int) -> None:
    """Play the actions of an episode of a dataset in the environment that it recovers, and compare everything."""
    episode, env = dataset[number], dataset.recover_environment()
    seed = int(dataset.storage.get_episode_metadata([number]).__iter__().__next__()["seed"])
    observation, _ = env.reset(seed=seed)
    np.testing.assert_array_equal(episode.observations[0], observation)
    for step, action in enumerate(episode.actions):
        observation, reward, terminated, truncated, _ = env.step(action)
        np.testing.assert_array_equal(episode.observations[step + 1], observation)
        assert np.float32(reward) == np.float32(episode.rewards[step])
        assert (terminated, truncated) == (episode.terminations[step], episode.truncations[step])
    assert terminated or truncated
    env.close()


def test_a_dataset_of_a_fixed_policy(datasets: Path, small_data: str) -> None:
    """Its episodes are those of the environment that it recovers; the id is not taken twice."""
    import minari

    before = dict(os.environ)
    arguments = ["dataset", "linear", "--out", "qan/x/linear-v0", "--episodes", 2, "--set", f"dataset={small_data}"]
    output = invoke(*arguments, *GAME, "--set", "batches_per_action=1")
    assert os.environ == before
    assert str(datasets / "qan" / "x" / "linear-v0") in output
    dataset = minari.load_dataset("qan/x/linear-v0")
    assert (len(dataset), dataset.total_steps) == (2, 8)
    assert dataset.spec.env_spec.id == LR
    assert list(minari.list_local_datasets()) == ["qan/x/linear-v0"]
    for number in range(2):
        replayed(dataset, number)
    assert not list(datasets.glob(".aside-*"))
    assert "there is a dataset qan/x/linear-v0 already" in invoke(*arguments, status=2)


def test_datasets_of_a_run_and_of_a_controller(datasets: Path, run: Path) -> None:
    import minari

    invoke("dataset", run, "--out", "dqn-v0", "--episodes", 1)
    replayed(minari.load_dataset("dqn-v0"), 0)
    invoke("dataset", "sgd-0", "--out", "controller-v0", "--episodes", 1, "--set", "networks=['mlp']")
    dataset = minari.load_dataset("controller-v0")
    replayed(dataset, 0)
    episode, controller = dataset[0], Controller.load(SHIPPED["sgd"][0])
    act = controller.player(1)
    wanted = [act(observation[None])[0] for observation in episode.observations[:-1]]
    np.testing.assert_array_equal(episode.actions, wanted)


def test_a_dataset_that_is_not_finished_is_not_there(
    datasets: Path, small_data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import minari

    from qan_agents.sharing import dataset

    played: list[int] = []

    def interrupted(*arguments: object) -> object:
        played.append(1)
        if len(played) == 2:
            raise KeyboardInterrupt
        return play(*arguments)

    play = dataset.play_episode
    monkeypatch.setattr(dataset, "play_episode", interrupted)
    where = ["--set", f"dataset={small_data}", "--set", "batches_per_action=1"]
    invoke("dataset", "constant", "--out", "x-v0", "--episodes", 3, *where, *GAME, status=130)
    assert not list(minari.list_local_datasets())
    assert not list(datasets.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cosin", "--out", "x-v0"], "did you mean 'cosine'?"),
        (["cosine", "--out", "x"], "'x' is no id of a Minari dataset"),
        (["cosine", "--out", "../x-v0"], "is no id of a Minari dataset"),
        (["cosine", "--out", "x-v0", "--env", "CartPole-v1"], "is not an environment of qan-gym"),
        (["cosine", "--out", "x-v0", "--set", "epoch=1"], "did you mean 'epochs'?"),
        (["sgd-9", "--out", "x-v0"], "did you mean 'sgd-"),
        (["class-balanced", "--out", "x-v0"], f"class-balanced does not play {LR}"),
        (["linear", "--out", "x-v0", "--env", "QanMinibatch-MNIST5k-v1"], "--env names another environment"),
        (["none.safetensors", "--out", "x-v0"], "none.safetensors: there is no such file"),
        ([SHIPPED["sgd"][0], "--out", "x-v0", "--set", "schedule=cosine"], "schedule cannot be set"),
        ([SHIPPED["sgd"][0], "--out", "x-v0", "--env", LR], "plays the family of tasks QanLR-Family-v0"),
    ],
)
def test_wrong_datasets_are_refused(arguments: list[object], message: str, datasets: Path) -> None:
    output = invoke("dataset", *arguments, status=2)
    assert message in output
    assert not re.search(r"^[\w-]+ plays ", output, re.MULTILINE), "what is refused is not announced"
    assert not datasets.exists() or not list(datasets.iterdir())


# --- the hub --------------------------------------------------------------------------------------------------------


class FolderHub:
    """The part of `huggingface_hub.HfApi` that is used, with a folder for the hub."""

    root: Path

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> str:
        (self.root / repo_id).mkdir(parents=True, exist_ok=exist_ok)
        return f"hub/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)

    def list_repo_files(self, repo_id: str, *, revision: str | None) -> list[str]:
        return [path.name for path in (self.root / repo_id).iterdir()]

    def hf_hub_download(self, repo_id: str, filename: str, *, revision: str | None, cache_dir: str) -> str:
        return shutil.copy(self.root / repo_id / filename, cache_dir)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that stands for the hub."""
    pytest.importorskip("huggingface_hub")
    from qan_agents.sharing import hub

    monkeypatch.setattr(FolderHub, "root", tmp_path / "hub", raising=False)
    monkeypatch.setattr(hub, "HfApi", FolderHub)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def scoreboard(path: Path, digest: str) -> Path:
    rules = Rules(
        format=1, tasks_version=1, tier="family", networks=["mlp"], problems=7, seeds=2, tasks="x", rivals={"r": "d"}
    )
    row = Row(
        name="c",
        optimizer="sgd",
        files=[digest],
        log_test_loss=-1.25,
        test_accuracy=0.5,
        diverged=0.0,
        worst=0.1,
        parts={},
        differences={"single sgd constant": Interval(value=-0.125, low=-0.25, high=-0.0625)},
    )
    path.write_text(Scoreboard(rules=rules, rows=[row]).model_dump_json())
    return path


def test_a_controller_there_and_back(hub: Path, tmp_path: Path) -> None:
    """The same bytes; the card has its provenance, and the judgement where that is of this very file."""
    path = SHIPPED["adamw"][0]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    judged = scoreboard(tmp_path / "board.json", digest)
    assert "pushed: hub/me/lr" in invoke("push", path, "me/lr", "--judgement", judged)
    card = (hub / "me" / "lr" / "README.md").read_text()
    trainings = str(Controller.load(path).provenance["trainings"])
    for part in ("library_name: qan-gym", trainings, "adamw", digest, "-0.125 (-0.250 to -0.062)", "7 problems"):
        assert part in card, part
    output = invoke("pull", "me/lr")
    assert Path("lr", "controller.safetensors").read_bytes() == path.read_bytes()
    assert [one.name for one in Path("lr").iterdir()] == ["controller.safetensors"]
    assert "qan judge lr/controller.safetensors" in output
    assert "lr is there already" in invoke("pull", "me/lr", status=2)
    invoke("push", "adamw-0", "me/lr", "--dry-run", "by_name")
    assert Path("by_name", "controller.safetensors").read_bytes() == path.read_bytes()
    assert "did you mean 'adamw-" in invoke("push", "adamw-9", "me/lr", status=2)
    other = scoreboard(tmp_path / "other.json", "0" * 64)
    assert "has no row of this controller" in invoke("push", path, "me/lr", "--judgement", other, status=2)


def test_an_agent_there_and_back(hub: Path, run: Path) -> None:
    """What is pulled plays as what was pushed; the card has the evaluation."""
    invoke("push", run, "me/dqn")
    card = (hub / "me" / "dqn" / "README.md").read_text()
    assert "| dqn-native |" in card
    assert "hyperparameter gamma" in card
    assert "play it on unseen seeds" in invoke("pull", "me/dqn", "--out", "theirs")
    names = {path.name for path in Path("theirs").iterdir()}
    assert names == {"config.json", "manifest.json", "model.000002.safetensors"}
    invoke("evaluate", "theirs")
    assert Run(Path("theirs")).table("evaluation.csv") == Run(run).table("evaluation.csv")
    assert "is not in it" in invoke("train", "--resume", "theirs", status=2)  # it is not a run to go on with


def test_a_card_without_pushing(hub: Path) -> None:
    output = invoke("push", SHIPPED["sgd"][0], "me/lr", "--dry-run", "there")
    assert "written: there/README.md" in output
    assert not hub.exists()
    assert "It was not judged" in Path("there", "README.md").read_text()


def test_what_could_run_code_is_not_shared(hub: Path, run: Path) -> None:
    """Neither pushed nor pulled: the zip of Stable-Baselines3, pickles."""
    from qan_agents.agents.dqn_native import NativeDQN

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NativeDQN, "model_suffix", ".zip")
        assert "holds pickles" in invoke("push", run, "me/dqn", status=2)
    assert not hub.exists()
    (hub / "them" / "sb3").mkdir(parents=True)
    for name in ("model.zip", "evil.pkl", "config.json"):
        (hub / "them" / "sb3" / name).write_bytes(b"x")
    said = invoke("pull", "them/sb3", status=2)
    assert "model.zip" in said
    assert "could run code" in said
    assert not Path("sb3").exists()


@pytest.mark.parametrize("kind", ["changed", "no_controller", "other_agent"])
def test_what_is_damaged_is_refused_and_nothing_is_left(kind: str, hub: Path, run: Path, tmp_path: Path) -> None:
    if kind == "other_agent":
        invoke("push", run, "me/x")
        path = hub / "me" / "x" / "config.json"
        path.write_text(path.read_text().replace("dqn-native", "dqn"))
    else:
        invoke("push", SHIPPED["sgd"][0], "me/x")
        path = hub / "me" / "x" / "controller.safetensors"
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if kind == "changed" else b"{}")
    before = set(tmp_path.iterdir())
    invoke("pull", "me/x", status=2)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["x", "a/b/c", "../x", "a b/c", ""])
def test_names_of_repositories(name: str, hub: Path) -> None:
    assert "write OWNER/NAME" in invoke("pull", name, status=2)
    assert "write OWNER/NAME" in invoke("push", SHIPPED["sgd"][0], name, status=2)


def test_a_hub_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that says so, and no folder."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    from qan_agents.sharing import hub

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "HfApi", lambda: huggingface_hub.HfApi(endpoint="http://127.0.0.1:9", token="x"))
    assert "me/x: the hub cannot be used" in invoke("pull", "me/x", status=2)
    assert not list(tmp_path.iterdir())


# --- trackers -------------------------------------------------------------------------------------------------------


def small_run(folder: Path, small_data: str, *more: str, status: int = 0) -> str:
    where = ["--set", f"dataset={small_data}", "--set", "batches_per_action=1"]
    return invoke(
        "train", LR, "--agent", "ppo", "--episodes", "2", "--out", folder, *GAME, *where, *more, status=status
    )


def test_mlflow(tmp_path: Path, small_data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every value that TensorBoard has, with its step; a run that goes on is the same run."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'store'}")
    folder = tmp_path / "run"
    small_run(folder, small_data, "--track", "mlflow")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("qan-gym").experiment_id
    (tracked,) = client.search_runs([experiment])
    assert (tracked.info.run_name, tracked.info.status) == ("run", "FINISHED")
    assert tracked.data.params["agent"] == "ppo"
    history = client.get_metric_history(tracked.info.run_id, "episode/return")
    assert [metric.value for metric in history] == [float(row["return"]) for row in Run(folder).table("episodes.csv")]
    invoke("train", "--resume", folder, "--track", "mlflow")
    assert len(client.search_runs([experiment])) == 1


@pytest.mark.slow
def test_wandb(tmp_path: Path, small_data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline; the run folder stays a run of plain files."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    small_run(tmp_path / "run", small_data, "--track", "wandb")
    (written,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"episode/return" in written.read_bytes()
    assert Run(tmp_path / "run").evaluated


def test_trackers_that_cannot_be_used(tmp_path: Path, small_data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before a run is begun."""
    said = small_run(tmp_path / "run", small_data, "--track", "wandbb", status=2)
    assert "unknown tracker 'wandbb': did you mean 'wandb'?" in said
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert "mlflow is missing: python -m pip install" in small_run(
        tmp_path / "run", small_data, "--track", "mlflow", status=2
    )
    monkeypatch.setitem(sys.modules, "wandb", None)
    said = small_run(tmp_path / "run", small_data, "--track", "wandb", "--track", "mlflow", status=2)
    assert "wandb, mlflow are missing: python -m pip install" in said
    assert "[wandb,mlflow]" in said  # one command for both
    assert not (tmp_path / "run").exists()
