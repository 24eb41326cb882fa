"""Evaluation: the trained agent and fixed policies play the same episodes, whose seeds the agent has not seen."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import FrameStackObservation

from qan_agents.experiments.run_folder import EVALUATION_EPISODES, EVALUATION_STEPS, Row, Run
from qan_agents.experiments.train import load_agent
from qan_agents.policies.fixed import Policy, fixed_env_kwargs, make_policy
from qan_agents.policies.rollout import Episode, EpisodeRecorder, play_episode

SCORES = ("test_loss", "test_accuracy", "validation_loss", "validation_accuracy")


@dataclass(frozen=True)
class PolicyScores:
    """The scores of one policy on all seeds.

    Attributes:
        policy: its name.
        test_loss: nats, one per seed.
        test_accuracy: in [0, 1], one per seed.
        steps_to_baseline: one per seed: actions until the smoothed loss was as low as the baseline's at its end; None:
            never.
    """

    policy: str
    test_loss: list[float]
    test_accuracy: list[float]
    steps_to_baseline: list[int | None]


def evaluate(run: Run, before_episode: Callable[[str, int], None]) -> list[PolicyScores]:
    """Play the agent of a run greedily and the fixed policies, on the run's evaluation seeds; write both tables.

    Args:
        run: with a saved agent.
        before_episode: called before every episode, with the policy's name and the seed.

    Returns:
        The scores of the agent, then those of the fixed policies, the baseline's first.

    Raises:
        ValueError: the run has no agent yet, or a file of it is damaged.
    """
    config = run.config()
    with run.locked():
        agent = load_agent(run)
        baselines = config.baselines or agent.training.parts.game.baselines
        task = agent.facts.task
        players: dict[str, tuple[Policy, dict[str, Any]]] = {config.agent: (agent.policy(), {})}
        players |= {name: (make_policy(name), fixed_env_kwargs(name, task)) for name in baselines}
        episodes: dict[tuple[str, int], Episode] = {}
        for name, (policy, own) in players.items():
            # Each in an environment of its own: an episode may leave something to the next one.
            made = gym.make(config.env, **{**config.env_kwargs, **own})
            env = FrameStackObservation(EpisodeRecorder(made), agent.history)
            for seed in config.evaluation_seeds:
                before_episode(name, seed)
                episodes[name, seed] = play_episode(env, policy, seed)
            env.close()
        agent.close()
        run.finish_evaluation(_tables(episodes, baselines[0]))
    return scores_by_policy(run)


def _tables(episodes: dict[tuple[str, int], Episode], baseline: str) -> dict[str, list[Row]]:
    """Both tables by the names of their files: a row per action, and a row per episode."""
    steps: list[Row] = []
    rows: list[Row] = []
    for (name, seed), episode in episodes.items():
        steps += [{"policy": name, "seed": seed, **step} for step in episode.steps]
        target = episodes[baseline, seed].steps[-1]["smoothed_loss"]
        reached = [step["step"] + 1 for step in episode.steps if step["smoothed_loss"] <= target]
        rows.append(
            {
                "policy": name,
                "seed": seed,
                **{score: episode.final[score] for score in SCORES},
                "return": episode.total_reward,
                "steps": len(episode.steps),
                "diverged": int(episode.final["diverged"]),
                "steps_to_baseline": reached[0] if reached else "",
            }
        )
    return {EVALUATION_STEPS: steps, EVALUATION_EPISODES: rows}


def scores_by_policy(run: Run) -> list[PolicyScores]:
    """The scores of the last evaluation, in the order of `evaluate`.

    Raises:
        ValueError: the run has not been evaluated, or the table is damaged.
    """
    table = run.table(EVALUATION_EPISODES)
    scores = []
    for name in dict.fromkeys(row["policy"] for row in table):
        rows = [row for row in table if row["policy"] == name]
        reached = [int(row["steps_to_baseline"]) if row["steps_to_baseline"] else None for row in rows]
        loss, accuracy = ([float(row[score]) for row in rows] for score in ("test_loss", "test_accuracy"))
        scores.append(PolicyScores(name, loss, accuracy, reached))
    return scores


def table_of(scores: Sequence[PolicyScores]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A table of scores for people: the head, and a row per policy.

    Args:
        scores: as `evaluate` returns them.
    """
    baseline = scores[1].policy
    rows: list[tuple[str, ...]] = []
    for one in scores:
        reached = ", ".join("never" if steps is None else str(steps) for steps in one.steps_to_baseline)
        accuracy = mean_and_range([100 * value for value in one.test_accuracy], digits=1)
        rows.append((one.policy, mean_and_range(one.test_loss, digits=3), accuracy, reached))
    return ("policy", "test loss", "test accuracy (%)", f"actions to {baseline}'s loss"), rows


def mean_and_range(values: Sequence[float], digits: int) -> str:
    """`mean (lowest-highest)`: the values are of three seeds or so, too few for a confidence interval."""
    mean, low, high = (f"{value:.{digits}f}" for value in (np.mean(values), min(values), max(values)))
    return f"{mean} ({low}-{high})"
