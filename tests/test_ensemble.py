"""The ensemble of DQNs: acting, learning, cautious choice; the end of the budget ends the return."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from helpers import small_data
from test_dqn_learns import SMALL, Identity

from qan_agents.bench.preparation import prepare
from qan_agents.bench.trained_agents import BudgetEndTerminates
from qan_agents.bench.tuning_task import TuningTask
from qan_agents.dqn import Ensemble, EnvInterface, train
from qan_gym.games.learning_rate import KEEP

LR = "QanLR-MNIST5k-v1"
# 20 actions of one mini-batch.
SHORT = {"dataset": small_data(), "epochs": 1, "batches_per_action": 1, "meta_momentum": None, "reference": None}


def trained_ensemble(steps: int) -> Ensemble:
    env = Identity(3)
    ensemble = Ensemble(SMALL, EnvInterface.of(env), size=3, seed=0)
    train(ensemble, env, steps, seed=0)
    return ensemble


@pytest.mark.slow
def test_it_learns_the_identity_game():
    ensemble = trained_ensemble(3_000)
    observations = torch.eye(4)[:, None]
    assert ensemble.steps == 3_000
    assert ensemble.choose(observations, None, 0.0).tolist() == [0, 1, 2, 3]
    assert ensemble.choose(observations, 2, 1.0).tolist() == [0, 1, 2, 3]  # they agree


def test_the_same_seed_learns_the_same():
    one, other = (trained_ensemble(600).members for _ in range(2))
    for first, second in zip(one, other, strict=True):
        assert first.updates > 100
        assert torch.equal(first.weights, second.weights)


def test_each_plays_its_row_and_all_remember_all_rows():
    """Greedy members: the actions of a row are its member's, and every replay holds the same transitions."""
    ensemble = trained_ensemble(300)
    first, *others = ensemble.members
    for other in others:
        assert not torch.equal(first.weights, other.weights)
        for name in ("frames", "actions", "rewards", "next_frames", "ended"):
            assert torch.equal(getattr(first.replay, name), getattr(other.replay, name))
    for number, member in enumerate(ensemble.members):  # each values its own action most
        member.values = lambda given, number=number: torch.eye(4)[number].expand(len(given), -1)
        member.act = lambda member=member: type(member).act(member, epsilon=0.0)
    assert ensemble.act().tolist() == [0, 1, 2]
    assert all(member.actions.tolist() == [0, 1, 2] for member in ensemble.members)


def test_caution_leaves_the_default_for_what_all_find_better():
    ensemble = Ensemble(SMALL, EnvInterface.of(Identity(2)), size=2)
    opinions = torch.tensor(
        [  # members, states, actions
            [[1.0, 5.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.9]],
            [[1.2, -3.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.3]],
        ]
    )
    for member, values in zip(ensemble.members, opinions, strict=True):
        member.target_values = lambda _, values=values: values
    observations = torch.zeros(3, 1, 4)
    # First state: 0 is better than 3 by 1.1 on average and both agree, 1 by 1.0 and they do not.
    assert ensemble.choose(observations, 3, 0.0).tolist() == [0, 0, 3]
    assert ensemble.choose(observations, 3, 1.0).tolist() == [0, 0, 3]  # 1.1 - 0.14; 2 - 1.41
    assert ensemble.choose(observations, 3, 2.0).tolist() == [0, 3, 3]  # 2 - 2.83 is no gain
    assert ensemble.choose(observations, 2, 0.0).tolist() == [0, 0, 3]  # 0.1 better on average,
    assert ensemble.choose(observations, 2, 1.0).tolist() == [0, 0, 2]  # but not by a standard deviation, 0.28
    assert ensemble.choose(observations, None, 9.0).tolist() == [0, 0, 3]


def test_it_plays_as_many_environments_as_it_has_members():
    with pytest.raises(ValueError, match="ensemble of 2"):
        train(Ensemble(SMALL, EnvInterface.of(Identity(3)), size=2), Identity(3), 30)


def test_the_budgets_end_ends_the_return():
    env = BudgetEndTerminates(gym.make_vec(LR, num_envs=2, autoreset_mode=AutoresetMode.SAME_STEP, **SHORT))
    env.reset(seed=0)
    for _ in range(19):
        *_, terminated, truncated, _ = env.step(np.full(2, KEEP))
        assert not terminated.any()
        assert not truncated.any()
    _, _, terminated, truncated, infos = env.step(np.full(2, KEEP))
    assert terminated.all()
    assert not truncated.any()
    assert not infos["final_info"]["diverged"].any()


def test_no_agent_of_a_bench_expects_anything_after_the_budget(monkeypatch):
    """In the replays of the bundled agent and of Stable-Baselines3's, every end is a termination."""
    import stable_baselines3

    kept = []
    remember = Ensemble.remember
    monkeypatch.setattr(
        Ensemble, "remember", lambda self, new: (kept.append((new.terminated, new.ended)), remember(self, new))
    )
    task = TuningTask(LR, SHORT, runs=2, seed=0, num_envs=2)
    prepare("dqn-native", task, {"gradient_steps": 1})
    assert torch.stack([ended for _, ended in kept]).sum() == 2
    assert all(torch.equal(terminated, ended) for terminated, ended in kept)

    models = []
    learn = stable_baselines3.DQN.learn
    monkeypatch.setattr(
        stable_baselines3.DQN, "learn", lambda self, *args: (models.append(self), learn(self, *args))[1]
    )
    prepare("dqn", task, {"gradient_steps": 1})
    (model,) = models
    assert model.replay_buffer.dones.sum() == 2
    assert model.replay_buffer.timeouts.sum() == 0


@pytest.mark.parametrize("caution", [-1, "much", True, float("nan")])
def test_wrong_caution_is_refused(caution):
    with pytest.raises(ValueError, match="caution"):
        prepare("dqn-native", TuningTask(LR, SHORT, 2, 0, num_envs=2), {"caution": caution})
