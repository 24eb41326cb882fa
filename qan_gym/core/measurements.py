"""What is measured of an update, in PyTorch: see `qan_gym.core.statistics` for what, `native/src/measure.h` for C.

Where a network has more than MOST trained parameters, every k-th of them is measured, in their order in memory, with
the least odd k that leaves no more than MOST: an odd step does not stay on the same channels. Norms are multiplied by
sqrt(k), dot products by k.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qan_gym.core.run_state import RunState
from qan_gym.core.statistics import MEANS, MEASURED
from qan_gym.optimizee.network import Network, Params

MOST = 2**17
LANES = 16  # sums run along so many lanes, and then over them: a row's do not depend on the other rows


def sampling_step(network: Network) -> int:
    """k: every k-th trained parameter is measured."""
    return sampling_step_of(sum(math.prod(network.shapes[name]) for name in network.trained))


def sampling_step_of(count: int) -> int:
    """k, of so many trained parameters."""
    return -(-count // MOST) | 1


def _is_whole(network: Network) -> bool:
    """Whether all of a network's memory is measured, the gaps in it, which are 0, included."""
    return not network.statistics and sampling_step(network) == 1


def _places(network: Network) -> Tensor:
    """(count,) int64, where the measured parameters lie in the memory of a network."""
    trained = [network.places()[name] for name in network.trained]
    places = torch.cat([torch.arange(place.start, place.stop) for place in trained])
    return places[:: sampling_step(network)]


def measured_size(network: Network) -> int:
    """Numbers of a vector that is measured, a multiple of LANES."""
    if _is_whole(network):
        return network.size()
    return -(-len(_places(network)) // LANES) * LANES


class Measurement:
    """Measures the updates of some rows of the runs, by tensor operations that a CUDA graph can capture."""

    def __init__(self, network: Network, run: RunState, rows: slice) -> None:
        """Takes views of the rows of a state, which has room for measurements."""
        self.memory, self.measured = run.memory[rows], run.measured[rows]
        self.previous_gradient = run.previous_gradient[rows]
        self.previous_displacement, self.start = run.previous_displacement[rows], run.action_start[rows]
        self.batches = run.losses.shape[1]
        self.scale = 1.0 if _is_whole(network) else float(sampling_step(network))
        self.places = None if _is_whole(network) else _places(network).to(run.memory.device)
        self.gradient = torch.zeros_like(self.memory)  # laid out like the parameters
        self.gradients = network.views(self.gradient)
        self.before = torch.zeros_like(self.start)

    def before_update(self, number: int) -> None:
        """Remember the weights; `number`: of the mini-batch in its action."""
        self.before.copy_(self._vector(self.memory))
        if number == 0:
            self.start.copy_(self.before)

    def after_update(self, gradients: Params, number: int) -> None:
        """Measure an update, before the pull.

        Args:
            gradients: name -> (n, *shape) of the trained parameters.
            number: of the mini-batch in its action.
        """
        for name, value in gradients.items():
            self.gradients[name].copy_(value)
        gradient, previous = self._vector(self.gradient), self.previous_gradient
        update = self._vector(self.memory) - self.before
        values = of_updates(
            gradient=self._dot(gradient, gradient),
            gradients=self._dot(gradient, previous),
            previous=self._dot(previous, previous),
            update=self._dot(update, update),
            descent=self._dot(gradient, update),
        )
        sums = self.measured[:, : len(MEANS)]
        sums.copy_(values if number == 0 else sums + values)
        previous.copy_(gradient)

    def end_action(self) -> None:
        """Measure where the action has brought the weights, and make sums means."""
        self.measured[:, : len(MEANS)] /= self.batches
        weights, last = self._vector(self.memory), self.previous_displacement
        moved = weights - self.start
        self.measured[:, len(MEANS) :] = of_action(
            moved=self._dot(moved, moved),
            displacements=self._dot(moved, last),
            last=self._dot(last, last),
            weights=self._dot(weights, weights),
        )
        last.copy_(moved)

    def _vector(self, memory: Tensor) -> Tensor:
        """(n, network size) -> (n, measured size)."""
        if self.places is None:
            return memory
        chosen = memory.index_select(1, self.places)
        return torch.nn.functional.pad(chosen, (0, self.start.shape[1] - chosen.shape[1]))

    def _dot(self, a: Tensor, b: Tensor) -> Tensor:
        """(n,), the products of each two rows."""
        products: Tensor = (a * b).unflatten(1, (-1, LANES))
        return self.scale * products.sum(dim=1).sum(dim=1)


def of_updates(gradient: Tensor, gradients: Tensor, previous: Tensor, update: Tensor, descent: Tensor) -> Tensor:
    """What `MEANS` are the means of.

    Args:
        gradient: (n,) g_t . g_t.
        gradients: (n,) g_t . g_{t-1}.
        previous: (n,) g_{t-1} . g_{t-1}.
        update: (n,) u_t . u_t.
        descent: (n,) g_t . u_t.

    Returns:
        (n, len(MEANS)).
    """
    found = {
        "gradient_norm": gradient.sqrt(),
        "gradient_cosine": _cosine(gradients, gradient, previous),
        "update_norm": update.sqrt(),
        "predicted_decrease": -descent,
    }
    return torch.stack([found[name] for name in MEANS], dim=1)


def of_action(moved: Tensor, displacements: Tensor, last: Tensor, weights: Tensor) -> Tensor:
    """The rest of `MEASURED`.

    Args:
        moved: (n,) the square of this displacement.
        displacements: (n,) its product with that of the action before.
        last: (n,) the square of that one.
        weights: (n,) the square of the weights.

    Returns:
        (n, len(MEASURED) - len(MEANS)).
    """
    found = {
        "displacement": moved.sqrt(),
        "displacement_cosine": _cosine(displacements, moved, last),
        "weight_norm": weights.sqrt(),
    }
    return torch.stack([found[name] for name in MEASURED[len(MEANS) :]], dim=1)


def _cosine(product: Tensor, square: Tensor, other_square: Tensor) -> Tensor:
    """Of vectors with these products, (n,) each; 0 where one of them is 0."""
    norms = square.sqrt() * other_square.sqrt()
    return torch.where(norms == 0, 0.0, product / norms)
