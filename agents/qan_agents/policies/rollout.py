"""Play an episode with a policy, and record it."""

from collections import deque
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from qan_agents.policies.fixed import Policy
from qan_gym.env import QanEnv
from qan_gym.inspection import Row
from qan_gym.optimizee.optimizers import Hyperparameters
from qan_gym.vector_env import QanVectorEnv

TIME_COLUMNS = ("batch", "epoch")
MEASURED_COLUMNS = ("loss", "smoothed_loss", "validation_loss", "validation_accuracy")


def recorded_names(controlled: Container[str]) -> tuple[str, ...]:
    """The scalars of `info` that are recorded at every step.

    Args:
        controlled: the hyperparameters that the game's actions change (`Game.hyperparameters`); or an info, which has
            these and the learning rate.

    Returns:
        The time, the learning rate, the other controlled hyperparameters, and what is measured.
    """
    changing = (name for name in Hyperparameters._fields if name == "learning_rate" or name in controlled)
    return (*TIME_COLUMNS, *changing, *MEASURED_COLUMNS)


def action_columns(action: Any) -> dict[str, Any]:
    """The numbers of an action by the columns of a table: "action", "action_1", "action_2", ..."""
    numbers = np.asarray(action).reshape(-1).tolist()
    return {"action" if number == 0 else f"action_{number}": value for number, value in enumerate(numbers)}


@dataclass
class Episode:
    """The record of an episode, as far as it was played.

    Attributes:
        steps: a row per action: "step" (from 0), `recorded_names` of the info, `action_columns`, "reward".
        final: the info of the last step, with test_loss and test_accuracy, once the episode is over.
        over: the episode has ended.
        frames: the observations, the reset's first, where they are recorded.
        actions: the actions as they were given, where observations are recorded.
        terminated: it ended otherwise than by its budget.
    """

    steps: list[dict[str, float]] = field(default_factory=list)
    final: dict[str, Any] = field(default_factory=dict)
    over: bool = False
    frames: list[NDArray[np.float32]] = field(default_factory=list)
    actions: list[Any] = field(default_factory=list)
    terminated: bool = False

    @property
    def total_reward(self) -> float:
        """The undiscounted return."""
        return sum(row["reward"] for row in self.steps)

    def add(self, action: Any, reward: float, info: dict[str, Any], frame: NDArray[np.float32] | None = None) -> None:
        """Record a step.

        Args:
            action: that was played.
            reward: that it brought.
            info: after it.
            frame: the observation after it, where observations are recorded.
        """
        scalars = {name: info[name] for name in recorded_names(info)}
        time = {"step": len(self.steps), **{name: scalars.pop(name) for name in TIME_COLUMNS}}
        self.steps.append({**time, **action_columns(action), **scalars, "reward": reward})
        if frame is not None:
            self.frames.append(frame)
            self.actions.append(action)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays of an episode of T steps, for a replay.

        Returns:
            frames (T + 1, D), single ones, not stacked; actions, (T,) int64, or (T, *shape) of what is not Discrete;
            rewards (T,) float32; terminated () bool.
        """
        actions = np.stack([np.asarray(action) for action in self.actions])
        return {
            "frames": np.stack(self.frames),
            "actions": actions.astype(np.int64) if actions.dtype.kind in "iu" else actions,
            "rewards": np.asarray([row["reward"] for row in self.steps], dtype=np.float32),
            "terminated": np.asarray(self.terminated),
        }

    def end(self, info: dict[str, Any], terminated: bool) -> None:
        """Complete the record with the info of the last step."""
        self.final, self.over, self.terminated = info, True, terminated


class EpisodeRecorder(gym.Wrapper[Any, Any, Any, Any]):
    """Records episodes.

    Attributes:
        episode: the one that is being played.
        finished: the last one that ended.
    """

    def __init__(self, env: gym.Env[Any, Any], frames: bool = False) -> None:
        """Around an environment.

        Args:
            env: one of qan-gym's, wrapped or not.
            frames: whether observations are recorded too.
        """
        super().__init__(env)
        self.frames = frames
        self.episode = Episode()
        self.finished = Episode()

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode and its record."""
        self.episode = Episode()
        observation, info = self.env.reset(**kwargs)
        if self.frames:
            self.episode.frames.append(observation)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Play an action and record it."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.episode.add(action, float(reward), info, observation if self.frames else None)
        if terminated or truncated:
            self.episode.end(info, bool(terminated))
            self.finished = self.episode
        return observation, reward, terminated, truncated, info


def play_episode(env: gym.Env[Any, Any], policy: Policy, seed: int) -> Episode:
    """Play one episode.

    Args:
        env: with an `EpisodeRecorder` among its wrappers.
        policy: chooses the actions.
        seed: of the episode.

    Returns:
        The record of the episode.

    Raises:
        ValueError: the policy cannot play this environment.
    """
    options = policy.start(env, seed)
    observation, info = env.reset(seed=seed, options=options)
    over = False
    while not over:
        observation, _, terminated, truncated, info = env.step(policy.act(observation, info))
        over = terminated or truncated
    episode: Episode = env.get_wrapper_attr("finished")
    return episode


def play_rows(
    env: QanVectorEnv,
    policies: Sequence[Policy],
    seeds: Sequence[int],
    history: int = 1,
    show: Callable[[float], None] = lambda share: None,
) -> list[Episode]:
    """Play one episode in every row of an environment, in lock-step.

    Each is what `play_episode` plays with the row's policy and seed.

    Args:
        env: of N rows, in mode DISABLED, with NumPy's arrays.
        policies: N of the same kind, one per row.
        seeds: N, of the episodes.
        history: frames of an observation that the policies take.
        show: called after every step, with the share of an episode that is done.

    Raises:
        ValueError: the policies cannot play this environment.
    """
    rows = range(env.num_envs)
    options = None
    for row, policy, seed in zip(rows, policies, seeds, strict=True):
        options = policy.start(cast(gym.Env[Any, Any], Row(env, row)), seed)
    observations, infos = env.reset(seed=list(seeds), options=options)
    info_of = rows_of(infos, env.num_envs)
    frames = [deque([np.array(observations[row])] * history, maxlen=history) for row in rows]
    episodes = [Episode() for _ in rows]
    space = env.action_space
    actions = np.zeros(space.shape or (), space.dtype)
    over = np.zeros(env.num_envs, np.bool_)
    while not over.all():
        playing = [row for row in rows if not over[row]]
        for row in playing:
            actions[row] = policies[row].act(np.stack(frames[row]), info_of[row])
        if over.any():
            # Mode DISABLED refuses to step rows that are over. They are reset, and what they do then is not recorded.
            env.reset(options={**(options or {}), "reset_mask": over})
        observations, rewards, terminated, truncated, infos = env.step(actions)
        info_of = rows_of(infos, env.num_envs)
        for row in playing:
            info, episode = info_of[row], episodes[row]
            frames[row].append(np.array(observations[row]))
            episode.add(_plain_action(actions[row]), float(rewards[row]), info)
            if terminated[row] or truncated[row]:
                episode.end(info, bool(terminated[row]))
                over[row] = True
        show(max(len(episode.steps) for episode in episodes) / env.episode_length)  # the longest is waited for
    return episodes


def rows_of(infos: dict[str, Any], num_envs: int) -> list[dict[str, Any]]:
    """A vector environment's infos as a dict per row, of the plain numbers that the masks say it has."""
    rows: list[dict[str, Any]] = [{} for _ in range(num_envs)]
    for name, values in infos.items():
        if f"_{name}" not in infos or name in ("final_obs", "final_info"):
            continue
        for info, value, has in zip(rows, _by_row(values, num_envs), infos[f"_{name}"].tolist(), strict=True):
            if has:
                info[name] = value
    return rows


def _by_row(values: Any, num_envs: int) -> list[Any]:
    """The values of each row: of an array (N,), or of a dict of such arrays."""
    if not isinstance(values, dict):
        return list(values.tolist())
    columns = {name: array.tolist() for name, array in values.items() if not name.startswith("_")}
    return [{name: column[row] for name, column in columns.items()} for row in range(num_envs)]


def _plain_action(action: Any) -> Any:
    """An action of a Discrete space as a number of Python; another one as a copy."""
    return action.item() if np.ndim(action) == 0 else np.array(action)


def qan_env(env: gym.Env[Any, Any]) -> QanEnv:
    """The environment of qan-gym inside its wrappers.

    Raises:
        ValueError: there is none.
    """
    inner = env.unwrapped
    if not isinstance(inner, QanEnv):
        raise ValueError(f"the environment must be one of qan-gym, not {env}")
    return inner
