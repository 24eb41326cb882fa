"""A backend of matplotlib's that takes itself for one with windows, so that what a window shows can be tested."""

import numpy as np
from matplotlib.backend_bases import FigureManagerBase
from matplotlib.backends.backend_agg import FigureCanvasAgg

drawn = []  # what was shown, as arrays (H, W, 4)


class FigureCanvas(FigureCanvasAgg):
    """Draws when it is told that it may, as windows do when they are idle."""

    def flush_events(self):
        self.draw()
        drawn.append(np.array(self.buffer_rgba()))


class FigureManager(FigureManagerBase):
    @classmethod
    def pyplot_show(cls, *, block=None):
        assert block is False, "the training would stand still until the window is closed"


FigureCanvas.manager_class = FigureManager
