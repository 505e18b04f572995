"""Public archives of data sets: downloaded, checked and unpacked. Imports no torch.

A download grows in `NAME.part`, goes on there after an interruption, and gets its name once it is whole and its
checksum right; what is unpacked gets its name once all of it is there. So whatever has a name is whole, and a second
call has nothing to do.
"""

import errno
import gzip
import hashlib
import logging
import os
import shutil
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request

from tqdm import tqdm

from ssamba.data.transport import RedirectRefused, open_url
from ssamba.errors import UserError
from ssamba.files import open_unlinked, whole_folder
from ssamba.printable import printable
from ssamba.progress import progress_bar

log = logging.getLogger(__name__)

ATTEMPTS = 5  # in a row that bring nothing new
PAUSE = 1.0  # seconds before the second attempt, twice as many before each further one
TIMEOUT = 60.0  # seconds without a byte
_CHUNK = 1 << 20
# What an archive may become; recordings are packed to a third or more of their size.
MOST_RATIO = 100  # times its own bytes
MOST_EXTRA = 1 << 28  # and bytes more than that, for small ones
MOST_MEMBERS = 5_000_000
_MOST_HEADER = 1 << 20  # bytes of what a tar says of a member
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}  # of the disk, not of the network
_PASSING = {408, 425, 429}  # of the 4xx, those that another attempt may help


@dataclass(frozen=True)
class Archive:
    """A public archive of a data set, or of a part of one."""

    url: str
    """http, https or file; a .zip or a .tar.gz."""
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


class _CutOff(OSError):
    """Fewer bytes came than were announced."""


# The last is what zipfile raises for an encryption or a compression that it lacks.
_DAMAGED = (_BadArchive, tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, RuntimeError)


def fetch(archives: Iterable[Archive], source: Path) -> None:
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

    What is cut off is gone on with, now or in another call, if the server can; otherwise it begins anew. A failure is
    tried again after a pause, unless the server says that it is final.

    Raises:
        UserError: it cannot be had, its size or its checksum is wrong (what came is set aside as `NAME.bad`), there is
            no space, or no such place to write.
    """
    if urlsplit(archive.url).scheme not in ("http", "https", "file"):
        raise UserError(f"{archive.url} cannot be fetched; expected an address with http, https or file")
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _check(archive, path)
            return
        open_unlinked(part).close()
        with progress_bar(archive.bytes, "B", path.name) as bar:
            _complete(archive, part, bar)
        _check(archive, part)
        part.rename(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}); what is there of it stays for the next call") from error


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


def _complete(archive: Archive, part: Path, bar: "tqdm[Any]") -> None:
    """Go on with a partial download until it is whole."""
    most, failures = part.stat().st_size, 0
    while True:
        try:
            _receive(archive, part, bar)
            return
        except (OSError, HTTPException) as error:
            if isinstance(error, OSError) and error.errno in _DISK:
                raise
            final = isinstance(error, HTTPError) and 300 <= error.code < 500 and error.code not in _PASSING
            reached = part.stat().st_size
            # A server without ranges begins anew each time, so that bytes alone are no progress.
            most, failures = max(most, reached), 1 if reached > most else failures + 1
            if final or failures >= ATTEMPTS:
                left = f"{reached} bytes of it are in {part}, and the same command goes on from there"
                if not reached:
                    part.unlink()
                    left = "nothing came of it"
                raise UserError(
                    f"{archive.url} cannot be downloaded: {error}; {left}: is the network up, and the file still at "
                    "that address?"
                ) from error
            log.warning("%s: %s; trying again", part.name, error)
            time.sleep(PAUSE * 2 ** (failures - 1))


def _receive(archive: Archive, part: Path, bar: "tqdm[Any]") -> None:
    """One request, for what is missing."""
    start = part.stat().st_size
    if start == archive.bytes:
        return
    # Without compression on the way, which some servers would otherwise apply.
    headers = {"User-Agent": "ssamba", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        response = open_url(Request(archive.url, headers=headers), TIMEOUT)
    except RedirectRefused as error:
        raise UserError(f"{archive.url} cannot be downloaded: {printable(str(error))}") from error
    except HTTPError as error:
        if error.code != 416:  # nothing there from that byte on
            raise
        if error.headers.get("Content-Range") != f"bytes */{start}":
            with open_unlinked(part) as file:
                file.truncate(0)
            raise _CutOff("what was there did not fit") from error
        return
    with response, open_unlinked(part) as file:
        if response.status != 206:  # it sends all of it, asked for a part or not
            start = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            file.truncate()
            raise _CutOff("the server sent another part than it was asked for")
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        if archive.bytes is not None and total is not None and total != archive.bytes:
            raise UserError(f"{archive.url} has {total} bytes; expected {archive.bytes}: it is not the published file")
        if total is not None and total - start > (free := shutil.disk_usage(part.parent).free):
            raise UserError(f"{part.parent} has {free} bytes free; expected {total - start}, for {archive.url}")
        bar.total, bar.initial, bar.n = total or archive.bytes, start, start
        file.seek(start)
        file.truncate()  # not before: an error page instead of the file costs nothing of what is there
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
        if total is not None and file.tell() < total:
            raise _CutOff(f"it was cut off after {file.tell()} of {total} bytes")


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
    bad = path.with_name(f"{path.name.removesuffix('.part')}.bad")
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
