"""Shards with a teacher's features beside each recording, made of shards without. Imports no torch.

Everything else in them is as it was: samples, their order, labels and splits. Shapes: S samples, N frames, D width.
"""

import hashlib
import logging
import math
import shutil
import socket
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np

from ssamba.data.prepare.scanning import key_of
from ssamba.data.prepare.unfinished import Finished, shard_name
from ssamba.data.prepare.writer import MAX_BAD_FRACTION, add_member, place_of
from ssamba.data.shards.features import MEMBER, MOST_WIDTH, FeatureInfo, Features
from ssamba.data.shards.finding import find_shards
from ssamba.data.shards.index import (
    DESCRIPTIONS_NAME,
    FORMAT,
    SAMPLE,
    Shard,
    ShardIndex,
    ShardInfo,
    ShardSet,
    Skipped,
    write_samples,
)
from ssamba.data.shards.reader import SampleReader
from ssamba.data.shards.remote import ShardCache
from ssamba.errors import BadAudio, UserError
from ssamba.files import written_beside
from ssamba.printable import printable
from ssamba.progress import progress_bar
from ssamba.recordings import Waveform, read_segment

log = logging.getLogger(__name__)

Teach = Callable[[Sequence[Waveform], int], Sequence[Features]]
"""Recordings (S,) of a sampling rate in Hz -> what a teacher says of each, float16 (N, D)."""


def write_features(
    sources: Sequence[str],
    out: Path | str,
    teach: Teach,
    info: FeatureInfo,
    *,
    batch_size: int,
    cache: ShardCache,
    overwrite: bool = False,
) -> dict[str, ShardIndex]:
    """Write `out/<split>/000000.tar, ...` and their indexes: those of each source with `MEMBER` in every sample.

    As `write_shards` does it: `out` is there when all of it is, and the same call goes on with what is finished. A
    sample whose recording cannot be used stays, without the member.

    Args:
        sources: each the shards of one split, as `find_shards` takes them.
        out: a folder that does not exist yet, or the url of one.
        teach: recordings -> the teacher's features.
        info: of these features; all have its width.
        batch_size: samples that are in memory, and given to the teacher, at a time.
        cache: for remote shards.
        overwrite: as of `write_shards`.

    Raises:
        UserError: shards that cannot be found or read, that have features already or are of one split's name, too many
            recordings that cannot be used, or a place that cannot be written to.
    """
    if info.width > MOST_WIDTH:
        raise UserError(
            f"the teacher says {info.width} numbers a frame; expected at most {MOST_WIDTH}: another teacher"
        )
    splits = _splits(sources)
    place = place_of(out)
    place.check(overwrite)
    plan: dict[str, str | int | float] = {
        "format": FORMAT,
        "teacher": info.teacher_sha256,
        "layer": info.layer,
        **{f"split {name}": split.shards.fingerprint for name, split in splits.items()},
    }
    total = sum(split.shards.samples for split in splits.values())
    bad: list[Skipped] = []
    made: dict[str, list[Finished]] = {name: [] for name in splits}
    with place.making(plan, splits, overwrite) as folder:
        with progress_bar(total, "sample", "embed") as bar:
            for name, split in splits.items():
                for index, shard in enumerate(split.shards.shards):
                    job = _Job(split.shards, index, teach, info, batch_size, cache)
                    finished = place.finished(name, index, job.digest)
                    made[name].append(finished or place.write(name, index, partial(_write_shard, job)))
                    bad += made[name][-1].skipped
                    _check_bad(bad, total)
                    bar.update(shard.info.samples)
        indexes = {name: _index(folder / name, split, made[name], info, cache) for name, split in splits.items()}
        place.publish(folder, made)
    for one in bad:
        log.warning("without features: %s: %s", printable(one.source), printable(one.why))
    return indexes


@dataclass(frozen=True)
class _Split:
    index: ShardIndex
    shards: ShardSet


def _splits(sources: Sequence[str]) -> dict[str, _Split]:
    """Name -> a split's index and shards."""
    splits: dict[str, _Split] = {}
    for source in sources:
        shards = find_shards(source)
        if len(shards.indexes) > 1:
            raise UserError(f"{source!r} is of {len(shards.indexes)} folders; expected one split's shards at a time")
        ((place, index),) = shards.indexes.items()
        if index.features is not None:
            raise UserError(
                f"the shards in {place} have the features of layer {index.features.layer} of {index.features.teacher}; "
                "expected shards without: give those that these were made of"
            )
        if index.split in splits or Path(index.split).name != index.split:
            raise UserError(
                f"the split of {place} is called {index.split!r}; expected a name that can be a folder's, and each once"
            )
        if index.descriptions is not None and len(shards.shards) < len(index.shards):
            raise UserError(f"{source!r} is a part of {place}, whose labels lie in one file; expected the folder")
        splits[index.split] = _Split(index, shards)
    return splits


def _check_bad(bad: Sequence[Skipped], total: int) -> None:
    allowed = int(MAX_BAD_FRACTION * total)
    if len(bad) > allowed:
        raise UserError(
            f"{len(bad)} of {total} recordings cannot be used; at most {allowed} may: mend them (`ssamba shards "
            f"verify` names all). The last: {bad[-1].source}: {bad[-1].why}"
        )


def _index(folder: Path, split: _Split, made: Sequence[Finished], info: FeatureInfo, cache: ShardCache) -> ShardIndex:
    """Write a split's index and what belongs to it."""
    infos = tuple(replace(one.info, name=shard_name(position)) for position, one in enumerate(made))
    digest = write_samples(folder, np.concatenate([one.table for one in made]))
    index = replace(split.index, shards=infos, samples_sha256=digest, features=info)
    if described := split.shards.shards[0].descriptions:
        with written_beside(folder / DESCRIPTIONS_NAME) as beside:
            shutil.copyfile(cache.local(described), beside)
    index.write(folder)
    return index


@dataclass(frozen=True)
class _Job:
    """One shard to write: the one at `index` of its split's shards."""

    shards: ShardSet
    index: int
    teach: Teach
    info: FeatureInfo
    batch_size: int
    cache: ShardCache

    @property
    def shard(self) -> Shard:
        return self.shards.shards[self.index]

    @property
    def first(self) -> int:
        """The row of the shard's first sample in the table."""
        return sum(shard.info.samples for shard in self.shards.shards[: self.index])

    @property
    def digest(self) -> str:
        """Of all that decides the shard's bytes."""
        info = self.info
        text = f"{self.shard.info.sha256} {info.teacher_sha256} {info.layer} {info.width}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass
class _Sample:
    """The members of one key: what they were in their shard, each with its content.

    row: of the table; None for what the index does not list. features: the teacher's.
    """

    key: str
    row: int | None = None
    members: list[tuple[tarfile.TarInfo, bytes]] = field(default_factory=list)
    features: Features | None = None


def _write_shard(job: _Job, path: Path) -> Finished:
    reader, info = SampleReader(job.shards, job.cache), job.shard.info
    rows = job.shards.table[job.first : job.first + info.samples].copy()
    moved: dict[int, int] = {}
    skipped: list[Skipped] = []
    try:
        with (
            tarfile.open(job.cache.local(job.shard), "r:") as source,
            tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive,
        ):
            waiting: list[_Sample] = []
            for sample in _samples(source, {int(place): row for row, place in enumerate(rows["audio"])}, job.shard):
                waiting.append(sample)
                if len(waiting) == job.batch_size:
                    skipped += _taught(job, reader, waiting)
                    _put(archive, waiting, moved)
                    waiting = []
            skipped += _taught(job, reader, waiting)
            _put(archive, waiting, moved)
    except tarfile.TarError as error:
        raise UserError(f"the shard {job.shard.place} cannot be read: {error}; copy it again") from error
    parts = ("audio", "json") if job.shard.descriptions is None else ("audio",)
    for row in rows:
        for part in parts:
            if row[f"{part}_bytes"]:
                if (place := int(row[part])) not in moved:
                    raise UserError(f"the shard {job.shard.place} has no member at byte {place}, as its index says")
                row[part] = moved[place]
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    written = ShardInfo(shard_name(job.index), info.samples, info.seconds, path.stat().st_size, sha256)
    table = np.array(rows, SAMPLE).tobytes()
    return Finished(written, table, tuple(skipped), 0, socket.gethostname(), job.digest)


def _samples(source: tarfile.TarFile, rows: Mapping[int, int], shard: Shard) -> Iterator[_Sample]:
    """The samples of a shard in their order: members of one key that follow one another. `rows`: where a recording
    begins -> its row."""
    sample: _Sample | None = None
    for member in source:
        key = key_of(member.name)
        if sample is None or key != sample.key:
            if sample is not None:
                yield sample
            sample = _Sample(key)
        file = source.extractfile(member) if member.isreg() else None
        sample.members.append((member, file.read() if file else b""))
        sample.row = rows.get(member.offset_data, sample.row)
        if member.name == f"{key}.{MEMBER}":
            raise UserError(f"the shard {shard.place} has {member.name} already; expected shards without features")
    if sample is not None:
        yield sample


def _taught(job: _Job, reader: SampleReader, samples: Sequence[_Sample]) -> Iterator[Skipped]:
    """Compute the teacher's features of samples; returns those that cannot be used."""
    decoded: list[_Sample] = []
    waveforms: list[Waveform] = []
    for sample in samples:
        if sample.row is None:
            continue
        index = job.first + sample.row
        try:
            waveforms.append(_decoded(reader, index, job.shards.sampling_rate))
            decoded.append(sample)
        except BadAudio as error:
            yield Skipped(reader.place_name(index), str(error))
    for sample, features in zip(decoded, job.teach(waveforms, job.shards.sampling_rate), strict=True):
        sample.features = features


def _decoded(reader: SampleReader, index: int, sampling_rate: int) -> Waveform:
    """A sample's recording, decoded as in training."""
    full_scale = reader.description(index).get("full_scale", 1)
    waveform = np.empty(int(reader.table[index]["length"]), np.float32)
    read_segment(reader.audio(index), sampling_rate, 0, waveform)
    return waveform * np.float32(full_scale)


def _put(archive: tarfile.TarFile, samples: Sequence[_Sample], moved: dict[int, int]) -> None:
    """Write samples, the features after their own members; `moved` gets where the content of each member begins now."""
    for sample in samples:
        for member, content in sample.members:
            archive.addfile(member, BytesIO(content))
            moved[member.offset_data] = archive.offset - _padded(content)
        if sample.features is not None:
            npy = BytesIO()
            np.save(npy, sample.features, allow_pickle=False)
            add_member(archive, f"{sample.key}.{MEMBER}", npy.getvalue())


def _padded(content: bytes) -> int:
    """Bytes of a member's content in a tar."""
    return math.ceil(len(content) / tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
