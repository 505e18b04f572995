"""Recordings to webdataset shards. Imports no torch.

A sample is `<key>.flac` (16-bit, mono) beside `<key>.json`: {"key", "source", "labels", "seconds"}, and "full_scale"
for a recording with samples above full scale: it is written divided by that, and read times that. What is written is a
function of the recordings, the seed and the shard size alone: no dates, no owners, no order of workers.
"""

import contextlib
import hashlib
import io
import json
import logging
import math
import os
import socket
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from ssamba.data.prepare.elsewhere import Url, new_url
from ssamba.data.prepare.recordings import Recording, check_recordings, drawn, label_lists, lacking_labels, named
from ssamba.data.prepare.unfinished import Finished, Folder, shard_name
from ssamba.data.shards.descriptions import as_list
from ssamba.data.shards.index import FORMAT, SAMPLE, SAMPLING_RATES, ShardIndex, ShardInfo, Skipped, write_samples
from ssamba.errors import BadAudio, UserError
from ssamba.jobs import processes, run_jobs
from ssamba.progress import progress_bar
from ssamba.recordings import decoder_versions, read_audio, read_cut
from ssamba.values import is_remote

log = logging.getLogger(__name__)

SAMPLES_PER_SHARD = 256
MAX_SECONDS = 600.0
MIN_SECONDS = 0.025  # one frame: the shortest recording that has a spectrogram
MAX_BAD_FRACTION = 0.01
RATES = (SAMPLING_RATES[0], 655_350)
"""The lowest and the highest in Hz that can be written; the latter is FLAC's."""
_MOST_SAMPLES = 2**31 - 1  # of a recording, in the index
MISSING = "there is no such file"


@dataclass(frozen=True)
class _Job:
    """One shard to write. root: of the data set, what the recordings' paths, absolute for workers elsewhere, have in
    common."""

    place: Folder | Url
    split: str
    index: int
    recordings: Sequence[Recording]
    root: str
    sampling_rate: int
    min_seconds: float
    max_seconds: float


def place_of(out: Path | str) -> Folder | Url:
    """Where shards are made that go to a folder or a url; UserError if that is none to write to."""
    return Url(new_url(str(out))) if is_remote(str(out)) else Folder(Path(os.path.realpath(out)))


def write_shards(
    splits: Mapping[str, Sequence[Recording]],
    out: Path | str,
    dataset: str,
    labels: Mapping[str, Sequence[str]] | None = None,
    *,
    sampling_rate: int = 16000,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    seed: int = 0,
    workers: int = 1,
    executor: Executor | None = None,
    max_seconds: float = MAX_SECONDS,
    min_seconds: float = MIN_SECONDS,
    max_bad_fraction: float = MAX_BAD_FRACTION,
    passed_over: Mapping[str, int] | None = None,
    overwrite: bool = False,
) -> dict[str, ShardIndex]:
    """Write `out/<split>/000000.tar, ...` and their indexes: `out` is there when all of it is.

    Until then the work lies in `out.partial`. After an interrupt, a failure or a kill the same call goes on from the
    shards that are finished there, and makes what it would have made without that. A shard is made anew if one of its
    recordings has another size or time of change than before.

    Args:
        splits: name -> recordings, in any order; the seed decides theirs, so that a shard mixes the classes.
        out: a folder that does not exist yet, or the url of one that a driver of fsspec writes to: there a shard is put
            as soon as it is finished, and the indexes at the end.
        dataset: the name of the whole, for the indexes.
        labels: label key -> names in the order of their indices; of a key that is missing here, the recordings' names
            are sorted.
        sampling_rate: Hz of the samples.
        samples_per_shard: at most; a split's shards differ by one recording in length.
        workers: processes; with 1 the work is done in this one.
        executor: does the work in their place, one shard a job: anything with the interface of concurrent.futures, to
            whose workers the same paths lead to the recordings and to `out`, unless that is a url.
        max_seconds, min_seconds: longer and shorter recordings are skipped, as are unreadable ones.
        max_bad_fraction: of all recordings that may be skipped.
        passed_over: what was found and not taken -> how many of it, for the indexes.
        overwrite: replace `out` if it holds nothing but shards (at a url: before the new ones are there), and discard
            what another call left in `out.partial`.

    Returns:
        Split -> its index.

    Raises:
        UserError: recordings, labels or settings that cannot be, `out` exists or is being written, `out.partial` is
            another call's, too many bad recordings, no space, a worker that does not see the files or was killed.
    """
    check_settings(sampling_rate, samples_per_shard, workers, min_seconds, max_seconds, max_bad_fraction)
    check_recordings(splits)
    lists = label_lists(splits, labels or {})
    place = place_of(out)
    place.check(overwrite)
    # Names in the shards are relative, so that the same data in another place makes the same bytes.
    splits = {split: [_absolute(one) for one in recordings] for split, recordings in splits.items()}
    root = os.path.commonpath([one.path.parent for recordings in splits.values() for one in recordings])
    plan: dict[str, str | int | float] = {
        "format": FORMAT,
        "sampling_rate": sampling_rate,
        "samples_per_shard": samples_per_shard,
        "seed": seed,
        "min_seconds": min_seconds,
        "max_seconds": max_seconds,
        "libraries": decoder_versions(),
        **{f"split {split}": _summary(recordings, root) for split, recordings in splits.items()},
    }
    jobs = [
        _Job(place, split, index, part, root, sampling_rate, min_seconds, max_seconds)
        for split, recordings in splits.items()
        for index, part in enumerate(_parts(recordings, samples_per_shard, seed))
    ]
    indexes: dict[str, ShardIndex] = {}
    with place.making(plan, splits, overwrite) as folder:
        with contextlib.nullcontext(executor) if executor else processes(workers) as pool:
            finished = _write_all(jobs, dataset, pool, max_bad_fraction)
        kept: dict[str, list[Finished]] = {}  # what holds something, numbered without gaps
        for split in splits:
            made = [finished[split, job.index] for job in jobs if job.split == split]
            kept[split] = [one for one in made if one.samples]
            if not kept[split]:
                first = made[0].skipped[0]
                raise UserError(f"no recording of the split {split!r} can be used; {first.source}: {first.why}")
            digest = write_samples(folder / split, np.concatenate([one.table for one in made]))
            infos = tuple(replace(one.info, name=shard_name(index)) for index, one in enumerate(kept[split]))
            skipped = tuple(one for shard in made for one in shard.skipped)
            indexes[split] = ShardIndex(
                dataset,
                split,
                sampling_rate,
                lists,
                skipped,
                infos,
                digest,
                dict(passed_over or {}),
                sum(shard.above_full_scale for shard in made),
            )
            indexes[split].write(folder / split)
        place.publish(folder, kept)
    used: dict[str, dict[str, set[str]]] = {split: {} for split in splits}
    for job in jobs:
        for one in _kept(job, finished[job.split, job.index]):
            for key, names in one.labels.items():
                used[job.split].setdefault(key, set()).update(as_list(names))
    if lacking := lacking_labels(lists, used):
        log.warning("labels without recordings: %s", "; ".join(lacking))
    return indexes


def check_settings(
    sampling_rate: int,
    samples_per_shard: int,
    workers: int,
    min_seconds: float,
    max_seconds: float,
    max_bad_fraction: float,
) -> None:
    """UserError for one that cannot be."""
    ranges: dict[str, tuple[float, float, float]] = {
        "sampling rate": (sampling_rate, *RATES),
        "samples per shard": (samples_per_shard, 1, math.inf),
        "workers": (workers, 1, math.inf),
        "max bad fraction": (max_bad_fraction, 0, 1),
    }
    for name, (value, low, high) in ranges.items():
        if not low <= value <= high:
            most = f" to {high}" if high < math.inf else ""
            raise UserError(f"{name}: {value} is given; expected {'' if most else 'at least '}{low}{most}")
    if not 0 <= min_seconds < max_seconds:
        raise UserError(
            f"min seconds {min_seconds:g} and max seconds {max_seconds:g} are given; expected 0 <= min < max"
        )
    if not max_seconds * sampling_rate <= _MOST_SAMPLES:
        raise UserError(
            f"max seconds {max_seconds:g} and sampling rate {sampling_rate} are given; expected at most "
            f"{_MOST_SAMPLES} samples of a recording, which are {_MOST_SAMPLES // sampling_rate} s"
        )


def _kept(job: _Job, made: Finished) -> Iterator[Recording]:
    """The recordings of a job that are in its shard."""
    skipped = [one.source for one in reversed(made.skipped)]  # in the recordings' order
    for recording in job.recordings:
        if skipped and skipped[-1] == _source(recording, job.root):
            skipped.pop()
        else:
            yield recording


def _absolute(recording: Recording) -> Recording:
    return replace(recording, path=Path(os.path.abspath(recording.path)))


def _summary(recordings: Sequence[Recording], root: str) -> str:
    """Of all that the recordings of a split add to the plan."""
    digest = hashlib.sha256()
    for one in sorted(recordings, key=lambda one: one.key):
        digest.update(json.dumps([_described(one, root), repr(one.mix)]).encode())
    return f"{len(recordings)} recordings ({digest.hexdigest()[:12]})"


def _described(recording: Recording, root: str) -> dict[str, object]:
    """What a sample's JSON says, but for its length."""
    labels = {key: recording.labels[key] for key in sorted(recording.labels)}
    return {"key": recording.key, "source": _source(recording, root), "labels": labels}


def _parts(recordings: Sequence[Recording], at_most: int, seed: int) -> Iterator[Sequence[Recording]]:
    shuffled = sorted(recordings, key=lambda recording: drawn(seed, recording.key))
    count = math.ceil(len(shuffled) / at_most)
    for part in range(count):
        yield shuffled[part * len(shuffled) // count : (part + 1) * len(shuffled) // count]


def _write_all(
    jobs: Sequence[_Job], dataset: str, executor: Executor | None, max_bad_fraction: float
) -> dict[tuple[str, int], Finished]:
    """(split, index) -> the finished shard."""
    total = sum(len(job.recordings) for job in jobs)
    allowed = int(max_bad_fraction * total)
    finished: dict[tuple[str, int], Finished] = {}
    bad: list[Skipped] = []
    with (
        progress_bar(total, "recording", dataset) as bar,
        contextlib.closing(run_jobs(finish_shard, jobs, executor)) as results,
    ):
        for job, made in results:
            _check_seen(job, made)
            finished[job.split, job.index] = made
            bad += made.skipped
            if len(bad) > allowed:
                raise UserError(
                    f"{len(bad)} of {total} recordings are unusable so far; at most {allowed} may be (max bad fraction "
                    f"{max_bad_fraction:g}): mend or remove them, or raise --max-bad-fraction. Unusable:",
                    *named([f"{os.path.join(job.root, one.source)}: {one.why}" for one in bad]),
                )
            bar.update(len(job.recordings))
    for one in bad:
        log.warning("skipped %s: %s", one.source, one.why)
    return finished


def _check_seen(job: _Job, made: Finished) -> None:
    """UserError if a worker elsewhere did not see the recordings, or this process does not see its shard."""
    missing = {one.source for one in made.skipped if one.why == MISSING}
    unseen = [one.path for one in job.recordings if _source(one, job.root) in missing and one.path.is_file()]
    if first := next(iter(unseen), job.place.unseen(job.split, made)):
        raise UserError(
            f"a worker on {made.host} and this process do not see the same files, such as {first}; expected SOURCE and "
            "OUT under paths that lead all of them to the same place"
        )


def finish_shard(job: _Job) -> Finished:
    """The shard of a job, made unless it is finished."""
    digest = _digest(job)
    finished = job.place.finished(job.split, job.index, digest)
    return finished or job.place.write(job.split, job.index, partial(write_shard, job, digest))


def _digest(job: _Job) -> str:
    """Of all that decides a shard's bytes; of a recording's content, its size and the time of its last change."""
    digest = hashlib.sha256(f"{job.sampling_rate} {job.min_seconds} {job.max_seconds}".encode())
    for recording in job.recordings:
        try:
            status = os.stat(recording.path)
            stamp = [status.st_size, status.st_mtime_ns]
        except (OSError, ValueError):  # there is none, or its name cannot be one
            stamp = []
        digest.update(json.dumps([_described(recording, job.root), repr(recording.mix), stamp]).encode())
    return digest.hexdigest()[:16]


def write_shard(job: _Job, digest: str, path: Path) -> Finished:
    rows: list[tuple[int, int, int, int, int]] = []
    skipped: list[Skipped] = []
    above = 0
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for recording in job.recordings:
            described = _described(recording, job.root)
            try:
                samples, full_scale = read_recording(recording, job)
            except BadAudio as error:
                skipped.append(Skipped(str(described["source"]), str(error)))
                continue
            described = {**described, "seconds": len(samples) / job.sampling_rate}
            if full_scale > 1:
                described, above = {**described, "full_scale": full_scale}, above + 1
            audio = add_member(archive, f"{recording.key}.flac", _flac(samples, job.sampling_rate))
            text = add_member(archive, f"{recording.key}.json", json.dumps(described, ensure_ascii=False).encode())
            rows.append((*audio, *text, len(samples)))
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    table = np.array(rows, SAMPLE)
    seconds = float(table["length"].sum(dtype=np.int64)) / job.sampling_rate
    info = ShardInfo(shard_name(job.index), len(rows), seconds, path.stat().st_size, sha256)
    return Finished(info, table.tobytes(), tuple(skipped), above, socket.gethostname(), digest)


def _source(recording: Recording, root: str) -> str:
    """Relative to the data set; a cut is told as a media fragment in seconds."""
    name = Path(os.path.relpath(recording.path, root)).as_posix().encode(errors="backslashreplace").decode()
    if recording.start is None and recording.stop is None:
        return name
    return f"{name}#t={recording.start or 0}" + ("" if recording.stop is None else f",{recording.stop}")


def read_recording(recording: Recording, job: _Job) -> tuple[npt.NDArray[np.int16], float]:
    """16-bit samples, and what full scale stands for in them: 1, or the peak of a recording that goes beyond it."""
    samples = recording.mix(job.sampling_rate) if recording.mix else _decode(recording, job)
    if len(samples) < max(1, job.min_seconds * job.sampling_rate):
        raise BadAudio(f"it has {len(samples) / job.sampling_rate:.3f} s; at least {job.min_seconds:g} s are wanted")
    full_scale = max(1.0, float(np.abs(samples).max()))
    # A 16-bit source of the same rate comes out as it went in.
    return np.clip(np.rint(samples * np.float32(32768 / full_scale)), -32768, 32767).astype(np.int16), full_scale


def _decode(recording: Recording, job: _Job) -> npt.NDArray[np.float32]:
    if not os.path.isfile(recording.path):  # false as well of a name that cannot be one
        raise BadAudio(MISSING)
    if recording.start is None and recording.stop is None:
        return read_audio(recording.path, job.sampling_rate, job.max_seconds)
    return read_cut(recording.path, job.sampling_rate, job.max_seconds, recording.start or 0, recording.stop)


def _flac(samples: npt.NDArray[np.int16], sampling_rate: int) -> bytes:
    flac = io.BytesIO()
    soundfile.write(flac, samples, sampling_rate, format="FLAC", subtype="PCM_16")
    return flac.getvalue()


def add_member(archive: tarfile.TarFile, name: str, content: bytes) -> tuple[int, int]:
    """Append a member; where its content begins, and how many bytes it has."""
    member = tarfile.TarInfo(name)  # of time 0, owner 0 and mode 0644
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
    blocks = math.ceil(len(content) / tarfile.BLOCKSIZE)
    return archive.offset - blocks * tarfile.BLOCKSIZE, len(content)
