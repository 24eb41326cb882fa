"""An episode depends on its seed and its actions alone; a saved one continues bit for bit."""

import copy
import hashlib
import json
import multiprocessing
import multiprocessing.pool
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from helpers import made_deep_game
from safetensors.numpy import save_file

from qan_gym.env import QanEnv
from qan_gym.state import State

LR, MINIBATCH, CIFAR = "QanLR-MNIST5k-v1", "QanMinibatch-MNIST5k-v1", "QanLR-CIFAR10-v0"

# Epochs of 100 mini-batches of 10, of 40 of 20, and of 20 of 4.
SMALL = {
    LR: {"train_size": 1000, "epochs": 2, "batches_per_action": 1},
    MINIBATCH: {"train_size": 800, "epochs": 5, "batch_size": 20},
    CIFAR: {"batch_size": 4, "epochs": 10},
}


@pytest.fixture(scope="module")
def of_id(reference_file: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """(id) -> its reference, and made data in the place of CIFAR-10, in a file that other processes read too."""
    deep = made_deep_game(tmp_path_factory.mktemp("deep"))
    return lambda env_id: deep if env_id == CIFAR else {"reference": reference_file}


def make(env_id: str, reference: str | None, **kwargs: Any) -> gym.Env:
    return gym.make(env_id, **SMALL[env_id] | {"reference": reference} | kwargs)


def random_actions(env: gym.Env, number: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(env.action_space.n, size=number).tolist()


def play(env: gym.Env, actions: list) -> list[tuple]:
    """All that can be observed of these actions, comparable bit by bit."""
    return [(*seen(env.step(action)), digest_of(env)) for action in actions]


def seen(result: tuple) -> tuple:
    """The values that reset or step returned, comparable."""
    return tuple(part.tobytes() if isinstance(part, np.ndarray) else part for part in result)


def digest_of(env: gym.Env) -> str:
    """A digest of the weights with running statistics, of the optimizer's buffers and of the last batches."""
    digest = hashlib.blake2b()
    core = env.unwrapped
    slots = [value.numpy() for buffers in core.training.run.slots.values() for value in buffers.values()]
    for value in (*core.weights().values(), *slots, core.batch_indices):
        digest.update(value.tobytes())
    return digest.hexdigest()


def episode(env_id: str, arguments: dict[str, Any], seed: int, steps: int) -> tuple[tuple, list[tuple]]:
    """All that can be observed of `steps` random actions from a seed."""
    env = make(env_id, **arguments)
    return seen(env.reset(seed=seed)), play(env, random_actions(env, steps))


# --- seeds ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def process() -> Iterator[multiprocessing.pool.Pool]:
    """A fresh interpreter."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        yield pool


@pytest.mark.parametrize(
    ("env_id", "steps"),
    [
        *((LR, 110), (MINIBATCH, 50)),  # into the second epoch
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((CIFAR, 30), (LR, 200), (MINIBATCH, 200), (CIFAR, 60))
        ),
    ],
)
def test_steps_are_the_same_in_another_process(
    env_id: str, steps: int, of_id: Callable, process: multiprocessing.pool.Pool
) -> None:
    """Bit by bit in a fresh interpreter; and another seed gives another episode."""
    here = episode(env_id, of_id(env_id), 7, steps)
    there, other = process.starmap(episode, [(env_id, of_id(env_id), seed, steps) for seed in (7, 8)])
    assert len(here[1]) == steps
    assert here == there
    assert not any(some == others for some, others in zip(here[1], other[1], strict=True))


@pytest.mark.parametrize("env_id", [LR, MINIBATCH, CIFAR])
def test_a_seed_decides_weights_and_order(env_id: str, of_id: Callable) -> None:
    """Another seed gives other initial weights in every tensor, and another order of the data."""
    env = make(env_id, **of_id(env_id))
    looks = []
    for seed in (0, 1, 0, 2**31, 2**40):
        first = seen(env.reset(seed=seed))
        weights = env.unwrapped.weights()
        env.step(0)
        looks.append((first, weights, env.unwrapped.batch_indices))
    zero, one, again, *large = looks
    # Batch norm begins with ones and zeros, and the bias of the last layer of a deep network with zeros.
    drawn = [name for name, value in zero[1].items() if env_id != CIFAR or value.ndim > 1]
    assert zero[0] == again[0]
    assert all(np.array_equal(zero[1][name], again[1][name]) for name in zero[1])
    assert np.array_equal(zero[2], again[2])
    for other in (one, *large):
        assert zero[0] != other[0]
        assert not any(np.array_equal(zero[1][name], other[1][name]) for name in drawn)
        assert not np.array_equal(zero[2], other[2])


@pytest.mark.parametrize("env_id", [LR, CIFAR])
def test_a_reset_without_a_seed_continues_from_the_last_seed(env_id: str, of_id: Callable) -> None:
    """reset(seed), reset(), reset() are three different episodes, and the same three every time."""
    runs = []
    for disturbed in (False, True):
        env = make(env_id, **of_id(env_id))
        starts = [seen(env.reset(seed=5))]
        if disturbed:  # the actions of an episode do not change the seed of the next
            play(env, [0, 1, 2])
        starts += [seen(env.reset()), seen(env.reset())]
        runs.append((starts, play(env, [0, 1, 0])))
    assert runs[0] == runs[1]
    starts = runs[0][0]
    assert len({repr(start) for start in starts}) == 3
    assert seen(env.reset(seed=5)) == starts[0]


@pytest.mark.parametrize("env_id", [LR, CIFAR])
def test_never_seeded_environments_differ(env_id: str, of_id: Callable) -> None:
    """Two environments without a seed play different episodes."""
    some, other = (make(env_id, **of_id(env_id)) for _ in range(2))
    assert seen(some.reset()) != seen(other.reset())


@pytest.mark.parametrize("env_id", [LR, CIFAR])
def test_two_environments_do_not_disturb_each_other(env_id: str, of_id: Callable) -> None:
    """In turns each does what it does alone; the global generators of numpy and torch are neither used nor changed."""
    alone = make(env_id, **of_id(env_id))
    begun = [seen(alone.reset(seed=1))]
    wanted = begun + play(alone, [0, 1, 0, 2])
    torch.manual_seed(5)
    before = torch.get_rng_state()
    some, other = (make(env_id, **of_id(env_id)) for _ in range(2))
    got = [seen(some.reset(seed=1))]
    other.reset(seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    for action in (0, 1, 0, 2):
        got += play(some, [action])
        other.step(0)
        assert torch.equal(torch.get_rng_state(), before)
        np.random.seed(action)  # noqa: NPY002 (the global generator is the point)
        before = torch.manual_seed(action).get_state()
    assert got == wanted


def test_the_callers_arrays_are_not_changed() -> None:
    """Neither actions nor returned arrays are changed later; and an action may be read-only."""
    env = make(LR, None, continuous=True)
    first, _ = env.reset(seed=0)
    action = np.array([0.5], np.float32)
    second, *_ = env.step(action)
    given = [first.copy(), second.copy()]
    weights, indices = env.unwrapped.weights(), env.unwrapped.batch_indices
    kept = [{name: value.copy() for name, value in weights.items()}, indices.copy()]
    frozen = np.array([-0.25], np.float32)
    frozen.setflags(write=False)
    env.step(frozen)
    env.reset()
    env.step(np.array([1.0], np.float32))
    assert action == np.float32(0.5)
    assert frozen == np.float32(-0.25)
    np.testing.assert_array_equal(first, given[0])
    np.testing.assert_array_equal(second, given[1])
    assert all(np.array_equal(weights[name], kept[0][name]) for name in weights)
    np.testing.assert_array_equal(indices, kept[1])


def test_a_reused_action_array_does_not_change_the_past() -> None:
    """The last action is that of the last step, also where the caller writes the next one into the same array."""
    env, twin = make(LR, None, continuous=True), make(LR, None, continuous=True)
    env.reset(seed=0)
    action = np.array([0.5], np.float32)
    env.step(action)
    before = env.unwrapped.get_state()
    action[0] = -0.75
    twin.unwrapped.set_state(env.unwrapped.get_state())
    assert_same(before, twin.unwrapped.get_state())


# --- save, restore, fork --------------------------------------------------------------------------------------------


def through_state(env: gym.Env, folder: Path, fresh: gym.Env) -> gym.Env:
    fresh.unwrapped.set_state(env.unwrapped.get_state())
    return fresh


def through_file(env: gym.Env, folder: Path, fresh: gym.Env) -> gym.Env:
    env.unwrapped.get_state().save(folder / "state.safetensors")
    assert [path.name for path in folder.iterdir()] == ["state.safetensors"]
    fresh.unwrapped.set_state(State.load(folder / "state.safetensors"))
    return fresh


def through_deepcopy(env: gym.Env, folder: Path, fresh: gym.Env) -> gym.Env:
    return copy.deepcopy(env)


def through_pickle(env: gym.Env, folder: Path, fresh: gym.Env) -> gym.Env:
    return pickle.loads(pickle.dumps(env))


WAYS: list[Callable[[gym.Env, Path, gym.Env], gym.Env]] = [
    through_state,
    through_file,
    through_deepcopy,
    through_pickle,
]


# In the middle of an epoch (of 100, 40 and 20 mini-batches) or at its end.
CASES = [(LR, 33), (LR, 100), (MINIBATCH, 33), (MINIBATCH, 20), (CIFAR, 13)]
PAIRS = {  # each case with some way and each way with some case; the other pairs are slow
    *((LR, 33, through_deepcopy), (LR, 100, through_file)),
    *((MINIBATCH, 33, through_pickle), (MINIBATCH, 20, through_state)),
    *((CIFAR, 13, through_file), (CIFAR, 13, through_pickle)),
}


@pytest.mark.parametrize(
    ("env_id", "steps", "way"),
    [
        pytest.param(*case, way, marks=[] if (*case, way) in PAIRS else [pytest.mark.slow])
        for case in CASES
        for way in WAYS
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_copy_continues_bit_for_bit(env_id: str, steps: int, way: Callable, of_id: Callable, tmp_path: Path) -> None:
    """In the middle of an epoch or at its end: the rest of the episode, and the next episode."""
    env = make(env_id, **of_id(env_id))
    env.reset(seed=4)
    actions = random_actions(env, steps + 12)
    play(env, actions[:steps])
    fresh = make(env_id, **of_id(env_id))
    fresh.reset(seed=9)  # within another episode
    play(fresh, actions[:5])
    fork = way(env, tmp_path, fresh)
    assert fork is not env
    assert digest_of(fork) == digest_of(env)
    fork, env = fork.unwrapped, env.unwrapped  # a wrapper demands a reset of its own
    forked = play(fork, actions[steps:]), seen(fork.reset()), play(fork, [0, 1])
    original = play(env, actions[steps:]), seen(env.reset()), play(env, [0, 1])
    assert forked == original  # and playing the copy first did not change the original


@pytest.mark.parametrize(
    ("env_id", "way"),
    [
        *((LR, way) for way in WAYS),
        *(pytest.param(CIFAR, way, marks=[] if way is through_file else [pytest.mark.slow]) for way in WAYS),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_copy_before_the_first_reset(env_id: str, way: Callable, of_id: Callable, tmp_path: Path) -> None:
    """Of an environment without a seed: both play the same first episode."""
    env = make(env_id, **of_id(env_id))
    fork = way(env, tmp_path, make(env_id, **of_id(env_id)))
    with pytest.raises(ResetNeeded):
        fork.unwrapped.step(0)
    assert seen(fork.reset()) == seen(env.reset())
    assert play(fork, [0, 1, 2]) == play(env, [0, 1, 2])


def test_a_copy_of_an_episode_that_is_over(tmp_path: Path) -> None:
    """It is over in the copy too."""
    env = make(LR, None, train_size=100, batches_per_action=10)
    env.reset(seed=0)
    for _ in range(2):
        *_, truncated, _ = env.step(2)
    assert truncated
    fork = through_file(env, tmp_path, make(LR, None, train_size=100, batches_per_action=10))
    with pytest.raises(ResetNeeded):
        fork.unwrapped.step(2)
    assert seen(fork.reset()) == seen(env.reset())


@pytest.mark.parametrize(
    ("env_id", "way"),
    [
        *((LR, through_file), (CIFAR, through_pickle)),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((LR, through_pickle), (CIFAR, through_file))),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_copy_has_the_previous_reference(env_id: str, way: Callable, of_id: Callable, tmp_path: Path) -> None:
    """With reference="previous" the copy has the final weights of the last episode."""
    game = of_id(env_id) | {"reference": "previous", "epochs": 1, "meta_momentum": 0.05, "batch_size": 10}
    kwargs = game | ({"batches_per_action": 4} if env_id == CIFAR else {"train_size": 200})  # 2 actions
    env = gym.make(env_id, **kwargs)
    env.reset(seed=0)
    for _ in range(2):
        *_, truncated, _ = env.step(0)
    assert truncated
    last = env.unwrapped.weights()
    env.reset()
    env.step(0)
    fork = way(env, tmp_path, gym.make(env_id, **kwargs))
    assert all(np.array_equal(fork.unwrapped.reference[name], last[name]) for name in last)
    forked = play(fork.unwrapped, [1]), seen(fork.reset()), play(fork, [0, 1])
    assert forked == (play(env.unwrapped, [1]), seen(env.reset()), play(env, [0, 1]))


def test_a_state_is_a_snapshot(reference_file: str) -> None:
    """Later steps do not change it, and it can be restored several times."""
    env = make(MINIBATCH, reference_file)
    env.reset(seed=0)
    play(env, [3] * 25)
    state = env.unwrapped.get_state()
    first = play(env, [1, 2, 3])
    for _ in range(2):
        env.unwrapped.set_state(state)
        assert play(env, [1, 2, 3]) == first


@pytest.mark.parametrize("sampler", ["game", "shuffled"])
def test_the_sampler_of_an_episode_is_part_of_its_state(sampler: str, tmp_path: Path) -> None:
    """A shuffled episode of the mini-batch game goes on as one."""
    env = make(MINIBATCH, None)
    env.reset(seed=0, options={"sampler": sampler})
    play(env, [3] * 3)
    fork = through_file(env, tmp_path, make(MINIBATCH, None))
    assert play(fork.unwrapped, [5, 6, 7]) == play(env, [5, 6, 7])


def test_a_state_can_be_rendered(reference_file: str) -> None:
    """A state that was taken without a render mode, in an environment that has one."""
    env = make(LR, reference_file)
    env.reset(seed=0)
    env.step(0)
    shown = make(LR, reference_file, render_mode="ansi")
    shown.reset(seed=1)
    shown.unwrapped.set_state(env.unwrapped.get_state())
    assert isinstance(shown.render(), str)
    shown.step(0)
    assert isinstance(shown.render(), str)


@pytest.mark.parametrize("way", [through_deepcopy, through_pickle], ids=lambda way: way.__name__)
def test_a_copy_has_the_arguments_of_the_original(way: Callable, reference_file: str, tmp_path: Path) -> None:
    """And its spec."""
    env = make(LR, reference_file, reward="accuracy", render_mode="ansi", observation="filters")
    fork = way(env, tmp_path, env)
    assert isinstance(fork.unwrapped, QanEnv)
    assert fork.unwrapped.config == env.unwrapped.config
    assert fork.spec == env.spec
    assert fork.render_mode == "ansi"
    assert fork.observation_space == env.observation_space


# --- states that are refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env_id", "kwargs", "named"),
    [
        (MINIBATCH, {}, "game"),
        (LR, {"batch_size": 20}, "batch_size"),
        (LR, {"reward": "accuracy"}, "reward"),
        (LR, {"train_size": 500}, "train_size"),
    ],
)
def test_the_state_of_another_game_is_refused(env_id: str, kwargs: dict, named: str) -> None:
    """The message says what differs, and the environment is as it was."""
    state = make(env_id, None, **kwargs)
    state.reset(seed=0)
    env = make(LR, None)
    env.reset(seed=1)
    before = digest_of(env)
    with pytest.raises(ValueError, match=named):
        env.unwrapped.set_state(state.unwrapped.get_state())
    assert digest_of(env) == before


def test_the_state_of_other_data_is_refused(tmp_path: Path) -> None:
    """A file of the same path with other images."""
    path, rng = tmp_path / "data.npz", np.random.default_rng(0)
    states = []
    for _ in range(2):
        arrays = {"x_train": rng.integers(256, size=(90, 28, 28), dtype=np.uint8), "y_train": np.arange(90) % 3}
        np.savez(path, x_test=arrays["x_train"], y_test=arrays["y_train"], **arrays)
        env = gym.make(LR, dataset=str(path), epochs=1, batches_per_action=1, reference=None)
        env.reset(seed=0)
        states.append(env.unwrapped.get_state())
    with pytest.raises(ValueError, match="fingerprint"):
        env.unwrapped.set_state(states[0])


def damaged(env: gym.Env, **changes: Any) -> State:
    """The state of an env with some arrays replaced, or left out (None)."""
    state = env.unwrapped.get_state()
    arrays = state.arrays | changes
    return State({name: value for name, value in arrays.items() if value is not None}, state.metadata)


@pytest.mark.parametrize(
    "changes",
    [
        {"params.conv1.weight": None},
        {"params.conv1.weight": np.zeros((1, 3), np.float32)},
        {"learning_rate": np.zeros(1, np.float32)},
        {"unknown": np.zeros(1, np.float32)},
        {"history": None},
    ],
    ids=["missing", "misshapen", "of another type", "too many", "without history"],
)
def test_a_state_with_other_arrays_is_refused(changes: dict) -> None:
    """The message names the array, and the environment is as it was."""
    env = make(LR, None)
    env.reset(seed=0)
    state = damaged(env, **changes)
    env.reset(seed=1)
    env.step(0)
    before = env.unwrapped.get_state()
    with pytest.raises(ValueError, match=next(iter(changes))):
        env.unwrapped.set_state(state)
    assert_same(before, env.unwrapped.get_state())


def assert_same(some: State, other: State) -> None:
    assert some.metadata == other.metadata
    assert some.arrays.keys() == other.arrays.keys()
    for name, value in some.arrays.items():
        np.testing.assert_array_equal(value, other.arrays[name], err_msg=name)


@pytest.fixture
def state_file(tmp_path: Path) -> Path:
    env = make(LR, None)
    env.reset(seed=0)
    env.step(0)
    env.unwrapped.get_state().save(tmp_path / "state")
    return tmp_path / "state"


@pytest.mark.parametrize("share", [0.0, 1e-5, 0.001, 0.5, 0.999999])
def test_a_truncated_file_is_refused(share: float, state_file: Path) -> None:
    """Wherever it was cut off; the message names the file."""
    content = state_file.read_bytes()
    state_file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="state") as caught:
        State.load(state_file)
    assert str(state_file) in str(caught.value)


def test_a_corrupt_header_is_refused(state_file: Path) -> None:
    """One of the first bytes inverted: an error that names the file, or, where it does not matter, the same state."""
    content = bytearray(state_file.read_bytes())
    whole = State.load(state_file)
    for place in range(0, 400, 7):
        bad = bytearray(content)
        bad[place] ^= 0xFF
        state_file.write_bytes(bad)
        try:
            state = State.load(state_file)
        except ValueError as error:
            message = str(error)
        else:
            assert state.metadata == whole.metadata, f"byte {place}"
            continue
        assert str(state_file) in message


def test_corrupt_numbers_are_refused(state_file: Path) -> None:
    """A bit flipped in the weights: an error that names the file."""
    content = bytearray(state_file.read_bytes())
    content[len(content) // 2] ^= 0x10
    state_file.write_bytes(content)
    with pytest.raises(ValueError, match="state") as caught:
        State.load(state_file)
    assert str(state_file) in str(caught.value)


@pytest.mark.parametrize("content", ["text", "npz", "safetensors", "pickle"])
def test_a_foreign_file_is_refused(content: str, tmp_path: Path) -> None:
    """A file of another program; the message names it."""
    path = tmp_path / "foreign"
    arrays = {"weight": np.zeros(3, np.float32)}
    if content == "text":
        path.write_text("hello\n" * 100)
    elif content == "npz":
        with path.open("wb") as file:
            np.savez(file, **arrays)
    elif content == "safetensors":
        save_file(arrays, path)
    else:
        path.write_bytes(pickle.dumps(arrays))
    with pytest.raises(ValueError, match="foreign") as caught:
        State.load(path)
    assert str(path) in str(caught.value)


def test_reference_weights_are_no_state(reference_file: str) -> None:
    """A file of reference weights is refused, when it is set at the latest."""
    env = make(LR, None)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="state"):
        env.unwrapped.set_state(State.load(reference_file))


def test_a_missing_file(tmp_path: Path) -> None:
    """FileNotFoundError, with the name."""
    with pytest.raises(FileNotFoundError, match="nothing"):
        State.load(tmp_path / "nothing")


def test_a_save_that_fails_leaves_the_old_file(state_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are written aside and renamed: after an error the old state is whole, with no file beside it."""
    before = state_file.read_bytes()
    state = State.load(state_file)
    with pytest.raises(TypeError):
        State(state.arrays, {"not JSON": object()}).save(state_file)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", _fail)
        with pytest.raises(OSError, match="the disk is full"):
            state.save(state_file)
    assert state_file.read_bytes() == before
    assert list(state_file.parent.iterdir()) == [state_file]


def _fail(*_: object) -> None:
    raise OSError("the disk is full")


def test_a_state_file_holds_no_code(state_file: Path) -> None:
    """safetensors: the length of a JSON header, the header, numbers."""
    content = state_file.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = json.loads(header.pop("__metadata__")["qan_gym"])
    assert metadata["config"]["game"] == "learning-rate"
    assert "params.conv1.weight" in header
