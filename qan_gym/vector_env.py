"""The vector environment: the core with N, and Gymnasium's conventions of resetting."""

from typing import Any

import numpy as np
import torch
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from qan_gym.actions import row_actions
from qan_gym.core.factory import make_training
from qan_gym.core.observation import filter_pictures
from qan_gym.core.run_state import Flags
from qan_gym.core.training import Info
from qan_gym.env import wants_shuffled
from qan_gym.rendering.frames import FPS, FrameContent, FrameRenderer, require_matplotlib
from qan_gym.rendering.history import History, class_shares
from qan_gym.tasks import make_task_config
from qan_gym.utils.arrays import Array as Values
from qan_gym.utils.arrays import as_array, as_tensor, to_numpy
from qan_gym.utils.own_settings import own_settings
from qan_gym.utils.random_streams import next_seeds

Array = NDArray[Any] | Tensor  # as `output` says
Outcome = tuple[Array, Array, Array, Array, dict[str, Any]]


class QanVectorEnv(VectorEnv[Any, Any, Any]):
    """N independent trainings in lock-step; `gym.make_vec(id, num_envs=N)` makes it, for every id.

    Row i is what the single environment is with the i-th seed: `LearningRateEnv` and `MinibatchEnv` say what is played.

    ## Resetting
    `autoreset_mode` (in `metadata` too) is one of Gymnasium's: `NEXT_STEP` (default: the step after the end resets,
    pays 0 and ignores the action), `SAME_STEP` (the step of the end resets too; `infos["final_obs"]` and
    `infos["final_info"]` hold what was there before) or `DISABLED` (rows that are over must be reset with
    `reset(options={"reset_mask": mask})` before the next step).

    ## Information
    A dict of arrays (N,), by the names of the single environment, and for each a mask `_name` (N,) of the rows that
    have it. `infos["final_obs"]` is an array of N objects, None where an episode goes on; a tensor (N, D) with
    `output="torch"`, to be read through its mask.

    ## Rendering
    With `render_mode="rgb_array"`, `render()` gives a tuple of N pictures, one per row, as Gymnasium's vector
    environments do; `qan_gym.rendering.mosaic` and Gymnasium's vector wrappers (`RecordVideo`, `HumanRendering`) put
    them together.

    ## Arguments
    Those of the single environment but `baseline_run`, and `num_envs`, `autoreset_mode`, and `output`: `"numpy"`
    (default), or `"torch"` for tensors on the device, which are copied nowhere.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium's)
        "render_modes": ["rgb_array"],
        "render_fps": FPS,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        task: str,
        *,
        num_envs: int = 1,
        device: str = "cpu",
        engine: str = "auto",
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        output: str = "numpy",
        render_mode: str | None = None,
        **overrides: Any,
    ) -> None:
        """See the class; `task` is set by the registration.

        Raises:
            ValueError: an argument is out of its range.
            ImportError: matplotlib is missing, and is to draw.
        """
        if isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1:
            raise ValueError(f"num_envs must be an integer of at least 1, not {num_envs!r}")
        if output not in ("numpy", "torch"):
            raise ValueError(f"output must be 'numpy' or 'torch', not {output!r}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(
                f"render_mode of a vector environment must be None or 'rgb_array', not {render_mode!r}: "
                "gym.make has others, for one episode"
            )
        if render_mode is not None:
            require_matplotlib()
        self.render_mode = render_mode
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.num_envs = num_envs
        self.output = output
        self.config = make_task_config(task, overrides)
        self.training = make_training(self.config, num_envs, device, engine)
        parts = self.training.parts
        self.screen_shape = parts.observer.shape
        self.single_observation_space, self.single_action_space = parts.observer.space, parts.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generators: list[np.random.Generator] = [seeding.np_random()[0] for _ in range(num_envs)]
        self._begun = False
        self._histories = [History(self.training) for _ in range(num_envs if render_mode is not None else 0)]
        self._renderer = FrameRenderer(parts, small=True)

    # --- reset ------------------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Begin an episode in every row, or in those of `reset_mask`.

        Args:
            seed: row i is seeded with seed + i, or with the i-th of a list; None: go on in the sequence of the last.
            options: those of the single environment, and `reset_mask`, (N,) bool, of the rows to reset.

        Raises:
            ValueError: an option is unknown or has the wrong shape, or there is not one seed per row.
            gymnasium.error.ResetNeeded: a mask is given before the first whole reset.
        """
        self._require_open()
        others = dict(options or {})
        mask = self._reset_mask(others.pop("reset_mask", None))
        shuffled = wants_shuffled(others)
        seeds = self._row_seeds(seed)
        # All of them, before one takes effect: a seed may be refused.
        new = {row: seeding.np_random(value)[0] for row, value in enumerate(seeds) if mask[row] and value is not None}
        for row, generator in new.items():
            self._generators[row] = generator
        observation, info = self._begin(mask, shuffled)
        self._begun = True
        return self._out(observation), self._masked(info, mask)

    def _reset_mask(self, mask: Any) -> Flags:
        if mask is None:
            return np.ones(self.num_envs, np.bool_)
        if isinstance(mask, Tensor):
            mask = mask.cpu().numpy()
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (self.num_envs,):
            raise ValueError(f"reset_mask must be a boolean array of shape ({self.num_envs},), not {mask!r}")
        if not mask.any():
            raise ValueError("reset_mask must have a row that is True: there is nothing to reset")
        if not self._begun:
            raise ResetNeeded("reset all rows once before resetting some of them with reset_mask")
        return mask.copy()

    def _row_seeds(self, seed: int | list[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            return [int(seed) + row for row in range(self.num_envs)]
        seeds = list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed must be one number, or {self.num_envs} of them; it has {len(seeds)}")
        return seeds

    def _begin(self, mask: Flags, shuffled: bool) -> tuple[Values, Info]:
        rows = np.flatnonzero(mask)
        seeds = np.zeros(self.num_envs, np.int64)
        seeds[rows] = next_seeds(self._generators[row] for row in rows)
        begun = self.training.reset(mask, seeds, shuffled)
        self._write_down(begun[1], mask)
        return begun

    # --- step -------------------------------------------------------------------------------------------------------

    def step(self, actions: Any) -> Outcome:
        """Play one action in every row, as Gymnasium defines it for the `autoreset_mode`.

        Args:
            actions: (N,) integers of a Discrete space, (N, k) of a MultiDiscrete, (N, *shape) floats of a Box; an array
                or a tensor.

        Raises:
            gymnasium.error.ResetNeeded: nothing has begun yet, or a row is over and `autoreset_mode` is DISABLED.
            ValueError: the actions are not in the action space.
        """
        self._require_open()
        if not self._begun:
            raise ResetNeeded("no episode has begun: call reset() first")
        was_over = self.training.run.over.copy()
        if self.autoreset_mode == AutoresetMode.DISABLED and was_over.any():
            rows = ", ".join(map(str, np.flatnonzero(was_over)[:10]))
            raise ResetNeeded(f"the episodes of rows {rows} are over: reset(options={{'reset_mask': mask}}) them first")
        parts = self.training.parts
        done = self.training.step(row_actions(self.single_action_space, self.num_envs, actions))
        self._write_down(done.info, ~was_over, self.training.run.action)
        ended = done.terminated | done.truncated
        observation, reward, info = done.observation, done.reward, done.info
        infos: dict[str, Any] = {}
        if self.autoreset_mode == AutoresetMode.SAME_STEP and ended.any():
            infos = self._final(observation, {**info, **done.test}, ended)
            observation, info = self._begin(ended, shuffled=False)
        elif ended.any():
            infos = self._masked(done.test, ended)
        if was_over.any():  # NEXT_STEP: what was over was carried along, and begins only now
            observation, info = self._begin(was_over, shuffled=False)
            reward = parts.xp.where(self._on_device(was_over), 0.0, reward)
        infos |= self._masked(info, np.ones(self.num_envs, np.bool_))
        terminated, truncated = self._flags_out(done.terminated), self._flags_out(done.truncated)
        return (
            self._out(observation),
            self._out(parts.xp.astype(reward, parts.xp.float64)),
            terminated,
            truncated,
            infos,
        )

    # --- what goes out ----------------------------------------------------------------------------------------------

    def _out(self, values: Values) -> Array:
        return as_tensor(values) if self.output == "torch" else to_numpy(values)

    def _flags_out(self, flags: Flags) -> Array:
        return as_tensor(self._on_device(flags)) if self.output == "torch" else flags

    def _on_device(self, flags: Flags) -> Values:
        return as_array(torch.from_numpy(flags).to(self.training.device))

    def _masked(self, info: Info, mask: Flags) -> dict[str, Any]:
        """Copies of the values in the rows of a mask, 0 elsewhere, and the mask beside each."""
        out: dict[str, Any] = {}
        xp = self.training.parts.xp
        some = None if mask.all() else self._on_device(mask)
        for name, value in info.items():
            kind = xp.float64 if xp.isdtype(value.dtype, "real floating") else value.dtype
            copy = xp.astype(value, kind, copy=True)
            out[name] = self._out(copy if some is None else xp.where(some, copy, xp.zeros_like(copy)))
            out[f"_{name}"] = self._flags_out(mask.copy())
        return out

    def _final(self, observation: Values, info: Info, ended: Flags) -> dict[str, Any]:
        """The last observations and infos of the rows that ended."""
        last: Any = self._out(observation)
        if self.output == "numpy":
            last = np.full(self.num_envs, None, dtype=object)
            for row in np.flatnonzero(ended):
                last[row] = to_numpy(observation[row])
        return {
            "final_obs": last,
            "_final_obs": self._flags_out(ended.copy()),
            "final_info": self._masked(info, ended),
            "_final_info": self._flags_out(ended.copy()),
        }

    # --- rendering --------------------------------------------------------------------------------------------------

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """A picture (H, W, 3) uint8 of every row; None without a render mode.

        Raises:
            gymnasium.error.ResetNeeded: no episode has begun.
        """
        self._require_open()
        if self.render_mode is None:
            return None
        if not self._begun:
            raise ResetNeeded("there is nothing to render before reset()")
        return tuple(self._renderer.draw(self._content(row)) for row in range(self.num_envs))

    def _content(self, row: int) -> FrameContent:
        history = self._histories[row]
        accuracy = history.curve("validation_accuracy")[-1]
        title = f"{row}: mini-batch {history.curve('batch')[-1]:,.0f}, validation accuracy {accuracy:.1%}"
        filters = filter_pictures(self.training.network, self.training.run.params, row)
        return FrameContent(filters, history, title=title)

    def _write_down(self, info: Info, mask: Flags, actions: Tensor | None = None) -> None:
        """Where the rows of a mask stand, for the pictures; without actions, at the beginning of an episode."""
        if self.render_mode is None:
            return
        values = {name: value.tolist() for name, value in info.items()}
        shares = class_shares(self.training)
        played = None if actions is None else actions.tolist()
        for row in np.flatnonzero(mask):
            now = {name: value[row] for name, value in values.items()}
            mine = None if shares is None else shares[row]
            if played is None:
                self._histories[row].start(now)
            else:
                self._histories[row].add(now, played[row], mine)

    # --- inspection and end -----------------------------------------------------------------------------------------

    @own_settings()
    def weights(self) -> dict[str, Array]:
        """The networks' parameters by name, (N, *shape) float32, copies."""
        return {name: self._out(value.clone()) for name, value in self.training.run.params.items()}

    @property
    def over(self) -> Flags:
        """(N,) bool, the rows whose episode has ended and not begun again; known without asking the device."""
        return self.training.run.over.copy()

    @property
    def episode_length(self) -> int:
        """Actions of an episode that spends its budget."""
        return self.training.parts.episode_length

    def close_extras(self, **kwargs: Any) -> None:
        """Give the memory of the networks back."""
        self.training.close()
        del self.training, self._renderer  # which holds the network and its layers' buffers too

    def _require_open(self) -> None:
        if self.closed:
            raise ClosedEnvironmentError("the environment is closed: make a new one")
