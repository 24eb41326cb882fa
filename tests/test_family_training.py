"""Rows that train tasks of their own, against a loop in PyTorch, and against each row alone."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from qan_gym.config import TaskConfig
from qan_gym.core.components import build_components
from qan_gym.core.engine import engine_here
from qan_gym.families import CONTEXT, Task, draw_task
from qan_gym.families.learning_rate import LearningRateSource as TaskSource
from qan_gym.families.task import START
from qan_gym.families.training import FamilyTraining, family_parts
from qan_gym.tasks import TASKS
from qan_gym.utils import random_streams

CONFIG = TASKS["QanLR-Family-v0"]
ENGINES = [
    "torch",
    pytest.param("native", marks=pytest.mark.skipif(not engine_here().startswith("native"), reason="no kernels")),
]
SHORT = {"batches_per_action": 2, "batch_size": 5, "train_size": 32}  # an epoch is 6 mini-batches
MADE = [
    Task(network="mlp-7-tanh", classes=(3, 1, 4), momentum=0.9, input_scale=2.0, input_centre=0.3, **SHORT),
    Task(network="mlp-5-9", resolution=14, optimizer="adamw", momentum=0.8, weight_decay=0.1, label_noise=0.3, **SHORT),
    Task(
        network="mlp-4-4-4-gelu",
        loss_scale=2.5,
        initial_scale=1.5,
        weight_decay=1e-3,
        data_seed=7,
        **{**SHORT, "batches_per_action": 5},
    ),
    Task(network="cnn-3-4", resolution=14, momentum=0.5, loss_scale=0.5, **SHORT),
    Task(network="mlp-6-5-gelu-norm", optimizer="adamw", momentum=0.9, input_scale=0.5, **SHORT),
    Task(network="mnist-cnn", resolution=28, optimizer="adamw", momentum=0.9, classes=(0, 9), **SHORT),
    Task(network="vit-8-1", resolution=7, initial_scale=0.7, **SHORT),
    Task(network="resnet-8", resolution=28, momentum=0.9, **{**SHORT, "batches_per_action": 1}),
]
KINDS = [task.kind for task in MADE]


def make(num_runs: int, engine: str, config: TaskConfig = CONFIG, **source) -> FamilyTraining:
    tasks = TaskSource(**source)
    return FamilyTraining(family_parts(config, tasks, "cpu", engine), tasks, num_runs)


def begin(tasks: list[Task], seeds: list[int], engine: str, config: TaskConfig = CONFIG, **source) -> FamilyTraining:
    training = make(len(tasks), engine, config, **source)
    training.reset(np.ones(len(tasks), np.bool_), np.array(seeds), tasks=tasks)
    return training


def actions(count: int, num_runs: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.3, 0.3, (count, num_runs, 1)).astype(np.float32)


def everything(training: FamilyTraining, row: int) -> dict[str, np.ndarray]:
    """Copies of a row of every tensor that the future depends on."""
    return {name: value[row].numpy().copy() for name, value in training.run.saved().items()}


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert np.array_equal(value, other[name], equal_nan=True), name


class Loop:
    """A training of a task as a user would write it: torch.optim, autograd, float64."""

    def __init__(self, task: Task, seed: int) -> None:
        config = replace(CONFIG, **task.settings())
        self.task, self.seed, self.parts = task, seed, build_components(config, "cpu", "torch")
        network = self.parts.network
        initial = network.initial_params(torch.tensor([seed]))
        self.params = {}
        for name, value in initial.items():
            scaled = value[0].dim() > 1 and name in network.trained
            self.params[name] = (value[0] * (task.initial_scale if scaled else 1)).double()
        trained = [self.params[name].requires_grad_() for name in network.trained]
        common = {"lr": START[task.optimizer], "weight_decay": task.weight_decay}
        if task.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(trained, momentum=task.momentum, **common)
        else:
            self.optimizer = torch.optim.AdamW(trained, betas=(task.momentum, 0.999), **common)
        self.batch, self.chosen = 0, START[task.optimizer]
        images, labels = self.parts.data.split("train")
        self.images, self.labels = images.double(), labels

    def act(self, action: float) -> list[float]:
        """The losses of an action's mini-batches."""
        task, losses = self.task, []
        self.chosen = min(100.0, max(1e-6, self.chosen * 12.0**action))
        for _ in range(task.batches_per_action):
            per_epoch = task.train_size // task.batch_size
            epoch, place = divmod(self.batch, per_epoch)
            places = torch.arange(place * task.batch_size, (place + 1) * task.batch_size)[None]
            indices = random_streams.shuffled(
                torch.tensor([self.seed]), random_streams.SHUFFLED, epoch, places, task.train_size
            )[0]
            params = {name: value[None] for name, value in self.params.items()}
            logits = self.parts.network.forward(params, self.images[indices][None], True)[0]
            loss = task.loss_scale * torch.nn.functional.cross_entropy(logits, self.labels[indices])
            self.optimizer.param_groups[0]["lr"] = self.chosen * (1 - self.batch / task.budget)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
            self.batch += 1
        return losses


@pytest.mark.parametrize("engine", [pytest.param("torch", marks=pytest.mark.slow), *ENGINES[1:]])
def test_rows_train_as_a_loop_in_pytorch(engine):
    """The losses of every action, and the learning rate of its last mini-batch, over a few epochs."""
    tasks = [task for task in MADE if task.kind != "resnet-8"]  # in float64, batch norm is computed by other code
    seeds = list(range(10, 10 + len(tasks)))
    training, loops = begin(tasks, seeds, engine), [Loop(task, seed) for task, seed in zip(tasks, seeds, strict=True)]
    for acted in actions(8, len(tasks)):
        training.step(acted)
        for row, loop in enumerate(loops):
            losses = loop.act(float(acted[row, 0]))
            found = training.run.losses[row, : len(losses)].numpy()
            np.testing.assert_allclose(found, losses, rtol=2e-3, err_msg=tasks[row].network)
            assert training.arrays.loss[row] == pytest.approx(np.mean(losses), rel=2e-3)
            assert training.arrays.learning_rate[row] == pytest.approx(loop.optimizer.param_groups[0]["lr"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_rows_are_what_each_is_alone(engine):
    """Rows of all kinds, reset at different times: observations, rewards, ends and states, bit for bit."""
    tasks = MADE if engine == "native" else MADE[1:6]
    seeds = [100 + row for row in range(len(tasks))]
    together = begin(tasks, seeds, engine)
    alone = [begin([task], [seed], engine) for task, seed in zip(tasks, seeds, strict=True)]
    mask = np.arange(len(tasks)) % 3 == 1
    for number, acted in enumerate(actions(31, len(tasks))):
        if number == 6:  # some begin anew, with tasks of their neighbours
            others, seeds = [tasks[-1], *tasks[:-1]], [seed + 1000 for seed in seeds]
            together.reset(mask, np.array(seeds), tasks=others)
            for row in np.flatnonzero(mask):
                alone[row].reset(np.ones(1, np.bool_), np.array([seeds[row]]), tasks=[others[row]])
        over = together.run.over.copy()
        result = together.step(acted)
        for row, single in enumerate(alone):
            own = single.step(acted[row : row + 1])
            if over[row]:
                continue
            for name in ("observation", "reward", "terminated", "truncated"):
                assert np.array_equal(getattr(result, name)[row], getattr(own, name)[0]), (number, row, name)
            assert_same(everything(single, 0), everything(together, row))
            if own.truncated[0]:
                assert result.info["test_loss"][row] == own.info["test_loss"][0]
    assert over.sum() >= len(tasks) - mask.sum()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_task_is_replayed_to_the_bit(engine):
    """From its record, in another training, beside other rows."""
    drawn = make(2, engine, networks=("mlp",), num_tasks=50)
    drawn.reset(np.ones(2, np.bool_), np.array([5, 6]))
    record = drawn.tasks[1].to_json()
    again = begin([Task.from_record(record)], [6], engine, networks=("mlp",))
    for acted in actions(4, 2):
        one, other = drawn.step(acted), again.step(acted[1:])
        assert np.array_equal(one.observation[1], other.observation[0])
    assert_same(everything(drawn, 1), everything(again, 0))


def test_drawn_tasks_are_those_of_the_source():
    """The number depends on the seed, lies in the range, and every one comes up."""
    source = TaskSource(split="test", num_tasks=5, start_task=100, networks=("mlp",), optimizers=("adamw",))
    tasks = [source.draw(seed) for seed in range(200)]
    assert {task.number for task in tasks} == set(range(100, 105))
    assert all(task == draw_task("test", task.number, ["mlp"], ["adamw"]) for task in tasks)
    assert TaskSource(task=MADE[0]).draw(3) is MADE[0]
    assert len({TaskSource().draw(seed).number for seed in range(100)}) == 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_tasks": 0}, "num_tasks"),
        ({"num_tasks": True}, "num_tasks"),
        ({"num_tasks": 2.5}, "num_tasks"),
        ({"start_task": -1}, "start_task"),
        ({"start_task": None}, "start_task"),
        ({"start_task": 2**31 - 1, "num_tasks": 2}, "start_task"),
        ({"split": "validation"}, "split"),
        ({"networks": ()}, "networks"),
        ({"networks": ("rnn",)}, "networks"),
        ({"optimizers": ("lion",)}, "optimizers"),
    ],
)
def test_wrong_sources_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TaskSource(**arguments)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_episode_has_25_actions_and_is_paid_at_its_end(engine):
    """-ln(validation loss / ln K); the test loss is of the whole test split of the task's classes."""
    task = MADE[0]
    training = begin([task], [3], engine)
    rewards = []
    for acted in actions(25, 1):
        result = training.step(acted)
        rewards.append(float(result.reward[0]))
    assert result.truncated[0]
    assert rewards[:-1] == [0.0] * 24
    assert rewards[-1] == pytest.approx(-math.log(float(result.info["validation_loss"][0]) / math.log(3)), rel=1e-5)
    parts = build_components(replace(CONFIG, **task.settings()), "cpu", "torch")
    images, labels = parts.data.split("test")
    network = parts.network
    params = network.views(training.run.memory[:, : network.size()])
    logits = network.forward(params, images[None], False)[0]
    assert len(labels) == 1010 + 1135 + 982  # MNIST's test images of these classes
    expected = float(torch.nn.functional.cross_entropy(logits, labels))
    assert result.info["test_loss"][0] == pytest.approx(expected, rel=1e-4)
    assert result.info["test_accuracy"][0] == pytest.approx(float((logits.argmax(1) == labels).double().mean()))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_diverged_run_ends_and_pays_the_penalty(engine):
    task = Task(network="mlp-5-9", **SHORT)
    training = begin([task, task], [3, 3], engine, replace(CONFIG, learning_rate_factor=1e38, learning_rate_max=1e38))
    result = training.step(np.array([[1.0], [0.0]], np.float32))
    for _ in range(3):
        if not result.terminated[0]:
            result = training.step(np.array([[1.0], [0.0]], np.float32))
    assert result.terminated.tolist() == [True, False]
    assert result.reward[0] == pytest.approx(-1.5)
    assert np.isfinite(result.observation).all()
    weights = training.run.memory[0].clone()
    again = training.step(np.zeros((2, 1), np.float32))
    assert torch.equal(training.run.memory[0].nan_to_num(), weights.nan_to_num())  # it is no longer trained
    assert np.isfinite(again.observation).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_copies_go_on_alone(engine):
    """A deep copy, and a fork, go on to the same bits; the original does not move with them."""
    tasks = MADE[:4]
    training = begin(tasks, [1, 2, 3, 4], engine)
    acted = actions(6, 4)
    for some in acted[:3]:
        training.step(some)
    before = [everything(training, row) for row in range(4)]
    copied = copy.deepcopy(training)
    for some in acted[3:]:
        copied.step(some)
    for row in range(4):
        assert_same(everything(training, row), before[row])
    for some in acted[3:]:
        training.step(some)
    for row in range(4):
        assert_same(everything(training, row), everything(copied, row))
    single = begin(tasks[1:2], [2], engine)
    forked = single.fork(3)
    single.step(acted[0, :1])
    forked.step(np.repeat(acted[0, :1], 3, axis=0))
    for row in range(3):
        assert_same(everything(single, 0), everything(forked, row))


def test_the_context_stands_in_the_state():
    training = begin(MADE[:3], [1, 2, 3], "torch")
    found = training.run.game["context"].numpy()
    for row, task in enumerate(MADE[:3]):
        np.testing.assert_allclose(found[row], [task.context()[name] for name in CONTEXT], rtol=1e-6)


def test_only_the_cpu_plays_a_family():
    with pytest.raises(ValueError, match="device must be cpu, not 'meta'"):
        family_parts(CONFIG, TaskSource(), "meta", "auto")
