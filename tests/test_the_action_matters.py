"""Actions take effect on the weights, and a good schedule has a higher return than a bad one.

The original cached the optimizer's settings at the first batch, so the agent's learning rate never took effect.
"""

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium.error import ResetNeeded
from oracles.training import SlowCNN

from qan_gym.state import State

LR, MINIBATCH = "QanLR-MNIST5k-v1", "QanMinibatch-MNIST5k-v1"
RAISE, LOWER, KEEP = 0, 1, 2
ALONE = {"meta_momentum": None, "reference": None}
COSINE_2 = (1 + math.cos(math.pi / 20)) / 2  # the second of 20
TINY = {"train_size": 200, "epochs": 1, "batches_per_action": 1, **ALONE}


def learning_rate_of_update(env: gym.Env, before: dict[str, np.ndarray]) -> float:
    """The learning rate that took the weights from `before` to where they are: the update over the gradient."""
    images, labels = env.unwrapped.split("train")
    (batch,) = env.unwrapped.batch_indices
    network = SlowCNN.of(before)
    F.cross_entropy(network(torch.from_numpy(images[batch])), torch.from_numpy(labels[batch])).backward()
    gradient = {name: value.grad.numpy().astype(np.float64) for name, value in network.named_parameters()}
    update = {name: before[name].astype(np.float64) - value for name, value in env.unwrapped.weights().items()}
    along = sum((update[name] * gradient[name]).sum() for name in gradient)
    squares = sum((gradient[name] ** 2).sum() for name in gradient)
    for name, value in update.items():  # and nothing but the gradient moved them
        np.testing.assert_allclose(value, along / squares * gradient[name], atol=1e-4)
    return along / squares


# --- the learning rate is in the update -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "actions", "wanted"),
    [
        ({}, [KEEP, KEEP, KEEP], [0.05, 0.05, 0.05]),
        ({}, [RAISE, RAISE, LOWER], [0.055, 0.06, 0.055]),
        ({}, [LOWER, LOWER, RAISE], [0.045, 0.04, 0.045]),
        ({"learning_rate": 0.01}, [LOWER, LOWER, RAISE], [0.005, 0.005, 0.01]),
        ({"action_scale": "multiplicative"}, [RAISE, RAISE, LOWER], [0.0625, 0.078125, 0.0625]),
        ({"continuous": True}, [1.0, 0.5, -1.0], [0.1, 0.1 * 2**0.5, 0.1 * 2**-0.5]),
        ({"continuous": True, "action_scale": "absolute"}, [0.0, 1.0, -0.5], [0.005**0.5, 1.0, 0.005**0.75]),
        ({"schedule": "cooldown"}, [*[KEEP] * 16, RAISE], [*[0.05] * 16, 0.055 * 0.8]),
        # 20 mini-batches: the schedule is of the mini-batch, the actions change its level.
        ({"schedule": "linear"}, [KEEP, RAISE, KEEP], [0.05, 0.055 * 0.95, 0.055 * 0.9]),
        ({"schedule": "cosine", "action_scale": "multiplicative"}, [RAISE, KEEP], [0.0625, 0.0625 * COSINE_2]),
    ],
)
def test_the_learning_rate_is_in_the_update(kwargs: dict, actions: list, wanted: list[float]) -> None:
    """(weights before - weights after) / gradient is the learning rate that the actions ask for, at every step."""
    env = gym.make(LR, **TINY | kwargs)
    env.reset(seed=0)
    found = []
    for action in actions:
        before = env.unwrapped.weights()
        env.step(np.array([action], np.float32) if kwargs.get("continuous") else action)
        found.append(learning_rate_of_update(env, before))
    assert found == pytest.approx(wanted, rel=2e-3)


def test_one_action_covers_all_its_batches() -> None:
    """With batches_per_action the learning rate is changed once, before the first of them."""
    env = gym.make(LR, **TINY | {"batches_per_action": 2})
    single = gym.make(LR, **TINY)
    env.reset(seed=0)
    single.reset(seed=0)
    _, _, _, _, info = env.step(RAISE)
    single.step(RAISE)
    single.step(KEEP)
    assert info["learning_rate"] == pytest.approx(0.055)
    assert all(
        np.array_equal(value, single.unwrapped.weights()[name]) for name, value in env.unwrapped.weights().items()
    )


def test_different_actions_lead_apart() -> None:
    """From one seed, on the same batches: other actions, other weights; already after the first."""
    weights = {}
    for action in (RAISE, LOWER, KEEP):
        env = gym.make(LR, **TINY)
        env.reset(seed=0)
        env.step(action)
        weights[action] = env.unwrapped.weights(), env.unwrapped.batch_indices
    for some, other in ((RAISE, LOWER), (LOWER, KEEP), (KEEP, RAISE)):
        assert np.array_equal(weights[some][1], weights[other][1])
        assert not any(np.array_equal(weights[some][0][name], weights[other][0][name]) for name in weights[some][0])


def test_classes_of_the_minibatch_game_lead_apart() -> None:
    """A network that sees one class only learns to say that class."""
    said = {}
    for label in (3, 8):
        env = gym.make(MINIBATCH, batch_size=20, **ALONE)
        env.reset(seed=0)
        for _ in range(20):
            env.step(label)
        images, _ = env.unwrapped.split("validation")
        with torch.no_grad():
            logits = SlowCNN.of(env.unwrapped.weights())(torch.from_numpy(images))
        said[label] = (logits.argmax(dim=1) == label).float().mean().item()
    assert min(said.values()) > 0.9


# --- a good schedule has a higher return ----------------------------------------------------------------------------

RATES = {"good": 0.07, "near zero": 1e-5, "too large": 1.0, "diverging": 3e38}
LOWEST, HIGHEST = 1e-6, 3e38


def held(rates: list[float], **kwargs: Any) -> tuple[list[float], dict[str, np.ndarray]]:
    """Play whole episodes of one seed, each at a constant learning rate; the returns and the last infos."""
    limits = {"learning_rate_min": LOWEST, "learning_rate_max": HIGHEST, "continuous": True, "action_scale": "absolute"}
    envs = gym.make_vec(LR, num_envs=len(rates), **{"train_size": 1500, "epochs": 1, **ALONE, **limits, **kwargs})
    envs.reset(seed=[0] * len(rates))
    # The place of a rate between the ends of the range, in the logarithm, from -1 to 1.
    places = [2 * math.log(rate / LOWEST) / math.log(HIGHEST / LOWEST) - 1 for rate in rates]
    totals, over, last = np.zeros(len(rates)), np.zeros(len(rates), bool), {}
    while not over.all():
        _, rewards, terminated, truncated, infos = envs.step(np.array(places, np.float32)[:, None])
        totals += np.where(over, 0, rewards)
        for name in ("diverged", "validation_accuracy"):
            last[name] = np.where(over, last.get(name, 0), infos[name])
        over |= terminated | truncated
    return totals.tolist(), last


@pytest.mark.slow
@pytest.mark.parametrize("reward", ["log-loss", "inverse-loss", "accuracy"])
def test_a_good_schedule_has_the_highest_return(reward: str) -> None:
    """Higher than a learning rate near zero, than one that is too large, and than one that diverges."""
    totals, last = held(list(RATES.values()), reward=reward)
    returns = dict(zip(RATES, totals, strict=True))
    assert [name for name, diverged in zip(RATES, last["diverged"], strict=True) if diverged] == ["diverging"]
    assert last["validation_accuracy"][0] > 0.8
    bad = {name: value for name, value in returns.items() if name != "good"}
    margin = {"log-loss": 1.0, "inverse-loss": 5.0, "accuracy": 0.5}[reward]
    assert returns["good"] > max(bad.values()) + margin
    assert returns["diverging"] == min(returns.values())


def test_the_reward_grows_with_progress_below_a_loss_of_1() -> None:
    """The original clipped its reward to 1, so that any loss below about 1 paid the same."""
    returns, _ = held([0.03, 0.08], reward="inverse-loss", train_size=3000)
    assert returns[1] > returns[0] + 5


# --- the ends of an episode -----------------------------------------------------------------------------------------


def assert_finite(observation: np.ndarray, reward: float, info: dict, env: gym.Env) -> None:
    assert np.isfinite(observation).all()
    assert env.observation_space.contains(observation)
    assert math.isfinite(reward)
    measured = (value for name, value in info.items() if not name.startswith("test_"))
    assert all(math.isfinite(value) for value in measured)


@pytest.mark.parametrize(
    ("continuous", "reward"), [(False, "log-loss"), (True, "log-loss"), (True, "inverse-loss"), (False, "accuracy")]
)
def test_a_learning_rate_of_1_ends_cleanly(continuous: bool, reward: str) -> None:
    """Held at 1.0 from the start, or driven there: finite numbers at every step, up to an end."""
    start = 0.3 if continuous else 1.0
    env = gym.make(LR, train_size=1000, epochs=1, **ALONE, continuous=continuous, reward=reward, learning_rate=start)
    env.reset(seed=0)
    action = np.array([1.0], np.float32) if continuous else RAISE
    steps, terminated, truncated = 0, False, False
    while not terminated and not truncated:
        observation, paid, terminated, truncated, info = env.step(action)
        assert_finite(observation, paid, info, env)
        assert terminated == info["diverged"]
        assert "is_success" not in info
        steps += 1
    assert terminated != truncated
    assert terminated or steps == 10
    assert info["learning_rate"] == 1.0
    assert info["test_accuracy"] < 0.3  # it has not learned much
    with pytest.raises(ResetNeeded):
        env.step(action)


DIVERGING = [
    {"learning_rate": 3e38, "learning_rate_max": 3e38},
    {"learning_rate": 3.4e38, "learning_rate_max": 3.4e38},  # the largest that there is
    {"learning_rate": 3e38, "learning_rate_max": 3e38, "observation": "filters"},
    {"learning_rate": 3e38, "learning_rate_max": 3e38, "target_loss": 1e9, "batches_per_action": 10},  # no success
    {"learning_rate": 3e38, "learning_rate_max": 3e38, "batches_per_action": 20},  # at the very end of the budget
]


PAIRS = [*zip(DIVERGING, ["log-loss", "inverse-loss", "accuracy", "log-loss", "inverse-loss"], strict=True)]


@pytest.mark.parametrize(("kwargs", "reward"), [*PAIRS, (DIVERGING[4], "accuracy"), (DIVERGING[0], "accuracy")])
def test_divergence_terminates(kwargs: dict, reward: str) -> None:
    """Weights or a loss that are not finite: terminated, a finite penalty, finite numbers, and then a reset."""
    env = gym.make(LR, reward=reward, **{**TINY, **kwargs})
    env.reset(seed=0)
    for _ in range(20):
        observation, paid, terminated, truncated, info = env.step(KEEP)
        assert_finite(observation, paid, info, env)
        if terminated or truncated:
            break
    assert terminated
    assert not truncated
    assert info["diverged"] is True
    assert info.get("is_success", False) is False
    assert paid < 0
    assert math.isfinite(info["test_loss"])
    assert not all(np.isfinite(value).all() for value in env.unwrapped.weights().values())
    with pytest.raises(ResetNeeded):
        env.step(KEEP)
    with pytest.raises(ResetNeeded):
        env.unwrapped.step(KEEP)
    observation, info = env.reset()
    assert_finite(observation, 0.0, info, env)
    assert not info["diverged"]
    assert env.unwrapped.batch_indices.shape[0] == env.unwrapped.config.batches_per_action


VALUES = (np.nan, np.inf, -np.inf)
PLACES = (("conv1.weight", 0), ("linear2.bias", 9), ("conv2.weight", -1))


@pytest.mark.parametrize(
    ("env_id", "place", "value"),
    [((LR, MINIBATCH)[(i + j) % 2], PLACES[i], VALUES[j]) for i in range(3) for j in range(3)],
)
def test_one_weight_that_is_not_finite_is_divergence(env_id: str, place: tuple[str, int], value: float) -> None:
    """One of 80,000 is enough."""
    name, index = place
    env = gym.make(env_id, train_size=200, epochs=1, batch_size=10, batches_per_action=1, **ALONE)
    env.reset(seed=0)
    env.step(0)
    state = env.unwrapped.get_state()
    weight = state.arrays[f"params.{name}"].copy()
    weight.flat[index] = value
    env.unwrapped.set_state(State(state.arrays | {f"params.{name}": weight}, state.metadata))
    observation, reward, terminated, truncated, info = env.step(1)
    assert_finite(observation, reward, info, env)
    assert terminated
    assert not truncated
    assert info["diverged"]
    assert reward < 0


def test_weights_of_a_diverged_episode_are_no_reference() -> None:
    """With reference="previous" nothing is pulled towards NaN."""
    env = gym.make(LR, **TINY | {"reference": "previous", "meta_momentum": 0.1, "learning_rate_max": 3e38})
    env.reset(seed=0)
    env.unwrapped.training.run.chosen_learning_rate[:] = 3e38
    for _ in range(20):
        _, _, terminated, _, _ = env.step(KEEP)
        if terminated:
            break
    assert terminated
    env.reset()
    assert env.unwrapped.reference is None
    env.step(KEEP)
    assert all(np.isfinite(value).all() for value in env.unwrapped.weights().values())


def test_reaching_the_target_loss_is_success() -> None:
    """Terminated at the first step at which the smoothed loss is at or under the target, and not before."""
    kwargs = {"train_size": 1000, "epochs": 1, "batches_per_action": 5, **ALONE}
    plain = gym.make(LR, **kwargs)
    _, info = plain.reset(seed=0)
    losses, infos = [], []
    for _ in range(20):
        *_, info = plain.step(KEEP)
        losses.append(info["smoothed_loss"])
        infos.append(info)
    target = losses[11]
    assert target == min(losses[:12])
    env = gym.make(LR, target_loss=target, **kwargs)
    env.reset(seed=0)
    ends = []
    total = 0.0
    for _ in range(12):
        observation, reward, terminated, truncated, info = env.step(KEEP)
        ends.append((terminated, truncated, info["is_success"]))
        total += reward
    assert ends == [(False, False, False)] * 11 + [(True, False, True)]
    assert not info["diverged"]
    assert info["smoothed_loss"] <= target
    assert math.isfinite(info["test_loss"])
    assert info["validation_loss"] < infos[0]["validation_loss"]  # measured at this end too
    assert total == pytest.approx(math.log(infos[0]["validation_loss"] / info["validation_loss"]), abs=1e-5)
    assert_finite(observation, reward, info, env)
    with pytest.raises(ResetNeeded):
        env.step(KEEP)


def test_the_budget_ends_by_truncation() -> None:
    """epochs x batches, counted in actions; then a reset is needed."""
    env = gym.make(LR, **TINY | {"epochs": 2, "batches_per_action": 4})
    env.reset(seed=0)
    ends = []
    for _ in range(10):
        *_, terminated, truncated, info = env.step(KEEP)
        ends.append((terminated, truncated))
    assert ends == [(False, False)] * 9 + [(False, True)]
    assert (info["batch"], info["epoch"]) == (40, 2)
    with pytest.raises(ResetNeeded):
        env.step(KEEP)
