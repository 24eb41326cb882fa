"""`qan check`: environments whose actions matter are certified, and no others; above all not the original's mistake."""

import io
import math
import sys
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import register, registry
from helpers import made_npz
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from typer.testing import CliRunner

import qan_gym
from qan_agents.analysis import action_effect as check
from qan_agents.analysis.action_effect import Certificate, certify, examine, extremes
from qan_agents.cli import environments as cli
from qan_agents.cli.app import app
from qan_gym.config import TaskConfig
from qan_gym.core.run_state import RunState
from qan_gym.env import LearningRateEnv
from qan_gym.games import GAMES, Game
from qan_gym.optimizee.network import Params
from qan_gym.optimizee.optimizers import SGD, Hyperparameters
from qan_gym.utils.arrays import Array
from qan_gym.vector_env import QanVectorEnv

LR, MINIBATCH = "QanLR-MNIST5k-v1", "QanMinibatch-MNIST5k-v1"
ALONE = {"meta_momentum": None, "reference": None}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An episode of 10 actions, a mini-batch of 10 made images for each; a raise changes the learning rate by 0.1."""
    data = made_npz(tmp_path_factory.mktemp("data") / "made.npz", n_train=113)
    common = {"dataset": data, "epochs": 1, "batch_size": 10, **ALONE}
    return {**common, "batches_per_action": 1, "learning_rate": 0.1, "learning_rate_step": 0.1}


@pytest.fixture
def registered() -> Iterator[Any]:
    """A function (id, class, keyword arguments) -> id: registered with Gymnasium for one test."""
    before = dict(registry)

    def add(env_id: str, entry_point: Any, **kwargs: Any) -> str:
        register(env_id, entry_point=entry_point, **kwargs)
        return env_id

    yield add
    registry.clear()
    registry.update(before)


def ask(env_id: str, kwargs: dict[str, Any] | None = None, seeds: int = 5, steps: int | None = None) -> Certificate:
    return certify(env_id, kwargs or {}, seeds, steps, lambda name, share: None)


# --- the original's mistake -----------------------------------------------------------------------------------------


class CachedConfig(SGD):
    """SGD that uses the learning rate of the first mini-batch throughout, as the original does."""

    def __init__(self, config: TaskConfig, controlled: Collection[str]) -> None:
        super().__init__(config, controlled)
        self.cached: Tensor | None = None

    def update(
        self, params: Params, gradients: Params, slots: dict[str, Params], hyper: Hyperparameters, step: Tensor
    ) -> None:
        if self.cached is None:
            self.cached = hyper.learning_rate.clone()
        super().update(params, gradients, slots, hyper._replace(learning_rate=self.cached), step)


class FrozenEnv(LearningRateEnv):
    """The same mistake, as an environment of its own."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(LR, optimizer="cached", **kwargs)


class ThawedEnv(LearningRateEnv):
    """The same environment without the mistake."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(LR, **kwargs)


@pytest.mark.slow
def test_a_frozen_learning_rate_is_not_certified(small, registered, registries) -> None:
    """Though `info` says that it changes, and though the first action has an effect; without the mistake it is."""
    qan_gym.register_optimizer("cached", CachedConfig)
    frozen = registered("FrozenLR-v0", FrozenEnv)
    env = gym.make(frozen, **small)
    rates, weights = [], []
    for action in (0, 1):
        fresh = gym.make(frozen, **small)
        fresh.reset(seed=0)
        rates.append([fresh.step(action)[4]["learning_rate"] for _ in range(5)])
        weights.append(fresh.unwrapped.weights()["conv1.weight"])
    assert rates[0] == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6])
    assert not np.array_equal(*weights)
    env.close()
    found = ask(frozen, small)
    assert found.identical
    assert not found.certified
    assert "change nothing" in found.verdict
    twin = ask(registered("ThawedLR-v0", ThawedEnv), small)
    assert twin.certified, twin


def test_a_frozen_learning_rate_is_not_certified_in_lockstep(small, registries) -> None:
    """With the mistake in the optimizer of a registered id; without it the id is certified, also in lock-step."""
    qan_gym.register_optimizer("cached", CachedConfig)
    assert examine(LR, small, None).lockstep
    found = ask(LR, {**small, "optimizer": "cached"})
    assert found.identical
    assert not found.certified
    assert ask(LR, small).certified


class TwoFactors(Game):
    """Two numbers: each of 0, 1, 2 divides the learning rate by 2, keeps it or doubles it."""

    controlled = "learning rate"
    hyperparameters = ("learning_rate",)

    def action_space(self, config: TaskConfig, n_classes: int) -> spaces.Space[Any]:
        return spaces.MultiDiscrete([3, 3])

    def apply(self, run: RunState, actions: Array, config: TaskConfig) -> None:
        run.chosen_learning_rate *= 2.0 ** (actions - 1).sum(axis=1)


# --- the sequences --------------------------------------------------------------------------------------------------


class Logged(gym.Env):
    """An environment that records the actions; an episode has `length` steps, or no end (None)."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    played: list[tuple[int, list[Any]]] = []  # noqa: RUF012 (of all instances: seed and actions of each episode)
    unseeded = np.random.default_rng(0)  # does not depend on the seed of an episode

    def __init__(self, space: spaces.Space, length: int | None = 4, noise: float = 0.0) -> None:
        self.action_space, self.length, self.noise = space, length, noise

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        Logged.played.append((seed, []))
        self.step_number = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action)
        Logged.played[-1][1].append(np.asarray(action).tolist())
        self.step_number += 1
        reward = float(self.np_random.normal()) + self.noise * float(Logged.unseeded.normal())
        return np.zeros(1, np.float32), reward, self.step_number == self.length, False, {}


@pytest.fixture
def logged(registered) -> str:
    Logged.played.clear()
    Logged.unseeded = np.random.default_rng(0)
    return registered("Logged-v0", Logged)


def test_the_sequences(logged) -> None:
    """Each action throughout and all in turn, on the same seeds, and all of them begin with the same action."""
    found = ask(logged, {"space": spaces.Discrete(3, start=-1)})
    rest = {"-1 throughout": [-1, -1, -1], "0 throughout": [0, 0, 0], "1 throughout": [1, 1, 1]}
    rest["in turn: -1, 0, 1"] = [0, 1, -1]
    assert found.sequences == tuple(rest)
    assert found.first == "1"
    assert Logged.played == [(seed, [1, *actions]) for actions in rest.values() for seed in range(5)]
    assert found.outcome == "return"


def test_progress(logged) -> None:
    """The share that is done grows from 0 to 1, and goes by the sequences."""
    shown: list[tuple[str, float]] = []
    certify("Logged-v0", {"space": spaces.Discrete(2)}, 5, None, lambda name, share: shown.append((name, share)))
    shares = [share for _, share in shown]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 1)
    thirds = {"0 throughout": (0, 1 / 3), "1 throughout": (1 / 3, 2 / 3), "in turn: 0, 1": (2 / 3, 1)}
    assert all(thirds[name][0] <= share <= thirds[name][1] + 1e-9 for name, share in shown)


def test_how_long_a_check_takes_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the steps alone, also in a pipe; never in a short one."""
    clock = iter([100.0, 101.0, 105.0, 109.0])  # what is loaded before the first step takes 100 seconds
    monkeypatch.setattr(cli.time, "perf_counter", lambda: next(clock))
    file = io.StringIO()
    show = cli._progress(Progress(console=Console(file=file)))
    for share in (0.0, 0.01, 0.02, 0.03):
        show("a", share)
    assert file.getvalue() == "about 7 minutes left\n"  # 4 seconds for 1 %


def test_extremes() -> None:
    """Of many actions ten, from the first to the last; of Box and MultiDiscrete the ends, all axes and alternating."""
    assert list(extremes(spaces.Discrete(18, start=2)).values()) == [2, 4, 6, 8, 10, 11, 13, 15, 17, 19]
    line = extremes(spaces.Box(-2, 4, (1,), np.float32))
    assert {name: value.tolist() for name, value in line.items()} == {"high": [4], "low": [-2], "middle": [1]}
    box = spaces.Box(np.array([-1, 0, 2], np.float32), np.array([1, 8, 4], np.float32))
    corners = {"high": [1, 8, 4], "low": [-1, 0, 2], "high-low": [1, 0, 4], "low-high": [-1, 8, 2], "middle": [0, 4, 3]}
    assert {name: value.tolist() for name, value in extremes(box).items()} == corners
    bytes_ = spaces.Box(0, 255, (2, 2), np.uint8)
    assert all(bytes_.contains(action) for action in extremes(bytes_).values())
    several = spaces.MultiDiscrete([3, 1, 5], start=[-1, 7, 0])
    found = extremes(several)
    corners = {"high": [1, 7, 4], "low": [-1, 7, 0], "high-low": [1, 7, 4], "low-high": [-1, 7, 0]}
    assert {name: value.tolist() for name, value in found.items()} == corners
    assert all(several.contains(action) for action in found.values())
    assert list(extremes(spaces.MultiDiscrete([4]))) == ["high", "low"]
    for other in (
        spaces.Discrete(1),
        spaces.Box(-np.inf, 1, (1,)),
        spaces.MultiDiscrete([1, 1]),
        spaces.MultiBinary(2),
        spaces.Tuple([]),
    ):
        with pytest.raises(ValueError, match="Discrete or MultiDiscrete, more than one, or a Box with bounds"):
            extremes(other)


@pytest.mark.parametrize(("kwargs", "steps"), [({}, None), ({"continuous": True, "batches_per_action": 2}, 3)])
def test_lockstep_plays_what_single_environments_play(small, kwargs, steps, monkeypatch) -> None:
    """Bit for bit; also where the episode is cut, and then it is the validation loss after the last step."""
    found = ask(LR, {**small, **kwargs}, steps=steps)
    checked = examine(LR, {**small, **kwargs}, steps)
    monkeypatch.setattr(check, "examine", lambda *_: replace(checked, lockstep=False))
    single = ask(LR, {**small, **kwargs}, steps=steps)
    np.testing.assert_array_equal(found.outcomes, single.outcomes)
    env = gym.make(LR, **{**small, **kwargs}, validate_every=1)
    env.reset(seed=3)
    for action in [list(checked.actions.values())[-1], *[next(iter(checked.actions.values()))] * ((steps or 10) - 1)]:
        *_, info = env.step(action)
    assert found.outcomes[0, 3] == pytest.approx(math.log(info["validation_loss"]), rel=1e-6)


def test_custom_ids(small, registered, monkeypatch) -> None:
    """An id of the user's own is played in lock-step where both environments are qan-gym's; with MultiDiscrete actions.

    Where one of them is not, or something is wrapped around, it is not; a limit of Gymnasium's cuts the episodes.
    """
    monkeypatch.setitem(GAMES, "two-factors", TwoFactors())
    own = {"entry_point": "qan_gym.env:QanEnv", "kwargs": {"env_id": LR, "game": "two-factors"}}
    vector = "qan_gym.vector_env:QanVectorEnv"
    env_id = registered("TwoFactors-v0", vector_entry_point=vector, **own)
    assert examine(env_id, small, None).lockstep
    assert ask(env_id, small).certified
    assert examine(registered("Class-v0", vector_entry_point=QanVectorEnv, **own), small, None).lockstep
    cut = registered("Cut-v0", max_episode_steps=4, **own)
    checked = examine(cut, small, None)
    assert (checked.limit, checked.lockstep, examine(cut, small, 3).limit) == (4, False, 3)
    np.testing.assert_array_equal(ask(cut, small).outcomes, ask(env_id, small, steps=4).outcomes)
    wrappers = (gym.wrappers.RecordEpisodeStatistics.wrapper_spec(),)
    wrapped = registered("Wrapped-v0", vector_entry_point=vector, additional_wrappers=wrappers, **own)
    assert not examine(wrapped, small, None).lockstep
    thawed = registered("ThawedVector-v0", ThawedEnv, vector_entry_point=vector)
    assert not examine(thawed, small, None).lockstep


@pytest.mark.slow
def test_the_minibatch_game_is_certified() -> None:
    """On all bundled images: a small data set is soon seen whole, whatever the classes."""
    found = ask(MINIBATCH, {"batch_size": 10, "learning_rate": 0.2, **ALONE}, steps=12)
    assert len(found.sequences) == 11
    assert found.certified, found.verdict


def test_other_environments() -> None:
    """Gymnasium's own environments, one with Discrete actions and one with a Box."""
    assert ask("CartPole-v1").certified
    found = ask("Pendulum-v1", steps=20)
    assert found.outcomes.shape == (4, 5)
    assert len(set(found.outcomes.flat)) > 10
    assert not found.identical


FAMILY = "QanLR-Family-v0"


def test_where_tasks_are_drawn_each_is_compared_with_itself(monkeypatch) -> None:
    """Each on four seeds or more, in lock-step as alone; cut episodes are measured after their last step."""
    mlps = {"networks": ["mlp"], "split": "test", "num_tasks": 50}
    found = ask(FAMILY, mlps, seeds=9)
    assert found.outcomes.shape == (4, 9)
    assert found.task_starts == (5,)
    assert len(set(found.tasks)) == 2
    assert found.seeds == f"9 seeds of 2 tasks ({', '.join(found.tasks)})"
    assert found.certified, found
    games = examine(FAMILY, mlps, 3).games(2)
    tasks = [game["task"] for game in games]
    assert len(set(tasks)) == 2
    assert all(task.split == "test" and task.number < 50 for task in tasks)
    assert found.tasks == tuple(f"test {task.number}" for task in tasks)
    assert ask(FAMILY, mlps, steps=2).seeds == f"5 seeds of 1 task ({found.tasks[0]})"
    assert games == [{"task": task, "validate_every": 3 * task.batches_per_action} for task in tasks]
    assert examine(FAMILY, {"task": tasks[0].to_json()}, None).games(4) == [{"task": tasks[0]}]
    cut = ask(FAMILY, mlps, steps=3)
    checked = examine(FAMILY, mlps, 3)
    monkeypatch.setattr(check, "examine", lambda *_: replace(checked, lockstep=False))
    np.testing.assert_array_equal(cut.outcomes, ask(FAMILY, mlps, steps=3).outcomes)


def test_the_spread_within_tasks() -> None:
    """Of two tasks whose losses lie far apart: neither spread has the distance between them in it."""
    one = np.array([[0.0, 1.0], [10.0, 11.0], [40.0, 41.0]])
    sequences = ("0", "1", "2")
    alone = Certificate("Some-v0", "return", "0", sequences, one)
    both = Certificate("Some-v0", "return", "0", sequences, np.hstack([one, one + 1000]), (2,))
    assert both.between_seeds == pytest.approx(alone.between_seeds)
    assert both.between_sequences == pytest.approx(alone.between_sequences)
    assert both.deviations == pytest.approx(alone.deviations)


def test_what_is_best_may_depend_on_the_task() -> None:
    """Of two tasks with opposite orders: chi-square 8 on 2 degrees of freedom each; p = exp(-8) (1 + 8)."""
    seeds = np.arange(4.0)
    one = np.array([seeds, seeds + 10, seeds + 40])
    both = Certificate("Some-v0", "return", "0", ("0", "1", "2"), np.hstack([one, one[::-1]]), (4,))
    assert both.p_value == pytest.approx(math.exp(-8) * 9)
    assert both.certified


# --- the verdict -----------------------------------------------------------------------------------------------------


def judged(outcomes: Any) -> Certificate:
    sequences = tuple(map(str, range(len(outcomes))))
    return Certificate("Some-v0", "return", "0", sequences, np.asarray(outcomes, np.float64))


def test_the_statistics_are_those_of_the_textbook() -> None:
    """Perfect order of 3 on 8 seeds: chi-square 16 on 2 degrees of freedom, p = exp(-8)."""
    seeds = np.arange(8.0)  # their variance is 6
    found = judged([seeds, seeds + 10, seeds + 40])
    assert found.p_value == pytest.approx(math.exp(-8))
    assert found.between_seeds == pytest.approx(math.sqrt(6))
    assert found.between_sequences == pytest.approx(math.sqrt((16.667**2 + 6.667**2 + 23.333**2) / 2), rel=1e-4)
    assert found.ratio == pytest.approx(found.between_sequences / math.sqrt(6))
    assert found.certified
    assert found.verdict.startswith("certified: the actions of Some-v0")
    assert judged([[1] * 8, [2] * 8, [3] * 8]).ratio == math.inf
    assert judged(np.array([seeds, seeds + 10, seeds + 40])[:, :5]).p_value < check.SIGNIFICANCE < math.exp(-4)


def test_certain_but_small_is_not_enough() -> None:
    """The same order on every seed, but the seeds differ by more than the sequences."""
    seeds = np.arange(8.0)
    found = judged([seeds, seeds + 0.1, seeds + 0.2])
    assert found.p_value < 0.001
    assert not found.certified
    assert "only 0.0408 times that of the seeds (above 1 wanted)" in found.verdict
    assert "chance" not in found.verdict


def test_large_by_chance_is_not_enough() -> None:
    """An outlier of one sequence on one seed moves its mean; on the other seeds nothing differs."""
    outcomes = np.tile([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7], (3, 1))
    outcomes[0, 0] = 1000
    found = judged(outcomes)
    assert not found.certified
    assert "on 8 seeds; more seeds may decide" in found.verdict
    assert judged([[1, 2, 3, 4, 5]] * 3).verdict.count("bit for bit") == 1


def test_what_is_just_not_certain_is_open() -> None:
    """Perfect order of 3 on 4 seeds, p = exp(-4): above the limit, and no sign of chance."""
    seeds = np.arange(4.0)
    found = judged([seeds, seeds + 10, seeds + 40])
    assert not found.certified
    assert "is open (p = 0.018 is not below 0.01 on 4 seeds; more seeds may decide)" in found.verdict
    assert judged(np.tile([seeds, seeds + 10, seeds + 40], 2)).certified


def test_noise_is_not_certified(logged) -> None:
    """An environment that ignores its actions: with rewards that the seed decides, and with unseeded noise."""
    space = spaces.Discrete(4)
    assert ask(logged, {"space": space}).identical
    certificates = [ask(logged, {"space": space, "noise": 1.0}, seeds=8) for _ in range(50)]
    assert not any(found.identical for found in certificates)
    assert sum(found.certified for found in certificates) == 0


# --- the command ----------------------------------------------------------------------------------------------------


def invoke(*arguments: object, status: int) -> str:
    result = CliRunner().invoke(app, ["check", *map(str, arguments)])
    assert result.exit_code == status, (result.output, result.exception)
    return result.output


GAME = """
from gymnasium.envs.registration import register
from gymnasium.envs.classic_control import CartPoleEnv

class IgnoresActions(CartPoleEnv):
    def step(self, action):
        return super().step(0)

register("IgnoresActions-v0", entry_point=IgnoresActions, max_episode_steps=50)
"""


def test_the_command(small, registered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit status 0 where it certifies, 1 where it does not; an id that another module registers; the last line."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "ignoring_module.py").write_text(GAME)
    output = invoke("ignoring_module:IgnoresActions-v0", "--seeds", 5, status=1)
    said = "not certified: the actions of ignoring_module:IgnoresActions-v0 change nothing"
    assert output.splitlines()[-1].startswith(said)
    settings = [part for name, value in small.items() for part in ("--set", f"{name}={to_text(value)}")]
    output = invoke(f"qan_gym:{LR}", "--seeds", 5, "--steps", 8, *settings, status=0)
    assert output.splitlines()[-1] == f"certified: the actions of qan_gym:{LR} matter beyond seed noise"
    assert "in turn: raise, lower, keep" in output
    assert "every sequence begins with keep" in output
    sys.modules.pop("ignoring_module")


def to_text(value: Any) -> str:
    return "null" if value is None else str(value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["QanLR-MNIST6k-v0"], "QanLR-MNIST6k"),
        (["no_such_module:Game-v0"], "no_such_module"),
        (["CartPole-v1", "--seeds", "4"], "--seeds"),
        (["CartPole-v1", "--steps", "1"], "--steps"),
        (["CartPole-v1", "--steps", "501"], "steps must be at most 500, those of an episode of CartPole-v1, not 501"),
        ([LR, "--steps", "1000"], "steps must be at most 200"),
        (["CartPole-v1", "--set", "gravity=1"], "gravity"),
        ([LR, "--set", "epoch=1"], "epoch"),
        (["Blackjack-v1", "--set", "natural"], "NAME=VALUE"),
    ],
)
def test_wrong_commands_are_explained(arguments: list[str], message: str) -> None:
    output = invoke(*arguments, status=2)
    assert message in output
    assert "Traceback" not in output


def test_too_few_to_judge() -> None:
    with pytest.raises(ValueError, match=r"seeds must be at least 5, not 4: fewer cannot give p < 0\.01"):
        ask("CartPole-v1", seeds=4)
    with pytest.raises(ValueError, match="steps must be at least 2, not 1"):
        ask("CartPole-v1", steps=1)


@pytest.mark.filterwarnings("ignore:.*The reward is an inf value")
def test_what_cannot_be_judged_is_refused(logged, monkeypatch: pytest.MonkeyPatch) -> None:
    """An episode without an end, unless it is cut; an outcome that is no number."""
    monkeypatch.setattr(check, "LONGEST", 50)
    endless = {"space": spaces.Discrete(2), "length": None}
    with pytest.raises(ValueError, match="not ended after 50 steps: give --steps"):
        ask(logged, endless)
    assert ask(logged, endless, steps=10).identical
    with pytest.raises(ValueError, match="'0 throughout' is not finite"):
        ask(logged, {"space": spaces.Discrete(2), "noise": math.inf})
