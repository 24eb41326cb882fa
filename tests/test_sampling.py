"""The random streams and the samplers: uniform, independent, reproducible, exact."""

import random

import numpy as np
import pytest
import torch

from qan_gym.core.sampling import Sampler, fill_exhausted
from qan_gym.games.minibatch import REMEMBERED, roulette_counts
from qan_gym.utils import random_streams as streams

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
    """The generator's published outputs for the state 1234567; the plain twin gives them too."""
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
    window = torch.tensor(
        [[0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6, 7, 8, 9, 3], [7, 7, 0, 0, 0, 0, 0, 0, 0, 9]]
    )
    assert roulette_counts(window, 128, 10).tolist() == [
        [128, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 12, 12, 32, 12, 12, 12, 12, 12, 12],  # 128 - 9 * 12 = 20 for the newest
        [84, 0, 0, 0, 0, 0, 0, 24, 0, 20],
    ]


@pytest.mark.parametrize("batch_size", [1, 9, 10, 11, 19, 20, 128])
def test_roulette_counts_sum_to_the_batch(batch_size):
    window = torch.randint(0, 10, (500, MEMORY), generator=torch.Generator().manual_seed(batch_size))
    counts = roulette_counts(window, batch_size, 10)
    assert (counts.sum(dim=1) == batch_size).all()
    for row, actions in zip(counts.tolist(), window.tolist(), strict=True):
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
    found = fill_exhausted(wanted, torch.tensor([left for _, left in cases]))
    short = 0
    for (requests, left), row in zip(cases, found.tolist(), strict=True):
        assert row == plain_fill(requests, left)
        short += any(requests.count(label) > some for label, some in enumerate(left))
    assert short > 2_000, "the cases are too easy"


# --- the sampler ----------------------------------------------------------------------------------------------------


def made_labels(sizes: list[int], seed: int = 0) -> torch.Tensor:
    labels = torch.cat([torch.full((size,), label) for label, size in enumerate(sizes)])
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


def make_sampler(labels: torch.Tensor, by_class: list[bool], batch_size: int) -> Sampler:
    sampler = Sampler(labels, int(labels.max()) + 1, len(by_class), batch_size)
    sampler.by_class[:] = torch.tensor(by_class)
    return sampler


def begin(sampler: Sampler, seeds: list[int], epoch: int) -> None:
    count = len(seeds)
    sampler.start_epoch(torch.arange(count), torch.tensor(seeds), torch.full((count,), epoch))


def draw_epoch(sampler: Sampler, windows: torch.Tensor | None) -> torch.Tensor:
    """(batches, N, B); windows is (batches, N, MEMORY)."""
    runs = len(sampler.by_class)
    drawn = []
    for number in range(sampler.batches_per_epoch):
        window = None if windows is None else windows[number]
        drawn.append(sampler.draw(torch.full((runs,), number), window))
    return torch.stack(drawn)


def random_windows(batches: int, runs: int, n_classes: int, seed: int = 0) -> torch.Tensor:
    """(batches, N, MEMORY), as a random agent would leave them behind."""
    actions = torch.randint(0, n_classes, (batches + MEMORY, runs), generator=torch.Generator().manual_seed(seed))
    return torch.stack([actions[number : number + MEMORY].T for number in range(batches)])


def test_shuffled_epochs_repeat_nothing_and_differ():
    """47 images in batches of 10: 40 of them, each once; other images, in another order, in the next epoch."""
    labels = made_labels([20, 27])
    sampler = make_sampler(labels, [False, False], 10)
    assert sampler.batches_per_epoch == 4
    epochs = []
    for epoch in range(2):
        begin(sampler, [3, 4], epoch)
        drawn = draw_epoch(sampler, None)  # (4, 2, 10)
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
    sampler = make_sampler(made_labels([25, 25]), [False] * 3_000, 10)
    begin(sampler, list(range(3_000)), 0)
    first = sampler.draw(torch.zeros(3_000, dtype=torch.int64), None)
    assert_uniform(np.bincount(first.flatten().numpy(), minlength=50))


@pytest.mark.parametrize("seed", range(5))
def test_roulette_epoch_draws_what_is_asked_for_and_no_image_twice(seed):
    """Every batch has the composition of the plain reference; an epoch holds batch_size * batches_per_epoch images."""
    sizes = [30, 5, 41, 0, 33, 26, 30, 1, 20, 37]
    labels = made_labels(sizes, seed)
    sampler = make_sampler(labels, [True], 12)
    windows = random_windows(sampler.batches_per_epoch, 1, 10, seed)
    begin(sampler, [seed], 0)
    left, seen = list(sizes), []
    for number in range(sampler.batches_per_epoch):
        indices = sampler.draw(torch.tensor([number]), windows[number])[0]
        requests = []
        for action in windows[number, 0, :-1].tolist():
            requests += [action] * (12 // 10)
        requests += [windows[number, 0, -1].item()] * (12 - 9 * (12 // 10))
        take = plain_fill(requests, left)
        assert torch.bincount(labels[indices], minlength=10).tolist() == take
        left = [some - gone for some, gone in zip(left, take, strict=True)]
        seen += indices.tolist()
    assert len(seen) == 12 * (sum(sizes) // 12)
    assert len(set(seen)) == len(seen)


def test_roulette_that_asks_for_one_class_alone_gets_it_then_the_others_in_class_order():
    labels = made_labels([20, 20, 20])
    sampler = make_sampler(labels, [True], 10)
    begin(sampler, [0], 0)
    found = [labels[sampler.draw(torch.tensor([n]), torch.full((1, MEMORY), 2))[0]].tolist() for n in range(6)]
    assert found == [[2] * 10, [2] * 10, [0] * 10, [0] * 10, [1] * 10, [1] * 10]


def test_roulette_draws_each_class_in_random_order_redrawn_each_epoch():
    labels = made_labels([100, 100])
    sampler = make_sampler(labels, [True, True], 10)
    ones = torch.ones(2, MEMORY, dtype=torch.int64)
    orders = []
    for epoch in range(2):
        begin(sampler, [1, 2], epoch)
        drawn = torch.cat([sampler.draw(torch.full((2,), number), ones) for number in range(10)], dim=1)  # (2, 100)
        assert (labels[drawn] == 1).all()
        orders += drawn.tolist()
    for order in orders:
        assert sorted(order) == torch.nonzero(labels == 1).flatten().tolist()
        assert order != sorted(order)
    assert len({tuple(order) for order in orders}) == 4


def test_first_image_of_a_class_is_uniform():
    labels = made_labels([20, 20])
    sampler = make_sampler(labels, [True] * 4_000, 1)
    begin(sampler, list(range(4_000)), 0)
    drawn = sampler.draw(torch.zeros(4_000, dtype=torch.int64), torch.ones(4_000, MEMORY, dtype=torch.int64))[:, 0]
    counts = np.bincount(drawn.numpy(), minlength=40)
    assert counts[labels.numpy() == 0].sum() == 0
    assert_uniform(counts[labels.numpy() == 1])


def test_rows_equal_runs_alone_and_kinds_do_not_mix():
    """Five runs together, two of them shuffled: each as if it were alone, over two epochs."""
    labels = made_labels([30, 20, 25, 28])
    by_class, seeds = [True, False, True, True, False], [9, 9, 9, 2**62, 0]
    together = make_sampler(labels, by_class, 8)
    alone = [make_sampler(labels, [kind], 8) for kind in by_class]
    for epoch in range(2):
        windows = random_windows(together.batches_per_epoch, 5, 4, epoch)
        begin(together, seeds, epoch)
        drawn = draw_epoch(together, windows)
        for row, sampler in enumerate(alone):
            begin(sampler, [seeds[row]], epoch)
            assert torch.equal(drawn[:, row], draw_epoch(sampler, windows[:, row : row + 1])[:, 0])
    assert (together.used[[1, 4]] == 0).all()


def test_a_new_epoch_of_one_row_leaves_the_others():
    labels = made_labels([30, 30])
    sampler = make_sampler(labels, [True, True, True], 10)
    begin(sampler, [1, 2, 3], 0)
    sampler.draw(torch.zeros(3, dtype=torch.int64), torch.zeros(3, MEMORY, dtype=torch.int64))
    order, used = sampler.order.clone(), sampler.used.clone()
    sampler.start_epoch(torch.tensor([1]), torch.tensor([2]), torch.tensor([1]))
    assert torch.equal(sampler.order[[0, 2]], order[[0, 2]])
    assert torch.equal(sampler.used[[0, 2]], used[[0, 2]])
    assert not torch.equal(sampler.order[1], order[1])
    assert sampler.used[1].sum() == 0


def test_a_run_that_is_over_disturbs_nothing():
    """Past its epoch a roulette row has nothing left; it still gives valid indices, and the other row its own."""
    labels = made_labels([10, 10])
    both, alone = make_sampler(labels, [True, True], 10), make_sampler(labels, [True], 10)
    begin(both, [1, 2], 0)
    begin(alone, [2], 0)
    both.used[0] = both.class_sizes
    window = torch.tensor([[0] * MEMORY, [0, 1] * 5])
    drawn = both.draw(torch.tensor([5, 0]), window)
    assert ((drawn >= 0) & (drawn < 20)).all()
    assert torch.equal(drawn[1], alone.draw(torch.tensor([0]), window[1:])[0])
