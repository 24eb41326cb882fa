"""Stable-Baselines3's DQN as an agent: its hyperparameters, its features, its replay."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import small_data
from stable_baselines3.common.buffers import ReplayBuffer

from qan_agents.agents import AgentSpec
from qan_agents.agents.dqn import MISSING, SB3DQN, sb3_arguments
from qan_agents.dqn import PRESETS, make_dqn_config
from qan_agents.dqn.features import Filters, ScoreLine
from qan_agents.dqn.rmsprop import DeepMindRMSprop
from qan_agents.sb3.replay import FrameReplayBuffer, add_round

# 20 actions of one mini-batch.
SHORT = {"dataset": small_data(), "epochs": 1, "batches_per_action": 1, "meta_momentum": None, "reference": None}


def make(preset: str, num_envs: int = 1, learns: bool = True, **kwargs: object) -> SB3DQN:
    """An agent for 5 episodes of 20 actions."""
    return SB3DQN(AgentSpec("QanLR-MNIST5k-v1", {**SHORT, **kwargs}, num_envs, 0, preset, {}, 5, learns))


def test_the_paper_preset_is_the_papers():
    config = PRESETS["paper"](2_200_000)
    assert (config.history, config.update_every, config.gradient_steps) == (4, 4, 1)
    settings = sb3_arguments(config, 2_200_000)
    assert settings["buffer_size"] == 1_000_000
    assert (settings["batch_size"], settings["gamma"], settings["learning_rate"]) == (32, 0.99, 2.5e-4)
    assert settings["policy_kwargs"]["optimizer_class"] is DeepMindRMSprop
    assert settings["policy_kwargs"]["optimizer_kwargs"]["eps"] * 32**2 == pytest.approx(0.01)
    assert settings["max_grad_norm"] == math.inf
    assert settings["target_update_interval"] == 10_000
    assert (settings["exploration_initial_eps"], settings["exploration_final_eps"]) == (1.0, 0.1)
    assert settings["exploration_fraction"] * 2_200_000 == pytest.approx(1_000_000)
    agent = make("paper")
    assert agent.env.observation_space.shape == (4, 825)
    convolution = next(module for module in agent.model.q_net.modules() if isinstance(module, torch.nn.Conv2d))
    assert (convolution.in_channels, convolution.out_channels) == (4, 32)
    assert (convolution.kernel_size, convolution.stride, convolution.padding) == ((8, 8), (4, 4), (1, 1))
    layers = [module for module in agent.model.q_net.modules() if isinstance(module, torch.nn.Linear)]
    assert [layer.out_features for layer in layers] == [512, 3]
    assert type(agent.model.policy.optimizer) is DeepMindRMSprop


def test_the_paper_network_sees_rows_and_columns_as_they_are():
    """A filter's row moves the convolution's window down, a column right."""
    layers = Filters(history=4, rows=33, columns=25, score_line=7).layers
    screen = torch.zeros(1, 4, 33, 25)
    screen[0, 0, 12, 6] = 1.0
    out = layers[:2](screen.flatten(2))[0]  # (32, 7, 5)
    changed = (out - layers[:2](torch.zeros(1, 4, 825))[0]).abs().sum(dim=0)  # (7, 5)
    rows = [r for r in range(7) if 4 * r - 1 <= 12 < 4 * r + 7]
    columns = [c for c in range(5) if 4 * c - 1 <= 6 < 4 * c + 7]
    assert set(zip(*np.nonzero(changed.detach().numpy()), strict=True)) == {(r, c) for r in rows for c in columns}


def test_the_score_line_is_what_quick_reads():
    agent = make("quick")
    observation, info = agent.env.reset(), agent.bridge.reset_infos[0]
    env = agent.bridge.env.unwrapped
    features = ScoreLine(1, *env.screen_shape, score_line=7)(torch.from_numpy(observation))[0]
    assert features[0] == pytest.approx(np.log(info["learning_rate"]))
    assert features[1] == 0
    assert features[2] == pytest.approx(np.log(info["smoothed_loss"]), rel=1e-5)
    filters = env.weights()["conv1.weight"][0]
    assert features[5] == pytest.approx(np.sqrt((filters**2).mean()), rel=1e-5)
    assert make("quick", observation="filters").config.features == "flat"  # where there is none


OTHERS = {"layer_norm": True, "dueling": True, "quantiles": 5, "double": True, "n_step": 3, "clip_td_error": None}
OTHERS |= {"storage": "float16", "priority_exponent": 0.5, "importance_initial": 0.5}


@pytest.mark.parametrize("name", MISSING)
def test_what_sb3_does_not_have_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}.*dqn-native"):
        sb3_arguments(make_dqn_config("quick", 100, {name: OTHERS[name]}), 100)


def test_every_other_hyperparameter_reaches_sb3():
    """Whatever is changed changes something, in the arguments or in the agent itself."""
    changes = {
        **{"gamma": 0.5, "optimizer": "rmsprop", "learning_rate": 0.1, "optimizer_epsilon": 0.2, "max_grad_norm": 1.0},
        **{"hidden": (3,), "batch_size": 3, "gradient_steps": 3, "learning_starts": 3, "target_update_interval": 3},
        **{"tau": 0.3, "buffer_size": 33, "exploration_initial": 0.9, "exploration_final": 0.3},
        "exploration_steps": 33,
    }
    base = sb3_arguments(make_dqn_config("quick", 100, {}), 100)
    for name, value in changes.items():
        assert sb3_arguments(make_dqn_config("quick", 100, {name: value}), 100) != base, name
    elsewhere = {"history", "features", "update_every", "importance_steps"}
    assert changes.keys() | elsewhere | set(MISSING) == make_dqn_config("quick", 100, {}).__dict__.keys()


@pytest.mark.parametrize(("preset", "num_envs", "target"), [("quick", 1, None), ("paper", 1, None), ("paper", 3, 2.29)])
def test_the_refilled_replay_equals_that_of_the_played_rounds(preset, num_envs, target):
    """Also where the rows of a round end at different times, and wait for the last."""
    agent, other = make(preset, num_envs, target_loss=target, learning_rate=0.1), make(preset, num_envs)
    rounds = []
    for seeds in ([7, 8, 9], [17, 18, 19]):
        episodes = agent.play_round(seeds[:num_envs], None, lambda _: None)
        rounds.append([episode.arrays() for episode in episodes])
    other.refill_replay(rounds)
    lengths = [[len(arrays["actions"]) for arrays in some] for some in rounds]
    played, restored = agent.replay, other.replay
    assert played.pos == restored.pos == sum(map(max, lengths))
    np.testing.assert_array_equal(played.valid, restored.valid)
    assert played.valid.sum() == sum(map(sum, lengths))
    assert (len({length for row in lengths for length in row}) > 1) == (target is not None)
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts", "age"):
        one, two = getattr(played, name), getattr(restored, name)
        np.testing.assert_array_equal(one[played.valid], two[restored.valid], err_msg=name)
    assert played.dones[played.valid].sum() == 2 * num_envs
    assert (played.timeouts[played.valid].sum() == 2 * num_envs) == (target is None)  # ended by their budget
    drawn = played.sample(500)
    assert set(drawn.rewards.ravel().tolist()) <= set(played.rewards[played.valid].tolist())


@pytest.mark.parametrize("size", [1000, 37])
def test_the_replay_stacks_what_sb3s_buffer_holds_stacked(size):
    """Against SB3's own buffer, full and not, with episodes shorter than the history."""
    history, width = 4, 3
    space = spaces.Box(-10, 10, (history, width), np.float32)
    mine = FrameReplayBuffer(size, space, spaces.Discrete(3), device="cpu")
    plain = ReplayBuffer(size, space, spaces.Discrete(3), device="cpu")
    rng = np.random.default_rng(0)
    for length in (1, 2, 5, 40, 3, 17):
        arrays = {
            "frames": rng.normal(size=(length + 1, width)).astype(np.float32),
            "actions": rng.integers(3, size=length),
            "rewards": rng.normal(size=length).astype(np.float32),
            "terminated": np.asarray(length % 2 == 0),
        }
        add_round(mine, [arrays], history)
        add_round(plain, [arrays], history)
    count = size if plain.full else plain.pos
    lost = (plain.pos + np.arange(history - 1)) % size if plain.full else []
    kept = np.setdiff1d(np.arange(count), lost)
    for one, other in zip(mine._get_samples(kept), plain._get_samples(kept), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    drawn = mine.sample(4000).rewards.ravel()
    assert set(drawn.tolist()) == set(plain.rewards[kept, 0].tolist())


def test_an_agent_that_only_plays_reserves_no_replay():
    assert make("quick", learns=False).replay.buffer_size == 1
    assert make("quick").replay.buffer_size == 100
