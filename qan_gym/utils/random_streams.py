"""Random streams for many runs at once: a counter-based generator (SplitMix64), in plain tensor arithmetic.

A stream is named by (seed of the run, purpose, counter) and has no state. So run i draws the same numbers alone, in a
batch of thousands, on any device and after a restore; and drawing for N runs is one vectorised operation, which N
`torch.Generator` objects are not.

Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
"""

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# The purposes. Two streams with different purposes are independent.
WEIGHTS = 1
ORDER = 2
AUGMENTATION = 3

_GAMMA = 0x9E3779B97F4A7C15 - 2**64  # 64-bit constants, as the signed integers that torch holds
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def _shift_right(bits: Tensor, count: int) -> Tensor:
    """Logical shift: torch's own keeps the sign."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shift_right(bits, 30)) * _MIX_1
    bits = (bits ^ _shift_right(bits, 27)) * _MIX_2
    return bits ^ _shift_right(bits, 31)


def random_bits(seeds: Tensor, purpose: int, counter: Tensor | int, count: int) -> Tensor:
    """`count` uniform 64-bit integers per run.

    Args:
        seeds: (N,) int64, the seed of each run.
        purpose: which of the run's streams.
        counter: (N,) int64 or one number; numbers the streams of one purpose (an epoch, a tensor).
        count: how many integers.

    Returns:
        (N, count) int64, over the whole signed range.
    """
    # As tensors, because only their arithmetic wraps around at 64 bits.
    key = _mix(seeds + torch.tensor(purpose) * _GAMMA)  # (N,)
    key = _mix(key + torch.as_tensor(counter) * _GAMMA)  # (N,)
    steps = torch.arange(1, count + 1, device=seeds.device) * _GAMMA  # (count,)
    return _mix(key[:, None] + steps)


def uniform(seeds: Tensor, purpose: int, counter: Tensor | int, count: int) -> Tensor:
    """`count` float32 numbers in [0, 1) per run, (N, count), multiples of 2**-24; arguments as `random_bits`."""
    return _shift_right(random_bits(seeds, purpose, counter, count), 40).to(torch.float32) * 2.0**-24


def permutation(seeds: Tensor, purpose: int, counter: Tensor | int, count: int) -> Tensor:
    """A random order of `range(count)` per run, (N, count) int64; arguments as `random_bits`."""
    return random_bits(seeds, purpose, counter, count).argsort(dim=1)


def next_seeds(generators: Iterable[np.random.Generator]) -> NDArray[np.int64]:
    """The seed of the next episode, from each generator."""
    return np.array([generator.integers(2**63) for generator in generators], np.int64)


# --- what others draw from PyTorch's default generator ----------------------------------------------------------------


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """A context in which this thread draws on CPU as after `torch.manual_seed(seed)`, from a generator of its own.

    The default generator is neither used nor changed, so that other threads may draw from it meanwhile.
    """
    with _Lock.held, _DrawingFrom(torch.Generator().manual_seed(seed)):
        yield


class _Lock:
    """Held in `drawing_from`: PyTorch's modes count themselves in variables that threads share."""

    held = threading.RLock()

    @classmethod
    def renew(cls) -> None:
        """In a forked process, where no other thread will give it back."""
        cls.held = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Lock.renew)


class _DrawingFrom(TorchDispatchMode):
    """Gives a generator to every operation that draws on CPU and was given none."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.generator = generator

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        drawing, place = _with_generator(func)
        given = args[place] if place < len(args) else kwargs.get("generator")
        tensor = next((arg for arg in args if isinstance(arg, Tensor)), None)
        device = kwargs.get("device") or (tensor.device if tensor is not None else torch.device("cpu"))
        if drawing is None or given is not None or device.type != "cpu":
            return func(*args, **kwargs)
        return drawing(*args[:place], **{**kwargs, "generator": self.generator})


@cache
def _with_generator(operation: Any) -> tuple[Any, int]:
    """The same operation with an argument `generator`, and its place; None where there is none."""
    mine = _arguments(operation)
    if "generator" in mine:
        return operation, list(mine).index("generator")
    packet = operation.overloadpacket
    for name in packet.overloads():
        its = _arguments(other := getattr(packet, name))
        if {**mine, "generator": its.get("generator")} == its:
            return other, len(mine)
    return None, len(mine)


def _arguments(operation: Any) -> dict[str, str]:
    return {argument.name: str(argument.type) for argument in operation._schema.arguments}
