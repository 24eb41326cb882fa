"""A backend of matplotlib that claims to have windows and records the frames, for machines without a display."""

import numpy as np
from matplotlib.backend_bases import FigureManagerBase
from matplotlib.backends.backend_agg import FigureCanvasAgg

drawn = []  # the frames of all windows, arrays (H, W, 4)


class FigureCanvas(FigureCanvasAgg):
    """Draws when events are flushed."""

    def flush_events(self):
        self.draw()
        drawn.append(np.array(self.buffer_rgba()))


class FigureManager(FigureManagerBase):
    @classmethod
    def pyplot_show(cls, *, block=None):
        assert block is False, "the training would wait until the window is closed"


FigureCanvas.manager_class = FigureManager
