"""Games: the registry, and games from outside that control other hyperparameters with other kinds of actions."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3.common.env_checker
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from helpers import EXAMPLES, FIXED_IDS, TINY, load_example

import qan_gym
from qan_gym.games import GAMES, Game
from qan_gym.games.learning_rate import KEEP
from qan_gym.tasks import TASKS

LR = "QanLR-MNIST5k-v1"
SHORT = {**TINY, "train_size": 60}  # six mini-batches, each an action
MOMENTUM = "QanMomentum-MNIST5k-v1"


class TwoKnobs(Game):
    """Learning rate and momentum at once: a Box of two numbers, or a MultiDiscrete of 3 x 3 choices."""

    controlled = "learning rate and momentum"
    hyperparameters = ("learning_rate", "momentum")
    features = ("momentum",)

    def __init__(self, space: spaces.Space) -> None:
        self.space = space

    def action_space(self, config, n_classes):
        return self.space

    def no_op(self, config):
        return np.zeros(2, np.float32) if isinstance(self.space, spaces.Box) else np.array([1, 1])

    def apply(self, run, actions, config):
        change = actions if isinstance(self.space, spaces.Box) else actions - 1.0  # (N, 2)
        change = run.xp.astype(change, run.xp.float64).clip(-1, 1)
        run.chosen_learning_rate[:] = (run.chosen_learning_rate * 2.0 ** change[:, 0]).clip(0.001, 1)
        run.momentum[:] = (run.momentum + 0.3 * change[:, 1]).clip(0, 0.95)


class WeightDecayGame(Game):
    """Sets the weight decay to 0.1 times the action."""

    controlled = "weight decay"
    hyperparameters = ("weight_decay",)
    curve = "weight_decay"
    curve_is_logarithmic = False

    def action_space(self, config, n_classes):
        return spaces.Discrete(3, start=1)

    def no_op(self, config):
        return None

    def curve_limits(self, config):
        return 0.0, 0.3

    def apply(self, run, actions, config):
        run.weight_decay[:] = 0.1 * actions


KNOBS = {"box": spaces.Box(-1, 1, (2,), np.float32), "multi-discrete": spaces.MultiDiscrete([3, 3])}


@pytest.fixture(autouse=True)
def games(registries, monkeypatch):
    """The games of this file and of the example, forgotten afterwards."""
    before, ids = dict(GAMES), dict(gym.registry)
    for name, space in KNOBS.items():
        qan_gym.register_game(name, TwoKnobs(space))
    qan_gym.register_game("weight-decay", WeightDecayGame())
    load_example("custom_game")
    yield
    for registry, content in ((GAMES, before), (gym.registry, ids)):
        registry.clear()
        registry.update(content)


GAME_ARGUMENTS = {
    "momentum": {"momentum": 0.5},
    "box": {},
    "multi-discrete": {"nesterov": True, "momentum": 0.1},
    "weight-decay": {"optimizer": "adamw"},
}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_a_taken_name_and_an_unknown_game_are_refused():
    with pytest.raises(ValueError, match="'minibatch': the name is taken"):
        qan_gym.register_game("minibatch", TwoKnobs(KNOBS["box"]))
    with pytest.raises(ValueError, match="unknown game 'tennis'; there are class-mixture, learning-rate, minibatch"):
        gym.make(LR, game="tennis", **SHORT)


def test_continuous_is_for_the_learning_rate_game():
    with pytest.raises(ValueError, match="continuous=True needs replacement=True in the game 'minibatch'"):
        gym.make("QanMinibatch-MNIST5k-v1", continuous=True, **SHORT)


@pytest.mark.parametrize("env_id", FIXED_IDS)
def test_every_registered_task_has_a_game_with_names_for_its_actions(env_id):
    config = TASKS[env_id]
    game = GAMES[config.game]
    space = game.action_space(config, 10)
    assert len(game.action_names(config, 10)) == len(game.action_heights(config, 10)) == space.n
    assert game.no_op(config) in (None, KEEP)


@pytest.mark.parametrize("game", GAME_ARGUMENTS)
def test_both_checkers_pass_without_a_warning(game):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(LR, game=game, render_mode="rgb_array", **SHORT, **GAME_ARGUMENTS[game])
        check_env(env.unwrapped, skip_render_check=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # A Discrete space that does not begin at 0 is one that SB3 itself asks to be wrapped.
        if game != "weight-decay":
            stable_baselines3.common.env_checker.check_env(env, warn=True)


@pytest.mark.parametrize("game", GAME_ARGUMENTS)
def test_rows_are_the_single_environment(game):
    arguments = {"game": game, **SHORT, **GAME_ARGUMENTS[game]}
    envs, single = gym.make_vec(LR, num_envs=3, **arguments), gym.make(LR, **arguments)
    envs.action_space.seed(0)
    actions = [envs.action_space.sample() for _ in range(6)]
    rows = [envs.reset(seed=4), *(envs.step(action) for action in actions)]
    for row in range(3):
        played = [single.reset(seed=4 + row), *(single.step(action[row]) for action in actions)]
        for together, alone in zip(rows, played, strict=True):
            assert np.array_equal(together[0][row], alone[0])
            for name in ("loss", "validation_loss", *GAMES[game].hyperparameters):
                assert together[-1][name][row] == alone[-1][name]
        mine = {name: value[row] for name, value in envs.unwrapped.weights().items()}
        assert same(mine, single.unwrapped.weights())


@pytest.mark.parametrize(("game", "step"), [("momentum", 0), ("momentum", 1), ("box", [0.5, 1.0])])
def test_the_action_is_in_the_update_of_the_weights(game, step):
    """Three mini-batches against torch.optim.SGD, whose hyperparameters are those in `info`."""
    env = gym.make(LR, game=game, momentum=0.5, **{**SHORT, "batch_size": 2, "train_size": 20}).unwrapped
    env.reset(seed=1)
    before = {name: torch.from_numpy(value) for name, value in env.weights().items()}
    parameters = [torch.nn.Parameter(value.clone()) for value in before.values()]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.5)
    images, labels = map(torch.from_numpy, env.split("train"))
    action = step if isinstance(step, int) else np.array(step, np.float32)
    for _ in range(3):
        *_, info = env.step(action)
        batch = env.batch_indices[0]
        network = env.training.network
        logits = network.forward(
            {name: value[None] for name, value in zip(before, parameters, strict=True)}, images[batch][None], True
        )[0]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, labels[batch]).backward()
        (group,) = optimizer.param_groups
        group["lr"], group["momentum"] = info["learning_rate"], info["momentum"]
        optimizer.step()
    assert info["momentum"] != 0.5
    for name, parameter in zip(before, parameters, strict=True):
        np.testing.assert_allclose(env.weights()[name], parameter.detach(), rtol=1e-4, atol=1e-6)


def test_a_weight_decay_of_the_agent_shrinks_the_weights():
    finals = []
    for action in (1, 3):
        env = gym.make(LR, game="weight-decay", optimizer="adamw", learning_rate=0.02, **SHORT).unwrapped
        env.reset(seed=0)
        for _ in range(6):
            *_, info = env.step(action)
        assert info["weight_decay"] == pytest.approx(0.1 * action)
        finals.append(np.abs(env.weights()["linear1.weight"]).mean())
    assert finals[1] < finals[0]


@pytest.mark.parametrize("game", GAME_ARGUMENTS)
def test_a_saved_episode_goes_on_as_it_would_have(game):
    env, other = (gym.make(LR, game=game, **SHORT, **GAME_ARGUMENTS[game]).unwrapped for _ in range(2))
    env.action_space.seed(3)
    actions = [env.action_space.sample() for _ in range(6)]
    env.reset(seed=2)
    for action in actions[:3]:
        env.step(action)
    other.set_state(env.get_state())
    for action in actions[3:]:
        one, two = env.step(action), other.step(action)
        assert np.array_equal(one[0], two[0])
        assert one[1:] == two[1:]
    assert same(env.weights(), other.weights())


@pytest.mark.parametrize("game", GAME_ARGUMENTS)
@pytest.mark.parametrize("bad", ["wrong", None, np.full(5, 7), 99])
def test_what_is_no_action_is_refused(game, bad):
    env = gym.make(LR, game=game, disable_env_checker=True, **SHORT, **GAME_ARGUMENTS[game])
    env.reset(seed=0)
    with pytest.raises(ValueError, match="action must be"):
        env.unwrapped.step(bad)
    envs = gym.make_vec(LR, num_envs=2, game=game, **SHORT, **GAME_ARGUMENTS[game])
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="action"):
        envs.step(bad)


def test_looking_ahead_in_a_game_from_outside():
    env = gym.make(LR, game="box", **SHORT)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="give `actions`"):
        qan_gym.counterfactual(env, 2)
    tried = np.array([[1, 1], [0, 0], [-1, -1]], np.float32)
    found = qan_gym.counterfactual(env, 2, actions=tried)
    assert np.array_equal(found.actions, tried)
    for row, action in enumerate(tried):
        alone = gym.make(LR, game="box", validate_every=1, **SHORT)
        alone.reset(seed=0)
        alone.step(action)
        *_, info = alone.step(np.zeros(2, np.float32))
        assert found.validation_loss[row] == info["validation_loss"]
    assert found.regret(found.best) == 0


def test_a_frame_shows_what_is_controlled():
    env = gym.make(MOMENTUM, render_mode="rgb_array", baseline_run=True, **SHORT)
    env.reset(seed=0)
    frames = [env.render()]
    for action in (0, 0, 1):
        env.step(action)
        frames.append(env.render())
    assert all(frame.shape == frames[0].shape for frame in frames)
    assert not np.array_equal(frames[1], frames[2])


@pytest.mark.slow
def test_ppo_of_sb3_plays_two_knobs():
    from stable_baselines3 import PPO

    from qan_agents.sb3 import vec_env

    for game in KNOBS:
        agent = PPO("MlpPolicy", vec_env(LR, 2, game=game, **SHORT), n_steps=6, batch_size=6, n_epochs=1, seed=0)
        agent.learn(24)
        assert agent.num_timesteps == 24


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["dqn", "dqn-native"])
def test_qan_train_plays_the_example(agent, tmp_path):
    """From the folder of the example, as its docstring says."""
    command = [sys.executable, "-m", "qan_agents", "train", f"custom_game:{MOMENTUM}", "--episodes", "2"]
    settings = {"train_size": 60, "epochs": 1, "batches_per_action": 1, "meta_momentum": "null"}
    command += ["--agent", agent, "--out", str(tmp_path / "run")]
    command += [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    done = subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True, env=_environment())
    assert done.returncode == 0, done.stdout + done.stderr
    header = (tmp_path / "run" / "episodes.csv").read_text().splitlines()[0]
    assert "action_2" in header
    assert {path.name for path in (tmp_path / "run").glob("*.png")} >= {"actions.png", "episode.png"}


def _environment() -> dict[str, str]:
    folders = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "agents")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")])}
