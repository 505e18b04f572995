"""The shards that a recipe names: in folders, by patterns, at urls; those with an index, and those without. Imports no
torch."""

import glob
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssamba.data.shards.index import (
    DESCRIPTIONS_NAME,
    INDEX_NAME,
    MAKE_AGAIN,
    MOST_BYTES,
    SAMPLE,
    SAMPLES_NAME,
    Samples,
    Shard,
    ShardIndex,
    ShardSet,
    same_seconds,
)
from ssamba.data.shards.stores import Listed, check_driver
from ssamba.data.shards.transport import Expected, fetch_into_cache, listed_folder, read, remote_files
from ssamba.data.shards.urls import (
    expand_braces,
    expand_remote,
    file_name,
    has_wildcard,
    is_by_driver,
    is_shard_name,
    renamed,
)
from ssamba.errors import UserError
from ssamba.printable import LEFT_OUT, masked, printable
from ssamba.values import is_remote

STREAMED = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
"""How the names of shards end that are read without an index."""


@dataclass(frozen=True)
class _Folder:
    """A folder of shards, local or remote, of which all or some are used."""

    place: str
    index: ShardIndex
    samples: Path
    """The table beside the index."""
    shards: tuple[Shard, ...]
    """All that the index lists; not known yet to be there."""


def default_cache() -> Path:
    """The default folder of fetched shards: in XDG_CACHE_HOME, else in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "ssamba", "shards").expanduser()


def find_shards(sources: str | Sequence[str], cache: str | Path | None = None) -> ShardSet:
    """The shards that `sources` name, checked against their indexes by name and size alone: no shard is opened or
    fetched.

    The index of a remote folder is fetched each time, its table where the cache does not have it.

    Args:
        sources: each a split's folder (all shards that its index lists), a .tar, or a pattern of those with
            wildcards (*, ?, [...]) or braces ({000000..000009}). The index of a .tar is the one beside it. Or the same
            at a url that a driver of fsspec reads, such as s3://BUCKET/FOLDER. Or, with braces alone:
            http(s)://HOST/FOLDER/, http(s)://HOST/FOLDER/000000.tar, `pipe:COMMAND .../000000.tar`, a command of the
            shell that writes that file to its stdout and, with the name changed, any other of its folder;
            .../index.json stands for all shards.
        cache: folder for what is fetched; None: `default_cache`.

    Raises:
        UserError: nothing is found, an index is missing or damaged, a shard is missing, truncated, empty, unlisted or
            given twice, the sampling rates differ, a driver is missing, or an index cannot be fetched.
    """
    kept = Path(os.path.abspath(Path(cache).expanduser() if cache else default_cache()))
    folders: dict[str, _Folder] = {}
    shards: dict[Path, Shard] = {}
    for source in _source_list(sources):
        try:
            named = list(_remote_shards(source, folders, kept) if is_remote(source) else _local_shards(source, folders))
        except OSError as error:  # no permission, or a name that is too long
            place = printable(str(error.filename or source))
            raise UserError(f"{place[:1000]} cannot be read ({error.strerror}); expected a folder of shards") from error
        for shard in named:
            if shard.path in shards:
                raise UserError(f"{shard.place} is given twice, again by {source!r}; expected each shard once")
            shards[shard.path] = shard
    rates = {folder.index.sampling_rate: place for place, folder in folders.items()}
    if len(rates) > 1:
        listed = ", ".join(f"{rate} Hz in {place}" for rate, place in sorted(rates.items()))
        raise UserError(f"the shards have different sampling rates ({listed}); expected one: {MAKE_AGAIN}")
    indexes = {place: folder.index for place, folder in folders.items()}
    return ShardSet(tuple(shards.values()), indexes, _table(shards, folders.values()))


def _source_list(sources: str | Sequence[str]) -> list[str]:
    """UserError if there are none, or one of them needs a driver that is not there: before any is looked for."""
    listed = [sources] if isinstance(sources, str) else list(sources)
    if not listed:
        raise UserError("no shards are given; expected a folder of shards, a .tar or a pattern of .tar files")
    for source in filter(is_remote, listed):
        check_driver(source)
    return listed


def _expand(source: str, endings: tuple[str, ...] = (".tar",)) -> Iterator[Path]:
    """The absolute paths of folders and shards that a source stands for; without a wildcard they may be missing."""
    whole = os.path.abspath(os.path.expanduser(source))
    # A name may hold the characters of a pattern.
    for pattern in [whole] if os.path.exists(whole) else expand_braces(whole):
        if os.path.exists(pattern) or not glob.has_magic(pattern):
            yield Path(pattern)
            continue
        matches = [path for path in sorted(glob.glob(pattern)) if path.endswith(endings) or os.path.isdir(path)]
        if not matches:
            raise UserError(f"{source!r} matches no .tar and no folder; expected a pattern of shards, or their folder")
        yield from map(Path, matches)


def _local_shards(source: str, folders: dict[str, _Folder]) -> Iterator[Shard]:
    """The shards that paths stand for; their folders are added to `folders`."""
    for path in _expand(source):
        single = path.suffix == ".tar" and not path.is_dir()
        if single and not path.exists():
            raise UserError(f"the shard {path} is missing; expected a file")
        if not single and not path.is_dir():
            raise UserError(
                f"{path} is no folder and no .tar; expected a folder of shards, a .tar or a pattern of them"
            )
        folder = path.parent if single else path
        if str(folder) not in folders:
            index = ShardIndex.read(folder)
            described = Shard(folder / DESCRIPTIONS_NAME, index.descriptions.info) if index.descriptions else None
            if described:
                _check_size(described)
            listed = tuple(Shard(folder / info.name, info, None, described) for info in index.shards)
            folders[str(folder)] = _Folder(str(folder), index, folder / SAMPLES_NAME, listed)
        yield from _named(folders[str(folder)], path.name if single else None)


def _remote_shards(source: str, folders: dict[str, _Folder], cache: Path) -> Iterator[Shard]:
    """The shards that urls or commands stand for; their folders are added to `folders`."""
    for url in remote_files(source):
        place, name = renamed(url, INDEX_NAME), file_name(url)
        if place not in folders:
            folders[place] = _fetched(place, cache)
        yield from _named(folders[place], None if name == INDEX_NAME else name)


def _fetched(place: str, cache: Path) -> _Folder:
    """The folder whose index a url or a command gives. In the cache a file's name is the sha256 of its content: what is
    there is right, and a new index finds what it has in common with the old one."""
    try:
        written = read(place, MOST_BYTES)
    except UserError as error:
        raise UserError(f"{error}; expected the {INDEX_NAME} that a writer puts beside its shards") from error
    index = ShardIndex.parse(written, place)
    # These become parts of urls, of commands and of paths in the cache.
    for name in (info.name for info in index.shards):
        if not is_shard_name(name):
            raise UserError(f"{place} lists {name!r}; expected a name of letters, digits, '.', '_', '-' and then .tar")
    samples = cache / f"{index.samples_sha256}.npy"
    expected = Expected(None, index.most_table_bytes, index.samples_sha256)
    fetch_into_cache(renamed(place, SAMPLES_NAME), samples, expected)
    described = None
    if descriptions := index.descriptions:
        described = Shard(cache / f"{descriptions.sha256}.jsonl", descriptions.info, renamed(place, DESCRIPTIONS_NAME))
    listed = tuple(
        Shard(cache / f"{info.sha256}.tar", info, renamed(place, info.name), described) for info in index.shards
    )
    return _Folder(place, index, samples, listed)


def _named(folder: _Folder, name: str | None) -> Iterator[Shard]:
    """The shards of a folder, or the one of that name, each there in its size."""
    shards = [shard for shard in folder.shards if name is None or shard.info.name == name]
    if not shards:
        what = f"does not list {name}" if name else "lists no shards"
        raise UserError(f"{folder.place}: {INDEX_NAME} {what}; expected a shard that its writer made: {MAKE_AGAIN}")
    for shard in shards:
        if not shard.info.samples:
            raise UserError(
                f"the shard {printable(shard.place)} is empty ({shard.info.bytes} bytes, 0 samples); {MAKE_AGAIN}"
            )
        _check_size(shard)
        yield shard


def _table(shards: Iterable[Path], folders: Iterable[_Folder]) -> Samples:
    """The rows of these shards, each checked to lie within its shard."""
    rows: dict[Path, Samples] = {}
    for folder in folders:
        samples = folder.index.read_samples(folder.samples)
        ends = np.cumsum([shard.info.samples for shard in folder.shards])
        for shard, part in zip(folder.shards, np.split(samples, ends[:-1]), strict=True):
            if problem := _misfit(part, shard, folder.index.sampling_rate):
                raise UserError(f"{folder.place}: {SAMPLES_NAME} {problem}: {MAKE_AGAIN}")
            rows[shard.path] = part
    return np.concatenate([rows[path] for path in shards])


def _misfit(rows: Samples, shard: Shard, sampling_rate: int) -> str | None:
    """What of a shard's rows cannot be, if anything."""
    name = printable(shard.info.name)
    if any(rows[column].min(initial=0) < 0 for column in SAMPLE.names or ()):
        return f"names places outside of {name}"
    for part, holder in (("audio", shard), ("json", shard.descriptions or shard)):
        if (rows[part] > holder.info.bytes - rows[f"{part}_bytes"]).any():
            return f"names places outside of {printable(holder.info.name)}"
    if rows["length"].min(initial=1) < 1:
        return f"has a sample of {name} without a length"
    seconds = float(rows["length"].sum(dtype=np.int64)) / sampling_rate
    if not same_seconds(seconds, shard.info.seconds):
        return f"has {seconds:.3f} s of {name}; its {INDEX_NAME} expects {shard.info.seconds:.3f} s"
    return None


def _check_size(shard: Shard) -> None:
    """UserError if a shard, or what else an index lists, is missing or has another size; a remote one is checked when
    it is fetched."""
    info, path = shard.info, printable(str(shard.path))
    try:
        size = info.bytes if shard.url else shard.path.stat().st_size
    except FileNotFoundError as error:
        raise UserError(
            f"the shard {path} is missing, but its {INDEX_NAME} lists it: copy it again, or {MAKE_AGAIN}"
        ) from error
    if size == 0:
        raise UserError(f"the shard {path} is empty ({size} bytes, {info.samples} samples); {MAKE_AGAIN}")
    if size != info.bytes:
        raise UserError(
            f"the shard {path} has {size} bytes; its {INDEX_NAME} expects {info.bytes}, so it is truncated or of "
            f"another making: copy it again, or {MAKE_AGAIN}"
        )


# Without an index


@dataclass(frozen=True)
class ShardList:
    """Shards of which nothing is known but where they are: absolute paths, urls and commands, in the recipe's order.

    fingerprint: of their names, and of the sizes of the local ones; sha256, in hex. local: all are.
    """

    urls: tuple[str, ...]
    fingerprint: str
    local: bool


def list_shards(sources: str | Sequence[str]) -> ShardList:
    """The shards that `sources` name; none is opened.

    Args:
        sources: each a folder (all shards in it), a shard, or a pattern of shards with wildcards or braces; the same at
            a url that a driver of fsspec reads; or, with braces alone, the url of a shard at a web server, or `pipe:`
            and a command that writes one.

    Raises:
        UserError: none are there, one is missing or given twice, they cannot be listed, or a driver is missing.
    """
    urls: list[str] = []
    for source in _source_list(sources):
        urls += _listed_remote(source) if is_remote(source) else _listed_local(source)
    if len(set(urls)) < len(urls):
        again, _ = Counter(urls).most_common(1)[0]
        raise UserError(f"{masked(again)} is given twice; expected each shard once")
    lines = [masked(url) if is_remote(url) else f"{Path(url).name} {os.path.getsize(url)}" for url in urls]
    fingerprint = hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()
    return ShardList(tuple(urls), fingerprint, not any(map(is_remote, urls)))


def _listed_remote(source: str) -> Iterator[str]:
    if LEFT_OUT in source:
        expand_remote(source)  # which complains of it
    for url in expand_braces(source, escape=False):
        named = url.partition("?")[0].endswith(STREAMED)
        if has_wildcard(url):
            urls = [one for one in remote_files(url) if one.endswith(STREAMED)]
        elif is_by_driver(url) and not named:
            urls = [one.url for one in list_folder(url) if one.name.endswith(STREAMED)]
        else:
            urls = [url] if named or url.startswith("pipe:") else []
        if not urls:
            raise UserError(
                f"{masked(url)!r} is no shard; without an index all are named, such as .../{{000000..000099}}.tar: "
                f"expected {', '.join(STREAMED)}, or where they can be listed their folder"
            )
        yield from urls


def _listed_local(source: str) -> Iterator[str]:
    for path in _expand(source, STREAMED):
        shards = [one.url for one in list_folder(path) if one.name.endswith(STREAMED)] if path.is_dir() else [str(path)]
        if not shards or not os.path.exists(shards[0]):
            raise UserError(f"{source!r}: {path} has no {', '.join(STREAMED)}; expected shards, or their folder")
        yield from shards


def list_folder(folder: Path | str) -> list[Listed]:
    """The files and folders in a folder, here or at a url, by their names.

    Raises:
        UserError: it cannot be listed, as by http and by a command, or it is not there.
    """
    if isinstance(folder, str):
        return listed_folder(folder)
    try:
        with os.scandir(folder) as entries:
            children = [one for one in entries if one.is_file() or one.is_dir()]
            return sorted(Listed(one.path, one.stat().st_size, one.is_dir()) for one in children)
    except OSError as error:
        place = error.filename or folder
        raise UserError(f"{place} cannot be read ({error.strerror}); expected a folder of shards") from error
