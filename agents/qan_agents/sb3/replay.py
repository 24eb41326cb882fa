"""SB3's replay buffer with each frame held once; episodes from files can be put back into it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize


class FrameReplayBuffer(ReplayBuffer):
    """Holds single frames and stacks the last ones when it is sampled, as DeepMind's DQN does.

    With a history of 4 that is a quarter of the memory: 6.6 GB, not 26, for the paper's million transitions.
    """

    def __init__(self, buffer_size: int, observation_space: spaces.Box, *args: Any, **kwargs: Any) -> None:
        """As SB3's; observation_space is (history, D)."""
        self.history = observation_space.shape[0]
        frame = spaces.Box(observation_space.low[0], observation_space.high[0], dtype=observation_space.dtype)
        super().__init__(buffer_size, frame, *args, **kwargs)
        self.age = np.zeros((self.buffer_size, self.n_envs), dtype=np.int64)  # steps since the episode started
        self.valid = np.zeros((self.buffer_size, self.n_envs), dtype=np.bool_)  # of the round that was played
        self.start_round()

    def start_round(self) -> None:
        """Every row starts an episode with the next transition."""
        self._next_age = np.zeros(self.n_envs, dtype=np.int64)

    def add(
        self,
        obs: NDArray[Any],
        next_obs: NDArray[Any],
        action: NDArray[Any],
        reward: NDArray[Any],
        done: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """As SB3's; observations are (N, history, D). What rows play while they wait for the others is never drawn."""
        self.age[self.pos] = self._next_age
        self._next_age = np.where(done, 0, self._next_age + 1)
        self.valid[self.pos] = [not info.get("waiting", False) for info in infos]
        super().add(obs[:, -1], next_obs[:, -1], action, reward, done, infos)

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """As SB3's; the oldest transitions of a full buffer, whose history is overwritten, are not drawn."""
        drawn = self._draw(batch_size)
        while not (good := self.valid.flat[drawn]).all():
            drawn[~good] = self._draw(int((~good).sum()))
        return self._get_samples(drawn, env)

    def _draw(self, count: int) -> NDArray[np.int64]:
        """Places in (buffer_size, N), flattened."""
        oldest, kept = (
            (self.pos + self.history - 1, self.buffer_size - self.history + 1) if self.full else (0, self.pos)
        )
        drawn = oldest * self.n_envs + np.random.randint(0, kept * self.n_envs, size=count)  # noqa: NPY002 (as SB3)
        return drawn % (self.buffer_size * self.n_envs)

    def _get_samples(self, batch_inds: NDArray[Any], env: VecNormalize | None = None) -> ReplayBufferSamples:
        place, row = np.divmod(batch_inds, self.n_envs)  # (B,)
        # Before an episode's first frame, it is repeated (as FrameStackObservation pads).
        back = np.minimum(np.arange(self.history - 1, -1, -1), self.age[place, row, None])  # (B, history)
        observations = self.observations[(place[:, None] - back) % self.buffer_size, row[:, None]]  # (B, history, D)
        next_observations = np.concatenate([observations[:, 1:], self.next_observations[place, row][:, None]], axis=1)
        terminated = self.dones[place, row] * (1 - self.timeouts[place, row])  # (B,)
        actions, rewards = self.actions[place, row], self.rewards[place, row]
        data = (observations, actions, next_observations, terminated[:, None], rewards[:, None])
        return ReplayBufferSamples(*map(self.to_torch, data))


def add_round(buffer: ReplayBuffer, episodes: Sequence[dict[str, NDArray[Any]]], history: int) -> None:
    """Put the episodes of a round, one per row (see `Episode.arrays`), into a replay, as playing them did.

    Args:
        buffer: SB3's, or one of single frames.
        episodes: of a round, one per row.
        history: frames of an observation.
    """
    if isinstance(buffer, FrameReplayBuffer):
        buffer.start_round()
    for t in range(max(len(arrays["actions"]) for arrays in episodes)):
        transitions = [_transition(arrays, t, history) for arrays in episodes]
        *columns, infos = zip(*transitions, strict=True)
        obs, next_obs, actions, rewards, dones = map(np.stack, columns)
        buffer.add(obs, next_obs, actions, rewards, dones, list(infos))


def _transition(arrays: dict[str, NDArray[Any]], t: int, history: int) -> tuple[Any, ...]:
    """Observation, next observation, action, reward, done and info of step t; of the last where it is past the end."""
    frames, last = arrays["frames"], len(arrays["actions"]) - 1
    info = {"waiting": t > last, "TimeLimit.truncated": t == last and not bool(arrays["terminated"])}
    t = min(t, last)
    offsets = np.arange(1 - history, 1)
    observation, next_observation = (
        frames[(t + offsets).clip(min=0)],
        frames[(t + 1 + offsets).clip(min=0)],
    )  # (history, D)
    return observation, next_observation, arrays["actions"][t], arrays["rewards"][t], t == last, info
