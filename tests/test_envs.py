"""The single environments: every id by the rules of Gymnasium and Stable-Baselines3, and what an episode gives."""

import copy
import math
import subprocess
import sys
import warnings
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3.common.env_checker
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, load_env_creator, registry
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv
from gymnasium.wrappers import FrameStackObservation, RecordVideo
from helpers import FIXED_IDS, SHAPES, SHORT, made_arrays, made_deep_game, made_npz, play, steps_of

from qan_gym import register_envs
from qan_gym.data.datasets import DATASETS
from qan_gym.env import QanEnv
from qan_gym.info import Score
from qan_gym.registration import ENTRY_POINTS
from qan_gym.tasks import TASKS
from qan_gym.utils.files import save_arrays
from qan_gym.utils.validation import shown

LR, MINIBATCH, CIFAR = "QanLR-MNIST5k-v1", "QanMinibatch-MNIST5k-v1", "QanLR-CIFAR10-v0"
RENDER_MODES = [None, *QanEnv.metadata["render_modes"]]
# Each render mode with some id and each id with some mode; the other pairs are slow.
IDS_AND_MODES = [
    pytest.param(env_id, mode, marks=[] if mode == RENDER_MODES[number % 4] else [pytest.mark.slow])
    for number, env_id in enumerate(FIXED_IDS)
    for mode in RENDER_MODES
]
TEST_KEYS = {"test_loss", "test_accuracy"}
SECTIONS = (
    "Description",
    "Action Space",
    "Observation Space",
    "Rewards",
    "Starting State",
    "Episode End",
    "Arguments",
    "Version History",
)


def made_mnist():
    """900 images in the place of the full MNIST."""
    return made_arrays(n_train=900, n_test=100)


def made_cifar10():
    """270 training images of 32x32 in colour in the place of CIFAR-10."""
    return made_arrays(n_train=300, n_test=50, shape=(32, 32, 3))


@pytest.fixture(params=FIXED_IDS)
def env_id(request, monkeypatch):
    """Every registered id; with made data in the place of MNIST and CIFAR-10, which are large and may be missing."""
    monkeypatch.setitem(DATASETS, "mnist", made_mnist)
    monkeypatch.setitem(DATASETS, "cifar10", made_cifar10)
    return request.param


@pytest.fixture
def as_registered(env_id, reference_file):
    """No arguments but those of the id; with made data, a reference that need not be trained first, or none."""
    if env_id == CIFAR:
        return {"network": "resnet-8", "batch_size": 16, "reference": None}  # the small one of its networks
    return {} if TASKS[env_id].dataset == "mnist5k" else {"reference": reference_file}


@pytest.fixture
def short_game(env_id):
    """Arguments of an episode of 20 mini-batches of any id."""
    return SHORT | ({"network": "resnet-8"} if env_id == CIFAR else {})


@pytest.fixture
def short(tmp_path):
    """Arguments of a game on 90 made images: an episode of 8 mini-batches."""
    return {"dataset": made_npz(tmp_path / "made.npz"), **SHORT}


# --- registration ---------------------------------------------------------------------------------------------------


def test_the_registry():
    assert set(ENTRY_POINTS) == set(TASKS)
    assert set(ENTRY_POINTS) == {name for name in registry if name.startswith("Qan")}
    for env_id, entry_point in ENTRY_POINTS.items():
        assert isinstance(entry_point, str)
        assert registry[env_id].max_episode_steps is None


def test_registration_is_idempotent():
    before = {env_id: registry[env_id] for env_id in ENTRY_POINTS}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register_envs()
    assert all(registry[env_id] is spec for env_id, spec in before.items())


def run_python(code: str) -> str:
    """The output of a fresh process."""
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_is_cheap():
    code = (
        "import qan_gym, sys; print([name for name in ('torch', 'torchvision', 'matplotlib') if name in sys.modules])"
    )
    assert run_python(code).strip() == "[]"


@pytest.mark.slow  # spawned workers are such processes too
def test_make_with_the_module_in_the_id():
    """In a process that has not imported qan_gym; the numbers are the same as here."""
    code = f"import gymnasium as gym; env = gym.make('qan_gym:{LR}'); env.reset(seed=5); print(repr(env.step(0)[1]))"
    env = gym.make(LR)
    env.reset(seed=5)
    assert float(run_python(code)) == pytest.approx(env.step(0)[1], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("env_id", [LR, CIFAR])
def test_spawned_workers(env_id, tmp_path):
    """Two spawned workers; each gives what the single environment with its seed gives."""
    arguments = made_deep_game(tmp_path) | {"batch_size": 4} if env_id == CIFAR else {}
    make_with_module = partial(gym.make, f"qan_gym:{env_id}", **arguments)
    envs = AsyncVectorEnv([make_with_module] * 2, context="spawn")
    try:
        first, _ = envs.reset(seed=3)
        second, rewards, *_ = envs.step(np.array([0, 1]))
    finally:
        envs.close()
    for row, action in enumerate((0, 1)):
        env = make_with_module()
        np.testing.assert_allclose(first[row], env.reset(seed=3 + row)[0], atol=1e-6)
        observation, reward, *_ = env.step(action)
        np.testing.assert_allclose(second[row], observation, atol=1e-5)
        assert rewards[row] == pytest.approx(reward, abs=1e-5)


def test_spec_serialises(env_id, short_game):
    """To JSON and back, with changed arguments: the same configuration and the same episode."""
    arguments = {**short_game, "observation": "filters", "reward": "inverse-loss"}
    env = gym.make(env_id, **arguments)
    text = env.spec.to_json()
    again = gym.make(EnvSpec.from_json(text))
    assert again.spec.to_json() == text
    assert again.unwrapped.config == env.unwrapped.config
    assert again.spec.kwargs == {"env_id": env_id, **arguments}
    for one, other in zip(play(env, steps=1), play(again, steps=1), strict=True):
        assert np.array_equal(one[0], other[0])
        assert one[1:] == other[1:]


# --- the checkers ---------------------------------------------------------------------------------------------------


def test_gymnasium_check_env(env_id, as_registered):
    """Without rendering; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(env_id, disable_env_checker=True, **as_registered)
        check_env(env.unwrapped, skip_render_check=True)


@pytest.mark.parametrize(
    ("env_id", "render_mode"),
    [
        pytest.param(env_id, mode, marks=[] if (env_id, mode) == (LR, "rgb_array") else [pytest.mark.slow])
        for env_id in FIXED_IDS
        for mode in RENDER_MODES
    ],
    indirect=["env_id"],
)
def test_gymnasium_check_env_with_rendering(env_id, as_registered, render_mode):
    """Without and with each render mode of the metadata; it makes environments of all modes besides."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(env_id, render_mode=render_mode, disable_env_checker=True, **as_registered)
        check_env(env.unwrapped)


@pytest.mark.parametrize(("env_id", "render_mode"), IDS_AND_MODES, indirect=["env_id"])
def test_stable_baselines3_check_env(env_id, as_registered, render_mode):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(env_id, render_mode=render_mode, **as_registered)
        stable_baselines3.common.env_checker.check_env(env, warn=True, skip_render_check=False)


@pytest.mark.parametrize(
    "render_mode",
    [pytest.param(mode, marks=[] if mode == "rgb_array" else [pytest.mark.slow]) for mode in RENDER_MODES],
)
def test_checkers_of_other_arguments(render_mode, short):
    """A continuous action, another observation, and a data set from a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        arguments = {**short, "continuous": True, "observation": "filters", "render_mode": render_mode}
        env = gym.make(LR, disable_env_checker=True, **arguments)
        check_env(env.unwrapped)
        stable_baselines3.common.env_checker.check_env(env, warn=True, skip_render_check=False)


def test_render_modes():
    """Those of the metadata."""
    assert set(QanEnv.metadata["render_modes"]) == {"rgb_array", "human", "ansi"}
    assert QanEnv.metadata["render_fps"] > 0


def test_full_mnist_as_registered(mnist_root):
    """The ids as they are, with the reference weights of the package: lengths, pulled weights, a first step."""
    for env_id, length, weights in (
        ("QanLR-MNIST-v0", 110_000, ["conv1.weight", "conv2.weight", "linear1.weight", "linear2.weight"]),
        ("QanMinibatch-MNIST-v0", 6_240, ["conv1.weight"]),
    ):
        env = gym.make(env_id)
        assert env.unwrapped.training.parts.budget == length
        assert env.unwrapped.training.pull.names == weights
        assert env.unwrapped.reference is not None
        (_, info), step = play(env, steps=1)
        assert env.observation_space.contains(step[0])
        assert info["validation_loss"] == pytest.approx(math.log(10), abs=0.1)  # an untrained network
        assert step[4]["batch"] == 1


@pytest.fixture
def cifar10_env(tmp_path, monkeypatch):
    """The id for CIFAR-10 with made data and another reference, otherwise as registered."""
    monkeypatch.setitem(DATASETS, "cifar10", made_cifar10)
    other = gym.make(CIFAR, meta_momentum=None).unwrapped
    other.reset(seed=1)
    save_arrays(tmp_path / "reference.safetensors", other.weights(), {})
    return gym.make(CIFAR, reference=str(tmp_path / "reference.safetensors"))


def test_cifar10_as_registered(cifar10_env):
    """NIN, mini-batches of 128, and the pull on its convolutions for 100 of them."""
    training = cifar10_env.unwrapped.training
    assert training.config.network == "nin"
    assert training.parts.budget == 5 * (270 // 128)
    assert training.pull.names == [f"conv{number}.weight" for number in range(1, 10)]
    assert (training.pull.strength, training.pull.batches) == (0.01, 100)


@pytest.mark.slow
def test_the_first_step_of_cifar10_as_registered(cifar10_env):
    (_, info), step = play(cifar10_env, steps=1)
    assert cifar10_env.observation_space.contains(step[0])
    assert info["validation_loss"] == pytest.approx(math.log(10), abs=0.5)
    assert step[4]["batch"] == 1


# --- an episode -----------------------------------------------------------------------------------------------------


def test_spaces(env_id):
    rows, columns = (192, 192) if env_id == CIFAR else (32, 25)
    env = gym.make(env_id, meta_momentum=None)
    assert env.observation_space.dtype == np.float32
    assert env.observation_space.shape == ((rows + 1) * columns,)
    assert env.unwrapped.screen_shape == (rows + 1, columns)
    assert env.action_space == spaces.Discrete(3 if "LR" in env_id else 10)
    filters = gym.make(env_id, observation="filters", meta_momentum=None)
    assert filters.observation_space.shape == (rows * columns,)
    assert filters.unwrapped.screen_shape == (rows, columns)


def test_continuous_space():
    env = gym.make(LR, continuous=True)
    assert env.action_space == spaces.Box(-1, 1, (1,), np.float32)


@pytest.mark.parametrize(
    ("env_id", "observation"),
    [
        *((env_id, "screen") for env_id in FIXED_IDS),
        *((env_id, "filters") for env_id in (LR, CIFAR)),
        *(pytest.param(env_id, "filters", marks=pytest.mark.slow) for env_id in FIXED_IDS if "MNIST-" in env_id),
        pytest.param(MINIBATCH, "filters", marks=pytest.mark.slow),
    ],
    indirect=["env_id"],
)
def test_a_whole_episode(env_id, observation, short_game):
    """One epoch of 200 images, random actions: types, ranges and places of all that is returned."""
    env = gym.make(env_id, **short_game, observation=observation)
    shown, rows = ("block3.conv2.weight", 192) if env_id == CIFAR else ("conv1.weight", 32)
    _, info = env.reset(seed=1)
    keys = set(info)
    for number, (screen, reward, terminated, truncated, info) in enumerate(steps_of(env), start=1):
        assert env.observation_space.contains(screen)
        assert type(reward) is float
        assert type(terminated) is type(truncated) is bool
        assert math.isfinite(reward)
        last = number == 20
        assert truncated == last
        assert not terminated
        assert set(info) == keys
        assert {type(value) for value in info.values()} == {np.float64, Score, int, bool}
        assert all(math.isfinite(value) == (last or name not in TEST_KEYS) for name, value in info.items())
        assert info["batch"] == number
        assert info["epoch"] == number // 20
        assert reward == pytest.approx(sum(value for name, value in info.items() if name.startswith("reward_")))
        filters = env.unwrapped.weights()[shown].reshape(rows, -1)
        assert np.array_equal(screen.reshape(env.unwrapped.screen_shape)[:rows], filters)
    assert number == 20
    assert not any("time" in name or "second" in name for name in info), "info must not hold a time"


def test_info_keys(env_id, short_game):
    env = gym.make(env_id, **short_game)
    _, info = env.reset(seed=0)
    named = {"learning_rate", "loss", "smoothed_loss", "epoch", "batch", "diverged", "early_stopped"} | TEST_KEYS
    assert set(info) == named | {"reward_log_loss", "reward_divergence", "validation_loss", "validation_accuracy"}
    assert info["learning_rate"] == (0.1 if env_id == CIFAR else 0.05)
    assert type(info["epoch"]) is type(info["batch"]) is int
    assert type(info["diverged"]) is type(info["early_stopped"]) is bool


def test_the_return_telescopes(short):
    """log-loss: the rewards of an episode sum to ln(initial loss / final validation loss)."""
    returned = play(gym.make(LR, **short))
    total = sum(step[1] for step in returned[1:])
    expected = math.log(returned[0][1]["validation_loss"] / returned[-1][4]["validation_loss"])
    assert total == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("env_class", [LR, MINIBATCH])
def test_seeds(env_class, short):
    """The same seed gives the same episode; resets without a seed follow a sequence that the seed fixes."""
    env = gym.make(env_class, **short)
    screens = [env.reset(seed=4)[0], env.reset()[0], env.reset()[0]]
    again = gym.make(env_class, **short)
    for screen, other in zip(screens, [again.reset(seed=4)[0], again.reset()[0], again.reset()[0]], strict=True):
        assert np.array_equal(screen, other)
    assert not np.array_equal(screens[0], screens[1])
    assert not np.array_equal(screens[1], screens[2])
    assert not np.array_equal(screens[0], env.reset(seed=5)[0])
    for one, other in zip(play(env, seed=4), play(again, seed=4), strict=True):
        assert np.array_equal(one[0], other[0])
        assert one[1:] == other[1:]


def test_observations_are_not_reused(short):
    env = gym.make(LR, **short)
    first, _ = env.reset(seed=0)
    kept = first.copy()
    second = env.step(0)[0]
    assert np.array_equal(first, kept)
    second[:] = 0
    assert np.abs(env.unwrapped.weights()["conv1.weight"]).max() > 0


@pytest.mark.parametrize(
    "options",
    [{"no_such_option": 1}, {"sampler": "sorted"}, {"sampler": None}, {"sampler": "shuffled", "seed": 3}],
)
def test_unknown_reset_option(options, short):
    env = gym.make(MINIBATCH, **short)
    with pytest.raises(ValueError, match="unknown reset option") as caught:
        env.reset(seed=0, options=options)
    assert [name for name in options if name in str(caught.value)]


def test_shuffled_option(short):
    """Shuffled SGD: the actions change nothing and every image comes once; the next episode is the game again."""
    env = gym.make(MINIBATCH, **short)
    batches = []
    for action in (0, 5):
        env.reset(seed=2, options={"sampler": "shuffled"})
        batches.append([])
        for _ in range(8):
            env.step(action)
            batches[-1] += env.unwrapped.batch_indices.flatten().tolist()
    assert batches[0] == batches[1]
    assert sorted(batches[0]) == list(range(80))
    env.reset(seed=2, options={"sampler": "game"})
    env.step(5)
    labels = env.unwrapped.split("train")[1][env.unwrapped.batch_indices[0]]
    assert sorted(labels.tolist())[-1] == 5
    assert (labels == 0).sum() >= 8  # the remembered actions are class 0 but for the newest; a class has 8 images


INVALID = {
    LR: [3, -1, 1.5, "raise", None, np.array([0, 1]), np.nan, np.float32(1), [0]],
    MINIBATCH: [10, -1, 0.5, "seven", None, np.array([[1]]), np.inf],
}


@pytest.mark.parametrize(("env_id", "action"), [(name, action) for name, some in INVALID.items() for action in some])
def test_invalid_action(env_id, action, tmp_path):
    """ValueError, and the episode continues as without it."""
    path = made_npz(tmp_path / "made.npz")
    env, witness = (gym.make(env_id, dataset=path, disable_env_checker=True, **SHORT) for _ in range(2))
    env.reset(seed=0)
    witness.reset(seed=0)
    with pytest.raises(ValueError, match="action must be in Discrete"):
        env.step(action)
    assert np.array_equal(env.step(1)[0], witness.step(1)[0])


@pytest.mark.parametrize(
    "action",
    [[0.1, 0.2], 0.5, [[0.5]], [math.nan], [math.inf], "up", None, [10**5000], 10**5000, {}, [{}]],
    ids=shown,
)
def test_invalid_continuous_action(action, short):
    env = gym.make(LR, continuous=True, disable_env_checker=True, **short)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action|convert"):
        env.step(action)
    assert env.step([0.5])[4]["batch"] == 1


@pytest.mark.parametrize("ending", ["reset", "set_state"])
def test_the_callers_action_is_not_changed(ending, short):
    """An agent may keep the array of its action, for example in a replay buffer."""
    env = gym.make(LR, continuous=True, **short).unwrapped
    env.reset(seed=0)
    state = env.get_state()
    action = np.array([0.25], np.float32)
    env.step(action)
    if ending == "reset":
        env.reset(seed=0)
    else:
        env.set_state(state)
    assert action.tolist() == [0.25]


def test_the_observation_does_not_follow_the_callers_array(short):
    """The last action is the one that was given, also when the agent reuses its array for the next one."""
    env = gym.make(LR, continuous=True, **short).unwrapped
    env.reset(seed=0)
    action = np.array([0.25], np.float32)
    screen = env.step(action)[0].copy()
    action[0] = -0.75
    assert env.get_state().arrays["last_action"].tolist() == [0.25]
    assert screen.reshape(env.screen_shape)[-1, 4] == 0.25


@pytest.mark.parametrize("action", [1, np.int64(1), np.int32(1), np.uint8(1), np.array(1)])
def test_every_kind_of_integer_is_an_action(action, short):
    """Those of Python and NumPy, and arrays without axes."""
    env, witness = (gym.make(LR, disable_env_checker=True, **short) for _ in range(2))
    env.reset(seed=0)
    witness.reset(seed=0)
    assert env.step(action)[4]["learning_rate"] == witness.step(1)[4]["learning_rate"] == pytest.approx(0.045)


@pytest.mark.parametrize("render_mode", [None, "ansi"])
def test_steps_outside_an_episode_are_refused(render_mode, short):
    env = gym.make(LR, render_mode=render_mode, disable_env_checker=True, **short).unwrapped
    with pytest.raises(ResetNeeded):
        env.step(0)
    if render_mode is not None:
        with pytest.raises(ResetNeeded):
            env.render()
    env.reset(seed=0)
    while not env.step(0)[3]:
        pass
    with pytest.raises(ResetNeeded):
        env.step(0)
    env.reset()
    env.step(0)


# --- rendering ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", [LR, MINIBATCH, CIFAR], indirect=True)
def test_frames(env_id, short_game):
    """Large enough to read, and every step changes the picture."""
    env = gym.make(env_id, render_mode="rgb_array", **short_game)
    env.reset(seed=0)
    frames = [env.render()]
    for _ in range(2):
        env.step(0)
        frames.append(env.render())
    for frame in frames:
        assert frame.dtype == np.uint8
        assert frame.shape[0] >= 480
        assert frame.shape[1] >= 640
        assert frame.shape[2:] == (3,)
        assert len(np.unique(frame)) > 50, "the picture is empty"
    assert frames[0].shape == frames[1].shape
    assert (frames[0] != frames[1]).any()
    assert (frames[1] != frames[2]).any()
    assert np.array_equal(frames[2], env.render()), "rendering changed something"
    env.reset(seed=0)
    assert np.array_equal(frames[0], env.render()), "the last episode is still in the picture"


def test_ansi(env_id, short_game):
    env = gym.make(env_id, render_mode="ansi", **short_game)
    _, info = env.reset(seed=0)
    texts = [env.render()]
    for _ in range(2):
        *_, info = env.step(1)
        texts.append(env.render())
    assert all(isinstance(text, str) and text and "\n" not in text for text in texts)
    assert len(set(texts)) == 3
    assert f"{info['loss']:.4f}" in texts[-1]
    assert f"{info['learning_rate']:.3g}" in texts[-1]


@pytest.mark.parametrize("env_id", [LR, CIFAR], indirect=True)
def test_a_diverged_episode_can_be_shown(env_id, short_game):
    """Weights that are not numbers give a picture and a line, without a warning."""
    for render_mode in ("rgb_array", "ansi"):
        env = gym.make(env_id, render_mode=render_mode, **short_game)
        env.reset(seed=0)
        training = env.unwrapped.training
        training.run.params[training.network.shown][:] = math.nan
        screen, reward, terminated, _, info = env.step(0)
        assert terminated
        assert info["diverged"]
        assert np.isfinite([*screen, reward, *info.values()]).all()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert len(env.render()) > 0


@pytest.mark.parametrize("baseline_run", [False, True])
def test_rendering_changes_nothing(baseline_run, short):
    plain = play(gym.make(LR, **short))
    env = gym.make(LR, render_mode="rgb_array", baseline_run=baseline_run, **short)
    env.reset(seed=0)
    env.render()
    shown = play(env)
    for one, other in zip(plain, shown, strict=True):
        assert np.array_equal(one[0], other[0])


@pytest.mark.parametrize("render_mode", ["rgb_array", "ansi"])
def test_render_after_a_restore(render_mode, short):
    """A state that was saved without a render mode can be drawn where it is restored."""
    plain = gym.make(LR, **short).unwrapped
    plain.reset(seed=0)
    plain.step(0)
    env = gym.make(LR, render_mode=render_mode, **short).unwrapped
    env.set_state(plain.get_state())
    assert len(env.render()) > 0
    env.step(0)
    assert len(env.render()) > 0


def test_record_video(short, tmp_path):
    pytest.importorskip("moviepy")
    env = RecordVideo(gym.make(LR, render_mode="rgb_array", **short), str(tmp_path / "video"))
    play(env)
    env.close()
    (video,) = (tmp_path / "video").glob("*.mp4")
    assert video.stat().st_size > 1_000


def test_frame_stack(short):
    """The last four screens, as in the paper, the newest last."""
    env = FrameStackObservation(gym.make(LR, **short), 4)
    assert env.observation_space.shape == (4, 825)
    stack, _ = env.reset(seed=0)
    plain = gym.make(LR, **short)
    screens = [plain.reset(seed=0)[0]]
    assert np.array_equal(stack, np.stack([screens[0]] * 4))
    for action in (0, 1, 2, 0, 1):
        stack = env.step(action)[0]
        screens.append(plain.step(action)[0])
        assert stack.dtype == np.float32
    assert np.array_equal(stack, np.stack(screens[-4:]))


# --- inspection -----------------------------------------------------------------------------------------------------


def overwrite(value) -> None:
    """Overwrite an array, or every array of a dict or tuple."""
    if isinstance(value, np.ndarray):
        value.fill(3)
    else:
        for part in value.values() if isinstance(value, dict) else value:
            overwrite(part)


def test_inspection(env_id, short_game):
    """Shapes and types as documented; the arrays are copies, so overwriting them does not change the training."""
    env, witness = (gym.make(env_id, **short_game | {"batches_per_action": 4}).unwrapped for _ in range(2))
    assert env.batch_indices.shape == (4, 10)
    for some in (env, witness):
        some.reset(seed=0)
        some.step(1)
    shapes = {name: value.shape for name, value in env.weights().items()}
    if env_id == CIFAR:
        assert shapes["conv1.weight"] == (16, 3, 3, 3)
        assert shapes["block3.norm2.running_var"] == (64,)
    else:
        assert shapes == SHAPES
    assert all(value.dtype == np.float32 for value in env.weights().values())
    assert env.batch_indices.shape == (4, 10)
    assert env.batch_indices.dtype == np.int64
    assert len(set(env.batch_indices.flatten().tolist())) == 40
    assert 0 <= env.batch_indices.min() <= env.batch_indices.max() < 200
    for name in ("train", "validation", "test"):
        images, labels = env.split(name)
        assert images.shape == (len(labels), 3 if env_id == CIFAR else 1, 32, 32)
        assert images.dtype == np.float32
        assert labels.dtype == np.int64
        assert labels.shape == (len(labels),)
        assert set(labels.tolist()) == set(range(10))
    assert len(env.split("train")[1]) == 200

    before = {name: copy.deepcopy(read(env)) for name, read in READS.items()}
    for name, read in READS.items():
        overwrite(read(env))
        assert_same(read(env), before[name])
    assert np.array_equal(env.step(1)[0], witness.step(1)[0])


READS = {
    "weights": lambda env: env.weights(),
    "batch_indices": lambda env: env.batch_indices,
    "train": lambda env: env.split("train"),
    "validation": lambda env: env.split("validation"),
    "test": lambda env: env.split("test"),
}


def assert_same(one, other) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = list(one.values()), list(other.values())
    if isinstance(one, np.ndarray):
        assert np.array_equal(one, other)
    else:
        for mine, yours in zip(one, other, strict=True):
            assert np.array_equal(mine, yours)


def test_reference_is_a_copy():
    env, witness = gym.make(LR, meta_momentum=1.0).unwrapped, gym.make(LR, meta_momentum=1.0).unwrapped
    reference = env.reference
    assert {name: value.shape for name, value in reference.items()} == SHAPES
    assert all(value.dtype == np.float32 for value in reference.values())
    kept = copy.deepcopy(reference)
    overwrite(reference)
    assert_same(env.reference, kept)
    env.reset(seed=0)
    witness.reset(seed=0)
    assert np.array_equal(env.step(1)[0], witness.step(1)[0])


def test_split_that_is_not_there(short):
    env = gym.make(LR, **short).unwrapped
    with pytest.raises(ValueError, match=r"validate.*train, validation, test"):
        env.split("validate")


# --- devices --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu(short):
    with pytest.raises(ValueError, match="'cuda' cannot be used here"):
        gym.make(LR, device="cuda", **short)


def test_unknown_device(short):
    with pytest.raises(ValueError, match="'gpu7'"):
        gym.make(LR, device="gpu7", **short)


def test_an_unknown_device_is_refused_first(short, monkeypatch, tmp_path):
    """Before a reference is trained, which may take minutes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("QAN_GYM_DATA", raising=False)
    monkeypatch.setattr("qan_gym.core.references.train_reference", lambda *_args: pytest.fail("trained a reference"))
    with pytest.raises(ValueError, match="'gpu7'"):
        gym.make(LR, device="gpu7", **short | {"meta_momentum": 0.001})


@pytest.mark.cuda
@pytest.mark.parametrize("env_id", [LR, MINIBATCH])
def test_cuda_agrees_with_cpu(env_id, short, reference_file):
    """The same data exactly; the numbers within the roundings of two devices over 8 mini-batches."""
    arguments = {**short, "meta_momentum": 0.01, "reference": reference_file, "distillation": 0.1}
    on_cpu, on_gpu = (gym.make(env_id, device=device, **arguments) for device in ("cpu", "cuda"))
    on_cpu.reset(seed=0)
    on_gpu.reset(seed=0)
    for number in range(8):
        one, other = on_cpu.step(number % 3), on_gpu.step(number % 3)
        assert isinstance(other[0], np.ndarray)
        assert np.array_equal(on_cpu.unwrapped.batch_indices, on_gpu.unwrapped.batch_indices)
        np.testing.assert_allclose(one[0], other[0], atol=2e-2)
        assert one[1] == pytest.approx(other[1], abs=2e-2)
        assert one[4].keys() == other[4].keys()
        assert one[4]["loss"] == pytest.approx(other[4]["loss"], rel=2e-2)
    for name, value in on_cpu.unwrapped.weights().items():
        np.testing.assert_allclose(value, on_gpu.unwrapped.weights()[name], atol=2e-2)
    fresh = gym.make(env_id, device="cuda", **arguments).unwrapped
    fresh.set_state(on_gpu.unwrapped.get_state())
    assert_same(fresh.weights(), on_gpu.unwrapped.weights())


# --- documentation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", list(ENTRY_POINTS))
def test_docstring_sections(env_id):
    """The sections of Gymnasium, in its order, each with a heading and text; and the id."""
    page = load_env_creator(ENTRY_POINTS[env_id]).__doc__
    assert f"`{env_id}`" in page
    named = []
    for part in page.split("## ")[1:]:
        heading, _, text = part.partition("\n")
        assert text.strip(), f"nothing under {heading}"
        named += [section.strip() for section in heading.split(",")]
    assert [section for section in named if section in SECTIONS] == list(SECTIONS)


# --- when the validation loss is measured ---------------------------------------------------------------------------


def test_validate_every_in_info_observation_and_reward(short):
    kwargs = short | {"epochs": 5, "batches_per_action": 2}  # 5 epochs of 8 mini-batches
    env = gym.make(LR, validate_every=4, reward="validation-loss", **kwargs)
    plain = gym.make(LR, **kwargs)
    _, first = env.reset(seed=0)
    plain.reset(seed=0)
    losses, total = [first["validation_loss"]], 0.0
    for number in range(20):
        shown, reward, _, _, info = env.step(2)
        score_line = shown.reshape(env.unwrapped.screen_shape)[-1]
        plain_shown, _, _, _, plain_info = plain.step(2)
        assert info["loss"] == plain_info["loss"], "measuring changed the training"
        assert (info["validation_loss"] != losses[-1]) == (number % 2 == 1)
        change = math.log(info["validation_loss"]) - math.log(losses[-1])
        assert score_line[5] == pytest.approx(math.log(info["validation_loss"]), rel=1e-5)
        assert score_line[6] == pytest.approx(change, abs=1e-5)
        assert reward == pytest.approx(-change, abs=1e-5)
        assert (plain_shown.reshape(plain.unwrapped.screen_shape)[-1, 5:] == 0).all()
        losses.append(info["validation_loss"])
        total += reward
    assert total == pytest.approx(math.log(first["validation_loss"] / info["validation_loss"]), abs=1e-4)
    assert info["validation_loss"] == plain_info["validation_loss"]
