"""The core with N > 1: every row is a run of its own. And its parts, with numbers worked out by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import made_network, made_npz, made_runs, start

from qan_gym.config import FILTER_REGRESSION, TaskConfig
from qan_gym.core.features import LIMIT, register_feature
from qan_gym.core.meta_momentum import Pull, filter_regression_pull
from qan_gym.core.observation import Observer
from qan_gym.core.reward import REWARDS, reward_terms, safe_log
from qan_gym.core.run_state import LOSS_LIMIT, RunState
from qan_gym.core.training import StepResult, Training
from qan_gym.optimizee.network import Network, evaluate
from qan_gym.optimizee.zoo import build_network
from qan_gym.tasks import TASKS
from qan_gym.utils.arrays import TORCH

SEEDS = [5, 2**62 + 1, 0]
NETWORK = build_network("mnist-cnn", (1, 28, 28), 10)
DEEP = build_network("resnet-8", (3, 32, 32), 10)

# Three networks side by side are one grouped convolution and one batched product, which add up in another order than
# the plain operations: single float32 roundings, a few hundred of them in a row.
CLOSE = {"rtol": 1e-3, "atol": 1e-4}


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    """80 training images, 10 of validation, 40 of test."""
    return made_npz(tmp_path_factory.mktemp("data") / "made.npz", n_test=40)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """As many images of 32x32 in colour."""
    return made_npz(tmp_path_factory.mktemp("data") / "photographs.npz", n_test=40, shape=(32, 32, 3))


@pytest.fixture
def games(npz, photographs):
    """One small game per kind: 16 mini-batches in 8 actions, over two epochs."""
    common = {"dataset": npz, "train_size": None, "batch_size": 10, "epochs": 2, "batches_per_action": 2}
    lr, minibatch = (replace(TASKS[f"Qan{kind}-MNIST5k-v1"], **common) for kind in ("LR", "Minibatch"))
    smaller = {"dataset": photographs, "train_size": 32, "batch_size": 4}
    deep = replace(TASKS["QanLR-CIFAR10-v0"], **common | smaller, network="resnet-8")
    return {
        "learning-rate": replace(lr, pull_epochs=1),
        "minibatch": replace(minibatch, pull_epochs=1),
        "continuous": replace(lr, continuous=True, reward="inverse-loss", meta_momentum=None, reference=None),
        "distilled": replace(lr, distillation=0.5, observation="filters", reward="accuracy"),
        "deep": replace(deep, pull_epochs=1),
    }


def some_reference(network: Network = NETWORK) -> dict[str, torch.Tensor]:
    return {name: value[0] for name, value in network.initial_params(torch.tensor([99])).items()}


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal, NaN too."""
    return np.array_equal(one.numpy(), other.numpy(), equal_nan=one.is_floating_point())


def reference_for(config: TaskConfig) -> dict[str, torch.Tensor] | None:
    network = {"mnist-cnn": NETWORK, "resnet-8": DEEP}[config.network]
    return None if config.reference is None else some_reference(network)


def random_actions(config: TaskConfig, count: int, runs: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if config.continuous:
        return torch.rand(count, runs, 1, generator=generator) * 2 - 1
    return torch.randint(0, 3 if config.game == "learning-rate" else 10, (count, runs), generator=generator)


def snapshot(training: Training) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in training.run.saved().items()}


# --- rows -----------------------------------------------------------------------------------------------------------


def assert_others_are_the_same(training: Training, witness: Training, others: list[int]) -> None:
    """Bit for bit in every tensor of the state: weights, running statistics, the optimizer's buffers."""
    mine, theirs = training.run.saved(), witness.run.saved()
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert same_bits(value[others], theirs[name][others]), name


@pytest.mark.parametrize("kind", ["learning-rate", "minibatch", "continuous", "distilled", "deep"])
def test_row_of_three_equals_the_run_alone(games, kind):
    """Three whole episodes together against three alone; the data, the learning rate and the clock exactly."""
    config = games[kind]
    together = start(config, SEEDS, reference_for(config))
    alone = [start(config, [seed], reference_for(config)) for seed in SEEDS]
    assert together.parts.budget == 16
    actions = random_actions(config, 8, 3)
    for number, action in enumerate(actions):
        many = together.step(action)
        assert np.isfinite(many.info["test_loss"]).all() == (number == 7)
        for row, single in enumerate(alone):
            one = single.step(action[row : row + 1])
            assert torch.equal(together.run.batch_indices[row], single.run.batch_indices[0])
            assert torch.equal(together.run.class_used[row], single.run.class_used[0])
            for name in ("terminated", "truncated"):
                assert getattr(many, name)[row] == getattr(one, name)[0]
            for name in ("learning_rate", "epoch", "batch", "diverged", "early_stopped"):
                assert np.array_equal(many.info[name][row], one.info[name][0]), name
            assert many.info.keys() == one.info.keys()
            # An accuracy can change by an image where two classes are within rounding of each other.
            loosely = {"validation_accuracy": 0.101, "test_accuracy": 0.026, "reward_accuracy": 0.101}
            for name, value in many.info.items():
                close = {"rtol": 1e-3, "atol": loosely.get(name, 1e-3), "equal_nan": True}
                torch.testing.assert_close(value[row], one_of(one, name), **close)
            torch.testing.assert_close(many.observation[row], one.observation[0], **CLOSE)
            if config.reward != "accuracy":
                torch.testing.assert_close(many.reward[row], one.reward[0], rtol=1e-2, atol=1e-3)
    for row, single in enumerate(alone):
        theirs = single.run.saved()
        for name, value in together.run.saved().items():
            if name.startswith(("params.", "slots.")):
                torch.testing.assert_close(value[row], theirs[name][0], **CLOSE)
    assert not torch.allclose(together.run.params["conv1.weight"][0], together.run.params["conv1.weight"][1], **CLOSE)


def one_of(result: StepResult, name: str) -> torch.Tensor:
    return result.info[name][0]


@pytest.mark.parametrize("kind", ["learning-rate", "minibatch", "deep"])
def test_reset_of_one_row_leaves_the_others_untouched(games, kind):
    """In the middle of an episode: bit for bit, in every tensor of the state; and afterwards all go on as if alone."""
    config = games[kind]
    actions = random_actions(config, 7, 3)
    together = start(config, SEEDS, reference_for(config))
    for action in actions[:3]:
        together.step(action)
    before = snapshot(together)
    together.reset(np.array([False, True, False]), np.array([-1, 33, -1]))
    after = snapshot(together)
    for name, value in before.items():
        assert same_bits(value[[0, 2]], after[name][[0, 2]]), name

    fresh = start(config, [33], reference_for(config))
    exactly = {"seed", "batch", "learning_rate", "last_action", "batch_indices", "by_class"}
    exactly |= {"game.recent_actions"} if kind == "minibatch" else set()
    assert exactly <= after.keys()
    for name, value in fresh.run.saved().items():
        if name in exactly or name.startswith(("params.", "slots.")):
            assert same_bits(after[name][1], value[0]), name

    witness = start(config, SEEDS, reference_for(config))
    for action in actions[:3]:
        witness.step(action)
    for action in actions[3:]:
        many, usual, one = together.step(action), witness.step(action), fresh.step(action[1:2])
        assert np.array_equal(many.observation[[0, 2]], usual.observation[[0, 2]])
        assert np.array_equal(many.reward[[0, 2]], usual.reward[[0, 2]])
        torch.testing.assert_close(many.observation[1], one.observation[0], **CLOSE)
        assert torch.equal(together.run.batch_indices[1], fresh.run.batch_indices[0])
    assert_others_are_the_same(together, witness, [0, 2])


def test_reset_depends_on_the_seed_and_nothing_else(games):
    """The same seed after two other episodes, in another row, begins with the same numbers."""
    training = start(games["learning-rate"], [1, 2], some_reference())
    for action in random_actions(games["learning-rate"], 3, 2):
        training.step(action)
    screen, info = training.reset(np.array([True, True]), np.array([7, 7]))
    fresh = start(games["learning-rate"], [7, 8], some_reference())
    assert np.array_equal(screen[0], screen[1])
    for name, value in training.run.params.items():
        assert torch.equal(value[0], fresh.run.params[name][0])
        assert not torch.equal(value[0], fresh.run.params[name][1])
    assert info["batch"].tolist() == [0, 0]


def test_the_callers_actions_are_left_alone(games):
    """A reset writes into the core's own tensors, not into the actions that were played last."""
    training = start(games["continuous"], SEEDS)
    actions = torch.tensor([[0.5], [-0.5], [0.25]])
    training.step(actions)
    training.reset(np.array([True, False, False]), np.array([9, 0, 0]))
    assert actions.tolist() == [[0.5], [-0.5], [0.25]]


def test_an_empty_reset_changes_nothing(games):
    training = start(games["minibatch"], SEEDS, some_reference())
    training.step(torch.tensor([1, 2, 3]))
    before = snapshot(training)
    training.reset(np.zeros(3, np.bool_), np.zeros(3, np.int64))
    assert all(same_bits(value, before[name]) for name, value in training.run.saved().items())


@pytest.mark.parametrize(
    ("kind", "weight"),
    [("learning-rate", "conv2.weight"), ("minibatch", "conv2.weight"), ("deep", "block2.conv1.weight")],
)
def test_a_row_that_diverges_ends_alone(games, kind, weight):
    """One row's weights are spoilt: it is terminated with finite numbers, the others are as without it."""
    config = games[kind]
    training, witness = (start(config, SEEDS, reference_for(config)) for _ in range(2))
    training.run.params[weight][1, 0, 0, 0, 0] = math.nan
    for number, action in enumerate(random_actions(config, 4, 3)):
        spoilt, usual = training.step(action), witness.step(action)
        assert spoilt.terminated.tolist() == [False, number == 0, False]  # and is over from then on
        assert spoilt.info["diverged"].tolist() == [False, True, False]
        assert not spoilt.truncated.any()
        assert spoilt.reward[1] == -10.0
        measured = {name: value for name, value in spoilt.info.items() if not name.startswith("test_")}
        for value in (spoilt.observation, spoilt.reward, *measured.values()):
            assert np.isfinite(value).all()
        assert np.isfinite(spoilt.info["test_loss"]).tolist() == [False, True, False]
        assert np.array_equal(spoilt.observation[[0, 2]], usual.observation[[0, 2]])
        assert np.array_equal(spoilt.reward[[0, 2]], usual.reward[[0, 2]])
    assert_others_are_the_same(training, witness, [0, 2])
    for some in (training, witness):
        some.reset(np.array([False, True, False]), np.array([0, 8, 0]))
    spoilt, usual = training.step(action), witness.step(action)
    assert np.array_equal(spoilt.observation, usual.observation)
    assert_others_are_the_same(training, witness, [0, 1, 2])  # nothing of what was spoilt is left


def test_target_reached_by_one_row_ends_that_row(games):
    """The row with the smallest smoothed loss wins; the others play on."""
    probe = start(games["learning-rate"], SEEDS, some_reference())
    probe.step(torch.tensor([2, 2, 2]))
    first, second, _ = probe.run.smoothed_loss.sort().values.tolist()
    config = replace(games["learning-rate"], target_loss=(first + second) / 2)
    training = start(config, SEEDS, some_reference())
    done = training.step(torch.tensor([2, 2, 2]))
    wanted = (training.run.smoothed_loss <= config.target_loss).tolist()
    assert sum(wanted) == 1
    assert done.terminated.tolist() == done.info["is_success"].tolist() == wanted
    assert not done.truncated.any()
    assert not done.info["diverged"].any()


def test_previous_reference_is_each_rows_own(npz):
    """Rows that end at different times keep their own last weights, and only those rows are pulled."""
    settings = {"dataset": npz, "batch_size": 10, "epochs": 1, "meta_momentum": 0.5, "reference": "previous"}
    training = start(replace(TaskConfig(), **settings), [1, 2])
    assert training.parts.budget == 8
    keep = torch.tensor([2, 2])
    for _ in range(4):
        training.step(keep)
    training.reset(np.array([False, True]), np.array([0, 3]))
    for _ in range(4):
        done = training.step(keep)
    assert done.truncated.tolist() == [True, False]
    assert training.run.has_reference.tolist() == [True, False]
    for name, value in training.run.params.items():
        assert torch.equal(training.reference[name][0], value[0])
    final = {name: value[0].clone() for name, value in training.run.params.items()}
    training.reset(np.array([True, False]), np.array([4, 0]))
    training.step(keep)
    alone = start(replace(TaskConfig(), **settings), [4])
    alone.step(keep[:1])
    for name, value in training.run.params.items():
        expected = alone.run.params[name][0]
        if name.endswith("weight"):
            expected = expected + 0.5 * (final[name] - expected)
        torch.testing.assert_close(value[0], expected, **CLOSE)


# --- evaluate -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 499, 500, 1203])
def test_evaluate_is_the_mean_over_all_images(count):
    """Cut into pieces that do not divide the count, N networks at once, against PyTorch's own functions."""
    generator = torch.Generator().manual_seed(count)
    images = torch.randn(count, 1, 32, 32, generator=generator)
    labels = torch.randint(0, 10, (count,), generator=generator)
    params = NETWORK.initial_params(torch.tensor([1, 2]))
    loss, accuracy = evaluate(NETWORK, params, zip(images.split(20), labels.split(20), strict=True))
    for row in range(2):
        logits = NETWORK.forward({name: value[row : row + 1] for name, value in params.items()}, images[None], False)[0]
        torch.testing.assert_close(loss[row], F.cross_entropy(logits, labels), rtol=1e-5, atol=1e-6)
        assert accuracy[row].item() == pytest.approx(
            (logits.argmax(1) == labels).float().mean().item(), abs=1.5 / count
        )
    assert loss.shape == accuracy.shape == (2,)


# --- meta-momentum --------------------------------------------------------------------------------------------------


def test_pull_has_its_own_strength_in_every_row():
    """w + c (w* - w) with w = 1, w* = 3: c = 0 leaves 1 exactly, 0.25 gives 1.5, 1 gives 3; other tensors stay."""
    network = replace(made_network(a=(2, 2), b=(4, 1)), shapes={"a.weight": (2, 2), "b.weight": (4, 1), "a.bias": (2,)})
    params = {name: torch.ones(3, *shape) for name, shape in network.shapes.items()}
    reference = {name: torch.full_like(value, 3.0) for name, value in params.items()}
    Pull(TaskConfig(), network, 1).apply(params, reference, torch.tensor([0.0, 0.25, 1.0]))
    for name in ("a.weight", "b.weight"):
        assert params[name].flatten(1).tolist() == [[1.0] * 4, [1.5] * 4, [3.0] * 4]
    assert (params["a.bias"] == 1).all()
    assert all((value == 3).all() for value in reference.values())


@pytest.mark.parametrize("count", [9, 25, 75])
def test_filter_regression_is_three_gradient_steps_on_the_mean_squared_error(count):
    generator = torch.Generator().manual_seed(count)
    start_at = torch.randn(count, generator=generator, dtype=torch.float64)
    reference = torch.randn(count, generator=generator, dtype=torch.float64)
    weights = start_at.clone().requires_grad_()
    for _ in range(3):
        (gradient,) = torch.autograd.grad(F.mse_loss(weights, reference), weights)
        weights = (weights - 0.01 * gradient).detach().requires_grad_()
    pull = filter_regression_pull(count)
    torch.testing.assert_close(weights.detach(), start_at + pull * (reference - start_at), rtol=1e-12, atol=1e-12)


def test_filter_regression_of_the_paper():
    assert filter_regression_pull(25) == pytest.approx(0.00239808051, abs=1e-10)


def test_what_is_pulled():
    weights = ["conv1.weight", "conv2.weight", "linear1.weight", "linear2.weight"]
    regression = filter_regression_pull(25)
    expected = [
        (TaskConfig(), 0.001, weights, 6 * 7),
        (TaskConfig(pull_epochs=None), 0.001, weights, 1000),
        (TaskConfig(meta_momentum=FILTER_REGRESSION), regression, ["conv1.weight"], 6 * 7),
        (TaskConfig(meta_momentum=FILTER_REGRESSION, pull_epochs=None), regression, ["conv1.weight"], 417),
        (TaskConfig(meta_momentum=None, pull_epochs=None), 0.0, [], 0),
        (TaskConfig(reference=None, pull_epochs=None), 0.0, [], 0),
    ]
    for config, strength, names, batches in expected:
        pull = Pull(config, NETWORK, batches_per_epoch=7)
        assert (pull.strength, pull.names, pull.batches) == (strength, names, batches)
    for config in (TaskConfig(meta_momentum=None), TaskConfig(reference=None)):
        assert (Pull(config, NETWORK, 7).strength, Pull(config, NETWORK, 7).names) == (0.0, [])


def test_pull_acts_in_its_epochs_only(games):
    """pull_epochs=1: with and without the pull, the first epoch's updates differ, the second's do not."""
    config = replace(games["learning-rate"], meta_momentum=1.0, batches_per_action=1)
    reference = some_reference()
    training = start(config, [1], reference)
    for number in range(10):
        training.step(torch.tensor([2]))
        pulled = torch.equal(training.run.params["conv1.weight"][0], reference["conv1.weight"])
        assert pulled == (number < 8)  # an epoch is 8 mini-batches


# --- observation ----------------------------------------------------------------------------------------------------


def runs_of(filters: list | torch.Tensor, **values: list) -> RunState:
    """Two runs in the first of four mini-batches, with filters (2, F, W); values: of the fields of their state."""
    filters = torch.as_tensor(filters, dtype=torch.float32)
    run = made_runs(2, network=made_network(shown=tuple(filters.shape[1:])))
    run.budget.fill_(4)
    run.params["shown.weight"].copy_(filters)
    defaults = {"learning_rate": [1, 1], "smoothed_loss": [1, 1], "smoothed_loss_before": [1, 1]}
    for name, value in {**defaults, **values}.items():
        getattr(run, name).copy_(torch.tensor(value))
    return run


def observer_of(run: RunState, **settings) -> Observer:
    return Observer(TaskConfig(**settings), run.layout.network)


def test_screen_by_hand():
    """Two runs of three filters of 8 weights, and the score line below them."""
    values = {"learning_rate": [math.exp(-3), math.exp(-2)], "clock": [1, 4], "last_action": [2.0, -1.0]}
    losses = {"smoothed_loss": [math.exp(0.5), 1.0], "smoothed_loss_before": [math.exp(0.625), 1.0]}
    run = runs_of(torch.arange(48).reshape(2, 3, 8) / 10, **values, **losses)
    observer = observer_of(run)
    assert observer.shape == (4, 8)
    screen = observer.observe(run)
    assert screen.shape == (2, *observer.space.shape)
    screen = screen.reshape(2, 4, 8)
    assert screen.dtype == torch.float32
    assert np.array_equal(screen[0, :3], torch.arange(24).reshape(3, 8) / 10)
    assert np.array_equal(screen[1, :3], torch.arange(24, 48).reshape(3, 8) / 10)
    expected = [[-3.0, 0.25, 0.5, -0.125, 2.0, 0.0, 0.0, 0.0], [-2.0, 1.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0]]
    torch.testing.assert_close(screen[:, 3], torch.tensor(expected), rtol=0, atol=1e-6)
    assert not screen[:, 3, 5:].any()
    assert torch.equal(observer_of(run, observation="filters").observe(run), screen[:, :3].flatten(1))


def test_screen_of_small_filters_is_padded_to_the_score_line():
    """The score line has seven places, of which five are used in every task."""
    run = runs_of(torch.ones(2, 2, 3), learning_rate=[math.e, math.e], clock=[4, 4], last_action=[2, 2])
    screen = observer_of(run).observe(run)
    torch.testing.assert_close(screen[0, 14:], torch.tensor([1.0, 1, 0, 0, 2, 0, 0]), rtol=0, atol=1e-6)
    assert screen[:, :14].tolist() == [[1, 1, 1, 0, 0, 0, 0] * 2] * 2


def test_screen_is_finite_and_bounded(registries):
    """Weights and every number of the score line: not a number is 0, the rest is kept within the limit."""
    nan, inf = math.nan, math.inf
    losses = {"smoothed_loss": [inf, 1.0], "smoothed_loss_before": [1.0, 0.0]}
    run = runs_of([[[nan, inf, -inf, 11.0, -11.0]]] * 2, learning_rate=[nan, 0.0], last_action=[12, 1], **losses)
    screen = observer_of(run).observe(run)
    assert screen[0].tolist() == [0, 10, -10, 10, -10, 0, 0, 0, 0, 10, 10, 10, 0, 0]
    assert screen[1].tolist() == [0, 10, -10, 10, -10, 0, 0, -10, 0, 0, 10, 1, 0, 0]
    for name, value in {"not_a_number": nan, "least": -inf, "largest": inf, "large": 12.0, "one": 1.0}.items():
        register_feature(name, lambda run, value=value: torch.full_like(run.loss, value))
    screen = observer_of(run, observation=["not_a_number", "least", "largest", "large", "one"]).observe(run)
    assert screen.tolist() == [[0, -LIMIT, LIMIT, LIMIT, 1]] * 2


def test_screen_shape():
    assert Observer(TaskConfig(observation="screen"), NETWORK).shape == (33, 25)
    assert Observer(TaskConfig(observation="filters"), NETWORK).shape == (32, 25)


def test_score_line_of_a_step(games):
    """The score line of the core equals its infos."""
    training = start(games["learning-rate"], [1, 2], some_reference())
    before = training.run.smoothed_loss.clone()
    done = training.step(torch.tensor([0, 1]))
    rows, columns = training.parts.observer.shape
    line = done.observation.reshape(2, rows, columns)[:, -1]
    after = torch.from_numpy(done.info["smoothed_loss"])
    expected = [
        torch.tensor([math.log(0.055), math.log(0.045)]),
        torch.tensor([2 / 16, 2 / 16]),
        after.log(),
        after.log() - before.log(),
        torch.tensor([0.0, 1.0]),
    ]
    torch.testing.assert_close(torch.from_numpy(line[:, :5]), torch.stack(expected, dim=1), rtol=1e-5, atol=1e-6)
    assert (line[:, 5:] == 0).all()


# --- reward ---------------------------------------------------------------------------------------------------------


def measured(**changes: list) -> RunState:
    """The state of two runs, the second over."""
    values = {
        "loss": [0.5001, 0.0001],
        "loss_scale": [1.0, 1.0],
        "smoothed_loss_before": [2.0, 1.0],
        "smoothed_loss": [1.0, 0.5],
        "validation_loss_before": [4.0, 0.5],
        "validation_loss": [3.0, 0.25],
        "validation_accuracy": [0.5, 0.75],
        "ended": [False, True],
    }
    run = made_runs(2)
    for name, value in (values | changes).items():
        getattr(run, name).copy_(torch.tensor(value))
    return run


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("log-loss", [math.log(2), math.log(4)]),  # at the end, down to the validation loss
        ("validation-loss", [math.log(4 / 3), math.log(2)]),
        ("inverse-loss", [2.0, 1e4]),
        ("accuracy", [0.0, 0.75]),
    ],
)
def test_rewards_by_hand(name, expected):
    assert REWARDS[name](measured()).tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("loss", "expected"), [(0.0, 1e4), (1e-4, 1e4), (1.5e-4, 1e4), (3e-4, 5e3), (1e6, 1e-6)])
def test_inverse_loss_is_finite_and_falls_with_the_loss(loss, expected):
    """The original's reward turned negative near its final loss; this one is at most 1e4 and never below 0."""
    reward = REWARDS["inverse-loss"](measured(loss=[loss, 1.0]))[0].item()
    assert reward == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("name", list(REWARDS))
def test_rewards_at_the_limits_are_finite(name):
    limits = {"loss": [0.0, LOSS_LIMIT], "smoothed_loss_before": [LOSS_LIMIT, 0.0], "smoothed_loss": [0.0, LOSS_LIMIT]}
    limits |= {"validation_loss": [0.0, LOSS_LIMIT], "validation_accuracy": [0.0, 1.0]}
    assert REWARDS[name](measured(**limits)).isfinite().all()


@pytest.mark.parametrize("name", list(REWARDS))
def test_divergence_pays_the_penalty_whatever_was_measured(name):
    """Not a number in the diverged row stays out of the reward, and out of the other row."""
    nan = {field: [1.0, math.nan] for field in ("loss", "smoothed_loss", "validation_loss", "validation_accuracy")}
    terms = reward_terms(name, 10.0, measured(**nan, diverged=[False, True]))
    term = "reward_" + name.replace("-", "_")
    assert list(terms) == [term, "reward_divergence"]
    assert terms["reward_divergence"].tolist() == [0.0, -10.0]
    assert terms[term][1] == 0
    assert terms[term][0].isfinite()


def test_safe_log():
    found = safe_log(TORCH, torch.tensor([0.0, 1e-30, 1.0, math.e]))
    assert found.tolist() == pytest.approx([math.log(1e-10), math.log(1e-10), 0.0, 1.0], abs=1e-6)
