"""Orders and normal numbers as functions of a seed: what they must be, and the same in C, NumPy and PyTorch."""

import numpy as np
import pytest
import torch
from scipy import stats
from test_native_kernels import needs_library

from qan_gym.native import library
from qan_gym.utils.random_streams import SHUFFLED, WEIGHTS, normal, random_bits, shuffled


def orders(seeds: np.ndarray, epoch: np.ndarray | int, count: int) -> np.ndarray:
    """(N, count) whole orders."""
    places = np.broadcast_to(np.arange(count), (len(seeds), count))
    return shuffled(seeds, SHUFFLED, epoch, places, count)


@pytest.mark.parametrize("count", [*range(1, 67), 100, 255, 256, 257, 1000, 4000, 65_537])
def test_an_order_holds_everything_once(count):
    seeds = np.arange(5, dtype=np.int64) * 2**61
    for row in orders(seeds, 3, count):
        assert np.array_equal(np.sort(row), np.arange(count))


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_all_orders_of_few_are_equally_likely(count):
    found = orders(np.arange(30_000), 0, count) @ (10 ** np.arange(count))
    _, number = np.unique(found, return_counts=True)
    assert len(number) == np.prod(np.arange(1, count + 1))
    assert stats.chisquare(number).pvalue > 1e-4


@pytest.mark.parametrize("count", [7, 16, 50, 200])
@pytest.mark.parametrize("by", ["seeds", "epochs"])
def test_every_index_is_equally_likely_at_every_place(count, by):
    """Over seeds of one epoch, and over epochs of one seed."""
    number = np.arange(400_000 // count)
    found = orders(number, 0, count) if by == "seeds" else orders(number * 0 + 5, number, count)
    table = np.zeros((count, count))
    for place in range(count):
        table[place] = np.bincount(found[:, place], minlength=count)
    statistic = ((table - len(number) / count) ** 2 / (len(number) / count)).sum()
    assert stats.chi2((count - 1) ** 2).sf(statistic) > 1e-4


@pytest.mark.parametrize("count", [7, 20, 100])
@pytest.mark.parametrize("other", ["next place", "next epoch", "next seed"])
def test_pairs_are_independent(count, other):
    """What lies at a place, against what lies at the next one, in the next epoch, and with the next seed."""
    seeds = np.arange(600_000 // count)
    first = orders(seeds, 4, count)
    apart = count
    if other == "next place":
        second, apart = np.roll(first, -1, axis=1), count - 1  # never the same
    else:
        second = orders(seeds, 5, count) if other == "next epoch" else orders(seeds + 1, 4, count)
    table = np.bincount((first * count + second).ravel(), minlength=count**2).reshape(count, count)
    expected = first.size / count / apart
    cells = table[~np.eye(count, dtype=bool)] if apart < count else table.ravel()
    p = stats.chi2(len(cells) - 1).sf(((cells - expected) ** 2 / expected).sum())
    assert p > 1e-4


def test_a_large_order_has_no_trend():
    places, count = np.arange(100_000)[None] * 600, 60_000_000
    found = shuffled(np.array([1]), SHUFFLED, 0, places, count)[0] / count
    assert stats.kstest(found, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.015


def test_numpy_and_pytorch_give_the_same_orders():
    rng = np.random.default_rng(0)
    seeds, epochs = rng.integers(-(2**63), 2**63 - 1, 40), rng.integers(0, 2**40, 40)
    counts = np.array([1, 2, 3, 10, 999, 2**20, 2**31 - 1, 60_000] * 5)
    places = (rng.random((40, 9)) * counts[:, None]).astype(np.int64)
    found = shuffled(seeds, SHUFFLED, epochs, places, counts)
    tensors = (torch.from_numpy(value) for value in (seeds, epochs, places, counts))
    seeds_, epochs_, places_, counts_ = tensors
    assert np.array_equal(found, shuffled(seeds_, SHUFFLED, epochs_, places_, counts_).numpy())
    for row in range(40):
        one = shuffled(seeds[row : row + 1], SHUFFLED, int(epochs[row]), places[row : row + 1], int(counts[row]))
        assert np.array_equal(one[0], found[row])


@needs_library
def test_c_gives_the_same_orders():
    lib, rng = library.find(), np.random.default_rng(1)
    for count in (1, 2, 3, 17, 100, 4000, 60_000, 2**31 - 1):
        seed, epoch = int(rng.integers(-(2**63), 2**63 - 1)), int(rng.integers(0, 2**40))
        for size in (1, 7, 8, 33):
            size = min(size, count)
            first, found = int(rng.integers(0, count - size + 1)), np.zeros(size, np.int64)
            lib.qan_shuffled(seed, epoch, first, size, count, found.ctypes.data)
            places = np.arange(first, first + size)[None]
            assert np.array_equal(shuffled(np.array([seed]), SHUFFLED, np.array([epoch]), places, count)[0], found)


def test_normal_numbers_are_normal_and_those_of_box_and_muller():
    found = normal(torch.tensor([3, 4]), WEIGHTS, 1, 100_000)
    assert stats.kstest(found[0].numpy(), "norm").pvalue > 1e-4
    assert abs(np.corrcoef(found.numpy())[0, 1]) < 0.015
    bits = random_bits(torch.tensor([3]), WEIGHTS, 1, 200_000)[0].numpy().view(np.uint64) >> np.uint64(11)
    uniform = bits.astype(np.float64) * 2.0**-53
    expected = np.sqrt(-2 * np.log(uniform[:100_000] + 2.0**-53)) * np.cos(2 * np.pi * uniform[100_000:])
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-8)
