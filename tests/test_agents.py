"""What both DQNs are in a run: the same games, the same records, judged alike."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from qan_agents.dqn.presets import PRESETS, make_dqn_config
from qan_agents.experiments.learner import VALUES_BATCH, Greedy, episode_values
from qan_agents.experiments.run_folder import RunConfig
from qan_agents.experiments.train import episode_seed, make_learner
from qan_agents.seeds import UNSEEN_BELOW

SHORT = {"epochs": 1, "meta_momentum": None, "reference": None, "batches_per_action": 20}  # 20 actions
ENDING = {**SHORT, "batches_per_action": 2, "target_loss": 1.5}  # at different times


def run_config(agent: str, num_envs: int = 1, preset: str = "quick", **kwargs: object) -> RunConfig:
    settings = {"env_kwargs": kwargs or SHORT, "agent": agent, "preset": preset}
    return RunConfig("QanLR-MNIST5k-v0", episodes=2 * num_envs, seed=0, num_envs=num_envs, **settings)


def ignore(progress: object) -> None:
    """Shows nothing."""


AGENTS = pytest.mark.parametrize("agent", ["dqn", "dqn-gpu"])


@pytest.mark.parametrize("ending", [SHORT, ENDING])
def test_both_agents_record_a_round_alike(ending):
    """The same seeds and actions, the same episodes: every column, frame, action and end. `paper` keeps to one."""
    kept = {"preset": "paper", **ending}
    one, other = (make_learner(run_config(agent, 3, **kept)) for agent in ("dqn", "dqn-gpu"))
    for learner in (one, other):  # all values 0: the first action is the best
        for parameter in (learner.model.q_net if learner is one else learner.agent.network).parameters():
            parameter.data.zero_()
    theirs, ours = (learner.play_round([3, 30, 300], 0.0, ignore) for learner in (one, other))
    assert (len({len(episode.steps) for episode in ours}) > 1) == (ending is ENDING)
    for first, second in zip(theirs, ours, strict=True):
        assert len(first.steps) == len(second.steps)
        for mine, its in zip(first.steps, second.steps, strict=True):
            assert mine.keys() == its.keys()
            assert mine == pytest.approx(its, rel=1e-6)
            assert [type(value) for value in mine.values()] == [type(value) for value in its.values()]
        assert second.over
        assert first.terminated == second.terminated
        assert {name: value for name, value in first.final.items() if name in second.final} == pytest.approx(
            second.final, rel=1e-6
        )
        for name, array in first.arrays().items():
            np.testing.assert_array_equal(array, second.arrays()[name], err_msg=name)


@pytest.mark.parametrize(("preset", "num_envs"), [("quick", 1), ("today", 3), ("paper", 3)])
def test_rounds_put_back_into_the_bundled_replay_equal_those_played(preset, num_envs, tmp_path):
    """After a save and a load everything that learning goes on from is the same, priorities too."""
    config = run_config("dqn-gpu", num_envs, preset, **ENDING)
    learner, other = make_learner(config), make_learner(replace(config, seed=1))
    rounds = []
    for number in range(2):
        seeds = [10 * number + row for row in range(num_envs)]
        rounds.append([episode.arrays() for episode in learner.play_round(seeds, None, ignore)])
    learner.save(tmp_path / "model.safetensors", 2)
    other.load(tmp_path / "model.safetensors")
    other.put_back(rounds)
    mine, its = learner.agent.replay, other.agent.replay
    assert (
        mine.size.tolist()
        == its.size.tolist()
        == [sum(len(r[row]["actions"]) for r in rounds) for row in range(num_envs)]
    )
    whole = torch.zeros(mine.slots, num_envs, dtype=torch.bool)
    for row in range(num_envs):
        whole[: mine.size[row], row] = True
    for name in ("frames", "next_frames", "actions", "rewards", "terminated", "ended", "age"):
        assert torch.equal(getattr(mine, name)[whole.flatten()], getattr(its, name)[whole.flatten()]), name
    assert torch.equal(mine.priorities, its.priorities)
    assert torch.equal(mine.highest, its.highest)
    for some in (learner, other):
        some.play_round(range(100, 100 + num_envs), None, ignore)
    assert torch.equal(learner.agent.weights, other.agent.weights)
    assert torch.equal(learner.agent.target_weights, other.agent.target_weights)
    assert learner.agent.updates == other.agent.updates > 0


@AGENTS
def test_a_played_round_teaches_nothing(agent):
    learner = make_learner(run_config(agent, 2))
    before = learner.values(torch.ones(1, 1, 825))
    played = [learner.play_round([5, 6], epsilon, ignore) for epsilon in (0.0, 1.0, 1.0)]
    assert torch.equal(learner.values(torch.ones(1, 1, 825)), before)
    assert learner.steps == 0
    actions = [np.array([episode.actions for episode in episodes]) for episodes in played]
    assert np.array_equal(actions[1], actions[2])
    assert len(np.unique(actions[1])) == 3
    frames = torch.from_numpy(np.stack(played[0][1].frames[:-1]))[:, None]  # (T, 1, D)
    assert actions[0][1].tolist() == learner.values(frames).argmax(dim=1).tolist()
    if agent == "dqn-gpu":
        assert learner.agent.replay.size.tolist() == [0, 0]


@AGENTS
@pytest.mark.parametrize("history", [1, 4])
@pytest.mark.parametrize("terminated", [False, True])
def test_an_episode_is_judged_by_the_equations(agent, history, terminated):
    """Observations stacked one by one, over more steps than are asked for at once."""
    config = run_config(agent, preset="quick" if history == 1 else "paper")
    learner = make_learner(replace(config, agent_kwargs={"gamma": 0.9}))
    networks = [learner.model.q_net_target] if agent == "dqn" else [learner.agent.target]
    for parameter in networks[0].parameters():
        parameter.data.mul_(1.5)  # so that they differ
    steps = 2 * VALUES_BATCH + 3
    rng = np.random.default_rng(0)
    arrays = {
        "frames": rng.normal(size=(steps + 1, 825)).astype(np.float32),
        "actions": rng.integers(3, size=steps),
        "rewards": rng.normal(size=steps).astype(np.float32),
        "terminated": np.asarray(terminated),
    }
    highest, errors = [], []
    for t in range(steps):
        seen, following = (
            torch.from_numpy(np.stack([arrays["frames"][max(when - back, 0)] for back in range(history - 1, -1, -1)]))
            for when in (t, t + 1)
        )
        values = learner.values(seen[None])[0]
        highest.append(float(values.max()))
        after = float(learner.target_values(following[None]).max())
        after = 0.0 if terminated and t == steps - 1 else after
        errors.append(abs(arrays["rewards"][t] + 0.9 * after - float(values[arrays["actions"][t]])))
    judged = episode_values(learner, arrays)
    assert judged["mean_max_q"] == pytest.approx(np.mean(highest), rel=1e-4)
    assert judged["mean_td_error"] == pytest.approx(np.mean(errors), rel=1e-4)


@AGENTS
def test_greedy_plays_the_action_of_the_highest_value(agent):
    learner = make_learner(run_config(agent))
    env = gym.wrappers.FrameStackObservation(gym.make("QanLR-MNIST5k-v0", **SHORT), 1)
    greedy = Greedy(learner)
    observation, info = env.reset(seed=0)
    for _ in range(5):
        best = int(learner.values(torch.from_numpy(np.asarray(observation))[None]).argmax())
        assert greedy.act(observation, info) == best
        observation, *_, info = env.step(best)


@AGENTS
def test_files_of_another_agent_are_refused(agent, tmp_path):
    """Of another game, another kind, or none."""
    learner = make_learner(run_config(agent))
    other = make_learner(replace(run_config(agent), env="QanMinibatch-MNIST5k-v0", env_kwargs={"epochs": 1}))
    path = tmp_path / ("model.zip" if agent == "dqn" else "model.safetensors")
    other.save(path, 1)
    with pytest.raises(ValueError, match=path.name):
        learner.load(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=path.name):
        learner.load(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=path.name):
        learner.load(path)


def test_training_seeds_are_never_evaluated():
    seeds = [episode_seed(RunConfig("x", {}, "dqn", "quick", 20, run), k) for run in range(20) for k in range(20)]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= UNSEEN_BELOW
    assert max(seeds) < 2**32


def test_unknown_agents_presets_and_settings():
    with pytest.raises(ValueError, match=r"dnq.*dqn-gpu"):
        make_learner(RunConfig("QanLR-MNIST5k-v0", SHORT, "dnq", "quick", 1, 0))
    with pytest.raises(ValueError, match=r"fast.*quick"):
        make_dqn_config("fast", 10, {})
    with pytest.raises(ValueError, match=r"duelling.*dueling"):
        make_dqn_config("quick", 10, {"duelling": True})
    with pytest.raises(ValueError, match="dueling must be true or false"):
        make_dqn_config("quick", 10, {"dueling": "yes"})


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("steps", [0, 1, 3, 4_000, 2_200_000])
def test_every_preset_fits_every_length(preset, steps):
    config = make_dqn_config(preset, steps, {})
    assert config.buffer_size <= max(steps, 1)
    assert config.learning_starts <= steps
