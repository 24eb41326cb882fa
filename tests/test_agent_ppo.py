"""The bundled PPO as the agent of a run: rounds of episodes, run folders, resuming, evaluation."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import small_data

from qan_agents.agents.ppo import BundledPPO
from qan_agents.experiments.evaluation import evaluate
from qan_agents.experiments.run_folder import Run, RunConfig, read_rows
from qan_agents.experiments.train import load_agent, make_agent, start_run, train
from qan_agents.ppo.presets import PRESETS, make_ppo_config
from qan_gym.utils.files import load_arrays

# 20 actions of one mini-batch.
SHORT = {"dataset": small_data(), "epochs": 1, "batches_per_action": 1, "meta_momentum": None, "reference": None}
ENDING = {**SHORT, "learning_rate": 0.1, "target_loss": 2.29}  # at different times
SMALL = {"steps_per_round": 15, "epochs": 2, "minibatches": 2}  # rounds of updates end within those of episodes


def run_config(num_envs: int = 2, preset: str = "quick", env: str = "QanLR-MNIST5k-v1", **kwargs) -> RunConfig:
    settings = {"test_exploration": kwargs.pop("test_exploration", None), "evaluation_seeds": (0,)}
    hyperparameters = {**SMALL, **kwargs.pop("hyperparameters", {})}
    env_kwargs = {**SHORT, **kwargs}
    return RunConfig(
        env, env_kwargs, "ppo", preset, 4 * num_envs, 3, num_envs, agent_kwargs=hyperparameters, **settings
    )


def ignore(*_: object) -> None:
    """Shows nothing."""


class Killed(Exception):
    """Stops a training."""


def table(run: Run) -> list[dict[str, str]]:
    rows = read_rows(run.folder / "episodes.csv")
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def same_files(one: Path, other: Path) -> None:
    (arrays, about), (others, also) = load_arrays(one), load_arrays(other)
    assert about == also
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)


CASES = {
    "discrete": run_config(),
    "ending at different times": run_config(3, **ENDING),
    "continuous, recurrent": run_config(preset="recurrent", continuous=True),
    "privileged": run_config(hyperparameters={"privileged": "validation_loss"}),
    "every second round only played": run_config(test_exploration=0.5),
}


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_goes_on_to_the_same_bits(case, tmp_path):
    """Killed in the middle of the third round of episodes, with a round of updates begun before it."""
    config = CASES[case]
    whole, stopped = (start_run(tmp_path / name, config) for name in ("whole", "stopped"))
    train(whole, ignore, ignore)

    def stop_in_third_round(_: object) -> None:
        if stopped.progress().episodes == 2 * config.num_envs:
            raise Killed

    with pytest.raises(Killed):
        train(stopped, stop_in_third_round, ignore)
    assert stopped.progress().episodes == 2 * config.num_envs
    train(stopped, ignore, ignore)
    assert table(stopped) == table(whole)
    same_files(whole.model_file, stopped.model_file)
    rows = table(whole)
    assert len(rows) == config.episodes
    assert {"policy_loss", "entropy", "kl", "explained_variance"} < rows[0].keys()
    assert float(rows[-1]["entropy"]) != 0
    assert not (whole.folder / "replay").exists()
    agent = load_agent(whole)
    assert agent.agent.rounds > 0
    assert agent.settings == whole.settings().hyperparameters | {"hidden": tuple(agent.settings["hidden"])}
    agent.close()
    evaluate(whole, ignore)
    assert read_rows(whole.folder / "evaluation.csv")[0]["policy"] == "ppo"


def test_the_policy_of_a_run_plays_as_the_agent_does():
    """On single environments as on the rows of a vector environment, memory included; of any kind of actions."""
    for kwargs in ({}, {"continuous": True}):
        agent = make_agent(run_config(1, "recurrent", hyperparameters={"minibatches": 1}, **kwargs))
        assert isinstance(agent, BundledPPO)
        agent.play_round([6], None, ignore)  # what it sees is scaled from then on
        noise = torch.randn(agent.agent.weights.shape, generator=torch.Generator().manual_seed(0))
        agent.agent.weights.add_(0.3 * noise)
        (episode,) = agent.play_round([7], 0.0, ignore)
        env = gym.wrappers.FrameStackObservation(gym.make("QanLR-MNIST5k-v1", **{**SHORT, **kwargs}), 1)
        policy = agent.policy()
        for _ in range(2):
            policy.start(env, 7)
            observation, info = env.reset(seed=7)
            for action in episode.actions:
                chosen = policy.act(observation, info)
                assert env.action_space.contains(chosen)
                np.testing.assert_allclose(chosen, action, rtol=1e-4, atol=1e-5)
                observation, *_, info = env.step(chosen)
        assert len({str(action) for action in episode.actions}) > 1


def test_nothing_is_learned_from_a_round_that_is_only_played():
    agent = make_agent(run_config())
    weights = agent.agent.network.state_dict()
    before = {name: value.clone() for name, value in weights.items()}
    played = [agent.play_round([5, 6], exploration, ignore) for exploration in (0.0, 1.0, 1.0)]
    assert all(torch.equal(value, before[name]) for name, value in weights.items())
    assert agent.steps == 0
    actions = [np.array([episode.actions for episode in episodes]) for episodes in played]
    assert np.array_equal(actions[1], actions[2])
    assert len(np.unique(actions[1])) == 3


def test_what_rows_play_while_they_wait_is_not_learned_from():
    agent = make_agent(run_config(3, hyperparameters={"steps_per_round": 100}, **ENDING))
    episodes = agent.play_round([3, 30, 300], None, ignore)
    steps, length = agent.agent.rollout.steps, agent.agent.rollout.length
    lengths = [len(episode.steps) for episode in episodes]
    assert len(set(lengths)) > 1
    assert steps.valid[:length].sum(dim=0).tolist() == lengths
    for row, episode in enumerate(episodes):
        assert steps.ended[lengths[row] - 1, row]
        np.testing.assert_allclose(steps.rewards[: lengths[row], row], [s["reward"] for s in episode.steps], rtol=1e-6)


def test_files_of_another_agent_are_refused(tmp_path):
    agent = make_agent(run_config())
    other = make_agent(run_config(env="QanMinibatch-MNIST5k-v1"))
    path = tmp_path / "model.safetensors"
    other.save(path)
    with pytest.raises(ValueError, match=r"model\.safetensors: is of an agent for"):
        agent.load(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        agent.load(path)


def test_hyperparameters_are_checked_before_the_run_begins(tmp_path):
    for hyperparameters, message in (
        ({"clipp": 0.1}, r"clipp.*clip"),
        ({"clip": -1}, "clip must be"),
        ({"recurrent": 4, "minibatches": 3}, "number of environments, 2, not 3"),
        ({"privileged": "task"}, r"privileged='task'.*there is learning_rate"),
    ):
        with pytest.raises(ValueError, match=message):
            start_run(tmp_path / "run", run_config(hyperparameters=hyperparameters))
    with pytest.raises(ValueError, match=r"fast.*quick"):
        start_run(tmp_path / "run", run_config(preset="fast"))
    assert not (tmp_path / "run").exists()
    for preset in PRESETS:
        for steps in (0, 1, 4000):
            assert make_ppo_config(preset, steps, {}).anneal_steps == max(steps, 1)
