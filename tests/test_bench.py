"""The bench: grids, cells that fail, kills, and what the report makes of the results."""

import base64
import errno
import hashlib
import json
import math
import os
import re
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from helpers import SHORT, made_npz, start_qan
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from qan_agents.bench import resources, runner, statistics, tuning_task
from qan_agents.bench.controllers import PreparedController
from qan_agents.bench.grid import Cell, cells_of, read_grid
from qan_agents.bench.report import comparison_table, report, score_table
from qan_agents.bench.results import Results, read_table
from qan_agents.bench.runner import (
    Failure,
    require_compatible,
    run_cell,
    run_cell_or_fail,
    run_cells,
    run_in_processes,
    run_on_ray,
    transferred_env_kwargs,
    unfinished,
)
from qan_agents.bench.tuned_schedules import ScheduleController
from qan_agents.bench.tuning_task import TuningTask
from qan_agents.cli.app import app

LR = "QanLR-MNIST5k-v1"
KWARGS = {**SHORT, "reference": None, "validate_every": 5}  # 20 mini-batches
AGENT = {"gradient_steps": 1}  # settings of an agent that learns little, and fast
GRID = {
    "environments": [{"id": LR, "kwargs": KWARGS}],
    "controllers": ["constant", {"name": "linear", "label": "down"}],
    "runs": [2],
    "seeds": [0, 1, 2],
    "evaluation_seeds": 3,
}
DIES = Cell(LR, "linear", "dies", 4, 0, 2, KWARGS)


@pytest.fixture(autouse=True)
def few_validations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four measurements in an episode of 20 mini-batches also where agents play, which set the interval themselves."""
    monkeypatch.setattr(tuning_task, "VALIDATIONS", 4)


@pytest.fixture
def few_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals of few repetitions, for tests of what else is in a report."""
    monkeypatch.setattr(statistics, "REPETITIONS", 40)


def cell(controller: str = "linear", **changes: object) -> Cell:
    values = {"env": LR, "controller": controller, "label": controller, "runs": 2, "seed": 0, "evaluation_seeds": 2}
    return Cell(**{**values, "env_kwargs": KWARGS, **changes})


def without_time(path: Path) -> list[dict]:
    rows = read_table(path).drop_columns(["seconds"]).to_pylist()
    return sorted(rows, key=lambda row: (row["config_hash"], row["evaluation_seed"]))


# --- the grid -------------------------------------------------------------------------------------------------------


def test_a_grid_has_every_combination_once():
    cells = cells_of({**GRID, "runs": [4, 8], "controllers": ["constant", "linear", "dqn-native"]})
    assert len(cells) == 1 + 2 * 2 * 3  # the constant is not prepared: once
    assert len({one.key for one in cells}) == len(cells)
    assert [one.runs for one in cells] == sorted(one.runs for one in cells)
    blocks = {"environments": [LR], "blocks": [{"controllers": ["linear"]}, {"controllers": ["linear", "step"]}]}
    assert [one.controller for one in cells_of(blocks)] == ["linear", "step"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"controllers": ["zzz"]}, r"controllers\[0\].name: unknown controller 'zzz'; there are .*linear"),
        ({"controllers": ["liner"]}, "unknown controller 'liner': did you mean 'linear'.$"),
        ({"controllers": []}, "controllers must be a list"),
        ({"controllers": [3]}, r"controllers\[0\] must be a name or a mapping"),
        ({"controllers": [{"label": "x"}]}, r"controllers\[0\].name is missing"),
        ({"controllers": [{"name": "linear", "label": 2024}]}, r"label must be text \(in quotes.*not 2024"),
        ({"controllers": [{"name": "linear", "label": date(2024, 1, 1)}]}, "label must be text"),
        ({"controllers": [{"name": "linear", "label": True}]}, "label must be text"),
        ({"controllers": [{"name": "linear", "label": ""}]}, "label must not be empty"),
        ({"controllers": [{"name": "linear", "label": "two\nlines"}]}, "label must be one line"),
        ({"controllers": [{"name": "linear", "label": "x" * 101}]}, "label must have at most 100 characters"),
        ({"controllers": [{"name": "linear", "label": "\ud800"}]}, "label must be text of Unicode"),
        ({"controllers": [{"name": "linear", "settings": 5}]}, r"controllers\[0\].settings must be a mapping"),
        ({"controllers": [{"name": "linear", "settings": {"nonsense": 1}}]}, "unknown setting 'nonsense'"),
        ({"controllers": [{"name": "constant", "settings": {"learningrate": 1}}]}, "did you mean 'learning_rate'"),
        ({"controllers": [{"name": "constant", "settings": {"learning_rate": 99}}]}, "learning_rate must be"),
        ({"controllers": [{"name": "base", "settings": {"env": {"schedul": "x"}}}]}, "did you mean 'env.schedule'"),
        ({"controllers": [{"name": "ppo", "settings": {"gama": 1}}]}, "did you mean 'gamma'"),
        ({"controllers": [{"name": "ppo", "settings": {"env": {"epochs": 9}}}]}, "unknown setting 'env.epochs'"),
        ({"controllers": [{"name": "dqn-native", "settings": {"gama": 1}}]}, "did you mean 'gamma'"),
        ({"controllers": ["dqn-native"], "runs": [6]}, "waves"),
        ({"controllers": ["linear", {"name": "step", "label": "linear"}]}, "the label 'linear' stands for"),
        ({"controllers": ["base", {"name": "base", "settings": {"env": {"reward": "log-loss"}}}]}, "a label each"),
        ({"environments": ["CartPole-v1"]}, "CartPole-v1 is not an environment"),
        ({"environments": ["no_such_module:X-v0"]}, "no_such_module"),
        ({"environments": [{"id": LR, "kwargs": {"epochs": 0}}]}, "epochs"),
        ({"environments": [{"id": LR, "kwarg": {}}]}, "did you mean 'kwargs'"),
        ({"environments": [{"id": LR, "kwargs": {"epoch": 3}}]}, "did you mean 'epochs'"),
        ({"environments": [{"id": LR, "kwargs": {1: 2}}]}, "kwargs must have text as keys"),
        (
            {"environments": [{"id": LR, "kwargs": {"epochs": date(2024, 1, 1)}}]},
            "kwargs.epochs must be text, a number",
        ),
        (
            {"environments": [{"id": LR, "kwargs": {"schedule": "linear"}}]},
            "base schedule 'linear', which would multiply",
        ),
        (
            {"environments": [{"id": LR, "transfer": [{"id": LR, "kwargs": {"schedule": "step"}}]}]},
            "base schedule 'step'",
        ),
        ({"environments": [[LR]]}, r"environments\[0\] must be a name or a mapping"),
        ({"environments": None}, "environments must be a list"),
        ({"environments": [{"id": LR, "transfer": [{"id": "Qan"}]}]}, "unknown environment 'Qan'"),
        ({"environments": [{"id": LR, "transfer": {"id": LR}}]}, "transfer must be a list"),
        ({"environments": [{"id": LR, "kwargs": 3}]}, "kwargs must be"),
        ({"controllers": [{"name": "linear", "settings": "fast"}]}, "settings must be"),
        ({"blocks": {}}, "blocks must be a list"),
        ({"blocks": None}, "blocks must be a list"),
        ({"blocks": [5]}, r"blocks\[0\] must be a mapping"),
        ({"blocks": [{}, {"contollers": ["linear"]}]}, r"blocks\[1\].contollers .*did you mean 'controllers'"),
        ({1: 2}, "text as keys"),
        ({"runs": [True]}, r"runs\[0\] must be a whole number"),
        ({"runs": [0]}, r"runs\[0\] must be at least 1"),
        ({"seeds": [10**30]}, r"seeds\[0\] must be at most"),
        ({"runs": 20}, "runs must be a list"),
        ({"seeds": [-1]}, r"seeds\[0\] must be"),
        ({"evaluation_seeds": 0}, "evaluation_seeds"),
        ({"controler": ["linear"]}, "did you mean 'controllers'"),
    ],
)
def test_wrong_grids_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        cells_of({**GRID, **change})


def test_keys_without_a_value_are_empty():
    """As YAML has them: `kwargs:`, `settings:` and `label:` with nothing behind them."""
    nothing = {
        "environments": [{"id": LR, "kwargs": None}],
        "controllers": [{"name": "linear", "label": None, "settings": None}],
    }
    assert cells_of(nothing) == cells_of({"environments": [LR], "controllers": ["linear"]})


def test_a_grid_that_contains_itself_is_refused():
    settings: dict = {}
    settings["again"] = [settings]
    with pytest.raises(ValueError, match="contain itself"):
        cells_of({**GRID, "controllers": [{"name": "linear", "settings": settings}]})


def test_a_file_that_is_no_grid_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.yaml"):
        read_grid(tmp_path / "no.yaml")
    texts = (
        b"a: [",
        b"- 1",
        b"a: \xff",
        b"a: \x00",
        b"runs: [1]\nruns: [2]",  # the second would be the one that counts
        b"label: !!python/object/apply:os.system [exit 3]",
        b"[" * 5000,
    )
    for text in texts:
        (tmp_path / "grid.yaml").write_bytes(text)
        with pytest.raises(ValueError, match=r"grid\.yaml") as refused:
            read_grid(tmp_path / "grid.yaml")
        assert "\n" not in str(refused.value)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read_grid(tmp_path)


def test_a_grid_is_yaml_1_2(tmp_path):
    """In YAML 1.1, `no` is a truth value, and 1e-3 is text."""
    (tmp_path / "grid.yaml").write_text("\ufefflabel: no\nrate: 1e-3\n", encoding="utf-8")
    assert read_grid(tmp_path / "grid.yaml") == {"label": "no", "rate": 0.001}


# --- a cell ---------------------------------------------------------------------------------------------------------


def test_all_controllers_are_judged_on_the_same_trainings():
    """Before the first action every validation loss is that of the seed, whoever plays and whatever was prepared."""
    first = {}
    for one in (cell("constant", runs=0), cell(), cell(seed=7), cell("dqn-native", settings=AGENT)):
        for row in run_cell(one):
            first.setdefault(row["evaluation_seed"], set()).add(row["validation_curve"][0])
    assert sorted(first) == [0, 1]
    assert all(len(losses) == 1 for losses in first.values())
    assert first[0] != first[1]


def test_a_row_says_what_it_took():
    row = run_cell(cell())[1]
    assert (row["consumed_runs"], row["consumed_batches"], row["batches"]) == (2, 40, 20)
    assert len(row["data_fingerprint"]) == 64
    assert "learning_rate" in row["chosen"]
    assert '"torch"' in row["versions"]


@pytest.mark.slow
def test_a_policy_is_judged_elsewhere_too():
    there = {"id": LR, "kwargs": {**KWARGS, "train_size": 400}}
    rows = run_cell(cell("dqn-native", settings=AGENT, transfer=[there]))
    assert [row["batches"] for row in rows] == [20, 20, 40, 40]
    assert [row["prepared_on_kwargs"] == row["environment_kwargs"] for row in rows] == [True, True, False, False]
    alone = run_cell(cell("dqn-native", settings=AGENT))
    assert [row["test_loss"] for row in rows[:2]] == [row["test_loss"] for row in alone]
    assert {row["config_hash"] for row in rows} != {row["config_hash"] for row in alone}


def test_actions_remain_the_same_share_of_a_training_run_elsewhere():
    here, there = TuningTask(LR, {}, 0, 0), TuningTask(LR, {"epochs": 10}, 0, 0)  # 2,000 and 4,000 mini-batches
    arguments = {"batches_per_action": 40, "validate_every": 500, "schedule": "cooldown"}
    prepared = PreparedController(ScheduleController("constant", [{"learning_rate": 0.1}]), arguments)
    assert transferred_env_kwargs(prepared, here, here) == arguments
    moved = {"batches_per_action": 80, "validate_every": 1_000, "schedule": "cooldown"}
    assert transferred_env_kwargs(prepared, here, there) == moved


# --- failures and kills ---------------------------------------------------------------------------------------------


def test_a_failing_cell_is_written_down_and_the_grid_goes_on(tmp_path):
    broken = cell(env_kwargs={**KWARGS, "dataset": str(tmp_path / "no.npz")})
    results, seen = Results(tmp_path / "r.parquet"), []
    run_cells([broken, cell()], results, 1, None, lambda one, status: seen.append((one, status)))
    assert seen == [(broken, "failed"), (cell(), "done")]
    rows = {row["config_hash"]: row for row in read_table(tmp_path / "r.parquet").to_pylist()}
    assert "no.npz" in rows[broken.key]["error"]
    assert rows[cell().key]["error"] is None
    assert Results(tmp_path / "r.parquet").finished() == {cell().key: {0, 1}}  # the other would be tried again


def die_or_run(one: Cell) -> object:
    if one == DIES:
        os._exit(9)  # as the kernel's killer, when memory runs out
    return run_cell_or_fail(one)


@pytest.mark.slow
def test_a_process_that_dies_is_a_failed_cell():
    outcomes = {one.label: outcome for one, outcome in run_in_processes([DIES, cell()], 1, die_or_run)}
    assert isinstance(outcomes["dies"], Failure)
    assert "died" in outcomes["dies"].reason
    assert len(outcomes["linear"]) == 2


@pytest.fixture(scope="module")
def grid_file(tmp_path_factory) -> Path:
    """The file of a grid of four cells."""
    path = tmp_path_factory.mktemp("bench") / "grid.yaml"
    path.write_text(yaml.safe_dump(GRID))
    return path


@pytest.fixture(scope="module")
def whole(grid_file) -> Path:
    """The results of the whole grid, made in this process."""
    path = grid_file.parent / "whole.parquet"
    results = Results(path)
    for one in cells_of(read_grid(grid_file)):
        results.append(one.key, run_cell(one))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_bench_goes_on_with_what_is_left(grid_file, whole, tmp_path, how):
    path = tmp_path / "r.parquet"
    process = start_qan("bench", grid_file, "--out", path, "--workers", 1)
    deadline = time.monotonic() + 200
    while not (path.exists() and len(Results(path).finished()) >= 2):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(how)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == (-9 if how == signal.SIGKILL else 130), output
    before = Results(path).finished()
    assert 2 <= len(before) < 4
    done = CliRunner().invoke(app, ["bench", str(grid_file), "--out", str(path), "--workers", "1"])
    assert done.exit_code == 0, done.output
    assert f"{len(before)} finished" in done.output
    assert done.output.count("done: ") == 4 - len(before)
    assert without_time(path) == without_time(whole)


@pytest.mark.slow
def test_the_processes_of_a_killed_bench_end_with_it(tmp_path):
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({**GRID, "runs": [4_000], "seeds": [0]}))
    process = start_qan("bench", tmp_path / "grid.yaml", "--out", tmp_path / "r.parquet", "--workers", 1)
    deadline = time.monotonic() + 200
    while not (tmp_path / "r.parquet").exists():  # the constant; next is the linear, with minutes of tuning
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=30)  # until nobody has its output open


def test_benches_that_write_to_one_file_keep_one_anothers_cells(tmp_path):
    path, cells = tmp_path / "r.parquet", [cell(seed=seed) for seed in range(40)]
    writers = [Results(path) for _ in range(4)]  # all of them opened before there is anything

    def write(number: int) -> None:
        for one in cells[number::4]:
            writers[number].append(one.key, [{"config_hash": one.key, "status": "done", "evaluation_seed": 0}])

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(4)))
    assert writers[0].finished().keys() == {one.key for one in cells}
    assert len(read_table(path)) == 40


@pytest.mark.slow  # Ray takes ten seconds to start
def test_ray_runs_the_same_cells(whole, grid_file, tmp_path, monkeypatch):
    """On a cluster of its own, whatever the environment says."""
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")  # where nobody is
    process = start_qan("bench", grid_file, "--out", tmp_path / "r.parquet", "--ray", "local")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert without_time(tmp_path / "r.parquet") == without_time(whole)


@pytest.mark.parametrize("arguments", [("bench",), ("bench", "--controller", "adam"), ("report", "no.parquet")])
def test_wrong_commands_are_explained(arguments):
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert done.output.startswith("qan: ")
    assert "Traceback" not in done.output


def test_a_damaged_file_of_results_is_refused(tmp_path):
    (tmp_path / "r.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"r\.parquet"):
        Results(tmp_path / "r.parquet")


# --- the report -----------------------------------------------------------------------------------------------------


def test_without_a_baseline_the_report_says_what_stands_in_for_it(tmp_path, few_repetitions):
    """At the command line, too, where the legend of the table is not."""
    alone = Results(tmp_path / "alone.parquet")
    for one in cells_of({**GRID, "controllers": GRID["controllers"][1:]})[:1]:
        alone.append(one.key, run_cell(one))
    few = ["caution: 2 trainings to prepare on, too few", "caution: 3 evaluation seeds, too few"]
    said = "The baseline is down (2), for want of another: results of the controller constant in the same file take"
    shown = " ".join(invoke("report", tmp_path / "alone.parquet").output.split())
    assert all(words in shown for words in (said, *few))
    text = (tmp_path / "alone" / "report.md").read_text()
    assert all(words in text for words in (said, *few))


def test_the_report_is_one_page(whole, tmp_path, few_repetitions):
    written = report(whole, tmp_path)
    assert all(path.stat().st_size > 0 for path in written)
    text, page = (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()
    assert "for want of another" not in text
    for name in ("constant", "down (2)"):
        assert f"| {name} |" in text
        assert f"<td>{name}</td>" in page
    assert page.count("data:image/png;base64,") == 3
    assert 'src="0-' not in page


def test_learned_controllers_are_set_against_those_of_their_budget():
    constant, low, high = (
        scores_of("constant", [[2.0, 2.0]]),
        scores_of("linear", [[1.0, 1.0]]),
        scores_of("step", [[3.0, 3.0]]),
    )
    best, agent = scores_of("best-constant", [[1.5, 1.5]]), scores_of("dqn-native", [[1.25, 1.25]])
    everyone = [replace(one, runs=20) for one in (low, agent, best, high)] + [constant]
    table, _ = comparison_table(everyone, constant)
    found = next(row for row in table.rows if row[0].startswith("dqn-native"))
    wanted = ["dqn-native (20)", "-0.7500 (-0.7500", "-0.2500 (-0.2500", "+0.2500 (+0.2500", "linear (20)"]
    assert [cell.startswith(start) for cell, start in zip(found, wanted, strict=True)] == [True] * 5, found
    others = [replace(one, runs=100 if one.label == "dqn-native" else one.runs) for one in everyone]
    assert comparison_table(others, constant) == []  # nobody was tuned on as many


def test_results_of_an_agent_that_has_another_name_now_are_still_those_of_a_learned_controller():
    constant, tuned = scores_of("constant", [[2.0]]), replace(scores_of("linear", [[1.5]]), runs=20)
    agent = replace(scores_of("dqn-gpu", [[1.25]]), runs=20)
    (name, difference, *_), *_ = comparison_table([agent, tuned, constant], constant)[0].rows
    assert name == "dqn-gpu (20)"
    assert difference.startswith("-0.7500")
    other_tuned = [replace(scores_of(name, [[1.25]]), runs=20) for name in ("plateau", "schedule-free-sgd")]
    assert comparison_table([*other_tuned, tuned, constant], constant) == []  # these are not learned


@pytest.mark.slow
def test_the_target_is_the_constant_of_the_same_budget():
    curve = [4.0, 2.0, 1.0]
    few, many = (
        replace(scores_of("best-constant", [[loss]], curve), runs=runs) for loss, runs in ((2.0, 20), (1.0, 100))
    )
    agents = [replace(scores_of("dqn-native", [[1.0]], curve), runs=runs) for runs in (20, 100)]
    constant = scores_of("constant", [[1.0]], curve)  # prepared on nothing: set against the smallest budget
    table = score_table([few, many, *agents, constant], constant, [few, many])
    shares = {row[0]: row[-3] for row in table.rows}
    assert {name: shares[name] for name in ("dqn-native (20)", "dqn-native (100)", "constant")} == {
        "dqn-native (20)": "50%",
        "dqn-native (100)": "100%",
        "constant": "50%",
    }


def scores_of(label: str, losses: list[list[float]], curve: list[float] | None = None) -> statistics.ControllerScores:
    loss = np.array(losses)
    curves = np.broadcast_to(np.array(curve or [2.0, 1.0]), (*loss.shape, len(curve or [2, 1])))
    return statistics.ControllerScores(
        label,
        label,
        0,
        0,
        0,
        [*range(len(loss))],
        [*range(loss.shape[1])],
        loss,
        loss,
        loss,
        loss * 0,
        curves,
        curves,
    )


def test_statistics_against_what_can_be_worked_out():
    one = scores_of("one", [[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]], curve=[4.0, 2.0, 1.0])
    other = scores_of("other", [[2.0, 3.0, 4.0]])
    found = statistics.difference(one.test_loss, other.test_loss)
    assert found.value == pytest.approx(-0.5)
    # Seeds shift both alike; what varies is the preparation: -1 or 0.
    assert (found.low, found.high) == pytest.approx((-1, 0))
    same = statistics.difference(one.test_loss, one.test_loss - 1)
    assert (same.low, same.value, same.high) == pytest.approx((1, 1, 1))
    assert statistics.relative_scores(one, other).tolist() == pytest.approx(np.log([2, 1.5, 4 / 3, 1, 1, 1]).tolist())
    assert statistics.mean_ranks([one, other]) == {"one": 1.0, "other": 2.0}
    shares = statistics.share_until(one, scores_of("target", [[2.0, 1.5, 0.5]]))
    assert shares.tolist() == [[0.5, 1.0, math.inf]] * 2
    area = (math.log(4) + 2 * math.log(2) + math.log(1)) / 4
    assert statistics.mean_log_loss(one).ravel().tolist() == pytest.approx([area] * 6)
    better = statistics.probability_of_improvement(np.array([[3.0], [3.0]]), np.array([[1.0], [4.0]]))
    assert better.value == pytest.approx(0.5)
    means = statistics.interquartile_means({"x": np.arange(8.0)[:, None]})
    assert means["x"].value == pytest.approx(3.5)
    assert means["x"].low < 3.5 < means["x"].high


def test_intervals_are_the_same_each_time():
    """Whatever was drawn before; and what is drawn after is as if nothing had been."""
    mine, other = (np.random.default_rng(seed).normal(size=(20, 1)) for seed in (0, 1))
    found, drawn = [], []
    for seed in (1, 2):
        np.random.seed(seed)  # noqa: NPY002
        bands = statistics.performance_profiles({"mine": mine}, np.linspace(-1, 1, 5))[1]["mine"].tolist()
        means = statistics.interquartile_means({"mine": mine, "other": other})
        found.append((bands, means, statistics.probability_of_improvement(mine, other)))
        drawn.append(np.random.uniform())  # noqa: NPY002
    assert found[0] == found[1]
    np.random.seed(2)  # noqa: NPY002
    assert np.random.uniform() == drawn[1]  # noqa: NPY002


def test_cells_judged_on_different_seeds_are_not_thrown_together(whole):
    rows = [row for row in read_table(whole).to_pylist() if row["label"] == "down"]
    assert len(statistics.controller_scores(rows, range(3))[0].seeds) == 3
    with pytest.raises(ValueError, match="different seeds"):
        statistics.controller_scores(rows[:-1], range(3))
    assert statistics.common_seeds(rows[:-1]) == [0, 1]


# --- results that must not mix --------------------------------------------------------------------------------------


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def write_grid(path: Path, **changes: object) -> Path:
    path.write_text(yaml.safe_dump({**GRID, "controllers": ["constant"], **changes}))
    return path


def run_grid(grid: dict, path: Path) -> list[tuple[str, str]]:
    """Compute what is not finished of a grid, in this process; what was computed, and its status."""
    results, seen = Results(path), []
    cells = cells_of(grid)
    require_compatible(cells, results)
    for one in unfinished(cells, results):
        results.append(one.key, run_cell(one))
        seen.append(one.label)
    return seen


def test_a_cell_is_known_by_the_content_of_its_data(tmp_path):
    """Other images under the same name are another cell; the same images under another name are not."""
    path, other = tmp_path / "d.npz", tmp_path / "other.npz"

    def key(data: Path) -> str:
        return cell("constant", runs=0, env_kwargs={**KWARGS, "train_size": 20, "dataset": str(data)}).key

    made_npz(path, seed=1)
    first = key(path)
    other.write_bytes(path.read_bytes())
    assert key(other) == first
    made_npz(path, seed=2)
    assert key(path) != first


def test_a_cell_is_known_by_the_content_of_its_reference(tmp_path, reference_file):
    path = tmp_path / "w.safetensors"

    def key() -> str:
        return cell("constant", runs=0, env_kwargs={**KWARGS, "reference": str(path)}).key

    path.write_bytes(Path(reference_file).read_bytes())
    first = key()
    path.write_bytes(b"others")
    assert key() != first


def test_the_report_keeps_data_of_one_name_apart(tmp_path, few_repetitions):
    data, results = tmp_path / "d.npz", tmp_path / "r.parquet"
    grid = {
        **GRID,
        "environments": [{"id": LR, "kwargs": {**KWARGS, "train_size": 50, "dataset": str(data)}}],
        "controllers": ["constant"],
        "evaluation_seeds": 2,
    }
    for seed in (1, 2):
        made_npz(data, seed=seed)
        assert run_grid(grid, results) == ["constant"]
        assert run_grid(grid, results) == []
    report(results, tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    fingerprints = {row["data_fingerprint"][:12] for row in read_table(results).to_pylist()}
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert len(fingerprints) == len(headings) == 2
    assert {heading[-12:] for heading in headings} == fingerprints
    assert text.count("| constant |") == 2


def test_data_that_change_while_a_bench_runs_fail_the_cell(tmp_path):
    made_npz(tmp_path / "d.npz", seed=1)
    one = cell("constant", runs=0, env_kwargs={**KWARGS, "dataset": str(tmp_path / "d.npz")})
    assert one.identities
    made_npz(tmp_path / "d.npz", seed=2)
    outcome = run_cell_or_fail(one)
    assert isinstance(outcome, Failure)
    assert "changed" in outcome.reason


def test_missing_data_end_a_bench_before_any_work(tmp_path):
    grid = write_grid(tmp_path / "g.yaml", environments=[LR, {"id": LR, "kwargs": {"dataset": "no/where.npz"}}])
    done = invoke("bench", grid, "--out", tmp_path / "r.parquet")
    assert done.exit_code == 2
    assert "no/where.npz" in done.output
    assert not (tmp_path / "r.parquet").exists()


@pytest.mark.slow
def test_more_evaluation_seeds_complete_what_is_there(tmp_path, few_repetitions):
    """The report compares on the seeds that all cells have, and says which cells lack some; a bench adds them."""
    results, grid = tmp_path / "r.parquet", {**GRID, "seeds": [0]}
    assert run_grid({**grid, "evaluation_seeds": 2}, results) == ["constant", "down"]
    before = without_time(results)
    assert run_grid({**grid, "controllers": ["constant"], "evaluation_seeds": 3}, results) == ["constant"]
    report(results, tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Compared on 2 evaluation seeds" in text
    assert "- down (2 runs, seed 0): 2 of 3 evaluation seeds" in text
    assert "| 1 x 2 |" in text
    assert run_grid({**grid, "evaluation_seeds": 3}, results) == ["down"]
    assert run_grid({**grid, "evaluation_seeds": 2}, results) == []
    assert [row for row in without_time(results) if row["evaluation_seed"] < 2] == before
    report(results, tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| 1 x 3 |" in text
    assert "Compared on" not in text


def test_a_failure_does_not_replace_results(tmp_path):
    results, one = Results(tmp_path / "r.parquet"), cell("constant", runs=0)
    results.append(one.key, run_cell(one))
    results.append(one.key, [{"config_hash": one.key, "status": "failed", "error": "full"}])
    assert results.finished() == {one.key: {0, 1}}
    assert len(results.table()) == 3


def test_a_label_that_stands_for_something_else_in_the_results_is_refused(tmp_path):
    results, grid = tmp_path / "r.parquet", {**GRID, "seeds": [0], "controllers": ["constant"]}
    run_grid(grid, results)
    other = write_grid(tmp_path / "g.yaml", controllers=[{"name": "constant", "settings": {"learning_rate": 0.1}}])
    done = invoke("bench", other, "--out", results)
    assert done.exit_code == 2
    assert done.output.count("\n") == 1
    assert re.search(r"r\.parquet: the label 'constant' stands for .*or write to another file", done.output)


def test_the_report_refuses_one_label_of_two_settings(whole, tmp_path):
    rows = read_table(whole).to_pylist()
    for row in rows:
        if row["label"] == "down" and row["seed"] == 2:
            row["settings"] = '{"factor": 2}'
    results = Results(tmp_path / "r.parquet")
    results.append("new", rows)
    done = invoke("report", tmp_path / "r.parquet")
    assert done.exit_code == 2
    assert "the label 'down' stands for linear with the settings {}" in done.output


# --- schedules under the controllers --------------------------------------------------------------------------------


def test_constant_is_the_same_learning_rate_throughout():
    (row, _) = run_cell(cell("constant", runs=0))
    assert row["rate_curve"] == pytest.approx([0.05] * 5, rel=1e-6)


def test_a_base_schedule_under_the_controllers_is_refused():
    """In the learning-rate game; where the actions do not set the learning rate, it is part of the training."""
    with pytest.raises(ValueError, match=r"base schedule 'linear'.*schedule: constant"):
        run_cell(cell("constant", runs=0, env_kwargs={**KWARGS, "schedule": "linear"}))
    mini = {"train_size": 500, "batch_size": 20, "epochs": 1, "meta_momentum": None, "reference": None}
    where = {"env": "QanMinibatch-MNIST5k-v1", "env_kwargs": {**mini, "schedule": "linear"}}
    (row, _) = run_cell(cell("shuffled", runs=0, **where))
    assert row["rate_curve"][-1] < row["rate_curve"][0] / 4


# --- options of the command -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--runs", 3), "runs"),
        (("--seed", 3), "seeds"),
        (("--env", LR), "environments"),
        (("--evaluation-seeds", 10), "evaluation_seeds"),
        (("--controller", "linear"), "controllers"),
        (("--workers", -1), "--workers must be at least 1"),
        (("--workers", 0), "--workers must be at least 1"),
        (("--workers", 2, "--ray", "local"), "--workers is for"),
    ],
)
def test_options_that_would_be_ignored_are_refused(tmp_path, options, message):
    done = invoke("bench", write_grid(tmp_path / "g.yaml"), "--out", tmp_path / "r.parquet", *options)
    assert done.exit_code == 2
    assert done.output.startswith("qan: ")
    assert done.output.count("\n") == 1
    assert message in done.output
    assert not (tmp_path / "r.parquet").exists()


# --- processes ------------------------------------------------------------------------------------------------------


class Pool:
    """In the place of pebble's: notes with how many processes it is made."""

    made: ClassVar[list[int]] = []

    def __init__(self, max_workers: int, **_: object) -> None:
        self.made.append(max_workers)

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def schedule(self, run: Callable[[Cell], object], args: list[Cell]) -> Future:
        future: Future = Future()
        future.set_result(run(*args))
        return future


def test_no_more_processes_than_cells(monkeypatch):
    monkeypatch.setattr("pebble.ProcessPool", Pool)
    monkeypatch.setattr(Pool, "made", [])
    monkeypatch.setattr(runner, "default_workers", lambda: 6)
    cells = [cell(seed=seed) for seed in range(3)]
    for count, workers in ((1, 0), (3, 0), (3, 2), (1, 50), (0, 0)):
        assert len(list(run_in_processes(cells[:count], workers, lambda one: []))) == count
    assert Pool.made == [1, 3, 2, 1]  # without cells, none at all


def test_the_default_number_of_processes_is_what_this_process_may_use(monkeypatch, tmp_path):
    if hasattr(os, "sched_setaffinity"):
        before = os.sched_getaffinity(0)
        monkeypatch.setattr(resources, "available_memory", lambda: 100 << 30)
        os.sched_setaffinity(0, {min(before)})
        try:
            assert resources.default_workers() == 1
        finally:
            os.sched_setaffinity(0, before)
    monkeypatch.setattr(resources, "cpu_count", lambda: 64)
    monkeypatch.setattr(resources, "available_memory", lambda: (3 << 30) + 5)
    assert resources.default_workers() == 3
    monkeypatch.setattr(resources, "available_memory", lambda: 0)
    assert resources.default_workers() == 1


def test_the_memory_limit_of_a_container_counts(tmp_path):
    free = resources.available_memory(tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert resources.available_memory(tmp_path) == pytest.approx(free, rel=0.5)
    (tmp_path / "memory.max").write_text("5000\n")
    assert resources.available_memory(tmp_path) == 4000
    (tmp_path / "memory.current").write_text("6000\n")
    assert resources.available_memory(tmp_path) == 0


def test_ray_local_does_not_obey_the_environment(monkeypatch):
    """`address="local"` is Ray's word for a new cluster; without an address it would go to RAY_ADDRESS."""
    ray = pytest.importorskip("ray")
    asked = []

    def init(**kwargs: object) -> None:
        asked.append(kwargs["address"])
        raise ConnectionError("nobody there\nmore lines")

    monkeypatch.setattr(ray, "init", init)
    for address in ("local", "1.2.3.4:5"):
        with pytest.raises(ValueError, match=rf"no Ray cluster at '{address}' \(nobody there\)"):
            list(run_on_ray([cell()], address))
    assert asked == ["local", "1.2.3.4:5"]


# --- damage ---------------------------------------------------------------------------------------------------------


def test_every_flipped_bit_of_the_results_is_noticed_or_changes_nothing(whole, tmp_path):
    content, rng, path = whole.read_bytes(), np.random.default_rng(0), tmp_path / "r.parquet"
    wanted, refused = read_table(whole), 0
    for place in rng.integers(len(content), size=150):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            assert read_table(path).equals(wanted)
        except ValueError:
            refused += 1
    assert refused > 50  # the others are in what nobody reads, such as statistics of columns


def test_results_without_a_checksum_are_refused(whole, tmp_path):
    pq.write_table(read_table(whole), tmp_path / "r.parquet")
    with pytest.raises(ValueError, match=r"r\.parquet: damaged.*no checksum"):
        read_table(tmp_path / "r.parquet")


def test_results_that_cannot_be_kept_fail_the_cell(monkeypatch):
    """What a registered controller reports may be anything: the grid goes on."""
    monkeypatch.setattr(runner, "run_cell", lambda one: [{"config_hash": one.key, "runs": "many"}])
    assert isinstance(run_cell_or_fail(cell()), Failure)

    def broken(one: Cell) -> None:
        raise ValueError("\ud800")

    monkeypatch.setattr(runner, "run_cell", broken)
    outcome = run_cell_or_fail(cell())
    assert isinstance(outcome, Failure)
    outcome.reason.encode()


def test_a_full_disk_is_said_in_one_line(tmp_path, monkeypatch):
    results, one = Results(tmp_path / "r.parquet"), cell()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.write_table", full)
    with pytest.raises(ValueError, match=r"r\.parquet: .*No space left on device.*the same command goes on"):
        results.append(one.key, [{"config_hash": one.key, "status": "done", "evaluation_seed": 0}])


@pytest.mark.parametrize("name", ["results", "results.parquet", "r.x.parquet"])
def test_the_report_is_beside_the_results(whole, tmp_path, name, few_repetitions):
    (tmp_path / name).write_bytes(whole.read_bytes())
    done = invoke("report", tmp_path / name)
    assert done.exit_code == 0, done.output
    folder = {"results": "results-report", "results.parquet": "results", "r.x.parquet": "r.x"}[name]
    assert (tmp_path / folder / "report.html").is_file()
    printed = [line.split("│")[1].strip() for line in done.output.splitlines() if line.startswith("│")]
    assert {"constant", "down (2)"} <= set(printed)


def test_a_report_that_cannot_be_written_is_refused(whole, tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        done = invoke("report", whole, "--out", out)
        assert done.exit_code == 2
        assert "cannot be written to" in done.output
    for path in (tmp_path, tmp_path / "no.parquet", tmp_path / "file"):
        done = invoke("report", path, "--out", tmp_path / "out")
        assert done.exit_code == 2
        assert str(path) in done.output
    assert not (tmp_path / "out").exists()


# --- what others wrote ----------------------------------------------------------------------------------------------

HOSTILE = (
    *("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a | b", "$x^$", "_hidden", "[l](javascript:x)"),
    *("![p](http://x/y.png)", "`code`", "**bold** # &amp; ~~gone~~", "\\| \\", "{{ 7 * 7 }}", "{% raw %}"),
)


class Tags(HTMLParser):
    """The tags of a page with their attributes, and its texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_report_shows_what_others_wrote_as_text(whole, tmp_path, few_repetitions):
    """Labels, kwargs, settings, versions and errors may hold anything, in the page, in Markdown and in pictures."""
    rows = [row for row in read_table(whole).to_pylist() if row["label"] == "constant"]
    script = "<script>alert(2)</script>|$x^$"
    everyone = [{**row, "label": label} for label in HOSTILE for row in rows]
    everyone = [
        {
            **row,
            "environment_kwargs": json.dumps({script: script}),
            "environment": script,
            "versions": json.dumps({script: script}),
            "controller": script,
        }
        for row in everyone
    ]
    failed = {**everyone[0], "status": "failed", "error": f"{script}\n\n# not a heading"}
    Results(tmp_path / "r.parquet").append("all", [*everyone, failed])
    report(tmp_path / "r.parquet", tmp_path)
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    found = Tags(page)
    kinds = {tag for tag, _ in found.tags}
    assert kinds <= {
        *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "ul", "li", "img", "div"),
        *("table", "thead", "tbody", "tr", "th", "td"),
    }
    assert all(attributes["src"].startswith("data:image/png;base64,") for tag, attributes in found.tags if tag == "img")
    assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)
    assert set(HOSTILE) <= set(found.texts)
    for tags in (found, Tags(MarkdownIt().enable("table").render(text))):
        assert "script" not in {tag for tag, _ in tags.tags}
        assert not any(
            value and value.startswith(("javascript:", "http:"))
            for _, attributes in tags.tags
            for value in attributes.values()
        )
    cells = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert set(cells) == {13}
    markdown = Tags(MarkdownIt().enable("table").render(text))
    assert {label.strip() for label in HOSTILE} <= {text.strip() for text in markdown.texts}
    assert [tag for tag, _ in markdown.tags].count("h1") == 1


def test_a_page_runs_nothing(whole, tmp_path, few_repetitions):
    report(whole, tmp_path)
    page = (tmp_path / "report.html").read_text()
    policies = [a["content"] for tag, a in Tags(page).tags if tag == "meta" and "http-equiv" in a]
    assert len(policies) == 1
    style = re.search(r"<style>(.*)</style>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policies[0].split("; ") == [
        *(
            "default-src 'none'",
            "img-src data:",
            f"style-src 'sha256-{digest}'",
            "base-uri 'none'",
            "form-action 'none'",
        ),
    ]
    assert page.index("http-equiv") < page.index("<style>")
