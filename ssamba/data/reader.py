"""Samples of shards by their number, each read by itself. Imports no torch."""

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from ssamba.data.descriptions import Description, parse_description
from ssamba.data.index import Shard, ShardSet
from ssamba.data.remote import ShardCache
from ssamba.errors import BadAudio, UserError

_OPEN = 64  # shards that are held open; a window of the order seldom needs more


class SampleReader:
    """Reads the samples that a table names, wherever they lie. To be used by one thread of each process.

    Args:
        cache: makes files of the shards that lie elsewhere, when they are needed.
    """

    def __init__(self, shards: ShardSet, cache: ShardCache) -> None:
        self.shards, self.cache = shards.shards, cache
        self.table = shards.table
        self._ends = np.cumsum([shard.info.samples for shard in self.shards])
        self._files: OrderedDict[Path, int] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        # Another process opens its own files.
        return {**self.__dict__, "_files": OrderedDict()}

    def __del__(self) -> None:
        for file in self._files.values():
            os.close(file)

    def shard_of(self, number: int) -> Shard:
        """The shard that holds a sample."""
        return self.shards[self._place(number)]

    def _place(self, number: int) -> int:
        return int(np.searchsorted(self._ends, number, "right"))

    def audio(self, number: int) -> bytes:
        """The bytes of a sample's audio file.

        Raises:
            BadAudio: its shard ends before it. UserError: its shard cannot be opened or read.
        """
        return self._read(number, "audio")

    def description(self, number: int) -> Description:
        """A sample's JSON: its key, its labels, and the full scale that its audio is to be multiplied by, if it gives
        one. A sample without a JSON, or whose JSON gives no key, is named after its place.

        Raises:
            BadAudio: it cannot be parsed, its key is no text, it has no labels, or a full scale that cannot be.
            UserError: as `audio`.
        """
        content = self._read(number, "json")
        name = self._name(number)
        return parse_description(content, name) if content else {"key": name, "labels": {}}

    def _name(self, number: int) -> str:
        """Of a sample by its place: its shard and its number within it."""
        shard = self.shard_of(number)
        first = int(self._ends[self._place(number)]) - shard.info.samples
        return f"{Path(shard.info.name).stem}/{number - first}"

    def expect(self, number: int) -> None:
        """Tell the system that a sample will be read, so that a disk is at work while others are decoded."""
        # macOS has no such call.
        for part in ("audio", "json") if hasattr(os, "posix_fadvise") else ():
            holder = self._holder(number, part)
            # Not what would have to be fetched first.
            if holder.path in self._files or holder.url is None:
                row = self.table[number]
                os.posix_fadvise(self._file(holder), int(row[part]), int(row[f"{part}_bytes"]), os.POSIX_FADV_WILLNEED)

    def _holder(self, number: int, part: str) -> Shard:
        """What holds a sample's part: its shard, or the descriptions of its folder."""
        shard = self.shard_of(number)
        return shard.descriptions or shard if part == "json" else shard

    def _read(self, number: int, part: str) -> bytes:
        shard = self._holder(number, part)
        row = self.table[number]
        size = int(row[f"{part}_bytes"])
        file = self._file(shard)
        try:
            content = os.pread(file, size, int(row[part]))
        except OSError as error:
            raise self._unreadable(shard, error) from error
        if len(content) < size:
            raise BadAudio("its shard ends before it does")
        return content

    def _file(self, shard: Shard) -> int:
        file = self._files.get(shard.path)
        if file is None:
            if len(self._files) >= _OPEN:
                os.close(self._files.popitem(last=False)[1])
            file = self._files[shard.path] = self._open(shard)
        else:
            self._files.move_to_end(shard.path)
        return file

    def _open(self, shard: Shard) -> int:
        while True:
            try:
                return os.open(self.cache.local(shard), os.O_RDONLY)
            except FileNotFoundError as error:  # another process may have made room in the cache just now
                if shard.url is None:
                    raise self._unreadable(shard, error) from error
            except OSError as error:
                raise self._unreadable(shard, error) from error

    def _unreadable(self, shard: Shard, error: OSError) -> UserError:
        return UserError(f"the shard {shard.place} cannot be read: {error}")
