"""Evaluation: the trained agent and fixed policies play the same episodes, whose seeds the agent has not seen."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import gymnasium as gym
from gymnasium.vector import AutoresetMode

from qan_agents.experiments.played_task import baseline_of, rivals_of
from qan_agents.experiments.run_folder import EVALUATION_EPISODES, EVALUATION_STEPS, Row, Run
from qan_agents.experiments.train import load_agent
from qan_agents.policies.fixed import Policy, fixed_env_kwargs, make_policy
from qan_agents.policies.rollout import Episode, play_rows
from qan_gym.config import TaskConfig
from qan_gym.vector_env import QanVectorEnv

SCORES = ("test_loss", "test_accuracy", "validation_loss", "validation_accuracy")
ROWS = 16  # episodes in lock-step, at most


@dataclass(frozen=True)
class PolicyScores:
    """The scores of one policy on all seeds.

    Attributes:
        policy: its name.
        test_loss: nats, one per seed.
        test_accuracy: in [0, 1], one per seed.
    """

    policy: str
    test_loss: list[float]
    test_accuracy: list[float]


def evaluate(run: Run, show: Callable[[str, float], None]) -> list[PolicyScores]:
    """Play the agent of a run without exploration and the fixed policies, on the run's evaluation seeds.

    Both tables of the evaluation are written. Episodes are played in lock-step, but where one leaves something to the
    next: then one after the other. An evaluation that was killed goes on with the policy that was playing.

    Args:
        run: with a saved agent.
        show: called now and then, with the name of the policy that plays, and the share of the evaluation that is done.

    Returns:
        The scores of the agent, then those of the fixed policies, see `rivals_of`.

    Raises:
        ValueError: the run has no agent yet, or a file of it is damaged.
    """
    config = run.config()
    with run.locked():
        agent = load_agent(run)
        task = agent.facts.task
        rivals = rivals_of(task, config.baselines)
        players = {config.agent: Player(agent.policy, config.env_kwargs, agent.history)}
        for name in rivals:
            players[name] = rival_player(name, config.env_kwargs, task)
        rows = 1 if agent.training.run.carried() else ROWS
        episodes: dict[tuple[str, int], Episode] = {}
        for number, (name, player) in enumerate(players.items()):
            played = _kept(run, number, name)
            if played is None:
                shown = _part(partial(show, name), number, len(players))
                shown(0.0)
                played = play_seeds(config.env, player, config.evaluation_seeds, rows, shown)
                run.keep_unseen(number, {"policy": name, "episodes": [_record(one) for one in played]})
            episodes |= {(name, seed): one for seed, one in zip(config.evaluation_seeds, played, strict=True)}
        agent.close()
        run.finish_evaluation(_tables(episodes, baseline_of(task, config.baselines)))
    return scores_by_policy(run)


def _record(episode: Episode) -> dict[str, Any]:
    """What the tables need of an episode, for JSON."""
    return {"steps": episode.steps, "final": {name: episode.final[name] for name in (*SCORES, "diverged")}}


def _kept(run: Run, place: int, policy: str) -> list[Episode] | None:
    """What the policy in this place played before the evaluation was killed; None: nothing that counts."""
    kept = run.unseen(place)
    if kept is None or kept["policy"] != policy:
        return None
    return [Episode(**one) for one in kept["episodes"]]


@dataclass(frozen=True)
class Player:
    """What plays.

    Attributes:
        make: the policy of an episode.
        env_kwargs: of its environment.
        history: see `play_rows`.
    """

    make: Callable[[], Policy]
    env_kwargs: dict[str, Any]
    history: int = 1


def rival_player(name: str, env_kwargs: dict[str, Any], task: TaskConfig) -> Player:
    """A fixed policy on a task; env_kwargs: of the environment that the task is of."""
    return Player(partial(make_policy, name), {**env_kwargs, **fixed_env_kwargs(name, task)})


def play_seeds(
    env_id: str, player: Player, seeds: Sequence[int], rows: int, show: Callable[[float], None]
) -> list[Episode]:
    """Play an episode for every seed.

    Args:
        env_id: of the environment.
        player: which plays.
        seeds: of the episodes.
        rows: in lock-step, at most.
        show: called now and then, with the share that is done.
    """
    episodes: list[Episode] = []
    env: QanVectorEnv | None = None
    for wave, first in enumerate(range(0, len(seeds), rows)):
        some = seeds[first : first + rows]
        if env is None or env.num_envs != len(some):
            if env is not None:
                env.close()
            mode = AutoresetMode.DISABLED
            made = gym.make_vec(env_id, num_envs=len(some), autoreset_mode=mode, **player.env_kwargs)
            env = cast(QanVectorEnv, made.unwrapped)
        policies = [player.make() for _ in some]
        episodes += play_rows(env, policies, some, player.history, _part(show, wave, -(-len(seeds) // rows)))
    if env is not None:
        env.close()
    return episodes


def _part(show: Callable[[float], None], number: int, count: int) -> Callable[[float], None]:
    """Shows the share of one of so many parts as that of the whole."""
    return lambda share: show((number + share) / count)


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
    columns = dict.fromkeys(name for step in steps for name in step)  # some policies may have other actions
    return {EVALUATION_STEPS: [dict.fromkeys(columns, "") | step for step in steps], EVALUATION_EPISODES: rows}


def scores_by_policy(run: Run) -> list[PolicyScores]:
    """The scores of the last evaluation, in the order of `evaluate`.

    Raises:
        ValueError: the run has not been evaluated, or the table is damaged.
    """
    return scores_of(run.table(EVALUATION_EPISODES))


def scores_of(table: Sequence[dict[str, str]]) -> list[PolicyScores]:
    """The scores in a table with a row per policy and seed, in the order of the policies."""
    scores = []
    for name in dict.fromkeys(row["policy"] for row in table):
        rows = [row for row in table if row["policy"] == name]
        loss, accuracy = ([float(row[score]) for row in rows] for score in ("test_loss", "test_accuracy"))
        scores.append(PolicyScores(name, loss, accuracy))
    return scores
