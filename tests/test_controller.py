"""A controller's file, its arithmetic against PyTorch's, and its trainings against the environment's."""

import json
import math
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from qan_agents.controllers.controller import FAMILY, LARGEST_FILE, Controller, ControllerSettings
from qan_agents.controllers.learners import FACTORS
from qan_agents.controllers.meta_config import MetaConfig
from qan_agents.controllers.meta_training import MetaTraining
from qan_agents.controllers.trainings import Plan, play_controller, play_schedules
from qan_gym.families.learning_rate import draw_task
from qan_gym.schedules import SCHEDULES

SMALL = {"networks": ["mlp"], "optimizers": ["sgd"]}


def trained(agent: str = "ppo", **agent_kwargs) -> MetaTraining:
    """After one round, in which the weights have left their beginning."""
    config = MetaConfig(agent=agent, rounds=1, rows=4, env_kwargs=SMALL, agent_kwargs=agent_kwargs)
    training = MetaTraining(config)
    training.round()
    if agent == "ppo":
        with torch.no_grad():  # the head begins near 0
            training.learner.agent.network.policy.head.weight.mul_(20)
    return training


def short_tasks(count: int, optimizer: str = "sgd") -> list:
    return [replace(draw_task("train", n, ("mlp",), (optimizer,)), batches_per_action=2 + n % 3) for n in range(count)]


@pytest.mark.parametrize(
    "agent_kwargs",
    [{}, {"hidden": [5], "activation": "relu"}, {"recurrent": 6, "minibatches": 2}, {"activation": "silu"}],
    ids=str,
)
def test_it_acts_like_the_agent_that_it_was_made_of(agent_kwargs):
    """Over the steps of an episode, with the memory where there is one."""
    training = trained(**agent_kwargs)
    agent, controller = training.learner.agent, training.controller()
    assert controller.units == agent.config.recurrent
    act, memory, rng, played = controller.player(7), None, np.random.default_rng(0), set()
    for _ in range(4):
        observations = rng.normal(0, 3, (7, len(controller.settings.features))).astype(np.float32)
        expected, memory = agent.choose(torch.from_numpy(observations), memory)
        actions = act(observations)
        assert actions.dtype == np.float32
        assert actions.shape == (7, 1)
        np.testing.assert_allclose(actions, expected.numpy(), atol=1e-5)
        played.update(actions[:, 0].tolist())
    assert len(played) > 2


def test_it_acts_like_the_greedy_dqn_that_it_was_made_of():
    """Its actions are the logarithms of the factors, over that of the largest."""
    training = trained("dqn-native")
    agent, controller = training.learner.agent, training.controller()
    choices = np.log(FACTORS) / np.log(12)
    assert controller.settings.factor == pytest.approx(12)
    observations = np.random.default_rng(0).normal(0, 1, (50, len(controller.settings.features))).astype(np.float32)
    expected = agent.values(torch.from_numpy(observations)[:, None]).argmax(dim=1)
    actions, _ = controller.act(observations, controller.memory(50))
    np.testing.assert_allclose(actions[:, 0], choices[expected.numpy()], rtol=1e-6)
    assert len(set(actions[:, 0].tolist())) > 1


def test_choices_are_taken_where_the_output_is_largest():
    """Each output stands for an action."""
    settings = ControllerSettings(("momentum",), ("sgd",), 12.0, "linear", choices=(-0.5, 0.0, 0.25))
    weights = {"mean": [0.0], "deviation": [1.0], "weight0": [[-1.0], [0.0], [1.0]], "bias0": [0.0, 0.1, 0.0]}
    controller = Controller(settings, weights, {})
    actions, _ = controller.act(np.array([[-2], [0], [2]], np.float32), controller.memory(3))
    assert actions[:, 0].tolist() == [-0.5, 0.0, 0.25]


def test_a_file_gives_the_same_controller(tmp_path):
    """It acts to the bit as before, and has its settings and its provenance."""
    controller = trained(recurrent=6, minibatches=2).controller()
    controller.save(tmp_path / "one")
    loaded = Controller.load(tmp_path / "one")
    loaded.save(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert (tmp_path / "one").stat().st_size <= LARGEST_FILE
    assert loaded.settings == controller.settings
    assert loaded.provenance == json.loads(json.dumps(controller.provenance))
    tasks = short_tasks(3)
    one, two = (play_controller(each, tasks, [5, 6, 7]) for each in (Controller.load(tmp_path / "two"), loaded))
    assert one.validation_loss.tolist() == two.validation_loss.tolist()


def test_a_damaged_file_is_refused(tmp_path):
    """Whichever byte was changed, and a file of something else."""
    path = tmp_path / "controller.safetensors"
    training = trained()
    training.controller().save(path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"controller\.safetensors"):
            Controller.load(path)
    training.learner.agent.save(path)
    with pytest.raises(ValueError, match="not a controller"):
        Controller.load(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Controller.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weight0": np.zeros((3, 2))}, "do not go together"),
        ({"bias1": np.array([np.nan])}, "finite"),
        ({"mean": None}, "do not go together"),
        ({"weight1": np.zeros((2, 3)), "bias1": np.zeros(2)}, "one action"),
    ],
)
def test_weights_that_cannot_be_are_refused(changed, message):
    """Shapes that do not go together, what is missing, and what is no number."""
    weights = {"mean": np.zeros(1), "deviation": np.ones(1), "weight0": np.ones((3, 1)), "bias0": np.zeros(3)}
    weights |= {"weight1": np.ones((1, 3)), "bias1": np.zeros(1)}
    settings = ControllerSettings(("momentum",), ("sgd",), 12.0, "linear")
    Controller(settings, weights, {})
    weights = {name: value for name, value in (weights | changed).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        Controller(settings, weights, {})


def test_a_controller_that_is_too_large_is_not_written(tmp_path):
    """And leaves no file."""
    controller = trained(hidden=[256, 256]).controller()
    with pytest.raises(ValueError, match="at most 100,000 bytes"):
        controller.save(tmp_path / "large")
    assert not list(tmp_path.iterdir())


# --- trainings ------------------------------------------------------------------------------------------------------


def environment(task, seed: int, **settings) -> tuple[gym.Env, np.ndarray, int]:
    """At the start of an episode; its first observation, and the seed that the episode has drawn."""
    env = gym.make(FAMILY, task=task, **settings)
    observation, _ = env.reset(seed=seed)
    return env, observation, int(env.unwrapped.training.run.seed[0])


def test_trainings_are_those_of_the_environment():
    """Each as it is in `gym.make` with the same task and seed, whichever tasks are played beside it."""
    controller = trained().controller()
    settings = controller.settings
    arguments = {"observation": list(settings.features), "learning_rate_factor": settings.factor}
    tasks = short_tasks(5)
    envs = [environment(task, seed, schedule=settings.schedule, **arguments) for seed, task in enumerate(tasks)]
    outcomes = play_controller(controller, tasks, [seed for *_, seed in envs], tests=True)
    most = [4 * math.log(len(task.classes)) for task in tasks]  # no loss counts as more, and one that diverged as that
    for number, (env, observation, _) in enumerate(envs):
        act, rates, losses, terminated, truncated = controller.player(1), [], [], False, False
        while not (terminated or truncated):
            observation, _, terminated, truncated, info = env.step(act(observation[None])[0])
            rates.append(float(env.unwrapped.training.run.chosen_learning_rate[0]))
            losses.append(min(info["smoothed_loss"] / tasks[number].loss_scale, most[number]))
        assert outcomes.diverged[number] == terminated
        if terminated:
            assert outcomes.validation_loss[number] == outcomes.test_loss[number] == most[number]
        else:
            assert outcomes.validation_loss[number] == min(info["validation_loss"], most[number])
            assert outcomes.test_loss[number] == min(info["test_loss"], most[number])
            assert outcomes.test_accuracy[number] == info["test_accuracy"]
        done = len(rates) - terminated
        assert outcomes.learning_rate[number, :done].tolist() == rates[:done]
        np.testing.assert_allclose(outcomes.training_loss[number, :done], losses[:done], rtol=1e-6)
        assert (outcomes.training_loss[number, done:] == most[number]).all()


def test_schedules_are_those_of_the_environment():
    """A task under a schedule as with learning rates that are set mini-batch by mini-batch."""
    tasks, rates = short_tasks(4, "adamw"), np.array([0.001, 0.01, 0.003, 0.1])
    settings = {"start": np.array([0.3, 0.2, 0.5, 0.4]), "rise": 25.0, "fall": 1e4}
    envs = [environment(task, seed) for seed, task in enumerate(tasks)]
    outcomes = play_schedules(tasks, [seed for *_, seed in envs], Plan("one-cycle", rates, settings), tests=True)
    for number, (task, (env, *_)) in enumerate(zip(tasks, envs, strict=True)):
        own = {**settings, "start": settings["start"][number]}
        for shares in np.arange(task.budget).reshape(-1, task.batches_per_action) / task.budget:
            wanted = rates[number] * np.asarray(SCHEDULES["one-cycle"].shape(np, shares, **own))
            env.unwrapped.training._learning_rates = lambda ahead, wanted=wanted: wanted[:, None]
            *_, info = env.step(np.zeros(1, np.float32))
        np.testing.assert_allclose(outcomes.validation_loss[number], info["validation_loss"], rtol=1e-5)
        np.testing.assert_allclose(outcomes.test_loss[number], info["test_loss"], rtol=1e-5)


def test_divergence_counts_as_four_times_guessing():
    """And the curve of the training loss stays there; other losses are not larger."""
    tasks = [replace(task, loss_scale=3e4, momentum=0.95) for task in short_tasks(12)]
    outcomes = play_schedules(tasks, range(12), Plan("constant", np.full(12, 100.0), {}), tests=True)
    most, diverged = 4 * np.log([len(task.classes) for task in tasks]), outcomes.diverged
    assert diverged.any()
    for losses in (outcomes.validation_loss, outcomes.test_loss, outcomes.training_loss[:, -1]):
        assert losses[diverged].tolist() == most[diverged].tolist()
        assert (losses <= most).all()


def test_different_numbers_of_things_are_refused():
    """Tasks, seeds and rates."""
    tasks = short_tasks(2)
    with pytest.raises(ValueError, match="as many tasks as rates, not 2 and 1"):
        play_schedules(tasks, [1, 2], Plan("constant", np.ones(1), {}))
    with pytest.raises(ValueError, match="as many tasks as seeds, not 2 and 3"):
        play_schedules(tasks, [1, 2, 3], Plan("constant", np.ones(2), {}))
