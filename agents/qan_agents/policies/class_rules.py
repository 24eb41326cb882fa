"""Rules for the shares of the classes in mini-batches that are drawn with replacement.

A rule is a function of what is known of the classes. `RulePolicy` plays one through the continuous actions of the
mini-batch game; the benches play the same rules in many rows at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from qan_gym.core.training import Training
from qan_gym.env import QanEnv
from qan_gym.games.minibatch import logits_of_shares
from qan_gym.utils.arrays import to_numpy

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Classes:
    """What is known of the classes of N runs; losses are in nats.

    Attributes:
        sizes: (N, K), training images.
        losses: (N, K), the running mean of the training loss; None where it is not measured.
        validation_losses: (N, K), on some validation images; None where it is not measured.
        used: (N,), share of the budget that is used.
    """

    sizes: Float64
    losses: Float64 | None
    validation_losses: Float64 | None
    used: Float64

    @classmethod
    def of(cls, training: Training) -> Classes:
        """Those of a training now."""
        run, measured = training.arrays, training.run.layout.measures_classes
        sizes = to_numpy(run.class_sizes).astype(np.float64)
        used = to_numpy(run.clock) / to_numpy(run.budget)
        if not measured:
            return cls(sizes, None, None, used)
        losses, validation = (to_numpy(one).astype(np.float64) for one in (run.class_loss, run.class_validation_loss))
        return cls(sizes, losses, validation, used)


Rule = Callable[[Classes], Float64]  # -> (N, K) shares, at least 0, of any sum


@dataclass(frozen=True)
class ByPower:
    """In proportion to a power of the size: 0: all classes alike, 1/2: its square root, 1: as the data are."""

    power: float

    def __call__(self, classes: Classes) -> Float64:
        """The shares, see `Rule`."""
        shares: Float64 = np.where(classes.sizes > 0, classes.sizes, 0.0) ** self.power * (classes.sizes > 0)
        return shares


@dataclass(frozen=True)
class Deferred:
    """As the data are, then all classes alike (deferred re-balancing, Cao et al. 2019, arXiv:1906.07413).

    Attributes:
        start: share of the budget at which they become alike.
    """

    start: float

    def __call__(self, classes: Classes) -> Float64:
        """The shares, see `Rule`."""
        late = classes.used[:, None] >= self.start
        return np.where(late, ByPower(0.0)(classes), ByPower(1.0)(classes))


@dataclass(frozen=True)
class LossProportional:
    """In proportion to a power of the loss of a class.

    Attributes:
        power: of the loss.
        validation: whether it is the loss on validation images.
    """

    power: float
    validation: bool = False

    def __call__(self, classes: Classes) -> Float64:
        """The shares, see `Rule`.

        Raises:
            ValueError: the losses are not measured.
        """
        training, validation = measured_losses(classes)
        return by_loss(validation if self.validation else training, self.power, classes)


@dataclass(frozen=True)
class LossReducing:
    """In proportion to a power of the part of a class's training loss that more training on the class can reduce.

    As in reducible holdout loss selection (Mindermann et al. 2022, arXiv:2206.07137) that is the training loss less the
    part that held-out images say is irreducible; but of classes in the place of images, and without a second network:
    irreducible is by how much the training loss is above the loss on the clean validation images, which is what label
    noise adds to it. What is left is the smaller one of the two losses: large neither for a class whose labels are
    noisy, nor for a rare one that is known by heart.

    Attributes:
        power: of that part.
    """

    power: float

    def __call__(self, classes: Classes) -> Float64:
        """The shares, see `Rule`.

        Raises:
            ValueError: the losses are not measured.
        """
        training, validation = measured_losses(classes)
        irreducible = np.maximum(training - validation, 0)
        return by_loss(training - irreducible, self.power, classes)


def measured_losses(classes: Classes) -> tuple[Float64, Float64]:
    """In training and on validation images, (N, K) each.

    Raises:
        ValueError: they are not measured.
    """
    if classes.losses is None or classes.validation_losses is None:
        raise ValueError("the losses of the classes are not measured: make the environment with observation='classes'")
    return classes.losses, classes.validation_losses


def by_loss(losses: Float64, power: float, classes: Classes) -> Float64:
    """Shares in proportion to a power of losses (N, K), of the classes that have images."""
    shares: Float64 = np.clip(losses, 1e-3, 1e3) ** power * (classes.sizes > 0)
    return shares


RULES: dict[str, Rule] = {
    "natural": ByPower(1.0),
    "class-balanced": ByPower(0.0),
    "square-root": ByPower(0.5),
    "deferred": Deferred(0.6),
    "loss-proportional": LossProportional(1.0),
    "validation-proportional": LossProportional(1.0, validation=True),
    "loss-reducing": LossReducing(1.0),
}


def rule_actions(rule: Rule, training: Training) -> NDArray[np.float32]:
    """The actions of a rule in every row, (N, K) float32."""
    shares = rule(Classes.of(training))
    return logits_of_shares(np.where(shares.sum(axis=1, keepdims=True) > 0, shares, 1.0))


def require_shares(training: Training) -> None:
    """Refuse an environment whose actions are not the shares of the classes.

    Raises:
        ValueError: it is such an environment.
    """
    config = training.config
    if training.shuffled or not (config.replacement and config.continuous):
        raise ValueError(
            f"this policy sets the shares of the classes: it plays games that choose classes, made with "
            f"replacement=True and continuous=True, and not {config.game!r} as it is"
        )


class RulePolicy:
    """Plays a rule in a single environment, or in a row of several; see `qan_agents.policies.fixed.Policy`."""

    def __init__(self, rule: Rule) -> None:
        """rule: see the module."""
        self.rule = rule

    def start(self, env: gym.Env[Any, Any], seed: int) -> None:
        """See `Policy.start`."""
        inner = cast(QanEnv, env.unwrapped)
        self.training, self.row = inner.training, inner.row
        config, game = self.training.config, self.training.parts.game
        self.no_op = game.no_op(config) if game.base and RULES.get(game.base) is self.rule else None
        if self.no_op is None:
            require_shares(self.training)

    def act(self, observation: NDArray[Any], info: dict[str, Any]) -> Any:
        """See `Policy.act`; the action that leaves things as they are in a game where that is the rule."""
        return rule_actions(self.rule, self.training)[self.row] if self.no_op is None else self.no_op
