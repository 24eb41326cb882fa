"""The bundled DQN's update against its equations (`oracles.dqn`), for every switch."""

import re
from dataclasses import replace

import pytest
import torch
from oracles.dqn import OracleDQN, OracleEpisode

from qan_agents.dqn import DQN, DQNConfig, EnvInterface, Transitions
from qan_agents.dqn.rmsprop import DeepMindRMSprop
from qan_gym.utils.validation import describe_settings

ROWS = 2
BASE = DQNConfig(
    hidden=(8, 6),
    batch_size=6,
    learning_rate=0.01,
    optimizer_epsilon=1e-4,  # a smaller one makes rounding errors into steps where a gradient is nearly 0
    clip_td_error=0.5,
    max_grad_norm=0.1,
    buffer_size=200,
    learning_starts=0,
)
FLAT = EnvInterface((3,), "float32", 4, (1, 3), score_line=0)
SCREEN = EnvInterface((72,), "float32", 4, (8, 9), score_line=8)
ALL = {
    **{"double": True, "dueling": True, "layer_norm": True, "quantiles": 5, "n_step": 3, "priority_exponent": 0.6},
    **{"history": 4, "optimizer": "rmsprop", "optimizer_epsilon": 0.01, "features": "score-line"},
}
SWITCHES = {
    "base": {},
    "double": {"double": True},
    "dueling": {"dueling": True},
    "dueling without hidden layers": {"dueling": True, "hidden": ()},
    "quantiles": {"quantiles": 5},
    "n-step": {"n_step": 3},
    "prioritized": {"priority_exponent": 0.6},
    "importance": {"priority_exponent": 0.6, "importance_initial": 1.0},
    "layer norm": {"layer_norm": True},
    "history": {"history": 4},
    "rmsprop": {"optimizer": "rmsprop", "optimizer_epsilon": 0.01},
    "squared error": {"clip_td_error": None},
    "other threshold": {"clip_td_error": 0.1},
    "no gradient limit": {"max_grad_norm": None},
    "tight gradient limit": {"max_grad_norm": 0.01},
    "gamma": {"gamma": 0.5},
    "one hidden layer": {"hidden": (16,)},
    "linear": {"hidden": ()},
    "float16": {"storage": "float16"},
    "filters": {"features": "filters"},
    "score line": {"features": "score-line"},
    "scores": {"features": "scores"},
    "learning rate": {"learning_rate": 0.001},
    "epsilon": {"optimizer_epsilon": 0.1},
    "all": ALL,
    "all, with filters": {**ALL, "features": "filters"},
}


def play(config: DQNConfig) -> tuple[DQN, list[list[tuple[OracleEpisode, int]]]]:
    """An agent that has played made episodes in two rows; and the transitions in the ring of each row."""
    interface = SCREEN if config.features != "flat" else FLAT
    agent = DQN(config, interface, seed=3)
    numbers = torch.Generator().manual_seed(0)
    size = interface.frame_size
    episodes = [
        [
            OracleEpisode(torch.randn(length + 1, size, generator=numbers), [], [], length % 2 == 0)
            for length in (lengths if row == 0 else lengths[::-1])
        ]
        for row, lengths in enumerate([[1, 4, 2, 7, 5]] * ROWS)
    ]
    stored: list[list[tuple[OracleEpisode, int]]] = [[], []]
    agent.begin(torch.stack([some[0].frames[0] for some in episodes]))
    position = [[0, 0] for _ in range(ROWS)]  # episode, step
    for _ in range(17):  # in the last of them both rows are within an episode
        agent.act(1.0)
        rewards = torch.randn(ROWS, generator=numbers)
        frames, next_frames, ends, terminations = [], [], [], []
        for row, (number, t) in enumerate(position):
            episode = episodes[row][number]
            episode.actions.append(int(agent.actions[row]))
            episode.rewards.append(float(rewards[row]))
            stored[row].append((episode, t))
            over = t + 2 == len(episode.frames)
            position[row] = [number + 1, 0] if over else [number, t + 1]
            episode.length = None if over else t + 1
            next_number, step = position[row]
            next_frames.append(episode.frames[t + 1])
            frames.append(episodes[row][next_number].frames[step])
            ends.append(over)
            terminations.append(over and episode.terminated)
        ended, terminated = torch.tensor(ends), torch.tensor(terminations)
        agent.remember(
            Transitions(
                frames=torch.stack(frames),
                next_frames=torch.stack(next_frames),
                rewards=rewards,
                terminated=terminated,
                ended=ended,
                valid=torch.ones(ROWS, dtype=torch.bool),
                starts=ended,
                infos={},
            )
        )
    for some in episodes:
        for episode in some:
            stored_as = torch.float16 if config.storage == "float16" else torch.float32
            episode.frames = episode.frames.to(stored_as).double()
    return agent, stored


def oracle_of(agent: DQN) -> OracleDQN:
    """The same weights."""
    network, target = (
        {name: value.detach().double() for name, value in some.state_dict().items()}
        for some in (agent.network, agent.target)
    )
    return OracleDQN(agent.config, agent.interface.screen, agent.interface.score_line, network, target)


def drawn_next(agent: DQN, count: int):
    """The transitions that the next update will draw."""
    generator = torch.Generator()
    generator.set_state(agent.generator.get_state())
    return agent.replay.sample(count, agent.config.importance_initial, generator)


@pytest.mark.parametrize("switch", SWITCHES)
def test_updates_are_the_equations(switch, monkeypatch):
    """Three updates in one go, then, with a new target network, another: losses, TD errors, priorities, weights."""
    agent, stored = play(replace(BASE, **SWITCHES[switch]))
    config = agent.config
    agent.target_weights.mul_(-0.7)  # so that the networks differ
    oracle = oracle_of(agent)
    results = []
    gradient_step = agent.gradient_step
    monkeypatch.setattr(agent, "gradient_step", lambda *given: results.append(gradient_step(*given)) or results[-1])
    for count in (3, 1):
        batch = drawn_next(agent, count * config.batch_size)
        where = [(int(place) % ROWS, int(place) // ROWS) for place in batch.places]
        before = agent.replay.priorities.clone()
        weights = torch.ones(len(where), dtype=torch.float64)
        if config.priority_exponent > 0:
            drawable = [p for row in range(ROWS) for p in range(row, len(stored[row]) * ROWS, ROWS)]
            total = sum(float(before[place]) for place in drawable)
            weights = torch.tensor(
                [(len(drawable) * float(before[p]) / total) ** -config.importance_initial for p in batch.places]
            ).double()
            weights = weights / weights.max()
        agent.update(count)
        errors = []
        for number in range(count):
            some = slice(number * config.batch_size, (number + 1) * config.batch_size)
            loss, wrong = oracle.update([stored[row][slot] for row, slot in where[some]], weights[some].tolist())
            errors += wrong
            assert float(results[number].loss) == pytest.approx(loss, rel=1e-4, abs=1e-6)
            assert results[number].td_errors.tolist() == pytest.approx(wrong, rel=1e-3, abs=1e-4)
        for name, value in agent.network.state_dict().items():
            torch.testing.assert_close(value.double(), oracle.network[name], rtol=1e-3, atol=1e-4, msg=name)
        if config.priority_exponent > 0:
            for place, error in zip(batch.places, errors, strict=True):
                before[place] = (abs(error) + 1e-6) ** config.priority_exponent
            torch.testing.assert_close(agent.replay.priorities, before, rtol=1e-3, atol=1e-4)
        results.clear()
        agent.target_weights.copy_(agent.weights)
        oracle.target = dict(oracle.network)


@pytest.mark.parametrize(
    "switch", [name for name in SWITCHES if name not in ("base", "filters", "score line", "scores")]
)
def test_every_switch_matters(switch):
    """The values after some updates differ from those without it."""
    weights = []
    for settings in ({}, SWITCHES[switch]):
        config = replace(BASE, features=SWITCHES[switch].get("features", "flat"))
        agent, _ = play(replace(config, **settings))
        agent.target_weights.mul_(-0.7)
        agent.update(4)
        observation = torch.linspace(-1, 1, agent.config.history * agent.interface.frame_size).view(
            1, agent.config.history, -1
        )
        weights.append(agent.values(observation))
    assert not torch.equal(*weights)


@pytest.mark.parametrize(("interval", "tau"), [(1, 0.05), (2, 1.0), (6, 0.5), (7, 1.0)])
def test_the_target_network_follows(interval, tau):
    """Every so many steps of the rows together, rounded down to whole steps of both; by a share of the way."""
    agent, _ = play(replace(BASE, target_update_interval=interval, tau=tau, update_every=2 * ROWS))
    agent.weights.add_(1.0)
    expected = agent.target_weights.clone()
    for step in range(1, 13):
        if step % max(interval // ROWS, 1) == 0:
            expected = (1 - tau) * expected + tau * agent.weights
        agent.learn()
        torch.testing.assert_close(agent.target_weights, expected)
    assert agent.steps == 12 * ROWS
    assert agent.updates == 6


def test_updates_are_as_many_as_asked_for():
    agent, _ = play(replace(BASE, update_every=3, gradient_steps=4, learning_starts=8))
    counts = []
    for _ in range(10):
        before = agent.updates
        agent.learn()
        counts.append(agent.updates - before)
    # Steps 2, 4, ..., 20; updates after 9, 12, 15, 18, that are due at 10, 12, 16, 18.
    assert counts == [0, 0, 0, 0, 4, 4, 0, 4, 4, 0]


def test_deepminds_rmsprop_is_its_formula():
    generator = torch.Generator().manual_seed(0)
    weights = torch.nn.Parameter(torch.randn(5, 3, generator=generator))
    optimizer = DeepMindRMSprop([weights], lr=0.1, eps=0.01)
    expected, mean, square = weights.detach().double(), 0.0, 0.0
    for _ in range(20):
        weights.grad = torch.randn(5, 3, generator=generator)
        gradient = weights.grad.double()
        mean, square = 0.95 * mean + 0.05 * gradient, 0.95 * square + 0.05 * gradient**2
        expected = expected - 0.1 * gradient / (square - mean**2 + 0.01).sqrt()
        optimizer.step()
    torch.testing.assert_close(weights.detach().double(), expected, rtol=1e-5, atol=1e-6)


WRONG = {
    **{"history": 0, "features": "eyes", "hidden": (0,), "layer_norm": 1, "dueling": "yes", "quantiles": 0},
    **{"double": None, "gamma": 1.5, "n_step": 0.5, "clip_td_error": 0, "optimizer": "sgd", "learning_rate": -1},
    **{"optimizer_epsilon": 0, "max_grad_norm": 0, "batch_size": True, "update_every": 0, "gradient_steps": 0},
    **{"learning_starts": -1, "target_update_interval": 0, "tau": 0, "buffer_size": 0, "storage": "float64"},
    **{"priority_exponent": 2, "importance_initial": -1, "importance_steps": 0, "exploration_initial": 1.1},
    **{"exploration_final": float("nan"), "exploration_steps": 0},
}


def test_every_setting_out_of_its_range_is_refused_by_name():
    """The message has the field, what is accepted, and the value; the docs have the same of every field."""
    described = describe_settings(DQNConfig)
    assert WRONG.keys() == DQNConfig().__dict__.keys() == described.keys()
    for name, value in WRONG.items():
        accepted, _ = described[name]
        with pytest.raises(ValueError, match=re.escape(f"{name} must be {accepted}, not {value!r}")):
            DQNConfig(**{name: value})
    with pytest.raises(ValueError, match="clip_td_error"):
        DQNConfig(quantiles=2, clip_td_error=None)
    for name, value in (("hidden", 64), ("hidden", [True]), ("features", ["flat"]), ("gamma", "high")):
        with pytest.raises(ValueError, match=name):
            DQNConfig(**{name: value})


@pytest.mark.parametrize(
    ("settings", "interface", "message"),
    [
        ({"features": "score-line"}, FLAT, "score line"),
        ({"features": "scores"}, FLAT, "score line"),
        ({"features": "filters"}, FLAT, "at least 6"),
        ({"storage": "uint8"}, FLAT, "uint8"),
        ({}, replace(FLAT, dtype="uint8"), "uint8"),
    ],
)
def test_settings_that_do_not_go_with_the_environment_are_refused(settings, interface, message):
    with pytest.raises(ValueError, match=message):
        DQN(DQNConfig(**settings), interface)
