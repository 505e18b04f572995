"""MPEG audio: MP3, and layers I and II, one frame after another; in a file of their own or in a WAV.

libsndfile guesses the length of files without it in a header, so frames are counted.
"""

import functools
from typing import BinaryIO

from ssamba.recordings.content import Content

_MOST_ZEROS = 1 << 16  # bytes in front of an MP3
_KILOBITS = (
    (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),  # MPEG 1, layer I
    (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),  # MPEG 1, layer II
    (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),  # MPEG 2, layer I
    (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),  # MPEG 2, layers II and III
    (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),  # MPEG 1, layer III
)
_TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICSBEGIN")


@functools.lru_cache(maxsize=4096)
def mpeg_frame(head: bytes) -> tuple[int, int, int, int] | None:
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


def examine_mpeg(file: BinaryIO, start: int, size: int) -> Content:
    """The content of the bytes from `start` to `size`; in some files the first frame has the number of those that
    follow."""
    at = _past_zeros(file, start)
    file.seek(at)
    first, first_frame = mpeg_frame(file.read(3)), at
    if first is None:
        return Content()
    common, samples = first[2:], first[1]
    declared, exact, trimmed = _declared_frames(file, at, first[0])
    count, joints, damage = 0, 0, ""
    while at < size:
        file.seek(at)
        frame = mpeg_frame(file.read(3))
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
    if declared is not None:
        count -= 1  # that one holds no sound
        if count + 2 < declared:
            present, expected = (frame_count * samples / first[2] for frame_count in (max(0, count), declared))
            damage = f"it is cut or damaged: {present:.3f} s of the {expected:.3f} s that its header tells of are there"
    whole = not joints and (declared is None or count <= declared + 2)
    frames, inexact = max(0, count * samples - trimmed), (4 + 2 * joints) * samples
    return Content(
        "mp3", first_frame, damage=damage, frames=frames, inexact=inexact, by_libsndfile=whole, guessed=not exact
    )


def _past_zeros(file: BinaryIO, start: int) -> int:
    file.seek(start)
    zeros = file.read(_MOST_ZEROS)
    return start + len(zeros) - len(zeros.lstrip(b"\0"))


def _declared_frames(file: BinaryIO, at: int, length: int) -> tuple[int | None, bool, int]:
    """The number of following frames in the first one's header (Xing, Info, VBRI), None without; whether libsndfile
    reads that header; and how many samples before and after the sound are the encoder's padding."""
    file.seek(at)
    frame = file.read(min(length, 512))
    if frame[36:40] == b"VBRI":
        return int.from_bytes(frame[50:54], "big"), False, 0
    tag = max(frame[:48].find(b"Xing"), frame[:48].find(b"Info"))
    if tag < 0 or len(frame) < tag + 12 or not frame[tag + 7] & 1:
        return None, False, 0
    flags = frame[tag + 7]
    lame = tag + 12 + 2 * (flags & 2) + 25 * (flags & 4) + (flags & 8) // 2
    delays = int.from_bytes(frame[lame + 21 : lame + 24], "big") if frame[lame : lame + 1].isalpha() else 0
    return int.from_bytes(frame[tag + 8 : tag + 12], "big"), True, (delays >> 12) + (delays & 0xFFF)


def _next_frame(file: BinaryIO, at: int, common: tuple[int, ...]) -> int | None:
    """Where frames of the same kind go on from a place: where one is followed by another."""
    while True:
        file.seek(at)
        block = file.read(1 << 16)
        if len(block) < 3:
            return None
        offset = block.find(0xFF)
        while 0 <= offset <= len(block) - 3:
            frame = mpeg_frame(block[offset : offset + 3])
            if frame and frame[2:] == common:
                file.seek(at + offset + frame[0])
                after = mpeg_frame(file.read(3))
                if after and after[2:] == common:
                    return at + offset
            offset = block.find(0xFF, offset + 1)
        at += len(block) - 2
