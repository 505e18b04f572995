"""The order of the clips: every recording once an epoch, by the seed and the place alone, found without reading."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssamba.data.order import ClipOrder, ClipRules, Segment
from ssamba.data.shards.index import SAMPLE, Shard, ShardInfo, ShardSet
from ssamba.errors import UserError

COUNTS = (4, 6, 1, 5, 4, 3)
LENGTHS = np.random.default_rng(0).integers(300, 900, sum(COUNTS))


def shard_set(counts: Any = COUNTS, lengths: Any = LENGTHS) -> ShardSet:
    """Shards that are nowhere: an order needs their table alone."""
    table = np.zeros(sum(counts), SAMPLE)
    table["length"] = lengths
    shards = (Shard(Path(f"/{n}.tar"), ShardInfo(f"{n}.tar", count, 1.0, 1, "")) for n, count in enumerate(counts))
    return ShardSet(tuple(shards), {}, table)


def order(
    seed: int = 0, shuffle_buffer: int = 8, short: str = "pad", clip_samples: int = 10**6, **given: Any
) -> ClipOrder:
    return ClipOrder(shard_set(), ClipRules(clip_samples, short, shuffle_buffer, seed), **given)


def rows(made: ClipOrder, first: int, count: int) -> list[int]:
    """The recordings of some clips, each of one."""
    return [made.clip(place)[0].row for place in range(first, first + count)]


def shards_of(numbers: list[int]) -> list[int]:
    return np.searchsorted(np.cumsum(COUNTS), numbers, "right").tolist()


@pytest.mark.parametrize("shuffle_buffer", [0, 1, 8, 1000])
def test_every_recording_once_an_epoch(shuffle_buffer: int) -> None:
    made = order(shuffle_buffer=shuffle_buffer)
    assert len(made) == 23
    for epoch in (0, 1, 7):
        assert sorted(rows(made, 23 * epoch, 23)) == list(range(23))


def test_held_out_recordings_keep_the_order_of_the_shards() -> None:
    assert rows(order(shuffle_buffer=0), 0, 46) == [*range(23), *range(23)]


def test_another_order_each_epoch_and_the_same_for_the_same_seed_and_epoch() -> None:
    made = {(seed, epoch): tuple(rows(order(seed), 23 * epoch, 23)) for seed in range(2) for epoch in range(3)}
    assert len({*made.values(), tuple(range(23))}) == 7
    # Whichever place is asked for first.
    again = order(1)
    assert made[1, 2] == tuple(reversed([again.clip(place)[0].row for place in range(68, 45, -1)]))
    assert made[1, 0] == tuple(rows(again, 0, 23))


def test_the_order_is_what_it_was() -> None:
    """A run that is resumed by another version of the packages must find the order that it left."""
    assert rows(order(), 0, 23) == [21, 11, 3, 2, 20, 14, 0, 22, 13, 15, 12, 1, 8, 7, 5, 18, 10, 16, 4, 19, 6, 17, 9]
    crops = [order(clip_samples=250).clip(place)[0].start for place in range(6)]
    assert crops == [150, 588, 96, 219, 57, 556]


def test_shards_come_in_another_order_each_epoch_and_whole() -> None:
    orders = set()
    for epoch in range(4):
        visited = [shard for shard, _ in itertools.groupby(shards_of(rows(order(shuffle_buffer=1), 23 * epoch, 23)))]
        assert sorted(visited) == list(range(6))  # one after the other
        orders.add(tuple(visited))
    assert len(orders) == 4


def test_a_window_mixes_the_fewest_shards_that_fill_it() -> None:
    windows = 0
    for epoch in range(20):
        held = shards_of(rows(order(shuffle_buffer=8), 23 * epoch, 23))
        while held:
            # The first whole shards with at least 8 recordings, or the rest.
            count = next(
                (n for n in range(8, len(held)) if sum(COUNTS[shard] for shard in set(held[:n])) == n), len(held)
            )
            taken = set(held[:count])
            assert sum(COUNTS[shard] for shard in taken) == count
            assert count - max(COUNTS[shard] for shard in taken) < 8
            windows += held[:count] != sorted(held[:count])  # mixed
            held = held[count:]
    assert windows > 30


def test_all_recordings_are_mixed_by_a_window_that_holds_them() -> None:
    """Every recording at every place equally often: chi-square of 23 x 23 cells over 4,000 epochs."""
    made = order(shuffle_buffer=1000)
    counts = np.zeros((23, 23))
    for epoch in range(4000):
        counts[range(23), rows(made, 23 * epoch, 23)] += 1
    expected = 4000 / 23
    chi = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi - 22 * 22) < 5 * np.sqrt(2 * 22 * 22)


def test_some_of_the_recordings() -> None:
    wanted = np.array([22, 3, 11])
    made = order(rows=wanted)
    assert len(made) == 3
    for epoch in range(4):
        assert sorted(rows(made, 3 * epoch, 3)) == [3, 11, 22]


# Crops


def test_crops_are_uniform_and_fixed_by_their_place() -> None:
    made = ClipOrder(shard_set((1,), [500]), ClipRules(400, "pad", 1, 0))
    segments = [made.clip(place)[0] for place in range(3000)]
    assert {segment.stop - segment.start for segment in segments} == {400}
    starts = np.array([segment.start for segment in segments])
    assert (starts.min(), starts.max()) == (0, 100)
    assert abs(starts.mean() - 50) < 4 * 101 / np.sqrt(12 * 3000)
    again = ClipOrder(shard_set((1,), [500]), ClipRules(400, "pad", 1, 0))
    assert [again.clip(place)[0] for place in (2999, 5)] == [segments[2999], segments[5]]
    held_out = ClipOrder(shard_set((1,), [500]), ClipRules(400, "pad", 0, 0))
    assert held_out.clip(7) == [Segment(0, 0, 400)]


def test_a_short_recording_is_whole() -> None:
    made = ClipOrder(shard_set((1,), [300]), ClipRules(400, "pad", 1, 0))
    assert made.clip(0) == [Segment(0, 0, 300)]


# Packing


@pytest.mark.parametrize("shuffle_buffer", [0, 8])
@pytest.mark.parametrize("clip_samples", [250, 600, 2000])
def test_packed_clips_are_the_epochs_joined_end_to_end(shuffle_buffer: int, clip_samples: int) -> None:
    made = order(shuffle_buffer=shuffle_buffer, short="pack", clip_samples=clip_samples)
    assert len(made) == LENGTHS.sum() // clip_samples
    whole = order(shuffle_buffer=shuffle_buffer)
    # Every sample of three epochs as (recording, place within it).
    signal = [(row, place) for row in rows(whole, 0, 69) for place in range(LENGTHS[row])]
    clips = len(signal) // clip_samples
    for number in reversed(range(clips)):
        found = [(segment.row, place) for segment in made.clip(number) for place in range(segment.start, segment.stop)]
        assert found == signal[number * clip_samples : (number + 1) * clip_samples]


# Several sources


def test_sources_have_their_shares_and_epochs_of_their_own() -> None:
    made = order(sources=[2, 3, 1], weights=[1, 2, 0.5])
    numbers = rows(made, 0, 14000)
    by_source = [[n for n in numbers if n < 10], [n for n in numbers if 10 <= n < 20], [n for n in numbers if n >= 20]]
    assert [len(part) for part in by_source] == [14 * 286, 14 * 571, 14 * 143]
    for part, size in zip(by_source, (10, 10, 3), strict=True):
        epochs = [part[start : start + size] for start in range(0, len(part) - size, size)]
        assert all(len(set(epoch)) == size for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs[:20]}) > 3
    # At places of chance: no source comes in long runs, and each block has another pattern.
    runs = [len(list(group)) for _, group in itertools.groupby(numbers, lambda n: n >= 20)]
    assert max(runs) < 80
    assert [n >= 20 for n in numbers[:1000]] != [n >= 20 for n in numbers[1000:2000]]
    assert rows(made, 12345, 3) == numbers[12345:12348]


def test_packed_sources() -> None:
    made = order(sources=[3, 3], weights=[3, 1], short="pack", clip_samples=500)
    heard: Counter[int] = Counter()
    clips = [made.clip(place) for place in range(2000)]
    assert all(len({segment.row < 11 for segment in clip}) == 1 for clip in clips)
    heard.update(segment.row for clip in clips for segment in clip for _ in range(segment.stop - segment.start))
    assert sum(clip[0].row < 11 for clip in clips) == 1500
    epochs = np.array([heard[row] / LENGTHS[row] for row in range(11)])
    assert np.ptp(epochs) <= 2  # each as often as the others, give or take the epochs at both ends


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sources": [2, 4], "weights": [1, 1e-5]}, "data.weights are 1, 1e-05; expected each to be at least one part"),
        ({"rows": np.array([1]), "short": "pack"}, "6 shards .* do not hold enough for one clip of 1000000 samples"),
        ({"rows": np.array([1]), "sources": [1, 5], "weights": [1, 1]}, "do not hold enough for one clip"),
    ],
)
def test_orders_that_cannot_be(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        order(**given)


# What is needed next


@pytest.mark.parametrize("given", [{}, {"sources": [2, 4], "weights": [1, 1]}])
def test_upcoming_shards_are_those_of_the_next_clips(given: dict[str, Any]) -> None:
    made = order(shuffle_buffer=5, **given)
    for place in range(0, 60):
        within = shards_of(rows(made, place, 1))
        assert set(within) <= set(made.upcoming(place))


def test_two_million_clips_are_ordered_at_once() -> None:
    counts = [256] * 8000
    made = ClipOrder(shard_set(counts, 160000), ClipRules(160000, "pack", 5000, 0))
    assert len(made) == 2048000
    late = [segment.row for place in range(2047000, 2047100) for segment in made.clip(place)]
    assert len(set(late)) == 100
