"""Remote shards as local files: fetched whole into a folder that all processes of a machine share."""

import logging
import os
import re
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ssamba.data.shards.index import Shard
from ssamba.data.shards.transport import Cancelled, DiskFull, Expected, fetch_into_cache, locked
from ssamba.errors import UserError

log = logging.getLogger(__name__)

END_SECONDS = 5.0  # that `close` waits for a server which sends nothing
_OURS = re.compile(r"[0-9a-f]{64}\.(tar|npy|jsonl)(\.part)?")  # nothing else in the folder is ever removed


class ShardCache:
    """Local files of shards, which are local already or are fetched first, into the folder that `find_shards` was
    given.

    Any number of processes and threads may share the folder: each shard is fetched once, and what was used least
    recently makes room. A file that is removed stays readable where it is open. The object can be copied, pickled and
    forked; a process that iterates prefetches in a thread of its own, which keeps no process from ending.

    Args:
        max_bytes: of all that the folder holds, the fetched shards of other runs included; a shard that is larger than
            that is fetched nevertheless.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._queue: list[Shard] = []
        self._thread: threading.Thread | None = None
        self._cancelled = threading.Event()

    def __reduce__(self) -> tuple[type["ShardCache"], tuple[int]]:
        return ShardCache, (self.max_bytes,)

    def local(self, shard: Shard) -> Path:
        """The path at which the shard can be read; at once, if it is local or has been fetched.

        Open it right away: fetches of other processes may remove it. Then call this again.

        Raises:
            UserError: it cannot be fetched, or there is no room for it.
        """
        while shard.url is not None and not _mark(shard.path):
            self._fetch(shard, wait=True)
        return shard.path

    def prefetch(self, shards: Iterable[Shard]) -> None:
        """Fetch shards in the background, in this order, as far as all of them fill half of the cache at most.

        They replace those of the call before. Processes that prefetch the same shards share the work; a failure is
        logged, and raised by `local`.
        """
        queue, total = [], 0
        for shard in shards:
            if shard.url is not None:
                total += shard.info.bytes
                if total > self.max_bytes // 2:
                    break
                if not _mark(shard.path):
                    queue.append(shard)
        self._queue = queue
        if queue:
            fetcher = (queue, self._thread, self._cancelled)
            self._thread = threading.Thread(target=self._fetch_ahead, args=fetcher, name="fetch-ahead", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop prefetching, so that nothing of it is left or comes later.

        What is asked for afterwards is fetched as before.
        """
        self._queue = []
        self._cancelled.set()
        if self._thread is not None:
            self._thread.join(END_SECONDS)
        self._thread, self._cancelled = None, threading.Event()

    def _fetch_ahead(self, queue: list[Shard], before: threading.Thread | None, cancelled: threading.Event) -> None:
        if before is not None:  # at most one of a process fetches
            before.join()
        for shard in queue:
            if self._queue is not queue:
                return
            try:
                if not shard.path.exists():
                    self._fetch(shard, wait=False, cancelled=cancelled)
            except Cancelled:
                return
            except UserError as error:
                log.warning("not fetched ahead: %s", error)
                return

    def _fetch(self, shard: Shard, wait: bool, cancelled: threading.Event | None = None) -> None:
        """Fetch a shard, or find that another has done it or, without `wait`, is doing it."""
        assert shard.url is not None
        folder, info = shard.path.parent, shard.info
        expected = Expected(info.bytes, info.bytes, info.sha256)
        # Another may have some of this one already.
        others = sum(size for _, size, path in _files(folder) if path.stem != shard.path.name)
        _evict(folder, others + info.bytes - self.max_bytes)
        while True:
            try:
                fetch_into_cache(shard.url, shard.path, expected, wait=wait, cancelled=cancelled)
                return
            except DiskFull as error:
                if not _evict(folder, info.bytes):
                    raise UserError(str(error)) from error
            except UserError as error:
                raise UserError(f"{error}. A run that stopped goes on with --resume") from error


def _mark(path: Path) -> bool:
    """Whether a file is there; if so, it is now the one that was used last."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _evict(folder: Path, count: int) -> bool:
    """Remove what was used least recently, until `count` bytes are free; whether anything was removed."""
    removed = False
    for _, size, path in sorted(_files(folder)):
        if count <= 0:
            break
        if path.suffix == ".part":
            with locked(path, wait=False) as file:
                if file is None:  # it is being fetched
                    continue
                path.unlink()
        else:
            path.unlink(missing_ok=True)
        log.debug("%s makes room", path)
        count -= size
        removed = True
    return removed


def _files(folder: Path) -> list[tuple[int, int, Path]]:
    """(when it was used last in ns, bytes, path) of what a cache holds."""
    files = []
    for path in folder.iterdir() if folder.is_dir() else ():
        with suppress(FileNotFoundError):
            if _OURS.fullmatch(path.name):
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
    return files
