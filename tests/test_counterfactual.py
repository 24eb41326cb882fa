"""Counterfactuals and regret: every row of a counterfactual against a copy of the environment that plays its action."""

import copy
import gc
import math
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from helpers import evaluated_splits, made_deep_game, made_npz
from oracles.training import SlowCNN, evaluate

import qan_gym
from qan_agents.analysis.regret import compared_actions, regrets
from qan_agents.policies.fixed import make_policy
from qan_gym.config import TaskConfig
from qan_gym.core.run_state import LOSS_LIMIT, RunState
from qan_gym.core.training import Training
from qan_gym.counterfactuals import Counterfactual
from qan_gym.games import GAMES, Game
from qan_gym.games.learning_rate import KEEP
from qan_gym.utils.arrays import Array

LR, MINIBATCH, CIFAR = "QanLR-MNIST5k-v1", "QanMinibatch-MNIST5k-v1", "QanLR-CIFAR10-v0"

# An episode of 10 steps over two epochs, measured after every step, so that the environment says it too.
SMALL = {"batch_size": 10, "epochs": 2, "batches_per_action": 2, "validate_every": 2}


# Of each case, the continuation: from the steps since the first action, and that action, to the next action.
CASES = {
    "lr": (LR, {}, lambda number, first: KEEP),
    "distilled": (LR, {"distillation": 0.5, "reward": "inverse-loss"}, lambda number, first: KEEP),
    "continuous": (LR, {"continuous": True, "schedule": "linear"}, lambda number, first: np.zeros(1, np.float32)),
    "absolute": (LR, {"continuous": True, "action_scale": "absolute"}, lambda number, first: first),
    "minibatch": (MINIBATCH, {}, lambda number, first: (3 + number) % 10),
    "deep": (CIFAR, {"batch_size": 4, "epochs": 1}, lambda number, first: KEEP),
}


@pytest.fixture(scope="module")
def make(reference_file: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., gym.Env]:
    """A function (id, keyword arguments) -> a small task on made images: 100 to train on (80 of CIFAR-10's size)."""
    folder = tmp_path_factory.mktemp("made")
    deep = made_deep_game(folder)
    flat = {"dataset": made_npz(folder / "flat.npz", n_train=113, n_test=10), "reference": reference_file}

    def one(env_id: str, **kwargs: Any) -> gym.Env:
        return gym.make(env_id, **SMALL | {"train_size": None} | (deep if env_id == CIFAR else flat) | kwargs)

    return one


def playing(env: gym.Env, steps: int = 3, seed: int = 5) -> gym.Env:
    env.reset(seed=seed)
    env.action_space.seed(seed)
    for _ in range(steps):
        env.step(env.action_space.sample())
    return env


def all_actions(env: gym.Env) -> list[Any]:
    if isinstance(env.action_space, gym.spaces.Discrete):
        return list(range(env.action_space.n))
    return [np.array([value], np.float32) for value in (-1, -0.5, 0, 0.5, 1)]


def played(env: gym.Env, action: Any, k: int, then: Callable[[int, Any], Any]) -> tuple[gym.Env, dict[str, Any]]:
    """The slow way: a copy of the environment plays the action, and k - 1 steps of what follows."""
    fork = copy.deepcopy(env)
    total, steps, over = 0.0, 0, False
    while steps < k and not over:
        _, reward, terminated, truncated, info = fork.step(action if steps == 0 else then(steps, action))
        total, steps, over = total + reward, steps + 1, terminated or truncated
    return fork, {**info, "returns": total, "steps": steps}


def row(result: Counterfactual, number: int) -> dict[str, Any]:
    names = ("steps", "learning_rate", "smoothed_loss", "validation_loss", "returns", "diverged")
    return {name: getattr(result, name)[number].item() for name in names}


def everything(env: gym.Env) -> dict[str, Any]:
    state = env.unwrapped.get_state()
    return {**{name: value.tobytes() for name, value in state.arrays.items()}, **state.metadata}


@pytest.mark.parametrize(("case", "k"), [("lr", 1), ("lr", 4), *((case, 50) for case in CASES)])
def test_every_row_is_what_the_action_does(case: str, k: int, make: Callable[..., gym.Env]) -> None:
    """Bit for bit, into the second epoch and past the end of the episode; and the environment stays as it is."""
    env_id, kwargs, then = CASES[case]
    env = playing(make(env_id, **kwargs))
    before, twin = everything(env), copy.deepcopy(env)
    result = qan_gym.counterfactual(env, k)
    assert everything(env) == before
    actions = all_actions(env)
    np.testing.assert_array_equal(result.actions, np.array(actions).reshape(len(actions)))
    for number, action in enumerate(actions):
        _, wanted = played(env, action, k, then)
        got = row(result, number)
        assert got == {name: wanted[name] for name in got}, f"action {action}"
    assert len(set(result.validation_loss)) > 1
    # The environment, and the episodes after this one, go on as if nothing had been tried.
    for action in actions[:3]:
        mine, other = env.step(action), twin.step(action)
        assert mine[0].tobytes() == other[0].tobytes()
        assert mine[1:] == other[1:]
    assert env.reset()[0].tobytes() == twin.reset()[0].tobytes()


def test_the_validation_loss_is_that_of_the_network_then(make: Callable[..., gym.Env]) -> None:
    """As plain PyTorch computes it on the validation images, where the environment itself did not measure it."""
    env = playing(make(LR, validate_every=None), 1)
    result = qan_gym.counterfactual(env, 2)
    images, labels = (torch.from_numpy(part) for part in env.unwrapped.split("validation"))
    for action in range(3):
        fork, info = played(env, action, 2, lambda number, first: KEEP)
        loss, _ = evaluate(SlowCNN.of(fork.unwrapped.weights()), images, labels)
        assert result.validation_loss[action] == pytest.approx(loss, rel=1e-5)
        assert info["validation_loss"] != result.validation_loss[action]


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Weak references to the forks that are made while the test runs."""
    made = []
    fork = Training.fork

    def spied(training: Training, num_runs: int) -> Training:
        forked = fork(training, num_runs)
        made.append(weakref.ref(forked))
        return forked

    monkeypatch.setattr(Training, "fork", spied)
    return made


def test_the_data_are_the_same_in_all_rows(
    make: Callable[..., gym.Env], forks: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mini-batches of every row are those that the environment goes on to see."""
    seen = []
    step = Training.step

    def spied(training: Training, actions: torch.Tensor) -> Any:
        done = step(training, actions)
        if any(fork() is training for fork in forks):
            seen.append(training.run.batch_indices.numpy().copy())
        return done

    monkeypatch.setattr(Training, "step", spied)
    env = playing(make(LR))
    qan_gym.counterfactual(env, 4)
    assert len(seen) == 4
    for rows in seen:
        env.step(KEEP)
        for indices in rows:
            np.testing.assert_array_equal(indices, env.unwrapped.batch_indices)


def test_the_memory_is_given_back(make: Callable[..., gym.Env], forks: list[Any]) -> None:
    """At once, not when the garbage collector next runs: that of many counterfactuals would add up; also in close()."""
    env, envs = playing(make(LR)), gym.make_vec(LR, num_envs=2)
    training = weakref.ref(envs.unwrapped.training)
    gc.disable()
    try:
        qan_gym.counterfactual(env, 2)
        envs.close()
        assert [fork() for fork in forks] == [None]
        assert training() is None
    finally:
        gc.enable()


def test_the_test_set_is_not_read(make: Callable[..., gym.Env], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where the rows come to the end of the episode."""
    env = playing(make(LR))
    splits = evaluated_splits(monkeypatch)
    assert qan_gym.counterfactual(env, 50).steps.tolist() == [7, 7, 7]
    assert set(splits) == {"validation"}


def test_what_follows_can_be_given(make: Callable[..., gym.Env]) -> None:
    """An action throughout, or a policy, which is given the observations of the rows; and fewer first actions."""
    env = playing(make(LR))
    for then in (0, lambda observations, infos: np.zeros(len(observations), np.int64)):
        result = qan_gym.counterfactual(env, 3, actions=[2, 1], then=then)
        assert result.actions.tolist() == [2, 1]
        for number, action in enumerate((2, 1)):
            _, wanted = played(env, action, 3, lambda steps, first: 0)
            got = row(result, number)
            assert got == {name: wanted[name] for name in got}
    seen = []

    def policy(observations: np.ndarray, infos: dict[str, np.ndarray]) -> list[int]:
        seen.append((observations, infos))
        return [0, 1, 2]

    qan_gym.counterfactual(env, 2, then=policy)
    for action in range(3):
        observation, *_, info = copy.deepcopy(env).step(action)
        assert observation.tobytes() == seen[0][0][action].tobytes()
        given = seen[0][1]
        assert given.keys() == info.keys()
        for name, value in given.items():
            np.testing.assert_array_equal(value[action].item(), info[name])  # NaN too


def test_the_previous_reference_goes_along(make: Callable[..., gym.Env]) -> None:
    """The rows are pulled towards the last episode's weights too, and rows that end do not change these."""
    env = make(LR, reference="previous", meta_momentum=0.2, epochs=1)
    env.reset(seed=0)
    for _ in range(5):
        env.step(KEEP)
    playing(env, 2)
    before = everything(env)
    result = qan_gym.counterfactual(env, 3)
    for action in range(3):
        _, wanted = played(env, action, 3, lambda steps, first: KEEP)
        assert row(result, action)["validation_loss"] == wanted["validation_loss"]
    assert everything(env) == before


def test_oracle_and_regret() -> None:
    """The lowest validation loss, the first of equals; an action that diverged is the worst, whatever its loss."""
    numbers = {name: np.zeros(4) for name in ("steps", "learning_rate", "smoothed_loss", "returns")}
    losses, diverged = np.array([0.5, 0.25, 0.25, 0.1]), np.array([False, False, False, True])
    found = Counterfactual(np.arange(4), validation_loss=losses, diverged=diverged, **numbers)
    assert found.best == 1
    assert found.regret(0) == pytest.approx(math.log(2))
    assert found.regret(1) == found.regret(np.int64(2)) == 0
    assert found.regret(3) == pytest.approx(math.log(LOSS_LIMIT / 0.25))
    with pytest.raises(ValueError, match=r"action 4 was not tried; there are \[0, 1, 2, 3\]"):
        found.regret(4)


def test_a_row_that_ends_stops_while_the_others_go_on(make: Callable[..., gym.Env]) -> None:
    """At a target loss that they reach after different numbers of steps."""
    kwargs = {"learning_rate": 0.2, "learning_rate_step": 0.1, "reference": None}
    target = float(qan_gym.counterfactual(playing(make(LR, **kwargs), 0), 2).smoothed_loss.min())
    env = playing(make(LR, **kwargs, target_loss=target), 0)
    result = qan_gym.counterfactual(env, 8)
    assert len(set(result.steps)) > 1
    for action in range(3):
        _, wanted = played(env, action, 8, lambda steps, first: KEEP)
        assert row(result, action) == {name: wanted[name] for name in row(result, action)}


def test_a_row_that_diverges(make: Callable[..., gym.Env]) -> None:
    """The row that diverges stops there, is the worst, and does not change the others."""
    kwargs = {"continuous": True, "action_scale": "absolute", "learning_rate_max": 3e38}
    env = playing(make(LR, **kwargs), 0)
    result = qan_gym.counterfactual(env, 4, actions=[-1, 1])
    assert result.diverged.tolist() == [False, True]
    assert result.steps.tolist() == [4, 1]
    assert result.best == -1
    assert result.regret(1) > 10
    _, wanted = played(env, np.array([-1], np.float32), 4, lambda steps, first: first)
    assert row(result, 0) == {name: wanted[name] for name in row(result, 0)}


def test_wrong_input_is_refused(make: Callable[..., gym.Env]) -> None:
    env = make(LR)
    with pytest.raises(ResetNeeded):
        qan_gym.counterfactual(env, 1)
    playing(env, 0)
    for k in (0, -1, 1.5, True, "2"):
        with pytest.raises(ValueError, match="k must be an integer of at least 1"):
            qan_gym.counterfactual(env, k)
    with pytest.raises(ValueError, match="action must be in"):
        qan_gym.counterfactual(env, 1, actions=[0, 3])
    with pytest.raises(ValueError, match="action must be in"):
        qan_gym.counterfactual(env, 2, then=3)
    with pytest.raises(ValueError, match="one action per row: 3, not 2"):
        qan_gym.counterfactual(env, 2, then=lambda observations, infos: [0, 0])
    with pytest.raises(ValueError, match="at least one action"):
        qan_gym.counterfactual(env, 1, actions=[])
    for other in (gym.make("CartPole-v1"), gym.make_vec(LR, num_envs=2)):
        with pytest.raises(ValueError, match="single environment of qan-gym"):
            qan_gym.counterfactual(other, 1)
    playing(env, 10)
    with pytest.raises(ResetNeeded):
        qan_gym.counterfactual(env, 1)


def test_importing_the_package_stays_cheap() -> None:
    """Torch is imported with the first counterfactual; and the name is the function's, whatever was imported before."""
    code = (
        "import sys, qan_gym; assert 'torch' not in sys.modules; import qan_gym.counterfactuals;"
        "assert callable(qan_gym.counterfactual); from qan_gym import counterfactual; assert callable(counterfactual)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- actions of several numbers --------------------------------------------------------------------------------------


class TwoFactors(Game):
    """Two numbers, each of which divides the learning rate by 2, keeps it or doubles it."""

    controlled = "learning rate"
    hyperparameters = ("learning_rate",)

    def check(self, config: TaskConfig) -> None:
        pass

    def action_space(self, config: TaskConfig, n_classes: int) -> gym.spaces.Space[Any]:
        if config.continuous:
            return gym.spaces.Box(-1, 1, (2,), np.float32)
        return gym.spaces.MultiDiscrete([3, 2], start=[-1, 0])

    def no_op(self, config: TaskConfig) -> Any:
        return np.zeros(2, np.float32 if config.continuous else np.int64)

    def apply(self, run: RunState, actions: Array, config: TaskConfig) -> None:
        run.chosen_learning_rate *= 2.0 ** actions.sum(axis=1)


@pytest.mark.parametrize("continuous", [False, True])
def test_actions_of_several_numbers(
    continuous: bool, make: Callable[..., gym.Env], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows, oracle and regret are those of copies that play the actions; a policy is compared with all, or a grid."""
    monkeypatch.setitem(GAMES, "two-factors", TwoFactors())
    env = playing(make(LR, game="two-factors", continuous=continuous, epochs=1), 2)
    actions = [(-1, 0), (0, 0), (1, 1)] if not continuous else [(-1, 0.5), (0, 0), (1, 1)]
    result = qan_gym.counterfactual(env, 2, actions=np.array(actions))
    assert result.actions.tolist() == list(map(list, actions))
    for number, action in enumerate(result.actions):
        _, wanted = played(env, action, 2, lambda steps, first: np.zeros_like(first))
        assert row(result, number) == {name: wanted[name] for name in row(result, number)}
    losses = np.log(result.validation_loss)
    assert result.best == result.actions[losses.argmin()].tolist()
    assert result.regret((0, 0)) == pytest.approx(losses[1] - losses.min())
    with pytest.raises(ValueError, match="was not tried"):
        result.regret((0, 7))
    (one,) = regrets(env, make_policy("random"), seed=0, every=50, k=1)
    assert one["action"] in one["validation_losses"]
    assert len(one["validation_losses"]) == (26 if continuous else 6)
    assert one["best"] == min(one["validation_losses"], key=one["validation_losses"].get)


def test_compared_actions() -> None:
    """All that there are, or a grid; of many, those on the diagonal."""
    assert compared_actions(gym.spaces.Discrete(3, start=2)).tolist() == [2, 3, 4]
    assert compared_actions(gym.spaces.Box(-1, 1, (1,))).tolist() == [[-1], [-0.5], [0], [0.5], [1]]
    grid = compared_actions(gym.spaces.Box(np.array([0, -2], np.float32), np.array([1, 2], np.float32)))
    assert grid.dtype == np.float32
    assert grid.shape == (25, 2)
    assert grid[:6].tolist() == [[0, -2], [0, -1], [0, 0], [0, 1], [0, 2], [0.25, -2]]
    assert compared_actions(gym.spaces.MultiDiscrete([5, 5, 5])).shape == (125, 3)
    many = compared_actions(gym.spaces.MultiDiscrete([9, 126], start=[0, 1]))
    assert many.tolist() == [[0, 1], [2, 32], [4, 63], [6, 95], [8, 126]]


# --- the regret of a policy -----------------------------------------------------------------------------------------


def test_regrets_of_an_episode(make: Callable[..., gym.Env]) -> None:
    """A row at every third action, each as `counterfactual` gives it; the episode is the same as without."""
    env = make(LR)
    rows = regrets(env, make_policy("random"), seed=4, every=3, k=2)
    assert [one["step"] for one in rows] == [0, 3, 6, 9]
    played_on = env.unwrapped.weights()
    env.reset(seed=4)
    env.action_space.seed(4)
    for step in range(10):
        action = env.action_space.sample()
        if step % 3 == 0:
            found, one = qan_gym.counterfactual(env, 2), rows[step // 3]
            assert (one["action"], one["best"]) == (action, found.best)
            assert one["validation_losses"] == dict(enumerate(found.validation_loss))
            assert one["regret"] == found.regret(action) >= 0
        env.step(action)
    assert all(np.array_equal(value, played_on[name]) for name, value in env.unwrapped.weights().items())
    assert any(one["regret"] > 0 for one in rows)


def test_regrets_where_the_game_is_continuous(make: Callable[..., gym.Env]) -> None:
    """The policy's own action is among those that are tried."""
    rows = regrets(make(LR, continuous=True), make_policy("cosine"), seed=0, every=4, k=1)
    for one in rows:
        tried = list(one["validation_losses"])
        assert len(tried) in (5, 6)
        assert one["action"] in tried
        best = one["validation_losses"][one["best"]]
        assert one["regret"] == pytest.approx(math.log(one["validation_losses"][one["action"]] / best))
    with pytest.raises(ValueError, match="every must be"):
        regrets(make(LR), make_policy("constant"), seed=0, every=0)
    with pytest.raises(
        ValueError, match="cosine sets the learning rate, and the actions of the game 'minibatch' do not"
    ):
        regrets(make(MINIBATCH), make_policy("cosine"), seed=0)
