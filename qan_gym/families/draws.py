"""The random numbers that tasks are drawn from. A task depends on its family, its split and its number alone.

Every field has a random number of its own, so that a choice of kinds leaves the other fields as they are.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from qan_gym.families.record import NUMBER_LIMIT

Kinds = Iterable[str] | Mapping[str, float]  # names of options, or their shares


class Draws:
    """Uniform random numbers by name, of one task."""

    def __init__(self, family: str, split: str, number: int) -> None:
        """The random numbers of a task.

        Args:
            family: its name, and the version of its tasks.
            split: "train" or "test".
            number: from 0 to 2^31 - 1.

        Raises:
            ValueError: there is no such split or number.
        """
        if split not in ("train", "test"):
            raise ValueError(f"split must be train or test, not {split!r}")
        if not 0 <= number < NUMBER_LIMIT:
            raise ValueError(f"the number of a task must be from 0 to {NUMBER_LIMIT - 1}, not {number}")
        self.key = f"{family}/{split}/{number}"

    def uniform(self, name: str, low: float = 0.0, high: float = 1.0) -> float:
        """In [low, high)."""
        digest = hashlib.blake2b(f"{self.key}/{name}".encode(), digest_size=8).digest()
        return low + (high - low) * (int.from_bytes(digest) >> 11) * 2.0**-53

    def log_uniform(self, name: str, low: float, high: float) -> float:
        """In [low, high), uniform in the logarithm, of four digits: the same on every machine."""
        return rounded(math.exp(self.uniform(name, math.log(low), math.log(high))))

    def log_integer(self, name: str, low: int, high: int) -> int:
        """In low, ..., high, uniform in the logarithm."""
        return min(high, int(self.log_uniform(name, low, high + 1)))

    def happens(self, name: str, share: float) -> bool:
        """True in a share of the tasks."""
        return self.uniform(name) < share

    def weighted(self, name: str, weights: Mapping[str, float]) -> str:
        """One of some options, by their weights."""
        place = self.uniform(name) * sum(weights.values())
        for option, weight in weights.items():
            place -= weight
            if place < 0:
                return option
        return option

    def permutation(self, name: str, count: int) -> list[int]:
        """0, ..., count - 1 in any order, all alike likely."""
        left, place = list(range(count)), int(self.uniform(name) * math.factorial(count))
        order = []
        for remaining in range(count, 0, -1):
            place, chosen_one = divmod(place, remaining)
            order.append(left.pop(chosen_one))
        return order


def rounded(value: float) -> float:
    """Four digits: the functions of the C library differ between machines in the last ones."""
    return float(f"{value:.4g}")


def ends(given: Any) -> tuple[Any, Any]:
    """The least and the largest of a range, or of a number twice that number."""
    return (given[0], given[1]) if isinstance(given, list | tuple) else (given, given)


def kinds_of(what: str, names: Kinds, among: Mapping[str, float]) -> tuple[str, ...] | dict[str, float]:
    """Some options as names, or as a dict where their shares were given, in their own order.

    Raises:
        ValueError: see `chosen`.
    """
    weights = chosen(what, names, among)
    return weights if isinstance(names, Mapping) else tuple(weights)


def chosen(what: str, names: Kinds, among: Mapping[str, float]) -> dict[str, float]:
    """The weights of some options, in their own order: those of a mapping, or else the usual ones, or all alike where
    these are 0.

    Raises:
        ValueError: there are none, or one is not among those there are.
    """
    wanted = (names,) if isinstance(names, str) else tuple(names)
    if not wanted or not set(wanted) <= among.keys():
        raise ValueError(f"{what} must be some of {', '.join(among)}, not {names!r}")
    if isinstance(names, Mapping):
        return {name: names[name] for name in among if name in names}
    weights = {name: weight for name, weight in among.items() if name in wanted}
    if not any(weights.values()):
        return dict.fromkeys(weights, 1.0)
    if rare := [name for name, weight in weights.items() if weight == 0]:
        raise ValueError(f"{what}: {', '.join(rare)} beside others needs shares: give a dict of them, {{name: share}}")
    return weights
