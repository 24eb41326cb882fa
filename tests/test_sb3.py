"""The bridge to Stable-Baselines3, against SB3's own vectorisation of single environments."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import FrameStackObservation
from helpers import small_data
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecVideoRecorder

from qan_agents.sb3 import GymnasiumVecEnv, vec_env
from qan_agents.sb3.wrappers import RoundRecorder, StackHistory
from qan_gym.games import Game, register_game

SHORT = {"dataset": small_data(), "epochs": 1, "meta_momentum": None, "reference": None, "batches_per_action": 2}
GAMES = {"QanLR-MNIST5k-v1": SHORT, "QanMinibatch-MNIST5k-v1": {**SHORT, "batch_size": 10}}  # 10 actions
N = 3


def assert_equal(one: object, two: object) -> None:
    if isinstance(one, dict):
        assert one.keys() == two.keys(), one.keys() ^ two.keys()
        for name in one:
            assert_equal(one[name], two[name])
    else:
        np.testing.assert_array_equal(one, two)


def compare(mine, theirs, actions) -> int:
    """Play both with the same seeds and actions; every number must be the same. Returns how many episodes ended."""
    mine.seed(5)
    theirs.seed(5)
    assert_equal(mine.reset(), theirs.reset())
    ended = 0
    for action in actions:
        (screens, rewards, dones, infos), (screens2, rewards2, dones2, infos2) = mine.step(action), theirs.step(action)
        for one, two in ((screens, screens2), (rewards, rewards2), (dones, dones2)):
            assert one.dtype == two.dtype
            assert_equal(one, two)
        for row, info in enumerate(infos):
            info.pop("waiting", None)
            assert ("episode" in info) == dones[row]  # of the monitor
            info.pop("episode", None)
            assert_equal(info, infos2[row])
            if dones[row]:
                assert_equal(mine.unwrapped.reset_infos[row], theirs.reset_infos[row])
        ended += int(dones.sum())
    return ended


@pytest.mark.parametrize("env_id", GAMES)
def test_the_bridge_gives_what_sb3s_own_vectorisation_gives(env_id):
    """Observations, rewards, ends and infos, `terminal_observation` and `TimeLimit.truncated` among them."""
    mine = vec_env(env_id, N, **GAMES[env_id])
    theirs = DummyVecEnv([lambda: gym.make(env_id, **GAMES[env_id]) for _ in range(N)])
    mine.action_space.seed(0)
    actions = [np.array([mine.action_space.sample() for _ in range(N)]) for _ in range(25)]
    assert compare(mine, theirs, actions) >= 2 * N
    assert mine.observation_space == theirs.observation_space
    assert mine.action_space == theirs.action_space


def test_rows_that_end_early_and_by_their_own_doing():
    """With a target loss rows end at different steps, terminated and not truncated."""
    settings = {**GAMES["QanLR-MNIST5k-v1"], "target_loss": 2.29, "learning_rate": 0.1}
    mine = vec_env("QanLR-MNIST5k-v1", N, **settings)
    theirs = DummyVecEnv([lambda: gym.make("QanLR-MNIST5k-v1", **settings) for _ in range(N)])
    assert compare(mine, theirs, [np.zeros(N, np.int64)] * 20) > 0


def test_histories_are_stacked_as_gymnasium_stacks_them():
    kwargs = GAMES["QanLR-MNIST5k-v1"]
    mine = StackHistory(RoundRecorder(vec_env("QanLR-MNIST5k-v1", N, **kwargs)), 4)
    single = [lambda: FrameStackObservation(gym.make("QanLR-MNIST5k-v1", **kwargs), 4) for _ in range(N)]
    assert compare(mine, DummyVecEnv(single), [np.full(N, t % 3) for t in range(25)]) >= 2 * N
    assert mine.observation_space.shape == (4, 825)


def test_a_round_is_one_episode_of_every_row():
    """What a row plays after its end is not recorded, and is marked."""
    settings = {**GAMES["QanLR-MNIST5k-v1"], "target_loss": 2.29, "learning_rate": 0.1}
    env = RoundRecorder(vec_env("QanLR-MNIST5k-v1", N, **settings))
    env.seed_rows([3, 30, 300])
    env.reset()
    waited = np.zeros(N, int)
    steps = 0
    while not all(episode.over for episode in env.episodes):
        *_, infos = env.step(np.zeros(N, np.int64))
        waited += [info["waiting"] for info in infos]
        steps += 1
    lengths = [len(episode.steps) for episode in env.episodes]
    assert max(lengths) == steps
    assert (waited + lengths == steps).all()
    for episode, seed in zip(env.episodes, (3, 30, 300), strict=True):
        alone = gym.make("QanLR-MNIST5k-v1", **settings)
        frame, _ = alone.reset(seed=seed)
        np.testing.assert_array_equal(episode.frames[0], frame)
        for step, after in zip(episode.steps, episode.frames[1:], strict=True):
            frame, reward, *_ = alone.step(0)
            np.testing.assert_array_equal(after, frame)
            assert step["reward"] == reward


def test_algorithms_of_sb3_train_on_it():
    env = vec_env("QanLR-MNIST5k-v1", 4, **GAMES["QanLR-MNIST5k-v1"])
    ppo = PPO("MlpPolicy", env, n_steps=12, batch_size=24, n_epochs=1, seed=0, device="cpu")
    ppo.learn(96)
    assert ppo.num_timesteps == 96
    assert len(ppo.ep_info_buffer) == 8  # episodes of 10 actions
    dqn = DQN("MlpPolicy", env, learning_starts=8, seed=0, device="cpu", buffer_size=400)
    before = {name: value.clone() for name, value in dqn.q_net.state_dict().items()}
    dqn.learn(48)
    assert any(not value.equal(before[name]) for name, value in dqn.q_net.state_dict().items())


class TwoAtOnce(Game):
    """Changes learning rate and momentum with one action, of the space that it is made with."""

    controlled = "learning rate and momentum"
    hyperparameters = ("learning_rate", "momentum")

    def __init__(self, space: spaces.Space) -> None:
        self.space = space

    def action_space(self, config, n_classes):
        return self.space

    def apply(self, run, actions, config):
        up = actions - (not isinstance(self.space, spaces.Box))
        run.chosen_learning_rate[:] = np.clip(run.chosen_learning_rate * 1.2 ** up[:, 0], 0.005, 1.0)
        run.momentum[:] = np.clip(run.momentum + 0.05 * up[:, 1], 0, 0.9)


@pytest.mark.parametrize("space", [spaces.MultiDiscrete([3, 3]), spaces.Box(-1, 1, (2,), np.float32)])
def test_actions_of_several_numbers_go_through_the_bridge(space, registries):
    """As SB3's own vectorisation gives them; PPO trains on them."""
    register_game("two-at-once", TwoAtOnce(space))
    settings = {**GAMES["QanLR-MNIST5k-v1"], "game": "two-at-once"}
    mine = vec_env("QanLR-MNIST5k-v1", 2, **settings)
    theirs = DummyVecEnv([lambda: gym.make("QanLR-MNIST5k-v1", **settings) for _ in range(2)])
    mine.action_space.seed(0)
    actions = [np.stack([mine.action_space.sample() for _ in range(2)]) for _ in range(12)]
    assert compare(mine, theirs, actions) == 2
    ppo = PPO("MlpPolicy", mine, n_steps=6, batch_size=12, n_epochs=1, seed=0, device="cpu").learn(12)
    assert ppo.predict(mine.reset())[0].shape == (2, 2)


def test_what_the_bridge_cannot_do_it_says():
    with pytest.raises(ValueError, match="SAME_STEP"):
        GymnasiumVecEnv(gym.make_vec("QanLR-MNIST5k-v1", num_envs=2, **GAMES["QanLR-MNIST5k-v1"]))
    env = vec_env("QanMinibatch-MNIST5k-v1", 2, **GAMES["QanMinibatch-MNIST5k-v1"])
    assert env.env_is_wrapped(gym.Wrapper) == [False, False]
    assert env.unwrapped.env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    with pytest.raises(AttributeError, match="config"):
        env.set_attr("config", None)
    with pytest.raises(AttributeError, match="no_such_method"):
        env.env_method("no_such_method")
    with pytest.raises(ValueError, match="2 seeds"):
        env.seed_rows([1])
    env.set_options([{"sampler": "shuffled"}, {}])
    with pytest.raises(ValueError, match="options"):
        env.reset()
    env.set_options({"sampler": "shuffled"})
    env.reset()
    assert not env.unwrapped.env.training.run.by_class.any()
    env.close()


def test_attributes_and_methods_of_rows():
    """Those of single environments, in the order of the rows asked for."""
    settings = GAMES["QanLR-MNIST5k-v1"]
    env = vec_env("QanLR-MNIST5k-v1", 3, **settings)
    theirs = DummyVecEnv([lambda: gym.make("QanLR-MNIST5k-v1", **settings) for _ in range(3)])
    for one in (env, theirs):
        one.seed(3)
        one.reset()
        one.step(np.array([0, 1, 2]))
    for name in ("episode_length", "config", "screen_shape", "action_space", "observation_space", "render_mode"):
        assert env.get_attr(name, [2, 0]) == theirs.get_attr(name, [2, 0]), name
    assert env.get_attr("unwrapped", 1)[0].episode_length == 10
    assert_equal(env.get_attr("batch_indices"), theirs.get_attr("batch_indices"))
    asked = (one.env_method("weights", indices=[2, 1]) for one in (env, theirs))
    for mine, its in zip(*asked, strict=True):
        assert_equal(mine, its)
    assert_equal(env.env_method("split", "test", indices=0)[0][1], theirs.env_method("split", "test", indices=0)[0][1])
    assert not env.has_attr("difficulty")
    env.set_attr("difficulty", 1)
    env.set_attr("difficulty", 5, indices=[1])
    assert env.get_attr("difficulty") == [1, 5, 1]


def test_pictures_go_through_the_bridge(tmp_path):
    """A mosaic of all rows, a picture of each, and a video."""
    env = vec_env("QanLR-MNIST5k-v1", 2, render_mode="rgb_array", **GAMES["QanLR-MNIST5k-v1"])
    env.reset()
    images = env.get_images()
    assert [image.shape for image in images] == [images[0].shape] * 2
    assert env.render().size == 2 * images[0].size
    assert env.unwrapped.metadata["render_fps"] == 10
    pytest.importorskip("moviepy")
    video = VecVideoRecorder(env, str(tmp_path), lambda step: step == 0, video_length=3)
    video.reset()
    for _ in range(4):
        video.step(np.zeros(2, np.int64))
    video.close()
    assert next(tmp_path.glob("*.mp4")).stat().st_size > 1_000


def test_without_a_render_mode_there_are_no_pictures():
    env = vec_env("QanLR-MNIST5k-v1", 2, **GAMES["QanLR-MNIST5k-v1"])
    env.reset()
    assert list(env.get_images()) == [None, None]


@pytest.mark.filterwarnings("error")
def test_evaluation_by_sb3_does_not_warn():
    """Lengths and returns are those of the monitor around the bridge; there is no success rate without a target."""
    env = vec_env("QanLR-MNIST5k-v1", 2, **GAMES["QanLR-MNIST5k-v1"])
    model = PPO("MlpPolicy", env, n_steps=10, batch_size=20, n_epochs=1, seed=0, device="cpu").learn(20)
    assert len(model.ep_info_buffer) == 2
    assert len(model.ep_success_buffer) == 0
    returns, lengths = evaluate_policy(model, env, n_eval_episodes=4, return_episode_rewards=True)
    assert lengths == [10] * 4
    assert np.isfinite(returns).all()


def test_success_is_reported_where_there_is_a_target():
    env = vec_env("QanLR-MNIST5k-v1", 2, **{**GAMES["QanLR-MNIST5k-v1"], "target_loss": 100.0})
    model = PPO("MlpPolicy", env, n_steps=10, batch_size=20, n_epochs=1, seed=0, device="cpu").learn(20)
    assert list(model.ep_success_buffer) == [True] * 20


def test_the_bridge_takes_other_vector_environments():
    mode = {"autoreset_mode": AutoresetMode.SAME_STEP}
    env = GymnasiumVecEnv(gym.make_vec("CartPole-v1", 2, vectorization_mode="sync", vector_kwargs=mode))
    assert env.get_attr("tau", [0]) == [0.02]
    PPO("MlpPolicy", env, n_steps=8, batch_size=16, n_epochs=1, seed=0, device="cpu").learn(16)
