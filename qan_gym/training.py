"""The core: N training runs in lock-step. The order of a step is written here, and only here."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qan_gym import augmentation, meta_momentum, observation
from qan_gym.actions import next_level, scheduled
from qan_gym.cuda_graph import CapturedGraph
from qan_gym.data import load_dataset, on_device
from qan_gym.networks import build_network
from qan_gym.optimizee import (
    Params,
    evaluate,
    leaves,
    loss_and_gradients,
)
from qan_gym.optimizers import build_optimizer
from qan_gym.precision import Precision
from qan_gym.reward import REWARDS, Measurement, reward_terms, safe_log
from qan_gym.sampling import MEMORY, Sampler
from qan_gym.tasks import TaskConfig

SMOOTHING_IMAGES = 500  # the running mean of the losses remembers about so many images
CPU_BLOCK = 16  # runs that go through a gradient together on CPU: as many as keep near the processor
EVALUATION_BATCH = 20  # images in a pass when networks are measured; at least, where they are computed one by one
LOSS_LIMIT = 1e6  # stands for a loss that is larger, or not a number

Info = dict[str, Tensor]  # name -> (N,)
Flags = NDArray[np.bool_]  # (N,), on the host


@dataclass(frozen=True)
class Transition:
    """What a step gives back; everything has the leading axis N and is finite. The info is valid until the next step.

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


class Measured(NamedTuple):
    """The second half of a step: observation (N, rows * columns), and the reward's terms by name, (N,) each."""

    observation: Tensor
    terms: Info


@dataclass(frozen=True)
class Block:
    """Runs that go through a gradient together: which ones, their networks, optimizers and references, all views."""

    rows: slice
    params: Params
    trained: Params
    slots: dict[str, Params]
    reference: Params | None


class Training:
    """N independent runs of one game, each with its own weights, data order, learning rate and clock.

    The clocks, the seeds and whether an episode is over are the host's: so it knows without asking the device when an
    epoch begins. Everything else lies on the device and is changed in place, so that on CUDA the two halves of a
    step, `_play` and `_measure`, are each one captured graph; between them the host reads two flags per run.

    Attributes:
        config: the game.
        network: the kind of network in training.
        data: the data set, on the device.
        budget: mini-batches of an episode.
        params: the N networks.
        reference: w*, N networks (rows without one are unused, see `has_reference`), or None.
        over: the episodes that have ended or not begun.
        batch_indices: (N, batches_per_action, B) int64 into the training split, the last mini-batches.
    """

    def __init__(self, config: TaskConfig, reference: Params | None, num_runs: int = 1, device: str = "cpu") -> None:
        """Set the table; `reset` starts the runs.

        Args:
            config: the game.
            reference: weights of one network (no leading axis), for pull and distillation; None where the game has
                none, or takes the last episode's.
            num_runs: N.
            device: as `torch.device` takes it.

        Raises:
            ValueError: a name in `config` is not registered, or its numbers do not go with the data or the device.
            FileNotFoundError: the data are not there.
        """
        if config.reward not in REWARDS:
            raise ValueError(f"unknown reward {config.reward!r}; there are {', '.join(REWARDS)}")
        self.optimizer = build_optimizer(config)
        dataset = load_dataset(config.dataset)
        channels, height, width = dataset.train.images.shape[1:]
        self.config = config
        self.fingerprint = dataset.fingerprint
        self.n_classes = dataset.n_classes
        self.num_runs = num_runs
        self.device = torch.device(device)
        self.precision = Precision(config.precision, self.device)
        self.exact = Precision("float32", self.device)  # for measuring
        self.network = build_network(config.network, (channels, height, width), dataset.n_classes)
        if config.augment is not None and min(self.network.image_shape[1:]) <= augmentation.PADDING:
            raise ValueError(f"augment needs images of more than {augmentation.PADDING} pixels a side")
        self.data = on_device(dataset, self.network.image_shape, config.train_size, config.preprocess, str(device))
        self.sampler = Sampler(self.data.labels["train"], dataset.n_classes, num_runs, config.batch_size)
        self.budget = self._count_budget()
        self.pull, self.pulled = meta_momentum.pull_of(config, self.network)
        self.pull_batches = meta_momentum.batches_of(config, self.pull, self.sampler.batches_per_epoch)
        self.screen_shape = observation.screen_shape(self.network, config.observation)
        self.smoothing = min(1.0, config.batch_size / SMOOTHING_IMAGES)
        self._allocate()
        self.adopt(reference)
        on_cuda = self.device.type == "cuda"
        self.play: Callable[[], None] = CapturedGraph(self._play) if on_cuda else self._play
        self.measure: Callable[[], Measured] = CapturedGraph(self._measure) if on_cuda else self._measure

    def close(self) -> None:
        """End it, so that its memory is free when the last reference goes: the two halves of a step hold it as well."""
        del self.play, self.measure

    def _count_budget(self) -> int:
        config, size = self.config, len(self.sampler.labels)
        if config.batch_size > size:
            raise ValueError(f"batch_size {config.batch_size} is larger than the training split of {size} images")
        batches = config.epochs * self.sampler.batches_per_epoch
        if config.batches_per_action > batches:
            raise ValueError(
                f"batches_per_action {config.batches_per_action} is larger than the budget of {batches} mini-batches"
            )
        return batches - batches % config.batches_per_action  # every action covers the same number

    def adopt(self, reference: Params | None) -> None:
        """Take reference weights; before the first reset.

        Args:
            reference: see `__init__`.
        """
        self.reference: Params | None = None
        if reference is not None:
            one = self.network.views(torch.zeros(1, self.network.size(), device=self.device))
            self.reference = {name: one[name].copy_(reference[name]).expand_as(self.params[name]) for name in one}
        elif self.config.reference == "previous":
            self.reference = self.network.views(torch.zeros_like(self.memory))
        self.has_reference.fill_(reference is not None)
        together = self.num_runs if self.device.type == "cuda" else min(self.num_runs, CPU_BLOCK)
        self.blocks = self._divide(together if self.network.at_once else 1)

    def _allocate(self) -> None:
        n, config, device = self.num_runs, self.config, self.device
        self.seeds = np.zeros(n, np.int64)
        self.batch = np.zeros(n, np.int64)  # mini-batches done
        self.over: Flags = np.ones(n, np.bool_)
        self.memory = torch.zeros(n, self.network.size(), device=device)
        self.evenly = torch.full_like(self.memory[0], 1 / self.network.size())
        self.params = self.network.views(self.memory)
        self.slots = {slot: self.network.views(torch.zeros_like(self.memory)) for slot in self.optimizer.slots}
        self.has_reference = torch.zeros(n, dtype=torch.bool, device=device)
        self.clock = torch.zeros(n, dtype=torch.int64, device=device)  # the device's copy of `batch`
        self.device_seeds = torch.zeros(n, dtype=torch.int64, device=device)  # and of `seeds`
        self.action = torch.zeros(n, dtype=torch.float32 if config.continuous else torch.int64, device=device)
        self.level = torch.zeros(
            n, dtype=torch.float64, device=device
        )  # of the learning rate, which the actions change
        self.learning_rate = torch.zeros(n, dtype=torch.float64, device=device)  # what the schedule makes of it
        self.window = torch.zeros(n, MEMORY, dtype=torch.int64, device=device)  # of the roulette, the newest last
        self.last_action = torch.zeros(n, device=device)
        self.smoothed_before = torch.zeros(n, device=device)  # the last action
        self.levels = torch.zeros(2, n, device=device)
        self.loss, self.smoothed = self.levels
        self.validation_before = torch.zeros(n, device=device)  # the last action
        self.validation_loss = torch.zeros(n, device=device)
        self.validation_accuracy = torch.zeros(n, device=device)
        self.best_validation_loss = torch.zeros(n, device=device)
        self.epochs_since_best = torch.zeros(n, dtype=torch.int64, device=device)
        self.early_stopped = torch.zeros(n, dtype=torch.bool, device=device)
        self.flags = torch.zeros(2, n, dtype=torch.bool, device=device)
        self.diverged, self.success = self.flags
        self.ended = torch.zeros(n, dtype=torch.bool, device=device)
        size = (n, config.batches_per_action, config.batch_size)
        self.batch_indices = torch.zeros(size, dtype=torch.int64, device=device)

    def _divide(self, size: int) -> list[Block]:
        blocks = []
        for start in range(0, self.num_runs, size):
            rows = slice(start, start + size)
            params = leaves(self.network, _rows_of(self.params, rows))
            trained = {name: params[name] for name in self.network.trained}
            slots = {slot: _rows_of(buffers, rows) for slot, buffers in self.slots.items()}
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
            shuffled: in the mini-batch game, ignore the roulette and visit the data as shuffled SGD does.

        Returns:
            The observations (N, rows * columns) and infos of all runs.
        """
        self.seeds[mask] = seeds[mask]
        self.batch[mask] = 0
        self.over[mask] = False
        self._copy_clocks()
        rows = self._rows(mask)  # (M,)
        for name, value in self.network.initial_params(self.device_seeds[rows]).items():
            self.params[name][rows] = value
        for buffers in self.slots.values():
            for value in buffers.values():
                value[rows] = 0
        self.level[rows] = self.learning_rate[rows] = self.config.learning_rate
        self.window[rows] = 0
        self.last_action[rows] = observation.NO_ACTION
        self.batch_indices[rows] = 0
        self.sampler.by_class[rows] = self.config.game == "minibatch" and not shuffled
        self._validate(mask)
        for loss in (self.loss, self.smoothed_before, self.smoothed, self.validation_before):
            loss[rows] = self.validation_loss[rows]
        self.best_validation_loss[rows] = self.validation_loss[rows]
        self.epochs_since_best[rows] = 0
        for flag in (self.diverged, self.success, self.early_stopped, self.ended):
            flag[rows] = False
        measured = self._measure()
        terms = {name: value.index_fill(0, rows, 0.0) for name, value in measured.terms.items()}
        return measured.observation, {**self.measured(), **terms}

    # --- step -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, actions: Tensor) -> Transition:
        """One action of every run: the action, then its mini-batches, then what is measured.

        A run whose episode is over is carried along; what is returned for it means nothing until it is reset.

        Args:
            actions: (N,) int64, or float in [-1, 1] where the game is continuous; on the host or the device.
        """
        count, per_epoch = self.config.batches_per_action, self.sampler.batches_per_epoch
        self.action.copy_(actions)
        ahead = np.arange(count)[:, None]
        begins = (self.batch + ahead) % per_epoch == 0  # (count, N), an epoch
        if begins[1:].any():
            self._play(begins)
        else:
            self._start_epochs(begins[0], 0)
            self.play()
        epoch_before = self.batch // per_epoch
        self.batch += count

        diverged, success = self.flags.cpu().numpy().copy()  # here the host waits for the device
        whole_epoch = (self.batch // per_epoch > epoch_before) & ~self.over
        budget_spent = (self.batch >= self.budget) & ~self.over
        terminated = (diverged | success) & ~self.over
        every = self.config.validate_every or per_epoch
        due = (self.batch // every > (self.batch - count) // every) & ~self.over
        self._validate(terminated | budget_spent | whole_epoch | due)
        if self.config.early_stopping is not None and whole_epoch.any():
            epochs = self.batch // per_epoch - epoch_before
            terminated |= self._stop_early(whole_epoch & ~terminated, epochs, self.config.early_stopping)
        truncated = budget_spent & ~terminated
        ended = terminated | truncated
        self.over |= ended
        self.ended.copy_(torch.from_numpy(ended))
        test = self._finish(ended, ended & ~diverged)
        measured = self.measure()
        return Transition(
            observation=measured.observation,
            reward=reduce(torch.add, measured.terms.values()),
            terminated=terminated,
            truncated=truncated,
            info={**self.measured(), **measured.terms},
            test=test,
        )

    def _copy_clocks(self) -> None:
        """Tell the device what the host knows."""
        self.clock.copy_(torch.from_numpy(self.batch))
        self.device_seeds.copy_(torch.from_numpy(self.seeds))

    def _stop_early(self, mask: Flags, epochs: NDArray[np.int64], patience: int) -> Flags:
        """Which of the runs, so many (N,) epochs after the last measurement, have had no lower loss for `patience`."""
        rows = self._rows(mask)
        passed = torch.from_numpy(epochs[mask]).to(self.device)
        better = self.validation_loss[rows] < self.best_validation_loss[rows]
        self.best_validation_loss[rows] = torch.minimum(self.best_validation_loss[rows], self.validation_loss[rows])
        self.epochs_since_best[rows] = torch.where(better, 0, self.epochs_since_best[rows] + passed)
        self.early_stopped[rows] = self.epochs_since_best[rows] >= patience
        stopped: Flags = self.early_stopped.cpu().numpy() & mask
        return stopped

    def _rows(self, mask: Flags) -> Tensor:
        """Which rows a mask names, (M,), on the device."""
        return torch.from_numpy(np.flatnonzero(mask)).to(self.device)

    def _start_epochs(self, begins: Flags, ahead: int) -> None:
        """New orders for the runs that begin an epoch with the batch so many ahead."""
        if begins.any():
            epoch = (self.batch[begins] + ahead) // self.sampler.batches_per_epoch
            seeds, epochs = (torch.from_numpy(value).to(self.device) for value in (self.seeds[begins], epoch))
            self.sampler.start_epoch(self._rows(begins), seeds, epochs)

    def _play(self, begins: Flags | None = None) -> None:
        """The action and its mini-batches; begins: (batches_per_action, N), where epochs begin, unless that is done."""
        self.smoothed_before.copy_(self.smoothed)
        self.validation_before.copy_(self.validation_loss)
        if self.config.game == "lr":
            self.level.copy_(next_level(self.level, self.action, self.config))
        else:
            self.window.copy_(torch.cat([self.window[:, 1:], self.action[:, None]], dim=1))
        self.last_action.copy_(self.action)
        losses = []
        for number in range(self.config.batches_per_action):
            if begins is not None:
                self._start_epochs(begins[number], number)
            losses.append(self._train_on_batch(number))
        self.loss.copy_(reduce(torch.add, losses) / len(losses))  # one after the other: the same for every N
        mean = torch.mv(self.memory, self.evenly) + self.loss  # finite exactly if the loss and every weight is
        torch.ne(mean - mean, 0, out=self.diverged)  # infinity minus infinity is not a number, which is not 0
        _bound(self.levels)
        if self.config.target_loss is not None:
            self.success.copy_(~self.diverged & (self.smoothed <= self.config.target_loss))

    def _train_on_batch(self, number: int) -> Tensor:
        """Batch, gradient, update, pull; returns the loss (N,) before the update."""
        per_epoch = self.sampler.batches_per_epoch
        window = self.window if self.config.game == "minibatch" else None
        indices = self.sampler.draw(self.clock % per_epoch, window)  # (N, B)
        self.batch_indices[:, number] = indices
        self.learning_rate.copy_(scheduled(self.level, self.clock / self.budget, self.config.schedule))
        acts = self.has_reference & (self.clock < self.pull_batches)
        strength, rate = acts * self.pull, self.learning_rate.to(torch.float32)
        loss = torch.cat([self._update(block, indices[block.rows], rate, strength) for block in self.blocks])
        self.smoothed.lerp_(loss, self.smoothing)
        self.clock += 1
        return loss

    def _update(self, block: Block, indices: Tensor, rate: Tensor, strength: Tensor) -> Tensor:
        """As `_train_on_batch` for n of the runs; indices (n, B), learning rate and strength of the pull (N,)."""
        rows, reference = block.rows, block.reference
        images = self._images(rows, indices)  # (n, B, C, H, W)
        labels = self.data.labels["train"][indices]
        soft_targets = weight = None
        if self.config.distillation > 0 and reference is not None:
            with self.exact:
                soft_targets = self.network.forward(reference, images, False).softmax(dim=2)  # (n, B, K)
            weight = self.has_reference[rows] * self.config.distillation
        with self.precision:
            loss, gradients = loss_and_gradients(
                self.network, block.params, images, labels, soft_targets, weight, self.precision.dtype
            )
        self.optimizer.update(block.trained, gradients, block.slots, rate[rows], self.clock[rows])
        if reference is not None:
            # An optimizer's copies of the weights go where the weights go.
            for weights in (block.params, *(block.slots[slot] for slot in getattr(self.optimizer, "copies", ()))):
                meta_momentum.pull(weights, reference, strength[rows], self.pulled)
        return loss

    def _images(self, rows: slice, indices: Tensor) -> Tensor:
        """Training images as the network sees them, (n, B, C, H, W), of n runs; indices (n, B)."""
        images = self.data.images["train"]
        if self.config.augment is None:
            return self.data.normalise(images[indices])
        moves = augmentation.draw(self.device_seeds[rows], self.clock[rows], self.config.batch_size)
        moved, inside = augmentation.gather(images, indices, moves, self.config.augment)
        return self.data.normalise(moved) * inside

    # --- what is measured -------------------------------------------------------------------------------------------

    def _evaluate(self, rows: Tensor, split: str) -> tuple[Tensor, Tensor]:
        """Loss and accuracy of some runs (M,) on a split; (M,) each."""
        averaged = getattr(self.optimizer, "averaged", None)
        runs, size = 1, max(self.config.batch_size, EVALUATION_BATCH)
        if self.network.at_once:
            # About as many images in a pass as in training, so that it needs no more memory.
            runs, size = max(1, self.blocks[0].rows.stop * self.config.batch_size // EVALUATION_BATCH), EVALUATION_BATCH
        scores = []
        for some in rows.split(runs):
            # Few different numbers of runs, because layers keep memory for each: the last is repeated to a power of 2.
            padded = some[torch.arange(2 ** (len(some) - 1).bit_length(), device=self.device).clamp(max=len(some) - 1)]
            params = _rows_of(self.params, padded)
            if averaged is not None:
                params |= averaged(params, {slot: _rows_of(buffers, padded) for slot, buffers in self.slots.items()})
            with self.exact:
                measured = evaluate(self.network, params, self.data.batches(split, size))
            scores.append(torch.stack(measured)[:, : len(some)])
        loss, accuracy = torch.cat(scores, dim=1)  # (M,) each
        return _bound(loss), accuracy

    def _validate(self, mask: Flags) -> None:
        if mask.any():
            rows = self._rows(mask)
            self.validation_loss[rows], self.validation_accuracy[rows] = self._evaluate(rows, "validation")

    def _finish(self, ended: Flags, whole: Flags) -> Info:
        """The test set, read where an episode has ended; and the weights of whole ones for the next one's reference."""
        if not ended.any():
            return {}
        test = {name: torch.zeros_like(self.loss) for name in ("test_loss", "test_accuracy")}
        rows = self._rows(ended)
        test["test_loss"][rows], test["test_accuracy"][rows] = self._evaluate(rows, "test")
        if self.config.reference == "previous" and self.reference is not None:
            rows = self._rows(whole)
            for name, value in self.params.items():
                self.reference[name][rows] = value[rows]
            self.has_reference[rows] = True
        return test

    def _measure(self) -> Measured:
        measurement = Measurement(
            loss=self.loss,
            smoothed_before=self.smoothed_before,
            smoothed=self.smoothed,
            validation_before=self.validation_before,
            validation_loss=self.validation_loss,
            validation_accuracy=self.validation_accuracy,
            ended=self.ended,
        )
        scores = None
        if self.config.observation == "screen":
            level, before = safe_log(self.smoothed), safe_log(self.smoothed_before)
            share = self.clock / self.budget
            rate = self.learning_rate.log().to(torch.float32)
            scores = torch.stack([rate, share, level, level - before, self.last_action], dim=1)  # (N, 5)
            if self.config.validate_every is not None:
                level, before = safe_log(self.validation_loss), safe_log(self.validation_before)
                scores = torch.cat([scores, level[:, None], (level - before)[:, None]], dim=1)  # (N, 7)
        weights = observation.shown_weights(self.network, self.params)  # (N, F, W)
        screen = observation.observe(weights, scores, self.screen_shape[1])
        return Measured(screen, reward_terms(self.config.reward, measurement, self.diverged))

    def measured(self) -> Info:
        """Where the runs stand, by name, (N,) each; not copies."""
        return {
            "learning_rate": self.learning_rate,
            "loss": self.loss,
            "smoothed_loss": self.smoothed,
            "epoch": self.clock // self.sampler.batches_per_epoch,
            "batch": self.clock,
            "validation_loss": self.validation_loss,
            "validation_accuracy": self.validation_accuracy,
            "diverged": self.diverged,
            "is_success": self.success,
            "early_stopped": self.early_stopped,
        }

    # --- save and restore -------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Every tensor that the future depends on, by name; not copies. Random streams are seeds and counters."""
        tensors = {
            "seeds": torch.from_numpy(self.seeds),
            "batch": torch.from_numpy(self.batch),
            "over": torch.from_numpy(self.over),
            "level": self.level,
            "learning_rate": self.learning_rate,
            "window": self.window,
            "last_action": self.last_action,
            "loss": self.loss,
            "smoothed_before": self.smoothed_before,
            "smoothed": self.smoothed,
            "validation_before": self.validation_before,
            "validation_loss": self.validation_loss,
            "validation_accuracy": self.validation_accuracy,
            "best_validation_loss": self.best_validation_loss,
            "epochs_since_best": self.epochs_since_best,
            "early_stopped": self.early_stopped,
            "batch_indices": self.batch_indices,
            "diverged": self.diverged,
            "success": self.success,
            "has_reference": self.has_reference,
            "sampler.order": self.sampler.order,
            "sampler.used": self.sampler.used,
            "sampler.by_class": self.sampler.by_class,
            **{f"params.{name}": value for name, value in self.params.items()},
        }
        for slot, buffers in self.slots.items():
            tensors |= {f"optimizer.{slot}.{name}": buffers[name] for name in self.network.trained}
        if self.config.reference == "previous" and self.reference is not None:
            tensors |= {f"reference.{name}": value for name, value in self.reference.items()}
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Continue from what `state` gave.

        Raises:
            ValueError: a tensor is missing, unknown, or has another shape or dtype.
        """
        mine = self.state()
        if tensors.keys() != mine.keys():
            raise ValueError(f"the state has other tensors: {', '.join(sorted(tensors.keys() ^ mine.keys()))}")
        for name, value in mine.items():
            if tensors[name].shape != value.shape or tensors[name].dtype != value.dtype:
                raise ValueError(
                    f"the state's {name} is {tuple(tensors[name].shape)} {tensors[name].dtype}, "
                    f"not {tuple(value.shape)} {value.dtype}"
                )
        for name, value in mine.items():
            value.copy_(tensors[name])
        self._copy_clocks()


class Imagined(Training):
    """Runs that nobody plays, to be looked at: never judged on the test set, and no episode follows them."""

    def _finish(self, ended: Flags, whole: Flags) -> Info:
        return {}


def _rows_of(params: Params, rows: slice | Tensor) -> Params:
    return {name: value[rows] for name, value in params.items()}


def _bound(loss: Tensor) -> Tensor:
    """In place, and returned: no more than LOSS_LIMIT, which also stands for what is not a number."""
    return torch.nan_to_num(loss, LOSS_LIMIT, LOSS_LIMIT, out=loss).clamp_(max=LOSS_LIMIT)
