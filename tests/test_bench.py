"""The bench: grids, cells that fail, kills, and what the report makes of the results."""

import math
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import SHORT, start_qan
from typer.testing import CliRunner

from qan_agents.bench import statistics, tuning_task
from qan_agents.bench.controllers import PreparedController
from qan_agents.bench.grid import Cell, cells_of, read_grid
from qan_agents.bench.report import comparison_table, report, score_table
from qan_agents.bench.results import Results, read_table
from qan_agents.bench.runner import (
    Failure,
    run_cell,
    run_cell_or_fail,
    run_cells,
    run_in_processes,
    transferred_env_kwargs,
)
from qan_agents.bench.tuned_schedules import ScheduleController
from qan_agents.bench.tuning_task import TuningTask
from qan_agents.cli.app import app

LR = "QanLR-MNIST5k-v0"
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
        ({"controllers": ["adam"]}, "name must be one of .*linear.*, not 'adam'"),
        ({"controllers": []}, "controllers must be a list"),
        ({"environments": ["CartPole-v1"]}, "CartPole-v1 is not an environment"),
        ({"environments": ["no_such_module:X-v0"]}, "no_such_module"),
        ({"environments": [{"id": LR, "kwargs": {"epochs": 0}}]}, "epochs"),
        ({"environments": [{"id": LR, "kwarg": {}}]}, "kwarg"),
        ({"environments": [{"id": LR, "transfer": [{"id": "Qan"}]}]}, "unknown environment 'Qan'"),
        ({"environments": [{"id": LR, "transfer": {"id": LR}}]}, "transfer must be a list"),
        ({"environments": [{"id": LR, "kwargs": 3}]}, "kwargs must be"),
        ({"controllers": [{"name": "linear", "settings": "fast"}]}, "settings must be"),
        ({"blocks": {}}, "blocks must be a list"),
        ({"runs": [True]}, "runs must be a list"),
        ({"runs": 20}, "runs must be a list"),
        ({"seeds": [-1]}, "seeds must be"),
        ({"evaluation_seeds": 0}, "evaluation_seeds"),
        ({"controler": ["linear"]}, "controler"),
    ],
)
def test_wrong_grids_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        cells_of({**GRID, **change})


def test_a_file_that_is_no_grid_is_refused(tmp_path):
    with pytest.raises(ValueError, match="missing"):
        read_grid(tmp_path / "no.yaml")
    for text in ("a: [", "- 1"):
        (tmp_path / "grid.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"grid\.yaml"):
            read_grid(tmp_path / "grid.yaml")


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
    assert Results(tmp_path / "r.parquet").finished() == {cell().key}  # the other would be tried again


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
            writers[number].append(one.key, [{"config_hash": one.key, "status": "done"}])

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(4)))
    assert writers[0].finished() == {one.key for one in cells}
    assert len(read_table(path)) == 40


@pytest.mark.slow  # Ray takes ten seconds to start
def test_ray_runs_the_same_cells(whole, grid_file, tmp_path):
    pytest.importorskip("ray")
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


def test_the_report_is_one_page(whole, tmp_path):
    written = report(whole, tmp_path)
    assert all(path.stat().st_size > 0 for path in written)
    text, page = (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()
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
    text = comparison_table(everyone, constant)
    line = next(line for line in text.splitlines() if line.startswith("| dqn-native"))
    found = [cell.strip() for cell in line.strip("|").split("|")]
    wanted = ["dqn-native (20)", "-0.7500 (-0.7500", "-0.2500 (-0.2500", "+0.2500 (+0.2500", "linear (20)"]
    assert [cell.startswith(start) for cell, start in zip(found, wanted, strict=True)] == [True] * 5, found
    others = [replace(one, runs=100 if one.label == "dqn-native" else one.runs) for one in everyone]
    assert comparison_table(others, constant) == ""  # nobody was tuned on as many


def test_results_of_an_agent_that_has_another_name_now_are_still_those_of_a_learned_controller():
    constant, tuned = scores_of("constant", [[2.0]]), replace(scores_of("linear", [[1.5]]), runs=20)
    agent = replace(scores_of("dqn-gpu", [[1.25]]), runs=20)
    assert "| dqn-gpu (20) | -0.7500" in comparison_table([agent, tuned, constant], constant)
    other_tuned = [replace(scores_of(name, [[1.25]]), runs=20) for name in ("plateau", "schedule-free-sgd")]
    assert comparison_table([*other_tuned, tuned, constant], constant) == ""  # these are not learned


@pytest.mark.slow
def test_the_target_is_the_constant_of_the_same_budget():
    curve = [4.0, 2.0, 1.0]
    few, many = (
        replace(scores_of("best-constant", [[loss]], curve), runs=runs) for loss, runs in ((2.0, 20), (1.0, 100))
    )
    agents = [replace(scores_of("dqn-native", [[1.0]], curve), runs=runs) for runs in (20, 100)]
    constant = scores_of("constant", [[1.0]], curve)  # prepared on nothing: set against the smallest budget
    text = score_table([few, many, *agents, constant], constant, [few, many])
    shares = {line.split("|")[1].strip(): line.split("|")[-4].strip() for line in text.splitlines()[2:]}
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
    assert len(statistics.controller_scores(rows)[0].seeds) == 3
    with pytest.raises(ValueError, match="different seeds"):
        statistics.controller_scores(rows[:-1])
