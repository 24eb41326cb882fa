"""The bridge to Stable-Baselines3: Gymnasium's vector environments as SB3's, and what its agents want around them."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

import qan_gym  # noqa: F401 (registers the environments)
from qan_agents.policies.rollout import Episode

Step = tuple[NDArray[Any], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]


def vec_env(env_id: str, num_envs: int, **kwargs: Any) -> VecEnv:
    """N environments in lock-step, as any algorithm of SB3 takes them (`gym.make_vec` itself it refuses).

    Args:
        env_id: of an environment with a vector version; every id of qan-gym has one.
        num_envs: N.
        kwargs: of the environment.
    """
    return GymnasiumVecEnv(gym.make_vec(env_id, num_envs=num_envs, autoreset_mode=AutoresetMode.SAME_STEP, **kwargs))


class GymnasiumVecEnv(VecEnv):
    """A Gymnasium VectorEnv as an SB3 VecEnv.

    At the end of an episode the info of its row is that of the last step, with `terminal_observation`, and the
    observation is the next episode's first; `TimeLimit.truncated` says that the end was the budget's.
    """

    def __init__(self, env: VectorEnv) -> None:
        """env: resets in the step of the end and gives out NumPy arrays.

        Raises:
            ValueError: its autoreset mode is another one.
        """
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise ValueError(f"SB3 wants episodes reset in the step of their end: autoreset_mode SAME_STEP, not {mode}")
        self.env = env
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def seed_rows(self, seeds: Sequence[int]) -> None:
        """The seeds of the rows at the next reset, where `seed` gives them consecutive ones.

        Raises:
            ValueError: there is not one seed per row.
        """
        if len(seeds) != self.num_envs:
            raise ValueError(f"there must be {self.num_envs} seeds, one per row, not {len(seeds)}")
        self._seeds = list(seeds)

    def reset(self) -> NDArray[Any]:
        """Begin an episode in every row.

        Raises:
            ValueError: the rows were given different reset options.
        """
        options = self._options[0]
        if any(other != options for other in self._options):
            raise ValueError("the rows are reset together, so their reset options must be the same")
        observations, infos = self.env.reset(seed=self._seeds, options=options)
        self.reset_infos = _rows(infos, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: NDArray[Any]) -> None:
        """Remember the actions of `step_wait`."""
        self._actions = actions

    def step_wait(self) -> Step:
        """Play them."""
        observations, rewards, terminated, truncated, infos = self.env.step(self._actions)
        rows = _rows(infos, self.num_envs)
        dones = terminated | truncated
        if dones.any():
            finals = _rows(infos["final_info"], self.num_envs)
            for row in np.flatnonzero(dones):
                self.reset_infos[row] = rows[row]
                rows[row] = {**finals[row], "terminal_observation": infos["final_obs"][row]}
        for row, info in enumerate(rows):
            info["TimeLimit.truncated"] = bool(truncated[row] and not terminated[row])
        return observations, rewards.astype(np.float32), dones, rows

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The attribute of the one environment that all rows are, once per row."""
        return [getattr(self.env, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Not possible for single rows.

        Raises:
            AttributeError: always.
        """
        raise AttributeError(f"{attr_name} cannot be set: the rows are one environment, and not N")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Not possible for single rows.

        Raises:
            AttributeError: always.
        """
        raise AttributeError(f"{method_name} cannot be called row by row: the rows are one environment, and not N")

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: Any = None) -> list[bool]:
        """Wrappers of single environments do not go around a row."""
        return [False] * len(list(self._get_indices(indices)))


def _rows(infos: dict[str, Any], num_envs: int) -> list[dict[str, Any]]:
    """A vector environment's infos as a dict per row, of the plain numbers that the masks say it has."""
    rows: list[dict[str, Any]] = [{} for _ in range(num_envs)]
    for name, values in infos.items():
        if f"_{name}" not in infos or name in ("final_obs", "final_info"):
            continue
        for info, value, has in zip(rows, values.tolist(), infos[f"_{name}"].tolist(), strict=True):
            if has:
                info[name] = value
    return rows


class RoundRecorder(VecEnvWrapper):
    """Keeps a round in `episodes`: one episode of every row, all begun with the last reset.

    A row that ends early goes on with an episode that is not of the round; its infos say so with `waiting`.
    """

    def __init__(self, venv: VecEnv) -> None:
        """venv: gives out single screens."""
        super().__init__(venv)
        self.episodes = [Episode() for _ in range(venv.num_envs)]

    def reset(self) -> NDArray[Any]:
        """Begin a round."""
        observations = self.venv.reset()
        self.episodes = [Episode(frames=[observation]) for observation in observations.copy()]
        return observations

    def step_async(self, actions: NDArray[Any]) -> None:
        """Remember the actions, and pass them on."""
        self._actions = actions
        self.venv.step_async(actions)

    def step_wait(self) -> Step:
        """Play and record."""
        observations, rewards, dones, infos = self.venv.step_wait()
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
    """The last screens of every row, (N, history, D); before an episode's first, the first, again.

    What `gymnasium.wrappers.FrameStackObservation` is for a single environment.
    """

    def __init__(self, venv: VecEnv, history: int) -> None:
        """history: how many screens."""
        low, high = (np.repeat(limit[None], history, axis=0) for limit in _limits(venv.observation_space))
        super().__init__(venv, spaces.Box(low, high, dtype=np.float32))
        self.history = history

    def reset(self) -> NDArray[Any]:
        """The first screens, repeated."""
        self._stack = np.repeat(self.venv.reset()[:, None], self.history, axis=1)  # (N, history, D)
        return self._stack.copy()

    def step_wait(self) -> Step:
        """The stacks with the new screens."""
        screens, rewards, dones, infos = self.venv.step_wait()
        before = self._stack[:, 1:]
        self._stack = np.concatenate([before, screens[:, None]], axis=1)
        for row in np.flatnonzero(dones):
            last = infos[row]["terminal_observation"][None]
            infos[row]["terminal_observation"] = np.concatenate([before[row], last])
            self._stack[row] = screens[row]
        return self._stack.copy(), rewards, dones, infos


def _limits(space: spaces.Space[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    assert isinstance(space, spaces.Box)
    return space.low, space.high
