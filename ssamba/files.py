"""Files and folders that are either complete or not there, and JSON from elsewhere, typed and bounded.

What is being written has an exclusive name of its own beside its target, `.ssamba-tmp-...`: files of other programs are
never followed, replaced or removed. Imports no torch.
"""

import errno
import io
import json
import math
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from ssamba.errors import UserError
from ssamba.printable import printable

T = TypeVar("T")

TEMPORARY = ".ssamba-tmp-"
"""What the name of a file or folder that is not finished begins with."""
MOST_BYTES = 1 << 28
"""Of a JSON that is read, where nothing else is said."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""A field of a JSON: a count or a size; 2**53 is the most that every JSON reader gives back exactly."""
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
"""A field of a JSON: a sha256 in hex."""


_NO_PLACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}  # errors of a write that fails


class NotWritten(UserError, OSError):
    """A file or folder cannot be written: an OSError of the place that was meant, not of its temporary name."""

    def __init__(self, *arguments: Any) -> None:
        OSError.__init__(self, *arguments)

    def __str__(self) -> str:
        if self.filename is None:  # a loader's worker's, whose text alone is left
            return super().__str__()
        return printable(f"{self.filename} cannot be written: {self.strerror}")


@contextmanager
def written_beside(path: Path, durable: bool = False) -> Iterator[Path]:
    """A new, empty file to write to, with the ending of `path`, renamed to `path` at the end; removed if that is not
    reached.

    Args:
        durable: the disk has the content before the name is there, so that the name stands for the whole file even
            after a loss of power.

    Raises:
        NotWritten: there is no such folder, no permission, no room.
    """
    beside = _temporary(path)
    with writing_to(path, beside):
        # Not opened where something is already, a link among it; with the permissions that the user's umask gives.
        os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            yield beside
            if durable:
                to_disk(beside)
            os.replace(beside, path)
            if durable:
                to_disk(path.parent)
        finally:
            beside.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, to be filled: put in its place at the end, removed if it was not finished.

    What was in that place is removed once the new folder is there.

    Raises:
        NotWritten: there is no permission, no room.
    """
    beside, old = _temporary(folder), _temporary(folder)
    with writing_to(folder, beside):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            beside.mkdir()
        except OSError as error:
            code = errno.ENOTDIR if isinstance(error, FileExistsError) else error.errno
            raise NotWritten(code, os.strerror(code or errno.EIO), str(folder)) from error
        try:
            yield beside
            replaced = os.path.lexists(folder)
            if replaced:
                os.rename(folder, old)
            try:
                os.rename(beside, folder)
            except OSError:
                if replaced:
                    os.rename(old, folder)
                raise
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        if replaced:
            shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()


def _temporary(path: Path) -> Path:
    # The ending, by which libraries know a format; not the whole name, which may be as long as one can be.
    return path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}{path.suffix[:16]}")


@contextmanager
def writing_to(path: Path, beside: Path | None = None) -> Iterator[None]:
    """Errors about a file that is being written name `path`, not its temporary name.

    Args:
        beside: the temporary name of the file or folder that becomes `path`.

    Raises:
        NotWritten: for an OSError of `beside`, of what is in it, or of a write that names no file, as for want of room.
            Others pass as they are.
    """
    try:
        yield
    except (OSError, RuntimeError) as raised:
        # torch raises a RuntimeError of its own when a write fails under it.
        error: BaseException | None = raised
        while error is not None and not isinstance(error, OSError):
            error = error.__context__
        if error is None:
            raise
        name, temporary = error.filename, str(beside)
        if name is None and error.errno in _NO_PLACE:
            place = str(path)
        elif beside and name is not None and (str(name) == temporary or str(name).startswith(temporary + os.sep)):
            place = f"{path}{str(name).removeprefix(temporary)}"
        else:
            raise
        assert error.errno is not None
        raise NotWritten(error.errno, os.strerror(error.errno), place) from raised


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Make a folder and those above it that are missing; of these the empty ones are removed at the end."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for one in missing:
            with suppress(OSError):  # something is in it, or it could not be made
                one.rmdir()


def open_unlinked(path: Path) -> io.BufferedRandom:
    """A file with a name of its own to read and to write, made if it is not there; no link is followed.

    Raises:
        UserError: there is a link, a folder or a device, or a file that has another name as well.
        OSError: it cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise UserError(_is_no_file(path)) from error
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise UserError(_is_no_file(path))
    return os.fdopen(descriptor, "r+b")


def _is_no_file(path: Path) -> str:
    return f"{path} is a link or no file; expected to write a file of that name: remove it, or take another folder"


def to_disk(path: Path) -> None:
    """Wait until the disk has a file's content, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_out(path: Path, overwrite: bool) -> None:
    """UserError if a file cannot be written there: no folder, or it exists and is not to be replaced."""
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} to write {path.name} to")
    if path.is_dir():
        raise UserError(f"{path} is a folder; expected the name of a file to write")
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no file; expected the name of a file to write")
    if os.path.lexists(path) and not overwrite:
        raise UserError(f"{path} exists; --overwrite replaces it")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"{path.parent} cannot be written to; expected a folder for {path.name}")


def check_place(path: Path) -> None:
    """UserError if nothing can be written there, in a folder that there is or in one that would be made.

    A file is made and removed to know it: permissions alone do not say what a disk or the system refuses.
    """
    folder = path if path.is_dir() else path.absolute().parent
    while not os.path.lexists(folder):
        folder = folder.parent
    probe = _temporary(folder / "probe")
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {folder} takes no new file ({error.strerror}); expected a place to write to"
        ) from error


def write_text(path: Path, text: str, durable: bool = False) -> None:
    """Write beside, in UTF-8, then rename."""
    with written_beside(path, durable) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, content: object, durable: bool = False) -> None:
    """`content` as indented JSON, by `write_text`; null for a number that is not finite, for which JSON has no word."""
    write_text(path, json.dumps(_finite(content), indent=2, allow_nan=False) + "\n", durable)


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def read_bounded(path: Path, expected: str, most_bytes: int = MOST_BYTES) -> bytes:
    """A file's content.

    Args:
        expected: what is said to be expected, and how to mend it.

    Raises:
        UserError: it cannot be read, or has more than `most_bytes`.
    """
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); expected {expected}") from error
    if len(content) > most_bytes:
        raise UserError(f"{path} has more than {most_bytes} bytes; expected {expected}")
    return content


def read_json(path: Path, kind: type[T], expected: str, most_bytes: int = MOST_BYTES) -> T:
    """A JSON file as `parse_json` reads it.

    Raises:
        UserError: it cannot be read, has more than `most_bytes`, or is none of `kind`.
    """
    return parse_json(read_bounded(path, expected, most_bytes), kind, path, expected)


def parse_json(content: bytes, kind: type[T], place: object, expected: str) -> T:
    """The JSON in some bytes that came from a file, checked against types before anything is built of it.

    Numbers are finite and of the type that is asked for: 1.0 is no integer, "1" no number. Fields that `kind` does not
    have are passed over. It may be nested as deep as Python's own recursion goes.

    Args:
        kind: a dataclass, or a type of builtins such as dict[str, int]; bounds by Annotated and msgspec.Meta, such as
            `Count`.
        place: what is named as its place, such as the file's path.
        expected: what is said to be expected, and how to mend it.

    Raises:
        UserError: it is none, in one line that names the place and the field.
    """
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.MsgspecError as error:
        problem = str(error).replace(" - at `$.", " at `").replace(" - at `$", " at `")
    except UnicodeDecodeError:
        problem = "it is not in UTF-8"
    except RecursionError:
        problem = "it is nested too deep"
    raise UserError(f"{place} cannot be used: {problem}; expected {expected}")
