"""Recordings to webdataset shards, and the command line that data_prep's scripts share. Imports no torch.

A sample is `<key>.flac` (16-bit, mono) beside `<key>.json`: {"key", "source", "labels", "seconds"}, and "full_scale"
for a recording with samples above full scale: it is written divided by that, and read times that. What is written is a
function of the recordings, the seed and the shard size alone: no dates, no owners, no order of workers.
"""

import argparse
import contextlib
import hashlib
import io
import itertools
import json
import logging
import math
import os
import re
import socket
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt
import soundfile

from ssamba.data.prepare.elsewhere import (
    check_place,
    how_to_go_on_at,
    is_put,
    new_url,
    publish_at,
    record_url,
    shard_url,
    unfinished_at,
)
from ssamba.data.prepare.fetch import Archive, fetch
from ssamba.data.prepare.unfinished import how_to_go_on, partial_folder, publish, unfinished
from ssamba.data.shards.descriptions import TEXT_LABEL, as_list
from ssamba.data.shards.index import (
    FORMAT,
    INDEX_NAME,
    SAMPLE,
    SAMPLES_NAME,
    SAMPLING_RATES,
    Samples,
    ShardIndex,
    ShardInfo,
    Skipped,
    write_samples,
)
from ssamba.data.shards.transport import put, put_bytes, read_if_there, remove
from ssamba.errors import BadAudio, UserError
from ssamba.files import MOST_BYTES, Count, parse_json, read_json, write_text, written_beside
from ssamba.folders import PassedOver, instead
from ssamba.jobs import cluster, processes, run_jobs, usable_cores
from ssamba.printable import log_to_stderr, masked, printable
from ssamba.progress import progress_bar
from ssamba.recordings import decoder_versions, read_audio, read_cut
from ssamba.shell import run_program
from ssamba.values import add_argument, is_remote, new_path, number, path, plain_text, whole_number

log = logging.getLogger(__name__)

SAMPLES_PER_SHARD = 256
MAX_SECONDS = 600.0
MIN_SECONDS = 0.025  # one frame: the shortest recording that has a spectrogram
MAX_BAD_FRACTION = 0.01
MOST_SECONDS = 1e6
SEEDS = (0, 2**32 - 1)
_RATES = (SAMPLING_RATES[0], 655_350)  # the highest is FLAC's
_MOST_SAMPLES = 2**31 - 1  # of a recording, in the index
_MOST_WORKERS = 1024
_NAMED = 10  # of recordings or labels that a message names
_MISSING = "there is no such file"

# webdataset takes a member's name up to its first dot as the key, and a folder in it as a part of the key.
_SAFE = re.compile(r"[\w+=@,-]+")


@dataclass(frozen=True)
class Recording:
    """A recording to write, or a cut of one."""

    key: str
    """Its name in the shards: letters, digits and _+=@,- alone, once in a data set."""
    path: Path
    labels: Mapping[str, str | list[str]] = field(default_factory=dict)
    """Label key -> its name, or its names where it may have several."""
    start: float | None = None
    """Where the cut begins within the file, in seconds; None: at its start."""
    stop: float | None = None
    """Where the cut ends, in seconds; None: at the end of the file."""
    mix: Callable[[int], npt.NDArray[np.float32]] | None = None
    """From a sampling rate in Hz to samples of full scale 1, written instead of a file's; `path` only tells what they
    are made of. The workers get it, so it can be pickled; its repr says all that decides what it makes."""


@dataclass(frozen=True)
class DataSet:
    """What a script of data_prep finds."""

    name: str
    splits: Mapping[str, Sequence[Recording]]
    labels: Mapping[str, Sequence[str]] | None = None
    """Label key -> names in their order; of a key that is missing here, the recordings' names are sorted."""
    passed_over: PassedOver = field(default_factory=PassedOver)
    """What was found and not taken, such as `.txt` or `hidden files` -> how many of it."""


@dataclass(frozen=True)
class _Job:
    """One shard to write."""

    out: Path | str
    """Of the split, the folder for finished shards: absolute, as all paths here, for workers elsewhere. Or the url of
    the data set, to which the shard is put."""
    split: str
    number: int
    recordings: Sequence[Recording]
    root: str
    """Of the data set: what the recordings' paths have in common."""
    sampling_rate: int
    min_seconds: float
    max_seconds: float


_Short = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


@dataclass(frozen=True)
class _Record:
    """What the record of a finished shard says."""

    info: ShardInfo
    samples: list[tuple[Count, _Short, Count, _Short, _Short]]
    """Rows of SAMPLE."""
    skipped: tuple[Skipped, ...]
    above_full_scale: Count
    host: str
    digest: str = ""


@dataclass(frozen=True)
class _Written:
    """A finished shard."""

    info: ShardInfo
    samples: Samples
    skipped: tuple[Skipped, ...]
    above_full_scale: int
    """How many of its samples have a full scale of their own."""
    host: str
    """That it was made on."""
    digest: str = ""
    """Of all that decides its bytes."""

    @classmethod
    def read(cls, record: Path) -> "_Written | None":
        """From its record; None if there is none that can be used, or the shard is not beside it."""
        if not record.exists():
            return None
        try:
            written = read_json(record, _Record, "the record of a shard")
            whole = record.with_suffix(".tar").stat().st_size == written.info.bytes
        except (UserError, FileNotFoundError):  # damaged, or of a shard that is gone: it is made again
            return None
        if not whole or written.info.name != f"{record.stem}.tar":
            return None
        return cls._of(written)

    @classmethod
    def at_url(cls, job: "_Job", digest: str) -> "_Written | None":
        """Of a shard that was put to a url, from its record there; None if there is none, one of other recordings, or
        the shard is not there."""
        record = record_url(str(job.out), job.split, job.number)
        content = read_if_there(record, MOST_BYTES)
        if content is None:
            return None
        try:
            written = cls._of(parse_json(content, _Record, record, "the record of a shard"))
        except UserError:  # damaged: the shard is made again
            return None
        info = written.info
        whole = not info.samples or is_put(str(job.out), job.split, job.number, info.bytes)
        return written if written.digest == digest and whole else None

    @classmethod
    def _of(cls, record: _Record) -> "_Written":
        samples = np.array(record.samples, SAMPLE)
        return cls(record.info, samples, record.skipped, record.above_full_scale, record.host, record.digest)

    @property
    def record(self) -> str:
        return json.dumps({**asdict(self), "samples": self.samples.tolist()}, ensure_ascii=False)


def safe_key(name: str) -> str:
    """A name with `-` for each run of characters that a key must not have."""
    return re.sub(r"[^\w+=@,-]+", "-", name)


def drawn(seed: int, name: str) -> bytes:
    """What to sort names by, to have them in an order of chance that depends on no other name and on no library."""
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()


def check_present(splits: Mapping[str, Sequence[Recording]], max_bad_fraction: float) -> None:
    """For recordings that a list names: count those that are missing, before any is read.

    The writer skips them, and names each in its index.

    Raises:
        UserError: they are more than the fraction of all recordings that may be skipped.
    """
    total = sum(len(recordings) for recordings in splits.values())
    paths = (os.path.abspath(one.path) for recordings in splits.values() for one in recordings)
    missing = [path for path in paths if not os.path.isfile(path)]
    if len(missing) > int(max_bad_fraction * total):
        raise UserError(
            f"{len(missing)} of {total} listed recordings are missing; at most {int(max_bad_fraction * total)} may be "
            f"(max bad fraction {max_bad_fraction:g}): is the data set whole and in its place? Or raise "
            f"--max-bad-fraction. {instead(Path(missing[0]))}. Missing:",
            *named(missing),
        )
    if missing:
        log.warning("%d of %d listed recordings are missing: %s", len(missing), total, ", ".join(named(missing)))


def named(names: Sequence[str]) -> list[str]:
    """Ten of them at most, and how many there are besides."""
    rest = len(names) - _NAMED
    return [*names[:_NAMED], *([f"and {rest} more"] if rest > 0 else [])]


def write_shards(splits: Mapping[str, Sequence[Recording]], out: Path | str, dataset: str,
                 labels: Mapping[str, Sequence[str]] | None = None, *, sampling_rate: int = 16000,
                 samples_per_shard: int = SAMPLES_PER_SHARD, seed: int = 0, workers: int = 1,
                 executor: Executor | None = None, max_seconds: float = MAX_SECONDS, min_seconds: float = MIN_SECONDS,
                 max_bad_fraction: float = MAX_BAD_FRACTION, passed_over: Mapping[str, int] | None = None,
                 overwrite: bool = False) -> dict[str, ShardIndex]:  # fmt: skip
    """Write `out/<split>/000000.tar, ...` and their indexes: `out` is there when all of it is.

    Until then the work lies in `out.partial`. After an interrupt, a failure or a kill the same call goes on from the
    shards that are finished there, and makes what it would have made without that. A shard is made anew if one of its
    recordings has another size or time of change than before.

    Args:
        splits: name -> recordings, in any order; the seed decides theirs, so that a shard mixes the classes.
        out: a folder that does not exist yet, or the url of one that a driver of fsspec writes to: there a shard is put
            as soon as it is finished, and the indexes at the end.
        dataset: the name of the whole, for the indexes.
        labels: label key -> names in the order of their numbers; of a key that is missing here, the recordings' names
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
    _check_settings(sampling_rate, samples_per_shard, workers, min_seconds, max_seconds, max_bad_fraction)
    _check_recordings(splits)
    label_lists = _label_lists(splits, labels or {})
    out = new_url(str(out)) if is_remote(str(out)) else Path(os.path.realpath(out))
    _check_out(out, overwrite)
    # Names in the shards are relative, so that the same data in another place makes the same bytes.
    splits = {split: [_absolute(one) for one in recordings] for split, recordings in splits.items()}
    root = os.path.commonpath([one.path.parent for recordings in splits.values() for one in recordings])
    plan: dict[str, str | int | float] = {
        "format": FORMAT, "sampling_rate": sampling_rate, "samples_per_shard": samples_per_shard, "seed": seed,
        "min_seconds": min_seconds, "max_seconds": max_seconds,
        "libraries": decoder_versions(),
        **{f"split {split}": _summary(recordings, root) for split, recordings in splits.items()},
    }  # fmt: skip
    with _place(out, plan, overwrite) as partial:
        jobs = {
            split: [
                _Job(partial / "finished" / split if isinstance(out, Path) else out, split, number, part, root,
                     sampling_rate, min_seconds, max_seconds)
                for number, part in enumerate(_parts(recordings, samples_per_shard, seed))
            ]
            for split, recordings in splits.items()
        }  # fmt: skip
        with contextlib.nullcontext(executor) if executor else processes(workers) as pool:
            written = _write_all([job for split in jobs.values() for job in split], dataset, pool, max_bad_fraction)
        indexes: dict[str, ShardIndex] = {}
        made: dict[str, dict[int, _Written]] = {}  # split -> number -> what becomes the shard of that number
        for split, mine in jobs.items():
            done = [written[split, job.number] for job in mine]
            made[split] = _numbered(split, done)
            folder = partial / "whole" / split
            folder.mkdir(parents=True)
            digest = write_samples(folder, np.concatenate([shard.samples for shard in done]))
            infos = tuple(replace(one.info, name=f"{number:06d}.tar") for number, one in made[split].items())
            skipped = tuple(one for shard in done for one in shard.skipped)
            above = sum(shard.above_full_scale for shard in done)
            index = ShardIndex(dataset, split, sampling_rate, label_lists, skipped, infos, digest)
            indexes[split] = replace(index, above_full_scale=above, passed_over=dict(passed_over or {}))
            indexes[split].write(folder)
        if isinstance(out, Path):
            publish(partial, out, {f"whole/{split}/{number:06d}.tar": f"finished/{split}/{one.info.name}"
                                   for split, shards in made.items() for number, one in shards.items()})  # fmt: skip
        else:
            publish_at(out, partial / "whole", {
                split: {int(Path(one.info.name).stem): number for number, one in shards.items()}
                for split, shards in made.items()
            })  # fmt: skip
    used = {split: _labels_of(one for job in mine for one in _kept(job, written[split, job.number]))
            for split, mine in jobs.items()}  # fmt: skip
    if lacking := _lacking(label_lists, used):
        log.warning("labels without recordings: %s", "; ".join(lacking))
    return indexes


@contextlib.contextmanager
def _place(out: Path | str, plan: Mapping[str, str | int | float], overwrite: bool) -> Iterator[Path]:
    """The folder in which the indexes are made, and where `out` is a folder the shards as well."""
    if isinstance(out, Path):
        with unfinished(out, plan, overwrite) as partial:
            yield partial
    else:
        with unfinished_at(out, plan, overwrite), tempfile.TemporaryDirectory() as partial_name:
            yield Path(partial_name)


def run_script(parser: argparse.ArgumentParser, find: Callable[[argparse.Namespace], DataSet],
               arguments: Sequence[str] | None = None,
               archives: Callable[[argparse.Namespace], Sequence[Archive]] | None = None,
               after: Callable[[argparse.Namespace], None] | None = None,
               read_source: Callable[[str], Path | str] | None = None) -> int:  # fmt: skip
    """A script of data_prep: the arguments that all of them have, the writing, and what is told at the end.

    Args:
        parser: with the script's own arguments, each by a reader of `ssamba.values`.
        find: from the arguments, `source` (a Path that exists, or what read_source gives) and `seed` among them, to
            the recordings.
        arguments: those of the command line by default.
        archives: from the arguments to the data set's public archives, for a script that has the option --fetch.
        after: what the script writes besides, once the shards are there.
        read_source: what SOURCE is where it can be other than a path: a reader that gives a Path, or the text of a
            place that is not on this machine, which is `find`'s to look at.

    Returns:
        The exit status: 0, or after a message on stderr 2 for an error and 130 for an interrupt.
    """
    _add_arguments(parser, read_source or whole_path, fetches=archives is not None)

    def work() -> int:
        given = parser.parse_args(arguments)
        log_to_stderr("%(message)s", logging.WARNING)
        logging.getLogger("ssamba").setLevel(logging.INFO)
        workers = usable_cores() if given.workers is None else given.workers
        _check_settings(given.sampling_rate, given.samples_per_shard, workers, MIN_SECONDS, given.max_seconds,
                        given.max_bad_fraction)  # fmt: skip
        _check_out(given.out, given.overwrite)  # now, and not only after hours
        if archives and given.fetch:
            fetch(archives(given), given.source)
        if isinstance(given.source, Path) and not given.source.exists():
            raise UserError(f"SOURCE is {given.source}, which does not exist; expected the recordings of the data set")
        try:
            found = find(given)
            with cluster(given.cluster) if given.cluster else contextlib.nullcontext() as executor:
                indexes = write_shards(
                    found.splits, given.out, found.name, found.labels, sampling_rate=given.sampling_rate,
                    samples_per_shard=given.samples_per_shard, seed=given.seed, workers=workers, executor=executor,
                    max_seconds=given.max_seconds, max_bad_fraction=given.max_bad_fraction,
                    passed_over=found.passed_over, overwrite=given.overwrite,
                )  # fmt: skip
        except KeyboardInterrupt:
            stays = how_to_go_on_at(given.out) if isinstance(given.out, str) else how_to_go_on(given.out.resolve())
            print(printable(f"interrupted. {stays}"), file=sys.stderr)
            return 130
        if after:
            after(given)
        for split, index in indexes.items():
            place = printable(masked(os.path.join(given.out, split)))
            print(f"{place}: {index.samples} recordings, {index.seconds / 3600:.2f} h, "
                  f"{len(index.shards)} shards, {len(index.skipped)} skipped"
                  + (f", {index.above_full_scale} above full scale" if index.above_full_scale else ""))  # fmt: skip
        if found.passed_over:
            print(printable(f"passed over: {found.passed_over}"))
        return 0

    return run_program(work)


def _add_arguments(parser: argparse.ArgumentParser, read_source: Callable[[str], Path | str], fetches: bool) -> None:
    """Those that all scripts have."""
    add_argument(parser, "source", read_source, metavar="SOURCE", help="where the recordings are")
    out = "folder to make, or its url, such as s3://BUCKET/FOLDER; each split is a folder of shards in it"
    add_argument(parser, "out", _new_place, metavar="OUT", help=out)
    by = parser.add_mutually_exclusive_group()
    workers = f"processes (default: {usable_cores()}, the cores)"
    add_argument(by, "--workers", whole_number, 1, _MOST_WORKERS, metavar="N", help=workers)
    address = (
        "of a Dask scheduler, such as tcp://host:8786: its workers do the work, and find SOURCE and OUT under the same "
        "paths as this machine (an OUT that is a url, by credentials of their own)"
    )
    add_argument(by, "--cluster", plain_text, metavar="ADDRESS", help=address)
    at_most = "recordings in a shard, at most (default: %(default)s)"
    add_argument(parser, "--samples-per-shard", whole_number, 1, 10**9, default=SAMPLES_PER_SHARD, metavar="N",
                 help=at_most)  # fmt: skip
    seed = "of every choice left to chance (default: %(default)s)"
    add_argument(parser, "--seed", whole_number, *SEEDS, default=0, metavar="N", help=seed)
    rate = "Hz of what is written (default: %(default)s)"
    add_argument(parser, "--sampling-rate", whole_number, *_RATES, default=16000, metavar="HZ", help=rate)
    longer = "longer recordings are skipped (default: %(default)s)"
    add_argument(parser, "--max-seconds", number, MIN_SECONDS, MOST_SECONDS, default=MAX_SECONDS, metavar="SECONDS",
                 help=longer)  # fmt: skip
    bad = "give up if more of the recordings are unusable (default: %(default)s)"
    add_argument(parser, "--max-bad-fraction", number, 0, 1, default=MAX_BAD_FRACTION, metavar="X", help=bad)
    overwrite = "replace OUT if it holds shards, discard what another call left unfinished"
    parser.add_argument("--overwrite", action="store_true", help=overwrite)
    if fetches:
        get = "first download and unpack into SOURCE what of the data set is not there"
        parser.add_argument("--fetch", action="store_true", help=get)


def whole_path(text: str) -> Path:
    """A path as SOURCE is one."""
    # Workers elsewhere have another working directory.
    return path(text).absolute()


def _new_place(text: str) -> Path | str:
    """A place for a folder, and for its partial one beside it; or the url of one."""
    if is_remote(text):
        return new_url(plain_text(text))
    out = path(text)
    whole = Path(os.path.realpath(out))
    if not whole.name:
        raise ValueError("expected a folder to make")
    new_path(str(partial_folder(whole)))
    return out


def _check_settings(sampling_rate: int, samples_per_shard: int, workers: int, min_seconds: float, max_seconds: float,
                    max_bad_fraction: float) -> None:  # fmt: skip
    ranges: dict[str, tuple[float, float, float]] = {
        "sampling rate": (sampling_rate, *_RATES), "samples per shard": (samples_per_shard, 1, math.inf),
        "workers": (workers, 1, math.inf), "max bad fraction": (max_bad_fraction, 0, 1),
    }  # fmt: skip
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


def _check_recordings(splits: Mapping[str, Sequence[Recording]]) -> None:
    if not splits:
        raise UserError("no split is given; expected one at least, such as train")
    taken: dict[str, Recording] = {}
    same: list[str] = []
    for split, recordings in splits.items():
        if not _SAFE.fullmatch(split):
            raise UserError(f"split {split!r}: expected a name of letters, digits and _+=@,- alone")
        if not recordings:
            raise UserError(
                f"split {split!r} has no recordings; expected one at least: look at the source and at the fractions"
            )
        for recording in recordings:
            if not _SAFE.fullmatch(recording.key):
                raise UserError(
                    f"{recording.path} has the key {recording.key!r}; expected letters, digits and _+=@,- alone, "
                    "because a shard's reader cuts names at dots and slashes: rename it"
                )
            if recording.key in taken:
                same.append(f"{taken[recording.key].path} and {recording.path} have the same key {recording.key!r}")
            if not 0 <= (recording.start or 0) < (math.inf if recording.stop is None else recording.stop):
                raise UserError(
                    f"{recording.key!r} is cut from {recording.start} to {recording.stop} s; expected a start of at "
                    "least 0 and a later stop"
                )
            taken[recording.key] = recording
    expected = "expected each once in a data set: rename one"
    if len(same) == 1:
        raise UserError(f"{same[0]}; {expected}")
    if same:
        raise UserError(f"{len(same)} recordings have a key that another one has; {expected} of each", *named(same))


def _kept(job: _Job, written: _Written) -> Iterator[Recording]:
    """The recordings of a job that are in its shard."""
    skipped = [one.source for one in reversed(written.skipped)]  # in the recordings' order
    for recording in job.recordings:
        if skipped and skipped[-1] == _source(recording, job.root):
            skipped.pop()
        else:
            yield recording


def _labels_of(recordings: Iterable[Recording]) -> dict[str, set[str]]:
    """Label key -> the names that occur."""
    used: dict[str, set[str]] = {}
    for recording in recordings:
        for key in recording.labels:
            used.setdefault(key, set()).update(as_list(recording.labels[key]))
    return used


def _lacking(lists: Mapping[str, Sequence[str]], used: Mapping[str, Mapping[str, set[str]]]) -> list[str]:
    """What is said of names that no recording of a split has: a class that is trained or scored on nothing.

    Of a key by which the splits were made, such as fold or speaker, they have no name in common; that is said only if
    it is true of all keys, as nothing else is a class then.

    Args:
        used: split -> label key -> the names that occur.
    """
    lists = {key: names for key, names in lists.items() if names}  # of what is said, nothing is listed
    by_split = {key: {split: names.get(key, set()) for split, names in used.items()} for key in lists}
    dividing = {
        key for key, splits in by_split.items()
        if any(one.isdisjoint(other) for one, other in itertools.combinations(splits.values(), 2))
    }  # fmt: skip
    said = []
    for key, names in lists.items():
        held = set().union(*by_split[key].values())
        if nowhere := [name for name in names if name not in held]:
            said.append(f"no split has the {key} {', '.join(named(nowhere))}")
        if key not in dividing or len(dividing) == len(lists):
            for split, mine in by_split[key].items():
                if missing := [name for name in names if name in held and name not in mine]:
                    said.append(f"{split} has no {key} {', '.join(named(missing))}")
    return said


def _label_lists(splits: Mapping[str, Sequence[Recording]],
                 given: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:  # fmt: skip
    first: dict[str, dict[str, str]] = {}  # label key -> name -> a recording that has it
    for recordings in splits.values():
        for recording in recordings:
            for key in recording.labels:
                for name in as_list(recording.labels[key]):
                    first.setdefault(key, {}).setdefault(name, recording.key)
    for key, used in first.items():
        if "" in used:
            raise UserError(f"{used['']!r} has an empty name for the label {key!r}; expected a name")
    for key, names in given.items():
        if len(set(names)) != len(names):
            raise UserError(f"the list of the label {key!r} has a name twice; expected each once: {', '.join(names)}")
        unknown = sorted(first.get(key, {}).keys() - set(names))
        if unknown:
            raise UserError(
                f"{first[key][unknown[0]]!r} has the {key} {unknown[0]!r}; expected one of the {len(names)} of the "
                f"label list: {', '.join(names)}"
            )
    lists = {key: [] if key == TEXT_LABEL else sorted(used) for key, used in first.items()} | dict(given)
    return {key: tuple(lists[key]) for key in sorted(lists)}


def _check_out(out: Path | str, overwrite: bool) -> None:
    if isinstance(out, str):
        check_place(out, overwrite)
        return
    if not out.exists():
        return
    if not overwrite:
        raise UserError(f"{out} exists; expected a new folder: give another, or replace it with --overwrite")
    shards_alone = out.is_dir() and all(
        split.is_dir()
        and all(file.name in (INDEX_NAME, SAMPLES_NAME) or file.suffix == ".tar" for file in split.iterdir())
        for split in out.iterdir()
    )
    if not shards_alone:
        raise UserError(
            f"{out} holds more than folders of shards, so it is not overwritten: give another, or remove it yourself"
        )


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
    mixed = sorted(recordings, key=lambda recording: drawn(seed, recording.key))
    count = math.ceil(len(mixed) / at_most)
    for part in range(count):
        yield mixed[part * len(mixed) // count : (part + 1) * len(mixed) // count]


def _write_all(jobs: Sequence[_Job], dataset: str, executor: Executor | None,
               max_bad_fraction: float) -> dict[tuple[str, int], _Written]:  # fmt: skip
    """(split, number) -> the finished shard."""
    total = sum(len(job.recordings) for job in jobs)
    allowed = int(max_bad_fraction * total)
    done: dict[tuple[str, int], _Written] = {}
    bad: list[Skipped] = []
    for folder in {job.out for job in jobs if isinstance(job.out, Path)}:
        folder.mkdir(parents=True, exist_ok=True)
    with (
        progress_bar(total, "recording", dataset) as bar,
        contextlib.closing(run_jobs(_finish_shard, jobs, executor)) as results,
    ):
        for job, written in results:
            _check_seen(job, written)
            done[job.split, job.number] = written
            bad += written.skipped
            if len(bad) > allowed:
                raise UserError(
                    f"{len(bad)} of {total} recordings are unusable so far; at most {allowed} may be (max bad fraction "
                    f"{max_bad_fraction:g}): mend or remove them, or raise --max-bad-fraction. Unusable:",
                    *named([f"{os.path.join(job.root, one.source)}: {one.why}" for one in bad]),
                )
            bar.update(len(job.recordings))
    for one in bad:
        log.warning("skipped %s: %s", one.source, one.why)
    return done


def _check_seen(job: _Job, written: _Written) -> None:
    """UserError if a worker elsewhere did not see the recordings, or this process does not see its shard."""
    missing = {one.source for one in written.skipped if one.why == _MISSING}
    unseen = [one.path for one in job.recordings if _source(one, job.root) in missing and one.path.is_file()]
    if isinstance(job.out, Path) and not (path := job.out / written.info.name).exists():
        unseen.append(path)
    if unseen:
        raise UserError(
            f"a worker on {written.host} and this process do not see the same files, such as {unseen[0]}; expected "
            "SOURCE and OUT under paths that lead all of them to the same place"
        )


def _finish_shard(job: _Job) -> _Written:
    """The shard of a job, made unless it is finished."""
    digest = _digest(job)
    if isinstance(job.out, str):
        return _put_shard(job, job.out, digest)
    if not job.out.is_dir():
        raise UserError(f"a worker on {socket.gethostname()} does not see {job.out}; expected OUT under a path that "
                        "leads all workers to the same place")  # fmt: skip
    # Named by what it is made of: whoever else makes a shard of that name makes the same.
    name = f"{job.number:06d}-{digest}"
    record = job.out / f"{name}.json"
    written = _Written.read(record)
    if not written:
        with written_beside(job.out / f"{name}.tar", durable=True) as beside:
            written = _write_shard(job, beside, f"{name}.tar", digest)
        write_text(record, written.record, durable=True)
    return written


def _put_shard(job: _Job, out: str, digest: str) -> _Written:
    """The shard of a job at a url, made and put unless it is there: its record says that it is."""
    if written := _Written.at_url(job, digest):
        return written
    shard, record = shard_url(out, job.split, job.number), record_url(out, job.split, job.number)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{job.number:06d}.tar")
        with written_beside(path) as beside:
            written = _write_shard(job, beside, path.name, digest)
        remove(record)  # of what is about to be replaced, if anything
        if written.info.samples:
            put(path, shard)
    put_bytes(written.record.encode(), record)
    return written


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


def _write_shard(job: _Job, path: Path, name: str, made_of: str) -> _Written:
    rows: list[tuple[int, int, int, int, int]] = []
    skipped: list[Skipped] = []
    above = 0
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for recording in job.recordings:
            described = _described(recording, job.root)
            try:
                samples, full_scale = _read(recording, job)
            except BadAudio as error:
                skipped.append(Skipped(str(described["source"]), str(error)))
                continue
            described = {**described, "seconds": len(samples) / job.sampling_rate}
            if full_scale > 1:
                described, above = {**described, "full_scale": full_scale}, above + 1
            audio = _add(archive, f"{recording.key}.flac", _flac(samples, job.sampling_rate))
            text = _add(archive, f"{recording.key}.json", json.dumps(described, ensure_ascii=False).encode())
            rows.append((*audio, *text, len(samples)))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    table = np.array(rows, SAMPLE)
    seconds = float(table["length"].sum(dtype=np.int64)) / job.sampling_rate
    info = ShardInfo(name, len(rows), seconds, path.stat().st_size, digest)
    return _Written(info, table, tuple(skipped), above, socket.gethostname(), made_of)


def _source(recording: Recording, root: str) -> str:
    """Relative to the data set; a cut is told as a media fragment in seconds."""
    name = Path(os.path.relpath(recording.path, root)).as_posix().encode(errors="backslashreplace").decode()
    if recording.start is None and recording.stop is None:
        return name
    return f"{name}#t={recording.start or 0}" + ("" if recording.stop is None else f",{recording.stop}")


def _read(recording: Recording, job: _Job) -> tuple[npt.NDArray[np.int16], float]:
    """16-bit samples, and what full scale stands for in them: 1, or the peak of a recording that goes beyond it."""
    samples = recording.mix(job.sampling_rate) if recording.mix else _decode(recording, job)
    if len(samples) < max(1, job.min_seconds * job.sampling_rate):
        raise BadAudio(f"it has {len(samples) / job.sampling_rate:.3f} s; at least {job.min_seconds:g} s are wanted")
    full_scale = max(1.0, float(np.abs(samples).max()))
    # A 16-bit source of the same rate comes out as it went in.
    return np.clip(np.rint(samples * np.float32(32768 / full_scale)), -32768, 32767).astype(np.int16), full_scale


def _decode(recording: Recording, job: _Job) -> npt.NDArray[np.float32]:
    if not os.path.isfile(recording.path):  # false as well of a name that cannot be one
        raise BadAudio(_MISSING)
    if recording.start is None and recording.stop is None:
        return read_audio(recording.path, job.sampling_rate, job.max_seconds)
    return read_cut(recording.path, job.sampling_rate, job.max_seconds, recording.start or 0, recording.stop)


def _flac(samples: npt.NDArray[np.int16], sampling_rate: int) -> bytes:
    flac = io.BytesIO()
    soundfile.write(flac, samples, sampling_rate, format="FLAC", subtype="PCM_16")
    return flac.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> tuple[int, int]:
    """Append a member; where its content begins, and how many bytes it has."""
    member = tarfile.TarInfo(name)  # of time 0, owner 0 and mode 0644
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
    blocks = math.ceil(len(content) / tarfile.BLOCKSIZE)
    return archive.offset - blocks * tarfile.BLOCKSIZE, len(content)


def _numbered(split: str, written: Sequence[_Written]) -> dict[int, _Written]:
    """The shards that hold something, numbered without gaps."""
    kept = [one for one in written if one.info.samples]
    if not kept:
        first = written[0].skipped[0]
        raise UserError(f"no recording of the split {split!r} can be used; {first.source}: {first.why}")
    return dict(enumerate(kept))
