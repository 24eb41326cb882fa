"""The records of the tasks of a family: how they are drawn, written, and kept apart."""

import json
from collections import Counter
from dataclasses import asdict, fields, replace

import numpy as np
import pytest

from qan_gym.data.datasets import load_dataset
from qan_gym.families import CONTEXT, DECISIONS, NETWORKS, OPTIMIZERS, Task, draw_task
from qan_gym.families.learning_rate import BATCH_SIZE, BUDGET


@pytest.fixture(scope="module")
def drawn() -> list[Task]:
    return [draw_task(split, number) for split in ("train", "test") for number in range(1000)]


def test_a_task_depends_on_its_split_and_number_alone(drawn):
    """These are written out: another number, order of draws or machine must not change what a number means."""
    assert draw_task("train", 0) == drawn[0]
    assert drawn[0] == Task(**json.loads(FIRST))
    assert drawn[0] != drawn[1] != drawn[1000]


FIRST = """
{"split": "train", "number": 0, "network": "mlp-4-4", "initial_scale": 1.919, "resolution": 14, "classes": [1,
8, 4, 9, 3, 6], "train_size": 1921, "label_noise": 0.0, "input_scale": 1.052, "input_centre": 0.06811,
"data_seed": 2144848580, "optimizer": "adamw", "momentum": 0.9, "weight_decay": 0.9132, "loss_scale": 0.4259,
"batch_size": 4, "batches_per_action": 49, "version": 1}
"""


def test_tasks_are_within_the_family(drawn):
    for task in drawn:
        assert BUDGET[0] <= task.budget <= BUDGET[1]
        assert task.budget == DECISIONS * task.batches_per_action
        assert BATCH_SIZE[0] <= task.batch_size <= BATCH_SIZE[1]
        assert 2 <= len(task.classes) <= 10
        assert 200 <= task.train_size <= 400 * len(task.classes)
        assert 0 <= task.label_noise <= 0.4
        assert 0.3 <= task.input_scale <= 3
        assert 0.3 <= task.loss_scale <= 3
        assert 0.5 <= task.initial_scale <= 2
        assert 0 <= task.momentum <= 0.95
        assert tuple(task.context()) == CONTEXT
        assert np.isfinite(list(task.context().values())).all()
        assert max(map(abs, task.context().values())) < 10


def test_tasks_cover_the_family(drawn):
    """Shares of kinds, within five standard errors; ends of the ranges, within a tenth of their logarithm."""
    for counted, shares in (
        (Counter(t.kind for t in drawn), NETWORKS),
        (Counter(t.optimizer for t in drawn), OPTIMIZERS),
    ):
        for name, share in shares.items():
            assert abs(counted[name] / len(drawn) - share) <= 5 * (share * (1 - share) / len(drawn)) ** 0.5, name
    for name, low, high in (
        *(("input_scale", 0.3, 3), ("loss_scale", 0.3, 3), ("initial_scale", 0.5, 2), ("budget", 100, 4000)),
        *(("batch_size", 4, 128), ("train_size", 200, 4000)),
    ):
        values = np.log([getattr(task, name) for task in drawn])
        assert values.min() < np.log(low) + 0.1 * np.log(high / low), name
        assert values.max() > np.log(high) - 0.1 * np.log(high / low), name
    assert {len(task.classes) for task in drawn} == set(range(2, 11))
    assert {digit for task in drawn for digit in task.classes} == set(range(10))


def test_choices_leave_the_other_fields_as_they_are():
    """The same number with a choice of networks or optimizers is the same task, where the choice allows it."""
    for number in range(200):
        task = draw_task("train", number)
        assert draw_task("train", number, networks=[task.kind], optimizers=[task.optimizer]) == task
        other = draw_task("train", number, optimizers=["sgd"])
        assert replace(other, optimizer=task.optimizer, momentum=task.momentum, weight_decay=task.weight_decay) == task


def test_other_distributions_on_request():
    """Shares of kinds, budgets and training sets change what they say, and leave the other fields as they are."""
    own = {"networks": {"mlp": 0.2, "cnn": 0.8}, "batches": (1_000, 9_000), "train_size": (2_000, 40_000)}
    tasks = [draw_task("train", number, **own) for number in range(1000)]
    assert abs(sum(task.kind == "cnn" for task in tasks) / 1000 - 0.8) < 0.07
    for name, low, high in (("budget", 1_000, 9_000), ("train_size", 2_000, 40_000)):
        values = np.array([getattr(task, name) for task in tasks])
        assert low <= values.min() < low * (high / low) ** 0.1
        assert high * (low / high) ** 0.1 < values.max() <= high
    assert all(task.train_size <= 4_000 * len(task.classes) for task in tasks)
    changed = ("network", "resolution", "batches_per_action", "train_size")
    for number, task in enumerate(tasks[:100]):
        usual = draw_task("train", number, networks=[task.kind])
        assert replace(usual, **{name: getattr(task, name) for name in changed}) == task
    fixed = draw_task("train", 3, batches=777, train_size=128)
    assert (fixed.budget, fixed.train_size) == (775, 128)


def test_normalised_perceptrons_are_drawn_where_they_are_asked_for():
    """As the perceptrons of the same numbers; beside kinds with a share there are none."""
    for number in range(200):
        plain, task = (draw_task("test", number, networks=kind) for kind in ("mlp", "mlp-norm"))
        assert task == replace(plain, network=f"{plain.network}-norm")
        assert (task.kind, task.widths, task.context()) == ("mlp-norm", plain.widths, plain.context())
        assert draw_task("test", number, networks=NETWORKS) == draw_task("test", number)
    with pytest.raises(ValueError, match="mlp-norm beside others needs shares"):
        draw_task("train", 0, networks=["mlp", "mlp-norm"])
    kinds = Counter(draw_task("train", number, {"mlp": 1, "mlp-norm": 3}).kind for number in range(400))
    assert abs(kinds["mlp-norm"] - 300) < 45


@pytest.mark.slow
def test_no_task_is_in_both_splits():
    """10^5 of each: as whole records, without the split's name, and in `data_seed` alone."""
    without = {"split": "train", "number": 0}
    records = [{replace(draw_task(split, n), **without) for n in range(100_000)} for split in ("train", "test")]
    assert all(len(some) == 100_000 for some in records)
    assert not records[0] & records[1]
    assert {task.data_seed % 2 for task in records[0]} == {0}
    assert {task.data_seed % 2 for task in records[1]} == {1}


def test_a_record_comes_back(drawn):
    for task in drawn[:50]:
        assert Task.from_record(task.to_json()) == task
        assert Task.from_record(asdict(task)) == task
        assert Task.from_record(task) is task
        assert "\n" not in task.to_json()
        assert task.network in repr(task)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version 2"),
        ({"classes": [1, 1]}, "different digits"),
        ({"classes": [1]}, "2 to 10 different digits"),
        ({"classes": [3, 12]}, "different digits"),
        ({"classes": "12"}, "classes must be"),
        ({"momentum": 1.0}, "momentum must be"),
        ({"momentum": float("nan")}, "momentum must be"),
        ({"batch_size": 64, "train_size": 63}, "batch_size 64 is larger"),
        ({"split": "validation"}, "split must be"),
        ({"optimizer": "lion"}, "optimizer must be"),
        ({"label_noise": 1.5}, "label_noise must be"),
        ({"number": True}, "number must be"),
        ({"nonsense": 1}, "unknown fields: nonsense"),
        ({"network": None}, "network must be"),
    ],
)
def test_wrong_records_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Task.from_record(asdict(Task()) | changes)


@pytest.mark.parametrize("record", ["{", "[1]", 5, None, [], '{"network": "mlp-4"}'])
def test_what_is_no_record_is_refused(record):
    with pytest.raises(ValueError, match="task"):
        Task.from_record(record)


def test_every_field_of_a_record_is_needed():
    for one in fields(Task):
        record = asdict(Task())
        del record[one.name]
        with pytest.raises(ValueError, match=f"has no {one.name}"):
            Task.from_record(record)


@pytest.mark.parametrize(
    "arguments",
    [
        ("validation", 0),
        ("train", -1),
        ("train", 2**31),
        ("train", 0, []),
        ("train", 0, ["mlp", "rnn"]),
        ("train", 0, ["mlp"], "adam"),
    ],
)
def test_tasks_that_are_not_there_are_refused(arguments):
    with pytest.raises(ValueError, match="must be"):
        draw_task(*arguments)


def test_training_images_are_there_for_every_task(drawn):
    """The bundled images have as many of every class as the largest task takes."""
    assert np.bincount(load_dataset("mnist5k").train.labels).min() >= 400
