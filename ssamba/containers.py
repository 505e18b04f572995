"""What the bytes of a recording say of it, before any of it is decoded. Imports no torch.

libsndfile takes for the whole what it finds: half of a WAV that was cut, the first of several MP3 or Ogg files that
were joined, and of an MP3 without a header of its own as much as it guesses from the size. So sizes and frames are
counted here. No more of a file than a buffer is in memory, whatever its sizes say.
"""

import functools
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO, NamedTuple

_MOST_CHUNKS = 10_000  # in front of the sound; more have only files that are made to keep a reader busy
_MOST_ZEROS = 1 << 16  # bytes in front of an MP3
_REFLECTED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_STREAMED = ((0x7FFF0000, 0x80000000), (0xFFFF0000, 0xFFFFFFFF))  # sizes that stand for one that was not known


@dataclass(frozen=True)
class Content:
    """A recording's container."""

    kind: str = ""
    """What it is, in small letters; "" if it is none of those that are known here."""
    start: int = 0
    """The byte where it begins, behind what others put before it."""
    fraction: float = 1.0
    """Of the sound that it says it has: what is there. 1 also where nothing is said."""
    damage: str = ""
    """Why its sound is not whole, where no fraction tells that."""
    frames: int | None = None
    """Samples of each channel that its parts make, where they were counted."""
    inexact: int = 0
    """Samples by which `frames` may be off, such as what an encoder put before and after the sound."""
    by_libsndfile: bool = True
    """libsndfile reads it to its end, or not at all."""
    guessed: bool = False
    """libsndfile guesses its length, and reads no further: to its end if that is at least `frames`."""


def examine(file: BinaryIO) -> Content:
    """What a seekable file says of itself; it is left at any position.

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
    if _mpeg_frame(head[:3]) or not head.strip(b"\0"):
        return _mpeg(file, start, size)
    return Content()


def described(start: bytes) -> str:
    """What a file is that is no recording, by its first bytes; "" if they do not tell."""
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
    """Where the recording begins, behind ID3v2 tags that others put before it."""
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
                return _mpeg(file, chunk.start, min(size, chunk.start + promised))
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
    # Some count what the encoder put behind the sound to fill the last packet.
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
    damaged, and over all behind it that it cannot make out."""
    at, links, in_headers = start, 0, False
    while at < size:
        file.seek(at)
        head = file.read(27)
        if not head.startswith(b"OggS"):
            if (found := _find(file, at, b"OggS")) is not None:
                return Content("ogg", damage=f"it is damaged: bytes {at} to {found} are no page of it")
            break  # something else was put behind it
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
    """Where some bytes stand next; None if they do not."""
    file.seek(at)
    kept = b""
    while block := file.read(1 << 16):
        if (found := (kept + block).find(wanted)) >= 0:
            return at - len(kept) + found
        at, kept = at + len(block), block[-len(wanted) + 1 :]
    return None


@functools.lru_cache(maxsize=4096)
def _mpeg_frame(head: bytes) -> tuple[int, int, int, int] | None:
    """The frame of MPEG audio that begins with these three bytes: its bytes, its samples, its rate in Hz, and what all
    frames of a recording have in common; None if none does."""
    if len(head) < 3 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bits, rate = head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer == 4 or bits in (0, 15) or rate == 3:
        return None
    low = version != 3  # MPEG 2 and 2.5
    kilobits = _KILOBITS[2 + (layer != 1) if low else layer - 1 if layer < 3 else 4][bits - 1]
    hertz = (44100, 48000, 32000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
    padding = head[2] >> 1 & 1
    samples = 384 if layer == 1 else 576 if low and layer == 3 else 1152
    slot = 4 if layer == 1 else 1
    return (samples // 8 * kilobits * 1000 // hertz // slot + padding) * slot, samples, hertz, version << 2 | layer


_KILOBITS = (
    (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),  # MPEG 1, layer I
    (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),  # MPEG 1, layer II
    (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),  # MPEG 2, layer I
    (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),  # MPEG 2, layers II and III
    (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),  # MPEG 1, layer III
)
_TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICSBEGIN")


def _mpeg(file: BinaryIO, start: int, size: int) -> Content:
    """MP3, and layers I and II: frames one behind another, of which some files say in the first how many they are."""
    at = _past_zeros(file, start)
    file.seek(at)
    first, first_frame = _mpeg_frame(file.read(3)), at
    if first is None:
        return Content()
    common, samples = first[2:], first[1]
    said, exact, trimmed = _said_frames(file, at, first[0])
    count, joints, damage = 0, 0, ""
    while at < size:
        file.seek(at)
        frame = _mpeg_frame(file.read(3))
        if frame and frame[2:] == common:
            count += at + frame[0] <= size
            at += frame[0]
            continue
        following = _next_frame(file, at, common)
        if following is None or following >= size:
            break
        file.seek(at)
        between = file.read(min(following - at, 16))
        if not between.startswith(_TAGS) and between.strip(b"\0"):
            damage = damage or f"it is damaged: {following - at} bytes from byte {at} on are no part of its frames"
        at, joints = following, joints + 1
    if said is not None:
        count -= 1  # that one holds no sound
        if count + 2 < said:
            there, told = (number * samples / first[2] for number in (max(0, count), said))
            damage = f"it is cut or damaged: {there:.3f} s of the {told:.3f} s that its header tells of are there"
    whole = not joints and (said is None or count <= said + 2)
    frames, inexact = max(0, count * samples - trimmed), (4 + 2 * joints) * samples
    return Content(
        "mp3", first_frame, damage=damage, frames=frames, inexact=inexact, by_libsndfile=whole, guessed=not exact
    )


def _past_zeros(file: BinaryIO, start: int) -> int:
    file.seek(start)
    zeros = file.read(_MOST_ZEROS)
    return start + len(zeros) - len(zeros.lstrip(b"\0"))


def _said_frames(file: BinaryIO, at: int, length: int) -> tuple[int | None, bool, int]:
    """How many frames the first one says that follow it (Xing, Info, VBRI), None if it does not; whether libsndfile
    knows it by that; and how many samples before and after the sound are the encoder's."""
    file.seek(at)
    frame = file.read(min(length, 512))
    if frame[36:40] == b"VBRI":
        return int.from_bytes(frame[50:54], "big"), False, 0
    found = max(frame[:48].find(b"Xing"), frame[:48].find(b"Info"))
    if found < 0 or len(frame) < found + 12 or not frame[found + 7] & 1:
        return None, False, 0
    flags = frame[found + 7]
    lame = found + 12 + 2 * (flags & 2) + 25 * (flags & 4) + (flags & 8) // 2
    delays = int.from_bytes(frame[lame + 21 : lame + 24], "big") if frame[lame : lame + 1].isalpha() else 0
    return int.from_bytes(frame[found + 8 : found + 12], "big"), True, (delays >> 12) + (delays & 0xFFF)


def _next_frame(file: BinaryIO, at: int, common: tuple[int, ...]) -> int | None:
    """Where frames of the same kind go on from a place: where one is followed by another."""
    while True:
        file.seek(at)
        block = file.read(1 << 16)
        if len(block) < 3:
            return None
        found = block.find(0xFF)
        while 0 <= found <= len(block) - 3:
            frame = _mpeg_frame(block[found : found + 3])
            if frame and frame[2:] == common:
                file.seek(at + found + frame[0])
                after = _mpeg_frame(file.read(3))
                if after and after[2:] == common:
                    return at + found
            found = block.find(0xFF, found + 1)
        at += len(block) - 2


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
