"""Baselines of the bench: each against its package, populations against single episodes."""

import io
import math
from contextlib import redirect_stdout
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from dadaptation import DAdaptAdam, DAdaptSGD
from helpers import SHORT, small_data
from prodigyopt import Prodigy

import qan_agents.bench.parameter_free  # noqa: F401 (registers optimizers)
from qan_agents.bench import population, tuning_task
from qan_agents.bench.greedy_lr import BOUNDS, GreedyController
from qan_agents.bench.population import FACTORS, PiecewiseConstant, Population, pieces_of
from qan_agents.bench.preparation import check, prepare
from qan_agents.bench.rollout import play_episodes
from qan_agents.bench.tuned_schedules import ABSOLUTE_ACTIONS, SGD_RATES, absolute_actions
from qan_agents.bench.tuning_task import TuningTask, make_env
from qan_agents.controllers.shipped import shipped_controller, shipped_paths
from qan_agents.policies.loss_rules import Greedy
from qan_gym.optimizee.optimizers import Hyperparameters, build_optimizer
from qan_gym.tasks import make_task_config

LR, MINIBATCH = "QanLR-MNIST5k-v1", "QanMinibatch-MNIST5k-v1"
KWARGS = {**SHORT, "reference": None, "dataset": small_data()}  # 20 mini-batches
TASK = TuningTask(LR, KWARGS, 0, 0)


# --- GreedyLR -------------------------------------------------------------------------------------------------------


def published(rate: float, factor: float, patience: int) -> Any:
    """GreedyLR of transformers."""
    greedy = pytest.importorskip("transformers.optimization").GreedyLR
    return greedy(torch.optim.SGD([torch.zeros(1)], lr=rate), factor=factor, patience=patience)


@pytest.mark.slow  # transformers takes its time to import
def test_greedy_is_that_of_transformers_up_to_its_bounds():
    rng = np.random.default_rng(0)
    rates, factors, patience = rng.uniform(0.01, 0.9, 8), rng.uniform(0.5, 0.95, 8), np.arange(8.0) % 4
    # Rows that fall to the least rate, rise to the largest, and do both.
    losses = np.cumsum(rng.normal(np.linspace(-0.5, 0.5, 8), 0.3, size=(200, 8)), axis=0)
    rule, oracles = Greedy(rates, factors, patience, BOUNDS), []
    for rate, factor, wait in zip(rates, factors, patience, strict=True):
        oracles.append(published(rate, factor, int(wait)))
    assert (rule(losses[0] - 100) == rates).all()  # that of the initial weights does not count
    seen = []
    for row in losses:
        for oracle, loss in zip(oracles, row, strict=True):
            oracle.step(float(loss))
        seen.append([oracle.get_last_lr()[0] for oracle in oracles])
        np.testing.assert_allclose(rule(row), seen[-1], rtol=1e-12)
    assert np.min(seen) == BOUNDS[0]
    assert np.max(seen) == BOUNDS[1]


@pytest.mark.slow
def test_greedy_follows_the_validation_loss_of_its_row(monkeypatch):
    monkeypatch.setattr(tuning_task, "VALIDATIONS", 10)  # every 2 mini-batches
    chosen = [
        {"learning_rate": 0.05, "factor": 0.7, "patience": 0},
        {"learning_rate": 0.9, "factor": 0.5, "patience": 1},
    ]
    rollout = play_episodes(make_env(TASK, 2, ABSOLUTE_ACTIONS), GreedyController(chosen), [0, 1])
    for row, one in enumerate(chosen):
        oracle, expected = published(one["learning_rate"], one["factor"], one["patience"]), []
        for loss in rollout.validation_loss[1:, row]:
            expected.append(oracle.get_last_lr()[0] if expected else one["learning_rate"])
            oracle.step(float(loss))
        assert rollout.learning_rate[1:, row] == pytest.approx(expected, rel=1e-4)
        assert len(set(expected)) > 3


# --- D-Adaptation and Prodigy ---------------------------------------------------------------------------------------

PACKAGES = {
    "d-adapt-sgd": lambda own: DAdaptSGD(own, momentum=0.9, weight_decay=0.1),
    "d-adapt-adamw": lambda own: DAdaptAdam(own, betas=(0.9, 0.999), weight_decay=0.1, decouple=True),
    "prodigy": lambda own: Prodigy(own, betas=(0.9, 0.999), weight_decay=0.1),
}
# Of a quadratic function with its least value at `GOAL`, so that the estimates grow.
GOAL = 3.0


class Beside:
    """Two rows of an optimizer in the environments, beside two of the package on the same gradients."""

    def __init__(self, name: str) -> None:
        self.config = make_task_config(LR, {"optimizer": name, "momentum": 0.9, "weight_decay": 0.1})
        self.mine = build_optimizer(self.config, ())
        draw = torch.Generator().manual_seed(0)
        self.params = {"w": torch.randn(2, 3, 4, generator=draw), "b": torch.zeros(2, 3)}
        self.slots = {
            slot: {key: torch.zeros_like(value) for key, value in self.params.items()} for slot in self.mine.slots
        }
        with redirect_stdout(io.StringIO()):
            self.theirs = [PACKAGES[name]([value[row].clone() for value in self.params.values()]) for row in (0, 1)]
        self.draw = draw

    def step(self, number: int, rates: list[float]) -> None:
        """One update of both; the rows begin with different numbers of updates."""
        gradients = {
            key: value - GOAL + torch.randn(value.shape, generator=self.draw) for key, value in self.params.items()
        }
        for rate, optimizer, row in zip(rates, self.theirs, (0, 1), strict=True):
            optimizer.param_groups[0]["lr"] = rate
            for parameter, gradient in zip(optimizer.param_groups[0]["params"], gradients.values(), strict=True):
                parameter.grad = gradient[row].clone()
            optimizer.step()
        before = {key: value.clone() for key, value in gradients.items()}
        learning_rate = torch.tensor(rates, dtype=torch.float64)
        hyper = Hyperparameters(learning_rate, torch.full((2,), 0.9).double(), torch.full((2,), 0.1).double())
        self.mine.update(self.params, gradients, self.slots, hyper, torch.tensor([number, number]))
        assert all(torch.equal(before[key], value) for key, value in gradients.items())

    def check(self) -> None:
        """The weights are the same."""
        for row, optimizer in enumerate(self.theirs):
            for value, parameter in zip(self.params.values(), optimizer.param_groups[0]["params"], strict=True):
                torch.testing.assert_close(value[row], parameter, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", PACKAGES)
def test_an_optimizer_that_estimates_its_rate_is_the_packages(name):
    beside = Beside(name)
    start = {key: value.clone() for key, value in beside.params.items()}
    for number in range(60):
        beside.step(number, [1.0, 0.5 - number / 200])
        beside.check()
    moved = (beside.params["w"] - start["w"]).abs().mean(dim=(1, 2))
    assert (moved > 0.1).all()  # the estimates have left their 1e-6
    assert abs(moved[0] - moved[1]) > 0.01
    assert beside.theirs[0].param_groups[0]["d"] > 1e-4


def test_a_new_episode_estimates_anew():
    beside = Beside("d-adapt-sgd")
    for number in range(30):
        beside.step(number, [1.0, 1.0])
    fresh = Beside("d-adapt-sgd")
    for slot in beside.slots.values():
        for value in slot.values():
            value.zero_()
    for key, value in beside.params.items():
        value.copy_(fresh.params[key])
    beside.theirs, beside.draw = fresh.theirs, fresh.draw
    for number in range(10):
        beside.step(number, [1.0, 1.0])
        beside.check()


def test_what_is_pulled_stays_pulled_in_d_adaptation():
    """SGD's z is computed from x0 and s at each step: without moving x0 the next step would undo a pull."""
    one, pulled = Beside("d-adapt-sgd"), Beside("d-adapt-sgd")
    for number in range(30):
        for beside in (one, pulled):
            beside.step(number, [1.0, 1.0])
    for weights in (pulled.params, pulled.slots["z"]):
        weights["w"].lerp_(torch.full_like(weights["w"], -7.0), 0.5)
    before = pulled.params["w"].clone()
    hyper = Hyperparameters(*(torch.full((2,), value).double() for value in (1e-9, 0.9, 0.0)))
    gradients = {key: torch.ones_like(value) for key, value in pulled.params.items()}
    for number in range(30, 130):
        pulled.mine.update(pulled.params, gradients, pulled.slots, hyper, torch.tensor([number, number]))
    # The weights, a mean of z, end at z: half-way between where z was and the reference.
    torch.testing.assert_close(pulled.params["w"], (one.slots["z"]["w"] - 7) / 2, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(before, one.params["w"], atol=1)


def test_actions_that_change_the_momentum_are_refused():
    config = make_task_config(LR, {"optimizer": "prodigy", "momentum": 0.9})
    with pytest.raises(ValueError, match="Prodigy optimizers keep the momentum"):
        build_optimizer(config, ("momentum",))


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGES)
def test_they_are_played_with_rate_1_by_a_cosine_and_without_a_budget(name):
    prepared = prepare(name, TASK, {})
    assert (prepared.runs, prepared.batches) == (0, 0)
    env = make_env(TASK, 2, {**prepared.env_kwargs, "validate_every": 1})
    rollout = play_episodes(env, prepared.controller, [0, 1])
    cosine = (1 + np.cos(np.pi * np.arange(20) / 20)) / 2
    assert rollout.learning_rate[1:, 0] == pytest.approx(cosine, rel=1e-3)
    assert np.isfinite(rollout.final["test_loss"]).all()


# --- populations ----------------------------------------------------------------------------------------------------

TWO_EPOCHS = {**KWARGS, "train_size": 100, "epochs": 2, "momentum": 0.9}  # 20 mini-batches, an epoch begins at 10


def bytes_of(training: Any, row: int) -> dict[str, bytes]:
    return {name: value[row].numpy().tobytes() for name, value in training.run.saved().items()}


@pytest.mark.parametrize("at", [3, 10])
def test_a_run_that_was_copied_goes_on_as_the_one_it_was_copied_from(at):
    env = make_env(TuningTask(LR, TWO_EPOCHS, 0, 0), 4, ABSOLUTE_ACTIONS)
    env.reset(seed=[5, 6, 7, 8])
    play = lambda *rates: env.training.step(absolute_actions(np.array(rates), env.config))  # noqa: E731
    for _ in range(at):
        play(0.05, 0.1, 0.2, 0.3)
    untouched = bytes_of(env.training, 0)
    env.training.copy_rows([1, 3], [2, 1])  # as they stand before anything is overwritten: no chain
    assert bytes_of(env.training, 0) == untouched
    assert bytes_of(env.training, 1) == bytes_of(env.training, 2) != bytes_of(env.training, 3)
    for _ in range(20 - at):
        play(0.05, 0.2, 0.2, 0.1)
    assert bytes_of(env.training, 1) == bytes_of(env.training, 2)
    alone = make_env(TuningTask(LR, TWO_EPOCHS, 0, 0), 1, ABSOLUTE_ACTIONS)
    alone.reset(seed=[6])
    for _ in range(20):
        alone.training.step(absolute_actions(np.array([0.1]), env.config))
    assert bytes_of(env.training, 3) == bytes_of(alone.training, 0)


def test_runs_of_different_tasks_are_not_copied():
    envs = gym.make_vec("QanLR-Family-v0", num_envs=2)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="different tasks"):
        envs.unwrapped.training.copy_rows([0], [1])


def test_the_pieces_of_a_training_are_equal():
    assert pieces_of(20, 4).tolist() == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5
    assert pieces_of(5, 2).tolist() == [0, 0, 0, 1, 1]


def population_of_single_episodes(task: TuningTask, generations: int) -> tuple[list[float], list[list[float]]]:
    """A population of single environments and saved states: final validation losses, and the rates of each lineage."""
    rng, n = np.random.default_rng(task.seed), task.runs
    envs = [gym.make(LR, **{**TWO_EPOCHS, **ABSOLUTE_ACTIONS, "validate_every": 1}) for _ in range(n)]
    for number, env in enumerate(envs):
        env.reset(seed=task.tuning_seed(number))
    low, high = np.log(SGD_RATES)
    rates = [[rate] for rate in np.exp(rng.uniform(low, high, n)).tolist()]
    length = 20 // generations
    for generation in range(generations):
        losses = []
        for env, lineage in zip(envs, rates, strict=True):
            action = absolute_actions(np.array([lineage[-1]]), env.unwrapped.config)[0]
            for _ in range(length):
                info = env.step(action)[-1]
            losses.append(float(info["validation_loss"]))
        if generation == generations - 1:
            return losses, rates
        ranked = sorted(range(n), key=lambda row: losses[row])
        count = round(0.2 * n)
        best, worst = ranked[:count], ranked[n - count :]
        sources, factors = rng.choice(best, count), rng.choice(FACTORS, count)
        states = [env.unwrapped.get_state() for env in envs]
        lineages = [list(lineage) for lineage in rates]
        for lineage in rates:
            lineage.append(lineage[-1])
        for row, source, factor in zip(worst, sources, factors, strict=True):
            envs[row].unwrapped.set_state(states[source])
            rates[row] = [*lineages[source], lineages[source][-1] * factor]
    raise AssertionError


@pytest.mark.slow
def test_a_population_is_that_of_single_episodes(monkeypatch):
    monkeypatch.setattr(population, "GENERATIONS", 4)
    task = TuningTask(LR, TWO_EPOCHS, 10, 3)
    losses, rates = population_of_single_episodes(task, 4)
    prepared = prepare("population", task, {})
    assert prepared.chosen["learning_rates"] == pytest.approx(rates[int(np.argmin(losses))])
    assert len({tuple(lineage[:1]) for lineage in rates}) < 10  # some lineages have ended
    env = make_env(task, 10, ABSOLUTE_ACTIONS)
    again = Population(env, [task.tuning_seed(number) for number in range(10)], np.random.default_rng(3))
    again.train()
    np.testing.assert_allclose(again.losses, losses, rtol=1e-6)
    np.testing.assert_allclose(again.rates.T, rates)


def test_a_population_counts_all_its_trainings_and_is_replayed(monkeypatch):
    monkeypatch.setattr(population, "GENERATIONS", 4)
    task = TuningTask(LR, KWARGS, 5, 0)
    prepared = prepare("population", task, {})
    assert (prepared.runs, prepared.batches) == (5, 100)
    rates = prepared.chosen["learning_rates"]
    env = make_env(task, 2, {**prepared.env_kwargs, "validate_every": 1})
    played = play_episodes(env, prepared.controller, [0, 1]).learning_rate[1:]
    for row in (0, 1):
        assert played[:, row] == pytest.approx(np.repeat(rates, 5), rel=1e-4)


def test_trainings_that_diverge_go_on_from_the_best_and_count_what_they_did(monkeypatch):
    monkeypatch.setattr(population, "GENERATIONS", 4)
    env = make_env(TASK, 5, {**ABSOLUTE_ACTIONS, "learning_rate_max": 3e38})
    some = Population(env, range(5), np.random.default_rng(0))
    some.rates[0] = [3e38, 0.05, 3e38, 0.04, 3e38]  # more of them than the share that goes on from others
    some.train()
    assert np.isfinite(some.losses).all()
    assert set(some.rates[0]) <= {0.05, 0.04}
    assert 2 * 20 + 3 * 15 < some.batches < 100


def test_a_population_that_diverges_is_an_error(monkeypatch):
    monkeypatch.setattr(population, "usual_rates", lambda config: (1e38, 3e38))
    monkeypatch.setattr(population, "ABSOLUTE_ACTIONS", {**ABSOLUTE_ACTIONS, "learning_rate_max": 3e38})
    with pytest.raises(ValueError, match="all 3 trainings of the population diverged"):
        prepare("population", TuningTask(LR, KWARGS, 3, 0), {})


def test_a_short_training_has_fewer_generations():
    prepared = prepare("population", TuningTask(LR, {**KWARGS, "train_size": 40}, 2, 0), {})
    assert len(prepared.chosen["learning_rates"]) == 4
    assert math.prod(prepared.chosen["learning_rates"]) > 0
    env = make_env(TASK, 1, ABSOLUTE_ACTIONS)
    assert play_episodes(env, PiecewiseConstant([0.1] * 10), [0]).batches == [20]


def test_learned_lr_needs_a_mini_batch_for_every_decision():
    with pytest.raises(ValueError, match="it makes 25 decisions, and a training of this task has 20 mini-batches"):
        check("learned-lr", TASK, {})


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_learned_lr_is_the_shipped_controller_in_the_environment(optimizer):
    kwargs = {**KWARGS, "optimizer": optimizer, "epochs": 3}
    task = TuningTask(LR, kwargs, 0, 0)
    prepared = prepare("learned-lr", task, {})
    assert prepared.runs == 0
    rollout = play_episodes(make_env(task, 2, prepared.env_kwargs), prepared.controller, [3, 4])

    controller, losses = shipped_controller(optimizer), []
    del kwargs["batches_per_action"]
    env = gym.make(
        LR, **kwargs, observation="statistics", continuous=True, action_scale="multiplicative", schedule="linear",
        learning_rate_factor=12, learning_rate={"sgd": 0.001, "adamw": 0.003}[optimizer], learning_rate_min=1e-6,
        learning_rate_max=100, batches_per_action=task.batches // 25,
    )  # fmt: skip
    for seed in (3, 4):
        observation, info = env.reset(seed=seed)
        act, over = controller.player(1), False
        while not over:
            observation, _, terminated, truncated, info = env.step(act(observation[None])[0])
            over = terminated or truncated
        losses.append(info["test_loss"])
    assert rollout.final["test_loss"] == pytest.approx(losses, rel=1e-6)
    assert task.batches // 25 * 25 <= task.batches == rollout.batches[0]


@pytest.mark.parametrize(
    ("name", "env", "runs", "settings", "message"),
    [
        ("population", LR, 1, {}, "at least 2 training runs"),
        ("population", LR, 4, {"size": 3}, "unknown setting"),
        ("population", MINIBATCH, 4, {}, "game 'minibatch'"),
        ("greedy-lr", LR, 0, {}, "at least 1 training run"),
        ("prodigy", LR, 0, {"learning_rate": 1.0}, "unknown setting"),
        ("d-adapt-sgd", MINIBATCH, 0, {}, "game 'minibatch'"),
        ("learned-lr", MINIBATCH, 0, {}, "the learning rate, which the actions of the game 'minibatch' do not"),
        ("learned-lr", LR, 0, {"replicate": 99}, "replicate must be one of"),
        ("learned-lr", LR, 0, {"seed": 0}, "unknown setting 'seed'"),
        (
            "learned-lr",
            LR,
            0,
            {"file": str(shipped_paths()["adamw"][0])},
            "not meta-trained to set the learning rate of sgd",
        ),
        (
            "learned-lr",
            LR,
            0,
            {"file": str(shipped_paths()["long-tail"][0])},
            "not meta-trained to set the learning rate",
        ),
    ],
)
def test_what_cannot_be_prepared_is_refused_before_anything_is_computed(name, env, runs, settings, message):
    with pytest.raises(ValueError, match=message):
        check(name, TuningTask(env, {}, runs, 0), settings)
