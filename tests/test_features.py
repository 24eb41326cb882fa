"""The registered features: what each one is, in the environment's infos; on the score line; and as the observation."""

import math
from collections.abc import Callable

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as check_env_of_gymnasium
from helpers import TINY
from stable_baselines3.common.env_checker import check_env as check_env_of_sb3

from qan_gym.core.features import FEATURES, LIMIT, register_feature
from qan_gym.core.observation import ALWAYS_MEASURED, SCORE_LINE
from qan_gym.core.statistics import STATISTICS
from qan_gym.games import register_game
from qan_gym.games.learning_rate import LearningRateGame

LR, MINIBATCH = "QanLR-MNIST5k-v1", "QanMinibatch-MNIST5k-v1"
ALL = list(FEATURES)[:9]  # those that are not of the observation "statistics" alone, see test_statistics.py

# An episode of 6 actions in two epochs of 6 mini-batches; the validation loss is measured after 4, 6, 8 and 12.
ARGUMENTS = {**TINY, "train_size": 60, "epochs": 2, "batches_per_action": 2, "validate_every": 4}


@pytest.fixture
def arguments(small_data):
    return {**ARGUMENTS, "dataset": small_data}


def log(value: float) -> float:
    return math.log(max(value, 1e-10))


# Of the info of a step, that of the step before (at a reset, the same one), and the last action.
SLOWLY: dict[str, Callable[[dict, dict, float], float]] = {
    "log_learning_rate": lambda info, before, action: log(info["learning_rate"]),
    "budget_used": lambda info, before, action: info["batch"] / 12,
    "log_loss": lambda info, before, action: log(info["smoothed_loss"]),
    "log_loss_change": lambda info, before, action: log(info["smoothed_loss"]) - log(before["smoothed_loss"]),
    "last_action": lambda info, before, action: action,
    "log_validation_loss": lambda info, before, action: log(info["validation_loss"]),
    "log_validation_loss_change": lambda info, before, action: (
        log(info["validation_loss"]) - log(before["validation_loss"])
    ),
    "momentum": lambda info, before, action: info["momentum"],
    "log_weight_decay": lambda info, before, action: log(info["weight_decay"]),
}


class AllHyperparameters(LearningRateGame):
    """The learning-rate game, the actions of which change the momentum and the weight decay too."""

    hyperparameters = ("learning_rate", "momentum", "weight_decay")

    def apply(self, run, actions, config):
        super().apply(run, actions, config)
        run.momentum *= 0.9
        run.weight_decay *= 2


def play(env: gym.Env, seed: int = 3) -> list[tuple]:
    """An episode of random actions: (observation, info, action) of the reset and every step."""
    env.action_space.seed(seed)
    observation, info = env.reset(seed=seed)
    played, over = [(observation, info, -1.0)], False
    while not over:
        action = env.action_space.sample()
        observation, _, terminated, truncated, info = env.step(action)
        played.append((observation, info, float(action)))
        over = terminated or truncated
    return played


# --- what they are --------------------------------------------------------------------------------------------------


def test_every_feature_has_a_slow_computation():
    assert list(SLOWLY) == ALL
    others = ("task_", "long_tail_", "class_")  # of a family's tasks, and of each class
    fixed = {name for name in FEATURES if not name.startswith(others)}
    assert fixed == {*SLOWLY, *STATISTICS, "log_validation_to_chance"}


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_features_are_what_the_infos_say(schedule, arguments, registries):
    """Every registered feature at every step of an episode."""
    register_game("hyperparameters", AllHyperparameters())
    hyperparameters = {"game": "hyperparameters", "momentum": 0.9, "weight_decay": 0.001, "schedule": schedule}
    env = gym.make(LR, observation=ALL, **arguments, **hyperparameters)
    played = play(env)
    assert len(played) == 7
    before = played[0][1]
    for observation, info, action in played:
        expected = [SLOWLY[name](info, before, action) for name in ALL]
        np.testing.assert_allclose(observation, np.clip(expected, -LIMIT, LIMIT), rtol=1e-5, atol=1e-6)
        before = info
    values = np.array([observation for observation, _, _ in played])
    change = {name: len(set(values[:, place])) for place, name in enumerate(ALL)}
    assert change.pop("log_validation_loss") == 5, "measured after 4, 6, 8 and 12 mini-batches"
    assert min(change.values()) > 2, "an episode in which a feature stands still tells nothing about it"


def test_features_of_the_minibatch_game(arguments):
    """The last action is the class; what is not a hyperparameter of the game is that of the task."""
    env = gym.make(MINIBATCH, observation=ALL, momentum=0.5, weight_decay=0.01, **arguments)
    played = play(env)
    before = played[0][1]
    for observation, info, action in played:
        hyperparameters = {"momentum": 0.5, "weight_decay": 0.01}
        expected = [SLOWLY[name](info | hyperparameters, before, action) for name in ALL]
        np.testing.assert_allclose(observation, np.clip(expected, -LIMIT, LIMIT), rtol=1e-5, atol=1e-6)
        before = info


# --- as the observation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env_id", "names"), [(LR, ["log_loss"]), (MINIBATCH, ["budget_used", "last_action"]), (LR, ALL)]
)
def test_a_list_of_features_is_a_flat_observation(env_id, names, arguments):
    """A number per name, in the order of the list; a tuple is as good."""
    env = gym.make(env_id, observation=names, **arguments)
    assert env.observation_space == spaces.Box(-LIMIT, LIMIT, (len(names),), np.float32)
    assert env.unwrapped.screen_shape == (1, len(names))
    everything = gym.make(env_id, observation=tuple(ALL), **arguments)
    places = [ALL.index(name) for name in names]
    for (some, *_), (all_of_them, *_) in zip(play(env), play(everything), strict=True):
        assert some.shape == (len(names),)
        assert some.dtype == np.float32
        assert np.array_equal(some, all_of_them[places])


def test_features_in_another_order(arguments):
    some, other = (gym.make(LR, observation=names, **arguments) for names in (ALL, ALL[::-1]))
    for (one, *_), (reversed_one, *_) in zip(play(some), play(other), strict=True):
        assert np.array_equal(one, reversed_one[::-1])


@pytest.mark.parametrize(("env_id", "mode"), [(LR, "NextStep"), (MINIBATCH, "SameStep")])
def test_features_of_rows_are_those_of_the_single_environment(env_id, mode, arguments):
    """Three rows, over an episode and into the next, bit for bit."""
    rows = gym.make_vec(env_id, num_envs=3, autoreset_mode=mode, observation=ALL, **arguments)
    sync = {"vectorization_mode": "sync", "vector_kwargs": {"autoreset_mode": gym.vector.AutoresetMode(mode)}}
    singles = gym.make_vec(env_id, num_envs=3, observation=ALL, **sync, **arguments)
    assert rows.single_observation_space.shape == (len(ALL),)
    assert rows.observation_space == singles.observation_space
    rows.action_space.seed(1)
    one, other = (env.reset(seed=7)[0] for env in (rows, singles))
    assert np.array_equal(one, other)
    for _ in range(8):
        actions = rows.action_space.sample()
        one, other = rows.step(actions), singles.step(actions)
        assert np.array_equal(one[0], other[0])
        assert np.array_equal(one[3], other[3])


@pytest.mark.parametrize("env_id", [LR, MINIBATCH])
def test_both_check_env_pass(env_id, arguments, recwarn):
    env = gym.make(env_id, observation=["log_loss", "log_loss_change", "budget_used"], **arguments)
    check_env_of_gymnasium(env.unwrapped, skip_render_check=True)
    check_env_of_sb3(env)
    assert not [str(warning.message) for warning in recwarn if "qan" in str(warning.message).lower()]


def test_a_state_goes_on_with_features(arguments, tmp_path):
    """Also through a file, where the list of names is one of JSON."""
    env = gym.make(LR, observation=["log_loss", "last_action"], **arguments)
    env.reset(seed=1)
    env.step(0)
    state = env.unwrapped.get_state()
    state.save(tmp_path / "state.safetensors")
    other = gym.make(LR, observation=["log_loss", "last_action"], **arguments).unwrapped
    other.set_state(type(state).load(tmp_path / "state.safetensors"))
    assert np.array_equal(env.step(1)[0], other.step(1)[0])


# --- wrong ones -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [gym.make, gym.make_vec])
def test_unknown_features_are_refused(make, arguments):
    """With the nearest name, or all that there are where none is near."""
    for name, message in (("log_los", ": did you mean 'log_loss'.$"), ("zzz", f"; there are {', '.join(FEATURES)}")):
        with pytest.raises(ValueError, match=f"unknown feature '{name}'{message}"):
            make(LR, observation=["budget_used", name], **arguments)


@pytest.mark.parametrize("observation", [[], ["log_loss", 3], "log_loss", 7, None, {"log_loss"}], ids=str)
def test_what_is_no_list_of_names_is_refused(observation, arguments):
    with pytest.raises(
        ValueError,
        match="observation must be one of screen, filters, statistics, classes or a list of names of features",
    ):
        gym.make(LR, observation=observation, **arguments)


# --- from outside ---------------------------------------------------------------------------------------------------


def test_a_feature_from_outside(arguments, registries):
    """In the observation, of one environment and of rows; values are kept within the limit, and are numbers."""
    register_feature("accuracy", lambda run: run.validation_accuracy)
    register_feature("large", lambda run: 100 * run.validation_accuracy + 11)
    register_feature("no_number", lambda run: run.loss * math.nan)
    register_feature("actions", lambda run: run.clock // 2)
    names = ["accuracy", "large", "no_number", "actions"]
    env = gym.make(LR, observation=names, **arguments)
    for number, (observation, info, _) in enumerate(play(env)):
        np.testing.assert_allclose(observation, [info["validation_accuracy"], LIMIT, 0, number], rtol=1e-6)
    rows = gym.make_vec(LR, num_envs=2, observation=names, **arguments)
    seen, infos = rows.reset(seed=3)
    np.testing.assert_allclose(seen[:, 0], infos["validation_accuracy"], rtol=1e-6)
    assert seen.shape == (2, 4)


@pytest.mark.parametrize("name", ["log_loss", "accuracy"])
def test_a_name_that_is_taken_is_refused(name, registries):
    register_feature("accuracy", lambda run: run.validation_accuracy)
    with pytest.raises(ValueError, match=f"a feature cannot be registered as '{name}': the name is taken"):
        register_feature(name, lambda run: run.loss)


# --- the score line -------------------------------------------------------------------------------------------------


def test_the_places_of_the_score_line():
    always = ["log_learning_rate", "budget_used", "log_loss", "log_loss_change", "last_action"]
    assert list(SCORE_LINE) == [*always, "log_validation_loss", "log_validation_loss_change"]
    assert len(always) == ALWAYS_MEASURED


@pytest.mark.parametrize("validate_every", [None, 4])
@pytest.mark.parametrize("env_id", [LR, MINIBATCH])
def test_the_score_line_has_its_features(env_id, validate_every, arguments):
    """The last row of the screen: the seven in their places, the last two only with `validate_every`; then zeros."""
    changed = arguments | {"validate_every": validate_every}
    screen, line = (gym.make(env_id, observation=kind, **changed) for kind in ("screen", SCORE_LINE))
    assert screen.unwrapped.screen_shape == (33, 25)
    before = None
    for (seen, info, action), (features, *_) in zip(play(screen), play(line), strict=True):
        last_row = seen.reshape(33, 25)[-1]
        before = before or info
        count = ALWAYS_MEASURED if validate_every is None else len(SCORE_LINE)
        expected = [SLOWLY[name](info, before, action) for name in SCORE_LINE[:count]]
        np.testing.assert_allclose(last_row[:count], expected, rtol=1e-5, atol=1e-6)
        assert np.array_equal(last_row[:count], features[:count])
        assert not last_row[count:].any()
        before = info


@pytest.mark.parametrize("validate_every", [None, 4])
def test_features_that_a_game_adds_follow_the_seven(validate_every, arguments, registries):
    """In the places after the seven, whether or not the last two of those are measured; in the screen alone."""

    class WithMomentum(LearningRateGame):
        hyperparameters = ("learning_rate", "momentum")
        features = ("momentum", "log_weight_decay")

    register_game("with-momentum", WithMomentum())
    changed = arguments | {"game": "with-momentum", "momentum": 0.25, "weight_decay": 0.01}
    changed["validate_every"] = validate_every
    env, plain = gym.make(LR, **changed), gym.make(LR, **changed | {"game": "learning-rate"})
    for (seen, *_), (usual, *_) in zip(play(env), play(plain), strict=True):
        line, usual_line = seen.reshape(33, 25)[-1], usual.reshape(33, 25)[-1]
        np.testing.assert_allclose(line[7:9], [0.25, math.log(0.01)], rtol=1e-6)
        assert np.array_equal(line[:7], usual_line[:7])
        assert not line[9:].any()
        assert np.array_equal(seen.reshape(33, 25)[:-1], usual.reshape(33, 25)[:-1])
    filters = gym.make(LR, observation="filters", **changed)
    assert filters.unwrapped.screen_shape == (32, 25)
