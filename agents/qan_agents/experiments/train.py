"""Train an agent, a round of episodes at a time, in a run folder that a kill leaves whole."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from qan_agents.env_ids import task_of
from qan_agents.experiments.agent import Agent, AgentSpec, Arrays, Progress, agent_class
from qan_agents.experiments.manifest import Round
from qan_agents.experiments.run_config import RunConfig
from qan_agents.experiments.run_folder import EPISODES, STEPS, DamagedFile, Row, Run, new_folder
from qan_agents.policies.rollout import Episode
from qan_agents.seeds import training_seed
from qan_gym.utils.files import load_arrays, require_writable, save_arrays

Log = Callable[[dict[str, float], int], None]  # values by name, of a step
Curves = tuple[SummaryWriter, Log]  # TensorBoard, and trackers

EPISODE_COLUMNS = ("validation_loss", "validation_accuracy", "test_loss", "test_accuracy", "learning_rate")


def make_agent(config: RunConfig) -> Agent:
    """A fresh agent of a run, with its environments.

    Raises:
        ValueError: agent, preset, or a setting is wrong; the message says which.
    """
    return agent_class(config.agent)(_spec(config, config.num_envs, learns=True))


def _spec(config: RunConfig, num_envs: int, learns: bool) -> AgentSpec:
    task_of(config.env, {})  # refuses the environments of others
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
    config, file = run.config(), run.model_file
    agent = agent_class(config.agent)(_spec(config, num_envs=1, learns=False))
    agent.load(file)
    return agent


def start_run(folder: Path, config: RunConfig, *, numbered: bool = False) -> Run:
    """Create the folder of a new run; nothing is written before everything about it has been checked.

    Args:
        folder: of the run.
        config: its settings.
        numbered: where the folder is taken, make the first of `NAME-2`, `NAME-3`, ... that is not.

    Raises:
        ValueError: a setting is wrong, or the folder is taken; the message says which.
    """
    run = Run(folder)
    require_writable(run.folder)
    if not numbered:
        run.require_free()
    agent_class(config.agent).check(config.preset, config.agent_kwargs)
    agent = make_agent(config)
    facts = _facts(agent)
    agent.close()
    if numbered:
        run = Run(new_folder(run.folder))
    run.create(config, facts)
    return run


def _facts(agent: Agent) -> dict[str, Any]:
    """The record of an agent and its environment, JSON-able, see `Settings`."""
    return {
        "task": asdict(agent.facts.task),
        "dataset_fingerprint": agent.facts.fingerprint,
        "episode_length": agent.facts.episode_length,
        "action_names": list(agent.facts.action_names),
        "hyperparameters": agent.settings,
    }


def episode_seed(config: RunConfig, episode: int) -> int:
    """The seed of a training episode, in [2**31, 2**32); never one of an evaluation."""
    return training_seed(config.seed, episode)


def train(
    run: Run,
    show: Callable[[Progress], None],
    finished: Callable[[int, Episode], None],
    *,
    drop_damaged: bool = False,
    log: Log = lambda values, step: None,
) -> Agent:
    """Train the agent of a run from its last finished round to the last episode.

    Args:
        run: created by `start_run`, begun or not.
        show: called now and then.
        finished: called after every episode, with its number, once it is on disk.
        drop_damaged: where a file of the run is damaged, go on from the last round after which everything is whole.
        log: called for every episode with what TensorBoard shows, see `qan_agents.experiments.trackers`.

    Returns:
        The trained agent; its environments are closed.

    Raises:
        ValueError: another process trains the run, or a file of it is damaged; the message says what can be done.
    """
    config = run.config()
    with run.locked():
        done = run.restore(drop_damaged)
        agent = make_agent(config)
        _restore(run, agent, config, done)
        if done.episodes < config.episodes:
            # What a kill left of later steps is not shown.
            with SummaryWriter(str(run.folder / "tensorboard"), purge_step=done.steps + 1) as writer:
                for first in range(done.episodes, config.episodes, config.num_envs):
                    _train_round(run, agent, config, (writer, log), first, show, finished)
        agent.close()
    return agent


def _train_round(
    run: Run,
    agent: Agent,
    config: RunConfig,
    curves: Curves,
    first: int,
    show: Callable[[Progress], None],
    finished: Callable[[int, Episode], None],
) -> None:
    """Play the round that begins with the episode `first`, and write it down."""
    started = time.perf_counter()
    numbers = range(first, first + config.num_envs)
    exploration = None if config.trains(first) else config.test_exploration
    episodes = agent.play_round([episode_seed(config, number) for number in numbers], exploration, show)
    _save(run, agent, config, curves, first, episodes, time.perf_counter() - started)
    for number, episode in zip(numbers, episodes, strict=True):
        finished(number, episode)


def _restore(run: Run, agent: Agent, config: RunConfig, done: Round) -> None:
    """Bring a fresh agent and its environment to where they were after a round.

    Raises:
        ValueError: the data or a default have changed since the run began, or a file is damaged.
    """
    settings, now = run.settings().model_dump(), json.loads(json.dumps(_facts(agent)))
    differ = [name for name, value in now.items() if value != settings[name]]
    if differ:
        raise ValueError(
            f"{run.folder} cannot go on as it began: {', '.join(differ)} of its environment and agent are not those in "
            "config.json any more; bring back the data and the version of qan-gym that it began with"
        )
    if done.episodes > 0:
        agent.load(run.folder / run.model_name(done.episodes))
        carried, _ = load_arrays(run.folder / run.carried_name(done.episodes))
        agent.training.run.restore_carried({name: torch.from_numpy(array) for name, array in carried.items()})
        if agent.learns_from_replay:
            agent.refill_replay(_learned_rounds(run, config, done.episodes))


def _learned_rounds(run: Run, config: RunConfig, done: int) -> Iterator[list[Arrays]]:
    for first in filter(config.trains, range(0, done, config.num_envs)):
        yield [_episode_arrays(run, first + row) for row in range(config.num_envs)]


def _episode_arrays(run: Run, episode: int) -> Arrays:
    """The transitions of an episode.

    Raises:
        ValueError: the file is damaged, or is of another episode or of something else.
    """
    path = run.folder / run.replay_name(episode)
    arrays, about = load_arrays(path)
    if about.get("episode") != episode or not arrays.keys() >= {"frames", "actions", "rewards", "terminated"}:
        raise DamagedFile(f"{path}: not the transitions of episode {episode}")
    return arrays


# --- the record of a round ------------------------------------------------------------------------------------------


def _save(
    run: Run,
    agent: Agent,
    config: RunConfig,
    curves: Curves,
    first: int,
    episodes: Sequence[Episode],
    seconds: float,
) -> None:
    """Write a round to the run folder, the manifest last: from then on its episodes count.

    Args:
        run: to write to.
        agent: after the round.
        config: of the run.
        curves: where they go.
        first: the number of the first episode of the round.
        episodes: of the round.
        seconds: that the round took.
    """
    learned, rows, names = config.trains(first), [], [STEPS, EPISODES]
    writer, log = curves
    for number, episode in enumerate(episodes, start=first):
        own = {**agent.metrics(), **agent.judge_episode(episode)}
        row = {**_row(number, episode), "learned": int(learned), **own, "seconds": round(seconds, 3)}
        rows.append(row | _action_counts(agent, episode))
        if learned and agent.learns_from_replay:
            names.append(run.replay_name(number))
            save_arrays(run.folder / names[-1], episode.arrays(), {"episode": number})
        step, kind = agent.steps - len(episodes) + 1 + number - first, "episode" if learned else "played"
        scalars = {f"{kind}/{name}": row[name] for name in ("return", *EPISODE_COLUMNS, *own)}
        for name, value in scalars.items():
            writer.add_scalar(name, value, step)
        log(scalars, step)
        if agent.facts.action_names:
            writer.add_histogram(f"{kind}/actions", torch.tensor(_discrete_actions(episode)), step)
    writer.flush()
    for row, episode in zip(rows, episodes, strict=True):
        run.append(STEPS, [{"episode": row["episode"], **step} for step in episode.steps])
    run.append(EPISODES, rows)
    done = first + len(episodes)
    carried, model = run.carried_name(done), run.model_name(done)
    arrays = {name: value.cpu().numpy() for name, value in agent.training.run.carried().items()}
    save_arrays(run.folder / carried, arrays, {"episodes": done})
    agent.save(run.folder / model)
    run.finish_round(done, agent.steps, [*names, carried, model])


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
