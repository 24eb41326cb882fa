"""The interface of a game, and the registry of games.

A game says what an action is and what it changes in the runs. Everything else (networks, data, rewards, features,
vector environments, rendering, agents) is the same for all games and asks the game's object.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qan_gym.config import TaskConfig
from qan_gym.schedules import SCHEDULES
from qan_gym.utils.arrays import Array
from qan_gym.utils.names import unknown_name
from qan_gym.utils.registry import add

if TYPE_CHECKING:
    from gymnasium import spaces

    from qan_gym.core.run_state import RunState, TensorSpec


class Game:
    """One game. Subclass it, and register an object of it with `register_game`; see `examples/custom_game.py`.

    The methods that are given runs treat N of them at once (the leading axis of every array is N), change arrays in
    place (`run.momentum[:] = ...`) and never wait for the device: on CUDA they are captured in a graph. The arrays are
    NumPy's on CPU and tensors elsewhere, so they are computed with by operators and by the functions of `run.xp`, the
    Array API standard: `run.xp.where(actions == 0, 0.5, 0.9)`.

    Attributes:
        controlled: what the actions control, in words.
        hyperparameters: those of "learning_rate", "momentum" and "weight_decay" that the actions change. Each is a
            field of the run's state, (N,) float64, and stands in `info`.
        features: names of registered features that the score line shows in addition.
        baselines: names of the fixed policies that an agent is compared with; the first is the baseline.
        base: the name of the fixed policy that nobody acting is, where the actions do not set the learning rate; None:
            it is the schedule of the learning rate.
        few_features: names of the features that agents which learn from few trainings observe; none: the observation
            stays as it is.
        curve: the scalar in `info` that pictures draw as what is controlled; None: the shares of the classes in the
            mini-batches.
        curve_is_logarithmic: whether its axis is.
        without_acting: how the training goes on when nobody acts, a clause that completes "after the action ...".
    """

    controlled: ClassVar[str]
    hyperparameters: ClassVar[tuple[str, ...]] = ()
    features: ClassVar[tuple[str, ...]] = ()
    baselines: ClassVar[tuple[str, ...]] = ("constant",)
    base: ClassVar[str | None] = None
    few_features: ClassVar[tuple[str, ...]] = ()
    curve: ClassVar[str | None] = "learning_rate"
    curve_is_logarithmic: ClassVar[bool] = True
    without_acting: ClassVar[str] = "the same mini-batches follow and nobody acts further"

    # --- the actions ------------------------------------------------------------------------------------------------

    def check(self, config: TaskConfig) -> None:
        """Refuse a configuration that the game cannot play.

        Raises:
            ValueError: what is wrong, and what to do.
        """
        if config.continuous:
            raise ValueError(f"continuous=True: the actions of the game {config.game!r} are not continuous")
        refuse_replacement(config)

    def action_space(self, config: TaskConfig, n_classes: int) -> spaces.Space[Any]:
        """Discrete, MultiDiscrete or Box, of one run."""
        raise NotImplementedError

    def no_op(self, config: TaskConfig) -> Any:
        """The action that leaves everything as it is; None where there is none."""
        return None

    def coarse(self, config: TaskConfig) -> str:
        """The name of the game for agents that learn from few trainings: this one, or one of fewer actions."""
        return config.game

    def action_names(self, config: TaskConfig, n_classes: int) -> list[str]:
        """A name per action of a Discrete space; empty for the others."""
        from gymnasium import spaces

        space = self.action_space(config, n_classes)
        if not isinstance(space, spaces.Discrete):
            return []
        return [str(int(space.start) + action) for action in range(int(space.n))]

    def action_towards(self, config: TaskConfig, learning_rate: float, target: float) -> Any:
        """The action that brings the learning rate nearest to a target.

        Raises:
            ValueError: the actions do not set the learning rate.
        """
        raise ValueError(f"schedules set the learning rate, and the actions of the game {config.game!r} do not")

    # --- pictures ---------------------------------------------------------------------------------------------------

    def curve_limits(self, config: TaskConfig) -> tuple[float, float]:
        """The least and largest value that the axis of `curve` shows in any case."""
        return config.learning_rate_min, config.learning_rate_max * SCHEDULES[config.schedule].peak

    def action_heights(self, config: TaskConfig, n_classes: int) -> list[float]:
        """Where the strip of the last actions draws each action of a Discrete space; the higher, the further up."""
        return [float(action) for action in range(len(self.action_names(config, n_classes)))]

    # --- what they do -----------------------------------------------------------------------------------------------

    def tensors(self, config: TaskConfig, n_classes: int) -> dict[str, TensorSpec]:
        """Tensors of the run that the game adds to its state, by name; it finds them in `run.game`."""
        return {}

    def apply(self, run: RunState, actions: Array, config: TaskConfig) -> None:
        """Change the runs as the actions say, before their mini-batches.

        Args:
            run: the state of N runs.
            actions: (N,) int64 of a Discrete space, (N, k) int64 of a MultiDiscrete, (N, *shape) float32 of a Box.
            config: of the task.
        """
        raise NotImplementedError

    def class_counts(self, run: RunState, config: TaskConfig) -> Array | None:
        """(N, K) int64, how many images of each class the next mini-batch is to have; None: shuffled SGD."""
        return None

    def class_shares(self, run: RunState, config: TaskConfig) -> Array | None:
        """(N, K) float64, of any sum, the shares of the classes in the next mini-batches, drawn with replacement.

        None: shuffled SGD. It is asked where `config.replacement`, and `class_counts` where not.
        """
        return None

    def shown_action(self, actions: Array, config: TaskConfig) -> Array:
        """The number that stands for the last action on the score line, (N,)."""
        return actions.reshape(len(actions), -1)[:, 0]

    def continuation(self, config: TaskConfig, n_classes: int, step: int, first: NDArray[Any]) -> NDArray[Any]:
        """The actions when nobody acts, at a step of the episode, from 0, in the rows of `first`.

        Args:
            config: of the task.
            n_classes: K.
            step: number of the action in the episode.
            first: the actions that were played last by somebody, one per row.
        """
        return np.broadcast_to(np.asarray(self.no_op(config), first.dtype), first.shape)


def refuse_replacement(config: TaskConfig) -> None:
    """Refuse replacement=True in a game that does not choose classes.

    Raises:
        ValueError: it is asked for.
    """
    if config.replacement:
        raise ValueError(f"replacement=True is for games that choose classes, and {config.game!r} does not")


GAMES: dict[str, Game] = {}


def register_game(name: str, game: Game) -> None:
    """Make a game available under a name.

    Args:
        name: what `game=` will accept.
        game: an object of a subclass of `Game`.

    Raises:
        ValueError: the name is taken, or what must be callable is not.
    """
    add(GAMES, "a game", name, game, part=getattr(game, "apply", game))


def game_of(config: TaskConfig) -> Game:
    """The game of a task.

    Raises:
        ValueError: it is not registered.
    """
    if config.game not in GAMES:
        raise ValueError(unknown_name("game", config.game, GAMES))
    return GAMES[config.game]
