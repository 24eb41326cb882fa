"""The controllers of a bench: what they play, what preparing them consumes, and on which seeds."""

import math

import numpy as np
import pytest
import torch
from helpers import SHORT
from torch import nn, optim
from torch.optim import lr_scheduler

from qan_agents.bench.controllers import (
    ABSOLUTE,
    CONTROLLERS,
    FAMILIES,
    FIXED,
    TUNED,
    Problem,
    Scheduled,
    batches_of,
    make_env,
    play,
    prepare,
)
from qan_agents.seeds import UNSEEN_BELOW
from qan_gym.games.learning_rate import PEAK, RISE, START
from qan_gym.optimizee.network import evaluate
from qan_gym.optimizee.optimizers import build_optimizer
from qan_gym.tasks import make_task_config

LR, MINIBATCH = "QanLR-MNIST5k-v0", "QanMinibatch-MNIST5k-v0"
KWARGS = {**SHORT, "reference": None}  # 20 mini-batches
MINI = {"train_size": 500, "batch_size": 20, "epochs": 1, "meta_momentum": None, "reference": None}
IN_MINIBATCH = ("random", "shuffled", "class-balanced", "loss-proportional", "dqn-gpu", "dqn", "ppo")


def rates_of(family: str, chosen: dict, seeds: list[int] = [3]) -> np.ndarray:  # noqa: B006
    """The learning rate of every mini-batch but the first, (N, 20)."""
    env = make_env(Problem(LR, KWARGS, 0, 0), len(seeds), {**ABSOLUTE, "validate_every": 1})
    return play(env, Scheduled(FAMILIES[family], [chosen]), seeds).rates[1:].T


@pytest.mark.parametrize("family", ["constant", "step", "linear", "cosine", "one-cycle", "one-cycle-wide", "cooldown"])
def test_schedules_are_torchs(family):
    rate, steps = 0.3, 20
    chosen = {"learning_rate": rate, "factor": 0.25, "at": 0.5, "start": 0.3, "length": 0.5}
    if family == "one-cycle-wide":
        chosen["rise"] = 60
    optimizer = optim.SGD(nn.Linear(1, 1).parameters(), lr=rate)
    scheduler = {
        "constant": lambda: lr_scheduler.LambdaLR(optimizer, lambda _: 1.0),
        "step": lambda: lr_scheduler.StepLR(optimizer, 10, 0.25),
        "linear": lambda: lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps),
        "cosine": lambda: lr_scheduler.CosineAnnealingLR(optimizer, steps),
        "cooldown": lambda: lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (steps - step) / 10)),
        "one-cycle": lambda: lr_scheduler.OneCycleLR(optimizer, rate, steps + 1, pct_start=0.3, cycle_momentum=False),
        "one-cycle-wide": lambda: lr_scheduler.OneCycleLR(
            optimizer, rate, steps + 1, pct_start=0.3, div_factor=60, cycle_momentum=False
        ),
    }[family]()
    wanted = []
    for _ in range(steps):
        wanted.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates_of(family, chosen)[0] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("name", ["schedule-free-sgd", "schedule-free-adamw"])
def test_schedule_free_is_the_packages(name):
    """Two rows of different learning rates, beside two optimizers of the package on the same gradients."""
    import schedulefree

    import qan_agents.bench.schedule_free  # noqa: F401 (registers them)

    config = make_task_config(LR, {"optimizer": name, "momentum": 0.9, "weight_decay": 0.1})
    mine = build_optimizer(config)
    draw = torch.Generator().manual_seed(0)
    params = {"w": torch.randn(2, 3, 4, generator=draw), "b": torch.randn(2, 3, generator=draw)}
    slots = {slot: {key: torch.zeros_like(value) for key, value in params.items()} for slot in mine.slots}
    assert all((mine.averaged(params, slots)[key] == params[key]).all() for key in params)  # before the first update
    rates, theirs = torch.tensor([0.05, 0.2]), []
    for row, rate in enumerate(rates.tolist()):
        own = [value[row].clone() for value in params.values()]
        if name == "schedule-free-sgd":
            theirs.append(schedulefree.SGDScheduleFree(own, lr=rate, momentum=0.9, weight_decay=0.1))
        else:
            theirs.append(schedulefree.AdamWScheduleFree(own, lr=rate, weight_decay=0.1))
        theirs[row].train()
    for number in range(7):
        gradients = {key: torch.randn(value.shape, generator=draw) for key, value in params.items()}
        for row, optimizer in enumerate(theirs):
            for parameter, gradient in zip(optimizer.param_groups[0]["params"], gradients.values(), strict=True):
                parameter.grad = gradient[row].clone()
            optimizer.step()
        mine.update(params, gradients, slots, rates, torch.tensor([number, number]))
    averaged = mine.averaged(params, slots)
    for row, optimizer in enumerate(theirs):
        weights = optimizer.param_groups[0]["params"]
        for value, parameter in zip(params.values(), weights, strict=True):
            torch.testing.assert_close(value[row], parameter)
        optimizer.eval()
        for value, parameter in zip(averaged.values(), weights, strict=True):
            torch.testing.assert_close(value[row], parameter)
            assert not torch.equal(value, params["w"][row])


def test_what_is_measured_is_the_average():
    """With schedule-free optimizers validation and test are those of x, not of the weights in training."""
    import qan_agents.bench.schedule_free  # noqa: F401

    problem = Problem(LR, KWARGS, 0, 0)
    env = make_env(problem, 2, {**ABSOLUTE, "optimizer": "schedule-free-sgd", "momentum": 0.9})
    course = play(env, Scheduled(FAMILIES["schedule-free-sgd"], [{"learning_rate": 0.05}]), [0, 1])
    training = env.unwrapped.training
    data = training.data.batches("test", 20)
    x = training.optimizer.averaged(training.run.params, training.run.slots)
    assert evaluate(training.network, x, data)[0].numpy() == pytest.approx(course.final["test_loss"], rel=1e-4)
    y = evaluate(training.network, training.run.params, data)[0].numpy()
    assert not np.allclose(y, course.final["test_loss"], rtol=1e-2)


def test_plateau_lowers_the_rate_of_the_row_that_does_not_improve():
    """Of rates that are far too high it is lowered, of a reasonable one not; each row by itself."""
    env = make_env(Problem(LR, KWARGS, 0, 0), 2, {**ABSOLUTE, "validate_every": 1})
    chosen = [
        {"learning_rate": 0.05, "factor": 0.5, "patience": 1},
        {"learning_rate": 1.5, "factor": 0.5, "patience": 1},
    ]
    rates = play(env, Scheduled(FAMILIES["plateau"], chosen), [0, 0]).rates
    assert rates[-1, 0] == pytest.approx(0.05, rel=1e-4)
    assert rates[-1, 1] < 0.8


def test_a_course_is_what_the_environment_reports():
    problem = Problem(LR, KWARGS, 0, 0)
    course = play(make_env(problem, 3, {"validate_every": 5}), prepare("random", problem, {}).player, [0, 1, 2])
    assert course.validation.shape == course.rates.shape == (5, 3)  # before, and after 5, 10, 15 and 20
    np.testing.assert_array_equal(course.validation[-1], course.final["validation_loss"])
    assert course.batches.tolist() == [20, 20, 20]
    assert (course.final["test_accuracy"] > 0).all()


def test_rows_that_diverge_wait_for_the_others():
    env = make_env(Problem(LR, KWARGS, 0, 0), 2, {**ABSOLUTE, "learning_rate_max": 3e38})
    course = play(env, Scheduled(FAMILIES["constant"], [{"learning_rate": 3e38}, {"learning_rate": 0.05}]), [0, 0])
    assert course.final["diverged"].tolist() == [True, False]
    assert course.batches[0] < 20
    assert course.batches[1] == 20
    assert course.final["validation_loss"][0] > 1e3 > course.final["validation_loss"][1]
    alone = play(
        make_env(Problem(LR, KWARGS, 0, 0), 1, ABSOLUTE),
        Scheduled(FAMILIES["constant"], [{"learning_rate": 0.05}]),
        [0],
    )
    assert course.final["test_loss"][1] == pytest.approx(alone.final["test_loss"][0], rel=1e-4)


@pytest.mark.parametrize("name", CONTROLLERS)
def test_every_controller_is_prepared_and_plays(name):
    in_lr = name in TUNED or name in ("constant", "base", "sac", "td3", "qr-dqn")
    env, kwargs = (LR, KWARGS) if in_lr else (MINIBATCH, MINI)
    problem = Problem(env, kwargs, runs=2, seed=1, at_once=2)
    prepared = prepare(name, problem, {})
    course = play(make_env(problem, 2, prepared.env_kwargs), prepared.player, [0, 1])
    assert np.isfinite(course.final["test_loss"]).all()
    unprepared = name in FIXED
    assert prepared.runs == (0 if unprepared else 2)
    assert prepared.batches == (0 if unprepared else 2 * batches_of(problem))


def test_training_an_agent_leaves_no_folder_of_logs(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    prepare("ppo", Problem(LR, KWARGS, 2, 0), {})
    assert list(tmp_path.glob("SB3*")) == []


@pytest.mark.parametrize("name", ["linear", "dqn-gpu", "ppo"])
def test_the_same_seed_prepares_the_same(name):
    problem = Problem(LR, KWARGS, runs=2, seed=5, at_once=2)
    losses = []
    for _ in range(2):
        prepared = prepare(name, problem, {})
        losses.append(play(make_env(problem, 2, prepared.env_kwargs), prepared.player, [0, 1]).final["test_loss"])
    np.testing.assert_array_equal(*losses)


def test_tuning_finds_what_trained_best(monkeypatch):
    """Of the trainings of a budget, the settings with the lowest validation loss; their seeds are all different."""
    played = []

    def note(env, player, seeds):
        course = play(env, player, seeds)
        for row, seed in enumerate(seeds):
            played.append((course.final["validation_loss"][row], player.chosen[row]["learning_rate"], seed))
        return course

    monkeypatch.setattr("qan_agents.bench.controllers.play", note)
    prepared = prepare("linear", Problem(LR, KWARGS, runs=6, seed=0), {})
    assert len(played) == 6  # a wave of four and one of two
    assert prepared.chosen["learning_rate"] == min(played)[1]
    seeds = [seed for _, _, seed in played]
    assert len(set(seeds)) == 6
    assert min(seeds) >= UNSEEN_BELOW


@pytest.mark.parametrize(
    ("settings", "family", "chosen"),
    [
        ({}, "cooldown", {"learning_rate": 0.05, "length": 0.25}),
        # torch's peak of 20 steps is at (share * 21 - 1) / 20 of them
        (
            {"env": {"schedule": "one-cycle"}},
            "one-cycle-wide",
            {"learning_rate": 0.05 * PEAK, "start": (20 * START + 1) / 21, "rise": RISE},
        ),
    ],
)
def test_base_is_the_schedule_under_the_actions(settings, family, chosen):
    problem = Problem(LR, KWARGS, 0, 0)
    prepared = prepare("base", problem, settings)
    rates = play(make_env(problem, 1, {**prepared.env_kwargs, "validate_every": 1}), prepared.player, [0]).rates[1:, 0]
    end = 0.05 * PEAK / RISE * 1e-4  # torch's one-cycle ends at a ten thousandth of its start, not at 0
    assert rates == pytest.approx(rates_of(family, chosen)[0], rel=1e-4, abs=end)


def test_everyone_is_pulled_alike_towards_the_same_weights():
    """Schedule-free optimizers too, whose own baseline would be another reference: z is pulled as the weights are."""
    problem = Problem(LR, {**KWARGS, "meta_momentum": 1.0, "reference": "pretrained"}, runs=1, seed=0)
    finals = {}
    for name in ("constant", "schedule-free-sgd"):
        prepared = prepare(name, problem, {})
        env = make_env(problem, 1, prepared.env_kwargs)
        finals[name] = play(env, prepared.player, [0]).final["test_loss"][0]
        training = env.unwrapped.training
    # Pulled all the way the network is the reference, but for the biases, which are not pulled.
    for copy in (training.run.params, training.run.slots["z"]):
        assert all(torch.equal(copy[key], training.reference[key]) for key in training.pulled)
    assert finals["schedule-free-sgd"] == pytest.approx(finals["constant"], rel=0.5)


def test_balanced_batches_hold_all_classes_alike():
    problem = Problem(MINIBATCH, {**MINI, "train_size": None}, 0, 0)
    env = make_env(problem, 1, {})
    player = prepare("class-balanced", problem, {}).player
    player.start(env)
    observations, infos = env.reset(seed=0)
    for _ in range(12):
        env.step(player.act(observations, infos))
    labels = env.unwrapped.training.data.labels["train"][env.unwrapped.training.run.batch_indices[0, -1]]
    assert labels.bincount(minlength=10).tolist() == [2] * 10


def test_loss_proportional_prefers_what_is_learned_worst():
    problem = Problem(MINIBATCH, {**MINI, "train_size": None}, 0, 0)
    env = make_env(problem, 1, {})
    player = prepare("loss-proportional", problem, {}).player
    player.start(env)
    _, infos = env.reset(seed=0)
    for _ in range(15):  # only class 3 is trained on
        env.step(np.array([3]))
    player.act(None, infos)
    assert player.shares[0].argmin() == 3
    assert player.shares.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "env", "settings", "runs", "message"),
    [
        ("gradient-free", LR, {}, 4, "unknown controller"),
        ("linear", MINIBATCH, {}, 4, "continuous"),
        ("dqn-gpu", LR, {"depth": 3}, 4, "depth"),
        ("ppo", LR, {"depth": 3}, 4, "depth"),
        ("dqn-gpu", LR, {"history": 2}, 4, "history"),
        ("dqn-gpu", LR, {}, 6, "waves"),
        ("dqn-gpu", LR, {}, 0, "waves"),
        ("base", MINIBATCH, {}, 0, "learning-rate game"),
    ],
)
def test_wrong_settings_are_refused(name, env, settings, runs, message):
    with pytest.raises(ValueError, match=message):
        prepare(name, Problem(env, KWARGS if env == LR else MINI, runs, 0), settings)


def test_tuning_seeds_are_never_judged_on():
    seeds = {Problem(LR, {}, 20, seed).tuning_seed(number) for seed in range(20) for number in range(20)}
    assert len(seeds) == 400
    assert all(UNSEEN_BELOW <= seed < 2**32 for seed in seeds)
    assert math.isclose(UNSEEN_BELOW, 2**31)
