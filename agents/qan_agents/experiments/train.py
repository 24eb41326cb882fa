"""Train an agent, a round of episodes at a time, in a run folder that a kill leaves whole."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from qan_agents.experiments.agent import Agent, AgentSpec, Arrays, Progress, agent_class
from qan_agents.experiments.run_folder import Row, Run, RunConfig
from qan_agents.policies.rollout import Episode
from qan_agents.seeds import training_seed
from qan_gym.utils.files import load_arrays, save_arrays

EPISODE_COLUMNS = ("validation_loss", "validation_accuracy", "test_loss", "test_accuracy", "learning_rate")


def make_agent(config: RunConfig) -> Agent:
    """A fresh agent of a run, with its environments.

    Raises:
        ValueError: agent, preset, or a setting is wrong; the message says which.
    """
    return agent_class(config.agent)(_spec(config, config.num_envs, learns=True))


def _spec(config: RunConfig, num_envs: int, learns: bool) -> AgentSpec:
    return AgentSpec(
        config.env,
        config.env_kwargs,
        num_envs,
        config.seed,
        config.preset,
        config.agent_kwargs,
        config.training_episodes,
        learns,
    )


def load_agent(run: Run) -> Agent:
    """The trained agent of a run, to play with: with one environment, and without a replay.

    Raises:
        ValueError: the run has no agent yet, or a file of it is damaged.
    """
    config = run.config()
    if not run.model_file.is_file():
        raise ValueError(f"{run.folder} has no finished episode yet: continue it with qan train --resume {run.folder}")
    agent = agent_class(config.agent)(_spec(config, num_envs=1, learns=False))
    agent.load(run.model_file)
    return agent


def start_run(folder: Path, config: RunConfig) -> Run:
    """Create the folder of a new run; nothing is written before everything about it has been checked.

    Raises:
        ValueError: a setting is wrong, or the folder is taken; the message says which.
    """
    if config.episodes < 1:
        raise ValueError(f"episodes must be at least 1, not {config.episodes}")
    if config.num_envs < 1 or config.episodes % config.num_envs != 0:
        raise ValueError(
            f"num_envs must divide the number of episodes, {config.episodes}; {config.num_envs} does not: every "
            "environment plays as many"
        )
    if config.seed < 0:
        raise ValueError(f"seed must be at least 0, not {config.seed}")
    agent_class(config.agent).check(config.preset, config.agent_kwargs)
    agent = make_agent(config)
    facts = {
        "task": asdict(agent.facts.task),
        "dataset_fingerprint": agent.facts.fingerprint,
        "episode_length": agent.facts.episode_length,
        "action_names": agent.facts.action_names,
        "hyperparameters": agent.settings,
    }
    agent.close()
    run = Run(folder)
    run.create(config, facts)
    return run


def episode_seed(config: RunConfig, episode: int) -> int:
    """The seed of a training episode, in [2**31, 2**32); never one of an evaluation."""
    return training_seed(config.seed, episode)


def train(run: Run, show: Callable[[Progress], None], finished: Callable[[int, Episode], None]) -> Agent:
    """Train the agent of a run from its last finished round to the last episode.

    Args:
        run: created by `start_run`, begun or not.
        show: called now and then.
        finished: called after every episode, with its number, once it is on disk.

    Returns:
        The trained agent; its environments are closed.
    """
    config = run.config()
    agent = make_agent(config)
    done = _restore(run, agent, config)
    if done < config.episodes:
        with SummaryWriter(str(run.folder / "tensorboard")) as writer:
            for first in range(done, config.episodes, config.num_envs):
                started = time.perf_counter()
                numbers = range(first, first + config.num_envs)
                exploration = None if config.trains(first) else config.test_exploration
                episodes = agent.play_round([episode_seed(config, number) for number in numbers], exploration, show)
                _save(run, agent, config, writer, first, episodes, time.perf_counter() - started)
                for number, episode in zip(numbers, episodes, strict=True):
                    finished(number, episode)
    agent.close()
    return agent


def _restore(run: Run, agent: Agent, config: RunConfig) -> int:
    """Bring a fresh agent to the last saved state of the run; returns the number of finished episodes."""
    done = run.progress().episodes
    run.keep_only(done)
    if done > 0:
        agent.load(run.model_file)
        if agent.learns_from_replay:
            agent.refill_replay(_learned_rounds(run, config, done))
    return done


def _learned_rounds(run: Run, config: RunConfig, done: int) -> Iterator[list[Arrays]]:
    for first in filter(config.trains, range(0, done, config.num_envs)):
        yield [load_arrays(run.replay_file(first + row))[0] for row in range(config.num_envs)]


# --- the record of a round ------------------------------------------------------------------------------------------


def _save(
    run: Run,
    agent: Agent,
    config: RunConfig,
    writer: SummaryWriter,
    first: int,
    episodes: Sequence[Episode],
    seconds: float,
) -> None:
    """Write a round to the run folder, the agent last: from then on its episodes count.

    Args:
        run: to write to.
        agent: after the round.
        config: of the run.
        writer: of the curves for TensorBoard.
        first: the number of the first episode of the round.
        episodes: of the round.
        seconds: that the round took.
    """
    learned, rows = config.trains(first), []
    for number, episode in enumerate(episodes, start=first):
        own = {**agent.metrics(), **agent.judge_episode(episode)}
        row = {**_row(number, episode), "learned": int(learned), **own, "seconds": round(seconds, 3)}
        rows.append(row | _action_counts(agent, episode))
        if learned and agent.learns_from_replay:
            save_arrays(run.replay_file(number), episode.arrays(), {"episode": number})
        step, kind = agent.steps - len(episodes) + 1 + number - first, "episode" if learned else "played"
        for name in ("return", *EPISODE_COLUMNS, *own):
            writer.add_scalar(f"{kind}/{name}", row[name], step)
        if agent.facts.action_names:
            writer.add_histogram(f"{kind}/actions", torch.tensor(_discrete_actions(episode)), step)
    writer.flush()
    for row, episode in zip(rows, episodes, strict=True):
        run.append("steps.csv.gz", [{"episode": row["episode"], **step} for step in episode.steps])
    run.append("episodes.csv", rows)
    agent.save(run.model_file, first + len(episodes))


def _row(number: int, episode: Episode) -> Row:
    return {
        "episode": number,
        "steps": len(episode.steps),
        "return": episode.total_reward,
        **{name: episode.final[name] for name in EPISODE_COLUMNS},
        "diverged": int(episode.final["diverged"]),
        **({"is_success": int(episode.final["is_success"])} if "is_success" in episode.final else {}),
    }


def _action_counts(agent: Agent, episode: Episode) -> Row:
    """Counts of the actions of a Discrete space; nothing for other spaces."""
    names = agent.facts.action_names
    counts = np.bincount(_discrete_actions(episode), minlength=len(names)) if names else ()
    return {f"action_{action}": int(count) for action, count in enumerate(counts)}


def _discrete_actions(episode: Episode) -> list[int]:
    return [int(step["action"]) for step in episode.steps]
