"""Remote files, fetched and put: by http(s), by a command (`pipe:`), or by a driver of fsspec.

A transfer is tried again with growing waits, is bounded where nothing comes any more, and gives a file under its final
name only once its content is what was expected. Imports no torch.
"""

import errno
import fcntl
import hashlib
import io
import logging
import os
import random
import shutil
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tqdm import tqdm

from ssamba.data.shards.pieces import CHUNK, pieces
from ssamba.data.shards.stores import Failed, Listed, Piece, Store, Wrong, check_writable
from ssamba.data.shards.urls import expand_remote, has_wildcard, is_by_driver
from ssamba.errors import UserError
from ssamba.files import open_unlinked
from ssamba.printable import masked

log = logging.getLogger(__name__)

Result = TypeVar("Result")

ATTEMPTS = 5  # in a row that bring nothing new
WRONG_ATTEMPTS = 2  # of those whose answer was wrong, not missing: HTTP 404, another sha256
FIRST_WAIT_SECONDS = 1.0  # doubled after each such attempt, times a random number from 0.5 to 1.5
_MOST_ATTEMPTS = 1000  # whatever they bring

_Content = io.BufferedRandom | io.BytesIO


class Expected(NamedTuple):
    """What is known of a file before it is fetched."""

    bytes: int | None = None
    most_bytes: int = 1 << 42
    """That it may have, where their number is not known."""
    sha256: str | None = None
    """In hex."""


class DiskFull(UserError):
    """What is fetched finds no room."""


class Cancelled(Exception):
    """A fetch was no longer wanted; nothing of it is left."""


def remote_files(source: str) -> list[str]:
    """The urls and commands, each of one .tar or of an index.json, that a source stands for; those of wildcards as they
    are listed, in the order of their names.

    Raises:
        UserError: as `expand_remote`, or a pattern that matches nothing or cannot be listed.
    """
    places = []
    for url in expand_remote(source):
        if not has_wildcard(url):
            places.append(url)
            continue
        listed = _attempted(url, "listed", Store(url.removesuffix("/index.json")).matching)
        urls = [f"{one.url.rstrip('/')}/index.json" if one.is_folder else one.url for one in listed]
        named = [url for url in urls if url.endswith((".tar", "/index.json"))]
        if not named:
            raise UserError(f"{url!r} matches no .tar and no folder; expected a pattern of shards, or their folder")
        places += named
    return places


def listed_folder(url: str) -> list[Listed]:
    """What is in a folder, by its names.

    Raises:
        UserError: it cannot be listed, as by http and by a command, or it is not there.
    """
    if not is_by_driver(url):
        raise UserError(f"{url!r} cannot be listed; expected a folder, or a url whose files have a list, such as s3://")
    return _attempted(url, "listed", lambda: Store(url).files())


def read(url: str, most_bytes: int) -> bytes:
    """The content of a small file; UserError after the last attempt, or if it has more bytes than expected."""
    content = io.BytesIO()
    _receive(url, content, Expected(None, most_bytes))
    return content.getvalue()


def opened(url: str) -> io.BufferedReader:
    """A file that is read once, from front to back, over as many connections as that takes.

    Reading it raises UserError after the last attempt, or if the file changes meanwhile, where that is known.
    """
    return io.BufferedReader(_Stream(url), CHUNK)


def read_if_there(url: str, most_bytes: int) -> bytes | None:
    """As `read`, of a url that a driver reads; None if there is no such file."""
    return read(url, most_bytes) if bytes_of(url) is not None else None


def bytes_of(url: str) -> int | None:
    """The size of a file that a driver reads; None: there is none."""
    return _attempted(url, "looked for", lambda: Store(url).bytes())


def files_below(url: str) -> list[str]:
    """The names of all files below a folder, relative to it; none if there is no such folder."""
    return _attempted(url, "listed", lambda: Store(url).all_files())


def put(path: Path, url: str) -> None:
    """Make a remote file of a local one: it has its name there once it is whole; UserError after the last attempt,
    or if nothing can be written to such urls."""
    check_writable(url)
    _attempted(url, "written", lambda: Store(url).put(path))


def put_bytes(content: bytes, url: str) -> None:
    """As `put`."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        put(Path(file.name), url)


def move(url: str, new: str) -> None:
    """Rename a remote file; UserError after the last attempt."""
    _attempted(url, "renamed", lambda: Store(url).move(Store(new)))


def remove(url: str) -> None:
    """Remove a remote file, or a folder and what is in it, if there is one; UserError after the last attempt."""
    _attempted(url, "removed", lambda: Store(url).remove())


def fetch_file(
    url: str,
    path: Path,
    expected: Expected,
    *,
    wait: bool = True,
    keep: bool = False,
    bar: "tqdm[Any] | None" = None,
    cancelled: threading.Event | None = None,
) -> bool:
    """Fetch a file, unless it is there; once, however many processes and threads of a machine ask for it.

    It is written to `path`.part, which whoever fetches has locked, and renamed once its size and sha256 are right. A
    process that is killed leaves no lock, and the next fetch goes on where it ended, if a server can do that.

    Args:
        url: of one file.
        wait: for another process that is fetching it.
        keep: what came until the last attempt failed stays in `path`.part.
        bar: counts its bytes.
        cancelled: once it is set, the fetch ends at the next bytes that come, or in the wait between two attempts.

    Returns:
        Whether it is there now: False only without `wait`.

    Raises:
        Cancelled: `cancelled` was set.
        UserError: the last attempt failed.
        OSError: there is no room, or the folder of `path` cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    while not path.exists():
        with locked(part, wait) as file:
            if file is None:
                return False
            try:
                if path.exists():
                    part.unlink()
                    break
                _receive(url, file, expected, bar, cancelled, part.parent)
                file.flush()
                os.fsync(file.fileno())
                part.replace(path)
            except BaseException:
                if not keep or not file.seek(0, os.SEEK_END):
                    part.unlink(missing_ok=True)
                raise
    return True


def fetch_into_cache(
    url: str, path: Path, expected: Expected, *, wait: bool = True, cancelled: threading.Event | None = None
) -> bool:
    """As `fetch_file`, into the folder of data.cache.

    Raises:
        DiskFull: there is no room. UserError: the folder cannot be used. And what else `fetch_file` raises but OSError.
    """
    try:
        return fetch_file(url, path, expected, wait=wait, cancelled=cancelled)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"{path.parent} has no room left for {url}: free some, set data.cache to a folder on a larger disk, or "
                "data.cache_gigabytes to less"
            ) from error
        raise UserError(
            f"the cache {path.parent} cannot be used ({error}); set data.cache to a folder on a local disk"
        ) from error


@contextmanager
def locked(part: Path, wait: bool) -> Iterator[io.BufferedRandom | None]:
    """A file opened to be read and written by this thread alone, made if it is not there; None if it is another's and
    `wait` is False. Whoever removes or renames it must hold it."""
    while True:
        with open_unlinked(part) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield None
                return
            try:
                # Who held it before has renamed or removed it, if another file has its name now, or none.
                if _is_named(file, part):
                    yield file
                    return
            finally:
                # Closing is not enough: a process that was forked meanwhile has it open, too.
                fcntl.flock(file, fcntl.LOCK_UN)


def _is_named(file: io.BufferedRandom, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _attempted(
    url: str,
    done: str,
    attempt: Callable[[], Result],
    reached: Callable[[], int] = lambda: 0,
    cancelled: threading.Event | None = None,
) -> Result:
    """What an attempt gives, in as many as are allowed.

    Args:
        done: what could not be done, for the message.
        reached: how far an attempt has come; those that get further than all before them do not count.

    Raises:
        UserError: the last attempt failed, or the first of which another mends nothing.
    """
    cancelled = cancelled or threading.Event()
    most, failures, wrong = reached(), 0, 0
    for count in range(1, _MOST_ATTEMPTS + 1):
        try:
            return attempt()
        except Failed as error:
            # A server that begins anew each time brings bytes, and nothing new.
            most, failures = max(most, reached()), 1 if reached() > most else failures + 1
            wrong += isinstance(error, Wrong)
            if failures == ATTEMPTS or wrong == WRONG_ATTEMPTS or count == _MOST_ATTEMPTS:
                times = f"{count} attempts" if count > 1 else "one attempt"
                raise UserError(masked(f"{url} could not be {done} in {times}; the last: {error}")) from error
            # Not from the seeded generator: other draws must not depend on a network.
            wait = FIRST_WAIT_SECONDS * 2 ** (failures - 1) * random.SystemRandom().uniform(0.5, 1.5)
            log.warning("%s", masked(f"{url}: attempt {count} of {ATTEMPTS}: {error}; again in {wait:.1f} s"))
            cancelled.wait(wait)
    raise AssertionError("the last attempt returns or raises")


def _receive(
    url: str,
    into: _Content,
    expected: Expected,
    bar: "tqdm[Any] | None" = None,
    cancelled: threading.Event | None = None,
    folder: Path | None = None,
) -> None:
    """Fill a file with what a url gives; `folder`, in which it is, must have the room."""

    def reached() -> int:
        return into.seek(0, os.SEEK_END)

    def attempt() -> None:
        _attempt(url, into, expected, bar, cancelled or threading.Event(), folder)

    _attempted(url, "fetched", attempt, reached, cancelled)


def _attempt(
    url: str,
    into: _Content,
    expected: Expected,
    bar: "tqdm[Any] | None",
    cancelled: threading.Event,
    folder: Path | None,
) -> None:
    """Go on where the file ends, if that can be; begin anew otherwise."""
    if cancelled.is_set():
        raise Cancelled
    end = into.seek(0, os.SEEK_END)
    # What nothing is known of may be another file than in the attempt before.
    if isinstance(into, io.BytesIO) or (expected.bytes is not None and end > expected.bytes):
        end = _cut(into, 0)
    most = expected.most_bytes if expected.bytes is None else expected.bytes
    if end != expected.bytes:
        whole = None
        with closing(pieces(url, end)) as coming:
            for position, content, whole in coming:
                if cancelled.is_set():
                    raise Cancelled
                # Before anything is cut: a page instead of the file costs nothing of what is there.
                if whole is not None and (whole > most or expected.bytes not in (None, whole)):
                    raise Wrong(f"it has {whole} bytes; expected {expected.bytes or f'at most {most}'}")
                if position != end:
                    _cut(into, position)
                if bar is not None:
                    bar.total, bar.n = whole or expected.bytes, position
                if whole is not None and folder is not None and (free := shutil.disk_usage(folder).free) < whole - end:
                    raise OSError(errno.ENOSPC, f"{free} bytes are free for it; expected {whole - end}")
                end = position + len(content)
                if end > most:
                    _cut(into, 0)
                    raise Wrong(f"it is larger than the {most} bytes expected")
                into.write(content)
                if bar is not None:
                    bar.update(len(content))
        if end < (expected.bytes or whole or 0):
            raise Failed(f"it ended after {end} of {expected.bytes or whole} bytes")
    if expected.sha256 is not None:
        into.seek(0)
        digest = hashlib.file_digest(into, "sha256").hexdigest()
        if digest != expected.sha256:
            _cut(into, 0)
            raise Wrong(f"its sha256 is {digest}; the index expects {expected.sha256}")


class _Stream(io.RawIOBase):
    def __init__(self, url: str) -> None:
        self._url, self._position, self._left = url, 0, b""
        self._coming: Generator[Piece] | None = None
        self._whole: int | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._left = self._left or _attempted(self._url, "read", self._next, lambda: self._position)
        part, self._left = self._left[: len(buffer)], self._left[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)

    def _next(self) -> bytes:
        """What comes next; nothing at the end."""
        self._coming = self._coming or pieces(self._url, self._position)
        try:
            for position, content, whole in self._coming:
                self._whole = self._whole or whole
                if whole not in (None, self._whole) or (not content and position < self._position):
                    break
                # Of what is sent again, the rest.
                if new := content[self._position - position :]:
                    self._position += len(new)
                    return new
            else:
                if self._whole in (None, self._position):
                    return b""
            raise UserError(f"{masked(self._url)} changed while it was read")
        except Failed:
            self._coming = None
            raise

    def close(self) -> None:
        if self._coming is not None:
            self._coming.close()
        super().close()


def _cut(into: _Content, end: int) -> int:
    into.truncate(end)
    return into.seek(end)
