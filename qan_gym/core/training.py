"""The core: N training runs in lock-step. The order of a step is written here, and only here."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from qan_gym.core import class_statistics, statistics
from qan_gym.core.class_sampling import ReplacementSampler
from qan_gym.core.components import Components
from qan_gym.core.engine import Engine, make_engine
from qan_gym.core.measurements import measured_size
from qan_gym.core.meta_momentum import Pull
from qan_gym.core.reward import reward_terms
from qan_gym.core.run_state import LOSS_LIMIT, Flags, Layout, RunState
from qan_gym.core.sampling import Sampler
from qan_gym.data.datasets import DeviceData
from qan_gym.optimizee.network import Network, Params
from qan_gym.schedules import SCHEDULES
from qan_gym.utils.arrays import Array, as_array, as_tensor, to_numpy
from qan_gym.utils.cuda_graph import CapturedGraph
from qan_gym.utils.memory import require_memory
from qan_gym.utils.own_settings import in_own_settings, own_settings

Info = dict[str, Array]  # name -> (N,)


@dataclass(frozen=True)
class StepResult:
    """The result of a step; everything has the leading axis N and is finite. The info is valid until the next step.

    Arrays are NumPy's on CPU and tensors on other devices.

    Attributes:
        observation: (N, rows * columns) float32.
        reward: (N,) float32.
        terminated: (N,) bool, on the host: diverged, target reached or stopped early.
        truncated: (N,) bool, on the host: budget spent.
        info: scalars by name, the same names at every step; test_loss and test_accuracy are NaN before a run has ended.
    """

    observation: Array
    reward: Array
    terminated: Flags
    truncated: Flags
    info: Info


class Seen(NamedTuple):
    """The result of `Training._see`: observation (N, rows * columns), and the reward's terms by name, (N,) each."""

    observation: Array
    reward_terms: Info


class Training:
    """N independent runs of one task, each with its own weights, data order, hyperparameters and clock.

    The clocks, the seeds and whether an episode is over are the host's: so it knows without asking the device when an
    epoch begins. Everything else lies on the device and is changed in place, so that on CUDA the two halves of a
    step, `_act_and_train` and `_see`, are each one captured graph; between them the host reads two flags per run. The
    networks are the engine's; the bookkeeping around them is written once, for arrays of either kind.

    Attributes:
        parts: the components of the task.
        run: the state of the runs, as tensors.
        arrays: the same state, in the same memory, as the arrays that the bookkeeping computes with.
        engine: trains and measures the networks.
        own_settings: of the process, that its calls compute under.
        reference: w*, N networks (rows without one are unused, see `RunState.has_reference`), or None.
    """

    @own_settings()
    def __init__(
        self,
        parts: Components,
        reference: Params | None,
        num_runs: int = 1,
        *,
        run: RunState | None = None,
        tests: bool = True,
    ) -> None:
        """Allocate the runs; `reset` begins their episodes.

        Args:
            parts: the components of the task.
            reference: weights of one network (no leading axis), for pull and distillation; None where the task has
                none, or takes the last episode's.
            num_runs: N.
            run: the state to go on from, of `num_runs` runs; None: a new one.
            tests: whether the runs are judged on the test set at their end, and hand their weights on to the next
                episode with reference="previous"; False for runs that nobody plays.
        """
        config = parts.config
        self.parts, self.config, self.network, self.data = parts, config, parts.network, parts.data
        self.device, self.num_runs, self.tests = parts.device, num_runs, tests
        self.own_settings = own_settings(parts.threads)
        self.sampler = self._make_sampler()
        self.schedule = SCHEDULES[config.schedule]
        self.pull = Pull(config, self.network, parts.batches_per_epoch)
        self.loss_limit = as_array(torch.tensor(LOSS_LIMIT, device=parts.device))
        self.on_cpu = parts.device.type == "cpu"
        self.run = run or self._allocate()
        self.arrays = self.run.with_arrays(parts.xp)
        self._shared_reference = reference
        self.reference = self._references(reference)
        if run is None:
            self.run.has_reference.fill_(reference is not None)
        self._describe_task()
        self.engine = self._make_engine()
        shape = self.run.batch_indices.shape if self.run.layout.measures_classes else (0,)
        self._image_losses = as_array(torch.zeros(shape, device=self.device))  # of the last action
        self.shuffled = self._wanted_classes() is None  # whether mini-batches are never by class
        captured = self.device.type == "cuda" and not parts.waits
        self.act_and_train: Callable[[], None] = CapturedGraph(self._act_and_train) if captured else self._act_and_train
        self.see: Callable[[], Seen] = CapturedGraph(self._see) if captured else self._see

    def _make_sampler(self) -> Sampler:
        labels, parts = self.data.labels["train"], self.parts
        of_task = (labels, self.num_runs, parts.n_classes, parts.config.batch_size)
        if parts.config.replacement:
            return ReplacementSampler(*of_task, native=parts.engine == "native")
        return Sampler(*of_task)

    def _wanted_classes(self) -> Array | None:
        """What the game wants the next mini-batches to hold: counts, or with replacement shares, of the classes."""
        game, run = self.parts.game, self.arrays
        return game.class_shares(run, self.config) if self.config.replacement else game.class_counts(run, self.config)

    def close(self) -> None:
        """Break the reference cycles (the two halves of a step refer to it), so that its memory is freed at once."""
        del self.act_and_train, self.see

    @own_settings()
    def fork(self, num_runs: int) -> Training:
        """The only run, `num_runs` times over from where it stands; for looking ahead, see `tests`."""
        return Training(self.parts, self._shared_reference, num_runs, run=self.run.fork(num_runs), tests=False)

    def copy_rows(self, rows: Sequence[int], sources: Sequence[int]) -> None:
        """Let some runs go on from where others stand, see `RunState.copy_rows`.

        Raises:
            ValueError: the runs have tasks of their own, which are not the others'.
        """
        if self.records():
            raise ValueError("runs of different tasks cannot go on from each other")
        self.run.copy_rows(rows, sources)

    @own_settings()
    def __deepcopy__(self, memo: dict[int, Any]) -> Training:
        """The runs in memory of their own; what no step changes is shared."""
        copied = Training(self.parts, self._shared_reference, self.num_runs, run=self.run.copy(), tests=self.tests)
        memo[id(self)] = copied
        return copied

    def check_state(self, tensors: Mapping[str, Tensor], records: Sequence[Any]) -> None:
        """Find out whether the run, of which there is one, can go on from these tensors; nothing changes.

        Args:
            tensors: as `RunState.saved` gives them.
            records: as `records` gives them.

        Raises:
            ValueError: a tensor is missing, unknown, of another shape or dtype, or has a value that no episode has.
        """
        run, parts = self.run, self.parts
        if records:
            raise ValueError("the state's run has a task of its own")
        run.check_shapes(tensors)
        begun = bool(tensors["over"].logical_not().any() or tensors["batch"].any())
        if not begun:
            return  # nothing of it is used: the first reset sets everything
        run.check_values(tensors, self.config)
        check_clock(tensors, self.config.batches_per_action, parts.budget)
        batch, order = int(tensors["batch"]), tensors["order"][0].cpu()
        if batch > 0 and not order.sort().values.equal(torch.arange(len(order), dtype=order.dtype)):
            raise ValueError("the state's order does not hold every training image once")
        if self.shuffled and tensors["by_class"].any():
            raise ValueError(f"the state's by_class is True, and the game {self.config.game!r} does not draw by class")
        most = to_numpy(self.sampler.class_sizes)
        if self.config.replacement:
            most = np.array(batch * self.config.batch_size)  # images of the episode
        if (to_numpy(as_array(tensors["class_used"])) > most).any():
            raise ValueError("the state's class_used is larger than the classes are")

    def _allocate(self) -> RunState:
        """The state of new runs.

        Raises:
            ValueError: it needs more memory than there is, or a feature of the observation is not of this environment.
        """
        layout = self._layout()
        self.parts.observer.check(layout.game)
        try:
            if self.device.type == "cpu":
                require_memory(self.num_runs * RunState.allocate(replace(layout, num_runs=1)).nbytes)
            return RunState.allocate(layout)
        except (RuntimeError, MemoryError) as error:
            raise ValueError(
                f"{self.num_runs} runs of this task need more memory than there is: make num_envs, batches_per_action "
                f"or batch_size smaller ({str(error).splitlines()[0]})"
            ) from error

    def _layout(self) -> Layout:
        parts, config = self.parts, self.config
        space = parts.action_space
        return Layout(
            num_runs=self.num_runs,
            device=self.device,
            network=self.network,
            slots=parts.optimizer.slots,
            own_reference=config.reference == "previous",
            measures=parts.observer.needs_measurements,
            measures_classes=parts.observer.needs_classes,
            sizes={
                "train_size": len(self.data.labels["train"]),
                "n_classes": parts.n_classes,
                "batches_per_action": config.batches_per_action,
                "batch_size": config.batch_size,
                "budget": parts.budget,
                "network_size": self.network.size(),
                "measured": len(statistics.MEASURED),
                "measured_size": measured_size(self.network) if parts.observer.needs_measurements else 0,
                "logs": len(statistics.QUANTITIES),
            },
            action_shape=() if isinstance(space, spaces.Discrete) else tuple(space.shape or ()),
            action_dtype=torch.float32 if isinstance(space, spaces.Box) else torch.int64,
            game=parts.game.tensors(config, parts.n_classes),
        )

    def _references(self, reference: Params | None) -> Params | None:
        if reference is None:
            return self.run.reference or None
        one = self.network.views(torch.zeros(1, self.network.size(), device=self.device))
        return {name: one[name].copy_(reference[name]).expand_as(self.run.params[name]) for name in one}

    def _make_engine(self) -> Engine:
        return make_engine(self.parts, self.run, self.reference, self.pull)

    def _describe_task(self) -> None:
        """Tell the runs the sizes of their task: mini-batches of episode, epoch and action, images and classes."""
        run, parts = self.run, self.parts
        run.budgets[:], run.epoch_batches[:] = parts.budget, parts.batches_per_epoch
        run.action_batches[:] = parts.config.batches_per_action
        run.n_classes.fill_(parts.n_classes)
        run.batch_size.fill_(parts.config.batch_size)
        run.train_size.fill_(len(self.data.labels["train"]))
        run.class_sizes[:] = self._class_sizes()
        run.copy_clocks()

    def _class_sizes(self) -> Tensor:
        """Training images of each class, (K,), or (N, K) where the runs differ."""
        return as_tensor(self.sampler.class_sizes)

    # --- what the rows train, where their tasks differ ---------------------------------------------------------------

    def records(self) -> list[Any]:
        """What `adopt` needs to know of the rows' tasks, as JSON has it; empty where all rows have the same one."""
        return []

    def adopt(self, records: Sequence[Any]) -> None:
        """Give the rows the tasks that `records` gave, before their state is restored, but for their seeds."""

    def task_info(self) -> Info:
        """The parameters of the rows' tasks by name, (N,) each; empty where all rows have the same one."""
        return {}

    def budget_of(self, row: int) -> int:
        """Mini-batches of the episode of a row."""
        return self.parts.budget

    def task_name(self, row: int) -> str:
        """A few words on the task of a row; empty where all rows have the same one."""
        return ""

    def task_lines(self, row: int) -> tuple[str, ...]:
        """The record of the task of a row, in words; empty where all rows have the same one."""
        return ()

    def network_of(self, row: int) -> tuple[Network, Params]:
        """The kind of network of a row, and its parameters, name -> (*shape), views."""
        return self.network, {name: value[row] for name, value in self.run.params.items()}

    def data_of(self, row: int) -> DeviceData:
        """The images of a row."""
        return self.data

    def batch_indices(self, row: int) -> NDArray[np.int64]:
        """Indices into a row's training split of its last action's images, (batches_per_action, batch_size), a copy."""
        return self.run.batch_indices[row].cpu().numpy().copy()

    # --- reset ------------------------------------------------------------------------------------------------------

    @in_own_settings
    def reset(self, mask: Flags, seeds: NDArray[np.int64], shuffled: bool = False) -> tuple[Tensor, Info]:
        """Begin new episodes.

        Args:
            mask: which runs begin anew; the first time all of them.
            seeds: (N,); an episode depends on its seed (and its actions, and the last episode's weights with
                reference="previous") and nothing else.
            shuffled: visit the data as shuffled SGD does, whatever the game asks for.

        Returns:
            The observations (N, rows * columns) and infos of all runs.
        """
        run, rows = self.run, self._rows(mask)  # (M,)
        run.reset(mask, rows, self.config)
        run.seed[mask] = seeds[mask]
        self._begin(mask)
        self.arrays.by_class[rows] = not (shuffled or self.shuffled)
        self._validate(mask)
        for loss in (run.loss, run.smoothed_loss, run.smoothed_loss_before):
            loss[rows] = (run.loss_scale[rows] * run.validation_loss[rows]).clamp(max=LOSS_LIMIT)
        for loss in (run.validation_loss_before, run.best_validation_loss):
            loss[rows] = run.validation_loss[rows]
        self._validate_classes(mask)
        if run.layout.measures_classes:
            run.class_loss[rows] = run.class_validation_loss[rows]
        seen = self._see()
        for value in seen.reward_terms.values():
            value[rows] = 0
        return seen.observation, {**self.info(), **seen.reward_terms}

    def _begin(self, mask: Flags) -> None:
        """Draw the initial weights of the runs of a mask, from their seeds."""
        run, rows = self.run, self._rows(mask)
        run.copy_clocks()
        for name, value in self.network.initial_params(run.device_seed[rows], self.config.initial_scale).items():
            run.params[name][rows] = value

    # --- step -------------------------------------------------------------------------------------------------------

    @in_own_settings
    def step(self, actions: Array) -> StepResult:
        """One action of every run: the action, then its mini-batches, then what is measured and seen.

        A run whose episode is over is carried along; what is returned for it means nothing until it is reset.

        Args:
            actions: (N,) int64 of a Discrete space, (N, *shape) of others; an array, or a tensor on any device.
        """
        run = self.run
        self._set("action", actions)
        self._train()
        before = run.batch.copy()
        run.batch += run.action_batches
        diverged, success = self._flags()  # here the host waits for the device
        playing = ~run.over
        epochs = run.batch // run.epoch_batches - before // run.epoch_batches  # (N,) that have passed
        budget_spent = (run.batch >= run.budgets) & playing
        terminated = (diverged | success) & playing
        self._validate(terminated | budget_spent | (self._validation_due(before, epochs) & playing))
        if self.config.early_stopping is not None and np.count_nonzero(epochs):
            stopped = self._stop_early((epochs > 0) & playing & ~terminated, epochs, self.config.early_stopping)
            terminated = terminated | stopped
        truncated = budget_spent & ~terminated
        ended = terminated | truncated
        run.over |= ended
        self._set("ended", ended)
        self._finish(ended, ended & ~diverged)
        self._validate_classes(playing)
        seen = self.see()
        return StepResult(
            observation=seen.observation,
            reward=reduce(operator.add, seen.reward_terms.values()),
            terminated=terminated,
            truncated=truncated,
            info={**self.info(), **seen.reward_terms},
        )

    def _validation_due(self, before: NDArray[np.int64], epochs: NDArray[np.int64]) -> Flags:
        """(N,), the runs that are measured on the validation split now, within their episode.

        before, epochs: (N,), the mini-batches done before the action, and the epochs that have passed with it.
        """
        due: Flags = epochs > 0
        if self.config.validate_every is not None:
            every = self.config.validate_every
            due = due | (self.run.batch // every > before // every)
        return due

    def _set(self, name: str, values: Array) -> None:
        """Write what the host knows into the state: (N, ...), an array, or a tensor on any device."""
        if self.on_cpu:
            getattr(self.arrays, name)[:] = to_numpy(values)
        else:
            getattr(self.run, name).copy_(as_tensor(values))

    def _train(self) -> None:
        """The action and its mini-batches, with new orders where epochs begin."""
        batch, per_epoch, count = self.run.batch, self.parts.batches_per_epoch, self.config.batches_per_action
        self._start_epochs(batch % per_epoch == 0, 0)
        if count > 1:
            begins = (batch + np.arange(1, count)[:, None]) % per_epoch == 0  # (count - 1, N), an epoch
            if begins.any():
                return self._act_and_train(begins)
        return self.act_and_train()

    def _flags(self) -> tuple[Flags, Flags]:
        """Whether the runs have diverged, and whether they have succeeded, (N,) each, on the host."""
        if self.on_cpu:
            return self.arrays.diverged, self.arrays.success  # type: ignore[return-value]
        diverged, success = torch.stack([self.run.diverged, self.run.success]).cpu().numpy()
        return diverged, success

    def _stop_early(self, mask: Flags, epochs: NDArray[np.int64], patience: int) -> Flags:
        """(N,) bool, the runs of a mask that have had no lower validation loss for `patience` epochs.

        epochs: (N,) that have passed since the last validation.
        """
        run, rows = self.run, self._rows(mask)
        passed = torch.from_numpy(epochs[mask]).to(self.device)
        better = run.validation_loss[rows] < run.best_validation_loss[rows]
        run.best_validation_loss[rows] = torch.minimum(run.best_validation_loss[rows], run.validation_loss[rows])
        run.epochs_since_best[rows] = torch.where(better, 0, run.epochs_since_best[rows] + passed)
        run.early_stopped[rows] = run.epochs_since_best[rows] >= patience
        stopped: Flags = run.early_stopped.cpu().numpy() & mask
        return stopped

    def _rows(self, mask: Flags) -> Tensor:
        """The rows of a mask, (M,), on the device."""
        return torch.from_numpy(np.flatnonzero(mask)).to(self.device)

    def _start_epochs(self, begins: Flags, ahead: int) -> None:
        """Draw new orders for the runs that begin an epoch with the mini-batch that is `ahead` of the next one."""
        if np.count_nonzero(begins):
            epoch = (self.run.batch[begins] + ahead) // self.parts.batches_per_epoch
            seeds, epochs = (torch.from_numpy(value).to(self.device) for value in (self.run.seed[begins], epoch))
            self.sampler.start_epoch(self.run, self._rows(begins), seeds, epochs)

    def _act_and_train(self, begins: Flags | None = None) -> None:
        """The action and its mini-batches.

        begins: (batches_per_action - 1, N) bool, where epochs begin with one of the later mini-batches.
        """
        run, config, xp = self.arrays, self.config, self.parts.xp
        run.smoothed_loss_before[:] = run.smoothed_loss
        run.validation_loss_before[:] = run.validation_loss
        if run.layout.measures:
            run.chosen_learning_rate_before[:] = run.chosen_learning_rate
        self.parts.game.apply(run, run.action, config)
        run.last_action[:] = self.parts.game.shown_action(run.action, config)
        run.loss[:] = 0
        self._train_action(begins)
        run.loss /= run.per_action  # added up one after the other: the same for every N
        run.diverged[:] = ~self.engine.finite()
        run.loss[:] = xp.fmin(run.loss, self.loss_limit)  # and where it is not a number
        run.smoothed_loss[:] = xp.fmin(run.smoothed_loss, self.loss_limit)
        if run.layout.measures:
            statistics.after_action(run)
        if run.layout.measures_classes:
            class_statistics.after_batches(run, *self._images_of_action())
        if config.target_loss is not None:
            run.success[:] = ~run.diverged & (run.smoothed_loss <= config.target_loss)

    def _train_action(self, begins: Flags | None) -> None:
        """The mini-batches of an action, from one epoch that begins to the next."""
        later = [] if begins is None else (np.flatnonzero(begins.any(axis=1)) + 1).tolist()
        for first, end in pairwise([0, *later, self.config.batches_per_action]):
            if first > 0 and begins is not None:
                self._start_epochs(begins[first - 1], first)
            self._train_on_batches(first, end)

    def _train_on_batches(self, first: int, end: int) -> None:
        """The mini-batches first, ..., end - 1 of an action; no run begins an epoch after the first of them."""
        if not (self.engine.in_order and self.shuffled and not self.run.layout.measures_classes):
            with np.errstate(all="ignore"):  # what is not finite is replaced
                for number in range(first, end):
                    self._train_on_batch(number)
            return
        if self.config.schedule == "constant":
            self.arrays.learning_rate[:] = self.arrays.chosen_learning_rate
            self.engine.train_in_order(first, end - first, None)
        else:
            rates = self._learning_rates(np.arange(end - first)[:, None])
            self.engine.train_in_order(first, end - first, rates)

    def _train_on_batch(self, number: int) -> None:
        """Mini-batch, gradient, update, pull."""
        run = self.arrays
        indices = self.sampler.draw(run, self._wanted_classes())  # (N, B)
        run.batch_indices[:, number] = indices
        run.learning_rate[:] = self._learning_rates(0)
        run.pull[:] = (run.has_reference & (run.clock < self.pull.batches)) * self.pull.strength
        loss = self.engine.train(indices, number)
        run.smoothed_loss += self.parts.running_mean_weight * (loss - run.smoothed_loss)
        run.loss += loss
        run.clock += 1
        if run.layout.measures_classes:
            self._image_losses[:, number] = self.engine.each

    def _learning_rates(self, ahead: Array) -> Array:
        """(N,) of the next mini-batch, or (T, N) of those that are `ahead` (T, 1) of it."""
        run, xp = self.arrays, self.parts.xp
        share = xp.astype(run.clock + ahead, xp.float64) / run.budget
        return self.schedule.rate(xp, run.chosen_learning_rate, share)

    # --- evaluation, observation, reward ----------------------------------------------------------------------------

    def _validate(self, mask: Flags) -> None:
        """Measure the validation loss and accuracy of some runs."""
        if np.count_nonzero(mask):
            rows = as_array(self._rows(mask))
            loss, self.arrays.validation_accuracy[rows] = self.engine.evaluate(rows, "validation")
            self.arrays.validation_loss[rows] = self.parts.xp.fmin(loss, self.loss_limit)

    def _validate_classes(self, mask: Flags) -> None:
        """Measure the validation loss of each class of some runs, where the observation has it."""
        if self.run.layout.measures_classes and np.count_nonzero(mask):
            rows = as_array(self._rows(mask))
            losses = self.parts.xp.fmin(self.engine.class_losses(rows), self.loss_limit)
            self.arrays.class_validation_loss[rows] = losses

    def _images_of_action(self) -> tuple[Array, Array]:
        """The labels, -1 where there is no image, and the losses of the images of the last action, (N, I) each."""
        return self._labels_of_action(), self._image_losses.reshape(self.num_runs, -1)

    def _labels_of_action(self) -> Array:
        """The labels of the images of the last action of every run, (N, I); -1 where there is no image."""
        return as_array(self.data.labels["train"])[self.arrays.batch_indices].reshape(self.num_runs, -1)

    def class_shares(self) -> NDArray[np.float64] | None:
        """The shares of the classes in the last action's mini-batches, (N, K), where the game is drawn by them."""
        if self.parts.game.curve is not None:
            return None
        labels, xp = self._labels_of_action(), self.parts.xp
        _, found = class_statistics.sums_by_class(labels, xp.astype(labels, xp.float32), self.parts.n_classes)
        counts = to_numpy(found)
        shares: NDArray[np.float64] = counts / np.maximum(counts.sum(axis=1), 1)[:, None]
        return shares

    @in_own_settings
    def validate_unfinished(self) -> None:
        """Measure the runs that are not over (the others are measured); the info of the last step shows it."""
        self._validate(~self.run.over)

    def _finish(self, ended: Flags, whole: Flags) -> None:
        """Read the test set where an episode has ended; the weights of whole ones are the next one's reference."""
        if not self.tests or not np.count_nonzero(ended):
            return
        run, rows = self.run, as_array(self._rows(ended))
        loss, self.arrays.test_accuracy[rows] = self.engine.evaluate(rows, "test")
        self.arrays.test_loss[rows] = self.parts.xp.fmin(loss, self.loss_limit)
        if run.reference:
            kept = self._rows(whole)
            for name, value in run.params.items():
                run.reference[name][kept] = value[kept]
            run.has_reference[kept] = True

    def _see(self) -> Seen:
        """Observations and rewards."""
        config, run = self.config, self.arrays
        return Seen(self.parts.observer.observe(run), reward_terms(config.reward, config.divergence_penalty, run))

    def info(self) -> Info:
        """The scalars of `info` by name, (N,) each; not copies."""
        run = self.arrays
        return {
            "learning_rate": run.learning_rate,
            **{name: getattr(run, name) for name in self.parts.game.hyperparameters},
            "loss": run.loss,
            "smoothed_loss": run.smoothed_loss,
            "epoch": run.clock // run.per_epoch,
            "batch": run.clock,
            "validation_loss": run.validation_loss,
            "validation_accuracy": run.validation_accuracy,
            "test_loss": run.test_loss,
            "test_accuracy": run.test_accuracy,
            "diverged": run.diverged,
            **({} if self.config.target_loss is None else {"is_success": run.success}),
            "early_stopped": run.early_stopped,
        }


def check_clock(tensors: Mapping[str, Tensor], batches_per_action: int, budget: int) -> None:
    """Check where a state stands in its episode; see `Training.check_state`.

    Raises:
        ValueError: within an action, or behind the end.
    """
    batch = int(tensors["batch"])
    if batch % batches_per_action != 0:
        raise ValueError(f"the state's batch is {batch}, within an action of {batches_per_action}")
    if batch > budget or (batch == budget and not tensors["over"].all()):
        raise ValueError(f"the state's episode goes on after its {budget} mini-batches")
