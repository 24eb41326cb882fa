"""The fixed policies: every registered schedule, random actions and shuffled SGD, played as agents are."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import FrameStackObservation

import qan_gym  # noqa: F401
from qan_agents.policies.class_rules import RULES
from qan_agents.policies.fixed import fixed_env_kwargs, fixed_policies, make_policy, scheduled_rates
from qan_agents.policies.rollout import EpisodeRecorder, play_episode, play_rows
from qan_gym.games import GAMES, Game
from qan_gym.games.learning_rate import KEEP, absolute_actions
from qan_gym.schedules import SCHEDULES
from qan_gym.tasks import TASKS, make_task_config

LR, MINIBATCH = "QanLR-MNIST5k-v1", "QanMinibatch-MNIST5k-v1"
SHORT = {"train_size": 400, "batch_size": 10, "epochs": 1, "meta_momentum": None, "reference": None}  # 40 mini-batches


def make(env_id: str, **kwargs: object) -> gym.Env:
    return EpisodeRecorder(gym.make(env_id, **{**SHORT, **kwargs}))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("length", [1, 2, 40, 200])
def test_schedules_stay_in_range_and_have_their_shape(schedule, length):
    config = TASKS[LR]
    rates = np.array(scheduled_rates(schedule, config, length))
    assert len(rates) == length
    assert (rates >= config.learning_rate_min).all()
    assert (rates <= config.learning_rate_max).all()
    share = np.arange(length) / length
    low, high = config.learning_rate_min, config.learning_rate
    if schedule == "one-cycle":
        if length >= 40:
            peak = rates.argmax()
            assert rates[peak] == pytest.approx(3.4 * high, rel=0.01)
            assert peak == length // 2
            assert rates[0] == pytest.approx(3.4 * high / 20)
            assert rates[-1] == pytest.approx(low)
        return
    wanted = {
        "constant": high * np.ones(length),
        "step": np.where(np.arange(length) < length / 2, high, high * 0.1),
        "linear": high * (1 - share),
        "cosine": high * (1 + np.cos(np.pi * share)) / 2,
        "cooldown": high * np.minimum(1, 4 * (1 - share)),
    }
    np.testing.assert_allclose(rates, np.maximum(wanted[schedule], low))


def test_a_fixed_policy_is_the_base_schedule_within_the_range_of_the_game():
    """One definition: where the range does not bind, both have the same learning rates."""
    for schedule in SCHEDULES:
        env = make(LR, batches_per_action=1, learning_rate_min=1e-3, schedule=schedule)
        env.reset(seed=0)
        under_actions = [env.step(KEEP)[-1]["learning_rate"] for _ in range(40)]
        rates = scheduled_rates(schedule, env.unwrapped.config, 40)
        np.testing.assert_allclose(rates, np.maximum(under_actions, 1e-3), rtol=1e-4)


@pytest.mark.parametrize("kwargs", [{}, {"continuous": True}, {"action_scale": "multiplicative"}])
def test_a_schedule_is_followed_as_closely_as_the_actions_allow(kwargs):
    env = make(LR, batches_per_action=1, **kwargs)
    episode = play_episode(env, make_policy("cosine"), seed=3)
    rates = np.array([row["learning_rate"] for row in episode.steps])
    wanted = np.array(scheduled_rates("cosine", env.unwrapped.config, len(rates)))
    # One additive step is 0.005, and of 0.005 and 0.01 the nearer one in the logarithm is at most 0.01 - sqrt(0.00005)
    # away; a multiplicative step is a quarter; a continuous action reaches its target.
    tolerance = {"rtol": 0, "atol": 0.003} if not kwargs else {"rtol": 1e-4 if "continuous" in kwargs else 0.13}
    np.testing.assert_allclose(rates, wanted, **tolerance)


def test_uniform_is_shuffled_sgd():
    env = make(MINIBATCH, train_size=1_000, batch_size=100)
    policy = make_policy("uniform")
    env.reset(seed=0, options=policy.start(env, seed=0))
    _, labels = env.unwrapped.split("train")
    seen = []
    for _ in range(env.unwrapped.episode_length):
        env.step(policy.act(np.zeros(1), {}))
        seen.append(env.unwrapped.batch_indices.ravel())
        assert np.bincount(labels[seen[-1]], minlength=10).max() < 30  # not a class at a time
    assert len(np.unique(np.concatenate(seen))) == len(labels)


def test_random_depends_on_the_seed_alone():
    env = make(MINIBATCH)
    first, again, other = (
        [row["action"] for row in play_episode(env, make_policy("random"), seed).steps] for seed in (5, 5, 6)
    )
    assert first == again
    assert first != other
    assert len(set(first)) > 3


@pytest.mark.parametrize("name", fixed_policies())
@pytest.mark.parametrize("env_id", [LR, MINIBATCH])
def test_a_policy_plays_its_game_or_says_why_not(name, env_id):
    env = make(env_id, batches_per_action=10)
    other_game = name in RULES or (name == "uniform" if "LR" in env_id else name in SCHEDULES)
    if other_game:
        with pytest.raises(ValueError, match="play"):
            play_episode(env, make_policy(name), seed=0)
    else:
        episode = play_episode(env, make_policy(name), seed=0)
        assert len(episode.steps) == env.unwrapped.episode_length
        assert episode.over
        assert 0 <= episode.final["test_accuracy"] <= 1


@pytest.mark.parametrize("kwargs", [{}, {"continuous": True}, {"continuous": True, "action_scale": "absolute"}])
def test_constant_is_the_same_learning_rate_throughout(kwargs):
    env = make(LR, batches_per_action=1, **kwargs)
    rates = [row["learning_rate"] for row in play_episode(env, make_policy("constant"), seed=0).steps]
    assert rates == pytest.approx([0.05] * 40, rel=1e-6)


def test_absolute_actions_follow_a_schedule():
    env = make(LR, batches_per_action=1, continuous=True, action_scale="absolute")
    rates = [row["learning_rate"] for row in play_episode(env, make_policy("cosine"), seed=0).steps]
    assert rates == pytest.approx(scheduled_rates("cosine", env.unwrapped.config, 40), rel=1e-5)


def test_one_learning_rate_is_an_absolute_action_too():
    config = make_task_config(
        LR, {"continuous": True, "action_scale": "absolute", "learning_rate_min": 0.05, "learning_rate_max": 0.05}
    )
    assert absolute_actions(np.array([0.05]), config).tolist() == [0]


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_a_schedule_is_the_base_schedule_with_nobody_acting(name):
    """At every mini-batch, however long the actions are; on another base schedule it is refused."""
    config = make_task_config(LR, {"schedule": "linear"})
    env = make(LR, batches_per_action=1, **{"schedule": "linear", **fixed_env_kwargs(name, config)})
    rows = play_episode(env, make_policy(name), seed=0).steps
    assert [row["action"] for row in rows] == [KEEP] * 40
    # The schedule goes below the range of the game, which is for actions.
    wanted = SCHEDULES[name].rate(np, np.full(40, 0.05), np.arange(40) / 40)
    assert [row["learning_rate"] for row in rows] == pytest.approx(wanted)
    coarse = make(LR, batches_per_action=10, **{"schedule": "linear", **fixed_env_kwargs(name, config)})
    last = play_episode(coarse, make_policy(name), seed=0)
    fine = play_episode(env, make_policy(name), seed=0)
    assert last.final["test_loss"] == fine.final["test_loss"]
    if name != "linear":
        with pytest.raises(ValueError, match="'linear' would multiply it: make its environment with schedule="):
            play_episode(make(LR, batches_per_action=1, schedule="linear"), make_policy(name), seed=0)


def test_where_every_action_changes_something_a_schedule_is_followed_by_actions():
    settings = {"continuous": True, "action_scale": "absolute", "schedule": "linear"}
    own = fixed_env_kwargs("cosine", make_task_config(LR, settings))
    assert own == {"schedule": "constant"}
    env = make(LR, batches_per_action=1, **{**settings, **own})
    rates = [row["learning_rate"] for row in play_episode(env, make_policy("cosine"), seed=0).steps]
    assert rates == pytest.approx(scheduled_rates("cosine", env.unwrapped.config, 40), rel=1e-5)


# --- in lock-step -----------------------------------------------------------------------------------------------------


SHARES = {"replacement": True, "continuous": True, "observation": "classes"}


class CountingPolicy:
    """Plays what it has seen: an action that follows from the frames and the infos so far."""

    def start(self, env, seed):
        self.actions, self.frames = env.action_space.n, 0.0

    def act(self, observation, info):
        self.frames += float(np.abs(observation).sum()) + info["batch"] + info["validation_loss"]
        return int(1_000 * self.frames) % self.actions


@pytest.mark.parametrize(
    ("env_id", "policy", "history", "kwargs"),
    [
        (LR, CountingPolicy, 3, {"learning_rate": 0.1, "target_loss": 2.25}),  # the episodes end at different times
        (LR, lambda: make_policy("cosine"), 1, {}),
        (LR, lambda: make_policy("random"), 1, {"continuous": True}),
        (MINIBATCH, lambda: make_policy("random"), 2, {}),
        (MINIBATCH, lambda: make_policy("uniform"), 1, {}),
        (MINIBATCH, lambda: make_policy("loss-proportional"), 1, SHARES),
    ],
)
def test_rows_are_played_as_single_environments_are(env_id, policy, history, kwargs):
    """The same actions, columns of every step, ends and infos, in types too."""
    seeds = [3, 30, 300]
    arguments = {**SHORT, "batches_per_action": 2, **kwargs}
    envs = gym.make_vec(env_id, num_envs=3, autoreset_mode=AutoresetMode.DISABLED, **arguments)
    shares = []
    rows = play_rows(envs.unwrapped, [policy() for _ in seeds], seeds, history, shares.append)
    assert shares == sorted(shares)
    assert shares[-1] <= 1
    if "target_loss" in kwargs:
        assert len({len(episode.steps) for episode in rows}) > 1
    single = FrameStackObservation(EpisodeRecorder(gym.make(env_id, **arguments)), history)
    for seed, row in zip(seeds, rows, strict=True):
        alone = play_episode(single, policy(), seed)
        assert row.steps == alone.steps
        assert row.final == alone.final
        assert all(isinstance(value, type(row.final[name])) for name, value in alone.final.items())
        assert row.terminated == alone.terminated
        assert row.over


class DecayGame(Game):
    """Raise or keep the weight decay."""

    controlled = "weight decay"
    hyperparameters = ("weight_decay",)

    def action_space(self, config, n_classes):
        return gym.spaces.Discrete(2)

    def no_op(self, config):
        return 0

    def apply(self, run, actions, config):
        run.weight_decay += actions * 1e-3


def test_constant_leaves_games_that_do_not_set_the_learning_rate_as_they_are(registries):
    """The default baseline of such a game; a schedule that changes the learning rate is refused."""
    GAMES["decay"] = DecayGame()
    env = make(LR, game="decay", batches_per_action=10)
    episode = play_episode(env, make_policy(DecayGame.baselines[0]), seed=0)
    assert [row["action"] for row in episode.steps] == [0] * 4
    assert episode.final["weight_decay"] == 0
    with pytest.raises(ValueError, match="play constant, or make its environment with schedule='cosine'"):
        play_episode(env, make_policy("cosine"), seed=0)


def test_where_actions_do_not_set_the_learning_rate_a_schedule_is_the_base_schedule(registries):
    GAMES["decay"] = DecayGame()
    config = make_task_config(LR, {"game": "decay", "schedule": "linear"})
    for name, last in (("constant", 0.05), ("linear", 0.05 / 40)):
        env = make(LR, game="decay", batches_per_action=1, **fixed_env_kwargs(name, config))
        episode = play_episode(env, make_policy(name), seed=0)
        assert [row["action"] for row in episode.steps] == [0] * 40
        assert episode.final["learning_rate"] == pytest.approx(last)
    with pytest.raises(ValueError, match="constant sets the learning rate"):
        play_episode(make(LR, game="decay", schedule="linear"), make_policy("constant"), seed=0)


def test_unknown_policy():
    with pytest.raises(ValueError, match=r"'cosin'.*cosine"):
        make_policy("cosin")
    with pytest.raises(ValueError, match=r"'exponential'.*one-cycle"):
        scheduled_rates("exponential", make_task_config(LR, {}), 10)
