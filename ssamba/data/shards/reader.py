"""Samples of shards by their index, each read by itself. Imports no torch."""

import bisect
import itertools
import os
import tarfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ssamba.data.shards.descriptions import Description, parse_description
from ssamba.data.shards.index import Shard, ShardSet
from ssamba.data.shards.remote import ShardCache
from ssamba.errors import BadAudio, UserError

_OPEN = 64  # shards that are held open; a window of the order seldom needs more
_NAME_BYTES = 100  # of a member's name in its own header; a longer one lies before it
_NO_ENDING = "audio"  # in the place of an extension that is damaged

_Members = Mapping[int, tuple[str, Mapping[str, tuple[int, int]]]]
"""Where a sample's recording begins -> its key, and of each of its members, by extension, the place and the bytes."""


class SampleReader:
    """Reads the samples that a table names, from local and remote shards. To be used by one thread of each process.

    Args:
        cache: fetches remote shards when they are needed.
    """

    def __init__(self, shards: ShardSet, cache: ShardCache) -> None:
        self.shards, self.cache = shards.shards, cache
        self.table = shards.table
        self._ends = list(itertools.accumulate(shard.info.samples for shard in self.shards))
        self._files: OrderedDict[Path, int] = OrderedDict()
        self._members: OrderedDict[Path, _Members] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        # Another process opens its own files.
        return {**self.__dict__, "_files": OrderedDict(), "_members": OrderedDict()}

    def __del__(self) -> None:
        for file in self._files.values():
            os.close(file)

    def shard_of(self, index: int) -> Shard:
        """The shard that holds a sample."""
        return self.shards[self._place(index)]

    def _place(self, index: int) -> int:
        return bisect.bisect_right(self._ends, index)

    def audio(self, index: int) -> bytes:
        """The bytes of a sample's audio file.

        Raises:
            BadAudio: its shard ends before it. UserError: its shard cannot be opened or read.
        """
        return self._read(index, "audio")

    def json(self, index: int) -> bytes:
        """The bytes of a sample's JSON, or of its line in labels.jsonl; none for a sample without.

        Raises:
            BadAudio, UserError: as `audio`.
        """
        return self._read(index, "json")

    def description(self, index: int) -> Description:
        """A sample's JSON: its key, its labels, and the full scale that its audio is to be multiplied by, if it gives
        one. A sample without a JSON, or whose JSON gives no key, is named after its place.

        Raises:
            BadAudio: it cannot be parsed, its key is no text, it has no labels, or a full scale that cannot be.
            UserError: as `audio`.
        """
        content, name = self.json(index), self.place_name(index)
        return parse_description(content, name) if content else {"key": name, "labels": {}}

    def place_name(self, index: int) -> str:
        """Of a sample by its place: its shard and its index within it."""
        place = self._place(index)
        info = self.shards[place].info
        return f"{info.name.rpartition('.')[0]}/{index - self._ends[place] + info.samples}"

    def name(self, index: int) -> tuple[str, str]:
        """The key and the extension of a sample's recording, as webdataset has them, by the header before it. Where
        that is damaged, its place takes the place of the key.

        Raises:
            UserError: as `audio`.
        """
        audio, _ = self._where(index, "audio")
        shard = self.shard_of(index)
        header = self._pread(shard, tarfile.BLOCKSIZE, max(0, audio - tarfile.BLOCKSIZE))
        name = header[:_NAME_BYTES].partition(b"\0")[0]
        # A name that does not fit in there, or is not in ASCII, is in a header before it.
        if len(name) < _NAME_BYTES and b"?" not in name:
            folder = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
            path = (b"%s/%s" % (folder, name) if folder else name).decode(errors="replace")
            key, extension = _key(path)
        else:
            key, members = self._members_of(shard).get(audio, ("", {}))
            extension = next((one for one, (place, _) in members.items() if place == audio), "")
        return key or self.place_name(index), extension or _NO_ENDING

    def members(self, index: int, extensions: Iterable[str]) -> dict[str, bytes]:
        """Extension -> the bytes of those members of a sample that it has; a shard's headers are read once for it.

        Raises:
            BadAudio, UserError: as `audio`.
        """
        shard = self.shard_of(index)
        _, members = self._members_of(shard).get(self._where(index, "audio")[0], ("", {}))
        contents = {}
        for extension in extensions:
            if extension in members:
                place, size = members[extension]
                contents[extension] = self._content(shard, size, place)
        return contents

    def _members_of(self, shard: Shard) -> _Members:
        members = self._members.get(shard.path)
        if members is None:
            if len(self._members) >= _OPEN:
                self._members.popitem(last=False)
            members = self._members[shard.path] = self._scanned(shard)
        return members

    def _scanned(self, shard: Shard) -> _Members:
        """The members in a shard's headers, as far as they can be read."""
        samples: dict[str, dict[str, tuple[int, int]]] = {}
        try:
            with open(self._file(shard), "rb", closefd=False) as file, tarfile.open(fileobj=file) as tar:
                for member in tar:
                    key, extension = _key(member.name)
                    if member.isreg() and key:
                        samples.setdefault(key, {})[extension] = member.offset_data, member.size
        except tarfile.TarError:
            pass  # samples after the damage are named by their place
        except OSError as error:
            raise self._unreadable(shard, error) from error
        return {place: (key, members) for key, members in samples.items() for place, _ in members.values()}

    def expect(self, index: int) -> None:
        """Advise the system that a sample will be read, so that the disk works while others are decoded."""
        # macOS has no such call.
        for part in ("audio", "json") if hasattr(os, "posix_fadvise") else ():
            holder = self._holder(index, part)
            # Not what would have to be fetched first.
            if holder.path in self._files or holder.url is None:
                place, size = self._where(index, part)
                os.posix_fadvise(self._file(holder), place, size, os.POSIX_FADV_WILLNEED)

    def _holder(self, index: int, part: str) -> Shard:
        """What holds a sample's part: its shard, or the descriptions of its folder."""
        shard = self.shard_of(index)
        return shard.descriptions or shard if part == "json" else shard

    def _read(self, index: int, part: str) -> bytes:
        place, size = self._where(index, part)
        return self._content(self._holder(index, part), size, place)

    def _where(self, index: int, part: str) -> tuple[int, int]:
        """Where a sample's part begins in its holder, and how many bytes it has."""
        audio, audio_bytes, text, text_bytes, _ = self.table[index].item()
        return (audio, audio_bytes) if part == "audio" else (text, text_bytes)

    def _content(self, shard: Shard, size: int, place: int) -> bytes:
        content = self._pread(shard, size, place)
        if len(content) < size:
            raise BadAudio("its shard ends before it does")
        return content

    def _pread(self, shard: Shard, size: int, place: int) -> bytes:
        file = self._file(shard)
        try:
            return os.pread(file, size, place)
        except OSError as error:
            raise self._unreadable(shard, error) from error

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


def _key(name: str) -> tuple[str, str]:
    """A member's key and extension, as webdataset has them: what is before the first dot after its folder, and what is
    after it in small letters; without a key, if it has none."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (folder + slash + stem, extension.lower()) if stem and extension else ("", "")
