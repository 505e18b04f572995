"""Remote files by fsspec's drivers: s3://, gs://, az://, hf://, file:// and the others it has.

What a driver raises comes out as one of two: `Failed`, which another attempt may mend, and `Wrong`, which it hardly
does. Every call is bounded in time, since not every driver's are. Credentials are the driver's: they are found where it
looks for them. Imports no torch.
"""

import queue
import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import fsspec

from ssamba.data.shards.urls import has_wildcard, is_by_driver
from ssamba.errors import UserError
from ssamba.printable import masked

STALL_SECONDS = 60.0  # without a byte or an answer: the attempt has failed

# The stores of clouds, and what installs their drivers. A file appears there as a whole, once all of it is there;
# elsewhere it is written beside and renamed.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az"}
BLOCK_BYTES = 1 << 23  # bytes that are asked for at a time
_SLOWEST = 100_000  # bytes per second at which a file must go out
_PASSING = {408, 425, 429}  # of the answers 4xx those that pass: timeout, too early, too many requests


class Failed(Exception):
    """An attempt failed; the next may not."""


class Wrong(Failed):
    """An answer came, and it is a wrong one; another attempt hardly mends it."""


class Missing(Wrong):
    """There is no such file or folder."""


class Piece(NamedTuple):
    """Bytes of a file, as they come."""

    position: int
    content: bytes
    whole: int | None
    """Bytes of the file, if that is told."""


class Listed(NamedTuple):
    """A file or folder."""

    url: str
    bytes: int
    is_folder: bool

    @property
    def name(self) -> str:
        return PurePosixPath(self.url).name


def status_of(code: int, message: str) -> Failed:
    """The error of an HTTP response with that code."""
    return (Wrong if 300 <= code < 500 and code not in _PASSING else Failed)(message)


def check_driver(url: str) -> None:
    """UserError if there is no driver for a url, with what installs it; what is read without one needs none."""
    if not is_by_driver(url):
        return
    scheme = url.partition("://")[0]
    try:
        fsspec.get_filesystem_class(scheme)
    except ValueError as error:
        raise UserError(
            f"{masked(url)!r} is not read as it is; expected a path, http(s)://, s3://, gs://, az://, hf:// or another "
            "url that fsspec knows, or pipe: and a command that writes the file"
        ) from error
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        install = f"pip install 'ssamba[{extra}]'" if extra else str(error)
        raise UserError(f"{masked(url)!r} needs a driver for {scheme}://, which is not installed: {install}") from error


def check_writable(url: str) -> None:
    """UserError if nothing can be written to such a url."""
    if not is_by_driver(url):
        raise UserError(
            f"{masked(url)!r} is only read; expected a folder, or a url that can be written to, such as s3://..."
        )
    if url.startswith("hf://"):
        raise UserError(
            f"{masked(url)!r} is only read: the Hub takes few commits an hour, and each file would be one; write to a "
            "folder, then: hf upload --repo-type dataset OWNER/NAME FOLDER"
        )
    if has_wildcard(url):  # drivers rename and remove all that it matches
        raise UserError(f"{masked(url)!r} has a wildcard; expected a name without *, ? and [ to write to")
    check_driver(url)


class Store:
    """What a driver of fsspec does with the files at one url, and below it if that is a folder's.

    Raises:
        UserError: there is no driver, at the making. Failed, Wrong, Missing: by every method.
    """

    def __init__(self, url: str) -> None:
        check_driver(url)
        self.url = url
        try:
            # In this thread, of which fsspec keeps it.
            self._files, self._path = fsspec.url_to_fs(url)
        except Exception as error:
            raise _outcome(error, self._driver()) from error
        self._files.invalidate_cache()  # another may have changed what is there

    def pieces(self, start: int) -> Generator[Piece]:
        """The bytes of a file from a position on; from 0 on and `Failed` if it changes meanwhile."""
        version = self._version()
        whole = int(version["size"] or 0)
        for position in range(start, whole, BLOCK_BYTES):
            end = min(position + BLOCK_BYTES, whole)
            content = self._call(self._files.cat_file, self._path, start=position, end=end)
            if len(content) != end - position:
                raise Failed(f"asked for the bytes {position} to {end}, it gave {len(content)}")
            yield Piece(position, content, whole)
        self._files.invalidate_cache()
        if self._version() != version:
            yield Piece(0, b"", None)
            raise Failed("it changed while it was read")

    def _version(self) -> dict[str, Any]:
        """The metadata of a file, without its time of access."""
        metadata = self._call(self._files.info, self._path)
        return {name: value for name, value in metadata.items() if "access" not in name}

    def bytes(self) -> int | None:
        """Of a file; None: there is none."""
        try:
            return int(self._call(self._files.info, self._path)["size"] or 0)
        except Missing:
            return None

    def files(self) -> list[Listed]:
        """What is in a folder."""
        entries = self._call(self._files.ls, self._path, detail=True)
        return self._listed(one for one in entries if one["name"].rstrip("/") != self._path.rstrip("/"))

    def all_files(self) -> list[str]:
        """The names of the files below a folder, relative to it; none where there is no such folder."""
        try:
            return sorted(name[len(self._path) :].strip("/") for name in self._call(self._files.find, self._path))
        except Missing:
            return []

    def matching(self) -> list[Listed]:
        """What a url with wildcards stands for."""
        return self._listed(self._call(self._files.glob, self._path, detail=True).values())

    def _listed(self, entries: Any) -> list[Listed]:
        listed = [
            Listed(self._files.unstrip_protocol(one["name"]), int(one["size"] or 0), one["type"] == "directory")
            for one in entries
        ]
        return sorted(listed)

    def put(self, path: Path) -> None:
        """Make a file of a local one: it has its name once it is whole."""
        seconds = STALL_SECONDS + path.stat().st_size / _SLOWEST
        protocol = self._files.protocol
        is_object = not _EXTRAS.keys().isdisjoint([protocol] if isinstance(protocol, str) else protocol)
        place = self._path if is_object else f"{self._path}.ssamba-tmp"
        if not is_object:
            self._call(self._files.makedirs, self._path.rpartition("/")[0], exist_ok=True)
        self._call(self._files.put_file, str(path), place, seconds=seconds)
        arrived, size = int(self._call(self._files.info, place)["size"]), path.stat().st_size
        if arrived != size:
            raise Failed(f"{arrived} of {size} bytes arrived")
        if not is_object:
            self._call(self._files.mv, place, self._path)

    def move(self, other: "Store") -> None:
        """Give a file the name that another store of the driver has."""
        self._call(self._files.mv, self._path, other._path, seconds=10 * STALL_SECONDS)

    def remove(self) -> None:
        """Remove a file, or a folder and what is in it, if there is one."""
        with suppress(Missing):
            self._call(self._files.rm, self._path, recursive=True, seconds=10 * STALL_SECONDS)

    def _call(self, function: Callable[..., Any], *arguments: Any, seconds: float | None = None, **named: Any) -> Any:
        try:
            return _within(STALL_SECONDS if seconds is None else seconds, function, *arguments, **named)
        except FileNotFoundError as error:
            raise Missing(f"there is no such file or folder ({_message(error)})") from error
        except Exception as error:  # each driver has errors of its own
            raise _outcome(error, self._driver()) from error

    def _driver(self) -> str:
        return fsspec.get_filesystem_class(self.url.partition("://")[0]).__module__.partition(".")[0]


def _outcome(error: Exception, driver: str) -> Failed:
    """What a driver's error means for the next attempt."""
    answer = getattr(error, "response", None)
    code = getattr(error, "status", getattr(error, "code", getattr(answer, "status_code", None)))
    # Those of Amazon's, Google's and Microsoft's libraries have no type in common.
    if isinstance(error, PermissionError) or code in (401, 403) or "Credentials" in type(error).__name__:
        return Wrong(f"{_message(error)}: expected credentials that are valid, where {driver} looks for them")
    if isinstance(error, ValueError | TypeError | NotImplementedError | NotADirectoryError | IsADirectoryError):
        return Wrong(_message(error))
    return status_of(code, _message(error)) if isinstance(code, int) else Failed(_message(error))


def _message(error: Exception) -> str:
    return " ".join(str(error).split())[:1000] or type(error).__name__


def _within(seconds: float, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """The result of a call, or what it raises; TimeoutError if neither comes in time: it is left to itself then."""
    outcome: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def call() -> None:
        try:
            outcome.put((function(*arguments, **named), None))
        except BaseException as error:
            outcome.put((None, error))

    threading.Thread(target=call, daemon=True).start()
    try:
        result, error = outcome.get(timeout=seconds)
    except queue.Empty as empty:
        raise TimeoutError(f"nothing came for {seconds:g} s") from empty
    if error is not None:
        raise error
    return result
