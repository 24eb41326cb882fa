"""The observation "statistics": each feature against a slow float64 training of one network; rows; states; scales."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import TINY, load_script, made_deep_game, play, small_data, start

import qan_gym
from qan_gym.core import measurements, statistics, torch_engine
from qan_gym.core.features import FEATURES, LIMIT
from qan_gym.core.run_state import TensorSpec
from qan_gym.core.statistics import MEASURED, STATISTICS
from qan_gym.core.training import Training
from qan_gym.native import library
from qan_gym.optimizee.zoo import NETWORKS, build_network
from qan_gym.tasks import make_task_config

LR, MINIBATCH = "QanLR-MNIST5k-v1", "QanMinibatch-MNIST5k-v1"
needs_library = pytest.mark.skipif(isinstance(library.find(), str), reason="the kernels are not compiled")

# 200 images: an epoch of 20 mini-batches, which ends within an action of three.
BASE = {**TINY, "dataset": small_data(), "action_scale": "multiplicative", "observation": "statistics", "epochs": 2}
OPTIMIZERS = {
    "sgd": {},
    "decayed": {"weight_decay": 0.01},
    "momentum": {"momentum": 0.9, "weight_decay": 1e-3},
    "nesterov": {"momentum": 0.8, "nesterov": True},
    "adamw": {"optimizer": "adamw", "learning_rate": 3e-3, "weight_decay": 0.1},
}
PULL = {"reference": "pretrained", "meta_momentum": 0.05, "pull_epochs": 1}


def small_mlp() -> str:
    """A name of a multilayer perceptron; skips where there is none."""
    for name in (*(name for name in NETWORKS if name.startswith("mlp")), "mlp-16"):
        try:
            build_network(name, (1, 28, 28), 10)
        except ValueError:
            continue
        return name
    return pytest.skip("there is no multilayer perceptron")


# --- the oracle -----------------------------------------------------------------------------------------------------


class Oracle:
    """One training in float64, with PyTorch's optimizers, and every statistic from its definition, in plain numbers."""

    def __init__(self, training: Training) -> None:
        """At the beginning of the episode of a single run."""
        self.training, self.config, self.network = training, training.config, training.network
        params = {name: value[0].double().clone() for name, value in training.run.params.items()}
        self.params = params | {name: params[name].requires_grad_() for name in self.network.trained}
        self.optimizer = self.make_optimizer([self.params[name] for name in self.network.trained])
        self.reference = training.reference and {n: v[0].double() for n, v in training.reference.items()}
        self.classes, self.done = training.parts.n_classes, 0
        self.chance = self.config.loss_scale * math.log(self.classes)
        self.rates = [float(training.run.chosen_learning_rate[0])]
        self.previous_gradient = self.previous_displacement = None
        self.slow_losses, self.fast_losses, self.gradient_norms, self.weight_norms = [], [], [], []
        self.first_loss = self.found = None

    def make_optimizer(self, params: list[torch.Tensor]) -> torch.optim.Optimizer:
        config = self.config
        if config.optimizer == "adamw":
            return torch.optim.AdamW(params, 1.0, (config.momentum, 0.999), weight_decay=config.weight_decay)
        return torch.optim.SGD(params, 1.0, config.momentum, weight_decay=config.weight_decay, nesterov=config.nesterov)

    def vector(self, values: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([values[name].detach().flatten() for name in self.network.trained])

    def learn(self, indices: torch.Tensor, rate: float) -> tuple[float, torch.Tensor, torch.Tensor]:
        """A mini-batch: loss, gradient, update; then the pull."""
        config, data = self.config, self.training.data
        images, labels = data.normalise(data.images["train"][indices]).double(), data.labels["train"][indices]
        logits = self.network.forward({n: v[None] for n, v in self.params.items()}, images[None], True)[0]
        loss = F.cross_entropy(logits, labels) * config.loss_scale
        self.optimizer.zero_grad()
        loss.backward()
        gradient = self.vector({name: self.params[name].grad for name in self.network.trained})
        before = self.vector(self.params)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        update = self.vector(self.params) - before
        if self.reference and self.done < self.training.pull.batches:
            with torch.no_grad():
                for name in self.training.pull.names:
                    self.params[name] += self.training.pull.strength * (self.reference[name] - self.params[name])
        self.done += 1
        return float(loss.detach()), gradient, update

    def act(self, indices: torch.Tensor, rates: list[float], chosen: float) -> None:
        """An action: mini-batches (m, B), the learning rate of each, and the one before the base schedule."""
        began = self.vector(self.params)
        losses, gradients, cosines, updates, decreases = [], [], [], [], []
        for batch, rate in zip(indices, rates, strict=True):
            loss, gradient, update = self.learn(batch, rate)
            losses.append(loss)
            gradients.append(float(gradient.norm()))
            cosines.append(cosine(gradient, self.previous_gradient))
            updates.append(float(update.norm()))
            decreases.append(-float(gradient @ update))
            self.previous_gradient = gradient
        ended = self.vector(self.params)
        displacement = ended - began
        self.found = {
            "gradient_norm": mean(gradients),
            "gradient_cosine": mean(cosines),
            "update_norm": mean(updates),
            "predicted_decrease": mean(decreases),
            "displacement": float(displacement.norm()),
            "displacement_cosine": cosine(displacement, self.previous_displacement),
            "weight_norm": float(ended.norm()),
        }
        self.losses, self.previous_displacement = losses, displacement
        self.first_loss = losses[0] if self.first_loss is None else self.first_loss
        self.rates.append(chosen)
        loss, actions = mean(losses), len(self.rates) - 1
        fast = loss if actions == 1 else (self.fast_losses[-1] + loss) / 2
        share = max(0.15, 1 / actions)
        slow = loss if actions == 1 else (1 - share) * self.slow_losses[-1] + share * loss
        self.fast_losses.append(fast)
        self.slow_losses.append(slow)
        self.gradient_norms.append(self.found["gradient_norm"])
        self.weight_norms.append(self.found["weight_norm"])

    def features(self) -> dict[str, float]:
        config, budget = self.config, self.training.parts.budget
        train_size = len(self.training.data.labels["train"])
        values = {
            "budget_share": 2 * self.done / budget - 1,
            "momentum": config.momentum,
            "log_budget": math.log(budget / 300),
            "log_batch_size": math.log(config.batch_size / 12),
            "log_epochs": math.log(budget * config.batch_size / train_size) / 2,
            "log_classes": math.log(self.classes / 5),
        }
        if config.validate_every is not None:
            loss = float(self.training.run.validation_loss[0])
            values["log_validation_to_chance"] = math.log(loss / math.log(self.classes))
        if self.found is None:
            return dict.fromkeys(STATISTICS, 0.0) | values
        m, losses, found = len(self.losses), self.losses, self.found
        fast, slow = self.fast_losses[-1], self.slow_losses[-1]
        half = m // 2
        slope = 3 * (mean(losses[m - half :]) - mean(losses[:half])) / mean(losses) if half else 0.0
        decrease = found["predicted_decrease"]
        values |= {
            "log_rate_from_start": math.log(self.rates[-1] / self.rates[0]) / 2,
            "last_change": math.log(self.rates[-1] / self.rates[-2]),
            "log_loss_to_chance": math.log(fast / self.chance),
            "log_loss_to_first": math.log(fast / self.first_loss) / 2,
            "log_loss_fast_to_slow": 2 * math.log(fast / slow),
            "log_loss_slow_change": 3 * math.log(slow / self.slow_losses[-2]) if len(self.slow_losses) > 1 else 0.0,
            "log_loss_to_best": 2 * math.log(fast / min(self.fast_losses)),
            "loss_slope": slope,
            "loss_variation": 2 * float(np.std(losses)) / mean(losses),
            "log_gradient_to_first": 0.7 * math.log(self.gradient_norms[-1] / self.gradient_norms[0]),
            "log_gradient_change": (
                math.log(self.gradient_norms[-1] / self.gradient_norms[-2]) if len(self.gradient_norms) > 1 else 0.0
            ),
            "straightness": 2 * found["displacement"] / (m * found["update_norm"]),
            "displacement_cosine": 2 * found["displacement_cosine"],
            "gradient_cosine": 2 * found["gradient_cosine"],
            "log_update_to_weight": (math.log(found["update_norm"] / found["weight_norm"]) + 5) / 2,
            "log_weight_to_first": math.log(self.weight_norms[-1] / self.weight_norms[0]),
            "log_predicted_decrease": (math.log(decrease / fast) + 3) / 2 if decrease > 0 else -LIMIT,
        }
        return {name: min(max(value, -LIMIT), LIMIT) for name, value in values.items()}


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def cosine(one: torch.Tensor, other: torch.Tensor | None) -> float:
    return 0.0 if other is None else float(one @ other / (one.norm() * other.norm()))


def compare(env_id: str, actions: int = 8, tolerance: float = 2e-3, **arguments: object) -> np.ndarray:
    """An episode's first actions beside the oracle; returns the observations."""
    env = gym.make(env_id, **BASE | arguments).unwrapped
    training = env.training
    names = [*STATISTICS, "log_validation_to_chance"][: env.observation_space.shape[0]]
    rng = np.random.default_rng(5)
    observation, info = env.reset(seed=3)
    oracle = Oracle(training)
    observations = [observation]
    for number in range(actions + 1):
        expected = oracle.features()
        assert expected.keys() == set(names)
        np.testing.assert_allclose(
            observation,
            [expected[name] for name in names],
            rtol=tolerance,
            atol=tolerance,
            err_msg=f"after {number} actions: {names}",
        )
        if oracle.found is not None:
            found = dict(zip(MEASURED, training.run.measured[0].tolist(), strict=True))
            np.testing.assert_allclose(
                list(found.values()), [oracle.found[name] for name in found], tolerance, tolerance / 10
            )
        observation, _, terminated, truncated, info = env.step(int(rng.integers(3)))
        assert not terminated
        assert not truncated
        observations.append(observation)
        chosen = float(training.run.chosen_learning_rate[0])
        rates = [info["learning_rate"] if training.config.batches_per_action == 1 else chosen]
        oracle.act(training.run.batch_indices[0], rates * training.config.batches_per_action, chosen)
    return np.array(observations)


ENGINES = [pytest.param("native", marks=needs_library), "torch"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("m", [1, 3])
def test_features_are_those_of_a_slow_training(m, optimizer, engine):
    seen = compare(LR, engine=engine, batches_per_action=m, **OPTIMIZERS[optimizer])
    moving = [name for name, values in zip(STATISTICS, seen.T, strict=True) if len(set(values.tolist())) > 2]
    still = {"momentum", "log_budget", "log_batch_size", "log_epochs", "log_classes"}
    still |= {"loss_slope", "loss_variation"} if m == 1 else set()
    assert set(STATISTICS) - set(moving) - {"straightness", "log_loss_to_best"} == still


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "arguments",
    [
        {**PULL, "momentum": 0.9},
        {**PULL, "batches_per_action": 4, "meta_momentum": "filter-regression"},
        {**PULL, "meta_momentum": 0.7, "batches_per_action": 2},
        {"validate_every": 4, "batches_per_action": 2},
        {"loss_scale": 7.0, "batches_per_action": 2, "learning_rate": 0.01, "weight_decay": 0.01},
        {"schedule": "linear"},
        {"batch_size": 37, "epochs": 3},
    ],
    ids=str,
)
def test_features_with_pull_validation_loss_scale_and_schedule(arguments, engine, reference_file):
    if "reference" in arguments:
        arguments = arguments | {"reference": reference_file}
    compare(LR, engine=engine, **arguments)


@pytest.mark.parametrize(
    "optimizer", ["sgd", *(pytest.param(name, marks=pytest.mark.slow) for name in ("momentum", "nesterov", "adamw"))]
)
def test_features_of_a_network_with_batch_norm(optimizer, tmp_path):
    """Its running statistics are not measured. In float32 its training departs from that in float64 the soonest."""
    game = made_deep_game(tmp_path) | {"reference": None, "augment": None, "momentum": 0.0, "learning_rate": 0.02}
    compare("QanLR-CIFAR10-v0", 3, 0.01, **game | {"batches_per_action": 2} | OPTIMIZERS[optimizer])


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "nesterov", "adamw"])
def test_features_of_a_multilayer_perceptron(optimizer):
    compare(LR, network=small_mlp(), batches_per_action=2, **OPTIMIZERS[optimizer])


@pytest.mark.parametrize("engine", ENGINES)
def test_features_of_another_game(engine):
    """Mini-batches that actions choose, which the engine is given one by one."""
    compare(MINIBATCH, engine=engine, batches_per_action=2, momentum=0.9)


# --- a part of the parameters ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("most", [5_000, 77_000])
def test_large_networks_are_measured_in_part(most, monkeypatch, tmp_path):
    """Every k-th trained parameter, in their order in memory, k odd; norms are those of all, but for the sampling."""
    game = made_deep_game(tmp_path) | {"reference": None, "augment": None}
    whole = compare("QanLR-CIFAR10-v0", 1, **game)
    network = build_network("resnet-8", (3, 32, 32), 10)
    places = network.places()
    at = torch.cat([torch.arange(places[name].start, places[name].stop) for name in network.trained])
    monkeypatch.setattr(measurements, "MOST", most)
    step = measurements.sampling_step(network)
    assert step % 2 == 1
    assert len(at) <= step * most
    assert step == 1 or len(at) > (step - 2) * most
    at = at[::step]

    def vector(self: Oracle, values: dict[str, torch.Tensor]) -> torch.Tensor:
        memory = torch.zeros(1, self.network.size(), dtype=torch.float64)
        views = self.network.views(memory)
        for name in self.network.trained:
            views[name][0] = values[name].detach()
        return math.sqrt(step) * memory[0, at]

    monkeypatch.setattr(Oracle, "vector", vector)
    part = compare("QanLR-CIFAR10-v0", 2, **game)
    np.testing.assert_allclose(part[:3], whole, atol=0.35)


# --- nothing where nothing asks ---------------------------------------------------------------------------------------


def measured_fields(training: Training) -> dict[str, object]:
    specs = {one.name: one.metadata.get("spec") for one in training.run.__dataclass_fields__.values()}
    names = [name for name, spec in specs.items() if isinstance(spec, TensorSpec) and spec.measured]
    return {name: getattr(training.run, name) for name in names}


@pytest.mark.parametrize(
    ("observation", "measures"),
    [
        ("screen", False),
        ("filters", False),
        (["log_loss", "log_budget", "budget_share", "log_validation_to_chance"], False),
        (["log_loss", "gradient_cosine"], True),
        ("statistics", True),
    ],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_measured_where_no_feature_asks(observation, measures, engine):
    env = gym.make(LR, **BASE | {"observation": observation, "engine": engine}).unwrapped
    found = measured_fields(env.training)
    assert {value is not None for value in found.values()} == {measures}
    assert any(name in env.training.run.saved() for name in found) == measures
    plain = gym.make(LR, **BASE | {"observation": "screen", "engine": engine}).unwrapped
    for one, other in zip(play(env, 3, 4), play(plain, 3, 4), strict=True):
        assert one[-1] == other[-1]
    assert torch.equal(env.training.run.memory, plain.training.run.memory), "measuring changes nothing"


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("strength", [0.01, 0.6])
@needs_library
def test_the_kernels_train_the_same_bits_where_they_measure(optimizer, strength, reference_file):
    arguments = BASE | OPTIMIZERS[optimizer] | {"reference": reference_file, "meta_momentum": strength}
    envs = [
        gym.make(LR, **arguments | {"observation": kind, "engine": "native"}).unwrapped
        for kind in ("statistics", "screen")
    ]
    for env in envs:
        play(env, 3, 5)
    assert torch.equal(envs[0].training.run.memory, envs[1].training.run.memory)


def test_a_feature_from_outside_says_that_it_needs_measurements(registries):
    name = "log_update_norm"
    column = MEASURED.index("update_norm")
    qan_gym.register_feature(name, lambda run: run.xp.log(run.measured[:, column] + 1e-9), needs_measurements=True)
    env = gym.make(LR, **BASE | {"observation": [name]})
    env.reset(seed=0)
    observation = env.step(2)[0]
    assert observation[0] == pytest.approx(math.log(env.unwrapped.training.run.measured[0, column]), abs=1e-4)


def test_the_names(registries):
    assert len(STATISTICS) == len(set(STATISTICS)) == 23
    assert set(STATISTICS) < FEATURES.keys()
    config = make_task_config(LR, {"validate_every": 5})
    assert statistics.statistics_of(config) == (*STATISTICS, "log_validation_to_chance")


# --- rows, states -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
@pytest.mark.parametrize("engine", ENGINES)
def test_rows_are_single_environments_bit_for_bit(engine, mode, monkeypatch):
    """Over an episode and into the next, with runs of two blocks."""
    monkeypatch.setattr(torch_engine, "CPU_BLOCK", 2)
    arguments = BASE | {"engine": engine, "batches_per_action": 3, "momentum": 0.9, "epochs": 1}
    seeds = list(range(3))
    rows = gym.make_vec(LR, num_envs=len(seeds), autoreset_mode=mode, **arguments)
    sync = {"vectorization_mode": "sync", "vector_kwargs": {"autoreset_mode": gym.vector.AutoresetMode(mode)}}
    singles = gym.make_vec(LR, num_envs=len(seeds), **sync, **arguments)
    assert np.array_equal(rows.reset(seed=seeds)[0], singles.reset(seed=seeds)[0])
    rows.action_space.seed(1)
    for _ in range(9):
        actions = rows.action_space.sample()
        assert np.array_equal(rows.step(actions)[0], singles.step(actions)[0])


@pytest.mark.slow
def test_rows_of_a_deep_network_are_single_environments(tmp_path):
    game = made_deep_game(tmp_path) | {"reference": None}
    arguments = {**BASE, **game, "batches_per_action": 2, "augment": "zero"}
    rows = gym.make_vec("QanLR-CIFAR10-v0", num_envs=2, **arguments)
    singles = [gym.make("QanLR-CIFAR10-v0", **arguments) for _ in range(2)]
    assert np.array_equal(rows.reset(seed=[4, 5])[0], [env.reset(seed=4 + row)[0] for row, env in enumerate(singles)])
    for action in (0, 1):
        seen = rows.step(np.array([action, 2]))[0]
        assert np.array_equal(seen, [env.step(one)[0] for env, one in zip(singles, (action, 2), strict=True)])


@needs_library
def test_any_number_of_threads_gives_the_same_bits():
    played, threads = [], torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            played.append(gym.make_vec(LR, num_envs=5, **BASE | {"engine": "native", "batches_per_action": 3}))
    finally:
        torch.set_num_threads(threads)
    one, other = played
    assert np.array_equal(one.reset(seed=0)[0], other.reset(seed=0)[0])
    for _ in range(4):
        assert np.array_equal(one.step(np.arange(5) % 3)[0], other.step(np.arange(5) % 3)[0])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_state_goes_on(engine, tmp_path):
    """Saved in the middle of an episode, restored in another environment, copied, and looked ahead from."""
    arguments = BASE | {"engine": engine, "batches_per_action": 3, "momentum": 0.9}
    env, other = (gym.make(LR, **arguments).unwrapped for _ in range(2))
    play(env, 3, 3)
    play(other, 4, 2)
    env.get_state().save(tmp_path / "state.safetensors")
    other.set_state(type(env.get_state()).load(tmp_path / "state.safetensors"))
    twin = copy.deepcopy(env)
    expected = [env.step(action)[0] for action in (0, 1, 2)]
    for one in (other, twin):
        assert np.array_equal([one.step(action)[0] for action in (0, 1, 2)], expected)
    seen = []
    qan_gym.counterfactual(env, 2, then=lambda observations, infos: seen.append(observations.copy()) or np.full(3, 2))
    assert np.array_equal(seen[0], [copy.deepcopy(env).step(action)[0] for action in range(3)])


@needs_library
def test_a_state_goes_from_one_engine_to_the_other():
    native, torch_ = (
        gym.make(LR, **BASE | {"engine": engine, "batches_per_action": 2}).unwrapped for engine in ("native", "torch")
    )
    play(native, 3, 4)
    torch_.reset(seed=0)
    torch_.set_state(native.get_state())
    for _ in range(2):
        np.testing.assert_allclose(native.step(0)[0], torch_.step(0)[0], atol=1e-4)


def test_a_row_that_begins_anew_forgets():
    """The others go on."""
    config = make_task_config(LR, {**BASE, "batches_per_action": 2})
    training, alone = start(config, [1, 2]), start(config, [3])
    keep = np.full(2, 2)
    for _ in range(3):
        training.step(keep)
    before = training.parts.observer.observe(training.arrays)
    observation, _ = training.reset(np.array([True, False]), np.array([3, 0]))
    assert np.array_equal(observation[1], before[1])
    assert np.array_equal(training.step(keep).observation[0], alone.step(keep[:1]).observation[0])
    assert np.array_equal(training.step(keep).observation[0], alone.step(keep[:1]).observation[0])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_training_that_diverges(engine, recwarn):
    """Values are numbers within the limit, without a warning."""
    arguments = BASE | {"engine": engine, "learning_rate": 1e6, "learning_rate_max": 1e6, "loss_scale": 1e6}
    env = gym.make(LR, **arguments | {"batches_per_action": 3})
    for observation, *_ in play(env, 3):
        assert np.isfinite(observation).all()
        assert abs(observation).max() <= LIMIT
    assert not [str(warning.message) for warning in recwarn if issubclass(warning.category, RuntimeWarning)]


# --- the loss scale -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_the_loss_scale_multiplies_loss_and_gradient(engine):
    """Ten times the loss at a tenth of the learning rate is the same training; validation and test are in nats."""
    common = BASE | {"engine": engine, "epochs": 1, "learning_rate_min": 1e-4, "batches_per_action": 2}
    usual = play(gym.make(LR, learning_rate=0.05, **common), 3)
    scaled = play(gym.make(LR, learning_rate=0.005, loss_scale=10, **common), 3)
    assert usual[0][1]["loss"] * 10 == pytest.approx(scaled[0][1]["loss"])
    for (observation, reward, *_, info), (other, other_reward, *_, other_info) in zip(
        usual[1:], scaled[1:], strict=True
    ):
        np.testing.assert_allclose(other, observation, atol=1e-3)
        assert other_reward == pytest.approx(reward, abs=1e-3), "the end, too, compares like with like"
        for name in ("loss", "smoothed_loss"):
            assert other_info[name] == pytest.approx(10 * info[name], rel=1e-3)
        assert other_info["validation_loss"] == pytest.approx(info["validation_loss"], rel=1e-3)
    assert scaled[-1][-1]["test_loss"] == pytest.approx(usual[-1][-1]["test_loss"], rel=1e-3)


@pytest.mark.parametrize("wrong", [0, -1, math.inf, math.nan, True, "10"])
def test_a_wrong_loss_scale_is_refused(wrong):
    with pytest.raises(ValueError, match="loss_scale must be a number above 0"):
        gym.make(LR, **BASE, loss_scale=wrong)


def test_references_depend_on_the_loss_scale():
    """The baseline run of a task has its loss scale; weights of a scale of 1 keep their names."""
    from qan_gym.core.references import baseline_config, reference_name

    config = make_task_config(LR, {})
    scaled = replace(config, loss_scale=2.0)
    assert reference_name(scaled) != reference_name(config)
    assert reference_name(replace(config, loss_scale=1)) == reference_name(config)
    assert baseline_config(scaled).loss_scale == 2


# --- scales ---------------------------------------------------------------------------------------------------------


def scales():
    """The script that prints the table of the docs."""
    return load_script(Path(__file__).parents[1] / "benchmarks" / "statistics_scales.py")


@pytest.mark.slow
def test_features_change_with_a_scale_only_where_they_should(registries):
    """The table of the docs, on less data."""
    found = scales().changes(1, dataset=small_data(), train_size=40, batches_per_action=2)
    facts = {"budget_share", "log_rate_from_start", "last_change", "momentum", "log_budget", "log_classes"}
    by_size = {"log_batch_size": math.log(4), "log_epochs": math.log(4) / 2}
    for name, change in found.items():
        per_feature = dict(zip(STATISTICS, change[0].T, strict=True))
        assert not any(per_feature[fact].any() for fact in facts), name
        if name.startswith("loss"):
            assert abs(change).max() < 0.02, "the same training, but for Adam's epsilon"
            continue
        sizes = by_size if name.startswith("batch size") else dict.fromkeys(by_size, 0.0)
        for fact, expected in sizes.items():
            np.testing.assert_allclose(per_feature[fact], expected, atol=1e-6)
        trained = [values for fact, values in per_feature.items() if fact not in facts | by_size.keys()]
        assert abs(np.array(trained)).mean() < 1.5, "another training, of numbers of the same order"
