"""The environments whose episodes draw their tasks, as Gymnasium and agents see them."""

import copy
import json
import pickle
from dataclasses import asdict, replace
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from test_rendering import content_of, require_legible
from test_vector_env import check_vector_env
from typer.testing import CliRunner

from qan_agents.cli.app import app
from qan_agents.sb3 import vec_env
from qan_gym.core.factory import arguments_of
from qan_gym.core.statistics import STATISTICS
from qan_gym.families import CONTEXT, Task, draw_task
from qan_gym.families.learning_rate import LearningRateSource

ID = "QanLR-Family-v0"
CONTEXT_FEATURES = LearningRateSource.context_features()
SMALL = Task(network="mlp-5", batches_per_action=1, batch_size=8, train_size=40, classes=(1, 7))
FEW = {"networks": ("mlp",), "num_tasks": 20}


def same(one, other) -> bool:
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(one[:4], other[:4], strict=True))


@pytest.mark.filterwarnings("ignore:.*display.*")
@pytest.mark.parametrize(
    "arguments",
    [
        {"task": SMALL},
        {"task": SMALL, "context": "observed", "validate_every": 2},
        {"task": SMALL, "continuous": False, "learning_rate_factors": [0.1, 0.5, 1.0, 2.0, 10.0]},
    ],
)
def test_gymnasium_accepts_it(arguments):
    check_env(gym.make(ID, **arguments).unwrapped)


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=str)
def test_gymnasium_accepts_the_vector_environment(mode):
    task = replace(SMALL, batches_per_action=Task().batches_per_action)
    check_vector_env(gym.make_vec(ID, num_envs=3, autoreset_mode=mode, task=task, validate_every=500))


def test_rows_play_different_tasks_as_single_environments_do():
    """Two episodes, the second one drawn by the automatic reset."""
    rows = gym.make_vec(ID, num_envs=4, **FEW)
    singles = [gym.make(ID, **FEW) for _ in range(4)]
    observation, infos = rows.reset(seed=3)
    begun = [env.reset(seed=3 + row) for row, env in enumerate(singles)]
    assert len({env.unwrapped.task for env in singles}) > 1
    for row, (own, info) in enumerate(begun):
        assert np.array_equal(observation[row], own)
        assert info["task"] == {name: pytest.approx(infos["task"][name][row]) for name in CONTEXT}
    space = np.random.default_rng(0)
    for number in range(30):
        actions = space.uniform(-0.2, 0.2, (4, 1)).astype(np.float32)
        result = rows.step(actions)
        for row, env in enumerate(singles):
            if number == 25:
                assert np.array_equal(env.reset()[0], result[0][row])
            else:
                own = env.step(actions[row])
                assert np.array_equal(own[0], result[0][row])
                assert own[1:4] == tuple(values[row] for values in result[1:4])


def test_the_observation_and_its_context():
    hidden, observed = gym.make(ID, task=SMALL), gym.make(ID, task=SMALL, context="observed")
    assert hidden.observation_space.shape == (len(STATISTICS),)
    assert observed.observation_space.shape == (len(STATISTICS) + len(CONTEXT),)
    observation, info = observed.reset(seed=0)
    expected = [SMALL.context()[name] for name in CONTEXT]
    np.testing.assert_allclose(observation[len(STATISTICS) :], expected, rtol=1e-6)
    np.testing.assert_allclose(list(info["task"].values()), expected, rtol=1e-6)
    assert np.array_equal(hidden.reset(seed=0)[0], observation[: len(STATISTICS)])
    alone = gym.make(ID, task=SMALL, observation=[CONTEXT_FEATURES[0], "budget_share"])
    assert alone.reset(seed=0)[0].tolist() == [pytest.approx(expected[0]), -1.0]


def test_the_parameters_of_a_task_are_observed_only_where_there_is_one():
    """Elsewhere they are refused before anything is played."""
    for make in (gym.make, partial(gym.make_vec, num_envs=2)):
        with pytest.raises(ValueError, match=f"the feature '{CONTEXT_FEATURES[0]}' reads 'context', which this"):
            make("QanLR-MNIST5k-v1", observation=["log_loss", CONTEXT_FEATURES[0]])


@pytest.mark.parametrize("record", [SMALL, asdict(SMALL), SMALL.to_json(), json.loads(SMALL.to_json())], ids=str)
def test_a_task_is_given_in_any_form(record):
    env = gym.make(ID, task=record)
    env.reset(seed=1)
    assert env.unwrapped.task == SMALL
    assert env.unwrapped.weights().keys() == {"layer1.weight", "layer1.bias", "layer2.weight", "layer2.bias"}
    assert env.unwrapped.split("train")[0].shape == (40, 1, 7, 7)
    env.step(np.zeros(1, np.float32))
    indices = env.unwrapped.batch_indices
    assert indices.shape == (1, 8)
    assert len(set(indices.ravel().tolist())) == 8


def test_a_record_may_be_longer_than_any_drawn_task():
    env = gym.make(ID, task=replace(SMALL, batches_per_action=401))
    env.reset(seed=1)
    for _ in range(25):
        *_, truncated, info = env.step(np.zeros(1, np.float32))
    assert truncated
    assert info["batch"] == 25 * 401
    many = gym.make_vec(ID, num_envs=2, **FEW).unwrapped.training
    with pytest.raises(ValueError, match="401 mini-batches, more than the family's 160"):
        many.reset(np.ones(2, np.bool_), np.arange(2), tasks=[SMALL, replace(SMALL, batches_per_action=401)])


def test_longer_tasks_are_played_on_request():
    """Their rows are what each is alone, and the tasks of the family are unchanged beside them."""
    arguments = {"networks": {"mlp": 3, "mnist-cnn": 1}, "batches": [4_000, 6_000], "train_size": 300}
    rows = gym.make_vec(ID, num_envs=6, **arguments).unwrapped
    observation, _ = rows.reset(seed=1)
    assert {task.kind for task in rows.training.tasks} == {"mlp", "mnist-cnn"}
    assert all(160 <= task.batches_per_action <= 240 for task in rows.training.tasks)
    assert max(task.batches_per_action for task in rows.training.tasks) > 160
    found = rows.step(np.ones((6, 1), np.float32))
    row = next(row for row, task in enumerate(rows.training.tasks) if task.kind == "mlp")
    single = gym.make(ID, **arguments)
    assert np.array_equal(single.reset(seed=1 + row)[0], observation[row])
    assert np.array_equal(single.step(np.ones(1, np.float32))[0], found[0][row])


def test_levels_are_those_of_the_split():
    env = gym.make(ID, split="test", num_tasks=3, start_task=50, networks=["mlp"], optimizers=["sgd"])
    found = set()
    for seed in range(30):
        env.reset(seed=seed)
        task = env.unwrapped.task
        assert task == draw_task("test", task.number, ["mlp"], ["sgd"])
        found.add(task.number)
    assert found == {50, 51, 52}


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
@pytest.mark.parametrize("make", [gym.make, lambda *args, **kwargs: gym.make_vec(*args, num_envs=3, **kwargs)])
def test_copies_go_on_to_the_same_bits(make, duplicate):
    env = make(ID, **FEW)
    env.reset(seed=4)
    acted = np.full(env.action_space.shape, 0.1, np.float32)
    for _ in range(3):
        env.step(acted)
    copied = duplicate(env.unwrapped)
    for _ in range(22):
        assert same(env.unwrapped.step(acted), copied.step(acted))


def test_a_state_is_of_its_task(tmp_path):
    env = gym.make(ID, **FEW).unwrapped
    env.reset(seed=9)
    env.step(np.zeros(1, np.float32))
    env.get_state().save(tmp_path / "state.safetensors")
    other = gym.make(ID, **FEW).unwrapped
    state = type(env.get_state()).load(tmp_path / "state.safetensors")
    other.set_state(state)
    assert other.task == env.task
    assert same(env.step(np.ones(1, np.float32)), other.step(np.ones(1, np.float32)))
    for tasks, message in (([], "task"), ([None], "no task"), ([{}], "has no"), ("x", "tasks must be a list")):
        wrong = type(state)(state.arrays, {**state.metadata, "tasks": tasks})
        with pytest.raises(ValueError, match=message):
            other.set_state(wrong)
    fixed = gym.make("QanLR-MNIST5k-v1").unwrapped
    with pytest.raises(ValueError, match="another config"):
        fixed.set_state(state)


def test_normalised_perceptrons_are_played_where_they_are_asked_for():
    env = gym.make(ID, networks="mlp-norm", num_tasks=30)
    for seed in range(3):
        env.reset(seed=seed)
        task = env.unwrapped.task
        assert task == draw_task("train", task.number, "mlp-norm")
        assert task.network.endswith("-norm")
        truncated, steps = False, 0
        while not truncated:
            *_, terminated, truncated, info = env.step(np.array([1.0 if steps < 3 else 0.0], np.float32))
            assert not terminated
            steps += 1
        assert info["test_loss"] < np.log(len(task.classes))
    assert "mlp-norm" not in gym.make(ID).unwrapped.source.networks


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"momentum": 0.5}, "momentum: every task of the family has its own"),
        ({"optimizer": "adamw"}, "optimizer: every task"),
        ({"network": "mlp-3"}, "network: every task"),
        ({"epochs": 3}, "epochs: no setting of a family"),
        ({"learning_rate": 0.5, "augment": "zero"}, "learning_rate, augment: no setting"),
        ({"networks": []}, "networks must be some of mlp, mlp-norm, cnn"),
        ({"task": SMALL, "split": "test"}, "leave out split"),
        ({"task": 5}, "a task must be"),
        ({"split": "validation"}, "split"),
        ({"num_tasks": 0}, "num_tasks"),
        ({"context": "seen"}, "context"),
        ({"observation": "screen"}, "screen"),
        ({"networks": "rnn"}, "networks"),
        ({"networks": {"mlp": 0}}, "networks must be some of .*, or a dict of the shares"),
        ({"networks": {"mlp": 1, "rnn": 1}}, "networks"),
        ({"batches": 24}, r"batches must be .*\[25, "),
        ({"batches": [4_000, 100]}, "batches"),
        ({"train_size": [127, 400]}, "train_size"),
        ({"train_size": [200, 4_001]}, "train_size must be at most 4,000 with these images"),
        ({"task": SMALL, "batches": 100}, "leave out batches"),
        ({"device": "meta"}, "device must be cpu"),
        ({"engine": "fast"}, "engine"),
        ({"no_such": 1}, "no_such"),
        ({"learning_rate_factors": [1, 2]}, "continuous=False"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    for make in (gym.make, gym.make_vec):
        with pytest.raises(ValueError, match=message):
            make(ID, **arguments)


def test_pictures(tmp_path):
    """Frames of drawn tasks, with the baseline run; the title names the task, the axis ends with its budget."""
    env = gym.make(ID, render_mode="rgb_array", baseline_run=True, **FEW)
    env.reset(seed=2)
    for _ in range(25):
        env.step(np.zeros(1, np.float32))
    assert env.render().shape == (720, 1080, 3)
    losses = env.unwrapped._baseline.until(env.unwrapped.task.budget)[1]
    assert len(losses) == 26
    rows = gym.make_vec(ID, num_envs=2, render_mode="rgb_array", **FEW)
    rows.reset(seed=2)
    rows.step(np.zeros((2, 1), np.float32))
    assert len(rows.render()) == 2


LONG = Task(  # whose lines are about as long as they can be
    network="mlp-64-64-64-tanh",
    initial_scale=0.5123,
    classes=(9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
    resolution=28,
    train_size=3_999,
    label_noise=0.399,
    input_scale=0.3123,
    input_centre=0.9876,
    optimizer="adamw",
    momentum=0.9468,
    weight_decay=1.234e-05,
    loss_scale=0.3123,
    batch_size=128,
    batches_per_action=160,
    number=2**31 - 1,
)


def test_the_record_is_legible():
    """In frames, beside Q-values too, and in tiles: every part of it, and no text lies on another."""
    assert max(map(len, LONG.lines())) <= 42
    for part in (
        "mlp-64-64-64-tanh",
        "28 x 28",
        "9 8 7 6 5 4 3 2 1 0",
        "3,999 images",
        "40%",
        "4,000 mini-batches of 128",
    ):
        assert part in " ".join(LONG.lines())
    discrete = {"continuous": False, "learning_rate_factors": [0.25, 0.5, 1.0, 2.0, 4.0]}
    env = gym.make(ID, task=LONG, render_mode="rgb_array", **discrete).unwrapped
    env.reset(seed=0)
    for values in (None, -1234.5 - np.arange(5)):
        content = content_of(env, title="a title", task=env.training.task_lines(0), values=values)
        require_legible(env, content)
    require_legible(env, content_of(env, title="a title", task=env.training.task_lines(0)), small=True)
    other = gym.make(ID, task=replace(LONG, label_noise=0.1), render_mode="rgb_array", **discrete)
    other.reset(seed=0)
    assert (env.render()[60:200, :475] != other.render()[60:200, :475]).any()


def test_text_has_the_record():
    env = gym.make(ID, task=SMALL, render_mode="ansi")
    env.reset(seed=0)
    record, now = env.render().splitlines()
    assert all(line in record for line in SMALL.lines())
    assert "learning rate 0.001 " in now


def test_large_networks_are_measured_in_part_by_both_engines():
    """Of 269,322 weights, which no drawn task has."""
    task = replace(SMALL, network="mlp-256-256", resolution=28, batches_per_action=2)
    observations = []
    for engine in ("torch", "auto"):
        env = gym.make(ID, task=task, engine=engine)
        env.reset(seed=0)
        observations.append(np.stack([env.step(np.full(1, 0.1, np.float32))[0] for _ in range(4)]))
    for observed in observations:
        assert np.abs(observed).max() > 0
        assert observed == pytest.approx(observations[0], rel=1e-3, abs=1e-3)


def test_stable_baselines_plays_it():
    from stable_baselines3 import PPO

    env = vec_env(ID, 2, **FEW)
    PPO("MlpPolicy", env, n_steps=10, batch_size=10, n_epochs=1, seed=0).learn(40)


def test_the_command_line_lists_it():
    """And its arguments, each of which it takes at the value that is shown; not those that its tasks say."""
    (line,) = [line for line in CliRunner().invoke(app, ["list"]).output.splitlines() if ID in line]
    assert line.count("drawn") == 3
    listing = CliRunner().invoke(app, ["list", ID]).output
    named = {line.split()[0].lstrip("│") for line in listing.splitlines() if line.startswith("│")}
    assert named == arguments_of(ID).keys()
    assert {"split", "num_tasks", "start_task", "networks", "optimizers", "context", "task", "schedule"} < named
    assert not named & {"network", "momentum", "epochs", "augment", "reference"}
    values = {name: argument.value for name, argument in arguments_of(ID).items()}
    default, same_one = gym.make(ID), gym.make(ID, **values)
    assert same_one.unwrapped.config == default.unwrapped.config
    assert same_one.unwrapped.training.source == default.unwrapped.training.source


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["dqn", "dqn-native", "ppo"])
def test_the_command_line_trains_evaluates_and_watches(agent, tmp_path):
    """With the presets as they are; DQN says which arguments it needs."""
    discrete = ["--set", "continuous=false", "--set", "learning_rate_factors=[0.25, 0.5, 1, 2, 4]"]
    run, video = str(tmp_path / "run"), str(tmp_path / "video.mp4")
    command = ["train", ID, "--agent", agent, "--episodes", "2", "--set", "networks=mlp", "--out", run]
    if agent != "ppo":
        refused = CliRunner().invoke(app, command)
        assert refused.exit_code == 2
        assert "learning_rate_factors" in refused.stderr
        command += discrete
    for arguments in (command, ["evaluate", run], ["watch", run, "--video", video]):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, (done.output, done.stderr, done.exception)
    assert (tmp_path / "video.mp4").stat().st_size > 1_000
