"""Samples of shards by their number, each read by itself. Imports no torch."""

import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from ssamba.data.index import Shard, ShardSet
from ssamba.data.remote import ShardCache
from ssamba.errors import BadAudio, UserError
from ssamba.recordings import LOUDEST

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
        self._files: OrderedDict[int, int] = OrderedDict()

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

    def description(self, number: int) -> dict[str, Any]:
        """A sample's JSON: its key, its labels, and the full scale that its audio is to be multiplied by, if it gives
        one. A sample without a JSON, or whose JSON gives no key, is named after its place.

        Raises:
            BadAudio: it cannot be parsed, its key is no text, it has no labels, or a full scale that cannot be.
            UserError: as `audio`.
        """
        content = self._read(number, "json")
        if not content:
            return {"key": self._name(number), "labels": {}}
        try:
            described = json.loads(content)
        except ValueError as error:
            raise BadAudio(f"its .json cannot be parsed: {error}") from error
        if isinstance(described, dict) and "key" not in described:
            described["key"] = self._name(number)
        if not (isinstance(described, dict) and isinstance(described["key"], str)
                and isinstance(described.get("labels"), dict)):  # fmt: skip
            raise BadAudio("its .json has no key or no labels")
        full_scale = described.get("full_scale", 1)
        if not isinstance(full_scale, int | float) or not 0 < full_scale <= LOUDEST:
            raise BadAudio(f"its .json has the full scale {full_scale!r:.40}; expected a number up to {LOUDEST:g}")
        return described

    def _name(self, number: int) -> str:
        """Of a sample by its place: its shard and its number within it."""
        shard = self.shard_of(number)
        first = int(self._ends[self._place(number)]) - shard.info.samples
        return f"{Path(shard.info.name).stem}/{number - first}"

    def expect(self, number: int) -> None:
        """Tell the system that a sample will be read, so that a disk is at work while others are decoded."""
        shard = self._place(number)
        # Not what would have to be fetched first. And macOS has no such call.
        if hasattr(os, "posix_fadvise") and (shard in self._files or self.shards[shard].url is None):
            row, file = self.table[number], self._file(shard)
            for part in ("audio", "json"):
                os.posix_fadvise(file, int(row[part]), int(row[f"{part}_bytes"]), os.POSIX_FADV_WILLNEED)

    def _read(self, number: int, part: str) -> bytes:
        shard = self._place(number)
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

    def _file(self, shard: int) -> int:
        file = self._files.get(shard)
        if file is None:
            if len(self._files) >= _OPEN:
                os.close(self._files.popitem(last=False)[1])
            file = self._files[shard] = self._open(shard)
        else:
            self._files.move_to_end(shard)
        return file

    def _open(self, shard: int) -> int:
        while True:
            try:
                return os.open(self.cache.local(self.shards[shard]), os.O_RDONLY)
            except FileNotFoundError as error:  # another process may have made room in the cache just now
                if self.shards[shard].url is None:
                    raise self._unreadable(shard, error) from error
            except OSError as error:
                raise self._unreadable(shard, error) from error

    def _unreadable(self, shard: int, error: OSError) -> UserError:
        return UserError(f"the shard {self.shards[shard].place} cannot be read: {error}")
