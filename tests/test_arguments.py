"""The keyword arguments of the environments: what is refused, in which words, and the limits of what is accepted."""

from dataclasses import fields

import gymnasium as gym
import numpy as np
import pytest
import torch
from deep_tasks import CIFAR, SMALL, made_photographs

from qan_gym.config import TaskConfig

LR, MINIBATCH, FAMILY = "QanLR-MNIST5k-v1", "QanMinibatch-MNIST5k-v1", "QanLR-Family-v0"


NAN = float("nan")
WRONG_VALUES = {
    "game": ["lrr", None, 1],
    "dataset": ["no-such-data", "", "mnist5k.npy", None, 5],
    "train_size": [0, -1, 1.5, "all", True],
    "network": ["no-such-network", None, 5],
    "optimizer": ["no-such-optimizer", None, 5],
    "preprocess": ["zca", None],
    "augment": ["flip", True],
    "momentum": [-0.1, 1.0, NAN, None, "0.9", True],
    "nesterov": [1, "yes", None, True],
    "loss_scale": [0, -1.0, NAN, float("inf"), None, "1"],
    "weight_decay": [-1e-4, NAN, float("inf"), None, "0"],
    "early_stopping": [0, -1, 1.5, True],
    "validate_every": [0, -1, 1.5, "epoch", True],
    "learning_rate": [0, -0.1, 2.0, NAN, "0.05", None, True],
    "batch_size": [0, -1, 10.0, "10", None, True, 4_001],
    "epochs": [0, -5, 0.5, None, True],
    "batches_per_action": [0, -1, 2.0, None, 2_001],
    "continuous": [1, "yes", None],
    "action_scale": ["log", None],
    "schedule": ["exponential", None],
    "learning_rate_step": [0, -0.005, NAN, None],
    "learning_rate_min": [0, -1, NAN, None],
    "learning_rate_max": [0.001, NAN, None, "1"],
    "observation": ["image", None, [], ["log_loss", 1]],
    "reward": ["no-such-reward", None, 5],
    "target_loss": [0, -1, NAN, "low"],
    "meta_momentum": [-0.1, 1.1, NAN, "regression", True],
    "precision": ["float16", "tf32", None, 32],
    "pull_epochs": [-1, 1.5],
    "reference": ["/no/such/file.safetensors", "no-such-word", 5],
    "distillation": [-1, NAN, None, "1"],
    "resolution": [0, 1, 5, 56, 7.5, True, "7"],
    "classes": [[], [1], [1, 1], [0, 99], [0, -1], "12", 5],
    "data_seed": [-1, 1.5, True],
    "label_noise": [-0.1, 1.1, NAN, None, "0"],
    "input_scale": [0, -1, NAN, float("inf"), None],
    "input_centre": [-0.1, 1.1, NAN, None],
    "initial_scale": [0, -1, NAN, float("inf"), None],
    "batches": [0, -1, 1.5, True],
    "learning_rate_factor": [1, 0.5, NAN, "2", True],
    "learning_rate_factors": [[], [2], [0, 1], [1, "2"], 5, True],
    "imbalance": [0, 0.5, NAN, None, "2"],
    "replacement": [1, "yes", None],
    "class_validation_images": [0, 1.5, None, True],
    "class_weights": [-0.1, 1.1, None, True, "0.9", float("nan")],
    "divergence_penalty": [-1, NAN, float("inf"), None],
}


def test_every_argument_is_tried():
    assert WRONG_VALUES.keys() == {field.name for field in fields(TaskConfig)}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG_VALUES.items() for value in values]
)
def test_a_wrong_value_is_named(name, value):
    """A ValueError (of a path, FileNotFoundError) with the argument's name, or the wrong path, and the value."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        gym.make(LR, **{name: value})
    message = str(caught.value)
    assert name in message or (isinstance(value, str) and len(value) > 2 and value in message)
    if not isinstance(caught.value, FileNotFoundError):
        assert repr(value) in message or str(value) in message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"no_such_argument": 1}, "no_such_argument.*learning_rate"),
        ({"lr": 0.1}, "'lr'"),
        ({"batch_size": 4_001}, "batch_size 4001 .* 4000 images"),
        ({"batch_size": 11, "train_size": 10}, "batch_size 11 .* 10 images"),
        ({"batches_per_action": 401, "epochs": 1}, "batches_per_action 401 .* 400 mini-batches"),
        ({"batch_size": 101, "train_size": 100}, "batch_size 101 .* 100 images"),
        ({"batches_per_action": 11, "epochs": 1, "train_size": 100}, "batches_per_action 11 .* 10 mini-batches"),
        ({"render_mode": "rgb"}, "render_mode"),
        ({"env_id": "QanLR-v7"}, "QanLR-v7"),
        ({"reference": None, "distillation": 0.5}, "distillation.*reference"),
        ({"learning_rate_min": 2.0}, r"learning_rate_max must be .* at least 2.0 \(learning_rate_min\), .*, not 1.0"),
        (
            {"learning_rate": 0.004},
            r"must be .*\[0.005 \(learning_rate_min\), 1.0 \(learning_rate_max\)\], not 0.004",
        ),
        ({"action_scale": "absolute"}, "continuous=True"),
        ({"schedule": "exponential"}, "constant, linear, cosine, cooldown, one-cycle"),
        ({"validate_every": 0}, "at least 1"),
        ({"observation": ["no-such-feature"]}, "unknown feature 'no-such-feature'; there are log_learning_rate"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*render_mode:UserWarning")  # Gymnasium's own warning about it
def test_arguments_that_do_not_go_together(arguments, said):
    with pytest.raises(ValueError, match=said):
        gym.make(LR, disable_env_checker=True, **arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"batch_size": 81}, "batch_size 81 .* 80 images"),
        ({"network": "resnet-9"}, "unknown network 'resnet-9': did you mean 'resnet-8'. there are .*nin"),
        ({"optimizer": "lion"}, "unknown optimizer 'lion'; there are sgd, adamw"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov=True needs a momentum"),
        ({"nesterov": True, "optimizer": "adamw"}, "nesterov=True is for optimizer='sgd'"),
        ({"augment": "mirror"}, "augment must be one of None, zero, reflect"),
        ({"preprocess": "zca"}, "preprocess must be one of normalise, whiten"),
        ({"early_stopping": 0}, "early_stopping must be None or an integer of at least 1"),
    ],
)
def test_arguments_of_deep_networks_that_do_not_go_together(arguments, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        gym.make(CIFAR, dataset=made_photographs(tmp_path), **SMALL | arguments)


def test_continuous_needs_the_learning_rate_game():
    with pytest.raises(ValueError, match="continuous"):
        gym.make(MINIBATCH, continuous=True)


@pytest.mark.parametrize("make", [gym.make, gym.make_vec])
def test_an_unknown_argument_is_refused_in_pythons_words(make):
    """Libraries look for these words: TorchRL's GymEnv offers a `frameskip`, and withdraws it where it reads them."""
    with pytest.raises(
        TypeError, match="got an unexpected keyword argument 'frameskip'; there are game, dataset"
    ) as caught:
        make(LR, frameskip=1)
    assert isinstance(caught.value, ValueError)  # as every other wrong argument


@pytest.mark.parametrize("arguments", [{"batch_size": 100}, {"batch_size": 10, "batches_per_action": 10}])
def test_the_largest_values(arguments):
    """An epoch of 100 images is one mini-batch, or an episode is one action."""
    env = gym.make(LR, train_size=100, meta_momentum=None, **({"epochs": 1, "batches_per_action": 1} | arguments))
    env.reset(seed=0)
    assert env.step(2)[3]


@pytest.mark.parametrize("make", [gym.make, gym.make_vec])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"validate_every": 10**200}, "validate_every must be None or an integer of at least 1, below 2"),
        ({"pull_epochs": 10**200}, "pull_epochs must be"),
        ({"batch_size": 10**5000}, "batch_size must be .*, not a value of type int"),
        ({"epochs": 2**31}, "epochs must be"),
        ({"target_loss": 10**200}, "target_loss must be"),
        ({"target_loss": 1e39}, "target_loss must be .* at most 3.4e.38"),
        ({"learning_rate_min": 1e308}, "^learning_rate_min must be [^;]*$"),
        ({"learning_rate_min": "x"}, "^learning_rate_min must be [^;]*$"),
        ({"pull_epochs": 0, "momentum": 2, "epochs": 0}, "^momentum must be [^;]*; epochs must be [^;]*$"),
        ({"action_scale": np.array([1, 2])}, "action_scale must be one of"),
        ({"network": ["nin"]}, "network must be text"),
        ({"env_id": ["x"]}, "unknown task"),
        ({"device": 5}, "device must be a name"),
        ({"device": np.array([1, 2])}, "device must be a name"),
        ({"engine": np.array([1, 2])}, "engine must be one of"),
        ({"engine": None}, "engine must be one of"),
        ({"render_mode": ()}, "render_mode must be None or one of"),
        ({"render_mode": 5}, "render_mode must be None or one of"),
        ({"render_mode": np.array(["human"])}, "render_mode must be None or one of"),
        ({"batches_per_action": 2**31 - 1, "epochs": 2**31 - 1, "reference": None}, "more memory than there is"),
    ],
)
def test_values_of_any_kind_are_blamed_on_their_argument(make, arguments, said):
    with pytest.raises(ValueError, match=said):
        make(LR, **arguments)


@pytest.mark.parametrize("env_id", [LR, FAMILY])
def test_more_rows_than_there_is_memory_for(env_id):
    """Linux hands out memory that is not there, and kills whoever uses it."""
    with pytest.raises(ValueError, match=r"1000000000 runs of this task need more memory than there is.* GiB"):
        gym.make_vec(env_id, num_envs=10**9)


def test_names_of_a_familys_arguments():
    """What is suggested is one of them, not of those that single tasks have."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'optimizers'; there are split") as caught:
        gym.make("QanMinibatch-LongTail-v0", optimizers=["adamw"])
    assert "optimizer," not in str(caught.value)
    with pytest.raises(TypeError, match="'num_task': did you mean 'num_tasks'"):
        gym.make(FAMILY, num_task=3)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is such a device")
def test_what_torch_says_of_a_device_is_cut():
    with pytest.raises(ValueError, match="device 'mps' cannot be used here") as caught:
        gym.make(LR, device="mps", meta_momentum=None)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("arguments", [{"autoreset_mode": []}, {"output": np.array([1, 2])}, {"num_envs": 10**200}])
def test_arguments_of_vector_environments(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        gym.make_vec(LR, **arguments)


@pytest.mark.parametrize("make", [gym.make, gym.make_vec])
@pytest.mark.parametrize("options", ["x", 5, [], False, set(), (), {"sampler": ["game"]}, {5: 1}])
def test_wrong_options_of_a_reset(make, options):
    env = make(LR, meta_momentum=None, reference=None)
    with pytest.raises(ValueError, match="option"):
        env.reset(options=options)


@pytest.mark.parametrize("make", [gym.make, gym.make_vec])
@pytest.mark.parametrize("seed", [True, False, np.bool_(True)])
def test_a_flag_is_no_seed(make, seed):
    env = make(LR, meta_momentum=None, reference=None)
    with pytest.raises(ValueError, match="seed must be an integer of at least 0 or None, not"):
        env.reset(seed=seed)


def test_a_seed_of_numpy_is_a_seed():
    env = gym.make(LR, meta_momentum=None, reference=None)
    np.testing.assert_array_equal(env.reset(seed=np.int64(7))[0], env.reset(seed=7)[0])


@pytest.mark.parametrize(
    "action",
    [
        10**30,
        -(2**70),
        2**64,
        None,
        "x",
        [0, [1]],
        type("Other", (), {"__str__": lambda _: "other"})(),
        {},
        np.array("x"),
    ],
    ids=str,
)
def test_actions_of_any_kind(action):
    for make, wrong in ((gym.make, action), (gym.make_vec, [action])):
        env = make(LR, meta_momentum=None, reference=None)
        env.reset(seed=0)
        with pytest.raises(ValueError, match="action"):
            env.unwrapped.step(wrong)
