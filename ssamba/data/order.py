"""The order of training: which parts of which recordings every clip is made of, known without opening a shard.

The order is endless, one epoch after another, and a function of the shards and the seed alone: it depends neither on
ranks nor workers nor on what was read before. That makes a run exact to resume: its position is one number, from which
any reader finds its clips. Imports no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from ssamba.data.shards.index import ShardSet
from ssamba.errors import UserError

Indices = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")

_BLOCK = 1000  # clips within which several sources have their shares
_KEPT = 4  # windows and epochs in memory: readers go forward, and a batch spans two at most


class Segment(NamedTuple):
    """A part of a recording: samples `start` to `stop` of that in a row of the shards' table."""

    row: int
    start: int
    stop: int


@dataclass(frozen=True)
class ClipRules:
    """How recordings become clips.

    clip_samples: S of a clip. short: what fills it where the recording is shorter: "pad" (zeros), "repeat" (the
    recording again) or "pack" (recordings are joined end to end and the joined signal is cut). shuffle_buffer: so many
    recordings at least are in one window, within which they are shuffled; 0: in the order of the shards.
    """

    clip_samples: int
    short: str
    shuffle_buffer: int
    seed: int


def _words(size: int, *name: int | str) -> npt.NDArray[np.uint64]:
    """Random numbers below 2^64, seeded by a name alone."""
    # Raw words of a bit generator are the same in every version of NumPy, which its permutations need not be.
    words: npt.NDArray[np.uint64] = np.random.PCG64(hashed("/".join(map(str, name)))).random_raw(size)
    return words


def permutation(size: int, *name: int | str) -> Indices:
    """A random permutation of 0 to size - 1, seeded by a name alone."""
    return np.argsort(_words(size, *name), kind="stable")


def hashed(name: str) -> int:
    """A random number below 2^64, a hash of its name alone."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest())


@dataclass(frozen=True)
class _Epoch:
    """Of each shard the rows that it has in this epoch; of windows the shards of each, and the first recording and the
    first sample of each and of what follows."""

    shards: Sequence[Indices]
    windows: list[Indices]
    recordings: Counts
    samples: Counts


class Recordings:
    """The recordings of some shards in the order of every epoch.

    An epoch permutes the shards and takes them by windows: the fewest whole shards with at least `shuffle_buffer`
    recordings, which are permuted among themselves. So a reader needs a window's shards at a time, however many there
    are in all.

    With `balance`, an epoch first draws as many recordings as there are, with replacement, and then orders those in
    this way: which it has is a function of its index alone, too, and each shard is still read in one window of it.

    Args:
        shards: for each shard the rows of the table that are used.
        lengths: samples of the audio of every row.
        source: an index that gives several sources of one seed different orders.
        balance: of every row, how often it is to be drawn beside others; None: each recording once an epoch.
    """

    def __init__(
        self,
        shards: Sequence[Indices],
        lengths: Counts,
        shuffle_buffer: int,
        seed: int,
        source: int = 0,
        balance: Weights | None = None,
    ) -> None:
        self.shards, self.lengths, self.shuffle_buffer, self.name = shards, lengths, shuffle_buffer, (seed, source)
        self.size = sum(map(len, shards))
        self.samples = sum(int(lengths[rows].sum(dtype=np.int64)) for rows in shards)
        self._rows = np.concatenate(shards) if balance is not None else None
        self._cumulated = np.cumsum(balance[self._rows]) if balance is not None else None
        self.weight = 1.0 if self._cumulated is None or not self.size else float(self._cumulated[-1])
        self._epochs: dict[int, _Epoch] = {}
        self._windows: dict[tuple[int, int], tuple[Indices, Counts]] = {}

    def recording(self, place: int) -> int:
        """The row at a place of the endless order."""
        index, within = divmod(place, self.size)
        epoch = self._epoch(index)
        window = int(np.searchsorted(epoch.recordings, within, "right")) - 1
        rows, _ = self._window(index, window)
        return int(rows[within - epoch.recordings[window]])

    def joined(self, start: int, count: int) -> list[Segment]:
        """What the endless signal of all recordings, end to end, holds from sample `start` on."""
        segments: list[Segment] = []
        while count:
            index, within = divmod(start, self.samples)
            epoch = self._epoch(index)
            window = int(np.searchsorted(epoch.samples, within, "right")) - 1
            rows, ends = self._window(index, window)
            within -= int(epoch.samples[window])
            place = int(np.searchsorted(ends, within, "right"))
            row = int(rows[place])
            stop = int(self.lengths[row])
            first = within - (int(ends[place]) - stop)
            taken = min(count, stop - first)
            segments.append(Segment(row, first, first + taken))
            start, count = start + taken, count - taken
        return segments

    def upcoming(self, place: int, packed: bool) -> list[int]:
        """The shards of the window that holds a recording, or a sample if packed, and of the next in its epoch."""
        index, within = divmod(place, self.samples if packed else self.size)
        epoch = self._epoch(index)
        window = int(np.searchsorted(epoch.samples if packed else epoch.recordings, within, "right")) - 1
        return [int(shard) for some in epoch.windows[window : window + 2] for shard in some]

    def _drawn(self, epoch: int) -> Sequence[Indices]:
        """Of each shard the rows that it has in an epoch."""
        if self._rows is None or self._cumulated is None:
            return self.shards
        # One draw in each of `size` equal parts of the cumulated weights: as often as so many independent draws in the
        # mean, and never far from it. They come in the order of the rows.
        chance = _words(self.size, "drawn", *self.name, epoch) / 2.0**64
        total = self._cumulated[-1]
        places = np.minimum((np.arange(self.size) + chance) / self.size * total, np.nextafter(total, 0))
        drawn = np.searchsorted(self._cumulated, places, "right")
        ends = np.cumsum([len(rows) for rows in self.shards])
        return np.split(self._rows[drawn], np.searchsorted(drawn, ends[:-1]))

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            shards = self._drawn(epoch)
            counts = np.array([len(rows) for rows in shards], np.int64)
            lengths = np.array([self.lengths[rows].sum(dtype=np.int64) for rows in shards], np.int64)
            count = len(shards)
            order = permutation(count, "shards", *self.name, epoch) if self.shuffle_buffer else np.arange(count)
            order = order[counts[order] > 0]
            # A window ends with the shard that makes it full.
            windows, some, size = [], [], 0
            for shard in order.tolist():
                some.append(shard)
                size += int(counts[shard])
                if size >= max(1, self.shuffle_buffer):
                    windows.append(np.array(some, np.int64))
                    some, size = [], 0
            if some:
                windows.append(np.array(some, np.int64))
            recordings = np.cumsum([0, *(counts[some].sum() for some in windows)])
            samples = np.cumsum([0, *(lengths[some].sum() for some in windows)])
            _remember(self._epochs, epoch, _Epoch(shards, windows, recordings, samples))
        return self._epochs[epoch]

    def _window(self, epoch: int, window: int) -> tuple[Indices, Counts]:
        """Its rows in their order, and how many samples there are up to the end of each."""
        if (epoch, window) not in self._windows:
            made = self._epoch(epoch)
            rows = np.concatenate([made.shards[shard] for shard in made.windows[window]])
            if self.shuffle_buffer:
                rows = rows[permutation(len(rows), "window", *self.name, epoch, window)]
            ends = np.cumsum(self.lengths[rows], dtype=np.int64)
            _remember(self._windows, (epoch, window), (rows, ends))
        return self._windows[epoch, window]


def _remember(cache: dict[_Key, _Value], key: _Key, value: _Value) -> _Value:
    if len(cache) >= _KEPT:
        del cache[next(iter(cache))]
    cache[key] = value
    return value


class ClipOrder:
    """The clips of one or several sources, by their place in the order.

    Several sources with weights each go through epochs of their own; of every thousand clips, each source has its share
    to the nearest one, at random places. Sources without weights are one source.

    Args:
        shards: what the sources hold, in their order.
        rows: those rows of the table that are used; None: all.
        sources: how many of the shards each source has. weights: of each; both None: one source.
        balance: of every row of the table, how often it is to be drawn beside others; None: each once an epoch.

    Raises:
        UserError: nothing to make a clip of, a weight that is less than half a clip in a thousand, or a source of which
            nothing is to be drawn.
    """

    def __init__(
        self,
        shards: ShardSet,
        rules: ClipRules,
        rows: Indices | None = None,
        sources: Sequence[int] | None = None,
        weights: Sequence[float] | None = None,
        balance: Weights | None = None,
    ) -> None:
        if balance is not None and rules.short == "pack":
            raise ValueError("recordings that are joined end to end cannot be drawn one by one")
        self.rules = rules
        counts = np.array([shard.info.samples for shard in shards.shards], np.int64)
        ends = np.cumsum(counts)
        rows = np.arange(counts.sum()) if rows is None else np.sort(rows)
        by_shard = np.split(rows, np.searchsorted(rows, ends[:-1]))
        self.lengths: Counts = shards.table["length"].astype(np.int64)
        self.sources: list[Recordings] = []
        self._first_shards: list[int] = []
        first = 0
        for index, count in enumerate(sources or [len(by_shard)]):
            part = by_shard[first : first + count]
            self.sources.append(Recordings(part, self.lengths, rules.shuffle_buffer, rules.seed, index, balance))
            self._first_shards.append(first)
            first += count
        if any(self._clips(source) == 0 for source in self.sources):
            raise UserError(
                f"{len(shards.shards)} shards ({shards.shards[0].path}, ...) do not hold enough for one clip of "
                f"{rules.clip_samples} samples; expected more audio, or a shorter clip"
            )
        if balance is not None and not all(source.weight > 0 for source in self.sources):
            raise UserError("data.balance draws recordings by their labels, which those of a source in data.train lack")
        self.shares = _shares(weights or [1.0])
        self._owners: dict[int, Indices] = {}

    def __len__(self) -> int:
        """Clips of an epoch: each recording once, or its audio once, rounded down."""
        return sum(map(self._clips, self.sources))

    @property
    def recordings(self) -> int:
        """Of an epoch."""
        return sum(source.size for source in self.sources)

    def _clips(self, source: Recordings) -> int:
        return source.samples // self.rules.clip_samples if self.rules.short == "pack" else source.size

    def clip(self, place: int) -> list[Segment]:
        """What the clip at a place is made of: one segment, or several joined ones of packed clips."""
        index, within = self._source(place)
        source, size = self.sources[index], self.rules.clip_samples
        if self.rules.short == "pack":
            return source.joined(within[index] * size, size)
        row = source.recording(within[index])
        length = int(self.lengths[row])
        longer = max(0, length - size)
        start = hashed(f"crop/{self.rules.seed}/{place}") % (longer + 1) if self.rules.shuffle_buffer else 0
        return [Segment(row, start, min(length, start + size))]

    def upcoming(self, place: int) -> list[int]:
        """The shards, by their indices, that this place and those after it need."""
        _, within = self._source(place)
        step = self.rules.clip_samples if self.rules.short == "pack" else 1
        return [
            first + shard
            for first, source, own in zip(self._first_shards, self.sources, within, strict=True)
            for shard in source.upcoming(own * step, packed=step > 1)
        ]

    def _source(self, place: int) -> tuple[int, list[int]]:
        """Which source a place belongs to, and how far each source's own order is there."""
        if len(self.sources) == 1:
            return 0, [place]
        block, within = divmod(place, _BLOCK)
        owners = self._owners.get(block)
        if owners is None:
            shuffled = permutation(_BLOCK, "sources", self.rules.seed, block)
            owners = _remember(self._owners, block, np.repeat(np.arange(len(self.shares)), self.shares)[shuffled])
        before = np.bincount(owners[:within], minlength=len(self.shares))
        return int(owners[within]), [block * share + int(n) for share, n in zip(self.shares, before, strict=True)]


def _shares(weights: Sequence[float]) -> list[int]:
    """How many of a block's clips each source has: largest remainders."""
    exact = [_BLOCK * weight / sum(weights) for weight in weights]
    shares = [int(share) for share in exact]
    largest = sorted(range(len(exact)), key=lambda index: shares[index] - exact[index])
    for index in largest[: _BLOCK - sum(shares)]:
        shares[index] += 1
    if 0 in shares:
        raise UserError(
            f"data.weights are {', '.join(f'{weight:g}' for weight in weights)}; expected each to be at least one "
            f"part in {_BLOCK} of their sum"
        )
    return shares
