"""Train an agent, a round of episodes at a time, in a run folder that a kill cannot spoil."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

import qan_gym  # noqa: F401 (registers the environments)
from qan_agents import dqn
from qan_agents.play import Episode, Recorder
from qan_agents.replay import add_round, episode_arrays
from qan_agents.runs import Run, RunConfig
from qan_agents.sb3 import RoundRecorder, StackHistory, vec_env
from qan_gym.files import load_arrays, save_arrays, write_aside

EPISODE_COLUMNS = ("validation_loss", "validation_accuracy", "test_loss", "test_accuracy", "learning_rate")
UNSEEN_BELOW = 2**31  # seeds below are never trained on: evaluation takes its own from there


@dataclass(frozen=True)
class Progress:
    """Where a training stands, for whoever shows it.

    Attributes:
        episode: the one being played, from 0; with several at once, about.
        step: actions done, of all episodes.
        epsilon: of the exploration now.
        validation_accuracy: last measured, mean over the environments.
    """

    episode: int
    step: int
    epsilon: float
    validation_accuracy: float


class _Report(BaseCallback):
    def __init__(self, show: Callable[[Progress], None]) -> None:
        super().__init__()
        self.show = show

    def _on_step(self) -> bool:
        accuracy = _accuracy(self.locals["infos"])
        self.show(Progress(self.model._episode_num, self.num_timesteps, self.model.exploration_rate, accuracy))
        return True


def _show_played(
    show: Callable[[Progress], None], episode: int, step: int, epsilon: float, infos: list[dict[str, Any]]
) -> None:
    show(Progress(episode, step, epsilon, _accuracy(infos)))


def _accuracy(infos: list[dict[str, Any]]) -> float:
    return float(np.mean([info["validation_accuracy"] for info in infos]))


def make_env(config: RunConfig) -> gym.Env:
    """The environment of a run, as its agent sees it, recorded."""
    return dqn.stack_history(Recorder(gym.make(config.env, **config.env_kwargs)), preset_of(config))


def make_vec_env(config: RunConfig) -> StackHistory:
    """The same, `num_envs` of them in lock-step, to be trained on."""
    recorder = RoundRecorder(vec_env(config.env, config.num_envs, **config.env_kwargs))
    return StackHistory(recorder, preset_of(config).history)


def preset_of(config: RunConfig) -> dqn.Preset:
    """The hyperparameters of a run.

    Raises:
        ValueError: agent or preset is unknown.
    """
    if config.agent != "dqn":
        raise ValueError(f"unknown agent {config.agent!r}; there is dqn")
    if config.preset not in dqn.PRESETS:
        raise ValueError(f"unknown preset {config.preset!r}; there are {', '.join(dqn.PRESETS)}")
    return dqn.PRESETS[config.preset]


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
    preset = preset_of(config)
    env = make_vec_env(config)
    game = env.unwrapped.env
    steps = config.training_episodes * game.decisions
    dqn.make_dqn(env, preset, steps, config.seed)
    facts = {
        "task": asdict(game.config),
        "dataset_fingerprint": game.training.fingerprint,
        "decisions_per_episode": game.decisions,
        "hyperparameters": {
            "history": preset.history,
            "update_every": preset.update_every,
            "features_extractor": preset.extractor.__name__,
            **{name: _plain(value) for name, value in preset.settings(steps).items()},
        },
    }
    run = Run(folder)
    run.create(config, facts)
    return run


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value.__name__ if isinstance(value, type) else value


def episode_seed(config: RunConfig, episode: int) -> int:
    """The seed of a training episode, in [2**31, 2**32); never one that is evaluated on."""
    return UNSEEN_BELOW + int(np.random.SeedSequence([config.seed, episode]).generate_state(1)[0]) % UNSEEN_BELOW


def train(run: Run, show: Callable[[Progress], None], finished: Callable[[int, Episode], None]) -> dqn.DQN:
    """Train the agent of a run from where it stands to its last episode.

    Args:
        run: created by `start_run`, begun or not.
        show: called after every action.
        finished: called after every episode, with its number, once it is on disk.

    Returns:
        The trained agent.
    """
    config = run.config()
    preset = preset_of(config)
    env = make_vec_env(config)
    steps = config.training_episodes * env.unwrapped.env.decisions
    model = dqn.make_dqn(env, preset, steps, config.seed)
    done = _restore(run, model, preset, config)
    if done == config.episodes:
        return model
    model.set_logger(configure(str(run.folder / "tensorboard"), ["tensorboard"]))
    callback = dqn.begin(model, steps, _Report(show))
    for first in range(done, config.episodes, config.num_envs):
        started = time.perf_counter()
        numbers = range(first, first + config.num_envs)
        seeds = [episode_seed(config, number) for number in numbers]
        if config.trains(first):
            dqn.train_round(model, preset, seeds, callback)
        else:
            played = partial(_show_played, show, first, model.num_timesteps, config.test_epsilon)
            dqn.play_round(model, config.test_epsilon, seeds, played)
        _save(run, model, first, env.episodes, time.perf_counter() - started)
        for number, episode in zip(numbers, env.episodes, strict=True):
            finished(number, episode)
    model.logger.close()
    env.close()
    return model


def _restore(run: Run, model: dqn.DQN, preset: dqn.Preset, config: RunConfig) -> int:
    """Bring a fresh agent to where the run stands; returns the number of finished episodes."""
    progress = run.progress()
    done = progress["_episode_num"]
    run.keep_only(done)
    if done > 0:
        dqn.load_weights(model, run.model_file)
        vars(model).update(progress)
        for first in filter(config.trains, range(0, done, config.num_envs)):
            arrays = [load_arrays(run.replay_file(first + row))[0] for row in range(config.num_envs)]
            add_round(model.replay_buffer, arrays, preset.history)
    return done


def _save(run: Run, model: dqn.DQN, first: int, episodes: Sequence[Episode], seconds: float) -> None:
    """Write down a round; `first` is the number of its first episode."""
    config = run.config()
    learned = config.trains(first)
    facts = {"learned": int(learned), "epsilon": model.exploration_rate if learned else config.test_epsilon}
    history = preset_of(config).history
    rows = []
    for number, episode in enumerate(episodes, start=first):
        value = dqn.mean_max_q(model, episode.frames, history)
        rows.append(_row(number, episode, {**facts, "mean_max_q": value, "seconds": round(seconds, 3)}))
    for row, episode in zip(rows, episodes, strict=True):
        number = row["episode"]
        if learned:
            save_arrays(run.replay_file(number), episode_arrays(episode), {"episode": number})
        for name in ("return", *EPISODE_COLUMNS, "epsilon", "mean_max_q"):
            model.logger.record(f"{'episode' if learned else 'played'}/{name}", row[name])
        model.logger.dump(step=model.num_timesteps - len(episodes) + 1 + number - first)
    for row, episode in zip(rows, episodes, strict=True):
        run.append("steps.csv.gz", [{"episode": row["episode"], **step} for step in episode.steps])
    run.append("episodes.csv", rows)
    model._episode_num = first + len(episodes)  # what rows played while they waited for the others does not count
    with write_aside(run.model_file) as aside:
        model.save(aside)  # the last: from here on the episodes count


def _row(number: int, episode: Episode, facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "episode": number,
        "steps": len(episode.steps),
        "return": episode.total_reward,
        **{name: episode.final[name] for name in EPISODE_COLUMNS},
        "diverged": int(episode.final["diverged"]),
        "is_success": int(episode.final["is_success"]),
        **facts,
    }
