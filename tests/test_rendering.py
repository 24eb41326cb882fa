"""Rendering: frames, tiles, windows, the history and the baseline run, none of which changes the training."""

import copy
import weakref
from functools import partial
from itertools import pairwise

import gymnasium as gym
import matplotlib
import numpy as np
import pytest
import window_backend
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from helpers import SHORT, TINY, evaluated_splits, made_npz
from matplotlib import pyplot
from matplotlib.text import Text

import qan_gym
from qan_gym import rendering
from qan_gym.core.observation import filter_pictures
from qan_gym.env import QanEnv
from qan_gym.games import Game
from qan_gym.rendering.baseline_run import BaselineRun
from qan_gym.rendering.frames import FrameContent, FrameRenderer
from qan_gym.rendering.history import History, class_columns

LR, MINIBATCH = "QanLR-MNIST5k-v1", "QanMinibatch-MNIST5k-v1"
INFO = {"batch": 0, "learning_rate": 0.05, "loss": 2.3, "smoothed_loss": 2.3, "validation_loss": 2.3}
INFO |= {"validation_accuracy": 0.1}


@pytest.fixture
def windows(monkeypatch):
    """A list of the frames that windows have shown."""
    pyplot.close("all")  # of other tests
    monkeypatch.setattr(window_backend, "drawn", [])
    return window_backend.drawn


def frames(env, count, action=0):
    """The frames of the first steps of an episode."""
    env.reset(seed=0)
    seen = []
    for _ in range(count):
        env.step(action)
        seen.append(env.render())
    return seen


def frame_after(env, count, action=0):
    """The frame after some steps of an episode."""
    env.reset(seed=0)
    for _ in range(count):
        env.step(action)
    return env.render()


def history_of(env) -> History:
    """The history of an environment that is rendered."""
    return History(env.unwrapped.training, env.unwrapped.get_state().arrays["history"])


def content_of(env, **more) -> FrameContent:
    """The content of a frame of an environment that is rendered."""
    training = env.unwrapped.training
    return FrameContent(filter_pictures(*training.network_of(0)), history_of(env), **more)


def different(one, other, top, bottom, left, right):
    """Whether two frames differ in a part, given in shares of height and width."""
    height, width = one.shape[:2]
    part = np.s_[int(top * height) : int(bottom * height), int(left * width) : int(right * width)]
    return (one[part] != other[part]).any()


# Parts of a frame, as `different` takes them.
CURVE, STRIP, VALUES = (0.1, 0.35, 0.48, 1.0), (0.82, 0.97, 0.48, 1.0), (0.7, 1.0, 0.0, 0.45)


# --- history --------------------------------------------------------------------------------------------------------


def test_a_history_grows_and_continues():
    """Beyond the memory that it begins with, and from saved rows."""
    training = gym.make(MINIBATCH, **SHORT).unwrapped.training
    history = History(training)
    history.start(INFO)
    for step in range(1_000):
        history.add(INFO | {"batch": step + 1, "validation_accuracy": 0.2}, step % 10, np.eye(10)[step % 10])
    again = History(training, history.rows().copy())
    again.add(INFO | {"batch": 1_001, "validation_accuracy": 0.3}, 1, np.eye(10)[1])
    assert len(history) == 1_001
    assert len(again) == 1_002
    assert np.array_equal(again.curve("batch"), np.arange(1_002))
    assert np.array_equal(again.shares().argmax(axis=1)[:1_000], np.arange(1_000) % 10)
    assert np.array_equal(again.played()[:1_000, 0], np.arange(1_000) % 10)
    again.start(INFO)
    assert len(again) == 1
    assert again.rows()[0, len(again.scalars)] == -1  # no action


def test_a_history_of_another_game_is_refused():
    with pytest.raises(ValueError, match="history"):
        History(gym.make(MINIBATCH, **SHORT).unwrapped.training, np.zeros((4, 7)))


def test_the_shares_are_those_of_the_mini_batch():
    """Of the images that were trained on, drawn by the roulette or by shuffled SGD."""
    env = gym.make(MINIBATCH, render_mode="rgb_array", train_size=400, batch_size=20, epochs=1, meta_momentum=None)
    labels = env.unwrapped.split("train")[1]
    for sampler in ("game", "shuffled"):
        env.reset(seed=0, options={"sampler": sampler})
        for action in (3, 3, 7, 1):
            env.step(action)
            classes = labels[env.unwrapped.batch_indices].reshape(-1)
            expected = np.bincount(classes, minlength=10) / len(classes)
            assert np.allclose(history_of(env).shares()[-1], expected)
            assert np.allclose(class_columns(env.unwrapped.training)[0], expected)


# --- the baseline run -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kwargs", [{}, {"continuous": True}, {"schedule": "cosine"}])
def test_the_baseline_run_has_a_constant_learning_rate(kwargs, reference_file):
    """Step by step what the environment gives to the constant learning rate, with the same seed and pull."""
    arguments = {**SHORT, "batches_per_action": 2, "meta_momentum": 0.1, "reference": reference_file}
    env = gym.make(LR, **arguments, **kwargs).unwrapped
    env.reset(seed=1)
    baseline = BaselineRun(env.training)
    env.step(env.action_space.sample())
    constant = gym.make(LR, **arguments)
    first = constant.reset(seed=1)[1]["smoothed_loss"]
    batches, losses = baseline.until(10)
    assert batches.tolist() == [0, 2, 4, 6, 8, 10]
    assert losses.tolist() == [first, *(constant.step(2)[4]["smoothed_loss"] for _ in range(5))]


def test_the_baseline_run_has_the_reference_of_its_episode():
    """With "previous", the final weights of the last episode, also when those of this episode have replaced them."""
    arguments = {**SHORT, "meta_momentum": 0.5, "pull_epochs": 6, "reference": "previous"}
    env, constant = (gym.make(LR, **arguments).unwrapped for _ in range(2))
    for episode in (0, 1):
        for one in (env, constant):
            one.reset(seed=0 if episode == 0 else None)
        baseline, expected, over = BaselineRun(env.training), [], False
        while not over:
            over = any(env.step(0)[2:4])
            info = constant.step(2 if episode else 0)[4]  # the first episode is the same: its weights are the reference
            expected.append(info["smoothed_loss"])
    assert baseline.until(20)[1][1:].tolist() == expected


def test_the_baseline_run_of_the_mini_batch_game_is_shuffled_sgd():
    arguments = {"train_size": 400, "batch_size": 20, "epochs": 1, "meta_momentum": None}
    env, shuffled = (gym.make(MINIBATCH, **arguments).unwrapped for _ in range(2))
    env.reset(seed=0)
    baseline = BaselineRun(env.training)
    env.step(4)
    batches, losses = baseline.until(1)
    shuffled.reset(seed=0, options={"sampler": "shuffled"})
    assert batches.tolist() == [0, 1]
    assert losses[1] == shuffled.step(0)[4]["smoothed_loss"]


def test_the_baseline_run_is_trained_only_as_far_as_it_is_drawn(monkeypatch):
    asked = []
    until = BaselineRun.until

    def spy(self, batch):
        asked.append((self, self.training is None, batch))
        return until(self, batch)

    monkeypatch.setattr(BaselineRun, "until", spy)
    env = gym.make(LR, render_mode="rgb_array", baseline_run=True, **SHORT).unwrapped
    env.reset(seed=0)
    for _ in range(4):
        env.step(0)
    assert not asked, "it was trained before a frame was drawn"
    env.render()
    ((baseline, is_new, batch),) = asked
    assert (is_new, batch) == (True, 4)
    assert baseline.training.run.batch.tolist() == [4]
    assert baseline.until(2)[0].tolist() == [0, 1, 2]
    assert baseline.training.run.batch.tolist() == [4]


def test_the_baseline_run_is_drawn_and_changes_nothing():
    """Behind the loss, with its name in the legend; the training is the same with and without it."""
    plain, compared = (
        gym.make(LR, render_mode="rgb_array", baseline_run=with_it, **SHORT) for with_it in (False, True)
    )
    one, other = frame_after(plain, 6), frame_after(compared, 6)
    assert different(one, other, 0.35, 0.75, 0.45, 1.0)
    assert not different(one, other, 0.0, 0.3, 0.0, 1.0)
    for name, value in plain.unwrapped.weights().items():
        assert np.array_equal(value, compared.unwrapped.weights()[name])


def test_a_restored_episode_has_its_baseline_run():
    env = gym.make(LR, render_mode="rgb_array", baseline_run=True, **SHORT).unwrapped
    seen = frame_after(env, 5)
    assert np.array_equal(copy.deepcopy(env).render(), seen)


def test_a_baseline_run_without_frames_is_refused():
    for render_mode in (None, "ansi"):
        with pytest.raises(ValueError, match="baseline_run=True is drawn in frames"):
            gym.make(LR, baseline_run=True, render_mode=render_mode)


def test_the_baseline_run_is_not_tested(monkeypatch):
    """The test set is not read for it."""
    env = gym.make(LR, **SHORT).unwrapped
    env.reset(seed=0)
    baseline = BaselineRun(env.training)
    baseline.until(0)
    read = evaluated_splits(monkeypatch)
    baseline.until(20)
    assert "validation" in read
    assert "test" not in read


def test_the_memory_of_the_baseline_run_is_freed(monkeypatch):
    """When the next episode begins."""
    trainings = []
    until = BaselineRun.until

    def spy(self, batch):
        curve = until(self, batch)
        trainings.append(weakref.ref(self.training))
        return curve

    monkeypatch.setattr(BaselineRun, "until", spy)
    env = gym.make(LR, render_mode="rgb_array", baseline_run=True, **SHORT).unwrapped
    env.reset(seed=0)
    env.render()
    assert trainings[0]() is not None
    env.reset()
    assert trainings[0]() is None


# --- states ---------------------------------------------------------------------------------------------------------


def test_a_state_does_not_change_with_the_episode():
    env = gym.make(LR, render_mode="rgb_array", **SHORT).unwrapped
    seen = frame_after(env, 3)
    state = env.get_state()
    env.reset(seed=1)
    env.step(1)
    env.set_state(state)
    assert np.array_equal(env.render(), seen)


def test_a_state_from_an_environment_that_is_not_rendered():
    """Its history begins where it is rendered again: with no other episode in it, and no gap that looks like a step."""
    env = gym.make(LR, render_mode="rgb_array", **SHORT).unwrapped
    frames(env, 3)
    plain = gym.make(LR, **SHORT).unwrapped
    plain.set_state(env.get_state())
    plain.reset(seed=9)
    plain.step(0)
    env.set_state(plain.get_state())
    env.step(0)
    assert history_of(env).curve("batch").tolist() == [1, 2]


@pytest.mark.parametrize("kwargs", [{"render_mode": "rgb_array", "baseline_run": True}, {"render_mode": "human"}])
def test_a_copy_is_rendered_on_its_own(kwargs, windows):
    """In its own frame, or its own window."""
    env = gym.make(LR, **kwargs, **SHORT).unwrapped
    env.reset(seed=0)
    env.render()
    fork = copy.deepcopy(env)
    env.step(0)
    fork.step(1)
    if kwargs["render_mode"] == "human":
        fork.render()
        assert len(pyplot.get_fignums()) == 2
        fork.close()
        assert len(pyplot.get_fignums()) == 1
        env.close()
    else:
        assert (env.render() != fork.render()).any()


def test_a_copy_of_a_vector_environment_is_rendered():
    envs = gym.make_vec(LR, num_envs=2, render_mode="rgb_array", **SHORT)
    envs.reset(seed=0)
    envs.step([0, 1])
    seen = envs.render()
    assert np.array_equal(copy.deepcopy(envs).render(), seen)


# --- frames ---------------------------------------------------------------------------------------------------------


def test_a_frame_does_not_depend_on_the_frames_before():
    """Although its background was drawn for an earlier one."""
    seen = frames(gym.make(LR, render_mode="rgb_array", **SHORT), 12)
    assert np.array_equal(frame_after(gym.make(LR, render_mode="rgb_array", **SHORT), 12), seen[-1])


@pytest.mark.parametrize("env_id", [LR, MINIBATCH])
def test_values_of_an_agent_are_shown(env_id):
    short = {"train_size": 400, "batch_size": 20, "epochs": 1, "meta_momentum": None, "batches_per_action": 1}
    env = gym.make(env_id, render_mode="rgb_array", **short).unwrapped
    without = frame_after(env, 3)
    values = np.linspace(1.0, 2.0, env.action_space.n)
    env.show_values(values)
    shown = env.render()
    env.show_values(values[::-1])
    turned = env.render()
    assert different(without, shown, *VALUES)
    assert different(shown, turned, *VALUES)
    assert not different(shown, turned, 0.0, 1.0, 0.46, 1.0)
    assert np.array_equal(frame_after(env, 3), without), "the next episode has the values of the last one"
    for wrong in (values[:-1], np.full_like(values, np.nan), [values]):
        with pytest.raises(ValueError, match="finite numbers, one per action"):
            env.show_values(wrong)


def test_values_need_a_finite_number_of_actions():
    env = gym.make(LR, render_mode="rgb_array", continuous=True, **SHORT).unwrapped
    with pytest.raises(ValueError, match="values are those of single actions"):
        env.show_values([0.0])


@pytest.mark.parametrize(("env_id", "kwargs"), [(LR, {}), (MINIBATCH, {}), (LR, {"continuous": True})])
def test_texts_of_a_frame_do_not_overlap(env_id, kwargs):
    """No label, title, legend or number is cut off by the edge or lies on another."""
    env = gym.make(env_id, render_mode="rgb_array", train_size=400, epochs=1, **kwargs).unwrapped
    env.reset(seed=0)
    baseline = BaselineRun(env.training)
    for _ in range(3):
        env.step(env.action_space.sample())
    values = None if "continuous" in kwargs else -1234.5 - np.arange(env.action_space.n)
    title = "QanMinibatch-MNIST5k-v1: mini-batch 3 of 40, validation accuracy 10.0%"
    require_legible(env, content_of(env, baseline=baseline.until(3), values=values, title=title))


def test_texts_of_a_tile_do_not_overlap():
    env = gym.make(LR, render_mode="rgb_array", **SHORT).unwrapped
    env.reset(seed=0)
    title = "31: mini-batch 110,000, validation accuracy 100.0%"
    require_legible(env, content_of(env, title=title), small=True)


def require_legible(env, content, small=False):
    renderer = FrameRenderer(env.training.parts, small)
    height, width = renderer.draw(content).shape[:2]
    figure = renderer.canvas(content).figure
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts_of(figure)]
    assert len(boxes) > 10
    for name, box in boxes:
        assert box.x0 >= 0, name
        assert box.y0 >= 0, name
        assert box.x1 <= width, name
        assert box.y1 <= height, name
    for number, (name, box) in enumerate(boxes):
        for other, there in boxes[number + 1 :]:
            assert not box.overlaps(there), (name, other)


def texts_of(figure):
    """All visible texts of a figure."""
    texts = list(figure.texts)
    for axes in figure.axes:
        legend = axes.get_legend()
        texts += [child for child in axes.get_children() if isinstance(child, Text)]
        texts += legend.get_texts() if legend else ()
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            low, high = sorted(axis.get_view_interval())
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            texts += [axis.label, *(tick.label1 for tick in ticks if low <= tick.get_loc() <= high)]
    return [text for text in texts if text.get_visible() and text.get_text().strip()]


def test_many_classes_are_legible(tmp_path):
    """Where not every bar has room for its number, those that have one do not overlap."""
    npz = made_npz(tmp_path / "letters.npz", n_train=520, n_test=260, n_classes=26)
    env = gym.make(MINIBATCH, render_mode="rgb_array", dataset=npz, **{**TINY, "batch_size": 26}).unwrapped
    env.reset(seed=0)
    env.step(25)
    require_legible(env, content_of(env, values=-1234.5 - np.arange(26)))


def test_an_action_beyond_its_range_is_shown_clipped():
    one, other = (gym.make(LR, render_mode="rgb_array", continuous=True, **SHORT) for _ in range(2))
    pictures = [frame_after(env, 2, np.array([value], np.float32)) for env, value in ((one, 5.0), (other, 1.0))]
    assert np.array_equal(*pictures)


@pytest.fixture(scope="module")
def training():
    """A training of the learning-rate game with a budget of 20 mini-batches."""
    return gym.make(LR, **SHORT).unwrapped.training


@pytest.mark.filterwarnings("error")
def test_weights_without_bounds_can_be_drawn(training):
    history = History(training)
    history.start(INFO)
    filters = np.array([np.inf, -np.inf, np.nan, 0.0], np.float32).reshape(1, 2, 2)
    assert FrameRenderer(training.parts).draw(FrameContent(filters, history)).shape == (720, 1080, 3)


def test_the_axis_follows_the_losses(training):
    """Every loss is within the axis, that of a diverged run too."""
    renderer, history = FrameRenderer(training.parts), History(training)
    history.start(INFO)
    content = FrameContent(np.zeros((4, 5, 5), np.float32), history)
    seen = [renderer.draw(content)]
    for batch, loss in enumerate((1e-3, 1e-9, 0.0, 1e6, 2.0), 1):
        history.add({**INFO, "batch": batch, "loss": loss, "smoothed_loss": loss}, 0)
        low, high = renderer.layout(content).loss
        assert 0 < low <= max(loss, 1e-6)
        assert high >= min(loss, 1e3)
        seen.append(renderer.draw(content))
    assert all((one != other).any() for one, other in pairwise(seen))


def test_the_axis_follows_the_learning_rate(training):
    """Also beyond the range of the task, where another game leaves it."""
    renderer, history = FrameRenderer(training.parts), History(training)
    history.start(INFO)
    content = FrameContent(np.zeros((4, 5, 5), np.float32), history)
    for batch, learning_rate in enumerate((1e-5, 0.5, 70.0), 1):
        history.add({**INFO, "batch": batch, "learning_rate": learning_rate}, 0)
        low, high = renderer.layout(content).curve
        assert low < learning_rate < high


def test_the_curves_are_as_wide_as_the_episode_so_far():
    """The budget, a fourth of it, or a fourth of that: the beginning fills the axis, and nothing lies beyond it."""
    training = gym.make(LR, epochs=25, meta_momentum=None).unwrapped.training
    assert training.parts.budget == 10_000
    renderer = FrameRenderer(training.parts)
    widths = []
    for batch in (0, 500, 700, 2_500, 2_501, 10_000):
        history = History(training)
        history.start({**INFO, "batch": batch})
        widths.append(renderer.layout(FrameContent(np.zeros((4, 5, 5), np.float32), history)).width)
    assert widths == [625, 625, 2_500, 2_500, 10_000, 10_000]


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="baseline_run must be True or False, not 'yes'"):
        gym.make(LR, baseline_run="yes")
    with pytest.raises(ValueError, match="render_mode must be None or one of"):
        gym.make(LR, render_mode="film")


# --- games from outside ---------------------------------------------------------------------------------------------


class SwitchesGame(Game):
    """Learning rate and momentum by a MultiDiscrete; the curve is the learning rate, on a logarithmic axis."""

    controlled = "learning rate and momentum"
    hyperparameters = ("learning_rate", "momentum")

    def action_space(self, config, n_classes):
        return spaces.MultiDiscrete([3, 5])

    def apply(self, run, actions, config):
        run.chosen_learning_rate[:] = np.clip(run.chosen_learning_rate * 2.0 ** (actions[:, 0] - 1), 0.001, 1)
        run.momentum[:] = 0.2 * actions[:, 1]


class SlidersGame(Game):
    """Momentum and weight decay by a Box of two; the curve is the momentum, on a linear axis."""

    controlled = "momentum and weight decay"
    hyperparameters = ("momentum", "weight_decay")
    features = ("momentum",)
    curve = "momentum"
    curve_is_logarithmic = False

    def action_space(self, config, n_classes):
        return spaces.Box(np.array([-1, 0], np.float32), np.array([1, 3], np.float32))

    def curve_limits(self, config):
        return 0.0, 0.5

    def apply(self, run, actions, config):
        run.momentum[:] = np.clip(run.momentum + 0.3 * actions[:, 0], 0, 0.95)
        run.weight_decay[:] = 0.01 * np.clip(actions[:, 1], 0, 3)


@pytest.fixture
def outside(registries):
    """Name of a game -> two actions with different effects."""
    qan_gym.register_game("switches", SwitchesGame())
    qan_gym.register_game("sliders", SlidersGame())
    return {
        "switches": (np.array([2, 4]), np.array([0, 4])),
        "sliders": (np.array([1, 2], np.float32), np.array([-1, 2], np.float32)),
    }


@pytest.mark.parametrize("game", ["switches", "sliders"])
def test_frames_of_a_game_from_outside(game, outside):
    """Its curve, both numbers of its actions, and the baseline run are drawn; all texts are legible."""
    one, other = outside[game]
    env = gym.make(LR, game=game, render_mode="rgb_array", baseline_run=True, **SHORT).unwrapped
    first, second = (frame_after(env, 4, action) for action in (one, other))
    assert first.shape == second.shape == (720, 1080, 3)
    assert different(first, second, *CURVE)
    assert different(first, second, *STRIP)
    third, last = one.copy(), history_of(env).played()[-1]
    third[1] = 0
    assert last.tolist() == other.tolist()
    assert different(frame_after(env, 4, third), first, *STRIP), "the second number of an action is not drawn"

    env.reset(seed=0)
    baseline = BaselineRun(env.training)
    for _ in range(3):
        env.step(one)
    require_legible(env, content_of(env, baseline=baseline.until(3), title="QanLR-MNIST5k-v1: mini-batch 3 of 20"))
    require_legible(env, content_of(env, title="0: mini-batch 3"), small=True)


@pytest.mark.parametrize("game", ["switches", "sliders"])
def test_the_baseline_run_of_a_game_from_outside_keeps_the_hyperparameters(game, outside):
    """Although the game has no action that does nothing."""
    env, constant = gym.make(LR, game=game, momentum=0.4, **SHORT), gym.make(LR, momentum=0.4, **SHORT)
    env.reset(seed=3)
    constant.reset(seed=3)
    baseline = BaselineRun(env.unwrapped.training)
    env.step(outside[game][0])
    assert baseline.until(5)[1][1:].tolist() == [constant.step(2)[4]["smoothed_loss"] for _ in range(5)]


@pytest.mark.parametrize("game", ["switches", "sliders"])
def test_tiles_of_a_game_from_outside(game, outside):
    envs = gym.make_vec(LR, num_envs=2, game=game, render_mode="rgb_array", **SHORT)
    envs.reset(seed=[0, 0])
    for _ in range(3):
        envs.step(np.stack(outside[game]))
    one, other = envs.render()
    assert one.shape == other.shape == (320, 480, 3)
    assert different(one, other, 0.12, 0.46, 0.49, 1.0)
    picture = rendering.mosaic(envs.render())
    assert picture.shape == (640, 480, 3) or picture.shape == (320, 960, 3)


def test_a_linear_axis_follows_its_curve(outside):
    """In whole steps of the limits that the game gives."""
    training = gym.make(LR, game="sliders", **SHORT).unwrapped.training
    renderer, history = FrameRenderer(training.parts), History(training)
    content = FrameContent(np.zeros((4, 5, 5), np.float32), history)
    limits = []
    history.start(INFO | {"momentum": 0.0})
    for batch, momentum in enumerate((0.5, 0.6, 1.0, -0.1)):
        history.add(INFO | {"batch": batch, "momentum": momentum}, np.zeros(2))
        limits.append(renderer.layout(content).curve)
    expected = [(-0.025, 0.525), (-0.025, 1.025), (-0.025, 1.025), (-0.525, 1.025)]
    assert np.allclose(limits, expected)


# --- mosaics --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("autoreset_mode", ["NextStep", "SameStep"])
def test_a_vector_environment_draws_every_row(autoreset_mode):
    """Each as that row alone would be drawn, past the end of an episode too."""
    envs = gym.make_vec(LR, num_envs=3, render_mode="rgb_array", autoreset_mode=autoreset_mode, **SHORT)
    alone = gym.make_vec(LR, num_envs=1, render_mode="rgb_array", autoreset_mode=autoreset_mode, **SHORT)
    assert envs.render_mode == "rgb_array"
    with pytest.raises(ResetNeeded):
        envs.render()
    envs.reset(seed=5)
    alone.reset(seed=5)
    for step in range(22):
        envs.step([0, step % 3, 2])
        alone.step([0])
        if step in (0, 19, 20, 21):
            seen = envs.render()
            assert isinstance(seen, tuple)
            assert len(seen) == 3
            assert len({frame.shape for frame in seen}) == 1
            assert (seen[0] != seen[1]).any()
            assert np.array_equal(seen[0], alone.render()[0])


def test_a_mosaic():
    """Every frame once, in order, about as wide as high."""
    frames = tuple(np.full((2, 3, 3), number, np.uint8) for number in range(5))
    picture = rendering.mosaic(frames)
    assert picture.shape == (3 * 2, 2 * 3, 3)
    assert picture[::2, ::3, 0].tolist() == [[0, 1], [2, 3], [4, 255]]


def test_a_video_of_the_mosaic(tmp_path):
    pytest.importorskip("moviepy")
    from gymnasium.wrappers.vector import RecordVideo

    envs = gym.make_vec(LR, num_envs=4, render_mode="rgb_array", **SHORT)
    envs = RecordVideo(envs, str(tmp_path), video_length=5)
    envs.reset(seed=0)
    for _ in range(6):
        envs.step(envs.action_space.sample())
    envs.close()
    (video,) = tmp_path.glob("*.mp4")
    assert video.stat().st_size > 1_000


# --- windows --------------------------------------------------------------------------------------------------------


def test_a_window_shows_the_episode(windows, monkeypatch):
    """Without calls of `render`: the beginning, every step for which there is time, and the end."""
    monkeypatch.setitem(QanEnv.metadata, "render_fps", 1e9)
    env = gym.make(LR, render_mode="human", **SHORT)
    plain = gym.make(LR, render_mode="rgb_array", **SHORT)
    seen = frames(plain, 3)
    env.reset(seed=0)
    for step in range(3):
        env.step(0)
        assert len(windows) == step + 2
        assert np.abs(windows[-1][..., :3].astype(int) - seen[step]).max() <= 1
    assert env.render() is None
    env.close()
    assert not pyplot.get_fignums()


def test_a_window_leaves_out_frames_that_come_too_fast(windows, monkeypatch):
    monkeypatch.setitem(QanEnv.metadata, "render_fps", 1e-9)
    env = gym.make(LR, render_mode="human", **SHORT)
    env.reset(seed=0)
    over = False
    while not over:
        over = any(env.step(2)[2:4])
    assert len(windows) == 2, "the first frame, and the last"


def test_a_window_that_was_closed_stays_closed(windows, monkeypatch):
    monkeypatch.setitem(QanEnv.metadata, "render_fps", 1e9)
    env = gym.make(LR, render_mode="human", **SHORT)
    env.reset(seed=0)
    pyplot.close("all")
    env.step(0)
    assert len(windows) == 1
    env.close()


def test_without_a_display_an_environment_warns_and_shows_nothing(monkeypatch):
    """It plays, and `render` gives None, as with a window."""
    monkeypatch.setattr(matplotlib, "get_backend", lambda: "agg")
    with pytest.warns(UserWarning, match=r"needs a display.*'agg'.*rgb_array.*nothing is shown"):
        env = gym.make(LR, render_mode="human", **SHORT)
    env.reset(seed=0)
    assert env.step(0)[4]["batch"] == 1
    assert env.render() is None
    env.close()
    assert not pyplot.get_fignums()


def test_gymnasium_check_env_without_a_display(monkeypatch):
    monkeypatch.setattr(matplotlib, "get_backend", lambda: "agg")
    env = gym.make(LR, **SHORT)
    with pytest.warns(UserWarning, match="needs a display"):
        check_env(env.unwrapped)


@pytest.mark.parametrize("make", [gym.make_vec, partial(gym.make_vec, vectorization_mode="sync")])
def test_lists_of_pictures(make):
    """Those since the last `render`, or since the row's reset; as Gymnasium's own vector environments give them."""
    envs = make(LR, num_envs=2, render_mode="rgb_array_list", **SHORT)
    envs.reset(seed=0)
    envs.step(np.array([0, 1]))
    first = envs.render()
    assert isinstance(first, tuple)
    assert [len(frames) for frames in first] == [2, 2]
    assert first[0][0].dtype == np.uint8
    assert first[0][0].shape[2] == 3
    assert (first[0][0] != first[0][1]).any()
    envs.step(np.array([0, 1]))
    assert [len(frames) for frames in envs.render()] == [1, 1]
    for _ in range(18 + 1):  # to the end, and the reset of all rows
        envs.step(np.array([0, 1]))
    assert [len(frames) for frames in envs.render()] == [1, 1]
