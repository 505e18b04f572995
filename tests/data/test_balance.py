"""Recordings drawn by weights: how often, always the same, and still shard by shard."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssamba.data.labels import LabelCounts, balancing_weights, class_weights
from ssamba.data.order import ClipOrder, ClipRules
from ssamba.data.shards.index import SAMPLE, Shard, ShardInfo, ShardSet
from ssamba.errors import UserError

COUNTS = (4, 6, 1, 5, 4, 3)
SIZE = sum(COUNTS)
WEIGHTS = np.random.default_rng(0).exponential(size=SIZE) * (np.arange(SIZE) % 7 > 0)


def shard_set() -> ShardSet:
    """Shards that are nowhere: an order needs their table alone."""
    table = np.zeros(SIZE, SAMPLE)
    table["length"] = np.random.default_rng(0).integers(300, 900, SIZE)
    shards = (Shard(Path(f"/{n}.tar"), ShardInfo(f"{n}.tar", count, 1.0, 1, "")) for n, count in enumerate(COUNTS))
    return ShardSet(tuple(shards), {}, table)


def order(seed: int = 0, shuffle_buffer: int = 8, **given: Any) -> ClipOrder:
    return ClipOrder(shard_set(), ClipRules(10**6, "pad", shuffle_buffer, seed), balance=WEIGHTS, **given)


def rows(made: ClipOrder, first: int, count: int) -> list[int]:
    return [made.clip(place)[0].row for place in range(first, first + count)]


def test_each_is_drawn_as_often_as_its_weight_says() -> None:
    made, expected = order(), SIZE * WEIGHTS / WEIGHTS.sum()
    assert len(made) == SIZE
    total: Counter[int] = Counter()
    for epoch in range(600):
        drawn = Counter(rows(made, SIZE * epoch, SIZE))
        assert drawn.total() == SIZE
        assert all(abs(drawn[row] - expected[row]) < 2 for row in range(SIZE))
        total += drawn
    assert all(abs(total[row] / 600 - expected[row]) < 0.1 for row in range(SIZE))
    assert {row for row in range(SIZE) if WEIGHTS[row]} == set(total)


def test_which_are_drawn_is_a_function_of_the_place_alone() -> None:
    epochs = {(seed, epoch): tuple(rows(order(seed), SIZE * epoch, SIZE)) for seed in (0, 1) for epoch in (0, 1, 2)}
    assert len(set(epochs.values())) == len({tuple(sorted(one)) for one in epochs.values()}) == 6
    again = order(1)
    backwards = [again.clip(place)[0].row for place in range(3 * SIZE - 1, -1, -1)]
    assert tuple(backwards[::-1]) == epochs[1, 0] + epochs[1, 1] + epochs[1, 2]
    # A run that is resumed by another version of the packages must find the order that it left.
    assert rows(order(), 0, SIZE) == [10, 16, 12, 12, 15, 18, 1, 10, 16, 19, 16, 22, 9, 9, 9, 8, 5, 6, 9, 8, 9, 6, 9]


def test_a_shard_is_read_within_one_window_of_an_epoch() -> None:
    for epoch in range(10):
        made = order(shuffle_buffer=1)
        drawn = rows(made, SIZE * epoch, SIZE)
        visited = [s for s, _ in itertools.groupby(np.searchsorted(np.cumsum(COUNTS), drawn, "right").tolist())]
        assert len(visited) == len(set(visited))
        assert set(visited) <= set(made.upcoming(SIZE * epoch)) | set(range(6))
        for place, shard in zip(range(SIZE), np.searchsorted(np.cumsum(COUNTS), drawn, "right"), strict=True):
            assert shard in made.upcoming(SIZE * epoch + place)


def test_some_of_the_recordings_and_several_sources() -> None:
    made = order(rows=np.array([1, 2, 7, 20]))
    assert set(rows(made, 0, 400)) == {1, 2, 20}  # 7 has no weight
    made = order(sources=[2, 4], weights=[1.0, 3.0])
    first = np.array(rows(made, 0, 4000)) < 10
    assert first.mean() == 0.25
    share = Counter(np.array(rows(made, 0, 4000))[first].tolist())
    expected = WEIGHTS[:10] / WEIGHTS[:10].sum()
    assert all(abs(share[row] / 1000 - expected[row]) < 0.02 for row in range(10))


def test_a_source_without_labels_is_told() -> None:
    balance = WEIGHTS * (np.arange(SIZE) >= 10)
    rules = ClipRules(10**6, "pad", 8, 0)
    with pytest.raises(UserError, match="which those of a source in data.train lack"):
        ClipOrder(shard_set(), rules, sources=[2, 4], weights=[1.0, 1.0], balance=balance)
    ClipOrder(shard_set(), rules, balance=balance)


# Weights by labels

NAMES = ("a", "b", "c", "d")
SAMPLES = {0: "a", 1: "ab", 3: "a", 4: "abc", 5: "b", 6: "a"}  # row -> labels; 2 cannot be read, and none has d


def counted(samples: dict[int, str]) -> LabelCounts:
    counts = LabelCounts()
    for row, labels in samples.items():
        counts.by_name_count[len(labels)] += 1
        counts.by_name.update(labels)
        counts.rows.extend([row] * len(labels))
        counts.classes.extend(NAMES.index(label) for label in labels)
    return counts


def test_a_recordings_weight_is_the_sum_over_its_labels() -> None:
    wanted = []
    for row in range(7):
        labels = SAMPLES.get(row, "")
        wanted.append(sum(1 / sum(label in other for other in SAMPLES.values()) for label in labels))
    assert balancing_weights(counted(SAMPLES), 7) == pytest.approx(wanted)


def test_a_class_counts_by_its_recordings() -> None:
    # 5 have a, 1 does not; 3 have b, 3 do not; 1 has c, 5 do not.
    assert class_weights(counted(SAMPLES), NAMES, multi_label=True) == pytest.approx([1 / 5, 3 / 3, 5 / 1, 1])
    one = {0: "a", 1: "a", 2: "a", 3: "b", 4: "b", 5: "c"}
    weights = class_weights(counted(one), NAMES, multi_label=False)
    assert weights == pytest.approx([6 / (3 * 3), 6 / (3 * 2), 6 / (3 * 1), 1])
    assert np.mean([weights[NAMES.index(label)] for label in one.values()]) == pytest.approx(1)
