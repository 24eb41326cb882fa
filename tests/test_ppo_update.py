"""The bundled PPO's rounds against their equations (`oracles.ppo`), for every switch and every kind of actions."""

import math
import re
from dataclasses import replace

import pytest
import torch
from oracles.ppo import OraclePPO, OracleStep

from qan_agents.dqn import Transitions
from qan_agents.ppo import PPO, PPOConfig, PPOInterface
from qan_agents.ppo.actions import ActionSpace
from qan_gym.utils.validation import describe_settings

ROWS, LENGTH = 4, 5
BASE = PPOConfig(
    hidden=(5, 4),
    normalise_observations=False,
    steps_per_round=LENGTH,
    minibatches=3,
    epochs=2,
    learning_rate=0.01,
    optimizer_epsilon=1e-4,  # a smaller one makes rounding errors into steps where a gradient is nearly 0
    entropy_coefficient=0.05,
)
SPACES = {
    "discrete": ActionSpace((), choices=(4,)),
    "multi-discrete": ActionSpace((3,), choices=(2, 3, 4)),
    "box": ActionSpace((2,), low=(-1.0, None), high=(3.0, 5.0)),
}
SWITCHES = {
    "base": {},
    "privileged": {"privileged": "task"},
    "recurrent": {"recurrent": 3},
    "recurrent and privileged": {"recurrent": 3, "privileged": "task", "minibatches": 2},
    "recurrent, all rows at once": {"recurrent": 3, "minibatches": 1},
    "recurrent without hidden layers": {"recurrent": 3, "hidden": ()},
    "linear": {"hidden": ()},
    "one hidden layer": {"hidden": (6,)},
    "relu": {"activation": "relu"},
    "silu": {"activation": "silu"},
    "elu": {"activation": "elu"},
    "gamma": {"gamma": 0.5},
    "lambda": {"gae_lambda": 0.3},
    "one step": {"gae_lambda": 0.0},
    "whole returns": {"gae_lambda": 1.0, "gamma": 1.0},
    "groups": {"group": 2},
    "groups, recurrent": {"group": 2, "recurrent": 3, "minibatches": 2},
    "one epoch": {"epochs": 1},
    "one minibatch": {"minibatches": 1},
    "advantages as they are": {"normalise_advantages": False},
    "clipped advantages": {"advantage_clip": 0.5},
    "tight clip": {"clip": 0.01},
    "wide clip": {"clip": 5.0},
    "value coefficient": {"value_coefficient": 2.0},
    "no entropy": {"entropy_coefficient": 0.0},
    "target kl": {"target_kl": 0.0205},
    "learning rate": {"learning_rate": 0.003},
    "annealed": {"anneal_steps": 100},
    "epsilon": {"optimizer_epsilon": 0.1},
    "no gradient limit": {"max_grad_norm": None},
    "tight gradient limit": {"max_grad_norm": 0.01},
}
OF_BOXES = {"narrow": {"initial_log_std": -1.0}, "fixed deviation": {"learn_std": False}}
CASES = [("discrete", name) for name in SWITCHES]
CASES += [(kind, name) for kind in ("multi-discrete", "box") for name in ("base", "recurrent and privileged")]
CASES += [("box", name) for name in OF_BOXES]


def interface_of(kind: str, config: PPOConfig) -> PPOInterface:
    inputs = ("depth", "width") if config.privileged else ()
    return PPOInterface((3,), (1, 3), 0, SPACES[kind], config.privileged, inputs)


def play(agent: PPO, steps: int, seed: int = 0) -> None:
    """Made steps, of which some end episodes, by termination and truncation, and some are not valid; no updates."""
    numbers = torch.Generator().manual_seed(seed)

    def chance(share: float) -> torch.Tensor:
        return torch.rand(ROWS, generator=numbers) < share

    def frames() -> torch.Tensor:
        return torch.randn(ROWS, 3, generator=numbers)

    def infos() -> dict:
        task = {name: torch.randn(ROWS, generator=numbers) for name in ("width", "depth")}
        return {"task": task, "final_info": {"task": {name: value + 1 for name, value in task.items()}}}

    agent.begin(frames(), infos())
    for _ in range(steps):
        agent.act()
        ended = chance(0.3)
        agent.remember(
            Transitions(
                frames=frames(),
                next_frames=frames(),
                rewards=torch.randn(ROWS, generator=numbers),
                terminated=ended & chance(0.5),
                ended=ended,
                valid=~chance(0.15),
                starts=ended,
                infos=infos(),
            )
        )
        agent.steps += ROWS


def moved(agent: PPO, by: float = 0.3) -> None:
    """Change the weights, so that the policy is no longer the one that played."""
    noise = torch.randn(agent.weights.shape, generator=torch.Generator().manual_seed(1))
    agent.weights.add_(by * noise)


def oracle_of(agent: PPO) -> OraclePPO:
    """The same weights, and the round so far."""
    params = {
        name: value.detach().double().clone()
        for name, value in agent.network.state_dict().items()
        if name.startswith(("policy", "critic", "distribution"))
    }
    steps = agent.rollout.steps
    rows = []
    for row in range(ROWS):
        rows.append(
            [
                OracleStep(
                    *(steps.observations[t, row].double(), steps.inputs[t, row].double(), bool(steps.starts[t, row])),
                    *(steps.actions[t, row].tolist(), float(steps.log_probs[t, row]), float(steps.rewards[t, row])),
                    *(steps.next_observations[t, row].double(), steps.next_inputs[t, row].double()),
                    *(bool(flag[t, row]) for flag in (steps.terminated, steps.ended, steps.valid)),
                )
                for t in range(agent.rollout.length)
            ]
        )
    memories = [tuple(memory[row].double() for memory in agent.rollout.memories) for row in range(ROWS)]
    return OraclePPO(agent.config, agent.interface.actions, params, rows, memories)


def drawn_places(agent: PPO, length: int = LENGTH) -> list[list[tuple[int, int]]]:
    """(t, row) of the steps of every mini-batch of the next update."""
    generator = torch.Generator()
    generator.set_state(agent.generator.get_state())
    parts = []
    for _ in range(agent.config.epochs):
        count = ROWS if agent.config.recurrent else length * ROWS
        for part in torch.randperm(count, generator=generator).tensor_split(agent.config.minibatches):
            if agent.config.recurrent:
                parts.append([(t, row) for row in part.tolist() for t in range(length)])
            else:
                parts.append([divmod(place, ROWS) for place in part.tolist()])
    return parts


@pytest.mark.parametrize(("kind", "switch"), CASES)
def test_a_round_is_the_equations(kind, switch, monkeypatch):
    """The losses and gradients of every mini-batch, the weights after them; then the same of a second round."""
    config = replace(BASE, **SWITCHES.get(switch, {}), **OF_BOXES.get(switch, {}))
    agent = PPO(config, interface_of(kind, config), seed=3)
    moved(agent)
    results, gradients = [], []
    gradient_step = agent.gradient_step

    def recorded(*given):
        results.append(gradient_step(*given))
        gradients.append({name: value.grad.clone() for name, value in agent.network.named_parameters()})
        return results[-1]

    monkeypatch.setattr(agent, "gradient_step", recorded)
    oracle, stopped = None, False
    for number in range(2):
        play(agent, LENGTH, seed=number)
        moved(agent, 0.1)
        before, oracle = oracle, oracle_of(agent)
        if before is not None:
            oracle.first, oracle.second, oracle.updates = before.first, before.second, before.updates
        places, (absolute, returns) = drawn_places(agent), oracle.advantages()
        advantages = oracle.relative(absolute)
        fraction = 1 if config.anneal_steps is None else 1 - number * LENGTH * ROWS / config.anneal_steps
        agent.update()
        assert len(results) == len(places) == config.epochs * config.minibatches
        expected = []
        for some, result, gradient in zip(places, results, gradients, strict=True):
            numbers, applied = oracle.update(some, advantages, returns, config.learning_rate * fraction)
            expected.append(numbers)
            assert [float(value) for value in result] == pytest.approx(numbers, rel=1e-3, abs=1e-4)
            for name, value in applied.items():
                torch.testing.assert_close(gradient[name].double(), value, rtol=1e-3, atol=1e-4, msg=name)
        for name, value in agent.network.named_parameters():
            torch.testing.assert_close(value.detach().double(), oracle.params[name], rtol=1e-3, atol=1e-4, msg=name)
        stopped |= oracle.stopped
        means = [sum(column) / len(expected) for column in zip(*expected, strict=True)]
        valid = [(t, row) for row in range(ROWS) for t in range(LENGTH) if oracle.rows[row][t].valid]
        spread = [sum(values[p] ** 2 for p in valid) / len(valid) - (sum(values[p] for p in valid) / len(valid)) ** 2
                  for values in (absolute, returns)]  # fmt: skip
        assert list(agent.metrics().values()) == pytest.approx([*means, 1 - spread[0] / spread[1]], rel=1e-3, abs=1e-4)
        results.clear()
        gradients.clear()
    assert stopped == (switch == "target kl")
    assert 0 < oracle.updates < len(drawn_places(agent)) * 2 or not stopped
    assert agent.rounds == 2
    assert agent.rollout.length == 0


@pytest.mark.parametrize(("kind", "switch"), [case for case in CASES if case[1] not in ("base", "recurrent")])
def test_every_switch_matters(kind, switch):
    """The weights after two rounds differ from those without it, or are others."""
    weights = []
    for settings in ({}, {**SWITCHES.get(switch, {}), **OF_BOXES.get(switch, {})}):
        config = replace(BASE, **settings)
        agent = PPO(config, interface_of(kind, config), seed=3)
        for number in range(2):
            play(agent, LENGTH, seed=number)
            moved(agent, 0.1)
            agent.update()
        weights.append(agent.weights)
    assert not torch.equal(*weights)


def test_where_the_divergence_is_too_large_the_weights_stay():
    """The updates of a round stop for good, without the host; the next round begins anew."""
    agent = PPO(replace(BASE, target_kl=1e-9), interface_of("discrete", BASE), seed=3)
    play(agent, LENGTH)
    before, moments = agent.weights.clone(), [moment.clone() for moment in agent.moments]
    moved(agent, 0.1)
    before = agent.weights.clone()
    agent.update()
    assert torch.equal(agent.weights, before)
    assert all(torch.equal(*pair) for pair in zip(agent.moments, moments, strict=True))
    assert float(agent.optimizer_steps) == 0
    play(agent, LENGTH, seed=1)
    agent.update()
    assert float(agent.optimizer_steps) == 1  # of the first mini-batch, where the policy is still the one that played
    assert not torch.equal(agent.weights, before)


def test_a_round_without_valid_steps_teaches_nothing():
    agent = PPO(BASE, interface_of("discrete", BASE), seed=3)
    play(agent, LENGTH)
    agent.rollout.steps.valid.fill_(False)
    before = agent.weights.clone()
    agent.update()
    assert torch.equal(agent.weights, before)


def test_the_policy_that_played_is_the_one_that_learns():
    """Before any update the ratios are 1: the probabilities of acting and of learning are the same, memory included."""
    for kind, recurrent in (("discrete", 0), ("multi-discrete", 3), ("box", 3)):
        config = replace(BASE, recurrent=recurrent, epochs=1, minibatches=1)
        agent = PPO(config, interface_of(kind, config), seed=3)
        for number in range(2):
            play(agent, LENGTH, seed=number)
            agent.update()
            assert agent.metrics()["kl"] == pytest.approx(0, abs=1e-6)
            assert agent.metrics()["clip_fraction"] == 0


def test_the_standard_deviation_goes_linearly_to_its_last_value(tmp_path):
    """Over `anneal_steps`, and stays there; a file goes on with it."""
    settings = {"learn_std": False, "initial_log_std": -1.0, "final_log_std": -3.0, "anneal_steps": 4 * LENGTH * ROWS}
    config = replace(BASE, **settings)
    agent, deviations = PPO(config, interface_of("box", config)), []
    for number in range(6):
        play(agent, LENGTH, seed=number)
        agent.update()
        deviations += agent.network.distribution.log_std.tolist()
        agent.save(tmp_path / "agent")
        agent = PPO.load(tmp_path / "agent")
    width = len(deviations) // 6
    assert deviations[::width] == pytest.approx([-1.5, -2.0, -2.5, -3.0, -3.0, -3.0])
    assert deviations[::width] == deviations[width - 1 :: width]
    for wrong in ({"learn_std": True}, {"anneal_steps": None}):
        with pytest.raises(ValueError, match="final_log_std needs"):
            replace(config, **wrong)


WRONG = {
    **{"features": "filters", "hidden": (0,), "activation": "sine", "recurrent": -1, "by_class": 1, "privileged": 3},
    **{
        "initial_log_std": 3,
        "learn_std": 1,
        "final_log_std": 3,
        "normalise_observations": "yes",
        "observation_clip": 0,
    },
    **{"steps_per_round": 0, "gamma": 1.5, "gae_lambda": -0.1, "group": 0, "epochs": 0, "minibatches": 0.5},
    **{"normalise_advantages": None, "advantage_clip": 0, "clip": 0},
    **{"value_coefficient": -1, "entropy_coefficient": math.nan},
    **{"target_kl": 0, "learning_rate": math.inf, "anneal_steps": 0, "optimizer_epsilon": 0, "max_grad_norm": 0},
}


def test_every_setting_out_of_its_range_is_refused_by_name():
    """The message has the field, what is accepted, and the value; the docs have the same of every field."""
    described = describe_settings(PPOConfig)
    assert WRONG.keys() == PPOConfig().__dict__.keys() == described.keys()
    for name, value in WRONG.items():
        accepted, _ = described[name]
        with pytest.raises(ValueError, match=re.escape(f"{name} must be {accepted}, not {value!r}")):
            PPOConfig(**{name: value})


def test_what_does_not_go_together_is_refused():
    for features in ("score-line", "scores"):
        with pytest.raises(ValueError, match="score line"):
            PPO(PPOConfig(features=features), interface_of("discrete", BASE))
    with pytest.raises(ValueError, match="privileged='task'"):
        PPO(BASE, interface_of("discrete", replace(BASE, privileged="task")))
    agent = PPO(replace(BASE, recurrent=2), interface_of("discrete", BASE))
    with pytest.raises(ValueError, match="number of environments, 2, not 3"):
        agent.begin(torch.zeros(2, 3))
    agent = PPO(replace(BASE, steps_per_round=1), interface_of("discrete", BASE))
    with pytest.raises(ValueError, match="2 x 1, not 3"):
        agent.begin(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="group must divide the number of environments, 2; 3 does not"):
        PPO(replace(BASE, group=3), interface_of("discrete", BASE)).begin(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="advantage_clip needs normalise_advantages"):
        PPOConfig(advantage_clip=4.0, normalise_advantages=False)
    with pytest.raises(RuntimeError, match="begin"):
        _ = agent.rollout
    agent = PPO(replace(BASE, privileged="task"), interface_of("discrete", replace(BASE, privileged="task")))
    with pytest.raises(ValueError, match=r"infos\['task'\]"):
        agent.begin(torch.zeros(ROWS, 3))
    with pytest.raises(ValueError, match="depth, width"):
        agent.begin(torch.zeros(ROWS, 3), {"task": torch.zeros(ROWS, 3)})
