"""The core: N training runs in lock-step. The order of a step is written here, and only here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from qan_gym.core.components import Components
from qan_gym.core.meta_momentum import Pull
from qan_gym.core.reward import reward_terms
from qan_gym.core.run_state import Flags, Layout, RunState
from qan_gym.core.sampling import Sampler
from qan_gym.data import augmentation
from qan_gym.optimizee.network import Params, evaluate, leaves, loss_and_gradients
from qan_gym.optimizee.optimizers import Hyperparameters
from qan_gym.schedules import SCHEDULES
from qan_gym.utils.cuda_graph import CapturedGraph
from qan_gym.utils.precision import Precision

RUNNING_MEAN_IMAGES = 500  # the running mean of the losses remembers about so many images
CPU_BLOCK = 16  # runs in one gradient computation on CPU: more do not fit its cache
EVALUATION_BATCH = 20  # images in a pass when networks are measured; at least, where they are computed one by one
LOSS_LIMIT = 1e6  # replaces larger losses and NaN

Info = dict[str, Tensor]  # name -> (N,)


@dataclass(frozen=True)
class StepResult:
    """The result of a step; everything has the leading axis N and is finite. The info is valid until the next step.

    Attributes:
        observation: (N, rows * columns) float32.
        reward: (N,) float32.
        terminated: (N,) bool, on the host: diverged, target reached or stopped early.
        truncated: (N,) bool, on the host: budget spent.
        info: scalars by name, the same at every step.
        test: test_loss and test_accuracy, (N,), where some run has ended (0 for the others); else empty.
    """

    observation: Tensor
    reward: Tensor
    terminated: Flags
    truncated: Flags
    info: Info
    test: Info


class Seen(NamedTuple):
    """The result of `Training._see`: observation (N, rows * columns), and the reward's terms by name, (N,) each."""

    observation: Tensor
    reward_terms: Info


@dataclass(frozen=True)
class Block:
    """Runs whose gradients are computed together: which rows, their networks, slots and references, all views."""

    rows: slice
    params: Params
    trained: Params
    slots: dict[str, Params]
    reference: Params | None


class Training:
    """N independent runs of one task, each with its own weights, data order, hyperparameters and clock.

    The clocks, the seeds and whether an episode is over are the host's: so it knows without asking the device when an
    epoch begins. Everything else lies on the device and is changed in place, so that on CUDA the two halves of a
    step, `_act_and_train` and `_see`, are each one captured graph; between them the host reads two flags per run.

    Attributes:
        parts: the components of the task.
        run: the state of the runs.
        reference: w*, N networks (rows without one are unused, see `RunState.has_reference`), or None.
    """

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
        self.exact = Precision("float32", self.device)  # for measuring
        self.sampler = Sampler(self.data.labels["train"], parts.n_classes, config.batch_size)
        self.schedule = SCHEDULES[config.schedule]
        self.pull = Pull(config, self.network, parts.batches_per_epoch)
        self.running_mean_weight = min(1.0, config.batch_size / RUNNING_MEAN_IMAGES)
        self.run = run or RunState.allocate(self._layout())
        self._evenly = torch.full_like(self.run.memory[0], 1 / self.network.size())
        self._shared_reference = reference
        self.reference = self._references(reference)
        if run is None:
            self.run.has_reference.fill_(reference is not None)
        together = num_runs if self.device.type == "cuda" else min(num_runs, CPU_BLOCK)
        self.blocks = self._divide(together if self.network.at_once else 1)
        on_cuda = self.device.type == "cuda"
        self.act_and_train: Callable[[], None] = CapturedGraph(self._act_and_train) if on_cuda else self._act_and_train
        self.see: Callable[[], Seen] = CapturedGraph(self._see) if on_cuda else self._see

    def close(self) -> None:
        """Break the reference cycles (the two halves of a step refer to it), so that its memory is freed at once."""
        del self.act_and_train, self.see

    def fork(self, num_runs: int) -> Training:
        """The only run, `num_runs` times over from where it stands; for looking ahead, see `tests`."""
        return Training(self.parts, self._shared_reference, num_runs, run=self.run.fork(num_runs), tests=False)

    def _layout(self) -> Layout:
        parts, config = self.parts, self.config
        space = parts.action_space
        return Layout(
            num_runs=self.num_runs,
            device=self.device,
            network=self.network,
            slots=parts.optimizer.slots,
            own_reference=config.reference == "previous",
            sizes={
                "train_size": len(self.data.labels["train"]),
                "n_classes": parts.n_classes,
                "batches_per_action": config.batches_per_action,
                "batch_size": config.batch_size,
                "budget": parts.budget,
                "network_size": self.network.size(),
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

    def _divide(self, size: int) -> list[Block]:
        blocks = []
        for start in range(0, self.num_runs, size):
            rows = slice(start, start + size)
            params = leaves(self.network, _rows_of(self.run.params, rows))
            trained = {name: params[name] for name in self.network.trained}
            slots = {slot: _rows_of(buffers, rows) for slot, buffers in self.run.slots.items()}
            blocks.append(Block(rows, params, trained, slots, self.reference and _rows_of(self.reference, rows)))
        return blocks

    # --- reset ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
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
        run.copy_clocks()
        for name, value in self.network.initial_params(run.device_seed[rows]).items():
            run.params[name][rows] = value
        run.by_class[rows] = not shuffled and self.parts.game.class_counts(run, self.config) is not None
        self._validate(mask)
        for loss in (
            *(run.loss, run.smoothed_loss, run.smoothed_loss_before),
            *(run.validation_loss_before, run.best_validation_loss),
        ):
            loss[rows] = run.validation_loss[rows]
        seen = self._see()
        terms = {name: value.index_fill(0, rows, 0.0) for name, value in seen.reward_terms.items()}
        return seen.observation, {**self.info(), **terms}

    # --- step -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, actions: Tensor) -> StepResult:
        """One action of every run: the action, then its mini-batches, then what is measured and seen.

        A run whose episode is over is carried along; what is returned for it means nothing until it is reset.

        Args:
            actions: (N,) int64 of a Discrete space, (N, *shape) of others; on the host or the device.
        """
        run, count, per_epoch = self.run, self.config.batches_per_action, self.parts.batches_per_epoch
        run.action.copy_(actions)
        ahead = np.arange(count)[:, None]
        begins = (run.batch + ahead) % per_epoch == 0  # (count, N), an epoch
        if begins[1:].any():
            self._act_and_train(begins)
        else:
            self._start_epochs(begins[0], 0)
            self.act_and_train()
        epoch_before = run.batch // per_epoch
        run.batch += count

        diverged, success = torch.stack([run.diverged, run.success]).cpu().numpy()  # here the host waits for the device
        whole_epoch = (run.batch // per_epoch > epoch_before) & ~run.over
        budget_spent = (run.batch >= self.parts.budget) & ~run.over
        terminated = (diverged | success) & ~run.over
        every = self.config.validate_every or per_epoch
        due = (run.batch // every > (run.batch - count) // every) & ~run.over
        self._validate(terminated | budget_spent | whole_epoch | due)
        if self.config.early_stopping is not None and whole_epoch.any():
            epochs = run.batch // per_epoch - epoch_before
            terminated |= self._stop_early(whole_epoch & ~terminated, epochs, self.config.early_stopping)
        truncated = budget_spent & ~terminated
        ended = terminated | truncated
        run.over |= ended
        run.ended.copy_(torch.from_numpy(ended))
        test = self._finish(ended, ended & ~diverged)
        seen = self.see()
        return StepResult(
            observation=seen.observation,
            reward=reduce(torch.add, seen.reward_terms.values()),
            terminated=terminated,
            truncated=truncated,
            info={**self.info(), **seen.reward_terms},
            test=test,
        )

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
        if begins.any():
            epoch = (self.run.batch[begins] + ahead) // self.parts.batches_per_epoch
            seeds, epochs = (torch.from_numpy(value).to(self.device) for value in (self.run.seed[begins], epoch))
            self.sampler.start_epoch(self.run, self._rows(begins), seeds, epochs)

    def _act_and_train(self, begins: Flags | None = None) -> None:
        """The action and its mini-batches.

        begins: (batches_per_action, N) bool, where epochs begin; None: they have begun already.
        """
        run, config = self.run, self.config
        run.smoothed_loss_before.copy_(run.smoothed_loss)
        run.validation_loss_before.copy_(run.validation_loss)
        self.parts.game.apply(run, run.action, config)
        run.last_action.copy_(self.parts.game.shown_action(run.action, config))
        losses = []
        for number in range(config.batches_per_action):
            if begins is not None:
                self._start_epochs(begins[number], number)
            losses.append(self._train_on_batch(number))
        run.loss.copy_(reduce(torch.add, losses) / len(losses))  # one after the other: the same for every N
        mean = torch.mv(run.memory, self._evenly) + run.loss  # finite exactly if the loss and every weight is
        torch.ne(mean - mean, 0, out=run.diverged)  # infinity minus infinity is not a number, which is not 0
        _bound(run.loss)
        _bound(run.smoothed_loss)
        if config.target_loss is not None:
            run.success.copy_(~run.diverged & (run.smoothed_loss <= config.target_loss))

    def _train_on_batch(self, number: int) -> Tensor:
        """Mini-batch, gradient, update, pull; returns the loss (N,) before the update."""
        run = self.run
        indices = self.sampler.draw(run, self.parts.game.class_counts(run, self.config))  # (N, B)
        run.batch_indices[:, number] = indices
        run.learning_rate.copy_(self.schedule.rate(run.chosen_learning_rate, run.clock / self.parts.budget))
        hyper = Hyperparameters(run.learning_rate, run.momentum, run.weight_decay)
        pulled = run.has_reference & (run.clock < self.pull.batches)
        strength = pulled * self.pull.strength
        loss = torch.cat([self._update(block, indices[block.rows], hyper, strength) for block in self.blocks])
        run.smoothed_loss.lerp_(loss, self.running_mean_weight)
        run.clock += 1
        return loss

    def _update(self, block: Block, indices: Tensor, hyper: Hyperparameters, strength: Tensor) -> Tensor:
        """As `_train_on_batch` for n of the runs; indices (n, B), hyperparameters and strength of the pull of all N."""
        run, rows, reference, optimizer = self.run, block.rows, block.reference, self.parts.optimizer
        images = self._images(rows, indices)  # (n, B, C, H, W)
        labels = self.data.labels["train"][indices]
        soft_targets = weight = None
        if self.config.distillation > 0 and reference is not None:
            with self.exact:
                soft_targets = self.network.forward(reference, images, False).softmax(dim=2)  # (n, B, K)
            weight = run.has_reference[rows] * self.config.distillation
        with self.parts.precision:
            loss, gradients = loss_and_gradients(
                self.network, block.params, images, labels, soft_targets, weight, self.parts.precision.dtype
            )
        mine = Hyperparameters(*(values[rows] for values in hyper))
        optimizer.update(block.trained, gradients, block.slots, mine, run.clock[rows])
        if reference is not None:
            # The copies of the weights that an optimizer keeps are pulled too.
            for weights in (block.params, *(block.slots[slot] for slot in getattr(optimizer, "copies", ()))):
                self.pull.apply(weights, reference, strength[rows])
        return loss

    def _images(self, rows: slice, indices: Tensor) -> Tensor:
        """Training images as the network sees them, (n, B, C, H, W), of n runs; indices (n, B)."""
        images = self.data.images["train"]
        if self.config.augment is None:
            return self.data.normalise(images[indices])
        moves = augmentation.draw(self.run.device_seed[rows], self.run.clock[rows], self.config.batch_size)
        moved, inside = augmentation.gather(images, indices, moves, self.config.augment)
        return self.data.normalise(moved) * inside

    # --- evaluation, observation, reward -----------------------------------------------------------------------------

    def _evaluate(self, rows: Tensor, split: str) -> tuple[Tensor, Tensor]:
        """Loss and accuracy of the runs `rows` (M,) on a split; (M,) each."""
        averaged = getattr(self.parts.optimizer, "averaged", None)
        runs, size = 1, max(self.config.batch_size, EVALUATION_BATCH)
        if self.network.at_once:
            # About as many images in a pass as in training, so that it needs no more memory.
            runs, size = max(1, self.blocks[0].rows.stop * self.config.batch_size // EVALUATION_BATCH), EVALUATION_BATCH
        scores = []
        for some in rows.split(runs):
            # Few different numbers of runs, because layers keep memory for each: the last is repeated to a power of 2.
            padded = some[torch.arange(2 ** (len(some) - 1).bit_length(), device=self.device).clamp(max=len(some) - 1)]
            params = _rows_of(self.run.params, padded)
            if averaged is not None:
                slots = {slot: _rows_of(buffers, padded) for slot, buffers in self.run.slots.items()}
                params |= averaged(params, slots)
            with self.exact:
                measured = evaluate(self.network, params, self.data.batches(split, size))
            scores.append(torch.stack(measured)[:, : len(some)])
        loss, accuracy = torch.cat(scores, dim=1)  # (M,) each
        return _bound(loss), accuracy

    def _validate(self, mask: Flags) -> None:
        """Measure the validation loss and accuracy of some runs."""
        if mask.any():
            rows = self._rows(mask)
            self.run.validation_loss[rows], self.run.validation_accuracy[rows] = self._evaluate(rows, "validation")

    def validate_unfinished(self) -> None:
        """Measure the runs that are not over (the others are measured); the info of the last step shows it."""
        self._validate(~self.run.over)

    def _finish(self, ended: Flags, whole: Flags) -> Info:
        """The test set, read where an episode has ended; and the weights of whole ones for the next one's reference."""
        if not self.tests or not ended.any():
            return {}
        run, rows = self.run, self._rows(ended)
        test = {name: torch.zeros_like(run.loss) for name in ("test_loss", "test_accuracy")}
        test["test_loss"][rows], test["test_accuracy"][rows] = self._evaluate(rows, "test")
        if run.reference:
            rows = self._rows(whole)
            for name, value in run.params.items():
                run.reference[name][rows] = value[rows]
            run.has_reference[rows] = True
        return test

    def _see(self) -> Seen:
        """Observations and rewards."""
        return Seen(self.parts.observer.observe(self.run), reward_terms(self.config.reward, self.run))

    def info(self) -> Info:
        """The scalars of `info` by name, (N,) each; not copies."""
        run = self.run
        return {
            "learning_rate": run.learning_rate,
            **{name: getattr(run, name) for name in self.parts.game.hyperparameters},
            "loss": run.loss,
            "smoothed_loss": run.smoothed_loss,
            "epoch": run.clock // self.parts.batches_per_epoch,
            "batch": run.clock,
            "validation_loss": run.validation_loss,
            "validation_accuracy": run.validation_accuracy,
            "diverged": run.diverged,
            "is_success": run.success,
            "early_stopped": run.early_stopped,
        }


def _rows_of(params: Params, rows: slice | Tensor) -> Params:
    return {name: value[rows] for name, value in params.items()}


def _bound(loss: Tensor) -> Tensor:
    """Clamp in place to LOSS_LIMIT, which also replaces NaN; returns the same tensor."""
    return torch.nan_to_num(loss, LOSS_LIMIT, LOSS_LIMIT, out=loss).clamp_(max=LOSS_LIMIT)
