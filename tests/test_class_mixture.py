"""The class-mixture game: few actions over few mixtures of the classes, and the agent that plays it."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

from qan_agents.env_ids import draws_tasks, task_of
from qan_agents.experiments.defaults import complete_config
from qan_agents.experiments.evaluation import Player, evaluate, play_seeds, rival_player
from qan_agents.experiments.played_task import base_schedule, rivals_of
from qan_agents.experiments.plots import plot_run
from qan_agents.experiments.run_folder import EVALUATION_STEPS
from qan_agents.experiments.train import start_run, train
from qan_agents.experiments.verdict import verdict_of
from qan_agents.policies.fixed import fixed_env_kwargs, make_policy
from qan_gym.games.class_mixture import KEEP, LOWER, MIXTURES, RAISE, mixture_shares
from qan_gym.utils.arrays import NUMPY

ID, MINIBATCH = "QanMinibatch-LongTail-v0", "QanMinibatch-MNIST5k-v1"
# Five classes are noisy, and the smallest ones have few images.
ONE = {"num_tasks": 1, "start_task": 7, "imbalance": 50, "label_noise": 0.3, "noisy_classes": 5, "networks": "mlp"}
MIXED = {**ONE, "game": "class-mixture"}


def play(env, actions, seed=3):
    """The observations, rewards and last info of an episode of these actions, then of the last of them."""
    observation, info = env.reset(seed=seed)
    seen, over, step = [observation], False, 0
    while not over:
        observation, reward, terminated, truncated, info = env.step(actions[min(step, len(actions) - 1)])
        seen += [observation, reward]
        over, step = terminated or truncated, step + 1
    return seen, info


# --- the game -------------------------------------------------------------------------------------------------------


def test_the_shares_are_powers_of_the_sizes():
    sizes = np.array([[100, 25, 4, 0]] * 4)
    expected = [[100, 25, 4, 0], [10, 5, 2, 0], [1, 1, 1, 0], [0.1, 0.2, 0.5, 0]]
    assert mixture_shares(NUMPY, sizes, np.arange(4)).tolist() == pytest.approx(np.array(expected))
    assert len(MIXTURES) == 4


def test_actions_go_through_the_mixtures_and_stop_at_their_ends():
    env = gym.make(ID, **MIXED, observation=["class_mixture", "class_share"])
    training = env.unwrapped.training
    env.reset(seed=3)
    sizes = np.array(env.unwrapped.task.class_sizes, np.float64)
    powers, place = (1.0, 0.5, 0.0, -0.5), 0
    for action in [KEEP, LOWER, RAISE, KEEP, RAISE, RAISE, RAISE, RAISE, LOWER, LOWER, LOWER, LOWER]:
        place = min(max(place + (action == RAISE) - (action == LOWER), 0), 3)
        observation, *_ = env.step(action)
        assert observation[0] == place
        wanted = sizes ** powers[place] / (sizes ** powers[place]).sum()
        batch_size = env.unwrapped.task.batch_size  # a mini-batch has each class rounded up or down
        assert abs(training.class_shares()[0] - wanted).max() <= 1 / batch_size
        assert observation[1:] == pytest.approx(10 * training.class_shares()[0], rel=1e-5)


def test_a_row_is_the_single_environment():
    rows = gym.make_vec(ID, num_envs=3, **MIXED)
    actions = np.random.default_rng(0).integers(0, 3, (6, 3))
    observations = [rows.reset(seed=11)[0], *(rows.step(each)[0] for each in actions)]
    env = gym.make(ID, **MIXED)
    for row in range(3):
        seen = [env.reset(seed=11 + row)[0], *(env.step(int(each[row]))[0] for each in actions)]
        assert all((one[row] == other).all() for one, other in zip(observations, seen, strict=True))


def test_a_saved_state_has_the_mixture(tmp_path):
    env, other = gym.make(ID, **MIXED), gym.make(ID, **MIXED)
    env.reset(seed=1)
    for action in (RAISE, RAISE, KEEP):
        env.step(action)
    other.reset(seed=2)
    other.unwrapped.set_state(env.unwrapped.get_state())
    one, two = env.step(KEEP), other.step(KEEP)
    assert (one[0] == two[0]).all()
    assert (env.unwrapped.training.class_shares() == other.unwrapped.training.class_shares()).all()


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"continuous": True}, "are raise, lower and keep"), ({"replacement": False}, "needs replacement=True")],
)
def test_what_the_game_cannot_be_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        gym.make(MINIBATCH, **{"game": "class-mixture", "replacement": True, **settings})


# --- longer actions of the only task --------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["mlp", pytest.param("mnist-cnn", marks=pytest.mark.slow)])
def test_longer_actions_of_a_task_train_the_same(network):
    """Where nobody acts, mini-batches, learning rates and weights do not depend on how long an action is."""
    one = {**MIXED, "networks": network, "start_task": 41}
    env = gym.make(ID, **one)
    task = replace(env.unwrapped.source.only, batches_per_action=1)  # 40 mini-batches, for the time
    kwargs = {"game": "class-mixture", "task": task}
    short, long = gym.make(ID, **kwargs), gym.make(ID, **kwargs, batches_per_action=4)
    assert (short.unwrapped.episode_length, long.unwrapped.episode_length) == (40, 10)
    (_, info), (_, other) = play(short, [KEEP]), play(long, [KEEP])
    assert (info["test_loss"], info["learning_rate"], info["batch"]) == (
        other["test_loss"],
        other["learning_rate"],
        other["batch"],
    )
    assert play(long, [RAISE])[1]["test_loss"] != info["test_loss"]
    assert long.unwrapped.training.batch_indices(0).shape == (4, task.batch_size)


def test_what_fills_no_action_is_left_out():
    env = gym.make(ID, **MIXED, batches_per_action=7)
    budget = task_of(ID, ONE).batches
    assert budget % 7 > 0
    seen, info = play(env, [KEEP])
    assert env.unwrapped.episode_length == (len(seen) - 1) // 2 == budget // 7
    assert info["batch"] == 7 * (budget // 7)
    assert env.unwrapped.training.class_shares()[0].sum() == pytest.approx(1)  # of the last action, too


def test_the_only_task_is_that_of_its_number():
    config = task_of(ID, MIXED)
    env = gym.make(ID, **MIXED)
    env.reset(seed=5)
    assert config.network == env.unwrapped.task.network
    assert config.batches == env.unwrapped.task.budget
    assert not draws_tasks(ID, ONE)
    assert draws_tasks(ID, {"num_tasks": 2})
    assert not draws_tasks(MINIBATCH, {})
    assert not draws_tasks(ID, {"task": env.unwrapped.task})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_tasks": 2, "batches_per_action": 4}, "play one, by num_tasks=1 or task="),
        ({"batches_per_action": 4}, "play one, by num_tasks=1 or task="),
        ({**ONE, "batches_per_action": 5_000}, "is larger than the budget of"),
    ],
)
def test_longer_actions_of_many_tasks_and_too_long_ones_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        gym.make(ID, **settings)


# --- the agent and its rivals ---------------------------------------------------------------------------------------


def config_of(env=ID, agent=None, **settings):
    return complete_config(env, settings, agent=agent, preset=None, episodes=20, seed=0, num_envs=None, agent_kwargs={})


def test_one_task_is_played_with_few_actions_over_mixtures():
    config = config_of(**ONE)
    budget = task_of(ID, ONE).batches
    assert (config.agent, config.num_envs, len(config.evaluation_seeds)) == ("dqn-ensemble", 4, 10)
    assert config.env_kwargs["game"] == "class-mixture"
    assert config.env_kwargs["batches_per_action"] * 10 == budget
    task = task_of(config.env, config.env_kwargs)
    assert base_schedule(task) == "natural"
    assert rivals_of(task, None) == ["natural", "uniform", "class-balanced", "deferred", "validation-proportional"]
    assert config_of(MINIBATCH, replacement=True, imbalance=20).env_kwargs["batches_per_action"] == 5


def test_the_game_that_the_user_names_is_played():
    named = {**ONE, "game": "minibatch"}
    assert (config_of(**named).agent, config_of(**named).env_kwargs) == ("dqn", named)
    asked = config_of(agent="dqn-ensemble", **named).env_kwargs
    assert asked == {**named, "reward": "validation-loss", "validate_every": task_of(ID, ONE).batches // 10}
    assert config_of(**{**ONE, "game": "class-mixture"}).env_kwargs == config_of(**ONE).env_kwargs
    assert config_of().agent == "dqn"  # every episode another task
    assert config_of(**ONE, continuous=True).agent == "ppo"


def test_nobody_acting_is_the_mixture_of_the_data():
    config = config_of(**ONE)
    task = task_of(ID, config.env_kwargs)
    assert fixed_env_kwargs("natural", task) == {}
    (natural,) = play_seeds(ID, rival_player("natural", config.env_kwargs, task), [4], 1, lambda share: None)
    env = gym.make(ID, **config.env_kwargs)
    assert natural.final["test_loss"] == play(env, [KEEP], seed=4)[1]["test_loss"]
    balanced = rival_player("class-balanced", config.env_kwargs, task)
    (episode,) = play_seeds(ID, balanced, [4], 1, lambda share: None)
    shares = Player(lambda: make_policy("class-balanced"), {**ONE, "continuous": True})
    (finer,) = play_seeds(ID, shares, [4], 1, lambda share: None)
    assert episode.final["test_loss"] == finer.final["test_loss"]  # the same shares throughout


@pytest.mark.slow
def test_rules_have_other_actions_than_the_agent_in_tables_and_pictures(tmp_path):
    config = replace(config_of(**ONE), episodes=4, evaluation_seeds=(0, 1))
    run = start_run(tmp_path / "run", config)
    train(run, lambda progress: None, lambda number, episode: None)
    evaluate(run, lambda policy, share: None)
    rows = {row["policy"]: row for row in run.table(EVALUATION_STEPS)}
    assert rows["natural"]["action"] == str(KEEP)
    assert rows["natural"]["action_9"] == ""
    assert -1 <= float(rows["deferred"]["action_9"]) <= 1
    assert [path.name for path in plot_run(run)][-1] == "episode.png"


@pytest.mark.slow
def test_twenty_trainings_beat_shuffled_sgd_on_unseen_seeds(tmp_path):
    run = start_run(tmp_path / "run", config_of(**ONE))
    train(run, lambda progress: None, lambda number, episode: None)
    evaluate(run, lambda policy, share: None)
    verdict = verdict_of(run)
    assert verdict.base == "natural"
    assert [row[0] for row in verdict.table()[1]][1] == "natural, nobody acting"
    assert "dqn-ensemble is ahead of uniform by" in verdict.sentence()
    assert "its mixture alone, natural with nobody acting, does worse by" in verdict.sentence()
