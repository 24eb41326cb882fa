"""What the bundled PPO makes of environments: resets in both modes, actions, memory, privileged inputs, scales."""

import math
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from helpers import small_data

from qan_agents.dqn import TensorVectorEnv
from qan_agents.ppo import PPO, Player, PPOConfig, PPOInterface, train
from qan_agents.ppo.actions import ActionSpace, Choices, Gaussian
from qan_agents.ppo.network import RunningNorm

MODES = (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP)
CPU = torch.device("cpu")


class Counting(gym.Env):
    """Observes (row, step of the episode), pays step + 1; ends after `lengths` in turn, every second one terminated.

    The task in its infos is 100 * row + the number of the episode, and stays for an episode, or as "drift", with the
    step added.
    """

    def __init__(
        self, row: int, lengths: tuple[int, ...], action_space: gym.Space, says_task_always: bool = True
    ) -> None:
        self.row, self.lengths, self.action_space = row, lengths, action_space
        self.observation_space = gym.spaces.Box(-1000, 1000, (2,), np.float32)
        self.episode, self.says_task_always = -1, says_task_always

    def _observe(self) -> tuple[np.ndarray, dict]:
        task = {"width": 100.0 * self.row + self.episode, "depth": 0.5}
        infos = {"task": task, "drift": np.array([task["width"] + self.t / 10, 1.0])}
        if not self.says_task_always and self.t > 0:
            infos = {}
        return np.array([self.row, self.t], np.float32), infos

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.episode = 0, self.episode + 1
        return self._observe()

    def step(self, action):
        assert self.action_space.contains(action), action
        self.t += 1
        over = self.t == self.lengths[self.episode % len(self.lengths)]
        observation, infos = self._observe()
        terminated = over and self.episode % 2 == 1
        return observation, float(self.t), terminated, over and not terminated, infos


LENGTHS = ((3, 2), (4, 1, 2), (9,))


def counting(mode: AutoresetMode, space: gym.Space | None = None, **kwargs: Any) -> VectorEnv:
    space = gym.spaces.Discrete(2) if space is None else space
    makers = [
        lambda row=row, lengths=lengths: Counting(row, lengths, space, **kwargs) for row, lengths in enumerate(LENGTHS)
    ]
    return SyncVectorEnv(makers, autoreset_mode=mode)


def played(config: PPOConfig, env: VectorEnv, steps: int) -> PPO:
    """An agent that has played some steps of a round that is longer."""
    agent = PPO(replace(config, steps_per_round=100), PPOInterface.of(env, config.privileged), seed=1)
    train(agent, env, steps * env.num_envs, seed=0)
    return agent


# --- resets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("recurrent", [0, 4])
def test_every_step_of_an_episode_is_remembered_with_what_followed(mode, recurrent):
    """Against a count by hand: observation, reward, next observation, end; the resets of NEXT_STEP are not valid."""
    agent = played(PPOConfig(normalise_observations=False, recurrent=recurrent, minibatches=1), counting(mode), 12)
    steps = agent.rollout.steps
    for row, lengths in enumerate(LENGTHS):
        t, episode = 0, 0
        for place in range(12):
            length = lengths[episode % len(lengths)]
            assert float(steps.observations[place, row, 0]) == row
            if t == length:  # NEXT_STEP: the last observation is seen once more
                assert not steps.valid[place, row]
                assert not steps.ended[place, row]
                t, episode = 0, episode + 1
                continue
            assert steps.valid[place, row]
            assert steps.observations[place, row, 1] == t
            assert bool(steps.starts[place, row]) == (t == 0)
            t += 1
            assert steps.rewards[place, row] == t
            assert steps.next_observations[place, row].tolist() == [row, t]
            assert bool(steps.ended[place, row]) == (t == length)
            assert bool(steps.terminated[place, row]) == (t == length and episode % 2 == 1)
            if t == length and mode == AutoresetMode.SAME_STEP:
                t, episode = 0, episode + 1


@pytest.mark.parametrize("mode", MODES)
def test_advantages_at_resets_are_those_computed_by_hand(mode):
    """A value of 10 for every step of the episode, gamma and lambda 0.5; row 0 plays 3 steps, then 2 and terminates."""
    config = PPOConfig(normalise_observations=False, hidden=(), gamma=0.5, gae_lambda=0.5, minibatches=1)
    agent = played(config, counting(mode), 7)
    head = agent.network.critic.head
    head.weight.data.copy_(torch.tensor([[0.0, 10.0]]))
    head.bias.data.zero_()
    batch, _, _ = agent._batch()
    # TD errors r + 0.5 V' - V. First episode, truncated with V' = 30: 1 + 5 - 0, 2 + 10 - 10, 3 + 15 - 20.
    first = [6 + 0.25 * (2 + 0.25 * -2), 2 + 0.25 * -2, -2]
    # Second, terminated: 1 + 5 - 0, 2 + 0 - 10. Third, again of 3 steps, of which the round has only the first ones.
    second = [6 + 0.25 * -8, -8]
    third = [6 + 0.25 * 2, 2] if mode == AutoresetMode.SAME_STEP else []
    pause = [0] if mode == AutoresetMode.NEXT_STEP else []
    expected = [*first, *pause, *second, *pause, *third]
    assert batch.advantages[:, 0].tolist() == pytest.approx(expected)
    values = [0, 10, 20, *[30 for _ in pause], 0, 10, *[20 for _ in pause], *([0, 10] if third else [])]
    assert batch.returns[:, 0].tolist() == pytest.approx([a + v for a, v in zip(expected, values, strict=True)])


def test_both_modes_learn_the_same_from_the_same_episodes():
    """Advantages and returns of the valid steps are equal, in their order, but for those of the last episode."""
    config = PPOConfig(recurrent=3, minibatches=1, normalise_observations=False)
    found = []
    for mode in MODES:
        batch, _, _ = played(config, counting(mode), 24)._batch()
        found.append([batch.advantages[batch.valid[:, row], row][:14] for row in range(2)])
    for row in range(2):
        torch.testing.assert_close(found[0][row][:12], found[1][row][:12])


def test_a_new_beginning_cuts_the_episodes_that_go_on():
    """As a truncation: no advantage flows over it, and the value of the last observation is expected."""
    env = counting(AutoresetMode.SAME_STEP)
    agent = played(PPOConfig(normalise_observations=False, minibatches=1), env, 2)
    assert not agent.rollout.steps.ended[1, 2]
    train(agent, env, 3, seed=1)
    steps = agent.rollout.steps
    assert agent.rollout.length == 3
    assert steps.ended[1].all()
    assert not steps.terminated[1].any()
    assert steps.next_observations[1, 2].tolist() == [2, 2]
    assert steps.starts[2].all()
    with pytest.raises(ValueError, match="of 3 environments, not of 2"):
        agent.begin(torch.zeros(2, 2))


# --- scales -----------------------------------------------------------------------------------------------------------


def test_the_running_norm_is_mean_and_variance_of_what_it_was_shown():
    numbers = torch.Generator().manual_seed(0)
    norm, shown = RunningNorm(3, limit=2.0), []
    assert torch.equal(norm(torch.ones(1, 3)), torch.ones(1, 3))
    for rows in (1, 5, 2, 7):
        values = torch.randn(rows, 3, generator=numbers) * torch.tensor([1.0, 1000.0, 0.0]) + 5
        counted = torch.rand(rows, generator=numbers) < 0.7
        norm.observe(values, counted)
        shown.append(values[counted].double())
    everything = torch.cat(shown)
    mean, deviation = everything.mean(dim=0), everything.std(dim=0, correction=0)
    assert float(norm.count) == len(everything)
    expected = ((values.double() - mean) / torch.where(deviation > 0, deviation, 1.0)).clamp(-2, 2)
    torch.testing.assert_close(norm(values).double(), expected, rtol=1e-5, atol=1e-5)
    before = norm(values)
    norm.observe(values, torch.zeros(7, dtype=torch.bool))
    assert torch.equal(norm(values), before)


@pytest.mark.parametrize("mode", MODES)
def test_every_frame_that_is_acted_on_is_counted_once(mode):
    """Not the last ones of NEXT_STEP mode, on which no action is played."""
    agent = played(PPOConfig(minibatches=1, privileged="task"), counting(mode), 12)
    env = counting(mode)
    env.reset()  # as the other one was, to see its privileged inputs
    plain = played(PPOConfig(minibatches=1, normalise_observations=False), env, 12)
    steps = plain.rollout.steps
    seen = torch.cat([steps.observations[:12][steps.valid[:12]], plain.observations])
    if mode == AutoresetMode.NEXT_STEP:
        seen = torch.cat([seen[:-3], plain.observations[~steps.ended[11]]])
    norm = agent.network.observation_norm
    assert 27 < float(norm.count) == len(seen) == float(agent.network.input_norm.count)
    torch.testing.assert_close(norm.mean, seen.double().mean(dim=0))
    torch.testing.assert_close(norm.square / norm.count, seen.double().var(dim=0, correction=0))
    before = norm.mean.clone()
    agent.choose(torch.full((5, 2), 99.0))
    assert torch.equal(norm.mean, before), "playing counts nothing"


# --- actions ----------------------------------------------------------------------------------------------------------


def test_choices_are_the_distributions_of_torch():
    space = ActionSpace((3,), choices=(2, 3, 4))
    distribution, outputs = Choices(space), torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    actions = torch.tensor([[0, 1, 2], [1, 2, 3], [0, 0, 0], [1, 1, 1], [0, 2, 3]])
    parts = [torch.distributions.Categorical(logits=part) for part in outputs.split([2, 3, 4], dim=1)]
    log_prob = sum(part.log_prob(actions[:, place]) for place, part in enumerate(parts))
    torch.testing.assert_close(distribution.log_prob(outputs, actions), log_prob)
    torch.testing.assert_close(distribution.entropy(outputs), sum(part.entropy() for part in parts))
    assert distribution.mode(outputs).tolist() == [[int(p.probs[i].argmax()) for p in parts] for i in range(5)]
    generator = torch.Generator().manual_seed(0)
    drawn = distribution.sample(outputs[:1].expand(20_000, -1), generator)
    uniform = distribution.random(20_000, generator)
    for place, part in enumerate(parts):
        count = space.choices[place]
        for some, expected in ((drawn, part.probs[0]), (uniform, torch.full((count,), 1 / count))):
            shares = torch.bincount(some[:, place], minlength=count) / 20_000
            torch.testing.assert_close(shares, expected, rtol=0, atol=0.015)
    assert Choices(ActionSpace((), choices=(4,))).played(torch.tensor([[3], [0]])).tolist() == [3, 0]


def test_gaussians_are_the_distributions_of_torch_and_fit_the_box():
    space = ActionSpace.of(gym.spaces.Box(np.float32([-1, 2, -np.inf, 0]), np.float32([1, 8, np.inf, np.inf])))
    distribution = Gaussian(space, initial_log_std=-0.5, learn_std=True)
    outputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    actions = outputs.flip(0)
    torch_one = torch.distributions.Normal(outputs, torch.full((4,), math.exp(-0.5)))
    torch.testing.assert_close(distribution.log_prob(outputs, actions), torch_one.log_prob(actions).sum(dim=1))
    torch.testing.assert_close(distribution.entropy(outputs), torch_one.entropy().sum(dim=1))
    assert torch.equal(distribution.mode(outputs), outputs)
    drawn = distribution.sample(outputs[:1].expand(20_000, -1), torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(dim=0), outputs[0], rtol=0, atol=0.02)
    torch.testing.assert_close(drawn.std(dim=0), torch.full((4,), math.exp(-0.5)), rtol=0, atol=0.02)
    given = torch.tensor([[0.5, 0.5, 50.0, 0.5], [3.0, -3.0, -50.0, -3.0]])
    assert distribution.played(given).tolist() == [[0.5, 6.5, 50.0, 0.5], [1.0, 2.0, -50.0, 0.0]]


SPACES = [
    gym.spaces.Discrete(3, start=5),
    gym.spaces.MultiDiscrete([2, 5]),
    gym.spaces.MultiDiscrete([[2, 5], [3, 1]], start=[[1, 2], [3, 4]]),
    gym.spaces.Box(-2.0, 2.0, (2, 2), np.float32),
    gym.spaces.Box(-2.0, 2.0, (3,), np.float64),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("recurrent", [0, 3])
def test_every_kind_of_actions_is_played_and_learned_from(space, recurrent):
    """The environment checks that each is in its space."""
    env = counting(AutoresetMode.SAME_STEP, space)
    agent = PPO(PPOConfig(steps_per_round=4, minibatches=2, recurrent=recurrent), PPOInterface.of(env), seed=0)
    before = agent.weights.clone()
    train(agent, env, 24, seed=0)
    assert agent.rounds == 2
    assert not torch.equal(agent.weights, before)
    player, tensors = Player(agent, random=0.5), TensorVectorEnv(env, CPU)
    player.begin(tensors.reset(1))
    for _ in range(10):
        player.remember(tensors.step(player.act()))


def test_spaces_that_cannot_be_played_are_refused():
    for space in (gym.spaces.MultiBinary(2), gym.spaces.Box(0, 5, (2,), np.int64)):
        with pytest.raises(ValueError, match="Discrete, MultiDiscrete and Box"):
            PPOInterface.of(counting(AutoresetMode.SAME_STEP, space))
    with pytest.raises(ValueError, match="FlattenObservation"):
        PPOInterface.of(gym.make_vec("FrozenLake-v1", num_envs=2, vectorization_mode="sync"))
    agent = PPO(PPOConfig(), PPOInterface.of(counting(AutoresetMode.SAME_STEP)))
    with pytest.raises(ValueError, match="was made for"):
        train(agent, gym.make_vec("CartPole-v1", num_envs=2), 10)
    with pytest.raises(ValueError, match="NEXT_STEP or SAME_STEP"):
        train(agent, counting(AutoresetMode.DISABLED), 10)


# --- memory -----------------------------------------------------------------------------------------------------------


def test_a_sequence_is_its_steps_with_the_memory_reset_where_episodes_start():
    config = PPOConfig(recurrent=4, minibatches=1)
    policy = PPO(config, PPOInterface.of(counting(AutoresetMode.SAME_STEP)), seed=1).network.policy
    numbers = torch.Generator().manual_seed(0)
    inputs, memory = torch.randn(6, 3, 2, generator=numbers), torch.randn(3, 4, generator=numbers)
    starts = torch.rand(6, 3, generator=numbers) < 0.3
    starts[3, 1], starts[4:, 1] = True, False
    outputs, memories = policy.sequence(inputs, memory, starts)
    for t in range(6):
        kept = torch.where(starts[t][:, None], 0.0, memory)
        output, memory = policy.step(inputs[t], kept)
        torch.testing.assert_close(outputs[t], output)
        torch.testing.assert_close(memories[t], memory)
    alone, _ = policy.sequence(inputs[3:, 1:2], torch.zeros(1, 4), torch.zeros(3, 1, dtype=torch.bool))
    torch.testing.assert_close(outputs[3:, 1:2], alone, msg="nothing from before the start is remembered")
    assert policy.sequence(inputs, memory, starts)[0].shape == (6, 3, 2)


@pytest.mark.parametrize("mode", MODES)
def test_acting_and_learning_have_the_same_memory(mode):
    """Over three rounds with episodes that end within them and go on over them."""
    env = counting(mode)
    config = PPOConfig(recurrent=4, minibatches=1, steps_per_round=5, learning_rate=1e-12, normalise_observations=False)
    agent = PPO(config, PPOInterface.of(env), seed=1)
    agent.network.policy.head.weight.data.mul_(100)  # so that the memory matters
    tensors = TensorVectorEnv(env, CPU)
    agent.begin(tensors.reset(0))
    for _ in range(3):
        for _ in range(5):
            agent.remember(tensors.step(agent.act()))
        batch, _, _ = agent._batch()
        outputs, memories = agent.network.policy.sequence(batch.observations, batch.memories[0], batch.starts)
        log_probs = agent.network.distribution.log_prob(outputs, batch.actions)
        torch.testing.assert_close(log_probs, batch.log_probs)
        torch.testing.assert_close(memories[-1], agent.memory)
        agent.update()
    # The player's memory is the same again.
    player = Player(agent)
    player.begin(tensors.reset(0))
    agent.rollout.length = 0
    frames = tensors.reset(0)
    agent.begin(frames)
    for _ in range(8):
        actions = agent.act(deterministic=True)
        assert torch.equal(player.act(), actions)
        transitions = tensors.step(actions)
        if not agent.rollout.is_full:
            agent.remember(transitions)
        else:
            agent.rollout.length = 0
            agent.remember(transitions)
        player.remember(transitions)
        torch.testing.assert_close(player.memory * ~transitions.starts[:, None], agent.memory * ~agent.starts[:, None])


# --- privileged inputs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("always", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_privileged_inputs_are_those_of_the_episode(mode, always):
    """Also of the last observation, and where the environment names the task only when an episode starts."""
    config = PPOConfig(privileged="task", minibatches=1, normalise_observations=False)
    env = counting(mode, says_task_always=always)
    agent = PPO(replace(config, steps_per_round=100), PPOInterface.of(env, "task"), seed=1)
    assert agent.interface.inputs == ("depth", "width")
    train(agent, env, 12 * 3, seed=0)
    steps = agent.rollout.steps
    episode = [int(steps.inputs[0, row, 1]) - 100 * row for row in range(3)]
    for t in range(12):
        for row in range(3):
            if t > 0 and steps.starts[t, row]:
                episode[row] += 1
            if steps.valid[t, row]:
                assert steps.inputs[t, row].tolist() == [0.5, 100 * row + episode[row]]
                assert steps.next_inputs[t, row].tolist() == [0.5, 100 * row + episode[row]]
    assert episode[1] > episode[2]


@pytest.mark.parametrize("mode", MODES)
def test_privileged_inputs_may_be_an_array_that_changes(mode):
    env = counting(mode)
    config = PPOConfig(privileged="drift", minibatches=1, normalise_observations=False, steps_per_round=100)
    agent = PPO(config, PPOInterface.of(env, "drift"), seed=1)
    assert agent.interface.inputs == ("drift[0]", "drift[1]")
    train(agent, env, 12 * 3, seed=0)
    steps = agent.rollout.steps
    for t in range(12):
        for row in range(3):
            if steps.valid[t, row]:
                now, following = (values[t, row, 0] for values in (steps.inputs, steps.next_inputs))
                assert float(following - now) == pytest.approx(0.1, abs=1e-4)


def test_the_value_network_sees_the_privileged_inputs_and_the_policy_does_not():
    env = counting(AutoresetMode.SAME_STEP)
    agent = PPO(PPOConfig(privileged="task", recurrent=3, minibatches=1), PPOInterface.of(env, "task"), seed=1)
    frames = TensorVectorEnv(env, CPU).reset(0)
    found = []
    for width in (0.0, 3.0):
        task = {"width": torch.tensor([width, 1.0, 2.0]), "depth": torch.zeros(3)}
        agent.generator.manual_seed(0)
        agent.begin(frames, {"task": task})
        agent.act()
        seen = torch.cat([agent.observations, agent.inputs], dim=1)
        found.append((agent.log_probs, agent.memory, agent.network.critic.step(seen, agent.memory)[0][:, 0]))
    (one, memory, value), (other, other_memory, other_value) = found
    assert torch.equal(one, other)
    assert torch.equal(memory, other_memory)
    assert value[0] != other_value[0]
    assert agent.network.policy.layers[0].in_features == 2
    assert agent.network.critic.layers[0].in_features == 4


def test_privileged_inputs_that_are_not_there_are_refused():
    env = counting(AutoresetMode.SAME_STEP)
    with pytest.raises(ValueError, match=r"privileged='tusk'.*there is task, drift"):
        PPOInterface.of(env, "tusk")
    agent = PPO(PPOConfig(privileged="task"), PPOInterface.of(env, "task"))
    with pytest.raises(ValueError, match=r"privileged='task'.*there is learning_rate"):
        train(agent, gym.make_vec("QanLR-MNIST5k-v1", num_envs=2, **QAN), 10)


# --- qan-gym's own ----------------------------------------------------------------------------------------------------

QAN = {"dataset": small_data(), "epochs": 1, "batches_per_action": 4, "meta_momentum": None, "reference": None}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_the_games_are_played(mode, output):
    """With the score line, an entry of the infos as privileged input, and either kind of output: the same rounds."""
    env = gym.make_vec("QanLR-MNIST5k-v1", num_envs=3, output=output, autoreset_mode=mode, **QAN)
    config = PPOConfig(features="scores", privileged="loss", steps_per_round=4, minibatches=2)
    agent = PPO(config, PPOInterface.of(env, "loss"), seed=0)
    assert agent.interface.inputs == ("loss",)
    finished = train(agent, env, 3 * 12, seed=0)
    assert agent.rounds == 3
    assert len(finished) == 6
    assert 0 < float(agent.network.input_norm.mean) < 10
