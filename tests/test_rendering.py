"""What a frame shows, and what a frame costs nobody: the training does not notice that it is watched."""

import copy
import subprocess
import sys
import weakref
from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
import window_backend
from gymnasium.error import ResetNeeded
from helpers import SHORT, TINY, made_npz
from matplotlib import pyplot

from qan_gym.core.training import Training
from qan_gym.env import QanEnv
from qan_gym.rendering.baseline_run import BaselineRun
from qan_gym.rendering import frames as rendering
from qan_gym.rendering.history import History

LR, MINIBATCH = "QanLR-MNIST5k-v0", "QanMinibatch-MNIST5k-v0"


@pytest.fixture
def windows(monkeypatch):
    """What the windows showed."""
    pyplot.close("all")  # of other tests
    monkeypatch.setattr(window_backend, "drawn", [])
    return window_backend.drawn


def frames(env, count, action=0):
    env.reset(seed=0)
    seen = []
    for _ in range(count):
        env.step(action)
        seen.append(env.render())
    return seen


def different(one, other, top, bottom, left, right):
    """Whether two frames differ in a part, given in shares of height and width."""
    height, width = one.shape[:2]
    part = np.s_[int(top * height) : int(bottom * height), int(left * width) : int(right * width)]
    return (one[part] != other[part]).any()


# --- history --------------------------------------------------------------------------------------------------------


def test_a_history_grows_and_goes_on():
    """Longer than what was set aside for it, and again from what was saved."""
    info = {"batch": 0, **dict.fromkeys(("learning_rate", "loss", "smoothed_loss", "validation_loss"), 0.5)}
    history = History(classes=3)
    history.start(info | {"validation_accuracy": 0.1})
    for step in range(1_000):
        history.add(info | {"batch": step + 1, "validation_accuracy": 0.2}, step % 3, np.eye(3)[step % 3])
    again = History(3, history.rows().copy())
    again.add(info | {"batch": 1_001, "validation_accuracy": 0.3}, 1, np.eye(3)[1])
    assert len(history) == 1_001
    assert len(again) == 1_002
    assert np.array_equal(again.curve("batch"), np.arange(1_002))
    assert np.array_equal(again.shares().argmax(axis=1)[:1_000], np.arange(1_000) % 3)
    again.start(info | {"validation_accuracy": 0.1})
    assert len(again) == 1
    assert again.curve("action")[0] == -1


def test_a_history_of_another_game_is_refused():
    with pytest.raises(ValueError, match="history"):
        History(3, np.zeros((4, 7)))


def test_the_classes_shown_are_those_of_the_batch():
    """Of the images that were trained on, whether the roulette drew them or shuffled SGD did."""
    env = gym.make(MINIBATCH, render_mode="rgb_array", train_size=400, batch_size=20, epochs=1, meta_momentum=None)
    labels = env.unwrapped.split("train")[1]
    for sampler in ("game", "shuffled"):
        env.reset(seed=0, options={"sampler": sampler})
        for action in (3, 3, 7, 1):
            env.step(action)
            classes = labels[env.unwrapped.batch_indices].reshape(-1)
            expected = np.bincount(classes, minlength=10) / len(classes)
            assert np.allclose(env.unwrapped._history.shares()[-1], expected)


# --- the ghost ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kwargs", [{}, {"continuous": True}, {"schedule": "cosine"}])
def test_the_ghost_is_the_run_with_nobody_acting(kwargs, reference_file):
    """Step by step what the environment gives to the constant learning rate, with the same seed and pull."""
    arguments = {**SHORT, "batches_per_action": 2, "meta_momentum": 0.1, "reference": reference_file}
    env = gym.make(LR, **arguments, **kwargs).unwrapped
    env.reset(seed=1)
    ghost = Ghost(env.training)
    env.step(env.action_space.sample())
    constant = gym.make(LR, **arguments)
    first = constant.reset(seed=1)[1]["smoothed_loss"]
    batches, course = ghost.until(10)
    assert batches.tolist() == [0, 2, 4, 6, 8, 10]
    assert course.tolist() == [first, *(constant.step(2)[4]["smoothed_loss"] for _ in range(5))]


def test_the_ghost_has_the_reference_of_its_episode():
    """With "previous" the weights of the last episode, though this one's have taken their place since."""
    arguments = {**SHORT, "meta_momentum": 0.5, "pull_epochs": 6, "reference": "previous"}
    env, constant = (gym.make(LR, **arguments).unwrapped for _ in range(2))
    for episode in (0, 1):
        for one in (env, constant):
            one.reset(seed=0 if episode == 0 else None)
        ghost, expected, over = Ghost(env.training), [], False
        while not over:
            over = any(env.step(0)[2:4])
            info = constant.step(2 if episode else 0)[4]  # the first the same: their weights are the reference
            expected.append(info["smoothed_loss"])
    assert ghost.until(20)[1][1:].tolist() == expected


def test_the_ghost_of_the_mini_batch_game_is_shuffled_sgd():
    arguments = {"train_size": 400, "batch_size": 20, "epochs": 1, "meta_momentum": None}
    env = gym.make(MINIBATCH, render_mode="rgb_array", baseline_run=True, **arguments).unwrapped
    env.reset(seed=0)
    env.step(4)
    env.render()
    batches, course = env._ghost.until(1)
    shuffled = gym.make(MINIBATCH, **arguments).unwrapped
    shuffled.reset(seed=0, options={"sampler": "shuffled"})
    assert batches.tolist() == [0, 1]
    assert course[1] == shuffled.step(0)[4]["smoothed_loss"]


def test_the_ghost_comes_only_so_far_as_it_is_seen():
    env = gym.make(LR, render_mode="rgb_array", baseline_run=True, **SHORT).unwrapped
    env.reset(seed=0)
    for _ in range(4):
        env.step(0)
    assert env._ghost._training is None, "it was trained before anybody looked"
    env.render()
    assert env._ghost._batches[-1] == 4
    assert env._ghost.until(2)[0].tolist() == [0, 1, 2]


def test_the_ghost_is_in_the_picture_and_nowhere_else():
    """Behind the loss, with its name in the legend; the training is the same with and without it."""
    plain, haunted = (gym.make(LR, render_mode="rgb_array", baseline_run=ghost, **SHORT) for ghost in (False, True))
    one, other = frames(plain, 6)[-1], frames(haunted, 6)[-1]
    assert different(one, other, 0.35, 0.75, 0.45, 1.0)
    assert not different(one, other, 0.0, 0.3, 0.0, 1.0)
    for name, value in plain.unwrapped.weights().items():
        assert np.array_equal(value, haunted.unwrapped.weights()[name])


def test_a_restored_episode_has_its_ghost():
    env = gym.make(LR, render_mode="rgb_array", baseline_run=True, **SHORT).unwrapped
    seen = frames(env, 5)[-1]
    fork = copy.deepcopy(env)
    assert np.array_equal(fork.render(), seen)


def test_a_ghost_without_frames_is_refused():
    for render_mode in (None, "ansi"):
        with pytest.raises(ValueError, match="baseline_run=True is drawn in frames"):
            gym.make(LR, baseline_run=True, render_mode=render_mode)


def test_the_ghost_is_not_judged(monkeypatch):
    """The test set is not read for it, and its memory is free when the next episode begins."""
    env = gym.make(LR, render_mode="rgb_array", baseline_run=True, **SHORT).unwrapped
    env.reset(seed=0)
    ghost, read = env._ghost, []
    ghost.until(0)
    core = weakref.ref(ghost._training)
    evaluate = Training._evaluate
    monkeypatch.setattr(
        Training, "_evaluate", lambda self, rows, split: read.append(split) or evaluate(self, rows, split)
    )
    ghost.until(20)
    assert "validation" in read
    assert "test" not in read
    env.reset()
    assert core() is None


# --- states ---------------------------------------------------------------------------------------------------------


def test_a_state_does_not_change_with_the_episode():
    env = gym.make(LR, render_mode="rgb_array", **SHORT).unwrapped
    seen = frames(env, 3)[-1]
    state = env.get_state()
    env.reset(seed=1)
    env.step(1)
    env.set_state(state)
    assert np.array_equal(env.render(), seen)


def test_a_state_that_went_through_an_episode_nobody_saw():
    """Its history begins where it is seen again: nothing of another episode, no gap that looks like a step."""
    env = gym.make(LR, render_mode="rgb_array", **SHORT).unwrapped
    frames(env, 3)
    plain = gym.make(LR, **SHORT).unwrapped
    plain.set_state(env.get_state())
    plain.reset(seed=9)
    plain.step(0)
    env.set_state(plain.get_state())
    env.step(0)
    assert env._history.curve("batch").tolist() == [1, 2]


@pytest.mark.parametrize("kwargs", [{"render_mode": "rgb_array", "baseline_run": True}, {"render_mode": "human"}])
def test_a_copy_shows_itself(kwargs, windows):
    """In a picture, and in a window, of its own."""
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


def test_a_copy_of_a_vector_environment_shows_itself():
    envs = gym.make_vec(LR, num_envs=2, render_mode="rgb_array", **SHORT)
    envs.reset(seed=0)
    envs.step([0, 1])
    seen = envs.render()
    assert np.array_equal(copy.deepcopy(envs).render(), seen)


# --- frames ---------------------------------------------------------------------------------------------------------


def test_a_frame_does_not_depend_on_the_frames_before():
    """Drawn piece by piece over a background that stays, and yet as if it were the first."""
    seen = frames(gym.make(LR, render_mode="rgb_array", **SHORT), 12)
    env = gym.make(LR, render_mode="rgb_array", **SHORT)
    env.reset(seed=0)
    for _ in range(12):
        env.step(0)
    assert np.array_equal(env.render(), seen[-1])


@pytest.mark.parametrize("env_id", [LR, MINIBATCH])
def test_values_of_an_agent_are_shown(env_id):
    short = {"train_size": 400, "batch_size": 20, "epochs": 1, "meta_momentum": None, "batches_per_action": 1}
    env = gym.make(env_id, render_mode="rgb_array", **short).unwrapped
    without = frames(env, 3)[-1]
    values = np.linspace(1.0, 2.0, env.action_space.n)
    env.show_values(values)
    shown = env.render()
    env.show_values(values[::-1])
    turned = env.render()
    bars = (0.7, 1.0, 0.0, 0.45)
    assert different(without, shown, *bars)
    assert different(shown, turned, *bars)
    assert not different(shown, turned, 0.0, 1.0, 0.46, 1.0)
    env.reset(seed=0)
    assert env._values is None
    for wrong in (values[:-1], np.full_like(values, np.nan), [values]):
        with pytest.raises(ValueError, match="finite numbers, one per action"):
            env.show_values(wrong)


def test_values_need_actions_to_choose_among():
    env = gym.make(LR, render_mode="rgb_array", continuous=True, **SHORT).unwrapped
    with pytest.raises(ValueError, match="values are those of single actions"):
        env.show_values([0.0])


def test_nothing_is_drawn_outside_the_frame():
    """No label, title, legend or number is cut off by the edge, and none lies on another."""
    for env_id, kwargs in ((LR, {}), (MINIBATCH, {}), (LR, {"continuous": True})):
        env = gym.make(env_id, render_mode="rgb_array", baseline_run=True, train_size=400, epochs=1, **kwargs).unwrapped
        env.reset(seed=0)
        for _ in range(3):
            env.step(env.action_space.sample())
        if "continuous" not in kwargs:
            env.show_values(-1234.5 - np.arange(env.action_space.n))
        height, width = env.render().shape[:2]
        _require_apart(env._screen, width, height)
    envs = gym.make_vec(LR, num_envs=2, render_mode="rgb_array", **SHORT)
    envs.reset(seed=0)
    height, width = envs.render()[0].shape[:2]
    _require_apart(envs.unwrapped._screen, width, height)


def _require_apart(screen, width, height):
    (*_, scene) = screen._scenes.values()  # the one that was drawn last
    canvas = scene._canvas
    renderer = canvas.get_renderer()
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in _texts(canvas.figure)]
    assert len(boxes) > 10
    for name, box in boxes:
        assert box.x0 >= 0, name
        assert box.y0 >= 0, name
        assert box.x1 <= width, name
        assert box.y1 <= height, name
    for number, (name, box) in enumerate(boxes):
        for other, there in boxes[number + 1 :]:
            assert not box.overlaps(there), (name, other)


def _texts(figure):
    """All that is written in a figure."""
    texts = list(figure.texts)
    for axes in figure.axes:
        legend = axes.get_legend()
        texts += [*axes.texts, axes.title, axes._left_title, *(legend.get_texts() if legend else ())]
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            texts += [axis.label, *(tick.label1 for tick in axis._update_ticks())]
    return [text for text in texts if text.get_visible() and text.get_text().strip()]


def test_many_classes_are_legible(tmp_path):
    """Not every bar can have its number: those that have one do not lie on each other."""
    npz = made_npz(tmp_path / "letters.npz", n_train=520, n_test=260, n_classes=26)
    env = gym.make(MINIBATCH, render_mode="rgb_array", dataset=npz, **{**TINY, "batch_size": 26}).unwrapped
    env.reset(seed=0)
    env.step(25)
    env.show_values(-1234.5 - np.arange(26))
    height, width = env.render().shape[:2]
    _require_apart(env._screen, width, height)


def test_an_action_beyond_its_range_is_shown_as_it_was_understood():
    one, other = (gym.make(LR, render_mode="rgb_array", continuous=True, **SHORT) for _ in range(2))
    pictures = [frames(env, 2, action=np.array([value], np.float32))[-1] for env, value in ((one, 5.0), (other, 1.0))]
    assert np.array_equal(*pictures)


@pytest.mark.filterwarnings("error")
def test_weights_without_bounds_can_be_drawn():
    screen = rendering.Screen(gym.make(LR, **SHORT).unwrapped.config, 20, 10)
    history = History()
    info = {"batch": 0, "learning_rate": 0.05, "loss": 2.3, "smoothed_loss": 2.3, "validation_loss": 2.3}
    history.start(info | {"validation_accuracy": 0.1})
    filters = np.array([np.inf, -np.inf, np.nan, 0.0], np.float32).reshape(1, 2, 2)
    assert screen.draw(rendering.Moment(filters, history)).shape == (720, 1080, 3)


def test_a_loss_beyond_the_axis_moves_the_axis():
    """Whatever the loss comes to, it is in the picture; a run that diverged is, too."""
    screen = rendering.Screen(gym.make(LR, **SHORT).unwrapped.config, 20, 10)
    info = {"batch": 0, "learning_rate": 0.05, "loss": 2.3, "smoothed_loss": 2.3, "validation_loss": 2.3}
    history = History()
    history.start(info | {"validation_accuracy": 0.1})
    filters = np.zeros((4, 5, 5), np.float32)
    seen = [screen.draw(rendering.Moment(filters, history))]
    for batch, loss in enumerate((1e-3, 1e-9, 0.0, 1e6, 2.0), 1):
        now = {**info, "batch": batch, "loss": loss, "smoothed_loss": loss, "validation_accuracy": 0.1}
        history.add(now, 0)
        low, high = screen._loss_limits(rendering.Moment(filters, history))
        assert 0 < low <= max(loss, 1e-6)
        assert high >= min(loss, 1e3)
        seen.append(screen.draw(rendering.Moment(filters, history)))
    assert all((one != other).any() for one, other in pairwise(seen))


def test_the_curves_are_as_wide_as_the_episode_so_far():
    """In steps of four, so that a beginning is more than a sliver and nothing lies beyond the edge."""
    env = gym.make("QanLR-MNIST5k-v0", meta_momentum=None).unwrapped
    screen = rendering.Screen(env.config, 10_000, 10)
    info = {"learning_rate": 0.05, "loss": 2.3, "smoothed_loss": 2.3, "validation_loss": 2.3}
    widths = []
    for batch in (0, 500, 700, 2_500, 2_501, 10_000):
        history = History()
        history.start({**info, "batch": batch, "validation_accuracy": 0.1})
        widths.append(screen._width(rendering.Moment(np.zeros((4, 5, 5), np.float32), history)))
    assert widths == [625, 625, 2_500, 2_500, 10_000, 10_000]


def test_arguments_that_are_wrong():
    with pytest.raises(ValueError, match="ghost must be True or False, not 'yes'"):
        gym.make(LR, baseline_run="yes")
    with pytest.raises(ValueError, match="render_mode must be one of"):
        gym.make(LR, render_mode="film")


# --- mosaics --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("autoreset_mode", ["NextStep", "SameStep"])
def test_a_vector_environment_shows_every_row(autoreset_mode):
    """Each the picture that its row alone would give, over the end of an episode too."""
    envs = gym.make_vec(LR, num_envs=3, render_mode="rgb_array", autoreset_mode=autoreset_mode, **SHORT)
    alone = gym.make_vec(LR, num_envs=1, render_mode="rgb_array", autoreset_mode=autoreset_mode, **SHORT)
    assert envs.render_mode == "rgb_array"
    with pytest.raises(ResetNeeded):
        envs.render()
    envs.reset(seed=5)
    alone.reset(seed=5)
    for step in range(24):
        envs.step([0, step % 3, 2])
        alone.step([0])
        if step in (0, 18, 19, 20, 23):
            seen = envs.render()
            assert isinstance(seen, tuple)
            assert len(seen) == 3
            assert len({frame.shape for frame in seen}) == 1
            assert (seen[0] != seen[1]).any()
            assert np.array_equal(seen[0], alone.render()[0])


def test_a_mosaic():
    """Every frame once, in order, in about a square."""
    frames = tuple(np.full((2, 3, 3), number, np.uint8) for number in range(5))
    picture = rendering.mosaic(frames)
    assert picture.shape == (3 * 2, 2 * 3, 3)
    assert picture[::2, ::3, 0].tolist() == [[0, 1], [2, 3], [4, 255]]


def test_the_mosaic_is_filmed(tmp_path):
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
    """Without being asked: the beginning, as many steps as it keeps up with, and the end."""
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


def test_a_window_passes_over_what_comes_too_fast(windows, monkeypatch):
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


def test_without_a_display_a_window_is_refused():
    """At once, in a process that has none, with what to do."""
    code = f"import gymnasium, qan_gym; gymnasium.make('{LR}', render_mode='human')"
    environ = {"PATH": "", "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ, check=False)
    assert done.returncode != 0
    assert "needs a display" in done.stderr
    assert "rgb_array" in done.stderr
