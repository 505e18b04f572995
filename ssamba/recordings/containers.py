"""The headers of recordings, read before anything is decoded. Imports no torch.

libsndfile reads a part as the whole: half of a WAV that was cut, the first of several MP3 or Ogg files that
were joined, and of an MP3 without a header of its own as much as it guesses from the size. So sizes and frames are
counted here. No more of a file than a buffer is in memory, whatever sizes its headers claim.
"""

import functools
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import BinaryIO, NamedTuple

from ssamba.recordings.content import Content
from ssamba.recordings.mpeg import examine_mpeg, mpeg_frame

_MOST_CHUNKS = 10_000  # before the sound; only files that are made to keep a reader busy have more
_REFLECTED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_STREAMED = ((0x7FFF0000, 0x80000000), (0xFFFF0000, 0xFFFFFFFF))  # sizes that stand for one that was not known


def examine(file: BinaryIO) -> Content:
    """The content of a seekable file by its headers; the file is left at any position.

    Raises:
        OSError: it cannot be read.
    """
    size = file.seek(0, os.SEEK_END)
    start = _after_tags(file, size)
    file.seek(start)
    head = file.read(64)
    for magic, at, read in _KINDS:
        if head.startswith(magic, at):
            return replace(read(file, start, size), start=start)
    if mpeg_frame(head[:3]) or not head.strip(b"\0"):
        return examine_mpeg(file, start, size)
    return Content()


def described(start: bytes) -> str:
    """What a file is that is no recording, by its first bytes; "" if they do not show it."""
    if not start:
        return "it is empty"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for what, beginnings in _NO_RECORDINGS.items():
        if text.startswith(beginnings):
            return what
    if start.startswith(b"ID3"):
        return "it holds a tag (ID3) and no sound"
    if all(byte >= 32 or byte in b"\t\n\r\f" for byte in start):
        return "it begins like text"
    return ""


_NO_RECORDINGS = {
    "it is the pointer that git LFS keeps in a file's place; expected the file: `git lfs pull` brings it": (
        b"version https://git-lfs",
    ),
    "it begins like a web page, perhaps what a server answered instead": (b"<!doctype", b"<html", b"<head", b"<?xml"),
    "it is an archive; expected what is in it": (b"pk\x03\x04", b"\x1f\x8b", b"7z\xbc\xaf", b"\xfd7zxz", b"bzh"),
}


def _after_tags(file: BinaryIO, size: int) -> int:
    """Where the recording begins, after ID3v2 tags."""
    at = 0
    for _ in range(_MOST_CHUNKS):
        file.seek(at)
        head = file.read(10)
        if len(head) < 10 or not head.startswith(b"ID3") or max(head[6:10]) > 127:
            break
        length = functools.reduce(lambda whole, byte: whole << 7 | byte, head[6:10], 0)
        at += 10 + length + (10 if head[5] & 16 else 0)  # the flag of a footer
    return min(at, size)


def _part(promised: int, there: int) -> float:
    """Of so many bytes, what is there."""
    return min(1.0, there / promised) if promised > 0 else 1.0


def _streamed(promised: int, there: int) -> bool:
    """Whether a size of 32 bits stands for one that the writer did not know, as in a pipe."""
    return promised > there and any(low <= promised <= high for low, high in _STREAMED)


class _Chunk(NamedTuple):
    name: bytes
    start: int
    bytes: int


def _chunks(file: BinaryIO, start: int, size: int, order: str) -> Iterator[_Chunk]:
    """Of RIFF and IFF: four letters, a size, the content, a byte to make it even."""
    for _ in range(_MOST_CHUNKS):
        file.seek(start)
        head = file.read(8)
        if len(head) < 8:
            return
        length = struct.unpack(order + "I", head[4:])[0]
        yield _Chunk(head[:4], start + 8, length)
        start += 8 + length + length % 2


def _riff(file: BinaryIO, start: int, size: int) -> Content:
    """WAV, also RIFX and RF64."""
    file.seek(start)
    head = file.read(12)
    order = ">" if head.startswith(b"RIFX") else "<"
    riff = struct.unpack(order + "I", head[4:8])[0]
    wide, mpeg = 0, False
    for chunk in _chunks(file, start + 12, size, order):
        file.seek(chunk.start)
        if chunk.name == b"ds64":
            wide = int.from_bytes(file.read(16)[8:], "little")
        elif chunk.name == b"fmt ":
            fields = file.read(16)
            mpeg = fields[:2] in (b"\x50\0", b"\x55\0")
            if problem := _contradiction(fields, order):
                return Content("wav", damage=problem)
        elif chunk.name == b"data":
            there = size - chunk.start
            if not chunk.bytes and there and abs(start + 8 + riff - size) > 8:
                return Content("wav", by_libsndfile=False)  # sizes that were to be filled in at the end
            promised = chunk.bytes
            if wide and promised == 0xFFFFFFFF:
                promised = wide
            elif _streamed(promised, there):
                promised = there
            if mpeg:
                return examine_mpeg(file, chunk.start, min(size, chunk.start + promised))
            return Content("wav", fraction=_part(promised, there))
    return Content("wav")


def _contradiction(fields: bytes, order: str) -> str:
    """What of a WAV's format cannot be: of samples of a fixed size, blocks that do not hold one of each channel."""
    if len(fields) < 16:
        return ""
    kind, channels, _, _, block, bits = struct.unpack(order + "HHIIHH", fields)
    if kind not in (1, 3, 0xFFFE) or not channels or not block or not bits:
        return ""
    # 17 to 31 bits may lie in four bytes.
    fits = block in (channels * -(-bits // 8), channels * 4 if bits > 16 else 0)
    return "" if fits else f"it is damaged: {channels} channels of {bits} bits do not fit blocks of {block} bytes"


def _form(file: BinaryIO, start: int, size: int) -> Content:
    """AIFF and 8SVX."""
    for chunk in _chunks(file, start + 12, size, ">"):
        if chunk.name in (b"SSND", b"BODY"):
            there = size - chunk.start
            return Content("aiff", fraction=1.0 if _streamed(chunk.bytes, there) else _part(chunk.bytes, there))
    return Content("aiff")


def _au(file: BinaryIO, start: int, size: int) -> Content:
    file.seek(start)
    head = file.read(12)
    if len(head) < 12:
        return Content("au")
    offset, promised = struct.unpack("<II" if head.startswith(b"dns.") else ">II", head[4:])
    there = max(0, size - start - offset)
    return Content("au", fraction=1.0 if _streamed(promised, there) else _part(promised, there))


def _w64(file: BinaryIO, start: int, size: int) -> Content:
    at = start + 40
    for _ in range(_MOST_CHUNKS):
        if at >= size:
            break
        file.seek(at)
        head = file.read(24)
        if len(head) < 24:
            break
        length = int.from_bytes(head[16:], "little")
        if head.startswith(b"data"):
            return Content("w64", fraction=_part(length - 24, size - at - 24))
        at += max(24, length + -length % 8)
    return Content("w64")


def _caf(file: BinaryIO, start: int, size: int) -> Content:
    """Apple's Core Audio Format; of packets of unequal length, their table says how many samples they hold."""
    at, packets, frames, fraction = start + 8, 1, 0, 1.0
    for _ in range(_MOST_CHUNKS):
        if at >= size:
            break
        file.seek(at)
        head = file.read(12)
        if len(head) < 12:
            break
        length = int.from_bytes(head[4:], "big", signed=True)
        if head.startswith(b"pakt"):
            table = file.read(16)
            packets, frames = int.from_bytes(table[:8], "big"), int.from_bytes(table[8:], "big")
        elif head.startswith(b"data"):
            fraction = _part(length, size - at - 12)
        if length < 0:
            break
        at += 12 + length
    # Some count the encoder's padding after the sound in the last packet.
    return Content("caf", fraction=fraction, frames=frames or None, inexact=frames // max(1, packets))


def _nist(file: BinaryIO, start: int, size: int) -> Content:
    file.seek(start)
    fields = dict(line.split(None, 2)[::2] for line in file.read(1024).split(b"\n") if len(line.split(None, 2)) == 3)
    file.seek(start + 8)
    try:
        header = int(file.read(8))
        numbers = [int(fields.get(name, b"")) for name in (b"sample_count", b"sample_n_bytes", b"channel_count")]
    except ValueError:
        return Content("nist")
    if fields.get(b"sample_coding", b"pcm").split(b",")[-1].startswith(b"embedded"):  # compressed
        return Content("nist")
    return Content("nist", fraction=_part(numbers[0] * numbers[1] * numbers[2], max(0, size - start - header)))


def _voc(file: BinaryIO, start: int, size: int) -> Content:
    """Creative Labs' blocks: a byte for the kind, three for the size; libsndfile reads the first one with sound."""
    file.seek(start + 20)
    at = start + int.from_bytes(file.read(2), "little")
    for _ in range(_MOST_CHUNKS):
        file.seek(at)
        head = file.read(4)
        if len(head) < 4 or not head[0]:
            break
        length, kind = int.from_bytes(head[1:], "little"), head[0]
        at += 4 + length
        if kind in (1, 9):
            file.seek(at)
            more = file.read(16)
            alone = len(more) < 16 or more[0] not in (1, 2, 9)
            return Content("voc", fraction=_part(length, length + min(0, size - at)), by_libsndfile=alone)
    return Content("voc")


def _flac(file: BinaryIO, start: int, size: int) -> Content:
    file.seek(start + 8)
    info = file.read(18)
    samples = int.from_bytes(info[13:18], "big") & (1 << 36) - 1
    if samples:
        return Content("flac", frames=samples)
    # Without a length it is read until its end, and an older tag there would be taken for damage.
    file.seek(max(0, size - 128))
    return Content("flac", by_libsndfile=file.read(3) != b"TAG")


def _ogg(file: BinaryIO, start: int, size: int) -> Content:
    """Ogg by its pages, each of which gives the sizes of its segments and a checksum: a decoder passes over one that is
    damaged, and over all after it that it cannot decode."""
    at, links, in_headers = start, 0, False
    while at < size:
        file.seek(at)
        head = file.read(27)
        if not head.startswith(b"OggS"):
            if (next_page := _find(file, at, b"OggS")) is not None:
                return Content("ogg", damage=f"it is damaged: bytes {at} to {next_page} are no page of it")
            break  # something else was appended
        segments = file.read(head[26]) if len(head) == 27 else b""
        content = file.read(sum(segments))
        if len(head) < 27 or len(segments) < head[26] or len(content) < sum(segments):
            return Content("ogg", damage="it ends in the middle of a page, so it was cut")
        if _ogg_checksum(head[:22] + bytes(4) + head[26:] + segments + content) != head[22:26]:
            return Content("ogg", damage=f"it is damaged: the page at byte {at} has another checksum than it says")
        first = bool(head[5] & 2)
        links += first and not in_headers
        in_headers = first
        at += len(head) + len(segments) + len(content)
    return Content("ogg", by_libsndfile=links < 2)


def _ogg_checksum(page: bytes) -> bytes:
    """RFC 3533's CRC, as it stands in a page: zlib's polynomial, bits from their other end, from 0, not inverted."""
    reflected = zlib.crc32(page.translate(_REFLECTED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return reflected.to_bytes(4, "big").translate(_REFLECTED)


def _find(file: BinaryIO, at: int, wanted: bytes) -> int | None:
    """The next offset of some bytes; None if there is none."""
    file.seek(at)
    kept = b""
    while block := file.read(1 << 16):
        if (offset := (kept + block).find(wanted)) >= 0:
            return at - len(kept) + offset
        at, kept = at + len(block), block[-len(wanted) + 1 :]
    return None


_KINDS: tuple[tuple[bytes, int, Callable[[BinaryIO, int, int], Content]], ...] = (
    (b"fLaC", 0, _flac),
    (b"WAVE", 8, _riff),
    (b"OggS", 0, _ogg),
    (b"AIFF", 8, _form),
    (b"AIFC", 8, _form),
    (b"8SVX", 8, _form),
    (b"16SV", 8, _form),
    (b".snd", 0, _au),
    (b"dns.", 0, _au),
    (b"riff\x2e\x91\xcf\x11", 0, _w64),
    (b"caff", 0, _caf),
    (b"NIST_1A", 0, _nist),
    (b"Creative Voice File", 0, _voc),
)
