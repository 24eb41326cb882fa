"""The first layers of a Q network: which numbers of the last frames the layers behind them see."""

import torch
from torch import Tensor, nn

from qan_gym.core.observation import ALWAYS_MEASURED


class Features(nn.Module):
    """A first layer, (B, history, rows * columns) -> (B, size)."""

    def __init__(self, history: int, rows: int, columns: int, score_line: int) -> None:
        """Build the layer.

        Args:
            history: frames of an observation.
            rows: of a frame; the last one is the score line, where there is one.
            columns: of a frame.
            score_line: numbers on the score line.
        """
        super().__init__()
        self.history, self.rows, self.columns, self.score_line = history, rows, columns, score_line

    @property
    def size(self) -> int:
        """Numbers that the layer hands on."""
        raise NotImplementedError


class Flat(Features):
    """The frames as they are."""

    @property
    def size(self) -> int:
        """See `Features.size`."""
        return self.history * self.rows * self.columns

    def forward(self, observations: Tensor) -> Tensor:
        """(B, history, D) -> (B, history * D)."""
        return observations.flatten(1)


class Filters(Features):
    """The paper's: one convolution of 32 8x8 filters, stride 4, padding 1, over the last screens."""

    def __init__(self, history: int, rows: int, columns: int, score_line: int) -> None:
        """See `Features`."""
        super().__init__(history, rows, columns, score_line)
        self.layers = nn.Sequential(
            nn.Unflatten(2, (rows, columns)),  # (B, history, rows, columns)
            nn.Conv2d(history, 32, kernel_size=8, stride=4, padding=1),
            nn.ReLU(),
            nn.Flatten(),
        )

    @property
    def size(self) -> int:
        """See `Features.size`."""
        with torch.no_grad():
            return self.forward(torch.zeros(1, self.history, self.rows * self.columns)).shape[1]

    def forward(self, observations: Tensor) -> Tensor:
        """(B, history, rows * columns) -> (B, size)."""
        features: Tensor = self.layers(observations)
        return features


class ScoreLine(Features):
    """The five numbers of the score line that are always measured, and the root mean square of the filters."""

    @property
    def size(self) -> int:
        """See `Features.size`."""
        return self.history * (ALWAYS_MEASURED + 1)

    def forward(self, observations: Tensor) -> Tensor:
        """(B, history, rows * columns) -> (B, history * 6)."""
        screens = observations.unflatten(2, (self.rows, self.columns))  # (B, history, rows, columns)
        size = screens[:, :, :-1].square().mean(dim=(2, 3)).sqrt()[..., None]  # (B, history, 1)
        return torch.cat([screens[:, :, -1, :ALWAYS_MEASURED], size], dim=2).flatten(1)


class Scores(Features):
    """The whole score line: the seven numbers of every game, and those that the game adds."""

    @property
    def size(self) -> int:
        """See `Features.size`."""
        return self.history * self.score_line

    def forward(self, observations: Tensor) -> Tensor:
        """(B, history, rows * columns) -> (B, history * score_line)."""
        start = (self.rows - 1) * self.columns
        return observations[:, :, start : start + self.score_line].flatten(1)


READ_THE_SCORE_LINE = ("score-line", "scores")

FEATURES: dict[str, type[Features]] = {
    "flat": Flat,
    "filters": Filters,
    "score-line": ScoreLine,
    "scores": Scores,
}
