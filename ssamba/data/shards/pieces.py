"""The bytes of a file that lies elsewhere, as they come: by http(s), by a command (`pipe:`), or by a driver of fsspec.
Imports no torch."""

import http.client
import logging
import os
import select
import signal
import subprocess
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Generator
from contextlib import suppress
from typing import IO

from ssamba.data.shards import stores
from ssamba.data.shards.stores import Failed, Piece, Wrong
from ssamba.data.shards.urls import is_by_driver
from ssamba.printable import printable

log = logging.getLogger(__name__)

CHUNK = 1 << 18
"""Bytes that come at a time, at most, but of a driver's."""


class RedirectRefused(Exception):
    """A server sends to where nothing is fetched from."""


def pieces(url: str, start: int) -> Generator[Piece]:
    """The bytes of a file from a position on, or from 0 where that cannot be."""
    if url.startswith("pipe:"):
        return _pipe_pieces(url.removeprefix("pipe:"))
    return stores.Store(url).pieces(start) if is_by_driver(url) else _http_pieces(url, start)


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http(s) alone, and from https to nothing less (RedirectRefused); another host is told."""

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


def _open_url(request: urllib.request.Request) -> http.client.HTTPResponse:
    return urllib.request.build_opener(Redirects).open(request, timeout=stores.STALL_SECONDS)


def _http_pieces(url: str, start: int) -> Generator[Piece]:
    try:
        # Without compression on the way, which some servers would otherwise apply.
        headers = {"User-Agent": "ssamba", "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        with _open_url(urllib.request.Request(url, headers=headers)) as response:
            position = start if response.status == 206 else 0
            if position and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                raise Wrong(f"asked for the bytes from {start} on, it gave others")
            whole = None if response.length is None else position + response.length
            while content := response.read(CHUNK):
                yield Piece(position, content, whole)
                position += len(content)
            if response.length:
                raise Failed(f"the connection ended {response.length} bytes too early: at {position} of {whole}")
    except RedirectRefused as error:
        raise Wrong(printable(str(error))) from error
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise stores.status_of(error.code, f"HTTP {error.code} {error.reason}") from error
        # Nothing is there from that byte on: because that was all, or because what is here did not fit.
        if error.headers.get("Content-Range") != f"bytes */{start}":
            yield Piece(0, b"", None)
            raise Failed("what was there did not fit") from error
    except (ValueError, http.client.InvalidURL) as error:
        raise Wrong(f"it is no url: {error}") from error
    except (OSError, http.client.HTTPException) as error:
        raise Failed(str(error) or repr(error)) from error


def _pipe_pieces(command: str) -> Generator[Piece]:
    """What a command of the shell writes; it is ended where nothing comes from it any more."""
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(
            command,
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            start_new_session=True,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            poll = select.poll()
            poll.register(process.stdout, select.POLLIN)
            position = 0
            while True:
                if not poll.poll(stores.STALL_SECONDS * 1000):
                    raise Failed(f"nothing came for {stores.STALL_SECONDS:g} s{_tail(complaints)}")
                chunk = os.read(process.stdout.fileno(), CHUNK)
                if not chunk:
                    break
                yield Piece(position, chunk, None)
                position += len(chunk)
            try:
                status = process.wait(stores.STALL_SECONDS)
            except subprocess.TimeoutExpired as error:
                stalled = f"it wrote all and did not end for {stores.STALL_SECONDS:g} s{_tail(complaints)}"
                raise Failed(stalled) from error
            if status:
                # Of the shell: there is no such command, or it cannot be executed.
                raise (Wrong if status in (126, 127) else Failed)(f"exit status {status}{_tail(complaints)}")
        finally:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def _tail(complaints: IO[bytes]) -> str:
    """The end of what a command wrote to stderr, in one line."""
    complaints.seek(max(0, complaints.seek(0, os.SEEK_END) - 2000))
    text = " ".join(complaints.read().decode(errors="replace").split())
    return f": {text[-400:]}" if text else ""
