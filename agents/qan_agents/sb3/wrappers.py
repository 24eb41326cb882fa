"""Wrappers of SB3's vector environments: the record of a round, and stacked frames."""

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from qan_agents.policies.rollout import Episode


class RoundRecorder(VecEnvWrapper):
    """Keeps a round in `episodes`: one episode of every row, all started by the last reset.

    A row that ends early goes on with an episode that is not of the round; its infos say so with `waiting`.
    """

    def __init__(self, venv: VecEnv) -> None:
        """venv: of single frames."""
        super().__init__(venv)
        self.episodes = [Episode() for _ in range(venv.num_envs)]

    def reset(self) -> NDArray[Any]:
        """Begin a round."""
        observations = _array(self.venv.reset())
        self.episodes = [Episode(frames=[observation]) for observation in observations.copy()]
        return observations

    def step_async(self, actions: NDArray[Any]) -> None:
        """Remember the actions, and pass them on."""
        self._actions = actions
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Play and record."""
        returned, rewards, dones, infos = self.venv.step_wait()
        observations = _array(returned)
        for row, (episode, info) in enumerate(zip(self.episodes, infos, strict=True)):
            info["waiting"] = episode.over
            if not episode.over:
                frame = info["terminal_observation"] if dones[row] else observations[row].copy()
                terminated = bool(dones[row]) and not info["TimeLimit.truncated"]
                episode.add(self._actions[row], float(rewards[row]), info, frame)
                if dones[row]:
                    episode.end(info, terminated)
        return observations, rewards, dones, infos


class StackHistory(VecEnvWrapper):
    """The last frames of every row, (N, history, D); before an episode's first frame, it is repeated.

    What `gymnasium.wrappers.FrameStackObservation` is for a single environment.
    """

    def __init__(self, venv: VecEnv, history: int) -> None:
        """venv: of single frames in a Box; history: frames of an observation."""
        space = venv.observation_space
        assert isinstance(space, spaces.Box)
        low, high = (np.repeat(limit[None], history, axis=0) for limit in (space.low, space.high))
        super().__init__(venv, spaces.Box(low, high, dtype=np.float32))
        self.history = history

    def reset(self) -> NDArray[Any]:
        """The first frames, repeated."""
        self._stack = np.repeat(_array(self.venv.reset())[:, None], self.history, axis=1)  # (N, history, D)
        return self._stack.copy()

    def step_wait(self) -> VecEnvStepReturn:
        """The stacks with the new frames."""
        returned, rewards, dones, infos = self.venv.step_wait()
        frames, earlier = _array(returned), self._stack[:, 1:]
        self._stack = np.concatenate([earlier, frames[:, None]], axis=1)
        for row in np.flatnonzero(dones).tolist():
            final = infos[row]["terminal_observation"][None]
            infos[row]["terminal_observation"] = np.concatenate([earlier[row], final])
            self._stack[row] = frames[row]
        return self._stack.copy(), rewards, dones, infos


def _array(observations: Any) -> NDArray[Any]:
    """The observations of a Box; SB3's types also allow those of Dict and Tuple spaces."""
    assert isinstance(observations, np.ndarray)
    return observations
