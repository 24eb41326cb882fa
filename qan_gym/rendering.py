"""The screen as an image: the filters, and the course of the episode so far."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qan_gym.tasks import TaskConfig

SIZE = (960, 540)  # pixels
FILTER_LIMIT = 0.5  # of the colour scale, fixed so that frames can be compared
CURVES = ("batch", "learning_rate", "loss", "smoothed_loss", "validation_loss", "validation_accuracy")


class History:
    """The scalars of an episode that the pictures draw, one row per step, the reset first."""

    def __init__(self, rows: NDArray[np.float64] | None = None) -> None:
        """rows: (steps + 1, len(CURVES) + 1), the last column the action (-1: none)."""
        self._rows: list[list[float]] = [] if rows is None else rows.tolist()

    def start(self, info: dict[str, Any]) -> None:
        """Forget the last episode; info is that of the reset."""
        self._rows = []
        self.add(info, -1)

    def add(self, info: dict[str, Any], action: Any) -> None:
        """Add a step."""
        self._rows.append([*(float(info[name]) for name in CURVES), float(np.asarray(action).item())])

    def rows(self) -> NDArray[np.float64]:
        """(steps + 1, len(CURVES) + 1) float64."""
        return np.asarray(self._rows, dtype=np.float64).reshape(-1, len(CURVES) + 1)

    def curve(self, name: str) -> NDArray[np.float64]:
        """(steps + 1,), one of CURVES or "action"."""
        return self.rows()[:, [*CURVES, "action"].index(name)]


def line(history: History) -> str:
    """The episode in one line of text."""
    last = dict(zip([*CURVES, "action"], history.rows()[-1], strict=True))
    return (
        f"batch {last['batch']:6.0f}  action {last['action']:5.2f}  learning rate {last['learning_rate']:.4f}  "
        f"loss {last['loss']:.4f}  smoothed {last['smoothed_loss']:.4f}  "
        f"validation {last['validation_loss']:.4f} / {last['validation_accuracy']:.1%}"
    )


def tiles(filters: NDArray[np.float32]) -> NDArray[np.float32]:
    """Filters (F, h, w) as one picture, a gap of one between tiles; gaps are NaN."""
    count, height, width = filters.shape
    columns = min(count, int(np.ceil(np.sqrt(count * 1.5))))
    rows = -(-count // columns)
    canvas = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1), np.nan, dtype=np.float32)
    for number, picture in enumerate(filters):
        top, left = (number // columns) * (height + 1) + 1, (number % columns) * (width + 1) + 1
        canvas[top : top + height, left : left + width] = picture
    return canvas


def frame(filters: NDArray[np.float32], history: History, config: TaskConfig) -> NDArray[np.uint8]:
    """The picture of a moment, (H, W, 3) uint8.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('rendering needs matplotlib: python -m pip install "qan-gym[render]"') from error

    figure = Figure(figsize=(SIZE[0] / 100, SIZE[1] / 100), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    halves: Any = figure.subfigures(1, 2, width_ratios=[1, 1.1])
    left, right = halves
    screen, (control, loss) = left.add_subplot(), right.subplots(2, 1, sharex=True)

    image = screen.imshow(tiles(np.nan_to_num(filters)), cmap="RdBu", vmin=-FILTER_LIMIT, vmax=FILTER_LIMIT)
    screen.set_axis_off()
    rows, columns = filters.shape[1:]
    many = f"the {len(filters)} filters, {rows} x {columns}"
    screen.set_title(many if len(filters) > 1 else f"{rows} x {columns} weights of the layer shown")
    left.colorbar(image, ax=screen, label="weight", orientation="horizontal", shrink=0.8)

    batch = history.curve("batch")
    if config.game == "lr":
        control.step(batch, history.curve("learning_rate"), where="pre", color="tab:orange")
        control.set(yscale="log", ylim=(config.learning_rate_min, config.learning_rate_max))
        control.set_ylabel("learning rate")
    else:
        control.plot(batch[1:], history.curve("action")[1:], ".", color="tab:orange")
        control.set_ylabel("class chosen")
    loss.plot(batch[1:], history.curve("loss")[1:], color="0.75", linewidth=0.8, label="mini-batches")
    loss.plot(batch, history.curve("smoothed_loss"), color="tab:blue", label="running mean")
    loss.plot(batch, history.curve("validation_loss"), color="tab:green", drawstyle="steps-post", label="validation")
    loss.set(yscale="log", xlabel="mini-batches", ylabel="loss (nats)")
    loss.legend(loc="lower left", fontsize="small")
    loss.set_xlim(0, max(batch[-1], 1))
    for axes in (control, loss):
        axes.grid(alpha=0.3)
    figure.suptitle(f"mini-batch {batch[-1]:.0f}, validation accuracy {history.curve('validation_accuracy')[-1]:.1%}")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
