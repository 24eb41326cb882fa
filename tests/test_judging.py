"""Judging controllers: the rivals, each against a slow oracle; statistics, storage, report and scoreboard."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import made_npz
from torch.optim.lr_scheduler import ReduceLROnPlateau
from typer.testing import CliRunner

from qan_agents.bench.statistics import profiles_title
from qan_agents.cli.app import app
from qan_agents.controllers.controller import Controller, ControllerSettings
from qan_agents.controllers.trainings import Outcomes, Plan, play_controller, play_schedules
from qan_agents.judging import contenders, family_search, range_test, rivals, runner, statistics
from qan_agents.judging.contenders import Controlled, MedianCurve, Single, Tuned, load_controllers
from qan_agents.judging.family_settings import Chosen, FamilySettings, read_settings, write_settings
from qan_agents.judging.methods import Range, Scheduled, candidates
from qan_agents.judging.outer_tier import outer_problems
from qan_agents.judging.plain_loop import PlainTraining, ProdigyCosine, ScheduleFree, fixed, play_plain
from qan_agents.judging.problems import (
    MOST_TRAININGS,
    RANGE_TEST,
    Problem,
    Trainings,
    family_problems,
    trainings_of,
    tuning_seed,
)
from qan_agents.judging.report import report
from qan_agents.judging.results import Results
from qan_agents.judging.rivals import METHODS
from qan_agents.judging.rules import Ruled
from qan_agents.judging.scoreboard import add_rows, check_scoreboard, read_scoreboard, rules_of
from qan_agents.judging.scoreboard import rows_of as scoreboard_rows
from qan_agents.judging.statistics import Scores, bootstrap, difference, judge, scores_of
from qan_agents.policies.loss_rules import Greedy, Plateau
from qan_agents.seeds import UNSEEN_BELOW
from qan_gym.families import Task, draw_task

SMALL = {"batch_size": 5, "train_size": 40, "classes": (3, 1, 4), "batches_per_action": 2}  # 50 mini-batches
SGD = Task(network="mlp-5", momentum=0.9, weight_decay=1e-3, loss_scale=2.0, **SMALL)
TASKS = (SGD, Task(network="mlp-4-4-tanh", number=3, **SMALL))
ADAMW = tuple(dataclasses.replace(task, optimizer="adamw", momentum=0.8, weight_decay=0.1) for task in TASKS)
SETTINGS = FamilySettings(
    command="",
    version=1,
    methods={
        name: {
            "mlp": Chosen(
                settings={key: one.at(np.array(0.5)).item() for key, one in method.ranges.items()},
                score=0.0,
                ranges={key: [one.low, one.high] for key, one in method.ranges.items()},
            )
        }
        for name, method in METHODS.items()
        if method.ranges
    },
)


def problem(name: str, network: str = "mlp-5", **settings: Any) -> Problem:
    tasks = [Task(split="test", network=network, optimizer=one, **{**SMALL, **settings}) for one in ("sgd", "adamw")]
    return Problem(name, tuple(tasks))


def same(one: Outcomes, other: Outcomes, **tolerance: float) -> None:
    for field in dataclasses.fields(Outcomes):
        np.testing.assert_allclose(getattr(one, field.name), getattr(other, field.name), **tolerance)


def made_controller(path: Path, seed: int = 0, optimizers: tuple[str, ...] = ("sgd",), **provenance: Any) -> Path:
    """A controller that sees the share of the budget alone, so that it plays the same learning rates on every task."""
    rng = np.random.default_rng(seed)
    weights = {"mean": np.zeros(1), "deviation": np.ones(1), "weight0": rng.normal(size=(4, 1)), "bias0": np.zeros(4)}
    weights |= {"weight1": rng.normal(size=(1, 4)) / 10, "bias1": np.full(1, 0.05)}
    settings = ControllerSettings(("budget_used",), optimizers, 12.0, "linear")
    Controller(settings, weights, {"config": {"seed": seed, **provenance}}).save(path)
    return path


# --- methods --------------------------------------------------------------------------------------------------------


def test_plateau_is_that_of_torch() -> None:
    rng = np.random.default_rng(0)
    rates, factors, patience = rng.uniform(0.1, 1, 6), rng.uniform(0.1, 0.9, 6), np.arange(6.0) % 4
    losses = 1 + rng.normal(size=(25, 6)) / 10
    rule = Plateau(rates, factors, patience)
    assert (rule(losses[0] / 100) == rates).all()  # that of the initial weights does not count
    oracles = []
    for rate, factor, wait in zip(rates, factors, patience, strict=True):
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=rate)
        oracles.append(ReduceLROnPlateau(optimizer, factor=factor, patience=int(wait)))
    for row in losses:
        for oracle, loss in zip(oracles, row, strict=True):
            oracle.step(float(loss))
        expected = [oracle.optimizer.param_groups[0]["lr"] for oracle in oracles]
        np.testing.assert_allclose(rule(row), expected, rtol=1e-12)


def test_greedy_is_the_published_rule() -> None:
    rng = np.random.default_rng(1)
    losses = np.cumsum(rng.normal(size=(25, 5)), axis=0) + 100
    factors, patience = rng.uniform(0.5, 0.95, 5), np.array([0.0, 0, 1, 2, 3])
    rule = Greedy(np.ones(5), factors, patience)
    rule(np.zeros(5))
    played = np.array([rule(row) for row in losses])
    for column in range(5):
        rate, best, good, bad = 1.0, math.inf, 0, 0
        for row, loss in enumerate(losses[:, column]):
            if loss < best - 1e-6:
                best, good, bad = loss, good + 1, 0
            else:
                good, bad = 0, bad + 1
            if good > patience[column]:
                rate, good = rate / factors[column], 0
            elif bad > patience[column]:
                rate, bad = rate * factors[column], 0
            assert played[row, column] == pytest.approx(rate)


def test_rules_see_the_mean_loss_of_each_action() -> None:
    """The plateau's first decision falls behind the first action, from its losses alone."""
    outcomes = Ruled("sgd", "plateau").play(
        Trainings(TASKS, (1, 2)), {"learning_rate": 1e-6, "factor": 0.5, "patience": 0.0}, tests=False
    )
    training = PlainTraining(TASKS[0], 1, "mnist5k")
    losses = [training.gradient(number) / 2.0 for number in range(50)]  # at so small a rate the weights stay
    rate, best = 1e-6, math.inf
    for decision in range(25):
        assert outcomes.learning_rate[0, decision] == pytest.approx(max(rate, 1e-6))
        loss = np.mean(losses[2 * decision : 2 * decision + 2])
        best, rate = (loss, rate) if loss < best * (1 - 1e-4) else (best, rate * 0.5)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_range_test_takes_the_rate_of_the_lowest_smoothed_loss(optimizer: str) -> None:
    tasks = TASKS if optimizer == "sgd" else ADAMW
    found = range_test.found_rates(tasks, "mnist5k")
    rates = np.geomspace(*{"sgd": (3e-4, 30.0), "adamw": (1e-5, 1.0)}[optimizer], 25)
    for task, rate in zip(tasks, found, strict=True):
        training = PlainTraining(task, tuning_seed(task, RANGE_TEST), "mnist5k")
        torch_optimizer = make_torch(training.trained, task)
        means, mean = [], None
        for decision in range(24):
            torch_optimizer.param_groups[0]["lr"] = rates[decision]
            losses = []
            for number in range(4 * decision, 4 * decision + 4):
                losses.append(training.gradient(number) / task.loss_scale)
                torch_optimizer.step()
            mean = np.mean(losses) if mean is None else mean + (np.mean(losses) - mean) / 3
            means.append(mean)
        assert rate == pytest.approx(rates[int(np.nanargmin(means))])


def test_one_cycle_after_a_range_test_peaks_at_a_factor_of_its_rate() -> None:
    trainings = Trainings(TASKS, (1, 2))
    found = np.array(range_test.found_rates(TASKS, "mnist5k"))
    outcomes = range_test.RangeTest("sgd").play(trainings, {"factor": 0.1, "start": 0.3}, tests=True)
    plan = Plan("one-cycle", 0.1 * found, {"start": 0.3, "rise": 25.0, "fall": 1e4})
    same(outcomes, play_schedules(TASKS, (1, 2), plan, tests=True))


def test_smoothing_stops_where_a_loss_is_not_finite() -> None:
    losses = np.array([[3.0, 0.0, math.nan, 0.0]])
    np.testing.assert_allclose(range_test.smoothed(losses), [[3.0, 2.0, math.inf, math.inf]])


def make_torch(params: list[torch.Tensor], task: Task) -> torch.optim.Optimizer:
    if task.optimizer == "sgd":
        return torch.optim.SGD(params, lr=1.0, momentum=task.momentum, weight_decay=task.weight_decay)
    return torch.optim.AdamW(params, lr=1.0, betas=(task.momentum, 0.999), weight_decay=task.weight_decay)


RESIDUAL = Task(network="resnet-8", resolution=28, **{**SMALL, "batches_per_action": 1})  # with batch norm


@pytest.mark.parametrize(
    "tasks", [TASKS, ADAMW, pytest.param((RESIDUAL,), marks=pytest.mark.slow)], ids=["sgd", "adamw", "resnet"]
)
def test_the_plain_loop_trains_as_the_environment_does(tasks: tuple[Task, ...]) -> None:
    """Same initial weights, same mini-batches, same losses: only the optimizer is handed over."""
    rate, n = 0.02 if tasks[0].optimizer == "sgd" else 0.003, len(tasks)
    trainings = Trainings(tasks, tuple(range(n)))
    plain = play_plain(trainings, [make_torch] * n, [lambda share: rate * (1 - share)] * n, tests=True)
    expected = play_schedules(tasks, range(n), Plan("linear", np.full(n, rate), {}), tests=True)
    for name in ("validation_loss", "test_loss", "training_loss"):
        np.testing.assert_allclose(getattr(plain, name), getattr(expected, name), rtol=2e-3, err_msg=name)
    np.testing.assert_allclose(plain.test_accuracy, expected.test_accuracy, atol=2e-3)
    assert not plain.diverged.any()


def test_the_plain_loop_notices_divergence() -> None:
    outcomes = play_plain(Trainings(TASKS[:1], (1,)), [make_torch], [fixed(1e30)], tests=True)
    assert outcomes.diverged.all()
    assert outcomes.test_loss == outcomes.validation_loss == pytest.approx(4 * math.log(3))
    assert outcomes.training_loss[0, -1] == pytest.approx(4 * math.log(3))


@pytest.mark.parametrize("method", [ScheduleFree("sgd"), ScheduleFree("adamw"), ProdigyCosine()], ids=repr)
def test_optimizers_of_other_packages_learn(method: Any) -> None:
    tasks = tuple(
        Task(
            network="mlp-16",
            optimizer=method.optimizer,
            weight_decay=1e-4,
            **{**SMALL, "classes": (0, 1), "train_size": 400, "batches_per_action": 8},
        )
        for _ in range(2)
    )
    settings = {"learning_rate": 0.5 if method.optimizer == "sgd" else 0.01}
    outcomes = method.play(Trainings(tasks, (1, 2)), settings if method.ranges else {}, tests=True)
    assert (outcomes.test_loss < 0.3).all()
    assert (outcomes.test_accuracy > 0.9).all()
    assert np.isfinite(outcomes.training_loss).all()


def test_a_schedule_by_momentum_has_its_rate_times_one_minus_momentum() -> None:
    trainings = Trainings(TASKS, (1, 2))
    outcomes = Scheduled("sgd", "linear", by_momentum=True).play(trainings, {"learning_rate": 0.5}, tests=True)
    same(outcomes, play_schedules(TASKS, (1, 2), Plan("linear", np.array([0.05, 0.5]), {}), tests=True), rtol=1e-6)


def test_what_a_schedule_does_not_let_be_searched_stands_at_its_value() -> None:
    method = Scheduled("sgd", "one-cycle")
    assert method.ranges.keys() == {"learning_rate", "start"}
    outcomes = method.play(Trainings(TASKS, (1, 2)), {"learning_rate": 0.3, "start": np.array([0.2, 0.4])}, tests=True)
    settings = {"start": np.array([0.2, 0.4]), "rise": 25.0, "fall": 1e4}
    same(outcomes, play_schedules(TASKS, (1, 2), Plan("one-cycle", np.full(2, 0.3), settings), tests=True))


def test_candidates_are_nested_within_their_ranges_and_spread() -> None:
    ranges = {"rate": Range(1e-3, 10, log=True), "share": Range(0.2, 0.4), "count": Range(0, 3, whole=True)}
    many, few = candidates(ranges, 64, seed=1), candidates(ranges, 5, seed=1)
    for name, one in ranges.items():
        assert (many[name][:5] == few[name]).all()
        assert ((many[name] >= one.low) & (many[name] <= one.high)).all()
    decades = np.floor(np.log10(many["rate"]))
    assert np.bincount((decades + 3).astype(int)).min() >= 14  # of 16 each
    assert set(many["count"]) == {0.0, 1.0, 2.0, 3.0}
    assert (candidates(ranges, 5, seed=2)["rate"] != few["rate"]).all()


# --- contenders -----------------------------------------------------------------------------------------------------


def test_tuning_takes_the_settings_of_least_validation_loss_and_shorter_searches_are_nested() -> None:
    method, ranges = (
        Scheduled("sgd", "cooldown"),
        (("learning_rate", Range(1e-3, 3, log=True)), ("length", Range(0.1, 0.5))),
    )
    trainings = Trainings((TASKS[1], TASKS[0], TASKS[1]), (1, 2, 3))
    for budget in (5, 20):
        outcomes = Tuned("tuned", (method,), (ranges,), budget).play(trainings)
        for place, task in enumerate(trainings.tasks):
            tried = candidates(dict(ranges), MOST_TRAININGS, seed=task.number)
            losses = []
            for number in range(budget):
                settings = {name: values[number] for name, values in tried.items()}
                one = Trainings((task,), (tuning_seed(task, number),))
                losses.append(method.play(one, settings, tests=False).validation_loss[0])
            best = {name: values[int(np.argmin(losses))] for name, values in tried.items()}
            alone = method.play(Trainings((task,), trainings.seeds[place : place + 1]), best, tests=True)
            assert outcomes.test_loss[place] == alone.test_loss[0]
            assert (outcomes.learning_rate[place] == alone.learning_rate[0]).all()


def test_the_best_of_several_tuned_schedules_is_that_of_least_validation_loss() -> None:
    methods = tuple(Scheduled("adamw", name) for name in ("constant", "linear"))
    ranges = ((("learning_rate", Range(1e-4, 1, log=True)),),) * 2
    trainings = Trainings((ADAMW[0], ADAMW[1], ADAMW[0]), (1, 2, 3))
    outcomes = Tuned("best", methods, ranges, 5).play(trainings)
    for place, task in enumerate(trainings.tasks):
        found = [contenders.searched(method, ranges[0], (task,), trainings.dataset) for method in methods]
        losses = [float(losses[0, :5].min()) for _, losses in found]
        winner = int(np.argmin(losses))
        rate = found[winner][0]["learning_rate"][0, int(found[winner][1][0, :5].argmin())]
        alone = methods[winner].play(
            Trainings((task,), trainings.seeds[place : place + 1]), {"learning_rate": rate}, tests=True
        )
        assert outcomes.test_loss[place] == alone.test_loss[0]


def test_a_single_setting_may_differ_between_kinds_of_network() -> None:
    cnn = Task(network="cnn-3-4", resolution=14, **SMALL)
    trainings = Trainings((SGD, cnn), (1, 2))
    settings = (("mlp", (("learning_rate", 0.1),)), ("cnn", (("learning_rate", 0.02),)))
    outcomes = Single("single", Scheduled("sgd", "constant"), settings).play(trainings)
    np.testing.assert_allclose(outcomes.learning_rate[:, 0], [0.1, 0.02])
    outcomes = Single("single", Scheduled("sgd", "constant"), settings[:1]).play(trainings)
    np.testing.assert_allclose(outcomes.learning_rate[:, 0], [0.1, 0.1])


def test_a_controller_without_feedback_is_its_median_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "CURVE_TASKS", 2)
    monkeypatch.setattr(contenders, "training_tasks", lambda count, networks, optimizer: TASKS[:count])
    (one,) = load_controllers([made_controller(tmp_path / "c.safetensors")], None)
    trainings = Trainings(TASKS, (1, 2))
    same(one.play(trainings), play_controller(one.controller, TASKS, (1, 2), tests=True))
    curve = MedianCurve.of(one, ("mlp",))
    assert curve.name == "median curve of c"
    same(curve.play(trainings), one.play(trainings), rtol=1e-4)


def test_files_that_differ_in_their_seed_are_replicates(tmp_path: Path) -> None:
    paths = [made_controller(tmp_path / f"c{seed}.safetensors", seed) for seed in range(3)]
    paths.append(made_controller(tmp_path / "other.safetensors", 3, rounds=7))
    assert [one.name for one in load_controllers(paths, None)] == ["c0", "c0", "c0", "other"]
    assert [one.name for one in load_controllers(paths, "mine")] == ["mine"] * 4
    started = [  # from meta-trainings that differ in their seed, or in their rounds too
        made_controller(tmp_path / f"s{seed}.safetensors", seed, start={"config": {"seed": seed, "rounds": rounds}})
        for seed, rounds in ((4, 1), (5, 1), (6, 2))
    ]
    assert [one.name for one in load_controllers(started, None)] == ["s4", "s4", "s6"]
    with pytest.raises(ValueError, match="give each once"):
        load_controllers([paths[0], paths[0]], None)
    (tmp_path / "a").mkdir()
    both = made_controller(tmp_path / "a" / "c0.safetensors", 1, ("sgd", "adamw"))
    with pytest.raises(ValueError, match="two different controllers would be called 'c0'"):
        load_controllers([paths[0], both], None)
    with pytest.raises(ValueError, match="same optimizers"):
        load_controllers([paths[0], both], "mine")


def test_every_rival_can_be_made_and_has_a_name_and_an_identity_of_its_own() -> None:
    everyone = rivals.rivals([], SETTINGS)
    assert len({one.name for one in everyone}) == len(everyone) == len(rivals.registry())
    assert len({Results(Path()).path(one) for one in everyone}) == len(everyone)
    some = rivals.rivals(["single", "single sgd linear", "tuned sgd linear (20)"], SETTINGS)
    assert [one.name for one in some][-1] == "tuned sgd linear (20)"
    assert len(some) == len(METHODS) + 1
    with pytest.raises(ValueError, match="did you mean 'single sgd linear'"):
        rivals.rivals(["single sgd liner"], SETTINGS)
    with pytest.raises(ValueError, match="family_search"):
        rivals.rivals(["single sgd linear"], FamilySettings(command="", version=1, methods={}))


# --- the search on the training split -------------------------------------------------------------------------------


class Bowl:
    """A method whose loss is least at a learning rate of 0.1 times that of the task, by its number."""

    optimizer, slow = "sgd", False
    ranges = {"learning_rate": Range(1e-4, 10, log=True)}  # noqa: RUF012

    def play(self, trainings: Trainings, settings: Any, *, tests: bool) -> Outcomes:
        assert all(task.split == "train" for task in trainings.tasks)
        best = np.log(0.1) + np.array([task.number % 3 - 1 for task in trainings.tasks])
        losses = np.exp((np.log(settings["learning_rate"]) - best) ** 2)
        nothing = np.full(len(losses), math.nan)
        return Outcomes(losses, nothing, nothing, np.zeros(len(losses), np.bool_), nothing, nothing)


def test_the_search_finds_the_best_setting_and_the_range_of_the_tasks() -> None:
    found = family_search.search(Bowl(), "mlp", ((16, 12), (8, 24), (4, 30)))
    assert found.settings["learning_rate"] == pytest.approx(0.1, rel=0.4)
    low, high = found.ranges["learning_rate"]
    assert 0.1 / math.e**1.5 / 2 < low < 0.1 / 1.5
    assert 0.1 * 1.5 < high < 0.1 * math.e**1.5 * 2


def test_settings_survive_writing_and_damage_is_said(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    assert read_settings(path).methods == {}
    write_settings(SETTINGS, path)
    assert read_settings(path) == SETTINGS
    path.write_text(path.read_text().replace('"score"', '"scores"', 1))
    with pytest.raises(ValueError, match=r"settings\.json: damaged"):
        read_settings(path)


def test_the_settings_of_the_package_can_be_read() -> None:
    found = read_settings()
    assert found.methods.keys() <= METHODS.keys()
    for name, kinds in found.methods.items():
        for one in kinds.values():
            assert one.settings.keys() == one.ranges.keys() == METHODS[name].ranges.keys()


# --- problems and results -------------------------------------------------------------------------------------------


def test_contenders_meet_the_same_seeds_and_tasks_that_differ_in_the_optimizer_alone() -> None:
    problems = family_problems(4, ("mlp",))
    sgd, adamw = (trainings_of(problems, optimizer, 3) for optimizer in ("sgd", "adamw"))
    assert sgd.seeds == adamw.seeds
    assert len(set(sgd.seeds)) == 12
    assert max(sgd.seeds) < UNSEEN_BELOW <= min(tuning_seed(task, number) for task in sgd.tasks for number in range(21))
    for one, other in zip(sgd.tasks, adamw.tasks, strict=True):
        assert one.split == "test"
        changed = {"optimizer": "adamw", "momentum": other.momentum, "weight_decay": other.weight_decay}
        assert dataclasses.replace(one, **changed) == other


@dataclasses.dataclass(frozen=True)
class Made:
    """A contender whose test loss is a function of the seed; it counts what it plays, and may be stopped."""

    name: str = "made"
    optimizer: str = "sgd"
    factor: float = 1.0
    played: list[int] = dataclasses.field(default_factory=list, compare=False)
    stop_after: int = 10**9

    @property
    def record(self) -> dict[str, Any]:
        return {"made": self.factor}

    def play(self, trainings: Trainings) -> Outcomes:
        if len(self.played) >= self.stop_after:
            raise KeyboardInterrupt
        self.played.extend(trainings.seeds)
        n = len(trainings)
        loss = self.factor * (1 + np.array([seed % 1000 for seed in trainings.seeds]) / 1000)
        curve = loss[:, None] * np.linspace(2, 1, 25)
        return Outcomes(loss, loss, np.full(n, 0.5), np.arange(n) == 1, curve, np.ones((n, 25)))


PROBLEMS = [problem(str(number), data_seed=number, batches_per_action=1 + number) for number in range(7)]


def test_after_an_interruption_only_what_is_missing_is_played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "TOGETHER", 2)
    whole, broken = Results(tmp_path / "whole"), Results(tmp_path / "broken")
    runner.play_missing(whole, [Made()], PROBLEMS, 3)
    with pytest.raises(KeyboardInterrupt):
        runner.play_missing(broken, [Made(stop_after=10)], PROBLEMS, 3)
    (broken.folder / f".aside-{'0' * 8}-x.parquet").write_bytes(b"torn")
    assert len(broken.rows(Made())) == 12
    again = Made()
    totals: list[int] = []
    runner.play_missing(broken, [again], PROBLEMS, 3, totals.append)
    assert len(again.played) == totals[0] == 9
    assert whole.path(Made()).read_bytes() == broken.path(Made()).read_bytes()
    runner.play_missing(broken, [again], PROBLEMS, 3)  # nothing
    runner.play_missing(broken, [again], PROBLEMS[:3], 2)
    assert len(again.played) == 9
    runner.play_missing(broken, [again], PROBLEMS, 4)  # another seed
    assert len(broken.rows(again)) == 28


def test_other_settings_are_another_contender_and_damage_is_said(tmp_path: Path) -> None:
    results = Results(tmp_path)
    runner.play_missing(results, [Made(), Made("renamed"), Made(factor=2.0)], PROBLEMS[:2], 1)
    assert len(list(tmp_path.glob("*.parquet"))) == 2
    path = results.path(Made())
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=path.name):
        results.rows(Made())
    path.write_bytes(results.path(Made(factor=2.0)).read_bytes())
    with pytest.raises(ValueError, match="another contender"):
        results.rows(Made())


# --- statistics -----------------------------------------------------------------------------------------------------


def made_scores(log_loss: Any, name: str = "one", optimizer: str = "sgd", **others: Any) -> Scores:
    log_loss = np.asarray(log_loss, np.float64)
    curve = np.exp(log_loss)[..., None] * np.ones(25)
    return Scores(
        **{
            "name": name,
            "optimizer": optimizer,
            "log_loss": log_loss,
            "accuracy": np.full(log_loss.shape, 0.5),
            "diverged": np.zeros(log_loss.shape),
            "training_loss": curve,
            "learning_rate": curve,
            **others,
        }
    )


@pytest.mark.parametrize("rival_replicates", [1, 2, 3])
def test_the_bootstrap_is_a_direct_computation(monkeypatch: pytest.MonkeyPatch, rival_replicates: int) -> None:
    monkeypatch.setattr(statistics, "REPETITIONS", 20)
    statistics.drawn_places.cache_clear()
    statistics.drawn_shares.cache_clear()
    rng = np.random.default_rng(0)
    one, rival = rng.normal(size=(2, 4, 3)), rng.normal(size=(rival_replicates, 4, 3))
    drawn = bootstrap(one, rival)
    places = statistics.drawn_places(4, 3).reshape(20, 4, 3)
    own = statistics.drawn_shares(2, 0)
    other = own if rival_replicates == 2 else statistics.drawn_shares(rival_replicates, 1)
    for repetition in range(20):
        for column in range(4):
            problems = places[repetition, column] // 3
            assert len(set(problems)) == 1  # seeds are drawn within a problem
            total = 0.0
            for place in places[repetition, column]:
                mine = sum(own[repetition, r] * one[r, place // 3, place % 3] for r in range(2))
                theirs = sum(other[repetition, q] * rival[q, place // 3, place % 3] for q in range(rival_replicates))
                total += (mine - theirs) / 3
            assert drawn[repetition, column] == pytest.approx(total)
    statistics.drawn_places.cache_clear()
    statistics.drawn_shares.cache_clear()


def test_intervals_have_about_the_width_of_theory() -> None:
    """Problems, seeds and replicates that differ by known variances; independent rival of none."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=(1, 400, 1)) + 0.5 * rng.normal(size=(1, 400, 4))
    found = difference(made_scores(values), made_scores(np.zeros((1, 400, 4)), "rival"))
    expected = 2 * 1.96 * math.sqrt((1 + 0.25 / 4) / 400)
    assert found.mean.high - found.mean.low == pytest.approx(expected, rel=0.15)
    replicates = np.zeros((3, 400, 4)) + np.array([-1.0, 0, 1])[:, None, None]
    found = difference(made_scores(replicates), made_scores(np.zeros((1, 400, 4)), "rival"))
    assert found.mean.high - found.mean.low > 1  # of 3 that differ by 1 each
    paired = difference(made_scores(replicates), made_scores(replicates, "its curve"))
    assert paired.mean.low == paired.mean.high == 0


def test_a_difference_says_mean_median_share_won_and_worst() -> None:
    one = made_scores([[[0.0, 0.2], [1.0, 1.0], [0.3, 0.3]]])
    rival = made_scores([[[0.2, 0.4], [0.5, 0.3], [0.3, 0.3]]], "rival")
    found = difference(one, rival, np.array([7, 8, 9]))
    assert found.mean.value == pytest.approx((-0.2 + 0.6 + 0) / 3)
    assert found.median.value == pytest.approx(0)
    assert found.won.value == pytest.approx(0.5)  # one of three, and a tie
    assert (found.worst, found.worst_place) == (pytest.approx(0.6), 8)


def test_reached_is_the_share_of_the_budget_until_the_rivals_final_running_mean() -> None:
    falling = np.linspace(24, 0, 25)[None, None, None]
    one = made_scores(np.zeros((1, 1, 1)), training_loss=falling)
    rival = made_scores(np.zeros((1, 1, 1)), "rival", training_loss=np.full((1, 1, 1, 25), 20.0))
    assert difference(one, rival).reached == pytest.approx(5 / 25)
    rival = made_scores(np.zeros((1, 1, 1)), "rival", training_loss=np.full((1, 1, 1, 25), -1.0))
    assert difference(one, rival).reached == math.inf


def test_parts_are_kinds_of_network_and_thirds_of_the_budgets() -> None:
    problems = [*PROBLEMS, problem("cnn", "cnn-3-4", resolution=14)]
    found = statistics.parts(problems)
    assert found["mlp"].tolist() == list(range(7))
    assert found["cnn"].tolist() == [7]
    thirds = [places.tolist() for name, places in found.items() if "mini-batches" in name]
    assert sorted(place for third in thirds for place in third) == list(range(8))
    budgets = [[problems[place].budget for place in places] for places in thirds]
    assert max(budgets[0]) <= min(budgets[1])
    assert max(budgets[1]) <= min(budgets[2])


# --- report and scoreboard ------------------------------------------------------------------------------------------


def judged_by(tmp_path: Path, *everyone: Made, names: set[str], problems: list[Problem] = PROBLEMS) -> Any:
    results = Results(tmp_path / "results")
    runner.play_missing(results, everyone, problems, 2)
    return judge(scores_of(results, everyone, problems, 2), names, problems)


def test_a_report_has_everything_and_escapes_names(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>|`x`"
    judgement = judged_by(tmp_path, Made(name), Made("rival", factor=2.0), Made("rival", "adamw", 3.0), names={name})
    found = judgement.differences[f"{name} (sgd)", "rival (sgd)", "all"]
    assert found.mean.value == pytest.approx(-math.log(2))
    assert found.mean.low == pytest.approx(found.mean.high)
    assert found.won.value == 1
    paths = report(judgement, "by <i>rules</i>", tmp_path / "report")
    html, markdown = (path.read_text() for path in paths[:2][::-1])
    assert "<script>alert" not in html
    assert "&lt;script&gt;" in html
    assert "<i>" not in html
    assert "<script>" not in markdown
    assert "-0.693 (-0.693 to -0.693)" in html
    assert "rival (adamw)" in html
    assert all(path.stat().st_size > 0 for path in paths)


def controlled(one: Made, digest: str) -> Controlled:
    return Controlled(one.name, one.optimizer, digest, None)  # type: ignore[arg-type]


def test_a_scoreboard_takes_rows_by_its_rules_and_refuses_others(tmp_path: Path) -> None:
    first, second, rival = Made("first"), Made("second", factor=0.5), Made("rival", factor=2.0)
    judgement = judged_by(tmp_path, first, second, rival, names={"first", "second"})
    path, rules = tmp_path / "board.json", rules_of("family", ["mlp"], PROBLEMS, 2, [rival])
    files = [controlled(first, "a"), controlled(second, "b")]
    rows = scoreboard_rows(judgement, files, [rival])
    add_rows(path, rules, rows[:1], files)
    add_rows(path, rules, rows[1:], files)
    add_rows(path, rules, rows, files)  # the same ones again
    board = read_scoreboard(path)
    assert [row.name for row in board.rows] == ["second", "first"]
    assert board.rows[0].files == ["b"]
    assert board.rows[0].differences["rival"].value == pytest.approx(-math.log(4), abs=1e-4)
    before = path.read_bytes()
    for other, message in _others(rival):
        with pytest.raises(ValueError, match=message):
            check_scoreboard(path, other, files)
    with pytest.raises(ValueError, match="another --label"):
        add_rows(path, rules, rows, [controlled(first, "c")])
    assert path.read_bytes() == before
    path.write_text(path.read_text().replace('"worst"', '"best"', 1))
    with pytest.raises(ValueError, match=r"board\.json: damaged"):
        check_scoreboard(path, rules, files)


def _others(rival: Made) -> list[tuple[Any, str]]:
    return [
        (rules_of("family", ["mlp"], PROBLEMS, 3, [rival]), "seeds: 2 there, 3 here"),
        (rules_of("outer", ["mlp"], PROBLEMS, 2, [rival]), "tier"),
        (rules_of("family", ["mlp"], [*PROBLEMS[:6], problem("x")], 2, [rival]), "tasks"),
        (rules_of("family", ["mlp"], PROBLEMS, 2, [dataclasses.replace(rival, factor=3.0)]), "they differ in rival"),
    ]


# --- the outer tier -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("registries")
def test_tasks_larger_than_the_family_play_beside_others() -> None:
    """Each is what it is alone, whatever its network and budget; the outer tier is judged in one go."""
    small = [draw_task("train", number, ("mlp",), ("sgd",)) for number in range(2)]
    long = dataclasses.replace(small[0], batches_per_action=161)
    wide = dataclasses.replace(small[1], network="mlp-256", batches_per_action=4)
    tasks, seeds = [small[0], long, wide, small[1], long], range(5)
    plan = Plan("linear", np.full(5, 0.02), {})
    losses = play_schedules(tasks, seeds, plan, tests=False).validation_loss
    alone = [
        play_schedules([task], [seed], Plan("linear", np.full(1, 0.02), {}), tests=False).validation_loss[0]
        for task, seed in zip(tasks, seeds, strict=True)
    ]
    assert losses.tolist() == alone
    assert losses[1] != losses[4]


def test_the_outer_tier_goes_without_photographs_where_there_are_none(tmp_path: Path) -> None:
    problems, obstacle = outer_problems(str(tmp_path / "none.npz"))
    assert obstacle is not None
    assert "none.npz: there is no such file" in obstacle
    assert {one.dataset for one in problems} == {"mnist5k"}
    assert max(one.budget for one in problems) == 10_000
    assert len({one.name for one in problems}) == len(problems)
    path = made_npz(tmp_path / "photographs.npz", shape=(32, 32, 3))
    more, obstacle = outer_problems(path)
    assert obstacle is None
    assert len(more) > len(problems)
    assert more[-1].dataset == path


@pytest.mark.slow
@pytest.mark.usefixtures("registries")
def test_tasks_unlike_the_family_are_trained(tmp_path: Path) -> None:
    """Wide networks, batch norm, channels with a scale each: against the plain loop."""
    outer_problems("none.npz")
    photographs = made_npz(tmp_path / "photographs.npz", shape=(32, 32, 3))
    few = {"batch_size": 5, "train_size": 40, "batches_per_action": 1}
    for task, dataset in (
        (Task(network="mlp-256-256", resolution=28, **few), "mnist5k"),
        (Task(network="cnn-8-16-batch-norm", resolution=14, **few), "mnist5k"),
        (Task(network="mlp-8", resolution=8, **few), photographs),
        (Task(network="mlp-8", resolution=2, **few), "mnist5k"),  # fewer inputs than the kernels take
    ):
        trainings = Trainings((task,) * 2, (1, 2), dataset)
        outcomes = Scheduled("sgd", "constant").play(trainings, {"learning_rate": 0.02}, tests=True)
        plain = play_plain(trainings, [make_torch] * 2, [fixed(0.02)] * 2, tests=True)
        np.testing.assert_allclose(outcomes.test_loss, plain.test_loss, rtol=2e-3)


def test_bands_are_named_where_there_are_any() -> None:
    one, two = np.zeros((1, 3)), np.zeros((2, 3))
    assert profiles_title({"a": one, "b": one}) == "performance profiles"
    assert profiles_title({"a": one, "b": two}) == "performance profiles, 95 % bands"


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`qan judge` on tiny tasks, with made settings of the rivals."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QAN_DEBUG", raising=False)
    monkeypatch.setattr(rivals, "read_settings", lambda: SETTINGS)
    monkeypatch.setattr(contenders, "CURVE_TASKS", 2)
    monkeypatch.setattr(contenders, "training_tasks", lambda count, networks, optimizer: TASKS[:count])
    monkeypatch.setattr("qan_agents.judging.problems.family_problems", lambda tasks, kinds: PROBLEMS[:tasks])
    return lambda *arguments: CliRunner().invoke(app, ["judge", *map(str, arguments)])


def test_the_command_judges_and_goes_on(command: Callable[..., Any], tmp_path: Path) -> None:
    files = [made_controller(Path(f"c{seed}.safetensors"), seed) for seed in range(2)]
    arguments = (*files, "--tasks", 2, "--seeds", 2, "--rival", "single sgd linear", "--rival", "median curve")
    result = command(*arguments, "--scoreboard", "board.json")
    assert result.exit_code == 0, result.output
    assert "c0 (sgd)" in result.output
    assert "median curve of c0" in result.output
    assert "2 held-out tasks of the family (mlp), version 1; 2 trainings of each contender" in result.output
    assert "caution: 2 tasks to judge on, too few to tell anything" in result.output
    assert "caution: 2 tasks to judge on" in Path("judgement", "report.md").read_text()
    assert {"report.html", "report.md"} <= {path.name for path in Path("judgement").iterdir()}
    before = {path: path.stat().st_mtime_ns for path in Path("judgement", "results").glob("*.parquet")}
    assert len(before) == 5  # two replicates, their curves, and a rival
    result = command(*arguments, "--scoreboard", "board.json")
    assert result.exit_code == 0, result.output
    assert {path: path.stat().st_mtime_ns for path in Path("judgement", "results").glob("*.parquet")} == before
    result = command(*arguments[:-2], "--seeds", 1, "--scoreboard", "board.json")
    assert result.exit_code == 2
    assert "judged by other rules: seeds" in result.stderr
    result = command(files[0], "--tasks", 1, "--seeds", 1, "--rival", "single sgd linear", "--out", "one")
    assert "1 held-out task of the family (mlp), version 1; 1 training of each contender" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.safetensors"], "none.safetensors: there is no such file"),
        (["text"], "text: damaged"),
        (["c.safetensors", "--rival", "nobody"], "unknown rival 'nobody'"),
        (["c.safetensors", "--tier", "outer", "--tasks", "3"], "--tasks cannot be given with --tier outer"),
        (["c.safetensors", "--tier", "inner"], "inner"),
        (["c.safetensors", "--seeds", "0"], "--seeds"),
        (["c.safetensors", "--out", "text/x"], "cannot be written to"),
        (["c.safetensors", "--rival", "median curve", "--scoreboard", "text"], "text: damaged"),
        (["c.safetensors", "c.safetensors"], "give each once"),
        ([], "CONTROLLER"),
    ],
)
def test_wrong_input_is_said_in_one_line(command: Callable[..., Any], arguments: list[str], message: str) -> None:
    made_controller(Path("c.safetensors"))
    Path("text").write_text("no controller\n")
    before = set(Path().rglob("*"))
    result = command(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert set(Path().rglob("*")) == before


def test_an_unknown_kind_of_network_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rivals, "read_settings", lambda: SETTINGS)
    made_controller(Path("c.safetensors"))
    result = CliRunner().invoke(app, ["judge", "c.safetensors", "--networks", "mlpp"])
    assert result.exit_code == 2
    assert "networks must be some of mlp" in result.stderr
