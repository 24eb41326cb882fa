"""The vector environment: the core with N, and Gymnasium's conventions of resetting."""

from functools import cache
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
from qan_gym.core.factory import training_of
from qan_gym.core.observation import filter_pictures
from qan_gym.core.run_state import Flags
from qan_gym.core.training import Info
from qan_gym.env import RenderModes, wants_shuffled
from qan_gym.inspection import Row
from qan_gym.rendering.frames import FPS, FrameContent, FrameRenderer, require_matplotlib
from qan_gym.rendering.history import History, class_columns
from qan_gym.tasks import device_name
from qan_gym.utils.arrays import Array as Values
from qan_gym.utils.arrays import as_array, as_tensor, to_numpy
from qan_gym.utils.own_settings import own_settings
from qan_gym.utils.random_streams import next_seeds
from qan_gym.utils.validation import integer, plain, seed_of, shown

Array = NDArray[Any] | Tensor  # as `output` says
# What a copy has beside the arguments, the run and the histories.
_KEPT = (
    *("spec", "_np_random", "_np_random_seed", "_generators", "_begun", "_attributes", "_frames"),
    *("observation_space", "action_space", "single_observation_space", "single_action_space"),
)
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
    A dict of arrays (N,), by the names of the single environment, which are the same at every step, and for each a mask
    `_name` (N,) of the rows that have it. `infos["final_obs"]` is an array of N objects, None where an episode goes on;
    a tensor (N, D) with `output="torch"`, to be read through its mask.

    ## Rendering
    With `render_mode="rgb_array"`, `render()` gives a tuple of N pictures, one per row, as Gymnasium's vector
    environments do; `qan_gym.rendering.mosaic` and Gymnasium's vector wrappers (`RecordVideo`, `HumanRendering`) put
    them together. `"rgb_array_list"` draws every step, and `render()` gives N lists of the pictures since the last
    `render()`, or since the row's last reset.

    ## Arguments
    Those of the single environment but `baseline_run`, and `num_envs`, `autoreset_mode`, `max_episode_steps` (which
    truncates as Gymnasium's `TimeLimit` does: nothing is measured then, and `test_loss` stays NaN), and `output`:
    `"numpy"` (default), or `"torch"` for tensors on the device, which are copied nowhere; rewards are then float32.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium's)
        "render_modes": RenderModes(["rgb_array", "rgb_array_list"]),
        "render_fps": FPS,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        env_id: str,
        *,
        num_envs: int = 1,
        device: str = "cpu",
        engine: str = "auto",
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        output: str = "numpy",
        render_mode: str | None = None,
        max_episode_steps: int | None = None,
        **overrides: Any,
    ) -> None:
        """See the class; `env_id` is set by the registration.

        Raises:
            ValueError: an argument is unknown or out of its range.
            ImportError: matplotlib is missing, and is to draw.
        """
        num_envs, device = _count("num_envs", num_envs), device_name(device)
        if max_episode_steps is not None:
            max_episode_steps = _count("max_episode_steps", max_episode_steps)
        if not isinstance(output, str) or output not in ("numpy", "torch"):
            raise ValueError(f"output must be 'numpy' or 'torch', not {shown(output)}")
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(
                f"render_mode of a vector environment must be None, 'rgb_array' or 'rgb_array_list', not "
                f"{render_mode!r}: gym.make has others, for one episode"
            )
        if render_mode is not None:
            require_matplotlib()
        self.autoreset_mode = _autoreset_mode(autoreset_mode)
        self._arguments = {
            "env_id": env_id,
            "num_envs": num_envs,
            "device": device,
            "engine": engine,
            "autoreset_mode": self.autoreset_mode,
            "output": output,
            "render_mode": render_mode,
            "max_episode_steps": max_episode_steps,
            **overrides,
        }
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.num_envs = num_envs
        self.output = output
        self.training = training_of(env_id, overrides, num_envs, device, engine)
        self.config = self.training.config
        parts = self.training.parts
        self.max_episode_steps = max_episode_steps
        self.screen_shape = parts.observer.shape
        self.single_observation_space, self.single_action_space = parts.observer.space, parts.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generators: list[np.random.Generator] = [seeding.np_random()[0] for _ in range(num_envs)]
        self._begun = False
        self._attributes: dict[str, list[Any]] = {}  # that `set_attr` has set
        self._histories = [History(self.training) for _ in range(num_envs if render_mode is not None else 0)]
        self._frames: list[list[NDArray[np.uint8]]] = [[] for _ in range(num_envs)]  # of "rgb_array_list"
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
        others = dict(options) if isinstance(options, dict) else options
        mask = self._reset_mask(others.pop("reset_mask", None) if isinstance(others, dict) else None)
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
            raise ValueError(f"reset_mask must be a boolean array of shape ({self.num_envs},), not {shown(mask)}")
        if not mask.any():
            raise ValueError("reset_mask must have a row that is True: there is nothing to reset")
        if not self._begun:
            raise ResetNeeded("reset all rows once before resetting some of them with reset_mask")
        return mask.copy()

    def _row_seeds(self, seed: int | list[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, list | tuple | np.ndarray):
            if len(seed) != self.num_envs:
                raise ValueError(f"seed must be one number, or {self.num_envs} of them; it has {len(seed)}")
            return [seed_of(one) for one in seed]
        first = seed_of(seed)
        if not isinstance(first, int):
            raise ValueError(f"seed must be an integer of at least 0, one per row, or None, not {shown(seed)}")
        return [first + row for row in range(self.num_envs)]

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
        truncated = done.truncated | self._out_of_time(was_over)
        self._write_down(done.info, ~was_over, self.training.run.action)
        ended = done.terminated | truncated
        observation, reward, info = done.observation, done.reward, done.info
        infos: dict[str, Any] = {}
        if self.autoreset_mode == AutoresetMode.SAME_STEP and ended.any():
            infos = self._final(observation, info, ended)
            observation, info = self._begin(ended, shuffled=False)
        if was_over.any():  # NEXT_STEP: what was over was carried along, and begins only now
            observation, info = self._begin(was_over, shuffled=False)
            reward = parts.xp.where(self._on_device(was_over), 0.0, reward)
        infos |= self._masked(info, np.ones(self.num_envs, np.bool_))
        kind = parts.xp.float32 if self.output == "torch" else parts.xp.float64
        return (
            self._out(observation),
            self._out(parts.xp.astype(reward, kind)),
            self._flags_out(done.terminated),
            self._flags_out(truncated),
            infos,
        )

    def _out_of_time(self, was_over: Flags) -> Flags:
        """(N,) bool, the rows that have played as many steps as they may; their episodes are over."""
        run = self.training.run
        if self.max_episode_steps is None:
            return np.zeros(self.num_envs, np.bool_)
        spent: Flags = (run.batch >= self.max_episode_steps * self.config.batches_per_action) & ~was_over
        run.over |= spent
        return spent

    # --- what goes out ----------------------------------------------------------------------------------------------

    def _out(self, values: Values) -> Array:
        return as_tensor(values) if self.output == "torch" else to_numpy(values)

    def _flags_out(self, flags: Flags) -> Array:
        return as_tensor(self._on_device(flags)) if self.output == "torch" else flags

    def _on_device(self, flags: Flags) -> Values:
        return as_array(torch.from_numpy(flags).to(self.training.device))

    def _masked(self, info: Info, mask: Flags) -> dict[str, Any]:
        """The infos in the rows of a mask; those of the tasks, where these differ, as a dict of their own."""
        out = self._copies(info, mask)
        if task := self.training.task_info():
            out |= {"task": self._copies(task, mask), "_task": self._flags_out(mask.copy())}
        return out

    def _copies(self, info: Info, mask: Flags) -> dict[str, Any]:
        """Copies of the values in the rows of a mask, 0 elsewhere, and the mask beside each."""
        out: dict[str, Any] = {}
        xp = self.training.parts.xp
        some = None if mask.all() else self._on_device(mask)
        for name, value in info.items():
            copy = xp.astype(value, _kind_out(xp, value.dtype), copy=True)
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

    def render(self) -> tuple[Any, ...] | None:
        """A picture (H, W, 3) uint8 of every row, or a list of them; None without a render mode.

        Raises:
            gymnasium.error.ResetNeeded: no episode has begun.
        """
        self._require_open()
        if self.render_mode is None:
            return None
        if not self._begun:
            raise ResetNeeded("there is nothing to render before reset()")
        return tuple(self.render_row(row) for row in range(self.num_envs))

    def render_row(self, row: int) -> Any:
        """What `render` gives for a row: a picture, or the list of them."""
        if self.render_mode == "rgb_array_list":
            frames, self._frames[row] = self._frames[row], []
            return frames
        return self._renderer.draw(self._content(row))

    def _content(self, row: int) -> FrameContent:
        history = self._histories[row]
        accuracy = history.curve("validation_accuracy")[-1]
        name = self.training.task_name(row)
        title = f"{row}: {name and name + ', '}mini-batch {history.curve('batch')[-1]:,.0f}, "
        title += f"{'' if name else 'validation '}accuracy {accuracy:.1%}"
        filters = filter_pictures(*self.training.network_of(row))
        budget, task = self.training.budget_of(row), self.training.task_lines(row)
        return FrameContent(filters, history, title=title, budget=budget, task=task)

    def _write_down(self, info: Info, mask: Flags, actions: Tensor | None = None) -> None:
        """Where the rows of a mask stand, for the pictures; without actions, at the beginning of an episode."""
        if self.render_mode is None:
            return
        values = {name: value.tolist() for name, value in info.items()}
        classes = class_columns(self.training)
        played = None if actions is None else actions.tolist()
        for row in np.flatnonzero(mask).tolist():
            now = {name: value[row] for name, value in values.items()}
            mine = None if classes is None else classes[row]
            if played is None:
                self._histories[row].start(now)
                self._frames[row] = []
            else:
                self._histories[row].add(now, played[row], mine)
            if self.render_mode == "rgb_array_list":
                self._frames[row].append(self._renderer.draw(self._content(row)))

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
        """Actions of an episode that spends its budget, or `max_episode_steps` where that is less."""
        length = self.training.parts.episode_length
        return min(length, self.max_episode_steps or length)

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of every row, as Gymnasium's `SyncVectorEnv.call`; what is no method is returned.

        Args:
            name: of a method or an attribute of `qan_gym.inspection.Row`, or of an attribute that `set_attr` has set.
            *args: of the method.
            **kwargs: of the method.

        Raises:
            AttributeError: rows have nothing of this name.
        """
        self._require_open()
        if name in self._attributes:
            return tuple(self._attributes[name])
        found = [getattr(Row(self, row), name) for row in range(self.num_envs)]
        return tuple(one(*args, **kwargs) if callable(one) else one for one in found)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """`call`, without arguments."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of every row, which `get_attr` will return; nothing that is played depends on it.

        Args:
            name: of none that rows have: what is played was settled when the environment was made.
            values: a list or tuple of N, or one for all.

        Raises:
            AttributeError: rows have an attribute of this name.
            ValueError: there is not one value per row.
        """
        self._require_open()
        if hasattr(Row(self, 0), name):
            raise AttributeError(f"{name} cannot be set: the rows are one training; give it to gym.make_vec")
        each = list(values) if isinstance(values, list | tuple) else [values] * self.num_envs
        if len(each) != self.num_envs:
            raise ValueError(f"there must be {self.num_envs} values of {name}, one per row, not {len(each)}")
        self._attributes[name] = each

    def close_extras(self, **kwargs: Any) -> None:
        """Give the memory of the networks back."""
        self.training.close()
        del self.training, self._renderer  # which holds the network and its layers' buffers too

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy: how it was made and where it stands, not the data set.

        Raises:
            gymnasium.error.ClosedEnvironmentError: it is closed.
        """
        self._require_open()
        kept = {name: self.__dict__.get(name) for name in _KEPT}
        run = {name: value.cpu().numpy().copy() for name, value in self.training.run.saved().items()}
        histories = [history.rows().copy() for history in self._histories]
        tasks = self.training.records()
        return {"arguments": self._arguments, "run": run, "tasks": tasks, "histories": histories, "kept": kept}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self.__init__(**saved["arguments"])  # type: ignore[misc]
        self.training.run.seed[:] = saved["run"]["seed"]
        self.training.adopt(saved["tasks"])
        self.training.run.restore({name: torch.from_numpy(array) for name, array in saved["run"].items()})
        self._histories = [History(self.training, rows) for rows in saved["histories"]]
        self.__dict__.update(saved["kept"])

    def _require_open(self) -> None:
        if self.closed:
            raise ClosedEnvironmentError("the environment is closed: make a new one")


def _count(name: str, value: Any) -> int:
    """An argument that counts something.

    Raises:
        ValueError: it is no integer of at least 1.
    """
    rule, count = integer(at_least=1), plain(value)
    if not rule.allows(count, None):
        raise ValueError(f"{name} must be {rule.wanted(None)}, not {shown(value)}")
    return int(count)


def _autoreset_mode(mode: Any) -> AutoresetMode:
    """A mode by its name.

    Raises:
        ValueError: there is no such mode.
    """
    names = [one.value for one in AutoresetMode]
    if not isinstance(mode, AutoresetMode) and not (isinstance(mode, str) and mode in names):
        raise ValueError(f"autoreset_mode must be one of {', '.join(names)}, not {shown(mode)}")
    return AutoresetMode(mode)


@cache
def _kind_out(xp: Any, kind: Any) -> Any:
    """The dtype of an info of some dtype, as the single environment's Python numbers have it."""
    return xp.float64 if xp.isdtype(kind, "real floating") else kind
