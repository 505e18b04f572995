"""Shards to batches: pipelines of webdataset, whose source is the one order that the seed decides."""

import functools
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import webdataset as wds

from ssamba.data.batches import Batch, InPlace, Stage, collated
from ssamba.data.features import StoredFeatures
from ssamba.data.indexed import IndexedClips, IndexedShards
from ssamba.data.labels import Labels
from ssamba.data.order import ClipOrder, ClipRules
from ssamba.data.shards.features import MEMBER
from ssamba.data.shards.finding import ShardList, find_shards, list_shards
from ssamba.data.shards.index import ShardSet
from ssamba.data.shards.remote import ShardCache
from ssamba.data.streaming import StreamedClips, StreamedShards
from ssamba.errors import UserError


class BatchStream(wds.DataPipeline):  # type: ignore[misc]
    """A pipeline that yields batches of clips, of recordings of one sampling rate in Hz."""

    source: IndexedShards | StreamedShards
    sampling_rate: int

    def __len__(self) -> int:
        """Batches of this rank; TypeError for a stream without end."""
        if self.source.batches is None:
            raise TypeError("this stream has no end")
        return self.source.batches


class ClipStream(BatchStream):
    """Batches of the clips of an order, for one rank and whichever of its workers iterates: `IndexedShards`, the
    stages that decode and join, those of a user, and the one that makes batches.

    Args:
        labels: what is read of the samples' labels, if anything.
        features: what is read of the samples' features, if anything.
        members: of samples that are passed on.
        stages: of a user, after the clips.
        others: those of `IndexedShards`.
    """

    def __init__(
        self,
        shards: ShardSet,
        order: ClipOrder,
        *,
        sampling_rate: int,
        labels: Labels | None = None,
        features: StoredFeatures | None = None,
        members: Sequence[str] = (),
        stages: Sequence[Stage] = (),
        **options: Any,
    ) -> None:
        read = dict.fromkeys((*members, MEMBER) if features else members)
        self.source: IndexedShards = IndexedShards(shards, order, members=tuple(read), **options)
        self.order, self.sampling_rate = order, sampling_rate
        clips = IndexedClips(self.source, sampling_rate, labels, members, features)
        in_place = InPlace(stages) if stages else None
        super().__init__(
            self.source, wds.map(clips.decode), clips.join, in_place, functools.partial(collated, labels=labels)
        )

    def __iter__(self) -> Iterator[Batch]:
        with closing(self.source.reader.cache):  # however it ends, prefetching stops
            yield from super().__iter__()


class ShardStream(BatchStream):
    """Batches of clips of shards without an index, without end: `StreamedShards`, the stages that decode and join,
    those of a user, which may drop and add clips, and the one that makes batches.

    Args:
        stages: of a user, after the clips.
        others: those of `StreamedShards`.
    """

    def __init__(
        self, shards: ShardList, rules: ClipRules, *, sampling_rate: int, stages: Sequence[Stage] = (), **options: Any
    ) -> None:
        self.source, self.sampling_rate = StreamedShards(shards, rules, **options), sampling_rate
        clips = StreamedClips(self.source, sampling_rate)
        super().__init__(self.source, wds.map(clips.decode), clips.join, *stages, clips.collated)


def pipeline(
    shards: str | Sequence[str],
    *,
    seconds: float,
    batch_size: int,
    training: bool = True,
    seed: int = 0,
    shuffle_buffer: int = 2000,
    short: str = "pad",
    label: str | None = None,
    multi_label: bool = False,
    members: Sequence[str] = (),
    stages: Sequence[Stage] = (),
    first: int = 0,
    batches: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    max_bad_fraction: float = 0.01,
    cache: str | Path | None = None,
    cache_gigabytes: float = 100.0,
    order: str = "indexed",
    sampling_rate: int | None = None,
) -> BatchStream:
    """Shards as a pipeline of webdataset that yields batches (`ssamba.data.batches.Batch`), as training reads them.

        import webdataset as wds
        from ssamba.data import pipeline

        def augment(clip):
            chance = numpy.random.default_rng([7, clip["__place__"]])
            return {**clip, "waveform": clip["waveform"] * chance.uniform(0.5, 1)}

        def features(clip):
            return {**clip, "teacher": teacher(clip["waveform"])}

        batches = pipeline("shards/mine/train", seconds=10, batch_size=32, stages=[wds.map(augment), wds.map(features)])
        for batch in wds.WebLoader(batches, batch_size=None, num_workers=4):
            batch["waveform"], batch["teacher"]

    `stages` are filters of webdataset, or functions from an iterator to an iterator, on the clips that
    `ssamba.data.batches` describes, before they become batches; what they add to a clip, its batch has under the same
    name. Each clip must come out of them once and in its turn: then the clips, their order and the place where a run
    goes on are those of a pipeline without them. Stages after the batches (`batches.compose(wds.map(f))`) are not
    checked.

    In training the order is endless, a function of the seed and the place, and the same for all ranks and workers
    together: `batch["consumed"]` of the last batch that was used is the `first` to go on from, with whatever ranks and
    workers. Otherwise each clip is read once, from its recording's beginning.

    `order="streaming"` reads shards of which there is no index, for training without labels: from front to back, as
    webdataset does, through a buffer of `shuffle_buffer` samples. Stages may then drop and add clips, and `first` is
    where positions and `consumed` begin, no place to go on from.

    Args:
        shards: as `data.train` of a recipe names them.
        seconds: of a clip.
        batch_size: of this rank.
        training: see above.
        shuffle_buffer, short, max_bad_fraction, cache, cache_gigabytes: as in a recipe's section `data`.
        label, multi_label: the label to be read, and whether clips may have several of it.
        members: extensions of what else of a sample is passed on, in bytes, such as "txt" or "embedding.npy".
        first: clips of the order that are consumed already, of all ranks.
        batches: of this rank, in training; None: without end.
        rank, world_size: of this process among those that train together.
        order, sampling_rate: "indexed", or "streaming" of recordings of so many Hz.

    Raises:
        UserError: what "streaming" cannot do, shards that cannot be found or read, a label that they lack; while it is
            read: a stage that drops, adds or reorders clips, or too many recordings that cannot be used.
    """
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "max_bad_fraction": max_bad_fraction,
        "members": members,
        "stages": stages,
        "first": first,
        "batches": batches,
        "rank": rank,
        "world_size": world_size,
    }
    if order == "streaming":
        if not training or label is not None or sampling_rate is None:
            raise UserError("order is streaming, which is for training without labels and needs the sampling_rate")
        rules = ClipRules(round(seconds * sampling_rate), short, shuffle_buffer, seed)
        return ShardStream(list_shards(shards), rules, sampling_rate=sampling_rate, **options)
    if order != "indexed" or sampling_rate is not None:
        raise UserError(f"order is {order!r}, sampling_rate {sampling_rate}; expected indexed, or streaming and Hz")
    shard_set = find_shards(shards, cache)
    rules = ClipRules(round(seconds * shard_set.sampling_rate), short, shuffle_buffer if training else 0, seed)
    labels = None
    if label is not None:
        if label not in shard_set.labels:
            raise UserError(
                f"label is {label!r}, which the shards lack; they have {', '.join(shard_set.labels) or 'none'}"
            )
        labels = Labels(label, shard_set.label_list(label), multi_label)
    return ClipStream(
        shard_set,
        ClipOrder(shard_set, rules),
        sampling_rate=shard_set.sampling_rate,
        training=training,
        cache=ShardCache(round(cache_gigabytes * 1e9)),
        labels=labels,
        **options,
    )
