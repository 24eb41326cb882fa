"""The pull towards reference weights: w <- w + c (w* - w) after each update.

Source: arXiv:1606.01467, "meta-momentum". Its filter regression, n gradient steps of rate eta on the mean squared
error over K weights, (1/K) sum (w - w*)^2, multiplies the distance to w* by (1 - 2 eta / K) each step, so it is the
same pull with c = 1 - (1 - 2 eta / K)^n.

Pulled long enough towards trained weights a network becomes them: the pull alone accelerates training. Compare only
runs with the same pull.
"""

import math

from torch import Tensor

from qan_gym.optimizee import Network, Params, per_run
from qan_gym.tasks import FILTER_REGRESSION, TaskConfig

REGRESSION_STEPS = 3
REGRESSION_RATE = 0.01


def filter_regression_pull(weights_per_filter: int) -> float:
    """c of the original's filter regression over K weights (25 for the 5x5 filters of MNIST: 0.0023981)."""
    return 1 - (1 - 2 * REGRESSION_RATE / weights_per_filter) ** REGRESSION_STEPS


def pull_of(config: TaskConfig, network: Network) -> tuple[float, list[str]]:
    """The pull c of a game and the names of the tensors that it acts on."""
    if config.meta_momentum is None or config.reference is None:
        return 0.0, []
    if config.meta_momentum == FILTER_REGRESSION:
        return filter_regression_pull(math.prod(network.shapes[network.shown][1:])), [network.shown]
    return float(config.meta_momentum), network.weights


def batches_of(config: TaskConfig, pull: float, batches_per_epoch: int) -> int:
    """During how many mini-batches of an episode the pull acts: those of `pull_epochs`, or 1/c."""
    if config.pull_epochs is not None:
        return config.pull_epochs * batches_per_epoch
    return round(1 / pull) if pull > 0 else 0


def pull(params: Params, reference: Params, strength: Tensor, names: list[str]) -> None:
    """w <- w + c (w* - w), in place, on the named tensors.

    Args:
        params: N networks.
        reference: w*, N networks.
        strength: c, (N,) float32 in [0, 1]; 0 leaves a run as it is.
        names: of the tensors to pull.
    """
    for name in names:
        params[name].lerp_(reference[name], per_run(strength, params[name]))
