"""`QanMinibatch-LongTail-v0`: its tasks, its rows, and what it shows of the classes; and the game with replacement."""

import copy
import json
import math
import pickle
from dataclasses import asdict, replace

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from test_rendering import content_of, require_legible
from test_vector_env import check_vector_env

from qan_agents.policies.class_rules import RULES, Classes, Deferred, LossReducing
from qan_agents.policies.fixed import make_policy
from qan_agents.policies.rollout import EpisodeRecorder, play_episode
from qan_gym.core.class_statistics import CLASSES, MEMORY, means_by_class
from qan_gym.core.engine import engine_here
from qan_gym.core.run_state import LOSS_LIMIT
from qan_gym.families.draws import Draws
from qan_gym.families.engine import mini_batch
from qan_gym.families.long_tail import LongTailSource, LongTailTask, draw_task
from qan_gym.games.minibatch import LOGIT_SCALE, logits_of_shares, shares_of_logits
from qan_gym.utils.arrays import NUMPY

ID = "QanMinibatch-LongTail-v0"
ENGINES = [
    "torch",
    pytest.param("native", marks=pytest.mark.skipif(not engine_here().startswith("native"), reason="no kernels")),
]
SMALL = LongTailTask(
    network="mlp-6",
    resolution=7,
    train_size=150,
    imbalance=20.0,
    label_noise=(0.5, *[0.0] * 8, 0.3),
    classes=(3, 1, 4, 0, 5, 9, 2, 6, 8, 7),
    data_seed=5,
    batch_size=20,
    batches_per_action=2,
    schedule="one-cycle",
    momentum=0.9,
    learning_rate=0.02,
)
FEW = {"networks": ("mlp",), "num_tasks": 20}


def some_actions(env, count: int, seed: int = 0):
    """Of a single environment."""
    env.action_space.seed(seed)
    return [env.action_space.sample() for _ in range(count)]


# --- Gymnasium ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*display.*")
@pytest.mark.parametrize("arguments", [{}, {"continuous": True, "context": "observed", "validate_every": 8}])
def test_gymnasium_accepts_it(arguments):
    check_env(gym.make(ID, task=SMALL, **arguments).unwrapped)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP], ids=str)
def test_gymnasium_accepts_the_vector_environment(mode):
    task = replace(SMALL, batches_per_action=LongTailTask().batches_per_action)
    check_vector_env(gym.make_vec(ID, num_envs=3, autoreset_mode=mode, task=task))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("continuous", [False, True])
def test_rows_play_different_tasks_as_single_environments_do(engine, continuous):
    """The beginnings of episodes of four tasks, to the bit."""
    kwargs = {"engine": engine, "continuous": continuous, **FEW}
    rows, singles = gym.make_vec(ID, num_envs=4, **kwargs), [gym.make(ID, **kwargs) for _ in range(4)]
    observation, infos = rows.reset(seed=3)
    begun = [env.reset(seed=3 + row) for row, env in enumerate(singles)]
    assert len({env.unwrapped.task for env in singles}) >= 3
    for row, (own, info) in enumerate(begun):
        assert np.array_equal(observation[row], own)
        assert info["task"] == {name: values[row] for name, values in infos["task"].items() if name[0] != "_"}
    count = 12 if engine == "torch" else 40
    for actions in zip(*(some_actions(env, count, row) for row, env in enumerate(singles)), strict=True):
        result = rows.step(np.stack(actions))
        for row, env in enumerate(singles):
            own = env.step(actions[row])
            assert np.array_equal(own[0], result[0][row])
            assert own[1:4] == tuple(values[row] for values in result[1:4])
            assert own[4]["loss"] == result[4]["loss"][row]
            assert np.array_equal(env.unwrapped.batch_indices, rows.call("batch_indices")[row])


@pytest.mark.skipif(not engine_here().startswith("native"), reason="no kernels")
def test_both_engines_train_alike():
    """The same mini-batches to the bit, and losses that differ by rounding."""
    envs = [gym.make(ID, task=SMALL, continuous=True, engine=engine) for engine in ("native", "torch")]
    observations = [env.reset(seed=2)[0] for env in envs]
    for action in some_actions(envs[0], 6):
        assert observations[0] == pytest.approx(observations[1], abs=2e-3)
        observations = [env.step(action)[0] for env in envs]
        assert np.array_equal(*(env.unwrapped.batch_indices for env in envs))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
@pytest.mark.parametrize("make", [gym.make, lambda *args, **kwargs: gym.make_vec(*args, num_envs=3, **kwargs)])
def test_copies_go_on_to_the_same_bits(make, duplicate):
    env = make(ID, **FEW)
    env.reset(seed=4)
    acted = np.full(env.action_space.shape, 3) if env.action_space.shape else 3
    for _ in range(3):
        env.step(acted)
    copied = duplicate(env.unwrapped)
    for _ in range(37):
        one, other = env.unwrapped.step(acted), copied.step(acted)
        assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(one[:4], other[:4], strict=True))


def test_a_state_goes_on_in_another_environment(tmp_path):
    env, other = gym.make(ID, **FEW).unwrapped, gym.make(ID, **FEW).unwrapped
    env.reset(seed=9)
    for action in some_actions(env, 5):
        env.step(action)
    env.get_state().save(tmp_path / "state.safetensors")
    state = type(env.get_state()).load(tmp_path / "state.safetensors")
    other.set_state(state)
    assert other.task == env.task
    assert np.array_equal(other.batch_indices, env.batch_indices)
    for action in some_actions(env, 10, seed=1):
        assert np.array_equal(env.step(action)[0], other.step(action)[0])
    arrays = {**state.arrays, "class_used": state.arrays["class_used"] + 10**6}
    with pytest.raises(ValueError, match="class_used is larger"):
        other.set_state(type(state)(arrays, state.metadata))


def test_actions_are_looked_ahead():
    env = gym.make(ID, task=SMALL)
    env.reset(seed=1)
    env.step(2)
    from qan_gym import counterfactual

    found = counterfactual(env, k=1)
    expected = env.step(7)[4]
    assert found.smoothed_loss[7] == expected["smoothed_loss"]
    assert len(set(found.smoothed_loss.tolist())) == 10


# --- what is trained ------------------------------------------------------------------------------------------------


def test_shuffled_episodes_are_those_of_shuffled_sgd():
    """Every image once per epoch; the actions do nothing."""
    task = replace(SMALL, batches_per_action=7)  # 7 mini-batches of 20 are an epoch of 150 images
    env = gym.make(ID, task=task).unwrapped
    losses = []
    for action in (0, 9):
        env.reset(seed=8, options={"sampler": "shuffled"})
        for epoch in range(3):
            losses.append(env.step(action)[4]["loss"])
            drawn = env.batch_indices
            assert len(set(drawn.ravel().tolist())) == 140
            seed = int(env.training.run.seed[0])
            assert np.array_equal(drawn, [mini_batch(seed, 7 * epoch + one, 20, 150) for one in range(7)])
    assert losses[:3] == losses[3:]


def test_the_shares_of_the_mini_batches_are_those_of_the_actions():
    env = gym.make(ID, task=replace(SMALL, batches_per_action=10), continuous=True).unwrapped
    env.reset(seed=0)
    labels = np.asarray(env.split("train")[1])
    for action in some_actions(env, 8):
        env.step(action)
        shares = np.exp(3 * action.astype(np.float64))
        shares /= shares.sum()
        counts = np.stack([np.bincount(labels[batch], minlength=10) for batch in env.batch_indices])
        assert np.abs(counts - 20 * shares).max() < 1


def test_the_roulette_begins_with_all_classes_and_holds_ten_actions():
    env = gym.make(ID, task=replace(SMALL, batches_per_action=5)).unwrapped
    env.reset(seed=0)
    labels = np.asarray(env.split("train")[1])
    for number in range(12):
        env.step(6)
        counts = np.bincount(labels[env.batch_indices].ravel(), minlength=10)
        chosen = min(number + 1, 10) / 10
        expected = 100 * (1 - chosen) * np.full(10, 0.1) + 100 * chosen * (np.arange(10) == 6)
        assert np.abs(counts - expected).max() <= 5  # each of the 5 mini-batches rounds once


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_shown_of_the_classes_is_what_a_loop_measures(engine):
    """The losses by a forward pass of the weights of before, image by image."""
    env = gym.make(ID, task=replace(SMALL, batches_per_action=1), engine=engine, continuous=True).unwrapped
    observation, _ = env.reset(seed=3)
    training = env.training
    labels = np.asarray(env.split("validation")[1])
    probe = [np.flatnonzero(labels == label)[:20] for label in range(10)]
    network, data = training.network_of(0)[0], training.data_of(0)

    def losses(split: str, places: np.ndarray) -> np.ndarray:
        params = {name: value[None] for name, value in training.network_of(0)[1].items()}
        seen = data.normalise(data.images[split][torch.from_numpy(places)])[None]
        logits = network.forward(params, seen, False)[0]
        return F.cross_entropy(logits, data.labels[split][torch.from_numpy(places)], reduction="none").double().numpy()

    shown = dict(zip(CLASSES[:5], observation[:50].reshape(5, 10), strict=True))
    train_labels = np.asarray(env.split("train")[1])
    sizes = np.bincount(train_labels, minlength=10)
    assert sizes.tolist() == list(SMALL.class_sizes)
    assert shown["class_size"] == pytest.approx(np.log(10 * sizes / 150), rel=1e-5)
    assert not shown["class_share"].any()
    assert not shown["class_passes"].any()
    means = np.array([losses("validation", places).mean() for places in probe])
    running, drawn = means.copy(), np.zeros(10)
    for action in some_actions(env, 5):
        assert shown["class_validation_loss"] == pytest.approx(np.log(means / math.log(10)), abs=1e-4)
        assert shown["class_loss"] == pytest.approx(np.log(running / math.log(10)), abs=1e-4)
        before = losses("train", np.arange(150))
        observation = env.step(action)[0]
        (batch,) = env.batch_indices
        counts = np.bincount(train_labels[batch], minlength=10)
        for label in np.flatnonzero(counts):
            mean = before[batch[train_labels[batch] == label]].mean()
            running[label] += min(1, counts[label] / MEMORY) * (mean - running[label])
        drawn += counts
        means = np.array([losses("validation", places).mean() for places in probe])
        shown = dict(zip(CLASSES[:5], observation[:50].reshape(5, 10), strict=True))
        assert shown["class_share"] == pytest.approx(10 * counts / 20, rel=1e-5)
        assert shown["class_passes"] == pytest.approx(np.log1p(drawn / sizes), rel=1e-5)


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_a_loss_that_is_not_finite_counts_as_the_largest(kind):
    labels, losses = [[0, 0, 1, -1], [2, 1, 1, 1]], [[1.0, math.nan, math.inf, 5.0], [2.0, 1.0, 3.0, 5.0]]
    found = means_by_class(kind(labels), kind(losses), 4)
    assert found.tolist() == [[(1 + LOSS_LIMIT) / 2, LOSS_LIMIT, 0, 0], [0, 3, 2, 0]]


def test_the_rows_have_their_own_schedules():
    tasks = [replace(SMALL, schedule=name) for name in ("linear", "one-cycle", "linear")]
    training = gym.make_vec(ID, num_envs=3, continuous=True).unwrapped.training
    training.reset(np.ones(3, np.bool_), np.arange(3), tasks=tasks)
    training.step(np.zeros((3, 10), np.float32))
    share = 1 / 80  # of the second mini-batch of 80
    rise = 1 / 20 + (1 - 1 / 20) * (1 + math.cos(math.pi * (share / 0.5 - 1))) / 2
    expected = [0.02 * (1 - share), 0.02 * 3.4 * rise, 0.02 * (1 - share)]
    assert training.run.learning_rate.numpy() == pytest.approx(expected)


# --- tasks ----------------------------------------------------------------------------------------------------------


def test_tasks_are_drawn_within_their_ranges():
    tasks = [draw_task("train", number) for number in range(400)]
    assert {task.network.partition("-")[0] for task in tasks} == {"mlp", "mnist"}
    ratios = np.log([task.imbalance for task in tasks])
    assert np.histogram(ratios, bins=4, range=(0, math.log(100)))[0].min() > 70
    noisy = np.array([sum(noise > 0 for noise in task.label_noise) for task in tasks])
    assert set(noisy) == set(range(6))
    assert 0.5 < max(max(task.label_noise) for task in tasks) <= 0.6
    assert all(max(task.class_sizes) <= 400 and min(task.class_sizes) >= 1 for task in tasks)
    assert all(task.data_seed % 2 == 0 for task in tasks)
    assert all(draw_task("test", number).data_seed % 2 == 1 for number in range(50))
    places = np.array([np.argmin(task.class_sizes) for task in tasks])
    assert np.bincount(places, minlength=10).min() > 15
    fixed = draw_task("test", 7, ("mlp",), 10, 0.3, 4)
    assert fixed.imbalance == 10
    assert sorted(fixed.label_noise) == [0.0] * 6 + [0.3] * 4
    other = draw_task("test", 7, ("mlp",), 100, 0.6, 4)
    assert [noise > 0 for noise in other.label_noise] == [noise > 0 for noise in fixed.label_noise]
    assert replace(other, imbalance=1.0, label_noise=(0.0,) * 10, train_size=200) == replace(
        fixed, imbalance=1.0, label_noise=(0.0,) * 10, train_size=200
    )


def test_a_permutation_is_one():
    draws = [Draws("family", "train", number).permutation("order", 5) for number in range(200)]
    assert all(sorted(order) == list(range(5)) for order in draws)
    assert len({tuple(order) for order in draws}) > 80


@pytest.mark.parametrize("record", [SMALL, asdict(SMALL), SMALL.to_json(), json.loads(SMALL.to_json())], ids=str)
def test_a_task_is_given_in_any_form(record):
    env = gym.make(ID, task=record)
    env.reset(seed=1)
    assert env.unwrapped.task == SMALL
    assert max(map(len, SMALL.lines())) <= 42


LONG = LongTailTask(  # whose lines are about as long as they can be
    network="mlp-64-64-tanh",
    train_size=3_990,
    label_noise=(0.599,) * 10,
    learning_rate=0.01234,
    momentum=0.9,
    schedule="one-cycle",
    batch_size=128,
    batches_per_action=12,
    number=2**31 - 1,
)


def test_pictures_show_the_record_and_the_classes():
    """In frames and tiles no text lies on another; the losses of the classes are drawn where they are measured."""
    assert max(map(len, LONG.lines())) <= 42
    env = gym.make(ID, task=LONG, render_mode="rgb_array", baseline_run=True).unwrapped
    env.reset(seed=0)
    before = env.render()
    for action in some_actions(env, 4):
        env.step(action)
    assert (env.render()[590:690, 530:1040] != before[590:690, 530:1040]).any()
    task = env.training.task_lines(0)
    for small in (False, True):
        require_legible(env, content_of(env, title="a title", task=task), small=small)
    history = env._history
    assert history.shares().sum(axis=1) == pytest.approx(np.ones(4))
    assert history.class_losses()[-1] == pytest.approx(env.training.run.class_validation_loss[0].numpy())
    plain = gym.make(ID, task=SMALL, render_mode="rgb_array", observation=["budget_used"]).unwrapped
    plain.reset(seed=0)
    plain.step(3)
    assert plain._history.class_losses().shape == (1, 0)
    assert plain.render().shape == (720, 1080, 3)
    text = gym.make(ID, task=SMALL, render_mode="ansi")
    text.reset(seed=0)
    assert all(line in text.render() for line in SMALL.lines())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"imbalance": 0.5}, "imbalance must be a number in"),
        ({"imbalance": (10, 2)}, "imbalance"),
        ({"imbalance": 101}, "imbalance"),
        ({"label_noise": 1.5}, "label_noise"),
        ({"label_noise": True}, "label_noise"),
        ({"noisy_classes": 2.5}, "noisy_classes must be an integer"),
        ({"noisy_classes": 11}, "noisy_classes"),
        ({"networks": "vit"}, "networks must be some of mlp, mnist-cnn"),
        ({"replacement": False}, "replacement: no setting"),
        ({"learning_rate": 0.1}, "learning_rate: every task of the family has its own"),
        ({"schedule": "linear"}, "schedule: every task"),
        ({"observation": "screen"}, "screen"),
        ({"task": SMALL, "imbalance": 2}, "leave out imbalance"),
        ({"task": {**asdict(SMALL), "version": 2}}, "version 2"),
        ({"task": {**asdict(SMALL), "label_noise": [0.1]}}, "10 shares"),
        ({"task": {**asdict(SMALL), "classes": [1, 2]}}, "the 10 digits in any order"),
        ({"device": "meta"}, "device must be cpu"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    for make in (gym.make, gym.make_vec):
        with pytest.raises(ValueError, match=message):
            make(ID, **arguments)


def test_the_source_is_that_of_its_arguments():
    env = gym.make(ID, split="test", imbalance=[5, 5], label_noise=0.2, noisy_classes=[1, 1], networks="mlp")
    for seed in range(3):
        env.reset(seed=seed)
        task = env.unwrapped.task
        assert (task.split, task.imbalance, task.kind) == ("test", 5.0, "mlp")
        assert sorted(task.label_noise)[-2:] == [0.0, 0.2]
    assert env.unwrapped.source == LongTailSource(
        split="test", networks=("mlp",), imbalance=(5, 5), label_noise=0.2, noisy_classes=(1, 1)
    )


# --- rules ----------------------------------------------------------------------------------------------------------


def test_shares_and_logits_are_inverse():
    shares = np.random.default_rng(0).dirichlet(np.ones(10), size=50)
    actions = logits_of_shares(shares)
    assert (abs(actions) <= 1).all()
    kept = shares > shares.max(axis=1, keepdims=True) * np.exp(-2 * LOGIT_SCALE)
    within = kept.all(axis=1)
    assert within.any()
    assert shares_of_logits(NUMPY, actions)[within] == pytest.approx(shares[within], rel=1e-5)


def test_the_rules_are_what_they_say():
    sizes = np.array([[100.0, 25.0, 0.0], [1.0, 4.0, 9.0]])
    losses, used = np.array([[1.0, 2.0, 5.0], [0.5, 1.0, 0.25]]), np.array([0.59, 0.61])
    classes = Classes(sizes, losses, losses[::-1], used)
    expected = {
        "natural": sizes,
        "class-balanced": [[1, 1, 0], [1, 1, 1]],
        "square-root": [[10, 5, 0], [1, 2, 3]],
        "deferred": [[100, 25, 0], [1, 1, 1]],
        "loss-proportional": [[1, 2, 0], [0.5, 1, 0.25]],
        "validation-proportional": [[0.5, 1, 0], [1, 2, 5]],
        "loss-reducing": [[0.5, 1, 0], [0.5, 1, 0.25]],
    }
    assert expected.keys() == RULES.keys()
    for name, shares in expected.items():
        assert RULES[name](classes) == pytest.approx(np.array(shares)), name
    assert Deferred(0.5)(classes)[0].tolist() == [1, 1, 0]
    assert LossReducing(2.0)(classes) == pytest.approx(np.array([[0.25, 1, 0], [0.25, 1, 0.0625]]))
    with pytest.raises(ValueError, match="observation='classes'"):
        RULES["loss-proportional"](Classes(sizes, None, None, used))


@pytest.mark.parametrize("name", [*RULES, "uniform", "random"])
def test_policies_play_the_rules(name):
    env = EpisodeRecorder(gym.make(ID, task=SMALL, continuous=True))
    episode = play_episode(env, make_policy(name), seed=1)
    assert len(episode.steps) == 40
    assert np.isfinite(episode.total_reward)


def test_rules_refuse_other_actions():
    for arguments in ((ID, {"task": SMALL}), ("QanLR-MNIST5k-v1", {"continuous": True})):
        env = EpisodeRecorder(gym.make(arguments[0], **arguments[1]))
        with pytest.raises(ValueError, match="replacement=True and continuous=True"):
            play_episode(env, make_policy("square-root"), seed=1)


# --- the game with replacement on one task --------------------------------------------------------------------------

FIXED = {
    "replacement": True,
    "train_size": 300,
    "data_seed": 3,
    "imbalance": 10.0,
    "label_noise": [0.0] * 9 + [0.5],
    "batches": 8,
    "batch_size": 20,
    "batches_per_action": 2,
    "observation": "classes",
    "meta_momentum": None,
    "reference": None,
    "network": "cnn-4-4",
    "resolution": 14,
}


@pytest.mark.parametrize("continuous", [False, True])
def test_any_minibatch_game_has_it(continuous):
    """Rows are single environments; the budget is in mini-batches, beyond an epoch."""
    rows = gym.make_vec("QanMinibatch-MNIST5k-v1", num_envs=2, continuous=continuous, **FIXED)
    singles = [gym.make("QanMinibatch-MNIST5k-v1", continuous=continuous, **FIXED) for _ in range(2)]
    rows.reset(seed=5)
    for row, env in enumerate(singles):
        env.reset(seed=5 + row)
    for number in range(4):
        actions = [some_actions(env, 1, 10 * number + row)[0] for row, env in enumerate(singles)]
        result = rows.step(np.stack(actions))
        for row, env in enumerate(singles):
            own = env.step(actions[row])
            assert np.array_equal(env.unwrapped.batch_indices, rows.call("batch_indices")[row])
            assert own[0] == pytest.approx(result[0][row], abs=1e-4)
            assert own[3] == result[3][row] == (number == 3)
    copied = copy.deepcopy(singles[0].unwrapped)
    assert copied.training.run.class_used.sum() == 160


def test_wrong_settings_are_refused():
    for env_id, arguments, message in (
        ("QanLR-MNIST5k-v1", {"replacement": True}, "replacement=True is for games that choose classes"),
        ("QanMinibatch-MNIST5k-v1", {"continuous": True}, "continuous=True needs replacement=True"),
        ("QanMinibatch-MNIST5k-v1", {"imbalance": 0.1}, "imbalance must be"),
        ("QanMinibatch-MNIST5k-v1", {"label_noise": [0.1]}, "one for each of the 10 classes"),
        ("QanMinibatch-MNIST5k-v1", {"observation": ["class_loss", "no_such"]}, "unknown feature 'no_such'"),
        ("QanLR-Family-v0", {"replacement": True}, "replacement"),
    ):
        with pytest.raises(ValueError, match=message):
            gym.make(
                env_id,
                **{"meta_momentum": None, "reference": None, **arguments} if "Family" not in env_id else arguments,
            )
