"""The pull towards reference weights: w <- w + c (w* - w) after each update.

Source: arXiv:1606.01467, "meta-momentum". Its filter regression, n gradient steps of rate eta on the mean squared
error over K weights, (1/K) sum (w - w*)^2, multiplies the distance to w* by (1 - 2 eta / K) each step, so it is the
same pull with c = 1 - (1 - 2 eta / K)^n.

Pulled long enough towards trained weights a network becomes them: the pull alone accelerates training. Compare only
runs with the same pull.
"""

import math

from torch import Tensor

from qan_gym.config import FILTER_REGRESSION, TaskConfig
from qan_gym.optimizee.network import Network, Params, per_run

REGRESSION_STEPS = 3
REGRESSION_RATE = 0.01


def filter_regression_pull(weights_per_filter: int) -> float:
    """c of the original's filter regression over K weights (25 for the 5x5 filters of MNIST: 0.0023981)."""
    return 1 - (1 - 2 * REGRESSION_RATE / weights_per_filter) ** REGRESSION_STEPS


class Pull:
    """The pull of a task.

    Attributes:
        strength: c, in [0, 1].
        names: of the tensors that it acts on.
        batches: mini-batches from the beginning of an episode during which it acts.
    """

    def __init__(self, config: TaskConfig, network: Network, batches_per_epoch: int) -> None:
        """See `TaskConfig`."""
        self.strength, self.names = 0.0, list[str]()
        if config.meta_momentum == FILTER_REGRESSION and config.reference is not None:
            self.strength = filter_regression_pull(math.prod(network.shapes[network.shown][1:]))
            self.names = [network.shown]
        elif config.meta_momentum is not None and config.reference is not None:
            self.strength, self.names = float(config.meta_momentum), network.weights
        if config.pull_epochs is not None:
            self.batches = config.pull_epochs * batches_per_epoch
        else:
            self.batches = round(1 / self.strength) if self.strength > 0 else 0

    def apply(self, params: Params, reference: Params, strength: Tensor) -> None:
        """w <- w + c (w* - w), in place, on the named tensors.

        Args:
            params: N networks.
            reference: w*, N networks.
            strength: c, (N,) float32; 0 leaves a run as it is.
        """
        for name in self.names:
            params[name].lerp_(reference[name], per_run(strength, params[name]))
