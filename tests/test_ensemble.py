"""The ensemble of DQNs: acting, learning, cautious choice; the end of the budget ends the return."""

from dataclasses import asdict, replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from helpers import small_data
from test_dqn_learns import SMALL, Identity

from qan_agents.bench.preparation import prepare
from qan_agents.bench.tuning_task import TuningTask
from qan_agents.dqn import DQN, BudgetEndTerminates, Ensemble, EnsembleConfig, EnvInterface, train
from qan_gym.games.learning_rate import KEEP
from qan_gym.utils.files import load_arrays, save_arrays

LR = "QanLR-MNIST5k-v1"
# 20 actions of one mini-batch.
SHORT = {"dataset": small_data(), "epochs": 1, "batches_per_action": 1, "meta_momentum": None, "reference": None}


def small(members: int, caution: float = 0.5) -> EnsembleConfig:
    return EnsembleConfig(**asdict(SMALL), members=members, caution=caution)


def trained_ensemble(steps: int) -> Ensemble:
    env = Identity(3)
    ensemble = Ensemble(small(3), EnvInterface.of(env), seed=0)
    train(ensemble, env, steps, seed=0)
    return ensemble


@pytest.mark.slow
def test_it_learns_the_identity_game():
    ensemble = trained_ensemble(3_000)
    observations = torch.eye(4)[:, None]
    assert ensemble.steps == 3_000
    assert ensemble.choose(observations, None).tolist() == [0, 1, 2, 3]
    assert ensemble.choose(observations, 2).tolist() == [0, 1, 2, 3]  # they agree


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
    assert ensemble.act(epsilon=0.0).tolist() == [0, 1, 2]
    assert all(member.actions.tolist() == [0, 1, 2] for member in ensemble.members)


def test_caution_leaves_the_default_for_what_all_find_better():
    ensemble = Ensemble(small(2), EnvInterface.of(Identity(2)))
    opinions = torch.tensor(
        [  # members, states, actions
            [[1.0, 5.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.9]],
            [[1.2, -3.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.3]],
        ]
    )
    for member, values in zip(ensemble.members, opinions, strict=True):
        member.target_values = lambda _, values=values: values
    observations = torch.zeros(3, 1, 4)

    def chosen(default: int | None, caution: float) -> list[int]:
        ensemble.config = small(2, caution)
        return ensemble.choose(observations, default).tolist()

    # First state: 0 is better than 3 by 1.1 on average and both agree, 1 by 1.0 and they do not.
    assert chosen(3, 0.0) == [0, 0, 3]
    assert chosen(3, 1.0) == [0, 0, 3]  # 1.1 - 0.14; 2 - 1.41
    assert chosen(3, 2.0) == [0, 3, 3]  # 2 - 2.83 is no gain
    assert chosen(2, 0.0) == [0, 0, 3]  # 0.1 better on average,
    assert chosen(2, 1.0) == [0, 0, 2]  # but not by a standard deviation, 0.28
    assert chosen(None, 9.0) == [0, 0, 3]


def test_members_take_turns_where_there_are_fewer_rows():
    """Two rows, three members: 0 and 1 play, then 2 and 0, then 1 and 2."""
    ensemble = Ensemble(small(3), EnvInterface.of(Identity(2)))
    for number, member in enumerate(ensemble.members):  # each values its own action most
        member.values = lambda given, number=number: torch.eye(4)[number].expand(len(given), -1)
    played = []
    for _ in range(3):
        ensemble.begin(torch.zeros(2, 4))
        played.append(ensemble.act(epsilon=0.0).tolist())
    assert played == [[0, 1], [2, 0], [1, 2]]


@pytest.mark.parametrize("members", [1, 0, 2.5])
def test_an_ensemble_has_two_members_or_more(members):
    with pytest.raises(ValueError, match="members must be an integer of at least 2"):
        small(members)


def test_a_saved_ensemble_goes_on_to_the_same_bits(tmp_path):
    """But for the transitions of the replays, which are not saved: the next draws are of the same generators."""
    ensemble, other = trained_ensemble(300), Ensemble(small(3), EnvInterface.of(Identity(3)), seed=9)
    ensemble.begin(torch.zeros(3, 4))
    ensemble.save(tmp_path / "a.safetensors")
    other.load(tmp_path / "a.safetensors")
    assert other.steps == ensemble.steps == 300
    for one in (ensemble, other):
        one.reseed(7)
        one.begin(torch.eye(4)[:3])
    assert [ensemble.act().tolist() for _ in range(9)] == [other.act().tolist() for _ in range(9)]
    for one, its in zip(ensemble.members, other.members, strict=True):
        assert torch.equal(one.weights, its.weights)
        assert torch.equal(one.target_weights, its.target_weights)
        assert all(torch.equal(moment, again) for moment, again in zip(one.moments, its.moments, strict=True))
    other.save(tmp_path / "b.safetensors")
    again = Ensemble(small(3), EnvInterface.of(Identity(3)))
    again.load(tmp_path / "b.safetensors")


def test_a_file_that_is_of_another_ensemble_is_refused(tmp_path):
    interface = EnvInterface.of(Identity(3))
    path = tmp_path / "a.safetensors"
    Ensemble(small(3), interface).save(path)
    with pytest.raises(ValueError, match="other hyperparameters, or of 3 members"):
        Ensemble(small(2), interface).load(path)
    with pytest.raises(ValueError, match="is of an agent for"):
        Ensemble(small(3), replace(interface, actions=5)).load(path)
    with pytest.raises(ValueError, match="not an agent saved by this version"):
        DQN.load(path)
    DQN(SMALL, interface).save(path)
    with pytest.raises(ValueError, match="not an ensemble saved by this version"):
        Ensemble(small(3), interface).load(path)
    arrays, about = load_arrays(path)
    save_arrays(path, arrays, {**about, "format": "qan_agents.dqn ensemble 1"})
    with pytest.raises(ValueError, match="damaged, or of another version"):
        Ensemble(small(3), interface).load(path)


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
