"""Train an agent, a round of episodes at a time, in a run folder that a kill cannot spoil."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.logger import Logger, configure

from qan_agents.dqn.presets import make_dqn_config
from qan_agents.experiments.learner import Learner, Progress, episode_values
from qan_agents.experiments.run_folder import MODEL_FILES, Run, RunConfig
from qan_agents.policies.rollout import Episode
from qan_agents.seeds import training_seed
from qan_gym.utils.files import load_arrays, save_arrays

EPISODE_COLUMNS = ("validation_loss", "validation_accuracy", "test_loss", "test_accuracy", "learning_rate")


def make_learner(config: RunConfig) -> Learner:
    """A fresh agent of a run, with its environments.

    Raises:
        ValueError: agent, preset, or a setting is wrong; the message says which.
    """
    if config.agent not in MODEL_FILES:
        raise ValueError(f"unknown agent {config.agent!r}; there are {', '.join(MODEL_FILES)}")
    episodes = config.training_episodes

    def configure_agent(decisions: int) -> Any:
        return make_dqn_config(config.preset, episodes * decisions, config.agent_kwargs)

    arguments = (config.env, config.env_kwargs, config.num_envs, config.seed, configure_agent)
    if config.agent == "dqn":
        from qan_agents.sb3.dqn import SB3Learner

        return SB3Learner(*arguments, training_episodes=episodes)
    from qan_agents.dqn.learner import BundledLearner

    return BundledLearner(*arguments)


def load_agent(run: Run) -> Learner:
    """The trained agent of a run, to play with: with one environment, and no replay.

    Raises:
        ValueError: the run has no agent yet, or a file of it is damaged.
    """
    config = run.config()
    if not run.model_file.is_file():
        raise ValueError(f"{run.folder} has no finished episode yet: continue it with qan train --resume {run.folder}")
    learner = make_learner(replace(config, num_envs=1, agent_kwargs={**config.agent_kwargs, "buffer_size": 1}))
    learner.load(run.model_file)
    return learner


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
    make_dqn_config(config.preset, 1, config.agent_kwargs)  # before data are loaded and references trained
    learner = make_learner(config)
    facts = {
        "task": asdict(learner.facts.task),
        "dataset_fingerprint": learner.facts.fingerprint,
        "decisions_per_episode": learner.facts.episode_length,
        "hyperparameters": asdict(learner.config),
    }
    learner.close()
    run = Run(folder)
    run.create(config, facts)
    return run


def episode_seed(config: RunConfig, episode: int) -> int:
    """The seed of a training episode, in [2**31, 2**32); never one that is evaluated on."""
    return training_seed(config.seed, episode)


def train(run: Run, show: Callable[[Progress], None], finished: Callable[[int, Episode], None]) -> Learner:
    """Train the agent of a run from where it stands to its last episode.

    Args:
        run: created by `start_run`, begun or not.
        show: called now and then.
        finished: called after every episode, with its number, once it is on disk.

    Returns:
        The trained agent; its environments are closed.
    """
    config = run.config()
    learner = make_learner(config)
    done = _restore(run, learner, config)
    logger = configure(str(run.folder / "tensorboard"), ["tensorboard"]) if done < config.episodes else None
    for first in range(done, config.episodes, config.num_envs):
        started = time.perf_counter()
        numbers = range(first, first + config.num_envs)
        epsilon = None if config.trains(first) else config.test_epsilon
        episodes = learner.play_round([episode_seed(config, number) for number in numbers], epsilon, show)
        _save(run, learner, logger, first, episodes, time.perf_counter() - started)
        for number, episode in zip(numbers, episodes, strict=True):
            finished(number, episode)
    if logger is not None:
        logger.close()
    learner.close()
    return learner


def _restore(run: Run, learner: Learner, config: RunConfig) -> int:
    """Bring a fresh agent to where the run stands; returns the number of finished episodes."""
    done = run.progress()["episodes"]
    run.keep_only(done)
    if done > 0:
        learner.load(run.model_file)
        learner.put_back(_learned_rounds(run, config, done))
    return done


def _learned_rounds(run: Run, config: RunConfig, done: int) -> Iterator[list[dict[str, NDArray[Any]]]]:
    for first in filter(config.trains, range(0, done, config.num_envs)):
        yield [load_arrays(run.replay_file(first + row))[0] for row in range(config.num_envs)]


def _save(run: Run, learner: Learner, logger: Logger, first: int, episodes: Sequence[Episode], seconds: float) -> None:
    """Write down a round; `first` is the number of its first episode."""
    config = run.config()
    learned = config.trains(first)
    facts = {"learned": int(learned), "epsilon": learner.exploration if learned else config.test_epsilon}
    rows = []
    for number, episode in enumerate(episodes, start=first):
        arrays = episode.arrays()
        counts = np.bincount(arrays["actions"], minlength=learner.actions)
        judged = episode_values(learner, arrays)
        row = {**_row(number, episode), **facts, **judged, "seconds": round(seconds, 3)}
        rows.append(row | {f"action_{action}": int(count) for action, count in enumerate(counts)})
        if learned:
            save_arrays(run.replay_file(number), arrays, {"episode": number})
        kind = "episode" if learned else "played"
        for name in ("return", *EPISODE_COLUMNS, "epsilon", *judged):
            logger.record(f"{kind}/{name}", row[name])
        logger.record(f"{kind}/actions", torch.from_numpy(arrays["actions"]))  # a histogram
        logger.dump(step=learner.steps - len(episodes) + 1 + number - first)
    for row, episode in zip(rows, episodes, strict=True):
        run.append("steps.csv.gz", [{"episode": row["episode"], **step} for step in episode.steps])
    run.append("episodes.csv", rows)
    learner.save(run.model_file, first + len(episodes))  # the last: from here on the episodes count


def _row(number: int, episode: Episode) -> dict[str, Any]:
    return {
        "episode": number,
        "steps": len(episode.steps),
        "return": episode.total_reward,
        **{name: episode.final[name] for name in EPISODE_COLUMNS},
        "diverged": int(episode.final["diverged"]),
        "is_success": int(episode.final["is_success"]),
    }
