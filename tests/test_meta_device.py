"""The parts that CUDA captures, on PyTorch's meta device: it raises where a tensor would leave the device.

Tensors of the meta device have no contents. So whatever reads one on the host (`.item()`, `if`, `.cpu()`, an index
whose shape depends on the contents), and whatever mixes it with a tensor of another device, is an error here, as it
would be in a captured graph; no GPU is needed. The numbers are compared by the tests that are marked `cuda`.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.distributed.tensor  # before a test replaces the generator that its annotations name
from helpers import made_npz, small_data

from qan_agents.dqn import DQN, DQNConfig, EnvInterface
from qan_agents.dqn.presets import PRESETS
from qan_agents.dqn.vector_env import Transitions
from qan_agents.ppo import PPO, PPOConfig, PPOInterface
from qan_agents.ppo.actions import ActionSpace
from qan_gym.core.components import Components, build_components
from qan_gym.core.engine import namespace
from qan_gym.core.training import Training
from qan_gym.data.datasets import DeviceData
from qan_gym.optimizee.optimizers import OPTIMIZERS
from qan_gym.tasks import TASKS, make_task_config
from qan_gym.utils.precision import Precision

META = torch.device("meta")
NUM_RUNS = 3
# What waits for the device is not captured, see `Components.waits`: drawing with replacement, packages' optimizers.
IDS = [env_id for env_id, task in TASKS.items() if not task.replacement]
OWN_OPTIMIZERS = [name for name, make in OPTIMIZERS.items() if make.__module__.startswith("qan_gym.")]
SMALL = {"epochs": 2, "batch_size": 4, "batches_per_action": 2, "train_size": 40}
ALONE = {"meta_momentum": None, "reference": None}
CASES = {
    **{env_id: (env_id, {}) for env_id in IDS},
    **{f"{env_id}, {name}": (env_id, {"optimizer": name}) for env_id in IDS for name in OWN_OPTIMIZERS},
    **{f"{env_id}, {kind}": (env_id, {"precision": kind}) for env_id in IDS for kind in ("tf32", "bf16")},
    **{
        f"{network}, {kind}": (IDS[-1], {"network": network, "precision": kind})
        for network in ("nin", "wrn-40-4", "resnet-8")
        for kind in ("float32", "bf16")
    },
    "nesterov": (IDS[0], {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}),
    "distillation": (IDS[0], {"distillation": 0.5}),
    "previous": (IDS[0], {"reference": "previous"}),
    "filter regression": (IDS[0], {"meta_momentum": "filter-regression"}),
    "augmented": (IDS[-1], {"augment": "zero"}),
    "continuous, one-cycle": (IDS[0], {"continuous": True, "schedule": "one-cycle", "action_scale": "absolute"}),
    "multiplicative": (IDS[0], {"action_scale": "multiplicative", "schedule": "cosine"}),
    "features": (IDS[0], {"observation": ["momentum", "log_weight_decay", "log_validation_loss_change"]}),
    **{
        f"statistics, {name}": (IDS[0], {"observation": "statistics", "optimizer": name, "validate_every": 5})
        for name in OWN_OPTIMIZERS
    },
    "statistics of a deep network, scaled loss": (IDS[-1], {"observation": "statistics", "loss_scale": 2.0}),
    "statistics of another game": (IDS[1], {"observation": "statistics", "momentum": 0.9, "weight_decay": 0.1}),
    "target loss, accuracy": (IDS[0], {"target_loss": 0.1, "reward": "accuracy"}),
    "whitened": (IDS[-1], {"preprocess": "whiten"}),
}

QUICK = ("QanLR-MNIST5k-v1", "QanMinibatch-MNIST5k-v1", "previous", "distillation", "augmented", "statistics, sgd")


@pytest.fixture(scope="module")
def colour_data(tmp_path_factory):
    return made_npz(tmp_path_factory.mktemp("meta") / "colour.npz", shape=(32, 32, 3), n_test=10)


def parts_on_meta(env_id: str, arguments: dict, colour_data: str = "") -> Components:
    """The components of a task, built on CPU, on the meta device; tf32 as on CUDA."""
    wanted = {**SMALL, "dataset": small_data(), **arguments}
    if "CIFAR" in env_id:
        wanted = {**SMALL, **ALONE, "dataset": colour_data, "network": "resnet-8", **arguments}
    precision = wanted.pop("precision", "float32")
    parts = build_components(make_task_config(env_id, wanted), "cpu", "torch")
    moved = DeviceData(
        {name: value.to(META) for name, value in parts.data.images.items()},
        {name: value.to(META) for name, value in parts.data.labels.items()},
        parts.data.mean.to(META),
        parts.data.std.to(META),
    )
    kind = Precision(precision, torch.device("cuda")) if precision == "tf32" else Precision(precision, META)
    return replace(parts, device=META, data=moved, precision=kind, xp=namespace("torch", META))


def refuse_copies(make: Callable) -> Callable:
    """A function that makes tensors, but none on the device of what is on the host: a graph cannot capture the copy."""

    def made(data, *args, device=None, **kwargs):
        assert device is None or getattr(data, "device", None) == META, "a number was copied to the device"
        return make(data, *args, device=device, **kwargs)

    return made


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_both_halves_of_a_step_stay_on_the_device(case, colour_data, monkeypatch):
    # Autocast does not know the meta device: without it the same operations are computed in float32.
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())
    parts = parts_on_meta(*CASES[case], colour_data)
    assert not parts.waits
    needs_reference = parts.config.reference not in (None, "previous")
    shapes = parts.network.shapes
    reference = {name: torch.zeros(shape, device=META) for name, shape in shapes.items()} if needs_reference else None
    training = Training(parts, reference, NUM_RUNS)
    with monkeypatch.context() as patch:
        for name in ("asarray", "as_tensor", "tensor"):
            patch.setattr(torch, name, refuse_copies(getattr(torch, name)))
        for _ in range(2):
            training._act_and_train()
            seen = training._see()
    rows, columns = parts.observer.shape
    assert seen.observation.shape == (NUM_RUNS, rows * columns)
    assert all(value.shape == (NUM_RUNS,) for value in seen.reward_terms.values())
    assert all(
        tensor.device == META for _, spec, tensor in training.run.leaves() if not getattr(spec, "on_host", False)
    )


def test_reading_a_tensor_is_an_error():
    """The test above can fail: a reward that waits for the device raises."""
    training = Training(parts_on_meta(IDS[0], ALONE), None, NUM_RUNS)
    with pytest.raises(RuntimeError, match=r"meta|Meta"):
        bool(training.run.loss.sum() > 0)


def test_what_waits_for_the_device_says_so():
    import qan_agents.bench.parameter_free
    import qan_agents.bench.schedule_free  # noqa: F401 (both register optimizers)

    small = {**SMALL, "dataset": small_data()}
    others = [name for name in OPTIMIZERS if name not in OWN_OPTIMIZERS]
    assert len(others) >= 5
    for name in others:
        assert build_components(make_task_config(IDS[0], {**small, "optimizer": name, "momentum": 0.9}), "cpu").waits
    assert build_components(make_task_config("QanMinibatch-LongTail-v0", {}), "cpu").waits


SWITCHES = {
    "all": {"double": True, "dueling": True, "layer_norm": True, "quantiles": 5, "n_step": 3, "priority_exponent": 0.6,
            "history": 2, "tau": 0.1, "target_update_interval": 1, "storage": "float16"},
    "clipped": {"max_grad_norm": 1.0, "clip_td_error": None},
    **{f"preset {name}": name for name in PRESETS},
}  # fmt: skip


@pytest.mark.parametrize("switches", ["none", *SWITCHES])
def test_acting_remembering_and_learning_stay_on_the_device(switches, monkeypatch):
    """What the bundled DQN captures: act, write, and an update."""
    given = SWITCHES.get(switches, {})
    config = PRESETS[given](1_000) if isinstance(given, str) else replace(DQNConfig(), **given)
    config = replace(config, buffer_size=64)
    # There is no generator on the meta device; without one, random tensors are as much without contents.
    none, generator = SimpleNamespace(manual_seed=lambda seed: None), torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": none if device == META else generator(device))
    interface = EnvInterface((33 * 25,), "float32", 3, (33, 25), 7)
    agent = DQN(config, interface, META)
    frames, flags = torch.zeros(2, interface.frame_size, device=META), torch.zeros(2, dtype=torch.bool, device=META)
    agent.begin(frames)
    for _ in range(2):
        assert agent.act().device == META
        agent.remember(Transitions(frames, frames, frames[:, 0], flags, flags, flags, flags, {}))
        agent.update(2)
    assert agent.weights.device == META


class NoGenerator:
    """In the place of `torch.Generator`, of which there is none on the meta device."""

    def __init__(self, device: torch.device) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        """Random tensors without contents need no generator."""


SPACES = {
    "discrete": ActionSpace((), choices=(3,)),
    "multi-discrete": ActionSpace((2,), choices=(3, 5)),
    "box": ActionSpace((2,), low=(-1.0, None), high=(1.0, None)),
}


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("recurrent", [0, 4])
def test_the_rounds_of_a_ppo_stay_on_the_device(kind, recurrent, monkeypatch):
    """Acting, remembering, advantages, all updates of a round with their early stop; nothing of it asks the host."""
    real = torch.Generator
    none = lambda device="cpu": NoGenerator(device) if device == META else real(device)  # noqa: E731
    monkeypatch.setattr(torch, "Generator", none)
    settings = {"features": "scores", "privileged": "task", "target_kl": 0.01, "anneal_steps": 100}
    config = PPOConfig(steps_per_round=3, minibatches=2, recurrent=recurrent, **settings)
    interface = PPOInterface((33 * 25,), (33, 25), 7, SPACES[kind], "task", ("depth", "width"))
    agent = PPO(config, interface, META)
    frames, flags = torch.zeros(2, 33 * 25, device=META), torch.zeros(2, dtype=torch.bool, device=META)
    infos = {"task": {"depth": frames[:, 0], "width": frames[:, 1]}, "_task": flags}
    agent.begin(frames, infos)
    for _ in range(6):
        assert agent.act().device == META
        next_frames = torch.zeros_like(frames)
        infos = {**infos, "final_info": infos}
        agent.remember(Transitions(frames, next_frames, frames[:, 0], flags, flags, flags, flags, infos))
        agent.learn()
    assert agent.rounds == 2
    assert agent.weights.device == agent.last_round["kl"].device == META
