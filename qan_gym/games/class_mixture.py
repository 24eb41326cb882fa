"""The class-mixture game: raise, lower or keep the share of the rare classes in the next mini-batches.

Few actions over few mixtures, for agents that learn from few trainings: the mini-batch game asks ten times as much.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from qan_gym.config import TaskConfig
from qan_gym.core.features import register_feature
from qan_gym.core.run_state import TensorSpec
from qan_gym.games.game import Game, register_game
from qan_gym.utils.arrays import Array

if TYPE_CHECKING:
    from gymnasium import spaces

    from qan_gym.core.run_state import RunState

RAISE, LOWER, KEEP = 0, 1, 2
# Each class in proportion to a power of its size; from the first one, each gives the rare classes more than the last.
MIXTURES = ("natural", "square-root", "class-balanced", "inverse-root")  # powers 1, 1/2, 0 and -1/2


class ClassMixtureGame(Game):
    """Go through MIXTURES, one at a time, from the first, which is that of the data; nobody acting stays there."""

    controlled = "share of the rare classes"
    baselines = ("uniform", "class-balanced", "deferred", "validation-proportional")
    base = "natural"
    few_features = ("budget_used", "class_mixture", "log_loss", "log_validation_loss")
    curve = None

    def check(self, config: TaskConfig) -> None:
        """See `Game.check`."""
        if config.continuous:
            raise ValueError(f"continuous=True: the actions of the game {config.game!r} are raise, lower and keep")
        if not config.replacement:
            raise ValueError(f"the game {config.game!r} needs replacement=True: else an epoch shows every image once")

    def action_space(self, config: TaskConfig, n_classes: int) -> spaces.Space[Any]:
        """See `Game.action_space`."""
        from gymnasium import spaces

        return spaces.Discrete(3)

    def no_op(self, config: TaskConfig) -> Any:
        """See `Game.no_op`."""
        return KEEP

    def action_names(self, config: TaskConfig, n_classes: int) -> list[str]:
        """See `Game.action_names`."""
        return ["raise", "lower", "keep"]

    def action_heights(self, config: TaskConfig, n_classes: int) -> list[float]:
        """See `Game.action_heights`."""
        return [1.0, -1.0, 0.0]

    def tensors(self, config: TaskConfig, n_classes: int) -> dict[str, TensorSpec]:
        """The number of the mixture, in MIXTURES."""
        return {"mixture": TensorSpec((), torch.int64, at_least=0, at_most=len(MIXTURES) - 1)}

    def apply(self, run: RunState, actions: Array, config: TaskConfig) -> None:
        """See `Game.apply`."""
        xp, mixture = run.xp, run.game["mixture"]
        changed = mixture + xp.astype(actions == RAISE, xp.int64) - xp.astype(actions == LOWER, xp.int64)
        mixture[:] = xp.minimum(xp.maximum(changed, 0), len(MIXTURES) - 1)

    def class_shares(self, run: RunState, config: TaskConfig) -> Array:
        """See `Game.class_shares`."""
        return mixture_shares(run.xp, run.class_sizes, run.game["mixture"])


def mixture_shares(xp: Any, sizes: Array, mixture: Array) -> Array:
    """The shares of the classes, (N, K) float64 of any sum; 0 of a class without images.

    Roots and quotients alone, which are the same on every machine.

    Args:
        xp: the namespace of the arrays.
        sizes: (N, K), training images of each class.
        mixture: (N,) int64, the place in MIXTURES.
    """
    numbers = xp.astype(sizes, xp.float64)
    there, root = xp.astype(sizes > 0, xp.float64), xp.sqrt(numbers)
    chosen, shares = mixture[:, None], there / xp.maximum(root, 1.0)
    for place, own in enumerate((numbers, root, there)):
        shares = xp.where(chosen == place, own, shares)
    return shares


def class_mixture(run: RunState) -> Array:
    """Of the class-mixture game: the place of the mixture, 0: as the data are, to 3: in proportion to size**-1/2."""
    return run.game["mixture"]


register_feature("class_mixture", class_mixture, reads="mixture")
register_game("class-mixture", ClassMixtureGame())
