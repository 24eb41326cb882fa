"""N training runs in lock-step, each of a task of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray
from torch import Tensor

from qan_gym.config import TaskConfig
from qan_gym.core.class_sampling import ClassMembers, counts_of_shares
from qan_gym.core.components import RUNNING_MEAN_IMAGES, Components, build_components, selection_of
from qan_gym.core.engine import decide, namespace
from qan_gym.core.observation import Observer
from qan_gym.core.run_state import Flags, Layout, RunState, TensorSpec
from qan_gym.core.training import Info, Training, check_clock
from qan_gym.data.datasets import DeviceData, load_dataset
from qan_gym.families.engine import SLOTS, FamilyEngine, chosen_images, mini_batch, padded
from qan_gym.families.record import TaskRecord
from qan_gym.families.source import TaskSource
from qan_gym.native import library
from qan_gym.optimizee.network import Network, Params
from qan_gym.optimizee.zoo import build_network
from qan_gym.schedules import SCHEDULES
from qan_gym.utils import random_streams
from qan_gym.utils.arrays import Array
from qan_gym.utils.own_settings import users_threads

Rows = NDArray[np.int64]


class FamilyTraining(Training):
    """N independent runs, each of the task that its episode has drawn; see `Training`.

    Attributes:
        source: of the tasks.
        tests: whether the test loss is measured at an episode's end.
    """

    engine: FamilyEngine  # type: ignore[assignment]

    def __init__(
        self,
        parts: Components,
        source: TaskSource[Any],
        num_runs: int = 1,
        *,
        run: RunState | None = None,
        tests: bool = True,
        tasks: Sequence[TaskRecord | None] = (),
    ) -> None:
        """Allocate the runs; `reset` begins their episodes.

        Args:
            parts: see `family_parts`.
            source: of the tasks.
            num_runs: N.
            run: the state to go on from; None: a new one.
            tests: see the class.
            tasks: of the rows of `run`.
        """
        self.source = source
        self._next_tasks: Sequence[TaskRecord] | None = None
        super().__init__(parts, None, num_runs, run=run, tests=tests)
        self.rows = np.arange(num_runs)
        images, _ = source.room
        self.members = ClassMembers.empty(num_runs, images, self.run.layout.sizes["n_classes"])
        self.labels = np.full((num_runs, images), -1)  # of the training images
        self.schedules: list[str | None] = [None] * num_runs  # of the rows' tasks; None: that of all, `schedule`
        self.running_mean_weight = np.ones(num_runs, np.float32)
        self.adopt(tasks)

    def _layout(self) -> Layout:
        layout = super()._layout()
        record = self.source.record
        context = {self.source.context_name: TensorSpec((len(record.context_names()),), at_reset=None, saved=False)}
        most, (images, batch_size) = self.source.most_batches, self.source.room
        sizes = {"train_size": images, "batch_size": batch_size, "n_classes": self.parts.n_classes if images else 0}
        sizes |= {"batches_per_action": most, "budget": record.DECISIONS * most}
        if layout.sizes["measured_size"]:  # the kernels keep whole vectors, of which they measure a part
            sizes["measured_size"] = self.parts.network.size()
        return replace(layout, slots=SLOTS, sizes={**layout.sizes, **sizes}, game={**layout.game, **context})

    def _class_sizes(self) -> Tensor:
        """See `Training._class_sizes`: 0 until a row has a task."""
        return torch.zeros_like(self.run.class_sizes)

    def _make_engine(self) -> FamilyEngine:  # type: ignore[override]
        threads = min(self.num_runs, users_threads())
        return FamilyEngine(self.config, self.run, self.parts.engine, threads, self.source.batches_per_action)

    # --- tasks ------------------------------------------------------------------------------------------------------

    def reset(
        self, mask: Flags, seeds: NDArray[np.int64], shuffled: bool = False, tasks: Sequence[TaskRecord] | None = None
    ) -> tuple[Tensor, Info]:
        """See `Training.reset`; tasks: of the N rows, where they are not drawn.

        Raises:
            ValueError: an action of a task has more mini-batches than the runs have room for.
        """
        longest = max((self.source.action_batches(task) for task in tasks or ()), default=0)
        if longest > self.source.most_batches:
            raise ValueError(
                f"an action of a task has {longest} mini-batches, more than the family's {self.source.most_batches}; "
                "play it alone: give it as `task`"
            )
        self._next_tasks = tasks
        return super().reset(mask, seeds, shuffled)

    @property
    def tasks(self) -> list[TaskRecord | None]:
        """Of the rows; None before the first episode."""
        return self.engine.tasks

    def records(self) -> list[Any]:
        """See `Training.records`."""
        return [None if task is None else asdict(cast(Any, task)) for task in self.tasks]

    def adopt(self, records: Sequence[Any]) -> None:
        """See `Training.adopt`; also of tasks."""
        for row, record in enumerate(records):
            if record is not None:
                task = self.source.record.from_record(record)
                self.engine.restore(row, task, int(self.run.seed[row]))
                self._tell(row, task)
        self.run.copy_clocks()

    def check_state(self, tensors: Mapping[str, Tensor], records: Sequence[Any]) -> None:
        """See `Training.check_state`."""
        self.run.check_shapes(tensors)
        if len(records) != 1:
            raise ValueError(f"the state must have the task of its run, not {len(records)} tasks")
        if records[0] is None:
            if tensors["batch"].any():
                raise ValueError("the state's run has begun, and has no task")
            return
        task = self.source.record.from_record(records[0])
        self.run.check_values(tensors, self.config)
        check_clock(tensors, self.source.action_batches(task), self.source.budget(task))
        if (tensors["class_used"] > int(tensors["batch"]) * task.batch_size).any():
            raise ValueError("the state's class_used is larger than the mini-batches are")

    def task_info(self) -> Info:
        """See `Training.task_info`: the context."""
        context = self.arrays.game[self.source.context_name]
        return {name: context[:, column] for column, name in enumerate(self.source.record.context_names())}

    def budget_of(self, row: int) -> int:
        """See `Training.budget_of`."""
        task = self.tasks[row]
        return self.parts.budget if task is None else self.source.budget(task)

    def task_name(self, row: int) -> str:
        """See `Training.task_name`."""
        task = self.tasks[row]
        return "" if task is None else task.name

    def task_lines(self, row: int) -> tuple[str, ...]:
        """See `Training.task_lines`."""
        task = self.tasks[row]
        return () if task is None else task.lines()

    def network_of(self, row: int) -> tuple[Network, Params]:
        """See `Training.network_of`."""
        parts = self._parts_of(row)
        network = parts.network
        return network, {
            name: value[0] for name, value in network.views(self.run.memory[row : row + 1, : network.size()]).items()
        }

    def data_of(self, row: int) -> DeviceData:
        """See `Training.data_of`."""
        return self._parts_of(row).data

    def batch_indices(self, row: int) -> NDArray[np.int64]:
        """See `Training.batch_indices`."""
        task, clock = self.tasks[row], int(self.run.batch[row])
        if task is None or clock == 0:
            return np.zeros((0, 0), np.int64)
        count = self.source.action_batches(task)
        if not self.shuffled:
            indices = self.run.batch_indices[row, :count, : task.batch_size]
            return indices.numpy().copy()
        seed, numbers = int(self.run.seed[row]), range(clock - count, clock)
        return np.stack([mini_batch(seed, number, task.batch_size, task.train_size) for number in numbers])

    def _parts_of(self, row: int) -> Components:
        """The components of a row's task.

        Raises:
            ResetNeeded: it has none yet.
        """
        return build_components(replace(self.config, **self._task_of(row).settings()), "cpu", "torch")

    def _task_of(self, row: int) -> TaskRecord:
        """The task of a row.

        Raises:
            ResetNeeded: it has none yet.
        """
        task = self.tasks[row]
        if task is None:
            raise ResetNeeded("no task has been drawn: call reset() first")
        return task

    def _tell(self, row: int, task: TaskRecord) -> None:
        """What the bookkeeping needs to know of a row's task."""
        run = self.run
        run.budgets[row], run.action_batches[row] = self.source.budget(task), self.source.action_batches(task)
        run.epoch_batches[row] = task.train_size // task.batch_size
        self.running_mean_weight[row] = min(1.0, task.batch_size / RUNNING_MEAN_IMAGES)
        self.schedules[row] = task.own_schedule
        run.batch_size[row], run.train_size[row] = task.batch_size, task.train_size
        run.n_classes[row] = len(task.classes)
        run.game[self.source.context_name][row] = torch.tensor(list(task.context().values()))
        if not self.shuffled:
            config = replace(self.config, **task.settings())
            labels = chosen_images(load_dataset(config.dataset), selection_of(config)).labels
            self.members.assign(row, labels)
            self.labels[row] = padded(labels, self.labels.shape[1])
            run.class_sizes[row] = torch.from_numpy(self.members.sizes[row])

    def _begin(self, mask: Flags) -> None:
        """Draw the tasks of the runs of a mask, and their initial weights."""
        run = self.run
        for row in np.flatnonzero(mask).tolist():
            seed = int(run.seed[row])
            task = self.source.draw(seed) if self._next_tasks is None else self._next_tasks[row]
            self._tell(row, task)
            self.engine.begin(row, task, seed)
            run.momentum[row], run.weight_decay[row] = task.momentum, task.weight_decay
            run.loss_scale[row] = task.loss_scale
            run.learning_rate[row] = run.chosen_learning_rate[row] = task.start_learning_rate
            if run.layout.measures:
                run.start_learning_rate[row] = run.chosen_learning_rate_before[row] = task.start_learning_rate
        run.copy_clocks()

    # --- the step ---------------------------------------------------------------------------------------------------

    def _train(self) -> None:
        """The action and its mini-batches."""
        self._act_and_train()

    def _train_action(self, begins: Flags | None) -> None:
        """The mini-batches of the runs that play."""
        run: Any = self.arrays  # NumPy's
        counts = np.where(self.run.over, 0, self.run.action_batches)
        most = max(1, int(counts.max()))
        rates = np.broadcast_to(self._learning_rates(np.arange(most)[:, None]), (most, self.num_runs)).T  # (N, M)
        indices = None if self.shuffled else self._draw(counts, most)
        losses, each = self.engine.train(counts, np.ascontiguousarray(rates), indices)
        run.learning_rate[:] = rates[self.rows, np.maximum(counts, 1) - 1]
        with np.errstate(all="ignore"):  # what is not finite is replaced
            for number in range(most):
                loss, played = losses[:, number], number < counts
                change = self.running_mean_weight * (loss - run.smoothed_loss)
                run.smoothed_loss += np.where(played, change, np.float32(0))
                run.loss += np.where(played, loss, np.float32(0))
        if self.run.layout.measures:
            run.losses[:, :most] = losses
        if indices is not None:
            run.batch_indices[:, :most] = indices
        if each is not None:
            self._image_losses[:] = 0
            self._image_losses[:, :most] = each

    def _learning_rates(self, ahead: Array) -> Array:
        """See `Training._learning_rates`; by each row's schedule."""
        if not any(self.schedules):
            return super()._learning_rates(ahead)
        run, xp = self.arrays, self.parts.xp
        share = xp.astype(run.clock + ahead, xp.float64) / run.budget
        rates = np.zeros(np.broadcast_shapes(share.shape, (self.num_runs,)))
        for name in set(self.schedules):
            schedule = self.schedule if name is None else SCHEDULES[name]
            mine = np.array([own == name for own in self.schedules])
            rates[..., mine] = schedule.rate(xp, run.chosen_learning_rate[mine], share[..., mine])
        return rates

    def _draw(self, counts: NDArray[np.int64], most: int) -> NDArray[np.int64]:
        """The indices of the mini-batches of an action, (N, most, images of the largest mini-batch).

        counts: (N,), of the mini-batches of each row.
        """
        run: Any = self.arrays
        shares = self._wanted_classes()
        assert shares is not None
        numbers = run.clock[:, None] + np.arange(most)  # (N, M)
        offsets = random_streams.uniform_at(self.run.seed[:, None], random_streams.SHARES, numbers)
        shares, there, sizes = (
            np.repeat(value, most, axis=0) for value in (shares, self.members.sizes > 0, run.batch_size)
        )
        flat = counts_of_shares(self.parts.xp, shares, there, sizes, offsets.reshape(-1))  # (N * M, K)
        wanted = flat.reshape(self.num_runs, most, -1)
        wanted *= (np.arange(most) < counts[:, None])[:, :, None] & run.by_class[:, None, None]
        given = (self.run.seed, wanted, run.class_used, self.source.room[1], self.parts.engine == "native")
        indices: NDArray[np.int64] = self.members.draw_all(self.parts.xp, *given)
        self._draw_shuffled(np.flatnonzero(~run.by_class & (counts > 0)), counts, indices)
        return indices

    def _draw_shuffled(self, rows: Rows, counts: Rows, indices: NDArray[np.int64]) -> None:
        """Write the next mini-batches of shuffled SGD of some rows into `indices` (N, M, room)."""
        run, room = self.run, indices.shape[2]
        row = np.repeat(rows, counts[rows])  # (all their mini-batches,)
        number = np.concatenate([np.arange(count) for count in counts[rows]] or [rows])
        size, batch_size = run.train_size.numpy()[row].astype(np.int64), run.batch_size.numpy()[row].astype(np.int64)
        epoch, place = np.divmod(run.batch[row] + number, size // batch_size)
        within = np.arange(room) < batch_size[:, None]
        places = np.where(within, (place * batch_size)[:, None] + np.arange(room), 0)
        indices[row, number] = random_streams.shuffled(run.seed[row], random_streams.SHUFFLED, epoch, places, size)

    def _images_of_action(self) -> tuple[Array, Array]:
        """See `Training._images_of_action`; runs that were over before it have none."""
        labels = np.where(self.run.over[:, None], -1, self._labels_of_action())
        return labels, self._image_losses.reshape(self.num_runs, -1)

    def _labels_of_action(self) -> Array:
        """See `Training._labels_of_action`."""
        run: Any = self.arrays
        room = run.batch_indices.shape
        numbers, places = np.arange(room[1])[:, None], np.arange(room[2])
        there = (numbers < run.per_action[:, None, None]) & (places < run.batch_size[:, None, None])  # (N, M, B)
        labels = self.labels[self.rows[:, None, None], run.batch_indices]
        return np.where(there, labels, -1).reshape(self.num_runs, -1)

    def only_source(self) -> TaskSource[Any]:
        """Of the task of the only run.

        Raises:
            ResetNeeded: it has none yet.
        """
        return type(self.source)(task=self._task_of(0), batches_per_action=self.source.batches_per_action)

    def _validation_due(self, before: NDArray[np.int64], epochs: NDArray[np.int64]) -> Flags:
        """Only where the task asks for it, for the epochs of small tasks are short."""
        if self.config.validate_every is None:
            return np.zeros(self.num_runs, np.bool_)
        return super()._validation_due(before, epochs)

    # --- copies -----------------------------------------------------------------------------------------------------

    def fork(self, num_runs: int) -> FamilyTraining:
        """See `Training.fork`."""
        run = self.run.fork(num_runs)
        return FamilyTraining(self.parts, self.source, num_runs, run=run, tests=False, tasks=self.tasks * num_runs)

    def __deepcopy__(self, memo: dict[int, Any]) -> FamilyTraining:
        run, tasks = self.run.copy(), self.tasks
        copied = FamilyTraining(self.parts, self.source, self.num_runs, run=run, tests=self.tests, tasks=tasks)
        memo[id(self)] = copied
        return copied


@cache
def room(name: str, side: int) -> int:
    """Numbers of a network, by its name and the pixels a side that it sees; building one takes up to 0.1 seconds."""
    return build_network(name, (1, side, side), 10).size()


def has_room(family: type[TaskSource[Any]], task: TaskRecord) -> bool:
    """Whether a task is no larger than those that a family draws, so that its runs have room for it beside others."""
    if task.batches_per_action > family.most_drawn or task.kind not in family.largest:
        return False
    if family.most_images and (task.train_size > family.most_images or task.batch_size > family.most_batch):
        return False
    return room(task.network, task.resolution) <= room(*family.largest[task.kind])


def family_parts(config: TaskConfig, source: TaskSource[Any], device: str, engine: str) -> Components:
    """What the runs of a family have in common.

    Args:
        config: what the tasks do not say.
        source: of the tasks.
        device: "cpu".
        engine: "auto", "native" or "torch", see `qan_gym.core.engine`.

    Raises:
        ValueError: the device is another, there is no library for engine="native", or there are fewer images than a
            task may take.
    """
    if torch.device(device).type != "cpu":
        raise ValueError(f"the runs of a family are small and of different shapes: device must be cpu, not {device!r}")
    source.require_images(load_dataset(config.dataset))
    typical = build_components(replace(config, **source.typical_settings()), device, "torch")
    most = max(room(*source.largest[kind]) for kind in source.network_kinds)
    most = most if source.task is None else max(most, typical.network.size())
    network = Network(typical.network.image_shape, {"weights": (most,)}, typical.network.forward, shown="weights")
    found = decide(engine, _kernels_obstacle)
    observer = Observer(typical.config, network, typical.n_classes)
    return replace(typical, network=network, observer=observer, engine=found, xp=namespace(found, typical.device))


def _kernels_obstacle() -> str | None:
    """The reason why the kernels cannot train multilayer perceptrons here; None where they can."""
    found = library.find()
    return found if isinstance(found, str) else None
