"""What reads the last frames for a Q network."""

import torch
from torch import Tensor, nn

from qan_gym.core.observation import ALWAYS_MEASURED, SCORE_LINE


class Filters(nn.Module):
    """The paper's: one convolution of 32 8x8 filters, stride 4, padding 1, over the last screens."""

    def __init__(self, history: int, rows: int, columns: int) -> None:
        """history: screens; rows, columns: of a screen."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Unflatten(2, (rows, columns)),  # (B, history, rows, columns)
            nn.Conv2d(history, 32, kernel_size=8, stride=4, padding=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        with torch.no_grad():
            self.size: int = self.layers(torch.zeros(1, history, rows * columns)).shape[1]

    def forward(self, observations: Tensor) -> Tensor:
        """(B, history, rows * columns) -> (B, size)."""
        return self.layers(observations)


class ScoreLine(nn.Module):
    """The score line of the last screens, and the root mean square of the filters: few numbers for few episodes."""

    def __init__(self, history: int, rows: int, columns: int) -> None:
        """The score line is the last of the rows."""
        super().__init__()
        self.rows, self.columns = rows, columns
        self.size = history * (ALWAYS_MEASURED + 1)

    def forward(self, observations: Tensor) -> Tensor:
        """(B, history, rows * columns) -> (B, history * 6)."""
        screens = observations.unflatten(2, (self.rows, self.columns))  # (B, history, rows, columns)
        size = screens[:, :, :-1].square().mean(dim=(2, 3)).sqrt()[..., None]  # (B, history, 1)
        return torch.cat([screens[:, :, -1, :ALWAYS_MEASURED], size], dim=2).flatten(1)


class Scores(nn.Module):
    """The score line of the last screens, with the validation loss where `validate_every` measures it."""

    def __init__(self, history: int, rows: int, columns: int) -> None:
        """The score line is the last of the rows."""
        super().__init__()
        self.start = (rows - 1) * columns
        self.size = history * len(SCORE_LINE)

    def forward(self, observations: Tensor) -> Tensor:
        """(B, history, rows * columns) -> (B, history * 7)."""
        return observations[:, :, self.start : self.start + len(SCORE_LINE)].flatten(1)


class Flat(nn.Module):
    """The last frames as they are."""

    def __init__(self, history: int, rows: int, columns: int) -> None:
        """See `Filters`."""
        super().__init__()
        self.size = history * rows * columns

    def forward(self, observations: Tensor) -> Tensor:
        """(B, history, D) -> (B, history * D)."""
        return observations.flatten(1)


FEATURES: dict[str, type[Filters] | type[ScoreLine] | type[Scores] | type[Flat]] = {
    "flat": Flat,
    "filters": Filters,
    "score-line": ScoreLine,
    "scores": Scores,
}
