"""The scoreboard of benches: scores, rows that are added, and files that are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qan_agents.bench import resources, statistics
from qan_agents.bench.results import Results
from qan_agents.bench.scoreboard import entries_of, read_scoreboard, submit
from qan_agents.cli.app import app

LUCK = (0.0, 0.004, -0.004, 0.002)  # of the evaluation seeds, the same for all controllers


@pytest.fixture(autouse=True)
def few_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals of few repetitions."""
    monkeypatch.setattr(statistics, "REPETITIONS", 200)


def rows(label: str, runs: int, losses: list[float], validation: float = 0.1, **changes: Any) -> list[dict[str, Any]]:
    """A row per preparation and evaluation seed."""
    shared = {
        **{"environment": "Game-v0", "environment_kwargs": "{}", "environment_identity": "game"},
        **{"prepared_on": "Game-v0", "prepared_on_kwargs": "{}", "prepared_on_identity": "game"},
        **{"controller": label, "label": label, "settings": "{}", "runs": runs, "status": "done", "diverged": False},
        **{"test_accuracy": 0.9, "validation_loss": validation, "validation_accuracy": 0.9, "batches": 10},
        **{"validation_curve": [1.0, 0.5], "rate_curve": [0.1, 0.1], "consumed_runs": runs, "consumed_batches": 0},
        **{"versions": json.dumps({"torch": "2", "commit": "abc", "hardware": "a processor"}), **changes},
    }
    return [
        {**shared, "seed": seed, "evaluation_seed": place, "test_loss": loss + luck}
        for seed, loss in enumerate(losses)
        for place, luck in enumerate(LUCK)
    ]


def bench(path: Path, *cells: list[dict[str, Any]]) -> Path:
    results = Results(path)
    for number, cell in enumerate(cells):
        results.append(str(number), [{**row, "config_hash": str(number)} for row in cell])
    return path


def whole(tmp_path: Path) -> Path:
    return bench(
        tmp_path / "bench.parquet",
        rows("constant", 0, [0.3]),
        rows("linear", 100, [0.2], validation=0.2),
        rows("cosine", 100, [0.19], validation=0.3),  # luckier on the test images
        rows("schedule-free-sgd", 100, [0.1], validation=0.1),  # no schedule
        rows("cooldown", 20, [0.1], validation=0.1),  # of another budget
        rows("dqn-native", 20, [0.24, 0.28]),
    )


def test_scores_are_0_for_constant_and_1_for_the_schedule_with_the_lowest_validation_loss(tmp_path):
    found = {(row.label, row.budget): row for row in entries_of(whole(tmp_path))}
    scores = {label: row.score.value for (label, _), row in found.items()}
    wanted = {"constant": 0, "linear": 1, "cosine": 1.1, "schedule-free-sgd": 2, "cooldown": 2, "dqn-native": 0.4}
    assert scores == pytest.approx(wanted)
    assert {row.score_of_one for row in found.values()} == {"linear (100)"}
    constant, linear, agent = found["constant", 0], found["linear", 100], found["dqn-native", 20]
    assert (constant.score.low, constant.score.high, constant.minus_constant) == (0, 0, None)
    assert (linear.score.low, linear.score.high) == pytest.approx((1, 1))
    # Two preparations, of which any two may be drawn; the seeds add nothing, whose luck is common to all.
    assert (agent.score.low, agent.score.high) == pytest.approx((0.2, 0.6))
    assert agent.minus_constant.value == pytest.approx(-0.04)
    assert (agent.preparations, agent.evaluation_seeds, agent.test_loss) == (2, 4, 0.2605)
    assert (agent.commits, agent.hardware) == (["abc"], ["a processor"])


def test_without_a_schedule_of_100_trainings_or_one_ahead_of_constant_there_is_no_score(tmp_path):
    plain = bench(tmp_path / "plain.parquet", rows("constant", 0, [0.3]), rows("linear", 20, [0.2], versions="{}"))
    behind = bench(tmp_path / "behind.parquet", rows("constant", 0, [0.3]), rows("linear", 100, [0.31]))
    level = bench(tmp_path / "level.parquet", rows("constant", 0, [0.3]), rows("linear", 100, [0.2, 0.39]))
    for path in (plain, behind, level):
        assert [row.score for row in entries_of(path)] == [None, None]
    (linear,) = (row for row in entries_of(plain) if row.label == "linear")
    assert (linear.commits, linear.hardware, linear.score_of_one) == ([], [], None)
    assert linear.minus_constant.value == pytest.approx(-0.1)


def test_rows_take_the_place_of_those_of_the_same_controller(tmp_path):
    board = tmp_path / "board.json"
    submit(whole(tmp_path), board)
    first = read_scoreboard(board).rows
    assert [row.test_loss for row in first] == sorted(row.test_loss for row in first)
    again = bench(tmp_path / "again.parquet", rows("constant", 0, [0.3]), rows("dqn-native", 20, [0.22]))
    submit(again, board)
    second = read_scoreboard(board).rows
    assert len(second) == len(first)
    assert [row.preparations for row in second if row.label == "dqn-native"] == [1]
    elsewhere = rows("constant", 0, [0.5], environment_identity="other", prepared_on_identity="other")
    submit(bench(tmp_path / "other.parquet", elsewhere), board)
    assert len(read_scoreboard(board).rows) == len(first) + 1


def test_what_is_no_scoreboard_is_refused_before_any_work_and_stays(tmp_path):
    board = tmp_path / "board.json"
    submit(whole(tmp_path), board)
    rows_there = json.loads(board.read_text())["rows"]
    twice, unknown = json.dumps({"rows": [*rows_there, rows_there[0]]}), json.dumps({"rows": [{"score": 1}]})
    for wrong in ("{", "{}", twice, unknown):
        board.write_text(wrong)
        out = tmp_path / "new.parquet"
        arguments = ["bench", "--controller", "constant", "--out", str(out), "--submit", str(board)]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code != 0
        assert "a scoreboard of qan bench" in str(result.exception) + result.output
        assert board.read_text() == wrong
        assert not out.exists()


def test_results_without_a_constant_give_no_rows(tmp_path):
    path = bench(tmp_path / "bench.parquet", rows("linear", 100, [0.2]))
    with pytest.raises(ValueError, match="no finished cell of 'constant'"):
        submit(path, tmp_path / "board.json")
    assert not (tmp_path / "board.json").exists()


@pytest.mark.slow
def test_the_committed_scoreboard_is_what_the_committed_results_give():
    root = Path(__file__).parents[1]
    there = {row.key: row for row in read_scoreboard(root / "docs" / "scoreboard.json").rows}
    for study in ("controllers", "agent_on_one_cycle", "more_test_images", "controllers_v1"):
        for row in entries_of(root / "studies" / study / "results.parquet"):
            mine = there.pop(row.key)
            assert (row.test_loss, row.controller, row.preparations) == (
                mine.test_loss,
                mine.controller,
                mine.preparations,
            )
            for one, other in ((row.score, mine.score), (row.minus_constant, mine.minus_constant)):
                assert (one and one.value) == (other and other.value)
    assert not there


def test_a_commit_is_that_of_the_code_or_none(tmp_path, monkeypatch):
    assert resources.hardware()
    installed = tmp_path / "resources.py"
    installed.write_text("")
    monkeypatch.setattr(resources, "__file__", str(installed))
    assert resources.commit.__wrapped__() is None
