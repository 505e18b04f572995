"""What a tar of samples holds, that any program wrote, sound or damaged: where its members begin, what their audio is
and how they are described. Imports no torch."""

import contextlib
import hashlib
import io
import json
import logging
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from ssamba.data.shards.descriptions import (
    HALVES,
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
from ssamba.data.shards.index import Skipped
from ssamba.data.shards.stores import Listed
from ssamba.data.shards.transport import Expected, fetch_file
from ssamba.errors import BadAudio
from ssamba.recordings import ENDINGS, measured_length
from ssamba.values import is_remote

log = logging.getLogger(__name__)

MOST_FIELDS = 40
"""That may be labels, of which is told."""
MOST_NAMES = 1000
"""Of such a field."""
SAME_KEY = "is a recording of the same key"

_BLOCK = tarfile.BLOCKSIZE
_MOST_BYTES = 2**31 - 1  # of a member, and samples of a recording, that the table has room for
_WORD_AT = 257  # in a header, of `ustar`
_MOST_HEADER = 1 << 16  # bytes of a member's extended header
# What tarfile makes of a header that is none, or means ill.
_DAMAGED = (tarfile.TarError, ValueError, LookupError, AttributeError, OverflowError, RecursionError)
# What lies beside recordings and is not one that something happened to.
_DOCUMENTS = {"cff", "csv", "htm", "html", "jsonl", "log", "md", "pdf", "rst", "tsv", "txt", "xml", "yaml", "yml"}

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
class Job:
    """A shard to read, and where its labels are: label key -> the extension of a member, or a field of the JSON."""

    shard: Listed
    fields: Mapping[str, str]


class Row(NamedTuple):
    """A sample: its key, its sampling rate in Hz, its row of SAMPLE and its description."""

    key: str
    rate: int
    place: tuple[int, int, int, int, int]
    description: Description

    @property
    def length(self) -> int:
        """In samples of its audio."""
        return self.place[-1]


@dataclass(frozen=True)
class Scanned:
    """What a shard holds. sha256: of the file, in hex. fields: what may be labels, member or field of the JSON -> the
    first names that occur."""

    name: str
    bytes: int
    sha256: str
    rows: tuple[Row, ...]
    problems: tuple[Skipped, ...]
    passed_over: Counter[str]
    fields: Mapping[str, frozenset[str]]


def scan(job: Job) -> Scanned:
    """Read a shard; a remote one is fetched first, and not kept."""
    shard = job.shard
    if not is_remote(shard.url):
        return _scan_file(Path(shard.url), job.fields)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, shard.name)
        fetch_file(shard.url, path, Expected(shard.bytes))
        return _scan_file(path, job.fields)


def key_of(name: str) -> str:
    """Of a member, as webdataset has it: its name up to the first dot after its folder."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _scan_file(path: Path, places: Mapping[str, str]) -> Scanned:
    problems: list[Skipped] = []
    rows: list[Row] = []
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
                    rows.append(_row(file, key, sample, places, fields))
                except BadAudio as error:
                    complain(key, str(error))
                    continue
                read = {sample.json, *map(_member, places.values())}
                passed_over.update(_kind(one) for extension, one in sample.members.items() if extension not in read)
    except OSError as error:
        complain("", f"it cannot be read: {error.strerror}")
    if not rows and not problems:
        # As other readers do: of many shards some may have got nothing.
        log.warning("%s holds no samples and is left out", path.name)
        passed_over["shards without samples"] += 1
    seen = {name: frozenset(names) for name, names in fields.items()}
    return Scanned(path.name, size, digest, tuple(rows), tuple(problems), passed_over, seen)


class _Headers:
    """A tar for tarfile to read headers from, none of which is longer than one can be."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MOST_HEADER:
            raise tarfile.HeaderError(f"it has {size} bytes; expected at most {_MOST_HEADER}")
        return self._read(size)


def _members(file: BinaryIO, size: int, complain: Complain) -> Iterator[_Place | None]:
    """The files in a tar of so many bytes; None for a damaged place, after which the next header is looked for."""
    nothing, headers = io.BytesIO(bytes(_BLOCK)), cast(Any, _Headers(file))
    with tarfile.open(fileobj=nothing, mode="r:", encoding="utf-8", errors="backslashreplace") as tar:
        tar.fileobj = headers
        at, lost, ended = 0, False, False
        while at + _BLOCK <= size:
            file.seek(at)
            if not file.read(_BLOCK).strip(b"\0"):  # the end, or one of several
                at, ended = at + _BLOCK, True
                continue
            file.seek(at)
            try:
                member = tarfile.TarInfo.fromtarfile(tar)
                name, length = member.name.removeprefix("./"), member.size
                stored = tar.offset - member.offset_data  # in whole blocks
                sparse = member.issparse() or any(key.startswith("GNU.sparse.") for key in member.pax_headers)
                end = tar.offset - _BLOCK + 1 if sparse else member.offset_data + (length if stored else 0)
                if length < 0 or stored < 0 or end > size:
                    raise ValueError(f"{name} does not end within it")
            except _DAMAGED as error:
                if not lost:
                    complain("", f"no member can be read at byte {at}: {error}")
                    yield None
                at, lost = _next_header(file, at + 1), True
                continue
            at, lost, ended = tar.offset, False, False
            if problem := _problem(member, name, sparse):
                complain(name, problem)
            elif not member.isdir():
                yield _Place(name, member.offset_data, length)
        if not ended:
            complain("", "it has no mark at its end, so something is missing")


def _problem(member: tarfile.TarInfo, name: str, sparse: bool) -> str | None:
    """Why a member cannot be used, if it cannot."""
    if sparse:
        return "it is stored as a sparse file; expected a plain one: pack it again without tar's --sparse"
    if not (member.isreg() or member.isdir()):
        return "it is a link or the like; expected a file"
    if not member.isdir() and (name.startswith("/") or ".." in name.split("/")):
        return "its name leads out of the shard's folder"
    return f"it has {member.size} bytes; expected at most {_MOST_BYTES}" if member.size > _MOST_BYTES else None


def _next_header(file: BinaryIO, begin: int) -> int:
    """Where the next header may begin, by the magic word that each has; beyond the end if there is none. Any offset is
    tried, not whole blocks alone, because bytes may be missing."""
    at, kept = begin + _WORD_AT, b""
    file.seek(at)
    while chunk := file.read(1 << 20):
        if (offset := (kept + chunk).find(b"ustar")) >= 0:
            return at - len(kept) + offset - _WORD_AT
        at, kept = at + len(chunk), chunk[-4:]
    return at


def _extension(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[2]


def _kind(member: _Place) -> str:
    """The message about a member that is passed over."""
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
            key = key_of(member.name)
            sample = samples.setdefault(key, _Sample())
            if f".{extension.rpartition('.')[2].lower()}" not in ENDINGS:
                sample.members[extension.lower()] = member
            elif sample.audio:
                complain(member.name, f"{sample.audio.name} {SAME_KEY}")
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


def _row(file: BinaryIO, key: str, sample: _Sample, places: Mapping[str, str], fields: dict[str, set[str]]) -> Row:
    """A sample; what may be its labels is added to `fields`.

    Raises:
        BadAudio: no recording that can be used, a JSON that is damaged, or labels that are none.
    """
    if sample.audio is None:
        raise BadAudio("it has no recording; expected a member that ends with .flac, .wav, .mp3 or the like")
    rate, length = measured_length(_read(file, sample.audio))
    if not 0 < length <= _MOST_BYTES:
        raise BadAudio(f"it has {length} samples; expected 1 to {_MOST_BYTES}")
    place = sample.members.get(sample.json)
    content = _read(file, place) if place else b""
    parsed = parse_foreign(content) if place else None
    labels = _native_labels(parsed, places)
    described: Description = {"key": key, "labels": {}}
    text = (0, 0)
    if isinstance(parsed, dict) and labels is not None and place:
        if places:
            own = {name: parsed[name] for name in ("key", "full_scale") if name in parsed}
            content = json.dumps({**own, "labels": labels}).encode()
        described, text = parse_description(content, key), (place.offset, place.bytes)
    for label, where in places.items():
        try:
            if member := sample.members.get(_member(where)):
                names = names_in_text(_read(file, member))
            else:
                names = None if where.startswith(".") else names_in(value_at(parsed, where))
        except BadAudio as error:
            raise BadAudio(f"its label {label!r}: {error}") from error
        if names is not None:
            described["labels"][label] = names
    _add_fields(file, sample, parsed if labels is None else None, fields)
    return Row(key, rate, (sample.audio.offset, sample.audio.bytes, *text, length), described)


def _add_fields(file: BinaryIO, sample: _Sample, parsed: object, fields: dict[str, set[str]]) -> None:
    """Note what of a sample's members and JSON may be its labels."""
    candidates: list[tuple[str, Names]] = list(label_fields(parsed))
    for extension in {"cls", "txt"} & sample.members.keys():
        with contextlib.suppress(BadAudio):
            if names := names_in_text(_read(file, sample.members[extension])):
                candidates.append((f".{extension}", names))
    for name, names in candidates:
        if name in fields or len(fields) < MOST_FIELDS:
            seen = fields.setdefault(name, set())
            seen.update(as_list(names)[: MOST_NAMES - len(seen)])


def _native_labels(parsed: object, places: Mapping[str, str]) -> dict[str, Names] | None:
    """Label key -> names, of a JSON; None if it is not about a sample's labels. What has a place of its own is not."""
    labels = parsed.get("labels") if isinstance(parsed, dict) else None
    if not isinstance(parsed, dict) or not isinstance(labels, dict) or not isinstance(parsed.get("key", ""), str):
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
