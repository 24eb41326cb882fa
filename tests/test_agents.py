"""The agents of a run: what both DQNs have in common, the registry, and an agent of another kind in a run."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from helpers import small_data

from qan_agents.agents import (
    AGENTS,
    Agent,
    AgentSpec,
    Progress,
    ValuePolicy,
    agent_class,
    agent_names,
    register_agent,
    training_of,
)
from qan_agents.dqn import PRESETS, make_dqn_config
from qan_agents.dqn.values import VALUES_BATCH
from qan_agents.experiments.evaluation import evaluate
from qan_agents.experiments.run_folder import Run, RunConfig, read_rows
from qan_agents.experiments.train import episode_seed, load_agent, make_agent, start_run, train
from qan_agents.policies.rollout import Episode
from qan_agents.seeds import UNSEEN_BELOW
from qan_gym.utils.files import write_aside

# 20 actions of one mini-batch.
SHORT = {"dataset": small_data(), "epochs": 1, "batches_per_action": 1, "meta_momentum": None, "reference": None}
ENDING = {**SHORT, "learning_rate": 0.1, "target_loss": 2.29}  # at different times


def run_config(agent: str, num_envs: int = 1, preset: str = "quick", **kwargs: object) -> RunConfig:
    settings = {"env_kwargs": kwargs or SHORT, "agent": agent, "preset": preset}
    return RunConfig("QanLR-MNIST5k-v1", episodes=2 * num_envs, seed=0, num_envs=num_envs, **settings)


def ignore(*_: object) -> None:
    """Shows nothing."""


BOTH = pytest.mark.parametrize("name", ["dqn", "dqn-native"])


# --- both DQNs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [SHORT, ENDING])
def test_both_agents_record_a_round_alike(ending):
    """The same seeds and actions, the same episodes: every column, frame, action and end. `paper` never explores."""
    agents = [make_agent(run_config(name, 3, "paper", **ending)) for name in ("dqn", "dqn-native")]
    for network in (agents[0].model.q_net, agents[1].agent.network):
        for parameter in network.parameters():  # all values 0: the first action is the best
            parameter.data.zero_()
    sb3, native = (agent.play_round([3, 30, 300], 0.0, ignore) for agent in agents)
    assert (len({len(episode.steps) for episode in native}) > 1) == (ending is ENDING)
    for one, other in zip(sb3, native, strict=True):
        assert len(one.steps) == len(other.steps)
        for row, other_row in zip(one.steps, other.steps, strict=True):
            assert row.keys() == other_row.keys()
            assert row == pytest.approx(other_row, rel=1e-6)
            assert [type(value) for value in row.values()] == [type(value) for value in other_row.values()]
        assert other.over
        assert one.terminated == other.terminated
        assert {name: value for name, value in one.final.items() if name in other.final} == pytest.approx(
            other.final, rel=1e-6
        )
        for name, array in one.arrays().items():
            np.testing.assert_array_equal(array, other.arrays()[name], err_msg=name)


@pytest.mark.parametrize(("preset", "num_envs"), [("quick", 1), ("rainbow", 3), ("paper", 3)])
def test_the_refilled_replay_of_dqn_native_equals_that_of_the_played_rounds(preset, num_envs, tmp_path):
    """After a save and a load everything that learning goes on from is the same, priorities too."""
    config = run_config("dqn-native", num_envs, preset, **ENDING)
    agent, other = make_agent(config), make_agent(replace(config, seed=1))
    rounds = []
    for number in range(2):
        seeds = [10 * number + row for row in range(num_envs)]
        rounds.append([episode.arrays() for episode in agent.play_round(seeds, None, ignore)])
    agent.save(tmp_path / "model.safetensors")
    other.load(tmp_path / "model.safetensors")
    other.refill_replay(rounds)
    played, refilled = agent.agent.replay, other.agent.replay
    lengths = [sum(len(episodes[row]["actions"]) for episodes in rounds) for row in range(num_envs)]
    assert played.size.tolist() == refilled.size.tolist() == lengths
    written = torch.zeros(played.slots, num_envs, dtype=torch.bool)
    for row in range(num_envs):
        written[: played.size[row], row] = True
    for name in ("frames", "next_frames", "actions", "rewards", "terminated", "ended", "age"):
        assert torch.equal(getattr(played, name)[written.flatten()], getattr(refilled, name)[written.flatten()]), name
    assert torch.equal(played.priorities, refilled.priorities)
    assert torch.equal(played.max_priority, refilled.max_priority)
    for one in (agent, other):
        one.play_round(range(100, 100 + num_envs), None, ignore)
    assert torch.equal(agent.agent.weights, other.agent.weights)
    assert torch.equal(agent.agent.target_weights, other.agent.target_weights)
    assert agent.agent.updates == other.agent.updates > 0


def test_the_refilled_replays_of_an_ensemble_equal_those_of_the_played_rounds(tmp_path):
    """Of every member; three members play two rows in turn, and go on to the same bits; every end is a termination."""
    config = replace(
        run_config("dqn-ensemble", 2, "control", **ENDING), agent_kwargs={"members": 3, "gradient_steps": 1}
    )
    agent, other = make_agent(config), make_agent(replace(config, seed=1))
    rounds = []
    for number in range(2):
        episodes = agent.play_round([10 * number, 10 * number + 1], None, ignore)
        rounds.append([episode.arrays() for episode in episodes])
        assert all(arrays["terminated"] for arrays in rounds[-1])
    agent.save(tmp_path / "model.safetensors")
    other.load(tmp_path / "model.safetensors")
    other.refill_replay(iter(rounds))
    for one in (agent, other):
        one.play_round([100, 101], None, ignore)
    weights = [member.weights for member in agent.agent.members]
    assert not torch.equal(weights[0], weights[1])
    for member, its in zip(agent.agent.members, other.agent.members, strict=True):
        assert torch.equal(member.weights, its.weights)
        assert torch.equal(member.target_weights, its.target_weights)
        assert torch.equal(member.replay.frames, its.replay.frames)
        assert member.updates == its.updates > 0


def test_the_ensemble_is_cautious(tmp_path):
    """Its policy keeps the learning rate, but where the members are sure enough of something better."""
    agent = make_agent(replace(run_config("dqn-ensemble", 1, "control"), agent_kwargs={"members": 2, "caution": 1}))
    values = torch.tensor([[[0.0, 3.0, 1.0]], [[0.0, 2.0, 1.0]]])  # of two members: raise, lower, keep
    for member, its in zip(agent.agent.members, values, strict=True):
        member.target_values = lambda _, its=its: its
    policy, observation = agent.policy(), np.zeros((1, 825), np.float32)
    policy.start(None, 0)
    assert isinstance(policy, ValuePolicy)
    assert policy.values(observation).tolist() == [0.0, 2.5, 1.0]
    assert policy.act(observation, {}) == 1  # better by 1.5 on average; a standard deviation is 0.71
    values[0, 0, 1] = 9.0  # better by 4.5, and a standard deviation is 4.95
    assert policy.act(observation, {}) == 2


@BOTH
def test_nothing_is_learned_from_a_round_that_is_only_played(name):
    """Weights and replay stay; exploration 0 is greedy, 1 is random, the same seed plays the same episode."""
    agent = make_agent(run_config(name, 2))
    before = weights_of(agent)
    shown: list[Progress] = []
    played = [agent.play_round([5, 6], exploration, shown.append) for exploration in (0.0, 1.0, 1.0)]
    assert all(torch.equal(one, other) for one, other in zip(weights_of(agent), before, strict=True))
    assert agent.steps == 0
    assert {progress.step for progress in shown} == {0}
    assert {progress.metrics["epsilon"] for progress in shown} <= {0.0, 1.0}
    assert agent.metrics() == {"epsilon": 1.0}
    assert all(episode.over and len(episode.actions) == 20 for episodes in played for episode in episodes)
    actions = [np.array([episode.actions for episode in episodes]) for episodes in played]
    assert np.array_equal(actions[1], actions[2])
    assert len(np.unique(actions[1])) == 3
    frames = torch.from_numpy(np.stack(played[0][1].frames[:-1]))[:, None]  # (T, 1, D)
    assert actions[0][1].tolist() == agent.values(frames).argmax(dim=1).tolist()
    if name == "dqn-native":
        assert agent.agent.replay.size.tolist() == [0, 0]
    else:
        assert len(shown) == 3 * 20
        assert agent.replay.pos == 0


def weights_of(agent: Agent) -> list[torch.Tensor]:
    networks = [agent.model.policy] if agent_class("dqn") is type(agent) else [agent.agent.network, agent.agent.target]
    return [value.clone() for network in networks for value in network.state_dict().values()]


@BOTH
@pytest.mark.parametrize("history", [1, 4])
@pytest.mark.parametrize("terminated", [False, True])
def test_an_episode_is_judged_by_the_equations(name, history, terminated):
    """Observations stacked one by one, over more steps than are valued at once."""
    config = run_config(name, preset="quick" if history == 1 else "paper")
    agent = make_agent(replace(config, agent_kwargs={"gamma": 0.9}))
    target = agent.model.q_net_target if name == "dqn" else agent.agent.target
    for parameter in target.parameters():
        parameter.data.mul_(1.5)  # so that the networks differ
    steps = 2 * VALUES_BATCH + 3
    rng = np.random.default_rng(0)
    episode = Episode(
        steps=[{"reward": float(reward)} for reward in rng.normal(size=steps).astype(np.float32)],
        frames=list(rng.normal(size=(steps + 1, 825)).astype(np.float32)),
        actions=rng.integers(3, size=steps).tolist(),
        terminated=terminated,
    )
    highest, errors = [], []
    for t in range(steps):
        observation, next_observation = (
            torch.from_numpy(np.stack([episode.frames[max(when - back, 0)] for back in range(history - 1, -1, -1)]))
            for when in (t, t + 1)
        )
        values = agent.values(observation[None])[0]
        highest.append(float(values.max()))
        following = float(agent.target_values(next_observation[None]).max())
        following = 0.0 if terminated and t == steps - 1 else following
        errors.append(abs(episode.steps[t]["reward"] + 0.9 * following - float(values[episode.actions[t]])))
    judged = agent.judge_episode(episode)
    assert judged == pytest.approx({"mean_max_q": np.mean(highest), "mean_td_error": np.mean(errors)}, rel=1e-4)


@BOTH
def test_the_policy_plays_the_action_of_the_highest_value(name):
    agent = make_agent(run_config(name))
    env = gym.wrappers.FrameStackObservation(gym.make("QanLR-MNIST5k-v1", **SHORT), agent.history)
    policy = agent.policy()
    assert isinstance(policy, ValuePolicy)
    observation, info = env.reset(seed=0)
    for _ in range(5):
        values = agent.values(torch.from_numpy(np.asarray(observation))[None])[0]
        assert policy.values(observation).tolist() == values.tolist()
        assert policy.act(observation, info) == int(values.argmax())
        observation, *_, info = env.step(int(values.argmax()))


@BOTH
def test_files_of_another_agent_are_refused(name, tmp_path):
    """Of another game, another kind, or none."""
    agent = make_agent(run_config(name))
    other = make_agent(replace(run_config(name), env="QanMinibatch-MNIST5k-v1", env_kwargs={"epochs": 1}))
    path = tmp_path / f"model{agent.model_suffix}"
    other.save(path)
    with pytest.raises(ValueError, match=path.name):
        agent.load(path)
    for content in (path.read_bytes()[:1000], b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=path.name):
            agent.load(path)


@BOTH
def test_the_score_line_of_a_game_is_read_with_the_features_that_it_adds(name, registries):
    """`scores` has the seven numbers of every game and those of the game; a change of the last one changes values."""
    from qan_gym.games.game import register_game
    from qan_gym.games.learning_rate import LearningRateGame

    class WithMomentum(LearningRateGame):
        features = ("momentum",)

    register_game("with-momentum", WithMomentum())
    kwargs = {"agent_kwargs": {"features": "scores"}}
    agent = make_agent(replace(run_config(name, game="with-momentum", momentum=0.5, **SHORT), **kwargs))
    env = gym.make("QanLR-MNIST5k-v1", game="with-momentum", momentum=0.5, **SHORT)
    observation = torch.from_numpy(env.reset(seed=0)[0])
    rows, columns = env.unwrapped.screen_shape
    place = (rows - 1) * columns + 7
    assert float(observation[place]) == 0.5
    changed = observation.clone()
    changed[place] = 0.9
    values, others = (agent.values(one[None, None]) for one in (observation, changed))
    assert not torch.equal(values, others)
    beyond = observation.clone()
    beyond[place + 1] = 0.9
    assert torch.equal(agent.values(beyond[None, None]), values)


def test_training_seeds_are_never_evaluated():
    seeds = [episode_seed(RunConfig("x", {}, "dqn", "quick", 20, run), k) for run in range(20) for k in range(20)]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= UNSEEN_BELOW
    assert max(seeds) < 2**32


def test_unknown_presets_and_hyperparameters():
    with pytest.raises(ValueError, match=r"fast.*quick"):
        make_dqn_config("fast", 10, {})
    with pytest.raises(ValueError, match=r"duelling.*dueling"):
        make_dqn_config("quick", 10, {"duelling": True})
    with pytest.raises(ValueError, match="dueling must be True or False"):
        make_dqn_config("quick", 10, {"dueling": "yes"})


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("steps", [0, 1, 3, 4_000, 2_200_000])
def test_every_preset_fits_every_length(preset, steps):
    config = make_dqn_config(preset, steps, {})
    assert config.buffer_size <= max(steps, 1)
    assert config.learning_starts <= steps


# --- the registry -------------------------------------------------------------------------------------------------


def test_every_file_is_an_agent_with_its_presets():
    assert agent_names()[:3] == ["dqn", "dqn-ensemble", "dqn-native"]
    assert agent_class("dqn").presets == ("quick", "paper")
    assert agent_class("dqn-native").presets == tuple(PRESETS)
    assert agent_class("dqn-ensemble").presets == ("control", "quick", "paper", "rainbow")
    for name in agent_names():
        for preset in agent_class(name).presets:
            agent_class(name).check(preset, {})


def test_unknown_agents_and_taken_names():
    with pytest.raises(ValueError, match=r"dnq.*dqn, dqn-ensemble, dqn-native"):
        make_agent(run_config("dnq"))
    for name in ("dqn", "dqn-native"):
        with pytest.raises(ValueError, match="taken"):
            register_agent(name, Bandit)


# --- an agent of another kind -------------------------------------------------------------------------------------


class ConstantPolicy:
    """The same action throughout."""

    def __init__(self, action: int) -> None:
        self.action = action

    def start(self, env: gym.Env, seed: int) -> None:
        """See `Policy.start`."""

    def act(self, observation: np.ndarray, info: dict[str, Any]) -> int:
        """See `Policy.act`."""
        return self.action


class Bandit(Agent):
    """A bandit over constant actions: no values of states, no epsilon, no replay, no frames."""

    presets = ("mean", "last")
    model_suffix = ".json"

    def __init__(self, spec: AgentSpec) -> None:
        mode = AutoresetMode.NEXT_STEP
        self.env = gym.make_vec(spec.env, num_envs=spec.num_envs, autoreset_mode=mode, **spec.env_kwargs)
        self.training = training_of(self.env)
        self.settings = {"preset": spec.preset, "bonus": 1.0, **spec.hyperparameters}
        self.arms: list[list[float]] = [[] for _ in self.facts.action_names]
        self.done = 0

    @property
    def steps(self) -> int:
        return self.done

    def play_round(
        self, seeds: Sequence[int], exploration: float | None, show: Callable[[Progress], None]
    ) -> list[Episode]:
        rng = np.random.default_rng(seeds[0])
        arm = self.best() if exploration is None or rng.random() >= exploration else int(rng.integers(len(self.arms)))
        episodes = [Episode() for _ in seeds]
        self.env.reset(seed=list(seeds))
        while not all(episode.over for episode in episodes):
            _, rewards, terminated, truncated, infos = self.env.step(np.full(len(seeds), arm))
            for row, episode in enumerate(episodes):
                if not episode.over:
                    info = {key: value[row].item() for key, value in infos.items() if key[0] != "_"}
                    episode.add(arm, float(rewards[row]), info)
                    if terminated[row] or truncated[row]:
                        episode.end(info, bool(terminated[row]))
            show(Progress(self.done, float(infos["validation_accuracy"].mean()), self.metrics()))
        if exploration is None:
            self.arms[arm] += [episode.total_reward for episode in episodes]
            self.done += sum(len(episode.steps) for episode in episodes)
        return episodes

    def best(self) -> int:
        bonus = self.settings["bonus"]
        scores = [np.inf if not arm else np.mean(arm) + bonus / np.sqrt(len(arm)) for arm in self.arms]
        return int(np.argmax(scores))

    def metrics(self) -> dict[str, float]:
        return {"arms_tried": float(sum(map(bool, self.arms))), "best_arm": float(self.best())}

    def judge_episode(self, episode: Episode) -> dict[str, float]:
        return {"surprise": episode.total_reward - float(np.mean([np.mean(arm) for arm in self.arms if arm]))}

    def policy(self) -> ConstantPolicy:
        return ConstantPolicy(self.best())

    def save(self, path: Path) -> None:
        with write_aside(path) as aside:
            aside.write_text(json.dumps({"arms": self.arms, "steps": self.done}))

    def load(self, path: Path) -> None:
        saved = json.loads(path.read_text())
        self.arms, self.done = saved["arms"], saved["steps"]

    def close(self) -> None:
        self.env.close()


@pytest.fixture
def bandit() -> Iterator[str]:
    register_agent("bandit", Bandit)
    yield "bandit"
    del AGENTS["bandit"]


class Killed(Exception):
    """Stops a training."""


def table(run: Run) -> list[dict[str, str]]:
    rows = read_rows(run.folder / "episodes.csv")
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.parametrize("test_exploration", [None, 0.5])
def test_an_agent_without_values_trains_resumes_and_is_evaluated(bandit, test_exploration, tmp_path):
    """The columns are its own; a training stopped in the middle of a round ends like one that was not."""
    assert bandit in agent_names()
    config = RunConfig(
        "QanLR-MNIST5k-v1",
        SHORT,
        bandit,
        "mean",
        episodes=8,
        seed=3,
        num_envs=2,
        test_exploration=test_exploration,
        evaluation_seeds=(0,),
        agent_kwargs={"bonus": 0.5},
    )
    shown: list[Progress] = []
    whole = start_run(tmp_path / "whole", config)
    train(whole, shown.append, ignore)
    assert whole.settings().hyperparameters == {"preset": "mean", "bonus": 0.5}
    assert {name for progress in shown for name in progress.metrics} == {"arms_tried", "best_arm"}
    rows = table(whole)
    assert len(rows) == 8
    assert {"arms_tried", "best_arm", "surprise", "action_2"} < rows[0].keys()
    assert not {"epsilon", "mean_max_q", "mean_td_error"} & rows[0].keys()
    assert not (whole.folder / "replay").exists()
    learned = [True] * 8 if test_exploration is None else [True, True, False, False] * 2
    assert [row["learned"] == "1" for row in rows] == learned

    stopped = start_run(tmp_path / "stopped", config)

    def stop_in_third_round(progress: Progress) -> None:
        if stopped.progress().episodes == 4:
            raise Killed

    with pytest.raises(Killed):
        train(stopped, stop_in_third_round, ignore)
    assert stopped.progress().episodes == 4
    train(stopped, ignore, ignore)
    assert table(stopped) == rows
    assert stopped.model_file.read_text() == whole.model_file.read_text()

    agent = load_agent(whole)
    assert not isinstance(agent.policy(), ValuePolicy)
    assert agent.facts.action_names == ("raise", "lower", "keep")
    agent.close()
    evaluate(whole, ignore)
    policies = [row["policy"] for row in read_rows(whole.folder / "evaluation.csv")]
    assert policies == ["bandit", "constant", "linear", "cosine"]
