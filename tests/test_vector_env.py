"""The vector environment: its rows equal the single environment, and it has the API of Gymnasium's."""

import gc
import os
from collections.abc import Iterable
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers import vector as wrappers
from helpers import FIXED_IDS, SHAPES, made_deep_game

from qan_gym.core.torch_engine import CPU_BLOCK
from qan_gym.optimizee.zoo import build_network
from qan_gym.utils.random_streams import next_seeds
from qan_gym.vector_env import QanVectorEnv

LR, MINIBATCH, CIFAR = "QanLR-MNIST5k-v1", "QanMinibatch-MNIST5k-v1", "QanLR-CIFAR10-v0"
IDS = FIXED_IDS
NEXT_STEP, SAME_STEP, DISABLED = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED
MODES = [NEXT_STEP, SAME_STEP, DISABLED]
TEST_KEYS = {"test_loss", "test_accuracy"}


def slow(*values: Any) -> Any:
    """Parameters of a test that is marked `slow`."""
    return pytest.param(*values, marks=pytest.mark.slow)


def in_turn(names: Iterable[str], all_modes: Iterable[str] = ()) -> list:
    """All pairs of a name and a mode, of which all but one per name are slow; names in `all_modes` have none slow."""
    pairs = []
    for number, name in enumerate(names):
        for place, mode in enumerate(MODES):
            default = name in all_modes or place == number % len(MODES)
            pairs.append((name, mode) if default else slow(name, mode))
    return pairs


@pytest.fixture
def small(small_data, reference_file):
    """An episode of 3 actions in two epochs of 3 batches; the second begins within the second action.

    The batch is even, as in every id: the 10 outputs per image of an odd one do not begin on a boundary of 16 bytes for
    every network, and there MKL adds up in another order.
    """
    common = {"dataset": small_data, "train_size": 12, "batch_size": 4, "reference": reference_file}
    return {**common, "epochs": 2, "batches_per_action": 2}


@pytest.fixture
def tiny(small):
    """An episode of 2 actions."""
    return {**small, "train_size": 16, "epochs": 1}


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """Arguments of the id for CIFAR-10: images in colour, its small network, and a reference for that."""
    return made_deep_game(tmp_path_factory.mktemp("deep"))


@pytest.fixture
def of_id(small, tiny, deep):
    """(id) -> the arguments of `small` for it, or of `tiny`."""
    games = {"small": small, "tiny": tiny}
    return lambda env_id, size="small": games[size] | (deep if env_id == CIFAR else {})


@contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread():
    """For equal bits: several threads divide a product into parts that depend on its size."""
    with threads(1):
        yield


@pytest.fixture
def several_threads():
    """The default of PyTorch where there are several cores."""
    with threads(2):
        yield


def make(env_id: str, num_envs: int, mode: AutoresetMode = NEXT_STEP, **kwargs: Any) -> VectorEnv:
    return gym.make_vec(env_id, num_envs=num_envs, autoreset_mode=mode, **kwargs)


def make_singles(env_id: str, num_envs: int, mode: AutoresetMode = NEXT_STEP, **kwargs: Any) -> VectorEnv:
    """Gymnasium's vector environment, made of single environments of this package."""
    sync = {"autoreset_mode": mode}
    return gym.make_vec(env_id, num_envs=num_envs, vectorization_mode="sync", vector_kwargs=sync, **kwargs)


def mode_of(env: VectorEnv) -> AutoresetMode:
    return env.metadata["autoreset_mode"]


def sample(env: VectorEnv, count: int, seed: int = 0) -> list:
    """Random actions for a number of steps."""
    env.action_space.seed(seed)
    return [env.action_space.sample() for _ in range(count)]


def ended(returned: tuple) -> Any:
    return returned[2] | returned[3]


# --- comparing, selecting and overwriting what an environment returns -----------------------------------------------


def assert_same(one: Any, other: Any, where: str = "", **close: float) -> None:
    """Equal structures, types and numbers; floats within a tolerance if one is given, accuracies within an image."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), f"{where}: {one.keys() ^ other.keys()}"
        for name, value in one.items():
            assert_same(value, other[name], f"{where} {name}", **close)
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for number, (mine, theirs) in enumerate(zip(one, other, strict=True)):
            assert_same(mine, theirs, f"{where}[{number}]", **close)
    elif one is None:
        assert other is None, where
    else:
        assert type(one) is type(other), where
        assert one.dtype == other.dtype, f"{where}: {one.dtype}, {other.dtype}"
        assert one.shape == other.shape, f"{where}: {one.shape}, {other.shape}"
        if one.dtype == object:
            assert_same(list(one), list(other), where, **close)
        elif close and "float" in str(one.dtype):
            tolerance = {"rtol": 0, "atol": 0.11} if "accuracy" in where else close  # of 10 images
            np.testing.assert_allclose(one, other, err_msg=where, **tolerance)
        else:
            same = (one == other) | (one != one) & (other != other)  # NaN too
            assert same.all(), f"{where}: {one}, {other}"


def rows_of(value: Any, rows: list[int]) -> Any:
    """The same structure, with these rows of every array."""
    if isinstance(value, dict):
        return {name: rows_of(part, rows) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [rows_of(part, rows) for part in value]
    return value[rows]


def on_host(value: Any) -> Any:
    """Tensors as arrays; `final_obs` as an array of objects, as output="numpy" has it."""
    if isinstance(value, dict):
        value = {name: on_host(part) for name, part in value.items()}
        if "final_obs" in value:
            last, mask = value["final_obs"], value["_final_obs"]
            value["final_obs"] = np.full(len(mask), None, dtype=object)
            for row in np.flatnonzero(mask):
                value["final_obs"][row] = last[row]
        return value
    if isinstance(value, list | tuple):
        return type(value)(on_host(part) for part in value)
    assert isinstance(value, torch.Tensor)
    return value.cpu().numpy()


def overwrite(value: Any) -> None:
    """Overwrite every array of a structure."""
    if isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            overwrite(part)
    elif isinstance(value, np.ndarray) and value.dtype == object:
        overwrite([part for part in value if part is not None])
    else:
        value[:] = 1


# --- playing --------------------------------------------------------------------------------------------------------


def play(env: VectorEnv, actions: list, after: Any = None, **reset: Any) -> list[tuple]:
    """Copies of what reset and every step returned.

    `after` is called with each. Where nothing is reset automatically, the rows that are over are reset after the step.
    """
    played: list[tuple] = []

    def keep(returned: tuple) -> None:
        played.append(deepcopy(returned))
        if after is not None:
            after(returned)

    keep(env.reset(**reset))
    for action in actions:
        keep(env.step(action))
        over = ended(played[-1])
        if mode_of(env) == DISABLED and over.any():
            keep(env.reset(options={"reset_mask": deepcopy(over)}))
    return played


def with_rewards_of_tensors(returned: list[tuple]) -> list[tuple]:
    """What resets and steps returned as arrays, with rewards in float32, which those among tensors have."""
    return [one if len(one) == 2 else (one[0], one[1].astype(np.float32), *one[2:]) for one in returned]


def play_steps(env: VectorEnv, actions: list, before: Any = None) -> list[tuple]:
    """As `play`, without the resets; `before` is called with the number of each step before it."""
    played = []
    for number, action in enumerate(actions):
        if before is not None:
            before(number)
        played.append(env.step(action))
        if mode_of(env) == DISABLED and ended(played[-1]).any():
            env.reset(options={"reset_mask": ended(played[-1]).copy()})
    return played


def assert_rows_are_singles(
    rows: VectorEnv, singles: VectorEnv, steps: int, seed: Any = 7, options: Any = None, before: Any = None, **close
) -> np.ndarray:
    """Play random actions in both and compare everything; returns where episodes ended, (T, N) bool.

    `before` is called with the number of each step before it.
    """
    assert_same(rows.reset(seed=seed, options=options), singles.reset(seed=seed, options=options), "reset", **close)
    ends = []
    for number, action in enumerate(sample(rows, steps)):
        if before is not None:
            before(number)
        returned = rows.step(action)
        assert_same(returned, singles.step(action), f"step {number}", **close)
        assert not (returned[2] & returned[3]).any(), "terminated and truncated"
        ends.append(ended(returned))
        if mode_of(rows) == DISABLED and ends[-1].any():
            mine, theirs = (env.reset(options={"reset_mask": ends[-1].copy()}) for env in (rows, singles))
            assert_same(mine, theirs, f"reset after step {number}", **close)
    for row, single in enumerate(singles.envs):
        assert_same(rows_of(rows.weights(), row), single.unwrapped.weights(), f"row {row}", **close)
        assert_same(rows_of(slots_of(rows), row), rows_of(slots_of(single.unwrapped), 0), f"row {row}", **close)
        assert (rows.training.run.batch_indices[row].numpy() == single.unwrapped.batch_indices).all()
    return np.array(ends)


def slots_of(env: Any) -> dict[str, Any]:
    """The optimizer's buffers of all trained parameters, copies."""
    training = env.training
    slots = {
        slot: {name: buffers[name] for name in training.network.trained} for slot, buffers in training.run.slots.items()
    }
    return deepcopy(slots)


def inside(env: VectorEnv) -> list[dict[str, Any]]:
    """Copies of the weights, running statistics among them, and of the optimizer's buffers."""
    return [env.weights(), slots_of(env)]


def two_episodes(env: VectorEnv) -> int:
    """The number of steps of two whole episodes, and one more, of the third."""
    return 2 * env.unwrapped.episode_length + (3 if mode_of(env) == NEXT_STEP else 1)


# --- rows are the single environment --------------------------------------------------------------------------------


# The ids of the full MNIST differ from those of 5,000 images only in arguments that are given here.
ROWS = [
    *[(LR, NEXT_STEP, 3), (LR, SAME_STEP, 1), (LR, DISABLED, 5)],
    *[(MINIBATCH, NEXT_STEP, 1), (MINIBATCH, SAME_STEP, 5), (MINIBATCH, DISABLED, 3)],
    *[(CIFAR, NEXT_STEP, 2), (CIFAR, SAME_STEP, 3), (CIFAR, DISABLED, 1)],
    *[("QanLR-MNIST-v0", SAME_STEP, 3), ("QanMinibatch-MNIST-v0", NEXT_STEP, 3)],
    *[slow(CIFAR, mode, 5) for mode in MODES],
]


@pytest.mark.parametrize(("env_id", "mode", "num_envs"), ROWS, ids=str)
def test_rows_are_the_single_environment(env_id, mode, num_envs, of_id, one_thread):
    """Two whole episodes of random actions, bit for bit."""
    rows, singles = (make_one(env_id, num_envs, mode, **of_id(env_id)) for make_one in (make, make_singles))
    ends = assert_rows_are_singles(rows, singles, two_episodes(rows))
    assert ends.sum(axis=0).tolist() == [2] * num_envs
    assert not ends[-1].any()


@pytest.mark.parametrize("env_id", [name for name in IDS if "5k" in name])
def test_rows_as_registered(env_id, reference_file, one_thread):
    """With the data and batches of the id."""
    rows, singles = (make_one(env_id, 2) for make_one in (make, make_singles))
    assert_rows_are_singles(rows, singles, 3)


@pytest.mark.slow
@pytest.mark.parametrize("env_id", [name for name in IDS if "MNIST-" in name])
def test_rows_of_the_full_mnist(env_id, mnist_root, one_thread):
    """There are 5,000 validation images, so only one of the two rows is compared."""
    rows, single = make(env_id, 2), make_singles(env_id, 1)
    assert_same(rows_of(rows.reset(seed=7), [1]), list(single.reset(seed=8)))
    for action in sample(rows, 3):
        assert_same(rows_of(rows.step(action), [1]), list(single.step(action[1:])))


@pytest.mark.parametrize("env_id", [LR, slow(MINIBATCH)])
def test_more_rows_than_have_their_gradients_computed_together(env_id, tiny, one_thread):
    rows, singles = (make_one(env_id, 18, engine="torch", **tiny) for make_one in (make, make_singles))
    assert CPU_BLOCK < 18
    assert len(rows.training.engine.blocks) == 2
    ends = assert_rows_are_singles(rows, singles, 4)
    assert ends[1].all()


@pytest.mark.parametrize("num_envs", [4, 6, 7, 11])
def test_rows_that_are_measured_in_parts(num_envs, tiny, one_thread):
    """Of 2, 3, 3 and 5 networks, where a part of 3 or 5 is filled up to 4 or 8."""
    arguments = tiny | {"train_size": 20, "batch_size": 10, "batches_per_action": 1}
    rows, singles = (make_one(LR, num_envs, **arguments) for make_one in (make, make_singles))
    ends = assert_rows_are_singles(rows, singles, 3)
    assert ends[1].all()


@pytest.mark.parametrize("env_id", [LR, MINIBATCH])
def test_rows_of_an_odd_batch(env_id, small, one_thread):
    """Equal but for rounding, which an episode adds up."""
    odd = small | {"train_size": 15, "batch_size": 5}
    rows, singles = (make_one(env_id, 5, **odd) for make_one in (make, make_singles))
    assert_rows_are_singles(rows, singles, rows.episode_length, rtol=1e-4, atol=1e-4)


def test_rows_with_several_threads(tiny, several_threads):
    """Equal but for rounding: a product is divided in other ways for one run than for two.

    One action only: where the cores are busy with anything else, the threads spend a second waiting for each other.
    """
    rows, singles = (make_one(LR, 2, **tiny) for make_one in (make, make_singles))
    assert_rows_are_singles(rows, singles, 1, rtol=1e-4, atol=1e-4)


# Arguments, and options of the first reset.
GAMES = {
    "continuous": (LR, {"continuous": True}, {}),
    "multiplicative": (LR, {"action_scale": "multiplicative", "observation": "filters", "reward": "accuracy"}, {}),
    "inverse": (MINIBATCH, {"reward": "inverse-loss", "meta_momentum": 0.5, "pull_epochs": 1}, {}),
    "previous": (LR, {"reference": "previous", "meta_momentum": 0.5}, {}),
    "previous distilled": (MINIBATCH, {"reference": "previous", "distillation": 0.5}, {}),
    "distilled": (LR, {"distillation": 0.5}, {}),
    "shuffled": (MINIBATCH, {}, {"sampler": "shuffled"}),
    "adamw": (LR, {"optimizer": "adamw"}, {}),
    "momentum": (MINIBATCH, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}, {}),
    "augmented": (LR, {"augment": "reflect"}, {}),
    "deep adamw": (CIFAR, {"optimizer": "adamw"}, {}),
    "deep nesterov": (CIFAR, {"nesterov": True, "augment": "reflect"}, {}),
    "deep distilled": (CIFAR, {"distillation": 0.5, "pull_epochs": 1}, {}),
    "deep previous": (CIFAR, {"reference": "previous", "meta_momentum": 0.5}, {}),
}


# What a reset does with a row differs for these: the last weights are kept, the options are for one episode.
DIFFER_AT_A_RESET = ("previous", "shuffled")


@pytest.mark.parametrize(("name", "mode"), in_turn(GAMES, all_modes=DIFFER_AT_A_RESET), ids=str)
def test_rows_of_other_games(name, mode, of_id, one_thread):
    """Two whole episodes; options hold for the episode of their reset alone."""
    env_id, arguments, options = GAMES[name]
    game = of_id(env_id, "tiny" if env_id == CIFAR else "small") | arguments
    rows, singles = (make_one(env_id, 2, mode, **game) for make_one in (make, make_singles))
    ends = assert_rows_are_singles(rows, singles, two_episodes(rows), options=options)
    assert ends.sum(axis=0).tolist() == [2] * 2


@pytest.mark.slow
@pytest.mark.parametrize("network", ["nin", "wrn-40-4"])
def test_rows_of_deep_networks(network, of_id, one_thread):
    """Two steps, so that the second has momentum."""
    game = of_id(CIFAR) | {"network": network, "reference": None, "batches_per_action": 1}
    rows, singles = (make_one(CIFAR, 2, **game) for make_one in (make, make_singles))
    assert_rows_are_singles(rows, singles, 2)


def test_rows_of_whitened_images(of_id, one_thread, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with np.load(of_id(CIFAR)["dataset"]) as arrays:  # a corner of each, because the matrix is the square of an image
        small = {name: array[:, :8, :8] if name[0] == "x" else array for name, array in arrays.items()}
    np.savez(tmp_path / "small.npz", **small)
    game = of_id(CIFAR) | {"dataset": str(tmp_path / "small.npz"), "preprocess": "whiten"}
    rows, singles = (make_one(CIFAR, 2, **game) for make_one in (make, make_singles))
    assert_rows_are_singles(rows, singles, rows.episode_length + 2)


@pytest.mark.parametrize("mode", [NEXT_STEP, slow(SAME_STEP), slow(DISABLED)], ids=str)
def test_a_reset_leaves_the_other_rows_as_they_are(mode, of_id, one_thread):
    """Their running statistics and buffers, at once and a step later; the row itself has those of a new episode."""
    env, witness = (make(CIFAR, 3, mode, **of_id(CIFAR)) for _ in range(2))
    env.reset(seed=0)
    witness.reset(seed=0)
    begun = rows_of(env.weights(), 1)
    for number, actions in enumerate(np.array([[0, 1, 2], [1, 0, 0]])):
        mine, theirs = env.step(actions), witness.step(actions)
        assert_same(rows_of(mine, [0, 2]), rows_of(theirs, [0, 2]))
        if number == 0:
            assert all(value.any() for value in rows_of(slots_of(env), 1)["momentum"].values())
            env.reset(seed=0, options={"reset_mask": np.array([False, True, False])})
            assert_same(rows_of(env.weights(), 1), begun)
            assert not any(value.any() for value in rows_of(slots_of(env), 1)["momentum"].values())
        assert_same(rows_of(inside(env), [0, 2]), rows_of(inside(witness), [0, 2]))


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_row_that_takes_too_long_a_step(mode, of_id, one_thread):
    """A learning rate of 1e38 in one row only: it diverges, and the others keep their numbers to the bit."""
    rates = {"learning_rate_step": 1e38, "learning_rate_max": 1e38, "batches_per_action": 1}
    env, witness = (make(CIFAR, 3, mode, **of_id(CIFAR) | rates) for _ in range(2))
    env.reset(seed=0)
    witness.reset(seed=0)
    diverged = []
    for _ in range(3):
        mine, theirs = env.step(np.array([2, 0, 2])), witness.step(np.array([2, 2, 2]))
        diverged.append(mine[2].tolist())
        assert np.isfinite(mine[0]).all()
        assert np.isfinite(mine[1]).all()
        assert_same(rows_of(mine[:-1], [0, 2]), rows_of(theirs[:-1], [0, 2]))
        if mode == DISABLED and mine[2].any():
            env.reset(options={"reset_mask": mine[2].copy()})
        assert_same(rows_of(inside(env), [0, 2]), rows_of(inside(witness), [0, 2]))
    assert [False, True, False] in diverged
    assert not any(some[0] or some[2] for some in diverged)


PREVIOUS = {"reference": "previous", "meta_momentum": 0.5}


@pytest.mark.parametrize(
    ("env_id", "arguments", "mode"),
    [
        *[(LR, PREVIOUS, mode) for mode in MODES],
        *[(MINIBATCH, {}, NEXT_STEP), slow(MINIBATCH, {}, SAME_STEP), slow(MINIBATCH, {}, DISABLED)],
    ],
)
def test_rows_that_end_at_different_times(env_id, arguments, mode, small, one_thread):
    """Because of the target or the budget; two rows begin a step later, so that some end while others begin."""
    target = small | arguments | {"train_size": 20, "batches_per_action": 3, "target_loss": 2.295}
    rows, singles = (make_one(env_id, 5, mode, **target) for make_one in (make, make_singles))

    def before(number: int) -> None:
        if number == 1:
            mask = np.array([False, True, False, True, False])
            assert_same(*(env.reset(options={"reset_mask": mask.copy()}) for env in (rows, singles)))

    ends = assert_rows_are_singles(rows, singles, 9, before=before)
    some = ends.any(axis=1) & ~ends.all(axis=1)
    assert some.sum() >= 3
    assert (some[1:] & some[:-1]).any()


@pytest.mark.parametrize(
    ("env_id", "weight", "mode"),
    [*((LR, "conv2.weight", mode) for mode in MODES), slow(CIFAR, "block2.conv1.weight", SAME_STEP)],
    ids=str,
)
def test_a_row_that_diverges(env_id, weight, mode, of_id, one_thread):
    """It ends and begins anew, as the single environment does; the others are as without it, bit for bit."""
    rows, singles, witness = (make_one(env_id, 4, mode, **of_id(env_id)) for make_one in (make, make_singles, make))

    def before(number: int) -> None:
        if number == 1:
            rows.training.run.params[weight][2, 0, 0, 0, 0] = np.nan
            singles.envs[2].unwrapped.training.run.params[weight][0, 0, 0, 0, 0] = np.nan

    ends = assert_rows_are_singles(rows, singles, 7, before=before)
    assert ends[1].tolist() == [False, False, True, False]
    assert ends[:, 2].sum() == 2
    others = [0, 1, 3]
    expected = [witness.reset(seed=7), *play_steps(witness, sample(witness, 7))]
    again = [rows.reset(seed=7), *play_steps(rows, sample(rows, 7), before)]
    for mine, theirs in zip(again, expected, strict=True):
        assert_same(rows_of(mine[:-1], others), rows_of(theirs[:-1], others))
    assert_same(rows_of(inside(rows), others), rows_of(inside(witness), others))
    _, reward, terminated, truncated, infos = again[2]
    assert (reward[2], terminated[2], truncated[2]) == (-10.0, True, False)
    last = infos["final_info"] if mode == SAME_STEP else infos
    assert last["diverged"].tolist() == [False, False, True, False]
    assert np.isfinite(last["test_loss"]).tolist() == [mode == SAME_STEP, mode == SAME_STEP, True, mode == SAME_STEP]
    for values in (again[2][0], again[2][1], *(value for name, value in last.items() if name not in TEST_KEYS)):
        assert np.isfinite(values).all()


@pytest.mark.parametrize("mode", [slow(NEXT_STEP), SAME_STEP, slow(DISABLED)], ids=str)
def test_seeds_of_some_rows(mode, small, one_thread):
    """A list with None, with and without a mask: as the single environments with their seeds."""
    rows, singles = (make_one(MINIBATCH, 4, mode, **small | {"epochs": 4}) for make_one in (make, make_singles))
    assert_rows_are_singles(rows, singles, 1)
    assert_rows_are_singles(rows, singles, 1, seed=[3, None, 2**40, None])
    mask = np.array([True, False, True, True])
    for seed in ([5, 6, None, 8], None, 9):
        mine, theirs = (env.reset(seed=seed, options={"reset_mask": mask.copy()}) for env in (rows, singles))
        assert_same(mine, theirs)
        assert mine[1]["_batch"].tolist() == mask.tolist()
        assert_same(rows.step(np.arange(4)), singles.step(np.arange(4)))
    assert_same(rows.reset(), singles.reset())


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_reset_of_some_rows_in_the_middle(mode, small, one_thread):
    """In every mode these rows begin anew, with the options of the reset; the others are as without the reset."""
    longer = {**small, "epochs": 4}
    rows, witness = (make(MINIBATCH, 3, mode, **longer) for _ in range(2))
    actions = sample(rows, 4)
    for env in (rows, witness):
        env.reset(seed=1)
        env.step(actions[0])
    mask = np.array([False, True, False])
    options = {"reset_mask": mask, "sampler": "shuffled"}
    observation, infos = rows.reset(seed=50, options=options)
    assert options == {"reset_mask": mask, "sampler": "shuffled"}
    assert mask.tolist() == [False, True, False]
    assert_same(infos["_loss"], mask)
    assert infos["batch"].tolist() == [0, 0, 0]
    alone = make(MINIBATCH, 1, mode, **longer)
    begun = alone.reset(seed=51, options={"sampler": "shuffled"})
    assert_same(observation[1], begun[0][0])
    for action in actions[1:]:
        one, other, fresh = rows.step(action), witness.step(action), alone.step(action[1:2])
        assert_same(rows_of(one, [0, 2]), rows_of(other, [0, 2]))
        assert_same(rows_of(one, [1]), list(fresh))


# --- the API of a vector environment --------------------------------------------------------------------------------


def check_vector_env(env: VectorEnv) -> None:
    """The checks of Gymnasium's check_env for a vector environment, which is closed afterwards.

    The episodes of all rows must end together, after `episode_length` steps.
    """
    check_spaces(env)
    steps = env.unwrapped.episode_length + 3
    actions = sample(env, steps)
    kept = deepcopy(actions)
    returned: list[tuple] = []
    played = play(env, actions, after=returned.append, seed=3)
    check_returns(env, played)
    assert_same(returned, played, "later steps changed what had been returned:")
    assert_same(actions, kept, "later steps changed the caller's actions:")
    check_seeds(env, actions, played)
    check_independence(env, actions, played)
    assert_same(play(env, actions, after=overwrite, seed=3), played, "what was returned was not the caller's own:")
    check_close(env, actions[0])


def check_spaces(env: VectorEnv) -> None:
    assert isinstance(env.num_envs, int)
    assert isinstance(mode_of(env), AutoresetMode)
    assert env.observation_space == batch_space(env.single_observation_space, env.num_envs)
    assert env.action_space == batch_space(env.single_action_space, env.num_envs)
    assert env.spec.id in repr(env)
    assert env.unwrapped is env
    assert not env.closed


def check_returns(env: VectorEnv, played: list[tuple]) -> None:
    """Types, shapes and ranges; and which rows begin anew at which step."""
    n, mode, budget = env.num_envs, mode_of(env), env.unwrapped.training.parts.budget
    over = np.zeros(n, np.bool_)  # at the step before
    masks = [np.ones(n, np.bool_)]  # of the resets to come
    steps = ends = 0
    for one in played:
        observation, infos = one[0], one[-1]
        assert env.observation_space.contains(observation)
        check_infos(infos, n)
        if len(one) == 2:
            mask = masks.pop()
            assert (infos["_batch"] == mask).all()
            assert set(infos) == {name for key in INFO_KEYS[env.unwrapped.config.reward] for name in (key, f"_{key}")}
            over[mask] = False
            continue
        _, reward, terminated, truncated, _ = one
        for value, dtype in ((reward, np.float64), (terminated, np.bool_), (truncated, np.bool_)):
            assert isinstance(value, np.ndarray)
            assert value.shape == (n,)
            assert value.dtype == dtype
        assert np.isfinite(reward).all()
        assert infos["_batch"].all()
        steps += 1
        ends += ended(one).sum()
        begun = over if mode == NEXT_STEP else ended(one) if mode == SAME_STEP else np.zeros(n, np.bool_)
        assert ((infos["batch"] == 0) == begun).all()
        assert ((infos["batch"] == budget) == (ended(one) & ~begun)).all()
        assert set(infos) >= INFO_KEYS[env.unwrapped.config.reward]
        if mode == NEXT_STEP:
            assert not (ended(one) & over).any()
            assert (reward[over] == 0).all()
        check_end(env, one)
        over = ended(one)
        masks.append(over.copy())
    waits = int(mode == NEXT_STEP)  # a step between two episodes
    assert ends == n * ((steps + waits) // (env.unwrapped.episode_length + waits)) > 0


BOTH = {
    *("learning_rate", "loss", "smoothed_loss", "epoch", "batch", "validation_loss", "validation_accuracy"),
    *("test_loss", "test_accuracy", "diverged", "early_stopped", "reward_divergence"),
}
INFO_KEYS = {name: BOTH | {f"reward_{name.replace('-', '_')}"} for name in ("log-loss", "inverse-loss", "accuracy")}
INFO_KEYS["final-log-loss"] = BOTH | {"reward_final_log_loss", "task"}


def check_end(env: VectorEnv, one: tuple) -> None:
    """The last observations and infos of the episodes that end with this step are where the mode puts them."""
    observation, *_, infos = one
    over = ended(one)
    finals = {"final_obs", "final_info", "_final_obs", "_final_info"}
    if not over.any():
        assert not set(infos) & finals
        assert all(np.isnan(infos[name]).all() for name in TEST_KEYS)
        return
    last = infos
    if mode_of(env) == SAME_STEP:
        assert set(infos) >= finals
        assert all(np.isnan(infos[name][over]).all() for name in TEST_KEYS)
        assert (infos["_final_obs"] == over).all()
        assert (infos["_final_info"] == over).all()
        for row, screen in enumerate(infos["final_obs"]):
            assert (screen is not None) == over[row]
            assert screen is None or env.single_observation_space.contains(screen)
            assert screen is None or not np.array_equal(screen, observation[row])
        last = infos["final_info"]
        assert (last["batch"][over] == env.unwrapped.training.parts.budget).all()
    else:
        assert not set(infos) & finals
    for name in TEST_KEYS:
        assert (last[f"_{name}"] == (over if mode_of(env) == SAME_STEP else True)).all()
        assert np.isfinite(last[name][over]).all()


def check_infos(infos: dict[str, Any], n: int) -> None:
    """Arrays with a mask each, zero outside of it; no measured time."""
    for name, value in infos.items():
        if name.startswith("_"):
            assert name[1:] in infos
            assert isinstance(value, np.ndarray)
            assert value.shape == (n,)
            assert value.dtype == np.bool_
        elif isinstance(value, dict):
            check_infos(value, n)
        else:
            assert isinstance(value, np.ndarray), name
            assert len(value) == n, name
            mask = infos[f"_{name}"]
            if value.dtype != object:
                assert value.dtype in (np.float64, np.int64, np.bool_), name
                assert value.shape == (n,), name
                assert np.isfinite(value).all() or name in TEST_KEYS, name
                assert not value[~mask].any(), name
        assert "time" not in name


def check_seeds(env: VectorEnv, actions: list, played: list[tuple]) -> None:
    """Row i has an int + i as its seed; None goes on in the sequence that the last seed began."""
    n = env.num_envs
    assert_same(play(env, actions, seed=3), played, "the same seed:")
    assert_same(env.reset(seed=[3 + row for row in range(n)]), played[0], "a seed for each row:")
    assert_same(env.reset(seed=np.int64(3)), played[0], "a number of NumPy's:")
    sequences = []
    for _ in range(2):
        env.reset(seed=3)
        sequences.append([env.reset()[0], env.reset(seed=None)[0], env.reset(seed=[None] * n)[0]])
    assert_same(*sequences)
    screens = [screen.tobytes() for one in ([played[0][0]], sequences[0]) for batch in one for screen in batch]
    assert len(set(screens)) == 4 * n, "two episodes begin alike"


def check_independence(env: VectorEnv, actions: list, played: list[tuple]) -> None:
    """Other actions in the last row change that row alone; the actions of a step that resets change nothing."""
    n, changed, ignored = env.num_envs, deepcopy(actions), deepcopy(actions)
    for action in changed:
        action[-1] = other_action(env, action[-1])
    other = play(env, changed, seed=3)
    rest, last = list(range(n - 1)), [n - 1]
    assert_same(rows_of(other, rest), rows_of(played, rest), "another row's actions:")
    assert not np.array_equal(other[1][0][last], played[1][0][last])
    if mode_of(env) == NEXT_STEP:
        over = [ended(one) for one in played[1:]]
        for action, mask in zip(ignored[1:], over, strict=False):
            for row in np.flatnonzero(mask):
                action[row] = other_action(env, action[row])
        assert any((one != two).any() for one, two in zip(ignored, actions, strict=True))
        assert_same(play(env, ignored, seed=3), played, "the action of a step that resets:")


def other_action(env: VectorEnv, action: Any) -> Any:
    """Another one than this."""
    space = env.single_action_space
    return (action + 1) % space.n if isinstance(space, spaces.Discrete) else -action


def check_close(env: VectorEnv, action: Any) -> None:
    env.close()
    env.close()
    assert env.closed
    with pytest.raises(ClosedEnvironmentError):
        env.step(action)
    with pytest.raises(ClosedEnvironmentError):
        env.reset(seed=0)


@pytest.mark.parametrize(
    ("env_id", "mode"),
    [
        *in_turn([env_id for env_id in IDS if env_id != CIFAR], all_modes=[LR, MINIBATCH]),
        *(slow(CIFAR, mode) for mode in MODES),
    ],
    ids=str,
)
def test_check_vector_env(env_id, mode, of_id):
    env = make(env_id, 2 if env_id == CIFAR else 3, mode, **of_id(env_id, "tiny"))
    check_vector_env(env)


@pytest.mark.parametrize("mode", [slow(NEXT_STEP), slow(SAME_STEP), DISABLED], ids=str)
def test_check_vector_env_of_other_arguments(mode, tiny):
    """Continuous actions, filters alone, another reward, and the mode given by its name."""
    arguments = {"continuous": True, "observation": "filters", "reward": "accuracy"}
    env = make(LR, 2, mode.value, **tiny | arguments)
    assert mode_of(env) is mode
    check_vector_env(env)


def test_made_by_gymnasium(tiny, of_id):
    """Every id; the defaults are one row, NumPy and NEXT_STEP."""
    for env_id in IDS:
        env = gym.make_vec(env_id, **of_id(env_id, "tiny"))
        assert type(env) is QanVectorEnv
        assert (env.num_envs, env.output, mode_of(env)) == (1, "numpy", NEXT_STEP)
        assert env.metadata["render_modes"] == ["rgb_array", "rgb_array_list"]
        assert env.render_mode is None
    assert QanVectorEnv.metadata["autoreset_mode"] is NEXT_STEP
    make(LR, 2, SAME_STEP, **tiny)
    assert QanVectorEnv.metadata["autoreset_mode"] is NEXT_STEP, "one environment's mode became every other's"


def test_the_spec_makes_it_again(tiny):
    env = make(LR, 2, SAME_STEP, **tiny)
    again = gym.make_vec(env.spec)
    assert (again.num_envs, mode_of(again), again.config) == (2, SAME_STEP, env.config)
    assert_same(again.reset(seed=0), env.reset(seed=0))


@pytest.mark.parametrize("number", [1, 3])
def test_first_episodes_without_a_seed_differ(number, tiny):
    """Between rows, and between environments."""
    screens = [screen.tobytes() for _ in range(2) for screen in make(LR, number, **tiny).reset()[0]]
    assert len(set(screens)) == 2 * number


# --- wrong arguments and wrong calls --------------------------------------------------------------------------------


def snapshot(env: VectorEnv) -> dict[str, Any]:
    """Everything that the future depends on, but for the generators of seeds; see `assert_seeds_go_on`."""
    run = env.training.run
    return {
        **{name: value.clone() for name, value in run.saved().items()},
        "ended": run.ended.clone(),
        "clock": run.clock.clone(),
    }


@contextmanager
def refused(env: VectorEnv, error: Any = ValueError, match: str | None = None):
    """The call raises an error and leaves the environment unchanged."""
    before = snapshot(env)
    with pytest.raises(error, match=match):
        yield
    assert_same(snapshot(env), before, "a call that was refused changed")


def assert_seeds_go_on(env: VectorEnv) -> None:
    """A refused call drew no seed: after a reset with seed 0, the next reset begins the second episode of every row."""
    generators = [seeding.np_random(row)[0] for row in range(env.num_envs)]
    next_seeds(generators)
    env.reset()
    assert env.training.run.seed.tolist() == next_seeds(generators).tolist()


@pytest.fixture(scope="module")
def three_rows(small_data):
    """(id) -> an environment of three rows, which each test resets."""
    arguments = {"dataset": small_data, "train_size": 16, "batch_size": 4, "epochs": 1, "batches_per_action": 2}
    envs = {env_id: make(env_id, 3, reference=None, **arguments) for env_id in (LR, MINIBATCH)}
    return lambda env_id: envs[env_id]


BAD_ACTIONS = {
    "too few": [0, 1],
    "too many": [0, 1, 2, 0],
    "one for all": 1,
    "another axis": [[0], [1], [2]],
    "none": [],
    "too large": [0, 1, 10],
    "below 0": [0, -1, 1],
    "floats": [0.0, 1.0, 2.0],
    "nan": [0.0, np.nan, 2.0],
    "booleans": [True, False, True],
    "complex": np.array([0, 1, 2], complex),
    "tensor of floats": torch.zeros(3),
    "tensor too large": torch.tensor([0, 1, 10]),
    "tensor of another shape": torch.zeros(3, 1, dtype=torch.int64),
    "ragged": [[0, 1], [1], [2]],
    "no array": None,
    "nothing for a row": [0, None, 1],
    "words": ["raise", "lower", "keep"],
    "objects": np.array([0, 1, 2], dtype=object),
}


@pytest.mark.parametrize("name", BAD_ACTIONS)
@pytest.mark.parametrize("env_id", [LR, MINIBATCH])
def test_wrong_actions(env_id, name, three_rows):
    env = three_rows(env_id)
    env.reset(seed=0)
    with refused(env):
        env.step(BAD_ACTIONS[name])
    assert env.step([0, 1, 2])[4]["batch"].tolist() == [2] * 3
    assert_seeds_go_on(env)


def test_the_first_wrong_action_of_each_game(tiny):
    """The number of the actions, 3 or 10, is the first that is refused."""
    for env_id, count in ((LR, 3), (MINIBATCH, 10)):
        env = make(env_id, 2, **tiny)
        env.reset(seed=0)
        env.step([0, count - 1])
        with refused(env, match=rf"each action must be in Discrete\({count}\): \[0, {count}\]"):
            env.step([0, count])


@pytest.mark.parametrize(
    "actions",
    [
        [0.5, 0.5],
        [[0.5, 0.5]],
        [[0.5], [np.nan]],
        [[np.inf], [0.5]],
        [[0], [1]],
        [[True], [False]],
        [["up"], ["down"]],
        [[0.5], [None]],
        [[0.5], [10**200]],
        torch.tensor([[0.5], [float("nan")]]),
        None,
    ],
    ids=str,
)
def test_wrong_continuous_actions(actions, tiny):
    env = make(LR, 2, continuous=True, **tiny)
    env.reset(seed=0)
    with refused(env):
        env.step(actions)
    assert env.step([[0.5], [-0.5]])[4]["learning_rate"].tolist() == pytest.approx([0.05 * 2**0.5, 0.05 * 2**-0.5])


@pytest.fixture(scope="module")
def three_singles(small_data):
    """As `three_rows` of the learning-rate game, of single environments."""
    arguments = {"dataset": small_data, "train_size": 16, "batch_size": 4, "epochs": 1, "batches_per_action": 2}
    return make_singles(LR, 3, reference=None, **arguments)


INTEGERS = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32]


@pytest.mark.parametrize("dtype", INTEGERS, ids=lambda dtype: dtype.__name__)
def test_every_kind_of_integer_is_an_action(dtype, three_rows, three_singles):
    """The result is that of the single environment."""
    env = three_rows(LR)
    env.reset(seed=0)
    three_singles.reset(seed=0)
    actions = np.array([0, 1, 2], dtype)
    assert_same(env.step(actions), three_singles.step(actions), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [list, tuple, torch.tensor, lambda values: torch.tensor(values, dtype=torch.uint8)])
def test_lists_and_tensors_are_actions(kind, three_rows):
    env = three_rows(LR)
    env.reset(seed=0)
    expected = deepcopy(env.step(np.array([0, 1, 2])))
    env.reset(seed=0)
    assert_same(env.step(kind([0, 1, 2])), expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_continuous_actions_are_clipped(dtype, tiny):
    """To [-1, 1], as in the single environment; 0.5 multiplies the learning rate by the square root of 2."""
    env = make(LR, 3, continuous=True, **tiny)
    env.reset(seed=0)
    actions = np.array([[0.5], [np.finfo(dtype).max], [-7]], dtype)
    rates = env.step(actions)[4]["learning_rate"]
    assert rates.tolist() == pytest.approx([0.05 * 2**0.5, 0.1, 0.025])


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_step_before_the_first_reset(mode, tiny):
    env = make(LR, 2, mode, **tiny)
    with refused(env, ResetNeeded):
        env.step([0, 1])
    with refused(env, ResetNeeded):
        env.reset(options={"reset_mask": np.array([True, True])})
    with refused(env, ResetNeeded):
        env.step([0, 1])
    env.reset()
    env.step([0, 1])


def test_a_step_of_a_row_that_is_over(tiny):
    """With DISABLED it is refused; the message names the rows, and it is enough to reset these."""
    env = make(LR, 3, DISABLED, **tiny)
    env.reset(seed=0)
    env.step([0, 1, 2])
    env.reset(options={"reset_mask": np.array([False, True, False])})
    assert env.step([0, 1, 2])[3].tolist() == [True, False, True]
    for _ in range(2):
        with refused(env, ResetNeeded, match="rows 0, 2 are over"):
            env.step([0, 1, 2])
    env.reset(options={"reset_mask": np.array([True, False, False])})
    with refused(env, ResetNeeded, match="rows 2 are over"):
        env.step([0, 1, 2])
    env.reset(options={"reset_mask": np.array([False, False, True])})
    assert env.step([0, 1, 2])[3].tolist() == [False, True, False]


BAD_MASKS = {
    "list": [True, False, True],
    "number": 1,
    "integers": np.array([1, 0, 1]),
    "floats": np.array([1.0, 0.0, 1.0]),
    "too few": np.array([True, False]),
    "another axis": np.array([[True], [False], [True]]),
    "one for all": np.array(True),
    "no row": np.zeros(3, np.bool_),
    "tensor of integers": torch.tensor([1, 0, 1]),
}


@pytest.mark.parametrize("name", BAD_MASKS)
def test_wrong_masks(name, three_rows):
    env = three_rows(LR)
    env.reset(seed=0)
    with refused(env, match="reset_mask"):
        env.reset(seed=1, options={"reset_mask": BAD_MASKS[name]})
    assert_seeds_go_on(env)
    env.reset(seed=1, options={"reset_mask": np.array([True, False, True])})


@pytest.mark.parametrize("options", [{"no_such": 1}, {"sampler": "sorted"}, {"sampler": "shuffled", "mask": 3}])
@pytest.mark.parametrize("masked", [False, True])
def test_unknown_options(options, masked, three_rows):
    env = three_rows(MINIBATCH)
    env.reset(seed=0)
    mask = {"reset_mask": np.array([True, False, True])} if masked else {}
    with refused(env, match="unknown reset option"):
        env.reset(seed=1, options=options | mask)
    assert_seeds_go_on(env)


@pytest.mark.parametrize(
    "seed", [[1, 2], [1, 2, 3, 4], [], "1", 1.5, -1, [1, -1, 2], [1, "two", 3], [1, 2, 3.5]], ids=str
)
def test_wrong_seeds(seed, three_rows):
    """Also if only the last row's is wrong: the generators of the first rows stay as they were."""
    env = three_rows(LR)
    env.reset(seed=0)
    with refused(env, (ValueError, TypeError, gym.error.Error)):
        env.reset(seed=seed)
    env.step([0, 1, 2])
    assert_seeds_go_on(env)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"num_envs": 0}, "num_envs must be an integer of at least 1, .*, not 0"),
        ({"num_envs": -1}, "num_envs"),
        ({"num_envs": True}, "num_envs"),
        ({"num_envs": 2.5}, "num_envs"),
        ({"num_envs": "2"}, "num_envs"),
        ({"output": "jax"}, "output must be 'numpy' or 'torch', not 'jax'"),
        ({"render_mode": "human"}, "render_mode of a vector environment must be None, 'rgb_array' .*, not 'human'"),
        ({"baseline_run": True}, "baseline_run"),
        ({"autoreset_mode": "never"}, "never"),
        ({"no_such_argument": 1}, "no_such_argument"),
        ({"epochs": 0}, "epochs"),
        ({"device": "gpu7"}, "'gpu7' cannot be used here"),
    ],
)
def test_wrong_arguments(arguments, match, tiny):
    with pytest.raises(ValueError, match=match):
        gym.make_vec(LR, **{"num_envs": 2, **tiny, **arguments})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu(tiny):
    with pytest.raises(ValueError, match="'cuda' cannot be used here"):
        make(LR, 2, device="cuda", **tiny)


# --- output="torch" -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env_id", "mode"),
    [
        *[(LR, NEXT_STEP), (MINIBATCH, SAME_STEP), (LR, DISABLED)],
        *[slow(MINIBATCH, NEXT_STEP), slow(LR, SAME_STEP), slow(MINIBATCH, DISABLED)],
    ],
    ids=str,
)
def test_tensors(env_id, mode, small):
    """Tensors have the numbers of the arrays, do not change later, and can be overwritten without an effect."""
    arguments = small | {"target_loss": 2.3}
    tensors, arrays = make(env_id, 4, mode, output="torch", **arguments), make(env_id, 4, mode, **arguments)
    actions = sample(arrays, 9)
    returned: list[tuple] = []
    as_tensors = [torch.from_numpy(action.copy()) for action in actions]
    played = play(tensors, as_tensors, after=returned.append, seed=7)
    expected = play(arrays, actions, seed=7)
    assert any(ended(one).any() and not ended(one).all() for one in expected if len(one) == 5)
    assert all(one[1].dtype == np.float64 for one in expected if len(one) == 5)
    assert_same(on_host(played), with_rewards_of_tensors(expected))
    assert_same(returned, played, "later steps changed what had been returned:")
    assert_same(
        play(tensors, as_tensors, after=overwrite, seed=7), played, "what was returned was not the caller's own:"
    )
    assert all(isinstance(value, torch.Tensor) for value in tensors.weights().values())
    assert_same(on_host(tensors.weights()), arrays.weights())


def test_a_mask_of_tensors(tiny):
    """The flags that a step returned are a valid mask."""
    env, witness = (make(LR, 3, DISABLED, output=output, **tiny) for output in ("torch", "numpy"))
    for one in (env, witness):
        one.reset(seed=0)
        one.step([0, 1, 2])
    mask = torch.tensor([False, True, True])
    one, other = (some.reset(options={"reset_mask": m}) for some, m in ((env, mask), (witness, mask.numpy())))
    assert_same(on_host(one), other)


# --- Gymnasium's wrappers -------------------------------------------------------------------------------------------

# Those of observations refuse SAME_STEP.
WRAPPERS = {
    "statistics": (LR, [NEXT_STEP, SAME_STEP], wrappers.RecordEpisodeStatistics),
    "flattened": (LR, [NEXT_STEP], wrappers.FlattenObservation),
    "reshaped": (LR, [NEXT_STEP], lambda env: wrappers.ReshapeObservation(env, (33, 25))),
    "normalised observation": (MINIBATCH, [NEXT_STEP], wrappers.NormalizeObservation),
    "normalised reward": (LR, [NEXT_STEP, SAME_STEP], wrappers.NormalizeReward),
    "clipped": (LR, [SAME_STEP, DISABLED], lambda env: wrappers.ClipReward(env, -0.001, 0.001)),
    "clipped action": ("continuous", [NEXT_STEP, DISABLED], wrappers.ClipAction),
    "stacked": (LR, [NEXT_STEP], lambda env: wrappers.NormalizeReward(wrappers.RecordEpisodeStatistics(env))),
}


@pytest.mark.parametrize(("name", "mode"), [(name, mode) for name, (_, modes, _) in WRAPPERS.items() for mode in modes])
def test_wrappers(name, mode, tiny, one_thread):
    """They have the same results around the vector environment and around Gymnasium's own."""
    game, _, wrapper = WRAPPERS[name]
    env_id, arguments = (LR, {"continuous": True}) if game == "continuous" else (game, {})
    rows, singles, plain = (make_one(env_id, 2, mode, **tiny | arguments) for make_one in (make, make_singles, make))
    actions = sample(rows, 5)
    results = [play(env, actions, seed=7) for env in (wrapper(rows), wrapper(singles))]
    for step in (one for played in results for one in played):
        if "episode" in step[-1]:
            assert (step[-1]["episode"].pop("t")[ended(step)] > 0).all()
    assert_same(*results)
    assert len(results[0]) == len(play(plain, actions, seed=7))


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_episode_statistics(mode, small):
    """Lengths of the episodes, and returns, which are the sums of the rewards."""
    env = wrappers.RecordEpisodeStatistics(make(LR, 3, mode, **small))
    played = play(env, sample(env, two_episodes(env)), seed=0)
    steps = [one for one in played if len(one) == 5]
    first, second = (number for number, one in enumerate(steps) if ended(one).any())
    assert (first, second) == ((2, 6) if mode == NEXT_STEP else (2, 5))
    for begin, end in ((0, first), (first + 1, second)):
        assert steps[end][4]["episode"]["l"].tolist() == [3] * 3
        total = sum(one[1] for one in steps[begin : end + 1])
        np.testing.assert_allclose(steps[end][4]["episode"]["r"], total, rtol=1e-6, atol=1e-9)
    assert env.episode_count == 6


def test_infos_as_a_list(tiny):
    """A dict for every row, as single environments have them; test_loss where an episode ended."""
    env = wrappers.DictInfoToList(make(LR, 2, **tiny))
    _, infos = env.reset(seed=0)
    assert [info["batch"] for info in infos] == [0, 0]
    for _ in range(2):
        *_, infos = env.step(np.array([0, 1]))
    assert [info["learning_rate"] for info in infos] == pytest.approx([0.06, 0.04])
    assert all("test_loss" in info for info in infos)


# --- inspection -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["numpy", "torch"])
@pytest.mark.parametrize("env_id", [LR, CIFAR])
def test_weights_are_copies(env_id, output, of_id):
    """They have the documented shapes; overwriting them changes nothing, and a later step does not change them."""
    env, witness = (make(env_id, 3, output=output, **of_id(env_id, "tiny")) for _ in range(2))
    env.reset(seed=0)
    witness.reset(seed=0)
    weights = env.weights()
    shapes = SHAPES if env_id == LR else build_network("resnet-8", (3, 32, 32), 10).shapes
    assert {name: tuple(value.shape) for name, value in weights.items()} == {
        name: (3, *shape) for name, shape in shapes.items()
    }
    assert all(str(value.dtype).endswith("float32") for value in weights.values())
    kept = deepcopy(weights)
    env.step([0, 1, 2])
    witness.step([0, 1, 2])
    assert_same(weights, kept)
    overwrite(env.weights())
    assert_same(env.weights(), witness.weights())
    assert not (env.weights()["conv1.weight"] == kept["conv1.weight"]).all()


@pytest.mark.parametrize("batches_per_action", [1, 3, 5])
def test_episode_length_is_the_steps_of_an_episode(batches_per_action, small):
    """Of a budget of 10 batches; a rest that fills no action is dropped."""
    env = make(LR, 2, **small | {"train_size": 20, "batches_per_action": batches_per_action})
    env.reset(seed=0)
    steps = 1
    while not env.step([0, 1])[3].all():
        steps += 1
    assert steps == env.episode_length == 10 // batches_per_action


# --- precision ------------------------------------------------------------------------------------------------------

LONGER = {"train_size": None, "batch_size": 10, "epochs": 6, "batches_per_action": 8, "learning_rate": 0.1}


@pytest.mark.slow
@pytest.mark.parametrize("env_id", [LR, MINIBATCH])
def test_bf16_trains(env_id, small):
    """The loss falls nearly as in float32; the weights are float32, and not equal to those of float32."""
    exact, rough = (make(env_id, 2, precision=name, engine="torch", **small | LONGER) for name in ("float32", "bf16"))
    begun = [env.reset(seed=0) for env in (exact, rough)]
    assert_same(*begun)
    for number in range(exact.episode_length):
        actions = np.array([2, 2]) if env_id == LR else np.array([number, number + 1])
        one, other = exact.step(actions), rough.step(actions)
        assert np.isfinite(other[0]).all()
    before, after, expected = (some[-1]["validation_loss"] for some in (begun[1], other, one))
    assert (after < before - 0.5).all()
    np.testing.assert_allclose(after, expected, atol=0.15)
    assert not np.array_equal(after, expected)
    for name, value in rough.weights().items():
        assert value.dtype == np.float32
        assert not np.array_equal(value, exact.weights()[name])
        np.testing.assert_allclose(value, exact.weights()[name], atol=0.05)


def test_tf32_on_cpu_is_refused(tiny):
    with pytest.raises(ValueError, match=r"'tf32' needs a CUDA device.*'float32' or 'bf16'"):
        make(LR, 2, precision="tf32", **tiny)


def test_unknown_precision(tiny):
    with pytest.raises(ValueError, match=r"precision must be one of float32, tf32, bf16, not 'float16'"):
        make(LR, 2, precision="float16", **tiny)


# --- memory ---------------------------------------------------------------------------------------------------------


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


def resident() -> int:
    """Bytes of memory that the process occupies; 0 where the system does not say."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", [NEXT_STEP, SAME_STEP], ids=str)
def test_memory_does_not_grow(mode, small):
    """Over 75 steps and many episodes, which end at different times."""
    arguments = {**small, "train_size": 20, "batches_per_action": 1, "reference": "previous", "distillation": 0.5}
    env = make(MINIBATCH, 3, mode, target_loss=2.295, **arguments)
    env.reset(seed=0)
    actions = sample(env, 40)
    for action in actions:
        env.step(action)
    tensors, memory = live_tensors(), resident()
    ends = 0
    for number in range(75):
        ends += ended(env.step(actions[number % 40])).astype(int)
    assert (ends >= 75 // 11).all()
    assert len(set(ends)) > 1
    assert live_tensors() <= tensors + 5
    assert resident() <= memory + 32 * 2**20


def test_a_closed_environment_gives_its_memory_back(tiny):
    before = live_tensors()
    env = make(LR, 4, **tiny)
    env.reset(seed=0)
    env.step([0, 1, 2, 0])
    assert live_tensors() > before + 20
    env.close()
    assert live_tensors() <= before + 20  # the data set is kept for the next one


# --- CUDA -----------------------------------------------------------------------------------------------------------

# Two devices add up in different orders, over an episode of 6 mini-batches.
CUDA_CLOSE = {"rtol": 2e-2, "atol": 2e-2}


@pytest.fixture
def on_cuda(of_id):
    """(id) -> every action within one epoch, so that each is a replay of the captured graph from the third on."""
    return lambda env_id: {**of_id(env_id), "batches_per_action": 1, "distillation": 0.1, "device": "cuda"}


@pytest.mark.cuda
@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("env_id", [LR, MINIBATCH])
def test_cuda_rows_are_those_of_the_cpu(env_id, mode, on_cuda):
    """The same mini-batches exactly; the numbers but for the rounding of two devices."""
    gpu, cpu = (make(env_id, 3, mode, **on_cuda(env_id) | {"device": device}) for device in ("cuda", "cpu"))
    actions = sample(cpu, cpu.episode_length + 2)
    indices: list[list[torch.Tensor]] = [[], []]

    def play_and_keep(env: VectorEnv, kept: list[torch.Tensor]) -> list[tuple]:
        # A copy: on the CPU, `cpu()` gives the tensor of the environment itself.
        return play(env, actions, lambda _: kept.append(env.training.run.batch_indices.cpu().clone()), seed=7)

    played = [play_and_keep(env, kept) for env, kept in zip((gpu, cpu), indices, strict=True)]
    assert_same(*played, **CUDA_CLOSE)
    assert all(torch.equal(one, other) for one, other in zip(*indices, strict=True))
    assert any(not torch.equal(one, indices[1][0]) for one in indices[1])
    assert_same(gpu.weights(), cpu.weights(), **CUDA_CLOSE)


@pytest.mark.cuda
@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("env_id", [LR, MINIBATCH, CIFAR])
def test_cuda_rows_are_the_single_environment(env_id, mode, on_cuda):
    rows, singles = (make_one(env_id, 3, mode, **on_cuda(env_id)) for make_one in (make, make_singles))
    actions = sample(rows, rows.episode_length + 3)
    assert_same(play(rows, actions, seed=7), play(singles, actions, seed=7), rtol=1e-2, atol=1e-2)


@pytest.mark.cuda
@pytest.mark.parametrize("env_id", [LR, MINIBATCH, CIFAR])
def test_a_captured_graph_does_what_its_function_does(env_id, on_cuda):
    """Two steps before the capture, the third captured, then replays; into the next epoch and the next episode."""
    captured, eager = (make(env_id, 3, **on_cuda(env_id)) for _ in range(2))
    for half in ("act_and_train", "see"):
        setattr(eager.training, half, getattr(eager.training, half).function)
    assert_same(captured.reset(seed=7), eager.reset(seed=7))
    for number, action in enumerate(sample(captured, captured.episode_length + 4), start=1):
        assert_same(captured.step(action), eager.step(action), f"step {number}", rtol=1e-3, atol=1e-3)
        assert captured.training.act_and_train.is_captured == (number >= 3)
    assert_same(captured.weights(), eager.weights(), rtol=1e-3, atol=1e-3)


@pytest.mark.cuda
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_tensors_on_cuda(mode, on_cuda):
    """They lie on the device, do not change later, and have the numbers of the arrays."""
    tensors, arrays = (make(LR, 3, mode, output=output, **on_cuda(LR)) for output in ("torch", "numpy"))
    actions = sample(arrays, arrays.episode_length + 3)
    returned: list[tuple] = []
    played = play(tensors, [torch.tensor(action, device="cuda") for action in actions], returned.append, seed=7)
    assert_same(returned, played, "later steps changed what had been returned:")
    for one in played:
        assert all(part.is_cuda for part in (*one[:-1], one[-1]["loss"], one[-1]["_loss"]))
    expected = with_rewards_of_tensors(play(arrays, actions, seed=7))
    assert_same(on_host(played), expected, rtol=1e-3, atol=1e-3)
    assert all(value.is_cuda for value in tensors.weights().values())


@pytest.mark.cuda
@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_memory_on_cuda_does_not_grow(mode, output, on_cuda):
    env = make(LR, 4, mode, output=output, **on_cuda(LR))
    actions = sample(env, 40)
    play(env, actions, seed=0)
    gc.collect()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        play(env, actions, seed=0)
    gc.collect()
    assert torch.cuda.memory_allocated() <= before + 2**20


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("env_id", [LR, CIFAR])
def test_other_precisions_on_cuda(env_id, precision, on_cuda):
    """Near float32, not equal to it; and the setting of the process is unchanged."""
    setting = torch.backends.cuda.matmul.fp32_precision
    exact, rough = (make(env_id, 2, precision=name, **on_cuda(env_id)) for name in ("float32", precision))
    actions = sample(exact, exact.episode_length)
    one, other = (play(env, actions, seed=7)[-1] for env in (exact, rough))
    assert torch.backends.cuda.matmul.fp32_precision == setting
    np.testing.assert_allclose(one[0], other[0], atol=0.1)
    assert not np.array_equal(one[0], other[0])
