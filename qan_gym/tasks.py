"""What defines a game: one frozen record, and the record of each registered id."""

from dataclasses import dataclass, fields, replace
from typing import Any

FILTER_REGRESSION = "filter-regression"
SCHEDULES = ("constant", "linear", "cosine", "cooldown", "one-cycle")


@dataclass(frozen=True)
class TaskConfig:
    """Everything that defines a game. Each field is a keyword argument of every environment id.

    Raises:
        ValueError: a value is out of its range; the message names the field, the value and the range.
    """

    game: str = "lr"  # what an action controls: "lr" (learning rate) or "minibatch" (classes of the batch)

    # The training run.
    dataset: str = "mnist"  # a registered name, or the path of an .npz file
    train_size: int | None = None  # only the first so many images of the training split; None: all of them
    preprocess: str = "normalise"  # "normalise" (each channel) or "whiten" (global contrast and ZCA, the original's)
    augment: str | None = None  # "zero" or "reflect": random flip, and random crop after such a padding by 4 pixels
    network: str = "mnist-cnn"  # a registered name
    optimizer: str = "sgd"  # a registered name; "adamw" brings its own defaults, see OPTIMIZER_DEFAULTS
    learning_rate: float = 0.05  # at the start of an episode
    momentum: float = 0.0  # of SGD; of AdamW, beta1
    nesterov: bool = False  # SGD only
    weight_decay: float = 0.0  # SGD: added to the gradient; AdamW: decoupled from it
    batch_size: int = 10  # images
    epochs: int = 20  # the budget
    precision: str = "float32"  # of the network's arithmetic: "float32", "tf32" (CUDA only) or "bf16"

    # The actions.
    batches_per_action: int = 1  # mini-batches
    continuous: bool = False  # learning-rate game only: Box(-1, 1) instead of raise, lower, keep
    action_scale: str = "additive"  # of raise and lower: "additive" (the paper) or "multiplicative"; "absolute" where
    # continuous: the action is the learning rate itself, -1 the least, 1 the most, in the logarithm
    schedule: str = "constant"  # what the actions change the level of: "linear", "cosine", "cooldown", "one-cycle"
    learning_rate_step: float = 0.005  # of one additive action
    learning_rate_min: float = 0.005  # the range that actions cannot leave
    learning_rate_max: float = 1.0  # likewise

    # What the agent is shown and paid for.
    observation: str = "screen"  # "screen" (filters and score line) or "filters" (the paper)
    reward: str = "log-loss"  # a registered name
    target_loss: float | None = None  # smoothed training loss at which the episode is won; None: no such end
    validate_every: int | None = None  # mini-batches between which the validation loss is measured; None: an epoch
    early_stopping: int | None = None  # epochs without a lower validation loss that end the episode; None: no such end

    # The help of a reference network.
    meta_momentum: float | str | None = 0.001  # pull c on the network's weights, "filter-regression", or None
    pull_epochs: int | None = 6  # the pull acts during so many epochs (the paper: 0-5); None: for 1/c mini-batches
    reference: str | None = "pretrained"  # "pretrained", "previous", the path of a .safetensors file, or None
    distillation: float = 0.0  # weight of the soft-target term

    def __post_init__(self) -> None:
        for name in ("dataset", "network", "optimizer", "reward"):
            _check(self, name, isinstance(getattr(self, name), str), "text")
        _check(self, "reference", self.reference is None or isinstance(self.reference, str), "text or None")
        _require(self, "game", ("lr", "minibatch"))
        _require(self, "action_scale", ("additive", "multiplicative", "absolute"))
        _require(self, "schedule", SCHEDULES)
        _require(self, "observation", ("screen", "filters"))
        _require(self, "precision", ("float32", "tf32", "bf16"))
        _require(self, "preprocess", ("normalise", "whiten"))
        _require(self, "augment", (None, "zero", "reflect"))
        for name in ("batch_size", "epochs", "batches_per_action"):
            _check(self, name, _is_int(getattr(self, name)) and getattr(self, name) >= 1, "an integer of at least 1")
        for name, least in (("pull_epochs", 0), ("train_size", 1), ("early_stopping", 1), ("validate_every", 1)):
            value = getattr(self, name)
            valid = value is None or (_is_int(value) and value >= least)
            _check(self, name, valid, f"None or an integer of at least {least}")
        _check(self, "momentum", _is_number(self.momentum) and 0 <= self.momentum < 1, "a number in [0, 1)")
        decay = self.weight_decay
        _check(self, "weight_decay", _is_number(decay) and 0 <= decay < float("inf"), "a number of at least 0")
        low, high = self.learning_rate_min, self.learning_rate_max
        _check(self, "learning_rate_min", _is_number(low) and low > 0, "a number above 0")
        _check(self, "learning_rate_max", _is_number(high) and high >= low, f"a number of at least {low}")
        rate = self.learning_rate
        _check(self, "learning_rate", _is_number(rate) and low <= rate <= high, f"a number in [{low}, {high}]")
        step = self.learning_rate_step
        _check(self, "learning_rate_step", _is_number(step) and step > 0, "a number above 0")
        goal = self.target_loss
        _check(self, "target_loss", goal is None or (_is_number(goal) and goal > 0), "None or a number above 0")
        weight = self.distillation
        _check(self, "distillation", _is_number(weight) and weight >= 0, "a number of at least 0")
        pull = self.meta_momentum
        _check(
            self,
            "meta_momentum",
            pull is None or pull == FILTER_REGRESSION or (_is_number(pull) and 0 <= float(pull) <= 1),
            f"None, a number in [0, 1] or {FILTER_REGRESSION!r}",
        )
        for name in ("continuous", "nesterov"):
            _check(self, name, isinstance(getattr(self, name), bool), "True or False")
        if self.continuous and self.game != "lr":
            raise ValueError("continuous=True needs the learning-rate game; the mini-batch game chooses among classes")
        if self.action_scale == "absolute" and not self.continuous:
            raise ValueError("action_scale='absolute' needs continuous=True: the action is the learning rate itself")
        if self.distillation > 0 and self.reference is None:
            raise ValueError("distillation needs soft targets: give a reference, or leave distillation at 0")


class UnexpectedKeywordError(TypeError, ValueError):
    """A keyword argument that no game has: a ValueError, as all that is wrong here, and what Python raises for it.

    Libraries offer an environment arguments that it may not have, and go on without them where they are told in
    Python's words: TorchRL's `GymEnv` does so with `frameskip`.
    """


def make_config(task: str, overrides: dict[str, Any]) -> TaskConfig:
    """The record of a registered id with some fields replaced.

    Raises:
        ValueError: the id, or the value of an override, is not one of those there are.
        UnexpectedKeywordError: there is no field of the name of an override.
    """
    if task not in PRESETS:
        raise ValueError(f"unknown task {task!r}; there are {', '.join(PRESETS)}")
    names = [field.name for field in fields(TaskConfig)]
    for name in overrides:
        if name not in names:
            there_are = f"{', '.join(names)}, device, render_mode, ghost"
            raise UnexpectedKeywordError(f"got an unexpected keyword argument {name!r}; there are {there_are}")
    optimizer = overrides.get("optimizer")
    own = OPTIMIZER_DEFAULTS.get(optimizer, {}) if isinstance(optimizer, str) else {}
    return replace(PRESETS[task], **{**own, **overrides})


def _require(config: TaskConfig, name: str, options: tuple[str | None, ...]) -> None:
    value = getattr(config, name)
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(str, options))}, not {value!r}")


def _check(config: TaskConfig, name: str, valid: bool, wanted: str) -> None:
    if not valid:
        raise ValueError(f"{name} must be {wanted}, not {getattr(config, name)!r}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


# What `optimizer=` changes in the defaults of every id, where the caller does not say otherwise: other optimizers want
# other learning rates, and the game its range around them.
OPTIMIZER_DEFAULTS: dict[str, dict[str, Any]] = {
    "adamw": {
        "learning_rate": 1e-3,
        "learning_rate_step": 1e-4,
        "learning_rate_min": 1e-4,
        "learning_rate_max": 0.02,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 0.01,
    }
}

_LR = TaskConfig()
_MINIBATCH = TaskConfig(game="minibatch", train_size=20_000, batch_size=128, epochs=40, meta_momentum=FILTER_REGRESSION)

PRESETS = {
    "QanLR-MNIST-v0": _LR,
    "QanMinibatch-MNIST-v0": _MINIBATCH,
    # 4,000 images: 2,000 batches of 10 in 200 decisions; 155 batches of 128, each a decision.
    "QanLR-MNIST5k-v0": replace(_LR, dataset="mnist5k", epochs=5, batches_per_action=10),
    "QanMinibatch-MNIST5k-v0": replace(_MINIBATCH, dataset="mnist5k", epochs=5),
    "QanLR-CIFAR10-v0": TaskConfig(
        dataset="cifar10",
        augment="zero",
        network="nin",
        learning_rate=0.1,
        momentum=0.9,
        weight_decay=5e-4,
        batch_size=128,
        epochs=5,
        learning_rate_step=0.01,
        learning_rate_min=0.01,
        meta_momentum=0.01,
        pull_epochs=None,
    ),
}
