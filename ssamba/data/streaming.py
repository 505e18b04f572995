"""Shards without an index, read from front to back by webdataset itself, and the clips that are made of their samples.

Nothing is read before training but the shards' names. The shards are shuffled every epoch by the seed, one epoch after
another: place n of this list is called turn n. Ranks and workers take the turns one after another, so that each has
shards without end, and none waits for others whose shards are longer.

Shapes: B batch, S samples.
"""

import itertools
import logging
import lzma
import random
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
import webdataset as wds

from ssamba.audio import samples_for
from ssamba.data.batches import Batch, Row, Rows, Sample, Tally, batched, this_worker
from ssamba.data.order import ClipRules, hashed, permutation
from ssamba.data.shards.descriptions import parse_description
from ssamba.data.shards.finding import ShardList
from ssamba.data.shards.transport import opened
from ssamba.errors import BadAudio, UserError
from ssamba.printable import masked
from ssamba.recordings import ENDINGS, Waveform, read_crop
from ssamba.values import is_remote

log = logging.getLogger(__name__)

MOST_IN_VAIN = 10_000
"""Samples that give no clip, one after another, beside those in the shuffle buffer: more end the run."""

# What Python and webdataset raise of a shard that cannot be read, or not to its end.
_BROKEN = (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)
_MAX_SECONDS = 3600.0  # of a recording that is decoded whole
_MOST_SAMPLES = 1 << 31
_AHEAD = 100  # samples in the shuffle buffer when the first comes out of it


def _opened(url: str, mode: str, bufsize: int, **_: Any) -> Any:
    """How webdataset opens what is no command."""
    return opened(url)


@dataclass
class Progress:
    """Which samples are consumed: all of the turns before `first` and of those in `done`, and of others those `taken`.

    ended: how many samples turns that are not done have, where that is known.
    """

    first: int = 0
    done: set[int] = field(default_factory=set)
    taken: dict[int, set[int]] = field(default_factory=dict)
    ended: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Progress":
        """What `state` gave."""
        taken = {turn: set(samples) for turn, samples in state["taken"].items()}
        return cls(state["first"], set(state["done"]), taken)

    def state(self) -> dict[str, Any]:
        """As plain values."""
        taken = {turn: sorted(samples) for turn, samples in sorted(self.taken.items())}
        return {"first": self.first, "done": sorted(self.done), "taken": taken}

    def add(self, taken: Iterable[Sequence[int]], ended: Iterable[Sequence[int]]) -> None:
        """Count (turn, sample)s that a step has learned from, and (turn, samples) of turns that were read to their
        end."""
        touched = {turn: samples for turn, samples in ended}
        self.ended |= touched
        for turn, sample in taken:
            self.taken.setdefault(turn, set()).add(sample)
            touched.setdefault(turn, 0)
        self._settle(touched)

    def merge(self, others: Iterable["Progress"]) -> None:
        """Count what other ranks have consumed, too."""
        for other in others:
            self.first = max(self.first, other.first)
            self.done |= other.done
            self.ended |= other.ended
            for turn, samples in other.taken.items():
                self.taken.setdefault(turn, set()).update(samples)
        self._settle(list(self.taken))

    def _settle(self, turns: Iterable[int]) -> None:
        for turn in turns:
            if turn in self.ended and len(self.taken.get(turn, ())) >= self.ended[turn]:
                self.done.add(turn)
        while self.first in self.done:
            self.first += 1
        self.done = {turn for turn in self.done if turn >= self.first}
        for by_turn in (self.taken, self.ended):
            for turn in [turn for turn in by_turn if turn < self.first or turn in self.done]:
                del by_turn[turn]


class StreamedShards(wds.PipelineStage):  # type: ignore[misc]
    """The source of a `wds.DataPipeline`: samples of shards as webdataset reads them, through its shuffle buffer,
    without end.

    A sample has its recording under the extension it has, its `json` if there is one, and those members that are asked
    for. `__turn__` is its turn and its index there.

    Args:
        rules: `shuffle_buffer` samples are held, as they were read, by all workers of a rank together.
        batch_size: of this rank.
        max_bad_fraction: of the recordings read that may be unusable.
        progress: what is consumed already, and not read again.
        members: extensions of what else of a sample is read.
        first: clips that are consumed already, of all ranks.
        batches: of this rank; None: without end.
        rank, world_size: of the process that made this object (workers are told apart by torch).

    Attributes:
        tally: of the current iteration.
    """

    def __init__(
        self,
        shards: ShardList,
        rules: ClipRules,
        *,
        batch_size: int,
        max_bad_fraction: float,
        progress: Progress | None = None,
        members: Sequence[str] = (),
        first: int = 0,
        batches: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.shards, self.rules, self.batch_size, self.members = shards, rules, batch_size, tuple(members)
        self.max_bad_fraction = max_bad_fraction
        # As it is now: whose turn it is must not change while others go on.
        self.progress = Progress.of(progress.state()) if progress else Progress()
        self.first, self.batches, self.rank, self.world_size = first, batches, rank, world_size
        self.tally = Turns(max_bad_fraction)

    def run(self) -> Iterator[Sample]:
        worker, workers = this_worker()
        self.tally = Turns(self.max_bad_fraction)
        schemes = {url.partition(":")[0] for url in self.shards.urls if is_remote(url)}
        wds.gopen_schemes.update(dict.fromkeys(schemes - {"pipe"}, _opened))
        consumer = self.rank * workers + worker
        buffer_size = -(-self.rules.shuffle_buffer // workers)
        chance = random.Random(f"buffer/{self.rules.seed}/{self.first}/{consumer}")
        samples = self._samples(consumer, self.world_size * workers, buffer_size)
        yield from wds.shuffle(buffer_size, initial=_AHEAD, rng=chance)(samples)

    def _samples(self, consumer: int, consumers: int, buffer_size: int) -> Iterator[Sample]:
        count, empty = len(self.shards.urls), 0
        turns = (turn for turn in itertools.count(self.progress.first) if turn not in self.progress.done)
        for turn in itertools.islice(turns, consumer, None, consumers):
            epoch, within = divmod(turn, count)
            url = self.shards.urls[permutation(count, "shards", self.rules.seed, epoch)[within]]
            place = masked(url)
            taken, read = self.progress.taken.get(turn, set()), 0
            try:
                for read, sample in enumerate(wds.tarfile_samples([{"url": url}]), start=1):
                    if read - 1 in taken:
                        continue
                    if self.tally.in_vain > MOST_IN_VAIN + buffer_size:
                        raise UserError(f"{MOST_IN_VAIN} samples one after another gave no clip; the last: in {place}")
                    self.tally.in_vain += 1
                    yield self._kept(sample, turn, read - 1)
            except UserError as error:
                # webdataset appends the open file to the message.
                raise UserError(str(error.args[0]).partition(" @ ")[0]) from error
            except _BROKEN as error:
                cause = getattr(error, "strerror", None) or str(error.args[0] if error.args else type(error).__name__)
                cause = cause.partition(" @ ")[0]  # webdataset adds the file's address
                if not read:
                    raise UserError(f"the shard {place} cannot be read: {cause}; expected a tar of samples") from error
                self.tally.read += 1
                self.tally.reject(f"the shard {place} cannot be read beyond its sample {read}: {cause}")
                self.tally.judge()
            self.tally.ended.append([turn, read])
            empty = 0 if read else empty + 1
            if empty >= count:
                raise UserError(f"{place} and all other shards hold no samples; expected <key>.flac or the like")

    def _kept(self, sample: Sample, turn: int, index: int) -> Sample:
        """What is needed of a sample."""
        recordings = [name for name in sample if name not in self.members and f".{name.rpartition('.')[2]}" in ENDINGS]
        # a.flac before a.clean.flac
        audio = min(recordings, key=lambda name: name.count("."), default=None)
        wanted = ("__key__", "__url__", "json", audio, *self.members)
        kept = {name: sample[name] for name in wanted if name in sample}
        return {**kept, "__turn__": (turn, index), "__audio__": audio}


@dataclass(eq=False)
class Turns(Tally):
    """Beside what is bad: what an iteration has taken and ended since the batch before, as `Progress.add` has it, and
    how many samples it has read since the last clip."""

    taken: list[list[int]] = field(default_factory=list)
    ended: list[list[int]] = field(default_factory=list)
    in_vain: int = 0


class StreamedClips:
    """The stages after `StreamedShards`: `wds.map(clips.decode)`, then `clips.join`, which gives clips (see
    `ssamba.data.batches`), and after those of a user `clips.collated`. What cannot be used is left out."""

    def __init__(self, source: StreamedShards, sampling_rate: int) -> None:
        self.source, self.sampling_rate, self.rules = source, sampling_rate, source.rules
        self.least_samples = samples_for(1, sampling_rate)

    def decode(self, sample: Sample) -> Sample:
        """The sample with its audio in `waveform`, float32 (S,): of a recording that is longer than a clip, a part from
        a random place, or all of it where recordings are joined. Without a waveform, if it cannot be used.

        Raises:
            UserError: too many cannot be used.
        """
        tally = self.source.tally
        tally.read += 1
        try:
            sample["waveform"] = self._decoded(sample)
        except BadAudio as error:
            tally.reject(f"{sample['__key__']} in {masked(sample['__url__'])}: {error}")
        tally.judge()
        return sample

    def _decoded(self, sample: Sample) -> Waveform:
        audio = sample["__audio__"]
        if audio is None:
            raise BadAudio("it has no recording; expected a member that ends with .flac, .wav, .mp3 or the like")
        turn, index = sample["__turn__"]
        if self.rules.short == "pack":
            waveform = read_crop(sample[audio], self.sampling_rate, _MOST_SAMPLES, 0.0, _MAX_SECONDS)
        else:
            chance = hashed(f"crop/{self.rules.seed}/{turn}/{index}") / 2.0**64
            waveform = read_crop(sample[audio], self.sampling_rate, self.rules.clip_samples, chance, _MAX_SECONDS)
            if len(waveform) < self.least_samples:
                raise BadAudio(f"it has {len(waveform)} samples; one frame takes {self.least_samples}")
        sample["json"] = _description(sample)
        full_scale = sample["json"].get("full_scale", 1)
        return waveform if full_scale == 1 else waveform * np.float32(full_scale)

    def join(self, samples: Iterator[Sample]) -> Iterator[Sample]:
        """Clips, each as soon as all its samples are there."""
        if self.rules.short == "pack":
            yield from self._joined(samples)
            return
        for sample in samples:
            self.source.tally.taken.append(list(sample["__turn__"]))
            waveform = sample.get("waveform")
            if waveform is None:
                continue
            length = len(waveform)
            if length < self.rules.clip_samples:
                if self.rules.short == "repeat":
                    waveform = np.resize(waveform, self.rules.clip_samples)
                    length = len(waveform)
                else:
                    waveform = np.concatenate([waveform, np.zeros(self.rules.clip_samples - length, np.float32)])
            yield self._clip([sample], waveform, length, 0)

    def _joined(self, samples: Iterator[Sample]) -> Iterator[Sample]:
        """Recordings end to end, cut into clips. A recording is consumed once its last clip is."""
        size = self.rules.clip_samples
        row, filled = np.empty(size, np.float32), 0
        within: list[Sample] = []  # recordings that the row has a part of
        complete: list[list[int]] = []  # and those of them that end in it
        part = 0  # of the first of them, by the clips that begin in it
        for sample in samples:
            waveform = sample.pop("waveform", None)
            if waveform is None:
                self.source.tally.taken.append(list(sample["__turn__"]))
                continue
            start = begun = 0
            while start < len(waveform):
                if not filled:
                    part, begun = begun, begun + 1
                taken = waveform[start : start + size - filled]
                row[filled : filled + len(taken)] = taken
                within.append(sample)
                start, filled = start + len(taken), filled + len(taken)
                if start == len(waveform):
                    complete.append(list(sample["__turn__"]))
                if filled == size:
                    self.source.tally.taken += complete
                    yield self._clip(within, row, size, part)
                    row, filled, within, complete = np.empty(size, np.float32), 0, [], []

    def _clip(self, samples: Sequence[Sample], waveform: Waveform, length: int, part: int) -> Sample:
        first = samples[0]
        turn, index = first["__turn__"]
        clip: Sample = {
            "__key__": "+".join(sample["json"]["key"] for sample in samples),
            "__url__": first["__url__"],
            # The same for the same clip, whoever reads it; of recordings that are joined, as far as can be.
            "__place__": (turn << 40) + (index << 16) + part,
            "waveform": torch.from_numpy(waveform),
            "length": length,
        }
        for name in self.source.members:
            values = [sample.get(name) for sample in samples]
            clip[name] = values if self.rules.short == "pack" else values[0]
        return clip

    def collated(self, clips: Iterable[Sample]) -> Iterator[Batch]:
        """Batches of the clips that come, and of each what it takes: `Progress.add` counts it."""
        source = self.source
        batch, step = this_worker()
        pending: list[Sample] = []
        if source.batches is not None and batch >= source.batches:
            return
        for clip in clips:
            tally = source.tally
            tally.in_vain = 0
            pending.append(clip)
            if len(pending) < source.batch_size:
                continue
            waveform = torch.empty(len(pending), self.rules.clip_samples)
            rows = Rows(waveform, source.first + (batch + 1) * source.world_size * source.batch_size, tally)
            for index, one in enumerate(pending):
                one["__row__"] = Row(rows, index, waveform[index])
            yield cast(Batch, {**batched(rows, pending, None), "taken": tally.taken, "ended": tally.ended})
            tally.taken, tally.ended, pending = [], [], []
            batch += step
            if source.batches is not None and batch >= source.batches:
                return


def _description(sample: Sample) -> Any:
    """A sample's JSON, if it is one of ours; of another nothing is known but its key."""
    if "json" in sample:
        try:
            return parse_description(sample["json"], sample["__key__"])
        except BadAudio:
            pass
    return {"key": sample["__key__"], "labels": {}}
