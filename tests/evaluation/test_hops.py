"""Answers of hops: which label goes with which, and events against their definition."""

import itertools
import math
import random

import pytest
import torch

from ssamba.data.labels import NO_LABEL
from ssamba.evaluation.classification import Predictions
from ssamba.evaluation.hops import (
    Event,
    event_scores,
    events_of,
    fit_hops,
    flat_hops,
    hop_key,
    matches,
    recording_of,
)
from ssamba.evaluation.scores import groups_of

NAMES = ("background", "dog", "rain")


def predictions(said: list[list[int]], true: list[list[int]]) -> Predictions:
    keys = [hop_key(f"r@{number}", hop) for number, row in enumerate(true) for hop in range(len(row))]
    logits = torch.eye(3)[torch.tensor(list(itertools.chain(*said)))]
    return Predictions(keys, logits, torch.tensor(list(itertools.chain(*true))))


def test_labels_fit_the_answers() -> None:
    labels = torch.tensor([[1, 2, 3], [4, NO_LABEL, NO_LABEL]])
    assert fit_hops(labels, 2).tolist() == [[1, 2], [4, NO_LABEL]]
    assert fit_hops(labels, 4).tolist() == [[1, 2, 3, NO_LABEL], [4, NO_LABEL, NO_LABEL, NO_LABEL]]


def test_hops_are_named_after_their_recording() -> None:
    keys, values, labels = flat_hops(
        ["a@b", "c"], torch.arange(8.0).view(2, 2, 2), torch.tensor([[5, 6], [7, NO_LABEL]])
    )
    assert keys == ["a@b@0", "a@b@1", "c@0"] and labels.tolist() == [5, 6, 7]
    assert values.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert [recording_of(key) for key in keys] == ["a@b", "a@b", "c"]


def test_events_are_runs_of_a_class_but_the_background() -> None:
    found = events_of([0, 1, 1, 2, 0, 0, 1], NAMES, 0.5)
    assert found == [Event("dog", 0.5, 1.5), Event("rain", 1.5, 2.0), Event("dog", 3.0, 3.5)]
    assert events_of([0, 0], ("dog", "rain"), 1.0) == [Event("dog", 0.0, 2.0)]


@pytest.mark.parametrize(
    ("said", "true", "count"),
    [
        (Event("dog", 1.2, 2.2), Event("dog", 1.0, 2.0), 1),  # both collars, 200 ms
        (Event("dog", 1.21, 2.0), Event("dog", 1.0, 2.0), 0),
        (Event("dog", 1.0, 2.21), Event("dog", 1.0, 2.0), 0),
        (Event("dog", 1.0, 13.0), Event("dog", 1.0, 11.0), 1),  # a fifth of the length
        (Event("dog", 1.0, 13.1), Event("dog", 1.0, 11.0), 0),
        (Event("rain", 1.0, 2.0), Event("dog", 1.0, 2.0), 0),
    ],
)
def test_collars(said: Event, true: Event, count: int) -> None:
    assert matches([said], [true]) == count
    assert matches([said, said], [true]) == count and matches([said], [true, true]) == count  # each counts once


def test_scores_are_those_of_their_definition() -> None:
    true = [[0, 1, 1, 0], [2, 2, 0, 1]]
    said = [[0, 1, 1, 1], [2, 2, 0, 0]]
    found = event_scores(predictions(said, true), NAMES, 1.0)
    # Of 5 hops that are an event, 4 are right, and 5 are said. Events: dog, rain, dog; said: dog (too long), rain.
    assert found["segment_F1"] == pytest.approx(2 * 4 / (5 + 5))
    assert found["event_F1"] == pytest.approx(2 * 1 / (2 + 3))
    perfect = event_scores(predictions(true, true), NAMES, 1.0)
    assert perfect == {"segment_F1": 1.0, "event_F1": 1.0}
    nothing = event_scores(predictions([[0, 0]], [[0, 0]]), NAMES, 1.0)
    assert all(math.isnan(value) for value in nothing.values())
    # An event does not go on into the next recording.
    assert event_scores(predictions([[1], [1]], [[1], [1]]), NAMES, 1.0)["event_F1"] == 1.0
    assert len(events_of([1, 1], NAMES, 1.0)) == 1


def test_hops_are_drawn_with_their_recording() -> None:
    keys = ["a@0", "a@1", "b@0"]
    assert groups_of(keys, None, 0.5) == ["a", "a", "b"]
    assert groups_of(keys, {"a": "ada", "b": "ada"}, 0.5) == ["ada", "ada", "ada"]
    assert groups_of(["a@0"], {"a@0": "ben"}, None) == ["ben"] and groups_of(keys, None, None) is None


def test_without_a_background_all_hops_count() -> None:
    rng = random.Random(0)
    true, said = ([[rng.randrange(2) for _ in range(50)]] for _ in range(2))
    right = sum(one == other for one, other in zip(said[0], true[0], strict=True))
    assert event_scores(predictions(said, true), ("dog", "rain", "wind"), 1.0)["segment_F1"] == pytest.approx(
        right / 50
    )
