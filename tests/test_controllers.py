"""The controllers of a bench: what they play, what preparing them consumes, and on which seeds."""

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import SHORT
from torch import optim
from torch.optim import lr_scheduler

from qan_agents.bench import tuned_schedules, tuning_task
from qan_agents.bench.controllers import CONTROLLERS, Controller, Preparation, PreparedController, register_controller
from qan_agents.bench.grid import cells_of
from qan_agents.bench.preparation import controllers, prepare
from qan_agents.bench.rollout import Rollout, play_episodes
from qan_agents.bench.runner import transferred_env_kwargs
from qan_agents.bench.trained_agents import OWN_ARGUMENTS
from qan_agents.bench.tuned_schedules import (
    ABSOLUTE_ACTIONS,
    LEAST_RATE,
    PlateauController,
    ScheduleController,
    absolute_actions,
    scheduled_rates,
)
from qan_agents.bench.tuning_task import TuningTask, make_env
from qan_agents.policies.fixed import make_policy
from qan_agents.policies.rollout import EpisodeRecorder, play_episode
from qan_agents.seeds import UNSEEN_BELOW
from qan_gym.core.components import build_components
from qan_gym.core.references import DEPENDS_ON, resolve_reference
from qan_gym.games.learning_rate import KEEP
from qan_gym.optimizee.network import evaluate
from qan_gym.optimizee.optimizers import Hyperparameters, build_optimizer
from qan_gym.schedules import SCHEDULES, Schedule, register_schedule
from qan_gym.tasks import make_task_config

LR, MINIBATCH = "QanLR-MNIST5k-v1", "QanMinibatch-MNIST5k-v1"
KWARGS = {**SHORT, "reference": None}  # 20 mini-batches
MINI = {"train_size": 500, "batch_size": 20, "epochs": 1, "meta_momentum": None, "reference": None}  # 25
OFF_POLICY = ("dqn-native", "dqn", "qr-dqn", "sac", "td3")
FEW_UPDATES = {"gradient_steps": 1}  # of those


@pytest.fixture(autouse=True)
def few_validations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four measurements in an episode of 20 mini-batches instead of one after each."""
    monkeypatch.setattr(tuning_task, "VALIDATIONS", 4)


@pytest.fixture
def own_controllers() -> Iterator[None]:
    """The controllers that a test registers are forgotten after it."""
    before = dict(CONTROLLERS)
    yield
    CONTROLLERS.clear()
    CONTROLLERS.update(before)


def rates_of(controller: Controller, num_envs: int = 1, **env_kwargs: Any) -> np.ndarray:
    """The learning rate of every mini-batch, (num_envs, 20)."""
    env = make_env(TuningTask(LR, KWARGS, 0, 0), num_envs, {**ABSOLUTE_ACTIONS, "validate_every": 1, **env_kwargs})
    return play_episodes(env, controller, [3] * num_envs).learning_rate[1:].T


# --- schedules ------------------------------------------------------------------------------------------------------


def torch_rates(make: Callable[[optim.Optimizer], lr_scheduler.LRScheduler], rate: float, length: int) -> np.ndarray:
    """The learning rates of one of torch's schedulers, at the first `length` steps."""
    optimizer = optim.SGD([torch.zeros(1)], lr=rate)
    scheduler, rates = make(optimizer), []
    for _ in range(length):
        rates.append(optimizer.param_groups[0]["lr"])
        with warnings.catch_warnings():  # OneCycleLR is done after its last step
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
            scheduler.step()
    return np.array(rates)


def torch_scheduler(
    name: str, chosen: dict[str, float], length: int
) -> Callable[[optim.Optimizer], lr_scheduler.LRScheduler]:
    """The scheduler of torch's that a tuned schedule is to follow over `length` actions."""

    def cooldown(optimizer: optim.Optimizer) -> lr_scheduler.LRScheduler:
        last = max(1, round(chosen["length"] * length))
        return lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (length - step) / last))

    makers: dict[str, Callable[[optim.Optimizer], lr_scheduler.LRScheduler]] = {
        "constant": lambda optimizer: lr_scheduler.ConstantLR(optimizer, factor=1.0),
        "linear": lambda optimizer: lr_scheduler.LinearLR(optimizer, 1.0, 0.0, length),
        "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, length),
        "step": lambda optimizer: lr_scheduler.MultiStepLR(
            optimizer, [max(1, round(chosen["at"] * length))], chosen["factor"]
        ),
        "cooldown": cooldown,
        "one-cycle": lambda optimizer: lr_scheduler.OneCycleLR(
            optimizer,
            chosen["learning_rate"],
            total_steps=length + 1,
            pct_start=chosen["start"],
            div_factor=chosen.get("rise", 25.0),
            cycle_momentum=False,
        ),
    }
    return makers[name]


@pytest.mark.parametrize("length", [20, 200])
@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("constant", {}),
        ("linear", {}),
        ("cosine", {}),
        *(("step", {"factor": factor, "at": at}) for factor, at in ((0.25, 0.5), (0.0123, 0.3), (0.5, 0.8765))),
        *(("cooldown", {"length": share}) for share in (0.5, 0.05, 0.1234)),
        *(("one-cycle", {"start": start}) for start in (0.3, 0.05, 0.4567)),
        *(("one-cycle", {"start": start, "rise": rise}) for start, rise in ((0.3, 60.0), (0.85, 1.0), (0.7123, 4.2))),
    ],
)
def test_tuned_schedules_are_torchs(name, chosen, length):
    """The float32 actions are the same; the peak of OneCycleLR, its beginning (by default) and its end are torch's."""
    config = make_task_config(LR, ABSOLUTE_ACTIONS)
    for rate in (0.3, 0.0123456789):
        settings = {"learning_rate": rate, **chosen}
        wanted = torch_rates(torch_scheduler(name, settings, length), rate, length)
        found = scheduled_rates(name, settings, length)
        np.testing.assert_allclose(found, wanted, rtol=1e-10)
        np.testing.assert_array_equal(absolute_actions(found, config), absolute_actions(wanted, config))
        # The same actions as the formula of the actions has for torch's learning rates.
        share = np.log(np.maximum(wanted, LEAST_RATE) / LEAST_RATE) / np.log(10 / LEAST_RATE)
        np.testing.assert_allclose(absolute_actions(found, config)[:, 0], 2 * share - 1, atol=1e-6)


def test_every_row_follows_its_own_schedule():
    """What the environment trains with is what the schedules say, in each row by its own settings."""
    chosen = [{"learning_rate": 0.3, "factor": 0.25, "at": 0.5}, {"learning_rate": 0.1, "factor": 0.5, "at": 0.3}]
    rates = rates_of(ScheduleController("step", chosen), num_envs=2)
    for row, settings in enumerate(chosen):
        assert rates[row] == pytest.approx(scheduled_rates("step", settings, 20), rel=1e-4)


def test_schedules_need_actions_that_are_learning_rates():
    env = make_env(TuningTask(LR, KWARGS, 0, 0), 1, {})
    with pytest.raises(ValueError, match="absolute"):
        ScheduleController("linear", [{"learning_rate": 0.1}]).start(env)


@pytest.mark.slow
def test_a_registered_schedule_serves_all_three_users(registries):
    """One call makes it a base schedule, a fixed policy, and a tuned controller that a grid accepts."""
    register_schedule(
        "power", Schedule(lambda xp, share, power: (1 - share) ** power, {"power": 2}, {"power": (0.5, 3.0)})
    )
    share = np.arange(20) / 20

    env = gym.make_vec(LR, num_envs=1, **KWARGS, schedule="power")
    env.reset(seed=0)
    under_actions = [env.step(np.array([KEEP]))[4]["learning_rate"][0] for _ in range(20)]
    assert under_actions == pytest.approx(0.05 * (1 - share) ** 2, rel=1e-4)

    wide = {"learning_rate_min": 1e-4, "continuous": True}
    single = EpisodeRecorder(gym.make(LR, **KWARGS, **wide))
    fixed = [row["learning_rate"] for row in play_episode(single, make_policy("power"), seed=0).steps]
    assert fixed[:18] == pytest.approx((0.05 * (1 - share) ** 2)[:18], rel=1e-4)  # then it falls by more than a half

    assert [cell.controller for cell in cells_of({"environments": [LR], "controllers": ["power"]})] == ["power"]
    prepared = prepare("power", TuningTask(LR, KWARGS, runs=2, seed=0), {})
    assert set(prepared.chosen) == {"learning_rate", "power"}
    assert 0.5 <= prepared.chosen["power"] <= 3.0
    wanted = prepared.chosen["learning_rate"] * (1 - share) ** prepared.chosen["power"]
    assert rates_of(prepared.controller)[0] == pytest.approx(wanted, rel=1e-4)

    with pytest.raises(ValueError, match="taken"):
        register_schedule("power", SCHEDULES["linear"])


@pytest.mark.parametrize(
    ("settings", "schedule", "chosen"),
    [
        ({}, "cooldown", {"learning_rate": 0.05, "length": 0.25}),
        # The search counts as torch does: its peak of 20 steps is at (start * 21 - 1) / 20 of them.
        ({"env": {"schedule": "one-cycle"}}, "one-cycle", {"start": (20 * 0.5 + 1) / 21, "rise": 20, "fall": math.inf}),
    ],
)
def test_base_is_the_schedule_under_the_actions(settings, schedule, chosen):
    task = TuningTask(LR, KWARGS, 0, 0)
    prepared = prepare("base", task, settings)
    env = make_env(task, 1, {**prepared.env_kwargs, "validate_every": 1})
    rates = play_episodes(env, prepared.controller, [0]).learning_rate[1:, 0]
    wanted = {"learning_rate": 0.05 * SCHEDULES[schedule].peak, **chosen}
    assert rates == pytest.approx(rates_of(ScheduleController(schedule, [wanted]))[0], rel=1e-4)


def test_plateau_lowers_the_rate_of_the_row_that_does_not_improve():
    """Of rates that are far too high it is lowered, of a reasonable one not; each row by itself."""
    chosen = [
        {"learning_rate": 0.05, "factor": 0.5, "patience": 1},
        {"learning_rate": 1.5, "factor": 0.5, "patience": 1},
    ]
    env = make_env(TuningTask(LR, KWARGS, 0, 0), 2, {**ABSOLUTE_ACTIONS, "validate_every": 1})
    rates = play_episodes(env, PlateauController(chosen), [0, 0]).learning_rate
    assert rates[-1, 0] == pytest.approx(0.05, rel=1e-4)
    assert rates[-1, 1] < 0.8


# --- schedule-free optimizers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["schedule-free-sgd", "schedule-free-adamw"])
def test_schedule_free_is_the_packages(name):
    """Two rows of different learning rates, beside two optimizers of the package on the same gradients."""
    import schedulefree

    import qan_agents.bench.schedule_free  # noqa: F401 (registers them)

    config = make_task_config(LR, {"optimizer": name, "momentum": 0.9, "weight_decay": 0.1})
    mine = build_optimizer(config, ())
    draw = torch.Generator().manual_seed(0)
    params = {"w": torch.randn(2, 3, 4, generator=draw), "b": torch.randn(2, 3, generator=draw)}
    slots = {slot: {key: torch.zeros_like(value) for key, value in params.items()} for slot in mine.slots}
    assert all((mine.averaged(params, slots)[key] == params[key]).all() for key in params)  # before the first update
    rates, theirs = torch.tensor([0.05, 0.2]), []
    hyper = Hyperparameters(rates.double(), torch.full((2,), 0.9).double(), torch.full((2,), 0.1).double())
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
        mine.update(params, gradients, slots, hyper, torch.tensor([number, number]))
    averaged = mine.averaged(params, slots)
    for row, optimizer in enumerate(theirs):
        weights = optimizer.param_groups[0]["params"]
        for value, parameter in zip(params.values(), weights, strict=True):
            torch.testing.assert_close(value[row], parameter)
        optimizer.eval()
        for value, parameter in zip(averaged.values(), weights, strict=True):
            torch.testing.assert_close(value[row], parameter)
            assert not torch.equal(value, params["w"][row])


@pytest.mark.slow
def test_what_is_measured_is_the_average():
    """With schedule-free optimizers validation and test are those of x, not of the weights in training."""
    import qan_agents.bench.schedule_free  # noqa: F401

    task = TuningTask(LR, KWARGS, 0, 0)
    env = make_env(task, 2, {**ABSOLUTE_ACTIONS, "optimizer": "schedule-free-sgd", "momentum": 0.9})
    rollout = play_episodes(env, ScheduleController("constant", [{"learning_rate": 0.05}]), [0, 1])
    training = env.training
    data = training.data.batches("test", 20)
    x = training.parts.optimizer.averaged(training.run.params, training.run.slots)
    assert evaluate(training.network, x, data)[0].numpy() == pytest.approx(rollout.final["test_loss"], rel=1e-4)
    y = evaluate(training.network, training.run.params, data)[0].numpy()
    assert not np.allclose(y, rollout.final["test_loss"], rtol=1e-2)


def test_the_losses_of_the_classes_are_those_of_the_average(small_data):
    import qan_agents.bench.schedule_free  # noqa: F401

    given = {"dataset": small_data, "observation": "classes", "optimizer": "schedule-free-sgd", "batch_size": 4}
    given |= {"momentum": 0.9, "learning_rate": 0.5, "meta_momentum": None, "reference": None}
    env = gym.make("QanMinibatch-MNIST5k-v1", replacement=True, epochs=1, **given)
    env.reset(seed=0)
    for action in (0, 1, 2):
        env.step(action)
    training = env.unwrapped.training
    run, labels = training.run, training.data.labels["validation"]  # so few that all are measured
    x = training.parts.optimizer.averaged(run.params, run.slots)
    each = torch.nn.functional.cross_entropy(
        training.network.forward(x, training.data.split("validation")[0][None], False)[0],
        labels,
        reduction="none",
    )
    for label in labels.unique():
        found = run.class_validation_loss[0, label].item()
        assert found == pytest.approx(each[labels == label].mean().item(), rel=1e-5)


# --- rollouts -------------------------------------------------------------------------------------------------------


def test_a_rollout_is_what_the_environment_reports():
    task = TuningTask(LR, KWARGS, 0, 0)
    env, controller = make_env(task, 3, {"validate_every": 5}), prepare("random", task, {}).controller
    rollout = play_episodes(env, controller, [0, 1, 2])
    assert rollout.validation_loss.shape == rollout.learning_rate.shape == (5, 3)  # before, after 5, 10, 15 and 20
    np.testing.assert_array_equal(rollout.validation_loss[-1], rollout.final["validation_loss"])
    assert rollout.batches.tolist() == [20, 20, 20]
    assert (rollout.final["test_accuracy"] > 0).all()


def test_rows_that_diverge_wait_for_the_others():
    task, reasonable = TuningTask(LR, KWARGS, 0, 0), {"learning_rate": 0.05}
    env = make_env(task, 2, {**ABSOLUTE_ACTIONS, "learning_rate_max": 3e38})
    rollout = play_episodes(env, ScheduleController("constant", [{"learning_rate": 3e38}, reasonable]), [0, 0])
    assert rollout.final["diverged"].tolist() == [True, False]
    assert rollout.batches[0] < 20
    assert rollout.batches[1] == 20
    assert rollout.final["validation_loss"][0] > 1e3 > rollout.final["validation_loss"][1]
    alone = play_episodes(make_env(task, 1, ABSOLUTE_ACTIONS), ScheduleController("constant", [reasonable]), [0])
    assert rollout.final["test_loss"][1] == pytest.approx(alone.final["test_loss"][0], rel=1e-4)


# --- preparation ----------------------------------------------------------------------------------------------------


OF_SHARES = ("natural", "square-root", "deferred", "validation-proportional", "loss-reducing")  # of the classes
OF_LEARNING_RATES = (
    "constant",
    "base",
    "d-adapt-sgd",
    "d-adapt-adamw",
    "prodigy",
    "learned-lr",
    "sac",
    "td3",
    "qr-dqn",
)
SLOW_ONES = ("schedule-free-adamw", "schedule-free-sgd", "qr-dqn", "sac", "td3")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW_ONES else name for name in controllers()]
)
def test_every_controller_is_prepared_and_plays(name):
    preparation = controllers()[name].preparation
    in_lr = preparation == Preparation.TUNING or name in OF_LEARNING_RATES
    env, kwargs = (LR, KWARGS) if in_lr else (MINIBATCH, MINI)
    if name in OF_SHARES:
        kwargs = {**kwargs, "replacement": True, "continuous": True, "observation": "classes"}
    if name == "learned-lr":  # it makes 25 decisions
        kwargs = {**kwargs, "epochs": 2}
    task = TuningTask(env, kwargs, runs=2, seed=1, num_envs=2)
    prepared = prepare(name, task, FEW_UPDATES if name in OFF_POLICY else {})
    rollout = play_episodes(make_env(task, 2, prepared.env_kwargs), prepared.controller, [0, 1])
    assert np.isfinite(rollout.final["test_loss"]).all()
    unprepared = preparation == Preparation.NONE
    assert prepared.runs == (0 if unprepared else 2)
    assert prepared.batches == (0 if unprepared else 2 * task.batches)


def test_a_registered_controller_is_prepared_and_a_grid_accepts_it(own_controllers):
    def lower_once(task: TuningTask, settings: dict[str, Any]) -> PreparedController:
        chosen = {"learning_rate": settings["learning_rate"], "factor": 0.5, "at": 0.5}
        return PreparedController(ScheduleController("step", [chosen]), ABSOLUTE_ACTIONS, chosen=chosen)

    register_controller("lower-once", lower_once, Preparation.NONE)
    (cell,) = cells_of({"environments": [LR], "controllers": ["lower-once"], "runs": [20], "seeds": [1, 2]})
    assert (cell.controller, cell.runs, cell.seed) == ("lower-once", 0, 0)  # it is not prepared: once
    prepared = prepare("lower-once", TuningTask(LR, KWARGS, 0, 0), {"learning_rate": 0.1})
    assert rates_of(prepared.controller)[0] == pytest.approx([0.1] * 10 + [0.05] * 10, rel=1e-4)
    with pytest.raises(ValueError, match="taken"):
        register_controller("lower-once", lower_once, Preparation.NONE)


def test_training_an_agent_leaves_no_folder_of_logs(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    prepare("ppo", TuningTask(LR, KWARGS, 2, 0), {})
    assert list(tmp_path.glob("SB3*")) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear", "dqn-native", "ppo"])
def test_the_same_seed_prepares_the_same(name):
    task = TuningTask(LR, KWARGS, runs=2, seed=5, num_envs=2)
    losses = []
    for _ in range(2):
        prepared = prepare(name, task, FEW_UPDATES if name in OFF_POLICY else {})
        rollout = play_episodes(make_env(task, 2, prepared.env_kwargs), prepared.controller, [0, 1])
        losses.append(rollout.final["test_loss"])
    np.testing.assert_array_equal(*losses)


def test_tuning_finds_what_trained_best(monkeypatch):
    """Of the trainings of a budget, the settings with the lowest validation loss; their seeds are all different."""
    played = []

    def note(env: Any, controller: ScheduleController, seeds: list[int]) -> Rollout:
        rollout = play_episodes(env, controller, seeds)
        for row, seed in enumerate(seeds):
            played.append((rollout.final["validation_loss"][row], controller.chosen[row]["learning_rate"], seed))
        return rollout

    monkeypatch.setattr(tuned_schedules, "play_episodes", note)
    prepared = prepare("linear", TuningTask(LR, KWARGS, runs=6, seed=0), {})
    assert len(played) == 6  # a wave of four and one of two
    assert prepared.chosen["learning_rate"] == min(played)[1]
    seeds = [seed for _, _, seed in played]
    assert len(set(seeds)) == 6
    assert min(seeds) >= UNSEEN_BELOW


@pytest.mark.parametrize(("optimizer", "low", "high"), [("sgd", 0.005, 1.0), ("adamw", 1e-4, 0.1)])
@pytest.mark.parametrize("name", ["linear", "plateau", "greedy-lr", "population"])
def test_searches_look_where_the_optimizer_learns(name, optimizer, low, high, monkeypatch):
    """The highest learning rates of the first four trainings; those of AdamW begin below those of SGD."""
    peaks = []
    actions = tuned_schedules.learning_rate.absolute_actions

    def note(rates: Any, config: Any) -> Any:
        peaks.append(np.atleast_2d(rates).max(axis=0))
        return actions(rates, config)

    monkeypatch.setattr(tuned_schedules.learning_rate, "absolute_actions", note)
    prepare(name, TuningTask(LR, {**KWARGS, "optimizer": optimizer}, runs=4, seed=1), {})
    assert peaks[0].shape == (4,)
    assert (low <= peaks[0]).all()
    assert (peaks[0] <= high).all()
    assert (peaks[0].min() < 0.005) == (optimizer == "adamw")


@pytest.mark.slow
def test_everyone_is_pulled_alike_towards_the_same_weights(tmp_path, monkeypatch):
    """Schedule-free optimizers too, whose own baseline would be another reference: z is pulled as the weights are."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # the reference is trained, and kept there
    task = TuningTask(LR, {**KWARGS, "meta_momentum": 1.0, "reference": "pretrained"}, runs=1, seed=0)
    finals = {}
    for name in ("constant", "d-adapt-sgd", "schedule-free-sgd"):
        prepared = prepare(name, task, {})
        env = make_env(task, 1, prepared.env_kwargs)
        finals[name] = play_episodes(env, prepared.controller, [0]).final["test_loss"][0]
        training = env.training
        # Pulled all the way the network is the reference, but for the biases, which are not pulled.
        for copy in (training.run.params, training.run.slots.get("z", training.run.params)):
            assert all(torch.equal(copy[key], training.reference[key]) for key in training.pull.names)
    assert finals["schedule-free-sgd"] == pytest.approx(finals["constant"], rel=0.5)


PULLED = {**KWARGS, "epochs": 2, "meta_momentum": 0.5, "reference": "pretrained"}
SET_LEARNING_RATES = [
    name for name, kind in controllers().items() if kind.preparation != Preparation.NONE or name in OF_LEARNING_RATES
]


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of these tests, which keeps the references that are trained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def require_reference_of(task: TuningTask, env: Any) -> None:
    """That an environment has the reference weights of a task."""
    weights = resolve_reference(build_components(task.config, "cpu"))
    for name, value in weights.items():
        torch.testing.assert_close(env.training.reference[name][0], value, rtol=0, atol=0)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if controllers()[name].preparation == Preparation.NONE else pytest.mark.slow)
        for name in SET_LEARNING_RATES
    ],
)
def test_the_reference_is_that_of_the_task_that_is_played(name, own_cache):
    """Also of the tasks that a controller was not prepared on, whatever it changes in its environment."""
    task = TuningTask(LR, PULLED, runs=2, seed=0, num_envs=2)
    target = TuningTask(LR, {**PULLED, "learning_rate": 0.2}, 0, 0)
    prepared = prepare(name, task, FEW_UPDATES if name in OFF_POLICY else {})
    for played in (task, target):
        require_reference_of(played, make_env(played, 1, transferred_env_kwargs(prepared, task, played)))


def test_a_search_has_the_reference_of_the_task(own_cache, monkeypatch):
    made = []
    monkeypatch.setattr(tuned_schedules, "make_env", lambda *args: made.append(make_env(*args)) or made[-1])
    task = TuningTask(LR, PULLED, runs=1, seed=0)
    prepare("schedule-free-sgd", task, {})
    (env,) = made
    assert env.config.optimizer == "schedule-free-sgd"
    require_reference_of(task, env)


def test_agents_change_nothing_that_the_reference_depends_on():
    """They are trained in environments that `make_env` does not make."""
    assert set(OWN_ARGUMENTS).isdisjoint(DEPENDS_ON)
    for name in ("dqn-native", "td3"):
        task = TuningTask(LR, KWARGS, runs=2, seed=0, num_envs=2)
        prepared = prepare(name, task, FEW_UPDATES)
        assert set(prepared.env_kwargs).isdisjoint(DEPENDS_ON)


def test_a_reference_that_a_controller_names_stands(own_cache, reference_file):
    task = TuningTask(LR, PULLED, 0, 0)
    for reference in ("previous", reference_file):
        env = make_env(task, 1, {"learning_rate": 0.01, "reference": reference})
        assert env.config.reference == reference


def test_nothing_is_trained_where_nobody_is_pulled(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    task = TuningTask(LR, {**PULLED, "meta_momentum": None}, 0, 0)
    make_env(task, 1, {"learning_rate": 0.01})
    assert not list(tmp_path.rglob("*.safetensors"))


def test_balanced_batches_hold_all_classes_alike():
    task = TuningTask(MINIBATCH, {**MINI, "train_size": None}, 0, 0)
    env = make_env(task, 1, {})
    controller = prepare("class-balanced", task, {}).controller
    controller.start(env)
    observations, infos = env.reset(seed=0)
    for _ in range(12):
        env.step(controller.act(observations, infos))
    labels = env.training.data.labels["train"][env.training.run.batch_indices[0, -1]]
    assert labels.bincount(minlength=10).tolist() == [2] * 10


def test_loss_proportional_prefers_what_is_learned_worst():
    task = TuningTask(MINIBATCH, {**MINI, "train_size": None}, 0, 0)
    env = make_env(task, 1, {})
    controller = prepare("loss-proportional", task, {}).controller
    controller.start(env)
    _, infos = env.reset(seed=0)
    for _ in range(15):  # only class 3 is trained on
        env.step(np.array([3]))
    controller.act(None, infos)
    (shares,) = controller.classes.shares
    assert shares.argmin() == 3
    assert shares.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "env", "settings", "runs", "message"),
    [
        ("gradient-free", LR, {}, 4, "unknown controller"),
        ("linear", MINIBATCH, {}, 4, "continuous"),
        ("dqn-native", LR, {"depth": 3}, 4, "depth"),
        ("ppo", LR, {"depth": 3}, 4, "depth"),
        ("dqn-native", LR, {"history": 2}, 4, "history"),
        ("dqn-native", LR, {}, 6, "waves"),
        ("dqn-native", LR, {}, 0, "waves"),
        ("base", MINIBATCH, {}, 0, "leaves things as they are"),
    ],
)
def test_wrong_settings_are_refused(name, env, settings, runs, message):
    with pytest.raises(ValueError, match=message):
        prepare(name, TuningTask(env, KWARGS if env == LR else MINI, runs, 0), settings)


def test_tuning_seeds_are_never_judged_on():
    seeds = {TuningTask(LR, {}, 20, seed).tuning_seed(number) for seed in range(20) for number in range(20)}
    assert len(seeds) == 400
    assert all(UNSEEN_BELOW <= seed < 2**32 for seed in seeds)
    assert math.isclose(UNSEEN_BELOW, 2**31)
