"""The optimizers: their buffers, their defaults, and AdamW in every game."""

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from deep_tasks import ALONE, CIFAR, KINK, SMALL, distance, made_photographs, make, slots_of
from helpers import made_arrays
from oracles.deep_networks import KEEP, LOWER, RAISE, network_of

from qan_gym.data import datasets as data
from qan_gym.state import State
from qan_gym.tasks import FAMILIES, OPTIMIZER_DEFAULTS, TASKS, make_task_config


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    return made_photographs(tmp_path_factory.mktemp("data"))


# --- the buffers of the optimizer -----------------------------------------------------------------------------------


def gradients_of(core, before: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of the last mini-batch, at the weights before it, by the oracle's network and autograd."""
    network = network_of("resnet-8", before).train()
    images, labels = core.split("train")
    (batch,) = core.batch_indices
    loss = F.cross_entropy(network(torch.from_numpy(images[batch])), torch.from_numpy(labels[batch]))
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    return dict(zip(core.training.network.trained, (value.numpy() for value in gradients), strict=True))


def test_momentum_survives_a_change_of_the_learning_rate(npz):
    """The update holds the gradients of all earlier actions (the original made a new buffer at every action).

    A fresh buffer at every action would make the update lr * gradient; by hand, it is lr * (g + 0.9 (g' + 0.9 ...)).
    """
    core = make(dataset=npz, **SMALL | {"weight_decay": 0.0})
    core.reset(seed=4)
    history: list[dict[str, np.ndarray]] = []
    for action, rate in [(RAISE, 0.11), (RAISE, 0.12), (LOWER, 0.11), (LOWER, 0.10), (KEEP, 0.10), (RAISE, 0.11)]:
        before = core.weights()
        core.step(action)
        history.insert(0, gradients_of(core, before))
        for name in ("conv1.weight", "block2.shortcut.0.weight", "norm1.bias", "linear.bias"):
            moved = before[name] - core.weights()[name]
            kept = rate * sum(0.9**age * gradients[name] for age, gradients in enumerate(history))
            assert distance(moved, kept) < KINK
            if len(history) > 1:
                fresh = rate * history[0][name]
                assert distance(moved, fresh) > 0.2


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_buffers_are_zero_when_an_episode_begins(optimizer, npz):
    core = make(dataset=npz, **SMALL, optimizer=optimizer)
    names = {"sgd": ["momentum"], "adamw": ["mean", "square"]}[optimizer]
    for _ in range(2):
        core.reset(seed=0)
        slots = slots_of(core)
        assert list(slots) == names
        assert not any(value.any() for values in slots.values() for value in values.values())
        core.step(RAISE)
        assert all(values["conv1.weight"].any() for values in slots_of(core).values())


@pytest.mark.parametrize(
    ("optimizer", "saved"),
    [
        *(("sgd", "in a file"), ("adamw", "in memory")),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in (("sgd", "in memory"), ("adamw", "in a file"))),
    ],
)
def test_a_restored_training_continues_bit_for_bit(optimizer, saved, npz, tmp_path):
    """Weights, running statistics, buffers and moves of the images, past the end of an epoch to that of the episode."""
    game = SMALL | {"optimizer": optimizer, "augment": "reflect", "train_size": 40, "early_stopping": 3}
    core, fork = (make(dataset=npz, **game) for _ in range(2))
    core.reset(seed=7)
    for action in (RAISE, LOWER, RAISE):
        core.step(action)
    state = core.get_state()
    if saved == "in a file":
        state.save(tmp_path / "state.safetensors")
        state = State.load(tmp_path / "state.safetensors")
    fork.reset(seed=8)
    fork.step(KEEP)
    fork.set_state(state)
    for action in (KEEP, RAISE, RAISE, LOWER, KEEP, LOWER, RAISE):
        observation, *one = core.step(action)
        same, *other = fork.step(action)
        assert np.array_equal(observation, same)
        assert one == other
    assert one[2], "the episode has not ended"
    mine = core.training.run.saved()
    assert {"params.norm1.running_var", *(f"slots.{slot}.norm1.bias" for slot in core.training.run.slots)} < mine.keys()
    assert all(torch.equal(value, fork.training.run.saved()[name]) for name, value in mine.items())


# --- AdamW in every game --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", [env_id for env_id in TASKS if env_id not in FAMILIES])
def test_adamw_brings_its_own_defaults(env_id, registries, monkeypatch):
    """Its learning rate and the range around it, in every id, each of which the caller may set otherwise."""
    shape = (32, 32, 3) if env_id == CIFAR else (28, 28)
    for name in ("mnist", "cifar10", "mnist5k"):
        monkeypatch.setitem(data.DATASETS, name, lambda: made_arrays(n_train=90, shape=shape))
    game = {"optimizer": "adamw", "batch_size": 10, "batches_per_action": 1, "epochs": 1, **ALONE}
    if env_id == CIFAR:
        game["network"] = "resnet-8"
    config = make_task_config(env_id, game)
    defaults = {"learning_rate": 1e-3, "learning_rate_step": 1e-4, "learning_rate_min": 1e-4, "learning_rate_max": 0.02}
    defaults |= {"momentum": 0.9, "nesterov": False, "weight_decay": 0.01}
    assert OPTIMIZER_DEFAULTS["adamw"] == defaults
    assert {name: getattr(config, name) for name in defaults} == defaults
    unchanged = TASKS[env_id]
    for name in ("learning_rate", "learning_rate_step", "learning_rate_max", "momentum", "weight_decay"):
        assert getattr(make_task_config(env_id, {}), name) == getattr(unchanged, name)
        assert getattr(make_task_config(env_id, {"optimizer": "sgd"}), name) == getattr(unchanged, name)

    def rates(**kwargs) -> list[float]:
        """At the start, after raising, after raising, after lowering; constant in the mini-batch game."""
        env = gym.make(env_id, **game, **kwargs)
        return [env.reset(seed=0)[1]["learning_rate"], *(env.step(a)[4]["learning_rate"] for a in (0, 0, 1))]

    by_hand = [1e-3, 1.1e-3, 1.2e-3, 1.1e-3] if config.game == "learning-rate" else [1e-3] * 4
    assert rates() == pytest.approx(by_hand, rel=1e-9)
    own = [0.004, 0.005, 0.005, 0.004] if config.game == "learning-rate" else [0.004] * 4
    chosen = {"learning_rate": 0.004, "learning_rate_step": 0.001, "learning_rate_max": 0.005}
    assert rates(**chosen) == pytest.approx(own, rel=1e-9)
