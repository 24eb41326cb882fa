"""Other libraries: the examples of docs/everywhere.md play whole episodes."""

import re
import runpy
import subprocess
import sys
from importlib.resources import files

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import EXAMPLES, SHORT, load_example

from qan_agents import zoo
from qan_agents.dqn.presets import make_dqn_config

RETURN = re.compile(r"return (\S+?)(?:,|$)", re.MULTILINE)
LEAST, MOST = 0.5, 5.0  # a return: ln(initial loss / final validation loss), whatever the actions

GAME = {"epochs": 1, "meta_momentum": None}  # 40 actions


def require(module: str, extra: str) -> None:
    """Skip where a library is not installed (or only half of it)."""
    pytest.importorskip(module, reason=f"needs {module}: pip install 'qan-gym[{extra}]'", exc_type=ImportError)


def run(*command: object, **kwargs: object) -> str:
    """Run Python with arguments; returns what it printed."""
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=300, **kwargs)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def returns_of(name: str, *arguments: object) -> list[float]:
    """The returns that an example printed in a process of its own."""
    return returns_in(run(EXAMPLES / f"{name}.py", *arguments))


def returns_in(printed: str) -> list[float]:
    """The returns in the output of an example, each in the range of the returns of an episode."""
    returns = [float(score) for score in RETURN.findall(printed)]
    assert all(LEAST < score < MOST for score in returns), returns
    return returns


@pytest.fixture
def run_here(monkeypatch, capsys):
    """A function that runs an example as a script, in this process: (name, arguments) -> the returns it printed."""

    def run_script(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return returns_in(capsys.readouterr().out)

    return run_script


def test_dqn_in_the_manner_of_cleanrl(run_here):
    assert len(run_here("cleanrl_dqn", "--steps", 85)) == 2  # 80 steps, and five of the third episode, with updates


def test_ppo_in_the_manner_of_cleanrl(run_here):
    # Episodes of 40 actions; the step between two is a reset. The second ends with the first step of a third rollout.
    assert len(run_here("cleanrl_ppo", "--num-envs", 1, "--steps", 3 * 40)) == 2


def test_its_advantages_know_where_an_episode_ends():
    ppo = load_example("cleanrl_ppo")
    gamma, decay = ppo.GAMMA, ppo.GAMMA * ppo.LAMBDA
    # Columns: nothing ends; the second step is truncated; it terminates. The third, after an end, is a reset.
    rewards = torch.tensor([[1.0] * 3, [2.0] * 3, [3.0, 0.0, 0.0], [4.0] * 3])
    values = torch.tensor([[10.0] * 3, [20.0] * 3, [30.0] * 3, [40.0] * 3, [50.0] * 3])
    terminated, truncated = torch.zeros(2, 4, 3, dtype=torch.bool)
    truncated[1, 1] = terminated[1, 2] = True
    out = ppo.advantages(rewards, values, terminated, terminated | truncated)
    last = 4 + gamma * 50 - 40
    goes_on = 2 + gamma * 30 - 20 + decay * (3 + gamma * 40 - 30 + decay * last)
    torch.testing.assert_close(out[3], torch.full((3,), last))
    torch.testing.assert_close(out[1], torch.tensor([goes_on, 2 + gamma * 30 - 20, 2.0 - 20]))
    torch.testing.assert_close(out[0], 1 + gamma * 20 - 10 + decay * out[1])


@pytest.mark.slow
def test_spawned_processes():
    assert len(returns_of("async_vector_env", "--num-envs", 2)) == 2


@pytest.mark.parametrize("name", ["QRDQN", pytest.param("RecurrentPPO", marks=pytest.mark.slow)])
def test_sb3_contrib(name):
    require("sb3_contrib", "sb3-contrib")
    example = load_example("sb3_algorithms")
    model = example.make(name, "QanLR-MNIST5k-v1", **SHORT)
    if name == "RecurrentPPO":
        model.n_epochs = 1  # for a shorter test
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    model.learn(80)
    assert any(not torch.equal(before[key], value) for key, value in model.policy.state_dict().items())
    info = example.play(model)
    assert info["batch"] == 20  # the whole episode
    assert 0 < info["test_accuracy"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DQN", "PPO", "SAC"])
def test_sbx(name):
    require("sbx", "sbx")
    example = load_example("sb3_algorithms")
    model = example.make(name, "QanLR-MNIST5k-v1", "sbx", **SHORT)
    state = "qf_state" if name == "DQN" else "actor_state"
    before = repr(getattr(model.policy, state).params)
    model.learn(60)  # past the end of an episode of 20, and of the 50 random actions at first
    assert repr(getattr(model.policy, state).params) != before
    info = example.play(model)
    assert info["batch"] == 20  # the whole episode
    assert 0 < info["test_accuracy"] < 1


def test_a_library_without_the_algorithm(run_here, capsys):
    with pytest.raises(SystemExit):
        run_here("sb3_algorithms", "QRDQN", "--library", "stable_baselines3")
    assert "stable_baselines3 has no QRDQN" in capsys.readouterr().err


def test_torchrl():
    require("torchrl", "torchrl")
    first, second, greedy = returns_of("torchrl_dqn", "--steps", 80)
    assert greedy not in (first, second)


@pytest.mark.slow
def test_torchrl_on_the_vector_environment():
    require("torchrl", "torchrl")
    out = run(EXAMPLES / "torchrl_vector_env.py")
    assert len(re.findall(r"mean return \d\.\d+", out)) == 2, out  # of two modes of resetting


@pytest.mark.slow
def test_skrl():
    require("skrl", "skrl")
    assert len(returns_of("skrl_ppo", "--steps", 45)) == 4  # an episode of each of the environments


@pytest.mark.slow
def test_d3rlpy():
    pytest.importorskip("d3rlpy", reason="needs d3rlpy; examples/d3rlpy_cql.py says how to install it")
    assert len(returns_of("d3rlpy_cql")) >= 1


@pytest.mark.slow
def test_sample_factory():
    pytest.importorskip("sample_factory", reason="needs sample-factory; its example says how to install it")
    if np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip("Sample-Factory needs NumPy before 2.4")
    assert len(returns_of("sample_factory_appo")) >= 1


def test_tianshou():
    require("tianshou", "tianshou")
    assert len(returns_of("tianshou_dqn", "--steps", 160)) == 1


def test_rllib():
    require("ray.rllib.algorithms.ppo", "rllib")
    out = run(EXAMPLES / "rllib_ppo.py", "--iterations", 1, "--batch", 120)
    assert re.search(r"3 episodes of 40 actions, mean return \d\.\d+", out), out


# --- rl-baselines3-zoo ----------------------------------------------------------------------------------------------

ZOO = files("qan_agents") / "zoo"


def test_the_wrapper_of_the_zoo_shows_the_score_line():
    game = gym.make("QanLR-MNIST5k-v1", **SHORT)
    env = zoo.ScoreLine(game)
    shown, _ = env.reset(seed=3)
    screen = game.reset(seed=3)[0].reshape(game.unwrapped.screen_shape)
    np.testing.assert_array_equal(shown[:5], screen[-1, :5])
    np.testing.assert_allclose(shown[5], np.sqrt(np.square(screen[:-1]).mean()), rtol=1e-6)
    assert shown in env.observation_space
    assert gym.make(env.spec).observation_space == env.observation_space


@pytest.mark.parametrize("env_id", ["QanLR-MNIST5k-v1", "QanMinibatch-MNIST5k-v1"])
def test_the_zoo_plays_dqn_with_the_preset(env_id):
    require("stable_baselines3", "agents")
    yaml = pytest.importorskip("yaml", reason="needs pyyaml")
    from qan_agents.agents.dqn import sb3_arguments

    shipped = yaml.safe_load((ZOO / "dqn.yml").read_text())[env_id]
    steps = shipped.pop("n_timesteps")
    assert steps == 20 * gym.make(env_id).unwrapped.episode_length
    assert (shipped.pop("policy"), shipped.pop("train_freq")) == ("MlpPolicy", 1)
    assert shipped.pop("env_wrapper").endswith(f".{zoo.ScoreLine.__name__}")
    assert make_dqn_config("quick", steps, {}).features == "score-line"  # which the wrapper reads
    hidden = shipped.pop("policy_kwargs")
    preset = sb3_arguments(make_dqn_config("quick", steps, {}), steps)
    assert hidden == f"dict(net_arch={preset['policy_kwargs']['net_arch']})"
    assert shipped == {name: preset[name] for name in shipped}


@pytest.mark.parametrize("algorithm", ["dqn", "ppo"])
def test_the_zoo_trains(algorithm, tmp_path):
    require("rl_zoo3", "zoo")
    command = ["-m", "rl_zoo3.train", "--algo", algorithm, "--env", "QanLR-MNIST5k-v1", "--gym-packages", "qan_gym"]
    game = ["--env-kwargs", *(f"{name}:{value}" for name, value in GAME.items())]
    out = run(*command, "--conf-file", ZOO / f"{algorithm}.yml", *game, "-n", 240, "-f", tmp_path)
    scores = [float(score) for score in re.findall(r"ep_rew_mean +\| (\S+)", out)]
    assert scores, out
    assert all(LEAST < score < MOST for score in scores)
    assert (tmp_path / algorithm / "QanLR-MNIST5k-v1_1" / "QanLR-MNIST5k-v1.zip").is_file()


@pytest.mark.slow
def test_the_zoo_plays_and_films(tmp_path):
    require("rl_zoo3", "zoo")
    require("moviepy", "video")
    out = run(EXAMPLES / "zoo_dqn.py", "--steps", 120, "--folder", tmp_path)
    mean = re.search(r"2 Episodes\nMean reward: (\S+)", out)
    assert mean, out
    assert LEAST < float(mean[1]) < MOST
    (video,) = (tmp_path / "videos").glob("*.mp4")
    assert video.stat().st_size > 10_000


# --- Gymnasium's own tests ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "message"),
    [(None, "is not a checkout of Gymnasium"), ("0.1", f"Gymnasium {gym.__version__} is installed: check out its tag")],
)
def test_a_checkout_that_cannot_be_used(version, message, tmp_path, monkeypatch, capsys):
    if version is not None:
        (tmp_path / "gymnasium").mkdir()
        (tmp_path / "gymnasium" / "__init__.py").write_text(f'__version__ = "{version}"\n')
        (tmp_path / "tests" / "envs").mkdir(parents=True)
        (tmp_path / "tests" / "envs" / "utils.py").touch()
    monkeypatch.setattr(sys, "argv", ["gymnasium_tests.py", str(tmp_path)])
    with pytest.raises(SystemExit):
        runpy.run_path(str(EXAMPLES.parent / "benchmarks" / "gymnasium_tests.py"), run_name="__main__")
    assert message in capsys.readouterr().err
