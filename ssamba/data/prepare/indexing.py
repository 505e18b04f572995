"""The index of shards that another program wrote, or an older version of this one. Imports no torch.

A sample is `<key>.<extension>` with audio that `ssamba.recordings` reads, and perhaps `<key>.json`, as webdataset has
it: the key is a member's name up to the first dot after its folder. Nothing is unpacked, and nothing but the index is
written. A JSON counts if it has "labels", a mapping of a label's key to a name or a list of names, and no "key" that is
no text; one that has no such words, or means something else by them, is passed over, as are members of other kinds:
the index says how many of which.

Labels that lie elsewhere, in members such as `<key>.cls` or in other fields of the JSON, are taken where they are
named. They are written, with the keys, into labels.jsonl beside the index: a line is what a sample's JSON would be.
"""

import contextlib
import hashlib
import itertools
import json
import logging
import os
import re
import shlex
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from ssamba.data.prepare.elsewhere import probe
from ssamba.data.prepare.writer import MAX_BAD_FRACTION
from ssamba.data.shards.descriptions import (
    HALVES,
    TEXT_LABEL,
    Description,
    Names,
    as_list,
    label_fields,
    names_in,
    names_in_text,
    parse_description,
    parse_foreign,
    value_at,
)
from ssamba.data.shards.index import (
    DESCRIPTIONS_NAME,
    INDEX_NAME,
    SAMPLE,
    SAMPLES_NAME,
    SAMPLING_RATES,
    Descriptions,
    Samples,
    ShardIndex,
    ShardInfo,
    Skipped,
    Text,
    write_samples,
)
from ssamba.data.shards.stores import check_writable
from ssamba.data.shards.transport import Expected, fetch, listed_folder, put, read_if_there
from ssamba.data.shards.urls import is_shard_name
from ssamba.errors import BadAudio, UserError
from ssamba.files import MOST_BYTES, Count, parse_json, read_bounded, written_beside
from ssamba.jobs import processes, run_jobs
from ssamba.printable import printable
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
_NAMED = 3  # problems that an error names
_MOST_FIELDS = 40  # that may be labels, of which is told
_MOST_NAMES_SEEN = 1000  # of such a field
_SHOWN = 3  # of those names
_SAME_KEY = "is a recording of the same key"
# What a file is compressed by: how it begins, and the command that makes a tar of it.
_COMPRESSED = {b"\x1f\x8b": ".gz", b"\xfd7zXZ\0": ".xz", b"BZh": ".bz2", b"\x28\xb5\x2f\xfd": ".zst", b"PK\3\4": ".zip"}
_COMMANDS = {".gz": "gunzip", ".xz": "unxz", ".bz2": "bunzip2", ".zst": "unzstd"}
_ARCHIVES = {
    ".tar.gz": ".gz",
    ".tgz": ".gz",
    ".tar.xz": ".xz",
    ".txz": ".xz",
    ".tar.bz2": ".bz2",
    ".tbz2": ".bz2",
    ".tbz": ".bz2",
    ".tar.zst": ".zst",
    ".tzst": ".zst",
    ".zip": ".zip",
}
# What lies beside recordings and is not one that something happened to.
_DOCUMENTS = {"cff", "csv", "htm", "html", "jsonl", "log", "md", "pdf", "rst", "tsv", "txt", "xml", "yaml", "yml"}

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
    members: dict[str, _Place] = field(default_factory=dict)
    """Extension in small letters -> a member that is no recording."""

    @property
    def json(self) -> str:
        """The extension of its JSON: `json`, or that of the audio but for its end, as of a.0.flac and a.0.json."""
        beside = _extension(self.audio.name).rpartition(".")[0] + ".json" if self.audio else ""
        return "json" if "json" in self.members else beside


@dataclass(frozen=True)
class _Job:
    """A shard to read, and where its labels are."""

    path: Path | str
    """Of one elsewhere its url."""
    bytes: int
    fields: Mapping[str, str]
    """Label key -> the extension of a member, or a field of the JSON."""


@dataclass(frozen=True)
class _Scanned:
    """What a shard holds."""

    info: ShardInfo
    names: tuple[str, ...]
    rates: npt.NDArray[np.int64]
    """(samples,) in Hz."""
    samples: Samples
    descriptions: tuple[Description, ...]
    """Of each sample."""
    problems: tuple[Skipped, ...]
    passed_over: Counter[str]
    fields: Mapping[str, frozenset[str]]
    """What may be labels: member or field of the JSON -> the first names that occur."""


@dataclass(frozen=True)
class Indexed:
    """An index that was made, and what there is to tell of it."""

    index: ShardIndex
    unlabelled: Mapping[str, int]
    """Label key -> samples that have none."""
    fields: Mapping[str, Sequence[str]]
    """What may be labels: member or field of the JSON -> the first names that occur."""


def index_folder(
    folder: Path | str,
    labels: Labels | None = None,
    *,
    fields: Mapping[str, str] | None = None,
    workers: int = 1,
    max_bad_fraction: float = MAX_BAD_FRACTION,
    overwrite: bool = False,
) -> Indexed:
    """Make index.json and samples.npy for a folder of .tar files, from their headers and those of the audio in them.

    Args:
        folder: of a split, or the url of one that a driver of fsspec reads and writes: its shards are fetched one by
            one and not kept. Its name is the split's, and the folder's that it is in the data set's.
        labels: label key -> names in the order of their numbers. Of a key that is missing here, those of the index that
            is replaced, which also gives the names of data set and split; else the names that occur, sorted, by their
            value if all are integers.
        fields: label key -> where other programs put it: the extension of a member, such as `cls`, or a field of the
            JSON, such as `label` or `original_data.class_label`. None: as in the index that is replaced.
        workers: processes.
        max_bad_fraction: of all samples that may have a problem; they are left out, and named in the index.
        overwrite: replace an index that is there, of any format.

    Raises:
        UserError: no shards, compressed ones, an index that is there, labels that cannot be or that no sample has,
            several sampling rates, too many problems, or a folder that cannot be written to.
    """
    shards, passed_over = _shards_in(folder) if isinstance(folder, Path) else _shards_at(folder)
    written = _written_index(folder)
    if written is not None and not overwrite:
        raise UserError(f"{folder}/{INDEX_NAME} exists; --overwrite replaces it")
    if not 0 <= max_bad_fraction <= 1:
        raise UserError(f"max bad fraction: {max_bad_fraction:g} is given; expected 0 to 1")
    if isinstance(folder, str):
        probe(folder)
    elif not os.access(folder, os.W_OK):
        raise UserError(f"{folder} cannot be written to; expected a place for {INDEX_NAME}")
    before = _replaced(written) if written is not None else None
    earlier = before.descriptions.fields if before and before.descriptions else {}
    fields = earlier if fields is None else fields
    # A label that is now found elsewhere has other names.
    lists = before.labels if before else {}
    kept = {key: names for key, names in lists.items() if names and earlier.get(key) == fields.get(key)}
    scanned = _scan_all([_Job(path, size, fields) for path, size in shards.items()], workers)
    bad = [problem for shard in scanned for problem in shard.problems]
    rate, scanned, other = _of_one_rate(scanned)
    total = sum(shard.info.samples for shard in scanned) + len(bad) + len(other)
    allowed = int(max_bad_fraction * total)
    for problem in (*bad, *other):
        log.warning("%s: %s", printable(problem.source), printable(problem.why))
    if len(other) > allowed:
        one = next(shard for shard in scanned if shard.names)
        raise UserError(
            f"{one.info.name}/{one.names[0]} has {rate} Hz and {other[0].source} {other[0].why}; expected one sampling "
            "rate: unpack the shards and make them again with data_prep/folder.py, which resamples"
        )
    if len(bad) + len(other) > allowed:
        named = "; ".join(f"{printable(one.source)}: {printable(one.why)}" for one in (*bad, *other)[:_NAMED])
        raise UserError(
            f"{len(bad) + len(other)} of {total} samples have a problem; at most {allowed} may (max bad fraction "
            f"{max_bad_fraction:g}): copy the shards again, or raise --max-bad-fraction. The first: {named}"
            f"{_first_dot(bad)}"
        )
    for shard in scanned:
        passed_over += shard.passed_over
    scanned = [shard for shard in scanned if shard.info.samples]
    if not scanned:
        raise UserError(f"no sample of {folder} can be used; expected <key>.flac or the like in its shards")
    if not SAMPLING_RATES[0] <= rate <= SAMPLING_RATES[1]:
        raise UserError(
            f"the recordings in {folder} have {rate} Hz; expected {SAMPLING_RATES[0]} to {SAMPLING_RATES[1]}"
        )
    seen = _merged_fields(scanned)
    unlabelled = _unlabelled(scanned, fields, seen, folder)
    whole = folder.resolve() if isinstance(folder, Path) else PurePosixPath(folder)
    index = ShardIndex(
        before.dataset if before else whole.parent.name,
        before.split if before else whole.name,
        rate,
        _label_lists(scanned, {**kept, **(labels or {})}),
        (*bad, *other),
        tuple(shard.info for shard in scanned),
        "",
        dict(sorted(passed_over.items())),
        above_full_scale=before.above_full_scale if before else 0,
    )
    try:
        if isinstance(folder, Path):
            _write(folder, index, scanned, fields)
            index = ShardIndex.read(folder)
        else:
            index = _put(folder, index, scanned, fields)
    except OSError as error:
        raise UserError(f"the index cannot be written to {folder}: {error}") from error
    return Indexed(index, unlabelled, seen)


def _shards_at(url: str) -> tuple[dict[Path | str, int], Counter[str]]:
    """As `_shards_in`, of a folder at a url."""
    check_writable(url)
    entries = listed_folder(url)
    shards = [one for one in entries if one.name.endswith(".tar") and not one.is_folder]
    if packed := [one.url for one in entries if one.name.endswith(tuple(_ARCHIVES)) and not one.is_folder]:
        raise UserError(f"{len(packed)} of the shards are compressed, such as {packed[0]}; expected plain .tar files")
    if not shards:
        folders = [one.url for one in entries if one.is_folder]
        advice = f"its folders are {', '.join(folders[:_NAMED])}" if folders else "expected shards, or a split's folder"
        raise UserError(f"{url} has no .tar; {advice}")
    for one in shards:
        if not is_shard_name(one.name):
            raise UserError(f"{one.url} should have a name of letters, digits, '.', '_', '-' and then .tar: rename it")
    return {one.url: one.bytes for one in shards}, Counter()


def _put(url: str, index: ShardIndex, scanned: Sequence[_Scanned], fields: Mapping[str, str]) -> ShardIndex:
    """Write the index to a url, itself at the end; what was written."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder, index, scanned, fields)
        for file in (DESCRIPTIONS_NAME, SAMPLES_NAME, INDEX_NAME):
            if (folder / file).exists():
                put(folder / file, f"{url}/{file}")
        return ShardIndex.read(folder)


def _written_index(folder: Path | str) -> bytes | None:
    """What index.json of a folder holds; None if there is none, nothing if it cannot be read."""
    if isinstance(folder, str):
        return read_if_there(f"{folder}/{INDEX_NAME}", MOST_BYTES)
    if not (folder / INDEX_NAME).exists():
        return None
    try:
        return read_bounded(folder / INDEX_NAME, "an index")
    except UserError:
        return b""


def _shards_in(folder: Path) -> tuple[dict[Path | str, int], Counter[str]]:
    """The .tar files in a folder with their bytes, and what else in it is passed over.

    Raises:
        UserError: none, compressed ones, or a folder that cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{printable(str(folder))} is no folder; expected one of .tar files")
    try:
        entries = sorted(folder.iterdir())
        paths = [path for path in entries if path.name.endswith(".tar") and path.is_file()]
        _refuse_compressed(entries, paths)
        nested = [path for path in entries if path.is_dir() and any(_is_shard(name) for name in os.listdir(path))]
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be read ({error.strerror}); expected .tar files") from error
    folders = " and ".join(shlex.quote(str(path)) for path in nested[:_NAMED]) + (", ..." if nested[_NAMED:] else "")
    if not paths:
        advice = (
            f"its folders have: give {folders}, one after the other"
            if nested
            else ("expected shards, or a split's folder of them")
        )
        raise UserError(f"{printable(str(folder))} has no .tar; {advice}")
    if nested:
        log.warning("the shards in %s are passed over: an index is of one folder", printable(folders))
    for path in paths:
        if printable(path.name) != path.name:
            raise UserError(f"{printable(str(path))} has a name that cannot be shown or written; expected another name")
    return {path: path.stat().st_size for path in paths}, Counter({"folders of shards": len(nested)} if nested else {})


def _is_shard(name: str) -> bool:
    return name.endswith((".tar", *(ending for ending in _ARCHIVES if ending != ".zip")))


def _refuse_compressed(entries: Sequence[Path], paths: Sequence[Path]) -> None:
    """UserError with the commands that mend it if some shards are compressed, by their names or by how they begin."""
    commands = []
    for path in entries:
        ending = next((ending for ending in _ARCHIVES if path.name.endswith(ending)), None)
        tar = path.with_name(path.name.removesuffix(ending or "") + ".tar")
        if ending and path.is_file() and not tar.exists():
            commands.append(_unpacking(path, _ARCHIVES[ending], tar))
    for path in paths:
        with path.open("rb") as file:
            begin = file.read(6)
        kind = next((kind for magic, kind in _COMPRESSED.items() if begin.startswith(magic)), None)
        if kind:
            named = path.with_name(path.name + kind) if kind != ".zip" else path.with_suffix(kind)
            move = f"mv {shlex.quote(str(path))} {shlex.quote(str(named))}"
            commands.append(f"{move} && {_unpacking(named, kind, path)}")
    if commands:
        raise UserError(
            f"{len(commands)} of the shards are compressed; they are read where they lie, as plain .tar files: "
            f"{printable('; '.join(commands[:_NAMED]))}{'; ...' if commands[_NAMED:] else ''}"
        )


def _unpacking(path: Path, kind: str, tar: Path) -> str:
    """The command that makes the tar of a compressed one."""
    if kind == ".zip":
        folder = tar.with_suffix("")
        zipped, plain, unpacked = (shlex.quote(str(one)) for one in (path, tar, folder))
        return f"unzip -q {zipped} -d {unpacked} && tar -cf {plain} -C {unpacked} . && rm -r {zipped} {unpacked}"
    return f"{_COMMANDS[kind]} {shlex.quote(str(path))}"


def _first_dot(bad: Iterable[Skipped]) -> str:
    """What a key is, if recordings have one together."""
    for one in bad:
        if one.why.endswith(_SAME_KEY):
            name = one.source.partition("/")[2]
            return (
                f". A key is a name up to the first dot after its folder, as webdataset has it: {printable(name)} has "
                f"the key {printable(_key(name))!r}"
            )
    return ""


def _merged_fields(scanned: Iterable[_Scanned]) -> dict[str, list[str]]:
    merged: dict[str, set[str]] = {}
    for shard in scanned:
        for name, names in shard.fields.items():
            if name in merged or len(merged) < _MOST_FIELDS:
                merged.setdefault(name, set()).update(names)
    return {name: _sorted(names)[:_MOST_NAMES_SEEN] for name, names in sorted(merged.items())}


def _unlabelled(
    scanned: Sequence[_Scanned], fields: Mapping[str, str], seen: Mapping[str, Sequence[str]], folder: Path | str
) -> dict[str, int]:
    """Label key -> samples without; UserError if it is none's though somebody named its place."""
    had = Counter(key for shard in scanned for said in shard.descriptions for key in said["labels"])
    for key, place in fields.items():
        if not had[key]:
            raise UserError(
                f"--label {printable(key)}={printable(place)}: no sample of {printable(str(folder))} has it; expected "
                f"a member's extension or a field of the JSON: {fields_report(seen) or 'none has a text or a number'}"
            )
    total = sum(len(shard.descriptions) for shard in scanned)
    return {key: total - count for key, count in sorted(had.items()) if count < total}


def fields_report(fields: Mapping[str, Sequence[str]]) -> str:
    """What may be labels, in one line."""
    said = (
        f"{name} ({len(names)}{' or more' if len(names) == _MOST_NAMES_SEEN else ''}: "
        f"{', '.join(one[:40] for one in names[:_SHOWN])}{', ...' if names[_SHOWN:] else ''})"
        for name, names in fields.items()
    )
    return printable("; ".join(said))


def _write(folder: Path, index: ShardIndex, scanned: Sequence[_Scanned], fields: Mapping[str, str]) -> None:
    table = np.concatenate([shard.samples for shard in scanned])
    if fields:
        lines = [
            json.dumps(said, ensure_ascii=False).encode() + b"\n" for shard in scanned for said in shard.descriptions
        ]
        table["json_bytes"] = [len(line) - 1 for line in lines]
        table["json"] = np.cumsum([0, *(len(line) for line in lines[:-1])])
        content = b"".join(lines)
        with written_beside(folder / DESCRIPTIONS_NAME) as beside:
            beside.write_bytes(content)
        described = Descriptions(len(content), hashlib.sha256(content).hexdigest(), dict(fields))
        index = replace(index, descriptions=described)
    replace(index, samples_sha256=write_samples(folder, table)).write(folder)


def _scan_all(jobs: Sequence[_Job], workers: int) -> list[_Scanned]:
    found: dict[Path | str, _Scanned] = {}
    with (
        progress_bar(len(jobs), "shard", "index") as bar,
        processes(workers) as executor,
        closing(run_jobs(_scan, jobs, executor)) as results,
    ):
        for job, shard in results:
            found[job.path] = shard
            bar.update()
    return [found[job.path] for job in jobs]


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
        info = replace(shard.info, samples=len(samples), seconds=seconds)
        kept.append(
            replace(
                shard,
                info=info,
                rates=shard.rates[right],
                samples=samples,
                names=tuple(itertools.compress(shard.names, right)),
                descriptions=tuple(itertools.compress(shard.descriptions, right)),
            )
        )
    return most, kept, other


def _label_lists(scanned: Sequence[_Scanned], given: Labels) -> dict[str, tuple[str, ...]]:
    used: dict[str, set[str]] = {}
    for said in (said for shard in scanned for said in shard.descriptions):
        for key, names in said["labels"].items():
            used.setdefault(key, set()).update(as_list(names))
    for key, listed in given.items():
        if unknown := sorted(used.get(key, set()) - set(listed)):
            raise UserError(
                f"the label list {key!r} lacks {unknown[0]!r}, which a sample has; expected all of them: give the "
                "whole list with --labels"
            )
    lists = {
        **{key: () if key == TEXT_LABEL else tuple(_sorted(names)) for key, names in used.items() if names},
        **{key: tuple(listed) for key, listed in given.items()},
    }
    return {key: lists[key] for key in sorted(lists)}


def _sorted(names: Iterable[str]) -> list[str]:
    """By their value if all are integers."""
    by_letters = sorted(names)
    integers = all(re.fullmatch(r"-?\d{1,18}", name, re.ASCII) for name in by_letters)
    return sorted(by_letters, key=int) if integers else by_letters


@dataclass(frozen=True)
class _Replaced:
    """What is kept of the index that is to be replaced, of whatever format."""

    dataset: Text
    split: Text
    labels: Mapping[Text, tuple[Text, ...]]
    descriptions: Descriptions | None = None
    above_full_scale: Count = 0


def _replaced(written: bytes) -> _Replaced | None:
    try:
        return parse_json(written, _Replaced, INDEX_NAME, "an index")
    except UserError:
        return None


def _scan(job: _Job) -> _Scanned:
    if isinstance(job.path, Path):
        return _scan_file(job.path, job.fields)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, PurePosixPath(job.path).name)
        fetch(job.path, path, Expected(job.bytes))
        return _scan_file(path, job.fields)


def _scan_file(path: Path, places: Mapping[str, str]) -> _Scanned:
    problems: list[Skipped] = []
    rows: list[tuple[int, int, int, int, int]] = []
    names: list[str] = []
    rates: list[int] = []
    descriptions: list[Description] = []
    passed_over: Counter[str] = Counter()
    fields: dict[str, set[str]] = {}
    digest, size = "", 0

    def complain(name: str, why: str) -> None:
        problems.append(Skipped(f"{path.name}/{name}" if name else path.name, why))

    try:
        with path.open("rb") as file:
            digest, size = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
            for key, sample in _samples(_members(file, size, complain), complain, passed_over).items():
                try:
                    row, rate, said = _row(file, key, sample, places, fields)
                except BadAudio as error:
                    complain(key, str(error))
                    continue
                rows.append(row)
                names.append(key)
                rates.append(rate)
                descriptions.append(said)
                read = {sample.json, *(_member(place) for place in places.values())}
                passed_over.update(
                    _kind(member) for extension, member in sample.members.items() if extension not in read
                )
    except OSError as error:
        complain("", f"it cannot be read: {error.strerror}")
    if not rows and not problems:
        # As other readers do: of many shards some may have got nothing.
        log.warning("%s holds no samples and is left out", path.name)
        passed_over["shards without samples"] += 1
    info = ShardInfo(path.name, len(rows), 0.0, size, digest)
    return _Scanned(
        info,
        tuple(names),
        np.array(rates, np.int64),
        np.array(rows, SAMPLE),
        tuple(descriptions),
        tuple(problems),
        passed_over,
        {name: frozenset(seen) for name, seen in fields.items()},
    )


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
        sparse = header.type == tarfile.GNUTYPE_SPARSE or "GNU.sparse" in extended
        if header.type == tarfile.GNUTYPE_SPARSE:
            at += _BLOCK * _sparse_blocks(file, block, begin + _BLOCK)
        extended = {}
        if sparse:
            complain(name, "it is stored as a sparse file; expected a plain one: pack it again without tar's --sparse")
        elif not header.isreg():
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


def _sparse_blocks(file: BinaryIO, header: bytes, at: int) -> int:
    """How many blocks with the places of a sparse file's parts follow its header."""
    count, more = 0, header[482]
    while more:
        file.seek(at + count * _BLOCK)
        block = file.read(_BLOCK)
        count, more = count + 1, block[504] if len(block) == _BLOCK else 0
    return count


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
    """What a header says of the next member: of path and size, and whether it is sparse, if anything."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": content.rstrip(b"\0").decode(errors="backslashreplace")}
    found: dict[str, str] = {}
    if kind == tarfile.XHDTYPE:  # of records like `20 path=some/name.wav\n`, each told its length at its beginning
        for path_or_size, value in re.findall(rb"\d+ (path|size)=([^\n]*)\n", content):
            found[path_or_size.decode()] = value.decode(errors="backslashreplace")
        if b" GNU.sparse." in content:
            found["GNU.sparse"] = "yes"
    return found


def _key(name: str) -> str:
    """Of a member, as webdataset has it: its name up to the first dot after its folder."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _extension(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[2]


def _kind(member: _Place) -> str:
    """What is told of a member that is passed over."""
    return f".{member.name.rpartition('.')[2].lower()[:20]}"


def _samples(members: Iterable[_Place | None], complain: Complain, passed_over: Counter[str]) -> dict[str, _Sample]:
    """Key -> its members, in the order of the keys' first ones."""
    samples: dict[str, _Sample] = {}
    seen: set[str] = set()
    before_damage: set[str] = set()
    key = ""
    for member in members:
        if member is None:
            before_damage.add(key)
            continue
        base, extension = member.name.rpartition("/")[2], _extension(member.name)
        # webdataset passes over these, too.
        if base.startswith("."):
            passed_over["hidden files"] += 1
        elif not extension:
            passed_over["files without an extension"] += 1
        elif (stem := base.partition(".")[0]).startswith("__") and stem.endswith("__"):
            passed_over["files about the shard (__)"] += 1
        elif member.name in seen:
            complain(member.name, "it is there twice")
        else:
            seen.add(member.name)
            key = _key(member.name)
            sample = samples.setdefault(key, _Sample())
            if f".{extension.rpartition('.')[2].lower()}" not in ENDINGS:
                sample.members[extension.lower()] = member
            elif sample.audio:
                complain(member.name, f"{sample.audio.name} {_SAME_KEY}")
            else:
                sample.audio = member
    for key in [key for key, sample in samples.items() if not sample.audio]:
        if all(extension.rpartition(".")[2] in _DOCUMENTS for extension in samples[key].members):
            passed_over.update(map(_kind, samples.pop(key).members.values()))
    if any(sample.json in sample.members for sample in samples.values()):
        for key in before_damage & samples.keys():
            if samples[key].json not in samples[key].members:
                complain(key, "its .json may be what is damaged after it")
                del samples[key]
    return samples


def _member(place: str) -> str:
    """The extension of the member that the place of a label may mean."""
    return place.removeprefix(".").lower()


def _row(
    file: BinaryIO, key: str, sample: _Sample, places: Mapping[str, str], fields: dict[str, set[str]]
) -> tuple[tuple[int, int, int, int, int], int, Description]:
    """A sample's row of the table, its sampling rate in Hz and its description; what may be its labels is added.

    Raises:
        BadAudio: no recording that can be used, a JSON that is damaged, or labels that are none.
    """
    if sample.audio is None:
        raise BadAudio("it has no recording; expected a member that ends with .flac, .wav, .mp3 or the like")
    rate, length = _measured(_read(file, sample.audio))
    place = sample.members.get(sample.json)
    content = _read(file, place) if place else b""
    said = parse_foreign(content) if place else None
    labels = _native_labels(said, places)
    described: Description = {"key": key, "labels": {}}
    text = (0, 0)
    if isinstance(said, dict) and labels is not None and place:
        if places:
            own = {name: said[name] for name in ("key", "full_scale") if name in said}
            content = json.dumps({**own, "labels": labels}).encode()
        described, text = parse_description(content, key), (place.offset, place.bytes)
    for label, where in places.items():
        try:
            if member := sample.members.get(_member(where)):
                names = names_in_text(_read(file, member))
            else:
                names = None if where.startswith(".") else names_in(value_at(said, where))
        except BadAudio as error:
            raise BadAudio(f"its label {label!r}: {error}") from error
        if names is not None:
            described["labels"][label] = names
    _add_fields(file, sample, said if labels is None else None, fields)
    return (sample.audio.offset, sample.audio.bytes, *text, length), rate, described


def _add_fields(file: BinaryIO, sample: _Sample, said: object, fields: dict[str, set[str]]) -> None:
    """Note what of a sample's members and JSON may be its labels."""
    found: list[tuple[str, Names]] = list(label_fields(said))
    for extension in {"cls", "txt"} & sample.members.keys():
        with contextlib.suppress(BadAudio):
            if names := names_in_text(_read(file, sample.members[extension])):
                found.append((f".{extension}", names))
    for name, names in found:
        if name in fields or len(fields) < _MOST_FIELDS:
            seen = fields.setdefault(name, set())
            seen.update(as_list(names)[: _MOST_NAMES_SEEN - len(seen)])


def _measured(content: bytes) -> tuple[int, int]:
    """Sampling rate in Hz and number of samples of a recording, as training will find them."""
    rate, length = measured_length(content)
    if not 0 < length <= _MOST_BYTES:
        raise BadAudio(f"it has {length} samples; expected 1 to {_MOST_BYTES}")
    return rate, length


def _native_labels(said: object, places: Mapping[str, str]) -> dict[str, Names] | None:
    """Label key -> names, of a JSON; None if it is not about a sample's labels. What has a place of its own is not."""
    labels = said.get("labels") if isinstance(said, dict) else None
    if not isinstance(said, dict) or not isinstance(labels, dict) or not isinstance(said.get("key", ""), str):
        return None
    labels = {
        key: value for key, value in labels.items() if key not in places and f"labels.{key}" not in places.values()
    }
    for key, value in labels.items():
        names = value if isinstance(value, list) else [value]
        if not all(isinstance(name, str) and name and not HALVES.search(name) for name in (key, *names)):
            raise BadAudio(
                f"its label {key!r} is {str(value)[:80]!r}; expected a name or a list of names: `--label "
                f"{key}=labels.{key}` takes numbers as names"
            )
    return labels


def _read(file: BinaryIO, place: _Place) -> bytes:
    file.seek(place.offset)
    return file.read(place.bytes)
