"""The DQN of the runs: its presets, its episodes, its replay."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

import qan_gym  # noqa: F401
from qan_agents import dqn
from qan_agents.replay import ScreenReplayBuffer, add_round, episode_arrays
from qan_agents.runs import RunConfig
from qan_agents.train import UNSEEN_BELOW, _Report, episode_seed, make_env, make_vec_env, preset_of

SHORT = {"epochs": 1, "meta_momentum": None, "reference": None, "batches_per_action": 20}  # 20 actions


def make(preset: str, num_envs: int = 1, **kwargs: object):
    settings = {"env_kwargs": {**SHORT, **kwargs}, "agent": "dqn", "preset": preset}
    env = make_vec_env(RunConfig("QanLR-MNIST5k-v0", episodes=4, seed=0, num_envs=num_envs, **settings))
    return env, dqn.make_dqn(env, dqn.PRESETS[preset], steps=100, seed=0)


def test_the_paper_preset_is_the_papers():
    settings = dqn.PRESETS["paper"].settings(2_200_000)
    assert settings["buffer_size"] == 1_000_000
    assert (settings["batch_size"], settings["gamma"], settings["learning_rate"]) == (32, 0.99, 2.5e-4)
    assert settings["policy_kwargs"]["optimizer_class"] is torch.optim.RMSprop
    assert settings["target_update_interval"] == 10_000
    assert (settings["exploration_initial_eps"], settings["exploration_final_eps"]) == (1.0, 0.1)
    assert dqn.PRESETS["paper"].update_every == 4
    env, model = make("paper")
    assert env.observation_space.shape == (4, 825)
    convolution = next(module for module in model.q_net.modules() if isinstance(module, torch.nn.Conv2d))
    assert (convolution.in_channels, convolution.out_channels) == (4, 32)
    assert (convolution.kernel_size, convolution.stride, convolution.padding) == ((8, 8), (4, 4), (1, 1))
    layers = [module for module in model.q_net.modules() if isinstance(module, torch.nn.Linear)]
    assert [layer.out_features for layer in layers] == [512, 3]


def test_the_paper_network_sees_rows_and_columns_as_they_are():
    """A filter's row moves the convolution's window down, a column right."""
    extractor = dqn.Filters(spaces.Box(-10, 10, (4, 33 * 25), np.float32), rows=33, columns=25)
    screen = torch.zeros(1, 4, 33, 25)
    screen[0, 0, 12, 6] = 1.0
    out = extractor.layers[0][:2](screen.flatten(2))[0]  # (32, 7, 5)
    changed = (out - extractor.layers[0][:2](torch.zeros(1, 4, 825))[0]).abs().sum(dim=0)  # (7, 5)
    rows = [r for r in range(7) if 4 * r - 1 <= 12 < 4 * r + 7]
    columns = [c for c in range(5) if 4 * c - 1 <= 6 < 4 * c + 7]
    assert set(zip(*np.nonzero(changed.detach().numpy()), strict=True)) == {(r, c) for r in rows for c in columns}


def test_the_score_line_is_what_quick_reads():
    env, _ = make("quick")
    observation, info = env.reset(), env.unwrapped.reset_infos[0]
    rows, columns = env.get_attr("screen_shape")[0]
    extractor = dqn.ScoreLine(env.observation_space, rows, columns)
    features = extractor(torch.from_numpy(observation))[0]
    assert features[0] == pytest.approx(np.log(info["learning_rate"]))
    assert features[1] == 0
    assert features[2] == pytest.approx(np.log(info["smoothed_loss"]), rel=1e-5)
    filters = env.unwrapped.env.weights()["conv1.weight"][0]
    assert features[5] == pytest.approx(np.sqrt((filters**2).mean()), rel=1e-5)
    with pytest.raises(ValueError, match="score line"):
        make("quick", observation="filters")


@pytest.mark.parametrize(("preset", "num_envs", "target"), [("quick", 1, None), ("paper", 1, None), ("paper", 3, 1.9)])
def test_rounds_put_back_into_the_replay_equal_those_played(preset, num_envs, target):
    """Also where the rows of a round end at different times, and wait for the last."""
    env, model = make(preset, num_envs, target_loss=target)
    _, other = make(preset, num_envs)
    callback = dqn.begin(model, 100, _Report(lambda progress: None))
    lengths = []
    for seeds in ([7, 8, 9], [17, 18, 19]):
        dqn.train_round(model, dqn.PRESETS[preset], seeds[:num_envs], callback)
        add_round(other.replay_buffer, [episode_arrays(e) for e in env.episodes], dqn.PRESETS[preset].history)
        lengths.append([len(episode.steps) for episode in env.episodes])
    played, restored = model.replay_buffer, other.replay_buffer
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
    mine = ScreenReplayBuffer(size, space, spaces.Discrete(3), device="cpu")
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


def test_training_seeds_are_never_evaluated():
    seeds = [episode_seed(RunConfig("x", {}, "dqn", "quick", 20, run), k) for run in range(20) for k in range(20)]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= UNSEEN_BELOW
    assert max(seeds) < 2**32


def test_unknown_agent_and_preset():
    with pytest.raises(ValueError, match="dnq"):
        preset_of(RunConfig("x", {}, "dnq", "quick", 1, 0))
    with pytest.raises(ValueError, match=r"fast.*quick"):
        preset_of(RunConfig("x", {}, "dqn", "fast", 1, 0))


def test_greedy_plays_the_action_of_the_highest_value():
    _, model = make("quick")
    env = make_env(RunConfig("QanLR-MNIST5k-v0", SHORT, "dqn", "quick", 1, 0))
    greedy = dqn.Greedy(model)
    observation, info = env.reset(seed=0)
    for _ in range(5):
        with torch.no_grad():
            best = model.q_net(torch.from_numpy(np.asarray(observation))[None]).argmax(dim=1).item()
        assert greedy.act(observation, info) == best
        observation, *_, info = env.step(best)


def test_a_played_round_teaches_nothing():
    """Weights and replay stay as they are; epsilon 0 is greedy, epsilon 1 random, the same seed the same episode."""
    env, model = make("quick", num_envs=2)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    played = []
    for epsilon in (0.0, 1.0, 1.0):
        shown = []
        dqn.play_round(model, epsilon, [5, 6], shown.append)
        assert len(shown) == 20
        assert all(episode.over and len(episode.actions) == 20 for episode in env.episodes)
        played.append(np.array([episode.actions for episode in env.episodes]))
    assert all(torch.equal(value, before[name]) for name, value in model.policy.state_dict().items())
    assert model.replay_buffer.pos == 0
    assert model.num_timesteps == 0
    assert np.array_equal(played[1], played[2])
    assert len(np.unique(played[1])) == 3
    dqn.play_round(model, 0.0, [5, 6], lambda _: None)
    frames = torch.from_numpy(np.stack(env.episodes[1].frames[:-1]))[:, None]  # (T, 1, D)
    with torch.no_grad():
        assert played[0][1].tolist() == model.q_net(frames).argmax(dim=1).tolist()


@pytest.mark.parametrize("history", [1, 4])
def test_mean_of_the_highest_values(history):
    """Against the observations stacked one by one, over more steps than are asked for at once."""
    _, model = make("quick" if history == 1 else "paper")
    rng = np.random.default_rng(0)
    frames = list(rng.normal(size=(dqn.Q_BATCH * 2 + 3, 825)).astype(np.float32))
    highest = []
    for step in range(len(frames) - 1):
        stack = [frames[max(step - back, 0)] for back in range(history - 1, -1, -1)]
        with torch.no_grad():
            highest.append(model.q_net(torch.from_numpy(np.stack(stack))[None]).max().item())
    assert dqn.mean_max_q(model, frames, history) == pytest.approx(np.mean(highest), rel=1e-4)
