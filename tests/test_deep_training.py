"""Steps of deep networks beside `oracles.deep_networks`, in every precision, with and without the help of a reference.

Tolerances. The oracle is given the environment's weights, statistics and buffers before every step, because deep
networks with ReLU amplify roundings: left to themselves, two float32 copies of NIN differ by 1e-1 after ten steps. From
the same weights, with the same memory layout, the losses and statistics were measured to be the same to a rounding or
two, and the buffers of a tensor to 3e-6 of their length, its update to 1e-4 (the weights round to 1e-7, of updates of
1e-3). Where another library rounds otherwise, an activation may fall on the other side of a ReLU, which was measured to
change a tensor's gradient by at most 2e-2 of its length, in some steps: `KINK` holds for all, `CLOSE` for four fifths.
"""

import numpy as np
import pytest
from deep_tasks import CLOSE, KINK, SMALL, distance, made_photographs, make, slots_of, weights_of
from oracles.deep_networks import KEEP, LOWER, RAISE, PlainTraining

from qan_gym.data.datasets import load_dataset
from qan_gym.utils.files import save_arrays

ACTIONS = [KEEP, RAISE, RAISE, LOWER, LOWER, LOWER, KEEP, RAISE, LOWER, KEEP]
LOSS = 2e-6  # of a loss (up to 6)
STATISTICS = 1e-5  # of the length of a tensor of running statistics


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    return made_photographs(tmp_path_factory.mktemp("data"))


# --- beside the oracle ----------------------------------------------------------------------------------------------

CASES = [  # network, batch size, steps, and what differs from SMALL
    ("resnet-8", 8, 10, {}),
    ("resnet-8", 8, 10, {"nesterov": True}),
    ("resnet-8", 8, 10, {"optimizer": "adamw"}),
    ("resnet-8", 8, 10, {"meta_momentum": 0.25}),
    ("resnet-8", 8, 10, {"distillation": 0.5}),
    ("nin", 4, 5, {"meta_momentum": 0.25}),
    pytest.param("nin", 8, 10, {"meta_momentum": 0.25}, marks=pytest.mark.slow),
    pytest.param("nin", 8, 10, {"optimizer": "adamw"}, marks=pytest.mark.slow),
    pytest.param("wrn-40-4", 4, 10, {"nesterov": True, "meta_momentum": 0.25}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("network", "batch_size", "steps", "kwargs"), CASES, ids=str)
def test_an_epoch_of_steps(network, batch_size, steps, kwargs, npz, tmp_path):
    """The learning rate changes in it: what each step did, and the evaluation at the end."""
    game = SMALL | {"network": network, "batch_size": batch_size, "train_size": steps * batch_size, **kwargs}
    reference = None
    if "meta_momentum" in kwargs or "distillation" in kwargs:
        reference = weights_of(network, npz)
        save_arrays(tmp_path / "reference.safetensors", reference, {})
        game["reference"] = str(tmp_path / "reference.safetensors")
    core = make(dataset=npz, **game)
    core.reset(seed=1)
    settings = {name: value for name, value in kwargs.items() if name != "meta_momentum"}
    plain = PlainTraining(network, core.weights(), pull=kwargs.get("meta_momentum"), reference=reference, **settings)
    images, labels = core.split("train")
    updates, buffers = [], []
    for number, action in enumerate(ACTIONS[:steps]):
        before = core.weights()
        if number > 0:
            plain.copy_from(before, slots_of(core))
        *_, info = core.step(action)
        (batch,) = core.batch_indices
        assert info["loss"] == pytest.approx(plain.step(action, images[batch], labels[batch]), abs=LOSS)
        assert info["learning_rate"] == pytest.approx(plain.rate, rel=1e-9)
        weights, wanted = core.weights(), plain.weights()
        for name in core.training.network.statistics:
            assert distance(weights[name], wanted[name]) < STATISTICS, name
        trained = core.training.network.trained
        updates += [distance(weights[name] - before[name], wanted[name] - before[name]) for name in trained]
        for slot, values in slots_of(core).items():
            buffers += [distance(values[name], value) for name, value in plain.buffers(slot).items()]
    assert len(buffers) == len(updates) * len(core.training.run.slots)
    for differences in (updates, buffers):
        assert max(differences) < KINK
        assert np.quantile(differences, 0.8) < CLOSE
    loss, accuracy = plain.evaluate(*core.split("validation"))
    # It has the roundings of the last step, and batch norm divides by deviations that few steps have not settled.
    assert info["validation_loss"] == pytest.approx(loss, rel=1e-3)
    assert info["validation_accuracy"] == pytest.approx(accuracy, abs=0.11)  # an image


def test_the_oracle_stays_near_without_correction(npz):
    """For ten steps the oracle keeps its own weights, buffers and statistics."""
    core = make(dataset=npz, **SMALL)
    core.reset(seed=2)
    plain = PlainTraining("resnet-8", core.weights())
    images, labels = core.split("train")
    for action in ACTIONS:
        *_, info = core.step(action)
        (batch,) = core.batch_indices
        assert info["loss"] == pytest.approx(plain.step(action, images[batch], labels[batch]), abs=5e-3)
    wanted = plain.weights()
    assert max(distance(value, wanted[name]) for name, value in core.weights().items()) < KINK
    assert plain.evaluate(*core.split("validation"))[0] == pytest.approx(info["validation_loss"], rel=2e-2)


def test_the_pull_stops_after_1_over_c_mini_batches(npz, tmp_path):
    """c = 0.25: with a learning rate near 0, the distance to the reference shrinks by 3/4 four times, then stays."""
    reference = weights_of("resnet-8", npz)
    save_arrays(tmp_path / "reference.safetensors", reference, {})
    still = {"learning_rate": 1e-12, "learning_rate_min": 1e-12}
    pulled = {"meta_momentum": 0.25, "reference": str(tmp_path / "reference.safetensors")}
    core = make(dataset=npz, **SMALL | still | pulled)
    core.reset(seed=3)
    first = core.weights()
    for number in range(1, 8):
        core.step(KEEP)
        left = 0.75 ** min(number, 4)
        for name, value in core.weights().items():
            if name not in core.training.network.statistics:
                wanted = reference[name] + left * (first[name] - reference[name]) if value.ndim == 4 else first[name]
                np.testing.assert_allclose(value, wanted, atol=5e-7, err_msg=name)


def test_colour_is_normalised_by_channel(npz):
    core = make(dataset=npz, **SMALL)
    train, test = (getattr(load_dataset(npz), part).images.astype(np.float64) for part in ("train", "test"))
    mean, deviation = (getattr(train, what)(axis=(0, 2, 3), keepdims=True) for what in ("mean", "std"))
    np.testing.assert_allclose(core.split("train")[0], (train - mean) / deviation, atol=1e-5)
    np.testing.assert_allclose(core.split("test")[0], (test - mean) / deviation, atol=1e-5)


# --- the screen -----------------------------------------------------------------------------------------------------

SHOWN = {
    "nin": lambda weights: weights["conv9.weight"].reshape(192, 192),
    "wrn-40-4": lambda weights: weights["group3_6.conv2.weight"][:16].reshape(192, 192),
    "resnet-8": lambda weights: weights["block3.conv2.weight"].reshape(192, 192),
}


@pytest.mark.parametrize("network", ["resnet-8", "nin", pytest.param("wrn-40-4", marks=pytest.mark.slow)])
def test_screen(network, npz):
    """The last convolution as 192x192, then the score line; the same without the score line as `"filters"`."""
    game = SMALL | {"network": network, "batch_size": 4, "train_size": 12}
    core, filters = make(dataset=npz, **game), make(dataset=npz, **game, observation="filters")
    assert core.screen_shape == (193, 192)
    assert filters.screen_shape == (192, 192)
    filters.reset(seed=0)
    core.reset(seed=0)
    observation, *_, info = core.step(RAISE)
    screen = observation.reshape(core.screen_shape)
    assert screen.dtype == core.observation_space.dtype == np.float32
    assert np.array_equal(screen[:-1], SHOWN[network](core.weights()))
    assert screen[-1, :2] == pytest.approx([np.log(0.11), 1 / 6], abs=1e-6)
    assert screen[-1, 2] == pytest.approx(np.log(info["smoothed_loss"]), abs=1e-5)
    assert screen[-1, 4] == RAISE
    assert (screen[-1, 5:] == 0).all()
    assert np.array_equal(filters.step(RAISE)[0].reshape(192, 192), screen[:-1])


# --- precision and distillation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["resnet-8", pytest.param("nin", marks=pytest.mark.slow)])
def test_bf16(network, npz):
    """Near float32 after a step and not the same; everything stays finite to the end of the episode."""
    game = SMALL | {"network": network, "batch_size": 4, "train_size": 12, "epochs": 1}
    core, exact = make(dataset=npz, **game, precision="bf16"), make(dataset=npz, **game)
    for one in (core, exact):
        one.reset(seed=0)
    near, wanted = core.step(KEEP)[4]["loss"], exact.step(KEEP)[4]["loss"]
    assert near == pytest.approx(wanted, rel=2e-2)
    assert near != wanted
    for _ in range(2):
        observation, _, terminated, truncated, info = core.step(RAISE)
        assert np.isfinite(observation).all()
        assert np.isfinite([value for name, value in info.items() if not name.startswith("test_")]).all()
    assert (terminated, truncated) == (False, True)
    for name, value in core.weights().items():
        assert value.dtype == np.float32, name
        assert np.isfinite(value).all(), name


def test_the_teacher_is_in_evaluation_mode(npz, tmp_path):
    """Its soft targets depend on its running statistics, which distillation does not change."""
    teacher = weights_of("resnet-8", npz)
    other = {name: value * 4 if name.endswith("running_var") else value for name, value in teacher.items()}
    after = []
    for number, weights in enumerate((teacher, other)):
        path = tmp_path / f"{number}.safetensors"
        save_arrays(path, weights, {})
        distilled = SMALL | {"reference": str(path), "distillation": 1.0}
        core = make(dataset=npz, **distilled)
        core.reset(seed=0)
        core.step(KEEP)
        after.append(core.weights()["linear.weight"])
        assert all(np.array_equal(value, weights[name]) for name, value in core.reference.items())
    assert distance(after[0], after[1]) > 1e-3
