"""What the agent sees: the filters, and the score line.

The screen has one row per filter and one column per weight (of the networks for CIFAR-10, 192 rows of 192 weights of
the last convolution), and a last row, the score line: ln(learning rate), share of the budget used, ln(smoothed loss),
its change since the last action, the last action (-1 before the first); with `validate_every` ln(validation loss)
and its change; zeros.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from qan_gym.optimizee import Network, Params

LIMIT = 10.0  # every value is kept within +-LIMIT
SCORES = 5  # places on the score line that every game uses
ALL_SCORES = 7  # and with the validation loss and its change, where it is measured every few mini-batches
NO_ACTION = -1.0  # on the score line, before the first action


def screen_shape(network: Network, observation: str) -> tuple[int, int]:
    """(rows, columns) of the screen; with `"screen"` the last row is the score line."""
    rows, columns = _weights_shape(network)
    return rows + (observation == "screen"), max(columns, ALL_SCORES)


def shown_weights(network: Network, params: Params) -> Tensor:
    """The weights that the agent sees, (N, rows, columns): a row per filter, unless the network says otherwise."""
    rows, columns = _weights_shape(network)
    shown: Tensor = params[network.shown].flatten(1)[:, : rows * columns].unflatten(1, (rows, columns))
    return shown


def _weights_shape(network: Network) -> tuple[int, int]:
    filters, *rest = network.shapes[network.shown]
    return network.screen or (filters, torch.Size(rest).numel())


def observe(rows: Tensor, scores: Tensor | None, columns: int) -> Tensor:
    """The screens of N runs, each flattened row by row.

    Stable-Baselines3 and most code written for vectors take a flat observation as it is; `reshape(screen_shape)`
    gives the rows back.

    Args:
        rows: (N, F, W), see `shown_weights`.
        scores: (N, SCORES or ALL_SCORES), or None to leave the score line out.
        columns: of the screen.

    Returns:
        (N, rows * columns) float32, finite, within +-LIMIT, not a number where a weight is not one shown as 0.
    """
    if rows.shape[2] < columns:
        rows = F.pad(rows, (0, columns - rows.shape[2]))
    if scores is not None:
        line = F.pad(scores.to(rows.dtype), (0, columns - scores.shape[1]))  # (N, columns)
        rows = torch.cat([rows, line[:, None]], dim=1)  # (N, F + 1, columns)
    return rows.flatten(1).nan_to_num(0.0, LIMIT, -LIMIT).clamp(-LIMIT, LIMIT)
