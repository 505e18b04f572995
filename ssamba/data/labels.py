"""The labels of the samples of shards: as indices for training, and read before it begins."""

import json
import random
from array import array
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssamba.data.order import Weights
from ssamba.data.shards.descriptions import Description, as_list
from ssamba.data.shards.index import ShardSet
from ssamba.data.shards.reader import SampleReader
from ssamba.data.shards.remote import ShardCache
from ssamba.errors import BadAudio, UserError
from ssamba.progress import progress_bar

NO_LABEL = -100
"""In a batch's labels, where a clip has no further hop or character."""

_EXAMPLES = 4


@dataclass(frozen=True)
class Labels:
    """Which label of a sample is read, the list that counts its names, and whether a clip may have several."""

    key: str
    names: Sequence[str]
    multi_label: bool = False
    indices: Mapping[str, int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "indices", {name: index for index, name in enumerate(self.names)})

    def encode(self, sample: Mapping[str, Any], shard: str, start: int, stop: int) -> int | np.ndarray[Any, Any]:
        """The training target of samples `start` to `stop` of a sample's audio, by its JSON: here the class index (or
        the multi-hot vector) of all of it. UserError for a label that is not known."""
        value = sample["labels"].get(self.key)
        values = value if isinstance(value, list) else [value]
        unknown = [one for one in values if not isinstance(one, str) or one not in self.indices]
        if unknown or (not self.multi_label and len(values) != 1):
            raise UserError(
                f"{sample['key']} in {shard} has {self.key} {value!r:.200}; expected "
                f"{'some' if self.multi_label else 'one'} of the {len(self.names)} of the label list"
                + ("" if unknown or not values else "; task.loss=bce is for several")
            )
        if not self.multi_label:
            return self.indices[values[0]]
        hot = np.zeros(len(self.names), np.float32)
        hot[[self.indices[one] for one in values]] = 1
        return hot

    def stack(self, labels: Sequence[int | np.ndarray[Any, Any]]) -> Tensor:
        """A batch's labels, of what `encode` gives."""
        return torch.from_numpy(np.stack(labels))

    def noise(self, size: int, samples: int) -> Tensor:
        """Labels of `size` clips of `samples` samples of noise, for the rehearsal of a step."""
        return torch.eye(len(self.names))[:1].repeat(size, 1) if self.multi_label else torch.zeros(size).long()

    def vector(self, label: int | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """What `encode` gives as float32 (C,), 1 of each class that the sample has."""
        if isinstance(label, np.ndarray):
            return label
        hot = np.zeros(len(self.names), np.float32)
        hot[label] = 1
        return hot


def _described(
    shards: ShardSet, cache: ShardCache, rows: Container[int] | None = None
) -> Iterator[tuple[int, Description | BadAudio]]:
    """The description of each sample, by its row in the table, or of some rows; no audio is read."""
    reader = SampleReader(shards, cache)
    with progress_bar(shards.samples, "sample", "labels") as bar:
        for row in range(shards.samples):
            if rows is None or row in rows:
                try:
                    yield row, reader.description(row)
                except BadAudio as error:
                    yield row, error
            bar.update()


def read_labels(shards: ShardSet, key: str, cache: ShardCache) -> dict[int, tuple[str, str]]:
    """Name and label `key` (as JSON) of each sample that has one, by its row; no audio is read."""
    labels: dict[int, tuple[str, str]] = {}
    for row, description in _described(shards, cache):
        if isinstance(description, BadAudio):
            raise UserError(
                f"sample {row} of {SampleReader(shards, cache).shard_of(row).place}: {description}; "
                "`ssamba shards verify` finds all that is damaged"
            ) from description
        if key in description["labels"]:
            labels[row] = description["key"], json.dumps(description["labels"][key])
    return labels


def read_asked_labels(shards: ShardSet, key: str, option: str, cache: ShardCache) -> dict[int, tuple[str, str]]:
    """`read_labels` of the label that an option names; UserError if the shards have none such, or texts."""
    if key not in shards.labels:
        raise UserError(f"{option} is {key!r}, which the shards lack; they have {', '.join(shards.labels) or 'none'}")
    if not shards.label_list(key):
        raise UserError(f"{option} is {key!r}, what is said in a recording; expected a label that is a class")
    return read_labels(shards, key, cache)


def stratified_rows(labels: Mapping[int, tuple[str, str]], fraction: float, seed: int) -> list[int]:
    """Of samples as `read_labels` gives them the rows of a `stratified_subset`: chosen by name, so that it does not
    matter how the recordings are spread over shards."""
    chosen = stratified_subset(dict(labels.values()), fraction, seed)
    return [row for row, (name, _) in labels.items() if name in chosen]


def stratified_subset(labels: Mapping[str, str], fraction: float, seed: int) -> frozenset[str]:
    """round(fraction * n) of n names, each label in its proportion (largest remainders), at random by the seed."""
    rng = random.Random(seed)
    groups: dict[str, list[str]] = {}
    for name in sorted(labels):
        groups.setdefault(labels[name], []).append(name)
    share = {label: len(names) * fraction for label, names in groups.items()}
    counts = {label: int(value) for label, value in share.items()}
    order = list(groups)
    rng.shuffle(order)
    order.sort(key=lambda label: counts[label] - share[label])
    for label in order[: round(fraction * len(labels)) - sum(counts.values())]:
        counts[label] += 1
    return frozenset(name for label, names in groups.items() for name in rng.sample(names, counts[label]))


@dataclass
class LabelCounts:
    """Of a split: samples with a label that is known, by how many names they have and, for each name, how many have it;
    of those whose label is none, or not in the list, how many there are and some of them, for messages. rows,
    classes: for each label of each sample its row in the table and the index of its name in the list."""

    by_name_count: Counter[int] = field(default_factory=Counter)
    by_name: Counter[str] = field(default_factory=Counter)
    unknown: int = 0
    unknown_examples: list[str] = field(default_factory=list)
    multi_label_examples: list[str] = field(default_factory=list)
    rows: "array[int]" = field(default_factory=lambda: array("q"))
    classes: "array[int]" = field(default_factory=lambda: array("q"))

    @property
    def samples(self) -> int:
        """Those with a label that is known."""
        return self.by_name_count.total()


def count_labels(
    shards: ShardSet, key: str, names: Sequence[str], cache: ShardCache, rows: Container[int] | None = None
) -> LabelCounts:
    """Read label `key` of all samples, or of some rows of the table; no audio is read, and what is damaged is passed
    over, as training does."""
    counts = LabelCounts()
    known = {name: index for index, name in enumerate(names)}
    for row, description in _described(shards, cache, rows):
        if isinstance(description, BadAudio):
            continue
        value = description["labels"].get(key)
        values = as_list(value)
        if value is None or not all(one in known for one in values):
            counts.unknown += 1
            if len(counts.unknown_examples) < _EXAMPLES:
                counts.unknown_examples.append(f"{description['key']} ({value!r:.60})")
            continue
        counts.by_name_count[len(values)] += 1
        counts.by_name.update(set(values))
        own = [known[one] for one in set(values)]
        counts.rows.extend([row] * len(own))
        counts.classes.extend(own)
        if len(values) > 1 and len(counts.multi_label_examples) < _EXAMPLES:
            counts.multi_label_examples.append(f"{description['key']} ({', '.join(values)})"[:100])
    return counts


def class_weights(counts: LabelCounts, names: Sequence[str], multi_label: bool) -> Weights:
    """The weight of each class in the loss (C,), so that all classes count alike in sum.

    Of one label a clip n / (classes that there are * recordings of the class): the mean over the recordings is 1. Of
    several, the recordings without the label for each that has it, for the positive term. 1 of a class without
    recordings.
    """
    by_name = np.array([counts.by_name[name] for name in names], np.float64)
    weights = np.maximum(counts.samples - by_name, 1) if multi_label else counts.samples / np.count_nonzero(by_name)
    return np.where(by_name > 0, weights / np.maximum(by_name, 1), 1.0)


def balancing_weights(counts: LabelCounts, samples: int) -> Weights:
    """Of every row of the table (samples,), how often it is to be drawn beside others: the sum over its labels of
    1 / recordings that have the label, as SSAST's scripts weight AudioSet's clips; 0 of what has no label."""
    rows, classes = np.array(counts.rows), np.array(counts.classes)
    return np.bincount(rows, 1 / np.bincount(classes)[classes], minlength=samples).astype(np.float64)


def one_name_each(
    labels: Mapping[int, tuple[str, str]], samples: int, key: str, option: str, otherwise: str = ""
) -> dict[int, str]:
    """The one name that each of so many recordings has of a label, by its row.

    Args:
        labels: as `read_labels` gives them.
        option, otherwise: the option that needs it, and the one that takes several labels, for messages.

    Raises:
        UserError: some have none, or several.
    """
    names = {row: json.loads(value) for row, (_, value) in labels.items()}
    odd = [name for row, (name, _) in labels.items() if not isinstance(names[row], str)]
    if odd or len(labels) < samples:
        problem = f"{len(odd)} have several ({', '.join(odd[:_EXAMPLES])})" if odd else "the others have none"
        raise UserError(
            f"{option} is {key}, of which {len(labels) - len(odd)} of {samples} recordings have one name; {problem}; "
            f"expected one of each{otherwise}"
        )
    return names


def all_folds(names: Mapping[int, str], known: Sequence[str], option: str, alone: str) -> list[str]:
    """Every fold, in the order of the label list.

    Args:
        names: the fold of each recording.
        known: the names of the label list.
        option, alone: the option that needs the folds, and the one that takes some of them, for messages.

    Raises:
        UserError: a fold of the label list has no recordings, so that what is scored would not be all of the data set.
    """
    used = set(names.values())
    if empty := [name for name in known if name not in used]:
        more = f" and {len(empty) - _EXAMPLES} more" if len(empty) > _EXAMPLES else ""
        raise UserError(
            f"{option}: no recording is in the fold {', '.join(empty[:_EXAMPLES])}{more} of the {len(known)} of the "
            f"label list; expected some in each: are all splits of the data set named? Some folds alone: {alone}"
        )
    return list(known)


def in_fold(names: Mapping[int, str], fold: str, option: str) -> tuple[list[int], list[int]]:
    """The rows whose name is another than a fold's, and those whose name it is; UserError where there are none."""
    outside = [row for row, name in sorted(names.items()) if name != fold]
    inside = [row for row, name in sorted(names.items()) if name == fold]
    known = sorted(set(names.values()))
    if not inside:
        raise UserError(
            f"no recording is in the fold {fold!r} of {option}; expected one of {', '.join(known[:40])}"
            + (", ..." if len(known) > 40 else "")
        )
    if not outside:
        raise UserError(f"all recordings are in the fold {fold!r} of {option}; expected two folds or more")
    return outside, inside
