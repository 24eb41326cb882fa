"""Classes drawn with replacement, against a loop over images; and long-tailed training splits."""

from itertools import accumulate

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from qan_gym.core.class_sampling import ClassMembers, counts_of_shares
from qan_gym.core.engine import engine_here
from qan_gym.data.datasets import load_dataset
from qan_gym.data.selection import Selection, choose, class_sizes
from qan_gym.utils import random_streams
from qan_gym.utils.arrays import NUMPY

NATIVE = engine_here().startswith("native")


def counts_by_points(shares: list[float], there: list[bool], batch_size: int, offset: float) -> list[int]:
    """Each image is a point at i + offset on a line of length B that the classes divide."""
    own = [share if has else 0.0 for share, has in zip(shares, there, strict=True)]
    if sum(own) == 0:
        own = [float(has) for has in there]
    ends = [end / sum(own) * batch_size for end in accumulate(own)]
    counts = [0] * len(own)
    last = max(label for label, share in enumerate(own) if share > 0)
    for image in range(batch_size):
        counts[next((label for label, end in enumerate(ends) if image + offset < end), last)] += 1
    return counts


def test_the_counts_of_a_batch_are_those_of_points_on_a_line():
    rng = np.random.default_rng(0)
    for _ in range(300):
        n_classes, batch_size = int(rng.integers(2, 12)), int(rng.integers(1, 130))
        shares = rng.dirichlet(np.full(n_classes, 0.5)) * rng.integers(0, 2, n_classes)
        there = rng.random(n_classes) < 0.8
        there[rng.integers(n_classes)] = True
        offset = rng.random()
        found = counts_of_shares(NUMPY, shares[None], there[None], np.array([float(batch_size)]), np.array([offset]))[0]
        assert found.sum() == batch_size
        assert found.tolist() == counts_by_points(shares.tolist(), there.tolist(), batch_size, offset)
        assert not found[~there].any()


def test_a_class_has_its_share_on_the_average():
    """A fraction of an image is rounded up in that fraction of the mini-batches."""
    shares = np.array([0.07, 0.5, 0.13, 0.3])
    offsets = random_streams.uniform_at(np.arange(4_000), random_streams.SHARES, np.zeros(4_000, np.int64))
    rows = [np.repeat(value[None], 4_000, axis=0) for value in (shares, np.ones(4, bool))]
    counts = counts_of_shares(NUMPY, *rows, np.full(4_000, 10.0), offsets)
    for label, share in enumerate(10 * shares):
        up = (counts[:, label] > np.floor(share)).sum()
        fraction = share - np.floor(share)
        assert (np.abs(counts[:, label] - share) < 1).all()
        if fraction > 1e-9:
            assert chisquare([up, 4_000 - up], [4_000 * fraction, 4_000 * (1 - fraction)]).pvalue > 1e-3
    total = counts.sum(axis=0)
    assert chisquare(total, 40_000 * shares).pvalue > 1e-3


class Oracle:
    """A run that draws classes with replacement, image by image."""

    def __init__(self, seed: int, labels: np.ndarray, n_classes: int) -> None:
        self.seed, self.n_classes = seed, n_classes
        self.images = [np.flatnonzero(labels == label).tolist() for label in range(n_classes)]
        self.drawn = [0] * n_classes

    def next_of(self, label: int) -> int:
        mine = self.images[label]
        begun, place = divmod(self.drawn[label], len(mine))
        self.drawn[label] += 1
        number = np.array([begun * self.n_classes + label])
        order = random_streams.shuffled(
            np.array([self.seed]), random_streams.BY_CLASS, number, np.arange(len(mine))[None], len(mine)
        )[0]
        assert sorted(order.tolist()) == list(range(len(mine)))
        return mine[order[place]]

    def batch(self, counts: list[int]) -> list[int]:
        return [self.next_of(label) for label, count in enumerate(counts) for _ in range(count)]


@pytest.mark.parametrize("native", [False, pytest.param(True, marks=pytest.mark.skipif(not NATIVE, reason="kernels"))])
def test_rows_draw_as_the_oracle_does(native):
    """Five rows with other labels, other shares and other batch sizes; some classes are exhausted in every batch."""
    rng = np.random.default_rng(1)
    n_classes, rows, batches, room = 7, 5, 6, 40
    members, oracles = ClassMembers.empty(rows, 90, n_classes), []
    for row in range(rows):
        probabilities = rng.dirichlet(np.full(n_classes, 0.4))
        labels = rng.choice(n_classes, size=int(rng.integers(8, 90)), p=probabilities)
        members.assign(row, labels)
        oracles.append(Oracle(1000 + row, labels, n_classes))
    seeds, used = np.arange(1000, 1000 + rows), np.zeros((rows, n_classes), np.int64)
    for _ in range(3):
        counts = np.zeros((rows, batches, n_classes), np.int64)
        for row in range(rows):
            there = np.flatnonzero(members.sizes[row])
            for number in range(batches - row):  # the last rows play fewer
                drawn = rng.choice(there, size=room - 5 * row)
                counts[row, number] = np.bincount(drawn, minlength=n_classes)
        indices = members.draw_all(NUMPY, seeds, counts, used, room, native)
        for row, oracle in enumerate(oracles):
            for number in range(batches):
                size = counts[row, number].sum()
                assert indices[row, number, :size].tolist() == oracle.batch(counts[row, number].tolist())
            assert used[row].tolist() == oracle.drawn


def test_every_order_of_a_class_is_another_one_and_all_are_alike_likely():
    labels = np.repeat([0, 1], 4)
    members = ClassMembers.empty(3_000, 8, 2)
    for row in range(3_000):
        members.assign(row, labels)
    counts = np.zeros((3_000, 2, 2), np.int64)
    counts[:, :, 1] = 4
    drawn = members.draw_all(NUMPY, np.arange(3_000), counts, np.zeros((3_000, 2), np.int64), 4, False)
    for number in range(2):
        codes = (drawn[:, number] - 4) @ [64, 16, 4, 1]
        _, frequencies = np.unique(codes, return_counts=True)
        assert len(frequencies) == 24
        assert chisquare(frequencies).pvalue > 1e-4
    same = (drawn[:, 0] == drawn[:, 1]).all(axis=1).sum()
    assert same < 3_000 / 24 + 5 * np.sqrt(3_000 / 24)


# --- long-tailed training splits ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return load_dataset("mnist5k")


@pytest.mark.parametrize(("imbalance", "size"), [(1.0, 1_000), (10.0, 1_000), (100.0, 990), (37.5, 333)])
def test_the_sizes_of_the_classes_fall_exponentially(digits, imbalance, size):
    chosen = choose(
        digits, Selection(train_size=size, data_seed=8, imbalance=imbalance, label_noise=(0.0,) * 10), "train"
    )
    sizes = np.bincount(chosen.labels, minlength=10)
    assert sizes.sum() == size
    assert sizes.tolist() == class_sizes(10, size, imbalance, 8).tolist()
    exact = imbalance ** (-np.arange(10) / 9)
    assert np.abs(np.sort(sizes)[::-1] - size * exact / exact.sum()).max() <= 1.0
    assert (digits.train.labels[chosen.places] == chosen.labels).all()
    assert len(set(chosen.places.tolist())) == size
    for split in ("validation", "test"):
        other = choose(digits, Selection(data_seed=8, imbalance=imbalance), split)
        assert other.labels.tolist() == getattr(digits, split).labels.tolist()


def test_which_classes_are_rare_is_drawn(digits):
    """Every class is the largest, and the smallest, in about a tenth of the data seeds."""
    sizes = np.array([class_sizes(10, 500, 50.0, seed) for seed in range(1_000)])
    for places in (sizes.argmax(axis=1), sizes.argmin(axis=1)):
        assert chisquare(np.bincount(places, minlength=10)).pvalue > 1e-4


def test_noise_is_that_of_the_labels(digits):
    """Images of a noisy label show any digit, all alike likely; those of others show theirs; none is taken twice."""
    noise = (0.0, 0.6, 0.0, 0.3, *[0.0] * 6)
    wrong, total, shown_digits = np.zeros(10), np.zeros(10), np.zeros(10)
    for seed in range(30):
        chosen = choose(digits, Selection(train_size=1_200, data_seed=seed, imbalance=4.0, label_noise=noise), "train")
        shown = digits.train.labels[chosen.places]
        assert len(set(chosen.places.tolist())) == 1_200
        assert np.bincount(chosen.labels, minlength=10).tolist() == class_sizes(10, 1_200, 4.0, seed).tolist()
        wrong += np.bincount(chosen.labels, weights=shown != chosen.labels, minlength=10)
        total += np.bincount(chosen.labels, minlength=10)
        shown_digits += np.bincount(shown[(chosen.labels == 1) & (shown != 1)], minlength=10)
    assert not wrong[[0, 2, *range(4, 10)]].any()
    for label in (1, 3):  # a tenth of the noise shows the right digit
        expected = 0.9 * noise[label] * total[label]
        assert chisquare([wrong[label], total[label] - wrong[label]], [expected, total[label] - expected]).pvalue > 1e-4
    assert chisquare(np.delete(shown_digits, 1)).pvalue > 1e-4


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (
            Selection(train_size=3_000, data_seed=0, imbalance=100.0),
            "train_size 3000 with imbalance 100 takes .* of class",
        ),
        (Selection(train_size=9, data_seed=0, imbalance=2.0), "train_size 9 is less than an image of each of the 10"),
        (Selection(label_noise=(0.1, 0.2)), "one for each of the 10 classes, not 2"),
    ],
)
def test_what_the_data_do_not_have_is_refused(digits, selection, message):
    with pytest.raises(ValueError, match=message):
        choose(digits, selection, "train")


def test_without_a_data_seed_it_is_as_large_as_the_data_allow(digits):
    """The largest class has all of its images; a larger train_size means all, as everywhere."""
    for size in (None, 20_000):
        chosen = choose(digits, Selection(train_size=size, imbalance=100.0), "train")
        sizes = np.bincount(chosen.labels, minlength=10)
        assert sizes.max() in (399, 400)
        assert sizes.min() == 4


def test_uniform_numbers_are_the_same_for_both_kinds_of_arrays():
    seeds, counters = np.array([0, 5, -3, 2**62]), np.arange(6)[:, None]
    found = random_streams.uniform_at(seeds, random_streams.SHARES, counters)
    assert found.shape == (6, 4)
    assert ((found >= 0) & (found < 1)).all()
    tensors = random_streams.uniform_at(torch.from_numpy(seeds), random_streams.SHARES, torch.from_numpy(counters))
    assert np.array_equal(found, tensors.numpy())
