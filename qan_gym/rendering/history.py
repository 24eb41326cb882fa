"""The history of an episode that pictures draw: scalars, one row per step."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qan_gym.core.run_state import NO_ACTION
from qan_gym.core.training import Training
from qan_gym.utils.own_settings import own_settings

SCALARS = ("batch", "learning_rate", "loss", "smoothed_loss", "validation_loss", "validation_accuracy")


class History:
    """Scalars of the info, the action, and what is drawn of the classes where a game draws by them, of every step.

    Attributes:
        scalars: SCALARS, and what the game draws beside.
        actions: numbers in an action.
        classes: K, where the shares of the classes are kept; else 0.
        measured: K, where their validation losses are kept, too; else 0.
    """

    def __init__(self, training: Training, rows: NDArray[np.float64] | None = None) -> None:
        """An empty history, or one that continues.

        Args:
            training: whose episodes it is of.
            rows: (steps + 1, columns), what `rows` gave.

        Raises:
            ValueError: the rows are those of another history.
        """
        parts = training.parts
        curve = parts.game.curve
        self.scalars = SCALARS if curve is None or curve in SCALARS else (*SCALARS, curve)
        self.actions = training.run.action[0].numel()
        self.classes = parts.n_classes if curve is None else 0
        self.measured = self.classes if training.run.layout.measures_classes else 0
        columns = len(self.scalars) + self.actions + self.classes + self.measured
        if rows is not None and rows.size > 0 and (rows.ndim != 2 or rows.shape[1] != columns):
            raise ValueError(f"the state's history has rows of {rows.shape[1:]}, not {columns} numbers")
        if rows is not None and (rows.dtype != np.float64 or not np.isfinite(rows).all()):
            raise ValueError("the state's history must be finite numbers of float64")
        self._rows = np.zeros((256, columns)) if rows is None else rows.reshape(-1, columns).copy()
        self._length = 0 if rows is None else len(self._rows)

    def __len__(self) -> int:
        return self._length

    def start(self, info: dict[str, Any]) -> None:
        """Begin an episode; info is that of the reset."""
        self._length = 0
        self.add(info, NO_ACTION)

    def add(self, info: dict[str, Any], action: Any, classes: NDArray[np.float64] | None = None) -> None:
        """Add a step; classes: a row of `class_columns`."""
        if self._length == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros((max(256, self._length), self._rows.shape[1]))])
        row = self._rows[self._length]
        row[: len(self.scalars)] = [float(info[name]) for name in self.scalars]
        row[len(self.scalars) : len(self.scalars) + self.actions] = np.asarray(action, np.float64).reshape(-1)
        row[len(self.scalars) + self.actions :] = 0.0 if classes is None else classes
        self._length += 1

    def rows(self) -> NDArray[np.float64]:
        """(steps + 1, columns) float64, the reset first; a view."""
        return self._rows[: self._length]

    def curve(self, name: str) -> NDArray[np.float64]:
        """(steps + 1,), one of the scalars; a view."""
        return self.rows()[:, self.scalars.index(name)]

    def played(self) -> NDArray[np.float64]:
        """The actions, (steps, numbers in an action); a view."""
        return self.rows()[1:, len(self.scalars) : len(self.scalars) + self.actions]

    def shares(self) -> NDArray[np.float64]:
        """The shares of the classes, (steps, K), in [0, 1]; a view."""
        begin = len(self.scalars) + self.actions
        return self.rows()[1:, begin : begin + self.classes]

    def class_losses(self) -> NDArray[np.float64]:
        """The validation losses of the classes, (steps, K) in nats, (steps, 0) where they are not measured; a view."""
        return self.rows()[1:, len(self.scalars) + self.actions + self.classes :]

    def line(self) -> str:
        """The last step in one line of text."""
        last = dict(zip(self.scalars, self.rows()[-1], strict=False))
        start = len(self.scalars)
        action = " ".join(f"{value:5.2f}" for value in self.rows()[-1, start : start + self.actions])
        return (
            f"batch {last['batch']:6.0f}  action {action}  learning rate {last['learning_rate']:.3g}  "
            f"loss {last['loss']:.4f}  smoothed {last['smoothed_loss']:.4f}  "
            f"validation {last['validation_loss']:.4f} / {last['validation_accuracy']:.1%}"
        )


@own_settings()
def class_columns(training: Training) -> NDArray[np.float64] | None:
    """What is drawn of the classes after an action, (N, K) or (N, 2 K): their shares, and their validation losses.

    The losses are there where they are measured. None: the game does not draw by class.
    """
    shares = training.class_shares()
    if shares is None or not training.run.layout.measures_classes:
        return shares
    return np.concatenate([shares, training.run.class_validation_loss.double().cpu().numpy()], axis=1)
