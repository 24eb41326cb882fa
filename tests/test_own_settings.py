"""What a user has set in the process neither changes an environment nor is changed by one; nor do threads."""

import copy
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cache, partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import made_deep_game
from torch import nn

import qan_gym
from qan_gym.core.reward import REWARDS
from qan_gym.utils import own_settings as module
from qan_gym.utils.own_settings import own_settings, threads_for, users_threads
from qan_gym.utils.random_streams import drawing_from

LR, CIFAR = "QanLR-MNIST5k-v1", "QanLR-CIFAR10-v0"
SHORT = {"train_size": 60, "batch_size": 10, "epochs": 1, "batches_per_action": 2, "reference": None}  # 3 actions


def slow(*values: Any) -> Any:
    """Parameters of a test that is marked `slow`."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def games(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, dict[str, Any]]]:
    """One of either engine, a deep one, and one in bf16; the default engine of the first depends on the machine."""
    deep = made_deep_game(tmp_path_factory.mktemp("deep")) | {"reference": None, "epochs": 1, "batch_size": 16}
    return {
        "auto": (LR, SHORT),
        "torch": (LR, SHORT | {"engine": "torch"}),
        "bf16": (LR, SHORT | {"precision": "bf16"}),
        "deep": (CIFAR, deep),
    }


GAMES = ["auto", "torch", "bf16", "deep"]


def set_while(get: Callable[[], Any], put: Callable[[Any], Any], value: Any) -> Callable[[], AbstractContextManager]:
    """A context in which a setting of the process has a value."""

    @contextmanager
    def context() -> Iterator[None]:
        before = get()
        put(value)
        try:
            yield
        finally:
            put(before)

    return context


def flushes_denormals() -> bool:
    return bool((np.array([1e-40], np.float32) * np.float32(1))[0] == 0)


backends: Any = torch.backends
# What a user may have set, as contexts.
AMBIENT: dict[str, Callable[[], AbstractContextManager]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "float64": set_while(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "bfloat16": set_while(torch.get_default_dtype, torch.set_default_dtype, torch.bfloat16),
    "meta_device": lambda: torch.device("meta"),
    "default_device": set_while(lambda: None, torch.set_default_device, "meta"),
    "medium": set_while(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"),
    "bf16_convolutions": set_while(lambda: "none", partial(setattr, backends.mkldnn.conv, "fp32_precision"), "bf16"),
    "no_mkldnn": lambda: backends.mkldnn.flags(enabled=False),
    "deterministic": set_while(torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True),
    "anomalies": torch.autograd.detect_anomaly,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "flush_denormals": set_while(flushes_denormals, torch.set_flush_denormal, True),
    "numpy_errors": lambda: np.errstate(all="raise"),
    "two_threads": set_while(torch.get_num_threads, torch.set_num_threads, 2),
    "three_threads": set_while(torch.get_num_threads, torch.set_num_threads, 3),
}


def settings() -> list[Any]:
    """What the user can see of his settings."""
    one = torch.ones(1, device="cpu")
    return [
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.empty(0).device,
        torch.get_float32_matmul_precision(),
        backends.mkldnn.matmul.fp32_precision,
        backends.mkldnn.conv.fp32_precision,
        backends.mkldnn.enabled,
        torch.get_deterministic_debug_mode(),
        torch.is_anomaly_enabled(),
        torch.is_autocast_enabled("cpu"),
        (one @ one).dtype,
        flushes_denormals(),
        np.geterr(),
        torch.get_num_threads(),
        torch.get_rng_state().tolist(),
    ]


def seen(outcome: tuple) -> tuple:
    """What reset or step returned, comparable."""
    return tuple(part.tobytes() if isinstance(part, np.ndarray) else part for part in outcome)


def episode(env: gym.Env, steps: int = 3) -> list[Any]:
    """All that can be observed of a short episode."""
    found: list[Any] = [seen(env.reset(seed=3))]
    for action in range(steps):
        found.append(seen(env.step(action)))
    return [*found, {name: value.tobytes() for name, value in env.unwrapped.weights().items()}]


def looked_ahead(env: gym.Env) -> list[Any]:
    found = qan_gym.counterfactual(env, 2)
    return [found.validation_loss.tolist(), found.returns.tolist()]


def everything(env_id: str, arguments: dict[str, Any]) -> list[Any]:
    """Make, play, copy, pickle, look ahead, save and restore."""
    env = gym.make(env_id, **arguments)
    found = [episode(env)]
    env.reset(seed=4)
    env.step(0)
    for twin in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        found += [looked_ahead(twin), seen(twin.unwrapped.step(1)), seen(twin.reset())]
    state = env.unwrapped.get_state()
    env.reset(seed=5)
    env.unwrapped.set_state(state)
    found.append(seen(env.unwrapped.step(1)))
    images, labels = env.unwrapped.split("train")
    return [*found, images.tobytes(), labels.tobytes()]


def rows(env_id: str, arguments: dict[str, Any]) -> list[Any]:
    envs = gym.make_vec(env_id, num_envs=2, **arguments)
    found = [seen(envs.reset(seed=3)[:1]), *(seen(envs.step(np.array([0, 1]))[:2]) for _ in range(2))]
    twin = copy.deepcopy(envs)
    found += [seen(twin.step(np.array([2, 0]))[:2]), {name: value.tobytes() for name, value in envs.weights().items()}]
    envs.close()
    return found


@pytest.fixture(scope="module")
def expected(games: dict) -> Callable[[str], list[Any]]:
    """What a game gives in a process in which nothing was set."""
    return cache(lambda name: [everything(*games[name]), rows(*games[name])])


QUICK = [
    *(("torch", name) for name in ("inference_mode",)),
    *(("auto", name) for name in ("no_grad", "flush_denormals", "two_threads")),
    *(("deep", name) for name in ("float64", "medium")),
]


@pytest.mark.parametrize(
    ("game", "name"),
    [(game, name) if (game, name) in QUICK else slow(game, name) for game in GAMES for name in AMBIENT],
)
def test_settings_of_the_user_change_nothing_and_are_not_changed(
    game: str, name: str, games: dict, expected: Callable
) -> None:
    """Bit for bit what it is in a process in which nothing was set."""
    wanted = expected(game)
    with AMBIENT[name]():
        before = settings()
        found = [everything(*games[game]), rows(*games[game])]
        assert settings() == before
    assert found == wanted


# --- threads --------------------------------------------------------------------------------------------------------


def test_environments_in_threads_are_those_of_one_thread(games: dict) -> None:
    """Made, reset, copied and stepped in four threads at once: each episode is that of its seed."""
    env_id, arguments = games["deep"]
    shared = gym.make_vec(env_id, num_envs=1, **arguments)  # whose copies share its network
    shared.reset(seed=0)

    def play(seed: int) -> list[Any]:
        env = gym.make(env_id, **arguments)
        found = [seen(env.reset(seed=seed)), seen(env.step(0))]
        twin = copy.deepcopy(shared)
        return [*found, seen(twin.reset(seed=seed)[:1]), seen(twin.step(np.zeros(1, np.int64))[:2])]

    seeds = [5, 6, 7, 8]
    wanted = [play(seed) for seed in seeds]
    torch.manual_seed(2)
    before = settings()
    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            assert list(pool.map(play, seeds)) == wanted
    assert settings() == before


def test_copies_of_rows_in_threads_do_not_share_memory() -> None:
    """The layers of a network keep tensors for what they compute in between: of each thread its own."""
    arguments = SHORT | {"engine": "torch", "epochs": 9}
    envs = [gym.make_vec(LR, num_envs=2, **arguments)]
    envs[0].reset(seed=0)
    envs += [copy.deepcopy(envs[0]) for _ in range(3)]
    wanted = copy.deepcopy(envs[0])
    actions = np.array([0, 1])
    steps = [seen(wanted.step(actions)[:2]) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda env: [seen(env.step(actions)[:2]) for _ in range(4)], envs):
            assert found == steps


def test_drawing_leaves_the_default_generator_to_other_threads() -> None:
    """What another thread draws meanwhile is what it draws alone; and the weights are those of the seed."""
    torch.manual_seed(1)
    alone = [torch.rand(3).tolist() for _ in range(300)]
    torch.manual_seed(9)
    weights = nn.Linear(30, 30).weight.tolist()
    torch.manual_seed(1)
    drawn: list[Any] = []
    thread = threading.Thread(target=lambda: drawn.extend(torch.rand(3).tolist() for _ in range(300)))
    thread.start()
    for _ in range(50):
        with drawing_from(9):
            assert nn.Linear(30, 30).weight.tolist() == weights
    thread.join()
    assert drawn == alone


def everything_drawn() -> list[torch.Tensor]:
    empty = torch.empty(6, 4)
    filled = [
        getattr(torch.empty(9), name)() for name in ("uniform_", "normal_", "exponential_", "cauchy_", "bernoulli_")
    ]
    drawn = [torch.rand(3), torch.randn(40), torch.randint(9, (4,)), torch.randint(2, 9, (4,)), torch.randperm(7)]
    like = [torch.rand_like(empty), torch.randn_like(empty), torch.randint_like(empty, 5)]
    chosen = [
        torch.normal(torch.zeros(3), 1.0),
        torch.multinomial(torch.ones(5), 3),
        torch.bernoulli(torch.full((4,), 0.5)),
    ]
    initial = [
        nn.init.trunc_normal_(empty.clone()),
        nn.init.orthogonal_(empty.clone()),
        nn.init.sparse_(empty.clone(), 0.3),
    ]
    layers = [nn.Conv2d(3, 4, 3), nn.LSTM(3, 4), nn.MultiheadAttention(8, 2), nn.Embedding(4, 3)]
    return [
        *filled,
        *drawn,
        *like,
        *chosen,
        *initial,
        *(value.detach() for one in layers for value in one.parameters()),
    ]


@pytest.mark.parametrize("seed", [0, 7, 2**40, 2**63 - 1])
def test_drawing_gives_the_numbers_of_the_default_generator(seed: int) -> None:
    """For every function that draws: what a seed has always given."""
    torch.manual_seed(seed)
    wanted = everything_drawn()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with drawing_from(seed):
        found = everything_drawn()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


# --- numbers of threads ---------------------------------------------------------------------------------------------


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_small_networks_take_one_thread(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a call; large ones take the user's, and QAN_GYM_THREADS says it for all."""
    monkeypatch.delenv("QAN_GYM_THREADS", raising=False)
    assert threads_for(105_506) == 1
    assert threads_for(1_000_000) is None
    monkeypatch.setenv("QAN_GYM_THREADS", "3")
    assert threads_for(105_506) == threads_for(1_000_000) == 3
    for threads, found in ((1, 1), (None, 2), (3, 3)):
        with own_settings(threads):
            assert torch.get_num_threads() == found
            assert users_threads() == 2
            with own_settings(None):  # nested
                assert torch.get_num_threads() == 2
            assert torch.get_num_threads() == found
        assert torch.get_num_threads() == 2


@pytest.mark.parametrize("wrong", ["0", "-1", "many", "1.5"])
def test_a_wrong_number_of_threads_is_refused(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAN_GYM_THREADS", wrong)
    with pytest.raises(ValueError, match=f"QAN_GYM_THREADS must be a number of threads.*{wrong}"):
        gym.make(LR, **SHORT)


def test_steps_of_small_networks_run_on_one_thread(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a reward function sees; the user's setting stands again after a call, and after one that raised."""
    found: list[int] = []
    monkeypatch.setitem(REWARDS, "spy", lambda run: found.append(torch.get_num_threads()) or run.loss * 0)
    env = gym.make(LR, **SHORT | {"reward": "spy"})
    env.reset(seed=0)
    env.step(0)
    assert set(found) == {1}
    monkeypatch.setitem(REWARDS, "spy", lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        env.step(0)
    assert torch.get_num_threads() == 2


def test_a_thread_that_begins_within_a_call_of_another_has_the_users_number(two_threads: None) -> None:
    """PyTorch gives a new thread the number that was set last, which is that of the call."""
    found: list[int] = []

    def other() -> None:
        with own_settings():
            pass
        found.append(torch.get_num_threads())

    with own_settings():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert found == [2]
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert found == [2, 2]


def test_overlapping_calls_put_back_what_the_first_found() -> None:
    """Settings of the process are there until the last of the calls has ended."""
    begun, go_on = threading.Event(), threading.Event()

    def other() -> None:
        with own_settings():
            begun.set()
            go_on.wait()

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        thread = threading.Thread(target=other)
        with own_settings():
            thread.start()
            begun.wait()
        assert torch.get_default_dtype() == torch.float32  # the other call computes
        go_on.set()
        thread.join()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("kind", ["dqn", "ppo"])
def test_agents_take_one_thread_and_leave_the_settings_as_they_are(kind: str, two_threads: None) -> None:
    """The bundled ones: what they play and learn under other settings is what they play and learn without."""
    pytest.importorskip("qan_agents.dqn")
    from qan_agents import dqn, ppo

    small = replace(dqn.DQNConfig(), buffer_size=64, learning_starts=2, batch_size=4, hidden=(8,))
    makers: dict[str, tuple[Callable, Callable]] = {
        "dqn": (lambda env: dqn.DQN(small, dqn.EnvInterface.of(env), seed=3), dqn.train),
        "ppo": (
            lambda env: ppo.PPO(ppo.PPOConfig(steps_per_round=2, hidden=(8,)), ppo.PPOInterface.of(env), seed=3),
            ppo.train,
        ),
    }
    make, train = makers[kind]

    def weights() -> bytes:
        env = gym.make_vec(LR, num_envs=2, **SHORT)
        agent = make(env)
        train(agent, env, 8, seed=5)
        assert agent.own_settings.threads == 1
        env.close()
        return agent.weights.numpy().tobytes()

    wanted = weights()
    for name in ("no_grad", "inference_mode", "float64", "default_device", "autocast"):
        with AMBIENT[name]():
            before = settings()
            assert weights() == wanted, name
            assert settings() == before


# --- forked processes -----------------------------------------------------------------------------------------------

FORKED = """
import gymnasium as gym, numpy as np, torch
import qan_gym
torch.set_num_threads(2)
(torch.rand(800, 800) @ torch.rand(800, 800)).exp().sum()  # on two threads, which a fork does not copy
envs = gym.make_vec({env_id!r}, num_envs=2, vectorization_mode="async", **{arguments!r})
observation, _ = envs.reset(seed=3)
print(float(observation.sum()), envs.step(np.zeros(2, np.int64))[1].tolist())
envs.call("split", "train")
envs.call("weights")
envs.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("game", ["auto", slow("torch"), slow("deep")])
def test_forked_workers_play_after_the_parent_used_two_threads(game: str, games: dict) -> None:
    """Gymnasium's AsyncVectorEnv forks by default; the workers play what the environment is alone."""
    env_id, arguments = games[game]
    code = FORKED.format(env_id=env_id, arguments=arguments)
    environ = {**os.environ, "OMP_NUM_THREADS": "2"}
    run = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    envs = [gym.make(env_id, **arguments) for _ in range(2)]
    total = float(np.array([env.reset(seed=3 + row)[0] for row, env in enumerate(envs)]).sum())
    assert run.stdout.strip() == f"{total} {[env.step(0)[1] for env in envs]}"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_within_a_call_of_another_thread_has_the_users_settings() -> None:
    """The call does not go on in the child, so nothing else would put them back."""
    begun, go_on = threading.Event(), threading.Event()

    def other() -> None:
        with own_settings(), drawing_from(0):
            begun.set()
            go_on.wait()

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    thread = threading.Thread(target=other)
    thread.start()
    begun.wait()
    try:
        child = os.fork()
        if child == 0:
            good = torch.get_default_dtype() == torch.float64 and not module._process.calls
            with own_settings(), drawing_from(0):  # neither lock is held
                good &= torch.get_default_dtype() == torch.float32
            os._exit(0 if good else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        go_on.set()
        thread.join()
        torch.set_default_dtype(before)
