"""The state of the runs: a field or a game's tensor that is declared once is allocated, reset, saved and forked."""

from dataclasses import dataclass, fields

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import TINY, made_network, made_runs, start
from numpy.typing import NDArray
from torch import Tensor

from qan_gym.config import TaskConfig
from qan_gym.core.components import build_components
from qan_gym.core.run_state import RunState, TensorSpec, per_network, per_run
from qan_gym.core.training import Training
from qan_gym.games import register_game
from qan_gym.games.learning_rate import LearningRateGame
from qan_gym.optimizee.network import Params

LR = "QanLR-MNIST5k-v1"


@dataclass(kw_only=True)
class ExtendedRunState(RunState):
    """A state with one field more of each kind."""

    number: Tensor = per_run("n_classes", 2, dtype=torch.int64, at_reset=7)
    from_config: Tensor = per_run(dtype=torch.float64, at_reset="batch_size")
    left: Tensor = per_run(at_reset=None)
    transient: Tensor = per_run(at_reset=1, saved=False)
    known_to_host: NDArray[np.int64] = per_run(dtype=torch.int64, at_reset=3, on_host=True)
    average: Params = per_network("params", at_reset=0.5)
    trace: dict[str, Params] = per_network("slots", at_reset=None, saved=False)


ADDED = {"number", "from_config", "left", "transient", "known_to_host", "average", "trace"}
CONFIG = TaskConfig(game="minibatch", batch_size=20)
ALL, SECOND = np.array([True, True, True]), np.array([False, True, False])


def extended(num_runs: int = 3) -> ExtendedRunState:
    network = made_network(first=(2, 3), second=(4,))
    run = made_runs(num_runs, CONFIG, network, ExtendedRunState, slots=("velocity",), n_classes=4)
    assert isinstance(run, ExtendedRunState)
    return run


def fill(run: RunState, value: int) -> None:
    """Write a number into every tensor."""
    for _, _, tensor in run.leaves():
        tensor.fill_(value)


def rows_of(mask: NDArray[np.bool_]) -> Tensor:
    return torch.from_numpy(np.flatnonzero(mask))


# --- the fields -----------------------------------------------------------------------------------------------------


def test_every_field_is_declared():
    """But for what decides the shapes, the action as it was given, and the tensors that the game declares."""
    assert {one.name for one in fields(RunState) if "spec" not in one.metadata} == {"layout", "xp", "action", "game"}
    assert {one.name for one in fields(ExtendedRunState)} - {one.name for one in fields(RunState)} == ADDED


def test_allocate():
    """Of the declared shapes and types, the runs first; zeros, and no episode has begun."""
    run = extended()
    assert run.number.shape == (3, 4, 2)
    assert run.number.dtype == torch.int64
    assert run.from_config.dtype == torch.float64
    assert run.left.dtype == torch.float32
    assert isinstance(run.known_to_host, np.ndarray)
    assert {name: tuple(value.shape) for name, value in run.average.items()} == {
        "first.weight": (3, 2, 3),
        "second.weight": (3, 4),
    }
    assert run.trace.keys() == {"velocity"}
    assert run.trace["velocity"].keys() == run.average.keys()
    assert run.game["recent_actions"].shape == (3, 10)
    leaves = list(run.leaves())
    assert {name.split(".")[0] for name, _, _ in leaves} >= ADDED | {"game"}
    assert len({name for name, _, _ in leaves}) == len(leaves)
    for name, _, tensor in leaves:
        assert len(tensor) == 3, name
        assert tensor.all() if name == "over" else not tensor.any(), name


def test_no_two_fields_share_memory():
    """But for the parameters, which are views of their memory."""
    run = extended()
    for number, (name, _, tensor) in enumerate(run.leaves(), start=1):
        if name != "memory":
            tensor.fill_(number)
    for number, (name, spec, tensor) in enumerate(run.leaves(), start=1):
        expected = True if isinstance(spec, TensorSpec) and spec.dtype == torch.bool else number
        assert name == "memory" or (tensor == expected).all(), name
    for value in run.params.values():
        assert value.untyped_storage().data_ptr() == run.memory.untyped_storage().data_ptr()


@pytest.mark.parametrize("mask", [ALL, SECOND], ids=["all", "one"])
def test_reset(mask):
    """Declared values are set in the rows of the mask; the other rows, and fields without one, stay."""
    run = extended()
    fill(run, 1)
    run.known_to_host[:] = 1
    run.reset(mask, rows_of(mask), CONFIG)
    values = {"number": 7, "from_config": 20, "left": 1, "transient": 1, "known_to_host": 3, "learning_rate": 0.05}
    values |= {"over": False, "batch": 0, "last_action": -1, "game.recent_actions": 0, "seed": 1, "order": 1}
    values |= {"average.first.weight": 0.5, "trace.velocity.second.weight": 1, "slots.velocity.first.weight": 0}
    found = {name: tensor for name, _, tensor in run.leaves()}
    for name, value in values.items():
        assert (found[name][rows_of(mask)] == value).all(), name
    for name, tensor in found.items():
        assert (tensor[rows_of(~mask)] == 1).all(), name


def test_saved():
    """The tensors that are declared to be saved, themselves and not copies."""
    run = extended()
    saved = run.saved()
    assert saved.keys() == {name for name, spec, _ in run.leaves() if spec.saved}
    kept = {name.split(".")[0] for name in saved}
    assert kept & ADDED == {"number", "from_config", "left", "known_to_host", "average"}
    assert "game.recent_actions" in saved
    assert not kept & {"transient", "trace", "memory", "clock", "device_seed", "ended"}
    for value in saved.values():
        value.fill_(1)
    assert (run.number == 1).all()
    assert (run.known_to_host == 1).all()
    assert (run.average["second.weight"] == 1).all()
    assert (run.game["recent_actions"] == 1).all()


def numbered(run: RunState) -> dict[str, Tensor]:
    """Other values for all that is saved: each tensor has its own, each row another."""
    return {
        name: (torch.arange(len(value)) + number).view(-1, *[1] * (value.dim() - 1)).expand_as(value).to(value.dtype)
        for number, (name, value) in enumerate(run.saved().items())
    }


def test_restore():
    """Everything that is saved comes back, and the copies of the clocks follow; the rest stays."""
    run = extended()
    values = numbered(run)
    run.transient.fill_(5)
    run.restore(values)
    for name, value in run.saved().items():
        assert torch.equal(value, values[name]), name
    assert run.clock.tolist() == values["batch"].tolist()
    assert run.device_seed.tolist() == values["seed"].tolist()
    assert run.clock.tolist() != run.device_seed.tolist()
    assert (run.transient == 5).all()
    other = extended()
    other.restore(run.saved())
    run.number.zero_()
    assert torch.equal(other.number, values["number"]), "the restored state shares memory with what it was given"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda state: state.pop("number"), "other tensors: number"),
        (lambda state: state.pop("game.recent_actions"), r"other tensors: game\.recent_actions"),
        (lambda state: state.pop("average.first.weight"), r"other tensors: average\.first\.weight"),
        (lambda state: state.update(unknown=torch.zeros(3)), "other tensors: unknown"),
        (lambda state: state.update(transient=torch.zeros(3)), "other tensors: transient"),
        (lambda state: state.update(b=state.pop("number"), a=state.pop("left")), "other tensors: a, b, left, number"),
        (lambda state: state.update(left=torch.zeros(4)), r"the state's left is \(4,\) torch.float32, not \(3,\)"),
        (lambda state: state.update(number=torch.zeros(3, 2, 4).long()), r"number is \(3, 2, 4\) .* not \(3, 4, 2\)"),
        (lambda state: state.update(left=state["left"].double()), "left is .* torch.float64, not .* torch.float32"),
        (lambda state: state.update(seed=state["seed"].int()), "seed is .* torch.int32, not .* torch.int64"),
        (lambda state: state.update({"params.first.weight": torch.zeros(3, 6)}), r"params\.first\.weight is \(3, 6\)"),
    ],
    ids=[
        *("missing", "missing of the game", "missing of a network", "unknown", "not a saved one", "several"),
        *("another number of runs", "shape", "dtype", "dtype on the host", "shape of a network"),
    ],
)
def test_restore_refuses(change, match):
    """And changes nothing, also in what comes before that which is wrong."""
    run = extended()
    run.reset(ALL, rows_of(ALL), CONFIG)
    before = {name: tensor.clone() for name, _, tensor in run.leaves()}
    state = numbered(run)
    change(state)
    with pytest.raises(ValueError, match=match):
        run.restore(state)
    for name, _, tensor in run.leaves():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True, msg=name)


def test_fork():
    """A state of the same class; every row is the only one that there was, in a memory of its own."""
    run = extended(1)
    values = numbered(run)
    run.restore(values)
    forked = run.fork(4)
    assert type(forked) is ExtendedRunState
    assert forked.saved().keys() == values.keys()
    for name, value in forked.saved().items():
        assert value.shape == (4, *values[name].shape[1:])
        assert torch.equal(value, values[name].expand_as(value)), name
    assert forked.clock.tolist() == [run.clock.item()] * 4
    fill(forked, 0)
    forked.number[0] = 9
    assert (forked.number[1:] == 0).all()
    assert torch.equal(run.number, values["number"])
    assert torch.equal(run.average["first.weight"], values["average.first.weight"])


def test_a_training_plays_with_a_field_more(small_data):
    """It resets the field with the episode, keeps it in a saved state, and takes it along in a fork."""
    config = TaskConfig(**TINY | {"dataset": small_data, "train_size": 40})
    parts = build_components(config, "cpu")
    layout = Training(parts, None, 1).run.layout
    training = Training(parts, None, 1, run=ExtendedRunState.allocate(layout))
    training.reset(np.array([True]), np.array([5]))
    assert (training.run.number == 7).all()
    assert training.run.from_config.tolist() == [10]
    training.run.number.fill_(8)
    training.step(torch.tensor([0]))
    assert (training.run.saved()["number"] == 8).all()
    fork = training.fork(2)
    assert (fork.run.number == 8).all()
    assert torch.equal(fork.run.params["conv1.weight"][1], training.run.params["conv1.weight"][0])
    one, two = training.step(torch.tensor([1])), fork.step(torch.tensor([1, 1]))
    torch.testing.assert_close(two.observation, one.observation.repeat(2, axis=0), rtol=1e-3, atol=1e-4)
    plain = start(config, [5])
    for action in (0, 1):
        result = plain.step(torch.tensor([action]))
    assert np.array_equal(result.observation, one.observation), "a field more changed the training"


# --- the tensors of a game ------------------------------------------------------------------------------------------


class CountingGame(LearningRateGame):
    """The learning-rate game, which counts the actions of each kind in a tensor of its own."""

    def tensors(self, config, n_classes):
        return {
            "count": TensorSpec((3,), torch.int64, at_reset=100),
            "classes": TensorSpec(("n_classes",), saved=False),
        }

    def apply(self, run, actions, config):
        super().apply(run, actions, config)
        run.game["count"] += actions[:, None] == np.arange(3)


def test_a_tensor_of_a_game_is_part_of_the_state(registries, small_data):
    """In the environment: reset with the episode, saved, restored and forked."""
    register_game("counting", CountingGame())
    arguments = {"game": "counting", "dataset": small_data, "train_size": 40, **TINY}
    env, other = (gym.make(LR, **arguments) for _ in range(2))
    env.reset(seed=0)
    run = env.unwrapped.training.run
    assert run.game["count"].tolist() == [[100, 100, 100]]
    assert run.game["classes"].tolist() == [[0.0] * 10]
    for action in (0, 2, 2):
        env.step(action)
    assert run.game["count"].tolist() == [[101, 100, 102]]
    state = env.unwrapped.get_state()
    assert state.arrays["game.count"].tolist() == [[101, 100, 102]]
    assert "game.classes" not in state.arrays
    assert env.unwrapped.training.fork(2).run.game["count"].tolist() == [[101, 100, 102]] * 2
    other.reset(seed=1)
    other.unwrapped.set_state(state)
    assert other.unwrapped.training.run.game["count"].tolist() == [[101, 100, 102]]
    env.reset()
    assert run.game["count"].tolist() == [[100, 100, 100]]


def test_a_tensor_of_a_game_in_rows(registries, small_data):
    register_game("counting", CountingGame())
    env = gym.make_vec(LR, num_envs=3, game="counting", dataset=small_data, train_size=40, **TINY)
    env.reset(seed=0)
    env.step([0, 1, 2])
    count = env.training.run.game["count"]
    assert count.tolist() == [[101, 100, 100], [100, 101, 100], [100, 100, 101]]
    env.reset(options={"reset_mask": SECOND})
    assert count.tolist() == [[101, 100, 100], [100, 100, 100], [100, 100, 101]]
