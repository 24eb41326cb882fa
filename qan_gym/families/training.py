"""N training runs in lock-step, each of a task of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray
from torch import Tensor

from qan_gym.config import TaskConfig
from qan_gym.core.components import RUNNING_MEAN_IMAGES, Components, build_components
from qan_gym.core.engine import decide, namespace
from qan_gym.core.observation import Observer
from qan_gym.core.run_state import Flags, Layout, RunState, TensorSpec
from qan_gym.core.training import Info, Training, check_clock
from qan_gym.data.datasets import DeviceData
from qan_gym.families.engine import SLOTS, FamilyEngine, mini_batch
from qan_gym.families.source import TaskSource
from qan_gym.families.task import CONTEXT, DECISIONS, START, Task
from qan_gym.native import library
from qan_gym.optimizee.network import Network, Params
from qan_gym.optimizee.zoo import build_network
from qan_gym.utils.own_settings import users_threads

CONTEXT_TENSOR = "context"  # of the runs' tasks, (N, contexts), among the tensors of the game


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
        source: TaskSource,
        num_runs: int = 1,
        *,
        run: RunState | None = None,
        tests: bool = True,
        tasks: Sequence[Task | None] = (),
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
        self._next_tasks: Sequence[Task] | None = None
        super().__init__(parts, None, num_runs, run=run, tests=tests)
        self.rows = np.arange(num_runs)
        self.running_mean_weight = np.ones(num_runs, np.float32)
        self.adopt(tasks)

    def _layout(self) -> Layout:
        layout = super()._layout()
        context = {CONTEXT_TENSOR: TensorSpec((len(CONTEXT),), at_reset=None, saved=False)}
        most = self.source.most_batches
        sizes = {"train_size": 0, "batch_size": 0, "n_classes": 0}
        sizes |= {"batches_per_action": most, "budget": DECISIONS * most}
        return replace(layout, slots=SLOTS, sizes={**layout.sizes, **sizes}, game={**layout.game, **context})

    def _make_engine(self) -> FamilyEngine:  # type: ignore[override]
        threads = min(self.num_runs, users_threads())
        return FamilyEngine(self.config, self.run, self.parts.engine, threads)

    # --- tasks ------------------------------------------------------------------------------------------------------

    def reset(
        self, mask: Flags, seeds: NDArray[np.int64], shuffled: bool = False, tasks: Sequence[Task] | None = None
    ) -> tuple[Tensor, Info]:
        """See `Training.reset`; tasks: of the N rows, where they are not drawn.

        Raises:
            ValueError: an action of a task has more mini-batches than the runs have room for.
        """
        longest = max((task.batches_per_action for task in tasks or ()), default=0)
        if longest > self.source.most_batches:
            raise ValueError(
                f"an action of a task has {longest} mini-batches, more than the family's {self.source.most_batches}; "
                "play it alone: give it as `task`"
            )
        self._next_tasks = tasks
        return super().reset(mask, seeds, shuffled)

    @property
    def tasks(self) -> list[Task | None]:
        """Of the rows; None before the first episode."""
        return self.engine.tasks

    def records(self) -> list[Any]:
        """See `Training.records`."""
        return [None if task is None else asdict(task) for task in self.tasks]

    def adopt(self, records: Sequence[Any]) -> None:
        """See `Training.adopt`; also of tasks."""
        for row, record in enumerate(records):
            if record is not None:
                task = Task.from_record(record)
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
        task = Task.from_record(records[0])
        self.run.check_values(tensors, self.config)
        check_clock(tensors, task.batches_per_action, task.budget)

    def task_info(self) -> Info:
        """See `Training.task_info`: the context."""
        context = self.arrays.game[CONTEXT_TENSOR]
        return {name: context[:, column] for column, name in enumerate(CONTEXT)}

    def budget_of(self, row: int) -> int:
        """See `Training.budget_of`."""
        task = self.tasks[row]
        return self.parts.budget if task is None else task.budget

    def task_name(self, row: int) -> str:
        """See `Training.task_name`."""
        task = self.tasks[row]
        return "" if task is None else f"{task.network}, {task.optimizer}"

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
        seed, numbers = int(self.run.seed[row]), range(clock - task.batches_per_action, clock)
        return np.stack([mini_batch(seed, number, task.batch_size, task.train_size) for number in numbers])

    def _parts_of(self, row: int) -> Components:
        """The components of a row's task.

        Raises:
            ResetNeeded: it has none yet.
        """
        task = self.tasks[row]
        if task is None:
            raise ResetNeeded("no task has been drawn: call reset() first")
        return build_components(replace(self.config, **task.settings()), "cpu", "torch")

    def _tell(self, row: int, task: Task) -> None:
        """What the bookkeeping needs to know of a row's task."""
        run = self.run
        run.budgets[row], run.action_batches[row] = task.budget, task.batches_per_action
        run.epoch_batches[row] = task.train_size // task.batch_size
        self.running_mean_weight[row] = min(1.0, task.batch_size / RUNNING_MEAN_IMAGES)
        run.batch_size[row], run.train_size[row] = task.batch_size, task.train_size
        run.n_classes[row] = len(task.classes)
        run.game[CONTEXT_TENSOR][row] = torch.tensor(list(task.context().values()))

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
            run.learning_rate[row] = run.chosen_learning_rate[row] = START[task.optimizer]
            if run.layout.measures:
                run.start_learning_rate[row] = run.chosen_learning_rate_before[row] = START[task.optimizer]
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
        losses = self.engine.train(counts, np.ascontiguousarray(rates))
        run.learning_rate[:] = rates[self.rows, np.maximum(counts, 1) - 1]
        with np.errstate(all="ignore"):  # what is not finite is replaced
            for number in range(most):
                loss, played = losses[:, number], number < counts
                change = self.running_mean_weight * (loss - run.smoothed_loss)
                run.smoothed_loss += np.where(played, change, np.float32(0))
                run.loss += np.where(played, loss, np.float32(0))
        if self.run.layout.measures:
            run.losses[:, :most] = losses

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


LARGEST = {  # of each kind that the family draws, and the pixels a side that it sees
    "mlp": ("mlp-64-64-64", 28),
    "cnn": ("cnn-16-32", 28),
    "mnist-cnn": ("mnist-cnn", 28),
    "resnet-8": ("resnet-8", 28),
    "vit": ("vit-48-3", 28),
}


@cache
def room(kind: str) -> int:
    """Numbers of the largest network of a kind; building one takes up to a tenth of a second."""
    name, side = LARGEST[kind]
    return build_network(name, (1, side, side), 10).size()


def family_parts(config: TaskConfig, source: TaskSource, device: str, engine: str) -> Components:
    """What the runs of a family have in common.

    Args:
        config: what the tasks do not say.
        source: of the tasks.
        device: "cpu".
        engine: "auto", "native" or "torch", see `qan_gym.core.engine`.

    Raises:
        ValueError: the device is another, or there is no library for engine="native".
    """
    if torch.device(device).type != "cpu":
        raise ValueError(f"the runs of a family are small and of different shapes: device must be cpu, not {device!r}")
    typical = build_components(replace(config, **(source.task or Task()).settings()), device, "torch")
    most = max(*map(room, source.networks), 0 if source.task is None else typical.network.size())
    network = Network(typical.network.image_shape, {"weights": (most,)}, typical.network.forward, shown="weights")
    found = decide(engine, _kernels_obstacle)
    observer = Observer(typical.config, network)
    return replace(typical, network=network, observer=observer, engine=found, xp=namespace(found, typical.device))


def _kernels_obstacle() -> str | None:
    """The reason why the kernels cannot train multilayer perceptrons here; None where they can."""
    found = library.find()
    return found if isinstance(found, str) else None
