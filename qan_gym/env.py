"""The Gymnasium environments: the core with N = 1, and nothing of the game besides."""

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from qan_gym.actions import single_action
from qan_gym.core.factory import training_of
from qan_gym.core.observation import filter_pictures
from qan_gym.core.training import Info
from qan_gym.info import scalars
from qan_gym.inspection import Inspection
from qan_gym.rendering.baseline_run import BaselineRun
from qan_gym.rendering.frames import FPS, FrameContent, FrameRenderer, require_matplotlib
from qan_gym.rendering.history import History, class_columns
from qan_gym.rendering.window import Window
from qan_gym.state import State, apply_state, take_state
from qan_gym.tasks import device_name
from qan_gym.utils.arrays import to_numpy
from qan_gym.utils.random_streams import next_seeds
from qan_gym.utils.validation import plain, seed_of, shown

RESET_OPTIONS = {"sampler": ("game", "shuffled")}


class RenderModes(list[str]):
    """Names of render modes; asking for something else than text is an error that says so.

    `gym.make` looks for a mode in this list, and calls methods of text on what is not there.
    """

    def __contains__(self, mode: object) -> bool:
        """Whether there is such a mode."""
        if not isinstance(mode, str):
            raise ValueError(f"render_mode must be None or one of {', '.join(self)}, not {shown(mode)}")
        return super().__contains__(mode)


class QanEnv(Inspection, gym.Env[NDArray[np.float32], Any]):
    """One training run, as a Gymnasium environment; the games' own pages are `LearningRateEnv` and `MinibatchEnv`."""

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium's)
        "render_modes": RenderModes(["rgb_array", "human", "ansi"]),
        "render_fps": FPS,
    }

    def __init__(
        self,
        env_id: str,
        *,
        device: str = "cpu",
        engine: str = "auto",
        render_mode: str | None = None,
        baseline_run: bool = False,
        **overrides: Any,
    ) -> None:
        """See the class; `env_id` is set by the registration.

        Raises:
            ValueError: an argument is unknown or out of its range.
            ImportError: matplotlib is missing, and is to draw.
        """
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode must be None or one of {self.metadata['render_modes']}, not {render_mode!r}")
        baseline_run = plain(baseline_run)
        if not isinstance(baseline_run, bool):
            raise ValueError(f"baseline_run must be True or False, not {shown(baseline_run)}")
        device = device_name(device)
        if render_mode in ("rgb_array", "human"):
            require_matplotlib()
        elif baseline_run:
            raise ValueError("baseline_run=True is drawn in frames: it needs render_mode='rgb_array' or 'human'")
        self._arguments = {
            "env_id": env_id,
            "device": device,
            "engine": engine,
            "render_mode": render_mode,
            "baseline_run": baseline_run,
            **overrides,
        }
        self.render_mode = render_mode
        self.training = training_of(env_id, overrides, 1, device, engine)
        self.config = self.training.config
        self._window = Window(env_id, self.metadata["render_fps"]) if render_mode == "human" else None
        self._spec: EnvSpec | None = None
        parts = self.training.parts
        self.screen_shape = parts.observer.shape
        self.observation_space: spaces.Space[Any] = parts.observer.space
        self.action_space = parts.action_space
        self._phase = "new"  # then "playing", then "over"
        self._history = History(self.training)
        self._renderer = FrameRenderer(parts)
        self._baseline: BaselineRun | None = None
        self._values: NDArray[np.float64] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: of this and the following episodes; None: go on in the sequence that the last seed began.
            options: `{"sampler": "shuffled"}` plays the mini-batch game's data as shuffled SGD does, whatever the
                actions; `{"sampler": "game"}`, or nothing, as the game is.

        Raises:
            ValueError: the options are no dict, one of them or its value is unknown, or the seed is a bool.
            gymnasium.error.Error: the seed is no integer of at least 0.
        """
        shuffled = wants_shuffled(options)
        super().reset(seed=seed_of(seed))
        screen, info = self.training.reset(np.ones(1, np.bool_), next_seeds([self.np_random]), shuffled)
        self._phase = "playing"
        first = self._info(info)
        self._values = None
        if self.render_mode is not None:
            self._history.start(first)
            self._begin_baseline(True)
            self._show()
        return to_numpy(screen)[0], first

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Play one action, as Gymnasium defines it.

        Raises:
            gymnasium.error.ResetNeeded: the episode has not begun or is over.
            ValueError: the action is not in the action space.
        """
        if self._phase != "playing":
            raise ResetNeeded("the episode is over or has not begun: call reset() first")
        done = self.training.step(single_action(self.action_space, action))
        info = self._info(done.info)
        terminated, truncated = bool(done.terminated[0]), bool(done.truncated[0])
        if terminated or truncated:
            self._phase = "over"
        if self.render_mode is not None:
            classes = class_columns(self.training)
            self._history.add(info, action, None if classes is None else classes[0])
            self._show()
        return to_numpy(done.observation)[0], float(done.reward[0]), terminated, truncated, info

    def _info(self, info: Info) -> dict[str, Any]:
        task = self.training.task_info()
        return scalars(info) | ({"task": scalars(task)} if task else {})

    @property
    def spec(self) -> EnvSpec | None:
        """What `gym.make` made it from; `max_episode_steps` is `episode_length`."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        self._spec = None if spec is None else replace(spec, max_episode_steps=self.episode_length)

    # --- rendering --------------------------------------------------------------------------------------------------

    def render(self) -> Any:
        """The screen: an image (H, W, 3) uint8, or a line of text; None without a render mode, and in a window.

        Raises:
            gymnasium.error.ResetNeeded: no episode has begun.
        """
        if self.render_mode is None:
            gym.logger.warn("render() without a render_mode: give one to gym.make, as render_mode='rgb_array'")
            return None
        if self._phase == "new":
            raise ResetNeeded("there is nothing to render before reset()")
        if self.render_mode == "ansi":
            return "\n".join(filter(None, ("; ".join(self.training.task_lines(0)), self._history.line())))
        if self._window is not None:
            if self._window.has_display:
                self._window.show(self._frame())
            return None
        return self._frame()

    def show_values(self, values: Any) -> None:
        """Draw what an agent expects of its actions, from now on and until it says otherwise or the episode ends.

        Args:
            values: (A,) finite, one per action, as the Q-values of the observation that it decides on.

        Raises:
            ValueError: there is not one finite number per action, or the actions are no choice of some.
        """
        if not isinstance(self.action_space, spaces.Discrete):
            raise ValueError(f"values are those of single actions, and the actions are {self.action_space}")
        shown = np.array(values, np.float64)  # a copy
        if shown.shape != (self.action_space.n,) or not np.isfinite(shown).all():
            raise ValueError(f"values must be {self.action_space.n} finite numbers, one per action, not {values!r}")
        self._values = shown

    def close(self) -> None:
        """Close the window, where there is one, and give the baseline_run's memory back."""
        self._begin_baseline(False)
        if self._window is not None:
            self._window.close()

    def _begin_baseline(self, wanted: bool) -> None:
        """The baseline run of the episode that stands now, where one is to be drawn; or none."""
        if self._baseline is not None:
            self._baseline.close()
        self._baseline = BaselineRun(self.training) if wanted and self._arguments["baseline_run"] else None

    def _show(self) -> None:
        """In a window every step is shown, as far as it keeps up; the end always."""
        if self._window is not None and (self._window.due() or (self._window.has_display and self._phase == "over")):
            self._window.show(self._frame())

    def _frame(self) -> NDArray[np.uint8]:
        batch = int(self._history.curve("batch")[-1])
        accuracy = self._history.curve("validation_accuracy")[-1]
        budget, name = self.training.budget_of(0), self.training.task_name(0)
        title = f"{self._arguments['env_id']}: {name and name + ', '}mini-batch {batch:,} of {budget:,}, "
        return self._renderer.draw(
            FrameContent(
                filters=filter_pictures(*self.training.network_of(0)),
                history=self._history,
                baseline=self._baseline.until(batch) if self._baseline is not None else None,
                values=self._values,
                title=title + f"validation accuracy {accuracy:.1%}",
                budget=budget,
                task=self.training.task_lines(0),
            )
        )

    # --- save, restore, fork ----------------------------------------------------------------------------------------

    def get_state(self) -> State:
        """Everything that the future depends on: `State.save` writes it to one file."""
        return take_state(self.training, self._history, self._phase, self.np_random, self.np_random_seed)

    def set_state(self, state: State) -> None:
        """Continue from a state of the same game, bit for bit on CPU; nothing changes where something is wrong.

        Raises:
            ValueError: the state is of another game or other data, or something in it is missing, damaged or out of its
                range; the message says what.
        """
        found = apply_state(self.training, state, keeps_history=self.render_mode is not None)
        self._np_random, self._np_random_seed = found.generator, found.seed
        self._phase, self._history, self._values = found.phase, found.history, None
        if self.render_mode is not None and self._phase != "new" and len(self._history) == 0:
            self._history.start(scalars(self.training.info()))  # saved where nothing was rendered
        # An episode that is over has handed its weights on, with reference="previous".
        self._begin_baseline(
            self._phase == "playing" or (self._phase == "over" and self.config.reference != "previous")
        )

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy: how it was made and where it stands, not the data set."""
        own_spaces = (self.observation_space, self.action_space)  # with their generators
        return {"arguments": self._arguments, "spec": self.spec, "spaces": own_spaces, "state": self.get_state()}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self.__init__(**saved["arguments"])  # type: ignore[misc]
        self.spec = saved["spec"]
        self.observation_space, self.action_space = saved["spaces"]
        self.set_state(saved["state"])


class LearningRateEnv(QanEnv):
    """Control the learning rate of a CNN in training.

    ## Description
    A CNN is trained by SGD. Before every action's mini-batches the agent raises, lowers or keeps the learning rate. An
    episode is one training run. Source: Fu et al. 2016, arXiv:1606.01467.

    `QanLR-MNIST-v0` trains on 55,000 images for 20 epochs of batches of 10, one batch per action (110,000 actions);
    `QanLR-MNIST5k-v1` on 4,000 bundled images for 5 epochs, 10 batches per action (200 actions).

    `QanLR-CIFAR10-v0` trains a deep network with batch norm on 45,000 images for 5 epochs of batches of 128 (1,755
    actions), with momentum 0.9, weight decay 5e-4, random flips and crops. `network` is `"nin"` (default, 1.0 million
    weights), `"wrn-40-4"` (8.9 million) or, for CPUs, `"resnet-8"` (78 thousand). The momentum buffer and the running
    statistics of batch norm belong to the run: actions leave them as they are, a reset begins them anew.

    ## Action Space
    `Discrete(3)`: 0 raise, 1 lower, 2 keep. Raising and lowering change the learning rate by 0.005
    (`action_scale="additive"`) or by a factor of 1.25 (`"multiplicative"`). With `continuous=True`, `Box(-1, 1, (1,))`:
    action a multiplies the learning rate by 2**a; with `action_scale="absolute"` too, it is the place of the learning
    rate between the ends of its range, in the logarithm. A `schedule` ("linear", "cosine", "cooldown") multiplies what
    the actions made of the learning rate by a factor that falls from 1 to 0; that of "one-cycle" rises from 0.17 to 3.4
    and falls to 0. What the actions make of it stays in [0.005, 1.0] and starts at 0.05; for CIFAR-10, it changes by
    0.01, stays in [0.01, 1.0] and starts at 0.1. `optimizer="adamw"` brings its own rates: a start at 0.001, changes of
    0.0001, a range of [0.0001, 0.02].

    ## Observation Space
    `Box(-10, 10, (825,), float32)`, a screen of 33 rows and 25 columns, row by row
    (`obs.reshape(env.unwrapped.screen_shape)`): one row per filter of the first convolution, as its weights stand after
    the action, then the score line: ln(learning rate), share of the budget used, ln(smoothed loss), its change since
    the last action, the last action (-1 before the first), with `validate_every` ln(validation loss) and its change,
    zeros. With `observation="filters"` the score line is left out: 800 values; `observation="statistics"` are 23
    numbers that can be measured of any training, without the screen. For CIFAR-10 the screen has 193 rows of 192: the
    weights of the last convolution (of `nin`, a row per filter; of the others, the first 36,864 of them, filter after
    filter), then the score line. Values are clipped to the bounds. The smoothed loss is the exponential running mean of
    the mini-batch losses over about 500 images, begun at the validation loss of the initial weights. For a history, use
    `gymnasium.wrappers.FrameStackObservation`.

    ## Rewards
    - `reward="log-loss"` (default): the drop of ln(smoothed loss); at the last step, the drop to ln(validation loss).
      The return is ln(initial loss / final validation loss).
    - `"validation-loss"`: the drop of ln(validation loss) as it is measured; the same return.
    - `"inverse-loss"` (the paper's): 1 / |loss - 1e-4|, at most 1e4.
    - `"accuracy"`: validation accuracy at the end, 0 before.

    Divergence pays -10 instead. The terms stand in `info` as `reward_...`.

    ## Starting State
    Weights and biases uniform in +-1/sqrt(fan-in); for CIFAR-10 convolutions normal with variance 2/fan-in, batch norm
    1 and 0, the linear layer's bias 0. The seed of an episode decides them, the order of the data, and how images are
    flipped and cropped.

    ## Episode End
    Truncation: the budget is spent. Termination: the smoothed loss has reached `target_loss`
    (`info["is_success"]`), the validation loss has not been lower for `early_stopping` epochs
    (`info["early_stopped"]`), or the loss or a weight is not finite (`info["diverged"]`).

    ## Information
    The same names at the reset and at every step: `learning_rate`, `loss` (mean over the action's batches),
    `smoothed_loss`, `epoch` (done), `batch` (done), `diverged`, `early_stopped`, with `target_loss` also `is_success`,
    the reward's terms, `validation_loss` and `validation_accuracy` (measured after the action in which an epoch or the
    episode ends, or every `validate_every` mini-batches), `test_loss` and `test_accuracy` (NaN before the end of the
    episode). Numbers are np.float64 (a float), int and bool.

    ## Arguments
    The fields of `qan_gym.config.TaskConfig`, among them `dataset` (a registered name or the path of an `.npz`),
    `preprocess` (`"normalise"`, `"whiten"`), `augment` (None, `"zero"`, `"reflect"`), `network`, `optimizer` (`"sgd"`,
    `"adamw"`), `momentum`, `nesterov`, `weight_decay`, `loss_scale`, `batch_size`, `epochs`, `batches_per_action` (a
    rest of the budget that fills no action is dropped), `continuous`, `action_scale`, `schedule`, `validate_every`,
    `observation`, `reward`, `meta_momentum` (the pull c, on all weights, for CIFAR-10 all convolutions;
    `"filter-regression"`; None), `reference` (`"pretrained"`, `"previous"`, a path, None), `distillation`,
    `target_loss`, `early_stopping`; and `device`, `engine` (`"auto"`: the kernels in C where they can train the task,
    else PyTorch; `"native"`; `"torch"`), `render_mode` (`"rgb_array"`: pictures of 720 x 1080 pixels; `"human"`: the
    same in a window, as far as it keeps up; `"ansi"`: a line of text), and `baseline_run=True`, which draws behind the
    loss that of the same seed with nobody acting: a training of its own, as long again. A wrong one raises ValueError.

    The `"pretrained"` reference of CIFAR-10 does not ship: it is trained when the environment is first made, for as
    long as an episode takes, and cached (`qan reference` does it beforehand). `meta_momentum=None` needs none.

    ## Version History
    - v0: initial version.
    """


class MinibatchEnv(QanEnv):
    """Choose the classes of the next mini-batch of a CNN in training.

    ## Description
    A CNN is trained on MNIST by SGD at a constant learning rate of 0.05. Every action chooses a class, and the last
    ten actions decide what the next mini-batch of B holds (the roulette): floor(B / 10) images of the class of each of
    the 9 older ones, the rest of the class of the newest. At first all ten are class 0. Each class is drawn in random
    order without replacement within an epoch; when it is exhausted, its share is filled from what is left of the other
    classes in class order. An episode is one training run. Source: Fu et al. 2016, arXiv:1606.01467.

    `QanMinibatch-MNIST-v0` trains on MNIST's first 20,000 images for 40 epochs of batches of 128 (6,240 actions);
    `QanMinibatch-MNIST5k-v1` on 4,000 bundled images for 5 epochs (155 actions).

    ## Action Space
    `Discrete(10)`: the class to add to the roulette.

    ## Observation Space, Rewards, Starting State, Episode End, Information
    As `LearningRateEnv`. `reset(options={"sampler": "shuffled"})` plays an episode of shuffled SGD, in which actions
    do nothing: the baseline of this game.

    ## Arguments
    As `LearningRateEnv`. With `replacement=True` a class that is exhausted begins anew, in a new order, and the ten
    actions of the roulette are shares of the mini-batches, at first all classes alike; with `continuous=True` too,
    actions are `Box(-1, 1, (10,))` and the shares softmax(3 action). `imbalance`, `label_noise` of each class and
    `data_seed` make the training images long-tailed and noisy. `meta_momentum` is `"filter-regression"` by default: the
    pull of three gradient steps of rate 0.01 on the mean squared distance of the first convolution's filters to the
    reference.

    ## Version History
    - v0: initial version.
    """


def wants_shuffled(options: Any) -> bool:
    """Whether the options of a reset ask for shuffled SGD.

    Raises:
        ValueError: they are neither a dict nor None, or an option or its value is unknown.
    """
    if options is None:
        return False
    if not isinstance(options, dict):
        raise ValueError(f"the options of a reset must be a dict or None, not {shown(options)}")
    for name, value in options.items():
        if name not in RESET_OPTIONS or not isinstance(value, str) or value not in RESET_OPTIONS[name]:
            raise ValueError(f"unknown reset option {shown(name)}: {shown(value)}; there are {RESET_OPTIONS}")
    return options.get("sampler") == "shuffled"
