"""The fixed policies play what an agent plays, and the schedules are torch's."""

import gymnasium as gym
import numpy as np
import pytest

import qan_gym  # noqa: F401
from qan_agents.policies.fixed import FIXED_POLICIES, SCHEDULES, make_policy, schedule_rates
from qan_agents.policies.rollout import EpisodeRecorder, play_episode
from qan_gym.tasks import TASKS, make_task_config

SHORT = {"epochs": 1, "meta_momentum": None, "reference": None}


def make(env_id: str, **kwargs: object) -> gym.Env:
    return EpisodeRecorder(gym.make(env_id, **SHORT, **kwargs))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("decisions", [1, 2, 40, 200])
def test_schedules_stay_in_range_and_have_their_shape(schedule, decisions):
    config = TASKS["QanLR-MNIST5k-v0"]
    rates = np.array(schedule_rates(schedule, config, decisions))
    assert len(rates) == decisions
    assert (rates >= config.learning_rate_min).all()
    assert (rates <= config.learning_rate_max).all()
    if decisions < 40:
        return
    t = np.arange(decisions) / (decisions - 1)
    low, high = config.learning_rate_min, config.learning_rate
    if schedule == "constant":
        np.testing.assert_allclose(rates, high)
    if schedule == "step":
        np.testing.assert_allclose(rates, np.where(np.arange(decisions) < decisions / 2, high, high * 0.1))
    if schedule == "linear":
        np.testing.assert_allclose(rates, high + t * (low - high))
    if schedule == "cosine":
        np.testing.assert_allclose(rates, low + (high - low) * (1 + np.cos(np.pi * t)) / 2)
    if schedule == "one-cycle":
        peak = rates.argmax()
        assert rates[peak] == pytest.approx(5 * high, rel=0.01)
        assert 0 < peak < decisions / 2
        assert rates[0] < high
        assert rates[-1] == pytest.approx(low)


@pytest.mark.parametrize("kwargs", [{}, {"continuous": True}, {"action_scale": "multiplicative"}])
def test_a_schedule_is_followed_as_closely_as_the_actions_allow(kwargs):
    env = make("QanLR-MNIST5k-v0", **kwargs)
    episode = play_episode(env, make_policy("cosine"), seed=3)
    rates = np.array([row["learning_rate"] for row in episode.steps])
    wanted = np.array(schedule_rates("cosine", env.unwrapped.config, len(rates)))
    # One additive step is 0.005; a multiplicative one a quarter; a continuous action reaches its target.
    tolerance = {"rtol": 0, "atol": 0.0026} if not kwargs else {"rtol": 1e-4 if "continuous" in kwargs else 0.13}
    np.testing.assert_allclose(rates, wanted, **tolerance)


def test_uniform_is_shuffled_sgd():
    env = make("QanMinibatch-MNIST5k-v0", batch_size=100)
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
    env = make("QanMinibatch-MNIST5k-v0")
    first, again, other = (
        [row["action"] for row in play_episode(env, make_policy("random"), seed).steps] for seed in (5, 5, 6)
    )
    assert first == again
    assert first != other
    assert len(set(first)) > 3


@pytest.mark.parametrize("name", FIXED_POLICIES)
@pytest.mark.parametrize("env_id", ["QanLR-MNIST5k-v0", "QanMinibatch-MNIST5k-v0"])
def test_a_policy_plays_its_game_or_says_why_not(name, env_id):
    env = make(env_id, batches_per_action=10)
    other_game = name == "uniform" if "LR" in env_id else name in SCHEDULES
    if other_game:
        with pytest.raises(ValueError, match="play"):
            play_episode(env, make_policy(name), seed=0)
    else:
        episode = play_episode(env, make_policy(name), seed=0)
        assert len(episode.steps) == env.unwrapped.episode_length
        assert episode.over
        assert 0 <= episode.final["test_accuracy"] <= 1


def test_unknown_policy():
    with pytest.raises(ValueError, match=r"'cosin'.*cosine"):
        make_policy("cosin")
    with pytest.raises(ValueError, match=r"'exponential'.*one-cycle"):
        schedule_rates("exponential", make_task_config("QanLR-MNIST5k-v0", {}), 10)
