"""The bundled PPO solves known tasks, learns the same from the same seed, and can be saved in the middle of a round."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from damaged_files import cut, flip, foreign, pickled, replacing, without
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from qan_agents.ppo import PPO, PPOConfig, PPOInterface, train
from qan_gym.utils.files import load_arrays

SMALL = PPOConfig(hidden=(32,), steps_per_round=10, epochs=8, minibatches=2, learning_rate=5e-3, gamma=0.9)
RECURRENT = {"recurrent": 16, "minibatches": 2}
SPACES = {
    "discrete": gym.spaces.Discrete(4),
    "multi-discrete": gym.spaces.MultiDiscrete([4, 3]),
    "box": gym.spaces.Box(0.0, 3.0, (1,), np.float32),
}


class Naming(VectorEnv):
    """Pays for the action that the observation names, now or at the start of the episode; episodes of 5 steps.

    Discrete pays 1, MultiDiscrete 1 if both numbers are right (the second is the first modulo 3), Box 1 minus the
    squared distance. With `hidden` the observation names it in the first step only.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(self, num_envs: int, kind: str = "discrete", hidden: bool = False) -> None:
        self.num_envs, self.kind, self.hidden = num_envs, kind, hidden
        self.single_observation_space = gym.spaces.Box(0, 1, (5,), np.float32)
        self.single_action_space = SPACES[kind]
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def _observe(self) -> np.ndarray:
        if self.t == 0 or not self.hidden:
            self.named = self.np_random.integers(4, size=self.num_envs)
        names = np.eye(5, dtype=np.float32)[self.named]
        return names if self.t == 0 or not self.hidden else np.full_like(names, 0.5)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._observe(), {"named": self.named}

    def step(self, actions):
        if self.kind == "box":
            rewards = 1 - (actions[:, 0] - self.named) ** 2
        elif self.kind == "discrete":
            rewards = (actions == self.named).astype(np.float64)
        else:
            rewards = ((actions[:, 0] == self.named) & (actions[:, 1] == self.named % 3)).astype(np.float64)
        self.t = (self.t + 1) % 5
        over = np.full(self.num_envs, self.t == 0)
        observations = self._observe()
        infos = {"named": self.named}
        if self.t == 0:
            final = np.full(self.num_envs, None, dtype=object)
            final[:] = list(observations)
            infos |= {"final_obs": final, "_final_obs": over}
        return observations, rewards, np.zeros(self.num_envs, bool), over, infos


def naming(config: PPOConfig, steps: int, seed: int = 0, num_envs: int = 20, **kwargs) -> tuple[PPO, list]:
    env = Naming(num_envs, **kwargs)
    agent = PPO(config, PPOInterface.of(env, config.privileged), seed=seed)
    return agent, train(agent, env, steps, seed=seed)


def mean_return(finished: list, last: int) -> float:
    return float(np.mean([episode.total_reward for episode in finished[-last:]]))


@pytest.mark.parametrize(
    ("kind", "switches"),
    [
        *((kind, {}) for kind in SPACES),
        ("box", {"privileged": "named"}),
        pytest.param("discrete", {"recurrent": 16}, marks=pytest.mark.slow),
    ],
)
def test_what_is_named_is_done(kind, switches):
    agent, finished = naming(replace(SMALL, **switches), 8_000, kind=kind)
    frames = torch.eye(5)[:4]
    actions, _ = agent.choose(frames)
    expected = torch.arange(4)
    if kind == "box":
        torch.testing.assert_close(actions[:, 0], expected.float(), rtol=0, atol=0.4)
    else:
        assert (actions if kind == "discrete" else actions[:, 0]).tolist() == expected.tolist()
    assert kind != "multi-discrete" or actions[:, 1].tolist() == [0, 1, 2, 0]
    assert len(finished) == 8_000 / 5
    assert mean_return(finished[:100], 100) < 2.5
    assert mean_return(finished, 100) > (3.5 if kind == "box" else 4.5)
    assert [episode.step for episode in finished[:40:20]] == [100, 200]


@pytest.mark.slow
def test_a_memory_tells_what_is_named_at_the_start_only():
    """Without it the first of five rewards and a quarter of the others can be had: 2 on average."""
    config = replace(SMALL, **RECURRENT, learning_rate=5e-3)
    _, finished = naming(config, 40_000, hidden=True)
    assert mean_return(finished, 200) > 4.5
    _, finished = naming(SMALL, 40_000, hidden=True)
    assert mean_return(finished, 200) < 2.5


CARTPOLE = PPOConfig(
    normalise_observations=False,
    steps_per_round=32,
    minibatches=1,
    epochs=20,
    gamma=0.98,
    gae_lambda=0.8,
    learning_rate=1e-3,
    anneal_steps=60_000,
)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_cartpole_is_solved(seed):
    """Within 60,000 steps: a mean return of at least 475 over 20 episodes, played with the likeliest actions."""
    env = gym.make_vec("CartPole-v1", num_envs=8, vectorization_mode="vector_entry_point")
    agent = PPO(CARTPOLE, PPOInterface.of(env), seed=seed)
    train(agent, env, 60_000, seed=seed)
    assert greedy_return(agent, "CartPole-v1", 20) >= 475


def greedy_return(agent: PPO, env_id: str, episodes: int) -> float:
    """The mean return of episodes that are played with the likeliest actions."""
    env = gym.make_vec(env_id, num_envs=episodes, vectorization_mode="sync")
    observations, _ = env.reset(seed=1000)
    playing, total = np.ones(episodes, bool), np.zeros(episodes)
    while playing.any():
        actions, _ = agent.choose(torch.from_numpy(observations))
        observations, rewards, terminated, truncated, _ = env.step(actions.numpy())
        total += rewards * playing
        playing &= ~(terminated | truncated)
    return float(total.mean())


SWITCHES = [{}, {**RECURRENT, "privileged": "named", "target_kl": 0.01, "anneal_steps": 5000}]


@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize("kind", ["discrete", "box"])
def test_the_same_seed_learns_the_same(switches, kind):
    (one, first), (two, second), (other, third) = (
        naming(replace(SMALL, **switches), 400, seed=seed, kind=kind) for seed in (5, 5, 6)
    )
    assert torch.equal(one.weights, two.weights)
    assert first == second
    assert one.rounds == 2
    assert not torch.equal(one.weights, other.weights)
    assert first != third


def test_progress_is_shown_and_metrics_are_of_the_last_round():
    shown = []
    agent = PPO(replace(SMALL, steps_per_round=32), PPOInterface.of(Naming(2)))
    assert set(agent.metrics().values()) == {0.0}
    train(agent, Naming(2), 70, seed=0, show=shown.append)
    assert shown[0] == 2
    assert agent.steps == 70
    assert agent.rounds == 1
    assert agent.rollout.length == 3
    metrics = agent.metrics()
    assert 1.0 < metrics["entropy"] < 1.39
    assert metrics["value_loss"] > 0
    train(agent, Naming(2), 58, seed=1)
    assert (agent.rounds, agent.rollout.length) == (2, 0)
    train(agent, Naming(3), 9, seed=1)


def test_the_learning_rate_falls_to_0():
    """That of a round is as it is at the round's first step."""
    agent, _ = naming(replace(SMALL, anneal_steps=800), 200)
    assert agent.learning_rate == pytest.approx(5e-3 * 0.75)
    train(agent, Naming(20), 180, seed=1)
    assert agent.learning_rate == pytest.approx(5e-3 * 0.75)
    train(agent, Naming(20), 20, seed=1)
    assert agent.learning_rate == pytest.approx(5e-3 * 0.5)
    train(agent, Naming(20), 600, seed=1)
    assert agent.learning_rate == 0


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize(("kind", "steps"), [("discrete", 0), ("box", 200), *((kind, 320) for kind in SPACES)])
def test_a_saved_agent_goes_on_to_the_same_bits(switches, kind, steps, tmp_path):
    """Fresh, between two rounds, and in the middle of one, whose steps are saved too."""
    config, env = replace(SMALL, **switches), Naming(20, kind)
    agent = PPO(config, PPOInterface.of(env, config.privileged))
    if steps > 0:
        train(agent, env, steps, seed=0)
    assert agent.steps == steps
    agent.save(tmp_path / "agent.safetensors", note="x")
    loaded = PPO.load(tmp_path / "agent.safetensors")
    assert loaded.facts == {"note": "x"}
    assert (loaded.config, loaded.interface, loaded.steps) == (agent.config, agent.interface, agent.steps)
    assert torch.equal(loaded.weights, agent.weights)
    assert loaded.metrics() == agent.metrics()
    for one in (agent, loaded):
        train(one, Naming(20, kind), 300, seed=7)
        one.save(tmp_path / f"{one is agent}")
    (arrays, about), (others, also) = (load_arrays(tmp_path / name) for name in ("True", "False"))
    assert about == also
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)
    assert agent.rounds == loaded.rounds >= 1


@pytest.mark.parametrize(
    "damage",
    [
        *(cut, flip, foreign, pickled, without("generator"), without("optimizer/exp_avg")),
        *(without("network/policy.head.weight"), without("rollout/rewards"), without("memories")),
        *(replacing("config", {"gamma": 3}), replacing("config", {"eyes": 2}), replacing("config", {"hidden": [3]})),
        *(
            replacing("interface", {}),
            replacing("interface", None),
            replacing("steps", None),
            replacing("length", None),
        ),
        *(replacing("length", 99), replacing("num_envs", 3), replacing("format", "qan_agents.ppo 0")),
    ],
)
def test_damaged_and_foreign_files_are_refused(damage, tmp_path):
    path = tmp_path / "agent.safetensors"
    agent, _ = naming(SMALL, 80)
    agent.save(path)
    PPO.load(path)
    damage(path)
    with pytest.raises(ValueError, match=r"agent\.safetensors"):
        PPO.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors"):
        PPO.load(tmp_path / "nothing.safetensors")


# --- CUDA -------------------------------------------------------------------------------------------------------------


@pytest.mark.cuda
@pytest.mark.parametrize("switches", SWITCHES)
def test_on_cuda_it_learns(switches):
    """The same game, with networks, rounds and scales on the device."""
    env = Naming(20)
    config = replace(SMALL, **{**switches, "anneal_steps": None})
    agent = PPO(config, PPOInterface.of(env, config.privileged), "cuda", seed=1)
    train(agent, env, 12_000, seed=1)
    assert agent.choose(torch.eye(5, device="cuda")[:4])[0].tolist() == [0, 1, 2, 3]
