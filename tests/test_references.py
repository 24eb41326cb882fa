"""Reference weights: those of the package, those that are trained and cached, those that are refused."""

import dataclasses
import re
import shutil

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import SHORT, made_arrays, made_npz, play, start
from safetensors.numpy import save_file
from typer.testing import CliRunner

from qan_agents.cli.app import app
from qan_gym.config import FILTER_REGRESSION, TaskConfig
from qan_gym.core import references
from qan_gym.core.components import build_components
from qan_gym.core.engine import engine_here
from qan_gym.core.references import SEED, load_reference, make_reference, reference_name, resolve_reference
from qan_gym.data.datasets import ASSETS
from qan_gym.optimizee import zoo as networks
from qan_gym.optimizee.network import evaluate
from qan_gym.tasks import TASKS, make_task_config
from qan_gym.utils.files import load_arrays, save_arrays

LR, MINIBATCH, CIFAR = "QanLR-MNIST5k-v1", "QanMinibatch-MNIST5k-v1", "QanLR-CIFAR10-v0"
SHIPPED = ASSETS / "references"
PULLED = SHORT | {"meta_momentum": 0.01}  # 8 mini-batches of 10, on the 80 training images of `made_npz`


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the user; the folder of references in it, which does not exist yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("QAN_GYM_DATA", raising=False)
    return tmp_path / "cache" / "qan-gym" / "references"


@pytest.fixture
def npz(tmp_path):
    return made_npz(tmp_path / "made.npz")


def config_of(npz: str, **changes) -> TaskConfig:
    return make_task_config(LR, {"dataset": npz, **PULLED, **changes})


def scores(config: TaskConfig, weights: dict[str, torch.Tensor], split: str) -> tuple[float, float]:
    """Loss and accuracy of one network."""
    parts = build_components(config, "cpu")
    params = {name: value[None] for name, value in weights.items()}
    loss, accuracy = evaluate(parts.network, params, parts.data.batches(split, 20))
    return loss.item(), accuracy.item()


def assert_equal(one, other) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert np.array_equal(np.asarray(value), np.asarray(other[name])), name


# --- those of the package -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env_id", "wanted"),
    [
        ("QanLR-MNIST-v0", 0.97),
        ("QanMinibatch-MNIST-v0", 0.97),
        ("QanLR-MNIST5k-v1", 0.9),
        ("QanMinibatch-MNIST5k-v1", 0.85),  # 155 updates only
    ],
)
def test_shipped_reference(env_id, wanted, request):
    """That of each MNIST id is in the package, of the right network, finite and trained."""
    if TASKS[env_id].dataset == "mnist":
        request.getfixturevalue("mnist_root")
    path = SHIPPED / reference_name(TASKS[env_id])
    assert path.is_file(), "not in the package"
    parts = build_components(TASKS[env_id], "cpu")
    weights = load_reference(path, parts.config.network, parts.network)
    assert all(value.isfinite().all() for value in weights.values())
    assert_equal(resolve_reference(parts), weights)
    loss, accuracy = scores(TASKS[env_id], weights, "validation")
    assert accuracy > wanted
    metadata = load_arrays(path)[1]
    assert metadata["validation_loss"] == pytest.approx(loss, rel=1e-2)
    assert metadata["validation_accuracy"] == pytest.approx(accuracy, abs=0.003)
    assert metadata["test_accuracy"] > wanted


def test_no_other_references_ship(mnist_root):
    """The package holds no files of former hashes, and they are small."""
    found = {path.name for path in SHIPPED.iterdir()}
    assert found == {
        reference_name(config) for config in TASKS.values() if config.reference and config.dataset != "cifar10"
    }
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 3e6


@pytest.mark.parametrize("env_id", [LR, MINIBATCH])
def test_games_start_with_the_shipped_reference(env_id, cache):
    """From gym.make to the first pulled step without training one: the cache is not made."""
    env = gym.make(env_id)
    assert_equal(env.unwrapped.reference, load_arrays(SHIPPED / reference_name(TASKS[env_id]))[0])
    play(env, steps=1)
    assert not cache.exists()


def distances(weights: dict[str, torch.Tensor], shipped: dict[str, torch.Tensor]) -> dict[str, float]:
    """Relative distance of each array."""
    return {name: float((weights[name] - value).norm() / value.norm()) for name, value in shipped.items()}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "native"])
@pytest.mark.parametrize("env_id", [LR, MINIBATCH])
def test_shipped_reference_can_be_made_again(env_id, engine, cache, monkeypatch):
    """2,000 (or 155) updates, done again; those of the package were made by the native engine: the same bits.

    PyTorch rounds sums otherwise, and training enlarges a difference of 1e-7 with every update: the farthest array,
    conv2.weight, ends .03 away. That of another seed is more than .6 away in every array.
    """
    monkeypatch.setenv("QAN_GYM_ENGINE", engine)
    if engine == "native" and not engine_here().startswith("native"):
        pytest.skip("no native engine here")
    shipped = {
        name: torch.from_numpy(value) for name, value in load_arrays(SHIPPED / reference_name(TASKS[env_id]))[0].items()
    }
    again = make_reference(TASKS[env_id])
    bound = {"torch": 0.1, "native": 0.0}[engine]
    assert max(distances(again, shipped).values()) <= bound
    ours, theirs = (scores(TASKS[env_id], weights, "validation") for weights in (again, shipped))
    assert ours == pytest.approx(theirs, abs=0.02)
    monkeypatch.setattr(references, "SEED", SEED + 1)
    assert min(distances(make_reference(TASKS[env_id]), shipped).values()) > 0.3


# --- those that are trained -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "said"), [(19, []), (50, ["about 50 seconds"]), (600, ["about 10 minutes"])])
def test_how_long_a_reference_takes_is_said(seconds, said, caplog):
    references._say_how_long(seconds)
    assert [message.removeprefix("the reference weights take ") for message in caplog.messages] == said


def test_a_reference_is_trained_once(npz, cache, monkeypatch, capfd):
    """The first environment trains it, with a progress bar; the second reads the same weights from the cache."""
    env = gym.make(LR, dataset=npz, **PULLED)
    path = cache / reference_name(env.unwrapped.config)
    assert [found.name for found in cache.iterdir()] == [path.name]
    assert "reference weights" in capfd.readouterr().err
    monkeypatch.setattr(references, "train_reference", lambda *_args: pytest.fail("trained again"))
    again = gym.make(LR, dataset=npz, **PULLED)
    assert_equal(env.unwrapped.reference, again.unwrapped.reference)
    assert_equal(env.unwrapped.reference, load_arrays(path)[0])


def test_a_reference_that_is_asked_for_is_made_anew(npz, cache, caplog):
    """And is not said to be missing; the line has the path of the file."""
    gym.make(LR, dataset=npz, **PULLED)
    assert "because there are none" in caplog.text
    caplog.clear()
    settings = [word for name, value in {"dataset": npz, **PULLED}.items() for word in ("--set", f"{name}={value}")]
    result = CliRunner().invoke(app, ["reference", LR, *settings])
    assert result.exit_code == 0, result.output
    assert "training the reference weights" in caplog.text
    assert "there are none" not in caplog.text
    (path,) = cache.iterdir()
    assert f"made: {path}\n" in result.output


@pytest.mark.parametrize("env_id", [LR, MINIBATCH])
def test_a_reference_is_the_baseline_run(env_id, npz, cache):
    """Shuffled SGD at the initial learning rate, without a pull: the same weights as torch.optim.SGD gives."""
    config = make_task_config(env_id, {"dataset": npz, **PULLED, "epochs": 2})
    made = make_reference(config)
    parts = build_components(config, "cpu")
    network, (images, labels) = parts.network, parts.data.split("train")
    params = {
        name: value[0].clone().requires_grad_() for name, value in network.initial_params(torch.tensor([SEED])).items()
    }
    sgd = torch.optim.SGD(params.values(), lr=0.05)
    witness = start(dataclasses.replace(config, game="learning-rate", meta_momentum=None, reference=None), [SEED])
    for _ in range(16):
        witness.step(torch.tensor([2]))
        indices = witness.run.batch_indices[0, 0]
        logits = network.forward({name: value[None] for name, value in params.items()}, images[indices][None], True)[0]
        sgd.zero_grad()
        torch.nn.functional.cross_entropy(logits, labels[indices]).backward()
        sgd.step()
    for name, value in params.items():
        torch.testing.assert_close(made[name], value.detach(), rtol=1e-4, atol=1e-5)


def test_a_deep_reference_has_its_running_statistics(tmp_path, cache):
    """Those of the baseline run, with momentum, batch norm and moved images; a second environment finds them."""
    path = made_npz(tmp_path / "deep.npz", shape=(32, 32, 3))
    game = SHORT | {"dataset": path, "network": "resnet-8", "meta_momentum": 0.01}
    env = gym.make(CIFAR, **game).unwrapped
    (file,) = cache.iterdir()
    assert_equal(env.reference, load_arrays(file)[0])
    alone = start(dataclasses.replace(env.config, meta_momentum=None, reference=None), [SEED])
    for _ in range(alone.parts.budget):
        alone.step(torch.tensor([2]))
    assert_equal(env.reference, {name: value[0] for name, value in alone.run.params.items()})
    assert (env.reference["norm1.running_mean"] != 0).all()
    before = file.stat().st_mtime_ns
    assert_equal(gym.make(CIFAR, **game).unwrapped.reference, env.reference)
    assert file.stat().st_mtime_ns == before


def test_a_deep_reference_without_its_statistics_is_refused(tmp_path):
    """The trained parameters without statistics, or the weights of another network: the message names the file."""
    path = made_npz(tmp_path / "deep.npz", shape=(32, 32, 3))
    game = SHORT | {"dataset": path, "network": "resnet-8", "reference": str(tmp_path / "mine.safetensors")}
    weights = gym.make(CIFAR, **game | {"reference": None}).unwrapped.weights()
    parameters = {name: value for name, value in weights.items() if "running" not in name}
    for some in (parameters, gym.make(LR, dataset=path, **SHORT).unwrapped.weights()):
        save_arrays(tmp_path / "mine.safetensors", some, {})
        with pytest.raises(ValueError, match="resnet-8") as caught:
            gym.make(CIFAR, **game)
        assert str(tmp_path / "mine.safetensors") in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"reward": "no-such-reward"},
        {"batches_per_action": 9},
        {"precision": "tf32"},
        {"augment": "zero", "train_size": 9},
    ],
)
def test_wrong_arguments_are_refused_before_a_reference_is_trained(wrong, npz, cache, monkeypatch):
    monkeypatch.setattr(references, "train_reference", lambda *_args, **_kwargs: pytest.fail("trained for nothing"))
    with pytest.raises(ValueError, match=r"no-such-reward|batches_per_action 9|tf32|batch_size 10"):
        gym.make(LR, dataset=npz, **PULLED | wrong)


def test_no_reference_is_trained_where_none_is_needed(npz, cache, monkeypatch):
    monkeypatch.setattr(references, "train_reference", lambda *_args, **_kwargs: pytest.fail("trained for nothing"))
    assert gym.make(LR, dataset=npz, **SHORT).unwrapped.reference is None
    for arguments in ({"reference": None}, {"reference": "previous"}):
        assert gym.make(LR, dataset=npz, **PULLED | arguments).unwrapped.reference is None


def test_distillation_alone_needs_a_reference(npz, cache):
    env = gym.make(LR, dataset=npz, **SHORT | {"distillation": 0.5})
    assert env.unwrapped.reference is not None


CHANGED = {
    "epochs": {"epochs": 2},
    "learning_rate": {"learning_rate": 0.06},
    "batch_size": {"batch_size": 20},
    "train_size": {"train_size": 50},
    "preprocess": {"preprocess": "whiten"},
    "augment": {"augment": "zero"},
    "optimizer": {"optimizer": "adamw"},
    "momentum": {"momentum": 0.5},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "weight_decay": {"weight_decay": 0.1},
}
UNCHANGED = {
    "pull": {"meta_momentum": FILTER_REGRESSION},
    "pull_epochs": {"pull_epochs": 1},
    "precision": {"precision": "bf16"},
    "reward": {"reward": "accuracy"},
    "observation": {"observation": "filters"},
    "batches_per_action": {"batches_per_action": 4},
    "action": {"continuous": True},
    "target_loss": {"target_loss": 0.1},
    "early_stopping": {"early_stopping": 2},
    "distillation": {"distillation": 1.0},
}


@pytest.mark.parametrize("what", list(CHANGED))
def test_the_name_changes_with_what_the_weights_depend_on(what, npz, cache):
    config, other = config_of(npz), config_of(npz, **CHANGED[what])
    assert reference_name(config) != reference_name(other)
    first, second = make_reference(config), make_reference(other)
    assert not torch.equal(first["conv1.weight"], second["conv1.weight"])
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("what", list(UNCHANGED))
def test_the_name_does_not_change_with_what_they_do_not_depend_on(what, npz):
    assert reference_name(config_of(npz)) == reference_name(config_of(npz, **UNCHANGED[what]))


def test_the_name_follows_the_contents_of_the_data_set(npz, tmp_path):
    """The same for another file with the same arrays, another one if a pixel changes."""
    copy = shutil.copy(npz, tmp_path / "copy.npz")
    assert reference_name(config_of(str(copy))) == reference_name(config_of(npz))
    arrays = made_arrays()
    arrays["x_train"][3, 4, 5] ^= 1
    np.savez(tmp_path / "other.npz", **arrays)
    assert reference_name(config_of(str(tmp_path / "other.npz"))) != reference_name(config_of(npz))


def test_the_name_follows_the_network(npz, monkeypatch):
    monkeypatch.setitem(networks.NETWORKS, "other", networks.mnist_cnn)
    assert reference_name(config_of(npz)) != reference_name(config_of(npz, network="other"))


def test_integers_and_floats_give_the_same_name(npz):
    """A learning rate of 1 is one of 1.0; 0 is 0.0."""
    assert reference_name(config_of(npz, learning_rate=1)) == reference_name(config_of(npz, learning_rate=1.0))
    same = config_of(npz, momentum=0, weight_decay=0)
    assert reference_name(same) == reference_name(config_of(npz))


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 0.001, "learning_rate_min": 0.0005},
        {"learning_rate": 1.5, "learning_rate_max": 2.0},
    ],
)
def test_a_reference_for_an_unusual_learning_rate(changes, npz, cache):
    """There is a baseline run for every initial learning rate within the range of its task."""
    env = gym.make(LR, dataset=npz, **PULLED | changes)
    assert env.unwrapped.reference is not None


def test_a_baseline_that_diverges_is_refused(npz, cache):
    """No file is written, and the message says what to change."""
    changes = {"learning_rate": 1e38, "learning_rate_max": 1e38}
    with pytest.raises(ValueError, match=r"diverged.*learning_rate"):
        gym.make(LR, dataset=npz, **PULLED | changes)
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_refused_before_the_training(npz, tmp_path, monkeypatch):
    """A file in the place of the folder; and a folder without permission to write."""
    monkeypatch.setattr(references, "Training", lambda *_args, **_kwargs: pytest.fail("trained for nothing"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be written to.*file is"):
        make_reference(config_of(npz), folder=tmp_path / "file" / "references")
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(ValueError, match="read-only"):
        make_reference(config_of(npz), folder=tmp_path / "new" / "references")
    assert not (tmp_path / "new").exists()


def test_an_interrupted_training_leaves_no_file(npz, cache, monkeypatch):
    """Ctrl-C while the file is written: neither the file nor a part of it is left; the next attempt writes it."""

    def interrupt(_handle):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("qan_gym.utils.files.os.fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make_reference(config_of(npz))
    assert not list(cache.glob("*"))
    assert not list(cache.glob(".*"))
    assert resolve_reference(build_components(config_of(npz), "cpu")) is not None


def test_a_torn_file_in_the_cache_is_named(npz, cache):
    config = config_of(npz)
    make_reference(config)
    path = cache / reference_name(config)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=re.escape(str(path))):
        gym.make(LR, dataset=npz, **PULLED)


# --- from a file ----------------------------------------------------------------------------------------------------


def weights_of(npz: str, seed: int = 3) -> dict[str, np.ndarray]:
    env = gym.make(LR, dataset=npz, **SHORT)
    env.reset(seed=seed)
    return env.unwrapped.weights()


def test_reference_from_a_path(npz, tmp_path, monkeypatch):
    """A file of save_arrays is what weights are pulled towards; the home folder may be written as ~."""
    weights = weights_of(npz)
    save_arrays(tmp_path / "mine.safetensors", weights, {})
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (str(tmp_path / "mine.safetensors"), "~/mine.safetensors"):
        env = gym.make(LR, dataset=npz, **PULLED | {"reference": path, "meta_momentum": 1.0})
        assert_equal(env.unwrapped.reference, weights)
        env.reset(seed=0)
        env.step(2)
        for name, value in env.unwrapped.weights().items():
            assert np.array_equal(value, weights[name]) == name.endswith(".weight")


def test_weights_saved_with_safetensors_are_a_reference(npz, tmp_path):
    """`env.unwrapped.weights()`, written with safetensors itself, as the documentation says."""
    weights = weights_of(npz)
    path = tmp_path / "plain.safetensors"
    save_file(weights, path)
    env = gym.make(LR, dataset=npz, **PULLED | {"reference": str(path)})
    assert_equal(env.unwrapped.reference, weights)


def without_a_tensor(weights):
    del weights["linear2.bias"]


def with_a_tensor_more(weights):
    weights["conv3.weight"] = np.zeros((3, 3), np.float32)


def of_another_shape(weights):
    weights["linear2.weight"] = np.zeros((5, 200), np.float32)


def of_another_type(weights):
    weights["conv1.weight"] = weights["conv1.weight"].astype(np.float64)


@pytest.mark.parametrize("change", [without_a_tensor, with_a_tensor_more, of_another_shape, of_another_type])
def test_weights_of_another_network_are_refused(change, npz, tmp_path):
    weights = weights_of(npz)
    change(weights)
    path = tmp_path / "other.safetensors"
    save_arrays(path, weights, {})
    with pytest.raises(ValueError, match=r"mnist-cnn|float32") as caught:
        gym.make(LR, dataset=npz, **PULLED | {"reference": str(path)})
    assert str(path) in str(caught.value)


def test_weights_that_are_not_numbers_are_refused(npz, tmp_path):
    """The pull would put them into every episode."""
    weights = weights_of(npz)
    weights["conv2.weight"][0, 0, 0, 0] = np.nan
    path = tmp_path / "nan.safetensors"
    save_arrays(path, weights, {})
    with pytest.raises(ValueError, match=re.escape(str(path))):
        gym.make(LR, dataset=npz, **PULLED | {"reference": str(path)})


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "header only", "huge header"])
def test_damaged_reference_is_named(damage, npz, tmp_path):
    path = tmp_path / "mine.safetensors"
    save_arrays(path, weights_of(npz), {})
    whole = path.read_bytes()
    content = {
        "truncated": whole[:-1],
        "empty": b"",
        "text": b"these are no weights",
        "header only": whole[: 8 + int.from_bytes(whole[:8], "little")],
        "huge header": (2**62).to_bytes(8, "little") + whole[8:],
    }
    path.write_bytes(content[damage])
    with pytest.raises(ValueError, match=re.escape(str(path))):
        gym.make(LR, dataset=npz, **PULLED | {"reference": str(path)})


def test_missing_reference_is_named(npz, tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
            gym.make(LR, dataset=npz, **PULLED | {"reference": str(path)})


# --- "previous", and none -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", [LR, MINIBATCH])
def test_previous_reference_is_the_last_episodes_final_weights(env_id, npz):
    """None in the first episode; afterwards those of the last episode that was played to its end."""
    env = gym.make(env_id, dataset=npz, **PULLED | {"reference": "previous"}).unwrapped
    plain = gym.make(env_id, dataset=npz, **PULLED | {"reference": None}).unwrapped
    for one, other in zip(play(env, seed=1), play(plain, seed=1), strict=True):  # nothing pulls in the first
        assert np.array_equal(one[0], other[0])
    last = env.weights()
    assert_equal(env.reference, last)
    play(env, seed=2, steps=3)  # not to its end
    assert_equal(env.reference, last)
    play(env, seed=3)
    assert_equal(env.reference, env.weights())
    assert not np.array_equal(env.reference["conv1.weight"], last["conv1.weight"])


def test_previous_reference_pulls(npz):
    """With a pull of 1 the weights are the final ones of the first episode after every update of the second."""
    arguments = PULLED | {"reference": "previous", "meta_momentum": 1.0}
    env = gym.make(LR, dataset=npz, **arguments).unwrapped
    play(env, seed=1)
    last = env.weights()
    env.reset(seed=2)
    assert not np.array_equal(env.weights()["conv1.weight"], last["conv1.weight"])
    for _ in range(2):
        env.step(0)
        for name, value in env.weights().items():
            assert np.array_equal(value, last[name]) == name.endswith(".weight")


def test_previous_reference_pulls_the_convolutions_of_a_deep_network(tmp_path):
    """With a pull of 1 they are the final ones of the first episode; the other parameters are not pulled."""
    data = made_npz(tmp_path / "deep.npz", shape=(32, 32, 3))
    arguments = PULLED | {"dataset": data, "network": "resnet-8", "reference": "previous", "meta_momentum": 1.0}
    env, alone = (gym.make(CIFAR, **arguments | {"meta_momentum": pull}).unwrapped for pull in (1.0, None))
    play(env, seed=1)
    last = env.weights()
    assert_equal(env.reference, last)
    for some in (env, alone):
        some.reset(seed=2)
        some.step(0)
    for name, value in env.weights().items():
        wanted = last if value.ndim == 4 else alone.weights()
        assert np.array_equal(value, wanted[name]), name
        assert not np.array_equal(last[name], alone.weights()[name]), name


def test_previous_reference_is_not_from_an_episode_that_diverged(npz):
    env = gym.make(LR, dataset=npz, **PULLED | {"reference": "previous"}).unwrapped
    play(env, seed=1)
    last = env.weights()
    env.reset(seed=2)
    env.training.run.params["linear1.bias"][0, 0] = np.nan
    assert env.step(0)[4]["diverged"]
    assert_equal(env.reference, last)


def test_previous_reference_survives_a_restore(npz):
    arguments = PULLED | {"reference": "previous"}
    env = gym.make(LR, dataset=npz, **arguments).unwrapped
    play(env, seed=1)
    other = gym.make(LR, dataset=npz, **arguments).unwrapped
    other.set_state(env.get_state())
    assert_equal(other.reference, env.reference)
    for one, two in zip(play(env, seed=2), play(other, seed=2), strict=True):
        assert np.array_equal(one[0], two[0])


def test_no_reference(npz):
    env = gym.make(LR, dataset=npz, **PULLED | {"reference": None}).unwrapped
    assert env.reference is None
    play(env)
    assert env.reference is None
