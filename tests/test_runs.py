"""A training run on disk: its files, and that neither Ctrl-C nor a kill loses or tears any of them."""

import base64
import gzip
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from helpers import recorded, small_data, start_qan
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from qan_agents.agents import agent_class
from qan_agents.cli import train as cli_train
from qan_agents.cli.app import app
from qan_agents.cli.common import parse_settings
from qan_agents.experiments import evaluation
from qan_agents.experiments.run_folder import Run, RunConfig, new_folder, read_rows
from qan_agents.experiments.train import load_agent, start_run, train
from qan_gym.tasks import TASKS

# 20 actions of one mini-batch an episode; no reference, so that nothing is trained before.
SETTINGS = (f"dataset={small_data()}", "epochs=1", "batches_per_action=1", "meta_momentum=null", "reference=null")
SHORT = [argument for setting in SETTINGS for argument in ("--set", setting)]
EPISODES = 4
MODEL = "model.000004.zip"  # of the agent "dqn", at the end
PRESETS = {"dqn": "quick", "dqn-native": "rainbow", "dqn-ensemble": "control"}  # the bundled agent with every switch on
HYPERPARAMETERS = {"dqn-ensemble": {"members": 3, "gradient_steps": 1}}  # that make it quicker


def finish(process: subprocess.Popen, status: int = 0) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == status, output
    return output


def invoke(*arguments: object, status: int = 0) -> str:
    """The output of a command, run in this process."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, (result.output, result.exception)
    return result.output


def slow_unless_quickest(name: str):
    """An agent as a parameter of tests."""
    return pytest.param(name, marks=() if name == "dqn-native" else pytest.mark.slow)


@pytest.fixture(params=[slow_unless_quickest(name) for name in PRESETS])
def agent(request) -> str:
    """The name of each of them."""
    return request.param


def only(name: str):
    """For a test that needs one of the agents only, because what it tests is the same for both."""
    return pytest.mark.parametrize("agent", [slow_unless_quickest(name)], indirect=True)


def chosen(agent: str) -> list[str]:
    """The arguments that choose an agent, which plays one training at a time."""
    changed = [f"--agent-set={name}={value}" for name, value in HYPERPARAMETERS.get(agent, {}).items()]
    return ["--agent", agent, "--preset", PRESETS[agent], "--episodes", str(EPISODES), "--num-envs", "1", *changed]


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory) -> Callable[[str], Path]:
    """A run of each agent that nothing disturbed, made when it is asked for."""

    @cache
    def make(agent: str) -> Path:
        folder = tmp_path_factory.mktemp("runs") / agent
        output = invoke("train", *SHORT, *chosen(agent), "--out", folder)
        assert agent in output
        assert "constant" in output
        assert "cosine" in output
        return folder

    return make


@pytest.fixture
def whole(whole_runs, agent) -> Path:
    """The run of the agent."""
    return whole_runs(agent)


def learning(folder: Path) -> list[dict[str, str]]:
    """The rows of the episodes without the clock."""
    rows = read_rows(folder / "episodes.csv")
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def same_run(one: Path, other: Path) -> None:
    """Both have learned the same and played the same."""
    assert learning(one) == learning(other)
    assert read_rows(one / "steps.csv.gz") == read_rows(other / "steps.csv.gz")


def test_the_folder_holds_everything(whole, agent):
    for name in ("accuracy.png", "actions.png", "episode.png"):
        assert (whole / name).read_bytes().startswith(b"\x89PNG")
    settings = json.loads((whole / "config.json").read_text())
    assert settings["run"]["env"] == "QanLR-MNIST5k-v1"
    assert settings["task"]["batches_per_action"] == 1
    assert len(settings["dataset_fingerprint"]) == 64
    libraries = {"stable-baselines3"} if agent == "dqn" else set()
    assert settings["versions"].keys() == {"python", "torch", "gymnasium", "qan-gym", "numpy"} | libraries
    assert settings["hyperparameters"]["gamma"] in (0.99, 0.995, 1.0)
    played = {"schedule": "one-cycle", "action_scale": "multiplicative", "reward": "validation-loss"}
    for name, value in played.items():  # that the ensemble asks for, where the user has not
        assert (settings["task"][name] == value) == (agent == "dqn-ensemble")
        assert (settings["run"]["env_kwargs"].get(name) == value) == (agent == "dqn-ensemble")
    assert len(learning(whole)) == EPISODES
    for row in learning(whole):
        assert sum(int(row[f"action_{action}"]) for action in range(3)) == int(row["steps"]) == 20
        assert 0 < float(row["mean_td_error"]) < 10
        assert 0 < float(row["epsilon"]) <= 1
    steps = read_rows(whole / "steps.csv.gz")
    assert [(int(row["episode"]), int(row["step"])) for row in steps] == [(e, s) for e in range(4) for s in range(20)]
    least = 0 if agent == "dqn-ensemble" else 0.005  # the schedule goes to 0
    assert all(float(row["loss"]) > 0 and least <= float(row["learning_rate"]) <= 1 for row in steps)
    policies = [agent, *(["one-cycle"] if agent == "dqn-ensemble" else []), "constant", "linear", "cosine"]
    assert [row["policy"] for row in read_rows(whole / "evaluation.csv")] == [
        one for one in policies for _ in range(10)
    ]
    assert list((whole / "tensorboard").iterdir())
    curves = EventAccumulator(str(whole / "tensorboard"), size_guidance={"histograms": 0}).Reload()
    for name in ("mean_max_q", "mean_td_error", "epsilon", "return"):
        shown = [event.value for event in curves.Scalars(f"episode/{name}")]
        assert shown == pytest.approx([float(row[name]) for row in learning(whole)], rel=1e-5)
    assert [event.histogram_value.num for event in curves.Histograms("episode/actions")] == [20] * EPISODES
    assert not list(whole.rglob(".*")), "nothing written aside is left"


# Both signals for both agents; one of them in the ordinary run, where the others are played in process.
SIGNALS = [
    ("dqn", signal.SIGKILL),
    *(
        pytest.param(agent, how, marks=pytest.mark.slow)
        for agent, how in (
            *(("dqn-native", signal.SIGINT), ("dqn", signal.SIGINT), ("dqn-native", signal.SIGKILL)),
            ("dqn-ensemble", signal.SIGKILL),
        )
    ),
]


@pytest.mark.parametrize(("agent", "how"), SIGNALS, indirect=["agent"])
def test_a_stopped_process_goes_on_as_if_it_had_not_been(whole, agent, tmp_path, how):
    """And the same seed gives the same run, in another process; the bundled agent without Stable-Baselines3."""
    folder = tmp_path / "run"
    start = start_qan if agent == "dqn" else start_without_sb3
    process = start("train", *SHORT, *chosen(agent), "--out", folder)
    before = wait_for_episodes(folder, 2, process)
    process.send_signal(how)  # in the middle of the third episode, or while the second is being written
    output = finish(process, status=-9 if how == signal.SIGKILL else 130)
    assert how == signal.SIGKILL or "interrupted; go on with: qan train --resume" in output
    for row in before:
        assert row in read_rows(folder / "episodes.csv"), "what was written is lost"
    gzip.decompress((folder / "steps.csv.gz").read_bytes())
    train(Run(folder), lambda _: None, lambda *_: None)
    same_run(folder, whole)


WITHOUT_SB3 = """
import sys
sys.modules["stable_baselines3"] = None
import qan_agents.experiments.run_page, qan_agents.experiments.watch
from qan_agents.__main__ import main
main()
"""


def start_without_sb3(*arguments: object) -> subprocess.Popen:
    """The command line in a process in which Stable-Baselines3 cannot be imported."""
    return subprocess.Popen(
        [sys.executable, "-c", WITHOUT_SB3, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def stop_in_episode(number: int, name: str, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    """Let an agent raise an error in the middle of the round that begins with an episode, counted from 0."""
    kind = agent_class(name)
    play_round, played = kind.play_round, []

    def stop(progress: object) -> None:
        raise error

    def play(self, seeds, exploration, show):
        played.extend(seeds)
        return play_round(self, seeds, exploration, stop if len(played) > number else show)

    monkeypatch.setattr(kind, "play_round", play)


def test_an_interrupted_command_goes_on_as_if_it_had_not_been(whole, agent, tmp_path, monkeypatch):
    """Ctrl-C in the third episode; the resumed command evaluates and draws as the other did."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patched:
        stop_in_episode(2, agent, patched, KeyboardInterrupt)
        output = invoke("train", *SHORT, *chosen(agent), "--out", folder, status=130)
    assert "interrupted; go on with: qan train --resume" in output
    assert learning(folder) == learning(whole)[:2]
    output = invoke("train", "--resume", folder)
    assert "constant" in output
    same_run(folder, whole)
    assert (folder / "steps.csv.gz").read_bytes() == (whole / "steps.csv.gz").read_bytes()
    assert (folder / "evaluation.csv").read_bytes() == (whole / "evaluation.csv").read_bytes()
    assert (folder / "episode.png").exists()


def test_a_finished_run_is_shown_and_not_played_again(whole, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    before = (folder / "evaluation.csv").stat().st_mtime_ns
    (folder / "episode.png").unlink()
    output = invoke("train", "--resume", folder)
    assert f"qan evaluate {folder} plays them again" in output.replace("\n", "")
    assert "constant" in output
    assert "playing unseen seeds" not in output
    assert (folder / "evaluation.csv").stat().st_mtime_ns == before
    assert (folder / "episode.png").exists()


@only("dqn-native")
def test_a_killed_evaluation_goes_on_with_the_policy_that_was_playing(whole, tmp_path, monkeypatch):
    """What was played is not played again, and the tables are the same bytes; a damaged file of it is played again."""
    folder, run = tmp_path / "run", Run(tmp_path / "run")
    shutil.copytree(whole, folder)
    tables = [(folder / name).read_bytes() for name in ("evaluation.csv", "evaluation.csv.gz")]
    monkeypatch.setattr(cli_train, "SILENCE", 0)
    play_seeds, played = evaluation.play_seeds, []

    def play(env_id, player, *others):
        played.append(player)
        if len(played) == 3:
            raise KeyboardInterrupt
        return play_seeds(env_id, player, *others)

    monkeypatch.setattr(evaluation, "play_seeds", play)
    with pytest.raises(KeyboardInterrupt):
        evaluation.evaluate(run, lambda *_: None)
    assert run.evaluated  # what was there counts until the new tables are whole
    kept = {name: record for name, record in run.manifest().evaluation.items() if name.startswith("unseen.")}
    run.manifest().model_copy(update={"evaluation": kept}).write(folder)
    (folder / run.unseen_name(1)).write_bytes(b"damaged")
    output = invoke("train", "--resume", folder)
    assert "playing unseen seeds: dqn-native" not in output
    assert output.count("playing unseen seeds: constant") > 1  # where a policy takes long
    assert len(played) == 3 + 3  # all but the agent
    assert [(folder / name).read_bytes() for name in ("evaluation.csv", "evaluation.csv.gz")] == tables
    assert not [*folder.glob("unseen.*")]


def test_an_evaluation_of_an_earlier_agent_does_not_count(agent, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patched:
        stop_in_episode(2, agent, patched, KeyboardInterrupt)
        invoke("train", *SHORT, *chosen(agent), "--out", folder, status=130)
    unfinished = f"caution: 2 of {EPISODES} trainings played: qan train --resume {folder} plays the rest\n"
    assert invoke("evaluate", folder).endswith(unfinished)
    assert invoke("plot", folder).endswith(unfinished)
    assert Run(folder).evaluated
    output = invoke("train", "--resume", folder)
    assert "playing unseen seeds" in output
    assert "plays the rest" not in output
    assert "plays the rest" not in invoke("plot", folder)


def test_a_meta_training_is_no_run(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "state.safetensors").write_bytes(b"")
    for command in (["evaluate"], ["plot"], ["train", "--resume"]):
        assert "is a meta-training, not a run" in " ".join(invoke(*command, tmp_path, status=2).split())


def test_several_at_once_play_the_same_episodes_and_resume(whole, agent, tmp_path, monkeypatch):
    """Two at once: a run stopped in its second round ends like one that was not; the seeds are as usual."""
    settings = parse_settings(list(SETTINGS))
    settings |= agent_class(agent).env_defaults(TASKS["QanLR-MNIST5k-v1"], 20, settings)
    hyperparameters = HYPERPARAMETERS.get(agent, {})
    config = RunConfig(
        "QanLR-MNIST5k-v1", settings, agent, PRESETS[agent], EPISODES, 0, num_envs=2, agent_kwargs=hyperparameters
    )
    runs = [start_run(tmp_path / name, config) for name in ("undisturbed", "stopped")]
    train(runs[0], lambda _: None, lambda *_: None)
    with monkeypatch.context() as patched:
        stop_in_episode(2, agent, patched, RuntimeError)
        with pytest.raises(RuntimeError):
            train(runs[1], lambda _: None, lambda *_: None)
    assert len(learning(runs[1].folder)) == 2
    train(runs[1], lambda _: None, lambda *_: None)
    assert len(learning(runs[0].folder)) == EPISODES
    same_run(runs[1].folder, runs[0].folder)
    first_losses = [
        [float(row["loss"]) for row in read_rows(folder / "steps.csv.gz") if row["step"] == "0"]
        for folder in (runs[0].folder, whole)
    ]
    assert first_losses[0] == pytest.approx(first_losses[1], rel=1e-5)


def wait_for_episodes(folder: Path, count: int, process: subprocess.Popen) -> list[dict[str, str]]:
    """The rows of the first episodes, once they are there."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        path = folder / "episodes.csv"
        rows = read_rows(path) if path.exists() else []
        if len(rows) >= count:
            return rows
        time.sleep(0.005)
    raise AssertionError("the run wrote no episodes")


@only("dqn")
def test_loading_a_run_executes_nothing_in_it(whole, tmp_path):
    """model.zip comes with pickled objects, which a file from somebody else could abuse: they are not touched.

    That of the bundled agent, model.safetensors, cannot hold any.
    """
    folder = tmp_path / "handed"
    shutil.copytree(whole, folder)
    bait = tmp_path / "executed"
    code = base64.b64encode(pickle.dumps(_Bait(str(bait)))).decode()
    handed = io.BytesIO()
    with zipfile.ZipFile(Run(whole).model_file) as source, zipfile.ZipFile(handed, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "data":
                data = json.loads(content)
                for value in data.values():
                    if isinstance(value, dict) and ":serialized:" in value:
                        value[":serialized:"] = code
                content = json.dumps(data).encode()
            target.writestr(name, content)
    recorded(folder, MODEL, handed.getvalue())
    load_agent(Run(folder)).close()
    assert not bait.exists()
    assert pickle.loads(base64.b64decode(code)) is not None
    assert bait.exists(), "the bait itself works"


@only("dqn")
@pytest.mark.parametrize("member", ["policy.pth", "policy.optimizer.pth", "data"])
def test_a_hostile_model_is_refused_in_one_line(whole, tmp_path, member):
    """Pickles in the place of weights: they are not executed, and the message names the file."""
    folder = tmp_path / "handed"
    shutil.copytree(whole, folder)
    bait = tmp_path / "executed"
    handed = io.BytesIO()
    with zipfile.ZipFile(Run(whole).model_file) as source, zipfile.ZipFile(handed, "w") as target:
        for name in source.namelist():
            target.writestr(name, pickle.dumps(_Bait(str(bait))) if name == member else source.read(name))
    recorded(folder, MODEL, handed.getvalue())
    output = invoke("evaluate", folder, status=2)
    assert MODEL in output
    assert len(output.strip().splitlines()) == 1
    assert not bait.exists()


class _Bait:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.open, (self.path, os.O_CREAT)


@only("dqn-native")
def test_the_file_of_the_bundled_agent_is_no_archive_of_pickles(whole):
    assert (whole / "model.000004.safetensors").exists()
    assert not list(whole.glob("*.zip"))


# --- the command line -------------------------------------------------------------------------------------------------


def test_evaluate_and_plot_draw_again(whole):
    before = (whole / "evaluation.csv").read_bytes()
    (whole / "evaluation.csv").unlink()
    (whole / "episode.png").unlink()
    assert "test loss" in invoke("evaluate", whole)
    assert (whole / "evaluation.csv").read_bytes() == before
    (whole / "episode.png").unlink()
    invoke("plot", whole)
    assert (whole / "episode.png").stat().st_size > 10_000


@only("dqn-native")
@pytest.mark.parametrize(("reference", "rows"), [("null", 10), pytest.param("previous", 1, marks=pytest.mark.slow)])
def test_evaluation_is_in_lock_step(whole, tmp_path, monkeypatch, reference, rows):
    """But where an episode leaves its weights to the next; either way as episodes that are played one by one."""
    folder = tmp_path / "run"
    if reference == "null":
        shutil.copytree(whole, folder)
    else:
        changed = [*SHORT[:-4], "--set", "meta_momentum=0.001", "--set", f"reference={reference}"]
        invoke("train", *changed, *chosen("dqn-native"), "--episodes", "1", "--out", folder)
    before = read_rows(folder / "evaluation.csv")
    sizes, make_vec = [], gym.make_vec
    monkeypatch.setattr(
        gym, "make_vec", lambda *args, **made: sizes.append(made["num_envs"]) or make_vec(*args, **made)
    )
    evaluation.evaluate(Run(folder), lambda *_: None)
    assert max(sizes) == rows
    monkeypatch.setattr(evaluation, "ROWS", 1)
    evaluation.evaluate(Run(folder), lambda *_: None)
    assert read_rows(folder / "evaluation.csv") == before


@only("dqn-native")
def test_a_run_as_a_page(whole):
    """Everything in one file: table, pictures, settings, and what other actions would have done."""
    invoke("plot", whole, "--html")
    page = (whole / "run.html").read_text()
    sources = re.findall(r'<img[^>]*src="([^"]*)"', page)
    assert len(sources) == 6
    assert all(source.startswith("data:image/png;base64,") and len(source) > 10_000 for source in sources)
    assert not re.search(r'(href|src)="(?!data:)', page)
    for row in read_rows(whole / "evaluation.csv"):
        assert f"<td>{row['policy']}" in page
    mean = np.mean(
        [float(row["test_loss"]) for row in read_rows(whole / "evaluation.csv") if row["policy"] == "cosine"]
    )
    assert f"{mean:.4f} (" in page
    assert "On 10 unseen seeds dqn-native is " in page
    for setting in ("batches_per_action", "dataset_fingerprint", "learning_starts"):
        assert setting in page
    regret = float(re.search(r"validation loss\), is ([\d.]+) in the mean", page)[1])
    assert 0 <= regret < 5


@only("dqn")
def test_a_page_needs_an_evaluation(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation*"))
    assert "qan evaluate" in invoke("plot", tmp_path / "run", "--html", status=2)


@only("dqn")
def test_an_episode_is_filmed(whole, tmp_path):
    """The one that the evaluation played, with the first moment and every action."""
    from imageio_ffmpeg import count_frames_and_secs

    output = invoke("watch", whole, "--video", tmp_path / "film.mp4")
    agent = read_rows(whole / "evaluation.csv")[0]
    assert agent["seed"] == "0"
    assert f"test loss {float(agent['test_loss']):.4f}" in output
    assert count_frames_and_secs(str(tmp_path / "film.mp4"))[0] == 1 + 20
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]


@pytest.mark.slow
@only("dqn-native")
def test_an_episode_is_shown_in_a_window(whole, monkeypatch):
    """With the agent's values in the last frame."""
    import window_backend

    from qan_gym.env import QanEnv

    monkeypatch.setattr(window_backend, "drawn", [])
    monkeypatch.setitem(QanEnv.metadata, "render_fps", 1e9)
    invoke("watch", whole, "--seed", "5")
    assert len(window_backend.drawn) == 1 + 20
    before, *_, end = (frame[540:610, 80:350, :3] for frame in window_backend.drawn)  # where the bars are
    assert (before == 255).all(), "there are no values before the first action"
    assert (end != 255).sum() > 1_000


@only("dqn")
def test_what_cannot_be_watched(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ".mp4" in invoke("watch", whole, "--video", "film.gif", status=2)
    assert "seed" in invoke("watch", whole, "--video", "film.mp4", "--seed", "-1", status=2)
    monkeypatch.setattr("matplotlib.get_backend", lambda: "agg")
    without = invoke("watch", whole, status=2)
    assert "needs a display" in without
    assert "--video" in without
    assert "render_mode" not in without
    assert not list(tmp_path.iterdir())


def test_list_and_data():
    listing = invoke("list")
    assert "QanMinibatch-MNIST5k-v1" in listing
    assert "one-cycle" in listing
    assert "mnist5k" in invoke("data")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "QanLR-MNIST6k-v0"], "QanLR-MNIST6k"),
        (["train", "--preset", "fast"], "fast"),
        (["train", "--agent", "trpo"], "trpo"),
        (["train", "--agent", "dqn", "--preset", "rainbow"], "dqn-native"),
        (["train", "--agent-set", "members=1"], "members"),
        (["train", "--agent-set", "caution=-1"], "caution"),
        (["train", "--set", "learning_rate_factors=[0.5, 2]", "--set", "continuous=true"], "learning_rate_factors"),
        (["train", "--agent-set", "dueling"], "NAME=VALUE"),
        (["train", "--agent-set", "duelling=true"], "duelling"),
        (["train", "--agent", "dqn-native", "--agent-set", "gamma=2"], "gamma"),
        (["train", "--agent", "dqn-native", "--set", "continuous=true"], "Discrete"),
        (["train", "--episodes", "0"], "episodes"),
        (["train", "--episodes", "4", "--num-envs", "3"], "divide"),
        (["train", "--seed", "-1"], "seed"),
        (["train", "--set", "epoch=1"], "epoch"),
        (["train", "--set", "epochs"], "NAME=VALUE"),
        (["train", "--resume", "nowhere"], "config.json"),
        (["evaluate", "nowhere"], "config.json"),
        (["plot", "nowhere"], "config.json"),
        (["plot", "nowhere", "--html"], "config.json"),
        (["watch", "nowhere"], "config.json"),
        (["reference", "QanLR-MNIST6k-v0"], "QanLR-MNIST6k"),
    ],
)
def test_wrong_input_is_explained_in_a_line_and_nothing_is_written(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = invoke(*arguments, status=2)
    assert message in output
    assert "Traceback" not in output
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_taken_is_left_alone(tmp_path):
    (tmp_path / "precious").write_text("mine")
    assert "give a new folder with --out" in invoke("train", *SHORT, "--out", tmp_path, status=2)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize("name", ["config.json", "model", "episodes.csv", "steps.csv.gz"])
def test_damaged_files_are_named(whole, tmp_path, name):
    folder = tmp_path / "damaged"
    name = Run(whole).model_file.name if name == "model" else name
    shutil.copytree(whole, folder)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2] if name != "episodes.csv" else b"\xff\xfe\xfd")
    command = "evaluate" if name.startswith("model") else "plot"
    assert name in invoke(command, folder, status=2).replace("\n", "")


@only("dqn-native")
@pytest.mark.parametrize("name", ["episodes.csv", "steps.csv.gz"])
def test_what_cannot_be_drawn_is_not_played(whole, tmp_path, name):
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    output = invoke("evaluate", tmp_path / "run", status=2)
    assert name in output
    assert "playing unseen seeds" not in output


def test_a_run_without_an_episode_says_so(tmp_path):
    config = RunConfig("QanLR-MNIST5k-v1", parse_settings(list(SETTINGS)), "dqn", "quick", 1, 0)
    start_run(tmp_path / "run", config)
    for command in ("evaluate", "plot", "watch"):
        assert "--resume" in invoke(command, tmp_path / "run", status=2)


def test_settings_are_json_or_text():
    assert parse_settings(["epochs=2", "reward=accuracy", "continuous=true", "reference=null", "target_loss=0.5"]) == {
        "epochs": 2,
        "reward": "accuracy",
        "continuous": True,
        "reference": None,
        "target_loss": 0.5,
    }


def test_a_new_folder_is_nobody_elses(tmp_path):
    """Made in one step, so that of two processes each has its own."""
    names = [new_folder(tmp_path / "runs" / "a").name for _ in range(3)]
    assert names == ["a", "a-2", "a-3"]
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: new_folder(tmp_path / "runs" / "b"), range(40)))
    assert len(set(folders)) == 40
