"""`LearnedLR`: the environment's learning rates in a plain loop, what counts as an update, states, and safety."""

import copy
import io
import json
import subprocess
import sys
from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam, AdamW, RMSprop
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, SequentialLR

from qan_agents.controllers import LearnedLR
from qan_agents.controllers.controller import Controller, ControllerSettings
from qan_agents.controllers.decisions import SEEN
from qan_agents.controllers.update_meter import UpdateMeter
from qan_agents.judging.plain_loop import PlainTraining
from qan_gym.core import measurements
from qan_gym.core.statistics import MEASURED, STATISTICS
from qan_gym.families import Task

FACTS = {"batch_size": 8, "dataset_size": 100, "num_classes": 3}
STEPS = 60  # decisions after 2 or 3 updates


def made(optimizer: str = "sgd", features: tuple[str, ...] = STATISTICS, **settings) -> Controller:
    """A controller of random weights, which reacts to everything that it sees."""
    rng, count = np.random.default_rng(0), len(features)
    weights = {
        "mean": np.zeros(count),
        "deviation": np.full(count, 2.0),
        "weight0": rng.normal(0, 0.2, (8, count)),
        "bias0": rng.normal(0, 0.1, 8),
        "weight1": rng.normal(0, 0.3, (1, 8)),
        "bias1": np.zeros(1),
    }
    return Controller(ControllerSettings(features, (optimizer,), 12.0, "linear", **settings), weights, {})


class Loop:
    """A training of a small network on data that repeat."""

    def __init__(self, make=None, **settings):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        self.images, self.labels = torch.randn(100, 6), torch.randint(0, 3, (100,))
        self.optimizer = (make or (lambda params: SGD(params, lr=0.1, momentum=0.9)))(self.net.parameters())
        kind = "sgd" if isinstance(self.optimizer, SGD) else "adamw"
        settings = {"controller": made(kind), "total_steps": STEPS} | settings
        self.scheduler = LearnedLR(self.optimizer, **FACTS | settings)
        self.rates: list[list[float]] = []
        self.number = 0

    def backward(self, scaler: torch.amp.GradScaler | None = None) -> Tensor:
        places = (8 * self.number + torch.arange(8)) % 100
        loss = cross_entropy(self.net(self.images[places]), self.labels[places])
        (loss if scaler is None else scaler.scale(loss)).backward()
        self.number += 1
        return loss

    def step(self, times: int = 1) -> "Loop":
        for _ in range(times):
            self.rates.append([float(group["lr"]) for group in self.optimizer.param_groups])
            self.optimizer.zero_grad()
            loss = self.backward()
            self.optimizer.step()
            self.scheduler.step(loss)
        return self

    def state(self):
        """Through a file, as it comes back from `torch.load` in its safe mode."""
        file = io.BytesIO()
        states = [one.state_dict() for one in (self.net, self.optimizer, self.scheduler)]
        torch.save((states, self.number, self.rates), file)
        file.seek(0)
        return torch.load(file, weights_only=True)

    def go_on(self, saved, order=(0, 1, 2)) -> "Loop":
        states, self.number, self.rates = copy.deepcopy(saved)
        for place in order:
            (self.net, self.optimizer, self.scheduler)[place].load_state_dict(states[place])
        return self


def assert_same(one, other) -> None:
    """Nested states are equal bit for bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_same(one[name], other[name])
    else:
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


# --- the environment's learning rates -------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["torch", "native"])
@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "sgd", "momentum": 0.0},
        {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 1e-3, "loss_scale": 2.0},
        {"optimizer": "adamw", "momentum": 0.9, "weight_decay": 0.1, "classes": (3, 5, 8)},
    ],
    ids=lambda settings: f"{settings['optimizer']}-{settings['momentum']}",
)
def test_learning_rates_are_those_of_the_environment(settings, engine):
    """The same controller on the same task, weights and order of mini-batches, to 1e-6."""
    task = Task(network="mlp-16-16-tanh", batches_per_action=4, train_size=1000, **settings)
    controller = made(task.optimizer)
    env = gym.make("QanLR-Family-v0", task=task, engine=engine)
    observation, _ = env.reset(seed=3)
    act, wanted, seen, over = controller.player(1), [], [], False
    while not over:
        seen.append(observation)
        observation, _, terminated, over, info = env.step(act(observation[None])[0])
        assert not terminated
        wanted.append(info["learning_rate"])

    training = PlainTraining(task, int(env.unwrapped.training.run.seed[0]), "mnist5k")
    if task.optimizer == "sgd":
        optimizer = SGD(training.trained, lr=0.5, momentum=task.momentum, weight_decay=task.weight_decay)
    else:
        optimizer = AdamW(training.trained, lr=0.5, betas=(task.momentum, 0.999), weight_decay=task.weight_decay)
    facts = {"batch_size": task.batch_size, "dataset_size": 1000, "num_classes": len(task.classes)}
    scheduler = LearnedLR(optimizer, task.budget, controller=controller, loss_scale=task.loss_scale, **facts)
    rates = []
    for number in range(task.budget):
        rates += scheduler.get_last_lr()
        loss = training.gradient(number)
        optimizer.step()
        scheduler.step(loss)
    np.testing.assert_allclose(rates[3::4], wanted, rtol=1e-6)
    statistics = np.array([list(record["statistics"].values()) for record in scheduler.history])
    np.testing.assert_allclose(statistics, seen, atol=1e-5)
    assert max(wanted) > 1.1 * min(wanted[:5])  # the controller has done something


def expected_measurements(gradients, weights, moved):
    """By the definition, in float64.

    Args:
        gradients: the last one before the action, and those of the action; zeros where there is none.
        weights: before, between and after the updates of the action.
        moved: what the action before has moved the weights by.
    """

    def norm(vector):
        return np.sqrt(vector @ vector)

    def cosine(one, other):
        return one @ other / (norm(one) * norm(other)) if norm(one) * norm(other) > 0 else 0.0

    updates = [after - before for before, after in pairwise(weights)]
    return {
        "gradient_norm": np.mean([norm(one) for one in gradients[1:]]),
        "gradient_cosine": np.mean([cosine(*pair) for pair in pairwise(gradients)]),
        "update_norm": np.mean([norm(one) for one in updates]),
        "predicted_decrease": -np.mean([g @ u for g, u in zip(gradients[1:], updates, strict=True)]),
        "displacement": norm(weights[-1] - weights[0]),
        "displacement_cosine": cosine(weights[-1] - weights[0], moved),
        "weight_norm": norm(weights[-1]),
    }


@pytest.mark.parametrize("most", [10**6, 20])
def test_updates_are_measured_as_defined(monkeypatch, most):
    """Of all weights, and of every k-th; over three actions, with a parameter without a gradient."""
    monkeypatch.setattr(measurements, "MOST", most)
    torch.manual_seed(1)
    params = [nn.Parameter(torch.randn(*shape)) for shape in ((4, 3), (5,), (2, 3, 4), (7,))]
    params[2].data = torch.randn(4, 2, 3).permute(1, 2, 0)  # another order in memory
    frozen = nn.Parameter(torch.randn(9), requires_grad=False)
    optimizer = AdamW([*params[:1], frozen, *params[1:]], lr=0.1)
    meter = UpdateMeter(optimizer)
    k = 1 if most == 10**6 else 3  # of 48 weights
    assert meter.step == k

    def vector(tensors):
        flat = [torch.zeros_like(p) if one is None else one for p, one in zip(params, tensors, strict=True)]
        flat[2] = flat[2].permute(2, 0, 1)
        return np.sqrt(k) * torch.cat([one.detach().reshape(-1) for one in flat])[::k].double().numpy()

    gradient = moved = vector([None] * 4)
    for count in (3, 1, 4):
        meter.begin_action(5)
        gradients, weights, losses = [gradient], [vector(params)], []
        for number in range(count):
            for one in params[:3]:
                one.grad = torch.randn(one.shape)
            optimizer.step()
            losses.append(float(number))
            meter.add_loss(losses[-1], 1)
            gradients.append(vector([one.grad for one in params]))
            weights.append(vector(params))
        found = meter.end_action()
        assert found.losses.tolist() == losses
        wanted = expected_measurements(gradients, weights, moved)
        np.testing.assert_allclose(found.measured, [wanted[name] for name in MEASURED], rtol=1e-4, atol=1e-6)
        gradient, moved = gradients[-1], weights[-1] - weights[0]
    assert (found.measured != 0).all()


# --- what counts as an update ---------------------------------------------------------------------------------------


def test_it_is_a_scheduler_of_pytorch():
    """With its attributes; decisions at the ends of 25 equal parts, and the linear base schedule between them."""
    loop = Loop()
    scheduler = loop.scheduler
    assert isinstance(scheduler, LRScheduler)
    assert len(scheduler.history) == 1
    loop.step(STEPS)
    assert [record["step"] for record in scheduler.history] == [-(-number * STEPS // 25) for number in range(25)]
    assert scheduler.last_epoch == STEPS
    rates = np.array(loop.rates)[:, 0]
    chosen = rates / (1 - np.arange(STEPS) / STEPS)
    for begin, end in pairwise([*(record["step"] for record in scheduler.history), STEPS]):
        np.testing.assert_allclose(chosen[begin:end], chosen[begin])
    assert len(set(chosen.round(9))) == 25
    assert scheduler.get_last_lr() == [rates[-1]]
    assert f"of {scheduler.total_steps} updates, learning rate {rates[-1]:.3g}" in repr(scheduler)


def test_accumulated_mini_batches_are_one_update():
    """Whether `step` is called after each of them, or once with their mean."""
    loops = Loop(), Loop()
    for loop, each in zip(loops, (True, False), strict=True):
        for _ in range(STEPS):
            loop.rates.append([loop.optimizer.param_groups[0]["lr"]])
            loop.optimizer.zero_grad()
            losses = [loop.backward().detach()]
            if each:
                loop.scheduler.step(losses[0])
            losses.append(loop.backward().detach())
            loop.optimizer.step()
            loop.scheduler.step(losses[1] if each else sum(losses) / 2)
    assert loops[0].scheduler.last_epoch == STEPS
    np.testing.assert_allclose(loops[0].rates, loops[1].rates, rtol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_an_update_that_the_gradient_scaler_skips_does_not_count(fused):
    """Also where the optimizer skips it itself; the learning rates are those of a training without the scaler."""

    def play(scaled):
        loop = Loop(lambda params: AdamW(params, lr=0.1, fused=fused))
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000, enabled=scaled)
        for number in range(STEPS + 5):
            loop.rates.append([loop.optimizer.param_groups[0]["lr"]])
            loop.optimizer.zero_grad()
            skipped = number % 13 == 4
            if skipped and not scaled:
                loop.rates.pop()
                continue
            loss = loop.backward(scaler)
            if skipped:
                loop.net[0].weight.grad[0, 0] = torch.inf
                loop.number -= 1
                loop.rates.pop()
            scaler.step(loop.optimizer)
            scaler.update()
            if not skipped:
                loop.scheduler.step(loss)
            else:
                before = loop.scheduler.get_last_lr()
                loop.scheduler.step()
                assert loop.scheduler.get_last_lr() == before
        return loop

    one, other = play(True), play(False)
    assert one.scheduler.last_epoch == STEPS
    np.testing.assert_allclose(one.rates, other.rates, rtol=1e-5)


def test_a_closure_that_computes_the_gradients_is_measured():
    """As Lightning does it."""

    def play(closure):
        loop = Loop()
        for _ in range(20):
            loop.optimizer.zero_grad()
            losses = []
            if closure:
                loop.optimizer.step(lambda losses=losses, loop=loop: losses.append(loop.backward()) or losses[0])
            else:
                losses.append(loop.backward())
                loop.optimizer.step()
            loop.scheduler.step(losses[0])
        return loop.scheduler.history

    assert play(True) == play(False)


def test_updates_between_two_calls_all_count(caplog):
    """And it is said that the calls are too few."""
    loop = Loop()
    for _ in range(STEPS // 4):
        for _ in range(4):
            loop.optimizer.zero_grad()
            loss = loop.backward()
            loop.optimizer.step()
        loop.scheduler.step(loss)
    assert loop.scheduler.last_epoch == STEPS
    assert caplog.text.count("updates were made since the last") == 1


def test_every_group_keeps_its_ratio_and_tensors_are_changed_in_place():
    """Also a group that is added on the way."""
    weights = [nn.Parameter(torch.randn(4)) for _ in range(3)]
    rate = torch.tensor(0.1)
    optimizer = SGD([{"params": weights[:1], "lr": rate}, {"params": weights[1:2], "lr": 0.02}], lr=0.1)
    scheduler = LearnedLR(optimizer, 50, controller=made(), **FACTS)
    for number in range(50):
        first, *others = (float(group["lr"]) for group in optimizer.param_groups)
        assert others == pytest.approx([0.2 * first, 3 * first][: len(others)], rel=1e-6)
        if number == 20:  # it begins with its own learning rate, as with every scheduler
            optimizer.add_param_group({"params": weights[2:], "lr": 0.3})
        loss = sum((one**2).sum() for one in weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step(loss)
    assert optimizer.param_groups[0]["lr"] is rate
    assert scheduler.meter.memory.shape[1] == 12


def test_a_compiled_step_is_not_compiled_again():
    """With a learning rate that is a tensor; the measurements go on as they do without a compiler."""

    def play(compiled):
        counter = CompileCounter()
        loop = Loop(lambda params: SGD(params, lr=torch.tensor(0.1), momentum=0.9))
        step = torch.compile(loop.optimizer.step, backend=counter) if compiled else loop.optimizer.step
        frames = []
        for _ in range(20):
            loop.optimizer.zero_grad()
            loss = loop.backward()
            step()
            loop.scheduler.step(loss)
            frames.append(counter.frame_count)
        return loop, frames

    loop, frames = play(True)
    assert frames[-1] == frames[2]
    for one, other in zip(loop.scheduler.history, play(False)[0].scheduler.history, strict=True):
        assert one["statistics"] == pytest.approx(other["statistics"], abs=1e-4)


# --- states ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [0, 1, 7, 24, 59, 60])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_a_state_goes_on_bit_for_bit(stop, order):
    """From within an action, whichever of model, optimizer and scheduler is loaded first."""
    whole = Loop(warmup_steps=9).step(STEPS + 3)
    saved = Loop(warmup_steps=9).step(stop).state()
    other = Loop(total_steps=2 * STEPS, controller=made("sgd", ("momentum",))).go_on(saved, order)
    other.step(STEPS + 3 - stop)
    assert other.rates == whole.rates
    assert other.scheduler.history == whole.scheduler.history


def test_a_scheduler_that_is_built_on_a_loaded_optimizer_goes_on(tmp_path):
    """The learning rate in the optimizer is that of the state at once, not only after the next update."""
    whole = Loop().step(STEPS)
    states, number, rates = Loop().step(31).state()
    loop = Loop()
    loop.net.load_state_dict(states[0])
    loop.optimizer.load_state_dict(states[1])
    loop.scheduler = LearnedLR(loop.optimizer, 100, controller=made(), **FACTS)
    loop.scheduler.load_state_dict(states[2])
    loop.number, loop.rates = number, rates
    assert loop.step(STEPS - 31).rates == whole.rates


def test_a_state_is_a_copy_that_has_the_losses_that_wait():
    """Between two mini-batches that accumulate; and nothing changes it later."""

    def accumulate(loop, count):
        for _ in range(count):
            loop.rates.append([loop.optimizer.param_groups[0]["lr"]])
            loss = loop.backward()
            if loop.number % 2 == 0:
                loop.optimizer.step()
                loop.optimizer.zero_grad()
            loop.scheduler.step(loss)
        return loop

    whole = accumulate(Loop(), 80)
    half = accumulate(Loop(), 41)
    gradients = [one.grad.clone() for one in half.net.parameters()]
    saved = half.state()
    live = half.scheduler.state_dict()
    accumulate(half, 10)
    assert_same(live, saved[0][2])
    other = Loop().go_on(saved)
    for one, gradient in zip(other.net.parameters(), gradients, strict=True):
        one.grad = gradient
    assert accumulate(other, 39).rates == whole.rates
    json.dumps(saved[0][2]["history"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.update(format="other"), "another version"),
        (lambda state: state.pop("meter"), "damaged"),
        (lambda state: state["settings"].update(total_steps=3), "total_steps"),
        (lambda state: state["base_lrs"].append(1.0), "2 parameter groups"),
        (lambda state: state["meter"].update(gradient=torch.zeros(3)), "another size"),
        (lambda state: state["decisions"]["run"].pop("fast_loss"), "fast_loss"),
        (lambda state: state.clear(), "not a state"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(change, message):
    """Which is damaged, or of another model."""
    saved, loop = Loop().step(17).state(), Loop().step(5)
    before = loop.scheduler.state_dict()
    change(saved[0][2])
    with pytest.raises(ValueError, match=message):
        loop.scheduler.load_state_dict(saved[0][2])
    assert_same(loop.scheduler.state_dict(), before)


# --- safety ---------------------------------------------------------------------------------------------------------


def test_the_number_of_steps_may_change_on_the_way():
    """Later decisions and the base schedule follow the new number."""
    loop = Loop().step(30)
    before = loop.scheduler.get_last_lr()[0]
    loop.scheduler.total_steps = 300
    assert loop.scheduler.get_last_lr()[0] == pytest.approx(before / 0.5 * 0.9)
    loop.step(270)
    steps = [record["step"] for record in loop.scheduler.history]
    assert steps[13:] == list(range(36, 300, 12))
    assert loop.scheduler.last_epoch == 300
    with pytest.raises(ValueError, match="total_steps"):
        loop.scheduler.total_steps = 24
    shorter = Loop().step(30)
    shorter.scheduler.total_steps = 25
    assert len({tuple(rate) for rate in shorter.step(5).rates[30:]}) == 1


def test_a_training_that_was_over_may_go_on():
    """What it sees at the next decision is of the updates since then, and nothing of those after the end."""
    loop = Loop().step(STEPS + 5)
    loop.scheduler.total_steps = 3 * STEPS
    decisions, losses = len(loop.scheduler.history), []
    while len(loop.scheduler.history) == decisions:
        loop.optimizer.zero_grad()
        losses.append(loop.backward())
        loop.optimizer.step()
        loop.scheduler.step(losses[-1])
    record = loop.scheduler.history[-1]
    assert record["loss"] == pytest.approx(float(torch.stack(losses).detach().mean()), rel=1e-5)
    assert np.isfinite(list(record["statistics"].values())).all()


def test_after_the_last_step_the_learning_rate_stays(caplog):
    """And it is said once."""
    loop = Loop().step(STEPS + 20)
    assert {rate for (rate,) in loop.rates[STEPS - 1 :]} == {loop.rates[STEPS - 1][0]}
    assert caplog.text.count("total_steps are done") == 1


def test_warm_up_and_bounds():
    """The warm-up multiplies, from the first update on; the bounds hold after it."""
    plain, warm = Loop().step(1), Loop(warmup_steps=10).step(12)
    assert warm.rates[0][0] == pytest.approx(plain.rates[0][0] / 10)
    bounded = Loop(min_lr=0.0004, max_lr=0.0006).step(STEPS)
    assert {0.0004, 0.0006} <= {rate for (rate,) in bounded.rates}
    assert all(0.0004 <= rate <= 0.0006 for (rate,) in bounded.rates)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), torch.tensor(float("nan")), np.float32("nan")])
def test_a_loss_that_is_not_finite_lowers_the_learning_rate_once_an_action(bad, caplog):
    """At once on a CPU; the training goes on."""
    loop = Loop(total_steps=250).step(3)
    before = loop.scheduler.get_last_lr()[0]
    for _ in range(4):
        loop.optimizer.zero_grad()
        loop.backward()
        loop.optimizer.step()
        loop.scheduler.step(bad)
        assert loop.scheduler.get_last_lr()[0] == pytest.approx(before / 12, rel=0.02)
    assert caplog.text.count("not finite") == 1
    loop.step(200)
    assert np.isfinite(loop.rates).all()


def test_weights_that_are_not_finite_raise_nothing():
    """Whatever it sees, the rates are numbers."""
    loop = Loop().step(10)
    with torch.no_grad():
        loop.net[0].weight.fill_(torch.nan)
    loop.step(STEPS)
    assert np.isfinite(loop.rates).all()
    assert all(np.isfinite(list(one["statistics"].values())).all() for one in loop.scheduler.history)


def test_what_is_unlike_meta_training_falls_back_to_a_schedule(caplog):
    """Of the optimizer's own learning rate, for the rest of the training; else the controller goes on."""
    controller = made()
    controller.weights["mean"][STATISTICS.index("log_loss_to_chance")] = 20.0  # before the first action it sees 0
    controller.weights["deviation"][:] = 3.0
    loop = Loop(fallback="cosine", controller=controller).step(STEPS)
    share = np.arange(STEPS) / STEPS
    np.testing.assert_allclose(np.array(loop.rates)[:, 0], 0.1 * (1 + np.cos(np.pi * share)) / 2)
    assert loop.scheduler.history[-1]["fallback"]
    assert loop.scheduler.history[-1]["outside"] == ["log_loss_to_chance"]
    assert caplog.text.count("log_loss_to_chance; the schedule 'cosine' goes on in its place") == 1
    caplog.clear()
    loop = Loop(controller=controller).step(STEPS)
    assert caplog.text.count("the controller goes on") == 1
    assert not loop.scheduler.history[-1]["fallback"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"total_steps": 24}, "total_steps must be an integer of at least 25"),
        ({"total_steps": 100.0}, "total_steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"num_classes": 1}, "num_classes"),
        ({"loss_scale": 0}, "loss_scale"),
        ({"min_lr": 2.0, "max_lr": 1.0}, "max_lr"),
        ({"fallback": "cosin"}, "fallback must be None or one of"),
        ({"controller": made("sgd", ("momentum", "log_validation_loss"))}, "log_validation_loss, which a training"),
        ({"controller": made("adamw")}, "meta-trained on adamw, and the optimizer is SGD"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    """When it is built, in words."""
    with pytest.raises(ValueError, match=message):
        Loop(**settings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda params: RMSprop(params, lr=0.1), "no controller comes with the package for RMSprop"),
        (lambda params: Adam(params, lr=0.1, weight_decay=0.1), "Adam with weight decay, which it adds"),
        (lambda params: SGD(params, lr=0.0), "must be above 0"),
        (lambda params: SGD(params, lr=0.1, maximize=True), "maximize"),
        (lambda params: SGD([one.requires_grad_(False) for one in params], lr=0.1), "no parameters"),
    ],
)
def test_wrong_optimizers_are_refused(make, message):
    """With what to do."""
    with pytest.raises(ValueError, match=message):
        Loop(make, controller=None)


def test_no_optimizer_and_no_log_are_refused():
    """By their types."""
    with pytest.raises(TypeError, match=r"must be a torch\.optim\.Optimizer, not a list"):
        LearnedLR([nn.Parameter(torch.zeros(1))], 100, **FACTS)
    with pytest.raises(TypeError, match="SummaryWriter"):
        Loop(log=3)


@pytest.mark.parametrize(
    ("make", "optimizer"),
    [
        (lambda params: SGD(params, lr=0.1, momentum=0.9, nesterov=True), "sgd"),
        (lambda params: AdamW(params, lr=0.1, weight_decay=0.1), "adamw"),
        (lambda params: Adam(params, lr=0.1), "adamw"),
    ],
)
def test_the_shipped_controller_of_the_optimizer_is_taken(make, optimizer):
    """By its class."""
    loop = Loop(make, controller=None).step(5)
    assert loop.scheduler.decisions.controller.settings.optimizers == (optimizer,)


def test_a_controller_of_ones_own(tmp_path):
    """From its file, also for an optimizer that nobody knows."""
    made().save(tmp_path / "mine.safetensors")
    net = nn.Linear(2, 2)
    scheduler = LearnedLR.from_file(tmp_path / "mine.safetensors", RMSprop(net.parameters(), lr=0.1), 100, **FACTS)
    assert scheduler.total_steps == 100
    with pytest.raises(FileNotFoundError, match="no such file"):
        LearnedLR.from_file(tmp_path / "none", RMSprop(net.parameters(), lr=0.1), 100, **FACTS)


def test_the_other_features_that_a_training_shows():
    """They are numbers that change."""
    loop = Loop(controller=made("sgd", SEEN)).step(STEPS)
    last = loop.scheduler.history[-1]["statistics"]
    assert last["budget_used"] == pytest.approx(58 / 60)
    assert last["log_learning_rate"] == pytest.approx(max(np.log(loop.rates[57][0]), -10))
    assert last["last_action"] == pytest.approx(loop.scheduler.history[-2]["action"])


def test_a_loss_is_needed_and_is_one_number():
    """The first call says so."""
    loop = Loop()
    with pytest.raises(ValueError, match=r"scheduler\.step\(loss\)"):
        loop.scheduler.step()
    with pytest.raises(ValueError, match="one number"):
        loop.scheduler.step(torch.zeros(3))
    loop.step(3)
    loop.backward()
    loop.optimizer.step()
    loop.scheduler.step()  # with the loss that it was given last
    assert loop.scheduler.last_epoch == 4


def test_it_is_no_part_of_composed_schedules():
    """It is told to take its own warm-up."""
    loop = Loop()
    with pytest.raises(ValueError, match="warmup_steps"):
        SequentialLR(loop.optimizer, [ConstantLR(loop.optimizer), loop.scheduler], milestones=[3])
    with pytest.raises(ValueError, match="warmup_steps"):
        SequentialLR(loop.optimizer, [loop.scheduler, ConstantLR(loop.optimizer)], milestones=[3])


def test_every_decision_is_logged(tmp_path, caplog):
    """To a callable, or to TensorBoard."""
    records = []
    loop = Loop(log=records.append).step(STEPS)
    assert records == loop.scheduler.history
    assert json.loads(json.dumps(records)) == records

    class Writer:
        def __init__(self):
            self.scalars = []

        def add_scalar(self, name, value, step):
            self.scalars.append((name, value, step))

    writer = Writer()
    Loop(log=writer).step(STEPS)
    assert ("LearnedLR/learning_rate", records[3]["learning_rate"], records[3]["step"]) in writer.scalars
    assert len({name for name, _, _ in writer.scalars}) == 4 + len(STATISTICS)
    assert not caplog.text


def test_the_picture_shows_what_it_did(tmp_path):
    """Learning rates, losses and actions, also before the first update."""
    loop = Loop()
    loop.scheduler.plot().savefig(tmp_path / "begin.png")
    figure = loop.step(STEPS).scheduler.plot()
    figure.savefig(tmp_path / "end.png")
    drawn = dict(zip(*figure.axes[0].lines[0].get_data(), strict=False))
    assert all(drawn[step] == pytest.approx(loop.rates[int(step)][0]) for step in drawn)
    assert len(figure.axes[1].lines[0].get_xdata()) == 24


def test_hooks_do_not_keep_a_scheduler_alive():
    """One that nobody has any more measures nothing."""
    import gc
    import weakref

    loop = Loop().step(2)
    known = weakref.ref(loop.scheduler.meter)
    loop.scheduler = None
    gc.collect()
    assert known() is None
    loop.backward()
    loop.optimizer.step()


# --- imports --------------------------------------------------------------------------------------------------------

ALONE = """
import sys
for name in ("gymnasium", "torchvision", "stable_baselines3", "pandas", "pydantic", "matplotlib", "scipy", "tqdm",
             "array_api_compat", "filelock", "platformdirs", "typer", "rich", "jinja2"):
    sys.modules[name] = None
from qan_agents.controllers import LearnedLR
import torch
net = torch.nn.Linear(5, 3)
optimizer = torch.optim.AdamW(net.parameters())
scheduler = LearnedLR(optimizer, 50, batch_size=4, dataset_size=20, num_classes=3, fallback="one-cycle")
for _ in range(50):
    loss = torch.nn.functional.cross_entropy(net(torch.randn(4, 5)), torch.zeros(4, dtype=torch.int64))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step(loss)
print(len(scheduler.history), len(scheduler.state_dict()))
"""


def test_it_needs_torch_numpy_and_safetensors_alone():
    """A whole training where nothing else can be imported."""
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("25 ")


def test_the_plot_without_matplotlib_says_what_to_install(monkeypatch):
    network = torch.nn.Linear(2, 2)
    scheduler = LearnedLR(torch.optim.SGD(network.parameters(), 0.1), 50, batch_size=2, dataset_size=9, num_classes=2)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "qan_agents.controllers.learned_lr_plot", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"pip install .*render"):
        scheduler.plot()


def test_weights_that_moved_in_memory_are_measured_where_they_are():
    """The views of the weights are kept from update to update."""
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    meter = UpdateMeter(optimizer)
    meter.begin_action(5)
    for moved in (False, True, False):
        if moved:
            network.weight.data = network.weight.data.clone()
        before = network.weight.detach().clone()
        network.weight.grad, network.bias.grad = torch.randn(2, 3), torch.zeros(2)
        optimizer.step()
        meter.add_loss(1.0, 1)
        update = meter.products[meter.count - 1, 2]
        torch.testing.assert_close(update, (before - network.weight.detach()).square().sum())


# --- what is refused, and what is said -------------------------------------------------------------------------------


def test_a_state_of_another_optimizers_controller_is_refused():
    """Nothing has changed then."""
    there, here = Loop(AdamW), Loop().step(5)
    before = here.scheduler.get_last_lr()
    with pytest.raises(ValueError, match="meta-trained on adamw, and the optimizer is SGD"):
        here.scheduler.load_state_dict(there.scheduler.state_dict())
    assert here.scheduler.decisions.controller.settings.optimizers == ("sgd",)
    assert here.scheduler.get_last_lr() == before


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"batch_size": 401, "dataset_size": 400}, r"batch_size must be .* at most 400 \(dataset_size\)"),
        ({"dataset_size": "x"}, "^dataset_size must be an integer of at least 1, below 2.*, not 'x'$"),
        ({"warmup_steps": 51, "total_steps": 50}, r"warmup_steps must be .* at most 50 \(total_steps\)"),
    ],
)
def test_facts_that_cannot_be_are_refused(wrong, said):
    optimizer = torch.optim.SGD([torch.zeros(3, requires_grad=True)], lr=0.1)
    facts = {"total_steps": 50, "batch_size": 8, "dataset_size": 400, "num_classes": 3}
    with pytest.raises(ValueError, match=said):
        LearnedLR(optimizer, **(facts | wrong))


def test_an_optimizer_that_never_steps_is_said_once(caplog):
    """A scheduler that was built with another optimizer than the one that is stepped."""
    loop = Loop()
    for _ in range(250):
        loop.scheduler.step(1.0)
    assert caplog.text.count("100 calls of scheduler.step and no update") == 1


def test_losses_that_stay_not_finite_are_said_twice(caplog):
    """Once that the learning rate is lowered, and once that this may not help."""
    loop = Loop(total_steps=250)
    for _ in range(60):
        loop.optimizer.zero_grad()
        loop.backward()
        loop.optimizer.step()
        loop.scheduler.step(float("nan"))
    assert caplog.text.count("a loss is not finite: the learning rate is lowered") == 1
    assert caplog.text.count("a loss is not finite again") == 1
