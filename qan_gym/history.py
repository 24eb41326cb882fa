"""What the pictures draw: the scalars of an episode, one row per step."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qan_gym.observation import NO_ACTION

SCALARS = ("batch", "learning_rate", "loss", "smoothed_loss", "validation_loss", "validation_accuracy")


class History:
    """The course of an episode: SCALARS, the action, and in the mini-batch game the classes' shares of the batch."""

    def __init__(self, classes: int = 0, rows: NDArray[np.float64] | None = None) -> None:
        """An empty history, or one that goes on.

        Args:
            classes: K, whose shares are kept; 0: of none.
            rows: (steps + 1, len(SCALARS) + 1 + K), what `rows` gave.

        Raises:
            ValueError: the rows are those of another history.
        """
        columns = len(SCALARS) + 1 + classes
        if rows is not None and len(rows) > 0 and rows.shape[1:] != (columns,):
            raise ValueError(f"the state's history has rows of {rows.shape[1:]}, not {columns} numbers")
        self._rows = np.zeros((256, columns)) if rows is None else rows.reshape(-1, columns).copy()
        self._length = 0 if rows is None else len(self._rows)

    def __len__(self) -> int:
        return self._length

    def start(self, info: dict[str, Any]) -> None:
        """Forget the last episode; info is that of the reset."""
        self._length = 0
        self.add(info, NO_ACTION)

    def add(self, info: dict[str, Any], action: Any, shares: NDArray[np.float64] | None = None) -> None:
        """Add a step; shares: (K,) of the classes in its mini-batches."""
        if self._length == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros((max(256, self._length), self._rows.shape[1]))])
        scalars = [float(info[name]) for name in SCALARS]
        row = self._rows[self._length]
        row[: len(SCALARS) + 1] = [*scalars, float(np.asarray(action).item())]
        row[len(SCALARS) + 1 :] = 0.0 if shares is None else shares
        self._length += 1

    def rows(self) -> NDArray[np.float64]:
        """(steps + 1, len(SCALARS) + 1 + K) float64, the reset first; a view."""
        return self._rows[: self._length]

    def curve(self, name: str) -> NDArray[np.float64]:
        """(steps + 1,), one of SCALARS or "action"; a view."""
        return self.rows()[:, [*SCALARS, "action"].index(name)]

    def shares(self) -> NDArray[np.float64]:
        """(steps, K), in [0, 1]."""
        return self.rows()[1:, len(SCALARS) + 1 :]

    def line(self) -> str:
        """The last step in one line of text."""
        last = dict(zip([*SCALARS, "action"], self.rows()[-1], strict=False))
        return (
            f"batch {last['batch']:6.0f}  action {last['action']:5.2f}  learning rate {last['learning_rate']:.4f}  "
            f"loss {last['loss']:.4f}  smoothed {last['smoothed_loss']:.4f}  "
            f"validation {last['validation_loss']:.4f} / {last['validation_accuracy']:.1%}"
        )
