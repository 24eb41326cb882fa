"""Early stopping: an episode ends where its validation losses say, alone, in rows and from a saved state."""

import gymnasium as gym
import numpy as np
import pytest
from deep_tasks import CIFAR, SMALL, made_photographs, make, softmax_regression, write_npz
from oracles.deep_networks import KEEP

import qan_gym
from qan_gym.state import State

BATCHES_PER_EPOCH = 3
HOPELESS = SMALL | {"epochs": 12, "batches_per_action": 1}
NOT_MONOTONIC = 4  # a seed with which the loss of resnet-8 falls several times, but not below its lowest value
LINEAR = HOPELESS | {"network": "softmax", "learning_rate": 0.02}  # fast; the loss falls, then rises


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """Noise with labels that mean nothing, so that nothing is learnt: 24 training images, 3 for validation."""
    rng = np.random.default_rng(0)
    arrays = {"x_train": rng.integers(0, 256, (27, 8, 8, 3), dtype=np.uint8), "y_train": np.arange(27) % 3}
    arrays |= {"x_test": arrays["x_train"][:5], "y_test": arrays["y_train"][:5]}
    return write_npz(tmp_path_factory.mktemp("noise") / "noise.npz", arrays)


@pytest.fixture
def linear(noise, registries):
    """The keyword arguments of the fast task."""
    qan_gym.register_network("softmax", softmax_regression)
    return LINEAR | {"dataset": noise}


def played(core, seed: int) -> list[dict]:
    """The infos of an episode in which the learning rate is kept, the first of reset; the last has how it ended."""
    infos = [core.reset(seed=seed)[1]]
    ended = False
    while not ended:
        _, _, terminated, truncated, info = core.step(KEEP)
        infos.append(info | {"terminated": terminated, "truncated": truncated})
        ended = terminated or truncated
    return infos


def epoch_to_stop(losses: list[float], patience: int) -> int:
    """The epoch (from 1) that is the `patience`-th in a row without a loss below the lowest before it."""
    best, waited = losses[0], 0
    for epoch, loss in enumerate(losses[1:], start=1):
        waited = 0 if loss < best else waited + 1
        best = min(best, loss)
        if waited == patience:
            return epoch
    return len(losses)


@pytest.fixture(scope="module")
def whole_episode(noise):
    """The infos of an episode without early stopping."""
    return played(make(dataset=noise, **HOPELESS), seed=NOT_MONOTONIC)


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_early_stopping(patience, noise, whole_episode):
    """The episode is that without it, up to the epoch that the validation losses say; then it is over."""
    assert len(whole_episode) == 1 + 12 * BATCHES_PER_EPOCH
    assert whole_episode[-1]["truncated"]
    assert not any(info["early_stopped"] for info in whole_episode)
    losses = [info["validation_loss"] for info in whole_episode[::BATCHES_PER_EPOCH]]
    epoch = epoch_to_stop(losses, patience)
    assert epoch < 12
    stopped = played(make(dataset=noise, **HOPELESS, early_stopping=patience), seed=NOT_MONOTONIC)
    assert len(stopped) == 1 + BATCHES_PER_EPOCH * epoch
    assert [info["validation_loss"] for info in stopped[::BATCHES_PER_EPOCH]] == losses[: epoch + 1]
    assert [info["early_stopped"] for info in stopped] == [False] * BATCHES_PER_EPOCH * epoch + [True]
    last = stopped[-1]
    assert (last["terminated"], last["truncated"], last["diverged"]) == (True, False, False)
    assert last["test_loss"] > 0


def test_no_early_stopping_while_the_loss_falls(tmp_path):
    """Images that can be learnt: the episode spends its budget."""
    learnable = SMALL | {"dataset": made_photographs(tmp_path), "optimizer": "adamw", "epochs": 3}
    infos = played(make(**learnable, early_stopping=3), seed=0)
    assert infos[-1]["truncated"]
    assert not infos[-1]["early_stopped"]


def test_patience_is_in_the_state(linear, tmp_path):
    """Saved after each epoch and continued elsewhere, the episode ends at the same step."""
    core, other = (make(**linear, early_stopping=3) for _ in range(2))
    whole = played(core, seed=3)
    epochs = (len(whole) - 1) // BATCHES_PER_EPOCH
    assert epochs > 2
    core.reset(seed=3)
    for _ in range(epochs - 1):
        for _ in range(BATCHES_PER_EPOCH):
            core.step(KEEP)
        core.get_state().save(tmp_path / "state.safetensors")
        other.reset(seed=9)
        other.set_state(State.load(tmp_path / "state.safetensors"))
        steps, terminated = other.training.run.batch[0], False
        while not terminated:
            *_, terminated, _, _ = other.step(KEEP)
            steps += 1
        assert steps == len(whole) - 1


def test_rows_stop_each_on_its_own(linear):
    """Each row where it stops alone, while the others go on."""
    alone = [len(played(make(**linear, early_stopping=2), seed=seed)) - 1 for seed in range(4)]
    assert len(set(alone)) > 1
    envs = gym.make_vec(CIFAR, num_envs=4, **linear, early_stopping=2)
    envs.reset(seed=0)
    ends = np.zeros(4, int)
    for step in range(1, max(alone) + 1):
        _, _, terminated, truncated, infos = envs.step(np.full(4, KEEP))
        first = (terminated | truncated) & (ends == 0)
        assert infos["early_stopped"][first].all()
        ends[first] = step
    assert ends.tolist() == alone
