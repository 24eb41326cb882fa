"""`LearnedLR`: a controller sets the learning rate of any training loop, as one of PyTorch's schedulers."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from qan_agents.controllers.controller import Controller
from qan_agents.controllers.decisions import Decisions, Hyperparameters, TrainingFacts
from qan_agents.controllers.shipped import shipped_controller
from qan_agents.controllers.update_meter import UpdateMeter
from qan_gym.families.task import DECISIONS, START
from qan_gym.schedules import SCHEDULES
from qan_gym.utils.extras import install_extra
from qan_gym.utils.validation import (
    check_settings,
    integer,
    number,
    optional,
    registered,
    setting,
)

FORMAT = "qan_agents.LearnedLR 1"
LOGGER = logging.getLogger(__name__)

Log = Callable[[dict[str, Any]], object]


@dataclass(frozen=True)
class LearnedLRSettings:
    """How the rates of a controller become those of an optimizer.

    Raises:
        ValueError: a value is out of its range.
    """

    total_steps: int = setting(DECISIONS, integer(at_least=DECISIONS), "updates of the whole training")
    warmup_steps: int = setting(
        0, integer(at_least=0, at_most="total_steps"), "updates over which the learning rate rises from 0"
    )
    min_lr: float = setting(
        0.0, number(at_least=0), "least learning rate of the first parameter group, but for warm-up"
    )
    max_lr: float = setting(1e30, number(above=0, at_least="min_lr"), "largest learning rate of the first group")
    fallback: str | None = setting(
        None,
        optional(registered(SCHEDULES)),
        "the schedule, of the optimizer's own learning rate, once the training is unlike those of the meta-training; "
        "None: the controller goes on",
    )

    def __post_init__(self) -> None:
        """Check."""
        check_settings(self)


class LearnedLR(LRScheduler):
    """A learning-rate schedule that a pretrained controller makes while the training runs.

        scheduler = LearnedLR(optimizer, total_steps=5_000, batch_size=64, dataset_size=50_000, num_classes=10)
        for images, labels in loader:
            loss = cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            scheduler.step(loss)
            optimizer.zero_grad()

    The controller decides 25 times, at equal intervals, from losses, gradients, updates and weights, which hooks of
    `optimizer.step` measure (`qan_gym.core.statistics`). It chooses the learning rates itself, from a low one on; those
    that the optimizer was built with only say the ratios of the parameter groups (and the rate of `fallback`).

    `step(loss)` is called after every mini-batch or after every update, before or after `optimizer.zero_grad()`. Only
    updates count; the losses of mini-batches that accumulate, or whose update was skipped, are averaged with the next.
    Under `torch.distributed`, rank 0 decides and all processes hear it. A loss that is not finite lowers the learning
    rate, once an action: at once where it is known without waiting for a device, else with the next decision.

    Attributes:
        decisions: of the controller; `decisions.controller` is the controller itself.
        history: a dict for every decision, JSON-able: "step", "learning_rate" and "action" of the decision, "loss" (of
            the last action, None before the first), "last_learning_rate" (of the update before, likewise), "fallback",
            "outside" (the features unlike meta-training), "statistics" (the features, by name).
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        *,
        batch_size: int,
        dataset_size: int,
        num_classes: int,
        loss_scale: float = 1.0,
        warmup_steps: int = 0,
        min_lr: float = 0.0,
        max_lr: float = 1e30,
        fallback: str | None = None,
        log: Any = None,
        controller: Controller | None = None,
    ) -> None:
        """Make the first decision, and set the learning rate of the first update.

        Args:
            optimizer: SGD or AdamW of `torch.optim`, or Adam without weight decay; others with a controller of yours.
            total_steps: updates of the whole training, at least 25. It may be changed later: `scheduler.total_steps =`.
            batch_size: examples of an update: of all processes, and of all mini-batches that accumulate; at most
                dataset_size.
            dataset_size: examples of the training set.
            num_classes: that the cross-entropy is of; of a language model, the size of the vocabulary.
            loss_scale: of a loss that is not the mean cross-entropy, its ratio to it.
            warmup_steps: updates over which the learning rate rises from 0 to what the controller says, at most
                total_steps.
            min_lr: least learning rate of the first parameter group, but for the warm-up.
            max_lr: its largest.
            fallback: a name in `qan_gym.schedules.SCHEDULES`. Once a feature is further than six standard deviations
                from what the controller saw in meta-training, the rest of the training follows this schedule, with the
                learning rate that the optimizer was built with as its highest. None: the controller goes on. Either is
                logged once.
            log: called with the dict of every decision, see `history`; or a TensorBoard `SummaryWriter`.
            controller: that decides; None: the one that comes with the package for this optimizer.

        Raises:
            ValueError: a value is out of its range, or there is no controller for the optimizer.
            TypeError: `optimizer` is not an optimizer, or `log` cannot be called.
        """
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, not a {type(optimizer).__name__}")
        optimizer = _unwrapped(optimizer)
        self.log = _log_of(log)
        self.settings = LearnedLRSettings(total_steps, warmup_steps, min_lr, max_lr, fallback)
        facts = TrainingFacts(batch_size, dataset_size, num_classes, loss_scale)
        chosen, start = _chosen(optimizer, controller)
        self.decisions = Decisions(chosen, facts, start)
        self.history: list[dict[str, Any]] = []
        self._clock = 0  # updates that were counted by `step`
        self._action_start = 0
        self._losses: list[Tensor | float] = []  # since the last update
        self._last_loss: Tensor | float | None = None
        self._lowered = False  # in this action, for a loss that is not finite
        self._idle = 0  # calls of `step` since the last update
        self._fallen = False
        self._said: list[str] = []
        self._built = False
        group = torch.distributed.is_available() and torch.distributed.is_initialized()
        self._processes = torch.distributed.get_world_size() if group else 1
        self._decides = self._processes == 1 or torch.distributed.get_rank() == 0
        _check_groups(optimizer)
        self.meter = UpdateMeter(optimizer, measuring=self._decides)
        super().__init__(optimizer)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], optimizer: Optimizer, total_steps: int, **settings: Any) -> Self:
        """With a controller of your own, that `qan meta-train` has written.

        Args:
            path: of its `controller.safetensors`.
            optimizer: see the class.
            total_steps: see the class.
            settings: see the class.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, or is of something else; or see the class.
        """
        return cls(optimizer, total_steps, controller=Controller.load(path), **settings)

    def __repr__(self) -> str:
        """Where the training stands."""
        rates = ", ".join(f"{float(rate):.3g}" for rate in self.get_last_lr())
        return f"{type(self).__name__}({self._clock} of {self.total_steps} updates, learning rate {rates})"

    # --- PyTorch's interface ----------------------------------------------------------------------------------------

    def _initial_step(self) -> None:
        """The first decision; called by the base class."""
        if self._built:
            raise ValueError(COMPOSED)
        self._step_count = 0
        self.base_lrs = [float(rate) for rate in self.base_lrs]
        self._decide()
        self._built = True
        self._set()

    @property
    def last_epoch(self) -> int:
        """The updates that were counted."""
        return self._clock

    @last_epoch.setter
    def last_epoch(self, value: int) -> None:
        if self._built:
            raise ValueError(COMPOSED)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rates of the next update, one per parameter group."""
        rate = self._rate(self._clock)
        return [rate * ratio for ratio in self._ratios()]

    def step(self, loss: Tensor | float | None = None) -> None:
        """Count the updates that were made since the last call, and set the learning rate of the next.

        Args:
            loss: of the mini-batch: its mean, not divided by the number of mini-batches that accumulate; a number or a
                tensor of one element. None: what `observe` was given since the last call.

        Raises:
            ValueError: no loss has ever been given, or it is not one number.
        """
        if loss is not None:
            self.observe(loss)
        elif self._last_loss is None:
            raise ValueError("LearnedLR needs the loss of the mini-batch: call scheduler.step(loss)")
        made = self.meter.updates - self._clock
        if made == 0:  # they accumulate, or the update was skipped
            self._idle += 1
            if self._idle == IDLE:
                self._say(
                    "idle",
                    "%d calls of scheduler.step and no update of its optimizer: it sees those of the optimizer that it "
                    "was built with",
                    IDLE,
                )
            return
        self._idle = 0
        if made > 1:
            self._say(
                "rarely",
                "%d updates were made since the last scheduler.step(loss), which is meant to be called after each; "
                "total_steps are updates too",
                made,
            )
        self._count(made)

    def observe(self, loss: Tensor | float) -> None:
        """Give the loss of a mini-batch to the next `step()`, where it is known earlier than that is called.

        Raises:
            ValueError: it is not one number.
        """
        if isinstance(loss, Tensor):
            if loss.numel() != 1:
                raise ValueError(f"the loss must be one number, the mean, not a tensor of shape {tuple(loss.shape)}")
            loss = loss.detach().reshape(())
        else:
            loss = float(loss)
        if self._processes == 1 and (isinstance(loss, float) or loss.device.type == "cpu"):
            self._look_at(float(loss))
        self._losses.append(loss)
        self._last_loss = loss

    @property
    def total_steps(self) -> int:
        """Updates of the whole training; may be changed on the way."""
        return self.settings.total_steps

    @total_steps.setter
    def total_steps(self, value: int) -> None:
        was_over = self._clock >= self.settings.total_steps
        self.settings = replace(self.settings, total_steps=value)
        if was_over and self._clock < value:  # what came after the end was not measured
            self.meter.measuring, self._action_start = self._decides, self._clock
            self.meter.begin_action(-(-value // DECISIONS))
        self._set()

    # --- counting ---------------------------------------------------------------------------------------------------

    def _count(self, made: int) -> None:
        losses, self._losses = self._losses, []
        loss = losses[0] if len(losses) == 1 else sum(losses) / len(losses) if losses else self._last_loss
        assert loss is not None
        self.meter.add_loss(loss, made)
        self._clock += made
        self._step_count += made
        total = self.settings.total_steps
        if self._clock < total and DECISIONS * self._clock // total > DECISIONS * self._action_start // total:
            self._decide()
        elif self._clock > total:
            self._say("over", "the %d total_steps are done: the learning rate stays as it is", total)
        if self._clock >= total:
            self.meter.measuring = False
        self._set()

    def _look_at(self, loss: float) -> None:
        """Lower the learning rate for a loss that is not finite."""
        if not math.isfinite(loss) and not self._lowered and self._built:
            self._say_not_finite()
            self._lowered = True
            self.decisions.apply(np.full((1, 1), -1, np.float32))

    def _decide(self) -> None:
        """The next action, by rank 0; the first one, which is the same everywhere, by all."""
        if self._decides or not self._built:
            self._decide_here()
        if self._processes > 1 and self._built:
            self._hear()
        self._action_start, self._lowered = self._clock, False
        self.meter.begin_action(-(-self.settings.total_steps // DECISIONS))

    def _decide_here(self) -> None:
        group = self.optimizer.param_groups[0]
        last = self._rate(self._clock - 1) if self._built else float(group["lr"])
        found = self.meter.end_action() if self._built else None
        finite = found is None or bool(np.isfinite(found.losses).all())
        lower = not finite and not self._lowered
        if lower:
            self._say_not_finite()
        momentum = group.get("momentum", group.get("betas", (0.0,))[0])
        hyperparameters = Hyperparameters(last, float(momentum), float(group.get("weight_decay", 0.0)))
        self.decisions.decide(self._clock, self.settings.total_steps, found, hyperparameters, lower)
        if self.decisions.outside:
            self._fall()
        self._record(None if found is None else float(found.losses.mean()), last if self._built else None)

    def _fall(self) -> None:
        fallback, names = self.settings.fallback, ", ".join(self.decisions.outside)
        then = "the controller goes on" if fallback is None else f"the schedule {fallback!r} goes on in its place"
        self._say("outside", "unlike the trainings that the controller knows: %s; %s", names, then)
        self._fallen = fallback is not None

    def _hear(self) -> None:
        """What rank 0 has decided."""
        run = self.decisions.run
        decided = torch.tensor([self.decisions.rate, float(self._fallen)], dtype=torch.float64).to(self.meter.device)
        torch.distributed.broadcast(decided, src=0)
        run.chosen_learning_rate[0], self._fallen = float(decided[0]), bool(decided[1])

    # --- the learning rate ------------------------------------------------------------------------------------------

    def _rate(self, step: int) -> float:
        """Of the first parameter group, for the update after `step` of them."""
        settings, highest = self.settings, self.decisions.rate
        schedule = SCHEDULES[self.decisions.config.schedule]
        if self._fallen and settings.fallback is not None:
            schedule, highest = SCHEDULES[settings.fallback], float(self.base_lrs[0])
        share = np.array([min(step, settings.total_steps - 1)], np.float64) / settings.total_steps
        rate = float(schedule.rate(np, np.array([highest]), share)[0])
        rate = min(max(rate, settings.min_lr), settings.max_lr)
        return rate * min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else rate

    def _ratios(self) -> list[float]:
        """Of the learning rates of the parameter groups to that of the first."""
        for group in self.optimizer.param_groups[len(self.base_lrs) :]:  # added on the way
            self.base_lrs.append(float(group.get("initial_lr", group["lr"])))
        return [float(rate) / float(self.base_lrs[0]) for rate in self.base_lrs]

    def _set(self) -> None:
        """Write the learning rates into the optimizer, into tensors in place."""
        rates = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        self._last_lr = rates

    # --- what is said -----------------------------------------------------------------------------------------------

    def _say(self, what: str, message: str, *values: object) -> None:
        """Log a warning, each kind once."""
        if what not in self._said:
            self._said.append(what)
            LOGGER.warning("LearnedLR, step %d: " + message, self._clock, *values)

    def _say_not_finite(self) -> None:
        """For the first action with such a loss, and for the second."""
        if "not finite" not in self._said:
            self._say("not finite", "a loss is not finite: the learning rate is lowered")
        else:
            self._say(
                "never finite",
                "a loss is not finite again: where weights are no numbers any more, no learning rate mends the "
                "training; go on from a checkpoint",
            )

    def _record(self, loss: float | None, last: float | None) -> None:
        decisions = self.decisions
        record = {
            "step": self._clock,
            "learning_rate": self._rate(self._clock),
            "action": decisions.action,
            "loss": loss,
            "last_learning_rate": last,
            "fallback": self._fallen,
            "outside": list(decisions.outside),
            "statistics": dict(
                zip(decisions.controller.settings.features, decisions.observation.tolist(), strict=True)
            ),
        }
        self.history.append(record)
        if self.log is not None:
            self.log(record)

    def plot(self) -> Any:
        """Draw the learning rate, the loss and the actions so far.

        Returns:
            A figure of matplotlib.

        Raises:
            ModuleNotFoundError: matplotlib is not installed; the message has the command that installs it.
        """
        try:
            from qan_agents.controllers.learned_lr_plot import draw
        except ModuleNotFoundError as error:
            message = f"{error.name} is missing: {install_extra('render')}"
            raise ModuleNotFoundError(message, name=error.name) from error

        return draw(self.history, self._clock, self._rate(max(0, self._clock - 1)))

    # --- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that the learning rates to come depend on, copied: plain values and tensors.

        `torch.load(..., weights_only=True)` reads it. The controller is in it, so that a training goes on as it began
        with a later version of the package.
        """
        return {
            "format": FORMAT,
            "settings": asdict(self.settings),
            "base_lrs": list(self.base_lrs),
            "clock": self._clock,
            "action_start": self._action_start,
            "losses": [one.clone() if isinstance(one, Tensor) else one for one in self._losses],
            "last_loss": self._last_loss.clone() if isinstance(self._last_loss, Tensor) else self._last_loss,
            "lowered": self._lowered,
            "fallen": self._fallen,
            "said": list(self._said),
            "history": [dict(record) for record in self.history],
            "decisions": self.decisions.state_dict(),
            "meter": self.meter.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`, and set the learning rates; before or after the optimizer and the model go on.

        The settings and the controller of the state take the place of those that the scheduler was built with.

        Raises:
            ValueError: it is not a state of this version of LearnedLR, or of another model, or of a controller that
                was meta-trained on another optimizer; nothing has changed.
        """
        if not isinstance(state_dict, dict) or state_dict.get("format") != FORMAT:
            raise ValueError("this is not a state of LearnedLR, or of another version of it")
        try:
            settings = LearnedLRSettings(**state_dict["settings"])
            decisions = Decisions.from_state(state_dict["decisions"])
            _require_optimizer(decisions.controller, self.optimizer)
            self.meter.check(state_dict["meter"])
            groups, mine = len(state_dict["base_lrs"]), len(self.optimizer.param_groups)
            if groups != mine:
                raise ValueError(f"the state is of {groups} parameter groups, and the optimizer has {mine}")
            values = {name: state_dict[name] for name in STATE}
        except (KeyError, TypeError) as error:
            raise ValueError(f"the state of LearnedLR is damaged: {error!r}") from error
        self.settings, self.decisions = settings, decisions
        for name, value in values.items():
            setattr(self, f"_{name}", list(value) if isinstance(value, list) else value)
        self.base_lrs, self.history = list(state_dict["base_lrs"]), [dict(one) for one in state_dict["history"]]
        self._step_count = self._clock
        self.meter.load_state_dict(state_dict["meter"])
        self.meter.measuring = self._decides and self._clock < settings.total_steps
        self._set()


IDLE = 100  # calls of `step` without an update, of which something is said
STATE = ("clock", "action_start", "losses", "last_loss", "lowered", "fallen", "said")  # of the attributes, with "_"
COMPOSED = (
    "LearnedLR makes the whole schedule: it cannot be a part of SequentialLR or ChainedScheduler. For a warm-up, give "
    "it warmup_steps"
)


def _log_of(log: Any) -> Log | None:
    """A callable, of a callable or a `SummaryWriter`.

    Raises:
        TypeError: it is neither.
    """
    if log is None or callable(log):
        found: Log | None = log
        return found
    if not hasattr(log, "add_scalar"):
        raise TypeError(f"log must be callable, or a SummaryWriter of TensorBoard, not a {type(log).__name__}")

    def write(record: dict[str, Any]) -> None:
        for name in ("learning_rate", "action", "loss", "fallback"):
            if record[name] is not None:
                log.add_scalar(f"LearnedLR/{name}", float(record[name]), record["step"])
        for name, value in record["statistics"].items():
            log.add_scalar(f"LearnedLR/statistics/{name}", value, record["step"])

    return write


def _unwrapped(optimizer: Optimizer) -> Optimizer:
    """The optimizer in the wrappers of Accelerate and Lightning, whose `step` calls its own."""
    inner = getattr(optimizer, "optimizer", None)
    return _unwrapped(inner) if isinstance(inner, Optimizer) else optimizer


def _check_groups(optimizer: Optimizer) -> None:
    """Refuse what no controller knows.

    Raises:
        ValueError: which.
    """
    first = optimizer.param_groups[0]
    if float(first.get("initial_lr", first["lr"])) <= 0:
        raise ValueError("the learning rate of the first parameter group must be above 0: the others are set by ratio")
    if any(group.get("maximize") for group in optimizer.param_groups):
        raise ValueError("maximize=True: controllers know only losses that are minimised; minimise the negative")


def _kind(optimizer: Optimizer) -> str | None:
    """The optimizer's name among those that controllers are meta-trained on; None: another."""
    if isinstance(optimizer, SGD):
        return "sgd"
    if isinstance(optimizer, AdamW):
        return "adamw"
    decoupled = all(
        not float(group["weight_decay"]) or group.get("decoupled_weight_decay")
        for group in optimizer.param_groups
        if isinstance(optimizer, Adam)
    )
    return "adamw" if isinstance(optimizer, Adam) and decoupled else None


def _chosen(optimizer: Optimizer, controller: Controller | None) -> tuple[Controller, float]:
    """The controller of an optimizer, and the learning rate that it starts from.

    Raises:
        ValueError: there is none, or it was meta-trained on another optimizer.
    """
    kind, name = _kind(optimizer), type(optimizer).__name__
    if controller is None:
        if kind is None:
            coupled = " with weight decay, which it adds to the gradient" if isinstance(optimizer, Adam) else ""
            raise ValueError(
                f"no controller comes with the package for {name}{coupled}: take SGD or AdamW of torch.optim, or "
                "meta-train one (qan meta-train) and load it with LearnedLR.from_file"
            )
        return shipped_controller(kind), START[kind]
    _require_optimizer(controller, optimizer)
    return controller, START[kind or controller.settings.optimizers[0]]


def _require_optimizer(controller: Controller, optimizer: Optimizer) -> None:
    """Refuse an optimizer that a controller was not meta-trained on, where it is one that others are.

    Raises:
        ValueError: which.
    """
    known, kind = controller.settings.optimizers, _kind(optimizer)
    if kind is not None and kind not in known:
        raise ValueError(
            f"the controller was meta-trained on {', '.join(known)}, and the optimizer is {type(optimizer).__name__}: "
            f"take another, or meta-train one on it: qan meta-train --set optimizers='[\"{kind}\"]'"
        )
