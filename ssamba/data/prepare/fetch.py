"""Public archives of data sets: downloaded, checked and unpacked. Imports no torch.

A download grows in `NAME.part`, goes on there after an interruption, and gets its name once it is whole and its
checksum right; what is unpacked gets its name once all of it is there. So whatever has a name is whole, and a second
call has nothing to do.
"""

import gzip
import hashlib
import logging
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from tqdm import tqdm

from ssamba.data.shards.stores import check_driver
from ssamba.data.shards.transport import Expected, fetch_file
from ssamba.errors import UserError
from ssamba.files import whole_folder
from ssamba.progress import progress_bar

log = logging.getLogger(__name__)

_CHUNK = 1 << 20
# What an archive may become; recordings are packed to a third or more of their size.
MOST_RATIO = 100  # times its own bytes
MOST_EXTRA = 1 << 28  # and bytes more than that, for small ones
MOST_MEMBERS = 5_000_000
_MOST_HEADER = 1 << 20  # bytes of what a tar says of a member


@dataclass(frozen=True)
class Archive:
    """A public archive of a data set, or of a part of one."""

    url: str
    """Of http(s), or such as a driver of fsspec reads; a .zip or a .tar.gz."""
    folder: str
    """What it becomes: a folder, perhaps within another, which is called in the archive as it is on the disk."""
    checksum: str | None = None
    """`md5:`, `sha1:` or `sha256:` and the hex digits that are published; None: none is, and the archive's own CRCs
    must do."""
    bytes: int | None = None
    """How many it has, where that is published."""
    bare: bool = False
    """The archive holds what is in the folder, and not the folder itself."""

    @property
    def file(self) -> str:
        """What it is called on the disk, which is how a browser would save it."""
        suffix = ".zip" if urlsplit(self.url).path.endswith(".zip") else ".tar.gz"
        return PurePosixPath(self.folder).name + suffix


class _BadArchive(Exception):
    """What is wrong with it."""


# The last is what zipfile raises for an encryption or a compression that it lacks.
_DAMAGED = (_BadArchive, tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, RuntimeError)


def fetch_archives(archives: Iterable[Archive], source: Path) -> None:
    """Download and unpack the archives whose folders are not there yet. An archive that is unpacked is removed.

    Args:
        source: the folder that holds the archives' folders, or one that is called as they are, such as LibriSpeech.

    Raises:
        UserError: as `download` and `unpack`.
    """
    source = Path(os.path.realpath(source))
    for archive in archives:
        outermost = PurePosixPath(archive.folder).parts[0]
        home = source.parent if source.name == outermost else source
        if (home / archive.folder).is_dir():
            log.info("%s is there", home / archive.folder)
            continue
        path = home / archive.file
        download(archive, path)
        unpack(path, home / archive.folder, "" if archive.bare else archive.folder)
        path.unlink()


def download(archive: Archive, path: Path) -> None:
    """Download an archive to `path`; one that is there already is checked alone.

    What is cut off is gone on with, now or in another call, if the server can; otherwise it begins anew.

    Raises:
        UserError: there is no driver for its address, it cannot be had, its size or its checksum is wrong (what came is
            set aside as `NAME.bad`), there is no space, or no such place to write.
    """
    check_driver(archive.url)
    try:
        if not path.exists():
            with progress_bar(archive.bytes, "B", path.name) as bar, _what_is_left(path):
                fetch_file(archive.url, path, Expected(archive.bytes), keep=True, bar=bar)
        _check(archive, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}); what is there of it stays for the next call") from error


@contextmanager
def _what_is_left(path: Path) -> Iterator[None]:
    """A failure says what came of the download."""
    part = path.with_name(f"{path.name}.part")
    try:
        yield
    except UserError as error:
        size = part.stat().st_size if part.is_file() else 0
        left = f"{size} bytes of it are in {part}, and the same command goes on from there"
        raise UserError(
            f"{error}; {left if size else 'nothing came of it'}: is the network up, and the file still at that address?"
        ) from error


def unpack(path: Path, folder: Path, inside: str = "") -> None:
    """Unpack a .zip or .tar.gz into a new folder: all of it, or nothing.

    Args:
        inside: the folder of the archive whose contents are wanted; by default those of the archive.

    Raises:
        UserError: a damaged archive, one without that folder, or with a member that is neither a file nor a folder or
            lies outside of the archive (it is set aside as `NAME.bad`); no space.
    """
    kind = _unzip if path.suffix == ".zip" else _untar
    try:
        with whole_folder(folder) as beside:
            with progress_bar(path.stat().st_size, "B", f"unpack {path.name}") as bar:
                kind(path, beside, inside, bar)
            if not any(beside.iterdir()):
                raise _BadArchive(f"there is nothing in its folder {inside or '.'}")
    except _DAMAGED as error:
        raise UserError(f"{path} cannot be unpacked: {error}. {_set_aside(path)}") from error
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}); nothing of it is there, the archive stays"
        ) from error


def _check(archive: Archive, path: Path) -> None:
    """UserError, and the file set aside, if it is not the one that was published."""
    size = path.stat().st_size
    if archive.bytes is not None and size != archive.bytes:
        raise UserError(f"{path} has {size} bytes; expected {archive.bytes}. {_set_aside(path)}")
    if archive.checksum is None:
        return
    algorithm, _, expected = archive.checksum.partition(":")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file, progress_bar(size, "B", f"check {path.name}") as bar:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    if digest.hexdigest() != expected:
        raise UserError(f"{path} has the {algorithm} {digest.hexdigest()}; expected {expected}. {_set_aside(path)}")


def _set_aside(path: Path) -> str:
    """Rename it, so that the next call begins anew; what to tell of it."""
    bad = path.with_name(f"{path.name}.bad")
    path.replace(bad)
    return f"It is now {bad}; the same command downloads it anew"


class _Room:
    """How much an archive may still unpack: by its own size, by its members and by what the disk has free."""

    def __init__(self, path: Path, into: Path) -> None:
        self.path, self.most = path, path.stat().st_size * MOST_RATIO + MOST_EXTRA
        self.free = shutil.disk_usage(into).free
        self.bytes = self.members = 0

    def take(self, size: int) -> None:
        """Count a member of so many bytes."""
        self.bytes, self.members = self.bytes + size, self.members + 1
        if self.bytes > self.most or self.members > MOST_MEMBERS:
            raise _BadArchive(
                f"it holds more than {self.members - 1} members with {self.bytes} bytes; expected at most "
                f"{MOST_MEMBERS} with {self.most}, as data sets do"
            )
        if self.bytes > self.free:
            raise UserError(f"{self.path} unpacks to {self.bytes} bytes or more, and {self.free} are free for it")


class _Unpacked(gzip.GzipFile):
    """A tar.gz unpacked, as far as its room goes; what a tar says of its members is read in pieces of bounded size."""

    def __init__(self, raw: BinaryIO, room: _Room) -> None:
        super().__init__(fileobj=raw, mode="rb")
        self._most = room.most + MOST_MEMBERS * tarfile.BLOCKSIZE * 2

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0 or size > _MOST_HEADER:
            raise _BadArchive(f"a header in it has {size} bytes; expected at most {_MOST_HEADER}")
        if self.tell() > self._most:
            raise _BadArchive(f"it unpacks to more than {self._most} bytes")
        return super().read(size)


def _untar(path: Path, into: Path, inside: str, bar: "tqdm[Any]") -> None:
    room = _Room(path, into)
    with path.open("rb") as raw, _Unpacked(raw, room) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
        for member in archive:
            room.take(member.size)
            name = _wanted(member.name, inside)
            if not (member.isfile() or member.isdir()):
                raise _BadArchive(f"{member.name!r} in it is neither a file nor a folder")
            if name:
                archive.extract(member.replace(name=name), into, filter="data")
            bar.update(raw.tell() - bar.n)
        while stream.read(_CHUNK):  # up to the checksum at the end
            pass


def _unzip(path: Path, into: Path, inside: str, bar: "tqdm[Any]") -> None:
    room = _Room(path, into)
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            room.take(member.file_size)
        for member in archive.infolist():
            name = _wanted(member.filename, inside)
            kind = member.external_attr >> 28  # of a Unix mode: 0 if there is none, 4 for a folder, 8 for a file
            if kind not in (0, 4, 8):
                raise _BadArchive(f"{member.filename!r} in it is neither a file nor a folder")
            if name:
                member.filename = name + "/" * member.is_dir()
                archive.extract(member, into)
            bar.update(member.compress_size)


def _wanted(name: str, inside: str) -> str:
    """A member's name within the folder that is wanted; empty if it is not in there."""
    path, wanted = PurePosixPath(name), PurePosixPath(inside).parts
    if path.is_absolute() or ".." in path.parts:
        raise _BadArchive(f"{name!r} in it lies outside of it")
    return "/".join(path.parts[len(wanted) :]) if path.parts[: len(wanted)] == wanted else ""
