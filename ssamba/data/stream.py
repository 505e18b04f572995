"""Shards to batches: clips in the one order that the seed decides, decoded late, for any rank and any worker.

Shapes: B batch, S samples.
"""

import json
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

import numpy as np
import torch
import torch.utils.data
from torch import Tensor

from ssamba.audio import samples_for
from ssamba.data.descriptions import Description
from ssamba.data.index import ShardSet
from ssamba.data.mixup import Mixup
from ssamba.data.order import ClipOrder, Segment
from ssamba.data.reader import SampleReader
from ssamba.data.remote import ShardCache
from ssamba.errors import BadAudio, UserError
from ssamba.progress import progress_bar
from ssamba.recordings import Waveform, read_segment

log = logging.getLogger(__name__)

NO_LABEL = -100
"""In a batch's labels, where a clip has no further hop or character."""

_JUDGED_AFTER = 200  # recordings read before the share of bad ones can end a run
_SOUGHT = 100  # clips of the order among which one that can be used is sought


class Batch(TypedDict):
    """waveform: float32 (B, S), zeros after the end; lengths: int64 (B,), valid samples; labels: int64 (B,) for one
    label a clip, float32 (B, C) for several and for clips that may be mixed, int64 (B, N) for one a hop or character,
    `NO_LABEL` after a clip's last, empty without labels; keys: the clips' names; positions: their places in the order,
    the same whatever the ranks; consumed: clips of the order that are behind once every rank has had this batch;
    skipped: names and reasons of bad recordings met since the batch before."""

    waveform: Tensor
    lengths: Tensor
    labels: Tensor
    keys: list[str]
    positions: list[int]
    consumed: int
    skipped: list[str]


@dataclass(frozen=True)
class Labels:
    """Which label of a sample is read, the list that numbers it, and whether a clip may have several."""

    key: str
    names: Sequence[str]
    several: bool = False
    numbers: Mapping[str, int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "numbers", {name: number for number, name in enumerate(self.names)})

    def encode(self, sample: Mapping[str, Any], shard: str, start: int, stop: int) -> int | np.ndarray[Any, Any]:
        """What training learns of samples `start` to `stop` of a sample's audio, by its JSON: here the class number (or
        the multi-hot vector) of all of it. UserError for a label that is not known."""
        value = sample["labels"].get(self.key)
        values = value if isinstance(value, list) else [value]
        unknown = [one for one in values if not isinstance(one, str) or one not in self.numbers]
        if unknown or (not self.several and len(values) != 1):
            raise UserError(
                f"{sample['key']} in {shard} has {self.key} {value!r:.200}; expected "
                f"{'some' if self.several else 'one'} of the {len(self.names)} of the label list"
                + ("" if unknown or not values else "; task.loss=bce is for several")
            )
        if not self.several:
            return self.numbers[values[0]]
        hot = np.zeros(len(self.names), np.float32)
        hot[[self.numbers[one] for one in values]] = 1
        return hot

    def stack(self, labels: Sequence[int | np.ndarray[Any, Any]]) -> Tensor:
        """A batch's labels, of what `encode` gives."""
        return torch.from_numpy(np.stack(labels))

    def noise(self, size: int, samples: int) -> Tensor:
        """Labels of as many clips of so many samples in which there is nothing to be heard."""
        return torch.eye(len(self.names))[:1].repeat(size, 1) if self.several else torch.zeros(size).long()

    def vector(self, label: int | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """What `encode` gives as float32 (C,), 1 of each class that the sample has."""
        if isinstance(label, np.ndarray):
            return label
        hot = np.zeros(len(self.names), np.float32)
        hot[label] = 1
        return hot


def read_labels(shards: ShardSet, key: str, cache: ShardCache) -> dict[int, tuple[str, str]]:
    """Name and label `key` (as JSON) of each sample that has one, by its number; no audio is read."""
    reader = SampleReader(shards, cache)
    found: dict[int, tuple[str, str]] = {}
    with progress_bar(shards.samples, "sample", "labels") as bar:
        for number in range(shards.samples):
            try:
                described = reader.description(number)
            except BadAudio as error:
                raise UserError(
                    f"sample {number} of {reader.shard_of(number).place}: {error}; "
                    "`ssamba shards verify` finds all that is damaged"
                ) from error
            if key in described["labels"]:
                found[number] = described["key"], json.dumps(described["labels"][key])
            bar.update()
    return found


def read_asked_labels(shards: ShardSet, key: str, option: str, cache: ShardCache) -> dict[int, tuple[str, str]]:
    """`read_labels` of the label that an option names; UserError if the shards have none such."""
    if key not in shards.labels:
        raise UserError(f"{option} is {key!r}, which the shards lack; they have {', '.join(shards.labels) or 'none'}")
    return read_labels(shards, key, cache)


def stratified_rows(found: Mapping[int, tuple[str, str]], fraction: float, seed: int) -> list[int]:
    """Of samples as `read_labels` gives them the rows of a `stratified_subset`: chosen by name, so that it does not
    matter how the recordings are spread over shards."""
    chosen = stratified_subset(dict(found.values()), fraction, seed)
    return [row for row, (name, _) in found.items() if name in chosen]


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
class _Clip:
    """What a row of a batch holds."""

    position: int
    key: str
    length: int
    label: int | np.ndarray[Any, Any] | None


class ClipStream(torch.utils.data.IterableDataset[Batch]):
    """Batches of the clips of an order, for one rank and whichever of its workers iterates.

    In training all ranks together read the order from `first` on: batch k of rank r holds the places
    first + (k * world_size + r) * batch_size and those after it, so that ranks do not change what a step learns from;
    worker w of n makes the batches w, w + n, ... The next clip takes the place of one that cannot be used. Otherwise
    each clip is read once by all ranks together, which have equally many batches, of sizes that differ by one clip;
    clips that cannot be used are left out.

    Args:
        batch_size: of this rank.
        training: see above.
        max_bad_fraction: of the recordings read that may be unusable.
        cache: for shards that lie elsewhere.
        labels: what is read of the samples' labels, if anything.
        mixup: of labelled clips in training, if they are to be mixed.
        first: clips of the order that are behind, of all ranks.
        batches: of this rank, in training; None: without end.
        rank, world_size: of the process that made this object (workers are told apart by torch).
    """

    def __init__(self, shards: ShardSet, order: ClipOrder, *, batch_size: int, sampling_rate: int, training: bool,
                 max_bad_fraction: float, cache: ShardCache, labels: Labels | None = None, mixup: Mixup | None = None,
                 first: int = 0, batches: int | None = None, rank: int = 0, world_size: int = 1) -> None:  # fmt: skip
        self.reader, self.order = SampleReader(shards, cache), order
        self.fetches = any(shard.url is not None for shard in shards.shards)
        self.batch_size, self.sampling_rate, self.training = batch_size, sampling_rate, training
        self.max_bad_fraction, self.labels, self.mixup = max_bad_fraction, labels, mixup
        self.first, self.batches = first, batches
        self.rank, self.world_size = rank, world_size
        self.clip_samples, self.least_samples = order.rules.clip_samples, samples_for(1, sampling_rate)
        self._read, self._bad, self._last = 0, 0, ""
        self._upcoming: list[int] = []
        if not training:
            if len(order) < world_size:
                raise UserError(f"{len(order)} clips cannot be shared by {world_size} devices; expected one for each")
            # Never an empty batch: ranks that work in step would wait for it.
            self.batches = min(-(-len(order) // (batch_size * world_size)), len(order) // world_size)

    def __len__(self) -> int:
        """Batches of this rank; TypeError for a stream without end."""
        if self.batches is None:
            raise TypeError("this stream has no end")
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        with closing(self.reader.cache):  # however it ends, nothing is fetched ahead any more
            yield from self._all_batches()

    def _all_batches(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        number, step = (worker.id, worker.num_workers) if worker else (0, 1)
        self._read, self._bad, self._upcoming = 0, 0, []
        skipped: list[str] = []
        self._expect(number)
        self._expect(number + step)
        while self.batches is None or number < self.batches:
            self._expect(number + 2 * step)
            batch = self._batch(number, skipped)
            if batch["keys"]:
                yield batch
                skipped = []
            elif self.world_size > 1:
                raise UserError(
                    f"no clip of a validation batch can be used, and the other devices would wait for it; the last: "
                    f"{self._last}"
                )
            number += step
        if self._read and self._read == self._bad:
            raise UserError(f"none of {self._read} recordings can be used; see the log, or `ssamba shards verify`")

    def _expect(self, number: int) -> None:
        """Have the samples of a later batch on their way."""
        if self.batches is None or number < self.batches:
            places = self._places(number)
            if self.fetches and (upcoming := self._shards_from(places[0])) != self._upcoming:
                self._upcoming = upcoming
                self.reader.cache.prefetch(self.reader.shards[shard] for shard in upcoming)
            for place in places:
                mixed = self.mixup is not None and self.mixup.share(place) is not None
                others = self.mixup.order.clip(place) if self.mixup is not None and mixed else []
                for segment in [*self.order.clip(place), *others]:
                    self.reader.expect(segment.number)

    def _shards_from(self, place: int) -> list[int]:
        """The shards that a place and those after it need."""
        others = self.mixup.order.upcoming(place) if self.mixup is not None else []
        return list(dict.fromkeys([*self.order.upcoming(place), *others]))

    def _places(self, number: int) -> range:
        share = number * self.world_size + self.rank
        if self.training:
            return range(self.first + share * self.batch_size, self.first + (share + 1) * self.batch_size)
        assert self.batches is not None
        shares = self.batches * self.world_size
        return range(share * len(self.order) // shares, (share + 1) * len(self.order) // shares)

    def _batch(self, number: int, skipped: list[str]) -> Batch:
        places = self._places(number)
        waveform = torch.empty(len(places), self.clip_samples)  # each clip fills its row
        clips: list[_Clip] = []
        for place in places:
            row = waveform[len(clips)].numpy()
            clip = self._clip(self.order, place, row, skipped)
            if clip is not None:
                clips.append(clip if self.mixup is None else self._mixed(self.mixup, clip, row, skipped))
        labels = [clip.label for clip in clips if clip.label is not None]
        return Batch(
            waveform=waveform[: len(clips)],
            lengths=torch.tensor([clip.length for clip in clips]),
            labels=self.labels.stack(labels) if self.labels is not None and labels else torch.empty(0),
            keys=[clip.key for clip in clips],
            positions=[clip.position for clip in clips],
            consumed=self.first + (number + 1) * self.world_size * self.batch_size,
            skipped=skipped,
        )

    def _mixed(self, mixup: Mixup, clip: _Clip, row: Waveform, skipped: list[str]) -> _Clip:
        """Mix a row, which holds a clip, and its label with those of its partner, where it is to have one; its label as
        a vector (C,) in any case."""
        assert self.labels is not None and clip.label is not None
        label = self.labels.vector(clip.label)
        if (share := mixup.share(clip.position)) is None:
            return replace(clip, label=label)
        other_row = np.empty_like(row)
        other = self._clip(mixup.order, clip.position, other_row, skipped)
        assert other is not None and other.label is not None
        row *= share
        row += (1 - share) * other_row
        label = share * label + (1 - share) * self.labels.vector(other.label)
        return _Clip(clip.position, f"{clip.key}+{other.key}", max(clip.length, other.length), label)

    def _clip(self, order: ClipOrder, place: int, row: Waveform, skipped: list[str]) -> _Clip | None:
        """Fill a row with the clip of a place, or in training with the first usable one after it."""
        for candidate in range(place, place + _SOUGHT if self.training else place + 1):
            keys: list[str] = []
            label, filled = None, 0
            for segment in order.clip(candidate):
                part = row[filled : filled + segment.stop - segment.start]
                if (described := self._segment(segment, part, skipped)) is not None:
                    keys.append(described["key"])
                    filled += len(part)
                    if self.labels is not None:
                        shard = self.reader.shard_of(segment.number).place
                        label = self.labels.encode(described, shard, segment.start, segment.stop)
            if filled:
                row[filled:] = 0
                if self.order.rules.short != "pad":  # of a packed clip, what an unusable recording has left open
                    row[:] = np.resize(row[:filled], row.shape)
                    filled = len(row)
                return _Clip(place, "+".join(keys), filled, label)
        if self.training:
            raise UserError(f"{_SOUGHT} clips one after another cannot be used; the last: {self._last}")
        return None

    def _segment(self, segment: Segment, out: Waveform, skipped: list[str]) -> Description | None:
        """Decode into `out`, float32 (S,); the sample's JSON, or None for one that cannot be used, which is counted."""
        self._read += 1
        described = None
        try:
            described = self.reader.description(segment.number)
            if len(out) < self.least_samples and self.order.rules.short != "pack":
                raise BadAudio(f"it has {len(out)} samples; one frame takes {self.least_samples}")
            read_segment(self.reader.audio(segment.number), self.sampling_rate, segment.start, out)
            if (full_scale := described.get("full_scale", 1)) != 1:
                out *= np.float32(full_scale)
        except BadAudio as error:
            name = described["key"] if described else f"sample {segment.number}"
            self._bad += 1
            self._last = f"{name} in {self.reader.shard_of(segment.number).place}: {error}"
            skipped.append(self._last)
            log.warning("skipped %s", self._last)
            described = None
        # A small set is judged once it may all have been read.
        judged = self._read >= min(_JUDGED_AFTER, self.order.recordings)
        if self._bad and judged and self._bad > self.max_bad_fraction * self._read:
            raise UserError(
                f"{self._bad} of {self._read} recordings are bad, more than data.max_bad_fraction "
                f"{self.max_bad_fraction:g} allows; the last: {self._last}"
            )
        return described
