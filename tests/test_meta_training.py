"""Meta-training: what is learned from, the same bits after a kill, the files, and the command."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from typer.testing import CliRunner

from qan_agents.cli.app import app
from qan_agents.controllers.controller import Controller
from qan_agents.controllers.learners import LEARNERS
from qan_agents.controllers.meta_config import MetaConfig
from qan_agents.controllers.meta_training import (
    EVALUATIONS,
    STATE,
    MetaRun,
    MetaTraining,
    evaluation_tasks,
    rounds_within,
)
from qan_agents.controllers.pictures import learning_rates
from qan_agents.controllers.shipped import shipped_controller
from qan_gym.families.task import DECISIONS

SMALL = {"networks": ["mlp"], "optimizers": ["sgd"]}


@pytest.fixture(autouse=True)
def few_evaluations(monkeypatch):
    """Of two tasks each, for speed."""
    monkeypatch.setattr("qan_agents.controllers.meta_training.EVALUATION_TASKS", 2)


def small_config(**settings) -> MetaConfig:
    return MetaConfig(**{"rounds": 3, "rows": 3, "env_kwargs": SMALL, **settings})


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_a_round_is_a_training_in_every_row():
    """The return is that of the environment's episodes, the end of the budget is an end, new tasks come after it."""
    training = MetaTraining(small_config(rows=5, seed=1))  # none of whose trainings diverges
    agent, env = training.learner.agent, training.env
    rounds = []
    update = agent.update

    def seen() -> None:
        steps = agent.rollout.steps
        rounds.append((steps.rewards.clone(), steps.terminated.clone(), steps.valid.clone(), list(env.training.tasks)))
        losses, classes = env.training.run.validation_loss.clone(), env.training.run.n_classes.clone()
        expected = -torch.log(losses / classes.log())
        assert torch.allclose(steps.rewards.sum(dim=0), expected.float(), atol=1e-5)
        update()

    agent.update = seen
    rows = [training.round() for _ in range(2)]
    for (rewards, terminated, valid, _), row in zip(rounds, rows, strict=True):
        assert rewards.shape == (DECISIONS, 5)
        assert valid.all()
        assert terminated[:-1].sum() == 0
        assert terminated[-1].all()
        assert row["return"] == pytest.approx(float(rewards.sum(dim=0).mean()), abs=1e-6)
    assert not set(rounds[0][3]) & set(rounds[1][3])
    assert all(task.split == "train" for *_, tasks in rounds for task in tasks)
    assert agent.rounds == training.done == 2


def test_rows_of_a_group_are_compared_with_each_other():
    """They have one task and one seed; at each step their advantages sum to 0."""
    training = MetaTraining(small_config(rows=8, group=4))
    agent, seen, started = training.learner.agent, [], []
    learned_from, begin = agent._batch, agent.begin
    agent._batch = lambda: (seen.append(learned_from()), seen[-1])[1]
    source = training.env.training
    agent.begin = lambda *given: (begin(*given), started.append((list(source.tasks), source.run.seed.tolist())))
    for _ in range(2):
        training.round()
    for tasks, seeds in started:
        assert tasks[0] == tasks[1] == tasks[2] == tasks[3] != tasks[4]
        assert len(set(seeds[:4])) == len(set(seeds[4:])) == 1
    assert len(started) == len(seen) == 2
    for batch, *_ in seen:
        sums = batch.advantages.view(-1, 2, 4).sum(dim=2)
        assert torch.allclose(sums, torch.zeros_like(sums), atol=1e-4)
        assert (batch.advantages.abs() > 1e-3).any()


def test_a_row_that_diverges_is_learned_from_up_to_there():
    """What it plays while it waits for the others is not."""
    training = MetaTraining(small_config(env_kwargs={**SMALL, "learning_rate_factor": 1e9}, rows=8))
    seen = []
    agent = training.learner.agent
    update = agent.update
    agent.update = lambda: (seen.append(agent.rollout.steps), update())
    with torch.no_grad():
        agent.network.policy.head.bias.fill_(5)
    training.round()
    (steps,) = seen
    ends = steps.ended.int().cumsum(dim=0)
    early = steps.ended[:-1].any(dim=0)
    assert early.any()
    assert (steps.valid == ((ends == 0) | (steps.ended & (ends == 1)))).all()


@pytest.mark.parametrize("agent", LEARNERS)
def test_the_same_seed_gives_the_same_files(agent, tmp_path):
    """In one go and in parts; another seed gives others."""
    whole, parts, other = (MetaRun(tmp_path / name) for name in ("whole", "parts", "other"))
    for run, seed in ((whole, 1), (parts, 1), (other, 2)):
        run.create(small_config(agent=agent, seed=seed))

    def stop(done: int, row: object) -> None:
        raise KeyboardInterrupt

    whole.train()
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            parts.train(stop)
        assert not parts.controller.exists()
    parts.train()
    other.train()
    assert files(whole.folder) == files(parts.folder)
    assert whole.controller.read_bytes() != other.controller.read_bytes()
    parts.train()  # of a run that is over
    assert files(whole.folder) == files(parts.folder)


@pytest.mark.slow
def test_what_is_recorded(tmp_path):
    """A row of progress.csv for every round, an evaluation after some of them, and where the controller comes from."""
    run = MetaRun(tmp_path / "run")
    run.create(small_config(rounds=EVALUATIONS + 2, rows=1, agent_kwargs={"minibatches": 1}))
    shown = []
    controller = run.train(lambda done, row: shown.append((done, row)))
    with (run.folder / "progress.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["round"]) for row in rows] == [done for done, _ in shown] == list(range(1, EVALUATIONS + 3))
    assert sum(row["log_loss"] != "" for row in rows) == EVALUATIONS
    assert rows[-1]["log_loss"] != ""
    assert run.rows() == [row for _, row in shown]
    loaded = Controller.load(run.controller)
    assert loaded.provenance == controller.provenance
    assert loaded.provenance["trainings"] == EVALUATIONS + 2
    assert MetaConfig(**loaded.provenance["config"]) == run.config()
    assert loaded.settings.optimizers == ("sgd",)


def test_evaluations_are_on_other_tasks():
    """Of the training split too: the other split is for judging."""
    tasks = evaluation_tasks(small_config())
    assert {task.split for task in tasks} == {"train"}
    assert {task.kind for task in tasks} == {"mlp"}
    assert {task.optimizer for task in tasks} == {"sgd"}


@pytest.mark.slow
def test_minutes_become_rounds():
    """At least one, and more of them in more time."""
    config = small_config()
    assert rounds_within(config, 0.01) == 1
    assert rounds_within(config, 1e6) > 100


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": 0}, "rounds must be an integer of at least 1"),
        ({"rows": 2.5}, "rows must be an integer"),
        ({"family": "QanLR-MNIST5k-v1"}, "family must be one of QanLR-Family-v0"),
        ({"agent": "dqn"}, "agent must be one of ppo, dqn-native"),
        ({"group": 2}, "group must divide the number of environments, 3"),
        ({"agent": "dqn-native", "group": 3}, "group must be 1"),
        ({"agent_kwargs": {"group": 3}}, "group must be 1, that of the meta-training"),
        ({"agent": "dqn-native", "agent_kwargs": {"dueling": True}}, "a plain network: leave out dueling"),
        ({"agent": "dqn-native", "agent_kwargs": {"clip": 1}}, "unknown hyperparameter 'clip'"),
        ({"env_kwargs": {"split": "test"}}, "split must be train: the tasks of the other split are for judging"),
        ({"agent_kwargs": {"gama": 1}}, "unknown hyperparameter 'gama'"),
        ({"agent_kwargs": {"gamma": 2}}, r"gamma must be a number in \[0, 1"),
        ({"agent_kwargs": {"steps_per_round": 50}}, "steps_per_round must be 25"),
        ({"rows": 3, "agent_kwargs": {"minibatches": 4, "recurrent": 8}}, "minibatches must be at most"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    """Each names what is wrong."""
    with pytest.raises(ValueError, match=message):
        small_config(**settings)


def test_the_labels_of_the_pictures_are_of_one_size():
    """Those of the minor ticks, too, which an axis of less than a decade has."""
    controller = shipped_controller("sgd")
    figure = learning_rates(controller, MetaConfig(env_kwargs=SMALL))  # its own settings need MNIST
    figure.canvas.draw()
    assert {label.get_size() for axes in figure.axes for label in axes.yaxis.get_ticklabels(which="both")} == {7}


def test_wrong_folders_are_refused(tmp_path):
    """One that is taken, in use, empty, damaged, or of other settings."""
    run = MetaRun(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        run.config()
    with pytest.raises(ValueError, match="colour"):
        run.create(small_config(env_kwargs={"colour": "red"}))
    assert not run.folder.exists()
    run.create(small_config(rounds=1))
    with pytest.raises(ValueError, match="is there already"):
        run.create(small_config())
    with FileLock(run.folder / ".lock"), pytest.raises(ValueError, match="in use by another process"):
        run.train()
    run.train()
    config = json.loads((run.folder / "config.json").read_text())
    (run.folder / "config.json").write_text(json.dumps({**config, "rounds": 2}))
    with pytest.raises(ValueError, match="other settings"):
        run.train()
    (run.folder / STATE).write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"state\.safetensors"):
        run.train()


# --- the command ----------------------------------------------------------------------------------------------------


def qan(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_the_command_makes_a_controller_and_goes_on(tmp_path):
    """With its pictures."""
    folder = tmp_path / "run"
    options = (
        "--rounds",
        2,
        "--rows",
        2,
        "--group",
        2,
        "--set",
        'optimizers=["adamw"]',
        "--agent-set",
        "minibatches=2",
    )
    status, output = qan("meta-train", "--out", folder, *options)
    assert status == 0, output
    assert {"controller.safetensors", "curves.png", "learning_rates.png", "progress.csv"} <= files(folder).keys()
    assert Controller.load(folder / "controller.safetensors").settings.optimizers == ("adamw",)
    assert MetaRun(folder).config().env_kwargs == {"networks": ["mlp"], "optimizers": ["adamw"]}
    before = files(folder)
    status, output = qan("meta-train", "--resume", folder)
    assert status == 0, output
    assert {name: content for name, content in files(folder).items() if name.endswith("s")} == {
        name: content for name, content in before.items() if name.endswith("s")
    }


def test_a_meta_training_starts_from_another(tmp_path):
    """With its networks, and actions as noisy as its own settings say; on from a kill, and told in the provenance."""
    first, second, again = (MetaRun(tmp_path / name) for name in ("first", "second", "again"))
    first.create(small_config(rounds=2))
    with pytest.raises(ValueError, match="first: its meta-training is not finished"):
        second.create(small_config(), first)
    begun = first.train()
    other = small_config(rounds=1, env_kwargs={**SMALL, "batches": 100}, agent_kwargs={"initial_log_std": -2.0})
    for run in (second, again):
        run.create(other, first)
    training = MetaTraining(second.config())
    training.restore(second.folder / STATE)
    assert training.done == 0
    assert training.learner.metrics()["deviation"] == pytest.approx(np.exp(-2.0))
    for name, values in training.controller().weights.items():
        assert np.array_equal(values, begun.weights[name]), name
    second.train()
    training.round()
    training.save(again.folder / STATE)
    again.train()
    if training.env.training.parts.engine == "native":  # PyTorch's last bits depend on where its memory lies
        assert files(second.folder) == files(again.folder)
    made = Controller.load(second.controller)
    assert any((made.weights[name] != begun.weights[name]).any() for name in begun.weights)
    assert made.provenance["config"]["start"] == begun.provenance
    assert begun.provenance["config"]["start"] == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"agent_kwargs": {"hidden": [8]}}, "of other sizes"),
        ({"agent_kwargs": {"hidden": [32, 32, 1]}}, "of other sizes"),
        ({"env_kwargs": {**SMALL, "context": "observed"}}, "sees or does something else"),
        ({"agent": "dqn-native"}, "agent must be ppo"),
    ],
)
def test_what_cannot_start_from_another_is_refused(settings, message, tmp_path):
    first, second = MetaRun(tmp_path / "first"), MetaRun(tmp_path / "second")
    first.create(small_config(rounds=1))
    first.train()
    with pytest.raises(ValueError, match=message):
        second.create(small_config(**settings), first)
    assert not second.folder.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--start", "nowhere", "--rounds", 1), "nowhere"),
        (("--minutes", 1, "--rounds", 1), "give --minutes or --rounds, not both"),
        (("--resume", "nowhere"), "nowhere"),
        (("--resume", "x", "--seed", 1), "--seed"),
        (("--family", "QanLR-MNIST5k-v1", "--rounds", 1), "family must be"),
        (("--agent", "dqn", "--rounds", 1), "agent must be"),
        (("--rows", 6, "--rounds", 1), "group must divide the number of environments, 6; 4 does not"),
        (("--set", "split=test", "--rounds", 1), "split must be train"),
        (("--set", "networks=['rnn']", "--rounds", 1, "--out", "OUT"), "networks must be some of"),
        (("--agent-set", "hidden=none", "--rounds", 1), "hidden"),
        (("--minutes", 0), "0.1"),
    ],
)
def test_wrong_input_is_one_line(arguments, message, tmp_path, monkeypatch):
    """With exit status 2, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    status, output = qan("meta-train", *arguments)
    assert status == 2
    assert message in output
    assert "Traceback" not in output
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX only")
def test_kills_change_no_bit(tmp_path):
    """SIGKILL at ten instants."""
    code = (
        "import sys; from pathlib import Path\n"
        "from qan_agents.controllers import meta_training\n"
        "meta_training.EVALUATION_TASKS = 2\n"
        "meta_training.MetaRun(Path(sys.argv[1])).train()\n"
    )
    config = small_config(rounds=20, rows=2, agent_kwargs={"minibatches": 2})
    whole, killed = MetaRun(tmp_path / "whole"), MetaRun(tmp_path / "killed")
    for run in (whole, killed):
        run.create(config)
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", code, str(whole.folder)], check=True)
    duration, rng, kills = time.monotonic() - started, np.random.default_rng(0), 0
    while kills < 10:
        process = subprocess.Popen([sys.executable, "-c", code, str(killed.folder)])
        try:
            process.wait(rng.uniform(0.05, 1) * duration)
            break  # it has come to its end between two kills
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
    subprocess.run([sys.executable, "-c", code, str(killed.folder)], check=True)
    assert kills > 0
    assert files(whole.folder) == files(killed.folder)
