"""The random streams and the samplers: uniform, independent, reproducible, exact."""

import random

import numpy as np
import pytest
import torch
from helpers import made_runs

from qan_gym.core.run_state import RunState
from qan_gym.core.sampling import Sampler, fill_exhausted
from qan_gym.games.minibatch import REMEMBERED, roulette_counts
from qan_gym.utils import random_streams as streams
from qan_gym.utils.arrays import NUMPY, TORCH

MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15


# --- streams --------------------------------------------------------------------------------------------------------


def splitmix64(state: int) -> int:
    """The output function of SplitMix64, in Python's integers."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def plain_bits(seed: int, purpose: int, counter: int, count: int) -> list[int]:
    """`streams.random_bits` for one run, in Python's integers: 0 to 2**64 - 1."""
    key = splitmix64((seed + purpose * GAMMA) & MASK)
    key = splitmix64((key + counter * GAMMA) & MASK)
    return [splitmix64((key + i * GAMMA) & MASK) for i in range(1, count + 1)]


def assert_uniform(counts: np.ndarray) -> None:
    """Chi-square of counts that should be equal: within five deviations of its mean, on both sides."""
    freedom = counts.size - 1
    expected = counts.sum() / counts.size
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert abs(statistic - freedom) < 5 * (2 * freedom) ** 0.5, f"chi-square {statistic:.1f} at {freedom}"


def test_splitmix64_known_answers():
    """The generator's published outputs for the state 1234567; the plain one gives them too."""
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert [splitmix64((1234567 + i * GAMMA) & MASK) for i in range(1, 6)] == outputs


@pytest.mark.parametrize("seed", [0, 1, 1234567, 2**62 + 12345, 2**63 - 1])
@pytest.mark.parametrize("counter", [0, 1, 39])
def test_random_bits_are_splitmix64(seed, counter):
    bits = streams.random_bits(torch.tensor([seed]), streams.ORDER, counter, 50)[0]
    assert [bit & MASK for bit in bits.tolist()] == plain_bits(seed, streams.ORDER, counter, 50)


def test_uniform_is_the_leading_24_bits():
    found = streams.uniform(torch.tensor([7]), streams.WEIGHTS, 3, 100)
    assert found.dtype == torch.float32
    assert found[0].tolist() == [(bits >> 40) / 2**24 for bits in plain_bits(7, streams.WEIGHTS, 3, 100)]


def test_uniform_is_uniform_along_a_stream_and_across_seeds():
    along = streams.uniform(torch.tensor([0]), streams.WEIGHTS, 0, 200_000)[0].numpy()
    across = streams.uniform(torch.arange(200_000), streams.WEIGHTS, 0, 1)[:, 0].numpy()
    counters = streams.uniform(torch.zeros(200_000, dtype=torch.int64), 1, torch.arange(200_000), 1)[:, 0].numpy()
    for values in (along, across, counters):
        assert values.min() >= 0
        assert values.max() < 1
        assert_uniform(np.histogram(values, bins=256, range=(0, 1))[0])
        pairs = np.histogram2d(values[:-1], values[1:], bins=16, range=((0, 1), (0, 1)))[0]
        assert_uniform(pairs)


def test_every_bit_is_fair():
    bits = streams.random_bits(torch.tensor([3]), streams.ORDER, 0, 100_000)[0]
    ones = torch.stack([(bits >> place) & 1 for place in range(64)]).to(torch.float64).mean(dim=1)  # (64,)
    assert (ones - 0.5).abs().max() < 5 * 0.5 / 100_000**0.5


def test_permutation_is_one_and_uniform():
    orders = streams.permutation(torch.arange(48_000), streams.ORDER, 0, 4)  # (runs, 4)
    assert (orders.sort(dim=1).values == torch.arange(4)).all()
    codes = (orders * torch.tensor([64, 16, 4, 1])).sum(dim=1).numpy()
    _, counts = np.unique(codes, return_counts=True)
    assert counts.size == 24
    assert_uniform(counts)


def test_where_an_image_lands_is_uniform():
    orders = streams.permutation(torch.arange(2_000), streams.ORDER, 5, 50)
    for image in (0, 49):
        places = (orders == image).to(torch.int64).argmax(dim=1)
        assert_uniform(np.bincount(places.numpy(), minlength=50))


@pytest.mark.parametrize("draw", [streams.random_bits, streams.uniform, streams.permutation])
def test_row_of_many_equals_the_run_alone(draw):
    seeds = torch.tensor([5, 2**63 - 1, 0, 77])
    counters = torch.tensor([0, 3, 3, 9])
    together = draw(seeds, streams.ORDER, counters, 64)
    for row in range(4):
        alone = draw(seeds[row : row + 1], streams.ORDER, counters[row : row + 1], 64)
        assert torch.equal(together[row], alone[0])
        assert torch.equal(alone, draw(seeds[row : row + 1], streams.ORDER, int(counters[row]), 64))


def test_a_longer_draw_begins_as_a_shorter_one():
    seeds = torch.tensor([11])
    assert torch.equal(streams.uniform(seeds, 1, 0, 10), streams.uniform(seeds, 1, 0, 30)[:, :10])


def test_streams_differ_by_seed_purpose_and_counter():
    """64 bits of 1,000 streams: no two alike, and no two of neighbouring names correlated."""
    names = [(seed, purpose, counter) for seed in range(25) for purpose in range(1, 5) for counter in range(10)]
    drawn = [streams.random_bits(torch.tensor([s]), p, c, 1).item() for s, p, c in names]
    assert len(set(drawn)) == len(names)
    base = streams.uniform(torch.tensor([0]), 1, 0, 20_000)[0]
    for seed, purpose, counter in ((1, 1, 0), (0, 2, 0), (0, 1, 1), (0, 2, 1)):
        other = streams.uniform(torch.tensor([seed]), purpose, counter, 20_000)[0]
        assert torch.corrcoef(torch.stack([base, other]))[0, 1].abs() < 5 / 20_000**0.5


# --- what the roulette asks for, and what it gets -------------------------------------------------------------------


def test_roulette_counts_by_hand():
    recent = torch.tensor(
        [[0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6, 7, 8, 9, 3], [7, 7, 0, 0, 0, 0, 0, 0, 0, 9]]
    )
    assert roulette_counts(TORCH, recent, 128, 10).tolist() == [
        [128, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 12, 12, 32, 12, 12, 12, 12, 12, 12],  # 128 - 9 * 12 = 20 for the newest
        [84, 0, 0, 0, 0, 0, 0, 24, 0, 20],
    ]


@pytest.mark.parametrize("batch_size", [1, 9, 10, 11, 19, 20, 128])
def test_roulette_counts_sum_to_the_batch(batch_size):
    recent = torch.randint(0, 10, (500, REMEMBERED), generator=torch.Generator().manual_seed(batch_size))
    counts = roulette_counts(TORCH, recent, batch_size, 10)
    assert (counts.sum(dim=1) == batch_size).all()
    for row, actions in zip(counts.tolist(), recent.tolist(), strict=True):
        plain = [0] * 10
        for action in actions[:-1]:
            plain[action] += batch_size // 10
        plain[actions[-1]] += batch_size - 9 * (batch_size // 10)
        assert row == plain


def plain_fill(requests: list[int], left: list[int]) -> list[int]:
    """Image by image: of the class asked for if any is left, else of the first class that has one."""
    left, take = list(left), [0] * len(left)
    for label in requests:
        got = label if left[label] > 0 else next(other for other, some in enumerate(left) if some > 0)
        left[got] -= 1
        take[got] += 1
    return take


def test_fill_exhausted_agrees_with_taking_one_image_after_the_other():
    """Whatever the order of the requests: 4,000 random cases, from nothing short to everything gone."""
    rng = random.Random(0)
    cases = []
    while len(cases) < 4_000:
        n_classes = 10
        left = [rng.choice([0, 0, rng.randint(0, 6), rng.randint(0, 40)]) for _ in range(n_classes)]
        if sum(left) == 0:
            continue
        size = rng.randint(1, sum(left)) if rng.random() < 0.8 else sum(left)
        favourites = rng.sample(range(n_classes), rng.randint(1, n_classes))
        cases.append(([rng.choice(favourites) for _ in range(size)], left))
    wanted = torch.tensor([[requests.count(label) for label in range(10)] for requests, _ in cases])
    found = fill_exhausted(TORCH, wanted, torch.tensor([left for _, left in cases]))
    short = 0
    for (requests, left), row in zip(cases, found.tolist(), strict=True):
        assert row == plain_fill(requests, left)
        short += any(requests.count(label) > some for label, some in enumerate(left))
    assert short > 2_000, "the cases are too easy"


# --- the sampler ----------------------------------------------------------------------------------------------------


def made_labels(sizes: list[int], seed: int = 0) -> torch.Tensor:
    labels = torch.cat([torch.full((size,), label) for label, size in enumerate(sizes)])
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


class Draws:
    """A sampler, and the state of the runs that draw from it."""

    def __init__(self, labels: torch.Tensor, by_class: list[bool], batch_size: int) -> None:
        self.n_classes = int(labels.max()) + 1
        self.sampler = Sampler(labels, len(by_class), self.n_classes, batch_size)
        sizes = {"train_size": len(labels), "n_classes": self.n_classes, "batch_size": batch_size}
        self.run: RunState = made_runs(len(by_class), **sizes)
        self.run.by_class[:] = torch.tensor(by_class)

    def begin(self, seeds: list[int], epoch: int) -> None:
        count = len(seeds)
        epochs = torch.full((count,), epoch)
        self.sampler.start_epoch(self.run, torch.arange(count), torch.tensor(seeds), epochs)

    def draw(self, number: int | list[int], recent: torch.Tensor | None = None) -> torch.Tensor:
        """(N, B), the mini-batch of that number in the epoch, where `recent` (N, REMEMBERED) were the last actions."""
        self.run.clock[:] = torch.as_tensor(number)
        batch_size = self.sampler.batch_size
        arrays = self.run.with_arrays(NUMPY)
        wanted = None if recent is None else roulette_counts(NUMPY, recent.numpy(), batch_size, self.n_classes)
        return torch.from_numpy(self.sampler.draw(arrays, wanted))

    def draw_epoch(self, recent: torch.Tensor | None = None) -> torch.Tensor:
        """(batches, N, B); recent is (batches, N, REMEMBERED)."""
        numbers = range(self.sampler.batches_per_epoch)
        return torch.stack([self.draw(number, None if recent is None else recent[number]) for number in numbers])


def random_actions(batches: int, runs: int, n_classes: int, seed: int = 0) -> torch.Tensor:
    """(batches, N, REMEMBERED), the last actions of a random agent before each mini-batch."""
    actions = torch.randint(0, n_classes, (batches + REMEMBERED, runs), generator=torch.Generator().manual_seed(seed))
    return torch.stack([actions[number : number + REMEMBERED].T for number in range(batches)])


def test_shuffled_epochs_repeat_nothing_and_differ():
    """47 images in batches of 10: 40 of them, each once; other images, in another order, in the next epoch."""
    labels = made_labels([20, 27])
    draws = Draws(labels, [False, False], 10)
    assert draws.sampler.batches_per_epoch == 4
    epochs = []
    for epoch in range(2):
        draws.begin([3, 4], epoch)
        drawn = draws.draw_epoch()  # (4, 2, 10)
        assert drawn.dtype == torch.int64
        for run in range(2):
            seen = drawn[:, run].flatten().tolist()
            assert len(set(seen)) == 40
            assert set(seen) <= set(range(47))
            assert seen != sorted(seen)
            epochs.append(seen)
    assert len({tuple(seen) for seen in epochs}) == 4
    assert set(epochs[0]) != set(epochs[2])


def test_shuffled_batches_are_uniform_over_the_images():
    draws = Draws(made_labels([25, 25]), [False] * 3_000, 10)
    draws.begin(list(range(3_000)), 0)
    first = draws.draw(0)
    assert_uniform(np.bincount(first.flatten().numpy(), minlength=50))


@pytest.mark.parametrize("seed", range(5))
def test_roulette_epoch_draws_what_is_asked_for_and_no_image_twice(seed):
    """Every batch has the composition of the plain reference; an epoch holds batch_size * batches_per_epoch images."""
    sizes = [30, 5, 41, 0, 33, 26, 30, 1, 20, 37]
    labels = made_labels(sizes, seed)
    draws = Draws(labels, [True], 12)
    recent = random_actions(draws.sampler.batches_per_epoch, 1, 10, seed)
    draws.begin([seed], 0)
    left, seen = list(sizes), []
    for number in range(draws.sampler.batches_per_epoch):
        indices = draws.draw(number, recent[number])[0]
        requests = []
        for action in recent[number, 0, :-1].tolist():
            requests += [action] * (12 // 10)
        requests += [recent[number, 0, -1].item()] * (12 - 9 * (12 // 10))
        take = plain_fill(requests, left)
        assert torch.bincount(labels[indices], minlength=10).tolist() == take
        left = [some - gone for some, gone in zip(left, take, strict=True)]
        seen += indices.tolist()
    assert len(seen) == 12 * (sum(sizes) // 12)
    assert len(set(seen)) == len(seen)


def test_roulette_that_asks_for_one_class_alone_gets_it_then_the_others_in_class_order():
    labels = made_labels([20, 20, 20])
    draws = Draws(labels, [True], 10)
    draws.begin([0], 0)
    found = [labels[draws.draw(number, torch.full((1, REMEMBERED), 2))[0]].tolist() for number in range(6)]
    assert found == [[2] * 10, [2] * 10, [0] * 10, [0] * 10, [1] * 10, [1] * 10]


def test_roulette_draws_each_class_in_random_order_redrawn_each_epoch():
    labels = made_labels([100, 100])
    draws = Draws(labels, [True, True], 10)
    ones = torch.ones(2, REMEMBERED, dtype=torch.int64)
    orders = []
    for epoch in range(2):
        draws.begin([1, 2], epoch)
        drawn = torch.cat([draws.draw(number, ones) for number in range(10)], dim=1)  # (2, 100)
        assert (labels[drawn] == 1).all()
        orders += drawn.tolist()
    for order in orders:
        assert sorted(order) == torch.nonzero(labels == 1).flatten().tolist()
        assert order != sorted(order)
    assert len({tuple(order) for order in orders}) == 4


def test_first_image_of_a_class_is_uniform():
    labels = made_labels([20, 20])
    draws = Draws(labels, [True] * 4_000, 1)
    draws.begin(list(range(4_000)), 0)
    drawn = draws.draw(0, torch.ones(4_000, REMEMBERED, dtype=torch.int64))[:, 0]
    counts = np.bincount(drawn.numpy(), minlength=40)
    assert counts[labels.numpy() == 0].sum() == 0
    assert_uniform(counts[labels.numpy() == 1])


def test_rows_equal_runs_alone_and_kinds_do_not_mix():
    """Five runs together, two of them shuffled: each as if it were alone, over two epochs."""
    labels = made_labels([30, 20, 25, 28])
    by_class, seeds = [True, False, True, True, False], [9, 9, 9, 2**62, 0]
    together = Draws(labels, by_class, 8)
    alone = [Draws(labels, [kind], 8) for kind in by_class]
    for epoch in range(2):
        recent = random_actions(together.sampler.batches_per_epoch, 5, 4, epoch)
        together.begin(seeds, epoch)
        drawn = together.draw_epoch(recent)
        for row, one in enumerate(alone):
            one.begin([seeds[row]], epoch)
            assert torch.equal(drawn[:, row], one.draw_epoch(recent[:, row : row + 1])[:, 0])
    assert (together.run.class_used[[1, 4]] == 0).all()


def test_a_new_epoch_of_one_row_leaves_the_others():
    labels = made_labels([30, 30])
    draws = Draws(labels, [True, True, True], 10)
    draws.begin([1, 2, 3], 0)
    draws.draw(0, torch.zeros(3, REMEMBERED, dtype=torch.int64))
    run = draws.run
    order, used = run.order.clone(), run.class_used.clone()
    draws.sampler.start_epoch(run, torch.tensor([1]), torch.tensor([2]), torch.tensor([1]))
    assert torch.equal(run.order[[0, 2]], order[[0, 2]])
    assert torch.equal(run.class_used[[0, 2]], used[[0, 2]])
    assert not torch.equal(run.order[1], order[1])
    assert run.class_used[1].sum() == 0


def test_a_run_that_is_over_disturbs_nothing():
    """Past its epoch a roulette row has nothing left; it still gives valid indices, and the other row its own."""
    labels = made_labels([10, 10])
    both, alone = Draws(labels, [True, True], 10), Draws(labels, [True], 10)
    both.begin([1, 2], 0)
    alone.begin([2], 0)
    both.run.class_used[0] = torch.from_numpy(both.sampler.class_sizes)
    recent = torch.tensor([[0] * REMEMBERED, [0, 1] * 5])
    drawn = both.draw([5, 0], recent)
    assert ((drawn >= 0) & (drawn < 20)).all()
    assert torch.equal(drawn[1], alone.draw(0, recent[1:])[0])
