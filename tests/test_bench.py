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
from helpers import SHORT, start_qan

from qan_agents.bench import statistics
from qan_agents.bench.report import _contest, _table, report
from qan_agents.bench.results import Results, read_table
from qan_agents.bench.runner import Cell, Failure, _guarded, _in_processes, bench, cells_of, read_grid, run_cell

LR = "QanLR-MNIST5k-v0"
KWARGS = {**SHORT, "reference": None}  # 20 mini-batches
GRID = {
    "environments": [{"id": LR, "kwargs": KWARGS}],
    "controllers": ["constant", {"name": "linear", "label": "down"}],
    "runs": [2],
    "seeds": [0, 1, 2],
    "evaluation_seeds": 3,
}
DIES = Cell(LR, "linear", "dies", 4, 0, 2, KWARGS)


def cell(controller: str = "linear", **changes: object) -> Cell:
    values = {"env": LR, "controller": controller, "label": controller, "runs": 2, "seed": 0, "evaluation_seeds": 2}
    return Cell(**{**values, "env_kwargs": KWARGS, **changes})


def without_time(path: Path) -> list[dict]:
    rows = read_table(path).drop_columns(["seconds"]).to_pylist()
    return sorted(rows, key=lambda row: (row["config_hash"], row["evaluation_seed"]))


# --- the grid -------------------------------------------------------------------------------------------------------


def test_a_grid_has_every_combination_once():
    cells = cells_of({**GRID, "runs": [4, 8], "controllers": ["constant", "linear", "dqn-gpu"]})
    assert len(cells) == 1 + 2 * 2 * 3  # the constant is not prepared: once
    assert len({one.key for one in cells}) == len(cells)
    assert [one.runs for one in cells] == sorted(one.runs for one in cells)
    blocks = {"environments": [LR], "blocks": [{"controllers": ["linear"]}, {"controllers": ["linear", "step"]}]}
    assert [one.controller for one in cells_of(blocks)] == ["linear", "step"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"controllers": ["adam"]}, "unknown controller 'adam'"),
        ({"controllers": []}, "needs controllers"),
        ({"environments": ["CartPole-v1"]}, "unknown environment"),
        ({"environments": [{"id": LR, "kwargs": {"epochs": 0}}]}, "epochs"),
        ({"environments": [{"id": LR, "kwarg": {}}]}, "kwarg"),
        ({"environments": [{"id": LR, "transfer": [{"id": "Qan"}]}]}, "unknown environment 'Qan'"),
        ({"environments": [{"id": LR, "transfer": {"id": LR}}]}, "transfer must be a list"),
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
    for one in (cell("constant", runs=0), cell(), cell(seed=7), cell("dqn-gpu")):
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
    rows = run_cell(cell("dqn-gpu", transfer=[there]))
    assert [row["batches"] for row in rows] == [20, 20, 40, 40]
    assert [row["prepared_on_kwargs"] == row["environment_kwargs"] for row in rows] == [True, True, False, False]
    alone = run_cell(cell("dqn-gpu"))
    assert [row["test_loss"] for row in rows[:2]] == [row["test_loss"] for row in alone]
    assert {row["config_hash"] for row in rows} != {row["config_hash"] for row in alone}


# --- failures and kills ---------------------------------------------------------------------------------------------


def test_a_failing_cell_is_written_down_and_the_grid_goes_on(tmp_path):
    broken = cell(env_kwargs={**KWARGS, "dataset": str(tmp_path / "no.npz")})
    results, seen = Results(tmp_path / "r.parquet"), []
    bench([broken, cell()], results, 1, None, lambda one, status: seen.append((one, status)))
    assert seen == [(broken, "failed"), (cell(), "done")]
    rows = {row["config_hash"]: row for row in read_table(tmp_path / "r.parquet").to_pylist()}
    assert "no.npz" in rows[broken.key]["error"]
    assert rows[cell().key]["error"] is None
    assert Results(tmp_path / "r.parquet").finished() == {cell().key}  # the other would be tried again


def die_or_run(one: Cell) -> object:
    if one == DIES:
        os._exit(9)  # as the kernel's killer, when memory runs out
    return _guarded(one)


def test_a_process_that_dies_is_a_failed_cell():
    outcomes = {one.label: outcome for one, outcome in _in_processes([DIES, cell()], 1, die_or_run)}
    assert isinstance(outcomes["dies"], Failure)
    assert "died" in outcomes["dies"].reason
    assert len(outcomes["linear"]) == 2


@pytest.fixture(scope="module")
def grid_file(tmp_path_factory) -> Path:
    import yaml

    path = tmp_path_factory.mktemp("bench") / "grid.yaml"
    path.write_text(yaml.safe_dump(GRID))
    return path


@pytest.fixture(scope="module")
def whole(grid_file) -> Path:
    path = grid_file.parent / "whole.parquet"
    process = start_qan("bench", grid_file, "--out", path, "--workers", 1)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return path


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
    process = start_qan("bench", grid_file, "--out", path, "--workers", 1)
    output, _ = process.communicate(timeout=300)
    assert f"{len(before)} finished" in output
    assert output.count("done: ") == 4 - len(before)
    assert without_time(path) == without_time(whole)


def test_the_processes_of_a_killed_bench_end_with_it(tmp_path):
    import yaml

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


def test_ray_runs_the_same_cells(whole, grid_file, tmp_path):
    pytest.importorskip("ray")
    process = start_qan("bench", grid_file, "--out", tmp_path / "r.parquet", "--ray", "local")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert without_time(tmp_path / "r.parquet") == without_time(whole)


@pytest.mark.parametrize("arguments", [("bench",), ("bench", "--controller", "adam"), ("report", "no.parquet")])
def test_wrong_commands_are_explained(arguments, tmp_path):
    process = start_qan(*arguments)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 2
    assert output.startswith("qan: ")
    assert "Traceback" not in output


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
    constant, low, high = judged("constant", [[2.0, 2.0]]), judged("linear", [[1.0, 1.0]]), judged("step", [[3.0, 3.0]])
    best, agent = judged("best-constant", [[1.5, 1.5]]), judged("dqn-gpu", [[1.25, 1.25]])
    everyone = [replace(one, runs=20) for one in (low, agent, best, high)] + [constant]
    text = _contest(everyone, constant)
    line = next(line for line in text.splitlines() if line.startswith("| dqn-gpu"))
    found = [cell.strip() for cell in line.strip("|").split("|")]
    wanted = ["dqn-gpu (20)", "-0.7500 (-0.7500", "-0.2500 (-0.2500", "+0.2500 (+0.2500", "linear (20)"]
    assert [cell.startswith(start) for cell, start in zip(found, wanted, strict=True)] == [True] * 5, found
    others = [replace(one, runs=100 if one.label == "dqn-gpu" else one.runs) for one in everyone]
    assert _contest(others, constant) == ""  # nobody was tuned on as many


def test_the_target_is_the_constant_of_the_same_budget():
    curve = [4.0, 2.0, 1.0]
    few, many = (replace(judged("best-constant", [[loss]], curve), runs=runs) for loss, runs in ((2.0, 20), (1.0, 100)))
    agents = [replace(judged("dqn-gpu", [[1.0]], curve), runs=runs) for runs in (20, 100)]
    constant = judged("constant", [[1.0]], curve)  # prepared on nothing: set against the smallest budget
    text = _table([few, many, *agents, constant], constant, [few, many])
    shares = {line.split("|")[1].strip(): line.split("|")[-4].strip() for line in text.splitlines()[2:]}
    assert {name: shares[name] for name in ("dqn-gpu (20)", "dqn-gpu (100)", "constant")} == {
        "dqn-gpu (20)": "50%",
        "dqn-gpu (100)": "100%",
        "constant": "50%",
    }


def judged(label: str, losses: list[list[float]], curve: list[float] | None = None) -> statistics.Judged:
    loss = np.array(losses)
    curves = np.broadcast_to(np.array(curve or [2.0, 1.0]), (*loss.shape, len(curve or [2, 1])))
    return statistics.Judged(
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
        [],
    )


def test_statistics_against_what_can_be_worked_out():
    one = judged("one", [[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]], curve=[4.0, 2.0, 1.0])
    other = judged("other", [[2.0, 3.0, 4.0]])
    found = statistics.difference(one.test_loss, other.test_loss)
    assert found.value == pytest.approx(-0.5)
    # Seeds shift both alike; what varies is the preparation: -1 or 0.
    assert (found.low, found.high) == pytest.approx((-1, 0))
    same = statistics.difference(one.test_loss, one.test_loss - 1)
    assert (same.low, same.value, same.high) == pytest.approx((1, 1, 1))
    assert statistics.scores(one, other).tolist() == pytest.approx(np.log([2, 1.5, 4 / 3, 1, 1, 1]).tolist())
    assert statistics.mean_ranks([one, other]) == {"one": 1.0, "other": 2.0}
    shares = statistics.steps_to(one, judged("target", [[2.0, 1.5, 0.5]]))
    assert shares.tolist() == [[0.5, 1.0, math.inf]] * 2
    area = (math.log(4) + 2 * math.log(2) + math.log(1)) / 4
    assert statistics.area(one).ravel().tolist() == pytest.approx([area] * 6)
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
        bands = statistics.profiles({"mine": mine}, np.linspace(-1, 1, 5))[1]["mine"].tolist()
        means = statistics.interquartile_means({"mine": mine, "other": other})
        found.append((bands, means, statistics.probability_of_improvement(mine, other)))
        drawn.append(np.random.uniform())  # noqa: NPY002
    assert found[0] == found[1]
    np.random.seed(2)  # noqa: NPY002
    assert np.random.uniform() == drawn[1]  # noqa: NPY002


def test_cells_judged_on_different_seeds_are_not_thrown_together(whole):
    rows = [row for row in read_table(whole).to_pylist() if row["label"] == "down"]
    assert len(statistics.judged(rows)[0].seeds) == 3
    with pytest.raises(ValueError, match="different seeds"):
        statistics.judged(rows[:-1])
