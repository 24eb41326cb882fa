"""Gymnasium's vector environments as those of Stable-Baselines3."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

import qan_gym  # noqa: F401 (registers the environments)
from qan_agents.policies.rollout import rows_of


def vec_env(env_id: str, num_envs: int, **kwargs: Any) -> VecEnv:
    """N environments in lock-step, for any algorithm of SB3, which does not take what `gym.make_vec` returns.

    In a `VecMonitor`, as SB3's `make_vec_env` wraps its own in monitors: the infos of an episode's end have `episode`,
    its return and length.

    Args:
        env_id: of an environment with a vector version; every id of qan-gym has one.
        num_envs: N.
        kwargs: keyword arguments of the environment.
    """
    env = gym.make_vec(env_id, num_envs=num_envs, autoreset_mode=AutoresetMode.SAME_STEP, **kwargs)
    return VecMonitor(GymnasiumVecEnv(env))


class GymnasiumVecEnv(VecEnv):
    """A Gymnasium VectorEnv as an SB3 VecEnv.

    At the end of an episode the info of its row is that of the last step, with `terminal_observation`, and the
    observation is the next episode's first; `TimeLimit.truncated` says that the end was the budget's.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        """env: in SAME_STEP mode, with NumPy arrays.

        Raises:
            ValueError: its autoreset mode is another one.
        """
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise ValueError(f"SB3 wants episodes reset in the step of their end: autoreset_mode SAME_STEP, not {mode}")
        self.env = env
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.metadata["render_fps"] = env.metadata.get("render_fps", 30)

    def seed_rows(self, seeds: Sequence[int]) -> None:
        """The seeds of the rows at the next reset, where `seed` gives them consecutive ones.

        Raises:
            ValueError: there is not one seed per row.
        """
        if len(seeds) != self.num_envs:
            raise ValueError(f"there must be {self.num_envs} seeds, one per row, not {len(seeds)}")
        self._seeds = list(seeds)

    def reset(self) -> NDArray[Any]:
        """Begin an episode in every row; the first observations (N, D).

        Raises:
            ValueError: the rows were given different reset options.
        """
        options = self._options[0]
        if any(other != options for other in self._options):
            raise ValueError("the rows are reset together, so their reset options must be the same")
        seeds: Any = self._seeds  # a list, which qan-gym's and Gymnasium's environments take
        observations, infos = self.env.reset(seed=seeds, options=options)
        self.reset_infos = rows_of(infos, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        return np.asarray(observations)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Remember the actions of `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Play them."""
        observations, rewards, terminated, truncated, infos = self.env.step(self._actions)
        rows = rows_of(infos, self.num_envs)
        dones = terminated | truncated
        if dones.any():
            finals = rows_of(infos["final_info"], self.num_envs)
            for row in np.flatnonzero(dones).tolist():
                self.reset_infos[row] = rows[row]
                rows[row] = {**finals[row], "terminal_observation": infos["final_obs"][row]}
        for row, info in enumerate(rows):
            info["TimeLimit.truncated"] = bool(truncated[row] and not terminated[row])
        return observations, rewards.astype(np.float32), dones, rows

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """A picture (H, W, 3) of every row; None of each where the render mode is not "rgb_array"."""
        frames: Any = self.env.render() if self.render_mode == "rgb_array" else None
        return [None] * self.num_envs if frames is None else list(frames)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of each row, as the environment's `get_attr` gives it; where it has none, its own attribute.

        Raises:
            AttributeError: there is none.
        """
        if hasattr(self.env, "get_attr"):
            return self._of_rows(self.env.get_attr(attr_name), indices)
        return self._of_rows([getattr(self.env, attr_name)] * self.num_envs, indices)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of rows, by the environment's `set_attr`.

        Raises:
            AttributeError: the environment does not let it be set.
        """
        rows = set(self._get_indices(indices))
        before = self.get_attr(attr_name) if len(rows) < self.num_envs else []
        values = [value if row in rows else before[row] for row in range(self.num_envs)]
        self.env.set_attr(attr_name, values)  # type: ignore[attr-defined]

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """What a method of each row returns, by the environment's `call`, which calls it of all rows.

        Raises:
            AttributeError: there is no such method.
        """
        return self._of_rows(self.env.call(method_name, *args, **kwargs), indices)  # type: ignore[attr-defined]

    def _of_rows(self, values: Sequence[Any], indices: VecEnvIndices) -> list[Any]:
        return [values[row] for row in self._get_indices(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Wrappers of single environments do not go around a row."""
        return [False] * len(list(self._get_indices(indices)))
