"""Indexed shards as a source of webdataset's pipelines, and the clips that are made of its samples.

Shapes: S samples.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import webdataset as wds

from ssamba.audio import samples_for
from ssamba.data.batches import FEATURES, Row, Rows, Sample, Tally, this_worker
from ssamba.data.features import FeaturePart, StoredFeatures
from ssamba.data.labels import Labels
from ssamba.data.mixup import Mixup
from ssamba.data.order import ClipOrder, Segment
from ssamba.data.shards.descriptions import Description, parse_description
from ssamba.data.shards.index import ShardSet
from ssamba.data.shards.reader import SampleReader
from ssamba.data.shards.remote import ShardCache
from ssamba.errors import BadAudio, UserError
from ssamba.recordings import Waveform, read_segment

_SOUGHT = 100  # clips of the order that are tried until one can be used


@dataclass(eq=False)
class _Making:
    """A clip that its samples are put into, one after another.

    order: whose clip it is. mixed_into: the clip that this one is the partner of. share: of this clip in a mixture.
    """

    place: int
    order: ClipOrder
    row: Row
    waveform: Waveform
    share: float | None = None
    mixed_into: "_Making | None" = None
    filled: int = 0
    keys: list[str] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    members: list[Sample] = field(default_factory=list)
    feature_parts: list[FeaturePart] = field(default_factory=list)
    label: int | np.ndarray[Any, Any] | None = None


@dataclass(eq=False, slots=True)
class _Part:
    """What a sample is read for.

    audio: the extension of its recording. unread: what of it could not be read, and why.
    """

    clip: _Making
    segment: Segment
    last: bool
    audio: str = ""
    unread: tuple[str, BadAudio] | None = None


class IndexedShards(wds.PipelineStage):  # type: ignore[misc]
    """The source of a `wds.DataPipeline`: samples of indexed shards, in the order of their clips, for one rank and
    whichever of its workers iterates.

    A sample is what `wds.tarfile_to_samples` makes of it, `{"__key__", "__url__", "flac": bytes, "json": bytes}`, the
    recording under whatever extension it has, and beside them those members that are asked for. Where the labels of
    shards are in labels.jsonl, its line there takes the place of its JSON. The part of it that is used, and the clip
    that this is for, are in `__part__`.

    It gives each worker what its batches are made of, so no later stage may split or shuffle again. In training all
    ranks together read the order from `first` on: batch k of rank r holds the places
    first + (k * world_size + r) * batch_size and those after it, so that ranks do not change what a step learns from;
    worker w of n makes the batches w, w + n, ..., which a DataLoader returns in this order. Otherwise each clip is read
    once by all ranks together, which have equally many batches, of sizes that differ by one clip.

    Args:
        batch_size: of this rank.
        training: see above.
        max_bad_fraction: of the recordings read that may be unusable.
        cache: for remote shards.
        members: extensions of what else of a sample is read, such as "txt".
        mixup: of labelled clips in training, if they are to be mixed.
        first: clips of the order that are consumed already, of all ranks.
        batches: of this rank, in training; None: without end.
        rank, world_size: of the process that made this object (workers are told apart by torch).
    """

    def __init__(
        self,
        shards: ShardSet,
        order: ClipOrder,
        *,
        batch_size: int,
        training: bool,
        max_bad_fraction: float,
        cache: ShardCache,
        members: Sequence[str] = (),
        mixup: Mixup | None = None,
        first: int = 0,
        batches: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.reader, self.order, self.mixup = SampleReader(shards, cache), order, mixup
        self.fetches = any(shard.url is not None for shard in shards.shards)
        self.batch_size, self.training, self.max_bad_fraction = batch_size, training, max_bad_fraction
        self.members, self.first, self.batches = tuple(members), first, batches
        self.rank, self.world_size = rank, world_size
        self._upcoming: list[int] = []
        if not training:
            if len(order) < world_size:
                raise UserError(f"{len(order)} clips cannot be shared by {world_size} devices; expected one for each")
            # Never an empty batch: ranks that work in step would wait for it.
            self.batches = min(-(-len(order) // (batch_size * world_size)), len(order) // world_size)

    def run(self) -> Iterator[Sample]:
        batch, step = this_worker()
        tally, self._upcoming = Tally(self.max_bad_fraction, self.order.recordings), []
        self._expect(batch)
        self._expect(batch + step)
        while self.batches is None or batch < self.batches:
            self._expect(batch + 2 * step)
            places = self._places(batch)
            # Whole: each clip fills its row.
            waveform = torch.empty(len(places), self.order.rules.clip_samples)
            consumed = self.first + (batch + 1) * self.world_size * self.batch_size
            rows = Rows(waveform, consumed, tally, shared=not self.training and self.world_size > 1)
            for index, place in enumerate(places):
                yield from self._clip(place, Row(rows, index, waveform[index]))
            batch += step
        if tally.read and tally.read == tally.bad:
            raise UserError(f"none of {tally.read} recordings can be used; see the log, or `ssamba shards verify`")

    def samples(self, clip: _Making, place: int) -> Iterator[Sample]:
        """What the clip at a place of a clip's order is made of, to be put into that clip."""
        segments = clip.order.clip(place)
        for count, segment in enumerate(segments, start=1):
            yield self._sample(_Part(clip, segment, count == len(segments)))

    def _clip(self, place: int, row: Row) -> Iterator[Sample]:
        """The samples of a clip, and of the one that it is mixed with."""
        clip = _Making(place, self.order, row, row.waveform.numpy())
        if self.mixup is not None:
            clip.share = self.mixup.share(place)
        yield from self.samples(clip, place)
        if self.mixup is not None and clip.share is not None:
            partner = _Making(place, self.mixup.order, row, np.empty_like(clip.waveform), mixed_into=clip)
            yield from self.samples(partner, place)

    def _sample(self, part: _Part) -> Sample:
        index, reader = part.segment.row, self.reader
        key, part.audio = reader.name(index)
        if part.audio == "json" or part.audio in self.members or part.audio.startswith("__"):
            part.audio = "audio"  # what a damaged header may say, or a member that is asked for
        sample: Sample = {"__key__": key, "__url__": reader.shard_of(index).place, "__part__": part}
        what = "json"
        try:
            if content := reader.json(index):
                sample["json"] = content
            what = "audio"
            sample[part.audio] = reader.audio(index)
            if self.members:
                what = "members"
                sample |= reader.members(index, self.members)
        except BadAudio as error:
            part.unread = what, error
        return sample

    def _expect(self, batch: int) -> None:
        """Prefetch the samples of a later batch."""
        if self.batches is None or batch < self.batches:
            places = self._places(batch)
            if self.fetches and (upcoming := self._shards_from(places[0])) != self._upcoming:
                self._upcoming = upcoming
                self.reader.cache.prefetch(self.reader.shards[shard] for shard in upcoming)
            for place in places:
                mixed = self.mixup is not None and self.mixup.share(place) is not None
                others = self.mixup.order.clip(place) if self.mixup is not None and mixed else []
                for segment in [*self.order.clip(place), *others]:
                    self.reader.expect(segment.row)

    def _shards_from(self, place: int) -> list[int]:
        """The shards that a place and those after it need."""
        others = self.mixup.order.upcoming(place) if self.mixup is not None else []
        return list(dict.fromkeys([*self.order.upcoming(place), *others]))

    def _places(self, batch: int) -> range:
        share = batch * self.world_size + self.rank
        if self.training:
            return range(self.first + share * self.batch_size, self.first + (share + 1) * self.batch_size)
        assert self.batches is not None
        shares = self.batches * self.world_size
        return range(share * len(self.order) // shares, (share + 1) * len(self.order) // shares)


class IndexedClips:
    """The stages after `IndexedShards`: `wds.map(clips.decode)`, then `clips.join`, which gives clips (see
    `ssamba.data.batches`).

    In training, a clip that cannot be used is replaced by the next one of the order, so that batches keep their size;
    otherwise it has no waveform.
    """

    def __init__(
        self,
        source: IndexedShards,
        sampling_rate: int,
        labels: Labels | None,
        members: Sequence[str] = (),
        features: StoredFeatures | None = None,
    ) -> None:
        self.source, self.sampling_rate, self.labels = source, sampling_rate, labels
        self.members, self.features = members, features
        self.short, self.least_samples = source.order.rules.short, samples_for(1, sampling_rate)

    def decode(self, sample: Sample) -> Sample:
        """The sample with its JSON as a `Description`, and in `waveform`, float32 (S,), its part of the clip. Without a
        waveform, if it cannot be used, which is counted and logged.

        Raises:
            UserError: too many cannot be used, or a label that is not in the list.
        """
        part: _Part = sample["__part__"]
        clip, segment = part.clip, part.segment
        tally = clip.row.rows.tally
        out = clip.waveform[clip.filled : clip.filled + segment.stop - segment.start]
        tally.read += 1
        described: Description | None = None
        usable = False
        try:
            if part.unread and part.unread[0] == "json":
                raise part.unread[1]
            described = sample["json"] = self._described(sample, segment.row)
            if len(out) < self.least_samples and self.short != "pack":
                raise BadAudio(f"it has {len(out)} samples; one frame takes {self.least_samples}")
            if part.unread:
                raise part.unread[1]
            if self.features is not None:
                sample["__features__"] = self.features.read(sample)
            # The decoded recording is freed here: the next one reuses its memory while it is in the cache.
            read_segment(sample.pop(part.audio), self.sampling_rate, segment.start, out)
            if (full_scale := described.get("full_scale", 1)) != 1:
                out *= np.float32(full_scale)
            usable = True
        except BadAudio as error:
            name = described["key"] if described else f"sample {segment.row}"
            tally.reject(f"{name} in {sample['__url__']}: {error}")
        tally.judge()
        if usable and described:
            sample["waveform"] = out
            self._put(clip, sample, described)
        return sample

    def _described(self, sample: Sample, index: int) -> Description:
        name = self.source.reader.place_name(index)
        return parse_description(sample["json"], name) if "json" in sample else {"key": name, "labels": {}}

    def _put(self, clip: _Making, sample: Sample, described: Description) -> None:
        clip.filled += len(sample["waveform"])
        clip.keys.append(described["key"])
        clip.urls.append(sample["__url__"])
        if self.members:
            clip.members.append({name: sample.get(name) for name in self.members})
        segment = sample["__part__"].segment
        if self.features is not None:
            clip.feature_parts.append(FeaturePart(segment.start, len(sample["waveform"]), sample["__features__"]))
        if self.labels is not None:
            clip.label = self.labels.encode(described, sample["__url__"], segment.start, segment.stop)

    def join(self, samples: Iterator[Sample]) -> Iterator[Sample]:
        """Clips, each as soon as all its samples are there."""
        for sample in samples:
            part: _Part = sample["__part__"]
            if not part.last:
                continue
            clip = part.clip
            self._finish(clip)
            if clip.mixed_into is not None:
                clip = self._mixed(clip.mixed_into, clip)
            elif clip.share is not None:
                continue  # its partner comes next
            yield self._made(clip)

    def _finish(self, clip: _Making) -> None:
        """Fill what a clip's samples left open, or in training all of it with the next usable clip."""
        for place in range(clip.place + 1, clip.place + _SOUGHT) if self.source.training else ():
            if clip.filled:
                break
            for sample in self.source.samples(clip, place):
                self.decode(sample)
        if not clip.filled and self.source.training:
            last = clip.row.rows.tally.last
            raise UserError(f"{_SOUGHT} clips one after another cannot be used; the last: {last}")
        waveform, filled = clip.waveform, clip.filled
        if 0 < filled < len(waveform):
            waveform[filled:] = 0
            if self.short != "pad":  # of a packed clip, what an unusable recording has left open
                waveform[:] = np.resize(waveform[:filled], waveform.shape)
                clip.filled = len(waveform)

    def _mixed(self, clip: _Making, partner: _Making) -> _Making:
        """A clip and its label mixed with those of its partner."""
        assert self.labels is not None and clip.share is not None
        assert clip.label is not None and partner.label is not None
        clip.waveform *= clip.share
        clip.waveform += (1 - clip.share) * partner.waveform
        own, other = self.labels.vector(clip.label), self.labels.vector(partner.label)
        clip.label = clip.share * own + (1 - clip.share) * other
        clip.keys += partner.keys
        clip.filled = max(clip.filled, partner.filled)
        return clip

    def _made(self, clip: _Making) -> Sample:
        if not clip.filled:
            return {"__place__": clip.place, "__row__": clip.row, "waveform": None}
        made: Sample = {
            "__key__": "+".join(clip.keys),
            "__url__": clip.urls[0],
            "__place__": clip.place,
            "__row__": clip.row,
            "waveform": clip.row.waveform,
            "length": clip.filled,
        }
        if self.labels is not None and clip.label is not None:
            # Where some clips are mixed, all have vectors.
            made["label"] = clip.label if self.source.mixup is None else self.labels.vector(clip.label)
        if self.features is not None:
            made[FEATURES] = self.features.of_clip(clip.feature_parts, clip.filled)
        for name in self.members:
            values = [members[name] for members in clip.members]
            made[name] = values if self.short == "pack" else values[0]
        return made
