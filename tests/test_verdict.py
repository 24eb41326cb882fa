"""The verdict of an evaluation: paired leads with intervals, the table, and the sentence in each case."""

import math

import pytest

from qan_agents.experiments.defaults import complete_config, default_agent
from qan_agents.experiments.evaluation import PolicyScores
from qan_agents.experiments.played_task import base_schedule, baseline_of, rivals_of
from qan_agents.experiments.verdict import Lead, Verdict
from qan_gym.tasks import TASKS, make_task_config

LR, MINIBATCH = "QanLR-MNIST5k-v1", "QanMinibatch-MNIST5k-v1"
T_OF_3 = 4.302653  # Student's t with 2 degrees of freedom, at 97.5 %; of any book's table


def scores(policy: str, *losses: float) -> PolicyScores:
    return PolicyScores(policy, list(losses), [1 - loss for loss in losses])


# --- leads ----------------------------------------------------------------------------------------------------------


def test_a_lead_is_paired():
    """Of differences on the same seeds: 0.1, 0.2, 0.3, though the seeds themselves differ more."""
    lead = Lead.of(scores("a", 1.0, 5.0, 9.0), scores("b", 1.1, 5.2, 9.3))
    half = T_OF_3 * 0.1 / math.sqrt(3)
    assert (lead.mean, lead.low, lead.high) == pytest.approx((0.2, 0.2 - half, 0.2 + half), rel=1e-5)
    assert lead.sign == 0
    assert lead.against("b") == "level with b, as far as these seeds tell (lead 0.2000 (-0.0484 to 0.4484))"


def test_ahead_and_behind_are_said_with_positive_numbers():
    one, other = scores("a", 1.0, 5.0, 9.0), scores("b", 1.19, 5.2, 9.21)
    half = T_OF_3 * 0.01 / math.sqrt(3)
    numbers = f"0.2000 ({0.2 - half:.4f} to {0.2 + half:.4f})"
    assert Lead.of(one, other).against("b") == f"ahead of b by {numbers}"
    assert Lead.of(other, one).against("a") == f"behind a by {numbers}"


@pytest.mark.parametrize("losses", [(1.0,), (1.0, math.nan), (1.0, math.inf)])
def test_there_is_no_interval_of_one_seed_or_of_a_training_that_diverged(losses):
    lead = Lead.of(scores("a", *losses), scores("b", *([2.0] * len(losses))))
    assert math.isnan(lead.low)
    assert lead.sign == 0


# --- the table and the sentence -------------------------------------------------------------------------------------

CONSTANT, LINEAR, COSINE = (
    scores("constant", 0.30, 0.40, 0.50),
    scores("linear", 0.29, 0.41, 0.50),
    scores("cosine", 0.2901, 0.3901, 0.4901),
)


def sentence(agent: PolicyScores, base: PolicyScores | None = None) -> str:
    rivals = [*([base] if base else []), CONSTANT, LINEAR, COSINE]
    return Verdict([agent, *rivals], "constant", base.policy if base else None).sentence()


def test_the_sentence_names_the_baseline_and_the_best_other_rival():
    said = sentence(scores("dqn", 0.2000, 0.3001, 0.3999))
    assert said.startswith("On 3 unseen seeds dqn is ahead of constant by 0.1000 (")
    assert " and ahead of cosine by 0.0901 (" in said
    assert "linear" not in said
    assert "nobody acting" not in said
    assert said.endswith(" (test loss, with 95 % intervals over the seeds).")
    said = sentence(scores("dqn", 0.4000, 0.5001, 0.5999))
    assert "is behind constant by 0.1000 (" in said
    assert "and behind cosine by 0.1099 (" in said
    assert "level with constant" in sentence(scores("dqn", 0.2, 0.5, 0.5))


@pytest.mark.parametrize(
    ("base", "wanted"),
    [
        ((0.20, 0.30, 0.40), "it left its schedule as it is: one-cycle with nobody acting does exactly as well"),
        (
            (0.21, 0.29, 0.40),
            "does as well, as far as these seeds tell (the agent's lead is 0.0000 (",
        ),
        ((0.2100, 0.3101, 0.4099), "one-cycle with nobody acting, does worse by 0.0100 ("),
        ((0.1900, 0.2901, 0.3899), "one-cycle with nobody acting, does better by 0.0100 ("),
    ],
)
def test_the_sentence_says_what_the_schedule_alone_does(base, wanted):
    said = sentence(scores("dqn", 0.20, 0.30, 0.40), scores("one-cycle", *base))
    assert wanted in said
    assert "ahead of constant" in said


def test_the_sentence_says_what_a_mixture_alone_does():
    said = sentence(scores("dqn", 0.20, 0.30, 0.40), scores("natural", 0.2100, 0.3101, 0.4099))
    assert "its mixture alone, natural with nobody acting, does worse by 0.0100 (" in said


def test_the_sentence_where_nothing_can_be_told():
    one = Verdict([scores("dqn", 0.1), scores("constant", 0.2)], "constant", None)
    assert "one seed, which cannot tell" in one.sentence()
    assert "of dqn diverged" in sentence(scores("dqn", 0.2, math.nan, 0.3))
    only_base = Verdict([scores("dqn", 0.1, 0.2), scores("linear", 0.1, 0.3)], "linear", "linear")
    assert only_base.sentence().startswith("On 2 unseen seeds its schedule alone, linear with nobody acting, does")


def test_the_table():
    base = scores("one-cycle", 0.2, 0.4, 0.6)
    verdict = Verdict([scores("dqn", 0.2, 0.3, 0.6), base, CONSTANT], "constant", "one-cycle")
    assert verdict.title == "unseen seeds: 3; mean (lowest-highest)"
    assert verdict.table() == (
        ("", "test loss", "test accuracy (%)", "better than constant on"),
        [
            ("dqn", "0.3667 (0.2000-0.6000)", "63.3 (40.0-80.0)", "2 of 3 seeds"),
            ("one-cycle, nobody acting", "0.4000 (0.2000-0.6000)", "60.0 (40.0-80.0)", "1 of 3 seeds"),
            ("constant", "0.4000 (0.3000-0.5000)", "60.0 (50.0-70.0)", ""),
        ],
    )


# --- rivals, and what the user leaves open --------------------------------------------------------------------------


def test_the_rivals_of_a_game():
    """Its baselines, and first the schedule under the actions, where nobody acting leaves it as it is."""
    assert rivals_of(TASKS[LR], None) == ["constant", "linear", "cosine"]
    on_schedule = make_task_config(LR, {"schedule": "one-cycle"})
    assert rivals_of(on_schedule, None) == ["one-cycle", "constant", "linear", "cosine"]
    assert rivals_of(on_schedule, ["step"]) == ["one-cycle", "step"]
    assert rivals_of(make_task_config(LR, {"schedule": "cosine"}), None) == ["cosine", "constant", "linear"]
    absolute = make_task_config(LR, {"schedule": "linear", "continuous": True, "action_scale": "absolute"})
    assert base_schedule(absolute) is None
    assert rivals_of(TASKS[MINIBATCH], None) == ["uniform", "random"]
    assert baseline_of(on_schedule, None) == "constant"
    assert baseline_of(on_schedule, ["step", "constant"]) == "step"


def config(env: str = LR, env_kwargs: dict | None = None, **given: object):
    chosen = {"agent": None, "preset": None, "num_envs": None, "episodes": 20, "seed": 3, "agent_kwargs": {}}
    return complete_config(env, env_kwargs or {}, **{**chosen, **given})


def test_the_first_command():
    found = config()
    assert (found.agent, found.preset, found.num_envs, found.episodes, found.seed) == (
        "dqn-ensemble",
        "control",
        4,
        20,
        3,
    )
    assert found.env_kwargs == {
        "batches_per_action": 200,
        "validate_every": 200,
        "reward": "validation-loss",
        "schedule": "one-cycle",
        "continuous": False,
        "action_scale": "multiplicative",
    }
    assert found.evaluation_seeds == tuple(range(10))


def test_what_the_user_gives_takes_precedence():
    given = {"batches_per_action": 50, "schedule": "linear", "epochs": 2}
    kwargs = config(env_kwargs=given).env_kwargs
    assert kwargs.items() >= given.items()
    assert kwargs["validate_every"] == 50
    assert kwargs["reward"] == "validation-loss"
    assert config(env_kwargs={"reward": "accuracy"}).env_kwargs["reward"] == "accuracy"
    assert config(env_kwargs={"epochs": 1, "train_size": 400}).env_kwargs["batches_per_action"] == 4
    assert config(env_kwargs={"batches": 55}).env_kwargs["batches_per_action"] == 5
    assert config(preset="quick", num_envs=2).num_envs == 2
    assert config(preset="quick").preset == "quick"


@pytest.mark.parametrize(("episodes", "rows"), [(20, 4), (6, 3), (10, 2), (7, 1), (1, 1)])
def test_as_many_at_once_as_divide_the_episodes(episodes, rows):
    assert config(episodes=episodes).num_envs == rows


def test_other_agents_play_the_game_as_it_is():
    found = config(agent="dqn-native")
    assert (found.env_kwargs, found.preset, found.num_envs) == ({}, "quick", 1)


def test_the_default_agent():
    """By what is acted on; a family's episodes are too different for few long actions of one length."""
    assert default_agent(TASKS[LR], family=False) == "dqn-ensemble"
    assert default_agent(TASKS[MINIBATCH], family=False) == "dqn"
    assert default_agent(make_task_config(LR, {"continuous": True}), family=False) == "ppo"
    assert default_agent(make_task_config(LR, {"learning_rate_factors": [0.5, 2]}), family=False) == "dqn"
    assert config("QanLR-Family-v0").agent == "ppo"
    factors = {"continuous": False, "learning_rate_factors": [0.5, 1, 2]}
    assert config("QanLR-Family-v0", factors).agent == "dqn"
    assert config("QanLR-Family-v0", factors, agent="dqn-ensemble").env_kwargs == factors


def test_long_trainings_are_evaluated_on_fewer_seeds():
    assert config(env_kwargs={"epochs": 13}).evaluation_seeds == (0, 1, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"agent": "dqm"}, "dqm"),
        ({"preset": "fast"}, "fast"),
        ({"agent_kwargs": {"members": 1}}, "members"),
        ({"env_kwargs": {"epoch": 1}}, "epoch"),
        ({"num_envs": 3}, "divide"),
    ],
)
def test_wrong_settings_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        config(**given)
