"""Pictures of an episode: frames, the window that shows them, the history and the baseline run that they draw."""

from qan_gym.rendering.frames import FILTER_SCALE, FPS, mosaic, tiles

__all__ = ["FILTER_SCALE", "FPS", "mosaic", "tiles"]
