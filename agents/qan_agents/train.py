"""Train an agent, an episode at a time, in a run folder that a kill cannot spoil."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

import qan_gym  # noqa: F401 (registers the environments)
from qan_agents import dqn
from qan_agents.play import Episode, Recorder
from qan_agents.replay import add_episode, episode_arrays
from qan_agents.runs import Run, RunConfig
from qan_gym.files import load_arrays, save_arrays, write_aside

EPISODE_COLUMNS = ("validation_loss", "validation_accuracy", "test_loss", "test_accuracy", "learning_rate")
UNSEEN_BELOW = 2**31  # seeds below are never trained on: evaluation takes its own from there


@dataclass(frozen=True)
class Progress:
    """Where a training stands, for whoever shows it.

    Attributes:
        episode: the one being played, from 0.
        step: actions done, of all episodes.
        epsilon: of the exploration now.
        validation_accuracy: last measured.
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
        accuracy = self.locals["infos"][0]["validation_accuracy"]
        self.show(Progress(self.model._episode_num, self.num_timesteps, self.model.exploration_rate, accuracy))
        return True


def make_env(config: RunConfig, keep_frames: bool = False) -> gym.Env:
    """The environment of a run, as its agent sees it, recorded."""
    env = Recorder(gym.make(config.env, **config.env_kwargs), keep_frames)
    return dqn.stack_history(env, preset_of(config))


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
    if config.seed < 0:
        raise ValueError(f"seed must be at least 0, not {config.seed}")
    preset = preset_of(config)
    env = make_env(config)
    steps = config.episodes * env.unwrapped.decisions
    dqn.make_dqn(env, preset, steps, config.seed)
    facts = {
        "task": asdict(env.unwrapped.config),
        "dataset_fingerprint": env.unwrapped.training.fingerprint,
        "decisions_per_episode": env.unwrapped.decisions,
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
    env = make_env(config, keep_frames=True)
    steps = config.episodes * env.unwrapped.decisions
    model = dqn.make_dqn(env, preset, steps, config.seed)
    done = _restore(run, model, preset)
    if done == config.episodes:
        return model
    model.set_logger(configure(str(run.folder / "tensorboard"), ["tensorboard"]))
    callback = dqn.begin(model, steps, _Report(show))
    for number in range(done, config.episodes):
        started = time.perf_counter()
        dqn.train_episode(model, preset, episode_seed(config, number), callback)
        episode = env.get_wrapper_attr("finished")
        _save(run, model, number, episode, time.perf_counter() - started)
        finished(number, episode)
    model.logger.close()
    env.close()
    return model


def _restore(run: Run, model: dqn.DQN, preset: dqn.Preset) -> int:
    """Bring a fresh agent to where the run stands; returns the number of finished episodes."""
    progress = run.progress()
    done = progress["_episode_num"]
    run.keep_only(done)
    if done > 0:
        dqn.load_weights(model, run.model_file)
        vars(model).update(progress)
        for number in range(done):
            arrays, _ = load_arrays(run.replay_file(number))
            add_episode(model.replay_buffer, arrays, preset.history)
    return done


def _save(run: Run, model: dqn.DQN, number: int, episode: Episode, seconds: float) -> None:
    row = {
        "episode": number,
        "steps": len(episode.steps),
        "return": episode.total_reward,
        **{name: episode.final[name] for name in EPISODE_COLUMNS},
        "diverged": int(episode.final["diverged"]),
        "is_success": int(episode.final["is_success"]),
        "epsilon": model.exploration_rate,
        "seconds": round(seconds, 3),
    }
    save_arrays(run.replay_file(number), episode_arrays(episode), {"episode": number})
    run.append("steps.csv.gz", [{"episode": number, **step} for step in episode.steps])
    run.append("episodes.csv", [row])
    for name in ("return", *EPISODE_COLUMNS, "epsilon"):
        model.logger.record(f"episode/{name}", row[name])
    model.logger.dump(step=model.num_timesteps)
    with write_aside(run.model_file) as aside:
        model.save(aside)  # the last: from here on the episode counts
