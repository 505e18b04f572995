"""Shards to batches: pipelines of webdataset, whose source is the one order that the seed decides."""

import functools
from collections.abc import Sequence
from pathlib import Path

import webdataset as wds

from ssamba.data.batches import InPlace, Stage, collated
from ssamba.data.index import ShardSet, find_shards
from ssamba.data.indexed import IndexedClips, IndexedShards
from ssamba.data.labels import Labels
from ssamba.data.mixup import Mixup
from ssamba.data.order import ClipOrder, ClipRules
from ssamba.data.remote import ShardCache
from ssamba.errors import UserError


class ClipStream(wds.DataPipeline):  # type: ignore[misc]
    """Batches of the clips of an order, for one rank and whichever of its workers iterates: `IndexedShards`, the
    stages that decode and join, those of a user, and the one that makes batches.

    Args:
        labels: what is read of the samples' labels, if anything.
        stages: of a user, behind the clips.
        others: those of `IndexedShards`.
    """

    def __init__(self, shards: ShardSet, order: ClipOrder, *, batch_size: int, sampling_rate: int, training: bool,
                 max_bad_fraction: float, cache: ShardCache, labels: Labels | None = None, mixup: Mixup | None = None,
                 members: Sequence[str] = (), stages: Sequence[Stage] = (), first: int = 0,
                 batches: int | None = None, rank: int = 0, world_size: int = 1) -> None:  # fmt: skip
        self.source = IndexedShards(
            shards, order, batch_size=batch_size, training=training, max_bad_fraction=max_bad_fraction, cache=cache,
            members=members, mixup=mixup, first=first, batches=batches, rank=rank, world_size=world_size,
        )  # fmt: skip
        self.order, self.sampling_rate = order, sampling_rate
        clips = IndexedClips(self.source, sampling_rate, labels)
        in_place = InPlace(stages) if stages else None
        super().__init__(
            self.source, wds.map(clips.decode), clips.join, in_place, functools.partial(collated, labels=labels)
        )

    def __len__(self) -> int:
        """Batches of this rank; TypeError for a stream without end."""
        if self.source.batches is None:
            raise TypeError("this stream has no end")
        return self.source.batches


def pipeline(shards: str | Sequence[str], *, seconds: float, batch_size: int, training: bool = True, seed: int = 0,
             shuffle_buffer: int = 2000, short: str = "pad", label: str | None = None, several: bool = False,
             members: Sequence[str] = (), stages: Sequence[Stage] = (), first: int = 0, batches: int | None = None,
             rank: int = 0, world_size: int = 1, max_bad_fraction: float = 0.01, cache: str | Path | None = None,
             cache_gigabytes: float = 100.0) -> wds.DataPipeline:  # fmt: skip
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
    goes on are those of a pipeline without them. What is behind the batches (`batches.compose(wds.map(f))`) is the
    caller's own business.

    In training the order is endless, a function of the seed and the place, and the same for all ranks and workers
    together: `batch["consumed"]` of the last batch that was used is the `first` to go on from, with whatever ranks and
    workers. Otherwise each clip is read once, from its recording's beginning.

    Args:
        shards: as `data.train` of a recipe names them.
        seconds: of a clip.
        batch_size: of this rank.
        training: see above.
        shuffle_buffer, short, max_bad_fraction, cache, cache_gigabytes: as in a recipe's section `data`.
        label, several: the label to be read, and whether clips may have several of it.
        members: extensions of what else of a sample is passed on, in bytes, such as "txt" or "embedding.npy".
        first: clips of the order that are behind, of all ranks.
        batches: of this rank, in training; None: without end.
        rank, world_size: of this process among those that train together.

    Raises:
        UserError: shards that cannot be found or read, a label that they lack; while it is read: a stage that drops,
            adds or reorders clips, or too many recordings that cannot be used.
    """
    held = find_shards(shards, cache)
    rules = ClipRules(round(seconds * held.sampling_rate), short, shuffle_buffer if training else 0, seed)
    labels = None
    if label is not None:
        if label not in held.labels:
            raise UserError(f"label is {label!r}, which the shards lack; they have {', '.join(held.labels) or 'none'}")
        labels = Labels(label, held.labels[label], several)
    return ClipStream(
        held, ClipOrder(held, rules), batch_size=batch_size, sampling_rate=held.sampling_rate, training=training,
        max_bad_fraction=max_bad_fraction, cache=ShardCache(round(cache_gigabytes * 1e9)), labels=labels,
        members=members, stages=stages, first=first, batches=batches, rank=rank, world_size=world_size,
    )  # fmt: skip
