"""The Gymnasium environments: the core with N = 1, and nothing of the game besides."""

import json
from dataclasses import asdict
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from qan_gym.actions import single_action
from qan_gym.core.factory import make_training
from qan_gym.core.observation import filter_pictures
from qan_gym.core.training import Info
from qan_gym.data.datasets import SPLITS
from qan_gym.rendering.baseline_run import BaselineRun
from qan_gym.rendering.frames import FPS, FrameContent, FrameRenderer, require_matplotlib
from qan_gym.rendering.history import History, class_shares
from qan_gym.rendering.window import Window
from qan_gym.state import State
from qan_gym.tasks import make_task_config
from qan_gym.utils.arrays import to_numpy
from qan_gym.utils.random_streams import next_seeds

HISTORY = "history"  # of the episode for rendering, beside the tensors of the state
RESET_OPTIONS = {"sampler": ("game", "shuffled")}


class QanEnv(gym.Env[NDArray[np.float32], Any]):
    """One training run, as a Gymnasium environment; the games' own pages are `LearningRateEnv` and `MinibatchEnv`."""

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium's)
        "render_modes": ["rgb_array", "human", "ansi"],
        "render_fps": FPS,
    }

    def __init__(
        self,
        task: str,
        *,
        device: str = "cpu",
        engine: str = "auto",
        render_mode: str | None = None,
        baseline_run: bool = False,
        **overrides: Any,
    ) -> None:
        """See the class; `task` is set by the registration.

        Raises:
            ValueError: an argument is unknown or out of its range, or there is no display for "human".
            ImportError: matplotlib is missing, and is to draw.
        """
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode must be one of {self.metadata['render_modes']}, not {render_mode!r}")
        if not isinstance(baseline_run, bool):
            raise ValueError(f"baseline_run must be True or False, not {baseline_run!r}")
        if render_mode in ("rgb_array", "human"):
            require_matplotlib()
        elif baseline_run:
            raise ValueError("baseline_run=True is drawn in frames: it needs render_mode='rgb_array' or 'human'")
        self._arguments = {
            "task": task,
            "device": device,
            "engine": engine,
            "render_mode": render_mode,
            "baseline_run": baseline_run,
            **overrides,
        }
        self.config = make_task_config(task, overrides)
        self.render_mode = render_mode
        self._window = Window(task, self.metadata["render_fps"]) if render_mode == "human" else None
        self.training = make_training(self.config, num_runs=1, device=device, engine=engine)
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
            ValueError: an option or its value is unknown.
        """
        shuffled = wants_shuffled(options or {})
        super().reset(seed=seed)
        screen, info = self.training.reset(np.ones(1, np.bool_), next_seeds([self.np_random]), shuffled)
        self._phase = "playing"
        scalars = _scalars(info)
        self._values = None
        if self.render_mode is not None:
            self._history.start(scalars)
            self._begin_baseline(True)
            self._show()
        return to_numpy(screen)[0], scalars

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Play one action, as Gymnasium defines it.

        Raises:
            gymnasium.error.ResetNeeded: the episode has not begun or is over.
            ValueError: the action is not in the action space.
        """
        if self._phase != "playing":
            raise ResetNeeded("the episode is over or has not begun: call reset() first")
        done = self.training.step(single_action(self.action_space, action))
        info = _scalars(done.info) | _scalars(done.test)
        terminated, truncated = bool(done.terminated[0]), bool(done.truncated[0])
        if terminated or truncated:
            self._phase = "over"
        if self.render_mode is not None:
            shares = class_shares(self.training)
            self._history.add(info, action, None if shares is None else shares[0])
            self._show()
        return to_numpy(done.observation)[0], float(done.reward[0]), terminated, truncated, info

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
            return self._history.line()
        if self._window is not None:
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
        if self._window is not None and (self._window.due() or self._phase == "over"):
            self._window.show(self._frame())

    def _frame(self) -> NDArray[np.uint8]:
        batch = int(self._history.curve("batch")[-1])
        accuracy = self._history.curve("validation_accuracy")[-1]
        title = f"{self._arguments['task']}: mini-batch {batch:,} of {self.training.parts.budget:,}, "
        return self._renderer.draw(
            FrameContent(
                filters=filter_pictures(self.training.network, self.training.run.params, 0),
                history=self._history,
                baseline=self._baseline.until(batch) if self._baseline is not None else None,
                values=self._values,
                title=title + f"validation accuracy {accuracy:.1%}",
            )
        )

    # --- inspection -------------------------------------------------------------------------------------------------

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """The network's parameters by name, float32, copies."""
        return {name: value[0].cpu().numpy().copy() for name, value in self.training.run.params.items()}

    @property
    def episode_length(self) -> int:
        """Actions of an episode that spends its budget."""
        return self.training.parts.episode_length

    @property
    def batch_indices(self) -> NDArray[np.int64]:
        """Indices into the training split of the last action's images, (batches_per_action, batch_size), a copy."""
        return self.training.run.batch_indices[0].cpu().numpy().copy()

    def split(self, name: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Images as the network sees them, (n, C, H, W) float32, and labels, (n,) int64, copies.

        Args:
            name: "train", "validation" or "test".

        Raises:
            ValueError: there is no such split.
        """
        if name not in SPLITS:
            raise ValueError(f"there is no split {name!r}; there are {', '.join(SPLITS)}")
        images, labels = self.training.data.split(name)
        return images.cpu().numpy(), labels.cpu().numpy().copy()

    @property
    def reference(self) -> dict[str, NDArray[np.float32]] | None:
        """The reference weights, like `weights()`; None where there are none (yet)."""
        if self.training.reference is None or not self.training.run.has_reference[0]:
            return None
        return {name: value[0].cpu().numpy().copy() for name, value in self.training.reference.items()}

    # --- save, restore, fork ----------------------------------------------------------------------------------------

    def get_state(self) -> State:
        """Everything that the future depends on: `State.save` writes it to one file."""
        arrays = {name: value.cpu().numpy().copy() for name, value in self.training.run.saved().items()}
        metadata = {
            "config": self._plain_config(),
            "fingerprint": self.training.parts.fingerprint,
            "phase": self._phase,
            "np_random": self.np_random.bit_generator.state,
            "np_random_seed": self.np_random_seed,
        }
        return State(arrays | {HISTORY: self._history.rows().copy()}, metadata)

    def set_state(self, state: State) -> None:
        """Continue from a state of the same game, bit for bit on CPU.

        Raises:
            ValueError: the state is of another game or other data; the message says what differs.
        """
        state.require("config", self._plain_config())
        state.require("fingerprint", self.training.parts.fingerprint)
        if HISTORY not in state.arrays:
            raise ValueError(f"the state has other tensors: {HISTORY} is missing")
        # What is not rendered keeps no history: it would fall behind.
        history = History(self.training, state.arrays[HISTORY] if self.render_mode is not None else None)
        tensors = {name: torch.from_numpy(array) for name, array in state.arrays.items() if name != HISTORY}
        self.training.run.restore(tensors)
        generator = np.random.Generator(np.random.PCG64())
        generator.bit_generator.state = state.metadata["np_random"]
        self._np_random, self._np_random_seed = generator, state.metadata["np_random_seed"]
        self._phase = state.metadata["phase"]
        self._history, self._values = history, None
        if self.render_mode is not None and self._phase != "new" and len(history) == 0:
            history.start(_scalars(self.training.info()))  # saved where nothing was rendered
        # An episode that is over has handed its weights on, with reference="previous".
        self._begin_baseline(
            self._phase == "playing" or (self._phase == "over" and self.config.reference != "previous")
        )

    def _plain_config(self) -> dict[str, Any]:
        """The configuration as it comes back from a file of JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self.config)))
        return plain

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy: how it was made and where it stands, not the data set."""
        return {"arguments": self._arguments, "spec": self.spec, "state": self.get_state()}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self.__init__(**saved["arguments"])  # type: ignore[misc]
        self.spec = saved["spec"]
        self.set_state(saved["state"])


class LearningRateEnv(QanEnv):
    """Control the learning rate of a CNN in training.

    ## Description
    A CNN is trained by SGD. Before every action's mini-batches the agent raises, lowers or keeps the learning rate. An
    episode is one training run. Source: Fu et al. 2016, arXiv:1606.01467.

    `QanLR-MNIST-v0` trains on 55,000 images for 20 epochs of batches of 10, one batch per action (110,000 actions);
    `QanLR-MNIST5k-v0` on 4,000 bundled images for 5 epochs, 10 batches per action (200 actions).

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
    At every step `learning_rate`, `loss` (mean over the action's batches), `smoothed_loss`, `epoch` (done), `batch`
    (done), `diverged`, `is_success`, `early_stopped`, the reward's terms, `validation_loss` and `validation_accuracy`
    (measured after the action in which an epoch or the episode ends, or every `validate_every` mini-batches); at the
    end of the episode `test_loss`, `test_accuracy`.

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
    `QanMinibatch-MNIST5k-v0` on 4,000 bundled images for 5 epochs (155 actions).

    ## Action Space
    `Discrete(10)`: the class to add to the roulette.

    ## Observation Space, Rewards, Starting State, Episode End, Information
    As `LearningRateEnv`. `reset(options={"sampler": "shuffled"})` plays an episode of shuffled SGD, in which actions
    do nothing: the baseline of this game.

    ## Arguments
    As `LearningRateEnv`, without `continuous`. `meta_momentum` is `"filter-regression"` by default: the pull of three
    gradient steps of rate 0.01 on the mean squared distance of the first convolution's filters to the reference.

    ## Version History
    - v0: initial version.
    """


def wants_shuffled(options: dict[str, Any]) -> bool:
    """Whether the options of a reset ask for shuffled SGD.

    Raises:
        ValueError: an option or its value is unknown.
    """
    for name, value in options.items():
        if name not in RESET_OPTIONS or value not in RESET_OPTIONS[name]:
            raise ValueError(f"unknown reset option {name}={value!r}; there are {RESET_OPTIONS}")
    return options.get("sampler") == "shuffled"


def _scalars(info: Info) -> dict[str, Any]:
    return {name: value.tolist()[0] for name, value in info.items()}
