"""A controller of the shares of the classes: classes are alike to it, and it plays what the environment plays."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from qan_agents.class_columns import class_columns
from qan_agents.cli.app import app
from qan_agents.controllers.controller import FAMILY, Controller, ControllerSettings
from qan_agents.controllers.learned_lr import LearnedLR
from qan_agents.controllers.meta_config import MetaConfig
from qan_agents.controllers.meta_training import MetaRun, MetaTraining, evaluation_tasks
from qan_agents.controllers.shipped import FOLDER
from qan_agents.controllers.trainings import play_controller
from qan_agents.judging.class_rivals import METHODS
from qan_agents.judging.contenders import load_controllers
from qan_agents.judging.problems import Trainings, long_tail_problems, trainings_of
from qan_agents.judging.rivals import rivals
from qan_agents.policies.class_rules import RULES, rule_actions
from qan_agents.ppo.network import ClassTrunk, RunningNorm
from qan_gym.families.long_tail import DECISIONS, DIGITS, draw_task

ID = "QanMinibatch-LongTail-v0"
WIDTHS = (1, 4, 1, 4, 4)
ORDER = [2, 0, 3, 1]


@pytest.fixture(autouse=True)
def few_evaluations(monkeypatch):
    """Of two tasks each, for speed."""
    monkeypatch.setattr("qan_agents.controllers.meta_training.EVALUATION_TASKS", 2)


def config(**settings) -> MetaConfig:
    kinds = {"networks": ["mlp"]}
    return MetaConfig(**{"family": ID, "rounds": 1, "rows": 4, "group": 2, "env_kwargs": kinds, **settings})


@pytest.fixture(scope="module")
def training() -> MetaTraining:
    """After one round, with a policy that has left its beginning."""
    made = MetaTraining(config(rounds=100))
    made.round()
    with torch.no_grad():
        made.learner.agent.network.policy.head.weight.mul_(50)
    return made


def with_classes_moved(observations: np.ndarray, widths: tuple[int, ...], order: list[int]) -> np.ndarray:
    """The same trainings, whose classes have other numbers."""
    moved = observations.copy()
    start = 0
    for width in widths:
        if width > 1:
            moved[..., start : start + width] = observations[..., start : start + width][..., order]
        start += width
    return moved


def test_columns_of_classes() -> None:
    own, common = class_columns(WIDTHS)
    assert own.tolist() == [[1, 6, 10], [2, 7, 11], [3, 8, 12], [4, 9, 13]]
    assert common.tolist() == [0, 5]


def test_the_network_gives_each_class_what_it_gives_any_other() -> None:
    """Against a loop over classes; where classes move, so do the outputs, and the mean stays."""
    torch.manual_seed(0)
    trunk, pooled = (ClassTrunk(WIDTHS, (5,), "tanh", 1.0, pooled=flag) for flag in (False, True))
    seen = torch.randn(3, 2, 14)
    outputs, _ = trunk.sequence(seen, torch.zeros(2, 0), torch.zeros(3, 2, dtype=torch.bool))
    assert outputs.shape == (3, 2, 4)
    one = seen[1, 0]
    for label in range(4):
        own = one[[1 + label, 6 + label, 10 + label]]
        means = torch.stack([one[1:5].mean(), one[6:10].mean(), one[10:14].mean()])
        expected = trunk.head(trunk.layers(torch.cat([own, means, one[[0, 5]]])))
        torch.testing.assert_close(outputs[1, 0, label], expected[0])
    moved = torch.from_numpy(with_classes_moved(seen.numpy(), WIDTHS, ORDER))
    torch.testing.assert_close(trunk.step(moved, torch.zeros(2, 0))[0], outputs[..., ORDER])
    values, _ = pooled.step(seen, torch.zeros(2, 0))
    assert values.shape == (3, 2, 1)
    torch.testing.assert_close(pooled.step(moved, torch.zeros(2, 0))[0], values)


def test_a_feature_of_each_class_has_one_mean_and_one_variance() -> None:
    """Those of all that it was shown of all classes."""
    rng, norm, shown = np.random.default_rng(0), RunningNorm(14, 100.0, WIDTHS), []
    for rows in (1, 4, 3):
        values = rng.normal(size=(rows, 14)) * np.arange(1, 15) + np.arange(14)
        counted = rng.random(rows) < 0.8
        norm.observe(torch.from_numpy(values), torch.from_numpy(counted))
        shown.append(values[counted])
    everything = np.concatenate(shown)
    for columns in ([0], [1, 2, 3, 4], [5], [6, 7, 8, 9], [10, 11, 12, 13]):
        np.testing.assert_allclose(norm.mean[columns], everything[:, columns].mean(), rtol=1e-12)
        np.testing.assert_allclose((norm.square / norm.count)[columns], everything[:, columns].var(), rtol=1e-12)


def test_a_round_plays_whole_episodes(training: MetaTraining) -> None:
    assert training.done == 1
    assert training.rows[0]["trainings"] == 4
    assert training.learner.agent.config.steps_per_round == DECISIONS
    tasks = training.env.training.tasks
    assert tasks[0] == tasks[1] != tasks[2] == tasks[3]
    assert {task.split for task in (*tasks, *evaluation_tasks(config()))} == {"train"}


def test_it_acts_like_the_agent_that_it_was_made_of(training: MetaTraining) -> None:
    """Classes that change places change the actions' places, exactly."""
    controller, agent = training.controller(), training.learner.agent
    settings = controller.settings
    assert (settings.family, settings.factor, settings.size, settings.actions) == (ID, None, 55, DIGITS)
    observations = np.random.default_rng(0).normal(0, 2, (6, 55)).astype(np.float32)
    actions, memory = controller.act(observations, controller.memory(6))
    expected, _ = agent.choose(torch.from_numpy(observations))
    np.testing.assert_allclose(actions, expected.numpy(), atol=1e-5)
    assert actions.std(axis=1).min() > 0.01
    order = np.random.default_rng(1).permutation(DIGITS).tolist()
    moved, _ = controller.act(with_classes_moved(observations, settings.widths, order), memory)
    np.testing.assert_allclose(moved, actions[:, order], atol=1e-6)


def test_it_plays_the_episodes_of_the_environment(training: MetaTraining, tmp_path) -> None:
    """From its file; a task alone as beside others."""
    training.controller().save(tmp_path / "controller.safetensors")
    controller = Controller.load(tmp_path / "controller.safetensors")
    assert controller.settings == training.controller().settings
    tasks = [draw_task("train", number, ("mlp",), imbalance=20) for number in (3, 5)]
    kwargs = {**controller.env_kwargs, "observation": list(controller.settings.features)}
    envs = [gym.make(ID, task=task.to_json(), **kwargs) for task in tasks]
    first = [env.reset(seed=7)[0] for env in envs]
    seeds = [int(env.unwrapped.training.run.seed[0]) for env in envs]
    outcomes = play_controller(controller, tasks, seeds, tests=True)
    for place, (env, observation) in enumerate(zip(envs, first, strict=True)):
        act, ended = controller.player(1), False
        while not ended:
            observation, _, terminated, truncated, info = env.step(act(observation[None])[0])
            ended = terminated or truncated
        assert outcomes.test_loss[place] == pytest.approx(info["test_loss"], rel=1e-4)
        env.close()


def test_what_does_not_go_together_is_refused(training: MetaTraining) -> None:
    with pytest.raises(ValueError, match="agent must be ppo"):
        config(agent="dqn-native", group=1)
    with pytest.raises(ValueError, match="by_class is for environments"):
        MetaTraining(config(env_kwargs={"observation": ["budget_used"]}))
    with pytest.raises(ValueError, match="by_class needs recurrent=0"):
        config(agent_kwargs={"recurrent": 4})
    with pytest.raises(ValueError, match="widths must be"):
        ControllerSettings(("class_loss",), ("sgd",), None, "constant", widths=(10, 10))
    with pytest.raises(ValueError, match="did you mean"):
        ControllerSettings(("class_loss",), ("sgd",), None, "constant", family=ID[:-1] + "1")
    made, optimizer = training.controller(), torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    with pytest.raises(ValueError, match="does not set the learning rate"):
        LearnedLR(optimizer, total_steps=100, batch_size=8, dataset_size=9, num_classes=3, controller=made)


def test_the_commands(tmp_path) -> None:
    """It is made, plays episodes, and is judged by the family's own problems."""
    run = MetaRun(tmp_path / "run")
    size = ["--rounds", 1, "--rows", 2, "--group", 2, "--agent-set", "minibatches=1"]
    made = CliRunner().invoke(app, list(map(str, ["meta-train", "--family", ID, *size, "--out", run.folder])))
    assert made.exit_code == 0, made.output
    assert {"controller.safetensors", "curves.png"} <= {path.name for path in run.folder.iterdir()}
    command = ["judge", str(run.controller), "--out", str(tmp_path / "judgement")]
    refused = CliRunner().invoke(app, [*command, "--tier", "outer"])
    assert refused.exit_code == 2
    assert "--tier outer has problems for controllers for QanLR-Family-v0" in refused.output
    assert not (tmp_path / "judgement").exists()
    small = ["--tasks", "1", "--seeds", "1", "--rival", "single shuffled"]
    judged = CliRunner().invoke(app, [*command, *small, "--scoreboard", str(tmp_path / "board.json")])
    assert judged.exit_code == 0, judged.output
    assert "single shuffled" in (tmp_path / "judgement" / "report.md").read_text()
    assert "other batches" in (tmp_path / "judgement" / "report.md").read_text()


# --- judged ---------------------------------------------------------------------------------------------------------


def test_controllers_of_two_families_are_not_judged_together():
    paths = [FOLDER / f"{name}-0.safetensors" for name in ("long-tail", "sgd")]
    with pytest.raises(ValueError, match=r"one family are judged at a time, and 'long-tail-0' is for Qan.*'sgd-0' is"):
        load_controllers(paths, None)


def test_the_rivals_of_the_classes_are_those_of_their_family():
    assert {one.name for one in rivals(["single"], family=ID)} == {f"single {name}" for name in (*METHODS, "random")}
    (best,) = rivals(["best"], family=ID)
    assert best.optimizer == "sgd"
    with pytest.raises(ValueError, match="unknown rival 'tuned'"):
        rivals(["tuned"], family=ID)
    with pytest.raises(ValueError, match="unknown rival 'single shuffled'"):
        rivals(["single shuffled"], family=FAMILY)


def test_rivals_play_as_the_environment_does():
    """A training of each against the single environment of the same task and seed."""
    (task,) = {task for problem in long_tail_problems(1, ("mlp",)) for task in problem.tasks}
    for name, kwargs in (("shuffled", {}), ("class-weighted", {"class_weights": 1.0}), ("deferred", {})):
        (contender,) = rivals([f"single {name}"], family=ID)
        env = gym.make(ID, task=task, continuous=True, **kwargs)
        env.reset(seed=3, options=None if name == "deferred" else {"sampler": "shuffled"})
        training = env.unwrapped.training
        seed, ended = int(training.run.seed[0]), False
        while not ended:
            action = rule_actions(RULES[name], training)[0] if name == "deferred" else np.zeros(10, np.float32)
            ended, info = env.step(action)[3:]
        found = contender.play(Trainings((task,), (seed,))).test_loss
        assert found[0] == pytest.approx(float(info["test_loss"]), rel=1e-5), name


def test_random_shares_are_new_ones_at_every_action_and_follow_from_the_seed():
    tasks = [task for problem in long_tail_problems(2, ("mlp",)) for task in problem.tasks]
    (contender,) = rivals(["single random"], family=ID)
    env = gym.make(ID, task=tasks[1], continuous=True)
    env.reset(seed=4)
    seed, ended = int(env.unwrapped.training.run.seed[0]), False
    found = contender.play(Trainings((*tasks, tasks[0]), (3, seed, 5))).test_loss
    assert found[0] != found[2]
    alone = contender.play(Trainings((tasks[1],), (seed,))).test_loss
    assert alone[0] == found[1]  # whatever else is trained beside it
    draw = np.random.default_rng(seed)
    while not ended:
        ended, info = env.step(draw.uniform(-1, 1, 10).astype(np.float32))[3:]
    assert alone[0] == pytest.approx(float(info["test_loss"]), rel=1e-5)


def test_the_best_rule_of_a_task_is_one_of_the_rules():
    trainings = trainings_of(long_tail_problems(1, ("mlp",)), "sgd", 1)
    (best,) = rivals(["best"], family=ID)
    found = best.play(trainings).test_loss[0]
    assert found in [one.play(trainings, {}, tests=True).test_loss[0] for one in METHODS.values()]
