"""Scoring the answers of hops: each hop as a clip of its recording, and the events that they make up.

Shapes: B clips, N hops, C classes.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from ssamba.audio import LogMel
from ssamba.data.labels import NO_LABEL
from ssamba.data.stream import ClipStream
from ssamba.evaluation.classification import Predictions, answers
from ssamba.models.heads import TokenClassifier

BACKGROUND = "background"
"""The name of a class that is no event."""
ONSET_COLLAR = 0.2
"""Seconds that an event's begin and end may be off, as DCASE's task of sound events has it."""
LENGTH_COLLAR = 0.2
"""The share of its length that an event's end may be off, where that is more."""


def fit_hops(labels: Tensor, hops: int) -> Tensor:
    """Labels (B, N) of so many hops: what is left of a clip after the last answer has none, and a batch of short clips
    has labels for less than its padding."""
    missing = max(0, hops - labels.shape[1])
    return torch.nn.functional.pad(labels[:, :hops], (0, missing), value=NO_LABEL)


def hop_key(key: str, hop: int) -> str:
    """The name of a recording's hop, counted from 0."""
    return f"{key}@{hop}"


def recording_of(key: str) -> str:
    """The recording that a hop's name is of."""
    return key.rpartition("@")[0]


def flat_hops(keys: Sequence[str], values: Tensor, labels: Tensor) -> tuple[list[str], Tensor, Tensor]:
    """Of recordings the hops that have a label: their names, values (B, N, ...) -> (hops, ...), and labels int64
    (B, N) -> (hops,)."""
    own = labels != NO_LABEL
    names = [
        hop_key(key, hop) for key, row in zip(keys, own, strict=True) for hop in torch.nonzero(row).flatten().tolist()
    ]
    return names, values[own], labels[own]


def predict_hops(
    model: TokenClassifier, log_mel: LogMel, stream: ClipStream, total: int, device: torch.device
) -> Predictions:
    """Run a classifier of hops over a stream that ends; a progress bar over its `total` clips. keys: `hop_key`."""
    keys: list[str] = []
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    for batch, hop_logits, _ in answers(model, log_mel, stream, total, device):
        names, values, truth = flat_hops(batch["keys"], hop_logits, fit_hops(batch["labels"], hop_logits.shape[1]))
        keys += names
        logits.append(values)
        labels.append(truth)
    return Predictions(keys, torch.cat(logits), torch.cat(labels))


class Event(NamedTuple):
    """A class, and when it begins and ends, in seconds."""

    name: str
    onset: float
    offset: float


def events_of(classes: Sequence[int], names: Sequence[str], hop_seconds: float) -> list[Event]:
    """What the classes of a recording's hops make up: hops one after another of one class, but `BACKGROUND`."""
    events, place = [], 0
    for class_index, some in groupby(classes):
        hops = len(list(some))
        if names[class_index] != BACKGROUND:
            events.append(Event(names[class_index], place * hop_seconds, (place + hops) * hop_seconds))
        place += hops
    return events


def matches(predicted: Sequence[Event], true: Sequence[Event]) -> int:
    """How many events of a recording are matched: of the same class, begin and end as near as the collars say, each
    counted once. Event by event in the order of time (Mesaros et al. 2016, section 3.2)."""
    left, count = list(predicted), 0
    for event in true:
        length = max(ONSET_COLLAR, LENGTH_COLLAR * (event.offset - event.onset)) + _ROUNDING
        for one in left:
            begins = abs(one.onset - event.onset) <= ONSET_COLLAR + _ROUNDING
            if one.name == event.name and begins and abs(one.offset - event.offset) <= length:
                left.remove(one)
                count += 1
                break
    return count


_ROUNDING = 1e-6  # seconds


def event_scores(predictions: Predictions, names: Sequence[str], hop_seconds: float) -> dict[str, float]:
    """F1 of the hops that are no `BACKGROUND`, over all classes ("segment_F1"), and of whole events ("event_F1"); NaN
    where there is none, neither true nor predicted."""
    predicted, true = predictions.logits.argmax(1), predictions.labels
    background = names.index(BACKGROUND) if BACKGROUND in names else -1
    right = int(((predicted == true) & (true != background)).sum())
    claims, hops = int((predicted != background).sum()), int((true != background).sum())
    matched = events = claimed = 0
    places = zip(predictions.keys, predicted.tolist(), true.tolist(), strict=True)
    for _, some in groupby(places, key=lambda place: recording_of(place[0])):
        _, ours, theirs = zip(*some, strict=True)
        these, those = (events_of(classes, names, hop_seconds) for classes in (ours, theirs))
        matched, claimed, events = matched + matches(these, those), claimed + len(these), events + len(those)
    return {"segment_F1": _f1(right, claims, hops), "event_F1": _f1(matched, claimed, events)}


def _f1(matched: int, claimed: int, true: int) -> float:
    return 2 * matched / (claimed + true) if claimed + true else float("nan")
