"""A window that shows frames as they come."""

import time
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from qan_gym.rendering.frames import DPI


def missing_display() -> str | None:
    """Why matplotlib can open no window; None where it can."""
    import matplotlib
    from matplotlib.backends import registry

    backend = matplotlib.get_backend()
    if backend.lower() not in registry.backend_registry.list_builtin(registry.BackendFilter.NON_INTERACTIVE):
        return None
    return (
        f"a window needs a display, and matplotlib found none (its backend is {backend!r}; the variable MPLBACKEND "
        "chooses one that opens windows)"
    )


class Window:
    """A window of matplotlib, with the backend that it has chosen; without a display, none, and a warning says so."""

    def __init__(self, title: str, fps: int) -> None:
        """Open nothing yet: the first `show` does.

        Args:
            title: of the window.
            fps: frames per second that it can be asked to show at most; others are left out (see `due`).

        Raises:
            ImportError: matplotlib is missing.
        """
        from matplotlib import pyplot

        missing = missing_display()
        self.has_display = missing is None
        if missing is not None:
            gym.logger.warn(f"{missing}; render_mode='rgb_array' needs none: nothing is shown")
        self._pyplot, self._title, self._fps = pyplot, title, fps
        self._figure: Any = None
        self._shown = -np.inf

    def due(self) -> bool:
        """Whether the time for the next frame has come; without a display, never."""
        return self.has_display and time.monotonic() - self._shown >= 1 / self._fps

    def show(self, frame: NDArray[np.uint8]) -> None:
        """Show a frame (H, W, 3); do nothing without a display, and if the user has closed the window."""
        if not self.has_display:
            return
        pyplot = self._pyplot
        if self._figure is None:
            height, width = frame.shape[:2]
            self._figure = pyplot.figure(figsize=(width / DPI, height / DPI), dpi=DPI)
            self._figure.canvas.manager.set_window_title(self._title)
            axes = self._figure.add_axes((0, 0, 1, 1))
            axes.set_axis_off()
            self._image = axes.imshow(frame)
            pyplot.show(block=False)
        if pyplot.fignum_exists(self._figure.number):
            self._image.set_data(frame)
            self._figure.canvas.draw_idle()
            self._figure.canvas.flush_events()
        self._shown = time.monotonic()

    def close(self) -> None:
        """Close the window."""
        if self._figure is not None:
            self._pyplot.close(self._figure)
            self._figure = None
