"""A training run of the two games for MNIST, written a second time: slowly, plainly, and from DESIGN.md alone.

Nothing here is imported from qan_gym. One network, `torch.optim.SGD`, Python lists and floats; every rule stands as
the sentence of the design says it. The order of the images inside a class is random, so the indices of the batches
are given to `SlowTraining.step`, and only what each batch must hold (how many of each class) is worked out here.
"""

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

RAISE, LOWER, KEEP = 0, 1, 2


class SlowCNN(nn.Module):
    """The paper's network, in the paper's order: convolution, tanh, then max-pool."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 5)
        self.conv2 = nn.Conv2d(32, 64, 5)
        self.linear1 = nn.Linear(256, 200)
        self.linear2 = nn.Linear(200, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = F.max_pool2d(torch.tanh(self.conv1(images)), 3)
        x = F.max_pool2d(torch.tanh(self.conv2(x)), 2)
        x = torch.tanh(self.linear1(x.flatten(1)))
        return self.linear2(x)

    @classmethod
    def of(cls, weights: dict[str, np.ndarray]) -> "SlowCNN":
        """A network with these weights."""
        network = cls()
        network.load(weights)
        return network

    def load(self, weights: dict[str, np.ndarray]) -> None:
        """Take over these weights."""
        self.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in weights.items()})

    def numpy(self) -> dict[str, np.ndarray]:
        """The weights by name, copies."""
        return {name: value.detach().numpy().copy() for name, value in self.named_parameters()}


@torch.no_grad()
def evaluate(network: SlowCNN, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy and accuracy."""
    logits = network(images)
    accuracy = (logits.argmax(dim=1) == labels).to(torch.float64).mean().item()
    return F.cross_entropy(logits, labels).item(), accuracy


class SlowRoulette:
    """The last ten actions, the newest last, and for each class the list of the images left in this epoch."""

    def __init__(self, labels: np.ndarray, batch_size: int) -> None:
        self.labels = labels.tolist()
        self.classes = range(10)
        self.batch_size = batch_size
        self.remembered = deque([0] * 10, maxlen=10)
        self.start_epoch()

    def start_epoch(self) -> None:
        self.left = {label: [] for label in self.classes}
        for image, label in enumerate(self.labels):
            self.left[label].append(image)

    def remember(self, action: int) -> None:
        self.remembered.append(action)

    def next_batch(self) -> list[int]:
        """The number of images of each class in the next batch, which are taken from those that are left."""
        share = self.batch_size // 10
        shares = [share] * 9 + [self.batch_size - 9 * share]
        batch = []
        for action, number in zip(self.remembered, shares, strict=True):
            others = [label for label in self.classes if label != action]
            for _ in range(number):
                for label in [action, *others]:
                    if self.left[label]:
                        batch.append(self.labels[self.left[label].pop()])
                        break
        return [batch.count(label) for label in self.classes]


@dataclass
class SlowStep:
    """The results of one action."""

    losses: list[float]  # one per mini-batch, before its update
    class_counts: list[list[int]] | None  # one per mini-batch, what the roulette asks for; None: no roulette
    learning_rate: float
    smoothed_loss: float
    validation_loss: float
    validation_accuracy: float
    observation: np.ndarray  # (rows, 25)
    reward: float
    truncated: bool


class SlowTraining:
    """One training run of one of the games."""

    def __init__(
        self,
        weights: dict[str, np.ndarray],
        splits: dict[str, tuple[np.ndarray, np.ndarray]],
        *,
        game: str,
        batch_size: int,
        epochs: int,
        batches_per_action: int = 1,
        learning_rate: float = 0.05,
        continuous: bool = False,
        action_scale: str = "additive",
        reward: str = "log-loss",
        observation: str = "screen",
        pull: float | str | None = None,
        reference: dict[str, np.ndarray] | None = None,
        distillation: float = 0.0,
    ) -> None:
        self.network = SlowCNN.of(weights)
        self.reference = None if reference is None else SlowCNN.of(reference)
        self.splits = {name: (torch.from_numpy(x), torch.from_numpy(y)) for name, (x, y) in splits.items()}
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=learning_rate)
        self.game, self.batch_size, self.batches_per_action = game, batch_size, batches_per_action
        self.learning_rate, self.continuous, self.action_scale = learning_rate, continuous, action_scale
        self.reward, self.observation_kind = reward, observation
        self.pull, self.distillation = pull, distillation
        self.batches_per_epoch = len(splits["train"][1]) // batch_size
        self.budget = epochs * self.batches_per_epoch
        self.batches_done = 0
        self.last_action = -1.0
        self.roulette = SlowRoulette(splits["train"][1], batch_size) if game == "minibatch" else None
        self.validation_loss, self.validation_accuracy = evaluate(self.network, *self.splits["validation"])
        self.smoothed_loss = self.validation_loss
        self.first_observation = self.observe(change=0.0)

    def step(self, action: float, batches: np.ndarray) -> SlowStep:
        """Action, then for each mini-batch (a row of indices): gradient, update, pull; then measure."""
        before = self.smoothed_loss
        self.last_action = float(action)
        if self.game == "learning-rate":
            self.change_learning_rate(action)
        else:
            self.roulette.remember(int(action))
        losses, class_counts, epoch_ended = [], [], False
        for indices in batches:
            if self.roulette is not None:
                if self.batches_done % self.batches_per_epoch == 0:
                    self.roulette.start_epoch()
                class_counts.append(self.roulette.next_batch())
            losses.append(self.train_on(indices))
            self.smoothed_loss += min(1.0, self.batch_size / 500) * (losses[-1] - self.smoothed_loss)
            self.batches_done += 1
            epoch_ended = epoch_ended or self.batches_done % self.batches_per_epoch == 0
        truncated = self.batches_done == self.budget
        if epoch_ended or truncated:
            self.validation_loss, self.validation_accuracy = evaluate(self.network, *self.splits["validation"])
        return SlowStep(
            losses=losses,
            class_counts=class_counts if self.roulette is not None else None,
            learning_rate=self.learning_rate,
            smoothed_loss=self.smoothed_loss,
            validation_loss=self.validation_loss,
            validation_accuracy=self.validation_accuracy,
            observation=self.observe(change=math.log(self.smoothed_loss) - math.log(before)),
            reward=self.pay(before, losses, truncated),
            truncated=truncated,
        )

    def change_learning_rate(self, action: float) -> None:
        if self.continuous:
            self.learning_rate *= 2.0 ** min(max(action, -1.0), 1.0)
        elif self.action_scale == "additive":
            self.learning_rate += {RAISE: 0.005, LOWER: -0.005, KEEP: 0.0}[action]
        else:
            self.learning_rate *= {RAISE: 1.25, LOWER: 1 / 1.25, KEEP: 1.0}[action]
        self.learning_rate = min(max(self.learning_rate, 0.005), 1.0)

    def train_on(self, indices: np.ndarray) -> float:
        images, labels = self.splits["train"]
        images, labels = images[indices], labels[indices]
        self.optimizer.param_groups[0]["lr"] = self.learning_rate
        self.optimizer.zero_grad()
        logits = self.network(images)
        loss = F.cross_entropy(logits, labels)
        objective = loss
        if self.distillation and self.reference is not None:
            with torch.no_grad():
                targets = self.reference(images).softmax(dim=1)
            objective = loss + self.distillation * F.cross_entropy(logits, targets)
        objective.backward()
        self.optimizer.step()
        if self.reference is not None and self.batches_done // self.batches_per_epoch <= 5:
            self.pull_towards_reference()
        return loss.item()

    def pull_towards_reference(self) -> None:
        if self.pull == "filter-regression":
            for _ in range(3):  # gradient steps on the mean squared error over the 25 weights of each filter
                filters = self.network.conv1.weight
                errors = ((filters - self.reference.conv1.weight.detach()) ** 2).flatten(1).mean(dim=1)  # (32,)
                (gradient,) = torch.autograd.grad(errors.sum(), filters)
                with torch.no_grad():
                    filters -= 0.01 * gradient
        elif self.pull is not None:
            with torch.no_grad():
                for layer in ("conv1", "conv2", "linear1", "linear2"):
                    weight, target = getattr(self.network, layer).weight, getattr(self.reference, layer).weight
                    weight += self.pull * (target - weight)

    def observe(self, change: float) -> np.ndarray:
        rows = self.network.conv1.weight.detach().numpy().reshape(32, 25).copy()
        if self.observation_kind == "screen":
            score_line = np.zeros((1, 25), dtype=np.float32)
            share = self.batches_done / self.budget
            smoothed = math.log(self.smoothed_loss)
            score_line[0, :5] = [math.log(self.learning_rate), share, smoothed, change, self.last_action]
            rows = np.concatenate([rows, score_line])
        return rows

    def pay(self, smoothed_before: float, losses: list[float], ended: bool) -> float:
        if self.reward == "log-loss":
            loss = self.validation_loss if ended else self.smoothed_loss
            return math.log(smoothed_before) - math.log(loss)
        if self.reward == "inverse-loss":
            return 1 / abs(sum(losses) / len(losses) - 1e-4)
        return self.validation_accuracy if ended else 0.0
