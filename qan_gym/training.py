"""The core: N training runs in lock-step. The order of a step is written here, and only here."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qan_gym import meta_momentum, observation
from qan_gym.actions import next_learning_rate
from qan_gym.data import load_dataset, on_device
from qan_gym.optimizee import (
    OPTIMIZERS,
    Params,
    build_network,
    evaluate,
    initial_params,
    loss_and_gradients,
)
from qan_gym.reward import REWARDS, Measurement, reward_terms, safe_log
from qan_gym.sampling import MEMORY, Sampler
from qan_gym.tasks import TaskConfig

SMOOTHING_IMAGES = 500  # the running mean of the losses remembers about so many images
LOSS_LIMIT = 1e6  # stands for a loss that is larger, or not a number

Info = dict[str, Tensor]  # name -> (N,)


@dataclass(frozen=True)
class Transition:
    """What a step gives back; every tensor has the leading axis N and is finite.

    Attributes:
        observation: (N, rows * columns) float32.
        reward: (N,) float32.
        terminated: (N,) bool, diverged or target reached.
        truncated: (N,) bool, budget spent.
        info: scalars by name, the same at every step.
        test: test_loss and test_accuracy, (N,), where some run has ended (0 for the others); else empty.
    """

    observation: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    info: Info
    test: Info


class Training:
    """N independent runs of one game, each with its own weights, data order, learning rate and clock.

    Attributes:
        config: the game.
        network: the kind of network in training.
        data: the data set, on the device.
        budget: mini-batches of an episode.
        params: the N networks.
        reference: w*, N networks (rows without one are unused, see `has_reference`), or None.
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
            ValueError: a name in `config` is not registered, or its numbers do not go with the data.
            FileNotFoundError: the data are not there.
        """
        for kind, name, names in (("optimizer", config.optimizer, OPTIMIZERS), ("reward", config.reward, REWARDS)):
            if name not in names:
                raise ValueError(f"unknown {kind} {name!r}; there are {', '.join(names)}")
        dataset = load_dataset(config.dataset)
        channels, height, width = dataset.train.images.shape[1:]
        self.config = config
        self.fingerprint = dataset.fingerprint
        self.n_classes = dataset.n_classes
        self.num_runs = num_runs
        self.device = torch.device(device)
        self.network = build_network(config.network, (channels, height, width), dataset.n_classes)
        self.data = on_device(dataset, self.network.image_shape, config.train_size, str(device))
        self.sampler = Sampler(self.data.labels["train"], dataset.n_classes, num_runs, config.batch_size)
        self.budget = self._count_budget()
        self.update = OPTIMIZERS[config.optimizer]
        self.pull, self.pulled = meta_momentum.pull_of(config, self.network)
        self.screen_shape = observation.screen_shape(self.network, config.observation)
        self.smoothing = min(1.0, config.batch_size / SMOOTHING_IMAGES)
        self._allocate(reference)

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

    def _allocate(self, reference: Params | None) -> None:
        n, config, device = self.num_runs, self.config, self.device
        shapes = self.network.shapes
        self.params: Params = {name: torch.zeros(n, *shape, device=device) for name, shape in shapes.items()}
        self.reference: Params | None = None
        if reference is not None:
            self.reference = {name: reference[name].to(device).expand(n, *shape) for name, shape in shapes.items()}
        elif config.reference == "previous":
            self.reference = {name: torch.zeros_like(value) for name, value in self.params.items()}
        self.has_reference = torch.full((n,), reference is not None, device=device)
        self.seeds = torch.zeros(n, dtype=torch.int64, device=device)
        self.batch = torch.zeros(n, dtype=torch.int64, device=device)  # mini-batches done
        self.learning_rate = torch.zeros(n, dtype=torch.float64, device=device)
        self.window = torch.zeros(n, MEMORY, dtype=torch.int64, device=device)  # of the roulette, the newest last
        self.last_action = torch.zeros(n, device=device)
        self.loss = torch.zeros(n, device=device)
        self.smoothed = torch.zeros(n, device=device)
        self.validation_loss = torch.zeros(n, device=device)
        self.validation_accuracy = torch.zeros(n, device=device)
        size = (n, config.batches_per_action, config.batch_size)
        self.batch_indices = torch.zeros(size, dtype=torch.int64, device=device)

    # --- reset ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def reset(self, mask: Tensor, seeds: Tensor, shuffled: bool = False) -> tuple[Tensor, Info]:
        """Begin new episodes.

        Args:
            mask: (N,) bool, which runs begin anew.
            seeds: (N,) int64; an episode depends on its seed (and its actions, and the last episode's weights with
                reference="previous") and nothing else.
            shuffled: in the mini-batch game, ignore the roulette and visit the data as shuffled SGD does.

        Returns:
            The observations (N, rows * columns) and infos of all runs.
        """
        rows = mask.nonzero().squeeze(1)  # (M,)
        for name, value in initial_params(self.network, seeds[rows]).items():
            self.params[name][rows] = value
        self.seeds[rows] = seeds[rows]
        self.batch[rows] = 0
        self.learning_rate[rows] = self.config.learning_rate
        self.window[rows] = 0
        self.last_action[rows] = observation.NO_ACTION
        self.batch_indices[rows] = 0
        self.sampler.by_class[rows] = self.config.game == "minibatch" and not shuffled
        self._validate(rows)
        self.loss[rows] = self.validation_loss[rows]
        self.smoothed[rows] = self.validation_loss[rows]
        nothing = torch.zeros(self.num_runs, dtype=torch.bool, device=self.device)
        terms = reward_terms(self.config.reward, self._measurement(self.smoothed, nothing), nothing)
        terms = {name: torch.zeros_like(value) for name, value in terms.items()}
        return self._observe(self.smoothed), self._info(nothing, nothing, terms)

    # --- step -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, actions: Tensor) -> Transition:
        """One action of every run: the action, then its mini-batches, then what is measured.

        Args:
            actions: (N,) int64, or float in [-1, 1] where the game is continuous.
        """
        smoothed_before = self.smoothed.clone()
        epoch_before = self._epoch()
        self._act(actions)
        losses = [self._train_on_batch(number) for number in range(self.config.batches_per_action)]
        self.loss = torch.stack(losses).mean(dim=0)

        diverged = ~self._is_finite()
        self.loss, self.smoothed = _bounded(self.loss), _bounded(self.smoothed)
        success = torch.zeros_like(diverged)
        if self.config.target_loss is not None:
            success = ~diverged & (self.smoothed <= self.config.target_loss)
        terminated = diverged | success
        truncated = ~terminated & (self.batch >= self.budget)
        ended = terminated | truncated
        self._validate((ended | (self._epoch() > epoch_before)).nonzero().squeeze(1))

        terms = reward_terms(self.config.reward, self._measurement(smoothed_before, ended), diverged)
        return Transition(
            observation=self._observe(smoothed_before),
            reward=torch.stack(list(terms.values())).sum(dim=0),
            terminated=terminated,
            truncated=truncated,
            info=self._info(diverged, success, terms),
            test=self._finish(ended, diverged),
        )

    def _act(self, actions: Tensor) -> None:
        if self.config.game == "lr":
            self.learning_rate = next_learning_rate(self.learning_rate, actions, self.config)
        else:
            self.window = torch.cat([self.window[:, 1:], actions[:, None]], dim=1)
        self.last_action = actions.to(torch.float32, copy=True)  # the caller's tensor is the caller's

    def _train_on_batch(self, number: int) -> Tensor:
        """Batch, gradient, update, pull; returns the loss (N,) before the update."""
        in_epoch = self.batch % self.sampler.batches_per_epoch
        rows = (in_epoch == 0).nonzero().squeeze(1)
        if len(rows) > 0:
            self.sampler.start_epoch(rows, self.seeds[rows], self._epoch()[rows])
        indices = self.sampler.draw(in_epoch, self.window if self.config.game == "minibatch" else None)  # (N, B)
        self.batch_indices[:, number] = indices
        images = self.data.normalise(self.data.images["train"][indices])  # (N, B, C, H, W)
        labels = self.data.labels["train"][indices]
        soft_targets, weight = self._soft_targets(images)
        loss, gradients = loss_and_gradients(self.network, self.params, images, labels, soft_targets, weight)
        self.update(self.params, gradients, self.learning_rate.to(torch.float32))
        if self.reference is not None and self.pulled:
            acts = self.has_reference & (self._epoch() < self.config.pull_epochs)
            meta_momentum.pull(self.params, self.reference, acts * self.pull, self.pulled)
        self.smoothed = self.smoothed + self.smoothing * (loss - self.smoothed)
        self.batch += 1
        return loss

    def _soft_targets(self, images: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if self.config.distillation == 0 or self.reference is None:
            return None, None
        logits = self.network.forward(self.reference, images)  # (N, B, K)
        return logits.softmax(dim=2), self.has_reference * self.config.distillation

    # --- what is measured -------------------------------------------------------------------------------------------

    def _epoch(self) -> Tensor:
        """Whole epochs done, (N,)."""
        return self.batch // self.sampler.batches_per_epoch

    def _is_finite(self) -> Tensor:
        """Whether the loss and every weight of a run are finite, (N,)."""
        # The largest weight is finite only if all are, and is found faster than asking each of them.
        largest = [torch.linalg.vector_norm(value.flatten(1), ord=torch.inf, dim=1) for value in self.params.values()]
        return torch.stack([self.loss, *largest]).isfinite().all(dim=0)

    def _evaluate(self, rows: Tensor, split: str) -> tuple[Tensor, Tensor]:
        params = {name: value[rows] for name, value in self.params.items()}
        loss, accuracy = evaluate(self.network, params, *self.data.split(split))
        return _bounded(loss), accuracy

    def _validate(self, rows: Tensor) -> None:
        if len(rows) > 0:
            self.validation_loss[rows], self.validation_accuracy[rows] = self._evaluate(rows, "validation")

    def _finish(self, ended: Tensor, diverged: Tensor) -> Info:
        """The test set, read where an episode is over; and the weights for the next one's reference."""
        rows = ended.nonzero().squeeze(1)
        if len(rows) == 0:
            return {}
        test = {name: torch.zeros_like(self.loss) for name in ("test_loss", "test_accuracy")}
        test["test_loss"][rows], test["test_accuracy"][rows] = self._evaluate(rows, "test")
        if self.config.reference == "previous" and self.reference is not None:
            whole = (ended & ~diverged).nonzero().squeeze(1)
            for name, value in self.params.items():
                self.reference[name][whole] = value[whole]
            self.has_reference[whole] = True
        return test

    def _measurement(self, smoothed_before: Tensor, ended: Tensor) -> Measurement:
        return Measurement(
            self.loss, smoothed_before, self.smoothed, self.validation_loss, self.validation_accuracy, ended
        )

    def _observe(self, smoothed_before: Tensor) -> Tensor:
        scores = None
        if self.config.observation == "screen":
            change = safe_log(self.smoothed) - safe_log(smoothed_before)
            share = self.batch / self.budget
            rate = self.learning_rate.log().to(torch.float32)
            scores = torch.stack([rate, share, safe_log(self.smoothed), change, self.last_action], dim=1)  # (N, 5)
        return observation.observe(self.params[self.network.shown], scores, self.screen_shape[1])

    def measured(self) -> Info:
        """Where the runs stand, by name, (N,) each, copies."""
        return {
            "learning_rate": self.learning_rate.clone(),
            "loss": self.loss.clone(),
            "smoothed_loss": self.smoothed.clone(),
            "epoch": self._epoch(),
            "batch": self.batch.clone(),
            "validation_loss": self.validation_loss.clone(),
            "validation_accuracy": self.validation_accuracy.clone(),
        }

    def _info(self, diverged: Tensor, success: Tensor, terms: Info) -> Info:
        return {**self.measured(), "diverged": diverged, "is_success": success, **terms}

    # --- save and restore -------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Every tensor that the future depends on, by name; not copies. Random streams are seeds and counters."""
        tensors = {
            "seeds": self.seeds,
            "batch": self.batch,
            "learning_rate": self.learning_rate,
            "window": self.window,
            "last_action": self.last_action,
            "loss": self.loss,
            "smoothed": self.smoothed,
            "validation_loss": self.validation_loss,
            "validation_accuracy": self.validation_accuracy,
            "batch_indices": self.batch_indices,
            "has_reference": self.has_reference,
            "sampler.order": self.sampler.order,
            "sampler.used": self.sampler.used,
            "sampler.by_class": self.sampler.by_class,
            **{f"params.{name}": value for name, value in self.params.items()},
        }
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


def _bounded(loss: Tensor) -> Tensor:
    return loss.nan_to_num(LOSS_LIMIT, LOSS_LIMIT).clamp(max=LOSS_LIMIT)
