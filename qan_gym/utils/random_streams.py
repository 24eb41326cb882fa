"""Random streams for many runs at once: a counter-based generator (SplitMix64), in plain tensor arithmetic.

A stream is named by (seed of the run, purpose, counter) and has no state. So run i draws the same numbers alone, in a
batch of thousands, on any device and after a restore; and drawing for N runs is one vectorised operation, which N
`torch.Generator` objects are not.

Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
"""

import math
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

from qan_gym.utils.arrays import NUMPY, TORCH

# The purposes. Two streams with different purposes are independent.
WEIGHTS = 1
ORDER = 2
AUGMENTATION = 3
SHUFFLED = 4  # native/src/random_streams.h has the same numbers
BY_CLASS = 5
SHARES = 6

_ROUNDS = 16  # of `shuffled`
_LOW = 2**32 - 1

_GAMMA = 0x9E3779B97F4A7C15 - 2**64  # 64-bit constants, as the signed integers that torch holds
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


Int64 = Any  # NDArray[np.int64] | Tensor, whose operators are the same


def _shift_right(bits: Int64, count: int) -> Int64:
    """Logical shift: that of signed integers keeps the sign."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _mix(bits: Int64) -> Int64:
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
    bits: Tensor = _mix(key[:, None] + steps)
    return bits


def uniform(seeds: Tensor, purpose: int, counter: Tensor | int, count: int) -> Tensor:
    """`count` float32 numbers in [0, 1) per run, (N, count), multiples of 2**-24; arguments as `random_bits`."""
    bits: Tensor = _shift_right(random_bits(seeds, purpose, counter, count), 40)
    return bits.to(torch.float32) * 2.0**-24


def permutation(seeds: Tensor, purpose: int, counter: Tensor | int, count: int) -> Tensor:
    """A random order of `range(count)` per run, (N, count) int64; arguments as `random_bits`."""
    return random_bits(seeds, purpose, counter, count).argsort(dim=1)


def uniform_at(seeds: Int64, purpose: int, counters: Int64) -> Any:
    """One float64 number in [0, 1) for each seed and counter, a multiple of 2**-53.

    Args:
        seeds: int64, NumPy's or PyTorch's; `counters`, of the same kind, goes with it by broadcasting.
        purpose: which of the run's streams.
        counters: int64, number the streams of the purpose.
    """
    xp = NUMPY if isinstance(counters, np.ndarray) else TORCH
    bits = _mix(_mix(_mix(seeds + _wrapped(purpose * _GAMMA)) + counters * _GAMMA) + _GAMMA)
    return xp.astype(_shift_right(bits, 11), xp.float64) * 2.0**-53


def _wrapped(number: int) -> int:
    """The signed 64-bit integer of the same bits."""
    return (number + 2**63) % 2**64 - 2**63


def _moved(x: Int64, by: Int64, key: Int64, count: Int64) -> Int64:
    """x moved by a hash of `by`, within 0 to count - 1; in 32 bits."""
    low, high = key & _LOW, _shift_right(key, 32)
    h = (by + low) & _LOW
    h = ((h ^ (h >> 16)) * 0x21F0AAAD) & _LOW
    h = ((h ^ (h >> 15) ^ high) * 0x735A2D97) & _LOW
    return (x + ((h >> 16) * count >> 16)) % count


def shuffled(seeds: Int64, purpose: int, epoch: Int64 | int, places: Int64, count: Int64 | int) -> Int64:
    """What lies at some places of a random order of `range(count)`, without the order: it needs no memory.

    For a seed and an epoch it is a bijection of 0, ..., count - 1: a Feistel network on numbers (Black and Rogaway
    2002, "Ciphers with arbitrary finite domains"). A place is written as (left, right) on a grid; 16 rounds move one
    of the two by a hash of the other; what falls behind `count` passes again.

    Args:
        seeds: (N,) int64, NumPy's or PyTorch's; the other arrays are of the same kind.
        purpose: which of the run's streams.
        epoch: (N,) int64 or one number; each has an order of its own.
        places: (N, B) int64, from 0 to count - 1.
        count: (N,) int64 or one number, 1 to 2^31 - 1.

    Returns:
        (N, B) int64, from 0 to count - 1.
    """
    xp = NUMPY if isinstance(places, np.ndarray) else TORCH
    count = (places[:, :1] * 0 + count) if isinstance(count, int) else count[:, None]  # (N, 1)
    rows = xp.astype(xp.ceil(xp.sqrt(xp.astype(count, xp.float64))), xp.int64)
    columns = (count + rows - 1) // rows
    shift = _wrapped(epoch * _GAMMA) if isinstance(epoch, int) else epoch * _GAMMA
    key = _mix(_mix(seeds + _wrapped(purpose * _GAMMA)) + shift)[:, None]  # (N, 1)
    keys = [_mix(key + _wrapped((number + 1) * _GAMMA)) for number in range(_ROUNDS)]
    at, behind = places, places >= 0
    while behind.any():
        left, right = at // columns, at % columns
        for number in range(0, _ROUNDS, 2):
            left = _moved(left, right, keys[number], rows)
            right = _moved(right, left, keys[number + 1], columns)
        passed = left * columns + right
        at = at + (passed - at) * behind
        behind = at >= count
    return at


# log(m) = 2 s P(s^2), s = (m - 1) / (m + 1); cos(t) = P(t^2); sin(t) = t P(t^2): within 1e-9.
_LOG = [1 / 13, 1 / 11, 1 / 9, 1 / 7, 1 / 5, 1 / 3, 1.0]
_COS = [1 / 479001600, -1 / 3628800, 1 / 40320, -1 / 720, 1 / 24, -0.5, 1.0]
_SIN = [1 / 6227020800, -1 / 39916800, 1 / 362880, -1 / 5040, 1 / 120, -1 / 6, 1.0]


def _polynomial(coefficients: list[float], x: Tensor) -> Tensor:
    total = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * x + coefficient
    return total


def normal(seeds: Tensor, purpose: int, counter: Tensor | int, count: int) -> Tensor:
    """`count` standard normal numbers per run, (N, count) float64, by Box and Muller; arguments as `random_bits`.

    They consist of additions, products, quotients and square roots, which are the same on every machine.
    """
    bits = _shift_right(random_bits(seeds, purpose, counter, 2 * count), 11)  # 53 of them
    m, exponent = torch.frexp((bits[:, :count] + 1).to(torch.float64) * 2.0**-53)
    small = m < math.sqrt(0.5)
    m, exponent = torch.where(small, m * 2, m), (exponent - small.to(exponent.dtype)).to(torch.float64)
    s = (m - 1) / (m + 1)
    log = exponent * math.log(2) + 2 * s * _polynomial(_LOG, s * s)
    turn = bits[:, count:].to(torch.float64) * 2.0**-53
    quarter = (4 * turn + 0.5).to(torch.int64)
    t = (turn - quarter.to(torch.float64) * 0.25) * (2 * math.pi)
    value = torch.where(quarter % 2 == 1, _polynomial(_SIN, t * t) * t, _polynomial(_COS, t * t))
    return (-2 * log).sqrt() * torch.where((quarter + 1) & 2 == 2, -value, value)


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

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Else PyTorch imports its compiler, which takes seconds, to keep it away from this mode."""
        return False

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
