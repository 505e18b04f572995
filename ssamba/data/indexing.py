"""The index of shards that another program wrote, or an older version of this one. Imports no torch.

A sample is `<key>.<extension>` with audio that `ssamba.recordings` reads, and perhaps `<key>.json`, as webdataset has
it: the key is a member's name up to the first dot after its folder. Nothing is unpacked, and nothing but the index is
written. A JSON counts if it has "labels", a mapping of a label's key to a name or a list of names, and no "key" that is
no text; one that has no such words, or means something else by them, is passed over, as are members of other kinds.
"""

import hashlib
import json
import logging
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from ssamba.data.index import INDEX_NAME, SAMPLE, Samples, ShardIndex, ShardInfo, Skipped, Text, write_samples
from ssamba.data.jobs import processes, run_jobs
from ssamba.data.writer import MAX_BAD_FRACTION
from ssamba.errors import BadAudio, UserError
from ssamba.files import read_json
from ssamba.progress import progress_bar
from ssamba.recordings import ENDINGS, measured_length

log = logging.getLogger(__name__)

_BLOCK = tarfile.BLOCKSIZE
_MOST_BYTES = 2**31 - 1  # of a member, and samples of a recording, that the table has room for
_WORD_AT = 257  # in a header, of `ustar`
_MOST_NAME = 1 << 16  # bytes of a header that gives a long name
_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)  # say more
_WITHOUT_CONTENT = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE,
                    tarfile.BLKTYPE)  # fmt: skip
_HALVES = re.compile("[\ud800-\udfff]")  # of characters, which no text file has
_NAMED = 3  # problems that an error names

Labels = Mapping[str, Sequence[str]]
Complain = Callable[[str, str], None]
"""Told a member's name, or "" for the shard, and what is wrong with it."""


class _Place(NamedTuple):
    """A member's content."""

    name: str
    offset: int
    bytes: int


@dataclass
class _Sample:
    audio: _Place | None = None
    description: _Place | None = None


@dataclass(frozen=True)
class _Scanned:
    """What a shard holds."""

    info: ShardInfo
    names: tuple[str, ...]
    rates: npt.NDArray[np.int64]
    """(samples,) in Hz."""
    samples: Samples
    labels: Mapping[str, frozenset[str]]
    """Label key -> the names that occur."""
    problems: tuple[Skipped, ...]


def index_shards(folder: Path, labels: Labels | None = None, *, workers: int = 1,
                 max_bad_fraction: float = MAX_BAD_FRACTION, overwrite: bool = False) -> ShardIndex:  # fmt: skip
    """Make index.json and samples.npy for a folder of .tar files, from their headers and those of the audio in them.

    Args:
        folder: of a split; its name is the split's, and the folder's that it is in the data set's.
        labels: label key -> names in the order of their numbers. Of a key that is missing here, those of the index that
            is replaced, which also gives the names of data set and split; else the names that occur, sorted.
        workers: processes.
        max_bad_fraction: of all samples that may have a problem; they are left out, and named in the index.
        overwrite: replace an index that is there, of any format.

    Raises:
        UserError: no shards, an index that is there, labels that cannot be, several sampling rates, too many problems,
            or a folder that cannot be written to.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; expected one of .tar files")
    paths = sorted(path for path in folder.glob("*.tar") if path.is_file())
    if not paths:
        raise UserError(f"{folder} has no .tar; expected shards, or a split's folder of them")
    if (folder / INDEX_NAME).exists() and not overwrite:
        raise UserError(f"{folder / INDEX_NAME} exists; --overwrite replaces it")
    if not 0 <= max_bad_fraction <= 1:
        raise UserError(f"max bad fraction: {max_bad_fraction:g} is given; expected 0 to 1")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder} cannot be written to; expected a place for {INDEX_NAME}")
    before = _replaced(folder / INDEX_NAME)
    scanned = _scan_all(paths, workers)
    bad = [problem for shard in scanned for problem in shard.problems]
    rate, scanned, other = _of_one_rate(scanned)
    total = sum(shard.info.samples for shard in scanned) + len(bad) + len(other)
    allowed = int(max_bad_fraction * total)
    for problem in (*bad, *other):
        log.warning("%s: %s", problem.source, problem.why)
    if len(other) > allowed:
        one = next(shard for shard in scanned if shard.names)
        raise UserError(
            f"{one.info.name}/{one.names[0]} has {rate} Hz and {other[0].source} {other[0].why}; expected one sampling "
            "rate: unpack the shards and make them again with data_prep/folder.py, which resamples"
        )
    if len(bad) + len(other) > allowed:
        named = "; ".join(f"{one.source}: {one.why}" for one in (*bad, *other)[:_NAMED])
        raise UserError(
            f"{len(bad) + len(other)} of {total} samples have a problem; at most {allowed} may (max bad fraction "
            f"{max_bad_fraction:g}): copy the shards again, or raise --max-bad-fraction. The first: {named}"
        )
    scanned = [shard for shard in scanned if shard.info.samples]
    if not scanned:
        raise UserError(f"no sample of {folder} can be used; expected <key>.flac or the like in its shards")
    whole = folder.resolve()
    index = ShardIndex(
        before.dataset if before else whole.parent.name, before.split if before else whole.name, rate,
        _label_lists(scanned, {**(before.labels if before else {}), **(labels or {})}), (*bad, *other),
        tuple(shard.info for shard in scanned), "",
    )  # fmt: skip
    try:
        table = np.concatenate([shard.samples for shard in scanned])
        index = replace(index, samples_sha256=write_samples(folder, table))
        index.write(folder)
    except OSError as error:
        raise UserError(f"the index cannot be written to {folder}: {error}") from error
    return index


def _scan_all(paths: Sequence[Path], workers: int) -> list[_Scanned]:
    found: dict[Path, _Scanned] = {}
    with (
        progress_bar(len(paths), "shard", "index") as bar,
        processes(workers) as executor,
        closing(run_jobs(_scan, paths, executor)) as results,
    ):
        for path, shard in results:
            found[path] = shard
            bar.update()
    return [found[path] for path in paths]


def _of_one_rate(scanned: Sequence[_Scanned]) -> tuple[int, list[_Scanned], list[Skipped]]:
    """The rate that most samples have, the shards with those alone, and the others."""
    rates = Counter(rate for shard in scanned for rate in shard.rates.tolist())
    most = rates.most_common(1)[0][0] if rates else 0
    kept: list[_Scanned] = []
    other: list[Skipped] = []
    for shard in scanned:
        right = shard.rates == most
        other += [
            Skipped(f"{shard.info.name}/{name}", f"has {rate} Hz")
            for name, rate in zip(shard.names, shard.rates.tolist(), strict=True)
            if rate != most
        ]
        samples = shard.samples[right]
        seconds = float(samples["length"].sum(dtype=np.int64)) / most if most else 0.0
        names = tuple(name for name, is_right in zip(shard.names, right.tolist(), strict=True) if is_right)
        info = replace(shard.info, samples=len(samples), seconds=seconds)
        kept.append(replace(shard, info=info, names=names, rates=shard.rates[right], samples=samples))
    return most, kept, other


def _label_lists(scanned: Sequence[_Scanned], given: Labels) -> dict[str, tuple[str, ...]]:
    used: dict[str, set[str]] = {}
    for shard in scanned:
        for key, names in shard.labels.items():
            used.setdefault(key, set()).update(names)
    for key, listed in given.items():
        if unknown := sorted(used.get(key, set()) - set(listed)):
            raise UserError(
                f"the label list {key!r} lacks {unknown[0]!r}, which a sample has; expected all of them: give the "
                "whole list with --labels"
            )
    lists = {**{key: tuple(sorted(names)) for key, names in used.items()},
             **{key: tuple(listed) for key, listed in given.items()}}  # fmt: skip
    return {key: lists[key] for key in sorted(lists)}


@dataclass(frozen=True)
class _Replaced:
    """What is kept of the index that is to be replaced, of whatever format."""

    dataset: Text
    split: Text
    labels: Mapping[Text, tuple[Text, ...]]


def _replaced(path: Path) -> _Replaced | None:
    try:
        return read_json(path, _Replaced, "an index")
    except UserError:
        return None


def _scan(path: Path) -> _Scanned:
    problems: list[Skipped] = []
    rows: list[tuple[int, int, int, int, int]] = []
    names: list[str] = []
    rates: list[int] = []
    labels: dict[str, set[str]] = {}
    digest, size = "", 0

    def complain(name: str, why: str) -> None:
        problems.append(Skipped(f"{path.name}/{name}" if name else path.name, why))

    try:
        with path.open("rb") as file:
            digest, size = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
            for key, sample in _samples(_members(file, size, complain), complain).items():
                try:
                    row, rate = _row(file, sample, labels)
                except BadAudio as error:
                    complain(key, str(error))
                    continue
                rows.append(row)
                names.append(key)
                rates.append(rate)
    except OSError as error:
        complain("", f"it cannot be read: {error}")
    if not rows and not problems:
        complain("", "it holds no samples")
    info = ShardInfo(path.name, len(rows), 0.0, size, digest)
    used = {key: frozenset(used) for key, used in labels.items()}
    return _Scanned(info, tuple(names), np.array(rates, np.int64), np.array(rows, SAMPLE), used, tuple(problems))


def _members(file: BinaryIO, size: int, complain: Complain) -> Iterator[_Place | None]:
    """The files in a tar of so many bytes; None for a damaged place, after which the next header is looked for."""
    at, lost, ended = 0, False, False
    extended: dict[str, str] = {}  # what the headers before a member say of it
    while at + _BLOCK <= size:
        file.seek(at)
        block = file.read(_BLOCK)
        begin, at = at, at + _BLOCK
        if block.count(0) == _BLOCK:  # the end, or one of several
            ended = True
            continue
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
            name = extended.get("path", header.name).removeprefix("./")
            length = 0 if header.type in _WITHOUT_CONTENT else int(extended.get("size", header.size))
            if length < 0 or begin + _BLOCK + length > size:
                raise ValueError(f"{name} does not end within it")
        except (tarfile.HeaderError, ValueError) as error:
            if not lost:
                complain("", f"no member can be read at byte {begin}: {error}")
                yield None
            at, lost, extended = _next_header(file, begin + 1), True, {}
            continue
        lost = ended = False
        place = _Place(name, at, length)
        at += -(-length // _BLOCK) * _BLOCK
        if header.type in _EXTENDED:
            extended |= _said(header.type, _read(file, place._replace(bytes=min(length, _MOST_NAME))))
            continue
        extended = {}
        if not header.isreg() or header.type == tarfile.GNUTYPE_SPARSE:
            if not header.isdir():
                complain(name, "it is a link or the like; expected a file")
        elif name.startswith("/") or ".." in name.split("/"):
            complain(name, "its name leads out of the shard's folder")
        elif length > _MOST_BYTES:
            complain(name, f"it has {length} bytes; expected at most {_MOST_BYTES}")
        else:
            yield place
    if not ended:
        complain("", "it has no mark at its end, so something is missing")


def _next_header(file: BinaryIO, begin: int) -> int:
    """Where a block may begin that is a header, by the word that each has; beyond the end if there is none. Not at
    whole blocks alone, because bytes may be missing."""
    at, kept = begin + _WORD_AT, b""
    file.seek(at)
    while chunk := file.read(1 << 20):
        if (found := (kept + chunk).find(b"ustar")) >= 0:
            return at - len(kept) + found - _WORD_AT
        at, kept = at + len(chunk), chunk[-4:]
    return at


def _said(kind: bytes, content: bytes) -> dict[str, str]:
    """What a header says of the next member: of path and size, if anything."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": content.rstrip(b"\0").decode(errors="backslashreplace")}
    found: dict[str, str] = {}
    if kind == tarfile.XHDTYPE:  # of records like `20 path=some/name.wav\n`, each told its length at its beginning
        for path_or_size, value in re.findall(rb"\d+ (path|size)=([^\n]*)\n", content):
            found[path_or_size.decode()] = value.decode(errors="backslashreplace")
    return found


def _samples(members: Iterable[_Place | None], complain: Complain) -> dict[str, _Sample]:
    """Key -> its members, in the order of the keys' first ones."""
    samples: dict[str, _Sample] = {}
    seen: set[str] = set()
    before_damage: set[str] = set()
    key = ""
    for member in members:
        if member is None:
            before_damage.add(key)
            continue
        folder, slash, base = member.name.rpartition("/")
        stem, _, extension = base.partition(".")
        if not stem or not extension:  # webdataset passes over such names, too
            continue
        if member.name in seen:
            complain(member.name, "it is there twice")
            continue
        seen.add(member.name)
        key = folder + slash + stem
        sample = samples.setdefault(key, _Sample())
        if f".{extension.rpartition('.')[2].lower()}" in ENDINGS:
            if sample.audio:
                complain(member.name, f"{sample.audio.name} is a recording of the same key")
            else:
                sample.audio = member
        elif extension.lower() == "json":
            sample.description = member
    if any(sample.description for sample in samples.values()):
        for key in before_damage & samples.keys():
            if not samples[key].description:
                complain(key, "its .json may be what is damaged after it")
                del samples[key]
    return samples


def _row(file: BinaryIO, sample: _Sample, labels: dict[str, set[str]]) -> tuple[tuple[int, int, int, int, int], int]:
    """A sample's row of the table and its sampling rate in Hz; its labels are added.

    Raises:
        BadAudio: no recording that can be used, or a JSON that is damaged.
    """
    if sample.audio is None:
        raise BadAudio(f"it has no recording; expected one that ends with {', '.join(sorted(ENDINGS))}")
    rate, length = _measured(_read(file, sample.audio))
    description = sample.description
    used = _used_labels(_read(file, description)) if description else None
    if description is None or used is None:
        return (sample.audio.offset, sample.audio.bytes, 0, 0, length), rate
    for key, names in used.items():
        labels.setdefault(key, set()).update(names)
    return (sample.audio.offset, sample.audio.bytes, description.offset, description.bytes, length), rate


def _measured(content: bytes) -> tuple[int, int]:
    """Sampling rate in Hz and number of samples of a recording, as training will find them."""
    rate, length = measured_length(content)
    if not 0 < length <= _MOST_BYTES:
        raise BadAudio(f"it has {length} samples; expected 1 to {_MOST_BYTES}")
    return rate, length


def _used_labels(content: bytes) -> dict[str, list[str]] | None:
    """Label key -> names, of a JSON; None if it is not about a sample's labels."""
    try:
        said = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadAudio(f"its .json cannot be parsed: {error}") from error
    labels = said.get("labels") if isinstance(said, dict) else None
    if not isinstance(labels, dict) or not isinstance(said.get("key", ""), str):
        return None
    used: dict[str, list[str]] = {}
    for key, value in labels.items():
        used[key] = value if isinstance(value, list) else [value]
        if not all(isinstance(name, str) and name and not _HALVES.search(name) for name in (key, *used[key])):
            raise BadAudio(f"its label {key!r} is {str(value)[:80]!r}; expected a name or a list of names")
    return used


def _read(file: BinaryIO, place: _Place) -> bytes:
    file.seek(place.offset)
    return file.read(place.bytes)
