"""Frames: filters, the controlled quantity, losses, the last actions and the Q-values of an agent, as one picture.

Frames are drawn in the middle of a training, so they must be cheap: axes, ticks and labels are drawn once and kept as
a background, and each frame draws only what changes ("blitting"). The background changes with the limits of the axes:
as the episode grows longer, and for values beyond an axis.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from qan_gym.core.components import Components
from qan_gym.rendering.history import History
from qan_gym.utils.extras import install_extra

DPI, FPS = 100, 10
FRAME, TILE = (1080, 720), (480, 320)  # pixels: of a frame, and of one of a vector environment's
FILTER_LIMIT = 0.4  # of the colour scale, fixed so that frames can be compared
TASK_LINE = 0.028  # of a frame's height
LAST_ACTIONS = 50  # that the strip shows
MOST_NUMBERS = 10  # of Q-values beside their bars
CANVASES = 8  # kept for reuse; an episode needs a few, and the next one the same
LONGEST_LINE = 1_500  # points of a curve that are drawn at most; more than its pixels
CLASS_LOSSES = (0.05, 5.0)  # nats, of the colour scale, which is logarithmic
LEAST_LOSS, LARGEST_LOSS = 1e-6, 1e3  # the widest limits of the loss axis

# Okabe and Ito's colours, for the colour-blind; widths, dashes and marks distinguish curves in grey prints.
CONTROL, MEAN, VALIDATION, BASELINE, BATCHES = "#D55E00", "#0072B2", "#009E73", "0.35", "0.8"
COMPONENTS = ((CONTROL, "s"), ("#56B4E9", "o"), ("#CC79A7", "^"), ("#F0E442", "D"))  # of an action's numbers
ORDINALS = ("1st", "2nd", "3rd", "4th")
SHARES = "Greys"  # as the scale of the filters, of monotonic lightness, for grey prints
FILTER_SCALE = {"cmap": "cividis", "vmin": -FILTER_LIMIT, "vmax": FILTER_LIMIT, "interpolation": "nearest"}

Artist = Any  # matplotlib's, which has no types
Limits = tuple[float, float]


@dataclass(frozen=True)
class FrameContent:
    """The content of a frame.

    Attributes:
        filters: (F, h, w) float32, the weights shown, as pictures.
        history: of the episode so far.
        baseline: mini-batches and running mean of the loss of the baseline, (n,) each, or None.
        values: (A,) the Q-values of an agent, or None.
        title: of the frame.
        budget: mini-batches of the episode; None: of the renderer's task.
        task: what the episode trains, in lines above the filters; empty where the title says it.
    """

    filters: NDArray[np.float32]
    history: History
    baseline: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    values: NDArray[np.float64] | None = None
    title: str = ""
    budget: int | None = None
    task: tuple[str, ...] = ()


class AxesLayout(NamedTuple):
    """The limits of the axes and which elements are drawn: frames of one layout share their background."""

    width: int
    curve: Limits
    loss: Limits
    baseline: bool
    values: int
    task: int
    classes: bool


def tiles(filters: NDArray[np.float32]) -> NDArray[np.float32]:
    """Filters (F, h, w) as one picture, within the colour scale, a gap of one between tiles.

    Gaps are NaN; weights that are not a number are 0.
    """
    filters = np.nan_to_num(filters).clip(-FILTER_LIMIT, FILTER_LIMIT)
    count, height, width = filters.shape
    columns = min(count, int(np.ceil(np.sqrt(count * 1.5))))
    rows = -(-count // columns)
    canvas = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1), np.nan, dtype=np.float32)
    for number, picture in enumerate(filters):
        top, left = (number // columns) * (height + 1) + 1, (number % columns) * (width + 1) + 1
        canvas[top : top + height, left : left + width] = picture
    return canvas


def mosaic(frames: tuple[NDArray[np.uint8], ...]) -> NDArray[np.uint8]:
    """Frames (H, W, 3) of the same size as one picture, about as wide as high; missing ones white."""
    height, width, depth = frames[0].shape
    columns = int(np.ceil(np.sqrt(len(frames) * height / width)))
    rows = -(-len(frames) // columns)
    canvas = np.full((rows, columns, height, width, depth), 255, np.uint8)
    for number, frame in enumerate(frames):
        canvas[number // columns, number % columns] = frame
    picture: NDArray[np.uint8] = canvas.swapaxes(1, 2).reshape(rows * height, columns * width, depth)
    return picture


def require_matplotlib() -> None:
    """Find out whether matplotlib is installed.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(f"rendering needs matplotlib: {install_extra('render')}") from error


class FrameRenderer:
    """Draws the frames of one task, all of the same size."""

    def __init__(self, parts: Components, small: bool = False) -> None:
        """Draw nothing yet: `draw` does.

        Args:
            parts: of the task.
            small: a tile of a mosaic, without the strip of actions and the values.
        """
        self.parts, self.small = parts, small
        self._canvases: dict[AxesLayout, Canvas] = {}

    def __getstate__(self) -> dict[str, Any]:
        """For copies: canvases cannot be copied, and are drawn again."""
        return {**self.__dict__, "_canvases": {}}

    def draw(self, content: FrameContent) -> NDArray[np.uint8]:
        """The frame of some content, (H, W, 3) uint8."""
        return self.canvas(content).draw(content)

    def canvas(self, content: FrameContent) -> "Canvas":
        """The canvas for some content, from those kept or new."""
        layout = self.layout(content)
        canvas = self._canvases.pop(layout, None) or Canvas(self.parts, self.small, layout, content)
        self._canvases[layout] = canvas  # the most recently used is last
        if len(self._canvases) > CANVASES:
            del self._canvases[next(iter(self._canvases))]
        return canvas

    def layout(self, content: FrameContent) -> AxesLayout:
        """The layout for some content."""
        return AxesLayout(
            width=self._width(content),
            curve=self._curve_limits(content),
            loss=self._loss_limits(content),
            baseline=content.baseline is not None,
            values=0 if content.values is None or self.small else len(content.values),
            task=len(content.task),
            classes=content.history.measured > 0,
        )

    def _width(self, content: FrameContent) -> int:
        """Of the curves, in mini-batches: the budget; early in an episode a fourth of it, or a fourth of that."""
        batch, width = content.history.curve("batch")[-1], content.budget or self.parts.budget
        least = LAST_ACTIONS * width // self.parts.episode_length
        while width >= 4 * max(batch, least):
            width = -(-width // 4)
        return width

    def _curve_limits(self, content: FrameContent) -> Limits:
        game = self.parts.game
        if game.curve is None:
            return 0.0, 1.0
        low, high = game.curve_limits(self.parts.config)
        values = content.history.curve(game.curve)
        if game.curve_is_logarithmic:
            low = max(min(low, _decade_below(values.min())), LEAST_LOSS)
            high = high if values.max() <= high else 10 * _decade_below(values.max())
            return low / 1.3, high * 1.3
        span = (high - low) or 1.0
        low -= span * np.ceil(max(0.0, low - values.min()) / span)  # in whole spans, so that few canvases are needed
        high += span * np.ceil(max(0.0, values.max() - high) / span)
        return float(low - 0.05 * span), float(high + 0.05 * span)

    def _loss_limits(self, content: FrameContent) -> Limits:
        history = content.history
        curves = [history.curve(name) for name in ("loss", "smoothed_loss", "validation_loss")]
        curves += [content.baseline[1]] if content.baseline is not None else []
        low = max(LEAST_LOSS, _decade_below(min(curve.min() for curve in curves)))
        high = min(LARGEST_LOSS, 10 * _decade_below(max(curve.max() for curve in curves)))
        return min(low, 0.01), max(high, 1.0)


class Canvas:
    """The axes of one layout, drawn once, and the curves and pictures that each frame draws.

    Attributes:
        figure: matplotlib's.
    """

    def __init__(self, parts: Components, small: bool, layout: AxesLayout, content: FrameContent) -> None:
        """Draw the background; parts and small as in `FrameRenderer`, content of the first frame."""
        self.parts, self.config, self.game, self.n_classes = parts, parts.config, parts.game, parts.n_classes
        self.small = small
        self._draw_background(layout, content)

    def draw(self, content: FrameContent) -> NDArray[np.uint8]:
        """The frame of some content, (H, W, 3) uint8."""
        self._canvas.restore_region(self._background)
        self._update(content)
        renderer = self._canvas.get_renderer()
        for artist in self._artists:
            artist.draw(renderer)
        return np.asarray(self._canvas.buffer_rgba())[..., :3].copy()

    # --- background -------------------------------------------------------------------------------------------------

    def _draw_background(self, layout: AxesLayout, content: FrameContent) -> None:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        width, height = TILE if self.small else FRAME
        with rc_context({"font.size": 7 if self.small else 9.5, "axes.titlesize": "medium"}):
            figure = self.figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
            self._canvas = FigureCanvasAgg(figure)
            self._artists: list[Artist] = []
            self._title = self._add(figure.text(0.02, 0.955, "", fontsize=8 if self.small else 12))
            above = TASK_LINE * layout.task  # the filters, where there are lines
            self._task = self._add(figure.text(0.02, 0.92, "", verticalalignment="top", linespacing=1.3))
            if self.small:
                self._add_filters(figure, (0.02, 0.08, 0.36, 0.82 - above), content, scale=False)
                control = figure.add_axes((0.49, 0.55, 0.46, 0.31))
                self._add_control(control, layout)
                self._add_loss(figure.add_axes((0.49, 0.12, 0.46, 0.31), sharex=control), layout)
            else:
                beside = layout.values > 0
                low = 0.42 if beside else 0.16
                self._add_filters(figure, (0.02, low, 0.38, (0.92 if beside else 0.91) - above - low), content)
                if beside:
                    self._add_values(figure.add_axes((0.075, 0.045, 0.25, 0.19)), layout.values)
                control = figure.add_axes((0.49, 0.66, 0.48, 0.235))
                self._add_control(control, layout)
                self._add_loss(figure.add_axes((0.49, 0.285, 0.48, 0.28), sharex=control), layout)
                below = figure.add_axes((0.49, 0.045, 0.48, 0.125))
                if layout.classes:
                    self._add_class_losses(below, layout)
                else:
                    self._add_strip(below)
            for artist in self._artists:
                artist.set_animated(True)
            self._canvas.draw()
        self._background = self._canvas.copy_from_bbox(figure.bbox)

    def _add(self, artist: Artist) -> Artist:
        self._artists.append(artist)
        return artist

    def _add_filters(
        self, figure: Any, place: tuple[float, float, float, float], content: FrameContent, scale: bool = True
    ) -> None:
        axes = figure.add_axes(place)
        axes.set_axis_off()
        self._filters = self._add(axes.imshow(tiles(content.filters), **FILTER_SCALE))
        if scale:
            count, rows, columns = content.filters.shape
            many = f"the {count} filters, {rows} x {columns}"
            axes.set_title(many if count > 1 else f"{rows} x {columns} weights of the layer shown")
            below = figure.add_axes((0.09, place[1] - 0.04, 0.24, 0.018))
            bar = figure.colorbar(self._filters, cax=below, orientation="horizontal")
            bar.set_label("weight", labelpad=1)
            bar.set_ticks([-FILTER_LIMIT, 0, FILTER_LIMIT])

    def _add_control(self, axes: Any, layout: AxesLayout) -> None:
        axes.xaxis.get_major_locator().set_params(integer=True)
        if self.game.curve is not None:
            axes.set(yscale="log" if self.game.curve_is_logarithmic else "linear", ylim=layout.curve)
            # A title, because tiles have no room for a label beside the axis.
            axes.set_title(self.game.curve.replace("_", " "), loc="left")
            axes.grid(alpha=0.3)
            (self._control,) = axes.plot([], [], color=CONTROL, linewidth=1.8, drawstyle="steps-pre")
            self._add(self._control)
        else:
            what = "dark: many" if self.small else "dark: many of a class"
            axes.set_title(f"classes of the mini-batches ({what})", loc="left")
            axes.set(ylim=(-0.5, self.n_classes - 0.5), yticks=self._some_classes(), ylabel="class")
            look = {"cmap": SHARES, "vmin": 0, "vmax": 1, "aspect": "auto", "origin": "lower"}
            self._control = self._add(axes.imshow(np.zeros((self.n_classes, 1)), interpolation="nearest", **look))
        axes.set_xlim(0, layout.width)  # after `imshow`, which sets it too
        axes.tick_params(labelbottom=False)

    def _some_classes(self) -> range:
        """About five classes, for the ticks of an axis."""
        return range(0, self.n_classes, max(1, self.n_classes // 5))

    def _add_loss(self, axes: Any, layout: AxesLayout) -> None:
        axes.set(yscale="log", ylim=layout.loss)
        axes.set_xlabel("mini-batches", labelpad=1)
        axes.grid(alpha=0.3)
        styles = {
            "mini-batches": {"color": BATCHES, "linewidth": 0.8},
            "baseline": {"color": BASELINE, "linewidth": 1.6, "linestyle": (0, (4, 2))},
            "running mean": {"color": MEAN, "linewidth": 1.8},
            "validation": {"color": VALIDATION, "linewidth": 1.2, "linestyle": ":", "marker": "o", "markersize": 4},
        }
        if not layout.baseline:
            del styles["baseline"]
        self._losses = {name: self._add(axes.plot([], [], label=name, **style)[0]) for name, style in styles.items()}
        if self.small:
            axes.set_title("loss", loc="left")
            return
        axes.set_ylabel("loss (nats)", labelpad=1)
        beside = {"frameon": False, "borderaxespad": 0, "columnspacing": 1.2, "handlelength": 2.4}
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.025), ncols=len(styles), **beside)

    def _add_strip(self, axes: Any) -> None:
        axes.set_title(f"the last {LAST_ACTIONS} actions, the newest on the right", loc="left")
        axes.set(xlim=(-LAST_ACTIONS, 1), xticks=[])
        space = self.parts.action_space
        if isinstance(space, spaces.Discrete):
            names = self.game.action_names(self.config, self.n_classes)
            heights = self.game.action_heights(self.config, self.n_classes)
            some = range(0, len(names), max(1, len(names) // 5))  # about five have room for a label
            edge = 0.3 * (max(heights) - min(heights)) / max(len(heights) - 1, 1) + 0.3
            axes.set(ylim=(min(heights) - edge, max(heights) + edge))
            axes.set_yticks([heights[action] for action in some], [names[action] for action in some])
            if self.game.curve is None:
                axes.set_ylabel("class")
        else:
            low, high = self._action_bounds()
            edge = 0.1 * (high.max() - low.min())
            axes.set(ylim=(low.min() - edge, high.max() + edge))
            axes.locator_params(axis="y", nbins=3, integer=isinstance(space, spaces.MultiDiscrete))
        axes.grid(axis="y", alpha=0.3)
        components = int(np.prod(space.shape or (1,)))
        self._strip = []
        for number in range(components):
            color, marker = COMPONENTS[number % len(COMPONENTS)]
            size = 4 + 2 * (components - 1 - number) / max(components - 1, 1)  # decreasing, so that equal ones are seen
            style = {"color": color, "marker": marker, "markersize": size, "linestyle": "none"}
            (line,) = axes.plot([], [], label=ORDINALS[number % len(ORDINALS)], **style)
            self._strip.append(self._add(line))
        if components > 1:
            beside = {"frameon": False, "borderaxespad": 0, "columnspacing": 1.2, "handletextpad": 0.2}
            handles = self._strip[: len(COMPONENTS)]
            axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.02), ncols=len(handles), **beside)

    def _add_class_losses(self, axes: Any, layout: AxesLayout) -> None:
        """In the place of the strip: the actions are what the shares show."""
        axes.set_title("validation loss of each class (dark: much)", loc="left")
        axes.set(ylim=(-0.5, self.n_classes - 0.5), yticks=self._some_classes(), ylabel="class", xticks=[])
        low, high = (np.log(bound) for bound in CLASS_LOSSES)
        look = {"cmap": SHARES, "vmin": low, "vmax": high, "aspect": "auto", "origin": "lower"}
        self._class_losses = self._add(axes.imshow(np.zeros((self.n_classes, 1)), interpolation="nearest", **look))
        axes.set_xlim(0, layout.width)

    def _first_action(self) -> int:
        """The number of the first action of a Discrete space."""
        return int(getattr(self.parts.action_space, "start", 0))

    def _action_bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The least and largest value of each number of an action that is not Discrete."""
        space: Any = self.parts.action_space
        if isinstance(space, spaces.MultiDiscrete):
            return np.zeros(space.shape), space.nvec - 1.0
        return space.low.astype(np.float64).reshape(-1), space.high.astype(np.float64).reshape(-1)

    def _add_values(self, axes: Any, count: int) -> None:
        axes.set_title("Q-values (number; bar: less or more than their mean)", loc="left", fontsize=8)
        names = self.game.action_names(self.config, self.n_classes)
        axes.set(xlim=(-1.05, 1.05), ylim=(count - 0.4, -0.6), xticks=[0], xticklabels=[])
        self._labelled = range(0, count, -(-count // MOST_NUMBERS))
        axes.set_yticks(self._labelled, [names[action] for action in self._labelled], fontsize=8)
        axes.grid(axis="x", alpha=0.5)
        self._bars = [self._add(bar) for bar in axes.barh(range(count), [0.0] * count, height=0.7)]
        self._numbers = [self._add(axes.text(1.1, action, "", va="center", fontsize=8)) for action in self._labelled]

    # --- contents ---------------------------------------------------------------------------------------------------

    def _update(self, content: FrameContent) -> None:
        history = content.history
        batch = history.curve("batch")
        self._title.set_text(content.title)
        self._task.set_text("\n".join(content.task))
        self._filters.set_data(tiles(content.filters))
        if self.game.curve is not None:
            self._control.set_data(*_thinned(batch, history.curve(self.game.curve)))
        else:
            self._draw_classes(self._control, history.shares(), batch)
        self._losses["mini-batches"].set_data(*_thinned(batch[1:], history.curve("loss")[1:]))
        self._losses["running mean"].set_data(*_thinned(batch, history.curve("smoothed_loss")))
        validation = history.curve("validation_loss")
        measured = np.flatnonzero(np.diff(validation, prepend=np.inf))  # where it has changed
        self._losses["validation"].set_data(batch[measured], validation[measured])
        if content.baseline is not None:
            self._losses["baseline"].set_data(*_thinned(*content.baseline))
        if not self.small and history.measured:
            self._draw_classes(self._class_losses, np.log(history.class_losses().clip(LEAST_LOSS)), batch)
        elif not self.small:
            self._update_strip(history.played()[-LAST_ACTIONS:])
        if content.values is not None and not self.small:
            played = history.played()
            self._update_values(content.values, played[-1, 0] - self._first_action() if len(played) else None)

    def _draw_classes(self, picture: Artist, values: NDArray[np.float64], batch: NDArray[np.float64]) -> None:
        """Values of the classes, (steps, K), over the mini-batches, (steps + 1,)."""
        picture.set_data(values.T if len(values) else np.full((self.n_classes, 1), picture.get_clim()[0]))
        picture.set_extent((batch[0], max(batch[-1], batch[0] + 1), -0.5, self.n_classes - 0.5))

    def _update_strip(self, actions: NDArray[np.float64]) -> None:
        if isinstance(self.parts.action_space, spaces.Discrete):
            heights = np.array(self.game.action_heights(self.config, self.n_classes))
            actions = heights[actions.astype(int) - self._first_action()]
        else:
            actions = actions.clip(*self._action_bounds())  # as games do
        for line, values in zip(self._strip, actions.T, strict=True):
            line.set_data(np.arange(len(values)) - len(values) + 1, values)

    def _update_values(self, values: NDArray[np.float64], chosen: float | None) -> None:
        offsets = values - values.mean()
        widest = np.abs(offsets).max() or 1.0
        for action, bar in enumerate(self._bars):
            bar.set_width(offsets[action] / widest)
            bar.set(facecolor=CONTROL if action == chosen else "0.75", edgecolor="black", linewidth=0.6)
        for action, number in zip(self._labelled, self._numbers, strict=True):
            number.set_text(f"{values[action]:.4g}" + (" played" if action == chosen else ""))


def _decade_below(value: float) -> float:
    """The power of ten at or below a value; LEAST_LOSS for what has no logarithm."""
    return float(10.0 ** np.floor(np.log10(value))) if np.isfinite(value) and value > LEAST_LOSS else LEAST_LOSS


def _thinned(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points of a curve at regular intervals, and the last, where there are more than LONGEST_LINE."""
    stride = len(x) // LONGEST_LINE + 1
    kept = np.unique(np.append(np.arange(0, len(x), stride), len(x) - 1)) if len(x) else np.arange(0)
    return x[kept], y[kept]
