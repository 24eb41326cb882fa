"""The replay buffer: SB3's, with each screen held once, and an episode at a time on disk."""

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from qan_agents.play import Episode


class ScreenReplayBuffer(ReplayBuffer):
    """Holds single screens and stacks the last ones when it is sampled, as DeepMind's DQN does.

    With a history of 4 that is a quarter of the memory: 6.6 GB, not 26, for the paper's million transitions.
    """

    def __init__(self, buffer_size: int, observation_space: spaces.Box, *args: Any, **kwargs: Any) -> None:
        """As SB3's; observation_space is (history, D)."""
        self.history = observation_space.shape[0]
        screen = spaces.Box(observation_space.low[0], observation_space.high[0], dtype=observation_space.dtype)
        super().__init__(buffer_size, screen, *args, **kwargs)
        if self.n_envs != 1:
            raise ValueError(f"ScreenReplayBuffer takes one environment, not {self.n_envs}")
        self.age = np.zeros(self.buffer_size, dtype=np.int64)  # steps since the episode of a transition began
        self._next_age = 0

    def add(
        self, obs: NDArray, next_obs: NDArray, action: NDArray, reward: NDArray, done: NDArray, infos: list[dict]
    ) -> None:
        """As SB3's; observations are (1, history, D)."""
        self.age[self.pos] = self._next_age
        self._next_age = 0 if done[0] else self._next_age + 1
        super().add(obs[:, -1], next_obs[:, -1], action, reward, done, infos)

    def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
        """As SB3's; the oldest transitions of a full buffer, whose history is overwritten, are not drawn."""
        oldest, count = (
            (self.pos + self.history - 1, self.buffer_size - self.history + 1) if self.full else (0, self.pos)
        )
        indices = (oldest + np.random.randint(0, count, size=batch_size)) % self.buffer_size  # noqa: NPY002 (as SB3)
        return self._get_samples(indices, env)

    def _get_samples(self, batch_inds: NDArray, env: Any = None) -> ReplayBufferSamples:
        # Before an episode's first screen, the first (as FrameStackObservation pads).
        back = np.minimum(np.arange(self.history - 1, -1, -1), self.age[batch_inds, None])  # (B, history)
        observations = self.observations[(batch_inds[:, None] - back) % self.buffer_size, 0]  # (B, history, D)
        following = np.concatenate([observations[:, 1:], self.next_observations[batch_inds]], axis=1)
        ended = self.dones[batch_inds] * (1 - self.timeouts[batch_inds])  # (B, 1)
        data = (observations, self.actions[batch_inds, 0], following, ended, self.rewards[batch_inds])
        return ReplayBufferSamples(*map(self.to_torch, data))


def episode_arrays(episode: Episode) -> dict[str, NDArray[Any]]:
    """What the replay buffer needs of an episode of T steps: single screens (T + 1, D), not stacked ones."""
    return {
        "frames": np.stack(episode.frames),
        "actions": np.asarray(episode.actions, dtype=np.int64).reshape(-1),
        "rewards": np.asarray([row["reward"] for row in episode.steps], dtype=np.float32),
        "terminated": np.asarray(episode.terminated),
    }


def add_episode(buffer: ReplayBuffer, arrays: dict[str, NDArray[Any]], history: int) -> None:
    """Put an episode back into a replay buffer, as playing it did."""
    frames, steps = arrays["frames"], len(arrays["actions"])
    index = np.arange(steps + 1)[:, None] + np.arange(1 - history, 1)  # (T + 1, history)
    for t in range(steps):
        done = t == steps - 1
        buffer.add(
            frames[index[t].clip(min=0)][None],  # (1, history, D)
            frames[index[t + 1].clip(min=0)][None],
            arrays["actions"][t][None],
            arrays["rewards"][t][None],
            np.array([done]),
            [{"TimeLimit.truncated": done and not bool(arrays["terminated"])}],
        )
