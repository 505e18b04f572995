"""Files that lie elsewhere, http(s) urls and commands (`pipe:`): how they are named, and how they are fetched whole.

A fetch is tried again with growing waits, is bounded where nothing comes any more, and gives a file under its final
name only once its content is what was expected. Imports no torch.
"""

import errno
import fcntl
import hashlib
import http.client
import io
import itertools
import logging
import os
import random
import re
import select
import signal
import subprocess
import tempfile
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

from braceexpand import braceexpand

from ssamba.errors import UserError
from ssamba.files import open_unlinked
from ssamba.printable import printable

log = logging.getLogger(__name__)

ATTEMPTS = 5
WRONG_ATTEMPTS = 2  # of those whose answer was wrong, not missing: HTTP 404, another sha256
FIRST_WAIT_SECONDS = 1.0  # doubled after each attempt, times a random number from 0.5 to 1.5
STALL_SECONDS = 60.0  # without a byte: the attempt has failed

_CHUNK = 1 << 18
_MOST_NAMES = 100_000  # that a pattern with braces may stand for
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?")
# What can stand in a url and in a command as it is, so that a name from elsewhere adds nothing to either.
_SHARD_NAME = r"\w[\w.-]*\.tar"
_FILE = re.compile(rf"""(?<![^/\s'"=:])(index\.json|{_SHARD_NAME})(?![^\s'"?#&|;<>)])""", re.ASCII)
_INSTEAD = {
    "s3": "pipe:aws s3 cp s3://{} -",
    "gs": "pipe:gsutil cat gs://{}",
    "hf": 'pipe:curl -sfL -H "Authorization: Bearer $HF_TOKEN" https://huggingface.co/{}',
}


_Content = io.BufferedRandom | io.BytesIO


class _Expected(NamedTuple):
    """What is known of a file before it is fetched."""

    size: int | None
    most_bytes: int
    sha256: str | None


class RedirectRefused(Exception):
    """A server sends to where nothing is fetched from."""


class DiskFull(UserError):
    """What is fetched finds no room."""


class Cancelled(Exception):
    """A fetch was no longer wanted; nothing of it is left."""


class _Failed(Exception):
    """An attempt failed; the next may not."""


class _Wrong(_Failed):
    """An answer came, and it is a wrong one; another attempt hardly mends it."""


def expand_remote(source: str) -> list[str]:
    """The urls and commands, each of one .tar or of an index.json, that a source with braces stands for.

    Raises:
        UserError: another kind of url, unbalanced braces, or not exactly one file named in each.
    """
    scheme, _, rest = source.partition("://")
    if not source.startswith(("http://", "https://", "pipe:")):
        message = (
            f"{source!r} is not read as it is; expected http(s)://..., or pipe: and a command that writes the file"
        )
        if scheme in _INSTEAD:
            place = rest if rest.endswith((".tar", "index.json")) else f"{rest.rstrip('/')}/index.json"
            if scheme == "hf":  # datasets/user/name@revision/path -> datasets/user/name/resolve/revision/path
                place = re.sub(r"^((?:datasets/)?[^/]+/[^/@]+)(?:@([^/]+))?/", _resolved, place)
            message += f", for instance {_INSTEAD[scheme].format(place)!r}"
        raise UserError(message)
    urls = expand_braces(source, escape=False)
    urls = [f"{url}index.json" if url.startswith("http") and url.endswith("/") else url for url in urls]
    for url in urls:
        if len(_FILE.findall(url)) != 1:
            raise UserError(
                f"{url!r} should name one file, a shard (.../000000.tar) or the index of all (.../index.json, or for "
                f"http a url that ends in /); it names {len(_FILE.findall(url)) or 'none'}"
            )
    return urls


def expand_braces(pattern: str, escape: bool = True) -> list[str]:
    """The texts that a pattern with braces stands for, as the shell has them: `{000000..000009}.tar`, `{a,b}/train`.

    Args:
        escape: a backslash takes its meaning from a brace.

    Raises:
        UserError: unbalanced braces, or more texts than can be meant.
    """
    shown = repr(pattern[:200])
    try:
        # Counted before it is written out, which takes the memory of all of them and more.
        if _texts_in(pattern, escape) <= _MOST_NAMES:
            return list(braceexpand(pattern, escape=escape))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{shown} has unbalanced braces; expected a pattern like {{000000..000009}}.tar") from error
    raise UserError(f"{shown} stands for more than {_MOST_NAMES} names; expected those of shards")


def _texts_in(pattern: str, escape: bool) -> int:
    """How many texts a pattern stands for; ValueError if its braces are not balanced."""
    total, begin = 1, 0
    for place, depth in _braces(pattern, escape):
        if pattern[place] == "{" and depth == 1:
            begin = place + 1
        elif pattern[place] == "}" and depth == 0:
            total *= _choices_in(pattern[begin:place], escape)
    return total


def _choices_in(inside: str, escape: bool) -> int:
    """Of what is between a brace and its end."""
    if numbers := _RANGE.fullmatch(inside):
        first, last, step = (int(number or 1) for number in numbers.groups())
        return abs(last - first) // max(1, step) + 1
    ends = [place for place, depth in _braces(inside, escape) if inside[place] == "," and depth == 0]
    return sum(
        _texts_in(inside[begin + 1 : end], escape) for begin, end in itertools.pairwise([-1, *ends, len(inside)])
    )


def _braces(pattern: str, escape: bool) -> Iterator[tuple[int, int]]:
    """(place, depth behind it) of each brace and comma; ValueError if the braces are not balanced."""
    depth, escaped = 0, False
    for place, letter in enumerate(pattern):
        if escaped or (escape and letter == "\\"):
            escaped = not escaped
        elif letter in "{},":
            depth += (letter == "{") - (letter == "}")
            if depth < 0:
                raise ValueError(pattern)
            yield place, depth
    if depth:
        raise ValueError(pattern)


def _resolved(match: re.Match[str]) -> str:
    return f"{match[1]}/resolve/{match[2] or 'main'}/"


def file_name(url: str) -> str:
    """The name of the file that a url or a command gives."""
    return _FILE.findall(url)[0]


def renamed(url: str, name: str) -> str:
    """The url or command of another file in the same folder."""
    return _FILE.sub(lambda _: name, url)


def is_shard_name(name: str) -> bool:
    """Whether a name is plain enough to stand in a url and in a command."""
    return re.fullmatch(_SHARD_NAME, name, re.ASCII) is not None


def read(url: str, most_bytes: int) -> bytes:
    """The content of a small file; UserError after the last attempt, or if it has more bytes than expected."""
    content = io.BytesIO()
    _receive(url, content, _Expected(None, most_bytes, None))
    return content.getvalue()


def fetch(
    url: str, path: Path, sha256: str, size: int | None = None, *, most_bytes: int = 0, wait: bool = True,
    cancelled: threading.Event | None = None,
) -> bool:  # fmt: skip
    """Fetch a file, unless it is there; once, however many processes and threads of a machine ask for it.

    It is written to `path`.part, which whoever fetches has locked, and renamed once its size and sha256 are right. A
    process that is killed leaves no lock, and an http fetch goes on where it ended.

    Args:
        url: of one file, from `expand_remote` or `renamed`.
        size: bytes, where they are known.
        most_bytes: that it may have, where they are not.
        wait: for another process that is fetching it.
        cancelled: once it is set, the fetch ends at the next bytes that come, or in the wait between two attempts.

    Returns:
        Whether it is there now: False only without `wait`.

    Raises:
        Cancelled: `cancelled` was set.
        DiskFull: there is no room.
        UserError: the last attempt failed, or the folder of `path` cannot be written.
    """
    try:
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
                    _receive(url, file, _Expected(size, most_bytes if size is None else size, sha256), cancelled)
                    file.flush()
                    os.fsync(file.fileno())
                    part.replace(path)
                except BaseException:
                    part.unlink(missing_ok=True)
                    raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"{path.parent} has no room left for {url}: free some, set data.cache to a folder on a larger disk, or "
                "data.cache_gigabytes to less"
            ) from error
        raise UserError(
            f"the cache {path.parent} cannot be used ({error}); set data.cache to a folder on a local disk"
        ) from error
    return True


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


def _receive(url: str, into: _Content, expected: _Expected, cancelled: threading.Event | None = None) -> None:
    """Fill a file with what a url gives, in as many attempts as are allowed."""
    cancelled = cancelled or threading.Event()
    wrong = 0
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _attempt(url, into, expected, cancelled)
            return
        except _Failed as error:
            wrong += isinstance(error, _Wrong)
            if attempt == ATTEMPTS or wrong == WRONG_ATTEMPTS:
                times = f"{attempt} attempts" if attempt > 1 else "one attempt"
                raise UserError(f"{url} could not be fetched in {times}; the last: {error}") from error
            # Not from the generator that a seed sets: what is drawn elsewhere must not depend on a network.
            wait = FIRST_WAIT_SECONDS * 2 ** (attempt - 1) * random.SystemRandom().uniform(0.5, 1.5)
            log.warning("%s: attempt %d of %d: %s; again in %.1f s", url, attempt, ATTEMPTS, error, wait)
            cancelled.wait(wait)


def _attempt(url: str, into: _Content, expected: _Expected, cancelled: threading.Event) -> None:
    """Go on where the file ends, if that can be; begin anew otherwise."""
    if cancelled.is_set():
        raise Cancelled
    end = into.seek(0, os.SEEK_END)
    if expected.size is None or end > expected.size:
        end = _cut(into, 0)
    if end != expected.size:
        chunks = _pipe_chunks(url.removeprefix("pipe:")) if url.startswith("pipe:") else _http_chunks(url, end)
        with closing(chunks):
            for position, chunk in chunks:
                if cancelled.is_set():
                    raise Cancelled
                if position != end:
                    _cut(into, position)
                end = position + len(chunk)
                if end > expected.most_bytes:
                    _cut(into, 0)
                    raise _Wrong(f"it is larger than the {expected.most_bytes} bytes expected")
                into.write(chunk)
        if expected.size is not None and end < expected.size:
            raise _Failed(f"it ended after {end} of {expected.size} bytes")
    if expected.sha256 is not None:
        into.seek(0)
        digest = hashlib.file_digest(into, "sha256").hexdigest()
        if digest != expected.sha256:
            _cut(into, 0)
            raise _Wrong(f"its sha256 is {digest}; the index expects {expected.sha256}")


def _cut(into: _Content, end: int) -> int:
    into.truncate(end)
    return into.seek(end)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http(s) alone, and from https to nothing less; another host is told."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if new.scheme not in ("http", "https") or (old.scheme, new.scheme) == ("https", "http"):
            raise RedirectRefused(
                f"it sends from {old.scheme}://{old.netloc} to {new.scheme}://{new.netloc}, which is not followed"
            )
        if old.netloc != new.netloc:
            log.info("%s sends to %s", printable(old.netloc), printable(new.netloc))
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def open_url(request: urllib.request.Request, timeout: float) -> http.client.HTTPResponse:
    """Ask a server, and follow where it sends, from http(s) to http(s) and from https to https alone.

    Raises:
        RedirectRefused: it sends elsewhere. OSError, http.client.HTTPException, ValueError: as urllib does.
    """
    return urllib.request.build_opener(_Redirects).open(request, timeout=timeout)


def _http_chunks(url: str, start: int) -> Generator[tuple[int, bytes]]:
    """(position, bytes) from a position on, or from 0 if the server knows no ranges."""
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
        with open_url(request, STALL_SECONDS) as response:
            position = start if response.status == 206 else 0
            if position and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                raise _Wrong(f"asked for the bytes from {start} on, it gave others")
            while chunk := response.read(_CHUNK):
                yield position, chunk
                position += len(chunk)
            if response.length:
                raise _Failed(f"the connection ended {response.length} bytes too early")
    except RedirectRefused as error:
        raise _Wrong(printable(str(error))) from error
    except urllib.error.HTTPError as error:
        # Timeout, too early, too many requests: these pass.
        kind = _Wrong if error.code < 500 and error.code not in (408, 425, 429) else _Failed
        raise kind(f"HTTP {error.code} {error.reason}") from error
    except (ValueError, http.client.InvalidURL) as error:
        raise _Wrong(f"it is no url: {error}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Failed(str(error) or repr(error)) from error


def _pipe_chunks(command: str) -> Generator[tuple[int, bytes]]:
    """(position, bytes) of what a command of the shell writes; it is ended where nothing comes from it any more."""
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(command, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints,
                         start_new_session=True) as process,
    ):  # fmt: skip
        assert process.stdout is not None
        try:
            poll = select.poll()
            poll.register(process.stdout, select.POLLIN)
            position = 0
            while True:
                if not poll.poll(STALL_SECONDS * 1000):
                    raise _Failed(f"nothing came for {STALL_SECONDS:g} s{_tail(complaints)}")
                chunk = os.read(process.stdout.fileno(), _CHUNK)
                if not chunk:
                    break
                yield position, chunk
                position += len(chunk)
            try:
                status = process.wait(STALL_SECONDS)
            except subprocess.TimeoutExpired as error:
                raise _Failed(f"it wrote all and did not end for {STALL_SECONDS:g} s{_tail(complaints)}") from error
            if status:
                # Of the shell: there is no such command, or it cannot be executed.
                raise (_Wrong if status in (126, 127) else _Failed)(f"exit status {status}{_tail(complaints)}")
        finally:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def _tail(complaints: IO[bytes]) -> str:
    """The end of what a command wrote to stderr, in one line."""
    complaints.seek(max(0, complaints.seek(0, os.SEEK_END) - 2000))
    said = " ".join(complaints.read().decode(errors="replace").split())
    return f": {said[-400:]}" if said else ""
