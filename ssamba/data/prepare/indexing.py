"""The index of shards that another program wrote, or an older version of this one. Imports no torch.

A sample is `<key>.<extension>` with audio that `ssamba.recordings` reads, and perhaps `<key>.json`, as webdataset has
it: the key is a member's name up to the first dot after its folder. Nothing is unpacked, and nothing but the index is
written. A JSON counts if it has "labels", a mapping of a label's key to a name or a list of names, and no "key" that is
no text; one without these, or with other types, is passed over, as are members of other kinds:
the index says how many of which.

Labels in other places, in members such as `<key>.cls` or in other fields of the JSON, are read where `fields` names
them. They are written, with the keys, into labels.jsonl beside the index: a line is what a sample's JSON would be.
"""

import hashlib
import json
import logging
import os
import re
import shlex
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from ssamba.data.prepare.elsewhere import probe
from ssamba.data.prepare.scanning import MOST_FIELDS, MOST_NAMES, SAME_KEY, Job, Scanned, key_of, scan
from ssamba.data.prepare.writer import MAX_BAD_FRACTION
from ssamba.data.shards.descriptions import TEXT_LABEL, as_list
from ssamba.data.shards.features import FeatureInfo
from ssamba.data.shards.finding import list_folder
from ssamba.data.shards.index import (
    DESCRIPTIONS_NAME,
    INDEX_NAME,
    SAMPLE,
    SAMPLES_NAME,
    SAMPLING_RATES,
    Descriptions,
    ShardIndex,
    ShardInfo,
    Skipped,
    Text,
    write_samples,
)
from ssamba.data.shards.stores import Listed, check_writable
from ssamba.data.shards.transport import put, read_if_there
from ssamba.data.shards.urls import is_shard_name
from ssamba.errors import UserError
from ssamba.files import MOST_BYTES, Count, parse_json, read_bounded, written_beside
from ssamba.jobs import processes, run_jobs
from ssamba.printable import printable
from ssamba.progress import progress_bar
from ssamba.values import is_remote

log = logging.getLogger(__name__)

_NAMED = 3  # problems that an error names
_SHOWN = 3  # names of what may be a label
# What a file is compressed by: how it begins, and the command that makes a tar of it.
_COMPRESSED = {b"\x1f\x8b": "gz", b"\xfd7zXZ\0": "xz", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zst", b"PK\3\4": "zip"}
_COMMANDS = {"gz": "gunzip", "xz": "unxz", "bz2": "bunzip2", "zst": "unzstd"}
_ARCHIVE = re.compile(r"(?P<stem>.*?)\.(?:(?:tar\.|t)(?P<kind>gz|xz|bz2|zst)|tbz|zip)")

Labels = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Indexed:
    """An index that was made, and what to report about it."""

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
        labels: label key -> names in the order of their indices. Of a key that is missing here, those of the index that
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
    shards, passed_over = _shards_in(folder)
    before = _replaced(folder, overwrite)
    if not 0 <= max_bad_fraction <= 1:
        raise UserError(f"max bad fraction: {max_bad_fraction:g} is given; expected 0 to 1")
    if isinstance(folder, str):
        probe(folder)
    elif not os.access(folder, os.W_OK):
        raise UserError(f"{folder} cannot be written to; expected a place for {INDEX_NAME}")
    earlier = before.descriptions.fields if before and before.descriptions else {}
    fields = earlier if fields is None else fields
    # A label that is now found elsewhere has other names.
    lists = before.labels if before else {}
    kept = {key: names for key, names in lists.items() if names and earlier.get(key) == fields.get(key)}
    rate, scanned, bad = _of_one_rate(_scan_all([Job(shard, fields) for shard in shards], workers), max_bad_fraction)
    for shard in scanned:
        passed_over += shard.passed_over
    scanned = [shard for shard in scanned if shard.rows]
    if not scanned:
        raise UserError(f"no sample of {folder} can be used; expected <key>.flac or the like in its shards")
    if not SAMPLING_RATES[0] <= rate <= SAMPLING_RATES[1]:
        raise UserError(
            f"the recordings in {folder} have {rate} Hz; expected {SAMPLING_RATES[0]} to {SAMPLING_RATES[1]}"
        )
    seen = _merged_fields(scanned)
    unlabelled = _unlabelled(scanned, fields, seen, folder)
    whole = folder.resolve() if isinstance(folder, Path) else PurePosixPath(folder)
    names = (before.dataset, before.split) if before else (whole.parent.name, whole.name)
    listed = _label_lists(scanned, {**kept, **(labels or {})})
    infos = (
        ShardInfo(one.name, len(one.rows), sum(row.length for row in one.rows) / rate, one.bytes, one.sha256)
        for one in scanned
    )
    index = ShardIndex(*names, rate, listed, tuple(bad), tuple(infos), "", dict(sorted(passed_over.items())))
    if before:
        index = replace(index, above_full_scale=before.above_full_scale, features=before.features)
    try:
        if isinstance(folder, Path):
            return Indexed(_write(folder, index, scanned, fields), unlabelled, seen)
        with tempfile.TemporaryDirectory() as name:
            index = _write(Path(name), index, scanned, fields)
            for file in (DESCRIPTIONS_NAME, SAMPLES_NAME, INDEX_NAME):
                if (path := Path(name, file)).exists():
                    put(path, f"{folder}/{file}")
            return Indexed(index, unlabelled, seen)
    except OSError as error:
        raise UserError(f"the index cannot be written to {folder}: {error}") from error


def _shards_in(folder: Path | str) -> tuple[list[Listed], Counter[str]]:
    """The .tar files in a folder, and what else in it is passed over.

    Raises:
        UserError: none, compressed ones, names that cannot be, or a folder that cannot be read or written to.
    """
    if isinstance(folder, str):
        check_writable(folder)
    elif not folder.is_dir():
        raise UserError(f"{printable(str(folder))} is no folder; expected one of .tar files")
    entries = list_folder(folder)
    files = [one for one in entries if not one.is_folder]
    shards = [one for one in files if one.name.endswith(".tar")]
    try:
        _refuse_compressed(files, shards)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); expected .tar files") from error
    nested = [one.url for one in entries if one.is_folder and any(map(_is_shard, _below(one.url)))]
    folders = " and ".join(map(shlex.quote, nested[:_NAMED])) + (", ..." if nested[_NAMED:] else "")
    if not shards:
        advice = f"its folders have: give {folders}, one after the other"
        expected = "expected shards, or a split's folder of them"
        raise UserError(f"{printable(str(folder))} has no .tar; {advice if nested else expected}")
    if nested:
        log.warning("the shards in %s are passed over: an index is of one folder", printable(folders))
    for one in shards:
        if printable(one.name) != one.name:
            raise UserError(f"{printable(one.url)} has a name that cannot be shown or written; expected another name")
        if is_remote(one.url) and not is_shard_name(one.name):
            raise UserError(f"{one.url} should have a name of letters, digits, '.', '_', '-' and then .tar: rename it")
    return shards, Counter({"folders of shards": len(nested)} if nested else {})


def _below(folder: str) -> list[Listed]:
    return list_folder(folder if is_remote(folder) else Path(folder))


def _is_shard(file: Listed) -> bool:
    return file.name.endswith(".tar") or (_ARCHIVE.fullmatch(file.name) is not None and not file.name.endswith(".zip"))


def _refuse_compressed(files: Sequence[Listed], shards: Sequence[Listed]) -> None:
    """UserError with the commands that mend it if some are compressed, by their names or, here, by how they begin."""
    commands = []
    names, here = {one.name for one in files}, not any(is_remote(one.url) for one in files)
    for one in files:
        if (parts := _ARCHIVE.fullmatch(one.name)) and (tar := f"{parts['stem']}.tar") not in names:
            kind = parts["kind"] or ("zip" if one.name.endswith("zip") else "bz2")
            commands.append(_unpacking(one.url, kind, one.url.removesuffix(one.name) + tar))
    for one in shards if here else ():
        with Path(one.url).open("rb") as file:
            begin = file.read(6)
        if kind := next((kind for magic, kind in _COMPRESSED.items() if begin.startswith(magic)), ""):
            named = f"{one.url}.{kind}" if kind != "zip" else one.url.removesuffix("tar") + kind
            commands.append(f"mv {shlex.quote(one.url)} {shlex.quote(named)} && {_unpacking(named, kind, one.url)}")
    if commands:
        how = printable("; ".join(commands[:_NAMED])) + ("; ..." if commands[_NAMED:] else "")
        raise UserError(
            f"{len(commands)} of the shards are compressed; they are read where they lie, as plain .tar files: "
            + (how if here else "unpack them there")
        )


def _unpacking(path: str, kind: str, tar: str) -> str:
    """The command that makes the tar of a compressed one."""
    if kind == "zip":
        zipped, plain, unpacked = map(shlex.quote, (path, tar, tar.removesuffix(".tar")))
        return f"unzip -q {zipped} -d {unpacked} && tar -cf {plain} -C {unpacked} . && rm -r {zipped} {unpacked}"
    return f"{_COMMANDS[kind]} {shlex.quote(path)}"


@dataclass(frozen=True)
class _Replaced:
    """What is kept from the index that is replaced, of any format."""

    dataset: Text
    split: Text
    labels: Mapping[Text, tuple[Text, ...]]
    descriptions: Descriptions | None = None
    above_full_scale: Count = 0
    features: FeatureInfo | None = None


def _replaced(folder: Path | str, overwrite: bool) -> _Replaced | None:
    """None: there is no index, or none that anything is kept of; UserError if there is one that is to stay."""
    if isinstance(folder, str):
        written = read_if_there(f"{folder}/{INDEX_NAME}", MOST_BYTES)
    else:
        written = b"" if (folder / INDEX_NAME).exists() else None
    if written is not None and not overwrite:
        raise UserError(f"{folder}/{INDEX_NAME} exists; --overwrite replaces it")
    try:
        if isinstance(folder, Path) and written is not None:
            written = read_bounded(folder / INDEX_NAME, "an index")
        return None if written is None else parse_json(written, _Replaced, INDEX_NAME, "an index")
    except UserError:
        return None


def _scan_all(jobs: Sequence[Job], workers: int) -> list[Scanned]:
    scanned: dict[str, Scanned] = {}
    with (
        progress_bar(len(jobs), "shard", "index") as bar,
        processes(workers) as executor,
        closing(run_jobs(scan, jobs, executor)) as results,
    ):
        for job, shard in results:
            scanned[job.shard.name] = shard
            bar.update()
    return [scanned[job.shard.name] for job in jobs]


def _of_one_rate(scanned: Sequence[Scanned], max_bad_fraction: float) -> tuple[int, list[Scanned], list[Skipped]]:
    """The most frequent sampling rate, the shards with its samples alone, and the samples that are left out.

    Raises:
        UserError: that is too much.
    """
    rates = Counter(row.rate for shard in scanned for row in shard.rows)
    rate = rates.most_common(1)[0][0] if rates else 0
    problems = [problem for shard in scanned for problem in shard.problems]
    rows = [(shard.name, row) for shard in scanned for row in shard.rows]
    other = [Skipped(f"{name}/{row.key}", f"has {row.rate} Hz") for name, row in rows if row.rate != rate]
    bad, total = [*problems, *other], rates.total() + len(problems)
    allowed = int(max_bad_fraction * total)
    for problem in bad:
        log.warning("%s: %s", printable(problem.source), printable(problem.why))
    if len(other) > allowed:
        one = next(f"{name}/{row.key}" for name, row in rows if row.rate == rate)
        raise UserError(
            f"{one} has {rate} Hz and {other[0].source} {other[0].why}; expected one sampling "
            "rate: unpack the shards and make them again with `ssamba prepare folder`, which resamples"
        )
    if len(bad) > allowed:
        named = "; ".join(f"{printable(one.source)}: {printable(one.why)}" for one in bad[:_NAMED])
        raise UserError(
            f"{len(bad)} of {total} samples have a problem; at most {allowed} may (max bad fraction "
            f"{max_bad_fraction:g}): copy the shards again, or raise --max-bad-fraction. The first: {named}"
            f"{_first_dot(problems)}"
        )
    kept = [replace(shard, rows=tuple(row for row in shard.rows if row.rate == rate)) for shard in scanned]
    return rate, kept, bad


def _first_dot(bad: Iterable[Skipped]) -> str:
    """What a key is, if recordings have one together."""
    for one in bad:
        if one.why.endswith(SAME_KEY):
            name = one.source.partition("/")[2]
            return (
                f". A key is a name up to the first dot after its folder, as webdataset has it: {printable(name)} has "
                f"the key {printable(key_of(name))!r}"
            )
    return ""


def _merged_fields(scanned: Iterable[Scanned]) -> dict[str, list[str]]:
    merged: dict[str, set[str]] = {}
    for shard in scanned:
        for name, names in shard.fields.items():
            if name in merged or len(merged) < MOST_FIELDS:
                merged.setdefault(name, set()).update(names)
    return {name: _sorted(names)[:MOST_NAMES] for name, names in sorted(merged.items())}


def _unlabelled(
    scanned: Sequence[Scanned], fields: Mapping[str, str], seen: Mapping[str, Sequence[str]], folder: Path | str
) -> dict[str, int]:
    """Label key -> samples without; UserError if no sample has one whose place the user named."""
    had = Counter(key for shard in scanned for row in shard.rows for key in row.description["labels"])
    for key, place in fields.items():
        if not had[key]:
            raise UserError(
                f"--label {printable(key)}={printable(place)}: no sample of {printable(str(folder))} has it; expected "
                f"a member's extension or a field of the JSON: {fields_report(seen) or 'none has a text or a number'}"
            )
    total = sum(len(shard.rows) for shard in scanned)
    return {key: total - count for key, count in sorted(had.items()) if count < total}


def fields_report(fields: Mapping[str, Sequence[str]]) -> str:
    """The fields that may be labels, in one line."""
    texts = (
        f"{name} ({len(names)}{' or more' if len(names) == MOST_NAMES else ''}: "
        f"{', '.join(one[:40] for one in names[:_SHOWN])}{', ...' if names[_SHOWN:] else ''})"
        for name, names in fields.items()
    )
    return printable("; ".join(texts))


def _label_lists(scanned: Sequence[Scanned], listed_labels: Labels) -> dict[str, tuple[str, ...]]:
    used: dict[str, set[str]] = {}
    for description in (row.description for shard in scanned for row in shard.rows):
        for key, names in description["labels"].items():
            used.setdefault(key, set()).update(as_list(names))
    for key, listed in listed_labels.items():
        if unknown := sorted(used.get(key, set()) - set(listed)):
            raise UserError(
                f"the label list {key!r} lacks {unknown[0]!r}, which a sample has; expected all of them: give the "
                "whole list with --labels"
            )
    lists = {key: [] if key == TEXT_LABEL else _sorted(names) for key, names in used.items() if names}
    return {key: tuple(names) for key, names in sorted({**lists, **listed_labels}.items())}


def _sorted(names: Iterable[str]) -> list[str]:
    """By their value if all are integers."""
    by_letters = sorted(names)
    integers = all(re.fullmatch(r"-?\d{1,18}", name, re.ASCII) for name in by_letters)
    return sorted(by_letters, key=int) if integers else by_letters


def _write(folder: Path, index: ShardIndex, scanned: Sequence[Scanned], fields: Mapping[str, str]) -> ShardIndex:
    """Write the index into a folder, itself at the end; what was written."""
    rows = [row for shard in scanned for row in shard.rows]
    table = np.array([row.place for row in rows], SAMPLE)
    if fields:
        lines = [json.dumps(row.description, ensure_ascii=False).encode() + b"\n" for row in rows]
        table["json_bytes"] = [len(line) - 1 for line in lines]
        table["json"] = np.cumsum([0, *map(len, lines[:-1])])
        content = b"".join(lines)
        with written_beside(folder / DESCRIPTIONS_NAME) as beside:
            beside.write_bytes(content)
        described = Descriptions(len(content), hashlib.sha256(content).hexdigest(), dict(fields))
        index = replace(index, descriptions=described)
    replace(index, samples_sha256=write_samples(folder, table)).write(folder)
    return ShardIndex.read(folder)
